# SPDX-License-Identifier: Apache-2.0
"""What was found out about a data set, as text for people and as plain values for JSON."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from fastpose.data.checks import LEVELS, Level
from fastpose.data.findings import Finding
from fastpose.data.images import printable
from fastpose.data.persons import Origin


class Reported(NamedTuple):
    """A finding and what it is about.

    split: "train", "valid", or empty: both, or the joints. file: the annotations that the cases are of, or the list of
    sets.
    """

    finding: Finding
    split: str
    file: str

    @property
    def level(self) -> Level:
        return LEVELS[self.finding.code]

    @property
    def text(self) -> str:
        """The finding in one line, which names the first case by file, set, record and image."""
        finding = self.finding
        if not finding.cases:
            return finding.what
        first = finding.cases[0]
        places = ", ".join(filter(None, (printable(self.file), printable(first.set_and_record))))
        return f"{finding.what}; the first: {places}, image {printable(first.image)}{finding.more}"

    def __str__(self) -> str:
        return f"{self.level:8}{self.finding.code}{' in ' * bool(self.split)}{self.split}: {self.text}"

    def as_plain(self) -> dict[str, Any]:
        """The finding as JSON has it."""
        finding = self.finding
        rows = [_plain(case) for case in finding.cases]
        return {
            "code": finding.code,
            "level": self.level,
            "split": self.split or None,
            "count": finding.count,
            "of": finding.of,
            "first": {"file": self.file, **rows[0]} if rows else None,
            "rows": rows,
            "text": self.text,
        }


def _plain(case: Origin) -> dict[str, Any]:
    of_set = {"set": case.of_set} if case.of_set else {}
    return {**of_set, "row": case.row, "record": case.record, "image": case.image}


def in_order(reported: Iterable[Reported]) -> list[Reported]:
    """Errors first, then warnings and notes, each in the order of `LEVELS`, of one code the training data first."""
    codes = list(LEVELS)
    return sorted(reported, key=lambda one: (codes.index(one.finding.code), ("train", "valid", "").index(one.split)))


def summary(reported: Sequence[Reported]) -> str:
    """How many findings of each level there are."""
    levels = Counter(one.level for one in reported)
    parts = (f"{levels[name]} {name}{'s' * (levels[name] != 1)}" for name in ("error", "warning", "note"))
    return ", ".join(parts)


def table(columns: Mapping[str, Mapping[str, Any]], small: float) -> str:
    """`counts` of splits side by side, a column each."""
    rows: list[list[str]] = [["", *columns]]
    values = list(columns.values())
    rows += [[name, *(f"{each[name]:,}" for each in values)] for name in ("persons", "images")]
    for name in ("smallest", "median", "largest"):
        sizes = (each["image_size"].get(name) for each in values)
        rows.append([f"{name} image, px", *("-" if size is None else f"{size[0]} x {size[1]}" for size in sizes)])
    called = {"smallest": "smallest", "percentile_5": "5 % below", "percentile_50": "half below"}
    called |= {"percentile_95": "95 % below", "largest": "largest"}
    rows += [
        [f"persons, {text}, px", *(f"{each['person_px'][key]:g}" for each in values)] for key, text in called.items()
    ]
    rows.append([f"persons below {small:g} px", *(f"{each['persons_small']:,}" for each in values)])
    rows += [
        [f"annotated: {joint}", *(f"{100 * each['annotated'][joint]:.1f} %" for each in values)]
        for joint in values[0]["annotated"]
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    )


@contextmanager
def heard(findings: list[Finding]) -> Iterator[None]:
    """Adds to `findings` what the readers of annotations log, instead of printing it: what was left out, and why."""
    logger = logging.getLogger("fastpose.data")
    handler = _Heard(findings)
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


class _Heard(logging.Handler):
    def __init__(self, findings: list[Finding]) -> None:
        super().__init__(logging.INFO)
        self._findings = findings

    def emit(self, record: logging.LogRecord) -> None:
        code = "annotations_odd" if record.levelno >= logging.WARNING else "annotations_read"
        self._findings.append(Finding(code, record.getMessage()))
