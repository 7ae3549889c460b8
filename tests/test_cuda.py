# SPDX-License-Identifier: Apache-2.0
"""What every op promises on CUDA beside its values: the CPU's answer, streams, graphs, no synchronisation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import fastpose
from fastpose import ImageBatch
from fastpose.skeletons import MPII

pytestmark = pytest.mark.cuda

Call = Callable[..., tuple[Tensor, ...]]


def crop(data: Tensor, offsets: Tensor, sizes: Tensor, matrix: Tensor, index: Tensor) -> tuple[Tensor, ...]:
    images = ImageBatch._trusted(data, offsets, sizes)  # validating tables on a GPU synchronises
    color = fastpose.normalize_color(fastpose.IMAGENET_MEAN, fastpose.IMAGENET_STD)
    return (fastpose.affine_crop(images, matrix, (33, 40), image_index=index, color=color),)


def matrices(center: Tensor, scale: Tensor, rotation: Tensor, flip: Tensor) -> tuple[Tensor, ...]:
    return (fastpose.crop_to_image_matrix(center, scale, rotation, (64, 48), flip=flip),)


def points(joints: Tensor, matrix: Tensor) -> tuple[Tensor, ...]:
    return fastpose.transform_points(joints, matrix), fastpose.transform_points(joints, matrix, inverse=True)


def swap(joints: Tensor, visible: Tensor, flip: Tensor) -> tuple[Tensor, ...]:
    return fastpose.swap_pairs(joints, visible, flip, MPII.mirror_pairs)


def render(joints: Tensor, visible: Tensor) -> tuple[Tensor, ...]:
    return fastpose.render_heatmaps(joints, visible, (64, 48), sigma=2.0)


def decode(maps: Tensor, flipped: Tensor, matrix: Tensor) -> tuple[Tensor, ...]:
    options = {"flipped": flipped, "flip_pairs": MPII.mirror_pairs, "flip_shift": True}
    return fastpose.decode_heatmaps(maps, heatmap_to_image=matrix, **options)


def loss(maps: Tensor, joints: Tensor, visible: Tensor) -> tuple[Tensor, ...]:
    return (fastpose.heatmap_mse_loss(maps, joints, visible, sigma=2.0),)


def inputs_of(call: Call) -> list[Tensor]:
    """CPU inputs of one op, drawn on the CPU so that both devices see the same."""
    generator = torch.Generator().manual_seed(0)
    batch = 9
    rng = np.random.default_rng(0)
    images = ImageBatch.from_list([rng.integers(0, 256, (30 + n, 50 - n, 3), dtype=np.uint8) for n in range(4)])
    matrix = torch.randn(batch, 2, 3, generator=generator) * torch.tensor([1.0, 1, 20])
    joints = torch.rand(batch, 16, 2, generator=generator) * 70 - 5
    visible = (torch.rand(batch, 16, generator=generator) < 0.8).float()
    flip = torch.rand(batch, generator=generator) < 0.5
    maps = torch.randn(2, batch, 16, 64, 48, generator=generator)
    return {
        crop: [images.data, images.offsets, images.sizes, matrix, torch.arange(batch) % 4],
        matrices: [joints[:, 0], 1 + visible[:, :2], 40 * visible[:, 0], flip],
        points: [joints, matrix],
        swap: [joints, visible, flip],
        render: [joints, visible],
        decode: [maps[0], maps[1], matrix],
        loss: [maps[0], joints, visible],
    }[call]


CALLS = [crop, matrices, points, swap, render, decode, loss]
each_call = pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)


def on_cuda(call: Call) -> list[Tensor]:
    return [t.cuda() for t in inputs_of(call)]


def blank_inputs(call: Call, arguments: list[Tensor]) -> list[Tensor]:
    """Zeros in the place of the inputs, but for the tables of a crop, which must name images from the start."""
    blank = [torch.zeros_like(t) for t in arguments]
    if call is crop:
        blank[1:3] = [t.clone() for t in arguments[1:3]]
    return blank


def assert_same(got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one, other)


@each_call
def test_cuda_gives_what_the_cpu_gives(call: Call) -> None:
    """To rounding: nvcc contracts multiply-adds, the CPU build does not. Crops: 2^-14 px of coordinate, 255 / 57."""
    for got, expected in zip(call(*on_cuda(call)), call(*inputs_of(call)), strict=True):
        tolerance = {"rtol": 0, "atol": 1e-3} if call is crop else {"rtol": 2e-6, "atol": 1e-5}
        torch.testing.assert_close(got.cpu(), expected, **tolerance)


@each_call
def test_two_runs_give_the_same_bits(call: Call) -> None:
    arguments = on_cuda(call)
    assert_same(call(*arguments), call(*arguments))


@each_call
def test_launches_on_the_current_stream(call: Call) -> None:
    """The side stream sleeps, then gets the inputs; an op on any other stream would see the zeros from before."""
    arguments = on_cuda(call)
    expected = call(*arguments)
    late = blank_inputs(call, arguments)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        for target, source in zip(late, arguments, strict=True):
            target.copy_(source)
        got = call(*late)
    side.synchronize()
    assert_same(got, expected)


@each_call
def test_captures_in_a_graph_and_replays_on_new_inputs(call: Call) -> None:
    arguments = on_cuda(call)
    expected = call(*arguments)
    buffers = blank_inputs(call, arguments)
    call(*buffers)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = call(*buffers)
    for buffer, source in zip(buffers, arguments, strict=True):
        buffer.copy_(source)
    graph.replay()
    torch.cuda.synchronize()
    assert_same(got, expected)


@each_call
def test_does_not_synchronise(call: Call) -> None:
    arguments = on_cuda(call)
    expected = call(*arguments)
    torch.cuda.set_sync_debug_mode("error")  # torch then raises where it would wait for the device
    try:
        got = call(*arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_same(got, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU only")
@each_call
def test_runs_on_the_device_of_its_inputs(call: Call) -> None:
    with torch.cuda.device(0):
        got = call(*(t.to("cuda:1") for t in inputs_of(call)))
    assert_same(tuple(t.cpu() for t in got), tuple(t.cpu() for t in call(*on_cuda(call))))


def test_arguments_on_two_devices_are_refused() -> None:
    maps, joints, visible = inputs_of(loss)
    with pytest.raises(RuntimeError, match="keypoints must be on the device of pred"):
        fastpose.heatmap_mse_loss(maps.cuda(), joints, visible.cuda())
    with pytest.raises(RuntimeError, match="color must be on the device of images"):
        fastpose.affine_crop(
            torch.zeros(1, 4, 4, 3, dtype=torch.uint8).cuda(),
            torch.eye(2, 3)[None].cuda(),
            (4, 4),
            color=torch.zeros(1, 3, 4),
        )
