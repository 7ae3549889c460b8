# SPDX-License-Identifier: Apache-2.0
"""From options to the parts of a run: annotations, batches, network."""

from __future__ import annotations

import dataclasses
import os
import re
import zlib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

import fastpose
from fastpose.checkpoint import CheckpointError, checkpoint_file
from fastpose.config import BEFORE, NetworkOptions, TrainOptions, from_plain
from fastpose.data import synthetic
from fastpose.data.augmentation import Augmentation
from fastpose.data.coco import read_coco
from fastpose.data.gpu_jpeg import GpuJpegFiles
from fastpose.data.loader import PoseLoader, making_device
from fastpose.data.mpii import read_mpii
from fastpose.data.packed import PackedImages, is_pack, margins_of, pack_of, read_index, read_packed_persons
from fastpose.data.persons import Persons
from fastpose.data.pixel_sources import ImageFiles, PixelSource, ResidentImages, reductions
from fastpose.metrics.coco import known_sigmas, require_pycocotools
from fastpose.models import Weights, load_backbone, load_weights, make_own_model, pose_resnet, read_weights
from fastpose.models.own import check_heatmaps
from fastpose.skeletons import COCO, MPII, Skeleton, read_skeleton
from fastpose.step import require_cuda, uses_bfloat16
from fastpose.synthetic import progress_printer

# The options that say what the data are: files below the data root, and their format.
DATA_OPTIONS = (
    "dataset",
    "train_annotations",
    "valid_annotations",
    "head_boxes",
    "detections",
    "split_list",
    "images",
    "valid_images",
)


def generate_missing_data(options: TrainOptions) -> None:
    """Draws the synthetic data set that the options ask for, unless just that, or a pack, is in the data root."""
    if options.synthetic_persons and not is_pack(options.resolved_data_root()):
        root, persons = options.resolved_data_root(), options.synthetic_persons
        found = synthetic.generate(root, persons=persons, seed=options.synthetic_seed, progress=progress_printer(root))
        if not found.created:
            print(f"found {persons} synthetic persons in {root}", flush=True)


def read_split(options: TrainOptions, split: Literal["train", "valid"], skeleton: Skeleton | None = None) -> Persons:
    """Reads the training or validation annotations that the options name, or that are in the pack.

    Args:
        options: of a run.
        split: which.
        skeleton: the joints of the network that is to be evaluated; None: those that the options name.

    Raises:
        FileNotFoundError: a file or folder is missing; names the option and the path.
        ValueError: see read_mpii and read_coco; or the data are not those of the network's joints, or the data root is
            a pack of other data than the options name.
        PackError: the data root is a pack that is unfinished or damaged.
    """
    if is_pack(options.resolved_data_root()):
        return read_pack(options, split, skeleton)
    annotations = options.data_path(f"{split}_annotations")
    check_is_file(f"{split}_annotations", annotations)
    if options.dataset == "coco":
        detections = options.data_path("detections") if options.detections and split == "valid" else None
        if detections:
            check_is_file("detections", detections)
        return read_coco(
            annotations,
            options.images_path(split),
            options.size,
            skeleton=skeleton or chosen_skeleton(options),
            detections=detections,
            missing_images=options.missing_images,
            for_evaluation=split == "valid",
        )
    if skeleton is not None and skeleton.joints != MPII.joints:
        raise ValueError(f"dataset: MPII's format has joints of its own, the network those of {skeleton.name!r}")
    official = annotations.suffix == ".mat"
    with_heads = bool(options.head_boxes) and split == "valid" and not official
    if options.split_list:
        check_is_file("split_list", options.data_path("split_list"))
    if with_heads:
        check_is_file("head_boxes", options.data_path("head_boxes"))
    return read_mpii(
        annotations,
        options.images_path(split),
        split=split if official else None,
        split_list=options.data_path("split_list") if options.split_list else None,
        head_boxes=options.data_path("head_boxes") if with_heads else None,
        missing_images=options.missing_images,
    )


def read_pack(options: TrainOptions, split: Literal["train", "valid"], skeleton: Skeleton | None) -> Persons:
    """As read_split, of the pack in the data root.

    Raises:
        ValueError: it holds other data, other joints, or boxes for inputs of another aspect ratio.
    """
    root, held = options.resolved_data_root(), packed_options(options)
    persons = read_packed_persons(root, split)
    if skeleton is None and options.skeleton:
        skeleton = chosen_skeleton(options)
    if skeleton is not None and skeleton.joints != persons.skeleton.joints:
        raise ValueError(f"skeleton: the pack {root} holds joints of {persons.skeleton.name!r}, not {skeleton.name!r}")
    height, width = margins_of(root, split).size
    if held["dataset"] == "coco" and height * options.size[1] != width * options.size[0]:
        raise ValueError(
            f"size: the pack {root} holds COCO's boxes with the aspect ratio of {height} x {width} pixels, got "
            f"{options.size[0]} x {options.size[1]}"
        )
    # As with files: without head boxes there is no PCKh, but an official .mat has its own.
    without_heads = not options.head_boxes and not held["valid_annotations"].endswith(".mat")
    return dataclasses.replace(persons, head_size=None) if without_heads else persons


def check_is_file(name: str, path: Path) -> None:
    """Raises FileNotFoundError, naming the option, where there is no such file."""
    if not path.is_file():
        raise FileNotFoundError(f"{name}: no file {path}")


def describe(persons: Persons) -> str:
    """Tells these annotations from others, wherever they are stored: the number of persons and a checksum."""
    names = "\n".join(path.name for path in persons.image_paths).encode()
    arrays = (persons.image_index, persons.center, persons.scale, persons.keypoints, persons.visible)
    return f"{len(persons)} persons, checksum {zlib.crc32(b''.join([names, *(a.tobytes() for a in arrays)])):08x}"


def check_scorable(persons: Persons) -> None:
    """Raises ValueError, saying what is missing, where these validation persons cannot give a training its score."""
    if persons.truth is not None:
        if not persons.truth.annotations:
            raise ValueError("valid_annotations: AP needs annotated persons to compare with, and there are none")
        known_sigmas(persons)
        require_pycocotools()
    elif persons.head_size is None:
        raise ValueError("head_boxes: PCKh needs the head boxes of the validation persons (gt_valid.mat)")


def check_batches(persons: int, options: TrainOptions) -> None:
    """Refuses training batches that batch normalisation cannot do anything with.

    Raises:
        ValueError: a batch of one person at 32 x 32 px, where the ResNet's last layers have one value per channel.
    """
    if not options.model and options.size == (32, 32) and 1 in (options.batch_size, persons % options.batch_size):
        raise ValueError(
            f"batch_size: {persons} persons in batches of {options.batch_size} leave a batch of one, and at size 32 32 "
            "one person is too little for batch normalisation: choose another --batch_size or a larger --size"
        )


def make_loader(persons: Persons, options: TrainOptions, device: torch.device, *, training: bool) -> PoseLoader:
    """Batches for training (augmented, in random order) or for evaluation."""
    augmentation = Augmentation(
        options.rotation,
        (options.scale_min, options.scale_max),
        options.flip,
        options.half_body,
        options.brightness,
        options.contrast,
        options.saturation,
    )
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
        color=network_color(options),
        udp=options.udp,
    )


def network_color(options: TrainOptions) -> Tensor:
    """The colour map [3, 4] of what the network sees: ImageNet's normalisation. With option `color_order` bgr the first
    channel is blue, by the mean and deviation of red: what SimpleBaselines' networks were trained on."""
    color = fastpose.normalize_color(fastpose.IMAGENET_MEAN, fastpose.IMAGENET_STD)
    return color[:, [2, 1, 0, 3]] if options.color_order == "bgr" else color


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
    threads = options.decode_threads or (2 if device.type == "cpu" else available_cores())
    if options.decoder == "gpu":
        require_cuda("decoder gpu", device)
    device = making_device(device)
    paths = persons.image_paths
    show = decoding_printer(device)
    if found := pack_of(paths):
        if options.decoder == "gpu":
            raise ValueError(f"decoder: the GPU decodes files, and {found[0]} is a pack: leave --decoder out")
        packed = PackedImages(paths, threads)
        rotation, low, high = (options.rotation, options.scale_min, options.scale_max) if training else (0.0, 1.0, 1.0)
        packed.margins.check(found[0], options.size, rotation, low, high, training and options.half_body > 0.0)
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
        smallest, half_body = (options.scale_min, options.half_body > 0.0) if training else (1.0, False)
        reduction = reductions(persons, options.size, smallest, half_body=half_body)
    files = ImageFiles(paths, threads, reduction) if options.decoder == "cpu" else GpuJpegFiles(paths, device, threads)
    if not options.resident:
        return files
    return ResidentImages.from_files(
        paths, device, threads, decoder=files, reduction=reduction, on_bad_image=options.on_bad_image, progress=show
    )


def packed_options(
    options: TrainOptions, given: Collection[str] = (), called: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The data options that the pack in the data root was made with. Empty head boxes stay empty: none are wanted.

    Args:
        options: of a run on that pack.
        given: names of data options that somebody has given; others may have their defaults whatever the pack holds.
        called: what the command calls data options for which it has other names; empty for one that it does not have.

    Raises:
        ValueError: a data option names other data than the pack holds.
        PackError: the pack is unfinished or damaged.
    """
    root = options.resolved_data_root()
    made_with = read_index(root)["options"]
    usual = TrainOptions().with_files()
    held = {name: made_with.get(name, getattr(usual, name)) for name in DATA_OPTIONS}
    if not options.head_boxes:
        held["head_boxes"] = ""
    for name in DATA_OPTIONS:
        value = getattr(options, name)
        # MPII's names stand in configs of runs that named none.
        unnamed = (getattr(TrainOptions, name), getattr(usual, name))
        if value != held[name] and (name in given or value not in unnamed):
            raise ValueError(
                f"{(called or {}).get(name, name)}: the pack {root} holds the data of {held[name]!r}, got {value!r}: "
                "name what it holds, or pack the other"
            )
    return held


def as_packed(
    options: TrainOptions, given: Collection[str] = (), called: Mapping[str, str] | None = None
) -> TrainOptions:
    """The options of a run as they are in effect where its data comes from a pack; others as they are.

    The data options become those that the pack was made with, so that what is written down about the run is true, and
    `reduced_decode` goes off where the pack has full resolution: later evaluations on files must not reduce them then.
    Arguments and errors: see packed_options.
    """
    root = options.resolved_data_root()
    if not is_pack(root):
        return options
    held, named = packed_options(options, given, called), options.with_files()
    told = {name: value for name, value in held.items() if (called or {}).get(name) != ""}
    if other := [f"{name} {value!r}" for name, value in told.items() if value != getattr(named, name)]:
        print(f"the pack {root} holds the data of {', '.join(other)}", flush=True)
    reduced = options.reduced_decode and margins_of(root, "train").reduce
    return dataclasses.replace(options, **held, reduced_decode=reduced)  # type: ignore[arg-type]


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


def chosen_skeleton(options: TrainOptions) -> Skeleton:
    """The joints of the options' data set: of the file that option `skeleton` names, else MPII's or COCO's.

    Raises:
        FileNotFoundError, ValueError: see read_skeleton; or a skeleton is named for a data set in MPII's format.
    """
    if not options.skeleton:
        return {"mpii": MPII, "coco": COCO}[options.dataset]
    if options.dataset == "mpii":
        raise ValueError(f"skeleton: MPII's format has joints of its own, got {options.skeleton}: add --dataset coco")
    return read_skeleton(options.skeleton)


def network_name(options: TrainOptions) -> str:
    """The network that the options describe, for messages."""
    return f"network {options.model}" if options.model else f"ResNet-{options.depth} with {options.head} head"


def with_color_order(options: TrainOptions) -> TrainOptions:
    """The options of a training with `color_order` auto replaced by that of its weights, or by rgb.

    Raises:
        FileNotFoundError, ValueError: see make_model.
    """
    if options.color_order != "auto":
        return options
    order = None
    if options.weights or options.backbone_weights:
        order = read_file_of(options, "weights" if options.weights else "backbone_weights").color_order
    return dataclasses.replace(options, color_order=order or "rgb")


def read_file_of(options: TrainOptions, name: Literal["weights", "backbone_weights"]) -> Weights:
    """The file that option `name` names; of a run's folder its best.pt."""
    path = checkpoint_file(Path(getattr(options, name)).expanduser())
    check_is_file(name, path)
    return read_weights(path)


def make_model(options: TrainOptions, skeleton: Skeleton, device: torch.device, *, to_train: bool = False) -> nn.Module:
    """The network with random weights drawn from `options.seed`, or with those of the files that the options name.

    `to_train`: weights for another number of joints will do, and the last layer begins anew.

    Raises:
        FileNotFoundError: there is no such file; names the option.
        ValueError: the network or a file of weights is not what it should be; see make_own_model, check_heatmaps,
            read_weights, load_weights and load_backbone; or the weights are of another network.
    """
    torch.manual_seed(options.seed)
    if options.backbone_weights and (options.model or options.weights):
        other = f"--model {options.model}" if options.model else "--weights, which has a backbone too"
        raise ValueError(f"backbone_weights: they go into a new ResNet of fastpose, and not together with {other}")
    model: nn.Module
    if options.model:
        model = make_own_model(options.model, skeleton.num_joints)
    else:
        model = resnet = pose_resnet(options.depth, options.head, skeleton.num_joints, channels=options.channels)
        if options.backbone_weights:
            print(load_backbone(resnet, read_file_of(options, "backbone_weights")), flush=True)
    if options.weights:
        weights = read_file_of(options, "weights")
        check_weights(weights, options)
        new_joints = skeleton.num_joints if to_train else None
        print(load_weights(model, weights, new_joints=new_joints), flush=True)
        if weights.color_order not in (None, "auto", options.color_order):
            print(
                f"warning: these weights were trained on {weights.color_order} images, and will see "
                f"{options.color_order}: --color_order {weights.color_order} gives them theirs",
                flush=True,
            )
    model = model.to(device, memory_format=memory_format(options, device))  # type: ignore[call-overload]  # not in its stub
    if options.model:
        check_heatmaps(model, options.model, skeleton.num_joints, options.size)
    return model


def check_weights(weights: Weights, options: TrainOptions) -> None:
    """Raises ValueError, saying what to do, where weights are of another network than the options describe."""
    begin = f"weights: {weights.path} holds a {weights}"
    if options.model:
        return  # the names decide
    check_pose_network("weights", weights)
    has = {"depth": weights.depth, "head": weights.head, "channels": weights.channels}
    other = [f"--{name} {value}" for name, value in has.items() if value not in (None, getattr(options, name))]
    if other:
        raise ValueError(f"{begin}: to begin with them, add {' '.join(other)}")


def check_pose_network(name: str, weights: Weights) -> None:
    """Raises ValueError, naming the option and saying what to do, where weights are not of a whole `pose_resnet`."""
    begin = f"{name}: {weights.path} holds a {weights}"
    if weights.depth is None:
        raise ValueError(f"{begin}: name its network with --model PACKAGE.MODULE:FACTORY")
    if weights.head is None:
        raise ValueError(f"{begin}: it has a backbone alone, which --backbone_weights takes in fastpose train")


def load_model(
    path: Path, device: torch.device, given: NetworkOptions | None = None
) -> tuple[nn.Module, TrainOptions, Skeleton]:
    """The network of a checkpoint, the options it was trained with and the skeleton of its joints.

    A file of another program is recognised, which is printed; its options are what the file tells, and the defaults.
    Its joints are MPII's if there are 16, COCO's if there are 17, its input 256 x 256 px, for COCO 256 x 192.

    A network of the user's own is built anew by its factory, whose module is imported for that: the file names it and
    has no code in it.

    Args:
        path: the file.
        device: where the network will be.
        given: options that take the place of the file's.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: the file is damaged; or the weights or options do not fit this version of fastpose.
        ValueError: the file is another program's, and its network or joints must be told; or see make_model.
    """
    weights, told = read_weights(path), given.told() if given else {}
    if weights.checkpoint is None:
        return _load_foreign(weights, device, told)
    contents = weights.checkpoint
    try:
        options = from_plain(TrainOptions, BEFORE | contents["config"])
        skeleton = skeleton_of(contents["skeleton"])
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: does not fit this version of fastpose: {error}") from error
    if options.decoder == "gpu":  # which reduces nothing; what evaluates now may
        options = dataclasses.replace(options, reduced_decode=False)
    options = dataclasses.replace(options, **{"color_order": weights.color_order} | told)
    if told.get("skeleton"):
        skeleton = _told_skeleton(weights, options, skeleton.num_joints)
    if options.model:
        print(f"{path}: {weights}, made by {options.model}", flush=True)
    model = make_model(dataclasses.replace(options, backbone_weights="", weights=""), skeleton, device)
    try:
        model.load_state_dict(contents["model"])
    except RuntimeError as error:
        raise CheckpointError(f"{path}: does not fit this version of fastpose: {error}") from error
    return model, options, skeleton


def _load_foreign(
    weights: Weights, device: torch.device, told: Mapping[str, Any]
) -> tuple[nn.Module, TrainOptions, Skeleton]:
    if "model" not in told:
        check_pose_network("checkpoint", weights)
    mpii = weights.num_joints in (None, MPII.num_joints) and not told.get("skeleton")
    inferred: dict[str, Any] = {
        "dataset": "mpii" if mpii else "coco",
        "color_order": weights.color_order or "rgb",
        "reduced_decode": False,
        "weights": str(weights.path),
    }
    inferred |= {name: value for name in ("depth", "head", "channels") if (value := getattr(weights, name))}
    inferred |= told
    # Only the name tells the size; SimpleBaselines and mmpose name files so, height first. No network of theirs has a
    # side that is no multiple of 16.
    named = re.search(r"(?<!\d)(\d{2,4})x(\d{2,4})(?!\d)", weights.path.name)
    if named and not any(int(side) % 16 for side in named.groups()):
        inferred.setdefault("size", (int(named[1]), int(named[2])))
    inferred.setdefault("size", (256, 256) if inferred["dataset"] == "mpii" else (256, 192))
    options = TrainOptions(**inferred)
    skeleton = _told_skeleton(weights, options, weights.num_joints)
    model = make_model(options, skeleton, device)
    order, size = options.color_order.upper(), options.size
    print(f"taken for {order} crops of {size[0]}x{size[1]} px and the joints of {skeleton.name}", flush=True)
    return model, options, skeleton


def _told_skeleton(weights: Weights, options: TrainOptions, num_joints: int | None) -> Skeleton:
    skeleton = chosen_skeleton(options)
    if num_joints not in (None, skeleton.num_joints):
        raise ValueError(
            f"skeleton: {weights.path} has {num_joints} joints, and {skeleton.name} {skeleton.num_joints}: name its "
            "joints in a YAML file, --skeleton FILE (see docs/skeletons.md)"
        )
    return skeleton


def skeleton_of(stored: dict[str, Any] | str) -> Skeleton:
    """The joints that a checkpoint was written with; in version 0.1 only the name of MPII's."""
    if isinstance(stored, dict):
        return Skeleton(**stored)
    if stored != MPII.name:
        raise ValueError(f"expected joints of skeleton {MPII.name!r}, got {stored!r}")
    return MPII
