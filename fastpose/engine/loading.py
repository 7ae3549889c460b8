# SPDX-License-Identifier: Apache-2.0
"""The batches of a run: the network's input, made from the pixels of persons."""

from __future__ import annotations

import torch

from fastpose.data.augmentation import Augmentation
from fastpose.data.loader import PoseLoader
from fastpose.data.persons import Persons
from fastpose.data.pixels import PixelOptions, ResidentImages, open_pixels
from fastpose.device import ComputeOptions
from fastpose.models.network import NetworkOptions
from fastpose.ranks import ALONE, Ranks


def make_loader(
    persons: Persons,
    network: NetworkOptions,
    pixels: PixelOptions,
    compute: ComputeOptions,
    device: torch.device,
    *,
    batch_size: int,
    augmentation: Augmentation | None = None,
    seed: int = 0,
    ranks: Ranks = ALONE,
) -> PoseLoader:
    """Batches of persons for a network: augmented and in random order, or for evaluation without augmentation.

    Raises:
        ValueError, BadImageError, PackError: see open_pixels and PoseLoader.
    """
    source = open_pixels(persons, network.size, pixels, device, augmentation, ranks=ranks, batch_size=batch_size)
    return PoseLoader(
        persons,
        source,
        network.size,
        batch_size,
        augmentation=augmentation,
        seed=seed,
        device=device,
        prefetch=pixels.prefetch,
        on_bad_image=pixels.on_bad_image,
        memory_format=compute.memory_format(device),
        dtype=compute.crop_dtype(device),
        color=network.color(),
        udp=network.udp,
        stride=4 if network.simcc is None else 1,
        ranks=ranks,
        by_image=isinstance(source, ResidentImages) and source.kept is not None,
    )
