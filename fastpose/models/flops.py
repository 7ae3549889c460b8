# SPDX-License-Identifier: Apache-2.0
"""What a model costs: parameters and floating-point operations."""

from __future__ import annotations

from typing import get_args

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fastpose.models.pose_resnet import Head, pose_resnet
from fastpose.models.resnet import DEPTHS


def count_parameters(model: nn.Module) -> int:
    """Trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def count_flops(model: nn.Module, size: tuple[int, int]) -> int:
    """Operations of one forward pass over one image of ``size`` (h, w).

    A multiply-add counts as two. Convolutions, deconvolutions and matrix products count (torch's `FlopCounterMode`);
    normalisation, activations and resizing, below 1 % here, do not. Nothing is computed and the model is not changed:
    the pass runs on tensors without data.
    """
    state = {name: value.to("meta") for name, value in [*model.named_parameters(), *model.named_buffers()]}
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        torch.func.functional_call(model, state, (torch.empty(1, 3, *size, device="meta"),))
    return counter.get_total_flops()


def compare_heads(
    depths: tuple[int, ...] = DEPTHS, size: tuple[int, int] = (256, 256), num_joints: int = 16, channels: int = 256
) -> str:
    """A table of the heads side by side: parameters in millions and GFLOPs of one image of ``size`` (h, w)."""
    heads = get_args(Head)
    width = 12 * len(heads)
    lines = [
        f"input {size[0]} x {size[1]}, {num_joints} joints, {channels} channels; GFLOPs per image, multiply-add = 2",
        f"{'':12}{'parameters (M)':>{width}}{'GFLOPs':>{width}}",
        f"{'':12}" + "".join(f"{head:>12}" for head in heads) * 2,
    ]
    for depth in depths:
        parameters, flops = [], []
        for head in heads:
            with torch.device("meta"):
                model = pose_resnet(depth, head, num_joints, channels=channels, size=size)
            parameters.append(f"{count_parameters(model) / 1e6:12.2f}")
            flops.append(f"{count_flops(model, size) / 1e9:12.2f}")
        lines.append(f"{f'ResNet-{depth}':12}{''.join(parameters)}{''.join(flops)}")
    return "\n".join(lines)
