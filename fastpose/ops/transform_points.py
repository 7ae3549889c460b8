# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._arguments import exact_type, expect, float32, real, values_are_checked
from ._native import call, register


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
    if real("points", points).dtype not in (torch.float32, torch.float64):
        points = points.to(torch.float32)
    return call("transform_points", points, float32("matrix", matrix), bool(inverse))


def plain_transform_points(points: Tensor, matrix: Tensor, inverse: bool) -> Tensor:
    """`transform_points` in plain torch."""
    op = "transform_points"
    expect(op, "points", points, (-1, -1, 2), "[B, K, 2]", (torch.float32, torch.float64))
    expect(op, "matrix", matrix, (len(points), 2, 3), "[B, 2, 3]", beside=("points", points))
    exact = points.to(exact_type(points.device))
    if not inverse:
        return transformed(exact, matrix).to(points.dtype)
    xx, xy, x_shift, yx, yy, y_shift = matrix.to(exact.dtype).reshape(-1, 6, 1).unbind(1)
    determinant = xx * yy - xy * yx
    possible = torch.isfinite(matrix).flatten(1).all(1, keepdim=True)
    possible = possible & torch.isfinite(determinant) & (determinant != 0.0)
    if points.numel() and values_are_checked(points.device) and not bool(possible.all()):
        n = int(possible[:, 0].to(torch.uint8).argmin())
        raise RuntimeError(f"{op}: matrix[{n}] must be invertible, got {matrix[n].tolist()}")
    determinant = torch.where(possible, determinant, torch.nan)
    x, y = exact[..., 0] - x_shift, exact[..., 1] - y_shift
    back = (yy * x - xy * y) / determinant, (xx * y - yx * x) / determinant
    return torch.stack(back, 2).to(points.dtype)


def transformed(points: Tensor, matrix: Tensor) -> Tensor:
    """Written out, as matrix products may be computed in less than the type of their arguments."""
    xx, xy, x_shift, yx, yy, y_shift = matrix.to(points.dtype).reshape(-1, 6, 1).unbind(1)
    x, y = points.unbind(2)
    return torch.stack([xx * x + xy * y + x_shift, yx * x + yy * y + y_shift], 2)


def _fake(points: Tensor, matrix: Tensor, inverse: bool) -> Tensor:
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


register("transform_points", plain_transform_points, _fake, plain_transform_points, _backward, _setup_context)
