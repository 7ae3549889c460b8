# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import operator
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ._arguments import FLOATING, accumulate_type, choose, exact_type, expect, expect_joint_weights, float32, tensor
from ._mistakes import look_at_joints
from ._native import call, register
from .render_heatmaps import ENCODINGS, Encoding, expect_target, factors

Missing = Literal["zeros", "ignore"]


def heatmap_mse_loss(
    pred: Tensor,
    keypoints: Tensor,
    visible: Tensor,
    *,
    sigma: float = 1.0,
    encoding: Encoding = "msra",
    missing: Missing = "zeros",
    joint_weights: Tensor | None = None,
    hard_joints: int | None = None,
) -> Tensor:
    """Mean squared error against the Gaussian targets of `render_heatmaps`, which are never stored.

    0.5 · mean over B·K·h·w of `weight · (pred − target)²`. Forward reads `pred` once; backward reads it once and writes
    the gradient once, with the incoming gradient folded in before rounding (so a scaled loss works in half precision).

    Args:
        pred: [B, K, h, w], float32, float16, bfloat16 (or float64), any strides. Differentiable.
        keypoints: [B, K, 2] (x, y) in heatmap pixels.
        visible: [B, K], 1 where the joint is annotated. With ``missing="ignore"`` it is the joint's weight: of
            COCO's flags 0, 1 and 2 pass `visible > 0`.
        sigma, encoding: as in `render_heatmaps`.
        missing: "zeros": every joint weighs 1 and one without annotation has an all-zero target (the paper).
            "ignore": the weight is `render_heatmaps`', 0 for such a joint (SimpleBaselines' `JointsMSELoss`).
        joint_weights: [K] or [B, K], multiplied once. SimpleBaselines weighs prediction and target each, and so
            squares its weights: pass squares for parity.
        hard_joints: N, 1 to K: of each sample only the N joints with the largest losses count (online hard keypoint
            mining; Chen et al., "Cascaded Pyramid Network for Multi-Person Pose Estimation", 2018). A joint's loss is
            0.5 · mean over h·w of `weight · (pred − target)²`; the result is the mean over B·N of those that count. Of
            equal losses the first joints' count. With ``missing="ignore"`` and the squares of its joint weights it
            equals HRNet's `JointsOHKMMSELoss`, and half of mmpose's `KeypointOHKMMSELoss`, which leaves out the 0.5.
            None: all joints count.

    Returns:
        Scalar, float32 (float64 for float64 input). An empty batch has loss 0. NaN in a prediction makes the loss NaN:
        with `hard_joints` too, as NaN is the largest of losses.

    Raises:
        ValueError: unknown encoding or missing; hard_joints is not a whole number from 1 to K. RuntimeError: wrong
        shape, dtype, device or sigma.

    Warns:
        UserWarning: see `render_heatmaps`.
    """
    keypoints, visible = float32("keypoints", keypoints), float32("visible", visible)
    arguments = (
        tensor("pred", pred),
        keypoints,
        visible,
        None if joint_weights is None else float32("joint_weights", joint_weights),
        float(sigma),
        choose("encoding", encoding, ENCODINGS),
        choose("missing", missing, get_args(Missing)) == 1,
    )
    if hard_joints is None:
        loss = call("heatmap_mse_loss", *arguments)
    else:
        loss = _mean_of_hardest(call("heatmap_mse_losses", *arguments), hard_joints)
    look_at_joints("heatmap_mse_loss", keypoints, visible, pred.shape[2:], weighs=missing == "ignore")
    return loss


def _mean_of_hardest(losses: Tensor, count: int) -> Tensor:
    """The mean of the `count` largest of each row of [B, K]; NaN is larger than all numbers."""
    joints = losses.size(1)
    try:
        whole = count if isinstance(count, torch.SymInt) else 0 if isinstance(count, bool) else operator.index(count)
    except TypeError:
        whole = 0
    if not 1 <= whole <= joints:
        raise ValueError(f"hard_joints must be a whole number from 1 to the {joints} joints of pred, got {count!r}")
    # topk may take any of equal losses; a stable sort takes the first, on every device.
    hardest = losses.sort(dim=1, descending=True, stable=True).values[:, :whole]
    # Row by row and then in double precision, so that the number of threads changes no bit.
    total = hardest.sum(1).to(exact_type(losses.device)).sum()
    return (total / max(1, hardest.numel())).to(losses.dtype)


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
    return 0.5 * (weight / max(1, pred.numel()) * difference.square().sum((2, 3))).sum()


def plain_heatmap_mse_losses(
    pred: Tensor,
    keypoints: Tensor,
    visible: Tensor,
    joint_weights: Tensor | None,
    sigma: float,
    encoding: int,
    ignore_missing: bool,
) -> Tensor:
    """The losses of single joints [B, K], in plain torch: `heatmap_mse_loss` is their mean."""
    difference, weight = _difference_and_weight(
        "heatmap_mse_losses", pred, keypoints, visible, joint_weights, sigma, encoding, ignore_missing
    )
    return 0.5 * weight * difference.square().mean((2, 3))


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
    """The gradient in `pred` of the loss, or with grad_output [B, K] of the joints' losses: renders the target again
    instead of storing it."""
    op = "heatmap_mse_loss_backward"
    difference, weight = _difference_and_weight(
        op, pred, keypoints, visible, joint_weights, sigma, encoding, ignore_missing
    )
    shape = (pred.size(0), pred.size(1)) if grad_output.dim() else ()
    expect(op, "grad_output", grad_output, shape, "[] or [B, K]", (difference.dtype,), ("pred", pred))
    # The incoming gradient goes in before rounding to half precision.
    weight = weight / _pixels_of_mean(grad_output, pred) * grad_output
    return torch.mul(difference, weight[..., None, None], out=torch.empty_like(pred))


def _pixels_of_mean(loss: Tensor, pred: Tensor) -> int:
    """How many pixels a loss [] or each of the losses [B, K] is the mean of."""
    return max(1, pred.size(2) * pred.size(3) if loss.dim() else pred.numel())


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
    """pred - target [B, K, h, w], and the weight of each map [B, K]."""
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
    return pred.to(dtype) - of_y * of_x, weights.to(dtype)


def _fake(pred: Tensor, *_: Any) -> Tensor:
    return pred.new_empty((), dtype=torch.float64 if pred.dtype == torch.float64 else torch.float32)


def _fake_losses(pred: Tensor, *_: Any) -> Tensor:
    return pred.new_empty(pred.shape[:2], dtype=accumulate_type(pred.dtype))


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
    return (difference * (weight / _pixels_of_mean(grad_output, pred) * grad_output)[..., None, None]).to(pred.dtype)


register("heatmap_mse_loss", plain_heatmap_mse_loss, _fake, plain_heatmap_mse_loss, _backward, _setup_context)
register(
    "heatmap_mse_losses",
    plain_heatmap_mse_losses,
    _fake_losses,
    plain_heatmap_mse_losses,
    _backward,
    _setup_context,
)
register("heatmap_mse_loss_backward", plain_heatmap_mse_loss_backward, _fake_backward, _differentiable_backward)
