# SPDX-License-Identifier: Apache-2.0
"""Runs the machine code of compiled kernels (SASS, as `cuobjdump` prints it) on the CPU, and counts what it issues.

No static walk through a kernel knows how often its loops turn and which lanes branch; this interpreter has real inputs.
It is functional, not a model of time: warps are executed instruction by instruction with their active lanes, diverge at
branches and meet again at BSYNC as on the hardware, so the instructions that each warp issues are exact. All warps of a
launch that stand at the same instruction are executed at once, as arrays [warps, 32]. What an opcode does stands in
sass_instructions.py; an opcode or modifier that is unknown there is an error.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import struct
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

WARP = 32
PARAMETERS = 0x210  # where a kernel's parameters begin in constant bank 0 on sm_90
SHARED_BASE = 0x400  # the first KiB of a block's shared memory is the system's on sm_90
IDLE = np.iinfo(np.int64).max  # the pc of a warp that has no group of lanes to run
STEPS = 2_000_000  # of the whole machine, before a kernel counts as endless


class UnsupportedInstructionError(NotImplementedError):
    """An opcode, modifier or operand that the interpreter does not know."""


class MemoryFaultError(IndexError):
    """An access outside the buffers, or one that is not aligned."""


class DeadlockError(RuntimeError):
    """Lanes wait for each other for ever, or a kernel does not end."""


# ---- programs ---------------------------------------------------------------------------------------------------------


class Instruction(NamedTuple):
    """`@P0 IADD3.X R1, R2, 0x4, RZ` at `pc` (bytes from the kernel's start).

    `immediate`: the 32 bits that the encoding has for one, as the text of a float may not hold them all (+QNAN).
    """

    pc: int
    guard: str
    opcode: str
    modifiers: tuple[str, ...]
    operands: tuple[str, ...]
    text: str
    immediate: int | None = None

    def unsupported(self, why: str = "") -> UnsupportedInstructionError:
        return UnsupportedInstructionError(f"{self.pc:#06x} {self.text}{': ' if why else ''}{why}")

    def expect(self, *allowed: str) -> frozenset[str]:
        """The modifiers; raises if one is not in `allowed`."""
        if unknown := [word for word in self.modifiers if word not in allowed]:
            raise self.unsupported(f"unknown modifier {unknown[0]}")
        return frozenset(self.modifiers)


@dataclass
class Kernel:
    """The code of one kernel and what its launch needs."""

    name: str
    instructions: list[Instruction]
    threads: int = WARP  # of a block: those of __launch_bounds__
    parameter_bytes: int = 0
    shared_bytes: int = SHARED_BASE  # static, the system's included


_LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;\s*(?:/\*\s*0x([0-9a-f]{16})\s*\*/)?")
_OPERANDS = re.compile(r",\s*(?![^\[]*\])")


def parse(text: str) -> list[Instruction]:
    """Instructions out of the lines of `cuobjdump -sass`, or of hand-written ones such as `/*0000*/ MOV R0, R1 ;`."""
    instructions = []
    for line in text.splitlines():
        if not (found := _LINE.match(line)):
            continue
        pc, body, encoding = int(found[1], 16), re.sub(r"\s+", " ", found[2]), found[3]
        guard = ""
        words = body
        if words.startswith("@"):
            guard, words = words[1:].split(" ", 1)
        head, _, rest = words.partition(" ")
        opcode, *modifiers = head.split(".")
        rest = rest.replace(".reuse", "").strip()
        if opcode == "RET":  # RET.REL.NODEC R4 0x0
            rest = rest.replace(" ", ", ")
        operands = tuple(word.strip() for word in _OPERANDS.split(rest)) if rest else ()
        immediate = int(encoding, 16) >> 32 if encoding else None
        instructions.append(Instruction(pc, guard, opcode, tuple(modifiers), operands, body, immediate))
    return instructions


def find_tool(name: str) -> str:
    """`cuobjdump` or `nvdisasm`: of the CUDA toolkit, of triton, or of the package nvidia-cuda-<name>.

    Raises:
        FileNotFoundError: it is in none of these places.
    """
    folders: list[Path | None] = [None, Path("/usr/local/cuda/bin")]
    for package, inside in (("triton", "backends/nvidia/bin"), ("nvidia", "cu13/bin"), ("nvidia", "cuda_" + name)):
        if (spec := importlib.util.find_spec(package)) is not None:
            folders += [Path(parent) / inside for parent in spec.submodule_search_locations or ()]
    for folder in folders:
        if found := shutil.which(name, path=folder and str(folder)):
            return found
    raise FileNotFoundError(f"no {name} on the PATH, in /usr/local/cuda/bin, in triton, or in nvidia-cuda-{name}")


def read_kernels(library: Path, architecture: str, wanted: re.Pattern[str]) -> dict[str, Kernel]:
    """The kernels of `library` built for `architecture` ("sm_90") whose mangled names match `wanted`, by these names.

    Raises:
        FileNotFoundError: there is no cuobjdump or no nvdisasm. subprocess.SubprocessError: it failed.
        ValueError: the library has no code for `architecture`.
    """
    cuobjdump, nvdisasm = find_tool("cuobjdump"), find_tool("nvdisasm")
    kernels: dict[str, Kernel] = {}
    with tempfile.TemporaryDirectory() as folder:
        command = [cuobjdump, "--extract-elf", f".{architecture}.", str(library.resolve())]
        subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=True)
        cubins = sorted(Path(folder).glob("*.cubin"))
        if not cubins:
            raise ValueError(f"{library} has no code for {architecture}")
        for cubin in cubins:
            sections = _sections(cubin.read_bytes())
            names = [name.removeprefix(".text.") for name in sections if name.startswith(".text.")]
            if not any(wanted.search(name) for name in names):
                continue
            # cuobjdump calls nvdisasm by its name, and knows the addresses that nvdisasm alone prints as labels.
            path = os.pathsep.join((str(Path(nvdisasm).parent), os.environ.get("PATH", "")))
            command = [cuobjdump, "--dump-sass", str(cubin)]
            text = subprocess.run(
                command, capture_output=True, text=True, timeout=120, check=True, env={**os.environ, "PATH": path}
            ).stdout
            for part in re.split(r"^\s*Function : ", text, flags=re.MULTILINE)[1:]:
                name, _, body = part.partition("\n")
                if wanted.search(name):
                    kernels[name] = _kernel(name, body, sections)
    return kernels


def _kernel(name: str, body: str, sections: dict[str, bytes]) -> Kernel:
    """The code, and what .nv.info.<name> says of its launch."""
    kernel = Kernel(name, parse(body))
    info = sections.get(f".nv.info.{name}", b"")
    at = 0
    while at + 4 <= len(info):
        form, attribute, value = struct.unpack_from("<BBH", info, at)
        at += 4
        if form == 4:  # `value` bytes follow
            if attribute == 0x05:
                kernel.threads = struct.unpack_from("<I", info, at)[0]
            at += value
        elif attribute == 0x19:
            kernel.parameter_bytes = value
    kernel.shared_bytes = max(SHARED_BASE, len(sections.get(f".nv.shared.{name}", b"")))
    return kernel


def _sections(elf: bytes) -> dict[str, bytes]:
    """The sections of a 64-bit ELF file by name; those without bytes in the file as zeros."""
    table, size, count, names_at = *struct.unpack_from("<Q", elf, 0x28), *struct.unpack_from("<HHH", elf, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", elf, table + i * size) for i in range(count)]
    names = headers[names_at]
    sections = {}
    for name, kind, _, _, start, length in headers:
        begin = names[4] + name
        text = elf[begin : elf.index(b"\0", begin)].decode()
        sections[text] = bytes(length) if kind == 8 else elf[start : start + length]
    return sections


# ---- memory -----------------------------------------------------------------------------------------------------------


class Memory:
    """Global memory: buffers at made-up addresses, 256-byte aligned, with gaps between them that no access may touch.

    They lie across a multiple of 4 GiB, so that a carry lost in 64-bit address arithmetic is seen.
    """

    BASE = 0x7_FFFF_0000

    def __init__(self) -> None:
        self._parts: list[Array] = []
        self._end = 256
        self._places: list[tuple[int, int]] = []
        self._arena: Array | None = None
        self._valid: Array | None = None

    def add(self, array: Array) -> int:
        """Copies an array in; returns its address."""
        data = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
        start = self._end
        self._parts.append(data)
        self._places.append((start, data.size))
        self._end = (start + data.size + 511) // 256 * 256
        return self.BASE + start

    def read(self, address: int, dtype: Any, shape: Sequence[int]) -> Array:
        """The buffer at `address` as it is now."""
        start, size = address - self.BASE, int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self.arena[start : start + size].copy().view(dtype).reshape(shape)

    @property
    def arena(self) -> Array:
        if self._arena is None:
            self._arena = np.zeros(self._end, np.uint8)
            self._valid = np.zeros(self._end, bool)
            for (start, size), data in zip(self._places, self._parts, strict=True):
                self._arena[start : start + size] = data
                self._valid[start : start + size] = True
        return self._arena

    def offsets(self, address: Array, size: int, mask: Array) -> Array:
        """Places in the arena of accesses of `size` bytes, 0 in lanes that are not in `mask`."""
        arena = self.arena
        assert self._valid is not None
        offset = np.where(mask, address - np.uint64(self.BASE), np.uint64(256))
        known = offset < np.uint64(arena.size - size)
        if known.all():
            known = self._valid[offset] & self._valid[offset + np.uint64(size - 1)]
        bad = mask & (~known | (offset % np.uint64(size) != 0))
        if bad.any():
            raise MemoryFaultError(f"{size} bytes at {int(np.broadcast_to(address, bad.shape)[bad][0]):#x}")
        return np.where(mask, offset, np.uint64(0))


class Access(NamedTuple):
    """What the memory instructions of a launch asked for: instructions per warp, and what these take to serve."""

    requests: int = 0
    sectors: int = 0  # global: 32-byte pieces, per request
    lines: int = 0  # global: 128-byte lines, per request
    wavefronts: int = 0  # shared: passes over the 32 banks

    def __add__(self, other: tuple[int, ...]) -> Access:  # type: ignore[override]
        return Access(*(a + b for a, b in zip(self, other, strict=True)))


@dataclass
class Counts:
    """What a launch has issued: warp instructions by opcode (modifiers included), and its memory accesses by kind."""

    instructions: Counter[str] = field(default_factory=Counter)
    access: dict[str, Access] = field(default_factory=dict)  # "global load", "global store", "shared load", …
    active: int = 0  # lanes, over all instructions

    @property
    def total(self) -> int:
        return sum(self.instructions.values())


def distinct_per_warp(keys: Array, mask: Array) -> Array:
    """How many different keys the lanes in `mask` [warps, lanes] have, per warp."""
    if not mask.shape[0]:
        return np.zeros(0, np.int64)
    big = np.iinfo(np.int64).max
    ordered = np.sort(np.where(mask, keys.astype(np.int64), big), axis=1)
    new = np.ones_like(mask)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    return (new & (ordered != big)).sum(1)


def wavefronts_per_warp(address: Array, size: int, mask: Array) -> Array:
    """Passes over the banks that a shared access of `size` bytes per lane takes, per warp.

    A pass serves one word of each of 32 banks to all who want it; 8- and 16-byte accesses go by halves and quarters of
    a warp (that the hardware does no better is inferred).
    """
    parts = max(1, size // 4)
    lanes = WARP // parts
    warps = mask.shape[0]
    words = (np.broadcast_to(address, mask.shape) // 4).astype(np.int64).reshape(warps * parts, lanes)
    wanted = mask.reshape(warps * parts, lanes)
    words = (words[:, :, None] + np.arange(parts)).reshape(warps * parts, lanes * parts)
    wanted = np.repeat(wanted, parts, axis=1)
    big = np.iinfo(np.int64).max
    ordered = np.sort(np.where(wanted, words, big), axis=1)
    new = ordered != big
    new[:, 1:] &= ordered[:, 1:] != ordered[:, :-1]
    row = np.repeat(np.arange(warps * parts), lanes * parts).reshape(ordered.shape)
    load = np.bincount((row * WARP + ordered % WARP)[new], minlength=warps * parts * WARP)
    return load.reshape(warps, parts, WARP).max(2).sum(1)


# ---- the machine ------------------------------------------------------------------------------------------------------

Step = Callable[[Array], None]  # takes the lanes [warps, 32] that it acts on; of uniform instructions the warps [warps, 1]


class Block(NamedTuple):
    """Instructions without a branch or a target of one among them, and the control instruction behind them, if any."""

    steps: list[tuple[int, Callable[[Array, Array], None]]]
    control: Callable[[Array, Array, Array], None] | None
    control_index: int
    end: int  # pc behind it


class Machine:
    """One launch: registers, shared memory and the progress of every warp of `blocks`, all of them resident at once."""

    def __init__(
        self,
        kernel: Kernel,
        blocks: Sequence[int],
        parameters: bytes,
        memory: Memory,
        *,
        grid: int,
        dynamic_shared: int = 0,
    ) -> None:
        if kernel.parameter_bytes not in (0, len(parameters)):
            raise ValueError(f"{kernel.name}: expected {kernel.parameter_bytes} bytes of parameters, got {len(parameters)}")
        warps_per_block = -(-kernel.threads // WARP)
        self.kernel, self.memory = kernel, memory
        self.warps = len(blocks) * warps_per_block
        shape = (self.warps, WARP)
        self.block_of_warp = np.repeat(np.arange(len(blocks)), warps_per_block)
        self.thread = (np.tile(np.arange(warps_per_block), len(blocks))[:, None] * WARP + np.arange(WARP)).astype(np.uint32)
        self.special: dict[str, Array] = {
            "SR_TID.X": self.thread,
            "SR_CTAID.X": np.asarray(blocks, np.uint32)[self.block_of_warp][:, None],
            "SR_LANEID": np.arange(WARP, dtype=np.uint32)[None],
            "SR_LTMASK": ((np.uint64(1) << np.arange(WARP, dtype=np.uint64)) - np.uint64(1)).astype(np.uint32)[None],
        }
        for name in ("SR_TID.Y", "SR_TID.Z", "SR_CTAID.Y", "SR_CTAID.Z", "SR_CgaCtaId", "SRZ"):
            self.special[name] = np.zeros((1, 1), np.uint32)

        # Registers hold rubbish at first, so that a read before the first write is seen in the results.
        self.registers = [np.full(shape, 0xDEADBEEF, np.uint32) for _ in range(255)]
        self.uniform = [np.full((self.warps, 1), 0xDEADBEEF, np.uint32) for _ in range(63)]
        self.predicates = [np.zeros(shape, bool) for _ in range(7)]
        self.uniform_predicates = [np.zeros((self.warps, 1), bool) for _ in range(7)]

        self.bank = np.zeros(PARAMETERS + (len(parameters) + 15) // 8 * 8, np.uint8)
        self.bank[:12].view(np.uint32)[:] = (kernel.threads, 1, 1)
        self.bank[12:24].view(np.uint32)[:] = (grid, 1, 1)
        self.bank[PARAMETERS : PARAMETERS + len(parameters)] = np.frombuffer(parameters, np.uint8)
        self.shared_bytes = (kernel.shared_bytes + dynamic_shared + 255) // 256 * 256
        self.shared = np.zeros(len(blocks) * self.shared_bytes, np.uint8)

        self.alive = bits_of(self.thread < kernel.threads)
        self.pc = np.zeros(self.warps, np.int64)
        self.active = self.alive.copy()
        self.ready: list[list[tuple[int, int]]] = [[] for _ in range(self.warps)]  # (pc, lanes)
        self.at_barrier: list[list[tuple[int, int]]] = [[] for _ in range(self.warps)]
        self.parked: list[list[tuple[int, int, int, int]]] = [[] for _ in range(self.warps)]  # (barrier, of, lanes, pc)
        # Which lanes a lane waits for at a convergence barrier, and where they go on.
        self.convergence = [np.zeros(shape, np.uint32) for _ in range(16)]
        self.convergence_target = [np.zeros(shape, np.int64) for _ in range(16)]

        self.issued = np.zeros(len(kernel.instructions), np.int64)
        self.counts = Counts()
        self._places = {instruction.pc: i for i, instruction in enumerate(kernel.instructions)}
        self._leaders = {
            int(operand, 16)
            for instruction in kernel.instructions
            if instruction.opcode in ("BRA", "BSSY", "CALL", "WARPSYNC")
            for operand in instruction.operands
            if operand.startswith("0x")
        }
        self._blocks: dict[int, Block] = {}

    def run(self) -> Counts:
        """Until every lane has left. Returns what was issued."""
        lanes = np.arange(WARP, dtype=np.uint32)
        with np.errstate(all="ignore"):
            for _ in range(STEPS):
                pc = int(self.pc.min())
                if pc == IDLE:
                    if not self.alive.any():
                        break
                    self._release_block_barriers()
                    continue
                block = self._blocks.get(pc) or self._compile(pc)
                warps = self.pc == pc
                bits = np.where(warps, self.active, np.uint32(0))
                mask = (bits[:, None] >> lanes & np.uint32(1)).astype(bool)
                count = int(warps.sum())
                column = warps[:, None]
                for index, step in block.steps:
                    self.issued[index] += count
                    step(mask, column)
                if block.control is not None:
                    self.issued[block.control_index] += count
                    block.control(mask, warps, bits)
                else:
                    self.pc[warps] = block.end
            else:
                raise DeadlockError(f"{self.kernel.name} did not end within {STEPS:,} steps")
        for instruction, issued in zip(self.kernel.instructions, self.issued.tolist(), strict=True):
            if issued:
                self.counts.instructions[".".join((instruction.opcode, *instruction.modifiers))] += issued
        return self.counts

    def count_access(self, kind: str, warps: int, *, sectors: int = 0, lines: int = 0, wavefronts: int = 0) -> None:
        self.counts.access[kind] = self.counts.access.get(kind, Access()) + (warps, sectors, lines, wavefronts)

    # ---- compilation

    def _compile(self, start: int) -> Block:
        from bench import sass_instructions

        steps: list[tuple[int, Callable[[Array, Array], None]]] = []
        pc = start
        while True:
            if pc not in self._places:
                raise DeadlockError(f"{self.kernel.name}: no instruction at {pc:#x}")
            index = self._places[pc]
            instruction = self.kernel.instructions[index]
            following = self.kernel.instructions[index + 1].pc if index + 1 < len(self.kernel.instructions) else pc + 16
            if instruction.opcode in CONTROL:
                control = CONTROL[instruction.opcode](self, instruction, following)
                block = Block(steps, control, index, following)
                break
            steps.append((index, sass_instructions.compile_step(self, instruction)))
            pc = following
            if pc in self._leaders:
                block = Block(steps, None, -1, pc)
                break
        self._blocks[start] = block
        return block

    # ---- control flow

    def switch(self, warp: int) -> None:
        """Another group of the warp's lanes: the one that is furthest behind."""
        groups = self.ready[warp]
        if groups:
            groups.sort(reverse=True)
            self.pc[warp], self.active[warp] = groups.pop()
        else:
            self.pc[warp], self.active[warp] = IDLE, 0

    def park(self, warp: int, barrier: int, of: int, target: int) -> None:
        """The running group waits for the lanes `of`."""
        self.parked[warp].append((barrier, of, int(self.active[warp]), target))
        self.release_parked(warp)
        self.switch(warp)

    def release_parked(self, warp: int) -> None:
        """Lets go of the groups of a warp for whom no living lane is missing."""
        alive = int(self.alive[warp])
        for barrier, of, target in {(barrier, of, target) for barrier, of, _, target in self.parked[warp]}:
            here = 0
            for one in self.parked[warp]:
                if (one[0], one[1], one[3]) == (barrier, of, target):
                    here |= one[2]
            if of & alive & ~here == 0:
                self.parked[warp] = [one for one in self.parked[warp] if (one[0], one[1], one[3]) != (barrier, of, target)]
                if here & alive:
                    self.ready[warp].append((target, here & alive))

    def _release_block_barriers(self) -> None:
        released = False
        waiting = np.array([sum(lanes for _, lanes in groups) for groups in self.at_barrier], np.uint64)
        whole = waiting == self.alive
        for block in np.unique(self.block_of_warp[self.alive != 0]):
            warps = np.flatnonzero(self.block_of_warp == block)
            if not whole[warps].all():
                continue
            for warp in warps[self.alive[warps] != 0].tolist():
                released = True
                groups: dict[int, int] = {}
                for pc, lanes in self.at_barrier[warp]:
                    groups[pc] = groups.get(pc, 0) | lanes
                self.at_barrier[warp] = []
                self.ready[warp] += list(groups.items())
                self.switch(warp)
        if not released:
            stuck = {one[3] for groups in self.parked for one in groups} | {pc for at in self.at_barrier for pc, _ in at}
            raise DeadlockError(f"{self.kernel.name}: lanes wait for ever before {sorted(map(hex, stuck))}")


def bits_of(mask: Array) -> Array:
    """uint32 [warps] out of lanes [warps, 32]."""
    return np.packbits(mask, axis=1, bitorder="little").view("<u4")[:, 0].copy()


def _guarded(machine: Machine, instruction: Instruction, extra: Iterable[str] = ()) -> Callable[[Array], Array]:
    """Lanes out of the active ones for which the guard and further predicates hold."""
    from bench import sass_instructions

    conditions = [sass_instructions.predicate(machine, word) for word in (instruction.guard, *extra) if word]

    def lanes(mask: Array) -> Array:
        for condition in conditions:
            mask = mask & condition()
        return mask

    return lanes


Control = Callable[[Array, Array, Array], None]  # lanes, which warps, their lanes as bits


def _branch(machine: Machine, instruction: Instruction, following: int) -> Control:
    modifiers = instruction.expect("DIV", "U", "REL", "NOINC")
    *conditions, last = instruction.operands
    target = int(last, 16)
    if "DIV" in modifiers:  # taken by a warp that is not together: shuffles then go another way
        from bench import sass_instructions

        wanted = sass_instructions.integer(machine, instruction, conditions[0])

        def divided(mask: Array, warps: Array, bits: Array) -> None:
            together = bits == wanted()[:, 0]
            if (warps & ~together).any():
                raise instruction.unsupported("a warp is not together")
            machine.pc[warps] = following

        return divided
    lanes = _guarded(machine, instruction, conditions)

    def branch(mask: Array, warps: Array, bits: Array) -> None:
        taken = bits_of(np.broadcast_to(lanes(mask), mask.shape))
        machine.pc[warps & (taken == bits)] = target
        machine.pc[warps & (taken == 0)] = following
        for warp in np.flatnonzero((taken != 0) & (taken != bits)).tolist():
            machine.ready[warp] += [(target, int(taken[warp])), (following, int(bits[warp] & ~taken[warp]))]
            machine.switch(warp)

    return branch


def _exit(machine: Machine, instruction: Instruction, following: int) -> Control:
    instruction.expect()
    lanes = _guarded(machine, instruction)

    def leave(mask: Array, warps: Array, bits: Array) -> None:
        leaving = bits_of(np.broadcast_to(lanes(mask), mask.shape))
        machine.alive &= ~leaving
        machine.active[warps] &= ~leaving[warps]
        machine.pc[warps] = following
        for warp in np.flatnonzero(leaving).tolist():
            if machine.parked[warp]:
                machine.release_parked(warp)
            if not machine.active[warp]:
                machine.switch(warp)

    return leave


def _barrier_number(instruction: Instruction) -> int:
    return int(instruction.operands[0].removeprefix("B"))


def _set_convergence(machine: Machine, instruction: Instruction, following: int) -> Control:
    instruction.expect("RECONVERGENT", "RELIABLE")
    number, target = _barrier_number(instruction), int(instruction.operands[1], 16)
    lanes = _guarded(machine, instruction)

    def remember(mask: Array, warps: Array, bits: Array) -> None:
        chosen = lanes(mask)
        np.copyto(machine.convergence[number], bits_of(np.broadcast_to(chosen, mask.shape))[:, None], where=chosen)
        np.copyto(machine.convergence_target[number], target, where=chosen)
        machine.pc[warps] = following

    return remember


def _converge(machine: Machine, instruction: Instruction, following: int) -> Control:
    instruction.expect("RECONVERGENT", "RELIABLE")
    if instruction.guard:
        raise instruction.unsupported("a guard")
    number = _barrier_number(instruction)

    def meet(mask: Array, warps: Array, bits: Array) -> None:
        rows = np.flatnonzero(warps)
        first = mask[rows].argmax(1)
        wanted = machine.convergence[number][rows, first]
        target = machine.convergence_target[number][rows, first]
        complete = wanted & machine.alive[rows] & ~bits[rows] == 0
        machine.pc[rows[complete]] = target[complete]
        for row, of, to in zip(rows[~complete].tolist(), wanted[~complete].tolist(), target[~complete].tolist(), strict=True):
            machine.park(row, number, of, to)

    return meet


def _break(machine: Machine, instruction: Instruction, following: int) -> Control:
    instruction.expect("RELIABLE")
    number = int(instruction.operands[-1].removeprefix("B"))
    lanes = _guarded(machine, instruction, instruction.operands[:-1])

    def leave_barrier(mask: Array, warps: Array, bits: Array) -> None:
        leaving = bits_of(np.broadcast_to(lanes(mask), mask.shape))
        machine.pc[warps] = following
        masks = machine.convergence[number]
        for warp in np.flatnonzero(leaving).tolist():
            gone = int(leaving[warp])
            of = int(masks[warp, (gone & -gone).bit_length() - 1])
            masks[warp][masks[warp] == of] = of & ~gone
            machine.parked[warp] = [
                (barrier, wanted & ~gone if (barrier, wanted) == (number, of) else wanted, here, target)
                for barrier, wanted, here, target in machine.parked[warp]
            ]
            machine.release_parked(warp)

    return leave_barrier


def _warp_sync(machine: Machine, instruction: Instruction, following: int) -> Control:
    from bench import sass_instructions

    modifiers = instruction.expect("ALL")
    wanted = None if "ALL" in modifiers else sass_instructions.integer(machine, instruction, instruction.operands[0])

    def wait(mask: Array, warps: Array, bits: Array) -> None:
        every = np.broadcast_to(wanted(), mask.shape) if wanted is not None else None
        for warp in np.flatnonzero(warps).tolist():
            of = 0xFFFFFFFF if every is None else int(every[warp][mask[warp]][0])
            if of & int(machine.alive[warp]) & ~int(bits[warp]) == 0:
                machine.pc[warp] = following
            else:
                machine.park(warp, -1, of, following)

    return wait


def _block_sync(machine: Machine, instruction: Instruction, following: int) -> Control:
    instruction.expect("SYNC", "DEFER_BLOCKING")
    if instruction.operands != ("0x0",) or instruction.guard:
        raise instruction.unsupported("only barrier 0, for all threads of the block")

    def wait(mask: Array, warps: Array, bits: Array) -> None:
        for warp in np.flatnonzero(warps).tolist():
            machine.at_barrier[warp].append((following, int(bits[warp])))
            machine.switch(warp)

    return wait


def _return(machine: Machine, instruction: Instruction, following: int) -> Control:
    from bench import sass_instructions

    instruction.expect("REL", "NODEC")
    register, base = instruction.operands
    place = sass_instructions.integer(machine, instruction, register)
    if instruction.guard:
        raise instruction.unsupported("a guard")

    def go_back(mask: Array, warps: Array, bits: Array) -> None:
        for warp in np.flatnonzero(warps).tolist():
            targets = np.unique(place()[warp][mask[warp]])
            if len(targets) != 1:
                raise instruction.unsupported("lanes return to different places")
            machine.pc[warp] = int(targets[0]) + int(base, 16)

    return go_back


CONTROL: dict[str, Callable[[Machine, Instruction, int], Control]] = {
    "BRA": _branch,
    "CALL": _branch,
    "EXIT": _exit,
    "BSSY": _set_convergence,
    "BSYNC": _converge,
    "BREAK": _break,
    "WARPSYNC": _warp_sync,
    "BAR": _block_sync,
    "RET": _return,
}
