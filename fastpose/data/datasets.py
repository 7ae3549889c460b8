# SPDX-License-Identifier: Apache-2.0
"""All data sets: a line here makes one of them known."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastpose.data.coco import Aic, Coco, CrowdPose, Halpe26, Halpe136, HumanArt, WholeBody
from fastpose.data.dataset import DataOptions, Dataset, named_files
from fastpose.data.formats import FORMATS
from fastpose.data.mixture import Mixture, is_mixture
from fastpose.data.mpii import Mpii
from fastpose.data.pack.dataset import Pack
from fastpose.data.pack.format import INDEX, PackError, is_pack
from fastpose.data.synthetic import Synthetic
from fastpose.option import OptionError
from fastpose.skeletons import Skeleton, find_skeleton

DATASETS: dict[str, type[Dataset]] = {
    "mpii": Mpii,
    "coco": Coco,
    "wholebody": WholeBody,
    "crowdpose": CrowdPose,
    "aic": Aic,
    "human_art": HumanArt,
    "halpe26": Halpe26,
    "halpe136": Halpe136,
    **FORMATS,
}


def dataset_named(name: str) -> type[Dataset] | type[Mixture]:
    """The data set of option `dataset`, or what all lists of several sets have in common if it is a YAML file;
    OptionError if the name is unknown."""
    if is_mixture(name):
        return Mixture
    if name not in DATASETS:
        raise OptionError(
            "dataset", f"expected one of {', '.join(DATASETS)}, got {name!r}; a list of sets is a .yaml file"
        )
    return DATASETS[name]


def open_set(data: DataOptions, size: tuple[int, int], skeleton: Skeleton | None = None) -> Dataset:
    """One data set of several; the files that its options do not name get the names of its layout.

    Raises:
        OptionError: see Dataset; or it is a list of sets itself, or a pack.
    """
    if data.dataset not in DATASETS:
        raise OptionError("dataset", f"expected one of {', '.join(DATASETS)}, got {data.dataset!r}")
    if data.data_root and is_pack(Path(data.data_root)):
        raise OptionError("data_root", f"{data.data_root} is a pack: name the files, and pack all sets together")
    kind = DATASETS[data.dataset]
    files: dict[str, Any] = dict(named_files(dataclasses.asdict(data), kind.layout))
    return kind(dataclasses.replace(data, **files), size, skeleton)


def _maker(name: str) -> Callable[..., Dataset]:
    """What makes the data set of option `dataset` from options, size and joints."""
    if is_mixture(name):
        return functools.partial(Mixture, open_set)
    dataset_named(name)
    return DATASETS[name]


def joints_of(data: DataOptions, size: tuple[int, int]) -> Skeleton:
    """The joints that the options name, or else of their data set; errors as from `open_dataset`. A list of several
    sets is read only for its own joints."""
    if is_mixture(data.dataset):
        return find_skeleton(data.skeleton) if data.skeleton else open_dataset(data, size).skeleton
    return _maker(data.dataset)(data, size).skeleton


def dataset_with_joints(count: int | None, *, named: bool) -> str:
    """The name of the data set for a network with so many joints: the first one that has as many. If there are others
    with as many, which have them in another order, it is one for any joints, and somebody must name them.

    Args:
        count: the number; None: not known.
        named: whether a file names the joints.
    """
    if count is None and not named:
        return next(iter(DATASETS))
    joints = {name: find_skeleton(kind.joints).joints for name, kind in DATASETS.items() if not named}
    fits = [name for name, names in joints.items() if len(names) == count]
    if fits and all(joints[name] == joints[fits[0]] for name in fits):
        return fits[0]
    return next(name for name, kind in DATASETS.items() if kind.any_joints)


def open_dataset(data: DataOptions, size: tuple[int, int], skeleton: Skeleton | None = None) -> Dataset | Pack:
    """The data set that the options name, or the pack in the data root. Nothing is read yet.

    Args:
        data: settled options.
        size: (h, w) of the network's input.
        skeleton: the joints of the network to evaluate; None: the data set's own, or those that the options name.

    Raises:
        OptionError: see Dataset.
        PackError: the pack is of a data set that is not known.
    """
    packed = is_pack(Path(data.data_root))
    if packed and data.dataset not in DATASETS and not is_mixture(data.dataset):
        raise PackError(f"{Path(data.data_root) / INDEX}: damaged: it is of a data set {data.dataset!r}")
    make = _maker(data.dataset)
    if packed:
        return Pack(data, size, skeleton, make)
    if data.synthetic_persons and not is_mixture(data.dataset):
        return Synthetic(data, size, skeleton)
    return make(data, size, skeleton)
