# SPDX-License-Identifier: Apache-2.0
"""Crop, normalise and lay out 32 persons of 256 x 256: fastpose against OpenCV + torch, plain torch, NumPy."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import fastpose
from bench import numba_peers, vectorized
from bench.conftest import CROP, Crops
from bench.peers import compiled
from fastpose import reference

pytestmark = pytest.mark.benchmark(group="affine_crop")


def test_fastpose(benchmark: BenchmarkFixture, crops: Crops) -> None:
    benchmark(
        fastpose.affine_crop,
        crops.batch,
        crops.crop_to_image,
        CROP,
        image_index=crops.image_index,
        color=crops.color,
    )


def test_opencv(benchmark: BenchmarkFixture, crops: Crops) -> None:
    """What a SimpleBaselines data loader does per person, batched at the end as its collate function does."""
    matrices, index = crops.crop_to_image.double().numpy(), crops.image_index.tolist()
    mean, std = torch.tensor(fastpose.IMAGENET_MEAN).view(3, 1, 1), torch.tensor(fastpose.IMAGENET_STD).view(3, 1, 1)

    def run() -> torch.Tensor:
        out = []
        for matrix, n in zip(matrices, index, strict=True):
            crop = cv2.warpAffine(crops.images[n], matrix, CROP[::-1], flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
            out.append(torch.from_numpy(crop).permute(2, 0, 1).contiguous().float().div_(255).sub_(mean).div_(std))
        return torch.stack(out)

    expected = reference.affine_crop(
        crops.batch, crops.crop_to_image, CROP, image_index=crops.image_index, color=crops.color
    )
    assert float(np.abs(run().numpy() - expected).max()) < 0.53 / (255 * 0.224)
    benchmark(run)


def test_plain_torch(benchmark: BenchmarkFixture, crops: Crops) -> None:
    b = crops.batch
    options = {"image_index": crops.image_index, "color": crops.color}
    benchmark(vectorized.affine_crop, b.data, b.offsets, b.sizes, crops.crop_to_image, CROP, **options)


def test_torch_compile(benchmark: BenchmarkFixture, crops: Crops) -> None:
    b = crops.batch
    options = {"image_index": crops.image_index, "color": crops.color}
    run = compiled(vectorized.affine_crop)
    run(b.data, b.offsets, b.sizes, crops.crop_to_image, CROP, **options)
    benchmark(run, b.data, b.offsets, b.sizes, crops.crop_to_image, CROP, **options)


def test_numba(benchmark: BenchmarkFixture, crops: Crops) -> None:
    b = crops.batch
    tables = [t.numpy() for t in (b.data, b.offsets, b.sizes, crops.crop_to_image, crops.image_index, crops.color)]

    def run() -> np.ndarray:
        out = np.empty((len(crops.crop_to_image), 3, *CROP), np.float32)
        numba_peers.affine_crop(*tables, out)
        return out

    expected = fastpose.affine_crop(b, crops.crop_to_image, CROP, image_index=crops.image_index, color=crops.color)
    np.testing.assert_allclose(run(), expected.numpy(), atol=1e-3)
    benchmark(run)


def test_numpy_reference(benchmark: BenchmarkFixture, crops: Crops) -> None:
    options = {"image_index": crops.image_index.numpy(), "color": crops.color.numpy()}
    matrix = crops.crop_to_image.numpy()
    benchmark.pedantic(reference.affine_crop, (crops.images, matrix, CROP), options, rounds=3)
