# SPDX-License-Identifier: Apache-2.0
"""What SimpleBaselines and mmpose compute, written from their published behaviour for comparison in the tests.

Names of the functions these restate: SimpleBaselines' `get_affine_transform`, `JointsDataset.generate_target`,
`get_max_preds` + `get_final_preds`, `JointsMSELoss`, `flip_back`; mmpose's `get_udp_warp_matrix`.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def image_to_crop(center: Array, scale: Array, rotation: float, width: int, height: int) -> Array:
    """Through three point pairs: the centre, the middle of the upper edge, and a third at a right angle to both."""
    box_width = 200.0 * scale[0]
    angle = np.pi * rotation / 180
    up = np.array([np.sin(angle), -np.cos(angle)])  # (0, -1) turned by the rotation
    points, targets = np.zeros((3, 2), np.float32), np.zeros((3, 2), np.float32)
    points[0], targets[0] = center, (width * 0.5, height * 0.5)
    points[1], targets[1] = center + up * box_width * 0.5, (width * 0.5, height * 0.5 - width * 0.5)
    for corner in (points, targets):
        side = corner[0] - corner[1]
        corner[2] = corner[1] + np.array([-side[1], side[0]])
    return cv2.getAffineTransform(points, targets)


def udp_image_to_crop(center: Array, box: Array, rotation: float, width: int, height: int) -> Array:
    """`center` and `box` (w, h) in image pixels, rotation in degrees, mmpose's sense of turning."""
    angle = np.deg2rad(rotation)
    c, s = np.cos(angle), np.sin(angle)
    sx, sy = (width - 1) / box[0], (height - 1) / box[1]
    x, y = center
    return np.array(
        [
            [c * sx, -s * sx, sx * (-x * c + y * s + 0.5 * box[0])],
            [s * sy, c * sy, sy * (-x * s - y * c + 0.5 * box[1])],
        ]
    )


def target(points: Array, visible: Array, width: int, height: int, sigma: int) -> tuple[Array, Array]:
    """One sample, [K, 2] map pixels: a 6 sigma + 1 stamp pasted where it meets the map."""
    joints = len(points)
    maps, weights = np.zeros((joints, height, width), np.float32), visible.astype(np.float32).copy()
    reach = sigma * 3
    axis = np.arange(2 * reach + 1, dtype=np.float32)
    stamp = np.exp(-((axis[None] - reach) ** 2 + (axis[:, None] - reach) ** 2) / (2 * sigma**2))
    for k in range(joints):
        mx, my = int(points[k][0] + 0.5), int(points[k][1] + 0.5)
        left, top, right, bottom = mx - reach, my - reach, mx + reach + 1, my + reach + 1
        if left >= width or top >= height or right < 0 or bottom < 0:
            weights[k] = 0
            continue
        if weights[k] > 0.5:
            x0, x1, y0, y1 = max(0, left), min(right, width), max(0, top), min(bottom, height)
            maps[k, y0:y1, x0:x1] = stamp[y0 - top : y1 - top, x0 - left : x1 - left]
    return maps, weights


def maxima(maps: Array) -> tuple[Array, Array]:
    batch, joints, _, width = maps.shape
    flat = maps.reshape(batch, joints, -1)
    index, scores = flat.argmax(2), flat.max(2)
    points = np.stack([index % width, index // width], -1).astype(np.float32)
    return points * (scores > 0)[..., None], scores


def quarter_offset(maps: Array) -> tuple[Array, Array]:
    points, scores = maxima(maps)
    height, width = maps.shape[2:]
    for n, k in np.ndindex(*scores.shape):
        x, y = (int(v + 0.5) for v in points[n, k])
        if 1 < x < width - 1 and 1 < y < height - 1:
            one = maps[n, k]
            points[n, k] += 0.25 * np.sign([one[y, x + 1] - one[y, x - 1], one[y + 1, x] - one[y - 1, x]])
    return points, scores


def un_mirror(maps: Array, pairs: tuple[tuple[int, int], ...], shift: bool) -> Array:
    maps = maps[..., ::-1].copy()
    for a, b in pairs:
        maps[:, [a, b]] = maps[:, [b, a]]
    if shift:
        maps[..., 1:] = maps[..., :-1].copy()
    return maps


def joints_mse(pred: Array, target_maps: Array, weights: Array) -> float:
    """Mean over joints of 0.5 * mse of weighted maps; both sides carry the weight."""
    joints = pred.shape[1]
    total = 0.0
    for k in range(joints):
        w = weights[:, k, None, None]
        total += 0.5 * np.mean((pred[:, k] * w - target_maps[:, k] * w) ** 2)
    return total / joints
