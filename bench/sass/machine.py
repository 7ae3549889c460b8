# SPDX-License-Identifier: Apache-2.0
"""A launch: warps that diverge at branches and meet again, and wait for their block at barriers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from bench.sass import instructions
from bench.sass.memory import Array, Counts, Memory, bits_of
from bench.sass.operands import integer, predicate
from bench.sass.program import WARP, Instruction, Kernel
from bench.sass.state import Launch, State

IDLE = np.iinfo(np.int64).max  # the pc of a warp that has no group of lanes to run
STEPS = 2_000_000  # of the whole machine, before a kernel counts as endless


class DeadlockError(RuntimeError):
    """Lanes wait for each other for ever, or a kernel does not end."""


class Block(NamedTuple):
    """Instructions without a branch or a target of one among them, and the control instruction behind them, if any."""

    steps: list[tuple[int, Callable[[Array, Array], None]]]
    control: Callable[[Array, Array, Array], None] | None
    control_index: int
    end: int  # pc behind it


class Machine(State):
    """One launch: the progress of every warp of `blocks`, all of them resident at once."""

    def __init__(self, kernel: Kernel, launch: Launch, blocks: Sequence[int], memory: Memory) -> None:
        super().__init__(kernel, launch, blocks, memory)
        shape = (self.warps, WARP)
        self.alive = bits_of(self.thread < launch.threads)
        self.pc = np.zeros(self.warps, np.int64)
        self.active = self.alive.copy()
        self.ready: list[list[tuple[int, int]]] = [[] for _ in range(self.warps)]  # (pc, lanes)
        self.at_barrier: list[list[tuple[int, int]]] = [[] for _ in range(self.warps)]
        self.parked: list[list[tuple[int, int, int, int]]] = [[] for _ in range(self.warps)]  # (barrier, of, lanes, pc)
        # Which lanes a lane waits for at a convergence barrier, and where they go on.
        self.convergence = [np.zeros(shape, np.uint32) for _ in range(16)]
        self.convergence_target = [np.zeros(shape, np.int64) for _ in range(16)]

        self.issued = np.zeros(len(kernel.instructions), np.int64)
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

    def _compile(self, start: int) -> Block:
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
            steps.append((index, instructions.compile_step(self, instruction)))
            pc = following
            if pc in self._leaders:
                block = Block(steps, None, -1, pc)
                break
        self._blocks[start] = block
        return block

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
                self.parked[warp] = [
                    one for one in self.parked[warp] if (one[0], one[1], one[3]) != (barrier, of, target)
                ]
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
            stuck = {one[3] for groups in self.parked for one in groups} | {
                pc for at in self.at_barrier for pc, _ in at
            }
            raise DeadlockError(f"{self.kernel.name}: lanes wait for ever before {sorted(map(hex, stuck))}")


def _guarded(machine: Machine, instruction: Instruction, extra: Iterable[str] = ()) -> Callable[[Array], Array]:
    """Lanes out of the active ones for which the guard and further predicates hold."""
    conditions = [predicate(machine, word) for word in (instruction.guard, *extra) if word]

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
        wanted = integer(machine, instruction, conditions[0])

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
        for row, of, to in zip(
            rows[~complete].tolist(), wanted[~complete].tolist(), target[~complete].tolist(), strict=True
        ):
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
    modifiers = instruction.expect("ALL")
    wanted = None if "ALL" in modifiers else integer(machine, instruction, instruction.operands[0])

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
    instruction.expect("REL", "NODEC")
    register, base = instruction.operands
    place = integer(machine, instruction, register)
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
