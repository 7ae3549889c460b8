# SPDX-License-Identifier: Apache-2.0
"""What a training prints."""

from __future__ import annotations

import time
from typing import Any

from fastpose.data.dataset import Scorer
from fastpose.engine.epoch import RunProgress
from fastpose.engine.events import EventFile
from fastpose.progress import ProgressLine, duration


class TrainingReport:
    """Progress of a training on standard error.

    The time left is the time so far, evaluations included, times the steps to go over the steps done.

    Args:
        epochs: length of the training.
        steps: batches in an epoch.
        progress: how far the run is; it moves on while the report is in use.
        scorer: whose score lines of metrics.jsonl have.
        events: gets each of these lines, too; None: no event files are wanted.
    """

    def __init__(
        self, epochs: int, steps: int, progress: RunProgress, scorer: Scorer, events: EventFile | None = None
    ) -> None:
        self.epochs, self.steps, self.progress, self.scorer = epochs, steps, progress, scorer
        self.events, self.line = events, ProgressLine()
        self.begin = self.epoch_begin = time.perf_counter()
        self.first_step = progress.epoch * steps + progress.step
        self.first_sample = progress.samples

    def step(self, loss: float) -> None:
        """Called every few training steps with the epoch's mean loss so far."""
        if not self.line.due:
            return
        progress = self.progress
        rate = (progress.samples - self.first_sample) / (time.perf_counter() - self.epoch_begin)
        step = f"step {progress.step:4d}/{self.steps}"
        self.line.renew(
            f"{self._epoch(progress.epoch + 1)}  {step}  loss {loss:.6f}  {rate:6.1f} samples/s  {self._left()} left"
        )

    def epoch(self, line: dict[str, Any]) -> None:
        """Called after every epoch with its line of metrics.jsonl."""
        if self.events is not None:
            self.events.epoch(line)
        text = f"{self._epoch(line['epoch'])}  loss {line['loss']:.6f}  lr {line['lr']:.2g}  "
        text += f"{line['samples_per_second']:6.1f} samples/s  input wait {100 * line['input_wait_fraction']:.0f} %"
        if values := line.get(self.scorer.name):
            text += f"  {self.scorer.label} {values[self.scorer.main]:.2f}"
            text += f" ({self.scorer.note})" if self.scorer.note else ""
        if line["bad_images"]:
            text += f"  {line['bad_images']} bad images skipped"
        self.line.print(f"{text}  {self._left()} left")
        self.epoch_begin = time.perf_counter()
        self.first_sample = 0

    def _epoch(self, epoch: int) -> str:
        return f"epoch {epoch:{len(str(self.epochs))}d}/{self.epochs}"

    def _left(self) -> str:
        done = self.progress.epoch * self.steps + self.progress.step
        seconds = (time.perf_counter() - self.begin) / max(done - self.first_step, 1)
        return duration(seconds * (self.epochs * self.steps - done))
