# SPDX-License-Identifier: Apache-2.0
"""Every command, interrupted at random moments by each stop signal.

    python -m studies.reliability.interrupts --each 11

Counts how `--each` interrupts per command and signal ended, spread evenly from the command's start to its end:

* clean: one line on standard error, the signal's exit code, no unfinished file, and the command done again, or
  resumed, succeeds; for a run of training with the weights and losses of one that nobody disturbed, to the bit.
* done: the command was through before the signal came.
* python: stopped while Python itself started, before its first line of fastpose.
* traceback, hang (60 s), other: none of these should come; each is printed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from fastpose import cli

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
OUTCOMES = ("clean", "done", "python", "traceback", "hang", "other")
HANG = 60  # seconds
UNFINISHED = (".part", ".partial")  # in names of files that were not to stay
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


@dataclass
class Trial:
    """One interrupt: the words after `fastpose`, those that do it again, and the folder it writes to."""

    name: str
    words: list[str]
    again: list[str]
    folder: Path
    number: signal.Signals
    moment: float  # seconds after the start


def main() -> int:
    parser = argparse.ArgumentParser(description="Interrupt every command at random moments.")
    parser.add_argument("--each", type=int, default=11, help="interrupts per command and signal (11)")
    parser.add_argument("--commands", nargs="+", help="of the commands only these")
    parser.add_argument("--jobs", type=int, default=2, help="commands that run at the same time (2)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (0)")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        prepare(root)
        names = options.commands or list(words_of(root, root / "x"))
        seconds = {name: duration(name, root) for name in names}
        trials = []
        for name in names:
            for n in range(options.each * len(SIGNALS)):
                folder = root / f"{name}-{n}"
                if name == "resume":
                    shutil.copytree(root / "stopped", folder)
                words, again = words_of(root, folder)[name]
                part = (n // len(SIGNALS) + rng.random()) / options.each
                trials.append(Trial(name, words, again, folder, SIGNALS[n % len(SIGNALS)], part * seconds[name]))
        with ThreadPoolExecutor(options.jobs) as pool:
            ended = list(pool.map(interrupted, trials))
        counts: dict[str, Counter[str]] = {name: Counter() for name in names}
        for trial, (outcome, text) in zip(trials, ended, strict=True):
            if outcome == "clean" and (wrong := not_as_good_as_new(trial, root)):
                outcome, text = "other", wrong
            counts[trial.name][outcome] += 1
            if outcome in OUTCOMES[3:]:
                print(
                    f"--- {outcome}: {trial.name}, {trial.number.name} after {trial.moment:.2f} s\n{text}\n", flush=True
                )
    print(f"{'command':12}{'seconds':>9}" + "".join(f"{outcome:>11}" for outcome in OUTCOMES))
    for name, count in counts.items():
        print(f"{name:12}{seconds[name]:9.1f}" + "".join(f"{count[outcome]:11}" for outcome in OUTCOMES))
    total = sum(counts.values(), Counter())
    print(f"{f'all {total.total()}':21}" + "".join(f"{total[outcome]:11}" for outcome in OUTCOMES))
    return int(any(total[outcome] for outcome in OUTCOMES[3:]))


def prepare(root: Path) -> None:
    """A data set, a recipe, a complete run and one stopped in its first epoch."""
    call("synthetic", str(root / "data"), "--persons", "24", "--valid_persons", "8", "--workers", "1")
    recipe = {"data_root": str(root / "data"), "depth": 18, "channels": 16, "size": [64, 64], "batch_size": 4}
    recipe |= {"epochs": 3, "device": "cpu", "log_every": 1, "resident": False}
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    call("train", "--recipe", str(root / "recipe.yaml"), "--run", str(root / "whole"))
    while not (root / "stopped/last.pt").is_file():
        shutil.rmtree(root / "stopped", ignore_errors=True)
        words = ["train", "--recipe", str(root / "recipe.yaml"), "--run", str(root / "stopped")]
        process = start(words, subprocess.PIPE)
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("epoch "):
                process.send_signal(signal.SIGINT)
                break
        process.communicate()


def words_of(root: Path, folder: Path) -> dict[str, tuple[list[str], list[str]]]:
    """Each command that writes to `folder`, and how to do it again."""
    trained = ["--checkpoint", str(root / "whole/best.pt")]
    picture = str(next((root / "data/images").iterdir()))
    train = ["train", "--recipe", str(root / "recipe.yaml"), "--run", str(folder)]
    resume = ["train", "--resume", str(folder)]
    others = {
        "evaluate": ["evaluate", *trained, "--out", str(folder)],
        "predict": ["predict", *trained, "--image", picture, picture, "--out", str(folder)],
        "export": ["export", *trained, "--format", "torch", "--out", str(folder / "network.pt2")],
        "pack": ["pack", str(root / "data"), str(folder), "--size", "64", "64"],
        "synthetic": ["synthetic", str(folder), "--persons", "120", "--workers", "2"],
        "models": ["models", "--depth", "18"],
        "doctor": ["doctor"],
    }
    return {"train": (train, resume), "resume": (resume, resume)} | {name: (w, w) for name, w in others.items()}


def start(words: list[str], output: int) -> subprocess.Popen[str]:
    """The command in a session of its own, as from a shell that ignores nothing."""
    program = f"fastpose.{words[0]}"
    command = [sys.executable, "-m", program, *words[1:]]
    return subprocess.Popen(
        command, stdout=output, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, start_new_session=True
    )


def duration(name: str, root: Path) -> float:
    """The seconds that the command takes undisturbed."""
    folder = root / f"{name}-undisturbed"
    if name == "resume":
        shutil.copytree(root / "stopped", folder)
    begin = time.perf_counter()
    _, errors = start(words_of(root, folder)[name][0], subprocess.DEVNULL).communicate()
    assert not errors, errors
    return time.perf_counter() - begin


def interrupted(trial: Trial) -> tuple[str, str]:
    """How the command ended, and what it printed to standard error."""
    process = start(trial.words, subprocess.DEVNULL)
    time.sleep(trial.moment)
    process.send_signal(trial.number)
    try:
        _, errors = process.communicate(timeout=HANG)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return "hang", process.communicate()[1]
    code, stopped = process.returncode, 128 + trial.number
    if code == 0 and not errors:
        return "done", ""
    if "Traceback" in errors or code == -trial.number:
        # Until fastpose's first import is through, Python's own handlers are in effect.
        lines = [line for line in errors.splitlines() if "/fastpose/" in line]
        starting = all("fastpose/__init__.py" in line or "fastpose/_program.py" in line for line in lines)
        return "python" if starting else "traceback", errors
    said = [line for line in errors.splitlines() if line.startswith("stopped by")]
    said = said or [trial.number.name] * errors.strip().startswith("stopping after this step")  # and more in the output
    if code == stopped and len(said) == 1 and trial.number.name in said[0] and len(errors.split("\n")) <= 3:
        return "clean", errors
    return "other", f"exit code {code}\n{errors}"


def not_as_good_as_new(trial: Trial, root: Path) -> str:
    """What is wrong with what was left, or with doing it again; empty if nothing is."""
    left = [str(path) for path in root.rglob("*") if any(part in path.name for part in UNFINISHED)]
    if left:
        for path in left:
            shutil.rmtree(path, ignore_errors=True)
            Path(path).unlink(missing_ok=True)
        return f"left {left}"
    fresh = trial.name == "train" and not (trial.folder / "config.yaml").is_file()
    try:
        call(*(trial.words if fresh else trial.again))
    except Exception as error:
        return f"again: {error}"
    if trial.name in ("train", "resume"):
        was, now = (torch.load(run / "last.pt", weights_only=True)["model"] for run in (root / "whole", trial.folder))
        same = all(torch.equal(was[name], now[name]) for name in was)
        if not same or losses(root / "whole") != losses(trial.folder):
            return "resumed, it is another run"
    return ""


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def call(*words: str) -> None:
    """A command in this process, which saves its start."""
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
        code = cli.main(words)
    if code:
        raise RuntimeError(f"fastpose {' '.join(words)} ended with {code}: {errors.getvalue()}")


if __name__ == "__main__":
    sys.exit(main())
