# SPDX-License-Identifier: Apache-2.0
"""What the pages say of a GPU is what the committed results say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from bench import gpu_report, profile_kernels
from bench.gpu_session import WAITS_FOR_LOADS

ROOT = Path(__file__).resolve().parents[2]
RESULTS = sorted((ROOT / "bench/results").glob("gpu_*.json"))
NAME = re.search(r"gpu_\w+\.json", (ROOT / "docs/performance.md").read_text(encoding="utf-8"))
assert NAME is not None
SHOWN = ROOT / "bench/results" / NAME[0]  # the report that the pages are about


def section(page: str, title: str) -> str:
    """Of a page, what follows a heading up to the next one of its depth or above."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8").split(f"\n{title}\n", 1)[1]
    depth = title.split(" ")[0]
    ends = [text.find(f"\n{'#' * n} ") for n in range(1, len(depth) + 1)]
    return text[: min([end for end in ends if end >= 0], default=len(text))]


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    return json.loads(SHOWN.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_every_committed_report_is_whole(path: Path) -> None:
    figures = json.loads(path.read_text(encoding="utf-8"))
    assert figures["errors"] == []
    assert figures["commit"] in path.name
    assert "-dirty" not in figures["commit"]
    assert "| `affine_crop` | float32 | contiguous |" in gpu_report.tables(figures)


def test_the_measured_times_are_those_of_the_report(figures: dict[str, Any]) -> None:
    page = section("performance.md", "## Measured")
    speeds = {row["bytes"]: row["gb_s"] for row in figures["extra"] if row["what"] == "copy"}
    for row in figures["ops"]:
        if row["op"] == "affine_crop" and row["dtype"] == "float16":
            continue  # as bfloat16
        assert f"{1e6 * row['median_s']:.1f} |" in page, row["op"]
        if row["op"] != "affine_crop":  # whose two layouts share a row
            ratio = row["median_s"] / gpu_report.least_floor(row, speeds)
            assert f"{1e6 * row['median_s']:.1f} | {ratio:.2f} |" in page, row["op"]


def test_the_profile_is_that_of_the_committed_file() -> None:
    page = section("performance.md", "### What the profiler says")
    linked = re.search(r"gpu_\w+_ncu\.csv", page)
    assert linked is not None
    lines = (ROOT / "bench/results" / linked[0]).read_text(encoding="utf-8").splitlines()
    table = profile_kernels.profile_table(lines)
    assert table in page
    assert table.count("_kernel<") >= 23


def test_what_feeds_a_gpu_is_what_the_report_measured(figures: dict[str, Any]) -> None:
    page = section("training.md", "### What feeds a GPU")
    limits = {row["cores"]: row["images_per_s"] for row in figures["extra"] if row["what"] == "decoder limit"}
    for row in figures["training"]:
        # More than the cores can decode is what was prepared before the window began: the page has what came alone.
        fed = row["source"].startswith("files") and row["samples_per_s"] > limits[row["cores"]]
        assert f"| {row['loader_samples_per_s' if fed else 'samples_per_s']:,.0f} (" in page, row


def test_what_a_stored_target_costs_is_what_the_report_measured(figures: dict[str, Any]) -> None:
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    rows = {(row["joints"], row["dtype"], row["loss"]): row for row in figures["large_maps"]}
    shown = {key: f"{1e3 * row['median_s']:.2f} ms and {1e-9 * row['peak_bytes']:.1f} GB" for key, row in rows.items()}
    for joints, dtype in ((308, "bfloat16"), (133, "bfloat16"), (308, "float32")):
        fused, stored = (shown[joints, dtype, loss] for loss in ("fused", "render+mse_loss"))
        assert re.search(rf"{re.escape(fused)}( without it)?, {re.escape(stored)}", readme), (joints, fused, stored)


def test_a_profile_says_what_each_launch_is_limited_by() -> None:
    names = ("ID", "Kernel Name", "Section Name", "Metric Name", "Metric Unit", "Metric Value")
    metrics = [
        ("Duration", "ns", "12,345"),
        ("Avg. Issued Instructions Per Scheduler", "inst", "400"),
        ("SM Active Cycles", "cycle", "1,000.00"),
        ("Warp Cycles Per Issued Instruction", "cycle", "16.0"),
        (WAITS_FOR_LOADS, "inst", "12.0"),
        ("DRAM Throughput", "%", "70.4"),
        ("L1/TEX Cache Throughput", "%", "18.2"),
        ("L2 Cache Throughput", "%", "65.6"),
        ("Achieved Active Warps Per SM", "warp", "27.2"),
        ("Theoretical Active Warps per SM", "warp", "32"),
        ("Registers Per Thread", "register/thread", "64"),
        ("Local Memory Spilling Request Overhead", "%", "no data"),
    ]
    rows = [names, *(("0", "void unnamed>::a_kernel<float, 1>(Params)", "Some", *metric) for metric in metrics)]
    lines = ["==PROF== Connected to process 1", *(",".join(f'"{cell}"' for cell in row) for row in rows)]
    others = [line.replace("a_kernel", "b_kernel") for line in lines]
    table = profile_kernels.profile_table([*lines, *others])
    assert table.splitlines()[3:] == ["| `b_kernel<float, 1>` | 12.3 | 40 | 70 | 18 | 66 | 75 | 27 (32) | 64 |"]
    table = profile_kernels.profile_table(line for line in lines if WAITS_FOR_LOADS not in line)
    assert table.splitlines()[2:] == ["| `a_kernel<float, 1>` | 12.3 | 40 | 70 | 18 | 66 |  | 27 (32) | 64 |"]


def test_the_speeds_of_prediction_are_those_of_the_file() -> None:
    measured = json.loads((ROOT / "bench/results/predict_loops.json").read_text())["persons_per_second"]
    page = (ROOT / "docs/predicting.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| (.*?) \| ([\d.,]+) \| ([\d.,]*) ?\|$", page, re.MULTILINE)
    found = {name: (float(own.replace(",", "")), rest.replace(",", "")) for name, own, rest in table}
    for begin, name, alone in (
        ("`fastpose.Predictor`, onnxruntime", "fastpose, onnxruntime", None),
        ("`fastpose.Predictor`, torch", "fastpose, torch", "fastpose"),
        ("rtmlib", "rtmlib, onnxruntime", "rtmlib"),
        ("mmpose", "mmpose, torch", "mmpose"),
    ):
        own, rest = next(value for label, value in found.items() if label.startswith(begin))
        assert own == measured[f"{name}, with the network"]
        assert rest == ("" if alone is None else f"{measured[f'{alone}, without']:.0f}")
