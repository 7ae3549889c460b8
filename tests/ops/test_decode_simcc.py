# SPDX-License-Identifier: Apache-2.0
"""decode_simcc: the reference, points by hand, mirror test, NaN, strides, errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fastpose
from fastpose import reference
from tests.helpers.ops import random_matrices

NAN, INF = float("nan"), float("inf")
PAIRS = [(0, 3), (1, 2)]


def random_vectors(bins: tuple[int, int], seed: int = 0, levels: int = 6) -> list[Tensor]:
    """[3, 5, bins] of few levels, so that ties are common; some without a positive value."""
    generator = torch.Generator().manual_seed(seed)
    vectors = []
    for n in bins:
        vector = torch.randint(-2, levels, (3, 5, n), generator=generator) / 4
        vectors.append(torch.where(torch.rand(3, 5, 1, generator=generator) < 0.2, -vector.abs(), vector))
    return vectors


def assert_matches_reference(found: tuple[Tensor, Tensor], vectors: list[Tensor], **options: Any) -> None:
    expected = reference.decode_simcc(*(vector.cpu() for vector in vectors), **options)
    np.testing.assert_allclose(found[0].cpu(), expected[0], rtol=1e-6, atol=1e-5)
    np.testing.assert_array_equal(found[1].cpu(), expected[1])


@pytest.mark.parametrize("refine", ["none", "dark"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_matches_reference(device: torch.device, refine: str, dtype: torch.dtype) -> None:
    vectors, mirrored = ([v.to(device, dtype) for v in random_vectors((24, 32), seed)] for seed in (0, 1))
    matrix = random_matrices(3)
    options: dict[str, Any] = {"refine": refine, "sigma": (2.0, 3.0), "split_ratio": 3.0}
    assert_matches_reference(fastpose.decode_simcc(*vectors, **options), vectors, **options)
    found = fastpose.decode_simcc(
        *vectors,
        flipped_x=mirrored[0],
        flipped_y=mirrored[1],
        flip_pairs=PAIRS,
        crop_to_image=matrix.to(device),
        **options,
    )
    options |= {"flipped_x": mirrored[0], "flipped_y": mirrored[1], "flip_pairs": PAIRS, "crop_to_image": matrix}
    # A step of dark may be many bins long, and the matrix enlarges it.
    expected = reference.decode_simcc(*vectors, **options)
    np.testing.assert_allclose(found[0].cpu(), expected[0], rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(found[1].cpu(), expected[1])


@given(
    seed=st.integers(0, 10_000),
    bins=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    refine=st.sampled_from(["none", "dark"]),
    sigma=st.sampled_from([(0.5, 1.0), (2.0, 6.0), (4.9, 5.66)]),
)
def test_matches_reference_whatever_the_size(
    seed: int, bins: tuple[int, int], refine: str, sigma: tuple[float, float]
) -> None:
    vectors = [vector + 0.5 for vector in random_vectors(bins, seed)]
    found = fastpose.decode_simcc(*vectors, refine=refine, sigma=sigma)
    expected = reference.decode_simcc(*vectors, refine=refine, sigma=sigma)
    # Where the second derivative all but vanishes a step is long, and rounding makes it another.
    usual = np.abs(expected[0]).max(-1) < 100
    np.testing.assert_allclose(found[0].numpy()[usual], expected[0][usual], rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(found[1], expected[1])


def test_by_hand(device: torch.device) -> None:
    pred_x, pred_y = torch.zeros(1, 4, 8, device=device), torch.zeros(1, 4, 6, device=device)
    pred_x[0, 0, 5], pred_y[0, 0, 2] = 0.75, 0.5
    pred_x[0, 1, [3, 6]], pred_y[0, 1, [0, 5]] = 1.0, 1.0  # ties go to the lowest bin
    pred_x[0, 2, 4] = 1.0  # nothing in y
    keypoints, scores = fastpose.decode_simcc(pred_x, pred_y)
    assert keypoints.tolist() == [[[2.5, 1.0], [1.5, 0.0], [-0.5, -0.5], [-0.5, -0.5]]]
    assert scores.tolist() == [[0.5, 1.0, 0.0, 0.0]]
    matrix = torch.tensor([[[2.0, 0.0, 10.0], [0.0, 3.0, 20.0]]], device=device)
    keypoints, _ = fastpose.decode_simcc(pred_x, pred_y, crop_to_image=matrix)
    assert keypoints.tolist() == [[[15.0, 23.0], [13.0, 20.0], [9.0, 18.5], [9.0, 18.5]]]


def test_dark_finds_the_centre_of_a_gaussian_between_bins(device: torch.device) -> None:
    centers = torch.tensor([40.3, 50.5, 61.8], device=device)
    bins = torch.arange(100.0, device=device)
    vector = torch.exp(-((bins - centers[:, None]) ** 2) / (2 * 4.9**2))[None]
    keypoints, _ = fastpose.decode_simcc(vector, vector, refine="dark", sigma=(4.9, 4.9), split_ratio=1.0)
    torch.testing.assert_close(keypoints[0], centers[:, None].expand(3, 2), rtol=0, atol=2e-3)


@pytest.mark.parametrize("bins", [(128, 129), (257, 512)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("sigma", [(4.9, 5.66), (38.6, 0.5)], ids=str)
def test_dark_of_vectors_that_are_blurred_part_by_part(
    device: torch.device, bins: tuple[int, int], dtype: torch.dtype, sigma: tuple[float, float]
) -> None:
    """The CUDA kernel blurs 128 bins at a time; a sigma of 38.6 has the widest blur that there is, 255 bins, and one of
    0.5 none. Maxima lie at both ends and around the end of a part; a wider bump
    elsewhere is the highest where both are blurred."""
    vectors = []
    for n in bins:
        peaks = torch.tensor([0, 1, 63, 126, 127, 128, 129, n - 2, n - 1]).clamp(max=n - 1)
        along = torch.arange(n)
        vector = torch.exp(-((along - peaks[:, None]) ** 2) / (2 * 3.0**2))
        wide = 0.9 * torch.exp(-((along - (peaks[:, None] + n // 2) % n) ** 2) / (2 * 9.0**2))
        vectors.append(torch.maximum(vector, wide)[None].to(device, dtype))
    options: dict[str, Any] = {"refine": "dark", "sigma": sigma}
    expected = reference.decode_simcc(*(vector.cpu() for vector in vectors), **options)
    found = fastpose.decode_simcc(*vectors, **options)
    np.testing.assert_allclose(found[0].cpu(), expected[0], rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(found[1].cpu(), expected[1])
    flipped = {"flipped_x": vectors[0].flip(2), "flipped_y": vectors[1], "flip_pairs": []}
    merged = fastpose.decode_simcc(*vectors, **flipped, **options)
    torch.testing.assert_close(merged, found, rtol=0, atol=0)


def test_a_mirrored_picture_decodes_to_the_same_points(device: torch.device) -> None:
    vectors = [v.abs() for v in random_vectors((24, 32))]
    order = torch.tensor([3, 2, 1, 0, 4])
    flipped = [vectors[0].flip(2)[:, order].to(device), vectors[1][:, order].to(device)]
    vectors = [v.to(device) for v in vectors]
    found = fastpose.decode_simcc(*vectors, flipped_x=flipped[0], flipped_y=flipped[1], flip_pairs=PAIRS)
    torch.testing.assert_close(found, fastpose.decode_simcc(*vectors), rtol=0, atol=0)


@pytest.mark.parametrize("refine", ["none", "dark"])
def test_nan_is_never_the_maximum(device: torch.device, refine: str) -> None:
    pred_x, pred_y = torch.full((1, 3, 40), 0.1, device=device), torch.full((1, 3, 40), 0.1, device=device)
    pred_x[0, 0, 3], pred_x[0, 0, 30], pred_y[0, :, 20] = NAN, 1.0, 0.5
    pred_x[0, 1] = NAN
    pred_x[0, 2, 7] = INF
    keypoints, scores = fastpose.decode_simcc(pred_x, pred_y, refine=refine, sigma=(2.0, 2.0))
    assert keypoints[0, 0, 0].item() == pytest.approx(15.0, abs=1e-4)
    assert keypoints[0, 1].tolist() == [-0.5, -0.5]
    assert keypoints[0, 2].tolist() == pytest.approx([3.5, 10.0], abs=1e-4)
    np.testing.assert_array_equal(scores.cpu(), [[0.5, NAN, 0.5]])
    assert_matches_reference((keypoints, scores), [pred_x, pred_y], refine=refine, sigma=(2.0, 2.0))


def test_strides_and_empty_batches(device: torch.device) -> None:
    vectors = [v.to(device) for v in random_vectors((24, 32))]
    strided = [vectors[0].mT.contiguous().mT, vectors[1].repeat(1, 1, 2)[..., :32]]
    torch.testing.assert_close(fastpose.decode_simcc(*strided), fastpose.decode_simcc(*vectors))
    keypoints, scores = fastpose.decode_simcc(*(v[:0] for v in vectors), refine="dark")
    assert keypoints.shape == (0, 5, 2)
    assert scores.shape == (0, 5)


ROWS, COLUMNS = torch.zeros(2, 3, 8), torch.zeros(2, 3, 6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pred_x": torch.zeros(2, 3)}, r"pred_x must have shape \[B, K, Wx\]"),
        ({"pred_y": torch.zeros(2, 3, 0)}, "pred_y must have 1 to 16777216 bins, got 0"),
        ({"pred_y": torch.zeros(1, 3, 6)}, r"pred_y must have shape \[B, K, Wy\] = \[2, 3, any\]"),
        ({"crop_to_image": torch.zeros(3, 2, 3)}, r"crop_to_image must have shape \[B, 2, 3\] = \[2, 2, 3\]"),
        ({"flipped_x": ROWS}, "flipped_x and flipped_y must be passed together, got no flipped_y"),
        ({"flipped_x": ROWS, "flipped_y": COLUMNS}, "flip_pairs must be passed with flipped_x"),
        ({"flipped_x": ROWS, "flipped_y": ROWS, "flip_pairs": []}, "flipped_y must have shape of pred_y"),
        ({"flipped_x": ROWS, "flipped_y": COLUMNS, "flip_pairs": [(0, 3)]}, "flip_pairs must be disjoint"),
        ({"refine": "quarter"}, "refine must be one of 'none', 'dark', got 'quarter'"),
        ({"refine": "dark", "sigma": (0.4, 2.0)}, "refine='dark' needs a sigma whose blur, .*, got 0.4"),
        ({"refine": "dark", "sigma": (4.0, 40.0)}, "is 1 to 255 bins, got 40.0"),
        ({"refine": "dark", "sigma": (1e30, 5.66)}, r"is 1 to 255 bins, got 1e\+30"),
        ({"sigma": (1e308, 5.66)}, r"sigma must be from 1e-30 to 1e30, got 1e\+308"),
        ({"sigma": (1.0, 2.0, 3.0)}, r"sigma must be \(x, y\)"),
        ({"split_ratio": -2.0}, "split_ratio must be a positive number, got -2.0"),
    ],
)
def test_errors_name_the_argument(change: dict[str, object], message: str) -> None:
    arguments: dict[str, Any] = {"pred_x": ROWS, "pred_y": COLUMNS} | change
    with pytest.raises((RuntimeError, ValueError), match=message):
        fastpose.decode_simcc(**arguments)


def test_opcheck_and_compile(device: torch.device) -> None:
    vectors = [v.to(device) for v in random_vectors((24, 32))]
    matrix = random_matrices(3).to(device)
    arguments = (*vectors, matrix, *vectors, [3, 2, 1, 0, 4], 2.0, 1, 11, 13)
    torch.library.opcheck(torch.ops.fastpose.decode_simcc.default, arguments)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def decode(pred_x: Tensor, pred_y: Tensor) -> tuple[Tensor, Tensor]:
        return fastpose.decode_simcc(pred_x * 2, pred_y, refine="dark", crop_to_image=matrix)

    expected = fastpose.decode_simcc(vectors[0] * 2, vectors[1], refine="dark", crop_to_image=matrix)
    torch.testing.assert_close(decode(*vectors), expected)
