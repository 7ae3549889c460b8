# SPDX-License-Identifier: Apache-2.0
"""Tiny data sets in the forms that are COCO's up to a few fields, in the folders where they are expected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fastpose.data.coco.family_ap import PARTS
from fastpose.data.datasets import DATASETS
from tests.helpers.tiny_coco import annotation, contents

# How many joints the annotations have, and what the files' categories call them; None: they do not say.
NUMBERS = {"wholebody": 133, "crowdpose": 14, "aic": 14, "human_art": 17, "halpe26": 136, "halpe136": 136}
BODY = ["nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow"]
BODY += ["right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle"]
BODY += ["right_ankle"]
AIC = ["Right Shoulder", "Right Elbow", "Right Wrist", "Left Shoulder", "Left Elbow", "Left Wrist", "Right Hip"]
AIC += ["Right Knee", "Right Ankle", "Left Hip", "Left Knee", "Left Ankle", "Head top", "Neck"]
CROWDPOSE = ["left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip"]
CROWDPOSE += ["right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle", "head", "neck"]
NAMES = {"wholebody": BODY, "crowdpose": CROWDPOSE, "aic": AIC, "halpe26": [], "halpe136": []}
NAMES |= {"human_art": [*BODY, "left_finger", "right_finger", "left_toe", "right_toe"]}
CROWDED = (0.1, 0.2, 0.8)  # of the three images


def points(count: int, person: int = 0) -> np.ndarray:
    """Joints [count, 3] of a person, all annotated, between 12 and 80 px."""
    joint = np.arange(count)
    return np.column_stack([12 + (7 * joint + 11 * person) % 68, 12 + (13 * joint + 5 * person) % 68, joint * 0 + 2])


def record(name: str, number: int, image: int, joints: np.ndarray, **changes: Any) -> dict[str, Any]:
    """An annotation with the fields that this data set's files have."""
    one = annotation(number, image, joints)
    if name == "wholebody":
        parts = np.split(joints.ravel().tolist(), 3 * np.cumsum(list(PARTS.values()))[:-1])
        for part, values in zip(PARTS, parts, strict=True):
            one["keypoints" if part == "body" else f"{part}_kpts"] = values.tolist()
            if part != "body":
                one[f"{part}_valid"] = bool(values[2::3].any())
        one["num_keypoints"] = int((joints[:17, 2] > 0).sum())
    if name in ("crowdpose", "aic"):
        del one["area"]
    if name == "aic":
        del one["iscrowd"]
    if name == "human_art":
        more = [*one["keypoints"], *[30, 31, 2, 40, 41, 2, 50, 51, 0, 60, 61, 2]]
        one |= {"keypoints_21": more, "num_keypoints_21": one["num_keypoints"] + 3, "self_contact": []}
    if name.startswith("halpe"):
        one["num_keypoints"] = int((joints[:17, 2] > 0).sum())
    return one | changes


def images_of(name: str) -> list[str]:
    folder = "HumanArt/images/digital_art/" if name == "human_art" else ""
    return [f"{folder}{letter}.jpg" for letter in "abc"]


def family_contents(name: str, records: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """A file of a data set about three images of 96 x 96 px."""
    category = {"id": 1, "name": "person", "supercategory": "person", "keypoints": NAMES[name]}
    found = contents(records, images_of(name), categories=[category])
    if name == "crowdpose":
        for image, crowded in zip(found["images"], CROWDED, strict=True):
            image["crowdIndex"] = crowded
    return found | changes


def write_family(root: Path, name: str, records: list[dict[str, Any]] | None = None, **changes: Any) -> Path:
    """Writes both splits, with the same persons, one an image by default, the images, and detections.json."""
    if records is None:
        records = [record(name, person + 1, person + 1, points(NUMBERS[name], person)) for person in range(3)]
    layout = DATASETS[name].layout
    for split in ("train", "valid"):
        file = root / layout[f"{split}_annotations"]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(family_contents(name, records, **changes)))
        for image in images_of(name):
            path = root / (layout["valid_images" if split == "valid" else "images"] or layout["images"]) / image
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), np.full((96, 96, 3), 90, np.uint8))
    boxes = [{**{key: one[key] for key in ("image_id", "category_id", "bbox")}, "score": 0.5} for one in records]
    (root / "detections.json").write_text(json.dumps(boxes))
    return root
