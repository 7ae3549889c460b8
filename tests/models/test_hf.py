# SPDX-License-Identifier: Apache-2.0
"""What `--model hf:` stands for, without transformers; tests/integrations/test_transformers.py builds the networks."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from fastpose.models.hf import config_of
from fastpose.models.network import NetworkOptions, new_network
from fastpose.models.weights import read_weights
from fastpose.option import OptionError
from fastpose.options.settle import settle

CODE = {"auto_map": {"AutoModel": "theirs.Net"}, "attn_implementation": "somebody/kernel", "_name_or_path": "a/b"}
BACKBONE = {"model_type": "vitpose_backbone", "hidden_size": 48, "num_hidden_layers": 2, "image_size": [96, 64]}
CONFIG = {"model_type": "vitpose", "id2label": {"0": "nose"}, "backbone_config": BACKBONE | CODE} | CODE


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path / "net"


def test_a_run_has_the_config_itself_and_begins_with_the_folder_s_weights(folder):
    torch.save({"head.conv.bias": torch.zeros(17)}, folder / "model.safetensors")
    settings = settle({}, recipe={"model": "hf:net"})  # a recipe may name it: no code of others runs
    model = settings.network.model
    assert config_of(model) == {"model_type": "vitpose", "backbone_config": BACKBONE}  # nothing that names code
    assert (settings.network.size, settings.network.weights) == ((96, 64), str(folder / "model.safetensors"))
    assert str(settings.network) == "network VitPoseForPoseEstimation of transformers"
    again = settle({"model": "hf:net"}, run=settings.as_plain())
    assert again.network == settings.network
    (folder / "model.safetensors").unlink()
    (folder / "config.json").unlink()
    assert settle({}, run=settings.as_plain()).network == settings.network


def test_a_config_alone_and_a_name_begin_with_random_weights(folder, capsys):
    alone = settle({"model": "hf:net/config.json", "size": (64, 64)}).network
    assert (alone.size, alone.weights) == ((64, 64), "")
    assert settle({"model": "hf:net"}).network.weights == ""
    assert "no model.safetensors in net: random weights" in capsys.readouterr().err
    named = settle({"model": "hf:sapiens2-0.4b"}).network
    assert (named.model, named.size) == ("hf:sapiens2-0.4b", (1024, 768))


def test_other_weights_are_for_the_size_of_the_config(folder):
    torch.save({"head.conv.bias": torch.zeros(17)}, folder.parent / "pose.pth")
    weights = read_weights(folder.parent / "pose.pth")
    assert settle({"model": "hf:net", "dataset": "coco"}, weights=weights).network.size == (96, 64)
    asked = {"model": "hf:net", "dataset": "coco", "size": (32, 48)}
    assert settle(asked, weights=weights).network.size == (32, 48)


def test_a_folder_with_the_name_of_a_network_is_not_mistaken_for_it(folder):
    folder.rename(folder.parent / "vitpose-b")
    with pytest.raises(OptionError, match=r"a network and a folder here: hf:\./vitpose-b"):
        settle({"model": "hf:vitpose-b"})
    assert settle({"model": "hf:./vitpose-b"}).network.size == (96, 64)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ('hf:{"model_type": "sapiens2", "head_config": {"k": [' + "1," * 300 + "1]}}", "at most 256 numbers as k "),
        ("hf:~nobody-of-that-name/net", "nothing is downloaded here"),
        ("hf:" + 5000 * "n", "nothing is downloaded here"),
        (
            'hf:{"model_type": "sapiens2", "hidden_size": "32", "head_config": {}}',
            "numbers as hidden_size .*, got",
        ),
        (
            'hf:{"model_type": "sapiens2", "num_hidden_layers": 3000, "head_config": {}}',
            "at most 256 as num_hidden",
        ),
        ("hf:usyd-community/vitpose-base", "one of vitpose-s, .* got 'usyd-community/vitpose-base': nothing is downl"),
        ("hf:bert", r"net/config.json|got 'bert'"),
        ("hf:{", "a config as JSON"),
        ('hf:{"model_type": "bert"}', "model_type vitpose or sapiens2, got 'bert'"),
        ('hf:{"model_type": "vitpose"}', "a backbone_config, got NoneType"),
        ('hf:{"model_type": "vitpose", "backbone_config": {"model_type": "dinov2"}}', "got 'dinov2'"),
    ],
)
def test_what_is_no_network_of_transformers_is_refused(folder, model, message):
    with pytest.raises(OptionError, match=f"^model: .*({message})"):
        settle({"model": model})


def test_weights_as_pickles_or_in_parts_are_refused(folder):
    for name in ("pytorch_model.bin", "model.safetensors.index.json"):
        (folder / name).touch()
        with pytest.raises(OptionError, match=f"in one model.safetensors, got {name}"):
            settle({"model": "hf:net"})
        (folder / name).unlink()


def test_without_the_package_the_error_has_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(OptionError, match="the extra hf: pip install transformers safetensors"):
        new_network(NetworkOptions(model="hf:vitpose-s", size=(256, 192)), 17)


def test_drop_path_is_for_networks_that_have_it():
    assert NetworkOptions(model="hf:vitpose-s", drop_path=0.3).drop_path == 0.3
    with pytest.raises(OptionError, match="drop_path: it is for --model hf:, and ResNet-50"):
        NetworkOptions(drop_path=0.3)
    with pytest.raises(OptionError, match="share from 0 to below 1"):
        NetworkOptions(model="hf:vitpose-s", drop_path=1.0)
