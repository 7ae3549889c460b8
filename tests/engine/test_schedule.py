# SPDX-License-Identifier: Apache-2.0
"""Learning rates layer by layer, weights that do not decay, clipped gradients, and a rate that falls in a line."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fastpose.data.loader import Batch
from fastpose.engine.schedule import LearningRate, ScheduleOptions, layers_of, make_optimizer, set_weight_decay
from fastpose.models import pose_resnet
from fastpose.option import OptionError
from fastpose.options.settings import Settings
from tests.helpers.settings import make_step


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.mlp(self.norm(x))


class TinyViT(nn.Module):
    """Named as mmpose's, for images of 4 x 4 px, of which each gives one heatmap of a pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.full((1, 1, 4), 0.1))
        self.patch_embed = nn.Conv2d(3, 4, 4, 4)
        self.layers = nn.Sequential(Block(), Block())
        self.ln1 = nn.LayerNorm(4)
        self.head = nn.Linear(4, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed(images).flatten(2).mT + self.pos_embed
        return self.head(self.ln1(self.layers(x))).mT.unflatten(2, (1, 1))


def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 4, 4, generator=generator)
    return Batch(0, torch.arange(2), images, torch.zeros(2, 1, 2), torch.ones(2, 1), torch.eye(2, 3).expand(2, 2, 3))


def test_layers_are_numbered_as_mmpose_numbers_those_of_a_vit():
    # get_num_layer_for_vit: embeddings 0, layer i is i + 1, all behind them the number of layers + 1.
    found = layers_of(TinyViT())
    assert {name.partition(".")[0] if "layers" not in name else name[:8]: layer for name, layer in found.items()} == {
        "pos_embed": 0,
        "patch_embed": 0,
        "layers.0": 1,
        "layers.1": 2,
        "ln1": 3,
        "head": 3,
    }


def test_a_resnet_s_layers_are_its_stages():
    found = layers_of(pose_resnet(18, "fcn", 16, channels=8))
    of = {name.partition(".")[0]: layer for name, layer in found.items()}
    assert [of[name] for name in ("conv1", "bn1", "layer1", "layer4", "final_layer")] == [0, 0, 1, 4, 5]


def test_a_network_without_numbers_is_refused():
    options = ScheduleOptions(layer_decay=0.5)
    with pytest.raises(OptionError, match="layer_decay: the network's parameters have no numbered layers"):
        make_optimizer(nn.Conv2d(3, 1, 4, 4), options)


def test_a_step_multiplies_the_rate_by_the_decay_for_each_layer_behind():
    torch.manual_seed(0)
    model = TinyViT()
    before = copy.deepcopy(dict(model.named_parameters()))
    settings = Settings.of({"optimizer": "adamw", "layer_decay": 0.5, "batch_size": 2})
    make_step(model, settings)(batch(), 1e-3)
    # Adam's first step is the rate itself, whatever the gradient.
    moved = {name: (parameter - before[name]).abs().max().item() for name, parameter in model.named_parameters()}
    for name, scale in {"patch_embed": 0.125, "layers.0.mlp": 0.25, "layers.1.mlp": 0.5, "head": 1.0}.items():
        assert moved[f"{name}.weight"] == pytest.approx(1e-3 * scale, rel=1e-2), name


def test_vectors_and_tables_of_positions_need_not_decay():
    options = ScheduleOptions(optimizer="adamw", weight_decay=0.1, norm_decay=False)
    model = TinyViT()
    optimizer = make_optimizer(model, options)
    names = {id(parameter): name for name, parameter in model.named_parameters()}

    def decays() -> dict[str, float]:
        return {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}

    weights = {"patch_embed.weight", "layers.0.mlp.weight", "layers.1.mlp.weight", "head.weight"}
    assert decays() == {name: 0.1 if name in weights else 0.0 for name in names.values()}
    set_weight_decay(optimizer, 0.3)  # as a resumed run may have it
    assert decays() == {name: 0.3 if name in weights else 0.0 for name in names.values()}


def test_by_default_all_parameters_are_one_group_as_they_were():
    model = TinyViT()
    state = make_optimizer(model, ScheduleOptions(optimizer="adamw")).state_dict()
    assert state == torch.optim.AdamW(model.parameters(), lr=2.5e-4, weight_decay=0.0).state_dict()


def test_gradients_are_clipped_by_the_norm_over_all_parameters():
    torch.manual_seed(0)
    models = [TinyViT(), TinyViT()]
    models[1].load_state_dict(models[0].state_dict())
    for model, clip in zip(models, (0.0, 1e-3), strict=True):
        make_step(model, Settings.of({"clip_grad_norm": clip, "batch_size": 2}))(batch(), 1e-3)
    free, clipped = ([parameter.grad for parameter in model.parameters()] for model in models)
    norm = torch.cat([gradient.flatten() for gradient in free]).norm()
    assert norm > 1e-3
    for one, other in zip(free, clipped, strict=True):
        torch.testing.assert_close(other, one * (1e-3 / norm))


def test_the_rate_falls_in_a_line_from_the_warm_up_to_the_end():
    schedule = ScheduleOptions(lr=1.0, epochs=3, lr_decay="linear", warmup_steps=2)
    rate = LearningRate.of(schedule, epoch_steps=4)
    # torch's SequentialLR of LinearLR and PolynomialLR has the same from the warm-up on.
    assert [rate.at(step // 4, step) for step in range(12)] == pytest.approx(
        [0.5, 1.0, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    )


def test_the_rate_falls_along_a_cosine_in_the_last_epochs():
    schedule = ScheduleOptions(
        lr=4e-3, epochs=8, lr_decay="cosine", lr_decay_start=0.5, lr_floor=0.05, warmup_steps=3, lr_drop_patience=1
    )
    rate = LearningRate.of(schedule, epoch_steps=10)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=4e-3)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40, eta_min=0.05 * 4e-3)
    for plateau in (False, True):  # which changes nothing
        if plateau:
            rate.observe(1.0)
            rate.observe(0.5)
        assert [rate.at(step // 10, step) for step in range(40)] == pytest.approx([4e-3 / 3, 8e-3 / 3] + [4e-3] * 38)
    for step in range(40, 80):
        assert rate.at(step // 10, step) == pytest.approx(theirs.get_last_lr()[0], rel=1e-6)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer_decay": 0.0}, "layer_decay: expected a factor above 0 and up to 1, got 0.0"),
        ({"layer_decay": 1.5}, "layer_decay: expected a factor"),
        ({"clip_grad_norm": -1.0}, "clip_grad_norm: expected at least 0"),
        ({"lr_decay": "cosine", "lr_drop_epochs": (3,)}, "lr_decay: expected drops with lr_drop_epochs, got cosine"),
        ({"lr_decay_start": 0.5}, "lr_decay_start: it is for lr_decay linear and cosine, got 0.5"),
        ({"lr_floor": 0.1}, "lr_floor: it is for lr_decay linear and cosine, got 0.1"),
        ({"lr_decay_start": -0.5}, "lr_decay_start: expected a share from 0 to 1, got -0.5"),
        ({"lr_floor": 1.5}, "lr_floor: expected a share from 0 to 1, got 1.5"),
    ],
)
def test_wrong_values_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        ScheduleOptions(**options)
