# SPDX-License-Identifier: Apache-2.0
"""What `fastpose check` looks for in a data set, beyond `fastpose.data.sense`: arrays and files in, findings out.

LEVELS: every code of a finding and what it means for training, in the order of the report. An error makes the score or
the training wrong, or stops it; a warning is worth a look, as some of its cases may be right; a note is worth knowing.
"""

from __future__ import annotations

from typing import Literal

Level = Literal["error", "warning", "note"]

_ERRORS = (
    *("no_joints", "image_missing", "image_unreadable", "image_of_another_size"),
    *("image_in_both_splits", "copy_in_both_splits"),
)
_WARNINGS = (
    "annotations_odd",
    # of fastpose.data.sense
    *("person_without_joints", "joints_in_corner", "joint_at_corner", "joint_far_outside_image", "joint_far_from_box"),
    *("joints_beside_box", "joints_at_one_place", "box_too_large", "person_twice", "person_on_other_image"),
    *("box_of_corners", "sides_exchanged_in_split", "mirror_pairs", "joint_map_crossed"),
    *("person_in_both_splits", "joint_never_trained"),
    # of this package
    *("joint_outside_image", "box_outside_image"),
    *("trunk_crossed", "joints_exchanged", "face_mirrored", "limb_too_long"),
    *("near_copy_in_both_splits", "copy_in_split", "few_grey_levels"),
)
_NOTES = (
    *(
        "annotations_read",
        "joint_outside_box",
        "person_small",
        "near_copy_in_split",
        "image_turned",
        "image_of_16_bits",
    ),
    *("pixels_not_decoded", "pack"),
)
LEVELS: dict[str, Level] = {
    **dict.fromkeys(_ERRORS, "error"),
    **dict.fromkeys(_WARNINGS, "warning"),
    **dict.fromkeys(_NOTES, "note"),
}
