# SPDX-License-Identifier: Apache-2.0
"""COCO-WholeBody: body, feet, face and hands, 133 joints in five fields of each annotation."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from fastpose.data.annotation_rows import AnnotationError, as_json, is_missing
from fastpose.data.coco.dataset import scorer_of
from fastpose.data.coco.family import change_annotations, form_of, joints_of, name_joints, read_form
from fastpose.data.coco.family_ap import PARTS, wholebody_ap, wholebody_result
from fastpose.data.coco.records import Tally
from fastpose.data.coco.score import Measure
from fastpose.data.dataset import CocoForm, DataOptions, Scorer, Split
from fastpose.data.persons import Persons
from fastpose.skeletons import Skeleton

log = logging.getLogger(__name__)

_FIELDS = {"keypoints" if part == "body" else f"{part}_kpts": count for part, count in PARTS.items()}
_OTHERS = tuple(_FIELDS)[1:]


class WholeBody:
    """COCO-WholeBody's annotations, scored by its AP. See `fastpose.data.dataset.Dataset`."""

    layout: ClassVar[Mapping[str, str]] = {
        "train_annotations": "annotations/coco_wholebody_train_v1.0.json",
        "valid_annotations": "annotations/coco_wholebody_val_v1.0.json",
        "images": "train2017",
        "valid_images": "val2017",
    }
    joints: ClassVar[str] = "wholebody"
    any_joints: ClassVar[bool] = False
    input_size: ClassVar[tuple[int, int]] = (256, 192)
    fits_boxes: ClassVar[bool] = True

    def __init__(self, data: DataOptions, size: tuple[int, int], skeleton: Skeleton | None = None) -> None:
        self.data, self.size, self.skeleton = data, size, joints_of("wholebody", data, skeleton, self.joints)

    def read(self, split: Split) -> Persons:
        return read_form(self.as_coco(split), self.data, split, self.size, self.skeleton)

    def as_coco(self, split: Split) -> CocoForm:
        return form_of(self.data, split, self._changed)

    def _changed(self, contents: dict[str, Any], file: Path) -> dict[str, Any]:
        return name_joints(_joined(contents, file), self.skeleton, listed=PARTS["body"])

    def scorer(self, persons: Persons) -> Scorer:
        joints_of("wholebody", self.data, persons.skeleton, self.joints)  # a pack may have others
        return scorer_of(persons, self.data, Measure("wholebody", wholebody_ap, wholebody_result))


def _joined(contents: dict[str, Any], file: Path) -> dict[str, Any]:
    """The same with the five fields as one, ``keypoints``, and without ``num_keypoints``, which counts the body alone.

    What is not there is not annotated; that is logged, and so are parts that their flag (``foot_valid`` and so on)
    calls not valid and that have annotated joints all the same: these count, as in the data set's own evaluation.

    Raises:
        AnnotationError: a field has another number of joints, or no annotation has more than a body.
    """
    missing, doubtful = Tally(), Tally()
    parts_seen: set[str] = set()

    def joined(record: dict[str, Any], where: str) -> dict[str, Any]:
        there = {field: record[field] for field in _FIELDS if not is_missing(record.get(field)) and record[field] != []}
        for field, value in there.items():
            length = 3 * _FIELDS[field]
            if not isinstance(value, list) or len(value) != length:
                many = f" (a list of {len(value)})" if isinstance(value, list) else ""
                raise AnnotationError(
                    f"{file}, {where}: {field} must be numbers of shape [{length}], got {as_json(value)}{many}"
                )
            flag = field.replace("_kpts", "_valid")
            if flag in record and not record[flag] and any(value[2::3]):
                doubtful.add(f"{field} although {flag} is false", where)
        parts_seen.update(there)
        changed = {name: value for name, value in record.items() if name not in ("num_keypoints", *_OTHERS)}
        if not there:
            return changed
        for field in _FIELDS.keys() - there.keys():
            missing.add(f"without {field}", where)
        joints = [number for field, count in _FIELDS.items() for number in there.get(field) or [0] * 3 * count]
        return {**changed, "keypoints": joints}

    changed = change_annotations(contents, joined)
    if "keypoints" in parts_seen and parts_seen.isdisjoint(_OTHERS):
        raise AnnotationError(
            f"{file}: none of its {len(contents['annotations'])} annotations has {', '.join(_OTHERS)}: expected "
            "COCO-WholeBody's own file, such as coco_wholebody_val_v1.0.json; COCO's are for --dataset coco"
        )
    if missing:
        log.warning("%s: annotations with parts that are taken for not annotated: %s", file, missing)
    if doubtful:
        log.warning("%s: parts that are taken as annotated: %s", file, doubtful)
    return changed
