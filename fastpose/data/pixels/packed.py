# SPDX-License-Identifier: Apache-2.0
"""The pixels of a pack, memory-mapped."""

from __future__ import annotations

import ctypes
import mmap
import os
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastpose.data.images import BadImageError
from fastpose.data.pack.format import (
    INDEX,
    PackError,
    check_table,
    load_table,
    margins_of,
    pack_of,
    read_checked,
    read_index,
    split_files,
)
from fastpose.data.pixels.source import DecodeThreads, Pixels, to_device
from fastpose.ops.image_batch import ImageBatch

MAP_FIXED = 0x10  # on Linux and macOS


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
        self.paths = paths
        self.margins = margins_of(root, split)
        self._raw = read_index(root)["pixels"] == "raw"
        self._shards: list[Path] = []
        tables: list[NDArray[np.void]] = []
        files = split_files(root, split)
        for number, shard in enumerate(files["shards"]):
            path = root / f"{split}-{number:05d}.shard"
            table = path.with_suffix(".npy")
            rows = load_table(table, read_checked(table, shard["table_crc"]))
            if not path.is_file():
                raise PackError(f"{path}: missing")
            if (size := path.stat().st_size) != shard["bytes"]:
                raise PackError(f"{path}: truncated or altered: expected {shard['bytes']} bytes, got {size}")
            check_table(table, rows, path, self._raw)
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
        self._threads = threads
        self._pool = DecodeThreads(threads)

    def __reduce__(self) -> tuple[type[PackedImages], tuple[Sequence[Path], int]]:
        return PackedImages, (self.paths, self._threads)  # another process maps the files again

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
