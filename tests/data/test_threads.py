# SPDX-License-Identifier: Apache-2.0
"""No thread of a pixel source or a loader outlives the training loop, and none keeps a process from ending."""

from __future__ import annotations

import gc
import signal
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from fastpose.data.loader import PoseLoader
from studies.reliability.endings import ENDS, EXIT_CODES, SOURCES, LoopError, begin, loaders, write_data

HANG = 240  # seconds


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("endings")
    write_data(root)
    return root


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("fastpose-")]


def fails(loader: PoseLoader) -> None:
    with suppress(LoopError):
        for _ in loader.epoch():
            raise LoopError


def fails_in_closing(loader: PoseLoader) -> None:
    with suppress(LoopError), closing(loader.epoch()) as batches:
        for _ in batches:
            raise LoopError


def is_left(loader: PoseLoader) -> None:
    for _ in loader.epoch():
        break


def is_closed(loader: PoseLoader) -> None:
    with closing(loader.epoch()) as batches:
        next(batches)


def is_closed_unused(loader: PoseLoader) -> None:
    loader.epoch().close()


def goes_to_its_end(loader: PoseLoader) -> None:
    for _ in loader.epoch():
        pass


def is_left_by_a_generator(loader: PoseLoader) -> None:
    def batches() -> Iterator[object]:
        yield from loader.epoch()

    assert next(batches())


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    "loop", [fails, fails_in_closing, is_left, is_closed, is_closed_unused, goes_to_its_end, is_left_by_a_generator]
)
def test_however_a_loop_ends_its_threads_end(root, source, loop):
    before = set(threads())
    (loader,) = loaders(root, [source])
    loop(loader)
    del loader
    gc.collect()
    for thread in set(threads()) - before:
        thread.join(20)
        assert not thread.is_alive(), thread.name


LAST_LINE = {"exception": "LoopError", "interrupt": "KeyboardInterrupt"}


@pytest.mark.parametrize("end", ENDS)
def test_however_a_script_ends_its_process_ends_and_reports_nothing_else(root, end):
    """With an epoch of each source half way, and nothing closed."""
    process = begin(root, SOURCES, end)
    try:
        assert process.stdout.readline() or process.communicate()[1] == ""
        if end == "interrupt":
            process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=HANG)
    finally:
        process.kill()
    assert process.returncode == EXIT_CODES.get(end, 0), err
    assert err.count("Traceback") == (end in LAST_LINE), err
    assert "Exception ignored" not in err
    if end in LAST_LINE:
        assert err.splitlines()[-1].endswith(LAST_LINE[end]), err
