# SPDX-License-Identifier: Apache-2.0
"""What has the pixels of a batch: the one method that every source of pixels has, and the options of all of them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import cv2
import torch
from torch import Tensor

from fastpose.data.images import BadImageError
from fastpose.ops.image_batch import ImageBatch
from fastpose.option import check_at_least, option

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class PixelOptions:
    """Where pixels come from, and how they are decoded."""

    on_bad_image: Literal["error", "skip"] = option(
        "error",
        "what to do with an image that cannot be decoded: stop with its name, or skip its persons, count and report",
    )
    decoder: Literal["cpu", "gpu"] = option(
        "cpu",
        "what decodes JPEG files: threads on the CPU, or nvImageCodec on the GPU (pip install "
        "'nvidia-nvimgcodec-cu13[nvjpeg]'), whose pixels differ from the CPU's by a few grey levels",
    )
    reduced_decode: bool = option(
        True,
        "decode images at 1/2, 1/4 or 1/8 of their size if every crop shrinks them at least that much: quicker, and "
        "crops are less aliased; done by the CPU's decoder only; evaluation does as training did",
    )
    decode_threads: int = option(
        0, "threads that read and decode image files, count; 0: one per core for a GPU, 2 for the CPU, which trains too"
    )
    resident: bool = option(
        False,
        "keep the decoded images in the memory of the training device: decode each file once, before the first epoch",
    )
    prefetch: int = option(
        2, "batches prepared ahead of the one that trains, and steps that the host may be ahead of a GPU, count"
    )

    def __post_init__(self) -> None:
        check_at_least(self, 0, "decode_threads")
        check_at_least(self, 1, "prefetch")


@dataclass(frozen=True)
class Pixels:
    """What a pixel source was asked for.

    Attributes:
        images: the pixels, on the device asked for. A bad image is one black pixel instead.
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


class DecodeThreads(Executor):
    """Threads that read and decode, and share the items of a batch.

    They start when they are first needed, in each process by itself: threads do not survive a fork, and a pickle, as of
    DataLoader workers that are spawned, has only their number.

    Switches OpenCV's own threads off, in the whole process and for good: `cv2.setNumThreads(0)`.
    """

    def __init__(self, threads: int) -> None:
        if threads < 1:
            raise ValueError(f"threads: expected at least 1, got {threads}")
        # Our threads already fill the cores; with OpenCV's own pool on top they would wait for one another.
        cv2.setNumThreads(0)
        self._count = threads
        self._process, self._pool = os.getpid(), self._new_pool()

    def __reduce__(self) -> tuple[type[DecodeThreads], tuple[int]]:
        return DecodeThreads, (self._count,)

    def _new_pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._count, thread_name_prefix="fastpose-decode")

    def submit(self, fn: Callable[..., Result], /, *args: Any, **kwargs: Any) -> Future[Result]:
        if self._process != os.getpid():
            # Two threads that come here at once may make a pool each. No lock, as one may have been held at the fork.
            self._pool = self._new_pool()
            self._process = os.getpid()
        try:
            return self._pool.submit(fn, *args, **kwargs)
        except RuntimeError as error:
            if "start new thread" not in str(error):
                raise
            raise OSError(
                errno.EAGAIN, f"the system refuses a thread to decode images ({self._count} are wanted): {error}"
            ) from error

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        if self._process == os.getpid():
            self._pool.shutdown(wait, cancel_futures=cancel_futures)

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
