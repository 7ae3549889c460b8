# SPDX-License-Identifier: Apache-2.0
"""Loss and gradient of 32 x 16 maps of 64 x 64: fastpose against our own render + mse_loss, and plain torch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

import fastpose
from bench import numba_peers, vectorized
from bench.conftest import HEATMAP, Maps
from bench.peers import compiled
from fastpose import reference

pytestmark = pytest.mark.benchmark(group="heatmap_mse_loss forward + backward")


def forward_and_backward(loss: Callable[[Tensor], Tensor], pred: Tensor) -> Tensor:
    pred.grad = None
    value = loss(pred)
    value.backward()
    return value


def test_fastpose(benchmark: BenchmarkFixture, maps: Maps) -> None:
    pred = maps.pred.clone().requires_grad_()
    benchmark(forward_and_backward, lambda p: fastpose.heatmap_mse_loss(p, maps.keypoints, maps.visible), pred)


def test_our_render_and_mse_loss(benchmark: BenchmarkFixture, maps: Maps) -> None:
    pred = maps.pred.clone().requires_grad_()

    def loss(p: Tensor) -> Tensor:
        target, _ = fastpose.render_heatmaps(maps.keypoints, maps.visible, HEATMAP)
        return 0.5 * torch.nn.functional.mse_loss(p, target)

    torch.testing.assert_close(loss(pred), fastpose.heatmap_mse_loss(pred, maps.keypoints, maps.visible))
    benchmark(forward_and_backward, loss, pred)


def test_plain_torch(benchmark: BenchmarkFixture, maps: Maps) -> None:
    pred = maps.pred.clone().requires_grad_()
    benchmark(forward_and_backward, lambda p: vectorized.heatmap_mse_loss(p, maps.keypoints, maps.visible), pred)


def test_torch_compile(benchmark: BenchmarkFixture, maps: Maps) -> None:
    pred, run = maps.pred.clone().requires_grad_(), compiled(vectorized.heatmap_mse_loss)

    def loss(p: Tensor) -> Tensor:
        return run(p, maps.keypoints, maps.visible)

    forward_and_backward(loss, pred)
    benchmark(forward_and_backward, loss, pred)


def test_numba(benchmark: BenchmarkFixture, maps: Maps) -> None:
    inputs = maps.pred.numpy(), maps.keypoints.numpy(), maps.visible.numpy()

    def run() -> tuple[float, np.ndarray]:
        grad = np.empty(maps.pred.shape, np.float32)
        return numba_peers.heatmap_mse_loss(*inputs, 1.0, grad), grad

    (value, grad), pred = run(), maps.pred.clone().requires_grad_()
    expected = forward_and_backward(lambda p: fastpose.heatmap_mse_loss(p, maps.keypoints, maps.visible), pred)
    assert value == pytest.approx(expected.item(), rel=1e-5)
    np.testing.assert_allclose(grad, pred.grad.numpy(), atol=1e-10)
    benchmark(run)


def test_numpy_reference_forward_only(benchmark: BenchmarkFixture, maps: Maps) -> None:
    arguments = (maps.pred.numpy(), maps.keypoints.numpy(), maps.visible.numpy())
    benchmark.pedantic(reference.heatmap_mse_loss, arguments, rounds=5)
