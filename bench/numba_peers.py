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
    """Crops into `out`, float32 [B, 3, h, w]; `color` is [3, 4].

    What the compiler leaves in the loop over x, as `out` might overlap it, is read before it; unsigned indices save the
    test for negative ones.
    """
    batch, _, height, width = out.shape
    one, pixel, green, blue = np.float32(1), np.uint64(3), np.uint64(1), np.uint64(2)
    c = color.ravel()
    rr, rg, rb, r1, gr, gg, gb, g1 = c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]
    br, bg, bb, b1 = c[8], c[9], c[10], c[11]
    for row in numba.prange(batch * height):
        b, y = row // height, row % height
        m, n = crop_to_image[b], index[b]
        xx, yx = m[0, 0], m[1, 0]
        start_x, start_y = m[0, 1] * np.float32(y) + m[0, 2], m[1, 1] * np.float32(y) + m[1, 2]
        image_height, image_width = sizes[n, 0], sizes[n, 1]
        image = data[offsets[n] : offsets[n] + 3 * image_height * image_width]
        stride, right, bottom = np.uint64(3 * image_width), np.float32(image_width), np.float32(image_height)
        for x in range(width):
            sx, sy = xx * np.float32(x) + start_x, yx * np.float32(x) + start_y
            r = g = v = np.float32(0)
            if sx >= 0 and sy >= 0 and sx < right - one and sy < bottom - one:
                x0, y0 = np.int32(sx), np.int32(sy)
                wx, wy = sx - np.float32(x0), sy - np.float32(y0)
                p = np.uint64(y0) * stride + pixel * np.uint64(x0)
                q, s, t = p + pixel, p + stride, p + stride + pixel
                wt = wx * wy
                wq, ws = wx - wt, wy - wt
                wp = one - wx - ws
                r = wp * image[p] + wq * image[q] + ws * image[s] + wt * image[t]
                g = wp * image[p + green] + wq * image[q + green] + ws * image[s + green] + wt * image[t + green]
                v = wp * image[p + blue] + wq * image[q + blue] + ws * image[s + blue] + wt * image[t + blue]
            elif sx > -one and sy > -one and sx < right and sy < bottom:
                x0, y0 = math.floor(sx), math.floor(sy)
                wx, wy = sx - np.float32(x0), sy - np.float32(y0)
                for dy in range(2):
                    for dx in range(2):
                        tx, ty = x0 + dx, y0 + dy
                        if 0 <= tx < image_width and 0 <= ty < image_height:
                            weight = (wx if dx else one - wx) * (wy if dy else one - wy)
                            tap = 3 * (ty * image_width + tx)
                            r += weight * image[tap]
                            g += weight * image[tap + 1]
                            v += weight * image[tap + 2]
            out[b, 0, y, x] = rr * r + rg * g + rb * v + r1
            out[b, 1, y, x] = gr * r + gg * g + gb * v + g1
            out[b, 2, y, x] = br * r + bg * g + bb * v + b1


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
        column = one[0].copy()  # maxima of the columns: this loop becomes vector code, one over the whole map does not
        for y in range(1, height):
            for x in range(width):
                column[x] = max(column[x], one[y, x])
        best = column[0]
        for x in range(width):
            best = max(best, column[x])
        peak_x, peak_y = 0, height
        for x in range(width):
            if column[x] == best:
                y = 0
                while y < height - 1 and one[y, x] != best:  # bounded where the maximum is NaN, too
                    y += 1
                if y < peak_y:
                    peak_x, peak_y = x, y
        px, py = 0.0, 0.0
        if best > 0:
            px, py = float(peak_x), float(peak_y)
            if 1 < peak_x < width - 1 and 1 < peak_y < height - 1:
                px += 0.25 * np.sign(one[peak_y, peak_x + 1] - one[peak_y, peak_x - 1])
                py += 0.25 * np.sign(one[peak_y + 1, peak_x] - one[peak_y - 1, peak_x])
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
