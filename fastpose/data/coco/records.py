# SPDX-License-Identifier: Apache-2.0
"""The fields of COCO's records: ids, flags, joints and boxes, as JSON from any program may have them."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence, Set
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from fastpose.data.annotation_rows import AnnotationError, as_json, float_array, is_missing
from fastpose.data.coco.ap import Key
from fastpose.skeletons import Skeleton

log = logging.getLogger(__name__)

Where = Callable[[int], str]

_LARGEST = 1e6  # coordinates beyond this are a broken file, not a large picture
_NUMBERS: Set[type] = frozenset({int, float, bool, type(None)})  # what keypoints may have


class Visibility(NamedTuple):
    """Which joints count as annotated, of those whose v is not COCO's 0, 1 or 2.

    least: from which v on, if it is a share between 0 and 1. outside: whether those with v = 3, which is CropCOCO's for
    joints outside the image.
    """

    least: float = 0.0
    outside: bool = False


VISIBILITY = Visibility()


def read_records(contents: dict[str, Any], key: str, file: object) -> list[dict[str, Any]]:
    """A list of objects that is not empty; AnnotationError if it is something else."""
    records = contents.get(key)
    if not isinstance(records, list) or not records:
        raise AnnotationError(f"{file}: {key} must be a list of objects, got {as_json(records)}")
    for row, record in enumerate(records):
        if not isinstance(record, dict):
            raise AnnotationError(f"{file}: {key} must be a list of objects, got {as_json(record)} in row {row}")
    return records


def read_key(record: dict[str, Any], key: str, where: str) -> Key:
    """An id: any number or text. Whole floats, which pandas writes, are the whole numbers that they stand for."""
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float, str)) or not _is_finite(value):
        got = as_json(value) if key in record else "nothing"
        raise AnnotationError(f"{where}: {key} must be a number or a text, got {got}")
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _is_finite(value: int | float | str) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def read_whole(record: dict[str, Any], key: str, where: str, default: int) -> int:
    """A whole number, also as a float; `default` where it is missing."""
    value = record.get(key)
    if is_missing(value):
        return default
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise AnnotationError(f"{where}: {key} must be a whole number, got {as_json(value)}")
    return value


def read_flag(record: dict[str, Any], key: str, where: str) -> int:
    """0 or 1, also as a float, false or true; 0 where it is missing."""
    value = record.get(key)
    if is_missing(value):
        return 0
    if not isinstance(value, (int, float)) or value not in (0, 1):
        raise AnnotationError(f"{where}: {key} must be 0 or 1, got {as_json(value)}")
    return int(value)


def flat_keypoints(value: Any) -> Any:
    """Keypoints as COCO has them, numbers in a row, where they are a list [x, y, v] for each joint; else the same."""
    if isinstance(value, list) and value and all(isinstance(one, list) and len(one) == 3 for one in value):
        return list(chain.from_iterable(value))
    return value


class Tally:
    """How many records there are for each reason, and the first of them: for messages."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def add(self, reason: str, where: str, **fields: Any) -> None:
        """Counts a record; of the first one `where` and what these fields are is shown."""
        self._counts[reason] += 1
        if reason not in self._first:
            self._first[reason] = ", ".join([where, *(f"{name} {as_json(value)}" for name, value in fields.items())])

    def __bool__(self) -> bool:
        return bool(self._counts)

    def __str__(self) -> str:
        parts = (f"{count} {reason}".strip() for reason, count in self._counts.items())
        return "; ".join(
            f"{part} (the first: {first})" for part, first in zip(parts, self._first.values(), strict=True)
        )


class Joints(NamedTuple):
    """Joints of N records.

    points: float64 [N, J, 2], px; 0 where a joint is not annotated. visible: bool [N, J], whether it is.
    plain: bool [N], whether the record has nothing but numbers that pycocotools reads the same way.
    """

    points: np.ndarray
    visible: np.ndarray
    plain: np.ndarray


def read_joints(
    records: Sequence[dict[str, Any]], skeleton: Skeleton, where: Where, file: object, visibility: Visibility
) -> Joints:
    """The joints of records that have ``keypoints``: x, y and v of each of the skeleton's joints.

    A joint is annotated where v is 1 or 2, or a share between 0 and 1 that is at least `visibility.least`, or 3 if
    `visibility.outside` says so. It is not where v is 0, -1, null or NaN; then x and y may be anything.

    Raises:
        AnnotationError: v is none of these, or an annotated joint has no place; names record, joint and value.
    """
    count, joints = len(records), skeleton.num_joints
    values = [record["keypoints"] for record in records]
    array = float_array(values, 3 * joints, _NUMBERS)
    if array is None:
        raise AnnotationError(f"{file}, {_no_joints(values, skeleton, where)}")
    points, v = np.split(array.reshape(count, joints, 3), [2], axis=2)
    v = v[..., 0]
    share, outside = (v > 0) & (v < 1), v == 3
    visible = (v == 1) | (v == 2) | (share & (v >= visibility.least)) | (outside & visibility.outside)
    unknown = np.isnan(v) | (v == -1)
    with np.errstate(invalid="ignore"):
        somewhere = (np.abs(points) < _LARGEST).all(axis=2)  # False for NaN
    for wrong, expected in (
        (~(visible | share | outside | unknown | (v == 0)), "a v of 0, 1 or 2, or -1, 3 or a share"),
        (visible & ~somewhere, f"finite x and y below {_LARGEST:.0e} as v says that they are annotated"),
    ):
        if wrong.any():
            row, joint = np.argwhere(wrong)[0]
            got = as_json(values[row][3 * joint : 3 * joint + 3])
            at = f"{file}, {where(row)}: keypoints, joint {joint} ({skeleton.joints[joint]})"
            raise AnnotationError(f"{at}: expected {expected}, got {got}")
    left_out = f"below {visibility.least:g} not" if visibility.least > 0 else "all of them"
    for odd, meaning in (
        (outside, f"v = 3, taken for {'' if visibility.outside else 'not '}annotated (visibility_3)"),
        (share, f"a v between 0 and 1, taken for annotated, {left_out} (least_visibility)"),
        (v == -1, "v = -1, taken for not annotated"),
    ):
        if odd.any():
            row, joint = np.argwhere(odd)[0]
            first = f"{where(row)}, {skeleton.joints[joint]}"
            log.warning("%s: joints with %s: %d (the first: %s)", file, meaning, odd.sum(), first)
    plain = (somewhere & ~(share | outside | unknown)).all(axis=1)
    return Joints(np.where(visible[..., None], points, 0), visible, plain)


def _no_joints(values: Sequence[Any], skeleton: Skeleton, where: Where) -> str:
    """What is wrong with the first keypoints that are not numbers, or not three of each joint."""
    length = 3 * skeleton.num_joints
    for row, value in enumerate(values):
        if not isinstance(value, list) or len(value) != length:
            many = f" (a list of {len(value)})" if isinstance(value, list) else ""
            return f"{where(row)}: keypoints must be numbers of shape [{length}], got {as_json(value)}{many}"
        for index in range(0, length, 3):
            if float_array([value[index : index + 3]], 3, _NUMBERS) is None:
                joint = f"joint {index // 3} ({skeleton.joints[index // 3]})"
                return f"{where(row)}: keypoints, {joint}: expected x, y and v, got {as_json(value[index : index + 3])}"
    raise AssertionError("keypoints are numbers one by one and not together")


def coco_keypoints(record: dict[str, Any], joints: Joints, row: int) -> list[Any]:
    """The keypoints of a record as pycocotools is to see them: its own, or 0 0 0 and x y 2 where it has others."""
    if joints.plain[row]:
        own: list[Any] = record["keypoints"]
        return own
    return np.column_stack([joints.points[row], 2 * joints.visible[row]]).ravel().tolist()
