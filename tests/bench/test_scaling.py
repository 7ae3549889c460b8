# SPDX-License-Identifier: Apache-2.0
"""docs/scaling.md is what the committed results and its formulas give; what is measured for it is measured right."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import remote, scaling
from bench.train_step import Scale

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs/scaling.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def measured() -> scaling.Measured:
    """The results that the page names."""
    paths = [ROOT / "bench/results" / name for name in re.findall(r"bench/results/(\w+\.json)", TEXT)]
    assert len(paths) == 2
    return scaling.Measured.read(*paths)


def test_the_page_is_what_the_results_give(measured: scaling.Measured) -> None:
    assert scaling.page(TEXT, measured) == TEXT, "run python -m bench.scaling"
    assert set(re.findall(r"bench\.scaling: (\w+)", TEXT)) == scaling.BLOCKS.keys()


def test_the_results_are_of_a_commit_and_of_the_gpu_report_s_pictures(measured: scaling.Measured) -> None:
    assert "-dirty" not in measured.remote["commit"]
    assert measured.remote["commit"] in measured.remote_path.name
    pictures = measured.remote["pictures"]
    size = f"{pictures['count']} JPEGs of {pictures['width']} x {pictures['height']} pixels, quality 90, "
    kilobytes = int(measured.weight("files")["read"]) // 1000
    assert any(f"{size}{kilobytes} kB on average" in note for note in measured.gpu["notes"])


def test_the_tables_are_printed_too(capsys: pytest.CaptureFixture[str], measured: scaling.Measured) -> None:
    paths = ["--gpu", str(measured.gpu_path), "--remote", str(measured.remote_path)]
    assert scaling.main(["--table", *paths]) == 0
    assert "| raw pack |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rate", "cores"),
    [
        (90, 1),  # one core has 100
        (150, 2),  # two have 180
        (185, 3),  # as four have 320, three have 240; two were too few
        (300, 4),
        (800, 10),  # four have 80 each
    ],
)
def test_cores_are_those_that_decode_fast_enough(rate: float, cores: int) -> None:
    assert scaling.cores_for({1: 100.0, 2: 180.0, 4: 320.0}, rate) == cores


def test_a_ring_sends_twice_all_but_one_s_share() -> None:
    # Four GPUs, 100 parameters: 3 of 4 parts, 25 floats each, to be added up, and again to be handed around.
    assert scaling.all_reduce_bytes(100, 4) == 2 * 3 * 25 * 4
    assert scaling.all_reduce_bytes(100, 1) == 0


def test_what_is_read_again_is_what_drawn_epochs_give() -> None:
    rng = np.random.default_rng(0)
    known = np.zeros((4, 20_000), bool)
    for epoch in range(1, 6):
        machine = rng.permutation(np.arange(20_000) % 4)
        new = ~known[machine, np.arange(20_000)]
        assert new.mean() == pytest.approx(scaling.read_again(4, epoch), abs=0.02)
        known[machine, np.arange(20_000)] = True


def test_the_web_server_gives_files_and_ranges(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(range(100)))
    with remote.web_server(tmp_path) as address:

        def get(name: str, **headers: str) -> bytes:
            with urllib.request.urlopen(urllib.request.Request(f"{address}/{name}", headers=headers)) as answer:
                return answer.read()

        assert get("a") == bytes(range(100))
        assert get("a", Range="bytes=10-19") == bytes(range(10, 20))
        assert get("a", Range="bytes=90-") == bytes(range(90, 100))
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get("b")


def test_remote_reading_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("aiohttp")
    scale = Scale.of(torch.device("cpu"))
    monkeypatch.setattr(remote, "THREADS", (1, 2))
    monkeypatch.setattr(remote, "ROUNDS", 1)
    monkeypatch.setattr(remote, "LATENCIES", (0.0,))
    monkeypatch.setattr(remote.Scale, "of", lambda device: scale)
    assert remote.main(["--out", str(tmp_path)]) == 0
    figures = json.loads(next(tmp_path.glob("remote_*.json")).read_text(encoding="utf-8"))
    assert [row["source"] for row in figures["bytes"]] == ["files", "files, reduced", "pack, jpeg", "pack, raw"]
    assert figures["bytes"][0]["pixels"] == 3 * 144 * 256
    assert figures["bytes"][3]["read"] == figures["bytes"][3]["pixels"]
    assert len(figures["reading"]) == 5 * 3
    assert all(0 < row["least"] <= row["images_per_s"] <= row["most"] for row in figures["reading"])
    # However many ranks a pack is divided among, together they read it once; and this process its own counter.
    one, eight = (row["bytes"] for row in figures["ranks"])
    pack = figures["bytes"][2]["read"] * scale.pictures
    assert pack <= one == pytest.approx(eight, abs=500)
