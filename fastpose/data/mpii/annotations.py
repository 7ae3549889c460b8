# SPDX-License-Identifier: Apache-2.0
"""MPII Human Pose annotations: the community's JSON with ``gt_valid.mat``, and the official ``.mat``."""

from __future__ import annotations

import logging
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from fastpose.data.annotation_rows import (
    LIMITS,
    AnnotationError,
    JsonLimits,
    MissingImages,
    PersonRow,
    persons_from_rows,
    read_json,
    read_numbers,
)
from fastpose.data.boxes import mpii_box
from fastpose.data.mat_file import read_mat
from fastpose.data.mpii.release import read_release
from fastpose.data.persons import Persons
from fastpose.data.reading import AS_STORED, Reading
from fastpose.skeletons import MPII

log = logging.getLogger(__name__)

# Coordinates beyond this are a broken file, not a large picture.
_LARGEST = 1e6
# valid.json and gt_valid.mat come from one source, one of them rounded to whole pixels in some copies.
_SAME_POINT_PX = 1.5


def read_mpii(
    annotations: str | PathLike[str],
    images: str | PathLike[str],
    *,
    split: Literal["train", "valid"] | None = None,
    split_list: str | PathLike[str] | None = None,
    head_boxes: str | PathLike[str] | None = None,
    missing_images: MissingImages = "error",
    reading: Reading = AS_STORED,
    limits: JsonLimits = LIMITS,
) -> Persons:
    """Reads the persons of an MPII annotation file.

    Both formats are 1-based and become 0-based. The box is SimpleBaselines': centre + 15 * scale in y, scale * 1.25
    (not where the centre's x is -1). ``visible`` says which joints are annotated.

    ``*.json`` is the community's ``annot/{train,valid}.json``: a list of ``{"image", "center" [2], "scale",
    "joints" [16][2], "joints_vis" [16]}``. A record without the last two, as all of ``annot/test.json`` are, is a
    person without annotated joints.

    ``*.mat`` is the official ``mpii_human_pose_v1_u12_1.mat``. It yields the persons of its training images (the others
    have no joints) that have joints, position, scale and head box; how many lack one of these is logged. Reading it
    takes about half a minute.

    Args:
        annotations: the annotation file, ``.json`` or ``.mat``.
        images: the folder the image names are relative to.
        split: for ``.mat``: "valid" reads the persons that ``split_list`` names, "train" all others.
        split_list: for ``.mat``: a text file that names the validation persons, one per line: ``015601864.jpg`` for
            everybody on the image or ``015601864.jpg 1`` for one person, counted from 0 in the image's ``annorect``
            (``imgname`` and ``person`` of Newell's ``valid.h5``). Blank lines and lines that begin with # are skipped.
        head_boxes: for ``.json``: the ``gt_valid.mat`` whose rows are those of ``annotations``; gives
            ``extras["head_size"]``, float32 [N]. The ``.mat`` has its own head boxes.
        missing_images: "error", or "drop" to leave out the persons whose image is missing; ``source_row`` then says
            which rows are left, or "keep" for pictures that a source finds elsewhere; then ``images`` need not exist.
        reading: how the image files become the pixels that the annotations are for.
        limits: for ``.json``: what the file may have at most.

    Returns:
        The persons in the order of the file.

    Raises:
        AnnotationError: the file does not have what it should; names file and record.
        FileNotFoundError: one of the files, or the image folder, does not exist.
        ValueError: an argument that the format has no use for.
    """
    file, root = Path(annotations), Path(images)
    if missing_images != "keep" and not root.is_dir():
        raise FileNotFoundError(f"images: no folder {root}")
    if file.suffix == ".json":
        if split is not None or split_list is not None:
            raise ValueError(f"split and split_list are for the official .mat; {file} is one split already")
        rows = _read_json(file, head_boxes, limits)
    elif file.suffix == ".mat":
        if head_boxes is not None:
            raise ValueError(f"head_boxes is for .json; {file} has its own head boxes")
        rows = read_release(file, split, split_list)
    else:
        raise ValueError(f"annotations must be a .json or .mat file, got {file}")
    return persons_from_rows(rows, file, root, missing_images, MPII, reading)


class GroundTruth(NamedTuple):
    """What ``gt_valid.mat`` says, one row per person.

    keypoints: float32 [N, 16, 2], 0-based px. visible: bool [N, 16], True = annotated. head_size: float64 [N], px.
    """

    keypoints: np.ndarray
    visible: np.ndarray
    head_size: np.ndarray


def read_ground_truth(path: str | PathLike[str]) -> GroundTruth:
    """Reads the community's ``gt_valid.mat``.

    It has ``pos_gt_src`` [16, 2, N] (1-based), ``jnt_missing`` [16, N] and ``headboxes_src`` [2, 2, N] (corner,
    x/y, person). The head size is MPII's: 0.6 times the diagonal of the head box.

    Raises:
        AnnotationError: a variable is missing, has another shape, or a value is out of range; names file and row.
        FileNotFoundError: no such file.
    """
    file = Path(path)
    names = ("pos_gt_src", "jnt_missing", "headboxes_src")
    mat = read_mat(file, names)
    points, missing, boxes = (np.asarray(mat[name]) for name in names)
    count = points.shape[-1] if points.ndim == 3 else 1
    shapes = {"pos_gt_src": (16, 2, count), "jnt_missing": (16, count), "headboxes_src": (2, 2, count)}
    for name, array in zip(names, (points, missing, boxes), strict=True):
        # MATLAB drops trailing dimensions of size 1, so one person's array has one dimension less.
        if array.dtype.kind not in "iufb" or array.size != np.prod(shapes[name]):
            got = f"{array.dtype} {array.shape}"
            raise AnnotationError(f"{file}: {name} must be numbers of shape {shapes[name]}, got {got}")
    points = points.reshape(shapes["pos_gt_src"]).astype(np.float64).transpose(2, 0, 1)
    visible = missing.reshape(shapes["jnt_missing"]).T == 0
    corners = boxes.reshape(shapes["headboxes_src"]).astype(np.float64)
    head_size = 0.6 * np.linalg.norm(corners[1] - corners[0], axis=0)

    good_points = ((np.abs(points) < _LARGEST).all(axis=2) | ~visible).all(axis=1)
    for name, good in (("pos_gt_src", good_points), ("headboxes_src", (head_size > 0) & (head_size < _LARGEST))):
        if not good.all():
            raise AnnotationError(f"{file}, person {int(np.argmin(good))}: {name} is not finite, or its box is empty")
    keypoints = np.where(visible[..., None], points - 1, 0).astype(np.float32)
    return GroundTruth(keypoints, visible, head_size)


def _read_json(file: Path, head_boxes: str | PathLike[str] | None, limits: JsonLimits) -> list[PersonRow]:
    records = read_json(file, limits)
    if not isinstance(records, list) or not records:
        raise AnnotationError(f"{file}: must be a list of persons, got {type(records).__name__} {str(records)[:40]}")
    rows = [_read_record(record, index, f"{file}, record {index}") for index, record in enumerate(records)]
    return rows if head_boxes is None else _add_head_sizes(rows, file, Path(head_boxes))


def _read_record(record: Any, index: int, where: str) -> PersonRow:
    if not isinstance(record, dict):
        raise AnnotationError(f"{where}: must be an object, got {type(record).__name__}")
    image = record.get("image")
    if not isinstance(image, str) or not image:
        raise AnnotationError(f"{where}: image must be a file name, got {image!r}")
    scale = float(read_numbers(record, "scale", (), where))
    if np.float32(scale) <= 0:
        raise AnnotationError(f"{where}: scale must be positive, got {scale}")
    keypoints, visible = _read_joints(record, where)
    center, scale = mpii_box(read_numbers(record, "center", (2,), where), scale)
    return PersonRow(f"record {index}", index, image, center, scale, keypoints, visible)


def _read_joints(record: dict[str, Any], where: str) -> tuple[np.ndarray, np.ndarray]:
    """Joints, 0-based [16, 2], and which are annotated [16]: none where a record has no joints, as in test.json.

    What stands for a joint that is not annotated does not matter: null, NaN or anything else.
    """
    points, flags = record.get("joints"), record.get("joints_vis")
    if (points is None or points == []) and not np.any(flags or 0):
        return np.zeros((MPII.num_joints, 2)), np.zeros(MPII.num_joints)
    visible = read_numbers(record, "joints_vis", (MPII.num_joints,), where, booleans=True)
    if (wrong := ~np.isin(visible, (0, 1))).any():
        joint = int(np.argmax(wrong))
        raise AnnotationError(f"{where}: joints_vis must be 0 or 1, got {visible[joint]:g} for {MPII.joints[joint]}")
    if isinstance(points, list) and len(points) == MPII.num_joints:
        points = [point if seen else [0, 0] for point, seen in zip(points, visible.tolist(), strict=True)]
    try:
        joints = read_numbers(record | {"joints": points}, "joints", (MPII.num_joints, 2), where)
    except AnnotationError:
        for name, point in zip(MPII.joints, points if isinstance(points, list) else [], strict=False):
            try:
                read_numbers({"joints": point}, "joints", (2,), where)
            except AnnotationError as error:
                raise AnnotationError(f"{error}, for {name}") from error
        raise
    return np.where(visible[:, None] > 0, joints - 1, 0), visible


def _add_head_sizes(rows: list[PersonRow], file: Path, head_boxes: Path) -> list[PersonRow]:
    truth = read_ground_truth(head_boxes)
    if len(truth.head_size) != len(rows):
        raise AnnotationError(f"{head_boxes}: holds {len(truth.head_size)} persons, {file} holds {len(rows)}")
    keypoints = np.array([row.keypoints for row in rows])
    visible = np.array([row.visible for row in rows]) > 0
    both = visible & truth.visible
    # A file in another order would give every person somebody else's head size and a wrong score without an error.
    distance = np.where(both, np.linalg.norm(keypoints - truth.keypoints, axis=2), 0).max(axis=1)
    if (distance > _SAME_POINT_PX).any():
        row = int(np.argmax(distance > _SAME_POINT_PX))
        raise AnnotationError(
            f"{head_boxes}, person {row}: its joints are up to {distance[row]:.1f} px from those of {file}, "
            f"record {row}: the two files do not list the same persons in the same order"
        )
    if (visible != truth.visible).any():
        count = int((visible != truth.visible).sum())
        log.warning("%s and %s disagree on whether %d joints are annotated", file, head_boxes, count)
    sizes = truth.head_size.astype(np.float32)
    return [row._replace(extras={"head_size": size}) for row, size in zip(rows, sizes, strict=True)]
