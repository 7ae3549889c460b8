# SPDX-License-Identifier: Apache-2.0
"""Which of the categories of a file in COCO's format are the persons."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastpose.data.annotation_rows import AnnotationError, as_json
from fastpose.data.coco.ap import Key
from fastpose.data.coco.records import flat_keypoints, read_key, read_records
from fastpose.option import OptionError
from fastpose.skeletons import Skeleton

log = logging.getLogger(__name__)

ALL = "all"


def choose_categories(contents: dict[str, Any], wanted: str, skeleton: Skeleton, file: Path) -> list[Key]:
    """The ids of the categories to read.

    Args:
        wanted: a category's name; "all" for all that have joints, those that only annotations name among them; empty
            for the only one that has; of several the one named "person".

    Raises:
        AnnotationError: no such category, or no choice between several; or its joints are not those of the skeleton.
        OptionError: no category has that name.
    """
    categories: dict[Key, dict[str, Any]] = {}
    for row, record in enumerate(read_records(contents, "categories", file)):
        category = read_key(record, "id", f"{file}, category {as_json(record.get('name', row))}")
        if category in categories:
            raise AnnotationError(f"{file}, category {as_json(category)}: is there twice")
        categories[category] = record
    numbers = _used(contents, categories)
    chosen = _chosen(categories, numbers, wanted, skeleton, file)
    for category in chosen:
        _check_names(categories.get(category, {}), numbers[category], skeleton, file)
    return chosen


def names_of(contents: dict[str, Any], chosen: Sequence[Key]) -> list[Any]:
    """What `choose_categories` has chosen as the file calls it, or its id if the file has no name for it."""
    names = {read_key(record, "id", "categories"): record.get("name") for record in contents["categories"]}
    return [names.get(category) or category for category in chosen]


def _used(contents: dict[str, Any], categories: dict[Key, dict[str, Any]]) -> dict[Key, Counter[int]]:
    """How many numbers the joints of each category's annotations have; of those with an annotated joint. Categories
    that are not in the list come last."""
    numbers: dict[Key, Counter[int]] = {category: Counter() for category in categories}
    annotations = contents.get("annotations")
    for record in annotations if isinstance(annotations, list) else []:
        joints = flat_keypoints(record.get("keypoints")) if isinstance(record, dict) else None
        if isinstance(joints, list) and any(joints[2::3]):
            category = record.get("category_id")
            if isinstance(category, (int, float, str)):
                numbers.setdefault(category, Counter())[len(joints)] += 1
    return numbers


def _chosen(
    categories: dict[Key, dict[str, Any]], numbers: dict[Key, Counter[int]], wanted: str, skeleton: Skeleton, file: Path
) -> list[Key]:
    def named(name: str) -> list[Key]:
        return [category for category, record in categories.items() if record.get("name") == name]

    if wanted and wanted != ALL:
        if len(found := named(wanted)) != 1:
            raise OptionError("category", f"{file} has {len(found) or 'none'} named {wanted!r}, {_names(categories)}")
        return found
    fitting = [category for category in numbers if numbers[category][3 * skeleton.num_joints]]
    if wanted == ALL and (more := [category for category in fitting if category not in categories]):
        log.warning("%s: annotations of category %s are read, too, which categories do not list", file, as_json(more))
        return fitting
    if len(categories) == 1:
        return list(categories)
    fitting = [category for category in fitting if category in categories]
    fitting = fitting or [category for category, record in categories.items() if record.get("keypoints")]
    if wanted == ALL and fitting:
        return fitting
    persons = [category for category in named("person") if category in fitting or not fitting]
    if len(found := fitting if len(fitting) == 1 else persons) == 1:
        return found
    several = {category: categories[category] for category in fitting}
    has = f"several have {skeleton.num_joints} joints: {_names(several)}" if several else "none has joints"
    raise AnnotationError(
        f"{file}: categories: expected one with joints, or one of them named 'person'; {has}, {_names(categories)}: "
        f"name one with category, or {ALL}"
    )


def _names(categories: dict[Key, dict[str, Any]]) -> str:
    return f"got {as_json([record.get('name') for record in categories.values()], 200)}"


def _check_names(category: dict[str, Any], numbers: Counter[int], skeleton: Skeleton, file: Path) -> None:
    """Compares the names of a category's joints with the skeleton's. The numbers of its annotations decide."""
    joints = category.get("keypoints")
    if not isinstance(joints, list) or not joints:
        return
    # Right Shoulder is right_shoulder.
    listed, known = (
        [re.sub(r"[\W_]", "", str(joint)).casefold() for joint in names] for names in (joints, skeleton.joints)
    )
    if listed == known:
        return
    if len(joints) != skeleton.num_joints and not numbers[3 * skeleton.num_joints]:
        raise AnnotationError(
            f"{file}: its persons have {len(joints)} keypoints, skeleton {skeleton.name!r} has {skeleton.num_joints}"
        )
    differ = f"{file}: its keypoints are {as_json(joints, 500)}, those of skeleton {skeleton.name!r} "
    differ += as_json(skeleton.joints, 500)
    if sorted(listed) == sorted(known):
        raise AnnotationError(f"{differ}: the same in another order")
    if len(joints) != skeleton.num_joints:
        differ += f"; its annotations have {skeleton.num_joints} joints"
    log.warning("%s: taken for the same joints in that order", differ)
