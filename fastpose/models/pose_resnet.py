# SPDX-License-Identifier: Apache-2.0
"""ResNet with a heatmap head, and ImageNet weights for its backbone."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from fastpose.models.heads import FcnLayers, deconv_layers
from fastpose.models.resnet import Bottleneck, ResNet

Head = Literal["fcn", "deconv"]


def pose_resnet(depth: int, head: Head = "fcn", num_joints: int = 16, *, channels: int = 256) -> PoseResNet:
    """A ResNet that maps normalised images [B, 3, H, W] to heatmaps [B, num_joints, H/4, W/4].

    H and W are multiples of 32. Heads:

    - ``"fcn"``, of "Human Pose Estimation from a Single Image": resizing and plain convolutions, see `FcnLayers`.
    - ``"deconv"``, SimpleBaselines' (Xiao et al. 2018): three deconvolutions and a 1x1 convolution. Parameter names,
      sizes and initialisation of the head are theirs, so that their checkpoints load.

    Args:
        depth: 18, 34, 50, 101 or 152.
        head: "fcn" or "deconv".
        num_joints: heatmaps per image.
        channels: width of the head; for "fcn" a multiple of 4.

    Raises:
        ValueError: an argument is none of these; calling the model: the image's size does not fit.
    """
    if head not in get_args(Head):
        raise ValueError(f"head must be one of {', '.join(get_args(Head))}, got {head!r}")
    for name, value, step in (("num_joints", num_joints, 1), ("channels", channels, 4 if head == "fcn" else 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < step or value % step:
            multiple = f" and a multiple of {step}" if step > 1 else ""
            raise ValueError(f"{name} must be a positive whole number{multiple}, got {value!r}")
    model = FcnPoseResNet if head == "fcn" else DeconvPoseResNet
    return model(depth, num_joints, channels)


class PoseResNet(ResNet):
    """What both heads share: the backbone and the last 1x1 convolution."""

    def __init__(self, depth: int, num_joints: int, channels: int) -> None:
        super().__init__(depth)
        self.final_layer = nn.Conv2d(channels, num_joints, 1)

    def initialize(self) -> None:
        """Weights for training from nothing.

        Convolutions: Kaiming, as torchvision. The last normalisation of each residual block of the backbone: zero, so
        that the blocks start as their shortcuts (Goyal et al. 2017). Deconvolutions and ``final_layer``: normal with a
        deviation of 0.001, as SimpleBaselines, which makes the first heatmaps nearly zero, as most of a target is.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module is not self.final_layer:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.ConvTranspose2d):
                nn.init.normal_(module.weight, std=0.001)
        for block in (*self.layer1, *self.layer2, *self.layer3, *self.layer4):
            nn.init.zeros_(block.bn3.weight if isinstance(block, Bottleneck) else block.bn2.weight)
        nn.init.normal_(self.final_layer.weight, std=0.001)
        nn.init.zeros_(self.final_layer.bias)  # type: ignore[arg-type]


class DeconvPoseResNet(PoseResNet):
    """ResNet with SimpleBaselines' deconvolution head."""

    def __init__(self, depth: int, num_joints: int, channels: int) -> None:
        super().__init__(depth, num_joints, channels)
        self.deconv_layers = deconv_layers(self.stage_channels[-1], channels)
        self.initialize()

    def forward(self, x: Tensor) -> Tensor:
        return self.final_layer(self.deconv_layers(self.stages(x)[-1]))


class FcnPoseResNet(PoseResNet):
    """ResNet with the paper's head of plain convolutions."""

    def __init__(self, depth: int, num_joints: int, channels: int) -> None:
        super().__init__(depth, num_joints, channels)
        self.fcn_layers = FcnLayers(self.stage_channels, channels)
        self.initialize()

    def forward(self, x: Tensor) -> Tensor:
        return self.final_layer(self.fcn_layers(self.stages(x)))


_BACKBONE = ("conv1.", "bn1.", "layer1.", "layer2.", "layer3.", "layer4.")


def load_imagenet_backbone(model: PoseResNet, path: str | PathLike[str]) -> str:
    """Loads ImageNet weights into the backbone; the head stays as it is.

    Args:
        model: of the depth the weights are for.
        path: a torchvision ResNet state dict (``resnet50-*.pth``), bare or under ``"state_dict"``, its names with or
            without ``module.`` before them. The classifier ``fc`` is dropped. Only tensors are read
            (``weights_only=True``), no code is run.

    Returns:
        One line that says what was loaded.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, or parameters that are missing, unexpected or of another shape; lists them.
            The model is then unchanged.
    """
    loaded = _read_state_dict(path)
    loaded = {name: value for name, value in loaded.items() if name not in ("fc.weight", "fc.bias")}
    wanted = {name: value for name, value in model.state_dict().items() if name.startswith(_BACKBONE)}
    # Files written before PyTorch 0.4.1, the first torchvision ResNets among them, have no such counters.
    missing = [n for n in wanted if n not in loaded and not n.endswith(".num_batches_tracked")]
    unexpected = [n for n in loaded if n not in wanted]
    mismatched = [
        f"{n} {list(loaded[n].shape)} for {list(wanted[n].shape)}"
        for n in wanted
        if n in loaded and loaded[n].shape != wanted[n].shape
    ]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": mismatched}
    if any(problems.values()):
        listed = "; ".join(f"{len(names)} {kind}: {_shortened(names)}" for kind, names in problems.items() if names)
        raise ValueError(f"{path}: does not fit the backbone: {listed}")
    model.load_state_dict(loaded, strict=False)
    count = sum(parameter.numel() for name, parameter in model.named_parameters() if name in loaded)
    return f"{path}: loaded {len(loaded)} tensors ({count:,} parameters) into the backbone"


def _read_state_dict(path: str | PathLike[str]) -> dict[str, Tensor]:
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a file that is something else makes the unpickler raise anything, KeyError too
        # Only torch's first line: the rest is advice to load the file unsafely.
        raise ValueError(f"{path}: is not a file of weights: {str(error).partition(chr(10))[0]}") from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"{path}: must hold a state dict of tensors, got {type(content).__name__}")
    return {str(name).removeprefix("module."): value for name, value in content.items()}


def _shortened(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
