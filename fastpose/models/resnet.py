# SPDX-License-Identifier: Apache-2.0
"""ResNet without its classifier (He et al. 2016), with torchvision's parameter names and its place of the stride."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut: ResNet-18 and -34."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around a shortcut: ResNet-50 and deeper.

    The stride is on the 3x3 convolution, where torchvision has it (the ResNet paper has it on the first 1x1), because
    torchvision's weights are the ones people load.
    """

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """None where the shortcut is the input itself, else a 1x1 convolution with batch normalisation."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
        nn.BatchNorm2d(out_channels),
    )


_BLOCKS: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}
DEPTHS = tuple(_BLOCKS)
WIDTHS = (64, 128, 256, 512)  # of the four stages' blocks


def resnet_depth(names: Collection[str]) -> int | None:
    """The depth of the ResNet whose parameters have these names; None if it is not one of `DEPTHS`."""
    block = Bottleneck if "layer1.0.conv3.weight" in names else BasicBlock
    counts = tuple(
        len({name.split(".")[1] for name in names if name.startswith(f"layer{stage}.")}) for stage in (1, 2, 3, 4)
    )
    return next((depth for depth, blocks in _BLOCKS.items() if blocks == (block, counts)), None)


class ResNet(nn.Module):
    """The backbone. Subclasses add a head and ``forward``, so that the state dict stays flat as SimpleBaselines' is.

    Attributes:
        stage_channels: channels of the four stages' outputs, at strides 4, 8, 16 and 32.

    Raises:
        ValueError: no ResNet of that depth.
    """

    def __init__(self, depth: int) -> None:
        super().__init__()
        if depth not in _BLOCKS:
            raise ValueError(f"depth must be one of {', '.join(map(str, DEPTHS))}, got {depth!r}")
        block, counts = _BLOCKS[depth]
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.stage_channels = tuple(width * block.expansion for width in WIDTHS)
        inputs = (64, *self.stage_channels[:3])
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            nn.Sequential(
                block(inputs[stage], WIDTHS[stage], 1 if stage == 0 else 2),
                *(block(self.stage_channels[stage], WIDTHS[stage], 1) for _ in range(counts[stage] - 1)),
            )
            for stage in range(4)
        )

    def stages(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The outputs of the four stages for images [B, 3, H, W].

        Raises:
            ValueError: H or W is not a multiple of 32, or there are not 3 channels.
        """
        if x.ndim != 4 or x.shape[1] != 3 or x.shape[2] % 32 != 0 or x.shape[3] % 32 != 0:
            raise ValueError(f"images must be [B, 3, H, W] with H and W multiples of 32, got {list(x.shape)}")
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        stage1 = self.layer1(x)
        stage2 = self.layer2(stage1)
        stage3 = self.layer3(stage2)
        return stage1, stage2, stage3, self.layer4(stage3)
