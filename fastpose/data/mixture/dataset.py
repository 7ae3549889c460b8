# SPDX-License-Identifier: Apache-2.0
"""Several data sets as one: each is read in its own joints and then given those of the network."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from fastpose.data.dataset import LAYOUT, CocoForm, DataOptions, Dataset, Split
from fastpose.data.mixture.listing import OF_A_SET, Entry, joints_in_set, naming_set, read_listing
from fastpose.data.mixture.score import MixtureScorer
from fastpose.data.persons import Part, Persons, Sets
from fastpose.ending import print_log
from fastpose.files import some_of
from fastpose.option import OptionError
from fastpose.skeletons import COCO, Skeleton

_NOTHING_SAID = DataOptions()
SHOWN = 6  # joints that a set does not have, by name


class OpenSet(Protocol):
    """Opens one data set."""

    def __call__(self, data: DataOptions, size: tuple[int, int], skeleton: Skeleton | None = None) -> Dataset: ...


class Mixture:
    """The data sets of a list, a YAML file that option `dataset` names. See `fastpose.data.dataset.Dataset`.

    Args:
        open_set: what opens one of them.
        data: the file, and what holds for all of its sets; see `read_listing`. From a pack the file is not read.
        size: (h, w) of the network's input.
        skeleton: the joints of the network to evaluate, which must be those of the list; None: these.
    """

    layout: ClassVar[Mapping[str, str]] = dict.fromkeys(LAYOUT, "")
    joints: ClassVar[str] = COCO.name
    any_joints: ClassVar[bool] = True
    input_size: ClassVar[tuple[int, int]] = (256, 192)
    fits_boxes: ClassVar[bool] = True

    def __init__(
        self, open_set: OpenSet, data: DataOptions, size: tuple[int, int], skeleton: Skeleton | None = None
    ) -> None:
        self.open_set, self.data, self.size, self._wanted = open_set, data, size, skeleton
        self.file = Path(data.dataset)
        for name in OF_A_SET:
            if (value := getattr(data, name)) != getattr(_NOTHING_SAID, name):
                raise OptionError(name, f"expected it in {self.file}, with the set that it is for, got {value!r}")

    @functools.cached_property
    def _listing(self) -> tuple[Skeleton, list[Entry]]:
        skeleton, entries = read_listing(self.file, self.data)
        wanted = self._wanted
        if wanted is not None and wanted.joints != skeleton.joints:
            raise OptionError(
                "dataset",
                f"{self.file} is for joints of {skeleton.name!r} ({', '.join(skeleton.joints)}), the network has those "
                f"of {wanted.name!r} ({', '.join(wanted.joints)})",
            )
        return wanted or skeleton, entries

    @property
    def skeleton(self) -> Skeleton:
        return self._listing[0]

    def read(self, split: Split) -> Persons:
        """The persons of all sets, one set after the other, in the network's joints. Prints how many each has."""
        skeleton, entries = self._listing
        opened = []
        for entry in entries:  # what is wrong with a later one is said before the first is read
            with naming_set(self.file, entry.name):
                dataset = self.open_set(entry.data, self.size)
                opened.append((entry, dataset, joints_in_set(skeleton, dataset.skeleton, entry.joints)))
        parts = []
        for entry, dataset, joints in opened:
            with naming_set(self.file, entry.name):
                persons = dataset.read(split)
                part = Part(entry.name, entry.weight, joints, persons, _options_of(entry.said))
                if split == "train" and not part.count:
                    raise OptionError("weight", f"{entry.weight:g} of {len(persons)} persons are none: raise it")
            self._print(part, split, skeleton)
            parts.append(part)
        return mixed(parts, skeleton)

    def scorer(self, persons: Persons) -> MixtureScorer:
        """The scores of the sets, each by its own room. Nothing of it is read from files."""
        if persons.sets is None:
            raise OptionError("dataset", f"expected persons of the sets of {self.file}, got those of one data set")
        scorers = []
        for part in persons.sets.parts:
            with naming_set(self.file, part.name):
                own = part.persons
                data = dataclasses.replace(self.data, **{"data_root": "", **part.options})
                dataset = self.open_set(data, self.size, own.skeleton)
                scored = np.isin(np.arange(own.skeleton.num_joints), part.joints)
                if not scored.all():
                    own = dataclasses.replace(own, scored=scored)
                scorers.append(dataset.scorer(own))
        return MixtureScorer(persons.sets, scorers)

    def as_coco(self, split: Split) -> CocoForm:
        raise OptionError("dataset", f"{self.file} lists several sets: convert each of them")

    def _print(self, part: Part, split: Split, skeleton: Skeleton) -> None:
        lacks = [joint for joint, own in zip(skeleton.joints, part.joints, strict=True) if own < 0]
        without = f", without {some_of(lacks, SHOWN)}" if lacks else ""
        drawn = f", {part.count} an epoch" if split == "train" and part.count != len(part.persons) else ""
        known = f"{skeleton.num_joints - len(lacks)} of {skeleton.num_joints} joints{without}"
        print_log(f"{part.name}: {len(part.persons)} persons ({split}){drawn}, {known}")


def _options_of(said: Mapping[str, Any]) -> dict[str, Any]:
    """What a score may read of what the list says of a set: not where it is, nor its joints, which its persons have."""
    return {name: value for name, value in said.items() if name not in ("data_root", "skeleton")}


def mixed(parts: Sequence[Part], skeleton: Skeleton) -> Persons:
    """The persons of all sets, one set after the other, with the joints of `skeleton`.

    A joint that a set does not have is not visible, and, as `Sets.supervised` says, not supervised either.
    """
    places: dict[Path, int] = {}
    image_index, keypoints, visible = [], [], []
    for part in parts:
        persons, has = part.persons, part.joints >= 0
        own = np.array([places.setdefault(path, len(places)) for path in persons.image_paths], np.int64)
        image_index.append(own[persons.image_index])
        keypoints.append(np.where(has[:, None], persons.keypoints[:, part.joints], np.float32(0)))
        visible.append(np.where(has, persons.visible[:, part.joints], np.float32(0)))
    own_rows = [part.persons for part in parts]
    return Persons(
        image_paths=tuple(places),
        image_index=np.concatenate(image_index),
        center=np.concatenate([persons.center for persons in own_rows]),
        scale=np.concatenate([persons.scale for persons in own_rows]),
        keypoints=np.concatenate(keypoints),
        visible=np.concatenate(visible),
        source_row=np.concatenate([persons.source_row for persons in own_rows]),
        skeleton=skeleton,
        reading=own_rows[0].reading,
        sets=Sets(np.repeat(np.arange(len(parts)), [len(persons) for persons in own_rows]), tuple(parts)),
    )
