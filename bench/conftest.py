# SPDX-License-Identifier: Apache-2.0
"""Inputs that the benchmarks share: the sizes of a training batch, one thread, real pixels where they are at hand."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numba
import numpy as np
import pytest
import torch
from torch import Tensor

import fastpose
from fastpose.data.images import read_image

BATCH, JOINTS = 32, 16
CROP, HEATMAP = (256, 256), (64, 64)
BESIDE = Path(__file__).resolve().parents[1].parent / "shared" / "data"
REAL_MPII = Path(os.environ.get("FASTPOSE_REAL_DATA", BESIDE)) / "mpii"
THREADS = int(os.environ.get("FASTPOSE_BENCH_THREADS", "1"))


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """What a reader of the results must know of the machine; its name and its kernel's are nobody's business."""
    del machine_info["node"], machine_info["release"]
    machine_info |= {
        "threads": THREADS,
        "simd": fastpose.build_info()["simd"],
        "torch": torch.__version__,
        "opencv": cv2.__version__,
        "numba": numba.__version__,
    }


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Every peer gets the same number of threads: FASTPOSE_BENCH_THREADS, one unless told."""
    before = torch.get_num_threads()
    cv2.setNumThreads(THREADS)
    numba.set_num_threads(THREADS)
    torch.set_num_threads(THREADS)  # last: numba, when it starts its threads, gives OpenMP as many as there are cores
    yield
    torch.set_num_threads(before)


class Crops(NamedTuple):
    images: list[np.ndarray]
    batch: fastpose.ImageBatch
    image_index: Tensor
    crop_to_image: Tensor
    color: Tensor


@pytest.fixture(scope="session")
def crops() -> Crops:
    """32 boxes of 150 to 600 px on five images: MPII's where they are at hand (FASTPOSE_REAL_DATA), else noise."""
    images = [read_image(path) for path in sorted(REAL_MPII.glob("images/*.jpg"))[:5]]
    if not images:
        images = [np.random.default_rng(n).integers(0, 256, (720, 1280, 3), dtype=np.uint8) for n in range(5)]
    generator = torch.Generator().manual_seed(0)
    index = torch.arange(BATCH) % len(images)
    extent = torch.tensor([images[n].shape[1::-1] for n in index.tolist()])
    center = extent * (0.3 + 0.4 * torch.rand(BATCH, 2, generator=generator))
    scale = 0.75 + 2.25 * torch.rand(BATCH, generator=generator)
    rotation = 60 * torch.rand(BATCH, generator=generator) - 30
    matrix = fastpose.crop_to_image_matrix(center, scale, rotation, CROP)
    color = fastpose.normalize_color(fastpose.IMAGENET_MEAN, fastpose.IMAGENET_STD)
    return Crops(images, fastpose.ImageBatch.from_list(images), index, matrix, color)


class Maps(NamedTuple):
    keypoints: Tensor
    visible: Tensor
    pred: Tensor
    matrix: Tensor


@pytest.fixture(scope="session")
def maps() -> Maps:
    """Joints anywhere on the map, and maps as a half-trained network gives them: the target under noise."""
    generator = torch.Generator().manual_seed(0)
    keypoints = torch.rand(BATCH, JOINTS, 2, generator=generator) * 64
    visible = torch.ones(BATCH, JOINTS)
    pred = fastpose.render_heatmaps(keypoints, visible, HEATMAP)[0]
    pred += 0.05 * torch.randn(pred.shape, generator=generator)
    matrix = fastpose.crop_to_image_matrix(keypoints[:, 0] * 10, torch.ones(BATCH), 10.0, HEATMAP)
    return Maps(keypoints, visible, pred, matrix)
