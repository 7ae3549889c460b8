# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks share: inputs of a training batch's size, one number of threads for all, rounds in turns."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from time import perf_counter, sleep
from typing import Any, NamedTuple

import cv2
import numba
import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

import fastpose
from fastpose.data.images import read_image

BATCH, JOINTS = 32, 16
CROP, HEATMAP = (256, 256), (64, 64)
BESIDE = Path(__file__).resolve().parents[1].parent / "shared" / "data"
REAL_MPII = Path(os.environ.get("FASTPOSE_REAL_DATA", BESIDE)) / "mpii"
THREADS = int(os.environ.get("FASTPOSE_BENCH_THREADS", "1"))
BUDGET = 2.0  # seconds for a row, unless that is less than LEAST rounds
LEAST = 5
# Idle threads of one library spin for some milliseconds before they sleep, on the cores that the next one needs.
PAUSE = 0.01 if THREADS > 1 else 0.0
# The last results are kept, whoever made them, as by a loop that works on them. One that is dropped at once leaves warm
# memory, to which the next is written twice as fast, if it gets it: that hangs on addresses, which differ by process.
kept: deque[Any] = deque(maxlen=4)

Work = Callable[[], Any]
Ready = Callable[[], AbstractContextManager[Work]]  # gets everything ready for one timed call


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """What a reader of the results must know of the machine; its name and its kernel's are nobody's business."""
    del machine_info["node"], machine_info["release"]
    machine_info |= {
        "threads": THREADS,
        "simd": fastpose.build_info()["simd"],
        "torch": torch.__version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "numba": numba.__version__,
    }


@pytest.fixture(scope="session", autouse=True)
def settled_memory() -> None:
    """glibc's allocator as it is in a process that has worked for a while.

    Once a block of up to 32 MB was freed, it takes blocks of that size from memory that it keeps, and keeps twice as
    much. Before that they come from the kernel page by page, in some rows and not in others.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Every peer gets the same number of threads: FASTPOSE_BENCH_THREADS, one unless told."""
    before = torch.get_num_threads()
    cv2.setNumThreads(THREADS)
    numba.set_num_threads(THREADS)
    torch.set_num_threads(THREADS)  # last: numba, when it starts its threads, gives OpenMP as many as there are cores
    yield
    torch.set_num_threads(before)


def seconds(work: Work) -> float:
    """How long one call takes; its result is kept for some more."""
    start = perf_counter()
    result = work()
    taken = perf_counter() - start
    kept.append(result)
    return taken


def in_turns(benchmark: BenchmarkFixture, row: Ready, partner: Ready, rounds: int) -> list[float]:
    """Times `row` in pytest-benchmark's rounds, each right after `partner`; by round, the row's time / the partner's.

    A clock that changes its pace then changes both.
    """
    of_row: list[float] = []
    of_partner: list[float] = []
    with ExitStack() as ready:

        def setup() -> tuple[tuple[Work], dict[str, Any]]:
            with partner() as work:
                of_partner.append(seconds(work))
            return (ready.enter_context(row()),), {}

        benchmark.pedantic(
            lambda work: of_row.append(seconds(work)), setup=setup, teardown=lambda work: ready.close(), rounds=rounds
        )
    return [one / other for one, other in zip(of_row, of_partner, strict=True)]


def spread(ratios: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = np.percentile(ratios, [25, 50, 75]).tolist()
    return {"q1": low, "median": median, "q3": high}


@contextmanager
def warm(work: Work) -> Iterator[Work]:
    """`work` after one call: its inputs are in the caches and its threads awake, whatever its partner does."""
    sleep(PAUSE)
    seconds(work)
    yield work


class Own(NamedTuple):
    """The op of a file of benchmarks, as fastpose does it."""

    run: Work
    moved: int  # bytes that it must read and write
    inputs: str


Compare = Callable[..., None]


@pytest.fixture
def compare(benchmark: BenchmarkFixture, own: Own) -> Compare:
    """Times a row in turns with `own`, which is a fixture of the file: see compare_with."""
    return partial(compare_with, benchmark, own)


def compare_with(benchmark: BenchmarkFixture, own: Own, peer: Work, atol: float | None = 1e-3) -> None:
    """Times `peer` in turns with `own`, once their results are found equal.

    `atol` is by how much they may differ; None: the peer does less than the op. It may leave out later results.
    """
    if atol is not None:
        assert_same(peer(), own.run(), atol)
    with warm(peer), warm(own.run):
        both = 2 * (seconds(peer) + seconds(own.run) + PAUSE)
    ratios = in_turns(benchmark, lambda: warm(peer), lambda: warm(own.run), max(LEAST, int(BUDGET / both)))
    benchmark.extra_info |= {"faster": spread(ratios), "bytes": own.moved, "inputs": own.inputs}


def assert_same(got: Any, expected: Any, atol: float) -> None:
    """Compares tensors, arrays or numbers, or the first of several."""
    every = [result if isinstance(result, tuple) else (result,) for result in (got, expected)]
    for one, other in zip(*every, strict=False):
        one, other = (value.detach().numpy() if isinstance(value, Tensor) else value for value in (one, other))
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=atol)


def copy_of(moved: int) -> Work:
    """Reads half of `moved` bytes and writes the other half: what the memory allows."""
    return torch.ones(moved // 2, dtype=torch.uint8).clone


def on_one_thread(work: Work) -> Work:
    """The same with one of torch's threads instead of THREADS."""

    def run() -> Any:
        torch.set_num_threads(1)
        try:
            return work()
        finally:
            torch.set_num_threads(THREADS)

    return run


several_threads = pytest.mark.skipif(THREADS < 2, reason="one thread is all there is")


class Crops(NamedTuple):
    images: list[np.ndarray]
    batch: fastpose.ImageBatch
    image_index: Tensor
    crop_to_image: Tensor
    color: Tensor
    real: bool


@pytest.fixture(scope="session")
def crops() -> Crops:
    """32 boxes of 150 to 600 px on five images: MPII's where they are at hand (FASTPOSE_REAL_DATA), else noise."""
    images = [read_image(path) for path in sorted(REAL_MPII.glob("images/*.jpg"))[:5]]
    real = bool(images)
    if not real:
        images = [np.random.default_rng(n).integers(0, 256, (720, 1280, 3), dtype=np.uint8) for n in range(5)]
    generator = torch.Generator().manual_seed(0)
    index = torch.arange(BATCH) % len(images)
    extent = torch.tensor([images[n].shape[1::-1] for n in index.tolist()])
    center = extent * (0.3 + 0.4 * torch.rand(BATCH, 2, generator=generator))
    scale = 0.75 + 2.25 * torch.rand(BATCH, generator=generator)
    rotation = 60 * torch.rand(BATCH, generator=generator) - 30
    matrix = fastpose.crop_to_image_matrix(center, scale, rotation, CROP)
    color = fastpose.normalize_color(fastpose.IMAGENET_MEAN, fastpose.IMAGENET_STD)
    return Crops(images, fastpose.ImageBatch.from_list(images), index, matrix, color, real)


class Maps(NamedTuple):
    keypoints: Tensor
    visible: Tensor
    pred: Tensor
    matrix: Tensor


@pytest.fixture(scope="session")
def maps() -> Maps:
    """Joints anywhere on the map, and maps as a half-trained network gives them: the target under noise."""
    generator = torch.Generator().manual_seed(0)
    keypoints = torch.rand(BATCH, JOINTS, 2, generator=generator) * 64
    visible = torch.ones(BATCH, JOINTS)
    pred = fastpose.render_heatmaps(keypoints, visible, HEATMAP)[0]
    pred += 0.05 * torch.randn(pred.shape, generator=generator)
    matrix = fastpose.crop_to_image_matrix(keypoints[:, 0] * 10, torch.ones(BATCH), 10.0, HEATMAP)
    return Maps(keypoints, visible, pred, matrix)
