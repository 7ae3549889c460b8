# SPDX-License-Identifier: Apache-2.0
"""What SimpleBaselines, HRNet and mmpose compute, written from their published behaviour for comparison in the tests.

Names of the functions these restate: SimpleBaselines' `get_affine_transform`, `JointsDataset.generate_target`,
`get_max_preds` + `get_final_preds`, `JointsMSELoss`, `flip_back`; HRNet's `half_body_transform`; mmpose's
`get_udp_warp_matrix`, `gaussian_blur`, `refine_keypoints_dark`, `refine_keypoints_dark_udp`.
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


def blurred_logarithms(heatmap: Array, kernel: int, floor: float, ceiling: float) -> tuple[Array, Array]:
    """Of one map, float32, and where values were cut off: blurred within zeros, scaled to the maximum of before."""
    around = kernel // 2
    framed = cv2.copyMakeBorder(heatmap, around, around, around, around, cv2.BORDER_CONSTANT, value=0.0)
    height, width = heatmap.shape
    blurred = cv2.GaussianBlur(framed, (kernel, kernel), 0)[around : around + height, around : around + width]
    scaled = blurred * (heatmap.max() / blurred.max())
    cut = np.clip(scaled, np.float32(floor), np.float32(ceiling))
    return np.log(cut), cut != scaled


def dark(heatmap: Array, kernel: int) -> tuple[Array, bool]:
    """The point of one map, and whether nothing that it was made of had been cut off."""
    height, width = heatmap.shape
    y, x = np.unravel_index(heatmap.argmax(), heatmap.shape)
    if not (1 < x < width - 2 and 1 < y < height - 2):
        return np.array([x, y], float), True
    logs, cut = blurred_logarithms(heatmap, kernel, 1e-10, np.inf)
    f = {(i, j): logs[y + j, x + i] for i in range(-2, 3) for j in range(-2, 3) if abs(i) + abs(j) <= 2}
    gradient = np.array([f[1, 0] - f[-1, 0], f[0, 1] - f[0, -1]]) / 2
    mixed = (f[1, 1] - f[1, -1] - f[-1, 1] + f[-1, -1]) / 4
    hessian = np.array(
        [[(f[2, 0] - 2 * f[0, 0] + f[-2, 0]) / 4, mixed], [mixed, (f[0, 2] - 2 * f[0, 0] + f[0, -2]) / 4]]
    )
    used = cut[y - 2 : y + 3, x - 2 : x + 3][np.add.outer(abs(np.arange(-2, 3)), abs(np.arange(-2, 3))) <= 2]
    if hessian[0, 0] * hessian[1, 1] - hessian[0, 1] ** 2 == 0:
        return np.array([x, y], float), not used.any()
    return np.array([x, y]) - np.linalg.inv(hessian) @ gradient, not used.any()


def dark_udp(heatmap: Array, kernel: int) -> tuple[Array, bool]:
    """The same for UDP; the logarithms are continued by one pixel beyond the border."""
    y, x = np.unravel_index(heatmap.argmax(), heatmap.shape)
    logs, cut = (np.pad(a, 1, mode="edge") for a in blurred_logarithms(heatmap, kernel, 1e-3, 50.0))
    f = {(i, j): logs[y + 1 + j, x + 1 + i] for i in range(-1, 2) for j in range(-1, 2)}
    gradient = np.array([f[1, 0] - f[-1, 0], f[0, 1] - f[0, -1]]) / 2
    mixed = (f[1, 1] - f[1, 0] - f[0, 1] + 2 * f[0, 0] - f[-1, 0] - f[0, -1] + f[-1, -1]) / 2
    hessian = np.array(
        [[f[1, 0] - 2 * f[0, 0] + f[-1, 0], mixed], [mixed, f[0, 1] - 2 * f[0, 0] + f[0, -1]]], np.float64
    )
    used = cut[y : y + 3, x : x + 3][~np.eye(3, dtype=bool)[::-1] | np.eye(3, dtype=bool)]
    step = np.linalg.inv(hessian + np.finfo(np.float32).eps * np.eye(2)) @ gradient
    return np.array([x, y]) - step, not used.any()


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


def joints_ohkm_mse(pred: Array, target_maps: Array, weights: Array, topk: int) -> float:
    """The mean over samples of the mean of each one's `topk` largest joint losses; both sides carry the weight."""
    weights = weights[:, :, None, None]
    losses = 0.5 * np.mean((pred * weights - target_maps * weights) ** 2, axis=(2, 3))
    return float(np.mean([np.mean(sorted(row)[-topk:]) for row in losses]))


def half_body(
    joints: Array, visible: Array, upper_ids: tuple[int, ...], aspect: float, want_upper: bool
) -> tuple[Array, Array] | None:
    """Centre and scale (w, h) of half a person's box, `joints` [K, 2] in image pixels; `aspect` is the crop's width by
    its height. `want_upper` stands for the draw."""
    halves: dict[bool, list[Array]] = {True: [], False: []}
    for k, joint in enumerate(joints):
        if visible[k] > 0:
            halves[k in upper_ids].append(joint)
    upper, lower = halves[True], halves[False]
    if want_upper and len(upper) > 2:
        chosen = upper
    elif len(lower) > 2:
        chosen = lower
    else:
        chosen = upper
    if len(chosen) < 2:
        return None
    points = np.array(chosen, np.float32)
    w, h = points.max(axis=0) - points.min(axis=0)
    if w > aspect * h:
        h = w / aspect
    elif w < aspect * h:
        w = h * aspect
    return points.mean(axis=0), np.array([w, h]) / 200 * 1.5
