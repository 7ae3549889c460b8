# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import zlib
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import fastpose
from fastpose import cli, evaluate, pack
from fastpose.data.augmentation import Augmentation
from fastpose.data.boxes import body_boxes
from fastpose.data.datasets import open_dataset
from fastpose.data.images import BadImageError, average, read_image
from fastpose.data.loader import Batch, PoseLoader
from fastpose.data.pack import Margins, PackError, Plan, read_packed_persons, write, write_pack
from fastpose.data.pack.write import cut_region
from fastpose.data.persons import Persons
from fastpose.data.pixels import ImageFiles, PackedImages, Pixels, PixelSource, ResidentImages, packed
from fastpose.models import network
from fastpose.options.settings import Settings
from fastpose.options.settle import settle
from fastpose.skeletons import MPII
from tests.helpers.packs import contents, forge, forge_annotations, forge_table
from tests.helpers.persons import persons_of
from tests.helpers.reading import CPU, batches_of, loader_of, read_split
from tests.helpers.runs import save_weights
from tests.helpers.shift import shift_between
from tests.helpers.terminal import Terminal
from tests.helpers.tiny_mpii import write_tiny_mpii

SIZE = (64, 64)
# Small shards: several of them, each with several records.
SMALL = ["--size", "64", "64", "--shard_bytes", "60000"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_tiny_mpii(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> Path:
    """A raw pack in full resolution."""
    out = tmp_path_factory.mktemp("packs") / "whole"
    assert pack.main([str(data), str(out), *SMALL, "--reduced_decode", "false"]) == 0
    return out


@pytest.fixture
def copy(whole, tmp_path) -> Path:
    """The same, to be spoilt."""
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def asked_for(root: Path, **changes) -> dict[str, Any]:
    return {"data_root": str(root), "size": SIZE, "batch_size": 4, "device": "cpu", "amp": "off", **changes}


def settings_for(root: Path, **changes) -> Settings:
    return settle(asked_for(root, **changes))


def batches(root: Path, split: str = "train", device: torch.device = CPU, **changes) -> list[Batch]:
    return batches_of(settings_for(root, **changes), split, device)


def times(root: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in root.iterdir()}


@pytest.mark.parametrize("split", ["train", "valid"])
@pytest.mark.parametrize("resident", [False, True])
def test_a_raw_pack_in_full_resolution_gives_the_batches_of_the_files(data, whole, device, split, resident):
    changes = {"reduced_decode": False, "resident": resident}
    first, second = (batches(root, split, device, **changes) for root in (data, whole))
    assert len(list(whole.glob("train-*.shard"))) > 2
    assert len(first) == len(second) == (6 if split == "train" else 2)
    for one, other in zip(first, second, strict=True):
        for name in ("rows", "keypoints", "visible", "heatmap_to_image"):
            assert torch.equal(getattr(one, name), getattr(other, name))
        # Noise has steps of 100 grey levels between neighbours, over which coordinates differ by their rounding,
        # some 1e-5 px at 100 px; a wrong pixel would be off by 0.1 and more.
        torch.testing.assert_close(one.images, other.images, rtol=0, atol=1e-3)


def test_a_pack_holds_the_annotations(data, whole):
    for split in ("train", "valid"):
        expected = read_split(settings_for(data), split)
        got = read_split(settings_for(whole), split)
        for name in ("center", "scale", "keypoints", "visible", "source_row"):
            np.testing.assert_array_equal(getattr(got, name), getattr(expected, name))
        assert ("head_size" in got.extras) == ("head_size" in expected.extras) == (split == "valid")
        names = [expected.image_paths[image].name for image in expected.image_index]
        assert [path.name for path in got.image_paths] == names
        chosen = got.select([7, 2])
        pixels = PackedImages(chosen.image_paths).load(torch.from_numpy(chosen.image_index[1:]), CPU)
        again = PackedImages(got.image_paths).load(torch.tensor([2]), CPU)
        assert torch.equal(pixels.images[int(pixels.index)], again.images[int(again.index)])


def photograph(height: int, width: int) -> np.ndarray:
    """Detail of all sizes down to a few pixels, and a bright border."""
    rng = np.random.default_rng(3)
    layers = [cv2.resize(rng.normal(size=(height // n, width // n, 3)), (width, height)) * 12 for n in (60, 25, 10, 4)]
    picture = np.clip(128 + np.sum(layers, axis=0), 0, 255).astype(np.uint8)
    picture[:, [0, -1]] = picture[[0, -1]] = 255
    return picture


def person_at(path: Path, center: tuple[float, float], step: float) -> Persons:
    """A person whose box, at its annotated scale, is `step` image pixels for each of SIZE."""
    side = step * SIZE[1] / 200
    return persons_of(np.zeros((1, 16, 2)), image_paths=(path,), center=[center], scale=[[side, side]])


class Region(PixelSource):
    """One region, in black: in a picture without black, whatever is sampled outside it would be seen."""

    def __init__(self, region: write.Region) -> None:
        self.region = region

    def load(self, images, device):
        frame = torch.tensor([[self.region.step, self.region.x, self.region.y]])
        batch = fastpose.ImageBatch.from_list([self.region.pixels])
        return Pixels(batch, torch.zeros(len(images), dtype=torch.int64), {}, frame)


@pytest.mark.parametrize("center", [(150.0, 130.0), (12.0, 249.5), (299.0, -20.0), (150.0, 2000.0)])
@pytest.mark.parametrize(("rotation", "size"), [(0.0, (64, 64)), (30.0, (96, 64)), (60.0, (32, 64)), (180.0, (64, 64))])
def test_a_region_is_all_that_the_allowed_crops_sample(tmp_path, center, rotation, size):
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), photograph(260, 300))
    persons = person_at(path, center, 1.4)
    margins = Margins(size, rotation, 0.75, 1.25, False)
    region = cut_region(path, persons.center[0], persons.scale[0], margins)
    inside = read_image(path)[int(region.y) :, int(region.x) :][: region.pixels.shape[0], : region.pixels.shape[1]]
    np.testing.assert_array_equal(region.pixels, inside)
    for scale in (0.75, 1.25):
        for turn in (rotation, rotation / 2, 0.0):
            # Draws all of -turn to turn: the ends are among them to 0.1 degrees.
            augmentation = Augmentation(turn, scale, scale, 0.5)
            many = persons.select([0] * 64)
            crops = [
                torch.cat([batch.images for batch in PoseLoader(many, s, size, 64, augmentation=augmentation).epoch()])
                for s in (ImageFiles((path,)), Region(region))
            ]
            torch.testing.assert_close(*crops, rtol=0, atol=2e-3)


@pytest.mark.parametrize("reduce", [False, True])
@pytest.mark.parametrize("udp", [False, True])
@pytest.mark.parametrize("size", [(64, 64), (96, 64)])
def test_a_region_is_all_that_crops_of_half_a_body_sample_and_fine_enough(tmp_path, size, udp, reduce):
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), photograph(460, 500))
    rng = np.random.default_rng(0)
    keypoints = np.concatenate(
        [rng.uniform((150, 250), (250, 420), (7, 2)), rng.uniform((200, 60), (330, 180), (9, 2))]
    )
    # A box that holds neither half: what is sampled outside it is sampled for the halves.
    persons = dataclasses.replace(
        person_at(path, (240.0, 240.0), 0.9),
        keypoints=np.float32(keypoints[None]),
        visible=np.ones((1, 16), np.float32),
    )
    boxes = body_boxes(persons, size, half_body=True)[0]
    margins = Margins(size, 30.0, 0.75, 1.25, reduce, half_body=True)
    region = cut_region(path, boxes[:, :2], boxes[:, 2:], margins)
    assert region.step == 1.0  # as the person's own box is 57.6 px wide
    many = persons.select([0] * 64)
    for scale in (0.75, 1.25):
        augmentation = Augmentation(30.0, scale, scale, 0.5, half_body=0.7)
        crops = [
            torch.cat([b.images for b in PoseLoader(many, s, size, 64, augmentation=augmentation, udp=udp).epoch()])
            for s in (ImageFiles((path,)), Region(region))
        ]
        torch.testing.assert_close(*crops, rtol=0, atol=2e-3)
    # Without its own box a reduced region is as fine as the smaller half needs.
    halves = cut_region(path, boxes[1:, :2], boxes[1:, 2:], margins)
    finest = 0.75 * 200 * boxes[1:, 2].min() / size[1]
    assert finest > 1.5
    assert finest - 0.25 < halves.step <= finest if reduce else halves.step == 1.0


def test_with_udp_a_region_is_all_that_the_allowed_crops_sample(tmp_path):
    """Up to the box's last edge, which other crops end a pixel before."""
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), photograph(260, 300))
    persons = person_at(path, (150.0, 130.0), 0.7)
    for rotation, size in ((0.0, (64, 64)), (30.0, (96, 64)), (180.0, (32, 64))):
        region = cut_region(path, persons.center[0], persons.scale[0], Margins(size, rotation, 0.75, 1.25, False))
        augmentation = Augmentation(rotation, 1.25, 1.25, 0.5)
        crops = [
            next(PoseLoader(persons.select([0] * 64), s, size, 64, augmentation=augmentation, udp=True).epoch()).images
            for s in (ImageFiles((path,)), Region(region))
        ]
        torch.testing.assert_close(*crops, rtol=0, atol=2e-3)


@pytest.mark.parametrize("udp", [False, True])
@pytest.mark.parametrize("size", [(64, 64), (96, 64), (32, 64)])
def test_a_region_is_all_that_shifted_crops_sample(tmp_path, size, udp):
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), photograph(460, 500))
    persons = person_at(path, (240.0, 230.0), 0.9)
    region = cut_region(path, persons.center[0], persons.scale[0], Margins(size, 30.0, 0.75, 1.25, False, shift=0.3))
    for scale in (0.75, 1.25):
        for kind in ("uniform", "truncnorm"):
            augmentation = Augmentation(30.0, scale, scale, 0.5, shift=0.3, shift_prob=1.0, augmentation_draw=kind)
            many = persons.select([0] * 256)
            crops = [
                next(PoseLoader(many, s, size, 256, augmentation=augmentation, udp=udp).epoch()).images
                for s in (ImageFiles((path,)), Region(region))
            ]
            torch.testing.assert_close(*crops, rtol=0, atol=2e-3)


def test_a_shift_makes_regions_larger_by_its_share_of_the_box():
    without, shifted = (Margins((96, 64), 30.0, 0.75, 1.25, True, shift=shift) for shift in (0.0, 0.16))
    # A box of 240 x 360 px, whatever its factor: 38.4 and 57.6 px either way.
    (x, y), (far_x, far_y) = without.half_extents(1.2), shifted.half_extents(1.2)
    assert (far_x - x, far_y - y) == pytest.approx((38.4, 57.6))


def test_a_pack_made_for_shifts_gives_them_as_the_files_do(data, tmp_path):
    out = tmp_path / "out"
    assert pack.main([str(data), str(out), *SMALL, "--shift", "0.2", "--reduced_decode", "false"]) == 0
    changes = {"shift": 0.2, "shift_prob": 0.7, "reduced_decode": False}
    for one, other in zip(*(batches(root, **changes) for root in (data, out)), strict=True):
        assert torch.equal(one.keypoints, other.keypoints)
        torch.testing.assert_close(one.images, other.images, rtol=0, atol=1e-3)
    margins = json.loads((out / "pack.json").read_text())["margins"]
    assert margins["train"]["shift"] == 0.2
    assert "shift" not in margins["valid"]
    with pytest.raises(ValueError, match=r"shift: the pack .* was made for at most 0.2 of a box, got 0.25"):
        batches(out, shift=0.25)
    assert pack.main([str(data), str(out), *SMALL, "--shift", "0.3", "--reduced_decode", "false"]) == 1


def test_a_pack_without_shifts_says_nothing_of_them(whole):
    """So that it has the same bytes as those of older versions, which go on to be what their command makes."""
    margins = json.loads((whole / "pack.json").read_text())["margins"]
    names = {"size", "rotation", "scale_min", "scale_max", "reduce", "half_body"}
    assert {split: set(of) for split, of in margins.items()} == {"train": names, "valid": names}


def test_a_region_is_no_larger_than_it_must_be(tmp_path):
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), np.zeros((400, 400, 3), np.uint8))
    persons = person_at(path, (200.0, 200.0), 1.0)
    # 64 px, 80 px at the largest scale; turned by 30 degrees 80 (cos 30 + sin 30) = 109.3 px; at 45 and more 113.1.
    for rotation, side in ((0.0, 80), (30.0, 109.3), (45.0, 113.1), (180.0, 113.1)):
        region = cut_region(path, persons.center[0], persons.scale[0], Margins(SIZE, rotation, 0.75, 1.25, False))
        assert side < region.pixels.shape[0] == region.pixels.shape[1] < side + 11


@pytest.mark.parametrize(("step", "expected"), [(1.2, 1.0), (1.6, 1.125), (2.9, 2.0), (4.2, 3.0), (13.0, 9.0)])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_region_has_the_resolution_that_training_needs_and_lies_where_it_should(tmp_path, step, expected, suffix):
    path = tmp_path / f"a.{suffix}"
    side = round(step * 64 * 1.6) + 5
    cv2.imwrite(str(path), cv2.GaussianBlur(photograph(side, side), (0, 0), 2 * step), [cv2.IMWRITE_JPEG_QUALITY, 98])
    persons = person_at(path, (0.52 * side, 0.47 * side), step)
    region = cut_region(path, persons.center[0], persons.scale[0], Margins(SIZE, 30.0, 0.75, 1.25, True))
    assert region.step == expected
    assert expected <= 0.75 * step or expected == 1
    options = {"augmentation": Augmentation(30.0, 0.75, 1.25, 0.5)}
    many = persons.select([0] * 6)
    files, regions = (
        next(PoseLoader(many, source, SIZE, 6, **options).epoch()).images.permute(0, 2, 3, 1).numpy()
        for source in (ImageFiles((path,)), Region(region))
    )
    shifts = [shift_between(a, b) * 0.75 * step for a, b in zip(regions, files, strict=True)]
    assert np.abs(np.mean(shifts, axis=0)).max() < 0.01 * expected
    assert np.abs(shifts).max() < 0.03 * expected


def test_where_an_image_ends_a_reduced_region_ends_like_the_image(tmp_path):
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), np.full((150, 203, 3), 200, np.uint8))
    persons = person_at(path, (195.0, 75.0), 2.0)
    region = cut_region(path, persons.center[0], persons.scale[0], Margins(SIZE, 30.0, 0.75, 1.25, True))
    assert region.step == 1.5
    right = region.x + region.step * (region.pixels.shape[1] - 1)
    assert 202 - 1.5 < right < 203 + 0.75
    # Between two of its pixels a region fades into black as an image does, over its own pixel's width.
    assert region.pixels[20, -2].tolist() == [200] * 3


@pytest.mark.parametrize("kind", ["raw", "jpeg"])
def test_a_reduced_pack_gives_nearly_the_crops_of_the_files(real_data, tmp_path, kind):
    """On real photographs, against crops of the files as training reads them."""
    source = real_data / "mpii"
    options = ["--train_annotations", "annot/valid.json", "--missing_images", "drop", "--format", kind]
    assert pack.main([str(source), str(tmp_path / "out"), *options]) == 0
    loaded = []
    for root in (source, tmp_path / "out"):
        names = {"train_annotations": "annot/valid.json", "missing_images": "drop"}
        loaded.append(next(loader_of(settle({"data_root": str(root), "device": "cpu", **names}), "train").epoch()))
    first, second = loaded
    assert torch.equal(first.keypoints, second.keypoints)
    grey_levels = (first.images - second.images).abs() * 255 * torch.tensor(fastpose.IMAGENET_STD)[:, None, None]
    assert grey_levels.mean() < {"raw": 2, "jpeg": 3}[kind]
    shifts = [
        shift_between(a.permute(1, 2, 0).numpy(), b.permute(1, 2, 0).numpy())
        for a, b in zip(second.images, first.images, strict=True)
    ]
    assert np.abs(shifts).max() < 0.05
    assert np.abs(np.median(shifts, axis=0)).max() < 0.01


def test_a_jpeg_pack_is_the_raw_pack_compressed(data, whole, tmp_path, device):
    out = tmp_path / "out"
    assert pack.main([str(data), str(out), *SMALL, "--reduced_decode", "false", "--format", "jpeg"]) == 0
    persons, others = (read_packed_persons(root, "train") for root in (whole, out))
    first, second = (PackedImages(p.image_paths).load(torch.tensor([3, 0, 3]), device) for p in (persons, others))
    assert torch.equal(first.frame[first.index], second.frame[second.index])
    for a, b in zip(first.index.tolist(), second.index.tolist(), strict=True):
        one, other = first.images[a].cpu().numpy(), second.images[b].cpu().numpy()
        data_of = cv2.imencode(".jpg", one[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
        np.testing.assert_array_equal(other, cv2.imdecode(data_of, cv2.IMREAD_COLOR)[..., ::-1])


def test_a_stopped_pack_goes_on_where_it_was(data, whole, tmp_path, monkeypatch, capsys):
    out, count = tmp_path / "out", 0
    arguments = [str(data), str(out), *SMALL, "--reduced_decode", "false"]

    def stop_at_the_seventh(*arguments):
        nonlocal count
        count += 1
        if count == 7:
            raise KeyboardInterrupt
        return cut_region(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(write, "cut_region", stop_at_the_seventh)
        assert pack.main([*arguments, "--threads", "1"]) == 130
    kept = {path: path.stat().st_mtime_ns for path in out.glob("*.npy")}
    assert kept
    with pytest.raises(PackError, match="the pack is unfinished"):
        read_split(settings_for(out), "train")
    assert pack.main([*arguments, "--size", "32", "32"]) == 1
    assert "unfinished pack of other data or made with other options" in capsys.readouterr().err
    (out / "train-00001.shard").unlink(missing_ok=True)  # of a table whose shard is gone the shard is made again
    assert pack.main(arguments) == 0
    assert contents(out) == contents(whole)
    assert (out / "train-00000.npy").stat().st_mtime_ns == kept[out / "train-00000.npy"]
    assert pack.main(arguments) == 0
    assert "already there" in capsys.readouterr().out
    assert pack.main([*arguments, "--rotation", "5"]) == 1
    assert "holds a pack of other data or made with other options" in capsys.readouterr().err


def test_a_folder_with_other_things_is_left_alone(data, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert pack.main([str(data), str(tmp_path)]) == 1
    assert "neither empty nor an unfinished pack" in capsys.readouterr().err
    assert contents(tmp_path) == {"notes.txt": b"mine"}


@pytest.mark.parametrize("name", ["train-00001.shard", "train-00001.npy", "train-persons.npz"])
@pytest.mark.parametrize("damage", ["truncated", "missing", "altered"])
def test_a_damaged_file_is_an_error_that_names_it(copy, name, damage):
    file = copy / name
    before = file.read_bytes()
    if damage == "missing":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(before[:-1])
    else:
        file.write_bytes(
            before[:-1000] + bytes([before[-1000] ^ 1]) + before[-999:] if len(before) > 1000 else before[::-1]
        )
    with pytest.raises(PackError, match=name.replace(".", r"\.")):
        batches(copy)


def test_an_altered_record_is_an_error_even_where_bad_images_are_skipped(copy, device):
    file = copy / "train-00000.shard"
    file.write_bytes(bytes(100) + file.read_bytes()[100:])
    persons = read_packed_persons(copy, "train")
    source = PackedImages(persons.image_paths)
    source.load(torch.tensor([1, 2]), device)
    with pytest.raises(PackError, match=r"train-00000\.shard: altered: the record of 000\.jpg"):
        source.load(torch.tensor([1, 0]), device)
    with pytest.raises(PackError, match="altered"):
        batches(copy, on_bad_image="skip")


@pytest.mark.parametrize("text", ["", "[]", '{"format": "fastpose-pack-9"}'])
def test_an_index_that_cannot_be_read_is_named(copy, text):
    (copy / "pack.json").write_text(text)
    with pytest.raises(PackError, match=r"pack\.json: (damaged|expected)"):
        read_split(settings_for(copy), "train")


def test_an_unreadable_image_stops_the_packing_or_is_left_to_the_training(tmp_path, device, capsys):
    data, out = write_tiny_mpii(tmp_path / "data"), tmp_path / "out"
    (data / "images/002.jpg").write_bytes(b"")
    assert pack.main([str(data), str(out), *SMALL]) == 1
    assert "002.jpg: the file is empty" in capsys.readouterr().err
    shutil.rmtree(out)
    assert pack.main([str(data), str(out), *SMALL, "--on-bad-image", "skip"]) == 0
    pixels = PackedImages(read_packed_persons(out, "train").image_paths).load(torch.tensor([1, 2, 6]), device)
    assert sorted(pixels.errors) == [2, 6]
    assert pixels.images[int(pixels.index[1])].tolist() == [[[0, 0, 0]]]
    with pytest.raises(BadImageError, match=r"002\.jpg: could not be read when it was packed"):
        batches(out, device=device)
    for resident in (False, True):
        rows = [batch.rows for batch in batches(out, on_bad_image="skip", resident=resident)]
        assert sorted(set(torch.cat(rows).tolist())) == [0, 1, 3, 4, 5, 7, 8, 9]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rotation": 31.0}, "rotation: the pack .* was made for at most 30 degrees, got 31"),
        ({"scale_max": 1.3}, "scale_max: the pack .* was made for at most 1.25, got 1.3"),
        (
            {"size": (96, 64)},
            "size: the pack .* was made for size 64 64, whose regions are too low for crops of 96 x 64",
        ),
        ({"size": (96, 96)}, "size: the pack .* too coarse for 96 x 96 pixels"),
        ({"scale_min": 0.7}, "scale_min: the pack .* boxes of at least 0.75 times .* 0.7 times"),
        ({"shift": 0.16}, "shift: the pack .* was made for at most 0 of a box, got 0.16"),
        ({"half_body": 0.3}, "half_body: the pack .* was made for whole persons"),
        ({"decoder": "gpu"}, "decoder"),
        ({"images": "others"}, "images: the pack .* has the data of 'images', got 'others'"),
    ],
)
def test_options_that_need_more_than_the_pack_holds_are_refused_by_name(data, tmp_path, changes, message):
    out = tmp_path / "out"
    assert pack.main([str(data), str(out), "--size", "64", "64"]) == 0
    for fine in ({}, {"rotation": 0.0}, {"size": (32, 32)}, {"size": (32, 64)}, {"scale_min": 1.0, "scale_max": 1.0}):
        batches(out, **fine)
    with pytest.raises(ValueError, match=message):
        batches(out, **changes)


@pytest.mark.parametrize(
    ("packed", "message"),
    [
        (
            (1.2, 1.4),
            "scale_prob: the pack .* was made for at least 1.2 times, and scale_prob 0.5 leaves some boxes as",
        ),
        ((0.5, 0.8), "scale_prob: the pack .* was made for at most 0.8 times, and scale_prob 0.5 leaves some boxes as"),
    ],
)
def test_a_pack_must_have_been_made_for_boxes_that_keep_their_size(data, tmp_path, packed, message):
    low, high = packed
    scales = ["--scale_min", str(low), "--scale_max", str(high)]
    assert pack.main([str(data), str(tmp_path / "always"), *SMALL, *scales]) == 0
    assert pack.main([str(data), str(tmp_path / "some"), *SMALL, *scales, "--scale_prob", "0.5"]) == 0
    changes = {"scale_min": low, "scale_max": high}
    assert batches(tmp_path / "always", **changes)
    with pytest.raises(ValueError, match=message):
        batches(tmp_path / "always", **changes, scale_prob=0.5)
    assert batches(tmp_path / "some", **changes, scale_prob=0.5)


def test_a_pack_made_for_half_bodies_gives_them_as_the_files_do(data, tmp_path):
    out = tmp_path / "out"
    assert pack.main([str(data), str(out), *SMALL, "--half_body", "0.3", "--reduced_decode", "false"]) == 0
    changes = {"half_body": 0.8, "reduced_decode": False, "udp": True}
    for one, other in zip(*(batches(root, **changes) for root in (data, out)), strict=True):
        assert torch.equal(one.keypoints, other.keypoints)
        torch.testing.assert_close(one.images, other.images, rtol=0, atol=1e-3)
    for root in (data, out):  # evaluation has no half bodies
        assert batches(root, "valid", **changes)[0].images.isfinite().all()
    with pytest.raises(ValueError, match=r"size: .* half-body boxes have another aspect ratio than crops of 32 x 64"):
        batches(out, **changes, size=(32, 64))
    assert len(batches(out, reduced_decode=False, size=(32, 64))) == 6  # without them it does
    assert pack.main([str(data), str(tmp_path / "other"), *SMALL, "--half_body", "1.2"]) == 1


def test_a_pack_in_full_resolution_serves_larger_crops(whole):
    assert batches(whole, size=(96, 96), scale_min=0.7)[0].images.shape == (4, 3, 96, 96)


def test_a_recipe_says_what_to_pack_for(data, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("size: [32, 64]\nlr: 1e-3\nrotation: 12\nvalid_annotations: annot/train.json\n")
    assert pack.main([str(data), str(tmp_path / "out"), "--recipe", str(recipe), "--rotation", "45"]) == 0
    index = json.loads((tmp_path / "out/pack.json").read_text())
    assert index["margins"]["train"]["size"] == [32, 64]
    assert index["margins"]["train"]["rotation"] == 45
    assert index["margins"]["valid"]["rotation"] == 0
    assert index["options"]["valid_annotations"] == "annot/train.json"
    # Training may name the annotations as the recipe does, or not at all; annot/valid.json stands in configs of runs
    # that did not.
    asked = asked_for(tmp_path / "out", size=(32, 64))
    for name in ("annot/train.json", ""):
        assert len(read_split(settle({**asked, "valid_annotations": name}), "valid")) == 10
    for name in ("annot/train.json", "annot/valid.json", ""):
        assert len(read_split(settle(asked, run={"valid_annotations": name}), "valid")) == 10
    with pytest.raises(PackError, match=r"valid_annotations: the pack .* 'annot/train\.json', got 'other\.json'"):
        settle(asked, run={"valid_annotations": "other.json"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--quality", "101"], "quality: expected 1 to 100, got 101"),
        (["--shard_bytes", "0"], "shard_bytes: expected at least 1"),
        (["--format", "png"], "format"),
    ],
)
def test_wrong_options_are_refused_by_name(data, tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit):
        pack.main([str(data), str(tmp_path / "out"), *arguments])
    assert message in capsys.readouterr().err


def test_what_cannot_be_packed_is_named(whole, tmp_path, capsys):
    assert pack.main([str(whole), str(tmp_path / "out")]) == 1
    assert "is a pack itself" in capsys.readouterr().err
    assert pack.main([str(tmp_path / "none"), str(tmp_path / "out")]) == 1
    assert f"no file {tmp_path}/none/annot/train.json: there is no folder {tmp_path}/none\n" in capsys.readouterr().err


def test_the_command_prints_its_progress(data, tmp_path):
    command = [sys.executable, "-m", "fastpose.pack", str(data), str(tmp_path / "out"), *SMALL]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert any(line.startswith("packing train  10/10 persons  ") for line in done.stderr.splitlines())
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"wrote {tmp_path / 'out'}: 10 train and 10 valid persons, ")
    assert "pack" in cli.VERBS


def test_a_batch_outlives_an_epoch_that_is_closed_early(whole):
    loader = loader_of(settings_for(whole), "train")
    with closing(loader.epoch()) as stream:
        kept = next(stream).images.clone()
    del loader
    assert kept.isfinite().all()


def test_a_resident_pack_copies_no_pixel_per_batch(whole, device):
    persons = read_packed_persons(whole, "train")
    source = PackedImages(persons.image_paths)
    names = [str(path) for path in persons.image_paths]
    resident = ResidentImages.from_source(source, source.sizes, device, names)
    asked = torch.tensor([5, 1, 5])
    pixels, expected = resident.load(asked, device), source.load(asked, device)
    assert pixels.images is resident.images
    assert torch.equal(pixels.frame[pixels.index], expected.frame[expected.index])
    for a, b in zip(pixels.index.tolist(), expected.index.tolist(), strict=True):
        assert torch.equal(pixels.images[a], expected.images[b])


@pytest.mark.cuda
def test_a_batch_of_a_pack_is_copied_without_waiting(whole):
    persons = read_packed_persons(whole, "train")
    source = PackedImages(persons.image_paths)
    loader = PoseLoader(persons, source, SIZE, 4, augmentation=Augmentation(), device="cuda")
    list(loader.epoch(0))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        made = list(loader.epoch(1))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert sum(len(batch.rows) for batch in made) == 10
    assert all(batch.images.isfinite().all() for batch in made)


def test_the_average_of_a_region_is_that_of_the_image(tmp_path):
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), photograph(240, 240))
    persons = person_at(path, (120.0, 120.0), 2.0)
    region = cut_region(path, persons.center[0], persons.scale[0], Margins(SIZE, 0.0, 1.0, 1.0, True))
    # 2 px for each: every pixel is the mean of four, those of the image from an even place on or from an odd one.
    begin = [round(at - 0.5) for at in (region.y, region.x)]
    rows, columns = (slice(b, b + 2 * n) for b, n in zip(begin, region.pixels.shape[:2], strict=True))
    assert region.step == 2
    np.testing.assert_array_equal(region.pixels, average(read_image(path)[rows, columns], 2, 1))


def test_reduced_pixels_are_refused_for_a_run_that_wants_full_resolution(data, tmp_path):
    assert pack.main([str(data), str(tmp_path / "out"), *SMALL]) == 0
    with pytest.raises(ValueError, match=r"reduced_decode: the pack .*out holds reduced pixels"):
        batches(tmp_path / "out", reduced_decode=False)
    assert batches(tmp_path / "out")


@pytest.mark.parametrize("name", ["../a.jpg", "/etc/a.jpg", "..", ""])
def test_a_name_that_leads_out_of_the_pack_is_refused(copy, name):
    arrays = dict(np.load(copy / "train-persons.npz"))
    forge_annotations(copy, arrays | {"image": np.array([name, *arrays["image"][1:]])})
    with pytest.raises(PackError, match=r"train-persons\.npz: expected names of files without a folder"):
        read_packed_persons(copy, "train")


@pytest.mark.parametrize("key", ["files", "margins"])
def test_an_index_without_its_parts_is_named(copy, key):
    forge(copy, lambda index: index[key].pop("train"))
    with pytest.raises(PackError, match=r"pack\.json: damaged"):
        batches(copy, reduced_decode=False)
    forge(copy, lambda index: index.pop(key))
    with pytest.raises(PackError, match=rf"pack\.json: damaged: it has no {key}"):
        batches(copy, reduced_decode=False)


def test_an_altered_index_is_an_error_that_names_it(copy, data):
    index = copy / "pack.json"
    whole = index.read_text()
    for old, new in (('"rotation": 30.0', '"rotation": 90.0'), ('"raw"', '"jpeg"'), ('"records": ', '"records": 1')):
        assert old in whole
        index.write_text(whole.replace(old, new, 1))
        with pytest.raises(PackError, match=r"pack\.json: altered"):
            batches(copy)
    index.write_text(whole[:-10])
    with pytest.raises(PackError, match=r"pack\.json: damaged"):
        batches(copy)
    index.write_text(json.dumps(json.loads(whole), sort_keys=True))  # the same contents in other words
    assert batches(copy)


def test_a_pack_of_an_older_version_is_to_be_packed_again(copy, data, capsys):
    older = json.loads((copy / "pack.json").read_text()) | {"format": "fastpose-pack-1"}
    del older["crc"]
    (copy / "pack.json").write_text(json.dumps(older))
    message = "expected format 'fastpose-pack-2', got 'fastpose-pack-1'.* must be packed again"
    with pytest.raises(PackError, match=message):
        batches(copy)
    assert pack.main([str(data), str(copy), *SMALL, "--reduced_decode", "false"]) == 1
    assert "must be packed again, into another folder" in capsys.readouterr().err


def test_damaged_annotations_are_named(copy):
    arrays = dict(np.load(copy / "train-persons.npz"))
    for change, message in (
        ({"center": arrays["center"][:-1]}, "damaged: center must be a float32 array"),
        (
            {name: array[:-1] for name, array in arrays.items() if array.ndim},
            "expected 10 persons as in pack.json, got 9",
        ),
    ):
        forge_annotations(copy, arrays | change)
        with pytest.raises(PackError, match=rf"train-persons\.npz: {message}"):
            read_packed_persons(copy, "train")
    del arrays["scale"]
    forge_annotations(copy, arrays)
    with pytest.raises(PackError, match=r"train-persons\.npz: damaged: scale must be"):
        read_packed_persons(copy, "train")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("offset", 0, "to begin where the record before it ends"),
        ("offset", -1, "a place within the .* bytes of the shard"),
        ("offset", 1 << 62, "a place within"),
        ("length", 1 << 62, "a place within"),
        ("length", -3, "a place within"),
        ("height", 1, "3 bytes for each of its pixels"),
        ("height", 0, "a height and a width of at least 1"),
        ("width", -5, "a height and a width of at least 1"),
        ("step", 0.0, "a positive step"),
        ("step", np.nan, "a positive step and a finite place"),
        ("x", np.inf, "a finite place in the image"),
    ],
)
def test_a_table_whose_rows_do_not_fit_its_shard_is_refused_by_shard_and_record(copy, field, value, message):
    rows = np.load(copy / "train-00001.npy")
    rows[field][1] = value
    forge_table(copy, 1, rows)
    found = rf"train-00001\.shard: record 1 in train-00001\.npy: expected .*{message}.*, got offset "
    with pytest.raises(PackError, match=found):
        PackedImages(read_packed_persons(copy, "train").image_paths)


def test_records_that_leave_a_part_of_their_shard_out_are_refused(copy):
    forge_table(copy, 1, np.load(copy / "train-00001.npy")[:-1])
    with pytest.raises(PackError, match=r"train-00001\.shard: expected \d+ bytes as the records in train-00001\.npy"):
        PackedImages(read_packed_persons(copy, "train").image_paths)


def test_fewer_records_than_persons_are_refused(copy):
    forge(copy, lambda index: index["files"]["train"]["shards"].pop())
    with pytest.raises(PackError, match=r"pack\.json: damaged: 10 train persons, \d records"):
        PackedImages(read_packed_persons(copy, "train").image_paths)


def test_a_record_that_is_not_a_jpeg_is_named(data, tmp_path):
    out = tmp_path / "out"
    assert pack.main([str(data), str(out), *SMALL, "--format", "jpeg"]) == 0
    shard, rows = out / "train-00000.shard", np.load(out / "train-00000.npy")
    noise = np.random.default_rng(0).bytes(int(rows["length"][0]))
    shard.write_bytes(noise + shard.read_bytes()[len(noise) :])
    rows["crc"][0] = zlib.crc32(noise)
    forge_table(out, 0, rows)
    source = PackedImages(read_packed_persons(out, "train").image_paths)
    source.load(torch.tensor([1]), CPU)
    with pytest.raises(PackError, match=r"train-00000\.shard: the record of 000\.jpg does not decode"):
        source.load(torch.tensor([0]), CPU)


def test_packing_again_mends_what_is_damaged_and_touches_nothing_else(data, whole, copy, capsys):
    arguments = [str(data), str(copy), *SMALL, "--reduced_decode", "false"]
    before = times(copy)
    assert pack.main(arguments) == 0
    assert "already there, nothing to do" in capsys.readouterr().out
    assert times(copy) == before
    spoilt = ("train-00000.shard", "valid-00001.shard", "valid-00001.npy", "train-persons.npz")
    for name in spoilt:
        (copy / name).write_bytes((copy / name).read_bytes()[:-3])
    middle = (copy / "train-00001.shard").read_bytes()
    (copy / "train-00001.shard").write_bytes(b"\xff" + middle[1:])
    (copy / "train-00002.shard").unlink()
    assert pack.main(arguments) == 0
    assert "wrote" in capsys.readouterr().out
    assert contents(copy) == contents(whole)
    assert {name for name, time in times(copy).items() if before[name] != time} == {
        *spoilt,
        *("train-00001.shard", "train-00002.shard"),
    }


def test_a_complete_pack_may_lie_where_nobody_can_write(data, copy, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(write, "replacing", refuse)
    assert pack.main([str(data), str(copy), *SMALL, "--reduced_decode", "false"]) == 0
    assert batches(copy)


def test_a_folder_that_cannot_be_made_is_named(data, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    for out, message in (("file", "file: exists and is not a folder"), ("file/out", "file/out")):
        assert pack.main([str(data), str(tmp_path / out)]) == 1
        assert message in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def test_a_disk_that_is_full_is_named_and_the_pack_goes_on_later(data, whole, tmp_path, capsys):
    resource = pytest.importorskip("resource")
    out = tmp_path / "out"
    arguments = [str(data), str(out), *SMALL, "--reduced_decode", "false"]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, before[1]))  # shards have 60,000 bytes
    try:
        assert pack.main(arguments) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert f"'{out / 'train-00000.shard'}'" in capsys.readouterr().err
    assert {path.name for path in out.iterdir()} == {"unfinished.json", "train-persons.npz"}
    assert pack.main(arguments) == 0
    assert contents(out) == contents(whole)


def test_two_commands_do_not_pack_into_one_folder(data, whole, tmp_path, capsys):
    fcntl = pytest.importorskip("fcntl")
    out = tmp_path / "out"
    out.mkdir()
    arguments = [str(data), str(out), *SMALL, "--reduced_decode", "false"]
    folder = os.open(out, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    try:
        assert pack.main(arguments) == 1
    finally:
        os.close(folder)
    assert "another `fastpose pack` is writing into it" in capsys.readouterr().err
    assert contents(out) == {}
    assert pack.main(arguments) == 0
    assert contents(out) == contents(whole)


def test_a_system_that_cannot_map_files_side_by_side_is_an_error(whole, monkeypatch):
    monkeypatch.delattr(packed.mmap, "MAP_PRIVATE")
    with pytest.raises(PackError, match="this system cannot map a pack into memory, use the image files"):
        batches(whole)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rotation", "-5"], "rotation: expected degrees between 0 and 180"),
        (["--scale_min", "0"], "scale_min: expected 0 < scale_min <= scale_max, got 0.0 and 1.25"),
        (["--scale_max", "0.5"], "scale_max: expected 0 < scale_min <= scale_max, got 0.75 and 0.5"),
    ],
)
def test_margins_that_no_training_can_ask_for_are_refused(data, tmp_path, capsys, arguments, message):
    assert pack.main([str(data), str(tmp_path / "out"), *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_region_too_large_for_a_jpeg_is_named(tmp_path):
    path = tmp_path / "wide.png"
    cv2.imwrite(str(path), np.zeros((2, 65_600, 3), np.uint8))
    persons = person_at(path, (32_800.0, 1.0), 65_600 / 64)
    plan = Plan("jpeg", 90, 1 << 30, {"train": Margins(SIZE, 0.0, 1.0, 1.0, False)}, {}, {})
    with pytest.raises(PackError, match=r"wide\.png: OpenCV cannot store a region of 2 x 65600 pixels"):
        write_pack(tmp_path / "out", plan, {"train": persons})


def test_on_a_terminal_each_split_has_a_line_that_renews_itself(data, tmp_path, monkeypatch, capsys):
    terminal = Terminal.on(monkeypatch)
    assert pack.main([str(data), str(tmp_path / "out"), "--size", "64", "64", "--threads", "1"]) == 0
    *lines, end = terminal.getvalue().split("\n")
    assert end == ""
    assert capsys.readouterr().out.startswith("wrote ")
    for split, line in zip(("train", "valid"), lines, strict=True):
        states = line.split("\r\x1b[2K")[1:]
        title, unit = f"packing {split}  ", "/10 persons"
        assert [state.removeprefix(title).partition(unit)[0] for state in states] == [f"{n:2d}" for n in range(11)]
        assert all(state.endswith(" left") for state in states[1:])


def test_after_a_stop_the_next_line_begins_anew(data, tmp_path, monkeypatch, capsys):
    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        terminal = Terminal.on(patch)
        patch.setattr(write, "cut_region", stop)
        assert pack.main([str(data), str(tmp_path / "out"), *SMALL]) == 130
    assert terminal.getvalue() == (
        "\r\x1b[2Kpacking train   0/10 persons\nstopped by SIGINT; the same command goes on\n"
    )
    assert capsys.readouterr().out == ""
    assert not list((tmp_path / "out").glob("*.part*"))


@pytest.fixture
def checkpoint(data, tmp_path, monkeypatch) -> Path:
    """That of a network that knows nothing, trained on files."""

    def small_network(depth, head, num_joints, *, channels):
        return torch.nn.Conv2d(3, num_joints, 4, stride=4)

    monkeypatch.setattr(network, "pose_resnet", small_network)
    settings = settings_for(data)
    model = network.make_network(settings.network, MPII, CPU)
    path = tmp_path / "run" / "best.pt"
    save_weights(path, model.state_dict(), settings.as_plain())
    return path


@pytest.fixture(scope="module")
def renamed(data, tmp_path_factory) -> Path:
    """A pack whose validation persons come from another file than the default's."""
    out = tmp_path_factory.mktemp("packs") / "renamed"
    names = ["--valid_annotations", "annot/train.json"]
    assert pack.main([str(data), str(out), *SMALL, *names]) == 0
    return out


def test_an_evaluation_on_a_pack_takes_its_annotations_and_refuses_others(checkpoint, data, renamed, tmp_path, capsys):
    arguments = ["--checkpoint", str(checkpoint), "--data_root", str(renamed), "--out", str(tmp_path / "out")]
    for same in ([], ["--annotations", "annot/train.json", "--head_boxes", "annot/gt_valid.mat", "--images", "images"]):
        assert evaluate.main([*arguments, *same]) == 0
        out = capsys.readouterr().err
        assert f"the pack {renamed} has the data of valid_annotations 'annot/train.json'" * (not same) in out
        assert "train_annotations" not in out  # which is no option here
        scores = json.loads((tmp_path / "out/scores.json").read_text())
        assert scores["annotations"] == str(renamed)
        assert scores["pckh"] is not None
    # annot/valid.json is the default of training; asked for by name it is still not what the pack holds.
    for name in ("annot/valid.json", str(data / "annot/valid.json")):
        assert evaluate.main([*arguments, "--annotations", name]) == 1
        error = capsys.readouterr().err
        assert f"error: annotations: the pack {renamed} has the data of 'annot/train.json', got '{name}'" in error
    assert evaluate.main([*arguments, "--head_boxes", "other.mat"]) == 1
    assert "head_boxes: the pack" in capsys.readouterr().err
    assert evaluate.main([*arguments, "--split_list", "other.txt"]) == 1
    assert "split_list: the pack" in capsys.readouterr().err


def test_without_head_boxes_a_pack_is_evaluated_without_a_score(checkpoint, data, renamed, tmp_path, capsys):
    arguments = ["--checkpoint", str(checkpoint), "--out", str(tmp_path / "out"), "--data_root"]
    assert evaluate.main([*arguments, str(renamed), "--head_boxes", ""]) == 0
    assert "no PCKh" in capsys.readouterr().out
    assert json.loads((tmp_path / "out/scores.json").read_text())["pckh"] is None
    bare = tmp_path / "bare"
    assert pack.main([str(data), str(bare), *SMALL, "--head_boxes", ""]) == 0
    assert evaluate.main([*arguments, str(bare)]) == 0
    assert "no PCKh" in capsys.readouterr().out
    assert evaluate.main([*arguments, str(bare), "--head_boxes", "annot/gt_valid.mat"]) == 1
    assert f"head_boxes: the pack {bare} has the data of '', got 'annot/gt_valid.mat'" in capsys.readouterr().err


def test_a_training_on_a_pack_is_written_down_with_the_annotations_of_the_pack(data, renamed, capsys):
    settings = settings_for(renamed)
    assert settings.data.valid_annotations == "annot/train.json"
    assert f"the pack {renamed} has the data of valid_annotations 'annot/train.json'" in capsys.readouterr().err
    assert settle({}, run=settings.as_plain()) == settings
    assert capsys.readouterr().err == ""
    # So an evaluation on the files finds the right ones.
    on_files = settle({"data_root": str(data)}, run=settings.as_plain())
    assert on_files.data.path("valid_annotations") == data / "annot/train.json"
    assert settle({}, run=on_files.as_plain()) == on_files
    with pytest.raises(PackError, match=r"train_annotations: the pack .* has the data of 'annot/train\.json'"):
        settings_for(renamed, train_annotations=str(data / "annot/train.json"))
    for head_boxes, scored in (("", False), ("annot/gt_valid.mat", True)):
        settings = settings_for(renamed, head_boxes=head_boxes)
        dataset = open_dataset(settings.data, settings.network.size)
        persons = dataset.read("valid")
        values = dataset.scorer(persons).score(persons.keypoints, persons.visible, np.ones(len(persons), bool))
        assert (values is not None) == scored
