# SPDX-License-Identifier: Apache-2.0
"""fastpose.load_model: every file that `--checkpoint` takes, in evaluation mode, and no code that a file names."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_type_hints

import pytest
import torch
from torch import nn

import fastpose
from fastpose.models.checkpoint import CheckpointError, export_safetensors
from fastpose.models.network import make_network
from fastpose.models.pose_resnet import pose_resnet
from fastpose.models.weights import export_simple_baselines
from fastpose.options.settle import settle
from fastpose.skeletons import MPII
from fastpose.trained import load_trained
from tests.helpers.runs import save_weights

CPU, IMAGES = torch.device("cpu"), torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
OWN = """
from torch import nn
from pathlib import Path
Path("imported").touch()
def make(joints):
    return nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.BatchNorm2d(8), nn.Dropout(0.9), nn.Conv2d(8, joints, 1))
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "own_network", raising=False)
    (tmp_path / "own_network.py").write_text(OWN)
    return tmp_path


def trained(**options: object) -> tuple[nn.Module, dict[str, object]]:
    """A network whose batch normalisation has seen images, and a run's config."""
    settings = settle({"size": (32, 32), "depth": 18, "channels": 4, "device": "cpu", **options})
    model = make_network(settings.network, MPII, CPU)
    with torch.no_grad():
        model.train()(IMAGES)
    return model, settings.as_plain()


def in_a_run() -> tuple[nn.Module, dict[str, object], str]:
    model, config = trained()
    save_weights(Path("run/best.pt"), model.state_dict(), config)
    return model, {}, "run"


def in_a_file() -> tuple[nn.Module, dict[str, object], str]:
    model, config = trained(head="deconv")
    save_weights(Path("best.pt"), model.state_dict(), config, skeleton=dataclasses.asdict(MPII))
    return model, {}, "best.pt"


def in_safetensors() -> tuple[nn.Module, dict[str, object], str]:
    pytest.importorskip("safetensors")
    model, config = trained(model="rtmpose-t")
    parts = {"progress": {}, "config": config, "skeleton": dataclasses.asdict(MPII)}
    export_safetensors(Path("pose.safetensors"), model=model.state_dict(), **parts)
    return model, {}, "pose.safetensors"


def of_simple_baselines() -> tuple[nn.Module, dict[str, object], str]:
    model, _ = trained(head="deconv")
    export_simple_baselines(model, "pose.pth.tar", "bgr")
    return model, {"size": (32, 32)}, "pose.pth.tar"


def of_one_s_own() -> tuple[nn.Module, dict[str, object], str]:
    model, config = trained(model="own_network:make")
    save_weights(Path("own.pt"), model.state_dict(), config)
    return model, {"model": "own_network:make"}, "own.pt"


def of_one_s_own_trusted() -> tuple[nn.Module, dict[str, object], str]:
    model, _, file = of_one_s_own()
    return model, {"trust_model": True}, file


@pytest.mark.parametrize(
    "kind", [in_a_run, in_a_file, in_safetensors, of_simple_baselines, of_one_s_own, of_one_s_own_trusted]
)
def test_what_is_loaded_predicts_as_it_was_trained_to(kind: Callable[[], tuple], here: Path) -> None:
    source, options, file = kind()
    for place in (file, here / file):
        model = fastpose.load_model(place, "cpu", **options)
        assert not [name for name, module in model.named_modules() if module.training]
        with torch.inference_mode():
            torch.testing.assert_close(model(IMAGES), source.eval()(IMAGES), rtol=0, atol=0)
    asked = {name: value for name, value in options.items() if name != "trust_model"}
    whole = load_trained(file, asked, CPU, trust_model="trust_model" in options)
    assert not any(module.training for module in whole.model.modules())


def test_it_is_on_the_device_that_is_asked_for(here: Path, device: torch.device, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(here))
    monkeypatch.setenv("USERPROFILE", str(here))
    _, options, file = in_a_run()
    for name in (device, str(device)):
        model = fastpose.load_model(file, name, **options)
        assert {parameter.device.type for parameter in model.parameters()} == {device.type}
    best = "cuda" if torch.cuda.is_available() else "cpu"
    assert next(fastpose.load_model(file).parameters()).device.type == best
    assert next(fastpose.load_model("~/run").parameters()).device.type == best
    with pytest.raises(ValueError, match=r"device: expected auto, cpu, cuda.*got 'gpu'"):
        fastpose.load_model(file, "gpu")


def test_code_that_only_a_file_names_does_not_run(here: Path) -> None:
    *_, file = of_one_s_own()
    (here / "imported").unlink()
    del sys.modules["own_network"]
    with pytest.raises(ValueError, match=r"own\.pt names the network own_network:make, whose code would run"):
        fastpose.load_model(file, "cpu")
    assert not (here / "imported").exists()
    fastpose.load_model(file, "cpu", trust_model=True)
    assert (here / "imported").exists()


class Touches:
    def __reduce__(self) -> tuple:
        return Path.touch, (Path("executed"),)


def test_what_cannot_be_loaded_is_an_error_and_nothing_is_executed(here: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        fastpose.load_model("nowhere.pt", "cpu")
    torch.save({"state_dict": Touches()}, "pickle.pt")
    with pytest.raises(ValueError, match=r"pickle\.pt: "):
        fastpose.load_model("pickle.pt", "cpu")
    assert not Path("executed").exists()
    Path("noise.pt").write_bytes(b"\0" * 100)
    with pytest.raises(CheckpointError, match=r"noise\.pt: "):
        fastpose.load_model("noise.pt", "cpu")
    *_, file = in_a_run()
    with pytest.raises(TypeError, match="load_model has no option 'seize'"):
        fastpose.load_model(file, "cpu", seize=(32, 32))
    with pytest.raises(ValueError, match="size: expected height and width"):
        fastpose.load_model(file, "cpu", size=(33, 32))


def test_what_is_made_to_be_trained_is_in_training_mode_and_says_so() -> None:
    for make in (make_network, pose_resnet):
        assert "in training mode" in (make.__doc__ or "")
    assert pose_resnet(18, channels=4).training
    assert trained()[0].training
    assert "in evaluation mode" in (fastpose.load_model.__doc__ or "")
    assert get_type_hints(fastpose.load_model)["return"] is nn.Module
    assert list(inspect.signature(load_trained).parameters)[:3] == ["checkpoint", "asked", "device"]
