# SPDX-License-Identifier: Apache-2.0
"""The folder of a run: who may write into it, and whether what is in it can go on.

A run writes each file so that a power cut loses none that a later one counts on: config.yaml first; last.pt before the
first line of metrics.jsonl; in each epoch the line, then best.pt, then last.pt, which counts them; summary.json last.
The run's page comes after it: it is made of these files, and can be made again.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastpose.files import is_blank, make_folder, only_writer, part_of, read_file
from fastpose.models.checkpoint import previous_path

PICTURES = ("curves.png", "predictions.png", "heatmaps.png")
PREDICTIONS, PAGE = "predictions.npz", "index.html"
FILES = ("config.yaml", "metrics.jsonl", "last.pt", "best.pt", "summary.json", *PICTURES, PREDICTIONS, PAGE)


@contextmanager
def run_folder(folder: Path, *, new: bool) -> Iterator[None]:
    """The folder of a run, made if it is new, for this process alone while the block runs, and without the unfinished
    files that earlier processes left.

    Raises:
        ValueError: another process trains in it; or it should be new and has other files.
        OSError: it cannot be made.
    """
    make_folder(folder)
    in_use = ValueError(f"{folder}: another process is training in it: let it end, or choose another folder with --run")
    with only_writer(folder, in_use):
        if new:
            check_unused(folder)
        for part in unfinished(folder):
            part.unlink()
        yield


def unfinished(folder: Path) -> list[Path]:
    """Files of a run that a killed process was writing."""
    return [part for name in FILES if (part := part_of(folder / name)).exists()]


def check_unused(folder: Path) -> None:
    """Raises ValueError where a new run's folder has files, except those that a killed process was writing."""
    if folder.exists() and (not folder.is_dir() or set(folder.iterdir()) - set(unfinished(folder))):
        raise ValueError(f"{folder} exists and is not empty: choose another --run, or go on with it: --resume {folder}")


def check_resumable(folder: Path) -> None:
    """Raises ValueError, saying how to begin a new run, where a run has results and no checkpoint to go on from.

    Without either it failed early, and begins again in its folder.
    """
    last, best, config = folder / "last.pt", folder / "best.pt", folder / "config.yaml"
    metrics = folder / "metrics.jsonl"
    if last.exists() or previous_path(last).exists():
        return
    has_lines = metrics.exists() and not is_blank(read_file(metrics))
    if not best.exists() and not has_lines:
        return
    other = next(
        name for n in range(2, 1000) if not (name := folder.with_name(f"{folder.resolve().name}-{n}")).exists()
    )
    recipe = shlex.quote(str(config)) if config.exists() and not is_blank(read_file(config)) else "RECIPE"
    words = [started_as(), "--recipe", recipe, "--run", shlex.quote(str(other))]
    if best.exists():
        words += ["--weights", shlex.quote(str(best)), "--backbone_weights", "''"]
    begin = "from the weights of its best.pt" if best.exists() else "with its settings"
    raise ValueError(
        f"{folder}: last.pt and last.prev.pt are gone, so this run cannot go on, and what is left of it is not written "
        f"over; to begin a new one {begin}: {' '.join(words)}"
    )


def started_as(ranks: int = 1, local_ranks: int = 1) -> str:
    """The command that this is: the script's verb, or the module, which torchrun starts where there are several."""
    if ranks > 1:
        machines = "AS-BEFORE " if ranks > local_ranks else ""
        return f"torchrun {machines}--nproc-per-node {local_ranks} -m fastpose.train --"
    return "fastpose train" if Path(sys.argv[0]).stem == "fastpose" else "python -m fastpose.train"
