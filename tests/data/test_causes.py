# SPDX-License-Identifier: Apache-2.0
"""Errors by cause, shares within thresholds and calibration, worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fastpose.data.causes import (
    CAUSES,
    GOOD,
    INVERSION,
    JITTER,
    MISS,
    SWAP,
    UNCOUNTED,
    calibration,
    causes,
    shares_within,
    similarity,
)
from fastpose.data.coco.oks import oks
from fastpose.skeletons import COCO

# A nose, a left and a right hand; two persons on one image, 100 px apart. An error of 10 px is a similarity of 0.5.
PAIRS = ((2, 1),)
TRUTH = np.array([[[50, 20], [30, 60], [70, 60]], [[150, 20], [130, 60], [170, 60]]], float)
ANNOTATED = np.ones((2, 3), bool)
HALF = np.full((2, 3), 10.0)
TOGETHER = np.zeros(2, int)


def of(points: dict[tuple[int, int], tuple[float, float]], **changes: np.ndarray) -> list[list[int]]:
    """The causes where all predictions are right but those of (person, joint)."""
    predictions = TRUTH.copy()
    for place, point in points.items():
        predictions[place] = point
    given = {"annotated": ANNOTATED, "half": HALF, "image_index": TOGETHER} | changes
    return causes(predictions, TRUTH, **given, mirror_pairs=PAIRS).tolist()


def test_similarity_is_one_half_at_half_and_unknown_without_it() -> None:
    assert similarity(np.array([0.0, 10.0, 20.0, 5.0]), np.array([10.0, 10.0, 10.0, 0.0])).tolist() == [
        1,
        0.5,
        2**-4,
        -1,
    ]


def test_similarity_is_coco_s() -> None:
    """OKS of persons with one joint each, whose similarity is one half at an error of 2 sigma sqrt(2 area ln 2)."""
    area, rng = 5000.0, np.random.default_rng(0)
    for joint, sigma in enumerate(COCO.sigmas):
        half = 2 * sigma * math.sqrt(2 * math.log(2) * area)
        shift = rng.normal(0, half, 2)
        one = np.zeros((1, 17, 2))
        visible = np.eye(17)[[joint]]
        expected = oks(one, one + shift, np.array([area]), COCO.sigmas, visible)[0, 0]
        assert similarity(np.hypot(*shift), np.array(half)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("point", "cause"),
    [
        ((50, 20), GOOD),
        ((54.8, 20), GOOD),  # 2 ** -0.48 ** 2 = 0.8524
        ((54.9, 20), JITTER),  # 0.8467
        ((60, 20), JITTER),  # just 0.5
        ((60.1, 20), MISS),
        ((150, 20), SWAP),
        ((100, 20), MISS),  # between the two noses
    ],
)
def test_a_joint_without_a_mirror_pair(point: tuple[float, float], cause: int) -> None:
    assert of({(0, 0): point}) == [[cause, GOOD, GOOD], [GOOD] * 3]


@pytest.mark.parametrize(
    ("point", "cause"),
    [
        ((70, 60), INVERSION),
        ((62, 65), INVERSION),  # 9.4 px from the person's right hand
        ((130, 60), SWAP),
        ((170, 60), SWAP),  # the mirrored joint of another person
        ((50, 60), MISS),  # between both hands, 20 px from each
        ((50, 20), MISS),  # the person's nose is another joint, and no mirrored one
    ],
)
def test_a_joint_of_a_mirror_pair(point: tuple[float, float], cause: int) -> None:
    assert of({(0, 1): point}) == [[GOOD, cause, GOOD], [GOOD] * 3]


def test_of_equal_similarities_a_joint_s_own_counts() -> None:
    near = TRUTH.copy()
    near[0, 2] = [42, 60]  # the hands are 12 px apart, and the prediction is between them
    predictions = near.copy()
    predictions[0, 1] = [36, 60]
    assert causes(predictions, near, ANNOTATED, HALF, TOGETHER, PAIRS)[0, 1] == JITTER


def test_persons_of_other_images_are_not_swapped_with() -> None:
    assert of({(0, 0): (150, 20)}, image_index=np.array([3, 1]))[0][0] == MISS


def test_the_other_person_s_size_decides_about_a_swap() -> None:
    half = HALF.copy()
    assert of({(0, 0): (158, 20)}, half=half)[0][0] == SWAP
    half[1] = 5  # a small person: 8 px are far
    assert of({(0, 0): (158, 20)}, half=half)[0][0] == MISS


def test_only_annotated_joints_with_a_known_size_count() -> None:
    annotated, half = ANNOTATED.copy(), HALF.copy()
    annotated[0, 0], half[1] = False, 0
    assert of({(0, 1): (70, 60)}, annotated=annotated, half=half) == [[UNCOUNTED, INVERSION, GOOD], [UNCOUNTED] * 3]
    annotated[0, 2] = False  # what is not annotated, nothing is taken for
    assert of({(0, 1): (70, 60)}, annotated=annotated)[0][1] == MISS
    assert CAUSES == ("good", "jitter", "inversion", "swap", "miss")


def test_shares_within_thresholds_include_them() -> None:
    assert shares_within(np.array([0.4, 0.1, 0.2, 0.9]), [0, 0.1, 0.4, 2]) == [0, 25, 75, 100]
    assert math.isnan(shares_within(np.zeros(0), [1])[0])


def test_calibration_of_six_joints() -> None:
    scores = np.array([0.05, 0.15, 0.62, 0.68, 1.4, -0.3])
    bins, gap = calibration(scores, np.array([False, True, True, False, True, False]))
    assert [one.joints for one in bins] == [2, 1, 0, 0, 0, 0, 2, 0, 0, 1]
    assert (bins[6].low, bins[6].high, bins[6].right) == (0.6, 0.7, 0.5)
    assert bins[6].score == pytest.approx(0.65)
    assert math.isnan(bins[2].score)
    # Of 2, 1, 2 and 1 joints: |-0.125 - 0|, |0.15 - 1|, |0.65 - 0.5|, |1.4 - 1|
    assert gap == pytest.approx((2 * 0.125 + 0.85 + 2 * 0.15 + 0.4) / 6)
    assert math.isnan(calibration(np.zeros(0), np.zeros(0, bool))[1])
