# SPDX-License-Identifier: Apache-2.0
"""From what was asked for to what is in effect, rule by rule. Files of weights are values here."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from fastpose import pack
from fastpose.data.datasets import DATASETS
from fastpose.data.pack.format import INDEX, PackError
from fastpose.models.checkpoint import CheckpointError
from fastpose.models.weights import Weights
from fastpose.option import OptionError
from fastpose.options import settle as module
from fastpose.options.settings import DEFAULTS, Settings
from fastpose.options.settle import completed, data_option, settle, settle_for
from tests.helpers.tiny_mpii import write_tiny_mpii


def weights_of(path: str = "pose.pth", *, config: dict[str, Any] | None = None, **changes: Any) -> Weights:
    """What `read_weights` gives: SimpleBaselines' ResNet-18, or with a `config` a checkpoint of ours."""
    resnet: dict[str, Any] = {"origin": "SimpleBaselines", "architecture": "ResNet", "depth": 18, "head": "deconv"}
    resnet |= {"channels": 8, "num_joints": 16, "color_order": "bgr"}
    if config is not None:
        resnet |= {"origin": "fastpose", "color_order": config.get("color_order", "rgb")}
    checkpoint = None if config is None else {"config": config}
    return Weights(path=Path(path), state={}, checkpoint=checkpoint, **(resnet | changes))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FASTPOSE_DATA_ROOT", raising=False)
    return tmp_path


# ---- who wins ----


def test_the_command_line_wins_over_all():
    others = {"lr": 0.2}
    for sources in (
        {"recipe": others},
        {"instead": others},
        {"run": others},
        {"weights": weights_of(config=others)},
    ):
        assert settle({"lr": 0.1}, **sources).schedule.lr == 0.1


def test_a_recipe_wins_over_what_the_command_takes_instead():
    assert settle({}, recipe={"resident": True}, instead={"resident": False}).pixels.resident is True


def test_the_files_and_joints_of_a_recipe_are_of_its_own_data_set():
    recipe = {"dataset": "coco", "train_annotations": "a.json", "images": "photos", "skeleton": "lsp", "lr": 0.5}
    settings = settle({"dataset": "csv"}, recipe=recipe)
    assert (settings.data.train_annotations, settings.data.images, settings.data.skeleton) == ("train.csv", "", "")
    assert settings.schedule.lr == 0.5
    same = settle({"dataset": "coco"}, recipe=recipe).data
    assert (same.train_annotations, same.images, same.skeleton) == ("a.json", "photos", "lsp")
    del recipe["dataset"]  # then its files are of the one that is asked for
    assert settle({"dataset": "csv"}, recipe=recipe).data.train_annotations == "a.json"


def test_what_the_command_takes_instead_wins_over_the_training():
    trained = {"decoder": "gpu", "resident": True, "lr": 0.2}
    settings = settle({}, weights=weights_of(config=trained), instead={"decoder": "cpu", "resident": False})
    assert (settings.pixels.decoder, settings.pixels.resident, settings.schedule.lr) == ("cpu", False, 0.2)


def test_a_run_that_goes_on_wins_over_the_defaults():
    assert settle({}, run={"epochs": 3}).schedule.epochs == 3


def test_what_nobody_names_has_its_default():
    settings = settle({}).flat()
    settled = {"data_root", "train_annotations", "valid_annotations", "images", "color_order", "targets"}
    assert {name for name, value in settings.items() if value != DEFAULTS[name]} == settled


def test_an_option_may_be_asked_for_with_its_default_s_value():
    assert settle({"lr": DEFAULTS["lr"]}, recipe={"lr": 0.5}).schedule.lr == DEFAULTS["lr"]
    assert settle({"udp": False}, weights=weights_of(config={"udp": True})).network.udp is False


# ---- older runs, and other programs' files ----


@pytest.mark.parametrize("source", ["run", "weights"])
def test_a_training_from_before_an_option_did_what_was_done_then(source):
    def settled(config: dict[str, Any]) -> Settings:
        return settle({}, run=config) if source == "run" else settle({}, weights=weights_of(config=config))

    older = settled({"channels_last": False})
    assert (older.pixels.reduced_decode, older.network.color_order) == (False, "rgb")
    assert older.compute.channels_last == "off"
    assert settled({"reduced_decode": True}).pixels.reduced_decode is True


def test_a_training_with_the_gpu_s_decoder_did_not_reduce_images():
    trained = weights_of(config={"decoder": "gpu", "reduced_decode": True})
    assert settle({}, weights=trained).pixels.reduced_decode is False
    assert settle({"reduced_decode": True}, weights=trained).pixels.reduced_decode is True


def test_another_program_s_network_is_taken_for_what_is_usual_with_its_joints():
    for joints, dataset, size in ((16, "mpii", (256, 256)), (17, "coco", (256, 192)), (2, "coco", (256, 192))):
        settings = settle({}, weights=weights_of(num_joints=joints))
        assert (settings.data.dataset, settings.network.size) == (dataset, size)
        network = settings.network
        assert (network.depth, network.head, network.channels, network.color_order) == (18, "deconv", 8, "bgr")
        assert settings.pixels.reduced_decode is False


def test_joints_of_a_file_are_in_coco_s_format(here):
    (here / "two.yaml").write_text("joints: [tip, tail]\n")
    settings = settle({"skeleton": "two.yaml"}, weights=weights_of())
    assert (settings.data.dataset, settings.data.skeleton) == ("coco", str(here / "two.yaml"))
    assert settle({"skeleton": ""}, weights=weights_of()).data.dataset == "mpii"


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("pose_resnet_50_384x288.pth.tar", (384, 288)),
        ("res50_coco_256x192-ec54d7f3_20200709.pth", (256, 192)),
        ("pose_2024x12.pth", (256, 256)),
        ("pose_1x1.pth", (256, 256)),
        ("pose_12345x256.pth", (256, 256)),
    ],
)
def test_the_size_of_another_program_s_network_is_the_one_in_its_name(name, size):
    assert settle({}, weights=weights_of(name)).network.size == size
    assert settle({"size": (64, 64)}, weights=weights_of(name)).network.size == (64, 64)


def test_another_program_s_network_must_be_known_or_named():
    unknown = weights_of(depth=None, head=None, architecture="HRNet", origin="")
    with pytest.raises(OptionError, match=r"^checkpoint: pose.pth holds a HRNet, .*: name its network with --model"):
        settle({}, weights=unknown)
    with pytest.raises(OptionError, match=r"^checkpoint: .* name its network"):
        settle({"model": ""}, weights=unknown)
    assert settle({"model": "nets:make"}, weights=unknown).network.model == "nets:make"


# ---- errors ----


def test_a_checkpoint_of_another_version_is_named_and_what_was_asked_for_is_not_its_fault():
    for config in ({"no_such_option": 1}, {"blur_kernel": 4}):
        with pytest.raises(CheckpointError, match=r"^pose.pth: does not fit this version of fastpose: .*"):
            settle({}, weights=weights_of(config=config))
    with pytest.raises(OptionError, match=r"^blur_kernel: expected an odd number"):
        settle({"blur_kernel": 4}, weights=weights_of(config={}))
    assert settle({"blur_kernel": 5}, weights=weights_of(config={"blur_kernel": 4})).decode.blur_kernel == 5


@pytest.mark.parametrize(("dataset", "found"), [(7, "7"), (None, "NoneType"), (["a"], r"\['a'\]")])
def test_a_checkpoint_whose_data_set_is_no_text_is_named(dataset, found):
    message = rf"^pose.pth: does not fit this version of fastpose: dataset: expected text, got {found}$"
    with pytest.raises(CheckpointError, match=message):
        settle({}, weights=weights_of(config={"dataset": dataset}))
    with pytest.raises(OptionError, match=rf"^dataset: expected text, got {found}$"):
        settle({}, run={"dataset": dataset})
    with pytest.raises(OptionError, match=rf"^dataset: expected text, got {found}$"):
        completed({"dataset": dataset})
    assert settle({"dataset": "mix.yaml"}, weights=weights_of(config={"dataset": dataset})).data.dataset.endswith(
        ".yaml"
    )


def test_the_files_of_a_checkpoint_s_data_do_not_come_along_to_another_data_set(tmp_path):
    run = {
        "dataset": "deeplabcut",
        "train_annotations": "config.yaml",
        "valid_annotations": "config.yaml",
        "sigma": 2.0,
    }
    settings = settle({"dataset": "csv", "data_root": str(tmp_path)}, run=run)
    assert settings.data.valid_annotations == DATASETS["csv"].layout["valid_annotations"]
    assert settings.targets.sigma == 2.0
    assert settle({"data_root": str(tmp_path)}, run=run).data.valid_annotations == "config.yaml"


def test_an_unknown_data_set_is_refused():
    with pytest.raises(OptionError, match=r"^dataset: expected one of mpii, coco, wholebody, .*, got 'voc'"):
        settle({"dataset": "voc"})


# ---- files and folders ----


def test_the_data_root_is_absolute_and_has_a_usual_place(here, monkeypatch):
    assert settle({}).data.data_root == str(here / "data/mpii")
    assert settle({"dataset": "coco"}).data.data_root == str(here / "data/coco")
    assert settle({"data_root": "mine"}).data.data_root == str(here / "mine")
    monkeypatch.setenv("FASTPOSE_DATA_ROOT", str(here / "env"))
    assert settle({}).data.data_root == str(here / "env")
    assert settle({"data_root": "mine"}).data.data_root == str(here / "mine")
    monkeypatch.setenv("HOME", str(here / "home"))
    assert settle({"data_root": "~/mine"}).data.data_root == str(here / "home/mine")


def files(**asked: str) -> tuple[str, ...]:
    data = settle(asked).data
    return data.train_annotations, data.valid_annotations, data.images, data.valid_images


def test_files_that_nobody_names_are_those_of_the_data_set_s_layout():
    assert files() == ("annot/train.json", "annot/valid.json", "images", "")
    coco = ("annotations/person_keypoints_train2017.json", "annotations/person_keypoints_val2017.json")
    assert files(dataset="coco") == (*coco, "train2017", "val2017")
    assert files(dataset="coco", images="mine") == (*coco, "mine", "")
    assert files(dataset="coco", valid_images="mine") == (*coco, "train2017", "mine")
    assert files(dataset="coco", train_annotations=coco[0]) == (*coco, "train2017", "val2017")


def test_annotations_of_one_s_own_have_their_images_in_images():
    assert files(dataset="coco", train_annotations="a.json", valid_annotations="b.json") == (
        *("a.json", "b.json"),
        *("images", ""),
    )


def test_files_beside_the_data_become_absolute(here):
    (here / "w.pth").write_bytes(b"")
    settings = settle({"skeleton": "s.yaml", "weights": "w.pth", "color_order": "rgb", "dataset": "coco"})
    assert (settings.data.skeleton, settings.network.weights) == (str(here / "s.yaml"), str(here / "w.pth"))
    assert settings.network.backbone_weights == ""


# ---- the colour order ----


def test_the_colour_order_is_that_of_the_weights_to_begin_with_or_rgb(monkeypatch):
    monkeypatch.setattr("fastpose.models.network.check_is_file", lambda name, path: None)
    monkeypatch.setattr("fastpose.models.network.read_weights", lambda path: weights_of(path.name))
    assert settle({}).network.color_order == "rgb"
    assert settle({"weights": "w.pth"}).network.color_order == "bgr"
    assert settle({"backbone_weights": "w.pth"}).network.color_order == "bgr"
    assert settle({"weights": "w.pth", "color_order": "rgb"}).network.color_order == "rgb"


def test_weights_that_do_not_exist_are_an_error_that_names_the_option():
    with pytest.raises(FileNotFoundError, match=r"weights: no file w.pth"):
        settle({"weights": "w.pth"})


def test_of_a_trained_network_auto_is_its_own_colour_order_whatever_it_began_with():
    asked = {"color_order": "auto"}
    assert settle(asked, weights=weights_of()).network.color_order == "bgr"
    config = {"color_order": "bgr", "weights": "/no/longer/there.pth"}
    assert settle(asked, weights=weights_of(config=config)).network.color_order == "bgr"


# ---- packs ----


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    """A pack, in full resolution, of which both splits are annot/train.json."""
    root = tmp_path_factory.mktemp("packs")
    words = [str(write_tiny_mpii(root / "data", persons=2, images=1)), str(root / "pack"), "--size", "64", "64"]
    assert pack.main([*words, "--valid_annotations", "annot/train.json", "--reduced_decode", "false"]) == 0
    assert json.loads((root / "pack" / INDEX).read_text())["options"]["valid_annotations"] == "annot/train.json"
    return root / "pack"


def test_a_pack_brings_the_names_of_its_data_and_its_resolution(packed, capsys):
    settings = settle({"data_root": str(packed)})
    assert settings.data.valid_annotations == "annot/train.json"
    assert settings.pixels.reduced_decode is False
    assert capsys.readouterr().err == f"the pack {packed} has the data of valid_annotations 'annot/train.json'\n"
    # Inherited from a run that named none, the usual names are not named; settled once more nothing changes.
    assert settle({"data_root": str(packed)}, run=settle({}).as_plain()).data == settings.data
    capsys.readouterr()
    assert settle({}, run=settings.as_plain()) == settings
    assert capsys.readouterr().err == ""


def test_other_data_than_the_pack_s_may_not_be_named(packed):
    message = rf"^valid_annotations: the pack {packed} has the data of 'annot/train.json', got "
    with pytest.raises(PackError, match=message + "'annot/valid.json'"):
        settle({"data_root": str(packed), "valid_annotations": "annot/valid.json"})
    with pytest.raises(PackError, match=message + "'other.json'"):
        settle({"data_root": str(packed)}, recipe={"valid_annotations": "other.json"})
    usual = settle({"data_root": str(packed)}, recipe={"valid_annotations": "annot/valid.json"})
    assert usual.data.valid_annotations == "annot/train.json"
    with pytest.raises(PackError, match=r"^annotations: the pack"):
        settle(
            {"data_root": str(packed), "valid_annotations": "annot/valid.json"},
            called={"valid_annotations": "annotations"},
        )
    with pytest.raises(PackError, match=r"^dataset: the pack"):
        settle({"data_root": str(packed), "dataset": "coco"})
    named = settle({"data_root": str(packed), "valid_annotations": "annot/train.json", "images": ""})
    assert (named.data.valid_annotations, named.data.images) == ("annot/train.json", "images")


def test_of_a_pack_no_head_boxes_may_be_wanted(packed):
    assert settle({"data_root": str(packed), "head_boxes": ""}).data.head_boxes == ""


def test_what_a_command_has_no_option_for_is_not_printed(packed, capsys):
    settle({"data_root": str(packed)}, called={"valid_annotations": ""})
    assert capsys.readouterr().err == ""


def test_the_options_before_there_were_some_are_options():
    assert module.BEFORE.keys() <= DEFAULTS.keys()


# ---- the folder and its format ----


@pytest.mark.parametrize(
    ("name", "file"),
    [("yolo", "data.yaml"), ("deeplabcut", "config.yaml"), ("csv", "train.csv"), ("lsp", "joints.mat")],
)
def test_a_folder_of_another_format_is_an_error_that_names_it(name, file, here):
    (here / file).write_text("")
    message = (
        rf"^dataset: without it {here} is in the format mpii, whose annot/train\.json is not there; there is {file}: "
    )
    with pytest.raises(OptionError, match=f"{message}add --dataset {name}$"):
        settle({"data_root": str(here)})
    assert settle({"data_root": str(here), "dataset": "mpii"}).data.dataset == "mpii"
    assert settle({"data_root": str(here)}, recipe={"dataset": "coco"}).data.dataset == "coco"
    assert settle({"data_root": str(here)}, reads_data=False).data.dataset == "mpii"
    (here / "annot").mkdir()
    (here / "annot/valid.json").write_text("")  # as evaluation has it
    assert settle({"data_root": str(here)}).data.dataset == "mpii"


@pytest.mark.parametrize(
    ("files", "shown"),
    [
        (["annotations/b.json", "annotations/a.json", "images/a.png"], "annotations/a.json, annotations/b.json"),
        (["project/labels.SLP", ".hidden/a.json", ".a.json"], "project/labels.SLP"),
        (["x/mpii_human_pose_v1_u12_1.mat", "deep/er/a.json"], "x/mpii_human_pose_v1_u12_1.mat"),
        ([f"img{n}.json" for n in range(4)], "img0.json, img1.json, img2.json and 1 more"),
        ([f"a/{n}.png" for n in range(300)] + ["z.csv"], "z.csv"),
    ],
)
def test_a_folder_without_any_usual_file_is_an_error_that_says_what_is_there(files, shown, here):
    for file in files:
        (here / file).parent.mkdir(exist_ok=True, parents=True)
        (here / file).write_text("")
    message = f"is not there; there is {shown}: name the format, and the files of annotations"
    with pytest.raises(OptionError, match=f"^dataset: .*{re.escape(message)}$"):
        settle({"data_root": str(here)})
    assert settle({"data_root": str(here), "dataset": "coco"}).data.dataset == "coco"
    assert settle({"data_root": str(here)}, reads_data=False).data.dataset == "mpii"
    named = settle({"data_root": str(here), "train_annotations": "annot/mytrian.json"})  # an error where it is read
    assert named.data.train_annotations == "annot/mytrian.json"


def test_a_folder_without_annotations_and_one_that_does_not_exist_are_errors_where_they_are_read(here):
    (here / "a.png").write_text("")
    for root in (here, here / "none"):
        assert settle({"data_root": str(root)}).data.data_root == str(root)


@pytest.mark.parametrize("dataset", [{}, {"dataset": "coco"}])
def test_a_data_root_that_is_a_file_is_an_error(dataset, here):
    for name, about in (("labels.slp", ""), ("sets.yaml", "; a list of several sets is a value of --dataset")):
        (here / name).write_text("")
        message = f"data_root: expected the folder of a data set, got a file: {here / name}{about}"
        with pytest.raises(OptionError, match=f"^{re.escape(message)}$"):
            settle({"data_root": name, **dataset})
    files = {"train_annotations": str(here / "labels.slp"), "images": str(here)}  # which are not below the root
    assert settle({"data_root": "sets.yaml", **files, **dataset}).data.images == str(here)


@pytest.mark.parametrize(("name", "file"), [("yolo", "data.yaml"), ("deeplabcut", "config.yaml")])
def test_a_format_s_own_yaml_file_is_not_a_list_of_sets(name, file, here):
    (here / file).write_text("names:\n  0: person\n")
    message = rf"^dataset: \S*{file} has no sets: if it is that of a data set, name its folder, and --dataset {name}$"
    with pytest.raises(OptionError, match=message):
        settle({"dataset": file})
    with pytest.raises(ValueError, match=message[1:]):
        settle_for(file, "", {})
    (here / file).write_text("skeleton: lsp\nsets: []\n")
    assert settle({"dataset": file}).data.dataset == str(here / file)


def test_a_format_and_a_list_of_sets_do_not_go_together(here):
    with pytest.raises(
        ValueError, match=r"dataset: yolo is the format of a folder, got the file sets\.yaml: name its folder"
    ):
        settle_for("sets.yaml", "", {"dataset": "yolo"})
    assert data_option("sets.yaml", {"dataset": "sets.yaml"}) == {"dataset": "sets.yaml"}
    assert data_option("folder", {"dataset": "yolo"}) == {"data_root": "folder"}
