# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._arguments import FLOATING, accumulate_type, choose, expect, expect_joint_weights, float32, tensor
from ._native import call, register
from .render_heatmaps import ENCODINGS, expect_target, factors


def heatmap_mse_loss(
    pred: Tensor,
    keypoints: Tensor,
    visible: Tensor,
    *,
    sigma: float = 1.0,
    encoding: str = "msra",
    missing: str = "zeros",
    joint_weights: Tensor | None = None,
) -> Tensor:
    """Mean squared error against the Gaussian targets of `render_heatmaps`, which are never stored.

    0.5 · mean over B·K·h·w of `weight · (pred − target)²`. Forward reads `pred` once; backward reads it once and writes
    the gradient once, with the incoming gradient folded in before rounding (so a scaled loss works in half precision).

    Args:
        pred: [B, K, h, w], float32, float16, bfloat16 (or float64), any strides. Differentiable.
        keypoints: [B, K, 2] (x, y) in heatmap pixels.
        visible: [B, K], 1 where the joint is annotated. With ``missing="ignore"`` it is the joint's weight: clamp
            COCO's flags 0, 1 and 2 at 1.
        sigma, encoding: as in `render_heatmaps`.
        missing: "zeros": every joint weighs 1 and one without annotation has an all-zero target (the paper).
            "ignore": the weight is `render_heatmaps`', 0 for such a joint (SimpleBaselines' `JointsMSELoss`).
        joint_weights: [K] or [B, K], multiplied once. SimpleBaselines weighs prediction and target each, and so
            squares its weights: pass squares for parity.

    Returns:
        Scalar, float32 (float64 for float64 input). An empty batch has loss 0.

    Raises:
        ValueError: unknown encoding or missing. RuntimeError: wrong shape, dtype, device or sigma.
    """
    return call(
        "heatmap_mse_loss",
        tensor("pred", pred),
        float32("keypoints", keypoints),
        float32("visible", visible),
        None if joint_weights is None else float32("joint_weights", joint_weights),
        float(sigma),
        choose("encoding", encoding, ENCODINGS),
        choose("missing", missing, ("zeros", "ignore")) == 1,
    )


def plain_heatmap_mse_loss(
    pred: Tensor,
    keypoints: Tensor,
    visible: Tensor,
    joint_weights: Tensor | None,
    sigma: float,
    encoding: int,
    ignore_missing: bool,
) -> Tensor:
    """`heatmap_mse_loss` in plain torch. Called directly, autograd differentiates it and stores a map per map."""
    difference, weight = _difference_and_weight(
        "heatmap_mse_loss", pred, keypoints, visible, joint_weights, sigma, encoding, ignore_missing
    )
    # Map by map, so that the number of threads changes no bit.
    return 0.5 * (weight * difference.square().sum((2, 3))).sum()


def plain_heatmap_mse_loss_backward(
    grad_output: Tensor,
    pred: Tensor,
    keypoints: Tensor,
    visible: Tensor,
    joint_weights: Tensor | None,
    sigma: float,
    encoding: int,
    ignore_missing: bool,
) -> Tensor:
    """Its gradient in `pred`: renders the target again instead of storing it."""
    op = "heatmap_mse_loss_backward"
    difference, weight = _difference_and_weight(
        op, pred, keypoints, visible, joint_weights, sigma, encoding, ignore_missing
    )
    expect(op, "grad_output", grad_output, (), "[]", (difference.dtype,), ("pred", pred))
    # The incoming gradient goes in before rounding to half precision.
    return torch.mul(difference, (weight * grad_output)[..., None, None], out=torch.empty_like(pred))


def _difference_and_weight(
    op: str,
    pred: Tensor,
    keypoints: Tensor,
    visible: Tensor,
    joint_weights: Tensor | None,
    sigma: float,
    encoding: int,
    ignore_missing: bool,
) -> tuple[Tensor, Tensor]:
    """pred - target [B, K, h, w], and the weight of each map over the number of all pixels [B, K]."""
    beside = ("pred", pred)
    expect(op, "pred", pred, (-1, -1, -1, -1), "[B, K, h, w]", FLOATING)
    batch, joints, height, width = pred.shape
    expect(op, "keypoints", keypoints, (batch, joints, 2), "[B, K, 2]", beside=beside)
    expect(op, "visible", visible, (batch, joints), "[B, K]", beside=beside)
    expect_target(op, height, width, sigma, encoding)
    dtype = accumulate_type(pred.dtype)
    of_x, of_y, weights = factors(keypoints, visible, height, width, sigma, encoding, dtype)
    if not ignore_missing:
        weights = torch.ones_like(weights)
    if joint_weights is not None:
        expect_joint_weights(op, joint_weights, batch, joints, beside)
        weights = weights * joint_weights
    return pred.to(dtype) - of_y * of_x, weights.to(dtype) / max(1, pred.numel())


def _fake(pred: Tensor, *_: Any) -> Tensor:
    return pred.new_empty((), dtype=torch.float64 if pred.dtype == torch.float64 else torch.float32)


def _fake_backward(grad_output: Tensor, pred: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(pred)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    pred, keypoints, visible, joint_weights, *ctx.settings = inputs
    ctx.save_for_backward(pred, keypoints, visible, joint_weights)


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    grad = call("heatmap_mse_loss_backward", grad_output, *ctx.saved_tensors, *ctx.settings)
    return grad, None, None, None, None, None, None


def _differentiable_backward(grad_output: Tensor, pred: Tensor, *arguments: Any) -> Tensor:
    """The gradient for those who differentiate it again; `out`, which has no derivative, is for the others."""
    difference, weight = _difference_and_weight("heatmap_mse_loss_backward", pred, *arguments)
    return (difference * (weight * grad_output)[..., None, None]).to(pred.dtype)


register("heatmap_mse_loss", plain_heatmap_mse_loss, _fake, plain_heatmap_mse_loss, _backward, _setup_context)
register("heatmap_mse_loss_backward", plain_heatmap_mse_loss_backward, _fake_backward, _differentiable_backward)
