# SPDX-License-Identifier: Apache-2.0
"""From rows of annotation arrays to training batches: pixels, augmentation, crops and heatmap coordinates.

A batch is a tensor of rows. Everything but decoding files works on the whole batch at once, on the training device, and
on CUDA nothing in it waits for the GPU.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

import fastpose
from fastpose.data.ahead import DeviceWait, HostWait, PreparedAhead
from fastpose.data.augmentation import Augmentation, Draws, erased_boxes
from fastpose.data.boxes import body_boxes
from fastpose.data.images import BadImageError
from fastpose.data.persons import Persons
from fastpose.data.pixels.source import PixelSource
from fastpose.device import making_device, to_device
from fastpose.option import OptionError
from fastpose.ranks import ALONE, Ranks


@dataclass(frozen=True)
class Batch:
    """One batch of B persons, ready for the network; of a run of several ranks, this rank's part of one.

    Attributes:
        step: number of this batch within its epoch, from 0.
        rows: int64 [B] on the CPU, rows of `Persons`.
        images: float32 or bfloat16 [B, 3, H, W], crops as the loader's colour map makes them.
        keypoints: float32 [B, K, 2], (x, y) in heatmap pixels, left and right exchanged where the crop is mirrored.
        visible: float32 [B, K], 1 = annotated.
        heatmap_to_image: float32 [B, 2, 3], heatmap pixels to image pixels. (For SimCC's vectors, with `stride` 1, both
            are in pixels of the crop.)
        supervised: float32 [B, K], 0 where the person's data set does not have the joint, exchanged as `visible`; None:
            there is no such joint.
    """

    step: int
    rows: Tensor
    images: Tensor
    keypoints: Tensor
    visible: Tensor
    heatmap_to_image: Tensor
    supervised: Tensor | None = None


class Epoch(Iterator[Batch]):
    """Batches that are prepared ahead while they are taken. Its threads end with the last batch, with an error, or when
    it is closed; of one that is left half way they end by themselves once it is collected."""

    def __init__(
        self, batches: Iterator[Batch], prepared: PreparedAhead[tuple[Batch, torch.cuda.Event | None]]
    ) -> None:
        self._batches, self._prepared = batches, prepared

    def __next__(self) -> Batch:
        return next(self._batches)

    def close(self) -> None:
        """Drops what is not begun, waits for what is being prepared, and ends the threads."""
        self._prepared.close()


class PoseLoader:
    """Batches of persons, the next ones prepared in the background while the current one is used.

    Randomness depends on (seed, epoch, step) alone, so any batch can be made again without those before it.

    Of a run of several ranks each makes its part alone: of a training batch its own persons, drawn as one rank would
    draw them; in evaluation every `count`-th batch. Persons, crops and joints are the same for any number of ranks.

    Only the width of a person's box matters; its height follows from the crop's aspect ratio, with and without `udp`.

    Args:
        persons: annotations; their arrays are moved to `device` once.
        source: where the pixels come from.
        size: (h, w) of the crops in pixels, multiples of 4 and of `stride`.
        batch_size: persons in a batch, of all ranks together; the last one of an epoch may be smaller.
        augmentation: None for evaluation: no augmentation and the order of `persons`.
        seed: the run's seed.
        device: where batches are wanted. On others than the CPU and CUDA they arrive from the CPU, where they are made.
        prefetch: batches prepared ahead, at least 1, and on CUDA steps that the consumer's host may be ahead of the
            GPU; bounds the memory.
        on_bad_image: "error" raises BadImageError in the consumer; "skip" leaves the image's persons out and
            remembers the image in `bad_images`.
        memory_format: layout of the crops.
        dtype: of the crops, torch.float32 or torch.bfloat16.
        color: the crops' colour map [3, 4] on the CPU; None: ImageNet's normalisation, in the order R G B.
        udp: whether crops and heatmaps are measured from first to last pixel centre, see crop_to_image_matrix.
        stride: pixels of the crop per pixel of the heatmap; 1: keypoints are wanted in pixels of the crop.
        ranks: which rank of the run makes batches here.
        by_image: of a training batch a rank makes the persons on every `count`-th image, and not a slice of equal size:
            for a source that has only these images.

    Attributes:
        epoch_size: persons in an epoch; of several data sets with weights other than there are, see `Sets`.
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
        dtype: torch.dtype = torch.float32,
        color: Tensor | None = None,
        udp: bool = False,
        stride: int = 4,
        ranks: Ranks = ALONE,
        by_image: bool = False,
    ) -> None:
        if len(persons) == 0:
            raise OptionError("persons", "expected at least one person, got none")
        if batch_size < 1:
            raise OptionError("batch_size", f"expected at least 1, got {batch_size}")
        if augmentation is not None and batch_size < ranks.count:
            raise OptionError("batch_size", f"expected a person for each of {ranks.count} ranks, got {batch_size}")
        if prefetch < 1:
            raise OptionError("prefetch", f"expected at least 1, got {prefetch}")
        if min(size) < 4 or size[0] % 4 or size[1] % 4:
            raise OptionError("size", f"expected (h, w), multiples of 4 pixels, got {size}")
        if udp and min(size) < 8:
            raise OptionError("size", f"expected at least 8 pixels with udp, for heatmaps of 2, got {size}")
        self.persons = persons
        weighted = augmentation is not None and persons.sets is not None and persons.sets.weighted
        self._sets = persons.sets if weighted else None
        self.epoch_size = len(persons) if self._sets is None else sum(part.count for part in self._sets.parts)
        if self.epoch_size == 0:
            raise OptionError("persons", "expected at least one person in an epoch, got none by the sets' weights")
        self.source = source
        self.size = size
        self.heatmap_size = (size[0] // stride, size[1] // stride)
        self.batch_size = batch_size
        self.augmentation = augmentation
        self.seed = seed
        self.device = torch.device(device)
        self._maker = making_device(self.device)
        self.prefetch = prefetch
        self.on_bad_image = on_bad_image
        self.memory_format = memory_format
        self.dtype = dtype
        self.udp = udp
        self.ranks, self.by_image = ranks, by_image
        self.bad_images: dict[int, BadImageError] = {}
        # Of high priority: a batch's few kernels need not wait behind all those that the consumer has begun.
        self._stream = torch.cuda.Stream(self.device, priority=-1) if self.device.type == "cuda" else None
        self._wait = DeviceWait(self.device, prefetch) if self.device.type == "cuda" else HostWait()
        self._image_index = torch.from_numpy(persons.image_index)
        # A colour map on the CPU travels in the kernel's parameters.
        self._color = (
            fastpose.normalize_color(fastpose.IMAGENET_MEAN, fastpose.IMAGENET_STD) if color is None else color
        )
        half_body = augmentation is not None and augmentation.half_body > 0.0
        boxes = body_boxes(persons, size, half_body=half_body)
        with self._side_stream():
            if augmentation is not None and augmentation.jitters_color:
                self._color = self._color.to(self._maker)
            self._boxes = torch.from_numpy(boxes).to(self._maker)
            self._keypoints = torch.from_numpy(persons.keypoints).to(self._maker)
            self._visible = torch.from_numpy(persons.visible).to(self._maker)
            supervised = None if persons.sets is None else persons.sets.supervised
            self._supervised = None if supervised is None else torch.from_numpy(supervised).to(self._maker)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return -(-self.epoch_size // self.batch_size)

    def blank_batch(self) -> Batch:
        """A batch of full size and all zeros, with the shapes, types, layout and device of those of an epoch."""
        return self._blank(self.part_size, 0, self.device)

    @property
    def part_size(self) -> int:
        """Persons of a full training batch that this rank makes; with `by_image` about so many."""
        part = self._slice(self.batch_size)
        return int(part.stop - part.start)

    def _blank(self, persons: int, step: int, device: torch.device) -> Batch:
        zeros = functools.partial(torch.zeros, device=device)
        shape = (persons, self.persons.skeleton.num_joints)
        return Batch(
            step=step,
            rows=torch.zeros(persons, dtype=torch.int64),
            images=zeros(persons, 3, *self.size, dtype=self.dtype).to(memory_format=self.memory_format),
            keypoints=zeros(*shape, 2),
            visible=zeros(*shape),
            heatmap_to_image=zeros(persons, 2, 3),
            supervised=None if self._supervised is None else zeros(*shape),
        )

    def epoch(self, epoch: int = 0, first_step: int = 0) -> Epoch:
        """The batches of one epoch from `first_step` on. To stop early, close it (`contextlib.closing`).

        A batch whose images are all bad is left out, so steps may jump; of several ranks' batches none is, as all train
        in each step, and parts may be empty.

        Raises:
            BadImageError: when a batch is asked for: an image cannot be read and `on_bad_image` is "error", or none of
                the epoch can be read (by one rank alone).
        """
        order = self._order(epoch)
        with self._side_stream():
            on_device = to_device(order, self._maker)
        steps = range(first_step, len(self))
        if self.augmentation is None:
            steps = steps[self.ranks.rank :: self.ranks.count]
        jobs = (lambda step=step: self._prepare(order, on_device, epoch, step) for step in steps)
        # Two threads: one waits for its pixels while the other crops or, for a GPU, fills and copies pinned memory.
        prepared = PreparedAhead(jobs, self.prefetch, threads=2)
        return Epoch(self._arriving(prepared, first_step), prepared)

    def _arriving(
        self, prepared: PreparedAhead[tuple[Batch, torch.cuda.Event | None]], first_step: int
    ) -> Iterator[Batch]:
        empty = True
        while True:
            self._wait.begin()
            made = next(prepared, None)
            if made is None:
                break
            batch, ready = made
            self._wait.end(ready)
            if len(batch.rows) == 0 and self.ranks.count == 1:
                continue
            empty = False
            arrived = [self._handed_over(batch)]
            del made, batch  # while the next batch is waited for, and once closed, nothing here keeps this one
            yield arrived.pop()
        if empty and first_step == 0 and self.ranks.count == 1:
            raise self.nothing_read()

    def nothing_read(self) -> BadImageError:
        """The error of an epoch of which no image could be read."""
        first = next(iter(self.bad_images.values()), "in another rank")
        return BadImageError(f"no image of the epoch could be read; the first error: {first}")

    def batch(self, rows: Tensor) -> Batch:
        """One batch of the persons `rows`, int64 [B] on the CPU with at most batch_size of them, drawn as the first of
        an epoch; made in the caller's thread.

        Raises:
            BadImageError: an image cannot be read and `on_bad_image` is "error".
        """
        with self._side_stream():
            on_device = to_device(rows, self._maker)
        batch, ready = self._prepare(rows, on_device, epoch=0, step=0)
        if ready is not None:
            torch.cuda.current_stream(self.device).wait_event(ready)
        return self._handed_over(batch)

    @property
    def wait_seconds(self) -> float:
        """Time that the consumer has stood without work because of its input, over all epochs.

        On the CPU the time it waited for batches; on CUDA the time its stream did, as far as the GPU has come: all of
        it once the host has waited for that stream.
        """
        return self._wait.seconds()

    def _side_stream(self) -> AbstractContextManager[object]:
        """What belongs to preparing batches: on CUDA a stream beside the consumer's."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _order(self, epoch: int) -> Tensor:
        if self.augmentation is None:
            return torch.arange(len(self.persons))
        generator = seeded_generator("cpu", self.seed, epoch, 0)
        if self._sets is None:
            return torch.randperm(len(self.persons), generator=generator)
        drawn = []
        for number, part in enumerate(self._sets.parts):
            rows = torch.from_numpy(np.flatnonzero(self._sets.index == number))
            copies, rest = divmod(part.count, len(rows)) if len(rows) else (0, 0)
            drawn += [rows] * copies + [rows[torch.randperm(len(rows), generator=generator)[:rest]]]
        order = torch.cat(drawn)
        return order[torch.randperm(len(order), generator=generator)]

    def bad_image_texts(self) -> list[str]:
        """What was wrong with each image file skipped so far. In a pack each person has an image of its own: those of
        one file, whose texts are the same, count once."""
        return list(dict.fromkeys(str(error) for error in dict(self.bad_images).values()))

    def _prepare(
        self, order: Tensor, on_device: Tensor, epoch: int, step: int
    ) -> tuple[Batch, torch.cuda.Event | None]:
        """Makes one batch, in a background thread; on CUDA in the side stream, with an event for when it is done."""
        whole = slice(step * self.batch_size, (step + 1) * self.batch_size)
        with self._side_stream():
            mine = None if self.augmentation is None else self._part(order[whole])
            batch = self._make(order[whole], on_device[whole], epoch, step, mine)
            if self._stream is None:
                return batch, None
            ready = torch.cuda.Event()
            ready.record(self._stream)
            return batch, ready

    def _handed_over(self, batch: Batch) -> Batch:
        """Lets the allocator keep the batch's memory until the consumer's stream is through with it. Brings it to a
        device that it was not made on."""
        names = ["images", "keypoints", "visible", "heatmap_to_image"]
        names += ["supervised"] * (batch.supervised is not None)
        if self._stream is not None:
            consumer = torch.cuda.current_stream(self.device)
            for name in names:
                getattr(batch, name).record_stream(consumer)
        if self._maker == self.device:
            return batch
        return dataclasses.replace(batch, **{name: getattr(batch, name).to(self.device) for name in names})

    def _slice(self, persons: int) -> slice:
        """This rank's part of a training batch; the parts differ by one person at most."""
        least, more = divmod(persons, self.ranks.count)  # the first ranks have one more: theirs are never empty alone
        first = self.ranks.rank * least + min(self.ranks.rank, more)
        return slice(first, first + least + (self.ranks.rank < more))

    def _part(self, rows: Tensor) -> slice | Tensor | None:
        """Which of a training batch's rows this rank makes; None: all."""
        if self.ranks.count == 1:
            return None
        if not self.by_image:
            return self._slice(len(rows))
        return (self._image_index[rows] % self.ranks.count == self.ranks.rank).nonzero().flatten()

    def _make(
        self, rows: Tensor, on_device: Tensor, epoch: int, step: int, part: slice | Tensor | None = None
    ) -> Batch:
        """Makes a part of the batch of `rows`, int64 [B] on the CPU, and the same `on_device`. None: all of it.

        All of the batch is drawn, so that nobody's draw depends on who else makes or misses a part of it.
        """
        draws = self._draw(len(rows), epoch, step)
        if part is not None:
            rows, part = rows[part], part if isinstance(part, slice) else to_device(part, self._maker)
            on_device, draws = on_device[part], draws.of(part)
            if len(rows) == 0:
                return self._blank(0, step, self._maker)
        pixels = self.source.load(self._image_index[rows], self._maker)
        images, image_index = pixels.images, pixels.index
        if pixels.errors:
            if self.on_bad_image == "error":
                raise next(iter(pixels.errors.values()))
            self.bad_images.update(pixels.errors)
            good = ~torch.isin(self._image_index[rows], torch.tensor(list(pixels.errors)))
            kept = good.nonzero().flatten()
            rows, kept = rows[kept], to_device(kept, self._maker)
            on_device, image_index, draws = on_device[kept], image_index[kept], draws.of(kept)
        center, scale = self._boxes[on_device, draws.body].split(2, dim=1)
        if draws.shift is not None:
            center = center + draws.shift * (200.0 * scale)
        scale = scale * draws.scale[:, None]
        if pixels.frame is None:
            center_on_pixels, scale_on_pixels = center, scale
        else:
            # Moving and shrinking the box gives the matrix of the pixels that there are, with udp too: rotation and
            # mirroring are about the box's centre, and its sides alone set the scale.
            pixel, origin = pixels.frame[image_index].split((1, 2), dim=1)
            center_on_pixels, scale_on_pixels = (center - origin) / pixel, scale / pixel
        crop_to_pixels = fastpose.crop_to_image_matrix(
            center_on_pixels, scale_on_pixels, draws.rotation, self.size, flip=draws.flip, udp=self.udp
        )
        heatmap_to_image = fastpose.crop_to_image_matrix(
            center, scale, draws.rotation, self.heatmap_size, flip=draws.flip, udp=self.udp
        )
        crops = fastpose.affine_crop(
            images,
            crop_to_pixels,
            self.size,
            image_index=image_index,
            color=self._color if draws.color is None else fastpose.jitter_color(self._color, *draws.color),
            dtype=self.dtype,
            memory_format=self.memory_format,
            erase=None if draws.erase is None else erased_boxes(draws.erase, self.size),
        )
        keypoints = fastpose.transform_points(self._keypoints[on_device], heatmap_to_image, inverse=True)
        pairs, supervised = self.persons.skeleton.mirror_pairs, None
        if self._supervised is not None:
            supervised = fastpose.swap_pairs(keypoints, self._supervised[on_device], draws.flip, pairs)[1]
        keypoints, visible = fastpose.swap_pairs(keypoints, self._visible[on_device], draws.flip, pairs)
        return Batch(step, rows, crops, keypoints, visible, heatmap_to_image, supervised)

    def _draw(self, count: int, epoch: int, step: int) -> Draws:
        if self.augmentation is not None:
            return self.augmentation.draw(count, seeded_generator(self._maker, self.seed, epoch, 1 + step))
        zeros = torch.zeros(count, device=self._maker)
        return Draws(zeros, zeros + 1.0, zeros.bool(), zeros.long())


def seeded_generator(device: torch.device | str, *key: int) -> torch.Generator:
    """A generator whose state depends on the integers of `key` alone, with no relation between neighbouring keys."""
    return torch.Generator(device).manual_seed(seed_of(*key))


def seed_of(*key: int) -> int:
    """A seed that depends on the integers of `key` alone."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
