# SPDX-License-Identifier: Apache-2.0
"""LSP's joints.mat, and that of its extension."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from fastpose.data.annotation_rows import AnnotationError
from fastpose.skeletons import find_skeleton
from tests.helpers.formats import names, opened, picture, read


def write(root: Path, joints: np.ndarray, pictures: list[str]) -> Path:
    for name in pictures:
        picture(root / "images" / name)
    root.mkdir(exist_ok=True)
    savemat(root / "joints.mat", {"joints": joints})
    return root


def places(persons: int) -> np.ndarray:
    """x and y [14, 2, N]: joint j of person n is at (10 + 2 j + n % 10, 20 + j)."""
    joint, person = np.arange(14.0)[:, None], np.arange(float(persons)) % 10
    return np.stack([10 + 2 * joint + person, 20 + joint + 0 * person], axis=1)


def test_lsp_is_split_as_its_authors_do_and_occluded_joints_are_annotated(tmp_path):
    points = places(2000)
    flags = np.zeros((14, 1, 2000))
    flags[3] = 1  # occluded, with LSP
    joints = np.concatenate([points, flags], axis=1).transpose(1, 0, 2)
    root = write(tmp_path / "lsp", joints, ["im0001.jpg", "im1000.jpg", "im1001.jpg"])
    dataset = opened(root, "lsp", missing_images="drop")
    train, valid = dataset.read("train"), dataset.read("valid")
    assert dataset.skeleton == train.skeleton == find_skeleton("lsp")
    assert (names(train), names(valid)) == (["im0001.jpg", "im1000.jpg"], ["im1001.jpg"])
    assert (train.records, valid.records) == (("person 1", "person 1000"), ("person 1001",))
    assert train.visible.all()
    np.testing.assert_array_equal(train.keypoints[0], points[:, :, 0])
    np.testing.assert_array_equal(valid.keypoints[0], points[:, :, 1000])
    assert [one["keypoints"][11] for one in valid.truth["annotations"]] == [1]  # COCO's v of an occluded joint


def test_of_the_extension_joints_with_0_are_not_annotated(tmp_path):
    flags = np.ones((14, 1, 20))
    flags[3], flags[5, :, 0] = 0, 0
    joints = np.concatenate([places(20), flags], axis=1)
    joints[5, :2, 0] = np.nan  # which may then be anything
    root = write(tmp_path / "lspet", joints, [f"im{n:05d}.jpg" for n in range(1, 21)])
    dataset = opened(root, "lsp")
    train, valid = dataset.read("train"), dataset.read("valid")
    assert names(valid) == ["im00010.jpg", "im00020.jpg"]  # every tenth
    assert len(train) == 18
    assert train.visible[0].tolist() == [1, 1, 1, 0, 1, 0, *[1] * 8]
    assert train.visible[1].tolist() == [1, 1, 1, 0, *[1] * 10]
    # The joints' box, 26 x 13 px at (10, 20), a tenth of 26 wider on each side: 31.2 x 18.2 at (7.4, 17.4). COCO's
    # reader takes a pixel off and makes it a square, 1.25 times as large.
    np.testing.assert_allclose(train.center[0], [22.5, 26], atol=1e-4)
    np.testing.assert_allclose(train.scale[0] * 200, [30.2 * 1.25] * 2, atol=1e-3)


def test_images_may_be_elsewhere(tmp_path):
    root = write(tmp_path / "lsp", np.concatenate([places(2), np.ones((14, 1, 2))], axis=1), [])
    for name in ("im00001.jpg", "im00002.jpg"):
        picture(root / "pictures" / name)
    (root / "list").write_text("im00002.jpg\n")
    assert names(read(root, "lsp", images="pictures", split_list="list")) == ["im00001.jpg"]
    assert names(read(root, "lsp", "valid", images="pictures", split_list="list")) == ["im00002.jpg"]


def test_two_files_are_a_split_each_with_the_images_beside_them(tmp_path):
    joints = np.concatenate([places(3), np.ones((14, 1, 3))], axis=1)
    write(tmp_path / "lspet", joints, [f"im{n:05d}.jpg" for n in (1, 2, 3)])
    write(tmp_path / "lsp", joints.transpose(1, 0, 2)[:, :, :2], ["im0001.jpg", "im0002.jpg"])
    files = {"train_annotations": "lspet/joints.mat", "valid_annotations": "lsp/joints.mat"}
    dataset = opened(tmp_path, "lsp", **files)
    assert names(dataset.read("train")) == ["im00001.jpg", "im00002.jpg", "im00003.jpg"]
    assert names(dataset.read("valid")) == ["im0001.jpg", "im0002.jpg"]


def changed(at: tuple[int, ...], value: float) -> np.ndarray:
    joints = np.concatenate([places(2), np.ones((14, 1, 2))], axis=1)
    joints[at] = value
    return joints


@pytest.mark.parametrize(
    ("joints", "message"),
    [
        (
            np.zeros((16, 3, 5)),
            r"joints must be numbers of shape \(3, 14, N\) or \(14, 3, N\), got float64 \(16, 3, 5\)",
        ),
        (np.zeros((3, 14, 2, 2)), r"joints must be numbers of shape .* got float64 \(3, 14, 2, 2\)"),
        (np.zeros((14, 3, 100_001), np.uint8), r"expected at most 100,000 persons, got 100,001"),
        (changed((2, 2, 0), 3), r"im00001\.jpg, right_hip: the third number must be 0 or 1, got 3"),
        (changed((2, 2, 0), np.nan), r"im00001\.jpg, right_hip: the third number must be 0 or 1, got nan"),
        (changed((2, 0, 1), np.inf), r"im00002\.jpg, right_hip: expected finite x and y below 1e\+06, got inf and 22"),
        (
            changed((2, 1, 1), 1e308),
            r"im00002\.jpg, right_hip: expected finite x and y below 1e\+06, got 15 and 1e\+308",
        ),
    ],
)
def test_an_array_that_is_none_is_an_error(tmp_path, joints, message):
    root = write(tmp_path / "lsp", joints, [])
    with pytest.raises(AnnotationError, match=rf"joints\.mat[:,] {message}"):
        opened(root, "lsp").skeleton  # noqa: B018


def test_a_missing_file_is_named_with_its_option(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train_annotations: no file .*joints\.mat"):
        read(tmp_path, "lsp")
    root = write(tmp_path / "lsp", changed((0, 0, 0), 5), [])
    (root / "images").mkdir()
    with pytest.raises(AnnotationError, match=r"joints\.mat, person 1: image 'im00001\.jpg' is not in"):
        read(root, "lsp")
