# SPDX-License-Identifier: Apache-2.0
"""A plain CSV file: a line per joint, with image, joint, x and y."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fastpose.data.annotation_rows import AnnotationError, as_json
from fastpose.data.coco.records import Tally
from fastpose.data.dataset import DataOptions, Split
from fastpose.data.formats.found import Found, Person, as_contents, check_place, named_skeleton, number, read_text

COLUMNS = ("image", "person", "joint", "x", "y", "visible")
_NEEDED = ("image", "joint", "x", "y")
_FEWEST = 0.01  # of all joints of all persons this share has a line, if there are a million of them


def read_csv(file: Path, split: Split, data: DataOptions) -> Found:
    """Reads a CSV file in UTF-8, with commas, semicolons or tabs, whose first line names the columns.

    ``image`` is relative to the folder that option `images` names, by default the data root. ``person`` tells those on
    one image apart; without it there is one. ``visible`` is COCO's v, without it 2. 0 is not annotated, and so are
    joints without x and y, and those that a person has no line for.

    Joints have the order in which the file names them first.

    Raises:
        AnnotationError: a column is missing or unknown, a line has other columns or says a joint again, or a value is
            none; names the line.
    """
    places: dict[tuple[str, str], dict[str, tuple[float, float, float]]] = {}
    lines: dict[tuple[str, str, str], int] = {}
    first: dict[tuple[str, str], int] = {}  # line of each person
    joints: dict[str, None] = {}
    for line, row in _rows(file, data.max_annotation_bytes):
        where = f"{file}, line {line}"
        image, joint, person = row["image"], row["joint"], row.get("person", "")
        if not image:
            raise AnnotationError(f"{where}: image must be a file name, got nothing")
        joints[joint] = None
        if (before := lines.setdefault((image, person, joint), line)) != line:
            of = f" of person {as_json(person)}" if person else ""
            raise AnnotationError(f"{where}: {as_json(joint)}{of} on {as_json(image)} is in line {before}, too")
        first.setdefault((image, person), line)
        places.setdefault((image, person), {})[joint] = _place(row, where)
    if not places:
        raise AnnotationError(f"{file}: has no line beside that of the columns")
    skeleton = named_skeleton("csv", list(joints), where=str(file))
    if len(lines) < _FEWEST * (total := len(places) * len(joints)) and total > 1_000_000:
        raise AnnotationError(
            f"{file}: expected most joints of most persons, got {len(lines):,} lines for {len(joints):,} joints of "
            f"{len(places):,} persons"
        )
    nowhere = (0.0, 0.0, 0.0)
    persons = [
        Person(image, np.array([of.get(joint, nowhere) for joint in joints])) for (image, _), of in places.items()
    ]
    folder = data.images_path(split)
    contents = as_contents([person.image for person in persons], persons, skeleton, folder, data.reading)
    return Found(contents, skeleton, folder, Tally(), records=[f"line {line}" for line in first.values()])


def _rows(file: Path, most: int) -> Iterator[tuple[int, dict[str, str]]]:
    """The lines below the first, by their numbers, with their cells by column."""
    text = read_text(file, most)
    first = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count), strict=True)
    try:
        columns = [cell.strip().lower() for cell in next(reader, [])]
        expected = f"expected columns {', '.join(COLUMNS)}, of which person and visible may be missing"
        if missing := [name for name in _NEEDED if name not in columns]:
            raise AnnotationError(f"{file}: {expected}; there is no {missing[0]}, got {as_json(columns, 200)}")
        if strange := [name for name in columns if name not in COLUMNS or columns.count(name) > 1]:
            what = "is there twice" if strange[0] in COLUMNS else "is another"
            if strange[0] in ("", "unnamed: 0"):
                what = "is pandas' index: write it with index=False"
            raise AnnotationError(f"{file}: {expected}; {as_json(strange[0])} {what}")
        for cells in reader:
            if not any(map(str.strip, cells)):
                continue
            if len(cells) != len(columns):
                raise AnnotationError(
                    f"{file}, line {reader.line_num}: expected {len(columns)} cells, got {len(cells)}: {as_json(cells)}"
                )
            yield reader.line_num, dict(zip(columns, map(str.strip, cells), strict=True))
    except csv.Error as error:
        raise AnnotationError(f"{file}, line {reader.line_num}: is not CSV: {error}") from error


def _place(row: dict[str, str], where: str) -> tuple[float, float, float]:
    """x, y and v of a line; zeros where the joint is not annotated."""
    v = number(row["visible"], "visible", where) if row.get("visible") else 2.0
    if v not in (0, 1, 2):
        raise AnnotationError(f"{where}: visible must be 0, 1 or 2, got {as_json(row['visible'])}")
    x, y = (number(row[name], name, where) if row[name] else math.nan for name in ("x", "y"))
    if v == 0 or (math.isnan(x) and math.isnan(y)):
        return (0.0, 0.0, 0.0)
    check_place((x, y), where)
    return (x, y, v)
