# SPDX-License-Identifier: Apache-2.0
"""The peers of the benchmarks do the work they are timed for: they match the definitions of the ops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench import vectorized
from fastpose import ImageBatch, reference
from fastpose.skeletons import MPII
from tests.test_affine_crop import random_images, random_matrices
from tests.test_decode_heatmaps import INF, NAN, random_maps
from tests.test_geometry import random_boxes
from tests.test_render_heatmaps import random_points

SEEDS = range(8)


def assert_close(got: tuple[torch.Tensor, ...], expected: tuple[np.ndarray, ...], atol: float = 1e-5) -> None:
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one.cpu().numpy(), other, rtol=1e-5, atol=atol)


@pytest.mark.parametrize("seed", SEEDS)
def test_vectorized_crop(device: torch.device, seed: int) -> None:
    images, matrix = random_images(3, seed), random_matrices(4, seed)
    matrix[seed % 4, seed % 2, seed % 3] = [NAN, INF, 1e30, 0.0][seed % 4]
    batch, index = ImageBatch.from_list(images).to(device), torch.tensor([2, 0, 0, 1], device=device)
    color = torch.tensor([[0.5, 0.25, 0, 1], [0, 1, 0, -2], [0, 0, 1, 0]])
    out = vectorized.affine_crop(
        batch.data, batch.offsets, batch.sizes, matrix.to(device), (9, 11), image_index=index, color=color, fill=3.0
    )
    options = {"image_index": index.cpu().numpy(), "color": color.numpy(), "fill": 3.0}
    assert_close((out,), (reference.affine_crop(images, matrix.numpy(), (9, 11), **options),), atol=0.05)
    dense = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (4, 8, 7, 3), dtype=np.uint8)).to(device)
    out = vectorized.affine_crop(dense, None, None, matrix.to(device), (9, 11))
    assert_close((out,), (reference.affine_crop(dense.cpu(), matrix, (9, 11)),), atol=0.05)


@pytest.mark.parametrize("encoding", ["msra", "unbiased", "udp"])
@pytest.mark.parametrize("seed", SEEDS)
def test_vectorized_targets_and_loss(device: torch.device, encoding: str, seed: int) -> None:
    points, visible = random_points(3, 5, (13, 18), seed)
    points[0, seed % 5, seed % 2] = [NAN, INF, -INF, 3e38][seed % 4]
    options = {"sigma": 1.0 + seed % 3, "encoding": encoding}
    got = vectorized.render_heatmaps(points.to(device), visible.to(device), (13, 18), **options)
    assert_close(got, reference.render_heatmaps(points, visible, (13, 18), **options))
    pred, joint_weights = torch.randn(3, 5, 13, 18), torch.rand(5)
    for missing in ("zeros", "ignore"):
        options["missing"] = missing
        loss = vectorized.heatmap_mse_loss(
            pred.to(device), points.to(device), visible.to(device), joint_weights=joint_weights.to(device), **options
        )
        expected = reference.heatmap_mse_loss(pred, points, visible, joint_weights=joint_weights, **options)
        assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("refine", ["none", "quarter"])
@pytest.mark.parametrize("seed", SEEDS)
def test_vectorized_decode(device: torch.device, refine: str, seed: int) -> None:
    maps, mirrored = random_maps((2, 16, 7, 9), seed), random_maps((2, 16, 7, 9), seed + 1)
    maps[0, seed, 3, 4], maps[0, seed + 1], maps[1, seed, 2:4, 3] = NAN, NAN, INF
    matrix = torch.randn(2, 2, 3)
    options = {"refine": refine, "heatmap_to_image": matrix.numpy()}
    got = vectorized.decode_heatmaps(maps.to(device), refine=refine, heatmap_to_image=matrix.to(device))
    assert_close(got, reference.decode_heatmaps(maps, **options))
    flip = {"flip_pairs": MPII.mirror_pairs, "flip_shift": bool(seed % 2)}
    got = vectorized.decode_heatmaps(maps.to(device), refine=refine, flipped=mirrored.to(device), **flip)
    assert_close(got, reference.decode_heatmaps(maps, refine=refine, flipped=mirrored, **flip))


@pytest.mark.parametrize("udp", [False, True])
def test_vectorized_geometry(device: torch.device, udp: bool) -> None:
    center, scale, rotation, flip = random_boxes(16)
    on_device = [t.to(device) for t in (center, scale, rotation)]
    matrix = vectorized.crop_to_image_matrix(*on_device, (64, 48), flip=flip.to(device), udp=udp)
    assert_close(
        (matrix,), (reference.crop_to_image_matrix(center, scale, rotation, (64, 48), flip=flip, udp=udp),), 1e-4
    )
    points, visible = torch.randn(16, 16, 2) * 50, torch.rand(16, 16)
    matrix[3] = 0
    singular = vectorized.transform_points(points.to(device), matrix, inverse=True).cpu()
    assert torch.isnan(singular[3]).all()
    matrix[3] = torch.eye(2, 3)
    for inverse in (False, True):
        got = vectorized.transform_points(points.to(device), matrix, inverse=inverse)
        assert_close((got,), (reference.transform_points(points, matrix, inverse=inverse),), 1e-3)
    arguments = (points.to(device), visible.to(device), flip.to(device), MPII.mirror_pairs)
    assert_close(vectorized.swap_pairs(*arguments), reference.swap_pairs(points, visible, flip, MPII.mirror_pairs))
