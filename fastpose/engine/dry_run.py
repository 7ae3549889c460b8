# SPDX-License-Identifier: Apache-2.0
"""What a dry run tries and prints."""

from __future__ import annotations

import sys
from contextlib import closing

import torch
from torch import Tensor

from fastpose.data.loader import Batch, PoseLoader


def first_batch(loader: PoseLoader, epoch: int = 0) -> Batch:
    """The first batch of an epoch."""
    with closing(loader.epoch(epoch)) as batches:
        return next(batches)


def shape_of(tensor: Tensor) -> str:
    """Shape and type of a tensor, for people."""
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def peak_memory(device: torch.device) -> str:
    """What this process has taken of memory at the most: of a GPU's, else of the host's."""
    if device.type == "cuda":
        allocated, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
        return f"memory of the GPU: at most {allocated / 2**20:.0f} MiB in tensors, {reserved / 2**20:.0f} MiB in all"
    if sys.platform == "win32":
        return "memory: Windows does not report it"
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, others KiB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return f"memory of this process: at most {peak / 2**20:.0f} MiB"
