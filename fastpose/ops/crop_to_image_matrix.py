# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch
from torch import Tensor

from ._library import float32, register_fake, size_of, tensor


def crop_to_image_matrix(
    center: Tensor,
    scale: Tensor | float,
    rotation: Tensor | float,
    size: tuple[int, int],
    *,
    flip: Tensor | None = None,
    udp: bool = False,
) -> Tensor:
    """The matrix that carries crop pixels to image pixels, from MPII-style boxes.

    Convention: `[x_image, y_image] = M @ [x_crop, y_crop, 1]`, pixel centres at integers. With `udp=False` it is the
    inverse of SimpleBaselines' `get_affine_transform`: `center` falls on (w/2, h/2), the box's width alone sets the
    scale. With `udp=True`, `center` falls on ((w−1)/2, (h−1)/2) and each axis has its own scale: mmpose's
    `get_udp_warp_matrix` at −rotation (here both turn the same way). A flipped sample is mirrored about its centre
    after the rotation, x_image → 2 · center_x − x_image: what cropping SimpleBaselines' mirrored image gives.

    For heatmaps call it with the heatmap's size: that is the crop's matrix composed with the stride.

    Args:
        center: [B, 2] (x, y) in image pixels.
        scale: [B], [B, 2] or one number for all; times 200 is the box's (w, h) in image pixels, one number means both.
        rotation: [B] or one number for all, degrees.
        size: (h, w) of the crop in pixels; at least 2 each with udp.
        flip: [B] bool, which samples are mirrored.

    Returns:
        [B, 2, 3] float32, computed in float64.

    Raises:
        RuntimeError: wrong shape, dtype or device.
    """
    height, width = size_of(size)
    center = float32("center", center)
    scales = _per_sample("scale", scale, center)
    return torch.ops.fastpose.crop_to_image_matrix(
        center,
        scales.unsqueeze(-1).expand(-1, 2) if scales.dim() == 1 else scales,
        _per_sample("rotation", rotation, center),
        None if flip is None else tensor("flip", flip),
        height,
        width,
        bool(udp),
    )


def _per_sample(name: str, value: Tensor | float, center: Tensor) -> Tensor:
    """One number for all samples as one per sample; tensors as they are, so that the op can check them."""
    if isinstance(value, (int, float)):
        return center.new_full(center.shape[:1], float(value))
    given = float32(name, value)
    return given.expand(center.shape[:1]) if given.dim() == 0 else given


@register_fake("crop_to_image_matrix")
def _(
    center: Tensor, scale: Tensor, rotation: Tensor, flip: Tensor | None, height: int, width: int, udp: bool
) -> Tensor:
    return center.new_empty((center.size(0), 2, 3))
