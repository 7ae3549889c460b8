# SPDX-License-Identifier: Apache-2.0
"""The data sets in COCO's form: what their files have that COCO's have not, and their own AP."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastpose import evaluate, pack, train
from fastpose.data.annotation_rows import AnnotationError
from fastpose.data.coco import PckScorer, crowd_ap, keypoint_ap, wholebody_ap
from fastpose.data.coco.family_ap import PARTS
from fastpose.data.dataset import Dataset, Scorer
from fastpose.data.datasets import DATASETS, dataset_with_joints, open_dataset
from fastpose.data.pack import Pack, PackError
from fastpose.data.persons import Persons
from fastpose.engine import pictures
from fastpose.models import network
from fastpose.option import OptionError
from fastpose.options.settle import settle
from fastpose.skeletons import COCO, find_skeleton
from tests.helpers.packs import forge_annotations
from tests.helpers.settings import small_network
from tests.helpers.tiny_coco import write_tiny_coco
from tests.helpers.tiny_family import NUMBERS, family_contents, points, record, write_family

pytest.importorskip("pycocotools")

SIZE = (96, 64)
SETS = tuple(NUMBERS)
JOINTS = NUMBERS | {"halpe26": 26}
PARTS_AP = [f"{value}_{part}" for part in PARTS for value in ("AP", "AR")]


def opened(root: Path, name: str, **options: Any) -> Dataset | Pack:
    settings = settle({"data_root": str(root), "dataset": name, "size": SIZE, **options})
    return open_dataset(settings.data, settings.network.size)


def perfect(persons: Persons) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The annotations as predictions, sure of what is annotated alone."""
    return persons.keypoints.copy(), 0.9 * persons.visible, np.ones(len(persons), bool)


def scored(dataset: Dataset | Pack) -> tuple[Scorer, dict[str, float]]:
    scorer = dataset.scorer(persons := dataset.read("valid"))
    scorer.needs(to_train=True)
    values = scorer.score(*perfect(persons))
    assert values is not None
    assert set(scorer.curves) <= set(values)
    return scorer, values


def packed(root: Path, out: Path, name: str, *more: str) -> Path:
    recipe = out.with_suffix(".yaml")
    recipe.write_text(json.dumps({"dataset": name, "size": SIZE}))
    assert pack.main([str(root), str(out), "--recipe", str(recipe), *more]) == 0
    return out


# ---- all of them ----


@pytest.mark.parametrize("name", SETS)
def test_each_is_read_as_distributed_and_the_truth_as_prediction_scores_100(name, tmp_path, caplog):
    dataset = opened(write_family(tmp_path, name), name)
    train, valid = dataset.read("train"), dataset.read("valid")
    assert dataset.skeleton == train.skeleton == find_skeleton(name)
    assert train.truth is None
    joints = JOINTS[name]
    for person in range(3):
        np.testing.assert_array_equal(valid.keypoints[person], points(NUMBERS[name], person)[:joints, :2])
    assert valid.visible.all()
    scorer, values = scored(dataset)
    own = {"wholebody": [*PARTS_AP], "crowdpose": ["APE", "APM", "APH"]}
    assert list(values)[-len(own.get(name, "x")) :] == own.get(name, ["ARL"])
    shown = {value: number for value, number in values.items() if not np.isnan(number)}
    assert shown == pytest.approx(dict.fromkeys(shown, 100))
    assert "AP" in shown
    # Nothing to remark on, except areas that AIC's files do not have.
    assert [text.getMessage() for text in caplog.records if "area" not in text.getMessage()] == []
    assert scorer.name == (name if name in own else "coco")


@pytest.mark.parametrize("name", SETS)
def test_each_is_scored_by_pck_if_asked(name, tmp_path):
    scorer, values = scored(opened(write_family(tmp_path, name), name, score="pck"))
    assert isinstance(scorer, PckScorer)
    assert (values["PCK"], values["EPE"]) == (100, 0)


@pytest.mark.parametrize("name", SETS)
def test_each_is_evaluated_in_detected_boxes(name, tmp_path):
    dataset = opened(write_family(tmp_path, name), name, detections="detections.json")
    valid = dataset.read("valid")
    assert not valid.visible.any()
    scorer = dataset.scorer(valid)
    assert scorer.note.startswith("boxes: detections.json")
    truth = opened(tmp_path, name).read("valid")
    assert scorer.score(*perfect(truth))["AP"] == pytest.approx(100)


@pytest.mark.parametrize("name", SETS)
def test_a_pack_of_each_has_the_persons_and_the_score_of_the_files(name, tmp_path):
    root = write_family(tmp_path / "files", name)
    files, whole = opened(root, name), opened(packed(root, tmp_path / "pack", name), name)
    assert isinstance(whole, Pack)
    assert whole.skeleton == files.skeleton
    for split in ("train", "valid"):
        one, other = files.read(split), whole.read(split)
        np.testing.assert_array_equal(one.keypoints, other.keypoints)
        assert one.truth == other.truth
        assert files.scorer(one).fingerprint() == whole.scorer(other).fingerprint()
    one, other = scored(files), scored(whole)
    np.testing.assert_equal(one[1], other[1])
    assert one[0].name == other[0].name


@pytest.mark.parametrize("name", ["wholebody", "crowdpose"])
def test_a_network_is_trained_on_a_pack_and_evaluated_on_the_files(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(network, "pose_resnet", small_network)
    for drawn in ("draw_curves", "draw_predictions", "draw_heatmaps"):
        monkeypatch.setattr(pictures, drawn, lambda *arguments, **more: None)
    root = write_family(tmp_path / "files", name)
    out, run = packed(root, tmp_path / "pack", name), tmp_path / "run"
    recipe = tmp_path / "tiny.yaml"
    tiny = {"depth": 18, "channels": 8, "size": SIZE, "batch_size": 3, "epochs": 1, "device": "cpu"}
    recipe.write_text(json.dumps(tiny | {"data_root": str(out)}))
    arguments = ["--recipe", str(recipe), "--run", str(run)]
    assert train.main([*arguments, "--dry_run"]) == 0
    assert train.main(arguments) == 0
    assert f"the pack {out} has the data of dataset '{name}'" in capsys.readouterr().err
    checkpoint = ["--checkpoint", str(run / "last.pt"), "--device", "cpu"]
    for data in (root, out):
        scores = tmp_path / "scores" / data.name
        assert evaluate.main([*checkpoint, "--data_root", str(data), "--out", str(scores)]) == 0
        values = json.loads((scores / "scores.json").read_text())[name]
        assert {"AP", "APE"} <= set(values) if name == "crowdpose" else {"AP", *PARTS_AP} <= set(values)
        assert "boxes: annotations" in capsys.readouterr().out


@pytest.mark.parametrize("name", SETS)
def test_joints_of_another_number_are_refused_by_name(name, tmp_path):
    numbers = "17 or 21" if name == "human_art" else JOINTS[name]
    text = (
        rf"^skeleton: --dataset {name} has {numbers} joints, 'mpii' has 16: for other joints in COCO's format there is"
    )
    with pytest.raises(OptionError, match=text):
        opened(tmp_path, name, skeleton="mpii")


def test_a_skeleton_of_the_users_own_with_as_many_joints_is_taken(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text(json.dumps({"joints": list(find_skeleton("aic").joints), "sigmas": [0.1] * 14}))
    persons = opened(write_family(tmp_path, "aic"), "aic", skeleton=str(own)).read("train")
    assert persons.skeleton.sigmas == (0.1,) * 14


@pytest.mark.parametrize(
    ("count", "name"),
    [(16, "mpii"), (17, "coco"), (133, "wholebody"), (26, "halpe26"), (136, "halpe136"), (14, "coco"), (None, "mpii")],
)
def test_a_network_of_unknown_origin_is_for_the_only_order_of_so_many_joints(count, name):
    # 14 are CrowdPose's or AIC's: somebody must say which, as with any joints that --dataset coco may have.
    assert dataset_with_joints(count, named=False) == name
    assert dataset_with_joints(count, named=True) == "coco"


def coco_file(tmp_path: Path) -> dict[str, str]:
    root = write_tiny_coco(tmp_path / "coco")
    return {"train_annotations": "annotations/train.json", "valid_annotations": "annotations/valid.json"} | {
        "data_root": str(root)
    }


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "wholebody",
            r"train\.json: none of its 10 annotations has foot_kpts, face_kpts, lefthand_kpts, righthand_kpts",
        ),
        ("crowdpose", r"train\.json, annotation 1: keypoints must be numbers of shape \[42\], got .* \(a list of 51\)"),
        ("aic", r"train\.json, annotation 1: keypoints must be numbers of shape \[42\], got .* \(a list of 51\)"),
        ("halpe26", r"train\.json, annotation 1: keypoints must be numbers of shape \[78\], got .* \(a list of 51\)"),
        ("halpe136", r"train\.json, annotation 1: keypoints must be numbers of shape \[408\], got .* \(a list of 51\)"),
    ],
)
def test_a_file_of_coco_is_refused_with_what_is_missing(name, message, tmp_path):
    with pytest.raises(AnnotationError, match=message):
        opened(**coco_file(tmp_path) | {"root": Path("."), "name": name}).read("train")


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ([], "must be an object with 'images' and 'annotations', got"),
        ({"images": [], "annotations": []}, "categories must be a list of objects"),
        ({"images": 3, "categories": 7, "annotations": {}}, "categories must be a list of objects, got 7"),
        ({"images": [3], "categories": [{"id": 1}], "annotations": [1]}, "images must be a list of objects, got 3"),
        (family_contents("halpe136", [{"id": 5}]), "annotation 5: category_id must be a number or a text, got nothing"),
        (family_contents("halpe136", ["x"]), 'annotations must be a list of objects, got "x" in row 0'),
        (family_contents("aic", [], categories=[{"id": 1, "keypoints": [[1], 2]}]), "its persons have 2 keypoints"),
        (
            family_contents("halpe136", [{"id": []}]),
            r"annotation 0 of the list: id must be .* got \[\]",
        ),
    ],
)
def test_what_is_no_file_of_coco_s_form_is_an_error_of_one_line(name, contents, message, tmp_path):
    root = write_family(tmp_path, name)
    (root / "odd.json").write_text(json.dumps(contents))
    with pytest.raises(AnnotationError, match=rf"odd\.json.*{message}") as error:
        opened(root, name, train_annotations="odd.json", images=".").read("train")
    assert "\n" not in str(error.value)


# ---- names of joints ----


def test_an_annotation_file_with_the_joints_of_another_set_in_another_order_is_refused(tmp_path):
    records = [record("crowdpose", 1, 1, points(14))]
    root = write_family(tmp_path, "aic", records, categories=family_contents("crowdpose", [])["categories"])
    with pytest.raises(AnnotationError, match=r"aic_train\.json: its keypoints are .*: the same in another order"):
        opened(root, "aic").read("train")


# ---- COCO-WholeBody ----


def wholebody(tmp_path: Path, *records: dict[str, Any], split: str = "valid", **options: Any) -> Persons:
    return opened(write_family(tmp_path, "wholebody", list(records)), "wholebody", **options).read(split)


def test_the_five_fields_of_a_whole_body_are_133_joints_in_their_order(tmp_path, caplog):
    one = record("wholebody", 7, 1, points(133))
    one["righthand_kpts"][-3:] = [33.5, 44.5, 0.25]  # v as a share
    one["foot_kpts"][:3] = [0, 0, 0]
    persons = wholebody(tmp_path, one)
    names = dict(zip(persons.skeleton.joints, persons.keypoints[0].tolist(), strict=True))
    assert names["right_pinky_finger4"] == [33.5, 44.5]
    expected = {"nose": 0, "left_small_toe": 18, "face-0": 23, "left_hand_root": 91, "right_hand_root": 112}
    assert {name: names[name] for name in expected} == {
        name: points(133)[joint, :2].tolist() for name, joint in expected.items()
    }
    assert persons.visible[0].sum() == 132
    assert "joints with a v between 0 and 1, taken for annotated, all of them (least_visibility): 1" in caplog.text


def test_parts_that_are_missing_are_not_annotated_and_are_counted(tmp_path, caplog):
    first, second, third = (record("wholebody", number, number, points(133, number)) for number in (1, 2, 3))
    del first["face_kpts"]
    second |= {"lefthand_kpts": None, "face_kpts": []}
    del third["keypoints"]
    persons = wholebody(tmp_path, first, second, third)
    assert persons.visible.sum(axis=1).tolist() == [133 - 68, 133 - 68 - 21, 133 - 17]
    assert not persons.visible[0, 23:91].any()
    assert "1 without keypoints (the first: annotation 3)" in caplog.text
    assert "2 without face_kpts (the first: annotation 1)" in caplog.text
    assert "1 without lefthand_kpts (the first: annotation 2)" in caplog.text


def test_a_person_is_one_by_all_of_its_joints_and_not_by_its_body_s_number(tmp_path):
    joints = points(133)
    joints[:17] = 0
    one = record("wholebody", 1, 1, joints)
    assert one["num_keypoints"] == 0
    persons = wholebody(tmp_path, one)
    assert persons.truth["annotations"][0]["num_keypoints"] == 116


def test_a_part_that_its_flag_calls_not_valid_counts_if_its_joints_are_annotated_and_is_reported(tmp_path, caplog):
    persons = wholebody(tmp_path, record("wholebody", 4, 1, points(133), face_valid=False))
    assert persons.visible.all()
    assert "1 face_kpts although face_valid is false (the first: annotation 4)" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"foot_kpts": [1, 2, 2]}, r"annotation 9: foot_kpts must be numbers of shape \[18\], got .* \(a list of 3\)"),
        ({"face_kpts": "none"}, r'annotation 9: face_kpts must be numbers of shape \[204\], got "none"$'),
        ({"keypoints": [0] * 399}, r"annotation 9: keypoints must be numbers of shape \[51\], got .*a list of 399"),
        ({"lefthand_kpts": [5, 5, "2"] * 21}, r"keypoints, joint 91 \(left_hand_root\): expected x, y and v, got"),
        ({"righthand_kpts": [5, 5, 7] * 21}, r"joint 112 \(right_hand_root\): expected a v of 0, 1 or 2"),
        ({"id": None, "foot_kpts": 5}, r"annotation 0 of the list: foot_kpts must be numbers of shape \[18\], got 5$"),
    ],
)
def test_a_part_with_other_numbers_is_an_error_that_names_record_and_field(changes, message, tmp_path):
    with pytest.raises(AnnotationError, match=rf"coco_wholebody_val_v1\.0\.json, .*{message}"):
        wholebody(tmp_path, record("wholebody", 9, 1, points(133)) | changes)


def test_whole_bodies_are_written_in_the_five_fields(tmp_path):
    dataset = opened(write_family(tmp_path, "wholebody"), "wholebody")
    persons = dataset.read("valid")
    file = dataset.scorer(persons).write(tmp_path, *perfect(persons)[:2])
    first = json.loads(file.read_text())[0]
    lengths = {key: len(value) for key, value in first.items() if isinstance(value, list)}
    assert lengths == {"keypoints": 51, "foot_kpts": 18, "face_kpts": 204, "lefthand_kpts": 63, "righthand_kpts": 63}
    assert first["foot_kpts"][:2] == points(133)[17, :2].tolist()
    assert {"image_id", "category_id", "score"} <= first.keys()


def test_the_ap_of_parts_and_of_the_whole_worked_out_by_hand(tmp_path):
    without_hands = points(133, 1)
    without_hands[91:] = 0
    persons = wholebody(tmp_path, record("wholebody", 1, 1, points(133)), record("wholebody", 2, 2, without_hands))
    scorer = opened(tmp_path, "wholebody").scorer(persons)
    predictions, scores, seen = perfect(persons)
    predictions[0, 91:112] += 1000  # the left hand of the first, who is the less sure
    scores[0] *= 0.8
    values = scorer.score(predictions, scores, seen)
    hundred = [f"{value}_{part}" for part in ("body", "foot", "face", "righthand") for value in ("AP", "AR")]
    assert {name: values[name] for name in hundred} == pytest.approx(dict.fromkeys(hundred, 100))
    assert (values["AP_lefthand"], values["AR_lefthand"]) == (0, 0)
    # 112 of 133 joints are right: 0.842, enough for 7 of the 10 thresholds. At the others the second person, who comes
    # first, is right, which is a recall of 1/2: 51 of the 101 recalls have a precision of 1.
    assert values["AP"] == pytest.approx(70 + 30 * 51 / 101)
    assert values["AR"] == pytest.approx(70 + 30 / 2)


def test_a_part_that_nobody_has_has_no_ap_and_one_that_nobody_predicts_has_0(tmp_path):
    joints = points(133)
    joints[17:23] = 0
    persons = wholebody(tmp_path, record("wholebody", 1, 1, joints))
    predictions, scores, seen = perfect(persons)
    scores[:, 23:91] = 0
    values = opened(tmp_path, "wholebody").scorer(persons).score(predictions, scores, seen)
    assert np.isnan([values["AP_foot"], values["AR_foot"]]).all()
    assert (values["AP_face"], values["AR_face"]) == (0, 0)
    assert values["AP_body"] == pytest.approx(100)


def test_who_is_left_out_is_so_in_every_part(tmp_path, caplog):
    second = record("wholebody", 2, 2, points(133, 1), bbox=[10, 10, 0, 0])
    persons = wholebody(tmp_path, record("wholebody", 1, 1, points(133)), second)
    assert "1 whose box is empty or outside the image (the first: annotation 2" in caplog.text
    values = opened(tmp_path, "wholebody").scorer(persons).score(*perfect(persons))
    assert values == pytest.approx({name: 100 for name in values} | {"APL": np.nan, "ARL": np.nan}, nan_ok=True)


def test_a_pose_of_a_whole_body_is_as_large_as_its_body():
    joints = points(133)
    truth, _ = shifted(133, 0)
    truth["annotations"] = [record("coco", 1, 1, joints, area=2000.0)]
    right = {"image_id": 1, "category_id": 1, "keypoints": joints.ravel().tolist(), "score": 0.5}
    wrong = joints.copy()
    wrong[:, :2] += 500
    wrong[:17, :2] = 500  # a body of no size, with hands and a face around it
    results = [right, right | {"keypoints": wrong.ravel().tolist(), "score": 0.9}]
    values = wholebody_ap(truth, results, find_skeleton("wholebody").sigmas)
    assert (values["AP"], values["APM"]) == pytest.approx((50, 100))


def test_whole_bodies_in_a_pack_of_other_joints_are_refused(tmp_path):
    persons = opened(coco := Path(coco_file(tmp_path)["data_root"]), "coco", **coco_file_names()).read("valid")
    with pytest.raises(OptionError, match="skeleton: --dataset wholebody has 133 joints, 'coco' has 17"):
        opened(coco, "wholebody").scorer(persons)


def coco_file_names() -> dict[str, str]:
    return {"train_annotations": "annotations/train.json", "valid_annotations": "annotations/valid.json"}


# ---- CrowdPose ----


def crowded_predictions(persons: Persons) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Right on the first and the third image, wrong, and the least sure, on the second."""
    predictions, scores, seen = perfect(persons)
    predictions[1] += 1000
    scores[1] *= 0.5
    return predictions, scores, seen


def test_crowdpose_s_ap_goes_by_how_crowded_images_are(tmp_path):
    dataset = opened(write_family(tmp_path, "crowdpose"), "crowdpose")  # 0.1, 0.2 and 0.8: each at its lower bound
    persons = dataset.read("valid")
    assert persons.truth["crowd_index"] == [0.1, 0.2, 0.8]
    assert "no_area" not in persons.truth
    scorer = dataset.scorer(persons)
    values = scorer.score(*crowded_predictions(persons))
    assert (values["APE"], values["APM"], values["APH"]) == pytest.approx((100, 0, 100))
    # Two of three are found before the first wrong pose: 67 of the 101 recalls.
    assert values["AP"] == pytest.approx(100 * 67 / 101)
    assert values["AR"] == pytest.approx(200 / 3)
    assert scorer.note == "boxes: annotations"
    assert list(values) == ["AP", "AP50", "AP75", "AR", "AR50", "AR75", "APE", "APM", "APH"]


def test_images_that_could_not_be_read_and_kinds_without_images_are_out_of_crowdpose_s_ap(tmp_path):
    dataset = opened(write_family(tmp_path, "crowdpose"), "crowdpose")
    persons = dataset.read("valid")
    predictions, scores, seen = crowded_predictions(persons)
    predictions[0], scores[0], seen[0] = np.nan, np.nan, False
    values = dataset.scorer(persons).score(predictions, scores, seen)
    assert np.isnan(values["APE"])
    assert values["AR"] == pytest.approx(50)
    # Somebody is on an image, and nobody is predicted there: missed.
    assert crowd_ap(persons.truth, [result(persons, 0)], persons.skeleton.sigmas)["APH"] == 0


def test_crowdpose_s_images_without_annotations_can_be_predicted_in_a_detector_s_boxes(tmp_path):
    root = write_family(tmp_path, "crowdpose")
    file = root / DATASETS["crowdpose"].layout["valid_annotations"]
    contents = json.loads(file.read_text())
    del contents["annotations"]
    file.write_text(json.dumps(contents))
    dataset = opened(root, "crowdpose", detections="detections.json")
    persons = dataset.read("valid")
    assert len(persons) == 3
    assert dataset.scorer(persons).score(*perfect(persons)) is None


def result(persons: Persons, row: int) -> dict[str, Any]:
    joints = np.column_stack([persons.keypoints[row], persons.visible[row]]).ravel().tolist()
    return {"image_id": row + 1, "category_id": 1, "keypoints": joints, "score": 0.5}


def test_crowdpose_takes_a_share_of_the_box_for_the_area_whatever_the_file_says(tmp_path):
    values = {}
    for area in (None, 1e9):
        records = [record("crowdpose", 1, 1, points(14), area=area)]
        dataset = opened(write_family(tmp_path / str(area), "crowdpose", records), "crowdpose")
        persons = dataset.read("valid")
        assert persons.truth["annotations"][0]["area"] == pytest.approx(0.53 * 60 * 80)
        predictions, scores, seen = perfect(persons)
        values[area] = dataset.scorer(persons).score(predictions + 12, scores, seen)
    assert values[None] == values[1e9]
    assert values[1e9]["AP"] < 50


def test_persons_of_crowdpose_without_a_visible_joint_are_left_out_as_its_evaluation_does(tmp_path, caplog):
    hidden = points(14, 1)
    hidden[:, 2] = 1
    records = [record("crowdpose", 1, 1, points(14)), record("crowdpose", 2, 2, hidden, num_keypoints=0)]
    persons = opened(write_family(tmp_path, "crowdpose", records), "crowdpose").read("valid")
    assert len(persons) == 1
    assert "1 with joints whose num_keypoints is not above 0 (the first: annotation 2)" in caplog.text


@pytest.mark.parametrize(
    ("image", "got"),
    [
        ({}, "nothing"),
        ({"crowdIndex": None}, "null"),
        ({"crowdIndex": "0.5"}, '"0.5"'),
        ({"crowdIndex": -0.1}, "-0.1"),
        ({"crowdIndex": True}, "true"),
        ({"crowdIndex": float("nan")}, "NaN"),
        ({"crowdIndex": 10**400}, "1000"),
    ],
)
def test_an_image_that_does_not_say_how_crowded_it_is_is_an_error_that_names_it(image, got, tmp_path):
    images = family_contents("crowdpose", [])["images"]
    del images[1]["crowdIndex"]
    images[1] |= image
    root = write_family(tmp_path, "crowdpose", images=images)
    with pytest.raises(
        AnnotationError, match=rf"test\.json, image 2: crowdIndex must be a number from 0 on, got {got}"
    ):
        opened(root, "crowdpose").read("valid")
    assert len(opened(root, "crowdpose").read("train")) == 3  # where nobody needs it
    assert scored(opened(root, "crowdpose", score="pck"))[1]["PCK"] == 100


def test_a_pack_without_crowd_indices_gives_no_crowd_ap(tmp_path):
    out = packed(write_family(tmp_path / "files", "crowdpose"), tmp_path / "pack", "crowdpose", "--score", "pck")
    assert scored(opened(out, "crowdpose", score="pck"))[1]["PCK"] == 100
    with pytest.raises(OptionError, match=r"dataset: crowdpose needs how crowded images are, .*: pack the data again"):
        scored(opened(out, "crowdpose"))


@pytest.mark.parametrize("crowded", [None, [0.1], ["0.1"] * 3, [[0.1]] * 3, {"1": 0.1}])
def test_crowd_indices_of_a_pack_that_no_score_can_use_are_refused(crowded, tmp_path):
    out = packed(write_family(tmp_path / "files", "crowdpose"), tmp_path / "pack", "crowdpose")
    with np.load(out / "valid-persons.npz") as file:
        arrays = dict(file)
    truth = json.loads(arrays["truth"].tobytes()) | {"crowd_index": crowded}
    forge_annotations(out, arrays | {"truth": np.frombuffer(json.dumps(truth).encode(), np.uint8)})
    with pytest.raises(PackError, match=r"damaged: truth: expected numbers for crowd_index, as many as image_ids"):
        opened(out, "crowdpose").read("train")


# ---- AIC, Human-Art, Halpe ----


def test_ai_challenger_s_own_list_is_refused_with_what_to_get(tmp_path):
    original = [{"image_id": "a", "human_annotations": {"human1": [1, 2, 3, 4]}, "keypoint_annotations": {}, "url": ""}]
    root = write_family(tmp_path, "aic")
    (root / "annotations" / "aic_train.json").write_text(json.dumps(original))
    with pytest.raises(
        AnnotationError, match=r"aic_train\.json: is AI Challenger's own list .*: take the files aic_train"
    ):
        opened(root, "aic").read("train")


def test_human_art_has_17_joints_or_with_its_longer_skeleton_21(tmp_path):
    root = write_family(tmp_path, "human_art")
    assert opened(root, "human_art").read("train").visible.shape == (3, 17)
    longer = opened(root, "human_art", skeleton="human_art21").read("train")
    assert longer.skeleton == find_skeleton("human_art21")
    assert longer.visible[0].tolist() == [1] * 19 + [0, 1]
    assert longer.keypoints[0, 17].tolist() == [30, 31]


def test_human_art_without_its_longer_list_leaves_persons_out_and_says_why(tmp_path, caplog):
    first, second = (record("human_art", number, number, points(17, number)) for number in (1, 2))
    del second["keypoints_21"]
    root = write_family(tmp_path, "human_art", [first, second])
    assert len(opened(root, "human_art", skeleton="human_art21").read("train")) == 1
    assert "1 without keypoints (the first: annotation 2)" in caplog.text


def test_halpe26_is_the_first_joints_of_halpe_s_files_or_of_one_with_these_alone(tmp_path):
    long, short = (record("halpe26", number, number, points(136, 3)) for number in (1, 2))
    short["keypoints"] = short["keypoints"][: 3 * 26]
    persons = opened(write_family(tmp_path, "halpe26", [long, short]), "halpe26").read("valid")
    np.testing.assert_array_equal(persons.keypoints[0], persons.keypoints[1])
    np.testing.assert_array_equal(persons.keypoints[0], points(136, 3)[:26, :2])


@pytest.mark.parametrize("name", ["halpe26", "halpe136"])
def test_halpe_s_num_keypoints_which_count_coco_s_joints_do_not_leave_anybody_out(name, tmp_path, caplog):
    joints = points(136)
    joints[:17] = 0
    one = record(name, 1, 1, joints)
    assert one["num_keypoints"] == 0
    with caplog.at_level(logging.WARNING):
        persons = opened(write_family(tmp_path, name, [one]), name).read("valid")
    assert persons.truth["annotations"][0]["num_keypoints"] == JOINTS[name] - 17
    assert not caplog.records


# ---- against the data sets' own evaluations ----


def test_areas_of_poses_decide_in_which_sizes_a_wrong_pose_counts():
    joints = [[10 + k, 10 + 2 * k, 2] for k in range(17)]
    flat = [number for joint in joints for number in joint]
    one = {"image_id": 1, "category_id": 1, "bbox": [10, 10, 40, 50], "iscrowd": 0, "num_keypoints": 17}
    truth = {
        "box_source": "",
        "category": 1,
        "image_ids": [1],
        "annotations": [one | {"keypoints": flat, "area": 2000}],
    }
    right = {"image_id": 1, "category_id": 1, "keypoints": flat, "score": 0.5}
    wrong = right | {"keypoints": (np.array(flat) + 500).tolist(), "score": 0.9}  # a box of 16 x 32 px: small
    values = keypoint_ap(truth, [right, wrong], COCO.sigmas)
    assert (values["AP"], values["APM"]) == pytest.approx((50, 100))
    assert keypoint_ap(truth, [right, wrong], COCO.sigmas, areas=[512, 2000])["APM"] == pytest.approx(50)
    with pytest.raises(ValueError, match="zip"):
        keypoint_ap(truth, [right, wrong], COCO.sigmas, areas=[512])


def shifted(count: int, far: float) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Eight persons on three images, of different sizes and with missing parts, and a pose of each that is off."""
    annotations, results = [], []
    for person in range(8):
        ids = {"image_id": person % 3 + 1, "category_id": 1}
        joints = points(count, person)
        joints[:, 0] += 90 * (person // 3)
        joints[(np.arange(count) // 7 + person) % 5 == 0] = 0
        off = far * ((7 * person + 5 * np.arange(count)) % 9 - 4)
        pose = np.column_stack([joints[:, 0] + off * (person % 3), joints[:, 1] - off, (joints[:, 2] > 0) * 0.9])
        if person == 4:
            pose[-21:, 2] = 0  # and no right hand
        one = record("coco", person + 1, 1, joints, area=700.0 * (1 + person) ** 1.5, iscrowd=int(person == 6))
        annotations.append(one | ids)
        results.append(ids | {"keypoints": pose.ravel().tolist(), "score": (5 * person % 8 + 1) / 10})
    truth = {"box_source": "", "category": 1, "image_ids": [1, 2, 3], "annotations": annotations}
    return truth | {"crowd_index": [0.1, 0.5, 0.9]}, results


def test_the_ap_of_whole_bodies_is_that_of_xtcocotools():
    truth, results = shifted(133, 0.4)
    expected = {"AP": 56.534653, "AP50": 100.0, "AP75": 45.544554, "APM": 56.9967, "APL": 72.623762}
    expected |= {"AR": 61.428571, "AR50": 100.0, "AR75": 57.142857, "ARM": 60.0, "ARL": 75.0}
    expected |= {"AP_body": 95.615276, "AR_body": 97.142857, "AP_foot": 100.0, "AR_foot": 100.0}
    expected |= {"AP_face": 33.432343, "AR_face": 40.0, "AP_lefthand": 76.30363, "AR_lefthand": 80.0}
    expected |= {"AP_righthand": 65.425743, "AR_righthand": 68.571429}  # xtcocotools 1.14.3, keypoints_wholebody etc.
    assert wholebody_ap(truth, results, find_skeleton("wholebody").sigmas) == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ValueError, match=r"^results: expected at least one pose, got none$"):
        wholebody_ap(truth, [], find_skeleton("wholebody").sigmas)


def test_the_ap_of_crowds_is_that_of_crowdposetools():
    truth, results = shifted(14, 1.6)
    for one in truth["annotations"]:
        one["area"] = 0.53 * one["bbox"][2] * one["bbox"][3]
    expected = {"AP": 54.14604, "AP50": 100.0, "AP75": 67.326733, "AR": 58.571429, "AR50": 100.0, "AR75": 71.428571}
    expected |= {"APE": 81.683168, "APM": 60.0, "APH": 30.0}  # crowdposetools before it rounds to four decimals
    assert crowd_ap(truth, results, find_skeleton("crowdpose").sigmas) == pytest.approx(expected, abs=1e-6)
