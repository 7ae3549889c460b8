# SPDX-License-Identifier: Apache-2.0
"""All annotated persons of a data set as one struct of arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastpose.skeletons import Skeleton


@dataclass(frozen=True)
class CocoTruth:
    """What COCO's evaluation compares predictions with, and where the boxes that they were made in came from.

    Attributes:
        box_source: "annotations", or the name of the detector's file: told beside every AP.
        category: id of the persons' category.
        image_ids: the images that are evaluated, those without persons included.
        annotations: all annotations of persons on these images, as COCO has them, but for segmentations. Crowds and
            persons without joints are among them: what is predicted there counts neither as right nor as wrong.
    """

    box_source: str
    category: int
    image_ids: list[int]
    annotations: list[dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Persons:
    """N annotated persons with J joints on M distinct images.

    Points are (x, y) in image pixels, 0-based, with pixel centres at integers.

    Attributes:
        image_paths: M absolute paths.
        image_index: int64 [N], which of ``image_paths`` shows the person.
        center: float32 [N, 2], middle of the person's box.
        scale: float32 [N, 2], positive; ``scale * 200`` px is the box's (w, h).
        keypoints: float32 [N, J, 2]. A joint that is not annotated has some finite place without meaning.
        visible: float32 [N, J], 1 where the joint is annotated (occluded or not), else 0.
        head_size: float32 [N], positive, PCKh's normaliser in px (0.6 times the head box's diagonal);
            None where the annotations do not tell.
        source_row: int64 [N], the person's row in the annotation file, or in the detector's where that has the boxes.
        skeleton: names and order of the joints.
        image_id: int64 [N], COCO's number of the image; None elsewhere.
        box_score: float32 [N], how sure a detector was of the box, 1 for annotated ones; None outside of COCO.
        truth: what COCO's evaluation goes by; None elsewhere, and where persons are for training only.

    Raises:
        ValueError: an array has another shape or dtype, is not finite or is out of its range.
    """

    image_paths: tuple[Path, ...]
    image_index: np.ndarray
    center: np.ndarray
    scale: np.ndarray
    keypoints: np.ndarray
    visible: np.ndarray
    head_size: np.ndarray | None
    source_row: np.ndarray
    skeleton: Skeleton
    image_id: np.ndarray | None = None
    box_score: np.ndarray | None = None
    truth: CocoTruth | None = None

    def __post_init__(self) -> None:
        n, joints = len(self), self.skeleton.num_joints
        _check_array("image_index", self.image_index, np.int64, (n,))
        _check_array("center", self.center, np.float32, (n, 2))
        _check_array("scale", self.scale, np.float32, (n, 2))
        _check_array("keypoints", self.keypoints, np.float32, (n, joints, 2))
        _check_array("visible", self.visible, np.float32, (n, joints))
        _check_array("source_row", self.source_row, np.int64, (n,))
        known = (self.image_index >= 0) & (self.image_index < len(self.image_paths))
        _check_row("image_index", known, "in range")
        _check_row("scale", np.all(self.scale > 0, axis=1), "positive")
        _check_row("visible", ((self.visible == 0) | (self.visible == 1)).all(axis=1), "0 or 1")
        if self.head_size is not None:
            _check_array("head_size", self.head_size, np.float32, (n,))
            _check_row("head_size", self.head_size > 0, "positive")
        if self.image_id is not None:
            _check_array("image_id", self.image_id, np.int64, (n,))
        if self.box_score is not None:
            _check_array("box_score", self.box_score, np.float32, (n,))
            _check_row("box_score", self.box_score >= 0, "at least 0")
        if self.truth is not None and (self.image_id is None or self.box_score is None):
            raise ValueError("truth: COCO's evaluation needs image_id and box_score too, got None")

    def __len__(self) -> int:
        return len(self.image_index)

    def select(self, rows: Sequence[int] | np.ndarray) -> Persons:
        """The persons of ``rows`` (indices or a bool mask [N]), in that order, with the images they are on."""
        picked = np.arange(len(self))[np.asarray(rows, dtype=None if len(rows) else np.int64)]
        used, image_index = np.unique(self.image_index[picked], return_inverse=True)
        return dataclasses.replace(
            self,
            image_paths=tuple(self.image_paths[i] for i in used),
            image_index=image_index.astype(np.int64),
            center=self.center[picked],
            scale=self.scale[picked],
            keypoints=self.keypoints[picked],
            visible=self.visible[picked],
            head_size=None if self.head_size is None else self.head_size[picked],
            source_row=self.source_row[picked],
            image_id=None if self.image_id is None else self.image_id[picked],
            box_score=None if self.box_score is None else self.box_score[picked],
        )


def _check_array(name: str, array: np.ndarray, dtype: type[np.generic], shape: tuple[int, ...]) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape != shape:
        got = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise ValueError(f"{name} must be a {np.dtype(dtype)} array of shape {shape}, got {got}")
    finite = np.isfinite(array).all(axis=tuple(range(1, array.ndim)))
    _check_row(name, finite, "finite")


def _check_row(name: str, good: np.ndarray, expected: str) -> None:
    if not good.all():
        raise ValueError(f"{name} must be {expected}, it is not for person {int(np.argmin(good))}")
