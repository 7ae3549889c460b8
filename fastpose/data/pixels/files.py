# SPDX-License-Identifier: Apache-2.0
"""Image files that threads decode."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastpose.data.images import BadImageError, read_image
from fastpose.data.pixels.source import DecodeThreads, Pixels
from fastpose.data.reading import AS_STORED, Reading
from fastpose.device import to_device
from fastpose.ops.image_batch import ImageBatch


class ImageFiles:
    """Image files, decoded by a pool of threads, each once per batch.

    Args:
        paths: one file per image.
        threads: decoding threads; OpenCV releases the interpreter lock while it decodes.
        reduction: 1, 2, 4 or 8 for each file, by how much to reduce it while it is decoded (see read_image); None: not.
        reading: how files become pixels.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        threads: int = 2,
        reduction: NDArray[np.int64] | None = None,
        reading: Reading = AS_STORED,
    ) -> None:
        self.paths = paths
        self.reduction = reduction
        self.reading = reading
        self._pool = DecodeThreads(threads)

    def load(self, images: Tensor, device: torch.device) -> Pixels:
        distinct, index = torch.unique(images, return_inverse=True)
        numbers = distinct.tolist()
        decoded = self._pool.each(self._read, numbers)
        batch = ImageBatch.from_list([pixels for pixels, _ in decoded], device=device, executor=self._pool)
        errors = {n: error for n, (_, error) in zip(numbers, decoded, strict=True) if error is not None}
        frame = None if self.reduction is None else to_device(frame_of(self.reduction[distinct.numpy()]), device)
        return Pixels(batch, to_device(index, device), errors, frame)

    def _read(self, image: int) -> tuple[np.ndarray, BadImageError | None]:
        reduction = 1 if self.reduction is None else int(self.reduction[image])
        return read_or_error(self.paths[image], reduction, self.reading)


def frame_of(reduction: NDArray[np.int64]) -> Tensor:
    """`Pixels.frame` of images that were reduced while they were decoded."""
    step = reduction.astype(np.float32)
    return torch.from_numpy(np.stack([step, (step - 1) / 2, (step - 1) / 2], axis=1))


def read_or_error(path: Path, reduction: int, reading: Reading) -> tuple[np.ndarray, BadImageError | None]:
    """An image file's pixels; if it is bad, one black pixel and why."""
    try:
        return read_image(path, reduction, reading), None
    except BadImageError as error:
        return np.zeros((1, 1, 3), np.uint8), error
