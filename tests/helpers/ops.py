# SPDX-License-Identifier: Apache-2.0
"""Inputs of the ops, and how near their results must come to the reference."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

import fastpose
from fastpose import reference

# Of a rendered heatmap, for each type that it is stored as.
RENDER_TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 6e-4, torch.bfloat16: 5e-3}


def random_images(count: int, seed: int = 0, largest: int = 40) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (*rng.integers(1, largest, 2), 3), dtype=np.uint8) for _ in range(count)]


def random_matrices(batch: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 2, 3, generator=generator) * torch.tensor([[1.0, 1.0, 15.0]])


def random_points(batch: int, joints: int, size: tuple[int, int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Positions on and around the map, many exactly at pixels and halves; visibility 0, 0.5, 0.6 or 1."""
    generator = torch.Generator().manual_seed(seed)
    extent = torch.tensor([size[1], size[0]], dtype=torch.float32)
    points = torch.rand(batch, joints, 2, generator=generator) * (extent + 16) - 8
    halves = (points * 2).round() / 2
    pick = torch.rand(batch, joints, 1, generator=generator) < 0.5
    visible = torch.tensor([0.0, 0.5, 0.6, 1.0])[torch.randint(0, 4, (batch, joints), generator=generator)]
    return torch.where(pick, halves, points), visible


def random_maps(shape: tuple[int, ...], seed: int = 0, levels: int = 6) -> Tensor:
    """Few levels, so that ties and equal neighbours are common; some maps without a positive value."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randint(-2, levels, shape, generator=generator).float() / 4
    return torch.where(torch.rand(*shape[:2], 1, 1, generator=generator) < 0.15, -maps.abs(), maps)


def predicted_maps(sigma: float, size: tuple[int, int], seed: int, noise: float) -> Tensor:
    """[8, 16, h, w], what a network gives that is not quite sure: a peak, a second one, noise of either sign."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    corner, span = torch.tensor([0.0, 0.0]), torch.tensor([width - 1.0, height - 1.0])
    first, second = (corner + span * torch.rand(8, 16, 2, generator=generator) for _ in range(2))
    seen = torch.ones(8, 16)
    peaks = [fastpose.render_heatmaps(p, seen, size, sigma=sigma, encoding="unbiased")[0] for p in (first, second)]
    strength = torch.rand(2, 8, 16, 1, 1, generator=generator) * torch.tensor([0.6, 0.3]).view(2, 1, 1, 1, 1)
    maps = (0.4 + strength[0]) * peaks[0] + strength[1] * peaks[1]
    return maps + noise * torch.randn(maps.shape, generator=generator)


def assert_decoded(out: tuple[Tensor, Tensor], maps: Tensor, **kwargs: object) -> None:
    expected = reference.decode_heatmaps(maps.cpu().double().numpy(), **kwargs)  # type: ignore[arg-type]
    np.testing.assert_allclose(out[0].cpu().numpy(), expected[0], rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(out[1].cpu().numpy(), expected[1])
