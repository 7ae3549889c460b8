# SPDX-License-Identifier: Apache-2.0
"""The networks of mmpose in docs/own_model.md, evaluated from files with the names they have there."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from mmengine.hub import get_config
from mmengine.registry import init_default_scope
from mmpose.models import build_pose_estimator

from fastpose import evaluate
from fastpose.models.weights import load_weights, read_weights
from tests.helpers.tiny_coco import write_tiny_coco

GUIDE = (Path(__file__).parents[2] / "docs" / "own_model.md").read_text(encoding="utf-8")
SIZE = (64, 64)


@pytest.fixture
def guide(tmp_path, monkeypatch):
    """Imports a module of the guide, from the working directory."""
    monkeypatch.chdir(tmp_path)

    def load(name: str) -> ModuleType:
        (block,) = re.findall(rf"```python\n# {name}\.py\n(.*?)```", GUIDE, re.DOTALL)
        (tmp_path / f"{name}.py").write_text(block, encoding="utf-8")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)

    return load


def scores(checkpoint: Path, model: str, tmp_path: Path, *words: str) -> dict:
    coco = write_tiny_coco(tmp_path / "coco", persons=3)
    arguments = ["--checkpoint", str(checkpoint), "--model", model, "--dataset", "coco", "--data_root", str(coco)]
    arguments += ["--images", "images", "--annotations", "annotations/valid.json", "--size", "64", "64"]
    assert evaluate.main([*arguments, "--device", "cpu", "--out", str(tmp_path / "out"), *words]) == 0
    assert len(json.loads((tmp_path / "out" / "keypoints_results.json").read_text())) == 3
    return json.loads((tmp_path / "out" / "scores.json").read_text())


def test_hrnet_of_mmpose(guide, tmp_path):
    networks = guide("mmpose_networks")
    init_default_scope("mmpose")
    config = get_config(
        "mmpose::body_2d_keypoint/topdown_heatmap/coco/td-hm_hrnet-w32_8xb64-210e_coco-256x192.py"
    ).model
    config.backbone.init_cfg = None
    torch.manual_seed(0)
    estimator = build_pose_estimator(config).eval()
    path = tmp_path / "hrnet.pth"
    torch.save({"meta": {}, "state_dict": estimator.state_dict()}, path)
    network = networks.hrnet_w32(17)
    assert "HRNet in the layout of mmpose 1.x" in load_weights(network, read_weights(path))
    images = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(network.eval()(images), estimator(images, None, mode="tensor"))
    assert "AP" in scores(path, "mmpose_networks:hrnet_w32", tmp_path)["coco"]
