# SPDX-License-Identifier: Apache-2.0
"""All annotated persons of a data set as one struct of arrays."""

from __future__ import annotations

import dataclasses
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastpose.data.reading import AS_STORED, Reading
from fastpose.skeletons import Skeleton, is_name

MOST_WEIGHT = 1000.0  # times that a person of one of several data sets is drawn in an epoch
MEAN = "Mean"  # what the scores of several data sets have beside those of each, whose names it cannot be


class Origin(NamedTuple):
    """How messages name a person.

    Attributes:
        row: the person's `Persons.source_row`.
        record: what the file of annotations has of the person, as its reader names it.
        image: the image's name, relative to `folder`; its path if it is not below that.
        folder: the folder of the images; empty for a pack's, which has none.
        of_set: the name of the set, of several data sets; else empty.
    """

    row: int
    record: str
    image: str
    folder: str
    of_set: str = ""

    @property
    def set_and_record(self) -> str:
        """The record and, of several data sets, its set."""
        return f"set {self.of_set}, {self.record}" if self.of_set else self.record


@dataclass(frozen=True, eq=False)
class Persons:
    """N annotated persons with J joints on M distinct images.

    Points are (x, y) in image pixels, 0-based, with pixel centres at integers.

    Attributes:
        image_paths: M absolute paths.
        image_index: int64 [N], which of ``image_paths`` shows the person.
        center: float32 [N, 2], middle of the person's box.
        scale: float32 [N, 2], positive; ``scale * 200`` px is the box's (w, h).
        keypoints: float32 [N, J, 2]. A joint that is not annotated has some finite place without meaning.
        visible: float32 [N, J], 1 where the joint is annotated (occluded or not), else 0.
        source_row: int64 [N], the person's row in the annotation file, or in the detector's where that has the boxes.
        skeleton: names and order of the joints.
        extras: what the data set's score needs of each person beside that, by name: arrays [N, ...], such as MPII's
            `head_size`. Its room says what they are.
        truth: what the data set's score compares with beside the rows, as plain values of its room's own form; None
            where the rows are enough.
        reading: how the image files become the pixels that these points are in.
        sets: which of several data sets they are from; None: there is one.
        scored: bool [J], the joints that a score compares; None: all.
        records: how the reader of the annotations names each person's record in messages, [N]; empty: by its row.
        folder: the folder of the images; empty: there is none.

    Raises:
        ValueError: an array has another shape or dtype, is not finite or is out of its range.
    """

    image_paths: tuple[Path, ...]
    image_index: np.ndarray
    center: np.ndarray
    scale: np.ndarray
    keypoints: np.ndarray
    visible: np.ndarray
    source_row: np.ndarray
    skeleton: Skeleton
    extras: Mapping[str, np.ndarray] = field(default_factory=dict)
    truth: Mapping[str, Any] | None = None
    reading: Reading = AS_STORED
    sets: Sets | None = None
    scored: np.ndarray | None = None
    records: tuple[str, ...] = ()
    folder: str = ""

    def __post_init__(self) -> None:
        n, joints = len(self), self.skeleton.num_joints
        _check_array("image_index", self.image_index, np.int64, (n,))
        _check_array("center", self.center, np.float32, (n, 2))
        _check_array("scale", self.scale, np.float32, (n, 2))
        _check_array("keypoints", self.keypoints, np.float32, (n, joints, 2))
        _check_array("visible", self.visible, np.float32, (n, joints))
        _check_array("source_row", self.source_row, np.int64, (n,))
        known = (self.image_index >= 0) & (self.image_index < len(self.image_paths))
        _check_row("image_index", known, "in range")
        _check_row("scale", np.all(self.scale > 0, axis=1), "positive")
        _check_row("visible", ((self.visible == 0) | (self.visible == 1)).all(axis=1), "0 or 1")
        for name, array in self.extras.items():
            if len(array) != n:
                raise ValueError(f"{name} must have one entry for each of the {n} persons, got {len(array)}")
            _check_row(name, np.isfinite(array).all(axis=tuple(range(1, array.ndim))), "finite")
        if self.records and len(self.records) != n:
            raise ValueError(f"records must have one name for each of the {n} persons, got {len(self.records)}")
        if self.sets is not None:
            self.sets.check(n, joints)

    def __len__(self) -> int:
        return len(self.image_index)

    @property
    def compared(self) -> np.ndarray:
        """float32 [N, J], 1 where a score compares the joint: it is annotated and, as `scored` says, not left out."""
        return self.visible if self.scored is None else self.visible * self.scored.astype(np.float32)

    def select(self, rows: Sequence[int] | np.ndarray) -> Persons:
        """The persons of ``rows`` (indices or a bool mask [N]), in that order, with the images they are on."""
        picked = np.arange(len(self))[np.asarray(rows, dtype=None if len(rows) else np.int64)]
        used, image_index = np.unique(self.image_index[picked], return_inverse=True)
        return dataclasses.replace(
            self,
            image_paths=tuple(self.image_paths[i] for i in used),
            image_index=image_index.astype(np.int64),
            center=self.center[picked],
            scale=self.scale[picked],
            keypoints=self.keypoints[picked],
            visible=self.visible[picked],
            source_row=self.source_row[picked],
            extras={name: array[picked] for name, array in self.extras.items()},
            sets=None if self.sets is None else self.sets.select(picked),
            records=tuple(self.records[row] for row in picked) if self.records else (),
        )

    def origins(self, rows: Sequence[int] | np.ndarray) -> list[Origin]:
        """How messages name the persons of ``rows``."""
        if self.sets is not None:
            places = self.sets.places()
            of = [(self.sets.parts[self.sets.index[row]], int(places[row])) for row in rows]
            return [part.persons.origins([place])[0]._replace(of_set=part.name) for part, place in of]
        return [
            Origin(
                int(self.source_row[row]),
                self.records[row] if self.records else f"row {self.source_row[row]} of the annotations",
                self._image_name(self.image_paths[self.image_index[row]]),
                self.folder,
            )
            for row in rows
        ]

    def origin_of_image(self, image: int) -> Origin:
        """How messages name the first person on an image, which has one."""
        return self.origins([int(np.argmax(self.image_index == image))])[0]

    def _image_name(self, path: Path) -> str:
        folder, name = os.path.join(self.folder, ""), str(path)
        return path.name if not self.folder else name.removeprefix(folder)

    def fingerprint(self) -> str:
        """What distinguishes these annotations from others: the number of persons and a checksum."""
        names = "\n".join(path.name for path in self.image_paths).encode()
        arrays = (self.image_index, self.center, self.scale, self.keypoints, self.visible)
        read = ", upright" * self.reading.upright + ", 16 bits stretched" * self.reading.stretch
        checksum = zlib.crc32(b"".join([names, *(a.tobytes() for a in arrays)]))
        of_sets = "" if self.sets is None else f", of {self.sets.fingerprint()}"
        return f"{len(self)} persons{read}, checksum {checksum:08x}{of_sets}"


@dataclass(frozen=True, eq=False)
class Part:
    """The persons of one of several data sets.

    Attributes:
        name: what the user calls the set.
        weight: how often each of its persons is drawn in an epoch of training, on average.
        joints: int64 [J], for each joint of the mixed persons the set's own one, -1 where the set has none.
        persons: as the set's own room read them, in its own joints.
        options: what the list of sets says of this one's options, as plain values; a score reads them.
    """

    name: str
    weight: float
    joints: np.ndarray
    persons: Persons
    options: Mapping[str, Any]

    @property
    def count(self) -> int:
        """How many of its persons an epoch of training has."""
        return round(self.weight * len(self.persons))


@dataclass(frozen=True, eq=False)
class Sets:
    """Which of several data sets N persons are from.

    Attributes:
        index: int64 [N], the place of each person's set in `parts`.
        parts: the sets. Their persons are those of `index`, in the same order.
    """

    index: np.ndarray
    parts: tuple[Part, ...]

    def check(self, count: int, joints: int) -> None:
        """Raises ValueError unless the sets are those of so many persons with so many joints; a pack may say anything.
        Names become those of folders, which on some systems are one if they differ in case alone."""
        names = [part.name for part in self.parts]
        if len({name.lower() for name in names}) < len(names) or not all(is_name(n) and n != MEAN for n in names):
            raise ValueError(
                f"names of sets must be different ones other than {MEAN}, got {', '.join(map(repr, names))}"
            )
        _check_array("set_index", self.index, np.int64, (count,))
        _check_row("set_index", (self.index >= 0) & (self.index < len(self.parts)), "in range")
        for number, part in enumerate(self.parts):
            if (found := int((self.index == number).sum())) != len(part.persons):
                raise ValueError(f"set {part.name!r} must have {found} persons, got {len(part.persons)}")
            if not 0.0 < part.weight <= MOST_WEIGHT:
                raise ValueError(f"set {part.name!r}: weight must be above 0 and at most {MOST_WEIGHT:g}")
            _check_array("joints", part.joints, np.int64, (joints,))
            if not ((part.joints >= -1) & (part.joints < part.persons.skeleton.num_joints)).all():
                raise ValueError(f"set {part.name!r}: joints must be in range")

    @property
    def supervised(self) -> np.ndarray | None:
        """float32 [N, J], 0 where a person's set does not have the joint; None if all sets have all of them."""
        has = np.stack([part.joints >= 0 for part in self.parts])
        return None if has.all() else has[self.index].astype(np.float32)

    @property
    def weighted(self) -> bool:
        """Whether an epoch of training has other persons than each of them once."""
        return any(part.count != len(part.persons) for part in self.parts)

    def places(self) -> np.ndarray:
        """The place of each person among those of its set, int64 [N]."""
        places = np.zeros(len(self.index), np.int64)
        for number, part in enumerate(self.parts):
            places[self.index == number] = np.arange(len(part.persons))
        return places

    def select(self, rows: np.ndarray) -> Sets:
        """The sets of the persons `rows`, int64; see `Persons.select`."""
        place, index = self.places(), self.index[rows]
        parts = [
            dataclasses.replace(part, persons=part.persons.select(place[rows][index == number]))
            for number, part in enumerate(self.parts)
        ]
        return Sets(index, tuple(parts))

    def fingerprint(self) -> str:
        """What distinguishes the sets from others, beside the persons in them."""
        return ", ".join(
            f"{part.name} ({len(part.persons)} x {part.weight:g}, joints {zlib.crc32(part.joints.tobytes()):08x})"
            for part in self.parts
        )


def _check_array(name: str, array: np.ndarray, dtype: type[np.generic], shape: tuple[int, ...]) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape != shape:
        got = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise ValueError(f"{name} must be a {np.dtype(dtype)} array of shape {shape}, got {got}")
    finite = np.isfinite(array).all(axis=tuple(range(1, array.ndim)))
    _check_row(name, finite, "finite")


def _check_row(name: str, good: np.ndarray, expected: str) -> None:
    if not good.all():
        raise ValueError(f"{name} must be {expected}, it is not for person {int(np.argmin(good))}")
