# SPDX-License-Identifier: Apache-2.0
"""Everything that is claimed about speed on a GPU, measured in one run: ops, training step, sources of batches.

    python -m bench.gpu_report --out OUT             # OUT/gpu_….json (bench/results); meant to take under 8 minutes
    python -m bench.gpu_report --device cpu          # the same code on tiny sizes, to see that it works
    python -m bench.gpu_report --table FILE.json     # the tables of an earlier run, as Markdown

Needs torch, NumPy and OpenCV, and builds the native library first where it is missing. Times of ops are device time per
launch (bench/gpu.py), the floor of an op is the time that a device-to-device copy needs to read and write as many
bytes. A missing peer is a note; an op with a wrong result is an error, has no row, and makes the exit code 1.
The JSON file is written after each row: what is stopped keeps what it has, with an error that says so. For a copy
without .git the environment variable FASTPOSE_COMMIT names the commit.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import fastpose
from bench import cases, gpu, kernels, pipeline, train_step
from bench.cases.affine_crop import random_crops
from bench.gpu import Timer
from bench.gpu_session import stop
from bench.report import ROOT, Report
from fastpose.ops import _native

BUILD_SECONDS = "FASTPOSE_REPORT_BUILD_SECONDS"  # how a report learns that it was begun again after a build


def tables(figures: dict[str, Any]) -> str:
    """A report as Markdown: where it was measured, ops, step, memory, sources, kernels, and what went wrong."""
    head = (
        f"{figures['device']}, driver {figures['driver']}, torch {figures['torch']}, commit {figures['commit']}, "
        f"{figures['date']}; {shown(figures['seconds'], '.0f')} s; "
        f"1 GiB copied at {shown(figures['copy_gb_s'], '.0f')} GB/s"
    )
    step, extra = figures["step"], figures["extra"]
    speeds = {row["bytes"]: row["gb_s"] for row in extra if row["what"] == "copy"}
    sections = [
        head,
        table(
            "op | dtype | layout | median µs (IQR) | × floor | GB/s | best peer | faster",
            (op_cells(row, speeds) for row in figures["ops"]),
        ),
        table(
            "also measured | dtype | layout | median µs (IQR) | × floor | GB/s",
            ([f"`{row['op']}`, {row['detail']}", *op_cells(row, speeds)[1:6]] for row in extra if row["what"] == "op"),
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


def least_floor(row: dict[str, Any], speeds: dict[int, float]) -> float:
    """Seconds that an op's bytes take at the highest speed that any copy of at most as many reached in the run.

    More bytes are not slower than fewer, but single copies are: 67,164,160 bytes took half as long again as 67,174,400
    on an H200.
    """
    reached = [speed for size, speed in speeds.items() if size <= row["bytes"] + 1024]  # copies are rounded up
    return min([row["floor_s"], *(row["bytes"] / speed / 1e9 for speed in reached)])


def op_cells(row: dict[str, Any], speeds: dict[int, float]) -> list[str]:
    equal = {name: seconds for name, seconds in row["peers"].items() if not gpu.is_limit(name) and seconds is not None}
    best = min(equal, key=equal.__getitem__, default="")
    return [
        f"`{row['op']}`",
        row["dtype"],
        row["layout"],
        f"{shown(row['median_s'], '.1f', 1e6)} ({shown(row['iqr_s'], '.1f', 1e6)})",
        shown(row["median_s"] and row["median_s"] / least_floor(row, speeds), ".2f"),
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


def measure_compiled(report: Report, timer: Timer, batch: int) -> None:
    """What torch.compile makes, which takes long: peers of the rows in `ops`, and the network of the training step.

    The step comes after the peers of the first type.
    """
    report.begin("compiled")
    rows = gpu.goal_rows(batch)
    if not timer.cuda:
        report.note("torch.compile on the CPU: timed for render_heatmaps float32 alone, compiling takes long")
        rows = [row for row in rows if str(row) == "render_heatmaps float32 contiguous"]
    first = [row for row in rows if row.options["dtype"] == cases.DTYPES[0]]
    gpu.measure_compiled(report, timer, first)
    with report.part("step: compile"):
        train_step.measure_compiled(report, train_step.Scale.of(report.device))
    gpu.measure_compiled(report, timer, rows[len(first) :])


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
    with report.part("ops"):
        gpu.measure_ops(report, timer, batch)
    scale = train_step.Scale.of(device)
    sections: dict[str, Callable[[], None]] = {
        "step": lambda: train_step.measure(report, scale),
        "large maps": lambda: gpu.measure_large_maps(report, timer),
        "training": lambda: pipeline.measure(report, scale),
        "extra": lambda: gpu.measure_extra(report, timer, batch),
        "compiled": lambda: measure_compiled(report, timer, batch),
    }
    for name, section in sections.items():
        random_crops.cache_clear()  # the images would count among the training's memory
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
    """Builds the missing native library and begins again in a new process; returns 1 where it cannot."""
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
