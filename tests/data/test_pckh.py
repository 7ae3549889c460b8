# SPDX-License-Identifier: Apache-2.0
import json
import math
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from fastpose.data.dataset import format_values
from fastpose.data.mpii import pckh, pckh_from_mat, read_ground_truth, read_mpii

REAL_MPII = Path(os.environ.get("FASTPOSE_REAL_DATA") or Path(__file__).parents[2] / ".." / "shared" / "data") / "mpii"
NAMES = ["Head", "Shoulder", "Elbow", "Wrist", "Hip", "Knee", "Ankle", "Mean", "Mean@0.1", "Mean@0.11"]


def persons(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keypoints, everything visible, head size 100 px: an error in px is a threshold in hundredths."""
    keypoints = np.random.default_rng(0).integers(0, 500, (count, 16, 2)).astype(np.float64)
    return keypoints, np.ones((count, 16)), np.full(count, 100.0)


def moved(keypoints: np.ndarray, person: int, joint: int, pixels: float) -> np.ndarray:
    keypoints = keypoints.copy()
    keypoints[person, joint, 0] += pixels
    return keypoints


def test_the_truth_scores_100_under_every_name():
    keypoints, visible, head_size = persons(3)
    assert pckh(keypoints, keypoints, visible, head_size) == dict.fromkeys(NAMES, 100.0)


@pytest.mark.parametrize(
    ("joint", "name"),
    [(9, "Head"), (13, "Shoulder"), (11, "Elbow"), (15, "Wrist"), (2, "Hip"), (4, "Knee"), (0, "Ankle")],
)
def test_each_name_is_the_mean_of_left_and_right(joint, name):
    keypoints, visible, head_size = persons(4)
    scores = pckh(moved(keypoints, 2, joint, 51), keypoints, visible, head_size)
    # One of 4 persons wrong: 75 % for that joint, and for a pair the mean with the other side's 100 %.
    assert scores[name] == (75.0 if name == "Head" else 87.5)
    assert [scores[other] for other in NAMES[:7] if other != name] == [100.0] * 6
    # 1 wrong of 4 · 14 joints.
    assert scores["Mean"] == pytest.approx(100 * 55 / 56)


@pytest.mark.parametrize("joint", [6, 7, 8])
def test_pelvis_and_thorax_are_out_of_the_mean_and_the_neck_is_in(joint):
    keypoints, visible, head_size = persons(1)
    scores = pckh(moved(keypoints, 0, joint, 400), keypoints, visible, head_size)
    assert scores["Mean"] == pytest.approx(100 * 13 / 14 if joint == 8 else 100)


@pytest.mark.parametrize(
    ("pixels", "mean", "mean_10", "mean_11"),
    [
        (10.0, 14, 14, 14),
        (np.nextafter(10.0, 11), 14, 13, 14),
        (11.0, 14, 13, 14),
        (np.nextafter(11.0, 12), 14, 13, 13),
        (50.0, 14, 13, 13),
        (np.nextafter(50.0, 51), 13, 13, 13),
    ],
)
def test_an_error_of_just_the_threshold_is_right_and_one_bit_more_is_not(pixels, mean, mean_10, mean_11):
    keypoints, visible, head_size = persons(1)
    keypoints[0, 9] = 0  # so that the sum is exact
    scores = pckh(moved(keypoints, 0, 9, pixels), keypoints, visible, head_size)
    got = [round(scores[name] * 14 / 100, 9) for name in ("Mean", "Mean@0.1", "Mean@0.11")]
    assert got == [mean, mean_10, mean_11]


def test_the_distance_is_euclidean():
    keypoints, visible, head_size = persons(1)
    for offset, score in (((30, 40), 100.0), ((-30, -41), 0.0)):
        predictions = keypoints.copy()
        predictions[0, 9] += offset
        assert pckh(predictions, keypoints, visible, head_size)["Head"] == score


def test_the_mean_weighs_every_annotated_joint_the_same():
    keypoints, visible, head_size = persons(2)
    visible[1, :] = 0
    visible[1, 9] = 1
    scores = pckh(moved(keypoints, 1, 9, 400), keypoints, visible, head_size)
    assert scores["Head"] == 50.0
    # 15 joints count, 14 are right; the mean of the names would weigh the head more.
    assert scores["Mean"] == pytest.approx(100 * 14 / 15)


def test_joints_that_are_not_annotated_do_not_count_wherever_they_are():
    keypoints, visible, head_size = persons(2)
    predictions = moved(keypoints, 0, 9, 400)
    visible[0, 9] = 0
    keypoints[0, 9] = np.nan
    assert pckh(predictions, keypoints, visible, head_size) == dict.fromkeys(NAMES, 100.0)


def test_a_name_without_annotated_joints_is_nan_and_out_of_the_mean():
    keypoints, visible, head_size = persons(2)
    visible[:, 9] = 0
    visible[:, 0] = 0  # right ankle only: the left one speaks for Ankle
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = pckh(moved(keypoints, 0, 5, 400), keypoints, visible, head_size)
        nothing = pckh(np.zeros((0, 16, 2)), np.zeros((0, 16, 2)), np.zeros((0, 16)), np.zeros(0))
    assert math.isnan(scores["Head"])
    assert scores["Ankle"] == 50.0
    assert scores["Mean"] == pytest.approx(100 * 23 / 24)
    assert all(math.isnan(value) for value in nothing.values())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("predictions", np.zeros((2, 17, 2)), r"predictions must be .* \[N, 16, 2\], got .* \[2, 17, 2\]"),
        ("predictions", np.zeros((3, 16, 2)), r"keypoints must be numbers of shape \[3, 16, 2\]"),
        ("predictions", np.full((2, 16, 2), "a"), "predictions must be numbers"),
        ("predictions", np.stack([np.zeros((16, 2)), np.full((16, 2), np.nan)]), "predictions .* finite, .* person 1"),
        ("predictions", np.full((2, 16, 2), np.inf), "predictions .* finite, .* person 0"),
        ("keypoints", np.full((2, 16, 2), np.nan), "keypoints .* finite"),
        ("visible", np.ones((2, 15)), "visible must be"),
        ("head_size", np.array([1.0, 0.0]), "head_size .* positive .* person 1"),
        ("head_size", np.array([np.nan, 1.0]), "head_size .* positive .* person 0"),
        ("head_size", np.ones((2, 1)), "head_size must be"),
    ],
)
def test_bad_arguments_are_named(name, value, message):
    keypoints, visible, head_size = persons(2)
    arguments = {"predictions": keypoints, "keypoints": keypoints, "visible": visible, "head_size": head_size}
    with pytest.raises(ValueError, match=message):
        pckh(**{**arguments, name: value})


def write_ground_truth(path: Path, keypoints: np.ndarray, visible: np.ndarray) -> Path:
    boxes = np.zeros((2, 2, len(keypoints)))
    boxes[1, 0], boxes[1, 1] = 300 / 3.6, 400 / 3.6  # diagonal 500 / 3.6, head size 500 / 6
    scipy.io.savemat(
        path, {"pos_gt_src": keypoints.transpose(1, 2, 0) + 1, "jnt_missing": 1 - visible.T, "headboxes_src": boxes}
    )
    return path


def test_from_mat_takes_0_based_predictions_of_all_or_some_rows(tmp_path):
    keypoints, visible, _ = persons(5)
    path = write_ground_truth(tmp_path / "gt.mat", keypoints, visible)
    wrong = moved(keypoints, 3, 9, 42)  # just above 0.5 · 500 / 6 = 41.67
    assert pckh_from_mat(keypoints, path) == dict.fromkeys(NAMES, 100.0)
    assert pckh_from_mat(wrong, path)["Head"] == 80.0
    assert pckh_from_mat(wrong[[4, 3]], path, rows=[4, 3])["Head"] == 50.0
    assert pckh_from_mat(wrong[[4, 0]], path, rows=np.array([4, 0]))["Head"] == 100.0


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (None, "one entry for each of the 5 persons of .*gt.mat, got 2"),
        ([0], "one entry for each of the 1 rows, got 2"),
        ([0, 5], "numbers of 0 to 4"),
        ([-1, 0], "numbers of 0 to 4"),
        ([1, 1], "different"),
        ([0.0, 1.0], "list of row numbers"),
        ([[0, 1]], "list of row numbers"),
        ([True, False], "list of row numbers"),
    ],
)
def test_rows_that_do_not_fit_are_refused(tmp_path, rows, message):
    keypoints, visible, _ = persons(5)
    path = write_ground_truth(tmp_path / "gt.mat", keypoints, visible)
    with pytest.raises(ValueError, match=message):
        pckh_from_mat(keypoints[:2], path, rows=rows)


def test_the_table_has_a_column_per_name_and_a_dash_for_nan():
    header, values = format_values({"Head": 100.0, "Mean@0.11": 3.14159, "Wrist": math.nan}).split("\n")
    assert header.split() == ["Head", "Mean@0.11", "Wrist"]
    assert values.split() == ["100.00", "3.14", "-"]
    assert len(header) == len(values)


@pytest.mark.skipif(not REAL_MPII.is_dir(), reason="no real data")
class TestRealAnnotations:
    MAT = REAL_MPII / "annot" / "gt_valid.mat"

    def read(self, tmp_path):
        records = json.loads((REAL_MPII / "annot" / "valid.json").read_text())
        for record in records:
            (tmp_path / record["image"]).touch()
        return read_mpii(REAL_MPII / "annot" / "valid.json", tmp_path, head_boxes=self.MAT)

    def test_the_annotations_score_100_against_gt_valid_mat_at_threshold_0(self, tmp_path):
        persons = self.read(tmp_path)
        assert pckh_from_mat(persons.keypoints, self.MAT) == dict.fromkeys(NAMES, 100.0)
        # Heads so small that only an error of exactly 0 is within the threshold.
        truth = read_ground_truth(self.MAT)
        tiny = np.full(len(persons), 1e-30)
        assert pckh(persons.keypoints, truth.keypoints, truth.visible, tiny) == dict.fromkeys(NAMES, 100.0)

    def test_noisy_predictions_score_as_the_formulas_of_simple_baselines(self, tmp_path):
        persons = self.read(tmp_path)
        predictions = persons.keypoints + np.random.default_rng(1).normal(0, 15, persons.keypoints.shape)
        mat = scipy.io.loadmat(self.MAT)
        error = np.linalg.norm(predictions.transpose(1, 2, 0) + 1 - mat["pos_gt_src"], axis=1)
        boxes = mat["headboxes_src"]
        error /= np.linalg.norm(boxes[1] - boxes[0], axis=0) * 0.6
        annotated = 1 - mat["jnt_missing"]
        counts = annotated.sum(axis=1)
        counts[[6, 7]] = 0
        for name, index in (("Mean", 50), ("Mean@0.1", 10), ("Mean@0.11", 11)):
            grid = np.arange(0, 0.51, 0.01)
            per_joint = 100 * ((error <= grid[index]) * annotated).sum(axis=1) / annotated.sum(axis=1)
            expected = (per_joint * counts).sum() / counts.sum()
            assert 10 < expected < 98
            assert pckh_from_mat(predictions, self.MAT)[name] == pytest.approx(expected, abs=1e-9)
