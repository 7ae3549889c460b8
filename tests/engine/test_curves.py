# SPDX-License-Identifier: Apache-2.0
"""curves.png of a run of few and of many epochs: points and axes that can be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fastpose.engine import pictures

CURVES = {"Mean": "PCKh@0.5", "Mean@0.1": "PCKh@0.1"}


def axes_of(monkeypatch: pytest.MonkeyPatch, losses: list[float], evaluated: list[int]) -> tuple[Any, Any, Any]:
    """The axes of loss, score and learning rate of a run with these losses, evaluated after these epochs."""
    drawn: list[Any] = []
    monkeypatch.setattr(pictures, "_save", lambda figure, path: drawn.append(figure))
    scores = {epoch: {"Mean": 40.0 + epoch, "Mean@0.1": 3.0} for epoch in evaluated}
    lines = [{"epoch": n, "loss": loss, "lr": 2.5e-4, "pckh": scores.get(n)} for n, loss in enumerate(losses, 1)]
    pictures.draw_curves(Path("curves.png"), lines, "pckh", CURVES, "PCKh@0.5", "")
    drawn[0].canvas.draw()
    loss, score, rate = drawn[0].axes
    return loss, score, rate


@pytest.mark.parametrize("epochs", [1, 2])
def test_one_or_two_epochs_are_points_on_axes_of_whole_epochs(monkeypatch: pytest.MonkeyPatch, epochs: int) -> None:
    axes = axes_of(monkeypatch, [0.01, 0.008][:epochs], list(range(1, epochs + 1)))
    for one in axes:
        assert all(line.get_marker() == "o" for line in one.lines)
        low, high = one.get_xlim()
        assert (low, high) == (0.5, epochs + 0.5)
        ticks = [tick for tick in one.get_xticks() if low <= tick <= high]
        assert ticks == list(range(1, epochs + 1))
        shown = [label.get_text() for label in one.get_yticklabels() if label.get_text()]
        assert len(shown) >= 3
    assert axes[2].get_ylim()[0] == 0
    assert axes[1].get_ylim() == (0, 105)


def test_an_evaluation_after_the_first_epochs_is_below_its_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    loss, score, _ = axes_of(monkeypatch, [0.01, 0.009, 0.008], [3])
    assert score.get_xlim() == loss.get_xlim() == (0.5, 3.5)
    assert score.lines[0].get_xdata().tolist() == [3]


def test_losses_that_are_far_apart_have_a_logarithmic_axis(monkeypatch: pytest.MonkeyPatch) -> None:
    loss, score, _ = axes_of(monkeypatch, [1.0 / n for n in range(1, 50)], [10, 20, 49])
    assert loss.get_yscale() == "log"
    assert loss.lines[0].get_marker() == ""
    assert score.lines[0].get_marker() == "o"
    assert axes_of(monkeypatch, [0.0, 0.0], [])[0].get_yscale() == "linear"
