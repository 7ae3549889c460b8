# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch
from torch import Tensor

from ._library import choose, float32, register_fake, size_of

ENCODINGS = ("msra", "unbiased", "udp")  # in the order of csrc/heatmap_target.h


def render_heatmaps(
    keypoints: Tensor,
    visible: Tensor,
    size: tuple[int, int],
    *,
    sigma: float = 1.0,
    encoding: str = "msra",
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Gaussian target maps with a peak of 1, and the weight of each.

    Args:
        keypoints: [B, K, 2] (x, y) in heatmap pixels, pixel centres at integers.
        visible: [B, K], 1 where the joint is annotated (MPII's `joints_vis`; COCO's flags are 0, 1 and 2, so clamp
            them at 1). Drawn where above 0.5.
        size: (h, w) of the maps in pixels.
        sigma: standard deviation in heatmap pixels.
        encoding: "msra": centre `int(x + 0.5)` (truncated toward zero), square window of radius `int(3 · sigma)`, as
            SimpleBaselines' `generate_target`. "udp": sub-pixel centre, the same window. "unbiased": sub-pixel centre,
            drawn over the whole map, as DARK.
        dtype: float32, float16, bfloat16 or float64.

    Returns:
        heatmaps [B, K, h, w] of `dtype`, and weights [B, K] float32: `visible`, or 0 with an all-zero map where the
        window misses the map (`c − r ≥ size` or `c + r + 1 < 0` in x or y, SimpleBaselines' test) or a keypoint is not
        finite.

    Raises:
        ValueError: unknown encoding. RuntimeError: wrong shape, dtype, device or sigma.
    """
    height, width = size_of(size)
    return torch.ops.fastpose.render_heatmaps(
        float32("keypoints", keypoints),
        float32("visible", visible),
        height,
        width,
        float(sigma),
        choose("encoding", encoding, ENCODINGS),
        dtype,
    )


@register_fake("render_heatmaps")
def _(
    keypoints: Tensor, visible: Tensor, height: int, width: int, sigma: float, encoding: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    batch, joints = keypoints.size(0), keypoints.size(1)
    return keypoints.new_empty((batch, joints, height, width), dtype=dtype), keypoints.new_empty((batch, joints))
