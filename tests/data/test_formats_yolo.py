# SPDX-License-Identifier: Apache-2.0
"""YOLO's poses: what data.yaml and the text files say, and what is refused."""

from __future__ import annotations

import errno
import json
import logging
from pathlib import Path

import numpy as np
import pytest

from fastpose import check, convert
from fastpose.data.annotation_rows import AnnotationError
from fastpose.data.formats import yolo
from fastpose.option import OptionError
from fastpose.skeletons import COCO
from tests.helpers.formats import JOINTS, TRAINED, VALIDATED, names, opened, picture, read, write_yolo

COCO_FLIP = "[0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15]"


@pytest.fixture
def root(tmp_path) -> Path:
    return write_yolo(tmp_path / "yolo")


def change(root: Path, before: str, after: str) -> Path:
    file = root / "data.yaml"
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after))
    return root


def label(root: Path, text: str) -> Path:
    (root / "labels/train/a.txt").write_text(text)
    return root


def test_persons_boxes_and_joints_are_in_pixels(root):
    dataset = opened(root, "yolo")
    train, valid = dataset.read("train"), dataset.read("valid")
    assert train.skeleton is dataset.skeleton
    assert (train.skeleton.joints, train.skeleton.mirror_pairs) == (JOINTS, ((2, 1),))
    assert valid.skeleton == train.skeleton
    assert (names(train), names(valid)) == (["a.png", "b.png"], ["c.png"])
    np.testing.assert_allclose(train.keypoints, TRAINED, atol=1e-4)
    np.testing.assert_allclose(valid.keypoints, VALIDATED, atol=1e-4)
    assert train.visible.tolist() == [[1, 1, 1], [1, 1, 0]]
    # The first box is 10, 10, 60, 50 px; COCO's reader takes a pixel off, and makes 59 x 49 a square, 1.25 times as
    # large.
    np.testing.assert_allclose(train.center[0], [39.5, 34.5], atol=1e-3)
    np.testing.assert_allclose(train.scale[0] * 200, [73.75, 73.75], atol=1e-3)


def test_messages_name_the_text_file_and_its_line_and_the_picture_below_the_root(root):
    label(root, "\n" + (root / "labels/train/a.txt").read_text())
    origin = read(root, "yolo").origins([0])[0]
    assert (origin.record, origin.image) == ("labels/train/a.txt, line 2", "images/train/a.png")


def test_a_picture_without_a_text_file_or_with_an_empty_one_has_nobody(root):
    picture(root / "images/train/d.jpg")
    picture(root / "images/train/deeper/e.jpg")
    (root / "labels/train/d.txt").write_text("\n")
    assert names(read(root, "yolo")) == ["a.png", "b.png"]
    (root / "labels/train/deeper").mkdir()
    (root / "labels/train/deeper/e.txt").write_text((root / "labels/train/b.txt").read_text())
    assert names(read(root, "yolo")) == ["a.png", "b.png", "e.jpg"]


def test_a_line_that_is_there_twice_is_left_out_and_counted(root, caplog):
    label(root, (root / "labels/train/a.txt").read_text() * 3)
    assert len(read(root, "yolo")) == 2
    assert "left out: 2 lines that are there twice (the first: " in caplog.text
    assert "a.txt, line 2)" in caplog.text


def test_joints_of_two_numbers_are_annotated_unless_both_are_0(root):
    change(root, "[3, 3]", "[3, 2]")
    for name in ("train/b", "val/c"):
        (root / f"labels/{name}.txt").write_text("0 0.5 0.5 0.5 0.5  0.1 0.2 0 0 0 0.3\n")
    persons = read(label(root, "0 0.5 0.5 0.5 0.5  0.1 0.2 0 0 0 0.3\n"), "yolo")
    assert persons.visible[0].tolist() == [1, 0, 1]
    np.testing.assert_allclose(persons.keypoints[0], [[20, 20], [0, 0], [0, 30]], atol=1e-4)


def test_without_names_17_joints_with_cocos_pairs_are_cocos(root):
    line = "0 0.5 0.5 0.5 0.5" + " 0.1 0.2 2" * 17
    for name in ("train/a", "train/b", "val/c"):
        (root / f"labels/{name}.txt").write_text(line)
    change(root, "kpt_names:\n  0: [nose, left_eye, right_eye]\n", "")
    change(root, "[3, 3]", "[17, 3]")
    change(root, "[0, 2, 1]", COCO_FLIP)
    assert opened(root, "yolo").skeleton is COCO
    change(root, f"flip_idx: {COCO_FLIP}\n", "")
    found = opened(root, "yolo").skeleton
    assert (found.joints[0], found.joints[16], found.mirror_pairs) == ("joint_1", "joint_17", ())
    assert read(root, "yolo", skeleton="coco").skeleton is COCO  # they get the names of a skeleton with as many


def test_without_names_flip_idx_names_the_pairs(root):
    change(root, "kpt_names:\n  0: [nose, left_eye, right_eye]\n", "")
    skeleton = opened(root, "yolo").skeleton
    assert (skeleton.joints, skeleton.mirror_pairs) == (("joint_1", "joint_2", "joint_3"), ((2, 1),))
    with pytest.raises(AnnotationError, match=r"data\.yaml: its persons have 3 joints, skeleton 'coco' has 17"):
        read(root, "yolo", skeleton="coco")


def test_a_class_is_chosen_by_its_name(root):
    change(root, "names:\n  0: person\n", "names: [cat, dog]\n")
    for name in ("train/b", "val/c"):
        file = root / f"labels/{name}.txt"
        file.write_text("1" + file.read_text()[1:])
    with pytest.raises(AnnotationError, match=r'several have 3 joints: got \["cat", "dog"\].*name one with category'):
        read(root, "yolo")
    assert names(read(root, "yolo", category="cat")) == ["a.png"]
    assert names(read(root, "yolo", category="dog")) == ["b.png"]
    assert names(read(root, "yolo", category="all")) == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("images/train", "../images/train"),  # Roboflow writes it so
        ("path: .", "path: ../datasets/eyes"),  # where it was before
        ("path: .", "path: /content/eyes"),
        ("path: .\n", ""),
        ("images/train", "[images/train/a.png, images/train/b.png]"),
        ("images/train", "[images/train, images/train/b.png]"),
    ],
)
def test_pictures_are_found_where_exports_mean_them(root, before, after):
    assert names(read(change(root, before, after), "yolo")) == ["a.png", "b.png"]


@pytest.mark.parametrize("line", ["images/train/{}.png", "./images/train/{}.png", "data/images/train/{}.png"])
def test_pictures_may_be_listed_in_a_text_file(root, line):
    (root / "train.txt").write_text("".join(line.format(name) + "\n" for name in "ba"))
    assert names(read(change(root, "images/train", "train.txt"), "yolo")) == ["b.png", "a.png"]


def test_a_listed_picture_that_is_not_there_is_an_error_or_left_out(root, caplog):
    (root / "train.txt").write_text("images/train/a.png\nimages/train/x.png\n")
    change(root, "images/train", "train.txt")
    with pytest.raises(AnnotationError, match=r"data\.yaml: train: picture 'images/train/x\.png' is not in"):
        read(root, "yolo")
    assert names(read(root, "yolo", missing_images="drop")) == ["a.png"]
    assert "left out: 1 images that are not there (the first: images/train/x.png)" in caplog.text


def test_every_tenth_picture_is_for_validation_where_both_splits_are_the_same(root):
    for number in range(10, 31):
        picture(root / f"images/train/{number}.png")
        (root / f"labels/train/{number}.txt").write_text((root / "labels/train/a.txt").read_text())
    change(root, "val: images/val", "val: images/train")
    dataset = opened(root, "yolo")
    assert names(dataset.read("valid")) == ["19.png", "29.png"]  # the tenth and twentieth of 23
    assert len(dataset.read("train")) == 21
    change(root, "val: images/train\n", "")
    (root / "list").write_text("# our own\nimages/train/a.png\n\n")
    dataset = opened(root, "yolo", split_list="list")
    assert (names(dataset.read("valid")), len(dataset.read("train"))) == (["a.png"], 22)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.5", r"a\.txt, line 2: expected 14 numbers, class, box and 3 for each of 3 joints, got 4"),
        ("0" + " 0.5" * 20, r"a\.txt, line 2: expected 14 numbers, .* got more"),
        ("0 0.5 0.5 x 0.5" + " 0.1 0.1 2" * 3, r'a\.txt, line 2: number 4 must be a number, got "x"'),
        ("0 0.5 0.5 1_0 0.5" + " 0.1 0.1 2" * 3, r'line 2: number 4 must be a number, got "1_0"'),
        ("0 0.5 0.5 0.5 1.5" + " 0.1 0.1 2" * 3, r"line 2: box and joints must be shares .* from 0 to 1, got 1\.5"),
        ("0 0.5 0.5 0.5 0.5" + " -0.1 0.1 2" * 3, r"line 2: box and joints must be shares .*, got -0\.1"),
        ("0 0.5 0.5 0.5 0.5" + " 1e308 0.1 2" * 3, r"line 2: box and joints must be shares .*, got 1e\+308"),
        ("0 0.5 0.5 0.5 0.5" + " nan 0.1 2" * 3, r"line 2: box and joints must be shares .*, got nan"),
        ("0 0.5 0.5 0.5 0.5" + " 0.1 0.1 3" * 3, r"line 2: v of a joint must be 0, 1, 2 or a share, got \[3\.0"),
        ("1 0.5 0.5 0.5 0.5" + " 0.1 0.1 2" * 3, r"line 2: class must be a whole number below 1, got 1"),
        ("-1 0.5 0.5 0.5 0.5" + " 0.1 0.1 2" * 3, r"line 2: class must be a whole number below 1, got -1"),
        ("nan 0.5 0.5 0.5 0.5" + " 0.1 0.1 2" * 3, r"line 2: class must be a whole number below 1, got nan"),
        ("0 0.5\0", r"a\.txt, line 2: expected text, got a NUL"),
    ],
)
def test_a_line_that_is_none_is_an_error_with_file_and_line(root, line, message):
    label(root, f"\n{line}\n")
    with pytest.raises(AnnotationError, match=message):
        read(root, "yolo")


def test_rounding_may_put_a_joint_a_little_outside(root):
    persons = read(label(root, "0 0.5 0.5 1.0000001 1" + " 1.000001 -0.000001 2" * 3), "yolo")
    np.testing.assert_allclose(persons.keypoints[0], [[200, 0]] * 3, atol=1e-3)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("kpt_shape: [3, 3]", "kpt_shape: [3, 4]", r"kpt_shape must be \[number of joints, 2 or 3\], got \[3, 4\]"),
        ("kpt_shape: [3, 3]", "kpt_shape: [0, 3]", r"kpt_shape must be .*, got \[0, 3\]"),
        ("kpt_shape: [3, 3]", "kpt_shape: [1001, 3]", r"kpt_shape must be .*, got \[1001, 3\]"),
        ("kpt_shape: [3, 3]\n", "", r"kpt_shape must be .*, got null"),
        ("[0, 2, 1]", "[0, 2]", r"flip_idx must be 3 numbers below 3, got \[0, 2\]"),
        ("[0, 2, 1]", "[0, 2, 3]", r"flip_idx must be 3 numbers below 3, got \[0, 2, 3\]"),
        ("[0, 2, 1]", "[1, 2, 0]", r"flip_idx must exchange joints in pairs: joint 0 becomes 1, and 1 becomes 2"),
        ("  0: person", "  1: person", r'names must be the classes\' different names, .*, got \{"1": "person"\}'),
        ("  0: [nose, left_eye, right_eye]", "  0: [nose]", r"kpt_names must be 3 names, got \[\"nose\"\]"),
        ("[nose, left_eye, right_eye]", "[nose, eye, eye]", r"kpt_names: expected joints with different names"),
        ("[nose, left_eye, right_eye]", "[nose, a/b, c]", r'kpt_names: expected names of joints, got "a/b"'),
        ("[nose, left_eye, right_eye]", "[a, b, c]\n  1: [c, b, a]", r"kpt_names must be the same for all classes"),
        ("images/train", "pictures", r'train: expected a folder, a picture or a \.txt file below .*, got "pictures"'),
        ("images/train", "/etc", r'train: expected a folder, a picture or .* got "/etc"$'),
        ("images/train", '"a\\0b"', r"train: expected a folder, a picture or a \.txt file below"),
        ("images/train", "{a: 1}", r"path and train must be names of folders or lists"),
        ("images/train", "labels", r'train: "labels" has no pictures'),
        ("train: images/train\n", "", r"has no train: the folder, or the list, of pictures"),
    ],
)
def test_a_data_yaml_that_is_none_is_an_error_with_key_and_value(root, before, after, message):
    with pytest.raises(AnnotationError, match=rf"data\.yaml: {message}"):
        read(change(root, before, after), "yolo")


def test_pictures_outside_of_the_data_root_are_refused(root, tmp_path):
    picture(tmp_path / "other/images/a.png")
    change(root, "images/train", "../other/images")
    with pytest.raises(AnnotationError, match=r"train: expected a folder, a picture or a \.txt file below"):
        read(root, "yolo")
    change(root, "../other/images", "train.txt")
    for line in ("../other/images/a.png", str(tmp_path / "other/images/a.png")):
        (root / "train.txt").write_text(f"images/train/b.png\n{line}\n")
        with pytest.raises(AnnotationError, match=r"train\.txt, line 2: picture \".*leads outside"):
            read(root, "yolo")


def test_a_set_without_any_labels_is_an_error_that_says_where_they_would_be(root):
    (root / "labels").rename(root / "texts")
    message = r"train: none of its 2 pictures has labels: .*'images/train/a\.png', would be in 'labels/train/a\.txt'"
    with pytest.raises(AnnotationError, match=message):
        read(root, "yolo")


def test_a_data_yaml_above_the_limits_or_with_tags_is_refused(root):
    file = root / "data.yaml"
    file.write_text("a: 1\n" * 20_000)
    with pytest.raises(ValueError, match=r"data\.yaml: expected at most 65,536 bytes"):
        read(root, "yolo")
    file.write_text("train: !!python/object:os.system x\n")
    with pytest.raises(ValueError, match=r"data\.yaml: not YAML: line 1: found the tag"):
        read(root, "yolo")
    file.write_text("names: {0: a, 0: b}\n")
    with pytest.raises(ValueError, match=r"found the key '0' for the second time"):
        read(root, "yolo")
    file.write_text("- 1\n")
    with pytest.raises(AnnotationError, match=r"data\.yaml: expected keys train, val, kpt_shape and names, got \[1\]"):
        read(root, "yolo")


def test_options_for_other_formats_are_refused(root):
    with pytest.raises(OptionError, match=r"images: data\.yaml names the pictures, got 'pictures'"):
        read(root, "yolo", images="pictures")
    with pytest.raises(OptionError, match=r"detections: is for --dataset coco, got 'boxes\.json' with yolo"):
        opened(root, "yolo", detections="boxes.json")
    (root / "list").write_text("")
    with pytest.raises(OptionError, match=r"split_list: .*data\.yaml is one split already, got 'list'"):
        read(root, "yolo", split_list="list")


@pytest.mark.parametrize("flip", ["[1, 0, 2]", "[2, 1, 0]"])
def test_a_flip_idx_that_the_names_contradict_is_an_error(root, flip):
    change(root, "[0, 2, 1]", flip)
    message = r"data\.yaml: flip_idx: expected \[right_eye, left_eye\], as the names say, got \[.*\]$"
    with pytest.raises(AnnotationError, match=message):
        read(root, "yolo")


def test_a_flip_idx_that_exchanges_nothing_gives_way_to_the_names_with_a_warning(root, caplog):
    change(root, "[0, 2, 1]", "[0, 1, 2]")  # ultralytics' own tiger-pose.yaml has the like
    assert read(root, "yolo").skeleton.mirror_pairs == ((2, 1),)
    expected = "data.yaml: flip_idx exchanges no joints; as their names say, mirroring does: [[right_eye, left_eye]]"
    assert expected in [record.getMessage().rpartition("/")[2] for record in caplog.records]


@pytest.mark.parametrize("names", ["", "kpt_names:\n  0: [nose, a, b]\n"])
def test_a_flip_idx_other_than_the_pairs_of_the_skeleton_is_an_error(root, tmp_path, names):
    change(root, "kpt_names:\n  0: [nose, left_eye, right_eye]\n", names)
    joints = tmp_path / "three.yaml"
    joints.write_text("joints: [nose, a, b]\nmirror_pairs: [[nose, b]]\n")
    message = r"data\.yaml: flip_idx: expected the mirror pairs of skeleton 'three', which differ in \[\[nose, b\]\], "
    with pytest.raises(AnnotationError, match=message + r"got \[\[a, b\]\]$"):
        read(root, "yolo", skeleton=str(joints))
    joints.write_text("joints: [nose, a, b]\nmirror_pairs: [[b, a]]\n")
    assert len(read(root, "yolo", skeleton=str(joints))) == 2
    joints.write_text("joints: [b, chin, throat, a, nose]\nmirror_pairs: [[b, a], [chin, throat]]\n")
    if names:  # of the joints that the file has the pairs are the same
        assert len(read(root, "yolo", skeleton=str(joints))) == 2


def test_persons_on_a_damaged_picture_stay_until_it_is_needed(root, tmp_path, capsys, caplog):
    (root / "images/train/a.png").write_bytes(b"no picture")
    assert names(read(root, "yolo")) == ["a.png", "b.png"]
    assert check.main([str(root), "--dataset", "yolo"]) == 1
    out = capsys.readouterr().out
    assert "error   image_unreadable in train: 1 of 2 images cannot be read" in out
    assert "joints_in_corner" not in out
    assert "box_too_large" not in out
    assert convert.main([str(root), str(tmp_path / "out"), "--dataset", "yolo"]) == 0
    assert "1 images that cannot be read, which persons are annotated in shares of (the first: " in caplog.text
    written = json.loads((tmp_path / "out/annotations/train.json").read_text())
    assert [image["file_name"] for image in written["images"]] == ["images/train/b.png"]
    assert [one["image_id"] for one in written["annotations"]] == [written["images"][0]["id"]]


def test_what_would_spoil_any_picture_stops_and_places_nobody(root, monkeypatch):
    def no_descriptors(*_: object) -> tuple[int, int]:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(yolo, "image_size", no_descriptors)
    with pytest.raises(OSError, match="Too many open files"):
        read(root, "yolo")


def test_labels_without_pictures_are_counted_and_pictures_without_labels_noted(root, caplog):
    caplog.set_level(logging.INFO)
    for name in ("x", "deeper/y", "classes"):
        (root / f"labels/train/{name}.txt").parent.mkdir(exist_ok=True)
        (root / f"labels/train/{name}.txt").write_text("")
    (root / "images/train/x.heic").write_bytes(b"")  # of no kind that is read
    picture(root / "images/train/z.png")
    read(root, "yolo")
    assert "left out: 2 text files without a picture (the first: labels/train/deeper/y.txt)" in caplog.text
    assert (
        "train: 1 of 3 pictures have no text file, and so nobody on them (the first: images/train/z.png)" in caplog.text
    )


def test_text_files_beside_the_pictures_may_be_anything(root, caplog):
    for split in ("train", "val"):
        for file in (root / f"labels/{split}").iterdir():
            file.rename(root / f"images/{split}/{file.name}")
        (root / f"images/{split}/notes.txt").write_text("what we saw")
        (root / f"images/{split}").rename(root / split)
        change(root, f"images/{split}", split)
    assert names(read(root, "yolo")) == ["a.png", "b.png"]
    assert "text files" not in caplog.text


def test_a_key_that_may_be_meant_for_val_is_a_warning(root, caplog):
    for number in range(10):
        picture(root / f"images/train/{number}.png")
    change(root, "val: images/val", "valid: images/val")
    opened(root, "yolo").read("train")
    assert 'data.yaml: has no val, and "valid" is not read: call it val, if it is that' in caplog.text
    caplog.clear()
    change(root, "valid: images/val\n", "test: images/val\n")
    opened(root, "yolo").read("train")
    assert "has no val" not in caplog.text


def test_empty_text_files_alone_are_an_error_that_says_so(root):
    for name in "ab":
        (root / f"labels/train/{name}.txt").write_text("")
    with pytest.raises(AnnotationError, match=r"data\.yaml: train: nobody has an annotated joint on its 2 images$"):
        read(root, "yolo")


def test_pairs_that_the_names_say_are_logged(root, caplog):
    caplog.set_level(logging.INFO)
    change(root, "flip_idx: [0, 2, 1]\n", "")
    assert opened(root, "yolo").skeleton.mirror_pairs == ((2, 1),)
    assert "joints that change places when an image is mirrored, by their names: right_eye and left_eye" in caplog.text
