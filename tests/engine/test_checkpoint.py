# SPDX-License-Identifier: Apache-2.0
import pickle

import pytest
import torch

from fastpose.models.checkpoint import CheckpointError, load_checkpoint, load_latest, previous_path, save_checkpoint


def save(path, step=0, **changes):
    contents = {
        "model": {"weight": torch.arange(2000.0)},
        "optimizer": {"state": {0: {"square_avg": torch.ones(2000)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]},
        "learning_rate": {"best": float("-inf"), "stale": 0, "dropped": False},
        "progress": {"epoch": 1, "step": step, "loss_sum": 0.1},
        "config": {"size": [64, 64], "head": "fcn"},
        "skeleton": "mpii",
    }
    save_checkpoint(path, **(contents | changes))
    return contents


def test_what_is_saved_is_loaded(tmp_path):
    contents = save(tmp_path / "last.pt", step=7)
    loaded = load_checkpoint(tmp_path / "last.pt")
    assert torch.equal(loaded["model"].pop("weight"), contents["model"].pop("weight"))
    optimizer = loaded.pop("optimizer")
    assert torch.equal(optimizer["state"][0]["square_avg"], torch.ones(2000))
    assert optimizer["param_groups"] == contents.pop("optimizer")["param_groups"]
    assert loaded.pop("format").startswith("fastpose")
    assert loaded == contents


def test_nothing_else_is_left_beside_it(tmp_path):
    save(tmp_path / "best.pt")
    save(tmp_path / "best.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["best.pt"]


def test_a_save_that_fails_half_way_leaves_the_old_file(tmp_path, monkeypatch):
    save(tmp_path / "last.pt", step=1)

    def half(contents, file, **options):
        file.write(b"half of a")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="no space"):
        save(tmp_path / "last.pt", step=2, keep_previous=True)
    assert load_latest(tmp_path / "last.pt")[0]["progress"]["step"] == 1


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.99])
def test_a_torn_file_falls_back_to_the_one_before_with_a_warning(tmp_path, caplog, keep):
    last = tmp_path / "last.pt"
    save(last, step=1)
    save(last, step=2, keep_previous=True)
    assert load_latest(last)[0]["progress"]["step"] == 2
    assert caplog.text == ""
    last.write_bytes(last.read_bytes()[: int(keep * last.stat().st_size)])
    contents, path = load_latest(last)
    assert contents["progress"]["step"] == 1
    assert path == previous_path(last) == tmp_path / "last.prev.pt"
    assert f"{last}: damaged" in caplog.text
    assert f"taking the one before it, {path}" in caplog.text


def test_a_missing_file_falls_back_to_the_one_before(tmp_path):
    save(tmp_path / "last.prev.pt", step=1)
    assert load_latest(tmp_path / "last.pt")[0]["progress"]["step"] == 1


def test_with_neither_file_the_error_names_both(tmp_path):
    (tmp_path / "last.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"last\.pt: damaged.*last\.prev\.pt: no such"):
        load_latest(tmp_path / "last.pt")


class Spy:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("save_with", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, 2))])
def test_code_in_a_file_is_not_run(tmp_path, save_with):
    save_with({"format": Spy(tmp_path / "was run")}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match=r"evil\.pt"):
        load_checkpoint(tmp_path / "evil.pt")
    assert not (tmp_path / "was run").exists()


@pytest.mark.parametrize("foreign", [{"conv1.weight": torch.ones(3)}, {"format": "other"}, torch.ones(3)])
def test_a_foreign_checkpoint_is_refused(tmp_path, foreign):
    torch.save(foreign, tmp_path / "resnet.pth")
    with pytest.raises(CheckpointError, match=r"resnet\.pth: not a fastpose checkpoint"):
        load_checkpoint(tmp_path / "resnet.pth")


def test_an_incomplete_checkpoint_says_what_is_missing(tmp_path):
    save(tmp_path / "last.pt")
    contents = load_checkpoint(tmp_path / "last.pt")
    del contents["config"]
    torch.save(contents, tmp_path / "part.pt")
    with pytest.raises(CheckpointError, match="config missing"):
        load_checkpoint(tmp_path / "part.pt")
