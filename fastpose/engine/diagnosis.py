# SPDX-License-Identifier: Apache-2.0
"""What a run's page says of its predictions: numbers, from predictions and annotations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastpose.data.causes import (
    CAUSES,
    UNCOUNTED,
    Bin,
    calibration,
    causes,
    shares_within,
    similarity,
)
from fastpose.engine.predicted import Predicted

SHOWN = 6  # best and worst predictions, each
_PARTS = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0)  # of the score's threshold, in the table


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """Numbers of K joints, each over all persons. Shares are percentages, NaN without joints.

    Attributes:
        annotated: int [K], joints that are compared.
        right: float [K], the share that is right.
        median: float [K], the median error in px.
        causes: int [K, 5], joints by cause, in the order of CAUSES.
        limits, within: thresholds, and the share of all joints within each; `limits` are similarities where the score
            has no threshold, and errors in its unit otherwise.
        table: some of these.
        bins, gap: see `calibration`; right is what the score counts.
        best, worst: rows of persons, the best and the worst first; nobody is in both.
        persons: float [N], each person's mean similarity; NaN without a joint to compare.
        found: int8 [N, K], see `causes`.
    """

    annotated: np.ndarray
    right: np.ndarray
    median: np.ndarray
    causes: np.ndarray
    limits: list[float]
    within: list[float]
    table: list[tuple[float, float]]
    bins: list[Bin]
    gap: float
    best: list[int]
    worst: list[int]
    persons: np.ndarray
    found: np.ndarray

    @property
    def all_right(self) -> float:
        """The share of all joints that is right."""
        return float(np.nansum(self.right * self.annotated) / max(int(self.annotated.sum()), 1))


def diagnose(predicted: Predicted) -> Diagnosis | None:
    """The numbers; None if no joint can be compared."""
    counted = predicted.counted
    if not counted.any():
        return None
    guesses = np.where(np.isfinite(predicted.predictions), predicted.predictions, 0).astype(np.float64)
    truth = np.where(np.isfinite(predicted.keypoints), predicted.keypoints, 0).astype(np.float64)
    half = np.where(counted & (predicted.half > 0), predicted.half, 0).astype(np.float64)
    distance = np.hypot(*np.moveaxis(guesses - truth, -1, 0))
    relative = distance / np.where(counted, predicted.right, 1)
    right = counted & (relative <= 1)
    found = causes(guesses, truth, _annotated(predicted), _halves(predicted), predicted.picture, _pairs(predicted))
    found[~(counted & (half > 0))] = UNCOUNTED

    joints = range(counted.shape[1])
    counts = counted.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = np.where(counts > 0, 100.0 * right.sum(axis=0) / counts, np.nan)
    like = similarity(distance, half)
    measured = (half > 0) & counted
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(measured, like, 0).sum(axis=1) / measured.sum(axis=1)
    limits, within, table = _curve(predicted, relative[counted], like[measured])
    scored = counted & np.isfinite(predicted.scores)
    bins, gap = calibration(predicted.scores[scored], right[scored])
    worst, best = _extremes(mean, measured.sum(axis=1))
    return Diagnosis(
        annotated=counts,
        right=shares,
        median=np.array([np.median(distance[counted[:, k], k]) if counts[k] else np.nan for k in joints]),
        causes=np.stack([(found == number).sum(axis=0) for number in range(len(CAUSES))], axis=1),
        limits=limits,
        within=within,
        table=table,
        bins=bins,
        gap=gap,
        best=best,
        worst=worst,
        persons=mean,
        found=found,
    )


def _annotated(predicted: Predicted) -> np.ndarray:
    """Joints that a prediction may be taken for, those of persons whose own image could not be read included."""
    return predicted.compared & np.isfinite(predicted.keypoints).all(axis=2)


def _halves(predicted: Predicted) -> np.ndarray:
    return np.where(np.isfinite(predicted.half), predicted.half, 0).astype(np.float64)


def _pairs(predicted: Predicted) -> tuple[tuple[int, int], ...]:
    return predicted.skeleton.mirror_pairs


def _curve(
    predicted: Predicted, relative: np.ndarray, like: np.ndarray
) -> tuple[list[float], list[float], list[tuple[float, float]]]:
    if predicted.threshold > 0:
        limits = [round(2 * predicted.threshold * step / 40, 10) for step in range(41)]
        within = shares_within(relative * predicted.threshold, limits)
        some = [round(part * predicted.threshold, 10) for part in _PARTS]
        return limits, within, list(zip(some, shares_within(relative * predicted.threshold, some), strict=True))
    limits = [round(0.5 + 0.05 * step, 2) for step in range(10)]
    within = shares_within(-like, [-limit for limit in limits])
    return limits, within, list(zip(limits, within, strict=True))


def _extremes(mean: np.ndarray, joints: np.ndarray) -> tuple[list[int], list[int]]:
    """The worst and the best persons, of those with at least half as many joints as anybody has."""
    rows = np.flatnonzero((joints > 0) & (2 * joints >= joints.max()))
    rows = rows[np.argsort(mean[rows], kind="stable")]
    worst = rows[: min(SHOWN, -(-len(rows) // 2))]
    best = rows[len(worst) :][::-1][:SHOWN]
    return worst.tolist(), best.tolist()
