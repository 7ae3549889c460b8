# SPDX-License-Identifier: Apache-2.0
"""COCO's keypoint annotations, ``person_keypoints_*.json``, and the boxes of a detector beside them."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastpose.data.annotation_rows import (
    LIMITS,
    AnnotationError,
    JsonLimits,
    MissingImages,
    PersonRow,
    as_json,
    is_missing,
    persons_from_rows,
    read_column,
    read_json,
    read_numbers,
)
from fastpose.data.boxes import crop_boxes
from fastpose.data.coco.ap import BOX_AREA, CocoTruth, Key
from fastpose.data.coco.categories import choose_categories, names_of
from fastpose.data.coco.detections import read_detections
from fastpose.data.coco.pictures import Picture, Pictures
from fastpose.data.coco.records import (
    VISIBILITY,
    Joints,
    Tally,
    Visibility,
    coco_keypoints,
    flat_keypoints,
    read_flag,
    read_joints,
    read_key,
    read_records,
    read_whole,
)
from fastpose.data.images import BadImageError, image_header, other_way_up
from fastpose.data.persons import Persons
from fastpose.data.reading import AS_STORED, Reading
from fastpose.skeletons import COCO, Skeleton

log = logging.getLogger(__name__)

SIZES_CHECKED = 1000  # of how many images; all of COCO's would take as long as a first epoch on a slow disk
_LARGEST_AREA = 1e12  # of a person, square pixels
# From joints to the box around the person on each side, in longer sides of the joints' box. In 90 images of COCO, of 71
# persons with 14 joints and more: 0.06 left and right, 0.11 above and 0.09 below (medians).
_MARGIN = 0.1

# Why annotations are left out.
_CROWD, _NO_JOINT, _NO_BOX = "crowds", "without an annotated joint", "whose box is empty or outside the image"
_NO_EXTENT = "without bbox and with all joints at one place or outside the image"
_USUAL = (_CROWD, _NO_JOINT)  # in every file


def read_coco(
    annotations: str | PathLike[str],
    images: str | PathLike[str],
    size: tuple[int, int],
    *,
    contents: Any = None,
    records: Sequence[str] = (),
    skeleton: Skeleton = COCO,
    detections: str | PathLike[str] | None = None,
    missing_images: MissingImages = "error",
    for_evaluation: bool = False,
    box_sides: bool = False,
    reading: Reading = AS_STORED,
    category: str = "",
    visibility: Visibility = VISIBILITY,
    limits: JsonLimits = LIMITS,
) -> Persons:
    """Reads the persons of an annotation file in COCO's format, in the order of the file, as SimpleBaselines does.

    Coordinates are 0-based and stay as they are. An annotation is a person to train on if it is of the persons'
    category, no crowd, and has a joint and a box that is not empty once it is cut to the image. Left out are, as mmpose
    does, also those whose ``num_keypoints`` is 0. ``visible`` is 1 where v > 0, occluded or not; see `read_joints` for
    v other than 0, 1 and 2. Why annotations are left out is logged, with how many they are and the first, except what
    every file has: crowds, persons without an annotated joint, other categories.

    Ids are only compared with each other: numbers, texts, whole floats, of any size. Null and NaN, which pandas writes,
    stand for fields that are missing.

    The box ``[x, y, w, h]`` is cut to the image's (width - 1, height - 1) and loses its last pixel; it grows to the
    aspect ratio of the network's input about its middle, and by 1.25. Boxes of a detector are not cut.

    Args:
        annotations: the annotation file: ``images`` (id, file_name, width, height), ``categories`` (see `category`)
            and ``annotations`` (image_id, category_id, keypoints [3 J] or [J, 3]; id, bbox, area, iscrowd and
            num_keypoints may be missing). Without width and height an image is opened for them. Without annotations, as
            in ``image_info_test-dev2017.json``, it goes with ``detections``.
        images: the folder the file names are relative to.
        size: (h, w) of the network's input; only the aspect ratio counts.
        contents: what ``annotations`` would have as JSON, where a reader of another format has made it of that file,
            which messages then name; None: it is read.
        records: what messages call the annotations of `contents` with the ids 1, 2 and so on; empty: by their ids.
        skeleton: the joints; their number must be that of the file.
        detections: a detector's boxes, a list of ``{"image_id", "category_id", "bbox", "score"}``: the persons are then
            these boxes, without joints, for evaluation. Other categories, images that are not in ``annotations``, empty
            boxes, and sides and scores below 0 are left out; how many, is logged.
        missing_images: "error", or "drop" to leave out the persons whose image is not there, and the image from the
            evaluation, or "keep" for pictures that a source finds elsewhere; then ``images`` need not exist, and the
            sizes of images are not compared: the persons have what the file says of them.
        for_evaluation: keep what COCO's evaluation compares with (``truth``). Detections are always for evaluation.
        box_sides: keep what PCK may be measured by.
        reading: how the image files become the pixels that the annotations are for.
        category: the name of the category to read; "all": all that have joints; empty: the only one whose annotations
            have joints, or of several the one named "person".
        visibility: which joints with an unusual v are annotated.
        limits: of both files.

    Returns:
        The persons, with these extras: ``image_id``, int64 [N], COCO's number of the image, or if not all ids are
        numbers of 64 bits its place in ``images``, from 1; ``box_score``, float32 [N], how sure a detector was of the
        box, 1 for annotated ones; with box_sides ``box_side``, float32 [N], the longer side of the box as the file has
        it, px; of several categories ``category``, int64 [N], which of ``truth["categories"]`` it is of; with
        missing_images="keep" ``box``, float32 [N, 4], x y w h as the file has them, and ``image_size``, float32 [N, 2],
        the image's (width, height), 0 where the file does not say them.

    Raises:
        AnnotationError: a file does not have what it should; names file and annotation. Whether images have the size
            that it says is checked for 1,000 of them, evenly spread.
        FileNotFoundError: one of the files, or the image folder, does not exist.
    """
    file, root = Path(annotations), Path(images)
    if missing_images != "keep" and not root.is_dir():
        raise FileNotFoundError(f"images: no folder {root}")
    contents = read_json(file, limits) if contents is None else contents
    if not isinstance(contents, dict):
        raise AnnotationError(f"{file}: must be an object with 'images' and 'annotations', got {as_json(contents, 40)}")
    categories = choose_categories(contents, category, skeleton, file)
    pictures = Pictures(contents, file, root, reading)
    aspect = size[1] / size[0]
    as_in_file = missing_images == "keep"
    found = _read_annotations(contents, records, categories, pictures, skeleton, aspect, file, visibility, as_in_file)
    rows, source = found.rows, file
    if detections is not None:
        source = Path(detections)
        rows = read_detections(source, categories, pictures, skeleton, aspect, file, limits)
    elif not rows:
        count, kind = len(contents.get("annotations") or []), ", ".join(map(as_json, names_of(contents, categories)))
        why = "; ".join(str(tally) for tally in (found.left_out, found.usual) if tally)
        raise AnnotationError(
            f"{file}: none of its {count} annotations is a person (category {kind}) with joints and a box "
            f"around it (bbox){': ' + why if why else ''}; a file without them, on purpose, needs detections"
        )
    if found.left_out:
        log.warning("%s: annotations left out of training and score: %s", file, found.left_out)
    pictures.warn()
    persons = persons_from_rows(rows, source, root, missing_images, skeleton, reading)
    if not box_sides:
        kept = {name: array for name, array in persons.extras.items() if name != "box_side"}
        persons = dataclasses.replace(persons, extras=kept)
    if not as_in_file:
        _check_sizes(persons, pictures, file)
    if not for_evaluation and detections is None:
        return persons
    there = [i for i in pictures.numbers if missing_images != "drop" or _is_there(pictures.file_of(i))]
    box_source = "annotations" if detections is None else source.name
    return dataclasses.replace(persons, truth=_truth(found, categories, pictures, there, box_source))


def _truth(
    found: _Annotations, categories: list[Key], pictures: Pictures, there: list[Key], box_source: str
) -> CocoTruth:
    """What COCO's evaluation compares with, on the images that are `there`."""
    evaluated = set(there)
    truth = CocoTruth(
        box_source=box_source,
        category=categories[0],
        image_ids=there if pictures.renumbered else sorted(there),
        annotations=[record for record in found.records if record["image_id"] in evaluated],
    )
    if pictures.renumbered:
        truth["image_numbers"] = [pictures.numbers[i] for i in there]
    if len(categories) > 1:
        truth["categories"] = categories
    if no_area := sum(record["image_id"] in evaluated for record in found.no_area):
        truth["no_area"] = no_area
    if no_box := sum(record["image_id"] in evaluated for record in found.no_box):
        truth["no_box"] = no_box
    return truth


def _is_there(path: Path | None) -> bool:
    return path is not None and path.is_file()


def _check_sizes(persons: Persons, pictures: Pictures, file: Path) -> None:
    """Pictures that were resized or turned after they were annotated would be cropped at the wrong places."""
    by_number = {number: key for key, number in pictures.numbers.items()}
    _, rows = np.unique(persons.image_index, return_index=True)
    for row in rows[:: -(-len(rows) // SIZES_CHECKED)]:
        picture, path = (
            pictures[by_number[persons.extras["image_id"][row]]],
            persons.image_paths[persons.image_index[row]],
        )
        if math.isinf(picture.width):
            continue
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


class _Annotations(NamedTuple):
    """records: of the persons' categories, as COCO's evaluation asks for them. rows: those of them to train on.
    left_out: why others are not. usual: why, for what every file has. no_area, no_box: the records of persons
    whose area was made of the box, and whose box of the joints."""

    records: list[dict[str, Any]]
    rows: list[PersonRow]
    left_out: Tally
    usual: Tally
    no_area: list[dict[str, Any]]
    no_box: list[dict[str, Any]]


def _read_annotations(
    contents: dict[str, Any],
    names: Sequence[str],
    categories: list[Key],
    pictures: Pictures,
    skeleton: Skeleton,
    aspect: float,
    file: Path,
    visibility: Visibility,
    as_in_file: bool,
) -> _Annotations:
    left_out, usual, boxless = Tally(), Tally(), Tally()
    found = _on_images(contents, names, categories, pictures, skeleton.num_joints, file, left_out, usual)
    records = [one.record for one in found]

    def name(i: int) -> str:
        return f"{file}, {found[i].where}"

    boxes = read_column(records, "bbox", (4,), name)
    joints = read_joints(records, skeleton, lambda i: found[i].where, file, visibility)
    counts = joints.visible.sum(axis=1).tolist()
    for i, one in enumerate(found):
        if "bbox" in one.lacks:
            boxes[i] = _around(joints, i)
    cut = _cut_boxes(boxes, [pictures[one.image] for one in found])
    boxed = (boxes[:, 2:].min(axis=1) >= 0) & (cut[:, 2:].min(axis=1) >= 0) & (cut[:, 2:].max(axis=1) > 0)
    centers, scales = crop_boxes(cut, aspect)
    sides = boxes[:, 2:].max(axis=1, initial=0).astype(np.float32)

    annotations: list[dict[str, Any]] = []
    rows: list[PersonRow] = []
    no_area: list[dict[str, Any]] = []
    no_box: list[dict[str, Any]] = []
    for i, (row, record, image, where, lacks) in enumerate(found):
        crowd = read_flag(record, "iscrowd", name(i))
        known = read_whole(record, "num_keypoints", name(i), counts[i])
        area = _area(record, name(i))
        reason = _why_not(crowd, lacks, counts[i], known, boxed[i])
        if reason:
            fields = {"bbox": record["bbox"], "area": record.get("area")} if reason == _NO_BOX else {}
            (usual if reason in _USUAL else left_out).add(reason, where, **fields)
        else:
            picture, kind = pictures[image], categories.index(record["category_id"])
            extras: dict[str, Any] = {
                "image_id": np.int64(picture.number),
                "box_score": np.float32(1),
                "box_side": sides[i],
            }
            if as_in_file:
                size = [0 if math.isinf(side) else side for side in (picture.width, picture.height)]
                extras |= {"box": boxes[i].astype(np.float32), "image_size": np.array(size, np.float32)}
            rows.append(
                PersonRow(
                    where=where if names or is_missing(record.get("id")) else f"{where} (row {row})",
                    source_row=row,
                    image=picture.name,
                    center=centers[i],
                    scale=tuple(scales[i]),
                    keypoints=joints.points[i],
                    visible=joints.visible[i],
                    extras=extras | ({"category": np.int64(kind)} if len(categories) > 1 else {}),
                )
            )
        box = boxes[i].tolist() if "bbox" in lacks else record["bbox"]
        annotations.append(
            {
                "id": record.get("id"),
                "image_id": image,
                "category_id": read_key(record, "category_id", name(i)),
                "bbox": box,
                "area": BOX_AREA * max(box[2], 0) * max(box[3], 0) if area is None else area,
                "iscrowd": crowd,
                # Somebody whom nobody is to find must not be missed: 0 is how pycocotools knows these.
                "num_keypoints": 0 if reason and not crowd else known,
                "keypoints": coco_keypoints(record, joints, i),
            }
        )
        if not reason and area is None:
            no_area.append(annotations[-1])
        if not reason and "bbox" in lacks:
            no_box.append(annotations[-1])
            boxless.add("persons without bbox, who get one around their joints", where, bbox=box)
    if boxless:
        log.warning("%s: %s", file, boxless)
    others = f"; left out, as in every file: {usual}" if usual else ""
    log.info("%s: %d of %d annotations are persons with joints and a box%s", file, len(rows), len(annotations), others)
    return _Annotations(annotations, rows, left_out, usual, no_area, no_box)


def _why_not(crowd: int, lacks: list[str], joints: int, known: int, boxed: bool) -> str:
    """Why an annotation is nobody to train on; empty if it is somebody."""
    if crowd:
        return _CROWD
    if "keypoints" in lacks:
        return f"without {' and '.join(lacks)}"
    if not joints:
        return _NO_JOINT
    if known <= 0:
        return "with joints whose num_keypoints is not above 0"
    if boxed:
        return ""
    return _NO_EXTENT if lacks else _NO_BOX


class _Found(NamedTuple):
    row: int
    record: dict[str, Any]
    image: Key
    where: str  # names it in messages
    lacks: list[str]  # which of keypoints and bbox it does not have; in `record` they are then all 0


def _on_images(
    contents: dict[str, Any],
    names: Sequence[str],
    categories: list[Key],
    pictures: Pictures,
    joints: int,
    file: Path,
    left_out: Tally,
    usual: Tally,
) -> list[_Found]:
    """The annotations of these categories on the file's images."""
    usual_length = {"keypoints": 3 * joints, "bbox": 4}
    found: list[_Found] = []
    known: set[Key] = set()
    for row, record in enumerate(read_records(contents, "annotations", file) if contents.get("annotations") else []):
        where = f"annotation {row} of the list"
        if not is_missing(record.get("id")):  # only a name: nobody looks an annotation up
            number = read_key(record, "id", f"{file}, {where}")
            where = names[int(number) - 1] if names else f"annotation {as_json(number)}"
        category = read_key(record, "category_id", f"{file}, {where}")
        if category not in categories:
            usual.add("of other categories", where, category_id=category)
            continue
        if not is_missing(record.get("id")):
            if number in known:
                raise AnnotationError(f"{file}, {where}: is there twice")
            known.add(number)
        image = read_key(record, "image_id", f"{file}, {where}")
        if image not in pictures:
            left_out.add(f"on images that are not in images, {pictures.first}", where, image_id=image)
            continue
        lacks = [key for key in usual_length if is_missing(record.get(key)) or record[key] == []]
        zeros = {key: [0] * usual_length[key] for key in lacks}
        flat = flat_keypoints(record.get("keypoints"))
        if lacks or flat is not record["keypoints"]:
            record = {**record, "keypoints": flat, **zeros}
        found.append(_Found(row, record, image, where, lacks))
    return found


def _area(record: dict[str, Any], where: str) -> float | None:
    """The area as the file has it; None if that says nothing: missing, 0 or below."""
    if is_missing(record.get("area")):
        return None
    area = float(read_numbers(record, "area", (), where, largest=_LARGEST_AREA))
    return record["area"] if area > 0 else None


def _around(joints: Joints, row: int) -> list[float]:
    """The box around a person by its annotated joints; of 0 x 0 if these are at one place, or there are none."""
    points = joints.points[row, joints.visible[row]]
    if not len(points):
        return [0.0, 0.0, 0.0, 0.0]
    margin = _MARGIN * np.ptp(points, axis=0).max()
    return [*(points.min(axis=0) - margin).tolist(), *(np.ptp(points, axis=0) + 2 * margin).tolist()]


def _cut_boxes(boxes: np.ndarray, pictures: list[Picture]) -> np.ndarray:
    """SimpleBaselines' boxes [N, 4], cut to their pictures; a width or height below 0 where nothing is left."""
    last = np.array([(picture.width, picture.height) for picture in pictures]).reshape(-1, 2) - 1
    corner = np.maximum(boxes[:, :2], 0)
    return np.hstack([corner, np.minimum(last, corner + np.maximum(boxes[:, 2:] - 1, 0)) - corner])
