# SPDX-License-Identifier: Apache-2.0
"""Launches of our kernels for the interpreter in bench/sass: what the C++ launchers make of an op's parameters.

Grids, tilings and what kernels take beside an op's own parameters come from the launchers themselves, compiled as C++
(record_launches.h). The files of bench/cases mirror the structs of csrc/ops/<op>.h and fill them with inputs like those
of the GPU report, but fewer: what is counted stands for a batch of 256. Results are checked, so structs that have
drifted apart do not go unnoticed.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.sass.memory import Array, Memory
from bench.sass.state import Launch

BATCH, SAMPLES = (
    256,
    8,
)  # what the bounds are about, and how many samples of maps or vectors are run, if nothing else is said
ROOT = Path(__file__).resolve().parents[1]

P, I64, I32, I16, F32, F64, BOOL = (
    ctypes.c_void_p,
    ctypes.c_int64,
    ctypes.c_int,
    ctypes.c_int16,
    ctypes.c_float,
    ctypes.c_double,
    ctypes.c_bool,
)
KINDS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3, torch.uint8: 4}  # ScalarKind


def struct(name: str, **fields: Any) -> type[Any]:
    """A C struct of these members, in this order."""
    return type(name, (ctypes.Structure,), {"_fields_": list(fields.items())})


MapStrides = struct("MapStrides", b=I64, k=I64, y=I64, x=I64)


class RecordedLaunch(ctypes.Structure):
    _fields_ = [
        ("kernel", P),
        *((name, ctypes.c_size_t) for name in ("blocks", "threads", "shared_bytes", "parameter_bytes")),
        ("parameters", ctypes.c_ubyte * 4096),
    ]  # fmt: skip


def own_name(mangled: str) -> str:
    """A kernel's name without its namespaces, which nvcc and a C++ compiler spell differently."""
    found = re.search(r"[a-z_]+_kernel\w*$", mangled)
    return found[0] if found else mangled


class Launchers:
    """The launchers of these ops in csrc, compiled into `folder`. Needs a C++ compiler and nm.

    Raises:
        subprocess.CalledProcessError: they do not compile.
    """

    def __init__(self, folder: Path, ops: Iterable[str]) -> None:
        library = folder / "launchers.so"
        emulation, csrc = ROOT / "tests/cuda_emulation", ROOT / "csrc"
        options = ["-std=c++20", "-O0", "-w", "-fPIC", "-shared", "-DFASTPOSE_WITH_CUDA", "-DFASTPOSE_EMULATE_CUDA"]
        options += [f"-I{emulation}", f"-I{csrc}", "-include", str(ROOT / "bench/record_launches.h")]
        sources = ["-x", "c++", *(str(csrc / f"ops/{op}.cu") for op in ops), str(emulation / "emulation.cpp")]
        subprocess.run([os.environ.get("CXX", "g++"), *options, *sources, "-o", str(library)], check=True)
        lines = subprocess.run(["nm", str(library)], capture_output=True, text=True, check=True).stdout.splitlines()
        symbols = (line.split(maxsplit=2) for line in lines if line[0] != " ")  # others are undefined
        addresses = {name: int(address, 16) for address, _, name in symbols}
        self._library = ctypes.CDLL(str(library))
        self._recorded = (RecordedLaunch * 8).in_dll(self._library, "recorded_launches")
        self._count = ctypes.c_size_t.in_dll(self._library, "recorded_count")
        # Where the library has been put, by a function: variables may be those of another copy of it.
        exported = ((re.match(r"_ZN8fastpose\d+(launch_\w+?)ERK", name), name) for name in addresses)
        self._launchers = {found[1]: name for found, name in exported if found}
        one = next(iter(self._launchers.values()))
        base = (ctypes.cast(self._library[one], P).value or 0) - addresses[one]
        self._names = {base + address: own_name(name) for name, address in addresses.items()}

    def __call__(self, launcher: str, parameters: ctypes.Structure) -> list[Launch]:
        """What `launcher` ("launch_affine_crop") would launch for the parameters of its op."""
        self._count.value = 0
        if error := self._library[self._launchers[launcher]](ctypes.byref(parameters), None):
            raise RuntimeError(f"{launcher} gave {error}")
        return [
            Launch(
                self._names[one.kernel],
                one.blocks,
                one.threads,
                one.shared_bytes,
                bytes(one.parameters[: one.parameter_bytes]),
            )
            for one in self._recorded[: self._count.value]
        ]


@dataclass
class KernelWork:
    """One call of a launcher, and how it stands for a batch of BATCH.

    `units` is what the whole grid works on, `batch_units` what a batch is; `bytes` the least that a batch moves.
    """

    launcher: str
    parameters: Any
    memory: Memory
    unit: str
    units: float
    batch_units: float
    bytes: int
    check: Callable[[list[Launch], int], None]  # of what was launched, and of how many blocks ran; raises
    number: int = 0  # of the launch among those of the launcher
    share: float = 1.0  # of the blocks that is run


def bits(tensor: torch.Tensor) -> Array:
    """The elements as they lie in memory, in an array of a type that NumPy has."""
    dense = tensor.detach()
    if dense.dim() == 4 and not dense.is_contiguous():
        dense = dense.permute(0, 2, 3, 1)
    dense = dense.contiguous()
    return (dense.view(torch.int16) if dense.dtype in (torch.bfloat16, torch.float16) else dense).numpy()


def values(memory: Memory, address: int, like: torch.Tensor) -> Array:
    """The tensor at `address`, of the type, shape and layout of `like`, as float64."""
    last = like.dim() == 4 and not like.is_contiguous()
    shape = [like.shape[i] for i in (0, 2, 3, 1)] if last else list(like.shape)
    bytes_ = memory.read(address, np.uint8, (like.numel() * like.element_size(),))
    tensor = torch.from_numpy(bytes_).view(like.dtype).reshape(shape)
    return (tensor.permute(0, 3, 1, 2) if last else tensor).double().numpy()
