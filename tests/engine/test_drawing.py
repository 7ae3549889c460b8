# SPDX-License-Identifier: Apache-2.0
"""Poses drawn into pictures, as a viewer sees them: pixels are looked at."""

import cv2
import numpy as np
import pytest

from fastpose.engine.drawing import _bytes_of, draw_poses, is_found
from fastpose.engine.pictures import GROUND_TRUTH, LEFT, RIGHT
from fastpose.skeletons import COCO, MPII

PLACES = np.stack([np.linspace(40, 360, 16), np.tile([60.0, 150.0, 240.0, 100.0], 4)], axis=1)


def picture(value: int = 128, size: tuple[int, int] = (300, 400)) -> np.ndarray:
    return np.full((*size, 3), value, np.uint8)


def at(drawn: np.ndarray, place: np.ndarray) -> tuple[int, ...]:
    x, y = place.round().astype(int)
    return tuple(int(value) for value in drawn[y, x])


def near(color: tuple[int, ...], expected: str) -> bool:
    return bool(np.abs(np.subtract(color, _bytes_of(expected))).max() <= 2)


def test_the_picture_keeps_its_size_and_is_not_drawn_into():
    for size in ((300, 400), (40, 30), (1200, 3), (1, 1)):
        plain = picture(size=size)
        drawn = draw_poses(plain, PLACES[None], MPII)
        assert drawn.shape == plain.shape
        assert drawn.dtype == np.uint8
        assert (plain == 128).all()


def test_left_and_right_have_colors_of_their_own():
    drawn = draw_poses(picture(), PLACES[None], MPII)
    for right, left in MPII.mirror_pairs:
        assert near(at(drawn, PLACES[right]), RIGHT)
        assert near(at(drawn, PLACES[left]), LEFT)
    names = ("left_elbow", "left_wrist")
    forearm = [COCO.joints.index(name) for name in names]
    scores = np.zeros((1, 17))
    scores[0, forearm] = 1.0
    places = np.full((1, 17, 2), 20.0)
    places[0, forearm] = (100, 100), (300, 200)
    assert near(at(draw_poses(picture(), places, COCO, scores=scores), np.array([200, 150])), LEFT)


@pytest.mark.parametrize("background", [0, 64, 128, 192, 255])
def test_a_joint_can_be_told_from_any_background(background):
    """Somewhere across a dot there is a step of at least 100 grey levels: its edge is black and it is not."""
    drawn = draw_poses(picture(background), PLACES[None], MPII).astype(int)
    for place in PLACES:
        x, y = place.round().astype(int)
        around = drawn[y - 8 : y + 9, x - 8 : x + 9].max(axis=2)
        assert around.max() - around.min() >= 100


def test_a_joint_that_was_not_found_is_not_drawn():
    poses = np.full((1, 16, 2), 100.0)
    poses[0, :3] = (50, 50), (100, 100), (300, 200)
    for score in (0.0, -1.0, 0.19, np.nan):
        scores = np.full((1, 16), score)
        assert np.array_equal(draw_poses(picture(), poses, MPII, scores=scores), picture())
    scores = np.full((1, 16), -1.0)
    scores[0, 0] = 0.9  # an ankle whose knee was not found: no limb
    changed = (draw_poses(picture(), poses, MPII, scores=scores) != 128).any(axis=2)
    ys, xs = np.nonzero(changed)
    assert changed[50, 50]
    assert np.hypot(ys - 50, xs - 50).max() < 8
    assert not draw_poses(picture(), poses, MPII, scores=scores, least_score=0.95)[changed].max() > 128


def test_places_that_are_no_numbers_or_far_away_are_left_out():
    poses = PLACES[None].copy()
    poses[0, 3] = np.nan
    poses[0, 7] = np.inf
    poses[0, 9] = 1e12
    poses[0, 12] = -5000.0
    drawn = draw_poses(picture(), poses, MPII)
    assert near(at(drawn, PLACES[0]), RIGHT)
    assert np.array_equal(draw_poses(picture(), np.full((1, 16, 2), -1e6), MPII), picture())
    assert np.array_equal(draw_poses(picture(), np.zeros((0, 16, 2)), MPII), picture())


def test_the_less_certain_a_joint_the_more_is_seen_through_it():
    seen = []
    for score in (0.25, 0.5, 0.7, 0.95):
        drawn = draw_poses(picture(), PLACES[None], MPII, scores=np.full((1, 16), score))
        seen.append(float(np.linalg.norm(np.subtract(at(drawn, PLACES[0]), 128))))
    assert seen == sorted(seen)
    assert len(set(seen)) == 4


def test_larger_persons_have_wider_lines():
    widths = []
    for length in (30, 300, 1000):
        poses = np.full((1, 16, 2), np.nan)
        poses[0, :2] = (300, 50), (300, 50 + length)
        across = draw_poses(picture(size=(1100, 600)), poses, MPII)[50 + length // 2]
        widths.append(int((across == _bytes_of(RIGHT)).all(axis=1).sum()))
    assert 1 <= widths[0] <= widths[1] < widths[2] < 20


def test_the_prediction_lies_on_top_of_the_truth():
    truth = PLACES[None] + (6.0, 0.0)
    annotated = np.ones((1, 16), bool)
    annotated[0, 5] = False
    drawn = draw_poses(picture(), PLACES[None], MPII, truth=truth, annotated=annotated)
    assert near(at(drawn, PLACES[0]), RIGHT)
    only = draw_poses(picture(), np.zeros((0, 16, 2)), MPII, truth=truth, annotated=annotated)
    assert near(at(only, truth[0, 0]), GROUND_TRUTH)
    far_away = truth.copy()
    far_away[0, 5] = (390, 290)  # not annotated, so it may be anywhere
    assert np.array_equal(only, draw_poses(picture(), np.zeros((0, 16, 2)), MPII, truth=far_away, annotated=annotated))


def test_labels_are_readable_inside_the_picture():
    for places in (PLACES, PLACES - (0, 59), PLACES - (200, 0)):
        plain = draw_poses(picture(), places[None], MPII)
        labelled = draw_poses(picture(), places[None], MPII, labels=["17"])
        ys, xs = np.nonzero((labelled != plain).any(axis=2))
        assert len(ys) > 30
        assert ys.min() >= 0
        assert xs.min() >= 0
        assert labelled[ys, xs].min(axis=1).max() > 200
        assert labelled[ys, xs].max(axis=1).min() < 20


def test_found_is_a_score_above_nothing():
    assert is_found(np.array([0.2, 0.19, 0.0, -1.0, np.nan, 3.0])).tolist() == [True, False, False, False, False, True]
    assert is_found(np.array([0.0, -0.5, 0.01]), least_score=-1.0).tolist() == [False, False, True]


def test_it_draws_as_opencv_would_show_it(tmp_path):
    """A picture that was written and read again still has the colours: nothing exchanged red and blue."""
    drawn = draw_poses(picture(), PLACES[None], MPII)
    cv2.imwrite(str(tmp_path / "a.png"), drawn[..., ::-1])
    assert near(at(cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_COLOR_RGB), PLACES[5]), LEFT)
