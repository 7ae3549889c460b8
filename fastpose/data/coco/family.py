# SPDX-License-Identifier: Apache-2.0
"""Data sets in COCO's form whose files differ from it a little, and what their readers share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from fastpose.data.annotation_rows import AnnotationError, JsonLimits, as_json, read_json
from fastpose.data.coco.dataset import read_split, refuse_split_list, scorer_of
from fastpose.data.dataset import CocoForm, DataOptions, Scorer, Split
from fastpose.data.persons import Persons
from fastpose.files import check_is_file
from fastpose.option import OptionError
from fastpose.skeletons import Skeleton, find_skeleton

_known = functools.cache(find_skeleton)  # a file of 133 joints takes 0.1 s to read

Change = Callable[[dict[str, Any], Path], dict[str, Any]]

_HEADS = ("head", "top_head", "head_top")  # one joint, as CrowdPose's and AIC's files and their users call it


def form_of(data: DataOptions, split: Split, change: Change) -> CocoForm:
    """What a split has in COCO's format: its JSON file once `change` has been at it.

    `change` takes what the file has, an object, and the file for messages, and returns what COCO's would have. What it
    does not know it leaves as it is: errors of COCO's own fields are those of `read_coco`.
    """
    file = data.path(f"{split}_annotations")
    check_is_file(f"{split}_annotations", file)
    contents = read_json(file, JsonLimits(data.max_annotation_bytes, data.max_annotation_depth))
    if isinstance(contents, dict):
        contents = change(contents, file)
    elif _is_original_aic(contents):
        raise AnnotationError(
            f"{file}: is AI Challenger's own list of images (image_id, human_annotations, keypoint_annotations), "
            "expected an object with 'images' and 'annotations': take the files aic_train.json and aic_val.json, which "
            "mmpose has made of it in COCO's format (aic_annotations.tar)"
        )
    return CocoForm(contents, data.images_path(split))


def read_form(form: CocoForm, data: DataOptions, split: Split, size: tuple[int, int], skeleton: Skeleton) -> Persons:
    """The persons of `form_of`."""
    return read_split(data, split, size, skeleton, data.path(f"{split}_annotations"), form.contents)


def _is_original_aic(contents: Any) -> bool:
    first = contents[0] if isinstance(contents, list) and contents else None
    return isinstance(first, dict) and "keypoint_annotations" in first


def joints_of(dataset: str, data: DataOptions, wanted: Skeleton | None, *own: str) -> Skeleton:
    """The skeleton to read a data set with: `wanted`, else that of option `skeleton`, else the first of its own.

    Raises:
        OptionError: it has another number of joints than each of its own; or the options are not for such files.
    """
    refuse_split_list(data)
    skeleton = wanted or (find_skeleton(data.skeleton) if data.skeleton else None)
    if skeleton is None:
        return _known(own[0])
    numbers = [_known(name).num_joints for name in own]
    if skeleton.num_joints not in numbers:
        raise OptionError(
            "skeleton",
            f"--dataset {dataset} has {' or '.join(map(str, numbers))} joints, {skeleton.name!r} has "
            f"{skeleton.num_joints}: for other joints in COCO's format there is --dataset coco",
        )
    return skeleton


def change_annotations(
    contents: dict[str, Any], change: Callable[[dict[str, Any], str], dict[str, Any]]
) -> dict[str, Any]:
    """The same with each annotation changed; `change` takes it and what names it in messages."""
    annotations = contents.get("annotations")
    if not isinstance(annotations, list):
        return contents
    changed = []
    for row, one in enumerate(annotations):
        if isinstance(one, dict):
            number = one.get("id")
            named = as_json(number) if isinstance(number, (int, float, str)) else f"{row} of the list"
            one = change(one, f"annotation {named}")
        changed.append(one)
    return {**contents, "annotations": changed}


def name_joints(contents: dict[str, Any], skeleton: Skeleton, listed: int = 0) -> dict[str, Any]:
    """The same with the categories' joints called as the skeleton calls them, where they are the same up to capitals,
    spaces and what the top of the head is called.

    `listed`: how many the data set's files list if that is not how many they have: the first ones are then the same.
    """
    categories = contents.get("categories")
    if not isinstance(categories, list):
        return contents
    head = next((joint for joint in skeleton.joints if joint in _HEADS), "head")

    def plain(name: object) -> object:
        spelled = name.strip().lower().replace(" ", "_") if isinstance(name, str) else name
        return head if spelled in _HEADS else spelled

    changed = []
    for one in categories:
        names = one.get("keypoints") if isinstance(one, dict) else None
        if isinstance(names, list) and names:
            names = [plain(name) for name in names]
            pairs = zip(names, skeleton.joints, strict=False)
            if len(names) == listed and all(name == joint for name, joint in pairs):
                names = list(skeleton.joints)
            one = {**one, "keypoints": names}
        changed.append(one)
    return {**contents, "categories": changed}


_WITH_FINGERS = 21  # joints of Human-Art's longer list
_WHOLE = 136  # joints of Halpe's files


class Family:
    """A data set in COCO's form once `change` has been at its files. See `fastpose.data.dataset.Dataset`.

    Those below have no code of their own: they differ in what they say here.
    """

    layout: ClassVar[Mapping[str, str]]
    joints: ClassVar[str]  # of this data set's name
    longer: ClassVar[tuple[str, ...]] = ()  # other skeletons that its files have the joints of
    change: ClassVar[staticmethod[[dict[str, Any], Skeleton], dict[str, Any]]]
    any_joints: ClassVar[bool] = False
    input_size: ClassVar[tuple[int, int]] = (256, 192)
    fits_boxes: ClassVar[bool] = True

    def __init__(self, data: DataOptions, size: tuple[int, int], skeleton: Skeleton | None = None) -> None:
        self.data, self.size = data, size
        self.skeleton = joints_of(self.joints, data, skeleton, self.joints, *self.longer)

    def read(self, split: Split) -> Persons:
        return read_form(self.as_coco(split), self.data, split, self.size, self.skeleton)

    def as_coco(self, split: Split) -> CocoForm:
        return form_of(self.data, split, lambda contents, file: type(self).change(contents, self.skeleton))

    def scorer(self, persons: Persons) -> Scorer:
        return scorer_of(persons, self.data)


def _of_aic(contents: dict[str, Any], skeleton: Skeleton) -> dict[str, Any]:
    return name_joints(contents, skeleton)


class Aic(Family):
    """AI Challenger's persons, 14 joints, as mmpose has converted their files."""

    layout: ClassVar[Mapping[str, str]] = {
        "train_annotations": "annotations/aic_train.json",
        "valid_annotations": "annotations/aic_val.json",
        "images": "ai_challenger_keypoint_train_20170902/keypoint_train_images_20170902",
        "valid_images": "ai_challenger_keypoint_validation_20170911/keypoint_validation_images_20170911",
    }
    joints: ClassVar[str] = "aic"
    change = staticmethod(_of_aic)


def _of_human_art(contents: dict[str, Any], skeleton: Skeleton) -> dict[str, Any]:
    if skeleton.num_joints == _WITH_FINGERS:
        contents = change_annotations(contents, _with_21)
    return name_joints(contents, skeleton, listed=_WITH_FINGERS)


def _with_21(record: dict[str, Any], where: str) -> dict[str, Any]:
    fields = {"keypoints": "keypoints_21", "num_keypoints": "num_keypoints_21"}
    return {**record, **{name: record.get(longer) for name, longer in fields.items()}}


class HumanArt(Family):
    """Human-Art: COCO's 17 joints (``keypoints``), or with fingers and toes 21 (``keypoints_21``), as the skeleton has
    it. Its files name images from the folder on that ``HumanArt`` is in."""

    layout: ClassVar[Mapping[str, str]] = {
        "train_annotations": "HumanArt/annotations/training_humanart.json",
        "valid_annotations": "HumanArt/annotations/validation_humanart.json",
        "images": ".",
        "valid_images": "",
    }
    joints: ClassVar[str] = "human_art"
    longer = ("human_art21",)
    change = staticmethod(_of_human_art)


def _of_halpe(contents: dict[str, Any], skeleton: Skeleton) -> dict[str, Any]:
    """The first joints of each person, as many as the skeleton has, and no ``num_keypoints``, which counts COCO's 17 of
    a person alone: `read_coco` then counts all."""

    def first_joints(record: dict[str, Any], where: str) -> dict[str, Any]:
        joints = record.get("keypoints")
        if isinstance(joints, list) and len(joints) == 3 * _WHOLE:
            record = {**record, "keypoints": joints[: 3 * skeleton.num_joints]}
        return {name: value for name, value in record.items() if name != "num_keypoints"}

    return change_annotations(contents, first_joints)


class Halpe26(Family):
    """Halpe's body and feet, the first 26 of its joints."""

    layout: ClassVar[Mapping[str, str]] = {
        "train_annotations": "annotations/halpe_train_v1.json",
        "valid_annotations": "annotations/halpe_val_v1.json",
        "images": "hico_20160224_det/images/train2015",
        "valid_images": "val2017",
    }
    joints: ClassVar[str] = "halpe26"
    change = staticmethod(_of_halpe)


class Halpe136(Family):
    """Halpe's bodies, feet, faces and hands."""

    layout: ClassVar[Mapping[str, str]] = Halpe26.layout
    joints: ClassVar[str] = "halpe136"
    change = staticmethod(_of_halpe)
