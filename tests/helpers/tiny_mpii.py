# SPDX-License-Identifier: Apache-2.0
"""A tiny data set in MPII's community format: noise with a bright block at every joint."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
from scipy.io import savemat

# gt_valid.mat's names
JOINT_NAMES = ["rank", "rkne", "rhip", "lhip", "lkne", "lank", "pelv", "thor"]
JOINT_NAMES += ["neck", "head", "rwri", "relb", "rsho", "lsho", "lelb", "lwri"]


def write_tiny_mpii(root: Path, *, persons: int = 10, images: int = 4, side: int = 96, seed: int = 0) -> Path:
    """Writes images/, annot/{train,valid}.json and annot/gt_valid.mat; both splits are the same persons."""
    rng = np.random.default_rng(seed)
    (root / "images").mkdir(parents=True)
    (root / "annot").mkdir()
    pictures = rng.integers(0, 90, (images, side, side, 3), dtype=np.uint8)
    rows, boxes = [], []
    for person in range(persons):
        joints = rng.integers(10, side - 10, (16, 2)).astype(float)  # 0-based
        for x, y in joints.astype(int):
            pictures[person % images, y - 2 : y + 3, x - 2 : x + 3] = rng.integers(120, 256, 3)
        visible = np.ones(16, int)
        visible[person % 16] = 0
        rows.append(
            {
                "joints_vis": visible.tolist(),
                "joints": (joints + 1).tolist(),
                "image": f"{person % images:03d}.jpg",
                "scale": side / 250,  # x 1.25 x 200 px is the picture's side
                "center": [side / 2 + 1, side / 2 + 1 - 15 * side / 250],
            }
        )
        boxes.append([[10.0, 10.0], [30.0, 35.0]])
    for number, picture in enumerate(pictures):
        cv2.imwrite(str(root / "images" / f"{number:03d}.jpg"), picture, [cv2.IMWRITE_JPEG_QUALITY, 98])
    for split in ("train", "valid"):
        (root / "annot" / f"{split}.json").write_text(json.dumps(rows))
    names = np.empty((1, 16), object)
    names[0] = JOINT_NAMES
    savemat(
        root / "annot" / "gt_valid.mat",
        {
            "dataset_joints": names,
            "jnt_missing": 1 - np.array([row["joints_vis"] for row in rows], np.uint8).T,
            "pos_gt_src": np.array([row["joints"] for row in rows]).transpose(1, 2, 0),
            "headboxes_src": np.array(boxes).transpose(1, 2, 0),
        },
    )
    return root
