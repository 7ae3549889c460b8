# SPDX-License-Identifier: Apache-2.0
"""What the readers of annotation files share: checked values, one row per person, image paths kept inside their root,
`Persons`."""

from __future__ import annotations

import errno
import json
import logging
import os
import stat
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np

from fastpose.data.images import printable, unreadable, warn_of_surprises
from fastpose.data.persons import Persons
from fastpose.data.reading import AS_STORED, Reading
from fastpose.skeletons import Skeleton

log = logging.getLogger(__name__)

MissingImages = Literal["error", "drop"]


class AnnotationError(ValueError):
    """An annotation file contains something unusable. The message names the file and the record."""


class PersonRow(NamedTuple):
    """One person as read, in the conventions of `Persons` (0-based pixels, scale * 200 px)."""

    where: str  # names the record in messages
    source_row: int
    image: str  # relative to the image root
    center: np.ndarray  # [2]
    scale: float | tuple[float, float]  # one number means both
    keypoints: np.ndarray  # [J, 2]
    visible: np.ndarray  # [J]
    extras: Mapping[str, Any] = MappingProxyType({})  # see Persons; a name is kept if every person has it


def read_json(file: Path) -> Any:
    """The contents of a JSON file; AnnotationError if it is not JSON."""
    content = file.read_bytes()
    if not content.strip():
        raise AnnotationError(f"{file}: the file is empty")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"{file}: is not JSON: {error}") from error


def read_numbers(
    record: dict[str, Any], key: str, shape: tuple[int, ...], where: str, *, kinds: str = "iuf", largest: float = 1e6
) -> np.ndarray:
    """The finite numbers of `record[key]`, float64 of `shape`; AnnotationError naming `where` if they are not there.

    Args:
        kinds: NumPy's kinds of numbers that may be there.
        largest: numbers not below that are refused: coordinates beyond 1e6 are a broken file, not a large picture.
    """
    if key not in record:
        raise AnnotationError(f"{where}: has no {key!r}")
    expected = f"{key} must be {f'numbers of shape {list(shape)}' if shape else 'a number'}"
    try:
        array = np.asarray(record[key])
    except ValueError as error:  # rows of different lengths
        raise AnnotationError(f"{where}: {expected}, got {str(record[key])[:80]}") from error
    if array.dtype.kind not in kinds or array.shape != shape:
        raise AnnotationError(f"{where}: {expected}, got {str(record[key])[:80]} (shape {list(array.shape)})")
    array = array.astype(np.float64)
    if not (np.abs(array) < largest).all():  # also False for NaN
        raise AnnotationError(f"{where}: {key} must be finite and below {largest:.0e}, got {str(record[key])[:80]}")
    return array


def read_column(
    records: Sequence[dict[str, Any]], key: str, shape: tuple[int, ...], where: Sequence[str], *, largest: float = 1e6
) -> np.ndarray:
    """`read_numbers` of N records, float64 [N, *shape], all of them at once; `where` names each."""
    try:
        array = np.asarray([record.get(key) for record in records])
    except ValueError:  # rows of different lengths
        array = np.array(None)
    if array.shape == (len(records), *shape) and array.dtype.kind in "iuf" and (np.abs(array) < largest).all():
        return array.astype(np.float64)
    # One by one, for the error of the first that is not as it should be.
    rows = [read_numbers(record, key, shape, at, largest=largest) for record, at in zip(records, where, strict=True)]
    return np.array(rows, np.float64).reshape(len(records), *shape)


def persons_from_rows(
    rows: Sequence[PersonRow],
    file: Path,
    images: Path,
    missing_images: MissingImages,
    skeleton: Skeleton,
    reading: Reading = AS_STORED,
) -> Persons:
    """Checks every image once and stacks the rows. Logs what `warn_of_surprises` finds in the images.

    A name that is relative and has no ``..`` is inside ``images`` wherever links lead: whoever has the folder made
    them. Others are inside if they lead there.

    Raises:
        AnnotationError: an image lies outside ``images`` or is missing (with ``missing_images="error"``), or no
            person is left.
    """
    if missing_images not in ("error", "drop"):
        raise ValueError(f"missing_images must be 'error' or 'drop', got {missing_images!r}")
    root = os.path.realpath(images)
    paths: dict[str, Path | None] = {}
    for row in rows:
        if row.image not in paths:
            paths[row.image] = _image_path(root, row, file, missing_images)
    kept = [row for row in rows if paths[row.image] is not None]
    if len(kept) < len(rows):
        lost = next(row for row in rows if paths[row.image] is None)
        log.warning(
            "%s: %d of %d persons left out, their images are not in %s (the first: %s, image %r%s)",
            *(file, len(rows) - len(kept), len(rows), root, lost.where, lost.image, _other_name(root, lost.image)),
        )
    if not kept:
        raise AnnotationError(f"{file}: no person has its image in {root}")

    index_of = {path: index for index, path in enumerate(dict.fromkeys(path for path in paths.values() if path))}

    shared = [name for name in kept[0].extras if all(name in row.extras for row in kept)]

    persons = Persons(
        image_paths=tuple(index_of),
        image_index=np.array([index_of[path] for row in kept if (path := paths[row.image])], np.int64),
        center=np.array([row.center for row in kept], np.float32),
        scale=np.array([s if isinstance(s := row.scale, tuple) else (s, s) for row in kept], np.float32),
        keypoints=np.array([row.keypoints for row in kept], np.float32),
        visible=np.array([row.visible for row in kept], np.float32),
        source_row=np.array([row.source_row for row in kept], np.int64),
        skeleton=skeleton,
        extras={name: np.stack([row.extras[name] for row in kept]) for name in shared},
        reading=reading,
    )
    warn_of_surprises(persons.image_paths, reading, file)
    return persons


def _image_path(root: str, row: PersonRow, file: Path, missing_images: MissingImages) -> Path | None:
    where = f"{printable(file)}, {row.where}: image {row.image!r}"
    try:
        path = os.path.realpath(os.path.join(root, row.image))
        mode = os.stat(path).st_mode
    except ValueError as error:  # no name of a file: NUL, surrogates
        raise AnnotationError(f"{where} is not a path: {error}") from error
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
            raise unreadable(path, error) from error
        mode = 0
    strange = os.path.isabs(row.image) or ".." in row.image.replace("\\", "/").split("/")
    if strange and os.path.commonpath([root, path]) != root:
        raise AnnotationError(f"{where} leads outside the image folder {root}")
    if stat.S_ISREG(mode):
        return Path(path)
    if missing_images == "drop":
        return None
    if mode:
        raise AnnotationError(f"{where} is not in {root}: what has that name there is not a file")
    raise AnnotationError(f"{where} is not in {root}{_other_name(root, row.image)}")


def _other_name(root: str, image: str) -> str:
    """What to add to the message about an image that is not there: a file whose name looks like its name."""
    name = image.replace("\\", "/")
    # Names are often written from another folder on, or from the folder of the images itself.
    for start in range(name.count("/") + 1):
        short = "/".join(name.split("/")[start:])
        for way, form in {
            "": lambda text: text,
            ", in another Unicode form": lambda text: unicodedata.normalize("NFC", text),
            ", in other letters": lambda text: unicodedata.normalize("NFC", text).casefold(),
        }.items():
            if there := _find(root, short, form):
                return f"; there is {there!r}{way}"
    return ""


def _find(root: str, name: str, form: Callable[[str], str]) -> str:
    """The file below `root` whose path is `name` up to `form`; empty if there is none."""
    found: list[str] = []
    for part in name.split("/"):
        if part in ("", ".", ".."):
            return ""
        try:
            names = os.listdir(os.path.join(root, *found))
        except (OSError, ValueError):
            return ""
        wanted = form(part)
        there = next((one for one in names if one == part), None) or next(
            (one for one in names if form(one) == wanted), None
        )
        if there is None:
            return ""
        found.append(there)
    return "/".join(found)
