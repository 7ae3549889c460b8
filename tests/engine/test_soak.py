# SPDX-License-Identifier: Apache-2.0
"""The study that trains for half an hour sees what grows, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from fastpose.data.images import BadImageError, read_image
from studies.reliability.soak import MEASURES, Sample, grown, look, medians, spoil
from tests.helpers.tiny_mpii import write_tiny_mpii

REPOSITORY = Path(__file__).resolve().parents[2]
on_linux = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the system does not tell it in this way")


def samples(memory: list[float], descriptors: list[int]) -> list[Sample]:
    return [Sample(float(n), one, two, 9) for n, (one, two) in enumerate(zip(memory, descriptors, strict=True))]


def test_the_thirds_are_compared_without_what_comes_first_and_whatever_one_look_sees():
    memory = [100.0] * 5 + [500.0] * 6 + [510.0] * 8 + [520.0] * 6
    descriptors = [3] * 5 + [4] * 20
    for odd in (6, 20):
        memory[odd], descriptors[odd] = 9000.0, 90
    seen = samples(memory, descriptors)
    assert medians(seen, "memory") == (500.0, 520.0)
    assert medians(seen, "descriptors") == (4, 4)
    assert medians(seen, "threads") == (9, 9)


def test_memory_may_vary_a_little_and_descriptors_and_threads_not_at_all():
    assert not grown("memory", 100.0, 110.0)
    assert grown("memory", 100.0, 110.1)
    assert not grown("memory", 1000.0, 1020.0)
    assert grown("memory", 1000.0, 1020.1)
    for name in ("descriptors", "threads"):
        assert not grown(name, 8, 8)
        assert not grown(name, 8, 7)
        assert grown(name, 8, 8.5)


def test_too_few_looks_are_refused():
    with pytest.raises(ValueError, match="got 8"):
        medians(samples([1.0] * 8, [1] * 8), "memory")


@on_linux
def test_a_look_sees_memory_descriptors_and_threads():
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    before = look(os.getpid(), 0.0)
    with open(os.devnull) as file:
        thread.start()
        more = np.ones(64 << 20, np.uint8)
        after = look(os.getpid(), 1.0)
        assert not file.closed
        assert more.all()
    end.set()
    thread.join()
    assert after.memory > before.memory + 60
    assert after.descriptors == before.descriptors + 1
    assert after.threads == before.threads + 1


def test_spoilt_images_cannot_be_read_and_the_others_can(tmp_path):
    images = sorted((write_tiny_mpii(tmp_path / "data", persons=120, images=120, side=32) / "images").iterdir())
    spoil(images)
    bad = set()
    for path in images:
        try:
            read_image(path)
        except BadImageError as error:
            bad.add(str(error).partition(": ")[2][:20])
    assert len(bad) >= 4, bad  # of different kinds


@pytest.mark.slow
@on_linux
def test_a_short_soak_trains_on_all_sources():
    command = [
        sys.executable,
        "-m",
        "studies.reliability.soak",
        "--minutes",
        "0.1",
        "--every",
        "0.1",
        "--persons",
        "30",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert done.returncode in (0, 1), done.stderr  # in so short a time memory may still be growing
    *_, head, files, raw, jpeg = done.stdout.splitlines()
    assert head.split()[-len(MEASURES) :] == list(MEASURES)
    assert [line.split()[0] for line in (files, raw, jpeg)] == ["files", "raw", "jpeg"]
