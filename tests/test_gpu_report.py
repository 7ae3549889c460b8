# SPDX-License-Identifier: Apache-2.0
"""The GPU report: its schema, that it refuses wrong ops and goes on without peers, and that its peers do equal work."""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

import fastpose
from bench import gpu_report, kernels, op_cases, peers, pipeline, user_loader
from bench.timing import Timer
from fastpose import ImageBatch
from fastpose.data.persons import Persons
from fastpose.skeletons import MPII
from tests import upstream
from tests.test_affine_crop import random_images, random_matrices
from tests.test_render_heatmaps import random_points

CPU = torch.device("cpu")
KEYS = ["device", "driver", "torch", "cuda", "commit", "date", "copy_gb_s", "ops", "pipeline", "step", "extra"]
OP_KEYS = ["op", "dtype", "layout", "batch", "bytes", "median_s", "iqr_s", "floor_s", "floor_ratio", "gb_s", "peers"]
FEED_KEYS = ["source", "threads", "batch", "samples_per_s", "input_wait_fraction"]
PEERS = {
    "affine_crop": {"torch", "grid_sample", "grid_sample_bare"},
    "render_heatmaps": {"torch", "zeros"},
    "decode_heatmaps": {"torch", "amax"},
    "heatmap_mse_loss": {"torch", "render+mse_loss"},
}


class Run(NamedTuple):
    code: int
    path: Path
    figures: dict[str, Any]
    printed: str


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    out, printed = tmp_path_factory.mktemp("report") / "results", io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = gpu_report.main(["--device", "cpu", "--out", str(out)])
    (path,) = out.iterdir()
    return Run(code, path, json.loads(path.read_text()), printed.getvalue())


def test_writes_every_section_without_an_error(run: Run) -> None:
    assert run.figures["errors"] == []
    assert run.code == 0
    assert list(run.figures) == [*KEYS, "errors", "notes"]
    assert re.fullmatch(r"gpu_\d{8}T\d{4}_([0-9a-f]{7,}(-dirty)?|unknown)\.json", run.path.name)
    assert run.path.stem.endswith(run.figures["commit"])
    assert run.figures["copy_gb_s"] > 0


def test_every_op_has_every_type_and_its_peers(run: Run) -> None:
    rows = run.figures["ops"]
    dtypes = ("float32", "float16", "bfloat16")
    expected = {(op, dtype, "contiguous") for op in PEERS for dtype in dtypes}
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
    compiled = [row for row in rows if "torch_compile" in row["peers"]]
    assert [(row["op"], row["dtype"]) for row in compiled] == [("render_heatmaps", "float32")]


def test_pipeline_and_step_are_told_by_source(run: Run) -> None:
    pipeline_rows, step = run.figures["pipeline"], run.figures["step"]
    sources = {"resident", "files", "cv2+DataLoader"}
    assert sources <= {row["source"] for row in pipeline_rows}
    assert sources <= {row["source"] for row in step["fed"]}
    assert [row["mode"] for row in step["fixed"]] == ["eager"]
    for row in pipeline_rows + step["fed"]:
        assert set(FEED_KEYS) <= row.keys()
        assert row["samples_per_s"] > 0
        assert 0 <= row["input_wait_fraction"] <= 1
    assert any(row["what"] == "decoder limit" and row["images_per_s"] > 0 for row in run.figures["extra"])
    # Whatever GPU JPEG decoding lacks here, it is told.
    assert any("gpu_jpeg" in text for text in [*(row["source"] for row in pipeline_rows), *run.figures["notes"]])


def test_the_table_is_made_from_the_file_again(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_report.main(["--table", str(run.path)]) == 0
    table = capsys.readouterr().out
    assert table.strip() in run.printed
    assert table.count("\n| `") == len(run.figures["ops"])


def small_cases(timer: Timer, images: ImageBatch) -> list[partial[op_cases.Case]]:
    makers = (op_cases.render_case, op_cases.decode_case, op_cases.loss_case)
    return [partial(make, timer, 2, torch.float32) for make in makers]


@pytest.fixture
def only_small_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op_cases, "goal_cases", small_cases)
    monkeypatch.setattr(op_cases, "extra_cases", lambda timer, images: [])
    monkeypatch.setattr(peers, "compiled", lambda function: function)
    monkeypatch.setattr(pipeline, "measure", lambda report: None)


def run_to_figures(out: Path) -> tuple[int, dict[str, Any]]:
    code = gpu_report.main(["--device", "cpu", "--out", str(out)])
    (path,) = out.iterdir()
    return code, json.loads(path.read_text())


WRONG = {
    "render_heatmaps": lambda right: (right[0] + 1e-4, right[1]),
    "decode_heatmaps": lambda right: (right[0] + 0.3, right[1]),
    "heatmap_mse_loss": lambda right: right * 1.001,
}


@pytest.mark.usefixtures("only_small_cases")
@pytest.mark.parametrize("op", WRONG)
def test_a_wrong_op_has_no_row_and_fails_the_report(op: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    right = getattr(fastpose, op)
    monkeypatch.setattr(fastpose, op, lambda *args, **options: WRONG[op](right(*args, **options)))
    code, figures = run_to_figures(tmp_path)
    assert code == 1
    assert any("WrongResultError" in error for error in figures["errors"])
    assert op not in {row["op"] for row in figures["ops"]}
    # The others are timed all the same; the rendering of a peer has nothing to do with them.
    assert len(figures["ops"]) == 2


def test_a_wrong_crop_is_refused() -> None:
    case = op_cases.crop_case(Timer(CPU), op_cases.random_images(2, CPU), 2, torch.float32, "channels_last")
    crops = case.own(0)
    case.check(crops)
    with pytest.raises(op_cases.WrongResultError, match="crop: expected at most"):
        case.check(crops + 0.01)
    crops[1, 2, 3, 4] = math.nan
    with pytest.raises(op_cases.WrongResultError):
        case.check(crops)


def test_a_wrong_gradient_is_refused() -> None:
    case = op_cases.loss_case(Timer(CPU), 2, torch.float16)
    loss, gradient = case.own(0)
    case.check((loss, gradient))
    with pytest.raises(op_cases.WrongResultError, match="gradient"):
        case.check((loss, gradient * 1.01))


@pytest.mark.usefixtures("only_small_cases")
def test_a_section_that_fails_is_told_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fails(report: gpu_report.Report) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(pipeline, "measure", fails)
    code, figures = run_to_figures(tmp_path)
    assert code == 1
    assert figures["errors"] == ["pipeline and step: OSError: no space left on device"]
    assert len(figures["ops"]) == 3


@pytest.mark.usefixtures("only_small_cases")
def test_peers_that_are_missing_or_wrong_are_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kornia", None)  # so that importing it fails
    wrong = dict.fromkeys(["torch"], lambda: lambda n: torch.zeros(2, 3, 256, 256))
    timer, report = Timer(CPU), gpu_report.Report(CPU)
    case = op_cases.crop_case(timer, op_cases.random_images(2, CPU), 2, torch.float32, "contiguous")
    case.peers = {"kornia": case.peers["kornia"], **wrong}
    row = gpu_report.op_row(report, timer, case)
    assert list(row["peers"]) == ["torch"]
    notes = "\n".join(report.figures["notes"])
    assert "affine_crop: peer kornia: ModuleNotFoundError" in notes
    assert "affine_crop float32 contiguous: peer torch gives another result" in notes
    assert report.figures["errors"] == []


def test_a_section_out_of_time_leaves_compiled_peers_out() -> None:
    timer, report = Timer(CPU), gpu_report.Report(CPU)
    report.begin("ops")
    assert not report.late("anything")
    report.section_end = report.started
    row = gpu_report.op_row(report, timer, op_cases.render_case(timer, 2, torch.float32))
    assert sorted(row["peers"]) == ["torch", "zeros"]
    assert report.figures["notes"] == [
        "left out for want of time: render_heatmaps float32 contiguous: peer torch_compile"
    ]


def sectors_by_hand(images: ImageBatch, matrix: Tensor, index: list[int], size: tuple[int, int]) -> set[int]:
    start = images.data.data_ptr() % op_cases.SECTOR
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
                    found |= {(first + channel) // op_cases.SECTOR for channel in range(3)}
    return found


@pytest.mark.parametrize("seed", range(6))
def test_counts_the_sectors_that_taps_touch(seed: int) -> None:
    images, matrix = ImageBatch.from_list(random_images(3, seed)), random_matrices(4, seed)
    matrix[0] = torch.tensor([[1.0, 0, -1], [0, 1, -1]])  # a first row and column that do not touch
    index = [0, 2, 1, 2]
    touched = op_cases.touched_sectors(images, matrix, torch.tensor(index), (7, 5))
    expected = sectors_by_hand(images, matrix, index, (7, 5))
    assert expected
    assert set(touched.nonzero().flatten().tolist()) == expected


def test_the_bytes_of_an_op_are_counted_from_its_sizes() -> None:
    timer = Timer(CPU)
    assert op_cases.render_case(timer, 3, torch.bfloat16).bytes == 3 * 16 * (64 * 64 * 2 + 4 + 4 + 8)
    decode = op_cases.decode_case(timer, 3, torch.float16, flipped=True)
    assert decode.bytes == 3 * 16 * (2 * 64 * 64 * 2 + 8 + 4) + 3 * 2 * 3 * 4
    assert op_cases.loss_case(timer, 3, torch.float32).bytes == 3 * (3 * 16 * 64 * 64 * 4)
    images = op_cases.random_images(2, CPU)
    crop = op_cases.crop_case(timer, images, 2, torch.uint8, "contiguous", size=(32, 32))
    source = crop.bytes - 2 * 3 * 32 * 32
    # Four taps of 3 bytes, two of them in a row: from one sector for many pixels to four for each.
    assert 0 < source <= 2 * 32 * 32 * 4 * op_cases.SECTOR


def test_floor_is_a_copy_of_as_many_bytes() -> None:
    timer = Timer(CPU)
    assert timer.copy_seconds(1000) > 0
    seconds = timer.copy_seconds(1_000_000)
    assert timer.copy_seconds(1_000_000) == seconds
    assert list(timer.copies()) == [1000, 1_000_000]
    assert timer.copies()[1_000_000] == pytest.approx(1e-3 / seconds)


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
        head_size=None,
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
for name in ("scipy", "matplotlib", "jsonargparse", "yaml", "pytest", "kornia"):
    sys.modules[name] = None
import torch
from bench import gpu_report, pipeline
device = torch.device("cpu")
step = pipeline.Step(pipeline.Scale.of(device), device)
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
        fakes |= dict.fromkeys(("synchronize", "set_sync_debug_mode", "get_sync_debug_mode"), nothing)
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


@pytest.mark.cuda
def test_on_cuda_a_launch_is_timed_in_a_graph() -> None:
    timer = Timer(torch.device("cuda"))
    moved = 64 << 20
    assert timer.sets(moved) * moved > 4 * timer.cache_bytes > 0
    source = torch.randint(0, 256, (timer.sets(moved), moved // 2), dtype=torch.uint8, device="cuda")
    target = torch.zeros_like(source)
    timing = timer.time(lambda n: target[n].copy_(source[n]), len(source))
    assert timing.note == ""
    assert timing.median > 0
    assert torch.equal(target, source)  # every set had its turn


@pytest.mark.cuda
def test_on_cuda_work_that_waits_is_timed_without_a_graph() -> None:
    values = torch.rand(1000, device="cuda")
    timing = Timer(torch.device("cuda")).time(lambda n: values.sum().item(), 2)
    assert timing.median > 0
    assert "without a graph" in timing.note
    assert torch.cuda.get_sync_debug_mode() == 0


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", op_cases.DTYPES, ids=str)
@pytest.mark.parametrize("op", PEERS)
def test_on_cuda_every_op_and_peer_is_timed_in_a_graph(op: str, dtype: torch.dtype) -> None:
    """But for kornia's, which waits for the device, and those that compile for long."""
    device = torch.device("cuda")
    timer, report = Timer(device), gpu_report.Report(device)
    maps = {
        "render_heatmaps": op_cases.render_case,
        "decode_heatmaps": op_cases.decode_case,
        "heatmap_mse_loss": op_cases.loss_case,
    }
    if op in maps:
        case = maps[op](timer, 64, dtype)
    else:
        case = op_cases.crop_case(timer, op_cases.random_images(64, device), 64, dtype, "channels_last")
    case.peers = {name: peer for name, peer in case.peers.items() if not name.endswith("_compile") and name != "kornia"}
    row = gpu_report.op_row(report, timer, case)
    assert row["op"] == op
    assert row["peers"].keys() == case.peers.keys()
    assert report.figures["notes"] == []


@pytest.mark.cuda
def test_on_cuda_the_fused_loss_needs_less_memory() -> None:
    device = torch.device("cuda")
    report = gpu_report.Report(device)
    gpu_report.measure_peak_memory(report, Timer(device), 32)
    peaks = {(row["loss"], row["dtype"]): row["bytes"] for row in report.figures["extra"]}
    for dtype in ("float32", "bfloat16"):
        assert 0 < peaks["fused", dtype] < peaks["render+mse_loss", dtype]


@pytest.mark.cuda
def test_on_cuda_pipeline_and_step_run(monkeypatch: pytest.MonkeyPatch) -> None:
    small = pipeline.Scale.of(CPU)
    monkeypatch.setattr(pipeline.Scale, "of", lambda device: small)
    report = gpu_report.Report(torch.device("cuda"))
    pipeline.measure(report)
    assert report.figures["errors"] == []
    step = report.figures["step"]
    assert {"eager", "cuda_graph"} <= {row["mode"] for row in step["fixed"]}
    assert {"resident", "files"} <= {row["source"] for row in step["fed"]}
    assert step["peak_bytes"]["fused"] > 0
    assert step["peak_bytes"]["render+mse_loss"] > 0
