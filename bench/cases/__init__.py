# SPDX-License-Identifier: Apache-2.0
"""The ops as the benchmarks time them: a file per op, and here what the files share.

A file says once what its op is timed on, how many bytes that must move, how a result is checked and who else does the
same work. `bench/cpu.py` times it for `make bench`, `bench/gpu.py` for the GPU report, and `bench/kernels.py` counts
the instructions of its CUDA kernels. A new op is a new file here, and nothing else in bench/.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import fastpose
from bench.launches import BATCH, SAMPLES, KernelWork, Launch, Memory
from fastpose.ops.render_heatmaps import plain_render_heatmaps

try:
    from numba import njit, prange
except ImportError:  # a peer that need not be installed; without it the functions below are plain Python
    prange = range

    def njit(**options: Any) -> Callable[[Any], Any]:
        return lambda function: function


Array = NDArray[Any]
Run = Callable[[int], Any]  # does the work once, on input set number n, and returns its outputs

JOINTS = 16
CPU_BATCH = 32
CROP, HEATMAP = (256, 256), (64, 64)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
IN_NAMES = {"contiguous": "", "channels_last": " channels-last"}  # of kernels
CPU = torch.device("cpu")
# Relative rounding of a stored result.
ROUNDING = {torch.float32: 2e-6, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7, torch.uint8: 0.0}

# A loop as one would write it in numba: parallel over samples or maps, one pass over memory. Sums and maxima may be
# reordered and NaN ignored, or its loops would not become vector code; fastpose keeps both.
in_numba = njit(parallel=True, fastmath={"reassoc", "contract", "nnan", "nsz"})


class WrongResultError(ArithmeticError):
    """An op's result is not what its definition gives; its time means nothing."""


@dataclass(frozen=True)
class Case:
    """An op on certain inputs.

    Attributes:
        work: the inputs, of a type of the op's own; peers are made from it.
        own: the op as fastpose has it, on input set 0 … sets − 1.
        check: takes the outputs of `own(0)` and raises WrongResultError.
        bytes: what one launch must read and write.
        inputs: what they are, in words, for the tables of `make bench`.
    """

    op: str
    work: Any
    own: Run
    check: Callable[[Any], None]
    bytes: int
    dtype: torch.dtype = torch.float32
    batch: int = CPU_BATCH
    sets: int = 1
    layout: str = "contiguous"
    detail: str = ""
    inputs: str = ""


class Peer(NamedTuple):
    """Another way to do the same work. A name that begins with `limit_` does less: it shows what the memory allows.

    `make` takes the work of a case and returns a Run; it may fail where a package or a compiler is missing. On the CPU
    its results may differ from ours by `atol`; None: they are not compared.
    """

    make: Callable[[Any], Run]
    atol: float | None = 1e-3
    devices: tuple[str, ...] = ("cpu", "cuda")


ON_CPU, ON_CUDA = ("cpu",), ("cuda",)


class Bench(NamedTuple):
    """A case for the CPU and who is timed on it beside fastpose: a group of rows of `make bench`."""

    name: str
    group: str  # the same with all that a reader needs to know
    make: Callable[[], Case]
    peers: Mapping[str, Peer]


@dataclass(frozen=True)
class Op:
    """What an op's file gives to the timers.

    Attributes:
        benches: its groups in `make bench`.
        case: makes the report's case, from device, batch, bytes of the L2 cache, `dtype`, `detail` and options of the
            op's own.
        peers: who is timed beside fastpose in the rows of `goals`.
        goals: options of `case` for what the goals are about.
        training: options for what training needs to know besides; these rows come before all of `extra`.
        extra: options for other sizes, types and layouts, the most telling first.
        kernels: what each of its hot CUDA kernels is run on to count its instructions, made when its turn comes.
    """

    name: str
    benches: tuple[Bench, ...]
    case: Callable[..., Case]
    peers: Mapping[str, Peer]
    goals: list[dict[str, Any]]
    training: list[dict[str, Any]] = field(default_factory=list)
    extra: list[dict[str, Any]] = field(default_factory=list)
    kernels: Mapping[str, Callable[[], KernelWork]] = field(default_factory=dict)


def ops() -> list[Op]:
    """Those of the files here, by name."""
    return [importlib.import_module(f"{__name__}.{file.name}").OP for file in pkgutil.iter_modules(__path__)]


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` for torch.float32."""
    return str(dtype).removeprefix("torch.")


def input_sets(launch_bytes: int, cache_bytes: int) -> int:
    """How many sets of `launch_bytes` together exceed four times a cache; at least two."""
    return max(2, math.ceil(4 * cache_bytes / launch_bytes) + 1 if cache_bytes else 2)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` under torch.compile, with nothing remembered of what was compiled before."""
    torch.compiler.reset()
    return torch.compile(function, dynamic=False, fullgraph=True)


def some(batch: int) -> list[int]:
    """The samples of a batch that are checked: all of a small one, else the first, the middle and the last."""
    return list(range(batch)) if batch <= 8 else [0, batch // 2, batch - 1]


def compare(what: str, got: Any, expected: Any, atol: float, rtol: float = 0.0) -> None:
    """Raises WrongResultError where `got` is further from `expected` than `atol` + `rtol` of it."""
    if isinstance(got, Tensor):
        got = got.detach().double().cpu().numpy()
    difference = np.abs(got - expected)
    bad = ~(difference <= atol + rtol * np.abs(expected))  # so that NaN is bad
    if bad.any():
        raise WrongResultError(
            f"{what}: expected at most {atol:g} + {rtol:g} of the value beside fastpose.reference, "
            f"got {np.nanmax(difference):g} in {int(bad.sum())} of {bad.size} values"
        )


def work_on_maps(
    case: Case, launcher: str, parameters: Any, memory: Memory, outputs: Callable[[list[Launch]], Any]
) -> KernelWork:
    """A kernel's work on the SAMPLES of a case. `outputs` reads from memory what the case's check takes."""
    return KernelWork(
        launcher,
        parameters,
        memory,
        unit="map",
        units=SAMPLES * JOINTS,
        batch_units=BATCH * JOINTS,
        bytes=case.bytes * BATCH // SAMPLES,
        check=lambda launches, ran: case.check(outputs(launches)),
    )


def work_on_joints(
    launcher: str, parameters: Any, memory: Memory, bytes_: int, check: Callable[[list[Launch], int], None]
) -> KernelWork:
    """A kernel's work on the SimCC vectors of a few samples, which moves `bytes_` at least."""
    joints = parameters.batch * parameters.joints
    of_batch = bytes_ * BATCH // parameters.batch
    return KernelWork(launcher, parameters, memory, "joint", joints, BATCH * parameters.joints, of_batch, check)


# ---- inputs ----------------------------------------------------------------------------------------------------------


def noisy(values: Tensor, seed: int) -> Tensor:
    """`values` under noise of 0.05 from a generator of its own: torch's default one may be lost to a failed capture."""
    generator = torch.Generator(values.device).manual_seed(seed)
    noise = torch.randn(values.shape, generator=generator, device=values.device)
    return (values + 0.05 * noise).to(values.dtype)


def random_boxes(sizes: Tensor, size: tuple[int, int], seed: int) -> Tensor:
    """crop_to_image [B, 2, 3] of boxes of 150 to 600 px on images of `sizes` (h, w) [B, 2]; some leave the image."""
    generator = torch.Generator().manual_seed(seed)
    count = len(sizes)
    center = sizes.flip(1) * (0.05 + 0.9 * torch.rand(count, 2, generator=generator))
    scale = 0.75 + 2.25 * torch.rand(count, generator=generator)
    jitter = 0.75 + 0.5 * torch.rand(count, generator=generator)
    rotation = 60 * torch.rand(count, generator=generator) - 30
    return fastpose.crop_to_image_matrix(center, scale * jitter, rotation, size)


@dataclass(frozen=True)
class Joints:
    """One set of points on heatmaps: keypoints [B, K, 2] and visible [B, K]."""

    keypoints: Tensor
    visible: Tensor

    @classmethod
    def random(cls, device: torch.device, batch: int, size: tuple[int, int], seed: int, joints: int = JOINTS) -> Joints:
        """On and a little beside the map, a tenth not annotated."""
        generator = torch.Generator(device).manual_seed(seed)
        extent = torch.tensor(size[::-1], device=device)
        keypoints = (1.1 * torch.rand(batch, joints, 2, generator=generator, device=device) - 0.05) * extent
        visible = (torch.rand(batch, joints, generator=generator, device=device) < 0.9).float()
        return cls(keypoints, visible)

    @classmethod
    def all_on_the_map(cls) -> Joints:
        """Those of `make bench`: anywhere on the map, all annotated."""
        keypoints = 64 * torch.rand(CPU_BATCH, JOINTS, 2, generator=torch.Generator().manual_seed(0))
        return cls(keypoints, torch.ones(CPU_BATCH, JOINTS))

    def predicted(
        self, size: tuple[int, int], dtype: torch.dtype, seed: int, *, sigma: float = 1.0, layout: str = "contiguous"
    ) -> Tensor:
        """Maps as a half-trained network gives them: the target under noise."""
        # In plain torch: a fault of the op would else be in the inputs of all the others.
        target, _ = plain_render_heatmaps(self.keypoints, self.visible, *size, sigma, 0, torch.float32)
        return noisy(target, seed).to(dtype).contiguous(memory_format=LAYOUTS[layout])
