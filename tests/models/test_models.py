# SPDX-License-Identifier: Apache-2.0
import json
import re
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from torch import nn

from fastpose import evaluate, export, predict, train
from fastpose.engine import pictures
from fastpose.models import (
    compare_heads,
    count_flops,
    count_parameters,
    load_imagenet_backbone,
    make_own_model,
    pose_resnet,
)
from fastpose.models.__main__ import main
from fastpose.models.network import NetworkOptions, make_network
from fastpose.models.own import check_outputs, check_trains_on
from fastpose.options.settle import settle
from fastpose.skeletons import MPII
from fastpose.trained import load_trained
from tests.helpers.runs import save_weights
from tests.helpers.terminal import error_of
from tests.helpers.tiny_mpii import write_tiny_mpii

DEPTHS = (18, 34, 50, 101, 152)


def on_meta(*args: object, **kwargs: object) -> nn.Module:
    with torch.device("meta"):
        return pose_resnet(*args, **kwargs)  # type: ignore[arg-type]


# ---- architecture ----


def test_deconv_resnet50_with_16_joints_is_the_size_of_simple_baselines():
    assert count_parameters(on_meta(50, "deconv")) == 33_999_440


@pytest.mark.parametrize(
    ("depth", "parameters"),
    # torchvision's published counts less the classifier (513,000 for 512 features, 2,049,000 for 2048).
    [(18, 11_176_512), (34, 21_284_672), (50, 23_508_032), (101, 42_500_160), (152, 58_143_808)],
)
@pytest.mark.parametrize("head", ["fcn", "deconv"])
def test_the_backbone_has_the_parameters_of_torchvision(depth, parameters, head):
    names = ("conv1.", "bn1.", "layer1.", "layer2.", "layer3.", "layer4.")
    count = sum(p.numel() for name, p in on_meta(depth, head).named_parameters() if name.startswith(names))
    assert count == parameters


def test_the_deconv_state_dict_has_the_names_of_simple_baselines():
    shapes = {name: tuple(value.shape) for name, value in on_meta(50, "deconv").state_dict().items()}
    assert {name.split(".")[0] for name in shapes} == {
        *("conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "deconv_layers", "final_layer")
    }
    assert shapes["layer2.0.downsample.0.weight"] == (512, 256, 1, 1)
    assert shapes["layer2.0.downsample.1.running_var"] == (512,)
    assert shapes["layer3.5.conv3.weight"] == (1024, 256, 1, 1)
    assert shapes["deconv_layers.0.weight"] == (2048, 256, 4, 4)
    assert shapes["deconv_layers.3.weight"] == shapes["deconv_layers.6.weight"] == (256, 256, 4, 4)
    assert shapes["deconv_layers.7.running_mean"] == (256,)
    assert shapes["final_layer.weight"] == (16, 256, 1, 1)
    assert shapes["final_layer.bias"] == (16,)
    assert "deconv_layers.0.bias" not in shapes


def test_the_stride_of_a_bottleneck_is_on_its_3x3_convolution():
    block = on_meta(50).layer2[0]
    assert (block.conv1.stride, block.conv2.stride, block.downsample[0].stride) == ((1, 1), (2, 2), (2, 2))


def test_every_down_sampling_shortcut_and_every_fcn_convolution_but_the_last_is_normalised():
    model = on_meta(50, "fcn")
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        assert isinstance(stage[0].downsample[1], nn.BatchNorm2d)
    convolutions = [m for m in model.fcn_layers.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in model.fcn_layers.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(convolutions) == len(norms) == 4 + 3 * 3 + 2
    assert {c.kernel_size for c in convolutions} == {(1, 1), (3, 3)}
    assert sum(c.kernel_size == (3, 3) for c in convolutions) == 3
    assert model.fcn_layers.blocks[0].conv1.weight.shape == (64, 256, 1, 1)


@pytest.mark.parametrize("depth", DEPTHS)
def test_the_fcn_head_is_cheaper_in_parameters_and_operations(depth):
    fcn, deconv = on_meta(depth, "fcn"), on_meta(depth, "deconv")
    assert count_parameters(fcn) < count_parameters(deconv)
    assert count_flops(fcn, (64, 64)) < count_flops(deconv, (64, 64))  # both grow with the area, so at any size


@pytest.mark.parametrize("head", ["fcn", "deconv"])
@pytest.mark.parametrize("depth", [18, 50])
def test_heatmaps_are_a_quarter_of_the_image(depth, head):
    model = pose_resnet(depth, head, 5, channels=16)
    x = torch.randn(2, 3, 64, 96)
    before = x.clone()
    heatmaps = model(x)
    assert heatmaps.shape == (2, 5, 16, 24)
    assert torch.equal(x, before)


@pytest.mark.parametrize("head", ["fcn", "deconv"])
def test_every_parameter_gets_a_gradient(head):
    model = pose_resnet(18, head, 3, channels=8)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # residual blocks begin as their shortcuts, which hides their inside
            nn.init.ones_(module.weight)
    nn.init.normal_(model.final_layer.weight)
    model(torch.randn(2, 3, 64, 64)).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("head", ["fcn", "deconv"])
def test_every_stage_the_head_uses_reaches_the_output(head):
    # fcn: all four stages. deconv: the last alone.
    model = pose_resnet(18, head, 3, channels=8).eval()
    nn.init.normal_(model.final_layer.weight)
    stages = [s.detach().requires_grad_() for s in model.stages(torch.randn(1, 3, 64, 64))]
    model.stages = lambda x: stages
    model(torch.zeros(1, 3, 64, 64)).sum().backward()
    used = [stage.grad is not None and bool(stage.grad.abs().max() > 0) for stage in stages]
    assert used == ([True] * 4 if head == "fcn" else [False, False, False, True])


def test_the_fcn_head_shifts_with_its_input():
    # A convolution network with x2 steps: moving every stage by one cell of the coarsest moves the maps by 8.
    layers = pose_resnet(18, "fcn", 3, channels=8).eval().fcn_layers
    stages = [torch.zeros(1, c, 2**k, 2**k) for c, k in zip((64, 128, 256, 512), (7, 6, 5, 4), strict=True)]
    moved = [s.clone() for s in stages]
    for level, (stage, shifted) in enumerate(zip(stages, moved, strict=True)):
        pattern = torch.randn(1, stage.shape[1], 1, 1)
        start = 7 * 2 ** (3 - level)
        stage[:, :, start, start] = pattern[..., 0, 0]
        shifted[:, :, start, start + 2 ** (3 - level)] = pattern[..., 0, 0]
    expected = torch.roll(layers(stages), 8, dims=3)
    torch.testing.assert_close(layers(moved)[..., 16:-16, 16:-16], expected[..., 16:-16, 16:-16])


def test_the_first_heatmaps_are_nearly_zero():
    for head in ("fcn", "deconv"):
        model = pose_resnet(18, head)
        heatmaps = model(torch.randn(2, 3, 64, 64))
        assert heatmaps.abs().max() < 0.2
        assert heatmaps.std() > 1e-4
        assert not model.final_layer.bias.any()


@pytest.mark.parametrize("depth", [18, 50])
def test_residual_blocks_of_the_backbone_begin_as_their_shortcuts(depth):
    block = pose_resnet(depth, channels=8).layer1[1]
    x = torch.rand(1, 64 if depth == 18 else 256, 8, 8)
    torch.testing.assert_close(block(x), x)


@pytest.mark.parametrize("head", ["fcn", "deconv"])
def test_channels_last_gives_the_same_heatmaps(head):
    model = pose_resnet(18, head, 4, channels=8).double().eval()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    expected = model(x)
    got = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("head", ["fcn", "deconv"])
def test_the_graph_is_captured_whole(head):
    model = pose_resnet(18, head, 4, channels=8).eval()
    x = torch.randn(1, 3, 64, 64)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 20}, "depth must be one of 18, 34, 50, 101, 152, got 20"),
        ({"depth": 18, "head": "unet"}, "head must be one of fcn, deconv, simcc, got 'unet'"),
        ({"depth": 18, "num_joints": 0}, "num_joints must be a positive whole number, got 0"),
        ({"depth": 18, "num_joints": 1.5}, "num_joints must be"),
        ({"depth": 18, "num_joints": True}, "num_joints must be"),
        ({"depth": 18, "channels": 30}, "channels must be a positive whole number and a multiple of 4, got 30"),
        ({"depth": 18, "head": "deconv", "channels": -1}, "channels must be a positive whole number, got -1"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        pose_resnet(**arguments)


@pytest.mark.parametrize("shape", [(1, 3, 64, 60), (1, 3, 48, 64), (1, 4, 64, 64), (3, 64, 64)])
def test_images_that_do_not_fit_are_refused(shape):
    model = pose_resnet(18, channels=8)
    with pytest.raises(ValueError, match=r"\[B, 3, H, W\] with H and W multiples of 32, got \["):
        model(torch.zeros(shape))


# ---- cost ----


def test_operations_are_counted_as_by_hand():
    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)
            self.norm = nn.BatchNorm2d(4)
            self.deconv = nn.ConvTranspose2d(4, 5, 4, stride=2, padding=1)

        def forward(self, x):
            return self.deconv(self.norm(self.conv(x)))

    model = Small()
    # 8x6 outputs of 3·9·4 multiply-adds; 8x6 inputs of the deconvolution that each feed 4·4 places of 5 channels.
    assert count_flops(model, (8, 6)) == 2 * 48 * (3 * 9 * 4 + 4 * 16 * 5)
    assert model.norm.num_batches_tracked == 0
    assert model.conv.weight.device.type == "cpu"


def test_the_table_shows_all_heads():
    table = compare_heads((50,), (256, 256)).split("\n")
    assert table[-1].split() == ["ResNet-50", "24.84", "34.00", "25.82", "13.54", "14.47", "10.90"]


def test_the_command_prints_the_table_and_refuses_a_size_that_does_not_fit(capsys):
    main(["--depth", "18", "--size", "128", "64"])
    assert "input 128 x 64" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(["--depth", "18", "--size", "100", "64"])
    assert "multiples of 32" in capsys.readouterr().err


# ---- ImageNet weights ----


def imagenet_weights(seed: int = 1) -> dict[str, torch.Tensor]:
    """A state dict as torchvision's resnet18 has it: the backbone, the classifier, no counters before 0.4.1."""
    torch.manual_seed(seed)
    head = ("final_layer", "fcn_layers")
    state = {
        n: torch.rand_like(v) for n, v in pose_resnet(18).state_dict().items() if not n.startswith(head) and v.ndim
    }
    return {**state, "fc.weight": torch.rand(1000, 512), "fc.bias": torch.rand(1000)}


@pytest.mark.parametrize("head", ["fcn", "deconv"])
@pytest.mark.parametrize("layout", ["bare", "state_dict", "module"])
def test_imagenet_weights_fill_the_backbone_and_leave_the_head(tmp_path, head, layout):
    weights = imagenet_weights()
    stored = {f"module.{n}": v for n, v in weights.items()} if layout == "module" else weights
    torch.save({"state_dict": stored, "epoch": 3} if layout != "bare" else stored, tmp_path / "r.pth")
    model = pose_resnet(18, head, channels=8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = load_imagenet_backbone(model, tmp_path / "r.pth")
    assert "11,176,512 parameters" in report
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights.get(name, before[name])), name


def test_weights_that_do_not_fit_are_listed_and_leave_the_model_as_it_was(tmp_path):
    weights = imagenet_weights()
    del weights["layer1.0.conv1.weight"]
    weights["layer9.weight"] = torch.zeros(1)
    weights["bn1.bias"] = torch.zeros(65)
    torch.save(weights, tmp_path / "r.pth")
    model = pose_resnet(18, channels=8)
    before = model.conv1.weight.clone()
    with pytest.raises(ValueError, match=r"r\.pth: does not fit") as error:
        load_imagenet_backbone(model, tmp_path / "r.pth")
    for part in (
        "1 missing: layer1.0.conv1.weight",
        "1 unexpected: layer9.weight",
        "1 of another shape: bn1.bias [65] for [64]",
    ):
        assert part in str(error.value)
    assert torch.equal(model.conv1.weight, before)


def test_weights_of_another_depth_are_refused(tmp_path):
    torch.save(imagenet_weights(), tmp_path / "r.pth")
    with pytest.raises(ValueError, match=r"missing: .* more"):
        load_imagenet_backbone(pose_resnet(34, channels=8), tmp_path / "r.pth")


class Opens:
    """Unpickling this would create the file it is given."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_file_that_is_no_state_dict_is_refused_and_runs_no_code(tmp_path):
    path, mark = tmp_path / "r.pth", tmp_path / "executed"
    model = pose_resnet(18, channels=8)
    torch.save({"conv1.weight": Opens(mark)}, path)
    with pytest.raises(ValueError, match=r"r\.pth: expected a state dict of tensors.*'conv1.weight' \(an object of "):
        load_imagenet_backbone(model, path)
    assert not mark.exists()
    for content in ([1, 2], {"conv1.weight": 3}):
        torch.save(content, path)
        with pytest.raises(ValueError, match=r"r\.pth: expected a state dict of tensors"):
            load_imagenet_backbone(model, path)
    for raw, why in (
        (b"", "empty"),
        (b"hello", "not a file of weights: it begins with b'hello'"),
        (b"PK\x03\x04 torn", "zip"),
    ):
        path.write_bytes(raw)
        with pytest.raises(ValueError, match=rf"r\.pth: .*{why}"):
            load_imagenet_backbone(model, path)
    with pytest.raises(FileNotFoundError):
        load_imagenet_backbone(model, tmp_path / "absent.pth")


# ---- networks of one's own ----


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty working directory, from which modules can be imported, and are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


def test_a_network_of_one_s_own_is_imported_from_the_working_directory(here):
    (here / "nets").mkdir()
    (here / "nets" / "small.py").write_text(
        "from torch import nn\nclass Nets:\n    make = staticmethod(lambda joints: nn.Conv2d(3, joints, 4, stride=4))\n"
    )
    model = make_own_model("nets.small:Nets.make", 5)
    assert model(torch.zeros(2, 3, 64, 48)).shape == (2, 5, 16, 12)


MODULE = """
import torch
from torch import nn

number = 3

def fails(joints):
    return 1 // 0

def no_module(joints):
    return joints

def leaves(joints):
    raise SystemExit(3)

def takes_nothing():
    return nn.Identity()

class Own(nn.Module):
    def __init__(self, joints):
        super().__init__()
        self.conv = nn.Conv2d(3, joints, 4, stride=4)

class Full(Own):
    def forward(self, x):
        return self.conv(x)[:, :, ::2]

class Two(Own):
    def forward(self, x):
        return self.conv(x), x

class Whole(Own):
    def forward(self, x):
        return self.conv(x).long()

class Wrong(Own):
    def forward(self, x):
        return self.conv(x[:, :2])
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine", "expected PACKAGE.MODULE:FACTORY, for instance mynet:make, got 'mine'"),
        ("mine.py:Own", "no module 'mine.py' in "),
        ("./mine:Own", "expected PACKAGE.MODULE:FACTORY"),
        ("nowhere:make", r"no module 'nowhere' in .* wanted for 'nowhere:make'"),
        ("mine:Onw", r"mine\.py has no 'Onw', wanted for 'mine:Onw'"),
        ("mine:number", r"mine:number must be callable with the number of joints, got int"),
        ("mine:no_module", r"mine:no_module\(16\) must return a torch.nn.Module, got int"),
        ("mine:fails", r"mine:fails\(16\) fails: ZeroDivisionError: .* \(mine.py, line 8\)"),
        ("mine:takes_nothing", r"mine:takes_nothing\(16\) fails: TypeError"),
        ("mine:leaves", r"mine:leaves\(16\) fails: SystemExit: 3"),
        ("needs:Own", r"importing needs fails: ModuleNotFoundError: No .* 'missing_part' \(needs.py, line 1\)"),
        ("broken:Own", r"importing broken fails: SyntaxError"),
        ("mine:Full", r"mine:Full must map .* to heatmaps \[1, 16, 8, 12\], got torch.float32 \[1, 16, 4, 12\]"),
        ("mine:Two", r"got tuple of torch.float32 \[1, 16, 8, 12\] and torch.float32 \[1, 3, 32, 48\]"),
        ("mine:Whole", r"got torch.int64 \[1, 16, 8, 12\]"),
        ("mine:Wrong", r"called with images \[1, 3, 32, 48\], fails: RuntimeError: .*\(\w+\.py, line \d+\)"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_network_of_one_s_own_is_said_before_the_training(here, name, message):
    (here / "mine.py").write_text(MODULE)
    (here / "needs.py").write_text("import missing_part\n")
    (here / "broken.py").write_text("class Own(\n")
    with pytest.raises(ValueError, match=f"^model: .*({message})"):
        make_network(NetworkOptions(model=name, size=(32, 48)), MPII, torch.device("cpu"))


def test_the_look_at_a_network_leaves_it_as_it_was():
    model = nn.Sequential(nn.Conv2d(3, 5, 4, stride=4), nn.BatchNorm2d(5), nn.Dropout(0.5))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    check_outputs(model, "m:f", 5, (16, 20))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    check_outputs(model.eval(), "m:f", 5, (16, 20))
    assert not model.training


def test_sizes_are_multiples_of_32_for_the_resnets_and_of_4_for_others():
    for size in ((64, 48), (33, 64)):
        with pytest.raises(ValueError, match=rf"multiples of 32 pixels, got \[{size[0]}, {size[1]}\]"):
            NetworkOptions(size=size)
    assert NetworkOptions(size=(64, 48), model="a:b").size == (64, 48)
    with pytest.raises(ValueError, match="multiples of 4 pixels"):
        NetworkOptions(size=(64, 50), model="a:b")


def test_imagenet_weights_are_for_the_resnets(here):
    (here / "mine.py").write_text(MODULE)
    options = NetworkOptions(model="mine:Own", backbone_weights="resnet50.pth")
    with pytest.raises(ValueError, match=r"backbone_weights: .* not together with --model mine:Own"):
        make_network(options, MPII, torch.device("cpu"))


# Those of other packages are in tests/integrations.
DOCUMENTED = {"hrnet_like": "hrnet_like:HrnetLike", "vit_like": "vit_like:tiny"}


@pytest.mark.parametrize("module", DOCUMENTED)
def test_the_documented_networks_train_evaluate_and_go_on(here, capsys, monkeypatch, module):
    guide = (Path(__file__).parents[2] / "docs" / "own_model.md").read_text(encoding="utf-8")
    (code,) = re.findall(rf"```python\n# {module}\.py\n(.*?)```", guide, re.DOTALL)
    for name in ("draw_curves", "draw_predictions", "draw_heatmaps"):
        monkeypatch.setattr(pictures, name, lambda *arguments, **named: None)
    (here / f"{module}.py").write_text(code)
    factory = DOCUMENTED[module]
    # Three quarters of 64 px: no multiple of 32, which only the ResNets need.
    options = {"data_root": str(write_tiny_mpii(here / "data", persons=4)), "size": [64, 48], "batch_size": 4}
    (here / "tiny.yaml").write_text(yaml.safe_dump(options | {"model": factory, "epochs": 1, "device": "cpu"}))
    assert train.main(["--recipe", "tiny.yaml", "--run", "run", "--model", factory]) == 0
    assert f"network {factory}, 64x48 px, on cpu" in capsys.readouterr().err
    assert torch.load("run/best.pt", weights_only=True)["config"]["model"] == factory
    assert evaluate.main(["--checkpoint", "run", "--device", "cpu", "--model", factory]) == 0
    assert f"network {factory} of fastpose" in capsys.readouterr().err
    scores = [json.loads((here / "run" / name).read_text())["pckh"] for name in ("scores.json", "summary.json")]
    assert scores[0] == scores[1]
    cv2.imwrite("a.png", np.full((60, 80, 3), 90, np.uint8))
    assert predict.main(["--checkpoint", "run", "--image", "a.png", "--device", "cpu", "--trust_model"]) == 0
    assert train.main(["--resume", "run", "--epochs", "2", "--trust_model"]) == 0
    # Elsewhere under another name it can be evaluated; a run keeps its network.
    (here / "moved.py").write_text(f"from {module} import {factory.partition(':')[2]} as make\n")
    assert evaluate.main(["--checkpoint", "run", "--device", "cpu", "--model", "moved:make"]) == 0
    assert train.main(["--resume", "run", "--model", "moved:make"]) == 1
    assert f"model is {factory} in the run, got moved:make: a run keeps its network" in capsys.readouterr().err


def test_what_a_factory_draws_beside_the_state_dict_is_that_of_the_training(here):
    (here / "drawn.py").write_text(
        "import torch\n"
        "def make(joints):\n"
        "    network = torch.nn.Conv2d(3, joints, 4, stride=4)\n"
        "    network.register_buffer('noise', torch.rand(4), persistent=False)\n"
        "    return network\n"
    )
    settings = settle({"model": "drawn:make", "seed": 3, "size": (32, 32)})
    trained = make_network(settings.network, MPII, torch.device("cpu"), seed=3)
    save_weights(here / "best.pt", trained.state_dict(), settings.as_plain())
    loaded = load_trained(here / "best.pt", {}, torch.device("cpu"), trust_model=True).model
    assert torch.equal(loaded.noise, trained.noise)


SPY = """
import pathlib
import torch
pathlib.Path("imported").touch()
def make(joints):
    return torch.nn.Conv2d(3, joints, 4, stride=4)
"""


@pytest.mark.parametrize("way", ["evaluate", "predict", "export", "load_trained", "--resume", "--recipe"])
def test_a_network_that_only_a_file_names_is_not_even_imported(here, capsys, way):
    name = f"spy_{way.strip('-')}"
    (here / f"{name}.py").write_text(SPY)
    cv2.imwrite("a.png", np.full((60, 80, 3), 90, np.uint8))
    root = write_tiny_mpii(here / "data", persons=2)
    options = {"model": f"{name}:make", "size": (32, 32), "device": "cpu", "epochs": 1, "data_root": str(root)}
    config = settle(options).as_plain()
    (here / "run").mkdir()
    (here / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    weights = nn.Conv2d(3, 16, 4, stride=4).state_dict()
    save_weights(here / "best.pt", weights, config)

    def run(*words: str) -> str:
        """The error."""
        if way == "load_trained":
            asked = {"model": words[1]} if words and words[0] == "--model" else {}
            try:
                load_trained("best.pt", asked, torch.device("cpu"), trust_model="--trust_model" in words)
            except ValueError as error:
                return str(error)
            return ""
        file = {"--resume": ["run"], "--recipe": ["run/config.yaml", "--run", "new"]}.get(way, ["best.pt"])
        rest = {"predict": ["--image", "a.png"], "export": ["--format", "torch"], "evaluate": ["--device", "cpu"]}
        command = {"evaluate": evaluate, "predict": predict, "export": export}.get(way, train)
        flag = way if way.startswith("--") else "--checkpoint"
        try:
            code = command.main([flag, *file, *rest.get(way, []), *words, "--quiet"])
        except SystemExit as ended:
            code = ended.code
        error = capsys.readouterr().err
        assert bool(error) == bool(code), error
        return error

    named = "run/config.yaml: model: the file" if way.startswith("--") else "model: best.pt"
    refused = (
        f"{named} names the network {name}:make, whose code would run: if you trust it, add --model {name}:make or"
    )
    assert refused in run()
    assert not Path("imported").exists()
    assert not run("--trust_model")
    assert Path("imported").exists()


def test_a_name_that_is_no_python_name_gets_into_no_command_line(here):
    for name in ("a:b; rm x", "os.system('x')", "a b:c", ":f", "m:", "../x:f", "m:f\nx"):
        with pytest.raises(ValueError, match=r"^model: expected PACKAGE\.MODULE:FACTORY"):
            settle({}, recipe={"model": name})


POOLED = """
import torch
from torch import nn
class Pooled(nn.Module):
    def __init__(self, joints):
        super().__init__()
        self.begin = nn.Conv2d(3, 8, 4, 4)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Dropout(0.5), nn.BatchNorm2d(8), nn.Sigmoid())
        self.end = nn.Conv2d(8, joints, 1)
    def forward(self, x):
        x = self.begin(x)
        return self.end(x * self.gate(x))
"""


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_last_batch_of_one_that_the_network_cannot_train_on_is_refused_before_the_epoch(here, capsys, more):
    (here / "pooled.py").write_text(POOLED)
    root = write_tiny_mpii(here / "data", persons=3)
    options = {"data_root": str(root), "size": [64, 64], "batch_size": 2, "epochs": 1, "device": "cpu"}
    (here / "tiny.yaml").write_text(yaml.safe_dump(options))
    words = ["--recipe", "tiny.yaml", "--run", "run", "--model", "pooled:Pooled", *more]
    assert train.main(words) == 1
    error = error_of(capsys)
    assert error.startswith(
        "error: batch_size: 3 persons in batches of 2 leave a batch of one, which network pooled:Pooled cannot train "
        "on at size 64 64: choose another --batch_size or a larger --size (ValueError: Expected more than 1 value"
    )
    assert not Path("run").exists()
    if more:
        assert train.main([*words, "--batch_size", "3"]) == 0


def test_the_try_of_a_batch_of_one_leaves_network_and_random_numbers_as_they_were():
    model = nn.Sequential(nn.Conv2d(3, 5, 4, stride=4), nn.BatchNorm2d(5), nn.Dropout(0.5))
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    drawn = torch.get_rng_state()
    assert check_trains_on(model, 1, (32, 32)) == ""
    model.append(nn.AdaptiveAvgPool2d(1)).append(nn.BatchNorm2d(5))
    before |= {f"4.{name}": value.clone() for name, value in model[4].state_dict().items()}
    assert "Expected more than 1 value per channel" in check_trains_on(model, 1, (32, 32))
    assert torch.equal(torch.get_rng_state(), drawn)
    assert [module.training for module in model] == [True, False, True, True, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
