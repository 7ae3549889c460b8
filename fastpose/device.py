# SPDX-License-Identifier: Apache-2.0
"""What computes, and how: the device, the types and the layouts."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fastpose.option import OptionError, option, set_on_off


@dataclass(frozen=True)
class ComputeOptions:
    """What a network runs on, and how."""

    device: str = option("auto", "cpu, cuda, cuda:1, mps, xpu and so on; auto: cuda if there is one, else cpu")
    amp: Literal["auto", "off", "bfloat16"] = option(
        "auto",
        "type that convolutions run in: float32 (off; TF32 if torch.backends.cudnn.allow_tf32 has it so) or bfloat16 "
        "under autocast; auto: bfloat16 on GPUs of compute capability 8.0 or more, else off",
    )
    channels_last: Literal["auto", "on", "off"] | bool = option(
        "auto", "keep the network's tensors in channels-last order: on, off; auto: on for a GPU, off for the CPU"
    )
    foreach: Literal["auto", "on", "off"] = option(
        "auto",
        "let the optimiser update all weights with a few launches instead of one by one; auto: one launch of torch's "
        "fused kernel for adam and adamw; for rmsprop, which has none, on for a GPU, off for the CPU",
    )
    compile: bool = option(
        False,
        "compile the network with torch.compile, which takes about a minute when the training begins; on an H200 "
        "ResNet-50 then trained 1.4 times as fast, without cuda_graph",
    )
    cuda_graph: Literal["auto", "on", "off"] | bool = option(
        "auto",
        "record a whole training step as a CUDA graph and replay it, which saves the host's work; GPUs only; batches "
        "of fewer than batch_size persons run without it, and take memory of their own; auto: on for fastpose's own "
        "networks on a GPU, unless compile is true or rmsprop runs with foreach off",
    )
    cudnn_benchmark: Literal["auto", "on", "off"] | bool = option(
        "auto",
        "let cuDNN try its algorithms for each convolution of the first training batch, and keep the fastest: "
        "torch.backends.cudnn.benchmark, for batches of batch_size persons; auto: off, since it gained nothing for "
        "ResNet-50 on an H200",
    )

    sync_batch_norm: bool = option(
        False,
        "of several ranks: normalise by means and variances over the batches of all ranks, as one rank would, and not "
        "of each rank's part by itself",
    )
    rank_timeout: float = option(
        600.0,
        "of several ranks: seconds without a step after which a rank is stuck, prints where its threads are and ends "
        "the run; the others wait 30 s longer for it",
    )

    def __post_init__(self) -> None:
        if not 1 <= self.rank_timeout <= 7 * 86400:
            raise OptionError("rank_timeout", f"expected 1 to {7 * 86400} seconds, got {self.rank_timeout}")
        set_on_off(self, "channels_last", "cuda_graph", "cudnn_benchmark")

    def uses_bfloat16(self, device: torch.device) -> bool:
        """Whether option `amp` means bfloat16 on `device`. Older GPUs than Ampere (8.0) only emulate it."""
        if self.amp == "auto":
            return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
        return self.amp == "bfloat16"

    def autocast(self, device: torch.device) -> torch.autocast:
        """The precision that option `amp` asks for, as a context."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.uses_bfloat16(device))

    def memory_format(self, device: torch.device) -> torch.memory_format:
        """The layout that option `channels_last` asks for."""
        last = self.channels_last == "on" or (self.channels_last == "auto" and device.type == "cuda")
        return torch.channels_last if last else torch.contiguous_format

    def crop_dtype(self, device: torch.device) -> torch.dtype:
        """The type of crops: autocast would round them for the first convolution anyway; written rounded, they are half
        the bytes."""
        return torch.bfloat16 if self.uses_bfloat16(device) else torch.float32


def choose_device(name: str) -> torch.device:
    """The torch device of option `device`: the CPU, CUDA, or the accelerator that torch finds (mps, xpu and so on).

    Raises:
        OptionError: no such device, or torch does not find it.
    """
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    except RuntimeError:  # not a device at all
        device = None
    found = torch.accelerator.current_accelerator(check_available=True)
    other = found.type if found is not None and found.type != "cuda" else ""
    if device is None or device.type not in ("cpu", "cuda", other):
        also = f" or {other}" if other else ""
        raise OptionError("device", f"expected auto, cpu, cuda or cuda:NUMBER{also}, got {name!r}")
    count = torch.cuda.device_count() if device.type == "cuda" else torch.accelerator.device_count()
    if device.type != "cpu" and (device.index or 0) >= count:
        raise OptionError("device", f"{name} was asked for, but torch finds {count} {device.type.upper()} devices")
    return device


def require_cuda(name: str, device: torch.device) -> None:
    """Raises OptionError, naming the option, if `device` is not a CUDA device."""
    if device.type != "cuda":
        raise OptionError(name, f"expected a CUDA device, got {device}")


def making_device(device: torch.device) -> torch.device:
    """Where batches for `device` are made: there, or on the CPU if it is neither that nor CUDA.

    Others may not bear that a background thread runs ops beside the one that trains: Apple's MPS ends the process.
    """
    return device if device.type in ("cpu", "cuda") else torch.device("cpu")


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on `device`; to a GPU by way of pinned memory, in the current stream, without waiting."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
