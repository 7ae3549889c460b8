# SPDX-License-Identifier: Apache-2.0
"""The pixels of a pack: raw ones where they lie, in memory-mapped files, JPEGs read as they are needed."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import warnings
import weakref
import zlib
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastpose.data.images import BadImageError
from fastpose.data.pack.files import jpeg_size, open_whole, read_table
from fastpose.data.pack.format import INDEX, PackError, margins_of, pack_of, read_index, split_files
from fastpose.data.pixels.source import DecodeThreads, Pixels
from fastpose.device import to_device
from fastpose.ops.image_batch import ImageBatch

MAP_FIXED = 0x10  # on Linux and macOS


class PackedImages:
    """The regions of a pack: raw ones are memory-mapped and used where they lie, JPEGs read and decoded by threads.

    Sizes of all files, the checksums of all tables and what their rows say are compared here, which reads no pixels. A
    record's checksum is compared when it is first asked for: at about 1 to 3 GB/s and thread, in the first epoch.

    Whether somebody has written into a shard since is asked before each batch: then its records are compared again, and
    if it is shorter, that is an error. A raw shard that is shortened while a batch is being cut out of it (within some
    milliseconds) still makes the system end the process, with SIGBUS. A file that is replaced by another, as `fastpose
    pack` does, stays what it was for whoever has it open.

    May be used after a fork and pickled: another process opens the pack again.

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
        if not hasattr(mmap, "MAP_PRIVATE"):  # Windows
            raise PackError(f"{root}: this system cannot map a pack into memory, use the image files")
        self.paths = paths
        self.margins = margins_of(root, split)
        self._split = root / split
        self._raw = read_index(root)["pixels"] == "raw"
        self._threads = threads
        files = split_files(root, split)
        shards = files["shards"]
        self._shards = [root / f"{split}-{number:05d}.shard" for number in range(len(shards))]
        self._sizes = [shard["bytes"] for shard in shards]
        tables = [
            read_table(path.with_suffix(".npy"), path, shard["bytes"], self._raw, shard["records"], shard["table_crc"])
            for path, shard in zip(self._shards, shards, strict=True)
        ]
        for path, shard, table in zip(self._shards, shards, tables, strict=True):
            if len(table) != shard["records"]:
                table_file = path.with_suffix(".npy")
                raise PackError(f"{table_file}: expected {shard['records']} rows as in {INDEX}, got {len(table)}")
        if (records := sum(map(len, tables))) != files["persons"] or not records:
            raise PackError(f"{root / INDEX}: damaged: {files['persons']} {split} persons, {records} records")
        rows = np.array([int(path.parent.name) for path in paths])
        table_rows = np.concatenate(tables)[rows]
        self._shard = np.repeat(np.arange(len(tables)), [len(table) for table in tables])[rows]
        self._missing = table_rows["length"] == 0
        self._begin, self._length, self._crc = table_rows["offset"], table_rows["length"], table_rows["crc"]
        self._checked = self._missing.copy()
        self.sizes = np.stack([table_rows["height"], table_rows["width"]], axis=1).astype(np.int64)
        self._frame = torch.from_numpy(np.stack([table_rows["step"], table_rows["x"], table_rows["y"]], axis=1))
        if self._raw:
            self._data, starts, self._opened = map_side_by_side(self._shards, self._sizes)
            # Behind the last shard there is black for those that could not be read.
            self._begin = np.where(self._missing, starts[-1], starts[self._shard] + self._begin)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nobody writes into it
                flat = torch.from_numpy(self._data)
            self._mapped = ImageBatch(
                flat, torch.from_numpy(self._begin), torch.from_numpy(self.sizes.astype(np.int32))
            )
        else:
            self._files: list[int] = []
            weakref.finalize(self, _close, self._files)
            for path, size in zip(self._shards, self._sizes, strict=True):
                with open_whole(path, size) as file:
                    self._files.append(os.dup(file.fileno()))
            self._opened = [os.fstat(file) for file in self._files]
        self._written = [state.st_mtime_ns for state in self._opened]
        self._pool = DecodeThreads(threads)

    def __reduce__(self) -> tuple[type[PackedImages], tuple[Sequence[Path], int]]:
        return PackedImages, (self.paths, self._threads)  # another process maps the files again

    def load(self, images: Tensor, device: torch.device) -> Pixels:
        numbers = images.numpy()
        self._notice_changes(numbers)
        bad = numbers[self._missing[numbers]].tolist()
        errors = {n: BadImageError(f"{self._split / self._name(n)}: could not be read when it was packed") for n in bad}
        rows = numbers.tolist()
        if self._raw:
            self._pool.each(self._record, numbers[~self._checked[numbers]].tolist())
            if device.type == "cpu":
                return Pixels(self._mapped, images, errors, self._frame)
            regions = [self._region(row) for row in rows]
        else:
            regions = self._pool.each(self._region, rows)
        batch = ImageBatch.from_list(regions, device=device, executor=self._pool)
        index, frame = torch.arange(len(numbers)), self._frame[images]
        return Pixels(batch, to_device(index, device), errors, to_device(frame, device))

    def _notice_changes(self, numbers: NDArray[np.int64]) -> None:
        """Has the records of shards that somebody has written into compared again. Costs about 2 us per shard.

        Raises:
            PackError: a shard is shorter than it was.
        """
        for shard in np.unique(self._shard[numbers]).tolist():
            path, opened = self._shards[shard], self._opened[shard]
            try:
                now = os.stat(path)
            except FileNotFoundError:
                continue
            if (now.st_dev, now.st_ino) != (opened.st_dev, opened.st_ino):
                continue
            if now.st_size < self._sizes[shard]:
                raise self._shortened(shard, now.st_size)
            if now.st_mtime_ns != self._written[shard]:
                self._written[shard] = now.st_mtime_ns
                self._checked[self._shard == shard] = False
                self._checked |= self._missing

    def _record(self, image: int) -> NDArray[np.uint8]:
        """The bytes of a record, compared with its checksum if they have not been."""
        begin, length, shard = int(self._begin[image]), int(self._length[image]), int(self._shard[image])
        if self._raw:
            record = self._data[begin : begin + length]
        else:
            record = np.frombuffer(os.pread(self._files[shard], length, begin), np.uint8)
            if len(record) != length:
                raise self._shortened(shard, begin + len(record))
        if not self._checked[image]:
            if zlib.crc32(record.data) != self._crc[image]:
                raise PackError(
                    f"{self._shards[shard]}: altered: the record of {self._name(image)} has another checksum than in "
                    "its table"
                )
            self._checked[image] = True
        return record

    def _region(self, image: int) -> NDArray[np.uint8]:
        height, width = self.sizes[image].tolist()
        if self._missing[image]:
            return np.zeros((1, 1, 3), np.uint8)
        record = self._record(image)
        if self._raw:
            return record.reshape(height, width, 3)
        # The header is looked at first: the decoder would make as many pixels as it says.
        if jpeg_size(record.tobytes()) == (height, width):
            try:
                pixels = cv2.imdecode(record, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
            except cv2.error:
                pixels = None
            if pixels is not None and pixels.shape[:2] == (height, width):
                return np.asarray(pixels, np.uint8)
        shard = self._shards[self._shard[image]]
        raise PackError(f"{shard}: the record of {self._name(image)} does not decode to {height} x {width} pixels")

    def _shortened(self, shard: int, size: int) -> PackError:
        expected = self._sizes[shard]
        return PackError(f"{self._shards[shard]}: shortened while in use: expected {expected} bytes, got {size}")

    def _name(self, image: int) -> str:
        name = self.paths[image].name
        return name if name.isprintable() else repr(name)


def _close(files: list[int]) -> None:
    while files:
        os.close(files.pop())


def map_side_by_side(
    paths: Sequence[Path], sizes: Sequence[int]
) -> tuple[NDArray[np.uint8], NDArray[np.int64], list[os.stat_result]]:
    """Maps files into one range of memory, so that one buffer and one table of offsets reach all of them.

    Args:
        paths: the files.
        sizes: the bytes that they must have.

    Returns:
        The memory, read-only; where each file begins in it, [files + 1], and at the last a page of zeros; what the
        system says of each file.

    Raises:
        PackError: a file is missing or has another size.
        OSError: a file cannot be mapped.
    """
    page = mmap.ALLOCATIONGRANULARITY
    starts = np.cumsum([0, *(-(-size // page) * page for size in sizes)], dtype=np.int64)
    # Address space only; the files' mappings take its place, and go when it goes.
    try:
        memory = mmap.mmap(-1, int(starts[-1]) + page, mmap.MAP_PRIVATE, mmap.PROT_READ)
    except (OSError, OverflowError, ValueError) as error:
        raise OSError(errno.ENOMEM, f"{error} ({sum(sizes):,} bytes to map)", str(paths[0])) from error
    data = np.frombuffer(memory, np.uint8)
    system = ctypes.CDLL(None, use_errno=True)
    system.mmap.restype = ctypes.c_void_p
    system.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    states = []
    for path, size, start in zip(paths, sizes, starts[:-1].tolist(), strict=True):
        with open_whole(path, size) as file:
            states.append(os.fstat(file.fileno()))
            if size == 0:
                continue
            place = data.ctypes.data + start
            got = system.mmap(place, size, mmap.PROT_READ, mmap.MAP_SHARED | MAP_FIXED, file.fileno(), 0)
        if got != place:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
    return data, starts, states
