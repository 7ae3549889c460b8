# SPDX-License-Identifier: Apache-2.0
"""The input pipeline that a user has today: OpenCV and NumPy per sample, in the workers of a torch DataLoader."""

from __future__ import annotations

from collections.abc import Generator
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

import fastpose
from fastpose.data.persons import Persons

TIMEOUT = 30  # seconds until workers that give no batch are an error


class Sample(NamedTuple):
    """What the loader gives, as a batch: crops [B, 3, h, w], targets [B, K, h/4, w/4], weights [B, K, 1, 1]."""

    images: Tensor
    target: Tensor
    weight: Tensor


class UserDataset(Dataset[Sample]):
    """One person at a time, as SimpleBaselines' JointsDataset does: read, augment, warp, normalise, draw the target."""

    def __init__(self, persons: Persons, size: tuple[int, int]) -> None:
        self.persons, self.size = persons, size
        self.mean = torch.tensor(fastpose.IMAGENET_MEAN).view(3, 1, 1)
        self.deviation = torch.tensor(fastpose.IMAGENET_STD).view(3, 1, 1)

    def __len__(self) -> int:
        return len(self.persons)

    def __getitem__(self, row: int) -> Sample:
        persons, (height, width) = self.persons, self.size
        path = persons.image_paths[persons.image_index[row]]
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if image is None:
            raise OSError(f"{path}: OpenCV cannot read it")
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        center, keypoints = persons.center[row].copy(), persons.keypoints[row].copy()
        visible = persons.visible[row]
        zoom, turn, mirror = torch.rand(3).tolist()
        box = 200 * float(persons.scale[row, 0]) * (0.75 + 0.5 * zoom)
        if mirror < 0.5:
            image = image[:, ::-1]
            center[0], keypoints[:, 0] = image.shape[1] - 1 - center[0], image.shape[1] - 1 - keypoints[:, 0]
            order = fastpose.reference.mirror_order(persons.skeleton.mirror_pairs, len(keypoints))
            keypoints, visible = keypoints[order], visible[order]
        to_crop = cv2.getRotationMatrix2D((float(center[0]), float(center[1])), 60 * turn - 30, width / box)
        to_crop[:, 2] += np.array([width / 2, height / 2]) - center
        crop = cv2.warpAffine(np.ascontiguousarray(image), to_crop, (width, height), flags=cv2.INTER_LINEAR)
        pixels = (
            torch.from_numpy(crop).permute(2, 0, 1).contiguous().float().div_(255).sub_(self.mean).div_(self.deviation)
        )
        on_map = (keypoints @ to_crop[:, :2].T + to_crop[:, 2]) / 4
        target, weight = draw_target(on_map, visible, (height // 4, width // 4))
        return Sample(pixels, torch.from_numpy(target), torch.from_numpy(weight)[:, None, None])


def draw_target(
    points: NDArray[np.floating], visible: NDArray[np.float32], size: tuple[int, int], reach: int = 3
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Maps [K, h, w] and weights [K] of one sample: a stamp of sigma reach / 3 pasted at each joint, in a loop."""
    maps, weights = np.zeros((len(points), *size), np.float32), visible.copy()
    axis = np.arange(-reach, reach + 1, dtype=np.float32)
    stamp = np.exp(-(axis[None] ** 2 + axis[:, None] ** 2) / (2 * (reach / 3) ** 2))
    for k, (x, y) in enumerate(points):
        left, top = int(x + 0.5) - reach, int(y + 0.5) - reach
        right, bottom = left + 2 * reach + 1, top + 2 * reach + 1
        if left >= size[1] or top >= size[0] or right < 0 or bottom < 0:
            weights[k] = 0
        elif weights[k] > 0.5:
            x0, x1, y0, y1 = max(0, left), min(right, size[1]), max(0, top), min(bottom, size[0])
            maps[k, y0:y1, x0:x1] = stamp[y0 - top : y1 - top, x0 - left : x1 - left]
    return maps, weights


def fit_into(free_bytes: int, batch_bytes: int, workers: int) -> tuple[int, int]:
    """As many of `workers`, and as high a prefetch factor, 2 or 1, as batches in `free_bytes` of shared memory allow.

    Raises:
        OSError: not even one worker can have a batch there.
    """
    room = (
        free_bytes // batch_bytes - 2
    )  # beside what workers hold: one batch on its way into pinned memory, one behind
    if room < 1:
        raise OSError(f"shared memory: expected room for 3 batches of {batch_bytes:,} bytes, got {free_bytes:,} bytes")
    return (workers, 2) if room >= 2 * workers else (min(workers, room), 1)


def user_batches(
    persons: Persons,
    size: tuple[int, int],
    batch_size: int,
    workers: int,
    device: torch.device,
    *,
    prefetch_factor: int = 2,
) -> Generator[Sample, None, None]:
    """Random batches on `device` without end; `workers` 0 loads in this process.

    Raises:
        RuntimeError: for TIMEOUT seconds no batch came from the workers, or one of them died.
    """
    dataset = UserDataset(persons, size)
    loader = DataLoader(
        dataset,
        batch_size,
        # An epoch longer than any measurement: at the end of one the workers would stand still.
        sampler=RandomSampler(dataset, replacement=True, num_samples=10_000 * batch_size),
        num_workers=workers,
        prefetch_factor=prefetch_factor if workers else None,
        pin_memory=device.type == "cuda",
        worker_init_fn=_one_core,
        timeout=TIMEOUT if workers else 0,
    )
    while True:
        for batch in loader:
            yield Sample(*(tensor.to(device, non_blocking=True) for tensor in batch))


def _one_core(worker: int) -> None:
    cv2.setNumThreads(0)
