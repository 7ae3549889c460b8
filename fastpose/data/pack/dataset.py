# SPDX-License-Identifier: Apache-2.0
"""A pack as a data set: the annotations that were packed, with the score of the data set that they came from."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
from numpy.typing import NDArray

from fastpose.data.dataset import DataOptions, Dataset, Scorer, Split
from fastpose.data.pack.files import ANNOTATION_BYTES, open_whole, read_npz
from fastpose.data.pack.format import INDEX, ROWS, PackError, margins_of, misfit, split_files
from fastpose.data.persons import Part, Persons, Sets
from fastpose.option import OptionError, typed
from fastpose.skeletons import MPII, Skeleton, as_tuples

_OF_SETS = re.compile(r"sets|set_index|set\d{1,6}_.+")  # what a pack has of several data sets beside their persons
_OPTIONS = get_type_hints(DataOptions)


class Pack:
    """The pack in the data root, of a data set that `make` makes of options, size and joints. See
    `fastpose.data.dataset.Dataset`."""

    def __init__(
        self, data: DataOptions, size: tuple[int, int], skeleton: Skeleton | None, make: Callable[..., Dataset]
    ) -> None:
        self.root, self.size = Path(data.data_root), size
        # Whoever names no joints takes the pack's, whatever they are.
        self._wanted = skeleton or (make(data, size).skeleton if data.skeleton else None)
        try:
            self.packed_from = make(data, size, self._wanted)
        except OptionError as error:
            if error.option != "detections":
                raise
            raise PackError(f"{self.root / INDEX}: damaged: {error}") from error  # whose option it is

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
        if self.packed_from.fits_boxes and height * self.size[1] != width * self.size[0]:
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
    path, entry, count = root / f"{split}-persons.npz", files["annotations"], files["persons"]
    if entry["bytes"] > ANNOTATION_BYTES:
        raise PackError(f"{path}: expected at most {ANNOTATION_BYTES:,} bytes, got {entry['bytes']:,}")
    with open_whole(path, entry["bytes"], entry["crc"]) as file:
        try:
            arrays = read_npz(file, entry["bytes"])
            texts = {name: arrays.pop(name, np.zeros(0)) for name in ("skeleton", "image")}
            truth: Any = arrays.pop("truth", None)
            several = {name: arrays.pop(name) for name in list(arrays) if _OF_SETS.fullmatch(name)}
            if texts["skeleton"].dtype.kind != "U" or texts["skeleton"].ndim:
                raise ValueError("expected the name or the description of a skeleton")
            if texts["image"].dtype.kind != "U" or texts["image"].ndim != 1:
                raise ValueError("expected the names of the images")
            names = texts["image"].tolist()
            if len(names) != count:
                raise PackError(f"{path}: expected {count} persons as in {INDEX}, got {len(names)}")
            if wrong := [name for name in names if name in ("", "..") or "\0" in name or Path(name).name != name]:
                raise PackError(f"{path}: expected names of files without a folder, got {wrong[0]!r}")
            rows: dict[str, Any] = {name: arrays.pop(name, None) for name in ROWS}
            if wrong := [name for name, array in arrays.items() if array.dtype.kind not in "biuf" or not array.ndim]:
                raise ValueError(f"expected numbers for each person, got {wrong[0]!r} of {arrays[wrong[0]].dtype}")
            skeleton = _skeleton(str(texts["skeleton"]))
            truth = _read_truth(truth, skeleton, arrays)
            paths = tuple(root / split / str(row) / name for row, name in enumerate(names))
            persons = Persons(
                image_paths=paths,
                image_index=np.arange(count),
                skeleton=skeleton,
                extras=arrays,
                truth=truth,
                **rows,
            )
            return _with_sets(persons, several) if several else persons
        except PackError:
            raise
        except (ValueError, TypeError, RecursionError) as error:
            raise PackError(f"{path}: damaged: {' '.join(str(error).split())[:300]}") from error


def _skeleton(text: str) -> Skeleton:
    """That of a pack: the fields of `Skeleton` as JSON; of MPII's joints their name."""
    if text == MPII.name:
        return MPII
    fields = json.loads(text)
    pairs, numbers = ("mirror_pairs", "limbs"), ("sigmas", "joint_weights")
    kinds: dict[str, Any] = {"name": str, "joints": [str]} | {key: [[int]] for key in pairs}
    later = {"upper_body": [int]} | {key: [float] for key in numbers}
    kinds |= {name: kind for name, kind in later.items() if isinstance(fields, dict) and name in fields}
    if wrong := misfit(fields, kinds, "skeleton"):
        raise ValueError(wrong)
    return Skeleton(**as_tuples(fields))


def _with_sets(persons: Persons, arrays: dict[str, NDArray[Any]]) -> Persons:
    """The persons with what a pack says of the several data sets that they are from: `sets`, a list as JSON, and in
    `set_index` the place of each person's set in it; of set n, `setN_keypoints`, `setN_visible`, extras and truth.
    Rows, boxes and images are those of the persons."""
    kinds = {"name": str, "weight": float, "joints": {"*": str}, "skeleton": None, "options": None}
    described, index = json.loads(arrays.pop("sets", np.zeros(0)).tobytes()), arrays.pop("set_index", np.zeros(0))
    if not isinstance(described, list) or len(described) > 1000 or not all(isinstance(one, dict) for one in described):
        raise ValueError("sets: expected a list of at most 1000 objects")
    if index.dtype != np.int64 or index.shape != (len(persons),):
        raise ValueError(f"set_index: expected int64 [{len(persons)}], got {index.dtype} {list(index.shape)}")
    parts = []
    for number, one in enumerate(described):
        plain = {name: value for name, value in one.items() if kinds.get(name, str) is not None}
        if wrong := misfit(plain, {name: kind for name, kind in kinds.items() if kind is not None}, f"sets[{number}]"):
            raise ValueError(wrong)
        own, names = _skeleton(json.dumps(one.get("skeleton"))), persons.skeleton.joints
        if other := [(k, j) for k, j in one["joints"].items() if k not in names or j not in own.joints]:
            raise ValueError(f"sets[{number}]: expected joints of both skeletons, got {other[0]}")
        options = one.get("options")
        unknown = options.keys() - _OPTIONS.keys() if isinstance(options, dict) else {repr(options)}
        if unknown:
            raise ValueError(f"sets[{number}].options: expected those of a data set, got {min(unknown)[:40]}")
        begin, rows = f"set{number}_", np.flatnonzero(index == number)
        mine = {name.removeprefix(begin): arrays.pop(name) for name in list(arrays) if name.startswith(begin)}
        points: dict[str, Any] = {name: mine.pop(name, None) for name in ("keypoints", "visible")}
        truth: Any = mine.pop("truth", None)
        if strange := [name for name, array in mine.items() if array.dtype.kind not in "biuf" or not array.ndim]:
            raise ValueError(f"{begin}{strange[0]}: expected numbers for each person, got {mine[strange[0]].dtype}")
        truth = _read_truth(truth, own, mine)
        of_set = dataclasses.replace(persons.select(rows), skeleton=own, extras=mine, truth=truth, **points)
        joints = np.array([own.joints.index(one["joints"][k]) if k in one["joints"] else -1 for k in names], np.int64)
        settings = {name: typed(name, value, _OPTIONS[name]) for name, value in options.items()}
        parts.append(Part(one["name"], float(one["weight"]), joints, of_set, settings))
    if arrays:
        raise ValueError(f"expected sets for all arrays, got {min(arrays)!r}")
    return dataclasses.replace(persons, sets=Sets(index, tuple(parts)))


def _read_truth(stored: NDArray[Any] | None, skeleton: Skeleton, extras: Mapping[str, NDArray[Any]]) -> Any:
    """`Persons.truth` of what a pack has of it; None if that is nothing."""
    if stored is None:
        return None
    truth = json.loads(stored.tobytes())
    _check_truth(truth, skeleton.num_joints, extras)
    return truth


def _check_truth(truth: Any, joints: int, extras: Mapping[str, NDArray[Any]]) -> None:
    """Raises ValueError where `Persons.truth` is not what a score can use. The only form is COCO's, see `CocoTruth`."""
    for name in ("image_id", "box_score"):
        if name not in extras or extras[name].ndim != 1:
            raise ValueError(f"expected {name}, one for each person, as there is a truth")
    kinds = {"box_source": str, "category": None, "image_ids": list, "annotations": list}
    for name, kind in kinds.items():
        if not isinstance(truth, dict) or name not in truth or (kind and type(truth[name]) is not kind):
            raise ValueError(f"truth: expected an object with {', '.join(kinds)}, not so {name}")
    categories, numbers = truth.get("categories", []), truth.get("image_numbers", truth["image_ids"])
    if type(categories) is not list or type(numbers) is not list or len(numbers) != len(truth["image_ids"]):
        raise ValueError("truth: expected lists for categories and image_numbers, these as many as image_ids")
    if wrong := [one for one in [truth["category"], *categories, *truth["image_ids"]] if not _is_key(one)]:
        raise ValueError(f"truth: expected numbers or texts for category and image_ids, got {wrong[0]!r}")
    counts = [truth.get(name, 0) for name in ("no_area", "no_box")]
    if wrong := [one for one in [*numbers, *counts] if type(one) is not int or not -(1 << 63) <= one < 1 << 63]:
        raise ValueError(f"truth: expected whole numbers for image_numbers, no_area and no_box, got {wrong[0]!r}")
    crowded = truth.get("crowd_index", numbers)
    if type(crowded) is not list or len(crowded) != len(numbers) or not all(map(_is_number, crowded)):
        raise ValueError("truth: expected numbers for crowd_index, as many as image_ids")
    for n, one in enumerate(truth["annotations"]):
        for name, count in (("bbox", 4), ("keypoints", 3 * joints)):
            values = one.get(name) if isinstance(one, dict) else None
            if not isinstance(values, list) or len(values) != count or not all(map(_is_number, values)):
                raise ValueError(f"truth: annotation {n}: expected {count} numbers for {name}")
        for name in ("image_id", "category_id"):
            if not _is_key(one.get(name)):
                raise ValueError(
                    f"truth: annotation {n}: expected a number or a text for {name}, got {one.get(name)!r}"
                )
        for name in ("area", "iscrowd", "num_keypoints"):
            if not _is_number(one.get(name)):
                raise ValueError(f"truth: annotation {n}: expected a number for {name}, got {one.get(name)!r}")
        if isinstance(one.get("id"), (list, dict)):
            raise ValueError(f"truth: annotation {n}: expected a number or a text for id, got {one['id']!r}")
        if one["category_id"] not in (categories or [truth["category"]]):
            raise ValueError(f"truth: annotation {n}: expected one of its categories, got {one['category_id']!r}")
    if other := set(extras["image_id"].tolist()) - set(numbers):
        raise ValueError(f"truth: expected all persons' image_id among its images, not so {min(other)}")
    if categories:
        places = extras.get("category", np.array(-1))
        whole = places.dtype.kind in "iu" and places.ndim == 1
        if not whole or not ((places >= 0) & (places < len(categories))).all():
            raise ValueError("truth: expected category, each person's place in its categories, as whole numbers")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and abs(value) < 1e300  # which NaN is not, nor what is too large for float


def _is_key(value: Any) -> bool:
    return isinstance(value, str) or (type(value) in (int, float) and value == value)
