# SPDX-License-Identifier: Apache-2.0
"""Classic mistakes are warned of, once; right use, whatever its augmentation, compiled code and GPUs are not."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import fastpose
from fastpose.ops import _mistakes
from fastpose.skeletons import MPII

SIZE, MAP = (256, 192), (64, 48)
CENTER, SCALE = torch.tensor([[320.0, 240.0], [500.0, 300.0], [250.0, 200.0], [420.0, 350.0]]), torch.full((4,), 1.2)
SEEN = torch.ones(4, 16)
IMAGE = torch.zeros(480, 640, 3, dtype=torch.uint8)


@pytest.fixture(autouse=True)
def nothing_reported() -> Iterator[None]:
    _mistakes.forget()
    yield
    _mistakes.forget()


@contextmanager
def said_by_ops() -> Iterator[Callable[[], list[str]]]:
    """What returns the warnings of the block."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        yield lambda: [str(one.message) for one in said if issubclass(one.category, UserWarning)]


def joints(seed: int = 0) -> Tensor:
    """In pixels of the image, about the centres."""
    return CENTER[:, None] + 50 * torch.randn(4, 16, 2, generator=torch.Generator().manual_seed(seed))


def on(size: tuple[int, int]) -> Tensor:
    matrix = fastpose.crop_to_image_matrix(CENTER, SCALE, 0.0, size)
    return fastpose.transform_points(joints(), matrix, inverse=True)


def render(points: Tensor, visible: Tensor = SEEN) -> Tensor:
    return fastpose.render_heatmaps(points, visible, MAP)[0]


def mse(points: Tensor, visible: Tensor = SEEN, **options: str) -> Tensor:
    return fastpose.heatmap_mse_loss(torch.zeros(len(points), 16, *MAP), points, visible, **options)


def simcc(points: Tensor, visible: Tensor = SEEN) -> Tensor:
    vectors = torch.zeros(len(points), 16, 384), torch.zeros(len(points), 16, 512)
    return fastpose.simcc_loss(*vectors, points, visible)


def crop(matrix: Tensor, images: Tensor | fastpose.ImageBatch = IMAGE, **options: Tensor) -> Tensor:
    return fastpose.affine_crop(images, matrix, SIZE, **options)


def inverted(matrix: Tensor) -> Tensor:
    return torch.from_numpy(np.stack([cv2.invertAffineTransform(m) for m in matrix.numpy()]))


def wrong_way() -> Tensor:
    return inverted(fastpose.crop_to_image_matrix(CENTER, SCALE, 0.0, SIZE))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: render(joints()), r"render_heatmaps: .* on the map of 64 x 48 px, the first is at .*heatmap pixels;"),
        (lambda: render(joints()[:1], SEEN[:1]), r"transform_points\(keypoints, crop_to_image_matrix\(.*\(64, 48\)\)"),
        (lambda: render(on(SIZE)), r"from crop pixels: divide by the stride"),
        (
            lambda: render(joints() / 640),
            r"all lie in the first pixel of the map of 64 x 48 px.*multiply shares of an ",
        ),
        (lambda: simcc(joints() / 640), r"all lie in the first pixel of the crop .*keypoints must be in crop pixels"),
        (lambda: mse(joints()), r"heatmap_mse_loss: .* on the map of 64 x 48 px"),
        (lambda: simcc(joints()[2:] + 300, SEEN[2:]), r"simcc_loss: .* on the crop of 256 x 192 px.* in crop pixels;"),
        (lambda: render(on(MAP), 2 * SEEN), r"render_heatmaps: visible .* COCO's flags.* Pass visible > 0"),
        (lambda: mse(on(MAP), 2 * SEEN, missing="ignore"), r"heatmap_mse_loss: visible .* Pass visible > 0"),
        (lambda: simcc(on(SIZE), 2 * SEEN), r"simcc_loss: visible .* Pass visible > 0"),
        (lambda: crop(wrong_way()), r"crop pixels to image pixels.*cv2.invertAffineTransform"),
        (lambda: crop(wrong_way()[:1]), r"crop pixels to image pixels"),
        (lambda: crop(wrong_way(), fastpose.ImageBatch.from_list([IMAGE] * 4)), r"crop pixels to image pixels"),
        (lambda: crop(wrong_way(), image_index=torch.zeros(4, dtype=torch.int64)), r"crop pixels to image pixels"),
        (lambda: fastpose.crop_to_image_matrix(CENTER, 240.0, 0.0, SIZE), r"scale is 240.*image pixels / 200"),
        (lambda: fastpose.crop_to_image_matrix(CENTER, 200 * SCALE, 0.0, SIZE), r"larger than 10,000 px"),
        (lambda: fastpose.normalize_color([123.7, 116.3, 103.5], [58.4, 57.1, 57.4]), r"mean and std .* by 255"),
        (lambda: fastpose.normalize_color([103.5, 116.3, 123.7], [1.0, 1.0, 1.0]), r"mean and std .* by 255"),
    ],
)
def test_a_mistake_is_warned_of_once_on_the_cpu(call: Callable[[], object], text: str) -> None:
    with pytest.warns(UserWarning, match=text) as caught:
        call()
    files = [warning.filename for warning in caught if warning.category is UserWarning]
    assert files == [__file__]  # the line that calls the op
    with said_by_ops() as said:
        call()
    assert said() == []


@given(
    batch=st.integers(1, 6),
    rotation=st.floats(-60, 60),
    zoom=st.floats(0.5, 1.5),
    shift=st.floats(-0.16, 0.16),
    wide=st.sampled_from([(480, 640), (1080, 1920), (64, 48)]),
    udp=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_right_use_is_not_warned_of(batch, rotation, zoom, shift, wide, udp, seed) -> None:
    """Persons anywhere in images, with every augmentation of training, half bodies too: of these half the joints are
    beyond the crop."""
    _mistakes.forget()
    generator = torch.Generator().manual_seed(seed)
    extent = torch.tensor(wide[::-1], dtype=torch.float32)
    center = extent * torch.rand(batch, 2, generator=generator)
    scale = (0.05 + 0.95 * torch.rand(batch, generator=generator)) * min(wide) / 200
    turn, flip = torch.full((batch,), rotation), torch.rand(batch, generator=generator) < 0.5
    spread = 200 * scale[:, None, None] * (torch.rand(batch, 16, 2, generator=generator) - 0.5) / 1.25
    visible = (torch.rand(batch, 16, generator=generator) < 0.8).float()
    half = torch.rand(batch, generator=generator) < 0.3
    boxes = center + half[:, None] * torch.tensor([0.0, 50.0]) * scale[:, None]  # about the lower half
    drawn = scale * torch.where(half, 0.6, 1.0) * zoom
    boxes = (boxes + shift * 200 * drawn[:, None]).minimum(extent - 1).clamp(min=0)
    with said_by_ops() as said:
        to_image = fastpose.crop_to_image_matrix(boxes, drawn, turn, SIZE, flip=flip, udp=udp)
        map_to_image = fastpose.crop_to_image_matrix(boxes, drawn, turn, MAP, flip=flip, udp=udp)
        index = torch.zeros(batch, dtype=torch.int64)
        crop(to_image, torch.zeros(1, *wide, 3, dtype=torch.uint8), image_index=index)
        joints = center[:, None] + spread
        on_map = fastpose.transform_points(joints, map_to_image, inverse=True)
        on_map, visible = fastpose.swap_pairs(on_map, visible, flip, MPII.mirror_pairs)
        render(on_map, visible)
        mse(on_map, visible)
        simcc(fastpose.transform_points(joints, to_image, inverse=True), visible)
    assert said() == []


@pytest.mark.parametrize(
    "call",
    [
        lambda: mse(on(MAP), 2 * SEEN),  # with missing="zeros" no joint has a weight
        lambda: render(on(MAP), 1.5 * SEEN),  # weights of one's own
        lambda: render(on(MAP), torch.tensor([0.5, 2.0]).repeat(4, 8)),
        lambda: render(on(MAP), joints()[..., 0] > 0),
        lambda: render(joints()[:1, :4], SEEN[:1, :4]),  # four joints say nothing
        lambda: render(joints(), 0 * SEEN),
        lambda: render(0 * joints()),
        lambda: render(torch.cat([joints()[:3] / 640, on(MAP)[3:]])),
        lambda: fastpose.render_heatmaps(joints() / 640, SEEN, (4, 4)),
        lambda: render(on(MAP) - 300),  # beyond the other edges: no larger pixels
        lambda: render(torch.full((4, 16, 2), torch.nan)),
        lambda: render(joints()[:0], SEEN[:0]),
        lambda: crop(wrong_way()[:0]),
        lambda: crop(torch.full((4, 2, 3), torch.nan)),
        lambda: crop(torch.zeros(4, 2, 3) - 9.0),  # singular
        lambda: crop(torch.tensor([[[1.0, 0.0, 5000.0], [0.0, 1.0, 5000.0]]])),  # beside it either way
        lambda: fastpose.crop_to_image_matrix(CENTER, torch.tensor([1.0, 1.2, 0.5, 60.0]), 0.0, SIZE),
        lambda: fastpose.normalize_color([0.0, 0.0, 0.0], [1.0, 1.0, 1.0]),
    ],
)
def test_what_may_be_meant_is_not_warned_of(call: Callable[[], object]) -> None:
    with said_by_ops() as said:
        call()
    assert said() == []


def test_one_sample_off_its_map_among_others_is_not_warned_of() -> None:
    points = torch.cat([joints()[:3], on(MAP)[3:]])
    with said_by_ops() as said:
        render(points)
        render(points.flip(0))
    assert said() == []


def test_few_of_many_calls_are_looked_at() -> None:
    """The first ones, and then one in so many: a mistake that begins later is seen, too."""
    for _ in range(_mistakes.FIRST_CALLS):
        render(on(MAP))
    with said_by_ops() as said:
        for _ in range(_mistakes.ONE_IN - 1):
            render(joints())
    assert said() == []
    with pytest.warns(UserWarning, match="heatmap pixels"):
        render(joints())


def every_op(points: Tensor, matrix: Tensor) -> Tensor:
    """Each mistake in one function of tensors."""
    maps, _ = fastpose.render_heatmaps(points, 2 * torch.ones_like(points[..., 0]), MAP)
    loss = mse(points, 2 * torch.ones_like(points[..., 0]), missing="ignore") + simcc(points + 300)
    crops = fastpose.affine_crop(IMAGE, matrix, (8, 8))
    boxes = fastpose.crop_to_image_matrix(points[:, 0], points[:, 1, 0] + 200, 0.0, SIZE)
    return maps.sum() + loss + crops.sum() + boxes.sum()


def test_compiled_code_is_one_graph_and_not_looked_at() -> None:
    inputs = joints(), wrong_way()
    with pytest.warns(UserWarning, match="heatmap pixels"):
        expected = every_op(*inputs)
    _mistakes.forget()
    torch.compiler.reset()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", r"\w+: ", UserWarning)
        compiled = torch.compile(every_op, fullgraph=True, backend="aot_eager")(*inputs)
        traced = make_fx(every_op)(*inputs)
        exported = torch.export.export(Function(every_op), inputs).module()
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            every_op(*map(mode.from_tensor, inputs))
    assert not _mistakes._reported
    torch.testing.assert_close(compiled, expected)
    for program in (traced, exported):
        torch.testing.assert_close(program(*inputs), expected)


class Function(torch.nn.Module):
    """A function as a module, which torch.export wants."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *arguments: Tensor) -> Tensor:
        return self.function(*arguments)


@pytest.mark.filterwarnings("ignore:There is a performance drop", "ignore:.*torch.jit.trace:DeprecationWarning")
def test_transforms_and_tracing_are_not_looked_at() -> None:
    pred = torch.rand(4, 16, *MAP)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", r"\w+: ", UserWarning)

        def loss(pred: Tensor) -> Tensor:
            return fastpose.heatmap_mse_loss(pred, joints(), SEEN)

        torch.vmap(lambda points: fastpose.heatmap_mse_loss(pred, points, SEEN))(joints()[None])
        torch.func.grad(loss)(pred)
        warnings.simplefilter("error", torch.jit.TracerWarning)
        torch.jit.trace(render, (joints(),), check_trace=False)
    assert not _mistakes._reported


def test_gradients_are_what_they_are_without_a_warning() -> None:
    pred = torch.rand(1, 9, 3, 4, dtype=torch.float64, requires_grad=True)
    points, visible = torch.full((1, 9, 2), 100.0), torch.ones(1, 9)
    with pytest.warns(UserWarning, match="heatmap pixels"):
        assert torch.autograd.gradcheck(lambda pred: fastpose.heatmap_mse_loss(pred, points, visible), (pred,))


@pytest.mark.cuda
def test_on_cuda_nothing_is_looked_at() -> None:
    """Whether it waits for the device is noticed by torch."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            device = torch.device("cuda")
            points, seen = torch.empty(4, 16, 2, device=device).fill_(300.0), torch.ones(4, 16, device=device)
            fastpose.render_heatmaps(points, 2 * seen, MAP)
            fastpose.crop_to_image_matrix(points[:, 0], points[:, 0, 0], 0.0, SIZE)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not _mistakes._reported


def test_a_picture_that_could_not_be_read_is_named(tmp_path) -> None:
    picture = np.zeros((4, 5, 3), np.uint8)
    unread = cv2.imread(str(tmp_path / "nowhere.png"))
    with pytest.raises(ValueError, match=r"images\[1\] must be uint8 .*got None, which cv2\.imread returns for a file"):
        fastpose.ImageBatch.from_list([picture, unread])
    matrix = fastpose.crop_to_image_matrix(CENTER, SCALE, 0.0, SIZE)
    with pytest.raises(TypeError, match=r"images must be an ImageBatch or .*got None, which cv2\.imread returns"):
        fastpose.affine_crop(unread, matrix, SIZE)
    with pytest.raises(TypeError, match=r"got a list: ImageBatch\.from_list\(images\) makes"):
        fastpose.affine_crop([picture], matrix, SIZE)
    with pytest.raises(TypeError, match=r"got a NumPy array: torch\.from_numpy\(images\) makes"):
        fastpose.affine_crop(picture, matrix, SIZE)
    with pytest.raises(TypeError, match=r"got str"):
        fastpose.affine_crop("a.png", matrix, SIZE)


@pytest.mark.parametrize("module", [fastpose, fastpose.reference])
def test_pairs_without_mirrored_maps_are_an_error(module) -> None:
    with pytest.raises(ValueError, match="flipped must be passed with flip_pairs"):
        module.decode_heatmaps(torch.zeros(1, 4, 8, 8), flip_pairs=[(0, 1)])
    with pytest.raises(ValueError, match="flipped_x and flipped_y must be passed with flip_pairs"):
        module.decode_simcc(torch.zeros(1, 4, 8), torch.zeros(1, 4, 8), flip_pairs=[])
