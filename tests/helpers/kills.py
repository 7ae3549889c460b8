# SPDX-License-Identifier: Apache-2.0
"""Runs that are killed at random moments, and go on until they are complete."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fastpose.engine import results as drawing
from fastpose.models import network
from fastpose.ranks import ranks
from tests.helpers.ranks import RankProcesses
from tests.helpers.runs import draw_curves, go_on, results, write_recipe
from tests.helpers.settings import small_network

NOTICED_SECONDS = 60  # in which ranks notice that one has gone, at the latest


@dataclass
class Trial:
    """What came of runs that were killed.

    Attributes:
        runs, equal: how many there were, and how many of them equal the undisturbed one to the bit.
        moments: how often a kill came where in a run.
        others: how the ranks that were not killed ended.
        faults: of each run that is not equal, or in which a rank ended in another way than it should, what was wrong.
    """

    runs: int = 0
    equal: int = 0
    moments: Counter[str] = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    @property
    def kills(self) -> int:
        return self.moments.total()


def kill_runs(
    folder: Path, kills: int, *, count: int = 1, seed: int = 0, report: Callable[[Trial], None] = lambda trial: None
) -> Trial:
    """Begins runs and kills them, until that many kills have come.

    A run has eight epochs of three steps, a checkpoint before each step, and an evaluation after every other epoch. It
    gets SIGKILL after up to a third of the time that an undisturbed one trains for, a tenth more each time: counted
    from where training begins or, one time in five, from the start of the process. Then the run goes on, or begins
    again if nothing was left, and is killed again, until it is complete.

    Args:
        folder: for all of them.
        kills: how many at least. Of several ranks that die in one moment each kill is one.
        count: ranks of a run. One of them is killed, or all are.
        seed: of the moments, and of who is killed.
        report: called after each run.
    """
    draw, trial = random.Random(seed), Trial()
    options = {"epochs": 8, "eval_every": 2, "checkpoint_minutes": 1e-9, "sync_batch_norm": count > 2}
    recipe = write_recipe(folder, size=[64, 64], batch_size=4, **options)

    def started(run: Path) -> RankProcesses:
        return RankProcesses(folder / "printed", count, go_on_small, str(recipe), str(run))

    undisturbed = started(folder / "first")
    assert undisturbed.wait() == [0] * count, [undisturbed.said(rank) for rank in range(count)]
    expected = left_by(folder / "first")
    processes = started(folder / "second")  # now that the server of forks is there
    begin = time.monotonic()
    processes.wait_for(lambda: config_of(folder / "second") is not None)
    trained = time.monotonic()
    assert processes.wait() == [0] * count
    whole, training = time.monotonic() - begin, time.monotonic() - trained
    assert left_by(folder / "second") == expected, "undisturbed runs differ"
    while trial.kills < kills:
        trial.runs += 1
        run, longer, faults = folder / str(trial.runs), 1.0, len(trial.faults)
        complete = False
        while not complete and len(trial.faults) == faults:
            before = config_of(run)
            processes = started(run)
            if draw.random() < 0.2:
                time.sleep(draw.uniform(0, whole * longer))
            else:
                while config_of(run) == before and any(rank.is_alive() for rank in processes.ranks):
                    time.sleep(0.002)
                time.sleep(draw.uniform(0, training / 3 * longer))
            longer *= 1.1  # also if the machine has become slower, each run is to end
            who = draw.choice([[rank] for rank in range(count)] + [list(range(count))] * (count > 1))
            complete = kill(processes, who, run, trial, met=config_of(run) != before)
        if len(trial.faults) > faults:
            continue
        if (found := left_by(run)) == expected:
            trial.equal += 1
        else:
            trial.faults.append(
                f"run {trial.runs} differs in {[name for name in expected if found[name] != expected[name]]}"
            )
        report(trial)
    return trial


def config_of(run: Path) -> int | None:
    """Which config.yaml a run has: it gets a new one where training begins, once all ranks have met."""
    try:
        return (run / "config.yaml").stat().st_ino
    except FileNotFoundError:
        return None


def kill(processes: RankProcesses, who: list[int], run: Path, trial: Trial, *, met: bool) -> bool:
    """Kills some ranks, and waits for the others, which end by themselves if they have met them. Returns whether the
    run was complete before."""
    for rank in who:
        with suppress(ProcessLookupError):  # it has ended
            processes.kill(rank)
    end = time.monotonic() + (NOTICED_SECONDS if met else 1)
    for process in processes.ranks:
        process.join(max(0.0, end - time.monotonic()))
    left = [rank for rank, process in enumerate(processes.ranks) if process.is_alive()]
    for rank in left:
        with suppress(ProcessLookupError):
            processes.kill(rank)
    codes = processes.wait()
    killed = [rank for rank in who if codes[rank] == -signal.SIGKILL]
    for rank, code in enumerate(codes):
        if rank in killed:
            continue
        if rank in left and not met:  # torchrun ends it in such a case
            trial.others["waited for the killed one to begin"] += 1
        elif code == 0:
            trial.others["was done"] += 1
        elif code == 1 and killed:
            trial.others["ended with exit code 1"] += 1
        else:
            trial.faults.append(f"run {trial.runs}: rank {rank} ended with {code}: {processes.printed(rank)}")
        if "Traceback" in processes.printed(rank):
            trial.faults.append(f"run {trial.runs}: rank {rank}: {processes.printed(rank)}")
    if killed:
        trial.moments[moment_of(run)] += len(killed)
    return codes == [0] * len(codes)


def moment_of(run: Path) -> str:
    """Where a run was when it was killed: by what is in its folder."""
    if not (run / "config.yaml").exists():
        return "before config.yaml"
    if parts := sorted(path.name for path in run.glob("*.part.*")):
        return f"while {parts[0].replace('.part', '')} was written"
    if (run / "summary.json").exists():
        return "after the results"
    if not (last := run / "last.pt").exists():
        return "between two names of last.pt" if (run / "last.prev.pt").exists() else "before the first checkpoint"
    step = torch.load(last, weights_only=True)["progress"]["step"]
    return "after a checkpoint within an epoch" if step else "after a checkpoint at the end of an epoch"


def left_by(run: Path) -> dict[str, Any]:
    """`results`, and which files there are."""
    return {**results(run), "files": sorted(path.name for path in run.iterdir())}


def go_on_small(recipe: str, run: str) -> int:
    """`go_on` with a network that takes no time, and with the quickest picture alone."""
    network.pose_resnet = small_network
    drawing.draw = draw_curves
    ranks.ROLL_CALL_SECONDS = 1
    return go_on(Path(recipe), Path(run))
