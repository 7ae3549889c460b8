# SPDX-License-Identifier: Apache-2.0
"""Persons of three dots, red, green and blue, and a network that finds them without any training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from fastpose import IMAGENET_MEAN, IMAGENET_STD

MODEL = "tests.helpers.dots:make"
JOINTS = ("red", "green", "blue")
# A person 60 px wide and 80 high; its box is a little larger.
SHAPE = np.array([(0.0, 0.0), (60.0, 40.0), (20.0, 80.0)])


def at(x: float, y: float) -> np.ndarray:
    """A person [3, 2] whose red dot is there."""
    return SHAPE + np.array([x, y])


class Dots(nn.Module):
    """How much more there is of a colour than of the others: heatmaps [B, 3, H/4, W/4] of images [B, 3, H, W]."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images: Tensor) -> Tensor:
        mean, std = (images.new_tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
        red, green, blue = (images * std + mean).unbind(1)
        more = [
            red - torch.maximum(green, blue),
            green - torch.maximum(red, blue),
            blue - torch.maximum(red, green),
        ]
        return F.avg_pool2d(torch.stack(more, 1), 4) * self.scale


def make(joints: int) -> nn.Module:
    assert joints == len(JOINTS)
    return Dots()


def draw(persons: np.ndarray, size: tuple[int, int] = (240, 320)) -> np.ndarray:
    """A picture, uint8 RGB [h, w, 3], of persons [P, 3, 2]."""
    y, x = np.mgrid[: size[0], : size[1]]
    picture = np.zeros((*size, 3))
    for person in persons:
        for channel, place in enumerate(person):
            picture[..., channel] += 255 * np.exp(-((x - place[0]) ** 2 + (y - place[1]) ** 2) / (2 * 6.0**2))
    return picture.clip(0, 255).round().astype(np.uint8)


def boxes(persons: np.ndarray) -> np.ndarray:
    """[P, 4] of persons [P, 3, 2]."""
    low, high = persons.min(axis=1), persons.max(axis=1)
    return np.concatenate([low - 8, high - low + 16], axis=1)


def write(folder: Path) -> dict[str, str]:
    """Weights and skeleton in a folder, and what `fastpose.Predictor` is called with for them."""
    torch.save(Dots().state_dict(), folder / "dots.pth")
    (folder / "dots.yaml").write_text(
        yaml.safe_dump({"joints": list(JOINTS), "limbs": [["red", "green"], ["green", "blue"]], "sigmas": [0.08] * 3})
    )
    return {"checkpoint": str(folder / "dots.pth"), "model": MODEL, "skeleton": str(folder / "dots.yaml")}
