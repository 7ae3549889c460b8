# SPDX-License-Identifier: Apache-2.0
"""Every op in plain torch, whole batches at a time: what runs where a tensor's device has no native kernel.

Each function is the kernel of the torch op of its name on such devices, with the op's arguments, checks and errors.
Without the native library it defines the op, too. So fake kernels, gradients and torch.compile are the same either way.
The benchmarks call, compile and differentiate the functions themselves.

Where a device has no float64, as Apple's MPS, matrices and points are computed in float32: points of an image of 2,000
px are then within 1e-3 px, what dark and dark_udp find inside a heatmap within 1e-4 px of the heatmap.

Values, unlike shapes and dtypes, are checked on the CPU alone: elsewhere that would wait for the device, and what would
have been an error is NaN, as on CUDA.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..reference import MAX_BLUR_KERNEL, gaussian_kernel
from ._library import warn_of_fallback

Function = TypeVar("Function", bound=Callable[..., Any])

MAX_EXTENT = 1 << 24  # pixels; beyond, float32 does not tell one coordinate from the next
MAX_JOINTS = 512  # that the native ops can mirror
NAMES = {
    torch.float32: "Float",
    torch.float16: "Half",
    torch.bfloat16: "BFloat16",
    torch.float64: "Double",
    torch.uint8: "Byte",
    torch.int32: "Int",
    torch.int64: "Long",
    torch.bool: "Bool",
}
FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

_ops = torch.library.Library("fastpose", "FRAGMENT")


def _kernel(function: Function) -> Function:
    """Makes `function` the kernel of fastpose::`its name` on every device that has none of its own."""
    name = function.__name__
    if not hasattr(torch.ops.fastpose, name):
        _ops.define(name + torch.library.infer_schema(function, mutates_args=()))

    @functools.wraps(function)
    def run(*arguments: Any) -> Any:
        warn_of_fallback(arguments[0].device)
        return function(*arguments)

    _ops.impl(name, run, "CompositeExplicitAutograd")
    return function


# ---- checks ---------------------------------------------------------------------------------------------------------


def _expect(
    op: str,
    name: str,
    value: Tensor,
    shape: Sequence[int],
    spelled: str,
    dtypes: Sequence[torch.dtype] = (torch.float32,),
    beside: tuple[str, Tensor] | None = None,
) -> None:
    """RuntimeError unless `value` has that shape (-1: any size), one of the dtypes and the device of `beside`."""
    if value.dim() != len(shape) or any(want not in (-1, got) for want, got in zip(shape, value.shape, strict=True)):
        wanted = ", ".join("any" if want == -1 else str(want) for want in shape)
        raise RuntimeError(f"{op}: {name} must have shape {spelled} = [{wanted}], got {_described(value)}")
    if value.dtype not in dtypes:
        wanted = " or ".join(NAMES[dtype] for dtype in dtypes)
        raise RuntimeError(f"{op}: {name} must be {wanted}, got {_described(value)}")
    if beside is not None and value.device != beside[1].device:
        wanted = f"the device of {beside[0]} ({_described(beside[1])})"
        raise RuntimeError(f"{op}: {name} must be on {wanted}, got {_described(value)}")


def _described(value: Tensor) -> str:
    return f"{NAMES.get(value.dtype, value.dtype)} {list(value.shape)} on {value.device}"


def _expect_map_size(op: str, height: int, width: int) -> None:
    if not (1 <= height <= MAX_EXTENT and 1 <= width <= MAX_EXTENT):
        raise RuntimeError(
            f"{op}: the maps must be at least 1 x 1 pixels and at most {MAX_EXTENT} high or wide, "
            f"got (h, w) = ({height}, {width})"
        )


def _expect_mirrored(op: str, mirrored: Sequence[int], joints: int) -> None:
    if joints > MAX_JOINTS:
        raise RuntimeError(f"{op}: at most {MAX_JOINTS} joints can be mirrored, got {joints}")
    if len(mirrored) != joints or not all(0 <= joint < joints for joint in mirrored):
        raise RuntimeError(f"{op}: mirrored must name {joints} joints in [0, {joints}), got {list(mirrored)}")


def _values_are_checked(device: torch.device) -> bool:
    return device.type == "cpu" and not torch.compiler.is_compiling()  # what is compiled cannot look at values


# ---- types ----------------------------------------------------------------------------------------------------------


def _accumulate_type(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def exact_type(device: torch.device) -> torch.dtype:
    """float64 where the device has it, else float32; float32 in exported graphs too, as many runtimes have no other."""
    if torch.compiler.is_exporting():
        return torch.float32
    return torch.float64 if device.type in ("cpu", "cuda") or _has_float64(device) else torch.float32


@functools.cache
def _has_float64(device: torch.device) -> bool:
    try:
        return torch.ones(2, dtype=torch.float64, device=device).sum().item() == 2.0
    except (TypeError, RuntimeError):  # MPS has no such type, and some XPUs no way to compute with it
        return False


# ---- matrices and points --------------------------------------------------------------------------------------------


@_kernel
def crop_to_image_matrix(
    center: Tensor, scale: Tensor, rotation: Tensor, flip: Tensor | None, height: int, width: int, udp: bool
) -> Tensor:
    """`fastpose.crop_to_image_matrix` with a scale [B, 2] and a rotation [B]."""
    op, beside = "crop_to_image_matrix", ("center", center)
    _expect(op, "center", center, (-1, 2), "[B, 2]")
    batch = len(center)
    _expect(op, "scale", scale, (batch, 2), "[B, 2]", beside=beside)
    _expect(op, "rotation", rotation, (batch,), "[B]", beside=beside)
    if flip is not None:
        _expect(op, "flip", flip, (batch,), "[B]", (torch.bool,), beside)
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


@_kernel
def transform_points(points: Tensor, matrix: Tensor, inverse: bool) -> Tensor:
    """`fastpose.transform_points`."""
    op = "transform_points"
    _expect(op, "points", points, (-1, -1, 2), "[B, K, 2]", (torch.float32, torch.float64))
    _expect(op, "matrix", matrix, (len(points), 2, 3), "[B, 2, 3]", beside=("points", points))
    exact = points.to(exact_type(points.device))
    if not inverse:
        return _transformed(exact, matrix).to(points.dtype)
    xx, xy, x_shift, yx, yy, y_shift = matrix.to(exact.dtype).reshape(-1, 6, 1).unbind(1)
    determinant = xx * yy - xy * yx
    possible = torch.isfinite(matrix).flatten(1).all(1, keepdim=True)
    possible = possible & torch.isfinite(determinant) & (determinant != 0.0)
    if points.numel() and _values_are_checked(points.device) and not bool(possible.all()):
        n = int(possible[:, 0].to(torch.uint8).argmin())
        raise RuntimeError(f"{op}: matrix[{n}] must be invertible, got {matrix[n].tolist()}")
    determinant = torch.where(possible, determinant, torch.nan)
    x, y = exact[..., 0] - x_shift, exact[..., 1] - y_shift
    back = (yy * x - xy * y) / determinant, (xx * y - yx * x) / determinant
    return torch.stack(back, 2).to(points.dtype)


def _transformed(points: Tensor, matrix: Tensor) -> Tensor:
    """Written out, as matrix products may be computed in less than the type of their arguments."""
    xx, xy, x_shift, yx, yy, y_shift = matrix.to(points.dtype).reshape(-1, 6, 1).unbind(1)
    x, y = points.unbind(2)
    return torch.stack([xx * x + xy * y + x_shift, yx * x + yy * y + y_shift], 2)


@_kernel
def swap_pairs(points: Tensor, visible: Tensor, flip: Tensor, mirrored: list[int]) -> tuple[Tensor, Tensor]:
    """`fastpose.swap_pairs`, with `mirrored` from `reference.mirror_order`."""
    op, beside = "swap_pairs", ("points", points)
    _expect(op, "points", points, (-1, -1, 2), "[B, K, 2]")
    batch, joints, _ = points.shape
    _expect(op, "visible", visible, (batch, joints), "[B, K]", beside=beside)
    _expect(op, "flip", flip, (batch,), "[B]", (torch.bool,), beside)
    _expect_mirrored(op, mirrored, joints)
    order = torch.tensor(mirrored, dtype=torch.int64, device=points.device)
    return (
        torch.where(flip[:, None, None], points[:, order], points),
        torch.where(flip[:, None], visible[:, order], visible),
    )


# ---- crops ----------------------------------------------------------------------------------------------------------


@_kernel
def affine_crop(
    images: Tensor,
    offsets: Tensor | None,
    sizes: Tensor | None,
    crop_to_image: Tensor,
    image_index: Tensor | None,
    color: Tensor | None,
    height: int,
    width: int,
    fill: float,
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    """`fastpose.affine_crop` of [N, H, W, 3] pixels, or of an ImageBatch's data, offsets and sizes.

    Crops are made in parts of up to 2^21 pixels (2^16 on the CPU, for its caches), which take about 100 bytes per pixel
    while they are made. Dense images with gaps between their pixels are copied.
    """
    count = _expect_crop_arguments(
        images, offsets, sizes, crop_to_image, image_index, color, height, width, fill, dtype
    )
    batch, device = len(crop_to_image), images.device
    layout = torch.channels_last if channels_last else torch.contiguous_format
    out = torch.empty((batch, 3, height, width), dtype=dtype, device=device, memory_format=layout)
    if batch == 0:
        return out
    if image_index is None:
        image_index = torch.arange(batch, device=device) % count  # one image per crop, or one for all
    start, extent, known = _image_of_each_crop(images, offsets, sizes, image_index, count)
    if color is not None or known is not None:
        color = torch.eye(3, 4, device=device) if color is None else color.to(device)
        if known is not None:
            blank = torch.zeros(3, 4, device=device)
            blank[:, 3] = fill if dtype == torch.uint8 else torch.nan
            color = torch.where(known[:, None, None], color, blank)
        color = color.expand(batch, 3, 4)

    part = 1 << 16 if device.type == "cpu" else 1 << 21
    if torch.compiler.is_compiling():
        part = batch * height * width  # compiled, nothing lies in memory between the steps
    rows = max(1, min(height, part // width))
    crops = max(1, part // (rows * width))
    pixels = images.reshape(-1)
    for b in range(0, batch, crops):
        some = slice(b, b + crops)
        maps = None if color is None else color[some]
        for y in range(0, height, rows):
            x_and_y = _source(crop_to_image[some], y, min(rows, height - y), width)
            planes = _colored(_sample(pixels, start[some], extent[some], *x_and_y, fill), maps)
            for channel, plane in enumerate(planes):
                if dtype == torch.uint8:
                    plane = plane.nan_to_num(0.0).round().clamp(0.0, 255.0)
                out[some, channel, y : y + rows] = plane
    return out


def _expect_crop_arguments(
    images: Tensor,
    offsets: Tensor | None,
    sizes: Tensor | None,
    crop_to_image: Tensor,
    image_index: Tensor | None,
    color: Tensor | None,
    height: int,
    width: int,
    fill: float,
    dtype: torch.dtype,
) -> int:
    """The number of images."""
    op, beside = "affine_crop", ("images", images)
    if offsets is None or sizes is None:
        _expect(op, "images", images, (-1, -1, -1, 3), "[N, H, W, 3]", (torch.uint8,))
        count, image_height, image_width, _ = images.shape
        if count and not (1 <= image_height <= MAX_EXTENT and 1 <= image_width <= MAX_EXTENT):
            raise RuntimeError(f"{op}: images must be 1 to {MAX_EXTENT} pixels high and wide, got {_described(images)}")
    else:
        _expect(op, "images.data", images, (-1,), "[bytes]", (torch.uint8,))
        _expect(op, "images.offsets", offsets, (-1,), "[N]", (torch.int64,), beside)
        count = len(offsets)
        _expect(op, "images.sizes", sizes, (count, 2), "[N, 2]", (torch.int32,), beside)
    _expect(op, "crop_to_image", crop_to_image, (-1, 2, 3), "[B, 2, 3]", beside=beside)
    batch = len(crop_to_image)
    if not (1 <= height <= MAX_EXTENT and 1 <= width <= MAX_EXTENT):
        raise RuntimeError(f"{op}: size must be (h, w) of 1 to {MAX_EXTENT}, got ({height}, {width})")
    if not abs(fill) <= torch.finfo(torch.float32).max:
        raise RuntimeError(f"{op}: fill must be a finite pixel value, got {fill}")
    if dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.uint8):
        raise RuntimeError(f"{op}: dtype must be Float or Half or BFloat16 or Byte, got {NAMES.get(dtype, dtype)}")
    if image_index is not None:
        _expect(op, "image_index", image_index, (batch,), "[B]", (torch.int64,), beside)
        if batch and not count:
            raise RuntimeError(f"{op}: image_index must be in [0, 0), got {batch} crops of no images")
    elif count not in (1, batch):
        raise RuntimeError(
            f"{op}: without image_index there must be one image per crop, or one for all; "
            f"got {count} images and {batch} crops"
        )
    if color is not None and color.dim() == 2:
        _expect(op, "color", color, (3, 4), "[3, 4]", beside=None if color.device.type == "cpu" else beside)
    elif color is not None:
        _expect(op, "color", color, (batch, 3, 4), "[3, 4] or [B, 3, 4]", beside=beside)
    return count


def _image_of_each_crop(
    images: Tensor, offsets: Tensor | None, sizes: Tensor | None, image_index: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Of the image of each crop: first byte [B] and (h, w) [B, 2], int64, and whether there is such an image [B].

    Where there is none, the first pixel of the buffer is named; on the CPU that is an error, and there None is returned
    in the third place.
    """
    named = (image_index >= 0) & (image_index < count)
    index = torch.where(named, image_index, 0)
    if offsets is None or sizes is None:
        start = index * images[0].numel()
        extent = torch.empty_like(index)[:, None].repeat(1, 2)
        extent[:, 0], extent[:, 1] = images.shape[1], images.shape[2]
    else:
        start, extent = offsets[index], sizes[index].to(torch.int64)
    # ImageBatch has validated its tables; a table altered since must not become a read outside the buffer.
    fits = (extent >= 1).all(1) & (extent <= MAX_EXTENT).all(1) & (start >= 0) & (start <= images.numel())
    known = named & fits & (extent.prod(1) <= (images.numel() - start) // 3)
    if _values_are_checked(images.device):
        if not bool(known.all()):
            b = int(known.to(torch.uint8).argmin())
            n = int(image_index[b])
            if not named[b]:
                raise RuntimeError(f"affine_crop: image_index[{b}] must be in [0, {count}), got {n}")
            raise RuntimeError(
                f"affine_crop: images: image {n} ({extent[b, 0]} x {extent[b, 1]} at byte {start[b]}) does not lie "
                f"inside the buffer of {images.numel()} bytes"
            )
        return start, extent, None
    return torch.where(known, start, 0), torch.where(known[:, None], extent, 1), known


def _source(crop_to_image: Tensor, first_row: int, rows: int, width: int) -> tuple[Tensor, Tensor]:
    """Source points x and y [b, rows, w] of some rows of crops; -2, which is outside all images, if not finite."""
    m = crop_to_image.reshape(-1, 6, 1, 1).unbind(1)
    x = torch.arange(width, device=crop_to_image.device, dtype=torch.float32)
    y = torch.arange(first_row, first_row + rows, device=crop_to_image.device, dtype=torch.float32)[:, None]
    x_source = torch.addcmul(m[1] * y + m[2], m[0], x)
    y_source = torch.addcmul(m[4] * y + m[5], m[3], x)
    return x_source.nan_to_num(-2.0, -2.0, -2.0), y_source.nan_to_num(-2.0, -2.0, -2.0)


def _sample(pixels: Tensor, start: Tensor, extent: Tensor, x: Tensor, y: Tensor, fill: float) -> Tensor:
    """Bilinear samples [3, b, rows, w] at source points. Memory is the limit: channels are planes, so that every step
    runs along long rows, and what lies outside is not asked for tap by tap, but weighed at the end."""
    height, width = extent.view(-1, 2, 1, 1).unbind(1)
    first_x, weight_x, share_x = _taps(x, width)
    first_y, weight_y, share_y = _taps(y, height)
    place = start.view(-1, 1, 1) + (first_y * width + first_x) * 3
    # An image of one column or row has no second tap; its weight is 0, and the first is read again.
    beside, below = torch.where(width > 1, 3, 0), torch.where(height > 1, 3 * width, 0)

    def tap(place: Tensor) -> Tensor:
        flat = place.reshape(-1)
        planes = [pixels[channel:].index_select(0, flat) for channel in range(3)]
        return torch.stack(planes).to(torch.float32).view(3, *place.shape)

    upper = torch.lerp(tap(place), tap(place + beside), weight_x)
    place = place + below
    lower = torch.lerp(tap(place), tap(place + beside), weight_x)
    share = share_x * share_y
    rgb = torch.lerp(upper, lower, weight_y) * share
    return rgb if fill == 0.0 else rgb + fill * (1.0 - share)


def _taps(at: Tensor, length: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The first of two neighbouring pixels of an image, the weight of the second, and the share of what is inside: a
    point that lies less than a pixel outside has the pixel at the edge for the one tap, and the fill for the other."""
    last = length - 1
    inside = torch.minimum(at.clamp(min=0.0), last)
    share = (1.0 - (at - inside).abs()).clamp(min=0.0)
    first = torch.minimum(inside.floor(), (last - 1).clamp(min=0))
    return first.to(torch.int64), inside - first, share


def _colored(rgb: Tensor, color: Tensor | None) -> Sequence[Tensor]:
    """Three planes [b, rows, w] through a colour map [b, 3, 4]; no matrix product, as those may round to TF32."""
    if color is None:
        return rgb.unbind(0)
    red, green, blue, shift = color[..., None, None].unbind(2)
    return [
        torch.addcmul(
            torch.addcmul(torch.addcmul(shift[:, c], red[:, c], rgb[0]), green[:, c], rgb[1]), blue[:, c], rgb[2]
        )
        for c in range(3)
    ]


# ---- heatmaps -------------------------------------------------------------------------------------------------------

MSRA, UNBIASED, UDP = range(3)  # in the order of ENCODINGS
NONE, QUARTER, DARK, DARK_UDP = range(4)  # in the order of REFINEMENTS


def _expect_target(op: str, height: int, width: int, sigma: float, encoding: int) -> None:
    _expect_map_size(op, height, width)
    if not 1e-30 <= sigma <= torch.finfo(torch.float32).max:  # what is left of it in float32 must be a divisor
        raise RuntimeError(f"{op}: sigma must be a positive number of map pixels, got {sigma}")
    if encoding not in (MSRA, UNBIASED, UDP):
        raise RuntimeError(f"{op}: unknown encoding {encoding}")


def _factors(
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


@_kernel
def render_heatmaps(
    keypoints: Tensor,
    visible: Tensor,
    height: int,
    width: int,
    sigma: float,
    encoding: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """`fastpose.render_heatmaps`."""
    op = "render_heatmaps"
    _expect(op, "keypoints", keypoints, (-1, -1, 2), "[B, K, 2]")
    _expect(op, "visible", visible, keypoints.shape[:2], "[B, K]", beside=("keypoints", keypoints))
    _expect_target(op, height, width, sigma, encoding)
    if dtype not in FLOATING:
        raise RuntimeError(f"{op}: dtype must be Float or Half or BFloat16 or Double, got {NAMES.get(dtype, dtype)}")
    of_x, of_y, weights = _factors(keypoints, visible, height, width, sigma, encoding, _accumulate_type(dtype))
    return (of_y * of_x).to(dtype), weights


def _difference_and_weight(
    op: str,
    pred: Tensor,
    keypoints: Tensor,
    visible: Tensor,
    joint_weights: Tensor | None,
    sigma: float,
    encoding: int,
    ignore_missing: bool,
) -> tuple[Tensor, Tensor]:
    """pred - target [B, K, h, w], and the weight of each map over the number of all pixels [B, K]."""
    beside = ("pred", pred)
    _expect(op, "pred", pred, (-1, -1, -1, -1), "[B, K, h, w]", FLOATING)
    batch, joints, height, width = pred.shape
    _expect(op, "keypoints", keypoints, (batch, joints, 2), "[B, K, 2]", beside=beside)
    _expect(op, "visible", visible, (batch, joints), "[B, K]", beside=beside)
    _expect_target(op, height, width, sigma, encoding)
    dtype = _accumulate_type(pred.dtype)
    of_x, of_y, weights = _factors(keypoints, visible, height, width, sigma, encoding, dtype)
    if not ignore_missing:
        weights = torch.ones_like(weights)
    if joint_weights is not None:
        per_sample = joint_weights.dim() == 2
        shape, spelled = ((batch, joints), "[B, K]") if per_sample else ((joints,), "[K] or [B, K]")
        _expect(op, "joint_weights", joint_weights, shape, spelled, beside=beside)
        weights = weights * joint_weights
    return pred.to(dtype) - of_y * of_x, weights.to(dtype) / max(1, pred.numel())


@_kernel
def heatmap_mse_loss(
    pred: Tensor,
    keypoints: Tensor,
    visible: Tensor,
    joint_weights: Tensor | None,
    sigma: float,
    encoding: int,
    ignore_missing: bool,
) -> Tensor:
    """`fastpose.heatmap_mse_loss`. Called directly, autograd differentiates it and keeps a map per map."""
    difference, weight = _difference_and_weight(
        "heatmap_mse_loss", pred, keypoints, visible, joint_weights, sigma, encoding, ignore_missing
    )
    # Map by map, so that the number of threads changes no bit.
    return 0.5 * (weight * difference.square().sum((2, 3))).sum()


@_kernel
def heatmap_mse_loss_backward(
    grad_output: Tensor,
    pred: Tensor,
    keypoints: Tensor,
    visible: Tensor,
    joint_weights: Tensor | None,
    sigma: float,
    encoding: int,
    ignore_missing: bool,
) -> Tensor:
    """The gradient of `heatmap_mse_loss` in `pred`: renders the target again instead of keeping it."""
    op = "heatmap_mse_loss_backward"
    difference, weight = _difference_and_weight(
        op, pred, keypoints, visible, joint_weights, sigma, encoding, ignore_missing
    )
    _expect(op, "grad_output", grad_output, (), "[]", (difference.dtype,), ("pred", pred))
    # The incoming gradient goes in before rounding to half precision.
    return torch.mul(difference, (weight * grad_output)[..., None, None], out=torch.empty_like(pred))


@_kernel
def decode_heatmaps(
    heatmaps: Tensor,
    heatmap_to_image: Tensor | None,
    flipped: Tensor | None,
    mirrored: list[int],
    flip_shift: bool,
    refine: int,
    blur_kernel: int,
) -> tuple[Tensor, Tensor]:
    """`fastpose.decode_heatmaps`, with `mirrored` from `reference.mirror_order`."""
    op, beside = "decode_heatmaps", ("heatmaps", heatmaps)
    _expect(op, "heatmaps", heatmaps, (-1, -1, -1, -1), "[B, K, h, w]", FLOATING)
    batch, joints, height, width = heatmaps.shape
    _expect_map_size(op, height, width)
    if refine not in (NONE, QUARTER, DARK, DARK_UDP):
        raise RuntimeError(f"{op}: unknown refine {refine}")
    if not 1 <= blur_kernel <= MAX_BLUR_KERNEL or blur_kernel % 2 == 0:
        wanted = f"an odd number of pixels from 1 to {MAX_BLUR_KERNEL}"
        raise RuntimeError(f"{op}: blur_kernel must be {wanted}, got {blur_kernel}")
    if heatmap_to_image is not None:
        _expect(op, "heatmap_to_image", heatmap_to_image, (batch, 2, 3), "[B, 2, 3]", beside=beside)
    maps = heatmaps.to(_accumulate_type(heatmaps.dtype)).contiguous()
    if flipped is not None:
        _expect(op, "flipped", flipped, heatmaps.shape, "of heatmaps", (heatmaps.dtype,), beside)
        _expect_mirrored(op, mirrored, joints)
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
        points = points + _dark(maps.flatten(2), scores, x, y, height, width, blur_kernel, udp=refine == DARK_UDP)
    points = torch.where((scores > 0.0)[..., None], points, 0.0)
    if heatmap_to_image is not None:
        points = _transformed(points, heatmap_to_image)
    return points.to(torch.float32), scores.to(torch.float32)


def _without_nan(maps: Tensor) -> Tensor:
    """-infinity in the place of NaN. The maps themselves where they can be seen to have none: that saves a copy."""
    if _values_are_checked(maps.device) and maps.numel() and not bool(maps.amax().isnan()):
        return maps
    return maps.nan_to_num(-torch.inf, torch.inf, -torch.inf)


def _un_mirrored(maps: Tensor, mirrored: Sequence[int], shift: bool) -> Tensor:
    order = torch.tensor(mirrored, dtype=torch.int64, device=maps.device)
    maps = maps.index_select(1, order).flip(3)
    return torch.cat([maps[..., :1], maps[..., :-1]], 3) if shift else maps


def _quarter(maps: Tensor, x: Tensor, y: Tensor, height: int, width: int) -> Tensor:
    """Moves [B, K, 2] toward the higher neighbours; none between equal ones or NaN."""
    index = y * width + x
    around = torch.cat([index - 1, index - width, index + 1, index + width], 2)
    inside = (x > 1) & (x < width - 1) & (y > 1) & (y < height - 1)
    before, after = maps.gather(2, torch.where(inside, around, 0)).split(2, 2)
    moves = (after > before).to(torch.float32) - (after < before).to(torch.float32)
    return torch.where(inside, 0.25 * moves, 0.0)


def _dark(
    maps: Tensor, scores: Tensor, x: Tensor, y: Tensor, height: int, width: int, blur_kernel: int, *, udp: bool
) -> Tensor:
    """Newton's steps [B, K, 2] of dark and dark_udp on the logarithms of the blurred maps."""
    reach, floor = (1, 1e-3) if udp else (2, 1e-10)
    blurred = _blurred(maps, x, y, height, width, blur_kernel, reach)
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
    # What is singular to rounding, in the type that there is.
    ratio, least = (1e-12, 1e-20) if blurred.dtype == torch.float64 else (4e-6, 1e-12)
    regular = determinant.abs() > ratio * (dxx * dxx + 2 * dxy * dxy + dyy * dyy) + least
    step = torch.stack([dxy * dy - dyy * dx, dxy * dx - dxx * dy], 2) / determinant[..., None]
    return torch.where(moves & regular[..., None] & torch.isfinite(step).all(2, keepdim=True), step, 0.0)


def _blurred(maps: Tensor, x: Tensor, y: Tensor, height: int, width: int, blur_kernel: int, reach: int) -> Tensor:
    """Blurred values [B, K, 2 reach + 1, 2 reach + 1] about the pixels (x, y), beyond the edge those of the edge."""
    exact = exact_type(maps.device)
    weights = gaussian_kernel(blur_kernel).tolist()
    side, apart = 2 * reach + 1, reach + blur_kernel // 2
    offsets = torch.arange(-apart, apart + 1, device=maps.device)
    rows, columns = (y + offsets)[..., :, None], (x + offsets)[..., None, :]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    index = rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)
    around = maps.gather(2, index.flatten(2)).view(inside.shape).to(exact)
    around = torch.where(inside, around, 0.0)
    # Tap by tap: equal surroundings give equal bits, and nothing beyond a kernel's reach has a part in it.
    down = sum(weight * around[:, :, i : i + side] for i, weight in enumerate(weights))
    blurred = sum(weight * down[..., i : i + side] for i, weight in enumerate(weights))
    window = torch.arange(-reach, reach + 1, device=maps.device)
    rows = (y + window).clamp(0, height - 1) - y + reach
    columns = (x + window).clamp(0, width - 1) - x + reach
    return blurred.gather(2, rows[..., :, None].expand_as(blurred)).gather(3, columns[..., None, :].expand_as(blurred))
