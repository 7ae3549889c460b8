# SPDX-License-Identifier: Apache-2.0
"""JPEG files decoded by the GPU: nvImageCodec, an optional dependency."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from fastpose.data.images import read_checked, turned_tensor
from fastpose.data.pixels.files import read_or_error
from fastpose.data.pixels.source import DecodeThreads, Pixels
from fastpose.data.reading import AS_STORED, Reading
from fastpose.device import to_device
from fastpose.ops.image_batch import ImageBatch
from fastpose.option import OptionError

# Beside a torch for CUDA 12 the package is nvidia-nvimgcodec-cu12.
INSTALL = 'pip install "nvidia-nvimgcodec-cu13[nvjpeg]"'


def import_nvimgcodec() -> ModuleType:
    """The module of nvImageCodec.

    Raises:
        ValueError: it cannot be imported; the message says how to install it.
    """
    try:
        from nvidia import nvimgcodec
    except ImportError as error:
        raise OptionError("decoder", f"gpu needs nvImageCodec ({error}): {INSTALL}") from error
    return nvimgcodec


class GpuJpegFiles:
    """Image files whose JPEGs nvImageCodec decodes, each once per batch; threads read them.

    What it does not decode (other formats, damaged files) OpenCV does, or says what is wrong. Pixels are not OpenCV's
    to the bit: nvJPEG's inverse DCT and chroma filter are others.

    Args:
        paths: one file per image.
        device: where to decode. On the CPU nvImageCodec uses libjpeg-turbo.
        threads: threads that read files.
        reading: how files become pixels.

    Raises:
        ValueError: nvImageCodec is missing, or cannot decode on `device`.
    """

    def __init__(
        self, paths: Sequence[Path], device: torch.device | str, threads: int = 2, reading: Reading = AS_STORED
    ) -> None:
        self.paths = paths
        self.reading = reading
        self.device = torch.device(device)
        self._codec = codec = import_nvimgcodec()
        self._threads = threads
        self._one_at_a_time = threading.Lock()
        self._pool = DecodeThreads(threads)
        if self.device.type == "cuda":
            number = torch.cuda.current_device() if self.device.index is None else self.device.index
            kinds = [codec.HW_GPU_ONLY, codec.GPU_ONLY, codec.HYBRID_CPU_GPU]
        else:
            number, kinds = codec.NVIMGCODEC_DEVICE_CPU_ONLY, [codec.CPU_ONLY]
        try:
            self._decoder = codec.Decoder(device_id=number, backends=[codec.Backend(kind) for kind in kinds])
        except RuntimeError as error:
            raise ValueError(f"decoder: nvImageCodec cannot use {self.device}: {error}") from error
        self._params = codec.DecodeParams(apply_exif_orientation=False, color_spec=codec.ColorSpec.SRGB)
        # Without nvJPEG it loads all the same, and would leave every file to OpenCV.
        sample = codec.CodeStream(cv2.imencode(".jpg", np.full((64, 64, 3), 90, np.uint8))[1].tobytes())
        if self._decode([sample])[0] is None:
            raise OptionError("decoder", f"nvImageCodec finds no JPEG decoder for {self.device}; nvJPEG: {INSTALL}")

    def __reduce__(self) -> tuple[type[GpuJpegFiles], tuple[Any, ...]]:
        return GpuJpegFiles, (
            self.paths,
            self.device,
            self._threads,
            self.reading,
        )  # another process has a decoder of its own

    def load(self, images: Tensor, device: torch.device) -> Pixels:
        distinct, index = torch.unique(images, return_inverse=True)
        numbers = distinct.tolist()
        opened = self._pool.each(self._open, numbers)
        with self._one_at_a_time:  # nvImageCodec does not say that a decoder may be used by two threads
            return self._load(numbers, opened, index, device)

    def _load(self, numbers: list[int], opened: list[tuple[Any, int]], index: Tensor, device: torch.device) -> Pixels:
        decoded = iter(self._decode([stream for stream, _ in opened if stream is not None]))
        stored = [(None if stream is None else next(decoded), orientation) for stream, orientation in opened]
        pictures = [None if picture is None else turned_tensor(picture, turn) for picture, turn in stored]
        left = [n for n, picture in zip(numbers, pictures, strict=True) if picture is None]
        read = dict(
            zip(left, self._pool.each(lambda n: read_or_error(self.paths[n], 1, self.reading), left), strict=True)
        )
        tensors = [
            to_device(torch.from_numpy(read[n][0]), device) if picture is None else picture
            for n, picture in zip(numbers, pictures, strict=True)
        ]
        sizes = torch.tensor([tensor.shape[:2] for tensor in tensors], dtype=torch.int32).reshape(-1, 2)
        ends = sizes.to(torch.int64).prod(1).cumsum(0) * 3
        offsets = torch.cat([ends.new_zeros(1), ends])[:-1]
        # nvImageCodec documents decoding into memory of its own only, so the batch costs one more copy on the device.
        data = torch.cat([tensor.reshape(-1) for tensor in tensors])
        if device.type == "cuda":
            # nvJPEG's hardware decoder is reported not to order its writes behind earlier reads of the same memory. So
            # nothing may still read the pictures when they go back to its pool; this thread has time to wait.
            torch.cuda.current_stream(device).synchronize()
        return Pixels(
            ImageBatch._trusted(data, to_device(offsets, device), to_device(sizes, device)),
            to_device(index, device),
            {n: error for n, (_, error) in read.items() if error is not None},
        )

    def _open(self, image: int) -> tuple[Any, int]:
        """The file as nvImageCodec wants it, and the orientation to turn it by; None if it is not a whole JPEG, in grey
        or three colours."""
        try:
            data, header = read_checked(self.paths[image], self.reading)
            stream = self._codec.CodeStream(data) if header.format == "JPEG" else None
        except (OSError, ValueError, RuntimeError):
            return None, 1
        if stream is None or stream.num_channels not in (1, 3):
            return None, 1
        return stream, header.orientation if self.reading.upright else 1

    def _decode(self, streams: list[Any]) -> list[Tensor | None]:
        """uint8 [h, w, 3] on the device for each stream, in the current CUDA stream; None where it could not."""
        if not streams:
            return []
        on_gpu = self.device.type == "cuda"
        queue = torch.cuda.current_stream(self.device).cuda_stream if on_gpu else 0
        decoded = self._decoder.decode(streams, params=self._params, cuda_stream=queue)
        tensors = []
        for picture in decoded:
            good = picture is not None and picture.ndim == 3 and picture.shape[2] == 3
            # On the CPU its DLPack asks for CUDA all the same.
            convert = torch.from_dlpack if on_gpu else (lambda image: torch.from_numpy(np.asarray(image)))
            tensors.append(convert(picture) if good else None)
        return tensors
