# SPDX-License-Identifier: Apache-2.0
"""The command that makes a synthetic data set: ``python -m fastpose.synthetic OUT --persons N --seed S``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastpose.command_line import CommandLine
from fastpose.data.synthetic import SyntheticDataError, generate
from fastpose.data.synthetic.dataset import drawing_progress
from fastpose.data.synthetic.sheet import write_contact_sheet
from fastpose.ending import Stopped, ends_in_one_line, report
from fastpose.option import option

DESCRIPTION = """Make a synthetic data set of clothed figures: JPEGs with annotations in MPII's format. The same options
give the same files. Where that data set is already there, nothing is done."""


@dataclass(frozen=True)
class SyntheticOptions:
    """What to draw."""

    persons: int = option(2000, "figures in all, count")
    valid_persons: int | None = option(None, "of them validation persons, count; without it: a fifth")
    seed: int = option(0, "seed of everything random, 0 or more")
    workers: int | None = option(None, "processes, count; without it: one per usable CPU, fewer for small sets")
    overwrite: bool = option(False, "replace a data set made with other options")
    contact_sheet: str = option("", "picture to draw twelve samples into; empty: none")


def command() -> CommandLine:
    """The options of `fastpose synthetic`."""
    return CommandLine(
        "synthetic", DESCRIPTION, SyntheticOptions, places={"out": "folder to make; gets images/ and annot/"}
    )


@ends_in_one_line
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    own, asked = command().parse(argv)
    out = Path(asked["out"])
    try:
        summary = generate(
            out,
            persons=own.persons,
            seed=own.seed,
            valid_persons=own.valid_persons,
            workers=own.workers,
            overwrite=own.overwrite,
            progress=drawing_progress(out),
        )
    except (SyntheticDataError, OSError) as error:
        return report(error)
    except KeyboardInterrupt as stop:
        raise Stopped.by(stop, f"{out} is as it was") from None
    state = "wrote" if summary.created else "already there, nothing to do:"
    print(f"{state} {summary.path}")
    persons = f"{summary.train_persons} training and {summary.valid_persons} validation persons"
    print(f"{persons} in {summary.images} pictures")
    if own.contact_sheet:
        write_contact_sheet(summary.path, Path(own.contact_sheet))
        print(f"contact sheet: {own.contact_sheet}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
