# SPDX-License-Identifier: Apache-2.0
"""Skeletons: which joints a data set annotates, in which order, and how they belong together."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Skeleton:
    """The joints of a data set.

    Attributes:
        name: the data set's name, for messages and checkpoints.
        joints: J unique joint names; their order is the order of every ``[..., J, 2]`` array.
        mirror_pairs: disjoint index pairs (right, left) that swap when an image is mirrored.
        limbs: index pairs that are joined by a line in drawings.

    Raises:
        ValueError: a name occurs twice, an index is out of range, or a joint is in two mirror pairs.
    """

    name: str
    joints: tuple[str, ...]
    mirror_pairs: tuple[tuple[int, int], ...]
    limbs: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        if not self.joints or len(set(self.joints)) != len(self.joints):
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
)
