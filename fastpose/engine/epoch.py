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

from fastpose.data.images import BadImageError
from fastpose.data.loader import PoseLoader, seed_of
from fastpose.data.pack.format import PackError
from fastpose.ending import Stops, print_once
from fastpose.engine.schedule import LearningRate
from fastpose.engine.step import TrainStep
from fastpose.ops._arguments import exact_type
from fastpose.ranks import OtherRankError, RankLostError, lost_if_it_fails


class NotFiniteError(ArithmeticError):
    """The loss has become infinite or not a number; the weights are worth nothing from there on."""


@dataclass
class RunProgress:
    """How far a run is. Saved with every checkpoint, so that a resumed run goes on in the middle of an epoch.

    `epoch` and `step` are the next to train; `loss_sum`, `samples`, `epoch_seconds` and `epoch_wait_seconds` belong to
    the epoch that `step` is in, the other sums to the whole run. `train_data` identifies the persons that `step`
    counts, `valid_data` those that are evaluated, `train_images` and `valid_images` their image files.
    `train_bad_images` and `valid_bad_images` are those of the loaders, as text. `changes`: what a resumed run did not
    keep, each with the epoch and step that it holds from, and what it was. `ranks`: how many processes train.
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
    ranks: int = 1

    def next_epoch(self) -> None:
        self.epoch, self.step, self.loss_sum, self.samples = self.epoch + 1, 0, 0.0, 0
        self.epoch_seconds = self.epoch_wait_seconds = 0.0


class StopSignals(Stops):
    """Turns the first stop signal into `received`, which loops look at; a second one ends the program at once."""

    def act(self, number: int) -> None:
        print_once("\nstopping after this step; once more to quit at once")


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


# What ends training between two steps, in all ranks at once, so that it can be saved there.
FAILURES = (BadImageError, PackError, OSError, NotFiniteError)


def train_one_epoch(
    train_step: TrainStep,
    rate: LearningRate,
    loader: PoseLoader,
    progress: RunProgress,
    stop: StopSignals,
    report: Callable[[float], None],
    log_every: int,
    *,
    save_due: Callable[[], bool] = lambda: False,
    save: Callable[[], None] = lambda: None,
) -> None:
    """Trains from `progress.step`, which it moves on, to the epoch's end or to the step in which a stop signal came.

    `report` is called with the epoch's mean loss so far every `log_every` steps, on CUDA as soon as the GPU has come so
    far. `save` is called before a step, in all ranks, if `save_due` says so in the first one. After an error `progress`
    says how far training came.

    Raises:
        NotFiniteError: the loss is not a number any more.
        BadImageError, PackError, OSError: see PoseLoader.epoch. Other ranks raise OtherRankError.
        RankLostError: a rank has gone, and with it what it knew of the losses: this epoch cannot be saved.
    """
    ranks = loader.ranks
    train_step.model.train()
    train_step.prepare(loader)
    # The first rank has what was summed up before.
    begun_with = progress.loss_sum if ranks.first else 0.0
    loss_sum = torch.tensor(begun_with, dtype=exact_type(loader.device), device=loader.device)
    watch = LossWatch()
    start, waited, first_sample, first_step = time.perf_counter(), loader.wait_seconds, progress.samples, progress.step
    together = ranks.count == 1  # whether all ranks are between the same two steps

    def take_stock() -> None:
        nonlocal start, waited, first_sample
        total = ranks.total(loss_sum) if together else loss_sum
        progress.loss_sum = float(total)  # waits for the device: from here on all of its waiting is known
        seconds, wait = time.perf_counter() - start, loader.wait_seconds - waited
        progress.epoch_seconds += seconds
        progress.epoch_wait_seconds += wait
        progress.train_seconds += seconds
        progress.wait_seconds += wait
        progress.total_samples += progress.samples - first_sample
        start, waited, first_sample = start + seconds, waited + wait, progress.samples

    failure: Exception | None = None
    stopping = False
    try:
        with closing(loader.epoch(progress.epoch, progress.step)) as batches:
            while True:
                batch = None
                try:
                    batch = next(batches, None) if failure is None else None
                except FAILURES as error:
                    failure = error
                own = 0 if batch is None else len(batch.rows)
                due = ranks.first and batch is not None and save_due()
                persons, failures, stops, saves = ranks.agree(own, failure is not None, stopping, due)
                together = True
                if failures:
                    failure = failure or OtherRankError("another rank could not go on, see there")
                    break
                if batch is None:
                    progress.step = len(loader)
                    break
                if stops:
                    break
                if saves:
                    ranks.rest()
                    take_stock()
                    ranks.alive()
                together = ranks.count == 1
                if saves:
                    save()
                if persons == 0:
                    continue
                # What a network draws itself, for dropout, it would draw again after any interruption.
                torch.manual_seed(seed_of(loader.seed, progress.epoch, 1 + batch.step, 1 + ranks.rank))
                with lost_if_it_fails():
                    loss = train_step(
                        batch, rate.at(progress.epoch, progress.epoch * len(loader) + batch.step), persons
                    )
                loss_sum += loss * own
                progress.samples += persons
                progress.step = batch.step + 1
                if progress.step % log_every == 0:
                    watch.send(ranks.total(loss_sum), progress)
                try:
                    for total, step, samples in watch.arrived():
                        check_finite(total, progress.epoch, step)
                        report(total / samples)
                except FAILURES as error:  # what is reported may go to a full disk
                    failure = error
                stopping = bool(stop.received)
                if ranks.count == 1 and (stopping or failure):
                    break
    except RankLostError as error:
        error.between_epochs = False
        raise
    finally:
        ranks.rest()
        if together:  # otherwise `progress` counts what was trained up to the last stocktaking
            try:
                take_stock()
            except RankLostError as error:
                error.between_epochs = False
                raise
    check_finite(progress.loss_sum, progress.epoch, progress.step)
    if failure is not None:
        raise failure
    if ranks.count > 1 and progress.samples == 0 and first_step == 0 and progress.step == len(loader):
        raise loader.nothing_read()


def check_finite(loss_sum: float, epoch: int, step: int) -> None:
    """Raises NotFiniteError where the sum of the losses up to `step` of an epoch is infinite or not a number."""
    if not math.isfinite(loss_sum):
        raise NotFiniteError(
            f"the loss is {loss_sum} in epoch {epoch + 1} at or before step {step}: "
            "lower the learning rate (--lr), or look for extreme values in the data"
        )
