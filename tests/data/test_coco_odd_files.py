# SPDX-License-Identifier: Apache-2.0
"""Files in COCO's format as other programs write them: they are read as they are meant, what is left out is left out of
training and score alike, and perfect predictions get an AP of 100 whatever ids and optional fields are."""

import json
import logging
from importlib.util import find_spec

import numpy as np
import pytest

from fastpose import evaluate, pack, train
from fastpose.data.coco import AnnotationError, ApScorer, CocoTruth, read_coco
from fastpose.data.coco.ap import ceiling
from fastpose.data.coco.records import Visibility
from fastpose.data.dataset import DataOptions
from fastpose.data.datasets import open_dataset
from fastpose.engine import pictures
from fastpose.models import network
from fastpose.option import OptionError
from fastpose.skeletons import Skeleton
from tests.helpers.settings import small_network
from tests.helpers.tiny_coco import annotation, contents, write_tiny_coco

needs_pycocotools = pytest.mark.skipif(find_spec("pycocotools") is None, reason="pycocotools is not installed")
THREE = Skeleton("three", ("left", "right", "top"), ((1, 0),), ((0, 2), (1, 2)), sigmas=(0.05, 0.05, 0.05))


@pytest.fixture
def folder(tmp_path):
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).touch()
    return tmp_path


def joints(person: int = 0, last: tuple = (50.0, 40.0, 2)) -> np.ndarray:
    """Three joints, in another place for each person."""
    return np.array([[20.0 + 9 * person, 30.0, 2], [40.0 + 9 * person, 60.0, 1], last], object)


def persons_on(*images) -> list[dict]:
    return [annotation(row + 1, image, joints(row)) for row, image in enumerate(images)]


def read(folder, content, **options):
    file = folder / "coco.json"
    file.write_text(json.dumps(content))
    return read_coco(file, folder, (64, 64), skeleton=THREE, for_evaluation=True, **options)


def perfect(persons, **options) -> tuple[dict[str, float], ApScorer]:
    """AP and AR of predictions that are the annotations."""
    scorer = ApScorer(persons, persons.truth, **options)
    scorer.needs(to_train=True)
    values = scorer.score(persons.keypoints, np.ones(persons.visible.shape, np.float32), np.ones(len(persons), bool))
    return {name: round(values[name], 9) for name in ("AP", "AR")}, scorer


ALL = {"AP": 100, "AR": 100}

# ---- ids ----

IMAGE_IDS = [
    (1, 2),
    (0, -1),
    (2**63 + 1, 2**63 + 2),
    (-(2**70), 2**70),
    ("0001", "0002"),
    ("1", 1),
    (1.0, 2.0),
    (0.5, 1.5),
    ("", "é"),
]
ANNOTATION_IDS = [(0, 1, 2), (-1, 0, 1), ("a", "b", 0), (2**64, 1.0, 0.5), (None, None, None)]
CATEGORY_IDS = [1, 0, -1, "person", 2**65]


@needs_pycocotools
@pytest.mark.parametrize(
    ("images", "numbers", "category"),
    [
        (images, numbers, CATEGORY_IDS[(row + column) % len(CATEGORY_IDS)])
        for row, images in enumerate(IMAGE_IDS)
        for column, numbers in enumerate(ANNOTATION_IDS)
    ],
)
def test_a_score_does_not_depend_on_ids(folder, images, numbers, category):
    records = persons_on(images[0], images[0], images[1])
    content = contents(
        [one | {"id": number, "category_id": category} for one, number in zip(records, numbers, strict=True)],
        ["a.jpg", "b.jpg"],
        categories=[{"id": category, "name": "person"}],
    )
    for image, number in zip(content["images"], images, strict=True):
        image["id"] = number
    persons = read(folder, content)
    values, scorer = perfect(persons)
    assert values == ALL
    results = scorer.results(persons.keypoints, np.ones(persons.visible.shape, np.float32))
    # As the file has them: whole floats are whole numbers to JSON.
    assert {(result["image_id"], result["category_id"]) for result in results} == {(i, category) for i in images}
    path = scorer.write(folder, persons.keypoints, np.ones(persons.visible.shape, np.float32))
    assert {result["image_id"] for result in json.loads(path.read_text())} == set(images)


@needs_pycocotools
def test_an_image_that_cannot_be_read_is_left_out_by_its_own_id(folder):
    content = contents(persons_on("x", "y"), ["a.jpg", "b.jpg"])
    for image, number in zip(content["images"], "xy", strict=True):
        image["id"] = number
    persons = read(folder, content)
    scorer = ApScorer(persons, persons.truth)
    poses, scores = persons.keypoints.copy(), np.ones(persons.visible.shape, np.float32)
    poses[1], scores[1] = np.nan, np.nan
    assert scorer.score(poses, scores, np.array([True, False]))["AR"] == 100
    found = [{"image_id": "y", "category_id": 1, "bbox": [10, 5, 60, 80], "score": 0.5}]
    (folder / "found.json").write_text(json.dumps(found))
    assert read(folder, content, detections=folder / "found.json").image_paths[0].name == "b.jpg"


def test_ids_of_64_bits_stay_the_numbers_of_images_and_others_are_counted(folder):
    records = persons_on(2**62, -3)
    content = contents(records, ["a.jpg", "b.jpg"])
    for image, number in zip(content["images"], (2**62, -3), strict=True):
        image["id"] = number
    persons = read(folder, content)
    assert persons.extras["image_id"].tolist() == [2**62, -3]
    assert persons.truth["image_ids"] == [-3, 2**62]
    assert "image_numbers" not in persons.truth
    content["images"][0]["id"] = records[0]["image_id"] = 2**63
    persons = read(folder, content)
    assert persons.extras["image_id"].tolist() == [1, 2]
    assert (persons.truth["image_ids"], persons.truth["image_numbers"]) == ([2**63, -3], [1, 2])


# ---- who is left out ----

UNUSABLE = {
    "with joints whose num_keypoints is not above 0": {"num_keypoints": 0},
    "whose box is empty or outside the image": {"bbox": [96, 5, 10, 10]},
    "whose box is empty or outside the image ": {"bbox": [50.0, 30.0, 0.0, 0.0], "area": 0.0},
    "whose box is empty or outside the image  ": {"bbox": [10, 5, -60, 80]},
    "without keypoints": {"keypoints": None},
    "without keypoints ": {"keypoints": []},
    "without bbox and with all joints at one place": {"bbox": None, "keypoints": [65, 30, 2, 0, 0, 0, 0, 0, 0]},
    "on images that are not in images, which begin with id 1": {"image_id": 7},
}


@needs_pycocotools
@pytest.mark.parametrize(("reason", "change"), UNUSABLE.items())
def test_who_is_left_out_of_the_predictions_is_not_missed_and_is_reported(folder, caplog, reason, change):
    records = persons_on(1, 1, 2)
    records[1] |= change
    with caplog.at_level(logging.WARNING):
        persons = read(folder, contents(records, ["a.jpg", "b.jpg"]))
    assert perfect(persons)[0] == ALL
    assert persons.source_row.tolist() == [0, 2]
    (message,) = [record.getMessage() for record in caplog.records]
    assert f"annotations left out of training and score: 1 {reason.strip()}" in message
    assert "(the first: annotation 2" in message
    with pytest.raises(AnnotationError, match=rf"none of its 1 .*: 1 {reason.strip()}.* \(the first: annotation 2"):
        read(folder, contents(records[1:2], ["a.jpg"]))


@needs_pycocotools
@pytest.mark.parametrize("change", [{"num_keypoints": 17, "keypoints": [0] * 9}, {"iscrowd": 1}, {"iscrowd": True}])
def test_crowds_and_persons_without_joints_are_left_out_silently(folder, caplog, change):
    records = persons_on(1, 1, 2)
    records[1] |= change
    with caplog.at_level(logging.WARNING):
        persons = read(folder, contents(records, ["a.jpg", "b.jpg"]))
    assert (perfect(persons)[0], len(persons), caplog.text) == (ALL, 2, "")


@needs_pycocotools
@pytest.mark.parametrize("change", [*UNUSABLE.values(), {"iscrowd": 1}])
def test_a_detection_of_somebody_who_is_left_out_is_not_wrong(folder, change):
    """Except on an image that is not in the file, where there is nothing to detect on."""
    records = [annotation(1, 1, joints()), annotation(2, 1, joints(5, (10, 80, 2)))]
    places = read(folder, contents(records, ["a.jpg"])).keypoints
    records[1] |= change
    boxes = [{"image_id": 1, "category_id": 1, "bbox": [10, 5, 60, 80], "score": score} for score in (0.5, 0.9)]
    (folder / "found.json").write_text(json.dumps(boxes))
    persons = read(folder, contents(records, ["a.jpg"]), detections=folder / "found.json")
    assert len(persons) == 2
    scorer = ApScorer(persons, persons.truth)
    values = scorer.score(places, np.ones((2, 3), np.float32), np.ones(2, bool))
    # The worse-scored is right. If the other were wrong the precision would be a half.
    assert values["AP"] == pytest.approx(50 if change.get("image_id") == 7 else 100)


# ---- area ----


@needs_pycocotools
@pytest.mark.parametrize("area", ["absent", None, float("nan"), 0, -1, 0.0])
@pytest.mark.parametrize("count", [1, 3])
def test_without_an_area_a_person_is_trained_and_scored_by_053_of_the_box(folder, caplog, area, count):
    records = persons_on(1, 1, 2)
    for one in records[:count]:
        one["area"] = area
        if area == "absent":
            del one["area"]
    with caplog.at_level(logging.WARNING):
        persons = read(folder, contents(records, ["a.jpg", "b.jpg"]))
    assert len(persons) == 3
    assert not caplog.text  # training does not ask for it
    assert [one["area"] for one in persons.truth["annotations"]] == [0.53 * 60 * 80] * count + [3000] * (3 - count)
    values, scorer = perfect(persons)
    assert values == ALL
    assert scorer.note == f"boxes: annotations, areas of {count} of 3 persons: 0.53 of the box"
    assert scorer.notes == {"box_source": "annotations", "areas_from_boxes": count}
    assert f"persons without an area, or with one of 0: {count} of 3: AP takes 0.53 of their box" in caplog.text


# ---- many persons on an image ----


@needs_pycocotools
def test_more_persons_than_poses_that_count_are_reported_and_the_limit_is_an_option(folder, caplog):
    rng = np.random.default_rng(0)
    records = []
    for number in range(50):
        points = np.column_stack([rng.uniform(0, 96, (3, 2)), [2, 2, 2]])
        records.append(annotation(number, 1 if number < 40 else 2, points, area=100.0))
    persons = read(folder, contents(records, ["a.jpg", "b.jpg"]))
    limit = ceiling(persons.truth, 20)
    values, _ = perfect(persons)
    # 30 of 50 can be found: at recalls 0, 0.01 ... 0.6 the precision is 1, which is 61 of 101.
    assert values == {"AP": pytest.approx(100 * 61 / 101), "AR": pytest.approx(60)}
    assert limit == (pytest.approx(values["AP"]), pytest.approx(values["AR"]), 1, 40)
    assert "at most 20 poses of an image, and image 1 has 40 persons: AP cannot be above 60.4, AR not above 60.0" in (
        caplog.text
    )
    caplog.clear()
    values, scorer = perfect(persons, max_detections=40)
    assert (values, caplog.text) == (ALL, "")
    assert scorer.notes == {"box_source": "annotations", "max_detections": 40}
    assert scorer.note == "boxes: annotations, 40 poses an image"
    assert ceiling(persons.truth, 40) is None
    assert ceiling(CocoTruth(box_source="", category=1, image_ids=[], annotations=[]), 1) is None


@needs_pycocotools
def test_persons_larger_than_any_of_coco_count(folder):
    records = [one | {"area": 5e10} for one in persons_on(1, 2)]
    assert perfect(read(folder, contents(records, ["a.jpg", "b.jpg"])))[0] == ALL


# ---- categories ----

GROUP, MOUSE, PERSON = ({"id": row, "name": name} for row, name in enumerate(("mice", "mouse", "person")))
NAMED = {"keypoints": list(THREE.joints)}


def of(category: int, *records: dict) -> list[dict]:
    return [one | {"category_id": category} for one in records]


def test_the_category_is_the_one_whose_annotations_have_joints(folder):
    records = persons_on(1, 1, 2)
    boxes = [{key: value for key, value in one.items() if key != "keypoints"} | {"id": 9} for one in records[2:]]
    mice, two = of(1, *records[:2]), ["a.jpg", "b.jpg"]
    for categories, annotations in (
        ([GROUP, MOUSE], mice),
        ([GROUP, MOUSE | NAMED], mice),
        ([PERSON, MOUSE], mice + of(2, *boxes)),  # a name alone decides nothing
        ([PERSON | NAMED, MOUSE], mice + of(2, records[2] | {"keypoints": [0] * 9})),
        ([MOUSE | {"keypoints": []}], mice),  # no names say nothing
        ([PERSON, MOUSE], of(2, *records[:2]) + of(1, records[2])),  # of two with joints it is the person
    ):
        persons = read(folder, contents(annotations, two, categories=categories))
        assert (len(persons), persons.truth["category"]) == (2, annotations[0]["category_id"])
    several = contents(mice + of(0, records[2]), two, categories=[GROUP, MOUSE])
    with pytest.raises(
        AnnotationError, match=r'several have 3 joints: got \["mice", "mouse"\].* name one with category'
    ):
        read(folder, several)
    with pytest.raises(AnnotationError, match=r"expected one with joints, or one .* none has joints"):
        read(folder, contents(of(1, *boxes), two, categories=[GROUP, MOUSE]))
    with pytest.raises(OptionError, match=r'category: .*coco\.json has none named .cat., got \["mice", "mouse"\]'):
        read(folder, several, category="cat")
    assert read(folder, several, category="mice").source_row.tolist() == [2]
    detected = contents([], two, categories=[GROUP, MOUSE | NAMED])
    (folder / "found.json").write_text(
        json.dumps([{"image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 40], "score": 0.5}])
    )
    assert len(read(folder, detected, detections=folder / "found.json")) == 1


def test_the_numbers_of_annotations_decide_and_names_warn(folder, caplog):
    records = persons_on(1, 2)
    more = [{"id": 1, "name": "person", "keypoints": [*THREE.joints, "tail"]}]
    assert len(read(folder, contents(records, ["a.jpg", "b.jpg"], categories=more))) == 2
    assert "; its annotations have 3 joints: taken for the same joints in that order" in caplog.text
    longer = [one | {"keypoints": one["keypoints"] + [1, 2, 2]} for one in records]
    with pytest.raises(AnnotationError, match="its persons have 4 keypoints, skeleton 'three' has 3"):
        read(folder, contents(longer, ["a.jpg", "b.jpg"], categories=more))


@needs_pycocotools
def test_all_categories_with_joints_give_the_mean_of_their_ap(folder):
    records = persons_on(1, 1, 2, 2)
    records[1]["keypoints"] = records[0]["keypoints"]  # one pose, two animals: neither suppresses the other
    annotations = of("cat", *records[::2]) + of("dog", *records[1::2])
    categories = [{"id": "cat", "name": "c"}, {"id": "dog", "name": "d"}, {"id": 3, "name": "pets"}]
    persons = read(folder, contents(annotations, ["a.jpg", "b.jpg"], categories=categories), category="all")
    assert persons.truth["categories"] == ["cat", "dog"]
    values, scorer = perfect(persons)
    assert values == ALL
    results = scorer.results(persons.keypoints, np.ones(persons.visible.shape, np.float32))
    assert sorted((one["image_id"], one["category_id"]) for one in results) == [
        *((1, "cat"), (1, "dog"), (2, "cat"), (2, "dog"))
    ]
    # Of the two cats one is found, of the dogs both: (51 of 101 recalls + all) / 2.
    poses = persons.keypoints.copy()
    poses[1] += 1000
    values = scorer.score(poses, np.array([[1.0], [0.5], [1], [1]]) * np.ones(3), np.ones(4, bool))
    assert values["AP"] == pytest.approx((100 * 51 / 101 + 100) / 2)


# ---- visibilities and types ----


@pytest.mark.parametrize(
    ("last", "options", "annotated", "message"),
    [
        ((999, 999, 3), {}, False, "v = 3, taken for not annotated"),
        ((999, 999, 3), {"outside": True}, True, "v = 3, taken for annotated"),
        ((10, 20, 0.93), {}, True, "v between 0 and 1, taken for annotated, all of them"),
        ((10, 20, 0.93), {"least": 0.93}, True, "v between 0 and 1, taken for annotated, below 0.93 not"),
        ((10, 20, 0.93), {"least": 0.95}, False, "v between 0 and 1, taken for annotated, below 0.95 not"),
        ((10, 20, -1), {}, False, "v = -1, taken for not annotated"),
        ((float("nan"), float("nan"), 0), {}, False, ""),
        ((None, None, 0), {}, False, ""),
        ((None, None, None), {}, False, ""),
        ((float("nan"),) * 3, {}, False, ""),
        ((float("inf"), 1e300, 0), {}, False, ""),
        ((10, 20, True), {}, True, ""),
        ((10, 20, False), {}, False, ""),
        ((10, 20, 2.0), {}, True, ""),
    ],
)
@needs_pycocotools
def test_visibilities_of_other_programs_are_read(folder, caplog, last, options, annotated, message):
    records = persons_on(1, 2)
    records[1]["keypoints"] = joints(1, last).ravel().tolist()
    with caplog.at_level(logging.WARNING):
        persons = read(folder, contents(records, ["a.jpg", "b.jpg"]), visibility=Visibility(**options))
    assert persons.visible.tolist() == [[1, 1, 1], [1, 1, annotated]]
    assert persons.keypoints[1, 2].tolist() == ([*last[:2]] if annotated else [0, 0])
    assert perfect(persons)[0] == ALL
    warned = [record.getMessage() for record in caplog.records]
    assert len(warned) == bool(message)
    assert all(message in text and "1 (the first: annotation 2, top)" in text for text in warned)
    json.dumps(persons.truth, allow_nan=False)


@needs_pycocotools
def test_numbers_as_pandas_and_javascript_write_them_are_read(folder, caplog):
    plain = persons_on(1, 1, 2)
    expected = read(folder, contents(plain, ["a.jpg", "b.jpg"]))
    odd = [{**one, "iscrowd": False, "num_keypoints": 3.0, "image_id": float(one["image_id"])} for one in plain]
    odd[0] |= {"iscrowd": None, "num_keypoints": float("nan"), "id": 1.0, "category_id": 1.0}
    content = contents(odd, ["a.jpg", "b.jpg"])
    content["images"][1] |= {"id": 2.0, "width": 96.0}
    persons = read(folder, content)
    for name in ("center", "scale", "keypoints", "visible", "source_row"):
        np.testing.assert_array_equal(getattr(persons, name), getattr(expected, name))
    assert perfect(persons)[0] == ALL
    assert not caplog.text


def test_images_nobody_is_on_need_only_an_id_and_sizes_come_from_the_files_where_the_list_has_none(tmp_path, caplog):
    root = write_tiny_coco(tmp_path / "tiny")
    content = json.loads((root / "annotations/valid.json").read_text())
    records = content["annotations"]
    records[0]["bbox"] = [50.0, 60.0, 80.0, 60.0]  # to be cut
    expected = read_coco(write(root, content), root / "images", (64, 64))
    content["images"].append({"id": 99, "file_name": None, "width": "?"})
    del content["images"][0]["width"]
    content["images"][1]["height"] = None
    persons = read_coco(write(root, content), root / "images", (64, 64), for_evaluation=True)
    np.testing.assert_array_equal(persons.center, expected.center)
    assert persons.truth["image_ids"] == [1, 2, 3, 4, 99]
    assert "images without width and height, taken from the pictures: 2 (the first: " in caplog.text
    dropped = read_coco(write(root, content), root / "images", (64, 64), for_evaluation=True, missing_images="drop")
    assert dropped.truth["image_ids"] == [1, 2, 3, 4]


def write(root, content):
    path = root / "annotations/odd.json"
    path.write_text(json.dumps(content))
    return path


# ---- the options ----


def test_the_options_reach_reader_and_score(tmp_path):
    root = write_tiny_coco(tmp_path / "tiny", skeleton=THREE)
    content = json.loads((root / "annotations/valid.json").read_text())
    content["categories"].append({"id": 2, "name": "cat"})
    content["annotations"][0]["category_id"] = 2
    content["annotations"][1]["keypoints"][2::3] = [3, 0.4, 0.6]
    write(root, content)
    (root / "three.yaml").write_text("joints: [left, right, top]\nsigmas: [0.05, 0.05, 0.05]\n")
    options = {"skeleton": str(root / "three.yaml"), "valid_annotations": "annotations/odd.json", "images": "images"}
    named = {"category": "all", "visibility_3": "annotated", "least_visibility": 0.5, "max_detections": 7}
    dataset = open_dataset(DataOptions(dataset="coco", data_root=str(root), **options, **named), (64, 64))
    persons = dataset.read("valid")
    assert len(persons) == 10
    assert persons.visible[1].tolist() == [1, 0, 1]
    assert dataset.scorer(persons).notes["max_detections"] == 7
    for wrong in ({"least_visibility": 1.5}, {"max_detections": 0}, {"max_annotation_depth": 0}):
        with pytest.raises(OptionError, match=next(iter(wrong))):
            DataOptions(**wrong)


@needs_pycocotools
def test_a_pack_has_odd_ids_and_refuses_to_be_read_in_another_way(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(network, "pose_resnet", small_network)
    for name in ("draw_curves", "draw_predictions", "draw_heatmaps"):
        monkeypatch.setattr(pictures, name, lambda *arguments, **more: None)
    root = write_tiny_coco(tmp_path / "tiny")
    for split in ("train", "valid"):
        file = root / f"annotations/{split}.json"
        content = json.loads(file.read_text())
        content["categories"] = [{"id": "c", "name": "cat"}, {"id": "d", "name": "dog"}]
        for image in content["images"]:
            image["id"] = f"{image['id']:04d}"
        for row, one in enumerate(content["annotations"]):
            one |= {"image_id": f"{one['image_id']:04d}", "category_id": "cd"[row % 2]}
        file.write_text(json.dumps(content))
    recipe = root / "tiny.yaml"
    recipe.write_text(
        "dataset: coco\ntrain_annotations: annotations/train.json\nvalid_annotations: annotations/valid.json\n"
        "depth: 18\nchannels: 8\nsize: [96, 64]\nbatch_size: 5\nepochs: 1\ndevice: cpu\n"
    )
    out, run = tmp_path / "pack", tmp_path / "run"
    assert pack.main([str(root), str(out), "--recipe", str(recipe)]) == 1
    assert "several have 17 joints" in capsys.readouterr().err
    assert pack.main([str(root), str(out), "--recipe", str(recipe), "--category", "all"]) == 0
    assert json.loads((out / "pack.json").read_text())["options"]["category"] == "all"
    assert train.main(["--recipe", str(recipe), "--data_root", str(out), "--run", str(run)]) == 0
    assert evaluate.main(["--checkpoint", str(run), "--data_root", str(out), "--out", str(tmp_path / "out")]) == 0
    results = json.loads((tmp_path / "out/keypoints_results.json").read_text())
    assert {result["image_id"] for result in results} == {"0001", "0002", "0003", "0004"}
    assert {result["category_id"] for result in results} == {"c", "d"}
    capsys.readouterr()
    arguments = ["--checkpoint", str(run), "--data_root", str(out), "--out", str(tmp_path / "out")]
    assert evaluate.main([*arguments, "--category", "cat"]) == 1
    assert "category: the pack " in capsys.readouterr().err
