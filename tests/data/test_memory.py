# SPDX-License-Identifier: Apache-2.0
"""Whether the memory stays flat over 10,000 batches; `python -m tests.data.test_memory raw` prints what it sees.

In a process of its own: what the tests before it have freed would hide a leak.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import pytest
import torch

import fastpose
from fastpose import pack
from fastpose.options.settle import settle
from tests.helpers.reading import loader_of, read_split
from tests.helpers.tiny_mpii import write_tiny_mpii

SOURCES = ("files", "resident", "raw", "jpeg")
SETTLED, LAST = 1_000, 10_000
# A leak of one kilobyte per batch would be 9 MB.
ALLOWED_MB = 4.0
REPOSITORY = Path(__file__).resolve().parents[2]


def resident_mb() -> float:
    """Memory that this process has in RAM, MB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def measure(source: str, folder: Path) -> dict[int, float]:
    """Makes LAST augmented training batches of small crops with their targets, over ten epochs.

    Returns the memory in MB after each SETTLED of them.
    """
    torch.set_num_threads(1)
    root = write_tiny_mpii(folder / "data")
    for number, path in enumerate(sorted((root / "images").iterdir())):  # of different sizes, as pictures are
        cv2.imwrite(
            str(path), cv2.copyMakeBorder(cv2.imread(str(path)), 0, 50 * number, 0, 30 * number, cv2.BORDER_WRAP)
        )
    size = ["--size", "32", "32"]
    if source in ("raw", "jpeg"):
        assert pack.main([str(root), str(folder / "pack"), *size, "--format", source]) == 0
        root = folder / "pack"
    settings = settle(
        {
            **{"data_root": str(root), "size": (32, 32), "batch_size": 2, "resident": source == "resident"},
            **{"device": "cpu", "amp": "off"},
        }
    )
    persons = read_split(settings, "train")
    rows = torch.arange(LAST // 10 * settings.schedule.batch_size) % len(persons)
    loader = loader_of(settings, "train", persons=persons.select(rows.numpy()))
    made, memory = 0, {}
    for epoch in range(10):
        for batch in loader.epoch(epoch):
            fastpose.render_heatmaps(batch.keypoints, batch.visible, (8, 8))
            made += 1
            if made % SETTLED == 0:
                memory[made] = resident_mb()
    return memory


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not tell the memory in this way")
@pytest.mark.parametrize("source", SOURCES)
def test_memory_stays_flat_over_ten_thousand_batches(source):
    command = [sys.executable, "-m", "tests.data.test_memory", source]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    memory = {int(batch): float(mb) for batch, mb in map(str.split, done.stdout.splitlines()[-10:])}
    assert list(memory) == list(range(SETTLED, LAST + 1, SETTLED))
    assert memory[LAST] - memory[SETTLED] < ALLOWED_MB, done.stdout


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for batch, mb in measure(sys.argv[1], Path(folder)).items():
            print(f"{batch:6d} {mb:8.2f}")
