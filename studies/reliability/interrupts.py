# SPDX-License-Identifier: Apache-2.0
"""Every command, interrupted at random moments by each stop signal.

    python -m studies.reliability.interrupts --each 2
    python -m studies.reliability.interrupts --each 10 --warm

Counts how `--each` interrupts per command and signal ended, spread evenly from the command's start to its end. Half of
a small command's time is the import of torch: with `--warm` each begins as a fork of this process, which has imported
all of it, so that the signals meet the command's own work.

* clean: one line on standard error, the signal's exit code, no unfinished file, and the command done again, or
  resumed, succeeds; for a run of training with the weights and losses of one that nobody disturbed, to the bit.
* done: the command was through before the signal came.
* python: stopped while Python itself started, before its first line of fastpose, or ended, after its last: with a
  traceback, or without a line by the signal's own default.
* traceback, hang (120 s), other: none of these should come; each is printed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
import yaml

from fastpose import _program, cli

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
OUTCOMES = ("clean", "done", "python", "traceback", "hang", "other")
HANG = 120  # seconds
UNFINISHED = (".part", ".partial")  # in names of files that were not to stay
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def main() -> int:
    parser = argparse.ArgumentParser(description="Interrupt every command at random moments.")
    parser.add_argument("--each", type=int, default=11, help="interrupts per command and signal (11)")
    parser.add_argument("--commands", nargs="+", help="of the commands only these")
    parser.add_argument("--warm", action="store_true", help="begin after the imports")
    parser.add_argument("--minutes", type=float, default=60, help="begin no interrupt after these (60)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (0)")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    end = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        prepare(root)
        begin = forked if options.warm else started
        names = options.commands or list(words_of(root, root / "x"))
        seconds = {name: duration(name, root, begin) for name in names}
        counts: dict[str, Counter[str]] = {name: Counter() for name in names}
        trials = [(name, number, n) for name in names for number in SIGNALS for n in range(options.each)]
        rng.shuffle(trials)
        for name, number, n in trials:
            if time.monotonic() > end:
                break
            folder = root / f"{name}-{number.name}-{n}"
            words = place(name, root, folder)
            moment = (n + rng.random()) / options.each * seconds[name]
            outcome, text = interrupted(begin(words, root), number, moment, root)
            if outcome == "clean" and (wrong := not_as_good_as_new(again(name, root, folder), folder, root)):
                outcome, text = "other", wrong
            counts[name][outcome] += 1
            if outcome in OUTCOMES[3:]:
                print(f"--- {outcome}: {name}, {number.name} after {moment:.2f} s\n{text}\n", flush=True)
            shutil.rmtree(folder, ignore_errors=True)
    print(f"{'command':12}{'seconds':>9}" + "".join(f"{outcome:>11}" for outcome in OUTCOMES))
    for name, count in counts.items():
        print(f"{name:12}{seconds[name]:9.1f}" + "".join(f"{count[outcome]:11}" for outcome in OUTCOMES))
    total = sum(counts.values(), Counter())
    print(f"{f'all {total.total()}':21}" + "".join(f"{total[outcome]:11}" for outcome in OUTCOMES))
    return int(any(total[outcome] for outcome in OUTCOMES[3:]))


def prepare(root: Path) -> None:
    """A data set, a recipe, a complete run of two epochs and one of the first."""
    torch.set_num_threads(1)  # torch's threads do not survive a fork
    for module in ("train", "evaluate", "predict", "export", "pack", "synthetic", "models.__main__", "doctor"):
        importlib.import_module(f"fastpose.{module}")
    recipe = {"data_root": str(root / "data"), "depth": 18, "channels": 16, "size": [64, 64], "batch_size": 4}
    recipe |= {"epochs": 2, "device": "cpu", "log_every": 1, "resident": False}
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    train = ["train", "--recipe", str(root / "recipe.yaml"), "--run"]
    data = ["synthetic", str(root / "data"), "--persons", "12", "--valid_persons", "4", "--workers", "1"]
    for words in (data, [*train, str(root / "whole")], [*train, str(root / "stopped"), "--epochs", "1"]):
        if code := waited(forked(words, root)):
            raise RuntimeError(f"{words} ended with {code}: {(root / 'errors.txt').read_text()}")
    (root / "stopped/summary.json").unlink()


def words_of(root: Path, folder: Path) -> dict[str, list[str]]:
    """Each command that writes to `folder`."""
    trained = ["--checkpoint", str(root / "whole/best.pt")]
    picture = str(next((root / "data/images").iterdir()))
    return {
        "train": ["train", "--recipe", str(root / "recipe.yaml"), "--run", str(folder)],
        "resume": ["train", "--resume", str(folder), "--epochs", "2"],
        "evaluate": ["evaluate", *trained, "--out", str(folder)],
        "predict": ["predict", *trained, "--image", picture, picture, "--out", str(folder)],
        "export": ["export", *trained, "--format", "torch", "--out", str(folder / "network.pt2")],
        "pack": ["pack", str(root / "data"), str(folder), "--size", "64", "64"],
        "synthetic": ["synthetic", str(folder), "--persons", "60", "--workers", "2"],
        "models": ["models", "--depth", "18"],
        "doctor": ["doctor"],
    }


def place(name: str, root: Path, folder: Path) -> list[str]:
    """The command that writes to `folder`, where everything is as it needs it."""
    if name == "resume":
        shutil.copytree(root / "stopped", folder)
    return words_of(root, folder)[name]


def again(name: str, root: Path, folder: Path) -> list[str]:
    """The command that goes on with what a stopped one left in `folder`."""
    begun = name == "train" and (folder / "config.yaml").is_file()
    return words_of(root, folder)["resume" if begun else name]


def started(words: list[str], root: Path) -> int:
    """The command in a session of its own, as from a shell; its process. Standard error goes to errors.txt."""
    with open(root / "errors.txt", "w") as errors:
        command = [sys.executable, "-m", f"fastpose.{words[0]}", *words[1:], "--quiet"]
        return subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=errors, env=ENVIRONMENT, start_new_session=True
        ).pid


def forked(words: list[str], root: Path, limit: Callable[[], None] = lambda: None) -> int:
    """As `started`, in a fork of this process, after `limit`."""
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        os.dup2(os.open(root / "errors.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        _program.quit_when_stopped()  # as a program that is importing
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        limit()
        code = cli.main([*words, "--quiet"])
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def waited(process: int) -> int | None:
    """The exit code, negative of a signal; None if it hangs, and is killed."""
    end = time.monotonic() + HANG
    while time.monotonic() < end:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return None


def duration(name: str, root: Path, begin: Callable[[list[str], Path], int]) -> float:
    """The seconds that the command takes undisturbed."""
    folder = root / f"{name}-undisturbed"
    words = place(name, root, folder)
    start = time.perf_counter()
    code = waited(begin(words, root))
    if code:
        raise RuntimeError(f"{name} ended with {code}: {(root / 'errors.txt').read_text()}")
    return time.perf_counter() - start


def interrupted(process: int, number: signal.Signals, moment: float, root: Path) -> tuple[str, str]:
    """How the command ended that gets a signal after `moment` seconds, and what it printed to standard error."""
    time.sleep(moment)
    try:  # a terminal's reach all processes of a command, `kill` one
        os.kill(process, number) if number == signal.SIGTERM else os.killpg(process, number)
    except ProcessLookupError:  # it has no session of its own yet
        os.kill(process, number)
    code, errors = waited(process), (root / "errors.txt").read_text()
    if code is None:
        return "hang", errors
    if code == 0 and not errors:
        return "done", ""
    if code == -number and not errors:
        return "python", errors
    if "Traceback" in errors:
        # Until fastpose's first import is through, Python's own handlers are in effect.
        lines = [line for line in errors.splitlines() if "/fastpose/" in line or "/torch/" in line]
        starting = all("fastpose/__init__.py" in line or "fastpose/_program.py" in line for line in lines)
        return "python" if starting else "traceback", errors
    # Training that was stopped in a step finishes it, and says how to go on.
    stopping, last = "stopping after this step; once more to quit at once", "to go on: "
    lines = [line for line in errors.strip().splitlines() if line != stopping and not line.startswith(last)]
    said = len(lines) == 1 and lines[0].startswith(f"stopped by {number.name}")
    return ("clean", errors) if said and code == 128 + number else ("other", f"exit code {code}\n{errors}")


def unfinished(root: Path) -> list[Path]:
    """Files and folders that were not to stay; removes them."""
    left = [path for path in root.rglob("*") if any(part in path.name for part in UNFINISHED)]
    for path in left:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return left


def not_as_good_as_new(words: list[str], folder: Path, root: Path) -> str:
    """What is wrong with what was left, or with going on by these words; empty if nothing is."""
    if left := unfinished(root):
        return f"left {left}"
    if code := waited(forked(words, root)):
        return f"again: exit code {code}, {(root / 'errors.txt').read_text()}"
    if words[0] == "train":
        was, now = (torch.load(run / "last.pt", weights_only=True)["model"] for run in (root / "whole", folder))
        same = all(torch.equal(was[name], now[name]) for name in was)
        if not same or losses(root / "whole") != losses(folder):
            return "resumed, it is another run"
    return ""


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


if __name__ == "__main__":
    sys.exit(main())
