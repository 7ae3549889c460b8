# SPDX-License-Identifier: Apache-2.0
"""Files in COCO's format as data sets come with them, and the least that a user's own needs: each is read as it is
meant, and the truth given as a prediction is perfect by AP and by PCK."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from fastpose import evaluate, pack, train
from fastpose.data.coco import AnnotationError, ApScorer, PckScorer, read_coco
from fastpose.data.dataset import DataOptions
from fastpose.data.persons import Persons
from fastpose.models import network
from fastpose.option import OptionError
from fastpose.skeletons import Skeleton
from tests.helpers.settings import small_network
from tests.helpers.tiny_coco import annotation, contents

THREE = Skeleton("three", ("left", "right", "top"), ((1, 0),), ((0, 2), (1, 2)))
PLACES = np.array([[20.0, 30.0, 2], [50.0, 60.0, 1], [40.0, 40.0, 2]])  # their box is 30 x 30 px at (20, 30)
Change = Callable[[dict[str, Any]], None]


def persons_on(*images: int) -> list[dict[str, Any]]:
    return [annotation(row + 1, image, PLACES + np.array([20 * row, 0, 0])) for row, image in enumerate(images)]


def read(folder: Path, content: dict[str, Any], category: str = "", **options: Any) -> Persons:
    for image in content["images"]:
        (folder / image["file_name"]).touch()
    file = folder / "coco.json"
    file.write_text(json.dumps(content))
    options = {"skeleton": THREE, "for_evaluation": True, "box_sides": True, "category": category, **options}
    return read_coco(file, folder, (64, 64), **options)


def perfect(persons: Persons, **options: Any) -> dict[str, float]:
    """AP and PCK of predictions that are the annotations, in percent."""
    scores, seen = np.ones(persons.visible.shape, np.float32), np.ones(len(persons), bool)
    found = {}
    for scorer in (ApScorer(persons, persons.truth), PckScorer(persons, DataOptions(dataset="coco", score="pck"))):
        scorer.needs(to_train=True)
        values = scorer.score(persons.keypoints, scores, seen)
        assert values is not None
        found[scorer.main] = round(values[scorer.main], 9)
    return found


def all_have(**fields: Any) -> Change:
    """Gives each annotation these fields, or, if they are None, takes them away."""

    def change(content: dict[str, Any]) -> None:
        for one in content["annotations"]:
            for name, value in fields.items():
                one.pop(name) if value is None else one.update({name: value})

    return change


def nested(content: dict[str, Any]) -> None:
    for one in content["annotations"]:
        one["keypoints"] = np.reshape(one["keypoints"], (-1, 3)).tolist()


def one_without_joints(content: dict[str, Any]) -> None:
    content["annotations"].append(annotation(9, 1, PLACES, keypoints=[]))


def ids_from_0(content: dict[str, Any]) -> None:
    for one in (*content["images"], *content["annotations"], *content["categories"]):
        one["id"] -= 1
    for one in content["annotations"]:
        one |= {"image_id": one["image_id"] - 1, "category_id": 0}


def ids_as_floats(content: dict[str, Any]) -> None:
    for one in (*content["images"], *content["annotations"]):
        one |= {name: float(one[name]) for name in ("id", "image_id", "category_id") if name in one}


def more_names_than_numbers(content: dict[str, Any]) -> None:
    content["categories"][0]["keypoints"] = [*THREE.joints, "finger", "toe"]


def animals(content: dict[str, Any]) -> None:
    content["categories"] = [{"id": number, "name": name} for number, name in ((4, "cat"), (7, "dog"), (8, "pets"))]
    for one, category in zip(content["annotations"], (4, 7, 4), strict=True):
        one["category_id"] = category


def animals_that_no_category_lists(content: dict[str, Any]) -> None:
    animals(content)
    del content["categories"][1]


# What a data set's files have, how many of the three persons are then read, and with which option.
FAMILIES: dict[str, tuple[Change, int, str]] = {
    "no area": (all_have(area=None), 3, ""),
    "no iscrowd": (all_have(iscrowd=None), 3, ""),
    "no num_keypoints": (all_have(num_keypoints=None), 3, ""),
    "no ids of annotations": (all_have(id=None), 3, ""),
    "no bbox": (all_have(bbox=None), 3, ""),
    "neither bbox nor area": (all_have(bbox=None, area=None), 3, ""),
    "centre and scale instead of bbox": (all_have(bbox=None, center=[30, 40], scale=0.5), 3, ""),
    "nested keypoints": (nested, 3, ""),
    "somebody with keypoints: []": (one_without_joints, 3, ""),
    "ids from 0": (ids_from_0, 3, ""),
    "ids as floats": (ids_as_floats, 3, ""),
    "more names than numbers": (more_names_than_numbers, 3, ""),
    "several categories, all": (animals, 3, "all"),
    "several categories, one": (animals, 2, "cat"),
    "annotations of a category that is not listed": (animals_that_no_category_lists, 3, "all"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_truth_as_a_prediction_is_perfect(tmp_path: Path, family: str) -> None:
    pytest.importorskip("pycocotools")
    change, count, category = FAMILIES[family]
    content = contents(persons_on(1, 1, 2), ["a.jpg", "b.jpg"])
    change(content)
    persons = read(tmp_path, content, category)
    assert len(persons) == count
    assert persons.keypoints[0].tolist() == PLACES[:, :2].tolist()
    assert perfect(persons) == {"AP": 100, "PCK": 100}


def test_several_categories_are_an_error_that_names_the_option(tmp_path: Path) -> None:
    content = contents(persons_on(1, 1, 2), ["a.jpg", "b.jpg"])
    animals(content)
    with pytest.raises(AnnotationError, match=r'got \["cat", "dog"\], got .*: name one with category, or all$'):
        read(tmp_path, content)
    with pytest.raises(OptionError, match=r"category: .* has none named 'pet'"):
        read(tmp_path, content, "pet")


def test_categories_that_are_not_listed_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = contents(persons_on(1, 1, 2), ["a.jpg", "b.jpg"])
    animals_that_no_category_lists(content)
    read(tmp_path, content, "all")
    assert "coco.json: annotations of category [7] are read, too, which categories do not list" in caplog.text


@pytest.mark.parametrize(
    ("keypoints", "got"),
    [
        ([[1, 2], [3, 4], [5, 6]], r"\[\[1, 2\], \[3, 4\], \[5, 6\]\] \(a list of 3\)"),
        ([[1, 2, 2], [3, 4], [5, 6, 2, 7]], r"\[\[1, 2, 2\], \[3, 4\], \[5, 6, 2, 7\]\] \(a list of 3\)"),
        ([[1, 2, 2], [3, 4, 2]], r"\[1, 2, 2, 3, 4, 2\] \(a list of 6\)"),
        ([[[1, 2, 2]] * 3], r"\[\[1, 2, 2\], \[1, 2, 2\], \[1, 2, 2\]\] \(a list of 3\)"),
        ([1, 2, 2, [3, 4, 2], 5, 6], r"\[1, 2, 2, \[3, 4, 2\], 5, 6\] \(a list of 6\)"),
    ],
)
def test_lists_of_other_than_three_numbers_a_joint_are_refused(tmp_path: Path, keypoints: Any, got: str) -> None:
    content = contents([annotation(1, 1, PLACES, keypoints=keypoints)], ["a.jpg"])
    with pytest.raises(AnnotationError, match=rf"annotation 1: keypoints must be numbers of shape \[9\], got {got}"):
        read(tmp_path, content)


@pytest.mark.parametrize(("listed", "same"), [("Left RIGHT top_", True), ("left Right chin", False)])
def test_names_that_differ_in_case_and_separators_are_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, listed: str, same: bool
) -> None:
    categories = [{"id": 1, "name": "person", "keypoints": listed.split()}]
    read(tmp_path, contents(persons_on(1), ["a.jpg"], categories=categories))
    assert ("taken for the same joints in that order" not in caplog.text) == same
    categories[0]["keypoints"] = ["Right", "left", "TOP"]
    with pytest.raises(AnnotationError, match="the same in another order"):
        read(tmp_path, contents(persons_on(1), ["a.jpg"], categories=categories))


# ---- boxes of joints ----


@pytest.mark.parametrize("missing", [None, [], float("nan")])
def test_without_a_box_a_person_has_one_around_its_joints(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, missing: Any
) -> None:
    pytest.importorskip("pycocotools")
    records = persons_on(1, 1, 2)
    for one in records[1:]:
        one["bbox"] = missing
    del records[2]["area"]
    with caplog.at_level(logging.WARNING):
        persons = read(tmp_path, contents(records, ["a.jpg", "b.jpg"]))
    # Joints of 30 x 30 px, from 40 (60) to 70 (90) and from 30 to 60, and 3 px more on each side.
    assert [one["bbox"] for one in persons.truth["annotations"]] == [
        [10, 5, 60, 80],
        *([37, 27, 36, 36], [57, 27, 36, 36]),
    ]
    assert [one["area"] for one in persons.truth["annotations"]] == [3000, 3000, pytest.approx(0.53 * 36 * 36)]
    assert persons.extras["box_side"].tolist() == [80, 36, 36]
    # Cut to the image like any other, it is 35 px wide, and grows by 1.25.
    np.testing.assert_allclose(persons.center[1:], [[37 + 17.5, 27 + 17.5], [57 + 17.5, 27 + 17.5]])
    np.testing.assert_allclose(persons.scale[1:] * 200, 35 * 1.25, rtol=1e-6)
    (said,) = [record.getMessage() for record in caplog.records]
    around = "2 persons without bbox, who get one around their joints (the first: annotation 2, bbox [37.0, 27.0, 36.0"
    assert said.startswith(f"{tmp_path / 'coco.json'}: {around}")
    assert perfect(persons) == {"AP": 100, "PCK": 100}
    ap, pck = ApScorer(persons, persons.truth), PckScorer(persons, DataOptions(dataset="coco", score="pck"))
    assert ap.notes["boxes_from_joints"] == pck.notes["boxes_from_joints"] == 2
    assert ap.note == (
        "boxes: annotations, those of 2 of 3 persons around their joints, areas of 1 of 3 persons: 0.53 of the box, "
        "sigmas of all joints: 0.05"
    )
    assert pck.note == "by box, boxes of 2 of 3 persons around their joints"
    one = np.ones(persons.visible.shape, np.float32)
    table = pck.table(pck.score(persons.keypoints, one, np.ones(3, bool)))
    assert "errors relative to the longer side of the box, made of the joints for 2 of 3 persons\n" in table
    pixels = PckScorer(persons, DataOptions(dataset="coco", score="pck", pck_norm="pixels"))
    assert "boxes_from_joints" not in pixels.notes


def test_a_person_without_a_box_and_of_one_joint_is_left_out_and_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = persons_on(1, 2)
    records[1] |= {"bbox": None, "keypoints": [50, 40, 2, 0, 0, 0, 0, 0, 0], "num_keypoints": 1}
    assert len(read(tmp_path, contents(records, ["a.jpg", "b.jpg"]))) == 1
    reason = "1 without bbox and with all joints at one place or outside the image (the first: annotation 2)"
    assert f"annotations left out of training and score: {reason}" in caplog.text
    assert "around their joints" not in caplog.text


def test_a_crowd_without_a_box_is_one_to_the_score_and_not_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = persons_on(1, 2)
    records[1] |= {"bbox": None, "iscrowd": 1}
    persons = read(tmp_path, contents(records, ["a.jpg", "b.jpg"]))
    assert len(persons) == 1
    assert persons.truth["annotations"][1]["bbox"] == [37, 27, 36, 36]
    assert "no_box" not in persons.truth
    assert not caplog.records


# ---- the least that a file needs ----


def write_the_least(root: Path) -> list[str]:
    """Writes four photographs and one file without width, height, id, area, iscrowd, num_keypoints; returns options."""
    rng = np.random.default_rng(0)
    root.mkdir()
    images, annotations = [], []
    for number in range(4):
        cv2.imwrite(str(root / f"{number}.jpg"), rng.integers(0, 255, (80, 96, 3), dtype=np.uint8))
        images.append({"id": number, "file_name": f"{number}.jpg"})
        keypoints = (PLACES + np.array([number, 0, 0])).ravel().tolist()
        annotations.append({"image_id": number, "category_id": 1, "bbox": [10, 20, 60, 50], "keypoints": keypoints})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (root / "all.json").write_text(json.dumps(content))
    (root / "three.yaml").write_text("joints: [left, right, top]\nmirror_pairs: [[right, left]]\n")
    recipe = {"dataset": "coco", "skeleton": str(root / "three.yaml"), "data_root": str(root), "images": "."}
    recipe |= {"train_annotations": "all.json", "valid_annotations": "all.json", "size": [32, 32], "channels": 8}
    recipe |= {"batch_size": 2, "epochs": 1, "device": "cpu"}
    (root / "own.yaml").write_text(json.dumps(recipe))
    return ["--recipe", str(root / "own.yaml")]


@pytest.mark.parametrize("score", ["auto", "pck"])
def test_the_least_is_trained_evaluated_and_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], score: str
) -> None:
    monkeypatch.setattr(network, "pose_resnet", small_network)
    if score == "pck":  # which needs none of it
        monkeypatch.setitem(sys.modules, "pycocotools", None)
        for name in [name for name in sys.modules if name.startswith("pycocotools.")]:
            monkeypatch.setitem(sys.modules, name, None)
    else:
        pytest.importorskip("pycocotools")
    root = tmp_path / "own"
    options = [*write_the_least(root), "--score", score]
    assert train.main([*options, "--dry-run"]) == 0
    run, packed = tmp_path / "run", tmp_path / "pack"
    assert train.main([*options, "--run", str(run)]) == 0
    assert pack.main([str(root), str(packed), *options]) == 0
    capsys.readouterr()
    key, main = ("coco", "AP") if score == "auto" else ("pck", "PCK")
    found = []
    for data in ([], ["--data_root", str(packed)]):
        assert evaluate.main(["--checkpoint", str(run), "--out", str(tmp_path / "out"), *data]) == 0
        values = json.loads((tmp_path / "out/scores.json").read_text())[key]
        assert 0 <= values[main] <= 100
        found.append(values.get("sigmas"))
    assert found == [0.05 if score == "auto" else None] * 2
    if score == "auto":
        note = "areas of 4 of 4 persons: 0.53 of the box, sigmas of all joints: 0.05"
        assert capsys.readouterr().out.count(note) == 2


def test_the_manual_shows_the_least(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "skeletons.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    shown = json.loads(block)
    write_the_least(tmp_path / "own")
    least = json.loads((tmp_path / "own" / "all.json").read_text())
    assert {name: set(records[0]) for name, records in shown.items()} == {n: set(rs[0]) for n, rs in least.items()}
    cv2.imwrite(str(tmp_path / "0.jpg"), np.zeros((80, 96, 3), np.uint8))
    assert len(read(tmp_path, shown)) == 1
