# SPDX-License-Identifier: Apache-2.0
"""Every way that the kernels have through memory: tiles inside and across borders, vectors and single elements, planar,
interleaved and strided maps, maps of several tiles. What the ops promise is in their own files; here sizes and layouts
are chosen so that each way is taken, and each result is compared with fastpose.reference element by element.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

import fastpose
from fastpose import ImageBatch, reference
from tests.helpers.ops import RENDER_TOLERANCE, assert_decoded, random_maps, random_points
from tests.helpers.pairs import pairs

INF, NAN = float("inf"), float("nan")
FLOATS = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
HALF_STEP = {torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}  # relative; a float32 result is rounded to half of it
FORMATS = [torch.contiguous_format, torch.channels_last]
ENCODINGS = ["msra", "unbiased", "udp"]


def each(names: str, *cases: tuple[Any, ...]) -> pytest.MarkDecorator:
    """parametrize, with functions named in the tests' names."""
    return pytest.mark.parametrize(names, cases, ids=lambda v: v.__name__ if callable(v) else str(v))


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """New tensors hold NaN (255 as uint8) until somebody writes them: what a kernel leaves out cannot pass."""
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


# ---- affine_crop -----------------------------------------------------------------------------------------------------

LARGE = (600, 800)  # (h, w): a tile of 64 pixels lies inside at 8 image pixels per crop pixel, turned by any angle
CROP_SIZES = [(64, 64), (48, 100), (33, 40), (256, 192), (1, 1), (5, 130), (6, 34), (35, 71)]


def pixels_of(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def placed(
    center: tuple[float, float], step: float, degrees: float, mirror: bool, size: tuple[int, int]
) -> NDArray[Any]:
    """The matrix that puts the middle of a crop on a point of the image, `step` image pixels per crop pixel."""
    turn = np.deg2rad(degrees)
    linear = step * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    if mirror:
        linear[0] *= -1
    middle = np.array([(size[1] - 1) / 2, (size[0] - 1) / 2])
    return np.concatenate([linear, (np.array(center) - linear @ middle)[:, None]], axis=1)


def inside_and_across(size: tuple[int, int]) -> Tensor:
    """[12, 2, 3]: the first four in the middle of the large image, the others across each border and beyond it."""
    height, width = LARGE
    middle, right, bottom = (width / 2, height / 2), width - 1.0, height - 1.0
    rows = [
        placed(middle, 1 / 8, 10.0, False, size),
        placed(middle, 1.0, 0.0, True, size),
        placed((middle[0] + 0.37, middle[1] - 0.81), 1.9, -77.0, True, size),
        placed(middle, 8.0, 133.0, False, size),
        placed((0.0, middle[1]), 1.0, 0.0, False, size),
        placed((right, middle[1]), 1.1, 180.0, False, size),
        placed((middle[0], 0.4), 0.7, 30.0, True, size),
        placed((middle[0], bottom), 1 / 8, -30.0, False, size),
        placed((1.0, 1.0), 1.3, 45.0, False, size),
        placed((right, bottom), 2.0, 5.0, True, size),
        placed((right + 40, -60.0), 1.0, 20.0, False, size),
        placed((-1e4, 1e4), 1.0, 0.0, False, size),
    ]
    return torch.tensor(np.array(rows), dtype=torch.float32)


@functools.cache
def expected_inside_and_across(size: tuple[int, int], resample: str = "bilinear") -> NDArray[Any]:
    image, matrix = pixels_of(*LARGE), inside_and_across(size)
    return reference.affine_crop([image], matrix, size, fill=114.0, dtype=np.float64, resample=resample)


def assert_crop(out: Tensor, expected: NDArray[Any], gain: float = 1.0) -> None:
    """To what float32 coordinates cost: four roundings of up to 2^-14 px (below 2,048 px) in x and in y, 255 per pixel.

    That times the `gain` of the colour map; integers are rounded on top of it, halves to their own step.
    """
    assert out.shape == expected.shape
    got, slope = out.cpu().double().numpy(), gain * 8 * 255 * 2.0**-14
    if out.dtype == torch.uint8:
        np.testing.assert_allclose(got, np.clip(expected, 0, 255), rtol=0, atol=0.5 + slope)
    else:
        np.testing.assert_allclose(got, expected, rtol=HALF_STEP.get(out.dtype, 1e-6), atol=slope)


@each("size, dtype, memory_format", *pairs(CROP_SIZES, [*FLOATS[:3], torch.uint8], FORMATS))
def test_crops_inside_and_across_every_border(
    device: torch.device, size: tuple[int, int], dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    image = torch.from_numpy(pixels_of(*LARGE)).to(device)
    out = fastpose.affine_crop(
        image, inside_and_across(size).to(device), size, fill=114.0, dtype=dtype, memory_format=memory_format
    )
    assert out.is_contiguous(memory_format=memory_format)
    assert_crop(out, expected_inside_and_across(size))


@each("size, dtype, memory_format", *pairs(CROP_SIZES, [*FLOATS[:3], torch.uint8], FORMATS))
def test_bicubic_crops_inside_and_across_every_border(
    device: torch.device, size: tuple[int, int], dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    image, options = torch.from_numpy(pixels_of(*LARGE)).to(device), {"dtype": dtype, "memory_format": memory_format}
    matrix = inside_and_across(size).to(device)
    out = fastpose.affine_crop(image, matrix, size, fill=114.0, resample="bicubic", **options)
    assert out.is_contiguous(memory_format=memory_format)
    # Cubic convolution is up to twice as steep as the straight line between two pixels.
    assert_crop(out, expected_inside_and_across(size, "bicubic"), gain=2.0)


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5])
def test_bicubic_taps_of_images_smaller_than_their_reach(device: torch.device, side: int) -> None:
    """The image is all its memory holds, so that a read beyond either end is seen by an address sanitizer."""
    image, size = pixels_of(side, side + 1), (12, 14)
    shifts = [(dx / 4 - 4, dy / 4 - 4) for dx in range(4) for dy in range(4)]
    matrix = torch.tensor([[[1.0, 0, dx], [0, 1, dy]] for dx, dy in shifts])
    options = {"fill": 9.0, "resample": "bicubic"}
    out = fastpose.affine_crop(torch.from_numpy(image).to(device), matrix.to(device), size, **options)
    assert_crop(out, reference.affine_crop(image, matrix, size, dtype=np.float64, **options))


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_every_byte_that_an_image_may_begin_at(device: torch.device, memory_format: torch.memory_format) -> None:
    """Ragged batches put images at any byte: 37 x 41 of them take 4,551, three more than a multiple of 4."""
    images = [
        pixels_of(37, 41, 1),
        pixels_of(90, 101, 2),
        pixels_of(1, 1, 3),
        pixels_of(90, 97, 4),
        pixels_of(90, 99, 5),
    ]
    tables = ImageBatch.from_list(images)
    size, index = (16, 64), torch.tensor([0, 1, 2, 3, 4] * 4)
    matrix = torch.tensor(
        np.array([placed((48.0, 44.0), step, 7.0, mirror, size) for step in (0.5, 1.0) for mirror in (False, True)]),
        dtype=torch.float32,
    ).repeat_interleave(5, 0)
    expected = reference.affine_crop(images, matrix, size, image_index=index, dtype=np.float64)
    for first in range(4):
        data = torch.cat([torch.zeros(first, dtype=torch.uint8), tables.data])
        moved = ImageBatch(data, tables.offsets + first, tables.sizes).to(device)
        out = fastpose.affine_crop(
            moved, matrix.to(device), size, image_index=index.to(device), memory_format=memory_format
        )
        assert_crop(out, expected)


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_views_of_images_with_odd_strides(device: torch.device, memory_format: torch.memory_format) -> None:
    """Rows of 3 · 151 bytes, beginning at byte 3 · (151 + first) of the frame, and one row repeated, stride 0."""
    frames = torch.from_numpy(np.stack([pixels_of(83, 151, seed) for seed in range(3)])).to(device)
    size = (24, 70)
    matrix = torch.tensor(np.array([placed((70.0, 40.0), 0.9, 12.0, False, size)] * 3), dtype=torch.float32)
    for first in range(4):
        window = frames[:, 1:, first : first + 141]
        out = fastpose.affine_crop(window, matrix.to(device), size, memory_format=memory_format)
        assert_crop(out, reference.affine_crop(window, matrix, size, dtype=np.float64))
    repeated = frames[:1, 5:6].expand(1, 80, 151, 3)
    out = fastpose.affine_crop(repeated, matrix.to(device), size, memory_format=memory_format)
    assert_crop(out, reference.affine_crop(repeated, matrix, size, dtype=np.float64))


@pytest.mark.tiles
@pytest.mark.parametrize("columns", [68, 69, 70, 71])
def test_tiles_that_just_fit_an_image_and_just_do_not(device: torch.device, columns: int) -> None:
    """One tile of 64 x 16, moved by whole pixels over an image a little larger: the image's bytes, or the fill.

    The image is all its memory holds, so that a read beyond either end is seen by an address sanitizer.
    """
    rows = 19
    image = pixels_of(rows, columns)
    shifts = [(dx, dy) for dx in range(-2, 9) for dy in range(-2, 6)]
    matrix = torch.tensor([[[1.0, 0, dx], [0, 1, dy]] for dx, dy in shifts], device=device)
    out = fastpose.affine_crop(torch.from_numpy(image).to(device), matrix, (16, 64), fill=9.0, dtype=torch.uint8)
    around = np.full((rows + 30, columns + 80, 3), 9, np.uint8)
    around[10 : 10 + rows, 10 : 10 + columns] = image
    for crop, (dx, dy) in zip(out.cpu().numpy(), shifts, strict=True):
        expected = around[10 + dy : 26 + dy, 10 + dx : 74 + dx]
        np.testing.assert_array_equal(crop.transpose(1, 2, 0), expected, err_msg=f"shift {dx}, {dy}")


@pytest.mark.tiles
@each("batch, memory_format", (132, FORMATS[0]), (133, FORMATS[1]), (264, FORMATS[1]), (265, FORMATS[0]))
def test_batches_on_both_sides_of_more_strips_per_warp(
    device: torch.device, batch: int, memory_format: torch.memory_format
) -> None:
    """Crops of 97 to 128 rows take four blocks each if a warp makes one strip, two if two, one if four: 528 at most."""
    image, size = pixels_of(90, 120), (127, 6)
    steps = [placed((5.0 + 0.4 * n, 45.0), 0.3 + 0.002 * n, 1.3 * n, n % 2 == 1, size) for n in range(batch)]
    matrix = torch.tensor(np.array(steps), dtype=torch.float32)
    out = fastpose.affine_crop(
        torch.from_numpy(image).to(device), matrix.to(device), size, fill=50.0, memory_format=memory_format
    )
    assert_crop(out, reference.affine_crop(image, matrix, size, fill=50.0, dtype=np.float64))


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_huge_and_non_finite_matrices(device: torch.device, memory_format: torch.memory_format) -> None:
    """Entries that are huge or no numbers in any place, and terms of 10^7 that cancel, beside a crop that is inside."""
    size, rows = (33, 40), []
    middle = placed((400.0, 300.0), 1.0, 0.0, False, size)
    for entry in range(6):
        for value in (NAN, INF, -INF, 1e30, -1e30, 3e9, 2.0**31):
            matrix = middle.copy()
            matrix.reshape(6)[entry] = value
            rows.append(matrix)
    matrix = torch.tensor(np.array([*rows, middle]), dtype=torch.float32)
    image = pixels_of(*LARGE)
    out = fastpose.affine_crop(
        torch.from_numpy(image).to(device), matrix.to(device), size, fill=33.0, memory_format=memory_format
    )
    assert_crop(out, reference.affine_crop(image, matrix, size, fill=33.0, dtype=np.float64))
    # Every pixel but those of one diagonal lands far outside; on it the terms cancel to some place in the image, known
    # only to a pixel or so. Whatever is read there, it is of the image.
    cancelling = torch.tensor([[[1e7, -1e7, 400.0], [1e7, -1e7, 300.0]]], device=device)
    flat = torch.full((*LARGE, 3), 200, dtype=torch.uint8, device=device)
    out = fastpose.affine_crop(flat, cancelling, size, fill=200.0, memory_format=memory_format)
    assert (out == 200.0).all()


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_colour_maps_reach_tiles_of_both_kinds(device: torch.device, memory_format: torch.memory_format) -> None:
    size = (40, 72)
    matrix, image = inside_and_across(size), pixels_of(*LARGE)
    color = torch.randn(len(matrix), 3, 4, generator=torch.Generator().manual_seed(0))
    out = fastpose.affine_crop(
        torch.from_numpy(image).to(device), matrix.to(device), size, color=color.to(device), memory_format=memory_format
    )
    expected = reference.affine_crop(image, matrix, size, color=color, dtype=np.float64)
    assert_crop(out, expected, gain=float(color[:, :, :3].abs().sum(2).max()))


# ---- render_heatmaps -------------------------------------------------------------------------------------------------


@each(
    "encoding, dtype, size",
    *pairs(ENCODINGS, FLOATS, [(16, 24), (13, 18), (7, 9), (1, 1), (200, 96), (96, 200)]),
)
def test_maps_of_whole_vectors_and_others(
    device: torch.device, encoding: str, dtype: torch.dtype, size: tuple[int, int]
) -> None:
    points, visible = random_points(3, 5, size)
    maps, weights = fastpose.render_heatmaps(
        points.to(device), visible.to(device), size, sigma=2.0, encoding=encoding, dtype=dtype
    )
    expected, expected_weights = reference.render_heatmaps(
        points, visible, size, sigma=2.0, encoding=encoding, dtype=np.float64
    )
    np.testing.assert_allclose(maps.cpu().double().numpy(), expected, rtol=0, atol=RENDER_TOLERANCE[dtype])
    np.testing.assert_array_equal(weights.cpu().numpy(), expected_weights)


# A warp's tile is 8 KiB of a map, and at most 2,048 pixels high or wide: just below, at and above that, and far above.
@pytest.mark.tiles
@pytest.mark.parametrize("encoding", ["msra", "unbiased"])
@pytest.mark.parametrize(
    "size",
    [
        *((3, width) for width in (1_016, 1_024, 1_032, 2_040, 2_047, 2_048, 2_049, 2_056, 4_096, 4_104)),
        *((height, 1) for height in (1_024, 2_047, 2_048, 2_049, 4_100)),
        *((height, 8) for height in (127, 128, 129, 255, 257, 513, 12_281)),
        (9, 13_000),
    ],
    ids=str,
)
def test_maps_of_several_tiles_in_either_direction(device: torch.device, size: tuple[int, int], encoding: str) -> None:
    points, visible = random_points(1, 3, size)
    points[0, 0] = torch.tensor([size[1] / 2 + 0.3, size[0] / 2 - 0.2])
    points[0, 1] = torch.tensor([size[1] - 1.0, size[0] - 1.0])
    visible[0, :2] = 1.0
    options: dict[str, Any] = {"sigma": 3.0, "encoding": encoding}
    expected, expected_weights = reference.render_heatmaps(points, visible, size, dtype=np.float64, **options)
    for dtype in FLOATS:
        maps, weights = fastpose.render_heatmaps(points.to(device), visible.to(device), size, dtype=dtype, **options)
        np.testing.assert_allclose(maps.cpu().double().numpy(), expected, rtol=0, atol=RENDER_TOLERANCE[dtype])
        np.testing.assert_array_equal(weights.cpu().numpy(), expected_weights)
        assert maps[0, 0].max() > 0.9


def points_at_borders(size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """[9, 16, 2] and [9, 16]: windows on the map's edges, across them, and where tiles and vectors end.

    64 x 64 float32 maps have planar tiles of 32 rows, joints side by side ones of 16 rows; vectors end at columns that
    are multiples of 2, 4 or 8. One joint in nine is not visible.
    """
    xs = [-4.5, -0.4, 0.0, 3.0, 4.5, 7.0, 8.0, 31.0, 31.5, 32.0, size[1] - 4.0, size[1] - 1.0, size[1] + 2.4]
    ys = [-4.0, -0.6, 0.0, 2.0, 12.5, 15.0, 16.0, 19.0, 28.0, 31.0, 32.0, 47.0, size[0] - 3.0, size[0] - 1.0]
    points = torch.cartesian_prod(torch.tensor(xs), torch.tensor(ys))[: 9 * 16].view(9, 16, 2)
    visible = torch.ones(9 * 16)
    visible[::9] = 0.0
    return points, visible.view(9, 16)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("sigma", [0.3, 1.0, 3.0, 40.0])
def test_draws_windows_across_every_border(device: torch.device, encoding: str, sigma: float) -> None:
    size = (64, 64)
    points, visible = points_at_borders(size)
    options: dict[str, Any] = {"sigma": sigma, "encoding": encoding}
    expected, _ = reference.render_heatmaps(points, visible, size, dtype=np.float64, **options)
    for dtype in FLOATS:
        maps, _ = fastpose.render_heatmaps(points.to(device), visible.to(device), size, dtype=dtype, **options)
        np.testing.assert_allclose(maps.cpu().double().numpy(), expected, rtol=0, atol=RENDER_TOLERANCE[dtype])


# ---- layouts of maps -------------------------------------------------------------------------------------------------


def planar(maps: Tensor) -> Tensor:
    return maps.clone(memory_format=torch.contiguous_format)


def channels_last(maps: Tensor) -> Tensor:
    return maps.clone(memory_format=torch.channels_last)


def every_other_sample(maps: Tensor) -> Tensor:
    batch, *rest = maps.shape
    return torch.full((2 * batch, *rest), NAN, dtype=maps.dtype, device=maps.device)[1::2].copy_(maps)


def some_of_the_joints(maps: Tensor) -> Tensor:
    batch, joints, *rest = maps.shape
    wide = torch.full((batch, joints + 3, *rest), NAN, dtype=maps.dtype, device=maps.device)
    return wide[:, 2 : 2 + joints].copy_(maps)


def some_of_the_joints_channels_last(maps: Tensor) -> Tensor:
    batch, joints, *rest = maps.shape
    wide = torch.full((batch, joints + 3, *rest), NAN, dtype=maps.dtype, device=maps.device)
    return wide.contiguous(memory_format=torch.channels_last)[:, 2 : 2 + joints].copy_(maps)


def some_samples_channels_last(maps: Tensor) -> Tensor:
    batch, *rest = maps.shape
    wide = torch.full((batch + 1, *rest), NAN, dtype=maps.dtype, device=maps.device)
    return wide.contiguous(memory_format=torch.channels_last)[1:].copy_(maps)


def one_element_off(maps: Tensor) -> Tensor:
    """Without gaps, but where no vector may begin."""
    return torch.full((maps.numel() + 1,), NAN, dtype=maps.dtype, device=maps.device)[1:].view(maps.shape).copy_(maps)


def one_element_off_channels_last(maps: Tensor) -> Tensor:
    batch, joints, height, width = maps.shape
    memory = torch.full((maps.numel() + 1,), NAN, dtype=maps.dtype, device=maps.device)
    return memory[1:].view(batch, height, width, joints).permute(0, 3, 1, 2).copy_(maps)


def columns_of_a_wider_map(maps: Tensor) -> Tensor:
    batch, joints, height, width = maps.shape
    wide = torch.full((batch, joints, height, width + 8), NAN, dtype=maps.dtype, device=maps.device)
    return wide[..., 8:].copy_(maps)


def transposed(maps: Tensor) -> Tensor:
    return torch.empty_like(maps.transpose(2, 3), memory_format=torch.contiguous_format).transpose(2, 3).copy_(maps)


def tokens(maps: Tensor) -> Tensor:
    """What a transformer gives, [B, 1 + h·w, K], without its first token."""
    batch, joints, height, width = maps.shape
    out = torch.full((batch, 1 + height * width, joints), NAN, dtype=maps.dtype, device=maps.device)
    return out[:, 1:].transpose(1, 2).unflatten(2, (height, width)).copy_(maps)


LAYOUTS = [
    planar,
    channels_last,
    every_other_sample,
    some_of_the_joints,
    some_of_the_joints_channels_last,
    some_samples_channels_last,
    one_element_off,
    one_element_off_channels_last,
    tokens,
    columns_of_a_wider_map,
    transposed,
]
THREE_LAYOUTS = [planar, channels_last, transposed]
each_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)


# ---- decode_heatmaps -------------------------------------------------------------------------------------------------


def pairs_among(joints: int) -> list[tuple[int, int]]:
    """(0, 1), (2, 3), ...; with an odd number of joints the last one is its own mirror image."""
    return [(k, k + 1) for k in range(0, joints - 1, 2)]


@each("layout, dtype, size", *pairs(LAYOUTS, FLOATS, [(24, 32), (17, 23), (9, 8)]))
def test_decodes_every_layout_with_and_without_the_mirror_test(
    device: torch.device, layout: Any, dtype: torch.dtype, size: tuple[int, int]
) -> None:
    """Few levels, so that ties are everywhere; they and the scores must come out to the bit."""
    plain, mirrored = random_maps((2, 5, *size)).to(dtype), random_maps((2, 5, *size), 1).to(dtype)
    maps, flipped = layout(plain.to(device)), layout(mirrored.to(device))
    assert_decoded(fastpose.decode_heatmaps(maps), plain)
    for shift in (False, True):
        options: dict[str, Any] = {"flip_pairs": pairs_among(5), "flip_shift": shift}
        # Maps and their mirrored ones alike, and the two in different layouts.
        for other in (flipped, planar(flipped)):
            out = fastpose.decode_heatmaps(maps, flipped=other, **options)
            assert_decoded(out, plain, flipped=mirrored.double().numpy(), **options)


@pytest.mark.parametrize("joints", [1, 2, 3, 16, 17, 128, 129, 133])
@pytest.mark.parametrize("layout", [channels_last, some_of_the_joints_channels_last], ids=lambda f: f.__name__)
def test_decodes_any_number_of_joints_side_by_side(device: torch.device, joints: int, layout: Any) -> None:
    plain, mirrored = random_maps((3, joints, 11, 13)), random_maps((3, joints, 11, 13), 1)
    maps, flipped = layout(plain.to(device)), layout(mirrored.to(device))
    assert_decoded(fastpose.decode_heatmaps(maps), plain)
    options: dict[str, Any] = {"flip_pairs": pairs_among(joints), "flip_shift": True}
    out = fastpose.decode_heatmaps(maps, flipped=flipped, **options)
    assert_decoded(out, plain, flipped=mirrored.numpy(), **options)


@pytest.mark.parametrize("joints", [2, 3, 5, 16, 17, 21, 133, 308, 512, 513])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_vectors_of_joints_that_begin_at_any_joint(device: torch.device, joints: int, dtype: torch.dtype) -> None:
    """A vector of four or eight joints may end in the next pixel, the next row, or several pixels further."""
    size = (24, 32) if joints < 100 else (6, 8)
    plain, mirrored = (random_maps((2, joints, *size), seed).to(dtype) for seed in (0, 1))
    maps, flipped = channels_last(plain.to(device)), channels_last(mirrored.to(device))
    assert_decoded(fastpose.decode_heatmaps(maps), plain)
    if joints > 512:
        return  # flip_pairs are a table of so many
    for shift in (False, True):
        options: dict[str, Any] = {"flip_pairs": pairs_among(joints), "flip_shift": shift}
        out = fastpose.decode_heatmaps(maps, flipped=flipped, **options)
        assert_decoded(out, plain, flipped=mirrored.double().numpy(), **options)


def many_levels(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Noise of 8 bits, which all types hold and add exactly."""
    return torch.randint(-64, 192, shape, generator=torch.Generator().manual_seed(seed)).float() / 256


@each("layout, dtype, refine", *pairs(LAYOUTS, FLOATS, ["dark", "dark_udp"]))
def test_refines_by_blurring_in_every_layout(
    device: torch.device, layout: Any, dtype: torch.dtype, refine: str
) -> None:
    """Small kernels, and ones whose neighbourhoods have more columns than a warp has lanes, or than the map has."""
    for size, blur_kernel in (((24, 32), 11), ((17, 43), 37), ((6, 8), 3)):
        options: dict[str, Any] = {"refine": refine, "blur_kernel": blur_kernel}
        plain, mirrored = many_levels((2, 5, *size)).to(dtype), many_levels((2, 5, *size), 1).to(dtype)
        maps, flipped = layout(plain.to(device)), layout(mirrored.to(device))
        assert_decoded(fastpose.decode_heatmaps(maps, **options), plain, **options)
        options |= {"flip_pairs": pairs_among(5), "flip_shift": True}
        out = fastpose.decode_heatmaps(maps, flipped=flipped, **options)
        assert_decoded(out, plain, flipped=mirrored.double().numpy(), **options)


@pytest.mark.parametrize("joints", [1, 2, 17, 128, 129])
def test_refines_any_number_of_joints_side_by_side(device: torch.device, joints: int) -> None:
    plain = many_levels((2, joints, 9, 12))
    out = fastpose.decode_heatmaps(channels_last(plain.to(device)), refine="dark", blur_kernel=5)
    assert_decoded(out, plain, refine="dark", blur_kernel=5)


@each("layout, dtype, size", *pairs(THREE_LAYOUTS, FLOATS, [(24, 32), (200, 96)]))
def test_ties_between_elements_vectors_warps_and_rounds(
    device: torch.device, layout: Any, dtype: torch.dtype, size: tuple[int, int]
) -> None:
    """Two equal maxima per map, one pair per joint; the one that comes later in memory order never wins."""
    pixels = size[0] * size[1]
    steps = {1, 2, 3, 4, 7, 8, 15, 16, 31, 32, 33, 64, 127, 128, 255, 256, 511, 512, 513, pixels - 1}
    pairs = [(first, first + step) for step in sorted(steps) for first in (0, 5, 63) if first + step < pixels]
    pairs += [(first, pixels - 1) for first in (1, 126, 383, pixels // 2, pixels - 2)]
    maps = torch.zeros(len(pairs), pixels, dtype=dtype)
    maps[torch.arange(len(pairs))[:, None], torch.tensor(pairs)] = 0.75
    given = layout(maps.view(1, len(pairs), *size).to(device))
    keypoints, scores = fastpose.decode_heatmaps(given, refine="none")
    first = torch.tensor([pair[0] for pair in pairs])
    expected = torch.stack([first % size[1], first // size[1]], -1).float()
    assert torch.equal(keypoints[0].cpu(), expected)
    assert (scores == 0.75).all()
    if layout is planar and pixels < 1024:  # so many maps that a warp takes one of them
        keypoints, _ = fastpose.decode_heatmaps(given.expand(1024 // len(pairs) + 1, -1, -1, -1), refine="none")
        assert (keypoints.cpu() == expected).all()


# A map takes one warp if that can read it in one go (128 vectors), or if there are 1,024 maps of at most 1,023 vectors,
# with a blur 2,048. Other maps take four warps. Sizes are (rows, vectors across).
ONE_WARP_OR_FOUR = [
    *(((1, 3), size, dtype) for size in ((127, 1), (64, 2), (43, 3), (33, 4)) for dtype in FLOATS[:3]),
    ((31, 33), (43, 3), torch.float32),
    ((32, 32), (43, 3), torch.bfloat16),
    ((32, 32), (341, 3), torch.float16),
    ((32, 32), (256, 4), torch.float32),
]


@pytest.mark.tiles
@each("maps, size, dtype", *ONE_WARP_OR_FOUR)
def test_maps_that_take_one_warp_and_four(
    device: torch.device, maps: tuple[int, int], size: tuple[int, int], dtype: torch.dtype
) -> None:
    """Few levels, so that ties are everywhere, and maps of NaN, of -inf, and with one number, the last of all."""
    shape = (*maps, size[0], size[1] * 16 // dtype.itemsize)
    plain, mirrored = random_maps(shape).to(dtype), random_maps(shape, 1).to(dtype)
    plain[0, 0], plain[0, 1], plain[0, 2] = NAN, -INF, NAN
    plain[0, 2, -1, -1] = mirrored[0, 2, -1, -1] = 0.25
    assert_decoded(fastpose.decode_heatmaps(plain.to(device)), plain)
    options: dict[str, Any] = {"flip_pairs": pairs_among(maps[1]), "flip_shift": True}
    out = fastpose.decode_heatmaps(plain.to(device), flipped=mirrored.to(device), **options)
    assert_decoded(out, plain, flipped=mirrored.double().numpy(), **options)


@pytest.mark.tiles
@each("size, dtype", ((43, 3), torch.float16), ((512, 4), torch.float32), ((683, 3), torch.bfloat16))
def test_refines_maps_that_take_one_warp_and_four(
    device: torch.device, size: tuple[int, int], dtype: torch.dtype
) -> None:
    plain = many_levels((32, 32, size[0], size[1] * 16 // dtype.itemsize)).to(dtype)
    options: dict[str, Any] = {"refine": "dark", "blur_kernel": 5}
    assert_decoded(fastpose.decode_heatmaps(plain.to(device), **options), plain, **options)


@each_layout
def test_maps_with_nothing_to_find(device: torch.device, layout: Any) -> None:
    """All equal, all NaN, all -inf, NaN except the last pixel, a row of NaN, zeros of both signs, +inf twice."""
    maps = torch.zeros(2, 9, 16, 24)
    maps[:, 0] = 0.5
    maps[:, 1] = NAN
    maps[:, 2] = -INF
    maps[:, 3] = NAN
    maps[:, 3, -1, -1] = 0.25
    maps[:, 4] = random_maps((2, 1, 16, 24))[:, 0].abs()
    maps[:, 4, 7] = NAN
    maps[:, 5, ::2] = -0.0
    maps[:, 6, 3, 5] = maps[:, 6, 9, 20] = INF
    maps[:, 7] = NAN
    maps[:, 7, :, 3] = -INF
    maps[:, 8] = -1.0
    maps[1] = maps[1].roll(1, 0)
    given = layout(maps.to(device))
    assert_decoded(fastpose.decode_heatmaps(given), maps)
    options: dict[str, Any] = {"flip_pairs": [(0, 4), (2, 6)], "flip_shift": True}
    with np.errstate(invalid="ignore"):  # inf - inf
        assert_decoded(fastpose.decode_heatmaps(given, flipped=given, **options), maps, flipped=maps.numpy(), **options)


@pytest.mark.parametrize("layout", [planar, channels_last, columns_of_a_wider_map], ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_the_shift_leaves_column_0_alone(device: torch.device, layout: Any, dtype: torch.dtype) -> None:
    """Un-mirrored, the peak of the mirrored map at column w − 1 − x lies at x, shifted at x + 1; at 0 also at 0.

    4 x 16, one peak per joint: the mirrored map of joint k has it at column 15 − k of row k % 4, the map nowhere.
    """
    mirrored = torch.zeros(1, 16, 4, 16, dtype=dtype)
    for k in range(16):
        mirrored[0, k, k % 4, 15 - k] = 1.0
    maps = torch.zeros(1, 16, 4, 16, dtype=dtype)
    for shift in (False, True):
        keypoints, scores = fastpose.decode_heatmaps(
            layout(maps.to(device)), flipped=layout(mirrored.to(device)), flip_pairs=[], flip_shift=shift, refine="none"
        )
        # Shifted, column 0 keeps its own and column 1 has the same again, a tie that 0 wins; what 15 had is lost.
        columns = [0 if k == 0 else k + shift for k in range(16)]
        expected = [[x, k % 4] if x < 16 else [0, 0] for k, x in enumerate(columns)]
        assert keypoints[0].tolist() == expected
        assert scores[0].tolist() == [0.5 if x < 16 else 0.0 for x in columns]


# ---- heatmap_mse_loss ------------------------------------------------------------------------------------------------


def assert_loss(
    device: torch.device,
    plain: Tensor,
    layout: Any,
    joint_weights: Tensor | None = None,
    missing: str = "zeros",
    *,
    at: tuple[Tensor, Tensor] | None = None,
    sigma: float = 2.0,
    encoding: str = "msra",
) -> None:
    """Value and gradient against the definition, of joints `at` (points, visible), or at random places: of all joints,
    and of the half of them that is hard.

    The prediction is what its type has made of it, so only float32 arithmetic is between the two: a target is right to
    1e-6 (as the tests of render_heatmaps say), a loss to some 1e-6 of itself. The gradient is taken of B·K·h·w times
    the loss, so that float16 holds it; it is then rounded once.
    """
    batch, joints, *size = plain.shape
    points, visible = at or random_points(batch, joints, (size[0], size[1]))
    drawing: dict[str, Any] = {"sigma": sigma, "encoding": encoding}
    options: dict[str, Any] = {"missing": missing, **drawing}
    pred = layout(plain.to(device)).requires_grad_()
    weights = None if joint_weights is None else joint_weights.to(device)
    exact = plain.double().numpy()
    target, drawn = reference.render_heatmaps(points, visible, (size[0], size[1]), dtype=np.float64, **drawing)
    weight = drawn.astype(np.float64) if missing == "ignore" else np.ones(drawn.shape)
    if joint_weights is not None:
        weight = weight * joint_weights.double().numpy()
    gradient = weight[:, :, None, None] * (exact - target)
    losses = 0.5 * (gradient * (exact - target)).mean((2, 3))
    hardest = np.sort(losses, axis=1)[:, ::-1]
    everything = reference.heatmap_mse_loss(exact, points, visible, joint_weights=joint_weights, **options)
    step = {torch.float64: 1e-12, torch.float32: 1e-6} | HALF_STEP
    for hard_joints in (None, (joints + 1) // 2):
        loss = fastpose.heatmap_mse_loss(
            pred, points.to(device), visible.to(device), joint_weights=weights, hard_joints=hard_joints, **options
        )
        count = joints if hard_joints is None else hard_joints
        (got,) = torch.autograd.grad(loss * batch * count * size[0] * size[1], pred)
        expected = everything if hard_joints is None else hardest[:, :count].mean()
        np.testing.assert_allclose(loss.item(), expected, rtol=1e-9 if plain.dtype == torch.float64 else 5e-6)
        counts = losses >= hardest[:, count - 1, None]
        assert got.dtype == plain.dtype
        np.testing.assert_allclose(
            got.cpu().double().numpy(),
            gradient * counts[:, :, None, None],
            rtol=step[plain.dtype],
            atol=1e-10 if plain.dtype == torch.float64 else 3e-6,
        )


def prediction(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return (0.4 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


@each("layout, dtype, size", *pairs(LAYOUTS, FLOATS, [(16, 24), (13, 17)]))
def test_loss_and_gradient_over_layouts(
    device: torch.device, layout: Any, dtype: torch.dtype, size: tuple[int, int]
) -> None:
    assert_loss(device, prediction((3, 5, *size), dtype), layout)


@each("joints, dtype, size", *pairs([1, 2, 3, 7, 16, 17, 133], FLOATS, [(9, 24), (5, 7)]))
def test_loss_of_any_number_of_joints_side_by_side(
    device: torch.device, joints: int, dtype: torch.dtype, size: tuple[int, int]
) -> None:
    """A vector then ends with one pixel's joints and begins the next one's, in float16 with up to eight of them."""
    weights = 0.5 + torch.rand(joints, generator=torch.Generator().manual_seed(1))
    assert_loss(device, prediction((2, joints, *size), dtype), channels_last, weights)


@pytest.mark.tiles
@pytest.mark.parametrize("layout", [planar, channels_last, some_samples_channels_last], ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    "shape",
    [(2, 16, 64, 48), (1, 17, 200, 96), (2, 3, 200, 96), (1, 133, 40, 48), (1, 2, 3, 9000), (1, 1, 1, 8)],
    ids=str,
)
def test_loss_of_maps_of_several_tiles(device: torch.device, layout: Any, shape: tuple[int, ...]) -> None:
    """Planar tiles have 8 KiB, those of joints side by side 64: parts of a map, of a row, the last ones smaller."""
    assert_loss(device, prediction(shape), layout)


# Planar tiles are at most 2,048 columns wide. Joints side by side are at most 512, or as many as leave room for their
# factors in a block's 48 KiB of shared memory: of 8 x 16 maps 478 in half types. Their tiles are about 256 vectors
# wide.
BARELY_TILED = [
    *((planar, (1, 1, 2, width)) for width in (1_016, 1_024, 1_032, 2_040, 2_048, 2_056, 4_096, 4_104, 20_000)),
    *((planar, (1, 2, height, 8)) for height in (127, 128, 129, 255, 257, 513, 1_100)),
    *((channels_last, (1, joints, 8, 16)) for joints in (478, 479, 480, 512, 513, 520)),
    *((channels_last, (1, 16, 2, width)) for width in (31, 32, 33, 63, 64, 66, 128, 130, 136, 768)),
    *((channels_last, (2, 4, height, 1)) for height in (255, 1_749, 8_200)),
]


@pytest.mark.tiles
@each("layout, shape", *BARELY_TILED)
@pytest.mark.parametrize("encoding", ["msra", "unbiased"])
def test_loss_of_maps_that_hardly_fit_tiles(
    device: torch.device, layout: Any, shape: tuple[int, ...], encoding: str
) -> None:
    for dtype in (torch.float32, torch.float16):
        assert_loss(device, prediction(shape, dtype), layout, encoding=encoding)


@each("layout, encoding, sigma", *pairs(THREE_LAYOUTS, ENCODINGS, [0.3, 1.0, 3.0, 40.0]))
def test_loss_of_windows_across_every_border(device: torch.device, layout: Any, encoding: str, sigma: float) -> None:
    size = (64, 64)
    for dtype in (torch.float32, torch.bfloat16):
        plain = prediction((9, 16, *size), dtype)
        assert_loss(device, plain, layout, at=points_at_borders(size), sigma=sigma, encoding=encoding)


@pytest.mark.tiles
@pytest.mark.parametrize("joints", [2, 5, 16, 17, 32, 33, 64, 65, 70, 133, 308])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_loss_of_joints_on_the_same_pixels(device: torch.device, joints: int, dtype: torch.dtype) -> None:
    """All on one pixel, or in two places by turns; from 33 on, joints share the bits that stand for their windows."""
    size = (40, 24)
    points = torch.tensor([11.0, 13.0]).expand(2, joints, 2).clone()
    points[1, ::2] = torch.tensor([20.4, 36.5])
    visible = torch.ones(2, joints)
    visible[:, ::7] = 0.0
    assert_loss(device, prediction((2, joints, *size), dtype), channels_last, at=(points, visible))


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_gradient_has_the_same_bits_in_every_layout(device: torch.device, encoding: str, dtype: torch.dtype) -> None:
    points, visible = (tensor.to(device) for tensor in random_points(3, 17, (40, 24)))
    weights = torch.rand(3, 17, generator=torch.Generator().manual_seed(1)).to(device)
    gradients = []
    for layout in (planar, channels_last, transposed):
        pred = layout(prediction((3, 17, 40, 24), dtype).to(device)).requires_grad_()
        loss = fastpose.heatmap_mse_loss(pred, points, visible, encoding=encoding, joint_weights=weights)
        (loss * pred.numel()).backward()
        assert pred.grad is not None
        gradients.append(pred.grad)
    assert torch.equal(gradients[1], gradients[0])
    assert torch.equal(gradients[2], gradients[0])


@each("layout, dtype", *pairs(THREE_LAYOUTS, FLOATS))
def test_nan_and_infinity_count_outside_every_window(device: torch.device, layout: Any, dtype: torch.dtype) -> None:
    points, visible = torch.full((2, 16, 2), 5.0, device=device), torch.ones(2, 16, device=device)
    for value in (NAN, INF, -INF):
        for row, column in ((40, 50), (63, 63), (5, 60), (60, 5), (0, 0)):
            plain = prediction((2, 16, 64, 64), dtype)
            plain[1, 9, row, column] = value
            pred = layout(plain.to(device)).requires_grad_()
            loss = fastpose.heatmap_mse_loss(pred, points, visible)
            loss.backward()
            assert loss.isnan() if value != value else loss.item() == INF
            assert pred.grad is not None
            odd = ~pred.grad.isfinite()
            assert odd.sum() == 1
            assert odd[1, 9, row, column]


@each("layout, dtype, size", *pairs(THREE_LAYOUTS, FLOATS, [(2, 8), (3, 16), (40, 24)]))
def test_nan_and_infinite_weights_reach_the_loss(
    device: torch.device, layout: Any, dtype: torch.dtype, size: tuple[int, int]
) -> None:
    """They reach the loss as they are, also where maps are so small that most of a block has nothing to do."""
    points, visible = (tensor.to(device) for tensor in random_points(2, 4, size))
    for value in (NAN, INF):
        weights = torch.tensor([1.0, value, 0.5, 2.0], device=device)
        pred = layout((prediction((2, 4, *size)) + 2.0).to(device, dtype))
        loss = fastpose.heatmap_mse_loss(pred, points, visible, joint_weights=weights)
        assert loss.isnan() if value != value else loss.item() == INF


@each("layout, missing, per_sample", *pairs(LAYOUTS, ["zeros", "ignore"], [False, True]))
def test_loss_weights_find_their_joints(device: torch.device, layout: Any, missing: str, per_sample: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    weights = torch.rand((4, 7) if per_sample else (7,), generator=generator) * 3
    weights.view(-1)[::3] = 0.0
    assert_loss(device, prediction((4, 7, 12, 16)), layout, weights, missing)


@each_layout
def test_nan_and_infinity_stay_where_they_are(device: torch.device, layout: Any) -> None:
    """NaN and infinity in some maps: the loss is NaN, their gradients too, every other element has its own.

    With weight 0 as well, for 0 · NaN is NaN: a prediction that is no number is never made to look like one.
    """
    size = (12, 16)
    points, visible = random_points(2, 5, size)
    for value in (NAN, INF):
        for weight in (1.0, 0.0):
            plain = prediction((2, 5, *size))
            plain[0, 1, 3, 4] = plain[1, 4, 11, 15] = value
            weights = torch.full((5,), weight)
            pred = layout(plain.to(device)).requires_grad_()
            loss = fastpose.heatmap_mse_loss(
                pred, points.to(device), visible.to(device), sigma=2.0, joint_weights=weights.to(device)
            )
            (loss * plain.numel()).backward()
            target, _ = reference.render_heatmaps(points, visible, size, sigma=2.0, dtype=np.float64)
            with np.errstate(invalid="ignore"):  # 0 * inf
                gradient = weight * (plain.double().numpy() - target)
            assert loss.isnan() or (value == INF and weight == 1.0 and loss.item() == INF)
            assert pred.grad is not None
            np.testing.assert_allclose(pred.grad.cpu().double().numpy(), gradient, rtol=1e-6, atol=3e-6)


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (2, 0, 8, 8), (2, 0, 8, 7), (0, 0, 1, 1)], ids=str)
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_empty_maps_in_either_layout(
    device: torch.device, shape: tuple[int, ...], memory_format: torch.memory_format
) -> None:
    pred = torch.empty(shape, device=device).contiguous(memory_format=memory_format).requires_grad_()
    points, visible = torch.zeros(*shape[:2], 2, device=device), torch.zeros(shape[:2], device=device)
    loss = fastpose.heatmap_mse_loss(pred, points, visible)
    loss.backward()
    assert loss.item() == 0.0
    keypoints, scores = fastpose.decode_heatmaps(pred)
    assert keypoints.shape == (*shape[:2], 2)
    assert scores.shape == shape[:2]
