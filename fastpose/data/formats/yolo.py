# SPDX-License-Identifier: Apache-2.0
"""YOLO's poses, as ultralytics has them: data.yaml, folders of pictures, and a text file beside each picture."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastpose.data.annotation_rows import AnnotationError, as_json
from fastpose.data.coco.records import Tally
from fastpose.data.dataset import DataOptions, Split
from fastpose.data.formats.found import (
    MOST_JOINTS,
    Found,
    Person,
    as_contents,
    named_skeleton,
    number,
    read_text,
)
from fastpose.data.images import BadImageError, image_size
from fastpose.files import read_yaml
from fastpose.option import OptionError
from fastpose.skeletons import COCO, Skeleton
from fastpose.skeletons.sides import pairs_in_yaml

log = logging.getLogger(__name__)

_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
_OUTSIDE = 0.01  # what rounding may put a box or a joint outside of its picture, as a share of its side
_UNKNOWN = (1000, 1000)  # (w, h) that persons are placed in whose picture cannot be read
_COCO_FLIP = [0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15]


class _Layout(NamedTuple):
    """What data.yaml says of the lines of text files."""

    joints: int
    numbers: int  # of a joint: 2 or 3
    classes: list[str]


def read_yolo(file: Path, split: Split, data: DataOptions) -> Found:
    """Reads a data set as its ``data.yaml`` says: ``train`` and ``val`` are a folder, a .txt file that lists pictures,
    or a list of these, below ``path``; ``kpt_shape`` is [K, 2] or [K, 3]; ``names`` are the classes; ``flip_idx`` and
    ``kpt_names`` may be missing.

    All pictures are below the data root. If ``path`` is not, the folder of the file stands for it, and ``../`` before a
    folder that is not there, or ``data/`` before a listed picture, is passed over: exports have these.

    The text file of ``…/images/…/NAME.jpg`` is ``…/labels/…/NAME.txt``; a picture without one has no persons. A line is
    ``class cx cy w h`` and ``x y [v]`` of each joint, in shares of the picture's width and height. A joint of two
    numbers is annotated unless both are 0. A line that is there twice is left out the second time.

    Joints are called as ``kpt_names`` says; COCO's 17 if there are as many and ``flip_idx`` is COCO's; else joint_1 and
    so on. ``flip_idx`` names the pairs, and must not contradict the names.

    Text files below ``…/labels/`` without a picture are left out, which is counted.

    Raises:
        AnnotationError: something is missing or is not as above; names the file and the line.
    """
    if data.images or data.valid_images:
        raise OptionError("images", f"{file.name} names the pictures, got {data.images or data.valid_images!r}")
    text = read_yaml(file, number_keys=True)
    if not isinstance(text, dict):
        raise AnnotationError(f"{file}: expected keys train, val, kpt_shape and names, got {as_json(text, 40)}")
    layout = _layout(text, file)
    skeleton, named, flips = _skeleton(text, layout, file)
    both = not text.get("val") or text.get("val") == text.get("train")
    key = "train" if both or split == "train" else "val"
    meant = [name for name in text if isinstance(name, str) and name != "val" and "val" in name.lower()]
    if meant and not text.get("val"):
        log.warning("%s: has no val, and %s is not read: call it val, if it is that", file, as_json(meant[0]))
    if not text.get(key):
        raise AnnotationError(f"{file}: has no {key}: the folder, or the list, of pictures")
    root, dropped = Path(data.data_root), Tally()
    names, folders = _pictures(text, key, file, root, data)
    kept: list[str] = []
    bare: list[str] = []
    persons: list[Person] = []
    unsized: set[str] = set()
    for name in names:
        labels = root / _label_file(name)
        if not (root / name).is_file():
            if data.missing_images == "error":
                raise AnnotationError(f"{file}: {key}: picture {name!r} is not in {root}")
            dropped.add("images that are not there", name)
            continue
        kept.append(name)
        if not labels.is_file():
            bare.append(name)
            continue
        try:
            height, width = image_size(root / name, data.reading)
        except BadImageError:  # an error where the picture is needed, or left out, as --on_bad_image says
            width, height = _UNKNOWN
            unsized.add(name)
        persons += _persons(labels, name, (width, height), layout, dropped, data.max_annotation_bytes)
    if len(bare) == len(kept):
        raise AnnotationError(
            f"{file}: {key}: none of its {len(names)} pictures has labels: those of the first, {names[0]!r}, would be "
            f"in {_label_file(names[0])!r}"
        )
    if bare:
        log.info(
            "%s: %s: %d of %d pictures have no text file, and so nobody on them (the first: %s)",
            file,
            key,
            len(bare),
            len(kept),
            bare[0],
        )
    for text_file in _without_picture(folders, names, root):
        dropped.add("text files without a picture", text_file)
    contents = as_contents(kept, persons, skeleton, root, data.reading, layout.classes)
    return Found(
        contents,
        skeleton,
        root,
        dropped,
        named,
        is_split=not both,
        records=[person.record for person in persons],
        pairs_key="flip_idx" if flips else "",
        unsized=frozenset(unsized),
    )


def _layout(text: dict[Any, Any], file: Path) -> _Layout:
    shape = text.get("kpt_shape")
    if not (
        isinstance(shape, list)
        and [type(one) for one in shape] == [int, int]
        and 1 <= shape[0] <= MOST_JOINTS
        and shape[1] in (2, 3)
    ):
        raise AnnotationError(f"{file}: kpt_shape must be [number of joints, 2 or 3], got {as_json(shape)}")
    names = text.get("names")
    if isinstance(names, dict) and sorted(names, key=str) == sorted(range(len(names)), key=str):
        names = [names[row] for row in range(len(names))]
    if not isinstance(names, list) or not names or len(set(map(str, names))) < len(names):
        raise AnnotationError(
            f"{file}: names must be the classes' different names, in a list or by numbers from 0, got {as_json(names)}"
        )
    return _Layout(shape[0], shape[1], [str(name) for name in names])


def _skeleton(text: dict[Any, Any], layout: _Layout, file: Path) -> tuple[Skeleton, bool, bool]:
    """The joints, whether the file names them, and whether its flip_idx exchanges any."""
    flip, count = text.get("flip_idx"), layout.joints
    pairs: list[tuple[int, int]] = []
    if flip is not None:
        if not isinstance(flip, list) or len(flip) != count or not all(type(i) is int and 0 <= i < count for i in flip):
            raise AnnotationError(f"{file}: flip_idx must be {count} numbers below {count}, got {as_json(flip)}")
        for joint, other in enumerate(flip):
            if flip[other] != joint:
                raise AnnotationError(
                    f"{file}: flip_idx must exchange joints in pairs: joint {joint} becomes {other}, and {other} "
                    f"becomes {flip[other]}"
                )
        pairs = [(other, joint) for joint, other in enumerate(flip) if joint < other]
    names = text.get("kpt_names")
    if isinstance(names, dict):  # by class
        if any(one != next(iter(names.values())) for one in names.values()):
            raise AnnotationError(f"{file}: kpt_names must be the same for all classes, got {as_json(names, 200)}")
        names = next(iter(names.values()), None)
    if names is not None:
        if not isinstance(names, list) or len(names) != count:
            raise AnnotationError(f"{file}: kpt_names must be {count} names, got {as_json(names, 200)}")
        skeleton = named_skeleton(
            "yolo", names, pairs=pairs, where=f"{file}: kpt_names", pairs_where=f"{file}: flip_idx"
        )
        if flip is not None and not pairs and skeleton.mirror_pairs:  # as in ultralytics' own tiger-pose.yaml
            named_pairs = pairs_in_yaml(skeleton.joints, skeleton.mirror_pairs)
            log.warning("%s: flip_idx exchanges no joints; as their names say, mirroring does: %s", file, named_pairs)
        return skeleton, True, bool(pairs)
    if flip == _COCO_FLIP:
        return COCO, True, True
    return Skeleton("yolo", tuple(f"joint_{row + 1}" for row in range(count)), tuple(pairs), ()), False, bool(pairs)


def _pictures(
    text: dict[Any, Any], key: str, file: Path, root: Path, data: DataOptions
) -> tuple[list[str], list[Path]]:
    """The names of a split's pictures, below `root`, and the folders that were searched for them."""
    value, base = text[key], text.get("path") or "."
    entries = value if isinstance(value, list) else [value]
    if not isinstance(base, str) or not all(isinstance(entry, str) and entry for entry in entries):
        raise AnnotationError(f"{file}: path and {key} must be names of folders or lists, got {as_json([base, value])}")
    found: list[str] = []
    folders: list[Path] = []
    for entry in entries:
        place = _below(root, [file.parent / base / entry, *_shorter(file.parent, entry)])
        if place is None:
            raise AnnotationError(
                f"{file}: {key}: expected a folder, a picture or a .txt file below {root}, got {as_json(entry)}"
                f"{'' if base == '.' else f' with path {as_json(base)}'}"
            )
        if place.is_dir():
            found += _walk(place, _SUFFIXES)
            folders.append(place)
        elif place.suffix == ".txt":
            found += _listed(place, file.parent / base, root, data.max_annotation_bytes)
        else:
            found.append(str(place))
    if not found:
        raise AnnotationError(f"{file}: {key}: {as_json(value)} has no pictures")
    return list(dict.fromkeys(Path(os.path.relpath(name, root)).as_posix() for name in found)), folders


def _without_picture(folders: Sequence[Path], names: Sequence[str], root: Path) -> list[str]:
    """The text files of pictures that are not in these folders, or of a kind that is not read. Beside the pictures
    themselves a text file may be anything."""
    known = {_label_file(name) for name in names}
    found: dict[str, None] = {}
    for folder in folders:
        pictures = Path(os.path.relpath(folder, root))
        labels = Path(_label_file((pictures / "any.jpg").as_posix())).parent
        if labels != pictures:
            texts = (Path(os.path.relpath(text, root)).as_posix() for text in _walk(root / labels, {".txt"}))
            found |= dict.fromkeys(text for text in texts if text not in known and Path(text).name != "classes.txt")
    return list(found)


def _shorter(base: Path, entry: str) -> list[Path]:
    """Where an entry may be meant: from the folder of the file on, without what exports put before it."""
    entry = entry.replace("\\", "/")
    while entry.startswith("../"):
        entry = entry[3:]
    return [base / entry, base / entry.removeprefix("data/")]


def _below(root: Path, places: Sequence[Path]) -> Path | None:
    """The first of these that is there and below `root`, as a path without links and ``..``: of a name without ``..``
    links may lead anywhere, as whoever has the folder made them."""
    top = os.path.abspath(root)
    for place in places:
        path = os.path.normpath(os.path.abspath(place))
        try:
            inside = os.path.commonpath([top, path]) == top
            if inside and (os.path.isdir(path) or os.path.isfile(path)):
                return Path(path)
        except ValueError:  # no name of a file: NUL; another drive
            continue
    return None


def _walk(folder: Path, suffixes: Set[str]) -> list[str]:
    """The files below a folder with these suffixes, sorted."""
    return sorted(
        os.path.join(place, name)
        for place, _, names in os.walk(folder, followlinks=False)
        for name in names
        if os.path.splitext(name)[1].lower() in suffixes
    )


def _listed(listed: Path, base: Path, root: Path, most: int) -> list[str]:
    """The pictures that a .txt file lists, relative to it or to the data set; those that are not there stay."""
    names = []
    for line, entry in enumerate(read_text(listed, most).splitlines(), start=1):
        if entry := entry.strip():
            usual = listed.parent / entry if entry.startswith("./") else base / entry
            place = _below(root, [usual, listed.parent / entry, *_shorter(listed.parent, entry)])
            if place is None and os.path.commonpath([os.path.abspath(root), os.path.abspath(usual)]) != os.path.abspath(
                root
            ):
                raise AnnotationError(f"{listed}, line {line}: picture {as_json(entry)} leads outside {root}")
            names.append(str(place or os.path.abspath(usual)))
    return names


def _label_file(name: str) -> str:
    """The text file of a picture: the last folder called images becomes labels."""
    head, images, tail = f"/{name}".rpartition("/images/")
    stem = os.path.splitext(f"{head}/labels/{tail}" if images else f"/{name}")[0]
    return f"{stem[1:]}.txt"


def _persons(
    labels: Path, name: str, size: tuple[int, int], layout: _Layout, dropped: Tally, most: int
) -> list[Person]:
    """The persons of a text file, in pixels of a picture of `size` (w, h)."""
    columns = 5 + layout.joints * layout.numbers
    known: set[tuple[float, ...]] = set()
    persons = []
    for line, text in enumerate(read_text(labels, most).splitlines(), start=1):
        where = f"{labels}, line {line}"
        cells = text.split(maxsplit=columns + 1)
        if not cells:
            continue
        if len(cells) != columns:
            got = len(cells) if len(cells) <= columns else "more"
            raise AnnotationError(
                f"{where}: expected {columns} numbers, class, box and {layout.numbers} for each of {layout.joints} "
                f"joints, got {got}"
            )
        values = tuple(number(cell, f"number {place}", where) for place, cell in enumerate(cells, start=1))
        kind, box, joints = values[0], values[1:5], np.array(values[5:]).reshape(layout.joints, layout.numbers)
        if kind not in range(len(layout.classes)):
            raise AnnotationError(f"{where}: class must be a whole number below {len(layout.classes)}, got {cells[0]}")
        if layout.numbers == 2:
            joints = np.column_stack([joints, np.where((joints == 0).all(axis=1), 0, 2)])
        v = joints[:, 2]
        if not (((v >= 0) & (v <= 1)) | (v == 2)).all():
            raise AnnotationError(f"{where}: v of a joint must be 0, 1, 2 or a share, got {as_json(v.tolist())}")
        shares = np.concatenate([np.array(box), joints[v > 0, :2].ravel()])
        inside = (shares >= -_OUTSIDE) & (shares <= 1 + _OUTSIDE)
        if not inside.all():
            raise AnnotationError(
                f"{where}: box and joints must be shares of the picture, from 0 to 1, got {shares[~inside][0]:g}"
            )
        if values in known:
            dropped.add("lines that are there twice", where)
            continue
        known.add(values)
        joints = np.where(v[:, None] > 0, joints * (*size, 1), 0.0)
        (cx, cy, w, h), (width, height) = box, size
        corner = ((cx - w / 2) * width, (cy - h / 2) * height)
        record = f"{_label_file(name)}, line {line}"
        persons.append(Person(name, joints, (*corner, w * width, h * height), int(kind), record))
    return persons
