# SPDX-License-Identifier: Apache-2.0
"""All annotated persons of a data set as one struct of arrays."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fastpose.data.reading import AS_STORED, Reading
from fastpose.skeletons import Skeleton


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
        source_row: int64 [N], the person's row in the annotation file, or in the detector's where that has the boxes.
        skeleton: names and order of the joints.
        extras: what the data set's score needs of each person beside that, by name: arrays [N, ...], such as MPII's
            `head_size`. Its room says what they are.
        truth: what the data set's score compares with beside the rows, as plain values of its room's own form; None
            where the rows are enough.
        reading: how the image files become the pixels that these points are in.

    Raises:
        ValueError: an array has another shape or dtype, is not finite or is out of its range.
    """

    image_paths: tuple[Path, ...]
    image_index: np.ndarray
    center: np.ndarray
    scale: np.ndarray
    keypoints: np.ndarray
    visible: np.ndarray
    source_row: np.ndarray
    skeleton: Skeleton
    extras: Mapping[str, np.ndarray] = field(default_factory=dict)
    truth: Mapping[str, Any] | None = None
    reading: Reading = AS_STORED

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
        for name, array in self.extras.items():
            if len(array) != n:
                raise ValueError(f"{name} must have one entry for each of the {n} persons, got {len(array)}")
            _check_row(name, np.isfinite(array).all(axis=tuple(range(1, array.ndim))), "finite")

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
            source_row=self.source_row[picked],
            extras={name: array[picked] for name, array in self.extras.items()},
        )

    def fingerprint(self) -> str:
        """What distinguishes these annotations from others: the number of persons and a checksum."""
        names = "\n".join(path.name for path in self.image_paths).encode()
        arrays = (self.image_index, self.center, self.scale, self.keypoints, self.visible)
        read = ", upright" * self.reading.upright + ", 16 bits stretched" * self.reading.stretch
        checksum = zlib.crc32(b"".join([names, *(a.tobytes() for a in arrays)]))
        return f"{len(self)} persons{read}, checksum {checksum:08x}"


def _check_array(name: str, array: np.ndarray, dtype: type[np.generic], shape: tuple[int, ...]) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape != shape:
        got = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise ValueError(f"{name} must be a {np.dtype(dtype)} array of shape {shape}, got {got}")
    finite = np.isfinite(array).all(axis=tuple(range(1, array.ndim)))
    _check_row(name, finite, "finite")


def _check_row(name: str, good: np.ndarray, expected: str) -> None:
    if not good.all():
        raise ValueError(f"{name} must be {expected}, it is not for person {int(np.argmin(good))}")
