# SPDX-License-Identifier: Apache-2.0
"""A whole data set, decoded already, in the memory of the training device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastpose.data.images import BadImageError, image_size
from fastpose.data.pixels.files import ImageFiles
from fastpose.data.pixels.source import DecodeThreads, Pixels, PixelSource
from fastpose.data.reading import AS_STORED, Reading
from fastpose.device import to_device
from fastpose.ops.image_batch import ImageBatch
from fastpose.option import OptionError

CHUNK_BYTES = 256 << 20  # decoded at once while a data set moves into memory


class ResidentImages:
    """A whole data set in one `ImageBatch` on the training device: a batch copies no pixel, only its indices.

    Args:
        images: every image of the data set, on the device that will ask for them.
        errors: what was wrong with the images in whose place there is a black pixel, by number.
        frame: float32 [N, 3] on that device, where the images lie in their files, see `Pixels`.
        kept: whether each image is kept here, bool [N], and not by another rank alone; None: all are.
    """

    def __init__(
        self,
        images: ImageBatch,
        errors: Mapping[int, BadImageError] | None = None,
        frame: Tensor | None = None,
        kept: NDArray[np.bool_] | None = None,
    ) -> None:
        self.images = images
        self.errors = errors or {}
        self.frame = frame
        self.kept = kept

    def load(self, images: Tensor, device: torch.device) -> Pixels:
        if self.kept is not None and not self.kept[images.numpy()].all():
            raise ValueError("images: expected those that this rank keeps, got another's")
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
        reading: Reading = AS_STORED,
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
            decoder: what decodes `paths`; None: `ImageFiles(paths, threads, reduction, reading)`.
            reduction: by how much the decoder reduces each file, see ImageFiles; None: not.
            reading: how the decoder makes pixels of files.
            on_bad_image: "error" raises, "skip" remembers the error for `load`.
            progress: called after each chunk with the images done and all of them.

        Raises:
            BadImageError: a file cannot be read and `on_bad_image` is "error".
            ValueError: the device has too little free memory; the message says how much there is and how much it takes.
        """
        source = ImageFiles(paths, threads, reduction, reading) if decoder is None else decoder
        sizes, errors = sizes_of_files(paths, threads, reduction, reading)
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
        kept: NDArray[np.bool_] | None = None,
        on_bad_image: Literal["error", "skip"] = "error",
        progress: Callable[[int, int], None] | None = None,
    ) -> ResidentImages:
        """Moves all images of another source, or some of them, into the memory of `device`, in chunks.

        At its peak the device holds the decoded data set and one chunk (256 MiB, or one image if that is larger), where
        the device decodes that chunk twice, and the host one chunk twice.

        Args:
            source: where the pixels come from.
            sizes: (h, w) of each of its images, [N, 2].
            device, on_bad_image, progress: as for `from_files`.
            names: what to call each image in messages.
            errors: images that are known to be bad, by number; they need no more than 1 x 1 px.
            kept: which images to move, bool [N]; None: all.

        Raises:
            BadImageError, ValueError: as from `from_files`; or an image has another size than was said.
        """
        device, errors = torch.device(device), dict(errors or {})
        numbers = np.arange(len(sizes)) if kept is None else np.flatnonzero(kept)
        errors = {image: error for image, error in errors.items() if kept is None or kept[image]}
        if errors and on_bad_image == "error":
            raise next(iter(errors.values()))
        sizes = np.where(np.isin(np.arange(len(sizes)), numbers)[:, None], sizes, 1).astype(np.int32)
        check_memory(bytes_at_peak(sizes), device)
        lengths = 3 * sizes.astype(np.int64).prod(axis=1)
        ends = np.cumsum(lengths)
        data = torch.empty(int(lengths.sum()), dtype=torch.uint8, device=device)
        taken = np.cumsum(lengths[numbers])
        frame: Tensor | None = None
        first = 0
        while first < len(numbers):
            before = taken[first] - lengths[numbers[first]]
            stop = max(first + 1, int(np.searchsorted(taken, before + CHUNK_BYTES, side="right")))
            chunk_numbers = torch.from_numpy(numbers[first:stop])
            chunk = source.load(chunk_numbers, device)
            errors |= chunk.errors
            if chunk.frame is not None:
                if frame is None:
                    frame = torch.zeros(len(sizes), 3, device=device)
                frame[to_device(chunk_numbers, device)] = chunk.frame[chunk.index]
            places, found = chunk.images.offsets.tolist(), chunk.images.sizes.tolist()
            for image, at in zip(chunk_numbers.tolist(), chunk.index.tolist(), strict=True):
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
                progress(first, len(numbers))
        # The check of the tables waits for the current stream: from here on every stream may read the pixels.
        tables = torch.from_numpy(ends - lengths).to(device), torch.from_numpy(sizes).to(device)
        return cls(ImageBatch(data, *tables), errors, frame, kept)


def sizes_of_files(
    paths: Sequence[Path], threads: int, reduction: NDArray[np.int64] | None, reading: Reading
) -> tuple[NDArray[np.int64], dict[int, BadImageError]]:
    """The (h, w) of each image as it is decoded, [N, 2], by the headers of the files; 1 x 1 for bad ones, and why."""
    with DecodeThreads(threads) as pool:
        headers = pool.each(lambda path: size_or_error(path, reading), paths)
    sizes = np.array([size for size, _ in headers], np.int64).reshape(-1, 2)
    if reduction is not None:
        sizes = -(-sizes // reduction[:, None])
    return sizes, {n: error for n, (_, error) in enumerate(headers) if error is not None}


def size_or_error(path: Path, reading: Reading) -> tuple[tuple[int, int], BadImageError | None]:
    """An image file's (h, w) in pixels; if it is bad, (1, 1) and why."""
    try:
        return image_size(path, reading), None
    except BadImageError as error:
        return (1, 1), error


def bytes_at_peak(sizes: NDArray[Any]) -> int:
    """The memory that `from_source` takes of a device for images of these (h, w), [N, 2]."""
    lengths = 3 * sizes.astype(np.int64).prod(axis=1)
    total = int(lengths.sum())
    return total + 2 * min(total, max(CHUNK_BYTES, int(lengths.max(initial=0))))


def check_memory(needed: int, device: torch.device) -> None:
    """Raises ValueError where `device` has less than `needed` bytes of free memory."""
    free = free_bytes(device)
    if free is not None and needed > free:
        raise OptionError(
            "resident",
            f"the decoded images take {needed:,} bytes, {device} has {free:,} free: train without --resident",
        )


def free_bytes(device: torch.device) -> int | None:
    """Memory that `device` can still give, bytes; None if the system does not say."""
    if device.type == "cuda":
        # What torch has reserved and does not use it gives back before it runs out.
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)
