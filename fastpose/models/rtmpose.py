# SPDX-License-Identifier: Apache-2.0
"""RTMPose: the backbone CSPNeXt with the head `SimccHead` (Jiang et al. 2023), in mmpose's names and sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from fastpose.models.simcc import SimccHead

Name = Literal["rtmpose-t", "rtmpose-s", "rtmpose-m", "rtmpose-l"]
# Depth and width as shares of RTMPose-l's.
_FACTORS: dict[str, tuple[float, float]] = {
    "rtmpose-t": (0.167, 0.375),
    "rtmpose-s": (0.33, 0.5),
    "rtmpose-m": (0.67, 0.75),
    "rtmpose-l": (1.0, 1.0),
}
NAMES = get_args(Name)
_WIDTHS = (64, 128, 256, 512, 1024)  # of the stem and the four stages
_BLOCKS = (3, 6, 6, 3)


def rtmpose(
    name: Name, num_joints: int, size: tuple[int, int], *, channels: int = 256, split_ratio: float = 2.0
) -> RtmPose:
    """A network from normalised images [B, 3, H, W] to SimCC's vectors, a pair [B, K, W · split_ratio] and
    [B, K, H · split_ratio].

    Args:
        name: "rtmpose-t", "rtmpose-s", "rtmpose-m" or "rtmpose-l".
        num_joints: K.
        size: (h, w) of the images, multiples of 32.
        channels, split_ratio: of the head, see `SimccHead`.

    Raises:
        ValueError: an argument has another value.
    """
    if name not in NAMES:
        raise ValueError(f"name must be one of {', '.join(NAMES)}, got {name!r}")
    return RtmPose(*_FACTORS[name], num_joints, size, channels=channels, split_ratio=split_ratio)


def name_of(state: Mapping[str, Tensor]) -> str:
    """Which RTMPose has a backbone with these parameters; empty if none has."""
    stem = state.get("stem.2.conv.weight")
    widths = {int(_WIDTHS[0] * width): name for name, (_, width) in _FACTORS.items()}
    return "" if stem is None else widths.get(len(stem), "")


class RtmPose(nn.Module):
    """See `rtmpose`."""

    def __init__(
        self,
        deepen: float,
        widen: float,
        num_joints: int,
        size: tuple[int, int],
        *,
        channels: int,
        split_ratio: float,
    ) -> None:
        super().__init__()
        self.backbone = CspNext(deepen, widen)
        self.head = SimccHead(self.backbone.out_channels, num_joints, size, channels=channels, split_ratio=split_ratio)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(self.backbone(x))


class CspNext(nn.Module):
    """RTMDet's backbone CSPNeXt (Lyu et al. 2022): images [B, 3, H, W] to features [B, out_channels, H/32, W/32].

    Args:
        deepen, widen: factors on the numbers of blocks and of channels of CSPNeXt-l.
    """

    def __init__(self, deepen: float, widen: float) -> None:
        super().__init__()
        stem, *widths = (int(width * widen) for width in _WIDTHS)
        self.stem = nn.Sequential(
            ConvBn(3, stem // 2, 3, stride=2), ConvBn(stem // 2, stem // 2, 3), ConvBn(stem // 2, stem, 3)
        )
        before = stem
        for number, (width, blocks) in enumerate(zip(widths, _BLOCKS, strict=True), 1):
            last = number == len(widths)
            layers: list[nn.Module] = [ConvBn(before, width, 3, stride=2)]
            if last:
                layers.append(PyramidPooling(width))
            layers.append(CspLayer(width, max(round(blocks * deepen), 1), shortcut=not last))
            self.add_module(f"stage{number}", nn.Sequential(*layers))
            before = width
        self.out_channels = before

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.children():
            x = stage(x)
        return x


class ConvBn(nn.Module):
    """Convolution, batch normalisation and SiLU; `groups` as many as channels makes it depthwise."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.activate = nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.activate(self.bn(self.conv(x)))


class DepthwiseConv(nn.Module):
    """A depthwise 5x5 convolution and a 1x1 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise_conv = ConvBn(channels, channels, 5, groups=channels)
        self.pointwise_conv = ConvBn(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise_conv(self.depthwise_conv(x))


class Block(nn.Module):
    """A 3x3 convolution and a `DepthwiseConv`, with or without a shortcut around both."""

    def __init__(self, channels: int, *, shortcut: bool) -> None:
        super().__init__()
        self.conv1 = ConvBn(channels, channels, 3)
        self.conv2 = DepthwiseConv(channels)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(self.conv1(x))
        return out + x if self.shortcut else out


class CspLayer(nn.Module):
    """Half of the channels through blocks, half around them, weighed by channel attention and mixed again."""

    def __init__(self, channels: int, blocks: int, *, shortcut: bool) -> None:
        super().__init__()
        half = channels // 2
        self.main_conv = ConvBn(channels, half, 1)
        self.short_conv = ConvBn(channels, half, 1)
        self.final_conv = ConvBn(2 * half, channels, 1)
        self.blocks = nn.Sequential(*(Block(half, shortcut=shortcut) for _ in range(blocks)))
        self.attention = ChannelAttention(2 * half)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([self.blocks(self.main_conv(x)), self.short_conv(x)], dim=1)
        return self.final_conv(self.attention(both))


class ChannelAttention(nn.Module):
    """Channels times factors between 0 and 1, which follow from their means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * nn.functional.hardsigmoid(self.fc(x.mean((2, 3), keepdim=True)))


class PyramidPooling(nn.Module):
    """Features beside their maxima over windows of 5, 9 and 13."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = ConvBn(channels, channels // 2, 1)
        self.poolings = nn.ModuleList(nn.MaxPool2d(window, 1, padding=window // 2) for window in (5, 9, 13))
        self.conv2 = ConvBn(channels // 2 * 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        return self.conv2(torch.cat([x, *(pooling(x) for pooling in self.poolings)], dim=1))
