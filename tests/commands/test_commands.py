# SPDX-License-Identifier: Apache-2.0
import dataclasses
import errno
import gc
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
import torch
import yaml
from scipy.io import loadmat

import fastpose
from fastpose import cli, evaluate, export, pack, predict, progress, train
from fastpose._program import STOPS
from fastpose.data.datasets import open_dataset
from fastpose.data.images import read_image
from fastpose.data.mpii import PckhScorer, pckh_from_mat
from fastpose.data.pixels import open as pixel_sources
from fastpose.device import ComputeOptions
from fastpose.ending import CLOSED_PIPE
from fastpose.engine import pictures
from fastpose.engine import run as training
from fastpose.models import network, pose_resnet
from fastpose.models.exported import PixelsToPoints
from fastpose.options.asked import find_recipe, recipes
from fastpose.options.settings import DEFAULTS, FIELDS, Settings
from fastpose.options.settle import settle
from fastpose.skeletons import MPII
from tests.helpers.persons import persons_of
from tests.helpers.reading import loader_of, read_split
from tests.helpers.runs import start_and_stop
from tests.helpers.settings import changed, small_network
from tests.helpers.terminal import error_of
from tests.helpers.tiny_mpii import write_tiny_mpii

REPOSITORY = Path(__file__).resolve().parents[2]
RUN_FILES = {
    *("config.yaml", "metrics.jsonl", "summary.json", "last.pt", "last.prev.pt", "best.pt"),
    *("curves.png", "predictions.png", "heatmaps.png", "predictions.npz", "index.html"),
}


@pytest.fixture(scope="module", autouse=True)
def small_networks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "pose_resnet", small_network)
        yield


@pytest.fixture(autouse=True)
def few_pictures(request, monkeypatch):
    """Only the run of `finished` and the slow test draw; it takes longer than the rest of a tiny run."""
    if "slow" in request.keywords:
        monkeypatch.setattr(network, "pose_resnet", pose_resnet)
        return
    for name in ("draw_curves", "draw_predictions", "draw_heatmaps"):
        monkeypatch.setattr(pictures, name, lambda *arguments, **named: None)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """A recipe for ten persons of 64 x 64 px: two epochs of three steps, in seconds."""
    root = tmp_path_factory.mktemp("data")
    write_tiny_mpii(root / "tiny")
    path = root / "tiny.yaml"
    options = {"data_root": str(root / "tiny"), "depth": 18, "channels": 16, "size": [64, 64]}
    path.write_text(yaml.safe_dump(options | {"batch_size": 4, "epochs": 2, "device": "cpu", "log_every": 1}))
    return path


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory) -> Path:
    """The folder of a complete run."""
    run = tmp_path_factory.mktemp("runs") / "finished"
    assert train.main(["--recipe", str(recipe), "--run", str(run)]) == 0
    return run


def weights(file: Path) -> dict[str, torch.Tensor]:
    return torch.load(file, weights_only=True)["model"]


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_same_run(first: Path, second: Path) -> None:
    """Equal to the bit: weights, losses and scores."""
    a, b = weights(first / "last.pt"), weights(second / "last.pt")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert losses(first) == losses(second)
    scores = [json.loads((folder / "summary.json").read_text())["pckh"] for folder in (first, second)]
    assert scores[0] == scores[1]


def test_a_run_writes_what_it_promises(finished):
    assert {path.name for path in finished.iterdir()} == RUN_FILES
    summary = json.loads((finished / "summary.json").read_text())
    assert list(summary["pckh"]) == [
        *("Head", "Shoulder", "Elbow", "Wrist", "Hip", "Knee", "Ankle"),
        *("Mean", "Mean@0.1", "Mean@0.11"),
    ]
    assert 0 <= summary["input_wait_fraction"] <= 1
    assert summary["samples_per_second"] > 0
    assert summary["device"] == "cpu"
    assert {"seconds", "commit"} <= summary.keys()
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert lines[-1]["pckh"] == summary["pckh"]
    for name in ("curves", "predictions", "heatmaps"):
        assert cv2.imread(str(finished / f"{name}.png")).std() > 10
    config = yaml.safe_load((finished / "config.yaml").read_text())
    assert config["channels"] == 16
    assert config["lr"] == DEFAULTS["lr"]


def test_the_output_ends_with_the_score_and_the_files(recipe, tmp_path, capsys):
    assert train.main(["--recipe", str(recipe), "--run", str(tmp_path / "run"), "--epochs", "1"]) == 0
    out, err = capsys.readouterr()
    assert err.splitlines()[0] == f"recipe tiny, data root {recipe.parent / 'tiny'}"
    assert "epoch 1/1  loss" in err
    assert "samples/s" in err
    assert "epoch 1/1" not in out
    assert out.index("Mean@0.11") < out.index("wrote ")
    assert out.rstrip().splitlines()[-1].startswith("wrote ")


def test_a_cpu_run_repeats_to_the_bit(recipe, finished, tmp_path):
    assert train.main(["--recipe", str(recipe), "--run", str(tmp_path / "again")]) == 0
    assert_same_run(finished, tmp_path / "again")
    assert train.main(["--recipe", str(recipe), "--run", str(tmp_path / "other"), "--seed", "1"]) == 0
    assert losses(tmp_path / "other") != losses(finished)


def test_a_run_on_resident_images_equals_one_on_files(recipe, finished, tmp_path, capsys):
    run = tmp_path / "run"
    assert train.main(["--recipe", str(recipe), "--run", str(run), "--resident", "true", "--decode_threads", "3"]) == 0
    out = capsys.readouterr().err
    assert out.count("decoding into the memory of cpu  4/4 images") == 2  # both splits, nothing else
    assert_same_run(finished, run)
    assert yaml.safe_load((run / "config.yaml").read_text())["resident"] is True
    assert evaluate.main(["--checkpoint", str(run), "--out", str(tmp_path / "out")]) == 0
    assert "decoded into" not in capsys.readouterr().out


def test_a_bad_image_among_resident_ones_is_an_error_or_skipped(recipe, tmp_path, capsys):
    root = write_tiny_mpii(tmp_path / "data")
    (root / "images/001.jpg").write_bytes((root / "images/001.jpg").read_bytes()[:-9])
    arguments = ["--recipe", str(recipe), "--data_root", str(root), "--epochs", "1", "--resident", "true"]
    assert train.main([*arguments, "--run", str(tmp_path / "error")]) == 1
    assert "001.jpg: truncated" in capsys.readouterr().err
    assert train.main([*arguments, "--run", str(tmp_path / "skip"), "--on-bad-image", "skip"]) == 0
    summary = json.loads((tmp_path / "skip/summary.json").read_text())
    assert summary["skipped_persons"] == 3
    assert "001.jpg" in summary["bad_images"][0]


def test_a_run_from_before_channels_last_had_an_auto_can_be_resumed(recipe, finished, tmp_path):
    run = tmp_path / "run"
    start_and_stop(recipe, run, 1)
    contents = torch.load(run / "last.pt", weights_only=True)
    for name in ("compile", "cuda_graph", "decoder", "resident"):
        del contents["config"][name]
    contents["config"] |= {"channels_last": False, "amp": "off", "decode_threads": 2}
    torch.save(contents, run / "last.pt")
    (run / "config.yaml").write_text(yaml.safe_dump(contents["config"]))
    assert train.main(["--resume", str(run)]) == 0
    assert_same_run(finished, run)
    assert yaml.safe_load((run / "config.yaml").read_text())["channels_last"] == "off"


def test_an_older_run_goes_on_without_reducing_its_images(recipe, tmp_path):
    run = tmp_path / "run"
    start_and_stop(recipe, run, 1)
    assert yaml.safe_load((run / "config.yaml").read_text())["reduced_decode"] is True
    for name in ("last.pt", "config.yaml"):
        is_yaml = name.endswith("yaml")
        contents = yaml.safe_load((run / name).read_text()) if is_yaml else torch.load(run / name, weights_only=True)
        del (contents if is_yaml else contents["config"])["reduced_decode"]
        (run / name).write_text(yaml.safe_dump(contents)) if is_yaml else torch.save(contents, run / name)
    assert train.main(["--resume", str(run)]) == 0
    assert yaml.safe_load((run / "config.yaml").read_text())["reduced_decode"] is False
    # Another value, once asked for, stays the run's.
    for epochs, words in (("3", ["--reduced_decode", "true"]), ("4", [])):
        assert train.main(["--resume", str(run), "--epochs", epochs, *words]) == 0
        assert yaml.safe_load((run / "config.yaml").read_text())["reduced_decode"] is True


@pytest.mark.parametrize(
    ("trained", "words", "expected"),
    [
        ({}, [], [2]),
        ({"reduced_decode": False}, [], None),
        ({"reduced_decode": None}, [], None),  # a checkpoint from before there was such a thing
        ({"decoder": "gpu"}, [], None),  # which does not reduce
        ({}, ["--reduced_decode", "false"], None),
        ({"reduced_decode": False}, ["--reduced_decode", "true"], [2]),
    ],
)
def test_evaluation_reduces_images_where_training_did(finished, tmp_path, monkeypatch, trained, words, expected):
    contents = torch.load(finished / "best.pt", weights_only=True)
    contents["config"] |= trained
    contents["config"] = {name: value for name, value in contents["config"].items() if value is not None}
    # Crops of 32 px: the boxes of 96 px shrink by 3.
    contents["config"]["size"] = [32, 32]
    torch.save(contents, tmp_path / "best.pt")
    used = []
    files = pixel_sources.ImageFiles

    def note(paths, threads, reduction, *others):
        used.append(reduction)
        return files(paths, threads, reduction, *others)

    monkeypatch.setattr(pixel_sources, "ImageFiles", note)
    assert evaluate.main(["--checkpoint", str(tmp_path / "best.pt"), *words]) == 0
    assert (used[0] if used[0] is None else sorted(set(used[0].tolist()))) == expected


def test_training_reduces_as_its_smallest_crops_allow_and_evaluation_as_its_own(recipe):
    settings = settle({"data_root": yaml.safe_load(recipe.read_text())["data_root"], "size": (32, 32)})
    persons = read_split(settings, "valid")  # boxes of 96 px
    for changes, to_train, to_evaluate in [({}, 2, 2), ({"scale_min": 0.5}, 1, 2), ({"reduced_decode": False}, 0, 0)]:
        for split, expected in (("train", to_train), ("valid", to_evaluate)):
            source = loader_of(changed(settings, **changes), split, persons=persons).source
            assert set([0] if source.reduction is None else source.reduction.tolist()) == {expected}


@pytest.mark.parametrize("kind", ["raw", "jpeg"])
def test_a_pack_trains_and_evaluates_as_its_files_do(recipe, finished, tmp_path, monkeypatch, kind):
    monkeypatch.undo()  # with the pictures
    monkeypatch.setattr(network, "pose_resnet", small_network)
    root, run = tmp_path / "pack", tmp_path / "run"
    data = yaml.safe_load(recipe.read_text())["data_root"]
    whole = ["--reduced_decode", str(kind == "jpeg").lower()]
    assert cli.main(["pack", data, str(root), "--recipe", str(recipe), "--format", kind, *whole]) == 0
    assert train.main(["--recipe", str(recipe), "--run", str(run), "--data_root", str(root)]) == 0
    assert {path.name for path in run.iterdir()} == RUN_FILES
    for name in ("predictions", "heatmaps"):
        assert cv2.imread(str(run / f"{name}.png")).std() > 10
    # A pack in full resolution is remembered as that, whatever the options say: evaluations must not reduce either.
    assert yaml.safe_load((run / "config.yaml").read_text())["reduced_decode"] is (kind == "jpeg")
    if kind == "raw":  # the files are not reduced either: boxes of 96 px for crops of 64
        assert losses(run) == pytest.approx(losses(finished), rel=1e-3)
    # Either's checkpoint on either's data.
    for checkpoint, other in ((run, data), (finished, root)):
        arguments = ["--checkpoint", str(checkpoint), "--data_root", str(other)]
        assert evaluate.main([*arguments, "--out", str(tmp_path / "out")]) == 0
        assert json.loads((tmp_path / "out/scores.json").read_text())["persons"] == 10
    again = ["--recipe", str(recipe), "--data_root", str(root), "--rotation", "31"]
    assert train.main([*again, "--run", str(tmp_path / "wide")]) == 1
    # The recipe that draws persons finds a pack instead of them.
    settings = settle({"data_root": str(root), "synthetic_persons": 2})
    assert len(read_split(settings, "train")) == 10
    assert not (root / "images").exists()


def test_an_altered_shard_ends_a_run_with_its_name(recipe, tmp_path, capsys):
    root = tmp_path / "pack"
    data = yaml.safe_load(recipe.read_text())["data_root"]
    assert cli.main(["pack", data, str(root), "--recipe", str(recipe)]) == 0
    shard = root / "train-00000.shard"
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    arguments = ["--recipe", str(recipe), "--run", str(tmp_path / "run"), "--data_root", str(root)]
    assert train.main(arguments) == 1
    captured = capsys.readouterr()
    assert f"error: {shard}: altered" in captured.err
    assert "--resume" in captured.err


@pytest.mark.parametrize(
    ("channels_last", "cpu", "cuda"),
    [
        ("auto", torch.contiguous_format, torch.channels_last),
        ("on", torch.channels_last, torch.channels_last),
        ("off", torch.contiguous_format, torch.contiguous_format),
        (True, torch.channels_last, torch.channels_last),
        (False, torch.contiguous_format, torch.contiguous_format),
    ],
)
def test_channels_last_by_device(channels_last, cpu, cuda):
    compute, device = ComputeOptions(channels_last=channels_last), torch.device("cpu")
    assert compute.memory_format(device) == cpu
    assert compute.memory_format(torch.device("cuda")) == cuda
    options, layout = Settings.of({"channels": 16}).network, compute.memory_format(device)
    model = network.make_network(options, MPII, device, memory_format=layout)
    assert model[3].weight.is_contiguous(memory_format=cpu)


@pytest.mark.parametrize("looks", [1, 3, 5, 9], ids=["epoch 1", "end of epoch 1", "evaluation", "epoch 2"])
def test_a_run_resumed_anywhere_equals_an_uninterrupted_one(recipe, finished, tmp_path, capsys, looks):
    run = tmp_path / "run"
    start_and_stop(recipe, run, looks)
    assert f"--resume {run}" in capsys.readouterr().err
    assert not (run / "summary.json").exists()
    assert train.main(["--resume", str(run)]) == 0
    assert_same_run(finished, run)
    for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        assert line["samples_per_second"] > 0
        assert 0 < line["input_wait_fraction"] < 1


def test_within_an_epoch_nothing_may_change_that_the_order_of_persons_depends_on(recipe, tmp_path, capsys):
    run = tmp_path / "run"
    start_and_stop(recipe, run, 1)
    other, moved = write_tiny_mpii(tmp_path / "other", persons=9), write_tiny_mpii(tmp_path / "moved")
    before = (run / "config.yaml").read_bytes()
    for arguments, message in [
        (["--batch_size", "5"], "batch_size is 4 in the run, got 5"),
        (["--seed", "3"], "seed is 0 in the run, got 3"),
        (["--data_root", str(other)], "is 10 persons, checksum"),
    ]:
        assert train.main(["--resume", str(run), *arguments]) == 1
        error = error_of(capsys)
        assert message in error
        assert "in the middle of epoch 1" in error
        assert error.count("\n") == 1
        assert (run / "config.yaml").read_bytes() == before
    # The same data elsewhere is no change, and at the end of an epoch everything may change.
    assert train.main(["--resume", str(run), "--data_root", str(moved), "--epochs", "1"]) == 0
    arguments = ["--batch_size", "5", "--seed", "3", "--data_root", str(other), "--epochs", "2"]
    assert train.main(["--resume", str(run), *arguments]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--depth", "34"], "depth is 18 in the run, got 34"),
        (["--size", "32", "64"], "size is [64, 64] in the run, got [32, 64]"),
    ],
)
def test_a_resumed_run_keeps_its_network(finished, capsys, words, message):
    assert train.main(["--resume", str(finished), *words]) == 1
    assert error_of(capsys) == f"error: --resume: {message}: a run keeps its network\n"


def test_a_resumed_run_keeps_its_optimiser(recipe, finished, tmp_path, capsys):
    message = "error: --resume: optimizer is rmsprop in the run, got adam: a run keeps its optimiser"
    assert train.main(["--resume", str(finished), "--optimizer", "adam"]) == 1
    assert error_of(capsys).startswith(message)
    # A run of a version that had no other goes on, and with no other.
    run = tmp_path / "run"
    start_and_stop(recipe, run, 1)
    contents = torch.load(run / "last.pt", weights_only=True)
    del contents["config"]["optimizer"]
    torch.save(contents, run / "last.pt")
    (run / "config.yaml").write_text(yaml.safe_dump(contents["config"]))
    assert train.main(["--resume", str(run), "--optimizer", "adam"]) == 1
    assert message in capsys.readouterr().err
    assert train.main(["--resume", str(run)]) == 0
    assert_same_run(finished, run)


def test_a_resumed_run_keeps_or_takes_weight_decay_learning_rate_and_foreach(recipe, tmp_path):
    run = tmp_path / "run"
    assert train.main(["--recipe", str(recipe), "--run", str(run), "--epochs", "1", "--weight_decay", "0.2"]) == 0
    others = ["--weight-decay", "0.1", "--lr", "1e-3", "--foreach", "on"]
    for epochs, words, expected in (("2", [], (0.2, 2.5e-4, False)), ("3", others, (0.1, 1e-3, True))):
        assert train.main(["--resume", str(run), "--epochs", epochs, *words]) == 0
        (group,) = torch.load(run / "last.pt", weights_only=True)["optimizer"]["param_groups"]
        assert (group["weight_decay"], group["lr"], group["foreach"]) == expected


FIELD = {
    **{"encoding": "udp", "udp": True, "refine": "none", "flip_shift": "auto", "joint_weights": True, "hard_joints": 8},
    **{"half_body": 0.5, "brightness": 0.4, "contrast": 0.3, "saturation": 0.2, "color_order": "bgr"},
    **{"optimizer": "adamw", "weight_decay": 0.01},
    **{"rotation_prob": 0.6, "scale_prob": 0.5, "augmentation_draw": "truncnorm", "shift": 0.16},
}


@pytest.fixture(scope="module")
def field_recipe(recipe, tmp_path_factory) -> Path:
    """The recipe, with what the field does beyond the paper."""
    path = tmp_path_factory.mktemp("field") / "field.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(recipe.read_text()) | FIELD))
    return path


@pytest.fixture(scope="module")
def field_run(field_recipe, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "field"
    assert train.main(["--recipe", str(field_recipe), "--run", str(run)]) == 0
    return run


def test_more_hard_joints_than_there_are_joints_are_refused(recipe, tmp_path, capsys):
    run = tmp_path / "run"
    assert train.main(["--recipe", str(recipe), "--run", str(run), "--hard_joints", "17"]) == 1
    assert error_of(capsys) == "error: hard_joints: expected at most the 16 joints of skeleton 'mpii', got 17\n"
    assert not list(run.glob("*.pt"))


def test_a_run_with_what_the_field_does_repeats_and_resumes_to_the_bit(field_recipe, field_run, finished, tmp_path):
    config = yaml.safe_load((field_run / "config.yaml").read_text())
    assert {name: config[name] for name in FIELD} == FIELD
    assert losses(field_run) != losses(finished)
    start_and_stop(field_recipe, tmp_path / "run", 5)
    assert train.main(["--resume", str(tmp_path / "run")]) == 0
    assert_same_run(field_run, tmp_path / "run")


def test_evaluation_decodes_as_training_did_or_as_asked(field_run, tmp_path):
    predictions = {}
    for name, words in {
        "as trained": [],
        "the same": ["--refine", "none", "--flip_shift", "off", "--blur_kernel", "17"],
        "quarter": ["--refine", "quarter"],
        "shifted": ["--flip_shift", "on"],
    }.items():
        out = tmp_path / name
        assert evaluate.main(["--checkpoint", str(field_run), "--out", str(out), *words]) == 0
        predictions[name] = loadmat(out / "pred.mat")["preds"]
    assert np.array_equal(predictions["as trained"], predictions["the same"])
    for name in ("quarter", "shifted"):
        assert not np.array_equal(predictions["as trained"], predictions[name])


def test_predict_decodes_as_training_did(field_run, tmp_path):
    image = Path(yaml.safe_load((field_run / "config.yaml").read_text())["data_root"]) / "images/000.jpg"
    words = ["--checkpoint", str(field_run), "--image", str(image), "--out", str(tmp_path), "--flip_test", "false"]
    assert predict.main(words) == 0
    (found,) = json.loads((tmp_path / "predictions.json").read_text())
    # The box is the picture, 96 px: maxima lie on pixels of a 16 x 16 map whose corners are the box's.
    for joint in found["joints"].values():
        for value in (joint["x"], joint["y"]):
            assert value * 15 / 96 == pytest.approx(round(value * 15 / 96), abs=1e-3)


SETTING = {"refine": "dark", "blur_kernel": 5, "flip_shift": "on", "udp": True, "color_order": "bgr"}
OTHERWISE = {"refine": "quarter", "blur_kernel": 11, "flip_shift": "auto", "udp": False, "color_order": "rgb"}


@pytest.fixture(scope="module")
def set_checkpoint(finished, tmp_path_factory) -> Path:
    """The weights of `finished` with SETTING in their config, where all else is as it was."""
    contents = torch.load(finished / "best.pt", weights_only=True)
    assert {name: contents["config"][name] for name in OTHERWISE} == OTHERWISE
    contents["config"] |= SETTING
    path = tmp_path_factory.mktemp("set") / "best.pt"
    torch.save(contents, path)
    return path


def words_for(setting: dict[str, object]) -> list[str]:
    return [word for name, value in setting.items() for word in (f"--{name}", str(value).lower())]


def evaluated(checkpoint: Path, out: Path, *words: str) -> np.ndarray:
    """The joints [16, 2] of the first person, whose box is the picture 000.jpg."""
    assert evaluate.main(["--checkpoint", str(checkpoint), "--out", str(out), *words]) == 0
    return loadmat(out / "pred.mat")["preds"][0] - 1


def predicted(checkpoint: Path, picture: Path, out: Path, *words: str) -> np.ndarray:
    assert predict.main(["--checkpoint", str(checkpoint), "--image", str(picture), "--out", str(out), *words]) == 0
    (found,) = json.loads((out / "predictions.json").read_text())
    return np.array([[joint["x"], joint["y"]] for joint in found["joints"].values()])


def exported(checkpoint: Path, picture: Path, *words: str) -> np.ndarray:
    """What the network finds that the command is about to write; test_export.py is about files of networks."""
    networks: list[PixelsToPoints] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "write", lambda network, file, pictures: networks.append(network))
        words = ["--format", "torch", "--input", "image", "--flip_test", "true", "--image", str(picture), *words]
        assert export.main(["--checkpoint", str(checkpoint), *words]) == 0
    pixels = read_image(picture)
    side = pixels.shape[0]
    box = torch.tensor([[side / 2, side / 2]]), torch.tensor([side / 200])
    matrix = fastpose.crop_to_image_matrix(*box, 0.0, (64, 64), udp=True)
    return networks[0](torch.from_numpy(pixels), matrix)[0][0].numpy()


def test_each_setting_of_a_checkpoint_matters_and_evaluate_predict_and_export_take_it(
    set_checkpoint, finished, recipe, tmp_path
):
    picture = recipe.parent / "tiny/images/000.jpg"
    joints = evaluated(set_checkpoint, tmp_path / "set")
    for name, value in OTHERWISE.items():
        other = evaluated(set_checkpoint, tmp_path / name, *words_for({name: value}))
        assert not np.allclose(other, joints, atol=0.05), name
        # The same by predict, with the same words.
        found = predicted(set_checkpoint, picture, tmp_path / name, *words_for({name: value}))
        np.testing.assert_allclose(found, other, atol=1e-3, err_msg=name)
    for checkpoint, words in ((set_checkpoint, []), (finished, words_for(SETTING))):
        for found in (
            evaluated(checkpoint, tmp_path / "found", *words),
            predicted(checkpoint, picture, tmp_path / "found", *words),
            exported(checkpoint, picture, *words),
        ):
            np.testing.assert_allclose(found, joints, rtol=1e-4, atol=5e-3)


@pytest.mark.parametrize("command", [evaluate, predict, export])
def test_an_even_blur_kernel_is_refused_by_every_command(finished, tmp_path, capsys, command):
    words = ["--checkpoint", str(finished), "--out", str(tmp_path / "out.onnx"), "--blur_kernel", "4"]
    picture = tmp_path / "a.png"
    cv2.imwrite(str(picture), np.full((60, 120, 3), 80, np.uint8))
    assert command.main(words + ["--image", str(picture)] * (command is not evaluate)) == 1
    assert capsys.readouterr().err == "error: blur_kernel: expected an odd number of pixels from 1 to 255, got 4\n"


def test_a_checkpoint_that_does_not_fit_is_named(recipe, tmp_path, capsys):
    run = tmp_path / "run"
    start_and_stop(recipe, run, 1)
    contents = torch.load(run / "last.pt", weights_only=True)
    del contents["model"]["0.weight"]
    torch.save(contents, run / "last.pt")
    assert train.main(["--resume", str(run)]) == 1
    error = error_of(capsys)
    assert error.startswith(f"error: {run / 'last.pt'}: does not fit this version of fastpose")
    assert error.count("\n") == 1


def test_resuming_a_torn_checkpoint_takes_the_one_before(recipe, finished, tmp_path, capsys):
    run = tmp_path / "run"
    assert train.main(["--recipe", str(recipe), "--run", str(run)]) == 0
    (run / "last.pt").write_bytes((run / "last.pt").read_bytes()[:5000])
    assert train.main(["--resume", str(run)]) == 0
    assert "last.prev.pt" in capsys.readouterr().err
    assert_same_run(finished, run)


def test_a_complete_run_is_left_alone_and_can_be_resumed_for_more_epochs(recipe, tmp_path, capsys):
    run = tmp_path / "run"
    assert train.main(["--recipe", str(recipe), "--run", str(run), "--epochs", "1"]) == 0
    before = {path: path.stat().st_mtime_ns for path in run.iterdir()}
    capsys.readouterr()
    assert train.main(["--resume", str(run / "last.pt")]) == 0
    out, err = capsys.readouterr()
    assert out.endswith(f"nothing is left to do: {run} has all its 1 epochs; more: --epochs NUMBER\n")
    assert "going on" not in err
    assert {path: path.stat().st_mtime_ns for path in run.iterdir()} == before
    assert train.main(["--resume", str(run), "--epochs", "2"]) == 0
    assert len(losses(run)) == 2
    # What was lost between the last epoch and its results is made up for.
    summary = json.loads((run / "summary.json").read_text())
    for lost in (None, summary | {"epochs": 1}):
        (run / "summary.json").write_text(json.dumps(lost)) if lost else (run / "summary.json").unlink()
        assert train.main(["--resume", str(run)]) == 0
        assert json.loads((run / "summary.json").read_text())["pckh"] == summary["pckh"]
        assert json.loads((run / "summary.json").read_text())["epochs"] == 2


def test_a_run_whose_pictures_were_not_drawn_is_not_complete(recipe, tmp_path, monkeypatch):
    run, draw = tmp_path / "run", Mock(side_effect=[KeyboardInterrupt, None])
    monkeypatch.setattr(pictures, "draw_predictions", draw)
    assert train.main(["--recipe", str(recipe), "--run", str(run), "--epochs", "1"]) == 130
    assert train.main(["--resume", str(run)]) == 0
    assert draw.call_count == 2
    assert (run / "summary.json").is_file()


def test_a_run_that_ends_before_its_first_evaluation_has_a_best_epoch(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    contents = torch.load(run / "last.pt", weights_only=True)
    contents["progress"] |= {"best_epoch": -1, "best_score": -math.inf}
    torch.save(contents, run / "last.pt")
    for name in ("best.pt", "summary.json"):
        (run / name).unlink()
    assert train.main(["--resume", str(run)]) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["best"] == {"epoch": 2, "Mean": summary["pckh"]["Mean"]}
    assert (run / "best.pt").is_file()


def test_of_equal_scores_the_later_epoch_is_the_best_and_the_learning_rate_still_drops(
    recipe, tmp_path, monkeypatch, capsys
):
    scores = iter([50.0, 0.0, 50.0, 0.0])
    monkeypatch.setattr(PckhScorer, "score", lambda *arguments: {"Mean": next(scores), "Mean@0.1": 0.0})
    arguments = ["--recipe", str(recipe), "--epochs", "4", "--lr_drop_patience", "2"]
    assert train.main([*arguments, "--run", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert "\nbest: PCKh@0.5 50.00 in epoch 3 (best.pt); last: PCKh@0.5 0.00\n" in out
    assert torch.load(tmp_path / "run/best.pt", weights_only=True)["progress"]["epoch"] == 3
    assert json.loads((tmp_path / "run/summary.json").read_text())["best"] == {"epoch": 3, "Mean": 50.0}
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["lr"] for line in lines] == pytest.approx(
        [2.5e-4] * 3 + [5e-5]
    )  # two evaluations without a better one


def test_hints_name_the_command_that_was_started(monkeypatch):
    for program, command in (("/bin/fastpose", "fastpose train"), ("/x/fastpose/train.py", "python -m fastpose.train")):
        monkeypatch.setattr(sys, "argv", [program, "--lr", "1"])
        assert training.started_as() == command


def start_endless(recipe: Path, run: Path, **output: int) -> subprocess.Popen[str]:
    """A run of 100000 epochs, in which no stop signal is ignored."""
    command = [sys.executable, "-m", "fastpose.train", "--recipe", str(recipe), "--run", str(run), "--epochs", "100000"]

    def ignore_nothing() -> None:
        for number in STOPS:
            signal.signal(number, signal.SIG_DFL)

    return subprocess.Popen(command, text=True, cwd=REPOSITORY, preexec_fn=ignore_nothing, **output)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_resume(recipe, tmp_path, number):
    run = tmp_path / "run"
    process = start_endless(recipe, run, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        while "epoch " not in (line := process.stderr.readline()):
            assert line or process.poll() is None, line
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 128 + number, err
    assert f"python -m fastpose.train --resume {run}" in err
    assert out == ""
    assert (run / "last.pt").exists()


def test_a_signal_after_the_last_evaluation_stops_before_the_pictures(recipe, finished, tmp_path, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(training.TrainingReport, "epoch", lambda self, line: signal.raise_signal(signal.SIGTERM))
        assert train.main(["--recipe", str(recipe), "--run", str(run), "--epochs", "1"]) == 128 + signal.SIGTERM
    assert not (run / "summary.json").exists()
    assert train.main(["--resume", str(run), "--epochs", "2"]) == 0
    assert_same_run(finished, run)


def test_the_end_of_its_terminal_saves_a_run(recipe, tmp_path):
    run = tmp_path / "run"
    ours, its = os.openpty()
    process = start_endless(recipe, run, stdout=its, stderr=its)
    os.close(its)
    try:
        seen = b""
        while b"epoch " not in seen:
            seen += os.read(ours, 1000)
        os.close(ours)  # what is printed from here on is an error
        process.send_signal(signal.SIGHUP)
        assert process.wait(timeout=120) == 128 + signal.SIGHUP
    finally:
        process.kill()
    assert torch.load(run / "last.pt", weights_only=True)["progress"]["total_samples"] > 0


def test_a_run_whose_reader_has_gone_is_saved(recipe, tmp_path, monkeypatch, capsys):
    class Pipe(io.StringIO):
        def write(self, text: str) -> int:
            if "epoch " in text:
                raise BrokenPipeError(errno.EPIPE, "Broken pipe")
            return len(text)

    monkeypatch.setattr(sys, "stderr", Pipe())
    assert train.main(["--recipe", str(recipe), "--run", str(tmp_path / "run")]) == CLOSED_PIPE
    assert capsys.readouterr().out == ""
    assert torch.load(tmp_path / "run/last.pt", weights_only=True)["progress"]["total_samples"] > 0


def test_a_loss_that_is_not_a_number_ends_with_exit_code_1(recipe, tmp_path, capsys):
    assert train.main(["--recipe", str(recipe), "--run", str(tmp_path / "run"), "--lr", "1e30"]) == 1
    assert "error: the loss is" in capsys.readouterr().err


def test_a_run_that_failed_before_its_first_checkpoint_begins_again(recipe, tmp_path, capsys):
    run = tmp_path / "run"
    assert train.main(["--recipe", str(recipe), "--run", str(run), "--lr", "1e30"]) == 1
    assert f"--resume {run}" in capsys.readouterr().err
    assert [path.name for path in run.iterdir()] == ["config.yaml"]
    # Another batch size is no problem: no step has been kept.
    lr = str(DEFAULTS["lr"])
    assert train.main(["--resume", str(run), "--lr", lr, "--batch_size", "5", "--epochs", "1"]) == 0
    assert "training from the beginning" in capsys.readouterr().err
    assert len(losses(run)) == 1


def test_after_a_bad_image_a_run_goes_on_where_it_failed(recipe, tmp_path, capsys):
    root, run = write_tiny_mpii(tmp_path / "data"), tmp_path / "run"
    images = {path: path.read_bytes() for path in (root / "images").iterdir()}
    arguments = ["--recipe", str(recipe), "--data_root", str(root)]
    assert train.main([*arguments, "--run", str(tmp_path / "whole"), "--batch_size", "2"]) == 0
    one_epoch = training.train_one_epoch

    def spoil(*arguments, **named):
        # From the first step on no picture can be read; one batch is prepared ahead, there are five.
        def report(loss):
            for path in images:
                path.write_bytes(b"")

        *before, _, log_every = arguments
        return one_epoch(*before, report, log_every, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "train_one_epoch", spoil)
        assert train.main([*arguments, "--run", str(run), "--batch_size", "2", "--prefetch", "1"]) == 1
    captured = capsys.readouterr()
    assert "the file is empty" in captured.err
    assert f"--resume {run} (or with --on_bad_image skip)" in captured.err
    assert 0 < torch.load(run / "last.pt", weights_only=True)["progress"]["step"] < 5
    for path, contents in images.items():
        path.write_bytes(contents)
    assert train.main(["--resume", str(run)]) == 0
    assert_same_run(tmp_path / "whole", run)


def test_however_a_run_ends_in_a_program_it_leaves_no_thread_there(recipe, tmp_path):
    root = write_tiny_mpii(tmp_path / "data")
    arguments = ["--recipe", str(recipe), "--data_root", str(root), "--prefetch", "1"]
    assert train.main([*arguments, "--run", str(tmp_path / "complete")]) == 0
    start_and_stop(recipe, tmp_path / "stopped", 2, "--data_root", str(root))
    (root / "images/003.jpg").write_bytes(b"")
    assert train.main([*arguments, "--run", str(tmp_path / "failed")]) == 1
    gc.collect()
    for thread in threading.enumerate():
        if thread.name.startswith("fastpose-"):
            thread.join(20)
            assert not thread.is_alive(), thread.name


@pytest.mark.parametrize(("persons", "batch_size"), [(9, 4), (9, 1), (1, 4)])
def test_a_single_person_of_32_px_is_refused(recipe, tmp_path, capsys, persons, batch_size):
    root = write_tiny_mpii(tmp_path / "data", persons=persons, images=1)
    arguments = ["--recipe", str(recipe), "--run", str(tmp_path / "run"), "--data_root", str(root)]
    assert train.main([*arguments, "--batch_size", str(batch_size), "--size", "32", "32"]) == 1
    error = capsys.readouterr().err
    assert f"batch_size: {persons} persons in batches of {batch_size}" in error
    assert "size 32 32" in error
    assert not (tmp_path / "run").exists()


def test_a_bad_image_is_an_error_with_its_name_or_skipped_and_counted(recipe, tmp_path, capsys):
    root = write_tiny_mpii(tmp_path / "data")
    (root / "images/001.jpg").write_bytes(b"\xff\xd8\xff")
    arguments = ["--recipe", str(recipe), "--data_root", str(root), "--epochs", "1"]
    assert train.main([*arguments, "--run", str(tmp_path / "error")]) == 1
    assert "001.jpg" in capsys.readouterr().err
    assert train.main([*arguments, "--run", str(tmp_path / "skip"), "--on-bad-image", "skip"]) == 0
    assert "without 3 persons" in capsys.readouterr().out
    summary = json.loads((tmp_path / "skip/summary.json").read_text())
    assert summary["skipped_persons"] == 3
    assert "001.jpg" in summary["bad_images"][0]


@pytest.mark.parametrize(
    ("name", "path", "beside"),
    [
        ("train_annotations", "annot/none.json", ": beside it there is train.json, valid.json"),
        ("valid_annotations", "annot/none.json", ": beside it there is train.json, valid.json"),
        ("head_boxes", "annot/none.mat", ": beside it there is gt_valid.mat"),
        ("split_list", "none.txt", ""),
        ("images", "none", ""),
        ("backbone_weights", "/no_such.pth", ""),
    ],
)
def test_a_missing_file_is_reported_with_its_option_and_path(recipe, tmp_path, capsys, name, path, beside):
    assert train.main(["--recipe", str(recipe), "--run", str(tmp_path / "run"), f"--{name}", path]) == 1
    error = error_of(capsys)
    assert error.startswith(f"error: {name}: no f")
    assert error.endswith(f"{recipe.parent / 'tiny' / path}{beside}\n")


def test_synthetic_data_is_drawn_once_and_then_found(tmp_path, capsys):
    settings = settle({"data_root": str(tmp_path / "set"), "synthetic_persons": 2})
    dataset = open_dataset(settings.data, settings.network.size)
    assert len(dataset.read("train")) + len(dataset.read("valid")) == 2
    assert capsys.readouterr().err.count("drawing 2 pictures into ") == 1
    read_split(settings, "valid")
    assert capsys.readouterr().err == f"found 2 synthetic persons in {tmp_path / 'set'}\n"


def test_a_run_folder_is_not_written_over(recipe, finished, capsys):
    assert train.main(["--recipe", str(recipe), "--run", str(finished)]) == 1
    assert "not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "no_such"], "synthetic_resnet18_fcn_128"),
        (["--resume", "no/such/run"], "no run to go on with"),
        (["--resume", "runs/a", "--recipe", "b"], "--resume"),
        (["--data_root", "x"], "--recipe and one of coco_resnet101_deconv_256x192, coco_resnet101_deconv_3"),
        (["--data_root", "x"], "own_resnet50_fcn_256 is for data of your own, with --dataset; synthetic_resnet18"),
        (
            ["--data_root", "x", "--dataset", "yolo"],
            "add --recipe own_resnet50_fcn_256, which is for data of your own in any format, or another\n",
        ),
        (["--data-root=x", "--epochs", "1"], "synthetic_resnet18_fcn_128 draws synthetic persons there"),
        (
            ["--recipe", "mpii_resnet50_fcn_256", "--data_root", "/no/such/place"],
            "train_annotations: no file /no/such/place/annot/train.json: there is no folder /no\n",
        ),
        (["--device", "cuda:99"], "device"),
        (["--device", "foo"], "device: expected auto, cpu, cuda or cuda:NUMBER, got 'foo'"),
        (["--device", "mps"], "got 'mps'"),
        (["--decoder", "gpu", "--device", "cpu"], "decoder gpu: expected a CUDA device, got cpu"),
        (["--cuda_graph", "true", "--device", "cpu"], "cuda_graph: expected a CUDA device, got cpu"),
    ],
)
def test_wrong_arguments_say_what_is_wrong(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train.main(arguments) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--learning_rate", "1"], "--learning_rate"),
        (["--lr", "fast"], "lr"),
        (["--head", "transformer"], "head"),
        (["--size", "64", "65"], "multiples of 32"),
        (["--batch_size", "0"], "batch_size"),
        (["--lr", "nan"], "lr"),
        (["--channels_last", "perhaps"], "channels_last"),
        (["--decode_threads", "-1"], "decode_threads"),
        (["--dataset", "voc"], "got 'voc'; a list of sets is a .yaml file"),
        (["--detections", "x.json"], "--dataset coco, got 'x.json' with MPII's format"),
    ],
)
def test_wrong_options_are_refused_by_name(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        train.main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--lr", "--size", "--flip_test", "--amp", "--lr_drop_epochs"])
@pytest.mark.parametrize("value", ["{a: &a [x, x], b: [*a, *a]}", "a: &a [x]\n- *a", "[" * 50, "1" * 99_999, "\0"])
def test_a_word_that_is_not_a_value_is_refused_in_one_short_line(option, value, capsys):
    with pytest.raises(SystemExit) as ended:
        train.main([option, value])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {option[2:]}: expected ")
    assert error.count("\n") == 1
    assert len(error) < 200


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs: 1\nlearning_rate: 1\n", "there is no option 'learning_rate'"),
        ("epoch: 1\n", "there is no option 'epoch'; nearest: epochs"),
        ("head: decov\n", "head: expected one of fcn, deconv, simcc, got 'decov'; nearest: deconv"),
        ("run: here\n", "there is no option 'run'"),
        ("1: 2\n", "not YAML: line 1: found a key that is not text but int: '1'"),
        ("size: 96\n", "size: expected 2 whole numbers, got 96"),
        ("size: [64]\n", "size: expected 2 whole numbers, got [64]"),
        ('udp: "no"\n', "udp: expected true or false, got 'no'"),
        ("depth: 20\n", "depth: expected one of 18, 34, 50, 101, 152, got 20"),
        ("depth: true\n", "depth: expected one of 18, 34, 50, 101, 152, got True"),
        ("epochs: 1.0\n", "epochs: expected a whole number, got 1.0"),
        ("images: 2017\n", "images: expected text, got 2017"),
        ("lr: {a: 1}\n", "lr: expected a number, got dict"),
        ("size: [64, 65]\n", "size: expected height and width, positive multiples of 32 pixels, got [64, 65]"),
        ("rotation: x\n", "rotation: expected a number, got 'x'"),
        ("epochs: 1\nbatch_size:\n", "batch_size: expected a value, got none"),
        ("epochs: [1\n", "not YAML: line 2: expected ',' or ']', but got '<stream end>'"),
        ("epochs: 1\nlr: 1\nepochs: 2\n", "not YAML: line 3: found the key 'epochs' for the second time, after line 1"),
        ("- epochs\n", "expected lines of NAME: VALUE, got \"['epochs']\""),
        ("", "expected lines of NAME: VALUE, got 'None'"),
        (b"data_root: \xff\n", "not YAML: 'utf-8' codec can't decode byte 0xff"),
    ],
)
def test_train_and_pack_say_what_is_wrong_in_a_recipe_with_its_name(tmp_path, capsys, text, message):
    file = tmp_path / "wrong.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SystemExit) as ended:
        train.main(["--recipe", str(file)])
    assert ended.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {file}: {message}")
    assert pack.main([str(tmp_path), str(tmp_path / "out"), "--recipe", str(file)]) == 1
    assert capsys.readouterr().err == error + "\n"


def test_the_command_line_s_faults_are_not_reported_as_the_recipe_s(tmp_path, capsys):
    file = tmp_path / "mine.yaml"
    file.write_text("size: [64, 64]\nlr: 1e-3\n")
    with pytest.raises(SystemExit):
        train.main(["--recipe", str(file), "--size", "64", "65"])
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: size: expected height and width")
    root = tmp_path / "set"
    root.mkdir()
    for command in (train.main, lambda words: pack.main([str(root), str(tmp_path / "out"), *words])):
        assert command(["--recipe", str(file), *["--data_root", str(root)] * (command is train.main)]) == 1
        assert (
            error_of(capsys)
            == f"error: train_annotations: no file {root}/annot/train.json: there is no folder {root}/annot\n"
        )


def test_the_recipes_are_found_by_name_and_fit_the_options():
    assert {"synthetic_resnet18_fcn_128", "mpii_resnet50_fcn_256", "mpii_real5_resnet18_fcn_128"} <= recipes().keys()
    for name in recipes():
        contents = yaml.safe_load(find_recipe(name).read_text())
        assert contents.keys() <= FIELDS.keys(), name


def test_the_paper_s_recipe_is_the_defaults():
    contents = yaml.safe_load(find_recipe("mpii_resnet50_fcn_256").read_text())
    for name, value in contents.items():
        default = DEFAULTS[name]
        assert (list(default) if isinstance(default, tuple) else default) == pytest.approx(value), name


def test_evaluate_writes_one_based_predictions_in_the_order_of_the_annotations(recipe, finished, tmp_path):
    assert evaluate.main(["--checkpoint", str(finished / "last.pt"), "--out", str(tmp_path), "--device", "cpu"]) == 0
    preds = loadmat(tmp_path / "pred.mat")["preds"]
    assert preds.shape == (10, 16, 2)
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["pckh"] == json.loads((finished / "summary.json").read_text())["pckh"]
    assert (scores["size"], scores["color_order"], scores["udp"], scores["flip_shift"]) == (
        [64, 64],
        "rgb",
        False,
        "auto",
    )
    other = ["--checkpoint", str(finished / "last.pt"), "--out", str(tmp_path / "other"), "--device", "cpu"]
    assert evaluate.main([*other, "--refine", "dark", "--blur_kernel", "7", "--flip_test", "false"]) == 0
    decoding = json.loads((tmp_path / "other" / "scores.json").read_text())
    assert (decoding["refine"], decoding["blur_kernel"], decoding["flip_test"]) == ("dark", 7, False)
    truth = Path(yaml.safe_load(recipe.read_text())["data_root"]) / "annot/gt_valid.mat"
    assert pckh_from_mat(preds - 1, truth) == pytest.approx(scores["pckh"])
    persons = dataclasses.replace(persons_of(np.zeros((2, 16, 2)), np.ones((2, 16))), source_row=np.array([4, 7]))
    zeros = loadmat(PckhScorer(persons, None).write(tmp_path, np.zeros((2, 16, 2), np.float32), np.zeros((2, 16))))
    assert (zeros["preds"] == 1).all()
    assert zeros["rows"].ravel().tolist() == [5, 8]


def test_evaluate_takes_other_data(finished, tmp_path):
    root = write_tiny_mpii(tmp_path / "data", persons=3, seed=1)
    arguments = ["--checkpoint", str(finished / "best.pt"), "--out", str(tmp_path / "out"), "--data_root", str(root)]
    assert evaluate.main([*arguments, "--annotations", "annot/train.json", "--head_boxes", ""]) == 0
    assert loadmat(tmp_path / "out/pred.mat")["preds"].shape == (3, 16, 2)
    assert json.loads((tmp_path / "out/scores.json").read_text())["pckh"] is None


def test_evaluate_replaces_a_run_s_results_only_with_those_on_its_own_data(recipe, tmp_path, capsys):
    run, root = tmp_path / "run", write_tiny_mpii(tmp_path / "data", persons=3)
    assert train.main(["--recipe", str(recipe), "--run", str(run), "--epochs", "1"]) == 0
    arguments = ["--checkpoint", str(run), "--device", "cpu"]
    for other in (["--data_root", str(root)], ["--annotations", "annot/train.json"], ["--head_boxes", ""]):
        assert evaluate.main([*arguments, *other]) == 1
        assert f"error: out: {other[0][2:]} differs" in capsys.readouterr().err
        assert not (run / "scores.json").exists()
    same = yaml.safe_load(recipe.read_text())["data_root"]
    assert evaluate.main([*arguments, "--data_root", same]) == 0
    assert json.loads((run / "scores.json").read_text())["checkpoint"] == str(run / "best.pt")


def test_a_file_that_is_not_a_checkpoint_is_an_error(tmp_path, capsys):
    torch.save(Path("anything but tensors"), tmp_path / "best.pt")
    assert evaluate.main(["--checkpoint", str(tmp_path / "best.pt")]) == 1
    error = capsys.readouterr().err
    assert "best.pt: expected a state dict of tensors, got an object of pathlib." in error
    assert "weights_only" not in error
    cv2.imwrite(str(tmp_path / "a.jpg"), np.zeros((9, 9, 3), np.uint8))  # which predict looks for first
    assert predict.main(["--checkpoint", str(tmp_path / "none.pt"), "--image", str(tmp_path / "a.jpg")]) == 1
    assert "none.pt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            [f"layer{stage}.{block}.conv1.weight" for stage in (1, 2, 3, 4) for block in (0, 1)],
            "holds a ResNet-18 in the layout of torchvision, no head, for RGB images: it has a backbone alone, which "
            "--backbone_weights takes in fastpose train",
        ),
        (["stage2.0.weight"], "holds a HRNet: name its network with --model PACKAGE.MODULE:FACTORY"),
    ],
)
@pytest.mark.parametrize("command", [evaluate, predict, export])
def test_weights_that_make_no_network_are_reported_as_option_checkpoint(tmp_path, capsys, command, names, message):
    file, picture = tmp_path / "resnet.pth", tmp_path / "a.png"
    torch.save({name: torch.zeros(1) for name in names}, file)
    cv2.imwrite(str(picture), np.full((60, 120, 3), 80, np.uint8))
    words = ["--checkpoint", str(file)] + ["--image", str(picture)] * (command is not evaluate)
    assert command.main(words) == 1
    assert capsys.readouterr().err == f"error: checkpoint: {file} {message}\n"


def test_predict_writes_joints_by_name_and_a_picture(finished, tmp_path):
    picture = np.full((60, 120, 3), 80, np.uint8)
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(tmp_path / name), picture)
    arguments = ["--checkpoint", str(finished / "best.pt"), "--out", str(tmp_path / "out")]
    assert predict.main([*arguments, "--image", str(tmp_path / "a.png"), str(tmp_path / "b.png")]) == 0
    first, second = json.loads((tmp_path / "out/predictions.json").read_text())
    assert tuple(first["joints"]) == MPII.joints
    assert first["joints"] == second["joints"]
    assert first["joints"]["r_wrist"].keys() == {"x", "y", "score"}
    assert cv2.imread(first["drawn"]) is not None
    assert first["drawn"] != second["drawn"]


def test_predict_never_writes_over_a_picture_it_looks_at(finished, tmp_path, capsys):
    names = [str(tmp_path / name) for name in ("a.png", "a_pose.png")]
    for name in names:
        cv2.imwrite(name, np.full((60, 120, 3), 80, np.uint8))
    before = Path(names[0]).read_bytes()
    arguments = ["--checkpoint", str(finished), "--out", str(tmp_path), "--image"]
    assert predict.main([*arguments, names[1]]) == 0
    assert (tmp_path / "a_pose_pose.png").exists()
    assert predict.main([*arguments, *names]) == 0
    assert (tmp_path / "000_a_pose.png").exists()
    assert (tmp_path / "001_a_pose_pose.png").exists()
    (tmp_path / "000_a_pose.png").write_bytes(before)
    capsys.readouterr()
    assert predict.main([*arguments, names[0], str(tmp_path / "000_a_pose.png")]) == 1
    assert "error: out: " in capsys.readouterr().err
    assert all(Path(name).read_bytes() == before for name in [*names, tmp_path / "000_a_pose.png"])


def test_predict_finds_each_person_as_if_alone(finished, recipe, tmp_path):
    images = [str(recipe.parent / f"tiny/images/00{i}.jpg") for i in (0, 1)]
    boxes = [["10", "5", "60.5", "80"], ["-20", "30", "90", "50"]]
    found = {}
    for name, words in {"both": boxes[0] + boxes[1], "first": boxes[0], "second": boxes[1]}.items():
        out = tmp_path / name
        arguments = ["--checkpoint", str(finished), "--out", str(out), "--image", *images, "--box", *words]
        assert predict.main([*arguments, "--least_score", "0"]) == 0  # it has learnt too little to be sure of anything
        found[name] = json.loads((out / "predictions.json").read_text())
    assert [(entry["image"], entry["box"]) for entry in found["both"]] == [
        (image, [float(number) for number in box]) for image in images for box in boxes
    ]
    for number, entry in enumerate(found["both"]):
        alone = found["second" if number % 2 else "first"][number // 2]
        assert entry["box"] == alone["box"]
        for name, joint in entry["joints"].items():
            assert list(joint.values()) == pytest.approx(list(alone["joints"][name].values()), rel=1e-4, abs=1e-3)
    # Both are drawn into the one picture of their image.
    assert [Path(entry["drawn"]).name for entry in found["both"]] == ["000_000_pose.png"] * 2 + ["001_001_pose.png"] * 2
    drawn = {name: cv2.imread(entries[0]["drawn"]).astype(int) for name, entries in found.items()}
    plain = cv2.imread(images[0])
    changed = {name: (picture != plain).any(axis=2) for name, picture in drawn.items()}
    assert changed["both"].sum() > max(changed["first"].sum(), changed["second"].sum())


def test_a_whole_picture_is_a_box_too(finished, recipe, tmp_path):
    image = recipe.parent / "tiny/images/000.jpg"
    assert predict.main(["--checkpoint", str(finished), "--image", str(image), "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "predictions.json").read_text())[0]["box"] == [0, 0, 96, 96]


@pytest.mark.parametrize(
    ("box", "inside"),
    [
        ("96 0 9 9", "95 0 9 9"),
        ("0 96 9 9", "0 95 9 9"),
        ("-9 0 9 9", "-8 0 9 9"),
        ("0 -9 9 9", "0 -8 9 9"),
    ],
)
def test_a_box_beside_the_picture_is_refused_with_its_size(finished, recipe, tmp_path, capsys, box, inside):
    image = recipe.parent / "tiny/images/000.jpg"
    words = ["--checkpoint", str(finished), "--image", str(image), "--out", str(tmp_path / "out"), "--box"]
    assert predict.main([*words, "0", "0", "9", "9", *box.split()]) == 1
    assert capsys.readouterr().err == f"error: box: {box} lies outside {image}, which is 96 pixels wide and 96 high\n"
    assert not (tmp_path / "out").exists()
    assert predict.main([*words, *inside.split()]) == 0


def test_a_box_without_area_or_with_a_number_too_few_is_refused(capsys):
    expected = "box: expected X Y WIDTH HEIGHT of each person, with positive width and height"
    for box in ("1 2 3", "0 0 0 5", "1 2 3 4 5", "0 0 5 5 1 1 2 -3", "0 0 5 inf"):
        words = box.replace("inf", ".inf").split()  # YAML's way to write it
        with pytest.raises(SystemExit):
            predict.main(["--checkpoint", "c", "--image", "a", "--box", *words])
        assert f"error: {expected}, got {box}\n" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["box", "image"])
def test_values_that_a_second_option_would_silently_replace_are_refused(capsys, name):
    words = ["--checkpoint", "c", "--image", "a", "--box", "0", "0", "9", "9", f"--{name}", "1", "1", "9", "9"]
    with pytest.raises(SystemExit):
        predict.main(words)
    assert f"error: {name}: named more than once: put all values behind one --{name}\n" in capsys.readouterr().err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("terminal", [True, False])
def test_an_evaluation_prints_its_progress(finished, tmp_path, monkeypatch, capsys, terminal):
    out = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    # A batch takes 4 s: in a log a line is due at every third.
    now, show = [0], progress.CountedProgress.show

    def show_later(line, done):
        now[0] += 4
        show(line, done)

    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(progress.CountedProgress, "show", show_later)
    arguments = ["--checkpoint", str(finished), "--out", str(tmp_path), "--eval_batch_size", "2"]
    assert evaluate.main([*arguments, "--decode_threads", "1"]) == 0
    first, rest = out.getvalue().split("\n", 1)
    assert first == "10 persons to evaluate, on cpu"
    lines = re.findall(r"evaluation +(\d+)/10 persons  +[\d.]+ persons/s  \dm\d\ds left", rest)
    assert lines == (["2", "4", "6", "8", "10"] if terminal else ["6"])
    assert rest.count("\r\x1b[2K") == (5 if terminal else 0)
    assert rest.endswith("left\n")  # what is printed next begins on a line of its own
    assert "Mean@0.11" in capsys.readouterr().out


@pytest.mark.slow
def test_the_five_real_images_are_learnt_to_a_score_of_100(real_data, tmp_path):
    run = tmp_path / "real5"
    arguments = ["--recipe", "mpii_real5_resnet18_fcn_128", "--data_root", str(real_data / "mpii"), "--run", str(run)]
    assert train.main(arguments) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["valid_persons"] == 5
    assert summary["pckh"]["Mean"] == 100
    assert cv2.imread(str(run / "predictions.png")).std() > 10
