# SPDX-License-Identifier: Apache-2.0
"""Spoilt data are an error or a warning that names what is wrong; data as people annotate them are neither."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from fastpose import evaluate, train
from fastpose.data.coco.annotations import read_coco
from fastpose.data.findings import Finding
from fastpose.data.mpii import read_mpii
from fastpose.data.persons import Origin, Persons
from fastpose.data.sense import check_sense, doubts, doubts_about_names, doubts_about_splits
from fastpose.data.synthetic import generate
from fastpose.models import network
from fastpose.skeletons import COCO, MPII, Skeleton, read_skeleton
from tests.helpers.persons import persons_of
from tests.helpers.settings import small_network
from tests.helpers.terminal import error_of
from tests.helpers.tiny_coco import write_tiny_coco
from tests.helpers.tiny_mpii import write_tiny_mpii

WIDTH, HEIGHT = 640, 480
# A person who faces the camera, in units of its height about its middle: its left is on the right of the picture.
_LEFT = {
    **{"ear": (0.04, -0.42), "eye": (0.02, -0.44), "shoulder": (0.12, -0.3), "elbow": (0.16, -0.15)},
    **{"wrist": (0.18, 0.0), "hip": (0.07, 0.02), "knee": (0.08, 0.25), "ankle": (0.09, 0.45)},
}
_MIDDLE = {"nose": (0, -0.42), "pelvis": (0, 0), "thorax": (0, -0.28), "upper_neck": (0, -0.34), "head_top": (0, -0.48)}


def _figure(skeleton: Skeleton) -> np.ndarray:
    points = []
    for name in skeleton.joints:
        side, _, part = name.partition("_")
        x, y = _MIDDLE.get(name) or _LEFT[part]
        points.append((x if side.startswith("l") or name in _MIDDLE else -x, y))
    return np.array(points)


def _people(skeleton: Skeleton, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Joints [N, J, 2] and boxes [N, 4], x y w h, of persons who are inside their image; a quarter shows its back."""
    rng = np.random.default_rng(seed)
    height = rng.uniform(100, 300, count)
    middle = np.column_stack([rng.uniform(0.3, 0.7, count) * WIDTH, HEIGHT / 2 + rng.uniform(-60, 60, count)])
    turned = np.where(rng.random(count) < 0.25, -1, 1)[:, None] * [1, 0] + [0, 1]
    figures = _figure(skeleton) * turned[:, None] + rng.normal(0, 0.01, (count, skeleton.num_joints, 2))
    size = np.column_stack([0.45 * height, 1.05 * height])
    return middle[:, None] + height[:, None, None] * figures, np.hstack([middle - size / 2, size])


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of one size, two persons each."""
    folder = tmp_path_factory.mktemp("sense") / "images"
    folder.mkdir()
    data = cv2.imencode(".png", np.zeros((HEIGHT, WIDTH, 3), np.uint8))[1].tobytes()
    for split in ("train", "valid"):
        for number in range(60):
            (folder / f"{split}{number}.png").write_bytes(data)
    return folder


Files = dict[str, Any]  # of both splits


def mpii_files() -> Files:
    files = {}
    for seed, split in enumerate(("train", "valid")):
        joints, boxes = _people(MPII, 120, seed)
        files[split] = [
            {
                "image": f"{split}{row % 60}.png",
                "center": (box[:2] + box[2:] / 2 + 1).tolist(),
                "scale": box[3] / 200,
                "joints": (points + 1).tolist(),
                "joints_vis": [1] * 16,
            }
            for row, (points, box) in enumerate(zip(joints, boxes, strict=True))
        ]
    return files


def coco_files() -> Files:
    files = {}
    for seed, split in enumerate(("train", "valid")):
        joints, boxes = _people(COCO, 120, seed)
        names = [f"{split}{number}.png" for number in range(60)]
        files[split] = {
            "images": [{"id": i, "file_name": name, "width": WIDTH, "height": HEIGHT} for i, name in enumerate(names)],
            "categories": [{"id": 1, "name": "person", "keypoints": list(COCO.joints)}],
            "annotations": [
                {
                    **{"id": row + 1, "image_id": row % 60, "category_id": 1, "bbox": box.tolist(), "area": 1e4},
                    "keypoints": np.insert(points, 2, 2, axis=1).ravel().tolist(),
                }
                for row, (points, box) in enumerate(zip(joints, boxes, strict=True))
            ],
        }
    return files


def read(files: Files, folder: Path, images: Path) -> tuple[Persons, Persons]:
    persons = []
    for split, contents in files.items():
        file = folder / f"{split}.json"
        file.write_text(json.dumps(contents))
        persons.append(read_mpii(file, images) if isinstance(contents, list) else read_coco(file, images, (256, 192)))
    return persons[0], persons[1]


@pytest.mark.parametrize("make", [mpii_files, coco_files])
def test_data_as_people_annotate_them_are_not_doubted(tmp_path, images, caplog, make):
    check_sense(*read(make(), tmp_path, images))
    assert not caplog.records


# ---------------------------------------------------------------- spoilt sets

Spoil = Callable[[Files], None]


def of_joints(change: Callable[[np.ndarray], Any], rows: slice = slice(None), splits: str = "train valid") -> Spoil:
    """Changes the joints, [16, 2] as MPII's file has them or [17, 3] as COCO's has, of some rows."""

    def spoil(files: Files) -> None:
        for split in splits.split():
            if isinstance(files[split], list):
                for record in files[split][rows]:
                    record["joints"] = np.asarray(change(np.array(record["joints"]))).tolist()
            else:
                for record in files[split]["annotations"][rows]:
                    joints = np.array(record["keypoints"]).reshape(-1, 3)
                    joints[:, :2] = change(joints[:, :2].copy())
                    record["keypoints"] = joints.ravel().tolist()

    return spoil


def of_records(
    change: Callable[[dict[str, Any]], Any], rows: slice = slice(None), splits: str = "train valid"
) -> Spoil:
    """Changes other fields of the records of some rows."""

    def spoil(files: Files) -> None:
        for split in splits.split():
            for record in (files[split] if isinstance(files[split], list) else files[split]["annotations"])[rows]:
                record |= change(record)

    return spoil


def replaced(joint: int, place: tuple[float, float]) -> Callable[[np.ndarray], np.ndarray]:
    def change(joints: np.ndarray) -> np.ndarray:
        joints[joint] = place
        return joints

    return change


def sides_exchanged(skeleton: Skeleton) -> Callable[[np.ndarray], np.ndarray]:
    order = list(range(skeleton.num_joints))
    for a, b in skeleton.mirror_pairs:
        order[a], order[b] = b, a
    return lambda joints: joints[order]


def shared_images(files: Files) -> None:
    for record, other in zip(files["valid"], files["train"], strict=True):
        record["image"] = other["image"]


def persons_in_both(files: Files) -> None:
    for row in range(5):
        files["valid"][row] = files["train"][row] | {"image": files["valid"][row]["image"]}


def duplicates(files: Files) -> None:
    files["train"] += copy.deepcopy(files["train"][3:10])


def joints_of_the_first(files: Files) -> None:
    for record in files["train"]:
        record["joints"] = files["train"][0]["joints"]


def coco_images_shared(files: Files) -> None:
    files["valid"]["images"][7]["file_name"] = "train0.png"


SPOILT: dict[str, tuple[Callable[[], Files], Spoil, str]] = {
    "no joint annotated in training": (
        mpii_files,
        of_records(lambda record: {"joints_vis": [0] * 16}, splits="train"),
        "the training data: expected annotated joints, none of the 120 persons has one",
    ),
    "no joint annotated in validation": (
        mpii_files,
        of_records(lambda record: {"joints_vis": [0] * 16}, splits="valid"),
        "the validation data: expected annotated joints, none of the 120 persons has one",
    ),
    "some persons without joints": (
        mpii_files,
        of_records(lambda record: {"joints_vis": [0] * 16}, slice(5)),
        "5 of 120 persons have no annotated joint",
    ),
    "a joint at 99999": (
        mpii_files,
        of_joints(replaced(3, (99999, 50)), slice(7, 8)),
        r"1 of 1,920 joints lie outside their image.* record 7, train7.png, l_hip at \(99998, 49\), in 640 x 480",
    ),
    "a joint at 99999, COCO": (
        coco_files,
        of_joints(replaced(9, (50, 99999)), slice(7, 8)),
        r"1 of 2,040 joints lie outside their image.*annotation 8 \(row 7\), train7.png, left_wrist at \(50, 99999\)",
    ),
    "coordinates of pictures twice the size": (
        mpii_files,
        of_joints(lambda joints: 2 * joints),
        "joints lie outside their image, by more than a tenth",
    ),
    "x and y exchanged": (
        mpii_files,
        of_joints(lambda joints: joints[:, ::-1]),
        "joints lie outside their person's box",
    ),
    "normalised coordinates": (
        mpii_files,
        of_joints(lambda joints: joints / (WIDTH, HEIGHT)),
        "120 of 120 persons have all joints within 2 px of the image's corner: are coordinates divided by its size",
    ),
    "normalised coordinates of one person, COCO": (
        coco_files,
        of_joints(lambda joints: joints / (WIDTH, HEIGHT), slice(2, 3)),
        r"1 of 120 persons have all joints within 2 px.*the first: annotation 3 \(row 2\), train2.png",
    ),
    "missing joints at (0, 0) and annotated": (
        coco_files,
        of_joints(replaced(0, (0, 0)), slice(0, 50)),
        r"50 of 2,040 joints are annotated at the image's corner.*nose at \(0, 0\)",
    ),
    "missing joints at (-1, -1) and annotated": (
        mpii_files,
        of_joints(replaced(5, (-1, -1)), slice(9, 12)),
        r"3 of 1,920 joints are annotated at the image's corner.*record 9, train9.png, l_ankle at \(-2, -2\)",
    ),
    "all joints at one place": (
        mpii_files,
        of_joints(lambda joints: np.tile(joints[:1], (16, 1)), slice(4, 6)),
        "2 of 120 persons have all joints at one place; the first: record 4",
    ),
    "sides exchanged": (
        mpii_files,
        of_joints(sides_exchanged(MPII)),
        "pairs of shoulders and hips the left one is further right .*: are sides exchanged",
    ),
    "sides exchanged, COCO": (
        coco_files,
        of_joints(sides_exchanged(COCO), splits="valid"),
        "the validation data: of 120 pairs of eyes the left one is further right",
    ),
    "boxes x1 y1 x2 y2": (
        coco_files,
        of_records(lambda record: {"bbox": [*record["bbox"][:2], *np.add(record["bbox"][:2], record["bbox"][2:])]}),
        "persons have boxes to the right of and below their joints: are they x1 y1 x2 y2",
    ),
    "boxes divided by the image's size": (
        coco_files,
        of_records(lambda record: {"bbox": (np.array(record["bbox"]) / WIDTH).tolist()}),
        "a box",
    ),
    "scales in pixels": (
        mpii_files,
        of_records(lambda record: {"scale": 200 * record["scale"]}),
        "120 of 120 persons have boxes many times as large as their joints",
    ),
    "boxes of other persons": (
        coco_files,
        lambda files: files["train"].update(
            annotations=[
                record | {"bbox": other["bbox"]}
                for record, other in zip(
                    files["train"]["annotations"], files["train"]["annotations"][::-1], strict=True
                )
            ]
        ),
        "joints lie outside their person's box",
    ),
    "scales a hundredth": (
        mpii_files,
        of_records(lambda record: {"scale": record["scale"] / 100}),
        "joints are more than 2 box sides from the middle of their person's box",
    ),
    "centres divided by the image's size": (
        mpii_files,
        of_records(lambda record: {"center": [record["center"][0] / WIDTH, record["center"][1] / HEIGHT]}),
        "joints are more than 2 box sides from the middle of their person's box",
    ),
    "a person twice": (
        mpii_files,
        duplicates,
        "7 of 127 persons are there twice, with the same joints on the same image; the first: record 120, train3.png",
    ),
    "the joints of one person everywhere": (
        mpii_files,
        joints_of_the_first,
        "persons have the very joints of a person on another image; the first: record 1, train1.png",
    ),
    "images in both splits": (mpii_files, shared_images, "60 of 60 validation images are training images too"),
    "an image in both splits, COCO": (coco_files, coco_images_shared, "1 of 60 validation images .*train0.png"),
    "persons in both splits, on images of other names": (
        mpii_files,
        persons_in_both,
        "5 of 120 validation persons have the very joints of a training person; the first: record 0, valid0.png",
    ),
    "a joint that training lacks": (
        mpii_files,
        of_records(lambda record: {"joints_vis": [1] * 15 + [0]}, splits="train"),
        "annotated in the validation data and nowhere in the training data: l_wrist",
    ),
}


@pytest.mark.parametrize("name", SPOILT)
def test_spoilt_data_are_an_error_or_a_warning_that_names_it(tmp_path, images, caplog, name):
    make, spoil, message = SPOILT[name]
    files = make()
    spoil(files)
    try:
        check_sense(*read(files, tmp_path, images))
        said = [record.getMessage() for record in caplog.records]
    except ValueError as error:
        said = [str(error)]
    assert any(re.search(message, line) for line in said), said
    assert len(said) <= 6  # three of each split
    assert all(len(line.replace(str(tmp_path), "")) < 400 and line.isprintable() for line in said), said


def test_train_ends_with_one_line_where_no_joint_is_annotated(tmp_path, capsys):
    pytest.importorskip("yaml")
    root = write_tiny_mpii(tmp_path / "data", persons=3, images=1)
    records = json.loads((root / "annot/train.json").read_text())
    (root / "annot/train.json").write_text(json.dumps([record | {"joints_vis": [0] * 16} for record in records]))
    (tmp_path / "r.yaml").write_text(f"data_root: {root}\nepochs: 1\n")
    assert train.main(["--recipe", str(tmp_path / "r.yaml"), "--dry-run", "--device", "cpu"]) == 1
    expected = "the training data: expected annotated joints, none of the 3 persons has one"
    assert error_of(capsys) == f"error: {expected}\n"


def test_a_finding_is_one_line_whatever_records_and_images_are_called():
    finding = Finding("person_twice", "1 of 2 persons", 1, 2, (Origin(0, "line 2, a\nb", "c\nd.png", "/x"),), ", so")
    assert str(finding) == r"1 of 2 persons; the first: 'line 2, a\nb', 'c\nd.png', so"


EYES_AND_EARS = ("left_eye", "right_eye", "left_ear", "right_ear")


@pytest.mark.parametrize(
    ("joints", "pairs", "message"),
    [
        (
            EYES_AND_EARS,
            ((0, 2), (1, 3)),
            "mirror_pairs: expected [right_eye, left_eye], as the names say, got [left_eye, left_ear]",
        ),
        (("lEye", "rEye", "Nose"), ((0, 2),), "expected [rEye, lEye], as the names say, got [lEye, Nose]"),
        (("Eye.L", "Eye.R", "a"), ((2, 1),), 'expected ["Eye.R", "Eye.L"], as the names say, got [a, "Eye.R"]'),
        (("LeftPaw", "RightPaw", "a"), ((0, 2),), "expected [RightPaw, LeftPaw], as the names say, got [LeftPaw, a]"),
        (EYES_AND_EARS, (), "has no mirror_pairs, so that left joints count as left in mirrored pictures: choose"),
        (EYES_AND_EARS, ((1, 0),), "has no mirror_pairs for 2 of its joints with sides, so that left joints count"),
        (("pawLeft", "pawRight", "bright", "b"), ((1, 0), (2, 3)), None),
        (("lower_lip", "upper_lip"), ((0, 1),), None),
        (("links", "rechts"), ((0, 1),), None),
        (("left_eye", "right_ear", "L1", "L2"), (), None),  # nobody's counterpart is there
    ],
)
def test_mirror_pairs_that_are_missing_or_that_names_contradict_are_doubted(joints, pairs, message):
    said = doubts_about_names(Skeleton("s", joints, pairs, ()))
    assert len(said) == (message is not None)
    if message is not None:
        assert said[0].startswith("skeleton 's'")
        assert message in said[0]


@pytest.mark.parametrize(
    ("joints", "pairs"),
    [
        (EYES_AND_EARS, ()),
        (EYES_AND_EARS, ((1, 0),)),
        (("nose: left", "nose: right", "Ohr, L", "Ohr, R", "a"), ()),
        (("left 'eye'", "right 'eye'", "[l]", "[r]", "left #1", "right #1"), ()),
        (("l", "r", "левый_left", "левый_right"), ()),
    ],
)
def test_the_pairs_to_write_are_ready_to_paste(tmp_path, joints, pairs):
    (doubt,) = doubts_about_names(Skeleton("s", joints, pairs, ()))
    _, colon, written = doubt.partition("write into its file: ")
    path = tmp_path / "s.yaml"
    path.write_text(f"joints: {json.dumps(joints)}\n{written}\n", encoding="utf-8")
    assert colon
    skeleton = read_skeleton(path)
    sided = len(joints) // 2
    assert skeleton.mirror_pairs == tuple((2 * pair + 1, 2 * pair) for pair in range(sided))  # right, left
    assert doubts_about_names(skeleton) == []


def test_the_missing_pairs_are_one_warning_of_a_training_and_one_of_an_evaluation(tmp_path, caplog, monkeypatch):
    pytest.importorskip("yaml")
    monkeypatch.setattr(network, "pose_resnet", small_network)
    root = write_tiny_coco(tmp_path / "data", persons=2, images=1, skeleton=Skeleton("s", EYES_AND_EARS, (), ()))
    (tmp_path / "s.yaml").write_text(f"joints: [{', '.join(EYES_AND_EARS)}]\n")
    recipe = {"dataset": "coco", "data_root": str(root), "skeleton": str(tmp_path / "s.yaml"), "images": "images"}
    recipe |= {f"{split}_annotations": f"annotations/{split}.json" for split in ("train", "valid")}
    recipe |= {"score": "pck", "size": [32, 32], "channels": 8, "epochs": 1, "batch_size": 2, "device": "cpu"}
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    assert train.main(["--recipe", str(tmp_path / "r.yaml"), "--run", str(tmp_path / "run")]) == 0
    said = [line for record in caplog.records if "mirror" in (line := record.getMessage())]
    assert len(said) == 1
    assert said[0].endswith("write into its file: mirror_pairs: [[right_eye, left_eye], [right_ear, left_ear]]")
    caplog.clear()
    assert evaluate.main(["--checkpoint", str(tmp_path / "run"), "--device", "cpu"]) == 0
    assert [record.getMessage() for record in caplog.records if "mirror" in record.getMessage()] == said
    # Joints without sides may all lie on the middle line: of these only a training that mirrors warns.
    (tmp_path / "s.yaml").write_text("joints: [nose, chin, tail, back]\n")
    for more, count in (([], 1), (["--flip", "0", "--flip_test", "false"], 0)):
        caplog.clear()
        assert train.main(["--recipe", str(tmp_path / "r.yaml"), "--dry-run", *more]) == 0
        assert caplog.text.count("skeleton 's' has no mirror_pairs, so that left joints count as left") == count


def test_the_well_known_skeletons_are_not_doubted():
    assert doubts_about_names(MPII) == doubts_about_names(COCO) == []


def test_the_boxes_of_a_detector_are_neither_an_error_nor_doubted(caplog):
    boxes = persons_of(np.zeros((3, 16, 2)), np.zeros((3, 16)), truth={"annotations": []})
    annotated = persons_of(np.random.default_rng(0).uniform(0, 100, (3, 16, 2)), scale=np.full((3, 2), 0.6))
    check_sense(annotated, dataclasses.replace(boxes, image_paths=(Path("b"),)))
    assert not caplog.records


def test_synthetic_persons_are_not_doubted(tmp_path, caplog):
    generate(tmp_path / "set", persons=80, valid_persons=20, seed=0)
    check_sense(
        *(read_mpii(tmp_path / f"set/annot/{split}.json", tmp_path / "set/images") for split in ("train", "valid"))
    )
    assert not caplog.records


def test_real_annotations_are_not_doubted(real_data, tmp_path):
    for record in json.loads((real_data / "mpii/annot/valid.json").read_text()):
        (tmp_path / record["image"]).touch()
    mpii = real_data / "mpii"
    sets = [
        read_mpii(mpii / "annot/valid.json", tmp_path, head_boxes=mpii / "annot/gt_valid.mat"),
        read_mpii(mpii / "annot/valid.json", mpii / "images", missing_images="drop"),
    ]
    for folder in ("coco", "coco90"):
        file = real_data / folder / "person_keypoints.json"
        if file.is_file():
            sets.append(read_coco(file, file.parent / "images", (256, 192)))
    lspet = []
    for split in ("train", "valid"):
        file = real_data / "lspet/annotations" / f"{split}.json"
        if file.is_file():
            names = json.loads(file.read_text())["categories"][0]["keypoints"]
            pairs = [(i, names.index(n.replace("right", "left"))) for i, n in enumerate(names) if "right" in n]
            skeleton = Skeleton("lsp", tuple(names), tuple(pairs), ())
            lspet.append(read_coco(file, file.parents[1] / "images", (256, 192), skeleton=skeleton))
    for persons in (*sets, *lspet):
        assert doubts(persons) == doubts_about_names(persons.skeleton) == []
    if lspet:
        assert doubts_about_splits(*lspet) == []
    # A few persons of a set are no reason for doubt either.
    rng = np.random.default_rng(0)
    for persons in sets:
        for _ in range(8):
            assert doubts(persons.select(rng.choice(len(persons), min(12, len(persons)), replace=False))) == []
