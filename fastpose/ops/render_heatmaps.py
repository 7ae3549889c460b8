# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from ._arguments import FLOATING, NAMES, accumulate_type, choose, expect, expect_map_size, float32, size_of
from ._mistakes import look_at_joints
from ._native import call, register

Encoding = Literal["msra", "unbiased", "udp"]  # in the order of csrc/maths/heatmap_target.h
ENCODINGS: tuple[Encoding, ...] = get_args(Encoding)
MSRA, UNBIASED, UDP = range(3)


def render_heatmaps(
    keypoints: Tensor,
    visible: Tensor,
    size: tuple[int, int],
    *,
    sigma: float = 1.0,
    encoding: Encoding = "msra",
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Gaussian target maps with a peak of 1, and the weight of each.

    Args:
        keypoints: [B, K, 2] (x, y) in heatmap pixels, pixel centres at integers.
        visible: [B, K], 1 where the joint is annotated (MPII's `joints_vis`; of COCO's flags 0, 1 and 2 pass
            `visible > 0`). Drawn where above 0.5.
        size: (h, w) of the maps in pixels.
        sigma: standard deviation in heatmap pixels.
        encoding: "msra": centre `int(x + 0.5)` (truncated toward zero), square window of radius `int(3 · sigma)`, as
            SimpleBaselines' `generate_target`. "udp": sub-pixel centre, the same window. "unbiased": sub-pixel centre,
            drawn over the whole map, as DARK.
        dtype: float32, float16, bfloat16 or float64.

    Returns:
        heatmaps [B, K, h, w] of `dtype`, and weights [B, K] float32: `visible`, or 0 with an all-zero map if the
        window misses the map (`c − r ≥ size` or `c + r + 1 < 0` in x or y, SimpleBaselines' test) or the keypoint is
        not finite.

    Raises:
        ValueError: unknown encoding. RuntimeError: wrong shape, dtype, device or sigma.

    Warns:
        UserWarning: once, on the CPU, of joints in other pixels than the maps', and of COCO's flags as weights.
    """
    height, width = size_of(size)
    keypoints, visible = float32("keypoints", keypoints), float32("visible", visible)
    maps_and_weights = call(
        "render_heatmaps",
        keypoints,
        visible,
        height,
        width,
        float(sigma),
        choose("encoding", encoding, ENCODINGS),
        dtype,
    )
    look_at_joints("render_heatmaps", keypoints, visible, (height, width))
    return maps_and_weights


def plain_render_heatmaps(
    keypoints: Tensor,
    visible: Tensor,
    height: int,
    width: int,
    sigma: float,
    encoding: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """`render_heatmaps` in plain torch."""
    op = "render_heatmaps"
    expect(op, "keypoints", keypoints, (-1, -1, 2), "[B, K, 2]")
    expect(op, "visible", visible, keypoints.shape[:2], "[B, K]", beside=("keypoints", keypoints))
    expect_target(op, height, width, sigma, encoding)
    if dtype not in FLOATING:
        raise RuntimeError(f"{op}: dtype must be Float or Half or BFloat16 or Double, got {NAMES.get(dtype, dtype)}")
    of_x, of_y, weights = factors(keypoints, visible, height, width, sigma, encoding, accumulate_type(dtype))
    return (of_y * of_x).to(dtype), weights


def expect_target(op: str, height: int, width: int, sigma: float, encoding: int) -> None:
    """RuntimeError unless there are targets of this size in map pixels, sigma and encoding."""
    expect_map_size(op, height, width)
    if not 1e-30 <= sigma <= torch.finfo(torch.float32).max:  # what is left of it in float32 must be a divisor
        raise RuntimeError(f"{op}: sigma must be a positive number of map pixels, got {sigma}")
    if encoding not in (MSRA, UNBIASED, UDP):
        raise RuntimeError(f"{op}: unknown encoding {encoding}")


def factors(
    keypoints: Tensor, visible: Tensor, height: int, width: int, sigma: float, encoding: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Each target map as a function of x [B, K, 1, w] times one of y [B, K, h, 1], and the weights [B, K]."""
    radius = float(int(3.0 * sigma))
    center = keypoints if encoding == UNBIASED else _rounded(keypoints)
    x, y = center.unbind(2)
    outside = (x >= width + radius) | (y >= height + radius) | (center < -(radius + 1.0)).any(2)
    weights = torch.where(outside | ~torch.isfinite(keypoints).all(2), 0.0, visible)
    peak = (center if encoding == MSRA else keypoints).to(dtype)

    def factor(axis: int, length: int) -> Tensor:
        pixel = torch.arange(length, device=keypoints.device, dtype=torch.float32)
        shown = (weights > 0.5)[..., None]
        if encoding != UNBIASED:
            shown = shown & ((pixel - center[..., axis, None]).abs() <= radius)
        scaled = (pixel.to(dtype) - peak[..., axis, None]) * (1.0 / sigma)
        return torch.where(shown, torch.exp(-0.5 * scaled * scaled), 0.0)

    return factor(0, width)[..., None, :], factor(1, height)[..., :, None], weights


def _rounded(points: Tensor) -> Tensor:
    """x + 0.5 truncated toward zero, without that sum, which rounds in float32: 0.49999997 + 0.5 would be 1."""
    whole = points.floor()
    part = points - whole
    return whole + torch.where(points >= -0.5, part >= 0.5, 1 + (part > 0.5).to(torch.int32))


def _fake(
    keypoints: Tensor, visible: Tensor, height: int, width: int, sigma: float, encoding: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    batch, joints = keypoints.size(0), keypoints.size(1)
    return keypoints.new_empty((batch, joints, height, width), dtype=dtype), keypoints.new_empty((batch, joints))


register("render_heatmaps", plain_render_heatmaps, _fake)
