# SPDX-License-Identifier: Apache-2.0
"""Runs that torchrun itself starts, and starts again after a rank has ended."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from tests.helpers.runs import results, write_recipe
from tests.helpers.torchrun import ranks_of, torchrun, wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc"),
]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    options = {"size": [64, 64], "batch_size": 4, "epochs": 40, "eval_every": 20, "checkpoint_minutes": 1e-9}
    return write_recipe(tmp_path_factory.mktemp("data"), **options)


@pytest.fixture(scope="module")
def undisturbed(recipe, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    process = torchrun(folder / "printed.txt", "--recipe", str(recipe), "--run", str(folder / "run"), restarts=0)
    assert process.wait(300) == 0, (folder / "printed.txt").read_text()
    return folder / "run"


def test_torchrun_starts_a_run_again_whose_ranks_were_killed_and_it_ends_with_the_same_bits(
    recipe, undisturbed, tmp_path
):
    run, printed = tmp_path / "run", tmp_path / "printed.txt"
    killed = torchrun(printed, "--recipe", str(recipe), "--run", str(run))
    went_on = re.compile(r"going on from \S+last\.(prev\.)?pt, epoch \d+ after step \d")
    try:
        wait_for(lambda: (run / "metrics.jsonl").exists(), killed, printed)
        for starts, rank in enumerate((1, 0)):
            wait_for(lambda starts=starts: len(went_on.findall(printed.read_text())) == starts, killed, printed)
            os.kill(ranks_of(killed.pid)[rank], signal.SIGKILL)
        assert killed.wait(300) == 0, printed.read_text()
    finally:
        if killed.poll() is None:
            killed.terminate()
            killed.wait(60)
    assert len(went_on.findall(printed.read_text())) == 2
    assert results(run) == results(undisturbed)
