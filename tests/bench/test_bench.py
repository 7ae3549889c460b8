# SPDX-License-Identifier: Apache-2.0
"""The benchmarks: peers do the work they are timed for, rounds are paired, and the page says what was measured."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import fastpose
from bench import bench_pipeline, cases, cpu, gpu, lock, page
from bench.cases import (
    Case,
    Joints,
    Peer,
    Run,
    affine_crop,
    decode_heatmaps,
    decode_simcc,
    heatmap_mse_loss,
    render_heatmaps,
    simcc_loss,
)
from bench.cpu import COPY, ONE_THREAD, OWN
from bench.page import DECODE, GOALS, PIPELINE, RENDER, Goal
from fastpose import ImageBatch
from fastpose.data.pixels import ImageFiles
from fastpose.skeletons import MPII
from tests.helpers.ops import predicted_maps, random_images, random_maps, random_matrices, random_points

INF, NAN = float("inf"), float("nan")
SEEDS = range(8)
SIZE = (13, 18)


def crop_case(device: torch.device, seed: int) -> Case:
    images = ImageBatch.from_list(random_images(3, seed)).to(device)
    matrix, index = random_matrices(4, seed).to(device), torch.tensor([2, 0, 0, 1], device=device)
    return affine_crop.make(affine_crop.Work(images, [matrix], [index], (9, 11)), 1)


def joints_of(device: torch.device, seed: int) -> Joints:
    points, visible = random_points(3, 5, SIZE, seed)
    return Joints(points.clamp(-100, 100).to(device), (visible > 0.5).float().to(device))


def render_case(device: torch.device, seed: int, **options: Any) -> Case:
    return render_heatmaps.make(render_heatmaps.Work([joints_of(device, seed)], SIZE, torch.float32, **options))


def loss_case(device: torch.device, seed: int, **options: Any) -> Case:
    pred = torch.randn(3, 5, *SIZE, generator=torch.Generator().manual_seed(seed)).to(device).requires_grad_()
    work = heatmap_mse_loss.Work([joints_of(device, seed)], [pred], torch.ones((), device=device), **options)
    return heatmap_mse_loss.make(work)


def decode_case(maps: torch.Tensor, mirrored: torch.Tensor | None = None, **options: Any) -> Case:
    matrix = torch.randn(len(maps), 2, 3, generator=torch.Generator().manual_seed(1)).to(maps.device)
    return decode_heatmaps.make(decode_heatmaps.Work([maps], [matrix], [mirrored], **options))


def assert_equal_work(case: Case, peers: dict[str, Peer], *left_out: str) -> None:
    """Every peer that needs no compiling gives what fastpose gives; there must be some."""
    names = [
        name
        for name, peer in peers.items()
        if peer.atol is not None and "cpu" in peer.devices and "compile" not in name and name != "kornia"
    ]
    names = [name for name in names if name not in left_out]
    assert names
    own = case.own(0)
    for name in names:
        peer = peers[name].make(case.work)(0)
        cpu.assert_same(peer, own, peers[name].atol)
        # And it would be noticed if a peer left one of its results out.
        results = peer if isinstance(peer, tuple) else (peer,)
        for n, result in enumerate(results):
            zeros = result * 0
            with pytest.raises(AssertionError):
                cpu.assert_same((*results[:n], zeros, *results[n + 1 :]), own, peers[name].atol)


@pytest.fixture(autouse=True)
def numba_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (affine_crop, decode_heatmaps, heatmap_mse_loss, render_heatmaps):
        monkeypatch.setattr(module, "numba_loop", module.numba_loop.py_func)


@pytest.mark.parametrize("seed", SEEDS)
def test_peers_do_equal_work(seed: int) -> None:
    """Crops and joints beside the image and the map, and maps with ties, in every second case nothing above 0."""
    # The others round coordinates more coarsely, which shows where a matrix is as odd as these.
    assert_equal_work(crop_case(cases.CPU, seed), affine_crop.PEERS, "opencv", "opencv_tuned", "grid_sample")
    assert_equal_work(render_case(cases.CPU, seed), render_heatmaps.PEERS)
    assert_equal_work(loss_case(cases.CPU, seed), heatmap_mse_loss.PEERS)
    maps = torch.randint(-3, 4, (2, 16, 7, 9), generator=torch.Generator().manual_seed(seed)) - 4 * (seed % 2)
    assert_equal_work(decode_case(maps.float()), decode_heatmaps.PEERS)
    dark = predicted_maps(2.0, (24, 18), seed, 0.02)
    dark[0, 0] = -1.0
    assert_equal_work(decode_case(dark, refine="dark"), decode_heatmaps.DARK_PEERS)
    assert_equal_work(simcc_loss.case(cases.CPU, 2, dtype=torch.float32), simcc_loss.PEERS)
    for refine, peers in (("none", decode_simcc.PEERS), ("dark", decode_simcc.DARK)):
        assert_equal_work(decode_simcc.case(cases.CPU, 2, dtype=torch.float32, refine=refine), peers)


def test_peers_do_equal_work_on_upright_and_turned_boxes(device: torch.device) -> None:
    images = [np.random.default_rng(n).integers(0, 256, (120, 160 + n, 3), dtype=np.uint8) for n in range(3)]
    batch, index = ImageBatch.from_list(images).to(device), torch.tensor([2, 0, 0, 1], device=device)
    turns, center = torch.tensor([0.0, 30.0, -25.0, 10.0]), torch.full((4, 2), 70.0)
    matrix = fastpose.crop_to_image_matrix(center, torch.full((4,), 0.5), turns, (64, 64)).to(device)
    case = affine_crop.make(affine_crop.Work(batch, [matrix], [index], (64, 64)), 1)
    if device.type == "cpu":
        assert_equal_work(case, affine_crop.PEERS)
    grid_sample = affine_crop.PEERS["grid_sample"]
    cpu.assert_same(grid_sample.make(case.work)(0), case.own(0), affine_crop.GRID)


@pytest.mark.parametrize("encoding", ["msra", "unbiased", "udp"])
@pytest.mark.parametrize("seed", SEEDS)
def test_plain_torch_does_what_the_op_does_with_odd_values(device: torch.device, encoding: str, seed: int) -> None:
    """NaN, infinities and numbers that no index holds, on every device that the report may run on."""
    crop = crop_case(device, seed)
    crop.work.matrix[0][seed % 4, seed % 2, seed % 3] = [NAN, INF, 1e30, 0.0][seed % 4]
    options = {"sigma": 1.0 + seed % 3, "encoding": encoding}
    render, loss = render_case(device, seed, **options), loss_case(device, seed, **options)
    for case in (render, loss):
        case.work.joints[0].keypoints[0, seed % 5, seed % 2] = [NAN, INF, -INF, 3e38][seed % 4]
    maps, mirrored = random_maps((2, 16, 7, 9), seed), random_maps((2, 16, 7, 9), seed + 1).to(device)
    maps[0, seed, 3, 4], maps[0, seed + 1], maps[1, seed, 2:4, 3] = NAN, NAN, INF
    refine, flip = ["none", "quarter"][seed % 2], {"flip_pairs": MPII.mirror_pairs, "flip_shift": True}
    decode = decode_case(maps.to(device), refine=refine)
    flip_test = decode_case(maps.to(device), mirrored, refine=refine, flip=flip)
    crops, maps_, losses = affine_crop.PEERS, render_heatmaps.PEERS, heatmap_mse_loss.PEERS
    fallback = decode_heatmaps.PEERS["plain_torch[the fallback]"]
    cpu.assert_same(crops["plain_torch"].make(crop.work)(0), crop.own(0), 0.05)
    cpu.assert_same(maps_["plain_torch[products]"].make(render.work)(0), render.own(0), 1e-5)
    cpu.assert_same(losses["plain_torch[squares]"].make(loss.work)(0), loss.own(0), 1e-5)
    for case in (decode, flip_test):
        cpu.assert_same(fallback.make(case.work)(0), case.own(0), 1e-5)


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
        monkeypatch.setattr(cpu, "perf_counter", lambda: self.now)

    def work(self, name: str, cost: float, result: object = None) -> Callable[[], object]:
        def run() -> object:
            self.calls += name
            self.now += cost * len(self.calls)
            return result

        return run


def test_rounds_are_paired(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    peer, own = clock.work("p", 3), clock.work("o", 1)
    ratios = cpu.in_turns(Benchmark(), lambda: cpu.warm(peer), lambda: cpu.warm(own), 3)
    assert clock.calls == "oopp" * 3
    # Timed are calls 2 and 4, 6 and 8, 10 and 12.
    assert ratios == pytest.approx([3 * 4 / 2, 3 * 8 / 6, 3 * 12 / 10])
    assert cpu.spread(ratios) == pytest.approx({"q1": 3.8, "median": 4.0, "q3": 5.0})


def timed(work: Callable[[], object], inputs: object) -> Run:
    return lambda n: work()


def test_a_row_says_what_it_was_compared_with(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, benchmark = Clock(monkeypatch), Benchmark()
    own = clock.work("o", 1e-3, torch.ones(3))
    case = Case("op", None, lambda n: own(), lambda outputs: None, bytes=24, inputs="ones")
    peers = {"equal": (np.ones(3), "unseen"), "unequal": np.full(3, 1.1)}
    peers = {name: Peer(partial(timed, clock.work("p", 2e-3, result))) for name, result in peers.items()}
    cpu.time_row(benchmark, case, "equal", peers)
    assert benchmark.extra_info["faster"].keys() == {"q1", "median", "q3"}
    assert 2 < benchmark.extra_info["faster"]["median"] < 4
    assert (benchmark.extra_info["bytes"], benchmark.extra_info["inputs"]) == (24, "ones")
    with pytest.raises(AssertionError):
        cpu.time_row(benchmark, case, "unequal", peers)


def test_the_rows_of_committed_results_are_those_of_today(monkeypatch: pytest.MonkeyPatch) -> None:
    """By their names `make bench-compare` and the page find them."""
    monkeypatch.setattr(cpu, "THREADS", 2)
    rows = {
        (bench.group, f"test_{row}", f"bench/bench_{bench.name}.py::test_{row}")
        for op in cases.ops()
        for bench in op.benches
        for row in cpu.rows_of(bench.peers)
    }
    committed = json.loads(max(page.RESULTS.glob("*/*_2_threads.json")).read_text(encoding="utf-8"))["benchmarks"]
    committed = {(row["group"], row["name"], row["fullname"]) for row in committed if row["group"] != PIPELINE}
    assert committed <= rows
    assert {row for row in rows - committed if "kornia" not in row[1]} == set()


NEW_OP = """
import torch
from bench.cases import Bench, Case, Op
def case(device, batch, cache_bytes=0, *, dtype=torch.float32, detail=""):
    return Case("a_new_op", None, lambda n: torch.ones(batch), lambda outputs: None, 8, dtype, batch, 2, detail=detail)
OP = Op("a_new_op", (Bench("a_new_op", "a_new_op", lambda: case(None, 32), {}),), case, {}, [{"dtype": torch.float32}])
"""


def test_a_new_op_costs_one_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a_new_op.py").write_text(NEW_OP)
    monkeypatch.setattr(cases, "__path__", [*cases.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "bench.cases.a_new_op", raising=False)
    assert "a_new_op" in [bench.name for op in cases.ops() for bench in op.benches]
    (row,) = [row for row in gpu.goal_rows(2) if row.op.name == "a_new_op"]
    assert str(row) == "a_new_op float32 contiguous"
    timer = gpu.Timer(cases.CPU)
    figures = gpu.op_row(gpu.Report(cases.CPU), timer, row.make(timer), row.peers)
    assert (figures["op"], figures["bytes"]) == ("a_new_op", 8)
    assert "a_new_op float32 contiguous batch of 1" in map(str, gpu.extra_rows(2))


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
def lines(tmp_path: Path) -> list[str]:
    """Lines of the page of a run on each number of threads; beside them older ones, and one that was not in turns."""
    rendered = benchmarks(RENDER, RENDERED, bytes=8_000_000)
    save(tmp_path, "1.json", 1, "2026-01-01", benchmarks(RENDER, {OWN: (7e-3, 7e-3, 1.0)}, bytes=8_000_000))
    save(tmp_path, "2.json", 1, "2026-01-02", rendered)
    save(tmp_path, "3.json", 1, "2026-01-03", [row | {"extra_info": {}} for row in rendered])
    two = {name: (median / 1.6, iqr / 1.6, ratio) for name, (median, iqr, ratio) in RENDERED.items()}
    rows = benchmarks(RENDER, two | {ONE_THREAD: (1e-3, 1e-5, 1.6)}, bytes=8_000_000)
    rows += benchmarks(PIPELINE, {"pack[raw]": (0.064, 1e-3, 16.0), OWN: (0.64, 1e-2, 1.5)}, samples=64)
    save(tmp_path, "4.json", 2, "2026-01-02", rows)
    return page.page(page.newest(tmp_path)).splitlines()


def test_the_page_shows_speed_share_and_noise(lines: list[str]) -> None:
    assert "A processor, 2 cores, SIMD plain; torch 1, NumPy 2, OpenCV 3, numba 4; commit 0123456, 2026-01-02." in lines
    # 8 MB in 1 ms; fastpose takes 1 / 0.4 of the copy's time, numba 0.5 / 0.4 of it.
    assert "| **fastpose** | 1000 µs | 100 µs | 8.0 | 40% | 1× (0.9–1.1) |" in lines
    assert "| numba | 500 µs | 200 µs, *noisy* | 16.0 | 80% | 0.5× (0.45–0.55) |" in lines
    assert "| limit copy | 400 µs | 10 µs | 20.0 | 100% | 0.4× (0.36–0.44) |" in lines
    assert "| pack[raw] | 1000 µs | 16 µs |  |  | 16× (14.4–17.6) |" in lines
    assert not any("7000 µs" in line for line in lines)


def test_the_page_judges_goals_and_losses(lines: list[str]) -> None:
    expected = [
        f"| {RENDER} | at least 20× as fast as simple baselines | 25× (22.5–27.5): met | 25× (22.5–27.5): met |",
        f"| {RENDER} | at most 1.5× the time of limit torch zeros | 1.43× (1.3–1.59): met, in doubt |"
        " 1.43× (1.3–1.59): met, in doubt |",
        f"| {RENDER} | never slower than numba | 0.5× (0.45–0.55): **missed** | 0.5× (0.45–0.55): **missed** |",
        f"| {RENDER} | on 2 threads at least 1.8× as fast as on one |  | 1.6× (1.44–1.76): **missed** |",
        f"| {PIPELINE} | files: at least 2× OpenCV in a DataLoader |  | 1.5× (1.35–1.65): **missed** |",
        f"| {PIPELINE} | pack[raw]: at least 15× OpenCV in a DataLoader |  | 16× (14.4–17.6): met, in doubt |",
    ]
    first = lines.index("|---|---|---|---|") + 1
    assert sorted(lines[first : first + len(expected)]) == sorted(expected)
    assert lines[first + len(expected)] == ""


def test_the_page_shows_scaling(lines: list[str]) -> None:
    assert f"| {RENDER} | 1.6× (1.44–1.76) | 1.60× |  |  | 1.60× | 1.60× |" in lines


@pytest.mark.parametrize("threads", [(), (2,), (1, 2)])
def test_a_group_stands_on_the_page_where_it_was_measured(tmp_path: Path, threads: tuple[int, ...]) -> None:
    group = "decode_heatmaps dark"
    for each in (1, 2):
        rows = benchmarks(RENDER, RENDERED, bytes=8_000_000)
        rows += benchmarks(group, {OWN: (1e-3, 1e-4, 1.0), "mmpose": (40e-3, 1e-3, 40.0)}) if each in threads else []
        save(tmp_path, f"{each}.json", each, "2026-01-01", rows)
    lines = page.page(page.newest(tmp_path)).splitlines()
    assert (
        lines.count(f"### {group}") == lines.count("| mmpose | 40.0 ms | 1000 µs |  |  | 40× (36–44) |") == len(threads)
    )
    assert lines.count(f"| {group} |  | 1.00× |  |  |  |  |") == (threads == (1, 2))
    assert lines.count(f"### {RENDER}") == 2


def test_the_chart_has_a_panel_per_group(tmp_path: Path) -> None:
    results = {"benchmarks": benchmarks(RENDER, RENDERED) + benchmarks(PIPELINE, {OWN: (1.0, 0.1, 2.0)}, samples=64)}
    page.draw(page.groups_of(results), "heading", tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


def test_every_goal_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "THREADS", 2)
    rows = {bench.group: cpu.rows_of(bench.peers) for op in cases.ops() for bench in op.benches}
    (group,) = [mark.kwargs["group"] for mark in bench_pipeline.pytestmark if mark.name == "benchmark"]
    (pixels,) = [mark.args[1] for mark in bench_pipeline.test_pack.pytestmark if mark.name == "parametrize"]
    rows[group] = [name.removeprefix("test_") for name in vars(bench_pipeline) if name.startswith("test_")]
    rows[group] += [f"pack[{kind}]" for kind in pixels]
    for goal in GOALS:
        assert goal.row in rows[goal.group]


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
    row = page.Row(1.0, 0.1, None, ratio, 0.9 * ratio, 1.1 * ratio, "noise")
    assert Goal(DECODE, "peer", bound).verdict(row) == verdict


def test_the_lock_is_measured_while_images_are_loaded(tmp_path: Path) -> None:
    decode = cv2.imdecode
    source = ImageFiles(lock.write_files(tmp_path), 2)
    row = lock.measure(source, rate=2000, threads=2, seconds=0.5, rounds=1)
    assert row.rate > 0
    assert row.times == pytest.approx(row.busy / row.idle)
    assert cv2.imdecode is decode


def test_an_error_while_images_are_loaded_is_an_error_of_the_lock_s_measurement(tmp_path: Path) -> None:
    source = ImageFiles([tmp_path / "absent.jpg"], 2)  # has none of the batch's other images
    with pytest.raises(IndexError):
        lock.measure(source, rate=2000, threads=2, seconds=0.1, rounds=1)
