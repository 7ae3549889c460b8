# SPDX-License-Identifier: Apache-2.0
"""Opcodes that move data between lanes and to and from memory, and the way to those of all kinds.

NVIDIA documents the opcodes' names alone; what they do follows their PTX namesakes, and the results of kernels confirm
it.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from bench.sass import floats, integers  # noqa: F401  they enter their opcodes into the table
from bench.sass.memory import Array, MemoryFaultError, bits_of, distinct_per_warp, wavefronts_per_warp
from bench.sass.operands import (
    I32,
    I64,
    LOW,
    OPCODES,
    U32,
    U64,
    Get,
    Step,
    integer,
    is_predicate,
    opcode,
    predicate,
    put,
    put_predicate,
    wide,
)
from bench.sass.program import WARP, Instruction
from bench.sass.state import State


def compile_step(machine: State, instruction: Instruction) -> Callable[[Array, Array], None]:
    """The instruction as a function of the active lanes [warps, 32] and of the warps [warps, 1] that they belong to."""
    make = OPCODES.get(instruction.opcode)
    uniform = False
    if make is None and instruction.opcode.startswith("U"):  # the uniform twin of an opcode: once per warp
        make, uniform = OPCODES.get(instruction.opcode[1:]), True
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


@opcode("SHFL")
def _shfl(machine: State, instruction: Instruction) -> Step:
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
def _vote(machine: State, instruction: Instruction) -> Step:
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


@opcode("MATCH")
def _match(machine: State, instruction: Instruction) -> Step:
    """The active lanes that have the same value as this one."""
    if instruction.modifiers != ("ANY",):
        raise instruction.unsupported()
    write, get = put(machine, instruction.operands[0]), integer(machine, instruction, instruction.operands[1])

    def step(mask: Array) -> None:
        value = np.broadcast_to(get(), mask.shape)
        same = (value[:, :, None] == value[:, None, :]) & mask[:, None, :]
        write(bits_of(same.reshape(-1, WARP)).reshape(mask.shape), mask)

    return step


@opcode("REDUX")
def _redux(machine: State, instruction: Instruction) -> Step:
    """One number out of those of the active lanes, into a uniform register."""
    modifiers = instruction.expect("SUM", "MIN", "MAX", "AND", "OR", "XOR", "S32")
    kind = next(iter(modifiers - {"S32"}), "AND")
    write, get = put(machine, instruction.operands[0]), integer(machine, instruction, instruction.operands[1])
    dtype = I32 if "S32" in modifiers else U32
    combine, neutral = {
        "SUM": (np.add, 0),
        "MIN": (np.minimum, np.iinfo(dtype).max),
        "MAX": (np.maximum, np.iinfo(dtype).min),
        "AND": (np.bitwise_and, np.iinfo(U32).max),
        "OR": (np.bitwise_or, 0),
        "XOR": (np.bitwise_xor, 0),
    }[kind]

    def step(mask: Array) -> None:
        value = np.where(mask, np.broadcast_to(get(), mask.shape).view(dtype), dtype(neutral))
        write(combine.reduce(value, axis=1, keepdims=True, dtype=dtype).view(U32), mask)

    return step


@opcode("R2UR")
def _r2ur(machine: State, instruction: Instruction) -> Step:
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


# Order between blocks and launches: here one instruction is over before the next begins.
@opcode("NOP", "ENDCOLLECTIVE", "YIELD", "MEMBAR", "ERRBAR", "CGAERRBAR", "CCTL", "DEPBAR", "ACQBULK", "PREEXIT")
def _nothing(machine: State, instruction: Instruction) -> Step:
    return lambda mask: None


_SIZES = {"64": 8, "128": 16, "U8": 1, "S8": 1, "U16": 2, "S16": 2}
LINES_PER_LOOKUP = 4
_HINTS = ("E", "CONSTANT", "STRONG", "GPU", "SYS", "WEAK", "EF", "EL", "EN", "LU", "NA")


def _address(machine: State, instruction: Instruction, text: str) -> Get:
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


def _places(machine: State, instruction: Instruction, address: Array, size: int, mask: Array) -> tuple[Array, Array]:
    """The memory, and where in it each lane's access begins (bytes); counts what the access takes."""
    address = np.broadcast_to(address, mask.shape)
    rows = mask.any(1)
    count = machine.counts.memory
    kind = "load" if instruction.opcode.startswith("LD") else "store"
    if instruction.opcode not in ("LDS", "STS", "ATOMS"):
        places = machine.memory.offsets(address, size, mask)
        sectors, lines = (distinct_per_warp(address[rows] >> shift, mask[rows]) for shift in (U64(5), U64(7)))
        count[f"global {kind} sectors"] += int(sectors.sum())
        count[f"global {kind} lines"] += int(lines.sum())
        count[f"global {kind} lookups"] += int((-(-lines // LINES_PER_LOOKUP)).sum())
        return machine.memory.arena, places
    address = address & LOW
    bad = mask & ((address + U64(size) > U64(machine.shared_bytes)) | (address % U64(size) != 0))
    if bad.any():
        raise MemoryFaultError(f"{size} bytes at {int(address[bad][0]):#x} of {machine.shared_bytes:#x} shared ones")
    count[f"shared {kind} wavefronts"] += int(wavefronts_per_warp(address[rows], size, mask[rows]).sum())
    own = machine.block_of_warp.astype(U64)[:, None] * U64(machine.shared_bytes)
    return machine.shared, np.where(mask, own + address, U64(0))


@opcode("LDG", "LD", "LDS")
def _load(machine: State, instruction: Instruction) -> Step:
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
def _store(machine: State, instruction: Instruction) -> Step:
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


_ATOMIC: dict[str, Callable[[int, int], int]] = {
    "ADD": lambda old, by: old + by,
    "INC": lambda old, by: 0 if old >= by else old + 1,
    "MIN": min,
    "MAX": max,
    "AND": lambda old, by: old & by,
    "OR": lambda old, by: old | by,
    "XOR": lambda old, by: old ^ by,
    "EXCH": lambda old, by: by,
}


@opcode("ATOMG", "ATOMS", "RED")
def _atomic(machine: State, instruction: Instruction) -> Step:
    """uint32 in memory, lane after lane: `ATOMG.E.ADD PT, R0, desc[UR4][R2.64], R5`; RED has no result."""
    modifiers = instruction.expect(*_ATOMIC, *_HINTS, "U32")
    combine = _ATOMIC[next(iter(modifiers & set(_ATOMIC)))]
    operands = [text for text in instruction.operands if not is_predicate(text)]
    write = None if instruction.opcode == "RED" else put(machine, operands.pop(0))
    get, amount = _address(machine, instruction, operands[0]), integer(machine, instruction, operands[1])

    def step(mask: Array) -> None:
        mask = np.broadcast_to(mask, (machine.warps, WARP))
        memory, places = _places(machine, instruction, get(), 4, mask)
        words, by = memory.view(U32), np.broadcast_to(amount(), mask.shape)
        before = np.zeros(mask.shape, U32)
        for lane in zip(*np.nonzero(mask), strict=True):
            at = int(places[lane]) // 4
            before[lane] = words[at]
            words[at] = combine(int(words[at]), int(by[lane])) & 0xFFFFFFFF
        if write is not None:
            write(before, mask)

    return step
