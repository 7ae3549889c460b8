# SPDX-License-Identifier: Apache-2.0
"""Render 32 x 16 maps of 64 x 64, sigma 1: fastpose against SimpleBaselines' loop, torch, numba and NumPy.

In SimpleBaselines' loop each joint has its stamp computed anew; here a sample has one, which saves most of the time.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import fastpose
from bench import numba_peers, vectorized
from bench.conftest import BATCH, HEATMAP, JOINTS, Compare, Maps, Own, copy_of, on_one_thread, several_threads
from bench.peers import compiled
from fastpose import reference
from tests.helpers import upstream

pytestmark = pytest.mark.benchmark(group="render_heatmaps")


def pasted(keypoints: Tensor, visible: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps of msra, sigma 1, without weights: zeros, to which each joint's stamp of 7 x 7 is added."""
    height, width = size
    offset = torch.arange(-3, 4)
    center = (keypoints + 0.5).to(torch.int64)
    x, y = center[..., 0, None, None] + offset, center[..., 1, None, None] + offset[:, None]
    drawn = (x >= 0) & (y >= 0) & (x < width) & (y < height) & (visible > 0.5)[..., None, None]
    stamp = torch.exp(-0.5 * (offset**2 + offset[:, None] ** 2))
    place, value = torch.where(drawn, y * width + x, 0), torch.where(drawn, stamp, 0.0)
    maps = torch.zeros(*visible.shape, height * width)
    return maps.scatter_add_(2, place.flatten(2), value.flatten(2)).unflatten(2, size)


ways = pytest.mark.parametrize("way", [vectorized.render_heatmaps, pasted], ids=["products", "pasted"])


@pytest.fixture
def own(maps: Maps) -> Own:
    def run() -> tuple[Tensor, Tensor]:
        return fastpose.render_heatmaps(maps.keypoints, maps.visible, HEATMAP)

    moved = sum(tensor.nbytes for tensor in (maps.keypoints, maps.visible, *run()))
    return Own(run, moved, "joints anywhere on the map")


def test_fastpose(compare: Compare, own: Own) -> None:
    compare(own.run)


@several_threads
def test_fastpose_on_one_thread(compare: Compare, own: Own) -> None:
    compare(on_one_thread(own.run))


def test_simple_baselines(compare: Compare, maps: Maps) -> None:
    points, visible = maps.keypoints.double().numpy(), maps.visible.numpy()

    def run() -> Tensor:
        samples = [upstream.target(p, v, HEATMAP[1], HEATMAP[0], 1)[0] for p, v in zip(points, visible, strict=True)]
        return torch.from_numpy(np.stack(samples))

    compare(run)


@ways
def test_plain_torch(compare: Compare, maps: Maps, way: Callable[..., object]) -> None:
    compare(lambda: way(maps.keypoints, maps.visible, HEATMAP))


@ways
def test_torch_compile(compare: Compare, maps: Maps, way: Callable[..., object]) -> None:
    run = compiled(way)
    compare(lambda: run(maps.keypoints, maps.visible, HEATMAP))


def test_numba(compare: Compare, maps: Maps) -> None:
    points, visible = maps.keypoints.numpy(), maps.visible.numpy()

    def run() -> tuple[np.ndarray, np.ndarray]:
        out, weights = np.empty(maps.pred.shape, np.float32), np.empty(visible.shape, np.float32)
        numba_peers.render_heatmaps(points, visible, 1.0, out, weights)
        return out, weights

    compare(run)


def test_numpy_reference(compare: Compare, maps: Maps) -> None:
    compare(lambda: reference.render_heatmaps(maps.keypoints.numpy(), maps.visible.numpy(), HEATMAP))


def test_limit_torch_zeros(compare: Compare) -> None:
    compare(lambda: torch.zeros(BATCH, JOINTS, *HEATMAP), None)


def test_limit_copy(compare: Compare, own: Own) -> None:
    compare(copy_of(own.moved), None)
