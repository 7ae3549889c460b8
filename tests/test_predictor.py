# SPDX-License-Identifier: Apache-2.0
"""`fastpose.Predictor`: with a network that finds red, green and blue dots, so that every joint's place is known."""

from __future__ import annotations

import itertools
import json
import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import fastpose
from fastpose.data.images import BadImageError
from fastpose.data.opened import AHEAD
from tests.helpers import dots

NEAR = 3.5  # px: a pixel of the heatmap is up to 8, and a joint within 3/8 of one is found
ONE = dots.at(100, 80)[None]
TWO = np.stack([dots.at(40, 60), dots.at(200, 110)])


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> dict[str, str]:
    return dots.write(tmp_path_factory.mktemp("dots"))


@pytest.fixture(scope="module")
def predictor(words) -> fastpose.Predictor:
    return fastpose.Predictor(**words, size=(96, 96), flip_test=False, device="cpu")


def assert_found(people: fastpose.People, persons: np.ndarray, near: float = NEAR) -> None:
    assert people.keypoints.shape == persons.shape
    assert np.abs(people.keypoints.numpy() - persons).max() < near
    assert people.scores.min() > 0.4


def save(path: Path, picture: np.ndarray) -> Path:
    cv2.imwrite(str(path), picture[..., ::-1])
    return path


def test_three_lines_find_the_joints(words):
    people = fastpose.Predictor(**words, size=(96, 96), flip_test=False)(dots.draw(TWO), dots.boxes(TWO))
    assert len(people) == 1
    assert_found(people[0], TWO)
    assert people[0].names == dots.JOINTS
    assert people[0].keypoints.dtype == people[0].scores.dtype == people[0].boxes.dtype == torch.float32
    assert people[0].scores.shape == (2, 3)
    assert np.array_equal(people[0].boxes, dots.boxes(TWO))
    assert people[0].size == (240, 320)
    assert len(people[0]) == 2


@pytest.mark.parametrize("padding", [1.0, 1.25, 2.0])
def test_crops_are_the_boxes_with_the_margin_and_whole_pictures_without(words, padding):
    predictor = fastpose.Predictor(**words, size=(128, 64), flip_test=False, padding=padding)
    seen = []
    predictor.trained.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    picture = np.random.default_rng(0).integers(0, 256, (240, 320, 3)).astype(np.uint8)
    predictor(picture, [(10, 20, 100, 40), (0, 0, 10, 200)])
    predictor(picture)
    # A box becomes as tall as the network's input is for its width, 100 x 200, or as wide for its height, 100 x 200.
    (one, other), (whole,) = seen
    for crop, center, width in ((one, (60, 40), 100), (other, (5, 100), 100), (whole, (160, 120), 320)):
        scale = torch.tensor([[width, 2 * width]]) * (1.0 if width == 320 else padding) / 200
        matrix = fastpose.crop_to_image_matrix(torch.tensor([center]).float(), scale, torch.zeros(1), (128, 64))
        color = fastpose.normalize_color(fastpose.IMAGENET_MEAN, fastpose.IMAGENET_STD)
        wanted = fastpose.affine_crop(torch.from_numpy(picture), matrix, (128, 64), color=color)[0]
        assert torch.allclose(crop, wanted, atol=1e-4)


def test_every_kind_of_image_gives_the_same(predictor, tmp_path):
    picture = dots.draw(ONE)
    file = save(tmp_path / "one.png", picture)
    (wanted,) = predictor(picture, dots.boxes(ONE))
    assert_found(wanted, ONE)
    kinds = {
        "path": file,
        "text": str(file),
        "list of paths": [file],
        "list of arrays": [picture],
        "[1, H, W, 3]": picture[None],
        "tensor": torch.from_numpy(picture),
        "mirrored strides": np.ascontiguousarray(picture[:, ::-1])[:, ::-1],
        "ImageBatch": fastpose.ImageBatch.from_list([picture]),
        "folder": tmp_path,
        "generator": (one for one in [picture]),
        "generator of paths": (one for one in [file]),
    }
    for kind, images in kinds.items():
        alone = kind in ("path", "text", "tensor", "mirrored strides")
        (found,) = predictor(images, dots.boxes(ONE) if alone else [dots.boxes(ONE)])
        assert torch.equal(found.keypoints, wanted.keypoints), kind
        assert torch.equal(found.scores, wanted.scores), kind


def test_persons_of_many_images_are_found_as_if_alone(words):
    generator = np.random.default_rng(0)
    pictures, persons = [], []
    for number in range(11):
        places = [dots.at(20 + 200 * i, generator.uniform(20, 130)) for i in range(number % 4)]
        persons.append(np.reshape(places, (-1, 3, 2)))
        pictures.append(dots.draw(persons[-1], (240, 640)))
    alone = fastpose.Predictor(**words, size=(96, 96), flip_test=False, eval_batch_size=1)
    together = fastpose.Predictor(**words, size=(96, 96), flip_test=False, eval_batch_size=4)
    entries = [dots.boxes(one) for one in persons]
    for one, other, truth in zip(alone(pictures, entries), together(pictures, entries), persons, strict=True):
        if len(truth):
            assert_found(one, truth)
        assert torch.allclose(one.keypoints, other.keypoints, atol=1e-3)
        assert len(one) == len(truth)
    by_batch = together(fastpose.ImageBatch.from_list(pictures), entries)
    assert all(
        torch.allclose(a.keypoints, b.keypoints, atol=1e-3)
        for a, b in zip(by_batch, together(pictures, entries), strict=True)
    )


@pytest.mark.cuda
def test_a_gpu_finds_what_the_cpu_finds(words):
    pictures, entries = [dots.draw(TWO), dots.draw(ONE)] * 9, [dots.boxes(TWO), dots.boxes(ONE)] * 9
    options = {"size": (96, 96), "amp": "off", "eval_batch_size": 4}
    wanted = fastpose.Predictor(**words, **options, device="cpu")(pictures, entries)
    predictor = fastpose.Predictor(**words, **options, device="cuda")
    batch = fastpose.ImageBatch.from_list(pictures).to("cuda")
    for found in (
        predictor(pictures, entries),
        list(predictor.stream(iter(pictures), entries)),
        predictor(batch, entries),
    ):
        assert [people.image for people in found] == list(range(18))
        for one, other in zip(found, wanted, strict=True):
            assert one.keypoints.device.type == "cpu"
            assert torch.allclose(one.keypoints, other.keypoints, atol=1e-2)
            assert torch.allclose(one.scores, other.scores, atol=1e-4)


def test_without_boxes_the_picture_is_one_person_s_and_that_is_said(words, caplog):
    predictor = fastpose.Predictor(**words, size=(96, 96), flip_test=False)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            (people,) = predictor(dots.draw(ONE))
    assert people.boxes.tolist() == [[0, 0, 320, 240]]
    assert_found(people, ONE, near=4)
    assert [record.message.split(",")[0] for record in caplog.records] == ["no boxes: images[0]"]


@pytest.mark.parametrize(
    ("box", "said"),
    [
        ((100, 80, 180, 200), r"looks like x1 y1 x2 y2: boxes are x, y, width and height, in pixels"),
        ((250, 80, 140, 100), r"leaves the picture with 50% of its area"),
        ((92, 72, 76, 96), ""),
        ((-2, -2, 324, 244), ""),  # by rounding
    ],
)
def test_doubtful_boxes_are_said_once_and_taken(words, caplog, box, said):
    predictor = fastpose.Predictor(**words, size=(96, 96), flip_test=False)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            (people,) = predictor(dots.draw(ONE), box)
    assert people.boxes.tolist() == [list(box)]
    texts = [record.getMessage() for record in caplog.records]
    assert len(texts) == bool(said)
    assert all(said in text and "images[0]" in text and "320 pixels wide and 240 high" in text for text in texts)


@pytest.mark.parametrize(
    ("images", "boxes", "error"),
    [
        (None, None, r"images: expected files, arrays, a folder or what yields them, got None"),
        ([None], None, r"images\[0\] is None, which cv2.imread returns"),
        ([dots.draw(ONE).astype(np.float32)], None, r"images\[0\]: expected a file, or uint8 RGB .*got float32"),
        ([dots.draw(ONE)[..., 0]], None, r"images\[0\]: .*got uint8 \[240, 320\]"),
        (np.zeros((0, 5, 3), np.uint8), None, r"images\[0\]: expected at least one pixel"),
        (dots.draw(ONE), [[1, 2, 3]], r"boxes: images\[0\]: expected x, y, width and height .*got \[1, 3\]"),
        (dots.draw(ONE), [[0, 0, 5, 0]], r"boxes: images\[0\]: .*positive sides, got 0 0 5 0"),
        (dots.draw(ONE), [[0, 0, np.nan, 5]], r"boxes: .*got 0 0 nan 5"),
        (dots.draw(ONE), "everywhere", r"boxes: .*got everywhere"),
        ([dots.draw(ONE)] * 2, [dots.boxes(ONE)], r"boxes: expected an entry for each image, got 1 and more images"),
        ([dots.draw(ONE)], [dots.boxes(ONE)] * 2, r"boxes: expected an entry for each of 1 images, got more"),
        (dots.draw(ONE), [320, 0, 9, 9], r"box: 320 0 9 9 lies outside images\[0\], which is 320 pixels wide and 240"),
        (dots.draw(ONE), lambda pictures: [], r"detector: expected the boxes of each of 1 pictures, got 0 entries"),
        (dots.draw(ONE), lambda pictures: None, r"detector: expected the boxes of each of 1 pictures, got 0 entries"),
        (dots.draw(ONE), lambda pictures: ["x"], r"boxes: images\[0\]: expected x, y, width and height"),
        (dots.draw(ONE), [5, 5, 1e-50, 1e-50], r"boxes: images\[0\]: .*positive sides, got 5 5 1e-50 1e-50"),
    ],
)
def test_a_wrong_image_or_box_is_named(predictor, images, boxes, error):
    with pytest.raises(ValueError, match=error):
        predictor(images, boxes)


def test_wrong_options_are_named(words):
    with pytest.raises(TypeError, match=r"Predictor has no option 'refin'; nearest: refine"):
        fastpose.Predictor(**words, refin="dark")
    with pytest.raises(ValueError, match=r"refine: expected one of none, quarter, dark, dark_udp, got 'best'"):
        fastpose.Predictor(**words, refine="best")
    for option in ({"padding": 0}, {"on_bad_image": "ignore"}, {"eval_batch_size": 0}, {"device": "gpu"}):
        with pytest.raises(ValueError, match=rf"^{next(iter(option))}: expected"):
            fastpose.Predictor(**words, **option)
    with pytest.raises(FileNotFoundError, match=r"no such file of weights"):
        fastpose.Predictor("nowhere.pt")


def test_a_detector_is_any_callable(predictor):
    pictures, seen = [dots.draw(TWO), dots.draw(ONE), dots.draw(TWO)], []

    def detector(batch):
        seen.extend(batch)
        wanted = [TWO if (picture[68, 100] < 9).all() else ONE for picture in batch]
        return [np.column_stack([dots.boxes(persons), np.full(len(persons), 0.75)]) for persons in wanted]

    detector_of = {id(picture): picture for picture in pictures}
    found = predictor(pictures, detector)
    assert len(detector_of) == len(seen) == 3
    assert all(np.array_equal(a, b) for a, b in zip(seen, pictures, strict=True))
    assert found[0].box_scores.tolist() == [0.75] * len(found[0])
    assert len(predictor(fastpose.ImageBatch.from_list(pictures), detector)) == 3
    assert len(predictor(dots.draw(ONE), lambda batch: [[]])[0]) == 0


def test_boxes_of_a_detector_that_are_nowhere_are_left_out(predictor):
    """A detector may look into the margin of a picture; the others of its boxes count."""
    nowhere = [[-50, -50, 40, 40], [5, 5, 0, 10], [5, 5, 5, float("nan")], [400, 0, 9, 9]]
    (people,) = predictor(dots.draw(ONE), lambda batch: [[*nowhere, *dots.boxes(ONE).tolist()]])
    assert_found(people, ONE)
    assert len(predictor(dots.draw(ONE), lambda batch: [nowhere])[0]) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int32, torch.float64])
def test_boxes_may_be_tensors_of_any_type(predictor, dtype):
    (people,) = predictor(dots.draw(ONE), torch.tensor([[92, 72, 76, 96]], dtype=dtype))
    assert people.boxes.tolist() == [[92, 72, 76, 96]]


def test_an_iterator_may_write_every_frame_into_one_buffer(predictor):
    """As cv2.VideoCapture.read does with an array that it is passed."""
    buffer = np.zeros((240, 320, 3), np.uint8)
    places = [dots.at(x, 80)[None] for x in range(20, 220, 20)]

    def frames():
        for persons in places:
            buffer[:] = dots.draw(persons)
            yield buffer

    for people, persons in zip(predictor.stream(frames(), map(dots.boxes, places)), places, strict=True):
        assert_found(people, persons)
        assert np.array_equal(people.pixels, dots.draw(persons))


def test_a_bad_file_is_an_error_or_skipped_and_named(words, tmp_path):
    good = save(tmp_path / "good.png", dots.draw(ONE))
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff\xe0 nothing")
    files = [tmp_path / "bad.jpg", good, tmp_path / "missing.png"]
    with pytest.raises(BadImageError, match=r"bad\.jpg"):
        fastpose.Predictor(**words)(files)
    predictor = fastpose.Predictor(**words, size=(96, 96), flip_test=False, on_bad_image="skip")
    for boxes in ([dots.boxes(ONE)] * 3, lambda batch: [dots.boxes(ONE)] * len(batch)):
        first, second, third = predictor(files, boxes)
        assert "bad.jpg" in first.error
        assert "missing.png" in third.error
        assert len(first) == len(third) == 0
        assert second.error is None
        assert_found(second, ONE)
        assert [people.image for people in (first, second, third)] == files


def test_photos_are_looked_at_upright(words, tmp_path):
    upright = dots.draw(ONE)
    stored = np.ascontiguousarray(np.rot90(upright))  # turned to the left; orientation 6 turns it back
    tag = b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00\x00\x00\x00\x00"
    data = cv2.imencode(".jpg", stored[..., ::-1])[1].tobytes()
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(data[:2] + b"\xff\xe1" + (len(tag) + 2).to_bytes(2, "big") + tag + data[2:])
    options = {"size": (96, 96), "flip_test": False, "reduced_decode": False}
    (people,) = fastpose.Predictor(**words, **options)(photo, dots.boxes(ONE))
    assert people.size == (240, 320)
    assert_found(people, ONE)
    assert people.draw().shape == upright.shape
    (as_stored,) = fastpose.Predictor(**words, **options, exif="stored")(photo)
    assert as_stored.size == (320, 240)


def test_reduced_decoding_finds_the_same_places(words, tmp_path):
    large = dots.draw(ONE)
    large = cv2.resize(large, None, fx=4, fy=4)
    photo = save(tmp_path / "large.jpg", large)
    found = {}
    for reduce in (True, False):
        predictor = fastpose.Predictor(**words, size=(96, 96), flip_test=False, reduced_decode=reduce)
        found[reduce] = predictor(photo, dots.boxes(ONE) * 4)[0].keypoints
    assert (found[True] - found[False]).abs().max() < 1.0
    assert np.abs(found[True].numpy() - (ONE * 4 + 1.5)).max() < 4 * NEAR


def test_a_stream_takes_boxes_as_a_call_does(predictor, tmp_path):
    file = save(tmp_path / "one.png", dots.draw(ONE))
    for image in (dots.draw(ONE), file):
        (people,) = predictor.stream(image, dots.boxes(ONE))
        assert_found(people, ONE)
        assert people.draw().shape == (240, 320, 3)


def test_a_stream_takes_no_more_than_it_needs(predictor):
    taken = []

    def endless():
        for number in itertools.count():
            taken.append(number)
            yield dots.draw(ONE)

    stream = predictor.stream(endless(), itertools.repeat(dots.boxes(ONE)))
    people = next(stream)
    assert people.image == 0
    assert people.pixels is not None
    assert len(taken) <= 2 * predictor.batch_size + AHEAD
    assert next(stream).image == 1
    stream.close()


def test_drawing_needs_a_picture_that_is_kept(predictor, tmp_path):
    picture = dots.draw(ONE)
    (kept,) = predictor([picture], [dots.boxes(ONE)])
    drawn = kept.draw()
    assert drawn.shape == picture.shape
    assert (drawn != picture).any()
    assert np.array_equal(picture, dots.draw(ONE))
    assert np.array_equal(kept.draw(picture), drawn)
    assert np.array_equal(kept.draw(least_score=2.0), picture)
    assert (kept.draw(truth=ONE + 5) != drawn).any()
    (gone,) = predictor(iter([picture]), [dots.boxes(ONE)])
    for shape in ((2, 2), (1, 4, 2), (1, 3, 3)):
        with pytest.raises(ValueError, match=r"truth: expected \[N, 3, 2\]"):
            kept.draw(truth=np.zeros(shape))
    for wrong in (picture[..., 0], picture.astype(np.float32)):
        with pytest.raises(ValueError, match=r"picture: expected a file, or uint8 RGB"):
            kept.draw(wrong)
    with pytest.raises(ValueError, match=r"picture: image 0 came from an iterator"):
        gone.draw()
    assert np.array_equal(gone.draw(torch.from_numpy(picture)), drawn)
    (of_file,) = predictor(save(tmp_path / "a.png", picture), dots.boxes(ONE))
    assert of_file.pixels is None
    assert np.array_equal(of_file.draw(), drawn)


def test_results_as_numpy_and_as_coco(predictor, tmp_path):
    file = save(tmp_path / "000000000139.png", dots.draw(TWO))
    (people,) = predictor(file, np.column_stack([dots.boxes(TWO), [0.5, 0.25]]))
    arrays = people.to_numpy()
    assert set(arrays) == {"keypoints", "scores", "boxes", "box_scores"}
    assert all(isinstance(array, np.ndarray) for array in arrays.values())
    assert np.array_equal(arrays["keypoints"], people.keypoints)
    entries = json.loads(json.dumps(people.to_coco()))
    assert [entry["image_id"] for entry in entries] == [139, 139]
    assert entries[0].keys() == {"image_id", "category_id", "bbox", "keypoints", "score"}
    assert entries[1]["bbox"] == pytest.approx(dots.boxes(TWO)[1].tolist())
    assert np.reshape(entries[1]["keypoints"], (3, 3))[:, :2] == pytest.approx(people.keypoints[1].numpy())
    assert entries[1]["score"] == pytest.approx(0.25 * float(people.scores[1].mean()))
    assert people.to_coco("mine", 7)[0]["image_id"] == "mine"
    assert people.to_coco("mine", 7)[0]["category_id"] == 7
    assert predictor([dots.draw(ONE)], [dots.boxes(ONE)])[0].to_coco()[0]["image_id"] == 0


def test_nothing_is_written(predictor, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    predictor(dots.draw(ONE), dots.boxes(ONE))
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_worth_nothing_are_an_error(words, tmp_path):
    bad = dots.Dots()
    bad.scale.data[0] = float("nan")
    torch.save(bad.state_dict(), tmp_path / "bad.pth")
    with pytest.raises(ArithmeticError, match=r"outputs are not numbers"):
        fastpose.Predictor(**words | {"checkpoint": str(tmp_path / "bad.pth")})(dots.draw(ONE))


FILM = (400, 320)


def film(frames: int) -> np.ndarray:
    """Two persons who pass each other, [frames, 2, 3, 2]: one walks to the right, one to the left and below."""
    steps = np.arange(frames)[:, None, None]
    return np.stack([dots.at(20, 20) + steps * (6, 0), dots.at(240, 280) - steps * (6, 0)], axis=1)


def test_persons_keep_their_ids_through_a_film(predictor):
    places = film(30)
    asked = []

    def detector(batch):
        asked.append(len(batch))
        number = sum(asked) - 1
        return [dots.boxes(places[0])] if number == 0 else [dots.boxes(places[10])[::-1]]

    frames = [dots.draw(persons, FILM) for persons in places[:11]]
    found = list(predictor.track(frames, detector, detect_every=10, fps=30.0))
    assert asked == [1, 1]
    for people, persons in zip(found, places, strict=False):
        assert sorted(people.ids.tolist()) == [1, 2]
        order = np.argsort(people.ids.numpy())
        assert np.abs(people.keypoints.numpy()[order] - persons).max() < 8


def test_a_track_begins_in_the_boxes_and_follows_them(predictor):
    places = film(25)
    found = list(predictor.track((dots.draw(one[:1], FILM) for one in places), dots.boxes(places[0, :1]), smooth=False))
    assert [people.ids.tolist() for people in found] == [[1]] * 25
    for people, persons in zip(found, places, strict=True):
        assert_found(people, persons[:1])
    assert found[20].boxes[0, 0] > found[0].boxes[0, 0] + 80


def test_who_is_gone_has_no_entry_and_who_comes_back_soon_is_the_same(predictor):
    places = film(16)
    frames = [dots.draw(one[:1] if number not in (6, 7, 8) else one[:0], FILM) for number, one in enumerate(places)]
    still = np.stack([places[5, :1]] * 16)
    frames[5:] = [
        dots.draw(one if number not in (6, 7, 8) else one[:0], FILM) for number, one in enumerate(still[5:], 5)
    ]
    found = list(predictor.track(frames, dots.boxes(places[0, :1])))
    assert [len(people) for people in found] == [1] * 6 + [0] * 3 + [1] * 7
    assert {int(one) for people in found for one in people.ids} == {1}
    assert found[2].to_coco()[0]["track_id"] == 1
    assert found[2].to_numpy()["ids"].tolist() == [1]
    with pytest.raises(ValueError, match=r"detect_every: expected at least 1 frame, got 0"):
        predictor.track(frames, detect_every=0)
    with pytest.raises(ValueError, match=r"fps: expected a positive number"):
        predictor.track(frames, fps=0)
