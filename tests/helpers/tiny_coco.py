# SPDX-License-Identifier: Apache-2.0
"""A tiny data set in COCO's keypoint format: noise with a bright block at every joint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fastpose.skeletons import COCO, Skeleton


def annotation(number: int, image: int, joints: np.ndarray, **changes: Any) -> dict[str, Any]:
    """An annotation of `joints` [K, 3] as COCO has it, with a box of 60 x 80 px at (10, 5)."""
    record = {
        "id": number,
        "image_id": image,
        "category_id": 1,
        "bbox": [10.0, 5.0, 60.0, 80.0],
        "area": 3000.0,
        "iscrowd": 0,
        "num_keypoints": int((joints[:, 2] > 0).sum()),
        "keypoints": joints.ravel().tolist(),
    }
    return record | changes


def contents(annotations: list[dict[str, Any]], names: list[str], **changes: Any) -> dict[str, Any]:
    """An annotation file about images of 96 x 96 px, numbered from 1."""
    images = [{"id": i + 1, "file_name": name, "width": 96, "height": 96} for i, name in enumerate(names)]
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "person"}], **changes}


def write_tiny_coco(
    root: Path, *, persons: int = 10, images: int = 4, skeleton: Skeleton = COCO, seed: int = 0
) -> Path:
    """Writes images/, annotations/{train,valid}.json (the same persons) and detections.json (boxes a bit off)."""
    rng = np.random.default_rng(seed)
    (root / "images").mkdir(parents=True)
    (root / "annotations").mkdir()
    pictures = rng.integers(0, 90, (images, 96, 96, 3), dtype=np.uint8)
    annotations, detections = [], []
    for person in range(persons):
        joints = np.column_stack([rng.integers(10, 86, (skeleton.num_joints, 2)), np.full(skeleton.num_joints, 2)])
        for x, y, _ in joints:
            pictures[person % images, y - 2 : y + 3, x - 2 : x + 3] = rng.integers(120, 256, 3)
        joints[person % skeleton.num_joints] = 0
        image = person % images + 1
        annotations.append(annotation(person + 1, image, joints))
        box = [12.0, 6.0, 58.0, 77.0]
        detections.append({"image_id": image, "category_id": 1, "bbox": box, "score": 0.5 + person / 100})
    names = [f"{number:03d}.jpg" for number in range(images)]
    for name, picture in zip(names, pictures, strict=True):
        cv2.imwrite(str(root / "images" / name), picture, [cv2.IMWRITE_JPEG_QUALITY, 98])
    for split in ("train", "valid"):
        (root / "annotations" / f"{split}.json").write_text(json.dumps(contents(annotations, names)))
    (root / "detections.json").write_text(json.dumps(detections))
    return root
