# SPDX-License-Identifier: Apache-2.0
"""The command that makes a synthetic data set: ``python -m fastpose.synthetic OUT --persons N --seed S``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fastpose.data.synthetic import SyntheticDataError, generate
from fastpose.data.synthetic.dataset import drawing_progress
from fastpose.data.synthetic.sheet import write_contact_sheet
from fastpose.ending import Stopped, ends_in_one_line, report
from fastpose.option import underscored


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastpose synthetic",
        description="Make a synthetic data set of clothed figures: JPEGs with annotations in MPII's format. "
        "The same options give the same files. Where that data set is already there, nothing is done.",
    )
    add = parser.add_argument
    add("out", type=Path, metavar="OUT", help="folder to make; gets images/ and annot/ (path)")
    add("--persons", type=int, default=2000, metavar="N", help="figures in all (int, persons; default: %(default)s)")
    add("--valid_persons", type=int, metavar="M", help="of them validation rows (int, persons; default: a fifth)")
    add("--seed", type=int, default=0, metavar="S", help="seed of everything random (int >= 0; default: %(default)s)")
    add("--workers", type=int, metavar="W", help="processes (int; default: one per usable CPU, fewer for small sets)")
    add("--overwrite", action="store_true", help="replace a data set made with other options (flag; default: no)")
    add("--contact_sheet", type=Path, metavar="PNG", help="draw twelve samples into this picture (path; default: none)")
    return parser


@ends_in_one_line
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args([underscored(word) for word in words])
    try:
        summary = generate(
            options.out,
            persons=options.persons,
            seed=options.seed,
            valid_persons=options.valid_persons,
            workers=options.workers,
            overwrite=options.overwrite,
            progress=drawing_progress(options.out),
        )
    except (SyntheticDataError, OSError) as error:
        return report(error)
    except KeyboardInterrupt as stop:
        raise Stopped.by(stop, f"{options.out} is as it was") from None
    state = "wrote" if summary.created else "already there, nothing to do:"
    print(f"{state} {summary.path}")
    persons = f"{summary.train_persons} training and {summary.valid_persons} validation persons"
    print(f"{persons} in {summary.images} pictures")
    if options.contact_sheet is not None:
        write_contact_sheet(summary.path, options.contact_sheet)
        print(f"contact sheet: {options.contact_sheet}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
