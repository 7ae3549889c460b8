# SPDX-License-Identifier: Apache-2.0
"""Networks that return SimCC's vectors: from options and files to the training step, points and exported files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastpose
from fastpose import evaluate, export, train
from fastpose.data.augmentation import Augmentation
from fastpose.data.datasets import open_dataset
from fastpose.data.loader import Batch, PoseLoader
from fastpose.data.persons import Persons
from fastpose.data.pixels import ImageFiles
from fastpose.device import ComputeOptions
from fastpose.engine import results
from fastpose.engine.evaluation import heatmaps_of
from fastpose.models import count_parameters, load_weights, network, pose_resnet, read_weights, rtmpose
from fastpose.models.decoding import DecodeOptions, Decoder
from fastpose.models.network import NetworkOptions, make_network
from fastpose.models.simcc import SimccVectors
from fastpose.option import OptionError
from fastpose.options.settings import Settings
from fastpose.options.settle import settle
from fastpose.skeletons import COCO, MPII
from fastpose.trained import load_trained
from tests.helpers.runs import draw_curves, save_weights, write_recipe
from tests.helpers.settings import changed, make_step
from tests.helpers.tiny_mpii import write_tiny_mpii

SIZE = (64, 96)
SIMCC = SimccVectors(2.0, (3.0, 2.5))


def randomized(model: nn.Module) -> nn.Module:
    """With statistics of batch normalisation, too, that are not those that training begins with."""
    generator = torch.Generator().manual_seed(0)
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator) + 0.1 if value.ndim < 2 else value * 2)
    return model.eval()


# ---- networks ----


@pytest.mark.parametrize("make", [
    lambda: pose_resnet(18, "simcc", 5, size=SIZE),
    lambda: pose_resnet(50, "simcc", 5, size=SIZE, channels=8),
    lambda: rtmpose("rtmpose-t", 5, SIZE),
])  # fmt: skip
def test_a_network_returns_a_vector_per_axis_and_all_of_it_learns(make: Callable[[], nn.Module]) -> None:
    model = make()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # residual blocks begin as their shortcuts, which hides their inside
            nn.init.ones_(module.weight)
    x, y = model(torch.randn(2, 3, *SIZE))
    assert (x.shape, y.shape) == ((2, 5, 192), (2, 5, 128))
    (x.square().mean() + y.square().mean()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    ("name", "millions"), [("rtmpose-t", 3.34), ("rtmpose-s", 5.47), ("rtmpose-m", 13.59), ("rtmpose-l", 27.66)]
)
def test_rtmpose_has_the_published_number_of_parameters(name: Any, millions: float) -> None:
    with torch.device("meta"):
        model = rtmpose(name, 17, (256, 192))
    assert round(count_parameters(model) / 1e6, 2) == millions


def test_the_bins_are_as_many_as_the_ratio_says_or_an_error() -> None:
    x, y = pose_resnet(18, "simcc", 3, size=SIZE, split_ratio=1.5)(torch.zeros(2, 3, *SIZE))
    assert (x.shape[2], y.shape[2]) == (144, 96)
    with pytest.raises(OptionError, match=r"split_ratio: .*bins, a whole number, for 64x96 pixels, got 2.01"):
        NetworkOptions(head="simcc", size=SIZE, split_ratio=2.01)
    with pytest.raises(OptionError, match=r"simcc_sigma: expected two positive numbers of bins, got \[4.9\]"):
        NetworkOptions(head="simcc", simcc_sigma=(4.9,))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pose_resnet(18, "simcc", size=(100, 64)), r"size must be .* multiples of 32 pixels, got \(100, 64\)"),
        (lambda: rtmpose("rtmpose-t", 0, SIZE), "num_joints must be a positive whole number, got 0"),
        (lambda: rtmpose("rtmpose-t", 5, SIZE, channels=-3), "channels must be a positive whole number, got -3"),
        (lambda: rtmpose("rtmpose-x", 5, SIZE), "name must be one of rtmpose-t, .*, got 'rtmpose-x'"),
        (lambda: pose_resnet(18, "simcc", 5, size=SIZE)(torch.zeros(1, 3, 96, 64)), "must be 64x96, .* got 96x64"),
    ],
)
def test_what_a_network_cannot_be_is_said(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# ---- options ----


def test_head_and_targets_follow_from_each_other() -> None:
    for asked in ({"head": "simcc"}, {"targets": "simcc"}, {"model": "rtmpose-s"}):
        for recipe in ({"head": "fcn"}, {"depth": 18}, {"head": "deconv", "targets": "heatmap"}):
            settings = settle(asked, recipe=recipe)
            assert settings.network.simcc is not None, (asked, recipe)
            assert (settings.network.targets, settings.decode.refine) == ("simcc", "none")
    for asked in ({"head": "fcn"}, {"targets": "heatmap"}):
        for recipe in ({"targets": "simcc", "refine": "none"}, {"head": "simcc"}):
            network = settle(asked, recipe=recipe).network
            assert (network.head, network.targets, network.simcc) == ("fcn", "heatmap", None)
    assert settle({}, recipe={"head": "simcc", "refine": "dark"}).decode.refine == "dark"
    for asked in ({"model": "mine:make"}, {"model": "mine:make", "head": "fcn"}):
        own = settle(asked, recipe={"targets": "simcc", "size": [32, 48]}).network
    assert own.simcc == SimccVectors(2.0, (48**0.5 / 8**0.5, 2.0))  # RTMPose's: an eighth of the side, its root


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "fcn", "targets": "simcc"}, "targets: ResNet-50 with fcn head returns heatmaps, got simcc"),
        ({"model": "rtmpose-t", "targets": "heatmap"}, "network rtmpose-t returns SimCC's vectors, got heatmap"),
        ({"head": "simcc", "refine": "quarter"}, "refine: SimCC's vectors are refined by none or dark, got quarter"),
        (
            {"head": "simcc", "hard_joints": 8},
            "hard_joints: expected 0 with SimCC's vectors, it is for heatmaps, got 8",
        ),
        ({"head": "simcc", "refine": "dark", "simcc_sigma": (500.0, 500.0)}, "simcc_sigma: .* got 500.0"),
        (
            {"head": "simcc", "split_ratio": 1e300},
            r"split_ratio: must give 2 to 16384 bins, .*, got 1e\+300",
        ),
        ({"head": "simcc", "split_ratio": float("inf")}, "got inf"),
        ({"head": "simcc", "split_ratio": float("nan")}, "got nan"),
        ({"model": "rtmpose-x"}, "model: expected PACKAGE.MODULE:FACTORY"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        settle(options)


def test_a_recipe_may_name_rtmpose_which_is_no_code_of_others() -> None:
    assert settle({}, recipe={"model": "rtmpose-m"}).network.model == "rtmpose-m"
    with pytest.raises(OptionError, match="names the network mine:make, whose code would run"):
        settle({}, recipe={"model": "mine:make"})


# ---- training step, points and pictures ----


class Vectors(nn.Module):
    """Returns the same vectors for every image, with a weight to learn."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        super().__init__()
        self.x, self.y, self.weight = x, y, nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return tuple((self.weight * v).expand(len(images), -1, -1) for v in (self.x, self.y))


def vectors(joints: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, joints, 192, generator=generator), torch.randn(1, joints, 128, generator=generator)


def test_a_step_takes_the_loss_of_simcc() -> None:
    x, y = vectors()
    model = Vectors(x, y)
    settings = Settings.of({"head": "simcc", "size": SIZE, "batch_size": 3, "simcc_sigma": (3.0, 2.5)})
    keypoints, visible = torch.rand(3, 16, 2) * 60, (torch.rand(3, 16) < 0.8).float()
    batch = Batch(0, torch.arange(3), torch.zeros(3, 3, *SIZE), keypoints, visible, torch.zeros(3, 2, 3))
    loss = make_step(model, settings, simcc=settings.network.simcc)(batch, 1e-3)
    expected = fastpose.simcc_loss(x.expand(3, -1, -1), y.expand(3, -1, -1), keypoints, visible, sigma=(3.0, 2.5))
    assert loss == expected
    assert model.weight != 1.0
    with pytest.raises(
        OptionError, match=r"must return SimCC's vectors \[3, 16, 192\] and \[3, 16, 128\] .* got tuple"
    ):
        make_step(Vectors(y, x), settings, simcc=settings.network.simcc)(batch, 1e-3)


def test_a_captured_step_trains_like_an_eager_one(device: torch.device) -> None:
    """On the CPU, where nothing is captured, two equal runs."""
    settings = Settings.of({"head": "simcc", "size": (32, 64), "batch_size": 4, "amp": "off", "optimizer": "adamw"})
    generator = torch.Generator().manual_seed(0)
    keypoints = torch.rand(4, 16, 2, generator=generator) * torch.tensor([63.0, 31.0])
    images = torch.randn(4, 3, 32, 64, generator=generator).to(device)
    joints = keypoints.to(device), torch.ones(4, 16, device=device)
    batch = Batch(0, torch.arange(4), images, *joints, torch.zeros(4, 2, 3, device=device))
    losses = []
    for graph in (False, device.type == "cuda"):
        torch.manual_seed(0)
        model = pose_resnet(18, "simcc", 16, channels=16, size=(32, 64)).to(device)
        step = make_step(model, changed(settings, cuda_graph=graph), device, simcc=settings.network.simcc)
        losses.append([step(batch, 1e-3).item() for _ in range(3)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
    assert losses[0][2] < losses[0][0]


@pytest.mark.parametrize("options", [DecodeOptions(refine="none"), DecodeOptions(refine="dark", flip_test=False)])
def test_points_are_decoded_from_the_vectors_of_both_images(options: DecodeOptions) -> None:
    x, y = vectors()
    matrix = torch.tensor([[[2.0, 0.5, 30.0], [0.1, 1.5, -7.0]]]).expand(2, -1, -1)
    decoder = Decoder(Vectors(x, y), MPII, options, ComputeOptions(), simcc=SIMCC)
    got = decoder(torch.zeros(2, 3, *SIZE), matrix)
    flip = {"flipped_x": x, "flipped_y": y, "flip_pairs": MPII.mirror_pairs} if options.flip_test else {}
    expected = fastpose.decode_simcc(x, y, crop_to_image=matrix[:1], refine=options.refine, sigma=SIMCC.sigma, **flip)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs.expand_as(ours), rtol=0, atol=0)


@pytest.fixture(scope="module")
def persons(tmp_path_factory: pytest.TempPathFactory) -> Persons:
    data = settle({"data_root": str(write_tiny_mpii(tmp_path_factory.mktemp("tiny")))}).data
    return open_dataset(data, SIZE).read("valid")


@pytest.mark.parametrize("udp", [False, True])
def test_joints_come_in_pixels_of_the_crop_with_stride_1(persons: Persons, udp: bool) -> None:
    options: dict[str, Any] = {"augmentation": Augmentation(), "seed": 3, "udp": udp}
    source = ImageFiles(persons.image_paths)
    maps, crops = (next(PoseLoader(persons, source, SIZE, 4, stride=stride, **options).epoch()) for stride in (4, 1))
    assert torch.equal(maps.images, crops.images)
    ratio = torch.tensor([95 / 23, 63 / 15] if udp else [4.0, 4.0])
    torch.testing.assert_close(crops.keypoints, maps.keypoints * ratio, rtol=1e-4, atol=1e-3)
    on_image = [fastpose.transform_points(b.keypoints, b.heatmap_to_image) for b in (maps, crops)]
    torch.testing.assert_close(*on_image, rtol=0, atol=5e-3)


def test_the_picture_of_vectors_has_its_maximum_at_theirs(persons: Persons) -> None:
    x, y = vectors()
    loader = PoseLoader(persons, ImageFiles(persons.image_paths), SIZE, 1, stride=1)
    maps = heatmaps_of(Decoder(Vectors(x, y), MPII, DecodeOptions(), ComputeOptions(), simcc=SIMCC), loader, 0)
    assert maps.shape == (16, 128, 192)
    assert maps.max() == 1.0
    highest = maps.reshape(16, -1).argmax(1)
    assert np.array_equal(highest % 192, x[0].argmax(1))
    assert np.array_equal(highest // 192, y[0].argmax(1))


# ---- files ----


@pytest.mark.parametrize("head", ["resnet", "rtmpose"])
def test_mmposes_files_are_recognised_and_loaded(head: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = (64, 32)
    if head == "rtmpose":
        model, theirs = rtmpose("rtmpose-t", 17, size), lambda name: name
    else:
        model = pose_resnet(18, "simcc", 17, size=size)
        theirs = lambda name: name if name.startswith("head.") else f"backbone.{name}"  # noqa: E731
    randomized(model)
    state = {theirs(name): value for name, value in model.state_dict().items()}
    path = tmp_path / "rtmpose.pth"
    torch.save({"state_dict": {**state, "data_preprocessor.mean": torch.zeros(3)}}, path)
    trained = load_trained(path, {}, torch.device("cpu"))
    options = trained.settings.network
    assert (options.size, options.color_order, trained.skeleton) == (size, "rgb", COCO)
    assert (options.model, options.head) == (("rtmpose-t", "simcc") if head == "rtmpose" else ("", "simcc"))
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        for ours, expected in zip(trained.model.eval()(images), model(images), strict=True):
            assert torch.equal(ours, expected)
    assert "in the layout of mmpose 1.x, simcc head with 256 channels, 17 joints" in capsys.readouterr().err
    # Its backbone goes into a network of other joints and another size.
    options = NetworkOptions(model=options.model, depth=18, head="simcc", size=(96, 64), backbone_weights=str(path))
    fresh = make_network(options, MPII, torch.device("cpu"))
    before, after = model.state_dict(), fresh.state_dict()
    for name in before:
        assert torch.equal(before[name], after[name]) != name.startswith("head."), name


def test_a_head_of_another_number_of_joints_starts_with_a_new_layer(tmp_path: Path) -> None:
    torch.save(randomized(rtmpose("rtmpose-t", 17, SIZE)).state_dict(), tmp_path / "coco.pth")
    model, weights = rtmpose("rtmpose-t", 16, SIZE), read_weights(tmp_path / "coco.pth")
    line = load_weights(model, weights, new_joints=16)
    assert line.endswith("for 16 joints new: head.final_layer.bias, head.final_layer.weight")
    assert torch.equal(model.head.cls_x.weight, weights.state["head.cls_x.weight"])


class SmallNetwork(nn.Module):
    """Stands in for a ResNet, whose checkpoints alone take longer to write than this test should take."""

    def __init__(self, depth: int, head: str, num_joints: int, *, channels: int, size: Any, split_ratio: float) -> None:
        super().__init__()
        self.joints = nn.Conv2d(3, num_joints, 8, stride=8)
        cells, (height, width) = size[0] * size[1] // 64, size
        self.x = nn.Linear(cells, int(width * split_ratio))
        self.y = nn.Linear(cells, int(height * split_ratio))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        cells = self.joints(images).flatten(2)
        return self.x(cells), self.y(cells)


def test_a_file_cannot_ask_for_a_network_of_any_size(tmp_path, capsys) -> None:
    config = Settings.of({"head": "simcc", "depth": 18, "size": [64, 64]}).as_plain() | {"split_ratio": 1e300}
    save_weights(tmp_path / "best.pt", {}, config, skeleton=dataclasses.asdict(MPII))
    assert evaluate.main(["--checkpoint", str(tmp_path / "best.pt"), "--data_root", str(tmp_path)]) == 1
    assert "split_ratio: must give 2 to 16384 bins" in capsys.readouterr().err


def test_a_simcc_network_of_one_s_own_is_evaluated_from_its_weights(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "simcc_net.py").write_text(
        "from tests.models.test_simcc_networks import SmallNetwork\n"
        "def make(joints):\n    return SmallNetwork(18, 'simcc', joints, channels=4, size=(32, 64), split_ratio=1.0)\n"
    )
    model = SmallNetwork(18, "simcc", 16, channels=4, size=(32, 64), split_ratio=1.0)
    torch.save(model.state_dict(), tmp_path / "net.pth")
    words = ["--checkpoint", "net.pth", "--model", "simcc_net:make", "--targets", "simcc", "--split_ratio", "1"]
    words += ["--data_root", str(write_tiny_mpii(tmp_path / "tiny")), "--dataset", "mpii", "--size", "32", "64"]
    assert evaluate.main([*words, "--device", "cpu", "--out", str(tmp_path / "scores")]) == 0
    assert json.loads((tmp_path / "scores" / "scores.json").read_text())["persons"] == 10


def test_a_run_trains_resumes_evaluates_and_exports(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(network, "pose_resnet", SmallNetwork)
    recipe = write_recipe(tmp_path, targets="simcc", size=[32, 64], epochs=1)
    run = str(tmp_path / "run")
    assert train.main(["--recipe", str(recipe), "--run", run]) == 0
    assert (tmp_path / "run" / "heatmaps.png").stat().st_size > 10_000
    monkeypatch.setattr(results, "draw", draw_curves)  # once is enough
    assert train.main(["--resume", run, "--epochs", "2"]) == 0
    assert train.main(["--resume", run, "--head", "simcc"]) == 0  # what it has
    with pytest.raises(SystemExit):
        train.main(["--resume", run, "--epochs", "3", "--weights", "other.pth"])
    assert "weights: a run that goes on has its own weights: leave it out, got other" in capsys.readouterr().err
    assert train.main(["--resume", run, "--epochs", "3", "--split_ratio", "1"]) == 1
    assert "split_ratio is 2.0 in the run, got 1.0: a run keeps its network" in capsys.readouterr().err
    assert evaluate.main(["--checkpoint", run, "--refine", "dark", "--out", str(tmp_path / "scores")]) == 0
    assert json.loads((tmp_path / "scores" / "scores.json").read_text())["refine"] == "dark"
    assert export.main(["--checkpoint", run, "--format", "torch", "--flip_test", "true"]) == 0
    assert "of the highest value" in capsys.readouterr().out
