# SPDX-License-Identifier: Apache-2.0
"""DeepLabCut's projects."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from fastpose.data.annotation_rows import AnnotationError
from tests.helpers.formats import JOINTS, TRAINED, VALIDATED, names, opened, picture, read, write_deeplabcut

THREE_COLUMNS = {"index": "{folder},{video},{name}", "empty": ",,"}
ONE_COLUMN = {"index": "{folder}/{video}/{name}", "empty": ""}
WINDOWS = {"index": "{folder}\\{video}\\{name}", "empty": ""}
TABLE = "labeled-data/mouse/CollectedData_Ada.csv"


@pytest.fixture
def root(tmp_path) -> Path:
    return write_deeplabcut(tmp_path / "project")


def change(root: Path, file: str, before: str, after: str) -> Path:
    text = (root / file).read_text()
    assert before in text
    (root / file).write_text(text.replace(before, after))
    return root


@pytest.mark.parametrize("columns", [THREE_COLUMNS, ONE_COLUMN, WINDOWS], ids=["three", "one", "windows"])
def test_a_project_of_one_animal(tmp_path, columns, caplog):
    dataset = opened(write_deeplabcut(tmp_path / "project", **columns), "deeplabcut")
    train, valid = dataset.read("train"), dataset.read("valid")
    assert (train.skeleton.joints, train.skeleton.mirror_pairs) == (JOINTS, ((2, 1),))
    assert train.skeleton.limbs == ((0, 1), (0, 2))
    assert (names(train), names(valid)) == (["img000.png", "img001.png"], ["img009.png"])
    np.testing.assert_array_equal(train.keypoints, TRAINED)
    np.testing.assert_array_equal(valid.keypoints, VALIDATED)
    assert train.visible.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert "config.yaml: left out: 7 without an annotated joint (the first: " in caplog.text
    assert "CollectedData_Ada.csv, line 6)" in caplog.text


def test_messages_name_table_line_and_animal_and_the_picture_below_the_project(root):
    one, other = read(root, "deeplabcut").origins([0, 1])
    assert (one.record, one.image) == (f"{TABLE}, line 4", "labeled-data/mouse/img000.png")
    assert other.record == f"{TABLE}, line 5"


def test_a_project_of_several_animals(root, caplog):
    (root / "config.yaml").write_text(
        "scorer: Ada\nmultianimalproject: true\nbodyparts: MULTI!\nindividuals: [one, two]\n"
        "multianimalbodyparts: [snout, tail]\nuniquebodyparts: [corner]\nskeleton: [[snout, tail], [tail, corner]]\n"
    )
    picture(root / "labeled-data/mouse/img000.png")
    (root / TABLE).write_text(
        "scorer,,," + ",".join(["Ada"] * 10) + "\n"
        "individuals,,,one,one,one,one,two,two,two,two,single,single\n"
        "bodyparts,,,snout,snout,tail,tail,snout,snout,tail,tail,corner,corner\n"
        "coords,,,x,y,x,y,x,y,x,y,x,y\n"
        "labeled-data,mouse,img000.png,1,2,30,40,50,60,70,80,5,5\n"
        "labeled-data,mouse,img001.png,1,2,30,40,,,,,,\n"
        "labeled-data,mouse,img002.png,,,,,,,,,,\n"
    )
    (root / "list").write_text("labeled-data/mouse/img001.png\n")
    dataset = opened(root, "deeplabcut", split_list="list")
    train = dataset.read("train")
    assert (train.skeleton.joints, train.skeleton.limbs) == (("snout", "tail"), ((0, 1),))
    assert train.keypoints.tolist() == [[[1, 2], [30, 40]], [[50, 60], [70, 80]]]
    assert names(dataset.read("valid")) == ["img001.png"]
    assert "left out: 1 images' uniquebodyparts (the first: " in caplog.text


def test_folders_without_annotations_are_counted_and_joints_may_be_missing(root, caplog):
    (root / "labeled-data/mouse_labeled").mkdir()
    change(root, "config.yaml", "- right_eye\nskeleton", "- right_eye\n- tail\nskeleton")
    persons = read(root, "deeplabcut")
    assert persons.visible[0].tolist() == [1, 1, 1, 0]
    assert "1 folders without CollectedData_Ada.csv (the first: mouse_labeled)" in caplog.text


@pytest.mark.parametrize(
    ("file", "before", "after", "message"),
    [
        (
            "config.yaml",
            "scorer: Ada",
            "scorer: Bob",
            r"config\.yaml: none of 1 folders in .* has a CollectedData_Bob\.csv",
        ),
        ("config.yaml", "scorer: Ada", "scorer: ../Ada", r'config\.yaml: scorer must be a name, got "\.\./Ada"'),
        ("config.yaml", "scorer: Ada", "x: Ada", r"config\.yaml: scorer must be a name, got null"),
        (
            "config.yaml",
            "- right_eye\nskeleton:\n- - nose\n  - left_eye\n- - nose\n  - right_eye",
            "",
            r'_Ada\.csv: bodyparts must be those of config\.yaml, got "right_eye"',
        ),
        (
            "config.yaml",
            "- nose\n  - left_eye",
            "- nose\n  - chin",
            r'config\.yaml: skeleton must be pairs of bodyparts, got \["nose", "chin"\]',
        ),
        (
            "config.yaml",
            "multianimalproject: false",
            "multianimalproject: true",
            r"config\.yaml: multianimalbodyparts must be a list of names, got null",
        ),
        (
            "config.yaml",
            "- left_eye\n- right_eye",
            "- right_eye\n- left_eye\n- nose",
            r"config\.yaml: bodyparts: expected joints with different names",
        ),
        (TABLE, "20,30,40", "20,30", r"_Ada\.csv, line 4: expected 9 cells, got 8"),
        (TABLE, "20,30,40", "20,x,40", r'_Ada\.csv, line 4: nose must be a number, got "x"'),
        (TABLE, "20,30,40", "20,,40", r"_Ada\.csv, line 4, nose: expected finite x and y below 1e\+06, got 20 and nan"),
        (
            TABLE,
            "20,30,40",
            "20,1e308,40",
            r"_Ada\.csv, line 4, nose: expected finite x and y below 1e\+06, got 20 and 1e\+308",
        ),
        (TABLE, "coords,,,x,y", "coords,,,x,z", r'_Ada\.csv: coords must be x and y, got "z"'),
        (TABLE, "coords,,,x,y", "coords,,,x,x", r"_Ada\.csv: expected one x and one y for each of the bodyparts"),
        (
            TABLE,
            "coords,,,x,y",
            "coords,,,x,likelihood",
            r"_Ada\.csv: expected one x and one y for each of the bodyparts",
        ),
        (
            TABLE,
            "bodyparts,,,nose,",
            "bodyparts,,,",
            r"_Ada\.csv: expected lines of bodyparts and coords of the same length",
        ),
        (
            TABLE,
            "bodyparts,",
            "parts,",
            r'_Ada\.csv, line 2: expected scorer, individuals, bodyparts or coords, got "parts"',
        ),
        (
            TABLE,
            "img001.png",
            "img000.png",
            r'_Ada\.csv, line 5: image "labeled-data/mouse/img000\.png" is there twice',
        ),
        (
            TABLE,
            "labeled-data,mouse,img000.png",
            "..,mouse,img000.png",
            r"image '\.\./mouse/img000\.png' leads outside",
        ),
        (TABLE, "img000.png", "img0\0.png", r"_Ada\.csv, line 4: expected text, got a NUL"),
        (TABLE, "img000.png", '"img000.png', r"_Ada\.csv, line \d+: is not CSV"),
    ],
)
def test_a_project_that_is_none_is_an_error(root, tmp_path, file, before, after, message):
    picture(tmp_path / "mouse/img000.png")
    with pytest.raises(AnnotationError, match=message):
        read(change(root, file, before, after), "deeplabcut")


def test_every_animal_has_the_same_joints(root):
    text = (root / "config.yaml").read_text()
    names = "\n".join(f"- part{number}" for number in range(30))
    (root / "config.yaml").write_text(text.replace("- nose\n", f"{names}\n- nose\n", 1))
    with pytest.raises(
        AnnotationError, match=r"_Ada\.csv: expected the bodyparts of config\.yaml for every individual, got"
    ):
        read(root, "deeplabcut")
    (root / "config.yaml").write_text(text)
    table = (root / TABLE).read_text()
    (root / TABLE).write_text("scorer\nindividuals,,,a,a,b,b,b,b\n" + table.partition("\n")[2])
    with pytest.raises(
        AnnotationError, match=r'for every individual, got \{"a": \["nose"\], "b": \["left_eye", "right_eye"\]\}'
    ):
        read(root, "deeplabcut")


def test_a_table_without_its_head_is_an_error(root):
    (root / TABLE).write_text("scorer,,,Ada\n")
    with pytest.raises(AnnotationError, match=r'_Ada\.csv: expected lines of scorer, .* got \["scorer"\]'):
        read(root, "deeplabcut")


def test_an_h5_file_alone_is_an_error_that_says_how_to_make_the_csv_of_it(root):
    (root / TABLE).rename((root / TABLE).with_suffix(".h5"))
    with pytest.raises(
        AnnotationError, match=r"_Ada\.h5: expected CollectedData_Ada\.csv beside it, .* python -c "
    ) as caught:
        read(root, "deeplabcut")
    _, _, command = str(caught.value).partition("python -c ")
    (code,) = shlex.split(command)
    read_hdf = mock.Mock()
    with mock.patch.dict(sys.modules, pandas=mock.Mock(read_hdf=read_hdf)):
        exec(code)
    read_hdf.assert_called_once_with(str((root / TABLE).with_suffix(".h5")))
    read_hdf.return_value.to_csv.assert_called_once_with(str(root / TABLE))
