# SPDX-License-Identifier: Apache-2.0
"""decode_heatmaps: the reference, SimpleBaselines' formula, ties, NaN, borders, mirror test, strides."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fastpose
from fastpose import reference
from fastpose.skeletons import MPII
from tests import upstream

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
INF, NAN = float("inf"), float("nan")


def random_maps(shape: tuple[int, ...], seed: int = 0, levels: int = 6) -> Tensor:
    """Few levels, so that ties and equal neighbours are common; some maps without a positive value."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randint(-2, levels, shape, generator=generator).float() / 4
    return torch.where(torch.rand(*shape[:2], 1, 1, generator=generator) < 0.15, -maps.abs(), maps)


def assert_matches_reference(out: tuple[Tensor, Tensor], maps: Tensor, **kwargs: object) -> None:
    expected = reference.decode_heatmaps(maps.cpu().double().numpy(), **kwargs)  # type: ignore[arg-type]
    np.testing.assert_allclose(out[0].cpu().numpy(), expected[0], rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(out[1].cpu().numpy(), expected[1])


@pytest.mark.parametrize("refine", ["none", "quarter"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_reference(device: torch.device, refine: str, dtype: torch.dtype) -> None:
    maps = random_maps((6, 5, 17, 23)).to(device, dtype)
    assert_matches_reference(fastpose.decode_heatmaps(maps, refine=refine), maps, refine=refine)


@given(
    seed=st.integers(0, 10_000),
    height=st.integers(1, 20),
    width=st.integers(1, 80),
    refine=st.sampled_from(["none", "quarter"]),
    special=st.lists(st.sampled_from([NAN, INF, -INF, 0.0, -0.0, 9.0]), max_size=12),
)
def test_matches_reference_whatever_the_values(
    seed: int, height: int, width: int, refine: str, special: list[float]
) -> None:
    maps = random_maps((2, 3, height, width), seed)
    places = torch.Generator().manual_seed(seed)
    for value in special:
        maps.view(-1)[torch.randint(0, maps.numel(), (1,), generator=places)] = value
    assert_matches_reference(fastpose.decode_heatmaps(maps, refine=refine), maps, refine=refine)
    flipped = random_maps((2, 3, height, width), seed + 1)
    options = {"refine": refine, "flip_pairs": [(0, 2)], "flip_shift": bool(seed % 2)}
    out = fastpose.decode_heatmaps(maps, flipped=flipped, **options)  # type: ignore[arg-type]
    assert_matches_reference(out, maps, flipped=flipped.numpy(), **options)


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
        ({"refine": "dark"}, "refine must be one of 'none', 'quarter', got 'dark'"),
        ({"heatmap_to_image": torch.zeros(2, 2, 3)}, r"heatmap_to_image must have shape \[B, 2, 3\] = \[1, 2, 3\]"),
        ({"flipped": torch.zeros(1, 3, 4, 5), "flip_pairs": []}, "flipped must have shape of heatmaps"),
        ({"flipped": torch.zeros(1, 3, 4, 4)}, "flip_pairs must be given with flipped"),
        (
            {"flipped": torch.zeros(1, 3, 4, 4), "flip_pairs": [(0, 3)]},
            "flip_pairs must be disjoint",
        ),
        (
            {"flipped": torch.zeros(1, 3, 4, 4), "flip_pairs": [(0, 1), (1, 2)]},
            "flip_pairs must be disjoint",
        ),
        ({"flipped": torch.zeros(1, 3, 4, 4).half(), "flip_pairs": []}, "flipped must be Float, got Half"),
        ({"blur_kernel": 4}, "blur_kernel must be a positive odd number"),
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
    torch.library.opcheck(op, (maps, matrix, mirrored, [1, 0, 2], True, 1))
    torch.library.opcheck(op, (maps.half(), None, None, [], False, 0))

    @torch.compile(fullgraph=True, backend="aot_eager")
    def decode(maps: Tensor, mirrored: Tensor, matrix: Tensor) -> Tensor:
        options = {"heatmap_to_image": matrix, "flip_pairs": ((0, 1),), "flip_shift": True}
        return fastpose.decode_heatmaps(maps, flipped=mirrored, **options)[0] + 1

    expected = fastpose.decode_heatmaps(
        maps, flipped=mirrored, heatmap_to_image=matrix, flip_pairs=((0, 1),), flip_shift=True
    )[0]
    assert torch.equal(decode(maps, mirrored, matrix), expected + 1)
