# SPDX-License-Identifier: Apache-2.0
"""Every op in plain torch, whole batches at a time: the strongest thing a user would write without native code.

Written for speed within what torch offers (no Python loop over samples or joints) and for `torch.compile`; arguments,
results and conventions are those of the ops of the same names in `fastpose`, and the tests hold them to the same
definitions, so that a benchmark compares equal work. They trust their arguments.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastpose.reference import mirror_order


def _accumulate_type(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


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
    batch, (height, width), device = crop_to_image.shape[0], size, data.device
    if offsets is None or sizes is None:
        count, image_height, image_width, _ = data.shape
        offsets = torch.arange(count, device=device) * (image_height * image_width * 3)
        sizes = torch.tensor([[image_height, image_width]], device=device).expand(count, 2)
        data = data.reshape(-1)
    if image_index is None:
        paired = len(offsets) == batch
        image_index = (
            torch.arange(batch, device=device) if paired else torch.zeros(batch, dtype=torch.int64, device=device)
        )
    start = offsets[image_index].view(-1, 1, 1)
    image_height, image_width = (s.view(-1, 1, 1) for s in sizes[image_index].to(torch.int64).unbind(1))

    m = crop_to_image.view(batch, 6, 1, 1)
    x_crop = torch.arange(width, device=device, dtype=torch.float32).view(1, 1, -1)
    y_crop = torch.arange(height, device=device, dtype=torch.float32).view(1, -1, 1)
    x = m[:, 0] * x_crop + (m[:, 1] * y_crop + m[:, 2])
    y = m[:, 3] * x_crop + (m[:, 4] * y_crop + m[:, 5])
    touches = (x > -1) & (y > -1) & (x < image_width) & (y < image_height)
    x, y = torch.where(touches, x, -1.0), torch.where(touches, y, -1.0)
    floor_x, floor_y = x.floor(), y.floor()
    x0, y0 = floor_x.to(torch.int64), floor_y.to(torch.int64)
    weight_x, weight_y = (x - floor_x).unsqueeze(1), (y - floor_y).unsqueeze(1)
    channels = torch.arange(3, device=device).view(1, 3, 1, 1)

    def tap(ty: Tensor, tx: Tensor) -> Tensor:
        inside = touches & (tx >= 0) & (ty >= 0) & (tx < image_width) & (ty < image_height)
        place = torch.where(inside, start + (ty * image_width + tx) * 3, start)
        return torch.where(inside.unsqueeze(1), data[place.unsqueeze(1) + channels].float(), fill)

    upper = torch.lerp(tap(y0, x0), tap(y0, x0 + 1), weight_x)
    lower = torch.lerp(tap(y0 + 1, x0), tap(y0 + 1, x0 + 1), weight_x)
    rgb = torch.lerp(upper, lower, weight_y)
    if color is not None:
        color = color.to(device).expand(batch, 3, 4)
        rgb = torch.baddbmm(color[:, :, 3:], color[:, :, :3], rgb.flatten(2)).view_as(rgb)
    if dtype == torch.uint8:
        rgb = rgb.round().clamp(0, 255)
    return rgb.to(dtype, memory_format=memory_format)


def _targets(
    keypoints: Tensor, visible: Tensor, size: tuple[int, int], sigma: float, encoding: str, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """The factors of each map in x [B, K, w] and in y [B, K, h], and the weights [B, K]."""
    radius = int(3 * sigma)
    exact = keypoints.double()
    center = exact if encoding == "unbiased" else (exact + 0.5).trunc()
    # Axis by axis: a tensor of both lengths would be copied to the GPU, and that waits.
    beyond = (center[..., 0] - radius >= size[1]) | (center[..., 1] - radius >= size[0])
    before = (center + radius + 1 < 0) | ~torch.isfinite(exact)
    weights = torch.where(beyond | before.any(-1), 0.0, visible)
    drawn = (weights > 0.5) & (visible > 0.5)
    peak = (center if encoding == "msra" else exact).to(dtype)

    factors = []
    for axis, length in ((0, size[1]), (1, size[0])):
        pixel = torch.arange(length, device=keypoints.device)
        scaled = (pixel.to(dtype) - peak[..., axis, None]) / sigma
        shown = drawn[..., None]
        if encoding != "unbiased":
            shown = shown & ((pixel - center[..., axis, None]).abs() <= radius)
        factors.append(torch.where(shown, torch.exp(-0.5 * scaled * scaled), 0.0))
    return factors[0], factors[1], weights


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
    factor_x, factor_y, weights = _targets(keypoints, visible, size, sigma, encoding, _accumulate_type(dtype))
    return (factor_y[..., :, None] * factor_x[..., None, :]).to(dtype), weights


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
    size, dtype = (pred.shape[2], pred.shape[3]), _accumulate_type(pred.dtype)
    target, weights = render_heatmaps(keypoints, visible, size, sigma=sigma, encoding=encoding, dtype=dtype)
    squares = (pred.to(dtype) - target).square()
    if missing == "zeros" and joint_weights is None:
        return 0.5 * squares.mean()
    weight = weights.to(dtype) if missing == "ignore" else torch.ones_like(weights, dtype=dtype)
    if joint_weights is not None:
        weight = weight * joint_weights
    return 0.5 * (squares * weight[..., None, None]).mean()


def _un_mirror(maps: Tensor, flip_pairs: Sequence[Sequence[int]], shift: bool) -> Tensor:
    order = torch.tensor(mirror_order(flip_pairs, maps.shape[1]), device=maps.device)
    maps = maps[:, order].flip(3)
    return torch.cat([maps[..., :1], maps[..., :-1]], 3) if shift else maps


def decode_heatmaps(
    heatmaps: Tensor,
    *,
    refine: str = "quarter",
    heatmap_to_image: Tensor | None = None,
    flipped: Tensor | None = None,
    flip_pairs: Sequence[Sequence[int]] | None = None,
    flip_shift: bool = False,
) -> tuple[Tensor, Tensor]:
    """`fastpose.decode_heatmaps`."""
    maps = heatmaps.to(_accumulate_type(heatmaps.dtype))
    if flipped is not None:
        maps = (maps + _un_mirror(flipped, flip_pairs or (), flip_shift).to(maps.dtype)) * 0.5
    height, width = maps.shape[2:]
    flat = maps.flatten(2)
    unknown = torch.isnan(flat)
    index = torch.where(unknown, -torch.inf, flat).argmax(2)
    scores = torch.where(unknown.all(2), torch.nan, flat.gather(2, index[..., None])[..., 0])
    x, y = index % width, index // width
    points = torch.stack([x, y], -1).to(torch.float32)
    if refine == "quarter":
        inside = (x > 1) & (x < width - 1) & (y > 1) & (y < height - 1)
        around = torch.stack([index - 1, index + 1, index - width, index + width], -1)
        left, right, above, below = flat.gather(2, torch.where(inside[..., None], around, 0)).unbind(-1)
        moves = torch.stack([right - left, below - above], -1).nan_to_num(0.0).sign() * 0.25
        points = points + torch.where(inside[..., None], moves, 0.0).to(torch.float32)
    points = torch.where((scores > 0)[..., None], points, 0.0)
    if heatmap_to_image is not None:
        points = transform_points(points, heatmap_to_image)
    return points, scores.to(torch.float32)


def transform_points(points: Tensor, matrix: Tensor, *, inverse: bool = False) -> Tensor:
    """`fastpose.transform_points`; a matrix that cannot be inverted gives NaN on every device."""
    m = matrix.double()
    linear, shift = m[:, :, :2], m[:, None, :, 2]
    exact = points.double()
    if not inverse:
        return (exact @ linear.mT + shift).to(points.dtype)
    a, b, c, d = linear[:, 0, 0], linear[:, 0, 1], linear[:, 1, 0], linear[:, 1, 1]
    determinant = a * d - b * c
    possible = torch.isfinite(m).all(2).all(1) & torch.isfinite(determinant) & (determinant != 0)
    adjugate = torch.stack([torch.stack([d, -b], -1), torch.stack([-c, a], -1)], -2)
    back = (exact - shift) @ (adjugate / determinant[:, None, None]).mT
    return torch.where(possible[:, None, None], back, torch.nan).to(points.dtype)


def swap_pairs(points: Tensor, visible: Tensor, flip: Tensor, pairs: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """`fastpose.swap_pairs`."""
    order = torch.tensor(mirror_order(pairs, points.shape[1], "pairs"), device=points.device)
    return (
        torch.where(flip[:, None, None], points[:, order], points),
        torch.where(flip[:, None], visible[:, order], visible),
    )


def crop_to_image_matrix(
    center: Tensor, scale: Tensor, rotation: Tensor, size: tuple[int, int], *, flip: Tensor | None, udp: bool
) -> Tensor:
    """`fastpose.crop_to_image_matrix`, with a scale [B, 2] and a rotation [B]."""
    height, width = size
    box, exact = 200.0 * scale.double(), center.double()
    step_x = box[:, 0] / (width - 1 if udp else width)
    step_y = box[:, 1] / (height - 1) if udp else step_x
    crop_x, crop_y = ((width - 1) / 2, (height - 1) / 2) if udp else (width / 2, height / 2)
    angle = torch.deg2rad(rotation.double())
    sine, cosine = torch.sin(angle), torch.cos(angle)
    mirror = 1.0 if flip is None else torch.where(flip, -1.0, 1.0).double()
    xx, xy, yx, yy = mirror * cosine * step_x, -mirror * sine * step_y, sine * step_x, cosine * step_y
    x = torch.stack([xx, xy, exact[:, 0] - xx * crop_x - xy * crop_y], -1)
    y = torch.stack([yx, yy, exact[:, 1] - yx * crop_x - yy * crop_y], -1)
    return torch.stack([x, y], 1).float()
