# SPDX-License-Identifier: Apache-2.0
"""A detector's boxes of persons, in COCO's results format."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastpose.data.annotation_rows import (
    LIMITS,
    AnnotationError,
    JsonLimits,
    PersonRow,
    as_json,
    is_missing,
    read_column,
    read_json,
)
from fastpose.data.boxes import crop_boxes
from fastpose.data.coco.ap import Key
from fastpose.data.coco.pictures import Pictures
from fastpose.data.coco.records import Tally, read_key
from fastpose.skeletons import Skeleton

log = logging.getLogger(__name__)


def read_detections(
    file: Path,
    categories: list[Key],
    pictures: Pictures,
    skeleton: Skeleton,
    aspect: float,
    annotations: Path,
    limits: JsonLimits = LIMITS,
) -> list[PersonRow]:
    """The boxes of these categories as persons without joints; how many are left out, and why, is logged.

    Args:
        aspect: width / height of the network's input.
        annotations: the file that has the images, for messages.
    """
    found = read_json(file, limits)
    if not isinstance(found, list) or not found:
        raise AnnotationError(f"{file}: must be a list of boxes, got {type(found).__name__} {as_json(found, 40)}")
    left_out = Tally()
    chosen = _chosen(found, categories, pictures, file, annotations, left_out)
    records = [box.record for box in chosen]

    def name(i: int) -> str:
        return f"{file}, box {chosen[i].row}"

    boxes = read_column(records, "bbox", (4,), name)
    scores = read_column(records, "score", (), name)
    usable = (scores >= 0) & (boxes[:, 2:].min(axis=1, initial=np.inf) >= 0) & (boxes[:, 2:].max(axis=1, initial=0) > 0)
    centers, scales = crop_boxes(boxes, aspect)
    sides = boxes[:, 2:].max(axis=1, initial=0).astype(np.float32)
    nowhere, unseen = np.zeros((skeleton.num_joints, 2)), np.zeros(skeleton.num_joints)
    persons = []
    for i, (row, record, image, kind) in enumerate(chosen):
        if not usable[i]:
            reason = "that are empty or have a width, height or score below 0"
            left_out.add(reason, f"box {row}", bbox=record["bbox"], score=record["score"])
            continue
        picture = pictures[image]
        extras = {"image_id": np.int64(picture.number), "box_score": np.float32(scores[i]), "box_side": sides[i]}
        persons.append(
            PersonRow(
                where=f"box {row}",
                source_row=row,
                image=picture.name,
                center=centers[i],
                scale=tuple(scales[i]),
                keypoints=nowhere,
                visible=unseen,
                extras=extras | ({"category": np.int64(kind)} if len(categories) > 1 else {}),
            )
        )
    if not persons:
        wanted = ", ".join(map(as_json, categories))
        raise AnnotationError(f"{file}: holds no box of category {wanted} on an image of {annotations}: {left_out}")
    if left_out:
        log.warning("%s: boxes left out: %s", file, left_out)
    return persons


class _Box(NamedTuple):
    row: int
    record: dict[str, Any]
    image: Key
    kind: int  # which of the categories


def _chosen(
    found: list[Any], categories: list[Key], pictures: Pictures, file: Path, annotations: Path, left_out: Tally
) -> list[_Box]:
    """The records of these categories on these images that have a box."""
    chosen = []
    for row, record in enumerate(found):
        where = f"{file}, box {row}"
        if not isinstance(record, dict):
            raise AnnotationError(f"{where}: must be an object, got {type(record).__name__}")
        image, category = read_key(record, "image_id", where), read_key(record, "category_id", where)
        if category not in categories:
            reason = f"of other categories than {', '.join(map(as_json, categories))}"
            left_out.add(reason, f"box {row}", category_id=category)
        elif image not in pictures:
            reason = f"on images that are not in {annotations}, {pictures.first}"
            left_out.add(reason, f"box {row}", image_id=image)
        elif is_missing(record.get("bbox")):
            left_out.add("without a bbox", f"box {row}")
        else:
            chosen.append(_Box(row, record, image, categories.index(category)))
    return chosen
