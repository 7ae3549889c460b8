# SPDX-License-Identifier: Apache-2.0
"""Where the pixels of a batch come from: image files that threads decode, or a whole data set, decoded already."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import cv2
import numpy as np
import torch
from torch import Tensor

from fastpose.data.images import BadImageError, image_size, read_image
from fastpose.image_batch import ImageBatch

CHUNK_BYTES = 256 << 20  # decoded at once while a data set moves into memory


@dataclass(frozen=True)
class Pixels:
    """What a pixel source was asked for.

    Attributes:
        images: the pixels, on the device asked for. In the place of a bad image stands one black pixel.
        index: int64 [B] on that device, where in `images` each asked-for image lies.
        errors: what is wrong with the bad ones among the asked-for images, by number.
    """

    images: ImageBatch
    index: Tensor
    errors: Mapping[int, BadImageError]


class PixelSource(Protocol):
    """Anything that has pixels: a packed store or another decoder needs only this one method."""

    def load(self, images: Tensor, device: torch.device) -> Pixels:
        """Returns the pixels of `images`, int64 [B] on the CPU, indices into `Persons.image_paths` that may repeat.

        On CUDA the work goes to the current stream, and the host does not wait for it if it need not.
        """
        ...


class ImageFiles:
    """Image files, decoded by a pool of threads, each once per batch.

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

    def load(self, images: Tensor, device: torch.device) -> Pixels:
        distinct, index = torch.unique(images, return_inverse=True)
        numbers = distinct.tolist()
        decoded = list(self._pool.map(self._read, numbers))
        batch = ImageBatch.from_list(
            [pixels for pixels, _ in decoded], pin_memory=device.type == "cuda", executor=self._pool
        )
        errors = {n: error for n, (_, error) in zip(numbers, decoded, strict=True) if error is not None}
        return Pixels(batch.to(device, non_blocking=True), to_device(index, device), errors)

    def _read(self, image: int) -> tuple[np.ndarray, BadImageError | None]:
        return read_or_error(self.paths[image])


class ResidentImages:
    """A whole data set in one `ImageBatch` on the training device: a batch copies no pixel, only its indices.

    Args:
        images: every image of the data set, on the device that will ask for them.
        errors: what was wrong with the images in whose place there is a black pixel, by number.
    """

    def __init__(self, images: ImageBatch, errors: Mapping[int, BadImageError] | None = None) -> None:
        self.images = images
        self.errors = errors or {}

    def load(self, images: Tensor, device: torch.device) -> Pixels:
        if self.images.device.type == "cuda":
            # Made in another stream than the one that reads them: the allocator must not give them away before that.
            for table in (self.images.data, self.images.offsets, self.images.sizes):
                table.record_stream(torch.cuda.current_stream(table.device))
        bad = self.errors.keys() & set(images.tolist()) if self.errors else ()
        return Pixels(self.images, to_device(images, device), {image: self.errors[image] for image in bad})

    @classmethod
    def from_files(
        cls,
        paths: Sequence[Path],
        device: torch.device | str,
        threads: int = 2,
        *,
        decoder: PixelSource | None = None,
        on_bad_image: Literal["error", "skip"] = "error",
        progress: Callable[[int, int], None] | None = None,
    ) -> ResidentImages:
        """Decodes files into the memory of `device`, in chunks.

        A pass over the files' headers finds out how large the buffer must be. At its peak the device holds the decoded
        data set and one chunk (256 MiB, or one image if that is larger), where the device decodes that chunk twice, and
        the host one chunk twice.

        Args:
            paths: one file per image.
            device: where the pixels are to stay.
            threads: threads that read headers and decode.
            decoder: what decodes `paths`; None: `ImageFiles(paths, threads)`.
            on_bad_image: "error" raises, "skip" remembers the error for `load`.
            progress: called after each chunk with the images done and all of them.

        Raises:
            BadImageError: a file cannot be read and `on_bad_image` is "error".
            ValueError: the device has too little free memory; the message says how much there is and how much it takes.
        """
        device = torch.device(device)
        source = ImageFiles(paths, threads) if decoder is None else decoder
        with ThreadPoolExecutor(threads, thread_name_prefix="fastpose-decode") as pool:
            headers = list(pool.map(size_or_error, paths))
        errors = {n: error for n, (_, error) in enumerate(headers) if error is not None}
        if errors and on_bad_image == "error":
            raise next(iter(errors.values()))
        sizes = np.array([size for size, _ in headers], np.int32).reshape(-1, 2)
        lengths = 3 * sizes.astype(np.int64).prod(axis=1)
        ends = np.cumsum(lengths)
        total = int(lengths.sum())
        check_memory(total + 2 * min(total, max(CHUNK_BYTES, int(lengths.max(initial=0)))), device)
        data = torch.empty(total, dtype=torch.uint8, device=device)
        first = 0
        while first < len(paths):
            stop = max(first + 1, int(np.searchsorted(ends, ends[first] - lengths[first] + CHUNK_BYTES, side="right")))
            chunk = source.load(torch.arange(first, stop), device)
            errors |= chunk.errors
            places, found = chunk.images.offsets.tolist(), chunk.images.sizes.tolist()
            for image, at in enumerate(chunk.index.tolist(), first):
                if image not in errors and found[at] != sizes[image].tolist():
                    errors[image] = BadImageError(
                        f"{paths[image]}: expected {sizes[image].tolist()} px as its header says, got {found[at]}"
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
                progress(first, len(paths))
        # The check of the tables waits for the current stream: from here on every stream may read the pixels.
        tables = torch.from_numpy(ends - lengths).to(device), torch.from_numpy(sizes).to(device)
        return cls(ImageBatch(data, *tables), errors)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on `device`; to a GPU by way of pinned memory, in the current stream, without waiting."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def read_or_error(path: Path) -> tuple[np.ndarray, BadImageError | None]:
    """An image file's pixels; where it is bad, one black pixel and why."""
    try:
        return read_image(path), None
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
