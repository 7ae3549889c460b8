# SPDX-License-Identifier: Apache-2.0
"""A run whose files cannot be written ends, all its ranks do, with one line; what it had written stays and goes on."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fastpose.engine.run import Run
from fastpose.files import part_of
from fastpose.models.checkpoint import load_latest
from tests.helpers.full_disk import fill_the_disk_at
from tests.helpers.permissions import obey_permissions
from tests.helpers.ranks import RankProcesses, train_small
from tests.helpers.runs import results, write_recipe

pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's devices and permissions")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    options = {"size": [64, 64], "batch_size": 4, "epochs": 2, "checkpoint_minutes": 1e-9}
    return write_recipe(tmp_path_factory.mktemp("data"), **options)


def words(recipe: Path, run: Path) -> tuple[str, ...]:
    return ("--recipe", str(recipe), "--run", str(run), "--quiet")


@pytest.fixture(scope="module", params=[1, pytest.param(2, marks=pytest.mark.slow)])
def finished(request, recipe, tmp_path_factory) -> tuple[int, dict]:
    """How many ranks, and what their undisturbed run leaves."""
    folder = tmp_path_factory.mktemp("finished")
    processes = RankProcesses(folder / "printed", request.param, train_small, *words(recipe, folder / "run"))
    assert processes.wait() == [0] * request.param, processes.said(0)
    return request.param, results(folder / "run")


def errors(processes: RankProcesses) -> str:
    """What all ranks print to standard error, without what is to be said about the tiny data, and how to go on."""
    lines = "".join(processes.said(rank) for rank in range(len(processes.ranks))).splitlines(keepends=True)
    others = ("are training images too", "to go on after mending this: ")
    return "".join(line for line in lines if not any(other in line for other in others))


def full_disk(run: Path) -> None:
    fill_the_disk_at(part_of(run / "last.pt"), pytest.MonkeyPatch())


def no_more_files(run: Path) -> None:
    have = max(int(name) for name in os.listdir("/proc/self/fd")) + 1
    while os.dup(0) < have:  # the limit is on numbers, not on how many
        pass
    resource.setrlimit(resource.RLIMIT_NOFILE, (have, have))


def read_only(run: Path) -> None:
    run.chmod(0o555)


def gone(run: Path) -> None:
    shutil.rmtree(run)


TROUBLE: dict[str, tuple[Callable[[Path], None], int]] = {
    "full disk": (full_disk, errno.ENOSPC),
    "too few open files": (no_more_files, errno.EMFILE),
    "read-only folder": (read_only, errno.EACCES),
    "folder that is gone": (gone, errno.ENOENT),
}
# Where it comes: before the first rank does this for the second or third time.
PLACES = {"within an epoch": ("save_between_steps", 3), "at the end of an epoch": ("write_epoch", 2)}


def troubled(what: str, place: str, run: str, *words: str) -> int:
    """`train_small`, which meets trouble at a place."""
    obey_permissions()
    method, time = PLACES[place]
    calls, write = [0], getattr(Run, method)

    def meeting_trouble(self: Run, *arguments: object) -> None:
        calls[0] += 1
        if calls[0] == time and self.ranks.first:
            TROUBLE[what][0](Path(run))
        write(self, *arguments)

    setattr(Run, method, meeting_trouble)
    return train_small(*words)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("what", TROUBLE)
def test_trouble_with_the_disk_ends_all_ranks_with_one_line_and_costs_nothing(recipe, finished, tmp_path, what, place):
    ranks, expected = finished
    run = tmp_path / "run"
    arguments = (what, place, str(run), *words(recipe, run))
    first = RankProcesses(tmp_path / "first", ranks, troubled, *arguments)
    codes = first.wait()
    said = errors(first)
    assert codes == [1] * ranks, said
    assert said.count("\n") == 1, said
    assert said.startswith("error: ")
    assert os.strerror(TROUBLE[what][1]) in said or (what == "too few open files" and "open files" in said)
    if what == "folder that is gone":
        assert not run.exists(), "nothing of it is made again"
        return
    assert str(run) in said or what == "too few open files"
    run.chmod(0o755)
    assert not list(run.glob("*.part.*"))
    progress = load_latest(run / "last.pt")[0]["progress"]
    assert (progress["epoch"], progress["step"]) > (0, 0), "the last good checkpoint"
    for line in (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").exists() else ():
        json.loads(line)
    again = RankProcesses(tmp_path / "again", ranks, train_small, "--resume", str(run))
    assert again.wait() == [0] * ranks, again.said(0)
    assert results(run) == expected


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_that_may_not_write_is_refused_before_it_trains(recipe, tmp_path, ranks):
    (above := tmp_path / "above").mkdir(mode=0o555)
    new = RankProcesses(tmp_path / "new", ranks, restrained, *words(recipe, above / "run"))
    assert new.wait() == [1] * ranks
    assert errors(new) == f"error: [Errno 13] Permission denied: '{above / 'run'}'\n"
    assert not any(above.iterdir())


def restrained(*words: str) -> int:
    obey_permissions()
    return train_small(*words)
