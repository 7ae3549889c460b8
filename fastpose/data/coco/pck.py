# SPDX-License-Identifier: Apache-2.0
"""PCK, AUC, EPE and NME: scores by distance for any joints, as mmpose has them."""

from __future__ import annotations

import math

import numpy as np

from fastpose.data.joint_errors import check_persons, joint_errors, known_mean, numbers, percent

AUC_THRESHOLDS = 20


def pck(
    predictions: np.ndarray,
    keypoints: np.ndarray,
    visible: np.ndarray,
    size: np.ndarray | float,
    threshold: float = 0.2,
) -> tuple[float, np.ndarray]:
    """PCK: the share of joints whose error is below a part of the person's size.

    A joint is right when ``distance / size < threshold``, computed in float64: an error of just the threshold is wrong
    here, and right in PCKh. Joints that are not annotated do not count, nor do persons whose size is 0. The mean is
    that of the joints' own percentages, so a joint that few persons have weighs as much as any other; in PCKh every
    annotated joint of every person weighs the same.

    Args:
        predictions: [N, K, 2] px, finite, in the coordinates of ``keypoints``.
        keypoints: [N, K, 2] px, finite where visible.
        visible: [N, K], annotated where > 0.
        size: [N], or one number for all, in px, finite and not negative: what errors are divided by.
        threshold: the largest error, in units of ``size``, positive.

    Returns:
        The mean, and each joint's, float64 [K], in percent; NaN if nobody counts.

    Raises:
        ValueError: an argument has another shape, or a value that is not finite or out of range; names its person.

    Source: mmpose's ``keypoint_pck_accuracy`` (``PCKAccuracy``), which rounds distances to float32 before comparing.
    """
    if not 0.0 < threshold < math.inf:
        raise ValueError(f"threshold must be positive and finite, got {threshold}")
    error, counted = _relative_errors(predictions, keypoints, visible, size)
    joints = percent(error < threshold, counted)
    return known_mean(joints), np.array(joints, np.float64)


def auc(predictions: np.ndarray, keypoints: np.ndarray, visible: np.ndarray, size: np.ndarray | float = 30.0) -> float:
    """Area under the curve of `pck`'s mean over its threshold, in percent: the mean at 0, 0.05, … 0.95.

    At 0 nothing is right, as errors must be below the threshold: perfect predictions have 95 %.

    Arguments and errors: see `pck`. Source: mmpose's ``keypoint_auc`` (``AUC``), whose size is 30 px.
    """
    error, counted = _relative_errors(predictions, keypoints, visible, size)
    means = [known_mean(percent(error < step / AUC_THRESHOLDS, counted)) for step in range(AUC_THRESHOLDS)]
    return sum(means) / AUC_THRESHOLDS


def epe(predictions: np.ndarray, keypoints: np.ndarray, visible: np.ndarray) -> float:
    """End-point error: the mean distance in px, over all annotated joints of all persons; NaN where there are none.

    Arguments and errors: see `pck`. Source: mmpose's ``keypoint_epe`` (``EPE``).
    """
    error, annotated = joint_errors(predictions, keypoints, visible)
    return float(error[annotated].mean()) if annotated.any() else math.nan


def nme(predictions: np.ndarray, keypoints: np.ndarray, visible: np.ndarray, size: np.ndarray | float) -> float:
    """Normalised mean error: the mean of ``distance / size``, over all annotated joints of all persons, in percent.

    Persons whose size is 0 do not count; NaN where nobody does. Percent is how the field's papers print it; mmpose
    gives the fraction.

    Arguments and errors: see `pck`. Source: mmpose's ``keypoint_nme`` (``NME``).
    """
    error, counted = _relative_errors(predictions, keypoints, visible, size)
    return 100.0 * float(error[counted].mean()) if counted.any() else math.nan


def _relative_errors(
    predictions: np.ndarray, keypoints: np.ndarray, visible: np.ndarray, size: np.ndarray | float
) -> tuple[np.ndarray, np.ndarray]:
    """Distances in units of size, float64 [N, K], and which of them count, bool [N, K]."""
    distance, annotated = joint_errors(predictions, keypoints, visible)
    sizes = numbers("size", np.full(len(distance), size) if np.ndim(size) == 0 else np.asarray(size), (len(distance),))
    check_persons("size", (sizes >= 0) & np.isfinite(sizes), "finite and not negative")
    known = sizes > 0
    return distance / np.where(known, sizes, 1)[:, None], annotated & known[:, None]
