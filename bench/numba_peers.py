# SPDX-License-Identifier: Apache-2.0
"""The ops as one would write them in numba: compiled loops, parallel over samples or maps, one pass over memory.

Each does what the benchmarks time and no more: ragged images, float32, msra targets, no mirror test. Sums and maxima
may be reordered and NaN ignored, or their loops would not become vector code; fastpose keeps both.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@numba.njit(parallel=True, fastmath={"reassoc", "contract", "nnan", "nsz"})
def affine_crop(
    data: Array, offsets: Array, sizes: Array, crop_to_image: Array, index: Array, color: Array, out: Array
) -> None:
    """Crops into `out`, float32 [B, 3, h, w]; `color` is [3, 4]."""
    batch, _, height, width = out.shape
    for row in numba.prange(batch * height):
        b, y = row // height, row % height
        m, n = crop_to_image[b], index[b]
        image_height, image_width = sizes[n, 0], sizes[n, 1]
        image = data[offsets[n] : offsets[n] + 3 * image_height * image_width]
        fy = np.float32(y)
        for x in range(width):
            fx = np.float32(x)
            sx = m[0, 0] * fx + (m[0, 1] * fy + m[0, 2])
            sy = m[1, 0] * fx + (m[1, 1] * fy + m[1, 2])
            red = green = blue = np.float32(0)
            if sx > -1 and sy > -1 and sx < image_width and sy < image_height:
                x0, y0 = math.floor(sx), math.floor(sy)
                wx, wy = sx - np.float32(x0), sy - np.float32(y0)
                one = np.float32(1)
                if x0 >= 0 and y0 >= 0 and x0 + 1 < image_width and y0 + 1 < image_height:
                    tap = 3 * (y0 * image_width + x0)
                    below = tap + 3 * image_width
                    a, b_, c_, d = (one - wx) * (one - wy), wx * (one - wy), (one - wx) * wy, wx * wy
                    red = a * image[tap] + b_ * image[tap + 3] + c_ * image[below] + d * image[below + 3]
                    green = a * image[tap + 1] + b_ * image[tap + 4] + c_ * image[below + 1] + d * image[below + 4]
                    blue = a * image[tap + 2] + b_ * image[tap + 5] + c_ * image[below + 2] + d * image[below + 5]
                else:
                    for dy in range(2):
                        for dx in range(2):
                            tx, ty = x0 + dx, y0 + dy
                            if 0 <= tx < image_width and 0 <= ty < image_height:
                                weight = (wx if dx else one - wx) * (wy if dy else one - wy)
                                tap = 3 * (ty * image_width + tx)
                                red += weight * image[tap]
                                green += weight * image[tap + 1]
                                blue += weight * image[tap + 2]
            for c in range(3):
                out[b, c, y, x] = color[c, 0] * red + color[c, 1] * green + color[c, 2] * blue + color[c, 3]


@numba.njit(parallel=True, fastmath={"reassoc", "contract", "nnan", "nsz"})
def render_heatmaps(keypoints: Array, visible: Array, sigma: float, out: Array, weights: Array) -> None:
    """msra targets into `out`, float32 [B, K, h, w], and their weights."""
    batch, joints, height, width = out.shape
    reach = int(3 * sigma)
    factor = np.empty(2 * reach + 1, np.float32)
    for i in range(2 * reach + 1):
        factor[i] = math.exp(-((i - reach) ** 2) / (2 * sigma * sigma))
    for k in numba.prange(batch * joints):
        b, j = k // joints, k % joints
        out[b, j] = 0
        left, top = int(keypoints[b, j, 0] + 0.5) - reach, int(keypoints[b, j, 1] + 0.5) - reach
        right, bottom = left + 2 * reach + 1, top + 2 * reach + 1
        inside = left < width and top < height and right >= 0 and bottom >= 0
        weights[b, j] = visible[b, j] if inside else 0
        if inside and visible[b, j] > 0.5:
            for y in range(max(0, top), min(bottom, height)):
                for x in range(max(0, left), min(right, width)):
                    out[b, j, y, x] = factor[y - top] * factor[x - left]


@numba.njit(parallel=True, fastmath={"reassoc", "contract", "nnan", "nsz"})
def decode_heatmaps(maps: Array, heatmap_to_image: Array, keypoints: Array, scores: Array) -> None:
    """Maximum, quarter pixel and matrix of `maps`, float32 [B, K, h, w], into `keypoints` and `scores`."""
    batch, joints, height, width = maps.shape
    for k in numba.prange(batch * joints):
        b, j = k // joints, k % joints
        one = maps[b, j]
        flat = one.ravel()
        best = flat[0]
        for i in range(flat.size):
            best = max(best, flat[i])
        place = 0
        while flat[place] != best:
            place += 1
        x, y = place % width, place // width
        px, py = 0.0, 0.0
        if best > 0:
            px, py = float(x), float(y)
            if 1 < x < width - 1 and 1 < y < height - 1:
                px += 0.25 * np.sign(one[y, x + 1] - one[y, x - 1])
                py += 0.25 * np.sign(one[y + 1, x] - one[y - 1, x])
        m = heatmap_to_image[b]
        keypoints[b, j, 0] = m[0, 0] * px + m[0, 1] * py + m[0, 2]
        keypoints[b, j, 1] = m[1, 0] * px + m[1, 1] * py + m[1, 2]
        scores[b, j] = best


@numba.njit(parallel=True, fastmath={"reassoc", "contract", "nnan", "nsz"})
def heatmap_mse_loss(pred: Array, keypoints: Array, visible: Array, sigma: float, grad: Array) -> float:
    """Loss against msra targets and, in the same pass, its gradient into `grad`."""
    batch, joints, height, width = pred.shape
    reach = int(3 * sigma)
    scale = np.float32(1 / pred.size)
    factor = np.empty(2 * reach + 1, np.float32)
    for i in range(2 * reach + 1):
        factor[i] = math.exp(-((i - reach) ** 2) / (2 * sigma * sigma))
    sums = np.empty(batch * joints)
    for k in numba.prange(batch * joints):
        b, j = k // joints, k % joints
        one, into = pred[b, j], grad[b, j]
        total = np.float32(0)
        for y in range(height):
            for x in range(width):
                into[y, x] = scale * one[y, x]
            for x in range(width):
                total += one[y, x] * one[y, x]
        left, top = int(keypoints[b, j, 0] + 0.5) - reach, int(keypoints[b, j, 1] + 0.5) - reach
        if visible[b, j] > 0.5 and left < width and top < height:
            for y in range(max(0, top), min(top + 2 * reach + 1, height)):
                for x in range(max(0, left), min(left + 2 * reach + 1, width)):
                    value = factor[y - top] * factor[x - left]
                    total += value * (value - 2 * one[y, x])
                    into[y, x] -= scale * value
        sums[k] = total
    return 0.5 * scale * sums.sum()
