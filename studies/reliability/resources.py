# SPDX-License-Identifier: Apache-2.0
"""Every command, while the system refuses memory, open files or threads.

    python -m studies.reliability.resources

Each command runs in a fork of this process, with fastpose imported, so that the limit meets its own work: RLIMIT_AS and
RLIMIT_NOFILE are so much above what the process has already. Threads are refused by Python's own start of a thread,
from the N-th on, as RLIMIT_NPROC does not hold for root. Counts how they ended:

* done: the limit was enough.
* one line: exit code 1 after one line, no unfinished file, and the command done again without the limit succeeds.
  Less memory than is tried here lets `Thread.start` of Python wait for ever for a thread that failed in its first step.
* in C: the C library, OpenMP or a library of torch ended the process, in its own line or by a signal; each is printed.
* traceback, hang (120 s), other: none of these should come; each is printed.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from studies.reliability.interrupts import again, forked, place, prepare, unfinished, waited, words_of

OUTCOMES = ("done", "one line", "in C", "traceback", "hang", "other")
LIMITS = {
    "memory, MiB": (8, 32, 64, 128, 256),
    "open files": (0, 1, 2, 4, 8),
    "threads": (0, 1, 2, 3, 4),
}


def main() -> int:
    parser = argparse.ArgumentParser(description="Refuse every command memory, open files and threads.")
    parser.add_argument("--minutes", type=float, default=60, help="begin no trial after these (60)")
    end = time.monotonic() + 60 * parser.parse_args().minutes
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in LIMITS}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        prepare(root)
        commands = [name for name in words_of(root, root) if name not in ("models", "doctor")]
        trials = [(command, kind, level) for kind, levels in LIMITS.items() for command in commands for level in levels]
        random.Random(0).shuffle(trials)
        for command, kind, level in trials:
            if time.monotonic() > end:
                break
            folder = root / f"{command}-{kind[:4]}-{level}"
            words = place(command, root, folder)
            outcome, text = ended(words, lambda kind=kind, level=level: refuse(kind, level), root)  # type: ignore[misc]
            if outcome == "one line":
                outcome, text = checked(again(command, root, folder), root, text)
            counts[kind][outcome] += 1
            if outcome in OUTCOMES[2:]:
                print(f"--- {outcome}: {command}, {level} more {kind}\n{text}\n", flush=True)
            shutil.rmtree(folder, ignore_errors=True)
    print(f"{'refused':14}" + "".join(f"{outcome:>11}" for outcome in OUTCOMES))
    for kind, count in counts.items():
        print(f"{kind:14}" + "".join(f"{count[outcome]:11}" for outcome in OUTCOMES))
    return int(any(count[outcome] for count in counts.values() for outcome in OUTCOMES[3:]))


def refuse(kind: str, level: int) -> None:
    """Lets this process have `level` more of what `kind` names."""
    if kind == "open files":
        have = max(int(name) for name in os.listdir("/proc/self/fd")) + 1
        while (gap := os.dup(0)) < have:  # the limit is on numbers, not on how many
            pass
        os.close(gap)
        resource.setrlimit(resource.RLIMIT_NOFILE, (have + level, have + level))
    elif kind == "threads":
        start, started = threading._start_new_thread, []  # type: ignore[attr-defined]

        def counted(*arguments: object) -> int:
            started.append(arguments)
            if len(started) > level:
                raise RuntimeError("can't start new thread")
            return start(*arguments)

        threading._start_new_thread = counted  # type: ignore[attr-defined]
    else:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + (level << 20)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def checked(words: list[str], root: Path, text: str) -> tuple[str, str]:
    """What a command that ended in one line left behind, and whether it can be done again."""
    if left := unfinished(root):
        return "other", f"{text}left {left}"
    outcome, errors = ended(words, lambda: None, root)
    return ("one line", text) if outcome == "done" else ("other", f"{text}again: {outcome} {errors}")


def ended(words: list[str], limit: Callable[[], None], root: Path) -> tuple[str, str]:
    """How a command ended under a limit, and what it printed to standard error."""
    code, text = waited(forked(words, root, limit)), (root / "errors.txt").read_text()
    if code is None:
        return "hang", text
    if code == 0 and "Traceback" not in text:
        return "done", text
    if code < 0 or text.startswith(("cannot allocate memory for thread-local data", "libgomp:")):
        return "in C", f"{code}\n{text}"
    if "Traceback" in text or code == 99:
        return "traceback", text
    last = text.splitlines()[-1] if text else ""
    return ("one line" if code == 1 and last.startswith("error: ") else "other"), f"exit code {code}\n{text}"


if __name__ == "__main__":
    sys.exit(main())
