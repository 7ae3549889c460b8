# SPDX-License-Identifier: Apache-2.0
"""The schedule of a training: its length, its learning rate and its optimiser."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from fastpose.option import OptionError, check_at_least, option


@dataclass(frozen=True)
class ScheduleOptions:
    """How long, in which steps and at which rate a network is trained."""

    epochs: int = option(140, "length of the training, epochs")
    batch_size: int = option(32, "persons in a training batch, of all ranks together, count")
    eval_batch_size: int = option(64, "persons in an evaluation batch, count")
    optimizer: Literal["rmsprop", "adam", "adamw"] = option("rmsprop", "optimiser: rmsprop (the paper), adam or adamw")
    lr: float = option(2.5e-4, "the optimiser's learning rate, per step")
    weight_decay: float = option(
        0.0, "the optimiser's weight decay, factor: of rmsprop and adam on the gradient, of adamw on the weights"
    )
    warmup_steps: int = option(0, "training steps over which the learning rate rises from 0 to lr, count; 0: none")
    lr_drop_factor: float = option(5.0, "what the learning rate is divided by when it drops, factor")
    lr_drop_patience: int = option(
        5, "evaluations without a better validation score after which the learning rate drops, once; count"
    )
    lr_drop_epochs: tuple[int, ...] = option(
        (), "numbers of finished epochs after which the learning rate drops, instead of on a plateau; counts"
    )
    cosine_epochs: int = option(
        0, "epochs at the end of the training in which the learning rate falls along a cosine, instead of drops; count"
    )
    cosine_floor: float = option(0.05, "where the cosine ends, share of the learning rate, 0 to 1")
    checkpoint_minutes: float = option(
        10.0,
        "minutes of training after which last.pt is written within an epoch, too: bounds what a crash costs; 0: at the "
        "end of epochs alone",
    )
    eval_every: int = option(1, "epochs from one evaluation to the next, count; the last epoch is always evaluated")
    target_pckh: float = option(
        0.0,
        "end the training when an evaluation reaches this score (mean PCKh@0.5, COCO's AP, PCK), percent; 0: train all "
        "epochs",
    )
    seed: int = option(0, "seed of weights, order and augmentation; on the CPU equal seeds give equal bits")
    log_every: int = option(
        10,
        "training steps from one progress line, and one look for a loss that is not a number, to the next; count; "
        "in a log at most one line every ten seconds is shown",
    )

    def __post_init__(self) -> None:
        check_at_least(self, 1, "epochs", "batch_size", "eval_batch_size", "lr_drop_patience", "eval_every")
        check_at_least(self, 1, "log_every", "lr_drop_factor")
        check_at_least(self, 0, "seed", "warmup_steps", "weight_decay", "checkpoint_minutes", "cosine_epochs")
        if not 0.0 < self.lr < float("inf"):
            raise OptionError("lr", f"expected a positive number, got {self.lr}")
        if self.cosine_epochs and self.lr_drop_epochs:
            raise OptionError("cosine_epochs", f"expected 0 with lr_drop_epochs, got {self.cosine_epochs}")
        if self.cosine_epochs > self.epochs:
            raise OptionError("cosine_epochs", f"expected at most {self.epochs} epochs, got {self.cosine_epochs}")
        if not 0.0 <= self.cosine_floor <= 1.0:
            raise OptionError("cosine_floor", f"expected a share from 0 to 1, got {self.cosine_floor}")


@dataclass
class LearningRate:
    """The base rate, divided by `factor` after the epochs named or, if none are, once when the score stops rising.

    With `cosine_epochs` it falls instead, epoch by epoch over the last so many of `epochs`, along half of a cosine that
    would reach `cosine_floor` times the base after the last.

    Over the first `warmup_steps` of the run it rises in a straight line. Without that the first steps of RMSprop are
    ten times too long: its mean of squared gradients begins at zero and holds a hundredth of the first.
    """

    base: float
    factor: float
    drop_epochs: tuple[int, ...]
    patience: int
    warmup_steps: int = 0
    epochs: int = 0
    cosine_epochs: int = 0
    cosine_floor: float = 0.0
    best: float = -math.inf
    stale: int = 0
    dropped: bool = False

    @classmethod
    def of(cls, schedule: ScheduleOptions) -> LearningRate:
        return cls(
            schedule.lr,
            schedule.lr_drop_factor,
            schedule.lr_drop_epochs,
            schedule.lr_drop_patience,
            schedule.warmup_steps,
            schedule.epochs,
            schedule.cosine_epochs,
            schedule.cosine_floor,
        )

    def at(self, epoch: int, step: int) -> float:
        """The rate in an epoch and in a step counted from the run's beginning, both from 0."""
        rising = min(1.0, (step + 1) / max(1, self.warmup_steps))
        if self.cosine_epochs:
            done = max(0.0, 1.0 - (self.epochs - epoch) / self.cosine_epochs)
            falling = self.cosine_floor + (1.0 - self.cosine_floor) * 0.5 * (1.0 + math.cos(math.pi * done))
            return self.base * falling * rising
        drops = sum(epoch >= drop for drop in self.drop_epochs) if self.drop_epochs else int(self.dropped)
        return self.base / self.factor**drops * rising

    def observe(self, score: float) -> None:
        """Takes note of an evaluation's score; `patience` of them in a row without a new best are a plateau."""
        self.stale = 0 if score > self.best else self.stale + 1
        self.best = max(self.best, score)
        self.dropped = self.dropped or self.stale >= self.patience

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "stale": self.stale, "dropped": self.dropped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.stale, self.dropped = state["best"], state["stale"], state["dropped"]


def make_optimizer(model: nn.Module, schedule: ScheduleOptions) -> torch.optim.Optimizer:
    """The optimiser that the schedule names, over all parameters, with torch's other defaults.

    Weight decay adds to the gradient in RMSprop and Adam; in AdamW it shrinks the weights, apart from the gradient.

    Raises:
        OptionError: the network has no parameter that requires a gradient.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise OptionError("model", "the network has no parameter to train")
    kinds = {"rmsprop": torch.optim.RMSprop, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    return kinds[schedule.optimizer](model.parameters(), lr=schedule.lr, weight_decay=schedule.weight_decay)
