# SPDX-License-Identifier: Apache-2.0
"""Lets runs go on from whatever power cuts can leave of them, and compares them with the undisturbed one, to the bit.

    python -m studies.reliability.power_cuts

Records what small runs write, and replays a cut before and after each fsync and rename (see tests/helpers/disk.py):
with every subset of the names that were not brought to the disk, and the contents that were not kept, lost, half kept
and full of zeros. `--again`: of some states the resumed run is recorded and cut in turn.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from fastpose import train
from fastpose.engine import pictures
from fastpose.models import network
from tests.helpers.disk import Disk, State, put
from tests.helpers.runs import go_on, results, start_and_stop, write_recipe
from tests.helpers.settings import small_network

RUNS = {
    "a run": (),
    "evaluated every other epoch": ("--epochs", "4", "--eval_every", "2"),
    "resumed in an epoch": ("--epochs", "3"),
    "with more epochs": ("--epochs", "3"),
}


def record(folder: Path, run: Callable[[], int]) -> list[tuple[str, State]]:
    disk = Disk(folder)
    with disk.recorded():
        assert run() == 0
    return disk.states


def count_equal(
    states: list[tuple[str, State]], recipe: Path, folder: Path, expected: object, words: tuple[str, ...], what: str
) -> int:
    """Lets each state go on, in a folder of its own; returns how many end with the expected results."""
    equal = 0
    for number, (moment, state) in enumerate(states):
        put(state, place := folder.with_name(f"{folder.name}-{number}"))
        with mock.patch.object(os, "fsync"):  # half of the time
            good = go_on(recipe, place / "run", *words) == 0 and results(place / "run") == expected
        equal += good
        if not good:
            print(f"{what}: {moment}", file=sys.stderr)
    return equal


def cut_again(
    state: State, recipe: Path, folder: Path, expected: object, words: tuple[str, ...], what: str
) -> tuple[int, int]:
    """Records how a state goes on, and cuts that in turn. Returns the states that makes, and the equal ones."""
    put(state, folder)
    states = record(folder, lambda: go_on(recipe, folder / "run", *words))
    return len(states), count_equal(states, recipe, folder, expected, words, what)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--again", type=int, default=5, help="states of each run that are cut a second time, count")
    asked = parser.parse_args()
    draw, failed = random.Random(0), 0
    network.pose_resnet = small_network
    for name in ("draw_predictions", "draw_heatmaps"):  # curves.png shows how pictures are written
        setattr(pictures, name, lambda *arguments, **named: None)
    print(f"{'':30}  states  equal")
    for name, words in RUNS.items():
        with tempfile.TemporaryDirectory() as place, contextlib.redirect_stdout(io.StringIO()):
            root = Path(place)
            (root / "disk").mkdir()
            recipe, run = write_recipe(root / "data"), root / "disk/run"
            if name == "resumed in an epoch":
                start_and_stop(recipe, run, 1, *words)
            elif name == "with more epochs":
                assert train.main(["--recipe", str(recipe), "--run", str(run)]) == 0
            command = ["--resume", str(run)] if run.exists() else ["--recipe", str(recipe), "--run", str(run)]
            states = record(root / "disk", lambda command=[*command, *words]: train.main(command))
            if name == "with more epochs":  # those before it are the complete run, which has nothing to do
                states = [one for one in states if b"epochs: 3\n" in (one[1].get("run/config.yaml") or b"")]
            expected = results(run)
            equal = count_equal(states, recipe, root / "state", expected, words, name)
            again = equal_again = 0
            for number in draw.sample(range(len(states)), asked.again):
                moment, state = states[number]
                what = f"{name}: {moment}; then"
                more = cut_again(state, recipe, root / f"again{number}", expected, words, what)
                again, equal_again = again + more[0], equal_again + more[1]
        print(f"{name:30}  {len(states):6d} {equal:6d}")
        print(f"{'  cut a second time':30}  {again:6d} {equal_again:6d}", flush=True)
        failed += len(states) - equal + again - equal_again
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
