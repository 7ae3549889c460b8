# SPDX-License-Identifier: Apache-2.0
"""SimCC: a vector per joint and axis instead of a heatmap, and RTMPose's head, which returns them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIDE = 32  # of the backbone's last stage
ATTENTION = 128  # features that joints are compared by
MOST_BINS = 1 << 14  # of a vector: more than of any picture that is cropped, and no file may ask for terabytes


@dataclass(frozen=True)
class SimccVectors:
    """What the vectors of a network are.

    Attributes:
        split_ratio: bins per pixel of the network's input.
        sigma: standard deviations of the labels in x and y, bins.
    """

    split_ratio: float
    sigma: tuple[float, float]


def bins_of(size: tuple[int, int], split_ratio: float) -> tuple[int, int]:
    """Bins (in y, in x) for crops of ``size`` (h, w).

    Raises:
        ValueError: a side times `split_ratio` is not a whole number from 2 to MOST_BINS.
    """
    bins = [side * split_ratio for side in size]
    if not all(2 <= count <= MOST_BINS and count == int(count) for count in bins):
        raise ValueError(
            f"split_ratio must give 2 to {MOST_BINS} bins, a whole number, for {size[0]}x{size[1]} pixels, got "
            f"{split_ratio}"
        )
    return int(bins[0]), int(bins[1])


class SimccHead(nn.Module):
    """Features [B, C, H/32, W/32] to SimCC's vectors, one per joint and axis (RTMPose, Jiang et al. 2023).

    A 7x7 convolution to one map per joint, each map as a vector through a linear layer, attention among the joints,
    and a linear layer per axis. Parameter names, sizes and initialisation are those of mmpose's ``RTMCCHead`` in
    RTMPose's settings, so that published heads load.

    Args:
        in_channels: channels of the features.
        num_joints: K.
        size: (h, w) of the network's input, pixels, multiples of 32.
        channels: features per joint.
        split_ratio: bins per pixel of the input.

    Raises:
        ValueError: an argument has another value; in `forward`: the features are of another size of input.
    """

    def __init__(
        self,
        in_channels: int,
        num_joints: int,
        size: tuple[int, int],
        *,
        channels: int = 256,
        split_ratio: float = 2.0,
    ) -> None:
        super().__init__()
        if len(size) != 2 or any(side < STRIDE or side % STRIDE for side in size):
            raise ValueError(f"size must be (h, w), positive multiples of {STRIDE} pixels, got {tuple(size)}")
        for name, value in (("num_joints", num_joints), ("channels", channels)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive whole number, got {value!r}")
        bins_y, bins_x = bins_of(size, split_ratio)
        self.size = (size[0], size[1])
        cells = (size[0] // STRIDE) * (size[1] // STRIDE)
        self.final_layer = nn.Conv2d(in_channels, num_joints, 7, padding=3)
        self.mlp = nn.Sequential(ScaleNorm(cells), nn.Linear(cells, channels, bias=False))
        self.gau = GatedAttention(channels)
        self.cls_x = nn.Linear(channels, bins_x, bias=False)
        self.cls_y = nn.Linear(channels, bins_y, bias=False)
        nn.init.normal_(self.final_layer.weight, std=0.001)
        nn.init.zeros_(self.final_layer.bias)  # type: ignore[arg-type]
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors in x [B, K, W · split_ratio] and in y [B, K, H · split_ratio], before any softmax."""
        got = (STRIDE * features.shape[2], STRIDE * features.shape[3])
        if got != self.size:
            raise ValueError(
                f"images must be {self.size[0]}x{self.size[1]}, which this head is for, got {got[0]}x{got[1]}"
            )
        joints = self.gau(self.mlp(self.final_layer(features).flatten(2)))
        return self.cls_x(joints), self.cls_y(joints)


class ScaleNorm(nn.Module):
    """Vectors of n numbers over their root mean square, times one learnt factor (Nguyen and Salazar 2019)."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.scale = n**-0.5
        self.g = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True) * self.scale
        return x / norm.clamp(min=1e-5) * self.g


class GatedAttention(nn.Module):
    """A gated attention unit among the joints (Hua et al. 2022), with a scaled shortcut around it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = 2 * channels
        self.ln = ScaleNorm(channels)
        self.uv = nn.Linear(channels, 2 * self.inner + ATTENTION, bias=False)
        self.gamma = nn.Parameter(torch.rand(2, ATTENTION))
        self.beta = nn.Parameter(torch.rand(2, ATTENTION))
        self.o = nn.Linear(self.inner, channels, bias=False)
        self.res_scale = Scale(channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, K, channels] to the same."""
        gate, values, base = F.silu(self.uv(self.ln(x))).split((self.inner, self.inner, ATTENTION), dim=2)
        queries, keys = (base[:, :, None] * self.gamma + self.beta).unbind(dim=2)
        attention = F.relu(queries @ keys.mT / ATTENTION**0.5).square()
        return self.res_scale(x) + self.o(gate * (attention @ values))


class Scale(nn.Module):
    """A learnt factor per channel; a module, as mmpose has it, for its name."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale
