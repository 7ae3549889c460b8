# SPDX-License-Identifier: Apache-2.0
"""Colour maps that change brightness, contrast, saturation and hue: the definition, formulas on pixels, crops."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

import fastpose
from fastpose import reference

NORMALIZE = fastpose.normalize_color(fastpose.IMAGENET_MEAN, fastpose.IMAGENET_STD)
BGR = NORMALIZE[:, [2, 1, 0, 3]]
FACTORS = (
    torch.tensor([1.0, 0.3, 1.0, 1.0, 0.7, 0.0, 1.6]),
    torch.tensor([1.0, 1.0, 1.8, 1.0, 1.4, 2.0, 0.0]),
    torch.tensor([1.0, 1.0, 1.0, 0.2, 1.9, 0.5, 0.0]),
    torch.tensor([0.0, 0.0, 0.0, 0.0, 0.1, -0.5, 0.3]),
)


def jittered(pixels: np.ndarray, brightness: float, contrast: float, saturation: float, hue: float) -> np.ndarray:
    """What `torchvision.transforms.v2.functional` does to float pixels [..., 3] of 0-255, without clipping them, and
    with contrast about 127.5: each is a mix of the picture and another one. Hue turns the two numbers of a colour that
    are left beside its grey."""

    def mix(picture: np.ndarray, other: np.ndarray | float, share: float) -> np.ndarray:
        return share * picture + (1 - share) * other

    pixels = mix(pixels, 0.0, brightness)
    pixels = mix(pixels, 127.5, contrast)
    grey = 0.299 * pixels[..., :1] + 0.587 * pixels[..., 1:2] + 0.114 * pixels[..., 2:]
    pixels = mix(pixels, grey, saturation)
    mean = pixels.mean(-1, keepdims=True)
    # Red to the right, and green and blue a third of a turn before and behind it.
    circle = np.exp(2j * np.pi * np.arange(3) / 3)
    turned = (pixels - mean) @ circle * np.exp(2j * np.pi * hue)
    return mean + 2 / 3 * (turned[..., None] * circle.conj()).real


@pytest.mark.parametrize("color", [NORMALIZE, BGR], ids=["rgb", "bgr"])
def test_a_jittered_crop_is_the_crop_of_the_jittered_picture(device: torch.device, color: torch.Tensor) -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (6, 7, 3), dtype=np.uint8)
    maps = fastpose.jitter_color(color, *(factor.to(device) for factor in FACTORS))
    assert maps.shape == (7, 3, 4)
    assert maps.dtype == torch.float32
    matrices = torch.eye(2, 3, device=device).repeat(7, 1, 1)
    crops = fastpose.affine_crop(torch.tensor(picture, device=device), matrices, (6, 7), color=maps)
    for n, factors in enumerate(zip(*FACTORS, strict=True)):
        changed = jittered(picture.astype(np.float64), *map(float, factors))
        if color is BGR:
            changed = changed[..., ::-1]
        expected = (changed / 255 - fastpose.IMAGENET_MEAN) / fastpose.IMAGENET_STD
        np.testing.assert_allclose(crops[n].permute(1, 2, 0).cpu().numpy(), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("seed", range(20))
def test_normalisation_is_the_definition_s_to_the_bit(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mean, std = rng.random(3), rng.random(3) + 0.01
    got = fastpose.normalize_color(mean.tolist(), std.tolist())
    np.testing.assert_array_equal(got, reference.normalize_color(mean.tolist(), std.tolist()))
    np.testing.assert_array_equal(got, fastpose.normalize_color(torch.from_numpy(mean), std))


def test_the_map_matches_the_reference(device: torch.device) -> None:
    got = fastpose.jitter_color(NORMALIZE, *(factor.to(device) for factor in FACTORS))
    np.testing.assert_allclose(got.cpu(), reference.jitter_color(NORMALIZE, *FACTORS), rtol=1e-5, atol=1e-6)
    mixed = fastpose.jitter_color(NORMALIZE.to(device), 0.5, FACTORS[1].to(device))
    np.testing.assert_allclose(mixed.cpu(), reference.jitter_color(NORMALIZE, 0.5, FACTORS[1]), rtol=1e-5, atol=1e-6)


def test_numbers_give_one_map_and_1_changes_nothing() -> None:
    got = fastpose.jitter_color(NORMALIZE, 0.5, 1.5, 0.25, -0.2)
    assert got.shape == reference.jitter_color(NORMALIZE, 0.5, 1.5, 0.25, -0.2).shape == (3, 4)
    np.testing.assert_allclose(got, reference.jitter_color(NORMALIZE, 0.5, 1.5, 0.25, -0.2), rtol=1e-5, atol=1e-6)
    assert torch.equal(fastpose.jitter_color(NORMALIZE), NORMALIZE)
    assert torch.equal(fastpose.jitter_color(NORMALIZE, torch.ones(2)), NORMALIZE.repeat(2, 1, 1))


def test_a_map_by_hand() -> None:
    """Of values as they are: twice as bright, half the contrast about 127.5, no colour left."""
    color = fastpose.jitter_color(torch.eye(3, 4), 2.0, 0.5, 0.0)
    # Grey of (100, 200, 50) is 29.9 + 117.4 + 5.7 = 153; twice that about 127.5 halved: 127.5 + 0.5 (306 - 127.5).
    torch.testing.assert_close(color @ torch.tensor([100.0, 200.0, 50.0, 1.0]), torch.full((3,), 216.75))


@pytest.mark.parametrize("f", [fastpose, reference], ids=["fastpose", "reference"])
def test_thirds_of_a_turn_exchange_the_colours_as_they_do_in_hsv(f) -> None:
    colors = np.array([[250, 0, 0], [200, 30, 90], [70, 70, 70], [10, 120, 240]], dtype=np.uint8)[None]
    hsv = cv2.cvtColor(colors.astype(np.float32) / 255, cv2.COLOR_RGB2HSV)
    for thirds in (-1, 0, 1, 2):
        turned = hsv.copy()
        turned[..., 0] = (turned[..., 0] + 120 * thirds) % 360
        expected = 255 * cv2.cvtColor(turned, cv2.COLOR_HSV2RGB)[0]
        linear = np.asarray(f.jitter_color(torch.eye(3, 4), hue=thirds / 3))[:, :3]
        np.testing.assert_allclose(colors[0] @ linear.T, expected, atol=1e-2)


def test_a_turn_keeps_greys_and_how_far_colours_are_from_them() -> None:
    maps = fastpose.jitter_color(torch.eye(3, 4), hue=torch.linspace(-0.5, 0.5, 9))[..., :3].double()
    torch.testing.assert_close(maps.sum(2), torch.ones(9, 3).double(), atol=1e-6, rtol=0.0)
    torch.testing.assert_close(maps @ maps.mT, torch.eye(3).double().expand(9, 3, 3), atol=1e-6, rtol=0.0)


def test_an_empty_batch_has_no_map() -> None:
    assert fastpose.jitter_color(NORMALIZE, *torch.ones(4, 0)).shape == (0, 3, 4)


@pytest.mark.parametrize("f", [fastpose, reference], ids=["fastpose", "reference"])
def test_wrong_shapes_are_refused(f) -> None:
    with pytest.raises(ValueError, match=r"color must be \[3, 4\], got \[2, 3, 4\]"):
        f.jitter_color(NORMALIZE.repeat(2, 1, 1), 1.0)
    with pytest.raises(ValueError, match="shape"):
        f.jitter_color(NORMALIZE, torch.ones(2), torch.ones(3))
    with pytest.raises(ValueError, match=r"saturation \[2, 1\]"):
        fastpose.jitter_color(NORMALIZE, saturation=torch.ones(2, 1))


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_what_is_no_number_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be a number or a tensor \[B\], got None"):
        fastpose.jitter_color(NORMALIZE, **{name: None})


@pytest.mark.cuda
@pytest.mark.parametrize("color", [NORMALIZE, NORMALIZE.cuda], ids=["cpu", "cuda"])
def test_a_map_is_computed_without_waiting_for_the_gpu(color) -> None:
    given = color if isinstance(color, torch.Tensor) else color()
    factors = [factor.cuda() for factor in FACTORS]
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = fastpose.jitter_color(given, *factors)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    np.testing.assert_allclose(got.cpu(), reference.jitter_color(NORMALIZE, *FACTORS), rtol=1e-5, atol=1e-6)
