# SPDX-License-Identifier: Apache-2.0
import dataclasses
import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import fastpose
from fastpose.data.ahead import DeviceWait, PreparedAhead
from fastpose.data.augmentation import Augmentation, erased_boxes
from fastpose.data.boxes import body_boxes, reductions
from fastpose.data.images import BadImageError
from fastpose.data.loader import PoseLoader, seeded_generator
from fastpose.data.mpii import read_mpii
from fastpose.data.persons import Persons
from fastpose.data.pixels import ImageFiles, Pixels, ResidentImages
from fastpose.skeletons import MPII
from tests.helpers.persons import persons_of
from tests.helpers.shift import shift_between
from tests.helpers.tiny_mpii import write_tiny_mpii


@pytest.fixture
def persons(tmp_path) -> Persons:
    root = write_tiny_mpii(tmp_path / "tiny")
    return read_mpii(root / "annot/valid.json", root / "images", head_boxes=root / "annot/gt_valid.mat")


class ArraySource:
    """Pixels from memory, with a note of what was asked for."""

    def __init__(self, *images: np.ndarray) -> None:
        self.images, self.asked = images, []

    def load(self, images, device):
        self.asked.append(images.tolist())
        batch = fastpose.ImageBatch.from_list([self.images[i] for i in images.tolist()])
        return Pixels(batch.to(device), torch.arange(len(images), device=device), {})


def one_person(keypoints: np.ndarray, side: int) -> Persons:
    """A person whose box is the whole picture: with a crop of the picture's size, crop pixel = picture pixel."""
    return persons_of(keypoints[None], center=[[side / 2] * 2], scale=[[side / 200] * 2])


def loader(persons: Persons, **options) -> PoseLoader:
    options = {"augmentation": Augmentation(), "seed": 5} | options
    return PoseLoader(persons, ImageFiles(persons.image_paths, 2), (64, 64), 4, **options)


def background_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("fastpose-prepare")]


def assert_equal(first, second) -> None:
    assert first.step == second.step
    for name in ("rows", "images", "keypoints", "visible", "heatmap_to_image"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_blank_batch_is_made_like_the_others(persons, device, memory_format, dtype):
    feed = loader(persons, device=device, memory_format=memory_format, dtype=dtype)
    with closing(feed.epoch()) as batches:
        other = next(batches)
    blank = feed.blank_batch()
    for name in ("rows", "images", "keypoints", "visible", "heatmap_to_image"):
        one, two = getattr(blank, name), getattr(other, name)
        assert (one.shape, one.dtype, one.stride(), one.device) == (two.shape, two.dtype, two.stride(), two.device)
        assert not one.any()


def test_without_augmentation_a_box_as_large_as_the_crop_is_the_picture_itself():
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    keypoints = rng.uniform(0, 63, (16, 2))
    (batch,) = PoseLoader(one_person(keypoints, 64), ArraySource(picture), (64, 64), 1).epoch()
    expected = (picture / 255 - fastpose.IMAGENET_MEAN) / fastpose.IMAGENET_STD
    assert torch.allclose(batch.images[0], torch.tensor(expected).permute(2, 0, 1).float(), atol=1e-5)
    assert torch.allclose(batch.keypoints[0], torch.tensor(keypoints / 4).float(), atol=1e-5)


def test_with_udp_a_box_from_first_to_last_pixel_centre_is_the_picture_itself():
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    keypoints = rng.uniform(0, 63, (16, 2))
    person = one_person(keypoints, 63)  # centre (31.5, 31.5) and 63 px
    source = ArraySource(picture)
    (batch,) = PoseLoader(person, source, (64, 64), 1, udp=True).epoch()
    expected = (picture / 255 - fastpose.IMAGENET_MEAN) / fastpose.IMAGENET_STD
    assert torch.allclose(batch.images[0], torch.tensor(expected).permute(2, 0, 1).float(), atol=1e-4)
    # From crop to map by 63 / 15, not by 4.
    assert torch.allclose(batch.keypoints[0], torch.tensor(keypoints * 15 / 63).float(), atol=1e-5)
    # A mirrored crop is the crop with its columns in reverse, to the pixel.
    mirror = Augmentation(rotation=0, scale_min=1, scale_max=1, flip=1)
    (mirrored,) = PoseLoader(person, source, (64, 64), 1, udp=True, augmentation=mirror).epoch()
    assert torch.allclose(mirrored.images, batch.images.flip(3), atol=1e-4)
    mirror_of = dict(MPII.mirror_pairs) | {b: a for a, b in MPII.mirror_pairs}
    order = [mirror_of.get(joint, joint) for joint in range(16)]
    assert torch.allclose(mirrored.keypoints[0, :, 0], 15 - batch.keypoints[0, order, 0], atol=1e-4)


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (32, 64)])
def test_with_udp_the_crop_has_the_corners_of_its_box_and_the_height_follows_the_crop(size):
    person = one_person(np.zeros((16, 2)), 80)
    for height in (0.1, 9.0):
        person = dataclasses.replace(person, scale=np.float32([[0.4, height]]))
        (batch,) = PoseLoader(person, ArraySource(np.zeros((4, 4, 3), np.uint8)), size, 1, udp=True).epoch()
        corners = torch.tensor([[[0.0, 0.0], [size[1] / 4 - 1, size[0] / 4 - 1]]])
        # 80 px wide about (40, 40), and as high as the crop wants.
        half = 40 * size[0] / size[1]
        expected = torch.tensor([[[0.0, 40 - half], [80.0, 40 + half]]])
        torch.testing.assert_close(fastpose.transform_points(corners, batch.heatmap_to_image), expected)


class FramedSource:
    """Pixels from memory that lie in their image as `frame` (step, x, y) says."""

    def __init__(self, pixels: np.ndarray, frame: tuple[float, float, float]) -> None:
        self.pixels, self.frame = pixels, torch.tensor([frame])

    def load(self, images, device):
        batch = fastpose.ImageBatch.from_list([self.pixels])
        return Pixels(batch, torch.zeros(len(images), dtype=torch.int64), {}, self.frame)


@pytest.mark.parametrize("udp", [False, True])
@pytest.mark.parametrize("size", [(64, 64), (96, 64), (32, 64)])
@pytest.mark.parametrize("frame", [(1, 17, 9), (2, 4, 7), (3, 1, 0)])
def test_a_crop_of_fewer_pixels_is_that_of_all_of_them(frame, size, udp):
    """On ramps, which bilinear taps a step apart give back as exactly as those of neighbours."""
    step, left, top = frame
    y, x = np.mgrid[:250, :250]
    picture = np.stack([x, y, 250 - x], axis=2).astype(np.uint8)
    person = dataclasses.replace(one_person(np.full((16, 2), 99.0), 230), scale=np.float32([[0.35, 3.0]]))
    many = person.select([0] * 8)
    options = {"augmentation": Augmentation(rotation=30, scale_min=0.9, scale_max=1.1, flip=0.5), "udp": udp}
    reduced = FramedSource(picture[top::step, left::step], (step, left, top))
    whole, fewer = (
        next(PoseLoader(many, source, size, 8, **options).epoch())
        for source in (FramedSource(picture, (1, 0, 0)), reduced)
    )
    for name in ("keypoints", "heatmap_to_image"):
        assert torch.equal(getattr(whole, name), getattr(fewer, name))
    # 1e-3 grey levels; a pixel between two of a ramp is one of 1 level.
    torch.testing.assert_close(whole.images, fewer.images, rtol=0, atol=1e-3 / 57)
    assert len(set((whole.heatmap_to_image[:, :, :2].det() < 0).tolist())) == 2


def test_a_mirrored_person_has_its_joints_mirrored_and_left_and_right_exchanged():
    keypoints = np.stack([np.arange(16) * 4.0, np.full(16, 8.0)], 1)
    always = Augmentation(rotation=0, scale_min=1, scale_max=1, flip=1)
    source = ArraySource(np.zeros((64, 64, 3), np.uint8))
    (batch,) = PoseLoader(one_person(keypoints, 64), source, (64, 64), 1, augmentation=always).epoch()
    # x_src = 2 * 32 - x_dst, so x = 4 j lands on 64 - 4 j, in heatmap pixels 16 - j.
    mirror_of = dict(MPII.mirror_pairs) | {b: a for a, b in MPII.mirror_pairs}
    expected = [16 - mirror_of.get(joint, joint) for joint in range(16)]
    assert batch.keypoints[0, :, 0].tolist() == pytest.approx(expected, abs=1e-5)
    assert batch.keypoints[0, :, 1].tolist() == pytest.approx([2.0] * 16, abs=1e-5)


def test_augmented_joints_stay_on_what_they_mark():
    # Sixteen blocks of their own grey, 9 x 9 px, a joint in the middle of each.
    side, picture = 160, np.zeros((160, 160, 3), np.uint8)
    keypoints = np.stack([32 + 32 * (np.arange(16) % 4), 32 + 32 * (np.arange(16) // 4)], 1)
    for joint, (x, y) in enumerate(keypoints):
        picture[y - 4 : y + 5, x - 4 : x + 5] = 15 + 15 * joint
    mirror_of = dict(MPII.mirror_pairs) | {b: a for a, b in MPII.mirror_pairs}
    mirrored = []
    for seed in range(8):
        source = ArraySource(picture)
        (batch,) = PoseLoader(
            one_person(keypoints, side), source, (side, side), 1, augmentation=Augmentation(), seed=seed
        ).epoch()
        mean, std = (torch.tensor(values)[:, None, None] for values in (fastpose.IMAGENET_MEAN, fastpose.IMAGENET_STD))
        grey = ((batch.images[0] * std + mean) * 255).mean(0)
        mirrored.append(bool(batch.heatmap_to_image[0, :, :2].det() < 0))
        for joint, (x, y) in enumerate((batch.keypoints[0] * 4).round().int().tolist()):
            marked = mirror_of.get(joint, joint) if mirrored[-1] else joint
            assert 0 <= x < side
            assert 0 <= y < side
            assert grey[y, x].item() == pytest.approx(15 + 15 * marked, abs=0.01)
    assert any(mirrored)
    assert not all(mirrored)


def test_an_epoch_shows_every_person_once_in_a_new_order(persons):
    feed = loader(persons)
    first, second = ([batch.rows for batch in feed.epoch(epoch)] for epoch in (0, 1))
    assert [len(rows) for rows in first] == [4, 4, 2]
    assert len(feed) == 3
    assert sorted(torch.cat(first).tolist()) == sorted(torch.cat(second).tolist()) == list(range(10))
    assert torch.cat(first).tolist() != torch.cat(second).tolist()


def test_without_augmentation_the_order_is_that_of_the_annotations(persons):
    rows = torch.cat([batch.rows for batch in loader(persons, augmentation=None).epoch()])
    assert rows.tolist() == list(range(10))


@pytest.mark.parametrize("everything", [False, True])
def test_a_batch_depends_on_seed_epoch_and_step_alone(persons, everything):
    options = {"augmentation": EVERYTHING, "udp": True} if everything else {}
    whole = list(loader(persons, **options).epoch(3))
    feed = loader(persons, **options)
    list(feed.epoch(0))
    part = list(feed.epoch(3, first_step=1))
    assert [batch.step for batch in part] == [1, 2]
    for first, second in zip(whole[1:], part, strict=True):
        assert_equal(first, second)
    for other in (next(loader(persons, seed=6).epoch(3)), next(loader(persons).epoch(4))):
        assert not torch.equal(whole[0].heatmap_to_image, other.heatmap_to_image)


@pytest.mark.parametrize("rows", [[7], [9, 0, 3, 0], []])
def test_one_batch_of_rows_has_the_crops_that_an_epoch_has_of_them(persons, device, rows):
    feed = loader(persons, augmentation=None, device=device, udp=True)
    whole = list(feed.epoch())
    batch = feed.batch(torch.tensor(rows, dtype=torch.int64))
    assert batch.rows.tolist() == rows
    for name in ("images", "keypoints", "visible", "heatmap_to_image"):
        assert torch.equal(getattr(batch, name), torch.cat([getattr(one, name) for one in whole])[rows]), name


def test_one_batch_is_drawn_as_the_first_of_an_epoch(persons):
    feed = loader(persons)
    first = next(feed.epoch())
    assert_equal(first, feed.batch(first.rows))


def test_one_batch_skips_bad_images_or_ends_with_their_name(persons):
    persons.image_paths[2].write_bytes(b"no picture")
    rows = torch.tensor([2, 1, 6])  # persons 2 and 6 are on image 2
    with pytest.raises(BadImageError, match=r"002\.jpg"):
        loader(persons, augmentation=None).batch(rows)
    feed = loader(persons, augmentation=None, on_bad_image="skip")
    assert feed.batch(rows).rows.tolist() == [1]
    assert list(feed.bad_images) == [2]


def test_the_order_and_every_step_have_randomness_of_their_own():
    keys = [(seed, epoch, step) for seed in (0, 1) for epoch in (0, 1) for step in (0, 1, 2)]
    assert len({torch.rand(1, generator=seeded_generator("cpu", *key)).item() for key in keys}) == len(keys)


def test_several_persons_of_an_image_get_their_own_image(persons):
    source = ArraySource(*(np.full((96, 96, 3), 50 * i, np.uint8) for i in range(4)))
    (batch,) = PoseLoader(persons, source, (64, 64), 10).epoch()
    middle = batch.images[:, 0, 32, 32] * fastpose.IMAGENET_STD[0] + fastpose.IMAGENET_MEAN[0]
    assert (middle * 255).tolist() == pytest.approx([50.0 * (row % 4) for row in range(10)], abs=1e-3)


@pytest.mark.parametrize("augmentation", [None, Augmentation()])
@pytest.mark.parametrize("spoilt", [False, True])
def test_resident_images_give_the_batches_that_files_give(persons, device, augmentation, spoilt):
    if spoilt:
        persons.image_paths[2].write_bytes(b"no picture")
    resident = ResidentImages.from_files(persons.image_paths, device, on_bad_image="skip")
    options = {"augmentation": augmentation, "device": device, "on_bad_image": "skip"}
    feeds = loader(persons, **options), PoseLoader(persons, resident, (64, 64), 4, **{"seed": 5} | options)
    for epoch in (0, 1):
        for first, second in zip(*(feed.epoch(epoch) for feed in feeds), strict=True):
            assert_equal(first, second)
            assert second.images.device.type == device.type
    assert sorted(feeds[0].bad_images) == sorted(feeds[1].bad_images) == ([2] if spoilt else [])


def smooth_picture(height: int, width: int) -> np.ndarray:
    """Colours that rise and fall over some 80 px."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 13 + y / 29), np.sin(y / 11 - x / 31), np.cos((x + 2 * y) / 37)]
    return np.round(128 + 100 * np.stack(waves, axis=2)).astype(np.uint8)


@pytest.mark.parametrize(
    ("step", "reduction", "udp"), [(2.7, 2, False), (5.5, 4, False), (10.7, 8, False), (5.5, 4, True)]
)
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_crops_of_reduced_images_lie_where_those_of_whole_images_do(tmp_path, step, reduction, udp, suffix):
    path = tmp_path / f"a.{suffix}"
    side = round(step * 64 * 1.8) + 3  # turned crops lie inside
    picture = cv2.GaussianBlur(smooth_picture(side, side), (0, 0), 3)
    cv2.imwrite(str(path), picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 98])
    persons = dataclasses.replace(
        one_person(np.zeros((16, 2)), side), image_paths=(path,), scale=np.full((1, 2), step * 64 / 200, np.float32)
    )
    options = {"augmentation": Augmentation(rotation=30, scale_min=0.75, scale_max=1.25, flip=0.5), "udp": udp}
    assert reductions(persons, (64, 64), 0.75).tolist() == [reduction]
    sources = ImageFiles((path,)), ImageFiles((path,), reduction=np.array([reduction]))
    mirrored = []
    for seed in range(4):
        whole, reduced = (next(PoseLoader(persons, s, (64, 64), 1, seed=seed, **options).epoch()) for s in sources)
        assert whole.step == reduced.step == 0
        for name in ("keypoints", "heatmap_to_image"):
            assert torch.equal(getattr(whole, name), getattr(reduced, name))
        first, second = (batch.images[0].permute(1, 2, 0).numpy() for batch in (reduced, whole))
        zoom = (
            float(reduced.heatmap_to_image[0, :, 0].norm()) / 4
        )  # image pixels from one pixel of the crop to the next
        assert np.abs(shift_between(first, second) * zoom).max() < 0.01 * reduction
        mirrored.append(bool(reduced.heatmap_to_image[0, :, :2].det() < 0))
    assert any(mirrored)
    assert not all(mirrored)


EVERYTHING = Augmentation(
    half_body=0.5,
    brightness=0.4,
    contrast=0.3,
    saturation=0.8,
    rotation_prob=0.6,
    scale_prob=0.7,
    augmentation_draw="truncnorm",
    shift=0.16,
    shift_prob=0.5,
    erase=0.5,
)
HALVES = Augmentation(rotation=30, scale_min=0.75, scale_max=1.25, flip=0.5, half_body=0.5)


def test_a_half_body_crop_is_centred_on_the_half(persons):
    """Draws are the loader's own; what they do to a box is worked out again."""
    few = np.arange(10) % 2 == 0  # persons with too few joints for a half
    visible = np.where(few[:, None] & (np.arange(16) > 7), 0, persons.visible).astype(np.float32)
    persons = dataclasses.replace(persons, visible=visible)
    boxes = torch.from_numpy(body_boxes(persons, (64, 64), half_body=True))
    assert (boxes[few, 1:] == boxes[few, :1]).all()
    sources = ImageFiles(persons.image_paths)
    halves, wholes = (
        PoseLoader(persons, sources, (64, 64), 10, augmentation=augmentation, seed=3)
        for augmentation in (HALVES, dataclasses.replace(HALVES, half_body=0.0))
    )
    chosen = []
    for epoch in range(4):
        half, whole = next(halves.epoch(epoch)), next(wholes.epoch(epoch))
        draws = HALVES.draw(10, seeded_generator("cpu", 3, epoch, 1))
        box = boxes[half.rows, draws.body]
        middle = fastpose.transform_points(torch.full((10, 1, 2), 8.0), half.heatmap_to_image)[:, 0]
        torch.testing.assert_close(middle, box[:, :2], rtol=0, atol=1e-4)
        width = 16 * half.heatmap_to_image[:, :, 0].norm(dim=1)
        torch.testing.assert_close(width, 200 * box[:, 2] * draws.scale)
        same = torch.from_numpy(few)[half.rows] | (draws.body == 0)
        for name in ("rows", "images", "keypoints", "visible", "heatmap_to_image"):
            assert torch.equal(getattr(half, name)[same], getattr(whole, name)[same]), name
        assert (half.heatmap_to_image[~same] != whole.heatmap_to_image[~same]).any(dim=(1, 2)).all()
        chosen += draws.body[~torch.from_numpy(few)[half.rows]].tolist()
    assert set(chosen) == {0, 1, 2}


@pytest.mark.parametrize("udp", [False, True])
@pytest.mark.parametrize("half_body", [0.0, 0.5])
def test_a_shift_moves_the_crop_and_its_joints_together(persons, device, half_body, udp):
    """By the share that was drawn of the box before it is scaled, whose height follows from the crop's."""
    still = dataclasses.replace(HALVES, half_body=half_body)
    moving = dataclasses.replace(still, shift=0.2, shift_prob=0.6)
    size, sources = (96, 64), ImageFiles(persons.image_paths)
    one, other = (
        next(PoseLoader(persons, sources, size, 10, augmentation=a, seed=3, device=device, udp=udp).epoch())
        for a in (still, moving)
    )
    draws = moving.draw(10, seeded_generator(device, 3, 0, 1))
    boxes = torch.from_numpy(body_boxes(persons, size, half_body=half_body > 0)).to(device)
    width = 200 * boxes[one.rows.to(device), draws.body, 2]
    way = draws.shift * torch.stack([width, width * 1.5], dim=1)
    torch.testing.assert_close(other.heatmap_to_image[:, :, :2], one.heatmap_to_image[:, :, :2], rtol=0, atol=1e-5)
    torch.testing.assert_close(
        other.heatmap_to_image[:, :, 2], one.heatmap_to_image[:, :, 2] + way, rtol=1e-5, atol=1e-3
    )
    # A joint is where it was in the image.
    for first, second in zip(
        *(fastpose.transform_points(batch.keypoints, batch.heatmap_to_image) for batch in (one, other)), strict=True
    ):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-3)
    shifted = (draws.shift != 0).any(dim=1)
    assert 0 < shifted.sum() < 10
    for name in ("images", "keypoints", "visible", "heatmap_to_image"):
        assert torch.equal(getattr(one, name)[~shifted], getattr(other, name)[~shifted]), name
    assert (one.images[shifted] != other.images[shifted]).flatten(1).any(dim=1).all()


def test_an_erased_crop_is_black_in_its_box_and_keeps_all_else(persons, device):
    whole, erasing = (dataclasses.replace(HALVES, erase=erase) for erase in (0.0, 0.6))
    size, sources = (96, 64), ImageFiles(persons.image_paths)
    one, other = (
        next(PoseLoader(persons, sources, size, 10, augmentation=a, seed=3, device=device).epoch())
        for a in (whole, erasing)
    )
    boxes = erased_boxes(erasing.draw(10, seeded_generator(device, 3, 0, 1)).erase, size)
    black = -torch.tensor(fastpose.IMAGENET_MEAN) / torch.tensor(fastpose.IMAGENET_STD)
    expected, pixels = one.images.clone(), 0
    for crop, (x0, y0, x1, y1) in zip(expected, boxes[:, 0].int().tolist(), strict=True):
        crop[:, y0:y1, x0:x1] = black[:, None, None].to(device)
        pixels += (y1 - y0) * (x1 - x0)
    assert 0.04 * 96 * 64 < pixels < 10 * 0.16 * 96 * 64
    torch.testing.assert_close(other.images, expected)
    for name in ("keypoints", "visible", "heatmap_to_image"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_a_shifted_crop_is_the_crop_of_a_shifted_box(persons):
    shifting = Augmentation(rotation=0, scale_min=0.8, scale_max=0.8, flip=0, shift=0.2, shift_prob=1.0)
    shifted = next(loader(persons, augmentation=shifting).epoch())
    draws = shifting.draw(4, seeded_generator("cpu", 5, 0, 1))
    rows = shifted.rows.numpy()
    moved = persons.center.copy()
    moved[rows] += draws.shift.numpy() * 200 * persons.scale[rows, :1]
    plain = next(
        loader(
            dataclasses.replace(persons, center=moved), augmentation=dataclasses.replace(shifting, shift=0.0)
        ).epoch()
    )
    assert torch.equal(plain.rows, shifted.rows)
    for name in ("images", "keypoints", "heatmap_to_image"):
        torch.testing.assert_close(getattr(plain, name), getattr(shifted, name), rtol=0, atol=2e-3)


def test_an_image_is_reduced_as_its_smallest_half_body_allows():
    keypoints = np.random.default_rng(0).uniform(0, 1200, (16, 2))
    keypoints[7:] = np.random.default_rng(1).uniform(300, 420, (9, 2))
    person = one_person(keypoints, 1200)
    boxes = body_boxes(person, (64, 64), half_body=True)[0]
    assert 100 < 200 * boxes[2, 2] < 180 < 1024 < 200 * boxes[1, 2]
    # The whole person could do with an eighth: 1200 / 64 = 18.75; the upper body has 2.2 to 2.8 px to a crop's pixel.
    assert reductions(person, (64, 64), 1.0).tolist() == [8]
    assert reductions(person, (64, 64), 1.0, half_body=True).tolist() == [2]
    assert reductions(person, (64, 64), 0.7, half_body=True).tolist() == [1]


def test_colours_are_changed_in_the_pass_that_samples(persons, device):
    """Against formulas on the pixels of the plain crop; everything else stays as it is."""
    jitter = Augmentation(brightness=0.4, contrast=0.3, saturation=0.8)
    plain, changed = (next(loader(persons, augmentation=a, device=device).epoch()) for a in (Augmentation(), jitter))
    for name in ("rows", "keypoints", "visible", "heatmap_to_image"):
        assert torch.equal(getattr(plain, name), getattr(changed, name)), name
    mean, std = (torch.tensor(v, device=device)[:, None, None] for v in (fastpose.IMAGENET_MEAN, fastpose.IMAGENET_STD))
    pixels = 255 * (plain.images * std + mean)
    factors = jitter.draw(4, seeded_generator(device, 5, 0, 1)).color
    b, c, s = (factor[:, None, None, None] for factor in factors)
    pixels = c * b * pixels + (1 - c) * 127.5
    luma = torch.tensor([0.299, 0.587, 0.114], device=device)[:, None, None]
    pixels = s * pixels + (1 - s) * (luma * pixels).sum(dim=1, keepdim=True)
    torch.testing.assert_close(changed.images, (pixels / 255 - mean) / std, rtol=0, atol=1e-4)
    assert (plain.images != changed.images).any()


def test_hues_are_turned_in_that_pass_too(persons, device):
    jitter = Augmentation(hue=0.5)
    plain, changed = (next(loader(persons, augmentation=a, device=device).epoch()) for a in (Augmentation(), jitter))
    factors = jitter.draw(4, seeded_generator(device, 5, 0, 1)).color
    colors = [fastpose.normalize_color(fastpose.IMAGENET_MEAN, fastpose.IMAGENET_STD)]
    colors += [fastpose.jitter_color(colors[0], *(factor[n].item() for factor in factors)) for n in range(4)]
    eye = torch.eye(4)[3:]
    for n in range(4):
        back = torch.linalg.inv(torch.cat([colors[0], eye])).double()
        turn = (torch.cat([colors[n + 1], eye]).double() @ back)[:3].to(device, torch.float32)
        expected = torch.einsum("ij,jhw->ihw", turn[:, :3], plain.images[n]) + turn[:, 3, None, None]
        torch.testing.assert_close(changed.images[n], expected, rtol=0, atol=1e-4)
    assert (plain.images != changed.images).any()


def test_a_loader_applies_the_colour_map_it_gets(persons):
    twice = 2 * fastpose.normalize_color((0, 0, 0), (1, 1, 1))
    own, plain = (next(loader(persons, color=c).epoch()) for c in (twice, None))
    mean, std = (torch.tensor(values)[:, None, None] for values in (fastpose.IMAGENET_MEAN, fastpose.IMAGENET_STD))
    torch.testing.assert_close(own.images, 2 * (plain.images * std + mean), rtol=0, atol=1e-5)


def test_a_crop_does_not_depend_on_who_else_is_in_the_batch(persons):
    reduction = reductions(dataclasses.replace(persons, scale=persons.scale * 8), (64, 64), 1.0)
    assert reduction.tolist() == [8] * 4
    source = ImageFiles(persons.image_paths, 2, reduction)
    alone, together = (PoseLoader(persons, source, (64, 64), n) for n in (1, 10))
    assert torch.equal(torch.cat([batch.images for batch in alone.epoch()]), next(together.epoch()).images)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not tell its memory")
def test_memory_stays_flat(persons):
    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    feed = PoseLoader(persons, ImageFiles(persons.image_paths, 2), (64, 64), 10, augmentation=Augmentation())
    for epoch in range(100):
        list(feed.epoch(epoch))
    before = resident_bytes()
    for epoch in range(400):
        list(feed.epoch(epoch))
    # 400 batches are 197 MB of crops: one in fifty kept would be seen.
    assert resident_bytes() - before < 4 << 20


def test_crops_in_bfloat16_are_the_float32_ones_rounded(persons):
    whole, half = (next(loader(persons, dtype=dtype).epoch()).images for dtype in (torch.float32, torch.bfloat16))
    assert half.dtype == torch.bfloat16
    assert torch.equal(whole.to(torch.bfloat16), half)


def test_for_another_device_batches_are_made_on_the_cpu_and_brought_there(persons):
    """`meta`, on which nothing can be made, stands for one that background threads must leave alone."""
    batches = zip(loader(persons, device="meta").epoch(), loader(persons).epoch(), strict=True)
    for there, here in batches:
        assert torch.equal(there.rows, here.rows)
        for name in ("images", "keypoints", "visible", "heatmap_to_image"):
            moved, made = getattr(there, name), getattr(here, name)
            assert (moved.device.type, moved.shape, moved.dtype) == ("meta", made.shape, made.dtype)


def test_channels_last_is_honoured(persons):
    batch = next(loader(persons, memory_format=torch.channels_last).epoch())
    assert batch.images.is_contiguous(memory_format=torch.channels_last)


def test_a_bad_image_ends_the_epoch_with_its_name(persons):
    persons.image_paths[2].write_bytes(b"no picture")
    with pytest.raises(BadImageError, match=r"002\.jpg"):
        list(loader(persons).epoch())
    assert background_threads() == []


def test_skipping_leaves_out_the_persons_of_a_bad_image_and_remembers_it(persons):
    persons.image_paths[2].write_bytes(b"no picture")
    feed = loader(persons, on_bad_image="skip")
    rows = torch.cat([batch.rows for batch in feed.epoch()])
    assert sorted(rows.tolist()) == [0, 1, 3, 4, 5, 7, 8, 9]  # persons 2 and 6 are on image 2
    assert list(feed.bad_images) == [2]
    assert "002.jpg" in str(feed.bad_images[2])


def test_a_batch_without_a_readable_image_is_left_out(persons):
    persons.image_paths[2].write_bytes(b"")
    feed = PoseLoader(persons, ImageFiles(persons.image_paths), (64, 64), 1, on_bad_image="skip")
    assert [batch.step for batch in feed.epoch()] == [0, 1, 3, 4, 5, 7, 8, 9]


def test_an_epoch_without_a_readable_image_is_an_error(persons):
    for path in persons.image_paths:
        path.write_bytes(b"")
    with pytest.raises(BadImageError, match="no image of the epoch"):
        list(loader(persons, on_bad_image="skip").epoch())


def test_stopping_early_ends_the_thread(persons):
    with closing(loader(persons).epoch()) as batches:
        next(batches)
        assert background_threads() != []
    assert background_threads() == []


def test_waiting_is_counted(persons):
    feed = loader(persons)
    list(feed.epoch())
    assert feed.wait_seconds > 0


class FakeGpu:
    """A stream of events with times; the host sees those that the GPU has come to."""

    def __init__(self) -> None:
        self.clock, self.reached, self.waited_for = 0.0, -1.0, []

    def event(self, enable_timing, blocking):
        assert enable_timing
        return FakeEvent(self)

    def wait_event(self, ready):
        self.clock = max(self.clock, ready)


class FakeEvent:
    def __init__(self, gpu):
        self.gpu, self.time = gpu, 0.0

    def record(self, stream):
        assert stream is self.gpu
        self.time = self.gpu.clock

    def query(self):
        return self.time <= self.gpu.reached

    def synchronize(self):
        self.gpu.waited_for.append(self.time)
        self.gpu.reached = max(self.gpu.reached, self.time)

    def elapsed_time(self, end):
        assert self.query()
        assert end.query()
        return 1000 * (end.time - self.time)


def test_a_gpu_waits_between_its_last_work_and_its_next_input(monkeypatch):
    gpu = FakeGpu()
    monkeypatch.setattr(torch.cuda, "Event", gpu.event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: gpu)
    wait = DeviceWait(torch.device("cuda"), depth=2)
    # Batches ready at these seconds; each step takes 10: the GPU waits 3, 0, 0 and 7 seconds.
    for ready in (3, 5, 23, 40):
        wait.begin()
        wait.end(ready)
        gpu.clock += 10
    # The host went on to the third batch when the first step had begun, and to the fourth when the second had.
    assert gpu.waited_for == [3, 13]
    assert wait.seconds() == 3
    gpu.reached = 23
    assert wait.seconds() == 3
    gpu.reached = gpu.clock
    assert wait.seconds() == wait.seconds() == 3 + 7


on_cuda = pytest.mark.cuda


@on_cuda
@pytest.mark.parametrize("spoilt", [False, True])
@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("augmentation", [Augmentation(), EVERYTHING], ids=["plain", "everything"])
def test_preparing_batches_never_waits_for_the_gpu(persons, resident, spoilt, augmentation):
    if spoilt:
        persons.image_paths[2].write_bytes(b"no picture")
    source = ImageFiles(persons.image_paths, 2)
    if resident:
        source = ResidentImages.from_files(persons.image_paths, "cuda", on_bad_image="skip")
    options = {"augmentation": augmentation, "device": "cuda", "on_bad_image": "skip", "dtype": torch.bfloat16}
    feed = PoseLoader(persons, source, (64, 64), 4, memory_format=torch.channels_last, **options)
    list(feed.epoch(0))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")  # in all threads: torch then raises where it would wait
    try:
        batches = list(feed.epoch(1))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert sum(len(batch.rows) for batch in batches) == (8 if spoilt else 10)
    for batch in batches:
        assert batch.images.isfinite().all()


@on_cuda
@pytest.mark.parametrize("udp", [False, True])
def test_a_batch_of_the_gpu_is_that_of_the_cpu(persons, udp):
    for one, other in zip(
        loader(persons, augmentation=None, udp=udp).epoch(),
        loader(persons, augmentation=None, udp=udp, device="cuda").epoch(),
        strict=True,
    ):
        assert torch.equal(one.rows, other.rows)
        torch.testing.assert_close(one.images, other.images.cpu(), rtol=0, atol=1e-3)
        for name in ("keypoints", "visible", "heatmap_to_image"):
            torch.testing.assert_close(getattr(one, name), getattr(other, name).cpu(), rtol=2e-6, atol=1e-5)


@on_cuda
def test_a_batch_of_the_gpu_depends_on_seed_epoch_and_step_alone(persons):
    options = {"device": "cuda", "augmentation": EVERYTHING, "udp": True}
    whole = list(loader(persons, **options).epoch(3))
    for first, second in zip(whole[1:], loader(persons, **options).epoch(3, first_step=1), strict=True):
        assert_equal(first, second)


class SleepingSource(ResidentImages):
    """Pixels that arrive when the GPU has slept over them."""

    cycles = 0

    def load(self, images, device):
        torch.cuda._sleep(self.cycles)
        return super().load(images, device)


@on_cuda
def test_a_batch_that_is_late_is_complete_when_it_is_used(persons):
    """The consumer's stream has nothing else to do; without the loader's event it would see unfinished memory."""
    expected = [batch.images.clone() for batch in loader(persons, device="cuda").epoch()]
    source = SleepingSource(ResidentImages.from_files(persons.image_paths, "cuda").images)
    source.cycles = 20_000_000
    feed = PoseLoader(persons, source, (64, 64), 4, augmentation=Augmentation(), seed=5, device="cuda")
    got = [batch.images.clone() for batch in feed.epoch()]
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))


@on_cuda
def test_the_waiting_counted_is_that_of_the_gpu_not_of_the_host(persons):
    images = ResidentImages.from_files(persons.image_paths, "cuda").images

    def wait(slow_input: int, slow_step: int) -> float:
        source = SleepingSource(images)
        source.cycles = slow_input
        feed = PoseLoader(persons, source, (64, 64), 1, device="cuda")
        for _ in feed.epoch():
            torch.cuda._sleep(slow_step)
        torch.cuda.synchronize()
        return feed.wait_seconds

    wait(0, 0)  # kernels are loaded at their first use
    # The first of ten batches is waited for in any case.
    assert wait(1_000_000, 50_000_000) < wait(50_000_000, 1_000_000) / 2


@on_cuda
def test_the_host_is_never_further_ahead_of_the_gpu_than_asked(persons):
    source = ResidentImages.from_files(persons.image_paths, "cuda")
    done: list[torch.cuda.Event] = []
    for n, _ in enumerate(PoseLoader(persons, source, (64, 64), 1, device="cuda", prefetch=3).epoch()):
        assert all(event.query() for event in done[: max(0, n - 3)])
        torch.cuda._sleep(20_000_000)
        done.append(torch.cuda.Event())
        done[-1].record()
    assert len(done) == 10


def test_an_epoch_keeps_no_batch_that_its_consumer_has_dropped(persons):
    with closing(loader(persons).epoch()) as batches:
        first = weakref.ref(next(batches).images)
        assert first() is None  # it would stay while the next one is made, and after the epoch is closed
        assert next(batches).step == 1


@on_cuda
def test_an_epoch_that_is_closed_early_leaves_nothing_in_gpu_memory(persons):
    feed = loader(persons, device="cuda")
    list(feed.epoch())
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(5):
        with closing(feed.epoch()) as batches:
            next(batches)
        torch.cuda.synchronize()
    assert background_threads() == []
    assert torch.cuda.memory_allocated() == before


def test_jobs_run_in_order_and_not_further_ahead_than_asked():
    begun = []
    with closing(PreparedAhead(((lambda n=n: begun.append(n) or n) for n in range(100)), 3)) as results:
        assert [next(results), next(results)] == [0, 1]
    assert begun == list(range(len(begun)))
    assert 2 <= len(begun) <= 2 + 3


def test_jobs_are_gone_once_closed():
    def jobs():
        values = torch.zeros(1)
        seen.append(weakref.ref(values))
        for _ in range(100):
            yield lambda: values + 1

    seen = []
    results = PreparedAhead(jobs(), 1)
    next(results)
    (kept,) = seen
    assert kept() is not None
    results.close()
    assert kept() is None


def test_several_threads_keep_the_order():
    barrier = threading.Barrier(2)

    def job(n: int) -> tuple[int, int]:
        if n < 2:  # the first two run at the same time, the first for longer
            barrier.wait(10)
            time.sleep(0.05 * (1 - n))
        return n, torch.get_num_threads()

    jobs = ((lambda n=n: job(n)) for n in range(6))
    assert list(PreparedAhead(jobs, 2, threads=2)) == [(n, 1) for n in range(6)]
    assert background_threads() == []


def test_an_epoch_that_is_left_half_way_is_collected_without_waiting_for_its_threads(persons, monkeypatch):
    """The collector may be at work in a thread that is just starting, where to wait for another never ends."""
    gc.collect()  # epochs that other tests have left, in an exception's frames for instance, are none of this one's
    waits, shutdown = [], ThreadPoolExecutor.shutdown

    def note(pool, wait=True, **options):
        waits.append(wait)
        shutdown(pool, wait, **options)

    monkeypatch.setattr(ThreadPoolExecutor, "shutdown", note)
    batches = loader(persons).epoch()
    next(batches)
    ring = [batches]
    ring.append(ring)
    del batches, ring
    gc.collect()
    assert waits == [False]
    for _ in range(200):
        if not background_threads():
            return
        time.sleep(0.05)
    pytest.fail(f"{background_threads()} are still there")


def test_the_error_of_a_job_is_raised_in_its_place():
    results = PreparedAhead(iter([lambda: 1, lambda: 1 // 0, lambda: 3]), 2)
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert background_threads() == []


START_FAILS = """
import threading
import torch
from fastpose.data.ahead import PreparedAhead

torch.set_num_threads(3)
start = threading.Thread.start
for error in (RuntimeError("can't start new thread"), KeyboardInterrupt()):
    for failing in (1, 2):
        begun = []

        def count(thread):
            begun.append(thread)
            if len(begun) == failing:
                raise error
            start(thread)

        threading.Thread.start = count
        results = PreparedAhead(iter([lambda: 1]), 2, threads=2)
        try:
            next(results)
        except BaseException as raised:
            print(f"{type(raised).__name__} {raised}")
        threading.Thread.start = start
        assert [thread.name for thread in threading.enumerate()] == ["MainThread"]
        assert list(results) == []
        assert torch.get_num_threads() == 3
half_way = PreparedAhead(iter([lambda: 1] * 9), 2, threads=2)  # until the interpreter ends
assert next(half_way) == 1
"""


def test_a_thread_that_does_not_start_leaves_no_other_waiting():
    process = subprocess.run(
        [sys.executable, "-c", START_FAILS], capture_output=True, text=True, timeout=300, check=False
    )
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout.splitlines() == [
        "BlockingIOError [Errno 11] thread 1 of 2 that prepare batches: can't start new thread",
        "BlockingIOError [Errno 11] thread 2 of 2 that prepare batches: can't start new thread",
        *["KeyboardInterrupt "] * 2,
    ]


def test_preparing_ahead_leaves_the_threads_of_torch_alone(persons):
    before = torch.get_num_threads()
    list(loader(persons).epoch())
    assert torch.get_num_threads() == before


def in_new_thread(function):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


@pytest.fixture
def three_threads():
    """A number of torch threads that is neither the loader's 1 nor what a small machine has anyway."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_only_the_background_thread_works_on_one_core(three_threads):
    with closing(PreparedAhead(iter([torch.get_num_threads] * 5), 1)) as inside:
        assert next(inside) == 1
        assert torch.get_num_threads() == in_new_thread(torch.get_num_threads) == 3
        assert list(inside) == [1] * 4
    assert torch.get_num_threads() == in_new_thread(torch.get_num_threads) == 3


def test_a_consumer_that_has_not_used_torch_before_keeps_all_threads(three_threads):
    def consume():
        return list(PreparedAhead(iter([torch.get_num_threads]), 1)), torch.get_num_threads()

    assert in_new_thread(consume) == ([1], 3)


@pytest.mark.parametrize(("name", "value"), [("size", (64, 66)), ("size", (0, 64)), ("batch_size", 0), ("prefetch", 0)])
def test_impossible_values_are_refused_by_name(persons, name, value):
    settings = {"size": (64, 64), "batch_size": 2} | {name: value}
    with pytest.raises(ValueError, match=name):
        PoseLoader(persons, ImageFiles(persons.image_paths), **settings)
    with pytest.raises(ValueError, match="size: expected at least 8 pixels with udp"):
        PoseLoader(persons, ImageFiles(persons.image_paths), (4, 8), 2, udp=True)
    with pytest.raises(ValueError, match="persons"):
        PoseLoader(persons.select([]), ImageFiles(persons.image_paths), (64, 64), 2)


@on_cuda
def test_batches_are_made_in_a_stream_of_higher_priority_than_the_consumer(persons):
    assert loader(persons, device="cuda")._stream.priority < torch.cuda.current_stream().priority
