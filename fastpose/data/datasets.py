# SPDX-License-Identifier: Apache-2.0
"""All data sets: a line here makes one of them known."""

from __future__ import annotations

from pathlib import Path

from fastpose.data.coco import Aic, Coco, CrowdPose, Halpe26, Halpe136, HumanArt, WholeBody
from fastpose.data.dataset import DataOptions, Dataset
from fastpose.data.formats import FORMATS
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


def dataset_named(name: str) -> type[Dataset]:
    """The data set of option `dataset`; OptionError if the name is unknown."""
    if name not in DATASETS:
        raise OptionError("dataset", f"expected one of {', '.join(DATASETS)}, got {name!r}")
    return DATASETS[name]


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
    if packed and data.dataset not in DATASETS:
        raise PackError(f"{Path(data.data_root) / INDEX}: damaged: it is of a data set {data.dataset!r}")
    kind = dataset_named(data.dataset)
    if packed:
        return Pack(data, size, skeleton, kind)
    if data.synthetic_persons:
        return Synthetic(data, size, skeleton)
    return kind(data, size, skeleton)
