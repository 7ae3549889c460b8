# SPDX-License-Identifier: Apache-2.0
"""Render 32 x 16 maps of 64 x 64, sigma 1: fastpose against SimpleBaselines' loop, plain torch, NumPy, a plain fill."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import fastpose
from bench import numba_peers, vectorized
from bench.conftest import BATCH, HEATMAP, JOINTS, Maps
from bench.peers import compiled
from fastpose import reference
from tests import upstream

pytestmark = pytest.mark.benchmark(group="render_heatmaps")


def test_fastpose(benchmark: BenchmarkFixture, maps: Maps) -> None:
    benchmark(fastpose.render_heatmaps, maps.keypoints, maps.visible, HEATMAP)


def test_simple_baselines(benchmark: BenchmarkFixture, maps: Maps) -> None:
    points, visible = maps.keypoints.double().numpy(), maps.visible.numpy()

    def run() -> torch.Tensor:
        samples = [upstream.target(p, v, HEATMAP[1], HEATMAP[0], 1)[0] for p, v in zip(points, visible, strict=True)]
        return torch.from_numpy(np.stack(samples))

    torch.testing.assert_close(run(), fastpose.render_heatmaps(maps.keypoints, maps.visible, HEATMAP)[0])
    benchmark(run)


def test_plain_torch(benchmark: BenchmarkFixture, maps: Maps) -> None:
    benchmark(vectorized.render_heatmaps, maps.keypoints, maps.visible, HEATMAP)


def test_torch_compile(benchmark: BenchmarkFixture, maps: Maps) -> None:
    run = compiled(vectorized.render_heatmaps)
    run(maps.keypoints, maps.visible, HEATMAP)
    benchmark(run, maps.keypoints, maps.visible, HEATMAP)


def test_numba(benchmark: BenchmarkFixture, maps: Maps) -> None:
    points, visible = maps.keypoints.numpy(), maps.visible.numpy()

    def run() -> tuple[np.ndarray, np.ndarray]:
        out, weights = np.empty(maps.pred.shape, np.float32), np.empty(visible.shape, np.float32)
        numba_peers.render_heatmaps(points, visible, 1.0, out, weights)
        return out, weights

    expected = fastpose.render_heatmaps(maps.keypoints, maps.visible, HEATMAP)
    for got, wanted in zip(run(), expected, strict=True):
        np.testing.assert_allclose(got, wanted.numpy(), atol=1e-6)
    benchmark(run)


def test_numpy_reference(benchmark: BenchmarkFixture, maps: Maps) -> None:
    benchmark.pedantic(reference.render_heatmaps, (maps.keypoints.numpy(), maps.visible.numpy(), HEATMAP), rounds=5)


def test_limit_torch_zeros(benchmark: BenchmarkFixture) -> None:
    benchmark(torch.zeros, BATCH, JOINTS, *HEATMAP)
