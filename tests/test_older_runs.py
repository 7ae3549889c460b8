# SPDX-License-Identifier: Apache-2.0
"""What an earlier version wrote goes on with the same bits: the files in older_runs/, which make_files.py describes.

Only commands are called and only files compared, so that this stays as it is whatever becomes of the code between them.
"""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from scipy.io import loadmat

import fastpose
from fastpose import evaluate, pack, predict, train
from tests.older_runs.older_network import probe
from tests.older_runs.source_data import draw_coco, draw_mpii

FILES = Path(__file__).parent / "older_runs"
RUNS = ("mpii_files", "mpii_pack", "coco_pack")
PACKS = {"mpii_pack": [], "coco_pack": ["--format", "jpeg", "--shard_bytes", "13000"]}
BOXES = ("4", "3", "40", "45", "10", "5", "50", "50")  # two persons: x, y, width, height
# Different wherever it runs.
NOT_COMPARED = {"samples_per_second", "input_wait_fraction", "checkpoint", "annotations", "device", "data_root"}
NOT_COMPARED |= {"seconds", "train_seconds", "wait_seconds", "epoch_seconds", "epoch_wait_seconds", "image", "drawn"}
TOLERANCE = 1e-3  # relative or absolute, where the machine computes otherwise: see `exact`


@pytest.fixture(autouse=True)
def as_the_files_were_made(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """On one thread, and with the network's module in sight. Pictures, which take longer than all else, stay away."""
    monkeypatch.syspath_prepend(str(FILES))
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *arguments, **options: None)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What the runs were trained on; the packs are copies, so that nothing can write into those in the repository."""
    root = tmp_path_factory.mktemp("data")
    for name in PACKS:
        shutil.copytree(FILES / "packs" / name, root / name)
    return {
        "mpii": draw_mpii(root / "mpii"),
        "coco": draw_coco(root / "coco"),
        **{name: root / name for name in PACKS},
    }


def source_of(name: str, data: dict[str, Path]) -> Path:
    """The data of a run or a pack, or the files of which a pack was made."""
    return data[name] if name in data else data[name.partition("_")[0]]


@pytest.fixture(scope="module")
def exact() -> bool:
    """Whether bits must be equal: where the native library, whose bits are the same everywhere, is loaded, and this
    processor and this torch round as those did that made the files. Others end within TOLERANCE: seen with oneDNN and
    ATen held to SSE4.1, to AVX2 and to neither, and in plain torch."""
    try:
        fastpose.build_info()
    except ImportError:
        return False
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    same = probe() == int((FILES / "probe.txt").read_text())
    torch.set_num_threads(threads)
    return same


def assert_same(new: Any, old: Any, exact: bool, where: str = "") -> None:
    """Equal to the bit in all that `old` has; if not `exact`, within TOLERANCE."""
    if isinstance(old, dict):
        assert old.keys() <= new.keys(), where
        for name in old.keys() - NOT_COMPARED:
            assert_same(new[name], old[name], exact, f"{where}/{name}")
    elif isinstance(old, (list, tuple)):
        assert len(new) == len(old), where
        for index, (one, other) in enumerate(zip(new, old, strict=True)):
            assert_same(one, other, exact, f"{where}/{index}")
    elif isinstance(old, (torch.Tensor, np.ndarray)):
        tolerance = 0.0 if exact else TOLERANCE
        new, old = torch.as_tensor(new), torch.as_tensor(old)
        torch.testing.assert_close(new, old, rtol=tolerance, atol=tolerance, equal_nan=True, msg=where)
    elif isinstance(old, float) and not exact:
        assert new == pytest.approx(old, rel=TOLERANCE, abs=TOLERANCE), where
    else:
        assert new == old, where


def read(file: Path) -> Any:
    """The contents of any file that a run leaves."""
    if file.suffix == ".pt":
        return torch.load(file, weights_only=True)
    if file.suffix == ".mat":
        return {name: array for name, array in loadmat(file).items() if not name.startswith("__")}
    if file.suffix == ".yaml":
        return yaml.safe_load(file.read_text())
    text = file.read_text()
    return [json.loads(line) for line in text.splitlines()] if file.suffix == ".jsonl" else json.loads(text)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_stopped_in_an_epoch_by_an_earlier_version_ends_with_the_same_bits(name, data, tmp_path, exact):
    if name == "coco_pack":
        pytest.importorskip("pycocotools")
    run = shutil.copytree(FILES / "stopped" / name, tmp_path / "run")
    assert train.main(["--resume", str(run), "--trust_model", "--data_root", str(source_of(name, data))]) == 0
    for file in ("last.pt", "metrics.jsonl"):
        assert_same(read(run / file), read(FILES / "finished" / name / file), exact, file)
    assert_same(read(run / "config.yaml"), read(FILES / "stopped" / name / "config.yaml"), exact, "config.yaml")


@pytest.mark.parametrize("name", RUNS)
def test_a_run_with_the_options_of_an_earlier_one_begins_with_the_same_bits(name, data, tmp_path, exact):
    if name == "coco_pack":
        pytest.importorskip("pycocotools")
    arguments = ["--recipe", str(FILES / "stopped" / name / "config.yaml"), "--data_root", str(source_of(name, data))]
    assert train.main([*arguments, "--run", str(tmp_path / "run"), "--epochs", "2", "--trust_model"]) == 0
    older = read(FILES / "stopped" / name / "metrics.jsonl")
    assert_same(read(tmp_path / "run" / "metrics.jsonl"), older[:2], exact)


@pytest.mark.parametrize("name", [*RUNS, "mpii_pack_on_files", "coco_pack_on_files"])
def test_a_checkpoint_of_an_earlier_version_evaluates_to_the_same_bits(name, data, tmp_path, exact):
    if name.startswith("coco"):
        pytest.importorskip("pycocotools")
    run = FILES / "stopped" / name.removesuffix("_on_files")
    root = source_of(name, data)
    assert (
        evaluate.main(["--checkpoint", str(run), "--trust_model", "--data_root", str(root), "--out", str(tmp_path)])
        == 0
    )
    older = sorted((FILES / "evaluated" / name).iterdir())
    assert [file.name for file in older] == sorted(file.name for file in tmp_path.iterdir())
    for file in older:
        assert_same(read(tmp_path / file.name), read(file), exact, file.name)


def test_a_checkpoint_of_an_earlier_version_predicts_to_the_same_bits(data, tmp_path, exact):
    arguments = ["--image", str(data["mpii"] / "images/valid/000.png"), "--box", *BOXES]
    checkpoint = FILES / "stopped" / "mpii_files" / "best.pt"
    assert predict.main(["--checkpoint", str(checkpoint), "--trust_model", *arguments, "--out", str(tmp_path)]) == 0
    older = FILES / "predicted" / "mpii_files" / "predictions.json"
    assert_same(read(tmp_path / "predictions.json"), read(older), exact)


@pytest.mark.parametrize("name", PACKS)
def test_a_pack_of_an_earlier_version_is_taken_for_the_whole_that_it_is(name, data, capsys):
    source, recipe = data[name.partition("_")[0]], FILES / "stopped" / name / "config.yaml"
    before = {file.name: file.read_bytes() for file in data[name].iterdir()}
    assert pack.main([str(source), str(data[name]), "--recipe", str(recipe), *PACKS[name]]) == 0
    assert f"already there, nothing to do: {data[name]}" in capsys.readouterr().out
    assert {file.name: file.read_bytes() for file in data[name].iterdir()} == before


def test_a_raw_pack_of_the_same_data_has_the_same_bytes(data, tmp_path):
    recipe = FILES / "stopped" / "mpii_pack" / "config.yaml"
    assert pack.main([str(data["mpii"]), str(tmp_path / "new"), "--recipe", str(recipe)]) == 0
    older = {file.name: file.read_bytes() for file in data["mpii_pack"].iterdir()}
    assert {file.name: file.read_bytes() for file in (tmp_path / "new").iterdir()} == older


@pytest.mark.usefixtures("python_s_signals")
@pytest.mark.parametrize("file", sorted((FILES / "configs").iterdir()), ids=lambda file: file.stem)
@pytest.mark.parametrize("how", ["--recipe", "--resume"])
def test_config_yaml_of_an_earlier_version_can_be_read(file, how, data, tmp_path):
    """As a recipe, and as that of a run which failed before its first checkpoint. Every value stays what it was."""
    older = read(file)
    root = data[older.get("dataset", "mpii")]
    if root == data["coco"]:
        pytest.importorskip("pycocotools")
    run = tmp_path / "run"
    run.mkdir()
    if how == "--resume":
        shutil.copy(file, run / "config.yaml")
    given = {"model": "older_network:make_stopping", "size": [32, 32], "device": "cpu", "data_root": str(root)}
    given |= {"synthetic_persons": 0}
    arguments = [how, str(file), "--run", str(run)] if how == "--recipe" else [how, str(run)]
    for name, value in given.items():
        arguments += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    assert train.main(arguments) == 128 + signal.SIGINT
    spelled = {True: "on", False: "off"}.get(older["channels_last"], older["channels_last"])  # at first it was a bool
    expected = older | {"channels_last": spelled} | given
    newer = read(run / "config.yaml")
    assert {name: newer[name] for name in expected} == expected
    # What the first version did, before there were these options.
    if file.stem == "first_version" and how == "--resume":
        assert (newer["reduced_decode"], newer["color_order"], newer["udp"]) == (False, "rgb", False)


def test_a_checkpoint_like_those_of_the_first_version_ends_with_the_same_bits(data, tmp_path, exact):
    """It names MPII's joints only by "mpii", and none of the options that came later; `model` stays, for its size."""
    run = shutil.copytree(FILES / "stopped" / "mpii_files", tmp_path / "run")
    names = read(FILES / "configs" / "first_version.yaml").keys() | {"model"}
    contents = read(run / "last.pt")
    older = {name: value for name, value in contents["config"].items() if name in names}
    older |= {"channels_last": False, "amp": "off", "decode_threads": 2}
    torch.save(contents | {"config": older, "skeleton": "mpii"}, run / "last.pt")
    (run / "config.yaml").write_text(yaml.safe_dump(older))
    assert train.main(["--resume", str(run), "--trust_model", "--data_root", str(data["mpii"])]) == 0
    finished = read(FILES / "finished" / "mpii_files" / "last.pt")
    for name in ("model", "optimizer", "learning_rate", "progress", "skeleton"):
        assert_same(read(run / "last.pt")[name], finished[name], exact, name)


def test_a_new_run_can_begin_with_the_weights_of_an_earlier_version(data, capsys):
    weights = FILES / "stopped" / "mpii_pack" / "best.pt"
    config = ["--recipe", str(FILES / "stopped" / "mpii_pack" / "config.yaml"), "--data_root", str(data["mpii_pack"])]
    assert train.main([*config, "--trust_model", "--weights", str(weights), "--dry_run"]) == 0
    assert str(weights) in capsys.readouterr().err
