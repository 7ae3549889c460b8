# SPDX-License-Identifier: Apache-2.0
"""docs/own_joints.md from its first command to its last, on thirty drawn pictures and with a small network."""

from __future__ import annotations

import csv
import json
import shlex
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from fastpose import cli
from tests.docs.test_pages import blocks
from tests.helpers import dots
from tests.test_predictor import save

NAMES = {"nose": 0, "left_ear": 1, "right_ear": 2}
SMALL = ["--epochs", "2", "--eval_every", "1", "--size", "64", "64", "--channels", "8", "--lr_drop_epochs", "1"]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder with thirty labelled pictures, the recipe and the script of the page."""
    (tmp_path / "cats/images").mkdir(parents=True)
    generator = np.random.default_rng(0)
    header = next(csv.reader(blocks("own_joints.md", "csv")[0].splitlines()))
    with open(tmp_path / "cats/labels.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(header)
        for number in range(1, 31):
            name = f"images/{number:02d}.jpg"
            cat = dots.at(*generator.uniform(20, 90, 2))
            save(tmp_path / "cats" / name, dots.draw(cat[None]))
            for joint, place in NAMES.items():
                rows.writerow([name, "tom", joint, *cat[place].round(1)])
    (tmp_path / "cats.yaml").write_text(blocks("own_joints.md", "yaml")[0])
    (tmp_path / "find.py").write_text(blocks("own_joints.md", "python")[0])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_leads_from_labels_to_joints(here):
    lines = [line.partition("#")[0] for block in blocks("own_joints.md", "sh") for line in block.splitlines()]
    commands = [words for words in map(shlex.split, lines) if words]
    assert [words[1] for words in commands if words[0] == "fastpose"] == [
        *("check", "view", "train", "train", "evaluate", "predict", "export")
    ]
    for words in commands:
        if words[0] == "pip":
            continue
        if words[0] == "python":
            found = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True, check=True)
            assert [line.split()[1] for line in found.stdout.splitlines()] == list(NAMES)
            continue
        assert cli.main([*words[1:], *(SMALL if words[1] == "train" else [])]) == 0, words
    config = yaml.safe_load(Path("runs/cats/config.yaml").read_text())
    assert (config["score"], config["refine"], config["epochs"]) == ("pck", "dark", 2)
    scores = json.loads(Path("runs/cats/scores.json").read_text())
    assert scores["persons"] == 3  # every tenth of thirty
    assert "nose" in Path("sheet.html").read_text()
    assert len(list(Path("seen").glob("*_pose.png"))) == 30
    assert cv2.imread("01_found.png").shape == (240, 320, 3)


def test_the_labels_of_the_page_are_a_table_that_is_read(here):
    (here / "cats/labels.csv").write_text(blocks("own_joints.md", "csv")[0])
    assert cli.main(["check", "cats", "--recipe", "cats.yaml", "--split", "train"]) == 0
