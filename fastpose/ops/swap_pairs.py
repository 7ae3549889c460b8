# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from ._arguments import expect, float32, tensor
from ._native import call, register

MAX_JOINTS = 512  # kMaxJoints of csrc/maths/joint_permutation.h


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
    return call("swap_pairs", points, float32("visible", visible), tensor("flip", flip), mirrored)


def mirror_order(pairs: Sequence[Sequence[int]], joints: int, name: str = "flip_pairs") -> list[int]:
    """The joint that each row becomes in the mirrored person: left and right swapped, the others themselves.

    Raises:
        ValueError: `name` is not a sequence of disjoint pairs of joints in [0, joints).
    """
    order = list(range(joints))
    free = set(order)
    try:
        for pair in pairs:
            left, right = map(operator.index, pair)
            free.remove(left)
            free.remove(right)
            order[left], order[right] = right, left
    except (KeyError, TypeError, ValueError):
        wanted = f"disjoint (left, right) pairs of joints in [0, {joints})"
        raise ValueError(f"{name} must be {wanted}, got {pairs!r}") from None
    return order


def plain_swap_pairs(points: Tensor, visible: Tensor, flip: Tensor, mirrored: list[int]) -> tuple[Tensor, Tensor]:
    """`swap_pairs` in plain torch, with `mirrored` from `mirror_order`."""
    op, beside = "swap_pairs", ("points", points)
    expect(op, "points", points, (-1, -1, 2), "[B, K, 2]")
    batch, joints, _ = points.shape
    expect(op, "visible", visible, (batch, joints), "[B, K]", beside=beside)
    expect(op, "flip", flip, (batch,), "[B]", (torch.bool,), beside)
    expect_mirrored(op, mirrored, joints)
    return (
        torch.where(flip[:, None, None], in_order(points, mirrored), points),
        torch.where(flip[:, None], in_order(visible, mirrored), visible),
    )


def in_order(values: Tensor, joints: Sequence[int]) -> Tensor:
    """The values [B, K, ...] of these joints. An index tensor would be a copy to the GPU, which waits for it."""
    return torch.stack([values[:, joint] for joint in joints], 1) if joints else values


def expect_mirrored(op: str, mirrored: Sequence[int], joints: int) -> None:
    """Raises RuntimeError, naming the op, unless `mirrored` names one of the `joints` joints for each of them."""
    if joints > MAX_JOINTS:
        raise RuntimeError(f"{op}: at most {MAX_JOINTS} joints can be mirrored, got {joints}")
    if len(mirrored) != joints or not all(0 <= joint < joints for joint in mirrored):
        raise RuntimeError(f"{op}: mirrored must name {joints} joints in [0, {joints}), got {list(mirrored)}")


def _fake(points: Tensor, visible: Tensor, flip: Tensor, mirrored: list[int]) -> tuple[Tensor, Tensor]:
    return points.new_empty(points.shape), visible.new_empty(visible.shape)


register("swap_pairs", plain_swap_pairs, _fake)
