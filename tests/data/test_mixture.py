# SPDX-License-Identifier: Apache-2.0
"""Several data sets at once: whose joint is which, who is drawn, what is taught, and a score for each set."""

import dataclasses
import json
import logging
import math
import shutil
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
import yaml
from torch import nn

from fastpose import evaluate, pack, predict, train
from fastpose.data.augmentation import Augmentation
from fastpose.data.coco.ap import CocoTruth, of_joints
from fastpose.data.dataset import DataOptions
from fastpose.data.datasets import open_dataset
from fastpose.data.loader import Batch, PoseLoader
from fastpose.data.mixture import joints_in_set
from fastpose.data.mixture.dataset import mixed
from fastpose.data.mixture.listing import read_listing
from fastpose.data.pack import PackError, read_packed_persons
from fastpose.data.persons import Part, Persons, Sets
from fastpose.data.pixels import ImageFiles, open_images
from fastpose.data.reading import Reading
from fastpose.data.sense import check_sense
from fastpose.engine import pictures
from fastpose.engine import results as drawing
from fastpose.engine.evaluation import scores_entry
from fastpose.models import network
from fastpose.option import OptionError
from fastpose.options.settings import Settings
from fastpose.options.settle import settle
from fastpose.ranks import Ranks
from fastpose.skeletons import COCO, MPII, Skeleton, find_skeleton
from tests.helpers.packs import forge_annotations
from tests.helpers.persons import persons_of
from tests.helpers.runs import draw_curves, results, start_and_stop
from tests.helpers.settings import changed, make_step, small_network
from tests.helpers.tiny_coco import write_tiny_coco
from tests.helpers.tiny_mpii import write_tiny_mpii

LSP = find_skeleton("lsp")
PARTS = ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")
MPII_LINES = {f"{side}_{part}": f"{side[0]}_{part}" for side in ("left", "right") for part in PARTS}
BY_TORSO = {"skeleton": "lsp", "score": "pck", "pck_norm": "torso"}
RESULTS = "keypoints_results.json"
TWO = Skeleton("two", ("left", "right"), ((0, 1),), ())


def files(root: Path, name: str, **more: object) -> dict[str, object]:
    """The lines of a set that `write_tiny_coco` wrote."""
    annotations = {f"{split}_annotations": f"annotations/{split}.json" for split in ("train", "valid")}
    return {"name": name, "dataset": "coco", "data_root": str(root), "images": "images", **annotations, **more}


def write_list(path: Path, *sets: object, skeleton: object = "coco") -> Path:
    path.write_text(yaml.safe_dump({"skeleton": skeleton, "sets": list(sets)}))
    return path


@pytest.fixture(scope="module")
def listed(tmp_path_factory) -> Path:
    """A list of MPII's 4 persons, half of LSP's 6 and three times COCO's 3: 16 an epoch."""
    root = tmp_path_factory.mktemp("sets")
    write_tiny_mpii(root / "mpii", persons=4, images=2, seed=1)
    write_tiny_coco(root / "lsp", persons=6, images=3, seed=2, skeleton=LSP)
    write_tiny_coco(root / "coco", persons=3, images=3, seed=3)
    return write_list(
        root / "mix.yaml",
        {"name": "mpii", "dataset": "mpii", "data_root": "mpii", "joints": MPII_LINES},
        files(Path("lsp"), "lsp", skeleton="lsp", score="pck", weight=0.5),
        files(Path("coco"), "coco", weight=3),
    )


def settled(listed: Path, **asked: object) -> Settings:
    return settle({"dataset": str(listed), "size": [32, 32], "device": "cpu"} | asked)


def read(listed: Path, split: str = "valid", **asked: object) -> Persons:
    settings = settled(listed, **asked)
    return open_dataset(settings.data, settings.network.size).read(split)


def mixture_of(*parts: tuple[float, Persons, list[int]], skeleton: Skeleton = TWO) -> Persons:
    named = [
        Part(f"set{number}", weight, np.array(joints, np.int64), persons, {})
        for number, (weight, persons, joints) in enumerate(parts)
    ]
    return mixed(named, skeleton)


# Whose joint is which


def test_joints_of_one_name_are_the_same_and_a_line_says_otherwise():
    network_joints = Skeleton("net", ("nose", "neck", "top", "hip"), (), ())
    of_set = Skeleton("set", ("head", "hip", "neck"), (), ())
    assert joints_in_set(network_joints, of_set, {}).tolist() == [-1, 2, -1, 1]
    assert joints_in_set(network_joints, of_set, {"top": "head", "hip": None}).tolist() == [-1, 2, 0, -1]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ({"tail": "l_hip"}, r"^joints: expected joints of the network, skeleton 'coco' \(nose, .*\), got 'tail'$"),
        (
            {"left_hip": "hip"},
            r"^joints: left_hip: expected a joint of the set, skeleton 'mpii' \(r_ankle, .*\), got 'hip'$",
        ),
        (
            {"left_hip": "l_hip", "nose": "l_hip"},
            r"^joints: expected the set's l_hip once, got it for nose and for left_hip$",
        ),
        ({}, r"^joints: expected at least one joint in common, got none of skeletons 'coco' and 'mpii': add lines"),
    ],
)
def test_a_joint_map_that_cannot_be_is_refused(lines, message):
    with pytest.raises(OptionError, match=message):
        joints_in_set(COCO, MPII, lines)


def test_a_joint_that_a_line_takes_from_its_own_name_needs_a_line_without():
    message = (
        r"^joints: expected the set's neck once, got it for nose and for neck, by its name: add a line neck: null$"
    )
    pair = Skeleton("net", ("nose", "neck"), (), ())
    with pytest.raises(OptionError, match=message):
        joints_in_set(pair, LSP, {"nose": "neck"})
    assert joints_in_set(pair, LSP, {"nose": "neck", "neck": None}).tolist() == [12, -1]


# The list


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "a/b"}, r"mix\.yaml: set 0: name: expected a name that can be a folder's, not Mean, got 'a/b'$"),
        ({"name": "Mean"}, r"mix\.yaml: set 0: name: expected a name that can be a folder's, not Mean, got 'Mean'$"),
        ({"name": None}, r"mix\.yaml: set 0: name: expected a name that can be a folder's, not Mean, got 'None'$"),
        ({"sigma": 2}, r"mix\.yaml: set 'one': there is no option 'sigma' of a data set$"),
        ({"synthetic_persons": 2}, r"mix\.yaml: set 'one': there is no option 'synthetic_persons' of a data set$"),
        ({"score": "oks"}, r"mix\.yaml: set 'one': score: expected one of auto, pck, got 'oks'$"),
        ({"weight": 0}, r"mix\.yaml: set 'one': weight: expected a number above 0 and at most 1000, got 0$"),
        ({"weight": -1.5}, r"mix\.yaml: set 'one': weight: expected a number above 0 and at most 1000, got -1\.5$"),
        ({"weight": math.nan}, r"mix\.yaml: set 'one': weight: expected a number above 0 and at most 1000, got nan$"),
        ({"weight": 1e300}, r"mix\.yaml: set 'one': weight: expected a number above 0 and at most 1000, got 1e\+300$"),
        ({"weight": "half"}, r"mix\.yaml: set 'one': weight: expected a number, got 'half'$"),
        ({"weight": 0.01}, r"mix\.yaml: set 'one': weight: 0\.01 of 2 persons are none: raise it$"),
        ({"joints": ["nose"]}, r"mix\.yaml: set 'one': joints: expected lines of NETWORK'S JOINT: THE SET'S, got"),
        ({"joints": {"nose": 1}}, r"mix\.yaml: set 'one': joints: expected lines of NETWORK'S JOINT: THE SET'S, got"),
        ({"joints": {"nose": "left"}}, r"mix\.yaml: set 'one': joints: nose: expected a joint of the set, skeleton"),
        ({"dataset": "other.yaml"}, r"mix\.yaml: set 'one': dataset: expected one of mpii, coco.*, got 'other\.yaml'$"),
        ({"dataset": "aflw"}, r"mix\.yaml: set 'one': dataset: expected one of mpii, coco.*, got 'aflw'$"),
        ({"dataset": "mpii"}, r"mix\.yaml: set 'one': joints: expected at least one joint in common, got none of"),
        ({"dataset": "mpii", "score": "pck"}, r"mix\.yaml: set 'one': score: pck is for --dataset coco"),
        ({"skeleton": "gone.yaml"}, r"mix\.yaml: set 'one': skeleton: '.*/gone\.yaml' is neither a file nor one of"),
        ({"train_annotations": "gone.json"}, r"mix\.yaml: set 'one': train_annotations: .*one/gone\.json"),
    ],
)
def test_a_set_that_cannot_be_is_an_error_with_the_list_the_set_and_what_was_expected(tmp_path, change, message):
    write_tiny_coco(tmp_path / "one", persons=2, images=1)
    listed = write_list(tmp_path / "mix.yaml", files(tmp_path / "one", "one") | change)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read(listed, "train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", r"mix\.yaml: expected just the keys skeleton and sets, got list$"),
        ("{sets: []}", r"mix\.yaml: expected just the keys skeleton and sets, got sets$"),
        ("{skeleton: coco, sets: [], more: 1}", r"mix\.yaml: expected just the keys .*, got skeleton, sets, more$"),
        ("{skeleton: 3, sets: [{}]}", r"mix\.yaml: skeleton: expected a name or a file, got '3'$"),
        ("{skeleton: coco, sets: []}", r"mix\.yaml: sets: expected a list of data sets, got '\[\]'$"),
        ("{skeleton: coco, sets: {a: 1}}", r"mix\.yaml: sets: expected a list of data sets, got"),
        (
            "{skeleton: coco, sets: [7]}",
            r"mix\.yaml: set 0: expected name, dataset, data_root and other lines, got '7'$",
        ),
        ("{skeleton: coco, sets: [{name: a}]}", r"mix\.yaml: set 'a': dataset: expected a value, got none$"),
        (
            "{skeleton: coco, sets: [{name: a, dataset: coco}]}",
            r"mix\.yaml: set 'a': data_root: expected a value, got none$",
        ),
        (
            "{skeleton: coco, sets: [{name: a, dataset: coco, data_root: a}, {name: A, dataset: mpii, data_root: b}]}",
            r"mix\.yaml: set 1: name: expected another than set 'a', got 'A'$",
        ),
        ("{skeleton: gone, sets: [7]}", r"mix\.yaml: skeleton: '.*/gone' is neither a file nor one of"),
        ("{skeleton: &a coco, sets: *a}", r"mix\.yaml: not YAML: line 1: found the alias \*a"),
    ],
)
def test_a_list_that_cannot_be_is_an_error_with_its_name(tmp_path, text, message):
    (tmp_path / "mix.yaml").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read(tmp_path / "mix.yaml")


def test_a_list_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"^dataset: no file {tmp_path}/gone\.yaml$"):
        read(tmp_path / "gone.yaml")


@pytest.mark.parametrize(
    ("name", "value"), [("score", "pck"), ("head_boxes", ""), ("skeleton", "lsp"), ("images", "photos")]
)
def test_what_is_said_of_one_set_is_not_said_beside_the_list(listed, name, value):
    settings = settled(listed, **{name: value})
    message = rf"^{name}: expected it in .*mix\.yaml, with the set that it is for, got '{value}'$"
    with pytest.raises(OptionError, match=message):
        open_dataset(settings.data, (32, 32))


@pytest.mark.parametrize(("name", "value"), [("exif", "upright"), ("sixteen_bits", "stretch"), ("max_image_pixels", 9)])
def test_how_images_are_read_is_not_said_of_one_set(tmp_path, name, value):
    listed = write_list(tmp_path / "mix.yaml", files(tmp_path / "one", "one", **{name: value}))
    message = rf"mix\.yaml: set 'one': {name}: expected it beside the list, as all images are read in one way, got it "
    with pytest.raises(ValueError, match=message):
        read(listed)


def test_how_images_are_read_is_said_beside_the_list_and_stays_with_the_network(listed):
    settings = settled(listed, exif="upright", sixteen_bits="stretch", max_image_pixels=10_000)
    persons = open_dataset(settings.data, (32, 32)).read("valid")
    assert persons.reading == Reading(upright=True, stretch=True, most_pixels=10_000)
    assert {part.persons.reading for part in persons.sets.parts} == {persons.reading}
    assert settle({}, run=settings.as_plain()).data.reading == persons.reading


def test_a_set_that_is_a_pack_is_refused(tmp_path):
    write_tiny_coco(tmp_path / "one", persons=2, images=1)
    (tmp_path / "one" / "pack.json").touch()
    with pytest.raises(ValueError, match=r"set 'one': data_root: .*one is a pack: name the files, and pack all sets"):
        read(write_list(tmp_path / "mix.yaml", files(tmp_path / "one", "one")))


def test_options_of_other_data_do_not_come_along(listed):
    run = settle({"dataset": "coco", "skeleton": "lsp", "data_root": "/elsewhere", "score": "pck"}).as_plain()
    data = settle({"dataset": str(listed)}, run=run).data
    assert (data.dataset, data.data_root) == (str(listed), str(listed.parent))
    assert (data.skeleton, data.score, data.train_annotations, data.images) == ("", "auto", "", "")
    back = settle({"dataset": "coco", "data_root": "/elsewhere"}, run=settled(listed).as_plain()).data
    assert back.train_annotations == "annotations/person_keypoints_train2017.json"
    assert settle({"data_root": "/mnt"}, run=settled(listed).as_plain()).data.dataset == str(listed)


def test_one_list_stays_the_same_however_its_path_is_spelled(listed, monkeypatch):
    monkeypatch.chdir(listed.parent)
    run = settled(listed, pck_threshold=0.05, missing_images="drop").as_plain()
    recipe = {"dataset": "mix.yaml", "pck_threshold": 0.05, "missing_images": "drop"}
    for asked in ("mix.yaml", f"../{listed.parent.name}/mix.yaml", str(listed)):
        for data in (settle({"dataset": asked}, run=run).data, settle({"dataset": asked}, recipe=recipe).data):
            assert (data.pck_threshold, data.missing_images, data.dataset) == (0.05, "drop", str(listed))
    (listed.parent / "again.yaml").write_text(listed.read_text())
    assert settle({"dataset": "again.yaml"}, run=run).data.pck_threshold == 0.2


def test_what_a_recipe_says_of_no_data_set_holds_for_the_list_beside_it(listed):
    def beside(**recipe: object) -> DataOptions:
        return settle({"dataset": str(listed)}, recipe=recipe, instead={"synthetic_persons": 0}).data

    assert beside(missing_images="drop", pck_threshold=0.1).missing_images == "drop"
    for of_mpii in ({"train_annotations": "annot/valid.json"}, {"data_root": "/mpii"}, {"synthetic_persons": 9}):
        data = beside(missing_images="drop", **of_mpii)
        assert (data.missing_images, data.train_annotations, data.synthetic_persons) == ("error", "", 0)
        assert data.data_root == str(listed.parent)


def test_paths_of_sets_are_relative_to_the_list_or_to_an_explicit_data_root(listed, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTPOSE_DATA_ROOT", "/elsewhere")
    assert read(listed).image_paths[0] == listed.parent / "mpii" / "images" / "000.jpg"
    moved = shutil.copy(listed, tmp_path / "moved.yaml")
    assert read(Path(moved), data_root=str(listed.parent)).image_paths == read(listed).image_paths


def test_the_documented_list_can_be_read(tmp_path):
    page = Path(__file__).parents[2] / "docs" / "mixtures.md"
    (tmp_path / "mix.yaml").write_text(page.read_text(encoding="utf-8").partition("```yaml")[2].partition("```")[0])
    skeleton, entries = read_listing(tmp_path / "mix.yaml", settled(tmp_path / "mix.yaml").data)
    own = {"mpii": MPII, "lsp": LSP, "coco": COCO}
    assert [(one.name, one.weight, one.data.data_root) for one in entries] == [
        ("mpii", 0.5, str(tmp_path / "MPII")),
        ("lsp", 2.0, str(tmp_path / "LSPET")),
        ("coco", 1.0, str(tmp_path / "COCO")),
    ]
    has = {one.name: (joints_in_set(skeleton, own[one.name], one.joints) >= 0).sum() for one in entries}
    assert has == {"mpii": 12, "lsp": 10, "coco": 17}


# Persons in the network's joints


def test_persons_get_the_network_s_joints_and_what_a_set_lacks_is_neither_visible_nor_supervised(listed, capsys):
    persons = read(listed, "train")
    assert len(persons) == 4 + 6 + 3
    assert len(persons.image_paths) == 2 + 3 + 3
    sets = persons.sets
    assert sets.index.tolist() == [0] * 4 + [1] * 6 + [2] * 3
    mpii, lsp, coco = (part.persons for part in sets.parts)
    assert [one.skeleton.name for one in (mpii, lsp, coco)] == ["mpii", "lsp", "coco"]

    left_hip = COCO.joints.index("left_hip")
    assert persons.keypoints[:4, left_hip].tolist() == mpii.keypoints[:, MPII.joints.index("l_hip")].tolist()
    assert persons.visible[:4, left_hip].tolist() == mpii.visible[:, MPII.joints.index("l_hip")].tolist()
    assert persons.keypoints[4:10, left_hip].tolist() == lsp.keypoints[:, 3].tolist()
    assert persons.keypoints[10:].tolist() == coco.keypoints.tolist()
    assert persons.visible[10:].tolist() == coco.visible.tolist()
    assert not persons.visible[:10, :5].any()

    supervised = np.ones((13, 17), np.float32)
    supervised[:10, :5] = 0  # no nose, eyes, ears in MPII and LSP
    assert sets.supervised.tolist() == supervised.tolist()
    without = "without nose, left_eye, right_eye, left_ear, right_ear"
    assert capsys.readouterr().err.splitlines() == [
        f"mpii: 4 persons (train), 12 of 17 joints, {without}",
        f"lsp: 6 persons (train), 3 an epoch, 12 of 17 joints, {without}",
        "coco: 3 persons (train), 9 an epoch, 17 of 17 joints",
    ]


def test_an_image_of_two_sets_is_one_image():
    one, other = persons_of(np.zeros((2, 2, 2)), skeleton=TWO), persons_of(np.ones((1, 2, 2)), skeleton=TWO)
    persons = mixture_of((1.0, one, [0, 1]), (1.0, other, [0, 1]))
    assert persons.image_paths == (Path("a"),)
    assert persons.image_index.tolist() == [0, 0, 0]
    assert persons.sets.supervised is None  # all sets have all joints: nothing to look after


def test_selected_persons_keep_their_sets(listed):
    persons = read(listed)
    some = persons.select([11, 5, 0, 4])
    assert some.sets.index.tolist() == [2, 1, 0, 1]
    mpii, lsp, coco = (part.persons for part in some.sets.parts)
    assert [one.source_row.tolist() for one in (mpii, lsp, coco)] == [[0], [1, 0], [1]]
    assert lsp.keypoints.tolist() == persons.sets.parts[1].persons.keypoints[[1, 0]].tolist()


def test_weights_and_joints_distinguish_persons_from_others():
    people = persons_of(np.zeros((2, 2, 2)), skeleton=TWO)
    prints = {
        mixture_of((weight, people, joints)).fingerprint() for weight in (1.0, 2.0) for joints in ([0, 1], [1, 0])
    }
    assert len(prints) == 4


@pytest.mark.parametrize(
    ("names", "index", "weight", "joints", "message"),
    [
        (("a", "A"), [0, 1], 1.0, [0, 1], r"^names of sets must be different ones other than Mean, got 'a', 'A'$"),
        (
            ("a", "../b"),
            [0, 1],
            1.0,
            [0, 1],
            r"^names of sets must be different ones other than Mean, got 'a', '\.\./b'$",
        ),
        (
            ("a", "Mean"),
            [0, 1],
            1.0,
            [0, 1],
            r"^names of sets must be different ones other than Mean, got 'a', 'Mean'$",
        ),
        (("a", "b"), [0, 2], 1.0, [0, 1], r"^set_index must be in range, it is not for person 1$"),
        (("a", "b"), [0, 0], 1.0, [0, 1], r"^set 'a' must have 2 persons, got 1$"),
        (("a", "b"), [0, 1], 1001.0, [0, 1], r"^set 'a': weight must be above 0 and at most 1000$"),
        (("a", "b"), [0, 1], math.nan, [0, 1], r"^set 'a': weight must be above 0 and at most 1000$"),
        (("a", "b"), [0, 1], 1.0, [0, 2], r"^set 'a': joints must be in range$"),
        (("a", "b"), [0, 1], 1.0, [0], r"^joints must be a int64 array of shape \(2,\), got int64 \(1,\)$"),
    ],
)
def test_sets_that_are_not_those_of_the_persons_are_refused(names, index, weight, joints, message):
    one = persons_of(np.zeros((1, 2, 2)), skeleton=TWO)
    parts = tuple(Part(name, weight, np.array(joints, np.int64), one, {}) for name in names)
    two = persons_of(np.zeros((2, 2, 2)), skeleton=TWO)
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(two, sets=Sets(np.array(index, np.int64), parts))


def test_doubts_name_the_set(listed, caplog):
    train = read(listed, "train")
    part = train.sets.parts[1]
    repeated = part.persons.select([0, 0])
    parts = train.sets.parts[0], dataclasses.replace(part, persons=repeated)
    doubtful = mixed(parts, COCO)
    with caplog.at_level(logging.WARNING):
        check_sense(doubtful, train)
    found = [text for text in caplog.messages if "there twice" in text]
    assert found == [
        "the training data, set lsp: 1 of 2 persons are there twice, with the same joints on the same image; the "
        "first: annotation 1 (row 0), 000.jpg"
    ]
    assert any("8 validation images are training images too" in text for text in caplog.messages)


def test_a_list_whose_sets_are_all_evaluated_in_a_detector_s_boxes_can_be_trained(listed):
    in_boxes = write_list(listed.parent / "boxes.yaml", files(Path("coco"), "coco", detections="detections.json"))
    train, valid = read(in_boxes, "train"), read(in_boxes)
    assert not valid.visible.any()
    check_sense(train, valid)
    unscored = dataclasses.replace(valid.sets.parts[0], persons=dataclasses.replace(train, visible=train.visible * 0))
    with pytest.raises(ValueError, match=r"^the validation data: expected annotated joints, none of the 3 persons has"):
        check_sense(train, mixed([unscored], COCO))


# Who is drawn


def loader_of(persons: Persons, *, rank: int = 0, ranks: int = 1, **options: object) -> PoseLoader:
    options = {"augmentation": Augmentation(rotation=0, scale_min=1, scale_max=1, flip=0), "seed": 7} | options
    source = open_images(persons.image_paths)
    return PoseLoader(persons, source, (32, 32), options.pop("batch_size", 5), ranks=Ranks(rank, ranks), **options)


def test_an_epoch_has_each_set_as_often_as_its_weight_says(listed):
    persons = read(listed, "train")
    loader = loader_of(persons)
    assert loader.epoch_size == 4 + 3 + 9
    assert len(loader) == 4  # batches of 5
    halves = set()
    for epoch in range(4):
        drawn = np.concatenate([batch.rows.numpy() for batch in loader.epoch(epoch)])
        counts = np.bincount(drawn, minlength=13)
        assert counts[:4].tolist() == [1] * 4
        assert sorted(counts[4:10].tolist()) == [0] * 3 + [1] * 3
        assert counts[10:].tolist() == [3] * 3
        assert drawn.tolist() != sorted(drawn.tolist())
        halves.add(tuple(counts[4:10]))
    assert len(halves) > 1  # others each epoch
    again = np.concatenate([batch.rows.numpy() for batch in loader_of(persons).epoch(3)])
    assert drawn.tolist() == again.tolist()
    rest = np.concatenate([batch.rows.numpy() for batch in loader_of(persons).epoch(3, 1)])
    assert drawn[5:].tolist() == rest.tolist()


def test_a_weight_between_whole_numbers_is_copies_and_a_choice_without_repetition():
    people = persons_of(np.zeros((4, 2, 2)), skeleton=TWO)
    loader = loader_of(mixture_of((2.5, people, [0, 1])))
    counts = np.bincount(loader._order(0).numpy())
    assert sorted(counts.tolist()) == [2, 2, 3, 3]


def test_without_weights_the_order_and_in_evaluation_all_is_as_with_one_data_set(listed):
    persons = read(listed, "train")
    equal = tuple(dataclasses.replace(part, weight=1.0) for part in persons.sets.parts)
    unweighted = dataclasses.replace(persons, sets=Sets(persons.sets.index, equal))
    alone = dataclasses.replace(persons, sets=None)
    for epoch in range(3):
        assert loader_of(unweighted)._order(epoch).tolist() == loader_of(alone)._order(epoch).tolist()
    valid = loader_of(persons, augmentation=None)
    assert valid.epoch_size == 13
    assert valid._order(2).tolist() == list(range(13))


def test_two_ranks_train_on_the_persons_of_one(listed):
    persons = read(listed, "train")
    whole = list(loader_of(persons, batch_size=4).epoch(1))
    parts = [list(loader_of(persons, batch_size=4, rank=rank, ranks=2).epoch(1)) for rank in range(2)]
    for batch, first, second in zip(whole, *parts, strict=True):
        for name in ("rows", "images", "supervised"):
            together = torch.cat([getattr(first, name), getattr(second, name)])
            torch.testing.assert_close(together, getattr(batch, name), rtol=0, atol=0)


# What is taught


def test_what_is_supervised_changes_sides_with_the_joints_of_a_mirrored_person(listed):
    persons = read(listed, "train").select([4, 5])  # LSP's, of whom an epoch has one
    one_sided = dataclasses.replace(persons.sets.parts[1], joints=np.array([-1] * 5 + [9] + [-1] * 11, np.int64))
    parts = persons.sets.parts[0], one_sided, persons.sets.parts[2]
    mirrored = dataclasses.replace(persons, sets=Sets(persons.sets.index, parts))
    flip = Augmentation(rotation=0, scale_min=1, scale_max=1, flip=1)
    batch = first_batch(loader_of(mirrored, augmentation=flip))
    assert batch.supervised.nonzero().tolist() == [[0, COCO.joints.index("right_shoulder")]]
    batch = first_batch(loader_of(mirrored))
    assert batch.supervised.nonzero().tolist() == [[0, COCO.joints.index("left_shoulder")]]


def first_batch(loader: PoseLoader) -> Batch:
    with closing(loader.epoch()) as batches:
        return next(batches)


@pytest.mark.parametrize("hard_joints", [0, 3])
@pytest.mark.parametrize("joint_weights", [None, COCO.joint_weights])
def test_joints_that_a_set_does_not_have_teach_nothing_where_missing_ones_teach_zeros(
    listed, joint_weights, hard_joints
):
    batch = first_batch(loader_of(read(listed, "train").select(range(10))))  # MPII and LSP
    model = nn.Conv2d(3, 17, 4, 4)
    settings = changed(Settings(), hard_joints=hard_joints, size=[32, 32], missing="zeros", batch_size=5)
    step = make_step(model, settings, joint_weights=joint_weights)
    step._backward(model, batch.images, batch.keypoints, batch.visible, batch.supervised)
    assert (model.weight.grad[:5] == 0).all()
    assert (model.bias.grad[:5] == 0).all()
    assert (model.bias.grad[5:] != 0).any()
    if not hard_joints:
        step._backward(model, batch.images, batch.keypoints, batch.visible)  # as of one data set
        assert (model.bias.grad[:5] != 0).all()


def test_the_loss_is_that_of_the_supervised_joints_over_all():
    """By hand: two persons of one map each in two joints, target 0 as nothing is annotated, prediction 2."""
    settings = changed(Settings(), missing="zeros", batch_size=2)
    model = nn.Conv2d(3, 2, 4, 4)
    nn.init.zeros_(model.weight)
    nn.init.constant_(model.bias, 2.0)
    images, points, visible = torch.zeros(2, 3, 32, 32), torch.zeros(2, 2, 2), torch.zeros(2, 2)
    supervised = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    loss = make_step(model, settings)._backward(model, images, points, visible, supervised)
    assert loss.item() == 0.5 * 2.0**2 * 3 / 4
    weighted = make_step(model, settings, joint_weights=[1.0, 3.0])
    assert weighted._backward(model, images, points, visible, supervised).item() == 0.5 * 2.0**2 * (1 + 1 + 3) / 4


def test_simcc_s_vectors_are_taught_nothing_of_joints_that_a_set_does_not_have(listed):
    persons = read(listed, "train").select(range(10))
    loader = PoseLoader(persons, ImageFiles(persons.image_paths), (32, 32), 10, stride=1)
    batch = first_batch(loader)
    settings = settle({"dataset": str(listed), "size": [32, 32], "head": "simcc", "batch_size": 10})
    x, y = (torch.zeros(10, 17, 64, requires_grad=True) for _ in range(2))
    step = make_step(nn.Linear(1, 1), settings, simcc=settings.network.simcc)
    step._loss_of((x, y), batch.keypoints, batch.visible, batch.supervised).backward()
    assert (x.grad[:, :5] == 0).all()
    assert (y.grad[:, :5] == 0).all()
    assert (x.grad[:, 5:] != 0).any()


# Scores


def perfect(persons: Persons) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return persons.keypoints.copy(), np.ones(persons.visible.shape, np.float32), np.ones(len(persons), bool)


def scorer_of(listed: Path, persons: Persons):
    settings = settled(listed)
    return open_dataset(settings.data, settings.network.size).scorer(persons)


def test_each_set_is_scored_in_its_own_joints_and_joints_that_the_network_lacks_do_not_count(listed):
    persons = read(listed)
    scorer = scorer_of(listed, persons)
    scorer.needs(to_train=True)
    values = scorer.score(*perfect(persons))
    assert (values["Mean"], values["mpii/Mean"], values["lsp/PCK"], values["coco/AP"]) == (100, 100, 100, 100)
    assert math.isnan(values["mpii/Head"])  # not in COCO's joints
    assert math.isnan(values["lsp/neck"])
    assert values["lsp/left_hip"] == 100

    predictions, scores, seen = perfect(persons)
    predictions[4:10] += 1000.0  # LSP's alone
    values = scorer.score(predictions, scores, seen)
    assert (values["mpii/Mean"], values["lsp/PCK"], values["coco/AP"]) == (100, 0, 100)
    assert values["Mean"] == pytest.approx(200 / 3)

    entry = scores_entry(scorer, values)["mixture"]
    assert entry.keys() == {"Mean", "mpii", "lsp", "coco"}
    assert (entry["lsp"]["PCK"], entry["lsp"]["neck"], entry["lsp"]["norm"]) == (0, None, "box")
    assert entry["coco"]["box_source"] == "annotations"
    assert scorer.note == "mpii: PCKh@0.5; lsp: PCK@0.2, by box; coco: AP, boxes: annotations"
    table = scorer.table(values)
    for line in ("Mean of the sets", "mpii (PCKh@0.5):", "lsp (PCK@0.2):", "coco (AP):"):
        assert line in table.splitlines()


def test_ap_is_that_of_the_joints_that_the_network_has(listed):
    """COCO's persons and a network that knows no faces: without these joints its poses are perfect."""
    alone = write_list(listed.parent / "alone.yaml", files(Path("coco"), "coco"), skeleton="lsp")
    persons = read(alone)
    scorer = scorer_of(alone, persons)
    predictions, scores, seen = perfect(persons)
    assert scorer.score(predictions, scores, seen)["coco/AP"] == pytest.approx(100)
    predictions[:, LSP.joints.index("left_knee")] += 1000.0
    assert scorer.score(predictions, scores, seen)["coco/AP"] < 100


def test_pck_goes_by_a_torso_one_end_of_which_the_network_lacks(listed):
    """LSP's left shoulder, which is not one of the network's: 25 px off is far at 0.01 torsos and near at 10."""
    alone = write_list(
        listed.parent / "torso.yaml",
        *(
            files(Path("lsp"), name, pck_threshold=most, joints={"left_shoulder": None}, **BY_TORSO)
            for name, most in (("lsp", 10), ("strict", 0.01))
        ),
    )
    persons = read(alone)
    scorer = scorer_of(alone, persons)
    scorer.needs(to_train=True)
    predictions, scores, seen = perfect(persons)
    values = scorer.score(predictions, scores, seen)
    assert (values["lsp/PCK"], values["strict/PCK"]) == (100, 100)
    assert math.isnan(values["lsp/left_shoulder"])
    values = scorer.score(predictions + np.float32(25), scores, seen)
    assert (values["lsp/PCK"], values["strict/PCK"]) == (100, 0)


def test_poses_are_alike_by_the_joints_that_the_network_has_alone(listed):
    """Two boxes of each person, a bit apart, and the same pose in both: one of them goes, and AP is perfect. The faces
    that the network does not know would be in different places, the middles of the boxes."""
    root = listed.parent
    annotated = json.loads((root / "coco" / "annotations" / "valid.json").read_text())["annotations"]
    boxes = [
        {"image_id": one["image_id"], "category_id": 1, "bbox": [x + shift, y, w, h], "score": 0.9 + shift / 1000}
        for one in annotated
        for x, y, w, h in [one["bbox"]]
        for shift in (0.0, 12.0)
    ]
    (root / "coco" / "twice.json").write_text(json.dumps(boxes))
    body = {"joints": list(COCO.joints[5:]), "sigmas": list(COCO.sigmas[5:])}
    (root / "body.yaml").write_text(yaml.safe_dump(body))
    twice = write_list(root / "twice.yaml", files(Path("coco"), "coco", detections="twice.json"), skeleton="body.yaml")
    persons = read(twice)
    truth = {one["image_id"]: np.array(one["keypoints"], np.float32).reshape(-1, 3) for one in annotated}
    images = persons.sets.parts[0].persons.extras["image_id"].tolist()
    predictions = np.stack([truth[image][5:, :2] for image in images])
    scores, seen = np.ones(predictions.shape[:2], np.float32), np.ones(len(persons), bool)
    scorer = scorer_of(twice, persons)
    assert scorer.score(predictions, scores, seen)["coco/AP"] == pytest.approx(100)
    assert len(json.loads((scorer.write(root / "twice", predictions, scores) / "coco" / RESULTS).read_text())) == 3


def test_options_of_a_score_are_the_list_s_where_it_has_them_and_else_the_command_line_s(listed, packed):
    """From the files and from a pack of them alike."""
    beside = {"pck_threshold": 0.9, "max_detections": 1}
    for settings in (
        settled(listed, **beside),
        settle({"data_root": str(packed), "size": [32, 32], **beside}),
    ):
        dataset = open_dataset(settings.data, (32, 32))
        scorer = dataset.scorer(dataset.read("valid"))
        assert (scorer.notes["lsp/threshold"], scorer.notes["lsp/norm"]) == (0.9, "box")
        assert scorer.notes["coco/max_detections"] == 1
    contents = yaml.safe_load(listed.read_text())
    contents["sets"][1]["pck_threshold"] = 0.05
    (listed.parent / "own.yaml").write_text(yaml.safe_dump(contents))
    assert scorer_of(listed.parent / "own.yaml", read(listed, **beside)).notes["lsp/threshold"] == 0.2
    persons = read(listed.parent / "own.yaml", **beside)
    assert open_dataset(settings.data, (32, 32)).scorer(persons).notes["lsp/threshold"] == 0.05


def test_a_list_that_scores_otherwise_has_another_fingerprint(listed):
    contents = yaml.safe_load(listed.read_text())
    contents["sets"][1]["pck_threshold"] = 0.05
    (listed.parent / "own.yaml").write_text(yaml.safe_dump(contents))
    own = listed.parent / "own.yaml"
    prints = [scorer_of(one, read(one)).fingerprint() for one in (listed, own)]
    assert prints[0] != prints[1]
    assert '"pck_threshold": 0.05' in prints[1]
    assert read(listed).fingerprint() == read(own).fingerprint()  # the persons, and so the training, stay the same


def test_a_set_none_of_whose_images_can_be_read_has_no_score_and_counts_not(listed):
    persons = read(listed)
    predictions, scores, seen = perfect(persons)
    predictions[10:], scores[10:], seen[10:] = np.nan, np.nan, False
    values = scorer_of(listed, persons).score(predictions, scores, seen)
    assert values["Mean"] == 100
    assert not any(name.startswith("coco/") for name in values)
    assert "coco (AP):\nno annotations, no AP: predictions only" in scorer_of(listed, persons).table(values)


def test_a_set_that_lacks_what_its_score_needs_is_named(listed, tmp_path):
    contents = yaml.safe_load(listed.read_text())
    contents["sets"][0]["head_boxes"] = ""
    (listed.parent / "other.yaml").write_text(yaml.safe_dump(contents))
    scorer = scorer_of(listed.parent / "other.yaml", read(listed.parent / "other.yaml"))
    with pytest.raises(OptionError, match=r"^dataset: set 'mpii': head_boxes: PCKh needs the head boxes"):
        scorer.needs(to_train=True)


def test_each_set_s_predictions_are_written_in_its_own_format(listed, tmp_path):
    persons = read(listed)
    predictions, scores, seen = perfect(persons)
    predictions[1], scores[1], seen[1] = np.nan, np.nan, False
    assert scorer_of(listed, persons).write(tmp_path, predictions, scores) == tmp_path
    poses = scipy.io.loadmat(tmp_path / "mpii" / "pred.mat")["preds"]
    assert poses.shape == (4, 16, 2)
    assert np.isnan(poses[1]).all()
    assert poses[0, MPII.joints.index("l_hip")].tolist() == (persons.keypoints[0, 11].astype(float) + 1).tolist()
    assert poses[0, MPII.joints.index("pelvis")].tolist() == (persons.center[0].astype(float) + 1).tolist()
    lsp = json.loads((tmp_path / "lsp" / "keypoints_results.json").read_text())
    assert [len(one["keypoints"]) for one in lsp] == [42] * 6
    assert lsp[2]["keypoints"][36:39] == [*persons.center[6].tolist(), 0.0]  # the neck
    coco = json.loads((tmp_path / "coco" / "keypoints_results.json").read_text())
    assert coco[0]["keypoints"][::3] == persons.keypoints[10, :, 0].tolist()


def test_coco_s_truth_without_joints_is_as_if_nobody_had_annotated_them():
    record = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "area": 9, "iscrowd": 0, "id": 5}
    annotations = [
        {**record, "num_keypoints": 2, "keypoints": [1, 2, 2, 3, 4, 1]},
        {**record, "num_keypoints": 1, "keypoints": [1, 2, 2, 0, 0, 0]},
        {**record, "num_keypoints": 7, "iscrowd": 1, "keypoints": [1, 2, 2, 0, 0, 0]},
    ]
    truth = CocoTruth(box_source="annotations", category=1, image_ids=[1], annotations=annotations)
    changed_truth = of_joints(truth, np.array([False, True]))
    assert [one["keypoints"] for one in changed_truth["annotations"]] == [[0, 0, 0, 3, 4, 1], [0] * 6, [0] * 6]
    assert [one["num_keypoints"] for one in changed_truth["annotations"]] == [1, 0, 7]
    assert annotations[0]["keypoints"] == [1, 2, 2, 3, 4, 1]  # the caller's own


def test_a_network_with_other_joints_than_the_list_s_is_refused(listed):
    settings = settled(listed)
    message = r"^dataset: .*mix\.yaml is for joints of 'coco' \(nose, .*\), the network has those of 'mpii' \(r_ankle"
    with pytest.raises(OptionError, match=message):
        open_dataset(settings.data, (32, 32), MPII).read("valid")


# Runs and packs


@pytest.fixture
def quick(monkeypatch) -> None:
    monkeypatch.setattr(network, "pose_resnet", small_network)
    monkeypatch.setattr(drawing, "draw", draw_curves)


def recipe(root: Path, listed: Path) -> Path:
    options = {"dataset": str(listed), "channels": 4, "size": [32, 32], "batch_size": 6, "epochs": 2, "log_every": 1}
    options |= {"device": "cpu", "missing": "zeros", "reduced_decode": False}
    (root / "tiny.yaml").write_text(yaml.safe_dump(options))
    return root / "tiny.yaml"


def test_a_run_on_three_sets_goes_on_in_the_middle_of_an_epoch_and_its_pack_gives_the_same(
    listed, tmp_path, quick, capsys
):
    file = recipe(tmp_path, listed)
    assert train.main(["--recipe", str(file), "--run", str(tmp_path / "whole")]) == 0
    results_of_run, printed = capsys.readouterr()
    assert "epoch 2/2" in printed
    assert "mean score" in results_of_run
    whole = results(tmp_path / "whole")
    lines = whole["metrics.jsonl"]
    assert [line["mixture"].keys() for line in lines] == [{"Mean", "mpii", "lsp", "coco"}] * 2
    assert "13 persons to train on, 16 an epoch, 13 to evaluate" in printed
    assert whole["last.pt"]["progress"]["total_samples"] == 2 * 16
    assert (whole["summary.json"]["train_persons"], whole["summary.json"]["valid_persons"]) == (13, 13)

    start_and_stop(file, tmp_path / "stopped", 8)  # in the second epoch
    progress = torch.load(tmp_path / "stopped" / "last.pt", weights_only=True)["progress"]
    assert progress["step"] % 3 != 0
    assert train.main(["--resume", str(tmp_path / "stopped")]) == 0
    assert results(tmp_path / "stopped") == whole

    out = tmp_path / "scores"
    assert evaluate.main(["--checkpoint", str(tmp_path / "whole" / "last.pt"), "--out", str(out)]) == 0
    scores = json.loads((out / "scores.json").read_text())
    assert scores["mixture"]["lsp"] == lines[-1]["mixture"]["lsp"]
    assert scores["annotations"] == str(listed)
    assert {path.name for path in out.iterdir()} == {"mpii", "lsp", "coco", "scores.json"}

    # To predict, the list is not read: not even where other names of the joints are asked for.
    last = str(tmp_path / "whole" / "last.pt")
    gone = torch.load(last, weights_only=True)
    gone["config"]["dataset"] = "/gone/mix.yaml"
    torch.save(gone, tmp_path / "gone.pt")
    picture = str(listed.parent / "coco" / "images" / "000.jpg")
    for words in ([], ["--skeleton", "coco"]):
        drawn = ["--image", picture, "--out", str(tmp_path / "drawn"), *words]
        assert predict.main(["--checkpoint", str(tmp_path / "gone.pt"), *drawn]) == 0
    (found,) = json.loads((tmp_path / "drawn" / "predictions.json").read_text())
    assert tuple(found["joints"]) == COCO.joints

    # A pack needs neither the list nor the sets' files.
    moved = tmp_path / "moved"
    shutil.copytree(listed.parent, moved)
    packed = tmp_path / "packed"
    assert pack.main([str(moved / listed.name), str(packed), "--recipe", str(file)]) == 0
    shutil.rmtree(moved)
    file.unlink()
    recipe(tmp_path, Path("/gone/mix.yaml"))
    run = tmp_path / "of_pack"
    assert train.main(["--recipe", str(file), "--data_root", str(packed), "--run", str(run)]) == 0
    of_pack = results(run)
    assert of_pack["metrics.jsonl"][-1]["mixture"].keys() == lines[-1]["mixture"].keys()
    assert of_pack["metrics.jsonl"][-1]["loss"] == pytest.approx(lines[-1]["loss"], rel=1e-3)
    again = ["--checkpoint", str(tmp_path / "whole" / "last.pt"), "--data_root", str(packed)]
    assert evaluate.main([*again, "--out", str(tmp_path / "again")]) == 0
    again_scores = json.loads((tmp_path / "again" / "scores.json").read_text())
    for name in ("mpii", "lsp", "coco"):
        assert again_scores["mixture"][name] == pytest.approx(scores["mixture"][name], abs=0.5, nan_ok=True)


def test_a_run_that_goes_on_notices_that_the_list_scores_otherwise(listed, tmp_path, quick, capsys):
    changing = Path(shutil.copy(listed, listed.parent / "changing.yaml"))
    start_and_stop(recipe(tmp_path, changing), tmp_path / "run", 8)
    contents = yaml.safe_load(changing.read_text())
    contents["sets"][1]["pck_threshold"] = 0.05
    changing.write_text(yaml.safe_dump(contents))
    assert train.main(["--resume", str(tmp_path / "run")]) == 0
    (change,) = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["progress"]["changes"]
    assert '"pck_threshold"' not in change["was"]
    assert '"pck_threshold": 0.05' in change["now"]
    assert " was 13 persons, checksum " in capsys.readouterr().err


def test_each_person_is_drawn_in_a_box_of_its_own_set_s_shape(listed, tmp_path, monkeypatch):
    persons = read(listed, size=[128, 96])
    drawn = []
    monkeypatch.setattr(pictures, "draw_skeleton", lambda axes, points, *more, **named: drawn.append((axes, points)))
    monkeypatch.setattr(drawing, "PERSONS", 13)
    drawing.draw_predictions(tmp_path / "sheet.png", persons, persons.keypoints)
    shapes = [axes.images[0].get_array().shape for axes, _ in drawn[::2]]
    assert shapes == [(320, 320, 3)] * 4 + [(320, 240, 3)] * 9  # MPII's boxes are squares
    assert drawn[0][0].get_xlim() == (-0.5, 319.5)
    assert drawn[-1][0].get_xlim() == (-0.5, 239.5)
    for row, (_, points) in enumerate(drawn[::2]):
        w, side = 200 * persons.scale[row, 0], shapes[row][1]
        x = (persons.keypoints[row, :, 0] - persons.center[row, 0] + w / 2) * side / w
        assert np.abs(points[:, 0] - x).max() < 1.5


@pytest.fixture(scope="module")
def packed(listed, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("pack") / "out"
    words = ["--size", "32", "32", "--reduced_decode", "false"]
    assert pack.main([str(listed), str(out), *words]) == 0
    assert pack.main([str(listed), str(out), *words]) == 0  # it is there already
    return out


def test_a_pack_has_the_persons_sets_and_truth_of_the_files(listed, packed):
    settings = settle({"data_root": str(packed), "size": [32, 32]})
    assert settings.data.dataset == "mix.yaml"
    dataset = open_dataset(settings.data, (32, 32))
    for split in ("train", "valid"):
        persons, of_files = dataset.read(split), read(listed, split)
        assert persons.skeleton == of_files.skeleton
        for name in ("center", "scale", "keypoints", "visible", "source_row"):
            assert getattr(persons, name).tolist() == getattr(of_files, name).tolist()
        assert persons.sets.index.tolist() == of_files.sets.index.tolist()
        for part, other in zip(persons.sets.parts, of_files.sets.parts, strict=True):
            assert (part.name, part.weight, part.joints.tolist()) == (other.name, other.weight, other.joints.tolist())
            assert part.options == other.options
            own, its = part.persons, other.persons
            assert (own.skeleton, own.truth) == (its.skeleton, its.truth)
            assert own.keypoints.tolist() == its.keypoints.tolist()
            assert {name: array.tolist() for name, array in own.extras.items()} == {
                name: array.tolist() for name, array in its.extras.items()
            }
        if split == "valid":
            values = dataset.scorer(persons).score(*perfect(persons))
            assert values == pytest.approx(scorer_of(listed, of_files).score(*perfect(of_files)), nan_ok=True)
            assert dataset.scorer(persons).fingerprint() == scorer_of(listed, of_files).fingerprint()


@pytest.mark.parametrize(
    "said",
    [
        {"dataset": "coco", "train_annotations": "a.json", "valid_annotations": "b.json", "images": "train2017"},
        {"dataset": "coco", "skeleton": "lsp", "score": "pck", "pck_threshold": 0.9, "exif": "upright"},
        {"train_annotations": "annot/valid.json", "missing_images": "drop"},
        {"synthetic_persons": 9},
        {"dataset": "/elsewhere/other.yaml", "pck_threshold": 0.9},
    ],
)
def test_what_a_recipe_or_a_checkpoint_says_of_other_data_has_no_part_in_a_pack_of_a_list(packed, said, capsys):
    pack_alone = settle({"data_root": str(packed)}).data
    for lower in ({"recipe": said}, {"run": settle(said).as_plain()}):
        capsys.readouterr()
        data = settle({"data_root": str(packed)}, **lower).data
        assert data == pack_alone
        assert open_dataset(data, (32, 32)).skeleton == COCO
        assert capsys.readouterr().err == f"the pack {packed} has the data of dataset 'mix.yaml'\n"
    with pytest.raises(PackError, match=r"^dataset: the pack .* has the data of 'mix\.yaml', got 'coco'"):
        settle({"data_root": str(packed), "dataset": "coco"}, recipe=said)


def test_what_is_said_of_the_pack_s_own_list_or_of_any_data_holds(packed):
    for said in ({"dataset": "/gone/mix.yaml"}, {}):
        data = settle({"data_root": str(packed)}, recipe={**said, "pck_threshold": 0.9}).data
        assert (data.dataset, data.pck_threshold) == ("mix.yaml", 0.9)


def test_another_list_than_the_pack_s_is_refused(packed):
    with pytest.raises(PackError, match=r"^dataset: the pack .* has the data of 'mix\.yaml', got 'other\.yaml'"):
        settle({"data_root": str(packed), "dataset": "/elsewhere/other.yaml"})
    assert settle({"data_root": str(packed), "dataset": "/elsewhere/mix.yaml"}).data.dataset == "mix.yaml"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda sets: {"a": 1}, r"sets: expected a list of at most 1000 objects$"),
        (lambda sets: sets * 400, r"sets: expected a list of at most 1000 objects$"),
        (lambda sets: [7], r"sets: expected a list of at most 1000 objects$"),
        (lambda sets: [sets[0] | {"name": 7}, *sets[1:]], r"sets\[0\]\.name: expected a text, got 7$"),
        (lambda sets: [sets[0] | {"more": 7}, *sets[1:]], r"it has 'sets\[0\]\.more', which this version"),
        (lambda sets: [sets[0] | {"name": ".."}, *sets[1:]], r"names of sets must be different ones other than Mean"),
        (lambda sets: [sets[1], *sets[1:]], r"keypoints must be a float32 array of shape \(4, 14, 2\)"),
        (lambda sets: [sets[0] | {"weight": 1e6}, *sets[1:]], r"set 'mpii': weight must be above 0 and at most 1000$"),
        (lambda sets: [sets[0] | {"weight": -1}, *sets[1:]], r"sets\[0\]\.weight: expected a number from 0, got -1$"),
        (lambda sets: [sets[0] | {"joints": {"nose": "tail"}}, *sets[1:]], r"expected joints of both skeletons, got"),
        (lambda sets: [sets[0] | {"skeleton": {"name": "x"}}, *sets[1:]], r"it has no skeleton\.joints$"),
        (lambda sets: [sets[0] | {"skeleton": None}, *sets[1:]], r"skeleton: expected an object, got None$"),
        (
            lambda sets: [sets[0] | {"options": {"trust": 1}}, *sets[1:]],
            r"sets\[0\]\.options: expected those of a data set, got trust$",
        ),
        (
            lambda sets: [sets[0] | {"options": [1]}, *sets[1:]],
            r"sets\[0\]\.options: expected those of a data set, got \[1\]$",
        ),
        (
            lambda sets: [sets[0] | {"options": {"pck_pixels": "x"}}, *sets[1:]],
            r"pck_pixels: expected a number, got 'x'$",
        ),
        (lambda sets: sets[:2], r"expected sets for all arrays, got 'set2_box_score'$"),
    ],
)
def test_sets_of_a_strange_pack_are_refused_in_one_line(packed, tmp_path, change, message):
    copy = Path(shutil.copytree(packed, tmp_path / "copy"))
    arrays = dict(np.load(copy / "train-persons.npz"))
    text = json.dumps(change(json.loads(arrays["sets"].tobytes())))
    forge_annotations(copy, arrays | {"sets": np.frombuffer(text.encode(), np.uint8)})
    with pytest.raises(PackError, match=r"train-persons\.npz: damaged: .*(?:" + message + ")"):
        read_packed_persons(copy, "train")


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("set_index", None, r"set_index: expected int64 \[13\], got float64 \[0\]$"),
        ("set_index", np.zeros((13, 2), np.int64), r"set_index: expected int64 \[13\], got int64 \[13, 2\]$"),
        ("set_index", np.full(13, 5), r"keypoints must be a float32 array of shape \(0, 16, 2\)"),
        ("set_index", np.zeros(13), r"set_index: expected int64 \[13\], got float64 \[13\]$"),
        ("set0_keypoints", None, r"keypoints must be a .* got NoneType$"),
        ("set0_visible", np.full((4, 16), 7, np.float32), r"visible must be 0 or 1, it is not for person 0$"),
        ("set2_image_id", np.array(["a", "b", "c"]), r"set2_image_id: expected numbers for each person, got <U1$"),
        ("set2_image_id", np.zeros(2, np.int64), r"image_id must have one entry for each of the 3 persons, got 2$"),
        ("set9_more", np.zeros(2), r"expected sets for all arrays, got 'set9_more'$"),
        ("set0_truth", np.frombuffer(b"{}", np.uint8), r"expected image_id, one for each person, as there is a truth$"),
        ("sets", None, r"damaged: "),
        ("sets", np.frombuffer(b"[" * 100_000, np.uint8), r"damaged: "),
    ],
)
def test_arrays_of_a_strange_pack_s_sets_are_refused_in_one_line(packed, tmp_path, name, array, message):
    copy = Path(shutil.copytree(packed, tmp_path / "copy"))
    arrays = dict(np.load(copy / "train-persons.npz"))
    assert name in arrays or name in ("set0_truth", "set9_more")
    arrays[name] = array
    forge_annotations(copy, {key: value for key, value in arrays.items() if value is not None})
    with pytest.raises(PackError, match=r"train-persons\.npz: damaged: .*" + message.removeprefix("damaged: ")):
        read_packed_persons(copy, "train")


def test_a_strange_pack_whose_set_is_of_unknown_data_is_refused(packed, tmp_path):
    copy = Path(shutil.copytree(packed, tmp_path / "copy"))
    arrays = dict(np.load(copy / "train-persons.npz"))
    sets = json.loads(arrays["sets"].tobytes())
    sets[0]["options"]["dataset"] = "../other.yaml"
    forge_annotations(copy, arrays | {"sets": np.frombuffer(json.dumps(sets).encode(), np.uint8)})
    dataset = open_dataset(settle({"data_root": str(copy), "size": [32, 32]}).data, (32, 32))
    with pytest.raises(
        ValueError, match=r"mix\.yaml: set 'mpii': dataset: expected one of mpii, coco.*, got '\.\./other"
    ):
        dataset.scorer(dataset.read("train"))
