# SPDX-License-Identifier: Apache-2.0
"""Decode 32 x 16 maps of 64 x 64 with DARK: fastpose against mmpose's loops, torch, NumPy, amax.

mmpose blurs each map as a whole, in OpenCV; the others only what the step looks at. "limit quarter" is fastpose's own
decoding without the step.
"""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from torch import Tensor

import fastpose
from bench import vectorized
from bench.conftest import Compare, Maps, Own, copy_of, on_one_thread, several_threads
from fastpose import reference
from tests.helpers import upstream

pytestmark = pytest.mark.benchmark(group="decode_heatmaps dark")

KERNEL = 11


def mmpose_dark(maps: np.ndarray) -> np.ndarray:
    """Points [B, K, 2] in pixels of the maps [B, K, h, w], float32, as `gaussian_blur` and `refine_keypoints_dark` of
    mmpose find them: a loop over maps that are blurred in a frame of zeros, and one over joints with 2 x 2 matrices."""
    points, _ = upstream.maxima(maps)
    height, width = maps.shape[2:]
    frame = KERNEL // 2
    framed = np.zeros((height + 2 * frame, width + 2 * frame), np.float32)
    for sample, joints in zip(maps, points, strict=True):
        logs = np.empty_like(sample)
        for one, log in zip(sample, logs, strict=True):
            framed[frame:-frame, frame:-frame] = one
            blurred = cv2.GaussianBlur(framed, (KERNEL, KERNEL), 0)[frame:-frame, frame:-frame]
            np.multiply(blurred, one.max() / blurred.max(), out=log)
        np.log(np.maximum(logs, 1e-10, out=logs), out=logs)
        for joint, f in zip(joints, logs, strict=True):
            x, y = joint.astype(int)
            if not (1 < x < width - 2 and 1 < y < height - 2):
                continue
            dx, dy = 0.5 * (f[y, x + 1] - f[y, x - 1]), 0.5 * (f[y + 1, x] - f[y - 1, x])
            dxx = 0.25 * (f[y, x + 2] - 2 * f[y, x] + f[y, x - 2])
            dyy = 0.25 * (f[y + 2, x] - 2 * f[y, x] + f[y - 2, x])
            dxy = 0.25 * (f[y + 1, x + 1] - f[y - 1, x + 1] - f[y + 1, x - 1] + f[y - 1, x - 1])
            if dxx * dyy - dxy**2 != 0:
                joint -= np.linalg.inv(np.array([[dxx, dxy], [dxy, dyy]])) @ np.array([dx, dy])
    return points


@pytest.fixture
def own(maps: Maps) -> Own:
    def run() -> tuple[Tensor, Tensor]:
        return fastpose.decode_heatmaps(maps.pred, refine="dark", blur_kernel=KERNEL, heatmap_to_image=maps.matrix)

    moved = sum(tensor.nbytes for tensor in (maps.pred, maps.matrix, *run()))
    return Own(run, moved, "targets under noise")


def test_fastpose(compare: Compare, own: Own) -> None:
    compare(own.run)


@several_threads
def test_fastpose_on_one_thread(compare: Compare, own: Own) -> None:
    compare(on_one_thread(own.run))


def test_mmpose(compare: Compare, maps: Maps) -> None:
    pred, matrix = maps.pred.numpy(), maps.matrix.numpy()
    compare(lambda: mmpose_dark(pred) @ matrix[:, :, :2].transpose(0, 2, 1) + matrix[:, None, :, 2])


def test_plain_torch(compare: Compare, maps: Maps) -> None:
    options = {"refine": "dark", "blur_kernel": KERNEL, "heatmap_to_image": maps.matrix}
    compare(lambda: vectorized.decode_heatmaps(maps.pred, **options))


def test_numpy_reference(compare: Compare, maps: Maps) -> None:
    pred, matrix = maps.pred.numpy(), maps.matrix.numpy()
    compare(lambda: reference.decode_heatmaps(pred, refine="dark", blur_kernel=KERNEL, heatmap_to_image=matrix))


def test_limit_quarter(compare: Compare, maps: Maps) -> None:
    compare(lambda: fastpose.decode_heatmaps(maps.pred, heatmap_to_image=maps.matrix), None)


def test_limit_torch_amax(compare: Compare, maps: Maps) -> None:
    compare(lambda: maps.pred.amax((2, 3)), None)


def test_limit_copy(compare: Compare, own: Own) -> None:
    compare(copy_of(own.moved), None)
