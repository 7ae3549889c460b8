# SPDX-License-Identifier: Apache-2.0
"""Networks of transformers, tiny and with random weights: built, loaded, trained, resumed, evaluated and exported."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fastpose import evaluate, export, train
from fastpose.engine import pictures
from fastpose.models.hf import hf_network, load_hf_network
from fastpose.models.weights import read_weights
from fastpose.options.settle import settle
from fastpose.trained import load_trained
from tests.helpers.tiny_mpii import write_tiny_mpii

transformers = pytest.importorskip("transformers", reason="transformers, for --model hf:, is not installed")
pytest.importorskip("yaml")

SIZE = (64, 48)
BACKBONE = {"model_type": "vitpose_backbone", "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3}
VITPOSE = {"model_type": "vitpose", "use_simple_decoder": False, "backbone_config": BACKBONE}
SAPIENS2 = {
    "model_type": "sapiens2",
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pos_embed_rescale": None,
    "head_config": {"upsample_out_channels": [32, 16], "conv_out_channels": [16, 8]},
}
needs_sapiens2 = pytest.mark.skipif(
    not hasattr(transformers, "Sapiens2ForPoseEstimation"), reason="this transformers has no Sapiens2"
)
BOTH = [VITPOSE, pytest.param(SAPIENS2, marks=needs_sapiens2)]


def saved(config: dict[str, Any], folder: Path, joints: int = 17) -> Any:
    """A network as transformers makes it, saved as transformers saves it."""
    torch.manual_seed(3)
    if config["model_type"] == "vitpose":
        backbone = transformers.VitPoseBackboneConfig(**config["backbone_config"], image_size=SIZE, out_indices=[2])
        made = transformers.VitPoseConfig(backbone_config=backbone, use_simple_decoder=False, num_labels=joints)
        network = transformers.VitPoseForPoseEstimation(made)
    else:
        made = transformers.Sapiens2Config(**config, image_size=SIZE, num_labels=joints)
        network = transformers.Sapiens2ForPoseEstimation(made)
    with torch.no_grad():
        for parameter in network.parameters():  # also those that begin as zeros
            parameter.add_(0.1 * torch.randn_like(parameter))
    network.save_pretrained(folder)
    return network.eval()


FINE_TUNING = {"optimizer": "adamw", "layer_decay": 0.75, "norm_decay": False, "clip_grad_norm": 0.5}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("draw_curves", "draw_predictions", "draw_heatmaps"):
        monkeypatch.setattr(pictures, name, lambda *arguments, **named: None)
    return tmp_path


@pytest.mark.parametrize("config", BOTH)
def test_a_folder_s_network_gives_transformers_own_heatmaps(here, config):
    theirs = saved(config, here / "net")
    network = settle({"model": "hf:net"}).network
    assert network.size == SIZE
    weights = read_weights(network.weights)
    ours, line = load_hf_network(network.model, 17, SIZE, weights.path, weights.state)
    assert re.search(r"loaded [\d,]+ parameters into \w+ForPoseEstimation of transformers$", line)
    images = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(ours.eval()(images), theirs(images).heatmaps, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"does not fit \w+ of .*: 2 of another shape: \S+.bias \[17"):
        load_hf_network(network.model, 5, SIZE, weights.path, weights.state)
    again, line = load_hf_network(network.model, 5, SIZE, weights.path, weights.state, new_joints=True)
    assert re.search(r"; for 5 joints new: \S+\.bias, \S+\.weight$", line)
    assert again(images).shape == (2, 5, 16, 12)


def test_weights_of_another_size_or_with_other_names_are_refused(here):
    saved(VITPOSE, here / "net")
    network = settle({"model": "hf:net"}).network
    state = dict(read_weights(network.weights).state)
    with pytest.raises(ValueError, match=r"position_embeddings \[1, 13, 48\] for \[1, 17, 48\]; its config .* 64 48"):
        load_hf_network(network.model, 17, (64, 64), Path("a"), state)
    state["more"] = state.pop("head.conv.bias")
    with pytest.raises(ValueError, match=r"1 missing: head\.conv\.bias; 1 unexpected: more"):
        load_hf_network(network.model, 17, SIZE, Path("a"), state)


@pytest.mark.parametrize("config", BOTH)
def test_a_run_trains_goes_on_evaluates_and_exports_without_the_folder(here, config, capsys):
    saved(config, here / "net")
    root = str(write_tiny_mpii(here / "data", persons=4))
    options = {"data_root": root, "size": list(SIZE), "batch_size": 4, "epochs": 1, "device": "cpu", "amp": "off"}
    (here / "tiny.yaml").write_text(yaml.safe_dump(options | {"model": "hf:net", **FINE_TUNING}))
    assert train.main(["--recipe", "tiny.yaml", "--run", "run"]) == 0
    out = capsys.readouterr().err
    assert "for 16 joints new: " in out
    assert "ForPoseEstimation of transformers, 64x48 px, on cpu" in out
    whole = load_trained("run", {}, torch.device("cpu")).model.state_dict()
    shutil.rmtree(here / "net")
    assert train.main(["--resume", "run", "--epochs", "2", "--layer_decay", "0.8"]) == 1
    assert "layer_decay is 0.75 in the run, got 0.8: a run keeps its optimiser" in capsys.readouterr().err
    assert train.main(["--resume", "run", "--epochs", "2"]) == 0
    assert "going on from run/last.pt" in capsys.readouterr().err
    further = load_trained("run/last.pt", {}, torch.device("cpu")).model.state_dict()
    assert not all(torch.equal(further[name], value) for name, value in whole.items())
    assert evaluate.main(["--checkpoint", "run/last.pt", "--device", "cpu"]) == 0
    scores = [json.loads((here / "run" / name).read_text())["pckh"] for name in ("scores.json", "summary.json")]
    assert scores[0] == scores[1]
    assert export.main(["--checkpoint", "run", "--format", "torch"]) == 0  # compares with the ops itself


def test_of_experts_the_first_computes(here):
    experts = VITPOSE | {"backbone_config": BACKBONE | {"num_experts": 2, "part_features": 16}}
    network, _ = hf_network("hf:" + json.dumps(experts), 17, SIZE)
    images = torch.randn(1, 3, *SIZE)
    inner = super(type(network), network)
    with torch.no_grad():
        network.eval()
        expected = [inner.forward(images, dataset_index=torch.tensor([index])).heatmaps for index in (0, 1)]
        assert torch.equal(network(images), expected[0])
        assert not torch.equal(network(images), expected[1])


@pytest.mark.parametrize("config", BOTH)
def test_drop_path_leaves_out_branches_in_training_alone(config):
    text = "hf:" + json.dumps(config)
    torch.manual_seed(0)
    plain, _ = hf_network(text, 17, SIZE)
    torch.manual_seed(0)
    dropping, _ = hf_network(text, 17, SIZE, drop_path=0.5)
    assert plain.state_dict().keys() == dropping.state_dict().keys()
    images = torch.randn(1, 3, *SIZE).expand(16, 3, *SIZE)
    with torch.no_grad():
        assert torch.equal(plain.eval()(images), dropping.eval()(images))
        for module in dropping.modules():
            module.training = not isinstance(module, torch.nn.BatchNorm2d)
        maps = dropping(images)
    assert len({tuple(person.flatten()[:8].tolist()) for person in maps}) > 2  # equal persons, other branches


@pytest.mark.parametrize(
    ("name", "millions"),
    # Of the backbones: the ViT papers' S, B, L and H, and the table in the README of facebookresearch/sapiens2.
    [("vitpose-s", 22), ("vitpose-b", 86), ("vitpose-l", 304), ("vitpose-h", 632)]
    + [
        pytest.param(f"sapiens2-{name}", millions, marks=needs_sapiens2)
        for name, millions in (("0.4b", 398), ("0.8b", 818), ("1b", 1462), ("5b", 5071))
    ],
)
def test_the_named_networks_have_the_published_sizes(name, millions):
    with torch.device("meta"):
        network, _ = hf_network(f"hf:{name}", 17, (256, 192))
    backbone = network.backbone if name.startswith("vitpose") else network.model
    assert sum(parameter.numel() for parameter in backbone.parameters()) / 1e6 == pytest.approx(millions, rel=0.02)
