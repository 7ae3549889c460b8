# SPDX-License-Identifier: Apache-2.0
import contextlib
import io
import json
import math
import sys
from importlib.util import find_spec

import numpy as np
import pytest

from fastpose.data.coco import ApScorer, CocoTruth, keypoint_ap, keypoint_results, oks, oks_nms, read_coco, rescore
from fastpose.data.coco.ap import NAMES
from fastpose.skeletons import COCO, Skeleton
from tests.helpers.persons import persons_of
from tests.helpers.tiny_coco import annotation, contents

# Without it the rest runs all the same: a machine that is rented for its GPU may lack it.
needs_pycocotools = pytest.mark.skipif(find_spec("pycocotools") is None, reason="pycocotools is not installed")
SIGMAS = np.array(COCO.sigmas)


def pycocotools_evaluation(file, results, sigmas=None):
    from pycocotools.coco import COCO as PycocoFile
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        annotated = PycocoFile(str(file))
        evaluation = COCOeval(annotated, annotated.loadRes(results), "keypoints")
        if sigmas is not None:
            evaluation.params.kpt_oks_sigmas = np.array(sigmas)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


@pytest.fixture
def real_persons(real_data):
    folder = real_data / "coco"
    return read_coco(folder / "person_keypoints.json", folder / "images", (256, 192), for_evaluation=True)


def moved(persons, pixels, seed=0):
    noise = np.random.default_rng(seed).normal(0, pixels, persons.keypoints.shape)
    return (persons.keypoints + noise).astype(np.float32)


# ---- the similarity of poses ----


def test_the_similarity_of_one_joint_is_a_gaussian_of_its_distance():
    # One joint, 5 px away, area 100, sigma 0.25: exp(-25 / (2 * 100 * 0.5^2)) = exp(-0.5).
    got = oks([[[3, 4]]], [[[0, 0]], [[3, 4]]], [100], [0.25])
    np.testing.assert_allclose(got, [[math.exp(-0.5), 1]])
    # A second joint at the same place halves what is missing; one that does not count changes nothing.
    pair, others = [[[3, 4], [7, 7]]], [[[0, 0], [7, 7]]]
    np.testing.assert_allclose(oks(pair, others, [100], [0.25, 1]), [[(1 + math.exp(-0.5)) / 2]])
    np.testing.assert_allclose(oks(pair, others, [100], [0.25, 1], [[1, 0]]), [[math.exp(-0.5)]])
    np.testing.assert_allclose(oks(pair, others, [[25]], [0.25, 1], [[1, 0]]), [[math.exp(-2)]])


def test_poses_without_visible_joints_have_no_similarity():
    assert np.isnan(oks(np.zeros((1, 2, 2)), np.zeros((3, 2, 2)), [1], [1, 1], np.zeros((1, 2)))).all()
    assert oks(np.zeros((0, 2, 2)), np.zeros((3, 2, 2)), np.zeros(0), [1, 1]).shape == (0, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keypoints": np.zeros((2, 3, 2))}, r"keypoints must have shape \[2, 4, 2\], got \[2, 3, 2\]"),
        ({"others": np.zeros((5, 4, 3))}, r"others must have shape \[5, 4, 2\]"),
        ({"area": np.zeros(3)}, r"area must have shape \[2\] or \[2, 5\], got \[3\]"),
        ({"visible": np.zeros((2, 5))}, r"visible must have shape \[2, 4\]"),
    ],
)
def test_arguments_of_other_shapes_are_refused(changes, message):
    arguments = {
        "keypoints": np.zeros((2, 4, 2)),
        "others": np.zeros((5, 4, 2)),
        "area": np.ones(2),
        "sigmas": np.ones(4),
    }
    with pytest.raises(ValueError, match=message):
        oks(**arguments | changes)


@needs_pycocotools
def test_similarity_is_that_of_pycocotools(real_data, real_persons):
    persons, truth = real_persons, real_persons.truth
    predictions = moved(persons, 12)
    results = [
        {
            "image_id": int(image),
            "category_id": 1,
            "keypoints": np.column_stack([pose, np.ones(17)]).ravel().tolist(),
            "score": 1 - row / 100,  # it orders by score
        }
        for row, (image, pose) in enumerate(zip(persons.extras["image_id"], predictions, strict=True))
    ]
    evaluation = pycocotools_evaluation(real_data / "coco/person_keypoints.json", results)
    areas = {record["id"]: record["area"] for record in truth["annotations"]}
    records = json.loads((real_data / "coco/person_keypoints.json").read_text())["annotations"]
    compared = 0
    for image in np.unique(persons.extras["image_id"]):
        rows = np.flatnonzero(persons.extras["image_id"] == image)
        area = [areas[records[row]["id"]] for row in persons.source_row[rows]]
        got = oks(persons.keypoints[rows], predictions[rows], area, SIGMAS, persons.visible[rows])
        # Theirs is [predictions, annotations], with the annotations that have no joints among the latter.
        known = [records[row]["num_keypoints"] > 0 for row in range(len(records)) if records[row]["image_id"] == image]
        expected = np.array(evaluation.ious[image, 1])[:, known].T
        np.testing.assert_allclose(got, expected, rtol=1e-12)
        compared += got.size
    assert compared == 1 + 4 + 16 + 25


# ---- suppression ----


def kept_one_by_one(keypoints, scores, area, threshold):
    """As HRNet's oks_nms, pose by pose."""
    kept = []
    for row in sorted(range(len(scores)), key=lambda row: -scores[row]):
        similar = [
            np.exp(
                -((keypoints[row] - keypoints[other]) ** 2).sum(axis=1)
                / (2 * SIGMAS) ** 2
                / ((area[row] + area[other]) / 2 + np.spacing(1))
                / 2
            ).mean()
            for other in kept
        ]
        if all(value <= threshold for value in similar):
            kept.append(row)
    return kept


def test_suppression_keeps_the_best_of_similar_poses():
    rng = np.random.default_rng(0)
    poses = np.repeat(rng.uniform(0, 200, (5, 17, 2)), 6, axis=0) + rng.normal(0, 1.5, (30, 17, 2))
    scores, area = rng.random(30), rng.uniform(2000, 9000, 30)
    numbers = set()
    for threshold in (0.5, 0.93, 0.97):
        kept = oks_nms(poses, scores, area, SIGMAS, threshold)
        assert kept.tolist() == kept_one_by_one(poses, scores, area, threshold)
        numbers.add(len(kept))
    assert len(numbers) == 3  # each threshold decides something
    assert min(numbers) == 5


def test_of_equal_poses_with_equal_scores_the_last_stays_as_upstream():
    assert oks_nms(np.zeros((3, 17, 2)), np.ones(3), np.ones(3), SIGMAS).tolist() == [2]
    assert oks_nms(np.zeros((0, 17, 2)), np.zeros(0), np.zeros(0), SIGMAS).tolist() == []


def test_the_score_of_a_pose_is_that_of_its_box_times_the_mean_of_its_good_joints():
    scores = rescore(np.array([0.5, 0.5, 2.0]), np.array([[0.2, 0.4, 0.8], [0.1, 0.2, 0.0], [0.3, 0.0, -1.0]]))
    np.testing.assert_allclose(scores, [0.5 * 0.6, 0, 0.6])


# ---- results and AP ----


@needs_pycocotools
def test_ground_truth_in_gives_ap_100(real_persons):
    persons = real_persons
    results = keypoint_results(persons, 1, persons.keypoints, np.ones((12, 17), np.float32))
    assert len(results) == 12
    scores = keypoint_ap(persons.truth, results, COCO.sigmas)
    assert scores == dict.fromkeys(NAMES, 100.0)
    assert persons.truth["box_source"] == "annotations"


@needs_pycocotools
def test_ap_is_that_of_pycocotools_on_the_file(real_data, real_persons):
    persons = real_persons
    rng = np.random.default_rng(3)
    values = rng.uniform(0, 1, (12, 17)).astype(np.float32)
    before = json.dumps(persons.truth["annotations"])
    results = keypoint_results(persons, 1, moved(persons, 5), values)
    as_passed = json.dumps(results)
    scores = keypoint_ap(persons.truth, results, COCO.sigmas)
    assert (json.dumps(persons.truth["annotations"]), json.dumps(results)) == (before, as_passed)
    expected = pycocotools_evaluation(real_data / "coco/person_keypoints.json", json.loads(as_passed)).stats
    np.testing.assert_array_equal(list(scores.values()), 100 * expected)
    assert list(scores) == list(NAMES)
    assert 20 < scores["AP"] < 95


def test_results_are_in_the_format_of_coco_with_the_best_first(real_persons):
    persons = real_persons.select([3, 4, 3, 9])
    poses = persons.keypoints.copy()
    poses[2] += 0.01  # the same person again, found with less confidence
    values = np.tile(np.array([0.5, 0.9, 0.4, 0.7], np.float32)[:, None], (1, 17))
    results = keypoint_results(persons, 1, poses, values)
    assert [result["image_id"] for result in results] == [196141, 196141, 197388]
    assert [result["score"] for result in results] == pytest.approx([0.9, 0.5, 0.7])
    assert all(list(result) == ["image_id", "category_id", "keypoints", "score"] for result in results)
    assert all(result["category_id"] == 1 and len(result["keypoints"]) == 51 for result in results)
    np.testing.assert_array_equal(np.reshape(results[0]["keypoints"], (17, 3))[:, :2], poses[1])
    json.dumps(results, allow_nan=False)


def test_the_area_that_poses_are_compared_by_is_that_of_the_crop(real_persons):
    """As upstream: 1.25 times the box, at the network's aspect ratio. By the box's own area these two would differ."""
    pair = real_persons.select([0, 0])
    area = float(np.prod(pair.scale[0] * 200))
    right = pair.keypoints[:1] + np.array([[[14.0, 0.0]]])
    alike, by_box = (oks(pair.keypoints[:1], right, [a], SIGMAS)[0, 0] for a in (area, area / 1.25**2))
    assert by_box < 0.89 < 0.91 < alike
    poses = np.concatenate([pair.keypoints[:1], right]).astype(np.float32)
    assert len(keypoint_results(pair, 1, poses, np.ones((2, 17), np.float32))) == 1


@needs_pycocotools
def test_persons_without_a_score_are_in_no_result(real_persons):
    poses, values = real_persons.keypoints.copy(), np.ones((12, 17), np.float32)
    poses[0] = values[0] = np.nan
    results = keypoint_results(real_persons, 1, poses, values)
    assert len(results) == 11
    # Its image has nobody else: with it one of twelve is missing, without it nobody.
    missed = keypoint_ap(real_persons.truth, results, COCO.sigmas)
    assert missed["AR"] == pytest.approx(100 * 11 / 12)
    assert keypoint_ap(real_persons.truth, results, COCO.sigmas, without_images=[785])["AR"] == 100


THREE = Skeleton("three", ("left", "right", "top"), ((1, 0),), ((0, 2), (1, 2)), sigmas=(0.03, 0.05, 0.1))


@needs_pycocotools
def test_other_joints_are_compared_by_their_own_sigmas(tmp_path):
    rng = np.random.default_rng(0)
    records = []
    for number in range(6):
        joints = np.column_stack([rng.uniform(10, 80, (3, 2)), [2, 1, number % 2]])
        records.append(annotation(number + 1, number + 1, joints, area=900.0 + 500 * number))
    names = [f"{number}.jpg" for number in range(6)]
    for name in names:
        (tmp_path / name).touch()
    file = tmp_path / "three.json"
    file.write_text(json.dumps(contents(records, names)))
    persons = read_coco(file, tmp_path, (64, 64), skeleton=THREE, for_evaluation=True)
    results = keypoint_results(persons, 1, moved(persons, 3), np.full((6, 3), 0.9))
    scores = keypoint_ap(persons.truth, results, THREE.sigmas)
    expected = 100 * pycocotools_evaluation(file, results, THREE.sigmas).stats
    np.testing.assert_array_equal(list(scores.values()), np.where(expected < 0, np.nan, expected))
    assert math.isnan(scores["APL"])  # nobody is larger than 96^2
    assert 0 < scores["AP"] < 100
    doubled = keypoint_ap(persons.truth, results, [2 * sigma for sigma in THREE.sigmas])
    assert doubled["AP"] > scores["AP"]


@needs_pycocotools
def test_results_of_images_that_are_not_evaluated_are_refused(real_persons):
    results = keypoint_results(real_persons, 1, real_persons.keypoints, np.ones((12, 17)))
    for wrong in ([], [results[0] | {"image_id": 3}]):
        with pytest.raises(ValueError, match="results: expected at least one pose, and all on the 4 images"):
            keypoint_ap(real_persons.truth, wrong, COCO.sigmas)
    with pytest.raises(ValueError, match="results: expected poses of category 1, got one of 2"):
        keypoint_ap(real_persons.truth, [results[0] | {"category_id": 2}], COCO.sigmas)


def test_without_pycocotools_the_command_that_installs_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.cocoeval", None)
    truth = CocoTruth(box_source="annotations", category=1, image_ids=[1], annotations=[])
    with pytest.raises(ValueError, match=r"pycocotools, .*: pip install pycocotools"):
        keypoint_ap(truth, [{"image_id": 1}], COCO.sigmas)


def test_the_table_says_where_the_boxes_came_from():
    truth = CocoTruth(box_source="found.json", category=1, image_ids=[1], annotations=[])
    scorer = ApScorer(persons_of(np.zeros((1, 17, 2)), skeleton=COCO), truth)
    assert scorer.table({"AP": 70.4, "APM": math.nan}).splitlines() == [
        "    AP     APM",
        " 70.40       -",
        "boxes: found.json",
    ]
