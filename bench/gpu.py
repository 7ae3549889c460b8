# SPDX-License-Identifier: Apache-2.0
"""Times the cases on a GPU, for the report: CUDA-graph replay over buffers that the L2 cache cannot hold.

One of two timers over bench/cases; the other is cpu.py.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bench import cases, kernels
from bench.cases import Case, Op, Peer, Run, dtype_name
from bench.cases import heatmap_mse_loss as loss
from bench.report import Report, first_line
from fastpose.ops import _native

COPY_ALIGNMENT = 512  # bytes, that of torch's CUDA allocations
COPY_PITCH = 32 << 10  # bytes
WHOLE_BODY = (133, 308)  # joints: COCO-WholeBody's, Sapiens'


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
        """Seconds that the device takes to read and write `moved_bytes` altogether: the shorter of two ways to copy.

        Rounded up to a multiple of 1024 bytes, so that each row, half of that, ends as an allocation would. On an H200
        `Tensor.copy_`, which calls the driver, took up to 1.6 times as long where its rows were not a multiple of
        16 KiB apart, and for two rows of 512 MiB each; so a kernel of torch's is timed beside it.
        """
        half = COPY_ALIGNMENT * max(1, math.ceil(moved_bytes / 2 / COPY_ALIGNMENT))
        if 2 * half not in self._copies:
            sets = cases.input_sets(2 * half, self.cache_bytes)
            pitch = COPY_PITCH * (math.ceil(half / COPY_PITCH) | 1)  # odd: rows share no power of two beyond it
            generator = torch.Generator(self.device).manual_seed(0)
            source = torch.randint(0, 256, (sets, pitch), generator=generator, dtype=torch.uint8, device=self.device)
            target = torch.empty_like(source)
            rows = [(target[n, :half].view(torch.int64), source[n, :half].view(torch.int64)) for n in range(sets)]
            ways = {
                "copied by the driver": lambda n: rows[n][0].copy_(rows[n][1]),
                "written by a kernel": lambda n: torch.bitwise_not(rows[n][1], out=rows[n][0]),
            }
            times = [self.time(run, sets, f"{half} bytes {way}").median for way, run in ways.items()]
            self._copies[2 * half] = min(times)
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


@dataclass(frozen=True)
class Row:
    """A row of the report before its inputs are made: those of all rows would not fit on a GPU."""

    op: Op
    options: Mapping[str, Any]
    batch: int
    peers: Mapping[str, Peer]

    def __str__(self) -> str:
        dtype, layout = dtype_name(self.options["dtype"]), self.options.get("layout", "contiguous")
        return " ".join(filter(None, [self.op.name, dtype, layout, self.options.get("detail", "")]))

    def make(self, timer: Timer) -> Case:
        return self.op.case(timer.device, self.batch, timer.cache_bytes, **self.options)


def goal_rows(batch: int) -> list[Row]:
    """Every op at the sizes of the goals, type by type, with those peers that a GPU can run."""
    rows = [
        Row(op, options, batch, {name: peer for name, peer in op.peers.items() if "cuda" in peer.devices})
        for op in cases.ops()
        for options in op.goals
    ]
    return sorted(rows, key=lambda row: cases.DTYPES.index(row.options["dtype"]))


def extra_rows(batch: int) -> list[Row]:
    """What training needs to know besides, then other sizes and types, and smaller batches."""
    ops = cases.ops()
    rows = [Row(op, options, batch, {}) for op in ops for options in op.training]
    rows += [Row(op, options, batch, {}) for op in ops for options in op.extra]
    for few in sorted({1, max(1, batch // 8)}):
        rows += [Row(op, {"dtype": torch.float32, "detail": f"batch of {few}"}, few, {}) for op in ops]
    return rows


def measure_ops(report: Report, timer: Timer, batch: int) -> None:
    """`ops`: the goals' sizes, with the peers that need no compiling."""
    report.note("heatmap_mse_loss: backward follows forward, as in training, and may find the prediction in the L2")
    report.begin("ops")
    measure_rows(report, timer, "ops", goal_rows(batch))


def measure_extra(report: Report, timer: Timer, batch: int) -> None:
    """`extra`: halves of the loss, other sizes, types and layouts; copies, memory, and what the kernels use."""
    report.begin("extra")
    measure_rows(report, timer, "extra", extra_rows(batch))
    report.figures["extra"] += [
        {"what": "copy", "bytes": size, "gb_s": speed} for size, speed in timer.copies().items()
    ]
    with report.part("peak memory"):
        measure_peak_memory(report, timer, batch)
    with report.part("kernels"):
        measure_kernels(report, timer.device)


def measure_rows(report: Report, timer: Timer, section: str, rows: Iterable[Row]) -> None:
    for row in rows:
        what = f"{section}: {row}"
        if section == "extra" and report.late(what, needs=2):
            continue
        with report.part(what):
            figures = op_row(report, timer, row.make(timer), row.peers)
            report.figures[section].append(figures)
            report.say(f"{row}: {brief(figures)}")


def op_row(report: Report, timer: Timer, case: Case, peers: Mapping[str, Peer]) -> dict[str, Any]:
    """Checks an op, times it and its peers.

    Raises:
        WrongResultError: the op's result is wrong, so its time is worth nothing.
    """
    outputs = case.own(0)
    case.check(outputs)
    name = name_of(case)
    timing = timer.time(case.own, case.sets, name)
    if timing.note:
        report.note(f"{name}: {timing.note}")
    floor = timer.copy_seconds(case.bytes)
    row = {
        "op": case.op,
        "dtype": dtype_name(case.dtype),
        "layout": case.layout,
        "batch": case.batch,
        "bytes": case.bytes,
        "median_s": timing.median,
        "iqr_s": timing.iqr,
        "floor_s": floor,
        "floor_ratio": timing.median / floor,
        "gb_s": case.bytes / timing.median / 1e9,
        "peers": peer_medians(report, timer, case, outputs, peers, compiled=False),
    }
    return {"what": "op", **row, "detail": case.detail} if case.detail else row


def name_of(case: Case) -> str:
    return f"{case.op} {dtype_name(case.dtype)} {case.layout}"


def is_compiled(peer: str) -> bool:
    return peer.startswith("torch_compile")


def is_limit(peer: str) -> bool:
    """Whether it does less than the op, so that there is nothing to win."""
    return peer.startswith("limit_")


def peer_medians(
    report: Report, timer: Timer, case: Case, outputs: Any, peers: Mapping[str, Peer], *, compiled: bool
) -> dict[str, float]:
    """Seconds per launch of the peers that can run here, compiled or not; why others cannot becomes a note."""
    name, medians = name_of(case), {}
    for peer in peers:
        if is_compiled(peer) != compiled or (compiled and report.late(f"{name}: peer {peer}", needs=20)):
            continue
        with report.optional(f"{case.op}: peer {peer}"):
            run = peers[peer].make(case.work)
            if not is_limit(peer) and differs(run(0), outputs):
                report.note(f"{name}: peer {peer} gives another result")
            timing = timer.time(run, case.sets, f"{name}: peer {peer}")
            medians[peer] = timing.median
            if timing.note:
                report.note(f"{case.op}: peer {peer}: {timing.note}")
    return medians


def differs(one: Any, other: Any) -> bool:
    """Whether the first outputs are more than 2 % of the largest value apart."""
    first, second = (value if isinstance(value, Tensor) else value[0] for value in (one, other))
    apart = (first.detach().float() - second.detach().float()).abs().max()
    return not bool(apart <= 0.02 * second.detach().float().abs().max())


def measure_compiled(report: Report, timer: Timer, rows: Iterable[Row]) -> None:
    """Adds the compiled peers of rows that `ops` has."""
    for row in rows:
        what = f"compiled: {row}"
        if report.late(what, needs=20):
            continue
        with report.part(what):
            case = row.make(timer)
            for figures in report.figures["ops"]:
                if (figures["op"], figures["dtype"], figures["layout"]) == tuple(name_of(case).split()):
                    found = peer_medians(report, timer, case, case.own(0), row.peers, compiled=True)
                    figures["peers"] |= found
                    report.say(f"{row}: {brief(figures)}")


def with_and_without_target(case: Case) -> dict[str, Run]:
    """The loss with its target fused away, and with the target rendered into memory as float32 for `mse_loss`."""
    return {"fused": case.own, "render+mse_loss": loss.PEERS[loss.RENDERED].make(case.work)}


def measure_large_maps(report: Report, timer: Timer) -> None:
    """`large_maps`: loss and gradient for the joints of whole bodies, and the memory that they take."""
    report.begin("large maps")
    for joints, dtype in product(WHOLE_BODY, (torch.bfloat16, torch.float32)):
        what = f"large maps: {joints} joints, {dtype_name(dtype)}"
        if report.late(what, needs=3):
            continue
        with report.part(what):
            make = partial(loss.large_case, timer.device, cache_bytes=timer.cache_bytes, dtype=dtype, joints=joints)
            one = make(1)
            one.check(one.own(0))
            case = make(32 if timer.cuda else 1)
            for way, run in with_and_without_target(case).items():
                timing = timer.time(run, case.sets, f"{what}, {way}")
                row = {
                    "joints": joints,
                    "dtype": dtype_name(dtype),
                    "loss": way,
                    "batch": case.batch,
                    "median_s": timing.median,
                    "iqr_s": timing.iqr,
                    "peak_bytes": peak_bytes(timer, run),
                }
                report.figures["large_maps"].append(row)
                report.say(f"{what}, {way}: {1e3 * timing.median:.2f} ms")


def measure_peak_memory(report: Report, timer: Timer, batch: int) -> None:
    """Bytes that loss and gradient need beside the prediction."""
    if not timer.cuda:
        return report.note("peak memory: measured on CUDA alone")
    for dtype in (torch.float32, torch.bfloat16):
        case = loss.case(timer.device, batch, timer.cache_bytes, dtype=dtype)
        for way, run in with_and_without_target(case).items():
            row = {"what": "peak memory of the loss", "loss": way, "dtype": dtype_name(dtype)}
            report.figures["extra"].append(row | {"bytes": peak_bytes(timer, run)})


def peak_bytes(timer: Timer, run: Run) -> int | None:
    """The most memory that a launch takes beside its inputs, results included; None on the CPU."""
    if not timer.cuda:
        return None
    run(0)
    before = torch.cuda.memory_allocated(timer.device)
    torch.cuda.reset_peak_memory_stats(timer.device)
    run(0)
    return torch.cuda.max_memory_allocated(timer.device) - before


def measure_kernels(report: Report, device: torch.device) -> None:
    """Registers, shared memory and stack of each kernel that this device runs."""
    if device.type != "cuda":
        return report.note("kernel resource use: read on CUDA alone")
    with report.optional("kernel resource use"):
        major, minor = torch.cuda.get_device_capability(device)
        report.figures["extra"] += kernels.kernel_rows(Path(_native._C.__file__), f"sm_{major}{minor}")


def brief(row: dict[str, Any]) -> str:
    others = ", ".join(f"{name} {seconds * 1e6:.1f}" for name, seconds in row["peers"].items())
    own = f"{row['median_s'] * 1e6:.1f} µs, {row['floor_ratio']:.2f} x floor"
    return f"{own}; {others}" if others else own
