# SPDX-License-Identifier: Apache-2.0
"""The benchmarks: peers do the work they are timed for, rounds are paired, and the page says what was measured."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from fastpose.data.pixel_sources import ImageFiles

from bench import conftest, lock, numba_peers, tables, vectorized
from bench.bench_decode_dark import KERNEL, mmpose_dark
from bench.bench_decode_heatmaps import two_stages
from bench.bench_render_heatmaps import pasted
from bench.tables import COPY, CROP, DECODE, GOALS, LOSS, ONE_THREAD, OWN, PIPELINE, RENDER, Goal
from fastpose import ImageBatch, reference
from fastpose.skeletons import MPII
from tests.helpers import upstream
from tests.helpers.ops import predicted_maps, random_images, random_maps, random_matrices, random_points

INF, NAN = float("inf"), float("nan")
SEEDS = range(8)


def assert_close(got: tuple[torch.Tensor, ...], expected: tuple[np.ndarray, ...], atol: float = 1e-5) -> None:
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one.cpu().numpy(), other, rtol=1e-5, atol=atol)


@pytest.mark.parametrize("seed", SEEDS)
def test_vectorized_crop(device: torch.device, seed: int) -> None:
    images, matrix = random_images(3, seed), random_matrices(4, seed)
    matrix[seed % 4, seed % 2, seed % 3] = [NAN, INF, 1e30, 0.0][seed % 4]
    batch, index = ImageBatch.from_list(images).to(device), torch.tensor([2, 0, 0, 1], device=device)
    color = torch.tensor([[0.5, 0.25, 0, 1], [0, 1, 0, -2], [0, 0, 1, 0]])
    out = vectorized.affine_crop(
        batch.data, batch.offsets, batch.sizes, matrix.to(device), (9, 11), image_index=index, color=color, fill=3.0
    )
    options = {"image_index": index.cpu().numpy(), "color": color.numpy(), "fill": 3.0}
    assert_close((out,), (reference.affine_crop(images, matrix.numpy(), (9, 11), **options),), atol=0.05)
    dense = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (4, 8, 7, 3), dtype=np.uint8)).to(device)
    out = vectorized.affine_crop(dense, None, None, matrix.to(device), (9, 11))
    assert_close((out,), (reference.affine_crop(dense.cpu(), matrix, (9, 11)),), atol=0.05)


@pytest.mark.parametrize("encoding", ["msra", "unbiased", "udp"])
@pytest.mark.parametrize("seed", SEEDS)
def test_vectorized_targets_and_loss(device: torch.device, encoding: str, seed: int) -> None:
    points, visible = random_points(3, 5, (13, 18), seed)
    points[0, seed % 5, seed % 2] = [NAN, INF, -INF, 3e38][seed % 4]
    options = {"sigma": 1.0 + seed % 3, "encoding": encoding}
    got = vectorized.render_heatmaps(points.to(device), visible.to(device), (13, 18), **options)
    assert_close(got, reference.render_heatmaps(points, visible, (13, 18), **options))
    pred, joint_weights = torch.randn(3, 5, 13, 18), torch.rand(5)
    for missing in ("zeros", "ignore"):
        options["missing"] = missing
        loss = vectorized.heatmap_mse_loss(
            pred.to(device), points.to(device), visible.to(device), joint_weights=joint_weights.to(device), **options
        )
        expected = reference.heatmap_mse_loss(pred, points, visible, joint_weights=joint_weights, **options)
        assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("refine", ["none", "quarter"])
@pytest.mark.parametrize("seed", SEEDS)
def test_vectorized_decode(device: torch.device, refine: str, seed: int) -> None:
    maps, mirrored = random_maps((2, 16, 7, 9), seed), random_maps((2, 16, 7, 9), seed + 1)
    maps[0, seed, 3, 4], maps[0, seed + 1], maps[1, seed, 2:4, 3] = NAN, NAN, INF
    matrix = torch.randn(2, 2, 3)
    options = {"refine": refine, "heatmap_to_image": matrix.numpy()}
    got = vectorized.decode_heatmaps(maps.to(device), refine=refine, heatmap_to_image=matrix.to(device))
    assert_close(got, reference.decode_heatmaps(maps, **options))
    flip = {"flip_pairs": MPII.mirror_pairs, "flip_shift": bool(seed % 2)}
    got = vectorized.decode_heatmaps(maps.to(device), refine=refine, flipped=mirrored.to(device), **flip)
    assert_close(got, reference.decode_heatmaps(maps, refine=refine, flipped=mirrored, **flip))


@pytest.mark.parametrize("seed", SEEDS)
def test_pasted_targets(seed: int) -> None:
    points, visible = random_points(3, 5, (13, 18), seed)
    points = points.clamp(-100, 100)
    assert_close((pasted(points, visible, (13, 18)),), reference.render_heatmaps(points, visible, (13, 18))[:1])


@pytest.mark.parametrize("seed", SEEDS)
def test_decoding_in_two_stages_and_in_numba(seed: int) -> None:
    maps, matrix = (
        torch.randint(-3, 4, (2, 16, 7, 9), generator=torch.Generator().manual_seed(seed)),
        torch.randn(2, 2, 3),
    )
    maps = (maps - 4 * (seed % 2)).float()  # ties, and in every second case nothing above 0
    expected = reference.decode_heatmaps(maps, heatmap_to_image=matrix.numpy())
    assert_close(two_stages(maps, heatmap_to_image=matrix), expected)
    points, scores = np.empty((2, 16, 2), np.float32), np.empty((2, 16), np.float32)
    numba_peers.decode_heatmaps.py_func(maps.numpy(), matrix.numpy(), points, scores)
    np.testing.assert_allclose(points, expected[0], atol=1e-5)
    np.testing.assert_array_equal(scores, expected[1])


@pytest.mark.parametrize("seed", SEEDS)
def test_dark_as_mmpose_has_it_and_in_plain_torch(device: torch.device, seed: int) -> None:
    maps = predicted_maps(2.0, (24, 18), seed, 0.02)
    maps[0, 0] = -1.0
    points = mmpose_dark(maps.numpy())
    for n, k in np.ndindex(8, 16):
        expected, _ = upstream.dark(maps[n, k].numpy(), KERNEL)
        np.testing.assert_allclose(points[n, k], expected, rtol=0, atol=1e-4)
    options: dict[str, Any] = {"refine": "dark", "blur_kernel": KERNEL}
    found = vectorized.decode_heatmaps(maps.to(device), **options)
    assert_close(found, reference.decode_heatmaps(maps, **options))
    np.testing.assert_allclose(found[0].cpu().numpy(), points, rtol=0, atol=1e-3)


@pytest.mark.parametrize("seed", SEEDS)
def test_cropping_in_numba(seed: int) -> None:
    images, matrix = random_images(3, seed), random_matrices(4, seed)
    batch, index = ImageBatch.from_list(images), torch.tensor([2, 0, 0, 1])
    color = torch.tensor([[0.5, 0.25, 0, 1], [0, 1, 0, -2], [0, 0, 1, 0]])
    arguments = [t.numpy() for t in (batch.data, batch.offsets, batch.sizes, matrix, index, color)]
    out = np.empty((4, 3, 9, 11), np.float32)
    numba_peers.affine_crop.py_func(*arguments, out)
    expected = reference.affine_crop(images, matrix, (9, 11), image_index=index.numpy(), color=color.numpy())
    np.testing.assert_allclose(out, expected, atol=0.05)


class Benchmark:
    """Stands in for pytest-benchmark's fixture: calls what it would call, and keeps `extra_info`."""

    def __init__(self) -> None:
        self.extra_info: dict[str, Any] = {}

    def pedantic(self, target: Callable[..., object], *, setup: Any, teardown: Any, rounds: int) -> None:
        for _ in range(rounds):
            args, kwargs = setup()
            target(*args, **kwargs)
            teardown(*args, **kwargs)


class Clock:
    """Runs only while work is done, and every call of any work is slower than the one before."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.calls = 0.0, ""
        monkeypatch.setattr(conftest, "perf_counter", lambda: self.now)

    def work(self, name: str, cost: float, result: object = None) -> Callable[[], object]:
        def run() -> object:
            self.calls += name
            self.now += cost * len(self.calls)
            return result

        return run


def test_rounds_are_paired(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    peer, own = clock.work("p", 3), clock.work("o", 1)
    ratios = conftest.in_turns(Benchmark(), lambda: conftest.warm(peer), lambda: conftest.warm(own), 3)
    assert clock.calls == "oopp" * 3
    # Timed are calls 2 and 4, 6 and 8, 10 and 12.
    assert ratios == pytest.approx([3 * 4 / 2, 3 * 8 / 6, 3 * 12 / 10])
    assert conftest.spread(ratios) == pytest.approx({"q1": 3.8, "median": 4.0, "q3": 5.0})


def test_a_row_says_what_it_was_compared_with(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, benchmark = Clock(monkeypatch), Benchmark()
    own = conftest.Own(clock.work("o", 1e-3, torch.ones(3)), 24, "ones")
    conftest.compare_with(benchmark, own, clock.work("p", 2e-3, (np.ones(3), "unseen")))
    assert benchmark.extra_info["faster"].keys() == {"q1", "median", "q3"}
    assert 2 < benchmark.extra_info["faster"]["median"] < 4
    assert (benchmark.extra_info["bytes"], benchmark.extra_info["inputs"]) == (24, "ones")
    with pytest.raises(AssertionError):
        conftest.compare_with(benchmark, own, clock.work("p", 2e-3, np.full(3, 1.1)))


def benchmarks(group: str, rows: dict[str, tuple[float, float, float]], **extra: Any) -> list[dict[str, Any]]:
    """What pytest-benchmark saves of `rows`, name: median, IQR and how many times as fast fastpose is; ± a tenth."""
    return [
        {
            "group": group,
            "name": f"test_{name}",
            "stats": {"median": median, "iqr": iqr},
            "extra_info": {"faster": {"q1": 0.9 * ratio, "median": ratio, "q3": 1.1 * ratio}, "inputs": "noise"}
            | extra,
        }
        for name, (median, iqr, ratio) in rows.items()
    ]


RENDERED = {
    OWN: (1e-3, 1e-4, 1.0),
    "numba": (0.5e-3, 2e-4, 0.5),
    "simple_baselines": (25e-3, 1e-3, 25.0),
    "limit_torch_zeros": (0.8e-3, 1e-4, 0.7),
    COPY: (0.4e-3, 1e-5, 0.4),
}


def save(folder: Path, name: str, threads: int, date: str, rows: list[dict[str, Any]]) -> None:
    machine = {"threads": threads, "cpu": {"brand_raw": "A processor", "count": 2}, "simd": "plain"}
    machine |= {"torch": "1", "numpy": "2", "opencv": "3", "numba": "4"}
    results = {"machine_info": machine, "commit_info": {"id": "0123456789", "dirty": False}, "datetime": date}
    (folder / "machine").mkdir(exist_ok=True)
    (folder / "machine" / name).write_text(json.dumps(results | {"benchmarks": rows}), encoding="utf-8")


@pytest.fixture
def page(tmp_path: Path) -> list[str]:
    """Lines of the page of a run on each number of threads; beside them older ones, and one that was not in turns."""
    rendered = benchmarks(RENDER, RENDERED, bytes=8_000_000)
    save(tmp_path, "1.json", 1, "2026-01-01", benchmarks(RENDER, {OWN: (7e-3, 7e-3, 1.0)}, bytes=8_000_000))
    save(tmp_path, "2.json", 1, "2026-01-02", rendered)
    save(tmp_path, "3.json", 1, "2026-01-03", [row | {"extra_info": {}} for row in rendered])
    two = {name: (median / 1.6, iqr / 1.6, ratio) for name, (median, iqr, ratio) in RENDERED.items()}
    rows = benchmarks(RENDER, two | {ONE_THREAD: (1e-3, 1e-5, 1.6)}, bytes=8_000_000)
    rows += benchmarks(PIPELINE, {"pack[raw]": (0.064, 1e-3, 16.0), OWN: (0.64, 1e-2, 1.5)}, samples=64)
    save(tmp_path, "4.json", 2, "2026-01-02", rows)
    return tables.page(tables.newest(tmp_path)).splitlines()


def test_the_page_shows_speed_share_and_noise(page: list[str]) -> None:
    assert "A processor, 2 cores, SIMD plain; torch 1, NumPy 2, OpenCV 3, numba 4; commit 0123456, 2026-01-02." in page
    # 8 MB in 1 ms; fastpose takes 1 / 0.4 of the copy's time, numba 0.5 / 0.4 of it.
    assert "| **fastpose** | 1000 µs | 100 µs | 8.0 | 40% | 1× (0.9–1.1) |" in page
    assert "| numba | 500 µs | 200 µs, *noisy* | 16.0 | 80% | 0.5× (0.45–0.55) |" in page
    assert "| limit copy | 400 µs | 10 µs | 20.0 | 100% | 0.4× (0.36–0.44) |" in page
    assert "| pack[raw] | 1000 µs | 16 µs |  |  | 16× (14.4–17.6) |" in page
    assert not any("7000 µs" in line for line in page)


def test_the_page_judges_goals_and_losses(page: list[str]) -> None:
    expected = [
        f"| {RENDER} | at least 20× as fast as simple baselines | 25× (22.5–27.5): met | 25× (22.5–27.5): met |",
        f"| {RENDER} | at most 1.5× the time of limit torch zeros | 1.43× (1.3–1.59): met, in doubt |"
        " 1.43× (1.3–1.59): met, in doubt |",
        f"| {RENDER} | never slower than numba | 0.5× (0.45–0.55): **missed** | 0.5× (0.45–0.55): **missed** |",
        f"| {RENDER} | on 2 threads at least 1.8× as fast as on one |  | 1.6× (1.44–1.76): **missed** |",
        f"| {PIPELINE} | files: at least 2× OpenCV in a DataLoader |  | 1.5× (1.35–1.65): **missed** |",
        f"| {PIPELINE} | pack[raw]: at least 15× OpenCV in a DataLoader |  | 16× (14.4–17.6): met, in doubt |",
    ]
    first = page.index("|---|---|---|---|") + 1
    assert sorted(page[first : first + len(expected)]) == sorted(expected)
    assert page[first + len(expected)] == ""


def test_the_page_shows_scaling(page: list[str]) -> None:
    assert f"| {RENDER} | 1.6× (1.44–1.76) | 1.60× |  |  | 1.60× | 1.60× |" in page


@pytest.mark.parametrize("threads", [(), (2,), (1, 2)])
def test_a_group_stands_on_the_page_where_it_was_measured(tmp_path: Path, threads: tuple[int, ...]) -> None:
    group = "decode_heatmaps dark"
    for each in (1, 2):
        rows = benchmarks(RENDER, RENDERED, bytes=8_000_000)
        rows += benchmarks(group, {OWN: (1e-3, 1e-4, 1.0), "mmpose": (40e-3, 1e-3, 40.0)}) if each in threads else []
        save(tmp_path, f"{each}.json", each, "2026-01-01", rows)
    lines = tables.page(tables.newest(tmp_path)).splitlines()
    assert (
        lines.count(f"### {group}") == lines.count("| mmpose | 40.0 ms | 1000 µs |  |  | 40× (36–44) |") == len(threads)
    )
    assert lines.count(f"| {group} |  | 1.00× |  |  |  |  |") == (threads == (1, 2))
    assert lines.count(f"### {RENDER}") == 2


def test_the_chart_has_a_panel_per_group(tmp_path: Path) -> None:
    results = {"benchmarks": benchmarks(RENDER, RENDERED) + benchmarks(PIPELINE, {OWN: (1.0, 0.1, 2.0)}, samples=64)}
    tables.draw(tables.groups_of(results), "heading", tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


def test_every_goal_is_measured() -> None:
    files = {CROP: "affine_crop", RENDER: "render_heatmaps", DECODE: "decode_heatmaps", LOSS: "heatmap_mse_loss"}
    for goal in GOALS:
        module = importlib.import_module(f"bench.bench_{files.get(goal.group, 'pipeline')}")
        (group,) = [mark.kwargs["group"] for mark in marks(module) if mark.name == "benchmark"]
        name, _, way = goal.row.partition("[")
        parameters = [mark for mark in marks(getattr(module, f"test_{name}")) if mark.name == "parametrize"]
        ways = [str(way) for mark in parameters for way in mark.kwargs.get("ids", mark.args[1])]
        assert group == goal.group
        assert way.rstrip("]") in (ways or [""])


def marks(of: object) -> list[pytest.Mark]:
    found = getattr(of, "pytestmark", [])
    return [getattr(mark, "mark", mark) for mark in (found if isinstance(found, list) else [found])]


@pytest.mark.parametrize(
    ("bound", "ratio", "verdict"),
    [
        (3.0, 4.0, "4× (3.6–4.4): met"),
        (3.0, 3.2, "3.2× (2.88–3.52): met, in doubt"),
        (3.0, 2.8, "2.8× (2.52–3.08): **missed**, in doubt"),
        (3.0, 2.0, "2× (1.8–2.2): **missed**"),
        (0.5, 0.8, "1.25× (1.14–1.39): met"),
        (0.5, 0.4, "2.5× (2.27–2.78): **missed**"),
    ],
)
def test_verdicts(bound: float, ratio: float, verdict: str) -> None:
    row = tables.Row(1.0, 0.1, None, ratio, 0.9 * ratio, 1.1 * ratio, "noise")
    assert Goal(DECODE, "peer", bound).verdict(row) == verdict


def test_the_lock_is_measured_while_images_are_loaded(tmp_path: Path) -> None:
    decode = cv2.imdecode
    source = ImageFiles(lock.write_files(tmp_path), 2)
    row = lock.measure(source, rate=2000, threads=2, seconds=0.2, rounds=1)
    assert row.rate > 0
    assert row.times == pytest.approx(row.busy / row.idle)
    assert cv2.imdecode is decode


def test_an_error_while_images_are_loaded_is_an_error_of_the_lock_s_measurement(tmp_path: Path) -> None:
    source = ImageFiles([tmp_path / "absent.jpg"], 2)  # has none of the batch's other images
    with pytest.raises(IndexError):
        lock.measure(source, rate=2000, threads=2, seconds=0.1, rounds=1)
