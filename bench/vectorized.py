# SPDX-License-Identifier: Apache-2.0
"""The ops in plain torch, as peers: the strongest thing a user would write without native code.

They are the functions that run where fastpose has no native kernel, here under the ops' own signatures, to be called,
compiled and differentiated without passing through an op. They trust their named choices.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastpose.ops.affine_crop import plain_affine_crop
from fastpose.ops.decode_heatmaps import REFINEMENTS, plain_decode_heatmaps
from fastpose.ops.heatmap_mse_loss import plain_heatmap_mse_loss
from fastpose.ops.render_heatmaps import ENCODINGS, plain_render_heatmaps
from fastpose.ops.swap_pairs import mirror_order


def affine_crop(
    data: Tensor,
    offsets: Tensor | None,
    sizes: Tensor | None,
    crop_to_image: Tensor,
    size: tuple[int, int],
    *,
    image_index: Tensor | None = None,
    color: Tensor | None = None,
    fill: float = 0.0,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """`fastpose.affine_crop` on [N, H, W, 3] pixels, or on the buffer, offsets and sizes of an ImageBatch."""
    channels_last = memory_format == torch.channels_last
    return plain_affine_crop(data, offsets, sizes, crop_to_image, image_index, color, *size, fill, dtype, channels_last)


def render_heatmaps(
    keypoints: Tensor,
    visible: Tensor,
    size: tuple[int, int],
    *,
    sigma: float = 1.0,
    encoding: str = "msra",
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """`fastpose.render_heatmaps`."""
    return plain_render_heatmaps(keypoints, visible, *size, sigma, ENCODINGS.index(encoding), dtype)


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
    """`fastpose.heatmap_mse_loss`, with the target in memory; differentiable through autograd."""
    ignore_missing = missing == "ignore"
    return plain_heatmap_mse_loss(
        pred, keypoints, visible, joint_weights, sigma, ENCODINGS.index(encoding), ignore_missing
    )


def decode_heatmaps(
    heatmaps: Tensor,
    *,
    refine: str = "quarter",
    heatmap_to_image: Tensor | None = None,
    flipped: Tensor | None = None,
    flip_pairs: Sequence[Sequence[int]] | None = None,
    flip_shift: bool = False,
    blur_kernel: int = 11,
) -> tuple[Tensor, Tensor]:
    """`fastpose.decode_heatmaps`."""
    mirrored = mirror_order(flip_pairs or (), heatmaps.shape[1])
    return plain_decode_heatmaps(
        heatmaps, heatmap_to_image, flipped, mirrored, flip_shift, REFINEMENTS.index(refine), blur_kernel
    )
