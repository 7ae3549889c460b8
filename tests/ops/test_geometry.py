# SPDX-License-Identifier: Apache-2.0
"""crop_to_image_matrix, transform_points, swap_pairs: conventions by hand, upstream's matrices, way there and back."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fastpose
from fastpose import reference
from fastpose.ops.swap_pairs import mirror_order
from fastpose.skeletons import MPII
from tests.helpers import upstream


def random_boxes(batch: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    center = torch.rand(batch, 2, generator=generator) * 1500
    scale = torch.rand(batch, 2, generator=generator) * 5 + 0.1
    rotation = torch.rand(batch, generator=generator) * 720 - 360
    return center, scale, rotation, torch.rand(batch, generator=generator) < 0.5


# ---- crop_to_image_matrix -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("udp", [False, True])
@pytest.mark.parametrize("size", [(256, 192), (64, 48), (2, 3), (257, 129)])
def test_matrix_matches_reference(device: torch.device, udp: bool, size: tuple[int, int]) -> None:
    center, scale, rotation, flip = random_boxes(64)
    matrix = fastpose.crop_to_image_matrix(
        center.to(device), scale.to(device), rotation.to(device), size, flip=flip.to(device), udp=udp
    )
    expected = reference.crop_to_image_matrix(
        center.numpy(), scale.numpy(), rotation.numpy(), size, flip=flip.numpy(), udp=udp
    )
    np.testing.assert_allclose(matrix.cpu().numpy(), expected, rtol=2e-6, atol=1e-4)


def test_matrix_by_hand(device: torch.device) -> None:
    """A 200 px box on 100 px: step 2; (50, 50) of the crop is the centre (300, 400).

    Turned by 90°, crop x runs down the image and crop y to the left: x = 300 − 2 (y − 50), y = 400 + 2 (x − 50).
    Mirrored, x becomes 600 − x. Under UDP the middle is (49.5, 49.5) and the step 200 / 99.
    """
    center, scale = torch.tensor([[300.0, 400.0]], device=device), torch.tensor([1.0], device=device)
    flip = torch.tensor([True], device=device)
    upright = fastpose.crop_to_image_matrix(center, scale, 0.0, (100, 100))
    assert upright.tolist() == [[[2, 0, 200], [0, 2, 300]]]
    assert fastpose.crop_to_image_matrix(center, scale, 90.0, (100, 100)).tolist() == [[[0, -2, 400], [2, 0, 300]]]
    mirrored = fastpose.crop_to_image_matrix(center, scale, 90.0, (100, 100), flip=flip)
    assert mirrored.tolist() == [[[0, 2, 200], [2, 0, 300]]]
    udp = fastpose.crop_to_image_matrix(center, scale, 0.0, (100, 100), udp=True)
    step = 200 / 99
    expected = torch.tensor([[[step, 0, 300 - 49.5 * step], [0, step, 400 - 49.5 * step]]])
    torch.testing.assert_close(udp.cpu(), expected)


@given(seed=st.integers(0, 10_000))
def test_matrix_is_the_inverse_of_simple_baselines(seed: int) -> None:
    """Image points through upstream's matrix and back through ours: within 1e-3 px, with the width alone deciding."""
    center, scale, rotation, _ = random_boxes(4, seed)
    matrix = fastpose.crop_to_image_matrix(center, scale, rotation, (256, 192))
    corners = np.array([[0, 0, 1], [191, 0, 1], [0, 255, 1], [191, 255, 1]], np.float64).T
    for b in range(4):
        there = upstream.image_to_crop(
            center[b].double().numpy(), scale[b].double().numpy(), float(rotation[b]), width=192, height=256
        )
        inverse = np.linalg.inv(np.vstack([there, [0, 0, 1]]))[:2]
        np.testing.assert_allclose(matrix[b].double().numpy() @ corners, inverse @ corners, rtol=0, atol=1e-3)


@given(seed=st.integers(0, 10_000))
def test_udp_matrix_is_mmposes_at_minus_the_rotation(seed: int) -> None:
    center, scale, rotation, _ = random_boxes(4, seed)
    matrix = fastpose.crop_to_image_matrix(center, scale, rotation, (256, 192), udp=True)
    corners = np.array([[0, 0, 1], [191, 0, 1], [0, 255, 1], [191, 255, 1]], np.float64).T
    for b in range(4):
        box = 200.0 * scale[b].double().numpy()
        there = upstream.udp_image_to_crop(center[b].double().numpy(), box, -float(rotation[b]), width=192, height=256)
        inverse = np.linalg.inv(np.vstack([there, [0, 0, 1]]))[:2]
        np.testing.assert_allclose(matrix[b].double().numpy() @ corners, inverse @ corners, rtol=0, atol=1e-3)


def test_flipped_crop_is_the_crop_of_the_mirrored_image(device: torch.device) -> None:
    """SimpleBaselines mirrors the source, center_x = W − center_x − 1, and crops that; our matrix does both."""
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (60, 81, 3), dtype=np.uint8)).to(device)
    center = torch.tensor([[30.0, 25.0]], device=device)
    scale, rotation = torch.tensor([0.25], device=device), torch.tensor([20.0], device=device)
    ours = fastpose.affine_crop(
        image,
        fastpose.crop_to_image_matrix(center, scale, rotation, (32, 32), flip=torch.tensor([True], device=device)),
        (32, 32),
    )
    mirrored_center = torch.tensor([[81 - 30.0 - 1, 25.0]], device=device)
    theirs = fastpose.affine_crop(
        image.flip(1), fastpose.crop_to_image_matrix(mirrored_center, scale, rotation, (32, 32)), (32, 32)
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0.02)


def test_matrix_of_the_heatmap_is_the_crops_composed_with_the_stride() -> None:
    center, scale, rotation, flip = random_boxes(8)
    for udp, stride in ((False, 4.0), (True, 255 / 63)):
        crop = fastpose.crop_to_image_matrix(center, scale, rotation, (256, 256), flip=flip, udp=udp)
        heatmap = fastpose.crop_to_image_matrix(center, scale, rotation, (64, 64), flip=flip, udp=udp)
        composed = crop.clone()
        composed[:, :, :2] *= stride
        torch.testing.assert_close(heatmap, composed, rtol=1e-5, atol=1e-3)


# ---- transform_points -----------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 10_000), inverse=st.booleans())
def test_points_match_reference(seed: int, inverse: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    points, matrix = torch.randn(3, 4, 2, generator=generator) * 100, torch.randn(3, 2, 3, generator=generator)
    out = fastpose.transform_points(points, matrix, inverse=inverse)
    expected = reference.transform_points(points.numpy(), matrix.numpy(), inverse=inverse)
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-6, atol=1e-5)


def test_points_come_back(device: torch.device) -> None:
    """Within float32's own rounding of the intermediate points, whatever the box."""
    center, scale, rotation, flip = (t.to(device) for t in random_boxes(128))
    matrix = fastpose.crop_to_image_matrix(center, scale, rotation, (64, 64), flip=flip)
    joints = center[:, None] + torch.randn(128, 16, 2, generator=torch.Generator().manual_seed(0)).to(device) * 100
    back = fastpose.transform_points(fastpose.transform_points(joints, matrix, inverse=True), matrix)
    assert float((back - joints).abs().max()) < 1e-3


@pytest.mark.parametrize(
    "bad",
    [
        [[1.0, 2.0, 0.0], [2.0, 4.0, 0.0]],
        [[0.0, 0.0, 5.0], [0.0, 0.0, 5.0]],
        [[float("nan"), 0, 0], [0, 1, 0]],
        [[1, 0, float("inf")], [0, 1, 0]],
    ],
)
def test_only_inverting_a_singular_matrix_is_an_error_on_the_cpu(bad: list[list[float]]) -> None:
    matrix, points = torch.stack([torch.eye(2, 3), torch.tensor(bad)]), torch.ones(2, 1, 2)
    fastpose.transform_points(points, matrix)
    with pytest.raises(RuntimeError, match=r"matrix\[1\] must be invertible"):
        fastpose.transform_points(points, matrix, inverse=True)
    with pytest.raises(ValueError, match=r"matrix\[1\] must be invertible"):
        reference.transform_points(points.numpy(), matrix.numpy(), inverse=True)


@pytest.mark.cuda
def test_inverting_a_singular_matrix_gives_nan_on_cuda() -> None:
    matrix = torch.stack([torch.eye(2, 3), torch.zeros(2, 3)]).cuda()
    out = fastpose.transform_points(torch.ones(2, 3, 2).cuda(), matrix, inverse=True)
    assert torch.isfinite(out[0]).all()
    assert torch.isnan(out[1]).all()


@pytest.mark.parametrize("inverse", [False, True])
def test_points_gradcheck(device: torch.device, inverse: bool) -> None:
    points = torch.randn(2, 3, 2, dtype=torch.float64, device=device, requires_grad=True)
    matrix = torch.tensor([[[2.0, 0.5, 1], [0.25, 1, 3]], [[1, 0, 0], [0, -1, 0]]], device=device)
    assert torch.autograd.gradcheck(lambda p: fastpose.transform_points(p, matrix, inverse=inverse), (points,))


# ---- swap_pairs -----------------------------------------------------------------------------------------------------


def test_swap_exchanges_the_rows_of_flipped_samples_only(device: torch.device) -> None:
    points = torch.arange(2 * 4 * 2, dtype=torch.float32, device=device).view(2, 4, 2)
    visible = torch.tensor([[1.0, 0, 1, 1], [0, 1, 1, 0]], device=device)
    flip = torch.tensor([True, False], device=device)
    swapped, flags = fastpose.swap_pairs(points, visible, flip, [(0, 3)])
    assert swapped[0].tolist() == [[6, 7], [2, 3], [4, 5], [0, 1]]
    assert flags[0].tolist() == [1, 0, 1, 1]
    assert torch.equal(swapped[1], points[1])
    assert torch.equal(flags[1], visible[1])


def test_swap_matches_reference_and_undoes_itself(device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    points, visible = torch.randn(9, 16, 2, generator=generator), torch.rand(9, 16, generator=generator)
    flip = torch.rand(9, generator=generator) < 0.5
    arguments = (points.to(device), visible.to(device), flip.to(device), MPII.mirror_pairs)
    out = fastpose.swap_pairs(*arguments)
    expected = reference.swap_pairs(points.numpy(), visible.numpy(), flip.numpy(), MPII.mirror_pairs)
    for got, want in zip(out, expected, strict=True):
        np.testing.assert_array_equal(got.cpu().numpy(), want)
    assert torch.equal(fastpose.swap_pairs(*out, *arguments[2:])[0].cpu(), points)


@given(st.permutations(range(9)), st.integers(0, 4))
def test_mirror_order_is_the_reference_s(joints: list[int], count: int) -> None:
    pairs = [(joints[2 * i], joints[2 * i + 1]) for i in range(count)]
    expected = reference.mirror_order(pairs, 9)
    assert mirror_order(pairs, 9) == mirror_order(torch.tensor(pairs).view(-1, 2), 9) == expected


NOT_PAIRS = [[(0, 9)], [(-1, 2)], [(0, 0)], [(0, 1), (2, 1)], [(0, 1, 2)], [0, 1], [(0.0, 1.0)], 3]


@pytest.mark.parametrize("pairs", NOT_PAIRS)
def test_mirror_order_refuses_what_the_reference_refuses(pairs: Any) -> None:
    expected = f"joints must be disjoint (left, right) pairs of joints in [0, 9), got {pairs!r}"
    for function in (mirror_order, reference.mirror_order):
        with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
            function(pairs, 9, "joints")


# ---- all three ------------------------------------------------------------------------------------------------------


def test_empty_and_very_large_batches(device: torch.device) -> None:
    for batch in (0, 65_535 + 6):
        center = torch.arange(2 * batch, dtype=torch.float32, device=device).view(batch, 2)
        matrix = fastpose.crop_to_image_matrix(center, torch.ones(batch, device=device), 0.0, (100, 100))
        assert matrix.shape == (batch, 2, 3)
        points = fastpose.transform_points(center[:, None], matrix, inverse=True)
        assert torch.equal(points.cpu(), torch.full((batch, 1, 2), 50.0))
        flip = torch.ones(batch, dtype=torch.bool, device=device)
        swapped, _ = fastpose.swap_pairs(points, points[..., 0], flip, [])
        assert torch.equal(swapped, points)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: fastpose.crop_to_image_matrix(torch.zeros(2, 3), torch.ones(2), 0.0, (8, 8)),
            "center must have shape",
        ),
        (lambda: fastpose.crop_to_image_matrix(torch.zeros(2, 2), torch.ones(3), 0.0, (8, 8)), "scale must have shape"),
        (lambda: fastpose.crop_to_image_matrix(torch.zeros(2, 2), torch.ones(2), 0.0, (0, 8)), "size must be"),
        (lambda: fastpose.crop_to_image_matrix(torch.zeros(2, 2), torch.ones(2), 0.0, (1, 8), udp=True), "at least 2"),
        (
            lambda: fastpose.crop_to_image_matrix(torch.zeros(2, 2), torch.ones(2), 0.0, (8, 8), flip=torch.zeros(2)),
            "flip must be Bool, got Float",
        ),
        (
            lambda: fastpose.transform_points(torch.zeros(2, 2), torch.zeros(2, 2, 3)),
            r"points must have shape \[B, K, 2\]",
        ),
        (lambda: fastpose.transform_points(torch.zeros(2, 1, 2), torch.zeros(1, 2, 3)), "matrix must have shape"),
        (
            lambda: fastpose.swap_pairs(torch.zeros(1, 3, 2), torch.zeros(1, 3), torch.tensor([True]), [(0, 3)]),
            r"pairs must be disjoint \(left, right\) pairs",
        ),
        (
            lambda: fastpose.swap_pairs(torch.zeros(1, 600, 2), torch.zeros(1, 600), torch.tensor([True]), []),
            "at most 512 joints",
        ),
    ],
)
def test_errors_name_the_argument(call: object, message: str) -> None:
    with pytest.raises((RuntimeError, ValueError), match=message):
        call()  # type: ignore[operator]


def test_opcheck_and_compile(device: torch.device) -> None:
    center, scale, rotation, flip = (t.to(device) for t in random_boxes(3))
    ops = torch.ops.fastpose
    torch.library.opcheck(ops.crop_to_image_matrix.default, (center, scale, rotation, flip, 8, 9, False))
    torch.library.opcheck(ops.crop_to_image_matrix.default, (center, scale, rotation, None, 8, 9, True))
    points, matrix = torch.randn(3, 4, 2, device=device), torch.randn(3, 2, 3, device=device)
    for inverse in (False, True):
        torch.library.opcheck(ops.transform_points.default, (points.requires_grad_(), matrix, inverse))
    torch.library.opcheck(ops.swap_pairs.default, (points.detach(), points.detach()[..., 0], flip, [1, 0, 2, 3]))

    def joints_on_the_map(center: Tensor, scale: Tensor, rotation: Tensor, flip: Tensor, points: Tensor) -> Tensor:
        matrix = fastpose.crop_to_image_matrix(center, scale, rotation, (8, 8), flip=flip)
        on_map = fastpose.transform_points(points, matrix, inverse=True)
        return fastpose.swap_pairs(on_map, torch.ones_like(on_map[..., 0]), flip, ((0, 1),))[0]

    arguments = (center, scale, rotation, flip, points.detach())
    compiled = torch.compile(joints_on_the_map, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*arguments), joints_on_the_map(*arguments))
