# SPDX-License-Identifier: Apache-2.0
"""Persons whose joints no body can have like this: sides exchanged, or joints in wrong places.

In a picture a body turns and bends as it likes, so each check asks for more than a pose can explain. The thresholds are
from Leeds Sports Pose Extended, whose noise was looked at in pictures, and keep quiet on all but 1 % of MPII and on
COCO. Persons with joints less than `LEAST_EXTENT` apart are passed over: a pixel is much there.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastpose.data.findings import Finding, cases_of
from fastpose.data.persons import Persons
from fastpose.skeletons import Skeleton
from fastpose.skeletons.sides import pairs_by_name

LEAST_EXTENT = 32.0  # px, of a person's joints
_OPPOSITE, _WIDE = -0.5, 0.3  # cosine of the angle; widths of shoulders and of hips, in lengths of the trunk
_SHORTER = 0.9  # of a pair of limbs, with the ends exchanged
_UPRIGHT, _APART = -0.7, 0.05  # sine of the angle; distance of the eyes in that from the shoulders to them
_LONGER = 1.8  # times as long as the second longest limb of the same person, each in its usual length
_LONG_LIMB = 0.1  # usual length in extents of the person; shorter ones, of faces and hands, are too inexact
_FEWEST_LIMBS, _FEWEST_PERSONS = 5, 20


def doubts_about_limbs(persons: Persons) -> list[Finding]:
    """What is wrong with the limbs of single persons, N of them with J joints."""
    points, seen = persons.keypoints.astype(np.float64), persons.visible > 0
    extent = _extent(points, seen)
    large = extent >= LEAST_EXTENT
    found: list[Finding] = []

    def note(code: str, wrong: NDArray[np.bool_], looked_at: NDArray[np.bool_], what: str, which: list[str]) -> None:
        """Adds a finding if `wrong` [N] is true of anybody; `which` says what to add about the first."""
        wrong = wrong & large
        if wrong.any():
            rows, of = np.flatnonzero(wrong), int((looked_at & large).sum())
            text, first = f"{len(rows):,} of {of:,} persons {what}", which[rows[0]]
            found.append(Finding(code, text, len(rows), of, cases_of(persons, rows), first and f", {first}"))

    nothing = [""] * len(persons)
    crossed, both = crossed_trunks(persons.skeleton, points, seen)
    note(
        "trunk_crossed",
        crossed,
        both,
        "have their shoulders and hips the opposite way, as if sides were exchanged",
        nothing,
    )
    exchanged, whole, names = exchanged_joints(persons.skeleton, points, seen)
    what = "have limbs that are shorter with a left and a right joint exchanged"
    note("joints_exchanged", exchanged, whole, what, names)
    mirrored, eyes = mirrored_faces(persons.skeleton, points, seen)
    note("face_mirrored", mirrored, eyes, "have their left eye where the right one is", nothing)
    long, limbs, names = long_limbs(persons.skeleton, points, seen, extent)
    note("limb_too_long", long, limbs, "have a limb that is much too long for the others", names)
    return found


def _extent(points: NDArray[np.float64], seen: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The longer side of the box around each person's joints, px [N]; 0 where there are none."""
    low = np.where(seen[..., None], points, np.inf).min(axis=1)
    high = np.where(seen[..., None], points, -np.inf).max(axis=1)
    return np.maximum((high - low).max(axis=1), 0)


def _sides(skeleton: Skeleton, part: str) -> tuple[int, int] | None:
    """The left and the right joint of the one pair, by their names, that is called `part`; None if there is none."""
    pairs = [(left, right) for right, left in pairs_by_name(skeleton.joints) if part in skeleton.joints[left].lower()]
    return pairs[0] if len(pairs) == 1 else None


def crossed_trunks(
    skeleton: Skeleton, points: NDArray[np.float64], seen: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether the line from the right to the left shoulder runs against that of the hips, both wide; and whether they
    are annotated; bool [N] each. A spine turns by a quarter at most, so one of the two is then seen from its edge."""
    shoulders, hips = _sides(skeleton, "shoulder"), _sides(skeleton, "hip")
    if shoulders is None or hips is None:
        return np.zeros(len(points), bool), np.zeros(len(points), bool)
    upper, lower = (points[:, left] - points[:, right] for left, right in (shoulders, hips))
    trunk = np.linalg.norm(points[:, shoulders].mean(axis=1) - points[:, hips].mean(axis=1), axis=1)
    widths = np.linalg.norm(upper, axis=1), np.linalg.norm(lower, axis=1)
    against = (upper * lower).sum(axis=1) < _OPPOSITE * widths[0] * widths[1]
    both = np.asarray(seen[:, [*shoulders, *hips]].all(axis=1))
    return both & against & (np.minimum(*widths) > _WIDE * trunk), both


def exchanged_joints(
    skeleton: Skeleton, points: NDArray[np.float64], seen: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], list[str]]:
    """Whether all limbs at a left and a right joint, of two kinds at least, get shorter if the two are exchanged:
    thighs and shins by the knees. Crossed legs make one kind shorter.

    Returns:
        bool [N]; whether there are such limbs, bool [N]; the names of the joints.
    """
    partner = {a: b for pair in skeleton.mirror_pairs for a, b in (pair, pair[::-1])}
    limbs = {frozenset(limb) for limb in skeleton.limbs}
    wrong, looked_at = np.zeros(len(points), bool), np.zeros(len(points), bool)
    names = [""] * len(points)

    def length(a: int, b: int) -> NDArray[np.float64]:
        return np.asarray(np.linalg.norm(points[:, a] - points[:, b], axis=1))

    for a, b in skeleton.mirror_pairs:
        ends = [c for c in partner if c != b and {frozenset((a, c)), frozenset((b, partner[c]))} <= limbs]
        if len(ends) < 2:
            continue
        annotated = seen[:, [a, b, *ends, *(partner[c] for c in ends)]].all(axis=1)
        shorter = annotated.copy()
        for c in ends:
            shorter &= length(a, partner[c]) + length(b, c) < _SHORTER * (length(a, c) + length(b, partner[c]))
        for row in np.flatnonzero(shorter & ~wrong):
            names[row] = f"{skeleton.joints[a]} and {skeleton.joints[b]}"
        wrong, looked_at = wrong | shorter, looked_at | annotated
    return wrong, looked_at, names


def mirrored_faces(
    skeleton: Skeleton, points: NDArray[np.float64], seen: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether the left eye is on the left, seen from the shoulders upwards; and whether all four are annotated;
    bool [N] each. Two eyes that are seen look at the camera, so the left one is on the right."""
    shoulders, eyes = _sides(skeleton, "shoulder"), _sides(skeleton, "eye")
    if shoulders is None or eyes is None:
        return np.zeros(len(points), bool), np.zeros(len(points), bool)
    up = points[:, eyes].mean(axis=1) - points[:, shoulders].mean(axis=1)
    across = points[:, eyes[0]] - points[:, eyes[1]]
    length, width = np.linalg.norm(up, axis=1), np.linalg.norm(across, axis=1)
    turn = (
        up[:, 0] * across[:, 1] - up[:, 1] * across[:, 0]
    )  # y points down: above 0 where the left eye is on the right
    both = np.asarray(seen[:, [*shoulders, *eyes]].all(axis=1))
    return both & (turn < _UPRIGHT * length * width) & (width > _APART * length), both


def long_limbs(
    skeleton: Skeleton, points: NDArray[np.float64], seen: NDArray[np.bool_], extent: NDArray[np.float64]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], list[str]]:
    """Whether one limb is far longer than the others of the person, each compared with what is usual in these data.

    Foreshortening makes limbs shorter, and seldom all but one.

    Returns:
        bool [N]; whether enough limbs are annotated, bool [N]; the names of the limb's joints.
    """
    nobody = np.zeros(len(points), bool)
    if not skeleton.limbs:
        return nobody, nobody, [""] * len(points)
    ends = np.array(skeleton.limbs).T  # [2, L]
    annotated = seen[:, ends[0]] & seen[:, ends[1]]  # [N, L]
    lengths = np.linalg.norm(points[:, ends[0]] - points[:, ends[1]], axis=2) / np.maximum(extent, 1e-6)[:, None]
    usual = np.zeros(ends.shape[1])
    for limb in np.flatnonzero(annotated.sum(axis=0) >= _FEWEST_PERSONS):
        usual[limb] = np.percentile(lengths[annotated[:, limb], limb], 75)
    counted = annotated & (usual >= _LONG_LIMB)
    enough = counted.sum(axis=1) >= _FEWEST_LIMBS
    if not enough.any():
        return nobody, nobody, [""] * len(points)
    times = np.where(counted, lengths / np.maximum(usual, _LONG_LIMB), 0)
    second, first = np.sort(times, axis=1)[:, -2:].T
    names = [f"{skeleton.joints[a]} to {skeleton.joints[b]}" for a, b in skeleton.limbs]
    return enough & (first > _LONGER * second), enough, [names[limb] for limb in times.argmax(axis=1)]
