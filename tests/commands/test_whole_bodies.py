# SPDX-License-Identifier: Apache-2.0
"""A run with as many joints as Sapiens2 has, from the file that names them to results in COCO's format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from fastpose import evaluate, train
from fastpose.models import network
from fastpose.skeletons import read_skeleton
from tests.helpers.settings import small_network
from tests.helpers.tiny_coco import write_tiny_coco

JOINTS = 308


def test_308_joints_are_trained_kept_and_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "pose_resnet", small_network)
    names = [f"joint_{number}" for number in range(JOINTS)]
    pairs = [[number, number + 1] for number in range(2, JOINTS, 2)]
    skeleton = {"joints": names, "mirror_pairs": pairs, "limbs": [[0, 1]], "sigmas": [0.05] * JOINTS}
    (tmp_path / "body.yaml").write_text(yaml.safe_dump(skeleton))
    data = write_tiny_coco(tmp_path / "data", persons=4, images=2, skeleton=read_skeleton(tmp_path / "body.yaml"))
    files = {split: f"annotations/{split}.json" for split in ("train", "valid")}
    options = {"dataset": "coco", "skeleton": str(tmp_path / "body.yaml"), "data_root": str(data), "images": "images"}
    options |= {"valid_images": "", "train_annotations": files["train"], "valid_annotations": files["valid"]}
    options |= {"size": [32, 32], "channels": 8, "batch_size": 2, "epochs": 2, "device": "cpu", "log_every": 1}
    options |= {"encoding": "udp", "refine": "dark_udp", "udp": True, "missing": "ignore", "hard_joints": 128}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(options))

    run = tmp_path / "run"
    assert train.main(["--recipe", str(tmp_path / "recipe.yaml"), "--run", str(run)]) == 0
    epochs = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert epochs[1]["loss"] < epochs[0]["loss"]
    checkpoint = torch.load(run / "last.pt", weights_only=True)
    assert checkpoint["config"]["hard_joints"] == 128
    assert list(checkpoint["skeleton"]["joints"]) == names

    out = tmp_path / "out"
    assert evaluate.main(["--checkpoint", str(run), "--out", str(out)]) == 0
    results = json.loads((out / "keypoints_results.json").read_text())
    assert {len(result["keypoints"]) for result in results} == {3 * JOINTS}
