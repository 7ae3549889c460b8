# SPDX-License-Identifier: Apache-2.0
"""Images that are there twice under different names: the same pixels, almost the same picture, or its mirror image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastpose.data.checks.pictures import THUMBNAIL, Look
from fastpose.data.findings import Finding, cases_of
from fastpose.data.persons import Persons

# Two pictures are near copies if the differences between neighbouring pixels of their thumbnails are correlated like
# this. Resized, recompressed, in grey, brighter or without a border of a pixel a picture is above 0.97; no two of 5,000
# photographs of sports that were taken apart are above 0.86, and none is above 0.78 with another one mirrored. Levels
# themselves would be alike for any two skies.
NEAR = 0.95
_FLAT = 1.0  # grey levels between neighbouring pixels in the mean; in a flatter picture they are noise
_ALMOST = "resized, recompressed, mirrored, or taken a moment later"
_HALF = THUMBNAIL * (THUMBNAIL - 1)  # differences of neighbours in each direction
_ROWS, _COLUMNS = 1024, 8192  # of the table of correlations that is in memory at once


def doubts_about_copies(splits: Mapping[str, Persons], looks: Mapping[Path, Look]) -> list[tuple[str, Finding]]:
    """Copies within each split and, if there are two, of training images in the validation data.

    Args:
        splits: one or both of "train" and "valid".
        looks: of their images.

    Returns:
        The split, empty for both, and the finding.
    """
    found = [(split, finding) for split, persons in splits.items() for finding in _within(persons, looks)]
    if len(splits) > 1:
        found += [("", finding) for finding in _between(splits["train"], splits["valid"], looks)]
    return found


def _within(persons: Persons, looks: Mapping[Path, Look]) -> list[Finding]:
    paths = persons.image_paths
    first: dict[bytes, int] = {}
    same = {n: other for n, path in enumerate(paths) if (other := _known(first, looks[path].digest, n)) is not None}
    near = {n: other for n, other in _near(paths, paths, looks, earlier=True).items() if n not in same}
    what = "images are copies of an earlier one under another name"
    return [
        *_copies("copy_in_split", persons, same, persons, what),
        *_copies("near_copy_in_split", persons, near, persons, f"images are almost an earlier one: {_ALMOST}"),
    ]


def _between(train: Persons, valid: Persons, looks: Mapping[Path, Look]) -> list[Finding]:
    known = {digest: n for n, path in reversed(list(enumerate(train.image_paths))) if (digest := looks[path].digest)}
    shared = set(train.image_paths)
    own = {n: path for n, path in enumerate(valid.image_paths) if path not in shared}
    same = {n: known[looks[path].digest] for n, path in own.items() if looks[path].digest in known}
    near = _near(valid.image_paths, train.image_paths, looks)
    near = {n: other for n, other in near.items() if n in own and n not in same}
    what = "validation images are copies of training images under another name"
    almost = f"validation images are almost a training image: {_ALMOST}"
    return [
        *_copies("copy_in_both_splits", valid, same, train, what),
        *_copies("near_copy_in_both_splits", valid, near, train, almost),
    ]


def _known(first: dict[bytes, int], digest: bytes, n: int) -> int | None:
    """The first image with these pixels, if it is another one."""
    return None if not digest or (known := first.setdefault(digest, n)) == n else known


def _copies(code: str, persons: Persons, others: Mapping[int, int], originals: Persons, what: str) -> list[Finding]:
    """The finding about images of `persons` that are copies of those of `originals`, by their numbers, if there are
    any."""
    if not others:
        return []
    images, total = sorted(others), len(persons.image_paths)
    _, first_rows = np.unique(persons.image_index, return_index=True)  # [M]: every image has a person
    original = originals.origin_of_image(others[images[0]])
    of = f", of {original.image}{f' of set {original.of_set}' if original.of_set else ''}"
    text = f"{len(others):,} of {total:,} {what}"
    return [Finding(code, text, len(others), total, cases_of(persons, first_rows[images]), of)]


def _near(
    paths: Sequence[Path], originals: Sequence[Path], looks: Mapping[Path, Look], *, earlier: bool = False
) -> dict[int, int]:
    """The first near copy of each of the images that have one, among `originals`; `earlier`: among those before it."""
    (rows, a), (columns, b) = _slopes(paths, looks), _slopes(originals, looks)
    mirrored = _mirrored(b)
    near: dict[int, int] = {}
    for top in range(0, len(a), _ROWS):
        end = min(len(b), top + _ROWS) if earlier else len(b)
        for left in range(0, end, _COLUMNS):
            some, others = a[top : top + _ROWS], slice(left, min(end, left + _COLUMNS))
            alike = (some @ b[others].T > NEAR) | (some @ mirrored[others].T > NEAR)
            if earlier:
                alike = np.tril(alike, top - left - 1)
            first = alike.argmax(axis=1)  # of a film, every picture is a near copy of all others
            for row in np.flatnonzero(alike.any(axis=1)).tolist():
                near.setdefault(int(rows[top + row]), int(columns[left + first[row]]))
    return near


def _slopes(paths: Sequence[Path], looks: Mapping[Path, Look]) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Which of the images have a thumbnail that is not flat, and its differences, float32 [n, 480] of length 1."""
    there = [(n, thumbnail) for n, path in enumerate(paths) if (thumbnail := looks[path].thumbnail) is not None]
    if not there:
        return np.zeros(0, np.intp), np.zeros((0, 2 * _HALF), np.float32)
    small = np.stack([thumbnail for _, thumbnail in there]).astype(np.float32)
    both = [np.diff(small, axis=axis).reshape(len(small), -1) for axis in (1, 2)]
    # Less their means: all skies get brighter towards the horizon.
    slopes = np.concatenate([one - one.mean(axis=1, keepdims=True) for one in both], axis=1)
    length = np.linalg.norm(slopes, axis=1)
    steep = length > _FLAT * np.sqrt(slopes.shape[1])
    return np.array([n for n, _ in there])[steep], slopes[steep] / length[steep, None]


def _mirrored(slopes: NDArray[np.float32]) -> NDArray[np.float32]:
    """What `_slopes` has of the pictures' mirror images."""
    down = slopes[:, :_HALF].reshape(-1, THUMBNAIL - 1, THUMBNAIL)[..., ::-1]
    across = -slopes[:, _HALF:].reshape(-1, THUMBNAIL, THUMBNAIL - 1)[..., ::-1]
    return np.concatenate([down.reshape(-1, _HALF), across.reshape(-1, _HALF)], axis=1)
