# SPDX-License-Identifier: Apache-2.0
"""What each opcode of sm_90 does to registers and memory, as steps over arrays [warps, 32]; see machine.py.

Semantics: NVIDIA documents the opcodes' names alone; these follow their PTX namesakes and what the results of kernels
confirm. Exact to the bit but for MUFU, whose approximations are replaced by correctly rounded functions.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.sass.memory import Array, MemoryFaultError, bits_of, distinct_per_warp, wavefronts_per_warp
from bench.sass.program import WARP, Instruction

if TYPE_CHECKING:
    from bench.sass.machine import Machine

Get = Callable[[], Array]
Put = Callable[[Array, Array], None]
Step = Callable[[Array], None]

U32, U64, I32, I64, F32, F64 = np.uint32, np.uint64, np.int32, np.int64, np.float32, np.float64
LOW = np.uint64(0xFFFFFFFF)
_ZERO, _TRUE, _FALSE = np.zeros((1, 1), U32), np.ones((1, 1), bool), np.zeros((1, 1), bool)
_CONSTANT = re.compile(r"c\[0x([0-9a-f]+)\]\s*\[(?:(R\d+|RZ|UR\d+|URZ)\+?)?(?:(-?)0x([0-9a-f]+))?\]")
_OPCODES: dict[str, Callable[[Machine, Instruction], Step]] = {}


def compile_step(machine: Machine, instruction: Instruction) -> Callable[[Array, Array], None]:
    """The instruction as a function of the active lanes [warps, 32] and of the warps [warps, 1] that they belong to."""
    make = _OPCODES.get(instruction.opcode)
    uniform = False
    if make is None and instruction.opcode.startswith("U"):  # the uniform twin of an opcode: once per warp
        make, uniform = _OPCODES.get(instruction.opcode[1:]), True
    if make is None:
        raise instruction.unsupported("unknown opcode")
    step = make(machine, instruction)
    guard = predicate(machine, instruction.guard) if instruction.guard else None

    def run(lanes: Array, warps: Array) -> None:
        mask = warps if uniform else lanes
        if guard is not None:
            mask = mask & guard()
        try:
            step(mask)
        except (MemoryFaultError, ValueError, TypeError) as error:
            raise type(error)(f"{machine.kernel.name}: {instruction.pc:#06x} {instruction.text}: {error}") from error

    return run


def opcode(*names: str) -> Callable[[Any], Any]:
    def register(make: Any) -> Any:
        for name in names:
            _OPCODES[name] = make
        return make

    return register


# ---- operands ---------------------------------------------------------------------------------------------------------


def predicate(machine: Machine, text: str) -> Get:
    """P0, !P0, PT, UP0 …"""
    negated, name = text.startswith("!"), text.lstrip("!")
    if name in ("PT", "UPT"):
        value = _FALSE if negated else _TRUE
        return lambda: value
    found = re.fullmatch(r"(U?)P(\d)", name)
    if not found:
        raise ValueError(f"expected a predicate, got {text}")
    register = (machine.uniform_predicates if found[1] else machine.predicates)[int(found[2])]
    return (lambda: ~register) if negated else (lambda: register)


def is_predicate(text: str) -> bool:
    return re.fullmatch(r"!?U?P[\dT]", text) is not None


def put_predicate(machine: Machine, text: str) -> Put:
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


def _register(machine: Machine, name: str, step: int = 0) -> Array | None:
    """A register of either file, `step` behind the one named; None if `name` names none."""
    if name in ("RZ", "URZ"):
        return _ZERO
    if found := re.fullmatch(r"(U?)R(\d+)", name):
        return (machine.uniform if found[1] else machine.registers)[int(found[2]) + step]
    return None


def _constant(machine: Machine, instruction: Instruction, text: str, dtype: Any) -> Get | None:
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


def integer(machine: Machine, instruction: Instruction, text: str) -> Get:
    """uint32 of a register, constant or immediate; `-` is the two's complement, `~` the one's, `|x|` the magnitude.

    `.B2` and `.H1` (also `.H1_H1`) choose a byte or a half.
    """
    found = re.fullmatch(r"([-~]?)(\|?)(.+?)(?:\.([BH])(\d)(?:_[BH]\d)?)?\|?", text)
    if re.fullmatch(r"-?0x[0-9a-f]+|-?\d+", text):
        return _fixed(np.full((1, 1), int(text, 0) & 0xFFFFFFFF, U32))
    assert found is not None
    sign, magnitude, name, part, number = found.groups()
    register = _register(machine, name)
    constant = _constant(machine, instruction, name, U32)
    if register is not None:
        get = _fixed(register)
    elif constant is not None:
        get = constant
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


def put(machine: Machine, text: str) -> Put:
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


def wide(machine: Machine, instruction: Instruction, text: str) -> Get:
    """uint64 of a pair of registers or of a constant; of an immediate, sign extended."""
    if re.fullmatch(r"-?0x[0-9a-f]+", text):
        return _fixed(np.full((1, 1), int(text, 16) & 0xFFFFFFFFFFFFFFFF, U64))
    name = text.removeprefix("-").removesuffix(".64")
    low = _register(machine, name)
    constant = _constant(machine, instruction, name, U64)
    if low is not None:
        get = _pair(low, low if low is _ZERO else _register(machine, name, 1))
    elif constant is not None:
        get = constant
    else:
        raise instruction.unsupported(f"operand {text}")
    return (lambda: ~get() + U64(1)) if text.startswith("-") else get


def _pair(low: Array, high: Array | None) -> Get:
    assert high is not None
    return lambda: high.astype(U64) << U64(32) | low


def put_wide(machine: Machine, text: str) -> Put:
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


def single(machine: Machine, instruction: Instruction, text: str, *, flush: bool = False) -> Get:
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


def double(machine: Machine, instruction: Instruction, text: str) -> Get:
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


def put_single(machine: Machine, text: str) -> Put:
    write = put(machine, text)
    return lambda value, mask: write(_canonical(value, U32, 0x7FFFFFFF), mask)


def put_double(machine: Machine, text: str) -> Put:
    write = put_wide(machine, text)
    return lambda value, mask: write(_canonical(value, U64, 0x7FF8000000000000), mask)


def _canonical(value: Array, bits: Any, nan: int) -> Array:
    """The bits of a float, all NaNs alike as the hardware gives them."""
    nans = np.isnan(value)
    seen = np.ascontiguousarray(value).view(bits)
    return np.where(nans, bits(nan), seen) if nans.any() else seen


# ---- integers ---------------------------------------------------------------------------------------------------------


def _unary(value: Callable[[Array], Array]) -> Callable[[Machine, Instruction], Step]:
    def make(machine: Machine, instruction: Instruction) -> Step:
        instruction.expect()
        write = put(machine, instruction.operands[0])
        get = integer(machine, instruction, instruction.operands[1])
        return lambda mask: write(value(get()), mask)

    return make


_OPCODES["IABS"] = _unary(lambda a: np.abs(a.view(I32)).view(U32))
_OPCODES["POPC"] = _unary(lambda a: sum((a >> U32(i) & U32(1) for i in range(32)), np.zeros_like(a)))
_OPCODES["BREV"] = _unary(lambda a: sum(((a >> U32(i) & U32(1)) << U32(31 - i) for i in range(32)), np.zeros_like(a)))


@opcode("FLO")
def _flo(machine: Machine, instruction: Instruction) -> Step:
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
def _mov(machine: Machine, instruction: Instruction) -> Step:
    instruction.expect("U32")
    write, get = put(machine, instruction.operands[0]), integer(machine, instruction, instruction.operands[1])
    return lambda mask: write(get(), mask)


@opcode("S2R", "S2UR", "CS2R")
def _special(machine: Machine, instruction: Instruction) -> Step:
    modifiers = instruction.expect("32")
    target, name = instruction.operands
    get = integer(machine, instruction, name)
    if instruction.opcode == "CS2R" and "32" not in modifiers:
        write_wide = put_wide(machine, target)
        return lambda mask: write_wide(get().astype(U64), mask)
    write = put(machine, target)
    return lambda mask: write(get(), mask)


@opcode("LDC")
def _ldc(machine: Machine, instruction: Instruction) -> Step:
    modifiers = instruction.expect("64", "S16", "U16", "U8", "S8")
    kind = next(iter(modifiers), "")
    dtype = {"": U32, "64": U64, "S16": np.int16, "U16": np.uint16, "U8": np.uint8, "S8": np.int8}[kind]
    get = _constant(machine, instruction, instruction.operands[1], dtype)
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


def _addend(machine: Machine, instruction: Instruction, text: str) -> Get:
    """uint64 that the adder sees: of -x the complement plus 1, whose carry counts as 'no borrow'."""
    if text.startswith("-") and not text.startswith("-0x"):
        inner = integer(machine, instruction, text[1:])
        return lambda: (~inner()).astype(U64) + U64(1)
    get = integer(machine, instruction, text)
    return lambda: get().astype(U64)


@opcode("IADD3")
def _iadd3(machine: Machine, instruction: Instruction) -> Step:
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
def _viadd(machine: Machine, instruction: Instruction) -> Step:
    instruction.expect()
    write = put(machine, instruction.operands[0])
    a, b = (integer(machine, instruction, text) for text in instruction.operands[1:])
    return lambda mask: write(a() + b(), mask)


@opcode("IMAD")
def _imad(machine: Machine, instruction: Instruction) -> Step:
    modifiers = instruction.expect("MOV", "IADD", "SHL", "U32", "WIDE", "HI", "X")
    target, written, rest = _carries(instruction)
    a, b = (integer(machine, instruction, text) for text in rest[:2])
    carries = [predicate(machine, text) for text in rest[3:]]
    if bool(carries) != ("X" in modifiers):
        raise instruction.unsupported("carry")
    unsigned = "U32" in modifiers
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
        if unsigned:
            product = a().astype(U64) * b()
        else:
            product = (a().view(I32).astype(I64) * b().view(I32)).view(U64)
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
def _lea(machine: Machine, instruction: Instruction) -> Step:
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
def _lop3(machine: Machine, instruction: Instruction) -> Step:
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
def _plop3(machine: Machine, instruction: Instruction) -> Step:
    instruction.expect("LUT")
    first, second, *inputs, lut, other_lut = instruction.operands
    puts = [(put_predicate(machine, first), int(lut, 16)), (put_predicate(machine, second), int(other_lut, 16))]
    a, b, c = (predicate(machine, text) for text in inputs)

    def step(mask: Array) -> None:
        values = [_table(table, a(), b(), c(), np.True_) for _, table in puts]
        for (write, _), value in zip(puts, values, strict=True):
            write(value, mask)

    return step


@opcode("SHF")
def _shf(machine: Machine, instruction: Instruction) -> Step:
    """A word of {c, a}, or of a or c alone, shifted; by no more than the word's size, or with W by it modulo that size."""
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
def _prmt(machine: Machine, instruction: Instruction) -> Step:
    """Bytes of {b, a} by four nibbles of the selector; a nibble's highest bit asks for eight copies of its byte's sign."""
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
def _sel(machine: Machine, instruction: Instruction) -> Step:
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
def _vimnmx(machine: Machine, instruction: Instruction) -> Step:
    modifiers = instruction.expect("U32")
    write = put(machine, instruction.operands[0])
    a, b = (integer(machine, instruction, text) for text in instruction.operands[1:3])
    least = predicate(machine, instruction.operands[-1])
    return lambda mask: write(_lesser(modifiers, a(), b(), least()), mask)


@opcode("VIADDMNMX")
def _viaddmnmx(machine: Machine, instruction: Instruction) -> Step:
    modifiers = instruction.expect("U32")
    write = put(machine, instruction.operands[0])
    a, b, c = (integer(machine, instruction, text) for text in instruction.operands[1:4])
    least = predicate(machine, instruction.operands[-1])
    return lambda mask: write(_lesser(modifiers, a() + b(), c(), least()), mask)


# ---- comparisons ------------------------------------------------------------------------------------------------------

_ORDERED: dict[str, Callable[[Array, Array], Array]] = {
    "LT": np.less,
    "EQ": np.equal,
    "LE": np.less_equal,
    "GT": np.greater,
    "GE": np.greater_equal,
}
_BOOLEAN: dict[str, Callable[[Array, Array], Array]] = {
    "AND": np.logical_and,
    "OR": np.logical_or,
    "XOR": np.logical_xor,
}


def _set_predicates(
    machine: Machine, instruction: Instruction, compare: Callable[[], Array], other: str, joined: str
) -> Step:
    """P, Q = compare op other, !compare op other."""
    first, second = (put_predicate(machine, text) for text in instruction.operands[:2])
    with_other, join = predicate(machine, other), _BOOLEAN[joined]

    def step(mask: Array) -> None:
        holds, also = compare(), with_other()
        one, two = join(holds, also), join(~holds, also)
        first(one, mask)
        second(two, mask)

    return step


@opcode("ISETP")
def _isetp(machine: Machine, instruction: Instruction) -> Step:
    """With EX the high words of two 64-bit numbers; the last predicate is what came of the low ones."""
    modifiers = instruction.expect("LT", "EQ", "LE", "GT", "NE", "GE", "AND", "OR", "XOR", "U32", "EX")
    kind, joined = instruction.modifiers[0], next(word for word in instruction.modifiers if word in _BOOLEAN)
    a, b = (integer(machine, instruction, text) for text in instruction.operands[2:4])
    low = predicate(machine, instruction.operands[5]) if "EX" in modifiers else None
    unsigned = "U32" in modifiers

    def compare() -> Array:
        x, y = (a(), b()) if unsigned else (a().view(I32), b().view(I32))
        if kind == "NE":
            return (x != y) | low() if low is not None else x != y
        if low is None:
            return _ORDERED[kind](x, y)
        if kind == "EQ":
            return (x == y) & low()
        strict = np.less if kind in ("LT", "LE") else np.greater
        return strict(x, y) | ((x == y) & low())

    return _set_predicates(machine, instruction, compare, instruction.operands[4], joined)


def _float_compare(kind: str, x: Array, y: Array) -> Array:
    nan = np.isnan(x) | np.isnan(y)
    if kind == "NAN":
        return nan
    if kind == "NUM":
        return ~nan
    if kind in ("NE", "NEU"):
        return (x != y) & ~nan if kind == "NE" else (x != y) | nan
    if kind.endswith("U") and kind[:-1] in _ORDERED:
        return _ORDERED[kind[:-1]](x, y) | nan
    return _ORDERED[kind](x, y)


_FLOAT_COMPARISONS = (*_ORDERED, *(f"{kind}U" for kind in _ORDERED), "NE", "NEU", "NAN", "NUM")


@opcode("FSETP")
def _fsetp(machine: Machine, instruction: Instruction) -> Step:
    modifiers = instruction.expect(*_FLOAT_COMPARISONS, *_BOOLEAN, "FTZ")
    kind, joined = instruction.modifiers[0], next(word for word in instruction.modifiers if word in _BOOLEAN)
    flush = "FTZ" in modifiers
    a, b = (single(machine, instruction, text, flush=flush) for text in instruction.operands[2:4])
    return _set_predicates(
        machine, instruction, lambda: _float_compare(kind, a(), b()), instruction.operands[4], joined
    )


@opcode("DSETP")
def _dsetp(machine: Machine, instruction: Instruction) -> Step:
    """MAX and MIN, in code for fmax and fmin, set P where the first number is the one, Q where the second is NaN."""
    modifiers = instruction.expect(*_FLOAT_COMPARISONS, *_BOOLEAN, "MAX", "MIN")
    kind, joined = instruction.modifiers[0], next(word for word in instruction.modifiers if word in _BOOLEAN)
    a, b = (double(machine, instruction, text) for text in instruction.operands[2:4])
    other = instruction.operands[4]
    if not modifiers & {"MAX", "MIN"}:
        return _set_predicates(machine, instruction, lambda: _float_compare(kind, a(), b()), other, joined)
    if (joined, other) != ("AND", "PT"):
        raise instruction.unsupported()
    first, second = (put_predicate(machine, text) for text in instruction.operands[:2])

    def step(mask: Array) -> None:
        x, y = a(), b()
        first(x > y if kind == "MAX" else x < y, mask)
        second(np.isnan(y), mask)

    return step


# ---- floats -----------------------------------------------------------------------------------------------------------


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def _round_to_odd(total: Array, error: Array) -> Array:
    """A float64 sum whose last bit says that it was rounded: rounding it again to fewer bits is then exact."""
    bits = total.view(I64)
    inexact = (error != 0) & (bits & 1 == 0) & np.isfinite(total) & np.isfinite(error)
    toward = np.where((error > 0) == (total > 0), 1, -1)
    return (bits + np.where(inexact, toward, 0)).view(F64)


def fused_single(a: Array, b: Array, c: Array, rounding: str = "") -> Array:
    """a b + c of float32, rounded once: to nearest, or toward -inf (RM), +inf (RP) or 0 (RZ)."""
    product, addend = a.astype(F64) * b, c.astype(F64)  # the product is exact
    total = product + addend
    if not rounding:
        # Rounding twice differs from rounding once only where the first one hits the middle of two float32.
        low = total.view(I64) & 0x1FFFFFFF
        if not ((low == 0x10000000).any() or (np.abs(total) < 2.0**-125).any()):
            return total.astype(F32)
    exact = _round_to_odd(*_two_sum(product, addend))
    exact = np.where(np.isfinite(exact), exact, total)
    return _rounded(exact, rounding)


def _rounded(exact: Array, rounding: str) -> Array:
    """float64 to float32."""
    near = exact.astype(F32)
    if rounding == "RM":
        return np.where(near > exact, np.nextafter(near, F32(-np.inf)), near)
    if rounding == "RP":
        return np.where(near < exact, np.nextafter(near, F32(np.inf)), near)
    if rounding == "RZ":
        return np.where(np.abs(near) > np.abs(exact), np.nextafter(near, F32(0)), near)
    return near


def _two_product(a: Array, b: Array) -> tuple[Array, Array]:
    """Dekker's exact product, for numbers well inside the range."""

    def split(x: Array) -> tuple[Array, Array]:
        big = F64(134217729.0) * x
        high = big - (big - x)
        return high, x - high

    product = a * b
    (a_high, a_low), (b_high, b_low) = split(a), split(b)
    return product, a_low * b_low - (((product - a_high * b_high) - a_low * b_high) - a_high * b_low)


def fused_double(a: Array, b: Array, c: Array) -> Array:
    """a b + c of float64, rounded once (Boldo and Melquiond), for products well inside the range."""
    product, low = _two_product(a, b)
    high, rest = _two_sum(c, low)
    total, error = _two_sum(product, high)
    exact = total + _round_to_odd(*_two_sum(rest, error))
    return np.where(np.isfinite(exact), exact, a * b + c)


def _float_modifiers(instruction: Instruction) -> tuple[bool, bool, str]:
    modifiers = instruction.expect("FTZ", "SAT", "RM", "RP", "RZ")
    return "FTZ" in modifiers, "SAT" in modifiers, next(iter(modifiers & {"RM", "RP", "RZ"}), "")


def _arithmetic(formula: Callable[..., Array], *, rounds: bool = False) -> Callable[[Machine, Instruction], Step]:
    """FADD, FMUL, FFMA: `formula` of float32; it takes the rounding if it `rounds`."""

    def make(machine: Machine, instruction: Instruction) -> Step:
        flush, saturate, rounding = _float_modifiers(instruction)
        if rounding and not rounds:
            raise instruction.unsupported(f"rounding {rounding}")
        write = put_single(machine, instruction.operands[0])
        gets = [single(machine, instruction, text, flush=flush) for text in instruction.operands[1:]]

        def step(mask: Array) -> None:
            values = [get() for get in gets]
            value = formula(*values, rounding) if rounds else formula(*values)
            if flush:
                value = np.where(np.abs(value) < F32(2.0**-126), np.copysign(F32(0), value), value)
            if saturate:
                value = np.where(np.isnan(value), F32(0), np.clip(value, F32(0), F32(1)))
            write(value, mask)

        return step

    return make


_OPCODES["FADD"] = _arithmetic(np.add)
_OPCODES["FMUL"] = _arithmetic(np.multiply)
_OPCODES["FFMA"] = _arithmetic(fused_single, rounds=True)


def _double_arithmetic(formula: Callable[..., Array]) -> Callable[[Machine, Instruction], Step]:
    def make(machine: Machine, instruction: Instruction) -> Step:
        rounding = next(iter(instruction.expect("RP", "RM")), "")
        write = put_double(machine, instruction.operands[0])
        gets = [double(machine, instruction, text) for text in instruction.operands[1:]]

        def step(mask: Array) -> None:
            values = [get() for get in gets]
            value = formula(*values)
            if rounding:  # in DMUL alone, where a quotient's last step looks whether it is exact
                if instruction.opcode != "DMUL":
                    raise instruction.unsupported(f"rounding {rounding}")
                error = _two_product(*values)[1]
                wrong = error > 0 if rounding == "RP" else error < 0
                value = np.where(wrong, np.nextafter(value, np.inf if rounding == "RP" else -np.inf), value)
            write(np.asarray(value, F64), mask)

        return step

    return make


_OPCODES["DADD"] = _double_arithmetic(np.add)
_OPCODES["DMUL"] = _double_arithmetic(np.multiply)
_OPCODES["DFMA"] = _double_arithmetic(fused_double)


def _least(a: Array, b: Array, least: Array, nan: bool) -> Array:
    """The lesser or the greater; -0 is below +0, and a number is taken before NaN, or with `nan` NaN before a number."""
    x, y = np.broadcast_arrays(a, b)
    zero = (x == 0) & (y == 0)
    first = np.where(zero, np.signbit(x), x < y)
    value = np.where(first == least, x, y)
    value = np.where(np.isnan(x), y, np.where(np.isnan(y), x, value))
    return np.where(np.isnan(x) | np.isnan(y), x.dtype.type(np.nan), value) if nan else value


@opcode("FMNMX")
def _fmnmx(machine: Machine, instruction: Instruction) -> Step:
    modifiers = instruction.expect("NAN", "FTZ")
    flush = "FTZ" in modifiers
    write = put_single(machine, instruction.operands[0])
    a, b = (single(machine, instruction, text, flush=flush) for text in instruction.operands[1:3])
    least = predicate(machine, instruction.operands[3])
    return lambda mask: write(_least(a(), b(), least(), "NAN" in modifiers), mask)


@opcode("FSEL")
def _fsel(machine: Machine, instruction: Instruction) -> Step:
    instruction.expect()
    write = put(machine, instruction.operands[0])
    a, b = (single(machine, instruction, text) for text in instruction.operands[1:3])
    which = predicate(machine, instruction.operands[3])

    def step(mask: Array) -> None:
        write(np.where(which(), a().view(U32), b().view(U32)), mask)

    return step


@opcode("MUFU")
def _mufu(machine: Machine, instruction: Instruction) -> Step:
    """Approximations on the hardware; here the correctly rounded functions (of RCP64H and RSQ64H the high word)."""
    instruction.expect("EX2", "RCP", "RSQ", "LG2", "SQRT", "RCP64H", "RSQ64H")
    kind = instruction.modifiers[0]
    if kind.endswith("64H"):
        target = put(machine, instruction.operands[0])
        high = integer(machine, instruction, instruction.operands[1])

        def of_high_word(mask: Array) -> None:
            value = (high().astype(U64) << U64(32)).view(F64)
            value = 1 / value if kind == "RCP64H" else 1 / np.sqrt(value)
            target((_canonical(value, U64, 0x7FF8000000000000) >> U64(32)).astype(U32), mask)

        return of_high_word
    functions = {
        "EX2": np.exp2,
        "RCP": lambda x: 1 / x,
        "RSQ": lambda x: 1 / np.sqrt(x),
        "LG2": np.log2,
        "SQRT": np.sqrt,
    }
    write = put_single(machine, instruction.operands[0])
    # Below the least normal number the hardware takes 0 and gives 0.
    get = single(machine, instruction, instruction.operands[1], flush=True)

    def step(mask: Array) -> None:
        value = functions[kind](get().astype(F64)).astype(F32)
        write(np.where(np.abs(value) < F32(2.0**-126), np.copysign(F32(0), value), value), mask)

    return step


# ---- conversions ------------------------------------------------------------------------------------------------------

_INTEGERS = {
    "U8": (8, False),
    "S8": (8, True),
    "U16": (16, False),
    "S16": (16, True),
    "U32": (32, False),
    "S32": (32, True),
}


def _to_float(value: Array, rounding: str) -> Array:
    """int64 or uint64 to float32, rounded once."""
    if value.dtype == U64:  # more bits than float64 holds: the low ones into a sticky one
        big = value >> U64(53) != 0
        value = np.where(big, value & ~U64(0x7FF) | (value & U64(0x7FF) != 0).astype(U64) << U64(11), value)
    return _rounded(value.astype(F64), rounding)


@opcode("I2F", "I2FP")
def _i2f(machine: Machine, instruction: Instruction) -> Step:
    modifiers = instruction.expect("F32", "F64", "U64", "S64", *_INTEGERS, "RP", "RM", "RZ")
    rounding = next(iter(modifiers & {"RP", "RM", "RZ"}), "")
    to_double = "F64" in modifiers
    text = instruction.operands[1]
    if modifiers & {"U64", "S64"}:
        if to_double:
            raise instruction.unsupported()
        get_wide, write = wide(machine, instruction, text), put_single(machine, instruction.operands[0])
        signed_wide = "S64" in modifiers
        if signed_wide:
            raise instruction.unsupported()
        return lambda mask: write(_to_float(get_wide(), rounding), mask)
    width, signed = _INTEGERS[next(iter(modifiers & set(_INTEGERS)), "S32")]
    get = integer(machine, instruction, text)
    put_double_to = put_double(machine, instruction.operands[0]) if to_double else None
    put_single_to = None if to_double else put_single(machine, instruction.operands[0])

    def step(mask: Array) -> None:
        value = get().astype(I64) & ((1 << width) - 1)
        if signed:
            value = value - ((value >> (width - 1)) << width)
        if put_double_to is not None:
            put_double_to(value.astype(F64), mask)
        elif put_single_to is not None:
            put_single_to(_to_float(value, rounding), mask)

    return step


@opcode("F2I")
def _f2i(machine: Machine, instruction: Instruction) -> Step:
    """Saturates; NaN gives 0, of 64 bits the highest bit alone."""
    modifiers = instruction.expect("F32", "F64", "U32", "S32", "U64", "S64", "TRUNC", "FLOOR", "CEIL", "NTZ", "FTZ")
    rounding = next((word for word in instruction.modifiers if word in _WHOLE), "")
    get = (double if "F64" in modifiers else single)(machine, instruction, instruction.operands[1])
    is_wide, unsigned = bool(modifiers & {"U64", "S64"}), bool(modifiers & {"U32", "U64"})
    write = (put_wide if is_wide else put)(machine, instruction.operands[0])
    bits = 64 if is_wide else 32
    least, most = (0, 2**bits - 1) if unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    kind: Any = (U64 if unsigned else I64) if is_wide else I64
    nan = 2 ** (bits - 1) if is_wide else 0

    def step(mask: Array) -> None:
        value = _WHOLE[rounding](get().astype(F64))
        inside = (value >= float(least)) & (value < float(most) + (0 if is_wide else 1))
        whole = np.where(inside, value, 0).astype(kind)
        whole = np.where(value < float(least), kind(least), np.where(inside, whole, kind(most)))
        result = np.where(np.isnan(value), U64(nan), whole.view(U64))
        write(result if is_wide else (result & LOW).astype(U32), mask)

    return step


_WHOLE: dict[str, Callable[[Array], Array]] = {"": np.rint, "TRUNC": np.trunc, "FLOOR": np.floor, "CEIL": np.ceil}


@opcode("FRND")
def _frnd(machine: Machine, instruction: Instruction) -> Step:
    modifiers = instruction.expect("F64", "TRUNC", "FLOOR", "CEIL")
    rounding = next((word for word in instruction.modifiers if word in _WHOLE), "")
    if "F64" in modifiers:
        get, write = double(machine, instruction, instruction.operands[1]), put_double(machine, instruction.operands[0])
    else:
        get, write = single(machine, instruction, instruction.operands[1]), put_single(machine, instruction.operands[0])
    return lambda mask: write(_WHOLE[rounding](get()), mask)


@opcode("F2F")
def _f2f(machine: Machine, instruction: Instruction) -> Step:
    instruction.expect("F32", "F64")
    if instruction.modifiers == ("F64", "F32"):
        get, write = single(machine, instruction, instruction.operands[1]), put_double(machine, instruction.operands[0])
        return lambda mask: write(get().astype(F64), mask)
    if instruction.modifiers == ("F32", "F64"):
        get, write = double(machine, instruction, instruction.operands[1]), put_single(machine, instruction.operands[0])
        return lambda mask: write(get().astype(F32), mask)
    raise instruction.unsupported()


def bfloat16_bits(value: Array) -> Array:
    """float32 to the bits of the nearest bfloat16, as uint32."""
    bits = np.ascontiguousarray(value, F32).view(U32)
    rounded = (bits + U32(0x7FFF) + (bits >> U32(16) & U32(1))) >> U32(16)
    return np.where(np.isnan(value), U32(0x7FFF), rounded)


def half_bits(value: Array) -> Array:
    """float32 to the bits of the nearest float16, as uint32."""
    return np.where(np.isnan(value), U32(0x7FFF), value.astype(np.float16).view(np.uint16).astype(U32))


@opcode("F2FP")
def _f2fp(machine: Machine, instruction: Instruction) -> Step:
    """Two float32 to half types: the first into the high half, the second into the low one."""
    modifiers = instruction.expect("BF16", "F16", "F32", "PACK_AB")
    to_bits = bfloat16_bits if "BF16" in modifiers else half_bits
    write = put(machine, instruction.operands[0])
    high, low = (single(machine, instruction, text) for text in instruction.operands[1:])
    return lambda mask: write(to_bits(high()) << U32(16) | to_bits(low()), mask)


@opcode("HFMA2")
def _hfma2(machine: Machine, instruction: Instruction) -> Step:
    """Only as it loads constants: -RZ * RZ + (high, low)."""
    instruction.expect("MMA", "BF16_V2", "BF16")
    target, a, b, *halves = instruction.operands
    if (a, b) != ("-RZ", "RZ") or instruction.immediate is None or len(halves) != 2:
        raise instruction.unsupported()
    write, value = put(machine, target), np.full((1, 1), instruction.immediate, U32)
    return lambda mask: write(value, mask)


# ---- between lanes ----------------------------------------------------------------------------------------------------


@opcode("SHFL")
def _shfl(machine: Machine, instruction: Instruction) -> Step:
    modifiers = instruction.expect("DOWN", "UP", "BFLY", "IDX")
    kind = next(iter(modifiers))
    put_inside, write = put_predicate(machine, instruction.operands[0]), put(machine, instruction.operands[1])
    value, by, clamp = (integer(machine, instruction, text) for text in instruction.operands[2:])
    lanes = np.arange(WARP, dtype=np.int64)[None]

    def step(mask: Array) -> None:
        shape = mask.shape
        offset, limits = by().astype(I64) & 31, clamp().astype(I64)
        segment, last = limits >> 8 & 31, limits & 31
        bound = (lanes & segment) | (last & ~segment)
        source = {
            "DOWN": lambda: lanes + offset,
            "UP": lambda: lanes - offset,
            "BFLY": lambda: lanes ^ offset,
            "IDX": lambda: (lanes & segment) | (offset & ~segment),
        }[kind]()
        inside = source >= bound if kind == "UP" else source <= bound
        source = np.broadcast_to(np.where(inside, source, lanes), shape)
        asked = mask & inside
        if (asked & ~np.take_along_axis(mask, source & 31, axis=1)).any():
            raise instruction.unsupported("a lane reads from one that is not active")
        moved = np.take_along_axis(np.broadcast_to(value(), shape), source & 31, axis=1)
        write(moved, mask)
        put_inside(np.broadcast_to(inside, shape), mask)

    return step


@opcode("VOTE", "VOTEU")
def _vote(machine: Machine, instruction: Instruction) -> Step:
    """`VOTE.ANY R0, PT, P1`: the lanes for which P1 holds, and whether it does in any (ALL: every) active one."""
    modifiers = instruction.expect("ANY", "ALL")
    operands = list(instruction.operands)
    write = None if is_predicate(operands[0]) else put(machine, operands.pop(0))
    put_result, voted = put_predicate(machine, operands[0]), predicate(machine, operands[1])

    def step(mask: Array) -> None:
        holds = mask & voted()
        result = (holds | ~mask).all(1, keepdims=True) if "ALL" in modifiers else holds.any(1, keepdims=True)
        ballot = bits_of(np.broadcast_to(holds, (machine.warps, WARP)))[:, None]
        put_result(result, mask)
        if write is not None:
            write(ballot, mask)

    return step


@opcode("R2UR")
def _r2ur(machine: Machine, instruction: Instruction) -> Step:
    instruction.expect()
    target, get = instruction.operands[0], integer(machine, instruction, instruction.operands[-1])
    write = put(machine, target)

    def step(mask: Array) -> None:
        value = np.broadcast_to(get(), mask.shape)
        chosen = np.take_along_axis(value, mask.argmax(1)[:, None], axis=1)
        if (mask & (value != chosen)).any():
            raise instruction.unsupported("lanes have different values")
        write(chosen, mask)

    return step


@opcode("NOP", "ENDCOLLECTIVE", "YIELD", "MEMBAR", "ERRBAR", "CCTL", "DEPBAR", "LDGDEPBAR")
def _nothing(machine: Machine, instruction: Instruction) -> Step:
    return lambda mask: None


# ---- memory -----------------------------------------------------------------------------------------------------------

_SIZES = {"64": 8, "128": 16, "U8": 1, "S8": 1, "U16": 2, "S16": 2}
_HINTS = ("E", "CONSTANT", "STRONG", "GPU", "SYS", "WEAK", "EF", "EL", "EN", "LU", "NA")


def _address(machine: Machine, instruction: Instruction, text: str) -> Get:
    """uint64 of `[R2.64+0x10]`, `desc[UR4][R2.64]`, `[R3+UR4+0x8]`."""
    inside = text[text.rindex("[") + 1 : -1]
    parts: list[Get] = []
    for part in re.split(r"\+", inside):
        if part.endswith(".64"):
            parts.append(wide(machine, instruction, part))
        elif part.startswith(("0x", "-0x")):
            offset = np.full((1, 1), int(part, 16) & 0xFFFFFFFFFFFFFFFF, U64)
            parts.append(lambda offset=offset: offset)
        else:
            name, _, scale = part.partition(".X")
            get = integer(machine, instruction, name)
            factor = U64(int(scale or 1))
            parts.append(lambda get=get, factor=factor: get().astype(U64) * factor)

    def total() -> Array:
        address = parts[0]()
        for part in parts[1:]:
            address = address + part()
        return address

    return total


def _places(machine: Machine, instruction: Instruction, address: Array, size: int, mask: Array) -> tuple[Array, Array]:
    """The memory, and where in it each lane's access begins (bytes); counts what the access takes."""
    address = np.broadcast_to(address, mask.shape)
    rows = mask.any(1)
    count = machine.counts.memory
    kind = "load" if instruction.opcode.startswith("LD") else "store"
    if instruction.opcode not in ("LDS", "STS", "ATOMS"):
        places = machine.memory.offsets(address, size, mask)
        for unit, shift in (("sectors", U64(5)), ("lines", U64(7))):
            count[f"global {kind} {unit}"] += int(distinct_per_warp(address[rows] >> shift, mask[rows]).sum())
        return machine.memory.arena, places
    address = address & LOW
    bad = mask & ((address + U64(size) > U64(machine.shared_bytes)) | (address % U64(size) != 0))
    if bad.any():
        raise MemoryFaultError(f"{size} bytes at {int(address[bad][0]):#x} of {machine.shared_bytes:#x} shared ones")
    count[f"shared {kind} wavefronts"] += int(wavefronts_per_warp(address[rows], size, mask[rows]).sum())
    own = machine.block_of_warp.astype(U64)[:, None] * U64(machine.shared_bytes)
    return machine.shared, np.where(mask, own + address, U64(0))


@opcode("LDG", "LD", "LDS")
def _load(machine: Machine, instruction: Instruction) -> Step:
    modifiers = instruction.expect(*_SIZES, *_HINTS)
    kind = next(iter(modifiers & set(_SIZES)), "")
    size = _SIZES.get(kind, 4)
    target, where = instruction.operands[0], instruction.operands[-1]
    if len(instruction.operands) != 2:
        raise instruction.unsupported()
    get = _address(machine, instruction, where)
    names = [target] if size <= 4 or target == "RZ" else [f"R{int(target[1:]) + i}" for i in range(size // 4)]
    writes = [put(machine, name) for name in names]
    dtype = {"U8": np.uint8, "S8": np.int8, "U16": np.uint16, "S16": np.int16}.get(kind, U32)

    def step(mask: Array) -> None:
        mask = np.broadcast_to(mask, (machine.warps, WARP))
        memory, places = _places(machine, instruction, get(), size, mask)
        words = memory[: memory.size // 16 * 16].view(dtype)
        for i, write in enumerate(writes):
            value = words[places // U64(np.dtype(dtype).itemsize) + U64(i)]
            write(value.astype(I32).view(U32) if dtype != U32 else value, mask)

    return step


@opcode("STG", "ST", "STS")
def _store(machine: Machine, instruction: Instruction) -> Step:
    modifiers = instruction.expect(*_SIZES, *_HINTS)
    kind = next(iter(modifiers & set(_SIZES)), "")
    size = _SIZES.get(kind, 4)
    where, source = instruction.operands
    get = _address(machine, instruction, where)
    names = [source] if size <= 4 or source == "RZ" else [f"R{int(source[1:]) + i}" for i in range(size // 4)]
    values = [integer(machine, instruction, name) for name in names]
    dtype = {1: np.uint8, 2: np.uint16}.get(size, U32)

    def step(mask: Array) -> None:
        mask = np.broadcast_to(mask, (machine.warps, WARP))
        memory, places = _places(machine, instruction, get(), size, mask)
        words = memory[: memory.size // 16 * 16].view(dtype)
        at = places[mask] // U64(np.dtype(dtype).itemsize)
        for i in range(max(1, size // 4)):
            value = np.broadcast_to(values[i if len(values) > 1 else 0](), mask.shape)
            words[at + U64(i)] = value[mask].astype(dtype)

    return step
