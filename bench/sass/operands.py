# SPDX-License-Identifier: Apache-2.0
"""Registers, constants and immediates as functions that read and write arrays [warps, 32], and the table of opcodes.

Of uniform registers and constants the arrays are [warps, 1] and [1, 1]: NumPy broadcasts them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from bench.sass.memory import Array
from bench.sass.program import Instruction
from bench.sass.state import State

Get = Callable[[], Array]
Put = Callable[[Array, Array], None]
Step = Callable[[Array], None]

U32, U64, I32, I64, F32, F64 = np.uint32, np.uint64, np.int32, np.int64, np.float32, np.float64
LOW = np.uint64(0xFFFFFFFF)
_ZERO, _TRUE, _FALSE = np.zeros((1, 1), U32), np.ones((1, 1), bool), np.zeros((1, 1), bool)
_CONSTANT = re.compile(r"c\[0x([0-9a-f]+)\]\s*\[(?:(R\d+|RZ|UR\d+|URZ)\+?)?(?:(-?)0x([0-9a-f]+))?\]")
OPCODES: dict[str, Callable[[State, Instruction], Step]] = {}


def opcode(*names: str) -> Callable[[Any], Any]:
    def register(make: Any) -> Any:
        for name in names:
            OPCODES[name] = make
        return make

    return register


def predicate(machine: State, text: str) -> Get:
    """P0, !P0, PT, UP0 …"""
    negated, name = text.startswith("!"), text.lstrip("!")
    if name in ("PT", "UPT"):
        value = _FALSE if negated else _TRUE
        return lambda: value
    found = re.fullmatch(r"(U?)P(\d)", name)
    if not found:
        raise ValueError(f"expected a predicate, got {text}")
    register = (machine.uniform_predicates if found[1] else machine.predicates)[int(found[2])]
    return (lambda: np.logical_not(register)) if negated else (lambda: register)


def is_predicate(text: str) -> bool:
    return re.fullmatch(r"!?U?P[\dT]", text) is not None


def put_predicate(machine: State, text: str) -> Put:
    if text in ("PT", "UPT"):
        return lambda value, mask: None
    found = re.fullmatch(r"(U?)P(\d)", text)
    if not found:
        raise ValueError(f"expected a predicate to write, got {text}")
    register = (machine.uniform_predicates if found[1] else machine.predicates)[int(found[2])]
    if found[1]:
        return lambda value, mask: np.copyto(register, value, where=_of_warps(mask))
    return lambda value, mask: np.copyto(register, value, where=mask)


def _of_warps(mask: Array) -> Array:
    return mask if mask.shape[1] == 1 else mask.any(1, keepdims=True)


def _register(machine: State, name: str, step: int = 0) -> Array | None:
    """A register of either file, `step` behind the one named; None if `name` names none."""
    if name in ("RZ", "URZ"):
        return _ZERO
    if found := re.fullmatch(r"(U?)R(\d+)", name):
        return (machine.uniform if found[1] else machine.registers)[int(found[2]) + step]
    return None


def constant(machine: State, instruction: Instruction, text: str, dtype: Any) -> Get | None:
    found = _CONSTANT.fullmatch(text)
    if not found:
        return None
    if int(found[1], 16) != 0:
        raise instruction.unsupported("only constant bank 0 is known")
    offset = int(found[4] or "0", 16) * (-1 if found[3] else 1)
    size = np.dtype(dtype).itemsize
    bank = machine.bank
    if found[2] is None or found[2] in ("RZ", "URZ"):
        value = bank[offset : offset + size].copy().view(dtype).reshape(1, 1)
        return lambda: value
    index = _register(machine, found[2])
    assert index is not None
    usable = bank.size // size * size

    def gather() -> Array:
        place = index.view(I32).astype(I64) + offset
        inside = (place >= 0) & (place + size <= usable)  # inactive lanes may hold anything
        return bank[:usable].view(dtype)[np.where(inside, place, 0) // size]

    return gather


def _fixed(value: Array) -> Get:
    return lambda: value


def integer(machine: State, instruction: Instruction, text: str) -> Get:
    """uint32 of a register, constant or immediate; `-` is the two's complement, `~` the one's, `|x|` the magnitude.

    `.B2` and `.H1` (also `.H1_H1`) choose a byte or a half.
    """
    found = re.fullmatch(r"([-~]?)(\|?)(.+?)(?:\.([BH])(\d)(?:_[BH]\d)?)?\|?", text)
    if re.fullmatch(r"-?0x[0-9a-f]+|-?\d+", text):
        return _fixed(np.full((1, 1), int(text, 0) & 0xFFFFFFFF, U32))
    assert found is not None
    sign, magnitude, name, part, number = found.groups()
    register = _register(machine, name)
    bank = constant(machine, instruction, name, U32)
    if register is not None:
        get = _fixed(register)
    elif bank is not None:
        get = bank
    elif name in machine.special:
        get = _fixed(machine.special[name])
    else:
        raise instruction.unsupported(f"operand {text}")
    if part is not None:
        get = _bits(get, {"B": 8, "H": 16}[part], int(number))
    if magnitude:
        get = _magnitude(get)
    if sign:
        one = U32(1 if sign == "-" else 0)
        return lambda: ~get() + one
    return get


def _bits(get: Get, width: int, number: int) -> Get:
    return lambda: get() >> U32(width * number) & U32((1 << width) - 1)


def _magnitude(get: Get) -> Get:
    return lambda: np.abs(get().view(I32)).view(U32)


def put(machine: State, text: str) -> Put:
    """Writes uint32 (or the low half of uint64) into a register."""
    if text in ("RZ", "URZ"):
        return lambda value, mask: None
    register = _register(machine, text)
    if register is None:
        raise ValueError(f"expected a register to write, got {text}")
    if register.shape[1] == 1:

        def write(value: Array, mask: Array) -> None:
            if value.shape[1] != 1:
                raise ValueError("a value per lane for a uniform register")
            np.copyto(register, value, where=_of_warps(mask), casting="same_kind")

        return write
    return lambda value, mask: np.copyto(register, value, where=mask, casting="same_kind")


def wide(machine: State, instruction: Instruction, text: str) -> Get:
    """uint64 of a pair of registers or of a constant; of an immediate, sign extended."""
    if re.fullmatch(r"-?0x[0-9a-f]+", text):
        return _fixed(np.full((1, 1), int(text, 16) & 0xFFFFFFFFFFFFFFFF, U64))
    name = text.removeprefix("-").removesuffix(".64")
    low = _register(machine, name)
    bank = constant(machine, instruction, name, U64)
    if low is not None:
        get = _pair(low, low if low is _ZERO else _register(machine, name, 1))
    elif bank is not None:
        get = bank
    else:
        raise instruction.unsupported(f"operand {text}")
    return (lambda: ~get() + U64(1)) if text.startswith("-") else get


def _pair(low: Array, high: Array | None) -> Get:
    assert high is not None
    return lambda: high.astype(U64) << U64(32) | low


def put_wide(machine: State, text: str) -> Put:
    """Writes uint64 into a pair of registers."""
    if text in ("RZ", "URZ"):
        return lambda value, mask: None
    found = re.fullmatch(r"(U?R)(\d+)", text)
    if not found:
        raise ValueError(f"expected a pair of registers to write, got {text}")
    low, high = put(machine, text), put(machine, f"{found[1]}{int(found[2]) + 1}")

    def write(value: Array, mask: Array) -> None:
        low((value & LOW).astype(U32), mask)
        high((value >> U64(32)).astype(U32), mask)

    return write


def _signs(text: str) -> tuple[bool, bool, str]:
    """Whether negated, whether a magnitude, and the rest."""
    negated = text.startswith("-") and not re.match(r"-[\d.]|-INF|-QNAN", text)
    name = text[1:] if negated else text
    return negated, name.startswith("|"), name.strip("|")


def _number(text: str) -> float | None:
    try:
        return float(text.replace("QNAN", "nan").replace("SNAN", "nan").replace("INF", "inf"))
    except ValueError:
        return None


def single(machine: State, instruction: Instruction, text: str, *, flush: bool = False) -> Get:
    """float32 of a register, constant or immediate, after `|x|` and `-`."""
    negated, magnitude, name = _signs(text)
    if (number := _number(name)) is not None:
        value = np.full((1, 1), number, F32)
        plain = _fixed(
            value if instruction.immediate is None else np.full((1, 1), instruction.immediate, U32).view(F32)
        )
    else:
        bits = integer(machine, instruction, name)
        plain = lambda: bits().view(F32)  # noqa: E731

    def get() -> Array:
        value = plain()
        if flush:
            value = np.where(np.abs(value) < F32(2.0**-126), np.copysign(F32(0), value), value)
        if magnitude:
            value = np.abs(value)
        return -value if negated else value

    return get


def double(machine: State, instruction: Instruction, text: str) -> Get:
    """float64 of a pair of registers, a constant or an immediate, after `|x|` and `-`."""
    negated, magnitude, name = _signs(text)
    if (number := _number(name)) is not None:
        value = np.full((1, 1), number, F64)
        high = instruction.immediate
        plain = _fixed(value if high is None else np.full((1, 1), high << 32, U64).view(F64))
    else:
        bits = wide(machine, instruction, name)
        plain = lambda: bits().view(F64)  # noqa: E731

    def get() -> Array:
        value = np.abs(plain()) if magnitude else plain()
        return -value if negated else value

    return get


def put_single(machine: State, text: str) -> Put:
    write = put(machine, text)
    return lambda value, mask: write(canonical(value, U32, 0x7FFFFFFF), mask)


def put_double(machine: State, text: str) -> Put:
    write = put_wide(machine, text)
    return lambda value, mask: write(canonical(value, U64, 0x7FF8000000000000), mask)


def canonical(value: Array, bits: Any, nan: int) -> Array:
    """The bits of a float, all NaNs alike as the hardware gives them."""
    nans = np.isnan(value)
    seen = np.ascontiguousarray(value).view(bits)
    return np.where(nans, bits(nan), seen) if nans.any() else seen
