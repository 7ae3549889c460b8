# SPDX-License-Identifier: Apache-2.0
"""The network of a run: from its options, or from a file of weights."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastpose.ending import print_log
from fastpose.files import check_is_file
from fastpose.models.checkpoint import CheckpointError, checkpoint_file
from fastpose.models.hf import hf_network, is_hf, load_hf_network, shown
from fastpose.models.own import check_outputs, make_own_model, names_of
from fastpose.models.pose_resnet import Head, pose_resnet
from fastpose.models.rtmpose import NAMES as RTMPOSE
from fastpose.models.rtmpose import rtmpose
from fastpose.models.simcc import SimccVectors, bins_of
from fastpose.models.weights import ColorOrder, Weights, load_backbone, load_weights, mismatches, read_weights
from fastpose.ops.color import IMAGENET_MEAN, IMAGENET_STD, normalize_color
from fastpose.option import OptionError, check_at_least, option
from fastpose.skeletons import MPII, Skeleton, as_tuples

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NetworkOptions:
    """Which network, and what it sees."""

    model: str = option(
        "",
        "another network than the ResNet that depth and head describe: rtmpose-t, -s, -m or -l; hf:NAME, "
        "hf:config.json or hf:FOLDER, ViTPose or Sapiens2 of transformers (nothing is downloaded); or one's own, "
        "PACKAGE.MODULE:FACTORY, called with the number of joints; it maps images [B, 3, H, W] to heatmaps [B, K, H/4, "
        "W/4] or, with targets simcc, to vectors [B, K, W * split_ratio] and [B, K, H * split_ratio]",
    )
    depth: Literal[18, 34, 50, 101, 152] = option(50, "depth of the ResNet, layers")
    head: Head = option("fcn", "head: fcn (the paper's), deconv (SimpleBaselines') or simcc (RTMPose's)")
    channels: int = option(256, "width of the head, channels")
    backbone_weights: str = option(
        "",
        "file with weights for the backbone alone: ImageNet's in torchvision's format, or any other ResNet that "
        "--weights takes; of RTMPose mmpose's; empty: random weights",
    )
    weights: str = option(
        "",
        "file with weights of the whole network to begin with: fastpose's, SimpleBaselines', mmpose's, or a state dict "
        "of --model; empty: none",
    )
    color_order: Literal["auto", "rgb", "bgr"] = option(
        "auto",
        "order of the colours that the network sees; auto: that of the file of weights to begin with, if there is one "
        "(SimpleBaselines' networks were trained on bgr), else rgb",
    )
    size: tuple[int, int] = option(
        (256, 256),
        "height and width of the network's input, pixels, multiples of 32 (with --model of 4, with hf: of 16); "
        "heatmaps have a quarter",
    )
    udp: bool = option(
        False, "unbiased data processing: crops and heatmaps are measured from first to last pixel centre"
    )
    targets: Literal["auto", "heatmap", "simcc"] = option(
        "auto",
        "what the network returns and is taught: a heatmap per joint, or simcc, a vector per joint and axis; auto: "
        "simcc with head simcc and with rtmpose, else heatmap",
    )
    split_ratio: float = option(2.0, "bins per pixel of the network's input in SimCC's vectors")
    simcc_sigma: tuple[float, ...] = option(
        (),
        "standard deviations in x and y of the Gaussians that SimCC's vectors are taught, bins; empty: the square root "
        "of an eighth of the input's width and height, RTMPose's (4.9 and 5.66 for 256 192)",
    )
    drop_path: float = option(
        0.0, "share of a sample's residual branches that are left out in training, with --model hf:; 0: none"
    )

    def __post_init__(self) -> None:
        check_at_least(self, 1, "channels")
        if self.own_code:
            names_of(self.model)
        step = 4 if self.own_code else 16 if self.of_transformers else 32
        if len(self.size) != 2 or any(side < step or side % step for side in self.size):
            raise OptionError(
                "size", f"expected height and width, positive multiples of {step} pixels, got {list(self.size)}"
            )
        if not self.own_code and self.targets not in ("auto", "simcc" if self.returns_vectors else "heatmap"):
            returned = "SimCC's vectors" if self.returns_vectors else "heatmaps"
            raise OptionError("targets", f"{self} returns {returned}, got {self.targets}")
        if len(self.simcc_sigma) not in (0, 2) or not all(0.0 < sigma < math.inf for sigma in self.simcc_sigma):
            raise OptionError("simcc_sigma", f"expected two positive numbers of bins, got {list(self.simcc_sigma)}")
        if not 0.0 <= self.drop_path < 1.0:
            raise OptionError("drop_path", f"expected a share from 0 to below 1, got {self.drop_path}")
        if self.drop_path and not self.of_transformers:
            raise OptionError("drop_path", f"it is for --model hf:, and {self} has none, got {self.drop_path}")
        if self.simcc is not None:
            try:
                bins_of(self.size, self.split_ratio)
            except ValueError as error:
                raise OptionError("split_ratio", str(error).removeprefix("split_ratio ")) from None

    @property
    def own_code(self) -> bool:
        """Whether the network is made by the user's own code."""
        return is_own_code(self.model)

    @property
    def of_fastpose(self) -> bool:
        """Whether the network is made by fastpose's code, and not by the user's or transformers'."""
        return not (self.own_code or self.of_transformers)

    @property
    def of_transformers(self) -> bool:
        """Whether the network is one of Hugging Face's transformers."""
        return is_hf(self.model)

    @property
    def returns_vectors(self) -> bool:
        """Whether the network returns SimCC's vectors instead of heatmaps."""
        if self.own_code:
            return self.targets == "simcc"
        return self.model in RTMPOSE if self.model else self.head == "simcc"

    @property
    def simcc(self) -> SimccVectors | None:
        """What the vectors are that the network returns; None if it returns heatmaps."""
        if not self.returns_vectors:
            return None
        height, width = self.size
        x, y = self.simcc_sigma or (math.sqrt(width / 8), math.sqrt(height / 8))
        return SimccVectors(self.split_ratio, (x, y))

    def __str__(self) -> str:
        """The network, for messages."""
        return f"network {shown(self.model)}" if self.model else f"ResNet-{self.depth} with {self.head} head"

    def color(self) -> Tensor:
        """The colour map [3, 4] of what the network sees: ImageNet's normalisation. With `color_order` bgr the first
        channel is blue, by the mean and deviation of red: what SimpleBaselines' networks were trained on."""
        color = normalize_color(IMAGENET_MEAN, IMAGENET_STD)
        return color[:, [2, 1, 0, 3]] if self.color_order == "bgr" else color


def is_own_code(model: str) -> bool:
    """Whether option `model` names code of the user's own."""
    return model not in ("", *RTMPOSE) and not is_hf(model)


def read_weights_of(options: NetworkOptions, name: Literal["weights", "backbone_weights"]) -> Weights:
    """The file that option `name` names; of a run's folder its best.pt."""
    path = checkpoint_file(Path(getattr(options, name)).expanduser())
    check_is_file(name, path)
    return read_weights(path)


def color_order_of_weights(options: NetworkOptions) -> ColorOrder:
    """What `color_order` auto means: the order of the weights to begin with, or rgb.

    Raises:
        FileNotFoundError, ValueError: see make_network.
    """
    if options.weights or options.backbone_weights:
        return read_weights_of(options, "weights" if options.weights else "backbone_weights").color_order or "rgb"
    return "rgb"


def make_network(
    options: NetworkOptions,
    skeleton: Skeleton,
    device: torch.device,
    *,
    seed: int = 0,
    memory_format: torch.memory_format = torch.contiguous_format,
    to_train: bool = False,
) -> nn.Module:
    """The network with random weights, or with those of the files that the options name, in training mode; prints what
    was loaded.

    Args:
        options: which network.
        skeleton: its joints.
        device: where it will be.
        seed: of the random weights.
        memory_format: of its tensors.
        to_train: weights for another number of joints will do, and the last layer starts from random weights.

    Raises:
        FileNotFoundError: a file does not exist; names the option.
        ValueError: the network or a file of weights is not what it should be; see make_own_model, check_outputs,
            read_weights, load_weights and load_backbone; or the weights are of another network.
    """
    torch.manual_seed(seed)
    if options.backbone_weights and (options.weights or not options.of_fastpose):
        other = f"--model {shown(options.model)}" if not options.of_fastpose else "--weights, which has a backbone too"
        raise OptionError(
            "backbone_weights", f"they go into a new ResNet or RTMPose of fastpose, and not together with {other}"
        )
    if options.weights:
        weights = read_weights_of(options, "weights")
        check_weights(weights, options)
        if options.of_transformers:
            model, loaded = load_hf_network(
                *(options.model, skeleton.num_joints, options.size, weights.path, weights.state),
                drop_path=options.drop_path,
                new_joints=to_train,
            )
        else:
            model = new_network(options, skeleton.num_joints)
            loaded = load_weights(model, weights, new_joints=skeleton.num_joints if to_train else None)
        print_log(loaded)
        if weights.color_order not in (None, "auto", options.color_order):
            trained = weights.color_order
            log.warning(
                "%s: these weights were trained on %s images, and will see %s: --color_order %s gives them theirs",
                *(weights.path, trained, options.color_order, trained),
            )
    else:
        model = new_network(options, skeleton.num_joints)
        if options.backbone_weights:
            print_log(load_backbone(model, read_weights_of(options, "backbone_weights")))
    model = model.to(device, memory_format=memory_format)  # type: ignore[call-overload]  # not in its stub
    if not options.of_fastpose:
        check_outputs(model, shown(options.model), skeleton.num_joints, options.size, options.simcc)
    return model


def new_network(options: NetworkOptions, num_joints: int) -> nn.Module:
    """The network that the options describe, on the CPU, with random weights."""
    if options.own_code:
        return make_own_model(options.model, num_joints)
    if options.of_transformers:
        return hf_network(options.model, num_joints, options.size, drop_path=options.drop_path)[0]
    channels, size, split_ratio = options.channels, options.size, options.split_ratio
    if options.model:
        name: Any = options.model
        return rtmpose(name, num_joints, size, channels=channels, split_ratio=split_ratio)
    for_size: Any = {"size": size, "split_ratio": split_ratio} if options.head == "simcc" else {}
    return pose_resnet(options.depth, options.head, num_joints, channels=channels, **for_size)


def check_weights(weights: Weights, options: NetworkOptions) -> None:
    """Raises OptionError, saying what to do, if weights are of another network than the options describe."""
    if not options.of_fastpose:
        return  # the names decide
    check_pose_network("weights", weights)
    has: dict[str, Any] = {"depth": weights.depth, "head": weights.head} if weights.depth else {}
    has |= {"model": weights.model, "channels": weights.channels}
    if options.model and not weights.model:
        has["model"] = "''"  # for a shell: none
    elif not weights.model:
        del has["model"]
    other = [f"--{name} {value}" for name, value in has.items() if value not in (None, getattr(options, name))]
    if other:
        raise OptionError("weights", f"{weights.path} holds a {weights}: to begin with them, add {' '.join(other)}")


def check_pose_network(name: str, weights: Weights) -> None:
    """Raises OptionError, naming the option and saying what to do, if weights are not of a whole network of ours."""
    begin = f"{weights.path} holds a {weights}"
    if weights.depth is None and not weights.model:
        raise OptionError(name, f"{begin}: name its network with --model PACKAGE.MODULE:FACTORY")
    if weights.head is None:
        raise OptionError(name, f"{begin}: it has a backbone alone, which --backbone_weights takes in fastpose train")


def load_network(
    weights: Weights,
    options: NetworkOptions,
    skeleton: Skeleton | None,
    device: torch.device,
    *,
    seed: int = 0,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> tuple[nn.Module, Skeleton]:
    """The network of a checkpoint, or of another program's file of weights, in evaluation mode, and its joints.

    A network of the user's own is built again by its factory, whose module is imported for that. The file may name it,
    but has no code in it; `settle` accepts a name only from whoever runs the program.

    Args:
        weights: what the file contains, see `read_weights`.
        options: settled options: those that the file says, and what was asked for instead.
        skeleton: the joints; None: those in the checkpoint.
        device: where the network will be.
        seed: that of the training: a network of the user's own may draw what is not in its state dict.
        memory_format: of its tensors.

    Raises:
        CheckpointError: the weights do not fit this version of fastpose.
        ValueError: the joints must be named; or see make_network.
    """
    path, contents = weights.path, weights.checkpoint
    num_joints = weights.num_joints
    if contents is not None:
        try:
            stored = skeleton_of(contents["skeleton"])
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{path}: does not fit this version of fastpose: {error}") from error
        skeleton, num_joints = skeleton or stored, stored.num_joints
    assert skeleton is not None  # of another program's file the caller knows it
    if num_joints not in (None, skeleton.num_joints):
        raise OptionError(
            "skeleton",
            f"{path} has {num_joints} joints, and {skeleton.name} {skeleton.num_joints}: name its joints in a YAML "
            "file, --skeleton FILE (see docs/skeletons.md)",
        )
    if contents is None:
        options = dataclasses.replace(options, weights=str(path), backbone_weights="")
        model = make_network(options, skeleton, device, seed=seed, memory_format=memory_format)
        order, (height, width) = options.color_order.upper(), options.size
        print_log(f"taken for {order} crops of {height}x{width} px and the joints of {skeleton.name}")
        return model.eval(), skeleton
    if options.own_code:
        print_log(f"{path}: {weights}, made by {options.model}")
    elif problems := _misfits(contents["model"], options, skeleton):
        raise CheckpointError(f"{path}: does not fit this version of fastpose: {problems}; the file has a {weights}")
    options = dataclasses.replace(options, weights="", backbone_weights="")
    model = make_network(options, skeleton, device, seed=seed, memory_format=memory_format)
    try:
        model.load_state_dict(contents["model"])
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:  # of a network of the user's own
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: does not fit {options.model or 'the network'}: {reason}") from error
    return model.eval(), skeleton


def _misfits(state: Mapping[str, Any], options: NetworkOptions, skeleton: Skeleton) -> str:
    """What in a state dict does not fit the network that the options describe, which is not made for that: a file of a
    kilobyte may describe one of terabytes."""
    try:
        with torch.device("meta"):
            model = new_network(options, skeleton.num_joints)
    except (RuntimeError, TypeError, OverflowError) as error:  # of more bytes than there are numbers for
        return " ".join(str(error).split())
    return mismatches(model.state_dict(), state)


def skeleton_of(stored: dict[str, Any] | str) -> Skeleton:
    """The joints that a checkpoint was written with; in version 0.1 only the name of MPII's."""
    if isinstance(stored, dict):
        if not isinstance(joints := stored.get("joints"), (list, tuple)) or not all(isinstance(j, str) for j in joints):
            raise ValueError("expected names of joints")
        return Skeleton(**as_tuples(stored))
    if stored != MPII.name:
        raise ValueError(f"expected joints of skeleton {MPII.name!r}, got {stored!r}")
    return MPII
