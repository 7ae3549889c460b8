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
from fastpose.data.images import BadImageError
from fastpose.data.pack.format import pack_of
from fastpose.data.persons import Persons
from fastpose.data.pixels.files import ImageFiles
from fastpose.data.pixels.gpu_jpeg import GpuJpegFiles
from fastpose.data.pixels.packed import PackedImages
from fastpose.data.pixels.resident import ResidentImages, bytes_at_peak, free_bytes, sizes_of_files
from fastpose.data.pixels.source import PixelOptions, PixelSource
from fastpose.data.reading import AS_STORED, Reading
from fastpose.device import available_cores, making_device, require_cuda
from fastpose.ending import print_log
from fastpose.option import OptionError
from fastpose.progress import CountedProgress
from fastpose.ranks import ALONE, Ranks

NOT_AUGMENTED = Augmentation(rotation=0.0, scale_min=1.0, scale_max=1.0, flip=0.0)


def open_pixels(
    persons: Persons,
    size: tuple[int, int],
    options: PixelOptions,
    device: torch.device,
    augmentation: Augmentation | None = None,
    *,
    ranks: Ranks = ALONE,
    batch_size: int = 1,
) -> PixelSource:
    """The source of the pixels of the persons' images: files or a pack, as they are needed or all at once beforehand.

    Of several ranks each keeps as resident, for evaluation, what its batches need; for training all images or, if one
    of the ranks has too little memory for that, every `count`-th image.

    Args:
        persons: whose images are wanted.
        size: (h, w) of the crops that they are for.
        options: see `PixelOptions`.
        device: where batches are wanted.
        augmentation: what the crops are drawn with; None for evaluation.
        ranks: which rank of the run asks; all do at the same time.
        batch_size: persons in an evaluation batch.

    Raises:
        ValueError: the GPU is to decode, and it or nvImageCodec is missing; too little memory for all of
            the images; the crops need more of the images than a pack has.
        BadImageError: the images are to be resident, one is bad, and `on_bad_image` is "error".
        PackError: see PackedImages.
    """
    threads = options.decode_threads or (2 if device.type == "cpu" else max(1, available_cores() // ranks.local_count))
    if options.decoder == "gpu":
        require_cuda("decoder gpu", device)
    device, paths, reading = making_device(device), persons.image_paths, persons.reading
    crops = augmentation or NOT_AUGMENTED
    source: PixelSource
    errors: dict[int, BadImageError] = {}
    if found := pack_of(paths):
        source = _open_pack(found[0], paths, size, options, crops, threads)
        if options.resident:
            sizes = source.sizes
    else:
        reduction = None
        if options.reduced_decode and options.decoder == "cpu":
            reduction = reductions(persons, size, crops.scales[0], half_body=crops.half_body > 0.0)
        if options.decoder == "cpu":
            source = ImageFiles(paths, threads, reduction, reading)
        else:
            source = GpuJpegFiles(paths, device, threads, reading)
        if options.resident:
            sizes, errors = sizes_of_files(paths, threads, reduction, reading)
    if not options.resident:
        return source
    kept = _of_own_batches(persons, batch_size, ranks) if augmentation is None else _share(sizes, device, ranks)
    names = [str(path) for path in paths]
    progress = _decoding(device, len(paths) if kept is None else int(kept.sum()))
    return ResidentImages.from_source(
        source, sizes, device, names, errors, kept=kept, on_bad_image=options.on_bad_image, progress=progress
    )


def _of_own_batches(persons: Persons, batch_size: int, ranks: Ranks) -> NDArray[np.bool_] | None:
    """Which images an evaluation needs in this rank, see PoseLoader; None: all."""
    if ranks.count == 1:
        return None
    mine = np.arange(len(persons)) // batch_size % ranks.count == ranks.rank
    kept = np.zeros(len(persons.image_paths), bool)
    kept[persons.image_index[mine]] = True
    return kept


def _share(sizes: NDArray[np.int64], device: torch.device, ranks: Ranks) -> NDArray[np.bool_] | None:
    """Which images a training keeps in this rank; None: all. Prints which it is."""
    if ranks.count == 1:
        return None
    free, needed = free_bytes(device), bytes_at_peak(sizes)
    if free is not None and device.type == "cpu":
        free //= ranks.local_count  # all of a machine's ranks have this memory
    if all(ranks.all_of(free is None or needed <= free)):
        print_log(f"resident: each of the {ranks.count} ranks keeps all {len(sizes)} training images")
        return None
    print_log(
        f"resident: each of the {ranks.count} ranks keeps a share of the {len(sizes)} training images: all of them "
        f"take {needed:,} bytes of its memory, more than a rank has"
    )
    return np.arange(len(sizes)) % ranks.count == ranks.rank


def _open_pack(
    root: Path,
    paths: Sequence[Path],
    size: tuple[int, int],
    options: PixelOptions,
    crops: Augmentation,
    threads: int,
) -> PackedImages:
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
    return packed


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
