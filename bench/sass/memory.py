# SPDX-License-Identifier: Apache-2.0
"""Global memory, and what accesses to memory cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.sass.program import WARP

Array = NDArray[Any]


class MemoryFaultError(IndexError):
    """An access outside the buffers, or one that is not aligned."""


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


@dataclass
class Counts:
    """What a launch has issued: warp instructions by opcode with its modifiers, and what its memory accesses take.

    `memory`: "global load sectors" (32 bytes) and "global load lines" (128 bytes) that requests touch, each request by
    itself, and "global load lookups", passes of the L1 over its tags, four lines each; the same of stores; "shared load
    wavefronts" and "shared store wavefronts", passes over the 32 banks.
    """

    instructions: Counter[str] = field(default_factory=Counter)
    memory: Counter[str] = field(default_factory=Counter)


def bits_of(mask: Array) -> Array:
    """uint32 [warps] out of lanes [warps, 32]."""
    return np.packbits(mask, axis=1, bitorder="little").view("<u4")[:, 0].copy()


def distinct_per_warp(keys: Array, mask: Array) -> Array:
    """How many different keys the lanes in `mask` [warps, lanes] have, per warp."""
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
