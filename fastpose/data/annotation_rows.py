# SPDX-License-Identifier: Apache-2.0
"""What the readers of annotation files share: one row per person, image paths kept inside their root, `Persons`."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from fastpose.data.persons import Persons
from fastpose.skeletons import Skeleton

log = logging.getLogger(__name__)

MissingImages = Literal["error", "drop"]


class AnnotationError(ValueError):
    """An annotation file holds something unusable. The message names the file and the record."""


class PersonRow(NamedTuple):
    """One person as read, in the conventions of `Persons` (0-based pixels, scale * 200 px)."""

    where: str  # names the record in messages
    source_row: int
    image: str  # relative to the image root
    center: np.ndarray  # [2]
    scale: float
    keypoints: np.ndarray  # [J, 2]
    visible: np.ndarray  # [J]
    head_size: float | None


def mpii_box(objpos: np.ndarray, scale: float) -> tuple[np.ndarray, float]:
    """MPII's 1-based position and scale to the 0-based centre and scale of the crop.

    As SimpleBaselines (after Newell's Hourglass): the box moves down by 15 * scale px and grows by 1.25, so that it
    does not cut the feet; x = -1 marks an unknown position and is left alone.
    """
    center = np.asarray(objpos, dtype=np.float64).copy()
    if center[0] != -1:
        center[1] += 15 * scale
        scale *= 1.25
    return center - 1, scale


def persons_from_rows(
    rows: Sequence[PersonRow], file: Path, images: Path, missing_images: MissingImages, skeleton: Skeleton
) -> Persons:
    """Checks every image once and stacks the rows.

    Raises:
        AnnotationError: an image lies outside ``images`` or is missing (with ``missing_images="error"``), or no
            person is left.
    """
    if missing_images not in ("error", "drop"):
        raise ValueError(f"missing_images must be 'error' or 'drop', got {missing_images!r}")
    root = os.path.realpath(images)
    paths: dict[str, Path | None] = {}
    for row in rows:
        if row.image not in paths:
            paths[row.image] = _image_path(root, row, file, missing_images)
    kept = [row for row in rows if paths[row.image] is not None]
    if len(kept) < len(rows):
        lost = len(rows) - len(kept)
        log.warning("%s: %d of %d persons left out, their images are not in %s", file, lost, len(rows), root)
    if not kept:
        raise AnnotationError(f"{file}: no person has its image in {root}")

    index_of = {path: index for index, path in enumerate(dict.fromkeys(path for path in paths.values() if path))}
    head_sizes = [row.head_size for row in kept if row.head_size is not None]
    return Persons(
        image_paths=tuple(index_of),
        image_index=np.array([index_of[path] for row in kept if (path := paths[row.image])], np.int64),
        center=np.array([row.center for row in kept], np.float32),
        scale=np.array([(row.scale, row.scale) for row in kept], np.float32),
        keypoints=np.array([row.keypoints for row in kept], np.float32),
        visible=np.array([row.visible for row in kept], np.float32),
        head_size=np.array(head_sizes, np.float32) if len(head_sizes) == len(kept) else None,
        source_row=np.array([row.source_row for row in kept], np.int64),
        skeleton=skeleton,
    )


def _image_path(root: str, row: PersonRow, file: Path, missing_images: MissingImages) -> Path | None:
    try:
        path = os.path.realpath(os.path.join(root, row.image))
    except ValueError as error:
        raise AnnotationError(f"{file}, {row.where}: image {row.image!r} is no path: {error}") from error
    if os.path.commonpath([root, path]) != root:
        raise AnnotationError(f"{file}, {row.where}: image {row.image!r} leads outside the image folder {root}")
    if os.path.isfile(path):
        return Path(path)
    if missing_images == "error":
        raise AnnotationError(f"{file}, {row.where}: image {row.image!r} is not in {root}")
    return None
