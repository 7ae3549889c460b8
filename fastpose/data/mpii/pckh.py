# SPDX-License-Identifier: Apache-2.0
"""PCKh, MPII's score: the share of joints whose error is within a part of the person's head size."""

from __future__ import annotations

import math

import numpy as np

from fastpose.data.joint_errors import check_persons, joint_errors, known_mean, numbers, percent
from fastpose.skeletons import MPII

# What each name averages over, in MPII's joint order.
_GROUPS = {
    "Head": (9,),
    "Shoulder": (12, 13),
    "Elbow": (11, 14),
    "Wrist": (10, 15),
    "Hip": (2, 3),
    "Knee": (1, 4),
    "Ankle": (0, 5),
}
# Pelvis and thorax are left out of the mean.
_COUNTED = [joint for joint in range(MPII.num_joints) if joint not in (6, 7)]
# SimpleBaselines prints the row 11 of its grid 0, 0.01, ... as "Mean@0.1": it is @0.11. Both, under their true names.
_MEANS = {"Mean": 0.5, "Mean@0.1": 0.1, "Mean@0.11": 0.11}


def pckh(
    predictions: np.ndarray, keypoints: np.ndarray, visible: np.ndarray, head_size: np.ndarray
) -> dict[str, float]:
    """PCKh of N persons with MPII's 16 joints.

    A joint is right when ``distance / head_size <= threshold``, computed in float64; joints that are not annotated do
    not count. ``Head`` (head top) to ``Ankle`` are @0.5, the mean of left and right. ``Mean`` (@0.5), ``Mean@0.1`` and
    ``Mean@0.11`` are over all annotated joints but pelvis and thorax, each joint of each person counting the same.
    ``Mean@0.11`` is the number that SimpleBaselines and HRNet print as "Mean@0.1"; mmpose 1.x's "PCK@0.1" is
    ``Mean@0.1``.

    Args:
        predictions: [N, 16, 2] px, finite, in the coordinates of ``keypoints``.
        keypoints: [N, 16, 2] px, finite where visible.
        visible: [N, 16], annotated where > 0.
        head_size: [N] px, positive; 0.6 times the diagonal of the head box.

    Returns:
        Percentages by name; NaN where no joint of that name is annotated (of one side alone: the other side's).

    Raises:
        ValueError: an argument has another shape, or a value that is not finite or out of range; names its person.

    Source: MPII's ``evaluatePCKh.m`` and SimpleBaselines' ``MPIIDataset.evaluate``.
    """
    distance, annotated = joint_errors(predictions, keypoints, visible, MPII.num_joints)
    head_size = numbers("head_size", head_size, (len(distance),))
    check_persons("head_size", (head_size > 0) & np.isfinite(head_size), "positive and finite")

    error = distance / head_size[:, None]
    per_joint = percent(error <= 0.5, annotated)
    scores = {name: known_mean([per_joint[joint] for joint in joints]) for name, joints in _GROUPS.items()}
    for name, threshold in _MEANS.items():
        right = (error <= threshold) & annotated
        total = int(annotated[:, _COUNTED].sum())
        scores[name] = 100.0 * int(right[:, _COUNTED].sum()) / total if total else math.nan
    return scores
