# SPDX-License-Identifier: Apache-2.0
"""What a run tells: progress on standard output, numbers in files."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from fastpose.config import PACKAGE, TrainOptions
from fastpose.engine import Evaluation, Progress
from fastpose.metrics import format_ap, format_pckh


class Report:
    """Progress on standard output: on a terminal a line that renews itself, elsewhere a plain line every ten seconds.

    The time left is the time so far, evaluations included, times the steps to go over the steps done.
    """

    def __init__(self, options: TrainOptions, progress: Progress, steps: int) -> None:
        self.options, self.progress, self.steps = options, progress, steps
        self.terminal = sys.stdout.isatty()
        self.begin = self.epoch_begin = self.last = time.perf_counter()
        self.first_step = progress.epoch * steps + progress.step
        self.first_sample = progress.samples

    def step(self, loss: float) -> None:
        """Called every few training steps with the epoch's mean loss so far."""
        now = time.perf_counter()
        if not self.terminal and now - self.last < 10:
            return
        self.last = now
        rate = (self.progress.samples - self.first_sample) / (now - self.epoch_begin)
        step = f"step {self.progress.step:4d}/{self.steps}"
        self._print(
            f"{self._epoch(self.progress.epoch + 1)}  {step}  loss {loss:.6f}  {rate:6.1f} samples/s", renew=True
        )

    def epoch(self, line: dict[str, Any]) -> None:
        """Called after every epoch with its line of metrics.jsonl."""
        text = f"{self._epoch(line['epoch'])}  loss {line['loss']:.6f}  lr {line['lr']:.2g}  "
        text += f"{line['samples_per_second']:6.1f} samples/s  input wait {100 * line['input_wait_fraction']:.0f} %"
        if line.get("pckh"):
            text += f"  PCKh@0.5 {line['pckh']['Mean']:.2f}"
        if line.get("coco"):
            text += f"  AP {line['coco']['AP']:.2f} (boxes: {line['coco']['box_source']})"
        if line["bad_images"]:
            text += f"  {line['bad_images']} bad images skipped"
        self._print(text)
        self.epoch_begin = self.last = time.perf_counter()
        self.first_sample = 0

    def line(self, text: str) -> None:
        print(text, flush=True)

    def _epoch(self, epoch: int) -> str:
        return f"epoch {epoch:{len(str(self.options.epochs))}d}/{self.options.epochs}"

    def _print(self, text: str, *, renew: bool = False) -> None:
        done = self.progress.epoch * self.steps + self.progress.step
        left = self.options.epochs * self.steps - done
        seconds = (time.perf_counter() - self.begin) / max(done - self.first_step, 1) * left
        text += f"  {duration(seconds)} left"
        if self.terminal:
            print(f"\r\x1b[2K{text}", end="" if renew else "\n", flush=True)
        else:
            print(text, flush=True)


class EvaluationReport:
    """Progress of an evaluation on standard output, in the way of Report."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.terminal = sys.stdout.isatty()
        self.begin = self.last = time.perf_counter()

    def persons(self, done: int) -> None:
        """Called after every batch with the persons done so far. On a terminal the line stays for another to renew."""
        now = time.perf_counter()
        if not self.terminal and now - self.last < 10:
            return
        self.last = now
        rate = done / max(now - self.begin, 1e-9)
        text = f"evaluation  {done}/{self.total} persons  {rate:6.1f} persons/s  "
        text += f"{duration((self.total - done) / rate)} left"
        print(f"\r\x1b[2K{text}" if self.terminal else text, end="" if self.terminal else "\n", flush=True)

    def end_line(self) -> None:
        """What is printed next begins on a line of its own."""
        if self.terminal:
            print(flush=True)


def duration(seconds: float) -> str:
    """75 -> 1m15s"""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"


def scores_entry(evaluation: Evaluation | None, *, coco: bool) -> dict[str, Any]:
    """What files of a run hold of an evaluation: `pckh` or `coco`, which says where the boxes came from; null without
    one."""
    if evaluation is None or not coco:
        return {"coco" if coco else "pckh": scores_or_null(evaluation.pckh) if evaluation else None}
    scores = scores_or_null(evaluation.coco)
    return {"coco": scores | {"box_source": evaluation.box_source} if scores else None}


def format_scores(evaluation: Evaluation) -> str:
    """The evaluation's scores as a table, or why there are none."""
    if evaluation.coco:
        return format_ap(evaluation.coco, evaluation.box_source)
    if evaluation.results is not None:
        return "no annotations, no AP: predictions only"
    return format_pckh(evaluation.pckh) if evaluation.pckh else "no head boxes, no PCKh: predictions only"


def scores_or_null(scores: dict[str, float] | None) -> dict[str, Any] | None:
    """JSON has no NaN: joints or persons that nobody has annotated get null."""
    if scores is None:
        return None
    return {name: None if math.isnan(value) else value for name, value in scores.items()}


def append_line(path: Path, line: dict[str, Any]) -> None:
    """Appends one JSON object; NaN, which JSON lacks, is a ValueError."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(line, allow_nan=False) + "\n")


def read_lines(path: Path, epochs: int) -> list[dict[str, Any]]:
    """The lines of the first `epochs` epochs; drops those after, which a resumed run is about to write anew."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:  # a torn last line; its epoch is trained anew
            break
        if line["epoch"] > epochs:
            break
        lines.append(line)
    replace_text(path, "".join(json.dumps(line) + "\n" for line in lines))
    return lines


def write_json(path: Path, contents: Any) -> None:
    """Writes readable JSON, whole or not at all; NaN, which JSON lacks, is a ValueError."""
    replace_text(path, json.dumps(contents, indent=2, allow_nan=False) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Writes beside and renames, so that nobody ever reads half a file."""
    beside = path.with_name(path.name + ".part")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


def code_version() -> str | None:
    """The commit of the checkout this package runs from, with -dirty if it was changed; None outside a checkout."""
    root = PACKAGE.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None
