# SPDX-License-Identifier: Apache-2.0
"""What the readers of annotation files share: checked values, one row per person, image paths kept inside their root,
`Persons`."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np

from fastpose.data.images import printable, unreadable, warn_of_surprises
from fastpose.data.persons import Persons
from fastpose.data.reading import AS_STORED, Reading
from fastpose.files import read_file
from fastpose.skeletons import Skeleton

log = logging.getLogger(__name__)

_LONGEST = 1500  # characters of a message
MissingImages = Literal["error", "drop", "keep"]


class AnnotationError(ValueError):
    """An annotation file contains something unusable. The message names the file and the record, and is short however
    long the file's names are."""

    def __init__(self, text: str) -> None:
        super().__init__(text if len(text) <= _LONGEST else f"{text[: _LONGEST - 200]} ... {text[-200:]}")


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


class JsonLimits(NamedTuple):
    """What an annotation file may have at most: bytes, and objects and lists inside each other."""

    bytes: int = 4 << 30
    depth: int = 100


LIMITS = JsonLimits()
NUMBERS: Set[type] = frozenset({int, float})


def read_json(file: Path, limits: JsonLimits = LIMITS) -> Any:
    """The contents of a JSON file in UTF-8, 16 or 32, in which NaN and Infinity are numbers.

    Raises:
        AnnotationError: it is not JSON, is nested deeper than `limits`, or has a name twice in one object, of which
            Python would silently take the last.
        OSError, ValueError: see `fastpose.files.read_file`.
    """
    content = read_file(file, limits.bytes)
    if not content.strip():
        raise AnnotationError(f"{file}: the file is empty")
    try:
        if not (encoding := json.detect_encoding(content)).startswith("utf-8"):
            content = content.decode(encoding).encode()
        _check_depth(content, limits.depth)
        return json.loads(content.decode("utf-8-sig"), object_pairs_hook=_object)
    except AnnotationError as error:
        raise AnnotationError(f"{file}: {error}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise AnnotationError(f"{file}: is not JSON: {error}") from error
    except ValueError as error:  # Python's own limit
        raise AnnotationError(f"{file}: has an integer of too many digits: {error}") from error
    except RecursionError as error:  # a limit above Python's own
        raise AnnotationError(f"{file}: its objects and lists are nested too deeply: {error}") from error
    except MemoryError as error:
        raise AnnotationError(f"{file}: there is too little memory for its {len(content):,} bytes") from error


_MARKS = bytes.maketrans(b'[{]}"', bytes([1, 1, 255, 255, 2]))  # as int8: opens, closes, begins or ends a text
_NO_MARKS = bytes(set(range(256)) - set(b'[{]}"'))
_CHUNK = 1 << 22  # bytes


def _check_depth(content: bytes, most: int) -> None:
    """Raises AnnotationError if objects and lists are nested deeper than `most`; in about a tenth of the time that
    reading them takes."""
    depth = quoted = start = 0
    while start < len(content):
        chunk = content[start : start + _CHUNK]
        if (len(chunk) - len(chunk.rstrip(b"\\"))) % 2 and len(chunk) == _CHUNK:
            chunk = chunk[:-1]  # the backslash stays with what it escapes
        start += len(chunk)
        if b"\\" in chunk:
            chunk = chunk.replace(b"\\\\", b"").replace(b'\\"', b"")
        marks = np.frombuffer(chunk.translate(_MARKS, _NO_MARKS), np.int8)
        quotes = marks == 2
        inside = (quoted + np.cumsum(quotes, dtype=np.int32)) % 2 == 1
        depths = depth + np.cumsum(np.where(inside | quotes, 0, marks), dtype=np.int32)
        if depths.max(initial=0) > most:
            raise AnnotationError(f"expected objects and lists at most {most} deep in each other, got more")
        depth, quoted = int(depths[-1]) if len(depths) else depth, quoted + int(quotes.sum())


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) < len(pairs):
        (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise AnnotationError(f"{as_json(twice)} is there twice in one object, {as_json(names)}")
    return names


def as_json(value: Any, most: int = 80) -> str:
    """A value as a JSON file has it, texts in quotes, in one line of about `most` characters: for messages."""
    if type(value) is int and abs(value) < 1 << 64:  # quickly: annotations are named by their ids
        return str(value)
    text = ""
    try:
        for part in json.JSONEncoder(ensure_ascii=False).iterencode(value):
            text += part
            if len(text) > most:
                return f"{text[:most]}..."
    except (ValueError, RecursionError):  # an integer of very many digits, lists in lists
        return f"{text[:most]}..."
    return text


def is_missing(value: Any) -> bool:
    """Whether a field is not there: absent, null, or NaN, which pandas writes for both."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def read_numbers(
    record: dict[str, Any],
    key: str,
    shape: tuple[int, ...],
    where: str,
    *,
    booleans: bool = False,
    largest: float = 1e6,
) -> np.ndarray:
    """The finite numbers of `record[key]`, float64 of `shape`; AnnotationError naming `where` if they are not there.

    Args:
        booleans: whether true and false are numbers.
        largest: numbers not below that are refused: coordinates beyond 1e6 are a broken file, not a large picture.
    """
    if key not in record:
        raise AnnotationError(f"{where}: has no {key!r}")
    value = record[key]
    numbers = _flat(value, shape)
    if numbers is None or not set(map(type, numbers)) <= ({int, float, bool} if booleans else {int, float}):
        expected = f"numbers of shape {list(shape)}" if shape else "a number"
        length = f" (a list of {len(value)})" if isinstance(value, list) else ""
        raise AnnotationError(f"{where}: {key} must be {expected}, got {as_json(value)}{length}")
    for number in numbers:
        if not abs(number) < largest:  # also of NaN, and of integers that no float can hold
            among = f" in {as_json(value)}" if shape else ""
            raise AnnotationError(
                f"{where}: {key} must be finite and below {largest:.0e}, got {as_json(number)}{among}"
            )
    return np.array(numbers, np.float64).reshape(shape)


def _flat(value: Any, shape: tuple[int, ...]) -> list[Any] | None:
    """The members of lists in lists of `shape`; None if they have another."""
    if not shape:
        return [value]
    if not isinstance(value, list) or len(value) != shape[0]:
        return None
    if len(shape) == 1:
        return value
    parts = [_flat(part, shape[1:]) for part in value]
    return None if None in parts else [number for part in parts for number in part or ()]


def read_column(
    records: Sequence[dict[str, Any]],
    key: str,
    shape: tuple[int, ...],
    where: Callable[[int], str],
    *,
    largest: float = 1e6,
) -> np.ndarray:
    """`read_numbers` of N records, numbers or lists of them, float64 [N, *shape], all at once; `where` names each."""
    values = [record.get(key) for record in records]
    array = float_array(values, shape[0]) if shape else float_array([values], len(values))
    if array is not None and (np.abs(array) < largest).all():
        return array.reshape(len(records), *shape)
    # One by one, for the error of the first that is not as it should be.
    rows = [read_numbers(record, key, shape, where(row), largest=largest) for row, record in enumerate(records)]
    return np.array(rows, np.float64).reshape(len(records), *shape)


def float_array(values: Sequence[Any], length: int, types: Set[type] = NUMBERS) -> np.ndarray | None:
    """N lists of `length` numbers as float64 [N * length], null as NaN; None if they are not such lists.

    Checked before NumPy sees them: it would make room for N times the longest text, and take "1" for 1.
    """
    if not all(type(value) is list and len(value) == length for value in values):
        return None
    if not set(map(type, chain.from_iterable(values))) <= types:
        return None
    try:
        return np.fromiter(chain.from_iterable(values), np.float64, len(values) * length)
    except OverflowError:  # an integer that no float can hold
        return None


def persons_from_rows(
    rows: Sequence[PersonRow],
    file: Path,
    images: Path,
    missing_images: MissingImages,
    skeleton: Skeleton,
    reading: Reading = AS_STORED,
) -> Persons:
    """Checks every image once and stacks the rows. Logs what `warn_of_surprises` finds in the images, unless they may
    be elsewhere (``missing_images="keep"``).

    A name that is relative and has no ``..`` is inside ``images`` wherever links lead: whoever has the folder made
    them. Others are inside if they lead there.

    Raises:
        AnnotationError: an image lies outside ``images`` or is missing (with ``missing_images="error"``), or no
            person is left.
    """
    if missing_images not in ("error", "drop", "keep"):
        raise ValueError(f"missing_images must be 'error', 'drop' or 'keep', got {missing_images!r}")
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
            *(file, len(rows) - len(kept), len(rows), root, lost.where, lost.image, other_name(root, lost.image)),
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
        records=tuple(row.where for row in kept),
        folder=root,
    )
    if missing_images != "keep":  # whoever keeps them looks at the images
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
    if stat.S_ISREG(mode) or (missing_images == "keep" and not mode):
        return Path(path)
    if missing_images == "drop":
        return None
    if mode:
        raise AnnotationError(f"{where} is not in {root}: what has that name there is not a file")
    raise AnnotationError(f"{where} is not in {root}{other_name(root, row.image)}")


def other_name(root: str, image: str) -> str:
    """What to add to a message about an image that is not there: a file whose name looks like its name."""
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
    """The file below `root` whose path is `name` up to `form`; empty if nothing begins so."""
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
