# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch
from torch import Tensor

from ._arguments import float32, tensor
from .transform_points import transform_points


def soft_argmax(
    heatmaps: Tensor, *, beta: float = 1.0, heatmap_to_image: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Joint positions as expectations: each map a probability, softmax(beta · map), each joint its mean.

    That of Sun et al., "Integral Human Pose Regression", 2018: for networks whose maps are trained through it. Maps
    that were trained on Gaussian targets have a background, which pulls the mean to the middle of the map. With a peak
    of 1 a beta of about 20 suppresses that; `decode_heatmaps` does not have this problem.

    Args:
        heatmaps: [B, K, h, w], float32, float16, bfloat16 or float64, any device and strides. Differentiable.
        beta: factor on the maps before the softmax, positive; the larger, the closer to the maximum.
        heatmap_to_image: [B, 2, 3], as `crop_to_image_matrix(…, heatmap_size)` gives; None leaves heatmap pixels.

    Returns:
        keypoints [B, K, 2] (x, y) and scores [B, K], computed in float32, or in float64 for maps of float64. The score
        is the probability of the likeliest pixel: a softmax does not change when a constant is added to a map, so the
        map's maximum says nothing. Both are differentiable. NaN or +infinity in a map makes its joint NaN.

    Raises:
        ValueError: heatmaps of another shape or kind, or without a pixel; beta that is not positive and finite; a
        heatmap_to_image of another shape. RuntimeError: one on another device.
    """
    if tensor("heatmaps", heatmaps).dim() != 4 or not heatmaps.is_floating_point() or 0 in heatmaps.shape[2:]:
        wanted = "[B, K, h, w] of a floating-point type with at least one pixel"
        raise ValueError(f"heatmaps must be {wanted}, got {list(heatmaps.shape)} {heatmaps.dtype}")
    if not 0.0 < beta < float("inf"):
        raise ValueError(f"beta must be a positive number, got {beta}")
    dtype = torch.float64 if heatmaps.dtype == torch.float64 else torch.float32
    height, width = heatmaps.shape[2:]
    flat = torch.softmax(heatmaps.to(dtype).flatten(2) * beta, 2)
    probability = flat.unflatten(2, (height, width))
    # Sums of products, as a matrix product may be computed in a shorter type (autocast, TF32).
    columns = torch.arange(width, device=heatmaps.device, dtype=dtype)
    rows = torch.arange(height, device=heatmaps.device, dtype=dtype)
    keypoints = torch.stack([(probability.sum(2) * columns).sum(2), (probability.sum(3) * rows).sum(2)], 2)
    if heatmap_to_image is not None:
        matrix = float32("heatmap_to_image", heatmap_to_image)
        if matrix.shape != (len(heatmaps), 2, 3):
            wanted = f"[B, 2, 3] = [{len(heatmaps)}, 2, 3]"
            raise ValueError(f"heatmap_to_image must be {wanted}, got {list(matrix.shape)}")
        keypoints = transform_points(keypoints, matrix)
    return keypoints, flat.amax(2)
