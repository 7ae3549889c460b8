# SPDX-License-Identifier: Apache-2.0
"""Writes packs: cuts regions out, encodes them, and goes on where an earlier call was stopped."""

from __future__ import annotations

import errno
import io
import itertools
import json
import math
import os
import re
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from fastpose.data.boxes import body_boxes, largest_reduction, pixel_step
from fastpose.data.images import BadImageError, average, read_image
from fastpose.data.pack.files import checksum, open_whole, read_table
from fastpose.data.pack.format import (
    FIRST,
    INDEX,
    RECORD,
    ROWS,
    SHARDS,
    UNFINISHED,
    Margins,
    PackError,
    Plan,
    read_index,
    read_json,
    with_checksum,
)
from fastpose.data.persons import Persons, Sets
from fastpose.data.reading import AS_STORED, Reading
from fastpose.files import only_writer, read_file, replacing
from fastpose.option import OptionError
from fastpose.skeletons import MPII, Skeleton

# What the files of a pack are called while they are written, see `fastpose.files.written_beside`.
_PART = re.compile(
    r"(?:pack|unfinished)\.part\.json|(?:train|valid)-(?:persons\.part\.npz|\d{5,}\.part\.(?:shard|npy))"
)
_FIRST_PART = "unfinished.part.json"


@dataclass(frozen=True)
class Region:
    """Pixels uint8 [h, w, 3] of a part of an image; pixel p is centred on `step * p + (x, y)` of the image."""

    pixels: NDArray[np.uint8]
    step: float
    x: float
    y: float


def cut_region(
    path: Path,
    center: NDArray[np.float32],
    scale: NDArray[np.float32],
    margins: Margins,
    reading: Reading = AS_STORED,
) -> Region:
    """The part of an image that crops of a person within `margins` sample, about any of its boxes.

    It ends where the image ends, so what is outside it is outside the image, or sampled by no such crop.

    Args:
        path: the image file.
        center: [2], the middle of the person's box in image pixels.
        scale: [2], times 200 px is the box.
            Of a person with several boxes (see body_boxes) both are [n, 2].
        margins: what crops may ask for.
        reading: how the file becomes pixels.

    Raises:
        BadImageError: the image cannot be read.
    """
    centers, scales = np.atleast_2d(center).astype(np.float64), np.atleast_2d(scale)
    reach = np.array([margins.half_extents(float(width)) for width in scales[:, 0]])
    lows, highs = (centers - reach).min(axis=0), (centers + reach).max(axis=0)
    step = float(pixel_step(scales, margins.size).min()) * margins.scale_min if margins.reduce else 1.0
    reduction = int(largest_reduction(np.array([step]))[0])
    image = read_image(path, reduction, reading)
    # What the decoder's powers of two leave is averaged, by a factor in eighths: sizes and places stay exact. The
    # scale is a rounded float32, which must not make two pixels 1.875.
    eighths = max(8, int(8 * step / reduction * (1 + 1e-6)))
    first, last = [], []
    for ends, side in zip(zip(lows, highs, strict=True), image.shape[1::-1], strict=True):
        low, high = ((float(end) - (reduction - 1) / 2) / reduction for end in ends)
        # One pixel of the region for the bilinear neighbour, one for rounding.
        spare = 2 * math.ceil(eighths / 8)
        begin = min(max(0, math.floor(low) - spare), side - 1)
        first.append(begin)
        last.append(max(begin + 1, min(side, math.ceil(high) + 1 + spare)))
    # Whole groups of pixels where the image has them: the last average must not take in black from inside the image.
    part = image[
        first[1] : whole_groups(first[1], last[1], eighths), first[0] : whole_groups(first[0], last[0], eighths)
    ]
    factor = eighths / 8
    pixels = np.ascontiguousarray(part) if eighths == 8 else average(part, eighths, 8)
    x, y = (reduction * (begin + (factor - 1) / 2) + (reduction - 1) / 2 for begin in first)
    return Region(pixels, reduction * factor, x, y)


def whole_groups(first: int, last: int, group: int) -> int:
    """`last` moved on until `last - first` is a multiple of `group`."""
    return first + -(-(last - first) // group) * group


def write_pack(
    out: Path,
    plan: Plan,
    splits: dict[str, Persons],
    *,
    threads: int = 2,
    on_bad_image: Literal["error", "skip"] = "error",
    progress: Callable[[str, int, int, int], None] | None = None,
) -> bool:
    """Packs persons into the folder `out`, or goes on where an earlier call with the same plan was stopped.

    What is there already is compared with its checksums; a shard that is missing or damaged is made again. What an
    earlier call was writing when it was killed is removed.

    Args:
        out: the folder.
        plan: how.
        splits: the persons of "train" and "valid".
        threads: threads that decode and encode.
        on_bad_image: "error" raises, "skip" notes it in the pack: loading that record is then the same error.
        progress: called with a split, its persons done, those of them that were there already, and all of them.

    Returns:
        False if the complete pack was there already.

    Raises:
        PackError: `out` has other contents, another process is packing into it, or a region is too large for a JPEG.
        OptionError: `shard_bytes` makes too many shards.
        OSError: a file cannot be written; what is whole stays, and the next call goes on.
        BadImageError: an image cannot be read and `on_bad_image` is "error".
    """
    wanted = plan.as_plain()
    annotations = {split: _persons_to_npz(persons) for split, persons in splits.items()}
    if out.exists() and not out.is_dir():
        raise PackError(f"{out}: exists and is not a folder")
    out.mkdir(parents=True, exist_ok=True)
    in_use = PackError(f"{out}: another `fastpose pack` is writing into it")
    with only_writer(out, in_use), _saying_how_to_go_on(plan):
        known = _begun(out, wanted)
        new = known is None
        files: dict[str, Any] = {}
        for split, persons in splits.items():
            data = annotations[split]
            new |= _write(out / f"{split}-persons.npz", data)
            there = known[split]["shards"] if known and split in known else []
            shards, made = _write_shards(out, split, persons, plan, there, threads, on_bad_image, progress)
            new |= made > 0
            entry = {"bytes": len(data), "crc": zlib.crc32(data)}
            files[split] = {"persons": len(persons), "annotations": entry, "shards": shards}
        _write(out / INDEX, json.dumps(with_checksum(wanted | {"files": files}), indent=1).encode())
        if (out / UNFINISHED).exists():
            (out / UNFINISHED).unlink()
    return new


def _begun(out: Path, wanted: dict[str, Any]) -> dict[str, Any] | None:
    """Leaves `out` as an unfinished pack of what is wanted; what pack.json says of the files of a complete one.

    Raises:
        PackError: `out` has other contents.
    """
    known = None
    if (out / INDEX).exists():
        found = read_index(out)
        if {name: found.get(name) for name in wanted} != wanted:
            raise PackError(f"{out}: holds a pack of other data or made with other options; choose another folder")
        known = found["files"]
    elif (out / UNFINISHED).exists():
        if read_json(out / UNFINISHED) != wanted:
            raise PackError(
                f"{out}: holds an unfinished pack of other data or made with other options, or by another version; "
                "go on with those, or remove the folder"
            )
    elif any(path.name != _FIRST_PART for path in out.iterdir()):
        raise PackError(f"{out}: exists and is neither empty nor an unfinished pack")
    for path in out.iterdir():
        if _PART.fullmatch(path.name):
            path.unlink()
    if known is None:
        _write(out / UNFINISHED, json.dumps(wanted, indent=1).encode())
    return known


@contextmanager
def _saying_how_to_go_on(plan: Plan) -> Iterator[None]:
    """Adds to the error of a full disk how much is needed, and that nothing is lost."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        text = f"{error.strerror}; a shard takes {plan.shard_bytes:,} bytes: make room, and the same command goes on"
        raise OSError(error.errno, text, error.filename) from error


def _write_shards(
    out: Path,
    split: str,
    persons: Persons,
    plan: Plan,
    known: list[dict[str, int]],
    threads: int,
    on_bad_image: Literal["error", "skip"],
    progress: Callable[[str, int, int, int], None] | None,
) -> tuple[list[dict[str, int]], int]:
    """Writes the shards that are not there. Returns all of them, as pack.json has them, and the persons written.

    Nothing in a shard says of which persons its records are. So where a shard that is made again has more or fewer
    records than before, those behind it are made again, too. (An image that can be read by now, or no longer, has other
    bytes than it had.)

    Args:
        known: what pack.json says of the shards that are there; empty if the pack is unfinished.
    """
    shards: list[dict[str, int]] = []
    done = found = 0
    margins = plan.margins[split]
    boxes = body_boxes(persons, margins.size, half_body=margins.half_body)

    def record(row: int) -> tuple[bytes, Region | None]:
        path = persons.image_paths[persons.image_index[row]]
        try:
            region = cut_region(path, boxes[row, :, :2], boxes[row, :, 2:], margins, persons.reading)
        except BadImageError:
            if on_bad_image == "error":
                raise
            return b"", None
        return _encode(region.pixels, plan, path), region

    def report(more: int = 0) -> None:
        if progress is not None:
            progress(split, done + more, found, len(persons))

    report()
    with ThreadPoolExecutor(threads, thread_name_prefix="fastpose-pack") as pool:
        while done < len(persons):
            if (number := len(shards)) == SHARDS:
                raise OptionError("shard_bytes", f"{plan.shard_bytes} makes more than {SHARDS} files of {split}")
            shard = out / f"{split}-{number:05d}.shard"
            table = shard.with_suffix(".npy")
            said = known[number] if number < len(known) else None
            rows = _rows_of(table, shard, plan, len(persons) - done, said["table_crc"] if said else None)
            before = said["records"] if said else None if rows is None else len(rows)
            if rows is None or not _is_whole(shard, rows, on_bad_image):
                # A few at a time: what comes after the shard's last record is made again for the next.
                groups = (range(i, min(i + 2 * threads, len(persons))) for i in range(done, len(persons), 2 * threads))
                records = itertools.chain.from_iterable(pool.map(record, group) for group in groups)
                rows = _write_shard(shard, plan.shard_bytes, records, report)
                if len(rows) != before:
                    _remove_from(out, split, ".npy", number)  # a shard without its table is made again
                buffer = io.BytesIO()
                np.save(buffer, rows)
                _write(table, buffer.getvalue())
                done += len(rows)
            else:
                done += len(rows)
                found += len(rows)
                report()
            crc = zlib.crc32(read_file(table))
            shards.append({"records": len(rows), "bytes": int(rows["length"].sum()), "table_crc": crc})
    for suffix in (".npy", ".shard"):  # of a pack with more shards
        _remove_from(out, split, suffix, len(shards))
    return shards, done - found


def _write_shard(
    shard: Path, most: int, records: Iterator[tuple[bytes, Region | None]], report: Callable[[int], None]
) -> NDArray[np.void]:
    """Writes records until they take `most` bytes or there are no more. Returns their table."""
    made: list[tuple[float, ...]] = []
    offset = 0
    with replacing(shard) as file:
        for data, region in records:
            file.write(data)
            made.append(_row(offset, data, region))
            offset += len(data)
            report(len(made))
            if offset >= most:
                break
    return np.array(made, RECORD)


def _remove_from(out: Path, split: str, suffix: str, number: int) -> None:
    """Removes the tables, or the shards, of a split from `number` on."""
    for path in out.glob(f"{split}-*{suffix}"):
        if (digits := path.stem.removeprefix(f"{split}-")).isdecimal() and int(digits) >= number:
            path.unlink()


def _rows_of(table: Path, shard: Path, plan: Plan, left: int, crc: int | None) -> NDArray[np.void] | None:
    """The table of a shard that an earlier run has written.

    None where it has not; where the table does not fit the shard, or is not the one of that checksum; and where the
    shard does not end where one of so many persons `left` would.
    """
    try:
        with open_whole(shard) as file:
            size = os.fstat(file.fileno()).st_size
        rows = read_table(table, shard, size, plan.pixels == "raw", left, crc)
    except PackError:
        return None
    full = len(rows) and int(rows["offset"][-1]) < plan.shard_bytes <= size
    return rows if full or (len(rows) == left and size < plan.shard_bytes) else None


def _is_whole(shard: Path, rows: NDArray[np.void], on_bad_image: str) -> bool:
    """Whether the records of a shard have the checksums in its table, and are all there where they must be."""
    if on_bad_image == "error" and (rows["length"] == 0).any():
        return False
    with open_whole(shard) as file:  # its records lie one after the other
        return all(checksum(file, int(row["length"])) == row["crc"] for row in rows)


def _row(offset: int, data: bytes, region: Region | None) -> tuple[float, ...]:
    if region is None:
        return (offset, 0, 0, 1, 1, 1.0, 0.0, 0.0)
    height, width, _ = region.pixels.shape
    return (offset, len(data), zlib.crc32(data), height, width, region.step, region.x, region.y)


def _encode(pixels: NDArray[np.uint8], plan: Plan, path: Path) -> bytes:
    if plan.pixels == "raw":
        return pixels.tobytes()
    bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    encoded, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, plan.quality])
    if not encoded:
        height, width, _ = pixels.shape
        raise PackError(f"{path}: OpenCV cannot store a region of {height} x {width} pixels as JPEG: use --format raw")
    return data.tobytes()


def _persons_to_npz(persons: Persons) -> bytes:
    arrays = {name: getattr(persons, name) for name in ROWS} | dict(persons.extras)
    arrays = {name: arrays.pop(name) for name in FIRST if name in arrays} | arrays
    # MPII's joints by name, as there were no others at first.
    skeleton = persons.skeleton.name if persons.skeleton == MPII else json.dumps(asdict(persons.skeleton))
    if persons.truth is not None:
        arrays["truth"] = _json_bytes(persons.truth)
    if persons.sets is not None:
        arrays |= _sets_to_arrays(persons.sets, persons.skeleton)
    names = np.array([persons.image_paths[image].name for image in persons.image_index], np.str_)
    buffer = io.BytesIO()
    np.savez(buffer, skeleton=np.array(skeleton), image=names, **arrays)
    return buffer.getvalue()


def _json_bytes(value: Any) -> NDArray[np.uint8]:
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def _sets_to_arrays(sets: Sets, skeleton: Skeleton) -> dict[str, NDArray[Any]]:
    """What a pack has of several data sets, see `_with_sets` in dataset.py."""
    arrays: dict[str, NDArray[Any]] = {"set_index": sets.index}
    described = []
    for number, part in enumerate(sets.parts):
        own = part.persons
        described.append(
            {
                "name": part.name,
                "weight": part.weight,
                "skeleton": asdict(own.skeleton),
                "joints": {skeleton.joints[k]: own.skeleton.joints[j] for k, j in enumerate(part.joints) if j >= 0},
                "options": dict(part.options),
            }
        )
        of_part = {"keypoints": own.keypoints, "visible": own.visible} | dict(own.extras)
        if own.truth is not None:
            of_part["truth"] = _json_bytes(own.truth)
        arrays |= {f"set{number}_{name}": array for name, array in of_part.items()}
    return arrays | {"sets": _json_bytes(described)}


def _write(path: Path, data: bytes) -> bool:
    """Makes `data` the contents of a file; returns whether they were not. Read-only folders keep what is right."""
    try:
        if read_file(path, len(data)) == data:
            return False
    except (FileNotFoundError, ValueError):  # or it is larger, or no file
        pass
    with replacing(path) as file:
        file.write(data)
    return True
