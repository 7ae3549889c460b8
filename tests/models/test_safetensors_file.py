# SPDX-License-Identifier: Apache-2.0
"""What is written as safetensors comes back to the bit, is a run's checkpoint, and what would harm is refused."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from scipy.io import loadmat
from torch import Tensor, nn

from fastpose import evaluate, export, predict, train
from fastpose.engine import pictures
from fastpose.models import pose_resnet, read_weights, resnet
from fastpose.models.checkpoint import CheckpointError, export_safetensors, load_checkpoint, save_checkpoint
from fastpose.models.safetensors_file import HEADER_BYTES, read_safetensors, write_safetensors
from fastpose.options.settle import settle
from fastpose.skeletons import MPII
from fastpose.trained import load_trained
from studies.reliability.checkpoints import described, hostile_safetensors, safetensors
from tests.helpers.full_disk import fill_the_disk_at
from tests.helpers.runs import save_weights
from tests.helpers.tiny_mpii import write_tiny_mpii

package = pytest.importorskip("safetensors.torch", reason="the package safetensors is not installed")

CPU = torch.device("cpu")
FISH = dataclasses.replace(MPII, name="fish", joints=tuple(f"fin{n}" for n in range(16)), joint_weights=(0.1,) * 16)


def equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """To the bit; their order and strides do not matter."""
    same = all(a[n].dtype == b[n].dtype and a[n].shape == b[n].shape and torch.equal(a[n], b[n]) for n in a)
    return a.keys() == b.keys() and same


# ---- files ----


def test_what_is_written_is_what_is_read_here_and_by_the_package(tmp_path):
    shared = torch.arange(24.0)
    state = {
        "views": shared[3:9],
        "of the same memory": shared.reshape(4, 6).t(),
        "itself": shared,
        "and again": shared,
        "expanded": torch.ones(1).expand(3, 4),
        "channels-last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "num_batches_tracked": torch.tensor(7),
        "empty": torch.empty(3, 0),
        "flags": torch.tensor([True, False]),
        "with a gradient": nn.Parameter(torch.ones(2)),
        **{str(t): torch.ones(3).to(t) for t in (torch.float64, torch.float16, torch.bfloat16, torch.int32)},
    }
    write_safetensors(tmp_path / "w.safetensors", state, {"who": "ä\n"})
    found, texts = read_safetensors(tmp_path / "w.safetensors")
    assert equal(found, state)
    assert equal(package.load_file(tmp_path / "w.safetensors"), state)
    assert found["num_batches_tracked"].shape == ()
    assert texts == {"who": "ä\n"}
    found["itself"][:] = 7  # of its own memory, as is the file's
    assert equal(read_safetensors(tmp_path / "w.safetensors")[0], state)
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def test_a_header_of_any_length_is_read(tmp_path):
    """Other programs do not fill it up to a multiple of eight, and tensors then lie anywhere."""
    values = torch.arange(2.0)
    for spaces in range(8):
        header = json.dumps({"w": described()}).encode() + b" " * spaces
        (tmp_path / "w.bin").write_bytes(safetensors(header, values.numpy().tobytes()))
        assert torch.equal(read_weights(tmp_path / "w.bin").state["w"], values)


def test_bytes_of_a_mask_are_true_or_false(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(safetensors({"w": described("BOOL", [8])}, b"\xff\0" * 4))
    assert read_weights(tmp_path / "w.safetensors").state["w"].view(torch.uint8).tolist() == [1, 0] * 4


# By the study's names of the files; all others are the package's to notice.
MESSAGES = {
    "cut off in the length": "not a file of weights: it begins with b'=",
    "cut off in the header": r"damaged, .*\(a header of 61 bytes in a file of 40; it may be cut off\)",
    "cut off in the data": r"damaged, .*\(expected 77 bytes, as its header says, got 76\)",
    "bytes left over": r"damaged, .*\(expected 77 bytes, as its header says, got 78\)",
    "a header longer than the file": "a header of 1,000 bytes in a file of 77",
    "a header of 2^40 bytes": r"a header of 1,099,511,627,776 bytes: at most 4,194,304 are read",
    "a header of 5 MB": "a header of 5,000,088 bytes: at most 4,194,304 are read",
    "no JSON": "JSONDecodeError: Expecting value: line 1 column 7",
    "no UTF-8": "UnicodeDecodeError: 'utf-8' codec",
    "100,000 levels": "RecursionError: ",
    "no tensors": "expected a state dict of tensors, bare or under a key, got the keys none",
    "a name twice": "expected each name once, got 'w' 2 times",
    "a type twice": "expected each name once, got 'dtype' 2 times",
    "metadata twice": "expected each name once, got '__metadata__' 2 times",
    "a type of half a byte": "of type 'F4', which is not read|SafetensorError",
    "1,000 axes": r"'w' has the shape \[1, 1, 1, 1, 1, 1, 1, 1\]",
    "no elements, of 2^62 rows": r"'w' has the shape \[0, 4611686018427387904\]",
    "offsets beyond the file": "expected 1,099,511,627,857 bytes, as its header says, got 89",
    "of ours without a config": "incomplete checkpoint: config missing",
    "of ours, config of a list": "config: expected values by name, got list",
    "of ours, config that is no JSON": r"""config: expected JSON, got "\{'a': 1\}" \(Expecting property name""",
    "of ours, config with a name twice": r"config: expected JSON, .*\(expected each name once, got 'lr' 2 times",
    "of ours, config of 60 levels": "config: expected JSON, .*values within values on more than 50 levels",
    "of ours, config of 100,000 levels": "config: expected JSON, .*recursion",
    "of ours, config with a number of 10^5 digits": "config: expected JSON, .*4300 digits",
}
HOSTILE = {name.removeprefix("safetensors").lstrip(", "): contents for name, contents in hostile_safetensors()}


def test_every_message_has_its_file():
    assert not MESSAGES.keys() - HOSTILE.keys()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_in_one_line_that_names_it(tmp_path, name):
    path = tmp_path / "w.safetensors"
    path.write_bytes(HOSTILE[name])
    with pytest.raises(ValueError, match=MESSAGES.get(name, r"damaged, .*\(SafetensorError: ")) as refused:
        read_weights(path)
    message = str(refused.value)
    assert message.startswith(f"{path}: ")
    assert len(message) < 500
    assert message.isprintable()


def test_names_of_tensors_do_nothing_to_a_terminal(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(safetensors({"\x1b[31m\r": described(offsets=[8, 0])}, b""))
    with pytest.raises(CheckpointError, match=r"invalid offset|InvalidOffset") as refused:
        read_weights(tmp_path / "w.safetensors")
    assert str(refused.value).isprintable()


def test_a_folder_called_so_is_no_file(tmp_path):
    (tmp_path / "w.safetensors").mkdir()
    with pytest.raises(CheckpointError, match="expected a file, got a folder"):
        read_weights(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": 1}, "expected a state dict of tensors, got dict under 'w'"),
        (torch.eye(3).to_sparse(), "safetensors cannot have these weights: "),
        (torch.ones(3, dtype=torch.complex128), "safetensors cannot have these weights: "),
    ],
)
def test_what_the_format_has_no_place_for_is_not_written(tmp_path, value, message):
    with pytest.raises(ValueError, match=f"^{tmp_path}/w.safetensors: {message}") as refused:
        write_safetensors(tmp_path / "w.safetensors", {"w": value}, {})
    assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match=r"progress: expected plain values: .*Tensor is not JSON"):
        export_safetensors(tmp_path / "w.safetensors", model={}, progress={"a": torch.ones(2)}, config={}, skeleton={})
    with pytest.raises(ValueError, match="expected names and metadata of at most 4,194,304 bytes, got 4,194,3"):
        write_safetensors(tmp_path / "w.safetensors", {}, {"a": "a" * HEADER_BYTES})
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_one_line_and_the_file_before_stays(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"old")
    fill_the_disk_at(tmp_path / "w.part.safetensors", monkeypatch)
    with pytest.raises(OSError, match=r"No space left on device: \d+ bytes needed") as full:
        write_safetensors(path, {"w": torch.ones(2)}, {})
    assert full.value.filename == str(path)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [(path.name, b"old")]


# ---- checkpoints of ours ----


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """ResNets of few channels: their names and layouts are the same, and files and networks are quickly made."""
    monkeypatch.setattr(resnet, "WIDTHS", (8, 8, 8, 8))
    for name in ("draw_curves", "draw_predictions", "draw_heatmaps"):
        monkeypatch.setattr(pictures, name, lambda *arguments, **named: None)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_tiny_mpii(tmp_path_factory.mktemp("data") / "tiny", persons=6)


def write_run(folder: Path, data: Path, *, skeleton: Any = MPII, **options: Any) -> Path:
    """A run's best.pt, of options that are not the defaults."""
    torch.manual_seed(1)
    model = pose_resnet(18, "deconv", 16, channels=8).to(memory_format=torch.channels_last)
    for name, value in model.state_dict().items():
        if name.endswith(("weight", "running_var")):
            value.add_(torch.rand_like(value) * 0.1)
        elif name.endswith("num_batches_tracked"):
            value.fill_(12)
    small = {"depth": 18, "head": "deconv", "channels": 8, "size": (64, 64), "color_order": "bgr", "device": "cpu"}
    settings = settle({**small, "refine": "dark", "flip_shift": "on", "data_root": str(data), **options})
    save_weights(folder / "best.pt", model.state_dict(), settings.as_plain(), skeleton=dataclasses.asdict(skeleton))
    return folder / "best.pt"


def exported(checkpoint: Path, *words: str) -> Path:
    assert export.main(["--checkpoint", str(checkpoint), "--format", "safetensors", *words]) == 0
    return checkpoint.with_suffix(".safetensors")


def test_an_exported_checkpoint_is_the_checkpoint(data, tmp_path):
    best = write_run(tmp_path / "run", data, skeleton=FISH)
    contents = torch.load(best, weights_only=True)
    contents["progress"] = {"epoch": 3, "best_score": float("-inf"), "changes": [{"was": 0.1}]}
    torch.save(contents, best)
    assert export.main(["--checkpoint", str(best.parent), "--format", "safetensors"]) == 0
    file = best.with_suffix(".safetensors")
    wanted, found = load_checkpoint(best), load_checkpoint(file)
    assert equal(found.pop("model"), model := wanted.pop("model"))
    assert found.pop("skeleton") == json.loads(json.dumps(wanted.pop("skeleton")))
    assert found == wanted
    assert str(read_weights(file)) == str(read_weights(best))
    was, now = (load_trained(path, {}, CPU) for path in (best, file))
    assert now.settings == was.settings
    assert now.skeleton == was.skeleton == FISH
    assert equal(now.model.state_dict(), was.model.state_dict())
    network = pose_resnet(18, "deconv", 16, channels=8)
    network.load_state_dict(package.load_file(file))  # without fastpose's reader
    assert equal(network.state_dict(), model)


def test_every_command_takes_it_as_the_run_s_checkpoint(data, tmp_path):
    best = write_run(tmp_path / "run", data)
    file = exported(best)
    cv2.imwrite(str(tmp_path / "a.png"), np.random.default_rng(0).integers(0, 256, (60, 120, 3), np.uint8))
    results: dict[Path, Any] = {}
    for path in (best, file):
        out = tmp_path / path.suffix[1:]
        assert evaluate.main(["--checkpoint", str(path), "--out", str(out / "scores")]) == 0
        words = ["--checkpoint", str(path), "--device", "cpu", "--image", str(tmp_path / "a.png")]
        assert predict.main([*words, "--out", str(tmp_path / "found")]) == 0
        words = ["--checkpoint", str(path), "--format", "simple_baselines", "--out", str(out / "w.pth.tar")]
        assert export.main(words) == 0
        scores = json.loads((out / "scores/scores.json").read_text()) | {"checkpoint": ""}
        points = loadmat(out / "scores/pred.mat")["preds"].tobytes()
        results[path] = (scores, points, (tmp_path / "found/predictions.json").read_bytes())
    assert results[file] == results[best]
    weights = [read_weights(tmp_path / name / "w.pth.tar") for name in ("pt", "safetensors")]
    assert equal(weights[0].state, weights[1].state)
    assert str(weights[0]) == str(weights[1])
    assert weights[0].color_order == "bgr"

    options = {"data_root": str(data), "depth": 18, "head": "deconv", "channels": 8, "size": [64, 64], "epochs": 1}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**options, "batch_size": 6, "lr": 1e-30, "device": "cpu"}))
    words = ["--recipe", str(tmp_path / "tiny.yaml"), "--run", str(tmp_path / "new"), "--weights", str(file)]
    assert train.main(words) == 0
    begun, model = load_checkpoint(tmp_path / "new/last.pt"), load_checkpoint(best)["model"]
    assert begun["config"]["color_order"] == "bgr"
    assert all(torch.equal(begun["model"][name], model[name]) for name in model if name.endswith("conv1.weight"))


def test_what_was_asked_for_is_what_it_stores(data, tmp_path):
    best = write_run(tmp_path / "run", data)
    file = exported(best, "--refine", "none", "--size", "96", "64")
    settings = load_trained(file, {}, CPU).settings
    assert (settings.decode.refine, settings.network.size, settings.decode.flip_test) == ("none", (96, 64), True)


def test_another_program_s_weights_become_a_checkpoint(tmp_path):
    model = pose_resnet(18, "deconv", 17, channels=8)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "pose_384x288.pth")
    file = exported(tmp_path / "pose_384x288.pth")
    trained = load_trained(file, {}, CPU)
    assert (trained.settings.network.size, trained.settings.network.color_order) == ((384, 288), "bgr")
    assert (trained.settings.data.dataset, trained.skeleton.num_joints) == ("coco", 17)
    assert equal(trained.model.state_dict(), model.state_dict())


OWN = """
import pathlib
from torch import nn
class Net(nn.Conv2d):
    _version = 3
    def __init__(self, joints):
        super().__init__(3, joints, 4, stride=4)
        pathlib.Path("imported").touch()
        self.tied = self.weight
    def _load_from_state_dict(self, state, prefix, notes, *rest):
        assert notes["version"] == 3, notes
        super()._load_from_state_dict(state, prefix, notes, *rest)
"""


def test_a_network_of_one_s_own_comes_back_and_must_be_confirmed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("tied_net.py").write_text(OWN)
    state = nn.Conv2d(3, 16, 4, stride=4).state_dict()
    state["tied"] = state["weight"]
    state._metadata[""] = {"version": 3}
    config = settle({"model": "tied_net:Net", "size": (32, 32)}).as_plain()
    Path("run").mkdir()
    parts = {"optimizer": None, "learning_rate": {}, "progress": {}, "config": config, "skeleton": "mpii"}
    save_checkpoint(Path("run/best.pt"), model=state, **parts)
    words = ["--checkpoint", "run", "--format", "safetensors"]
    assert export.main(words) == 1
    assert "model: run/best.pt names the network tied_net:Net, whose code would run" in capsys.readouterr().err
    assert export.main([*words, "--trust_model"]) == 0
    Path("imported").unlink()
    with pytest.raises(
        ValueError, match=r"model: run/best\.safetensors names the network tied_net:Net, whose code would"
    ):
        load_trained("run/best.safetensors", {}, CPU)
    assert not Path("imported").exists()
    trained = load_trained("run/best.safetensors", {"model": "tied_net:Net"}, CPU)
    assert equal(trained.model.state_dict(), state)
    assert trained.model.tied is trained.model.weight


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("config", {"channels": "8"}, "channels: expected a whole number, got '8'"),
        ("config", {"channels": 1 << 40}, "does not fit this version of fastpose: "),
        ("config", {"what": 1}, "there is no option 'what'"),
        (
            "skeleton",
            {"name": "../x", "joints": ["a"], "mirror_pairs": [], "limbs": []},
            "name must be of 1 to 100 print",
        ),
        ("skeleton", 3, "expected joints of skeleton 'mpii', got 3"),
        ("versions", [1], ""),
        ("versions", {"": "x", "bn1": 2}, ""),
    ],
)
def test_what_the_metadata_say_is_checked_as_a_checkpoint_s_is(data, tmp_path, part, value, message):
    contents = load_checkpoint(write_run(tmp_path / "run", data))
    parts: dict[str, Any] = {name: contents[name] for name in ("progress", "config", "skeleton")} | {"versions": {}}
    parts[part] = {**parts[part], **value} if part == "config" else value
    texts = {"format": contents["format"], **{name: json.dumps(values) for name, values in parts.items()}}
    write_safetensors(tmp_path / "w.safetensors", contents["model"], texts)
    if not message:
        assert equal(load_trained(tmp_path / "w.safetensors", {}, CPU).model.state_dict(), contents["model"])
        return
    with pytest.raises(CheckpointError, match=rf"^{tmp_path}/w\.safetensors: .*{message}") as refused:
        load_trained(tmp_path / "w.safetensors", {}, CPU)
    assert "\n" not in str(refused.value)


def test_the_missing_package_is_named_with_the_command_that_installs_it(data, tmp_path, monkeypatch, capsys):
    best = write_run(tmp_path / "run", data)
    file = exported(best)
    capsys.readouterr()
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    needed = ": .safetensors files need the package safetensors: pip install safetensors ("
    assert evaluate.main(["--checkpoint", str(file)]) == 1
    assert capsys.readouterr().err.startswith(f"error: {file}{needed}")
    out = tmp_path / "new" / "w.safetensors"
    assert export.main(["--checkpoint", str(best), "--format", "safetensors", "--out", str(out)]) == 1
    assert capsys.readouterr().err.startswith(f"error: {out}{needed}")
    assert not out.parent.exists()
