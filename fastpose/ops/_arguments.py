# SPDX-License-Identifier: Apache-2.0
"""Arguments of ops: converts what a user passes to what an op takes, and checks what the plain-torch kernels get."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

MAX_EXTENT = 1 << 24  # pixels; beyond that, neighbouring coordinates are equal in float32
NAMES = {
    torch.float32: "Float",
    torch.float16: "Half",
    torch.bfloat16: "BFloat16",
    torch.float64: "Double",
    torch.uint8: "Byte",
    torch.int32: "Int",
    torch.int64: "Long",
    torch.bool: "Bool",
}
FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


# ---- what a user passes ---------------------------------------------------------------------------------------------


def tensor(name: str, value: Any) -> Tensor:
    """The argument itself, or a TypeError that names it and says what was passed instead of a dense tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if value.layout != torch.strided or value.is_nested:
        raise TypeError(f"{name} must be a dense tensor, got {_layout_of(value)}")
    return value


def _layout_of(value: Tensor) -> str:
    if value.is_quantized:
        return f"a quantised one ({value.dtype})"
    return f"a nested one ({value.layout})" if value.is_nested else f"one of {value.layout}"


def real(name: str, value: Any) -> Tensor:
    """The argument itself, or a TypeError, also if its values are not real numbers."""
    if tensor(name, value).is_complex() or value.is_quantized:
        raise TypeError(f"{name} must be real numbers, got {value.dtype}")
    return value


def float32(name: str, value: Any) -> Tensor:
    """The argument as a constant of float32, the type of all points, flags and matrices."""
    constant = real(name, value).detach()
    return constant if constant.dtype == torch.float32 else constant.to(torch.float32)


def choose(name: str, value: str, choices: tuple[str, ...]) -> int:
    """The index of a named choice, or a ValueError that lists them."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return choices.index(value)


def size_of(size: tuple[int, int]) -> tuple[int, int]:
    """(h, w) from any two whole numbers, or a ValueError that says what was passed."""
    try:
        height, width = size
        # A symbolic size stays symbolic under torch.compile; NumPy's integers become Python's.
        return tuple(n if isinstance(n, (int, torch.SymInt)) else operator.index(n) for n in (height, width))  # type: ignore[return-value]
    except (TypeError, ValueError):
        raise ValueError(f"size must be (h, w), two whole numbers of pixels, got {size!r}") from None


# ---- what a plain-torch kernel checks; the native ops check the same, in the same words -----------------------------


def expect_dense(op: str, names: Sequence[str], arguments: Sequence[Any]) -> None:
    """RuntimeError unless all tensors are dense. Sparse ones and their like come to plain torch also on the CPU."""
    for name, value in zip(names, arguments, strict=True):
        if isinstance(value, Tensor) and (value.layout != torch.strided or value.is_nested or value.is_quantized):
            raise RuntimeError(f"{op}: {name} must be a dense tensor, got {_layout_of(value)}")


def expect_all_on_meta_or_none(op: str, names: Sequence[str], arguments: Sequence[Any]) -> None:
    """RuntimeError if some tensors have values and others, on "meta", have none: torch then runs the fake kernel, and a
    result on the device of the former would be memory that nobody has written."""
    first = arguments[0]
    for name, value in zip(names, arguments, strict=True):
        if not isinstance(value, Tensor) or (name == "color" and value.device.type == "cpu" and value.dim() == 2):
            continue
        if value.is_meta != first.is_meta:
            wanted = f"the device of {names[0]} ({described(first)})"
            raise RuntimeError(f"{op}: {name} must be on {wanted}, got {described(value)}")


def expect(
    op: str,
    name: str,
    value: Tensor,
    shape: Sequence[int],
    spelled: str,
    dtypes: Sequence[torch.dtype] = (torch.float32,),
    beside: tuple[str, Tensor] | None = None,
) -> None:
    """RuntimeError unless `value` has that shape (-1: any size), one of the dtypes and the device of `beside`."""
    if value.dim() != len(shape) or any(want not in (-1, got) for want, got in zip(shape, value.shape, strict=True)):
        wanted = ", ".join("any" if want == -1 else str(want) for want in shape)
        raise RuntimeError(f"{op}: {name} must have shape {spelled} = [{wanted}], got {described(value)}")
    if value.dtype not in dtypes:
        wanted = " or ".join(NAMES[dtype] for dtype in dtypes)
        raise RuntimeError(f"{op}: {name} must be {wanted}, got {described(value)}")
    if beside is not None and value.device != beside[1].device:
        wanted = f"the device of {beside[0]} ({described(beside[1])})"
        raise RuntimeError(f"{op}: {name} must be on {wanted}, got {described(value)}")


def described(value: Tensor) -> str:
    """A tensor in an error, in the words of the native ops: dtype, shape, device."""
    return f"{NAMES.get(value.dtype, value.dtype)} {list(value.shape)} on {value.device}"


def expect_joint_weights(op: str, joint_weights: Tensor, batch: int, joints: int, beside: tuple[str, Tensor]) -> None:
    """RuntimeError unless there is a weight for each joint, of all samples or of each."""
    per_sample = joint_weights.dim() == 2
    shape, spelled = ((batch, joints), "[B, K]") if per_sample else ((joints,), "[K] or [B, K]")
    expect(op, "joint_weights", joint_weights, shape, spelled, beside=beside)


def expect_map_size(op: str, height: int, width: int) -> None:
    """RuntimeError unless maps have 1 to MAX_EXTENT pixels in either direction."""
    if not (1 <= height <= MAX_EXTENT and 1 <= width <= MAX_EXTENT):
        raise RuntimeError(
            f"{op}: the maps must be at least 1 x 1 pixels and at most {MAX_EXTENT} high or wide, "
            f"got (h, w) = ({height}, {width})"
        )


def values_are_checked(device: torch.device) -> bool:
    """Values, unlike shapes and dtypes, are checked on the CPU only. Elsewhere that would wait for the device, so a bad
    value gives NaN, as on CUDA. Compiled code cannot look at values at all."""
    return device.type == "cpu" and not torch.compiler.is_compiling()


# ---- the types it computes in ---------------------------------------------------------------------------------------


def accumulate_type(dtype: torch.dtype) -> torch.dtype:
    """The type in which values of maps are computed: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def exact_type(device: torch.device) -> torch.dtype:
    """The type in which matrices and points are computed: float64, or float32 if the device has no float64.

    In float32, as on Apple's MPS, points of an image of 2,000 px are exact to 1e-3 px, and the points that dark and
    dark_udp find inside a heatmap to 1e-4 px of the heatmap. Exported graphs use float32 too: many runtimes have no
    float64.
    """
    if torch.compiler.is_exporting():
        return torch.float32
    return torch.float64 if device.type in ("cpu", "cuda") or _has_float64(device) else torch.float32


@functools.cache
def _has_float64(device: torch.device) -> bool:
    try:
        return torch.ones(2, dtype=torch.float64, device=device).sum().item() == 2.0
    except (TypeError, RuntimeError):  # MPS has no such type, and some XPUs no way to compute with it
        return False
