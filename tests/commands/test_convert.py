# SPDX-License-Identifier: Apache-2.0
"""`fastpose convert`: what is written reads as the same persons."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from fastpose import cli, convert
from fastpose.data.dataset import Dataset
from fastpose.data.datasets import open_dataset
from fastpose.files import write_yaml
from fastpose.options.asked import find_recipe, read_recipe
from fastpose.options.settle import settle
from fastpose.skeletons import COCO, MPII, Skeleton, find_skeleton, read_skeleton, skeleton_as_plain
from tests.helpers.formats import SIZE, opened, picture, write_csv, write_deeplabcut, write_yolo
from tests.helpers.tiny_coco import write_tiny_coco
from tests.helpers.tiny_mpii import write_tiny_mpii


def write_lsp(root: Path) -> Path:
    """Ten persons of LSP Extended."""
    joints = np.ones((14, 3, 10))
    joints[:, 0] = 20 + 5 * np.arange(14)[:, None] + np.arange(10)
    joints[:, 1] = 30 + 3 * np.arange(14)[:, None]
    joints[2, 2, 4] = 0
    for number in range(1, 11):
        picture(root / f"images/im{number:05d}.jpg")
    savemat(root / "joints.mat", {"joints": joints})
    return root


def write_mpii(root: Path) -> Path:
    """Boxes of tiny_mpii, made so small that they are within their images: COCO's reader cuts others."""
    write_tiny_mpii(root, persons=6)
    for split in ("train", "valid"):
        file = root / f"annot/{split}.json"
        records = json.loads(file.read_text())
        for record in records:
            record |= {"center": [60, 40], "scale": 0.25}
        file.write_text(json.dumps(records))
    return root


FILES = {"train_annotations": "annotations/train.json", "valid_annotations": "annotations/valid.json"}
WRITTEN: dict[str, tuple[Callable[[Path], Path], dict[str, Any]]] = {
    "yolo": (write_yolo, {}),
    "lsp": (write_lsp, {}),
    "deeplabcut": (write_deeplabcut, {}),
    "csv": (write_csv, {}),
    "coco": (write_tiny_coco, FILES),
    "mpii": (write_mpii, {}),
}


def options(words: list[str]) -> dict[str, str]:
    return {word.removeprefix("--"): value for word, value in zip(words[::2], words[1::2], strict=True)}


def converted(root: Path, out: Path, *words: str) -> None:
    assert convert.main([str(root), str(out), *words]) == 0


def reopened(printed: str) -> Dataset:
    """The data set that the printed command trains on."""
    words = shlex.split(printed.splitlines()[-1])
    assert words[:2] == ["fastpose", "train"]
    asked = options(words[2:])
    recipe = read_recipe(find_recipe(asked.pop("recipe")))
    settings = settle({**asked, "size": SIZE}, recipe=recipe)
    return open_dataset(settings.data, SIZE)


@pytest.mark.parametrize("name", WRITTEN)
def test_the_printed_command_reads_the_same_persons(name, tmp_path, capsys):
    write, files = WRITTEN[name]
    root = write(tmp_path / "in")
    words = [word for option, value in files.items() for word in (f"--{option}", value)]
    converted(root, tmp_path / "out", "--dataset", name, *words)
    before, after = opened(root, name, **files), reopened(capsys.readouterr().out)
    assert after.skeleton.joints == before.skeleton.joints
    assert after.skeleton.mirror_pairs == before.skeleton.mirror_pairs
    for split in ("train", "valid"):
        was, now = before.read(split), after.read(split)
        assert [was.image_paths[i] for i in was.image_index] == [now.image_paths[i] for i in now.image_index]
        np.testing.assert_array_equal(now.visible, was.visible)
        np.testing.assert_allclose(
            now.keypoints * now.visible[..., None], was.keypoints * was.visible[..., None], atol=1e-3
        )
        np.testing.assert_allclose(now.center, was.center, atol=1e-3)
        np.testing.assert_allclose(now.scale * 200, was.scale * 200, atol=1e-3)


def test_the_printed_command_and_that_of_the_manual_train(tmp_path, capsys):
    pytest.importorskip("yaml")
    root = write_yolo(tmp_path / "EYES")
    small = ["--dry_run", "--device", "cpu", "--size", "64", "64", "--depth", "18", "--batch_size", "2"]
    converted(root, tmp_path / "out", "--dataset", "yolo")
    _, *words = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert cli.main([*words, *small]) == 0
    assert "joints [2, 3, 2]" in capsys.readouterr().out
    manual = (Path(__file__).parents[2] / "docs" / "converting.md").read_text(encoding="utf-8")
    [line] = [line for line in manual.splitlines() if line.startswith("fastpose train") and "--dataset yolo" in line]
    _, *words = shlex.split(line.replace("EYES", str(root)))
    assert cli.main([*words, *small]) == 0
    assert "joints [2, 3, 2]" in capsys.readouterr().out


def test_splits_that_share_images_are_a_warning(tmp_path, caplog):
    root = write_tiny_coco(tmp_path / "in")
    words = [word for option, value in FILES.items() for word in (f"--{option}", value)]
    converted(root, tmp_path / "out", "--dataset", "coco", *words)
    assert "4 of 4 validation images are training images too" in caplog.text
    assert "name another file with valid_annotations" in caplog.text


def test_what_is_left_out_is_printed_with_its_reason_and_the_first(tmp_path, capsys, caplog):
    root = write_deeplabcut(tmp_path / "in")
    assert cli.main(["convert", str(root), str(tmp_path / "out"), "--dataset", "deeplabcut"]) == 0
    assert caplog.text.count("left out: 7 without an annotated joint (the first: ") == 1
    printed = capsys.readouterr().out
    assert "train: 2 annotations on 9 images" in printed
    assert "valid: 1 annotations on 1 images" in printed
    written = json.loads((tmp_path / "out/annotations/train.json").read_text())
    assert written["images"][0] == {"id": 1, "file_name": "labeled-data/mouse/img000.png", "width": 200, "height": 100}
    assert written["categories"] == [
        {"id": 1, "name": "person", "keypoints": ["nose", "left_eye", "right_eye"], "skeleton": [[1, 2], [1, 3]]}
    ]


def test_options_that_say_how_to_read_go_into_the_command(tmp_path, capsys):
    root = write_yolo(tmp_path / "in")
    converted(root, tmp_path / "out", "--dataset", "yolo", "--category", "person", "--missing_images", "drop")
    words = options(shlex.split(capsys.readouterr().out.splitlines()[-1])[2:])
    assert words == {
        "recipe": "own_resnet50_fcn_256",
        "data_root": str(tmp_path / "out"),
        "skeleton": str(tmp_path / "out/skeleton.yaml"),
        "images": str(root),
        "category": "person",
        "missing_images": "drop",
        "score": "pck",
    }


@pytest.mark.parametrize("skeleton", [COCO, MPII, find_skeleton("lsp"), Skeleton("no", ("1", "on"), (), ())])
def test_a_skeleton_is_written_as_it_is_read(skeleton, tmp_path):
    write_yaml(tmp_path / "skeleton.yaml", skeleton_as_plain(skeleton))
    assert read_skeleton(tmp_path / "skeleton.yaml") == skeleton


def test_nothing_is_written_over(tmp_path, capsys):
    root = write_tiny_coco(tmp_path / "in")
    words = [word for option, value in FILES.items() for word in (f"--{option}", value)]
    assert convert.main([str(root), str(root), "--dataset", "coco", *words]) == 1
    assert "error: out: expected a new or an empty folder, got" in capsys.readouterr().err


def test_a_pack_is_refused(tmp_path, capsys):
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack/pack.json").write_text("{}")
    assert convert.main([str(tmp_path / "pack"), str(tmp_path / "out")]) == 1
    assert "pack is a pack, which has no images; convert the data it was made from" in capsys.readouterr().err


def test_an_error_in_the_data_is_one_line_with_the_file_and_the_record(tmp_path, capsys):
    root = write_csv(tmp_path / "in")
    (root / "valid.csv").write_text("image,joint,x,y\nc.png,nose,1,one\n")
    assert convert.main([str(root), str(tmp_path / "out"), "--dataset", "csv"]) == 1
    assert 'valid.csv, line 2: y must be a number, got "one"' in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
