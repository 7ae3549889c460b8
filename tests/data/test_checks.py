# SPDX-License-Identifier: Apache-2.0
"""`fastpose check` finds each fault of a data set, names the first case, and is quiet where there is none."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from fastpose import check, pack
from fastpose.data import findings
from fastpose.data.checks import LEVELS
from fastpose.data.checks.copies import doubts_about_copies
from fastpose.data.checks.limbs import doubts_about_limbs
from fastpose.data.checks.people import counts, doubts_about_persons
from fastpose.data.checks.pictures import look_at
from fastpose.data.checks.report import Reported, in_order
from fastpose.data.coco.annotations import read_coco
from fastpose.data.findings import Finding
from fastpose.data.mpii import read_mpii
from fastpose.data.reading import AS_STORED
from fastpose.data.sense import doubts
from fastpose.skeletons import COCO, find_skeleton
from tests.helpers.persons import persons_of
from tests.helpers.tiny_coco import annotation
from tests.helpers.tiny_mpii import write_tiny_mpii

pytest.importorskip("yaml")

SIDE = 160  # px, of the images
# A person who faces the camera, 120 px high about (80, 80), by the joints of the left side; the right one mirrors it.
LEFT = {
    **{"eye": (2, -53), "ear": (5, -50), "shoulder": (14, -36), "elbow": (19, -18)},
    **{"wrist": (22, 0), "hip": (8, 2), "knee": (10, 30), "ankle": (11, 54)},
}
BASE = {"annotations_read"}
Files = dict[str, Any]  # of both splits, as JSON has them


def figure(scale: float = 1.0, shift: float = 0.0) -> np.ndarray:
    """COCO's joints [17, 3] of that person."""
    points = [(0.0, -50.0)]
    for name in COCO.joints[1:]:
        side, part = name.split("_")
        x, y = LEFT[part]
        points.append((x if side == "left" else -x, y))
    return np.column_stack([80 + shift + scale * np.array(points)[:, 0], 80 + scale * np.array(points)[:, 1], [2] * 17])


def picture(seed: int) -> np.ndarray:
    """Squares of 10 px in random colours."""
    blocks = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    return np.kron(blocks, np.ones((10, 10, 1), np.uint8))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """24 training and 4 validation persons, each on an image of its own, in COCO's format; nothing is wrong."""
    root = tmp_path / "data"
    (root / "images").mkdir(parents=True)
    for split, count, start, height in (("train", 24, 0, 0.9), ("valid", 4, 100, 1.05)):
        records, images = [], []
        for n in range(count):
            name = f"{split}{n}.png"
            cv2.imwrite(str(root / "images" / name), picture(start + n))
            joints = figure(height + 0.005 * n)
            records.append(annotation(start + n, start + n, joints, bbox=[50.0, 15.0, 60.0, 130.0]))
            images.append({"id": start + n, "file_name": name, "width": SIDE, "height": SIDE})
        contents = {"images": images, "annotations": records, "categories": [{"id": 1, "name": "person"}]}
        (root / f"{split}.json").write_text(json.dumps(contents))
    return root


def look(root: Path, *words: str) -> tuple[int, dict[str, Any]]:
    """Exit code and JSON of the command."""
    out = root.parent / "report.json"
    options = ["--dataset", "coco", "--train_annotations", "train.json", "--valid_annotations", "valid.json"]
    code = check.main([str(root), *options, "--images", "images", "--json", str(out), *words])
    return code, json.loads(out.read_text())


def codes(report: dict[str, Any]) -> set[str]:
    return {one["code"] for one in report["findings"]}


def swap(record: dict[str, Any], *parts: str) -> None:
    """Exchanges the left and the right joints of these parts."""
    joints = np.array(record["keypoints"]).reshape(-1, 3)
    for part in parts:
        pair = [COCO.joints.index(f"{side}_{part}") for side in ("left", "right")]
        joints[pair] = joints[pair[::-1]]
    record["keypoints"] = joints.ravel().tolist()


def move(record: dict[str, Any], joint: str, x: float, y: float) -> None:
    at = 3 * COCO.joints.index(joint)
    record["keypoints"][at : at + 2] = [x, y]


def replace(record: dict[str, Any], joints: np.ndarray, bbox: list[float]) -> None:
    record |= {"keypoints": joints.ravel().tolist(), "bbox": bbox}


def unannotate(files: Files, joint: str) -> None:
    for record in files["train"]["annotations"]:
        record["keypoints"][3 * COCO.joints.index(joint) + 2] = 0


def reencode(source: Path, target: Path, extension: str, *options: int) -> None:
    target.write_bytes(cv2.imencode(extension, cv2.imread(str(source)), list(options))[1].tobytes())


def turned(path: Path) -> None:
    """Makes a JPEG of it, to be turned by half a turn."""
    data = cv2.imencode(".jpg", cv2.imread(str(path)))[1].tobytes()
    tiff = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x03\0\0\0\0\0\0"
    exif = b"Exif\0\0" + tiff
    path.write_bytes(data[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + data[2:])


def deepen(path: Path, most: int) -> None:
    rng = np.random.default_rng(0)
    cv2.imwrite(str(path), rng.integers(0, most, (SIDE, SIDE), dtype=np.uint16))


def train(files: Files, n: int = 5) -> dict[str, Any]:
    return files["train"]["annotations"][n]


TRAIN5 = "train.json, annotation 5 (row 5), image train5.png"
VALID2 = "valid.json, annotation 102 (row 2), image valid2.png"
# What is done to files and images, the codes that it gives, the exit code, and how the text of the first code ends.
# IMAGES is the folder of the images.
FAULTS: dict[str, tuple[Callable[[Files, Path], Any], list[str], int, str]] = {
    "an image is missing": (
        lambda files, images: (images / "valid2.png").unlink(),
        ["image_missing"],
        1,
        f"1 of 4 images are not there; the first: {VALID2}, in IMAGES",
    ),
    "an image is there in other letters": (
        lambda files, images: files["valid"]["images"][2].update(file_name="VALID2.png"),
        ["image_missing"],
        1,
        "the first: valid.json, annotation 102 (row 2), image VALID2.png, in IMAGES; there is 'valid2.png', in other "
        "letters",
    ),
    "an image is named from a drive of Windows": (
        lambda files, images: files["valid"]["images"][2].update(file_name="C:\\data\\valid2.png"),
        ["image_missing"],
        1,
        "image C:/data/valid2.png, in IMAGES; there is 'valid2.png'",
    ),
    "an image is truncated": (
        lambda files, images: (images / "train5.png").write_bytes((images / "train5.png").read_bytes()[:500]),
        ["image_unreadable"],
        1,
        f"1 of 24 images cannot be read; the first: {TRAIN5}: truncated after 500 bytes, the end of the image is not "
        "in the file",
    ),
    "an image is of another size": (
        lambda files, images: files["train"]["images"][5].update(width=SIDE + 1),
        ["image_of_another_size"],
        1,
        f"1 of 24 images are of another size than annotated; the first: {TRAIN5}, of 160 x 160 px, not 161 x 160",
    ),
    "an image is in both splits": (
        lambda files, images: files["valid"]["images"][2].update(file_name="train5.png"),
        ["image_in_both_splits"],
        1,
        "the first: valid.json, annotation 102 (row 2), image train5.png",
    ),
    "a file is in both splits under two names": (
        lambda files, images: (images / "valid2.png").write_bytes((images / "train5.png").read_bytes()),
        ["copy_in_both_splits"],
        1,
        "1 of 4 validation images are copies of training images under another name; the first: "
        f"{VALID2}, of train5.png",
    ),
    "pixels are in both splits in two files": (
        lambda files, images: reencode(images / "train5.png", images / "valid2.png", ".bmp"),
        ["copy_in_both_splits"],
        1,
        f"{VALID2}, of train5.png",
    ),
    "a picture is in both splits, recompressed": (
        lambda files, images: reencode(images / "train5.png", images / "valid2.png", ".jpg", 1, 50),
        ["near_copy_in_both_splits"],
        0,
        f"{VALID2}, of train5.png",
    ),
    "pixels are there twice": (
        lambda files, images: reencode(images / "train3.png", images / "train5.png", ".bmp"),
        ["copy_in_split"],
        0,
        f"1 of 24 images are copies of an earlier one under another name; the first: {TRAIN5}, of train3.png",
    ),
    "a picture is there twice, recompressed": (
        lambda files, images: reencode(images / "train3.png", images / "train5.png", ".jpg", 1, 50),
        ["near_copy_in_split"],
        0,
        f"{TRAIN5}, of train3.png",
    ),
    "joints are outside of the image": (
        lambda files, images: replace(train(files), figure(shift=60), [110.0, 15.0, 50.0, 130.0]),
        ["joint_outside_image"],
        0,
        f"1 of 408 joints lie outside their image; the first: {TRAIN5}, left_wrist at (162, 80), in 160 x 160 px",
    ),
    "joints are outside of the box": (
        lambda files, images: train(files).update(bbox=[50.0, 15.0, 60.0, 100.0]),
        ["joint_outside_box"],
        0,
        "2 of 408 joints lie outside their box, by more than 0.1 of its longer side; the first: "
        f"{TRAIN5}, left_ankle at (90.175, 129.95), box of 60 x 100 px at (50, 15)",
    ),
    "a box reaches outside of the image": (
        lambda files, images: train(files).update(bbox=[-10.0, 15.0, 130.0, 130.0]),
        ["box_outside_image"],
        0,
        "1 of 24 persons have boxes that reach outside their image, where they are cut; the first: "
        f"{TRAIN5}, box of 130 x 130 px at (-10, 15), in 160 x 160 px",
    ),
    "a person is small": (
        lambda files, images: replace(train(files), figure(0.2), [70.0, 68.0, 20.0, 26.0]),
        ["person_small"],
        0,
        f"1 of 24 persons are below 32 px, by the longer side of their box; the first: {TRAIN5}, 26 px",
    ),
    "both legs have the other side": (
        lambda files, images: swap(train(files), "hip", "knee", "ankle"),
        ["trunk_crossed"],
        0,
        "1 of 24 persons have their shoulders and hips the opposite way, as if sides were exchanged; the first: "
        f"{TRAIN5}",
    ),
    "the knees are exchanged": (
        lambda files, images: swap(train(files), "knee"),
        ["joints_exchanged"],
        0,
        "1 of 24 persons have limbs that are shorter with a left and a right joint exchanged; the first: "
        f"{TRAIN5}, right_knee and left_knee",
    ),
    "the hips are exchanged": (
        lambda files, images: swap(train(files), "hip"),
        ["trunk_crossed", "joints_exchanged"],
        0,
        TRAIN5,
    ),
    "the eyes are exchanged": (
        lambda files, images: swap(train(files), "eye"),
        ["face_mirrored"],
        0,
        f"1 of 24 persons have their left eye where the right one is; the first: {TRAIN5}",
    ),
    "a wrist is at a foot": (
        lambda files, images: move(train(files), "left_wrist", 92, 134),
        ["limb_too_long"],
        0,
        "1 of 24 persons have a limb that is much too long for the others; the first: "
        f"{TRAIN5}, left_elbow to left_wrist",
    ),
    "an annotation is on no image": (
        lambda files, images: train(files).update(image_id=77),
        ["annotations_odd"],
        0,
        r"annotations left out of training and score: 1 on images that are not in images, which begin with id 0 "
        r"(the first: annotation 5, image_id 77)",
    ),
    "a joint is annotated for validation alone": (
        lambda files, images: unannotate(files, "nose"),
        ["joint_never_trained"],
        0,
        "annotated in the validation data and nowhere in the training data: nose",
    ),
    "a picture has an EXIF orientation": (
        lambda files, images: turned(images / "train5.png"),
        ["image_turned"],
        0,
        f"not as viewers show them (--exif); the first: {TRAIN5}, orientation 3",
    ),
    "a picture has 16 bits": (
        lambda files, images: deepen(images / "train5.png", 1 << 16),
        ["image_of_16_bits"],
        0,
        f"of which 8 are read (--sixteen_bits); the first: {TRAIN5}",
    ),
    "a picture has 12 bits in 16": (
        lambda files, images: deepen(images / "train5.png", 1 << 12),
        ["few_grey_levels", "image_of_16_bits"],
        0,
        f"(--sixteen_bits stretch; 1 looked at); the first: {TRAIN5}, 16",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_with_its_first_case_and_nothing_else_is(root, name):
    spoil, expected, exit_code, ending = FAULTS[name]
    files = {split: json.loads((root / f"{split}.json").read_text()) for split in ("train", "valid")}
    spoil(files, root / "images")
    for split, contents in files.items():
        (root / f"{split}.json").write_text(json.dumps(contents))
    code, report = look(root)
    assert codes(report) == BASE | set(expected)
    assert code == exit_code
    first = next(one for one in report["findings"] if one["code"] == expected[0])
    assert first["text"].endswith(ending.replace("IMAGES", str(root / "images")))
    assert first["level"] == LEVELS[expected[0]]
    assert (first["level"] == "error") == (code == 1)


def test_a_clean_data_set_has_no_findings(root, capsys):
    code, report = look(root)
    assert code == 0
    assert codes(report) == BASE
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "0 errors, 0 warnings, 2 notes"
    assert any(re.fullmatch(r"persons +24 +4 +28", line) for line in lines)
    assert any(re.fullmatch(r"annotated: nose +100\.0 % +100\.0 % +100\.0 %", line) for line in lines)
    assert any(re.fullmatch(r"median image, px( +160 x 160){3}", line) for line in lines)
    assert report["counts"]["both"]["person_px"]["percentile_50"] == 130
    assert report["files"] == {"train": "train.json", "valid": "valid.json"}


def test_one_split_may_be_looked_at(root):
    (root / "train.json").unlink()
    code, report = look(root, "--split", "valid")
    assert (code, codes(report), [*report["counts"]]) == (0, BASE, ["valid"])


def test_headers_alone_are_quick_and_say_what_is_not_noticed(root):
    (root / "images/valid2.png").write_bytes((root / "images/train5.png").read_bytes())
    code, report = look(root, "--headers_only")
    assert (code, codes(report)) == (0, BASE | {"pixels_not_decoded"})


def test_all_missing_images_are_counted(root):
    for path in (root / "images").iterdir():
        path.unlink()
    code, report = look(root)
    assert code == 1
    assert codes(report) == BASE | {"image_missing"}
    assert [one["count"] for one in report["findings"] if one["code"] == "image_missing"] == [24, 4]


def test_a_folder_of_images_that_is_not_there_is_named(root):
    code, report = look(root, "--images", "imgs")
    assert (code, codes(report)) == (1, BASE | {"image_missing"})
    texts = [one["text"] for one in report["findings"] if one["code"] == "image_missing"]
    assert texts == [
        "24 of 24 images are not there; the first: train.json, annotation 0 (row 0), image train0.png, there is no "
        f"folder {root / 'imgs'}",
        "4 of 4 images are not there; the first: valid.json, annotation 100 (row 0), image valid0.png, there is no "
        f"folder {root / 'imgs'}",
    ]


def test_json_has_all_cases_of_a_finding(root, monkeypatch):
    files = json.loads((root / "train.json").read_text())
    for n in (5, 7, 20):
        swap(files["annotations"][n], "knee")
    (root / "train.json").write_text(json.dumps(files))
    rows = [{"row": n, "record": f"annotation {n} (row {n})", "image": f"train{n}.png"} for n in (5, 7, 20)]
    _, report = look(root)
    assert [one["rows"] for one in report["findings"]] == [rows, [], []]
    monkeypatch.setattr(findings, "MOST_CASES", 2)
    [one] = [one for one in look(root)[1]["findings"] if one["code"] == "joints_exchanged"]
    assert (one["rows"], one["count"]) == (rows[:2], 3)


def test_images_are_named_with_their_folder_and_annotations_without_ids_by_their_row(root):
    (root / "images" / "a").mkdir()
    (root / "images/train5.png").rename(root / "images/a/train5.png")
    files = json.loads((root / "train.json").read_text())
    files["images"][5]["file_name"] = "a/train5.png"
    del files["annotations"][5]["id"]
    swap(files["annotations"][5], "knee")
    (root / "train.json").write_text(json.dumps(files))
    _, report = look(root)
    expected = "the first: train.json, annotation 5 of the list, image a/train5.png, right_knee and left_knee"
    assert report["findings"][0]["text"].endswith(expected)


def test_of_a_list_of_sets_list_set_and_record_are_named(root, tmp_path, capsys):
    shutil.copytree(root, tmp_path / "other")
    (root / "images/train5.png").unlink()
    files = json.loads((root / "train.json").read_text())
    swap(files["annotations"][7], "knee")
    (root / "train.json").write_text(json.dumps(files))
    names = {f"{split}_annotations": f"{split}.json" for split in ("train", "valid")}
    sets = [
        {"name": name, "dataset": "coco", "data_root": folder, "images": "images", **names}
        for name, folder in (("first", "other"), ("second", "data"))
    ]
    sets[1]["joints"] = {"left_hip": "right_hip", "right_hip": "left_hip"}
    listed = tmp_path / "mix.yaml"
    listed.write_text(json.dumps({"skeleton": "coco", "sets": sets}))
    assert check.main([str(listed), "--json", str(tmp_path / "report.json")]) == 1
    capsys.readouterr()
    found = {}
    for one in json.loads((tmp_path / "report.json").read_text())["findings"]:
        found.setdefault(one["code"], one)
    expected = f"{listed}, set second, annotation 5 (row 5), image train5.png, in {root / 'images'}"
    assert found["image_missing"]["text"].endswith(f"the first: {expected}")
    one = {"set": "second", "row": 5, "record": "annotation 5 (row 5)", "image": "train5.png"}
    assert found["image_missing"]["rows"] == [one]
    assert found["image_missing"]["first"] == {"file": str(listed), **one}
    expected = f"the first: {listed}, set second, annotation 0 (row 0), image train0.png, of train0.png of set first"
    assert found["copy_in_split"]["text"].endswith(expected)
    assert (found["joint_map_crossed"]["level"], found["joint_map_crossed"]["text"]) == (
        "warning",
        "set second: joints: left is right by the names, are sides exchanged? left_hip: right_hip, right_hip: left_hip",
    )


@pytest.mark.parametrize(
    ("joints", "warned"), [(("linkes_auge", "rechtes_auge"), True), (("left_eye", "right_eye"), False)]
)
def test_joints_without_sides_and_pairs_are_reported_as_training_does(root, joints, warned):
    for split in ("train", "valid"):
        places = zip(joints, (60, 100), strict=True)
        lines = [f"images/{split}{n}.png,{joint},{x},{27 + n}" for joint, x in places for n in range(4)]
        (root / f"{split}.csv").write_text("\n".join(["image,joint,x,y", *lines]))
    out = root.parent / "report.json"
    assert check.main([str(root), "--dataset", "csv", "--json", str(out)]) == 0
    texts = [one["text"] for one in json.loads(out.read_text())["findings"] if one["code"] == "mirror_pairs"]
    assert texts == warned * [
        "skeleton 'csv' has no mirror_pairs, so that left joints count as left in mirrored pictures: name the pairs, "
        "or choose --flip 0 --flip_test false"
    ]


def test_findings_are_in_the_order_of_the_table_and_name_file_row_and_image(root, capsys):
    (root / "images/train5.png").unlink()
    (root / "images/valid2.png").unlink()
    files = json.loads((root / "train.json").read_text())
    swap(files["annotations"][7], "knee")
    (root / "train.json").write_text(json.dumps(files))
    _, report = look(root)
    found = [(one["code"], one["split"]) for one in report["findings"]]
    assert found == [
        *[("image_missing", "train"), ("image_missing", "valid"), ("joints_exchanged", "train")],
        *[("annotations_read", "train"), ("annotations_read", "valid")],
    ]
    one = report["findings"][0]
    case = {"row": 5, "record": "annotation 5 (row 5)", "image": "train5.png"}
    assert (one["first"], one["rows"]) == ({"file": "train.json", **case}, [case])
    assert (one["level"], one["count"], one["of"]) == ("error", 1, 24)
    text = f"1 of 24 images are not there; the first: {TRAIN5}, in {root / 'images'}\n"
    assert f"error   image_missing in train: {text}" in capsys.readouterr().out


def test_every_code_that_is_given_has_a_level():
    folder = Path(check.__file__).parent
    sources = [folder / "check.py", folder / "data/sense.py", *sorted((folder / "data/checks").glob("*.py"))]
    given = {
        code
        for path in sources
        for code in re.findall(r'(?:Finding|note|_copies|code =)\s*\(?\s*"([a-z_0-9]+)"', path.read_text())
    }
    assert given | {"annotations_read"} == LEVELS.keys()
    assert in_order([Reported(Finding("pack", "it"), "", ""), Reported(Finding("no_joints", "it"), "", "")])[
        0
    ].level == ("error")


def test_the_manual_has_a_line_for_every_code():
    text = (Path(__file__).parents[2] / "docs/checking.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z_0-9]+)` \| (error|warning|note) \|", text, re.MULTILINE)
    assert dict(rows) == LEVELS
    assert [code for code, _ in rows] == list(LEVELS)


def test_a_name_with_a_line_break_stays_in_one_line(root, capsys):
    files = json.loads((root / "valid.json").read_text())
    files["images"][2]["file_name"] = "a\n\x1b[2Jb.png"
    (root / "valid.json").write_text(json.dumps(files))
    code, _ = look(root)
    assert code == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "image_missing" in line] == [
        "error   image_missing in valid: 1 of 4 images are not there; the first: valid.json, annotation 102 (row 2), "
        rf"image 'a\n\x1b[2Jb.png', in {root / 'images'}"
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"^error: .*train\.json: is not JSON: .*\n$"),
        ("[" * 200, r"^error: .*train\.json: expected objects and lists at most 100 deep in each other, got more\n$"),
        (None, r"^error: train_annotations: no file .*train\.json: beside it there is valid\.json\n$"),
    ],
)
def test_annotations_that_cannot_be_read_are_an_error_of_one_line(root, capsys, text, message):
    (root / "train.json").unlink()
    if text is not None:
        (root / "train.json").write_text(text)
    options = ["--dataset", "coco", "--train_annotations", "train.json", "--valid_annotations", "valid.json"]
    assert check.main([str(root), *options, "--images", "images"]) == 1
    assert re.search(message, capsys.readouterr().err)


def test_an_image_outside_of_the_folder_is_not_read(root, capsys):
    files = json.loads((root / "valid.json").read_text())
    files["images"][2]["file_name"] = "../../secret.png"
    (root / "valid.json").write_text(json.dumps(files))
    options = ["--dataset", "coco", "--train_annotations", "train.json", "--valid_annotations", "valid.json"]
    assert check.main([str(root), *options, "--images", "images"]) == 1
    assert re.search(r"^error: .* leads outside the image folder .*\n$", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--threads", "0"], r"threads: expected at least 1, got 0"),
        (["--small_px", "-1"], r"small_px: expected at least 0, got -1"),
    ],
)
def test_wrong_options_are_named(root, capsys, words, message):
    with pytest.raises(SystemExit):
        check.main([str(root), *words])
    assert re.search(message, capsys.readouterr().err)


def test_mpii_is_looked_at_too_and_joints_that_nobody_has_are_an_error(tmp_path, capsys):
    root = write_tiny_mpii(tmp_path / "mpii", persons=3, images=1)
    records = json.loads((root / "annot/train.json").read_text())
    (root / "annot/train.json").write_text(json.dumps([record | {"joints_vis": [0] * 16} for record in records]))
    assert check.main([str(root), "--head_boxes", ""]) == 1
    out = capsys.readouterr().out
    assert "error   no_joints in train: none of the 3 persons has an annotated joint\n" in out
    assert "error   image_in_both_splits: 1 of 1 validation images are training images too" in out
    assert re.search(r"persons, largest, px +76\.8 ", out)  # scale 96 / 250, of 200 px


def test_doubts_about_the_mirror_pairs_are_about_no_split(root, monkeypatch):
    monkeypatch.setattr(check, "doubts_about_names", lambda skeleton: [f"{skeleton.name} is odd"])
    code, report = look(root)
    assert (code, codes(report)) == (0, BASE | {"mirror_pairs"})
    [one] = [one for one in report["findings"] if one["code"] == "mirror_pairs"]
    assert (one["split"], one["first"], one["text"]) == (None, None, "coco is odd")


def test_of_a_pack_the_annotations_are_looked_at(root, tmp_path):
    files = json.loads((root / "train.json").read_text())
    swap(files["annotations"][5], "knee")
    (root / "train.json").write_text(json.dumps(files))
    options = ["--dataset", "coco", "--train_annotations", "train.json", "--valid_annotations", "valid.json"]
    words = [*options, "--images", "images", "--size", "64", "64"]
    assert pack.main([str(root), str(tmp_path / "out"), *words]) == 0
    assert check.main([str(tmp_path / "out"), "--dataset", "coco", "--json", str(tmp_path / "report.json")]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert codes(report) == {"joints_exchanged", "pack"}
    first = report["findings"][0]["first"]
    assert (first["row"], first["record"], first["image"]) == (5, "row 5 of the annotations", "train5.png")
    assert report["counts"]["both"]["persons"] == 28


def test_reading_says_again_what_it_said_before(root):
    """The logger is as it was once the annotations are read."""
    logger = logging.getLogger("fastpose.data")
    before = (logger.level, logger.propagate, list(logger.handlers))
    look(root)
    assert (logger.level, logger.propagate, list(logger.handlers)) == before


def test_persons_sizes_are_counted_by_percentiles():
    persons = persons_of(np.ones((3, 16, 2)), extras={"box": np.array([[0, 0, 10, 20], [0, 0, 40, 5], [0, 0, 30, 30]])})
    found = counts([(persons, np.array([[640.0, 480.0]]))], small=25)
    assert found["person_px"] == {
        **{"smallest": 20, "percentile_5": 21, "percentile_50": 30, "percentile_95": 39, "largest": 40}
    }
    assert (found["persons"], found["images"], found["persons_small"]) == (3, 1, 1)
    assert found["image_size"] == {name: [640, 480] for name in ("smallest", "median", "largest")}


def test_sizes_that_are_not_known_give_no_findings():
    persons = persons_of(np.full((2, 16, 2), 1e5))
    unknown = np.full((1, 2), np.nan)
    assert doubts_about_persons(persons, unknown, 1) == []
    assert counts([(persons, unknown)], 1)["image_size"] == {}


def test_what_a_body_can_do_is_not_doubted():
    """A back view, crossed arms and legs, a profile, somebody upside down."""
    front = figure()[:, :2] - 80
    back, crossed, profile = front * [-1, 1], front.copy(), front * [0.1, 1]
    back[:5] = front[:5] * [-1, 1]
    for part in ("wrist", "ankle"):
        pair = [COCO.joints.index(f"{side}_{part}") for side in ("left", "right")]
        crossed[pair] = crossed[pair[::-1]]
    visible = np.ones((4, 17))
    visible[0, 1:3] = 0  # no eyes from behind
    persons = persons_of(80 + np.stack([back, crossed, profile, -front]), visible, COCO)
    assert doubts_about_limbs(persons) == []


@pytest.mark.parametrize(("width", "found"), [(10, []), (14, ["trunk_crossed"])])
def test_hips_that_are_seen_from_their_edge_are_not_crossed(width, found):
    """Shoulders and hips are 38 px apart: from 11.4 px on, 0.3 of that, hips are wide."""
    points = figure()[:, :2]
    for part, sign in (("hip", -1), ("knee", -0.1), ("ankle", -0.1)):
        for side, x in (("left", 1), ("right", -1)):
            points[COCO.joints.index(f"{side}_{part}"), 0] = 80 + x * sign * width / 2
    assert [one.code for one in doubts_about_limbs(persons_of(points[None], skeleton=COCO))] == found


@pytest.mark.parametrize(("apart", "found"), [(4, []), (16, ["joints_exchanged"])])
def test_knees_must_shorten_the_legs_by_a_tenth(apart, found):
    """Thighs of 28 and shins of 24 px down; hips and ankles 16 px apart, and knees the other way about."""
    points = figure()[:, :2]
    for part, sign in (("hip", 8), ("knee", -apart / 2), ("ankle", 8)):
        for side, x in (("left", 1), ("right", -1)):
            points[COCO.joints.index(f"{side}_{part}"), 0] = 80 + x * sign
    assert [one.code for one in doubts_about_limbs(persons_of(points[None], skeleton=COCO))] == found


@pytest.mark.parametrize(("times", "found"), [(1.7, []), (1.9, ["limb_too_long"])])
def test_a_limb_is_too_long_from_1_8_times_the_second_longest_on(times, found):
    points = np.tile(figure()[:, :2], (30, 1, 1))
    elbow, wrist = (COCO.joints.index(f"left_{part}") for part in ("elbow", "wrist"))
    points[3, wrist] = points[3, elbow] + times * (points[3, wrist] - points[3, elbow])
    assert [one.code for one in doubts_about_limbs(persons_of(points, skeleton=COCO))] == found


def test_persons_of_few_pixels_are_passed_over():
    points = 80 + (figure()[:, :2] - 80) * 0.25  # 27 px high
    pair = [COCO.joints.index(f"{side}_knee") for side in ("left", "right")]
    points[pair] = points[pair[::-1]]
    assert doubts_about_limbs(persons_of(points[None], skeleton=COCO)) == []


def test_resized_cut_brighter_grey_and_mirrored_copies_are_near_and_others_are_not(tmp_path):
    image = cv2.GaussianBlur(picture(1), (0, 0), 4)
    grey = np.repeat(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)[..., None], 3, 2)
    brighter = np.clip(image * 1.1 + 8, 0, 255).astype(np.uint8)
    copies = [cv2.resize(image, (70, 70), interpolation=cv2.INTER_AREA), image[1:, 1:], brighter, grey]
    copies += [cv2.flip(image, 1), cv2.flip(image, 1)[1:, 1:]]
    others = [cv2.GaussianBlur(picture(seed), (0, 0), 4) for seed in range(2, 30)]
    flat = [np.full((50, 50, 3), level, np.uint8) for level in (7, 9)]
    skies = [np.full((160, 160, 3), np.linspace(200, top, 160)[:, None, None]).astype(np.uint8) for top in (90, 80)]
    for n, sky in enumerate(skies):
        cv2.circle(sky, (40 + 70 * n, 90), 12, (20, 20, 20), -1)  # somebody in the air
    paths = []
    for n, one in enumerate([image, *copies, *others, *flat, *skies]):
        paths.append(tmp_path / f"{n:02d}.png")
        cv2.imwrite(str(paths[-1]), one)
    persons = persons_of(np.ones((len(paths), 16, 2)), image_index=np.arange(len(paths)), image_paths=tuple(paths))
    looks = {path: look_at(path, AS_STORED) for path in paths}
    [(split, finding)] = doubts_about_copies({"train": persons}, looks)
    assert (split, finding.code, finding.count) == ("train", "near_copy_in_split", 6)
    assert [case.row for case in finding.cases] == [1, 2, 3, 4, 5, 6]
    what = "6 of 39 images are almost an earlier one: resized, recompressed, mirrored, or taken a moment later"
    assert finding.what == what


def test_a_mirrored_training_image_in_the_validation_data_is_noticed(tmp_path):
    images = [cv2.GaussianBlur(picture(seed), (0, 0), 4) for seed in range(3)]
    symmetric = np.maximum(images[0], cv2.flip(images[0], 1))  # its own mirror image, which is no copy
    paths = []
    for n, one in enumerate([*images, symmetric, cv2.flip(images[1], 1)]):
        paths.append(tmp_path / f"{n}.png")
        cv2.imwrite(str(paths[-1]), one)
    looks = {path: look_at(path, AS_STORED) for path in paths}
    splits = {}
    for split, own in (("train", paths[:4]), ("valid", paths[4:])):
        points = np.ones((len(own), 16, 2))
        splits[split] = persons_of(points, image_index=np.arange(len(own)), image_paths=tuple(own))
    [(split, finding)] = doubts_about_copies(splits, looks)
    assert (split, finding.code, finding.count) == ("", "near_copy_in_both_splits", 1)
    assert finding.more.endswith("1.png")


def test_real_data_have_few_doubts_and_their_noise_is_named(real_data, tmp_path):
    coco = real_data / "coco90/person_keypoints.json"
    mpii = read_mpii(real_data / "mpii/annot/valid.json", tmp_path, missing_images="keep")
    assert {one.code: one.count for one in doubts_about_limbs(mpii)} == {"trunk_crossed": 29, "joints_exchanged": 2}
    if coco.is_file():
        assert doubts_about_limbs(read_coco(coco, coco.parent / "images", (256, 192))) == []
    lspet = real_data / "lspet/annotations/train.json"
    if lspet.is_file():
        persons = read_coco(
            lspet, lspet.parents[1] / "images", (128, 128), skeleton=find_skeleton("lsp"), missing_images="keep"
        )
        found = {one.code: one.count for one in doubts_about_limbs(persons)}
        assert found == {"trunk_crossed": 55, "joints_exchanged": 6, "limb_too_long": 34}
        paths = persons.image_paths[:400]
        few = persons.select(np.flatnonzero(persons.image_index < 400))
        assert doubts(few) == []
        assert doubts_about_copies({"train": few}, {path: look_at(path, AS_STORED) for path in paths}) == []
