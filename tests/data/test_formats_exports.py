# SPDX-License-Identifier: Apache-2.0
"""What CVAT and Label Studio export as COCO or YOLO is read, as these programs write it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.formats import names, picture, read

EYES = "name: eyes\njoints: [nose, left_eye, right_eye]\nmirror_pairs: [[right_eye, left_eye]]\n"


def write(root: Path, file: str, contents: Any) -> Path:
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(json.dumps(contents))
    (root / "eyes.yaml").write_text(EYES)
    return root


def read_json(root: Path, file: str, images: str, **options: Any) -> Any:
    files = {"train_annotations": file, "valid_annotations": file, "images": images}
    return read(root, "coco", skeleton=str(root / "eyes.yaml"), **files, **options)


def cvat(name: str) -> dict[str, Any]:
    """CVAT's "COCO Keypoints": a category per skeleton and per label of other shapes, joints called by numbers,
    attributes, and annotations of those shapes among the others."""
    attributes = {"occluded": False, "keyframe": True}
    common = {"image_id": 1, "segmentation": [], "iscrowd": 0, "attributes": attributes}
    return {
        "licenses": [{"name": "", "id": 0, "url": ""}],
        "info": {"contributor": "", "date_created": "", "description": "", "url": "", "version": "", "year": ""},
        "categories": [
            {
                "id": 1,
                "name": "animal",
                "supercategory": "",
                "keypoints": ["1", "2", "3"],
                "skeleton": [[2, 1], [3, 1]],
            },
            {"id": 2, "name": "hand", "supercategory": "", "keypoints": ["1", "2"], "skeleton": [[1, 2]]},
            {"id": 3, "name": "car", "supercategory": "", "keypoints": [], "skeleton": []},
        ],
        "images": [
            {
                "id": 1,
                "width": 200,
                "height": 100,
                "file_name": name,
                "license": 0,
                "flickr_url": "",
                "coco_url": "",
                "date_captured": 0,
            }
        ],
        "annotations": [
            {
                "id": 1,
                "category_id": 1,
                "area": 800.0,
                "bbox": [10.0, 10.0, 80.0, 50.0],
                "keypoints": [20.0, 30.0, 2, 40.0, 50.0, 1, 0.0, 0.0, 0],
                "num_keypoints": 2,
                **common,
            },
            {
                "id": 2,
                "category_id": 2,
                "area": 9.0,
                "bbox": [1.0, 1.0, 3.0, 3.0],
                "keypoints": [1.0, 1.0, 2, 4.0, 4.0, 2],
                "num_keypoints": 2,
                **common,
            },
            {"id": 3, "category_id": 3, "area": 9.0, "bbox": [1.0, 1.0, 3.0, 3.0], **common},
        ],
    }


def test_cvats_coco_keypoints(tmp_path, caplog):
    picture(tmp_path / "images/default/frame_000000.png")
    file = "annotations/person_keypoints_default.json"
    persons = read_json(write(tmp_path, file, cvat("frame_000000.png")), file, "images/default")
    assert names(persons) == ["frame_000000.png"]
    assert persons.keypoints[0, :2].tolist() == [[20, 30], [40, 50]]
    assert persons.visible.tolist() == [[1, 1, 0]]
    assert 'its keypoints are ["1", "2", "3"]' in caplog.text  # numbers instead of names


@pytest.mark.parametrize("name", ["deeper/frame 0.png", "deeper\\frame 0.png"])
def test_names_of_images_may_have_backslashes(tmp_path, name):
    picture(tmp_path / "images/deeper/frame 0.png")
    persons = read_json(write(tmp_path, "all.json", cvat(name)), "all.json", "images")
    assert names(persons) == ["frame 0.png"]


def test_cvats_yolo_poses(tmp_path):
    """ "Ultralytics YOLO Pose": a list of pictures that begins with data/, joints without names, no validation."""
    for number in range(10):
        picture(tmp_path / f"images/train/frame_{number:06d}.PNG")
        label = tmp_path / f"labels/train/frame_{number:06d}.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text("0 0.133333 0.300000 0.266667 0.200000 0.1 0.2 2 0.3 0.4 1 0.0 0.0 0\n")
    (tmp_path / "train.txt").write_text("".join(f"data/images/train/frame_{n:06d}.PNG\n" for n in range(10)))
    (tmp_path / "data.yaml").write_text("path: .\ntrain: train.txt\n\nkpt_shape: [3, 3]\n\nnames:\n  0: animal\n")
    (tmp_path / "eyes.yaml").write_text(EYES)
    train = read(tmp_path, "yolo", skeleton=str(tmp_path / "eyes.yaml"))
    assert (len(train), train.skeleton.name) == (9, "eyes")
    np.testing.assert_allclose(train.keypoints[0, :2], [[20, 20], [60, 40]], atol=1e-3)
    assert names(read(tmp_path, "yolo", "valid")) == ["frame_000009.PNG"]


def test_label_studios_coco(tmp_path):
    """Its labels of keypoints are one category, "default"; boxes are annotations without keypoints; names of images
    begin with images/ and a hash."""
    name = "images/5f1b3c2a-Foto%201.png"
    picture(tmp_path / name)
    contents = {
        "images": [{"width": 200, "height": 100, "id": 0, "file_name": name}],
        "categories": [
            {"id": 0, "name": "animal"},
            {
                "id": 1,
                "name": "default",
                "supercategory": "default",
                "keypoints": ["left_eye", "nose", "right_eye"],
                "skeleton": [],
            },
        ],
        "annotations": [
            {
                "id": 0,
                "image_id": 0,
                "category_id": 0,
                "segmentation": [],
                "bbox": [1.0, 2.0, 90.0, 80.0],
                "ignore": 0,
                "iscrowd": 0,
                "area": 7200.0,
            },
            {
                "id": 1,
                "image_id": 0,
                "category_id": 1,
                "keypoints": [20, 30, 2, 40, 50, 2, 0, 0, 0],
                "num_keypoints": 2,
                "bbox": [20, 30, 20, 20],
                "iscrowd": 0,
            },
        ],
        "info": {
            "year": 2025,
            "version": "1.0",
            "description": "",
            "contributor": "Label Studio",
            "url": "",
            "date_created": "",
        },
    }
    root = write(tmp_path, "result.json", contents)
    (root / "eyes.yaml").write_text("joints: [left_eye, nose, right_eye]\nmirror_pairs: [[0, 2]]\n")
    persons = read_json(root, "result.json", ".")
    assert names(persons) == ["5f1b3c2a-Foto%201.png"]
    assert persons.keypoints[0, :2].tolist() == [[20, 30], [40, 50]]


def test_label_studios_yolo_with_a_data_yaml_of_ones_own(tmp_path):
    """It writes classes.txt and notes.json, whole precision, and no data.yaml."""
    for number in range(10):
        picture(tmp_path / f"images/{number:04x}-a.b.jpg")
        label = tmp_path / f"labels/{number:04x}-a.b.txt"
        label.parent.mkdir(exist_ok=True)
        label.write_text("0 0.3333333333333333 0.5 0.2 0.4 0.1 0.2 2 0.30000000000000004 0.4 2 0.0 0.0 0")
    (tmp_path / "classes.txt").write_text("animal\n")
    (tmp_path / "data.yaml").write_text(
        "train: images\nnames: [animal]\nkpt_shape: [3, 3]\nkpt_names: [nose, left_eye, right_eye]\n"
    )
    train = read(tmp_path, "yolo")
    assert len(train) == 9
    np.testing.assert_allclose(train.keypoints[0, :2], [[20, 20], [60, 40]], atol=1e-3)
    assert train.skeleton.mirror_pairs == ((2, 1),)
