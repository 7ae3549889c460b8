# SPDX-License-Identifier: Apache-2.0
"""Networks in ONNX files beside the networks that they were made from: alone, and as `fastpose export` writes them."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

import fastpose
from fastpose import evaluate, export, predict
from fastpose.models import onnx_network, pose_resnet
from fastpose.models.checkpoint import CheckpointError
from fastpose.options.settings import Settings
from fastpose.skeletons import COCO, MPII
from tests.helpers.onnx_graphs import constant_graph
from tests.helpers.runs import save_weights
from tests.helpers.tiny_mpii import write_tiny_mpii

SIZE = (64, 64)
PICTURES = [np.random.default_rng(n).integers(0, 256, (90, 70 + n, 3)).astype(np.uint8) for n in range(3)]
BOXES = [[[5, 5, 40, 60], [10, 0, 50, 50]], [], [[0, 0, 60, 80]]]


def with_peaks(model: nn.Module) -> nn.Module:
    """Weights that make maps with peaks, unlike those that training begins with."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.1)
    return model.eval()


def write_graph(model: nn.Module, path: Path, batch: int | None = None) -> Path:
    """A network alone as ONNX; for any number of images, or for `batch`."""
    images = torch.zeros(batch or 2, 3, *SIZE)
    dims = None if batch else ({0: torch.export.Dim("batch")},)
    torch.onnx.export(model, (images,), str(path), dynamo=True, verbose=False, dynamic_shapes=dims, external_data=False)
    return path


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("onnx")
    files = {}
    for head, joints in (("deconv", MPII), ("simcc", COCO)):
        torch.manual_seed(0)
        options = {"size": SIZE, "split_ratio": 2.0} if head == "simcc" else {}
        model = with_peaks(pose_resnet(18, head, joints.num_joints, channels=16, **options))
        config = {"depth": 18, "head": head, "channels": 16, "size": list(SIZE), "color_order": "rgb", "refine": "none"}
        config |= {"targets": "simcc"} if head == "simcc" else {}
        files[head] = folder / f"{head}.pt"
        save_weights(files[head], model.state_dict(), Settings.of(config).as_plain(), skeleton=asdict(joints))
        for batch in (None, 2) if head == "deconv" else (None,):
            files[f"{head} {batch}"] = write_graph(model, folder / f"{head}{batch}.onnx", batch)
    return files


def assert_same(found, wanted, score: float) -> None:
    """The same joints but for those that rounding decides, one in twenty at most."""
    assert [len(people) for people in found] == [len(people) for people in wanted]
    points, scores = (torch.cat([getattr(people, name) for people in found]) for name in ("keypoints", "scores"))
    others, of_others = (torch.cat([getattr(people, name) for people in wanted]) for name in ("keypoints", "scores"))
    assert ((points - others).norm(dim=2) < 0.01).float().mean() > 0.95
    assert (scores - of_others).abs().max() < score * of_others.abs().max()


@pytest.mark.parametrize(("head", "batch"), [("deconv", None), ("deconv", 2), ("simcc", None)])
def test_a_network_alone_finds_what_it_finds_in_torch(checkpoints, head, batch):
    """Fixed batches are filled up: here are three persons for batches of two."""
    wanted = fastpose.Predictor(checkpoints[head], device="cpu", reduced_decode=False)(PICTURES, BOXES)
    predictor = fastpose.Predictor(checkpoints[f"{head} {batch}"], device="cpu", refine="none")
    assert predictor.skeleton == (MPII if head == "deconv" else COCO)
    assert_same(predictor(PICTURES, BOXES), wanted, 1e-4)


@pytest.mark.parametrize(
    ("head", "input", "udp"), [("deconv", "crops", True), ("deconv", "image", False), ("simcc", "crops", False)]
)
def test_an_exported_file_finds_what_its_checkpoint_finds(checkpoints, tmp_path, head, input, udp):
    """But for the pixels of its crops, which are whole numbers."""
    file = tmp_path / "exported.onnx"
    words = ["--checkpoint", str(checkpoints[head]), "--out", str(file), "--input", input, "--udp", str(udp).lower()]
    assert export.main([*words, "--flip_test", "true"]) == 0
    predictor = fastpose.Predictor(file, device="cpu")
    assert predictor.trained.settings.network.udp == udp
    wanted = fastpose.Predictor(checkpoints[head], device="cpu", reduced_decode=False, udp=udp)(PICTURES, BOXES)
    found = predictor(PICTURES, BOXES)
    assert predictor.skeleton.joints == wanted[0].names
    points, others = (torch.cat([people.keypoints for people in entries]) for entries in (found, wanted))
    assert ((points - others).norm(dim=2) < 1.5).float().mean() > 0.8  # rounding moves some maxima of random maps
    scores, of_others = (torch.cat([people.scores for people in entries]) for entries in (found, wanted))
    assert (scores - of_others).abs().max() < 0.05 * of_others.abs().max()
    with pytest.raises(CheckpointError, match=r"takes pixels and returns points"):
        fastpose.load_model(file)(torch.zeros(1, 3, *SIZE))
    with pytest.raises(ValueError, match=r"refine: .* has none inside, got dark"):
        fastpose.Predictor(file, refine="dark")


def test_commands_take_it_as_a_checkpoint(checkpoints, tmp_path, capsys):
    data = write_tiny_mpii(tmp_path / "data")
    file = str(checkpoints["deconv None"])
    words = ["--data_root", str(data), "--device", "cpu"]
    assert evaluate.main(["--checkpoint", file, *words, "--out", str(tmp_path / "a"), "--refine", "none"]) == 0
    options = ["--out", str(tmp_path / "b"), "--reduced_decode", "false"]
    assert evaluate.main(["--checkpoint", str(checkpoints["deconv"]), *words, *options]) == 0
    scores = [json.loads((tmp_path / name / "scores.json").read_text())["pckh"]["Mean"] for name in ("a", "b")]
    assert scores[0] == pytest.approx(scores[1], abs=5)
    picture = str(data / "images/000.jpg")
    assert predict.main(["--checkpoint", file, "--image", picture, "--out", str(tmp_path / "c")]) == 0
    assert "taken for RGB crops of 64x64 px and the joints of mpii" in capsys.readouterr().err
    assert cv2.imread(str(tmp_path / "c/000_pose.png")).shape == cv2.imread(picture).shape


@pytest.mark.parametrize(
    ("shapes", "options", "error"),
    [
        ([(1, 16, 32, 32)], {}, r"expected heatmaps \[B, K, 16, 16\], .* got outputs \[1, 16, 32, 32\]"),
        ([(1, 17, 128), (1, 17, 64)], {}, r"expected heatmaps .* got outputs \[1, 17, 128\] and \[1, 17, 64\]"),
        ([(1, 5, 16, 16)], {}, r"skeleton: .* has 5 joints, and coco 17: name its joints"),
        ([(1, 17, 16, 16)], {"skeleton": "mpii"}, r"skeleton: .* has 17 joints, and mpii 16"),
        ([(1, 17, 16, 16)], {"size": (96, 96)}, r"size: .* takes images of 64x64 pixels, got \[96, 96\]"),
    ],
)
def test_another_network_is_refused_with_what_it_returns(tmp_path, shapes, options, error):
    outputs = {f"output{number}": np.zeros(shape, np.float32) for number, shape in enumerate(shapes)}
    file = constant_graph(tmp_path / "other.onnx", **outputs)
    with pytest.raises(ValueError, match=error):
        fastpose.Predictor(file, **options)


def test_a_file_that_is_none_is_named(tmp_path, monkeypatch):
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    with pytest.raises(CheckpointError, match=r"bad\.onnx: onnxruntime cannot load it: "):
        fastpose.Predictor(tmp_path / "bad.onnx")
    with pytest.raises(FileNotFoundError, match=r"checkpoint: no file .*none\.onnx"):
        fastpose.Predictor(tmp_path / "none.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        ValueError, match=r"checkpoint: .* onnxruntime, which cannot be imported .*pip install onnxruntime"
    ):
        fastpose.Predictor(tmp_path / "bad.onnx")


def test_metadata_that_is_not_ours_is_named(checkpoints, tmp_path):
    import onnx

    model = onnx.load(str(checkpoints["deconv None"]))
    model.metadata_props.add(key="fastpose", value='"0.1.0"')
    onnx.save(model, str(tmp_path / "a.onnx"))
    with pytest.raises(CheckpointError, match=r"metadata skeleton: expected what fastpose export writes"):
        fastpose.Predictor(tmp_path / "a.onnx")


def test_without_its_provider_cuda_is_said_and_the_cpu_computes(checkpoints, caplog):
    network = onnx_network.OnnxNetwork(checkpoints["deconv None"], torch.device("cuda"))
    assert "this onnxruntime has no CUDA: the network runs on the CPU" in caplog.text
    assert network(torch.zeros(1, 3, *SIZE)).shape == (1, 16, 16, 16)
