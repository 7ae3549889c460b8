# SPDX-License-Identifier: Apache-2.0
"""Loads the native library and says in plain words what is wrong where it cannot be loaded, or does not serve."""

from __future__ import annotations

import functools
import operator
import os
import warnings
from collections.abc import Callable
from typing import Any

import torch

# 1, for comparisons and tests: no native library, plain torch on every device. 0: where only that is left, an error.
fallback_wish = os.environ.get("FASTPOSE_FALLBACK", "")
if fallback_wish not in ("", "0", "1"):
    raise ValueError(f"FASTPOSE_FALLBACK must be 0, 1 or unset, got {fallback_wish!r}")
try:
    if fallback_wish == "1":
        raise ImportError("FASTPOSE_FALLBACK=1")
    # torch first: the library finds libtorch by name, among what is loaded already.
    import fastpose._C as _C

    load_error: ImportError | None = None
except ImportError as error:
    load_error = error

_SLOWER = "the ops run in plain torch: the same results up to rounding, on a CPU in 2 to 15 times the time"
_ADVICE = """fastpose's native library could not be loaded: {error}

Until it can, {slower}. Likely causes, and what mends them:
  * it was never built (fastpose was installed where there was no torch, or no C++ compiler):
      pip install -e .      (in fastpose's checkout)
  * it was built for another Python, or against a torch newer than the one that runs (this is torch {torch}):
      install again in this environment
`python -m fastpose.doctor` prints what was built and what was found."""


def build_info() -> dict[str, str]:
    """Versions that the native library was built from, and `simd`, what its CPU loops run with: plain, avx2 or avx512.

    `no_cuda_reason` is empty where CUDA kernels are in it. RuntimeError where the environment variable FASTPOSE_SIMD
    names no such level, or one that this machine has not.
    """
    require_native()
    return _C.build_info()


def require_native() -> None:
    """Raises ImportError, with causes and mends, where the native library is not loaded."""
    if load_error is not None:
        raise ImportError(_advice()) from load_error


def _advice() -> str:
    return _ADVICE.format(error=load_error, slower=_SLOWER, torch=torch.__version__)


def why_fallback(device_type: str) -> str | None:
    """Why tensors on devices of that type ("cpu", "cuda", "mps" …) run the fallback; None where native kernels do."""
    if fallback_wish == "1":
        return f"FASTPOSE_FALLBACK=1: {_SLOWER}."
    if load_error is not None:
        return _advice()
    if device_type == "cpu" or (device_type == "cuda" and not (reason := _C.build_info()["no_cuda_reason"])):
        return None
    if device_type == "cuda":
        return f"fastpose was built without CUDA kernels ({reason}): on cuda {_SLOWER}. `fastpose doctor` says more."
    return f"fastpose has native kernels for the CPU and for CUDA: on {device_type} {_SLOWER}."


def warn_of_fallback(device: torch.device) -> None:
    """Warns, once in a process where the library is missing, else once for each type of device.

    RuntimeError where FASTPOSE_FALLBACK=0 forbids the fallback.
    """
    if fallback_wish == "0":
        raise RuntimeError(f"FASTPOSE_FALLBACK=0, but otherwise: {why_fallback(device.type)}")
    _warn_once("" if load_error is not None else device.type)


@functools.cache
def _warn_once(device_type: str) -> None:
    warnings.warn(str(why_fallback(device_type)), RuntimeWarning, stacklevel=2)


def register_fake(op: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`torch.library.register_fake` for fastpose::op."""
    return torch.library.register_fake(f"fastpose::{op}")


def register_autograd(op: str, backward: Callable[..., Any], setup_context: Callable[..., Any]) -> None:
    """`torch.library.register_autograd` for fastpose::op."""
    torch.library.register_autograd(f"fastpose::{op}", backward, setup_context=setup_context)


def tensor(name: str, value: Any) -> torch.Tensor:
    """The argument itself, or a TypeError that names it and says what came instead of a tensor."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    return value


def float32(name: str, value: Any) -> torch.Tensor:
    """The argument as a constant of float32, the type of all points, flags and matrices."""
    given = tensor(name, value).detach()
    return given if given.dtype == torch.float32 else given.to(torch.float32)


def choose(name: str, value: str, choices: tuple[str, ...]) -> int:
    """Place of a named choice, or a ValueError that lists them."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return choices.index(value)


def size_of(size: tuple[int, int]) -> tuple[int, int]:
    """(h, w) out of any two whole numbers, or a ValueError that says what came."""
    try:
        height, width = size
        # A symbolic size stays symbolic under torch.compile; NumPy's integers become Python's.
        return tuple(n if isinstance(n, (int, torch.SymInt)) else operator.index(n) for n in (height, width))  # type: ignore[return-value]
    except (TypeError, ValueError):
        raise ValueError(f"size must be (h, w), two whole numbers of pixels, got {size!r}") from None
