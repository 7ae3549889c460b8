# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..reference import mirror_order
from ._library import float32, register_fake, tensor


def swap_pairs(points: Tensor, visible: Tensor, flip: Tensor, pairs: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Exchange the left and right rows of the samples that are mirrored: a mirrored left wrist is a right wrist.

    Args:
        points: [B, K, 2] float32, in any frame (the mirroring of coordinates is in `crop_to_image`).
        visible: [B, K] float32.
        flip: [B] bool, which samples are mirrored.
        pairs: (left, right) joint pairs, disjoint.

    Returns:
        points [B, K, 2] and visible [B, K], float32.

    Raises:
        ValueError: pairs that overlap or leave [0, K). RuntimeError: wrong shape, dtype or device.
    """
    points = float32("points", points)
    mirrored = mirror_order(pairs, points.size(1), "pairs") if points.dim() == 3 else []
    return torch.ops.fastpose.swap_pairs(points, float32("visible", visible), tensor("flip", flip), mirrored)


@register_fake("swap_pairs")
def _(points: Tensor, visible: Tensor, flip: Tensor, mirrored: list[int]) -> tuple[Tensor, Tensor]:
    return points.new_empty(points.shape), visible.new_empty(visible.shape)
