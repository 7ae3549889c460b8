# SPDX-License-Identifier: Apache-2.0
"""`python -m fastpose.report RUN ...`: writes a run, or several side by side, as one page of HTML."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastpose.ending import ends_in_one_line
from fastpose.engine.folder import PAGE
from fastpose.engine.run_page import write_page
from fastpose.option import OptionError, option
from fastpose.options.asked import Command
from fastpose.options.settings import DEFAULTS

DESCRIPTION = """Write what a run has come to as one page of HTML that needs no other file: settings, curves, scores of
each joint, errors by cause, the best and the worst predictions, and what scores are worth. Several runs are set side
by side. A training writes this page itself when it ends; docs/training.md says what each part means."""
SEVERAL = "report.html"


@dataclass(frozen=True)
class ReportOptions:
    """Where to write."""

    out: str = option(
        "", f"file to write, .html; empty: {PAGE} in the run's folder, of several runs {SEVERAL} in the one around them"
    )

    def __post_init__(self) -> None:
        if self.out and not self.out.lower().endswith((".html", ".htm")):
            raise OptionError("out", f"expected a name that ends in .html, got {self.out}")


def command() -> Command:
    """The options of `fastpose report`."""
    places = {"run...": "folder of a run, complete or not; several are set side by side"}
    return Command("report", DESCRIPTION, ReportOptions, places=places)


@ends_in_one_line
def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 1 after an error."""
    return command().run(run, argv)


def run(own: ReportOptions, asked: dict[str, Any]) -> int:
    """Writes the page, and prints which file it is."""
    folders = [Path(name) for name in asked["run"]]
    file = Path(own.out) if own.out else default_file(folders)
    write_page(folders, file, DEFAULTS)
    print(f"wrote {file}")
    return 0


def default_file(folders: Sequence[Path]) -> Path:
    """The page's file if none is named: in the run's folder, of several in the nearest one that has all of them."""
    if len(folders) == 1:
        return folders[0] / PAGE
    try:
        return Path(os.path.commonpath([folder.resolve().parent for folder in folders])) / SEVERAL
    except ValueError:  # of Windows, on two drives
        raise OptionError("out", "the runs have no folder in common: name the file to write") from None


if __name__ == "__main__":
    sys.exit(main())
