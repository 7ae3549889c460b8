# SPDX-License-Identifier: Apache-2.0
"""What all formats of other programs have in common: scores, packs, a network's joints, joints by their names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fastpose import pack
from fastpose.data.annotation_rows import AnnotationError
from fastpose.data.formats.found import around, named_skeleton
from fastpose.skeletons import COCO, Skeleton
from tests.helpers.formats import JOINTS, SIZE, TRAINED, opened, write_csv, write_deeplabcut, write_yolo

WRITERS: dict[str, Callable[[Path], Path]] = {"yolo": write_yolo, "csv": write_csv, "deeplabcut": write_deeplabcut}


@pytest.mark.parametrize("name", WRITERS)
def test_the_truth_as_prediction_scores_100(name, tmp_path):
    root = WRITERS[name](tmp_path / "in")
    eyes = tmp_path / "eyes.yaml"
    eyes.write_text("joints: [nose, left_eye, right_eye]\nsigmas: [0.05, 0.05, 0.05]\n")
    for options, value in (({"score": "pck"}, "PCK"), ({"skeleton": str(eyes)}, "AP")):
        if value == "AP":
            pytest.importorskip("pycocotools")
        dataset = opened(root, name, **options)
        persons = dataset.read("valid")
        scorer = dataset.scorer(persons)
        scorer.needs(to_train=True)
        values = scorer.score(
            persons.keypoints, np.ones(persons.visible.shape, np.float32), np.ones(len(persons), bool)
        )
        assert values is not None
        assert values[value] == pytest.approx(100)


@pytest.mark.parametrize("name", WRITERS)
def test_a_pack_has_the_same_persons(name, tmp_path):
    root, out = WRITERS[name](tmp_path / "in"), tmp_path / "pack"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"dataset": name, "size": SIZE, "score": "pck"}))
    assert pack.main([str(root), str(out), "--recipe", str(recipe)]) == 0
    was, now = opened(root, name, score="pck").read("train"), opened(out, name, score="pck").read("train")
    assert (now.skeleton.joints, now.skeleton.mirror_pairs) == (JOINTS, ((2, 1),))
    np.testing.assert_array_equal(now.keypoints, was.keypoints)
    np.testing.assert_array_equal(now.scale, was.scale)


def test_a_network_s_joints_are_those_of_the_persons_to_evaluate(tmp_path):
    root = write_csv(tmp_path / "in")
    network = Skeleton("mine", ("right_eye", "nose", "left_eye"), ((0, 2),), ())
    persons = opened(root, "csv", network).read("train")
    assert persons.skeleton is network
    np.testing.assert_array_equal(persons.keypoints, TRAINED[:, [2, 0, 1]])
    (root / "train.csv").unlink()  # which evaluation does not need
    assert len(opened(root, "csv", network).read("valid")) == 1
    with pytest.raises(
        AnnotationError, match=r'train\.csv: its joints .*, and skeleton \'two\' has no "right_eye", got'
    ):
        opened(write_csv(tmp_path / "other"), "csv", Skeleton("two", ("nose", "left_eye"), (), ())).read("train")


@pytest.mark.parametrize(
    ("joints", "pairs"),
    [
        (["nose", "left_ear", "right_ear"], [(2, 1)]),
        (["R_paw", "L_paw", "l_hip", "r_hip"], [(0, 1), (3, 2)]),
        (["Left Ear", "Right Ear", "LEFT", "RIGHT"], [(1, 0), (3, 2)]),
        (["leftEar", "rightEar", "earLeft", "earRight"], [(1, 0), (3, 2)]),
        (["leftear", "rightear", "tail_left", "tail_right"], [(1, 0), (3, 2)]),
        (["bleft", "cleft", "upright", "left", "l", "elbow", "erbow"], []),
        (["left_left", "right_left", "left_right"], [(1, 2)]),  # all sides change; no joint is in two pairs
        (["L4_left", "L4_right", "cleft_l", "cleft_r", "l.left", "l.right"], [(1, 0), (3, 2), (5, 4)]),
        (["upright_l", "upright_r", "mouse_r_left_ear", "mouse_r_right_ear"], [(1, 0), (3, 2)]),
        (["left_paw_l", "left_paw_r", "right_paw_l", "right_paw_r"], [(3, 0), (2, 1)]),
    ],
)
def test_pairs_follow_from_names(joints, pairs):
    assert list(named_skeleton("own", joints, where="file").mirror_pairs) == pairs


def test_cocos_pairs_are_those_of_its_names():
    assert named_skeleton("own", COCO.joints, where="file").mirror_pairs == COCO.mirror_pairs


def test_the_box_around_joints_is_a_tenth_of_its_longer_side_wider():
    assert around(np.array([[10.0, 20.0], [30.0, 25.0]])) == (8, 18, 24, 9)
    assert around(np.array([[10.0, 20.0]])) == (10, 20, 0, 0)
    assert around(np.zeros((0, 2))) == (0, 0, 0, 0)
