# SPDX-License-Identifier: Apache-2.0
"""Crop, normalise and lay out 32 persons of 256 x 256: fastpose against OpenCV + torch, torch, kornia, numba, NumPy."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

import fastpose
from bench import numba_peers, vectorized
from bench.conftest import CROP, THREADS, Compare, Crops, Own, copy_of, on_one_thread, several_threads
from bench.op_cases import SECTOR, touched_sectors
from bench.peers import CropWork, compiled
from fastpose import reference

pytestmark = pytest.mark.benchmark(group="affine_crop")
WARP = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
OPENCV = 0.53 / (255 * 0.224)  # tolerance: it rounds to whole grey levels
GRID = 5e-3  # tolerance of coordinates that were scaled to -1 … 1, in float32


@pytest.fixture
def own(crops: Crops) -> Own:
    def run() -> Tensor:
        options = {"image_index": crops.image_index, "color": crops.color}
        return fastpose.affine_crop(crops.batch, crops.crop_to_image, CROP, **options)

    # As the GPU report counts: the crops, and the distinct sectors that their taps touch.
    touched = touched_sectors(crops.batch, crops.crop_to_image, crops.image_index, CROP)
    moved = run().nbytes + SECTOR * int(touched.sum())
    return Own(run, moved, "real images" if crops.real else "noise")


def test_fastpose(compare: Compare, own: Own) -> None:
    compare(own.run)


@several_threads
def test_fastpose_on_one_thread(compare: Compare, own: Own) -> None:
    compare(on_one_thread(own.run))


def test_opencv(compare: Compare, crops: Crops) -> None:
    """What a SimpleBaselines data loader does per person, batched at the end as its collate function does."""
    matrices, index = crops.crop_to_image.double().numpy(), crops.image_index.tolist()
    mean, std = torch.tensor(fastpose.IMAGENET_MEAN).view(3, 1, 1), torch.tensor(fastpose.IMAGENET_STD).view(3, 1, 1)

    def run() -> Tensor:
        out = []
        for matrix, n in zip(matrices, index, strict=True):
            crop = cv2.warpAffine(crops.images[n], matrix, CROP[::-1], flags=WARP)
            out.append(torch.from_numpy(crop).permute(2, 0, 1).contiguous().float().div_(255).sub_(mean).div_(std))
        return torch.stack(out)

    compare(run, OPENCV)


def test_opencv_tuned(compare: Compare, crops: Crops) -> None:
    """A thread per person, and a table that casts and normalises, written to where the batch has the crop."""
    matrices, index = crops.crop_to_image.double().numpy(), crops.image_index.tolist()
    gain, shift = crops.color.diagonal().numpy(), crops.color[:, 3].numpy()
    tables = np.arange(256, dtype=np.float32) * gain[:, None] + shift[:, None]
    cv2.setNumThreads(1)

    def one(out: np.ndarray, matrix: np.ndarray, n: int) -> None:
        crop = cv2.warpAffine(crops.images[n], matrix, CROP[::-1], flags=WARP)
        for plane, table, channel in zip(out, tables, cv2.split(crop), strict=True):
            cv2.LUT(channel, table, plane)

    with ThreadPoolExecutor(THREADS) as pool:

        def run() -> Tensor:
            out = torch.empty(len(index), 3, *CROP)
            list(pool.map(one, out.numpy(), matrices, index))
            return out

        compare(run, OPENCV)


def test_plain_torch(compare: Compare, crops: Crops) -> None:
    compare(gathered(vectorized.affine_crop, crops))


def test_torch_compile(compare: Compare, crops: Crops) -> None:
    compare(gathered(compiled(vectorized.affine_crop), crops))


def gathered(crop: Callable[..., Tensor], crops: Crops) -> Callable[[], Tensor]:
    b, options = crops.batch, {"image_index": crops.image_index, "color": crops.color}
    return lambda: crop(b.data, b.offsets, b.sizes, crops.crop_to_image, CROP, **options)


def test_grid_sample(compare: Compare, crops: Crops) -> None:
    def sample(work: CropWork, images: Tensor, n: int) -> Tensor:
        return functional.grid_sample(images, work.grid(n, *images.shape[2:]), align_corners=True)

    compare(by_image(sample, crops), GRID)


def test_kornia(compare: Compare, crops: Crops) -> None:
    warp_affine = pytest.importorskip("kornia.geometry.transform").warp_affine

    def sample(work: CropWork, images: Tensor, n: int) -> Tensor:
        last = torch.tensor([[[0.0, 0.0, 1.0]]]).expand(len(images), 1, 3)
        image_to_crop = torch.linalg.inv(torch.cat([work.matrix[n], last], 1))[:, :2]
        return warp_affine(images, image_to_crop, CROP)

    compare(by_image(sample, crops), GRID)


def by_image(sample: Callable[[CropWork, Tensor, int], Tensor], crops: Crops) -> Callable[[], Tensor]:
    """Images differ in size, so each is cast by itself, once, and all its crops are sampled together."""
    rows = [(crops.image_index == n).nonzero()[:, 0] for n in range(len(crops.images))]
    matrices, layout = [crops.crop_to_image[r] for r in rows], torch.contiguous_format
    work = CropWork(crops.batch, matrices, rows, CROP, crops.color, torch.float32, layout)

    def run() -> Tensor:
        out = torch.empty(len(crops.image_index), 3, *CROP)
        for n, image in enumerate(crops.images):
            pixels = torch.from_numpy(image).permute(2, 0, 1).float()
            out[rows[n]] = sample(work, pixels.expand(len(rows[n]), *pixels.shape), n)
        return work.finished(out)

    return run


def test_numba(compare: Compare, crops: Crops) -> None:
    b = crops.batch
    tables = [t.numpy() for t in (b.data, b.offsets, b.sizes, crops.crop_to_image, crops.image_index, crops.color)]

    def run() -> np.ndarray:
        out = np.empty((len(crops.crop_to_image), 3, *CROP), np.float32)
        numba_peers.affine_crop(*tables, out)
        return out

    compare(run)


def test_numpy_reference(compare: Compare, crops: Crops) -> None:
    options = {"image_index": crops.image_index.numpy(), "color": crops.color.numpy()}
    compare(lambda: reference.affine_crop(crops.images, crops.crop_to_image.numpy(), CROP, **options))


def test_limit_copy(compare: Compare, own: Own) -> None:
    compare(copy_of(own.moved), None)
