# SPDX-License-Identifier: Apache-2.0
"""Random rotation, scale and mirroring, drawn for a whole batch at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """What may happen to a training crop. Never translation: the centre says whose joints are wanted (paper, 3).

    Attributes:
        rotation: largest turn in degrees, drawn uniformly from [-rotation, rotation] (paper: 30).
        scale: smallest and largest factor on the box, drawn uniformly (paper: 0.75 to 1.25).
        flip: probability of mirroring, 0 to 1 (our addition: 0.5).
    """

    rotation: float = 30.0
    scale: tuple[float, float] = (0.75, 1.25)
    flip: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 <= self.rotation <= 180.0:
            raise ValueError(f"rotation: expected degrees between 0 and 180, got {self.rotation}")
        low, high = self.scale
        if not 0.0 < low <= high < float("inf"):
            raise ValueError(f"scale: expected 0 < smallest <= largest, got {self.scale}")
        if not 0.0 <= self.flip <= 1.0:
            raise ValueError(f"flip: expected a probability between 0 and 1, got {self.flip}")

    def draw(self, count: int, generator: torch.Generator) -> Draws:
        """Draws `count` augmentations on the generator's device, always in the same order: rotation, scale, flip."""
        device = generator.device
        rotation, scale, flip = torch.rand(3, count, generator=generator, device=device).unbind()
        low, high = self.scale
        return Draws((2.0 * rotation - 1.0) * self.rotation, low + (high - low) * scale, flip < self.flip)


class Draws(NamedTuple):
    """One row per sample: rotation float32 [B] in degrees, scale float32 [B] (factor on the box), flip bool [B]."""

    rotation: Tensor
    scale: Tensor
    flip: Tensor
