# SPDX-License-Identifier: Apache-2.0
"""Files of weights in the layouts that other programs write; each is written here from a network of ours."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import re
import shutil
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from scipy.io import loadmat
from torch import Tensor, nn

from fastpose import evaluate, predict, train
from fastpose.engine import pictures
from fastpose.models import (
    export_simple_baselines,
    load_backbone,
    load_weights,
    pose_resnet,
    read_weights,
    resnet,
    to_simple_baselines,
)
from fastpose.models.checkpoint import CheckpointError, load_checkpoint
from fastpose.models.network import NetworkOptions, color_order_of_weights, make_network
from fastpose.options.settle import settle
from fastpose.skeletons import COCO, MPII
from fastpose.trained import load_trained
from tests.helpers.runs import save_weights
from tests.helpers.tiny_mpii import write_tiny_mpii

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """ResNets of few channels: their names and layouts are the same, and files and networks are quickly made."""
    monkeypatch.setattr(resnet, "WIDTHS", (8, 8, 8, 8))


def network(head: str = "deconv", joints: int = 16, seed: int = 1) -> nn.Module:
    """A small ResNet whose every tensor, statistics included, matters to its heatmaps."""
    torch.manual_seed(seed)
    model = pose_resnet(18, head, joints, channels=8).eval()
    for name, value in model.state_dict().items():
        if value.ndim == 1:
            value.copy_(torch.rand_like(value) + (0.5 if name.endswith(("weight", "var")) else 0.0))
        elif value.ndim == 4 and name.startswith(("deconv_layers", "final_layer")):
            value.normal_(std=0.2)
    return model


def prefixed(state: dict[str, Tensor], prefix: str) -> OrderedDict[str, Tensor]:
    return OrderedDict((prefix + name, value) for name, value in state.items())


def in_mmpose(state: dict[str, Tensor], head: str) -> OrderedDict[str, Tensor]:
    heads = ("deconv_layers.", "final_layer.")
    return OrderedDict(((head if n.startswith(heads) else "backbone.") + n, v) for n, v in state.items())


class HistoryBuffer:
    """As mmengine's: an object with arrays, numbers of NumPy and its own methods."""

    def __init__(self) -> None:
        self._log_history, self.max_length = np.arange(3.0), np.int64(10)
        self._statistics_methods = OrderedDict(mean=HistoryBuffer.mean)

    def mean(self) -> float:
        return float(self._log_history.mean())


@contextmanager
def mmengine() -> Iterator[None]:
    """While a file is written there is an mmengine; where it is read there is none."""
    module = types.ModuleType("mmengine.logging.history_buffer")
    module.HistoryBuffer = HistoryBuffer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HistoryBuffer, "__module__", module.__name__)
        for name in ("mmengine", "mmengine.logging"):
            patch.setitem(sys.modules, name, types.ModuleType(name))
        patch.setitem(sys.modules, module.__name__, module)
        yield


def optimizer_state(model: nn.Module) -> dict[str, object]:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0)
    for parameter in model.final_layer.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer.state_dict()


def write(layout: str, path: Path, model: nn.Module) -> None:
    """Writes the weights of `model` as the programs do that `layout` names."""
    state = OrderedDict((name, value.clone()) for name, value in model.state_dict().items())
    contents: object = state
    if layout == "checkpoint.pth.tar":  # SimpleBaselines, in the middle of a training on two GPUs
        contents = {
            "epoch": 3,
            "model": "pose_resnet",
            "state_dict": prefixed(state, "module."),
            "perf": np.float64(88.5),
            "optimizer": optimizer_state(model),
        }
    elif layout == "mmpose 0.x":
        meta = {
            "mmpose_version": "0.29.0",
            "config": "model = dict(type='TopDown')",
            "epoch": 210,
            "best": np.float32(1),
        }
        contents = {"meta": meta, "state_dict": in_mmpose(state, "keypoint_head.")}
    elif layout == "mmpose 1.x":
        own = OrderedDict(
            {"data_preprocessor.mean": torch.zeros(3, 1, 1), "data_preprocessor.std": torch.ones(3, 1, 1)}
        )
        meta = {"dataset_meta": {"sigmas": np.ones(17), "names": np.array(["a", "b"]), "id": {0: "nose"}}, "epoch": 210}
        hub = {"log_scalars": OrderedDict(loss=HistoryBuffer()), "runtime_info": OrderedDict(iter=3)}
        contents = {"meta": meta, "state_dict": own | in_mmpose(state, "head."), "message_hub": hub}
    elif layout == "torchvision":
        own = {"fc.weight": torch.zeros(1000, 8), "fc.bias": torch.zeros(1000)}
        contents = {n: v for n, v in state.items() if not n.startswith(("deconv", "fcn", "final"))} | own
    elif layout == "before 0.4.1":  # as SimpleBaselines' published files: no counters, no zip
        contents = OrderedDict((n, v) for n, v in state.items() if not n.endswith("num_batches_tracked"))
        torch.save(contents, path, _use_new_zipfile_serialization=False)
        return
    elif layout != "bare":
        raise AssertionError(layout)
    with mmengine():
        torch.save(contents, path)


LAYOUTS = {
    "bare": ("SimpleBaselines", "bgr"),
    "before 0.4.1": ("SimpleBaselines", "bgr"),
    "checkpoint.pth.tar": ("SimpleBaselines", "bgr"),
    "mmpose 0.x": ("mmpose 0.x", "rgb"),
    "mmpose 1.x": ("mmpose 1.x", "rgb"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_is_recognised_and_gives_the_same_network(tmp_path, layout):
    model = network(joints=17)
    write(layout, tmp_path / "pose.pth", model)
    weights = read_weights(tmp_path / "pose.pth")
    assert (weights.origin, weights.color_order) == LAYOUTS[layout]
    assert (weights.depth, weights.head, weights.channels, weights.num_joints) == (18, "deconv", 8, 17)
    assert weights.checkpoint is None
    assert str(weights) == (
        f"ResNet-18 in the layout of {weights.origin}, deconv head with 8 channels, 17 joints, for "
        f"{weights.color_order.upper()} images"
    )
    other = network(joints=17, seed=2)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert not torch.allclose(other(images), model(images))
        said = load_weights(other, weights)
        assert torch.equal(other(images), model(images))
    assert said.startswith(f"{tmp_path / 'pose.pth'}: {weights}: loaded ")


@pytest.mark.parametrize("layout", [*LAYOUTS, "torchvision"])
def test_each_layout_is_recognised_in_safetensors_whatever_the_file_is_called(tmp_path, layout):
    package = pytest.importorskip("safetensors.torch")
    write(layout, tmp_path / "pose.pth", network(joints=17))
    weights = read_weights(tmp_path / "pose.pth")
    package.save_file(dict(weights.state), tmp_path / "pose.bin", {"format": "pt"})
    found = read_weights(tmp_path / "pose.bin")
    assert (str(found), found.origin, found.checkpoint) == (str(weights), weights.origin, None)
    models = [network("fcn" if layout == "torchvision" else "deconv", joints=17, seed=2) for _ in range(2)]
    for model, file in zip(models, (weights, found), strict=True):
        load_backbone(model, file) if layout == "torchvision" else load_weights(model, file)
    states = [model.state_dict() for model in models]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_torchvision_s_resnet_is_a_backbone_alone(tmp_path):
    write("torchvision", tmp_path / "resnet18.pth", network())
    weights = read_weights(tmp_path / "resnet18.pth")
    assert (weights.origin, weights.color_order, weights.depth) == ("torchvision", "rgb", 18)
    assert (weights.head, weights.channels, weights.num_joints) == (None, None, None)
    assert str(weights) == "ResNet-18 in the layout of torchvision, no head, for RGB images"


@pytest.mark.parametrize("layout", [*LAYOUTS, "torchvision"])
def test_every_layout_s_backbone_can_be_loaded_alone(tmp_path, layout):
    source, model = network(joints=17), network("fcn", joints=3, seed=2)
    write(layout, tmp_path / "pose.pth", source)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    load_backbone(model, read_weights(tmp_path / "pose.pth"))
    for name, value in model.state_dict().items():
        head = name.startswith(("fcn_layers", "final_layer"))
        if not (layout == "before 0.4.1" and name.endswith("num_batches_tracked")):
            assert torch.equal(value, before[name] if head else source.state_dict()[name]), name


def simple_baselines_resnet50(joints: int) -> OrderedDict[str, Tensor]:
    """Names and shapes of SimpleBaselines' `PoseResNet` with 50 layers, spelled out after its code."""
    shapes: dict[str, tuple[int, ...]] = {}

    def norm(name: str, channels: int) -> None:
        shapes.update({f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")})
        shapes[f"{name}.num_batches_tracked"] = ()

    shapes["conv1.weight"] = (64, 3, 7, 7)
    norm("bn1", 64)
    inputs = 64
    for layer, (planes, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), start=1):
        for block in range(blocks):
            name = f"layer{layer}.{block}"
            shapes[f"{name}.conv1.weight"] = (planes, inputs, 1, 1)
            norm(f"{name}.bn1", planes)
            shapes[f"{name}.conv2.weight"] = (planes, planes, 3, 3)
            norm(f"{name}.bn2", planes)
            shapes[f"{name}.conv3.weight"] = (4 * planes, planes, 1, 1)
            norm(f"{name}.bn3", 4 * planes)
            if block == 0:
                shapes[f"{name}.downsample.0.weight"] = (4 * planes, inputs, 1, 1)
                norm(f"{name}.downsample.1", 4 * planes)
            inputs = 4 * planes
    for deconvolution, batch_norm in ((0, 1), (3, 4), (6, 7)):
        shapes[f"deconv_layers.{deconvolution}.weight"] = (inputs, 256, 4, 4)
        norm(f"deconv_layers.{batch_norm}", 256)
        inputs = 256
    shapes["final_layer.weight"], shapes["final_layer.bias"] = (joints, 256, 1, 1), (joints,)
    # Of one number each, as the shapes alone count here.
    return OrderedDict((name, torch.zeros(()).expand(shape)) for name, shape in shapes.items())


@pytest.mark.filterwarnings("ignore:.*meta parameter")  # names and shapes alone count
@pytest.mark.parametrize(
    ("layout", "origin"),
    [("", "SimpleBaselines"), ("keypoint_head.", "mmpose 0.x"), ("head.", "mmpose 1.x")],
)
def test_the_names_of_upstream_s_resnet50_are_ours(tmp_path, monkeypatch, layout, origin):
    monkeypatch.undo()  # the real widths
    state = simple_baselines_resnet50(16)
    assert sum(value.numel() for name, value in state.items() if name.endswith(("weight", "bias"))) == 33_999_440
    torch.save({"state_dict": in_mmpose(state, layout)} if layout else state, tmp_path / "res50.pth")
    weights = read_weights(tmp_path / "res50.pth")
    assert (weights.origin, weights.depth, weights.channels, weights.num_joints) == (origin, 50, 256, 16)
    with torch.device("meta"):
        model = pose_resnet(50, "deconv", 16)
    assert "33,999,440 parameters" in load_weights(model, weights)


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_the_depth_is_counted(tmp_path, depth):
    with torch.device("meta"):
        state = pose_resnet(depth, "deconv", 5, channels=4).state_dict()
    torch.save({n: torch.zeros(()).expand(v.shape) for n, v in state.items()}, tmp_path / "r.pth")
    weights = read_weights(tmp_path / "r.pth")
    assert (weights.depth, weights.channels, weights.num_joints) == (depth, 4, 5)


@pytest.mark.parametrize(
    ("names", "origin"),
    [
        (["conv1.weight", "layer1.0.conv1.weight", "transition1.0.0.weight", "stage2.0.branches.0.0.conv1.weight"], ""),
        (["backbone.conv1.weight", "backbone.stage2.0.x", "keypoint_head.final_layer.bias"], "mmpose 0.x"),
        (["backbone.patch_embed.proj.weight", "head.final_layer.bias"], "mmpose 1.x"),
        (["0.weight", "0.bias"], ""),
    ],
    ids=["HRNet", "HRNet in mmpose", "ViT", "unknown"],
)
def test_what_is_no_resnet_is_named_and_asks_for_its_network(tmp_path, names, origin):
    path = tmp_path / "w.pth"
    text = "ViT" if "patch_embed" in names[0] else "HRNet" if len(names) > 2 else "network of unknown architecture"
    text += f" in the layout of {origin}, for RGB images" if origin else ""
    torch.save({name: torch.zeros(1) for name in names}, path)
    assert str(read_weights(path)) == text
    with pytest.raises(ValueError, match=f"{path} holds a {text}: name its network with --model"):
        load_trained(path, {}, CPU)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "model.", "mmpose"])
def test_a_network_of_one_s_own_takes_its_weights_whatever_is_before_their_names(tmp_path, prefix):
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stage2, self.final_layer = nn.Linear(3, 3), nn.Linear(3, 3)

    source, model = Own(), Own()
    state = source.state_dict()
    renamed = in_mmpose(state, "keypoint_head.") if prefix == "mmpose" else prefixed(state, prefix)
    torch.save({"state_dict": renamed}, tmp_path / "w.pth")
    load_weights(model, read_weights(tmp_path / "w.pth"))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_network_whose_parts_are_called_as_mmpose_s_keeps_its_names(tmp_path):
    source, model = (nn.ModuleDict({"backbone": nn.Linear(2, 2), "head": nn.Linear(2, 2)}) for _ in range(2))
    torch.save(source.state_dict(), tmp_path / "w.pth")
    load_weights(model, read_weights(tmp_path / "w.pth"))
    assert torch.equal(model["head"].weight, source["head"].weight)


def test_weights_that_do_not_fit_are_listed_and_leave_the_network_as_it_was(tmp_path):
    state = dict(network().state_dict())
    del state["layer1.0.conv1.weight"]
    state |= {"layer1.0.se.weight": torch.zeros(1), "deconv_layers.0.weight": torch.zeros(8, 8, 3, 3)}
    torch.save(in_mmpose(state, "head."), tmp_path / "w.pth")
    model = network(seed=2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"w\.pth: does not fit the network") as error:
        load_weights(model, read_weights(tmp_path / "w.pth"))
    for part in (
        "1 missing: layer1.0.conv1.weight",
        "1 unexpected: layer1.0.se.weight",
        "1 of another shape: deconv_layers.0.weight [8, 8, 3, 3] for [8, 8, 4, 4]",
        "ResNet-18 in the layout of mmpose 1.x",
    ):
        assert part in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Spy:
    """What is unpickled as Python does it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


class Net(nn.Module):
    pass


@pytest.mark.parametrize(
    "around",
    [
        lambda state: {"state_dict": state},
        lambda state: {"model": state, "epoch": 3},
        lambda state: {"model_state_dict": state, "optimizer_state_dict": {"state": {0: {"step": torch.ones(1)}}}},
        lambda state: {"net": state, "acc": np.float64(0.5), "args": argparse.Namespace(lr=1.0)},
        lambda state: {"network": state, "hyper_parameters": {"root": Path("x"), "net": Net, "set": {1, 2}}},
        lambda state: {"ema": state},
        lambda state: {"generator": state, "step": 3},
        lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}, "where": Path("x")},
        lambda state: nn.ParameterDict({n.replace(".", "-"): nn.Parameter(v) for n, v in state.items()}).state_dict(),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_weights_are_found_under_any_key_and_beside_any_object_and_nothing_is_run(tmp_path, around, zipped):
    state = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}
    spied = tmp_path / "was run"
    contents = around(state)
    if not all(isinstance(value, torch.Tensor) for value in contents.values()):
        contents["spy"] = Spy(spied)
    torch.save(contents, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    found = {
        name.replace("module.", "").replace("-", "."): v for name, v in read_weights(tmp_path / "w.pth").state.items()
    }
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], value) for name, value in state.items())
    assert not spied.exists()


def test_of_weights_and_their_averages_the_weights_are_taken_with_a_warning(tmp_path, caplog):
    torch.save({"ema": {"w": torch.zeros(1)}, "model": {"w": torch.ones(1)}}, tmp_path / "w.pth")
    assert read_weights(tmp_path / "w.pth").state["w"] == 1
    assert "w.pth: has weights under 'model' and 'ema'; taking those under 'model'" in caplog.text


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"epoch": 3, "model": None}, "got the keys 'epoch' (int), 'model' (NoneType)"),
        ({"a": {"x": torch.ones(1)}, "b": {"y": torch.ones(1)}}, "'a' (1 entries, 1 of them tensors), 'b' (1 entries"),
        ({"model": Path("x")}, "'model' (an object of pathlib."),
        (Path("x"), "expected a state dict of tensors, got an object of pathlib."),
        ({}, "got the keys none"),
        ([torch.ones(1)], "got list"),
    ],
)
def test_where_there_are_no_weights_what_there_is_is_listed(tmp_path, contents, message):
    torch.save(contents, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=re.escape(message)):
        read_weights(tmp_path / "w.pth")
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        read_weights(tmp_path / "none.pth")


def test_numbers_of_numpy_are_no_part_of_a_checkpoint_of_ours(tmp_path):
    write_own(tmp_path / "last.pt", network())
    contents = torch.load(tmp_path / "last.pt", weights_only=True)
    contents["config"]["seed"] = np.int64(1)
    torch.save(contents, tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match=r"holds numpy"):
        load_checkpoint(tmp_path / "last.pt")


# ---- back to SimpleBaselines ----


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_what_is_exported_is_simple_baselines_file_and_comes_back(tmp_path, order):
    model = network().to(memory_format=torch.channels_last)
    export_simple_baselines(model, tmp_path / "pose_resnet_18.pth.tar", order)
    assert not zipfile.is_zipfile(tmp_path / "pose_resnet_18.pth.tar")  # which torch reads from 1.6 on
    stored = torch.load(tmp_path / "pose_resnet_18.pth.tar", weights_only=True)
    assert isinstance(stored, OrderedDict)
    assert stored.keys() == {n for n in model.state_dict() if not n.endswith("num_batches_tracked")}
    assert all(value.is_contiguous() for value in stored.values())
    network(seed=2).load_state_dict(stored)  # strictly, as SimpleBaselines does
    weights = read_weights(tmp_path / "pose_resnet_18.pth.tar")
    assert (weights.origin, weights.color_order) == ("SimpleBaselines", order)
    other = network(seed=2)
    load_weights(other, weights)
    assert all(torch.equal(v, other.state_dict()[n]) for n, v in model.state_dict().items() if v.is_floating_point())


def test_only_resnets_with_deconvolutions_have_simple_baselines_layout(tmp_path):
    with pytest.raises(ValueError, match="these weights are of the fcn head"):
        export_simple_baselines(network("fcn"), tmp_path / "a.pth.tar")
    with pytest.raises(ValueError, match="these weights are of another network"):
        to_simple_baselines(nn.Linear(2, 2).state_dict())
    with pytest.raises(ValueError, match="color_order must be rgb or bgr, got 'auto'"):
        to_simple_baselines(network().state_dict(), "auto")
    assert not list(tmp_path.iterdir())


# ---- the commands ----


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_tiny_mpii(tmp_path_factory.mktemp("data") / "tiny", persons=6)


@pytest.fixture
def recipe(data, tmp_path, monkeypatch) -> Path:
    for name in ("draw_curves", "draw_predictions", "draw_heatmaps"):
        monkeypatch.setattr(pictures, name, lambda *arguments, **named: None)
    options = {"data_root": str(data), "depth": 18, "head": "deconv", "channels": 8, "size": [64, 64]}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(options | {"batch_size": 6, "epochs": 1, "device": "cpu", "flip_test": False}))
    return path


def write_own(path: Path, model: nn.Module, skeleton: object = MPII, **options: object) -> None:
    """A checkpoint of ours with these options."""
    settings = settle({"depth": 18, "head": "deconv", "channels": 8, "size": (64, 64), **options})
    save_weights(
        path,
        model.state_dict(),
        settings.as_plain(),
        skeleton=dataclasses.asdict(skeleton) if dataclasses.is_dataclass(skeleton) else skeleton,
    )


def test_evaluating_another_program_s_file_is_evaluating_its_network_on_its_colours(data, tmp_path, capsys):
    model = network()
    write("checkpoint.pth.tar", tmp_path / "checkpoint.pth.tar", model)
    write("mmpose 0.x", tmp_path / "mm.pth", model)
    for order in ("bgr", "rgb"):
        write_own(tmp_path / f"{order}.pt", model, color_order=order)
    found = {}
    for name, arguments in {
        "checkpoint.pth.tar": ["--size", "64", "64"],
        "mm.pth": ["--size", "64", "64"],
        "bgr.pt": ["--out", str(tmp_path / "bgr-results")],
        "rgb.pt": ["--out", str(tmp_path / "rgb-results")],
    }.items():
        words = ["--checkpoint", str(tmp_path / name), "--data_root", str(data), "--device", "cpu", *arguments]
        assert evaluate.main([*words, "--reduced_decode", "false"]) == 0
        out = capsys.readouterr().err
        found[name] = loadmat(tmp_path / f"{name.partition('.')[0]}-results" / "pred.mat")["preds"]
        if name == "checkpoint.pth.tar":
            assert f"{tmp_path / name}: ResNet-18 in the layout of SimpleBaselines, deconv head with 8 channels" in out
            assert "taken for BGR crops of 64x64 px and the joints of mpii" in out
    assert np.array_equal(found["checkpoint.pth.tar"], found["bgr.pt"])
    assert np.array_equal(found["mm.pth"], found["rgb.pt"])
    assert not np.array_equal(found["mm.pth"], found["bgr.pt"])
    # What the file does not say can be said; the layout's usual order of colours may be wrong.
    words = ["--checkpoint", str(tmp_path / "checkpoint.pth.tar"), "--data_root", str(data), "--device", "cpu"]
    assert evaluate.main([*words, "--size", "64", "64", "--color_order", "rgb", "--out", str(tmp_path / "said")]) == 0
    assert np.array_equal(loadmat(tmp_path / "said/pred.mat")["preds"], found["rgb.pt"])


def test_options_of_a_foreign_network_follow_from_its_file(tmp_path):
    for joints, skeleton, size in ((16, MPII, (256, 256)), (17, COCO, (256, 192))):
        write("bare", tmp_path / "pose.pth", network(joints=joints))
        trained = load_trained(tmp_path / "pose.pth", {}, CPU)
        options = trained.settings.network
        assert (trained.skeleton, options.size, trained.settings.data.dataset) == (skeleton, size, skeleton.name)
        assert (options.depth, options.head, options.channels, options.color_order) == (18, "deconv", 8, "bgr")
        assert trained.settings.pixels.reduced_decode is False
        assert options.udp is False
    named = tmp_path / "pose_resnet_18_384x288.pth.tar"
    shutil.copy(tmp_path / "pose.pth", named)
    assert load_trained(named, {}, CPU).settings.network.size == (384, 288)
    numbered = tmp_path / "pose_2024x12.pth.tar"  # no size of a network
    shutil.copy(tmp_path / "pose.pth", numbered)
    assert load_trained(numbered, {}, CPU).settings.network.size == (256, 192)
    options = load_trained(named, {"size": (64, 96), "udp": True}, CPU).settings.network
    assert (options.size, options.udp) == ((64, 96), True)
    with pytest.raises(ValueError, match=r"pose\.pth has 17 joints, and mpii 16: name its joints"):
        load_trained(tmp_path / "pose.pth", {"dataset": "mpii"}, CPU)
    write("bare", tmp_path / "pose.pth", network(joints=2))
    with pytest.raises(ValueError, match=r"pose\.pth has 2 joints, and coco 17: name its joints in a YAML file"):
        load_trained(tmp_path / "pose.pth", {}, CPU)
    (tmp_path / "two.yaml").write_text("joints: [tip, tail]\n")
    trained = load_trained(tmp_path / "pose.pth", {"skeleton": str(tmp_path / "two.yaml")}, CPU)
    assert (trained.skeleton.joints, trained.settings.data.dataset) == (("tip", "tail"), "coco")
    write("torchvision", tmp_path / "resnet18.pth", network())
    with pytest.raises(ValueError, match=r"no head.*: it has a backbone alone, which --backbone_weights takes"):
        load_trained(tmp_path / "resnet18.pth", {}, CPU)


def test_predict_takes_another_program_s_file(tmp_path):
    write("mmpose 1.x", tmp_path / "pose.pth", network(joints=17))
    cv2.imwrite(str(tmp_path / "a.png"), np.full((60, 120, 3), 80, np.uint8))
    words = ["--checkpoint", str(tmp_path / "pose.pth"), "--image", str(tmp_path / "a.png"), "--size", "64", "64"]
    assert predict.main([*words, "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    (found,) = json.loads((tmp_path / "out/predictions.json").read_text())
    assert tuple(found["joints"]) == COCO.joints


@pytest.mark.parametrize(("layout", "order"), [("checkpoint.pth.tar", "bgr"), ("mmpose 0.x", "rgb")])
def test_training_begins_with_another_program_s_weights_and_their_colours(recipe, tmp_path, capsys, layout, order):
    model = network()
    write(layout, tmp_path / "pose.pth", model)
    run = tmp_path / "run"
    words = ["--recipe", str(recipe), "--run", str(run), "--weights", str(tmp_path / "pose.pth"), "--lr", "1e-30"]
    assert train.main(words) == 0
    assert f"{tmp_path / 'pose.pth'}: ResNet-18 in the layout of " in capsys.readouterr().err
    contents = torch.load(run / "last.pt", weights_only=True)
    for name, parameter in model.named_parameters():
        assert torch.equal(contents["model"][name], parameter), name
    assert contents["config"]["color_order"] == order
    assert yaml.safe_load((run / "config.yaml").read_text())["color_order"] == order
    other = {"bgr": "rgb", "rgb": "bgr"}[order]
    assert train.main(["--resume", str(run), "--color_order", other]) == 1
    assert f"color_order is {order} in the run, got {other}: a run keeps its network" in capsys.readouterr().err


def test_weights_that_will_see_other_colours_than_theirs_are_warned_of(tmp_path, caplog):
    write("mmpose 1.x", tmp_path / "pose.pth", network())
    options = NetworkOptions(depth=18, head="deconv", channels=8, weights=str(tmp_path / "pose.pth"), color_order="bgr")
    make_network(options, MPII, CPU)
    said = "pose.pth: these weights were trained on rgb images, and will see bgr: --color_order rgb gives them theirs"
    assert said in caplog.text
    caplog.clear()
    make_network(dataclasses.replace(options, color_order="rgb"), MPII, CPU)
    assert not caplog.records


def test_a_run_s_own_checkpoint_is_a_beginning_too(recipe, tmp_path):
    write_own(tmp_path / "best.pt", network(), color_order="bgr")
    options = NetworkOptions(depth=18, head="deconv", channels=8, weights=str(tmp_path))  # its folder
    assert color_order_of_weights(options) == "bgr"
    begin = {"depth": 18, "head": "deconv", "channels": 8, "weights": str(tmp_path)}
    assert settle(begin).network.color_order == "bgr"
    assert settle({**begin, "color_order": "rgb"}).network.color_order == "rgb"
    model = make_network(options, MPII, CPU)
    assert torch.equal(model.final_layer.weight, network().final_layer.weight)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": "fcn"}, "to begin with them, add --head deconv"),
        ({"depth": 34, "channels": 16}, "to begin with them, add --depth 18 --channels 8"),
        ({"backbone_weights": "x.pth"}, "backbone_weights: they go into a new ResNet .* not together with --weights"),
        ({"weights": "none.pth"}, "weights: no file none.pth"),
    ],
)
def test_weights_of_another_network_are_refused_with_what_to_do(tmp_path, changes, message):
    write("bare", tmp_path / "pose.pth", network())
    options = NetworkOptions(depth=18, head="deconv", channels=8, weights=str(tmp_path / "pose.pth"))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        make_network(dataclasses.replace(options, **changes), MPII, CPU)


def test_weights_for_other_joints_lend_all_but_the_last_layer(tmp_path, capsys):
    source = network(joints=17)
    write("bare", tmp_path / "pose.pth", source)
    options = NetworkOptions(depth=18, head="deconv", channels=8, weights=str(tmp_path / "pose.pth"))
    model, fresh = (
        make_network(options, MPII, CPU, to_train=True),
        make_network(dataclasses.replace(options, weights=""), MPII, CPU),
    )
    assert "; for 16 joints new: final_layer.bias, final_layer.weight" in capsys.readouterr().err
    state, expected = (
        model.state_dict(),
        source.state_dict()
        | {name: value for name, value in fresh.state_dict().items() if name.startswith("final_layer.")},
    )
    assert all(torch.equal(state[name], expected[name]) for name in state)
    # Everywhere else another number of joints is another network.
    with pytest.raises(ValueError, match=r"2 of another shape: final_layer\.\w+ \[17"):
        load_weights(model, read_weights(tmp_path / "pose.pth"))
    with pytest.raises(ValueError, match=r"2 of another shape: final_layer\.\w+ \[17"):
        load_weights(model, read_weights(tmp_path / "pose.pth"), new_joints=8)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_no_network_but_one_to_train_begins_with_a_random_layer(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("last_layer_net.py").write_text(
        "from torch import nn\n"
        "def make(k):\n    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, k, 3, 2, 1))\n"
    )
    torch.save(importlib.import_module("last_layer_net").make(17).state_dict(), "sd.pth")
    cv2.imwrite("p.png", np.full((64, 64, 3), 90, np.uint8))
    words = ["--checkpoint", "sd.pth", "--model", "last_layer_net:make", "--device", "cpu"]
    assert predict.main([*words, "--image", "p.png"]) == 1
    assert "2 of another shape: 2.weight [17, 8, 3, 3] for [16, 8, 3, 3]" in capsys.readouterr().err
    assert predict.main([*words, "--image", "p.png", "--dataset", "coco"]) == 0


def test_more_than_one_layer_of_another_width_is_another_network(tmp_path):
    def layers(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(4, width), nn.Linear(4, width), nn.Linear(2, 2))

    torch.save(layers(32).state_dict(), tmp_path / "wide.pth")
    with pytest.raises(ValueError, match="4 of another shape"):
        load_weights(layers(16), read_weights(tmp_path / "wide.pth"), new_joints=16)
    torch.save(nn.Linear(4, 32).state_dict(), tmp_path / "one.pth")
    with pytest.raises(ValueError, match="2 of another shape"):
        load_weights(nn.Linear(4, 16), read_weights(tmp_path / "one.pth"), new_joints=16)


def test_of_weights_for_other_joints_the_backbone_can_be_had_alone(tmp_path):
    source = network(joints=17)
    write("bare", tmp_path / "pose.pth", source)
    options = NetworkOptions(depth=18, head="deconv", channels=8, backbone_weights=str(tmp_path / "pose.pth"))
    model = make_network(options, MPII, CPU)
    assert torch.equal(model.layer4[0].conv1.weight, source.layer4[0].conv1.weight)
    assert color_order_of_weights(options) == "bgr"


# ---- joints in checkpoints ----


def test_a_checkpoint_of_version_0_1_has_the_joints_of_mpii(tmp_path):
    write_own(tmp_path / "best.pt", network(), skeleton="mpii")
    assert load_trained(tmp_path / "best.pt", {}, CPU).skeleton is MPII
    write_own(tmp_path / "best.pt", network(), skeleton="lsp")
    with pytest.raises(CheckpointError, match=r"best\.pt: .*expected joints of skeleton 'mpii', got 'lsp'"):
        load_trained(tmp_path / "best.pt", {}, CPU)


def test_a_checkpoint_remembers_its_joints_without_their_file(tmp_path):
    fish = dataclasses.replace(MPII, name="fish", joints=tuple(f"fin{n}" for n in range(16)))
    write_own(tmp_path / "best.pt", network(), skeleton=fish)
    assert load_trained(tmp_path / "best.pt", {}, CPU).skeleton == fish
    own_sigmas = dataclasses.replace(COCO, sigmas=(0.2,) * 17)  # the name and the joints of ours
    write_own(tmp_path / "coco.pt", network(joints=17), skeleton=own_sigmas)
    assert load_trained(tmp_path / "coco.pt", {}, CPU).skeleton == own_sigmas
    cv2.imwrite(str(tmp_path / "a.png"), np.full((60, 120, 3), 80, np.uint8))
    words = ["--checkpoint", str(tmp_path / "best.pt"), "--image", str(tmp_path / "a.png"), "--device", "cpu"]
    assert predict.main([*words, "--out", str(tmp_path / "out")]) == 0
    assert tuple(json.loads((tmp_path / "out/predictions.json").read_text())[0]["joints"]) == fish.joints


def test_a_checkpoint_s_config_is_of_the_options_types(tmp_path, capsys):
    write_own(tmp_path / "best.pt", network())
    contents = torch.load(tmp_path / "best.pt", weights_only=True)
    for name, value, expected in (
        ("udp", "no", "udp: expected true or false, got 'no'"),
        ("channels", "8", "channels: expected a whole number, got '8'"),
        ("size", [64], r"size: expected 2 whole numbers, got \[64\]"),
        ("depth", 18.0, "depth: expected one of 18, 34, 50, 101, 152, got 18.0"),
        ("lr", None, "lr: expected a number, got NoneType"),
    ):
        torch.save(contents | {"config": contents["config"] | {name: value}}, tmp_path / "other.pt")
        with pytest.raises(CheckpointError, match=rf"^{tmp_path}/other\.pt: does not fit .*: {expected}$"):
            load_trained(tmp_path / "other.pt", {}, CPU)


def test_a_network_that_the_config_makes_larger_than_the_file_is_not_made(tmp_path):
    write_own(tmp_path / "best.pt", network())
    contents = torch.load(tmp_path / "best.pt", weights_only=True)
    for changes in ({"channels": 1 << 18}, {"channels": 1 << 40}, {"depth": 152, "channels": 1 << 16}):
        torch.save(contents | {"config": contents["config"] | changes}, tmp_path / "other.pt")
        with pytest.raises(CheckpointError, match=r"other\.pt: does not fit this version of fastpose: ") as error:
            load_trained(tmp_path / "other.pt", {}, CPU)
        assert "\n" not in str(error.value)


def test_a_checkpoint_whose_data_set_is_no_text_is_named_whatever_was_asked_for(tmp_path):
    write_own(tmp_path / "best.pt", network())
    contents = torch.load(tmp_path / "best.pt", weights_only=True)
    for asked in ({}, {"dataset": "coco"}, {"dataset": "mix.yaml"}):
        torch.save(contents | {"config": contents["config"] | {"dataset": ["a"]}}, tmp_path / "other.pt")
        message = r"other\.pt: does not fit this version of fastpose: dataset: expected text, got \['a'\]$"
        with pytest.raises(CheckpointError, match=message):
            load_trained(tmp_path / "other.pt", asked, CPU)


def test_other_crops_than_those_of_the_training_are_named_with_both_values(tmp_path, caplog):
    write_own(tmp_path / "best.pt", network())
    load_trained(tmp_path / "best.pt", {}, CPU)
    load_trained(tmp_path / "best.pt", {"size": (64, 64), "udp": False, "color_order": "rgb"}, CPU)
    assert not caplog.text
    load_trained(tmp_path / "best.pt", {"size": (96, 64), "udp": True, "color_order": "bgr"}, CPU)
    assert (
        "best.pt: size is (96, 64) and was (64, 64) in the training, udp is True and was False in the training, "
        "color_order is bgr and was rgb in the training: the network sees other crops"
    ) in caplog.text
