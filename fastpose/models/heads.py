# SPDX-License-Identifier: Apache-2.0
"""From the stages of a backbone to features at stride 4: deconvolutions, or plain convolutions and resizing."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from fastpose.models.resnet import Bottleneck


def deconv_layers(in_channels: int, channels: int) -> nn.Sequential:
    """Three rounds of 4x4 deconvolution with stride 2, batch normalisation and ReLU: SimpleBaselines' head.

    Its last 1x1 convolution is the model's ``final_layer``.
    """
    layers: list[nn.Module] = []
    for inputs in (in_channels, channels, channels):
        layers += [
            nn.ConvTranspose2d(inputs, channels, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


class FcnLayers(nn.Module):
    """Plain convolutions instead of deconvolutions (the paper, section 4.2).

    The last stage is brought to ``channels`` by a 1x1 convolution. Then, three times: resize x2 (nearest), add the
    backbone stage of that size through a 1x1 convolution, and a bottleneck block of 1x1, 3x3 and 1x1 convolutions.
    At stride 4 follow two of the three rounds of 1x1 convolutions; the third is the model's ``final_layer``.

    The paper's: no deconvolution; blocks of three convolutions of 1, 3, 1; three rounds of 1x1 convolutions once the
    output resolution is reached; batch normalisation. Our reading, as it names neither widths nor how the resolution
    rises: the steps of x2, that the stages are added and where, ``channels`` (SimpleBaselines' 256) with a quarter of
    it inside the blocks, and batch normalisation after every convolution but the last.

    Args:
        stage_channels: channels of the backbone's stages, finest first.
        channels: channels of everything here; a multiple of 4.
    """

    def __init__(self, stage_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(_conv_bn(inputs, channels) for inputs in stage_channels)
        self.blocks = nn.ModuleList(
            Bottleneck(channels, channels // Bottleneck.expansion) for _ in range(len(stage_channels) - 1)
        )
        self.rounds = nn.Sequential(*(_conv_bn(channels, channels, relu=True) for _ in range(2)))

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        """Stages at strides 4, 8, 16, 32 to features [B, channels, H/4, W/4]."""
        laterals = [lateral(stage) for lateral, stage in zip(self.laterals, stages, strict=True)]
        x = laterals[-1]
        for lateral, block in zip(laterals[-2::-1], self.blocks, strict=True):
            x = block(F.interpolate(x, scale_factor=2.0, mode="nearest") + lateral)
        return self.rounds(x)


def _conv_bn(in_channels: int, out_channels: int, *, relu: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)]
    return nn.Sequential(*layers, *([nn.ReLU(inplace=True)] if relu else []))
