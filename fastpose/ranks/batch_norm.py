# SPDX-License-Identifier: Apache-2.0
"""Batch normalisation over the batches of all ranks, for the CPU: torch's SyncBatchNorm runs on GPUs alone."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class SumOfRanks(torch.autograd.Function):
    """The sum of the ranks' tensors, and of their gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        total = tensor.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


class BatchNormOfAllRanks(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation over the batches of all ranks of `group`, on the CPU. A rank's batch may be empty."""

    group: dist.ProcessGroup

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of axes behind the channels will do."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        axes = [0, *range(2, input.ndim)]
        shape = [1, -1] + [1] * (input.ndim - 2)
        values = input.float()
        # In float64 the sums are nearly independent of how many ranks there are.
        own = torch.tensor([values.numel() // values.shape[1]], dtype=torch.float64)
        sums = SumOfRanks.apply(torch.cat([values.sum(axes, dtype=torch.float64), own]), self.group)
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = values - mean.float().view(shape)
        squares = SumOfRanks.apply((centred * centred).sum(axes, dtype=torch.float64), self.group)
        if self.track_running_stats:
            assert self.num_batches_tracked is not None
            assert self.running_mean is not None
            assert self.running_var is not None
            self.num_batches_tracked.add_(1)
            share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            with torch.no_grad():
                self.running_mean.lerp_(mean.float(), share)
                self.running_var.lerp_((squares / (count - 1)).float(), share)
        result = centred * (squares / count + self.eps).rsqrt().float().view(shape)
        if self.affine:
            result = result * self.weight.view(shape) + self.bias.view(shape)
        return result.to(input.dtype)
