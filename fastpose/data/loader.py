# SPDX-License-Identifier: Apache-2.0
"""From rows of annotation arrays to training batches: pixels, augmentation, crops and heatmap coordinates.

A batch is a tensor of rows. Everything but decoding files works on the whole batch at once, on the training device.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor

import fastpose
from fastpose.data.augmentation import Augmentation, Draws
from fastpose.data.images import BadImageError, read_image
from fastpose.data.persons import Persons

T = TypeVar("T")


class PixelSource(Protocol):
    """Where pixels come from. A packed store or a GPU decoder needs only this one method."""

    def load(self, images: Sequence[int]) -> tuple[fastpose.ImageBatch, list[BadImageError | None]]:
        """Returns the pixels of `images` (distinct indices into `Persons.image_paths`) and what was wrong with each.

        In the place of an image with an error stands one black pixel that nobody reads.
        """
        ...


class ImageFiles:
    """Image files, decoded by a pool of threads.

    Args:
        paths: one file per image.
        threads: decoding threads; OpenCV releases the interpreter lock while it decodes.

    Switches OpenCV's own threads off, in the whole process and for good: `cv2.setNumThreads(0)`.
    """

    def __init__(self, paths: Sequence[Path], threads: int = 2) -> None:
        if threads < 1:
            raise ValueError(f"threads: expected at least 1, got {threads}")
        # Our threads already fill the cores; with OpenCV's own pool on top they would wait for one another.
        cv2.setNumThreads(0)
        self.paths = paths
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="fastpose-decode")

    def load(self, images: Sequence[int]) -> tuple[fastpose.ImageBatch, list[BadImageError | None]]:
        decoded = list(self._pool.map(self._read, images))
        return fastpose.ImageBatch.from_list([pixels for pixels, _ in decoded]), [error for _, error in decoded]

    def _read(self, image: int) -> tuple[np.ndarray, BadImageError | None]:
        try:
            return read_image(self.paths[image]), None
        except BadImageError as error:
            return np.zeros((1, 1, 3), np.uint8), error


@dataclass(frozen=True)
class Batch:
    """One batch of B persons, ready for the network.

    Attributes:
        step: number of this batch within its epoch, from 0.
        rows: int64 [B] on the CPU, rows of `Persons`.
        images: float32 [B, 3, H, W], normalised RGB crops.
        keypoints: float32 [B, K, 2], (x, y) in heatmap pixels, left and right exchanged where the crop is mirrored.
        visible: float32 [B, K], 1 = annotated.
        heatmap_to_image: float32 [B, 2, 3], heatmap pixels to image pixels.
    """

    step: int
    rows: Tensor
    images: Tensor
    keypoints: Tensor
    visible: Tensor
    heatmap_to_image: Tensor


class PoseLoader:
    """Batches of persons, the next ones prepared by a background thread while the current one is used.

    Randomness depends on (seed, epoch, step) alone, so any batch can be made again without those before it.

    Args:
        persons: annotations; their arrays are moved to `device` once.
        source: where the pixels come from.
        size: (h, w) of the crops in pixels, multiples of 4; heatmaps have a quarter of it.
        batch_size: persons in a batch; the last one of an epoch may be smaller.
        augmentation: None for evaluation: no augmentation and the order of `persons`.
        seed: the run's seed.
        device: where batches are made.
        prefetch: batches prepared ahead, at least 1; bounds the memory.
        on_bad_image: "error" raises BadImageError in the consumer; "skip" leaves the image's persons out and
            remembers the image in `bad_images`.
        memory_format: layout of the crops.

    Attributes:
        wait_seconds: time the consumer has spent waiting for batches, over all epochs.
        bad_images: what was wrong with each image skipped so far, by index into `persons.image_paths`.
    """

    def __init__(
        self,
        persons: Persons,
        source: PixelSource,
        size: tuple[int, int],
        batch_size: int,
        *,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
        prefetch: int = 2,
        on_bad_image: Literal["error", "skip"] = "error",
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        if len(persons) == 0:
            raise ValueError("persons: expected at least one person, got none")
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        if prefetch < 1:
            raise ValueError(f"prefetch: expected at least 1, got {prefetch}")
        if min(size) < 4 or size[0] % 4 or size[1] % 4:
            raise ValueError(f"size: expected (h, w), multiples of 4 pixels, got {size}")
        self.persons = persons
        self.source = source
        self.size = size
        self.heatmap_size = (size[0] // 4, size[1] // 4)
        self.batch_size = batch_size
        self.augmentation = augmentation
        self.seed = seed
        self.device = torch.device(device)
        self.prefetch = prefetch
        self.on_bad_image = on_bad_image
        self.memory_format = memory_format
        self.wait_seconds = 0.0
        self.bad_images: dict[int, BadImageError] = {}
        self._image_index = torch.from_numpy(persons.image_index)
        self._center = torch.from_numpy(persons.center).to(self.device)
        self._scale = torch.from_numpy(persons.scale).to(self.device)
        self._keypoints = torch.from_numpy(persons.keypoints).to(self.device)
        self._visible = torch.from_numpy(persons.visible).to(self.device)
        self._color = fastpose.normalize_color(fastpose.IMAGENET_MEAN, fastpose.IMAGENET_STD).to(self.device)
        self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None

    def __len__(self) -> int:
        """Batches in an epoch."""
        return -(-len(self.persons) // self.batch_size)

    def epoch(self, epoch: int = 0, first_step: int = 0) -> Generator[Batch, None, None]:
        """Yields the batches of one epoch from `first_step` on. To stop early, close it (`contextlib.closing`).

        A batch whose images are all bad is left out, so steps may jump.

        Raises:
            BadImageError: an image cannot be read and `on_bad_image` is "error", or none of the epoch can be read.
        """
        order = self._order(epoch)
        jobs = (lambda step=step: self._prepare(order, epoch, step) for step in range(first_step, len(self)))
        prepared = prepare_ahead(jobs, self.prefetch)
        empty = True
        try:
            while True:
                start = time.perf_counter()
                made = next(prepared, None)
                self.wait_seconds += time.perf_counter() - start
                if made is None:
                    break
                batch, ready = made
                if len(batch.rows) == 0:
                    continue
                empty = False
                if ready is not None:
                    self._hand_over(batch, ready)
                yield batch
        finally:
            prepared.close()
        if empty and first_step == 0:
            first = next(iter(self.bad_images.values()))
            raise BadImageError(f"no image of the epoch could be read; the first error: {first}")

    def _order(self, epoch: int) -> Tensor:
        if self.augmentation is None:
            return torch.arange(len(self.persons))
        return torch.randperm(len(self.persons), generator=seeded_generator("cpu", self.seed, epoch, 0))

    def _prepare(self, order: Tensor, epoch: int, step: int) -> tuple[Batch, torch.cuda.Event | None]:
        """Makes one batch, in the background thread; on CUDA on a stream of its own."""
        rows = order[step * self.batch_size : (step + 1) * self.batch_size]
        if self._stream is None:
            return self._make(rows, epoch, step), None
        with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
            batch = self._make(rows, epoch, step)
            ready = torch.cuda.Event()
            ready.record(self._stream)
        return batch, ready

    def _hand_over(self, batch: Batch, ready: torch.cuda.Event) -> None:
        """Makes the consumer's stream wait for the batch, and the allocator keep its memory for that stream."""
        consumer = torch.cuda.current_stream(self.device)
        consumer.wait_event(ready)
        for tensor in (batch.images, batch.keypoints, batch.visible, batch.heatmap_to_image):
            tensor.record_stream(consumer)

    def _make(self, rows: Tensor, epoch: int, step: int) -> Batch:
        images, image_index, rows = self._load(rows)
        draws = self._draw(len(rows), epoch, step)
        on_device = rows.to(self.device, non_blocking=True)
        center = self._center[on_device]
        scale = self._scale[on_device] * draws.scale[:, None]
        crop_to_image = fastpose.crop_to_image_matrix(center, scale, draws.rotation, self.size, flip=draws.flip)
        heatmap_to_image = fastpose.crop_to_image_matrix(
            center, scale, draws.rotation, self.heatmap_size, flip=draws.flip
        )
        crops = fastpose.affine_crop(
            images,
            crop_to_image,
            self.size,
            image_index=image_index.to(self.device, non_blocking=True),
            color=self._color,
            memory_format=self.memory_format,
        )
        keypoints = fastpose.transform_points(self._keypoints[on_device], heatmap_to_image, inverse=True)
        keypoints, visible = fastpose.swap_pairs(
            keypoints, self._visible[on_device], draws.flip, self.persons.skeleton.mirror_pairs
        )
        return Batch(step, rows, crops, keypoints, visible, heatmap_to_image)

    def _load(self, rows: Tensor) -> tuple[fastpose.ImageBatch, Tensor, Tensor]:
        """Decodes each distinct image of `rows` once. Returns images, rows' indices into them, and the rows left."""
        distinct, image_index = torch.unique(self._image_index[rows], return_inverse=True)
        images, errors = self.source.load(distinct.tolist())
        if any(errors):
            if self.on_bad_image == "error":
                raise next(error for error in errors if error is not None)
            self.bad_images.update({i: e for i, e in zip(distinct.tolist(), errors, strict=True) if e is not None})
            good = torch.tensor([error is None for error in errors])[image_index]
            rows, image_index = rows[good], image_index[good]
        if self.device.type == "cuda":
            images = images.pin_memory()
        return images.to(self.device, non_blocking=True), image_index, rows

    def _draw(self, count: int, epoch: int, step: int) -> Draws:
        if self.augmentation is not None:
            return self.augmentation.draw(count, seeded_generator(self.device, self.seed, epoch, 1 + step))
        zeros = torch.zeros(count, device=self.device)
        return Draws(zeros, zeros + 1.0, zeros.bool())


def prepare_ahead(jobs: Iterator[Callable[[], T]], depth: int) -> Generator[T, None, None]:
    """Runs `jobs` in order in one background thread and yields their results, at most `depth` of them waiting.

    A job's exception is raised here, where its result would have been. Closing the generator drops the jobs not begun,
    waits for the one that runs and ends the thread. torch's number of threads stays what it is here and is 1 there.
    """
    threads = torch.get_num_threads()
    worker = ThreadPoolExecutor(1, thread_name_prefix="fastpose-prepare")
    pending: deque[Future[T]] = deque()
    try:
        worker.submit(use_one_core).result()
        # torch gives the number set last, in whichever thread, to every thread that asks for the first time.
        torch.set_num_threads(threads)
        for job in jobs:
            pending.append(worker.submit(job))
            if len(pending) > depth:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        worker.shutdown(wait=True, cancel_futures=True)


def use_one_core() -> None:
    """Lets torch run this thread's ops on one core: more would fight with those that train for the others."""
    torch.get_num_threads()  # Otherwise the thread's first op would ask, and take what others have set meanwhile.
    torch.set_num_threads(1)


def seeded_generator(device: torch.device | str, *key: int) -> torch.Generator:
    """A generator whose state depends on the integers of `key` alone, with no relation between neighbouring keys."""
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state))
