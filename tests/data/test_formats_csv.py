# SPDX-License-Identifier: Apache-2.0
"""A plain CSV file of joints."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from fastpose.data.annotation_rows import AnnotationError
from tests.helpers.formats import JOINTS, TRAINED, VALIDATED, names, opened, picture, read, write_csv


@pytest.fixture
def root(tmp_path) -> Path:
    return write_csv(tmp_path / "csv")


def write(root: Path, text: str | bytes) -> Path:
    (root / "train.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return root


def test_joints_have_the_order_of_the_training_file(root):
    dataset = opened(root, "csv")
    train, valid = dataset.read("train"), dataset.read("valid")
    assert dataset.skeleton.joints == train.skeleton.joints == valid.skeleton.joints == JOINTS
    assert dataset.skeleton.mirror_pairs == ((2, 1),)  # left_eye and right_eye
    assert (names(train), names(valid)) == (["a.png", "b.png"], ["c.png"])
    np.testing.assert_array_equal(train.keypoints, TRAINED)
    np.testing.assert_array_equal(valid.keypoints, VALIDATED)  # whose lines are in another order
    assert train.visible.tolist() == [[1, 1, 1], [1, 1, 0]]
    # 40 x 30 px at (20, 20), 4 px wider on each side, without a pixel: the middle of 47 x 37 px at (16, 16).
    np.testing.assert_allclose(train.center[0], [39.5, 34.5], atol=1e-4)
    np.testing.assert_allclose(train.scale[0] * 200, [58.75, 58.75], atol=1e-3)


def test_boxes_are_cut_to_the_image(root):
    persons = read(write(root, "image,joint,x,y\na.png,nose,2,30\na.png,chin,42,50\n"), "csv")
    # 48 x 28 px at (-2, 26), of which 46 x 28 at (0, 26) are inside; without a pixel 45 x 27.
    np.testing.assert_allclose(persons.center[0], [22.5, 39.5], atol=1e-4)
    np.testing.assert_allclose(persons.scale[0] * 200, [56.25, 56.25], atol=1e-3)


def test_a_skeleton_gives_the_joints_their_order(root, tmp_path, caplog):
    (tmp_path / "eyes.yaml").write_text("joints: [left_eye, right_eye, chin, nose]\nmirror_pairs: [[0, 1]]\n")
    persons = read(root, "csv", skeleton=str(tmp_path / "eyes.yaml"))
    assert persons.skeleton.name == "eyes"
    assert persons.keypoints[0].tolist() == [[40, 50], [60, 20], [0, 0], [20, 30]]
    assert persons.visible[0].tolist() == [1, 1, 0, 1]
    assert "train.csv: has no chin of skeleton 'eyes', which nobody is annotated with" in caplog.text
    with pytest.raises(
        AnnotationError, match=r"train\.csv: its joints are .*, and skeleton 'lsp' has no \"nose\", got"
    ):
        read(root, "csv", skeleton="lsp")


def test_joints_that_one_split_lacks_are_called_by_the_other_s_file(root, caplog):
    (root / "valid.csv").write_text("image,joint,x,y\nc.png,nose,30,20\nc.png,left_eye,50,60\n")
    read(root, "csv", "valid")
    assert "valid.csv: has no right_eye of train.csv, which nobody is annotated with" in caplog.text
    (root / "valid.csv").write_text("image,joint,x,y\nc.png,nose,30,20\nc.png,left_ey,50,60\n")
    with pytest.raises(AnnotationError, match=r'valid\.csv: its joints are .*, and train\.csv has no "left_ey", got'):
        read(root, "csv", "valid")


def test_nobody_with_an_annotated_joint_is_an_error_without_talk_of_detections(root):
    (root / "valid.csv").write_text(
        "image,joint,x,y\nc.png,nose,,\nc.png,left_eye,,\nc.png,right_eye,,\nd.png,nose,,\n"
    )
    with pytest.raises(AnnotationError, match=r"valid\.csv: valid: nobody has an annotated joint on its 2 images$"):
        read(root, "csv", "valid")


def test_a_split_that_is_made_is_a_note(root, caplog):
    caplog.set_level(logging.INFO)
    both = {"train_annotations": "both.csv", "valid_annotations": "both.csv"}
    lines = [f"{number}.png,nose,{number},20\n{number}.png,chin,{number},40\n" for number in range(20)]
    (root / "both.csv").write_text("image,joint,x,y\n" + "".join(lines))
    for number in range(20):
        picture(root / f"{number}.png")
    opened(root, "csv", **both).read("valid")
    text = "both.csv: has no split of its own: 2 of its 20 images are for validation, every 10th"
    assert text in caplog.text
    (root / "list").write_text("3.png\n")
    opened(root, "csv", split_list="list", **both).read("valid")
    assert "both.csv: has no split of its own: 1 of its 20 images are for validation, as split_list says" in caplog.text


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_persons_are_told_apart_and_cells_may_be_empty(root, mark):
    lines = [
        "X,Image,Person,Joint,Y",
        "1,a.png,left,nose,2",
        "3,a.png,right,nose,4",
        "9,a.png,left,chin,9",
        ",a.png,right,chin,",
    ]
    text = "\ufeff" + "\r\n".join(lines) + "\r\n\r\n"
    persons = read(write(root, text.replace(",", mark)), "csv", skeleton="")
    assert persons.keypoints.tolist() == [[[1, 2], [9, 9]]]  # the other has but one joint, and so no box
    assert persons.visible.tolist() == [[1, 1]]


def test_images_are_in_the_folder_that_is_named(root):
    picture(root / "pictures/über, alles.png")
    write(root, 'image,joint,x,y\n"über, alles.png",nose,1,2\n"über, alles.png",chin,30,40\n')
    persons = read(root, "csv", images="pictures")
    assert names(persons) == ["über, alles.png"]
    with pytest.raises(AnnotationError, match=r"train\.csv, line 2: image 'über, alles\.png' is not in"):
        read(root, "csv")


def test_messages_name_the_first_line_of_a_person(root):
    write(root, "image,person,joint,x,y\na.png,1,nose,1,2\na.png,2,nose,3,4\na.png,1,chin,30,40\na.png,2,chin,5,60\n")
    origins = read(root, "csv", skeleton="").origins([0, 1])
    assert [(one.record, one.image) for one in origins] == [("line 2", "a.png"), ("line 3", "a.png")]


def test_of_a_picture_that_is_not_there_no_size_is_said_to_be_taken(root, caplog):
    write(root, "image,joint,x,y\ngone.png,nose,1,2\ngone.png,chin,30,40\na.png,nose,1,2\na.png,chin,30,40\n")
    assert names(read(root, "csv", skeleton="", missing_images="drop")) == ["a.png"]
    assert "taken from the pictures" not in caplog.text


def test_one_file_may_have_both_splits(root):
    text = "image,joint,x,y\n"
    for number in range(20):
        picture(root / f"{number}.png")
        text += f"{number}.png,nose,1,2\n{number}.png,chin,30,40\n"
    write(root, text)
    both = {"train_annotations": "train.csv", "valid_annotations": "train.csv"}
    dataset = opened(root, "csv", **both)
    assert names(dataset.read("valid")) == ["9.png", "19.png"]
    assert names(dataset.read("train")) == [f"{n}.png" for n in range(19) if n != 9]
    (root / "list").write_text("# ours\n3.png\n\n")
    dataset = opened(root, "csv", split_list="list", **both)
    assert (names(dataset.read("valid")), len(dataset.read("train"))) == (["3.png"], 19)
    (root / "list").write_text("3.png\nx.png\n")
    with pytest.raises(AnnotationError, match=r'list: names "x\.png", which .*train\.csv has not'):
        opened(root, "csv", split_list="list", **both).read("valid")
    (root / "list").write_text("")
    with pytest.raises(AnnotationError, match=r"no image is left for valid: of its 20 images 0 are for validation"):
        opened(root, "csv", split_list="list", **both).read("valid")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"expected columns image, person, joint, x, y, visible, .*; there is no image, got \[\"?\"?\]"),
        ("image,joint,x\n", r"expected columns .*; there is no y, got \[\"image\", \"joint\", \"x\"\]"),
        ("image,joint,x,y,score\n", r'expected columns .*; "score" is another'),
        (
            ",image,joint,x,y\n0,a.png,nose,1,2\n",
            r'expected columns .*; "" is pandas\' index: write it with index=False',
        ),
        ("Unnamed: 0,image,joint,x,y\n", r'expected .*; "unnamed: 0" is pandas\' index: write it with index=False'),
        ("image,joint,x,y,x\n", r'expected columns .*; "x" is there twice'),
        ("image,joint,x,y\n", r"has no line beside that of the columns"),
        ("image,joint,x,y\na.png,nose,1\n", r"line 2: expected 4 cells, got 3: \[\"a\.png\", \"nose\", \"1\"\]"),
        ("image,joint,x,y\na.png,nose,1,2\n,nose,1,2\n", r"line 3: image must be a file name, got nothing"),
        ("image,joint,x,y\na.png,,1,2\n", r'expected names of joints, got ""'),
        ("image,joint,x,y\na.png,nose,1,2\na.png,nose,1,2\n", r'line 3: "nose" on "a\.png" is in line 2, too'),
        (
            "image,person,joint,x,y\na.png,1,nose,1,2\na.png,1,nose,1,2\n",
            r'line 3: "nose" of person "1" on "a\.png" is in line 2, too',
        ),
        ("image,joint,x,y\na.png,nose,one,2\n", r'line 2: x must be a number, got "one"'),
        ("image;joint;x;y\na.png;nose;1,5;2\n", r'line 2: x must be a number, got "1,5"'),
        ("image,joint,x,y\na.png,nose,1,\n", r"line 2: expected finite x and y below 1e\+06, got 1 and nan"),
        ("image,joint,x,y\na.png,nose,1e308,2\n", r"line 2: expected finite x and y .*, got 1e\+308 and 2"),
        ("image,joint,x,y\na.png,nose,inf,2\n", r"line 2: expected finite x and y .*, got inf and 2"),
        ("image,joint,x,y,visible\na.png,nose,1,2,3\n", r'line 2: visible must be 0, 1 or 2, got "3"'),
        ("image,joint,x,y,visible\na.png,nose,1,2,yes\n", r'line 2: visible must be a number, got "yes"'),
        ('image,joint,x,y\n"a.png,nose,1,2\n', r"line 2: is not CSV: unexpected end of data"),
        ("image,joint,x,y\n" + "a" * 200_000 + ",nose,1,2\n", r"line 2: is not CSV: field larger than field limit"),
        ("image,joint,x,y\na\0.png,nose,1,2\n", r"line 2: expected text, got a NUL"),
        ("image,joint,x,y\nä.png,nose,1,2\n".encode("latin-1"), r"expected UTF-8, got b'\\xe4\.png.*' at byte 16"),
        ("image,joint,x,y\na.png,nose,1,2\n".encode("utf-16"), r"expected UTF-8, got b'\\xff\\xfe"),
    ],
)
def test_a_file_that_is_none_is_an_error_with_its_line(root, text, message):
    with pytest.raises(AnnotationError, match=rf"train\.csv[:,] {message}"):
        read(write(root, text), "csv")


def test_a_picture_outside_of_the_folder_is_refused(root, tmp_path):
    picture(tmp_path / "z.png")
    for name in ("../z.png", str(tmp_path / "z.png")):
        write(root, f"image,joint,x,y\n{name},nose,1,2\n{name},chin,30,40\n")
        with pytest.raises(AnnotationError, match=r"image '.*z\.png' leads outside the image folder"):
            read(root, "csv")


def test_a_small_file_does_not_become_a_large_one(root):
    head = "image,joint,x,y\n"
    write(root, head + "".join(f"a.png,{n},1,2\n" for n in range(1001)))
    with pytest.raises(AnnotationError, match=r"train\.csv: expected at most 1,000 joints, got 1,001"):
        read(root, "csv")
    write(root, head + "".join(f"{n}.png,{n % 500},1,2\n" for n in range(2500)))
    with pytest.raises(AnnotationError, match=r"got 2,500 lines for 500 joints of 2,500 persons"):
        read(root, "csv")


def test_a_file_above_the_limit_is_refused(root):
    with pytest.raises(ValueError, match=r"train\.csv: expected at most 20 bytes"):
        read(root, "csv", max_annotation_bytes=20)
