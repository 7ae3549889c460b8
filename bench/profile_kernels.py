# SPDX-License-Identifier: Apache-2.0
"""Launches each hot kernel once, at the report's sizes, for a profiler that waits for cudaProfilerStart.

    ncu --profile-from-start off --set full -o kernels python -m bench.profile_kernels

Prints what is launched, in the order in which the profiler lists it; forward and backward of the loss are several
kernels. `--device cpu` runs the same launches on tiny sizes, to see that they work.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from functools import partial

import torch

from bench import op_cases
from bench.op_cases import Case
from bench.timing import Timer
from fastpose import ImageBatch


def hot_cases(timer: Timer, images: ImageBatch, batch: int) -> Iterator[partial[Case]]:
    """The goals' cases in float32 and bfloat16, channels-last maps, and DARK's decoding."""
    for make in op_cases.goal_cases(timer, images, batch):
        if torch.float16 not in make.args:
            yield make
    for make in op_cases.extra_cases(timer, images, batch):
        if make.keywords.get("layout") == "channels_last" or make.keywords.get("refine") == "dark":
            yield make


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose description contains it")
    parser.add_argument("--except", dest="without", metavar="TEXT", help="no cases whose description contains it")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    timer = Timer(device)
    batch = 256 if timer.cuda else 2
    images = op_cases.random_images(max(batch, op_cases.images_beyond(timer.cache_bytes)), device)
    for make in hot_cases(timer, images, batch):
        description = op_cases.describe(make)
        if options.only not in description or (options.without and options.without in description):
            continue
        case = make()
        for n in range(2):  # the first call also loads and allocates
            case.own(n)
        if timer.cuda:
            torch.cuda.synchronize()
            torch.cuda.profiler.start()
        case.own(0)
        if timer.cuda:
            torch.cuda.synchronize()
            torch.cuda.profiler.stop()
        print(description, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
