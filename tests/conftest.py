# SPDX-License-Identifier: Apache-2.0
"""Fixtures that every test file may use, and the switch that forbids skipping the CUDA tests."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from fastpose import _program
from fastpose.ops import _native

# No deadline: a slow moment is no failure. derandomize: every run tries the same cases.
settings.register_profile("fastpose", deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
settings.load_profile("fastpose")


LIMIT = 600  # seconds for a test that hangs; the slowest takes a few minutes


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Limits every test by pytest-timeout, if it is installed and nothing else was asked of it.

    By a thread, which also ends a test that waits in C, where no signal handler of Python's runs. It prints the stacks
    of all threads and ends the process: under pytest-xdist the worker, and another goes on; else the whole run, which
    without it would hang. Not in pyproject.toml, which would warn of an unknown setting wherever the plugin is missing.
    """
    if getattr(config.option, "timeout", 0) is None and "PYTEST_TIMEOUT" not in os.environ:
        config.option.timeout = LIMIT
        config.option.timeout_method = config.option.timeout_method or "thread"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips tests marked `cuda` where there is no GPU; FASTPOSE_REQUIRE_CUDA=1 lets them run, and fail. Skips those
    marked `native` where the native library is not loaded; FASTPOSE_FALLBACK=0 lets them run, and all others fail."""
    skips = {}
    if not torch.cuda.is_available() and os.environ.get("FASTPOSE_REQUIRE_CUDA") != "1":
        skips["cuda"] = pytest.mark.skip(reason="no CUDA device")
    if _native.load_error is not None and _native.fallback_wish != "0":
        skips["native"] = pytest.mark.skip(reason="the native library is not loaded")
    for item in items:
        for name, skip in skips.items():
            if item.get_closest_marker(name):  # item.keywords would also hold the names of folders
                item.add_marker(skip)


def pytest_collection_finish() -> None:
    """Leaves what is there before the first test, torch and thousands of tests, out of every later garbage collection,
    which takes half a second otherwise."""
    gc.freeze()


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device that an op runs on."""
    return torch.device(request.param)


@pytest.fixture
def python_s_signals() -> Iterator[None]:
    """Signals as in a program that was started from a terminal: nohup and a script's background job ignore some."""
    handlers = {number: signal.getsignal(number) for number in _program.STOPS}
    for number in handlers:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real MPII and COCO images and annotations, beside the project or where FASTPOSE_REAL_DATA says."""
    beside = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    folder = Path(os.environ.get("FASTPOSE_REAL_DATA", beside))
    if not (folder / "mpii" / "annot" / "valid.json").is_file():
        pytest.skip(f"no real data at {folder}")
    return folder
