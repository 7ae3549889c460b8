# SPDX-License-Identifier: Apache-2.0
"""The skeletons that are known by name have mmpose's joints, pairs and limbs, in mmpose's order."""

from __future__ import annotations

import runpy
from pathlib import Path

import mmpose
import pytest

from fastpose.skeletons import FILES, find_skeleton

CONFIGS = Path(mmpose.__file__).parent / ".mim" / "configs" / "_base_" / "datasets"
MMPOSES = {"halpe136": "halpe", "wholebody": "coco_wholebody", "human_art": "humanart", "human_art21": "humanart21"}
MMPOSES |= {"interhand": "interhand2d", "face68": "300w"}
SPELLING = {"top_head": "head", "Root of tail": "root_of_tail", "Nose": "nose", "Neck": "neck"}
PARTS = {"Eye": "eye", "F_Paw": "front_paw", "B_Paw": "back_paw"}
for part, name in (PARTS | {part: part.lower() for part in ("Shoulder", "Elbow", "Hip", "Knee")}).items():
    SPELLING |= {f"L_{part}": f"left_{name}", f"R_{part}": f"right_{name}"}


def spelled(name: str) -> str:
    return SPELLING.get(name, name.replace("kpt-", "face-"))


@pytest.mark.parametrize("name", sorted({*FILES} - {"lsp"}))
def test_a_skeleton_is_mmposes(name: str) -> None:
    info = runpy.run_path(str(CONFIGS / f"{MMPOSES.get(name, name)}.py"))["dataset_info"]
    skeleton = find_skeleton(name)
    joints = info["keypoint_info"].values()
    assert [spelled(joint["name"]) for joint in joints] == list(skeleton.joints)
    pairs = {frozenset(skeleton.joints[joint] for joint in pair) for pair in skeleton.mirror_pairs}
    assert {frozenset(map(spelled, (one["name"], one["swap"]))) for one in joints if one["swap"]} == pairs
    limbs = [tuple(skeleton.joints[joint] for joint in limb) for limb in skeleton.limbs]
    if name != "face68":  # of which mmpose has no lines
        assert [tuple(map(spelled, limb["link"])) for limb in info["skeleton_info"].values()] == limbs
    if skeleton.sigmas and name != "halpe26":  # mmpose's are not those of Halpe's own evaluation
        assert skeleton.sigmas == pytest.approx(info["sigmas"])
