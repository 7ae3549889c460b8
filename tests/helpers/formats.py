# SPDX-License-Identifier: Apache-2.0
"""Small data sets in other programs' formats, and how they are opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fastpose.data.dataset import Dataset
from fastpose.data.datasets import open_dataset
from fastpose.data.persons import Persons
from fastpose.options.settle import settle
from fastpose.skeletons import Skeleton

SIZE = (64, 64)


def picture(path: Path, width: int = 200, height: int = 100) -> Path:
    """Writes a grey picture, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((height, width, 3), 128, np.uint8))
    return path


def opened(root: Path, dataset: str, joints: Skeleton | None = None, **options: Any) -> Dataset:
    settings = settle({"data_root": str(root), "dataset": dataset, "size": SIZE, **options})
    found = open_dataset(settings.data, SIZE, joints)
    return found  # type: ignore[return-value]


def read(root: Path, dataset: str, split: Any = "train", **options: Any) -> Persons:
    return opened(root, dataset, **options).read(split)


def names(persons: Persons) -> list[str]:
    """The file name of each person's image."""
    return [persons.image_paths[image].name for image in persons.image_index]


# ---- an example of each format: two persons to train on and one to validate on, joints nose, left_eye, right_eye ----

JOINTS = ("nose", "left_eye", "right_eye")
TRAINED = np.array([[[20, 30], [40, 50], [60, 20]], [[100, 30], [120, 50], [0, 0]]], np.float32)
VALIDATED = np.array([[[30, 20], [50, 60], [90, 70]]], np.float32)


def write_yolo(root: Path) -> Path:
    """Pictures of 200 x 100; the second person lacks a joint."""
    (root / "labels/train").mkdir(parents=True)
    (root / "labels/val").mkdir()
    for name in ("train/a", "train/b", "val/c"):
        picture(root / f"images/{name}.png")
    lines = [
        "0 0.2 0.35 0.3 0.5  0.1 0.3 2  0.2 0.5 1  0.3 0.2 2",
        "0 0.55 0.4 0.2 0.4  0.5 0.3 2  0.6 0.5 2  0 0 0",
        "0 0.3 0.45 0.4 0.7  0.15 0.2 2  0.25 0.6 2  0.45 0.7 2",
    ]
    for name, line in zip(("train/a", "train/b", "val/c"), lines, strict=True):
        (root / f"labels/{name}.txt").write_text(f"{line}\n")
    (root / "data.yaml").write_text(
        "path: .\ntrain: images/train\nval: images/val\nkpt_shape: [3, 3]\nflip_idx: [0, 2, 1]\n"
        "names:\n  0: person\nkpt_names:\n  0: [nose, left_eye, right_eye]\n"
    )
    return root


def write_csv(root: Path) -> Path:
    for name in "abc":
        picture(root / f"{name}.png")
    head = "image,joint,x,y,visible\n"
    (root / "train.csv").write_text(
        head + "a.png,nose,20,30,2\na.png,left_eye,40,50,1\na.png,right_eye,60,20,2\n"
        "b.png,nose,100,30,2\nb.png,left_eye,120,50,2\nb.png,right_eye,7,8,0\n"
    )
    (root / "valid.csv").write_text(head + "c.png,right_eye,90,70,2\nc.png,nose,30,20,2\nc.png,left_eye,50,60,2\n")
    return root


def write_deeplabcut(root: Path, *, index: str = "{folder},{video},{name}", empty: str = ",,") -> Path:
    """A project of one animal; of its ten images the last is for validation, and those between have nobody."""
    rows = ["20,30,40,50,60,20", "100,30,120,50,,", *[",,,,,"] * 7, "30,20,50,60,90,70"]
    lines = [
        f"scorer{empty},Ada,Ada,Ada,Ada,Ada,Ada",
        f"bodyparts{empty},nose,nose,left_eye,left_eye,right_eye,right_eye",
        f"coords{empty},x,y,x,y,x,y",
    ]
    for number, row in enumerate(rows):
        name = f"img{number:03d}.png"
        picture(root / "labeled-data/mouse" / name)
        lines.append(f"{index.format(folder='labeled-data', video='mouse', name=name)},{row}")
    (root / "labeled-data/mouse/CollectedData_Ada.csv").write_text("\n".join(lines) + "\n")
    (root / "config.yaml").write_text(
        "    # Project definitions (do not edit)\nTask: eyes\nscorer: Ada\nmultianimalproject: false\n"
        "video_sets:\n  C:\\videos\\mouse.avi:\n    crop: 0, 200, 0, 100\n"
        "bodyparts:\n- nose\n- left_eye\n- right_eye\nskeleton:\n- - nose\n  - left_eye\n- - nose\n  - right_eye\n"
    )
    return root
