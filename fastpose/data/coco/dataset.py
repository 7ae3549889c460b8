# SPDX-License-Identifier: Apache-2.0
"""Data in COCO's keypoint format as a data set: files, joints and scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

from fastpose.data.annotation_rows import JsonLimits, read_json
from fastpose.data.coco.annotations import read_coco
from fastpose.data.coco.ap import CocoTruth
from fastpose.data.coco.pck_score import PckScorer
from fastpose.data.coco.records import Visibility
from fastpose.data.coco.score import ApScorer, Measure
from fastpose.data.dataset import CocoForm, DataOptions, Scorer, Split
from fastpose.data.persons import Persons
from fastpose.files import check_is_file
from fastpose.option import OptionError
from fastpose.skeletons import COCO, Skeleton, find_skeleton


class Coco:
    """Annotations in COCO's format, scored by AP or PCK. See `fastpose.data.dataset.Dataset`."""

    layout: ClassVar[Mapping[str, str]] = {
        "train_annotations": "annotations/person_keypoints_train2017.json",
        "valid_annotations": "annotations/person_keypoints_val2017.json",
        "images": "train2017",
        "valid_images": "val2017",
    }
    joints: ClassVar[str] = COCO.name
    any_joints: ClassVar[bool] = True
    input_size: ClassVar[tuple[int, int]] = (256, 192)
    fits_boxes: ClassVar[bool] = True

    def __init__(self, data: DataOptions, size: tuple[int, int], skeleton: Skeleton | None = None) -> None:
        refuse_split_list(data)
        self.data, self.size = data, size
        self.skeleton = skeleton or (find_skeleton(data.skeleton) if data.skeleton else COCO)

    def read(self, split: Split) -> Persons:
        file = self.data.path(f"{split}_annotations")
        check_is_file(f"{split}_annotations", file)
        return read_split(self.data, split, self.size, self.skeleton, file)

    def scorer(self, persons: Persons) -> Scorer:
        return scorer_of(persons, self.data)

    def as_coco(self, split: Split) -> CocoForm:
        limits = JsonLimits(self.data.max_annotation_bytes, self.data.max_annotation_depth)
        return CocoForm(read_json(self.data.path(f"{split}_annotations"), limits), self.data.images_path(split))


def refuse_split_list(data: DataOptions) -> None:
    """Raises OptionError where a list is to split a file in COCO's form, of which there is one for each split."""
    if data.split_list:
        raise OptionError(
            "split_list",
            f"is not for --dataset {data.dataset}, whose files are one split each, got {data.split_list!r}",
        )


def read_split(
    data: DataOptions,
    split: Split,
    size: tuple[int, int],
    skeleton: Skeleton,
    file: Path,
    contents: Any = None,
    images: Path | None = None,
    records: Sequence[str] = (),
) -> Persons:
    """The persons of a split of COCO's form, read as the options say; see `read_coco`.

    Formats that hold the same in other files are read through this: `contents` is what they have, as COCO's JSON would
    have it, `file` names it in messages, and so do `records` its annotations, and `images` is the folder of the images,
    None: the options'.
    """
    detections = data.path("detections") if data.detections and split == "valid" else None
    if detections:
        check_is_file("detections", detections)
    return read_coco(
        file,
        data.images_path(split) if images is None else images,
        size,
        contents=contents,
        records=records,
        skeleton=skeleton,
        detections=detections,
        missing_images=data.missing_images,
        reading=data.reading,
        for_evaluation=split == "valid",
        box_sides=data.score == "pck",
        category=data.category,
        visibility=Visibility(data.least_visibility, data.visibility_3 == "annotated"),
        limits=JsonLimits(data.max_annotation_bytes, data.max_annotation_depth),
    )


def scorer_of(persons: Persons, data: DataOptions, measure: Measure | None = None) -> Scorer:
    """The score that the options choose for persons of `read_split`: AP, COCO's or by another measure, or PCK."""
    if data.score == "pck":
        return PckScorer(persons, data)
    return ApScorer(persons, cast("CocoTruth | None", persons.truth), data.max_detections, measure)
