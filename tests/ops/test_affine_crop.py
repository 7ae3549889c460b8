# SPDX-License-Identifier: Apache-2.0
"""affine_crop: the definition in fastpose.reference, OpenCV's warpAffine, and what must never happen."""

from __future__ import annotations

import functools
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
RESAMPLING = ["bilinear", "bicubic"]
each_resampling = pytest.mark.parametrize("resample", RESAMPLING)


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
@each_resampling
def test_matches_reference_over_dtypes_and_layouts(
    device: torch.device, dtype: torch.dtype, memory_format: torch.memory_format, resample: str
) -> None:
    images, matrix = random_images(5), random_matrices(5).to(device)
    options = {"fill": 90.0, "dtype": dtype, "memory_format": memory_format, "resample": resample}
    out = fastpose.affine_crop(ImageBatch.from_list(images).to(device), matrix, (17, 23), **options)
    assert out.shape == (5, 3, 17, 23)
    assert out.dtype == dtype
    assert out.is_contiguous(memory_format=memory_format)
    assert_matches_reference(out, images, matrix, (17, 23), fill=90.0, resample=resample)


@given(
    height=st.integers(1, 33),
    width=st.integers(1, 33),
    seed=st.integers(0, 10_000),
    spread=st.sampled_from([0.0, 1e-3, 1.0, 30.0]),
    resample=st.sampled_from(RESAMPLING),
)
def test_matches_reference_whatever_the_sizes_and_the_matrix(
    height: int, width: int, seed: int, spread: float, resample: str
) -> None:
    """Odd sizes, 1-pixel images, singular matrices (spread 0 is one point), crops far outside."""
    images, matrix = random_images(3, seed), random_matrices(4, seed)
    matrix[:, :, :2] *= spread
    index = torch.tensor([2, 0, 0, 1])
    batch = ImageBatch.from_list(images)
    out = fastpose.affine_crop(batch, matrix, (height, width), image_index=index, resample=resample)
    assert_matches_reference(out, images, matrix, (height, width), image_index=index.numpy(), resample=resample)


@each_resampling
def test_integer_translation_copies_pixels_to_the_bit(device: torch.device, resample: str) -> None:
    image = random_images(1, largest=30)[0]
    height, width = image.shape[:2]
    matrix = torch.tensor([[[1.0, 0, -3], [0, 1, 2]]], device=device)
    pixels = torch.from_numpy(image).to(device)
    out = fastpose.affine_crop(pixels, matrix, (height, width), fill=7.0, resample=resample)
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


def test_bicubic_by_hand(device: torch.device) -> None:
    """Half a pixel from a step of 0 0 | 80 80 the weights are -3, 19, 19, -3 of 32: 40. A pixel before it 80 weighs
    -3: -7.5, which uint8 cannot hold; half a pixel outside, behind 80 80, the fill 16 weighs 16 of 32."""
    row = torch.tensor([0, 0, 0, 80, 80], dtype=torch.uint8, device=device).view(1, 5, 1).expand(9, 5, 3)
    matrix = torch.tensor([[[1.0, 0, at], [0, 1, 4]] for at in (2.5, 1.5, 4.5)], device=device)
    out = fastpose.affine_crop(row, matrix, (1, 1), fill=16.0, resample="bicubic")
    assert out[:, :, 0, 0].T.tolist() == [[40.0, -7.5, 48.0]] * 3
    whole = fastpose.affine_crop(row, matrix, (1, 1), fill=16.0, resample="bicubic", dtype=torch.uint8)
    assert whole[:, :, 0, 0].T.tolist() == [[40, 0, 48]] * 3


def test_bicubic_crops_of_one_value_have_that_value_to_the_bit(device: torch.device) -> None:
    flat = torch.full((9, 11, 3), 201, dtype=torch.uint8, device=device)
    out = fastpose.affine_crop(flat, random_matrices(4).to(device), (20, 30), fill=201.0, resample="bicubic")
    assert (out == 201).all()


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


NAN, INF = float("nan"), float("inf")
BOXES = torch.tensor(
    [
        [[3.0, 2.0, 20.0, 30.0], [-5.5, 60.25, 12.5, 99.0]],  # over two bands of rows, and over a corner
        [[0.0, 0.0, 83.0, 70.0], [9.0, 9.0, 10.0, 10.0]],  # all of it
        [
            [10.5, 31.0, 11.0, 33.0],
            [10.6, 31.0, 10.9, 70.0],
        ],  # no centre between 10.5 and 11, nor between 10.6 and 10.9
        [[-INF, 40.0, INF, 41.0], [50.0, -3e38, 50.5, 3e38]],  # a row and a column
        [[NAN, 0.0, 30.0, 30.0], [0.0, 0.0, 30.0, NAN]],
        [[30.0, 5.0, 20.0, 9.0], [200.0, 5.0, 210.0, 9.0]],  # the wrong way round, and outside
    ]
)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@each_resampling
def test_erased_boxes_hold_the_fill_and_the_rest_keeps_its_bits(
    device: torch.device, dtype: torch.dtype, memory_format: torch.memory_format, resample: str
) -> None:
    images, matrix, size = random_images(6), random_matrices(6), (70, 83)
    color = torch.rand(6, 3, 4, generator=torch.Generator().manual_seed(0))
    options = {"dtype": dtype, "memory_format": memory_format, "resample": resample, "color": color.to(device)}
    crop = functools.partial(
        fastpose.affine_crop, ImageBatch.from_list(images).to(device), matrix.to(device), size, fill=90.0, **options
    )
    out, whole = crop(erase=BOXES.to(device)), crop()
    assert out.is_contiguous(memory_format=memory_format)
    options = {"fill": 90.0, "resample": resample, "color": color.numpy()}
    assert_matches_reference(out, images, matrix, size, scale=3.0, erase=BOXES, **options)
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    inside = torch.zeros(6, *size, dtype=torch.bool)
    for box in BOXES.unbind(1):
        x0, y0, x1, y1 = box[..., None, None].unbind(1)
        inside |= (x >= x0) & (x < x1) & (y >= y0) & (y < y1)
    assert inside.sum((1, 2)).tolist() == [17 * 28 + 13 * 9, 70 * 83, 0, 83 + 70 - 1, 0, 0]
    kept = ~inside[:, None].expand(out.shape)
    assert torch.equal(out.cpu()[kept], whole.cpu()[kept])
    assert torch.equal(crop(erase=BOXES[:, :0].to(device)), whole)


def test_a_pixel_is_erased_if_its_centre_lies_in_the_box_by_hand(device: torch.device) -> None:
    """Of 4 x 3 pixels the middle of row 1, at x = 1 and 2: 1 belongs to [1, 2.5), and so does 2."""
    image = torch.full((3, 4, 3), 50, dtype=torch.uint8, device=device)
    matrix, box = torch.eye(2, 3, device=device)[None], torch.tensor([[[1.0, 0.5, 2.5, 2.0]]], device=device)
    color = fastpose.normalize_color((0.0,) * 3, (1.0,) * 3)
    out = fastpose.affine_crop(image, matrix, (3, 4), erase=box, fill=255.0, color=color)
    expected = torch.full((1, 3, 3, 4), 50 / 255)
    expected[:, :, 1, 1:3] = 1.0
    torch.testing.assert_close(out.cpu(), expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 3e9])
@pytest.mark.parametrize("entry", range(6))
@each_resampling
def test_coordinates_that_are_not_finite_or_huge_give_fill(
    device: torch.device, value: float, entry: int, resample: str
) -> None:
    matrix = torch.eye(2, 3, device=device).flatten()
    matrix[entry] = value
    image = torch.full((5, 5, 3), 200, dtype=torch.uint8, device=device)
    out = fastpose.affine_crop(image, matrix.view(1, 2, 3), (5, 5), fill=3.0, resample=resample)
    assert_matches_reference(out, image.cpu().numpy(), matrix.view(1, 2, 3), (5, 5), fill=3.0, resample=resample)
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
@each_resampling
def test_bad_image_index_gives_nan_or_fill_on_cuda(bad: int, resample: str) -> None:
    batch = ImageBatch.from_list(random_images(2)).to("cuda")
    options = {"image_index": torch.tensor([0, bad], device="cuda"), "resample": resample}
    out = fastpose.affine_crop(batch, random_matrices(2).cuda(), (4, 4), **options)
    assert torch.isfinite(out[0]).all()
    assert torch.isnan(out[1]).all()
    box = torch.tensor([[[0.0, 0.0, 2.0, 2.0]]], device="cuda").expand(2, 1, 4)
    out = fastpose.affine_crop(batch, random_matrices(2).cuda(), (4, 4), erase=box, **options)
    assert (out[0, :, :2, :2] == 0).all()
    assert torch.isnan(out[1]).all()
    out = fastpose.affine_crop(batch, random_matrices(2).cuda(), (4, 4), dtype=torch.uint8, fill=9, **options)
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
        ({"erase": torch.zeros(1, 4)}, r"erase must have shape \[B, N, 4\] = \[1, any, 4\], got Float \[1, 4\]"),
        ({"erase": torch.zeros(2, 1, 4)}, r"erase must have shape \[B, N, 4\]"),
        ({"resample": "nearest"}, "resample must be one of 'bilinear', 'bicubic', got 'nearest'"),
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
        torch.library.opcheck(op, (*arguments, 1))
        torch.library.opcheck(op, (*arguments, 0, torch.tensor([[[1.0, 1, 3, 3]]] * 2, device=device)))
    with pytest.raises(RuntimeError, match="affine_crop: unknown resample 2"):
        op(*arguments, 2)
    dense = torch.zeros(1, 5, 6, 3, dtype=torch.uint8, device=device)
    torch.library.opcheck(op, (dense, None, None, matrix, None, None, 6, 7, 0.0, torch.float16, False))


def test_compiles_without_a_graph_break(device: torch.device) -> None:
    @torch.compile(fullgraph=True, backend="aot_eager")
    def crop(images: Tensor, matrix: Tensor) -> Tensor:
        box = torch.tensor([[[1.0, 1, 3, 3]]] * 3, device=device)
        return fastpose.affine_crop(images, matrix, (6, 7), memory_format=torch.channels_last, erase=box) * 2

    @torch.compile(fullgraph=True, backend="aot_eager")
    def crop_ragged(images: ImageBatch, matrix: Tensor) -> Tensor:
        return fastpose.affine_crop(images, matrix, (6, 7), resample="bicubic") * 2

    matrix = random_matrices(3).to(device)
    dense = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 9, 9, 3), dtype=np.uint8)).to(device)
    box = torch.tensor([[[1.0, 1, 3, 3]]] * 3, device=device)
    assert torch.equal(crop(dense, matrix), fastpose.affine_crop(dense, matrix, (6, 7), erase=box) * 2)
    ragged = ImageBatch.from_list(random_images(3)).to(device)
    expected = fastpose.affine_crop(ragged, matrix, (6, 7), resample="bicubic") * 2
    assert torch.equal(crop_ragged(ragged, matrix), expected)


@each_resampling
def test_threads_give_the_same_bits(resample: str) -> None:
    images, matrix = ImageBatch.from_list(random_images(6)), random_matrices(6)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = fastpose.affine_crop(images, matrix, (64, 64), resample=resample)
        torch.set_num_threads(4)
        assert torch.equal(one, fastpose.affine_crop(images, matrix, (64, 64), resample=resample))
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


ENLARGING = torch.tensor([[[0.4, 0.1, 20.0], [-0.1, 0.4, 30.0]], [[0.7, -0.3, -10.0], [0.3, 0.7, -12.0]]])


def waves(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([128 + 90 * np.sin(x / 9 + c) * np.cos(y / 7 - c) for c in range(3)], -1).astype(np.uint8)


def test_bicubic_is_opencv_s(device: torch.device) -> None:
    """Of float32 pixels, as OpenCV rounds bytes. Before version 5 it rounds places to 1/32 px: in this smooth picture,
    of up to 10 and 13 grey levels per pixel in x and in y, that is less than half a level."""
    image = waves(120, 160)
    out = fastpose.affine_crop(torch.from_numpy(image).to(device), ENLARGING.to(device), (90, 100), resample="bicubic")
    bound = 1e-3 if int(cv2.__version__.split(".")[0]) >= 5 else 0.5
    for crop, matrix in zip(out.cpu(), ENLARGING.double().numpy(), strict=True):
        flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
        expected = cv2.warpAffine(image.astype(np.float32), matrix, (100, 90), flags=flags)
        np.testing.assert_allclose(crop.permute(1, 2, 0).numpy(), expected, rtol=0, atol=bound)


def test_bicubic_is_grid_sample_s(device: torch.device) -> None:
    """As transformers' Sapiens2 processor calls it, of noise, up to how its coordinates round."""
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)).to(device)
    matrix = ENLARGING.to(device)
    y, x = torch.meshgrid(torch.arange(90.0, device=device), torch.arange(100.0, device=device), indexing="ij")
    source = torch.einsum("brc,hwc->bhwr", matrix, torch.stack([x, y, torch.ones_like(x)], -1))
    grid = 2 * source / torch.tensor([159.0, 119.0], device=device) - 1
    pixels = image.permute(2, 0, 1).float().expand(2, 3, 120, 160)
    expected = torch.nn.functional.grid_sample(pixels, grid, "bicubic", "zeros", align_corners=True)
    out = fastpose.affine_crop(image, matrix, (90, 100), resample="bicubic")
    torch.testing.assert_close(out, expected, rtol=0, atol=0.02)


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
