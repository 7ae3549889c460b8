# SPDX-License-Identifier: Apache-2.0
"""Each data set as training and evaluation see it: read a split, then score predictions for it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import loadmat

from fastpose import pack
from fastpose.data import datasets
from fastpose.data.coco import ApScorer, Coco, PckScorer
from fastpose.data.dataset import Dataset, Scorer
from fastpose.data.datasets import DATASETS, dataset_named, dataset_with_joints, open_dataset
from fastpose.data.formats import FORMATS
from fastpose.data.mpii import Mpii, PckhScorer
from fastpose.data.pack import Pack
from fastpose.data.persons import Persons
from fastpose.data.synthetic import Synthetic, SyntheticDataError
from fastpose.option import OptionError
from fastpose.options.settle import settle
from fastpose.skeletons import COCO, MPII, Skeleton
from tests.helpers.tiny_coco import write_tiny_coco
from tests.helpers.tiny_mpii import write_tiny_mpii

SIZE = (96, 64)
COCO_FILES = {"train_annotations": "annotations/train.json", "valid_annotations": "annotations/valid.json"}


@pytest.fixture(scope="module")
def mpii(tmp_path_factory) -> Path:
    return write_tiny_mpii(tmp_path_factory.mktemp("mpii") / "tiny")


@pytest.fixture(scope="module")
def coco(tmp_path_factory) -> Path:
    return write_tiny_coco(tmp_path_factory.mktemp("coco") / "tiny")


def opened(root: Path, joints: Skeleton | None = None, **options: Any) -> Dataset | Pack:
    settings = settle({"data_root": str(root), "size": SIZE, **options})
    return open_dataset(settings.data, settings.network.size, joints)


def opened_coco(root: Path, **options: Any) -> Dataset | Pack:
    return opened(root, dataset="coco", **COCO_FILES, **options)


def packed(root: Path, out: Path, **options: Any) -> Path:
    """A pack for crops of SIZE."""
    recipe = out.with_suffix(".yaml")
    recipe.write_text(json.dumps(options | {"size": SIZE}))
    assert pack.main([str(root), str(out), "--recipe", str(recipe)]) == 0
    return out


def perfect(persons: Persons) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predictions that are the annotations, their scores, and which persons' images could be read."""
    return persons.keypoints.copy(), np.full(persons.visible.shape, 0.9, np.float32), np.ones(len(persons), bool)


def scored(dataset: Dataset | Pack) -> tuple[Scorer, dict[str, float]]:
    """The scorer of the validation persons, and the values of perfect predictions."""
    scorer = dataset.scorer(persons := dataset.read("valid"))
    scorer.needs(to_train=True)
    values = scorer.score(*perfect(persons))
    assert values is not None
    assert scorer.main in values
    assert set(scorer.curves) <= set(values)
    return scorer, values


# ---- which data set ----


@pytest.mark.parametrize(
    ("count", "named", "name"),
    [(16, False, "mpii"), (17, False, "coco"), (21, False, "coco"), (None, False, "mpii")]
    + [(count, True, "coco") for count in (16, 17, 21, None)],
)
def test_a_network_is_for_the_data_set_with_its_number_of_joints(count, named, name):
    assert dataset_with_joints(count, named=named) == name


def test_an_unknown_data_set_is_an_error_that_lists_the_known():
    message = r"dataset: expected one of mpii, coco, wholebody, .*, yolo, lsp, deeplabcut, sleap, csv, got 'voc'"
    with pytest.raises(OptionError, match=message):
        dataset_named("voc")
    with pytest.raises(OptionError, match=message):
        settle({"dataset": "voc"})


def test_a_line_makes_a_data_set_known(tmp_path, monkeypatch):
    class Other(Coco):
        layout = Coco.layout | {"valid_annotations": "others.json"}

    monkeypatch.setitem(DATASETS, "other", Other)
    settings = settle({"dataset": "other", "data_root": str(tmp_path)})
    assert settings.data.valid_annotations == "others.json"
    assert type(datasets.open_dataset(settings.data, SIZE)) is Other


def test_the_data_root_and_the_options_decide_what_is_opened(mpii, coco, tmp_path):
    assert type(opened(mpii)) is Mpii
    assert type(opened_coco(coco)) is Coco
    assert type(opened(mpii, synthetic_persons=4)) is Synthetic
    out = packed(mpii, tmp_path / "pack")
    for options in ({}, {"synthetic_persons": 4}):  # nothing is drawn into a pack
        assert type(opened(out, **options)) is Pack
    assert type(opened(tmp_path / "absent")) is Mpii  # nothing is read yet


# ---- MPII ----


def test_mpii_is_read_and_scored_by_pckh(mpii, tmp_path):
    dataset = opened(mpii)
    train, valid = dataset.read("train"), dataset.read("valid")
    assert dataset.skeleton is train.skeleton is MPII
    assert (set(train.extras), set(valid.extras)) == (set(), {"head_size"})
    scorer, values = scored(dataset)
    assert isinstance(scorer, PckhScorer)
    assert (scorer.name, scorer.main, scorer.label) == ("pckh", "Mean", "PCKh@0.5")
    assert (values["Mean"], values["Mean@0.1"]) == (100, 100)
    assert scorer.table(values).splitlines()[0].split()[-3:] == ["Mean", "Mean@0.1", "Mean@0.11"]
    predictions, scores, _ = perfect(valid.select([4, 2]))
    file = dataset.scorer(valid.select([4, 2])).write(tmp_path, predictions, scores)
    assert file == tmp_path / "pred.mat"
    assert [path.name for path in tmp_path.iterdir()] == ["pred.mat"]
    written = loadmat(file)
    np.testing.assert_array_equal(written["preds"], predictions.astype(np.float64) + 1)
    assert written["rows"].ravel().tolist() == [5, 3]


def test_persons_whose_image_could_not_be_read_are_out_of_pckh(mpii):
    dataset = opened(mpii)
    persons = dataset.read("valid")
    predictions, scores, seen = perfect(persons)
    predictions[3], scores[3], seen[3] = np.nan, np.nan, False
    predictions[5] += 1000
    values = dataset.scorer(persons).score(predictions, scores, seen)
    assert values["Mean"] == pytest.approx(100 * 8 / 9, abs=1)
    unseen = dataset.scorer(persons.select([3]))
    with pytest.raises(ValueError, match="PCKh needs annotated joints, and the persons to evaluate have none"):
        unseen.score(predictions[3:4], scores[3:4], seen[3:4])


def test_without_head_boxes_there_is_no_pckh_and_no_training(mpii):
    dataset = opened(mpii, head_boxes="")
    persons = dataset.read("valid")
    scorer = dataset.scorer(persons)
    scorer.needs(to_train=False)
    with pytest.raises(OptionError, match="head_boxes: PCKh needs the head boxes"):
        scorer.needs(to_train=True)
    assert scorer.score(*perfect(persons)) is None
    assert scorer.table(None) == "no head boxes, no PCKh: predictions only"
    assert scorer.fingerprint() == "no head sizes"
    assert opened(mpii).scorer(opened(mpii).read("valid")).fingerprint().startswith("checksum of the head sizes ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"detections": "boxes.json"}, "detections: is for --dataset coco, got 'boxes.json' with MPII's format"),
        ({"score": "pck"}, "score: pck is for --dataset coco; data in MPII's format get PCKh"),
        ({"skeleton": "mine.yaml"}, r"skeleton: MPII's format has joints of its own, got .*mine.yaml: add --dataset"),
        ({"joints": COCO}, "dataset: MPII's format has joints of its own, the network those of 'coco'"),
    ],
)
def test_options_that_are_not_for_mpii_are_refused_by_name(mpii, options, message):
    joints = options.pop("joints", None)
    with pytest.raises(OptionError, match=message):
        opened(mpii, joints, **options)


@pytest.mark.parametrize("option", ["train_annotations", "valid_annotations", "head_boxes", "split_list"])
def test_a_missing_file_of_mpii_is_an_error_of_its_option(mpii, option):
    split = "train" if option == "train_annotations" else "valid"
    with pytest.raises(FileNotFoundError, match=f"^{option}: no file {mpii / 'absent.json'}$"):
        opened(mpii, **{option: "absent.json"}).read(split)


# ---- COCO ----


def test_coco_is_read_in_boxes_of_the_networks_shape_and_scored_by_ap(coco, tmp_path):
    pytest.importorskip("pycocotools")
    dataset = opened_coco(coco)
    train, valid = dataset.read("train"), dataset.read("valid")
    assert dataset.skeleton is train.skeleton is COCO
    np.testing.assert_allclose(valid.scale[:, 1] / valid.scale[:, 0], 96 / 64, rtol=1e-6)
    assert train.truth is None
    assert dataset.scorer(train).fingerprint() == "no head sizes"  # as packs of version 0.1 have it
    assert dataset.scorer(train).score(*perfect(train)) is None
    scorer, values = scored(dataset)
    assert isinstance(scorer, ApScorer)
    assert (scorer.name, scorer.main, scorer.notes) == ("coco", "AP", {"box_source": "annotations"})
    assert values["AP"] == pytest.approx(100)
    assert scorer.table(values).endswith("\nboxes: annotations")
    predictions, scores, _ = perfect(valid)
    file = scorer.write(tmp_path, predictions, scores)
    assert file == tmp_path / "keypoints_results.json"
    assert len(json.loads(file.read_text())) == 10


def test_coco_in_detected_boxes_has_them_in_validation_alone(coco):
    dataset = opened_coco(coco, detections="detections.json")
    train, valid = dataset.read("train"), dataset.read("valid")
    assert train.visible.any()
    assert not valid.visible.any()
    scorer = dataset.scorer(valid)
    assert scorer.note == "boxes: detections.json"
    annotated = opened_coco(coco)
    assert scorer.fingerprint() != annotated.scorer(annotated.read("valid")).fingerprint()
    with pytest.raises(FileNotFoundError, match="detections: no file"):
        opened_coco(coco, detections="absent.json").read("valid")


@pytest.mark.parametrize("name", [name for name, kind in DATASETS.items() if name not in FORMATS and name != "mpii"])
def test_a_list_of_the_split_is_refused_where_files_are_one_split_each(name, coco):
    message = f"^split_list: is not for --dataset {name}, whose files are one split each, got 'valid.txt'$"
    with pytest.raises(OptionError, match=message):
        opened(coco, dataset=name, split_list="valid.txt")


@pytest.mark.parametrize("norm", ["box", "torso", "pixels"])
def test_coco_is_scored_by_pck_if_asked(coco, norm):
    scorer, values = scored(opened_coco(coco, score="pck", pck_norm=norm, pck_threshold=0.1))
    assert isinstance(scorer, PckScorer)
    assert (scorer.name, scorer.main, scorer.label) == ("pck", "PCK", "PCK@0.1")
    assert (values["PCK"], values["EPE"]) == (100, 0)


# ---- synthetic persons ----


def test_synthetic_persons_are_drawn_when_they_are_first_read(tmp_path, capsys):
    dataset = opened(tmp_path / "drawn", synthetic_persons=4, synthetic_seed=3)
    assert not (tmp_path / "drawn").exists()
    assert (len(dataset.read("train")), len(dataset.read("valid"))) == (3, 1)
    out = capsys.readouterr().err
    assert out.splitlines()[0].startswith("drawing ")
    assert f"pictures into {tmp_path / 'drawn'}" in out
    assert "found" not in out
    assert scored(dataset)[1]["Mean"] == 100
    assert capsys.readouterr().err == ""
    again = opened(tmp_path / "drawn", synthetic_persons=4, synthetic_seed=3)
    assert again.read("train").fingerprint() == dataset.read("train").fingerprint()
    assert capsys.readouterr().err == f"found 4 synthetic persons in {tmp_path / 'drawn'}\n"
    with pytest.raises(SyntheticDataError, match="another synthetic data set"):
        opened(tmp_path / "drawn", synthetic_persons=4, synthetic_seed=4).read("valid")


def test_synthetic_persons_are_refused_in_another_format_than_mpiis(tmp_path):
    with pytest.raises(OptionError, match="synthetic_persons: they are in MPII's format, got --dataset coco"):
        opened_coco(tmp_path / "drawn", synthetic_persons=4)
    assert list(tmp_path.iterdir()) == []


# ---- packs ----


def same_persons(one: Persons, other: Persons) -> bool:
    names = ("center", "scale", "keypoints", "visible", "source_row")
    return (
        all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)
        and one.extras.keys() == other.extras.keys()
        and all(np.array_equal(array, other.extras[name]) for name, array in one.extras.items())
        and (one.truth, one.skeleton) == (other.truth, other.skeleton)
    )


@pytest.mark.parametrize("options", [{}, {"detections": "detections.json"}, {"score": "pck"}], ids=repr)
def test_a_pack_of_coco_has_the_persons_and_the_score_of_the_files(coco, tmp_path, options):
    out = packed(coco, tmp_path / "pack", dataset="coco", **COCO_FILES, **options)
    files = opened_coco(coco, **options)
    pack = opened(out, **options)
    assert isinstance(pack, Pack)
    for split in ("train", "valid"):
        assert same_persons(pack.read(split), files.read(split))
        one, other = (dataset.scorer(dataset.read(split)) for dataset in (pack, files))
        assert type(one) is type(other)
        assert one.fingerprint() == other.fingerprint()
    assert pack.skeleton == COCO


def test_a_pack_of_mpii_has_the_persons_and_the_score_of_the_files(mpii, tmp_path):
    pack = opened(packed(mpii, tmp_path / "pack"))
    assert same_persons(pack.read("valid"), opened(mpii).read("valid"))
    scorer, values = scored(pack)
    assert isinstance(scorer, PckhScorer)
    assert values["Mean"] == 100
    assert pack.skeleton == MPII
    with pytest.raises(OptionError, match="score: pck is for --dataset coco"):
        opened(pack.root, score="pck")


def test_a_pack_made_with_score_pck_is_scored_as_the_files_are(coco, tmp_path):
    options = {"dataset": "coco", **COCO_FILES, "score": "pck"}
    found = []
    noise = np.random.default_rng(0).normal(0, 8, (10, 17, 2)).astype(np.float32)
    for root in (coco, packed(coco, tmp_path / "pack", **options)):
        for norm in ("box", "torso", "pixels"):
            dataset = opened(root, **options, pck_norm=norm)
            persons = dataset.read("valid")
            predictions, scores, seen = perfect(persons)
            scorer = dataset.scorer(persons)
            scorer.needs(to_train=True)
            found.append(scorer.score(predictions + noise, scores, seen))
    assert found[:3] == found[3:]
    assert 20 < found[0]["PCK"] < 100


def test_a_pack_made_without_pck_gives_it_by_torso_and_pixels_and_says_what_the_box_needs(coco, tmp_path):
    out = packed(coco, tmp_path / "pack", dataset="coco", **COCO_FILES)
    for norm in ("torso", "pixels"):
        assert scored(opened(out, score="pck", pck_norm=norm))[1]["PCK"] == 100
    dataset = opened(out, score="pck")
    with pytest.raises(OptionError, match=r"pck_norm: box needs .*: make their pack again with --score pck"):
        dataset.scorer(dataset.read("valid")).needs(to_train=False)


def test_the_pack_command_takes_the_score(coco, tmp_path):
    recipe = tmp_path / "coco.yaml"
    recipe.write_text(json.dumps({"dataset": "coco", "size": SIZE, **COCO_FILES}))
    arguments = [str(coco), str(tmp_path / "pack"), "--recipe", str(recipe)]
    assert pack.main([*arguments, "--score", "pck"]) == 0
    assert "box_side" in opened(tmp_path / "pack").read("valid").extras
    assert pack.main(arguments) == 1  # another pack
    assert pack.main([*arguments, "--score", "pck"]) == 0


def test_a_pack_is_refused_for_other_joints_or_another_shape(coco, tmp_path):
    out = packed(coco, tmp_path / "pack", dataset="coco", **COCO_FILES)
    with pytest.raises(OptionError, match=r"skeleton: the pack .* holds joints of 'coco', not 'mpii'"):
        opened(out, MPII).read("valid")
    with pytest.raises(OptionError, match=r"size: the pack .* aspect ratio of 96 x 64 pixels, got 64 x 64"):
        opened(out, size=(64, 64)).read("train")
