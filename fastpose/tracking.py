# SPDX-License-Identifier: Apache-2.0
"""Persons through the frames of a video: where to look next, who is who, and steadier joints."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fastpose.engine.drawing import is_found
from fastpose.metrics import oks
from fastpose.skeletons import Skeleton

Array = NDArray[np.float64]

LEAST_JOINTS = 3  # found ones, from which on there is a person in a box at all
UNKNOWN_SIGMA = 0.05  # as AP takes it where a skeleton does not say
BEYOND_JOINTS = 1.2  # a person's box in extents of the joints: hair and feet are outside them
LEAST_ASPECT = 0.25  # of a box's shorter side to its longer one


class OneEuro:
    """Smooths points: strongly where they rest, hardly where they move fast.

    Speeds are in sizes of the person per second, so that one setting fits all distances from the camera.

    Args:
        min_cutoff: the low-pass filter's frequency at rest, Hz: the lower, the steadier.
        beta: by how many Hz it rises per size and second: the higher, the less it lags behind.
        speed_cutoff: the frequency that speeds are smoothed with, Hz.

    Source: Casiez, Roussel and Vogel, "1€ Filter", CHI 2012; the defaults are those of MediaPipe's pose.
    """

    def __init__(self, min_cutoff: float = 0.05, beta: float = 80.0, speed_cutoff: float = 1.0) -> None:
        self.min_cutoff, self.beta, self.speed_cutoff = min_cutoff, beta, speed_cutoff
        self._points: Array | None = None
        self._speed: Array | None = None

    def __call__(self, points: Array, found: NDArray[np.bool_], seconds: float, size: float) -> Array:
        """The smoothed points.

        Args:
            points: [K, 2] px.
            found: bool [K]. A point that is not found is returned as it is, and is not smoothed when it is found again.
            seconds: since the last call.
            size: the person's, px.
        """
        if self._points is None or self._speed is None:
            self._points, self._speed = np.where(found[:, None], points, np.nan), np.zeros_like(points)
            return points
        before = np.where(np.isnan(self._points), points, self._points)
        speed = (points - before) / max(size, 1.0) / seconds
        self._speed += _share(self.speed_cutoff, seconds) * (speed - self._speed)
        share = _share(self.min_cutoff + self.beta * np.abs(self._speed), seconds)
        smooth = np.where(found[:, None], before + share * (points - before), points)
        self._points = np.where(found[:, None], smooth, np.nan)
        self._speed[~found] = 0.0
        return smooth


def _share(cutoff: Array | float, seconds: float) -> Array | float:
    """How much of the new value a low-pass filter takes."""
    return 1.0 / (1.0 + 1.0 / (2 * math.pi * cutoff * seconds))


@dataclass
class Track:
    """A person who is followed.

    Attributes:
        id: its number, from 1.
        pose: [K, 2] px, where it was seen last, not smoothed.
        found: bool [K].
        velocity: [2] px per frame, of the joints' mean.
        missed: frames since then.
    """

    id: int
    pose: Array
    found: NDArray[np.bool_]
    filter: OneEuro | None
    velocity: Array = field(default_factory=lambda: np.zeros(2))
    missed: int = 0

    def expected(self) -> Array:
        """Where the pose should be in the next frame, if it moves on as before."""
        return self.pose + self.velocity * (1 if self.missed == 0 else 0)

    def size(self) -> float:
        points = self.pose[self.found]
        return float((points.max(0) - points.min(0)).max())

    def box(self) -> Array:
        """Where to look for it in the next frame: x, y, w, h."""
        points = self.expected()[self.found]
        low, high = points.min(0), points.max(0)
        sides = (high - low) * BEYOND_JOINTS
        sides = np.maximum(sides, max(float(sides.max()) * LEAST_ASPECT, 4.0)) * (1 + 0.1 * min(self.missed, 5))
        return np.concatenate([(low + high - sides) / 2, sides])


class Tracker:
    """Follows persons by the similarity of their poses (OKS).

    Args:
        skeleton: the joints.
        least_oks: two poses of one person are at least as similar as this from one frame to the next, after the first
            one has moved on as it did before.
        patience: frames for which somebody who is not seen keeps the number.
        smooth: smooth joints by a One Euro filter.
        least_score: of a joint that counts as found.

    Attributes:
        tracks: who is followed.
    """

    def __init__(
        self,
        skeleton: Skeleton,
        *,
        least_oks: float = 0.2,
        patience: int = 15,
        smooth: bool = True,
        least_score: float = 0.2,
    ) -> None:
        self.sigmas = skeleton.sigmas or (UNKNOWN_SIGMA,) * skeleton.num_joints
        self.least_oks, self.patience, self.smooth, self.least_score = least_oks, patience, smooth, least_score
        self.least_joints = min(LEAST_JOINTS, skeleton.num_joints)
        self.tracks: list[Track] = []
        self._last_id = 0

    def boxes(self, detected: Array | None = None) -> tuple[Array, list[Track | None]]:
        """Where to look in the next frame: boxes [P, 4], and whose they are.

        Args:
            detected: [N, 4], boxes that a detector found in it: they replace those of persons that they overlap, and
                who has none is looked for where it should be.
        """
        own = [track.box() for track in self.tracks]
        if detected is None:
            return np.array(own).reshape(-1, 4), list(self.tracks)
        boxes: list[Array] = list(np.asarray(detected, np.float64).reshape(-1, 4))
        whose: list[Track | None] = [None] * len(boxes)
        free = set(range(len(boxes)))
        for track, box in zip(self.tracks, own, strict=True):
            overlaps = {number: overlap(box, boxes[number]) for number in free}
            best = max(overlaps, key=lambda number: overlaps[number], default=None)
            if best is not None and overlaps[best] > 0.3:
                free.remove(best)
                whose[best] = track
            elif all(overlap(box, other) < 0.7 for other in boxes[: len(whose)]):
                boxes.append(box)
                whose.append(track)
        return np.array(boxes).reshape(-1, 4), whose

    def update(
        self, poses: Array, scores: Array, whose: list[Track | None], seconds: float
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], Array]:
        """Takes what was found in the boxes.

        Args:
            poses: [P, K, 2] px.
            scores: [P, K].
            whose: whose box each was found in, see `boxes`.
            seconds: since the last frame.

        Returns:
            rows, int64 [N], of the poses that are persons: those with at least 3 joints found, and of several that are
            nearly the same the one with the longest history; their ids, int64 [N]; and their poses [N, K, 2], smoothed.
        """
        found = is_found(scores, self.least_score)
        rows = [row for row in range(len(poses)) if found[row].sum() >= self.least_joints]
        rows = self._distinct(rows, poses, scores, found, whose)
        of_track = self._matched(rows, poses, found, whose)
        ids, kept, smoothed = [], [], []
        for row in rows:
            track = of_track.get(row)
            if track is None:
                self._last_id += 1
                track = Track(self._last_id, poses[row], found[row], OneEuro() if self.smooth else None)
                self.tracks.append(track)
            else:
                both = track.found & found[row]
                moved = (poses[row] - track.pose)[both].mean(0) if both.any() else np.zeros(2)
                track.velocity = moved if track.missed == 0 else np.zeros(2)
                track.pose, track.found = poses[row], found[row]
            smooth = poses[row]
            if track.filter is not None:
                smooth = track.filter(poses[row], found[row], seconds, track.size())
            ids.append(track.id)
            kept.append(row)
            smoothed.append(smooth)
            track.missed = -1
        for track in self.tracks:
            track.missed += 1
        self.tracks = [track for track in self.tracks if track.missed <= self.patience]
        return np.array(kept, np.int64), np.array(ids, np.int64), np.array(smoothed).reshape(-1, *poses.shape[1:])

    def _distinct(
        self, rows: list[int], poses: Array, scores: Array, found: NDArray[np.bool_], whose: list[Track | None]
    ) -> list[int]:
        """The rows without those that are nearly the pose of another one, who has been followed for longer or, of two
        new ones, is more certain."""

        def rank(row: int) -> tuple[float, float]:
            track = whose[row]
            return (math.inf if track is None else float(track.id)), -float(scores[row][found[row]].mean())

        kept: list[int] = []
        for row in sorted(rows, key=rank):
            if not any(self._similarity(poses[other], found[other], poses[row], found[row]) > 0.8 for other in kept):
                kept.append(row)
        return sorted(kept)

    def _matched(
        self, rows: list[int], poses: Array, found: NDArray[np.bool_], whose: list[Track | None]
    ) -> dict[int, Track]:
        """The person of each row, the most similar first; who is like nobody is whoever it was looked for as."""
        pairs = [
            (self._similarity(track.expected(), track.found, poses[row], found[row]), row, number)
            for row in rows
            for number, track in enumerate(self.tracks)
        ]
        matched: dict[int, Track] = {}
        taken: set[int] = set()
        for similarity, row, number in sorted(pairs, reverse=True):
            if similarity >= self.least_oks and row not in matched and number not in taken:
                matched[row] = self.tracks[number]
                taken.add(number)
        places = {track.id: number for number, track in enumerate(self.tracks)}
        for row in rows:
            track = whose[row]
            if row not in matched and track is not None and track.id in places and places[track.id] not in taken:
                matched[row] = track
                taken.add(places[track.id])
        return matched

    def _similarity(self, a: Array, found_a: NDArray[np.bool_], b: Array, found_b: NDArray[np.bool_]) -> float:
        """OKS over the joints that both have, by the larger area; 0 without such joints."""
        both = found_a & found_b
        if not both.any():
            return 0.0
        areas = [
            float(np.prod(np.maximum(np.ptp(pose[found], axis=0), 8.0))) for pose, found in ((a, found_a), (b, found_b))
        ]
        return float(oks(a[None], b[None], np.array([max(areas)]), self.sigmas, both[None])[0, 0])


def overlap(a: Array, b: Array) -> float:
    """Intersection over union of two boxes x, y, w, h."""
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[:2] + a[2:], b[:2] + b[2:])
    shared = float(np.prod(np.maximum(high - low, 0.0)))
    return shared / max(float(a[2:].prod() + b[2:].prod()) - shared, 1e-9)
