# SPDX-License-Identifier: Apache-2.0
"""The recipes in train/: each is read and its network built, and the dry run steps one of each kind."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from fastpose import train
from fastpose.data.datasets import open_dataset
from fastpose.models import network
from fastpose.models.own import output_shapes, outputs_of, outputs_text
from fastpose.options.asked import find_recipe, read_recipe, recipes
from fastpose.options.settings import DEFAULTS
from fastpose.options.settle import settle
from fastpose.skeletons import find_skeleton
from tests.helpers.tiny_coco import write_tiny_coco
from tests.helpers.tiny_mpii import write_tiny_mpii

pytest.importorskip("yaml", reason="PyYAML, which reads recipes, is not installed")

# SimpleBaselines' published settings: depth and size.
PUBLISHED = {
    f"{dataset}_resnet{depth}_deconv_{name}": (dataset, depth, size)
    for dataset, sizes in (
        ("mpii", {"256": (256, 256), "384": (384, 384)}),
        ("coco", {"256x192": (256, 192), "384x288": (384, 288)}),
    )
    for name, size in sizes.items()
    for depth in (50, 101, 152)
}


def options_of(name: str) -> SimpleNamespace:
    """A recipe's options and, for those that it does not name, their defaults."""
    options = {**DEFAULTS, **read_recipe(find_recipe(name))}
    return SimpleNamespace(**{key: tuple(v) if isinstance(v, list) else v for key, v in options.items()})


def cost_of(name: str) -> tuple[int, int]:
    options = options_of(name)
    return options.depth, options.size[0] * options.size[1]


def stepped() -> list[Any]:
    """The cheapest recipe of each data and head, and, as a slow one, the dearest of all."""
    chosen = {}
    for name in sorted(recipes(), key=cost_of, reverse=True):
        options = options_of(name)
        data = f"synthetic {options.dataset}" if options.synthetic_persons else options.skeleton or options.dataset
        chosen[data, options.model.partition("-")[0] or options.head] = name
    huge = [name for name in chosen.values() if options_of(name).model.startswith("hf:sapiens2")]
    cheap = [pytest.param(name, marks=pytest.mark.slow) if name in huge else name for name in chosen.values()]
    return [*cheap, pytest.param(max(recipes(), key=cost_of), marks=pytest.mark.slow)]


def need_network(options: network.NetworkOptions) -> None:
    """Skips a test of a network of transformers that this environment has not."""
    if options.of_transformers:
        transformers = pytest.importorskip("transformers", reason="transformers is not installed")
        if "sapiens2" in options.model and not hasattr(transformers, "Sapiens2ForPoseEstimation"):
            pytest.skip("this transformers has no Sapiens2")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two persons, where the recipes of either format look for them."""
    root = tmp_path_factory.mktemp("data")
    coco = write_tiny_coco(root / "coco", persons=2, images=1)
    (coco / "images").rename(coco / "train2017")
    (coco / "val2017").symlink_to("train2017")
    for split in ("train", "valid"):
        name = f"person_keypoints_{split.replace('valid', 'val')}2017.json"
        (coco / "annotations" / f"{split}.json").rename(coco / "annotations" / name)
    write_tiny_coco(root / "lsp", persons=2, images=1, skeleton=find_skeleton("lsp"))
    return {
        "coco": coco,
        "lsp": root / "lsp",
        "mpii": write_tiny_mpii(root / "mpii", persons=2, images=1),
        "new": root / "synthetic",
    }


def test_each_published_setting_has_its_recipe() -> None:
    assert PUBLISHED.keys() <= recipes().keys()
    for name, (dataset, depth, size) in PUBLISHED.items():
        options = options_of(name)
        assert (options.dataset, options.depth, options.head, options.size) == (dataset, depth, "deconv", size), name
        assert (options.optimizer, options.lr, options.weight_decay, options.epochs) == ("adam", 1e-3, 0.0, 140), name
        assert (options.lr_drop_factor, options.lr_drop_epochs) == (10.0, (90, 120)), name
        assert options.sigma == (3.0 if size[0] == 384 else 2.0), name
        assert (options.missing, options.color_order, options.encoding) == ("ignore", "bgr", "msra"), name


def test_rtmpose_s_recipes_have_mmpose_s_settings() -> None:
    # rtmpose-{t,s,m,l}_8xb256-420e_coco-256x192.py and rtmpose-m_8xb64-210e_mpii-256x256.py.
    for name, size, decay in (
        *(
            (f"coco_rtmpose_{letter}_256x192", (256, 192), decay)
            for letter, decay in {"t": 0, "s": 0, "m": 0.05, "l": 0.05}.items()
        ),
        ("mpii_rtmpose_m_256", (256, 256), 0.05),
    ):
        options, coco = options_of(name), name.startswith("coco")
        assert (options.model, options.size) == (f"rtmpose-{name.split('_')[2]}", size), name
        assert (options.epochs, options.batch_size) == ((420, 2048) if coco else (210, 512)), name
        assert (options.optimizer, options.lr, options.weight_decay) == ("adamw", 4e-3, decay), name
        assert decay == 0 or not options.norm_decay, name
        assert (options.warmup_steps, options.lr_decay) == (1000, "cosine"), name
        assert (options.lr_decay_start, options.lr_floor, options.eval_every) == (0.5, 0.05, 10), name
        assert (options.rotation, options.rotation_prob, options.scale_min, options.scale_max) == (80, 0.6, 0.6, 1.4), (
            name
        )
        assert (options.shift, options.shift_prob, options.augmentation_draw) == (0.16, 0.3, "truncnorm"), name
        assert (options.flip, options.half_body) == (0.5, 0.3), name
        assert (options.erase, options.erase_min, options.erase_max) == (1.0, 0.2, 0.4), name
        simcc = settle({}, recipe=read_recipe(find_recipe(name))).network.simcc
        assert [round(sigma, 2) for sigma in simcc.sigma] == ([4.9, 5.66] if coco else [5.66, 5.66]), name


def test_vitpose_s_recipes_have_mmpose_s_settings() -> None:
    # layer_decay_rate and drop_path_rate of td-hm_ViTPose-{small,base,large,huge}_8xb64-210e_coco-256x192.py.
    for size, decay, drop_path in (("s", 0.8, 0.1), ("b", 0.75, 0.3), ("l", 0.8, 0.5), ("h", 0.85, 0.55)):
        options = options_of(f"coco_vitpose_{size}_256x192")
        assert (options.layer_decay, options.drop_path, options.model) == (decay, drop_path, f"hf:vitpose-{size}")
        expected = {**vars(options_of("coco_vitpose_b_256x192"))}
        expected |= {"layer_decay": decay, "drop_path": drop_path, "model": f"hf:vitpose-{size}"}
        assert vars(options) == expected
    assert (options.epochs, options.batch_size, options.optimizer, options.lr) == (210, 512, "adamw", 5e-4)
    assert (options.weight_decay, options.norm_decay, options.warmup_steps) == (0.1, False, 500)
    assert options.clip_grad_norm == 0.5  # of a loss that is half of theirs
    assert (options.lr_drop_epochs, options.lr_drop_factor) == ((170, 200), 10)
    assert (options.udp, options.encoding, options.sigma, options.missing) == (True, "udp", 2, "ignore")
    assert (options.rotation, options.rotation_prob, options.scale_min, options.scale_max) == (80, 0.6, 0.5, 1.5)
    assert (options.shift, options.shift_prob, options.augmentation_draw) == (0.16, 0.3, "truncnorm")


def test_the_two_coco_recipes_of_resnet_50_differ_in_their_head_only() -> None:
    deconv = options_of("coco_resnet50_deconv_256x192")
    assert options_of("coco_resnet50_fcn_256x192") == SimpleNamespace(**{**vars(deconv), "head": "fcn"})


@pytest.mark.parametrize("name", recipes())
def test_each_recipe_has_options_and_a_network_for_its_size(name: str) -> None:
    settings = settle({}, recipe=read_recipe(find_recipe(name)))  # each value can be used, and they go together
    options = settings.network
    need_network(options)
    joints = open_dataset(settings.data, options.size).skeleton.num_joints
    with torch.device("meta"):
        outputs = outputs_of(network.new_network(options, joints)(torch.empty(1, 3, *options.size)))
    assert [list(output.shape) for output in outputs] == output_shapes(1, joints, options.size, options.simcc)


@pytest.mark.parametrize("name", stepped())
def test_a_dry_run_builds_steps_and_decodes(name, data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = options_of(name)
    joints = find_skeleton(options.skeleton or options.dataset).num_joints
    need_network(settle({}, recipe=read_recipe(find_recipe(name))).network)
    if options.dataset == "coco" and options.score != "pck":
        pytest.importorskip("pycocotools")
    arguments = ["--recipe", name, "--dry-run", "--device", "cpu", "--batch_size", "1", "--eval_batch_size", "1"]
    arguments += ["--data_root", str(data["new" if options.synthetic_persons else options.skeleton or options.dataset])]
    arguments += ["--flip_test", "false"]
    arguments += ["--synthetic_persons", "10"] if options.synthetic_persons else []
    if options.size == (1024, 768):  # of which a step takes many minutes
        options.size = (128, 96)
        arguments += ["--size", "128", "96"]
    assert train.main(arguments) == 0
    out, (height, width) = capsys.readouterr().out, options.size
    network = settle({}, recipe=read_recipe(find_recipe(name))).network
    assert str(network) in out
    assert f"optimiser: {options.optimizer}" in out
    assert f"[1, 3, {height}, {width}] float32, joints [1, {joints}, 2]" in out
    returned = outputs_text(output_shapes(1, joints, options.size, network.simcc))
    assert f"{returned}, points [1, {joints}, 2]" in out
    assert re.search(r"first step in [\d.]+ s: [\d.]+ samples/s", out)
    assert int(re.search(r"at most (\d+) MiB", out)[1]) > 50
    if name == "mpii_resnet50_deconv_256":
        assert "33,999,440 parameters" in out  # SimpleBaselines' own count
    assert not list(tmp_path.iterdir())


def test_a_dry_run_leaves_folders_alone_and_a_bad_loss_is_an_error(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(network, "pose_resnet", small_network)
    run = tmp_path / "run"
    options = {"data_root": str(data["mpii"]), "size": [64, 64], "batch_size": 2, "epochs": 1, "device": "cpu"}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(options))
    arguments = ["--recipe", str(tmp_path / "tiny.yaml"), "--run", str(run)]
    assert train.main([*arguments, "--dry_run"]) == 0
    assert not run.exists()
    assert train.main(arguments) == 0
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    assert train.main(["--resume", str(run), "--dry-run", "--epochs", "2"]) == 0
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    monkeypatch.setattr(network, "pose_resnet", nan_network)
    assert train.main([*arguments, "--dry-run"]) == 1
    assert "the loss is nan" in capsys.readouterr().err


def small_network(depth: int, head: str, num_joints: int, *, channels: int) -> torch.nn.Module:
    return torch.nn.Conv2d(3, num_joints, 4, stride=4)


def nan_network(depth: int, head: str, num_joints: int, *, channels: int) -> torch.nn.Module:
    network = torch.nn.Conv2d(3, num_joints, 4, stride=4)
    torch.nn.init.constant_(network.weight, float("nan"))
    return network
