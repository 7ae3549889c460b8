# SPDX-License-Identifier: Apache-2.0
"""Persons through the frames of a video: where to look next, who is who, and steadier joints."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

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
IN_BOX = 0.3  # of OKS: what it counts that a pose was found in somebody's box
LEAST_OVERLAP = 0.3  # of a person's box and the detector's, to be the same person
MOSTLY = 0.7  # a box is a part of another one if so much of it lies in there
DENIALS = 2  # searches of the detector, one after the other, after which nobody is believed to be there
# How far a person gets from one frame to the next, in the box's longer sides: joints; and the box in relation to them.
SPEED, STEP = 0.2, 0.05
STEADY = 0.5  # what of the last frame's speed counts


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
        around: [4], the box that it is in there: x, y, w, h.
        velocity: [2] px per frame; None before it was seen in two.
        missed: frames since then.
        denied: searches of the detector, one after the other, that did not find it.
    """

    id: int
    pose: Array
    found: NDArray[np.bool_]
    around: Array
    filter: OneEuro | None
    velocity: Array | None = None
    missed: int = 0
    denied: int = 0

    def expected(self) -> Array:
        """Where the pose should be in the next frame, if it moves on as before."""
        return self.pose + self._ahead()

    def size(self) -> float:
        points = self.pose[self.found]
        return float((points.max(0) - points.min(0)).max())

    def box(self) -> Array:
        """Where to look for it in the next frame: x, y, w, h."""
        grown = self.around[2:] * (1 + 0.1 * min(self.missed, 5))
        return np.concatenate([self.around[:2] + self._ahead() + (self.around[2:] - grown) / 2, grown])

    def see(self, pose: Array, found: NDArray[np.bool_], around: Array) -> None:
        """It is in the next frame, or in one after those that it was missed in."""
        both = self.found & found
        if self.missed or not both.any():
            self.velocity = None
        else:  # a few joints jump to somewhere else: the median does not
            most = SPEED * float(self.around[2:].max())
            moved = np.clip(np.median((pose - self.pose)[both], axis=0), -most, most)
            self.velocity = moved if self.velocity is None else self.velocity + STEADY * (moved - self.velocity)
        self.pose, self.found, self.around = pose, found, settled(around, pose, found)

    def _ahead(self) -> Array:
        return np.zeros(2) if self.missed or self.velocity is None else self.velocity


class Tracker:
    """Follows persons by the similarity of their poses (OKS), and believes a detector where there is one.

    Args:
        skeleton: the joints.
        least_oks: two poses of one person are at least as similar as this from one frame to the next, after the first
            one has moved on as it did before.
        patience: frames for which somebody who is not seen keeps the number.
        smooth: smooth joints by a One Euro filter.
        least_score: of a joint that counts as found.

    Attributes:
        tracks: who is followed, those included who are not seen at the moment.
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

    @property
    def followed(self) -> list[Track]:
        """Who is looked for in the next frame."""
        return [track for track in self.tracks if track.denied < DENIALS]

    def boxes(self, detected: Array | None = None) -> tuple[Array, list[Track | None]]:
        """Where to look in the next frame: boxes [P, 4], and whose they are.

        Args:
            detected: [N, 4], boxes that a detector found in it. They replace those of persons that they overlap. Who
                has none is looked for once more where it should be, and no longer if the next search does not find it
                either: a network finds joints in any background.
        """
        if detected is None:
            return np.array([track.box() for track in self.followed]).reshape(-1, 4), list(self.followed)
        boxes: list[Array] = list(np.asarray(detected, np.float64).reshape(-1, 4))
        whose: list[Track | None] = [None] * len(boxes)
        own = [track.box() for track in self.tracks]
        pairs = [
            (likeness, number, place)
            for number, one in enumerate(own)
            for place, box in enumerate(boxes)
            if (likeness := _likeness(one, box)) >= LEAST_OVERLAP
        ]
        lost = set(range(len(own)))
        for number, place in best_pairs(pairs):
            lost.remove(number)
            whose[place] = self.tracks[number]
            self.tracks[number].denied = 0
        for number in sorted(lost):
            track = self.tracks[number]
            track.denied += 1
            if track.denied < DENIALS and not any(inside(own[number], box) > MOSTLY for box in boxes):
                boxes.append(own[number])
                whose.append(track)
        return np.array(boxes).reshape(-1, 4), whose

    def update(
        self, poses: Array, scores: Array, boxes: Array, whose: list[Track | None], seconds: float
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], Array]:
        """Takes what was found in the boxes.

        Args:
            poses: [P, K, 2] px.
            scores: [P, K].
            boxes: [P, 4], x, y, w, h, what each was found in, see `boxes`.
            whose: whose boxes those are.
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
            pose, around = poses[row], np.asarray(boxes[row], np.float64)
            if track is None:
                self._last_id += 1
                around = settled(around, pose, found[row])
                track = Track(self._last_id, pose, found[row], around, OneEuro() if self.smooth else None)
                self.tracks.append(track)
            else:
                if (owner := whose[row]) is not track:  # as certain as whom this box was for
                    track.denied = 0 if owner is None else owner.denied
                track.see(pose, found[row], around)
            smooth = pose
            if track.filter is not None:
                smooth = track.filter(pose, found[row], seconds * (track.missed + 1), track.size())
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
        """The person of each row, the most similar first; whose box a pose was found in needs no similarity."""
        pairs = []
        for row in rows:
            for number, track in enumerate(self.tracks):
                similarity = self._similarity(track.expected(), track.found, poses[row], found[row])
                if track is whose[row] or similarity >= self.least_oks:
                    pairs.append((similarity + IN_BOX * (track is whose[row]), row, number))
        return {row: self.tracks[number] for row, number in best_pairs(pairs)}

    def _similarity(self, a: Array, found_a: NDArray[np.bool_], b: Array, found_b: NDArray[np.bool_]) -> float:
        """OKS over the joints that both have, by the larger area; 0 without such joints."""
        both = found_a & found_b
        if not both.any():
            return 0.0
        areas = [
            float(np.prod(np.maximum(np.ptp(pose[found], axis=0), 8.0))) for pose, found in ((a, found_a), (b, found_b))
        ]
        return float(oks(a[None], b[None], np.array([max(areas)]), self.sigmas, both[None])[0, 0])


def best_pairs(pairs: Iterable[tuple[float, int, int]]) -> list[tuple[int, int]]:
    """Of pairs (how alike, one, other) those, the most alike first, in which each one and each other comes once; of
    those that are as alike, the first."""
    chosen: dict[int, int] = {}
    for _, one, other in sorted(pairs, key=lambda pair: pair[0], reverse=True):
        if one not in chosen and other not in chosen.values():
            chosen[one] = other
    return list(chosen.items())


def settled(around: Array, pose: Array, found: NDArray[np.bool_]) -> Array:
    """The box of a person who was found in one.

    With all joints found it becomes theirs, step by step; with half of them or fewer it stays. Around the few that were
    found it would shrink to a part of the person, in which fewer are found.
    """
    low, high = pose[found].min(0), pose[found].max(0)
    sides = (high - low) * BEYOND_JOINTS
    sides = np.maximum(sides, max(float(sides.max()) * LEAST_ASPECT, 4.0))
    share = max(0.0, 2 * float(found.mean()) - 1)
    most = STEP * float(around[2:].max())
    sides = around[2:] + np.clip(share * (sides - around[2:]), -most, most)
    middle = around[:2] + around[2:] / 2
    middle = middle + np.clip(share * ((low + high) / 2 - middle), -most, most)
    return np.concatenate([middle - sides / 2, sides])


def _likeness(own: Array, detected: Array) -> float:
    """How well a detector's box fits a person's, who may be looked for in a part of it only."""
    return max(overlap(own, detected), LEAST_OVERLAP if inside(own, detected) > MOSTLY else 0.0)


def overlap(a: Array, b: Array) -> float:
    """Intersection over union of two boxes x, y, w, h."""
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[:2] + a[2:], b[:2] + b[2:])
    shared = float(np.prod(np.maximum(high - low, 0.0)))
    return shared / max(float(a[2:].prod() + b[2:].prod()) - shared, 1e-9)


def inside(a: Array, b: Array) -> float:
    """The share of box a that lies in box b; x, y, w, h."""
    sides = np.minimum(a[:2] + a[2:], b[:2] + b[2:]) - np.maximum(a[:2], b[:2])
    return float(np.prod(np.maximum(sides, 0.0))) / max(float(a[2:].prod()), 1e-9)
