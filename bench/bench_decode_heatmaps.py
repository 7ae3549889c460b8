# SPDX-License-Identifier: Apache-2.0
"""Decode 32 x 16 maps of 64 x 64 to image points: fastpose against SimpleBaselines' loop, plain torch, NumPy, amax."""

from __future__ import annotations

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import fastpose
from bench import numba_peers, vectorized
from bench.conftest import Maps
from bench.peers import compiled
from fastpose import reference
from tests import upstream

pytestmark = pytest.mark.benchmark(group="decode_heatmaps")


def test_fastpose(benchmark: BenchmarkFixture, maps: Maps) -> None:
    benchmark(fastpose.decode_heatmaps, maps.pred, heatmap_to_image=maps.matrix)


def test_simple_baselines(benchmark: BenchmarkFixture, maps: Maps) -> None:
    pred, matrices = maps.pred.numpy(), maps.matrix.double().numpy()

    def run() -> np.ndarray:
        points, _ = upstream.quarter_offset(pred)
        for sample, matrix in zip(points, matrices, strict=True):
            for k in range(len(sample)):
                sample[k] = matrix @ [*sample[k], 1.0]
        return points

    expected = fastpose.decode_heatmaps(maps.pred, heatmap_to_image=maps.matrix)[0]
    np.testing.assert_allclose(run(), expected.numpy(), atol=1e-3)
    benchmark(run)


def test_plain_torch(benchmark: BenchmarkFixture, maps: Maps) -> None:
    benchmark(vectorized.decode_heatmaps, maps.pred, heatmap_to_image=maps.matrix)


def test_torch_compile(benchmark: BenchmarkFixture, maps: Maps) -> None:
    run = compiled(vectorized.decode_heatmaps)
    run(maps.pred, heatmap_to_image=maps.matrix)
    benchmark(run, maps.pred, heatmap_to_image=maps.matrix)


def test_numba(benchmark: BenchmarkFixture, maps: Maps) -> None:
    points, scores = np.empty((*maps.visible.shape, 2), np.float32), np.empty(maps.visible.shape, np.float32)
    arguments = (maps.pred.numpy(), maps.matrix.numpy(), points, scores)
    numba_peers.decode_heatmaps(*arguments)
    expected = fastpose.decode_heatmaps(maps.pred, heatmap_to_image=maps.matrix)
    np.testing.assert_allclose(points, expected[0].numpy(), atol=1e-3)
    np.testing.assert_array_equal(scores, expected[1].numpy())
    benchmark(numba_peers.decode_heatmaps, *arguments)


def test_numpy_reference(benchmark: BenchmarkFixture, maps: Maps) -> None:
    options = {"heatmap_to_image": maps.matrix.numpy()}
    benchmark.pedantic(reference.decode_heatmaps, (maps.pred.numpy(),), options, rounds=5)


def test_limit_torch_amax(benchmark: BenchmarkFixture, maps: Maps) -> None:
    benchmark(maps.pred.amax, (2, 3))
