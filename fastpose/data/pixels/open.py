# SPDX-License-Identifier: Apache-2.0
"""Opens the source that has the pixels of some persons: one line for each kind of source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fastpose.data.augmentation import Augmentation
from fastpose.data.boxes import reductions
from fastpose.data.pack.format import pack_of
from fastpose.data.persons import Persons
from fastpose.data.pixels.files import ImageFiles
from fastpose.data.pixels.gpu_jpeg import GpuJpegFiles
from fastpose.data.pixels.packed import PackedImages
from fastpose.data.pixels.resident import ResidentImages
from fastpose.data.pixels.source import PixelOptions, PixelSource
from fastpose.data.reading import AS_STORED, Reading
from fastpose.device import available_cores, making_device, require_cuda
from fastpose.option import OptionError
from fastpose.progress import CountedProgress

NOT_AUGMENTED = Augmentation(rotation=0.0, scale_min=1.0, scale_max=1.0, flip=0.0)


def open_pixels(
    persons: Persons,
    size: tuple[int, int],
    options: PixelOptions,
    device: torch.device,
    augmentation: Augmentation | None = None,
) -> PixelSource:
    """The source of the pixels of the persons' images: files or a pack, as they are needed or all at once beforehand.

    Args:
        persons: whose images are wanted.
        size: (h, w) of the crops that they are for.
        options: see `PixelOptions`.
        device: where batches are wanted.
        augmentation: what the crops are drawn with; None for evaluation.

    Raises:
        ValueError: the GPU is to decode, and it or nvImageCodec is missing; too little memory for all of
            the images; the crops need more of the images than a pack has.
        BadImageError: the images are to be resident, one is bad, and `on_bad_image` is "error".
        PackError: see PackedImages.
    """
    threads = options.decode_threads or (2 if device.type == "cpu" else available_cores())
    if options.decoder == "gpu":
        require_cuda("decoder gpu", device)
    device, paths, reading = making_device(device), persons.image_paths, persons.reading
    crops = augmentation or NOT_AUGMENTED
    if found := pack_of(paths):
        return _open_pack(found[0], paths, size, options, device, crops, threads)
    reduction = None
    if options.reduced_decode and options.decoder == "cpu":
        reduction = reductions(persons, size, crops.scale_min, half_body=crops.half_body > 0.0)
    cpu = options.decoder == "cpu"
    files = open_images(paths, threads, reduction, reading) if cpu else GpuJpegFiles(paths, device, threads, reading)
    if not options.resident:
        return files
    return ResidentImages.from_files(
        paths,
        device,
        threads,
        decoder=files,
        reduction=reduction,
        reading=reading,
        on_bad_image=options.on_bad_image,
        progress=_decoding(device, len(paths)),
    )


def _open_pack(
    root: Path,
    paths: Sequence[Path],
    size: tuple[int, int],
    options: PixelOptions,
    device: torch.device,
    crops: Augmentation,
    threads: int,
) -> PixelSource:
    if options.decoder == "gpu":
        raise OptionError("decoder", f"the GPU decodes files, and {root} is a pack: leave --decoder out")
    packed = PackedImages(paths, threads)
    packed.margins.check(root, size, crops)
    if packed.margins.reduce and not options.reduced_decode:
        raise OptionError(
            "reduced_decode",
            f"the pack {root} holds reduced pixels, and this network (or --reduced_decode false) wants those of full "
            "resolution: use the image files, or fastpose pack --reduced_decode false",
        )
    if not options.resident:
        return packed
    names = [str(path) for path in paths]
    return ResidentImages.from_source(
        packed,
        packed.sizes,
        device,
        names,
        on_bad_image=options.on_bad_image,
        progress=_decoding(device, len(paths)),
    )


def open_images(
    paths: Sequence[Path],
    threads: int = 2,
    reduction: NDArray[np.int64] | None = None,
    reading: Reading = AS_STORED,
) -> PixelSource:
    """The source that has the images of `Persons.image_paths`: files, read as ImageFiles says, or a pack."""
    return PackedImages(paths, threads) if pack_of(paths) else ImageFiles(paths, threads, reduction, reading)


def _decoding(device: torch.device, images: int) -> Callable[[int, int], None]:
    progress = CountedProgress(f"decoding into the memory of {device}", "images", images)
    return lambda done, total: progress.show(done)
