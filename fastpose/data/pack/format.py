# SPDX-License-Identifier: Apache-2.0
"""A data set packed for training: the region of each person, cut out and reduced beforehand, in a few large files.

::

    OUT/pack.json               format, what the margins are for, sizes and checksums of the other files and of itself
    OUT/train-persons.npz       the annotations
    OUT/train-00000.shard       records, one after the other: RGB pixels row by row, or JPEGs
    OUT/train-00000.npy         table of contents of that shard, one row of RECORD per person
    OUT/train-00001.shard ...   and the same for valid

A file is written beside its place and renamed into it; a shard's table comes after the shard, and pack.json last. So a
shard with a table is whole, and a folder with a pack.json is a complete pack.

Format 2: pack.json has a checksum of its own, and margins say whether half bodies fit. Nothing else differs from
format 1.
"""

from __future__ import annotations

import io
import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fastpose.data.augmentation import Augmentation
from fastpose.option import OptionError

FORMAT = "fastpose-pack-2"
INDEX, UNFINISHED = "pack.json", "unfinished.json"
# Offset in the shard and length, bytes; checksum of those bytes; size, pixels; where they lie in the image (see
# Pixels.frame). A person whose image could not be read has a record of 0 bytes.
RECORD = np.dtype(
    [
        *(("offset", "<i8"), ("length", "<i8"), ("crc", "<u4"), ("height", "<i4"), ("width", "<i4")),
        *(("step", "<f4"), ("x", "<f4"), ("y", "<f4")),
    ]
)
SPLITS = ("train", "valid")
# What a pack stores of `Persons` as it is, beside its extras.
ROWS = ("center", "scale", "keypoints", "visible", "source_row")
# Their order in the file, as version 0.1 has it: the same data are the same bytes. Others follow.
FIRST = (*ROWS[:4], "head_size", "source_row", "image_id", "box_score")


class PackError(ValueError):
    """A pack is incomplete, damaged, or not ours; the message names the file."""


@dataclass(frozen=True)
class Margins:
    """What the regions of a split are large and fine enough for.

    Attributes:
        size: (h, w) of the largest crops, pixels.
        rotation: largest rotation either way, degrees.
        scale_min: smallest factor on a person's box; together with `size` it says how fine the pixels must be.
        scale_max: largest factor on a person's box.
        reduce: whether pixels finer than that are averaged; else regions have the pixels of their images.
        half_body: whether crops of half a body are allowed too, see body_boxes.
    """

    size: tuple[int, int]
    rotation: float
    scale_min: float
    scale_max: float
    reduce: bool
    half_body: bool = False

    def half_extents(self, scale: float) -> tuple[float, float]:
        """(x, y) from the box's centre to the farthest place that any allowed crop samples, image pixels."""
        width = 100.0 * scale * self.scale_max
        height = width * self.size[0] / self.size[1]
        # A corner of the box is farthest out in x when turned by atan(height / width), and in y by the rest to 90.
        limit = math.radians(self.rotation)
        turn_x, turn_y = min(limit, math.atan2(height, width)), min(limit, math.atan2(width, height))
        return (
            width * math.cos(turn_x) + height * math.sin(turn_x),
            height * math.cos(turn_y) + width * math.sin(turn_y),
        )

    def check(self, root: Path, size: tuple[int, int], augmentation: Augmentation) -> None:
        """Raises OptionError if crops of `size` (h, w) and this augmentation need more than the regions have."""
        (height, width), most = size, 1 + 1e-6
        scale_min, scale_max, half_body = augmentation.scale_min, augmentation.scale_max, augmentation.half_body > 0.0
        made = f"the pack {root} was made for"
        sized = f"{made} size {self.size[0]} {self.size[1]}"
        if augmentation.rotation > self.rotation:
            raise OptionError("rotation", f"{made} at most {self.rotation:g} degrees, got {augmentation.rotation:g}")
        if scale_max > self.scale_max:
            raise OptionError("scale_max", f"{made} at most {self.scale_max:g}, got {scale_max:g}")
        if height / width > most * self.size[0] / self.size[1]:
            raise OptionError("size", f"{sized}, whose regions are too low for crops of {height} x {width} pixels")
        if half_body and not self.half_body:
            raise OptionError("half_body", f"{made} whole persons: train without half bodies, or pack with them")
        if half_body and height * self.size[1] != width * self.size[0]:
            raise OptionError(
                "size",
                f"{sized}, whose half-body boxes have another aspect ratio than crops of {height} x {width} pixels",
            )
        if self.reduce and width / scale_min > most * self.size[1] / self.scale_min:
            raise OptionError(
                "scale_min" if scale_min < self.scale_min else "size",
                f"{sized} and boxes of at least {self.scale_min:g} times their size, whose pixels are too coarse for "
                f"{height} x {width} pixels and {scale_min:g} times",
            )


@dataclass(frozen=True)
class Plan:
    """How a data set is packed. Equal plans on equal data give equal packs.

    Attributes:
        pixels: "raw" RGB or "jpeg".
        quality: of the JPEGs, 1 to 100.
        shard_bytes: a shard ends with the record that reaches this size.
        margins: of each split.
        persons: what distinguishes each split's annotations from others.
        options: the data options that named them, as plain values.
    """

    pixels: Literal["raw", "jpeg"]
    quality: int
    shard_bytes: int
    margins: dict[str, Margins]
    persons: dict[str, str]
    options: dict[str, Any]

    def as_plain(self) -> dict[str, Any]:
        """Values as they come back from JSON."""
        return json.loads(json.dumps({"format": FORMAT} | asdict(self)))


def with_checksum(contents: dict[str, Any]) -> dict[str, Any]:
    """The contents of pack.json with the checksum of all the rest of it under "crc"."""
    rest = {name: value for name, value in contents.items() if name != "crc"}
    return rest | {"crc": zlib.crc32(json.dumps(rest, sort_keys=True).encode())}


def is_pack(root: Path) -> bool:
    """Whether the folder `root` is a pack, whole or not."""
    return (root / INDEX).exists() or (root / UNFINISHED).exists()


def pack_of(paths: Sequence[Path]) -> tuple[Path, str] | None:
    """The pack and the split that these images of `Persons` belong to; None if they are files."""
    if not paths or len(paths[0].parents) < 3:
        return None
    record, split, root = list(paths[0].parents)[:3]
    if split.name not in SPLITS or not record.name.isdecimal() or not is_pack(root):
        return None
    return root, split.name


def margins_of(root: Path, split: str) -> Margins:
    """What the regions of a pack's split are made for."""
    try:
        values = read_index(root)["margins"][split]
        return Margins(**values | {"size": tuple(values["size"])})
    except (KeyError, TypeError) as error:
        raise PackError(f"{root / INDEX}: damaged: the margins of {split!r} are not what they should be") from error


def read_index(root: Path) -> dict[str, Any]:
    """The contents of pack.json.

    Raises:
        PackError: the pack is unfinished, or the file is damaged or of another version.
    """
    if not (root / INDEX).exists():
        raise PackError(f"{root}: the pack is unfinished; go on with the same `fastpose pack` command")
    contents = read_json(root / INDEX)
    if contents.get("format") != FORMAT:
        raise PackError(
            f"{root / INDEX}: expected format {FORMAT!r}, got {contents.get('format')!r}: what another version of "
            "fastpose has packed must be packed again, into another folder"
        )
    if contents.get("crc") != with_checksum(contents)["crc"]:
        raise PackError(f"{root / INDEX}: altered: its contents have another checksum than it says")
    if missing := {"pixels", "margins", "options", "files"} - contents.keys():
        raise PackError(f"{root / INDEX}: damaged: it has no {', '.join(sorted(missing))}")
    return contents


def split_files(root: Path, split: str) -> dict[str, Any]:
    """What pack.json says of the files of a split; PackError if it says nothing."""
    try:
        return dict(read_index(root)["files"][split])
    except (KeyError, TypeError) as error:
        raise PackError(f"{root / INDEX}: damaged: it does not name the files of {split!r}") from error


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a pack; PackError if it is damaged, or something else."""
    try:
        contents = json.loads(path.read_bytes())
    except ValueError as error:
        raise PackError(f"{path}: damaged: {error}") from error
    if not isinstance(contents, dict):
        raise PackError(f"{path}: expected a JSON object, got {type(contents).__name__}")
    return contents


def read_checked(path: Path, crc: int) -> bytes:
    """The contents of a file of a pack; PackError if it is missing or its CRC-32 is not `crc`."""
    if not path.is_file():
        raise PackError(f"{path}: missing")
    data = path.read_bytes()
    if zlib.crc32(data) != crc:
        raise PackError(f"{path}: truncated or altered: its checksum is not the one in {INDEX}")
    return data


def load_table(path: Path, data: bytes) -> NDArray[np.void]:
    """The rows of a shard's table, RECORD [N], from the contents of its file; PackError if they are not that."""
    try:
        table = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise PackError(f"{path}: damaged: {error}") from error
    if table.dtype != RECORD or table.ndim != 1:
        raise PackError(f"{path}: expected rows of {RECORD.names}, got {table.dtype} {list(table.shape)}")
    return table


def check_table(table: Path, rows: NDArray[np.void], shard: Path, raw: bool) -> None:
    """Raises PackError, naming the shard and the record, where the rows are not those of records that fill the shard
    one after the other, each of the pixels that it has bytes for."""
    size = shard.stat().st_size
    offset, length, height, width = (rows[name].astype(np.int64) for name in ("offset", "length", "height", "width"))
    inside = (offset >= 0) & (offset <= size) & (length >= 0) & (length <= size - offset)
    begins = np.append(0, (offset + length)[:-1])[: len(rows)]
    finite = np.logical_and.reduce([np.isfinite(rows[name]) for name in ("step", "x", "y")])
    checks = {
        f"a place within the {size} bytes of the shard": inside,
        "to begin where the record before it ends": offset == begins,
        "a height and a width of at least 1": (height > 0) & (width > 0),
        "a positive step and a finite place in the image": finite & (rows["step"] > 0),
    }
    if raw:
        # Sides are below 2 ** 31: a product that does not fit wraps around to a negative number, which no length is.
        checks["3 bytes for each of its pixels"] = (length == 0) | (length == 3 * height * width)
    for expected, good in checks.items():
        if not good.all():
            n = int(np.argmin(good))
            got = ", ".join(f"{name} {rows[name][n]}" for name in RECORD.fields or ())
            raise PackError(f"{shard}: record {n} in {table.name}: expected {expected}, got {got}")
    if (end := int(length.sum())) != size:
        raise PackError(f"{shard}: expected {end} bytes as the records in {table.name} have, got {size}")
