# SPDX-License-Identifier: Apache-2.0
"""Colour maps: affine maps [3, 4] of RGB pixel values 0–255, applied by `affine_crop` in the pass that samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import reference

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalize_color(mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """The colour map value → (value / 255 − mean) / std.

    Args:
        mean, std: three numbers each, R G B, of values in 0–1 (ImageNet's: `IMAGENET_MEAN`, `IMAGENET_STD`).

    Returns:
        [3, 4] float32 on the CPU, where `affine_crop` takes it also for images on a GPU.

    Raises:
        ValueError: not three finite numbers each, or a std that is not positive.
    """
    return torch.from_numpy(reference.normalize_color(mean, std))
