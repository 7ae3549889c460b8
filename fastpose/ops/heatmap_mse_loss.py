# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._library import choose, float32, register_autograd, register_fake, tensor
from .render_heatmaps import ENCODINGS


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
        pred: [B, K, h, w], float32, float16, bfloat16 (or float64), any strides. Differentiable, once.
        keypoints: [B, K, 2] (x, y) in heatmap pixels.
        visible: [B, K], 1 where the joint is annotated. With ``missing="ignore"`` it is the joint's weight: clamp
            COCO's flags 0, 1 and 2 at 1.
        sigma, encoding: as in `render_heatmaps`.
        missing: "zeros": every joint weighs 1 and one without annotation is taught an all-zero map (the paper).
            "ignore": the weight is `render_heatmaps`', 0 for such a joint (SimpleBaselines' `JointsMSELoss`).
        joint_weights: [K] or [B, K], multiplied once. SimpleBaselines weighs prediction and target each, and so
            squares its weights: pass squares for parity.

    Returns:
        Scalar, float32 (float64 for float64 input). An empty batch has loss 0.

    Raises:
        ValueError: unknown encoding or missing. RuntimeError: wrong shape, dtype, device or sigma.
    """
    return torch.ops.fastpose.heatmap_mse_loss(
        tensor("pred", pred),
        float32("keypoints", keypoints),
        float32("visible", visible),
        None if joint_weights is None else float32("joint_weights", joint_weights),
        float(sigma),
        choose("encoding", encoding, ENCODINGS),
        choose("missing", missing, ("zeros", "ignore")) == 1,
    )


@register_fake("heatmap_mse_loss")
def _(pred: Tensor, *_: Any) -> Tensor:
    return pred.new_empty((), dtype=torch.float64 if pred.dtype == torch.float64 else torch.float32)


@register_fake("heatmap_mse_loss_backward")
def _(grad_output: Tensor, pred: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(pred)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    pred, keypoints, visible, joint_weights, *ctx.settings = inputs
    ctx.save_for_backward(pred, keypoints, visible, joint_weights)


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    grad = torch.ops.fastpose.heatmap_mse_loss_backward(grad_output, *ctx.saved_tensors, *ctx.settings)
    return grad, None, None, None, None, None, None


def _second_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    # Without this torch would drop the term and warn; a wrong gradient must not look like a right one.
    raise RuntimeError("heatmap_mse_loss can be differentiated once; a second derivative was asked for")


register_autograd("heatmap_mse_loss", _backward, _setup_context)
register_autograd("heatmap_mse_loss_backward", _second_backward, lambda ctx, inputs, output: None)
