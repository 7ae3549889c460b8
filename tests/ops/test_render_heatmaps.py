# SPDX-License-Identifier: Apache-2.0
"""render_heatmaps: the reference, SimpleBaselines' formula, hand-worked windows, and bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fastpose
from fastpose import reference
from tests.helpers import upstream
from tests.helpers.ops import RENDER_TOLERANCE, random_points

ENCODINGS = ["msra", "unbiased", "udp"]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("dtype", list(RENDER_TOLERANCE), ids=str)
def test_matches_reference(device: torch.device, encoding: str, dtype: torch.dtype) -> None:
    points, visible = random_points(7, 5, (19, 27))
    options = {"sigma": 1.5, "encoding": encoding}
    maps, weights = fastpose.render_heatmaps(points.to(device), visible.to(device), (19, 27), dtype=dtype, **options)
    expected, expected_weights = reference.render_heatmaps(
        points.numpy(), visible.numpy(), (19, 27), dtype=np.float64, **options
    )
    assert maps.dtype == dtype
    np.testing.assert_allclose(maps.cpu().double().numpy(), expected, rtol=0, atol=RENDER_TOLERANCE[dtype])
    np.testing.assert_array_equal(weights.cpu().numpy(), expected_weights)


@given(
    seed=st.integers(0, 10_000),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    sigma=st.sampled_from([0.2, 1.0, 2.0, 3.3]),
    encoding=st.sampled_from(ENCODINGS),
)
def test_matches_reference_whatever_the_size(seed: int, height: int, width: int, sigma: float, encoding: str) -> None:
    points, visible = random_points(2, 3, (height, width), seed)
    maps, weights = fastpose.render_heatmaps(points, visible, (height, width), sigma=sigma, encoding=encoding)
    expected, expected_weights = reference.render_heatmaps(
        points.numpy(), visible.numpy(), (height, width), sigma=sigma, encoding=encoding
    )
    np.testing.assert_allclose(maps.numpy(), expected, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(weights.numpy(), expected_weights)


@given(seed=st.integers(0, 10_000), sigma=st.sampled_from([1, 2, 3]))
def test_msra_is_the_formula_of_simple_baselines(seed: int, sigma: int) -> None:
    """Truncation toward zero, stamps cut at the border, stamps that end exactly at it, visibility of 0.5."""
    points, visible = random_points(1, 16, (48, 64), seed)
    maps, weights = fastpose.render_heatmaps(points, visible, (48, 64), sigma=sigma)
    expected, expected_weights = upstream.target(points[0].double().numpy(), visible[0].numpy(), 64, 48, sigma)
    # A product of two float32 exponentials against one: arguments up to −4.5, each rounded to 2^-24 of itself.
    np.testing.assert_allclose(maps[0].numpy(), expected, rtol=1e-6, atol=0)
    np.testing.assert_array_equal(weights[0].numpy(), expected_weights)


def test_windows_by_hand(device: torch.device) -> None:
    """sigma 1, window radius 3, 8 x 8: (3.4, 3.5) centres on (3, 4); (−0.7, 0) on (0, 0), where floor says −1."""
    points = torch.tensor(
        [[[3.4, 3.5], [-0.7, 0.0], [-4.5, 0.0], [-5.5, 0.0], [10.4, 0.0], [10.5, 0.0]]], device=device
    )
    maps, weights = fastpose.render_heatmaps(points, torch.ones(1, 6, device=device), (8, 8))
    assert maps[0, 0, 4, 3] == 1.0
    assert int((maps[0, 0] > 0).sum()) == 49
    assert maps[0, 1, 0, 0] == 1.0
    assert int((maps[0, 1] > 0).sum()) == 16
    # Centre −4: the stamp ends exactly at the border, weight kept, nothing drawn. Centre −5 and 11: off the map.
    assert weights[0].tolist() == [1.0, 1.0, 1.0, 0.0, 1.0, 0.0]
    assert maps[0, 2:4].abs().max() == 0
    assert int((maps[0, 4] > 0).sum()) == 4  # centre 10: column 7, rows 0 to 3
    torch.testing.assert_close(maps[0, 0, 4, 4].cpu(), torch.tensor(np.exp(-0.5), dtype=torch.float32))


def test_sub_pixel_encodings_peak_between_pixels(device: torch.device) -> None:
    """(3.25, 4) and sigma 1: exp(−0.25²/2) at x = 3, exp(−0.75²/2) at x = 4."""
    points, visible = torch.tensor([[[3.25, 4.0]]], device=device), torch.ones(1, 1, device=device)
    for encoding, count in (("udp", 49), ("unbiased", 64)):
        maps, _ = fastpose.render_heatmaps(points, visible, (8, 8), encoding=encoding)
        expected = torch.tensor([np.exp(-0.03125), np.exp(-0.28125)], dtype=torch.float32)
        torch.testing.assert_close(maps[0, 0, 4, 3:5].cpu(), expected)
        assert int((maps > 0).sum()) == count


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38, -3e38])
def test_keypoints_that_are_nowhere_have_no_weight(device: torch.device, encoding: str, value: float) -> None:
    points = torch.tensor([[[value, 3.0], [3.0, value], [3.0, 3.0]]], device=device)
    maps, weights = fastpose.render_heatmaps(points, torch.ones(1, 3, device=device), (8, 8), encoding=encoding)
    assert weights.tolist() == [[0.0, 0.0, 1.0]]
    assert maps[0, :2].abs().max() == 0


def test_empty_and_very_large_batches(device: torch.device) -> None:
    maps, weights = fastpose.render_heatmaps(
        torch.zeros(0, 16, 2, device=device), torch.zeros(0, 16, device=device), (8, 8)
    )
    assert maps.shape == (0, 16, 8, 8)
    assert weights.shape == (0, 16)
    batch = 65_535 + 5
    points = torch.zeros(batch, 1, 2, device=device)
    points[:, 0, 0] = torch.arange(batch, device=device) % 3
    maps, _ = fastpose.render_heatmaps(points, torch.ones(batch, 1, device=device), (1, 3))
    assert torch.equal(maps[:, 0, 0].argmax(1).cpu(), torch.arange(batch) % 3)


def test_strided_and_integer_inputs(device: torch.device) -> None:
    points, visible = random_points(3, 4, (16, 16))
    expected = fastpose.render_heatmaps(points, visible, (16, 16))
    swapped = points.flip(2).contiguous().to(device).flip(2)
    wide = torch.stack([visible, visible], -1).to(device)[..., 0]
    maps, weights = fastpose.render_heatmaps(swapped, wide, (16, 16))
    torch.testing.assert_close(maps.cpu(), expected[0])
    assert torch.equal(weights.cpu(), expected[1])
    from_bool = fastpose.render_heatmaps(points.double().to(device), (visible > 0.5).to(device), (16, 16))[0]
    torch.testing.assert_close(from_bool.cpu(), expected[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keypoints": torch.zeros(2, 3)}, r"keypoints must have shape \[B, K, 2\]"),
        ({"visible": torch.zeros(2, 4)}, r"visible must have shape \[B, K\] = \[2, 3\]"),
        ({"size": (0, 8)}, "at least 1 x 1"),
        ({"sigma": 0.0}, "sigma must be a positive number"),
        ({"sigma": float("nan")}, "sigma must be a positive number"),
        ({"encoding": "megvii"}, "encoding must be one of 'msra', 'unbiased', 'udp', got 'megvii'"),
        ({"dtype": torch.int32}, "dtype must be"),
    ],
)
def test_errors_name_the_argument(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"keypoints": torch.zeros(2, 3, 2), "visible": torch.ones(2, 3), "size": (8, 8)}
    arguments.update(change)
    with pytest.raises((RuntimeError, ValueError), match=message):
        fastpose.render_heatmaps(**arguments)  # type: ignore[arg-type]


def test_opcheck_and_compile(device: torch.device) -> None:
    points, visible = random_points(2, 3, (8, 9))
    arguments = (points.to(device), visible.to(device), 8, 9, 1.0, 0, torch.bfloat16)
    torch.library.opcheck(torch.ops.fastpose.render_heatmaps.default, arguments)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def render(points: Tensor, visible: Tensor) -> Tensor:
        return fastpose.render_heatmaps(points, visible, (8, 9), encoding="udp")[0] + 1

    expected = fastpose.render_heatmaps(points.to(device), visible.to(device), (8, 9), encoding="udp")[0] + 1
    assert torch.equal(render(points.to(device), visible.to(device)), expected)
