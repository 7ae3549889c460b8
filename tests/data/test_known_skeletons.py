# SPDX-License-Identifier: Apache-2.0
"""The skeletons that are known by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastpose.skeletons import COCO, FILES, SKELETONS, find_skeleton

JOINTS = {
    "coco": 17,
    "mpii": 16,
    "aic": 14,
    "ap10k": 17,
    "crowdpose": 14,
    "face68": 68,
    "halpe136": 136,
    "halpe26": 26,
    "human_art": 17,
    "human_art21": 21,
    "interhand": 21,
    "lsp": 14,
    "wholebody": 133,
}
PAIRS = {"aic": 6, "ap10k": 7, "crowdpose": 6, "face68": 29, "halpe136": 61, "halpe26": 11, "human_art": 8}
PAIRS |= {"human_art21": 10, "interhand": 0, "lsp": 6, "wholebody": 61}
WITHOUT_SIGMAS = {"mpii", "lsp", "face68", "interhand"}
_FACE = {"halpe136": 26, "wholebody": 23}  # where the 68 points begin


def test_each_file_is_known_by_its_name_and_has_the_joints_of_its_data_set() -> None:
    assert {name: find_skeleton(name).num_joints for name in SKELETONS} == JOINTS
    assert all(find_skeleton(name).name == name for name in SKELETONS)
    assert {name: len(find_skeleton(name).mirror_pairs) for name in FILES} == PAIRS


@pytest.mark.parametrize("name", FILES)
def test_each_file_says_where_its_facts_are_from(name: str) -> None:
    text = FILES[name].read_text(encoding="utf-8")
    header = [line for line in text.splitlines() if line.startswith("#")]
    assert text.startswith("# ")
    assert max(map(len, text.splitlines())) <= 120
    assert name == "lsp" or "mmpose" in " ".join(header) or "github.com" in " ".join(header)


@pytest.mark.parametrize("name", FILES)
def test_the_pairs_are_the_right_and_the_left_one_of_all_joints_that_have_sides(name: str) -> None:
    skeleton = find_skeleton(name)
    named = [(skeleton.joints[right], skeleton.joints[left]) for right, left in skeleton.mirror_pairs]
    sided = [pair for pair in named if not pair[0].startswith("face-")]
    assert all(right.startswith("right_") and left == right.replace("right_", "left_") for right, left in sided)
    with_sides = {joint for joint in skeleton.joints if joint.startswith(("left_", "right_"))}
    assert {joint for pair in sided for joint in pair} == with_sides


@pytest.mark.parametrize("name", FILES)
def test_right_and_left_joints_have_the_same_sigma_weight_and_half_of_the_body(name: str) -> None:
    skeleton = find_skeleton(name)
    for right, left in skeleton.mirror_pairs:
        assert (right in skeleton.upper_body) == (left in skeleton.upper_body)
        assert skeleton.joint_weights[right] == skeleton.joint_weights[left]
        if skeleton.sigmas and name not in ("aic", "wholebody"):  # these were measured side by side
            assert skeleton.sigmas[right] == skeleton.sigmas[left]


@pytest.mark.parametrize("name", SKELETONS)
def test_sigmas_are_those_that_are_published(name: str) -> None:
    skeleton = find_skeleton(name)
    assert (not skeleton.sigmas) == (name in WITHOUT_SIGMAS)
    assert all(0.005 < sigma < 0.11 for sigma in skeleton.sigmas)


@pytest.mark.parametrize("name", SKELETONS)
def test_the_upper_body_has_no_joint_of_hips_legs_and_tails(name: str) -> None:
    skeleton = find_skeleton(name)
    lower = ("hip", "knee", "ankle", "toe", "heel", "pelvis", "tail", "back_paw")
    upper = tuple(i for i, joint in enumerate(skeleton.joints) if not any(part in joint for part in lower))
    assert skeleton.upper_body == (() if name in ("face68", "interhand") else upper)


@pytest.mark.parametrize("name", FILES)
def test_drawings_have_each_line_once(name: str) -> None:
    limbs = [frozenset(limb) for limb in find_skeleton(name).limbs]
    assert len(set(limbs)) == len(limbs) > 0


@pytest.mark.parametrize("name", ["human_art", "human_art21", "halpe26", "halpe136", "wholebody"])
def test_those_that_begin_with_cocos_joints_have_cocos_sigmas(name: str) -> None:
    skeleton = find_skeleton(name)
    assert skeleton.joints[:17] == COCO.joints
    assert skeleton.sigmas[:17] == COCO.sigmas
    assert set(skeleton.mirror_pairs) >= set(COCO.mirror_pairs)


@pytest.mark.parametrize(("name", "first"), _FACE.items())
def test_the_faces_of_whole_bodies_are_face68(name: str, first: int) -> None:
    skeleton, face = find_skeleton(name), find_skeleton("face68")
    assert skeleton.joints[first : first + 68] == face.joints
    pairs = {(right - first, left - first) for right, left in skeleton.mirror_pairs if first <= right < first + 68}
    assert pairs == set(face.mirror_pairs)


def test_a_mirrored_face_is_a_face() -> None:
    """Points of a drawn face, placed by hand: after mirroring, each lies where its partner was."""
    x = {
        36: -30,
        39: -12,
        42: 12,
        45: 30,
        48: -20,
        54: 20,
        59: -14,
        55: 14,
        67: -8,
        65: 8,
        0: -60,
        16: 60,
        21: -8,
        22: 8,
    }
    pairs = find_skeleton("face68").mirror_pairs
    placed = [(right, left) for right, left in pairs if right in x]
    assert len(placed) == len(x) // 2
    assert all(x[right] == -x[left] < 0 for right, left in placed)  # facing the camera, its right side is on the left


def test_the_manual_lists_each_skeleton_with_its_counts_and_where_sigmas_are_from() -> None:
    page = (Path(__file__).parents[2] / "docs" / "skeletons.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("| `")
    ]
    table = {row[0].strip("`"): row[2:] for row in rows if len(row) == 6}
    assert tuple(table) == SKELETONS
    for name, (joints, pairs, limbs, sigmas) in table.items():
        skeleton = find_skeleton(name)
        counts = [skeleton.num_joints, len(skeleton.mirror_pairs), len(skeleton.limbs)]
        assert [int(joints), int(pairs), int(limbs)] == counts, name
        assert (sigmas == "none published") == (not skeleton.sigmas), name
