# SPDX-License-Identifier: Apache-2.0
"""The GPU report while it is made: figures, what failed, and what a reader must know, in a file after each row."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
# The sections in their order, and the second of the report by which each ends: what can be left out begins only if the
# time that it needs, by a guess, is left. The ops at the goals' sizes with their plain peers are never left out. A run
# that is stopped after 300 s lacks what must be compiled, and nothing else: on an H200 with 16 cores that begins after
# 201 s and takes 93. A DataLoader that hangs costs 30 s until it says so, and 5 s for each of 16 workers: it is tried
# once, and takes its time from what is compiled.
SCHEDULE = {"ops": 60.0, "step": 100.0, "large maps": 115.0, "training": 272.0, "extra": 290.0, "compiled": 420.0}
LIMIT = 450.0  # what took longer is an error
UNFINISHED = "unfinished: the report was stopped, or still runs"


class Report:
    """The figures so far, what failed, and what a reader must know; also in a file, if a folder is passed."""

    def __init__(self, device: torch.device, folder: Path | None = None) -> None:
        self.device = device
        self.started = self.section_end = time.perf_counter()
        self.figures: dict[str, Any] = {
            **environment(device),
            "seconds": 0.0,
            "copy_gb_s": None,
            "ops": [],
            "step": {},
            "large_maps": [],
            "training": [],
            "extra": [],
            "errors": [],
            "notes": [],
        }
        self.path: Path | None = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            moment = datetime.fromisoformat(self.figures["date"]).strftime("%Y%m%dT%H%M")
            self.path = folder / f"gpu_{moment}_{self.figures['commit']}.json"
        self.save(UNFINISHED)

    def say(self, text: str) -> None:
        print(f"{time.perf_counter() - self.started:5.0f} s  {text}", flush=True)

    def note(self, text: str) -> None:
        """Adds a note, once."""
        if text not in self.figures["notes"]:
            self.figures["notes"].append(text)
            self.say(f"note: {text}")

    def save(self, *more_errors: str) -> None:
        """Writes gpu_<YYYYMMDDTHHMM>_<commit>.json, beside and renamed. What is not finite is null there, and an error.

        `more_errors` are in the file alone.
        """
        self.figures["seconds"] = round(time.perf_counter() - self.started, 1)
        self.figures["errors"] += list(nulls_for_nan(self.figures))
        if self.path is None:
            return
        figures = self.figures | {"errors": [*self.figures["errors"], *more_errors]}
        beside = self.path.with_name(self.path.name + ".part")
        beside.write_text(json.dumps(figures, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(beside, self.path)

    def finish(self) -> None:
        """Writes the file for the last time."""
        seconds = time.perf_counter() - self.started
        if seconds > LIMIT:
            self.figures["errors"].append(f"took {seconds:.0f} s: expected less than {LIMIT:.0f}")
        self.save()
        self.say("done")

    def begin(self, section: str) -> None:
        self.section_end = self.started + SCHEDULE[section]
        self.say(section)

    def late(self, what: str, needs: float = 0.0) -> bool:
        """Whether too little of the section's time is left for `needs` seconds; `what` is then noted as left out."""
        if time.perf_counter() + needs < self.section_end:
            return False
        self.note(f"left out, too little time: {what}")
        return True

    @contextmanager
    def part(self, what: str) -> Iterator[None]:
        """A failure inside is an error of the report; the rest goes on."""
        try:
            yield
        except Exception as error:
            self.figures["errors"].append(f"{what}: {type(error).__name__}: {first_line(error)}")
            self.say(f"ERROR in {self.figures['errors'][-1]}")
        finally:
            self.save(UNFINISHED)

    @contextmanager
    def optional(self, what: str) -> Iterator[None]:
        """A failure inside is a note: a peer that cannot run here takes nothing from the figures of the ops."""
        try:
            yield
        except Exception as error:
            self.note(f"{what}: {type(error).__name__}: {first_line(error)}")
        finally:
            self.save(UNFINISHED)


def nulls_for_nan(value: Any, place: str = "figures") -> Iterator[str]:
    """Puts None for NaN and infinities inside dicts and lists, and yields where they were."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        at = f"{place}.{key}"
        if isinstance(inner, dict | list):
            yield from nulls_for_nan(inner, at)
        elif isinstance(inner, float) and not math.isfinite(inner):
            value[key] = None
            yield f"{at} is {inner}, written as null"


def environment(device: torch.device) -> dict[str, str | None]:
    """Where and of what the figures are."""
    now = datetime.now(timezone.utc)
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    smi = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", f"--id={device.index or 0}")
    return {
        "device": name,
        "driver": _answer(*smi) if device.type == "cuda" else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "commit": commit(),
        "date": now.isoformat(timespec="seconds"),
    }


def commit() -> str:
    """Short commit of this checkout, "-dirty" if a tracked file was changed.

    Of a copy without .git it is what FASTPOSE_COMMIT says, or "unknown".
    """
    # Asked for by name: git itself would go on to look in the folders above.
    head = _answer("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD") if (ROOT / ".git").exists() else None
    if head is None:
        return re.sub(r"[^\w.-]", "_", os.environ.get("FASTPOSE_COMMIT", "")) or "unknown"
    changed = _answer("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    return f"{head}-dirty" if changed else head


def _answer(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def first_line(error: BaseException) -> str:
    """What an exception says, without what torch adds below."""
    return str(error).strip().partition("\n")[0][:200]
