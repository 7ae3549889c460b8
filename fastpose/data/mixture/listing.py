# SPDX-License-Identifier: Apache-2.0
"""The YAML file that lists several data sets: which they are, how often each is drawn, and whose joint is which."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
from numpy.typing import NDArray

from fastpose.data.annotation_rows import AnnotationError
from fastpose.data.dataset import DATA_FILES, DataOptions
from fastpose.data.persons import MEAN, MOST_WEIGHT
from fastpose.files import check_is_file, read_yaml
from fastpose.option import OptionError, typed
from fastpose.skeletons import SKELETONS, Skeleton, find_skeleton, is_name

_OWN = ("name", "weight", "joints")
_DRAWN = ("synthetic_persons", "synthetic_seed")
_OF_ALL = ("exif", "sixteen_bits", "max_image_pixels")  # a run reads all images in one way, which its config has
TYPES = {name: kind for name, kind in get_type_hints(DataOptions).items() if name not in (*_DRAWN, *_OF_ALL)}
# What is said of a set in the list alone. What else options say of data holds for each set that does not say it.
OF_A_SET = (*(name for name in DATA_FILES if name != "dataset"), "skeleton", "score", "category", "synthetic_persons")


@dataclass(frozen=True)
class Entry:
    """A set of the list.

    Attributes:
        name: what the user calls it.
        weight: how often each of its persons is drawn in an epoch of training, on average.
        joints: the lines of its joint map: the network's joint, and the set's or None.
        data: its options; files that it does not name are empty.
        said: those of them that the list says, as plain values; the others are what holds for all sets.
    """

    name: str
    weight: float
    joints: Mapping[str, str | None]
    data: DataOptions
    said: Mapping[str, Any]


def is_mixture(dataset: object) -> bool:
    """Whether a value of option `dataset` is a list of several sets, a YAML file; what is not text is not."""
    return isinstance(dataset, str) and dataset.lower().endswith((".yaml", ".yml"))


@contextmanager
def naming_set(file: Path, name: str) -> Iterator[None]:
    """Puts the file and the set before the message of an error about a set."""
    where = f"{file}: set {name!r}"
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{where}: {error}") from error
    except ValueError as error:
        raise AnnotationError(f"{where}: {error}") from error


def read_listing(file: Path, data: DataOptions) -> tuple[Skeleton, list[Entry]]:
    """The joints that a network is to find, and the sets of the list.

    Args:
        file: a YAML file with `skeleton`, a name or a file, and `sets`, a list of objects with `name`, `dataset`,
            `data_root`, maybe `weight` and `joints`, and other options of a data set. Files of skeletons are relative
            to its folder.
        data: the options beside the list: `data_root` is what the sets' are relative to, and what is not in OF_A_SET
            holds for each set that does not say it; how images are read holds for all.

    Raises:
        FileNotFoundError: there is no such file; names the option and the path.
        OSError, ValueError: see read_yaml and read_skeleton.
        AnnotationError: a key or value is not what it should be; names file, set, expected and got.
    """
    check_is_file("dataset", file)
    contents = read_yaml(file)
    keys = ("skeleton", "sets")
    if not isinstance(contents, dict) or set(contents) != set(keys):
        got = ", ".join(contents) if isinstance(contents, dict) else type(contents).__name__
        raise AnnotationError(f"{file}: expected just the keys {' and '.join(keys)}, got {got[:80] or 'none'}")
    if not isinstance(contents["skeleton"], str):
        raise AnnotationError(f"{file}: skeleton: expected a name or a file, got {str(contents['skeleton'])[:40]!r}")
    try:
        skeleton = find_skeleton(_skeleton_file(contents["skeleton"], file))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{file}: {error}") from error
    if not isinstance(contents["sets"], list) or not contents["sets"]:
        raise AnnotationError(f"{file}: sets: expected a list of data sets, got {str(contents['sets'])[:40]!r}")
    entries: list[Entry] = []
    for number, one in enumerate(contents["sets"]):
        entry = _read_entry(one, number, file, data)
        # On some systems the folders of their predictions would be one.
        if other := next((known.name for known in entries if known.name.lower() == entry.name.lower()), None):
            raise AnnotationError(
                f"{file}: set {number}: name: expected another than set {other!r}, got {entry.name!r}"
            )
        entries.append(entry)
    return skeleton, entries


def _skeleton_file(name: str, file: Path) -> str:
    return name if name in SKELETONS else str(file.parent / Path(name).expanduser())


def _read_entry(one: Any, number: int, file: Path, data: DataOptions) -> Entry:
    where = f"{file}: set {number}"
    if not isinstance(one, dict):
        raise AnnotationError(f"{where}: expected name, dataset, data_root and other lines, got {str(one)[:40]!r}")
    name = one.get("name")
    if not isinstance(name, str) or not is_name(name) or name == MEAN:
        raise AnnotationError(
            f"{where}: name: expected a name that can be a folder's, not {MEAN}, got {str(name)[:40]!r}"
        )
    with naming_set(file, name):
        if missing := [key for key in ("dataset", "data_root") if key not in one]:
            raise OptionError(missing[0], "expected a value, got none")
        if of_all := [key for key in one if key in _OF_ALL]:
            raise OptionError(of_all[0], "expected it beside the list, as all images are read in one way, got it here")
        if unknown := [key for key in one if key not in (*_OWN, *TYPES)]:
            raise ValueError(f"there is no option {unknown[0][:40]!r} of a data set")
        weight, joints = typed("weight", one.get("weight", 1.0), float), one.get("joints", {})
        if not (math.isfinite(weight) and 0.0 < weight <= MOST_WEIGHT):
            raise OptionError("weight", f"expected a number above 0 and at most {MOST_WEIGHT:g}, got {weight:g}")
        if not isinstance(joints, dict) or not all(isinstance(own, str | None) for own in joints.values()):
            raise OptionError("joints", f"expected lines of NETWORK'S JOINT: THE SET'S, got {str(joints)[:60]!r}")
        values = {key: typed(key, value, TYPES[key]) for key, value in one.items() if key in TYPES}
        root = Path(data.data_root) / Path(values["data_root"]).expanduser()
        values["data_root"] = str(root.resolve())
        if values.get("skeleton"):
            values["skeleton"] = _skeleton_file(values["skeleton"], file)
        return Entry(name, weight, joints, dataclasses.replace(data, **values), values)


def joints_in_set(network: Skeleton, of_set: Skeleton, lines: Mapping[str, str | None]) -> NDArray[np.int64]:
    """For each of the network's joints the set's own one, -1 where the set has none: int64 [K].

    Joints of the same name are the same. A line says otherwise: the network's joint is another of the set's or, with
    None, none of them.

    Raises:
        OptionError: a joint is not known, two of the network's joints are one of the set's, or none is any.
    """
    for joint, own in lines.items():
        if joint not in network.joints:
            raise OptionError(
                "joints",
                f"expected joints of the network, skeleton {network.name!r} ({', '.join(network.joints)}), got "
                f"{joint[:40]!r}",
            )
        if own is not None and own not in of_set.joints:
            raise OptionError(
                "joints",
                f"{joint}: expected a joint of the set, skeleton {of_set.name!r} ({', '.join(of_set.joints)}), got "
                f"{own[:40]!r}",
            )
    found = np.full(network.num_joints, -1, np.int64)
    taken: dict[str, str] = {}
    for place, joint in enumerate(network.joints):
        own = lines.get(joint, joint if joint in of_set.joints else None)
        if own is None:
            continue
        if own in taken:
            also = f"expected the set's {own} once, got it for {taken[own]} and for {joint}"
            without = next((one for one in (joint, taken[own]) if one not in lines), None)
            raise OptionError("joints", also + (f", by its name: add a line {without}: null" if without else ""))
        taken[own] = joint
        found[place] = of_set.joints.index(own)
    if not taken:
        raise OptionError(
            "joints",
            f"expected at least one joint in common, got none of skeletons {network.name!r} and {of_set.name!r}: add "
            "lines NETWORK'S JOINT: THE SET'S",
        )
    return found
