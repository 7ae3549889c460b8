# SPDX-License-Identifier: Apache-2.0
"""A trained network with all that belongs to it: from a checkpoint, and from what was asked for instead."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastpose.data.datasets import dataset_with_joints, joints_of
from fastpose.device import choose_device
from fastpose.ending import print_log
from fastpose.models.checkpoint import CheckpointError, checkpoint_file
from fastpose.models.decoding import Decoder
from fastpose.models.network import load_network
from fastpose.models.onnx_network import ExportedDecoder, OnnxNetwork, read_onnx
from fastpose.models.weights import Weights, read_weights
from fastpose.option import OptionError, nearest, typed
from fastpose.options.settings import FIELDS, TYPES, Settings
from fastpose.options.settle import completed, settle
from fastpose.skeletons import Skeleton

log = logging.getLogger(__name__)

TRUST_HELP = "import and run the network that the file names (PACKAGE.MODULE:FACTORY), without naming it with --model"
# For --help: what a file that is not a checkpoint of ours does not tell.
OTHERS = """Another program's network is taken for the size in its file's name (384x288), else 256 256, or 256 192 if it
has COCO's 17 joints; for MPII's joints if it has 16 and for COCO's otherwise; for bgr if it is SimpleBaselines'."""


@dataclass(frozen=True)
class Trained:
    """A network, its joints, and the settings it was trained with except what was asked for instead.

    Attributes:
        file: where it comes from.
        weights: what the file contains.
        settings: in effect.
        model: on the device, in evaluation mode.
        skeleton: its joints.
    """

    file: Path
    weights: Weights
    settings: Settings
    model: nn.Module
    skeleton: Skeleton

    def decoder(self) -> Decoder:
        network, settings = self.settings.network, self.settings
        if isinstance(self.model, OnnxNetwork) and self.model.decodes:
            return ExportedDecoder(self.model, network, self.skeleton, settings.decode, settings.compute)
        return Decoder(
            self.model, self.skeleton, settings.decode, settings.compute, udp=network.udp, simcc=network.simcc
        )


def load_model(
    checkpoint: str | Path, device: torch.device | str = "auto", *, trust_model: bool = False, **options: Any
) -> nn.Module:
    """The network of a checkpoint, or of a file of another program, in evaluation mode; prints what the file is.

    It maps crops [B, 3, H, W], of the size and colours that it was trained on, to heatmaps [B, K, H/4, W/4] or to
    SimCC's vectors. `load_trained` has the settings and the joints as well. Nothing in the file is executed.

    Args:
        checkpoint: what `fastpose evaluate --checkpoint` takes: a run's folder, for its best.pt, a checkpoint, or a
            file of another program.
        device: "auto" (CUDA if there is one, else the CPU), "cpu", "cuda:1", "mps" and so on.
        trust_model: import and run the network of the user's own that the file names; without it, name that network
            with `model="PACKAGE.MODULE:FACTORY"`.
        options: what the file does not say, or is to be otherwise, by the names of `fastpose evaluate`'s options:
            `size=(256, 192)`, `model=…`, `skeleton=…`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file or an option cannot be used, see `load_trained`; OptionError and CheckpointError are two.
        TypeError: there is no such option.
    """
    if unknown := options.keys() - FIELDS.keys():
        name = sorted(unknown)[0]
        raise TypeError(f"load_model has no option {name!r}{nearest(name, FIELDS)}")
    return load_trained(
        Path(checkpoint).expanduser(), options, choose_device(str(device)), trust_model=trust_model
    ).model


def load_trained(
    checkpoint: str | Path,
    asked: Mapping[str, Any],
    device: torch.device,
    *,
    instead: Mapping[str, Any] | None = None,
    called: Mapping[str, str] | None = None,
    reads_data: bool = False,
    trust_model: bool = False,
) -> Trained:
    """Loads a checkpoint, or a file of another program, which is recognised; prints what it is. The network is in
    evaluation mode: `model.train()` before it is trained on.

    The joints are those of option `skeleton` if it was asked for, else those in the checkpoint; another program's
    network has those of the data set with as many, see `dataset_with_joints`.

    Args:
        checkpoint: the file, or a run's folder for its best.pt.
        asked, instead, called, reads_data, trust_model: see `settle`. A network of the user's own is code that runs:
            it must be among `asked`, as `model`, or `trust_model` be true.
        device: where the network will be.

    Raises:
        FileNotFoundError, ValueError: see read_weights, settle and load_network.
    """
    file = checkpoint_file(Path(checkpoint))
    if file.suffix == ".onnx":
        return _load_onnx(file, asked, device, instead, called, reads_data=reads_data)
    weights = read_weights(file)
    settings = settle(
        asked, weights=weights, instead=instead, called=called, reads_data=reads_data, trust_model=trust_model
    )
    if other := _otherwise_trained(weights, settings):
        log.warning("%s: %s: the network sees other crops than those it was trained on", file, ", ".join(other))
    skeleton = None
    if asked.get("skeleton") or weights.checkpoint is None:
        skeleton = joints_of(settings.data, settings.network.size)
    model, skeleton = load_network(
        weights,
        settings.network,
        skeleton,
        device,
        seed=settings.schedule.seed,
        memory_format=settings.compute.memory_format(device),
    )
    return Trained(file, weights, settings, model, skeleton)


def _load_onnx(
    file: Path,
    asked: Mapping[str, Any],
    device: torch.device,
    instead: Mapping[str, Any] | None,
    called: Mapping[str, str] | None,
    *,
    reads_data: bool,
) -> Trained:
    """The network of an ONNX file, see `read_onnx`: of size and outputs as the file says, and of other joints, colours
    and decoding as was asked for, as far as the file does not have them inside."""
    pose = read_onnx(file, device, asked)
    for name, value in pose.options.items():
        if name in asked and typed(name, asked[name], TYPES[name]) != value:
            raise OptionError(name, f"{file} has {value} inside, got {asked[name]}")
    of_others = dataset_with_joints(pose.num_joints, named=bool(asked.get("skeleton")))
    usual = {"dataset": of_others, "reduced_decode": False, "amp": "off", "channels_last": "off"}
    settings = settle({**usual, **asked, **pose.options}, instead=instead, called=called, reads_data=reads_data)
    skeleton = pose.skeleton
    if skeleton is None or asked.get("skeleton"):
        skeleton = joints_of(settings.data, settings.network.size)
    if skeleton.num_joints != pose.num_joints:
        raise OptionError(
            "skeleton",
            f"{file} has {pose.num_joints} joints, and {skeleton.name} {skeleton.num_joints}: name its joints in a "
            "YAML file, --skeleton FILE (see docs/skeletons.md)",
        )
    if not pose.network.decodes:
        order, (height, width) = settings.network.color_order.upper(), settings.network.size
        print_log(f"taken for {order} crops of {height}x{width} px and the joints of {skeleton.name}")
    weights = Weights(file, {}, "", "", None, None, None, pose.num_joints, None)
    return Trained(file, weights, settings, pose.network, skeleton)


def _otherwise_trained(weights: Weights, settings: Settings) -> list[str]:
    """By which options the crops differ from those of the training, with both values."""
    if weights.checkpoint is None:
        return []
    try:
        config = completed(weights.checkpoint["config"])
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{weights.path}: does not fit this version of fastpose: {error}") from error
    trained = {"size": tuple(config["size"]), "udp": config["udp"], "color_order": weights.color_order or "rgb"}
    now = {name: getattr(settings.network, name) for name in trained}
    return [f"{name} is {now[name]} and was {was} in the training" for name, was in trained.items() if now[name] != was]
