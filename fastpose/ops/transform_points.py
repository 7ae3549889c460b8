# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._library import float32, register_autograd, register_fake, tensor


def transform_points(points: Tensor, matrix: Tensor, *, inverse: bool = False) -> Tensor:
    """Carry points through one affine matrix per sample, or back through it.

    Args:
        points: [B, K, 2] (x, y), float32 or float64. Differentiable.
        matrix: [B, 2, 3] float32, such as `crop_to_image_matrix` gives: crop to image forwards.
        inverse: go the other way, image to crop. The inverse is computed in float64.

    Returns:
        [B, K, 2], the dtype of `points`.

    Raises:
        RuntimeError: wrong shape, dtype or device; with `inverse`, a matrix that cannot be inverted, on the CPU. On
            CUDA, where raising would need a synchronisation, the points of that sample are NaN.
    """
    if tensor("points", points).dtype not in (torch.float32, torch.float64):
        points = points.to(torch.float32)
    return torch.ops.fastpose.transform_points(points, float32("matrix", matrix), bool(inverse))


@register_fake("transform_points")
def _(points: Tensor, matrix: Tensor, inverse: bool) -> Tensor:
    return torch.empty(points.shape, dtype=points.dtype, device=points.device)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, matrix, ctx.inverse = inputs
    ctx.save_for_backward(matrix)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (matrix,) = ctx.saved_tensors
    linear = matrix[:, :, :2].to(torch.float64)
    if ctx.inverse:
        a, b, c, d = linear[:, 0, 0], linear[:, 0, 1], linear[:, 1, 0], linear[:, 1, 1]
        adjugate = torch.stack([torch.stack([d, -b], -1), torch.stack([-c, a], -1)], -2)
        linear = adjugate / (a * d - b * c)[:, None, None]
    return (grad.to(torch.float64) @ linear).to(grad.dtype), None, None


register_autograd("transform_points", _backward, _setup_context)
