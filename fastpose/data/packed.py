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

import ctypes
import io
import json
import math
import mmap
import os
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastpose.data.augmentation import body_boxes
from fastpose.data.images import BadImageError, average, read_image
from fastpose.data.persons import CocoTruth, Persons
from fastpose.data.pixel_sources import (
    DecodeThreads,
    ImageFiles,
    Pixels,
    PixelSource,
    largest_reduction,
    pixel_step,
    to_device,
)
from fastpose.ops.image_batch import ImageBatch
from fastpose.skeletons import MPII, Skeleton

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
# What a pack holds of `Persons` as it is: all but the images, which the regions replace, and what is no array.
ROWS = [f.name for f in fields(Persons) if f.name not in ("image_paths", "image_index", "skeleton", "truth")]
MAP_FIXED = 0x10  # on Linux and macOS


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

    def check(
        self,
        root: Path,
        size: tuple[int, int],
        rotation: float,
        scale_min: float,
        scale_max: float,
        half_body: bool = False,
    ) -> None:
        """Raises ValueError, naming the option, where crops would need more than the regions have."""
        (height, width), most = size, 1 + 1e-6
        had = f"the pack {root} was made for size {self.size[0]} {self.size[1]}"
        finest = width / scale_min > most * self.size[1] / self.scale_min
        if rotation > self.rotation:
            raise ValueError(
                f"rotation: the pack {root} was made for at most {self.rotation:g} degrees, got {rotation:g}"
            )
        if scale_max > self.scale_max:
            raise ValueError(f"scale_max: the pack {root} was made for at most {self.scale_max:g}, got {scale_max:g}")
        if height / width > most * self.size[0] / self.size[1]:
            raise ValueError(f"size: {had}, whose regions are too low for crops of {height} x {width} pixels")
        if half_body and not self.half_body:
            raise ValueError(
                f"half_body: the pack {root} was made for whole persons: train without half bodies, or pack with them"
            )
        if half_body and height * self.size[1] != width * self.size[0]:
            raise ValueError(
                f"size: {had}, whose half-body boxes have another aspect ratio than crops of {height} x {width} pixels"
            )
        if self.reduce and finest:
            name = "scale_min" if scale_min < self.scale_min else "size"
            raise ValueError(
                f"{name}: {had} and boxes of at least {self.scale_min:g} times their size, whose pixels are too coarse "
                f"for {height} x {width} pixels and {scale_min:g} times"
            )


@dataclass(frozen=True)
class Plan:
    """How a data set is packed. Equal plans on equal data give equal packs.

    Attributes:
        pixels: "raw" RGB or "jpeg".
        quality: of the JPEGs, 1 to 100.
        shard_bytes: a shard ends with the record that reaches this size.
        margins: of each split.
        persons: what tells each split's annotations from others.
        options: the data options that named them, as plain values.
    """

    pixels: Literal["raw", "jpeg"]
    quality: int
    shard_bytes: int
    margins: dict[str, Margins]
    persons: dict[str, str]
    options: dict[str, str]

    def as_plain(self) -> dict[str, Any]:
        """Values as they come back from JSON."""
        return json.loads(json.dumps({"format": FORMAT} | asdict(self)))


# ---------------------------------------------------------------- writing


@dataclass(frozen=True)
class Region:
    """Pixels uint8 [h, w, 3] of a part of an image; pixel p is centred on `step * p + (x, y)` of the image."""

    pixels: NDArray[np.uint8]
    step: float
    x: float
    y: float


def cut_region(path: Path, center: NDArray[np.float32], scale: NDArray[np.float32], margins: Margins) -> Region:
    """The part of an image that crops of a person within `margins` sample, about any of its boxes.

    It ends where the image ends, so what is outside it is outside the image, or sampled by no such crop.

    Args:
        path: the image file.
        center: [2], the middle of the person's box in image pixels.
        scale: [2], times 200 px is the box.
            Of a person with several boxes (see body_boxes) both are [n, 2].
        margins: what crops may ask for.

    Raises:
        BadImageError: the image cannot be read.
    """
    centers, scales = np.atleast_2d(center).astype(np.float64), np.atleast_2d(scale)
    reach = np.array([margins.half_extents(float(width)) for width in scales[:, 0]])
    lows, highs = (centers - reach).min(axis=0), (centers + reach).max(axis=0)
    step = float(pixel_step(scales, margins.size).min()) * margins.scale_min if margins.reduce else 1.0
    reduction = int(largest_reduction(np.array([step]))[0])
    image = read_image(path, reduction)
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

    What is there already is compared with its checksums; a shard that is missing or damaged is made again.

    Args:
        out: the folder.
        plan: how.
        splits: the persons of "train" and "valid".
        threads: threads that decode and encode.
        on_bad_image: "error" raises, "skip" notes it in the pack: loading that record is then the same error.
        progress: called with a split, its persons done, those of them that were there already, and all of them.

    Returns:
        False where the complete pack was there already.

    Raises:
        PackError: `out` holds something else, another process is packing into it, or a region is too large for a JPEG.
        BadImageError: an image cannot be read and `on_bad_image` is "error".
    """
    wanted = plan.as_plain()
    annotations = {split: _persons_to_npz(persons) for split, persons in splits.items()}
    if out.exists() and not out.is_dir():
        raise PackError(f"{out}: exists and is no folder")
    out.mkdir(parents=True, exist_ok=True)
    with _only_writer(out):
        complete = (out / INDEX).exists()
        if complete:
            found = read_index(out)
            if {name: found.get(name) for name in wanted} != wanted:
                raise PackError(f"{out}: holds a pack of other data or made with other options; choose another folder")
        elif (out / UNFINISHED).exists():
            if _read_json(out / UNFINISHED) != wanted:
                raise PackError(
                    f"{out}: holds an unfinished pack of other data or made with other options, or by another version; "
                    "go on with those, or remove the folder"
                )
        elif any(out.iterdir()):
            raise PackError(f"{out}: exists and is neither empty nor an unfinished pack")
        else:
            _write(out / UNFINISHED, json.dumps(wanted, indent=1).encode())
        files: dict[str, Any] = {}
        new = not complete
        for split, persons in splits.items():
            data = annotations[split]
            new |= _write(out / f"{split}-persons.npz", data)
            shards, made = _write_shards(out, split, persons, plan, threads, on_bad_image, progress)
            new |= made > 0
            entry = {"bytes": len(data), "crc": zlib.crc32(data)}
            files[split] = {"persons": len(persons), "annotations": entry, "shards": shards}
        _write(out / INDEX, json.dumps(with_checksum(wanted | {"files": files}), indent=1).encode())
        if (out / UNFINISHED).exists():
            (out / UNFINISHED).unlink()
    return new


@contextmanager
def _only_writer(out: Path) -> Iterator[None]:
    """Raises PackError where another process packs into `out`. Does nothing where the system has no such locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    folder = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PackError(f"{out}: another `fastpose pack` is writing into it") from error
        except OSError:  # some network file systems lock no folders
            pass
        yield
    finally:
        os.close(folder)


def _write_shards(
    out: Path,
    split: str,
    persons: Persons,
    plan: Plan,
    threads: int,
    on_bad_image: Literal["error", "skip"],
    progress: Callable[[str, int, int, int], None] | None,
) -> tuple[list[dict[str, int]], int]:
    """Writes the shards that are not there. Returns all of them, as pack.json has them, and the persons written."""
    shards: list[dict[str, int]] = []
    done = found = 0
    margins = plan.margins[split]
    boxes = body_boxes(persons, margins.size, half_body=margins.half_body)

    def record(row: int) -> tuple[bytes, Region | None]:
        path = persons.image_paths[persons.image_index[row]]
        try:
            region = cut_region(path, boxes[row, :, :2], boxes[row, :, 2:], margins)
        except BadImageError:
            if on_bad_image == "error":
                raise
            return b"", None
        return _encode(region.pixels, plan, path), region

    def tell(more: int = 0) -> None:
        if progress is not None:
            progress(split, done + more, found, len(persons))

    with ThreadPoolExecutor(threads, thread_name_prefix="fastpose-pack") as pool:
        while done < len(persons):
            shard = out / f"{split}-{len(shards):05d}.shard"
            table = shard.with_suffix(".npy")
            rows = _finished_table(table, shard, plan, on_bad_image)
            if rows is None:
                made: list[tuple[float, ...]] = []
                offset = 0
                with _replacing(shard) as file:
                    while done + len(made) < len(persons) and offset < plan.shard_bytes:
                        begin = done + len(made)
                        # A few at a time: what comes after the shard's last record is made again for the next.
                        for data, region in pool.map(record, range(begin, min(begin + 2 * threads, len(persons)))):
                            file.write(data)
                            made.append(_row(offset, data, region))
                            offset += len(data)
                            if offset >= plan.shard_bytes:
                                break
                        tell(len(made))
                rows = np.array(made, RECORD)
                buffer = io.BytesIO()
                np.save(buffer, rows)
                _write(table, buffer.getvalue())
                done += len(rows)
            else:
                done += len(rows)
                found += len(rows)
                tell()
            crc = zlib.crc32(table.read_bytes())
            shards.append({"records": len(rows), "bytes": int(rows["length"].sum()), "table_crc": crc})
    return shards, done - found


def _finished_table(table: Path, shard: Path, plan: Plan, on_bad_image: str) -> NDArray[np.void] | None:
    """The table of a shard that an earlier run has finished; None where it has not, where either is damaged, or where
    the run left out bad images that now are an error."""
    if not table.is_file() or not shard.is_file():
        return None
    try:
        rows = _load_table(table, table.read_bytes())
        _check_table(table, rows, shard, plan.pixels == "raw")
    except PackError:
        return None
    if on_bad_image == "error" and (rows["length"] == 0).any():
        return None
    with open(shard, "rb") as file:  # its records lie one after the other
        whole = all(zlib.crc32(file.read(int(row["length"]))) == row["crc"] for row in rows)
    return rows if whole else None


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
    arrays = {name: array for name in ROWS if (array := getattr(persons, name)) is not None}
    # MPII's joints by name, as there were no others at first.
    skeleton = persons.skeleton.name if persons.skeleton == MPII else json.dumps(asdict(persons.skeleton))
    if persons.truth is not None:
        arrays["truth"] = np.frombuffer(json.dumps(asdict(persons.truth)).encode(), np.uint8)
    names = np.array([persons.image_paths[image].name for image in persons.image_index], np.str_)
    buffer = io.BytesIO()
    np.savez(buffer, skeleton=np.array(skeleton), image=names, **arrays)
    return buffer.getvalue()


def with_checksum(contents: dict[str, Any]) -> dict[str, Any]:
    """The contents of pack.json with the checksum of all the rest of it under "crc"."""
    rest = {name: value for name, value in contents.items() if name != "crc"}
    return rest | {"crc": zlib.crc32(json.dumps(rest, sort_keys=True).encode())}


def _write(path: Path, data: bytes) -> bool:
    """Makes `data` the contents of a file; returns whether they were not. Read-only folders keep what is right."""
    if path.is_file() and path.read_bytes() == data:
        return False
    with _replacing(path) as file:
        file.write(data)
    return True


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path`, whole and on the disk, once the block ends; not if it raises."""
    beside = path.with_name(path.name + ".part")
    try:
        with open(beside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException as error:
        beside.unlink(missing_ok=True)  # a full disk is not to stay full
        # A full disk does not say where; BrokenPipeError comes from printing the progress.
        if isinstance(error, OSError) and error.filename is None and not isinstance(error, BrokenPipeError):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


# ---------------------------------------------------------------- reading


def is_pack(root: Path) -> bool:
    """Whether the folder `root` is a pack, whole or not."""
    return (root / INDEX).exists() or (root / UNFINISHED).exists()


def read_packed_persons(root: Path, split: str) -> Persons:
    """The annotations of one split of a pack: each person on an "image" of its own, a path that `PackedImages` knows.

    Coordinates are those of the images that were packed.

    Raises:
        PackError: the pack is not whole, or a file of it is missing or damaged.
    """
    files = _split_files(root, split)
    path = root / f"{split}-persons.npz"
    data = _read_checked(path, files["annotations"]["crc"])
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = dict(file)
        joints = str(arrays["skeleton"])
        skeleton = MPII if joints == MPII.name else Skeleton(**_tuples(json.loads(joints)))
        truth = CocoTruth(**json.loads(arrays["truth"].tobytes())) if "truth" in arrays else None
        names = arrays["image"].tolist()
        if wrong := [name for name in names if name in ("", "..") or Path(name).name != name]:
            raise PackError(f"{path}: expected names of files without a folder, got {wrong[0]!r}")
        if len(names) != files["persons"]:
            raise PackError(f"{path}: expected {files['persons']} persons as in {INDEX}, got {len(names)}")
        rows: dict[str, Any] = {name: arrays.get(name) for name in ROWS}
        paths = tuple(root / split / str(row) / name for row, name in enumerate(names))
        return Persons(image_paths=paths, image_index=np.arange(len(names)), skeleton=skeleton, truth=truth, **rows)
    except PackError:
        raise
    except (KeyError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise PackError(f"{path}: damaged: {error}") from error


def _tuples(value: Any) -> Any:
    """The same with tuples for lists, which JSON makes of tuples."""
    if isinstance(value, dict):
        return {name: _tuples(one) for name, one in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def pack_of(paths: Sequence[Path]) -> tuple[Path, str] | None:
    """The pack and the split that these images of `Persons` belong to; None where they are files."""
    if not paths or len(paths[0].parents) < 3:
        return None
    record, split, root = list(paths[0].parents)[:3]
    if split.name not in SPLITS or not record.name.isdecimal() or not is_pack(root):
        return None
    return root, split.name


def open_images(paths: Sequence[Path], threads: int = 2) -> PixelSource:
    """The source that has the images of `Persons.image_paths`: files in full resolution, or a pack."""
    return PackedImages(paths, threads) if pack_of(paths) else ImageFiles(paths, threads)


class PackedImages:
    """The regions of a pack, memory-mapped: raw ones are used where they lie, JPEGs decoded by a pool of threads.

    Sizes of all files, the checksums of all tables and what their rows say are compared here, which reads no pixels. A
    record's checksum is compared when it is first asked for: at about 1 to 3 GB/s and thread, in the first epoch. A
    shard must not be shortened while it is in use; the system would end the process.

    Args:
        paths: `image_paths` of `read_packed_persons`, or some of them.
        threads: threads that check and decode, and for a GPU copy into page-locked memory.

    Attributes:
        margins: what the regions are made for.
        sizes: (h, w) of each region, int64 [M, 2].

    Raises:
        PackError: the pack is not whole, or a file is missing, truncated or damaged. `load` raises it, too.
    """

    def __init__(self, paths: Sequence[Path], threads: int = 2) -> None:
        found = pack_of(paths)
        if found is None:
            raise PackError(f"{paths[0] if paths else 'no path'}: is not in a pack")
        root, split = found
        cv2.setNumThreads(0)  # as ImageFiles does
        self.paths = paths
        self.margins = margins_of(root, split)
        self._raw = read_index(root)["pixels"] == "raw"
        self._shards: list[Path] = []
        tables: list[NDArray[np.void]] = []
        files = _split_files(root, split)
        for number, shard in enumerate(files["shards"]):
            path = root / f"{split}-{number:05d}.shard"
            table = path.with_suffix(".npy")
            rows = _load_table(table, _read_checked(table, shard["table_crc"]))
            if not path.is_file():
                raise PackError(f"{path}: missing")
            if (size := path.stat().st_size) != shard["bytes"]:
                raise PackError(f"{path}: truncated or altered: expected {shard['bytes']} bytes, got {size}")
            _check_table(table, rows, path, self._raw)
            tables.append(rows)
            self._shards.append(path)
        if (records := sum(map(len, tables))) != files["persons"] or not records:
            raise PackError(f"{root / INDEX}: damaged: {files['persons']} {split} persons, {records} records")
        data, starts = map_side_by_side(self._shards)
        rows = np.array([int(path.parent.name) for path in paths])
        table_rows = np.concatenate(tables)[rows]
        self._shard = np.repeat(np.arange(len(tables)), [len(table) for table in tables])[rows]
        self._missing = table_rows["length"] == 0
        # Behind the last shard there is black for those that could not be read.
        self._begin = np.where(self._missing, starts[-1], starts[self._shard] + table_rows["offset"])
        self._end = self._begin + table_rows["length"]
        self._crc = table_rows["crc"]
        self._checked = self._missing.copy()
        self._data = data
        self.sizes = np.stack([table_rows["height"], table_rows["width"]], axis=1).astype(np.int64)
        self._frame = torch.from_numpy(np.stack([table_rows["step"], table_rows["x"], table_rows["y"]], axis=1))
        if self._raw:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nobody writes into it
                flat = torch.from_numpy(data)
            self._mapped = ImageBatch(
                flat, torch.from_numpy(self._begin), torch.from_numpy(self.sizes.astype(np.int32))
            )
        self._pool = DecodeThreads(threads)

    def load(self, images: Tensor, device: torch.device) -> Pixels:
        numbers = images.numpy()
        self._pool.each(self._check, numbers[~self._checked[numbers]].tolist())
        bad = numbers[self._missing[numbers]].tolist()
        errors = {n: BadImageError(f"{self.paths[n]}: could not be read when it was packed") for n in bad}
        if self._raw and device.type == "cpu":
            return Pixels(self._mapped, images, errors, self._frame)
        rows = numbers.tolist()
        regions = [self._region(row) for row in rows] if self._raw else self._pool.each(self._region, rows)
        batch = ImageBatch.from_list(regions, device=device, executor=self._pool)
        index, frame = torch.arange(len(numbers)), self._frame[images]
        return Pixels(batch, to_device(index, device), errors, to_device(frame, device))

    def _check(self, image: int) -> None:
        if zlib.crc32(self._data[self._begin[image] : self._end[image]].data) != self._crc[image]:
            shard, name = self._shards[self._shard[image]], self.paths[image].name
            raise PackError(f"{shard}: altered: the record of {name} has another checksum than in its table")
        self._checked[image] = True

    def _region(self, image: int) -> NDArray[np.uint8]:
        height, width = self.sizes[image].tolist()
        if self._missing[image]:
            return np.zeros((1, 1, 3), np.uint8)
        record = self._data[self._begin[image] : self._end[image]]
        if self._raw:
            return record.reshape(height, width, 3)
        pixels = cv2.imdecode(record, cv2.IMREAD_COLOR_RGB)
        if pixels is None or pixels.shape[:2] != (height, width):
            shard, name = self._shards[self._shard[image]], self.paths[image].name
            raise PackError(f"{shard}: the record of {name} does not decode to {height} x {width} pixels")
        return np.asarray(pixels, np.uint8)


def map_side_by_side(files: Sequence[Path]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Maps files into one range of memory, so that one buffer and one table of offsets reach all of them.

    Returns the memory, read-only, and where each file begins in it, [files + 1]; at the last begins a page of zeros.

    Raises:
        PackError: the system has no such mappings (Windows).
        OSError: a file cannot be mapped.
    """
    if not hasattr(mmap, "MAP_PRIVATE"):  # Windows
        raise PackError(f"{files[0].parent}: this system cannot map a pack into memory, use the image files")
    page = mmap.ALLOCATIONGRANULARITY
    sizes = [path.stat().st_size for path in files]
    starts = np.cumsum([0, *(-(-size // page) * page for size in sizes)], dtype=np.int64)
    # Address space only; the files' mappings take its place, and go when it goes.
    memory = mmap.mmap(-1, int(starts[-1]) + page, mmap.MAP_PRIVATE, mmap.PROT_READ)
    data = np.frombuffer(memory, np.uint8)
    system = ctypes.CDLL(None, use_errno=True)
    system.mmap.restype = ctypes.c_void_p
    system.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    for path, size, start in zip(files, sizes, starts.tolist(), strict=False):
        if size:
            with open(path, "rb") as file:
                place = data.ctypes.data + start
                got = system.mmap(place, size, mmap.PROT_READ, mmap.MAP_SHARED | MAP_FIXED, file.fileno(), 0)
            if got != place:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
    return data, starts


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
    contents = _read_json(root / INDEX)
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


def _split_files(root: Path, split: str) -> dict[str, Any]:
    try:
        return dict(read_index(root)["files"][split])
    except (KeyError, TypeError) as error:
        raise PackError(f"{root / INDEX}: damaged: it does not name the files of {split!r}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        contents = json.loads(path.read_bytes())
    except ValueError as error:
        raise PackError(f"{path}: damaged: {error}") from error
    if not isinstance(contents, dict):
        raise PackError(f"{path}: expected a JSON object, got {type(contents).__name__}")
    return contents


def _read_checked(path: Path, crc: int) -> bytes:
    if not path.is_file():
        raise PackError(f"{path}: missing")
    data = path.read_bytes()
    if zlib.crc32(data) != crc:
        raise PackError(f"{path}: truncated or altered: its checksum is not the one in {INDEX}")
    return data


def _load_table(path: Path, data: bytes) -> NDArray[np.void]:
    try:
        table = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise PackError(f"{path}: damaged: {error}") from error
    if table.dtype != RECORD or table.ndim != 1:
        raise PackError(f"{path}: expected rows of {RECORD.names}, got {table.dtype} {list(table.shape)}")
    return table


def _check_table(table: Path, rows: NDArray[np.void], shard: Path, raw: bool) -> None:
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
