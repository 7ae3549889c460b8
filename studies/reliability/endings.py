# SPDX-License-Identifier: Apache-2.0
"""How long the threads of pixel sources and loaders live on after a training loop has ended, in whichever way.

    python -m studies.reliability.endings --each 5

Of each pixel source and each way to end, `--each` processes train as a user's script does, without closing anything,
until they say when the end begins: the script returns, an exception or sys.exit ends it, Ctrl-C comes, or an exception
is caught and the process goes on. A table says how many seconds later the last thread of fastpose's was gone, and the
most that it took until the process was, too. Most of that is the interpreter's own end, as the next line shows: that of
a process that has only imported. The last one is of `fastpose train`, which finishes its step and saves first.
"""

from __future__ import annotations

import argparse
import atexit
import itertools
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch

import fastpose
from fastpose import pack
from fastpose.data.augmentation import Augmentation
from fastpose.data.loader import PoseLoader
from fastpose.data.mpii import read_mpii
from fastpose.data.pack import read_packed_persons
from fastpose.data.persons import Persons
from fastpose.data.pixels import ImageFiles, PackedImages, PixelSource, ResidentImages
from tests.helpers.runs import write_recipe
from tests.helpers.tiny_mpii import write_tiny_mpii

SOURCES = ("files", "resident", "raw", "jpeg")
ENDS = ("return", "exception", "exit", "interrupt", "caught")
EXIT_CODES = {"exception": 1, "exit": 3, "interrupt": -signal.SIGINT}  # else 0
HANG = 240  # seconds


class LoopError(Exception):
    """What goes wrong in a training loop."""


def main() -> int:
    parser = argparse.ArgumentParser(description="How long do threads live on after a training loop?")
    parser.add_argument("--each", type=int, default=5, help="processes of each kind (5)")
    each = parser.parse_args().each
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_data(root, persons=128, images=64, side=480)
        print(f"{'seconds':16}" + "".join(f"{end:>24}" for end in ENDS), flush=True)
        for source in SOURCES:
            cells = ""
            for end in ENDS:
                threads, process = zip(*(seconds_of(root, source, end) for _ in range(each)), strict=True)
                cells += f"{statistics.median(threads):.2f} to {max(threads):.2f}, {max(process):.2f}".rjust(24)
            print(f"{source:16}{cells}", flush=True)
        recipe = write_recipe(root, channels=128, size=[128, 128], batch_size=5)
        wholes = {
            "imports alone": [seconds_of(root, "files", "imports")[1] for _ in range(each)],
            "fastpose train": [seconds_of_command(recipe, root / f"run-{number}") for number in range(each)],
        }
        for name, seconds in wholes.items():
            print(f"{name:16}{f'{statistics.median(seconds):.2f} to {max(seconds):.2f}':>24}")
    return 0


def write_data(root: Path, *, persons: int = 16, images: int = 8, side: int = 96) -> None:
    """A data set in data/, and packs of it in raw/ and jpeg/."""
    write_tiny_mpii(root / "data", persons=persons, images=images, side=side)
    for kind in ("raw", "jpeg"):
        words = [str(root / "data"), str(root / kind), "--size", "128", "128", "--format", kind]
        if pack.main(words):
            raise RuntimeError(f"fastpose pack {' '.join(words)} failed")


def begin(root: Path, sources: Sequence[str], end: str) -> subprocess.Popen[str]:
    """A process that trains on these sources, see `train`."""
    command = [sys.executable, "-m", "studies.reliability.endings", "--child", str(root), end, *sources]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def seconds_of(root: Path, source: str, end: str) -> tuple[float, float]:
    """From the beginning of the end until the last thread, and until the process was gone."""
    process = begin(root, [source], end)
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        began = float(process.stdout.readline())
        if end == "interrupt":
            began = time.monotonic()
            process.send_signal(signal.SIGINT)
        threads = process.stdout.readline()
        process.wait(HANG)
        over = time.monotonic()
        if process.returncode != EXIT_CODES.get(end, 0):
            raise RuntimeError(f"{source}, {end}: exit code {process.returncode}: {process.stderr.read()}")
    finally:
        process.kill()
    return float(threads) - began, over - began


def seconds_of_command(recipe: Path, run: Path) -> float:
    """From SIGTERM, as a background job may ignore SIGINT, until the process was gone."""
    command = [sys.executable, "-m", "fastpose.train", "--recipe", str(recipe), "--run", str(run), "--epochs", "100000"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        while not process.stderr.readline().startswith("epoch "):
            if process.poll() is not None:
                raise RuntimeError(f"fastpose train ended with {process.returncode}")
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=HANG)
        return time.monotonic() - began
    finally:
        process.kill()


# ---- the process that trains ----


def loaders(root: Path, sources: Sequence[str]) -> list[PoseLoader]:
    def opened(source: str) -> tuple[Persons, PixelSource]:
        if source in ("raw", "jpeg"):
            persons = read_packed_persons(root / source, "train")
            return persons, PackedImages(persons.image_paths, 2)
        persons = read_mpii(root / "data/annot/train.json", root / "data/images")
        files = ImageFiles(persons.image_paths, 2)
        return persons, files if source == "files" else ResidentImages.from_files(persons.image_paths, "cpu")

    return [PoseLoader(*opened(source), (128, 128), 4, augmentation=Augmentation()) for source in sources]


def train(loaders: Sequence[PoseLoader], end: str) -> object:
    """A loop as a user writes it, over all loaders side by side. In its third step it prints the time, and ends in this
    way; with "interrupt" it goes on."""
    network = torch.nn.Conv2d(3, loaders[0].persons.skeleton.num_joints, 8, 4, 2)
    steps = 0
    for epoch in itertools.count():
        epochs = [loader.epoch(epoch) for loader in loaders]
        for batches in zip(*epochs, strict=True):
            for batch in batches:
                fastpose.heatmap_mse_loss(network(batch.images), batch.keypoints, batch.visible).backward()
            steps += 1
            if steps != 3:
                continue
            assert any(thread.name.startswith("fastpose-prepare") for thread in threading.enumerate())
            print(time.monotonic(), flush=True)
            if end == "return":
                return epochs
            if end == "exit":
                sys.exit(3)
            if end != "interrupt":
                raise LoopError
    return None


def child(root: Path, end: str, sources: Sequence[str]) -> object:
    """Trains; returns what is to stay until the interpreter ends."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a script's background job ignores
    torch.set_num_threads(1)
    if end != "caught":
        atexit.register(lambda: print(time.monotonic(), flush=True))  # when Python has waited for all threads
    if end == "imports":
        print(time.monotonic(), flush=True)
        return None
    opened = loaders(root, sources)
    if end != "caught":
        return train(opened, end), opened
    with suppress(LoopError):
        train(opened, end)
    del opened
    while any(thread.name.startswith("fastpose-") for thread in threading.enumerate()):
        time.sleep(0.002)
    print(time.monotonic(), flush=True)
    return None


if __name__ == "__main__":
    if "--child" in sys.argv:
        at = sys.argv.index("--child")
        kept = child(Path(sys.argv[at + 1]), sys.argv[at + 2], sys.argv[at + 3 :])
    else:
        sys.exit(main())
