# SPDX-License-Identifier: Apache-2.0
"""The GPU report: its schema, that it refuses wrong ops and goes on without peers, and that its peers do equal work."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

import fastpose
from bench import cases, gpu, gpu_report, kernels, pipeline, report, train_step, user_loader
from bench.cases import (
    Case,
    affine_crop,
    decode_heatmaps,
    decode_simcc,
    heatmap_mse_loss,
    render_heatmaps,
    simcc_loss,
)
from bench.gpu import Timer, Timing
from bench.report import Report
from fastpose import ImageBatch
from fastpose.data.persons import Persons
from fastpose.ops import _native
from fastpose.skeletons import MPII
from tests.helpers import upstream
from tests.helpers.ops import random_images, random_matrices, random_points

CPU = torch.device("cpu")
KEYS = ["device", "driver", "torch", "cuda", "commit", "date", "seconds", "copy_gb_s"]
KEYS += ["ops", "step", "large_maps", "training", "extra", "errors", "notes"]
OP_KEYS = ["op", "dtype", "layout", "batch", "bytes", "median_s", "iqr_s", "floor_s", "floor_ratio", "gb_s", "peers"]
TRAINING_KEYS = ["cores", "source", "mode", "batch", "loader_samples_per_s", "samples_per_s", "of_fixed"]
TRAINING_KEYS += ["input_wait_fraction", "wait_max_s", "gpu_busy", "peak_bytes"]
SOURCES = ["resident", "pack, jpeg", "files, reduced", "files", "cv2+DataLoader", "pack, raw", "gpu jpeg"]
PEERS = {
    "affine_crop": {"plain_torch", "grid_sample", "limit_bare_grid_sample"},
    "render_heatmaps": {"plain_torch[products]", "limit_torch_zeros"},
    "decode_heatmaps": {"plain_torch[the fallback]", "limit_torch_amax"},
    "heatmap_mse_loss": {"plain_torch[squares]", "our_render_and_mse_loss"},
    "simcc_loss": {"plain_torch", "stored_labels"},
    "decode_simcc": {"plain_torch"},
}


class Run(NamedTuple):
    code: int
    path: Path
    figures: dict[str, Any]
    printed: str


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Work this small takes longest where threads wait for each other on cores that others use."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny_network(depth: int) -> torch.nn.Module:
    """Maps of a quarter of the picture's size, as from the network of training."""
    return torch.nn.Conv2d(3, MPII.num_joints, 4, stride=4)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    out, printed = tmp_path_factory.mktemp("report") / "results", io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.MonkeyPatch.context() as patch:
        # However busy this machine is, nothing is left out. `make gpu-rehearsal` trains and compiles the real ones.
        patch.setattr(report, "SCHEDULE", dict.fromkeys(report.SCHEDULE, 1e6))
        patch.setattr(report, "LIMIT", 1e6)
        patch.setattr(train_step, "pose_resnet", tiny_network)
        patch.setattr(cases, "compiled", lambda function: function)
        code = gpu_report.main(["--device", "cpu", "--out", str(out)])
    (path,) = out.iterdir()
    return Run(code, path, json.loads(path.read_text()), printed.getvalue())


def test_writes_every_section_without_an_error(run: Run) -> None:
    assert run.figures["errors"] == []
    assert run.code == 0
    assert list(run.figures) == KEYS
    assert re.fullmatch(r"gpu_\d{8}T\d{4}_[\w.-]+\.json", run.path.name)
    assert run.path.stem.endswith(run.figures["commit"])
    assert run.figures["seconds"] > 0
    assert run.figures["copy_gb_s"] > 0


def test_every_op_has_every_type_and_its_peers(run: Run) -> None:
    rows = run.figures["ops"]
    dtypes = ("float32", "float16", "bfloat16")
    expected = {(op, dtype, "contiguous") for op in PEERS for dtype in dtypes}
    expected -= {(op, "float16", "contiguous") for op in ("simcc_loss", "decode_simcc")}  # it costs what bfloat16 does
    expected |= {("affine_crop", dtype, "channels_last") for dtype in dtypes}
    assert {(row["op"], row["dtype"], row["layout"]) for row in rows} == expected
    assert len(rows) == len(expected)
    for row in rows:
        assert list(row) == OP_KEYS
        assert PEERS[row["op"]] <= row["peers"].keys()
        numbers = [row[key] for key in OP_KEYS[3:-1] if key != "iqr_s"] + list(row["peers"].values())
        assert all(math.isfinite(number) and number > 0 for number in numbers)
        assert row["floor_ratio"] == pytest.approx(row["median_s"] / row["floor_s"])
        assert row["gb_s"] == pytest.approx(row["bytes"] / row["median_s"] / 1e9)
    compiled = [row for row in rows if "torch_compile[products]" in row["peers"]]
    assert [(row["op"], row["dtype"]) for row in compiled] == [("render_heatmaps", "float32")]


def test_the_step_is_measured_before_what_feeds_it(run: Run) -> None:
    (row,) = run.figures["step"]["fixed"]  # on CUDA also as a graph, and with cuDNN's autotuning
    assert (row["mode"], row["cudnn_benchmark"]) == ("eager", False)
    assert row["samples_per_s"] == pytest.approx(2 / row["median_s"])
    assert row["warm_s"] > 0


def test_every_source_feeds_training_on_every_number_of_cores(run: Run) -> None:
    rows, counts = run.figures["training"], pipeline.core_counts()
    assert [row["cores"] for row in rows] == sorted((row["cores"] for row in rows), key=counts.index)
    # Whatever GPU JPEG decoding lacks here, it is a note, and not tried again with fewer cores.
    missing = [note for note in run.figures["notes"] if "gpu jpeg" in note]
    assert len(missing) <= 1
    expected = [source for source in SOURCES if not (missing and source == "gpu jpeg")]
    for cores in counts:
        without = () if cores in (counts[0], *pipeline.USER_CORES) else (pipeline.USER,)
        there = [source for source in expected if source not in without]
        assert [row["source"] for row in rows if row["cores"] == cores] == there
    for row in rows:
        assert list(row) == TRAINING_KEYS
        assert min(row["loader_samples_per_s"], row["samples_per_s"], row["of_fixed"]) > 0
        assert 0 <= row["input_wait_fraction"] <= 1
        assert row["wait_max_s"] >= 0
        assert (row["gpu_busy"], row["peak_bytes"]) == (None, None)  # there is no GPU
    limits = [row for row in run.figures["extra"] if row["what"] == "decoder limit"]
    assert [row["cores"] for row in limits] == counts


def test_the_loss_of_large_maps_is_beside_that_with_a_target(run: Run) -> None:
    rows = run.figures["large_maps"]
    assert {(row["joints"], row["dtype"]) for row in rows} == {
        (joints, dtype) for joints in (133, 308) for dtype in ("float32", "bfloat16")
    }
    assert [row["loss"] for row in rows] == ["fused", "render+mse_loss"] * 4
    assert all(row["median_s"] > 0 for row in rows)


def test_the_table_is_made_from_the_file_again(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_report.main(["--table", str(run.path)]) == 0
    table = capsys.readouterr().out
    assert table.strip() in run.printed
    also = [row for row in run.figures["extra"] if row["what"] == "op"]
    assert table.count("\n| `") == len(run.figures["ops"]) + len(also)


def test_what_training_needs_to_know_comes_first_in_extra(run: Run) -> None:
    rows = [row for row in run.figures["extra"] if row["what"] == "op"][:10]
    halves = [(row["dtype"], row["detail"]) for row in rows if row["detail"] != "channels-last maps"]
    dtypes = ("float32", "bfloat16", "float16")
    assert halves == [(dtype, f"{half} alone") for dtype in dtypes for half in ("forward", "backward")]
    ops = ("decode_heatmaps", "heatmap_mse_loss")
    others = {(row["op"], row["dtype"]) for row in rows if row["layout"] == "channels_last"}
    assert others == {(op, dtype) for op in ops for dtype in dtypes[:2]}


def test_tables_show_all_that_was_measured(run: Run) -> None:
    figures = json.loads(json.dumps(run.figures))
    kernel = {"what": "kernel", "registers": 40, "shared_bytes": 0, "stack_bytes": 16, "local_bytes": 0}
    figures["extra"] += [kernel | {"kernel": "k<float>"}, kernel | {"kernel": "k<double>", "registers": 72}]
    peak = {"what": "peak memory of the loss", "loss": "fused", "dtype": "float32", "bytes": 67_200_000}
    figures["extra"].append(peak)
    figures["step"]["peak_bytes"] = {"fused": 5_000_000_000}
    figures["errors"] = ["decode_heatmaps: it was wrong"]
    figures["copy_gb_s"] = 4321.4
    for row in figures["training"]:
        row["gpu_busy"] = 0.95
    figures["large_maps"][0]["peak_bytes"] = 3 << 29
    shown = gpu_report.tables(figures)
    assert "1 GiB copied at 4321 GB/s" in shown
    assert f"{figures['seconds']:.0f} s;" in shown
    (fixed,) = figures["step"]["fixed"]
    assert f"| eager | off | {fixed['samples_per_s']:.0f} | {1e3 * fixed['median_s']:.2f} (" in shown
    for row in figures["training"]:
        speeds = f"{row['loader_samples_per_s']:.0f} | {row['samples_per_s']:.0f} | {100 * row['of_fixed']:.1f}"
        waits = f"{100 * row['input_wait_fraction']:.1f} | {1e3 * row['wait_max_s']:.1f}"
        assert f"| {row['cores']} | {row['source']} | eager | {speeds} | {waits} | 95 | ? |" in shown
    assert "| 308 | bfloat16 | fused | 1 | " in shown
    assert " | 1.50 |" in shown
    assert "| loss, float32, fused | 67.2 |" in shown
    assert "| training step, fused | 5000 |" in shown
    assert "| k | 2 | 72 | 0 | 16 | 0 |" in shown
    assert f"{len(figures['notes'])} notes, 1 errors" in shown
    assert "* error: decode_heatmaps: it was wrong" in shown


def test_a_slow_copy_makes_no_floor_higher() -> None:
    """Those of an H200: 67,164,160 bytes took longer than 67,174,400."""
    row = {"op": "decode_heatmaps", "dtype": "float32", "layout": "contiguous", "median_s": 20e-6, "iqr_s": 0.0}
    row |= {"bytes": 67_164_160, "floor_s": 26.5e-6, "gb_s": 3358.0, "peers": {}}
    speeds = {33_554_432: 3440.0, 67_164_160: 2534.0, 67_108_864: 3800.0, 469_401_600: 4190.0}
    assert gpu_report.least_floor(row, speeds) == pytest.approx(67_164_160 / 3800e9)
    assert gpu_report.op_cells(row, speeds)[4] == "1.13"
    assert gpu_report.op_cells(row, {})[4] == "0.75"  # a report that was stopped has no copies


SMALL = ("decode_heatmaps", "heatmap_mse_loss", "render_heatmaps")


@pytest.fixture
def only_small_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row for row in gpu.goal_rows(1) if row.op.name in SMALL and row.options["dtype"] == torch.float32]
    monkeypatch.setattr(gpu, "goal_rows", lambda batch: rows)
    monkeypatch.setattr(gpu, "extra_rows", lambda batch: [])
    monkeypatch.setattr(gpu, "WHOLE_BODY", ())
    monkeypatch.setattr(cases, "compiled", lambda function: function)
    monkeypatch.setattr(train_step, "measure", lambda report, scale: None)
    monkeypatch.setattr(pipeline, "measure", lambda report, scale: None)


def run_to_figures(out: Path) -> tuple[int, dict[str, Any]]:
    code = gpu_report.main(["--device", "cpu", "--out", str(out)])
    (path,) = out.iterdir()
    return code, json.loads(path.read_text())


@pytest.mark.usefixtures("only_small_cases")
def test_a_wrong_op_has_no_row_and_fails_the_report(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    right = fastpose.render_heatmaps
    monkeypatch.setattr(fastpose, "render_heatmaps", lambda *a, **k: (right(*a, **k)[0] + 1e-4, right(*a, **k)[1]))
    code, figures = run_to_figures(tmp_path)
    assert code == 1
    assert any("render_heatmaps" in error and "WrongResultError" in error for error in figures["errors"])
    # The others are timed all the same; the rendering of a peer has nothing to do with them.
    assert [row["op"] for row in figures["ops"]] == ["decode_heatmaps", "heatmap_mse_loss"]


def small_crops(device: torch.device, batch: int, **options: Any) -> Case:
    return affine_crop.case(device, batch, size=(64, 64), **options)


def with_nan(crops: Tensor) -> Tensor:
    crops[1, 2, 3, 4] = math.nan
    return crops


def with_a_quarter(outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return decode_heatmaps.case(CPU, 2, dtype=torch.float32).own(0)


SINGLE, HALF, LAST = {"dtype": torch.float32}, {"dtype": torch.float16}, {"layout": "channels_last"}
# The case, how its result is spoilt, and what is then wrong.
WRONG = [
    (small_crops, SINGLE | LAST, lambda out: out + 0.01, "crop"),
    (small_crops, HALF, with_nan, "crop"),
    (render_heatmaps.case, SINGLE, lambda out: (out[0] + 1e-4, out[1]), "heatmaps"),
    (render_heatmaps.case, HALF, lambda out: (out[0], 1 - out[1]), "weights"),
    (decode_heatmaps.case, SINGLE, lambda out: (out[0] + 0.3, out[1]), "keypoints"),
    (decode_heatmaps.case, HALF, lambda out: (out[0], -out[1]), "scores"),
    (decode_heatmaps.case, SINGLE | {"refine": "dark"}, with_a_quarter, "keypoints"),
    (heatmap_mse_loss.case, SINGLE, lambda out: (out[0] * 1.001, out[1]), "loss"),
    (heatmap_mse_loss.case, HALF, lambda out: (out[0], out[1] * 1.01), "gradient"),
    (simcc_loss.case, SINGLE, lambda out: (out[0] * 1.001, *out[1:]), "loss"),
    (simcc_loss.case, HALF, lambda out: (out[0], out[1], out[2] * 1.01), "gradient in y"),
    (decode_simcc.case, SINGLE, lambda out: (out[0] + 0.3, out[1]), "keypoints"),
    (decode_simcc.case, HALF | {"refine": "dark"}, lambda out: (out[0], out[1] + 0.001), "scores"),
]


@pytest.mark.parametrize(("make", "options", "spoil", "what"), WRONG)
def test_a_wrong_result_is_refused(
    make: Callable[..., Case], options: dict[str, Any], spoil: Callable[..., Any], what: str
) -> None:
    case = make(CPU, 2, **options)
    outputs = case.own(0)
    case.check(outputs)
    with pytest.raises(cases.WrongResultError, match=f"{what}: expected at most"):
        case.check(spoil(outputs))


@pytest.mark.usefixtures("only_small_cases")
def test_a_section_that_fails_is_reported_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fails(report: Report, scale: train_step.Scale) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(pipeline, "measure", fails)
    code, figures = run_to_figures(tmp_path)
    assert code == 1
    assert figures["errors"] == ["training: OSError: no space left on device"]
    assert len(figures["ops"]) == 3


@pytest.mark.usefixtures("only_small_cases")
def test_the_file_is_written_after_each_row_and_kept_by_a_report_that_is_stopped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = []
    op_row = gpu.op_row

    def watched(*arguments: Any) -> dict[str, Any]:
        (path,) = tmp_path.iterdir()
        rows.append(len(json.loads(path.read_text())["ops"]))
        return op_row(*arguments)

    def stopped(report: Report, scale: train_step.Scale) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu, "op_row", watched)
    monkeypatch.setattr(pipeline, "measure", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_to_figures(tmp_path)
    assert rows == [0, 1, 2]
    (path,) = tmp_path.iterdir()
    figures = json.loads(path.read_text())
    assert list(figures) == KEYS
    assert len(figures["ops"]) == 3
    assert figures["errors"] == [report.UNFINISHED]


@pytest.mark.usefixtures("only_small_cases")
def test_what_is_not_finite_is_null_and_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Timer, "time", lambda *_: Timing(math.nan, math.inf))
    code, figures = run_to_figures(tmp_path)
    assert code == 1
    assert figures["copy_gb_s"] is None
    assert [row["median_s"] for row in figures["ops"]] == [None] * 3
    assert figures["ops"][0]["peers"]["limit_torch_amax"] is None
    assert "figures.ops.1.iqr_s is inf, written as null" in figures["errors"]
    assert len(figures["errors"]) == len(set(figures["errors"]))  # once, however often the file was written
    assert "NaN" not in next(tmp_path.iterdir()).read_text()
    assert gpu_report.tables(figures).count("? (?)") == 3


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The native library is missing; what a new process would be begun with."""
    begun: list[list[str]] = []
    monkeypatch.setattr(_native, "load_error", ImportError("No module named 'fastpose._C'"))
    monkeypatch.setattr(os, "execv", lambda path, arguments: begun.append([path, *arguments]))
    monkeypatch.setenv(gpu_report.BUILD_SECONDS, "")
    monkeypatch.delenv(gpu_report.BUILD_SECONDS)
    return begun


def test_a_missing_library_is_built_and_the_report_begun_again(
    no_library: list[list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    built = []
    monkeypatch.setattr(gpu_report, "build_library", lambda: built.append(True))
    arguments = ["--device", "cpu", "--out", str(tmp_path)]
    gpu_report.main(arguments)
    assert built == [True]
    assert no_library == [[sys.executable, sys.executable, "-m", "bench.gpu_report", *arguments]]
    assert os.environ[gpu_report.BUILD_SECONDS] == "0"
    assert list(tmp_path.iterdir()) == []


def test_a_build_that_fails_ends_the_report(
    no_library: list[list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "setup.py").write_text("raise SystemExit('no compiler')")
    monkeypatch.setattr(gpu_report, "ROOT", tmp_path)
    assert gpu_report.main(["--device", "cpu"]) == 1
    assert no_library == []
    said = capfd.readouterr().err
    assert "no compiler" in said
    assert "error: the native library could not be built" in said


def test_a_library_that_does_not_load_once_built_ends_the_report(
    no_library: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(gpu_report.BUILD_SECONDS, "41")
    assert gpu_report.main(["--device", "cpu"]) == 1
    assert no_library == []
    assert "was built, but does not load: No module named 'fastpose._C'" in capsys.readouterr().err


def test_a_library_without_cuda_kernels_is_no_use_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(fastpose, "build_info", lambda: {"no_cuda_reason": "no nvcc"})
    assert gpu_report.main(["--device", "cuda", "--out", str(tmp_path)]) == 1
    assert "built without CUDA kernels: no nvcc" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("only_small_cases")
def test_a_report_says_what_its_time_went_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """That it took too long is an error; the time of a build before it is a note."""
    monkeypatch.setenv(gpu_report.BUILD_SECONDS, "41")
    monkeypatch.setattr(report, "LIMIT", 0.0)
    code, figures = run_to_figures(tmp_path)
    assert code == 1
    assert re.fullmatch(r"took \d+ s: expected less than 0", figures["errors"][0])
    assert "the native library was missing; building it took 41 s, not counted here" in figures["notes"]


@pytest.mark.parametrize(("passed", "commit"), [("60455b7", "60455b7"), ("../a b", ".._a_b"), (None, "unknown")])
def test_outside_git_the_environment_names_the_commit(
    passed: str | None, commit: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.delenv("FASTPOSE_COMMIT", raising=False)
    if passed is not None:
        monkeypatch.setenv("FASTPOSE_COMMIT", passed)
    assert report.commit() == commit


def test_peers_that_are_missing_or_wrong_are_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in {"kornia", *(module for module in sys.modules if module.startswith("kornia."))}:
        monkeypatch.setitem(sys.modules, name, None)  # so that importing it fails
    wrong = cases.Peer(lambda work: lambda n: torch.zeros(2, 3, 256, 256))
    timer, report = Timer(CPU), Report(CPU)
    peers = {"kornia": affine_crop.PEERS["kornia"], "wrong": wrong}
    row = gpu.op_row(report, timer, affine_crop.case(CPU, 2, dtype=torch.float32), peers)
    assert list(row["peers"]) == ["wrong"]
    notes = "\n".join(report.figures["notes"])
    assert "affine_crop: peer kornia: ModuleNotFoundError" in notes
    assert "affine_crop float32 contiguous: peer wrong gives another result" in notes
    assert report.figures["errors"] == []


def test_a_section_out_of_time_leaves_the_rest_of_it_out() -> None:
    made = Report(CPU)
    made.begin("step")
    assert not made.late("anything", needs=report.SCHEDULE["step"] - 10)
    assert made.late("something long", needs=report.SCHEDULE["step"])
    assert made.figures["notes"] == ["left out, too little time: something long"]


def test_what_must_be_compiled_comes_last_and_is_lost_alone_in_300_seconds() -> None:
    *others, last = report.SCHEDULE.items()
    assert last[0] == "compiled"
    ends = [end for _, end in others]
    assert ends == sorted(ends)
    assert ends[-1] <= 290  # of 300: Python and torch are loaded before the report's clock starts
    assert last[1] + 20 < report.LIMIT < 460


def test_every_source_on_every_number_of_cores_fits_the_schedule() -> None:
    """By the guesses by which rows are left out, without nvImageCodec, which the machine may lack.

    25 s are for drawing, packing and decoding the pictures, the decoder's limits and the steps on the fixed batch.
    """
    ours = ("resident", "pack, jpeg", "files, reduced", "files", "pack, raw")
    rows = [(source, cores) for source in ours for cores in pipeline.CORES]
    rows += [(pipeline.USER, cores) for cores in (max(pipeline.CORES), *pipeline.USER_CORES)]
    there_is = report.SCHEDULE["training"] - report.SCHEDULE["large maps"]
    assert 25 + sum(pipeline.seconds_for(*row) for row in rows) <= there_is


@pytest.mark.usefixtures("only_small_cases")
def test_compiled_peers_are_added_to_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    timer, made = Timer(CPU), Report(CPU)
    gpu.measure_ops(made, timer, 1)
    assert {peer for row in made.figures["ops"] for peer in row["peers"] if gpu.is_compiled(peer)} == set()
    gpu_report.measure_compiled(made, timer, 1)
    (row,) = [row for row in made.figures["ops"] if row["op"] == "render_heatmaps"]
    assert list(row["peers"]) == ["plain_torch[products]", "limit_torch_zeros", "torch_compile[products]"]
    made.started -= report.SCHEDULE["compiled"]
    del row["peers"]["torch_compile[products]"]
    gpu_report.measure_compiled(made, timer, 1)
    assert "torch_compile[products]" not in row["peers"]
    assert made.figures["notes"][-1] == "left out, too little time: compiled: render_heatmaps float32 contiguous"


@pytest.mark.parametrize("kilobytes", [3750, 4500])
def test_crops_touch_four_times_a_large_l2(kilobytes: int) -> None:
    """The L2 of an H200 and of an RTX 4090, and the batch of the test on CUDA, each over 16.

    With as many images as the batch the loop that adds input sets had no end.
    """
    cache = kilobytes << 10
    case = affine_crop.case(CPU, 4, cache, dtype=torch.bfloat16, layout="channels_last")
    crops = 4 * 3 * 256 * 256 * 2
    assert case.sets * (case.bytes - crops) > 4 * cache
    assert case.sets < 30


def test_too_few_images_for_a_large_l2_are_refused() -> None:
    assert affine_crop.images_beyond(60 << 20) > 64
    with pytest.raises(ValueError, match=r"images: expected at least 377,487,360 bytes, .* 62,914,560 bytes, got"):
        affine_crop.case(CPU, 2, 60 << 20, dtype=torch.float32, images=affine_crop.random_images(2, CPU))


def test_boxes_that_touch_too_little_end_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough bytes, but every crop looks at the same few of them."""
    monkeypatch.setattr(cases, "random_boxes", lambda sizes, size, seed: torch.eye(2, 3).repeat(len(sizes), 1, 1))
    monkeypatch.setattr(affine_crop, "PASSES", 8)
    images = affine_crop.random_images(2, CPU)
    with pytest.raises(ValueError, match="of which 8 crops of each image do not touch enough"):
        affine_crop.case(CPU, 2, 1 << 18, dtype=torch.float32, size=(32, 32), images=images)


def sectors_by_hand(images: ImageBatch, matrix: Tensor, index: list[int], size: tuple[int, int]) -> set[int]:
    start = images.data.data_ptr() % affine_crop.SECTOR
    found = set()
    for m, n in zip(matrix.numpy(), index, strict=True):
        height, width = images.sizes[n].tolist()
        for y_crop, x_crop in np.ndindex(*size):
            x = m[0, 0] * np.float32(x_crop) + (m[0, 1] * np.float32(y_crop) + m[0, 2])
            y = m[1, 0] * np.float32(x_crop) + (m[1, 1] * np.float32(y_crop) + m[1, 2])
            if not (-1 < x < width and -1 < y < height):
                continue
            for tx, ty in np.ndindex(2, 2):
                px, py = math.floor(x) + tx, math.floor(y) + ty
                if 0 <= px < width and 0 <= py < height:
                    first = start + int(images.offsets[n]) + 3 * (py * width + px)
                    found |= {(first + channel) // affine_crop.SECTOR for channel in range(3)}
    return found


@pytest.mark.parametrize("seed", range(6))
def test_counts_the_sectors_that_taps_touch(seed: int) -> None:
    images, matrix = ImageBatch.from_list(random_images(3, seed)), random_matrices(4, seed)
    matrix[0] = torch.tensor([[1.0, 0, -1], [0, 1, -1]])  # a first row and column that do not touch
    index = [0, 2, 1, 2]
    touched = affine_crop.touched_sectors(images, matrix, torch.tensor(index), (7, 5))
    expected = sectors_by_hand(images, matrix, index, (7, 5))
    assert expected
    assert set(touched.nonzero().flatten().tolist()) == expected


def test_the_bytes_of_an_op_are_counted_from_its_sizes() -> None:
    assert render_heatmaps.case(CPU, 3, dtype=torch.bfloat16).bytes == 3 * 16 * (64 * 64 * 2 + 4 + 4 + 8)
    decode = decode_heatmaps.case(CPU, 3, dtype=torch.float16, flipped=True)
    assert decode.bytes == 3 * 16 * (2 * 64 * 64 * 2 + 8 + 4) + 3 * 2 * 3 * 4
    for half, passes in (("both", 3), ("forward", 1), ("backward", 2)):
        loss = heatmap_mse_loss.case(CPU, 3, dtype=torch.float32, half=half)
        assert loss.bytes == passes * 3 * 16 * 64 * 64 * 4
    simcc = simcc_loss.case(CPU, 3, dtype=torch.bfloat16)
    assert simcc.bytes == 3 * 3 * 16 * (384 + 512) * 2
    assert decode_simcc.case(CPU, 3, dtype=torch.float32).bytes == 3 * (16 * (2 * (384 + 512) * 4 + 8 + 4) + 2 * 3 * 4)
    source = affine_crop.case(CPU, 2, dtype=torch.uint8, size=(32, 32)).bytes - 2 * 3 * 32 * 32
    # Four taps of 3 bytes, two of them in a row: from one sector for many pixels to four for each.
    assert 0 < source <= 2 * 32 * 32 * 4 * affine_crop.SECTOR


def test_floor_is_a_copy_of_as_many_bytes() -> None:
    """To the next 1024: 1,000,448 are 977 of them."""
    timer = Timer(CPU)
    assert timer.copy_seconds(1000) > 0
    seconds = timer.copy_seconds(1_000_000)
    assert timer.copy_seconds(1_000_448) == seconds
    assert list(timer.copies()) == [1024, 1_000_448]
    assert timer.copies()[1_000_448] == pytest.approx(1.000448e-3 / seconds)


@pytest.mark.parametrize("moved", [1, 1025, 311_427_073 // 100])
def test_copies_move_what_they_say_between_aligned_rows(moved: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ways: dict[str, list[tuple[Tensor, Tensor]]] = {"copy_": [], "bitwise_not": []}
    copy, bitwise_not = Tensor.copy_, torch.bitwise_not

    def watched_copy(target: Tensor, source: Tensor) -> Tensor:
        ways["copy_"].append((target, source))
        return copy(target, source)

    def watched_not(source: Tensor, out: Tensor) -> Tensor:
        ways["bitwise_not"].append((out, source))
        return bitwise_not(source, out=out)

    monkeypatch.setattr(Tensor, "copy_", watched_copy)
    monkeypatch.setattr(torch, "bitwise_not", watched_not)
    Timer(CPU).copy_seconds(moved)
    for moves in ways.values():
        assert {target.nbytes + source.nbytes for target, source in moves} == {1024 * -(-moved // 1024)}
        for tensors in zip(*moves, strict=True):
            begins = {tensor.storage_offset() * tensor.element_size() for tensor in tensors}
            assert len(begins) == 2
            assert all(begin % (32 << 10) == 0 for begin in begins)


def test_the_floor_is_the_quicker_of_two_ways_to_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    timer = Timer(CPU)
    times = {"copied by the driver": 3.0, "written by a kernel": 2.0}
    monkeypatch.setattr(timer, "time", lambda run, sets, what: Timing(times[what.partition(" bytes ")[2]], 0.0))
    assert timer.copy_seconds(1024) == 2.0
    times["copied by the driver"] = 1.0
    assert timer.copy_seconds(2048) == 1.0


def test_noise_leaves_the_default_generator_alone() -> None:
    """On CUDA a failed capture can make that one useless."""
    before = torch.get_rng_state()
    for op in cases.ops():
        for options in (*op.goals[:1], *op.training[:1], *op.extra[:1]):
            op.case(CPU, 1, **options)
    train_step.noise_batch(train_step.Scale.of(CPU), CPU)
    Timer(CPU).copy_seconds(1000)
    assert torch.equal(torch.get_rng_state(), before)


def test_dark_has_a_row() -> None:
    assert "decode_heatmaps float32 contiguous refined as DARK does" in map(str, gpu.extra_rows(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_channels_last_rows_have_such_maps(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    layouts = []
    for op in ("decode_heatmaps", "heatmap_mse_loss"):
        right = getattr(fastpose, op)

        def watched(maps: Tensor, *rest: Any, right: Any = right, **options: Any) -> Any:
            layouts.append(maps.is_contiguous(memory_format=torch.channels_last) and not maps.is_contiguous())
            return right(maps, *rest, **options)

        monkeypatch.setattr(fastpose, op, watched)
    for op in (decode_heatmaps, heatmap_mse_loss):
        case = op.case(CPU, 2, dtype=dtype, layout="channels_last")
        outputs = case.own(0)
        case.check(outputs)
        assert case.layout == "channels_last"
    assert outputs[1].is_contiguous(memory_format=torch.channels_last)
    assert layouts == [True, True]


class FakeClock:
    """Instead of the time: steps and waiting for batches move it on by what they are said to take."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.slower = 0.0, 1.0
        monkeypatch.setattr(train_step, "now", lambda: self.now)

    def step(self, batch: object) -> None:
        self.slower *= 1.001  # the device heats up
        self.now += self.slower

    def batches(self, late: float) -> Iterator[None]:
        while True:
            self.now += late * self.slower
            yield


SCALE = train_step.Scale(1, (8, 8), 4, (32, 32), 18, seconds=12, steps=5, repeats=5)


def test_a_fed_step_is_compared_with_fixed_ones_around_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that waits a quarter of its time for input is at 80 %, also where a device that gets slower hides it."""
    clock = FakeClock(monkeypatch)
    fixed = train_step.FixedBatch(clock.step, train_step.noise_batch(SCALE, CPU), SCALE, "eager")
    report, feed = Report(CPU), pipeline.Feed(lambda: clock.batches(0.25))
    with pipeline.against_fixed(report, {"eager": fixed}) as seconds:
        row = pipeline.training_row("files", feed, fixed, seconds["eager"], 2, SCALE)
        report.figures["training"].append(row)
    assert row["of_fixed"] == pytest.approx(0.8, rel=0.002)
    assert row["input_wait_fraction"] == pytest.approx(0.2, rel=0.002)
    assert row["loader_samples_per_s"] == pytest.approx(4 / 0.25, rel=0.02)
    assert row["samples_per_s"] == pytest.approx(4 / 1.25, rel=0.03)
    assert 0.25 < row["wait_max_s"] < 0.26


@pytest.mark.parametrize(("burst", "taken"), [(1, 10), (4, 12), (16, 16)])
def test_windows_have_whole_bursts(burst: int, taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, seen = FakeClock(monkeypatch), []
    waits = train_step.Waits(CPU)
    feed = pipeline.Feed(lambda: clock.batches(0.2), burst=burst)
    speed, busy = pipeline.window(clock.batches(0.2), lambda batch: seen.append(clock.step(batch)), feed, SCALE, waits)
    assert len(seen) == len(waits.seconds()) == taken
    assert speed == pytest.approx(4 / 1.2, rel=0.02)
    assert busy is None


@pytest.mark.parametrize(("late", "taken"), [(0.0, 9), (100.0, 2)])
def test_a_slow_source_is_warm_after_two_batches(late: float, taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock(monkeypatch)
    seen: list[None] = []

    def batches() -> Iterator[None]:
        for batch in clock.batches(late):
            seen.append(batch)
            yield batch

    pipeline.warm_up(batches(), pipeline.Feed(batches, warm=9), SCALE)
    assert len(seen) == taken


def test_training_takes_the_fastest_step_that_is_not_compiled() -> None:
    rows = [
        {"mode": mode, "cudnn_benchmark": tuned, "samples_per_s": speed}
        for mode, tuned, speed in (("eager", True, 1.0), ("cuda_graph", False, 3.0), ("compile", False, 9.0))
    ]
    rows.append({"mode": "cuda_graph", "cudnn_benchmark": True, "samples_per_s": None})
    assert train_step.fastest(rows) == ("cuda_graph", False)
    assert train_step.fastest([]) == ("eager", False)


def test_the_whole_process_is_restricted_and_gets_its_cores_back() -> None:
    """Threads that were there before, and those and the processes that start meanwhile."""
    allowed, threads = os.sched_getaffinity(0), torch.get_num_threads()
    with ThreadPoolExecutor(1) as pool:
        here = pool.submit(threading.get_native_id).result()
        with pipeline.only_cores(1):
            assert torch.get_num_threads() == 1
            masks = [os.sched_getaffinity(0), os.sched_getaffinity(here)]
            with ThreadPoolExecutor(1) as later:
                masks.append(later.submit(os.sched_getaffinity, 0).result())
            child = [sys.executable, "-c", "import os; print(len(os.sched_getaffinity(0)))"]
            assert subprocess.run(child, capture_output=True, text=True).stdout.strip() == "1"
            assert masks == [{min(allowed)}] * 3
        assert os.sched_getaffinity(here) == os.sched_getaffinity(0) == allowed
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("room", "expected"), [(100, (16, 2)), (34, (16, 2)), (33, (16, 1)), (18, (16, 1)), (17, (15, 1)), (3, (1, 1))]
)
def test_the_users_workers_fit_into_shared_memory(room: int, expected: tuple[int, int]) -> None:
    assert user_loader.fit_into(room * 1000 + 999, 1000, 16) == expected


def test_no_room_for_the_users_workers_is_an_error() -> None:
    with pytest.raises(OSError, match="expected room for 3 batches of 1,000 bytes, got 2,999 bytes"):
        user_loader.fit_into(2999, 1000, 16)


def test_fewer_workers_for_want_of_shared_memory_are_a_note(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A batch of 2 crops of 32 x 32 and 16 maps of 8 x 8, with weights, takes 32,896 bytes."""
    monkeypatch.setattr(pipeline, "SHARED_MEMORY", tmp_path)
    report, scale = Report(CPU), train_step.Scale.of(CPU)
    for batches, expected in ((4, (2, 1)), (10, (4, 2))):
        free = SimpleNamespace(free=batches * 32_896)
        monkeypatch.setattr(pipeline.shutil, "disk_usage", lambda folder, free=free: free)
        assert pipeline.user_workers(report, scale, 4) == expected
    (note,) = report.figures["notes"]
    assert "2 workers that prefetch 1, since shared memory is scarce" in note


def test_reads_the_resource_use_of_kernels() -> None:
    text = """
Fatbin elf code:
arch = sm_90
Resource usage:
 Common:
  GLOBAL:272 CONSTANT[4]:16
 Function _Z5firstPf:
  REG:48 STACK:40 SHARED:1088 LOCAL:8 CONSTANT[0]:744 TEXTURE:0 SURFACE:0 SAMPLER:0
arch = sm_120
 Function _Z6secondPf:
  REG:32 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:744
"""
    first, second = kernels.parse(text)
    assert first == {
        "what": "kernel",
        "kernel": "_Z5firstPf",
        "architecture": "sm_90",
        "registers": 48,
        "shared_bytes": 1088,
        "stack_bytes": 40,
        "local_bytes": 8,
    }
    assert (second["kernel"], second["architecture"], second["registers"]) == ("_Z6secondPf", "sm_120", 32)


@pytest.fixture
def person(tmp_path: Path) -> Persons:
    rng = np.random.default_rng(0)
    image = cv2.GaussianBlur(rng.integers(0, 256, (120, 160, 3), dtype=np.uint8), (5, 5), 1)
    cv2.imwrite(str(tmp_path / "0.png"), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    keypoints, visible = random_points(1, 16, (120, 160), 0)
    return Persons(
        image_paths=(tmp_path / "0.png",),
        image_index=np.zeros(1, np.int64),
        center=np.array([[70, 60]], np.float32),
        scale=np.full((1, 2), 0.5, np.float32),
        keypoints=keypoints.numpy(),
        visible=(visible > 0.5).float().numpy(),
        source_row=np.zeros(1, np.int64),
        skeleton=MPII,
    )


@pytest.mark.parametrize("mirror", [False, True])
def test_the_users_loader_does_equal_work(person: Persons, mirror: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without rotation and scaling its sample is ours: the pixels to OpenCV's rounding, the target to float32's."""
    monkeypatch.setattr(torch, "rand", lambda *_: torch.tensor([0.5, 0.5, 0.0 if mirror else 1.0]))
    images, target, weight = user_loader.UserDataset(person, (64, 64))[0]
    center, scale = torch.from_numpy(person.center), torch.from_numpy(person.scale)
    flip = torch.tensor([mirror])
    matrix = fastpose.crop_to_image_matrix(center, scale, 0.0, (64, 64), flip=flip)
    picture = cv2.cvtColor(cv2.imread(str(person.image_paths[0])), cv2.COLOR_BGR2RGB)
    color = fastpose.normalize_color(fastpose.IMAGENET_MEAN, fastpose.IMAGENET_STD)
    crop = fastpose.affine_crop(torch.from_numpy(picture), matrix, (64, 64), color=color)
    assert (images - crop[0]).abs().max() < 0.6 / (255 * 0.224)
    to_map = fastpose.crop_to_image_matrix(center, scale, 0.0, (16, 16), flip=flip)
    points = fastpose.transform_points(torch.from_numpy(person.keypoints), to_map, inverse=True)
    points, visible = fastpose.swap_pairs(points, torch.from_numpy(person.visible), flip, MPII.mirror_pairs)
    expected, expected_weight = upstream.target(points[0].numpy(), visible[0].numpy(), 16, 16, 1)
    np.testing.assert_allclose(target.numpy(), expected, atol=1e-6)
    np.testing.assert_array_equal(weight[:, 0, 0].numpy(), expected_weight)


def test_the_users_loader_gives_batches_without_end(person: Persons) -> None:
    persons = person.select([0, 0, 0])
    with contextlib.closing(user_loader.user_batches(persons, (64, 64), 2, 0, CPU)) as batches:
        shapes = [[list(tensor.shape) for tensor in next(batches)] for _ in range(3)]
    assert shapes == [[[2, 3, 64, 64], [2, 16, 16, 16], [2, 16, 1, 1]]] * 3


def test_needs_torch_numpy_and_opencv_alone() -> None:
    """The report and what it measures work where nothing else is installed."""
    script = """
import sys
for name in ("scipy", "matplotlib", "yaml", "pytest", "kornia", "numba"):
    sys.modules[name] = None
import torch
from bench import gpu_report, train_step
device = torch.device("cpu")
step = train_step.Step(train_step.Scale.of(device), device)
"""
    root = Path(gpu_report.__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class FakeGpu:
    """As much of torch.cuda as the timer talks to, with a clock that each launch moves by `launch_s`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, launch_s: float) -> None:
        self.now, self.launch_s, self.capturing = 0.0, launch_s, False
        self.captured: list[int] = []
        gpu = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                self.at = 0.0

            def record(self) -> None:
                self.at = gpu.now

            def elapsed_time(self, end: Event) -> float:
                return 1e3 * (end.at - self.at)

        class Graph:
            def replay(self) -> None:
                gpu.now += gpu.launch_s * len(gpu.captured)

        class Stream:
            def wait_stream(self, other: Stream) -> None: ...

        @contextlib.contextmanager
        def capture(graph: Graph) -> Iterator[None]:
            gpu.capturing = True
            yield
            gpu.capturing = False

        def nothing(*arguments: object) -> int:
            return 0

        fakes = {"Event": Event, "CUDAGraph": Graph, "graph": capture, "Stream": Stream, "current_stream": Stream}
        fakes |= dict.fromkeys(("synchronize", "set_sync_debug_mode", "get_sync_debug_mode", "set_stream"), nothing)
        for name, fake in (fakes | {"stream": lambda stream: contextlib.nullcontext()}).items():
            monkeypatch.setattr(torch.cuda, name, fake)

    def launch(self, n: int) -> None:
        if self.capturing:
            self.captured.append(n)
        else:
            self.now += self.launch_s


@pytest.mark.parametrize(("launch_s", "sets", "launches"), [(1e-5, 4, 200), (3e-3, 3, 3), (1e-5, 1000, 1000)])
def test_a_launch_is_its_share_of_a_replay(
    monkeypatch: pytest.MonkeyPatch, launch_s: float, sets: int, launches: int
) -> None:
    """Whole rounds over the input sets are captured, of short launches at least 2 ms of them."""
    gpu = FakeGpu(monkeypatch, launch_s)
    timing = Timer(torch.device("cuda")).time(gpu.launch, sets)
    assert gpu.captured == [n % sets for n in range(launches)]
    assert timing.median == pytest.approx(launch_s)
    assert timing.iqr == pytest.approx(0, abs=1e-9)


def test_a_capture_that_fails_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, errors = FakeGpu(monkeypatch, 1e-5), []

    @contextlib.contextmanager
    def capture(graph: object) -> Iterator[None]:
        yield
        raise RuntimeError("CUDA error: operation failed\nmore of it")

    monkeypatch.setattr(torch.cuda, "graph", capture)
    timing = Timer(torch.device("cuda"), errors).time(gpu.launch, 3, "render_heatmaps")
    assert timing.median == pytest.approx(1e-5)
    assert "timed without a graph" in timing.note
    assert errors == [
        "figures after this may be wrong: capture of render_heatmaps failed: CUDA error: operation failed"
    ]


def test_work_that_waits_is_not_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, errors = FakeGpu(monkeypatch, 1e-5), []

    def refuse(mode: object) -> None:
        if mode == "error":
            raise RuntimeError("called a synchronizing CUDA operation")

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", refuse)
    timing = Timer(torch.device("cuda"), errors).time(gpu.launch, 3)
    assert "called a synchronizing CUDA operation" in timing.note
    assert errors == []
    assert gpu.captured == []


@pytest.mark.cuda
def test_on_cuda_a_launch_is_timed_in_a_graph() -> None:
    timer = Timer(torch.device("cuda"))
    moved = 64 << 20
    sets = cases.input_sets(moved, timer.cache_bytes)
    assert sets * moved > 4 * timer.cache_bytes > 0
    source = torch.randint(0, 256, (sets, moved // 2), dtype=torch.uint8, device="cuda")
    target = torch.zeros_like(source)
    timing = timer.time(lambda n: target[n].copy_(source[n]), len(source))
    assert timing.note == ""
    assert timer.errors == []
    assert timing.median > 0
    assert torch.equal(target, source)  # every set had its turn


@pytest.mark.cuda
def test_on_cuda_work_that_waits_is_timed_without_a_graph() -> None:
    values = torch.rand(1000, device="cuda")
    timer = Timer(torch.device("cuda"))
    timing = timer.time(lambda n: values.sum().item(), 2)
    assert timer.errors == []
    assert timing.median > 0
    assert "without a graph" in timing.note
    assert torch.cuda.get_sync_debug_mode() == 0


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("op", PEERS)
def test_on_cuda_every_op_and_peer_is_timed_in_a_graph(op: str, dtype: torch.dtype) -> None:
    """Without kornia's, which waits for the device, and those that compile for long."""
    device = torch.device("cuda")
    timer, report = Timer(device), Report(device)
    row = [row for row in gpu.goal_rows(64) if (row.op.name, row.options["dtype"]) == (op, dtype)][-1]
    peers = {name: peer for name, peer in row.peers.items() if not gpu.is_compiled(name) and name != "kornia"}
    figures = gpu.op_row(report, timer, row.make(timer), peers)
    assert figures["op"] == op
    assert figures["peers"].keys() == peers.keys()
    assert report.figures["notes"] == []


@pytest.mark.cuda
def test_on_cuda_the_fused_loss_needs_less_memory() -> None:
    device = torch.device("cuda")
    report = Report(device)
    gpu.measure_peak_memory(report, Timer(device), 32)
    peaks = {(row["loss"], row["dtype"]): row["bytes"] for row in report.figures["extra"]}
    for dtype in ("float32", "bfloat16"):
        assert 0 < peaks["fused", dtype] < peaks["render+mse_loss", dtype]


@pytest.mark.cuda
def test_on_cuda_step_and_sources_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the user's loader, whose processes take longer to start and end than a test may."""
    monkeypatch.setattr(pipeline, "CORES", (1,))
    monkeypatch.setattr(pipeline, "cores_here", lambda: 2)
    makers = pipeline.feed_makers
    monkeypatch.setattr(
        pipeline, "feed_makers", lambda *a: {name: make for name, make in makers(*a).items() if name != pipeline.USER}
    )
    small = train_step.Scale.of(CPU)
    report = Report(torch.device("cuda"))
    train_step.measure(report, small)
    pipeline.measure(report, small)
    assert report.figures["errors"] == []
    step = report.figures["step"]
    modes = [(mode, tuned) for mode in ("eager", "cuda_graph") for tuned in (False, True)]
    assert [(row["mode"], row["cudnn_benchmark"]) for row in step["fixed"]] == modes
    assert step["peak_bytes"]["fused"] > 0
    assert step["peak_bytes"]["render+mse_loss"] > 0
    rows = report.figures["training"]
    assert {row["cores"] for row in rows} == set(pipeline.core_counts())
    assert {"resident", "files", "pack, jpeg", "pack, raw"} <= {row["source"] for row in rows}
    assert all(row["peak_bytes"] > 0 for row in rows)


@pytest.mark.cuda
def test_on_cuda_large_maps_need_less_memory_without_a_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "WHOLE_BODY", (133,))
    report = Report(torch.device("cuda"))
    gpu.measure_large_maps(report, Timer(torch.device("cuda")))
    assert report.figures["errors"] == []
    peaks = {(row["loss"], row["dtype"]): row["peak_bytes"] for row in report.figures["large_maps"]}
    for dtype in ("float32", "bfloat16"):
        assert 0 < peaks["fused", dtype] < peaks["render+mse_loss", dtype]
