# SPDX-License-Identifier: Apache-2.0
"""predictions.npz: what a run's network predicts for its validation persons, with all that a page of it compares with.

The annotations are in it, so that a page can be made again when the data set has moved away.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastpose.data.dataset import Scorer
from fastpose.data.pack.files import read_npz
from fastpose.data.pack.format import pack_of
from fastpose.data.persons import Persons
from fastpose.data.reading import Reading
from fastpose.engine.evaluation import Evaluation
from fastpose.engine.folder import PREDICTIONS
from fastpose.files import open_file, replacing
from fastpose.option import typed
from fastpose.skeletons import Skeleton, as_tuples

VERSION = 1
_FARTHEST = 1e7  # px
_TEXTS = ("network", "label", "note", "rule", "similarity")


@dataclass(frozen=True, eq=False)
class Predicted:
    """Predictions for N persons with K joints, and their annotations. Points are (x, y) in image pixels.

    Attributes:
        network: which weights predicted: "last.pt", "best.pt".
        label, note: of the score, see Scorer.
        rule, threshold, similarity: see Yardstick.
        skeleton: the joints.
        reading: how image files become pixels.
        images: M paths.
        predictions, keypoints: float32 [N, K, 2]; predictions are NaN where the image could not be read.
        scores: float32 [N, K]; NaN likewise.
        seen: bool [N], whether the person's image could be read.
        compared: bool [N, K], whether the score compares the joint.
        right, half: float32 [N, K] px, see Yardstick.
        image_index: int64 [N], which of `images`.
        picture: int64 [N], the same for persons of one picture, which in a pack have an image each.
        center, scale: float32 [N, 2], see Persons.
        row: int64 [N], the person's row in the file of annotations.
    """

    network: str
    label: str
    note: str
    rule: str
    threshold: float
    similarity: str
    skeleton: Skeleton
    reading: Reading
    images: tuple[str, ...]
    predictions: np.ndarray
    scores: np.ndarray
    seen: np.ndarray
    keypoints: np.ndarray
    compared: np.ndarray
    right: np.ndarray
    half: np.ndarray
    image_index: np.ndarray
    picture: np.ndarray
    center: np.ndarray
    scale: np.ndarray
    row: np.ndarray

    @property
    def counted(self) -> np.ndarray:
        """bool [N, K], the joints that can be measured: compared, predicted, and with a known measure."""
        finite = np.isfinite(self.predictions).all(axis=2) & np.isfinite(self.keypoints).all(axis=2)
        return self.compared & self.seen[:, None] & finite & (self.right > 0)


def write_predicted(folder: Path, network: str, persons: Persons, scorer: Scorer, evaluation: Evaluation) -> Path:
    """Writes predictions.npz into a run's folder; returns the file.

    Args:
        folder: the run's.
        network: the checkpoint's name.
        persons: N persons.
        scorer: theirs.
        evaluation: predictions for them.
    """
    by = scorer.yardstick()
    about = {
        "version": VERSION,
        "network": network,
        "label": scorer.label,
        "note": scorer.note,
        "rule": by.rule,
        "threshold": by.threshold,
        "similarity": by.similarity,
        "skeleton": dataclasses.asdict(persons.skeleton),
        "reading": dataclasses.asdict(persons.reading),
        "images": [str(path) for path in persons.image_paths],
    }
    arrays: dict[str, Any] = {
        "predictions": evaluation.predictions,
        "scores": evaluation.scores,
        "seen": evaluation.seen,
        "keypoints": persons.keypoints,
        "compared": persons.compared > 0,
        "right": by.right.astype(np.float32),
        "half": by.half.astype(np.float32),
        "image_index": persons.image_index,
        "picture": _pictures(persons),
        "center": persons.center,
        "scale": persons.scale,
        "row": persons.source_row,
    }
    with replacing(folder / PREDICTIONS) as file:
        np.savez(file, about=np.frombuffer(json.dumps(about).encode(), np.uint8), **arrays)
    return folder / PREDICTIONS


def _pictures(persons: Persons) -> np.ndarray:
    if not pack_of(persons.image_paths):
        return persons.image_index
    names = np.array([path.name for path in persons.image_paths])
    return np.unique(names, return_inverse=True)[1].astype(np.int64)[persons.image_index]


def read_predicted(folder: Path) -> Predicted:
    """Reads predictions.npz of a run's folder.

    Raises:
        FileNotFoundError: the run has no such file.
        ValueError: it is not what `write_predicted` writes; names the file.
    """
    path = folder / PREDICTIONS
    try:
        with open(open_file(path), "rb") as file:
            arrays = read_npz(file, os.fstat(file.fileno()).st_size)
        about = json.loads(arrays.pop("about").tobytes())
        if about["version"] != VERSION:
            raise ValueError(f"expected version {VERSION}, got {about['version']!r}")
        return _checked(about, arrays)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path}: not what fastpose writes: {what.partition(chr(10))[0]}") from error


def _checked(about: dict[str, Any], arrays: dict[str, Any]) -> Predicted:
    texts = {name: typed(name, about[name], str) for name in _TEXTS}
    skeleton = Skeleton(**as_tuples(about["skeleton"]))
    images = tuple(typed("images", about["images"], tuple[str, ...]))
    count, joints = len(arrays["seen"]), skeleton.num_joints
    expected: dict[str, tuple[str, tuple[int, ...]]] = {
        "predictions": ("float32", (count, joints, 2)),
        "scores": ("float32", (count, joints)),
        "seen": ("bool", (count,)),
        "keypoints": ("float32", (count, joints, 2)),
        "compared": ("bool", (count, joints)),
        "right": ("float32", (count, joints)),
        "half": ("float32", (count, joints)),
        "image_index": ("int64", (count,)),
        "picture": ("int64", (count,)),
        "center": ("float32", (count, 2)),
        "scale": ("float32", (count, 2)),
        "row": ("int64", (count,)),
    }
    for name, (dtype, shape) in expected.items():
        if arrays[name].dtype != dtype or arrays[name].shape != shape:
            got = f"{arrays[name].dtype} {arrays[name].shape}"
            raise ValueError(f"{name}: expected {dtype} {shape}, got {got}")
    if not ((arrays["image_index"] >= 0) & (arrays["image_index"] < len(images))).all():
        raise ValueError(f"image_index: expected numbers below {len(images)}, the number of images")
    boxes = np.concatenate([arrays["center"], arrays["scale"]], axis=1)
    if not (np.abs(boxes) < _FARTHEST).all() or not (arrays["scale"] > 0).all():
        raise ValueError("center, scale: expected finite numbers, and scales above 0")
    return Predicted(
        **texts,
        threshold=typed("threshold", about["threshold"], float),
        skeleton=skeleton,
        reading=Reading(**about["reading"]),
        images=images,
        **{name: arrays[name] for name in expected},
    )
