# SPDX-License-Identifier: Apache-2.0
"""Runs that take a quarter of a second, and what is compared of them."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fastpose import train
from fastpose.data.dataset import Scorer
from fastpose.engine import pictures
from fastpose.engine import run as training
from fastpose.engine.epoch import StopSignals
from fastpose.models.checkpoint import save_checkpoint
from tests.helpers.tiny_mpii import write_tiny_mpii

# Times, and what may change while tests run.
TIMES = {"samples_per_second", "input_wait_fraction", "seconds", "train_seconds", "wait_seconds", "epoch_seconds"}
TIMES |= {"epoch_wait_seconds", "commit"}


def write_recipe(root: Path, **options: Any) -> Path:
    """A recipe for ten persons of 32 x 32 px: two epochs of two steps. `small_network` is made for it."""
    data = write_tiny_mpii(root / "tiny")
    tiny = {"data_root": str(data), "depth": 18, "channels": 4, "size": [32, 32], "batch_size": 5, "epochs": 2}
    (root / "tiny.yaml").write_text(yaml.safe_dump(tiny | {"device": "cpu", "log_every": 1} | options))
    return root / "tiny.yaml"


def save_weights(
    path: Path,
    weights: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    *,
    skeleton: str | Mapping[str, Any] = "mpii",
) -> None:
    """A checkpoint as a run writes it, of a network that nobody has trained."""
    path.parent.mkdir(exist_ok=True)
    save_checkpoint(
        path,
        model=dict(weights),
        optimizer=None,
        learning_rate={},
        progress={},
        config=dict(config),
        skeleton=skeleton,
    )


def start_and_stop(recipe: Path, run: Path, looks: int, *words: str) -> None:
    """Starts a run with a Ctrl-C at look `looks` at `StopSignals.received`."""

    class StopAfter(StopSignals):
        seen = 0

        @property  # type: ignore[override]
        def received(self) -> int:
            self.seen += 1
            return signal.SIGINT if self.seen >= looks else 0

        @received.setter
        def received(self, number: int) -> None: ...

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "StopSignals", StopAfter)
        assert train.main(["--recipe", str(recipe), "--run", str(run), *words]) == 128 + signal.SIGINT


def go_on(recipe: Path, run: Path, *words: str) -> int:
    """What its user does after a power cut or a kill: the run goes on or, if nothing of it is left, begins again."""
    begun = (run / "config.yaml").exists()
    return train.main(["--resume", str(run)] if begun else ["--recipe", str(recipe), "--run", str(run), *words])


def draw_curves(folder: Path, history: Sequence[dict[str, Any]], scorer: Scorer, *others: Any) -> None:
    """The quickest picture of a run, in place of all."""
    pictures.draw_curves(folder / "curves.png", history, scorer.name, scorer.curves, scorer.label, scorer.note)


def results(run: Path) -> dict[str, Any]:
    """All numbers that a run leaves, without times; equal by == if they are to the bit."""
    found: dict[str, Any] = {name: torch.load(run / name, weights_only=True) for name in ("last.pt", "best.pt")}
    found["metrics.jsonl"] = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found["summary.json"] = json.loads((run / "summary.json").read_text())
    found["config.yaml"] = yaml.safe_load((run / "config.yaml").read_text())
    found["unfinished"] = [path.name for path in run.glob("*.part.*")]
    return _plain(found)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items() if name not in TIMES}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return (str(value.dtype), value.tolist()) if isinstance(value, torch.Tensor) else value
