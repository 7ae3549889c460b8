# SPDX-License-Identifier: Apache-2.0
"""What no op may do, whatever it is called with: read outside its buffers, take a bool for anything but true or false,
return memory that nobody wrote, or fail without saying which op and how much memory it wanted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fastpose
from fastpose import ImageBatch, reference
from fastpose.ops import _native
from tests.helpers.ops import random_images, random_maps, random_matrices

ops = torch.ops.fastpose


# ---- tables ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left_out", ["offsets", "sizes"])
def test_half_of_an_image_batch_is_refused(device: torch.device, left_out: str) -> None:
    batch, matrix = ImageBatch.from_list(random_images(2)).to(device), random_matrices(2).to(device)
    tables: list[Tensor | None] = [batch.offsets, batch.sizes]
    tables[left_out == "sizes"] = None
    dense = torch.zeros(2, 4, 4, 3, dtype=torch.uint8, device=device)
    for pixels in (batch.data, dense):
        with pytest.raises(RuntimeError, match=r"affine_crop: images.offsets and images.sizes must be passed together"):
            ops.affine_crop(pixels, *tables, matrix, None, None, 4, 4, 0.0, torch.float32, False)


LEAST, MOST = torch.iinfo(torch.int64).min, torch.iinfo(torch.int64).max
NUMBERS = [LEAST, LEAST // 3, -(1 << 32), -1, 0, 1, 2, 47, 48, 49, 1 << 24, (1 << 31) - 1, 1 << 62, MOST]


def test_tables_altered_after_validation_are_never_followed_outside_on_the_cpu() -> None:
    """Every pair of them in turn: an error, or the pixels that the tables name inside the buffer."""
    generator = torch.Generator().manual_seed(0)
    data = torch.randint(0, 256, (48,), generator=generator, dtype=torch.uint8)
    matrix = torch.eye(2, 3)[None]
    sides = [n for n in NUMBERS if -(1 << 31) <= n < 1 << 31]
    followed = 0
    for offset in NUMBERS:
        for height in sides:
            for width in sides:
                batch = ImageBatch(data, torch.tensor([0]), torch.tensor([[4, 4]], dtype=torch.int32))
                batch.offsets[0], batch.sizes[0, 0], batch.sizes[0, 1] = offset, height, width
                bytes_named = 3 * height * width
                if height > 0 and width > 0 and offset >= 0 and offset + bytes_named <= 48:
                    image = data[offset : offset + bytes_named].view(height, width, 3)
                    expected = reference.affine_crop(image.numpy(), matrix, (5, 5))
                    np.testing.assert_array_equal(fastpose.affine_crop(batch, matrix, (5, 5)).numpy(), expected)
                    followed += 1
                else:
                    with pytest.raises(RuntimeError, match=r"affine_crop: images: image 0 .* does not lie inside"):
                        fastpose.affine_crop(batch, matrix, (5, 5))
    assert followed > 5


# ---- bools ----------------------------------------------------------------------------------------------------------


def test_a_bool_is_true_unless_its_byte_is_0(device: torch.device) -> None:
    """NumPy's masks and images of masks, viewed as bools, have bytes of 255."""
    bytes_ = torch.tensor([0, 255, 2, 1, 0, 128] * 20, dtype=torch.uint8, device=device)
    odd, plain = bytes_.view(torch.bool), bytes_ != 0
    center = torch.rand(120, 2, device=device) * 100
    matrices = [fastpose.crop_to_image_matrix(center, 1.0, 30.0, (8, 8), flip=flip) for flip in (odd, plain)]
    assert torch.equal(*matrices)
    points, visible = torch.rand(120, 4, 2, device=device), torch.rand(120, 4, device=device)
    swapped = [fastpose.swap_pairs(points, visible, flip, [(0, 3)]) for flip in (odd, plain)]
    assert all(map(torch.equal, *swapped))
    expected = reference.swap_pairs(points, visible, plain, [(0, 3)])
    assert all(np.array_equal(got.cpu(), want) for got, want in zip(swapped[0], expected, strict=True))
    flags = [seen[:, None].expand(120, 4) for seen in (odd, plain)]
    rendered = [fastpose.render_heatmaps(points * 8, seen, (8, 8)) for seen in flags]
    assert all(map(torch.equal, *rendered))
    maps = random_maps((120, 4, 8, 8)).to(device)
    losses = [fastpose.heatmap_mse_loss(maps, points * 8, seen, missing="ignore") for seen in flags]
    assert torch.equal(*losses)


# ---- tensors without values, and of other kinds ---------------------------------------------------------------------

Call = Callable[[Callable[[str, Tensor], Tensor]], object]


def images() -> Tensor:
    return torch.zeros(2, 5, 5, 3, dtype=torch.uint8)


# Each passes its tensors through `of`, with their names.
CALLS: dict[str, Call] = {
    "affine_crop": lambda of: fastpose.affine_crop(
        of("images", images()),
        of("crop_to_image", random_matrices(2)),
        (4, 4),
        image_index=of("image_index", torch.zeros(2, dtype=torch.int64)),
        color=of("color", torch.zeros(2, 3, 4)),
        erase=of("erase", torch.tensor([[[1.0, 1, -3, -3]]] * 2)),
    ),
    "crop_to_image_matrix": lambda of: fastpose.crop_to_image_matrix(
        of("center", torch.ones(2, 2)),
        of("scale", torch.ones(2)),
        of("rotation", torch.ones(2)),
        (4, 4),
        flip=of("flip", torch.ones(2, dtype=torch.bool)),
    ),
    "decode_heatmaps": lambda of: fastpose.decode_heatmaps(
        of("heatmaps", torch.rand(2, 3, 4, 4)),
        heatmap_to_image=of("heatmap_to_image", random_matrices(2)),
        flipped=of("flipped", torch.rand(2, 3, 4, 4)),
        flip_pairs=[(0, 1)],
    ),
    "decode_simcc": lambda of: fastpose.decode_simcc(
        of("pred_x", torch.rand(2, 3, 8)),
        of("pred_y", torch.rand(2, 3, 6)),
        crop_to_image=of("crop_to_image", random_matrices(2)),
        flipped_x=of("flipped_x", torch.rand(2, 3, 8)),
        flipped_y=of("flipped_y", torch.rand(2, 3, 6)),
        flip_pairs=[(0, 1)],
    ),
    "heatmap_mse_loss": lambda of: fastpose.heatmap_mse_loss(
        of("pred", torch.rand(2, 3, 4, 4)),
        of("keypoints", torch.rand(2, 3, 2)),
        of("visible", torch.ones(2, 3)),
        joint_weights=of("joint_weights", torch.ones(3)),
    ),
    "heatmap_mse_losses": lambda of: fastpose.heatmap_mse_loss(
        of("pred", torch.rand(2, 3, 4, 4)),
        of("keypoints", torch.rand(2, 3, 2)),
        of("visible", torch.ones(2, 3)),
        joint_weights=of("joint_weights", torch.ones(3)),
        hard_joints=2,
    ),
    "render_heatmaps": lambda of: fastpose.render_heatmaps(
        of("keypoints", torch.rand(2, 3, 2)), of("visible", torch.ones(2, 3)), (4, 4)
    ),
    "simcc_loss": lambda of: fastpose.simcc_loss(
        of("pred_x", torch.rand(2, 3, 8)),
        of("pred_y", torch.rand(2, 3, 6)),
        of("keypoints", torch.rand(2, 3, 2)),
        of("visible", torch.ones(2, 3)),
        joint_weights=of("joint_weights", torch.ones(3)),
    ),
    "swap_pairs": lambda of: fastpose.swap_pairs(
        of("points", torch.rand(2, 3, 2)),
        of("visible", torch.ones(2, 3)),
        of("flip", torch.ones(2, dtype=torch.bool)),
        [(0, 1)],
    ),
    "transform_points": lambda of: fastpose.transform_points(
        of("points", torch.rand(2, 3, 2)), of("matrix", random_matrices(2))
    ),
}


def argument_names(op: str) -> list[str]:
    names: list[str] = []
    CALLS[op](lambda name, value: (names.append(name), value)[1])
    return names


EACH_ARGUMENT = [(op, argument) for op in CALLS for argument in argument_names(op)]
each_argument = pytest.mark.parametrize(("op", "argument"), EACH_ARGUMENT)


@each_argument
def test_one_argument_without_values_is_an_error(op: str, argument: str) -> None:
    """torch calls an op's fake kernel where any argument is on "meta": it must not return unwritten memory."""

    def on_meta(name: str, value: Tensor) -> Tensor:
        return value.to("meta") if name == argument else value

    with pytest.raises(RuntimeError, match=rf"^{op}: \w+ must be on the device of .*meta"):
        CALLS[op](on_meta)


KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "sparse": lambda value: value.to_sparse(),
    "compressed": lambda value: value.reshape(len(value), -1).to_sparse_csr(),
    "nested": lambda value: torch.nested.nested_tensor(list(value)),
    "jagged": lambda value: torch.nested.nested_tensor(list(value), layout=torch.jagged),
    "mkldnn": lambda value: value.to_mkldnn(),
    "complex": lambda value: value.to(torch.complex64),
    "quantized": lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.quint8),
}


@pytest.mark.filterwarnings("ignore")  # torch's, of the beta state of most of these
@pytest.mark.parametrize("kind", KINDS)
@each_argument
def test_tensors_of_other_kinds_are_an_error_that_names_the_argument(op: str, argument: str, kind: str) -> None:
    def replaced(name: str, value: Tensor) -> Tensor:
        if name != argument:
            return value
        if kind in ("mkldnn", "quantized", "jagged", "nested") and value.dtype != torch.float32:
            value = value.to(torch.float32)
        if kind in ("jagged", "nested") and value.dim() == 1:
            value = value[:, None]
        return KINDS[kind](value)

    with pytest.raises((RuntimeError, TypeError), match=rf"^({op}: )?{argument} must "):
        CALLS[op](replaced)


@pytest.mark.parametrize(
    ("op", "argument"),
    [(op, argument) for op, argument in EACH_ARGUMENT if argument not in ("images", "image_index", "flip")],
)
def test_a_view_that_is_negated_lazily_has_its_own_values(op: str, argument: str) -> None:
    """The imaginary part of a conjugate is such a view: its memory holds the opposite sign."""
    torch.manual_seed(0)
    values: dict[str, Tensor] = {}
    CALLS[op](lambda name, value: values.setdefault(name, value))
    negated = torch._neg_view(values[argument])
    assert negated.is_neg()

    def out(value: Tensor) -> list[Tensor]:
        result = CALLS[op](lambda name, _: value if name == argument else values[name])
        return list(result) if isinstance(result, tuple) else [result]  # type: ignore[list-item]

    torch.testing.assert_close(out(negated), out(-values[argument]), equal_nan=True)


# ---- memory ---------------------------------------------------------------------------------------------------------

HUGE = 1 << 24


def test_an_allocation_that_fails_names_op_shape_and_bytes() -> None:
    pixels, matrix = torch.zeros(1, 4, 4, 3, dtype=torch.uint8), torch.eye(2, 3)[None]
    with pytest.raises(RuntimeError) as caught:
        fastpose.affine_crop(pixels, matrix, (HUGE, HUGE))
    text = str(caught.value)
    assert text.startswith("affine_crop: ")
    assert str(4 * 3 * HUGE * HUGE) in text
    assert str(HUGE) in text


def test_a_result_of_more_bytes_than_64_bits_count_is_refused() -> None:
    pixels, matrix = torch.zeros(1, 4, 4, 3, dtype=torch.uint8), torch.eye(2, 3).expand(1 << 17, 2, 3)
    with pytest.raises(RuntimeError, match=r"^affine_crop: .*16777216"):
        fastpose.affine_crop(pixels, matrix, (HUGE, HUGE))


@pytest.mark.native
def test_a_copy_of_an_argument_that_does_not_fit_names_the_argument() -> None:
    batch, joints = 1 << 36, 1 << 10
    maps = torch.zeros(1, 1, 1, 1).expand(batch, joints, 4, 4)
    points, visible = torch.zeros(1, 1, 2).expand(batch, joints, 2), torch.zeros(1, 1).expand(batch, joints)
    expected = rf"^heatmap_mse_loss: keypoints, Float \[{batch}, 1024, 2\], {batch * joints * 8} bytes, could not be"
    with pytest.raises(RuntimeError, match=expected):
        fastpose.heatmap_mse_loss(maps, points, visible)


def test_what_torch_says_of_memory_in_plain_torch_keeps_its_type_and_names_the_op(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    library = torch.library.Library("fastpose", "FRAGMENT")
    monkeypatch.setattr(_native, "_ops", library)
    monkeypatch.setattr(_native, "fallback_wish", "1")

    def plain_refused(points: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 7 GiB")

    _native.register("refused", plain_refused, plain_refused)
    with pytest.raises(torch.OutOfMemoryError, match=r"^refused: CUDA out of memory\. .*points Float \[2\] on cpu"):
        _native.call("refused", torch.zeros(2))
    library._destroy()


def test_the_library_s_words_for_a_full_gpu_are_torch_s_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise RuntimeError("swap_pairs: CUDA out of memory: points, Float [2, 3, 2], 48 bytes, could not be allocated")

    monkeypatch.setattr(ops, "swap_pairs", full, raising=False)
    with pytest.raises(torch.OutOfMemoryError, match=r"swap_pairs: CUDA out of memory: points.* 48 bytes"):
        CALLS["swap_pairs"](lambda name, value: value)


@pytest.mark.cuda
def test_a_full_gpu_is_torch_s_error_and_names_op_shape_and_bytes() -> None:
    pixels, matrix = torch.zeros(1, 4, 4, 3, dtype=torch.uint8).cuda(), torch.eye(2, 3)[None].cuda()
    with pytest.raises(torch.OutOfMemoryError, match=rf"^affine_crop: .*{4 * 3 * HUGE * HUGE} bytes"):
        fastpose.affine_crop(pixels, matrix, (HUGE, HUGE))
    assert torch.isfinite(fastpose.affine_crop(pixels, matrix, (4, 4))).all()  # the next call is none the worse
