# SPDX-License-Identifier: Apache-2.0
"""Pixel sources in the worker processes of other programs' loaders."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from fastpose import pack
from fastpose.data.pixels import DecodeThreads
from tests.helpers.tiny_mpii import write_tiny_mpii

SOURCES = ("files", "reduced files", "resident", "raw pack", "jpeg pack")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("workers")
    write_tiny_mpii(root / "data")
    for kind in ("raw", "jpeg"):
        assert pack.main([str(root / "data"), str(root / kind), "--size", "64", "64", "--format", kind]) == 0
    return root


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_every_source_loads_in_a_worker_whether_it_was_used_before_or_not(root, method):
    command = [sys.executable, "-m", "tests.helpers.in_workers", str(root), method]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)  # a hang, not a slow machine
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{state} {name}: equal" for state in ("used", "unused") for name in SOURCES]


def test_a_pickled_pool_has_threads_of_its_own():
    with DecodeThreads(3) as threads:
        assert threads.each(str, [1]) == ["1"]
        with pickle.loads(pickle.dumps(threads)) as other:
            assert other.each(str, range(5)) == list("01234")
            assert other._pool is not threads._pool


def test_a_thread_that_the_system_refuses_is_reported_as_such(monkeypatch):
    def refused(*arguments: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading.Thread.start", refused)
    with DecodeThreads(3) as threads, pytest.raises(OSError, match="refuses a thread to decode images"):
        threads.each(str, [1])
