# SPDX-License-Identifier: Apache-2.0
"""The files of a pack beside pack.json, read as a stranger's: none is waited for, nothing in them is decompressed,
unpickled or evaluated, and what a header says is compared with the bytes that are there before memory is taken for it.
"""

from __future__ import annotations

import io
import math
import os
import re
import struct
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from fastpose.data.pack.format import INDEX, RECORD, PackError
from fastpose.files import open_file

ANNOTATION_BYTES = 1 << 30  # as large as the annotations of a split may be
PIXELS_PER_JPEG_BYTE = 64  # of one colour and at quality 1, OpenCV's encoder needs 4 bytes for 16 x 16 pixels
ALTERED = f"truncated or altered: its checksum is not the one in {INDEX}"
_MAGIC = b"\x93NUMPY"
# The one way in which numpy.save writes its header, of arrays of numbers or texts, or of rows of RECORD.
_HEADER = re.compile(
    r"\{'descr': ('[<|][biufUS]\d{1,6}'|" + re.escape(str(RECORD.descr)) + r"), "
    r"'fortran_order': (True|False), 'shape': \(([\d, ]{0,100})\), \} *\n"
)
_HEADER_BYTES = 4096  # room for any header, and for what versions of NumPy pad it with
_DIRECTORY_BYTES = 1 << 20  # of the names in an archive, far more than a split has
_DIRECTORY_END, _DIRECTORY_END_64 = b"PK\5\6", b"PK\6\7"


def open_whole(path: Path, size: int | None = None, crc: int | None = None) -> BinaryIO:
    """A file of a pack, open to read, at its beginning.

    Args:
        path: the file.
        size: the bytes that it must have; None: any number.
        crc: the checksum that they must have; None: any.

    Raises:
        PackError: it is missing or no file, or has others.
    """
    try:
        file = os.fdopen(open_file(path), "rb")
    except FileNotFoundError as error:
        raise PackError(f"{path}: missing") from error
    except ValueError as error:
        raise PackError(str(error)) from error
    try:
        found = os.fstat(file.fileno()).st_size
        if size is not None and found != size:
            raise PackError(f"{path}: truncated or altered: expected {size} bytes, got {found}")
        if crc is not None and checksum(file, found) != crc:
            raise PackError(f"{path}: {ALTERED}")
        file.seek(0)
        return file
    except BaseException:
        file.close()
        raise


def checksum(file: BinaryIO, size: int) -> int:
    """The CRC-32 of the next `size` bytes of a file, or of those that are there."""
    crc = 0
    while size > 0 and (part := file.read(min(size, 1 << 20))):
        crc, size = zlib.crc32(part, crc), size - len(part)
    return crc


def read_table(table: Path, shard: Path, size: int, raw: bool, most: int, crc: int | None = None) -> NDArray[np.void]:
    """The rows of a shard's table, RECORD [N].

    Args:
        table: its file.
        shard: the shard's.
        size: bytes of the shard.
        raw: whether its records are pixels, and not JPEGs.
        most: how many rows to accept.
        crc: the checksum of the table; None: any.

    Raises:
        PackError: the file is missing or damaged, or the rows are not those of records that fill the shard one after
            the other, each of the pixels that it has bytes for; names the shard and the record.
    """
    with open_whole(table) as file:
        found = os.fstat(file.fileno()).st_size  # `most` may be anything: memory is asked for what is there
        if found > _HEADER_BYTES + most * RECORD.itemsize:
            raise PackError(f"{table}: damaged: expected at most {most} rows, got {found} bytes")
        data = file.read(found)
    if crc is not None and zlib.crc32(data) != crc:
        raise PackError(f"{table}: {ALTERED}")
    try:
        rows = read_npy(io.BytesIO(data), len(data))
    except ValueError as error:
        raise PackError(f"{table}: damaged: {error}") from error
    if rows.dtype != RECORD or rows.ndim != 1:
        raise PackError(f"{table}: expected rows of {RECORD.names}, got {rows.dtype} {list(rows.shape)}")
    _check_rows(table, rows, shard, size, raw)
    return rows


def _check_rows(table: Path, rows: NDArray[np.void], shard: Path, size: int, raw: bool) -> None:
    offset, length, height, width = (rows[name].astype(np.int64) for name in ("offset", "length", "height", "width"))
    inside = (offset >= 0) & (offset <= size) & (length >= 0) & (length <= size - offset)
    begins = np.append(0, (offset + length)[:-1])[: len(rows)]
    finite = np.logical_and.reduce([np.isfinite(rows[name]) for name in ("step", "x", "y")])
    checks = {
        f"a place within the {size} bytes of the shard": inside,
        "to begin where the record before it ends": offset == begins,
        "a height and a width of at least 1": (height > 0) & (width > 0),
        "a positive step and a finite place in the image": finite & (rows["step"] > 0),
        "no pixels where it has no bytes": (length > 0) | ((height == 1) & (width == 1)),
    }
    if raw:
        # Sides are below 2 ** 31: a product that does not fit wraps around to a negative number, which no length is.
        checks["3 bytes for each of its pixels"] = (length == 0) | (length == 3 * height * width)
    else:
        most = length * PIXELS_PER_JPEG_BYTE
        checks["no more pixels than a JPEG of its bytes has"] = (length == 0) | (height <= most // np.maximum(width, 1))
    for expected, good in checks.items():
        if not good.all():
            n = int(np.argmin(good))
            got = ", ".join(f"{name} {rows[name][n]}" for name in RECORD.fields or ())
            raise PackError(f"{shard}: record {n} in {table.name}: expected {expected}, got {got}")
    if (end := int(length.sum())) != size:
        raise PackError(f"{shard}: expected {end} bytes as the records in {table.name} have, got {size}")


def read_npy(file: BinaryIO, size: int) -> NDArray[Any]:
    """The array that fills the next `size` bytes of a file.

    Raises:
        ValueError: they are something else than one array of numbers, of texts or of rows of RECORD.
    """
    start = file.read(10)
    length = int.from_bytes(start[8:10], "little")
    if start[:8] != _MAGIC + b"\1\0" or length > _HEADER_BYTES:
        raise ValueError(f"expected an array of numpy.save's format 1.0, got bytes {start!r}")
    text = file.read(length).decode("latin1")
    header = _HEADER.fullmatch(text)
    if header is None:
        raise ValueError(f"expected an array of numbers, texts or rows of {RECORD.names}, got {text.strip()[:200]!r}")
    descr, fortran, sides = header.groups()
    try:
        dtype = RECORD if descr[0] == "[" else np.dtype(descr[1:-1])
        shape = tuple(int(side) for side in sides.split(",") if side.strip())
    except (ValueError, TypeError) as error:
        raise ValueError(f"not an array: {error}") from error
    needed, found = math.prod(shape) * dtype.itemsize, size - 10 - length
    if needed != found or not dtype.itemsize:
        raise ValueError(f"expected {needed} bytes for {dtype} {list(shape)}, got {found}")
    data = file.read(needed)
    if len(data) != needed:
        raise ValueError(f"truncated: expected {needed} bytes for {dtype} {list(shape)}, got {len(data)}")
    if dtype.kind == "U" and (np.frombuffer(data, "<u4") > sys.maxunicode).any():
        raise ValueError(f"expected texts of Unicode for {dtype} {list(shape)}")  # Python has a SystemError for others
    flat = np.frombuffer(data, dtype).copy()  # which may be written to
    return flat.reshape(shape, order="F" if fortran == "True" else "C")


def read_npz(file: BinaryIO, size: int) -> dict[str, NDArray[Any]]:
    """The arrays by name in a file of `size` bytes, as numpy.savez writes it.

    Raises:
        ValueError: it is not that, or has more in it than its bytes: compressed members, or some that share bytes.
    """
    file.seek(max(0, size - 42))
    end = file.read(42)
    # zipfile would search for the end, take another's word for its size and make an object of each name.
    if end[-22:-18] != _DIRECTORY_END or end[:4] == _DIRECTORY_END_64:
        raise ValueError("not an archive of numpy.savez: truncated, or with something behind its directory")
    if (names := int.from_bytes(end[-10:-6], "little")) > _DIRECTORY_BYTES:
        raise ValueError(f"expected a directory of at most {_DIRECTORY_BYTES} bytes, got {names}")
    arrays: dict[str, NDArray[Any]] = {}
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise ValueError("compressed, which fastpose never writes")
            if (total := sum(member.file_size for member in members)) > size:
                raise ValueError(f"has {total} bytes of arrays in {size} bytes of file")
            for member in members:
                name = member.filename.removesuffix(".npy")
                if name in arrays or name == member.filename:
                    raise ValueError(f"expected different names that end in .npy, got {member.filename!r}")
                with archive.open(member) as content:
                    try:
                        arrays[name] = read_npy(content, member.file_size)  # type: ignore[arg-type]
                    except ValueError as error:
                        raise ValueError(f"{name}: {error}") from error
    except (zipfile.BadZipFile, RuntimeError, EOFError, OSError, OverflowError, struct.error) as error:
        raise ValueError(str(error)) from error
    return arrays


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) in pixels that the header of a JPEG says; None if it is not one as OpenCV writes them, with its
    pixels in one scan."""
    position = 2 if data[:2] == b"\xff\xd8" else len(data)
    while data[position : position + 1] == b"\xff":
        code, length = data[position + 1 : position + 2], int.from_bytes(data[position + 2 : position + 4], "big")
        if code == b"\xc0":
            height, width = data[position + 5 : position + 7], data[position + 7 : position + 9]
            return int.from_bytes(height, "big"), int.from_bytes(width, "big")
        position += 2 + length
    return None
