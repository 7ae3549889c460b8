# SPDX-License-Identifier: Apache-2.0
"""Launches each hot kernel once, at the report's sizes, for a profiler that waits for cudaProfilerStart.

    ncu --profile-from-start off --set full -o kernels python -m bench.profile_kernels

Prints what is launched, in the order in which the profiler lists it; forward and backward of the loss are several
kernels. `--device cpu` runs the same launches on tiny sizes, to see that they work.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

from bench.gpu import Row, Timer, extra_rows, goal_rows


def hot_rows(batch: int) -> list[Row]:
    """The goals' cases in float32 and bfloat16, channels-last maps, and DARK's decoding."""
    rows = [row for row in goal_rows(batch) if row.options["dtype"] != torch.float16]
    for row in extra_rows(batch):
        if row.options.get("layout") == "channels_last" or row.options.get("refine") == "dark":
            rows.append(row)
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose description contains it")
    parser.add_argument("--except", dest="without", metavar="TEXT", help="no cases whose description contains it")
    options = parser.parse_args(arguments)
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
