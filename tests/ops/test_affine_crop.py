# SPDX-License-Identifier: Apache-2.0
"""affine_crop: the definition in fastpose.reference, OpenCV's warpAffine, and what must never happen."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fastpose
from fastpose import ImageBatch, reference
from tests.helpers.ops import random_images, random_matrices

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.uint8]


def assert_matches_reference(
    out: Tensor, images: object, matrix: Tensor, size: tuple[int, int], scale: float = 1.0, **kwargs: object
) -> None:
    """Within the rounding of float32 coordinates (and of the output's own dtype).

    A coordinate of up to 1,000 px is rounded to 2^-14 px twice; one pixel of it is worth at most 255 grey levels.
    """
    expected = reference.affine_crop(images, matrix.cpu().numpy(), size, dtype=np.float64, **kwargs)  # type: ignore[arg-type]
    got = out.cpu().double().numpy()
    step = {torch.float32: 0.0, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7, torch.uint8: 0.0}[out.dtype]
    if out.dtype == torch.uint8:
        expected, bound = np.clip(expected, 0, 255), 0.54
    else:
        bound = 0.04 * scale
    np.testing.assert_allclose(got, expected, rtol=step, atol=bound)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_matches_reference_over_dtypes_and_layouts(
    device: torch.device, dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    images, matrix = random_images(5), random_matrices(5).to(device)
    out = fastpose.affine_crop(
        ImageBatch.from_list(images).to(device), matrix, (17, 23), fill=90.0, dtype=dtype, memory_format=memory_format
    )
    assert out.shape == (5, 3, 17, 23)
    assert out.dtype == dtype
    assert out.is_contiguous(memory_format=memory_format)
    assert_matches_reference(out, images, matrix, (17, 23), fill=90.0)


@given(
    height=st.integers(1, 33),
    width=st.integers(1, 33),
    seed=st.integers(0, 10_000),
    spread=st.sampled_from([0.0, 1e-3, 1.0, 30.0]),
)
def test_matches_reference_whatever_the_sizes_and_the_matrix(height: int, width: int, seed: int, spread: float) -> None:
    """Odd sizes, 1-pixel images, singular matrices (spread 0 is one point), crops far outside."""
    images, matrix = random_images(3, seed), random_matrices(4, seed)
    matrix[:, :, :2] *= spread
    index = torch.tensor([2, 0, 0, 1])
    out = fastpose.affine_crop(ImageBatch.from_list(images), matrix, (height, width), image_index=index)
    assert_matches_reference(out, images, matrix, (height, width), image_index=index.numpy())


def test_integer_translation_copies_pixels_to_the_bit(device: torch.device) -> None:
    image = random_images(1, largest=30)[0]
    height, width = image.shape[:2]
    matrix = torch.tensor([[[1.0, 0, -3], [0, 1, 2]]], device=device)
    out = fastpose.affine_crop(torch.from_numpy(image).to(device), matrix, (height, width), fill=7.0)
    expected = np.full((height, width, 3), 7.0, np.float32)
    expected[: height - 2, 3:] = image[2:, : width - 3]
    np.testing.assert_array_equal(out[0].permute(1, 2, 0).cpu().numpy(), expected)


def test_half_a_pixel_is_the_mean_of_its_neighbours_by_hand(device: torch.device) -> None:
    """Row 10 20 | 30: at x = 0.5 15, at x = 2.5 half 30 and half the fill 100 = 65, colour map 2v + 1."""
    image = torch.tensor([10, 20, 30], dtype=torch.uint8, device=device).view(1, 3, 1).expand(1, 3, 3)
    matrix = torch.tensor([[[2.0, 0, 0.5], [0, 1, 0]]], device=device)
    color = torch.tensor([[2.0, 0, 0, 1], [0, 2, 0, 1], [0, 0, 2, 1]])
    out = fastpose.affine_crop(image, matrix, (1, 2), fill=100.0, color=color)
    assert out.tolist() == [[[[31.0, 131.0]]] * 3]


@pytest.mark.parametrize("per_crop", [False, True])
def test_color_is_applied_after_the_fill(device: torch.device, per_crop: bool) -> None:
    """Pixels outside are −mean/std, as warpAffine with a black border and normalisation after it gives."""
    color = fastpose.normalize_color(fastpose.IMAGENET_MEAN, fastpose.IMAGENET_STD)
    images, matrix = random_images(4), random_matrices(4).to(device)
    given_color = color.expand(4, 3, 4).to(device) if per_crop else color
    out = fastpose.affine_crop(ImageBatch.from_list(images).to(device), matrix, (9, 9), color=given_color)
    assert_matches_reference(out, images, matrix, (9, 9), scale=1 / (255 * 0.224), color=color.numpy())
    far = torch.tensor([[[1.0, 0, 1e6], [0, 1, 0]]], device=device)
    outside = fastpose.affine_crop(torch.from_numpy(images[0]).to(device), far, (1, 1), color=color)
    expected = -torch.tensor(fastpose.IMAGENET_MEAN) / torch.tensor(fastpose.IMAGENET_STD)
    torch.testing.assert_close(outside.flatten().cpu(), expected)


def test_color_can_mix_channels(device: torch.device) -> None:
    """RGB to BGR, and a grey of 0.25 R + 0.5 G + 0.25 B: 40, 80, 120 -> 80."""
    image = torch.tensor([[[40, 80, 120]]], dtype=torch.uint8, device=device)
    color = torch.tensor([[0.0, 0, 1, 0], [0.25, 0.5, 0.25, 0], [1, 0, 0, 0]])
    out = fastpose.affine_crop(image, torch.eye(2, 3, device=device)[None], (1, 1), color=color)
    assert out.flatten().tolist() == [120.0, 80.0, 40.0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 3e9])
@pytest.mark.parametrize("entry", range(6))
def test_coordinates_that_are_not_finite_or_huge_give_fill(device: torch.device, value: float, entry: int) -> None:
    matrix = torch.eye(2, 3, device=device).flatten()
    matrix[entry] = value
    image = torch.full((5, 5, 3), 200, dtype=torch.uint8, device=device)
    out = fastpose.affine_crop(image, matrix.view(1, 2, 3), (5, 5), fill=3.0)
    assert_matches_reference(out, image.cpu().numpy(), matrix.view(1, 2, 3), (5, 5), fill=3.0)
    assert torch.isfinite(out).all()


def test_strided_views_need_no_copy_and_give_the_same(device: torch.device) -> None:
    frames = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 30, 40, 3), dtype=np.uint8)).to(device)
    matrix = random_matrices(2).to(device)
    window = frames[::2, 5:25, 8:33]
    out = fastpose.affine_crop(window, matrix, (12, 12))
    assert torch.equal(out, fastpose.affine_crop(window.contiguous(), matrix, (12, 12)))
    every_other_column = frames[:2, :, ::2].flip(3)  # pixels of a row not side by side: copied, still right
    out = fastpose.affine_crop(every_other_column, matrix, (12, 12))
    assert torch.equal(out, fastpose.affine_crop(every_other_column.contiguous(), matrix, (12, 12)))
    strided = torch.zeros(2, 3, 2, device=device).transpose(1, 2)
    strided.copy_(matrix)
    assert torch.equal(fastpose.affine_crop(window, strided, (12, 12)), fastpose.affine_crop(window, matrix, (12, 12)))


def test_one_image_serves_all_crops_and_pairs_are_paired(device: torch.device) -> None:
    images, matrix = random_images(3), random_matrices(3).to(device)
    one = ImageBatch.from_list(images[:1]).to(device)
    assert_matches_reference(fastpose.affine_crop(one, matrix, (8, 8)), images[:1], matrix, (8, 8))
    batch = ImageBatch.from_list(images).to(device)
    paired = fastpose.affine_crop(batch, matrix, (8, 8))
    indexed = fastpose.affine_crop(batch, matrix, (8, 8), image_index=torch.arange(3, device=device))
    assert torch.equal(paired, indexed)
    with pytest.raises(RuntimeError, match=r"image_index.*3 images and 2 crops"):
        fastpose.affine_crop(batch, matrix[:2], (8, 8))


def test_empty_batches(device: torch.device) -> None:
    batch = ImageBatch.from_list(random_images(2)).to(device)
    none = torch.zeros(0, 2, 3, device=device)
    index = torch.zeros(0, dtype=torch.int64, device=device)
    assert fastpose.affine_crop(batch, none, (8, 9), image_index=index).shape == (0, 3, 8, 9)
    assert fastpose.affine_crop(ImageBatch.from_list([]).to(device), none, (8, 9)).shape == (0, 3, 8, 9)


def test_more_crops_than_a_grid_dimension_holds(device: torch.device) -> None:
    batch = 65_535 + 3
    image = torch.arange(48, dtype=torch.uint8, device=device).view(4, 4, 3)
    matrix = torch.eye(2, 3, device=device).repeat(batch, 1, 1)
    matrix[:, 0, 2] = torch.arange(batch, device=device) % 4
    out = fastpose.affine_crop(image, matrix, (1, 1))
    assert torch.equal(out[:, 0, 0, 0].cpu(), 3.0 * (torch.arange(batch) % 4))


@pytest.mark.parametrize("bad", [-1, 2, 2**40])
def test_bad_image_index_raises_on_the_cpu(bad: int) -> None:
    batch = ImageBatch.from_list(random_images(2))
    with pytest.raises(RuntimeError, match=rf"image_index\[1\] must be in \[0, 2\), got {bad}"):
        fastpose.affine_crop(batch, random_matrices(2), (4, 4), image_index=torch.tensor([0, bad]))


@pytest.mark.cuda
@pytest.mark.parametrize("bad", [-1, 2, 2**40])
def test_bad_image_index_gives_nan_or_fill_on_cuda(bad: int) -> None:
    batch = ImageBatch.from_list(random_images(2)).to("cuda")
    index = torch.tensor([0, bad], device="cuda")
    out = fastpose.affine_crop(batch, random_matrices(2).cuda(), (4, 4), image_index=index)
    assert torch.isfinite(out[0]).all()
    assert torch.isnan(out[1]).all()
    out = fastpose.affine_crop(batch, random_matrices(2).cuda(), (4, 4), image_index=index, dtype=torch.uint8, fill=9)
    assert (out[1] == 9).all()


def test_tables_altered_after_validation_are_an_error_on_the_cpu() -> None:
    batch = ImageBatch.from_list(random_images(2))
    batch.offsets[1] = batch.data.numel()
    with pytest.raises(RuntimeError, match="does not lie inside the buffer"):
        fastpose.affine_crop(batch, random_matrices(2), (4, 4))


@pytest.mark.cuda
@pytest.mark.parametrize(("offset", "rows"), [(-3, 4), (1 << 40, 4), (0, -4), (0, 0), (0, 1 << 30)])
def test_tables_altered_after_validation_give_nan_or_fill_on_cuda(offset: int, rows: int) -> None:
    """Where raising would need a synchronisation; the crop of the other image is what it was."""
    batch = ImageBatch.from_list(random_images(2))
    matrix = random_matrices(2)
    expected = fastpose.affine_crop(batch, matrix, (4, 4))
    batch.offsets[1] = offset
    batch.sizes[1, 0] = rows
    out = fastpose.affine_crop(batch.to("cuda"), matrix.cuda(), (4, 4))
    torch.testing.assert_close(out[0].cpu(), expected[0], rtol=0, atol=0.04)
    assert torch.isnan(out[1]).all()
    out = fastpose.affine_crop(batch.to("cuda"), matrix.cuda(), (4, 4), dtype=torch.uint8, fill=9)
    assert (out[1] == 9).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop_to_image": torch.zeros(1, 3, 3)}, r"crop_to_image must have shape \[B, 2, 3\]"),
        ({"crop_to_image": torch.zeros(2, 3)}, "crop_to_image must have shape"),
        ({"size": (0, 4)}, "size must be"),
        ({"size": 4}, r"size must be \(h, w\), two whole numbers of pixels, got 4"),
        ({"images": torch.zeros(1, 4, 4, 3)}, "images must be Byte, got Float"),
        ({"images": torch.zeros(1, 4, 4, 4, dtype=torch.uint8)}, r"images must have shape \[N, H, W, 3\]"),
        ({"color": torch.zeros(3, 3)}, r"color must have shape \[3, 4\]"),
        ({"color": torch.zeros(2, 3, 4)}, r"color must have shape \[3, 4\] or \[B, 3, 4\]"),
        ({"fill": float("nan")}, "fill must be a finite pixel value"),
        ({"dtype": torch.int32}, "dtype must be"),
        ({"memory_format": torch.channels_last_3d}, "memory_format must be"),
        ({"image_index": torch.zeros(2, dtype=torch.int64)}, r"image_index must have shape \[B\]"),
    ],
)
def test_errors_name_the_argument(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {
        "images": torch.zeros(1, 4, 4, 3, dtype=torch.uint8),
        "crop_to_image": torch.eye(2, 3)[None],
        "size": (4, 4),
    }
    arguments.update(change)
    with pytest.raises((RuntimeError, ValueError), match=message):
        fastpose.affine_crop(**arguments)  # type: ignore[arg-type]


def test_opcheck(device: torch.device) -> None:
    batch = ImageBatch.from_list(random_images(2)).to(device)
    matrix = random_matrices(2).to(device)
    index = torch.tensor([1, 0], device=device)
    color = fastpose.normalize_color((0.5,) * 3, (0.5,) * 3)
    op = torch.ops.fastpose.affine_crop.default
    for dtype, channels_last in [(torch.float32, False), (torch.uint8, True)]:
        arguments = (batch.data, batch.offsets, batch.sizes, matrix, index, color, 6, 7, 0.0, dtype, channels_last)
        torch.library.opcheck(op, arguments)
    dense = torch.zeros(1, 5, 6, 3, dtype=torch.uint8, device=device)
    torch.library.opcheck(op, (dense, None, None, matrix, None, None, 6, 7, 0.0, torch.float16, False))


def test_compiles_without_a_graph_break(device: torch.device) -> None:
    @torch.compile(fullgraph=True, backend="aot_eager")
    def crop(images: Tensor, matrix: Tensor) -> Tensor:
        return fastpose.affine_crop(images, matrix, (6, 7), memory_format=torch.channels_last) * 2

    @torch.compile(fullgraph=True, backend="aot_eager")
    def crop_ragged(images: ImageBatch, matrix: Tensor) -> Tensor:
        return fastpose.affine_crop(images, matrix, (6, 7)) * 2

    matrix = random_matrices(3).to(device)
    dense = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 9, 9, 3), dtype=np.uint8)).to(device)
    assert torch.equal(crop(dense, matrix), fastpose.affine_crop(dense, matrix, (6, 7)) * 2)
    ragged = ImageBatch.from_list(random_images(3)).to(device)
    assert torch.equal(crop_ragged(ragged, matrix), fastpose.affine_crop(ragged, matrix, (6, 7)) * 2)


def test_threads_give_the_same_bits() -> None:
    images, matrix = ImageBatch.from_list(random_images(6)), random_matrices(6)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = fastpose.affine_crop(images, matrix, (64, 64))
        torch.set_num_threads(4)
        assert torch.equal(one, fastpose.affine_crop(images, matrix, (64, 64)))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.skipif(int(cv2.__version__.split(".")[0]) < 5, reason="older OpenCV rounds weights to 1/32 px")
def test_within_half_a_grey_level_of_opencv_on_real_images(real_data: Path, device: torch.device) -> None:
    """cv2.warpAffine rounds to whole grey levels, so 0.5 of the 0.53 is its own; boxes as training draws them."""
    worst = 0.0
    generator = torch.Generator().manual_seed(0)
    for path in sorted((real_data / "mpii" / "images").glob("*.jpg")):
        image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
        height, width = image.shape[:2]
        count = 6
        center = torch.rand(count, 2, generator=generator) * torch.tensor([width, height])
        scale = 0.5 + 4 * torch.rand(count, generator=generator)
        rotation = 60 * torch.rand(count, generator=generator) - 30
        flip = torch.arange(count) % 2 == 1
        matrix = fastpose.crop_to_image_matrix(center, scale, rotation, (256, 256), flip=flip)
        out = fastpose.affine_crop(torch.from_numpy(image).to(device), matrix.to(device), (256, 256)).cpu()
        for b in range(count):
            flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
            expected = cv2.warpAffine(image, matrix[b].numpy().astype(np.float64), (256, 256), flags=flags)
            worst = max(worst, float((out[b].permute(1, 2, 0) - torch.from_numpy(expected)).abs().max()))
    assert worst <= 0.53


def test_offsets_beyond_four_gibibytes(device: torch.device) -> None:
    """Memory that nobody touches costs nothing on the CPU, so a data set may be large here too."""
    image = random_images(1, 0)[0]
    data = torch.empty((5 << 30) + 1, dtype=torch.uint8, device=device)
    start = data.numel() - image.size
    data[start:] = torch.from_numpy(image.reshape(-1)).to(device)
    offsets, sizes = torch.tensor([start], device=device), torch.tensor([image.shape[:2]], dtype=torch.int32)
    matrix = random_matrices(2, 0)
    got = fastpose.affine_crop(ImageBatch(data, offsets, sizes.to(device)), matrix.to(device), (40, 70))
    expected = fastpose.affine_crop(torch.from_numpy(image)[None], matrix, (40, 70))
    torch.testing.assert_close(got.cpu(), expected, rtol=0, atol=0.05)
