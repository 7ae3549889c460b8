# SPDX-License-Identifier: Apache-2.0
"""A launch, and what its instructions read and write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bench.sass.memory import Array, Counts, Memory
from bench.sass.program import WARP, Kernel

PARAMETERS = 0x210  # where a kernel's parameters begin in constant bank 0 on sm_90


class Launch(NamedTuple):
    """Sizes of a grid and of its blocks, bytes of dynamic shared memory, and the parameters as the kernel gets them."""

    kernel: str
    blocks: int
    threads: int
    shared_bytes: int
    parameters: bytes


class State:
    """What instructions work on: registers, predicates, constants and memory of the warps of `blocks`, and counts."""

    def __init__(self, kernel: Kernel, launch: Launch, blocks: Sequence[int], memory: Memory) -> None:
        if kernel.parameter_bytes not in (0, len(launch.parameters)):
            expected = f"expected {kernel.parameter_bytes} bytes of parameters, got {len(launch.parameters)}"
            raise ValueError(f"{kernel.name}: {expected}")
        warps_per_block = -(-launch.threads // WARP)
        self.kernel, self.memory = kernel, memory
        self.warps = len(blocks) * warps_per_block
        shape = (self.warps, WARP)
        self.block_of_warp = np.repeat(np.arange(len(blocks)), warps_per_block)
        self.thread = (np.tile(np.arange(warps_per_block), len(blocks))[:, None] * WARP + np.arange(WARP)).astype(
            np.uint32
        )
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

        self.bank = np.zeros(PARAMETERS + (len(launch.parameters) + 15) // 8 * 8, np.uint8)
        self.bank[:12].view(np.uint32)[:] = (launch.threads, 1, 1)
        self.bank[12:24].view(np.uint32)[:] = (launch.blocks, 1, 1)
        self.bank[PARAMETERS : PARAMETERS + len(launch.parameters)] = np.frombuffer(launch.parameters, np.uint8)
        self.shared_bytes = (kernel.shared_bytes + launch.shared_bytes + 255) // 256 * 256
        self.shared = np.zeros(len(blocks) * self.shared_bytes, np.uint8)
        self.counts = Counts()
