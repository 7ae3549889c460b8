# SPDX-License-Identifier: Apache-2.0
"""MPII Human Pose as a data set: its files, its joints and its score."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from fastpose.data.annotation_rows import JsonLimits
from fastpose.data.boxes import inside
from fastpose.data.dataset import CocoForm, DataOptions, Split
from fastpose.data.images import image_size
from fastpose.data.mpii.annotations import read_mpii
from fastpose.data.mpii.score import PckhScorer
from fastpose.data.persons import Persons
from fastpose.files import check_is_file
from fastpose.option import OptionError
from fastpose.skeletons import MPII, Skeleton


class Mpii:
    """Annotations in MPII's format, scored by PCKh. See `fastpose.data.dataset.Dataset`."""

    layout: ClassVar[Mapping[str, str]] = {
        "train_annotations": "annot/train.json",
        "valid_annotations": "annot/valid.json",
        "images": "images",
        "valid_images": "",
    }
    joints: ClassVar[str] = MPII.name
    any_joints: ClassVar[bool] = False
    input_size: ClassVar[tuple[int, int]] = (256, 256)
    fits_boxes: ClassVar[bool] = False

    def __init__(self, data: DataOptions, size: tuple[int, int], skeleton: Skeleton | None = None) -> None:
        if data.detections:
            raise OptionError("detections", f"is for --dataset coco, got {data.detections!r} with MPII's format")
        if data.score != "auto":
            raise OptionError("score", f"{data.score} is for --dataset coco; data in MPII's format get PCKh")
        if skeleton is None and data.skeleton:
            raise OptionError(
                "skeleton", f"MPII's format has joints of its own, got {data.skeleton}: add --dataset coco"
            )
        if skeleton is not None and skeleton.joints != MPII.joints:
            raise OptionError("dataset", f"MPII's format has joints of its own, the network those of {skeleton.name!r}")
        self.data, self.skeleton = data, MPII

    def read(self, split: Split) -> Persons:
        data = self.data
        annotations = data.path(f"{split}_annotations")
        check_is_file(f"{split}_annotations", annotations)
        official = annotations.suffix == ".mat"
        with_heads = bool(data.head_boxes) and split == "valid" and not official
        if data.split_list:
            check_is_file("split_list", data.path("split_list"))
        if with_heads:
            check_is_file("head_boxes", data.path("head_boxes"))
        return read_mpii(
            annotations,
            data.images_path(split),
            split=split if official else None,
            split_list=data.path("split_list") if data.split_list else None,
            head_boxes=data.path("head_boxes") if with_heads else None,
            missing_images=data.missing_images,
            reading=data.reading,
            limits=JsonLimits(data.max_annotation_bytes, data.max_annotation_depth),
        )

    def scorer(self, persons: Persons) -> PckhScorer:
        # An official .mat has its own head boxes; otherwise there is no PCKh without them, whatever a pack has stored.
        wanted = bool(self.data.head_boxes) or self.data.valid_annotations.endswith(".mat")
        return PckhScorer(persons, persons.extras.get("head_size") if wanted else None)

    def as_coco(self, split: Split) -> CocoForm:
        """Boxes are cut to the images, and such that COCO's reader, which takes a pixel off and enlarges them by 1.25,
        makes MPII's of those that are inside."""
        persons, folder = self.read(split), self.data.images_path(split)
        images: list[dict[str, Any]] = []
        sizes: list[tuple[int, int]] = []
        for number, path in enumerate(persons.image_paths, start=1):
            height, width = image_size(path, self.data.reading)
            sizes.append((width, height))
            name = os.path.relpath(path, os.path.realpath(folder))
            images.append({"id": number, "file_name": name, "width": width, "height": height})
        sides = persons.scale.astype(np.float64) * 200 / 1.25
        boxes = np.hstack([persons.center - sides / 2, sides + 1])
        joints = np.dstack([persons.keypoints * persons.visible[..., None], 2 * persons.visible]).astype(np.float64)
        annotations = [
            {
                "id": row + 1,
                "image_id": int(persons.image_index[row]) + 1,
                "category_id": 1,
                "keypoints": joints[row].ravel().tolist(),
                "num_keypoints": int(persons.visible[row].sum()),
                "bbox": inside(boxes[row].tolist(), *sizes[persons.image_index[row]]),
                "iscrowd": 0,
            }
            for row in range(len(persons))
        ]
        limbs = [[a + 1, b + 1] for a, b in MPII.limbs]
        category = {"id": 1, "name": "person", "keypoints": list(MPII.joints), "skeleton": limbs}
        return CocoForm({"images": images, "annotations": annotations, "categories": [category]}, folder)
