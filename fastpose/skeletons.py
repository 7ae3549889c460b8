# SPDX-License-Identifier: Apache-2.0
"""Skeletons: which joints a data set annotates, in which order, and how they belong together."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from fastpose.files import read_yaml


@dataclass(frozen=True)
class Skeleton:
    """The joints of a data set.

    Attributes:
        name: the data set's name, for messages and checkpoints.
        joints: J unique joint names; their order is the order of every ``[..., J, 2]`` array.
        mirror_pairs: disjoint index pairs (right, left) that swap when an image is mirrored.
        limbs: index pairs that are joined by a line in drawings.
        sigmas: per joint, how far apart people annotate it, in units of the square root of the person's area: what
            COCO's similarity of poses (OKS) divides distances by. Empty: not known, and then there is no AP.
        joint_weights: per joint, its weight in the loss where option `joint_weights` is on. Empty becomes all ones.
        upper_body: the joints above the hips, for half-body augmentation. Empty: not known.

    Raises:
        ValueError: a name occurs twice, an index is out of range, a joint is in two mirror pairs, or there is not one
            positive number per joint.
    """

    name: str
    joints: tuple[str, ...]
    mirror_pairs: tuple[tuple[int, int], ...]
    limbs: tuple[tuple[int, int], ...]
    sigmas: tuple[float, ...] = ()
    joint_weights: tuple[float, ...] = ()
    upper_body: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.joints or not all(self.joints) or len(set(self.joints)) != len(self.joints):
            raise ValueError(f"skeleton {self.name!r}: joints must be unique names, got {self.joints}")
        for field, pairs in (("mirror_pairs", self.mirror_pairs), ("limbs", self.limbs)):
            for pair in pairs:
                if len(pair) != 2 or pair[0] == pair[1] or not all(0 <= j < self.num_joints for j in pair):
                    raise ValueError(
                        f"skeleton {self.name!r}: {field} must hold pairs of different indices "
                        f"below {self.num_joints}, got {pair}"
                    )
        mirrored = [joint for pair in self.mirror_pairs for joint in pair]
        if len(set(mirrored)) != len(mirrored):
            raise ValueError(f"skeleton {self.name!r}: a joint is in two mirror_pairs: {self.mirror_pairs}")
        if not self.joint_weights:
            object.__setattr__(self, "joint_weights", (1.0,) * self.num_joints)
        for field, numbers in (("sigmas", self.sigmas), ("joint_weights", self.joint_weights)):
            if numbers and not (len(numbers) == self.num_joints and all(0.0 < n < float("inf") for n in numbers)):
                raise ValueError(
                    f"skeleton {self.name!r}: {field} must be one positive number for each of the {self.num_joints} "
                    f"joints, got {numbers}"
                )
        if not set(self.upper_body) <= set(range(self.num_joints)) or len(set(self.upper_body)) < len(self.upper_body):
            raise ValueError(
                f"skeleton {self.name!r}: upper_body must hold different indices below {self.num_joints}, "
                f"got {self.upper_body}"
            )

    @property
    def num_joints(self) -> int:
        return len(self.joints)


MPII = Skeleton(
    name="mpii",
    joints=(
        "r_ankle",
        "r_knee",
        "r_hip",
        "l_hip",
        "l_knee",
        "l_ankle",
        "pelvis",
        "thorax",
        "upper_neck",
        "head_top",
        "r_wrist",
        "r_elbow",
        "r_shoulder",
        "l_shoulder",
        "l_elbow",
        "l_wrist",
    ),
    mirror_pairs=((0, 5), (1, 4), (2, 3), (10, 15), (11, 14), (12, 13)),
    limbs=(
        (0, 1),
        (1, 2),
        (2, 6),
        (6, 3),
        (3, 4),
        (4, 5),
        (6, 7),
        (7, 8),
        (8, 9),
        (10, 11),
        (11, 12),
        (12, 7),
        (7, 13),
        (13, 14),
        (14, 15),
    ),
    upper_body=(7, 8, 9, 10, 11, 12, 13, 14, 15),
)

# Names, limbs and sigmas: COCO's annotation files and its evaluation (pycocotools). Weights and upper body: HRNet.
COCO = Skeleton(
    name="coco",
    joints=(
        "nose",
        "left_eye",
        "right_eye",
        "left_ear",
        "right_ear",
        "left_shoulder",
        "right_shoulder",
        "left_elbow",
        "right_elbow",
        "left_wrist",
        "right_wrist",
        "left_hip",
        "right_hip",
        "left_knee",
        "right_knee",
        "left_ankle",
        "right_ankle",
    ),
    mirror_pairs=((2, 1), (4, 3), (6, 5), (8, 7), (10, 9), (12, 11), (14, 13), (16, 15)),
    limbs=(
        (15, 13),
        (13, 11),
        (16, 14),
        (14, 12),
        (11, 12),
        (5, 11),
        (6, 12),
        (5, 6),
        (5, 7),
        (6, 8),
        (7, 9),
        (8, 10),
        (1, 2),
        (0, 1),
        (0, 2),
        (1, 3),
        (2, 4),
        (3, 5),
        (4, 6),
    ),
    sigmas=(
        *(0.026, 0.025, 0.025, 0.035, 0.035),
        *(0.079, 0.079, 0.072, 0.072, 0.062, 0.062),
        *(0.107, 0.107, 0.087, 0.087, 0.089, 0.089),
    ),
    joint_weights=(
        *(1.0, 1.0, 1.0, 1.0, 1.0),
        *(1.0, 1.0, 1.2, 1.2, 1.5, 1.5),
        *(1.0, 1.0, 1.2, 1.2, 1.5, 1.5),
    ),
    upper_body=(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10),
)


def read_skeleton(path: str | PathLike[str]) -> Skeleton:
    """Reads a skeleton from a YAML file whose keys are the fields of `Skeleton`.

    ``joints`` is needed; ``name`` is the file's own by default. In ``mirror_pairs``, ``limbs`` and
    ``upper_body`` a joint is its name or its index from 0.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not YAML, or a key that is missing, unknown or of other contents; names the file and the key.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"skeleton: no file {path}")
    contents = read_yaml(path)
    known = [field.name for field in dataclasses.fields(Skeleton)]
    if not isinstance(contents, dict):
        raise ValueError(f"{path}: expected keys {', '.join(known)}, got {type(contents).__name__}")
    if unknown := [key for key in contents if key not in known]:
        raise ValueError(f"{path}: {unknown[0]}: no such key, expected {', '.join(known)}")
    if "joints" not in contents:
        raise ValueError(f"{path}: joints: missing; it is the list of the joints' names")
    joints = tuple(_checked(path, contents, "joints", str, "names (in quotes where YAML reads something else)"))

    def indices(key: str, given: Sequence[Any]) -> tuple[int, ...]:
        for joint in given:
            if not (joint in joints if isinstance(joint, str) else type(joint) is int and 0 <= joint < len(joints)):
                raise ValueError(
                    f"{path}: {key}: expected joints by name or by index below {len(joints)}, got {joint!r}"
                )
        return tuple(joints.index(joint) if isinstance(joint, str) else joint for joint in given)

    name = contents.get("name", path.stem)
    if not isinstance(name, (str, int, float)) or name == "":
        raise ValueError(f"{path}: name: expected a name, got {name!r}")
    fields: dict[str, Any] = {"name": str(name), "joints": joints}
    for key in ("mirror_pairs", "limbs"):
        fields[key] = tuple(indices(key, pair) for pair in _checked(path, contents, key, list, "pairs of joints"))
    fields["upper_body"] = indices("upper_body", _checked(path, contents, "upper_body", (str, int), "joints"))
    for key in ("sigmas", "joint_weights"):
        fields[key] = tuple(map(float, _checked(path, contents, key, (float, int), "numbers")))
    try:
        return Skeleton(**fields)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _checked(path: Path, contents: dict[str, Any], key: str, kind: type | tuple[type, ...], expected: str) -> list[Any]:
    """The list under `key`, empty if it is missing, if all of it is of type `kind`."""
    values = contents.get(key, [])
    if not isinstance(values, list) or not all(isinstance(v, kind) and not isinstance(v, bool) for v in values):
        raise ValueError(f"{path}: {key}: expected a list of {expected}, got {values!r}")
    return values
