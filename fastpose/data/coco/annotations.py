# SPDX-License-Identifier: Apache-2.0
"""COCO's keypoint annotations, ``person_keypoints_*.json``, and the boxes of a detector beside them."""

from __future__ import annotations

import dataclasses
import logging
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastpose.data.annotation_rows import (
    AnnotationError,
    MissingImages,
    PersonRow,
    persons_from_rows,
    read_column,
    read_json,
    read_numbers,
)
from fastpose.data.boxes import crop_boxes
from fastpose.data.coco.ap import CocoTruth
from fastpose.data.images import BadImageError, image_header, other_way_up
from fastpose.data.persons import Persons
from fastpose.data.reading import AS_STORED, Reading
from fastpose.skeletons import COCO, Skeleton

log = logging.getLogger(__name__)

SIZES_CHECKED = 1000  # of how many images; all of COCO's would take as long as a first epoch on a slow disk
_LARGEST_AREA = 1e12  # of a person, square pixels


def read_coco(
    annotations: str | PathLike[str],
    images: str | PathLike[str],
    size: tuple[int, int],
    *,
    skeleton: Skeleton = COCO,
    detections: str | PathLike[str] | None = None,
    missing_images: MissingImages = "error",
    for_evaluation: bool = False,
    box_sides: bool = False,
    reading: Reading = AS_STORED,
) -> Persons:
    """Reads the persons of an annotation file in COCO's format, in the order of the file, as SimpleBaselines does.

    Coordinates are 0-based and stay as they are. An annotation is a person to train on if it is of the persons'
    category, no crowd, has a positive area and a joint, and its box, cut to the image, is not empty. Left out are, as
    mmpose does, also those whose ``num_keypoints`` is 0. ``visible`` is 1 where v > 0, occluded or not.

    The box ``[x, y, w, h]`` is cut to the image's (width - 1, height - 1) and loses its last pixel; it grows to the
    aspect ratio of the network's input about its middle, and by 1.25. Boxes of a detector are not cut.

    Args:
        annotations: the annotation file: ``images`` (id, file_name, width, height), ``categories`` (one, or one that is
            named "person") and ``annotations`` (id, image_id, category_id, bbox, area, keypoints [3 J]; iscrowd and
            num_keypoints may be missing). Without annotations, as in ``image_info_test-dev2017.json``, it goes with
            ``detections``.
        images: the folder the file names are relative to.
        size: (h, w) of the network's input; only the aspect ratio counts.
        skeleton: the joints; their number must be that of the file.
        detections: a detector's boxes, a list of ``{"image_id", "category_id", "bbox", "score"}``: the persons are then
            these boxes, without joints, for evaluation. Other categories, images that are not in ``annotations``, empty
            boxes and scores below 0 are left out; how many, is logged.
        missing_images: "error", or "drop" to leave out the persons whose image is not there, and the image from the
            evaluation.
        for_evaluation: keep what COCO's evaluation compares with (``truth``). Detections are always for evaluation.
        box_sides: keep what PCK may be measured by.
        reading: how the image files become the pixels that the annotations are for.

    Returns:
        The persons, with these extras: ``image_id``, int64 [N], COCO's number of the image; ``box_score``, float32 [N],
        how sure a detector was of the box, 1 for annotated ones; with box_sides ``box_side``, float32 [N], the longer
        side of the box as the file has it, px.

    Raises:
        AnnotationError: a file does not have what it should; names file and annotation. Whether images have the size
            that it says is checked for 1,000 of them, evenly spread.
        FileNotFoundError: one of the files, or the image folder, does not exist.
    """
    file, root = Path(annotations), Path(images)
    if not root.is_dir():
        raise FileNotFoundError(f"images: no folder {root}")
    contents = read_json(file)
    if not isinstance(contents, dict):
        raise AnnotationError(f"{file}: must be an object with 'images' and 'annotations', got {str(contents)[:40]}")
    category = _read_category(contents, skeleton, file)
    pictures = _read_images(contents, file)
    aspect = size[1] / size[0]
    records, rows = _read_annotations(contents, category, pictures, skeleton, aspect, file)
    source = file
    if detections is not None:
        source = Path(detections)
        rows = _read_detections(source, category, pictures, skeleton, aspect, file)
    elif not rows:
        raise AnnotationError(
            f"{file}: none of its {len(contents.get('annotations') or [])} annotations is a person (category "
            f"{category}) with joints and a box; a file without them, on purpose, needs detections"
        )
    persons = persons_from_rows(rows, source, root, missing_images, skeleton, reading)
    if not box_sides:
        kept = {name: array for name, array in persons.extras.items() if name != "box_side"}
        persons = dataclasses.replace(persons, extras=kept)
    _check_sizes(persons, pictures, file)
    if not for_evaluation and detections is None:
        return persons
    there = {i for i, picture in pictures.items() if missing_images == "error" or (root / picture.name).is_file()}
    truth = CocoTruth(
        box_source="annotations" if detections is None else source.name,
        category=category,
        image_ids=sorted(there),
        annotations=[record for record in records if record["image_id"] in there],
    )
    return dataclasses.replace(persons, truth=truth)


def _check_sizes(persons: Persons, pictures: dict[int, _Picture], file: Path) -> None:
    """Pictures that were resized or turned after they were annotated would be cropped at the wrong places."""
    _, rows = np.unique(persons.image_index, return_index=True)
    for row in rows[:: -(-len(rows) // SIZES_CHECKED)]:
        picture, path = pictures[int(persons.extras["image_id"][row])], persons.image_paths[persons.image_index[row]]
        try:
            header = image_header(path, persons.reading)
        except BadImageError:  # an error when it is needed, or with --on_bad_image skip none
            continue
        upright = persons.reading.upright
        height, width = header.size(upright)
        if (width, height) != (picture.width, picture.height):
            raise AnnotationError(
                f"{file}: {picture.name}: expected the image's width and height, {width} and {height}, got "
                f"{picture.width:g} and {picture.height:g}"
                f"{other_way_up(header, (int(picture.height), int(picture.width)), upright)}"
            )


class _Picture(NamedTuple):
    name: str
    width: float
    height: float


def _read_category(contents: dict[str, Any], skeleton: Skeleton, file: Path) -> int:
    categories = _records(contents, "categories", file)
    persons = [category for category in categories if len(categories) == 1 or category.get("name") == "person"]
    if len(persons) != 1:
        names = [category.get("name") for category in categories]
        raise AnnotationError(f"{file}: categories must be one, or one of them named 'person', got {names}")
    joints = persons[0].get("keypoints")
    if isinstance(joints, list) and len(joints) != skeleton.num_joints:
        raise AnnotationError(
            f"{file}: its persons have {len(joints)} keypoints, skeleton {skeleton.name!r} has {skeleton.num_joints}"
        )
    if isinstance(joints, list) and tuple(joints) != skeleton.joints:
        differ = f"{file}: its keypoints are {joints}, those of skeleton {skeleton.name!r} {list(skeleton.joints)}"
        if sorted(map(str, joints)) == sorted(skeleton.joints):
            raise AnnotationError(f"{differ}: the same in another order")
        log.warning("%s: taken for the same joints in that order", differ)
    return _read_integer(persons[0], "id", f"{file}, category {persons[0].get('name')!r}")


def _read_images(contents: dict[str, Any], file: Path) -> dict[int, _Picture]:
    pictures: dict[int, _Picture] = {}
    for index, record in enumerate(_records(contents, "images", file)):
        number = _read_integer(record, "id", f"{file}, image {index} of the list")
        where = f"{file}, image {number}"
        if number in pictures:
            raise AnnotationError(f"{where}: is there twice")
        name = record.get("file_name")
        if not isinstance(name, str) or not name:
            raise AnnotationError(f"{where}: file_name must be a file name, got {name!r}")
        width, height = (float(read_numbers(record, key, (), where)) for key in ("width", "height"))
        if min(width, height) < 1:
            raise AnnotationError(f"{where}: width and height must be positive, got {width:g} and {height:g}")
        pictures[number] = _Picture(name, width, height)
    return pictures


def _read_annotations(
    contents: dict[str, Any],
    category: int,
    pictures: dict[int, _Picture],
    skeleton: Skeleton,
    aspect: float,
    file: Path,
) -> tuple[list[dict[str, Any]], list[PersonRow]]:
    """The annotations of persons, with the fields that COCO's evaluation asks for, and those of them to train on."""
    found: dict[int, tuple[int, dict[str, Any]]] = {}
    for row, record in enumerate(_records(contents, "annotations", file) if contents.get("annotations") else []):
        number = _read_integer(record, "id", f"{file}, annotation {row} of the list")
        where = f"{file}, annotation {number}"
        if _read_integer(record, "category_id", where) != category:
            continue
        if number in found:
            raise AnnotationError(f"{where}: is there twice")
        if (image := _read_integer(record, "image_id", where)) not in pictures:
            raise AnnotationError(f"{where}: image_id must be one of the file's images, got {image}")
        found[number] = row, record
    names = [f"{file}, annotation {number}" for number in found]
    records = [record for _, record in found.values()]
    boxes = read_column(records, "bbox", (4,), names)
    areas = read_column(records, "area", (), names, largest=_LARGEST_AREA)
    joints = read_column(records, "keypoints", (3 * skeleton.num_joints,), names).reshape(-1, skeleton.num_joints, 3)
    if (wrong := ~np.isin(joints[..., 2], (0, 1, 2)).all(axis=1)).any():
        got = joints[np.argmax(wrong), :, 2].tolist()
        raise AnnotationError(f"{names[np.argmax(wrong)]}: the v of keypoints must be 0, 1 or 2, got {got}")
    visible = joints[..., 2] > 0
    counts = visible.sum(axis=1).tolist()
    keypoints = np.where(visible[..., None], joints[..., :2], 0)
    cut = _cut_boxes(boxes, [pictures[record["image_id"]] for record in records])
    usable = visible.any(axis=1) & (areas > 0) & (cut[:, 2:].min(axis=1) >= 0) & (cut[:, 2:].max(axis=1) > 0)
    centers, scales = crop_boxes(cut, aspect)
    sides = boxes[:, 2:].max(axis=1, initial=0).astype(np.float32)

    annotations, rows = [], []
    for i, (number, (row, record)) in enumerate(found.items()):
        crowd = _read_integer(record, "iscrowd", names[i], 0)
        known = _read_integer(record, "num_keypoints", names[i], counts[i])
        image = record["image_id"]
        annotations.append(
            {
                "id": number,
                "image_id": image,
                "category_id": category,
                "bbox": record["bbox"],
                "area": record["area"],
                "iscrowd": crowd,
                "num_keypoints": known,
                "keypoints": record["keypoints"],
            }
        )
        if usable[i] and known > 0 and not crowd:
            rows.append(
                PersonRow(
                    where=f"annotation {number}",
                    source_row=row,
                    image=pictures[image].name,
                    center=centers[i],
                    scale=tuple(scales[i]),
                    keypoints=keypoints[i],
                    visible=visible[i],
                    extras={"image_id": np.int64(image), "box_score": np.float32(1), "box_side": sides[i]},
                )
            )
    log.info("%s: %d of %d annotations are persons with joints and a box", file, len(rows), len(annotations))
    return annotations, rows


def _cut_boxes(boxes: np.ndarray, pictures: list[_Picture]) -> np.ndarray:
    """SimpleBaselines' boxes [N, 4], cut to their pictures; a width or height below 0 where nothing is left."""
    last = np.array([(picture.width, picture.height) for picture in pictures]).reshape(-1, 2) - 1
    corner = np.maximum(boxes[:, :2], 0)
    return np.hstack([corner, np.minimum(last, corner + np.maximum(boxes[:, 2:] - 1, 0)) - corner])


def _read_detections(
    file: Path, category: int, pictures: dict[int, _Picture], skeleton: Skeleton, aspect: float, annotations: Path
) -> list[PersonRow]:
    records = read_json(file)
    if not isinstance(records, list) or not records:
        raise AnnotationError(f"{file}: must be a list of boxes, got {type(records).__name__} {str(records)[:40]}")
    for index, record in enumerate(records):
        if not isinstance(record, dict):
            raise AnnotationError(f"{file}, box {index}: must be an object, got {type(record).__name__}")
    names = [f"{file}, box {index}" for index in range(len(records))]
    boxes = read_column(records, "bbox", (4,), names)
    scores = read_column(records, "score", (), names)
    if (wrong := boxes[:, 2:].min(axis=1) < 0).any():
        got = boxes[np.argmax(wrong)].tolist()
        raise AnnotationError(f"{names[np.argmax(wrong)]}: bbox must have no width or height below 0, got {got}")
    usable = (scores >= 0) & (boxes[:, 2:].max(axis=1) > 0)
    centers, scales = crop_boxes(boxes, aspect)
    sides = boxes[:, 2:].max(axis=1).astype(np.float32)
    nowhere, unseen = np.zeros((skeleton.num_joints, 2)), np.zeros(skeleton.num_joints)
    rows, others, elsewhere, unusable = [], 0, 0, 0
    for i, record in enumerate(records):
        image = _read_integer(record, "image_id", names[i])
        if _read_integer(record, "category_id", names[i]) != category:
            others += 1
        elif image not in pictures:
            elsewhere += 1
        elif not usable[i]:
            unusable += 1
        else:
            rows.append(
                PersonRow(
                    where=f"box {i}",
                    source_row=i,
                    image=pictures[image].name,
                    center=centers[i],
                    scale=tuple(scales[i]),
                    keypoints=nowhere,
                    visible=unseen,
                    extras={"image_id": np.int64(image), "box_score": np.float32(scores[i]), "box_side": sides[i]},
                )
            )
    if others or elsewhere or unusable:
        log.warning(
            "%s: boxes left out: %d of other categories than %d, %d on images that are not in %s, "
            "%d that are empty or have a score below 0",
            *(file, others, category, elsewhere, annotations, unusable),
        )
    if not rows:
        raise AnnotationError(f"{file}: holds no box of category {category} on an image of {annotations}")
    return rows


def _records(contents: dict[str, Any], key: str, file: Path) -> list[dict[str, Any]]:
    records = contents.get(key)
    if not isinstance(records, list) or not records or not all(isinstance(record, dict) for record in records):
        raise AnnotationError(f"{file}: {key} must be a list of objects, got {str(records)[:40]}")
    return records


def _read_integer(record: dict[str, Any], key: str, where: str, default: int | None = None) -> int:
    value = record.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise AnnotationError(f"{where}: {key} must be a whole number, got {value!r}")
    return value
