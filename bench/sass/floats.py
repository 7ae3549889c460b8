# SPDX-License-Identifier: Apache-2.0
"""Opcodes of float32 and float64, and conversions. Exact to the bit, except MUFU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bench.sass.integers import BOOLEAN, ORDERED, set_predicates
from bench.sass.memory import Array
from bench.sass.operands import (
    F32,
    F64,
    I64,
    LOW,
    OPCODES,
    U32,
    U64,
    Step,
    canonical,
    double,
    integer,
    opcode,
    predicate,
    put,
    put_double,
    put_predicate,
    put_single,
    put_wide,
    single,
    wide,
)
from bench.sass.program import Instruction
from bench.sass.state import State


def _float_compare(kind: str, x: Array, y: Array) -> Array:
    nan = np.isnan(x) | np.isnan(y)
    if kind == "NAN":
        return nan
    if kind == "NUM":
        return ~nan
    if kind in ("NE", "NEU"):
        return (x != y) & ~nan if kind == "NE" else (x != y) | nan
    if kind.endswith("U") and kind[:-1] in ORDERED:
        return ORDERED[kind[:-1]](x, y) | nan
    return ORDERED[kind](x, y)


_FLOAT_COMPARISONS = (*ORDERED, *(f"{kind}U" for kind in ORDERED), "NE", "NEU", "NAN", "NUM")


@opcode("FSETP")
def _fsetp(machine: State, instruction: Instruction) -> Step:
    modifiers = instruction.expect(*_FLOAT_COMPARISONS, *BOOLEAN, "FTZ")
    kind, joined = instruction.modifiers[0], next(word for word in instruction.modifiers if word in BOOLEAN)
    flush = "FTZ" in modifiers
    a, b = (single(machine, instruction, text, flush=flush) for text in instruction.operands[2:4])
    return set_predicates(machine, instruction, lambda: _float_compare(kind, a(), b()), instruction.operands[4], joined)


@opcode("DSETP")
def _dsetp(machine: State, instruction: Instruction) -> Step:
    """MAX and MIN, in code for fmax and fmin, set P where the first number is the one, Q where the second is NaN."""
    modifiers = instruction.expect(*_FLOAT_COMPARISONS, *BOOLEAN, "MAX", "MIN")
    kind, joined = instruction.modifiers[0], next(word for word in instruction.modifiers if word in BOOLEAN)
    a, b = (double(machine, instruction, text) for text in instruction.operands[2:4])
    other = instruction.operands[4]
    if not modifiers & {"MAX", "MIN"}:
        return set_predicates(machine, instruction, lambda: _float_compare(kind, a(), b()), other, joined)
    if (joined, other) != ("AND", "PT"):
        raise instruction.unsupported()
    first, second = (put_predicate(machine, text) for text in instruction.operands[:2])

    def step(mask: Array) -> None:
        x, y = a(), b()
        first(x > y if kind == "MAX" else x < y, mask)
        second(np.isnan(y), mask)

    return step


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


def _arithmetic(formula: Callable[..., Array]) -> Callable[[State, Instruction], Step]:
    """FADD, FMUL, FFMA: `formula` of float32 numbers and of the rounding."""

    def make(machine: State, instruction: Instruction) -> Step:
        flush, saturate, rounding = _float_modifiers(instruction)
        write = put_single(machine, instruction.operands[0])
        gets = [single(machine, instruction, text, flush=flush) for text in instruction.operands[1:]]

        def step(mask: Array) -> None:
            values = [get() for get in gets]
            value = formula(*values, rounding)
            if flush:
                value = np.where(np.abs(value) < F32(2.0**-126), np.copysign(F32(0), value), value)
            if saturate:
                value = np.where(np.isnan(value), F32(0), np.clip(value, F32(0), F32(1)))
            write(value, mask)

        return step

    return make


def _sum(a: Array, b: Array, rounding: str) -> Array:
    return fused_single(a, np.ones((1, 1), F32), b, rounding) if rounding else a + b


def _product(a: Array, b: Array, rounding: str) -> Array:
    return _rounded(a.astype(F64) * b, rounding) if rounding else a * b


OPCODES["FADD"] = _arithmetic(_sum)
OPCODES["FMUL"] = _arithmetic(_product)
OPCODES["FFMA"] = _arithmetic(fused_single)


def _double_arithmetic(formula: Callable[..., Array]) -> Callable[[State, Instruction], Step]:
    def make(machine: State, instruction: Instruction) -> Step:
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


OPCODES["DADD"] = _double_arithmetic(np.add)
OPCODES["DMUL"] = _double_arithmetic(np.multiply)
OPCODES["DFMA"] = _double_arithmetic(fused_double)


def _least(a: Array, b: Array, least: Array, nan: bool) -> Array:
    """The lesser or the greater; -0 is below +0. A number is taken before NaN, but with `nan` NaN before a number."""
    x, y = np.broadcast_arrays(a, b)
    zero = (x == 0) & (y == 0)
    first = np.where(zero, np.signbit(x), x < y)
    value = np.where(first == least, x, y)
    value = np.where(np.isnan(x), y, np.where(np.isnan(y), x, value))
    return np.where(np.isnan(x) | np.isnan(y), x.dtype.type(np.nan), value) if nan else value


@opcode("FMNMX")
def _fmnmx(machine: State, instruction: Instruction) -> Step:
    modifiers = instruction.expect("NAN", "FTZ")
    flush = "FTZ" in modifiers
    write = put_single(machine, instruction.operands[0])
    a, b = (single(machine, instruction, text, flush=flush) for text in instruction.operands[1:3])
    least = predicate(machine, instruction.operands[3])
    return lambda mask: write(_least(a(), b(), least(), "NAN" in modifiers), mask)


@opcode("FSEL")
def _fsel(machine: State, instruction: Instruction) -> Step:
    instruction.expect()
    write = put(machine, instruction.operands[0])
    a, b = (single(machine, instruction, text) for text in instruction.operands[1:3])
    which = predicate(machine, instruction.operands[3])

    def step(mask: Array) -> None:
        write(np.where(which(), a().view(U32), b().view(U32)), mask)

    return step


@opcode("MUFU")
def _mufu(machine: State, instruction: Instruction) -> Step:
    """Approximations on the hardware; here the correctly rounded functions (of RCP64H and RSQ64H the high word)."""
    instruction.expect("EX2", "RCP", "RSQ", "LG2", "SQRT", "RCP64H", "RSQ64H")
    kind = instruction.modifiers[0]
    if kind.endswith("64H"):
        target = put(machine, instruction.operands[0])
        high = integer(machine, instruction, instruction.operands[1])

        def of_high_word(mask: Array) -> None:
            value = (high().astype(U64) << U64(32)).view(F64)
            value = 1 / value if kind == "RCP64H" else 1 / np.sqrt(value)
            target((canonical(value, U64, 0x7FF8000000000000) >> U64(32)).astype(U32), mask)

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
def _i2f(machine: State, instruction: Instruction) -> Step:
    modifiers = instruction.expect("F32", "F64", "U64", "S64", *_INTEGERS, "RP", "RM", "RZ")
    rounding = next(iter(modifiers & {"RP", "RM", "RZ"}), "")
    to_double = "F64" in modifiers
    text = instruction.operands[1]
    if modifiers & {"U64", "S64"}:
        get_wide, is_signed = wide(machine, instruction, text), "S64" in modifiers
        if to_double:
            if rounding:
                raise instruction.unsupported()
            write_double = put_double(machine, instruction.operands[0])
            return lambda mask: write_double(get_wide().view(I64 if is_signed else U64).astype(F64), mask)
        if is_signed:
            raise instruction.unsupported()
        write = put_single(machine, instruction.operands[0])
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
def _f2i(machine: State, instruction: Instruction) -> Step:
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
def _frnd(machine: State, instruction: Instruction) -> Step:
    modifiers = instruction.expect("F64", "TRUNC", "FLOOR", "CEIL")
    rounding = next((word for word in instruction.modifiers if word in _WHOLE), "")
    if "F64" in modifiers:
        get, write = double(machine, instruction, instruction.operands[1]), put_double(machine, instruction.operands[0])
    else:
        get, write = single(machine, instruction, instruction.operands[1]), put_single(machine, instruction.operands[0])
    return lambda mask: write(_WHOLE[rounding](get()), mask)


@opcode("F2F")
def _f2f(machine: State, instruction: Instruction) -> Step:
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
def _f2fp(machine: State, instruction: Instruction) -> Step:
    """Two float32 to half types: the first into the high half, the second into the low one."""
    modifiers = instruction.expect("BF16", "F16", "F32", "PACK_AB")
    to_bits = bfloat16_bits if "BF16" in modifiers else half_bits
    write = put(machine, instruction.operands[0])
    high, low = (single(machine, instruction, text) for text in instruction.operands[1:])
    return lambda mask: write(to_bits(high()) << U32(16) | to_bits(low()), mask)


@opcode("HFMA2")
def _hfma2(machine: State, instruction: Instruction) -> Step:
    """Only as it loads constants: -RZ * RZ + (high, low)."""
    instruction.expect("MMA", "BF16_V2", "BF16")
    target, a, b, *halves = instruction.operands
    if (a, b) != ("-RZ", "RZ") or instruction.immediate is None or len(halves) != 2:
        raise instruction.unsupported()
    write, value = put(machine, target), np.full((1, 1), instruction.immediate, U32)
    return lambda mask: write(value, mask)


@opcode("HADD2")
def _hadd2(machine: State, instruction: Instruction) -> Step:
    """Only as it makes float32 of one half: -RZ + R1.H0_H0."""
    if instruction.modifiers != ("F32",) or instruction.operands[1] != "-RZ":
        raise instruction.unsupported()
    write, get = put_single(machine, instruction.operands[0]), integer(machine, instruction, instruction.operands[2])
    return lambda mask: write(get().astype(np.uint16).view(np.float16).astype(F32), mask)
