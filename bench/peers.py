# SPDX-License-Identifier: Apache-2.0
"""What else a user could run on the GPU for the same crops and the same loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import fastpose
from bench import vectorized
from bench.timing import Run

# What the hardware does with the same bytes, or less work than the op's; they are no peers to win against.
HINTS = ("zeros", "amax", "grid_sample_bare")


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` under torch.compile, with nothing remembered of what was compiled before."""
    torch.compiler.reset()
    return torch.compile(function, dynamic=False, fullgraph=True)


def render_and_mse_loss(
    pred: Tensor, keypoints: Tensor, visible: Tensor, *, dtype: torch.dtype, **options: Any
) -> Tensor:
    """The loss as a user has it: a float32 target in memory, `mse_loss`, half precision under autocast."""
    target, _ = fastpose.render_heatmaps(keypoints, visible, (pred.shape[2], pred.shape[3]), **options)
    with torch.autocast(pred.device.type, dtype, enabled=dtype != torch.float32):
        return 0.5 * functional.mse_loss(pred, target)


@dataclass(frozen=True)
class CropWork:
    """The crops to make: set n takes images `index[n]`, neighbours, through `matrix[n]`."""

    images: fastpose.ImageBatch
    matrix: Sequence[Tensor]
    index: Sequence[Tensor]
    size: tuple[int, int]
    color: Tensor
    dtype: torch.dtype
    memory_format: torch.memory_format

    def padded(self, views: Sequence[Tensor]) -> Tensor:
        """Images of different sizes as one float tensor [B, 3, H, W]: every peer must get there first."""
        height, width = (max(view.shape[axis] for view in views) for axis in (0, 1))
        out = torch.zeros(len(views), 3, height, width, device=self.images.device)
        for target, view in zip(out, views, strict=True):
            target[:, : view.shape[0], : view.shape[1]] = view.permute(2, 0, 1)
        return out

    def views(self) -> list[list[Tensor]]:
        """The images of each set; looked up beforehand, because on a GPU that waits."""
        every = list(self.images)
        return [[every[i] for i in chosen.tolist()] for chosen in self.index]

    def finished(self, crops: Tensor) -> Tensor:
        """Normalised in one pass, in the type and layout that was asked for."""
        gain, shift = self.color.diagonal().view(1, 3, 1, 1), self.color[:, 3].view(1, 3, 1, 1)
        return torch.addcmul(shift, crops, gain).to(self.dtype, memory_format=self.memory_format)

    def grid(self, n: int, height: int, width: int) -> Tensor:
        """Where grid_sample shall look, [B, h, w, 2]: -1 and 1 are the middles of the first and last pixel."""
        y, x = torch.meshgrid(*(torch.arange(side, device=self.color.device) for side in self.size), indexing="ij")
        crop_points = torch.stack([x, y, torch.ones_like(x)], -1).view(1, -1, 3).float()
        x, y = (crop_points @ self.matrix[n].mT).unbind(2)
        return torch.stack([x * (2 / (width - 1)) - 1, y * (2 / (height - 1)) - 1], 2).view(-1, *self.size, 2)


def crop_peers(work: CropWork) -> dict[str, Callable[[], Run]]:
    """The peers of `affine_crop`, by name; each is made, or fails to be, when called."""
    return {
        "torch": lambda: _plain_crop(work, vectorized.affine_crop),
        "torch_compile": lambda: _plain_crop(work, compiled(vectorized.affine_crop)),
        "grid_sample": lambda: _grid_sample(work),
        "grid_sample_bare": lambda: _grid_sample_bare(work),
        "kornia": lambda: _kornia(work),
    }


def _plain_crop(work: CropWork, function: Callable[..., Tensor]) -> Run:
    images = work.images
    options = {"color": work.color, "dtype": work.dtype, "memory_format": work.memory_format}
    return lambda n: function(
        images.data, images.offsets, images.sizes, work.matrix[n], work.size, image_index=work.index[n], **options
    )


def _sample(images: Tensor, grid: Tensor) -> Tensor:
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=True)


def _grid_sample(work: CropWork) -> Run:
    views = work.views()

    def run(n: int) -> Tensor:
        images = work.padded(views[n])
        return work.finished(_sample(images, work.grid(n, *images.shape[2:])))

    return run


def _grid_sample_bare(work: CropWork) -> Run:
    """The sampling alone: images cast and padded, grids made, and nothing normalised."""
    ready: dict[tuple[int, ...], Tensor] = {}  # input sets may share their images
    prepared = []
    for n, (views, index) in enumerate(zip(work.views(), work.index, strict=True)):
        key = tuple(index.tolist())
        if key not in ready:
            ready[key] = work.padded(views)
        images = ready[key]
        prepared.append((images, work.grid(n, *images.shape[2:])))
    return lambda n: _sample(*prepared[n])


def _kornia(work: CropWork) -> Run:
    from kornia.geometry.transform import warp_affine  # a peer that need not be there

    views = work.views()
    inverse = [
        torch.linalg.inv(torch.cat([m, m.new_tensor([[[0, 0, 1]]]).expand(len(m), 1, 3)], 1)) for m in work.matrix
    ]

    def run(n: int) -> Tensor:
        images = work.padded(views[n])
        return work.finished(warp_affine(images, inverse[n][:, :2], work.size, align_corners=True))

    return run
