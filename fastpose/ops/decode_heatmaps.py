# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from ._arguments import (
    FLOATING,
    accumulate_type,
    choose,
    exact_type,
    expect,
    expect_map_size,
    float32,
    tensor,
    values_are_checked,
)
from ._native import call, register
from .swap_pairs import expect_mirrored, in_order, mirror_order
from .transform_points import transformed

Refinement = Literal["none", "quarter", "dark", "dark_udp"]  # in the order of csrc/ops/decode_heatmaps.h
REFINEMENTS: tuple[Refinement, ...] = get_args(Refinement)
NONE, QUARTER, DARK, DARK_UDP = range(4)
MAX_BLUR_KERNEL = 255  # pixels, as in csrc/ops/decode_heatmaps.h
LEAST_BLUR_SIGMA, MOST_BLUR_SIGMA = 0.01, 1000.0  # pixels, as there


def decode_heatmaps(
    heatmaps: Tensor,
    *,
    refine: Refinement = "quarter",
    heatmap_to_image: Tensor | None = None,
    flipped: Tensor | None = None,
    flip_pairs: Sequence[Sequence[int]] | None = None,
    flip_shift: bool = False,
    blur_kernel: int = 11,
    blur_sigma: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Joint positions from heatmaps: maximum, sub-pixel offset, mirror test and the way back to the image in one pass.

    Args:
        heatmaps: [B, K, h, w], float32, float16, bfloat16 or float64, any strides.
        refine: how the point is moved off the pixel of the maximum, see below: "none", "quarter", "dark" or "dark_udp".
        heatmap_to_image: [B, 2, 3], as `crop_to_image_matrix(…, heatmap_size)` gives; None leaves heatmap pixels.
        flipped: maps of the mirrored image, of the shape and dtype of `heatmaps`; un-mirrored and averaged with them.
        flip_pairs: (left, right) joint pairs that change places in the mirrored image; needed with `flipped`.
        flip_shift: column x of the un-mirrored map takes column x−1, column 0 keeps its own (SimpleBaselines'
            SHIFT_HEATMAP); leave it off for UDP.
        blur_kernel: side of the Gaussian that "dark" and "dark_udp" blur with, heatmap pixels, odd, 1 (no blur) to 255.
            mmpose takes 11 for maps of sigma 2 and 17 for sigma 3. Without effect on "none" and "quarter".
        blur_sigma: of that Gaussian, heatmap pixels, 0.01 to 1000; None: OpenCV's choice for the kernel, 2.0 for 11.

    Returns:
        keypoints [B, K, 2] (x, y) and scores [B, K] (the maxima), float32. Ties go to the lowest index (row by row). A
        map whose maximum is ≤ 0 decodes to (0, 0) in heatmap pixels; NaN is never the maximum, and a map of NaN alone
        decodes to (0, 0) with score NaN. Not differentiable.

    Raises:
        ValueError: unknown refine, a blur_kernel that is even or out of range, a blur_sigma out of range,
        one of `flipped` and `flip_pairs` without the other, or pairs that overlap. RuntimeError: wrong shape, dtype or
        device.

    Refinements, all from the maximum of the map as it is, averaged with `flipped` but not blurred:

    * "none": the pixel itself.
    * "quarter": 0.25 pixel toward the higher neighbour in x and in y, where `1 < x < w−1` and `1 < y < h−1`
      (SimpleBaselines' `get_final_preds`).
    * "dark": one Newton step on the logarithm of the blurred map, where `1 < x < w−2` and `1 < y < h−2`, with
      differences over two pixels (Zhang et al., "Distribution-Aware Coordinate Representation for Human Pose
      Estimation", 2020; mmpose's `refine_keypoints_dark`, as `MSRAHeatmap(unbiased=True)` decodes).
    * "dark_udp": the same with differences over one pixel, float32's epsilon added to the Hessian's diagonal, at every
      pixel; beyond the edge the logarithm of the edge is repeated (Huang et al., "The Devil is in the Details", 2020;
      mmpose's `refine_keypoints_dark_udp`, as `UDPHeatmap` decodes Gaussian maps).

    The blur is `cv2.getGaussianKernel(blur_kernel, blur_sigma or 0)` in both directions with zeros beyond the map. It
    is computed at the 5 x 5 (dark) or 3 x 3 (dark_udp) pixels about the maximum only; these are scaled so that the
    highest of them equals the map's maximum, values below 1e-10 (dark) or 1e-3 (dark_udp) count as that much, and the
    logarithm is taken. All of it is in float64. The step may have any length, as in mmpose; it is left out if it is not
    finite, or if the Hessian is singular to rounding.

    Differences from mmpose 1.x: it scales so that the highest blurred value of the whole map equals the maximum. A
    factor does not change the derivatives of a logarithm, so points are the same (to its float32 arithmetic) unless a
    value that the step uses is below the floor; even then they are if the blurred map is highest within the window. It
    also cuts values above 50 in "dark_udp", which is not done here, and lets NaN through to the point. mmpose 0.x
    mirrors the map at its border in "dark_udp", and does not scale.
    """
    if not 1 <= blur_kernel <= MAX_BLUR_KERNEL or blur_kernel % 2 == 0:
        raise ValueError(f"blur_kernel must be an odd number of pixels from 1 to {MAX_BLUR_KERNEL}, got {blur_kernel}")
    if blur_sigma is not None and not LEAST_BLUR_SIGMA <= blur_sigma <= MOST_BLUR_SIGMA:
        wanted = f"{LEAST_BLUR_SIGMA:g} to {MOST_BLUR_SIGMA:g} pixels"
        raise ValueError(f"blur_sigma must be {wanted}, got {blur_sigma}")
    mirrored: list[int] = []
    if flipped is None and flip_pairs is not None:
        raise ValueError("flipped must be passed with flip_pairs: the maps of the mirrored images, got None")
    if flipped is not None:
        if flip_pairs is None:
            raise ValueError("flip_pairs must be passed with flipped: (left, right) joint pairs, got None")
        joints = tensor("heatmaps", heatmaps).size(1) if heatmaps.dim() == 4 else 0
        mirrored = mirror_order(flip_pairs, joints) if joints else []
    return call(
        "decode_heatmaps",
        tensor("heatmaps", heatmaps).detach(),
        None if heatmap_to_image is None else float32("heatmap_to_image", heatmap_to_image),
        None if flipped is None else tensor("flipped", flipped).detach(),
        mirrored,
        bool(flip_shift),
        choose("refine", refine, REFINEMENTS),
        blur_kernel,
        0.0 if blur_sigma is None else float(blur_sigma),
    )


def plain_decode_heatmaps(
    heatmaps: Tensor,
    heatmap_to_image: Tensor | None,
    flipped: Tensor | None,
    mirrored: list[int],
    flip_shift: bool,
    refine: int,
    blur_kernel: int,
    blur_sigma: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """`decode_heatmaps` in plain torch, with `mirrored` from `mirror_order` and a blur_sigma of 0 for OpenCV's."""
    op, beside = "decode_heatmaps", ("heatmaps", heatmaps)
    expect(op, "heatmaps", heatmaps, (-1, -1, -1, -1), "[B, K, h, w]", FLOATING)
    batch, joints, height, width = heatmaps.shape
    expect_map_size(op, height, width)
    if refine not in (NONE, QUARTER, DARK, DARK_UDP):
        raise RuntimeError(f"{op}: unknown refine {refine}")
    if not 1 <= blur_kernel <= MAX_BLUR_KERNEL or blur_kernel % 2 == 0:
        wanted = f"an odd number of pixels from 1 to {MAX_BLUR_KERNEL}"
        raise RuntimeError(f"{op}: blur_kernel must be {wanted}, got {blur_kernel}")
    if blur_sigma != 0.0 and not LEAST_BLUR_SIGMA <= blur_sigma <= MOST_BLUR_SIGMA:
        wanted = f"{LEAST_BLUR_SIGMA:g} to {MOST_BLUR_SIGMA:g} pixels, or 0 for OpenCV's"
        raise RuntimeError(f"{op}: blur_sigma must be {wanted}, got {blur_sigma}")
    if heatmap_to_image is not None:
        expect(op, "heatmap_to_image", heatmap_to_image, (batch, 2, 3), "[B, 2, 3]", beside=beside)
    maps = heatmaps.to(accumulate_type(heatmaps.dtype)).contiguous()
    if flipped is not None:
        expect(op, "flipped", flipped, heatmaps.shape, "of heatmaps", (heatmaps.dtype,), beside)
        expect_mirrored(op, mirrored, joints)
        maps = (maps + _un_mirrored(flipped, mirrored, flip_shift).to(maps.dtype)) * 0.5

    # The first highest row, and in it the first highest pixel: on the CPU far quicker than argmax over the whole map.
    values = _without_nan(maps)
    y = values.amax(3).argmax(2, keepdim=True)
    row = values.gather(2, y[..., None].expand(-1, -1, 1, width)).squeeze(2)
    x = row.argmax(2, keepdim=True)
    scores = row.gather(2, x).squeeze(2)
    if values is not maps:  # what is -infinity now may have been NaN alone
        lowest = maps.nan_to_num(torch.inf, torch.inf, -torch.inf).amin(3).amin(2)
        scores = torch.where((scores == -torch.inf) & (lowest == torch.inf), torch.nan, scores)

    points = torch.cat([x, y], 2).to(exact_type(maps.device))
    if refine == QUARTER:
        points = points + _quarter(maps.flatten(2), x, y, height, width)
    elif refine in (DARK, DARK_UDP):
        weights = blur_weights(blur_kernel, blur_sigma)
        points = points + _dark(maps.flatten(2), scores, x, y, height, width, weights, udp=refine == DARK_UDP)
    points = torch.where((scores > 0.0)[..., None], points, 0.0)
    if heatmap_to_image is not None:
        points = transformed(points, heatmap_to_image)
    return points.to(torch.float32), scores.to(torch.float32)


def _without_nan(maps: Tensor) -> Tensor:
    """-infinity instead of NaN. The maps themselves if they are seen to have no NaN: that saves a copy."""
    if values_are_checked(maps.device) and maps.numel() and not bool(maps.amax().isnan()):
        return maps
    return maps.nan_to_num(-torch.inf, torch.inf, -torch.inf)


def _un_mirrored(maps: Tensor, mirrored: Sequence[int], shift: bool) -> Tensor:
    maps = in_order(maps, mirrored).flip(3)
    return torch.cat([maps[..., :1], maps[..., :-1]], 3) if shift else maps


def _quarter(maps: Tensor, x: Tensor, y: Tensor, height: int, width: int) -> Tensor:
    """Moves [B, K, 2] toward the higher neighbours; no move between equal ones or beside NaN."""
    index = y * width + x
    around = torch.cat([index - 1, index - width, index + 1, index + width], 2)
    inside = (x > 1) & (x < width - 1) & (y > 1) & (y < height - 1)
    before, after = maps.gather(2, torch.where(inside, around, 0)).split(2, 2)
    moves = (after > before).to(torch.float32) - (after < before).to(torch.float32)
    return torch.where(inside, 0.25 * moves, 0.0)


def _dark(
    maps: Tensor, scores: Tensor, x: Tensor, y: Tensor, height: int, width: int, weights: list[float], *, udp: bool
) -> Tensor:
    """Newton's steps [B, K, 2] of dark and dark_udp on the logarithms of the blurred maps."""
    reach, floor = (1, 1e-3) if udp else (2, 1e-10)
    blurred = _blurred(maps, x, y, height, width, weights, reach)
    highest = blurred.nan_to_num(-torch.inf, torch.inf, -torch.inf).amax((2, 3), keepdim=True)
    scale = torch.where(highest > 0.0, scores.to(blurred.dtype)[..., None, None] / highest, 0.0)
    rows = (blurred * scale).clamp(min=floor).log().unbind(2)
    f = [row.unbind(2) for row in rows]  # f[y][x], the middle at [reach][reach]
    if udp:
        dx, dy = 0.5 * (f[1][2] - f[1][0]), 0.5 * (f[2][1] - f[0][1])
        epsilon = torch.finfo(torch.float32).eps
        dxx, dyy = f[1][2] - 2 * f[1][1] + f[1][0] + epsilon, f[2][1] - 2 * f[1][1] + f[0][1] + epsilon
        dxy = 0.5 * (f[2][2] - f[1][2] - f[2][1] + 2 * f[1][1] - f[1][0] - f[0][1] + f[0][0])
        moves = torch.ones_like(x, dtype=torch.bool)
    else:
        dx, dy = 0.5 * (f[2][3] - f[2][1]), 0.5 * (f[3][2] - f[1][2])
        dxx, dyy = 0.25 * (f[2][4] - 2 * f[2][2] + f[2][0]), 0.25 * (f[4][2] - 2 * f[2][2] + f[0][2])
        dxy = 0.25 * (f[3][3] - f[1][3] - f[3][1] + f[1][1])
        moves = (x > 1) & (x < width - 2) & (y > 1) & (y < height - 2)
    determinant = dxx * dyy - dxy * dxy
    # What is singular to rounding in this type.
    ratio, least = (1e-12, 1e-20) if blurred.dtype == torch.float64 else (4e-6, 1e-12)
    regular = determinant.abs() > ratio * (dxx * dxx + 2 * dxy * dxy + dyy * dyy) + least
    step = torch.stack([dxy * dy - dyy * dx, dxy * dx - dxx * dy], 2) / determinant[..., None]
    return torch.where(moves & regular[..., None] & torch.isfinite(step).all(2, keepdim=True), step, 0.0)


def blur_weights(side: int, sigma: float = 0.0) -> list[float]:
    """`cv2.getGaussianKernel(side, sigma)`; for a sigma of 0 a table up to 9 pixels, a sampled Gaussian beyond."""
    table = ((256.0,), (128.0, 64.0), (96.0, 64.0, 16.0), (72.0, 56.0, 28.0, 8.0), (60.0, 51.0, 30.0, 13.0, 4.0))
    radius = side // 2
    fixed = sigma == 0.0 and radius < len(table)
    sigma = sigma or 0.3 * (radius - 1) + 0.8
    sampled = [math.exp(-0.5 * (d / sigma) ** 2) for d in range(radius + 1)]
    by_distance = table[radius] if fixed else sampled
    total = by_distance[0] + 2.0 * sum(by_distance[1:])
    return [by_distance[abs(d)] / total for d in range(-radius, radius + 1)]


def _blurred(maps: Tensor, x: Tensor, y: Tensor, height: int, width: int, weights: list[float], reach: int) -> Tensor:
    """Blurred values [B, K, 2 reach + 1, 2 reach + 1] around the pixels (x, y); beyond the edge, those at the edge."""
    exact = exact_type(maps.device)
    side, apart = 2 * reach + 1, reach + len(weights) // 2
    offsets = torch.arange(-apart, apart + 1, device=maps.device)
    rows, columns = (y + offsets)[..., :, None], (x + offsets)[..., None, :]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    index = rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)
    around = maps.gather(2, index.flatten(2)).view(inside.shape).to(exact)
    around = torch.where(inside, around, 0.0)
    # Tap by tap: equal surroundings give equal bits, and nothing beyond a kernel's reach has a part in it.
    zero = around.new_zeros(())
    down = sum((weight * around[:, :, i : i + side] for i, weight in enumerate(weights)), zero)
    blurred = sum((weight * down[..., i : i + side] for i, weight in enumerate(weights)), zero)
    window = torch.arange(-reach, reach + 1, device=maps.device)
    rows = (y + window).clamp(0, height - 1) - y + reach
    columns = (x + window).clamp(0, width - 1) - x + reach
    return blurred.gather(2, rows[..., :, None].expand_as(blurred)).gather(3, columns[..., None, :].expand_as(blurred))


def _fake(
    heatmaps: Tensor,
    heatmap_to_image: Tensor | None,
    flipped: Tensor | None,
    mirrored: list[int],
    flip_shift: bool,
    refine: int,
    blur_kernel: int,
    blur_sigma: float = 0.0,
) -> tuple[Tensor, Tensor]:
    batch, joints = heatmaps.size(0), heatmaps.size(1)
    return (
        heatmaps.new_empty((batch, joints, 2), dtype=torch.float32),
        heatmaps.new_empty((batch, joints), dtype=torch.float32),
    )


register("decode_heatmaps", plain_decode_heatmaps, _fake)
