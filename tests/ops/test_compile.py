# SPDX-License-Identifier: Apache-2.0
"""The ops between a user's own layers, compiled as one graph by inductor (the op tests use cheaper backends)."""

from __future__ import annotations

import torch
from torch import Tensor

import fastpose
from fastpose.skeletons import MPII


def pipeline(
    model: torch.nn.Module, pixels: Tensor, center: Tensor, scale: Tensor, flip: Tensor, joints: Tensor, visible: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes to loss and decoded points, with every op on the way."""
    rotation = torch.zeros_like(scale)
    crop_to_image = fastpose.crop_to_image_matrix(center, scale, rotation, (32, 32), flip=flip)
    heatmap_to_image = fastpose.crop_to_image_matrix(center, scale, rotation, (8, 8), flip=flip)
    color = torch.tensor([[1 / 255.0, 0, 0, 0], [0, 1 / 255.0, 0, 0], [0, 0, 1 / 255.0, 0]])
    crops = fastpose.affine_crop(pixels, crop_to_image, (32, 32), color=color, memory_format=torch.channels_last)
    on_map = fastpose.transform_points(joints, heatmap_to_image, inverse=True)
    on_map, flags = fastpose.swap_pairs(on_map, visible, flip, MPII.mirror_pairs)
    pred = model(crops)
    target, weight = fastpose.render_heatmaps(on_map, flags, (8, 8))
    loss = fastpose.heatmap_mse_loss(pred, on_map, flags) + (weight[..., None, None] * (pred - target) ** 2).mean()
    mirrored = model(crops.flip(3))
    points, scores = fastpose.decode_heatmaps(
        pred, flipped=mirrored, flip_pairs=MPII.mirror_pairs, flip_shift=True, heatmap_to_image=heatmap_to_image
    )
    refined, _ = fastpose.decode_heatmaps(
        pred.abs(), refine="dark_udp", blur_kernel=3, heatmap_to_image=heatmap_to_image
    )
    return loss, torch.stack([points, refined]), scores


def test_the_whole_pipeline_compiles_as_one_graph_with_inductor(device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Conv2d(3, 16, 4, stride=4).to(device, memory_format=torch.channels_last)
    pixels = torch.randint(0, 256, (3, 40, 50, 3), generator=generator, dtype=torch.uint8)
    center, scale = torch.tensor([[25.0, 20.0]]).repeat(3, 1), torch.tensor([0.2, 0.15, 0.3])
    joints = center[:, None] + torch.randn(3, 16, 2, generator=generator) * 10
    flip, visible = torch.tensor([True, False, True]), torch.ones(3, 16)
    arguments = [t.to(device) for t in (pixels, center, scale, flip, joints, visible)]

    loss, points, scores = pipeline(model, *arguments)
    loss.backward()
    expected = model.weight.grad.clone()
    model.zero_grad()
    compiled_loss, compiled_points, compiled_scores = torch.compile(pipeline, fullgraph=True)(model, *arguments)
    compiled_loss.backward()
    torch.testing.assert_close(compiled_loss, loss)
    torch.testing.assert_close(compiled_points, points)
    torch.testing.assert_close(compiled_scores, scores)
    torch.testing.assert_close(model.weight.grad, expected)
