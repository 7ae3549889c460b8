# SPDX-License-Identifier: Apache-2.0
"""Trains for a long time with bad images, and looks whether the process grows.

    python -m studies.reliability.soak --minutes 30

`fastpose train --on_bad_image skip` on drawn persons of whose images 5 % are spoilt, a third of the time each on the
files, on a pack of raw pixels and on one of JPEGs. Epochs without end, each third of them with an evaluation and its
checkpoints, until SIGTERM. One more image of the files goes away while they are trained on.

From outside, once a second, what the process has: resident memory, descriptors, threads and, if there is a GPU, what is
taken of its memory, by whomever. The first fifth of a run is for warming up; of the rest the medians of the first and
the last third are compared. Exit code 1 if one of them has grown, or if a run ended by itself.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import yaml

SPOILT = 0.05
HANG = 120  # seconds that a run may take to begin, or to end once it is stopped
# By how much the median of the last third may be above that of the first.
ALLOWED = {"memory": lambda first: max(10.0, 0.02 * first), "gpu_memory": lambda first: max(10.0, 0.02 * first)}


@dataclass(frozen=True)
class Sample:
    """What a process has: MiB of resident memory, open descriptors, threads; MiB taken of its GPU, 0 without one."""

    seconds: float
    memory: float
    descriptors: int
    threads: int
    gpu_memory: float = 0.0


MEASURES = ("memory", "descriptors", "threads", "gpu_memory")


def main() -> int:
    parser = argparse.ArgumentParser(description="Train for a long time with bad images; does the process grow?")
    parser.add_argument("--minutes", type=float, default=30, help="of all three runs together (30)")
    parser.add_argument("--persons", type=int, default=300, help="drawn persons, a fifth of them to evaluate (300)")
    parser.add_argument("--every", type=float, default=1.0, help="seconds from one look to the next (1)")
    parser.add_argument("--device", default="auto", help="as for fastpose train (auto)")
    parser.add_argument("--samples", type=Path, help="file to write what was seen to, a line of JSON per look")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # and not leave a run without end
    grew = False
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        sources = prepare(root, asked.persons, asked.device)
        print(
            f"{'':6}epochs  evaluations  bad images  looks  ends in" + "".join(f"{name:>24}" for name in MEASURES),
            flush=True,
        )
        for source, data in sources.items():
            run, seconds = root / f"run of {source}", 60 * asked.minutes / len(sources)
            goes = min((data / "images").iterdir()) if source == "files" else None
            samples, end = watched(root, data, run, seconds, asked.every, goes)
            if asked.samples:
                with asked.samples.open("a") as file:
                    file.writelines(json.dumps({"source": source, **asdict(sample)}) + "\n" for sample in samples)
            lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            evaluations, bad = sum(line["pckh"] is not None for line in lines), lines[-1]["bad_images"]
            cells = ""
            for name in MEASURES:
                first, last = medians(samples, name)
                more = grown(name, first, last)
                cells += f"{first:.1f} -> {last:.1f}{' GREW' * more}".rjust(24)
                grew |= more
            print(f"{source:6}{len(lines):6}{evaluations:13}{bad:12}{len(samples):7}{end:7.2f} s{cells}", flush=True)
    return int(grew)


def prepare(root: Path, persons: int, device: str) -> dict[str, Path]:
    """Draws persons, spoils some of their images and packs them; the folders to train on."""
    settings = {"depth": 18, "channels": 16, "size": [32, 32], "batch_size": 8, "epochs": 1_000_000, "eval_every": 3}
    (root / "recipe.yaml").write_text(yaml.safe_dump(settings | {"device": device, "on_bad_image": "skip"}))
    sources = {"files": root / "files", "raw": root / "raw", "jpeg": root / "jpeg"}
    run("synthetic", root / "files", "--persons", persons, "--valid_persons", persons // 5)
    spoil(sorted((root / "files/images").iterdir())[1:])  # the first is sound until it goes
    for kind in ("raw", "jpeg"):
        run("pack", root / "files", root / kind, "--recipe", root / "recipe.yaml", "--format", kind)
    return sources


def spoil(images: Sequence[Path]) -> None:
    """Makes SPOILT of the images unreadable, in different ways by turns."""
    ways = (
        lambda data: data[: len(data) // 2],  # in its pixels
        lambda data: data[:100],  # in its header
        lambda data: b"",
        lambda data: b"<!DOCTYPE html><html>404</html>",
        lambda data: bytes(len(data)),
    )
    for number, path in enumerate(random.Random(0).sample(images, max(len(ways), round(SPOILT * len(images))))):
        path.write_bytes(ways[number % len(ways)](path.read_bytes()))


def run(command: str, *words: object) -> None:
    subprocess.run([sys.executable, "-m", f"fastpose.{command}", *map(str, words)], check=True)


def watched(
    root: Path, data: Path, folder: Path, seconds: float, every: float, goes: Path | None
) -> tuple[list[Sample], float]:
    """Trains in a process for so many seconds, from its first evaluation on, and stops it.

    Returns what it had, and how long it took to save and to end. `goes`: an image that is removed then.
    """
    words = ["train", "--recipe", root / "recipe.yaml", "--data_root", data, "--run", folder]
    with (root / "printed.txt").open("w") as printed:
        command = [sys.executable, "-m", "fastpose.cli", *map(str, words)]
        process = subprocess.Popen(command, stdout=printed, stderr=printed)
    try:
        begin, samples = time.monotonic(), []
        while not (folder / "best.pt").exists() and time.monotonic() < begin + HANG and process.poll() is None:
            time.sleep(0.1)
        if goes:
            goes.unlink()
        begin = time.monotonic()
        while time.monotonic() < begin + seconds and process.poll() is None:
            samples.append(look(process.pid, time.monotonic() - begin))
            time.sleep(every)
        stopped = time.monotonic()
        process.send_signal(signal.SIGTERM)
        code = process.wait(HANG)
        if code != 128 + signal.SIGTERM:
            raise RuntimeError(f"the run ended with {code}: {(root / 'printed.txt').read_text()[-2000:]}")
        return samples, time.monotonic() - stopped
    finally:
        process.kill()


def look(process: int, seconds: float) -> Sample:
    """What a process has now."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    descriptors = len(os.listdir(f"/proc/{process}/fd"))
    taken = 0.0
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        taken = (total - free) / 2**20
    return Sample(seconds, int(status["VmRSS"].split()[0]) / 1024, descriptors, int(status["Threads"]), taken)


def medians(samples: Sequence[Sample], measure: str) -> tuple[float, float]:
    """Of the first and of the last third of the samples, without the first fifth of all."""
    warm = [getattr(sample, measure) for sample in samples[len(samples) // 5 :]]
    third = len(warm) // 3
    if third < 3:
        raise ValueError(f"expected at least 12 samples, got {len(samples)}")
    return statistics.median(warm[:third]), statistics.median(warm[-third:])


def grown(measure: str, first: float, last: float) -> bool:
    """Whether there is more of it than there was, beyond what ALLOWED says."""
    return last - first > (ALLOWED[measure](first) if measure in ALLOWED else 0)


if __name__ == "__main__":
    sys.exit(main())
