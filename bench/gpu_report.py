# SPDX-License-Identifier: Apache-2.0
"""Everything that is claimed about speed on a GPU, measured in one run: ops, training step, sources of batches.

    python -m bench.gpu_report --out OUT             # OUT/gpu_….json (bench/results); meant to take under 8 minutes
    python -m bench.gpu_report --device cpu          # the same code on tiny sizes, to see that it works
    python -m bench.gpu_report --table FILE.json     # the tables of an earlier run, as Markdown

Needs torch, NumPy and OpenCV, and builds the native library first where it is missing. Times of ops are device time per
launch (bench/timing.py), the floor of an op is the time that a device-to-device copy needs to read and write as many
bytes. A peer that is not there is a note; an op with a wrong result is an error, has no row, and makes the exit code 1.
The JSON file is written after each row: what is stopped keeps what it has, with an error that says so. For a copy
without .git the environment variable FASTPOSE_COMMIT names the commit.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastpose
from bench import kernels, op_cases, peers, pipeline, train_step
from bench.gpu_session import stop
from bench.op_cases import Case, dtype_name
from bench.timing import Run, Timer, Timing, first_line
from fastpose import ImageBatch
from fastpose.ops import _native

ROOT = Path(__file__).resolve().parents[1]
# The sections in their order, and the second of the report by which each ends: what can be left out begins only if the
# time that it needs, by a guess, is left. The ops at the goals' sizes with their plain peers are never left out. A run
# that is stopped after 300 s lacks what must be compiled, and nothing else. A DataLoader that hangs costs 30 s until it
# says so, and 5 s for each of 16 workers: it is tried once, and takes its time from what is compiled.
SCHEDULE = {"ops": 70.0, "step": 125.0, "large maps": 140.0, "training": 272.0, "extra": 290.0, "compiled": 420.0}
LIMIT = 450.0  # what took longer is an error
UNFINISHED = "unfinished: the report was stopped, or still runs"
BUILD_SECONDS = "FASTPOSE_REPORT_BUILD_SECONDS"  # how a report learns that it was begun again after a build


class Report:
    """The figures so far, what failed, and what a reader must know about them; also in a file, if given a folder."""

    def __init__(self, device: torch.device, folder: Path | None = None) -> None:
        self.device = device
        self.started = self.section_end = time.perf_counter()
        self.figures: dict[str, Any] = {
            **environment(device),
            "seconds": 0.0,
            "copy_gb_s": None,
            "ops": [],
            "step": {},
            "large_maps": [],
            "training": [],
            "extra": [],
            "errors": [],
            "notes": [],
        }
        self.path: Path | None = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            moment = datetime.fromisoformat(self.figures["date"]).strftime("%Y%m%dT%H%M")
            self.path = folder / f"gpu_{moment}_{self.figures['commit']}.json"
        self.save(UNFINISHED)

    def say(self, text: str) -> None:
        print(f"{time.perf_counter() - self.started:5.0f} s  {text}", flush=True)

    def note(self, text: str) -> None:
        """Adds a note, once."""
        if text not in self.figures["notes"]:
            self.figures["notes"].append(text)
            self.say(f"note: {text}")

    def save(self, *more_errors: str) -> None:
        """Writes gpu_<YYYYMMDDTHHMM>_<commit>.json, beside and renamed. What is not finite is null there, and an error.

        `more_errors` are in the file alone.
        """
        self.figures["seconds"] = round(time.perf_counter() - self.started, 1)
        self.figures["errors"] += list(nulls_for_nan(self.figures))
        if self.path is None:
            return
        figures = self.figures | {"errors": [*self.figures["errors"], *more_errors]}
        beside = self.path.with_name(self.path.name + ".part")
        beside.write_text(json.dumps(figures, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(beside, self.path)

    def finish(self) -> None:
        """Writes the file for the last time."""
        seconds = time.perf_counter() - self.started
        if seconds > LIMIT:
            self.figures["errors"].append(f"took {seconds:.0f} s: expected less than {LIMIT:.0f}")
        self.save()
        self.say("done")

    def begin(self, section: str) -> None:
        self.section_end = self.started + SCHEDULE[section]
        self.say(section)

    def late(self, what: str, needs: float = 0.0) -> bool:
        """Whether too little of the section's time is left for `needs` seconds; `what` is then noted as left out."""
        if time.perf_counter() + needs < self.section_end:
            return False
        self.note(f"left out, too little time: {what}")
        return True

    @contextmanager
    def part(self, what: str) -> Iterator[None]:
        """A failure inside is an error of the report; the rest goes on."""
        try:
            yield
        except Exception as error:
            self.figures["errors"].append(f"{what}: {type(error).__name__}: {first_line(error)}")
            self.say(f"ERROR in {self.figures['errors'][-1]}")
        finally:
            self.save(UNFINISHED)

    @contextmanager
    def optional(self, what: str) -> Iterator[None]:
        """A failure inside is a note: a peer that cannot run here takes nothing from the figures of the ops."""
        try:
            yield
        except Exception as error:
            self.note(f"{what}: {type(error).__name__}: {first_line(error)}")
        finally:
            self.save(UNFINISHED)


def nulls_for_nan(value: Any, place: str = "figures") -> Iterator[str]:
    """Puts None for NaN and infinities inside dicts and lists, and tells where they were."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        at = f"{place}.{key}"
        if isinstance(inner, dict | list):
            yield from nulls_for_nan(inner, at)
        elif isinstance(inner, float) and not math.isfinite(inner):
            value[key] = None
            yield f"{at} is {inner}, written as null"


def environment(device: torch.device) -> dict[str, str | None]:
    """Where and of what the figures are."""
    now = datetime.now(timezone.utc)
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    smi = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", f"--id={device.index or 0}")
    return {
        "device": name,
        "driver": _answer(*smi) if device.type == "cuda" else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "commit": commit(),
        "date": now.isoformat(timespec="seconds"),
    }


def commit() -> str:
    """Short commit of this checkout, "-dirty" if a tracked file was changed.

    Of a copy without .git it is what FASTPOSE_COMMIT says, or "unknown".
    """
    # Asked for by name: git itself would go on to look in the folders above.
    head = _answer("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD") if (ROOT / ".git").exists() else None
    if head is None:
        return re.sub(r"[^\w.-]", "_", os.environ.get("FASTPOSE_COMMIT", "")) or "unknown"
    changed = _answer("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    return f"{head}-dirty" if changed else head


def _answer(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def measure_ops(report: Report, timer: Timer, images: ImageBatch, batch: int) -> None:
    """`ops`: the goals' sizes, with the peers that need no compiling."""
    report.note("heatmap_mse_loss: backward follows forward, as in training, and may find the prediction in the L2")
    report.begin("ops")
    measure_cases(report, timer, "ops", op_cases.goal_cases(timer, images, batch))


def measure_extra(report: Report, timer: Timer, images: ImageBatch, batch: int) -> None:
    """`extra`: halves of the loss, other sizes, types and layouts; copies, memory, and what the kernels use."""
    report.begin("extra")
    measure_cases(report, timer, "extra", op_cases.extra_cases(timer, images, batch))
    report.figures["extra"] += [
        {"what": "copy", "bytes": size, "gb_s": speed} for size, speed in timer.copies().items()
    ]
    with report.part("peak memory"):
        measure_peak_memory(report, timer, batch)
    with report.part("kernels"):
        measure_kernels(report, timer.device)


def measure_cases(report: Report, timer: Timer, section: str, makers: Iterable[partial[Case]]) -> None:
    for make in makers:
        what = f"{section}: {op_cases.describe(make)}"
        if section == "extra" and report.late(what, needs=2):
            continue
        with report.part(what):
            row = op_row(report, timer, make())
            report.figures[section].append(row)
            report.say(f"{row['op']} {row['dtype']} {row['layout']} {row.get('detail', '')}: {brief(row)}")


def op_row(report: Report, timer: Timer, case: Case) -> dict[str, Any]:
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
        "peers": peer_medians(report, timer, case, outputs, [name for name in case.peers if not is_compiled(name)]),
    }
    return {"what": "op", **row, "detail": case.detail} if case.detail else row


def name_of(case: Case) -> str:
    return f"{case.op} {dtype_name(case.dtype)} {case.layout}"


def is_compiled(peer: str) -> bool:
    return peer.endswith("_compile")


def peer_medians(report: Report, timer: Timer, case: Case, outputs: Any, chosen: Iterable[str]) -> dict[str, float]:
    """Seconds per launch of the chosen peers that can run here; the reasons of the others become notes."""
    name, medians = name_of(case), {}
    for peer in chosen:
        if is_compiled(peer) and report.late(f"{name}: peer {peer}", needs=20):
            continue
        with report.optional(f"{case.op}: peer {peer}"):
            run = case.peers[peer]()
            if peer not in peers.HINTS and differs(run(0), outputs):
                report.note(f"{name}: peer {peer} gives another result")
            timing: Timing = timer.time(run, case.sets, f"{name}: peer {peer}")
            medians[peer] = timing.median
            if timing.note:
                report.note(f"{case.op}: peer {peer}: {timing.note}")
    return medians


def measure_compiled(report: Report, timer: Timer, images: ImageBatch, batch: int) -> None:
    """What torch.compile makes, which takes long: peers of the rows in `ops`, and the network of the training step.

    The step comes after the peers of the first type.
    """
    report.begin("compiled")
    makers = op_cases.goal_cases(timer, images, batch)
    if not timer.cuda:
        report.note("torch.compile on the CPU: timed for render_heatmaps float32 alone, compiling takes long")
        makers = [make for make in makers if op_cases.describe(make) == "render_case float32"]
    first = len(makers) // len(op_cases.DTYPES)
    for make in makers[:first]:
        compiled_peers(report, timer, make)
    with report.part("step: compile"):
        train_step.measure_compiled(report, pipeline.Scale.of(report.device))
    for make in makers[first:]:
        compiled_peers(report, timer, make)


def compiled_peers(report: Report, timer: Timer, make: partial[Case]) -> None:
    """Adds the compiled peers of a case to its row, if it has one."""
    what = f"compiled: {op_cases.describe(make)}"
    if report.late(what, needs=20):
        return
    with report.part(what):
        case = make()
        for row in report.figures["ops"]:
            if (row["op"], row["dtype"], row["layout"]) == (case.op, dtype_name(case.dtype), case.layout):
                chosen = [peer for peer in case.peers if is_compiled(peer)]
                row["peers"] |= peer_medians(report, timer, case, case.own(0), chosen)
                report.say(f"{name_of(case)}: {brief(row)}")


def measure_large_maps(report: Report, timer: Timer) -> None:
    """`large_maps`: loss and gradient for the joints of whole bodies, and the memory that they take.

    With the target fused away, and rendered into memory as float32 for `mse_loss`.
    """
    report.begin("large maps")
    for joints, dtype in product(op_cases.WHOLE_BODY, (torch.bfloat16, torch.float32)):
        what = f"large maps: {joints} joints, {dtype_name(dtype)}"
        if report.late(what, needs=3):
            continue
        with report.part(what):
            one = op_cases.large_loss_case(timer, 1, dtype, joints)
            one.check(one.own(0))
            case = op_cases.large_loss_case(timer, 32 if timer.cuda else 1, dtype, joints)
            for loss, run in (("fused", case.own), ("render+mse_loss", case.peers["render+mse_loss"]())):
                timing = timer.time(run, case.sets, f"{what}, {loss}")
                row = {
                    "joints": joints,
                    "dtype": dtype_name(dtype),
                    "loss": loss,
                    "batch": case.batch,
                    "median_s": timing.median,
                    "iqr_s": timing.iqr,
                    "peak_bytes": peak_bytes(timer, run),
                }
                report.figures["large_maps"].append(row)
                report.say(f"{what}, {loss}: {1e3 * timing.median:.2f} ms")


def differs(one: Any, other: Any) -> bool:
    """Whether the first outputs are more than 2 % of the largest value apart."""
    first, second = (value if isinstance(value, Tensor) else value[0] for value in (one, other))
    apart = (first.detach().float() - second.detach().float()).abs().max()
    return not bool(apart <= 0.02 * second.detach().float().abs().max())


def measure_peak_memory(report: Report, timer: Timer, batch: int) -> None:
    """Bytes that loss and gradient need beside the prediction, with the target fused away and in memory."""
    if not timer.cuda:
        return report.note("peak memory: measured on CUDA alone")
    for dtype in (torch.float32, torch.bfloat16):
        case = op_cases.loss_case(timer, batch, dtype)
        for name, run in (("fused", case.own), ("render+mse_loss", case.peers["render+mse_loss"]())):
            row = {"what": "peak memory of the loss", "loss": name, "dtype": dtype_name(dtype)}
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


def tables(figures: dict[str, Any]) -> str:
    """A report as Markdown: where it was measured, ops, step, memory, sources, kernels, and what went wrong."""
    head = (
        f"{figures['device']}, driver {figures['driver']}, torch {figures['torch']}, commit {figures['commit']}, "
        f"{figures['date']}; {shown(figures['seconds'], '.0f')} s; copy {shown(figures['copy_gb_s'], '.0f')} GB/s"
    )
    step, extra = figures["step"], figures["extra"]
    sections = [
        head,
        table(
            "op | dtype | layout | median µs (IQR) | × floor | GB/s | best peer | faster", map(op_cells, figures["ops"])
        ),
        table(
            "step on a fixed batch | cuDNN's autotuning | samples/s | ms (IQR) | first steps, s",
            map(step_cells, step.get("fixed", [])),
        ),
        table(
            "loss and gradient, joints | dtype | loss | batch | ms (IQR) | memory, GiB",
            map(large_cells, figures["large_maps"]),
        ),
        table(
            "cores | source | step | alone, samples/s | in training, samples/s | % of fixed | waits for input, % "
            "| longest, ms | GPU busy, % | peak GiB",
            map(training_cells, figures["training"]),
        ),
        table(
            "decoder's limit, cores | images/s",
            ((row["cores"], shown(row["images_per_s"], ".0f")) for row in extra if row["what"] == "decoder limit"),
        ),
        table("peak memory | MB", peak_cells(figures)),
        table(
            "kernel | variants | registers | shared B | stack and spills B | local B",
            (row.values() for row in kernels.by_name(row for row in extra if row["what"] == "kernel")),
        ),
        f"{len(figures['notes'])} notes, {len(figures['errors'])} errors",
        "\n".join(f"* error: {error}" for error in figures["errors"]),
    ]
    return "\n\n".join(section for section in sections if section)


def table(columns: str, rows: Iterable[Iterable[Any]]) -> str:
    """A Markdown table; nothing where there are no rows."""
    lines = [f"| {' | '.join(map(str, row))} |" for row in rows]
    return "\n".join([f"| {columns} |", "|---" * (columns.count("|") + 1) + "|", *lines]) if lines else ""


def shown(value: float | None, pattern: str, factor: float = 1.0) -> str:
    return "?" if value is None else format(factor * value, pattern)


def op_cells(row: dict[str, Any]) -> list[str]:
    equal = {name: seconds for name, seconds in row["peers"].items() if name not in peers.HINTS and seconds is not None}
    best = min(equal, key=equal.__getitem__, default="")
    return [
        f"`{row['op']}`",
        row["dtype"],
        row["layout"],
        f"{shown(row['median_s'], '.1f', 1e6)} ({shown(row['iqr_s'], '.1f', 1e6)})",
        shown(row["floor_ratio"], ".2f"),
        shown(row["gb_s"], ".0f"),
        best,
        f"{equal[best] / row['median_s']:.1f}×" if best and row["median_s"] else "",
    ]


def step_cells(row: dict[str, Any]) -> list[str]:
    times = f"{shown(row['median_s'], '.2f', 1e3)} ({shown(row['iqr_s'], '.2f', 1e3)})"
    tuned = "on" if row["cudnn_benchmark"] else "off"
    return [row["mode"], tuned, shown(row["samples_per_s"], ".0f"), times, shown(row["warm_s"], ".1f")]


def large_cells(row: dict[str, Any]) -> list[str]:
    times = f"{shown(row['median_s'], '.2f', 1e3)} ({shown(row['iqr_s'], '.2f', 1e3)})"
    return [row["joints"], row["dtype"], row["loss"], row["batch"], times, shown(row["peak_bytes"], ".2f", 2.0**-30)]


def training_cells(row: dict[str, Any]) -> list[str]:
    speeds = [shown(row[key], ".0f") for key in ("loader_samples_per_s", "samples_per_s")]
    shares = [shown(row[key], ".1f", 100) for key in ("of_fixed", "input_wait_fraction")]
    rest = [shown(row["wait_max_s"], ".1f", 1e3), shown(row["gpu_busy"], ".0f", 100)]
    return [
        row["cores"],
        row["source"],
        row["mode"],
        *speeds,
        *shares,
        *rest,
        shown(row["peak_bytes"], ".1f", 2.0**-30),
    ]


def peak_cells(figures: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for row in figures["extra"]:
        if row["what"] == "peak memory of the loss":
            yield f"loss, {row['dtype']}, {row['loss']}", shown(row["bytes"], ".1f", 1e-6)
    for name, peak in figures["step"].get("peak_bytes", {}).items():
        yield f"training step, {name}", shown(peak, ".0f", 1e-6)


def measure(report: Report) -> None:
    """All sections; never raises for one that fails."""
    device = report.device
    timer = Timer(device, report.figures["errors"])
    batch = 256 if timer.cuda else 2
    report.say(f"{report.figures['device']}, torch {torch.__version__}, commit {report.figures['commit']}")
    if BUILD_SECONDS in os.environ:
        report.note(f"the native library was missing; building it took {os.environ[BUILD_SECONDS]} s, not counted here")
    with report.part("copy"):
        moved = 1 << (30 if timer.cuda else 24)
        report.figures["copy_gb_s"] = moved / timer.copy_seconds(moved) / 1e9
    # Made again for what comes last: in between their memory is the network's.
    pictures = partial(op_cases.random_images, max(batch, op_cases.images_beyond(timer.cache_bytes)), device)
    with report.part("ops"):
        measure_ops(report, timer, pictures(), batch)
    scale = pipeline.Scale.of(device)
    sections: dict[str, Callable[[], None]] = {
        "step": lambda: train_step.measure(report, scale),
        "large maps": lambda: measure_large_maps(report, timer),
        "training": lambda: pipeline.measure(report, scale),
        "extra": lambda: measure_extra(report, timer, pictures(), batch),
        "compiled": lambda: measure_compiled(report, timer, pictures(), batch),
    }
    for name, section in sections.items():
        if timer.cuda:
            torch.cuda.empty_cache()
        with report.part(name):
            section()
    report.finish()


def build_library() -> None:
    """Builds the native library in place, with this interpreter and the torch it has.

    Raises:
        subprocess.CalledProcessError: the build failed; what it said is printed already.
    """
    # The interpreter's own cmake and ninja, also where its environment is not activated.
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"PATH": path}, check=True)


def build_and_begin_again(arguments: Sequence[str]) -> int:
    """Builds the missing native library and puts a new process in the place of this one; returns 1 where it cannot."""
    if BUILD_SECONDS in os.environ:
        print(f"error: the native library was built, but does not load: {_native.load_error}", file=sys.stderr)
        return 1
    print(f"the native library does not load ({_native.load_error}): building it", flush=True)
    start = time.perf_counter()
    try:
        build_library()
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"error: the native library could not be built: {error}", file=sys.stderr)
        return 1
    os.environ[BUILD_SECONDS] = f"{time.perf_counter() - start:.0f}"
    # fastpose was imported without its ops, and so was every module that uses them.
    os.execv(sys.executable, [sys.executable, "-m", "bench.gpu_report", *arguments])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns 1 where a part of fastpose failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cuda", "cpu"), default=default, help=f"here by default {default}")
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results", help="folder of the JSON (bench/results)")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print the tables of this JSON file and end")
    options = parser.parse_args(arguments)
    if options.table:
        print(tables(json.loads(options.table.read_text(encoding="utf-8"))))
        return 0
    if options.device == "cuda" and not torch.cuda.is_available():
        print("error: --device cuda: torch finds no CUDA device", file=sys.stderr)
        return 1
    if _native.load_error is not None:
        return build_and_begin_again(sys.argv[1:] if arguments is None else arguments)
    if options.device == "cuda" and (reason := fastpose.build_info()["no_cuda_reason"]):
        print(f"error: --device cuda: the native library was built without CUDA kernels: {reason}", file=sys.stderr)
        return 1
    report = Report(torch.device(options.device), options.out)
    try:
        measure(report)
    finally:  # what is stopped shows what it has
        print(f"\n{tables(report.figures)}\n\n{report.path}", flush=True)
    return 1 if report.figures["errors"] else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)  # temporary folders go, and processes end
    sys.exit(main())
