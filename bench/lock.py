# SPDX-License-Identifier: Apache-2.0
"""What decoding threads cost the thread that trains: they share the interpreter lock. `python -m bench.lock`

A sleep stands for decoding and releases the lock as OpenCV does, so that two cores can stand for sixteen. All
that `ImageFiles` does around it is done: it reads JPEG files of 220 kB, looks for their ends and collects the pixels,
which are few. A small op in a loop stands for the thread that trains. Goal: at 4,000 images/s an op takes at most
twice the time that it takes while nothing is decoded.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import cv2
import numpy as np
import torch

from fastpose.data.ahead import PreparedAhead
from fastpose.data.pixels import ImageFiles

BATCH = 128
FILE_BYTES = 220_000  # a photograph of 1280 x 720 px
SECONDS, ROUNDS = 1.0, 5


class Row(NamedTuple):
    """Images per second, microseconds per op meanwhile, and without: medians; `times` is that of their quotients."""

    rate: float
    busy: float
    idle: float
    times: float


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.lock", description=__doc__)
    parser.add_argument("--threads", type=int, default=16, help="decoding threads")
    parser.add_argument("--rates", type=int, nargs="+", default=[2500, 4000], help="images per second")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="fastpose-bench-") as folder:
        paths = write_files(Path(folder))
        print("| images/s wanted | images/s | µs per op | µs per op, idle | times |\n|---|---|---|---|---|")
        for rate in options.rates:
            row = measure(ImageFiles(paths, options.threads), rate, options.threads)
            print(f"| {rate} | {row.rate:.0f} | {row.busy:.1f} | {row.idle:.1f} | {row.times:.2f} |", flush=True)


def write_files(folder: Path) -> list[Path]:
    """A batch of JPEG files; they decode to whatever `playing` says."""
    noise = np.random.default_rng(0).integers(0, 256, (1 << 11, 1 << 9, 3), dtype=np.uint8)
    rows = next(n for n in range(64, len(noise), 8) if len(encode(noise[:n])) >= FILE_BYTES)
    paths = [folder / f"{n}.jpg" for n in range(BATCH)]
    for n, path in enumerate(paths):
        path.write_bytes(encode(np.roll(noise, n, axis=1)[:rows]))
    return paths


def encode(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()


def measure(source: ImageFiles, rate: float, threads: int, seconds: float = SECONDS, rounds: int = ROUNDS) -> Row:
    """The op's time while `source` loads `rate` images per second, if it can, in turns with its time alone."""
    pairs, rates = [], []
    # A quarter of the time is left for what is not decoding.
    with playing(0.75 * threads / rate):
        for _ in range(rounds):
            idle = op_seconds(seconds)
            with loading(source, rate) as images:
                time.sleep(seconds / 2)  # until as much is on its way as ever will be
                start, before = time.perf_counter(), len(images)
                busy = op_seconds(seconds)
                rates.append(BATCH * (len(images) - before) / (time.perf_counter() - start))
            pairs.append((busy, idle))
    busy, idle = (1e6 * statistics.median(column) for column in zip(*pairs, strict=True))
    return Row(statistics.median(rates), busy, idle, statistics.median(b / i for b, i in pairs))


@contextmanager
def playing(seconds: float) -> Iterator[None]:
    """Within it OpenCV decodes whatever it is asked to in `seconds`, without a core, to the same few pixels."""
    pixels = np.zeros((16, 16, 3), np.uint8)

    def imdecode(data: np.ndarray, flags: int) -> np.ndarray:
        time.sleep(seconds)
        return pixels

    with mock.patch.object(cv2, "imdecode", imdecode):
        yield


@contextmanager
def loading(source: ImageFiles, rate: float) -> Iterator[list[float]]:
    """Loads batches in the background as PoseLoader does, at `rate` images per second; a list that grows by each."""
    done: list[float] = []
    stop = threading.Event()

    def run() -> None:
        batch, cpu = torch.arange(BATCH), torch.device("cpu")
        jobs = repeat(partial(source.load, batch, cpu))
        with closing(PreparedAhead(jobs, 2, threads=2)) as batches:
            start = time.perf_counter()
            for _ in batches:
                done.append(time.perf_counter())
                if stop.wait(max(0.0, start + BATCH * len(done) / rate - time.perf_counter())):
                    return

    with ThreadPoolExecutor(1) as background:
        ran = background.submit(run)
        try:
            yield done
        finally:
            stop.set()
            ran.result()


def op_seconds(seconds: float) -> float:
    """Seconds that a small op takes in this thread, the mean over `seconds`."""
    number, ops = torch.zeros(1), 0
    start = time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        for _ in range(100):
            number.add_(1.0)
        ops += 100
    return elapsed / ops


if __name__ == "__main__":
    main()
