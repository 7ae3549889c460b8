# SPDX-License-Identifier: Apache-2.0
"""Loads the native library, says in plain words why it cannot be used, and registers what Python adds to each op."""

from __future__ import annotations

import functools
import inspect
import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ._arguments import described, expect_all_on_meta_or_none, expect_dense

# 1, for comparisons and tests: plain torch on every device, without the native library. 0: plain torch is an error.
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

_ops = torch.library.Library("fastpose", "FRAGMENT")

_SLOWER = "the ops run in plain torch: the same results up to rounding, on a CPU in 2 to 15 times the time"
_ADVICE = """fastpose's native library could not be loaded: {error}

Until it can, {slower}. Likely causes, and what to do:
  * it was never built (fastpose was installed where there was no torch, or no C++ compiler):
      pip install -e .      (in fastpose's checkout)
  * it was built for another Python, or against a torch newer than the one that runs (this is torch {torch}):
      install again in this environment
`python -m fastpose.doctor` prints what was built and what was found."""


def build_info() -> dict[str, str]:
    """The versions that the native library was built from, and `simd`, the instructions that its CPU loops use: plain,
    avx2 or avx512.

    `no_cuda_reason` is empty if the library has CUDA kernels. RuntimeError if the environment variable FASTPOSE_SIMD
    names an unknown level, or one that this machine does not have.
    """
    require_native()
    return _C.build_info()


def require_native() -> None:
    """Raises ImportError, with likely causes and what to do, if the native library is not loaded."""
    if load_error is not None:
        raise ImportError(_advice()) from load_error


def _advice() -> str:
    return _ADVICE.format(error=load_error, slower=_SLOWER, torch=torch.__version__)


def why_fallback(device_type: str) -> str | None:
    """Why ops on that type of device ("cpu", "cuda", "mps" …) run in plain torch; None if they run native kernels."""
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
    """Warns once per process if the library is missing, otherwise once per type of device.

    RuntimeError if FASTPOSE_FALLBACK=0 forbids plain torch.
    """
    if fallback_wish == "0":
        raise RuntimeError(f"FASTPOSE_FALLBACK=0, but otherwise: {why_fallback(device.type)}")
    _warn_once("" if load_error is not None else device.type)


@functools.cache
def _warn_once(device_type: str) -> None:
    warnings.warn(str(why_fallback(device_type)), RuntimeWarning, stacklevel=2)


def call(op: str, *arguments: Any) -> Any:
    """Calls fastpose::op. If the library could not allocate memory on a GPU, that is torch's OutOfMemoryError.

    It reaches torch through an interface that passes on a text and no type; the text says what was to be allocated. It
    is all that those get who call `torch.ops.fastpose` themselves, as compiled graphs do: a RuntimeError.
    """
    try:
        return getattr(torch.ops.fastpose, op)(*arguments)
    except RuntimeError as error:
        if str(error).startswith(f"{op}: CUDA out of memory: "):
            raise torch.OutOfMemoryError(str(error)) from None
        raise


def register(
    op: str,
    plain: Callable[..., Any],
    fake: Callable[..., Any],
    differentiable: Callable[..., Any] | None = None,
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., Any] | None = None,
    inputs: int = 1,
) -> None:
    """Registers what Python adds to fastpose::op, once per op.

    Without the native library the annotations of `plain` define the op as well, so fake kernels, gradients and
    torch.compile work the same with and without it.

    Args:
        op: its name.
        plain: its kernel in plain torch, with the op's arguments, checks and errors, for devices without a native one.
        fake: see torch.library.register_fake.
        differentiable: the op in plain torch, in every operation differentiable; None if it has no derivatives. torch
            differentiates it wherever `backward` is not enough: forwards, twice, in arguments other than the first
            `inputs`, under the transforms of torch.func.
        backward, setup_context: its gradient in the first `inputs` arguments, tensors all of them, as
            torch.library.register_autograd takes it; None if `differentiable` serves for that, too.
    """
    parameters = inspect.signature(plain).parameters
    names, defaults = list(parameters), tuple(parameter.default for parameter in parameters.values())
    if not hasattr(torch.ops.fastpose, op):
        _ops.define(op + torch.library.infer_schema(plain, mutates_args=()))

    @functools.wraps(plain)
    def run(*arguments: Any) -> Any:
        arguments += defaults[len(arguments) :]  # torch leaves out those at the end that have their default
        expect_dense(op, names, arguments)
        warn_of_fallback(arguments[0].device)
        try:
            return plain(*arguments)
        except RuntimeError as error:
            # torch's own, such as of memory that it cannot allocate, names neither op nor shape.
            if type(error) not in (RuntimeError, torch.OutOfMemoryError) or str(error).startswith(f"{op}: "):
                raise
            passed = ", ".join(
                f"{name} {described(value) if isinstance(value, Tensor) else value}"
                for name, value in zip(names, arguments, strict=True)
                if value is not None
            )
            raise type(error)(f"{op}: {error} (of {passed})") from None

    @functools.wraps(fake)
    def run_fake(*arguments: Any) -> Any:
        arguments += defaults[len(arguments) :]
        expect_all_on_meta_or_none(op, names, arguments)
        return fake(*arguments)

    _ops.impl(op, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastpose::{op}", run_fake)
    if differentiable is not None:
        kernel = _autograd_kernel(op, differentiable, backward, setup_context, inputs)
        _ops.impl(op, kernel, "Autograd", with_keyset=True)


def _autograd_kernel(
    op: str,
    differentiable: Callable[..., Any],
    backward: Callable[..., Any] | None,
    setup_context: Callable[..., Any] | None,
    inputs: int,
) -> Callable[..., Any]:
    """What torch.library.register_autograd registers, except where that gives a derivative of 0 or an error."""
    overload = getattr(torch.ops.fastpose, op).default

    def below_autograd(keyset: torch._C.DispatchKeySet, *arguments: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return overload.redispatch(keyset & torch._C._after_autograd_keyset, *arguments)

    class Gradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, keyset: torch._C.DispatchKeySet, *arguments: Any) -> Any:
            output = below_autograd(keyset, *arguments)
            assert setup_context is not None
            setup_context(ctx, arguments, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Any:
            assert backward is not None
            return None, *backward(ctx, *grads)

    def kernel(keyset: torch._C.DispatchKeySet, *arguments: Any) -> Any:
        tensors = [value for value in arguments if isinstance(value, Tensor)]
        if any(forward_ad.unpack_dual(value).tangent is not None for value in tensors):
            return differentiable(*arguments)
        if not torch.is_grad_enabled() or not any(value.requires_grad for value in tensors):
            return below_autograd(keyset, *arguments)
        of_others = any(value.requires_grad for value in tensors[inputs:])
        if backward is None or of_others or torch._C._are_functorch_transforms_active():
            return differentiable(*arguments)
        return Gradient.apply(keyset, *arguments)

    return kernel
