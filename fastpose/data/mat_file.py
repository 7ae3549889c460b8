# SPDX-License-Identifier: Apache-2.0
"""MATLAB files of versions 5 to 7.2: numbers, text and structs, which is what MPII's and LSP's files consist of.

Such files come from strangers. SciPy's reader builds whatever a file says: cells within cells until the stack is used
up, which ends the process, and arrays of any size from a few compressed bytes. This one believes no size before it has
seen that the file can have it, and passes over everything that was not asked for.

Format: MathWorks, "MAT-File Format".
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastpose.data.annotation_rows import AnnotationError
from fastpose.files import read_file

_MOST_BYTES = 64 << 20  # of a file: five times MPII's own
_DEEPEST = 8  # structs within structs; MPII's are five deep
# Of a compressed variable, once it is inflated: MPII's own, about 200 MB, has 15 to 30 times its compressed bytes.
_MOST_INFLATED, _INFLATED_FREE, _MOST_RATIO = 1 << 30, 32 << 20, 40
_MOST_DIMENSIONS = 32
_MOST_VARIABLES = 10_000

_HEADER = 128
_INT8, _UINT8, _UINT16, _MATRIX, _COMPRESSED, _UTF8, _UTF16, _UTF32 = 1, 2, 4, 14, 15, 16, 17, 18
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_CELL, _STRUCT, _CHAR, _NUMERIC = 1, 2, 4, range(6, 16)
_KINDS = {_CELL: "a cell array", 3: "an object", 5: "a sparse matrix", 16: "a function", 17: "an object"}
_COMPLEX = 0x0800
_EMPTY = np.empty((0, 0))


def read_mat(file: Path, names: Collection[str], fields: Collection[str] = ()) -> dict[str, Any]:
    """The variables `names` of a MATLAB file, without what else is in it.

    Args:
        file: the file, of at most 64 MiB.
        names: the variables.
        fields: the fields of structs that are wanted; others are left out, at any depth.

    Returns:
        By name: numbers as an array of the dimensions and the type that the file has; one row of text as str; a struct
        array as a list of its elements, in MATLAB's order, each a dict of those of `fields` that it has. What is empty,
        of whatever type but a struct, is an array of 0 numbers.

    Raises:
        AnnotationError: not a file of these versions, damaged, with something else under these names, or a variable is
            missing; names the file and the byte or the variable.
        FileNotFoundError: no such file.
        ValueError: larger, or a folder, pipe or device; names the file.
    """
    data = read_file(file, _MOST_BYTES)
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if data[:128].startswith(b"MATLAB 7.3") or data[512:520] == b"\x89HDF\r\n\x1a\n":
        raise AnnotationError(f"{file}: expected MATLAB 5 to 7.2, got 7.3 (HDF5): save it in MATLAB with -v7")
    if order is None:
        raise AnnotationError(f"{file}: is not a readable MATLAB 5-7.2 file: it begins with {data[:20]!r}")
    found: dict[str, Any] = {}
    outer = _Elements(file, data, order, frozenset(fields))
    at = _HEADER
    for _ in range(_MOST_VARIABLES):
        if at >= len(data) or len(found) == len(names):
            break
        kind, start, size, following = outer.element(at, len(data))
        if kind == _COMPRESSED:  # has no padding
            following = start + size
            name = outer.inflated(start, size, most=4096).head(8).name  # enough for a header
            if name in names and name not in found:
                inner = outer.inflated(start, size)
                found[name] = inner.value(8, len(inner.data), name)
        elif kind == _MATRIX:
            name = outer.head(start).name if size else ""
            if name in names and name not in found:
                found[name] = outer.value(start, start + size, name)
        at = following
    if missing := [name for name in names if name not in found]:
        raise AnnotationError(f"{file}: has no variable {', '.join(missing)}")
    return found


class _Head(NamedTuple):
    """The begin of an array."""

    kind: int
    dimensions: tuple[int, ...]
    name: str
    at: int  # where its contents begin


class _Elements:
    """Data elements: (type, size, bytes), where arrays consist of further elements."""

    def __init__(self, file: Path, data: bytes, order: str, fields: frozenset[str]) -> None:
        self.file, self.data, self.order, self.fields = file, data, order, fields
        self._tag, self._number = struct.Struct(order + "II"), struct.Struct(order + "10I")

    def element(self, at: int, end: int) -> tuple[int, int, int, int]:
        """The type of the element at `at`, where its bytes begin, how many they are, and where the next one begins."""
        if end - at < 8:
            raise self._damaged(at, "it ends within an element")
        kind, size = self._tag.unpack_from(self.data, at)
        if kind >> 16:  # up to four bytes, which take the place of the size
            kind, start, size, following = kind & 0xFFFF, at + 4, kind >> 16, at + 8
        else:
            start, following = at + 8, at + 8 + size + -size % 8
        if start + size > end or start + size > following:
            raise self._damaged(at, f"an element of {size:,} bytes does not fit")
        return kind, start, size, following if following < end else end

    def head(self, at: int) -> _Head:
        """What an array says of itself."""
        end = len(self.data)
        if end - at >= 40:
            words = self._number.unpack_from(self.data, at)
            if words[:2] == (6, 8) and words[4:] == (5, 8, 1, 1, 1, 0):  # a nameless number: nearly all that MPII's has
                return _Head(words[2], (1, 1), "", at + 40)
        _, flags, size, at = self.element(at, end)
        if size != 8:
            raise self._damaged(flags, "flags of an array expected")
        kind, _ = self._tag.unpack_from(self.data, flags)
        _, start, size, at = self.element(at, end)
        if size % 4 or not 8 <= size <= 4 * _MOST_DIMENSIONS:
            raise self._damaged(start, f"2 to {_MOST_DIMENSIONS} dimensions expected")
        dimensions = struct.unpack_from(f"{self.order}{size // 4}i", self.data, start)
        if min(dimensions) < 0:
            raise self._damaged(start, f"dimensions of 0 or more expected, got {dimensions}")
        _, start, size, at = self.element(at, end)
        return _Head(kind, dimensions, self.data[start : start + size].decode("latin-1"), at)

    def inflated(self, start: int, size: int, most: int | None = None) -> _Elements:
        """The compressed element, or its first `most` bytes; as many as its own tag says."""
        packed = memoryview(self.data)[start : start + size]
        try:
            tag = zlib.decompressobj().decompress(packed[:4096], 8)
            if len(tag) < 8:
                raise self._damaged(start, "nothing is compressed there")
            total = 8 + self._tag.unpack(tag)[1]
            allowed = min(_MOST_INFLATED, _INFLATED_FREE + _MOST_RATIO * size)
            if most is None and total > allowed:
                raise self._damaged(start, f"{size:,} bytes say that they are {total:,}, expected at most {allowed:,}")
            wanted = total if most is None else min(total, most)
            inflate = zlib.decompressobj()
            data = inflate.decompress(packed, wanted)
            # The checksum is read once all is inflated.
            if most is None and (inflate.decompress(inflate.unconsumed_tail, 1) or not inflate.eof):
                raise self._damaged(start, f"{total:,} compressed bytes and no more expected")
        except zlib.error as error:
            raise self._damaged(start, str(error)) from error
        if len(data) < wanted:
            raise self._damaged(start, f"{wanted:,} compressed bytes expected, got {len(data):,}")
        return _Elements(self.file, data, self.order, self.fields)

    def value(self, at: int, end: int, name: str, depth: int = 0) -> Any:
        """The contents of an array, see `read_mat`; `name` is for messages."""
        if at == end:
            return _EMPTY
        head = self.head(at)
        kind, count = head.kind & 0xFF, math.prod(head.dimensions)
        if kind == _STRUCT:
            return self._structs(head, count, end, name, depth)
        if count == 0:
            return _EMPTY
        if kind not in (_CHAR, *_NUMERIC) or head.kind & _COMPLEX:
            got = "complex numbers" if kind in _NUMERIC else _KINDS.get(kind, f"an array of type {kind}")
            raise AnnotationError(f"{self.file}: {name}: expected numbers, text or structs, got {got}")
        stored, start, size, _ = self.element(head.at, end)
        if kind == _CHAR:
            return self._text(stored, start, size, head, name)
        kind_of = _NUMBERS.get(stored)
        if kind_of is None or size != count * np.dtype(kind_of).itemsize:
            raise self._damaged(start, f"{name}: {count:,} numbers expected, got {size:,} bytes of type {stored}")
        numbers = np.frombuffer(self.data, self.order + kind_of, count, start)
        return numbers.reshape(head.dimensions, order="F")

    def _text(self, stored: int, start: int, size: int, head: _Head, name: str) -> str:
        if len(head.dimensions) != 2 or head.dimensions[0] != 1:
            raise AnnotationError(f"{self.file}: {name}: expected one row of text, got {head.dimensions}")
        wide = "le" if self.order == "<" else "be"
        codings = {_INT8: "utf-8", _UINT8: "utf-8", _UTF8: "utf-8", _UTF32: f"utf-32-{wide}"}
        codings |= dict.fromkeys((_UINT16, _UTF16), f"utf-16-{wide}")
        try:
            return self.data[start : start + size].decode(codings[stored])
        except (KeyError, UnicodeDecodeError) as error:
            raise self._damaged(start, f"{name}: text expected, got bytes of type {stored}") from error

    def _structs(self, head: _Head, count: int, end: int, name: str, depth: int) -> list[dict[str, Any]]:
        _, start, size, at = self.element(head.at, end)
        (length,) = struct.unpack_from(self.order + "i", self.data, start) if size == 4 else (0,)
        _, start, size, at = self.element(at, end)
        if length < 1 or size % length:
            raise self._damaged(start, f"{name}: the names of fields expected")
        names = [
            self.data[i : i + length].split(b"\0")[0].decode("latin-1") for i in range(start, start + size, length)
        ]
        if not names:
            return []
        if 8 * count * len(names) > end - at:
            raise self._damaged(at, f"{name}: {count:,} structs of {len(names)} fields do not fit")
        if depth == _DEEPEST:
            raise AnnotationError(f"{self.file}: {name}: structs are more than {_DEEPEST} deep")
        wanted = [field if field in self.fields else None for field in names]
        structs = []
        for _ in range(count):
            one: dict[str, Any] = {}
            for field in wanted:
                kind, start, size, following = self.element(at, end)
                if kind != _MATRIX:
                    raise self._damaged(at, f"{name}: an array expected, got an element of type {kind}")
                if field is not None:
                    one[field] = self.value(start, start + size, field, depth + 1)
                at = following
            structs.append(one)
        return structs

    def _damaged(self, at: int, what: str) -> AnnotationError:
        return AnnotationError(f"{self.file}: is not a readable MATLAB 5-7.2 file: byte {at:,}: {what}")
