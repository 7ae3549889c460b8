# SPDX-License-Identifier: Apache-2.0
"""Whatever a power cut leaves of a run goes on, to the bits of the undisturbed run."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fastpose import train
from fastpose.engine import results as drawing
from fastpose.engine.run_page import write_page
from fastpose.models import network
from tests.helpers.disk import Disk, State, put
from tests.helpers.runs import draw_curves, go_on, results, start_and_stop, write_recipe
from tests.helpers.settings import small_network


@pytest.fixture(autouse=True)
def small_and_plain(monkeypatch):
    monkeypatch.setattr(network, "pose_resnet", small_network)
    monkeypatch.setattr(drawing, "draw", lambda *arguments: None)
    monkeypatch.setattr(train, "write_page", lambda *arguments: None)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("data"))


def recorded(folder: Path, run: Callable[[], int]) -> list[tuple[str, State]]:
    """What power cuts during `run` could leave of a folder."""
    disk = Disk(folder)
    with pytest.MonkeyPatch.context() as patch, disk.recorded():
        patch.setattr(drawing, "draw", draw_curves)
        patch.setattr(train, "write_page", write_page)
        assert run() == 0
    return disk.states


def check(states: list[tuple[str, State]], recipe: Path, folder: Path, *words: str) -> None:
    """Each state goes on to the results of the last one, which is that of the complete run."""
    put(states[-1][1], folder / "whole")
    expected = results(folder / "whole/run")
    for number, (moment, state) in enumerate(states):
        put(state, folder / str(number))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", lambda file: None)  # half of the time
            assert go_on(recipe, folder / str(number) / "run", *words) == 0, moment
        assert results(folder / str(number) / "run") == expected, moment


def test_a_run_goes_on_from_whatever_a_power_cut_leaves(recipe, tmp_path):
    (tmp_path / "disk").mkdir()
    words = ["--recipe", str(recipe), "--run", str(tmp_path / "disk/run")]
    states = recorded(tmp_path / "disk", lambda: train.main(words))
    # Nobody reads an unfinished file, so its contents do not matter; the slow test tries them all.
    distinct: dict[frozenset, tuple[str, State]] = {}
    for moment, state in states:
        key = frozenset((name, None if ".part." in name else contents) for name, contents in state.items())
        distinct[key] = (moment, state)
    assert len(distinct) >= 20
    check(list(distinct.values()), recipe, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("words", [(), ("--epochs", "4", "--eval_every", "2"), ("--epochs", "1")], ids=" ".join)
def test_a_run_goes_on_from_all_that_a_power_cut_may_leave(recipe, tmp_path, words):
    (tmp_path / "disk").mkdir()
    command = ["--recipe", str(recipe), "--run", str(tmp_path / "disk/run"), *words]
    states = recorded(tmp_path / "disk", lambda: train.main(command))
    assert len(states) >= 30
    check(states, recipe, tmp_path, *words)


@pytest.mark.slow
@pytest.mark.parametrize("looks", [1, 5], ids=["in an epoch", "in an evaluation"])
def test_a_run_that_was_resumed_goes_on_from_all_that_a_power_cut_may_leave(recipe, tmp_path, looks):
    run = tmp_path / "disk/run"
    start_and_stop(recipe, run, looks)
    (run / "best.part.pt").write_bytes(b"of an earlier attempt")
    states = recorded(tmp_path / "disk", lambda: train.main(["--resume", str(run)]))
    assert len(states) >= 30
    check(states, recipe, tmp_path)


def spoilt_config(run: Path) -> None:
    (run / "config.yaml").write_bytes(b"\0" * 700)


def missing_config(run: Path) -> None:
    (run / "config.yaml").unlink()


def empty_config_and_metrics(run: Path) -> None:
    for name in ("config.yaml", "metrics.jsonl"):
        (run / name).write_bytes(b"")


def missing_last(run: Path) -> None:
    (run / "last.pt").rename(run / "last.prev.pt")


def torn_last(run: Path) -> None:
    (run / "last.prev.pt").write_bytes((run / "last.pt").read_bytes())
    (run / "last.pt").write_bytes((run / "last.pt").read_bytes()[:4096])


def torn_summary(run: Path) -> None:
    (run / "summary.json").write_text('{"pckh": {"He')


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (spoilt_config, "config.yaml is empty: going on with the options in {run}/last.pt"),
        (missing_config, "config.yaml is missing: going on with the options in {run}/last.pt"),
        (empty_config_and_metrics, "metrics.jsonl: the lines of 1 epochs are lost, the first is epoch 1"),
        (missing_last, "last.pt: no such checkpoint file; taking the one before it"),
        (torn_last, "taking the one before it"),
        (torn_summary, ""),
    ],
)
def test_what_power_cuts_left_of_older_runs_goes_on_with_a_warning(recipe, tmp_path, caplog, cut, message):
    """Of runs that did not bring each file to the disk before the next."""
    assert train.main(["--recipe", str(recipe), "--run", str(tmp_path / "whole")]) == 0
    run = tmp_path / "run"
    start_and_stop(recipe, run, 9)
    cut(run)
    caplog.clear()
    assert train.main(["--resume", str(run)]) == 0
    # About the tiny data, whose splits have the same images, each run warns.
    said = [record.getMessage() for record in caplog.records if record.name != "fastpose.data.sense"]
    assert message.format(run=run) in "\n".join(said)
    assert bool(message) == bool(said)
    found, expected = results(run), results(tmp_path / "whole")
    if cut is empty_config_and_metrics:
        del expected["metrics.jsonl"][0]
    assert found == expected


def test_nothing_left_at_all_is_reported(tmp_path, capsys):
    assert train.main(["--resume", str(tmp_path)]) == 1
    line = f"error: --resume {tmp_path}: no run to go on with, {tmp_path}/config.yaml is missing, and so is last.pt\n"
    assert capsys.readouterr().err == line
