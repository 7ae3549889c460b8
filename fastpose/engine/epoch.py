# SPDX-License-Identifier: Apache-2.0
"""One epoch of training, and what may end it."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastpose.data.loader import PoseLoader
from fastpose.ending import Stops, print_error
from fastpose.engine.schedule import LearningRate
from fastpose.engine.step import TrainStep
from fastpose.ops._arguments import exact_type


class NotFiniteError(ArithmeticError):
    """The loss has become infinite or not a number; the weights are worth nothing from there on."""


@dataclass
class RunProgress:
    """How far a run is. Saved with every checkpoint, so that a resumed run goes on in the middle of an epoch.

    `epoch` and `step` are the next to train; `loss_sum`, `samples`, `epoch_seconds` and `epoch_wait_seconds` belong to
    the epoch that `step` is in, the other sums to the whole run. `train_data` identifies the persons that `step`
    counts, `valid_data` those that are evaluated, `train_images` and `valid_images` their image files.
    `train_bad_images` and `valid_bad_images` are those of the loaders, as text. `changes`: what a resumed run did not
    keep, each with the epoch and step that it holds from, and what it was.
    """

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    samples: int = 0
    epoch_seconds: float = 0.0
    epoch_wait_seconds: float = 0.0
    best_epoch: int = -1
    best_score: float = -math.inf
    total_samples: int = 0
    train_seconds: float = 0.0
    wait_seconds: float = 0.0
    seconds: float = 0.0
    train_data: str = ""
    valid_data: str = ""
    train_images: str = ""
    valid_images: str = ""
    train_bad_images: dict[int, str] = field(default_factory=dict)
    valid_bad_images: dict[int, str] = field(default_factory=dict)
    changes: list[dict[str, Any]] = field(default_factory=list)

    def next_epoch(self) -> None:
        self.epoch, self.step, self.loss_sum, self.samples = self.epoch + 1, 0, 0.0, 0
        self.epoch_seconds = self.epoch_wait_seconds = 0.0


class StopSignals(Stops):
    """Turns the first stop signal into `received`, which loops look at; a second one ends the program at once."""

    def act(self, number: int) -> None:
        print_error("\nstopping after this step; once more to quit at once")


class LossWatch:
    """Brings the epoch's loss to the host every now and then; the host does not wait for it, but looks if it is there.

    Between a training step and the look at it a GPU would otherwise be idle.
    """

    def __init__(self) -> None:
        self._coming: deque[tuple[Tensor, torch.cuda.Event | None, int, int]] = deque()

    def send(self, loss_sum: Tensor, progress: RunProgress) -> None:
        """Sends the sum of the losses up to `progress` on its way."""
        event = None
        if loss_sum.device.type == "cuda":
            host = torch.empty((), dtype=loss_sum.dtype, pin_memory=True)
            host.copy_(loss_sum, non_blocking=True)
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(loss_sum.device))
        else:
            host = loss_sum.clone()
        self._coming.append((host, event, progress.step, progress.samples))

    def arrived(self) -> Iterator[tuple[float, int, int]]:
        """What has arrived: the sum of the losses, the step and the samples it belongs to."""
        while self._coming and ((event := self._coming[0][1]) is None or event.query()):
            host, _, step, samples = self._coming.popleft()
            yield float(host), step, samples


def train_one_epoch(
    train_step: TrainStep,
    rate: LearningRate,
    loader: PoseLoader,
    progress: RunProgress,
    stop: StopSignals,
    report: Callable[[float], None],
    log_every: int,
) -> None:
    """Trains from `progress.step`, which it moves on, to the epoch's end or to the step in which a stop signal came.

    `report` is called with the epoch's mean loss so far every `log_every` steps, on CUDA as soon as the GPU has come so
    far. After an error `progress` says how far training came.

    Raises:
        NotFiniteError: the loss is not a number any more.
        BadImageError: see PoseLoader.epoch.
    """
    train_step.model.train()
    train_step.prepare(loader)
    loss_sum = torch.tensor(progress.loss_sum, dtype=exact_type(loader.device), device=loader.device)
    watch = LossWatch()
    start, waited, first_sample = time.perf_counter(), loader.wait_seconds, progress.samples
    try:
        with closing(loader.epoch(progress.epoch, progress.step)) as batches:
            for batch in batches:
                loss = train_step(batch, rate.at(progress.epoch, progress.epoch * len(loader) + batch.step))
                loss_sum += loss * len(batch.rows)
                progress.samples += len(batch.rows)
                progress.step = batch.step + 1
                if progress.step % log_every == 0:
                    watch.send(loss_sum, progress)
                for total, step, samples in watch.arrived():
                    check_finite(total, progress.epoch, step)
                    report(total / samples)
                if stop.received:
                    break
            else:
                progress.step = len(loader)
    finally:
        progress.loss_sum = float(loss_sum)  # waits for the device: from here on all of its waiting is known
        seconds, wait = time.perf_counter() - start, loader.wait_seconds - waited
        progress.epoch_seconds += seconds
        progress.epoch_wait_seconds += wait
        progress.train_seconds += seconds
        progress.wait_seconds += wait
        progress.total_samples += progress.samples - first_sample
    check_finite(progress.loss_sum, progress.epoch, progress.step)


def check_finite(loss_sum: float, epoch: int, step: int) -> None:
    """Raises NotFiniteError where the sum of the losses up to `step` of an epoch is infinite or not a number."""
    if not math.isfinite(loss_sum):
        raise NotFiniteError(
            f"the loss is {loss_sum} in epoch {epoch + 1} at or before step {step}: "
            "lower the learning rate (--lr), or look for extreme values in the data"
        )
