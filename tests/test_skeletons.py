# SPDX-License-Identifier: Apache-2.0
import pytest

from fastpose.skeletons import MPII, Skeleton


def test_mpii_mirror_pairs_swap_right_and_left_of_the_same_joint():
    for right, left in MPII.mirror_pairs:
        assert MPII.joints[right] == MPII.joints[left].replace("l_", "r_")
        assert MPII.joints[right].startswith("r_")
    unpaired = set(range(16)) - {joint for pair in MPII.mirror_pairs for joint in pair}
    assert {MPII.joints[joint] for joint in unpaired} == {"pelvis", "thorax", "upper_neck", "head_top"}


def test_mpii_has_the_order_of_the_annotation_files():
    assert MPII.num_joints == 16
    assert MPII.joints[0] == "r_ankle"
    assert MPII.joints[6:10] == ("pelvis", "thorax", "upper_neck", "head_top")
    assert MPII.joints[15] == "l_wrist"


def test_mpii_limbs_connect_all_joints_into_one_tree():
    reached = {6}
    for _ in range(16):
        reached |= {joint for limb in MPII.limbs if reached & set(limb) for joint in limb}
    assert reached == set(range(16))
    assert len(MPII.limbs) == 15


@pytest.mark.parametrize(
    ("joints", "pairs", "limbs", "message"),
    [
        (("a", "a"), (), (), "unique"),
        ((), (), (), "unique"),
        (("a", "b"), ((0, 2),), (), "mirror_pairs"),
        (("a", "b"), ((1, 1),), (), "mirror_pairs"),
        (("a", "b", "c"), ((0, 1), (1, 2)), (), "two mirror_pairs"),
        (("a", "b"), (), ((0, -1),), "limbs"),
    ],
)
def test_an_inconsistent_skeleton_is_refused(joints, pairs, limbs, message):
    with pytest.raises(ValueError, match=message):
        Skeleton("s", joints, pairs, limbs)
