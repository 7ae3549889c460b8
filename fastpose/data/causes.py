# SPDX-License-Identifier: Apache-2.0
"""What is wrong with predicted joints, and whether a network's scores say so: arrays in, counts out.

The causes are those of Ronchi and Perona, "Benchmarking and Error Diagnosis in Multi-Instance Pose Estimation" (ICCV
2017), as their coco-analyze computes them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

CAUSES = ("good", "jitter", "inversion", "swap", "miss")
GOOD, JITTER, INVERSION, SWAP, MISS = range(5)
UNCOUNTED = -1
LEAST, MOST = 0.5, 0.85  # similarity from which on a joint is found, and from which on it is good


def similarity(distance: np.ndarray, half: np.ndarray) -> np.ndarray:
    """How similar joints are to annotations, from 1 to 0: ``2 ** -(distance / half) ** 2``.

    That is COCO's ``exp(-d^2 / (2 * area * (2 * sigma)^2))``, where ``half`` is the distance at which it is one half.
    -1 where ``half`` is 0: not known.
    """
    known = half > 0
    return np.where(known, np.exp2(-((distance / np.where(known, half, 1.0)) ** 2)), -1.0)


def causes(
    predictions: np.ndarray,
    keypoints: np.ndarray,
    annotated: np.ndarray,
    half: np.ndarray,
    image_index: np.ndarray,
    mirror_pairs: Sequence[tuple[int, int]],
) -> np.ndarray:
    """What is the matter with each predicted joint of N persons.

    A prediction is compared with the annotation of its joint and of the mirrored one, of its person and of all others
    on the image, each by its own person's ``half``. What it is most similar to decides: "good" or "jitter" if that is
    its own joint and the similarity at least 0.85 or 0.5; "inversion" if it is the mirrored joint of its person; "swap"
    if it is one of the two of another person; "miss" if nothing is as similar as 0.5.

    Args:
        predictions: [N, K, 2] px, finite.
        keypoints: [N, K, 2] px.
        annotated: bool [N, K].
        half: [N, K] px, see `similarity`; 0 where not known.
        image_index: int [N], which image a person is on.
        mirror_pairs: pairs of joints that change places in a mirrored person.

    Returns:
        int8 [N, K], indices into `CAUSES`; UNCOUNTED where the joint is not annotated or ``half`` not known.
    """
    count, joints = annotated.shape
    mirror = np.arange(joints)
    for a, b in mirror_pairs:
        mirror[[a, b]] = b, a
    found = np.full((count, joints), UNCOUNTED, np.int8)
    order = np.argsort(image_index, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(image_index[order])) + 1):
        for row in rows:
            persons = np.concatenate([[row], rows[rows != row]])  # its own comes first: of equals the first counts
            like = np.concatenate(
                [
                    np.where(annotated[persons], _like(predictions[row], keypoints[persons], half[persons]), -1.0),
                    np.where(
                        annotated[persons][:, mirror],
                        _like(predictions[row], keypoints[persons][:, mirror], half[persons]),
                        -1.0,
                    ),
                ]
            )
            nearest, most = like.argmax(axis=0), like.max(axis=0)
            cause = np.where(most >= MOST, GOOD, JITTER)
            cause[nearest != 0] = SWAP
            cause[nearest == len(persons)] = INVERSION
            cause[most < LEAST] = MISS
            found[row] = np.where(annotated[row] & (half[row] > 0), cause, UNCOUNTED)
    return found


def _like(prediction: np.ndarray, keypoints: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Similarity of a prediction [K, 2] with M persons' joints [M, K, 2], float64 [M, K]."""
    return similarity(np.hypot(*np.moveaxis(prediction - keypoints, -1, 0)), half)


def shares_within(errors: np.ndarray, limits: Sequence[float]) -> list[float]:
    """How many percent of the errors, [M], are at most each limit; NaN without errors."""
    if not len(errors):
        return [math.nan] * len(limits)
    return (100.0 * np.searchsorted(np.sort(errors), limits, side="right") / len(errors)).tolist()


class Bin(NamedTuple):
    """Joints whose scores are between `low` and `high`: how many, their mean score, and the share that is right; NaN
    without joints."""

    low: float
    high: float
    joints: int
    score: float
    right: float


def calibration(scores: np.ndarray, right: np.ndarray, bins: int = 10) -> tuple[list[Bin], float]:
    """How well scores say which joints are right.

    Args:
        scores: [M]; those below 0 count in the first bin, those above 1 in the last one.
        right: bool [M].
        bins: of equal width from 0 to 1.

    Returns:
        The bins; and the expected calibration error: the mean over joints of how far the mean score of the joint's bin
        is from the share in it that is right. NaN without joints.
    """
    places = np.clip((np.asarray(scores, np.float64) * bins).astype(np.int64), 0, bins - 1)
    found = []
    for number in range(bins):
        inside = places == number
        count = int(inside.sum())
        mean, share = (float(a[inside].mean()) if count else math.nan for a in (scores.astype(np.float64), right))
        found.append(Bin(number / bins, (number + 1) / bins, count, mean, share))
    total = sum(one.joints for one in found)
    gaps = sum(one.joints * abs(one.score - one.right) for one in found if one.joints)
    return found, gaps / total if total else math.nan
