# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch
from torch import Tensor

from ..image_batch import ImageBatch
from ._library import float32, register_fake, size_of, tensor


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
) -> Tensor:
    """Cut, rotate, scale, mirror, normalise and lay out a batch of crops in one pass over the pixels.

    Convention: `crop_to_image` maps crop to image, `[x_image, y_image] = M @ [x_crop, y_crop, 1]`, pixel centres at
    integers (`cv2.warpAffine` with `WARP_INVERSE_MAP`). Each output pixel is the bilinear mix of four taps; a tap
    outside the image is `fill`, before `color` is applied; a source point that is not finite is `fill` altogether.
    Source points are float32: exact to about 1e-4 px in images of 2,000 px, 2e-3 px at 30,000.

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

    Returns:
        [B, 3, h, w]. Not differentiable.

    Raises:
        RuntimeError: an argument has the wrong shape, dtype or device; an `image_index` outside [0, N) on the CPU.
            On CUDA, where raising would need a synchronisation, such a crop is NaN (`fill` for uint8).
    """
    height, width = size_of(size)
    if memory_format not in (torch.contiguous_format, torch.channels_last):
        raise ValueError(f"memory_format must be torch.contiguous_format or torch.channels_last, got {memory_format}")
    offsets = sizes = None
    if isinstance(images, ImageBatch):
        pixels, offsets, sizes = images.data, images.offsets, images.sizes
    else:
        pixels = tensor("images", images)
        pixels = pixels.unsqueeze(0) if pixels.dim() == 3 else pixels
        # The kernel walks whole pixels: rows and images may lie anywhere, the three bytes of a pixel side by side.
        if pixels.dim() == 4 and (pixels.stride(3) != 1 or pixels.stride(2) != 3):
            pixels = pixels.contiguous()
    return torch.ops.fastpose.affine_crop(
        pixels,
        offsets,
        sizes,
        float32("crop_to_image", crop_to_image),
        None if image_index is None else _indices(image_index),
        None if color is None else float32("color", color),
        height,
        width,
        float(fill),
        dtype,
        memory_format == torch.channels_last,
    )


def _indices(image_index: Tensor) -> Tensor:
    # Narrower whole numbers are converted; anything else reaches the check as it is, instead of being cut to integers.
    narrow = tensor("image_index", image_index).dtype in (torch.int32, torch.int16, torch.int8, torch.uint8)
    return image_index.to(torch.int64) if narrow else image_index


@register_fake("affine_crop")
def _(
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
    return torch.empty(
        (crop_to_image.size(0), 3, height, width),
        dtype=dtype,
        device=images.device,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
    )
