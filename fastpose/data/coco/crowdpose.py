# SPDX-License-Identifier: Apache-2.0
"""CrowdPose: 14 joints, and an AP by how crowded images are."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from fastpose.data.annotation_rows import AnnotationError, as_json
from fastpose.data.coco.ap import Key
from fastpose.data.coco.dataset import scorer_of
from fastpose.data.coco.family import change_annotations, form_of, joints_of, name_joints, read_form
from fastpose.data.coco.family_ap import crowd_ap
from fastpose.data.coco.records import read_key
from fastpose.data.coco.score import Measure
from fastpose.data.dataset import CocoForm, DataOptions, Scorer, Split
from fastpose.data.persons import Persons
from fastpose.option import OptionError
from fastpose.skeletons import Skeleton


class CrowdPose:
    """CrowdPose's annotations, scored by its AP. See `fastpose.data.dataset.Dataset`."""

    layout: ClassVar[Mapping[str, str]] = {
        "train_annotations": "annotations/mmpose_crowdpose_trainval.json",
        "valid_annotations": "annotations/mmpose_crowdpose_test.json",
        "images": "images",
        "valid_images": "",
    }
    joints: ClassVar[str] = "crowdpose"
    any_joints: ClassVar[bool] = False
    input_size: ClassVar[tuple[int, int]] = (256, 192)
    fits_boxes: ClassVar[bool] = True

    def __init__(self, data: DataOptions, size: tuple[int, int], skeleton: Skeleton | None = None) -> None:
        self.data, self.size, self.skeleton = data, size, joints_of("crowdpose", data, skeleton, self.joints)

    def read(self, split: Split) -> Persons:
        form = self.as_coco(split)
        persons = read_form(form, self.data, split, self.size, self.skeleton)
        annotated = form.contents.get("annotations")
        if split == "train" or self.data.score != "auto" or persons.truth is None or not annotated:
            return persons
        index = _crowd_index(form.contents, self.data.path("valid_annotations"))
        truth = {name: value for name, value in persons.truth.items() if name != "no_area"}  # nothing to remark
        truth["crowd_index"] = [index[image] for image in truth["image_ids"]]
        return dataclasses.replace(persons, truth=truth)

    def as_coco(self, split: Split) -> CocoForm:
        def changed(contents: dict[str, Any], file: Path) -> dict[str, Any]:
            # Its evaluation takes 0.53 of the box for everybody's area, whatever the file says.
            contents = change_annotations(contents, lambda record, where: {**record, "area": None})
            return name_joints(contents, self.skeleton)

        return form_of(self.data, split, changed)

    def scorer(self, persons: Persons) -> Scorer:
        truth = persons.truth or {}
        if self.data.score == "auto" and truth.get("annotations") and "crowd_index" not in truth:
            raise OptionError(
                "dataset", "crowdpose needs how crowded images are, which this pack does not say: pack the data again"
            )
        return scorer_of(persons, self.data, Measure("crowdpose", crowd_ap))


def _crowd_index(contents: dict[str, Any], file: Path) -> dict[Key, float]:
    """How crowded each image is, by its id; AnnotationError if an image does not say."""
    images, index = contents.get("images"), {}
    for row, record in enumerate(images if isinstance(images, list) else []):
        if not isinstance(record, dict):
            continue  # an error of its own in `read_coco`
        image = read_key(record, "id", f"{file}, image {row} of the list")
        crowded = record.get("crowdIndex")
        if isinstance(crowded, bool) or not isinstance(crowded, (int, float)) or not 0 <= crowded < 1e6:
            got = as_json(crowded) if "crowdIndex" in record else "nothing"
            raise AnnotationError(
                f"{file}, image {as_json(image)}: crowdIndex must be a number from 0 on, got {got}: CrowdPose's AP "
                "goes by it; for a score without it there are --score pck and --dataset coco"
            )
        index[image] = float(crowded)
    return index
