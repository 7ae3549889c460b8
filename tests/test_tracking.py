# SPDX-License-Identifier: Apache-2.0
"""Persons through frames: numbers, boxes and smoothing, on poses whose ways are known."""

from __future__ import annotations

import numpy as np
import pytest

from fastpose.skeletons import COCO
from fastpose.tracking import OneEuro, Tracker, overlap

POSE = np.stack([np.linspace(0, 60, 17), np.linspace(0, 150, 17)], axis=1)  # 60 px wide, 150 high
SURE = np.full((1, 17), 0.9)
FOUND = np.ones(17, bool)


def moved(x: float) -> np.ndarray:
    """The pose, `x` px to the right."""
    return POSE + np.array([x, 0.0])


def step(tracker: Tracker, *poses: np.ndarray, scores: np.ndarray | None = None, searches: bool = True):
    """A frame in which a detector finds just these; the ids of the poses."""
    corners = np.array([(*pose.min(0), *(pose.max(0) - pose.min(0))) for pose in poses]).reshape(-1, 4)
    places, whose = tracker.boxes(corners if searches else None)
    shown = [np.argmin([np.abs(pose.mean(0) - (box[:2] + box[2:] / 2)).sum() for pose in poses]) for box in places]
    found = np.array([poses[number] for number in shown]).reshape(-1, 17, 2)
    scores = np.repeat(SURE, len(found), axis=0) if scores is None else scores
    rows, ids, smoothed = tracker.update(found, scores, places, whose, 1 / 30)
    return {int(shown[row]): int(one) for row, one in zip(rows, ids, strict=True)}, smoothed


def test_persons_keep_their_numbers_whatever_the_order_of_their_boxes():
    tracker = Tracker(COCO)
    left, right = POSE, moved(200)
    assert step(tracker, left, right)[0] == {0: 1, 1: 2}
    assert step(tracker, right + 4, left + 4)[0] == {0: 2, 1: 1}
    assert step(tracker, left + 8)[0] == {0: 1}
    assert step(tracker, right + 8, left + 12, moved(600))[0] == {0: 2, 1: 1, 2: 3}


def test_somebody_who_moves_fast_is_expected_further_on():
    """What is expected is exact here, so that even a similarity of 0.99 can be asked for."""
    tracker = Tracker(COCO, least_oks=0.99)
    step(tracker, POSE)
    step(tracker, moved(4))
    for number in range(2, 8):
        assert step(tracker, moved(4 * number))[0] == {0: 1}
        assert tracker.tracks[0].velocity.tolist() == pytest.approx([4, 0])
    for number in range(8, 16):  # nobody searches: the box becomes the joints', and some room
        assert step(tracker, moved(4 * number), searches=False)[0] == {0: 1}
    box = tracker.boxes()[0][0]
    assert box[0] + box[2] / 2 == pytest.approx(4 * 16 + 30)
    assert (box[2], box[3]) == pytest.approx((60 * 1.2, 150 * 1.2))


def test_two_boxes_of_one_person_are_one_person_the_older():
    tracker = Tracker(COCO)
    assert step(tracker, POSE)[0] == {0: 1}
    places, whose = tracker.boxes(np.array([[0.0, 0, 60, 150], [200, 0, 60, 150]]))
    rows, ids, _ = tracker.update(np.stack([POSE, POSE + 1]), np.repeat(SURE, 2, 0), places, whose, 1 / 30)
    assert (rows.tolist(), ids.tolist()) == ([0], [1])


def test_who_is_not_seen_for_too_long_gets_another_number():
    for missing, number in ((3, 1), (4, 2)):
        tracker = Tracker(COCO, patience=3)
        step(tracker, POSE)
        for _ in range(missing):
            ids, _ = step(tracker, POSE, scores=np.zeros((1, 17)))
            assert ids == {}
        assert step(tracker, POSE)[0] == {0: number}


def test_a_person_has_three_joints_at_least():
    scores = np.zeros((1, 17))
    for joints, there in ((2, False), (3, True)):
        scores[0, :joints] = 0.5
        tracker = Tracker(COCO)
        assert (step(tracker, POSE, scores=scores)[0] == {0: 1}) == there


def begun() -> Tracker:
    """One person, in a box of 80x180 px around the pose."""
    tracker = Tracker(COCO)
    places, whose = tracker.boxes(np.array([[-10.0, -15, 80, 180]]))
    tracker.update(POSE[None], SURE, places, whose, 1 / 30)
    return tracker


def look(tracker: Tracker, pose: np.ndarray, joints: slice, detected: np.ndarray | None = None) -> list[int]:
    """A frame in which the network finds these joints of `pose` in each box; the ids."""
    places, whose = tracker.boxes(detected)
    scores = np.zeros((len(places), 17))
    scores[:, joints] = 0.5
    return tracker.update(np.repeat(pose[None], len(places), 0), scores, places, whose, 1 / 30)[1].tolist()


def test_a_box_does_not_shrink_to_the_joints_that_are_found():
    """Around four of them fewer would be found: it would end at a foot."""
    tracker = begun()
    before = tracker.boxes()[0][0]
    for number in range(1, 20):
        assert look(tracker, moved(number), slice(13, 17)) == [1]
    assert tracker.boxes()[0][0].tolist() == pytest.approx([before[0] + 19, *before[1:]], abs=1.5)


def test_one_wild_pose_does_not_throw_a_box_away():
    tracker = begun()
    for number in range(5):
        look(tracker, POSE, slice(17), None)
        before = tracker.boxes()[0][0]
        look(tracker, POSE + 1000 if number == 3 else POSE, slice(17))
    assert overlap(tracker.boxes()[0][0], before) > 0.5


def test_a_box_that_drifted_into_a_part_of_a_person_is_put_right_by_the_detector():
    tracker = begun()
    (track,) = tracker.tracks
    track.around = np.array([20.0, 100, 30, 50])  # of the legs
    person = np.array([[-10.0, -15, 80, 180]])
    assert overlap(track.around, person[0]) < 0.3
    places, whose = tracker.boxes(person)
    assert places.tolist() == person.tolist()
    assert whose == [track]


def test_who_the_detector_does_not_find_twice_is_not_looked_for_but_keeps_the_number_for_a_while():
    tracker = begun()
    nobody = np.zeros((0, 4))
    assert look(tracker, POSE, slice(17), nobody) == [1]  # detectors miss somebody now and then
    assert look(tracker, POSE, slice(17)) == [1]
    assert look(tracker, POSE, slice(17), nobody) == []
    assert tracker.followed == []
    assert look(tracker, POSE, slice(17)) == []
    assert look(tracker, POSE, slice(17), np.array([[-10.0, -15, 80, 180]])) == [1]
    assert look(tracker, POSE, slice(17), nobody) == [1]
    assert look(tracker, POSE, slice(17), nobody) == []


def test_who_comes_back_by_the_likeness_of_the_pose_is_looked_for_again():
    tracker = begun()
    nobody = np.zeros((0, 4))
    look(tracker, POSE, slice(17), nobody)
    look(tracker, POSE, slice(17), nobody)
    assert tracker.followed == []
    tracker.tracks[0].around = np.array([500.0, 500, 80, 180])  # no box of the detector's is like its own
    assert look(tracker, POSE, slice(17), np.array([[-10.0, -15, 80, 180]])) == [1]
    assert [track.id for track in tracker.followed] == [1]


def test_a_person_seen_again_has_had_more_time_to_move():
    """So that the filter does not take the way of three frames for a speed of one."""
    waited, moved_on, smoothed = begun(), begun(), []
    nothing = np.zeros((1, 17))
    for _ in range(2):
        places, whose = waited.boxes()
        waited.update(POSE[None], nothing, places, whose, 1 / 30)
    for tracker, seconds in ((waited, 1 / 30), (moved_on, 3 / 30)):
        places, whose = tracker.boxes()
        smoothed.append(tracker.update(moved(9)[None], SURE, places, whose, seconds)[2])
    np.testing.assert_allclose(*smoothed)


def test_nobody_is_looked_for_in_a_part_of_somebody_else():
    tracker = begun()
    step(tracker, POSE, moved(200))
    assert len(tracker.tracks) == 2
    tracker.tracks[1].around = np.array([20.0, 100, 30, 50])
    tracker.tracks[1].pose = tracker.tracks[1].pose - [180, 0]
    places, whose = tracker.boxes(np.array([[-10.0, -15, 80, 180]]))
    assert len(places) == 1
    assert whose == [tracker.tracks[0]]


def test_one_euro_steadies_what_rests_and_follows_what_moves():
    generator = np.random.default_rng(0)
    rests, moves = OneEuro(), OneEuro()
    rough, steady, behind = [], [], []
    for number in range(60):
        noisy = POSE + generator.normal(0, 1, POSE.shape)
        rough.append(noisy)
        steady.append(rests(noisy, FOUND, 1 / 30, 150))
        ahead = moved(20 * number)
        behind.append(np.abs(moves(ahead, FOUND, 1 / 30, 150) - ahead).max())
    assert np.std(np.diff(steady[10:], axis=0)) < 0.6 * np.std(np.diff(rough[10:], axis=0))
    assert max(behind[10:]) < 4  # of the 20 px that it moves in a frame


def test_one_euro_does_not_depend_on_the_size_of_the_picture():
    generator = np.random.default_rng(0)
    small, large = OneEuro(), OneEuro()
    for _ in range(10):
        noisy = POSE + generator.normal(0, 1, POSE.shape)
        np.testing.assert_allclose(4 * small(noisy, FOUND, 1 / 30, 150), large(4 * noisy, FOUND, 1 / 30, 600))


def test_one_euro_does_not_drag_a_joint_from_where_it_was_lost():
    smooth = OneEuro()
    smooth(POSE, FOUND, 1 / 30, 150)
    lost = FOUND.copy()
    lost[3] = False
    elsewhere = POSE.copy()
    elsewhere[3] = (900, 900)
    assert smooth(elsewhere, lost, 1 / 30, 150)[3].tolist() == [900, 900]
    assert smooth(POSE + 30, FOUND, 1 / 30, 150)[3].tolist() == (POSE[3] + 30).tolist()
    assert np.isfinite(smooth(POSE, FOUND, 1 / 30, 150)).all()


def test_overlaps():
    box = np.array([0.0, 0, 10, 10])
    assert overlap(box, box) == 1.0
    assert overlap(box, np.array([5.0, 0, 10, 10])) == pytest.approx(1 / 3)
    assert overlap(box, np.array([20.0, 0, 10, 10])) == 0.0
