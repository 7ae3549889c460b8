# SPDX-License-Identifier: Apache-2.0
"""What a resumed run keeps, and what of it may change."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from fastpose.data.images import BadImageError
from fastpose.models.hf import shown
from fastpose.option import OptionError
from fastpose.skeletons import Skeleton

# What a run keeps from its first step on, by the reason.
KEPT = {
    "a run keeps its network": (
        *("model", "depth", "head", "channels", "color_order", "size"),
        *("targets", "split_ratio"),
    ),
    "a run keeps its optimiser, whose state is in the checkpoint": ("optimizer", "layer_decay", "norm_decay"),
}
DATA = {
    "train_data": "the training persons",
    "valid_data": "the validation persons",
    "train_images": "the training images",
    "valid_images": "the validation images",
}


def refuse_changes(was: Mapping[str, Any], now: Mapping[str, Any], names: Sequence[str], reason: str) -> None:
    """Raises OptionError if one of the settings `names` is not what it was when the run was saved."""
    for name in names:
        if was.get(name) != now[name]:
            before, after = (shown(str(values.get(name))) for values in (was, now))
            raise OptionError("--resume", f"{name} is {before} in the run, got {after}: {reason}")


def parts_of(skeleton: Skeleton) -> dict[str, Any]:
    """What a run uses of a skeleton besides the names of its joints, by what to call it in messages."""
    parts = dataclasses.asdict(skeleton)
    return {f"the skeleton's {name}": value for name, value in parts.items() if name not in ("name", "joints")}


def texts_of(bad_images: Mapping[int, BadImageError]) -> dict[int, str]:
    """What is wrong with each image, as plain values; threads may be adding others."""
    return {image: str(error) for image, error in dict(bad_images).items()}


def errors_of(texts: Mapping[int, str]) -> dict[int, BadImageError]:
    """The reverse of `texts_of`."""
    return {image: BadImageError(text) for image, text in texts.items()}
