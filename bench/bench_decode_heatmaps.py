# SPDX-License-Identifier: Apache-2.0
"""Decode 32 x 16 maps of 64 x 64 to image points: fastpose against SimpleBaselines' loop, torch, numba, NumPy, amax.

Peers written for speed (numba, "two stages", "numpy vectorised") ignore what NaN would do; fastpose does not.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import fastpose
from bench import numba_peers, vectorized
from bench.conftest import Compare, Maps, Own, copy_of, on_one_thread, several_threads
from bench.peers import compiled
from fastpose import reference
from tests.helpers import upstream

pytestmark = pytest.mark.benchmark(group="decode_heatmaps")


def two_stages(maps: Tensor, *, heatmap_to_image: Tensor) -> tuple[Tensor, Tensor]:
    """The highest row by `amax`, then its highest pixel: by hand, without what the fallback does for NaN."""
    batch, joints, height, width = maps.shape
    scores, y = maps.amax(3).max(2)
    row = maps.gather(2, y[..., None, None].expand(batch, joints, 1, width))
    x = row[:, :, 0].argmax(2)
    inside = (x > 1) & (x < width - 1) & (y > 1) & (y < height - 1)
    beside = (y * width + x)[..., None] + torch.tensor([-1, 1, -width, width])
    left, right, above, below = maps.flatten(2).gather(2, torch.where(inside[..., None], beside, 0)).unbind(2)
    move = 0.25 * torch.stack([right - left, below - above], 2).sign() * inside[..., None]
    points = (torch.stack([x, y], 2) + move) * (scores > 0)[..., None]
    return points @ heatmap_to_image[:, :, :2].mT + heatmap_to_image[:, None, :, 2], scores


ways = pytest.mark.parametrize("way", [vectorized.decode_heatmaps, two_stages], ids=["the fallback", "two stages"])


@pytest.fixture
def own(maps: Maps) -> Own:
    def run() -> tuple[Tensor, Tensor]:
        return fastpose.decode_heatmaps(maps.pred, heatmap_to_image=maps.matrix)

    moved = sum(tensor.nbytes for tensor in (maps.pred, maps.matrix, *run()))
    return Own(run, moved, "targets under noise")


def test_fastpose(compare: Compare, own: Own) -> None:
    compare(own.run)


@several_threads
def test_fastpose_on_one_thread(compare: Compare, own: Own) -> None:
    compare(on_one_thread(own.run))


def test_fastpose_channels_last(compare: Compare, maps: Maps) -> None:
    pred = maps.pred.contiguous(memory_format=torch.channels_last)
    compare(lambda: fastpose.decode_heatmaps(pred, heatmap_to_image=maps.matrix))


def test_simple_baselines(compare: Compare, maps: Maps) -> None:
    pred, matrices = maps.pred.numpy(), maps.matrix.double().numpy()

    def run() -> np.ndarray:
        points, _ = upstream.quarter_offset(pred)
        for sample, matrix in zip(points, matrices, strict=True):
            for k in range(len(sample)):
                sample[k] = matrix @ [*sample[k], 1.0]
        return points

    compare(run)


def test_numpy_vectorised(compare: Compare, maps: Maps) -> None:
    pred, matrix = maps.pred.numpy(), maps.matrix.numpy()
    batch, joints, height, width = pred.shape
    rows = np.arange(batch * joints)

    def run() -> tuple[np.ndarray, np.ndarray]:
        flat = pred.reshape(batch * joints, -1)
        index = flat.argmax(1)
        scores, (y, x) = flat[rows, index], np.divmod(index, width)
        points = np.stack([x, y], 1).astype(np.float32)
        r = np.flatnonzero((x > 1) & (x < width - 1) & (y > 1) & (y < height - 1))
        i = index[r]
        points[r, 0] += 0.25 * np.sign(flat[r, i + 1] - flat[r, i - 1])
        points[r, 1] += 0.25 * np.sign(flat[r, i + width] - flat[r, i - width])
        points[scores <= 0] = 0
        points = points.reshape(batch, joints, 2) @ matrix[:, :, :2].transpose(0, 2, 1) + matrix[:, None, :, 2]
        return points, scores.reshape(batch, joints)

    compare(run)


@ways
def test_plain_torch(compare: Compare, maps: Maps, way: Callable[..., object]) -> None:
    compare(lambda: way(maps.pred, heatmap_to_image=maps.matrix))


@ways
def test_torch_compile(compare: Compare, maps: Maps, way: Callable[..., object]) -> None:
    run = compiled(way)
    compare(lambda: run(maps.pred, heatmap_to_image=maps.matrix))


def test_numba(compare: Compare, maps: Maps) -> None:
    pred, matrix = maps.pred.numpy(), maps.matrix.numpy()

    def run() -> tuple[np.ndarray, np.ndarray]:
        points, scores = np.empty((*maps.visible.shape, 2), np.float32), np.empty(maps.visible.shape, np.float32)
        numba_peers.decode_heatmaps(pred, matrix, points, scores)
        return points, scores

    compare(run)


def test_numpy_reference(compare: Compare, maps: Maps) -> None:
    compare(lambda: reference.decode_heatmaps(maps.pred.numpy(), heatmap_to_image=maps.matrix.numpy()))


def test_limit_torch_amax(compare: Compare, maps: Maps) -> None:
    compare(lambda: maps.pred.amax((2, 3)), None)


def test_limit_copy(compare: Compare, own: Own) -> None:
    compare(copy_of(own.moved), None)
