# SPDX-License-Identifier: Apache-2.0
import copy
import errno
import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from fastpose.data.images import read_image
from fastpose.data.mpii import AnnotationError, PckhScorer, read_ground_truth, read_mpii

REAL_MPII = Path(os.environ.get("FASTPOSE_REAL_DATA") or Path(__file__).parents[2] / ".." / "shared" / "data") / "mpii"
real = pytest.mark.skipif(not REAL_MPII.is_dir(), reason="no real data")


@pytest.fixture
def images(tmp_path):
    """An image folder; the files are empty: an image is only bad when its pixels are needed."""
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.jpg", "b.jpg", "c.jpg", "sub/d.jpg"):
        (folder / name).touch()
    return folder


def record(image: str = "a.jpg", **changes: object) -> dict:
    joints = [[10.0 * j + 1, 5.0 * j + 2] for j in range(16)]
    joints[3] = [-1.0, -1.0]
    vis = [1] * 16
    vis[3] = 0
    return {"image": image, "center": [100.0, 200.0], "scale": 2.0, "joints": joints, "joints_vis": vis, **changes}


def write(folder: Path, content: object) -> Path:
    path = folder / "valid.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


# ---- community JSON ----


def test_json_becomes_zero_based_with_the_box_of_simple_baselines(tmp_path, images):
    persons = read_mpii(write(tmp_path, [record("b.jpg"), record("sub/d.jpg"), record("b.jpg")]), images)
    assert len(persons) == 3
    # x: 100 − 1; y: 200 + 15 · 2 − 1; scale: 2 · 1.25
    np.testing.assert_array_equal(persons.center, [[99, 229]] * 3)
    np.testing.assert_array_equal(persons.scale, [[2.5, 2.5]] * 3)
    np.testing.assert_array_equal(persons.keypoints[1, 2], [20, 11])
    np.testing.assert_array_equal(persons.visible[0], [1, 1, 1, 0] + [1] * 12)
    assert persons.image_paths == ((images / "b.jpg").resolve(), (images / "sub/d.jpg").resolve())
    np.testing.assert_array_equal(persons.image_index, [0, 1, 0])
    np.testing.assert_array_equal(persons.source_row, [0, 1, 2])
    assert "head_size" not in persons.extras


def test_an_unknown_position_is_not_adjusted(tmp_path, images):
    persons = read_mpii(write(tmp_path, [record(center=[-1, -1])]), images)
    np.testing.assert_array_equal(persons.center, [[-2, -2]])
    np.testing.assert_array_equal(persons.scale, [[2, 2]])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        (" \n", "the file is empty"),
        ("{", "is not JSON"),
        ("[" * 100_000, "at most 100 deep in each other, got more"),
        ("{}", "must be a list"),
        ("[]", "must be a list"),
        ([3], "record 0: must be an object"),
        ([{}], "record 0: image"),
        ([record(), record(image=7)], "record 1: image"),
        ([record(), record(joints=[[1, 2]] * 15)], r"record 1: joints must be numbers of shape \[16, 2\]"),
        ([record(joints=[[1, 2]] * 15 + [[1]])], "record 0: joints must be"),
        ([record(joints=[[1, "2"]] * 16)], "record 0: joints must be"),
        ([record(joints=[[1, None]] * 16)], "record 0: joints must be"),
        ([record(joints=[[1, float("nan")]] * 16)], "record 0: joints must be finite"),
        ([record(joints=[[1, 1e300]] * 16)], "record 0: joints must be finite"),
        ([record(joints=[[1, 10**400]] * 16)], "record 0: joints must be"),
        ([record(joints_vis=[1] * 15)], "record 0: joints_vis must be"),
        ([record(joints_vis=[2] * 16)], "record 0: joints_vis must be 0 or 1"),
        ([record(joints_vis=[0.5] * 16)], "record 0: joints_vis must be 0 or 1"),
        ([record(center=[1, 2, 3])], "record 0: center must be"),
        ([record(center=[float("inf"), 2])], "record 0: center must be finite"),
        ([record(scale=0)], "record 0: scale must be positive"),
        ([record(scale=-1.5)], "record 0: scale must be positive"),
        ([record(scale=[1, 2])], "record 0: scale must be a number"),
        ([record(scale=True)], "record 0: scale must be a number"),
        ([record(scale=float("nan"))], "record 0: scale must be finite"),
        ([{k: v for k, v in record().items() if k != "scale"}], "record 0: has no 'scale'"),
        ([record(), record("absent.jpg")], "record 1: image 'absent.jpg' is not in"),
        ([record("sub")], "record 0: image 'sub' is not in"),
        ([record("x\0.jpg")], "record 0: image .* is not a path"),
        ([record("x" * 5000)], "record 0: image .* is not in"),
    ],
)
def test_a_bad_json_is_an_error_with_file_and_record(tmp_path, images, content, message):
    with pytest.raises(AnnotationError, match=rf"valid\.json.*{message}"):
        read_mpii(write(tmp_path, content), images)


@pytest.mark.parametrize("value", ["absent", None, [], [0] * 16])
def test_records_without_joints_are_persons_to_predict(tmp_path, images, value):
    """As all of the community's annot/test.json."""
    records = [record(), record("b.jpg"), record("c.jpg", joints=None, joints_vis=None)]
    records[0].pop("joints")
    if value == "absent":
        records[0].pop("joints_vis")
    else:
        records[0]["joints_vis"] = value
    persons = read_mpii(write(tmp_path, records), images)
    np.testing.assert_array_equal(persons.visible.sum(axis=1), [0, 15, 0])
    np.testing.assert_array_equal(persons.keypoints[[0, 2]], 0)
    np.testing.assert_array_equal(persons.center, [[99, 229]] * 3)


@pytest.mark.parametrize("nowhere", [None, [None, None], [float("nan"), 1], [], "none", [10**400, -1], [1e300, 1]])
def test_what_stands_for_a_joint_that_is_not_annotated_does_not_matter(tmp_path, images, nowhere):
    joints = record()["joints"]
    joints[3] = nowhere
    flags = [True, 1.0, *[1] * 14]
    flags[3] = False
    persons = read_mpii(write(tmp_path, [record(joints=joints, joints_vis=flags)]), images)
    np.testing.assert_array_equal(persons.visible[0], [1, 1, 1, 0] + [1] * 12)
    np.testing.assert_array_equal(persons.keypoints[0, 3], [0, 0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"joints": [[1, 2]] * 7 + [[1, None]] + [[1, 2]] * 8}, r"record 0: joints must be numbers .*, for thorax$"),
        (
            {"joints": [[1, 2]] * 9 + [[1, float("nan")]] + [[1, 2]] * 6},
            r"record 0: joints must be finite .*, for head_top$",
        ),
        ({"joints": [[1, 2]] * 9 + [[1, -(2**63)]] + [[1, 2]] * 6}, r"record 0: joints must be .*, for head_top$"),
        ({"joints": [[1, 2]] * 9 + ["no"] + [[1, 2]] * 6}, r"record 0: joints must be numbers .*, for head_top$"),
        ({"joints_vis": [1] * 5 + [-1] + [1] * 10}, r"record 0: joints_vis must be 0 or 1, got -1 for l_ankle"),
        ({"joints": None}, "record 0: joints must be"),
        ({"joints_vis": None}, "record 0: joints_vis must be"),
        ({"scale": 1e-60}, "record 0: scale must be positive"),
    ],
)
def test_what_is_refused_names_the_joint(tmp_path, images, changes, message):
    with pytest.raises(AnnotationError, match=rf"valid\.json, {message}"):
        read_mpii(write(tmp_path, [record(joints_vis=[1] * 16) | changes]), images)


@pytest.mark.parametrize("missing_images", ["error", "drop", "keep"])
@pytest.mark.parametrize(
    "name", ["../secret.jpg", "sub/../../secret.jpg", "{root}/secret.jpg", "out/../secret.jpg", "sub/../link.jpg"]
)
def test_a_path_that_leaves_the_image_folder_is_an_error(tmp_path, images, name, missing_images):
    secret = tmp_path / "secret.jpg"
    secret.touch()
    (images / "link.jpg").symlink_to(secret)
    (images / "out").symlink_to(tmp_path)
    annotations = write(tmp_path, [record(), record(name.format(root=tmp_path))])
    with pytest.raises(AnnotationError, match=r"valid\.json, record 1: image .* outside"):
        read_mpii(annotations, images, missing_images=missing_images)


@pytest.mark.parametrize("name", ["link.jpg", "out/picture.jpg"])
def test_links_that_the_user_made_inside_the_image_folder_are_followed(tmp_path, images, name):
    picture = tmp_path / "picture.jpg"
    picture.touch()
    (images / "link.jpg").symlink_to(picture)
    (images / "out").symlink_to(tmp_path)
    assert read_mpii(write(tmp_path, [record(name)]), images).image_paths == (picture.resolve(),)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        (r"sub\deep.jpg", "there is 'sub/deep.jpg'"),
        ("images/a.jpg", "there is 'a.jpg'"),
        ("D:\\data\\a.jpg", "there is 'a.jpg'"),
        ("A.JPG", "there is 'a.jpg', in other letters"),
        ("caf\u00e9.jpg", "there is 'cafe\u0301.jpg', in another Unicode form"),
        ("none.jpg", "images$"),
    ],
)
def test_an_image_that_is_there_under_another_name_is_named(tmp_path, images, name, hint):
    (images / "sub").mkdir(exist_ok=True)
    for there in ("sub/deep.jpg", "cafe\u0301.jpg"):
        (images / there).touch()
    with pytest.raises(AnnotationError, match=rf"record 0: image .* is not in .*{hint}"):
        read_mpii(write(tmp_path, [record(name)]), images)


@pytest.mark.parametrize("name", ["x\0.jpg", "x\n.jpg", "\ud800.jpg", "x" * 300, "pipe.jpg", "loop.jpg"])
def test_a_name_that_no_picture_has_is_one_printable_line(tmp_path, images, name):
    os.mkfifo(images / "pipe.jpg")
    (images / "loop.jpg").symlink_to(images / "loop.jpg")
    with pytest.raises(AnnotationError, match=r"record 0: image .* is not") as caught:
        read_mpii(write(tmp_path, [record(name)]), images)
    assert str(caught.value).isprintable()


def test_a_folder_that_may_not_be_entered_is_no_missing_image(tmp_path, images, monkeypatch):
    annotations, stat = write(tmp_path, [record("sub/locked.jpg")]), os.stat

    def refuse(path, **options):
        if str(path).endswith("locked.jpg"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", refuse)
    with pytest.raises(PermissionError, match=r"whoever runs this may not read it.*locked\.jpg"):
        read_mpii(annotations, images, missing_images="drop")


def test_an_image_folder_that_is_a_link_is_followed(tmp_path, images):
    (tmp_path / "linked").symlink_to(images)
    persons = read_mpii(write(tmp_path, [record("sub/../a.jpg")]), tmp_path / "linked")
    assert persons.image_paths == ((images / "a.jpg").resolve(),)


def test_drop_keeps_the_persons_whose_image_is_there(tmp_path, images, caplog):
    annotations = write(tmp_path, [record("gone.jpg"), record("b.jpg"), record("gone2.jpg"), record("a.jpg")])
    persons = read_mpii(annotations, images, missing_images="drop")
    np.testing.assert_array_equal(persons.source_row, [1, 3])
    assert [path.name for path in persons.image_paths] == ["b.jpg", "a.jpg"]
    assert "2 of 4 persons left out" in caplog.text
    with pytest.raises(AnnotationError, match="no person has its image"):
        read_mpii(write(tmp_path, [record("gone.jpg")]), images, missing_images="drop")


def test_keep_keeps_the_persons_whose_image_is_elsewhere(tmp_path, caplog):
    annotations = write(tmp_path, [record("sub/gone.jpg"), record("b.jpg"), record("sub/gone.jpg")])
    persons = read_mpii(annotations, tmp_path / "no folder", missing_images="keep")
    assert [path.relative_to(tmp_path / "no folder").as_posix() for path in persons.image_paths] == [
        "sub/gone.jpg",
        "b.jpg",
    ]
    np.testing.assert_array_equal(persons.image_index, [0, 1, 0])
    assert not caplog.text


def test_select_keeps_order_and_only_the_images_in_use(tmp_path, images):
    persons = read_mpii(write(tmp_path, [record("a.jpg"), record("b.jpg"), record("c.jpg")]), images)
    picked = persons.select([2, 0])
    np.testing.assert_array_equal(picked.source_row, [2, 0])
    assert [picked.image_paths[i].name for i in picked.image_index] == ["c.jpg", "a.jpg"]
    assert len(picked.image_paths) == 2
    assert len(persons.select(np.array([False, True, False]))) == 1
    assert len(persons.select([])) == 0


def test_arguments_that_do_not_fit_are_refused(tmp_path, images):
    annotations = write(tmp_path, [record()])
    with pytest.raises(ValueError, match="split"):
        read_mpii(annotations, images, split="train")
    with pytest.raises(ValueError, match="missing_images"):
        read_mpii(annotations, images, missing_images="ignore")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\.json or \.mat"):
        read_mpii(tmp_path / "valid.h5", images)
    with pytest.raises(FileNotFoundError, match="absent"):
        read_mpii(annotations, tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="absent"):
        read_mpii(tmp_path / "absent.json", images)


# ---- gt_valid.mat ----


def ground_truth(records: list[dict], **changes: np.ndarray) -> dict:
    count = len(records)
    boxes = np.zeros((2, 2, count))
    boxes[0] = 5
    boxes[1] = np.array([5 + 30, 5 + 40])[:, None]  # diagonal 50
    return {
        "pos_gt_src": np.array([r["joints"] for r in records]).transpose(1, 2, 0),
        "jnt_missing": 1 - np.array([r["joints_vis"] for r in records], np.uint8).T,
        "headboxes_src": boxes,
        **changes,
    }


@pytest.mark.parametrize("count", [1, 2, 3])
def test_head_size_is_six_tenths_of_the_diagonal(tmp_path, images, count):
    records = [record() for _ in range(count)]
    scipy.io.savemat(tmp_path / "gt.mat", ground_truth(records))
    persons = read_mpii(write(tmp_path, records), images, head_boxes=tmp_path / "gt.mat")
    np.testing.assert_allclose(persons.extras["head_size"], [30] * count)
    truth = read_ground_truth(tmp_path / "gt.mat")
    np.testing.assert_array_equal(truth.keypoints, persons.keypoints)
    np.testing.assert_array_equal(truth.visible, persons.visible)


def test_head_boxes_of_other_persons_are_an_error(tmp_path, images):
    moved = record(joints=[[x + 3, y] for x, y in record()["joints"]])
    for wrong, message in [([record()], "holds 1 persons, .* holds 2"), ([record(), moved], "person 1: .* 3.0 px")]:
        scipy.io.savemat(tmp_path / "gt.mat", ground_truth(wrong))
        with pytest.raises(AnnotationError, match=rf"gt\.mat.*{message}"):
            read_mpii(write(tmp_path, [record(), record()]), images, head_boxes=tmp_path / "gt.mat")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"headboxes_src": np.zeros((2, 2, 2))}, "person 0: headboxes_src"),
        ({"headboxes_src": np.full((2, 2, 2), np.nan)}, "person 0: headboxes_src"),
        ({"headboxes_src": np.zeros((2, 2, 3))}, "headboxes_src must be numbers of shape"),
        ({"jnt_missing": np.zeros((15, 2))}, "jnt_missing must be"),
        ({"pos_gt_src": np.full((16, 2, 2), np.nan)}, "person 0: pos_gt_src"),
        ({"pos_gt_src": "none"}, "pos_gt_src must be"),
    ],
)
def test_a_bad_ground_truth_file_is_an_error_with_file_and_person(tmp_path, changes, message):
    scipy.io.savemat(tmp_path / "gt.mat", ground_truth([record(), record()], **changes))
    with pytest.raises(AnnotationError, match=rf"gt\.mat.*{message}"):
        read_ground_truth(tmp_path / "gt.mat")


def test_a_file_that_is_not_a_mat_is_an_error_with_its_name(tmp_path):
    for content in (b"", b"hello", b"MATLAB 5.0 MAT-file" + bytes(200)):
        (tmp_path / "gt.mat").write_bytes(content)
        with pytest.raises(AnnotationError, match=r"gt\.mat"):
            read_ground_truth(tmp_path / "gt.mat")
    scipy.io.savemat(tmp_path / "gt.mat", {"pos_gt_src": np.zeros(3)})
    with pytest.raises(AnnotationError, match=r"gt\.mat: has no variable jnt_missing, headboxes_src"):
        read_ground_truth(tmp_path / "gt.mat")


def test_persons_without_joints_are_predicted_and_not_scored(tmp_path, images):
    persons = read_mpii(write(tmp_path, [{"image": "a.jpg", "center": [51, 71], "scale": 0.6}]), images)
    scorer = PckhScorer(persons, None)
    scorer.needs(to_train=False)
    predictions = np.full((1, 16, 2), 4, np.float32)
    assert scorer.score(predictions, np.ones((1, 16)), np.array([True])) is None
    written = scipy.io.loadmat(scorer.write(tmp_path, predictions, np.ones((1, 16))))
    np.testing.assert_array_equal(written["preds"], [[[5, 5]] * 16])


# ---- official .mat ----

EMPTY = np.zeros((0, 0))


def structs(elements: list[dict]) -> np.ndarray:
    """A MATLAB struct array [1, n]: all elements have all fields, the others are []."""
    fields = list(dict.fromkeys(field for element in elements for field in element))
    array = np.empty((1, len(elements)), dtype=[(field, object) for field in fields])
    for index, element in enumerate(elements):
        array[0, index] = tuple(element.get(field, EMPTY) for field in fields)
    return array


def point(joint: int, x: float, y: float, **more: object) -> dict:
    return {"x": x, "y": y, "id": joint, **more}


def person(points: list[dict], **changes: object) -> dict:
    rect = {"x1": 10, "y1": 20, "x2": 40, "y2": 60, "scale": 2.0, "objpos": structs([{"x": 100, "y": 200}])}
    return {**rect, "annopoints": structs([{"point": structs(points)}]), **changes}


TWO_POINTS = [point(9, 11.5, 21.25, is_visible=1), point(0, 31, 41, is_visible="0")]


def write_release(path: Path, people_of_image: dict[str, list[dict]], training: list[int]) -> Path:
    annolist = structs(
        [
            {"image": structs([{"name": name}]), "annorect": structs(people) if people else EMPTY}
            for name, people in people_of_image.items()
        ]
    )
    release = {"annolist": annolist, "img_train": np.array([training]), "version": "12"}
    scipy.io.savemat(path, {"RELEASE": release})
    return path


def test_release_one_person_with_one_point(tmp_path, images):
    # Every struct array here has one element, the case that scipy's squeezing changes most.
    release = write_release(tmp_path / "r.mat", {"a.jpg": [person([point(9, 11.5, 21.25)])]}, [1])
    persons = read_mpii(release, images)
    assert len(persons) == 1
    np.testing.assert_array_equal(persons.keypoints[0, 9], [10.5, 20.25])
    np.testing.assert_array_equal(np.flatnonzero(persons.visible[0]), [9])
    np.testing.assert_array_equal(persons.center, [[99, 229]])
    np.testing.assert_array_equal(persons.scale, [[2.5, 2.5]])
    assert "head_size" in persons.extras
    np.testing.assert_allclose(persons.extras["head_size"], [30])  # 0.6 · |(30, 40)|


def test_release_counts_a_joint_as_annotated_whatever_is_visible_says(tmp_path, images):
    points = [
        point(0, 1, 1, is_visible=1),
        point(1, 2, 2, is_visible=0),
        point(2, 3, 3, is_visible="1"),
        point(3, 4, 4, is_visible="0"),
        point(4, 5, 5, is_visible=EMPTY),
        point(5, 6, 6),
    ]
    persons = read_mpii(write_release(tmp_path / "r.mat", {"a.jpg": [person(points)]}, [1]), images)
    np.testing.assert_array_equal(persons.visible[0], [1] * 6 + [0] * 10)
    np.testing.assert_array_equal(persons.keypoints[0, :6, 0], [0, 1, 2, 3, 4, 5])


def test_release_leaves_out_unusable_people_and_says_how_many(tmp_path, images, caplog):
    people = [
        person(TWO_POINTS),
        person([], annopoints=EMPTY),
        person(TWO_POINTS, scale=EMPTY),
        person(TWO_POINTS, objpos=EMPTY),
        person(TWO_POINTS, x1=EMPTY),
        person([point(3, 7, 8)]),
    ]
    content = {"b.jpg": [], "a.jpg": people, "absent.jpg": people, "c.jpg": [{"x1": 1, "y1": 2, "x2": 3, "y2": 4}]}
    release = write_release(tmp_path / "r.mat", content, [1, 1, 0, 1])
    with caplog.at_level(logging.WARNING):
        persons = read_mpii(release, images)
    # Test images have no joints and are not even looked for; c.jpg's person (row 12) has a head box only.
    np.testing.assert_array_equal(persons.source_row, [0, 5])
    assert "5 of 7 persons left out: 2 without joints, 2 without position or scale, 1 without head box" in caplog.text


@pytest.mark.parametrize(
    ("listed", "valid", "train"),
    [
        ("b.jpg\n", [2], [0, 1, 3]),
        ("# validation\n\na.jpg 1\nb.jpg 0\n", [1, 2], [0, 3]),
        ("a.jpg\na.jpg\r\n", [0, 1], [2, 3]),
        ("a.jpg 0\na.jpg\n", [0, 1], [2, 3]),
    ],
)
def test_release_is_split_by_a_list(tmp_path, images, listed, valid, train):
    content = {"a.jpg": [person(TWO_POINTS)] * 2, "b.jpg": [person(TWO_POINTS)], "c.jpg": [person(TWO_POINTS)]}
    release = write_release(tmp_path / "r.mat", content, [1, 1, 1])
    (tmp_path / "valid.txt").write_text(listed)
    for split, rows in (("valid", valid), ("train", train)):
        persons = read_mpii(release, images, split=split, split_list=tmp_path / "valid.txt")  # type: ignore[arg-type]
        np.testing.assert_array_equal(persons.source_row, rows)
    assert len(read_mpii(release, images)) == 4


def test_a_release_without_its_split_list_names_the_option(tmp_path, images):
    release = write_release(tmp_path / "r.mat", {"a.jpg": [person(TWO_POINTS)]}, [1])
    with pytest.raises(ValueError, match=r"names the validation persons \(--split_list\), got none"):
        read_mpii(release, images, split="train")
    with pytest.raises(ValueError, match="split: expected 'train' or 'valid'"):
        read_mpii(release, images, split_list=tmp_path / "valid.txt")


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ("", "names no person"),
        ("a.jpg\nz.jpg\n", "line 2: z.jpg is no"),
        ("b.jpg\n", "line 1: b.jpg is no"),  # a test image
        ("a.jpg 2\n", "line 1: expected .* 0 to 1, got 'a.jpg 2'"),
        ("a.jpg one\n", "line 1: expected"),
        ("a.jpg 0 0\n", "line 1: expected"),
    ],
)
def test_a_split_list_that_does_not_fit_is_an_error_with_its_line(tmp_path, images, listed, message):
    content = {"a.jpg": [person(TWO_POINTS)] * 2, "b.jpg": [person(TWO_POINTS)]}
    release = write_release(tmp_path / "r.mat", content, [1, 0])
    (tmp_path / "valid.txt").write_text(listed)
    with pytest.raises(AnnotationError, match=rf"valid\.txt.*{message}"):
        read_mpii(release, images, split="valid", split_list=tmp_path / "valid.txt")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annopoints": structs([{"point": structs([point(16, 1, 2)])}])}, "id 16"),
        ({"annopoints": structs([{"point": structs([point(1, np.nan, 2)])}])}, "x must be a finite number"),
        ({"annopoints": structs([{"point": structs([{"x": 1, "id": 3, "y": EMPTY}])}])}, "y None"),
        ({"scale": 0.0}, "scale must be positive"),
        ({"scale": "big"}, "scale must be a finite number"),
        ({"x2": 10, "y2": 20}, "the head box is empty"),
        ({"objpos": structs([{"x": np.inf, "y": 1}])}, "x must be a finite number"),
    ],
)
def test_a_bad_person_of_the_release_is_an_error_with_image_and_person(tmp_path, images, changes, message):
    good, bad = person(TWO_POINTS), person(TWO_POINTS, **changes)
    release = write_release(tmp_path / "r.mat", {"a.jpg": [good, bad]}, [1])
    with pytest.raises(AnnotationError, match=rf"r\.mat, image a\.jpg person 1: .*{message}"):
        read_mpii(release, images)


def test_a_release_without_what_it_needs_is_an_error(tmp_path, images):
    no_training = write_release(tmp_path / "r.mat", {"a.jpg": [person(TWO_POINTS)]}, [0])
    with pytest.raises(AnnotationError, match="no usable person"):
        read_mpii(no_training, images)
    short = write_release(tmp_path / "s.mat", {"a.jpg": [person(TWO_POINTS)], "b.jpg": []}, [1])
    with pytest.raises(AnnotationError, match="one img_train for each of 2 images"):
        read_mpii(short, images)
    with pytest.raises(ValueError, match="own head boxes"):
        read_mpii(short, images, head_boxes=short)


# ---- real annotations ----


@real
def test_all_real_validation_annotations_parse_and_agree_with_the_ground_truth_file(tmp_path):
    annot = REAL_MPII / "annot"
    records = json.loads((annot / "valid.json").read_text())
    for r in records:
        (tmp_path / r["image"]).touch()
    persons = read_mpii(annot / "valid.json", tmp_path, head_boxes=annot / "gt_valid.mat")
    assert len(persons) == 2958
    assert len(persons.image_paths) == 2729
    truth = read_ground_truth(annot / "gt_valid.mat")
    np.testing.assert_array_equal(persons.keypoints, truth.keypoints)
    np.testing.assert_array_equal(persons.visible, truth.visible)
    # The first record is 005808361.jpg: scale 4.718488, centre (966, 340), right ankle (804, 711).
    np.testing.assert_allclose(persons.scale[0], 4.718488 * 1.25, rtol=1e-6)
    np.testing.assert_allclose(persons.center[0], [965, 339 + 15 * 4.718488], rtol=1e-6)
    np.testing.assert_array_equal(persons.keypoints[0, 0], [803, 710])

    shuffled = copy.deepcopy(records)
    shuffled[7], shuffled[8] = shuffled[8], shuffled[7]
    with pytest.raises(AnnotationError, match=r"person 7: .* do not list the same persons"):
        read_mpii(write(tmp_path, shuffled), tmp_path, head_boxes=annot / "gt_valid.mat")


@real
def test_the_real_images_are_the_first_rows_and_contain_the_joints():
    annot = REAL_MPII / "annot"
    persons = read_mpii(
        annot / "valid.json", REAL_MPII / "images", head_boxes=annot / "gt_valid.mat", missing_images="drop"
    )
    assert len(persons) == 5
    for index, path, points, visible in zip(
        persons.source_row,
        (persons.image_paths[i] for i in persons.image_index),
        persons.keypoints,
        persons.visible,
        strict=True,
    ):
        height, width = read_image(path).shape[:2]
        inside = (points >= 0).all(axis=1) & (points < [width, height]).all(axis=1)
        assert inside[visible > 0].mean() > 0.8, f"row {index}"
