# SPDX-License-Identifier: Apache-2.0
"""NumPy definition of every op: obvious code, computed in float64, without regard to speed.

Each function takes the arguments of its namesake in `fastpose`, as arrays, lists or tensors of any device, and returns
arrays in the same layout; the native ops are tested against these. Conventions (all ops): points are (x, y) with pixel
centres at integers; matrices map crop to image, `[x_image, y_image] = M @ [x_crop, y_crop, 1]`; sizes are (h, w);
images are uint8 RGB.
"""

from .heatmaps import (
    affine_crop,
    crop_to_image_matrix,
    decode_heatmaps,
    gaussian_kernel,
    heatmap_mse_loss,
    jitter_color,
    mirror_order,
    normalize_color,
    render_heatmaps,
    soft_argmax,
    swap_pairs,
    transform_points,
)
from .simcc import decode_simcc, simcc_loss

__all__ = [
    "affine_crop",
    "crop_to_image_matrix",
    "decode_heatmaps",
    "decode_simcc",
    "gaussian_kernel",
    "heatmap_mse_loss",
    "jitter_color",
    "mirror_order",
    "normalize_color",
    "render_heatmaps",
    "simcc_loss",
    "soft_argmax",
    "swap_pairs",
    "transform_points",
]
