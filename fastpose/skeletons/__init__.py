# SPDX-License-Identifier: Apache-2.0
"""Skeletons: which joints a data set annotates, in which order, and how they belong together.

`SKELETONS` are those known by name: MPII's and COCO's, and one for each YAML file in this folder.
"""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from fastpose.files import read_yaml
from fastpose.skeletons.sides import contradiction


@dataclass(frozen=True)
class Skeleton:
    """The joints of a data set.

    Attributes:
        name: the data set's name, for messages and checkpoints.
        joints: J unique joint names; their order is the order of every ``[..., J, 2]`` array.
        mirror_pairs: disjoint index pairs (right, left) that swap when an image is mirrored.
        limbs: index pairs that are joined by a line in drawings.
        sigmas: per joint, how far apart people annotate it, in units of the square root of the person's area: what
            COCO's similarity of poses (OKS) divides distances by. Empty: not known; AP then takes 0.05 for each.
        joint_weights: per joint, its weight in the loss where option `joint_weights` is on. Empty becomes all ones.
        upper_body: the joints above the hips, for half-body augmentation. Empty: not known.

    Raises:
        ValueError: a name occurs twice or is not a name (see `is_name`), an index is out of range, a joint is in two
            mirror pairs, or there is not one positive number per joint.
    """

    name: str
    joints: tuple[str, ...]
    mirror_pairs: tuple[tuple[int, int], ...]
    limbs: tuple[tuple[int, int], ...]
    sigmas: tuple[float, ...] = ()
    joint_weights: tuple[float, ...] = ()
    upper_body: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        where = f"skeleton {_shown(self.name)}"
        if not is_name(self.name):
            raise ValueError(f"{where}: name must be {_A_NAME}")
        if not self.joints or not all(self.joints) or len(set(map(repr, self.joints))) != len(self.joints):
            raise ValueError(f"{where}: joints must be unique names, got {_shown(self.joints)}")
        for joint in self.joints:
            if not is_name(joint):
                raise ValueError(f"{where}: joints must be {_A_NAME}, got {_shown(joint)}")
        for field, pairs in (("mirror_pairs", self.mirror_pairs), ("limbs", self.limbs)):
            for pair in pairs:
                if not (self._are_joints(pair) and len(pair) == 2 and pair[0] != pair[1]):
                    raise ValueError(
                        f"{where}: {field} must hold pairs of different indices below {self.num_joints}, "
                        f"got {_shown(pair)}"
                    )
        mirrored = [joint for pair in self.mirror_pairs for joint in pair]
        if len(set(mirrored)) != len(mirrored):
            raise ValueError(f"{where}: a joint is in two mirror_pairs: {_shown(self.mirror_pairs)}")
        if not self.joint_weights:
            object.__setattr__(self, "joint_weights", (1.0,) * self.num_joints)
        for field, values in (("sigmas", self.sigmas), ("joint_weights", self.joint_weights)):
            positive = all(isinstance(value, numbers.Real) and 0.0 < value < _LARGEST_NUMBER for value in values)
            if values and not (len(values) == self.num_joints and positive):
                raise ValueError(
                    f"{where}: {field} must be one positive number for each of the {self.num_joints} joints, "
                    f"got {_shown(values)}"
                )
        if not self._are_joints(self.upper_body) or len(set(self.upper_body)) < len(self.upper_body):
            raise ValueError(
                f"{where}: upper_body must hold different indices below {self.num_joints}, "
                f"got {_shown(self.upper_body)}"
            )

    def _are_joints(self, indices: Any) -> bool:
        """Whether they are a sequence of indices; a checkpoint or a pack may have anything there."""
        return isinstance(indices, (tuple, list)) and all(
            isinstance(joint, numbers.Integral) and not isinstance(joint, bool) and 0 <= int(joint) < self.num_joints
            for joint in indices
        )

    @property
    def num_joints(self) -> int:
        return len(self.joints)


def as_tuples(value: Any) -> Any:
    """The same with tuples for lists, which JSON makes of tuples."""
    if isinstance(value, dict):
        return {name: as_tuples(one) for name, one in value.items()}
    return tuple(map(as_tuples, value)) if isinstance(value, list) else value


LONGEST_NAME = 100
_LARGEST_NUMBER = 1e30  # of sigmas and weights, which become float32
_A_NAME = f"of 1 to {LONGEST_NAME} printable characters other than / and \\"


def is_name(name: object) -> bool:
    """Whether this can name a joint or a skeleton: names come from files of strangers, and get into others, into the
    names of files and outputs, and onto terminals. Letters of any language, digits, spaces and punctuation can."""
    return (
        isinstance(name, str)
        and 0 < len(name.strip()) <= len(name) <= LONGEST_NAME
        and name.isprintable()  # no control characters, no lone surrogates, nothing that turns text around
        and not set(name) & set("/\\")
        and name not in (".", "..")
    )


def _shown(value: object) -> str:
    """A value in a message: its first characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


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

FILES = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.yaml"))}
SKELETONS = (COCO.name, MPII.name, *FILES)


def find_skeleton(name: str) -> Skeleton:
    """The skeleton of a name in `SKELETONS`, else of a YAML file, see `read_skeleton`.

    Raises:
        FileNotFoundError: neither; the message lists the names.
        ValueError: see `read_skeleton`.
    """
    known = {skeleton.name: skeleton for skeleton in (COCO, MPII)}
    if name in known:
        return known[name]
    if name not in FILES and not Path(name).exists():
        raise FileNotFoundError(f"skeleton: {name!r} is neither a file nor one of {', '.join(SKELETONS)}")
    return read_skeleton(FILES.get(name, Path(name)))


def read_skeleton(path: str | PathLike[str]) -> Skeleton:
    """Reads a skeleton from a YAML file whose keys are the fields of `Skeleton`.

    ``joints`` is needed; ``name`` is the file's own by default. In ``mirror_pairs``, ``limbs`` and
    ``upper_body`` a joint is its name or its index from 0.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not YAML, or a key that is missing, unknown or of other contents, or mirror pairs that the joints'
            names contradict; names the file and the key.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"skeleton: no file {path}")
    contents = read_yaml(path)
    known = [field.name for field in dataclasses.fields(Skeleton)]
    if not isinstance(contents, dict):
        raise ValueError(f"{path}: expected keys {', '.join(known)}, got {type(contents).__name__}")
    if unknown := [key for key in contents if key not in known]:
        key = unknown[0] if is_name(unknown[0]) else _shown(unknown[0])
        raise ValueError(f"{path}: {key}: no such key, expected {', '.join(known)}")
    if "joints" not in contents:
        raise ValueError(f"{path}: joints: missing; it is the list of the joints' names")
    joints = tuple(_checked(path, contents, "joints", str, "names (in quotes where YAML reads something else)"))
    index_of = {name: index for index, name in enumerate(joints)}

    def indices(key: str, given: Sequence[Any]) -> tuple[int, ...]:
        for joint in given:
            if not (joint in index_of if isinstance(joint, str) else type(joint) is int and 0 <= joint < len(joints)):
                raise ValueError(
                    f"{path}: {key}: expected joints by name or by index below {len(joints)}, got {_shown(joint)}"
                )
        return tuple(index_of[joint] if isinstance(joint, str) else joint for joint in given)

    name = contents.get("name", path.stem)
    if not isinstance(name, (str, int, float)) or name == "":
        raise ValueError(f"{path}: name: expected a name, got {_shown(name)}")
    fields: dict[str, Any] = {"name": str(name), "joints": joints}
    for key in ("mirror_pairs", "limbs"):
        fields[key] = tuple(indices(key, pair) for pair in _checked(path, contents, key, list, "pairs of joints"))
    fields["upper_body"] = indices("upper_body", _checked(path, contents, "upper_body", (str, int), "joints"))
    for key in ("sigmas", "joint_weights"):
        fields[key] = tuple(_checked(path, contents, key, (float, int), "numbers"))
    try:
        skeleton = Skeleton(**fields)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    # Not in Skeleton: checkpoints and packs of earlier versions may hold such pairs, of which there was only a warning,
    # and must still load. They still get it.
    if wrong := contradiction(joints, skeleton.mirror_pairs):
        raise ValueError(f"{path}: mirror_pairs: {wrong}")
    return skeleton


def _checked(path: Path, contents: dict[str, Any], key: str, kind: type | tuple[type, ...], expected: str) -> list[Any]:
    """The list under `key`, empty if it is missing, if all of it is of type `kind`."""
    values = contents.get(key, [])
    if not isinstance(values, list) or not all(isinstance(v, kind) and not isinstance(v, bool) for v in values):
        raise ValueError(f"{path}: {key}: expected a list of {expected}, got {_shown(values)}")
    return values


def skeleton_as_plain(skeleton: Skeleton) -> dict[str, Any]:
    """A skeleton as `read_skeleton` takes it: joints by their names, without what is empty."""
    fields = dataclasses.asdict(skeleton)
    fields["joint_weights"] = () if set(skeleton.joint_weights) == {1.0} else skeleton.joint_weights
    for key in ("mirror_pairs", "limbs"):
        fields[key] = [[skeleton.joints[joint] for joint in pair] for pair in fields[key]]
    fields["upper_body"] = [skeleton.joints[joint] for joint in skeleton.upper_body]
    return {key: list(value) if isinstance(value, tuple) else value for key, value in fields.items() if value}
