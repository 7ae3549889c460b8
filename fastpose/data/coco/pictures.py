# SPDX-License-Identifier: Apache-2.0
"""The images that a file in COCO's format lists."""

from __future__ import annotations

import logging
import os
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from fastpose.data.annotation_rows import AnnotationError, as_json, is_missing, read_numbers
from fastpose.data.coco.ap import Key
from fastpose.data.coco.records import Tally, read_key, read_records
from fastpose.data.images import BadImageError, image_size
from fastpose.data.reading import Reading

log = logging.getLogger(__name__)

_UNKNOWN = (float("inf"), float("inf"))


class Picture(NamedTuple):
    """An image: file name and number (its id, unless `Pictures.renumbered`), and its size in pixels, inf where neither
    the file of annotations nor its own says it."""

    name: str
    number: int
    width: float
    height: float


class Pictures:
    """The images of a file by their ids. What a record has beside its id is read, and checked, once it is asked for:
    when somebody is on it.

    Attributes:
        renumbered: whether images have numbers from 1 on, in the order of the file, as not all ids are whole numbers of
            64 bits.

    Raises:
        AnnotationError: there are no images, or an id is missing or there twice.
    """

    def __init__(self, contents: dict[str, Any], file: Path, root: Path, reading: Reading) -> None:
        self._file, self._root, self._reading = file, root, reading
        self._records: dict[Key, dict[str, Any]] = {}
        self._known: dict[Key, Picture] = {}
        self._unsized = Tally()
        for row, record in enumerate(read_records(contents, "images", file)):
            key = read_key(record, "id", f"{file}, image {row} of the list")
            if key in self._records:
                raise AnnotationError(f"{file}, image {as_json(key)}: is there twice")
            self._records[key] = record
        self.renumbered = not all(isinstance(key, int) and -(2**63) <= key < 2**63 for key in self._records)
        self.numbers = {key: row + 1 if self.renumbered else int(key) for row, key in enumerate(self._records)}

    @property
    def first(self) -> str:
        """What ids look like here, for messages."""
        return f"which begin with id {as_json(next(iter(self._records)))}"

    def __contains__(self, key: Key) -> bool:
        return key in self._records

    def __getitem__(self, key: Key) -> Picture:
        if key not in self._known:
            self._known[key] = self._read(key, f"{self._file}, image {as_json(key)}")
        return self._known[key]

    def file_of(self, key: Key) -> Path | None:
        """The image's file; None if it has no name."""
        name = self._records[key].get("file_name")
        return self._root / name if isinstance(name, str) and name else None

    def warn(self) -> None:
        """Logs how many of those asked for had no size in the file."""
        if self._unsized:
            log.warning("%s: images without width and height, taken from the pictures: %s", self._file, self._unsized)

    def _read(self, key: Key, where: str) -> Picture:
        record, number = self._records[key], self.numbers[key]
        name = record.get("file_name")
        if not isinstance(name, str) or not name:
            raise AnnotationError(f"{where}: file_name must be a file name, got {as_json(name)}")
        if "\\" in name and not os.path.lexists(self._root / name.replace("\0", "")):  # as written on Windows
            name = name.replace("\\", "/")
        if is_missing(record.get("width")) or is_missing(record.get("height")):
            size = self._size_of_file(name)
            if size != _UNKNOWN:
                self._unsized.add("", where)
            return Picture(name, number, *size)
        width, height = (float(read_numbers(record, side, (), where)) for side in ("width", "height"))
        if min(width, height) < 1:
            raise AnnotationError(f"{where}: width and height must be positive, got {width:g} and {height:g}")
        return Picture(name, number, width, height)

    def _size_of_file(self, name: str) -> tuple[float, float]:
        if PurePath(name).is_absolute() or ".." in PurePath(name).parts:  # refused with its person, and not opened here
            return _UNKNOWN
        try:
            height, width = image_size(self._root / name, self._reading)
        except (BadImageError, OSError, ValueError):  # an error, or left out, when it is needed
            return _UNKNOWN
        return float(width), float(height)
