# SPDX-License-Identifier: Apache-2.0
"""The ops in plain torch: they take over where no kernel is, and need no float64. `make fallback` runs the ops' own
tests on them, with the same tolerances."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fastpose
from fastpose import ImageBatch, reference
from fastpose.ops import (
    _native,
    affine_crop,
    crop_to_image_matrix,
    decode_heatmaps,
    decode_simcc,
    heatmap_mse_loss,
    render_heatmaps,
    simcc_loss,
    swap_pairs,
    transform_points,
)
from fastpose.ops.decode_heatmaps import REFINEMENTS
from fastpose.skeletons import MPII
from tests.helpers.ops import random_images, random_maps, random_matrices, random_points

PLAIN = {
    "affine_crop": affine_crop.plain_affine_crop,
    "crop_to_image_matrix": crop_to_image_matrix.plain_crop_to_image_matrix,
    "decode_heatmaps": decode_heatmaps.plain_decode_heatmaps,
    "decode_simcc": decode_simcc.plain_decode_simcc,
    "heatmap_mse_loss": heatmap_mse_loss.plain_heatmap_mse_loss,
    "heatmap_mse_losses": heatmap_mse_loss.plain_heatmap_mse_losses,
    "heatmap_mse_loss_backward": heatmap_mse_loss.plain_heatmap_mse_loss_backward,
    "render_heatmaps": render_heatmaps.plain_render_heatmaps,
    "simcc_loss": simcc_loss.plain_simcc_loss,
    "simcc_loss_backward": simcc_loss.plain_simcc_loss_backward,
    "swap_pairs": swap_pairs.plain_swap_pairs,
    "transform_points": transform_points.plain_transform_points,
}


@pytest.mark.native
@pytest.mark.parametrize("op", PLAIN)
def test_every_device_without_a_kernel_has_the_fallback(op: str) -> None:
    own = torch._C._dispatch_has_kernel_for_dispatch_key
    usable = torch._C._dispatch_has_computed_kernel_for_dispatch_key
    name = f"fastpose::{op}"
    assert own(name, "CPU")
    assert own(name, "CUDA") == (fastpose.build_info()["cuda"] != "")
    for device in ("CUDA", "MPS", "XPU", "PrivateUse1"):
        assert usable(name, device)
        assert device == "CUDA" or not own(name, device)


@pytest.mark.native
def test_the_schema_that_the_fallback_would_define_is_that_of_the_library() -> None:
    """Whether a whole number may be symbolic is the one difference that Python's types do not tell."""
    for op, plain in PLAIN.items():
        inferred = torch._C.parse_schema(f"fastpose::{op}" + torch.library.infer_schema(plain, mutates_args=()))
        schema = str(getattr(torch.ops.fastpose, op).default._schema)
        assert schema.replace("SymInt", "int") == str(inferred).replace("SymInt", "int")


@pytest.mark.native
def test_one_warning_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    _native._warn_once.cache_clear()
    monkeypatch.setattr(_native, "fallback_wish", "")
    assert _native.why_fallback("cpu") is None
    with pytest.warns(
        RuntimeWarning, match="native kernels for the CPU and for CUDA: on mps the ops run in plain torch"
    ):
        _native.warn_of_fallback(torch.device("mps"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _native.warn_of_fallback(torch.device("mps:0"))
    monkeypatch.setattr(_native, "fallback_wish", "0")
    with pytest.raises(
        RuntimeError, match="FASTPOSE_FALLBACK=0, but otherwise: fastpose has native kernels for the CPU"
    ):
        _native.warn_of_fallback(torch.device("mps"))
    monkeypatch.setattr(_native, "fallback_wish", "")
    info = fastpose.build_info()
    monkeypatch.setattr(_native._C, "build_info", lambda: info | {"no_cuda_reason": ""})
    assert _native.why_fallback("cuda") is None
    monkeypatch.setattr(_native._C, "build_info", lambda: info | {"no_cuda_reason": "no nvcc"})
    with pytest.warns(RuntimeWarning, match=r"built without CUDA kernels \(no nvcc\): on cuda the ops run in plain"):
        _native.warn_of_fallback(torch.device("cuda"))
    monkeypatch.setattr(_native, "load_error", ImportError("No module named 'fastpose._C'"))
    for device in ("cpu", "cuda"):
        assert "could not be loaded: No module named 'fastpose._C'" in (_native.why_fallback(device) or "")


class NoFloat64(TorchDispatchMode):
    """A device without float64, as far as the CPU can be one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        assert all(t.dtype != torch.float64 for t in tree_leaves(out) if isinstance(t, Tensor)), func
        return out


@pytest.fixture
def no_float64(monkeypatch: pytest.MonkeyPatch) -> NoFloat64:
    for module in (crop_to_image_matrix, decode_heatmaps, decode_simcc, simcc_loss, transform_points):
        monkeypatch.setattr(module, "exact_type", lambda device: torch.float32)
    return NoFloat64()


@pytest.mark.parametrize("udp", [False, True])
def test_without_float64_points_stay_within_a_thousandth_of_a_pixel(no_float64: NoFloat64, udp: bool) -> None:
    """Images of 2,000 px: points of the crop on the image, and their way back onto a heatmap."""
    generator = torch.Generator().manual_seed(0)
    center = torch.rand(256, 2, generator=generator) * 2000
    scale = torch.rand(256, 2, generator=generator) * 5 + 0.1
    rotation = torch.rand(256, generator=generator) * 720 - 360
    flip = torch.rand(256, generator=generator) < 0.5
    on_map = torch.rand(256, 16, 2, generator=generator) * 64
    with no_float64:
        matrix = crop_to_image_matrix.plain_crop_to_image_matrix(center, scale, rotation, flip, 64, 64, udp)
        on_image = transform_points.plain_transform_points(on_map, matrix, False)
        back = transform_points.plain_transform_points(on_image, matrix, True)
    exact = reference.crop_to_image_matrix(center, scale, rotation, (64, 64), flip=flip, udp=udp)
    expected = reference.transform_points(on_map.double(), exact)
    np.testing.assert_allclose(on_image.numpy(), expected, rtol=0, atol=1e-3)
    # A pixel of a small box's heatmap is 0.3 px of the image.
    np.testing.assert_allclose(back.numpy(), on_map.numpy(), rtol=0, atol=4e-3)


def test_without_float64_the_other_ops_are_what_they_are(no_float64: NoFloat64) -> None:
    points, visible = random_points(3, 16, (13, 18))
    pred, mirrored = random_maps((3, 16, 13, 18)), random_maps((3, 16, 13, 18), 1)
    images, matrix = random_images(3), random_matrices(3)
    batch, order = ImageBatch.from_list(images), reference.mirror_order(MPII.mirror_pairs, 16)
    flip = torch.tensor([True, False, True])
    rest = (points, visible, torch.ones(16), 1.0, 0, True)
    with no_float64:
        crops = affine_crop.plain_affine_crop(
            batch.data, batch.offsets, batch.sizes, matrix, None, None, 9, 11, 0.0, torch.float32, False
        )
        cubic = affine_crop.plain_affine_crop(
            batch.data, batch.offsets, batch.sizes, matrix, None, None, 9, 11, 5.0, torch.float32, False, 1
        )
        target = render_heatmaps.plain_render_heatmaps(points, visible, 13, 18, 1.0, 0, torch.float32)
        loss = heatmap_mse_loss.plain_heatmap_mse_loss(pred, *rest)
        gradient = heatmap_mse_loss.plain_heatmap_mse_loss_backward(torch.ones(()), pred, *rest)
        decoded = decode_heatmaps.plain_decode_heatmaps(pred, matrix, mirrored, order, True, 1, 11)
        swapped = swap_pairs.plain_swap_pairs(points, visible, flip, order)
    close = torch.testing.assert_close
    close(crops, fastpose.affine_crop(batch, matrix, (9, 11)), rtol=0, atol=0.04)
    close(cubic, fastpose.affine_crop(batch, matrix, (9, 11), fill=5.0, resample="bicubic"), rtol=0, atol=0.08)
    close(target, fastpose.render_heatmaps(points, visible, (13, 18)))
    leaf = pred.clone().requires_grad_()
    expected = fastpose.heatmap_mse_loss(leaf, points, visible, missing="ignore", joint_weights=torch.ones(16))
    expected.backward()
    close(loss, expected.detach())
    close(gradient, leaf.grad)
    options = {"flipped": mirrored, "flip_pairs": MPII.mirror_pairs, "flip_shift": True, "heatmap_to_image": matrix}
    close(decoded, fastpose.decode_heatmaps(pred, **options))
    close(swapped, fastpose.swap_pairs(points, visible, flip, MPII.mirror_pairs))


@pytest.mark.parametrize("refine", ["none", "dark"])
def test_without_float64_simcc_is_what_it_is(no_float64: NoFloat64, refine: str) -> None:
    points, visible = random_points(3, 5, (24, 18))
    bins_x, bins_y = torch.arange(36.0), torch.arange(48.0)
    inside = points.clamp(torch.tensor(6.0), torch.tensor([12.0, 18.0]))
    pred_x = torch.exp(-((bins_x - 2 * inside[..., :1]) ** 2) / 32)
    pred_y = torch.exp(-((bins_y - 2 * inside[..., 1:]) ** 2) / 32)
    sides, how = (25, 25), decode_simcc.REFINEMENTS.index(refine)
    with no_float64:
        loss = simcc_loss.plain_simcc_loss(pred_x, pred_y, points, visible, None, 2.0, 4.9, 5.66, 10.0, 10.0, True)
        decoded = decode_simcc.plain_decode_simcc(pred_x, pred_y, None, None, None, [], 2.0, how, *sides)
    torch.testing.assert_close(loss, fastpose.simcc_loss(pred_x, pred_y, points, visible))
    expected = fastpose.decode_simcc(pred_x, pred_y, refine=refine, sigma=(4.3, 4.3))
    torch.testing.assert_close(decoded, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("refine", ["dark", "dark_udp"])
def test_without_float64_refined_points_are_within_a_ten_thousandth_of_a_pixel(
    no_float64: NoFloat64, refine: str
) -> None:
    """Peaks inside the map; beside its edge a step can be tens of pixels long, and is then as far off in proportion."""
    generator = torch.Generator().manual_seed(0)
    points = 4 + 40 * torch.rand(4, 16, 2, generator=generator)
    maps, _ = fastpose.render_heatmaps(points, torch.ones(4, 16), (48, 48), sigma=2.0, encoding="unbiased")
    maps += 0.02 * torch.randn(maps.shape, generator=generator)
    with no_float64:
        decoded, _ = decode_heatmaps.plain_decode_heatmaps(maps, None, None, [], False, REFINEMENTS.index(refine), 11)
    expected, _ = reference.decode_heatmaps(maps, refine=refine)
    np.testing.assert_allclose(decoded.numpy(), expected, rtol=0, atol=1e-4)


def test_centres_are_rounded_as_in_float64() -> None:
    """The float32 neighbours of all halves near a map, where a float32 sum x + 0.5 rounds."""
    halves = torch.arange(-200, 201) / 2
    steps = [halves, *(torch.nextafter(halves, torch.tensor(end)) for end in (-torch.inf, torch.inf))]
    points = torch.cat([*steps, torch.tensor([0.49999997, -0.50000006, 1e-30, -1e-30, 8388607.5, -8388607.5])])
    assert torch.equal(render_heatmaps._rounded(points).double(), (points.double() + 0.5).trunc())


@pytest.mark.parametrize("size", [(300, 300), (150, 150), (1, 70_000)])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("resample", affine_crop.RESAMPLING)
def test_crops_made_in_parts_are_whole(size: tuple[int, int], channels_last: bool, resample: str) -> None:
    """Parts of 65,536 pixels: some rows of one crop, some crops, a row that is longer."""
    images, matrix = random_images(5, largest=400), random_matrices(5) * torch.tensor([[0.5, 0.5, 8.0]])
    batch, color = ImageBatch.from_list(images), torch.rand(5, 3, 4)
    tables = (batch.data, batch.offsets, batch.sizes, matrix, None, color)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    box = torch.tensor([[[3.5, 0.0, 140.0, 160.0], [0.0, 70.0, 60_000.0, 90.0]]]).expand(5, 2, 4)
    options = {"color": color, "fill": 9.0, "memory_format": layout, "resample": resample, "erase": box}
    how = affine_crop.RESAMPLING.index(resample)
    out = affine_crop.plain_affine_crop(*tables, *size, 9.0, torch.float32, channels_last, how, box)
    expected = fastpose.affine_crop(batch, matrix, size, **options)
    assert out.is_contiguous(memory_format=layout)
    torch.testing.assert_close(out, expected, rtol=0, atol=0.2)


def test_what_cannot_be_checked_without_waiting_is_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (affine_crop, decode_heatmaps, transform_points):
        monkeypatch.setattr(module, "values_are_checked", lambda device: False)
    batch, matrix = ImageBatch.from_list(random_images(2)), random_matrices(4)
    index = torch.tensor([0, -1, 2**40, 1])
    batch.sizes[1, 0] = 1 << 30
    tables = (batch.data, batch.offsets, batch.sizes, matrix, index)
    for color in (None, torch.rand(3, 4), torch.rand(4, 3, 4)):
        out = affine_crop.plain_affine_crop(*tables, color, 4, 4, 0.0, torch.float32, False)
        own = None if color is None else color.expand(4, 3, 4)[:1]
        expected = fastpose.affine_crop(batch[0], matrix[:1], (4, 4), color=own)
        torch.testing.assert_close(out[:1], expected, rtol=0, atol=0.1)
        assert torch.isnan(out[1:]).all()
        box = torch.tensor([[[0.0, 0.0, 2.0, 2.0]]]).expand(4, 1, 4)
        out = affine_crop.plain_affine_crop(*tables, color, 4, 4, 0.0, torch.float32, False, 0, box)
        assert torch.isfinite(out[:1]).all()
        assert torch.isnan(out[1:3]).all()
        out = affine_crop.plain_affine_crop(*tables, color, 4, 4, 9.0, torch.uint8, False)
        assert (out[1:] == 9).all()
    matrix[0] = 0
    points = transform_points.plain_transform_points(torch.ones(4, 3, 2), matrix, True)
    assert torch.isnan(points[0]).all()
    assert torch.isfinite(points[1:]).all()
    maps = torch.full((1, 3, 4, 5), torch.nan)
    maps[0, 0, 1, 2], maps[0, 1, 3, 3] = -torch.inf, 2.0
    keypoints, scores = decode_heatmaps.plain_decode_heatmaps(maps, None, None, [], False, 0, 11)
    assert keypoints.tolist() == [[[0, 0], [3, 3], [0, 0]]]
    np.testing.assert_array_equal(scores.numpy(), [[-np.inf, 2, np.nan]])


def test_called_directly_the_loss_is_differentiable() -> None:
    points, visible = random_points(3, 5, (13, 18))
    pred = torch.randn(3, 5, 13, 18, requires_grad=True)
    arguments = (points, visible, torch.rand(3, 5), 1.5, 1, True)
    heatmap_mse_loss.plain_heatmap_mse_loss(pred, *arguments).backward()
    expected = heatmap_mse_loss.plain_heatmap_mse_loss_backward(torch.ones(()), pred.detach(), *arguments)
    torch.testing.assert_close(pred.grad, expected)


def test_the_losses_of_single_joints_are_those_of_the_library() -> None:
    points, visible = random_points(3, 5, (13, 18))
    pred = torch.randn(3, 5, 13, 18)
    arguments, upstream = (points, visible, torch.rand(3, 5), 1.5, 1, True), torch.rand(3, 5)
    losses = heatmap_mse_loss.plain_heatmap_mse_losses(pred, *arguments)
    gradient = heatmap_mse_loss.plain_heatmap_mse_loss_backward(upstream, pred, *arguments)
    torch.testing.assert_close(losses, torch.ops.fastpose.heatmap_mse_losses(pred, *arguments))
    torch.testing.assert_close(gradient, torch.ops.fastpose.heatmap_mse_loss_backward(upstream, pred, *arguments))
