# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import torch
from torch import Tensor

from ._arguments import exact_type, expect, float32, size_of, tensor
from ._mistakes import look_at_scale
from ._native import call, register


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
    inverse of SimpleBaselines' `get_affine_transform`: `center` falls on (w/2, h/2), and only the box's width sets
    the scale. With `udp=True`, `center` falls on ((w−1)/2, (h−1)/2) and each axis has its own scale: mmpose's
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

    Warns:
        UserWarning: once, on the CPU, if all scales are above 50, as those of boxes in pixels are.
    """
    height, width = size_of(size)
    center = float32("center", center)
    scales = _per_sample("scale", scale, center)
    matrix = call(
        "crop_to_image_matrix",
        center,
        scales.unsqueeze(-1).expand(-1, 2) if scales.dim() == 1 else scales,
        _per_sample("rotation", rotation, center),
        None if flip is None else tensor("flip", flip),
        height,
        width,
        bool(udp),
    )
    look_at_scale(scales)
    return matrix


def _per_sample(name: str, value: Tensor | float, center: Tensor) -> Tensor:
    """One number for all samples as one per sample; tensors as they are, so that the op can check them."""
    if isinstance(value, (int, float)):
        return center.new_full(center.shape[:1], float(value))
    values = float32(name, value)
    return values.expand(center.shape[:1]) if values.dim() == 0 else values


def plain_crop_to_image_matrix(
    center: Tensor, scale: Tensor, rotation: Tensor, flip: Tensor | None, height: int, width: int, udp: bool
) -> Tensor:
    """`crop_to_image_matrix` in plain torch, with a scale [B, 2] and a rotation [B]."""
    op, beside = "crop_to_image_matrix", ("center", center)
    expect(op, "center", center, (-1, 2), "[B, 2]")
    batch = len(center)
    expect(op, "scale", scale, (batch, 2), "[B, 2]", beside=beside)
    expect(op, "rotation", rotation, (batch,), "[B]", beside=beside)
    if flip is not None:
        expect(op, "flip", flip, (batch,), "[B]", (torch.bool,), beside)
    least = 2 if udp else 1
    if min(height, width) < least:
        raise RuntimeError(f"{op}: size must be (h, w) of at least {least}, got ({height}, {width})")

    exact = exact_type(center.device)
    box, middle = 200.0 * scale.to(exact), center.to(exact)
    step_x = box[:, 0] / (width - 1 if udp else width)
    step_y = box[:, 1] / (height - 1) if udp else step_x
    crop_x, crop_y = ((width - 1) / 2, (height - 1) / 2) if udp else (width / 2, height / 2)
    sine, cosine = _sine_and_cosine(rotation.to(exact))
    mirror = 1.0 if flip is None else 1.0 - 2.0 * flip.to(exact)
    xx, xy, yx, yy = mirror * cosine * step_x, -mirror * sine * step_y, sine * step_x, cosine * step_y
    x = torch.stack([xx, xy, middle[:, 0] - xx * crop_x - xy * crop_y], -1)
    y = torch.stack([yx, yy, middle[:, 1] - yx * crop_x - yy * crop_y], -1)
    return torch.stack([x, y], 1).to(torch.float32)


def _sine_and_cosine(degrees: Tensor) -> tuple[Tensor, Tensor]:
    """Exact at multiples of 90: an upright box keeps its zeros."""
    quarter_turns = torch.floor(degrees / 90.0 + 0.5)
    radians = (degrees - 90.0 * quarter_turns) * (math.pi / 180.0)
    quadrant = torch.remainder(quarter_turns, 4.0)
    sign = 1.0 - 2.0 * (quadrant >= 2.0).to(degrees.dtype)
    sine, cosine, turned = torch.sin(radians) * sign, torch.cos(radians) * sign, torch.remainder(quadrant, 2.0) == 1.0
    return torch.where(turned, cosine, sine), torch.where(turned, -sine, cosine)


def _fake(
    center: Tensor, scale: Tensor, rotation: Tensor, flip: Tensor | None, height: int, width: int, udp: bool
) -> Tensor:
    return center.new_empty((center.size(0), 2, 3))


register("crop_to_image_matrix", plain_crop_to_image_matrix, _fake)
