# SPDX-License-Identifier: Apache-2.0
"""The definitions of the ops on SimCC's vectors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from .heatmaps import MAX_BLUR_KERNEL, Array, _array, _check, gaussian_kernel, mirror_order, transform_points


def _log_softmax(values: Array) -> Array:
    shifted = values - values.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _check_positive(name: str, value: float) -> None:
    _check(0 < value < np.inf, f"{name} must be a positive number, got {value}")


def simcc_loss(
    pred_x: ArrayLike,
    pred_y: ArrayLike,
    keypoints: ArrayLike,
    visible: ArrayLike,
    *,
    split_ratio: float = 2.0,
    sigma: tuple[float, float] = (4.9, 5.66),
    beta: float = 10.0,
    label_beta: float = 10.0,
    label_softmax: bool = True,
    joint_weights: ArrayLike | None = None,
) -> float:
    """See `fastpose.simcc_loss`. Mean over B·K of weight · (mean over bins of the divergence in x, plus that in y)."""
    for name, value in (("split_ratio", split_ratio), ("beta", beta), ("label_beta", label_beta)):
        _check_positive(name, value)
    flags = _array(visible).astype(np.float32).astype(np.float64)
    points = _array(keypoints).astype(np.float32)
    weights = flags.copy() if joint_weights is None else flags * _array(joint_weights)
    drawn = ~(flags < 0.5)
    axes = []
    for axis, pred in enumerate((pred_x, pred_y)):
        _check_positive("sigma", sigma[axis])
        logits = beta * _array(pred).astype(np.float64)
        center = np.rint(points[..., axis] * np.float32(split_ratio)).astype(np.float64)  # half to even
        reach = 3 * sigma[axis]
        near = (center - reach < logits.shape[2]) & (center + reach + 1 >= 0)  # False for NaN
        weights[drawn & ~near] = 0.0
        axes.append((logits, center, sigma[axis], near))
    drawn = drawn & axes[0][-1] & axes[1][-1]
    total = 0.0
    for b, k in np.ndindex(*flags.shape):
        for logits, center, deviation, _ in axes:
            label = np.zeros(logits.shape[2])
            if drawn[b, k]:
                label = np.exp(-((np.arange(len(label)) - center[b, k]) ** 2) / (2 * deviation**2))
            if label_softmax:
                label = np.exp(_log_softmax(label_beta * label))
            logarithm = np.log(np.where(label > 0, label, 1.0))  # 0 · log 0 is 0
            total += weights[b, k] * np.mean(label * (logarithm - _log_softmax(logits[b, k])))
    return float(total / max(1, flags.size))


def simcc_blur_kernel(sigma: float) -> int:
    """Bins of the blur before a refinement: mmpose's formula, the largest odd number up to (20 sigma − 7) / 3."""
    side = int((sigma * 20 - 7) // 3)
    return side - (side % 2 == 0)


def _refined(values: Array, at: int, blur_kernel: int) -> float:
    """The position of a maximum to a part of a bin: one Newton step on the logarithm of the blurred values."""
    blurred = np.convolve(np.pad(values.astype(np.float64), blur_kernel // 2), gaussian_kernel(blur_kernel), "valid")
    blurred *= values[at] / np.fmax.reduce(blurred)
    f = np.pad(np.log(np.clip(blurred, 1e-3, 50.0)), 2, mode="edge")[at : at + 5]
    step = 0.5 * (f[3] - f[1]) / (1e-9 + 0.25 * (f[4] - 2 * f[2] + f[0]))
    return at - step if np.isfinite(step) else at


def decode_simcc(
    pred_x: ArrayLike,
    pred_y: ArrayLike,
    *,
    split_ratio: float = 2.0,
    crop_to_image: ArrayLike | None = None,
    flipped_x: ArrayLike | None = None,
    flipped_y: ArrayLike | None = None,
    flip_pairs: Sequence[Sequence[int]] | None = None,
    refine: str = "none",
    sigma: tuple[float, float] = (4.9, 5.66),
) -> tuple[Array, Array]:
    """See `fastpose.decode_simcc`. Returns keypoints [B, K, 2] and scores [B, K], float32."""
    _check_positive("split_ratio", split_ratio)
    _check(refine in ("none", "dark"), f"refine must be one of 'none', 'dark', got {refine!r}")
    kernels = [simcc_blur_kernel(s) for s in sigma]
    _check(refine == "none" or all(1 <= side <= MAX_BLUR_KERNEL for side in kernels), f"sigma does not fit: {sigma}")
    axes = [_array(pred) for pred in (pred_x, pred_y)]
    axes = [pred.astype(np.promote_types(pred.dtype, np.float32)) for pred in axes]
    together = flip_pairs is None or flipped_x is not None or flipped_y is not None
    _check(together, "flipped_x and flipped_y must be passed with flip_pairs, got None")
    if flipped_x is not None or flipped_y is not None:
        _check(flipped_x is not None and flipped_y is not None, "flipped_x and flipped_y must be passed together")
        if flip_pairs is None:
            raise ValueError("flip_pairs must be passed with flipped_x and flipped_y: (left, right) pairs, got None")
        order = mirror_order(flip_pairs, axes[0].shape[1])
        mirrored = _array(flipped_x)[:, order, ::-1], _array(flipped_y)[:, order]
        half = axes[0].dtype.type(0.5)
        axes = [(pred + other.astype(pred.dtype)) * half for pred, other in zip(axes, mirrored, strict=True)]
    batch, joints = axes[0].shape[:2]
    bins, scores = np.full((batch, joints, 2), -1.0), np.full((batch, joints), np.nan)
    for b, k in np.ndindex(batch, joints):
        values = [pred[b, k] for pred in axes]
        if any(np.isnan(one).all() for one in values):
            continue
        scores[b, k] = min(np.nanmax(one) for one in values)
        if not scores[b, k] > 0:
            continue
        for axis, one in enumerate(values):
            at = int(np.nanargmax(one))
            with np.errstate(invalid="ignore", over="ignore", divide="ignore"):  # of infinities
                bins[b, k, axis] = at if refine == "none" else _refined(one, at, kernels[axis])
    keypoints = bins / split_ratio
    if crop_to_image is not None:
        keypoints = transform_points(keypoints, crop_to_image)
    return keypoints.astype(np.float32), scores.astype(np.float32)
