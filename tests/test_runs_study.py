# SPDX-License-Identifier: Apache-2.0
"""studies/runs.py: which finished runs are one row, and what is said of each row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from studies import runs


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the folder of a finished run, without a network."""
    monkeypatch.setattr(runs, "cost_of", lambda run, persons: {"steps": str(persons)})

    def make(name: str, kind: str, score: dict[str, float], **settings: object) -> Path:
        run = tmp_path / name
        run.mkdir()
        (run / "config.yaml").write_text("".join(f"{key}: {value}\n" for key, value in settings.items()))
        (run / "summary.json").write_text(json.dumps({kind: score, "seconds": 90, "train_persons": 7}))
        return run

    return make


def test_runs_that_differ_in_their_seed_alone_are_one_row(finished) -> None:
    made = [
        finished("a", "pck", {"PCK": 70, "AUC": 40}, head="fcn", sigma=1, seed=0),
        finished("b", "pck", {"PCK": 60, "AUC": 30}, head="deconv", sigma=1, seed=0),
        finished("c", "pck", {"PCK": 71, "AUC": 41}, head="fcn", sigma=1, seed=1),
    ]
    assert runs.rows_of(made) == [
        {
            "settings": "head fcn",
            "PCK": "70.50 (70.00, 71.00)",
            "AUC": "40.50 (40.00, 41.00)",
            "minutes": "2",
            "steps": "7",
        },
        {"settings": "head deconv", "PCK": "60.00", "AUC": "30.00", "minutes": "2", "steps": "7"},
    ]


@pytest.mark.parametrize(("kind", "got"), [("pckh", "pck, pckh"), ("coco of sets", "none, pck")])
def test_scores_of_two_kinds_are_not_one_column(finished, capsys, kind: str, got: str) -> None:
    made = [finished("a", "pck", {"PCK": 70, "AUC": 40}), finished("b", kind, {"Mean": 60, "Mean@0.1": 30})]
    assert runs.main([str(run) for run in made]) == 1
    assert f"expected runs with the same score, one of pckh, pck, coco, got {got}" in capsys.readouterr().err
