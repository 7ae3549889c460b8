# SPDX-License-Identifier: Apache-2.0
"""What a run's folder has, read for people: whatever is missing, torn or of an older version is said and left out."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastpose.engine.folder import PREDICTIONS
from fastpose.engine.predicted import Predicted, read_predicted
from fastpose.files import read_file, read_yaml

_MOST_BYTES = 1 << 28  # of metrics.jsonl and summary.json
_MOST_EPOCHS = 1 << 40
_MAIN = ("Mean", "AP", "PCK")  # what a run that was not ended ranks networks by: files of others name it


@dataclass(frozen=True)
class RunFiles:
    """A run, as far as its folder has it.

    Attributes:
        folder: the run's.
        config: its settings by name; empty if they are lost.
        lines: those of metrics.jsonl, one per epoch.
        summary: summary.json; empty if the run is not complete.
        predicted: its last predictions; None if there are none.
        missing: what there is not, in sentences.
    """

    folder: Path
    config: Mapping[str, Any]
    lines: list[dict[str, Any]]
    summary: Mapping[str, Any]
    predicted: Predicted | None
    missing: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def score(self) -> tuple[str, str]:
        """The key of the score in the run's files, and that of its value which ranks networks; empty without one."""
        entries = [self.summary, *reversed(self.lines)]
        for entry in entries:
            for key, values in entry.items():
                if key != "best" and isinstance(values, dict):
                    named = [name for name in part(self.summary, "best") if name != "epoch"] or list(_MAIN)
                    known = [name for name in named if name in values]
                    numbers = [name for name, value in values.items() if number(value) is not None]
                    if known or numbers:
                        return key, (known or numbers)[0]
        return "", ""

    @property
    def label(self) -> str:
        """What people call the score; empty without one."""
        if self.predicted is not None:
            return self.predicted.label
        key, main = self.score
        return main if key == main.lower() else f"{key} {main}".strip()

    def evaluations(self) -> list[tuple[int, float]]:
        """Epochs that were evaluated, and their scores."""
        key, main = self.score
        found = [(line["epoch"], number(part(line, key).get(main))) for line in self.lines if key]
        return [(epoch, value) for epoch, value in found if value is not None]

    def best(self) -> tuple[int, float] | None:
        """The best epoch and its score; of equal ones the later, as for best.pt."""
        best = part(self.summary, "best")
        if (value := number(best.get(self.score[1]))) is not None:
            return int(number(best.get("epoch")) or 0), value
        return max(self.evaluations(), key=lambda one: (one[1], one[0]), default=None)

    def last(self) -> float | None:
        """The last score."""
        key, main = self.score
        value = number(part(self.summary, key).get(main)) if key else None
        return value if value is not None else next((value for _, value in self.evaluations()[::-1]), None)

    def figure(self, name: str) -> float | None:
        """A number of the summary, or without one of the last epoch."""
        if (value := number(self.summary.get(name))) is not None or not self.lines:
            return value
        return number(self.lines[-1].get(name))


def read_run_files(folder: Path) -> RunFiles:
    """Reads what there is in a run's folder; files of any version, complete or not.

    Raises:
        ValueError: it is not a run's folder.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected the folder of a run, got no folder")
    if not any((folder / name).is_file() for name in ("config.yaml", "metrics.jsonl", "summary.json")):
        raise ValueError(f"{folder}: expected the folder of a run, got one without config.yaml and metrics.jsonl")
    missing: list[str] = []
    config, lines, summary = _config(folder, missing), _lines(folder, missing), _summary(folder, missing)
    predicted = None
    try:
        predicted = read_predicted(folder)
    except FileNotFoundError:
        best = "best.pt" if (folder / "best.pt").is_file() else "last.pt"
        missing.append(
            f"There is no {PREDICTIONS}, so there are no scores per joint, errors by cause, pictures or calibration. A "
            f"training writes it when it ends; fastpose evaluate --checkpoint {folder / best} writes it now."
        )
    except (OSError, ValueError) as error:
        missing.append(f"{PREDICTIONS} cannot be read: {error}.")
    return RunFiles(folder, config, lines, summary, predicted, missing)


def number(value: Any) -> float | None:
    """A finite number as a float; None of all else."""
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
    return float(value) if known and math.isfinite(value) else None


def part(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """What is below a name, if it is values by name; else nothing."""
    found = values.get(name)
    return found if isinstance(found, dict) else {}


def _config(folder: Path, missing: list[str]) -> dict[str, Any]:
    try:
        config = read_yaml(folder / "config.yaml")
        if isinstance(config, dict):
            return config
        missing.append("config.yaml has no settings, as after a power cut.")
    except FileNotFoundError:
        missing.append("There is no config.yaml, so the settings are not known.")
    except (OSError, ValueError) as error:
        missing.append(f"config.yaml cannot be read: {error}.")
    return {}


def _lines(folder: Path, missing: list[str]) -> list[dict[str, Any]]:
    try:
        data = read_file(folder / "metrics.jsonl", _MOST_BYTES)
    except FileNotFoundError:
        missing.append("There is no metrics.jsonl: the first epoch was not finished.")
        return []
    except (OSError, ValueError) as error:
        missing.append(f"metrics.jsonl cannot be read: {error}.")
        return []
    found: dict[int, dict[str, Any]] = {}
    torn = 0
    for text in data.split(b"\n"):
        if not text.strip(b"\0 \r\t"):
            continue
        try:
            line = json.loads(text)
            if type(line["epoch"]) is not int or not 0 < line["epoch"] < _MOST_EPOCHS:
                raise TypeError
            found[line["epoch"]] = line
        except (ValueError, TypeError, KeyError, RecursionError):
            torn += 1
    if torn:
        missing.append(f"Lines of metrics.jsonl that are torn: {torn}; they are left out.")
    if not found:
        missing.append("metrics.jsonl has no line: the first epoch was not finished.")
    return [found[epoch] for epoch in sorted(found)]


def _summary(folder: Path, missing: list[str]) -> dict[str, Any]:
    try:
        summary = json.loads(read_file(folder / "summary.json", _MOST_BYTES))
        if isinstance(summary, dict):
            return summary
        missing.append("summary.json has no object in it.")
    except FileNotFoundError:
        missing.append("The run is not complete: there is no summary.json.")
    except (OSError, ValueError, RecursionError) as error:
        missing.append(f"summary.json cannot be read: {error}.")
    return {}
