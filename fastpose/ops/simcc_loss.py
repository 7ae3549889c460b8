# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ._arguments import FLOATING, MAX_EXTENT, accumulate_type, exact_type, expect, expect_joint_weights, float32, tensor
from ._mistakes import look_at_joints
from ._native import call, register


def simcc_loss(
    pred_x: Tensor,
    pred_y: Tensor,
    keypoints: Tensor,
    visible: Tensor,
    *,
    split_ratio: float = 2.0,
    sigma: tuple[float, float] = (4.9, 5.66),
    beta: float = 10.0,
    label_beta: float = 10.0,
    label_softmax: bool = True,
    joint_weights: Tensor | None = None,
) -> Tensor:
    """Kullback-Leibler divergence of SimCC's predictions from Gaussian labels, which are made from the keypoints.

    For heads that say where a joint is by one vector per axis, of `split_ratio` bins per crop pixel (Li et al.,
    "SimCC: a Simple Coordinate Classification Perspective for Human Pose Estimation", 2022; RTMPose). The mean over
    B·K of `weight · (mean over bins of the divergence in x + mean over bins of the divergence in y)`.

    A label is `exp(−d² / 2σ²)`, d being the distance in bins from `keypoint · split_ratio`, rounded half to even. With
    `label_softmax` its softmax, times `label_beta`, is the distribution to learn. The prediction's is
    `softmax(beta · pred)`. This is mmpose 1.x's `SimCCLabel(normalize=False)` and
    `KLDiscretLoss(use_target_weight=True)`, whose number is B times this one: it adds persons up.

    Args:
        pred_x: [B, K, Wx] with Wx = crop width · split_ratio, float32, float16, bfloat16 or float64, any strides.
            Differentiable.
        pred_y: [B, K, Wy] with Wy = crop height · split_ratio, of the dtype of pred_x. Differentiable.
        keypoints: [B, K, 2] (x, y) in pixels of the crop, pixel centres at integers.
        visible: [B, K], the joint's weight, 1 where it is annotated (of COCO's flags 0, 1 and 2 pass
            `visible > 0`). Drawn where 0.5 or more; elsewhere the label is zero, which `label_softmax` makes uniform.
        split_ratio: bins per crop pixel.
        sigma: standard deviations in x and y, bins. RTMPose has (4.9, 5.66) for crops of 192 × 256 pixels and
            (5.66, 5.66) for 256 × 256.
        beta, label_beta: factors on predictions and labels before the softmax.
        label_softmax: False leaves the labels as they are, with a peak of 1.
        joint_weights: [K] or [B, K], multiplied once.

    Returns:
        Scalar, float32 (float64 for float64 input). A drawn joint has weight 0 if its keypoint is not finite, or more
        than 3σ outside the crop (`c − 3σ ≥ bins` or `c + 3σ + 1 < 0` in x or y). An empty batch has loss 0. NaN in a
        prediction makes the loss NaN, whatever the weight.

    Raises:
        ValueError: a sigma that is not a pair, or a split_ratio, sigma, beta or label_beta that is not from 1e-30
        to 1e30. RuntimeError: wrong shape, dtype or device.

    Warns:
        UserWarning: once, on the CPU, of joints in other pixels than the crop's, and of COCO's flags as weights.
    """
    sigma_x, sigma_y = sigmas_of(sigma)
    keypoints, visible, split_ratio = (
        float32("keypoints", keypoints),
        float32("visible", visible),
        positive("split_ratio", split_ratio),
    )
    loss = call(
        "simcc_loss",
        tensor("pred_x", pred_x),
        tensor("pred_y", pred_y),
        keypoints,
        visible,
        None if joint_weights is None else float32("joint_weights", joint_weights),
        split_ratio,
        sigma_x,
        sigma_y,
        positive("beta", beta),
        positive("label_beta", label_beta),
        bool(label_softmax),
    )
    size = pred_y.size(2) / split_ratio, pred_x.size(2) / split_ratio
    look_at_joints("simcc_loss", keypoints, visible, size, in_crop=True)
    return loss


def positive(name: str, value: float) -> float:
    """The number as a float, or a ValueError."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0.0 < number < math.inf:
        raise ValueError(f"{name} must be a positive number, got {value!r}")
    if not 1e-30 <= number <= 1e30:  # its square must still be a number to divide by, and it a float32
        raise ValueError(f"{name} must be from 1e-30 to 1e30, got {value!r}")
    return number


def sigmas_of(sigma: tuple[float, float]) -> tuple[float, float]:
    """(x, y) in bins, or a ValueError."""
    try:
        x, y = sigma
    except (TypeError, ValueError):
        raise ValueError(f"sigma must be (x, y), two positive numbers of bins, got {sigma!r}") from None
    return positive("sigma", x), positive("sigma", y)


def expect_vectors(op: str, pred_x: Tensor, pred_y: Tensor) -> None:
    """RuntimeError, naming the op, unless these are vectors of one batch with 1 to MAX_EXTENT bins."""
    expect(op, "pred_x", pred_x, (-1, -1, -1), "[B, K, Wx]", FLOATING)
    batch, joints, _ = pred_x.shape
    expect(op, "pred_y", pred_y, (batch, joints, -1), "[B, K, Wy]", (pred_x.dtype,), ("pred_x", pred_x))
    for name, pred in (("pred_x", pred_x), ("pred_y", pred_y)):
        if not 1 <= pred.size(2) <= MAX_EXTENT:
            raise RuntimeError(f"{op}: {name} must have 1 to {MAX_EXTENT} bins, got {pred.size(2)}")


def plain_simcc_loss(
    pred_x: Tensor,
    pred_y: Tensor,
    keypoints: Tensor,
    visible: Tensor,
    joint_weights: Tensor | None,
    split_ratio: float,
    sigma_x: float,
    sigma_y: float,
    beta: float,
    label_beta: float,
    label_softmax: bool,
) -> Tensor:
    """`simcc_loss` in plain torch, which autograd differentiates; the labels are stored."""
    weights, labels = _weights_and_labels(
        "simcc_loss",
        *(pred_x, pred_y, keypoints, visible, joint_weights, split_ratio),
        *(sigma_x, sigma_y, label_beta, label_softmax),
    )
    divergence = torch.zeros_like(weights)
    for pred, label in zip((pred_x, pred_y), labels, strict=True):
        logarithms = torch.log_softmax(beta * pred.to(label.dtype), 2)
        divergence = divergence + (torch.xlogy(label, label) - label * logarithms).mean(2)
    return (weights * divergence).sum() / max(1, visible.numel())


def plain_simcc_loss_backward(
    grad_output: Tensor,
    pred_x: Tensor,
    pred_y: Tensor,
    keypoints: Tensor,
    visible: Tensor,
    joint_weights: Tensor | None,
    split_ratio: float,
    sigma_x: float,
    sigma_y: float,
    beta: float,
    label_beta: float,
    label_softmax: bool,
) -> tuple[Tensor, Tensor]:
    """Its gradients in `pred_x` and `pred_y`."""
    settings = (split_ratio, sigma_x, sigma_y, beta, label_beta, label_softmax)
    of_x, of_y = _gradients(grad_output, pred_x, pred_y, keypoints, visible, joint_weights, *settings)
    return torch.empty_like(pred_x).copy_(of_x), torch.empty_like(pred_y).copy_(of_y)


def _gradients(
    grad_output: Tensor,
    pred_x: Tensor,
    pred_y: Tensor,
    keypoints: Tensor,
    visible: Tensor,
    joint_weights: Tensor | None,
    split_ratio: float,
    sigma_x: float,
    sigma_y: float,
    beta: float,
    label_beta: float,
    label_softmax: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients in the type that they are computed in."""
    op = "simcc_loss_backward"
    weights, labels = _weights_and_labels(
        op,
        *(pred_x, pred_y, keypoints, visible, joint_weights, split_ratio),
        *(sigma_x, sigma_y, label_beta, label_softmax),
    )
    expect(op, "grad_output", grad_output, (), "[]", (weights.dtype,), ("pred_x", pred_x))
    # The incoming gradient goes in before rounding to half precision.
    factors = (beta * grad_output / max(1, visible.numel()) * weights)[..., None]
    of_x, of_y = (
        factors / pred.size(2) * (label.sum(2, keepdim=True) * torch.softmax(beta * pred.to(label.dtype), 2) - label)
        for pred, label in zip((pred_x, pred_y), labels, strict=True)
    )
    return of_x, of_y


def _weights_and_labels(
    op: str,
    pred_x: Tensor,
    pred_y: Tensor,
    keypoints: Tensor,
    visible: Tensor,
    joint_weights: Tensor | None,
    split_ratio: float,
    sigma_x: float,
    sigma_y: float,
    label_beta: float,
    label_softmax: bool,
) -> tuple[Tensor, list[Tensor]]:
    """The weight of each joint [B, K], and the labels in x and y, of the shapes of the predictions; both in the type
    that the loss is computed in."""
    beside = ("pred_x", pred_x)
    expect_vectors(op, pred_x, pred_y)
    batch, joints, _ = pred_x.shape
    expect(op, "keypoints", keypoints, (batch, joints, 2), "[B, K, 2]", beside=beside)
    expect(op, "visible", visible, (batch, joints), "[B, K]", beside=beside)
    if joint_weights is not None:
        expect_joint_weights(op, joint_weights, batch, joints, beside)
    dtype = accumulate_type(pred_x.dtype)
    # In float32, as mmpose multiplies: which bin is nearest is a matter of the last bit.
    centers = (keypoints * split_ratio).round()
    axes = [(pred_x, centers[..., 0], sigma_x), (pred_y, centers[..., 1], sigma_y)]
    hidden = visible < 0.5
    near = torch.ones_like(hidden)
    for pred, center, sigma in axes:
        exact = center.to(exact_type(pred.device))  # in float32 three sigma may round to a bin more
        near = near & (exact - 3 * sigma < pred.size(2)) & (exact + 3 * sigma + 1 >= 0)  # False for NaN
    weights = torch.where(near | hidden, visible, 0.0)
    if joint_weights is not None:
        weights = weights * joint_weights
    labels = []
    for pred, center, sigma in axes:
        bins = torch.arange(pred.size(2), device=pred.device, dtype=dtype)
        distance = bins - torch.where(near, center, 0.0).to(dtype)[..., None]
        label = torch.exp(distance.square() / (-2 * sigma * sigma))
        label = torch.where((near & ~hidden)[..., None], label, 0.0)
        labels.append(torch.softmax(label_beta * label, 2) if label_softmax else label)
    return weights.to(dtype), labels


def _fake(pred_x: Tensor, *_: Any) -> Tensor:
    return pred_x.new_empty((), dtype=accumulate_type(pred_x.dtype))


def _fake_backward(grad_output: Tensor, pred_x: Tensor, pred_y: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(pred_x), torch.empty_like(pred_y)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    pred_x, pred_y, keypoints, visible, joint_weights, *ctx.settings = inputs
    ctx.save_for_backward(pred_x, pred_y, keypoints, visible, joint_weights)


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    grads = call("simcc_loss_backward", grad_output, *ctx.saved_tensors, *ctx.settings)
    return *grads, *[None] * 9


def _differentiable_backward(grad_output: Tensor, pred_x: Tensor, pred_y: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """The gradients for those who differentiate them again; copying into a tensor is for the others."""
    of_x, of_y = _gradients(grad_output, pred_x, pred_y, *rest)
    return of_x.to(pred_x.dtype), of_y.to(pred_y.dtype)


register("simcc_loss", plain_simcc_loss, _fake, plain_simcc_loss, _backward, _setup_context, inputs=2)
register("simcc_loss_backward", plain_simcc_loss_backward, _fake_backward, _differentiable_backward)
