# SPDX-License-Identifier: Apache-2.0
"""Pickles read as data: nothing that they name is imported or called, and what they can say is bounded.

Python's own unpickler calls what a pickle names. It also believes it: a number of 2 GB in the memo, a tuple in a tuple
in a tuple, each twice, as a key, or a million numbers with one hash are a few bytes that take all memory or all time.
"""

from __future__ import annotations

import io
import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

# Far above what networks need: HRNet-W48 with Adam's state has 5,000 tensors, for 130,000 opcodes.
MOST_OPCODES = 1_000_000
MOST_LEVELS = 50
LONGEST_TEXT = 1 << 16  # histories come as one long text; nobody reads them


class Unknown:
    """An object of a class or function that is not known: its name, and nothing that was in it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"an object of {self.name}"


class Refused(ValueError):
    """The reason has its own words."""


def _put(values: dict[Any, Any], key: Any, value: Any) -> None:
    """Larger numbers may be chosen so that all have one hash, and nested tuples so that a hash takes for ever."""
    if key is None or type(key) in (str, bool) or (type(key) is int and abs(key) < 1 << 31):
        values[key] = value


def _ordered(items: Any = ()) -> OrderedDict[Any, Any]:
    ordered: OrderedDict[Any, Any] = OrderedDict()
    for key, value in items:
        _put(ordered, key, value)
    return ordered


def _plain(*arguments: Any) -> dict[Any, Any]:
    return dict(arguments[-1]) if arguments and isinstance(arguments[-1], dict) else {}


def _encoded(text: Any, *_: Any) -> Any:
    return text.encode("latin-1") if isinstance(text, str) else text


PLAIN: dict[str, Any] = {
    "collections.OrderedDict": _ordered,
    "collections.defaultdict": _plain,
    "collections.Counter": _plain,
    "_codecs.encode": _encoded,
}


class Unpickler:
    """Executes a pickle, of which it knows the opcodes for plain values. It calls the functions of `known` alone.

    Args:
        file: to read from, with `read`, `readline` and `seek`.
        size: of the file, bytes.
        known: functions and values by the full names that pickles have for them. The functions must be ours: they are
            called with whatever the pickle says.
        storage: from what the pickle says of a storage to it.
    """

    def __init__(self, file: Any, size: int, known: Mapping[str, Any], storage: Callable[[Any], Any]) -> None:
        self.file, self.size, self.known, self.storage = file, size, known, storage
        self.unknown: dict[str, Unknown] = {}
        self.copied = 0

    def load(self) -> Any:
        """The value of one pickle; the file is then behind it."""
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        read, opcodes = self.file.read, _OPCODES
        for _ in range(MOST_OPCODES):
            opcode = read(1)
            if opcode == b".":
                value = self.stack.pop()
                check_tree(value)
                return value
            if opcode not in opcodes:
                raise Refused(f"opcode {opcode!r} is unknown" if opcode else "the pickle has no end")
            opcodes[opcode](self)
        raise Refused(f"a pickle of more than {MOST_OPCODES:,} opcodes")

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.file.read(struct.calcsize(form)))[0]

    def take(self, form: str, most: int = LONGEST_TEXT) -> bytes | None:
        """The bytes whose length comes first; None if they are more than `most`."""
        length = self.number(form)
        if not 0 <= length <= self.size:
            raise Refused(f"{length:,} bytes in a file of {self.size:,}")
        if length > most:
            self.file.seek(length, io.SEEK_CUR)
            return None
        data = self.file.read(length)
        if len(data) < length:
            raise Refused("the pickle has no end")
        return data

    def push_text(self, form: str) -> None:
        data = self.take(form)
        self.stack.append(Unknown("long text") if data is None else data.decode("utf-8", "surrogatepass"))

    def push_old_text(self, form: str) -> None:  # of Python 2, which has no other
        data = self.take(form)
        self.stack.append(Unknown("long text") if data is None else data.decode("utf-8", "replace"))

    def push_bytes(self, form: str) -> None:
        data = self.take(form)
        self.stack.append(Unknown("long bytes") if data is None else data)

    def push_long(self, form: str) -> None:
        data = self.take(form, 255)
        if data is None:
            raise Refused("a number of more than 255 bytes")
        self.stack.append(int.from_bytes(data, "little", signed=True))

    def mark(self) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        found, self.stack = self.stack, self.marked.pop()
        return found

    def push_tuple(self, count: int) -> None:
        items = tuple(self.stack[len(self.stack) - count :])
        if len(items) != count:
            raise Refused("the stack is empty")
        self.stack[len(self.stack) - count :] = [items]

    def push_marked_tuple(self) -> None:
        items = self.since_mark()
        self.stack.append(tuple(items))

    def push_marked_list(self) -> None:
        items = self.since_mark()
        self.stack.append(items)

    def push_marked_dict(self) -> None:
        items = self.since_mark()
        self.stack.append({})
        self.put(items)

    def push_marked_unknown(self) -> None:
        self.since_mark()
        self.stack.append(Unknown("set"))

    def extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is list:
            self.stack[-1].extend(items)
        elif not isinstance(self.stack[-1], Unknown):
            raise Refused("items for what is not a list")

    def put(self, items: list[Any]) -> None:
        if isinstance(values := self.stack[-1], dict):
            for key, value in zip(items[::2], items[1::2], strict=True):
                _put(values, key, value)
        elif not isinstance(values, Unknown):
            raise Refused("items for what is not a dict")

    def put_one(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.put([key, value])

    def memoize(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def push_global(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise Refused("a class whose name is not text")
        full = f"{module}.{name}"[:200]
        found = self.known.get(full) or self.unknown.get(full)
        if found is None:
            found = self.unknown[full] = Unknown(full)
        self.stack.append(found)

    def push_global_of_lines(self) -> None:
        module, name = (self.file.readline(300).decode().removesuffix("\n") for _ in range(2))
        self.push_global(module, name)

    def push_global_of_stack(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.push_global(module, name)

    def copy(self, *values: Any) -> None:
        """Counts what is gone through or copied at one opcode: a value that was written once may be named again and
        again."""
        self.copied += sum(len(value) for value in values if isinstance(value, (str, bytes, list, tuple, dict)))
        if self.copied > MOST_OPCODES + self.size:
            raise Refused("the same values are copied again and again")

    def call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if isinstance(function, FunctionType) and type(arguments) is tuple:  # only those of `known` get here
            self.copy(*arguments)
            self.stack.append(function(*arguments))
        elif isinstance(function, Unknown):
            self.stack.append(Unknown(function.name))
        else:
            raise Refused("something is called that is not a function")

    def call_with_names(self) -> None:
        self.stack.pop()
        self.call()

    def build(self) -> None:
        """What an object has beside its items: of a state dict the versions of its layers, and a note of ours."""
        state, made = self.stack.pop(), self.stack[-1]
        metadata = state.get("_metadata") if isinstance(state, dict) and isinstance(made, OrderedDict) else None
        if isinstance(metadata, dict):
            self.copy(metadata)
            kinds = {"version": int, "color_order": str}
            made._metadata = {  # as Module.state_dict has it
                layer: {name: notes[name] for name, kind in kinds.items() if type(notes.get(name)) is kind}
                for layer, notes in metadata.items()
                if isinstance(notes, dict)
            }


def check_tree(value: Any) -> None:
    """Raises Refused for values within values that are too deep, or so many, as one may be in several, that going
    through all of them would not end."""
    found: dict[int, tuple[int, int]] = {}  # of each that is not empty: how many values and levels it has
    kinds = (list, tuple, dict)

    def measure(values: Any, level: int) -> tuple[int, int]:
        if id(values) not in found:
            if level == MOST_LEVELS:
                raise Refused(f"values within values on more than {MOST_LEVELS} levels")
            found[id(values)] = 0, MOST_LEVELS  # while it is being measured: it must not be in itself
            count, levels = len(values), 1
            for inner in values.values() if isinstance(values, dict) else values:
                if isinstance(inner, kinds) and inner:
                    more, below = measure(inner, level + 1)
                    count, levels = count + more, max(levels, below + 1)
            found[id(values)] = count, levels
        count, levels = found[id(values)]
        if count > 2 * MOST_OPCODES or level + levels > MOST_LEVELS:
            raise Refused(f"more than {2 * MOST_OPCODES:,} values, or on more than {MOST_LEVELS} levels")
        return count, levels

    if isinstance(value, kinds):
        measure(value, 0)


def _constant(make: Callable[[], Any]) -> Callable[[Unpickler], None]:
    return lambda it: it.stack.append(make())


def _number(form: str) -> Callable[[Unpickler], None]:
    return lambda it: it.stack.append(it.number(form))


# By the names of pickletools. Missing are those that torch.save and Python's picklers do not write, and persistent
# identities that are text, extension codes and out-of-band buffers.
_OPCODES: dict[bytes, Callable[[Unpickler], Any]] = {
    b"\x80": lambda it: it.number("<B"),  # PROTO
    b"\x95": lambda it: it.number("<Q"),  # FRAME
    b"N": _constant(lambda: None),
    b"\x88": _constant(lambda: True),
    b"\x89": _constant(lambda: False),
    b")": _constant(tuple),
    b"]": _constant(list),
    b"}": _constant(dict),
    b"\x8f": _constant(lambda: Unknown("set")),
    b"J": _number("<i"),  # BININT
    b"K": _number("<B"),
    b"M": _number("<H"),
    b"G": _number(">d"),  # BINFLOAT
    b"\x8a": lambda it: it.push_long("<B"),
    b"\x8b": lambda it: it.push_long("<I"),
    b"X": lambda it: it.push_text("<I"),  # BINUNICODE
    b"\x8c": lambda it: it.push_text("<B"),
    b"\x8d": lambda it: it.push_text("<Q"),
    b"T": lambda it: it.push_old_text("<I"),  # BINSTRING
    b"U": lambda it: it.push_old_text("<B"),
    b"B": lambda it: it.push_bytes("<I"),  # BINBYTES
    b"C": lambda it: it.push_bytes("<B"),
    b"\x8e": lambda it: it.push_bytes("<Q"),
    b"\x96": lambda it: it.push_bytes("<Q"),  # BYTEARRAY8
    b"(": lambda it: it.mark(),
    b"0": lambda it: it.stack.pop(),
    b"1": lambda it: it.since_mark(),  # POP_MARK
    b"t": lambda it: it.push_marked_tuple(),
    b"\x85": lambda it: it.push_tuple(1),
    b"\x86": lambda it: it.push_tuple(2),
    b"\x87": lambda it: it.push_tuple(3),
    b"l": lambda it: it.push_marked_list(),
    b"d": lambda it: it.push_marked_dict(),
    b"\x91": lambda it: it.push_marked_unknown(),  # FROZENSET
    b"a": lambda it: it.extend([it.stack.pop()]),
    b"e": lambda it: it.extend(it.since_mark()),
    b"s": lambda it: it.put_one(),
    b"u": lambda it: it.put(it.since_mark()),
    b"\x90": lambda it: it.since_mark(),  # ADDITEMS, to a set
    b"q": lambda it: it.memoize(it.number("<B")),  # BINPUT
    b"r": lambda it: it.memoize(it.number("<I")),
    b"\x94": lambda it: it.memoize(len(it.memo)),
    b"h": lambda it: it.stack.append(it.memo[it.number("<B")]),  # BINGET
    b"j": lambda it: it.stack.append(it.memo[it.number("<I")]),
    b"c": lambda it: it.push_global_of_lines(),
    b"\x93": lambda it: it.push_global_of_stack(),
    b"R": lambda it: it.call(),  # REDUCE
    b"\x81": lambda it: it.call(),  # NEWOBJ
    b"\x92": lambda it: it.call_with_names(),  # NEWOBJ_EX
    b"b": lambda it: it.build(),
    b"Q": lambda it: it.stack.append(it.storage(it.stack.pop())),  # BINPERSID
}
