# SPDX-License-Identifier: Apache-2.0
"""Where the pixels of a batch come from: image files that threads decode, or a whole data set, decoded already.

A packed data set is a third place, see `fastpose.data.packed`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastpose.data.augmentation import body_boxes
from fastpose.data.images import REDUCTIONS, BadImageError, image_size, read_image
from fastpose.data.persons import Persons
from fastpose.ops.image_batch import ImageBatch

Item = TypeVar("Item")
Result = TypeVar("Result")

CHUNK_BYTES = 256 << 20  # decoded at once while a data set moves into memory


@dataclass(frozen=True)
class Pixels:
    """What a pixel source was asked for.

    Attributes:
        images: the pixels, on the device asked for. In the place of a bad image stands one black pixel.
        index: int64 [B] on that device, where in `images` each asked-for image lies.
        errors: what is wrong with the bad ones among the asked-for images, by number.
        frame: float32 [N, 3] on that device, (step, x, y) of each of `images`: its pixel p is centred on
            `step * p + (x, y)` of the image file that the annotations speak of. None: they are those files' pixels.
    """

    images: ImageBatch
    index: Tensor
    errors: Mapping[int, BadImageError]
    frame: Tensor | None = None


class PixelSource(Protocol):
    """Anything that has pixels: a packed store or another decoder needs only this one method."""

    def load(self, images: Tensor, device: torch.device) -> Pixels:
        """Returns the pixels of `images`, int64 [B] on the CPU, indices into `Persons.image_paths` that may repeat.

        On CUDA the work goes to the current stream, and the host does not wait for it if it need not.
        """
        ...


class DecodeThreads(ThreadPoolExecutor):
    """Threads that read and decode, and share the items of a batch."""

    def __init__(self, threads: int) -> None:
        super().__init__(threads, thread_name_prefix="fastpose-decode")
        self._count = threads

    def each(self, work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """What `work` makes of each item, in order. An exception of `work` is raised here, once the job it was in ends.

        One job per thread takes the next item until none is left. A job per item costs more of the interpreter lock,
        which the thread that trains wants too, than reading a file; a fixed share for each thread would make all wait
        for the one with the largest images.
        """
        results: dict[int, Result] = {}
        left = iter(range(len(items)))  # shared: its next number is one step under the lock

        def job() -> None:
            for n in left:
                results[n] = work(items[n])

        for begun in [self.submit(job) for _ in range(min(self._count, len(items)))]:
            begun.result()
        return [results[n] for n in range(len(items))]


class ImageFiles:
    """Image files, decoded by a pool of threads, each once per batch.

    Args:
        paths: one file per image.
        threads: decoding threads; OpenCV releases the interpreter lock while it decodes.
        reduction: 1, 2, 4 or 8 for each file, by how much to reduce it while it is decoded (see read_image); None: not.

    Switches OpenCV's own threads off, in the whole process and for good: `cv2.setNumThreads(0)`.
    """

    def __init__(self, paths: Sequence[Path], threads: int = 2, reduction: NDArray[np.int64] | None = None) -> None:
        if threads < 1:
            raise ValueError(f"threads: expected at least 1, got {threads}")
        # Our threads already fill the cores; with OpenCV's own pool on top they would wait for one another.
        cv2.setNumThreads(0)
        self.paths = paths
        self.reduction = reduction
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
        return read_or_error(self.paths[image], 1 if self.reduction is None else int(self.reduction[image]))


class ResidentImages:
    """A whole data set in one `ImageBatch` on the training device: a batch copies no pixel, only its indices.

    Args:
        images: every image of the data set, on the device that will ask for them.
        errors: what was wrong with the images in whose place there is a black pixel, by number.
        frame: float32 [N, 3] on that device, where the images lie in their files, see `Pixels`.
    """

    def __init__(
        self, images: ImageBatch, errors: Mapping[int, BadImageError] | None = None, frame: Tensor | None = None
    ) -> None:
        self.images = images
        self.errors = errors or {}
        self.frame = frame

    def load(self, images: Tensor, device: torch.device) -> Pixels:
        if self.images.device.type == "cuda":
            # Made in another stream than the one that reads them: the allocator must not give them away before that.
            for table in (self.images.data, self.images.offsets, self.images.sizes, self.frame):
                if table is not None:
                    table.record_stream(torch.cuda.current_stream(table.device))
        bad = self.errors.keys() & set(images.tolist()) if self.errors else ()
        errors = {image: self.errors[image] for image in bad}
        return Pixels(self.images, to_device(images, device), errors, self.frame)

    @classmethod
    def from_files(
        cls,
        paths: Sequence[Path],
        device: torch.device | str,
        threads: int = 2,
        *,
        decoder: PixelSource | None = None,
        reduction: NDArray[np.int64] | None = None,
        on_bad_image: Literal["error", "skip"] = "error",
        progress: Callable[[int, int], None] | None = None,
    ) -> ResidentImages:
        """Decodes files into the memory of `device`, in chunks.

        A pass over the files' headers finds out how large the buffer must be. The peak of the memory is that of
        `from_source`.

        Args:
            paths: one file per image.
            device: where the pixels are to stay.
            threads: threads that read headers and decode.
            decoder: what decodes `paths`; None: `ImageFiles(paths, threads, reduction)`.
            reduction: by how much the decoder reduces each file, see ImageFiles; None: not.
            on_bad_image: "error" raises, "skip" remembers the error for `load`.
            progress: called after each chunk with the images done and all of them.

        Raises:
            BadImageError: a file cannot be read and `on_bad_image` is "error".
            ValueError: the device has too little free memory; the message says how much there is and how much it takes.
        """
        source = ImageFiles(paths, threads, reduction) if decoder is None else decoder
        with DecodeThreads(threads) as pool:
            headers = pool.each(size_or_error, paths)
        errors = {n: error for n, (_, error) in enumerate(headers) if error is not None}
        if errors and on_bad_image == "error":
            raise next(iter(errors.values()))
        sizes = np.array([size for size, _ in headers], np.int64).reshape(-1, 2)
        if reduction is not None:
            sizes = -(-sizes // reduction[:, None])
        names = [str(path) for path in paths]
        return cls.from_source(source, sizes, device, names, errors, on_bad_image=on_bad_image, progress=progress)

    @classmethod
    def from_source(
        cls,
        source: PixelSource,
        sizes: NDArray[np.int64],
        device: torch.device | str,
        names: Sequence[str],
        errors: Mapping[int, BadImageError] | None = None,
        *,
        on_bad_image: Literal["error", "skip"] = "error",
        progress: Callable[[int, int], None] | None = None,
    ) -> ResidentImages:
        """Moves all images of another source into the memory of `device`, in chunks.

        At its peak the device holds the decoded data set and one chunk (256 MiB, or one image if that is larger), where
        the device decodes that chunk twice, and the host one chunk twice.

        Args:
            source: where the pixels come from.
            sizes: (h, w) of each of its images, [N, 2].
            device, on_bad_image, progress: as for `from_files`.
            names: what to call each image in messages.
            errors: images that are known to be bad, by number; they need no more than 1 x 1 px.

        Raises:
            BadImageError, ValueError: as from `from_files`; or an image has another size than was said.
        """
        device, errors = torch.device(device), dict(errors or {})
        sizes = sizes.astype(np.int32)
        lengths = 3 * sizes.astype(np.int64).prod(axis=1)
        ends = np.cumsum(lengths)
        total = int(lengths.sum())
        check_memory(total + 2 * min(total, max(CHUNK_BYTES, int(lengths.max(initial=0)))), device)
        data = torch.empty(total, dtype=torch.uint8, device=device)
        frames: list[Tensor] = []
        first = 0
        while first < len(sizes):
            stop = max(first + 1, int(np.searchsorted(ends, ends[first] - lengths[first] + CHUNK_BYTES, side="right")))
            chunk = source.load(torch.arange(first, stop), device)
            errors |= chunk.errors
            if chunk.frame is not None:
                frames.append(chunk.frame[chunk.index])
            places, found = chunk.images.offsets.tolist(), chunk.images.sizes.tolist()
            for image, at in enumerate(chunk.index.tolist(), first):
                if image not in errors and found[at] != sizes[image].tolist():
                    errors[image] = BadImageError(
                        f"{names[image]}: expected {sizes[image].tolist()} px as its header says, got {found[at]}"
                    )
                begin = int(ends[image] - lengths[image])
                if image not in errors:
                    length = int(lengths[image])
                    data[begin : begin + length] = chunk.images.data[places[at] : places[at] + length]
                elif on_bad_image == "error":
                    raise errors[image]
                else:
                    sizes[image] = 1
                    data[begin : begin + 3] = 0
            first = stop
            if progress is not None:
                progress(first, len(sizes))
        frame = torch.cat(frames) if frames else None
        # The check of the tables waits for the current stream: from here on every stream may read the pixels.
        tables = torch.from_numpy(ends - lengths).to(device), torch.from_numpy(sizes).to(device)
        return cls(ImageBatch(data, *tables), errors, frame)


def frame_of(reduction: NDArray[np.int64]) -> Tensor:
    """`Pixels.frame` of images that were reduced while they were decoded."""
    step = reduction.astype(np.float32)
    return torch.from_numpy(np.stack([step, (step - 1) / 2, (step - 1) / 2], axis=1))


def reductions(
    persons: Persons, size: tuple[int, int], smallest_scale: float, *, half_body: bool = False
) -> NDArray[np.int64]:
    """By how much each image may be reduced, int64 [M] of 1, 2, 4 or 8, so that no crop has to enlarge it for that.

    The finest that any of its persons may need, at the smallest box that the augmentation can draw: a bound that the
    host knows without knowing the draws, and that makes a person's crop the same whoever else is in the batch.

    Args:
        persons: N persons on M images.
        size: (h, w) of the crops in pixels.
        smallest_scale: smallest factor on the persons' boxes.
        half_body: whether crops of half a body may be drawn too, see `body_boxes`.
    """
    finest = np.full(len(persons.image_paths), np.inf)
    smallest = body_boxes(persons, size, half_body=half_body)[..., 2:].min(axis=1)
    np.minimum.at(finest, persons.image_index, pixel_step(smallest, size) * smallest_scale)
    return largest_reduction(finest)


def pixel_step(scale: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float64]:
    """Image pixels from one pixel of a crop to the next, float64 [N], for boxes of `scale` [N, 2]; the width alone
    counts, as in crop_to_image_matrix. With udp it is more, by one in the crop's width less one at least."""
    return 200.0 * scale[:, 0].astype(np.float64) / size[1]


def largest_reduction(step: NDArray[np.float64]) -> NDArray[np.int64]:
    """The largest of REDUCTIONS that is not above `step`, at least 1."""
    return np.array(REDUCTIONS)[np.searchsorted(REDUCTIONS, step, side="right").clip(1) - 1]


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on `device`; to a GPU by way of pinned memory, in the current stream, without waiting."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def read_or_error(path: Path, reduction: int = 1) -> tuple[np.ndarray, BadImageError | None]:
    """An image file's pixels; where it is bad, one black pixel and why."""
    try:
        return read_image(path, reduction), None
    except BadImageError as error:
        return np.zeros((1, 1, 3), np.uint8), error


def size_or_error(path: Path) -> tuple[tuple[int, int], BadImageError | None]:
    """An image file's (h, w) in pixels; where it is bad, (1, 1) and why."""
    try:
        return image_size(path), None
    except BadImageError as error:
        return (1, 1), error


def check_memory(needed: int, device: torch.device) -> None:
    """Raises ValueError where `device` has less than `needed` bytes of free memory."""
    free = free_bytes(device)
    if free is not None and needed > free:
        raise ValueError(
            f"resident: the decoded images take {needed:,} bytes, {device} has {free:,} free: train without --resident"
        )


def free_bytes(device: torch.device) -> int | None:
    """Memory that `device` can still give, bytes; None where the system does not tell."""
    if device.type == "cuda":
        # What torch has reserved and does not use it gives back before it runs out.
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)
