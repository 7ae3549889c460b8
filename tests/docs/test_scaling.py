# SPDX-License-Identifier: Apache-2.0
"""The pixel source that docs/scaling.md shows has the pixels of ImageFiles, from wherever it reads them."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest
import torch

from bench.remote import page_code, web_server
from fastpose.data.augmentation import Augmentation
from fastpose.data.images import BadImageError
from fastpose.data.loader import Batch, PoseLoader
from fastpose.data.mpii import read_mpii
from fastpose.data.persons import Persons
from fastpose.data.pixels import ImageFiles
from tests.helpers.tiny_mpii import write_tiny_mpii

CPU = torch.device("cpu")
OPTIONS = {"augmentation": Augmentation(), "seed": 7}


@pytest.fixture(scope="module")
def code() -> SimpleNamespace:
    return page_code()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_tiny_mpii(tmp_path / "mpii", persons=6)


@pytest.fixture
def persons(root: Path) -> Persons:
    return read_mpii(root / "annot/train.json", root / "images")


@pytest.fixture(params=["memory", "file", "http"])
def url(request: pytest.FixtureRequest, root: Path) -> Iterator[str]:
    """The pictures' folder, elsewhere."""
    if request.param == "file":
        yield f"file://{root / 'images'}"
    elif request.param == "http":
        pytest.importorskip("aiohttp")
        with web_server(root / "images") as address:
            yield address
    else:
        memory = fsspec.filesystem("memory")
        for path in (root / "images").iterdir():
            memory.pipe_file(f"/pictures/{path.name}", path.read_bytes())
        yield "memory://pictures"
        memory.rm("/pictures", recursive=True)


def batches(loader: PoseLoader) -> list[Batch]:
    return [batch for epoch in range(2) for batch in loader.epoch(epoch)]


def assert_equal_batches(loader: PoseLoader, persons: Persons) -> None:
    expected = batches(PoseLoader(persons, ImageFiles(persons.image_paths), (64, 64), 4, **OPTIONS))
    found = batches(loader)
    assert len(found) == len(expected) == 4
    for got, wanted in zip(found, expected, strict=True):
        for name in ("rows", "images", "keypoints", "visible", "heatmap_to_image"):
            assert torch.equal(getattr(got, name), getattr(wanted, name)), name


def test_batches_from_elsewhere_are_those_of_files(code, root, persons, url, tmp_path):
    away = read_mpii(root / "annot/train.json", tmp_path / "nowhere", missing_images="keep")
    assert_equal_batches(code.remote_loader(away, tmp_path / "nowhere", url, (64, 64), 4, **OPTIONS), persons)


def write_shards(paths: tuple[Path, ...], folder: Path) -> None:
    for number in range(2):
        with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
            for path in paths[number::2]:
                for file in (path, path.with_suffix(".json")):  # a sample of webdataset: files of one name
                    file.touch()
                    tar.add(file, arcname=file.name)


def test_batches_from_shards_are_those_of_files(code, root, persons, url):
    write_shards(persons.image_paths, root / "images")
    filesystem, base = fsspec.url_to_fs(url)
    shards = [f"{base}/{number:05d}.tar" for number in range(2)]
    if url.startswith("memory"):
        for shard in shards:
            filesystem.pipe_file(shard, (root / "images" / Path(shard).name).read_bytes())
    places = code.tar_places(filesystem, shards)
    assert len(places) == 2 * len(persons.image_paths)
    source = code.RemoteImages(filesystem, [places[path.name] for path in persons.image_paths], threads=3)
    assert_equal_batches(PoseLoader(persons, source, (64, 64), 4, **OPTIONS), persons)


def test_shards_of_webdataset_have_places_too(code, persons, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "0.tar")) as writer:
        for path in persons.image_paths:
            writer.write({"__key__": path.stem, "jpg": path.read_bytes(), "json": b"{}"})
    filesystem = fsspec.filesystem("file")
    places = code.tar_places(filesystem, [str(tmp_path / "0.tar")])
    source = code.RemoteImages(filesystem, [places[path.name] for path in persons.image_paths])
    assert_equal_batches(PoseLoader(persons, source, (64, 64), 4, **OPTIONS), persons)


def test_bad_images_elsewhere_are_bad_images(code, root, persons, url):
    filesystem, base = fsspec.url_to_fs(url)
    whole = persons.image_paths[0].read_bytes()
    (root / "images/cut.jpg").write_bytes(whole[:-30])
    if url.startswith("memory"):
        filesystem.pipe_file(f"{base}/cut.jpg", whole[:-30])
    names = [persons.image_paths[0].name, "absent.jpg", "cut.jpg"]
    places = [(f"{base}/{name}", None, None) for name in names]
    pixels = code.RemoteImages(filesystem, [*places, (places[0][0], 0, 40)]).load(torch.tensor([3, 0, 1, 2, 0]), CPU)
    assert pixels.errors.keys() == {1, 2, 3}
    assert all(isinstance(error, BadImageError) for error in pixels.errors.values())
    assert str(pixels.errors[1]) == f"{base}/absent.jpg: not found"
    assert "cut.jpg: truncated" in str(pixels.errors[2])
    assert ", bytes 0 to 40: truncated" in str(pixels.errors[3])
    expected = ImageFiles(persons.image_paths).load(torch.tensor([0]), CPU)
    for at in pixels.index[[1, 4]].tolist():
        np.testing.assert_array_equal(pixels.images[at], expected.images[0])


def test_a_network_that_fails_is_no_bad_image(code):
    class Unplugged:
        def cat_file(self, *place):
            raise ConnectionError("no route to host")

    with pytest.raises(ConnectionError, match="no route"):
        code.RemoteImages(Unplugged(), [("a.jpg", None, None)]).load(torch.tensor([0]), CPU)
