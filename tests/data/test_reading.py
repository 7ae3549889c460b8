# SPDX-License-Identifier: Apache-2.0
"""How image files are read, as data sets, packs and predictions have it: upright, with all bits."""

import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from fastpose import evaluate, pack, predict
from fastpose.data.annotation_rows import AnnotationError
from fastpose.data.datasets import open_dataset
from fastpose.data.images import turned
from fastpose.data.pack.format import PackError
from fastpose.data.persons import Persons
from fastpose.data.reading import AS_STORED, Reading
from fastpose.option import OptionError
from fastpose.options.settings import Settings
from fastpose.options.settle import settle
from tests.helpers.persons import persons_of
from tests.helpers.reading import CPU, batches_of
from tests.helpers.tiny_coco import write_tiny_coco
from tests.helpers.tiny_mpii import write_tiny_mpii

# What undoes a turn: a picture that is stored turned back is shown as it was.
BACK = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}
ORIENTATIONS = (1, 3, 6, 8)


def turn_files(folder: Path) -> None:
    """Stores the pictures of a folder as phones do: turned, as PNG whatever their name, with EXIF that says how."""
    for path, orientation in zip(sorted(folder.iterdir()), ORIENTATIONS, strict=True):
        shown = np.ascontiguousarray(cv2.imread(str(path))[..., ::-1])
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(turned(shown, BACK[orientation])).save(path, "PNG", exif=exif)


def as_png(folder: Path) -> None:
    for path in folder.iterdir():
        Image.fromarray(np.ascontiguousarray(cv2.imread(str(path))[..., ::-1])).save(path, "PNG")


@pytest.fixture(scope="module")
def upright(tmp_path_factory) -> Path:
    """A data set that is stored as it is shown."""
    root = write_tiny_mpii(tmp_path_factory.mktemp("upright") / "data")
    as_png(root / "images")
    return root


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Path:
    """The same, as phones store it."""
    root = write_tiny_mpii(tmp_path_factory.mktemp("turned") / "data")
    turn_files(root / "images")
    return root


def settings_for(root: Path, **changes) -> Settings:
    return settle({"data_root": str(root), "size": (64, 64), "batch_size": 4, "device": "cpu", "amp": "off", **changes})


def crops(root: Path, split: str = "train", **changes) -> list[torch.Tensor]:
    return [batch.images for batch in batches_of(settings_for(root, **changes), split, CPU)]


@pytest.mark.parametrize("changes", [{}, {"resident": True}, {"reduced_decode": False}, {"size": (32, 32)}])
def test_crops_of_upright_data_are_those_of_files_that_need_no_turning(upright, stored, changes):
    expected = crops(upright, **changes)
    got = crops(stored, exif="upright", **changes)
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(expected, crops(stored, **changes), strict=True))


def test_a_pack_holds_the_upright_pictures_and_says_so(upright, stored, tmp_path, capsys):
    for root, name, words in ((upright, "expected", []), (stored, "got", ["--exif", "upright"])):
        assert pack.main([str(root), str(tmp_path / name), "--size", "64", "64", *words]) == 0
    assert (tmp_path / "expected/train-00000.shard").read_bytes() == (tmp_path / "got/train-00000.shard").read_bytes()
    # A pack of the default has no word about it, as those of earlier versions.
    options = [json.loads((tmp_path / name / "pack.json").read_text())["options"] for name in ("expected", "got")]
    assert "exif" not in options[0]
    assert options[1]["exif"] == "upright"
    assert settings_for(tmp_path / "got").data.exif == "upright"
    with pytest.raises(PackError, match=r"exif: the pack .* has the data of 'upright', got 'stored'"):
        settings_for(tmp_path / "got", exif="stored")
    with pytest.raises(PackError, match=r"exif: the pack .* has the data of 'stored', got 'upright'"):
        settings_for(tmp_path / "expected", exif="upright")
    # The same data read in another way are other data.
    capsys.readouterr()
    assert pack.main([str(stored), str(tmp_path / "got"), "--size", "64", "64"]) == 1
    assert "holds a pack of other data" in capsys.readouterr().err


def test_what_changes_pixels_distinguishes_persons():
    persons = persons_of(np.zeros((1, 16, 2)))
    assert persons.reading == AS_STORED

    def fingerprint(**changes) -> str:
        return dataclasses.replace(persons, reading=Reading(**changes)).fingerprint()

    plain = persons.fingerprint()
    assert fingerprint(most_pixels=7) == plain
    assert fingerprint(upright=True) == plain.replace("1 persons", "1 persons, upright")
    assert fingerprint(stretch=True) == plain.replace("1 persons", "1 persons, 16 bits stretched")


def test_persons_that_are_selected_are_read_as_before():
    persons = dataclasses.replace(persons_of(np.zeros((2, 16, 2))), reading=Reading(upright=True))
    assert persons.select([1]).reading == Reading(upright=True)


def read_coco(root: Path, **changes) -> Persons:
    names = {"train_annotations": "annotations/train.json", "valid_annotations": "annotations/valid.json"}
    settings = settings_for(root, dataset="coco", images="images", **names, **changes)
    return open_dataset(settings.data, (64, 64)).read("train")


def test_a_size_that_exif_explains_is_refused_with_that_explanation(tmp_path, caplog):
    root = write_tiny_coco(tmp_path / "data")
    file = root / "annotations/train.json"
    contents = json.loads(file.read_text())
    for image in contents["images"]:
        image["height"] = 90
    file.write_text(json.dumps(contents))
    for path in (root / "images").iterdir():
        Image.fromarray(np.ascontiguousarray(cv2.imread(str(path))[:90, :, ::-1])).save(path, "PNG")
    assert read_coco(root).reading == AS_STORED
    assert caplog.messages == []
    turn_files(root / "images")
    explained = (
        "its EXIF orientation is 6, and the annotations are for the picture as viewers show it: .*--exif upright"
    )
    with pytest.raises(AnnotationError, match=rf"width and height, 90 and 96, got 96 and 90; {explained}"):
        read_coco(root)
    assert "3 of 4 images looked at have an EXIF orientation other than 1" in caplog.text
    assert read_coco(root, exif="upright").reading == Reading(upright=True)
    # The other way round.
    for image in contents["images"]:
        image["width"], image["height"] = (90, 96) if image["id"] > 2 else (96, 90)
    file.write_text(json.dumps(contents))
    assert read_coco(root).reading == AS_STORED
    with pytest.raises(AnnotationError, match=r"orientation is 6, and .* the picture as stored: .*--exif stored"):
        read_coco(root, exif="upright")


def test_the_largest_picture_is_an_option_of_data(upright):
    assert settings_for(upright).data.reading.most_pixels == 250_000_000
    with pytest.raises(ValueError, match=r"96 x 96 are 9,216 pixels, more than the 9,000 of max_image_pixels"):
        crops(upright, max_image_pixels=9000)
    with pytest.raises(OptionError, match="max_image_pixels: expected at least 1, got 0"):
        settings_for(upright, max_image_pixels=0)


def test_results_of_pictures_read_in_another_way_do_not_replace_the_run_s(upright):
    trained, data = settings_for(upright).data, settings_for(upright, exif="upright").data
    assert evaluate.other_data(trained, data) == ["exif"]
    assert evaluate.other_data(data, data) == []


NETWORK = """
import torch

def make(joints):
    torch.manual_seed(0)
    return torch.nn.Conv2d(3, joints, 4, 4)
"""


@pytest.fixture
def checkpoint(tmp_path, monkeypatch) -> list[str]:
    """The words of predict for a network that sees single pixels."""
    (tmp_path / "looking_net.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(tmp_path)
    torch.manual_seed(0)
    torch.save(torch.nn.Conv2d(3, 16, 4, 4).state_dict(), tmp_path / "w.pth")
    return ["--checkpoint", str(tmp_path / "w.pth"), "--model", "looking_net:make", "--size", "64", "64"]


@pytest.mark.parametrize("box", [[], ["--box", "5", "8", "30", "40"]])
def test_predict_sees_reports_and_draws_a_photo_as_viewers_show_it(checkpoint, tmp_path, box):
    shown = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    photos = [str(tmp_path / f"{orientation}.png") for orientation in ORIENTATIONS]
    for photo, orientation in zip(photos, ORIENTATIONS, strict=True):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(turned(shown, BACK[orientation])).save(photo, exif=exif)
    found = {}
    for choice, words in {"upright": [], "stored": ["--exif", "stored"]}.items():
        out = tmp_path / choice
        assert predict.main([*checkpoint, "--image", *photos, "--out", str(out), *box, *words]) == 0
        found[choice] = json.loads((out / "predictions.json").read_text())
    first, *others = found["upright"]
    drawn = cv2.imread(first["drawn"])
    assert drawn.shape[0] < drawn.shape[1]
    for other in others:
        assert (other["box"], other["joints"]) == (first["box"], first["joints"])
        assert np.array_equal(cv2.imread(other["drawn"]), drawn)
    assert found["stored"][0]["joints"] == first["joints"]
    lying = found["stored"][ORIENTATIONS.index(6)]
    assert lying["joints"] != first["joints"]
    assert cv2.imread(lying["drawn"]).shape[0] > cv2.imread(lying["drawn"]).shape[1]
