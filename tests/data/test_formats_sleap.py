# SPDX-License-Identifier: Apache-2.0
"""SLEAP's labels, read through sleap-io."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from fastpose import convert
from fastpose.data.annotation_rows import AnnotationError
from fastpose.option import OptionError
from fastpose.skeletons import Skeleton
from tests.helpers.formats import JOINTS, TRAINED, VALIDATED, names, opened, picture, read

NAN = np.nan


@pytest.fixture
def sleap() -> Any:
    return pytest.importorskip("sleap_io", reason="the package sleap-io is not installed")


def labels(
    sleap: Any, videos: list[Any], frames: list[tuple[Any, int, list[np.ndarray]]], *, predicted: bool = False
) -> Any:
    edges, pairs = [("nose", "left_eye"), ("nose", "right_eye")], [("left_eye", "right_eye")]
    skeleton = sleap.Skeleton(nodes=list(JOINTS), edges=edges, symmetries=pairs)
    found = []
    for video, number, poses in frames:
        instances = [sleap.Instance.from_numpy(np.asarray(pose, float), skeleton=skeleton) for pose in poses]
        if predicted:
            points = {"point_scores": np.ones(3), "score": 0.9, "skeleton": skeleton}
            instances.append(sleap.PredictedInstance.from_numpy(np.asarray(poses[0], float), **points))
        found.append(sleap.LabeledFrame(video=video, frame_idx=number, instances=instances))
    return sleap.Labels(videos=videos, skeletons=[skeleton], labeled_frames=found)


def poses() -> tuple[np.ndarray, np.ndarray]:
    train = TRAINED.astype(float)
    train[1, 2] = NAN
    return train, VALIDATED.astype(float)


def write(sleap: Any, root: Path, *, embed: bool) -> Path:
    """Two frames to train on and one to validate on, of a video that is a list of pictures or is in the files."""
    root.mkdir()
    pictures = [str(picture(root / f"frames/{name}.png")) for name in "abc"]
    for number, name in enumerate(pictures):
        cv2.imwrite(name, np.full((100, 200, 3), 50 + 50 * number, np.uint8))
    train, valid = poses()
    suffix = "pkg.slp" if embed else "slp"
    for name, numbers in (("train", [0, 2]), ("val", [1])):
        video = sleap.Video.from_filename(pictures)
        frames = [(video, n, [pose]) for n, pose in zip(numbers, train if name == "train" else valid, strict=True)]
        labels(sleap, [video], frames, predicted=name == "train").save(
            str(root / f"{name}.{suffix}"), embed=embed, verbose=False
        )
    return root


FILES = {"train_annotations": "train.slp", "valid_annotations": "val.slp"}


def test_instances_of_users_are_read_and_predicted_ones_left_out(sleap, tmp_path, caplog):
    dataset = opened(write(sleap, tmp_path / "sleap", embed=False), "sleap", **FILES)
    train, valid = dataset.read("train"), dataset.read("valid")
    assert (train.skeleton.joints, train.skeleton.limbs) == (JOINTS, ((0, 1), (0, 2)))
    assert {frozenset(pair) for pair in train.skeleton.mirror_pairs} == {frozenset((1, 2))}
    assert (names(train), names(valid)) == (["a.png", "c.png"], ["b.png"])
    np.testing.assert_allclose(train.keypoints, TRAINED)
    np.testing.assert_allclose(valid.keypoints, VALIDATED)
    assert train.visible.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert train.records == ("video 0, frame 0, instance 0", "video 0, frame 2, instance 0")
    assert "train.slp: left out: 2 predicted instances (the first: video 0, frame 0)" in caplog.text


def test_frames_in_the_file_become_pictures_by_convert(sleap, tmp_path, capsys):
    root, out = write(sleap, tmp_path / "sleap", embed=True), tmp_path / "out"
    with pytest.raises(
        OptionError, match=r"dataset: .*train\.pkg\.slp has 2 frames of videos, and pictures are needed: "
    ):
        read(root, "sleap")
    assert convert.main([str(root), str(out), "--dataset", "sleap"]) == 0
    assert "--images images" in capsys.readouterr().out
    files = {"train_annotations": "annotations/train.json", "valid_annotations": "annotations/valid.json"}
    dataset = opened(out, "coco", skeleton=str(out / "skeleton.yaml"), **files)
    train, valid = dataset.read("train"), dataset.read("valid")
    assert names(train) == ["train-0-000000.png", "train-0-000002.png"]
    assert names(valid) == ["val-0-000001.png"]
    np.testing.assert_allclose(train.keypoints, TRAINED)
    np.testing.assert_allclose(valid.keypoints, VALIDATED)
    assert [cv2.imread(str(path)).mean() for path in train.image_paths] == [50, 150]
    assert json.loads((out / "annotations/train.json").read_text())["images"][0] == {
        "id": 1,
        "file_name": "train-0-000000.png",
        "width": 200,
        "height": 100,
    }


def test_files_that_are_none_are_errors(sleap, tmp_path):
    (tmp_path / "train.slp").write_bytes(b"no HDF5")
    with pytest.raises(AnnotationError, match=r"train\.slp: is not a file of SLEAP: "):
        read(tmp_path, "sleap", **FILES)
    sleap.Labels().save(str(tmp_path / "val.slp"), verbose=False)
    with pytest.raises(AnnotationError, match=r"val\.slp: expected one skeleton, got 0"):
        opened(tmp_path, "sleap", train_annotations="val.slp", valid_annotations="val.slp").read("train")


def test_symmetries_that_names_contradict_are_an_error(sleap, tmp_path):
    made = labels(sleap, [], [])
    (skeleton,) = made.skeletons
    skeleton.add_symmetry("nose", "left_eye")
    made.save(str(tmp_path / "train.slp"), verbose=False)
    with pytest.raises(
        AnnotationError, match=r"train\.slp: symmetries: expected every joint in at most one mirror pair, got \[\["
    ):
        read(tmp_path, "sleap", **FILES)
    skeleton.symmetries = []
    skeleton.add_symmetry("nose", "left_eye")
    made.save(str(tmp_path / "train.slp"), verbose=False)
    message = r"train\.slp: symmetries: expected \[right_eye, left_eye\], as the names say, got \[.*nose.*\]"
    with pytest.raises(AnnotationError, match=message):
        read(tmp_path, "sleap", **FILES)


def test_symmetries_must_be_those_of_the_skeleton_that_is_named(sleap, tmp_path):
    root = write(sleap, tmp_path / "sleap", embed=False)
    other = Skeleton("other", JOINTS, (), ())
    assert len(opened(root, "sleap", other, **FILES).read("train")) == 2  # no pairs at all: others warn of that
    other = Skeleton("other", (*JOINTS, "tail"), ((0, 3),), ())
    with pytest.raises(AnnotationError, match=r"train\.slp: symmetries: expected the mirror pairs of skeleton 'other'"):
        opened(root, "sleap", other, **FILES).read("train")


def write_video(sleap: Any, root: Path, path: str) -> Path:
    """Labels of the first frame of a video that is not there yet."""
    root.mkdir()
    video = sleap.Video(filename=path, open_backend=False)
    labels(sleap, [video], [(video, 0, [poses()[0][0]])]).save(str(root / "train.slp"), verbose=False)
    return root


def test_a_video_outside_of_the_data_root_is_not_opened(sleap, tmp_path):
    (tmp_path / "other.mp4").write_bytes(b"")
    root = write_video(sleap, tmp_path / "sleap", str(tmp_path / "other.mp4"))
    with pytest.raises(
        AnnotationError, match=r"train\.slp: video .*other\.mp4\" is not in .*: name its folder with images"
    ):
        read(root, "sleap", **FILES)


def test_a_video_that_was_moved_is_found_by_its_name(sleap, tmp_path):
    root = write_video(sleap, tmp_path / "sleap", "C:\\videos\\mouse.mp4")
    (root / "videos").mkdir()
    (root / "videos/mouse.mp4").write_bytes(b"no video")
    dataset = opened(root, "sleap", images="videos", **FILES)
    assert list(dataset.as_coco("train").frames) == ["train-0-000000.png"]
    with pytest.raises(OptionError, match=r"train\.slp has 1 frames of videos"):
        dataset.read("train")


def test_without_sleap_io_a_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sleap_io", None)
    (tmp_path / "train.slp").write_bytes(b"")
    with pytest.raises(OptionError, match=r"dataset: sleap is read by the package sleap-io, .*: pip install sleap-io"):
        read(tmp_path, "sleap", **FILES)
