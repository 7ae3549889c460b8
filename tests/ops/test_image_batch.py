# SPDX-License-Identifier: Apache-2.0
"""ImageBatch and colour maps: what goes in comes out, and nothing that leaves the buffer is accepted."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import fastpose
from fastpose import ImageBatch, reference
from fastpose.ops import image_batch


def test_images_come_out_as_they_went_in(device: torch.device) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, size, dtype=np.uint8) for size in [(1, 1, 3), (5, 7, 3), (30, 2, 3)]]
    images.append(rng.integers(0, 256, (8, 18, 3), dtype=np.uint8)[::2, ::-3])  # negative and skipped strides
    batch = ImageBatch.from_list([*images[:3], images[3]]).to(device)
    assert len(batch) == 4
    assert batch.sizes.tolist() == [[1, 1], [5, 7], [30, 2], [4, 6]]
    assert batch.offsets.tolist() == [0, 3, 108, 288]
    assert batch.device.type == device.type
    for out, image in zip(batch, images, strict=True):
        np.testing.assert_array_equal(out.cpu().numpy(), image)
    assert torch.equal(batch[-1], batch[3])
    with pytest.raises(IndexError, match=r"\[0, 4\), got 4"):
        batch[4]


def test_from_list_copies_in_several_threads_as_in_one() -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (n + 1, 40 - n, 3), dtype=np.uint8)[:, ::-1] for n in range(20)]
    with ThreadPoolExecutor(4) as threads:
        got, expected = ImageBatch.from_list(images, executor=threads), ImageBatch.from_list(images)
        assert len(ImageBatch.from_list([], executor=threads)) == 0
    for name in ("data", "offsets", "sizes"):
        assert torch.equal(getattr(got, name), getattr(expected, name))


@pytest.mark.parametrize("piece", [1, 7, 100, 1 << 20])
def test_the_size_of_the_pieces_changes_nothing(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (n + 1, 9 - n, 3), dtype=np.uint8)[:, ::-1] for n in range(7)]
    expected = ImageBatch.from_list(images)
    bytes_ = np.concatenate([image.reshape(-1) for image in images])
    np.testing.assert_array_equal(expected.data.numpy(), bytes_)
    monkeypatch.setattr(image_batch, "PIECE_BYTES", piece)
    with ThreadPoolExecutor(3) as threads:
        for got in (ImageBatch.from_list(images), ImageBatch.from_list(images, executor=threads)):
            for name in ("data", "offsets", "sizes"):
                assert torch.equal(getattr(got, name), getattr(expected, name))

        def fill(out: np.ndarray, begin: int) -> None:
            assert len(out) <= piece
            out[:] = bytes_[begin : begin + len(out)]

        # What goes to a GPU goes this way.
        assert image_batch._by_pieces(len(bytes_), fill, threads, torch.device("cpu")).tolist() == bytes_.tolist()
    assert image_batch._by_pieces(0, fill, None, torch.device("cpu")).shape == (0,)


def test_few_pieces_wait_for_their_copy_however_large_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first piece takes as long as all others together could: none of them may run away meanwhile."""
    monkeypatch.setattr(image_batch, "PIECE_BYTES", 1)
    begun: list[int] = []
    go_on = threading.Event()

    def fill(out: np.ndarray, begin: int) -> None:
        begun.append(begin)
        if begin == 0:
            go_on.wait(10)
        elif begin == image_batch.PIECES_AHEAD - 1:
            seen.append(max(begun))
            go_on.set()
        out[:] = begin

    seen: list[int] = []
    with ThreadPoolExecutor(16) as threads:
        batch = image_batch._by_pieces(64, fill, threads, torch.device("cpu"))
    assert batch.tolist() == list(range(64))
    assert seen == [image_batch.PIECES_AHEAD - 1]


@pytest.mark.cuda
@pytest.mark.parametrize("piece", [7, 1 << 20])
def test_a_batch_built_for_the_gpu_equals_that_of_the_cpu(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (n + 1, 9 - n, 3), dtype=np.uint8)[:, ::-1] for n in range(7)]
    expected = ImageBatch.from_list(images)
    monkeypatch.setattr(image_batch, "PIECE_BYTES", piece)
    with ThreadPoolExecutor(3) as threads:
        got = ImageBatch.from_list(images, executor=threads, device="cuda")
    assert got.device.type == "cuda"
    for name in ("data", "offsets", "sizes"):
        assert torch.equal(getattr(got, name).cpu(), getattr(expected, name))


def test_from_list_takes_tensors_and_nothing_at_all() -> None:
    image = torch.arange(24, dtype=torch.uint8).view(2, 4, 3)
    assert torch.equal(ImageBatch.from_list([image.flip(1)])[0], image.flip(1))
    assert len(ImageBatch.from_list([])) == 0


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_from_list_names_what_is_not_an_image(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"images\[1\] must be uint8 \[h, w, 3\], got"):
        ImageBatch.from_list([np.zeros((2, 2, 3), np.uint8), image])


@pytest.mark.parametrize(
    ("offsets", "sizes"),
    [
        ([-1], [[1, 1]]),
        ([1], [[2, 2]]),
        ([13], [[1, 1]]),
        ([0], [[0, 2]]),
        ([0], [[-2, -2]]),
        ([0], [[2**31 - 1, 2**31 - 1]]),
        ([2**62], [[1, 1]]),
    ],
)
def test_tables_that_leave_the_buffer_are_refused(offsets: list[int], sizes: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="image 0 must be at least 1 x 1 and lie inside data"):
        ImageBatch(torch.zeros(12, dtype=torch.uint8), torch.tensor(offsets), torch.tensor(sizes, dtype=torch.int32))


def test_tables_of_the_wrong_kind_are_refused() -> None:
    data, offsets = torch.zeros(12, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64)
    sizes = torch.ones(1, 2, dtype=torch.int32)
    assert len(ImageBatch(data, offsets, sizes)) == 1
    for arguments, name in (
        ((data.float(), offsets, sizes), "data"),
        ((data, offsets.int(), sizes), "offsets"),
        ((data, offsets, sizes.long()), "sizes"),
        ((data, offsets, sizes[:, :1]), "sizes"),
        ((data, offsets, torch.ones(2, 2, dtype=torch.int32)), "sizes"),
        ((data.view(3, 4), offsets, sizes), "data"),
    ):
        with pytest.raises(ValueError, match=f"{name} must be"):
            ImageBatch(*arguments)


def test_normalize_color_by_hand() -> None:
    """128 with mean 0.5 and std 0.25: (128/255 − 0.5) / 0.25 = 0.00784…"""
    color = fastpose.normalize_color((0.5, 0.5, 0.0), (0.25, 1.0, 1.0))
    assert color.dtype == torch.float32
    value = color @ torch.tensor([128.0, 255.0, 51.0, 1.0])
    torch.testing.assert_close(value, torch.tensor([(128 / 255 - 0.5) / 0.25, 0.5, 0.2]))
    np.testing.assert_array_equal(color.numpy(), reference.normalize_color((0.5, 0.5, 0.0), (0.25, 1.0, 1.0)))


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ((0.5, 0.5), (1, 1, 1), "mean must be three numbers"),
        ((0.5, 0.5, float("nan")), (1, 1, 1), "mean must be three numbers"),
        ((0.5, 0.5, 0.5), (1, 0, 1), "std must be positive"),
        (0.5, (1, 1, 1), "mean must be three numbers"),
    ],
)
def test_normalize_color_refuses_what_is_not_a_colour(
    mean: tuple[float, ...], std: tuple[float, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fastpose.normalize_color(mean, std)
