# SPDX-License-Identifier: Apache-2.0
"""What every benchmark of `make bench` has: one number of threads, memory that is in use, a machine that is named."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
import numba
import numpy as np
import pytest
import torch

import fastpose
from bench.cpu import THREADS


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """What a reader of the results must know of the machine; its name and its kernel's are nobody's business."""
    del machine_info["node"], machine_info["release"]
    machine_info |= {
        "threads": THREADS,
        "simd": fastpose.build_info()["simd"],
        "torch": torch.__version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "numba": numba.__version__,
    }


@pytest.fixture(scope="session", autouse=True)
def settled_memory() -> None:
    """glibc's allocator as it is in a process that has worked for a while.

    Once a block of up to 32 MB was freed, it takes blocks of that size from memory that it keeps, and keeps twice as
    much. Before that they come from the kernel page by page, in some rows and not in others.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Every peer gets the same number of threads: FASTPOSE_BENCH_THREADS, by default one."""
    before = torch.get_num_threads()
    cv2.setNumThreads(THREADS)
    numba.set_num_threads(THREADS)
    torch.set_num_threads(THREADS)  # last: numba, when it starts its threads, gives OpenMP as many as there are cores
    yield
    torch.set_num_threads(before)
