# SPDX-License-Identifier: Apache-2.0
"""docs/predicting.md as it stands there: its code, and its commands, on a network and pictures made here."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from fastpose import cli
from fastpose.models import pose_resnet
from fastpose.options.settings import Settings
from fastpose.skeletons import COCO
from tests.commands.test_predict import write_film
from tests.docs.test_pages import blocks
from tests.helpers import dots
from tests.helpers.onnx_graphs import constant_graph
from tests.helpers.runs import save_weights
from tests.test_predictor import ONE, film, save


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder with the files that the page names."""
    torch.manual_seed(0)
    model = pose_resnet(18, "fcn", COCO.num_joints, channels=4)
    config = {"depth": 18, "channels": 4, "size": [64, 64], "color_order": "rgb"}
    save_weights(tmp_path / "best.pt", model.state_dict(), Settings.of(config).as_plain(), skeleton=asdict(COCO))
    (tmp_path / "photos").mkdir()
    for name in ("photo.jpg", "other.png", "photos/a.jpg"):
        save(tmp_path / name, dots.draw(ONE))
    (tmp_path / "boxes.csv").write_text("a.jpg,100,80,60,80,0.9\n")
    write_film(tmp_path / "film.mp4", film(4))
    dets, labels = np.array([[[5, 5, 30, 30, 0.9]]], np.float32), np.zeros((1, 1), np.int64)
    constant_graph(tmp_path / "yolox.onnx", dets=dets, labels=labels)
    (tmp_path / "mine.py").write_text(
        "def make():\n    return lambda pictures: [[[50, 50, 100, 100]]] * len(pictures)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_s_code_runs(here):
    names: dict = {}
    for block in blocks("predicting.md", "python"):
        exec(compile(block, "predicting.md", "exec"), names)
    assert names["first"].keypoints.shape == (1, 17, 2)
    assert names["drawn"].shape == (240, 320, 3)
    assert names["results"][0]["image_id"] == "photo.jpg"
    assert names["arrays"]["keypoints"].shape == (1, 17, 2)
    assert names["people"].ids is not None  # of the last frame


def test_the_page_s_commands_run(here):
    lines = [line.partition("#")[0] for block in blocks("predicting.md", "sh") for line in block.splitlines()]
    ran = 0
    for words in filter(None, map(shlex.split, lines)):
        assert words[0] == "fastpose"
        if "0" in words[words.index("--image") + 1]:  # there is no camera here
            continue
        words = [
            name for word in words for name in (sorted(str(p) for p in Path().glob(word)) if "*" in word else [word])
        ]
        assert cli.main([*words[1:], "--device", "cpu"]) == 0, words
        found = json.loads(Path("predictions/predictions.json").read_text())
        assert isinstance(found, list)
        ran += 1
    assert ran == 4
