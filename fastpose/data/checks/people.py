# SPDX-License-Identifier: Apache-2.0
"""Persons in their boxes and images: how many and how large they are, and what lies outside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastpose.data.boxes import PADDING
from fastpose.data.checks.limbs import doubts_about_limbs
from fastpose.data.findings import Finding, cases_of
from fastpose.data.persons import Persons

_BEYOND = 1.0  # px that points and boxes may be outside of an image: some programs count pixels from 1
_OUTSIDE_BOX = 0.1  # of the box's longer side; COCO's annotators leave a tenth of the joints a little outside
_PERCENTILES = (5, 50, 95)


def person_sizes(persons: Persons) -> NDArray[np.float64]:
    """The longer side of each person's box, px [N]: of the file's own where it has boxes, of MPII's 200 px * scale."""
    if "box" in persons.extras:
        return np.asarray(persons.extras["box"][:, 2:].max(axis=1), np.float64)
    return 200.0 / PADDING * persons.scale.max(axis=1).astype(np.float64)


def doubts_about_persons(persons: Persons, sizes: NDArray[np.float64], small: float) -> list[Finding]:
    """What is wrong with single persons, or worth knowing of them, beside `sense.doubts`.

    Args:
        persons: N persons on M images; of ``extras`` ``box`` [N, 4] is the box as the file has it.
        sizes: (width, height) of the images, [M, 2], NaN where it is not known.
        small: longer side of the box, px, below which a person is small.
    """
    found: list[Finding] = []
    if not persons.visible.any():
        what = f"none of the {len(persons):,} persons has an annotated joint"
        found.append(Finding("no_joints", what, len(persons), len(persons)))
    seen, points = persons.visible > 0, persons.keypoints.astype(np.float64)
    size = sizes[persons.image_index]  # [N, 2]

    def note(code: str, wrong: NDArray[np.bool_], what: str, more: Callable[[int], str]) -> None:
        """Adds a finding if `wrong` is true of anybody: [N, J] of joints or [N] of persons."""
        if not wrong.any():
            return
        rows = np.flatnonzero(wrong.reshape(len(persons), -1).any(axis=1))
        row, count = int(rows[0]), int(np.count_nonzero(wrong))
        of, kind, place = len(persons), "persons", ""
        if wrong.ndim == 2:
            joint = int(np.argmax(wrong[row]))
            of, kind = int(seen.sum()), "joints"
            place = f", {persons.skeleton.joints[joint]} at ({points[row, joint, 0]:g}, {points[row, joint, 1]:g})"
        text = f"{count:,} of {of:,} {kind} {what}"
        found.append(Finding(code, text, count, of, cases_of(persons, rows), place + more(row)))

    def in_image(row: int) -> str:
        return f", in {size[row, 0]:g} x {size[row, 1]:g} px"

    def in_box(row: int) -> str:
        x, y, w, h = persons.extras["box"][row]
        return f", box of {w:g} x {h:g} px at ({x:g}, {y:g})"

    beyond = np.maximum(-points, points - (size[:, None] - 1)).max(axis=2)  # NaN where the size is not known
    note("joint_outside_image", seen & (beyond > _BEYOND), "lie outside their image", in_image)
    if "box" in persons.extras:
        box = persons.extras["box"].astype(np.float64)
        low, high = box[:, :2], box[:, :2] + box[:, 2:]
        outside = np.maximum(low[:, None] - points, points - high[:, None]).max(axis=2)
        tenth = _OUTSIDE_BOX * box[:, 2:].max(axis=1, keepdims=True)
        what = f"lie outside their box, by more than {_OUTSIDE_BOX:g} of its longer side"
        note("joint_outside_box", seen & (outside > tenth), what, in_box)
        past = np.maximum(-low, high - size).max(axis=1)
        what = "have boxes that reach outside their image, where they are cut"
        note("box_outside_image", past > _BEYOND, what, lambda row: in_box(row) + in_image(row))
    longer = person_sizes(persons)
    note(
        "person_small",
        longer < small,
        f"are below {small:g} px, by the longer side of their box",
        lambda row: f", {longer[row]:g} px",
    )
    return found + doubts_about_limbs(persons)


def counts(parts: Sequence[tuple[Persons, NDArray[np.float64]]], small: float) -> dict[str, Any]:
    """How many and how large the persons and the images of one or more splits are, as plain values.

    Args:
        parts: the persons of each split, and (width, height) of its images, NaN where it is not known.
        small: as of `doubts_about_persons`.
    """
    sizes = np.concatenate([sizes for _, sizes in parts])
    sizes = sizes[~np.isnan(sizes).any(axis=1)]
    order = sizes[np.argsort(sizes.prod(axis=1), kind="stable")].astype(int).tolist()
    longer = np.concatenate([person_sizes(persons) for persons, _ in parts])
    joints = parts[0][0].skeleton.joints
    annotated = np.concatenate([persons.visible > 0 for persons, _ in parts]).mean(axis=0)
    percentiles = np.percentile(longer, (0, *_PERCENTILES, 100)) if len(longer) else np.full(5, np.nan)
    names = ("smallest", *(f"percentile_{p}" for p in _PERCENTILES), "largest")
    return {
        "persons": len(longer),
        "images": sum(len(sizes) for _, sizes in parts),
        "image_size": {name: order[place] for name, place in _places(len(order)).items()},  # empty if no size is known
        "person_px": {name: round(float(value), 1) for name, value in zip(names, percentiles, strict=True)},
        "persons_small": int((longer < small).sum()),
        "annotated": {name: round(float(share), 4) for name, share in zip(joints, annotated, strict=True)},
    }


def _places(count: int) -> dict[str, int]:
    """Where the smallest, the median and the largest of `count` sorted values are."""
    return {"smallest": 0, "median": (count - 1) // 2, "largest": count - 1} if count else {}
