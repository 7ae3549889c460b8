# SPDX-License-Identifier: Apache-2.0
"""decode_heatmaps: the reference, SimpleBaselines' and mmpose's formulas, ties, NaN, borders, mirror test, strides."""

from __future__ import annotations

from itertools import product
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fastpose
from fastpose import reference
from fastpose.ops.decode_heatmaps import blur_weights
from fastpose.skeletons import MPII
from tests.helpers import upstream
from tests.helpers.ops import assert_decoded, predicted_maps, random_maps

REFINEMENTS = ["none", "quarter", "dark", "dark_udp"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize("refine", REFINEMENTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_reference(device: torch.device, refine: str, dtype: torch.dtype) -> None:
    maps = random_maps((6, 5, 17, 23)).to(device, dtype)
    assert_decoded(fastpose.decode_heatmaps(maps, refine=refine), maps, refine=refine)


@given(
    seed=st.integers(0, 10_000),
    height=st.integers(1, 20),
    width=st.integers(1, 80),
    refine=st.sampled_from(REFINEMENTS),
    blur_kernel=st.sampled_from([1, 3, 7, 9, 11, 35]),
    blur_sigma=st.sampled_from([None, None, 0.4, 0.8, 5.0]),
    special=st.lists(st.sampled_from([NAN, INF, -INF, 0.0, -0.0, 9.0]), max_size=12),
    layout=st.sampled_from([torch.contiguous_format, torch.channels_last]),
)
def test_matches_reference_whatever_the_values(
    seed: int,
    height: int,
    width: int,
    refine: str,
    blur_kernel: int,
    blur_sigma: float | None,
    special: list[float],
    layout: torch.memory_format,
) -> None:
    maps = random_maps((2, 3, height, width), seed)
    places = torch.Generator().manual_seed(seed)
    for value in special:
        maps.view(-1)[torch.randint(0, maps.numel(), (1,), generator=places)] = value
    options: dict[str, Any] = {"refine": refine, "blur_kernel": blur_kernel, "blur_sigma": blur_sigma}
    maps = maps.contiguous(memory_format=layout)
    assert_decoded(fastpose.decode_heatmaps(maps, **options), maps, **options)
    flipped = random_maps((2, 3, height, width), seed + 1).contiguous(memory_format=layout)
    options |= {"flip_pairs": [(0, 2)], "flip_shift": bool(seed % 2)}
    out = fastpose.decode_heatmaps(maps, flipped=flipped, **options)
    assert_decoded(out, maps, flipped=flipped.numpy(), **options)


@pytest.mark.parametrize(
    ("joints", "dtype"), [*zip([2, 3, 16, 17], DTYPES, strict=True), (1, DTYPES[0]), (133, DTYPES[0])]
)
def test_channels_last_decodes_to_the_bits_of_planar_maps_on_the_cpu(joints: int, dtype: torch.dtype) -> None:
    """Ties everywhere, zeros of both signs, and maps of which little is left but NaN and infinities."""
    for size in [(1, 1), (4, 5), (6, 40), (15, 23)]:
        maps, mirrored = random_maps((8, joints, *size)), random_maps((8, joints, *size), 1)
        maps[0, :, ::2] = NAN
        maps[1, :, 1:] = -0.0
        maps[2] = -INF
        maps[3] = NAN
        maps[3, :, -1, -1] = -INF
        maps[4, ..., -1] = INF
        mirrored[5, :, 0] = NAN
        maps[6] = 0.5
        pairs = [(0, joints - 1)] if joints > 1 else []
        for refine, shift in product(REFINEMENTS, (None, False, True)):
            bits = []
            for layout in (torch.contiguous_format, torch.channels_last):
                options: dict[str, Any] = {"refine": refine, "blur_kernel": 5}
                if shift is not None:
                    flipped = mirrored.to(dtype, memory_format=layout)
                    options |= {"flipped": flipped, "flip_pairs": pairs, "flip_shift": shift}
                points, scores = fastpose.decode_heatmaps(maps.to(dtype, memory_format=layout), **options)
                bits.append(torch.cat([points.flatten(), scores.flatten()]).view(torch.int32))
            assert torch.equal(*bits)


UPSTREAM = {"dark": upstream.dark, "dark_udp": upstream.dark_udp}


@pytest.mark.parametrize("refine", ["dark", "dark_udp"])
@pytest.mark.parametrize(("sigma", "blur_kernel"), [(1.0, 3), (1.5, 7), (2.0, 11), (2.0, 9), (2.0, 5), (3.0, 17)])
@pytest.mark.parametrize("noise", [0.0, 0.03])
def test_dark_is_the_formula_of_mmpose(
    device: torch.device, refine: str, sigma: float, blur_kernel: int, noise: float
) -> None:
    """To what upstream's float32 costs: 1e-7 in a logarithm, so at the curvature of the blurred peaks, 1 / 18, 2e-6 px.

    More where noise makes a map flatter than that.
    """
    maps = predicted_maps(sigma, (64, 48), int(10 * sigma) + blur_kernel, noise)
    keypoints, _ = fastpose.decode_heatmaps(maps.to(device), refine=refine, blur_kernel=blur_kernel)
    compared = 0
    for n, k in np.ndindex(8, 16):
        expected, whole = UPSTREAM[refine](maps[n, k].numpy(), blur_kernel)
        if whole:
            compared += 1
            np.testing.assert_allclose(keypoints[n, k].cpu().numpy(), expected, rtol=0, atol=5e-5)
    assert compared > 120


@pytest.mark.parametrize("refine", ["dark", "dark_udp"])
def test_dark_agrees_with_mmpose_at_every_pixel_of_a_small_map(device: torch.device, refine: str) -> None:
    """Peaks in the corners, along the edges and where dark begins to move, one per map of 9 x 8."""
    generator = torch.Generator().manual_seed(0)
    points = torch.tensor([[x, y] for y in range(9) for x in range(8)], dtype=torch.float32)
    points = points + 0.9 * torch.rand(72, 2, generator=generator) - 0.45
    maps, _ = fastpose.render_heatmaps(points[None], torch.ones(1, 72), (9, 8), sigma=2.0, encoding="unbiased")
    keypoints, _ = fastpose.decode_heatmaps(maps.to(device), refine=refine, blur_kernel=5)
    for k in range(72):
        expected, whole = UPSTREAM[refine](maps[0, k].numpy(), 5)
        assert whole
        np.testing.assert_allclose(keypoints[0, k].cpu().numpy(), expected, rtol=0, atol=5e-5)


def test_dark_finds_a_gaussians_sub_pixel_centre(device: torch.device) -> None:
    """A Gaussian blurred by one is a Gaussian with the same centre, and its logarithm a parabola: one step is exact.

    Up to the kernel's sampling and its 11 pixels. Without a blur only float32 is left.
    """
    generator = torch.Generator().manual_seed(0)
    points = 16 + 32 * torch.rand(8, 16, 2, generator=generator)
    maps, _ = fastpose.render_heatmaps(points, torch.ones(8, 16), (64, 64), sigma=2.0, encoding="unbiased")
    for refine, blur_kernel, tolerance in [("dark", 11, 0.01), ("dark_udp", 11, 0.01), ("dark", 1, 1e-4)]:
        keypoints, scores = fastpose.decode_heatmaps(maps.to(device), refine=refine, blur_kernel=blur_kernel)
        assert float((keypoints.cpu() - points).abs().max()) < tolerance
        assert torch.equal(scores.cpu(), maps.amax((2, 3)))


@pytest.mark.parametrize("refine", ["dark", "dark_udp"])
def test_a_step_by_hand(device: torch.device, refine: str) -> None:
    """Without a blur, on powers of e: log = −(x − 4)² − (y − 3)² / 2 + (x − 4) / 2 + (y − 3) / 4 about (4, 3).

    Gradient (1/2, 1/4), Hessian diag(−2, −1): the step is (1/4, 1/4), whatever distance the differences span.
    """
    x, y = torch.arange(9.0)[None, :] - 4, torch.arange(7.0)[:, None] - 3
    maps = torch.exp(-(x**2) - y**2 / 2 + x / 2 + y / 4).double()[None, None].to(device)
    keypoints, _ = fastpose.decode_heatmaps(maps, refine=refine, blur_kernel=1)
    np.testing.assert_allclose(keypoints.flatten().tolist(), [4.25, 3.25], rtol=0, atol=1e-5)
    tilted = torch.exp(-(x**2) - y**2 - x * y + x / 2).double()[None, None].to(device)
    # Hessian [[−2, −1], [−1, −2]], gradient (1/2, 0): the step is (1/3, −1/6).
    keypoints, _ = fastpose.decode_heatmaps(tilted, refine=refine, blur_kernel=1)
    np.testing.assert_allclose(keypoints.flatten().tolist(), [4 + 1 / 3, 3 - 1 / 6], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("x", "y", "moves"), [(1, 4, False), (2, 4, True), (5, 4, True), (6, 4, False), (4, 1, False), (4, 6, False)]
)
def test_dark_leaves_the_border_alone(device: torch.device, x: int, y: int, moves: bool) -> None:
    """8 x 8: moved where 1 < x < 6 and 1 < y < 6, one pixel less than quarter; dark_udp moves everywhere."""
    maps, _ = fastpose.render_heatmaps(
        torch.tensor([[[x + 0.3, y - 0.2]]]), torch.ones(1, 1), (8, 8), sigma=2.0, encoding="unbiased"
    )
    keypoints, _ = fastpose.decode_heatmaps(maps.to(device), refine="dark", blur_kernel=3)
    assert (keypoints.flatten().tolist() != [x, y]) == moves
    keypoints, _ = fastpose.decode_heatmaps(maps.to(device), refine="dark_udp", blur_kernel=3)
    assert keypoints.flatten().tolist() != [x, y]


@pytest.mark.parametrize("refine", ["dark", "dark_udp"])
@pytest.mark.parametrize("blur_kernel", [1, 3, 11, 63, 255])
def test_kernels_of_any_size_on_maps_of_any_size(device: torch.device, refine: str, blur_kernel: int) -> None:
    for size in [(1, 1), (1, 7), (3, 2), (5, 5), (6, 40), (70, 9)]:
        maps = predicted_maps(1.5, size, blur_kernel, 0.02)[:2, :3]
        out = fastpose.decode_heatmaps(maps.to(device), refine=refine, blur_kernel=blur_kernel)
        assert_decoded(out, maps, refine=refine, blur_kernel=blur_kernel)


def test_the_blur_s_weights_are_opencv_s_and_the_reference_s() -> None:
    for side in range(1, 256, 2):
        weights = blur_weights(side)
        np.testing.assert_allclose(weights, cv2.getGaussianKernel(side, 0)[:, 0], rtol=1e-13)
        np.testing.assert_allclose(weights, reference.gaussian_kernel(side), rtol=1e-13)
        for sigma in (0.8, 2.0, 40.0):
            weights = blur_weights(side, sigma)
            np.testing.assert_allclose(weights, cv2.getGaussianKernel(side, sigma)[:, 0], rtol=0, atol=1e-15)
            np.testing.assert_allclose(weights, reference.gaussian_kernel(side, sigma), rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("side", "sigma"),
    [*((side, None) for side in [*range(1, 20, 2), 63, 255]), (3, 2.0), (9, 0.5), (11, 0.8), (63, 3.0)],
)
def test_the_blur_is_opencvs(device: torch.device, side: int, sigma: float | None) -> None:
    """A map one pixel wide: across, a kernel multiplies it by a constant, which no derivative of a logarithm sees."""
    weights = cv2.getGaussianKernel(side, sigma or 0)[:, 0]
    peak = side + 4
    maps = torch.ones(1, 1, 2 * peak + 1, 1, dtype=torch.float64)
    maps[0, 0, peak], maps[0, 0, peak + 1] = 1.5, 1.25
    keypoints, _ = fastpose.decode_heatmaps(maps.to(device), refine="dark_udp", blur_kernel=side, blur_sigma=sigma)
    around = [maps[0, 0, y - side // 2 : y + side // 2 + 1, 0].numpy() for y in (peak - 1, peak, peak + 1)]
    above, middle, below = (np.log(weights @ values) for values in around)
    step = -0.5 * (below - above) / (below - 2 * middle + above + 2.0**-23)
    assert keypoints.flatten().tolist() == pytest.approx([0.0, peak + step], abs=1e-4)
    assert abs(step) > 0.01


@pytest.mark.parametrize("refine", ["dark", "dark_udp"])
def test_where_there_is_no_extremum_to_step_to(device: torch.device, refine: str) -> None:
    """The point stays on its pixel: surroundings below the floor, an infinity, NaN nearby; and for dark a Hessian that
    is singular except for rounding (dark_udp's epsilon makes it regular).
    """
    maps = torch.zeros(5, 15, 15, dtype=torch.float64)
    maps[0] = -1.0
    maps[0, 6, 7] = 1e-3
    maps[1, 6, 7] = INF
    maps[2, 6, 7], maps[2, 5, 8] = 1.0, NAN
    maps[3] = 1.0
    maps[3, 6, 7], maps[3, 6, 8] = 1.0 + 4e-12, 1.0 + 3e-12
    maps[4] = torch.exp(-0.1 * (torch.arange(15.0).double() - 6) ** 2)[:, None]
    maps[4, 6, 7], maps[4, 6, 8] = 1.0 + 4e-14, 1.0 + 3e-14
    if refine == "dark_udp":
        maps = maps[:3]
    for blur_kernel in (3, 5):
        keypoints, _ = fastpose.decode_heatmaps(maps[None].to(device), refine=refine, blur_kernel=blur_kernel)
        assert keypoints[0].tolist() == [[7.0, 6.0]] * len(maps)


@pytest.mark.parametrize(("refine", "reach"), [("dark", 2), ("dark_udp", 1)])
def test_dark_reads_no_further_than_its_kernel(device: torch.device, refine: str, reach: int) -> None:
    """NaN around the square of `reach` and half a kernel changes nothing, NaN on its edge does."""
    maps, _ = fastpose.render_heatmaps(torch.tensor([[[19.7, 20.4]]]), torch.ones(1, 1), (41, 41), encoding="unbiased")
    maps = (maps + 0.1).to(device)
    expected = fastpose.decode_heatmaps(maps, refine=refine, blur_kernel=7)
    for distance, same in ((reach + 4, True), (reach + 3, False)):
        framed = torch.full_like(maps, NAN)
        inside = slice(20 - distance + 1, 20 + distance)
        framed[..., inside, inside] = maps[..., inside, inside]
        got = fastpose.decode_heatmaps(framed, refine=refine, blur_kernel=7)
        assert torch.equal(got[0], expected[0]) == same
        assert torch.equal(got[1], expected[1])


def test_dark_sees_the_average_of_a_map_and_its_mirror_image(device: torch.device) -> None:
    maps, mirrored = predicted_maps(2.0, (32, 24), 0, 0.03)[:2], predicted_maps(2.0, (32, 24), 1, 0.03)[:2]
    matrix = torch.tensor([[[2.0, 1, 1], [-1, 3, 4]]]).repeat(2, 1, 1).to(device)
    for refine, shift in (("dark", True), ("dark_udp", False)):
        averaged = (maps + torch.from_numpy(upstream.un_mirror(mirrored.numpy(), MPII.mirror_pairs, shift))) * 0.5
        options: dict[str, Any] = {"refine": refine, "blur_kernel": 7, "heatmap_to_image": matrix}
        expected = fastpose.decode_heatmaps(averaged.to(device), **options)
        got = fastpose.decode_heatmaps(
            maps.to(device),
            flipped=mirrored.to(device),
            flip_pairs=MPII.mirror_pairs,
            flip_shift=shift,
            **options,
        )
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-5)


@given(seed=st.integers(0, 10_000), shift=st.booleans())
def test_quarter_is_the_formula_of_simple_baselines(seed: int, shift: bool) -> None:
    maps, mirrored = random_maps((2, 16, 12, 10), seed).numpy(), random_maps((2, 16, 12, 10), seed + 1).numpy()
    keypoints, scores = fastpose.decode_heatmaps(torch.from_numpy(maps))
    expected, expected_scores = upstream.quarter_offset(maps)
    np.testing.assert_array_equal(keypoints.numpy(), expected)
    np.testing.assert_array_equal(scores.numpy(), expected_scores)

    averaged = (maps + upstream.un_mirror(mirrored, MPII.mirror_pairs, shift)) * 0.5
    expected, expected_scores = upstream.quarter_offset(averaged)
    keypoints, scores = fastpose.decode_heatmaps(
        torch.from_numpy(maps), flipped=torch.from_numpy(mirrored), flip_pairs=MPII.mirror_pairs, flip_shift=shift
    )
    np.testing.assert_array_equal(keypoints.numpy(), expected)
    np.testing.assert_array_equal(scores.numpy(), expected_scores)


def test_ties_go_to_the_lowest_index(device: torch.device) -> None:
    """Also where the equal maxima are far apart, in other lanes, warps or blocks of the search."""
    for first, second in [(0, 1), (5, 4095), (63, 64), (31, 32), (1000, 1001), (128, 4000)]:
        maps = torch.zeros(1, 1, 64, 64, device=device)
        maps.view(-1)[[first, second]] = 1.0
        keypoints, _ = fastpose.decode_heatmaps(maps, refine="none")
        assert keypoints.flatten().tolist() == [first % 64, first // 64]


def test_nan_is_never_the_maximum(device: torch.device) -> None:
    maps = torch.full((1, 3, 8, 70), NAN, device=device)
    maps[0, 1, 6, 65] = 0.5
    maps[0, 2, 3, 3] = -1.0
    keypoints, scores = fastpose.decode_heatmaps(maps)
    assert keypoints.tolist() == [[[0.0, 0.0], [65.0, 6.0], [0.0, 0.0]]]
    assert torch.isnan(scores[0, 0])
    assert scores[0, 1:].tolist() == [0.5, -1.0]


def test_maps_without_a_positive_value_decode_to_the_origin_of_the_map(device: torch.device) -> None:
    maps = torch.stack([torch.full((8, 8), -1.0), torch.zeros(8, 8), torch.full((8, 8), -INF)])[None].to(device)
    maps[0, 0, 4, 4] = -0.5
    matrix = torch.tensor([[[4.0, 0, 10], [0, 4, 20]]], device=device)
    keypoints, scores = fastpose.decode_heatmaps(maps, heatmap_to_image=matrix)
    assert keypoints.tolist() == [[[10.0, 20.0]] * 3]
    assert scores.tolist() == [[-0.5, 0.0, -INF]]


@pytest.mark.parametrize(
    ("x", "y", "moves"),
    [(1, 4, False), (2, 4, True), (5, 4, True), (6, 4, True), (7, 4, False), (4, 1, False), (4, 7, False)],
)
def test_quarter_leaves_the_border_alone(device: torch.device, x: int, y: int, moves: bool) -> None:
    """8 x 8: moved where 1 < x < 7 and 1 < y < 7, by 0.25 toward the higher neighbour in each direction."""
    maps = torch.zeros(1, 1, 8, 8, device=device)
    maps[0, 0, y, x] = 1.0
    maps[0, 0, y, x - 1] = 0.5
    if y + 1 < 8:
        maps[0, 0, y + 1, x] = 0.25
    keypoints, _ = fastpose.decode_heatmaps(maps)
    assert keypoints.flatten().tolist() == ([x - 0.25, y + 0.25] if moves else [x, y])


def test_points_go_through_the_matrix_after_the_offset(device: torch.device) -> None:
    """Peak (3, 4), higher neighbours left and below: (2.75, 4.25); x' = 2x + y + 1, y' = −x + 4."""
    maps = torch.zeros(1, 1, 8, 8, device=device)
    maps[0, 0, 4, 3], maps[0, 0, 4, 2], maps[0, 0, 5, 3] = 1.0, 0.5, 0.5
    matrix = torch.tensor([[[2.0, 1, 1], [-1, 0, 4]]], device=device)
    keypoints, _ = fastpose.decode_heatmaps(maps, heatmap_to_image=matrix)
    assert keypoints.flatten().tolist() == [10.75, 1.25]


def test_mirrored_maps_come_back(device: torch.device) -> None:
    """Left joint at x = 2 of 8 columns appears in the mirrored image as the right joint at 7 − 2 = 5."""
    maps, mirrored = torch.zeros(1, 2, 8, 8, device=device), torch.zeros(1, 2, 8, 8, device=device)
    maps[0, 0, 4, 2], maps[0, 1, 3, 6] = 1.0, 0.5
    mirrored[0, 1, 4, 5], mirrored[0, 0, 3, 1] = 1.0, 0.5
    keypoints, scores = fastpose.decode_heatmaps(maps, flipped=mirrored, flip_pairs=[(0, 1)], refine="none")
    assert keypoints.tolist() == [[[2.0, 4.0], [6.0, 3.0]]]
    assert scores.tolist() == [[1.0, 0.5]]
    # Shifted, the un-mirrored peak of joint 0 sits one column to the right of the map's own: both weigh half.
    shifted, scores = fastpose.decode_heatmaps(
        maps, flipped=mirrored, flip_pairs=[(0, 1)], refine="none", flip_shift=True
    )
    assert shifted[0, 0].tolist() == [2.0, 4.0]
    assert scores[0].tolist() == [0.5, 0.25]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_strides(device: torch.device, dtype: torch.dtype) -> None:
    maps = random_maps((4, 6, 18, 20)).to(device, dtype)
    expected = fastpose.decode_heatmaps(maps)
    for strided in (
        maps.contiguous(memory_format=torch.channels_last),
        torch.zeros(4, 6, 20, 18, device=device, dtype=dtype).transpose(2, 3).copy_(maps),
        torch.zeros(8, 7, 19, 23, device=device, dtype=dtype)[::2, 1:, 1:, 3:].copy_(maps),
        torch.zeros(4, 6, 18, 40, device=device, dtype=dtype)[..., ::2].copy_(maps),
    ):
        out = fastpose.decode_heatmaps(strided)
        assert torch.equal(out[0], expected[0])
        assert torch.equal(out[1], expected[1])
    mirrored = random_maps((4, 6, 18, 20), 1).to(device, dtype)
    flipped = fastpose.decode_heatmaps(maps, flipped=mirrored, flip_pairs=[(0, 1)])
    last = mirrored.contiguous(memory_format=torch.channels_last)
    assert torch.equal(fastpose.decode_heatmaps(maps, flipped=last, flip_pairs=[(0, 1)])[0], flipped[0])
    same_memory = maps.expand(4, 6, 18, 20)[:1].expand(3, 6, 18, 20)
    assert torch.equal(fastpose.decode_heatmaps(same_memory)[0][2], expected[0][0])


def test_empty_and_very_large_batches(device: torch.device) -> None:
    keypoints, scores = fastpose.decode_heatmaps(torch.zeros(0, 16, 8, 8, device=device))
    assert keypoints.shape == (0, 16, 2)
    assert scores.shape == (0, 16)
    batch = 65_535 + 4
    maps = torch.nn.functional.one_hot(torch.arange(batch) % 6, 6).float().view(batch, 1, 2, 3).to(device)
    keypoints, _ = fastpose.decode_heatmaps(maps)
    place = torch.arange(batch) % 6
    assert torch.equal(keypoints[:, 0].cpu(), torch.stack([place % 3, place // 3], -1).float())


def test_maps_that_require_grad_are_read_only(device: torch.device) -> None:
    maps = random_maps((1, 2, 8, 8)).to(device).requires_grad_()
    keypoints, _ = fastpose.decode_heatmaps(maps)
    assert not keypoints.requires_grad


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heatmaps": torch.zeros(2, 3, 4)}, r"heatmaps must have shape \[B, K, h, w\]"),
        ({"heatmaps": torch.zeros(1, 3, 0, 4)}, "at least 1 x 1"),
        ({"heatmaps": torch.zeros(1, 3, 4, 4, dtype=torch.int32)}, "heatmaps must be Float"),
        ({"refine": "taylor"}, "refine must be one of 'none', 'quarter', 'dark', 'dark_udp', got 'taylor'"),
        ({"heatmap_to_image": torch.zeros(2, 2, 3)}, r"heatmap_to_image must have shape \[B, 2, 3\] = \[1, 2, 3\]"),
        ({"flipped": torch.zeros(1, 3, 4, 5), "flip_pairs": []}, "flipped must have shape of heatmaps"),
        ({"flipped": torch.zeros(1, 3, 4, 4)}, "flip_pairs must be passed with flipped"),
        (
            {"flipped": torch.zeros(1, 3, 4, 4), "flip_pairs": [(0, 3)]},
            "flip_pairs must be disjoint",
        ),
        (
            {"flipped": torch.zeros(1, 3, 4, 4), "flip_pairs": [(0, 1), (1, 2)]},
            "flip_pairs must be disjoint",
        ),
        ({"flipped": torch.zeros(1, 3, 4, 4).half(), "flip_pairs": []}, "flipped must be Float, got Half"),
        ({"blur_kernel": 4}, "blur_kernel must be an odd number of pixels from 1 to 255, got 4"),
        ({"blur_kernel": -1, "refine": "dark"}, "blur_kernel must be an odd number of pixels from 1 to 255, got -1"),
        ({"blur_kernel": 257, "refine": "dark"}, "blur_kernel must be an odd number of pixels from 1 to 255, got 257"),
        ({"blur_sigma": 0.0}, "blur_sigma must be 0.01 to 1000 pixels, got 0.0"),
        ({"blur_sigma": NAN, "refine": "dark"}, "blur_sigma must be 0.01 to 1000 pixels, got nan"),
    ],
)
def test_errors_name_the_argument(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"heatmaps": torch.zeros(1, 3, 4, 4)}
    arguments.update(change)
    with pytest.raises((RuntimeError, ValueError), match=message):
        fastpose.decode_heatmaps(**arguments)  # type: ignore[arg-type]


def test_opcheck_and_compile(device: torch.device) -> None:
    maps, mirrored = random_maps((2, 3, 8, 9)).to(device), random_maps((2, 3, 8, 9), 1).to(device)
    matrix = torch.randn(2, 2, 3, device=device)
    op = torch.ops.fastpose.decode_heatmaps.default
    torch.library.opcheck(op, (maps, matrix, mirrored, [1, 0, 2], True, 1, 11, 0.8))
    torch.library.opcheck(op, (maps.half(), None, None, [], False, 0, 11))
    torch.library.opcheck(op, (maps, matrix, mirrored, [1, 0, 2], False, 2, 7))

    @torch.compile(fullgraph=True, backend="aot_eager")
    def decode(maps: Tensor, mirrored: Tensor, matrix: Tensor) -> Tensor:
        options = {"heatmap_to_image": matrix, "flip_pairs": ((0, 1),), "flip_shift": True}
        return fastpose.decode_heatmaps(maps, flipped=mirrored, **options)[0] + 1

    expected = fastpose.decode_heatmaps(
        maps, flipped=mirrored, heatmap_to_image=matrix, flip_pairs=((0, 1),), flip_shift=True
    )[0]
    assert torch.equal(decode(maps, mirrored, matrix), expected + 1)
