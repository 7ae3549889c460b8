# SPDX-License-Identifier: Apache-2.0
"""The data of a run, from its settings."""

from __future__ import annotations

import torch

from fastpose.data.datasets import open_dataset
from fastpose.data.loader import Batch, PoseLoader
from fastpose.data.persons import Persons
from fastpose.engine.loading import make_loader
from fastpose.options.settings import Settings
from fastpose.skeletons import Skeleton

CPU = torch.device("cpu")


def read_split(settings: Settings, split: str, skeleton: Skeleton | None = None) -> Persons:
    return open_dataset(settings.data, settings.network.size, skeleton).read(split)


def loader_of(settings: Settings, split: str, device: torch.device = CPU, persons: Persons | None = None) -> PoseLoader:
    """Augmented batches of the training persons, or the validation persons' as they are evaluated."""
    training, schedule = split == "train", settings.schedule
    return make_loader(
        read_split(settings, split) if persons is None else persons,
        settings.network,
        settings.pixels,
        settings.compute,
        device,
        batch_size=schedule.batch_size if training else schedule.eval_batch_size,
        augmentation=settings.augmentation if training else None,
        seed=schedule.seed,
    )


def batches_of(settings: Settings, split: str, device: torch.device = CPU) -> list[Batch]:
    """The batches of two epochs."""
    loader = loader_of(settings, split, device)
    return [batch for epoch in (0, 1) for batch in loader.epoch(epoch)]
