# SPDX-License-Identifier: Apache-2.0
"""What the readers of other programs' formats share: texts from strangers, and from persons to COCO's form."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np

from fastpose.data.annotation_rows import AnnotationError, as_json
from fastpose.data.boxes import inside
from fastpose.data.coco.records import Tally
from fastpose.data.images import BadImageError, image_size
from fastpose.data.reading import Reading
from fastpose.files import read_file
from fastpose.skeletons import Skeleton, is_name
from fastpose.skeletons.sides import contradiction, pairs_by_name, pairs_in_yaml

log = logging.getLogger(__name__)

MOST_JOINTS = 1000  # what a person has, annotated or not, is written out: a small file must not become a large one
LARGEST = 1e6  # coordinates beyond this are a broken file, not a large picture
MARGIN = 0.1  # of the longer side of the joints' box, on each side


class Found(NamedTuple):
    """A data set as its files have it.

    Attributes:
        contents: what COCO's JSON would have: images, annotations, categories.
        skeleton: the joints, in the order of the annotations.
        images: the folder that the names of images are relative to.
        dropped: what was left out, and why.
        named: whether the files name the joints; otherwise the names of `skeleton` are numbers.
        is_split: whether these are the persons of the split that was asked for; otherwise all of a file, which may
            have both.
        frames: pictures that are no files, by their names in `contents`: each gives uint8 [h, w, 3] or [h, w, 1].
        records: what messages call the annotations with the ids 1, 2 and so on.
        pairs_key: what in the files states the mirror pairs of `skeleton`; empty: they follow from names, or are none.
        unsized: pictures whose size cannot be read, of persons who are annotated in shares of it: they are placed as
            in a picture of another size, so that whoever needs the picture finds that it is damaged.
    """

    contents: dict[str, Any]
    skeleton: Skeleton
    images: Path
    dropped: Tally
    named: bool = True
    is_split: bool = False
    frames: Mapping[str, Callable[[], np.ndarray]] = {}
    records: Sequence[str] = ()
    pairs_key: str = ""
    unsized: frozenset[str] = frozenset()


class Person(NamedTuple):
    """An annotated person.

    image: the image's name. joints: [K, 3], x, y and COCO's v. box: x, y, w, h; None: around the joints.
    category: its place in the list of categories. record: what the files have of it, such as a line, for messages.
    """

    image: str
    joints: np.ndarray
    box: tuple[float, float, float, float] | None = None
    category: int = 0
    record: str = ""


def as_contents(
    images: Sequence[str],
    persons: Sequence[Person],
    skeleton: Skeleton,
    folder: Path,
    reading: Reading,
    categories: Sequence[str] = ("person",),
) -> dict[str, Any]:
    """What COCO's JSON would have: ids from 1 in the order of these lists, the sizes of images from their headers, and
    boxes cut to them.

    An image that cannot be read has no size here, and is an error, or left out, where it is needed.
    """
    number = {name: row for row, name in enumerate(dict.fromkeys(images), start=1)}
    sizes = {name: _size(folder, name, reading) for name in number}
    annotations = []
    for row, person in enumerate(persons, start=1):
        annotated = person.joints[:, 2] > 0
        box = around(person.joints[annotated, :2]) if person.box is None else person.box
        annotations.append(
            {
                "id": row,
                "image_id": number[person.image],
                "category_id": person.category + 1,
                "keypoints": person.joints.ravel().tolist(),
                "num_keypoints": int(annotated.sum()),
                "bbox": inside(box, **sizes[person.image]) if sizes[person.image] else list(box),
                "iscrowd": 0,
            }
        )
    return {
        "images": [{"id": row, "file_name": name, **sizes[name]} for name, row in number.items()],
        "annotations": annotations,
        "categories": [
            {
                "id": row,
                "name": name,
                "keypoints": list(skeleton.joints),
                "skeleton": [[a + 1, b + 1] for a, b in skeleton.limbs],
            }
            for row, name in enumerate(categories, start=1)
        ],
    }


def around(points: np.ndarray) -> tuple[float, float, float, float]:
    """The box around points [K, 2], wider by a tenth of its longer side on each side; of no size without points."""
    if not len(points):
        return (0.0, 0.0, 0.0, 0.0)
    size = np.ptp(points, axis=0)
    margin = MARGIN * size.max()
    (x, y), (w, h) = (points.min(axis=0) - margin).tolist(), (size + 2 * margin).tolist()
    return (x, y, w, h)


def _size(folder: Path, name: str, reading: Reading) -> dict[str, int]:
    if PurePath(name).is_absolute() or ".." in PurePath(name).parts:  # refused with its person, and not opened here
        return {}
    try:
        height, width = image_size(folder / name, reading)
    except (BadImageError, OSError, ValueError):
        return {}
    return {"width": width, "height": height}


def read_text(file: Path, most: int) -> str:
    """The text of a file in UTF-8; AnnotationError if it is in another encoding or has a NUL."""
    try:
        text = read_file(file, most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise AnnotationError(
            f"{file}: expected UTF-8, got {error.object[error.start :][:8]!r} at byte {error.start}"
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise AnnotationError(f"{file}, line {line}: expected text, got a NUL")
    return text


_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|[-+]?(nan|inf|infinity)", re.IGNORECASE)


def number(text: str, what: str, where: str) -> float:
    """The number that a text is; it may be NaN or infinite. AnnotationError names `where` and `what`."""
    if len(text) > 100 or not _NUMBER.fullmatch(text.strip()):
        raise AnnotationError(f"{where}: {what} must be a number, got {as_json(text)}")
    return float(text)


def check_place(point: Sequence[float], where: str) -> None:
    """Raises AnnotationError if an annotated joint, x and y, is nowhere."""
    x, y = point
    if not (abs(x) < LARGEST and abs(y) < LARGEST):
        raise AnnotationError(f"{where}: expected finite x and y below {LARGEST:.0e}, got {x:g} and {y:g}")


def named_skeleton(
    name: str,
    joints: Sequence[Any],
    limbs: Sequence[tuple[int, int]] = (),
    pairs: Sequence[tuple[int, int]] = (),
    *,
    where: str,
    pairs_where: str = "",
) -> Skeleton:
    """A skeleton with the names of a file, which messages call `where`, and with the mirror pairs at `pairs_where`.
    Without `pairs` those that the names say, which is logged.

    Raises:
        AnnotationError: something that is not a name, or a name twice; or a joint is in two pairs, or the names
            contradict them.
    """
    for joint in joints:
        if not is_name(joint):
            raise AnnotationError(f"{where}: expected names of joints, got {as_json(joint)}")
    if len(joints) > MOST_JOINTS:
        raise AnnotationError(f"{where}: expected at most {MOST_JOINTS:,} joints, got {len(joints):,}")
    if not joints or len(set(joints)) < len(joints):
        raise AnnotationError(f"{where}: expected joints with different names, got {as_json(list(joints))}")
    if not pairs and (pairs := pairs_by_name(joints)):
        shown = ", ".join(f"{joints[a]} and {joints[b]}" for a, b in pairs)
        log.info("%s: joints that change places when an image is mirrored, by their names: %s", where, shown)
    if len({joint for pair in pairs for joint in pair}) < 2 * len(pairs):
        shown = pairs_in_yaml(joints, pairs)
        raise AnnotationError(f"{pairs_where}: expected every joint in at most one mirror pair, got {shown}")
    if wrong := contradiction(joints, pairs):
        raise AnnotationError(f"{pairs_where}: {wrong}")
    return Skeleton(name, tuple(joints), tuple(pairs), tuple(limbs))


def ordered(found: Found, wanted: Skeleton, file: Path, called: str) -> Found:
    """The same with the joints of `wanted`, in its order. Those that the files lack are not annotated, which is logged.

    `called`: what has the joints of `wanted`, for messages.

    Raises:
        AnnotationError: the files have joints that it lacks, or, without names, another number; or they state other
            mirror pairs.
    """
    own = found.skeleton
    if not found.named and own.num_joints != wanted.num_joints:
        raise AnnotationError(f"{file}: its persons have {own.num_joints} joints, {called} has {wanted.num_joints}")
    if not found.named or own.joints == wanted.joints:
        places = list(range(own.num_joints))
    else:
        if strange := [joint for joint in own.joints if joint not in wanted.joints]:
            raise AnnotationError(
                f"{file}: its joints are {as_json(own.joints, 300)}, and {called} has no {as_json(strange[0])}, got "
                f"{as_json(wanted.joints, 300)}"
            )
        if absent := [joint for joint in wanted.joints if joint not in own.joints]:
            log.warning("%s: has no %s of %s, which nobody is annotated with", file, ", ".join(absent), called)
        places = [wanted.joints.index(joint) for joint in own.joints]
    if found.pairs_key:
        _check_pairs(found, wanted, places, file, called)
    if own.joints == wanted.joints:
        return found._replace(skeleton=wanted)
    annotations = []
    for record in found.contents["annotations"]:
        joints = np.zeros((wanted.num_joints, 3))
        joints[places] = np.reshape(record["keypoints"], (-1, 3))
        annotations.append({**record, "keypoints": joints.ravel().tolist()})
    named = {"keypoints": list(wanted.joints), "skeleton": [[a + 1, b + 1] for a, b in wanted.limbs]}
    categories = [{**category, **named} for category in found.contents["categories"]]
    contents = {**found.contents, "annotations": annotations, "categories": categories}
    return found._replace(contents=contents, skeleton=wanted)


def _check_pairs(found: Found, wanted: Skeleton, places: Sequence[int], file: Path, called: str) -> None:
    """Raises AnnotationError if the files state other mirror pairs than `wanted` has of their joints, which are at
    `places` in it: the joints are then others. Where it has none at all, others warn of that."""
    got = {tuple(sorted(places[joint] for joint in pair)) for pair in found.skeleton.mirror_pairs}
    expected = {tuple(sorted(pair)) for pair in wanted.mirror_pairs if set(pair) <= set(places)}
    if wanted.mirror_pairs and got != expected:
        lacking, more = (
            pairs_in_yaml(wanted.joints, [(a, b) for a, b in sorted(pairs)]) if pairs else "none"
            for pairs in (expected - got, got - expected)
        )
        raise AnnotationError(
            f"{file}: {found.pairs_key}: expected the mirror pairs of {called}, which differ in {lacking}, got {more}"
        )
