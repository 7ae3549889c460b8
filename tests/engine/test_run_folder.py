# SPDX-License-Identifier: Apache-2.0
"""What a run's folder is protected from, and what a resumed run says about what it does not keep."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import torch
import yaml

from fastpose import train
from fastpose.data.pixels import images_fingerprint
from fastpose.engine import results as drawing
from fastpose.engine import run as training
from fastpose.files import only_writer, part_of
from fastpose.models import network, pose_resnet
from tests.helpers.full_disk import fill_the_disk_at
from tests.helpers.runs import results, start_and_stop, write_recipe
from tests.helpers.settings import small_network
from tests.helpers.tiny_mpii import write_tiny_mpii


@pytest.fixture(scope="module", autouse=True)
def small_and_plain():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "pose_resnet", small_network)
        patch.setattr(drawing, "draw", lambda *arguments: None)
        yield


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "finished"
    assert train.main(["--recipe", str(recipe), "--run", str(run)]) == 0
    return run


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "my run"))


def contents(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.iterdir()}


@pytest.mark.parametrize("left", ["best.pt", "metrics.jsonl"])
def test_a_run_whose_checkpoints_are_gone_is_not_written_over(recipe, tmp_path, capsys, monkeypatch, left):
    copy = tmp_path / "my run"
    if left == "best.pt":  # whose network is recognised when a new run begins with it
        monkeypatch.setattr(network, "pose_resnet", pose_resnet)
    assert train.main(["--recipe", str(recipe), "--run", str(copy), "--epochs", "1"]) == 0
    for name in {"last.pt", "last.prev.pt", "best.pt", "metrics.jsonl", "summary.json"} - {left}:
        (copy / name).unlink()
    before = contents(copy)
    capsys.readouterr()
    assert train.main(["--resume", str(copy), "--epochs", "3"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {copy}: last.pt and last.prev.pt are gone, so this run cannot go on")
    assert error.count("\n") == 1
    assert contents(copy) == before
    # What it says works as it stands, and begins with those weights.
    words = shlex.split(error.partition(" -m fastpose.train ")[2])
    assert train.main(words) == 0
    assert contents(copy) == before
    assert (copy.with_name("my run-2") / "last.pt").is_file()
    config = yaml.safe_load((copy.with_name("my run-2") / "config.yaml").read_text())
    assert config["weights"] == (str(copy / "best.pt") if left == "best.pt" else "")


def test_a_run_that_is_training_is_left_alone_by_others(recipe, copy, tmp_path, capsys):
    pytest.importorskip("fcntl", reason="Windows has no such locks")
    before = contents(copy)
    with only_writer(copy, AssertionError()):
        assert train.main(["--resume", str(copy), "--epochs", "3"]) == 1
        message = f"error: {copy}: another process is training in it: let it end, or choose another folder with --run\n"
        assert capsys.readouterr().err == message
        assert train.main(["--resume", str(copy), "--dry_run"]) == 0  # it writes nothing
        capsys.readouterr()
    assert contents(copy) == before
    # Two that begin in one folder: the second has found it empty, and comes to write when the first has begun.
    (run := tmp_path / "run").mkdir()
    with only_writer(run, AssertionError()):
        assert train.main(["--recipe", str(recipe), "--run", str(run)]) == 1
        assert f"error: {run}: another process is training in it" in capsys.readouterr().err
    assert contents(run) == {}


def test_a_folder_that_another_run_has_filled_in_the_meantime_is_left_alone(recipe, finished, tmp_path, capsys):
    run, make = tmp_path / "run", train.make_run

    def make_late(*arguments, **named):
        made = make(*arguments, **named)
        shutil.copytree(finished, run)
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "make_run", make_late)
        assert train.main(["--recipe", str(recipe), "--run", str(run)]) == 1
    assert f"{run} exists and is not empty" in capsys.readouterr().err
    assert contents(run) == contents(finished)


@pytest.mark.slow
def test_of_several_processes_in_one_folder_one_trains(recipe, tmp_path):
    """As `srun` starts them, without torchrun's variables."""
    pytest.importorskip("fcntl", reason="Windows has no such locks")
    run = tmp_path / "run"
    code = (
        "import sys; from fastpose import train\n"
        "from fastpose.engine import results; from fastpose.models import network\n"
        "from tests.helpers.settings import small_network\n"
        "network.pose_resnet, results.draw = small_network, lambda *arguments: None\n"
        "sys.exit(train.main(sys.argv[1:]))"
    )
    words = [sys.executable, "-c", code, "--recipe", str(recipe), "--run", str(run), "--epochs", "20", "--quiet"]
    started = []
    for number in range(3):
        environment = {**os.environ, "SLURM_PROCID": str(number), "SLURM_LOCALID": str(number), "SLURM_NTASKS": "3"}
        started.append(
            subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        )
    errors = [process.communicate(timeout=300)[1] for process in started]
    assert sorted(process.returncode for process in started) == [0, 1, 1], errors
    for process, error in zip(started, errors, strict=True):
        if process.returncode:
            lines = [line for line in error.splitlines() if "are training images too" not in line]  # of the tiny data
            assert len(lines) == 1
            assert "another process is training in it" in lines[0] or "exists and is not empty" in lines[0]
    assert [json.loads(line)["epoch"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [*range(1, 21)]


def test_a_folder_with_unfinished_files_alone_is_as_good_as_empty(recipe, finished, tmp_path, capsys):
    (run := tmp_path / "run").mkdir()
    (run / "config.part.yaml").write_text("dep")
    assert train.main(["--recipe", str(recipe), "--run", str(run)]) == 0
    assert results(run) == results(finished)
    (run / "mine.part.txt").write_text("not a run's")
    (run / "last.part.pt").write_bytes(b"of a killed process")
    assert train.main(["--resume", str(run), "--epochs", "3"]) == 0
    assert (run / "mine.part.txt").exists()
    assert not (run / "last.part.pt").exists()


@pytest.mark.parametrize(
    ("environment", "refused"),
    [
        ({"RANK": "3", "WORLD_SIZE": "4"}, True),
        ({"RANK": "0", "WORLD_SIZE": "1"}, False),
        ({"WORLD_SIZE": "4"}, False),  # a variable of someone else's
        ({"RANK": "0", "WORLD_SIZE": "many"}, False),
    ],
)
def test_a_rank_that_finds_no_others_does_not_train_by_itself(
    recipe, tmp_path, monkeypatch, capsys, environment, refused
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    words = ["--recipe", str(recipe), "--run", str(tmp_path / "run"), "--epochs", "1", "--quiet"]
    assert train.main(words) == (1 if refused else 0)
    error = capsys.readouterr().err
    assert error.startswith("error: RANK is 3 of WORLD_SIZE 4, and LOCAL_RANK is missing") == refused
    assert error.count("\n") == refused
    assert (tmp_path / "run").exists() != refused


CHANGED = {"sigma": 2.0, "encoding": "udp", "missing": "ignore", "udp": True, "lr": 0.001, "epochs": 3}


def test_each_setting_that_a_resumed_run_does_not_keep_is_printed_and_recorded(recipe, copy, capsys):
    was = yaml.safe_load((copy / "config.yaml").read_text())
    changed = CHANGED | {"seed": 5, "batch_size": 4}
    words = [word for name, value in changed.items() for word in (f"--{name}", str(value))]
    assert train.main(["--resume", str(copy), *words]) == 0
    out = capsys.readouterr().err
    for name, value in changed.items():
        assert f"\n{name} was {was[name]}, now {value}\n" in out
    assert out.count(" was ") == len(changed)
    expected = [{"epoch": 3, "step": 0, "option": name, "was": was[name], "now": now} for name, now in changed.items()]

    def by_name(changes):
        return sorted(changes, key=lambda change: change["option"])

    assert by_name(json.loads((copy / "summary.json").read_text())["changes"]) == by_name(expected)
    for name in ("last.pt", "best.pt"):
        progress = torch.load(copy / name, weights_only=True)["progress"]
        assert name == "best.pt" or by_name(progress["changes"]) == by_name(expected)
    # They are the run's own now, and are not changes again; what was recorded stays.
    assert train.main(["--resume", str(copy), "--epochs", "4"]) == 0
    assert capsys.readouterr().err.count(" was ") == 1
    changes = json.loads((copy / "summary.json").read_text())["changes"]
    assert changes == [*changes[:-1], {"epoch": 4, "step": 0, "option": "epochs", "was": 3, "now": 4}]
    assert by_name(changes[:-1]) == by_name(expected)


def test_changes_within_an_epoch_say_so_and_survive_a_kill_before_they_are_saved(recipe, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    start_and_stop(recipe, run, 1)
    monkeypatch.setattr(training.Run, "train_epochs", lambda *arguments: sys.exit("killed"))
    with pytest.raises(SystemExit, match="killed"):
        train.main(["--resume", str(run), "--sigma", "2"])
    assert yaml.safe_load((run / "config.yaml").read_text())["sigma"] == 2
    monkeypatch.undo()
    capsys.readouterr()
    assert train.main(["--resume", str(run)]) == 0
    assert "sigma was 1.0, now 2.0\n" in capsys.readouterr().err
    (change,) = json.loads((run / "summary.json").read_text())["changes"]
    assert change == {"epoch": 1, "step": 1, "option": "sigma", "was": 1.0, "now": 2.0}


def test_a_run_that_keeps_everything_reports_no_change(recipe, finished, tmp_path, capsys):
    run, moved = tmp_path / "run", write_tiny_mpii(tmp_path / "moved")
    start_and_stop(recipe, run, 1)
    capsys.readouterr()
    # The same pictures elsewhere, with other times.
    assert train.main(["--resume", str(run), "--data_root", str(moved)]) == 0
    out = capsys.readouterr().err
    assert out.count(" was ") == 1
    assert f"data_root was {recipe.parent / 'tiny'}, now {moved}\n" in out


@pytest.mark.parametrize("what", ["pictures", "persons", "skeleton"])
def test_changed_data_is_printed_and_recorded(recipe, copy, tmp_path, capsys, monkeypatch, what):
    root = write_tiny_mpii(tmp_path / "data")
    if what == "pictures":
        picture = cv2.imread(str(root / "images/001.jpg"))
        cv2.imwrite(str(root / "images/001.jpg"), picture[::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
        expected = {"the training images", "the validation images"}
    elif what == "persons":
        rows = json.loads((root / "annot/train.json").read_text())
        rows[0]["center"][0] += 1
        (root / "annot/train.json").write_text(json.dumps(rows))
        expected = {"the training persons"}
    else:
        saved = torch.load(copy / "last.pt", weights_only=True)
        saved["skeleton"]["mirror_pairs"] = saved["skeleton"]["mirror_pairs"][1:]
        torch.save(saved, copy / "last.pt")
        expected = {"the skeleton's mirror_pairs"}
    assert train.main(["--resume", str(copy), "--epochs", "3", "--data_root", str(root)]) == 0
    expected |= {"epochs", "data_root"}
    changes = json.loads((copy / "summary.json").read_text())["changes"]
    assert {change["option"] for change in changes} == expected
    out = capsys.readouterr().err
    for change in changes:
        now = change["now"] if what != "skeleton" else None
        assert f"{change['option']} was " in out
        assert now is None or f", now {now}\n" in out


def test_images_are_told_apart_by_their_sizes_and_those_of_a_pack_by_its_checksums(tmp_path):
    paths = [tmp_path / name for name in ("a.jpg", "b.jpg")]
    for path in paths:
        path.write_bytes(b"four")
    first = images_fingerprint(paths)
    assert first.startswith("2 files of 8 bytes, checksum ")
    os.utime(paths[0], (1, 1))
    assert images_fingerprint(paths) == first
    paths[0].write_bytes(b"three")
    second = images_fingerprint(paths)
    paths[0].write_bytes(b"four")
    paths[1].write_bytes(b"three")
    assert len({first, second, images_fingerprint(paths)}) == 3
    paths[1].unlink()
    assert images_fingerprint(paths).startswith("2 files of 4 bytes")


@pytest.mark.parametrize("looks", [1, 3, 5, 6], ids=["epoch 1", "end of epoch 1", "evaluation", "epoch 2"])
def test_bad_images_are_those_of_the_whole_run_wherever_it_was_stopped(tmp_path, looks):
    recipe = write_recipe(tmp_path / "data", on_bad_image="skip", batch_size=4)
    (recipe.parent / "tiny/images/001.jpg").write_bytes(b"\xff\xd8\xff")
    assert train.main(["--recipe", str(recipe), "--run", str(tmp_path / "whole")]) == 0
    start_and_stop(recipe, tmp_path / "run", looks)
    # What a resumed process does not see again is not forgotten.
    assert train.main(["--resume", str(tmp_path / "run")]) == 0
    expected = results(tmp_path / "whole")
    assert results(tmp_path / "run") == expected
    assert [line["bad_images"] for line in expected["metrics.jsonl"]] == [2, 2]
    assert len(expected["summary.json"]["bad_images"]) == 2


def test_bad_images_of_other_data_are_not_those_of_the_run(tmp_path):
    recipe = write_recipe(tmp_path / "data", on_bad_image="skip")
    (recipe.parent / "tiny/images/001.jpg").write_bytes(b"\xff\xd8\xff")
    run, other = tmp_path / "run", write_tiny_mpii(tmp_path / "other", persons=9, seed=1)
    assert train.main(["--recipe", str(recipe), "--run", str(run)]) == 0
    assert train.main(["--resume", str(run), "--epochs", "3", "--data_root", str(other)]) == 0
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["bad_images"] == 0


def test_a_checkpoint_from_before_these_fields_goes_on_without_a_report(recipe, finished, tmp_path, capsys):
    run = tmp_path / "run"
    start_and_stop(recipe, run, 1)
    saved = torch.load(run / "last.pt", weights_only=True)
    new = ["valid_data", "train_images", "valid_images", "train_bad_images", "valid_bad_images", "changes"]
    for name in new:
        del saved["progress"][name]
    torch.save(saved, run / "last.pt")
    capsys.readouterr()
    assert train.main(["--resume", str(run)]) == 0
    assert " was " not in capsys.readouterr().err
    assert results(run) == results(finished)


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "best.pt", "last.pt", "summary.json"])
def test_a_disk_that_is_full_for_a_while_costs_nothing(recipe, finished, tmp_path, monkeypatch, capsys, name):
    """A real full device, wherever the file is written in the second epoch; config.yaml when the run goes on."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    run, write = tmp_path / "run", training.Run.write_epoch
    part = part_of(run / name)
    capsys.readouterr()

    def fill(self, *arguments):
        if self.progress.epoch == (0 if name == "best.pt" else 1):  # the second scores less
            if name == "metrics.jsonl":
                (run / name).rename(run / "lines")
                (run / name).symlink_to("/dev/full")
            else:
                fill_the_disk_at(part, patch)
        return write(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(training.Run, "write_epoch", fill)
        if name == "config.yaml":
            start_and_stop(recipe, run, 1)
            fill_the_disk_at(part, patch)
            assert train.main(["--resume", str(run)]) == 1
        else:
            assert train.main(["--recipe", str(recipe), "--run", str(run)]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(errors) == 1
    assert errors[0].startswith("error: [Errno 28] No space left on device: ")
    assert errors[0].endswith(f" bytes free: '{run / name}'")
    assert not part.is_symlink()
    if name == "metrics.jsonl":
        (run / "lines").rename(run / name)
    assert train.main(["--resume", str(run)]) == 0
    assert results(run) == results(finished)
