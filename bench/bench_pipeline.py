# SPDX-License-Identifier: Apache-2.0
"""From 1280 x 720 images to batches: augmented, normalised 256 x 256 crops of one person each, with 64 x 64 targets.

fastpose from files, from a packed JPEG and a packed raw store, and from decoded images in memory, each in turns with
what a user has today: OpenCV and NumPy per sample in a DataLoader's workers. Times are per sample, in the middle of an
epoch; files are distinct and in the page cache.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import fastpose
from bench.cases import CROP, HEATMAP
from bench.cases.affine_crop import REAL_MPII
from bench.cpu import THREADS, Work, in_turns, spread
from bench.pipeline import write_pictures
from bench.train_step import Scale
from bench.user_loader import user_batches
from fastpose.data.augmentation import Augmentation
from fastpose.data.boxes import mpii_box, reductions
from fastpose.data.images import image_size
from fastpose.data.loader import PoseLoader
from fastpose.data.pack import Margins, Plan, read_packed_persons, write_pack
from fastpose.data.persons import Persons
from fastpose.data.pixels import ImageFiles, PackedImages, PixelSource, ResidentImages
from fastpose.skeletons import MPII

pytestmark = [
    pytest.mark.benchmark(group="pipeline, per sample"),
    # fastpose prepares batches in two threads whatever the number of decoders: on one it would be an unfair race.
    pytest.mark.skipif(THREADS < 2, reason="the pipeline is compared on two threads or more"),
]

BATCH, ROUNDS = 32, 7
# Of an epoch's batches some start workers and threads, some are timed, and some are left for those to go on with.
BEFORE, TIMED, AFTER = 4, 8, 4
FILES = BATCH * (BEFORE + TIMED + AFTER)
REAL_SIZE = (720, 1280)


class Dataset(NamedTuple):
    folder: Path
    persons: Persons  # FILES of them, each on a file of its own
    real: bool


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Copies of MPII's pictures of that size where they are available (FASTPOSE_REAL_DATA), else drawn ones."""
    folder = tmp_path_factory.mktemp("pictures")
    images = [path for path in sorted(REAL_MPII.glob("images/*.jpg")) if image_size(path) == REAL_SIZE]
    if not images:
        persons = write_pictures(
            folder, Scale(FILES, REAL_SIZE, BATCH, CROP, depth=18, seconds=1.0, steps=1, repeats=1)
        )
        return Dataset(folder, persons.select(np.arange(FILES)), False)
    names = {path.name: path for path in images}
    rows = json.loads((REAL_MPII / "annot/valid.json").read_text(encoding="utf-8"))
    found = [row for row in rows if row["image"] in names]
    chosen = [found[n % len(found)] for n in range(FILES)]
    paths = tuple(folder / f"{n:04d}.jpg" for n in range(FILES))
    for path, row in zip(paths, chosen, strict=True):
        shutil.copy(names[row["image"]], path)
    boxes = [mpii_box(np.array(row["center"], float), row["scale"]) for row in chosen]
    persons = Persons(
        image_paths=paths,
        image_index=np.arange(FILES),
        center=np.array([center for center, _ in boxes], np.float32),
        scale=np.array([(scale, scale) for _, scale in boxes], np.float32),
        keypoints=np.array([row["joints"] for row in chosen], np.float32) - 1,
        visible=np.array([row["joints_vis"] for row in chosen], np.float32),
        source_row=np.arange(FILES),
        skeleton=MPII,
    )
    return Dataset(folder, persons, True)


Batches = Generator[object, None, None]
Compare = Callable[..., None]


def targets(persons: Persons, source: PixelSource) -> Batches:
    """An epoch of crops and targets."""
    with closing(PoseLoader(persons, source, CROP, BATCH, augmentation=Augmentation()).epoch()) as batches:
        for batch in batches:
            yield fastpose.render_heatmaps(batch.keypoints, batch.visible, HEATMAP)


@contextmanager
def under_way(make: Callable[[], Batches]) -> Iterator[Work]:
    """Makes TIMED batches. Its threads and workers are gone afterwards, so that they take nothing from another."""
    with closing(make()) as batches:
        for _ in range(BEFORE):
            next(batches)

        def run() -> None:
            for _ in range(TIMED):
                next(batches)

        yield run


@pytest.fixture
def compare(benchmark: BenchmarkFixture, dataset: Dataset) -> Compare:
    """Times batches in turns with those of OpenCV in a DataLoader."""

    def opencv() -> Batches:
        return user_batches(dataset.persons, CROP, BATCH, THREADS, torch.device("cpu"))

    def run(make: Callable[[], Batches] = opencv) -> None:
        ratios = in_turns(benchmark, lambda: under_way(make), lambda: under_way(opencv), ROUNDS)
        benchmark.extra_info |= {
            "faster": spread([1 / ratio for ratio in ratios]),
            "samples": TIMED * BATCH,
            "inputs": "real images" if dataset.real else "drawn images",
        }

    return run


def test_opencv_and_dataloader(compare: Compare) -> None:
    compare()


def test_files_at_full_resolution(compare: Compare, dataset: Dataset) -> None:
    source = ImageFiles(dataset.persons.image_paths, THREADS)
    compare(lambda: targets(dataset.persons, source))


def test_fastpose(compare: Compare, dataset: Dataset) -> None:
    """From files, as training reads them by default: no finer than the crops need."""
    persons = dataset.persons
    source = ImageFiles(persons.image_paths, THREADS, reductions(persons, CROP, Augmentation().scale_min))
    compare(lambda: targets(persons, source))


@pytest.mark.parametrize("pixels", ["jpeg", "raw"])
def test_pack(compare: Compare, dataset: Dataset, pixels: str) -> None:
    augmentation, folder = Augmentation(), dataset.folder / pixels
    margins = Margins(CROP, augmentation.rotation, augmentation.scale_min, augmentation.scale_max, reduce=True)
    plan = Plan(pixels, 90, 1 << 28, {"train": margins}, {"train": dataset.persons.fingerprint()}, {})  # type: ignore[arg-type]
    write_pack(folder, plan, {"train": dataset.persons})
    persons = read_packed_persons(folder, "train")
    source = PackedImages(persons.image_paths, THREADS)
    for _ in targets(persons, source):  # compares the records' checksums, once
        pass
    compare(lambda: targets(persons, source))


def test_resident(compare: Compare, dataset: Dataset) -> None:
    source = ResidentImages.from_files(dataset.persons.image_paths, "cpu", THREADS)
    compare(lambda: targets(dataset.persons, source))
