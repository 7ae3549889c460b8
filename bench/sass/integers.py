# SPDX-License-Identifier: Apache-2.0
"""Integer and logic opcodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bench.sass.memory import Array
from bench.sass.operands import (
    F64,
    I32,
    I64,
    LOW,
    OPCODES,
    U32,
    U64,
    Get,
    Step,
    constant,
    integer,
    is_predicate,
    opcode,
    predicate,
    put,
    put_predicate,
    put_wide,
    wide,
)
from bench.sass.program import Instruction
from bench.sass.state import State


def _unary(value: Callable[[Array], Array]) -> Callable[[State, Instruction], Step]:
    def make(machine: State, instruction: Instruction) -> Step:
        instruction.expect()
        write = put(machine, instruction.operands[0])
        get = integer(machine, instruction, instruction.operands[1])
        return lambda mask: write(value(get()), mask)

    return make


OPCODES["IABS"] = _unary(lambda a: np.abs(a.view(I32)).view(U32))
OPCODES["POPC"] = _unary(lambda a: sum((a >> U32(i) & U32(1) for i in range(32)), np.zeros_like(a)))
OPCODES["BREV"] = _unary(lambda a: sum(((a >> U32(i) & U32(1)) << U32(31 - i) for i in range(32)), np.zeros_like(a)))


@opcode("FLO")
def _flo(machine: State, instruction: Instruction) -> Step:
    """The highest set bit, or all ones where there is none; with SH the shift that brings it to the top."""
    modifiers = instruction.expect("U32", "SH")
    if "U32" not in modifiers:
        raise instruction.unsupported("only of unsigned numbers")
    write, get = put(machine, instruction.operands[0]), integer(machine, instruction, instruction.operands[-1])

    def step(mask: Array) -> None:
        value = get()
        place = np.frexp(value.astype(F64))[1].astype(U32) - U32(1)
        if "SH" in modifiers:
            place = U32(31) - place
        write(np.where(value == 0, U32(0xFFFFFFFF), place), mask)

    return step


@opcode("MOV", "MOV32I")
def _mov(machine: State, instruction: Instruction) -> Step:
    instruction.expect("U32")
    write, get = put(machine, instruction.operands[0]), integer(machine, instruction, instruction.operands[1])
    return lambda mask: write(get(), mask)


@opcode("S2R", "S2UR", "CS2R")
def _special(machine: State, instruction: Instruction) -> Step:
    modifiers = instruction.expect("32")
    target, name = instruction.operands
    get = integer(machine, instruction, name)
    if instruction.opcode == "CS2R" and "32" not in modifiers:
        write_wide = put_wide(machine, target)
        return lambda mask: write_wide(get().astype(U64), mask)
    write = put(machine, target)
    return lambda mask: write(get(), mask)


@opcode("LDC")
def _ldc(machine: State, instruction: Instruction) -> Step:
    modifiers = instruction.expect("64", "S16", "U16", "U8", "S8")
    kind = next(iter(modifiers), "")
    dtype = {"": U32, "64": U64, "S16": np.int16, "U16": np.uint16, "U8": np.uint8, "S8": np.int8}[kind]
    get = constant(machine, instruction, instruction.operands[1], dtype)
    if get is None:
        raise instruction.unsupported()
    if kind == "64":
        write_wide = put_wide(machine, instruction.operands[0])
        return lambda mask: write_wide(get(), mask)
    write = put(machine, instruction.operands[0])
    return lambda mask: write(get().astype(I32).view(U32) if kind else get(), mask)


def _carries(instruction: Instruction) -> tuple[str, list[str], list[str]]:
    """Destination, predicates written behind it, and the other operands."""
    target, *rest = instruction.operands
    written = []
    while rest and is_predicate(rest[0]):
        written.append(rest.pop(0))
    return target, written, rest


def _addend(machine: State, instruction: Instruction, text: str) -> Get:
    """uint64 that the adder sees: of -x the complement plus 1, whose carry counts as 'no borrow'."""
    if text.startswith("-") and not text.startswith("-0x"):
        inner = integer(machine, instruction, text[1:])
        return lambda: (~inner()).astype(U64) + U64(1)
    get = integer(machine, instruction, text)
    return lambda: get().astype(U64)


@opcode("IADD3")
def _iadd3(machine: State, instruction: Instruction) -> Step:
    modifiers = instruction.expect("X")
    target, written, rest = _carries(instruction)
    write = put(machine, target)
    put_carries = [put_predicate(machine, name) for name in written]
    a, b, c = (_addend(machine, instruction, text) for text in rest[:3])
    carries = [predicate(machine, text) for text in rest[3:]]
    if carries and "X" not in modifiers:
        raise instruction.unsupported("carries without X")

    def step(mask: Array) -> None:
        first = a() + b()
        for carry in carries[:1]:
            first = first + carry()
        total = (first & LOW) + c()
        for carry in carries[1:]:
            total = total + carry()
        if len(put_carries) == 1:
            put_carries[0]((first >> U64(32)) + (total >> U64(32)) != 0, mask)
        elif put_carries:
            put_carries[0](first >> U64(32) != 0, mask)
            put_carries[1](total >> U64(32) != 0, mask)
        write((total & LOW).astype(U32), mask)

    return step


@opcode("VIADD")
def _viadd(machine: State, instruction: Instruction) -> Step:
    instruction.expect()
    write = put(machine, instruction.operands[0])
    a, b = (integer(machine, instruction, text) for text in instruction.operands[1:])
    return lambda mask: write(a() + b(), mask)


@opcode("IMAD")
def _imad(machine: State, instruction: Instruction) -> Step:
    modifiers = instruction.expect("MOV", "IADD", "SHL", "U32", "WIDE", "HI", "X")
    target, written, rest = _carries(instruction)
    a, b = (integer(machine, instruction, text) for text in rest[:2])
    carries = [predicate(machine, text) for text in rest[3:]]
    if bool(carries) != ("X" in modifiers):
        raise instruction.unsupported("carry")
    unsigned = "U32" in modifiers
    kind: Any = U64 if unsigned else I64
    if not modifiers & {"WIDE", "HI"}:
        if written:
            raise instruction.unsupported("carry out")
        c = integer(machine, instruction, rest[2])
        write = put(machine, target)
        if not carries:
            return lambda mask: write(a() * b() + c(), mask)
        return lambda mask: write(a() * b() + c() + carries[0]().astype(U32), mask)

    c_wide = wide(machine, instruction, rest[2])
    put_carry = put_predicate(machine, written[0]) if written else None
    high = "HI" in modifiers
    write = put(machine, target) if high else put_wide(machine, target)

    def step(mask: Array) -> None:
        x, y = (a(), b()) if unsigned else (a().view(I32), b().view(I32))
        product = (x.astype(kind) * y.astype(kind)).view(U64)
        addend = c_wide()
        total = product + addend
        overflow = total < addend
        for carry in carries:
            one = carry().astype(U64)
            overflow = overflow | (total + one < total)
            total = total + one
        if put_carry is not None:
            put_carry(overflow, mask)
        write((total >> U64(32)).astype(U32) if high else total, mask)

    return step


@opcode("LEA")
def _lea(machine: State, instruction: Instruction) -> Step:
    """(a << s) + b; with HI the high word of ({c, a} << s), plus b."""
    modifiers = instruction.expect("HI", "X", "SX32")
    target, written, rest = _carries(instruction)
    high = "HI" in modifiers
    carries = [predicate(machine, text) for text in rest if is_predicate(text)]
    numbers = [text for text in rest if not is_predicate(text)]
    if bool(carries) != ("X" in modifiers) or len(written) > 1:
        raise instruction.unsupported("carry")
    a, b = integer(machine, instruction, numbers[0]), _addend(machine, instruction, numbers[1])
    shift = U64(int(numbers[-1], 16))
    above = None
    if high and "SX32" not in modifiers:
        above = integer(machine, instruction, numbers[2])
    write = put(machine, target)
    put_carry = put_predicate(machine, written[0]) if written else None

    def step(mask: Array) -> None:
        if above is not None:
            value = (above().astype(U64) << U64(32) | a()) << shift >> U64(32)
        elif high:
            value = (a().view(I32).astype(I64).view(U64) << shift) >> U64(32)
        else:
            value = a().astype(U64) << shift & LOW
        total = value + b()
        for carry in carries:
            total = total + carry()
        if put_carry is not None:
            put_carry(total >> U64(32) != 0, mask)
        write((total & LOW).astype(U32), mask)

    return step


def _table(lut: int, a: Array, b: Array, c: Array, ones: Any) -> Array:
    """The function of three bits whose value at (a, b, c) = (1, 1, 1) is the highest bit of `lut`."""
    result: Array | None = None
    for row in range(8):
        if lut >> row & 1:
            term = (a if row & 4 else a ^ ones) & (b if row & 2 else b ^ ones) & (c if row & 1 else c ^ ones)
            result = term if result is None else result | term
    return result if result is not None else (a ^ a)


@opcode("LOP3")
def _lop3(machine: State, instruction: Instruction) -> Step:
    modifiers = instruction.expect("LUT", "PAND")
    operands = list(instruction.operands)
    written = operands.pop(0) if is_predicate(operands[0]) else "PT"
    write, put_nonzero = put(machine, operands[0]), put_predicate(machine, written)
    a, b, c = (integer(machine, instruction, text) for text in operands[1:4])
    lut, other = int(operands[4], 16), predicate(machine, operands[5])
    simple = {0xC0: np.bitwise_and, 0xFC: np.bitwise_or, 0x3C: np.bitwise_xor}.get(lut)

    def step(mask: Array) -> None:
        value = simple(a(), b()) if simple else _table(lut, a(), b(), c(), U32(0xFFFFFFFF))
        if written != "PT":
            nonzero = value != 0
            put_nonzero(nonzero & other() if "PAND" in modifiers else nonzero | other(), mask)
        write(value, mask)

    return step


@opcode("PLOP3")
def _plop3(machine: State, instruction: Instruction) -> Step:
    instruction.expect("LUT")
    first, second, *inputs, lut, other_lut = instruction.operands
    puts = [(put_predicate(machine, first), int(lut, 16)), (put_predicate(machine, second), int(other_lut, 16))]
    a, b, c = (predicate(machine, text) for text in inputs)

    def step(mask: Array) -> None:
        values = [_table(table, a(), b(), c(), np.True_) for _, table in puts]
        for (write, _), value in zip(puts, values, strict=True):
            write(value, mask)

    return step


@opcode("P2R")
def _p2r(machine: State, instruction: Instruction) -> Step:
    """`P2R R0, PR, R1, 0x7`: R1 with P0 to P2 in the bits of the mask."""
    instruction.expect()
    target, _, text, chosen = instruction.operands
    write, get, bits = put(machine, target), integer(machine, instruction, text), U32(int(chosen, 16))

    def step(mask: Array) -> None:
        packed = sum((value.astype(U32) << U32(i) for i, value in enumerate(machine.predicates)), np.zeros((1, 1), U32))
        write(get() & ~bits | packed & bits, mask)

    return step


@opcode("R2P")
def _r2p(machine: State, instruction: Instruction) -> Step:
    """`R2P PR, R1, 0x7`: P0 to P2 from the bits of R1."""
    instruction.expect()
    _, text, chosen = instruction.operands
    get, bits = integer(machine, instruction, text), int(chosen, 16)

    def step(mask: Array) -> None:
        value = np.broadcast_to(get(), mask.shape)
        for i, register in enumerate(machine.predicates):
            if bits >> i & 1:
                np.copyto(register, value >> U32(i) & U32(1) != 0, where=mask)

    return step


@opcode("SHF")
def _shf(machine: State, instruction: Instruction) -> Step:
    """A word of {c, a} shifted by at most the size of the number; with W by the amount modulo that size."""
    modifiers = instruction.expect("L", "R", "U32", "S32", "U64", "S64", "HI", "W")
    write = put(machine, instruction.operands[0])
    a, amount, c = (integer(machine, instruction, text) for text in instruction.operands[1:])
    size = 64 if modifiers & {"U64", "S64"} else 32
    left, high, signed = "L" in modifiers, "HI" in modifiers, bool(modifiers & {"S32", "S64"})

    def step(mask: Array) -> None:
        shift = amount() & U32(size - 1) if "W" in modifiers else np.minimum(amount(), U32(size))
        shift = shift.astype(U64)
        # numpy leaves shifts by 64 undefined: two by half of it are not.
        half = shift >> U64(1)
        rest = shift - half
        whole = c().astype(U64) << U64(32) | a()
        if left:
            value = whole << half << rest
        elif signed:
            value = (whole.view(I64) >> half.view(I64) >> rest.view(I64)).view(U64)
        else:
            value = whole >> half >> rest
        write((value >> U64(32)).astype(U32) if high else (value & LOW).astype(U32), mask)

    return step


@opcode("PRMT")
def _prmt(machine: State, instruction: Instruction) -> Step:
    """Bytes of {b, a} by nibbles of the selector; a nibble's highest bit asks for eight copies of its byte's sign."""
    instruction.expect()
    write = put(machine, instruction.operands[0])
    a, selector, b = (integer(machine, instruction, text) for text in instruction.operands[1:])
    fixed = int(instruction.operands[2], 16) if instruction.operands[2].startswith("0x") else None

    def one_byte(whole: Array, nibble: Array) -> Array:
        byte = whole >> ((nibble & U64(7)) << U64(3)) & U64(0xFF)
        return np.where(nibble & U64(8) != 0, (byte >> U64(7)) * U64(0xFF), byte)

    def step(mask: Array) -> None:
        first, second = a(), b()
        if fixed is not None:
            value: Array | None = None
            for i in range(4):
                nibble = fixed >> 4 * i & 15
                source = first if nibble & 4 == 0 else second
                byte = source >> U32(8 * (nibble & 3)) & U32(0xFF)
                if nibble & 8:
                    byte = (byte >> U32(7)) * U32(0xFF)
                byte = byte << U32(8 * i)
                value = byte if value is None else value | byte
            assert value is not None
            write(value, mask)
            return
        whole = second.astype(U64) << U64(32) | first
        chosen = selector().astype(U64)
        total = np.zeros((1, 1), U64)
        for i in range(4):
            total = total | one_byte(whole, chosen >> U64(4 * i) & U64(15)) << U64(8 * i)
        write(total.astype(U32), mask)

    return step


@opcode("SEL")
def _sel(machine: State, instruction: Instruction) -> Step:
    instruction.expect()
    write = put(machine, instruction.operands[0])
    a, b = (integer(machine, instruction, text) for text in instruction.operands[1:3])
    which = predicate(machine, instruction.operands[3])
    return lambda mask: write(np.where(which(), a(), b()), mask)


def _lesser(modifiers: frozenset[str], a: Array, b: Array, least: Array) -> Array:
    if "U32" in modifiers:
        return np.where(least, np.minimum(a, b), np.maximum(a, b))
    x, y = a.view(I32), b.view(I32)
    return np.where(least, np.minimum(x, y), np.maximum(x, y)).view(U32)


@opcode("VIMNMX", "IMNMX")
def _vimnmx(machine: State, instruction: Instruction) -> Step:
    modifiers = instruction.expect("U32")
    write = put(machine, instruction.operands[0])
    a, b = (integer(machine, instruction, text) for text in instruction.operands[1:3])
    least = predicate(machine, instruction.operands[-1])
    return lambda mask: write(_lesser(modifiers, a(), b(), least()), mask)


@opcode("VIADDMNMX")
def _viaddmnmx(machine: State, instruction: Instruction) -> Step:
    modifiers = instruction.expect("U32")
    write = put(machine, instruction.operands[0])
    a, b, c = (integer(machine, instruction, text) for text in instruction.operands[1:4])
    least = predicate(machine, instruction.operands[-1])
    return lambda mask: write(_lesser(modifiers, a() + b(), c(), least()), mask)


ORDERED: dict[str, Callable[[Array, Array], Array]] = {
    "LT": np.less,
    "EQ": np.equal,
    "LE": np.less_equal,
    "GT": np.greater,
    "GE": np.greater_equal,
}
BOOLEAN: dict[str, Callable[[Array, Array], Array]] = {
    "AND": np.logical_and,
    "OR": np.logical_or,
    "XOR": np.logical_xor,
}


def set_predicates(
    machine: State, instruction: Instruction, compare: Callable[[], Array], other: str, joined: str
) -> Step:
    """P, Q = compare op other, !compare op other."""
    first, second = (put_predicate(machine, text) for text in instruction.operands[:2])
    with_other, join = predicate(machine, other), BOOLEAN[joined]

    def step(mask: Array) -> None:
        holds, also = compare(), with_other()
        one, two = join(holds, also), join(~holds, also)
        first(one, mask)
        second(two, mask)

    return step


@opcode("ISETP")
def _isetp(machine: State, instruction: Instruction) -> Step:
    """With EX the high words of two 64-bit numbers; the last predicate is what came of the low ones."""
    modifiers = instruction.expect("LT", "EQ", "LE", "GT", "NE", "GE", "AND", "OR", "XOR", "U32", "EX")
    kind, joined = instruction.modifiers[0], next(word for word in instruction.modifiers if word in BOOLEAN)
    a, b = (integer(machine, instruction, text) for text in instruction.operands[2:4])
    low = predicate(machine, instruction.operands[5]) if "EX" in modifiers else None
    unsigned = "U32" in modifiers

    def compare() -> Array:
        x, y = (a(), b()) if unsigned else (a().view(I32), b().view(I32))
        if kind == "NE":
            return (x != y) | low() if low is not None else x != y
        if low is None:
            return ORDERED[kind](x, y)
        if kind == "EQ":
            return (x == y) & low()
        strict = np.less if kind in ("LT", "LE") else np.greater
        return strict(x, y) | ((x == y) & low())

    return set_predicates(machine, instruction, compare, instruction.operands[4], joined)
