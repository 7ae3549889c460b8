# SPDX-License-Identifier: Apache-2.0
"""Kills runs at random moments, lets them go on, and compares them with the undisturbed one, to the bit.

    python -m studies.reliability.kills --kills 300
    python -m studies.reliability.kills --kills 40 --ranks 2

Runs of eight epochs of a small network, with a checkpoint before each step, in processes that are forked once torch is
loaded, so that the moments are in the training and the writing and not in imports (`tests/helpers/kills.py`). Of
several ranks one is killed, or all are.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.helpers.kills import Trial, kill_runs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60, help="how many at least, count")
    parser.add_argument("--ranks", type=int, default=1, help="processes of a run, count")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()

    def report(trial: Trial) -> None:
        print(f"  {trial.kills} kills, {trial.equal} of {trial.runs} runs equal", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        trial = kill_runs(Path(folder), asked.kills, count=asked.ranks, seed=asked.seed, report=report)
    print(f"{trial.kills} kills in {trial.runs} runs: {trial.equal} equal to the undisturbed run to the bit")
    for counts in (trial.moments, trial.others):
        for what, count in counts.most_common():
            print(f"  {count:5d} {what}")
    print(*trial.faults, sep="\n")
    return int(trial.equal < trial.runs)


if __name__ == "__main__":
    sys.exit(main())
