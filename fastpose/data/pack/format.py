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
format 1. Margins name the shift of the crops only if there is one: packs without have the same bytes as ever.

A pack may be a stranger's: files are opened by `fastpose.files`, which waits for none; pack.json must have just the
names and types that it should, no file is named in it, and checksums are compared before contents are looked at. They
are against accidents: who alters a pack on purpose can make them right.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fastpose.data.augmentation import Augmentation
from fastpose.data.dataset import DataOptions
from fastpose.files import read_file
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
SHARDS = 1 << 15  # of a split; the system maps some 65,000 files at most
INDEX_BYTES = 8 << 20  # as large as pack.json may be
# What a pack stores of `Persons` as it is, beside its extras.
ROWS = ("center", "scale", "keypoints", "visible", "source_row")
# Their order in the file, as version 0.1 has it: the same data are the same bytes. Others follow.
FIRST = (*ROWS[:4], "head_size", "source_row", "image_id", "box_score")


class PackError(ValueError):
    """A pack is incomplete, damaged, or not ours; the message names the file."""


# What pack.json has by name, after Plan: lists of any length, and "*" for any names.
_MARGINS = {
    **{"size": [int], "rotation": float, "scale_min": float, "scale_max": float, "reduce": bool, "half_body": bool},
    "shift?": float,
}
_SPLIT = {
    "persons": int,
    "annotations": {"bytes": int, "crc": int},
    "shards": [{"records": int, "bytes": int, "table_crc": int}],
}
_CONTENTS = {
    "format": str,
    "pixels": str,
    "quality": int,
    "shard_bytes": int,
    "margins": {"*": _MARGINS},
    "persons": {"*": str},
    "options": {"*": str},
    "files": {"*": _SPLIT},
    "crc": int,
}


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
        shift: largest shift either way, share of the box's width in x and of its height in y.
    """

    size: tuple[int, int]
    rotation: float
    scale_min: float
    scale_max: float
    reduce: bool
    half_body: bool = False
    shift: float = 0.0

    def half_extents(self, scale: float) -> tuple[float, float]:
        """(x, y) from the box's centre to the farthest place that any allowed crop samples, image pixels."""
        width = 100.0 * scale * self.scale_max
        height = width * self.size[0] / self.size[1]
        # A corner of the box is farthest out in x when turned by atan(height / width), and in y by the rest to 90.
        limit = math.radians(self.rotation)
        turn_x, turn_y = min(limit, math.atan2(height, width)), min(limit, math.atan2(width, height))
        shift = 200.0 * scale * self.shift  # of the box before it is scaled
        return (
            width * math.cos(turn_x) + height * math.sin(turn_x) + shift,
            height * math.cos(turn_y) + width * math.sin(turn_y) + shift * self.size[0] / self.size[1],
        )

    def check(self, root: Path, size: tuple[int, int], augmentation: Augmentation) -> None:
        """Raises OptionError if crops of `size` (h, w) and this augmentation need more than the regions have."""
        (height, width), most = size, 1 + 1e-6
        (scale_min, scale_max), half_body = augmentation.scales, augmentation.half_body > 0.0
        kept = f"scale_prob {augmentation.scale_prob:g} leaves some boxes as large as they are"
        made = f"the pack {root} was made for"
        sized = f"{made} size {self.size[0]} {self.size[1]}"
        if augmentation.rotation > self.rotation:
            raise OptionError("rotation", f"{made} at most {self.rotation:g} degrees, got {augmentation.rotation:g}")
        if augmentation.shift > self.shift:
            raise OptionError("shift", f"{made} at most {self.shift:g} of a box, got {augmentation.shift:g}")
        if scale_max > self.scale_max:
            if augmentation.scale_max <= self.scale_max:
                raise OptionError("scale_prob", f"{made} at most {self.scale_max:g} times, and {kept}")
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
            if scale_min < self.scale_min <= augmentation.scale_min:
                raise OptionError("scale_prob", f"{made} at least {self.scale_min:g} times, and {kept}")
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
        plan = {"format": FORMAT} | asdict(self)
        for margins in plan["margins"].values():
            if margins["shift"] == 0.0:
                del margins["shift"]
        return json.loads(json.dumps(plan))


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
    values = _of_split(root, "margins", split)
    return Margins(**values | {"size": tuple(values["size"])})


def split_files(root: Path, split: str) -> dict[str, Any]:
    """What pack.json says of the files of a split; PackError if it says nothing."""
    return _of_split(root, "files", split)


def _of_split(root: Path, part: str, split: str) -> dict[str, Any]:
    values = read_index(root)[part]
    if split not in values:
        raise PackError(f"{root / INDEX}: damaged: it has no {part} of {split!r}")
    return values[split]


def read_index(root: Path) -> dict[str, Any]:
    """The contents of pack.json: of the names and types that they should be, and of numbers that can be.

    Raises:
        PackError: the pack is unfinished, or the file is damaged or of another version.
    """
    path = root / INDEX
    if not path.exists():
        raise PackError(f"{root}: the pack is unfinished; go on with the same `fastpose pack` command")
    contents = read_json(path)
    if contents.get("format") != FORMAT:
        raise PackError(
            f"{path}: expected format {FORMAT!r}, got {_shown(contents.get('format'))}: what another version of "
            "fastpose has packed must be packed again, into another folder"
        )
    try:
        if contents.get("crc") != with_checksum(contents)["crc"]:
            raise PackError(f"{path}: altered: its contents have another checksum than it says")
        if wrong := misfit(contents, _CONTENTS, "") or _impossible(contents):
            raise PackError(f"{path}: damaged: {wrong}")
    except RecursionError as error:
        raise PackError(f"{path}: damaged: {error}") from error
    return contents


_PLAIN: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    int: ("a whole number from 0", lambda value: type(value) is int and 0 <= value < 1 << 62),
    float: ("a number from 0", lambda value: type(value) in (int, float) and 0 <= value < 1e9),
    str: ("a text", lambda value: type(value) is str),
    bool: ("true or false", lambda value: type(value) is bool),
}


def misfit(value: Any, kind: Any, name: str) -> str:
    """What is wrong with a value from JSON; empty if nothing is.

    Args:
        value: the value.
        kind: what it should be. int, float: a finite number from 0; bool, str; [kind]: a list of those; {name: kind}:
            an object with just these names, or with any where the name is "*"; a name that ends in "?" may be missing.
        name: what to call it.
    """
    if isinstance(kind, dict) and isinstance(value, dict):
        within = f"{name}." if name else ""
        if "*" in kind:
            kind = dict.fromkeys(value, kind["*"])
        else:
            there = {one: of for one, of in kind.items() if not one.endswith("?") or one[:-1] in value}
            kind = {one.removesuffix("?"): of for one, of in there.items()}
        if missing := kind.keys() - value.keys():
            return f"it has no {within}{min(missing)}"
        if more := value.keys() - kind.keys():
            return f"it has {_shown(within + min(more))}, which this version of fastpose does not know"
        return next(filter(None, (misfit(value[one], kind[one], within + one) for one in kind)), "")
    if isinstance(kind, list) and isinstance(value, list):
        return next(filter(None, (misfit(one, kind[0], f"{name}[{n}]") for n, one in enumerate(value))), "")
    if isinstance(kind, (dict, list)):
        expected = "an object" if isinstance(kind, dict) else "a list"
    else:
        expected, fits = _PLAIN[kind]
        if fits(value):
            return ""
    return f"{_shown(name, quoted=False)}: expected {expected}, got {_shown(value)}"


def _impossible(contents: dict[str, Any]) -> str:
    """What no pack has although its types are right."""
    if contents["pixels"] not in ("raw", "jpeg"):
        return f"pixels: expected 'raw' or 'jpeg', got {_shown(contents['pixels'])}"
    if unknown := contents["options"].keys() - {field.name for field in fields(DataOptions)}:
        return f"options: this version of fastpose does not know {_shown(min(unknown))}"
    for part in ("margins", "persons", "files"):
        if more := contents[part].keys() - set(SPLITS):
            return f"{part}: expected the splits {', '.join(SPLITS)}, got {_shown(min(more))}"
    for split, margins in contents["margins"].items():
        if len(margins["size"]) != 2 or not 1 <= min(margins["size"]) <= max(margins["size"]) <= 1 << 16:
            return f"margins.{split}.size: expected two sides in pixels, got {_shown(margins['size'])}"
        if not 0 < margins["scale_min"] <= margins["scale_max"] or margins["rotation"] > 180:
            return f"margins.{split}: expected factors above 0 and at most 180 degrees, got {_shown(margins)}"
        if margins.get("shift", 0.0) > 1:
            return f"margins.{split}.shift: expected a share of at most 1, got {_shown(margins['shift'])}"
    for split, files in contents["files"].items():
        if (shards := len(files["shards"])) > SHARDS:
            return f"files.{split}.shards: expected at most {SHARDS}, got {shards}"
    return ""


def _shown(value: Any, *, quoted: bool = True) -> str:
    """A value of a file in a message: on one line, and not long."""
    text = value if isinstance(value, str) and not quoted and value.isprintable() else repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a pack; PackError if it is damaged, or something else."""
    try:
        data = read_file(path, INDEX_BYTES)
    except ValueError as error:
        raise PackError(str(error)) from error
    try:
        contents = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise PackError(f"{path}: damaged: {error}") from error
    if not isinstance(contents, dict):
        raise PackError(f"{path}: expected a JSON object, got {type(contents).__name__}")
    return contents
