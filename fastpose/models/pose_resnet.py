# SPDX-License-Identifier: Apache-2.0
"""ResNet with a head for heatmaps or for SimCC's vectors."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor, nn

from fastpose.models.heads import FcnLayers, deconv_layers
from fastpose.models.resnet import Bottleneck, ResNet
from fastpose.models.simcc import SimccHead

Head = Literal["fcn", "deconv", "simcc"]


def pose_resnet(
    depth: int,
    head: Head = "fcn",
    num_joints: int = 16,
    *,
    channels: int = 256,
    size: tuple[int, int] = (256, 256),
    split_ratio: float = 2.0,
) -> PoseResNet:
    """A ResNet that maps normalised images [B, 3, H, W] to heatmaps [B, num_joints, H/4, W/4], or to SimCC's vectors.

    Its weights are random, and it is in training mode. H and W are multiples of 32. Heads:

    - ``"fcn"``, of "Human Pose Estimation from a Single Image": resizing and plain convolutions, see `FcnLayers`.
    - ``"deconv"``, SimpleBaselines' (Xiao et al. 2018): three deconvolutions and a 1x1 convolution. Parameter names,
      sizes and initialisation of the head are theirs, so that their checkpoints load.
    - ``"simcc"``, RTMPose's (Jiang et al. 2023), see `SimccHead`: a pair of vectors per joint, in x
      [B, num_joints, W · split_ratio] and in y [B, num_joints, H · split_ratio].

    Args:
        depth: 18, 34, 50, 101 or 152.
        head: "fcn", "deconv" or "simcc".
        num_joints: joints per image.
        channels: width of the head; for "fcn" a multiple of 4.
        size: (h, w) of the images, pixels. Only "simcc" is for one size alone.
        split_ratio: bins per pixel; of "simcc" alone.

    Raises:
        ValueError: an argument has another value; calling the model: the image's size does not fit.
    """
    if head not in get_args(Head):
        raise ValueError(f"head must be one of {', '.join(get_args(Head))}, got {head!r}")
    for name, value, step in (("num_joints", num_joints, 1), ("channels", channels, 4 if head == "fcn" else 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < step or value % step:
            multiple = f" and a multiple of {step}" if step > 1 else ""
            raise ValueError(f"{name} must be a positive whole number{multiple}, got {value!r}")
    if head == "simcc":
        return SimccPoseResNet(depth, num_joints, channels, size, split_ratio)
    model = FcnPoseResNet if head == "fcn" else DeconvPoseResNet
    return model(depth, num_joints, channels)


class PoseResNet(ResNet):
    """What all heads share: the backbone, and a convolution whose outputs are the joints."""

    final_layer: nn.Conv2d

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
        super().__init__(depth)
        self.final_layer = nn.Conv2d(channels, num_joints, 1)
        self.deconv_layers = deconv_layers(self.stage_channels[-1], channels)
        self.initialize()

    def forward(self, x: Tensor) -> Tensor:
        return self.final_layer(self.deconv_layers(self.stages(x)[-1]))


class FcnPoseResNet(PoseResNet):
    """ResNet with the paper's head of plain convolutions."""

    def __init__(self, depth: int, num_joints: int, channels: int) -> None:
        super().__init__(depth)
        self.final_layer = nn.Conv2d(channels, num_joints, 1)
        self.fcn_layers = FcnLayers(self.stage_channels, channels)
        self.initialize()

    def forward(self, x: Tensor) -> Tensor:
        return self.final_layer(self.fcn_layers(self.stages(x)))


class SimccPoseResNet(PoseResNet):
    """ResNet with RTMPose's head."""

    def __init__(self, depth: int, num_joints: int, channels: int, size: tuple[int, int], split_ratio: float) -> None:
        super().__init__(depth)
        self.head = SimccHead(self.stage_channels[-1], num_joints, size, channels=channels, split_ratio=split_ratio)
        self.initialize()

    @property
    def final_layer(self) -> nn.Conv2d:  # type: ignore[override]
        return self.head.final_layer

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(self.stages(x)[-1])
