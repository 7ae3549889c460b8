# SPDX-License-Identifier: Apache-2.0
"""Options in groups, and their flat names."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from fastpose.option import OptionError, underscored
from fastpose.options.settings import DEFAULTS, FIELDS, GROUPS, Settings


def test_no_two_groups_have_an_option_of_the_same_name():
    names = [field.name for kind in GROUPS.values() for field in dataclasses.fields(kind)]
    assert len(names) == len(set(names)) == len(FIELDS)
    assert list(GROUPS) == [field.name for field in dataclasses.fields(Settings)]


def test_every_option_has_a_line_of_help_and_a_default():
    for name, field in FIELDS.items():
        assert field.metadata["help"], name
        assert field.default is not dataclasses.MISSING, name
    assert Settings.of({}) == Settings()
    assert Settings().flat() == DEFAULTS


def test_values_go_to_their_groups_and_come_back():
    settings = Settings.of({"size": [64, 96], "lr": 0.5, "refine": "dark", "lr_drop_epochs": [2, 3]})
    assert settings.network.size == (64, 96)
    assert settings.decode.refine == "dark"
    assert (settings.schedule.lr, settings.schedule.lr_drop_epochs) == (0.5, (2, 3))
    assert settings.flat() == {**DEFAULTS, "size": (64, 96), "lr": 0.5, "refine": "dark", "lr_drop_epochs": (2, 3)}
    plain = settings.as_plain()
    assert plain["size"] == [64, 96]
    assert not any(isinstance(value, tuple) for value in plain.values())
    assert Settings.of(plain) == settings


def test_unknown_names_are_refused():
    with pytest.raises(TypeError, match="there is no option 'depht', 'hed'"):
        Settings.of({"hed": "fcn", "depht": 18, "depth": 18})


@pytest.mark.parametrize("name", ["channels_last", "cuda_graph", "cudnn_benchmark", "flip_shift"])
def test_on_and_off_may_be_true_and_false(name):
    """As YAML reads a bare `on`, and as older runs have them."""
    assert [Settings.of({name: value}).flat()[name] for value in (True, False, "auto")] == ["on", "off", "auto"]


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("batch_size", 0, "expected at least 1, got 0"),
        ("prefetch", 0, "expected at least 1, got 0"),
        ("decode_threads", -1, "expected at least 0, got -1"),
        ("weight_decay", float("nan"), "expected at least 0, got nan"),
        ("synthetic_seed", -1, "expected at least 0, got -1"),
        ("lr", float("inf"), "expected a positive number, got inf"),
        ("sigma", 0.0, "expected a positive number, got 0.0"),
        ("hard_joints", -1, "expected at least 0, got -1"),
        ("size", (64, 65), "expected height and width, positive multiples of 32 pixels, got [64, 65]"),
        ("blur_kernel", 4, "expected an odd number of pixels from 1 to 255, got 4"),
        ("flip", 1.5, "expected a probability between 0 and 1, got 1.5"),
        ("half_body", -0.5, "expected a probability between 0 and 1, got -0.5"),
        ("rotation_prob", 1.5, "expected a probability between 0 and 1, got 1.5"),
        ("scale_prob", -0.5, "expected a probability between 0 and 1, got -0.5"),
        ("shift", -0.16, "expected a share of the box between 0 and 1, got -0.16"),
        ("shift_prob", 3.0, "expected a probability between 0 and 1, got 3.0"),
        ("erase", 1.5, "expected a probability between 0 and 1, got 1.5"),
        ("erase_max", 0.1, "expected 0 <= erase_min <= erase_max <= 1, got 0.2 and 0.1"),
        ("augmentation_draw", "normal", "expected one of uniform, truncnorm, got 'normal'"),
        ("saturation", 2.0, "expected a relative change between 0 and 1, got 2.0"),
        ("hue", 0.6, "expected a share of a full turn between 0 and 0.5, got 0.6"),
        ("rotation", -1.0, "expected degrees between 0 and 180, got -1.0"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_by_the_option_s_name(name: str, value: Any, text: str):
    with pytest.raises(OptionError) as raised:
        Settings.of({name: value})
    assert (raised.value.option, raised.value.text) == (name, text)
    assert str(raised.value) == f"{name}: {text}"
    assert isinstance(raised.value, ValueError)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("--on-bad-image", "--on_bad_image"),
        ("--data-root=my-data", "--data_root=my-data"),
        ("my-data", "my-data"),
        ("-1", "-1"),
        ("-x-y", "-x-y"),
    ],
)
def test_hyphens_in_names_of_options_become_underscores(word, expected):
    assert underscored(word) == expected


def test_every_value_is_of_its_option_s_type():
    """A list is of no option's type but those of lists, whose numbers are whole."""
    for name, default in DEFAULTS.items():
        wrong: list[Any] = [None, {}, b"", [default], ["x"], 1 << 63]
        wrong += ["no"] if isinstance(default, (bool, int, float)) else [1]
        for value in wrong:
            with pytest.raises(OptionError, match=rf"^{name}: expected .*, got ") as raised:
                Settings.of({name: value})
            assert len(str(raised.value)) < 200
    assert Settings.of({"lr": 1}).schedule.lr == 1.0
    assert Settings.of({"images": Path("a")}).data.images == "a"
