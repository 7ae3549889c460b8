# SPDX-License-Identifier: Apache-2.0
"""The network of the older runs, which their checkpoints name: `older_network:make`. Its weights take a few kB."""

from __future__ import annotations

import signal
import zlib

import torch
from torch import nn


def make(num_joints: int) -> nn.Module:
    """Heatmaps [B, K, H/4, W/4]. No bias before a normalisation: its gradient would be rounding noise alone, and
    RMSprop and Adam make steps of full length of that."""
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        nn.Conv2d(16, num_joints, 1),
    )


def make_stopping(num_joints: int) -> nn.Module:
    """As `make`, but its first step of training is met by a Ctrl-C: for runs of which only the beginning is wanted."""
    network = make(num_joints)

    def stop(network: nn.Module, images: object) -> None:
        if network.training:
            signal.raise_signal(signal.SIGINT)

    network.register_forward_pre_hook(stop)
    return network


def probe() -> int:
    """A checksum of two steps of training in torch alone, in the shapes and with the optimisers of the older runs.

    Where it differs from the stored one, this processor's or this torch's convolutions round otherwise than they did
    where the files were made, and so must everything that is computed with them.
    """
    crc = 0
    for kind, (height, width), layout in (
        (torch.optim.RMSprop, (32, 32), torch.contiguous_format),
        (torch.optim.Adam, (32, 32), torch.contiguous_format),
        (torch.optim.AdamW, (48, 32), torch.channels_last),
    ):
        torch.manual_seed(0)
        network = make(16).to(memory_format=layout)  # type: ignore[call-overload]
        optimizer = kind(network.parameters(), lr=0.01, **({} if kind is torch.optim.RMSprop else {"fused": True}))
        for batch in (4, 2):
            pixels = torch.arange(batch * 3 * height * width) * 7919 % 251  # as good as random
            images = (pixels.float() / 251).reshape(batch, 3, height, width).contiguous(memory_format=layout)
            optimizer.zero_grad()
            (network(images) - 0.5).square().mean().backward()
            optimizer.step()
        network.eval()
        for tensor in (*network.state_dict().values(), network(images).detach()):
            crc = zlib.crc32(tensor.contiguous().numpy().tobytes(), crc)
    return crc
