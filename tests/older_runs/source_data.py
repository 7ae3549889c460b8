# SPDX-License-Identifier: Apache-2.0
"""The data that the older runs were trained on and the older packs made of, drawn again: two data sets in PNG files.

Everything comes from whole-number arithmetic, and PNG keeps it: the same pixels with any version of any library.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from scipy.io import savemat

from fastpose import skeletons

HEIGHT, WIDTH = 56, 64
PERSONS = {"train": 10, "valid": 6}  # two to a picture


def joints_of(split: str, person: int, count: int) -> np.ndarray:
    """Joints [count, 2] in whole pixels, the same for the same person."""
    numbers = np.arange(2 * count) + 1009 * person + 100_003 * (split == "valid")
    mixed = numbers * 2_654_435_761 % 2**32 >> 16
    return 6 + mixed.reshape(count, 2) % (np.array([WIDTH, HEIGHT]) - 12)


def draw_pictures(folder: Path, joints: np.ndarray) -> list[str]:
    """Writes a picture for each two persons of `joints` [N, K, 2]: a block of its own colour at each joint, on bands.
    Returns the name of each person's picture."""
    folder.mkdir(parents=True, exist_ok=True)
    y, x, channel = np.indices((HEIGHT, WIDTH, 3))
    names = []
    for number, pair in enumerate(joints.reshape(-1, 2, *joints.shape[1:])):
        picture = ((3 * x + 5 * y + 40 * channel + 17 * number) % 96).astype(np.uint8)
        for person in pair:
            for joint, (px, py) in enumerate(person):
                picture[py - 3 : py + 4, px - 3 : px + 4] = (255 - 12 * joint, 90 + 9 * joint, 40 + 53 * joint % 210)
        name = f"{number:03d}.png"
        cv2.imwrite(str(folder / name), picture)
        names += [name, name]
    return names


def draw_mpii(root: Path) -> Path:
    """A data set in MPII's community format, where its files usually lie: images/, annot/."""
    (root / "annot").mkdir(parents=True)
    for split, count in PERSONS.items():
        joints = np.stack([joints_of(split, person, 16) for person in range(count)])
        visible = np.stack([np.arange(16) != person % 16 for person in range(count)]).astype(np.uint8)
        images = draw_pictures(root / "images" / split, joints)
        rows = [
            {
                "joints_vis": visible[person].tolist(),
                "joints": (joints[person] + 1).tolist(),
                "image": f"{split}/{images[person]}",
                "scale": 0.25 + person / 64,  # times 1.25 and 200 px: boxes of 62 to 98 px
                "center": [WIDTH / 2 + person % 3, HEIGHT / 2 - 12],
            }
            for person in range(count)
        ]
        (root / "annot" / f"{split}.json").write_text(json.dumps(rows))
    names = np.empty((1, 16), object)
    names[0] = [
        *("rank", "rkne", "rhip", "lhip", "lkne", "lank", "pelv", "thor"),
        *("neck", "head", "rwri", "relb", "rsho", "lsho", "lelb", "lwri"),
    ]
    corners = [[[5.0, 5.0], [25.0 + person, 45.0]] for person in range(count)]
    savemat(
        root / "annot" / "gt_valid.mat",
        {
            "dataset_joints": names,
            "jnt_missing": 1 - visible.T,
            "pos_gt_src": (joints + 1.0).transpose(1, 2, 0),
            "headboxes_src": np.array(corners).transpose(1, 2, 0),
        },
    )
    return root


def draw_coco(root: Path) -> Path:
    """A data set in COCO's format, where its files usually lie, and a detector's boxes for it in detections.json."""
    (root / "annotations").mkdir(parents=True)
    for split, folder in (("train", "train2017"), ("valid", "val2017")):
        count = PERSONS[split]
        points = np.stack([joints_of(split, person, 17) for person in range(count)])
        names = draw_pictures(root / folder, points)
        annotations: list[dict[str, Any]] = []
        for person in range(count):
            joints = np.column_stack([points[person], np.full(17, 2)])
            joints[person % 17] = 0
            joints[(person + 5) % 17, 2] = 1
            annotations.append(
                {
                    "id": person + 1,
                    "image_id": person // 2 + 1,
                    "category_id": 1,
                    "bbox": [4.0 + person % 2, 3.0, 52.0, 46.0 + person],
                    "area": 20000.0 + 10 * person,  # more than its box, so that a bad network has an AP, too
                    "iscrowd": 0,
                    "num_keypoints": 16,
                    "keypoints": joints.ravel().tolist(),
                }
            )
        images = [
            {"id": number + 1, "file_name": name, "width": WIDTH, "height": HEIGHT}
            for number, name in enumerate(names[::2])
        ]
        category = {"id": 1, "name": "person", "keypoints": list(skeletons.COCO.joints)}
        contents = {"images": images, "annotations": annotations, "categories": [category]}
        file = root / "annotations" / f"person_keypoints_{folder}.json"
        file.write_text(json.dumps(contents))
    detections = [
        {"image_id": a["image_id"], "category_id": 1, "bbox": [5.0, 4.0, 50.0, 47.0], "score": 0.5 + a["id"] / 64}
        for a in annotations
    ]
    (root / "detections.json").write_text(json.dumps(detections))
    return root
