# SPDX-License-Identifier: Apache-2.0
"""TensorBoard's event files of a run, read by TensorBoard itself where it is installed."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from fastpose import train
from fastpose.engine import results as drawing
from fastpose.engine.events import EventFile
from fastpose.models import network
from tests.helpers.runs import draw_curves, start_and_stop, write_recipe
from tests.helpers.settings import small_network


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "pose_resnet", small_network)
    monkeypatch.setattr(drawing, "draw", draw_curves)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of each tag, as TensorBoard shows them."""
    accumulators = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed"
    )
    read = accumulators.EventAccumulator(str(folder))
    read.Reload()
    return {tag: [(one.step, one.value) for one in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_without_the_package_a_training_does_not_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    recipe = write_recipe(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        train.main(["--recipe", str(recipe), "--run", str(tmp_path / "run"), "--tensorboard"])
    assert "tensorboard: needs the package tensorboard" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_run_writes_the_numbers_of_each_epoch(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    recipe, run = write_recipe(tmp_path, eval_every=2, epochs=3), tmp_path / "run"
    assert train.main(["--recipe", str(recipe), "--run", str(run), "--tensorboard"]) == 0
    read, written = scalars(run), lines(run)
    assert {*read} >= {"train/loss", "train/lr", "speed/samples_per_second", "speed/input_wait_fraction", "pckh/Mean"}
    assert read["train/loss"] == [(line["epoch"], pytest.approx(line["loss"])) for line in written]
    assert [step for step, _ in read["pckh/Mean"]] == [2, 3]
    assert read["pckh/Mean"][-1][1] == pytest.approx(written[-1]["pckh"]["Mean"])


def test_a_run_that_goes_on_has_each_epoch_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Stopped in an epoch; and with more epochs in a file than in the checkpoint, as a crash leaves them."""
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    recipe, run = write_recipe(tmp_path, epochs=3), tmp_path / "run"
    start_and_stop(recipe, run, 7, "--tensorboard")
    assert f"train --resume {run} --tensorboard\n" in capsys.readouterr().err
    begun = len(lines(run))
    assert 0 < begun < 3
    ahead = EventFile(run, lines(run))
    ahead.epoch({**lines(run)[-1], "epoch": begun + 1, "loss": 99.0})
    assert train.main(["--resume", str(run), "--tensorboard"]) == 0
    assert scalars(run)["train/loss"] == [(line["epoch"], pytest.approx(line["loss"])) for line in lines(run)]


def test_a_run_that_begins_with_it_later_has_its_earlier_epochs_too(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    recipe, run = write_recipe(tmp_path, epochs=1), tmp_path / "run"
    assert train.main(["--recipe", str(recipe), "--run", str(run)]) == 0
    assert not list(run.glob("events.*"))
    assert train.main(["--resume", str(run), "--epochs", "2", "--tensorboard"]) == 0
    assert [step for step, _ in scalars(run)["train/loss"]] == [1, 2]


def test_scores_of_several_sets_have_the_name_of_each(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    line = {"epoch": 1, "loss": 0.5, "lr": 0.1, "samples_per_second": 1.0, "input_wait_fraction": 0.0, "bad_images": 0}
    scores = {"Mean": 40.0, "own": {"AP": 30.0, "APM": None, "box_source": "annotations"}, "other": {"PCK": math.nan}}
    EventFile(tmp_path, []).epoch(line | {"mixture": scores})
    assert {tag for tag in scalars(tmp_path) if tag.startswith("mixture")} == {"mixture/Mean", "mixture/own/AP"}
