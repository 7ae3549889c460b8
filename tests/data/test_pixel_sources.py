# SPDX-License-Identifier: Apache-2.0
import gc
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from fastpose import ImageBatch
from fastpose.data.boxes import reductions
from fastpose.data.images import BadImageError, image_size, read_image
from fastpose.data.pixels import DecodeThreads, ImageFiles, Pixels, ResidentImages, resident
from fastpose.device import to_device
from tests.helpers.persons import persons_of

CPU = torch.device("cpu")
ASKED = torch.tensor([3, 0, 3, 2, 0])


def write_pictures(folder: Path) -> list[Path]:
    """Four pictures of different sizes and kinds."""
    rng = np.random.default_rng(0)
    paths = [folder / name for name in ("0.jpg", "1.png", "2.jpg", "3.bmp")]
    for n, path in enumerate(paths):
        assert cv2.imwrite(str(path), rng.integers(0, 256, (20 + 7 * n, 50 - 9 * n, 3), dtype=np.uint8))
    return paths


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    return write_pictures(tmp_path)


def pictures_of(pixels: Pixels) -> list[np.ndarray]:
    """The asked-for images, one by one."""
    return [pixels.images[at].cpu().numpy() for at in pixels.index.tolist()]


def assert_is_what_the_files_hold(pixels: Pixels, paths: list[Path], device: torch.device) -> None:
    assert pixels.images.device.type == pixels.index.device.type == device.type
    assert pixels.index.dtype == torch.int64
    assert pixels.errors == {}
    for got, image in zip(pictures_of(pixels), ASKED.tolist(), strict=True):
        np.testing.assert_array_equal(got, read_image(paths[image]))


def test_files_are_decoded_once_and_found_where_the_index_says(paths, device):
    pixels = ImageFiles(paths, 3).load(ASKED, device)
    assert_is_what_the_files_hold(pixels, paths, device)
    assert len(pixels.images) == 3


def test_resident_images_are_those_of_the_files(paths, device):
    source = ResidentImages.from_files(paths, device)
    assert_is_what_the_files_hold(source.load(ASKED, device), paths, device)


def test_resident_images_are_not_copied(paths):
    source = ResidentImages(ImageFiles(paths).load(torch.arange(4), CPU).images)
    pixels = source.load(ASKED, CPU)
    assert pixels.images is source.images
    assert pixels.index.tolist() == ASKED.tolist()


@pytest.mark.parametrize("chunk", [1, 8000, 1 << 30])
def test_the_size_of_the_chunks_changes_nothing(paths, monkeypatch, chunk):
    monkeypatch.setattr(resident, "CHUNK_BYTES", chunk)
    done = []
    source = ResidentImages.from_files(paths, CPU, progress=lambda *numbers: done.append(numbers))
    # 3,000, 3,321, 3,264 and 2,829 bytes of pixels: two go into 8,000.
    assert done == {1: [(1, 4), (2, 4), (3, 4), (4, 4)], 8000: [(2, 4), (4, 4)], 1 << 30: [(4, 4)]}[chunk]
    assert_is_what_the_files_hold(source.load(ASKED, CPU), paths, CPU)


def test_a_bad_image_is_black_and_reported_by_its_number(paths, device):
    paths[2].write_bytes(paths[2].read_bytes()[:-20])  # its header is whole
    paths[3].write_bytes(b"")
    for source in (ImageFiles(paths), ResidentImages.from_files(paths, device, on_bad_image="skip")):
        pixels = source.load(ASKED, device)
        assert sorted(pixels.errors) == [2, 3]
        assert "2.jpg: truncated" in str(pixels.errors[2])
        assert "3.bmp: the file is empty" in str(pixels.errors[3])
        assert [picture.shape for picture in pictures_of(pixels)] == [(1, 1, 3), (20, 50, 3)] + [(1, 1, 3)] * 2 + [
            (20, 50, 3)
        ]
        assert pictures_of(pixels)[0].tolist() == [[[0, 0, 0]]]
        assert source.load(torch.tensor([0, 1]), device).errors == {}


def test_reduced_files_say_where_their_pixels_lie(paths, device):
    reduction = np.array([2, 1, 8, 4])
    sources = (
        ImageFiles(paths, 2, reduction),
        ResidentImages.from_files(paths, device, reduction=reduction),
    )
    for source in sources:
        pixels = source.load(ASKED, device)
        assert pixels.errors == {}
        assert pixels.frame.device.type == device.type
        for got, frame, image in zip(pictures_of(pixels), pixels.frame[pixels.index].tolist(), ASKED, strict=True):
            np.testing.assert_array_equal(got, read_image(paths[image], int(reduction[image])))
            assert frame == [reduction[image], (reduction[image] - 1) / 2, (reduction[image] - 1) / 2]


def test_an_image_is_reduced_as_its_most_demanding_person_allows():
    # Boxes of 513, 511, 300; 1100; 5000; 255 and none px, for crops 128 px wide.
    width = np.array([513, 511, 300, 1100, 5000, 255]) / 200
    image_index = np.array([0, 1, 1, 2, 3, 4])
    persons = persons_of(
        np.zeros((6, 16, 2)),
        np.zeros((6, 16)),
        image_paths=tuple(Path(str(n)) for n in range(6)),
        image_index=image_index,
        scale=np.stack([width, width * 0.1], axis=1),
    )
    assert reductions(persons, (256, 128), 1.0).tolist() == [4, 2, 8, 8, 1, 8]  # of the last there is no person
    assert reductions(persons, (256, 128), 0.75).tolist() == [2, 1, 4, 8, 1, 8]


@pytest.mark.parametrize("contents", [b"", b"\xff\xd8\xff\xe0 and no more"])
def test_a_bad_image_ends_the_decoding_with_its_name(paths, contents):
    paths[2].write_bytes(contents)
    with pytest.raises(BadImageError, match=r"2\.jpg"):
        ResidentImages.from_files(paths, CPU)


def test_a_file_that_changes_after_its_header_was_read_is_bad(paths):
    other = ImageFiles([paths[0], paths[1], paths[0], paths[3]])
    with pytest.raises(BadImageError, match=r"2\.jpg: expected \[34, 32\] px as its header says, got \[20, 50\]"):
        ResidentImages.from_files(paths, CPU, decoder=other)


def test_too_little_memory_is_reported_in_bytes_before_anything_is_decoded(paths, monkeypatch):
    monkeypatch.setattr(resident, "free_bytes", lambda device: 20_000)
    monkeypatch.setattr(ImageFiles, "load", lambda *arguments: pytest.fail("decoded"))
    # 12,414 bytes of pixels, and twice as much again for the only chunk.
    with pytest.raises(ValueError, match="resident: the decoded images take 37,242 bytes, cpu has 20,000 free"):
        ResidentImages.from_files(paths, CPU)


def test_free_memory_is_known(device):
    free = resident.free_bytes(device)
    assert free is None or free > 1 << 20


def test_no_files_are_an_empty_data_set():
    assert len(ResidentImages.from_files([], CPU).images) == 0


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp"])
def test_the_size_is_what_decoding_gives(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    cv2.imwrite(str(path), np.zeros((300, 70, 3), np.uint8))
    assert image_size(path) == (300, 70) == read_image(path).shape[:2]


def test_the_size_of_a_jpeg_is_not_that_of_the_thumbnail_inside(tmp_path):
    thumbnail = cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    whole = cv2.imencode(".jpg", np.zeros((24, 40, 3), np.uint8))[1].tobytes()
    segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    path = tmp_path / "a.jpg"
    path.write_bytes(whole[:2] + segment + whole[2:])
    assert image_size(path) == (24, 40) == read_image(path).shape[:2]
    # A header longer than what is looked at first.
    path.write_bytes(whole[:2] + (b"\xff\xe2\xff\xff" + bytes(65533)) * 2 + whole[2:])
    assert image_size(path) == (24, 40)


@pytest.mark.parametrize("contents", [b"", b"no picture", b"\x89PNG\r\n\x1a\n", None])
def test_the_size_of_a_file_that_is_not_a_picture_is_an_error_with_its_name(tmp_path, contents):
    path = tmp_path / "a.png"
    if contents is not None:
        path.write_bytes(contents)
    with pytest.raises(BadImageError, match=r"a\.png"):
        image_size(path)


def test_a_source_that_is_deleted_leaves_no_thread(paths):
    source = ImageFiles(paths, 3)
    source.load(ASKED, CPU)
    ResidentImages.from_files(paths, CPU, 3)
    before = {thread for thread in threading.enumerate() if thread.name.startswith("fastpose-decode")}
    assert before
    del source
    gc.collect()
    for thread in before:
        thread.join(10)
        assert not thread.is_alive()


def test_threads_share_the_items_of_a_batch_in_one_job_each(monkeypatch):
    with DecodeThreads(3) as threads:
        submit, jobs = threads.submit, []
        monkeypatch.setattr(threads, "submit", lambda job: jobs.append(job) or submit(job))
        all_at_work = threading.Barrier(3, timeout=10)

        def work(item: str) -> str:
            if item in "abc":
                all_at_work.wait()  # none of the three takes a second one before each has its first
            return item.upper()

        assert threads.each(work, "abcdefghij") == list("ABCDEFGHIJ")
        assert len(jobs) == 3
        assert threads.each(work, "d") == ["D"]
        assert len(jobs) == 4
        assert threads.each(work, "") == []
        assert len(jobs) == 4


def test_an_error_in_one_of_the_threads_is_raised():
    def work(item: int) -> int:
        if item == 2:
            raise ValueError("two")
        return item

    with DecodeThreads(2) as threads, pytest.raises(ValueError, match="two"):
        threads.each(work, range(6))


def test_a_tensor_on_the_cpu_is_not_copied():
    assert to_device(ASKED, CPU) is ASKED


@pytest.mark.cuda
def test_a_batch_of_files_is_copied_without_waiting(paths):
    source = ImageFiles(paths, 3)
    resident = ResidentImages.from_files(paths, "cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        loaded = [s.load(ASKED, torch.device("cuda")) for s in (source, resident)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for pixels in loaded:
        assert_is_what_the_files_hold(pixels, paths, torch.device("cuda"))


@pytest.mark.cuda
def test_a_pinned_batch_is_the_same_batch():
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (n + 1, 5, 3), dtype=np.uint8) for n in range(4)]
    pinned, plain = ImageBatch.from_list(images, pin_memory=True), ImageBatch.from_list(images)
    for name in ("data", "offsets", "sizes"):
        assert getattr(pinned, name).is_pinned()
        assert torch.equal(getattr(pinned, name), getattr(plain, name))
