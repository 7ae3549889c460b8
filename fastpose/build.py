# SPDX-License-Identifier: Apache-2.0
"""From options to the parts of a run: annotations, batches, network."""

from __future__ import annotations

import dataclasses
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from fastpose.checkpoint import CheckpointError, load_checkpoint
from fastpose.config import BEFORE, TrainOptions, from_plain
from fastpose.data import synthetic
from fastpose.data.augmentation import Augmentation
from fastpose.data.gpu_jpeg import GpuJpegFiles
from fastpose.data.loader import PoseLoader
from fastpose.data.mpii import read_mpii
from fastpose.data.packed import PackedImages, is_pack, margins_of, pack_of, read_index, read_packed_persons
from fastpose.data.persons import Persons
from fastpose.data.pixel_sources import ImageFiles, PixelSource, ResidentImages, reductions
from fastpose.engine import require_cuda, uses_bfloat16
from fastpose.models import load_imagenet_backbone, pose_resnet
from fastpose.skeletons import MPII, Skeleton
from fastpose.synthetic import progress_printer

# The options that name files below the data root.
DATA_OPTIONS = ("train_annotations", "valid_annotations", "head_boxes", "split_list", "images")


def generate_missing_data(options: TrainOptions) -> None:
    """Draws the synthetic data set that the options ask for, unless just that, or a pack, is in the data root."""
    if options.synthetic_persons and not is_pack(options.resolved_data_root()):
        root, persons = options.resolved_data_root(), options.synthetic_persons
        found = synthetic.generate(root, persons=persons, seed=options.synthetic_seed, progress=progress_printer(root))
        if not found.created:
            print(f"found {persons} synthetic persons in {root}", flush=True)


def read_split(options: TrainOptions, split: Literal["train", "valid"]) -> Persons:
    """Reads the training or validation annotations that the options name, or that are in the pack.

    Raises:
        FileNotFoundError: a file or folder is missing; names the option and the path.
        ValueError: see read_mpii; or the data root is a pack of other data than the options name.
        PackError: the data root is a pack that is unfinished or damaged.
    """
    if is_pack(root := options.resolved_data_root()):
        packed = read_index(root)["options"]
        for name in DATA_OPTIONS:
            if (given := getattr(options, name)) not in (packed[name], getattr(TrainOptions, name)):
                raise ValueError(f"{name}: the pack {root} holds the data of {packed[name]!r}, got {given!r}")
        return read_packed_persons(root, split)
    annotations = options.data_path(f"{split}_annotations")
    official = annotations.suffix == ".mat"
    with_heads = bool(options.head_boxes) and split == "valid" and not official
    check_is_file(f"{split}_annotations", annotations)
    if options.split_list:
        check_is_file("split_list", options.data_path("split_list"))
    if with_heads:
        check_is_file("head_boxes", options.data_path("head_boxes"))
    return read_mpii(
        annotations,
        options.data_path("images"),
        split=split if official else None,
        split_list=options.data_path("split_list") if options.split_list else None,
        head_boxes=options.data_path("head_boxes") if with_heads else None,
        missing_images=options.missing_images,
    )


def check_is_file(name: str, path: Path) -> None:
    """Raises FileNotFoundError, naming the option, where there is no such file."""
    if not path.is_file():
        raise FileNotFoundError(f"{name}: no file {path}")


def describe(persons: Persons) -> str:
    """Tells these annotations from others, wherever they are stored: the number of persons and a checksum."""
    names = "\n".join(path.name for path in persons.image_paths).encode()
    arrays = (persons.image_index, persons.center, persons.scale, persons.keypoints, persons.visible)
    return f"{len(persons)} persons, checksum {zlib.crc32(b''.join([names, *(a.tobytes() for a in arrays)])):08x}"


def check_batches(persons: int, options: TrainOptions) -> None:
    """Refuses training batches that batch normalisation cannot do anything with.

    Raises:
        ValueError: a batch of one person at 32 x 32 px, where the ResNet's last layers have one value per channel.
    """
    if options.size == (32, 32) and 1 in (options.batch_size, persons % options.batch_size):
        raise ValueError(
            f"batch_size: {persons} persons in batches of {options.batch_size} leave a batch of one, and at size 32 32 "
            "one person is too little for batch normalisation: choose another --batch_size or a larger --size"
        )


def make_loader(persons: Persons, options: TrainOptions, device: torch.device, *, training: bool) -> PoseLoader:
    """Batches for training (augmented, in random order) or for evaluation."""
    augmentation = Augmentation(options.rotation, (options.scale_min, options.scale_max), options.flip)
    return PoseLoader(
        persons,
        make_source(persons, options, device, training=training),
        options.size,
        options.batch_size if training else options.eval_batch_size,
        augmentation=augmentation if training else None,
        seed=options.seed,
        device=device,
        prefetch=options.prefetch,
        on_bad_image=options.on_bad_image,
        memory_format=memory_format(options, device),
        # Autocast would round the crops for the first convolution anyway; written rounded, they are half the bytes.
        dtype=torch.bfloat16 if uses_bfloat16(options, device) else torch.float32,
    )


def make_source(
    persons: Persons, options: TrainOptions, device: torch.device, *, training: bool = False
) -> PixelSource:
    """Where the pixels of the persons' images come from: files or a pack, as they are used or all at once beforehand.

    Raises:
        ValueError: the GPU is to decode, and there is none or nvImageCodec is missing; too little memory for them all;
            the options need more of the images than a pack holds.
        BadImageError: the images are to be resident, one is bad, and `on_bad_image` is "error".
        PackError: see PackedImages.
    """
    threads = options.decode_threads or (available_cores() if device.type == "cuda" else 2)
    if options.decoder == "gpu":
        require_cuda("decoder gpu", device)
    paths = persons.image_paths
    show = decoding_printer(device)
    if found := pack_of(paths):
        if options.decoder == "gpu":
            raise ValueError(f"decoder: the GPU decodes files, and {found[0]} is a pack: leave --decoder out")
        packed = PackedImages(paths, threads)
        rotation, low, high = (options.rotation, options.scale_min, options.scale_max) if training else (0.0, 1.0, 1.0)
        packed.margins.check(found[0], options.size, rotation, low, high)
        if packed.margins.reduce and not options.reduced_decode:
            raise ValueError(
                f"reduced_decode: the pack {found[0]} holds reduced pixels, and this network (or --reduced_decode "
                "false) wants those of full resolution: use the image files, or fastpose pack --reduced_decode false"
            )
        if not options.resident:
            return packed
        names = [str(path) for path in paths]
        return ResidentImages.from_source(
            packed, packed.sizes, device, names, on_bad_image=options.on_bad_image, progress=show
        )
    reduction = None
    if options.reduced_decode and options.decoder == "cpu":
        reduction = reductions(persons, options.size, options.scale_min if training else 1.0)
    files = ImageFiles(paths, threads, reduction) if options.decoder == "cpu" else GpuJpegFiles(paths, device, threads)
    if not options.resident:
        return files
    return ResidentImages.from_files(
        paths, device, threads, decoder=files, reduction=reduction, on_bad_image=options.on_bad_image, progress=show
    )


def as_packed(options: TrainOptions) -> TrainOptions:
    """The options of a training, with `reduced_decode` off where its pixels come from a pack in full resolution: later
    evaluations on files must not reduce them then."""
    root = options.resolved_data_root()
    if is_pack(root) and not margins_of(root, "train").reduce:
        return dataclasses.replace(options, reduced_decode=False)
    return options


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def decoding_printer(device: torch.device) -> Callable[[int, int], None]:
    """A progress callback for `ResidentImages.from_files`: a line at every tenth of the images."""
    told = 0

    def show(done: int, total: int) -> None:
        nonlocal told
        if done * 10 // total > told:
            told = done * 10 // total
            print(f"{done}/{total} images decoded into the memory of {device}", flush=True)

    return show


def memory_format(options: TrainOptions, device: torch.device) -> torch.memory_format:
    """The layout that option `channels_last` asks for."""
    last = options.channels_last == "on" or (options.channels_last == "auto" and device.type == "cuda")
    return torch.channels_last if last else torch.contiguous_format


def make_model(options: TrainOptions, skeleton: Skeleton, device: torch.device) -> nn.Module:
    """The network with random weights drawn from `options.seed`, its backbone's from a file where one is given."""
    torch.manual_seed(options.seed)
    model = pose_resnet(options.depth, options.head, skeleton.num_joints, channels=options.channels)
    if options.backbone_weights:
        check_is_file("backbone_weights", Path(options.backbone_weights))
        load_imagenet_backbone(model, Path(options.backbone_weights))
    return model.to(device, memory_format=memory_format(options, device))  # type: ignore[call-overload]  # not in its stub


def load_model(path: Path, device: torch.device) -> tuple[nn.Module, TrainOptions, Skeleton]:
    """The network of a checkpoint, the options it was trained with and the skeleton of its joints.

    Raises:
        CheckpointError: see load_checkpoint; or the weights or options do not fit this version of fastpose.
    """
    contents = load_checkpoint(path)
    if contents["skeleton"] != MPII.name:
        raise CheckpointError(f"{path}: expected joints of skeleton {MPII.name!r}, got {contents['skeleton']!r}")
    try:
        options = from_plain(TrainOptions, BEFORE | contents["config"])
        if options.decoder == "gpu":  # which reduces nothing; what evaluates now may
            options = dataclasses.replace(options, reduced_decode=False)
        model = make_model(dataclasses.replace(options, backbone_weights=""), MPII, device)
        model.load_state_dict(contents["model"])
    except (TypeError, RuntimeError) as error:
        raise CheckpointError(f"{path}: does not fit this version of fastpose: {error}") from error
    return model, options, MPII
