# SPDX-License-Identifier: Apache-2.0
"""fastpose.reference takes the calls of the ops as they are, tensors included, and refuses what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import fastpose
from fastpose import ImageBatch, reference

IMAGES = ImageBatch.from_list([np.full((6, 7, 3), 50, np.uint8), np.full((5, 4, 3), 9, np.uint8)])
MATRIX = torch.eye(2, 3).repeat(2, 1, 1)
POINTS, VISIBLE = torch.rand(2, 3, 2) * 8, torch.ones(2, 3)
MAPS = torch.rand(2, 3, 8, 8)
ROWS, COLUMNS = torch.rand(2, 3, 16), torch.rand(2, 3, 12)

CALLS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("affine_crop", (IMAGES, MATRIX, (4, 5)), {"dtype": torch.float32, "memory_format": torch.channels_last}),
    ("affine_crop", (IMAGES, MATRIX, (4, 5)), {"dtype": torch.uint8, "image_index": torch.tensor([1, 0])}),
    ("affine_crop", (IMAGES[0], MATRIX, (4, 5)), {"dtype": torch.bfloat16, "color": torch.eye(3, 4)}),
    ("affine_crop", (IMAGES, 0.6 * MATRIX, (4, 5)), {"resample": "bicubic"}),
    ("affine_crop", (IMAGES, MATRIX, (4, 5)), {"erase": torch.tensor([[[1.0, 0, 3, 3]], [[0.3, 0.3, 0.6, 9]]])}),
    ("render_heatmaps", (POINTS, VISIBLE, (8, 8)), {"dtype": torch.float16}),
    ("heatmap_mse_loss", (MAPS.bfloat16().requires_grad_(), POINTS, VISIBLE), {"joint_weights": torch.ones(3)}),
    ("heatmap_mse_loss", (MAPS, POINTS, VISIBLE), {"hard_joints": 2}),
    ("decode_heatmaps", (MAPS.bfloat16(),), {"flipped": MAPS.flip(3).bfloat16(), "flip_pairs": [(0, 1)]}),
    ("decode_heatmaps", (MAPS,), {"refine": "dark", "blur_kernel": 5, "heatmap_to_image": MATRIX}),
    ("simcc_loss", (ROWS.bfloat16().requires_grad_(), COLUMNS.bfloat16(), POINTS, VISIBLE), {"sigma": (2, 3)}),
    ("decode_simcc", (ROWS.half(), COLUMNS.half()), {"crop_to_image": MATRIX}),
    ("transform_points", (POINTS, MATRIX), {"inverse": True}),
    ("swap_pairs", (POINTS, VISIBLE, torch.tensor([True, False]), [(0, 2)]), {}),
    ("crop_to_image_matrix", (POINTS[:, 0], 1.0, 30.0, (8, 8)), {"flip": torch.tensor([True, False])}),
    ("crop_to_image_matrix", (POINTS[:, 0], torch.tensor(1.5), torch.tensor(5.0), (8, 8)), {"udp": True}),
    ("normalize_color", ((0.4, 0.5, 0.6), (0.1, 0.2, 0.3)), {}),
    ("jitter_color", (torch.rand(3, 4),), {"contrast": torch.tensor([0.5, 1.5]), "saturation": 0.3}),
]


@pytest.mark.parametrize(("name", "arguments", "options"), CALLS, ids=[call[0] for call in CALLS])
def test_the_same_call_gives_the_same_result(name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    got, expected = getattr(fastpose, name)(*arguments, **options), getattr(reference, name)(*arguments, **options)
    got, expected = (value if isinstance(value, tuple) else (value,) for value in (got, expected))
    for one, other in zip(got, expected, strict=True):
        tolerance = 8e-3 if one.dtype in (torch.bfloat16, torch.float16) else 1e-5
        np.testing.assert_allclose(one.detach().float().numpy(), other, rtol=tolerance, atol=tolerance)
        if name in ("swap_pairs", "crop_to_image_matrix", "transform_points", "decode_heatmaps", "decode_simcc"):
            assert other.dtype == np.float32


REFUSED: list[Callable[[Any], Any]] = [
    lambda f: f.decode_heatmaps(MAPS, flipped=MAPS),
    lambda f: f.decode_heatmaps(MAPS, blur_kernel=2),
    lambda f: f.decode_heatmaps(MAPS, blur_kernel=257),
    lambda f: f.decode_heatmaps(MAPS, blur_sigma=0.0),
    lambda f: f.decode_heatmaps(MAPS, refine="taylor"),
    lambda f: f.decode_heatmaps(MAPS, flipped=MAPS, flip_pairs=torch.tensor([[0, 1], [1, 2]])),
    lambda f: f.decode_heatmaps(MAPS, flipped=MAPS, flip_pairs=[0, 1]),
    lambda f: f.decode_simcc(ROWS, COLUMNS, flipped_x=ROWS),
    lambda f: f.decode_simcc(ROWS, COLUMNS, flipped_x=ROWS, flipped_y=COLUMNS),
    lambda f: f.decode_simcc(ROWS, COLUMNS, refine="quarter"),
    lambda f: f.decode_simcc(ROWS, COLUMNS, refine="dark", sigma=(0.4, 2.0)),
    lambda f: f.decode_simcc(ROWS, COLUMNS, split_ratio=0.0),
    lambda f: f.simcc_loss(ROWS, COLUMNS, POINTS, VISIBLE, sigma=(1.0, 0.0)),
    lambda f: f.simcc_loss(ROWS, COLUMNS, POINTS, VISIBLE, beta=-1.0),
    lambda f: f.swap_pairs(POINTS, VISIBLE, torch.tensor([True, True]), [[0, 1, 2]]),
    lambda f: f.swap_pairs(POINTS, VISIBLE, torch.tensor([True, True]), torch.tensor([[0, 1], [1, 2]])),
    lambda f: f.render_heatmaps(POINTS, VISIBLE, (8, 8), sigma=0.0),
    lambda f: f.render_heatmaps(POINTS, VISIBLE, (8, 8), encoding="simcc"),
    lambda f: f.heatmap_mse_loss(MAPS, POINTS, VISIBLE, missing="drop"),
    lambda f: f.heatmap_mse_loss(MAPS, POINTS, VISIBLE, hard_joints=0),
    lambda f: f.heatmap_mse_loss(MAPS, POINTS, VISIBLE, hard_joints=4),
    lambda f: f.crop_to_image_matrix(POINTS[:, 0], 1.0, 0.0, (0, 8)),
    lambda f: f.crop_to_image_matrix(POINTS[:, 0], 1.0, 0.0, (1, 8), udp=True),
    lambda f: f.normalize_color((0.5, 0.5, 0.5), (1.0, 0.0, 1.0)),
    lambda f: f.jitter_color(torch.rand(2, 3, 4)),
    lambda f: f.affine_crop(IMAGES, MATRIX[:1], (4, 4)),
    lambda f: f.affine_crop(IMAGES, MATRIX, (4, 4), resample="lanczos"),
    lambda f: f.affine_crop(IMAGES, MATRIX, (4, 4), erase=torch.zeros(1, 2, 4)),
    lambda f: f.affine_crop(IMAGES, MATRIX, (4, 4), image_index=torch.tensor([0, 2])),
]


@pytest.mark.parametrize("call", REFUSED)
def test_the_reference_refuses_what_the_ops_refuse(call: Callable[[Any], Any]) -> None:
    for module in (fastpose, reference):
        with pytest.raises((ValueError, RuntimeError, IndexError)):
            call(module)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: fastpose.affine_crop(np.zeros((4, 4, 3), np.uint8), MATRIX, (4, 4)),
            "images must be an ImageBatch or a torch.Tensor",
        ),
        (lambda: fastpose.affine_crop(IMAGES, MATRIX.numpy(), (4, 4)), "crop_to_image must be a torch.Tensor"),
        (
            lambda: fastpose.affine_crop(IMAGES, MATRIX, (4, 4), image_index=[0, 1]),
            "image_index must be a torch.Tensor",
        ),
        (lambda: fastpose.heatmap_mse_loss(MAPS.numpy(), POINTS, VISIBLE), "pred must be a torch.Tensor, got ndarray"),
        (lambda: fastpose.decode_heatmaps([1.0]), "heatmaps must be a torch.Tensor, got list"),
        (lambda: fastpose.transform_points(POINTS, None), "matrix must be a torch.Tensor, got NoneType"),
    ],
)
def test_an_argument_that_is_not_a_tensor_is_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        call()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_a_fractional_image_index_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(RuntimeError, match="image_index must be Long"):
        fastpose.affine_crop(IMAGES, MATRIX, (4, 4), image_index=torch.tensor([0.9, 0.0]).to(dtype))


def test_a_fractional_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"size must be \(h, w\), two whole numbers"):
        fastpose.affine_crop(IMAGES, MATRIX, (8.5, 8))  # type: ignore[arg-type]


def test_subpackages_are_attributes() -> None:
    assert fastpose.metrics.pckh_from_mat is not None
    assert fastpose.models.pose_resnet is not None
    assert fastpose.skeletons.MPII.num_joints == 16
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        fastpose.nonsense  # noqa: B018
