# SPDX-License-Identifier: Apache-2.0
"""Settings of a run in tests, and what is made from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fastpose.data.loader import PoseLoader
from fastpose.data.mpii import PckhScorer
from fastpose.engine.evaluation import Scored, predict_all, scored
from fastpose.engine.schedule import make_optimizer
from fastpose.engine.step import TrainStep
from fastpose.models.decoding import Decoder
from fastpose.options.settings import Settings


def changed(settings: Settings, **changes: Any) -> Settings:
    """The settings with others for some of them, by their flat names."""
    return Settings.of({**settings.flat(), **changes})


def make_step(model: nn.Module, settings: Settings, device: torch.device | str = "cpu", **others: Any) -> TrainStep:
    """A run's step; `others`: optimizer, joint_weights."""
    optimizer = others.pop("optimizer", None) or make_optimizer(model, settings.schedule)
    batch_size = settings.schedule.batch_size
    if settings.schedule.clip_grad_norm:
        others["clip_grad_norm"] = settings.schedule.clip_grad_norm
    return TrainStep(model, optimizer, settings.targets, settings.compute, torch.device(device), batch_size, **others)


def evaluate(
    model: nn.Module, loader: PoseLoader, settings: Settings, report: Callable[[int], None] = lambda persons: None
) -> Scored:
    """Predictions for MPII's persons, and their PCKh."""
    persons = loader.persons
    decoder = Decoder(model, persons.skeleton, settings.decode, settings.compute, udp=settings.network.udp)
    evaluation = predict_all(decoder, loader, report=report)
    assert evaluation is not None
    return scored(evaluation, PckhScorer(persons, persons.extras["head_size"]))


def small_network(depth: int, head: str, num_joints: int, *, channels: int) -> nn.Module:
    """Stands in for a ResNet, whose checkpoints alone take longer to write than these tests should take."""
    layers: list[nn.Module] = []
    for inputs in (3, channels):
        layers += [nn.Conv2d(inputs, channels, 3, 2, 1), nn.BatchNorm2d(channels), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(channels, num_joints, 1))
