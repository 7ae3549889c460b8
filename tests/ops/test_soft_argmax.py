# SPDX-License-Identifier: Apache-2.0
"""soft_argmax: the reference, known means, gradients, types, compilation, errors."""

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

NAN, INF = float("nan"), float("inf")


def random_maps(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_matches_reference(out: tuple[Tensor, Tensor], maps: Tensor, **options: Any) -> None:
    expected = reference.soft_argmax(maps, **options)
    for got, wanted in zip(out, expected, strict=True):
        assert got.detach().cpu().numpy().dtype == wanted.dtype
        np.testing.assert_allclose(got.detach().cpu().numpy(), wanted, rtol=2e-6, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("beta", [0.5, 1.0, 10.0])
def test_matches_reference(device: torch.device, dtype: torch.dtype, beta: float) -> None:
    maps, matrix = random_maps((3, 4, 9, 13)).to(device, dtype), torch.randn(3, 2, 3)
    assert_matches_reference(fastpose.soft_argmax(maps, beta=beta), maps, beta=beta)
    out = fastpose.soft_argmax(maps, beta=beta, heatmap_to_image=matrix.to(device))
    assert_matches_reference(out, maps, beta=beta, heatmap_to_image=matrix)


@given(seed=st.integers(0, 10_000), height=st.integers(1, 30), width=st.integers(1, 30), beta=st.floats(1e-3, 1e3))
def test_matches_reference_whatever_the_size(seed: int, height: int, width: int, beta: float) -> None:
    maps = random_maps((2, 3, height, width), seed)
    out = fastpose.soft_argmax(maps, beta=beta)
    # A float32 map times beta is known to 2^-24 of itself, which the exponential makes a relative error.
    expected = reference.soft_argmax(maps, beta=beta)
    error = float(maps.abs().max()) * beta * 2.0**-23 + 1e-6
    np.testing.assert_allclose(out[0].numpy(), expected[0], rtol=0, atol=error * max(height, width) + 1e-5)
    np.testing.assert_allclose(out[1].numpy(), expected[1], rtol=2 * error, atol=0)


def test_a_mean_by_hand(device: torch.device) -> None:
    """Two pixels, (1, 0) three times as probable as (3, 2): the mean is (1.5, 0.5), the peak's probability 3/4."""
    maps = torch.full((1, 1, 4, 5), -INF, device=device)
    maps[0, 0, 0, 1], maps[0, 0, 2, 3] = float(np.log(3.0)) + 7, 7.0
    keypoints, scores = fastpose.soft_argmax(maps)
    np.testing.assert_allclose(keypoints.flatten().tolist(), [1.5, 0.5], rtol=1e-6)
    assert scores.item() == pytest.approx(0.75)
    # Twice beta squares the odds: 9 to 1.
    keypoints, scores = fastpose.soft_argmax(maps, beta=2.0)
    np.testing.assert_allclose(keypoints.flatten().tolist(), [1.2, 0.2], rtol=1e-5)
    assert scores.item() == pytest.approx(0.9)


def test_finds_the_centre_of_logits_that_are_a_parabola(device: torch.device) -> None:
    """softmax(−d² / 2σ²) is a Gaussian, whose mean is its centre: to 1e-3 px four σ from the border."""
    centers = torch.tensor([[[20.3, 15.6], [12.0, 30.49], [33.77, 26.5]]])
    y, x = torch.meshgrid(torch.arange(48.0), torch.arange(48.0), indexing="ij")
    squared = (x - centers[..., 0, None, None]) ** 2 + (y - centers[..., 1, None, None]) ** 2
    keypoints, scores = fastpose.soft_argmax((-squared / 8).to(device))
    np.testing.assert_allclose(keypoints.cpu().numpy(), centers.numpy(), rtol=0, atol=1e-3)
    assert float(scores.max()) == pytest.approx(1 / (8 * np.pi), rel=0.05)


def test_large_values_and_constants_are_handled(device: torch.device) -> None:
    maps = random_maps((2, 3, 8, 8)).to(device)
    for one, other in zip(fastpose.soft_argmax(maps), fastpose.soft_argmax(maps + 1000.0), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=3e-3)
    flat, scores = fastpose.soft_argmax(torch.full((1, 1, 5, 9), -1e30, device=device))
    assert flat.flatten().tolist() == pytest.approx([4.0, 2.0])
    assert scores.item() == pytest.approx(1 / 45)


def test_nan_and_infinity_are_seen(device: torch.device) -> None:
    maps = torch.zeros(1, 3, 4, 4, device=device)
    maps[0, 0, 1, 1], maps[0, 1, 1, 1] = NAN, INF
    keypoints, scores = fastpose.soft_argmax(maps)
    assert torch.isnan(keypoints[0, :2]).all()
    assert torch.isnan(scores[0, :2]).all()
    assert keypoints[0, 2].tolist() == [1.5, 1.5]


def test_half_precision_is_added_up_in_float32(device: torch.device) -> None:
    """The mean of 96 x 96 equal pixels: float16 knows no sum of 9,216 that is right, nor 47.5 / 9,216."""
    for dtype in (torch.float16, torch.bfloat16):
        keypoints, scores = fastpose.soft_argmax(torch.zeros(1, 1, 96, 96, device=device, dtype=dtype))
        assert keypoints.dtype == scores.dtype == torch.float32
        np.testing.assert_allclose(keypoints.flatten().tolist(), [47.5, 47.5], rtol=1e-5)


@pytest.mark.parametrize("matrix", [None, torch.randn(2, 2, 3)], ids=["map", "image"])
def test_gradcheck(device: torch.device, matrix: Tensor | None) -> None:
    maps = random_maps((2, 2, 4, 3)).double().to(device).requires_grad_()
    to_image = None if matrix is None else matrix.to(device)
    torch.autograd.gradcheck(
        lambda m: fastpose.soft_argmax(m, beta=0.7, heatmap_to_image=to_image), (maps,), nondet_tol=1e-12
    )


def test_strides_and_empty_batches(device: torch.device) -> None:
    maps = random_maps((3, 4, 6, 7)).to(device)
    for strided in (maps.contiguous(memory_format=torch.channels_last), maps.mT.contiguous().mT):
        torch.testing.assert_close(fastpose.soft_argmax(strided), fastpose.soft_argmax(maps))
    keypoints, scores = fastpose.soft_argmax(maps[:0], heatmap_to_image=torch.zeros(0, 2, 3, device=device))
    assert keypoints.shape == (0, 4, 2)
    assert scores.shape == (0, 4)


def test_compiles_forward_and_backward(device: torch.device) -> None:
    maps, matrix = random_maps((2, 3, 6, 5)).to(device).requires_grad_(), torch.randn(2, 2, 3, device=device)

    def loss(maps: Tensor) -> Tensor:
        keypoints, scores = fastpose.soft_argmax(2 * maps, beta=1.5, heatmap_to_image=matrix)
        return keypoints.square().sum() + scores.sum()

    (expected,) = torch.autograd.grad(loss(maps), maps)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    (got,) = torch.autograd.grad(compiled(maps), maps)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heatmaps": [1.0]}, "heatmaps must be a torch.Tensor, got list"),
        ({"heatmaps": torch.zeros(3, 4, 4)}, r"heatmaps must be \[B, K, h, w\] of a floating-point type.*, got \[3, 4"),
        ({"heatmaps": torch.zeros(1, 3, 0, 4)}, "at least one pixel"),
        ({"heatmaps": torch.zeros(1, 3, 4, 4, dtype=torch.int32)}, "floating-point type .*, got .* torch.int32"),
        ({"beta": 0.0}, "beta must be a positive number, got 0.0"),
        ({"beta": NAN}, "beta must be a positive number, got nan"),
        (
            {"heatmap_to_image": torch.zeros(2, 2, 3)},
            r"heatmap_to_image must be \[B, 2, 3\] = \[1, 2, 3\], got \[2, 2, 3\]",
        ),
    ],
)
def test_errors_name_the_argument(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"heatmaps": torch.zeros(1, 3, 4, 4)} | change
    with pytest.raises((TypeError, ValueError, RuntimeError), match=message):
        fastpose.soft_argmax(**arguments)
