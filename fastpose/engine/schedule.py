# SPDX-License-Identifier: Apache-2.0
"""The schedule of a training: its length, its learning rate and its optimiser."""

from __future__ import annotations

import math
import re
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
    layer_decay: float = option(
        1.0,
        "what a layer's learning rate is multiplied by once for each layer between it and the head, factor up to 1: "
        "ViTPose has 0.75 to 0.85; 1: all layers have the same rate",
    )
    norm_decay: bool = option(
        True, "weight decay also of vectors (biases, norms) and tables of positions; false: of the other weights alone"
    )
    clip_grad_norm: float = option(
        0.0, "scale each step's gradients down to at most this norm over all parameters; 0: leave them as they are"
    )
    warmup_steps: int = option(0, "training steps over which the learning rate rises from 0 to lr, count; 0: none")
    lr_drop_factor: float = option(5.0, "what the learning rate is divided by when it drops, factor")
    lr_drop_patience: int = option(
        5, "evaluations without a better validation score after which the learning rate drops, once; count"
    )
    lr_drop_epochs: tuple[int, ...] = option(
        (), "numbers of finished epochs after which the learning rate drops, instead of on a plateau; counts"
    )
    lr_decay: Literal["drops", "linear", "cosine"] = option(
        "drops",
        "how the learning rate falls: in drops, after lr_drop_epochs or on a plateau; or, step by step, in a straight "
        "line or along half of a cosine to lr_floor at the end of the training",
    )
    lr_decay_start: float = option(
        0.0, "when it begins to fall in a line or along a cosine, share of the training, 0 to 1; not before the warm-up"
    )
    lr_floor: float = option(0.0, "where the line or the cosine ends, share of lr, 0 to 1")
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
        check_at_least(self, 0, "seed", "warmup_steps", "weight_decay", "checkpoint_minutes")
        check_at_least(self, 0, "clip_grad_norm")
        if not 0.0 < self.layer_decay <= 1.0:
            raise OptionError("layer_decay", f"expected a factor above 0 and up to 1, got {self.layer_decay}")
        if not 0.0 < self.lr < float("inf"):
            raise OptionError("lr", f"expected a positive number, got {self.lr}")
        if self.lr_decay != "drops" and self.lr_drop_epochs:
            hint = "a recipe's go with --lr_drop_epochs and no number"
            raise OptionError("lr_decay", f"expected drops with lr_drop_epochs, got {self.lr_decay}: {hint}")
        for name in ("lr_decay_start", "lr_floor"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise OptionError(name, f"expected a share from 0 to 1, got {getattr(self, name)}")
        if self.lr_decay == "drops" and (self.lr_decay_start or self.lr_floor):
            name = "lr_decay_start" if self.lr_decay_start else "lr_floor"
            raise OptionError(name, f"it is for lr_decay linear and cosine, got {getattr(self, name)}")


@dataclass
class LearningRate:
    """The base rate, divided by `factor` after the epochs named or, if none are, once when the score stops rising.

    With `decay` "linear" or "cosine" it falls instead, from step `first` of the run on, and is `floor` times the base
    after step `last`.

    Over the first `warmup_steps` of the run it rises in a straight line. Without that the first steps of RMSprop are
    ten times too long: its mean of squared gradients begins at zero and holds a hundredth of the first.
    """

    base: float
    factor: float
    drop_epochs: tuple[int, ...]
    patience: int
    warmup_steps: int = 0
    decay: str = "drops"
    first: int = 0
    last: int = 0
    floor: float = 0.0
    best: float = -math.inf
    stale: int = 0
    dropped: bool = False

    @classmethod
    def of(cls, schedule: ScheduleOptions, epoch_steps: int = 0) -> LearningRate:
        """`epoch_steps`: training steps of an epoch, which do not matter to drops."""
        steps = schedule.epochs * epoch_steps
        return cls(
            schedule.lr,
            schedule.lr_drop_factor,
            schedule.lr_drop_epochs,
            schedule.lr_drop_patience,
            schedule.warmup_steps,
            schedule.lr_decay,
            max(round(schedule.lr_decay_start * steps), schedule.warmup_steps),
            steps,
            schedule.lr_floor,
        )

    def at(self, epoch: int, step: int) -> float:
        """The rate in an epoch and in a step counted from the run's beginning, both from 0."""
        rising = min(1.0, (step + 1) / max(1, self.warmup_steps))
        if self.decay != "drops":
            done = min(1.0, max(0, step - self.first) / max(1, self.last - self.first))
            left = 1.0 - done if self.decay == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
            return self.base * rising * (self.floor + (1.0 - self.floor) * left)
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
    With `layer_decay` or without `norm_decay` there are several groups of parameters, see `_groups`.

    Raises:
        OptionError: the network has no parameter that requires a gradient; see `layers_of`.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise OptionError("model", "the network has no parameter to train")
    kinds = {"rmsprop": torch.optim.RMSprop, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    apart = schedule.layer_decay < 1.0 or not schedule.norm_decay
    parameters = _groups(model, schedule) if apart else model.parameters()
    return kinds[schedule.optimizer](parameters, lr=schedule.lr, weight_decay=schedule.weight_decay)


def set_weight_decay(optimizer: torch.optim.Optimizer, weight_decay: float) -> None:
    """Gives all groups of `make_optimizer` another weight decay, except those that have none."""
    for group in optimizer.param_groups:
        group["weight_decay"] = weight_decay if group.get("decays", True) else 0.0


def _groups(model: nn.Module, schedule: ScheduleOptions) -> list[dict[str, Any]]:
    """The parameters by layer and by whether their weights decay, as mmpose's LayerDecayOptimWrapperConstructor has
    them. "lr_scale" is what a step multiplies its learning rate by.

    Weights do not decay in vectors (biases and norms) and tables of positions.
    """
    layers = layers_of(model) if schedule.layer_decay < 1.0 else {}
    head = max(layers.values(), default=0)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        positions = "pos_embed" in name or "position_embeddings" in name
        decays = schedule.norm_decay or not (parameter.ndim <= 1 or name.endswith(".bias") or positions)
        layer = layers.get(name, head)
        group = groups.setdefault(
            (layer, decays),
            {
                "params": [],
                "lr_scale": schedule.layer_decay ** (head - layer),
                "weight_decay": schedule.weight_decay if decays else 0.0,
                "decays": decays,
            },
        )
        group["params"].append(parameter)
    return list(groups.values())


def layers_of(model: nn.Module) -> dict[str, int]:
    """Each parameter's layer, by its name: 0 before the first of the numbered layers, then 1 to N, and N + 1 behind.

    Numbered are the first ``layer.0.``, ``layers.0.``, ``blocks.0.``, ``stage1.`` or ``layer1.``, and their siblings:
    layers of transformers, stages of a ResNet and the like. All else is before or behind them, in the network's order.

    Raises:
        OptionError: no name has a number.
    """
    names = [name for name, _ in model.named_parameters()]
    numbered = re.compile(r"((?:.*?\.)?(?:layers?|blocks|stages?)\.?)(\d+)\.")
    first = next((match[1] for name in names if (match := numbered.match(name))), None)
    if first is None:
        raise OptionError(
            "layer_decay", "the network's parameters have no numbered layers, such as layers.0. or layer1."
        )
    found = {name: int(match[2]) for name in names if (match := numbered.match(name)) and match[1] == first}
    numbers = sorted(set(found.values()))
    layers, other = {}, 0
    for name in names:
        if name in found:
            layers[name], other = numbers.index(found[name]) + 1, len(numbers) + 1
        else:
            layers[name] = other
    return layers
