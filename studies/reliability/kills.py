# SPDX-License-Identifier: Apache-2.0
"""Kills runs at random moments, lets them go on, and compares them with the undisturbed one, to the bit.

    python -m studies.reliability.kills --kills 300

A run of four epochs of a small network in a process that is forked once torch is loaded, so that the moments are in the
training and the writing and not in imports. SIGKILL, after a time between none and that of a run, a tenth more each
time; then `--resume` (or, if nothing was left, the same command again), killed again, until it ends.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import fastpose.train  # so that each fork has it
from fastpose.engine import pictures
from fastpose.models import network
from tests.helpers.runs import go_on, results, write_recipe
from tests.helpers.settings import small_network


def begin(recipe: Path, run: Path) -> int:
    """Starts or resumes a run in a process of its own; returns its number."""
    if process := os.fork():
        return process
    try:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        code = go_on(recipe, run)
    except BaseException:  # also SystemExit: a traceback in the child is a failure of the trial
        code = 99
    os._exit(code)


def killed_in(run: Path) -> str:
    """Where a run was: by what is in its folder."""
    if not (run / "config.yaml").exists():
        return "before config.yaml"
    if parts := sorted(path.name for path in run.glob("*.part.*")):
        return f"while {parts[0]} was written"
    if not (run / "last.pt").exists():
        return "before the first checkpoint"
    return "after the results" if (run / "summary.json").exists() else "between files"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60, help="how many at least, count")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    draw = random.Random(asked.seed)
    network.pose_resnet = small_network
    for name in ("draw_predictions", "draw_heatmaps"):  # most of such a run's time; curves.png is drawn
        setattr(pictures, name, lambda *arguments, **named: None)
    places: Counter[str] = Counter()
    runs = equal = failed = 0
    with tempfile.TemporaryDirectory() as folder:
        recipe = write_recipe(Path(folder), epochs=4)
        start = time.perf_counter()
        assert os.waitpid(begin(recipe, Path(folder, "whole")), 0)[1] == 0, "the undisturbed run failed"
        seconds = time.perf_counter() - start
        expected = results(Path(folder, "whole"))
        while places.total() < asked.kills:
            runs += 1
            run = Path(folder, str(runs))
            status, limit = -1, seconds
            while status == -1:
                process = begin(recipe, run)
                time.sleep(draw.uniform(0, limit))
                limit *= 1.1  # the machine may have become slower: each run is to end
                done, code = os.waitpid(process, os.WNOHANG)
                if not done:
                    os.kill(process, signal.SIGKILL)
                    code = os.waitpid(process, 0)[1]
                if os.WIFSIGNALED(code):
                    places[killed_in(run)] += 1
                else:
                    status = os.WEXITSTATUS(code)
            failed += status != 0
            equal += status == 0 and results(run) == expected
            print(f"  {places.total()} kills, {equal} of {runs} runs equal", flush=True)
    print(f"{places.total()} kills in {runs} runs: {equal} equal to the undisturbed run to the bit, {failed} failed")
    for place, count in places.most_common():
        print(f"  {count:5d} {place}")
    return int(equal < runs)


if __name__ == "__main__":
    assert fastpose.train.main
    sys.exit(main())
