# SPDX-License-Identifier: Apache-2.0
"""DeepLabCut's projects: config.yaml, and in each folder of labeled-data a CollectedData_SCORER.csv."""

from __future__ import annotations

import csv
import io
import math
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastpose.data.annotation_rows import AnnotationError, as_json
from fastpose.data.coco.records import Tally
from fastpose.data.dataset import DataOptions, Split
from fastpose.data.formats.found import Found, Person, as_contents, check_place, named_skeleton, number, read_text
from fastpose.files import read_yaml
from fastpose.skeletons import Skeleton

_FOLDER = "labeled-data"
_NO_ANIMAL = "single"  # whose joints are the uniquebodyparts


class _Column(NamedTuple):
    """A column of numbers: whose (empty in projects of one animal), which joint, x or y."""

    animal: str
    joint: str
    axis: int


def read_deeplabcut(file: Path, split: Split, data: DataOptions) -> Found:
    """Reads a project as its ``config.yaml`` says: ``bodyparts``, or ``multianimalbodyparts``, are the joints, pairs of
    them in ``skeleton`` the limbs, and pairs of left and right follow from their names. The annotations are those of
    ``scorer``, all of them: which a shuffle trains on is in a pickle, which is not read. Of an animal joints without
    numbers are not annotated.

    Left out are animals without a joint, ``uniquebodyparts``, which belong to no animal, and folders without
    annotations.

    Raises:
        AnnotationError: something is missing or is not as above, or there is an .h5 without its .csv; names the file
            and the line.
    """
    config = read_yaml(file, number_keys=True)
    skeleton, scorer, unique = _project(config, file)
    root, dropped = file.parent, Tally()
    folders = sorted(path for path in (root / _FOLDER).glob("*") if path.is_dir())
    images: list[str] = []
    persons: list[Person] = []
    for folder in folders:
        table = folder / f"CollectedData_{scorer}.csv"
        if table.is_file():
            found = _persons(table, skeleton, unique, dropped, data.max_annotation_bytes)
            images += found
            place = table.relative_to(root).as_posix()
            persons += [one._replace(record=f"{place}, {one.record}") for of in found.values() for one in of]
        elif (other := table.with_suffix(".h5")).is_file():
            line = f"import pandas; pandas.read_hdf({str(other)!r}).to_csv({str(table)!r})"
            raise AnnotationError(
                f"{other}: expected {table.name} beside it, as DeepLabCut writes both; the .h5 is not read, as it "
                "may hold pickles, which run code. If you trust it, make the .csv of it with pandas and tables: "
                f"python -c {shlex.quote(line)}"
            )
        else:
            dropped.add(f"folders without {table.name}", folder.name)
    if not images:
        raise AnnotationError(
            f"{file}: none of {len(folders)} folders in {root / _FOLDER} has a CollectedData_{scorer}.csv with images"
        )
    folder = data.images_path(split) if data.images or data.valid_images else root
    records = [person.record for person in persons]
    contents = as_contents(images, persons, skeleton, folder, data.reading)
    return Found(contents, skeleton, folder, dropped, records=records)


def _project(config: Any, file: Path) -> tuple[Skeleton, str, set[str]]:
    """The joints, the scorer, and the names of joints that belong to no animal."""
    if not isinstance(config, dict):
        raise AnnotationError(f"{file}: expected keys scorer and bodyparts, got {as_json(config, 40)}")
    several = config.get("multianimalproject") is True
    key = "multianimalbodyparts" if several else "bodyparts"
    names, scorer, links = config.get(key), config.get("scorer"), config.get("skeleton") or []
    unique = (config.get("uniquebodyparts") or []) if several else []
    if not isinstance(names, list) or not isinstance(unique, list):
        raise AnnotationError(
            f"{file}: {key} must be a list of names, got {as_json(names if unique == [] else unique)}"
        )
    if not isinstance(scorer, str) or not scorer or "/" in scorer or "\\" in scorer:
        raise AnnotationError(f"{file}: scorer must be a name, got {as_json(scorer)}")
    place = {str(name): row for row, name in enumerate(names)}
    limbs = []
    for link in links if isinstance(links, list) else [links]:
        if not isinstance(link, list) or len(link) != 2 or not {*map(str, link)} <= {*place, *map(str, unique)}:
            raise AnnotationError(f"{file}: skeleton must be pairs of {key}, got {as_json(link)}")
        if {*map(str, link)} <= place.keys() and str(link[0]) != str(link[1]):
            limbs.append((place[str(link[0])], place[str(link[1])]))
    joints = [str(name) for name in names]
    return named_skeleton("deeplabcut", joints, limbs, where=f"{file}: {key}"), scorer, {*map(str, unique)}


def _persons(table: Path, skeleton: Skeleton, unique: set[str], dropped: Tally, most: int) -> dict[str, list[Person]]:
    """The animals of a table, by their images."""
    reader = csv.reader(io.StringIO(read_text(table, most), newline=""), strict=True)
    found: dict[str, list[Person]] = {}
    try:
        head: dict[str, list[str]] = {}
        for cells in reader:
            if not cells:
                continue
            if "coords" not in head:
                head[cells[0]] = cells
                if cells[0] not in ("scorer", "individuals", "bodyparts", "coords"):
                    raise AnnotationError(
                        f"{table}, line {reader.line_num}: expected scorer, individuals, bodyparts or coords, got "
                        f"{as_json(cells[0])}"
                    )
                if cells[0] == "coords":
                    first, columns = _columns(head, skeleton, unique, table)
                continue
            where = f"{table}, line {reader.line_num}"
            if len(cells) != first + len(columns):
                raise AnnotationError(f"{where}: expected {first + len(columns)} cells, got {len(cells)}")
            image = "/".join(cells[:first]).replace("\\", "/")
            if image in found:
                raise AnnotationError(f"{where}: image {as_json(image)} is there twice")
            animals = _animals(image, cells[first:], columns, skeleton, dropped, where)
            line = f"line {reader.line_num}"
            found[image] = [one._replace(record=f"{line}{one.record}") for one in animals]
    except csv.Error as error:
        raise AnnotationError(f"{table}, line {reader.line_num}: is not CSV: {error}") from error
    if "coords" not in head:
        raise AnnotationError(f"{table}: expected lines of scorer, bodyparts and coords, got {as_json(list(head))}")
    return found


def _columns(
    head: dict[str, list[str]], skeleton: Skeleton, unique: set[str], table: Path
) -> tuple[int, list[_Column | None]]:
    """How many columns name the image, and what the others are; None for those that are not read."""
    coords, parts = head["coords"], head.get("bodyparts", [])
    animals = head.get("individuals", [""] * len(coords))
    if not len(coords) == len(parts) == len(animals):
        raise AnnotationError(f"{table}: expected lines of bodyparts and coords of the same length")
    first = next((place for place in range(1, len(coords)) if coords[place]), len(coords))
    columns: list[_Column | None] = []
    for animal, part, axis in zip(animals[first:], parts[first:], coords[first:], strict=True):
        if axis not in ("x", "y", "likelihood"):
            raise AnnotationError(f"{table}: coords must be x and y, got {as_json(axis)}")
        if part in skeleton.joints and animal != _NO_ANIMAL:
            columns.append(None if axis == "likelihood" else _Column(animal, part, "xy".index(axis)))
        elif part in unique:
            columns.append(None)
        else:
            raise AnnotationError(f"{table}: bodyparts must be those of config.yaml, got {as_json(part)}")
    read = [column for column in columns if column]
    if len(set(read)) < len(read) or len({column[:2] for column in read}) * 2 != len(read):
        raise AnnotationError(f"{table}: expected one x and one y for each of the bodyparts")
    parts_of: dict[str, set[str]] = {}
    for column in read:
        parts_of.setdefault(column.animal, set()).add(column.joint)
    common = next(iter(parts_of.values()), set())
    if any(own != common for own in parts_of.values()) or len(common) * 10 < skeleton.num_joints:
        raise AnnotationError(
            f"{table}: expected the bodyparts of config.yaml for every individual, got "
            f"{as_json({animal: sorted(own) for animal, own in parts_of.items()}, 200)}"
        )
    return first, columns


def _animals(
    image: str, cells: list[str], columns: list[_Column | None], skeleton: Skeleton, dropped: Tally, where: str
) -> list[Person]:
    places: dict[str, np.ndarray] = {}
    unique = False
    for column, cell in zip(columns, cells, strict=True):
        value = number(cell, column.joint if column else "a number", where) if cell.strip() else math.nan
        if column is None:
            unique |= not math.isnan(value)
            continue
        points = places.setdefault(column.animal, np.full((skeleton.num_joints, 2), math.nan))
        points[skeleton.joints.index(column.joint), column.axis] = value
    if unique:
        dropped.add("images' uniquebodyparts", where)
    persons = []
    for animal, points in places.items():
        annotated: np.ndarray = ~np.isnan(points).all(axis=1)
        for joint in np.flatnonzero(annotated):
            check_place(points[joint].tolist(), f"{where}, {skeleton.joints[joint]}")
        if annotated.any():
            joints = np.column_stack([np.where(annotated[:, None], points, 0), 2 * annotated])
            persons.append(Person(image, joints, record=f", {animal}" if animal else ""))
        elif len(places) == 1 or not animal:
            dropped.add("without an annotated joint", where)
    return persons
