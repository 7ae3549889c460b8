# SPDX-License-Identifier: Apache-2.0
"""Loss and gradient of 32 x 16 maps of 64 x 64: fastpose against our own render + mse_loss, torch, numba.

numba's kernel makes both in one pass over the prediction. Under autograd, as everybody else here is, it has to keep the
gradient until backward, and multiply it with the incoming one; by itself it does less than the op, and is a limit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import fastpose
from bench import numba_peers, vectorized
from bench.bench_render_heatmaps import pasted
from bench.conftest import HEATMAP, Compare, Maps, Own, copy_of, on_one_thread, several_threads
from bench.peers import compiled
from fastpose import reference

pytestmark = pytest.mark.benchmark(group="heatmap_mse_loss forward + backward")
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
GRADIENT = 1e-10  # tolerance; the gradients are of the order of 1e-8


def forward_and_backward(loss: Loss, maps: Maps) -> Callable[[], tuple[Tensor, Tensor | None]]:
    """A call gives the loss, and its gradient in memory of its own."""
    pred = maps.pred.clone().requires_grad_()

    def run() -> tuple[Tensor, Tensor | None]:
        pred.grad = None
        value = loss(pred, maps.keypoints, maps.visible)
        value.backward()
        return value, pred.grad

    return run


def pasted_and_mse_loss(pred: Tensor, keypoints: Tensor, visible: Tensor) -> Tensor:
    return 0.5 * functional.mse_loss(pred, pasted(keypoints, visible, HEATMAP))


ways = pytest.mark.parametrize("way", [vectorized.heatmap_mse_loss, pasted_and_mse_loss], ids=["squares", "mse_loss"])


@pytest.fixture
def own(maps: Maps) -> Own:
    # The prediction is read forwards and again backwards, which writes the gradient.
    return Own(forward_and_backward(fastpose.heatmap_mse_loss, maps), 3 * maps.pred.nbytes, "targets under noise")


def test_fastpose(compare: Compare, own: Own) -> None:
    compare(own.run, GRADIENT)


@several_threads
def test_fastpose_on_one_thread(compare: Compare, own: Own) -> None:
    compare(on_one_thread(own.run), GRADIENT)


def test_fastpose_channels_last(compare: Compare, maps: Maps) -> None:
    interleaved = maps._replace(pred=maps.pred.contiguous(memory_format=torch.channels_last))
    compare(forward_and_backward(fastpose.heatmap_mse_loss, interleaved), GRADIENT)


def test_our_render_and_mse_loss(compare: Compare, maps: Maps) -> None:
    def loss(pred: Tensor, keypoints: Tensor, visible: Tensor) -> Tensor:
        return 0.5 * functional.mse_loss(pred, fastpose.render_heatmaps(keypoints, visible, HEATMAP)[0])

    compare(forward_and_backward(loss, maps), GRADIENT)


@ways
def test_plain_torch(compare: Compare, maps: Maps, way: Loss) -> None:
    compare(forward_and_backward(way, maps), GRADIENT)


@ways
def test_torch_compile(compare: Compare, maps: Maps, way: Loss) -> None:
    compare(forward_and_backward(compiled(way), maps), GRADIENT)


def loss_and_gradient(pred: Tensor, keypoints: Tensor, visible: Tensor) -> tuple[float, Tensor]:
    grad = torch.empty_like(pred)
    inputs = pred.detach().numpy(), keypoints.numpy(), visible.numpy()
    return numba_peers.heatmap_mse_loss(*inputs, 1.0, grad.numpy()), grad


class NumbaLoss(torch.autograd.Function):
    """numba's kernel as one would put it into a training loop."""

    @staticmethod
    def forward(ctx: Any, pred: Tensor, keypoints: Tensor, visible: Tensor) -> Tensor:
        loss, grad = loss_and_gradient(pred, keypoints, visible)
        ctx.save_for_backward(grad)
        return torch.tensor(loss, dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return ctx.saved_tensors[0] * grad_output, None, None


def test_numba(compare: Compare, maps: Maps) -> None:
    compare(forward_and_backward(NumbaLoss.apply, maps), GRADIENT)


def test_limit_numba_without_autograd(compare: Compare, maps: Maps) -> None:
    compare(lambda: loss_and_gradient(maps.pred, maps.keypoints, maps.visible), GRADIENT)


def test_numpy_reference_forward_only(compare: Compare, maps: Maps) -> None:
    inputs = maps.pred.numpy(), maps.keypoints.numpy(), maps.visible.numpy()
    compare(lambda: reference.heatmap_mse_loss(*inputs), 1e-7)


def test_limit_copy(compare: Compare, own: Own) -> None:
    compare(copy_of(own.moved), None)
