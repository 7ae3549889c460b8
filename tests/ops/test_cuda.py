# SPDX-License-Identifier: Apache-2.0
"""What every op promises on CUDA beside its values: the CPU's answer, streams, graphs, no synchronisation, no memory.

Values over dtypes, layouts, strides and sizes are in the files of the ops and in test_kernel_paths.py, on both devices.
"""

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
COLOR = fastpose.normalize_color(fastpose.IMAGENET_MEAN, fastpose.IMAGENET_STD)  # on the CPU: travels by value


def crop(data: Tensor, offsets: Tensor, sizes: Tensor, matrix: Tensor, index: Tensor) -> tuple[Tensor, ...]:
    images = ImageBatch._trusted(data, offsets, sizes)  # validating tables on a GPU synchronises
    return (fastpose.affine_crop(images, matrix, (33, 40), image_index=index, color=COLOR),)


def crop_to_bfloat16(frames: Tensor, matrix: Tensor) -> tuple[Tensor, ...]:
    """Tiles inside the image as well as across its border, whole vectors, channels last."""
    options = {"dtype": torch.bfloat16, "memory_format": torch.channels_last}
    return (fastpose.affine_crop(frames, matrix, (48, 128), color=COLOR, **options),)


def bicubic_crop(frames: Tensor, matrix: Tensor) -> tuple[Tensor, ...]:
    return (fastpose.affine_crop(frames, matrix, (48, 130), color=COLOR, resample="bicubic"),)


def erased_crop(frames: Tensor, matrix: Tensor, boxes: Tensor) -> tuple[Tensor, ...]:
    return (fastpose.affine_crop(frames, matrix, (48, 130), color=COLOR, erase=boxes),)


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


def decode_channels_last(maps: Tensor, flipped: Tensor, matrix: Tensor) -> tuple[Tensor, ...]:
    return decode(maps, flipped, matrix)


def decode_dark(maps: Tensor, flipped: Tensor, matrix: Tensor) -> tuple[Tensor, ...]:
    options = {"flipped": flipped, "flip_pairs": MPII.mirror_pairs, "refine": "dark", "blur_kernel": 37}
    return fastpose.decode_heatmaps(maps, heatmap_to_image=matrix, **options)


def decode_dark_udp_channels_last(maps: Tensor, matrix: Tensor) -> tuple[Tensor, ...]:
    return fastpose.decode_heatmaps(maps, heatmap_to_image=matrix, refine="dark_udp")


def loss(maps: Tensor, joints: Tensor, visible: Tensor) -> tuple[Tensor, ...]:
    return (fastpose.heatmap_mse_loss(maps, joints, visible, sigma=2.0),)


def loss_channels_last(maps: Tensor, joints: Tensor, visible: Tensor) -> tuple[Tensor, ...]:
    return loss(maps, joints, visible)


def gradient(maps: Tensor, joints: Tensor, visible: Tensor) -> tuple[Tensor, ...]:
    """Scaled as a gradient scaler would, so that float16 holds it."""
    pred = maps.detach().requires_grad_()
    return torch.autograd.grad(65536 * loss(pred, joints, visible)[0], pred)


def gradient_channels_last(maps: Tensor, joints: Tensor, visible: Tensor) -> tuple[Tensor, ...]:
    return gradient(maps, joints, visible)


def gradient_in_float16(maps: Tensor, joints: Tensor, visible: Tensor) -> tuple[Tensor, ...]:
    return gradient(maps, joints, visible)


def gradient_of_hard_joints(maps: Tensor, joints: Tensor, visible: Tensor) -> tuple[Tensor, ...]:
    pred = maps.detach().requires_grad_()
    value = fastpose.heatmap_mse_loss(pred, joints, visible, sigma=2.0, hard_joints=5)
    return value.detach(), *torch.autograd.grad(value, pred)


def decode_simcc(maps: Tensor, flipped: Tensor, matrix: Tensor) -> tuple[Tensor, ...]:
    mirror = {"flipped_x": flipped[..., 0, :], "flipped_y": flipped[..., 0], "flip_pairs": MPII.mirror_pairs}
    return fastpose.decode_simcc(maps[..., 0, :], maps[..., 0], crop_to_image=matrix, refine="dark", **mirror)


def gradient_of_simcc(maps: Tensor, joints: Tensor, visible: Tensor) -> tuple[Tensor, ...]:
    pred_x, pred_y = (m.detach().requires_grad_() for m in (maps[..., 0, :], maps[..., 0]))
    value = fastpose.simcc_loss(pred_x, pred_y, joints, visible, split_ratio=1.0)
    return value.detach(), *torch.autograd.grad(value, (pred_x, pred_y))


def inputs_of(call: Call, seed: int = 0) -> list[Tensor]:
    """CPU inputs of one op, drawn on the CPU so that both devices see the same."""
    generator = torch.Generator().manual_seed(seed)
    batch = 9
    rng = np.random.default_rng(seed)
    images = ImageBatch.from_list([rng.integers(0, 256, (30 + n, 50 - n, 3), dtype=np.uint8) for n in range(4)])
    frames = torch.from_numpy(rng.integers(0, 256, (batch, 240, 320, 3), dtype=np.uint8))
    matrix = torch.randn(batch, 2, 3, generator=generator) * torch.tensor([1.0, 1, 20])
    upright = torch.tensor([[1.2, -0.3, 60], [0.3, 1.2, 40]]) + 0.1 * matrix
    joints = torch.rand(batch, 16, 2, generator=generator) * 70 - 5
    visible = (torch.rand(batch, 16, generator=generator) < 0.8).float()
    flip = torch.rand(batch, generator=generator) < 0.5
    maps = torch.randn(2, batch, 16, 64, 48, generator=generator)
    last = [m.contiguous(memory_format=torch.channels_last) for m in maps]
    return {
        crop: [images.data, images.offsets, images.sizes, matrix, torch.arange(batch) % 4],
        crop_to_bfloat16: [frames, upright],
        bicubic_crop: [frames, upright],
        erased_crop: [frames, upright, joints.view(batch, 8, 4)],
        matrices: [joints[:, 0], 1 + visible[:, :2], 40 * visible[:, 0], flip],
        points: [joints, matrix],
        swap: [joints, visible, flip],
        render: [joints, visible],
        decode: [maps[0], maps[1], matrix],
        decode_channels_last: [last[0], last[1], matrix],
        decode_dark: [maps[0], maps[1], matrix],
        decode_dark_udp_channels_last: [last[0], matrix],
        loss: [maps[0], joints, visible],
        loss_channels_last: [last[0], joints, visible],
        gradient: [maps[0], joints, visible],
        gradient_channels_last: [last[0], joints, visible],
        gradient_in_float16: [last[0].half(), joints, visible],
        gradient_of_hard_joints: [last[0], joints, visible],
        decode_simcc: [maps[0], maps[1], matrix],
        gradient_of_simcc: [maps[0], joints, visible],
    }[call]


FORWARD = [
    crop,
    crop_to_bfloat16,
    bicubic_crop,
    erased_crop,
    matrices,
    points,
    swap,
    render,
    decode,
    decode_channels_last,
    decode_dark,
    decode_dark_udp_channels_last,
    decode_simcc,
    loss,
    loss_channels_last,
]
BACKWARD = [gradient, gradient_channels_last, gradient_in_float16, gradient_of_simcc]
each_call = pytest.mark.parametrize("call", FORWARD + BACKWARD, ids=lambda call: call.__name__)
PLAIN = [gradient_of_hard_joints]  # not with kernels of its own alone
each_call_or_plain = pytest.mark.parametrize("call", FORWARD + BACKWARD + PLAIN, ids=lambda call: call.__name__)
each_forward = pytest.mark.parametrize("call", FORWARD, ids=lambda call: call.__name__)


def on_cuda(call: Call, seed: int = 0) -> list[Tensor]:
    return [t.cuda() for t in inputs_of(call, seed)]


def blank_inputs(call: Call, arguments: list[Tensor]) -> list[Tensor]:
    """Zeros instead of the inputs, except the tables of a crop, which must name images from the start."""
    blank = [torch.zeros_like(t) for t in arguments]
    if call is crop:
        blank[1:3] = [t.clone() for t in arguments[1:3]]
    return blank


def assert_same(got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one, other)


def blocks_allocated() -> int:
    """How many blocks the caching allocator has handed out since the process began."""
    return torch.cuda.memory_stats()["allocation.all.allocated"]


@each_call
def test_cuda_gives_what_the_cpu_gives(call: Call) -> None:
    """To rounding: nvcc contracts multiply-adds, the CPU build does not.

    Crops: 2^-14 px of coordinate, 255 / 57. Half types may round to the neighbour: one step of theirs.
    """
    for got, expected in zip(call(*on_cuda(call)), call(*inputs_of(call)), strict=True):
        step = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}.get(expected.dtype, 2e-6)
        assert got.stride() == expected.stride()
        atol = 1e-3 if call in (crop, crop_to_bfloat16) else 1e-5
        torch.testing.assert_close(got.cpu(), expected, rtol=step, atol=atol)


@each_call
def test_two_runs_give_the_same_bits(call: Call) -> None:
    arguments = on_cuda(call)
    expected = call(*arguments)
    for _ in range(5):
        assert_same(call(*arguments), expected)


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


@each_call_or_plain
def test_captures_in_a_graph_and_replays_on_new_inputs(call: Call) -> None:
    """Backward too, through autograd; captured on zeros, replayed on two batches that it has not seen."""
    buffers = blank_inputs(call, on_cuda(call))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # torch asks for a first run beside the stream of the capture
        call(*buffers)
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = call(*buffers)
    for seed in (0, 1):
        arguments = on_cuda(call, seed)
        expected = call(*arguments)
        for buffer, source in zip(buffers, arguments, strict=True):
            buffer.copy_(source)
        graph.replay()
        torch.cuda.synchronize()
        assert_same(got, expected)


@each_call_or_plain
def test_does_not_synchronise(call: Call) -> None:
    arguments = on_cuda(call)
    expected = call(*arguments)
    torch.cuda.set_sync_debug_mode("error")  # torch then raises where it would wait for the device
    try:
        got = call(*arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_same(got, expected)


@each_forward
def test_compiles_into_one_graph(call: Call) -> None:
    """With torch's own compiler. It may lay out intermediate maps differently, so sums may come in another order."""
    pytest.importorskip("triton")
    arguments = on_cuda(call)
    compiled = torch.compile(call, fullgraph=True)
    for got, expected in zip(compiled(*arguments), call(*arguments), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("call", BACKWARD, ids=lambda call: call.__name__)
def test_compiles_into_one_graph_forward_and_backward(call: Call) -> None:
    pytest.importorskip("triton")
    maps, joints, visible = on_cuda(call)
    compiled = torch.compile(lambda pred: 65536 * loss(2 * pred, joints, visible)[0], fullgraph=True)
    leaf = maps.clone().requires_grad_()
    compiled(leaf).backward()
    (expected,) = gradient(2 * maps, joints, visible)
    # Twice a float16 is exact, and so is twice its gradient.
    torch.testing.assert_close(leaf.grad, 2 * expected, rtol=1e-6, atol=0)


WITH_BLOCKS = {
    crop: 1,
    crop_to_bfloat16: 1,
    render: 2,
    decode: 2,
    decode_channels_last: 2,
    decode_dark: 2,
    decode_dark_udp_channels_last: 2,
    loss: 2,
    loss_channels_last: 2,
}


@pytest.mark.parametrize("call", WITH_BLOCKS, ids=lambda call: call.__name__)
def test_allocates_its_outputs_and_nothing_else(call: Call) -> None:
    """One block per output; the loss has one more, for the sums of its tiles."""
    arguments = on_cuda(call)
    before = blocks_allocated()
    call(*arguments)
    assert blocks_allocated() - before == WITH_BLOCKS[call]


@pytest.mark.parametrize("call", BACKWARD, ids=lambda call: call.__name__)
def test_backward_allocates_the_gradient_and_nothing_else(call: Call) -> None:
    maps, joints, visible = on_cuda(call)
    pred, one = maps.requires_grad_(), torch.ones((), device="cuda")
    (value,) = loss(pred, joints, visible)
    before = blocks_allocated()
    (grad,) = torch.autograd.grad(value, pred, one)
    assert blocks_allocated() - before == 1
    assert grad.stride() == pred.stride()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("shape", [(70_000, 1, 2, 3), (5_000, 16, 2, 4)], ids=str)
def test_more_maps_than_a_grid_dimension_holds(shape: tuple[int, ...], memory_format: torch.memory_format) -> None:
    """Tiny ones, each with a value of its own, so that a map in another's place is seen."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(shape, generator=generator).contiguous(memory_format=memory_format)
    joints = torch.rand(*shape[:2], 2, generator=generator) * 4 - 0.5
    visible = torch.ones(shape[:2])
    for got, expected in zip(
        (*fastpose.decode_heatmaps(maps.cuda()), *gradient(maps.cuda(), joints.cuda(), visible.cuda())),
        (*fastpose.decode_heatmaps(maps), *gradient(maps, joints, visible)),
        strict=True,
    ):
        torch.testing.assert_close(got.cpu(), expected, rtol=2e-6, atol=1e-6)
    (value,), (expected_value,) = loss(maps.cuda(), joints.cuda(), visible.cuda()), loss(maps, joints, visible)
    torch.testing.assert_close(value.cpu(), expected_value, rtol=2e-6, atol=0)
    size = (shape[2], shape[3])
    drawn = fastpose.render_heatmaps(joints.cuda(), visible.cuda(), size)[0].cpu()
    torch.testing.assert_close(drawn, fastpose.render_heatmaps(joints, visible, size)[0], rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_gradient_scaler_trains_in_float16(memory_format: torch.memory_format) -> None:
    """Gradients of the parameters as float64 gives them, where unscaled ones of the maps would be 0 in float16."""
    generator = torch.Generator().manual_seed(0)
    crops = torch.randn(16, 3, 64, 64, generator=generator).cuda().contiguous(memory_format=memory_format)
    joints, visible = (torch.rand(16, 16, 2, generator=generator) * 64).cuda(), torch.ones(16, 16).cuda()
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(3, 16, 1).cuda().to(memory_format=memory_format)
    exact = torch.nn.Conv2d(3, 16, 1).cuda().double()
    exact.load_state_dict(layer.state_dict())
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cuda")
    with torch.autocast("cuda", dtype=torch.float16):
        pred = layer(crops)
        value = fastpose.heatmap_mse_loss(pred, joints, visible, sigma=2.0)
    assert pred.dtype == torch.float16
    assert value.dtype == torch.float32
    scaler.scale(value).backward()
    scaler.unscale_(optimizer)
    fastpose.heatmap_mse_loss(exact(crops.double()), joints, visible, sigma=2.0).backward()
    for got, expected in zip(layer.parameters(), exact.parameters(), strict=True):
        assert got.grad is not None
        assert expected.grad is not None
        torch.testing.assert_close(
            got.grad.double(), expected.grad, rtol=0, atol=0.01 * float(expected.grad.abs().max())
        )
    before = layer.weight.detach().clone()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 65536.0  # no infinity was met
    assert not torch.equal(layer.weight, before)


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
