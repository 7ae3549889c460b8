# SPDX-License-Identifier: Apache-2.0
"""A run's numbers as TensorBoard's event files, which are in the run's folder while it trains."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastpose.option import OptionError

NUMBERS = {  # of a line of metrics.jsonl, and what TensorBoard calls them
    "loss": "train/loss",
    "lr": "train/lr",
    "samples_per_second": "speed/samples_per_second",
    "input_wait_fraction": "speed/input_wait_fraction",
}


def require_tensorboard() -> None:
    """Raises OptionError with the command that installs it if tensorboard cannot be imported."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise OptionError(
            "tensorboard", f"needs the package tensorboard, which cannot be imported ({error}): pip install tensorboard"
        ) from None


class EventFile:
    """TensorBoard's events of a run: for each epoch, which is their step, the numbers of its line of metrics.jsonl.

    Args:
        folder: the run's.
        lines: those of the epochs that are finished. What earlier files have of later epochs does not count any more;
            if there is no earlier file, these lines are written now.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, folder: Path, lines: Sequence[Mapping[str, Any]]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        begun = any(folder.glob("events.out.tfevents.*"))
        after = max((line["epoch"] for line in lines), default=0) + 1
        self._writer = SummaryWriter(str(folder), purge_step=after if begun else None)
        if not begun:
            for line in lines:
                self._add(line)
        self._writer.flush()

    def epoch(self, line: Mapping[str, Any]) -> None:
        """Adds an epoch, by its line of metrics.jsonl; it is then in the file."""
        self._add(line)
        self._writer.flush()

    def _add(self, line: Mapping[str, Any]) -> None:
        for name, tag in NUMBERS.items():
            self._writer.add_scalar(tag, line[name], line["epoch"])
        for tag, value in _scores(line):
            self._writer.add_scalar(tag, value, line["epoch"])


def _scores(values: Mapping[str, Any], above: str = "") -> list[tuple[str, float]]:
    """The scores of a line, of several sets below the name of each: pckh/Mean, mixture/SET/AP."""
    found = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            found += _scores(value, f"{above}{name}/")
        elif above and type(value) in (int, float) and math.isfinite(value):
            found.append((f"{above}{name}", float(value)))
    return found
