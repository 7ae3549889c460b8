# SPDX-License-Identifier: Apache-2.0
"""Colour maps: affine maps [3, 4] or [B, 3, 4] of RGB pixel values 0–255, applied by `affine_crop` in the pass that
samples."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ._mistakes import look_at_mean_and_std

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_LUMA = (0.299, 0.587, 0.114)  # shares of R, G and B in a pixel's grey, Rec. 601
_MIDDLE_GREY = 127.5


def normalize_color(mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """The colour map value → (value / 255 − mean) / std.

    Args:
        mean, std: three numbers each, R G B, of values in 0–1 (ImageNet's: `IMAGENET_MEAN`, `IMAGENET_STD`).

    Returns:
        [3, 4] float32 on the CPU, where `affine_crop` takes it also for images on a GPU.

    Raises:
        ValueError: not three finite numbers each, or a std that is not positive.

    Warns:
        UserWarning: once, of numbers above 10, as those of values in 0–255 are.
    """
    means, stds = _three_numbers("mean", mean), _three_numbers("std", std)
    if min(stds) <= 0.0:
        raise ValueError(f"std must be positive, got {std!r}")
    look_at_mean_and_std(means, stds)
    rows = [[0.0, 0.0, 0.0, -m / s] for m, s in zip(means, stds, strict=True)]
    for channel, s in enumerate(stds):
        rows[channel][channel] = 1.0 / (255.0 * s)
    return torch.tensor(rows, dtype=torch.float32, device="cpu")


def _three_numbers(name: str, values: Sequence[float]) -> list[float]:
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) != 3 or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{name} must be three numbers, got {values!r}")
    return numbers


def jitter_color(
    color: Tensor,
    brightness: Tensor | float = 1.0,
    contrast: Tensor | float = 1.0,
    saturation: Tensor | float = 1.0,
    hue: Tensor | float = 0.0,
) -> Tensor:
    """A colour map of pixels whose brightness, contrast, saturation and hue are changed first, in this order.

    Brightness: value → factor · value. Contrast: value → 127.5 + factor · (value − 127.5), about a grey that is the
    same for all pictures. Saturation: value → grey + factor · (value − grey), the pixel's own grey being
    0.299 R + 0.587 G + 0.114 B. Hue: colours turn about the grey axis R = G = B, by shares of a full turn; a third of
    one makes red green, green blue, and blue red. These are torchvision's `ColorJitter` in a fixed order, except for
    three things that no affine map can do: torchvision's contrast is about the picture's own mean grey, it clips values
    to the range of pixels after each step, and its hue turns on the hexagon of HSV, which is the same for thirds of a
    turn.

    Args:
        color: the map to apply after that, [3, 4], such as `normalize_color` gives; it takes R, G, B in this order.
        brightness, contrast, saturation: factors, [B] or one number for all; 1 changes nothing.
        hue: turns, [B] or one number for all; 0 changes nothing, and torchvision's go from -0.5 to 0.5.

    Returns:
        float32 [B, 3, 4] on the device of the factors, or [3, 4] on that of `color` if all of them are numbers.
        Nothing here waits for a GPU.

    Raises:
        ValueError: wrong shapes, or what is neither a number nor a tensor.
    """
    if color.shape != (3, 4):
        raise ValueError(f"color must be [3, 4], got {list(color.shape)}")
    factors = {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue}
    tensors = {name: factor for name, factor in factors.items() if isinstance(factor, Tensor)}
    if len({factor.shape for factor in tensors.values()}) > 1 or any(factor.dim() != 1 for factor in tensors.values()):
        shapes = ", ".join(f"{name} {list(factor.shape)}" for name, factor in tensors.items())
        raise ValueError(f"factors must be numbers or tensors of one shape [B], got {shapes}")
    device = next((factor.device for factor in tensors.values()), color.device)
    base = color.detach().to(device, torch.float32, non_blocking=True)
    b, c, s, turns = (
        factor.to(torch.float32)[:, None, None] if isinstance(factor, Tensor) else _number(name, factor)
        for name, factor in factors.items()
    )
    weights, grey = base[:, :3], base[:, :3].sum(dim=1, keepdim=True)
    luma = torch.cat([grey * share for share in _LUMA], dim=1)
    # A grey pixel stays as it is under saturation and hue, so luma and contrast's constant go straight to `grey`.
    linear = b * c * (s * _turned(weights, turns) + (1.0 - s) * luma)
    constant = base[:, 3:] + (1.0 - c) * _MIDDLE_GREY * grey
    return torch.cat([linear, constant.expand(*linear.shape[:-1], 1)], dim=-1)


def _number(name: str, value: float) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} must be a number or a tensor [B], got {value!r}") from None


def _turned(weights: Tensor, turns: Tensor | float) -> Tensor:
    """`weights` [3, 3] for colours that are first turned about the grey axis; [B, 3, 3] for turns [B, 1, 1]."""
    cosine: Tensor | float
    sine: Tensor | float
    if isinstance(turns, Tensor):
        cosine, sine = torch.cos(math.tau * turns), torch.sin(math.tau * turns)
    elif turns == 0.0:
        return weights
    else:
        cosine, sine = math.cos(math.tau * turns), math.sin(math.tau * turns)
    mean, apart = (1.0 - cosine) / 3.0, sine / math.sqrt(3.0)
    # Each colour keeps the first share of itself, and takes the others from its two neighbours on the circle.
    return (mean + cosine) * weights + (mean - apart) * weights.roll(1, 1) + (mean + apart) * weights.roll(-1, 1)
