# SPDX-License-Identifier: Apache-2.0
"""Networks with RTMPose's head load mmpose's own, whole and in parts, and return what those return."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.hub import get_config
from mmengine.registry import init_default_scope
from mmpose.models import build_pose_estimator
from torch import nn

from fastpose.models.network import new_network
from fastpose.models.weights import load_weights, read_weights
from fastpose.options.settle import settle

RESNET = {"type": "ResNet", "depth": 18, "in_channels": 512}


def rtmpose_of_mmpose(letter: str, **backbone: Any) -> nn.Module:
    """As its published configs have it, with weights of every size, so that nothing is hidden behind zeros."""
    init_default_scope("mmpose")
    name = f"mmpose::body_2d_keypoint/rtmpose/coco/rtmpose-{letter}_8xb256-420e_coco-256x192.py"
    config = get_config(name).model
    config.backbone.init_cfg = None
    config.backbone._scope_ = "mmpose"  # mmdet's is the same network
    config.backbone.norm_cfg.type = "BN"  # SyncBN needs a process group, and is BN in evaluation
    if backbone:
        config.head.in_channels = backbone.pop("in_channels")
        config.backbone = backbone
    torch.manual_seed(0)
    model = build_pose_estimator(config)
    generator = torch.Generator().manual_seed(1)
    for value in model.state_dict().values():
        if value.is_floating_point():
            noise = torch.rand(value.shape, generator=generator)
            value.copy_(0.5 + noise if value.ndim < 2 else (noise - 0.5) * (12 / value[0].numel()) ** 0.5)
    return model.eval()


@pytest.mark.parametrize(("letter", "backbone"), [("t", {}), ("m", {}), ("t", RESNET)])
def test_the_vectors_are_mmposes(letter: str, backbone: dict[str, Any], tmp_path: Path) -> None:
    theirs = rtmpose_of_mmpose(letter, **backbone)
    path = tmp_path / "rtmpose.pth"
    torch.save({"state_dict": theirs.state_dict(), "meta": {}}, path)
    weights = read_weights(path)
    network = settle({}, weights=weights).network  # what the file says is enough
    assert network.size == (256, 192)
    assert network.model == ("" if backbone else f"rtmpose-{letter}")
    ours = new_network(network, 17)
    load_weights(ours, weights)
    images = torch.randn(2, 3, 256, 192)
    with torch.no_grad():
        expected, got = theirs.head(theirs.backbone(images)), ours.eval()(images)
    for one, other in zip(expected, got, strict=True):
        scale = float(one.abs().max())
        assert scale > 1e-3
        torch.testing.assert_close(other, one, rtol=0, atol=1e-5 * scale)
