# SPDX-License-Identifier: Apache-2.0
"""How long one launch takes on the device: CUDA-graph replay over buffers that the L2 cache cannot hold."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

COPY_ALIGNMENT = 512  # bytes, that of torch's CUDA allocations
Run = Callable[[int], Any]  # does the work once, on input set number n, and returns its outputs


class Timing(NamedTuple):
    """Seconds per launch, median and interquartile range over repetitions; `note` says what was unusual."""

    median: float
    iqr: float
    note: str = ""


class Timer:
    """Times launches on one device; nothing is subtracted.

    CUDA: launches over several sets of inputs and outputs are captured in one graph, each set with memory of its own,
    all sets together at least four times the L2. The graph is replayed between two events. CPU: a plain clock.

    Args:
        device: where the launches run.
        errors: takes a line for each capture that fails. Such a capture leaves torch's allocator and default generator
            as they are within one, so whatever is measured after it may be wrong.
    """

    def __init__(self, device: torch.device, errors: list[str] | None = None) -> None:
        self.device = device
        self.errors = [] if errors is None else errors
        self._copies: dict[int, float] = {}

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def cache_bytes(self) -> int:
        return torch.cuda.get_device_properties(self.device).L2_cache_size if self.cuda else 0

    def sets(self, launch_bytes: int) -> int:
        """How many sets of `launch_bytes` together exceed four times the L2; at least two."""
        return max(2, math.ceil(4 * self.cache_bytes / launch_bytes) + 1 if self.cuda else 2)

    def time(self, run: Run, sets: int, what: str = "a launch") -> Timing:
        """Seconds per launch of `run`, called with 0 … sets − 1 in rotation; `what` names it in errors.

        Work that waits for the device is not captured; it is timed between events without a graph, and `note` says so.
        """
        if not self.cuda:
            run(0)
            return _spread([_clock(run, n % sets) for n in range(3)])
        try:
            _refuse_to_wait(run, sets)
        except RuntimeError as error:
            return self._time_without_graph(run, sets, first_line(error))
        before = torch.cuda.current_stream()
        try:
            return self._time_graph(run, sets)
        except RuntimeError as error:
            self.errors.append(f"figures after this may be wrong: capture of {what} failed: {first_line(error)}")
            torch.cuda.set_stream(before)  # a capture that fails leaves its own stream behind as the current one
            return self._time_without_graph(run, sets, first_line(error))

    def copy_seconds(self, moved_bytes: int) -> float:
        """Seconds that `Tensor.copy_` takes on the device to read and write `moved_bytes` altogether.

        Rounded up to a multiple of 1024 bytes, so that each row, half of that, is aligned as an allocation would be.
        """
        half = COPY_ALIGNMENT * max(1, math.ceil(moved_bytes / 2 / COPY_ALIGNMENT))
        if 2 * half not in self._copies:
            sets = self.sets(2 * half)
            generator = torch.Generator(self.device).manual_seed(0)
            source = torch.randint(0, 256, (sets, half), generator=generator, dtype=torch.uint8, device=self.device)
            target = torch.empty_like(source)
            what = f"a copy of {half} bytes"
            self._copies[2 * half] = self.time(lambda n: target[n].copy_(source[n]), sets, what).median
        return self._copies[2 * half]

    def copies(self) -> dict[int, float]:
        """Copy bandwidth in GB/s by the bytes moved, as measured so far."""
        return {moved: moved / seconds / 1e9 for moved, seconds in sorted(self._copies.items())}

    def _time_graph(self, run: Run, sets: int) -> Timing:
        # Several rounds of a short launch share a replay, whose start would otherwise be a visible part of the time.
        rounds = max(1, min(50, math.ceil(2e-3 / (sets * self._estimate(run, sets)))))
        graph = torch.cuda.CUDAGraph()
        outputs: list[Any] = [None] * sets
        with torch.cuda.graph(graph):
            for launch in range(rounds * sets):
                # An output lives until the next one of its set exists: neighbouring launches never share memory.
                outputs[launch % sets] = run(launch % sets)
        graph.replay()
        replay_seconds = self._between_events(graph.replay)
        replays = max(7, min(50, int(0.1 / replay_seconds)))
        events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(replays)]
        for _ in range(1 + replays // 4):  # until clocks and power are what they will be
            graph.replay()
        for start, end in events:
            start.record()
            graph.replay()
            end.record()
        torch.cuda.synchronize(self.device)
        return _spread([start.elapsed_time(end) / 1e3 / (rounds * sets) for start, end in events])

    def _time_without_graph(self, run: Run, sets: int, reason: str) -> Timing:
        times = [self._between_events(partial(run, n % sets)) for n in range(15)]
        return _spread(times, f"timed without a graph, so with the time the host takes: {reason}")

    def _estimate(self, run: Run, sets: int) -> float:
        return min(self._between_events(partial(run, n)) for n in range(min(sets, 3)))

    def _between_events(self, work: Callable[[], Any]) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        torch.cuda.synchronize(self.device)
        return start.elapsed_time(end) / 1e3


def _refuse_to_wait(run: Run, sets: int) -> None:
    """Warms up on a stream like the one of a capture, then lets torch raise where the work would wait for the device.

    Raises:
        RuntimeError: the work synchronises.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for n in range(sets):
            run(n)
        torch.cuda.synchronize()
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            run(0)
        finally:
            torch.cuda.set_sync_debug_mode(before)
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()


def _clock(run: Run, n: int) -> float:
    start = time.perf_counter()
    run(n)
    return time.perf_counter() - start


def _spread(times: list[float], note: str = "") -> Timing:
    low, median, high = np.percentile(times, [25, 50, 75])
    return Timing(float(median), float(high - low), note)


def first_line(error: BaseException) -> str:
    """What an exception says, without what torch adds below."""
    return str(error).strip().partition("\n")[0][:200]
