# SPDX-License-Identifier: Apache-2.0
"""PCK, AUC, EPE and NME are those of mmpose's own metrics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mmpose.evaluation.functional import keypoint_auc, keypoint_epe, keypoint_nme, keypoint_pck_accuracy
from mmpose.evaluation.metrics import AUC, EPE, NME, PCKAccuracy

from fastpose.data.coco import PckScorer, pck
from fastpose.data.coco.pck import auc, epe, nme
from fastpose.data.dataset import DataOptions
from fastpose.data.persons import Persons
from fastpose.skeletons import Skeleton

# mmpose finds a torso's ends by their place in this order.
JOINTS = ("neck", "belly", "head", "right_shoulder", "left_shoulder", "right_hip", "left_hip", "right_elbow")
JOINTS += ("left_elbow", "right_knee", "left_knee", "right_wrist", "left_wrist", "right_ankle", "left_ankle")
JHMDB = Skeleton("jhmdb", JOINTS, (), ())
# mmpose keeps distances in float32.
CLOSE = {"rtol": 1e-6, "atol": 1e-6}


def poses(count: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predictions, keypoints and visible [N, 15]; the joint 9 is annotated of nobody."""
    rng = np.random.default_rng(0)
    keypoints = rng.uniform(0, 300, (count, 15, 2)).astype(np.float32)
    predictions = keypoints + rng.normal(0, 12, keypoints.shape)
    visible = rng.random((count, 15)) < 0.8
    visible[:, 9] = False
    return predictions, keypoints, visible


def test_the_functions_are_mmposes():
    predictions, keypoints, visible = poses()
    size = np.random.default_rng(1).uniform(20, 200, len(keypoints))
    size[7] = 0
    # Copies: mmpose writes into the sizes.
    joints, mean, counted = keypoint_pck_accuracy(predictions, keypoints, visible, 0.2, np.stack([size, size], 1))
    found_mean, found_joints = pck(predictions, keypoints, visible, size, 0.2)
    assert counted == 14
    np.testing.assert_allclose(found_joints, np.where(joints < 0, np.nan, 100 * joints), **CLOSE)
    np.testing.assert_allclose(found_mean, 100 * mean, **CLOSE)
    np.testing.assert_allclose(auc(predictions, keypoints, visible), 100 * keypoint_auc(*poses(), 30), **CLOSE)
    np.testing.assert_allclose(epe(predictions, keypoints, visible), keypoint_epe(*poses()), **CLOSE)
    expected = keypoint_nme(predictions, keypoints, visible, np.stack([size, size], 1))
    np.testing.assert_allclose(nme(predictions, keypoints, visible, size), 100 * expected, **CLOSE)


@pytest.mark.parametrize("norm", ["box", "torso"])
def test_a_run_gets_the_scores_of_mmposes_metrics(norm):
    predictions, keypoints, visible = poses()
    visible[:, 4:6] = True  # mmpose measures a torso whether annotated or not
    boxes = np.random.default_rng(2).uniform([0, 0, 100, 100], [100, 100, 300, 300], (len(keypoints), 4))
    samples = [
        {
            "pred_instances": {"keypoints": predictions[n : n + 1]},
            "gt_instances": {
                "keypoints": keypoints[n : n + 1],
                "keypoints_visible": visible[n : n + 1].astype(np.float32),
                "bboxes": boxes[n : n + 1],
            },
        }
        for n in range(len(keypoints))
    ]
    expected = {}
    for metric in (
        PCKAccuracy(0.2, "bbox"),
        PCKAccuracy(0.2, "torso"),
        AUC(),
        EPE(),
        NME("use_norm_item", "bbox_size"),
    ):
        metric.process([], samples)
        expected |= metric.compute_metrics(metric.results)
    sides = np.max(boxes[:, 2:] - boxes[:, :2], axis=1)
    persons = Persons(
        image_paths=(Path("/1.jpg"),),
        image_index=np.zeros(len(keypoints), np.int64),
        center=np.zeros((len(keypoints), 2), np.float32),
        scale=np.ones((len(keypoints), 2), np.float32),
        keypoints=keypoints,
        visible=visible.astype(np.float32),
        source_row=np.arange(len(keypoints)),
        skeleton=JHMDB,
        extras={"box_side": sides.astype(np.float32)},
    )
    scorer = PckScorer(persons, DataOptions(dataset="coco", score="pck", pck_norm=norm))
    found = scorer.score(predictions, np.ones(visible.shape), np.ones(len(persons), bool))
    assert 10 < found["PCK"] < 99
    np.testing.assert_allclose(found["AUC"], 100 * expected["AUC"], **CLOSE)
    np.testing.assert_allclose(found["EPE"], expected["EPE"], **CLOSE)
    np.testing.assert_allclose(found["PCK"], 100 * expected["PCK" if norm == "box" else "tPCK"], **CLOSE)
    if norm == "box":
        np.testing.assert_allclose(found["NME"], 100 * expected["NME"], **CLOSE)
