# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json
import logging
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml

import fastpose
from fastpose import evaluate, pack, people, predict, train
from fastpose.data.coco import AnnotationError, ApScorer, read_coco
from fastpose.data.dataset import DataOptions
from fastpose.data.datasets import open_dataset
from fastpose.data.loader import PoseLoader
from fastpose.data.persons import Persons
from fastpose.data.pixels import ImageFiles
from fastpose.device import ComputeOptions
from fastpose.engine import pictures
from fastpose.engine.evaluation import Scored, predict_all, scored
from fastpose.models import network, pose_resnet, resnet
from fastpose.models.decoding import DecodeOptions, Decoder
from fastpose.option import OptionError
from fastpose.options.settings import Settings
from fastpose.options.settle import settle
from fastpose.skeletons import COCO, MPII, Skeleton
from tests.helpers.reading import read_split
from tests.helpers.settings import small_network
from tests.helpers.terminal import error_of
from tests.helpers.tiny_coco import annotation, contents, write_tiny_coco


@pytest.fixture
def images(tmp_path):
    """An image folder; the files are empty: a picture that cannot be read is an error when it is needed."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.jpg", "b.jpg"):
        (folder / name).touch()
    return folder


def joints(**values) -> np.ndarray:
    """Joint k at (k + 20, 2 k + 10), all visible, except those passed by index: `_3=(x, y, v)`."""
    points = np.column_stack([np.arange(17) + 20.0, 2 * np.arange(17) + 10.0, np.full(17, 2.0)])
    for name, point in values.items():
        points[int(name[1:])] = point
    return points


def write(folder, content, name="coco.json"):
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def read(tmp_path, images, records, size=(64, 48), detections=None, **options):
    file = write(tmp_path, contents(records, ["a.jpg", "b.jpg"]))
    if detections is not None:
        options["detections"] = write(tmp_path, detections, "found.json")
    return read_coco(file, images, size, **options)


# ---- annotations ----


def test_a_person_is_read_with_the_box_of_simple_baselines(tmp_path, images):
    record = annotation(7, 2, joints(_3=(5, 6, 1), _4=(0, 0, 0), _5=(9, 9, 0)))
    persons = read(tmp_path, images, [record])
    # The box (10, 5, 60, 80) loses a pixel: 59 x 79, its middle (39.5, 44.5). 59 < 79 * 3 / 4, so the width grows to
    # 59.25, and both by 1.25.
    np.testing.assert_array_equal(persons.center, [[39.5, 44.5]])
    np.testing.assert_allclose(persons.scale * 200, [[74.0625, 98.75]], rtol=1e-6)
    assert [path.name for path in persons.image_paths] == ["b.jpg"]
    np.testing.assert_array_equal(persons.keypoints[0, [2, 3, 4, 5]], [[22, 14], [5, 6], [0, 0], [0, 0]])
    np.testing.assert_array_equal(persons.visible[0], [1, 1, 1, 1, 0, 0] + [1] * 11)
    np.testing.assert_array_equal(persons.extras["image_id"], [2])
    np.testing.assert_array_equal(persons.extras["box_score"], [1])
    np.testing.assert_array_equal(persons.source_row, [0])
    assert persons.skeleton is COCO
    assert set(persons.extras) == {"image_id", "box_score"}
    assert persons.truth is None
    # 59 / 79 > 1 / 2, so here the height grows: 59 * 2.
    tall = read(tmp_path, images, [record], size=(64, 32))
    np.testing.assert_allclose(tall.scale * 200, [[73.75, 147.5]], rtol=1e-6)


@pytest.mark.parametrize(
    ("box", "center", "corner"),
    [
        # Cut at 95, the last pixel of 96: from x = 50 that leaves 45 of 79, from y = 60 35 of 59.
        ([50, 60, 80, 60], (72.5, 77.5), (45, 35)),
        # What lies left of and above the image moves to 0, and keeps its size.
        ([-10, -20, 31, 41], (15, 20), (30, 40)),
        ([20, 30, 41, 0.5], (40, 30), (40, 0)),
    ],
)
def test_boxes_are_cut_to_the_image(tmp_path, images, box, center, corner):
    persons = read(tmp_path, images, [annotation(1, 1, joints(), bbox=box)], size=(64, 64))
    np.testing.assert_allclose(persons.center, [center])
    np.testing.assert_allclose(persons.scale, [[max(corner) * 1.25 / 200] * 2], rtol=1e-6)


NO_JOINTS = np.zeros((17, 3))


@pytest.mark.parametrize(
    "record",
    [
        annotation(2, 1, joints(), iscrowd=1),
        annotation(2, 1, joints(), num_keypoints=0),
        annotation(2, 1, NO_JOINTS),
        annotation(2, 1, NO_JOINTS, num_keypoints=3),
        annotation(2, 1, joints() * [1, 1, 0], num_keypoints=17),
        annotation(2, 1, joints(), bbox=[96, 5, 10, 10]),  # right of the image
        annotation(2, 1, joints(), bbox=[10, 100, 10, 10]),  # below
        annotation(2, 1, joints(), bbox=[10, 10, 1, 1]),  # nothing is left of one pixel
        annotation(2, 1, joints(), category_id=5),
    ],
)
def test_annotations_without_joints_a_box_or_a_person_are_left_out(tmp_path, images, record):
    others = [annotation(1, 1, joints()), annotation(3, 2, joints())]
    persons = read(tmp_path, images, [others[0], record, others[1]], for_evaluation=True)
    np.testing.assert_array_equal(persons.source_row, [0, 2])
    # The evaluation knows it, as predictions there are not wrong; except those of other categories.
    known = [1, 3] if record["category_id"] == 5 else [1, 2, 3]
    assert [one["id"] for one in persons.truth["annotations"]] == known
    others = persons.truth["annotations"][1:-1]
    assert all(one["iscrowd"] or one["num_keypoints"] == 0 for one in others)  # nobody is to find it
    with pytest.raises(
        AnnotationError, match=r'coco\.json: none of its 1 annotations is a person \(category "person"\)'
    ):
        read(tmp_path, images, [record])


def test_iscrowd_and_num_keypoints_may_be_missing(tmp_path, images):
    record = annotation(4, 1, joints(_0=(0, 0, 0)))
    del record["iscrowd"], record["num_keypoints"]
    persons = read(tmp_path, images, [record], for_evaluation=True)
    assert persons.truth["annotations"][0]["iscrowd"] == 0
    assert persons.truth["annotations"][0]["num_keypoints"] == 16


def test_one_category_may_have_any_name_and_of_several_person_is_taken(tmp_path, images):
    record = annotation(1, 1, joints(), category_id=4)
    one = contents([record], ["a.jpg"], categories=[{"id": 4, "name": "horse"}])
    assert len(read_coco(write(tmp_path, one), images, (64, 48))) == 1
    two = one | {"categories": [{"id": 3, "name": "dog"}, {"id": 4, "name": "person"}]}
    assert len(read_coco(write(tmp_path, two), images, (64, 48))) == 1
    used = one | {"categories": [{"id": 3, "name": "dog"}, {"id": 4, "name": "horse"}]}
    assert len(read_coco(write(tmp_path, used), images, (64, 48))) == 1


def test_the_names_of_keypoints_are_compared_with_those_of_the_skeleton(tmp_path, images, caplog):
    def read_named(names: list[str]) -> Persons:
        category = {"id": 1, "name": "person", "keypoints": names}
        return read_coco(
            write(tmp_path, contents([annotation(1, 1, joints())], ["a.jpg"], categories=[category])), images, (64, 48)
        )

    read_named(list(COCO.joints))
    assert not caplog.records
    with pytest.raises(AnnotationError, match=r"coco\.json: its keypoints are .*: the same in another order"):
        read_named(list(reversed(COCO.joints)))
    read_named([name.replace("left", "near") for name in COCO.joints])
    assert "taken for the same joints in that order" in caplog.text


IMAGE = {"id": 1, "file_name": "a.jpg", "width": 96, "height": 96}
GOOD = annotation(9, 1, joints())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        ("{", "is not JSON"),
        ("[]", "must be an object with 'images' and 'annotations'"),
        (contents([GOOD], []), "images must be a list of objects"),
        ({"images": [IMAGE], "annotations": [GOOD]}, "categories must be a list of objects, got null"),
        (
            contents([GOOD], ["a.jpg"], categories=[{"name": "person"}]),
            'category "person": id must be a number or a text',
        ),
        (
            contents([], ["a.jpg"], categories=[{"id": 1, "keypoints": ["a", "b"]}]),
            "its persons have 2 keypoints, skeleton 'coco' has 17",
        ),
        (contents([GOOD], ["a.jpg"], images=[IMAGE, IMAGE]), "image 1: is there twice"),
        (
            contents([GOOD], ["a.jpg"], images=[IMAGE | {"id": None}]),
            "image 0 of the list: id must be a number or a text, got null",
        ),
        (contents([GOOD], ["a.jpg"], images=[IMAGE | {"id": True}]), "image 0 of the list: id must be .*, got true"),
        (
            contents([GOOD], ["a.jpg"], images=[IMAGE | {"id": "1"}]),
            r"1 on images that are .* begin with id \"1\" \(the first: annotation 9, image_id 1\)",
        ),
        (contents([GOOD], ["a.jpg"], images=[IMAGE | {"width": 0}]), "image 1: width and height must be positive"),
        (contents([GOOD], ["a.jpg"], images=[IMAGE | {"height": "9"}]), 'image 1: height must be a number, got "9"'),
        (contents([GOOD], [""]), 'image 1: file_name must be a file name, got ""'),
        (contents([3], ["a.jpg"]), "annotations must be a list of objects, got 3 in row 0"),
        (
            contents([GOOD | {"id": [1]}], ["a.jpg"]),
            r"annotation 0 of the list: id must be a number or a text, got \[1\]",
        ),
        (contents([GOOD, GOOD], ["a.jpg"]), "annotation 9: is there twice"),
        (contents([GOOD | {"category_id": "1"}], ["a.jpg"]), 'the first: annotation 9, category_id "1"'),
        (contents([GOOD | {"category_id": None}], ["a.jpg"]), "annotation 9: category_id must be .* got null"),
        (contents([GOOD | {"image_id": 5}], ["a.jpg"]), "the first: annotation 9, image_id 5"),
        (contents([GOOD | {"image_id": float("inf")}], ["a.jpg"]), "annotation 9: image_id must be .* got Infinity"),
        (contents([GOOD | {"bbox": [1, 2, 3]}], ["a.jpg"]), r"annotation 9: bbox must be numbers of shape \[4\]"),
        (
            contents([GOOD | {"bbox": [1, 2, float("nan"), 4]}], ["a.jpg"]),
            r"annotation 9: bbox must be finite and below 1e\+06, got NaN in \[1, 2, NaN, 4\]",
        ),
        (contents([GOOD | {"bbox": [10**400, 2, 3, 4]}], ["a.jpg"]), "annotation 9: bbox must be finite and below"),
        (contents([GOOD | {"area": "3595.2"}], ["a.jpg"]), 'annotation 9: area must be a number, got "3595.2"'),
        (contents([GOOD | {"area": 10**400}], ["a.jpg"]), "annotation 9: area must be finite and below"),
        (contents([GOOD | {"keypoints": [0] * 48}], ["a.jpg"]), r"annotation 9: keypoints must be .* shape \[51\]"),
        (
            contents([GOOD | {"keypoints": [9, 9, 2] * 16 + [9, 9, 4]}], ["a.jpg"]),
            r"annotation 9: keypoints, joint 16 \(right_ankle\): expected a v of 0, 1 or 2, .* got \[9, 9, 4\]",
        ),
        (
            contents([GOOD | {"keypoints": [9, 9, 2] * 15 + [9, None, 1, 9, 9, 1]}], ["a.jpg"]),
            r"annotation 9: keypoints, joint 15 \(left_ankle\): expected finite x and y .* got \[9, null, 1\]",
        ),
        (
            contents([GOOD | {"keypoints": [9, 9, 2] * 16 + [9, "9", 2]}], ["a.jpg"]),
            r"annotation 9: keypoints, joint 16 \(right_ankle\): expected x, y and v, got \[9, \"9\", 2\]",
        ),
        (
            contents([GOOD | {"keypoints": [9, 9, 2] * 16 + [9, 10**400, 2]}], ["a.jpg"]),
            r"annotation 9: keypoints, joint 16 \(right_ankle\): expected x, y and v, got \[9, 1000",
        ),
        (contents([GOOD | {"iscrowd": "no"}], ["a.jpg"]), 'annotation 9: iscrowd must be 0 or 1, got "no"'),
        (contents([GOOD | {"iscrowd": 2}], ["a.jpg"]), "annotation 9: iscrowd must be 0 or 1, got 2"),
        (contents([GOOD | {"num_keypoints": True}], ["a.jpg"]), "annotation 9: num_keypoints must be a .* got true"),
        (contents([GOOD | {"num_keypoints": 1.5}], ["a.jpg"]), "annotation 9: num_keypoints must be a whole number"),
        (contents([{**GOOD, "x": 1} if k != "area" else {} for k in ("area",)], ["a.jpg"]), "annotation 0 of the list"),
        (contents([GOOD], ["c.jpg"]), r"annotation 9 \(row 0\): image 'c.jpg' is not in"),
        (contents([GOOD], ["../a.jpg"]), r"annotation 9 \(row 0\): image '../a.jpg' leads outside the image folder"),
    ],
)
def test_a_bad_file_is_an_error_with_file_and_annotation(tmp_path, images, content, message):
    with pytest.raises(AnnotationError, match=rf"coco\.json.*{message}"):
        read_coco(write(tmp_path, content), images, (64, 48))


def test_missing_folders_and_files_are_named(tmp_path, images):
    with pytest.raises(FileNotFoundError, match=r"images: no folder .*absent"):
        read_coco(tmp_path / "coco.json", tmp_path / "absent", (64, 48))
    with pytest.raises(FileNotFoundError, match=r"absent\.json"):
        read_coco(tmp_path / "absent.json", images, (64, 48))


def test_dropped_images_are_not_evaluated_either(tmp_path, images, caplog):
    (images / "a.jpg").unlink()
    records = [annotation(1, 1, joints()), annotation(2, 2, joints()), annotation(3, 1, NO_JOINTS)]
    with caplog.at_level(logging.WARNING):
        persons = read(tmp_path, images, records, missing_images="drop", for_evaluation=True)
    np.testing.assert_array_equal(persons.source_row, [1])
    assert persons.truth["image_ids"] == [2]
    assert [one["id"] for one in persons.truth["annotations"]] == [2]
    assert "1 of 2 persons left out" in caplog.text


def test_images_that_are_elsewhere_are_kept_and_evaluated(tmp_path, images):
    records = [annotation(1, 1, joints()), annotation(2, 2, joints())]
    here = read(tmp_path, images, records, for_evaluation=True)
    away = read(tmp_path, tmp_path / "away", records, missing_images="keep", for_evaluation=True)
    assert [path.name for path in away.image_paths] == [path.name for path in here.image_paths]
    np.testing.assert_array_equal(away.center, here.center)
    assert away.truth == here.truth


# ---- detections ----


def box(image=1, **changes):
    return {"image_id": image, "category_id": 1, "bbox": [10.0, 5.0, 59.0, 79.0], "score": 0.75, **changes}


@pytest.mark.parametrize("detected", [False, True])
def test_pictures_of_another_size_than_annotated_are_refused(tmp_path, images, detected):
    half = np.zeros((48, 96, 3), np.uint8)
    cv2.imwrite(str(images / "b.jpg"), half)
    found = [box(1), box(2)] if detected else None
    with pytest.raises(
        AnnotationError, match=r"b\.jpg: expected the image's width and height, 96 and 48, got 96 and 96"
    ):
        read(tmp_path, images, [annotation(1, 1, joints()), annotation(2, 2, joints())], detections=found)
    (images / "b.jpg").write_bytes(b"no picture")  # which is an error when it is needed
    read(tmp_path, images, [annotation(1, 1, joints()), annotation(2, 2, joints())], detections=found)


def test_detected_boxes_become_persons_without_joints(tmp_path, images, caplog):
    found = [
        box(2),
        box(category_id=3),
        box(score=-0.1),
        box(5),
        box(bbox=[-30, 60, 60, 60], score=0),
        box(bbox=[3, 4, 0, 0]),
        box(bbox=[90, 10, -3, 5]),
        box(bbox=None),
        box(bbox=[3, 4, 5, 0]),
    ]
    with caplog.at_level(logging.WARNING):
        persons = read(tmp_path, images, [annotation(1, 1, joints())], detections=found)
    np.testing.assert_array_equal(persons.source_row, [0, 4, 8])
    np.testing.assert_array_equal(persons.extras["image_id"], [2, 1, 1])
    np.testing.assert_array_equal(persons.extras["box_score"], [0.75, 0, 0.75])
    assert not persons.visible.any()
    # As it is, with its last pixel and beyond the image: (10, 5, 59, 79) has the middle (39.5, 44.5).
    np.testing.assert_allclose(persons.center, [[39.5, 44.5], [0, 90], [5.5, 4]])
    np.testing.assert_allclose(persons.scale * 160, [[59.25, 79], [60, 80], [5, 20 / 3]], rtol=1e-6)
    assert persons.truth["box_source"] == "found.json"
    assert persons.truth["image_ids"] == [1, 2]
    assert [one["id"] for one in persons.truth["annotations"]] == [1]
    assert "boxes left out: 1 of other categories than 1 (the first: box 1, category_id 3); " in caplog.text
    assert "; 1 on images that are not in " in caplog.text
    assert "(the first: box 3, image_id 5)" in caplog.text
    assert "; 3 that are empty or have a width, height or score below 0 (the first: box 2, bbox [10.0" in caplog.text
    assert "; 1 without a bbox (the first: box 7)" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "must be a list of boxes, got dict"),
        ("[]", "must be a list of boxes, got list"),
        ([3], "box 0: must be an object"),
        ([box(), box(bbox=[1, 2, 3])], r"box 1: bbox must be numbers of shape \[4\]"),
        ([box(bbox=[1, 2, 3, -4])], r"holds no box .* \(the first: box 0, bbox \[1, 2, 3, -4\], score 0.75\)"),
        ([box(bbox=[1, 2, 3, "4"])], r"box 0: bbox must be numbers of shape \[4\], got \[1, 2, 3, \"4\"\]"),
        ([box(score=float("nan"))], "box 0: score must be finite and below .*, got NaN"),
        ([box(score="high")], "box 0: score must be a number"),
        ([box(image_id=None)], "box 0: image_id must be a number or a text, got null"),
        ([box(image_id="1")], r"begin with id 1 \(the first: box 0, image_id \"1\"\)"),
        ([box(7), box(8)], "holds no box of category 1 on an image of .*coco.json"),
    ],
)
def test_bad_detections_are_an_error_with_file_and_box(tmp_path, images, content, message):
    with pytest.raises(AnnotationError, match=rf"found\.json.*{message}"):
        read(tmp_path, images, [annotation(1, 1, joints())], detections=content)


# ---- real annotations ----


class Oracle(torch.nn.Module):
    """A network that knows the answers: perfect heatmaps for the loader's batches, one after the other. Of the crops it
    only looks whether they are that batch's."""

    def __init__(self, loader):
        super().__init__()
        self.batches = loader.epoch()

    def forward(self, images):
        batch = next(self.batches)
        assert torch.equal(batch.images, images)
        size = (images.shape[2] // 4, images.shape[3] // 4)
        everywhere = torch.ones(batch.keypoints.shape[:2])
        return fastpose.render_heatmaps(batch.keypoints, everywhere, size, sigma=2.0, encoding="unbiased")[0]


def oracle_evaluation(persons, size, **more) -> Scored:
    loaders = [PoseLoader(persons, ImageFiles(persons.image_paths), size, 5, **more) for _ in range(2)]
    decoder = Decoder(Oracle(loaders[0]), persons.skeleton, DecodeOptions(flip_test=False), ComputeOptions())
    evaluation = predict_all(decoder, loaders[1])
    assert evaluation is not None
    return scored(evaluation, ApScorer(persons, persons.truth))


def results_of(result: Scored) -> list[dict[str, Any]]:
    return result.scorer.results(result.evaluation.predictions, result.evaluation.scores)


def test_the_real_persons_are_those_with_joints(real_data):
    folder = real_data / "coco"
    persons = read_coco(folder / "person_keypoints.json", folder / "images", (256, 192), for_evaluation=True)
    # 14 annotations, of which those of rows 3 and 6 have no joints.
    np.testing.assert_array_equal(persons.source_row, [0, 1, 2, 4, 5, 7, 8, 9, 10, 11, 12, 13])
    assert len(persons.truth["annotations"]) == 14
    assert persons.truth["image_ids"] == [785, 40083, 196141, 197388]
    # The first has the box (280.79, 44.73, 218.7, 346.68); 345.68 * 3 / 4 = 259.26 is wider than 217.7.
    np.testing.assert_allclose(persons.center[0], [280.79 + 217.7 / 2, 44.73 + 345.68 / 2], rtol=1e-6)
    np.testing.assert_allclose(persons.scale[0], [259.26 / 160, 345.68 / 160], rtol=1e-6)
    # The last but one ends 0.79 px before the image's last pixel, 639: x 372.58 + 265.63, y 170.84 + 216.19.
    np.testing.assert_allclose(persons.center[10], [372.58 + 265.63 / 2, 170.84 + 216.19 / 2], rtol=1e-6)
    for index, points, visible in zip(persons.image_index, persons.keypoints, persons.visible, strict=True):
        height, width = cv2.imread(str(persons.image_paths[index])).shape[:2]
        assert ((points >= 0) & (points < [width, height]))[visible > 0].all()


def test_perfect_heatmaps_of_the_real_annotations_decode_to_ap_100(real_data):
    folder = real_data / "coco"
    size = (256, 192)
    persons = read_coco(folder / "person_keypoints.json", folder / "images", size, for_evaluation=True)
    result = oracle_evaluation(persons, size)
    assert (result.score, result.scorer.notes) == (100.0, {"box_source": "annotations"})
    assert set(result.values.values()) == {100.0}
    assert len(results_of(result)) == 12
    # A quarter of a heatmap pixel, in x and y, at the largest box: 1.25 * 346 / 64 = 6.8 px.
    error = np.linalg.norm(result.evaluation.predictions - persons.keypoints, axis=2)[persons.visible > 0]
    assert error.max() < 0.36 * 6.8


def test_boxes_found_twice_cost_nothing_and_a_person_not_found_its_share_of_ap(real_data, tmp_path):
    folder = real_data / "coco"
    records = json.loads((folder / "person_keypoints.json").read_text())["annotations"]
    found = [
        {"image_id": r["image_id"], "category_id": 1, "bbox": r["bbox"], "score": 0.9 - r["id"] / 1e8}
        for r in records
        if r["num_keypoints"]
    ]
    # All a second time: OKS-NMS takes the worse ones out. The first person, alone on its image, is not found.
    again = [one | {"score": 0.5} for one in found[1:]]
    file = write(tmp_path, found[1:] + again, "found.json")
    read_options = {"detections": file, "for_evaluation": True}
    persons = read_coco(folder / "person_keypoints.json", folder / "images", (256, 192), **read_options)
    assert len(persons) == 22
    annotated = read_coco(folder / "person_keypoints.json", folder / "images", (256, 192))
    knowing = dataclasses.replace(
        persons, keypoints=annotated.keypoints[[*range(1, 12)] * 2], visible=annotated.visible[[*range(1, 12)] * 2]
    )
    result = oracle_evaluation(knowing, (256, 192))
    assert len(results_of(result)) == 11
    assert result.scorer.notes == {"box_source": "found.json"}
    assert result.values["AR"] == pytest.approx(100 * 11 / 12)
    # Precision 1 up to a recall of 11 / 12: 92 of the 101 recalls that precision is averaged over.
    assert result.values["AP"] == pytest.approx(100 * 92 / 101)


def test_images_that_cannot_be_read_are_left_out_of_ap(tmp_path):
    root = write_tiny_coco(tmp_path / "tiny")
    (root / "images/001.jpg").write_bytes(b"no picture")
    persons = read_coco(root / "annotations/valid.json", root / "images", (96, 96), for_evaluation=True)
    result = oracle_evaluation(persons, (96, 96), on_bad_image="skip")
    assert result.evaluation.skipped == 3
    assert (result.values["AP"], result.values["AR"]) == (100, 100)
    assert {one["image_id"] for one in results_of(result)} == {1, 3, 4}


# ---- the commands ----


@pytest.fixture(scope="module", autouse=True)
def small_networks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "pose_resnet", small_network)
        yield


@pytest.fixture(autouse=True)
def few_pictures(monkeypatch):
    """Only the run of `finished` draws; it takes longer than the rest of a tiny run."""
    for name in ("draw_curves", "draw_predictions", "draw_heatmaps"):
        monkeypatch.setattr(pictures, name, lambda *arguments, **more: None)


def write_recipe(root, **changes):
    options = {
        "data_root": str(root),
        "dataset": "coco",
        "train_annotations": "annotations/train.json",
        "valid_annotations": "annotations/valid.json",
        **{"depth": 18, "channels": 8, "size": [96, 64], "batch_size": 5, "epochs": 2, "device": "cpu"},
    }
    path = root / "tiny.yaml"
    path.write_text(yaml.safe_dump(options | changes))
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_coco(tmp_path_factory.mktemp("coco") / "tiny")


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """The folder of a complete run."""
    run = tmp_path_factory.mktemp("runs") / "finished"
    assert train.main(["--recipe", str(write_recipe(tiny)), "--run", str(run)]) == 0
    return run


SCORES = ["AP", "AP50", "AP75", "APM", "APL", "AR", "AR50", "AR75", "ARM", "ARL"]


def test_a_run_on_coco_writes_ap_with_the_source_of_its_boxes(finished):
    summary = json.loads((finished / "summary.json").read_text())
    assert list(summary["coco"]) == [*SCORES, "box_source"]
    assert summary["coco"]["box_source"] == "annotations"
    assert summary["coco"]["APL"] is None  # nobody is larger than 96^2
    assert "pckh" not in summary
    assert list(summary["best"]) == ["epoch", "AP"]
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["coco"] == summary["coco"]
    assert "pckh" not in lines[-1]
    for name in ("curves", "predictions", "heatmaps"):
        assert cv2.imread(str(finished / f"{name}.png")).std() > 10


def test_an_evaluation_repeats_the_score_of_the_run_and_writes_results_for_coco(finished, tiny, capsys):
    assert evaluate.main(["--checkpoint", str(finished / "last.pt")]) == 0
    out = capsys.readouterr().out
    assert "boxes: annotations" in out
    scores = json.loads((finished / "scores.json").read_text())
    assert scores["coco"] == json.loads((finished / "summary.json").read_text())["coco"]
    assert not (finished / "pred.mat").exists()
    results = json.loads((finished / "keypoints_results.json").read_text())
    assert all(len(result["keypoints"]) == 51 for result in results)


def test_an_evaluation_in_detected_boxes_says_so(finished, tiny, tmp_path, capsys):
    arguments = ["--checkpoint", str(finished), "--detections", "detections.json"]
    assert evaluate.main(arguments) == 1
    assert "out: detections differs from the run's own" in capsys.readouterr().err
    assert evaluate.main([*arguments, "--out", str(tmp_path / "out")]) == 0
    assert "boxes: detections.json" in capsys.readouterr().out
    scores = json.loads((tmp_path / "out/scores.json").read_text())
    assert scores["coco"]["box_source"] == "detections.json"
    results = json.loads((tmp_path / "out/keypoints_results.json").read_text())
    assert results
    # The best box of an image has a score of at least 0.56, and joints' scores are what they are.
    assert max(result["score"] for result in results) < 0.6 * max(max(r["keypoints"][2::3]) for r in results)
    assert evaluate.main([*arguments[:2], "--detections", "absent.json", "--out", str(tmp_path / "out")]) == 1
    assert "detections: no file" in capsys.readouterr().err


def test_an_evaluation_that_reads_the_data_in_another_way_needs_a_folder_of_its_own(finished, capsys):
    for option, value in (("category", "person"), ("visibility_3", "annotated"), ("least_visibility", "0.5")):
        assert evaluate.main(["--checkpoint", str(finished), f"--{option}", value]) == 1
        assert f"out: {option} differs from the run's own" in capsys.readouterr().err


def test_images_without_annotations_are_predicted_without_a_score(finished, tiny, tmp_path, capsys):
    content = json.loads((tiny / "annotations/valid.json").read_text())
    del content["annotations"]
    file = write(tmp_path, content, "image_info_test.json")
    arguments = ["--checkpoint", str(finished), "--annotations", str(file), "--out", str(tmp_path / "out")]
    assert evaluate.main([*arguments, "--detections", "detections.json"]) == 0
    assert "no annotations, no AP: predictions only" in capsys.readouterr().out
    assert json.loads((tmp_path / "out/scores.json").read_text())["coco"] is None
    assert json.loads((tmp_path / "out/keypoints_results.json").read_text())
    assert evaluate.main(arguments) == 1
    assert "none of its 0 annotations is a person" in capsys.readouterr().err


def test_the_validation_images_may_lie_elsewhere(finished, tiny, tmp_path):
    data = DataOptions(dataset="coco", data_root=str(tiny), images="images", valid_images="val")
    assert data.images_path("train") == tiny / "images"
    assert data.images_path("valid") == tiny / "val"
    other = tmp_path / "elsewhere"
    other.mkdir()
    for path in (tiny / "images").iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    arguments = ["--checkpoint", str(finished), "--images", str(other)]
    assert evaluate.main([*arguments, "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out/scores.json").exists()
    assert evaluate.main(arguments) == 1


def test_missing_annotations_are_reported_by_the_name_that_evaluate_has_for_them(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(network, "pose_resnet", pose_resnet)
    monkeypatch.setattr(resnet, "WIDTHS", (8, 8, 8, 8))
    file = tmp_path / "pose_resnet_18_96x64.pth.tar"
    torch.save(pose_resnet(18, "deconv", 17, channels=8).state_dict(), file)
    arguments = ["--checkpoint", str(file), "--data_root", str(tiny), "--device", "cpu"]
    assert evaluate.main(arguments) == 1
    missing = tiny / "annotations/person_keypoints_val2017.json"
    beside = "beside it there is train.json, valid.json"
    assert error_of(capsys) == f"error: annotations: no file {missing}: {beside}\n"
    assert evaluate.main([*arguments, "--annotations", "annotations/valid.json"]) == 0


def test_progress_lines_and_the_end_name_the_boxes_beside_ap(tiny, tmp_path, capsys):
    recipe = write_recipe(tiny, detections="detections.json", epochs=1, target_pckh=0.0)
    assert train.main(["--recipe", str(recipe), "--run", str(tmp_path / "run")]) == 0
    out, err = capsys.readouterr()
    (line,) = [line for line in err.splitlines() if line.startswith("epoch 1/1") and "loss" in line and " AP " in line]
    assert "(boxes: detections.json)" in line
    assert "\nboxes: detections.json\n" in out


@pytest.mark.parametrize(("target", "last", "best"), [(50.0, 4, 4), (70.0, 5, 4)])
def test_a_training_ends_at_its_target_ap_and_keeps_the_best(tiny, tmp_path, monkeypatch, target, last, best):
    every = [3.0, 40.0, 20.0, 60.0, 30.0]
    scores = iter(every)

    def keypoint_ap(*arguments, **more):
        return {name: next(scores) if name == "AP" else 1.0 for name in SCORES}

    monkeypatch.setattr("fastpose.data.coco.score.keypoint_ap", keypoint_ap)
    recipe = write_recipe(tiny, epochs=5, target_pckh=target)
    assert train.main(["--recipe", str(recipe), "--run", str(tmp_path / "run")]) == 0
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["best"] == {"epoch": best, "AP": every[best - 1]}
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["coco"]["AP"] for line in lines] == every[:last]
    for name, epoch in (("best", best), ("last", last)):
        assert torch.load(tmp_path / f"run/{name}.pt", weights_only=True)["progress"]["epoch"] == epoch


def test_a_picture_is_drawn_with_the_skeleton_of_the_checkpoint(finished, tiny, tmp_path, monkeypatch):
    draw, skeletons = people.draw_poses, []

    def watched(picture, poses, skeleton, **options):
        skeletons.append(skeleton)
        return draw(picture, poses, skeleton, **options)

    monkeypatch.setattr(people, "draw_poses", watched)
    picture = tiny / "images/000.jpg"
    out = ["--out", str(tmp_path / "out")]
    assert (
        predict.main(["--checkpoint", str(finished), "--image", str(picture), "--box", "10", "5", "60", "80", *out])
        == 0
    )
    (found,) = json.loads((tmp_path / "out/predictions.json").read_text())
    assert list(found["joints"]) == list(COCO.joints)
    assert skeletons == [COCO]
    assert cv2.imread(found["drawn"]).std() > 10


THREE = Skeleton("three", ("left", "right", "top"), ((1, 0),), ((0, 2), (1, 2)), sigmas=(0.05, 0.05, 0.05))
THREE_YAML = """
name: three
joints: [left, right, top]
mirror_pairs: [[right, left]]
limbs: [[left, top], [right, top]]
"""


def test_any_joints_in_the_format_of_coco_can_be_trained_and_scored(tmp_path, capsys, caplog):
    root = write_tiny_coco(tmp_path / "tiny", skeleton=THREE)
    skeleton = tmp_path / "three.yaml"
    skeleton.write_text(THREE_YAML + "sigmas: [0.05, 0.05, 0.05]\n")
    recipe = write_recipe(root, skeleton=str(skeleton), epochs=1)
    run = tmp_path / "run"
    assert train.main(["--recipe", str(recipe), "--run", str(run)]) == 0
    assert "mirror_pairs" not in caplog.text
    skeleton.write_text("name: three\njoints: [left, right, top]\nsigmas: [0.05, 0.05, 0.05]\n")
    assert train.main(["--recipe", str(recipe), "--dry-run"]) == 0
    assert "skeleton 'three' has no mirror_pairs" in caplog.text
    skeleton.unlink()  # the checkpoint has it
    assert evaluate.main(["--checkpoint", str(run), "--out", str(tmp_path / "out")]) == 0
    results = json.loads((tmp_path / "out/keypoints_results.json").read_text())
    assert {len(result["keypoints"]) for result in results} == {9}
    assert json.loads((tmp_path / "out/scores.json").read_text())["coco"]["AP"] >= 0
    skeleton.write_text(THREE_YAML)
    capsys.readouterr()
    assert train.main(["--recipe", str(recipe), "--run", str(tmp_path / "other"), "--skeleton", ""]) == 1
    assert "annotation 1: keypoints must be numbers of shape [51]" in capsys.readouterr().err


def test_without_sigmas_ap_takes_005_for_each_joint_and_says_so_beside_every_score(tmp_path, capsys, caplog):
    bare = dataclasses.replace(THREE, sigmas=())
    root = write_tiny_coco(tmp_path / "tiny", skeleton=bare)
    (tmp_path / "three.yaml").write_text(THREE_YAML)
    recipe = write_recipe(root, skeleton=str(tmp_path / "three.yaml"), epochs=1)
    run = tmp_path / "run"
    assert train.main(["--recipe", str(recipe), "--run", str(run)]) == 0
    note = "boxes: annotations, sigmas of all joints: 0.05"
    printed = capsys.readouterr()
    assert (printed.out.count(note), printed.err.count(note)) == (1, 1)  # of the table and of the epoch
    assert caplog.text.count("skeleton 'three' has no sigmas: AP takes 0.05 for each joint") == 1
    (epoch,) = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert epoch["coco"]["sigmas"] == json.loads((run / "summary.json").read_text())["coco"]["sigmas"] == 0.05
    # The checkpoint holds a skeleton without sigmas, and so does a pack.
    pack = tmp_path / "pack"
    assert fastpose.pack.main([str(root), str(pack), "--recipe", str(recipe)]) == 0
    for data in ([], ["--data_root", str(pack)]):
        assert evaluate.main(["--checkpoint", str(run), "--out", str(tmp_path / "out"), *data]) == 0
        assert note in capsys.readouterr().out
        assert json.loads((tmp_path / "out/scores.json").read_text())["coco"]["sigmas"] == 0.05
    persons = read_coco(root / "annotations/valid.json", root / "images", (64, 64), skeleton=bare, for_evaluation=True)
    same = dataclasses.replace(persons, skeleton=THREE)  # whose sigmas are 0.05
    scores = np.full((len(persons), 3), 0.9)
    moved = persons.keypoints + 3
    values = [ApScorer(one, one.truth).score(moved, scores, np.ones(len(persons), bool)) for one in (persons, same)]
    assert values[0] == values[1]
    assert 0 < values[0]["AP"] < 100


def test_a_missing_pycocotools_is_reported_before_the_training_begins(tiny, tmp_path, monkeypatch, capsys):
    recipe, run = write_recipe(tiny), tmp_path / "run"
    monkeypatch.setitem(sys.modules, "pycocotools.cocoeval", None)
    assert train.main(["--recipe", str(recipe), "--run", str(run)]) == 1
    assert "pip install pycocotools" in capsys.readouterr().err
    assert not run.exists()


def test_detections_are_refused_with_the_format_of_mpii():
    data = settle({"detections": "boxes.json"}).data
    with pytest.raises(OptionError, match="detections: is for --dataset coco, got 'boxes"):
        open_dataset(data, (64, 64))


NAMED = {"train_annotations": "a.json", "valid_annotations": "b.json", "images": "c", "valid_images": "d"}
COCO_S = [*(f"annotations/person_keypoints_{split}2017.json" for split in ("train", "val")), "train2017", "val2017"]


@pytest.mark.parametrize(
    ("dataset", "named", "expected"),
    [
        ("mpii", [], ["annot/train.json", "annot/valid.json", "images", "images"]),
        ("mpii", NAMED, ["a.json", "b.json", "c", "d"]),
        ("coco", [], COCO_S),
        ("coco", NAMED, ["a.json", "b.json", "c", "d"]),
        # Whoever names annotations keeps them beside `images`, as ever.
        ("coco", ["train_annotations", "valid_annotations"], ["a.json", "b.json", "images", "images"]),
        ("coco", ["valid_annotations"], [COCO_S[0], "b.json", "images", "images"]),
        ("coco", ["valid_annotations", "valid_images"], [COCO_S[0], "b.json", "images", "d"]),
        ("coco", ["images"], [*COCO_S[:2], "c", "c"]),
        ("coco", ["valid_images"], [*COCO_S[:3], "d"]),
    ],
)
def test_files_that_are_not_named_are_those_of_the_layout_of_the_data_set(tmp_path, dataset, named, expected):
    settings = settle({"dataset": dataset, "data_root": str(tmp_path), **{name: NAMED[name] for name in named}})
    for same in (settings, settle({}, run=settings.as_plain())):
        found = [same.data.path(f"{split}_annotations") for split in ("train", "valid")]
        found += [same.data.images_path(split) for split in ("train", "valid")]
        assert found == [tmp_path / name for name in expected]


def test_coco_as_it_is_downloaded_needs_no_names(tmp_path, monkeypatch, capsys):
    root = write_tiny_coco(tmp_path / "COCO")
    for before, name in (("train", "train"), ("valid", "val")):
        (root / f"annotations/{before}.json").rename(root / f"annotations/person_keypoints_{name}2017.json")
    (root / "images").rename(root / "train2017")
    (root / "val2017").symlink_to("train2017")
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "dataset: coco\ndepth: 18\nhead: deconv\nchannels: 8\nsize: [96, 64]\nbatch_size: 5\nepochs: 1\ndevice: cpu\n"
    )
    command = ["--recipe", str(recipe), "--data_root"]
    assert train.main([*command, str(root), "--run", str(tmp_path / "run")]) == 0
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["valid_images"] == "val2017"
    assert pack.main([str(root), str(tmp_path / "pack"), "--recipe", str(recipe)]) == 0
    capsys.readouterr()
    assert train.main([*command, str(tmp_path / "pack"), "--dry-run"]) == 0
    assert "the pack" not in capsys.readouterr().err  # nothing in it that the options would not name
    monkeypatch.setattr(network, "pose_resnet", pose_resnet)
    monkeypatch.setattr(resnet, "WIDTHS", (8, 8, 8, 8))
    file = tmp_path / "pose_resnet_18_96x64.pth.tar"
    torch.save(pose_resnet(18, "deconv", 17, channels=8).state_dict(), file)
    assert evaluate.main(["--checkpoint", str(file), "--data_root", str(root), "--device", "cpu"]) == 0
    scores = json.loads((tmp_path / "pose_resnet_18_96x64-results/scores.json").read_text())
    assert scores["persons"] == 10


def test_coco_has_a_data_root_of_its_own(monkeypatch):
    monkeypatch.delenv("FASTPOSE_DATA_ROOT", raising=False)
    assert Path(settle({"dataset": "coco"}).data.data_root).parts[-2:] == ("data", "coco")


# ---- packs ----


@pytest.fixture(scope="module")
def packed(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("packs") / "out"
    recipe = write_recipe(tiny, detections="detections.json", rotation=0.0, scale_min=1.0, scale_max=1.0)
    assert pack.main([str(tiny), str(out), "--recipe", str(recipe), "--reduced_decode", "false"]) == 0
    return out


def settings_for(root, **changes) -> Settings:
    names = {f"{split}_annotations": f"annotations/{split}.json" for split in ("train", "valid")}
    fixed = {"size": (96, 64), "rotation": 0.0, "scale_min": 1.0, "scale_max": 1.0, "reduced_decode": False}
    return settle({"data_root": str(root), "dataset": "coco", "device": "cpu", **names, **fixed, **changes})


@pytest.mark.parametrize("split", ["train", "valid"])
def test_a_pack_has_what_the_evaluation_of_coco_needs(tiny, packed, split):
    persons = read_split(settings_for(packed, detections="detections.json"), split)
    expected = read_split(settings_for(tiny, detections="detections.json"), split)
    for name in ("center", "scale", "keypoints", "visible", "source_row"):
        np.testing.assert_array_equal(getattr(persons, name), getattr(expected, name))
    assert list(persons.extras) == list(expected.extras) == ["image_id", "box_score"]
    for name, array in persons.extras.items():
        np.testing.assert_array_equal(array, expected.extras[name])
        assert array.dtype == expected.extras[name].dtype
    assert persons.truth == expected.truth
    assert persons.skeleton == COCO
    assert (persons.truth is None) == (split == "train")


def test_an_evaluation_on_a_pack_finds_the_joints_that_it_finds_on_the_files(finished, tiny, packed, tmp_path, capsys):
    found = []
    for name, root in (("files", tiny), ("pack", packed)):
        arguments = ["--data_root", str(root), "--detections", "detections.json", "--reduced_decode", "false"]
        assert evaluate.main(["--checkpoint", str(finished), *arguments, "--out", str(tmp_path / name)]) == 0
        assert "boxes: detections.json" in capsys.readouterr().out
        found.append(json.loads((tmp_path / name / "keypoints_results.json").read_text()))
    assert len(found[0]) == len(found[1])
    for files, regions in zip(*found, strict=True):
        assert files["image_id"] == regions["image_id"]
        np.testing.assert_allclose(files["keypoints"], regions["keypoints"], atol=0.02)


@pytest.mark.parametrize(
    ("trained", "asked", "message"),
    [
        ({"train_annotations": "annotations/others.json"}, [], ""),
        ({"valid_annotations": "annotations/others.json"}, [], "annotations: the pack "),
        ({"valid_images": "others"}, [], "images: the pack "),
        ({}, ["--annotations", "annotations/others.json"], "annotations: the pack "),
        ({}, ["--images", "others"], "images: the pack "),
    ],
)
def test_an_evaluation_on_a_pack_names_its_own_options(finished, packed, tmp_path, capsys, trained, asked, message):
    checkpoint = torch.load(finished / "best.pt", weights_only=True)
    checkpoint["config"] |= trained
    torch.save(checkpoint, tmp_path / "best.pt")
    arguments = ["--checkpoint", str(tmp_path), "--data_root", str(packed), "--reduced_decode", "false", *asked]
    assert evaluate.main([*arguments, "--out", str(tmp_path / "out")]) == (1 if message else 0)
    assert capsys.readouterr().err.startswith(f"error: {message}" if message else "")


def test_a_pack_of_coco_is_for_its_boxes_and_joints_alone(packed, finished, tmp_path, capsys):
    with pytest.raises(ValueError, match=r"size: the pack .* aspect ratio of 96 x 64 pixels, got 96 x 96"):
        read_split(settings_for(packed, size=(96, 96), detections="detections.json"), "train")
    with pytest.raises(ValueError, match=r"skeleton: the pack .* holds joints of 'coco', not 'mpii'"):
        read_split(settings_for(packed, detections="detections.json"), "valid", MPII)
    with pytest.raises(ValueError, match=r"detections: the pack .* of 'detections\.json', got 'others\.json'"):
        read_split(settings_for(packed, detections="others.json"), "valid")
    data = settle({"data_root": str(packed)}).data
    assert (data.dataset, data.detections) == ("coco", "detections.json")
