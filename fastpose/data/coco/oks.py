# SPDX-License-Identifier: Apache-2.0
"""COCO's similarity of two poses (OKS), and the suppression of poses that are nearly the same."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def oks(
    keypoints: np.ndarray,
    others: np.ndarray,
    area: np.ndarray,
    sigmas: Sequence[float] | np.ndarray,
    visible: np.ndarray | None = None,
) -> np.ndarray:
    """Object keypoint similarity of N poses with M others: 1 where they are the same, toward 0 where far apart.

    The mean over the visible joints of ``exp(-d^2 / (2 * area * (2 * sigma)^2))``, d being the distance in px.

    Args:
        keypoints: [N, K, 2] px.
        others: [M, K, 2] px.
        area: [N], area of each of the N persons in square px; or [N, M], one for each pair.
        sigmas: [K], see `Skeleton.sigmas`.
        visible: [N, K], joints of the N poses that count (> 0); None: all.

    Returns:
        float64 [N, M]; NaN where no joint is visible: there COCO's evaluation measures how far the others leave a box.

    Raises:
        ValueError: an argument has another shape.

    Source: pycocotools' ``COCOeval.computeOks``; with an area per pair, HRNet's ``oks_iou``.
    """
    keypoints, others, area = (np.asarray(array, np.float64) for array in (keypoints, others, area))
    variance = (2 * np.asarray(sigmas, np.float64)) ** 2
    count, joints = len(keypoints), len(variance)
    counts = np.ones((count, joints), bool) if visible is None else np.asarray(visible) > 0
    for name, array, shapes in (
        ("keypoints", keypoints, [(count, joints, 2)]),
        ("others", others, [(len(others), joints, 2)]),
        ("area", area, [(count,), (count, len(others))]),
        ("visible", counts, [(count, joints)]),
    ):
        if array.shape not in shapes:
            expected = " or ".join(str(list(shape)) for shape in shapes)
            raise ValueError(f"{name} must have shape {expected}, got {list(array.shape)}")
    squared = ((keypoints[:, None] - others) ** 2).sum(axis=3)  # [N, M, K]
    areas = area[:, None] if area.ndim == 1 else area
    similar = np.exp(-squared / variance / (areas + np.spacing(1))[..., None] / 2)
    with np.errstate(invalid="ignore"):
        return (similar * counts[:, None]).sum(axis=2) / counts.sum(axis=1)[:, None]


def oks_nms(
    keypoints: np.ndarray,
    scores: np.ndarray,
    area: np.ndarray,
    sigmas: Sequence[float] | np.ndarray,
    threshold: float = 0.9,
) -> np.ndarray:
    """Which poses of one image to keep: from the best on, each that is like none kept before.

    Args:
        keypoints: [N, K, 2] px; all joints count.
        scores: [N]; of equal ones the last comes first, as in HRNet: poses without a sure joint all have 0.
        area: [N], square px; a pair is compared by its mean.
        sigmas: [K], see `Skeleton.sigmas`.
        threshold: two poses are alike where their similarity is above it.

    Returns:
        int64 [at most N], the rows kept, best first.

    Source: HRNet's ``oks_nms``.
    """
    area = np.asarray(area, np.float64)
    alike = oks(keypoints, keypoints, (area[:, None] + area) / 2, sigmas) > threshold
    suppressed = np.zeros(len(area), bool)
    kept = []
    for row in np.argsort(np.asarray(scores, np.float64), kind="stable")[::-1]:
        if not suppressed[row]:
            kept.append(row)
            suppressed |= alike[row]
    return np.array(kept, np.int64)
