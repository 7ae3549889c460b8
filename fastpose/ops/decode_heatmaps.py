# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..reference import mirror_order
from ._library import choose, float32, register_fake, require_native, tensor

REFINEMENTS = ("none", "quarter")  # in the order of csrc/decode_heatmaps.h


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
        refine: "none": the pixel of the maximum. "quarter": moved 0.25 pixel toward the higher neighbour in x and in y,
            where `1 < x < w−1` and `1 < y < h−1` (SimpleBaselines' `get_final_preds`).
        heatmap_to_image: [B, 2, 3], as `crop_to_image_matrix(…, heatmap_size)` gives; None leaves heatmap pixels.
        flipped: maps of the mirrored image, of the shape and dtype of `heatmaps`; un-mirrored and averaged with them.
        flip_pairs: (left, right) joint pairs that change places in the mirrored image; needed with `flipped`.
        flip_shift: column x of the un-mirrored map takes column x−1, column 0 keeps its own (SimpleBaselines'
            SHIFT_HEATMAP); leave it off for UDP.
        blur_kernel: side of the Gaussian kernel in pixels, odd; for refinements that blur, so without effect here.

    Returns:
        keypoints [B, K, 2] (x, y) and scores [B, K] (the maxima), float32. Ties go to the lowest index (row by row). A
        map whose maximum is ≤ 0 decodes to (0, 0) in heatmap pixels; NaN is never the maximum, and a map of NaN alone
        decodes to (0, 0) with score NaN. Not differentiable.

    Raises:
        ValueError: unknown refine, `flipped` without `flip_pairs`, or pairs that overlap. RuntimeError: wrong shape,
        dtype or device.
    """
    require_native()
    if blur_kernel < 1 or blur_kernel % 2 == 0:
        raise ValueError(f"blur_kernel must be a positive odd number of pixels, got {blur_kernel}")
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
    )


@register_fake("decode_heatmaps")
def _(
    heatmaps: Tensor,
    heatmap_to_image: Tensor | None,
    flipped: Tensor | None,
    mirrored: list[int],
    flip_shift: bool,
    refine: int,
) -> tuple[Tensor, Tensor]:
    batch, joints = heatmaps.size(0), heatmaps.size(1)
    return (
        heatmaps.new_empty((batch, joints, 2), dtype=torch.float32),
        heatmaps.new_empty((batch, joints), dtype=torch.float32),
    )
