# SPDX-License-Identifier: Apache-2.0
"""Launches each hot kernel once, at the report's sizes, for a profiler that waits for cudaProfilerStart.

    ncu --profile-from-start off --set full -o kernels python -m bench.profile_kernels
    python -m bench.profile_kernels --table FILE.csv      # of what ncu wrote with --csv, as Markdown

Prints what is launched, in the order in which the profiler lists it; forward and backward of the loss are several
kernels. `--device cpu` runs the same launches on tiny sizes, to see that they work.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from bench.gpu import Row, Timer, extra_rows, goal_rows
from bench.gpu_session import WAITS_FOR_LOADS


def hot_rows(batch: int) -> list[Row]:
    """The goals' cases in float32 and bfloat16, channels-last maps, and DARK's decoding."""
    rows = [row for row in goal_rows(batch) if row.options["dtype"] != torch.float16]
    for row in extra_rows(batch):
        if row.options.get("layout") == "channels_last" or row.options.get("refine") == "dark":
            rows.append(row)
    return rows


def profile_table(lines: Iterable[str]) -> str:
    """What ncu measured of each launch, as Markdown: time, shares of what the GPU can do, waits, warps, registers."""
    launches: dict[tuple[str, str], dict[str, float]] = {}
    for row in csv.DictReader(line for line in lines if line.startswith('"')):  # ncu's own words are not quoted
        if row["ID"] == "ID":
            continue  # of two files, one after the other
        launch = launches.setdefault((row["ID"], row["Kernel Name"]), {})
        value = row["Metric Value"].replace(",", "")
        if re.fullmatch(r"-?[\d.]+", value):
            launch[f"{row['Metric Name']} {row['Metric Unit']}".strip()] = float(value)
    columns = ["kernel", "µs", "issue slots, %", "DRAM, %", "L1, %", "L2, %"]
    columns += ["waiting for loads, %", "warps of 64 (possible)", "registers"]
    table = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for (_, name), launch in launches.items():
        kernel = re.search(r"(\w+)<(.*?)>\(", name)
        issued = launch["Avg. Issued Instructions Per Scheduler inst"] / launch["SM Active Cycles cycle"]
        warps = (
            f"{launch['Achieved Active Warps Per SM warp']:.0f} ({launch['Theoretical Active Warps per SM warp']:.0f})"
        )
        shares = [launch[f"{what} Throughput %"] for what in ("DRAM", "L1/TEX Cache", "L2 Cache")]
        # Cycles from one instruction of a warp to its next, and those of them for which it waits for a load.
        cycles = launch["Warp Cycles Per Issued Instruction cycle"]
        waits = launch.get(f"{WAITS_FOR_LOADS} inst")
        waiting = "" if waits is None else f"{100 * waits / cycles:.0f}"
        cells = [
            f"`{kernel[1]}<{kernel[2]}>`" if kernel else name,
            f"{launch['Duration ns'] / 1e3:.1f}",
            *(f"{share:.0f}" for share in (100 * issued, *shares)),
            waiting,
            warps,
            f"{launch['Registers Per Thread register/thread']:.0f}",
        ]
        table.append(f"| {' | '.join(cells)} |")
    return "\n".join(table)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose description contains it")
    parser.add_argument("--except", dest="without", metavar="TEXT", help="no cases whose description contains it")
    parser.add_argument(
        "--table", type=Path, metavar="FILE", help="print the table of ncu's CSV (one, or several in one file) and end"
    )
    options = parser.parse_args(arguments)
    if options.table:
        print(profile_table(options.table.read_text(encoding="utf-8").splitlines()))
        return 0
    device = torch.device(options.device)
    timer = Timer(device)
    batch = 256 if timer.cuda else 2
    for row in hot_rows(batch):
        if options.only not in str(row) or (options.without and options.without in str(row)):
            continue
        case = row.make(timer)
        for n in range(2):  # the first call also loads and allocates
            case.own(n)
        if timer.cuda:
            torch.cuda.synchronize()
            torch.cuda.profiler.start()
        case.own(0)
        if timer.cuda:
            torch.cuda.synchronize()
            torch.cuda.profiler.stop()
        print(row, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
