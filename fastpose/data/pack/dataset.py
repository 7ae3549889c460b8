# SPDX-License-Identifier: Apache-2.0
"""A pack as a data set: the annotations that were packed, with the score of the data set that they came from."""

from __future__ import annotations

import functools
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from fastpose.data.dataset import DataOptions, Dataset, Scorer, Split
from fastpose.data.pack.format import INDEX, ROWS, PackError, margins_of, read_checked, split_files
from fastpose.data.persons import Persons
from fastpose.option import OptionError
from fastpose.skeletons import MPII, Skeleton


class Pack:
    """The pack in the data root, made from a data set of the class `kind`. See `fastpose.data.dataset.Dataset`."""

    def __init__(
        self, data: DataOptions, size: tuple[int, int], skeleton: Skeleton | None, kind: type[Dataset]
    ) -> None:
        self.root, self.size, self._fits_boxes = Path(data.data_root), size, kind.fits_boxes
        # Whoever names no joints takes the pack's, whatever they are.
        self._wanted = skeleton or (kind(data, size).skeleton if data.skeleton else None)
        self.packed_from = kind(data, size, self._wanted)

    @functools.cached_property
    def skeleton(self) -> Skeleton:
        return self._wanted or read_packed_persons(self.root, "valid").skeleton

    def read(self, split: Split) -> Persons:
        persons, wanted, root = read_packed_persons(self.root, split), self._wanted, self.root
        if wanted is not None and wanted.joints != persons.skeleton.joints:
            raise OptionError(
                "skeleton", f"the pack {root} holds joints of {persons.skeleton.name!r}, not {wanted.name!r}"
            )
        height, width = margins_of(root, split).size
        if self._fits_boxes and height * self.size[1] != width * self.size[0]:
            raise OptionError(
                "size",
                f"the pack {root} holds boxes with the aspect ratio of {height} x {width} pixels, got "
                f"{self.size[0]} x {self.size[1]}",
            )
        return persons

    def scorer(self, persons: Persons) -> Scorer:
        return self.packed_from.scorer(persons)


def read_packed_persons(root: Path, split: str) -> Persons:
    """The annotations of one split of a pack: each person on an "image" of its own, a path that `PackedImages` knows.

    Coordinates are those of the images that were packed.

    Raises:
        PackError: the pack is not whole, or a file of it is missing or damaged.
    """
    files = split_files(root, split)
    path = root / f"{split}-persons.npz"
    data = read_checked(path, files["annotations"]["crc"])
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = dict(file)
        joints = str(arrays["skeleton"])
        skeleton = MPII if joints == MPII.name else Skeleton(**_tuples(json.loads(joints)))
        truth = json.loads(arrays["truth"].tobytes()) if "truth" in arrays else None
        names = arrays["image"].tolist()
        if wrong := [name for name in names if name in ("", "..") or Path(name).name != name]:
            raise PackError(f"{path}: expected names of files without a folder, got {wrong[0]!r}")
        if len(names) != files["persons"]:
            raise PackError(f"{path}: expected {files['persons']} persons as in {INDEX}, got {len(names)}")
        rows: dict[str, Any] = {name: arrays.get(name) for name in ROWS}
        extras = {name: array for name, array in arrays.items() if name not in (*ROWS, "skeleton", "truth", "image")}
        paths = tuple(root / split / str(row) / name for row, name in enumerate(names))
        return Persons(
            image_paths=paths, image_index=np.arange(len(names)), skeleton=skeleton, extras=extras, truth=truth, **rows
        )
    except PackError:
        raise
    except (KeyError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise PackError(f"{path}: damaged: {error}") from error


def _tuples(value: Any) -> Any:
    """The same with tuples for lists, which JSON makes of tuples."""
    if isinstance(value, dict):
        return {name: _tuples(one) for name, one in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
