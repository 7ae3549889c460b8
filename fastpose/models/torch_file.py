# SPDX-License-Identifier: Apache-2.0
"""Files that `torch.save` wrote, read as data: tensors and plain values. Nothing that they name is imported or called.

Whoever made the file may mean harm, and the disk or the download may have damaged it. So nothing grows: the elements of
a tensor and the bytes of a record are in the file, and what a pickle can say is bounded. And only what was written is
read: the checksum of every record is compared.
"""

from __future__ import annotations

import io
import math
import os
import struct
import sys
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from fastpose.files import open_file
from fastpose.models.pickles import PLAIN, Refused, Unknown, Unpickler

MOST_EXPANDED = 1 << 26  # elements of a tensor that repeats those of its storage, by strides of 0
DIRECTORY_BYTES = 4 << 20  # of the zip archive's directory: 60,000 records

LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
BEGINNINGS = {
    b"version https://git-lfs": "a git-lfs pointer and not the file itself: run git lfs pull",
    b"<!doctype html": "an HTML page, as a download that failed leaves it",
    b"<html": "an HTML page, as a download that failed leaves it",
    b"<?xml": "XML, as a download that failed leaves it",
    b"{": "JSON, not weights",
    b"\x89hdf": "HDF5, as Keras writes it, which is not read",
    b"\x93numpy": "a NumPy array, which is not read",
    b"\x1f\x8b": "compressed with gzip: unpack it first",
    b"bzh": "compressed with bzip2: unpack it first",
    b"\xfd7zxz": "compressed with xz: unpack it first",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: unpack it first",
    b"7z\xbc\xaf": "a 7z archive: unpack it first",
    b"\x89png": "a picture",
    b"\xff\xd8\xff": "a picture",
}


class CheckpointError(ValueError):
    """A checkpoint file is missing, damaged or not ours; the message names the file."""


def read_torch_file(path: Path) -> tuple[Any, list[str]]:
    """What is in a file of `torch.save`, in the format of any version: tensors on the CPU, and plain values.

    Objects of other classes become `Unknown`; so do texts of more than LONGEST_TEXT bytes and sets. Entries of a dict
    whose keys are neither text, whole numbers below 2³¹, true, false nor none are left out.

    Returns:
        The contents, and the names of the classes and functions that are not known.

    Raises:
        OSError: as from `open_file`, or while reading.
        CheckpointError: the file is of another kind, which is named; damaged; or larger in memory than it is itself.
    """
    try:
        descriptor = open_file(path)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    try:
        with open(descriptor, "rb") as file:
            size, begin = os.fstat(file.fileno()).st_size, file.read(512)
            file.seek(0)
            if begin.startswith(b"PK"):
                return _read_archive(file, size)
            if kind := _kind_of(begin):
                raise _OtherKind(kind)
            return _read_legacy(file, size)
    except _OtherKind as error:
        raise CheckpointError(f"{path}: not a file of weights: {error}") from None
    except OSError:
        raise
    except Exception as error:  # whatever the damaged bytes lead to
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> CheckpointError:
    """The error of a file that cannot be read, in one line, from whatever its bytes led to."""
    kind = "" if isinstance(error, Refused) else f"{type(error).__name__}: "
    reason = " ".join(str(error).split())[:200]
    reason = "".join(letter if letter.isprintable() else "?" for letter in reason)  # names in it are the file's
    return CheckpointError(f"{path}: damaged, or not a checkpoint ({kind}{reason})")


class _OtherKind(ValueError):
    """The file is whole, but of another kind."""


def _kind_of(begin: bytes) -> str:
    """What the first bytes say the file is, if it is something known that is not of `torch.save`."""
    if not any(begin):
        raise Refused(
            "it begins with zeros, as a power cut or a copy that broke off leaves it" if begin else "it is empty"
        )
    text = begin.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if kind := next((kind for magic, kind in BEGINNINGS.items() if text.startswith(magic)), ""):
        return kind
    if begin[257:262] == b"ustar":
        return "a tar archive: unpack it first"
    if begin[:1] == b"\x08" and b"\0" < begin[1:2] < b"\x20" and begin[2:3] in (b"\x12", b"\x1a", b"\x3a", b"\x42"):
        return "an ONNX graph, to run and not to load"
    if begin[:1] != b"\x80":
        return f"it begins with {begin[:8]!r}"
    return ""


# ---- the zip archives of torch 1.6 and later ----


class _Directory(io.BufferedIOBase):
    """A file for zipfile: it reads the archive's whole directory at once, so no read may be larger than that."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > DIRECTORY_BYTES:
            raise Refused(f"a directory of {size:,} bytes: at most {DIRECTORY_BYTES:,} are read")
        return self.file.read(DIRECTORY_BYTES if size is None or size < 0 else size)


@dataclass
class _Record:
    name: str
    begin: int
    size: int
    checksum: int
    checked: bool = False


def _records(file: BinaryIO, size: int, infos: list[zipfile.ZipInfo]) -> dict[str, _Record]:
    """Where the bytes of each record are, after a look that they are stored as they are, each by itself.

    Compressed or overlapping, 12 MB of a file become 12 GB.
    """
    records: dict[str, _Record] = {}
    free = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        name = info.filename[:60]
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise Refused(f"record {name!r} is compressed, and torch.save compresses nothing")
        if info.flag_bits & 1:
            raise Refused(f"record {name!r} is encrypted")
        if info.filename in records:
            raise Refused(f"two records are called {name!r}")
        file.seek(max(info.header_offset, 0))
        header = file.read(30)
        if info.header_offset < free or len(header) < 30 or header[:4] != b"PK\x03\x04":
            raise Refused(f"record {name!r} is not where the archive's directory has it")
        begin = info.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))
        free = begin + info.file_size
        if free > size:
            raise Refused(f"record {name!r} ends beyond the file")
        records[info.filename] = _Record(info.filename, begin, info.file_size, info.CRC)
    return records


def _read_archive(file: BinaryIO, size: int) -> tuple[Any, list[str]]:
    try:
        infos = zipfile.ZipFile(_Directory(file)).infolist()
    except zipfile.BadZipFile as error:
        raise Refused(f"the archive's directory cannot be read: {error}; the file may be cut off") from error
    names = {info.filename for info in infos}
    pickled = [name for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickled) != 1:
        found = ", ".join(repr(info.filename[:60]) for info in infos[:3]) or "nothing"
        raise _OtherKind(f"a zip archive of something else, with {found}")
    root = pickled[0].removesuffix("data.pkl")
    if f"{root}constants.pkl" in names:
        raise _OtherKind(
            "a TorchScript program; torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth') makes a file of its "
            "weights"
        )
    records = _records(file, size, infos)

    def read(record: _Record) -> Tensor:
        data = torch.empty(record.size, dtype=torch.uint8)
        file.seek(record.begin)
        _fill(file, data)
        if zlib.crc32(_bytes_of(data)) != record.checksum:
            raise Refused(f"the checksum of record {record.name[:60]!r} is wrong: its bytes are not those written")
        record.checked = True
        return data

    order = records.get(f"{root}byteorder")
    if order is not None and order.size < 100 and bytes(_bytes_of(read(order))).decode() != sys.byteorder:
        raise Refused("written on a machine of the other byte order")
    loaded: dict[str, _Storage] = {}

    def storage(identity: tuple[Any, ...]) -> _Storage | Unknown:
        kind, key, count = _parts_of(identity, 5)
        if isinstance(kind, Unknown):
            return kind
        if key not in loaded:
            record = records.get(f"{root}data/{key}")
            if record is None and count:
                raise Refused(f"record {key[:60]!r} is missing")
            loaded[key] = _Storage(kind.dtype, read(record) if record else torch.empty(0, dtype=torch.uint8), count)
        return loaded[key].named_again(kind.dtype, count)

    pickle = io.BytesIO(_bytes_of(read(records[pickled[0]])))
    unpickler = Unpickler(pickle, records[pickled[0]].size, KNOWN, storage)
    contents = unpickler.load()
    for record in records.values():
        if not record.checked:  # nobody needs it, but a damaged file is one that has been damaged
            read(record)
    return contents, list(unpickler.unknown)


def _bytes_of(data: Tensor) -> memoryview:
    return memoryview(data.numpy())  # type: ignore[arg-type]  # an array is a buffer


def _fill(file: BinaryIO, data: Tensor) -> None:
    view = _bytes_of(data)
    while view:
        count = file.readinto(view)  # type: ignore[attr-defined]  # of BufferedReader
        if not count:
            raise Refused(f"the file ends {len(view):,} bytes too early")
        view = view[count:]


# ---- the format before that, which SimpleBaselines' files have: pickles, then the bytes of each storage ----


def _read_legacy(file: BinaryIO, size: int) -> tuple[Any, list[str]]:
    storages: dict[str, _Storage] = {}
    total = 0

    def storage(identity: tuple[Any, ...]) -> _Storage | Unknown:
        nonlocal total
        if isinstance(identity, tuple) and identity[:1] == ("module",) and isinstance(identity[1], Unknown):
            return identity[1]  # the class of a whole network, for whose source torch looks here
        kind, key, count = _parts_of(identity, 6)
        if identity[5] is not None:
            raise Refused("a view of a storage, as torch before 0.4 wrote it")
        if isinstance(kind, Unknown):
            raise Refused(f"a storage of {kind.name}")
        if key not in storages:
            length = count * kind.dtype.itemsize
            total += length
            if total > size:
                raise Refused(f"storages of {total:,} bytes in a file of {size:,}")
            storages[key] = _Storage(kind.dtype, torch.empty(length, dtype=torch.uint8), count, is_filled=False)
        return storages[key].named_again(kind.dtype, count)

    def load() -> Any:
        return unpickler.load()

    unpickler = Unpickler(file, size, KNOWN, storage)
    if load() != LEGACY_MAGIC or load() != LEGACY_PROTOCOL:
        raise _OtherKind("a pickle that torch.save has not written")
    system = load()
    if not isinstance(system, dict) or system.get("little_endian") is not (sys.byteorder == "little"):
        raise Refused("written on a machine of the other byte order")
    contents, keys = load(), load()
    if not isinstance(keys, list) or {key for key in keys if isinstance(key, str)} != storages.keys():
        raise Refused("the storages are not those that tensors have")
    for key in dict.fromkeys(keys):
        if int.from_bytes(file.read(8), "little") != storages[key].count:
            raise Refused(f"storage {key[:60]!r} has another length than its tensors")
        _fill(file, storages[key].data)
        storages[key].filled()
    return contents, list(unpickler.unknown)


# ---- tensors ----


@dataclass(frozen=True)
class _StorageType:
    dtype: torch.dtype


class _Storage:
    """`count` elements of a type, and their bytes."""

    def __init__(self, dtype: torch.dtype, data: Tensor, count: int, *, is_filled: bool = True) -> None:
        self.dtype, self.data, self.count = dtype, data, count
        if count * dtype.itemsize != len(data):
            raise Refused(f"a storage of {count:,} {dtype} in a record of {len(data):,} bytes")
        if is_filled:
            self.filled()

    def named_again(self, dtype: torch.dtype, count: int) -> _Storage:
        """The storage, where something else in the pickle has it, too: as torch.save writes it, of the same type."""
        if (dtype, count) != (self.dtype, self.count):
            raise Refused(f"a storage of {self.count:,} {self.dtype} that is also one of {count:,} {dtype}")
        return self

    def filled(self) -> None:
        if self.dtype is torch.bool:
            self.data.ne_(0)  # other bytes than 0 and 1 are undefined behaviour wherever they are used


def _parts_of(identity: Any, length: int) -> tuple[_StorageType | Unknown, str, int]:
    """Type, key and count of a storage, from what the pickle says of it."""
    if isinstance(identity, tuple) and len(identity) == length and identity[0] == "storage":
        _, kind, key, _, count = identity[:5]
        if isinstance(kind, (_StorageType, Unknown)) and isinstance(key, str) and _is_count(count):
            return kind, key, count
    raise Refused("a storage is described in an unknown way")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 48


def _tensor(
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    gradient: Any = None,
    hooks: Any = None,
    bits: Any = None,
    *,
    dtype: torch.dtype | None = None,
) -> Any:
    """A view of a storage; whether it requires gradients is nothing that weights need. `bits`: "conj" and "neg" of
    tensors whose elements are not yet what they stand for."""
    if isinstance(storage, Unknown):
        return storage
    if not isinstance(storage, _Storage) or not _is_count(offset) or not type(size) is type(stride) is tuple:
        raise Refused("a tensor is described in an unknown way")
    if len(size) != len(stride) or len(size) > 64 or not all(map(_is_count, (*size, *stride))):
        raise Refused("a tensor's shape and strides do not go together")
    dtype = dtype or storage.dtype
    count = storage.count * storage.dtype.itemsize // dtype.itemsize
    elements = math.prod(size)
    if not elements:
        if max(size) >= 1 << 31:
            raise Refused("an empty tensor of a huge shape")
        return torch.empty(size, dtype=dtype)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if last >= count or elements > max(count, MOST_EXPANDED):
        raise Refused(f"a tensor of shape {list(size)[:8]} in a storage of {count:,} elements")
    if dtype is torch.bool and storage.dtype is not torch.bool:
        raise Refused("bools in a storage of another type")
    tensor = torch.empty(0, dtype=dtype).set_(storage.data.untyped_storage(), offset, size, stride)
    if isinstance(bits, dict) and bits.get("conj"):
        tensor = tensor.conj()
    return torch._neg_view(tensor) if isinstance(bits, dict) and bits.get("neg") else tensor


def _tensor_of_type(
    storage: Any, offset: Any, size: Any, stride: Any, gradient: Any, hooks: Any, dtype: Any, bits: Any = None
) -> Any:
    if not isinstance(dtype, torch.dtype):
        raise Refused("a tensor of an unknown type")
    return _tensor(storage, offset, size, stride, gradient, hooks, bits, dtype=dtype)


def _first(value: Any, *_: Any) -> Any:
    return value


def _of_subclass(function: Any, kind: Any, arguments: Any, *_: Any) -> Any:
    return function(*arguments) if function in (_tensor, _tensor_of_type, _first) else Unknown("a tensor's subclass")


def _size(*arguments: Any) -> Any:
    return torch.Size(arguments[0]) if len(arguments[0]) <= 64 and all(map(_is_count, arguments[0])) else arguments[0]


_STORAGES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
}
_WITHOUT = ("uint16", "uint32", "uint64", *(name for name in dir(torch) if name.startswith("float8_")))  # a storage
_TYPES = {*_STORAGES.values(), *(getattr(torch, name) for name in _WITHOUT)}
KNOWN: Mapping[str, Any] = {
    **PLAIN,
    "torch.Size": _size,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_type,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._tensor._rebuild_from_type_v2": _of_subclass,
    "torch.storage.UntypedStorage": _StorageType(torch.uint8),
    **{str(dtype): dtype for dtype in _TYPES},
    **{f"torch.{name}Storage": _StorageType(dtype) for name, dtype in _STORAGES.items()},
}
