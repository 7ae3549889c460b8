# SPDX-License-Identifier: Apache-2.0
import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastpose.data.coco import Coco, PckScorer, pck
from fastpose.data.coco.pck import auc, epe, nme
from fastpose.data.dataset import DataOptions
from fastpose.data.persons import Persons
from fastpose.option import OptionError
from fastpose.skeletons import COCO, Skeleton

ARM = Skeleton("arm", ("l_shoulder", "elbow", "r_hip"), (), ())


def persons_of(keypoints: Any, visible: Any, skeleton: Skeleton = ARM, **extras: Any) -> Persons:
    """Persons with these joints, each on a picture of its own with the number 10, 11, …"""
    keypoints, visible = np.array(keypoints, np.float32), np.array(visible, np.float32)
    count = len(keypoints)
    return Persons(
        image_paths=tuple(Path(f"/{n}.jpg") for n in range(count)),
        image_index=np.arange(count),
        center=np.zeros((count, 2), np.float32),
        scale=np.ones((count, 2), np.float32),
        keypoints=keypoints,
        visible=visible,
        source_row=np.arange(count) * 2,
        skeleton=skeleton,
        extras={"image_id": np.arange(10, 10 + count), **extras},
    )


def random_case(seed: int, count: int = 40, joints: int = 9) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Predictions, keypoints, visible and sizes; one joint that nobody has, and one size of 0."""
    rng = np.random.default_rng(seed)
    keypoints = rng.uniform(0, 400, (count, joints, 2))
    predictions = keypoints + rng.normal(0, 12, keypoints.shape)
    visible = (rng.random((count, joints)) < 0.7).astype(np.float64)
    visible[:, 4] = 0
    size = rng.uniform(20, 120, count)
    size[3] = 0
    return predictions, keypoints, visible, size


# ---- the functions ----


def test_each_value_is_what_a_pocket_calculator_gives():
    # Two persons, joints A and B at (0, 0). Distances: 3-4-5 → 5 and 0; 6-8-10 → 10 and, not annotated, anything.
    predictions = np.array([[[3, 4], [0, 0]], [[6, -8], [99, 99]]])
    visible = np.array([[1, 1], [1, 0]])
    arguments = (predictions, np.zeros((2, 2, 2)), visible)
    # In units of 20 and 100 px: 0.25 and 0; 0.1. Below 0.2: A one of two, B one of one; their mean is 75.
    mean, joints = pck(*arguments, np.array([20.0, 100.0]), 0.2)
    assert mean == 75
    np.testing.assert_array_equal(joints, [50, 100])
    assert epe(*arguments) == 5  # (5 + 0 + 10) / 3
    assert nme(*arguments, np.array([20.0, 100.0])) == pytest.approx(100 * 0.35 / 3, abs=1e-12)
    # In units of 20 px, A: 0.25 is below 0.30, 0.35 … 0.95, 14 of 20 thresholds, and 0.5 below 0.55 … 0.95, 9; B: 0 is
    # below all but the first, 19. The mean of A's (14 + 9) / 40 and B's 19 / 20 is 76.25 %.
    assert auc(*arguments, 20.0) == pytest.approx(76.25, abs=1e-12)


def test_an_error_of_just_the_threshold_is_wrong_and_one_bit_less_is_right():
    keypoints, visible = np.zeros((1, 1, 2)), np.ones((1, 1))
    for error, expected in ((10.0, 0), (np.nextafter(10.0, 0), 100)):
        assert pck(np.array([[[error, 0]]]), keypoints, visible, 40.0, 0.25)[0] == expected
    # An AUC's thresholds are 0, 0.05, … 0.95. No error is below 0; 15 px in units of 30 px are below the last 9.
    assert auc(np.zeros((1, 1, 2)), keypoints, visible) == pytest.approx(95, abs=1e-12)
    assert auc(np.array([[[15.0, 0]]]), keypoints, visible) == pytest.approx(45, abs=1e-12)


def test_the_mean_weighs_joints_and_not_persons_the_same():
    keypoints, visible = np.zeros((4, 2, 2)), np.array([[1, 1], [1, 0], [1, 0], [1, 0]])
    predictions = np.zeros((4, 2, 2))
    predictions[0, 1] = 500
    mean, joints = pck(predictions, keypoints, visible, 100.0)
    np.testing.assert_array_equal(joints, [100, 0])
    assert mean == 50  # 4 of all 5 joints are right


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("norm", ["box", "torso", "pixels"])
def test_random_poses_score_as_mmposes_formulas(seed, norm):
    predictions, keypoints, visible, sides = random_case(seed, joints=17)
    persons = persons_of(keypoints, visible, COCO, box_side=sides.astype(np.float32))
    keypoints = persons.keypoints.astype(np.float64)
    torso = np.linalg.norm(keypoints[:, 5] - keypoints[:, 12], axis=1) * visible[:, 5] * visible[:, 12]
    size = {"box": persons.extras["box_side"], "torso": torso, "pixels": np.full(len(persons), 100)}[norm]
    mask = (visible > 0) & (size > 0)[:, None]
    size = np.where(size > 0, size, 1e6).astype(np.float64)

    def accuracy(norm_size, counted, threshold):
        distances = np.linalg.norm((predictions - keypoints) / norm_size[:, None, None], axis=-1)
        joints = [d[c] for d, c in zip(distances.T, counted.T, strict=True)]
        return 100 * np.array([(d < threshold).mean() if len(d) else np.nan for d in joints])

    pixels = np.linalg.norm(predictions - keypoints, axis=-1)
    for threshold in (0.05, 0.1, 0.2):
        data = DataOptions(score="pck", pck_norm=norm, pck_threshold=threshold, pck_pixels=100.0)
        values = PckScorer(persons, data).score(predictions, visible, np.ones(len(persons), bool))
        joints = accuracy(size, mask, threshold)
        np.testing.assert_allclose([values[name] for name in COCO.joints], joints, rtol=0, atol=1e-12)
        assert values["PCK"] == pytest.approx(np.nanmean(joints), abs=1e-12)
        assert 1 < values["PCK"] < 99
        assert values["NME"] == pytest.approx(100 * (pixels / size[:, None])[mask].mean(), rel=1e-12)
        assert values["EPE"] == pytest.approx(pixels[visible > 0].mean(), rel=1e-12)
        curve = [np.nanmean(accuracy(np.full(len(persons), 100.0), visible > 0, step / 20)) for step in range(20)]
        assert values["AUC"] == pytest.approx(sum(curve) / 20, abs=1e-12)


def test_joints_that_are_not_annotated_and_persons_without_a_size_do_not_count_whatever_they_hold():
    predictions, keypoints, visible, size = random_case(3)
    expected = pck(predictions, keypoints, visible, size), nme(predictions, keypoints, visible, size)
    keypoints[visible == 0] = np.nan
    predictions[visible == 0] = 1e9
    predictions[3] += 1e9  # the person whose size is 0
    found = pck(predictions, keypoints, visible, size), nme(predictions, keypoints, visible, size)
    assert found[0][0] == expected[0][0]
    np.testing.assert_array_equal(found[0][1], expected[0][1])
    assert math.isnan(found[0][1][4])
    assert found[1] == expected[1]


def test_where_nobody_counts_all_values_are_nan():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for count, size in ((0, 1.0), (2, 0.0)):
            shape = np.zeros((count, 3, 2)), np.zeros((count, 3, 2)), np.ones((count, 3))
            mean, joints = pck(*shape, size)
            assert math.isnan(mean)
            assert np.isnan(joints).all()
            assert joints.shape == (3,)
            assert math.isnan(nme(*shape, size))
            assert math.isnan(auc(*shape, size))
        assert math.isnan(epe(np.zeros((2, 3, 2)), np.zeros((2, 3, 2)), np.zeros((2, 3))))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("predictions", np.zeros((2, 3, 3)), r"predictions must be numbers of shape \[N, K, 2\], got .* \[2, 3, 3\]"),
        ("predictions", np.zeros((3, 3, 2)), r"keypoints must be numbers of shape \[3, 3, 2\]"),
        ("predictions", np.full((2, 3, 2), "a"), "predictions must be numbers"),
        ("predictions", np.stack([np.zeros((3, 2)), np.full((3, 2), np.nan)]), "predictions .* finite, .* person 1"),
        ("keypoints", np.full((2, 3, 2), np.inf), "keypoints .* finite where visible, .* person 0"),
        ("visible", np.ones((2, 2)), r"visible must be numbers of shape \[2, 3\]"),
        ("size", np.array([1.0, -1.0]), "size .* not negative, .* person 1"),
        ("size", np.array([np.nan, 1.0]), "size must be finite .* person 0"),
        ("size", np.ones(3), r"size must be numbers of shape \[2\]"),
        ("size", math.inf, "size must be finite"),
        ("size", None, "size must be numbers"),
        ("threshold", 0.0, "threshold must be positive and finite, got 0"),
        ("threshold", math.nan, "threshold must be positive and finite, got nan"),
    ],
)
def test_bad_arguments_are_named(name, value, message):
    arguments = {"predictions": np.zeros((2, 3, 2)), "keypoints": np.zeros((2, 3, 2)), "visible": np.ones((2, 3))}
    with pytest.raises(ValueError, match=message):
        pck(**{**arguments, "size": 1.0, name: value})


# ---- the score of a run ----


def three_persons() -> Persons:
    """Torsos of 40 and 40 px and one without a hip; boxes of 100, 200 and 50 px."""
    keypoints = [[[0, 0], [9, 9], [24, 32]], [[50, 0], [9, 9], [10, 0]], [[0, 0], [9, 9], [5, 5]]]
    visible = [[1, 1, 1], [1, 1, 1], [1, 1, 0]]
    return persons_of(keypoints, visible, box_side=np.array([100, 200, 50], np.float32))


# The elbows are 10 px off, everything else is right. Threshold 0.2 of the boxes is 20, 40 and 10 px: right, right, and
# wrong by a tie; of the torsos 8 and 8 px, the third person left out: wrong; of 50 px, 10 px: wrong by a tie.
@pytest.mark.parametrize(
    ("options", "elbow", "nme_percent", "left_out"),
    [
        ({"pck_norm": "box"}, 200 / 3, 100 * (0.1 + 0.05 + 0.2) / 8, 0),
        ({"pck_norm": "torso"}, 0, 100 * (0.25 + 0.25) / 6, 1),
        ({"pck_norm": "pixels", "pck_pixels": 50.0}, 0, 100 * 0.6 / 8, 0),
        ({"pck_norm": "pixels", "pck_pixels": 50.0, "pck_threshold": 0.25}, 100, 100 * 0.6 / 8, 0),
    ],
)
def test_a_run_is_scored_by_box_torso_or_pixels(options, elbow, nme_percent, left_out):
    persons = three_persons()
    scorer = PckScorer(persons, DataOptions(dataset="coco", score="pck", **options))
    scorer.needs(to_train=True)
    predictions = persons.keypoints.copy()
    predictions[:, 1, 0] += 10
    values = scorer.score(predictions, np.ones((3, 3), np.float32), np.ones(3, bool))
    assert list(values) == ["PCK", "l_shoulder", "elbow", "r_hip", "AUC", "EPE", "NME"]
    assert (values["l_shoulder"], values["r_hip"]) == (100, 100)
    assert values["elbow"] == pytest.approx(elbow, abs=1e-12)
    assert values["PCK"] == pytest.approx((200 + elbow) / 3, abs=1e-12)
    assert values["NME"] == pytest.approx(nme_percent, abs=1e-6)
    # All persons count, whatever the norm: 3 of 8 joints are 10 px off.
    assert values["EPE"] == pytest.approx(30 / 8, abs=1e-12)
    # 10 px in 30 are below 0.35 … 0.95, 13 of 20; in 50 px below 0.25 … 0.95, 15. Nothing is below 0.
    passed = 15 if "pck_pixels" in options else 13
    assert values["AUC"] == pytest.approx((95 + 95 + 5 * passed) / 3, abs=1e-9)
    assert all(type(value) is float for value in values.values())
    threshold, pixels = options.get("pck_threshold", 0.2), options.get("pck_pixels", 30.0)
    assert scorer.notes == {
        "norm": options["pck_norm"],
        "threshold": threshold,
        "pixels": pixels,
        "left_out": left_out,
    }
    assert scorer.main in values
    assert scorer.label == f"PCK@{threshold}"
    assert scorer.curves.keys() <= values.keys()
    assert ("1 of 3 persons left out" in scorer.note) == (left_out == 1)


def test_persons_whose_image_could_not_be_read_are_left_out():
    persons = three_persons()
    scorer = PckScorer(persons, DataOptions(dataset="coco", score="pck"))
    predictions = persons.keypoints.copy()
    predictions[1] = np.nan
    seen = np.array([True, False, True])
    values = scorer.score(predictions, np.ones((3, 3)), seen)
    assert (values["PCK"], values["EPE"]) == (100, 0)
    with pytest.raises(ValueError, match="predictions must be finite, they are not for person 1"):
        scorer.score(predictions, np.ones((3, 3)), np.ones(3, bool))
    with pytest.raises(ValueError, match=r"PCK needs annotated joints and the longer side .* none of the persons"):
        scorer.score(predictions, np.ones((3, 3)), np.zeros(3, bool))


@pytest.mark.parametrize(
    ("shoulder", "hip"),
    [("left_shoulder", "right_hip"), ("L-Shoulder", "R-Hip"), ("leftShoulder", "rightHip"), ("l shoulder", "R.HIP")],
)
def test_the_torso_is_found_by_the_names_of_its_ends(shoulder, hip):
    skeleton = Skeleton("any", ("right_shoulder", hip, "nose", shoulder, "left_hip"), (), ())
    keypoints = np.zeros((1, 5, 2))
    keypoints[0, 1], keypoints[0, 3] = (30, 0), (0, 40)
    scorer = PckScorer(persons_of(keypoints, np.ones((1, 5)), skeleton), DataOptions(score="pck", pck_norm="torso"))
    scorer.needs(to_train=True)
    np.testing.assert_array_equal(scorer.size, [50])


def test_a_torso_below_a_pixel_or_half_annotated_is_not_known():
    keypoints = np.zeros((4, 3, 2))
    keypoints[:, 0, 0] = [0, 0.99, 1, 1]
    persons = persons_of(keypoints, [[1, 1, 1], [1, 1, 1], [1, 1, 1], [0, 1, 1]])
    scorer = PckScorer(persons, DataOptions(score="pck", pck_norm="torso"))
    np.testing.assert_array_equal(scorer.size, [0, 0, 1, 0])
    assert scorer.notes["left_out"] == 3


def test_what_cannot_be_scored_is_an_error_of_its_option():
    box = {"box_side": np.array([100], np.float32)}
    hand = Skeleton("hand", ("wrist", "thumb"), (), ())
    for option, message, persons, options in (
        (
            "detections",
            "compares each person with its own annotation",
            persons_of([[[0, 0]] * 3], [[0] * 3], **box),
            {},
        ),
        ("valid_annotations", "needs annotated joints", persons_of([[[0, 0]] * 3], [[0] * 3], **box), {}),
        ("pck_norm", "pack again with --score pck", persons_of([[[0, 0]] * 3], [[1] * 3]), {}),
        ("pck_norm", "'hand' has wrist, thumb", persons_of([[[0, 0]] * 2], [[1, 1]], hand), {"pck_norm": "torso"}),
        ("pck_norm", "torso is not known for any", persons_of([[[0, 0]] * 3], [[1, 1, 0]]), {"pck_norm": "torso"}),
    ):
        detections = "boxes.json" if option == "detections" else ""
        scorer = PckScorer(persons, DataOptions(score="pck", detections=detections, **options))
        for to_train in (False, True):
            if option == "valid_annotations" and not to_train:
                scorer.needs(to_train=False)  # predictions only
                continue
            with pytest.raises(OptionError, match=message) as raised:
                scorer.needs(to_train=to_train)
            assert raised.value.option == option


@pytest.mark.parametrize("name", ["pck_threshold", "pck_pixels"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_thresholds_and_pixels_that_are_not_positive_numbers_are_refused(name, value):
    with pytest.raises(OptionError, match=f"{name}: expected a positive number, got {value}"):
        DataOptions(**{name: value})


def test_without_annotations_there_is_no_score():
    scorer = PckScorer(persons_of([[[0, 0]] * 3], [[0] * 3]), DataOptions(score="pck"))
    assert scorer.score(np.zeros((1, 3, 2)), np.ones((1, 3)), np.ones(1, bool)) is None
    assert scorer.table(None) == "no annotations, no PCK: predictions only"


def test_the_table_has_the_means_then_six_joints_a_row():
    skeleton = Skeleton("seven", tuple("abcdefg"), (), ())
    persons = persons_of(np.zeros((1, 7, 2)), [[1, 1, 1, 1, 1, 1, 0]], skeleton, box_side=np.ones(1, np.float32))
    scorer = PckScorer(persons, DataOptions(score="pck", pck_threshold=0.05))
    table = scorer.table(scorer.score(persons.keypoints, np.ones((1, 7)), np.ones(1, bool))).split("\n")
    assert table[0].split() == ["PCK@0.05", "AUC", "EPE", "(px)", "NME"]
    assert table[1].split() == ["100.00", "95.00", "0.00", "0.00"]
    assert table[2] == "errors relative to the longer side of the box"
    assert [line.split() for line in table[3:]] == [list("abcdef"), ["100.00"] * 6, ["g"], ["-"]]


def test_predictions_are_written_as_coco_results_with_the_row_of_each_annotation(tmp_path):
    persons = three_persons()
    predictions, scores = persons.keypoints.copy(), np.full((3, 3), 0.5, np.float32)
    scores[2] = [0.25, 0.5, 0.75]
    predictions[1] = scores[1] = np.nan
    path = PckScorer(persons, DataOptions(score="pck")).write(tmp_path, predictions, scores)
    assert path == tmp_path / "keypoints_results.json"
    assert json.loads(path.read_text()) == [
        {"image_id": 10, "keypoints": [0, 0, 0.5, 9, 9, 0.5, 24, 32, 0.5], "score": 0.5, "annotation_row": 0},
        {"image_id": 12, "keypoints": [0, 0, 0.25, 9, 9, 0.5, 5, 5, 0.75], "score": 0.5, "annotation_row": 4},
    ]


def test_the_fingerprint_tells_other_box_sides_and_none():
    persons, data = three_persons(), DataOptions(score="pck")
    other = persons_of(persons.keypoints, persons.visible, box_side=np.array([100, 200, 51], np.float32))
    without = persons_of(persons.keypoints, persons.visible)
    prints = [PckScorer(one, data).fingerprint() for one in (persons, other, without)]
    assert len(set(prints)) == 3
    assert PckScorer(persons, DataOptions(score="pck", pck_norm="torso")).fingerprint() == prints[0]


def test_data_in_cocos_format_with_any_joints_and_no_sigmas_are_scored_by_pck(tmp_path):
    (tmp_path / "a.jpg").touch()
    (tmp_path / "dog.yaml").write_text("joints: [nose, tail]")
    annotation = {"id": 7, "image_id": 3, "category_id": 4, "bbox": [2, 2, 30, 50], "area": 900}
    contents = {
        "images": [{"id": 3, "file_name": "a.jpg", "width": 64, "height": 64}],
        "categories": [{"id": 4, "name": "dog", "keypoints": ["nose", "tail"]}],
        "annotations": [{**annotation, "keypoints": [10, 10, 2, 20, 40, 1]}],
    }
    (tmp_path / "valid.json").write_text(json.dumps(contents))
    names = {"valid_annotations": "valid.json", "images": "", "skeleton": str(tmp_path / "dog.yaml")}
    dataset = Coco(DataOptions(data_root=str(tmp_path), dataset="coco", score="pck", **names), (256, 192))
    persons = dataset.read("valid")
    scorer = dataset.scorer(persons)
    scorer.needs(to_train=True)
    # 0.2 of the box's 50 px are 10 px: the nose is 9 px off, the tail 11.
    predictions = persons.keypoints + np.array([[[9, 0], [0, 11]]])
    values = scorer.score(predictions, np.ones((1, 2)), np.ones(1, bool))
    assert (values["PCK"], values["nose"], values["tail"]) == (50, 100, 0)
    (result,) = json.loads(scorer.write(tmp_path, predictions, np.ones((1, 2))).read_text())
    assert (result["image_id"], result["category_id"], result["annotation_row"]) == (3, 4, 0)


def test_cocos_skeleton_has_a_torso():
    persons = persons_of(np.random.default_rng(0).uniform(0, 99, (1, 17, 2)), np.ones((1, 17)), COCO)
    scorer = PckScorer(persons, DataOptions(score="pck", pck_norm="torso"))
    left_shoulder, right_hip = persons.keypoints[0, 5], persons.keypoints[0, 12]
    assert scorer.size[0] == pytest.approx(np.linalg.norm(left_shoulder - right_hip), rel=1e-6)
