# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ._arguments import MAX_EXTENT, NAMES, choose, described, expect, float32, size_of, tensor, values_are_checked
from ._mistakes import look_at_crops
from ._native import call, register
from .image_batch import UNREAD, ImageBatch

Resampling = Literal["bilinear", "bicubic"]  # their numbers are the op's
RESAMPLING: tuple[Resampling, ...] = get_args(Resampling)
BILINEAR, BICUBIC = range(2)


def affine_crop(
    images: ImageBatch | Tensor,
    crop_to_image: Tensor,
    size: tuple[int, int],
    *,
    image_index: Tensor | None = None,
    color: Tensor | None = None,
    fill: float = 0.0,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
    resample: Resampling = "bilinear",
    erase: Tensor | None = None,
) -> Tensor:
    """Cut, rotate, scale, mirror, normalise and lay out a batch of crops in one pass over the pixels.

    Convention: `crop_to_image` maps crop to image, `[x_image, y_image] = M @ [x_crop, y_crop, 1]`, pixel centres at
    integers (`cv2.warpAffine` with `WARP_INVERSE_MAP`). Each output pixel is the bilinear mix of four taps, or the
    bicubic one of sixteen; a tap outside the image is `fill`, before `color` is applied; a source point that is not
    finite is `fill` altogether. Neither averages over more where the crop shrinks the image: no antialiasing. Source
    points are float32: exact to about 1e-4 px in images of 2,000 px, 2e-3 px at 30,000.

    Args:
        images: uint8 RGB pixels: an `ImageBatch` (images of different sizes), or a tensor [N, H, W, 3] or [H, W, 3].
        crop_to_image: [B, 2, 3], float32, on the device of the images. Singular matrices sample their point or line.
        size: (h, w) of the crops in pixels.
        image_index: [B] int64, the image each crop comes from. Without it crop b takes image b, or the only image.
        color: affine map of pixel values 0–255, [3, 4] or [B, 3, 4], `out[c] = color[c, :3] · rgb + color[c, 3]`
            (see `normalize_color`). A [3, 4] map may stay on the CPU. None leaves pixel values as they are.
        fill: value 0–255 of pixels outside the image.
        dtype: float32, float16, bfloat16, or uint8 (rounded to nearest and saturated).
        memory_format: torch.contiguous_format (NCHW) or torch.channels_last.
        resample: "bilinear", or "bicubic": cubic convolution with a = -0.75, as OpenCV's `INTER_CUBIC` and torch's
            `grid_sample`, which transformers' Sapiens2 uses where it enlarges; PIL's and torchvision's antialiased
            bicubic have a = -0.5. It overshoots beside edges: floating crops leave the pixels' range by up to 45 % of
            it and are not clamped, as theirs are not; uint8 ones saturate.
        erase: [B, N, 4] float32, N boxes (x0, y0, x1, y1) in each crop, in crop pixels. Pixels whose centres lie in
            [x0, x1) × [y0, y1) are `fill`, as if they lay outside the image. A box that is empty or not a number
            erases nothing, one that leaves the crop what is inside.

    Returns:
        [B, 3, h, w]. Not differentiable.

    Raises:
        RuntimeError: an argument has the wrong shape, dtype or device; an `image_index` outside [0, N) on the CPU.
            On CUDA, where raising would need a synchronisation, such a crop is NaN (`fill` for uint8).
        ValueError: `size` or `memory_format` cannot be, or an unknown `resample`. TypeError: images are neither an
        ImageBatch nor a tensor; says so of the None that `cv2.imread` returns for a file that it cannot read.

    Warns:
        UserWarning: once, on the CPU, of matrices from image to crop.
    """
    height, width = size_of(size)
    if memory_format not in (torch.contiguous_format, torch.channels_last):
        raise ValueError(f"memory_format must be torch.contiguous_format or torch.channels_last, got {memory_format}")
    offsets = sizes = None
    if isinstance(images, ImageBatch):
        pixels, offsets, sizes = images.data, images.offsets, images.sizes
    else:
        if not isinstance(images, Tensor):
            raise TypeError(f"images must be an ImageBatch or a torch.Tensor, got {_in_words(images)}")
        pixels = tensor("images", images)
        pixels = pixels.unsqueeze(0) if pixels.dim() == 3 else pixels
        # The kernel walks whole pixels: rows and images may lie anywhere, the three bytes of a pixel side by side.
        if pixels.dim() == 4 and (pixels.stride(3) != 1 or pixels.stride(2) != 3):
            pixels = pixels.contiguous()
    crop_to_image = float32("crop_to_image", crop_to_image)
    image_index = None if image_index is None else _indices(image_index)
    crops = call(
        "affine_crop",
        pixels,
        offsets,
        sizes,
        crop_to_image,
        image_index,
        None if color is None else float32("color", color),
        height,
        width,
        float(fill),
        dtype,
        memory_format == torch.channels_last,
        choose("resample", resample, RESAMPLING),
        None if erase is None else float32("erase", erase),
    )
    look_at_crops(crop_to_image, image_index, pixels.shape[1:3] if sizes is None else sizes, (height, width))
    return crops


def _in_words(images: object) -> str:
    """What was passed instead of images, and what to do."""
    if images is None:
        return UNREAD
    if isinstance(images, np.ndarray):
        return "a NumPy array: torch.from_numpy(images) makes a tensor of it"
    if isinstance(images, (list, tuple)):
        return f"a {type(images).__name__}: ImageBatch.from_list(images) makes a batch of it"
    return type(images).__name__


def _indices(image_index: Tensor) -> Tensor:
    # Narrower whole numbers are converted; anything else reaches the check as it is, instead of being cut to integers.
    narrow = tensor("image_index", image_index).dtype in (torch.int32, torch.int16, torch.int8, torch.uint8)
    return image_index.to(torch.int64) if narrow else image_index


def plain_affine_crop(
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
    resample: int = BILINEAR,
    erase: Tensor | None = None,
) -> Tensor:
    """`affine_crop` in plain torch: of [N, H, W, 3] pixels, or of an ImageBatch's data, offsets and sizes.

    Crops are computed in parts of up to 2^21 pixels (2^16 on the CPU, for its caches), which take about 100 bytes per
    pixel meanwhile. Dense images with gaps between their pixels are copied.
    """
    count = _expect_crop_arguments(
        images, offsets, sizes, crop_to_image, image_index, color, height, width, fill, dtype, resample, erase
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
    sample = _sample if resample == BILINEAR else _sample_bicubic
    for b in range(0, batch, crops):
        some = slice(b, b + crops)
        maps = None if color is None else color[some]
        for y in range(0, height, rows):
            x_and_y = _source(crop_to_image[some], y, min(rows, height - y), width)
            rgb = sample(pixels, start[some], extent[some], *x_and_y, fill)
            if erase is not None:
                rgb = torch.where(_erased(erase[some], y, rgb.shape[2], width), fill, rgb)
            planes = _colored(rgb, maps)
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
    resample: int,
    erase: Tensor | None,
) -> int:
    """The number of images."""
    op, beside = "affine_crop", ("images", images)
    if (offsets is None) != (sizes is None):
        alone = "sizes" if offsets is None else "offsets"
        raise RuntimeError(f"{op}: images.offsets and images.sizes must be passed together, got {alone} alone")
    if offsets is None or sizes is None:
        expect(op, "images", images, (-1, -1, -1, 3), "[N, H, W, 3]", (torch.uint8,))
        count, image_height, image_width, _ = images.shape
        if count and not (1 <= image_height <= MAX_EXTENT and 1 <= image_width <= MAX_EXTENT):
            raise RuntimeError(f"{op}: images must be 1 to {MAX_EXTENT} pixels high and wide, got {described(images)}")
    else:
        expect(op, "images.data", images, (-1,), "[bytes]", (torch.uint8,))
        expect(op, "images.offsets", offsets, (-1,), "[N]", (torch.int64,), beside)
        count = len(offsets)
        expect(op, "images.sizes", sizes, (count, 2), "[N, 2]", (torch.int32,), beside)
    expect(op, "crop_to_image", crop_to_image, (-1, 2, 3), "[B, 2, 3]", beside=beside)
    batch = len(crop_to_image)
    if not (1 <= height <= MAX_EXTENT and 1 <= width <= MAX_EXTENT):
        raise RuntimeError(f"{op}: size must be (h, w) of 1 to {MAX_EXTENT}, got ({height}, {width})")
    if not abs(fill) <= torch.finfo(torch.float32).max:
        raise RuntimeError(f"{op}: fill must be a finite pixel value, got {fill}")
    if dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.uint8):
        raise RuntimeError(f"{op}: dtype must be Float or Half or BFloat16 or Byte, got {NAMES.get(dtype, dtype)}")
    if resample not in (BILINEAR, BICUBIC):
        raise RuntimeError(f"{op}: unknown resample {resample}")
    if image_index is not None:
        expect(op, "image_index", image_index, (batch,), "[B]", (torch.int64,), beside)
        if batch and not count:
            raise RuntimeError(f"{op}: image_index must be in [0, 0), got {batch} crops of no images")
    elif count not in (1, batch):
        raise RuntimeError(
            f"{op}: without image_index there must be one image per crop, or one for all; "
            f"got {count} images and {batch} crops"
        )
    if color is not None and color.dim() == 2:
        expect(op, "color", color, (3, 4), "[3, 4]", beside=None if color.device.type == "cpu" else beside)
    elif color is not None:
        expect(op, "color", color, (batch, 3, 4), "[3, 4] or [B, 3, 4]", beside=beside)
    if erase is not None:
        expect(op, "erase", erase, (batch, -1, 4), "[B, N, 4]", beside=beside)
    return count


def _image_of_each_crop(
    images: Tensor, offsets: Tensor | None, sizes: Tensor | None, image_index: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """For each crop: the first byte [B] and (h, w) [B, 2] of its image, int64, and whether that image exists [B].

    An image that does not exist is replaced by the first pixel of the buffer. On the CPU it is an error instead, and
    the third value is None.
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
    if values_are_checked(images.device):
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


def _erased(erase: Tensor, first_row: int, rows: int, width: int) -> Tensor:
    """Which pixels [b, rows, w] of some rows of crops lie in any of their boxes [b, N, 4]."""
    x = torch.arange(width, device=erase.device)
    y = torch.arange(first_row, first_row + rows, device=erase.device)[:, None]
    erased = torch.zeros((len(erase), rows, width), dtype=torch.bool, device=erase.device)
    for box in erase.unbind(1):
        x0, y0, x1, y1 = box[..., None, None].unbind(1)
        erased |= (x >= x0) & (x < x1) & (y >= y0) & (y < y1)
    return erased


def _sample(pixels: Tensor, start: Tensor, extent: Tensor, x: Tensor, y: Tensor, fill: float) -> Tensor:
    """Bilinear samples [3, b, rows, w] at source points. Memory is the limit: channels are planes, so that every step
    runs along long rows, and what lies outside is not tested tap by tap, but weighed at the end."""
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


def _sample_bicubic(pixels: Tensor, start: Tensor, extent: Tensor, x: Tensor, y: Tensor, fill: float) -> Tensor:
    """Bicubic samples [3, b, rows, w] at source points, as what they differ from the fill."""
    height, width = extent.view(-1, 2, 1, 1).unbind(1)
    first = start.view(-1, 1, 1)
    columns, rows = _cubic_taps(x, width), _cubic_taps(y, height)
    rgb = torch.zeros((3, *x.shape), device=x.device)
    for row, row_weight in rows:
        for column, column_weight in columns:
            place = (first + (row * width + column) * 3).reshape(-1)
            weight = row_weight * column_weight
            for channel in range(3):
                values = pixels[channel:].index_select(0, place).to(torch.float32).view(x.shape)
                rgb[channel] += weight * (values - fill)
    return rgb + fill


def _cubic_taps(at: Tensor, length: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Four neighbouring pixels of an image and their weights: 0, and any pixel of the image, for one outside."""
    at = torch.minimum(at.clamp(min=-2.0), (length + 1).to(torch.float32))  # beyond lies nothing but fill
    floor = at.floor()
    t, second = at - floor, floor.to(torch.int64)
    s, a = 1.0 - t, -0.75
    near, far = (((a + 2.0) * u - (a + 3.0)) * u * u + 1.0 for u in (t, s))
    taps = []
    for step, weight in zip(range(-1, 3), (a * t * s * s, near, far, a * t * t * s), strict=True):
        place = second + step
        inside = (place >= 0) & (place < length)
        taps.append((torch.where(inside, place, 0), torch.where(inside, weight, 0.0)))
    return taps


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


def _fake(
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
    resample: int = BILINEAR,
    erase: Tensor | None = None,
) -> Tensor:
    return torch.empty(
        (crop_to_image.size(0), 3, height, width),
        dtype=dtype,
        device=images.device,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
    )


register("affine_crop", plain_affine_crop, _fake)
