# SPDX-License-Identifier: Apache-2.0
"""Everything that is claimed about speed on a GPU, measured in one run: ops, input pipeline, training step.

    python -m bench.gpu_report                       # about 7 minutes on an H200; writes bench/results/gpu_….json
    python -m bench.gpu_report --device cpu          # the same code on tiny sizes, to see that it works
    python -m bench.gpu_report --table FILE.json     # the table of the ops of an earlier run, as Markdown

Needs torch, NumPy and OpenCV. Times of ops are device time per launch (bench/timing.py), the floor of an op is the time
that a device-to-device copy needs to read and write as many bytes. A peer that is not there is a note; an op with a
wrong result is an error, has no row, and makes the exit code 1.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastpose
from bench import kernels, op_cases, peers, pipeline
from bench.op_cases import Case, dtype_name
from bench.timing import Timer, Timing, first_line
from fastpose.ops import _library

ROOT = Path(__file__).resolve().parents[1]
# Seconds. The whole must end within 8 minutes: when a section's share is used up, or LAST reached, what can be left out
# is: compiled peers, extra sizes, variants of the step. What has begun by then is finished.
SHARES = {"ops": 190.0, "extra": 40.0, "pipeline": 80.0, "step": 90.0}
LAST = 380.0


class Report:
    """The figures so far, what failed, and what a reader must know about them."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.started = self.section_end = time.perf_counter()
        self.figures: dict[str, Any] = {
            **environment(device),
            "copy_gb_s": None,
            "ops": [],
            "pipeline": [],
            "step": {},
            "extra": [],
            "errors": [],
            "notes": [],
        }

    def say(self, text: str) -> None:
        print(f"{time.perf_counter() - self.started:5.0f} s  {text}", flush=True)

    def note(self, text: str) -> None:
        """Adds a note, once."""
        if text not in self.figures["notes"]:
            self.figures["notes"].append(text)
            self.say(f"note: {text}")

    def begin(self, section: str) -> None:
        self.section_end = min(time.perf_counter() + SHARES[section], self.started + LAST)
        self.say(section)

    def late(self, what: str) -> bool:
        """Whether the section's share of the time is used up; `what` is then noted as left out."""
        if time.perf_counter() < self.section_end:
            return False
        self.note(f"left out for want of time: {what}")
        return True

    @contextmanager
    def part(self, what: str) -> Iterator[None]:
        """A failure inside is an error of the report; the rest goes on."""
        try:
            yield
        except Exception as error:
            self.figures["errors"].append(f"{what}: {type(error).__name__}: {first_line(error)}")
            self.say(f"ERROR in {self.figures['errors'][-1]}")

    @contextmanager
    def optional(self, what: str) -> Iterator[None]:
        """A failure inside is a note: a peer that cannot run here takes nothing from the figures of the ops."""
        try:
            yield
        except Exception as error:
            self.note(f"{what}: {type(error).__name__}: {first_line(error)}")


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
    """Short commit of this checkout, "-dirty" if a tracked file was changed; "unknown" outside git."""
    head = _answer("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD")
    if head is None:
        return "unknown"
    changed = _answer("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    return f"{head}-dirty" if changed else head


def _answer(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def measure_ops(report: Report, timer: Timer, batch: int) -> None:
    """`ops`, at the goals' sizes with all peers, and `extra`, the other sizes."""
    images = op_cases.random_images(batch, timer.device)
    report.note("heatmap_mse_loss: backward follows forward, as in training, and may find the prediction in the L2")
    for section, makers in (("ops", op_cases.goal_cases), ("extra", op_cases.extra_cases)):
        report.begin(section)
        for make in makers(timer, images):
            what = f"{section}: {op_cases.describe(make)}"
            if section == "extra" and report.late(what):
                continue
            with report.part(what):
                row = op_row(report, timer, make())
                report.figures[section].append(row)
                report.say(f"{row['op']} {row['dtype']} {row['layout']} {row.get('detail', '')}: {brief(row)}")
    copies = timer.copies()
    report.figures["extra"] += [{"what": "copy", "bytes": size, "gb_s": speed} for size, speed in copies.items()]
    report.figures["copy_gb_s"] = copies[max(copies)] if copies else None


def op_row(report: Report, timer: Timer, case: Case) -> dict[str, Any]:
    """Checks an op, times it and its peers.

    Raises:
        WrongResultError: the op's result is wrong, so its time is worth nothing.
    """
    outputs = case.own(0)
    case.check(outputs)
    name = f"{case.op} {dtype_name(case.dtype)} {case.layout}"
    timing = timer.time(case.own, case.sets)
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
        "peers": peer_medians(report, timer, case, name, outputs),
    }
    return {"what": "op", **row, "detail": case.detail} if case.detail else row


def peer_medians(report: Report, timer: Timer, case: Case, name: str, outputs: Any) -> dict[str, float]:
    """Seconds per launch of the peers that can run here; the reasons of the others become notes."""
    medians = {}
    for peer, make in case.peers.items():
        if peer.endswith("_compile") and not timer.cuda and (case.op, case.dtype) != ("render_heatmaps", torch.float32):
            report.note("torch.compile on the CPU: timed for render_heatmaps float32 alone, compiling takes long")
            continue
        if peer.endswith("_compile") and report.late(f"{name}: peer {peer}"):
            continue
        with report.optional(f"{case.op}: peer {peer}"):
            run = make()
            if peer not in peers.HINTS and differs(run(0), outputs):
                report.note(f"{name}: peer {peer} gives another result")
            timing: Timing = timer.time(run, case.sets)
            medians[peer] = timing.median
            if timing.note:
                report.note(f"{case.op}: peer {peer}: {timing.note}")
    return medians


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
            run(0)
            before = torch.cuda.memory_allocated(timer.device)
            torch.cuda.reset_peak_memory_stats(timer.device)
            run(0)
            peak = torch.cuda.max_memory_allocated(timer.device) - before
            report.figures["extra"].append(
                {"what": "peak memory of the loss", "loss": name, "dtype": dtype_name(dtype), "bytes": peak}
            )


def measure_kernels(report: Report, device: torch.device) -> None:
    """Registers, shared memory and stack of each kernel that this device runs."""
    if device.type != "cuda":
        return report.note("kernel resource use: read on CUDA alone")
    with report.optional("kernel resource use"):
        major, minor = torch.cuda.get_device_capability(device)
        report.figures["extra"] += kernels.kernel_rows(Path(_library._C.__file__), f"sm_{major}{minor}")


def brief(row: dict[str, Any]) -> str:
    others = ", ".join(f"{name} {seconds * 1e6:.1f}" for name, seconds in row["peers"].items())
    own = f"{row['median_s'] * 1e6:.1f} µs, {row['floor_ratio']:.2f} x floor"
    return f"{own}; {others}" if others else own


def table(figures: dict[str, Any]) -> str:
    """The ops of a report as Markdown, and where they were measured."""
    copy = figures["copy_gb_s"] or 0.0
    lines = [
        f"{figures['device']}, driver {figures['driver']}, torch {figures['torch']}, commit {figures['commit']}, "
        f"{figures['date']}; copy {copy:.0f} GB/s",
        "",
        "| op | dtype | layout | median µs (IQR) | × floor | GB/s | best peer | faster |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in figures["ops"]:
        equal = {name: seconds for name, seconds in row["peers"].items() if name not in peers.HINTS}
        best = min(equal, key=equal.__getitem__, default="")
        faster = f"{equal[best] / row['median_s']:.1f}×" if best else ""
        time_us = f"{row['median_s'] * 1e6:.1f} ({row['iqr_s'] * 1e6:.1f})"
        lines.append(
            f"| `{row['op']}` | {row['dtype']} | {row['layout']} | {time_us} | {row['floor_ratio']:.2f} "
            f"| {row['gb_s']:.0f} | {best} | {faster} |"
        )
    return "\n".join(lines)


def write(figures: dict[str, Any], folder: Path) -> Path:
    """Writes gpu_<YYYYMMDDTHHMM>_<commit>.json, beside and renamed."""
    folder.mkdir(parents=True, exist_ok=True)
    moment = datetime.fromisoformat(figures["date"]).strftime("%Y%m%dT%H%M")
    path = folder / f"gpu_{moment}_{figures['commit']}.json"
    beside = path.with_name(path.name + ".part")
    beside.write_text(json.dumps(figures, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(beside, path)
    return path


def measure(device: torch.device) -> dict[str, Any]:
    """All sections; never raises for one that fails."""
    report, timer = Report(device), Timer(device)
    batch = 256 if timer.cuda else 2
    report.say(f"{report.figures['device']}, torch {torch.__version__}, commit {report.figures['commit']}")
    with report.part("native library"):
        fastpose.build_info()
    with report.part("ops"):
        measure_ops(report, timer, batch)
    with report.part("peak memory"):
        measure_peak_memory(report, timer, batch)
    with report.part("kernels"):
        measure_kernels(report, device)
    if timer.cuda:
        torch.cuda.empty_cache()
    with report.part("pipeline and step"):
        pipeline.measure(report)
    report.say("done")
    return report.figures


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns 1 where a part of fastpose failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cuda", "cpu"), default=default, help=f"here by default {default}")
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results", help="folder of the JSON (bench/results)")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print the table of this JSON file and end")
    options = parser.parse_args(arguments)
    if options.table:
        print(table(json.loads(options.table.read_text(encoding="utf-8"))))
        return 0
    if options.device == "cuda" and not torch.cuda.is_available():
        print("error: --device cuda: torch finds no CUDA device", file=sys.stderr)
        return 1
    figures = measure(torch.device(options.device))
    path = write(figures, options.out)
    print(f"\n{table(figures)}\n\n{path}", flush=True)
    for error in figures["errors"]:
        print(f"error: {error}", file=sys.stderr)
    return 1 if figures["errors"] else 0


if __name__ == "__main__":
    sys.exit(main())
