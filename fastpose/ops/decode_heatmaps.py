# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..reference import MAX_BLUR_KERNEL, mirror_order
from ._library import choose, float32, register_fake, tensor

REFINEMENTS = ("none", "quarter", "dark", "dark_udp")  # in the order of csrc/decode_heatmaps.h


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
    """Joint positions out of heatmaps: maximum, sub-pixel offset, mirror test and way back to the image in one pass.

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

    Returns:
        keypoints [B, K, 2] (x, y) and scores [B, K] (the maxima), float32. Ties go to the lowest index (row by row). A
        map whose maximum is ≤ 0 decodes to (0, 0) in heatmap pixels; NaN is never the maximum, and a map of NaN alone
        decodes to (0, 0) with score NaN. Not differentiable.

    Raises:
        ValueError: unknown refine, a blur_kernel that is even or out of range, `flipped` without `flip_pairs`, or pairs
        that overlap. RuntimeError: wrong shape, dtype or device.

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

    The blur is `cv2.getGaussianKernel(blur_kernel, 0)` in both directions with zeros beyond the map. It is computed at
    the 5 x 5 (dark) or 3 x 3 (dark_udp) pixels about the maximum only; these are scaled so that the highest of them
    equals the map's maximum, values below 1e-10 (dark) or 1e-3 (dark_udp) count as that much, and the logarithm is
    taken. All of it is in float64. The step is as long as it comes out, as in mmpose; it is left out where it is not
    finite, or where the Hessian is singular to rounding.

    Differences from mmpose 1.x: it scales so that the highest blurred value of the whole map equals the maximum. A
    factor does not change the derivatives of a logarithm, so points are the same (to its float32 arithmetic) unless a
    value that the step uses is below the floor; and even then where the blurred map is highest within the window. It
    also cuts values above 50 in "dark_udp", which is not done here, and lets NaN through to the point. mmpose 0.x
    mirrors the map at its border in "dark_udp", and does not scale.
    """
    if not 1 <= blur_kernel <= MAX_BLUR_KERNEL or blur_kernel % 2 == 0:
        raise ValueError(f"blur_kernel must be an odd number of pixels from 1 to {MAX_BLUR_KERNEL}, got {blur_kernel}")
    mirrored: list[int] = []
    if flipped is not None:
        if flip_pairs is None:
            raise ValueError("flip_pairs must be given with flipped: (left, right) joint pairs, got None")
        joints = tensor("heatmaps", heatmaps).size(1) if heatmaps.dim() == 4 else 0
        mirrored = mirror_order(flip_pairs, joints) if joints else []
    return torch.ops.fastpose.decode_heatmaps(
        tensor("heatmaps", heatmaps).detach(),
        None if heatmap_to_image is None else float32("heatmap_to_image", heatmap_to_image),
        None if flipped is None else tensor("flipped", flipped).detach(),
        mirrored,
        bool(flip_shift),
        choose("refine", refine, REFINEMENTS),
        blur_kernel,
    )


@register_fake("decode_heatmaps")
def _(
    heatmaps: Tensor,
    heatmap_to_image: Tensor | None,
    flipped: Tensor | None,
    mirrored: list[int],
    flip_shift: bool,
    refine: int,
    blur_kernel: int,
) -> tuple[Tensor, Tensor]:
    batch, joints = heatmaps.size(0), heatmaps.size(1)
    return (
        heatmaps.new_empty((batch, joints, 2), dtype=torch.float32),
        heatmaps.new_empty((batch, joints), dtype=torch.float32),
    )
