# SPDX-License-Identifier: Apache-2.0
"""The official ``mpii_human_pose_v1_u12_1.mat``: MATLAB structs whose fields are missing or empty for some people."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastpose.data.annotation_rows import AnnotationError, PersonRow
from fastpose.data.boxes import mpii_box
from fastpose.data.mat_file import read_mat
from fastpose.files import read_file
from fastpose.skeletons import MPII

log = logging.getLogger(__name__)

# What is read of the release's structs.
_FIELDS = (
    *("annolist", "img_train", "image", "name", "annorect", "annopoints", "point", "id", "x", "y"),
    *("scale", "objpos", "x1", "y1", "x2", "y2"),
)
_LONGEST_NAME = 1000  # characters of an image's name; file systems take a quarter
_LONGEST_LIST = 16 << 20  # bytes of a split list; MPII's 2,958 persons take 60 kB


def read_release(file: Path, split: str | None, split_list: str | PathLike[str] | None) -> list[PersonRow]:
    """The usable persons of the training images, or one split of them. Arguments and errors: see `read_mpii`.

    ``source_row`` counts all people of all images, usable or not, in the order of the file.
    """
    if split not in (None, "train", "valid"):
        raise ValueError(f"split must be 'train', 'valid' or None, got {split!r}")
    if split is not None and split_list is None:
        raise ValueError(
            f"split_list: {file} holds training and validation persons together: "
            "expected a file that names the validation persons (--split_list), got none"
        )
    if split is None and split_list is not None:
        raise ValueError(f"split: expected 'train' or 'valid' with split_list {split_list}, got None")
    people = list(_training_people(file))
    if split_list is not None:
        listed = _read_split_list(Path(split_list), people)
        people = [p for p in people if ((p.image, p.person) in listed) == (split == "valid")]

    rows, lacking = [], Counter[str]()
    for person in people:
        row = _read_person(person, file)
        if isinstance(row, str):
            lacking[row] += 1
        else:
            rows.append(row)
    if lacking:
        reasons = ", ".join(f"{count} without {reason}" for reason, count in lacking.items())
        log.warning("%s: %d of %d persons left out: %s", file, lacking.total(), len(people), reasons)
    if not rows:
        raise AnnotationError(f"{file}: no usable person{f' in split {split!r}' if split else ''}")
    return rows


class _Entry(NamedTuple):
    image: str
    person: int  # position in the image's annorect
    source_row: int
    rect: dict[str, Any]


def _training_people(file: Path) -> Iterator[_Entry]:
    release = _one(read_mat(file, ("RELEASE",), _FIELDS)["RELEASE"])
    images = _items(release.get("annolist"))
    training = np.asarray(release.get("img_train", ()))
    if not images or training.size != len(images) or training.dtype.kind not in "iufb":
        raise AnnotationError(f"{file}: RELEASE must hold annolist and one img_train for each of {len(images)} images")
    source_row = 0
    for index, (image, is_training) in enumerate(zip(images, training.ravel().tolist(), strict=True)):
        name = _one(image.get("image")).get("name")
        if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= _LONGEST_NAME:
            raise AnnotationError(
                f"{file}: annolist({index + 1}).image.name must be a file name, got {str(name)[:40]!r}"
            )
        for person, rect in enumerate(_items(image.get("annorect"))):
            if is_training:
                yield _Entry(name, person, source_row, rect)
            source_row += 1


def _read_person(entry: _Entry, file: Path) -> PersonRow | str:
    """The person's row, or the name of what it lacks."""
    where = f"image {entry.image} person {entry.person}"
    rect = entry.rect
    points = _items(_one(rect.get("annopoints")).get("point"))
    if not points:
        return "joints"
    scale = _number(rect, "scale", file, where)
    position = [_number(_one(rect.get("objpos")), axis, file, where) for axis in ("x", "y")]
    if scale is None or None in position:
        return "position or scale"
    if scale <= 0:
        raise AnnotationError(f"{file}, {where}: scale must be positive, got {scale}")
    corners = [_number(rect, name, file, where) for name in ("x1", "y1", "x2", "y2")]
    if None in corners:
        return "head box"
    x1, y1, x2, y2 = np.array(corners, np.float64)
    head_size = 0.6 * float(np.hypot(x2 - x1, y2 - y1))
    if head_size == 0:
        raise AnnotationError(f"{file}, {where}: the head box is empty")

    extras = {"head_size": np.float32(head_size)}
    center, scale = mpii_box(np.array(position, np.float64), scale)
    keypoints, visible = np.zeros((MPII.num_joints, 2)), np.zeros(MPII.num_joints)
    for point in points:
        joint, x, y = (_number(point, name, file, where) for name in ("id", "x", "y"))
        if joint is None or x is None or y is None or joint not in range(MPII.num_joints):
            raise AnnotationError(f"{file}, {where}: a point has id {joint}, x {x}, y {y}; expected an id of 0 to 15")
        # Whatever is_visible says (1, 0, '1', '0', empty or absent), the joint is annotated. The first of a joint named
        # twice counts, as in Newell's conversion, from which the community's files stem.
        if not visible[int(joint)]:
            keypoints[int(joint)], visible[int(joint)] = (x - 1, y - 1), 1
    return PersonRow(where, entry.source_row, entry.image, center, scale, keypoints, visible, extras)


def _shown(name: str) -> str:
    return name if name.isprintable() and len(name) < 80 else repr(name[:80])


def _items(value: Any) -> list[dict[str, Any]]:
    """The structs of a struct array; none where a field is missing, or is [] as MATLAB has it for many people."""
    return value if isinstance(value, list) else []


def _one(value: Any) -> dict[str, Any]:
    """A struct array of one as that struct; of any other number, one without fields."""
    items = _items(value)
    return items[0] if len(items) == 1 else {}


def _number(struct: dict[str, Any], name: str, file: Path, where: str) -> float | None:
    """A scalar field; None where the field is absent or empty."""
    value = np.asarray(struct.get(name, ()))
    if value.size == 0:
        return None
    if value.size != 1 or value.dtype.kind not in "iufb" or not abs(float(value.item())) < 1e6:
        raise AnnotationError(f"{file}, {where}: {name} must be a finite number below 1e6, got {str(value)[:40]}")
    return float(value.item())


def _read_split_list(path: Path, people: Sequence[_Entry]) -> set[tuple[str, int]]:
    persons_on: dict[str, set[int]] = {}
    for entry in people:
        persons_on.setdefault(entry.image, set()).add(entry.person)
    listed: set[tuple[str, int]] = set()
    try:
        text = read_file(path, _LONGEST_LIST).decode("utf-8")
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{path}: is not UTF-8 text: byte {error.start:,}") from error
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        there = persons_on.get(words[0])
        if there is None:
            raise AnnotationError(
                f"{path}, line {number}: {_shown(words[0])} is not a training image with people on it"
            )
        if len(words) == 1:
            listed.update((words[0], person) for person in there)
        elif len(words) == 2 and words[1].isdecimal() and len(words[1]) < 10 and int(words[1]) in there:
            listed.add((words[0], int(words[1])))
        else:
            raise AnnotationError(
                f"{path}, line {number}: expected an image name and a person of 0 to {max(there)}, "
                f"got {line.strip()[:80]!r}"
            )
    if not listed:
        raise AnnotationError(f"{path}: names no person")
    return listed
