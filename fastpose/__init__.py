# SPDX-License-Identifier: Apache-2.0
"""Fused native ops for training and evaluating 2D human pose networks, on the CPU and on CUDA."""

__version__ = "0.1.0"

# First of all: the rest, with torch, takes seconds, in which a command can be stopped, and for which who asks for the
# version or the verbs need not wait.
from . import _program

if _program.is_program(__name__):
    _program.quit_when_stopped()

    from . import verbs

    verbs.answer_early(__version__)

import importlib
import sys
import warnings
from typing import Any

from . import ending

if _program.is_program(__name__):
    sys.excepthook = ending.print_exception  # torch needs memory and threads

from ._namesake import namesake as _namesake
from .ops._native import build_info
from .ops.affine_crop import affine_crop
from .ops.color import IMAGENET_MEAN, IMAGENET_STD, jitter_color, normalize_color
from .ops.crop_to_image_matrix import crop_to_image_matrix
from .ops.decode_heatmaps import decode_heatmaps
from .ops.decode_simcc import decode_simcc
from .ops.heatmap_mse_loss import heatmap_mse_loss
from .ops.image_batch import ImageBatch
from .ops.render_heatmaps import render_heatmaps
from .ops.simcc_loss import simcc_loss
from .ops.soft_argmax import soft_argmax
from .ops.swap_pairs import swap_pairs
from .ops.transform_points import transform_points

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "ImageBatch",
    "People",
    "Predictor",
    "affine_crop",
    "build_info",
    "crop_to_image_matrix",
    "decode_heatmaps",
    "decode_simcc",
    "heatmap_mse_loss",
    "jitter_color",
    "normalize_color",
    "reference",
    "render_heatmaps",
    "simcc_loss",
    "soft_argmax",
    "swap_pairs",
    "transform_points",
]

if _other := _namesake():
    warnings.warn(_other, RuntimeWarning, stacklevel=2)

# Loaded when first asked for: a training loop that only wants the ops does not pay for OpenCV, SciPy and the networks,
# and the definition in NumPy, which tests and benchmarks compare the ops with, is no part of what they run.
_LAZY = ("data", "metrics", "models", "reference", "skeletons", "trained")
_LAZY_FROM = {"People": "fastpose.people", "Predictor": "fastpose.predictor", "load_model": "fastpose.trained"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return importlib.import_module(f"fastpose.{name}")
    if name in _LAZY_FROM:
        return getattr(importlib.import_module(_LAZY_FROM[name]), name)
    raise AttributeError(f"module 'fastpose' has no attribute {name!r}")


def __dir__() -> list[str]:
    """What there is for users, so that completion offers that alone, and also what is loaded when first asked for."""
    return sorted({*__all__, *_LAZY, *_LAZY_FROM, *(name for name in globals() if name.startswith("__"))})
