# SPDX-License-Identifier: Apache-2.0
"""Loads the native library and says in plain words what is wrong where it cannot be loaded."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch

try:
    # torch first: the library finds libtorch by name, among what is loaded already.
    import fastpose._C as _C

    load_error: ImportError | None = None
except ImportError as error:
    load_error = error

_ADVICE = """fastpose's native library could not be loaded: {error}

Likely causes, and what mends them:
  * it was never built (fastpose was installed where there was no torch, or no C++ compiler):
      pip install -e .      (or: pip install --force-reinstall fastpose)
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
        raise ImportError(_ADVICE.format(error=load_error, torch=torch.__version__)) from load_error


def register_fake(op: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`torch.library.register_fake` for fastpose::op; does nothing where there is no op to describe."""
    if load_error is not None:
        return lambda function: function
    return torch.library.register_fake(f"fastpose::{op}")


def register_autograd(op: str, backward: Callable[..., Any], setup_context: Callable[..., Any]) -> None:
    """`torch.library.register_autograd` for fastpose::op, where there is one."""
    if load_error is None:
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
