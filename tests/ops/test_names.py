# SPDX-License-Identifier: Apache-2.0
"""Named choices are types that editors and type checkers know, the same for ops and options; what `dir` offers."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch

import fastpose
from fastpose.engine.step import TargetOptions
from fastpose.models.decoding import DecodeOptions
from fastpose.models.network import NetworkOptions
from fastpose.models.pose_resnet import pose_resnet
from fastpose.models.weights import export_simple_baselines, to_simple_baselines

MAPS, POINTS, SEEN = torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 2), torch.ones(1, 3)
CALLS: dict[tuple[str, str], Callable[[Any], object]] = {
    ("affine_crop", "resample"): lambda name: fastpose.affine_crop(
        torch.zeros(4, 4, 3, dtype=torch.uint8), torch.eye(2, 3)[None], (2, 2), resample=name
    ),
    ("render_heatmaps", "encoding"): lambda name: fastpose.render_heatmaps(POINTS, SEEN, (8, 8), encoding=name),
    ("heatmap_mse_loss", "encoding"): lambda name: fastpose.heatmap_mse_loss(MAPS, POINTS, SEEN, encoding=name),
    ("heatmap_mse_loss", "missing"): lambda name: fastpose.heatmap_mse_loss(MAPS, POINTS, SEEN, missing=name),
    ("decode_heatmaps", "refine"): lambda name: fastpose.decode_heatmaps(MAPS, refine=name),
    ("decode_simcc", "refine"): lambda name: fastpose.decode_simcc(MAPS[0], MAPS[0], refine=name),
}


def hint(function: Callable[..., object], argument: str) -> Any:
    return get_type_hints(function)[argument]


@pytest.mark.parametrize(("op", "argument"), CALLS)
def test_the_type_of_a_named_choice_lists_what_the_op_takes(op: str, argument: str) -> None:
    function = getattr(fastpose, op)
    kind, call = hint(function, argument), CALLS[op, argument]
    assert get_origin(kind) is Literal
    assert inspect.signature(function).parameters[argument].default in get_args(kind)
    for name in get_args(kind):
        call(name)
    with pytest.raises(ValueError, match=f"{argument} must be one of {', '.join(map(repr, get_args(kind)))}, got 'no'"):
        call("no")


def test_no_argument_of_an_op_is_any_text() -> None:
    ops = [name for name in fastpose.__all__ if inspect.isfunction(getattr(fastpose, name))]
    assert {op for op, _ in CALLS} < set(ops)
    for op in ops:
        function = getattr(fastpose, op)
        hints = get_type_hints(function)
        texts = [
            name for name in inspect.signature(function).parameters if str in (hints[name], *get_args(hints[name]))
        ]
        assert not texts, op


def test_options_have_the_types_of_the_ops() -> None:
    assert get_type_hints(DecodeOptions)["refine"] == hint(fastpose.decode_heatmaps, "refine")
    targets = get_type_hints(TargetOptions)
    assert targets["encoding"] == hint(fastpose.render_heatmaps, "encoding")
    assert targets["encoding"] == hint(fastpose.heatmap_mse_loss, "encoding")
    assert targets["missing"] == hint(fastpose.heatmap_mse_loss, "missing")
    assert get_type_hints(NetworkOptions)["head"] == hint(pose_resnet, "head")
    for function in (to_simple_baselines, export_simple_baselines):
        assert set(get_args(hint(function, "color_order"))) == {"rgb", "bgr"}


LAZY = ("data", "metrics", "models", "reference", "skeletons", "trained")


def test_dir_has_what_is_loaded_when_first_asked_for() -> None:
    """In a new interpreter, where nothing else has loaded it, with what completes `fastpose.<TAB>`."""
    program = (
        "import sys, rlcompleter, fastpose\n"
        f"lazy = {LAZY}\n"
        "assert not vars(fastpose).keys() & set(lazy)\n"
        "names = dir(fastpose)\n"
        "assert names == sorted(set(names))\n"
        "assert not {'importlib', 'sys', 'warnings', 'Any', 'ending'} & set(names)\n"
        "assert {*lazy, *fastpose.__all__, 'load_model', '__version__', '__doc__'} <= set(names), names\n"
        "completer = rlcompleter.Completer({'fastpose': fastpose})\n"
        "completer.complete('fastpose.', 0)\n"
        "assert {f'fastpose.{name}' for name in lazy} <= {match.rstrip('(') for match in completer.matches}\n"
        "assert all(getattr(fastpose, name).__name__ == f'fastpose.{name}' for name in lazy)\n"
    )
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    ran = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
