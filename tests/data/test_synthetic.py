# SPDX-License-Identifier: Apache-2.0
"""The synthetic data set: repeatable to the byte, rightly annotated, and careful with what is already there."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from functools import partial
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from scipy.io import loadmat

from fastpose.data.synthetic import SyntheticDataError, generate, render_scene
from fastpose.data.synthetic.figure import (
    HEAD,
    L_HIP,
    L_SHOULDER,
    NECK,
    R_HIP,
    R_SHOULDER,
    Figure,
    sample_outfit,
    sample_pose,
)
from fastpose.data.synthetic.generate import MAT_JOINT_NAMES
from fastpose.data.synthetic.workers import stops_held_back
from fastpose.synthetic import main

PERSONS, VALID, SEED = 60, 16, 5


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synthetic") / "set"
    generate(out, persons=PERSONS, valid_persons=VALID, seed=SEED)
    return out


def _rows(data: Path, split: str) -> list[dict[str, Any]]:
    return json.loads((data / "annot" / f"{split}.json").read_text(encoding="utf-8"))


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def _figures(count: int) -> list[Figure]:
    rngs = [np.random.default_rng(seed) for seed in range(count)]
    return [Figure(sample_pose(rng), sample_outfit(rng), (200.0, 200.0), 240.0, (-0.5, -0.8)) for rng in rngs]


# ---------------------------------------------------------------- the same seed


def test_same_seed_gives_the_same_bytes_whatever_the_number_of_workers(data: Path, tmp_path: Path) -> None:
    generate(tmp_path / "again", persons=PERSONS, valid_persons=VALID, seed=SEED, workers=2)
    assert _contents(tmp_path / "again") == _contents(data)


def test_another_seed_gives_other_pictures(data: Path, tmp_path: Path) -> None:
    generate(tmp_path / "other", persons=8, seed=SEED + 1)
    other = tmp_path / "other" / "images" / "train_000000.jpg"
    assert other.read_bytes() != (data / "images" / "train_000000.jpg").read_bytes()


# ---------------------------------------------------------------- the files


def test_splits_hold_the_persons_asked_for_and_share_no_picture(data: Path) -> None:
    train, valid = _rows(data, "train"), _rows(data, "valid")
    assert (len(train), len(valid)) == (PERSONS - VALID, VALID)
    assert not {row["image"] for row in train} & {row["image"] for row in valid}
    on_disk = {path.name for path in (data / "images").iterdir()}
    assert on_disk == {row["image"] for row in train + valid}


def test_rows_have_mpii_fields_and_annotated_joints_lie_on_their_picture(data: Path) -> None:
    for row in _rows(data, "train") + _rows(data, "valid"):
        assert set(row) == {"joints_vis", "joints", "image", "scale", "center"}
        height, width = cv2.imread(str(data / "images" / row["image"])).shape[:2]
        joints, visible = np.array(row["joints"]), np.array(row["joints_vis"])
        assert joints.shape == (16, 2)
        assert visible.shape == (16,)
        assert set(visible) <= {0, 1}
        assert (joints[visible == 0] == -1).all()
        assert (joints[visible == 1] >= 1).all()
        assert (joints[visible == 1] <= [width, height]).all()


def test_a_readers_box_holds_the_annotated_joints(data: Path) -> None:
    # The loader moves the centre down by 15 * scale and enlarges the scale by 1.25; scale * 200 px is the box's side.
    inside = []
    for row in _rows(data, "train") + _rows(data, "valid"):
        joints = np.array(row["joints"])[np.array(row["joints_vis"]) == 1]
        center, half = np.add(row["center"], (0, 15 * row["scale"])), 100 * 1.25 * row["scale"]
        inside.append((np.abs(joints - center) <= half).all())
    assert np.mean(inside) > 0.9


def test_data_set_varies_in_size_company_and_missing_joints(data: Path) -> None:
    rows = _rows(data, "train") + _rows(data, "valid")
    names = [row["image"] for row in rows]
    assert len(set(names)) < len(names)
    sizes = {cv2.imread(str(path)).shape[:2] for path in (data / "images").iterdir()}
    assert len(sizes) > 0.8 * len(set(names))
    assert all(240 <= max(size) <= 520 for size in sizes)
    missing = 1 - np.array([row["joints_vis"] for row in rows])
    assert 0 < missing.mean() < 0.15


def test_ground_truth_mat_says_what_valid_json_says(data: Path) -> None:
    rows, truth = _rows(data, "valid"), loadmat(data / "annot" / "gt_valid.mat")
    assert [str(name[0]) for name in truth["dataset_joints"][0]] == list(MAT_JOINT_NAMES)
    assert truth["jnt_missing"].dtype == np.uint8
    np.testing.assert_array_equal(truth["jnt_missing"], 1 - np.array([row["joints_vis"] for row in rows]).T)
    np.testing.assert_array_equal(truth["pos_gt_src"], np.array([row["joints"] for row in rows]).transpose(1, 2, 0))
    assert truth["headboxes_src"].shape == (2, 2, VALID)
    assert (truth["headboxes_src"][1] > truth["headboxes_src"][0]).all()


# ---------------------------------------------------------------- figures


def test_a_figure_facing_the_viewer_has_its_left_side_on_the_right_of_the_picture() -> None:
    turned = {True: 0, False: 0}
    for figure in _figures(120):
        facing = figure.pose.trunk[2, 2] > 0.6
        if facing or figure.pose.trunk[2, 2] < -0.6:
            turned[facing] += 1
            joints = figure.joints
            assert (joints[L_SHOULDER, 0] > joints[R_SHOULDER, 0]) == facing
            assert (joints[L_HIP, 0] > joints[R_HIP, 0]) == facing
    assert min(turned.values()) > 0


def test_every_joint_is_drawn_where_it_is_annotated() -> None:
    for figure in _figures(20):
        canvas = np.full((500, 400, 3), (1, 2, 3), dtype=np.uint8)
        figure.draw(canvas)
        # The crown lies on the head's outline: look a little below it.
        points = figure.joints.copy()
        points[HEAD] = 0.9 * points[HEAD] + 0.1 * points[NECK]
        x, y = np.round(points).astype(int).T
        on_canvas = (x >= 0) & (x < 400) & (y >= 0) & (y < 500)
        assert (canvas[y[on_canvas], x[on_canvas]] != (1, 2, 3)).any(axis=1).all()


def test_head_box_gives_three_quarters_of_the_neck_to_crown_distance_as_pckh_unit() -> None:
    # An ellipse with axes L and 0.75 L fits a box whose diagonal is 1.25 L however it is turned; PCKh takes 0.6 of it.
    for figure in _figures(10):
        low, high = figure.head_box()
        neck, crown = figure.joints[[NECK, HEAD]]
        assert 0.6 * np.linalg.norm(high - low) == pytest.approx(0.75 * np.linalg.norm(crown - neck))
        assert (low < (neck + crown) / 2).all()
        assert ((neck + crown) / 2 < high).all()


def test_each_side_wears_its_own_colours_but_no_colour_stands_for_a_side() -> None:
    sleeves = np.array([sample_outfit(np.random.default_rng(seed)).sleeves for seed in range(200)])
    assert (np.abs(sleeves[:, 0] - sleeves[:, 1]).max(axis=1) > 40).all()
    # Redder on the left is as common as redder on the right: 200 coin tosses stay within 100 +- 30.
    assert 70 < (sleeves[:, 0, 0] > sleeves[:, 1, 0]).sum() < 130


def test_a_scene_holds_as_many_rows_as_figures() -> None:
    picture, rows = render_scene(np.random.default_rng(0), 3, "a.jpg")
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3
    assert len(rows) == 3
    assert {row["image"] for row in rows} == {"a.jpg"}


# ---------------------------------------------------------------- what is already there


def test_the_same_data_set_is_left_alone(tmp_path: Path) -> None:
    first = generate(tmp_path / "set", persons=4, seed=1)
    before = {path: path.stat().st_mtime_ns for path in first.path.rglob("*")}
    second = generate(tmp_path / "set", persons=4, seed=1)
    assert first.created
    assert not second.created
    assert {path: path.stat().st_mtime_ns for path in first.path.rglob("*")} == before


def test_another_data_set_is_replaced_only_on_request(tmp_path: Path) -> None:
    generate(tmp_path / "set", persons=4, seed=1)
    message = r"another synthetic data set \(4 persons, 1 .*, seed 1, .*\) than the one asked for \(4 .*, seed 2, "
    with pytest.raises(SyntheticDataError, match=message):
        generate(tmp_path / "set", persons=4, seed=2)
    assert generate(tmp_path / "set", persons=4, seed=2, overwrite=True).created
    assert json.loads((tmp_path / "set" / "synthetic.json").read_text())["seed"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_data_set_with_a_missing_file_is_not_taken_for_complete(tmp_path: Path) -> None:
    generate(tmp_path / "set", persons=4, seed=1)
    (tmp_path / "set" / "annot" / "gt_valid.mat").unlink()
    with pytest.raises(SyntheticDataError, match="incomplete"):
        generate(tmp_path / "set", persons=4, seed=1)


def test_a_folder_with_other_things_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SyntheticDataError, match="that is not a synthetic data set"):
        generate(tmp_path, persons=4, seed=1, overwrite=True)
    with pytest.raises(SyntheticDataError, match="found a file"):
        generate(tmp_path / "notes.txt", persons=4, seed=1, overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / "set", persons=4, seed=1, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_leaves_what_the_next_one_removes(tmp_path: Path) -> None:
    arguments = [str(tmp_path / "set"), "--persons", "4000", "--workers", "1"]
    process = subprocess.Popen([sys.executable, "-m", "fastpose.synthetic", *arguments], stderr=subprocess.PIPE)
    assert process.stderr is not None
    assert process.stderr.readline().startswith(b"drawing ")
    process.kill()
    process.communicate()
    assert [path.name for path in tmp_path.iterdir()] == [".set.partial"]
    (tmp_path / ".set.ab12_c3d.partial").mkdir()  # an earlier version's
    (tmp_path / ".set2.partial").mkdir()  # another data set's
    assert generate(tmp_path / "set", persons=4, seed=1).created
    assert {path.name for path in tmp_path.iterdir()} == {"set", ".set2.partial"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_a_replacement_moved_away_comes_back_if_it_was_killed(tmp_path: Path, overwrite: bool) -> None:
    generate(tmp_path / "set", persons=4, seed=1)
    (tmp_path / "set").rename(tmp_path / ".set.old")  # between the two renames
    if overwrite:
        assert generate(tmp_path / "set", persons=4, seed=2, overwrite=True).created
    else:
        with pytest.raises(SyntheticDataError, match="another synthetic data set"):
            generate(tmp_path / "set", persons=4, seed=2)
        assert not generate(tmp_path / "set", persons=4, seed=1).created
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_what_was_replaced_goes_if_the_replacement_was_killed_at_its_end(tmp_path: Path) -> None:
    generate(tmp_path / "set", persons=4, seed=1)
    (tmp_path / ".set.old").mkdir()
    assert not generate(tmp_path / "set", persons=4, seed=1).created
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_second_process_is_refused_while_one_is_drawing(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    refused = []

    def draw_again(done: int, total: int) -> None:
        with pytest.raises(SyntheticDataError, match="another process is drawing into it") as error:
            generate(tmp_path / "set", persons=4, seed=1)
        refused.append(error)
        generate(tmp_path / "other", persons=2, seed=1)  # which is not in the way

    assert generate(tmp_path / "set", persons=4, seed=1, progress=draw_again).created
    assert refused
    assert {path.name for path in tmp_path.iterdir()} == {"set", "other"}


def test_a_full_disk_is_one_line_with_the_folder_and_is_not_left_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    assert main([str(tmp_path / "set"), "--persons", "4"]) == 1
    line = f"error: [Errno 28] No space left on device: '{tmp_path / 'set'}'"
    assert capsys.readouterr().err.splitlines()[-1] == line
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_is_killed_is_one_line(tmp_path: Path) -> None:
    masks = []

    def kill(done: int, total: int) -> None:
        if done == 1:
            for process in multiprocessing.active_children():
                status = Path(f"/proc/{process.pid}/status").read_text()
                masks.append(int(status.partition("SigBlk:\t")[2].partition("\n")[0], 16))
            os.kill(process.pid or 0, signal.SIGKILL)

    with pytest.raises(SyntheticDataError, match="a process that drew for it was ended"):
        generate(tmp_path / "set", persons=4000, seed=1, workers=2, progress=kill)
    assert list(tmp_path.iterdir()) == []
    assert not multiprocessing.active_children()
    # Ctrl-C in a terminal reaches them as well, and is not theirs.
    assert [mask >> (signal.SIGINT - 1) & 1 for mask in masks] == [1, 1]


def test_a_worker_that_is_killed_at_its_start_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where there is much to draw: nobody waits to tell it what."""

    def start(self: SpawnProcess) -> None:
        begin(self)
        os.kill(self.pid or 0, signal.SIGKILL)

    begin = SpawnProcess.start
    monkeypatch.setattr(SpawnProcess, "start", start)
    with pytest.raises(SyntheticDataError, match="a process that drew for it was ended"):
        generate(tmp_path / "set", persons=20_000, seed=1, workers=2)
    assert list(tmp_path.iterdir()) == []


def test_no_more_workers_are_started_than_there_are_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    monkeypatch.setattr(SpawnProcess, "start", lambda self: started.append(self))  # and nothing comes of them
    with pytest.raises(SyntheticDataError, match="a process that drew for it was ended"):
        generate(tmp_path / "set", persons=2, seed=1, workers=12)
    assert len(started) == 2


@pytest.mark.usefixtures("python_s_signals")
def test_stops_wait_until_all_workers_are_started_whichever_thread_takes_them() -> None:
    came, done = [], threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    other = threading.Thread(target=done.wait)  # whose mask is open, as OpenBLAS's are
    other.start()
    with stops_held_back():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)
        assert came == []
    assert came == [signal.SIGTERM]
    done.set()
    other.join()


def test_each_call_draws_into_a_folder_of_its_own(tmp_path: Path) -> None:
    """A worker that a killed process left behind cannot draw into the next one's."""
    folders = []

    def look(done: int, total: int) -> None:
        folders.extend(path.name for path in (tmp_path / ".set.partial").glob("images.*") if not done)

    for seed in range(2):
        generate(tmp_path / "set", persons=4, seed=seed, overwrite=True, progress=look)
    assert len(set(folders)) == 2


def test_an_error_of_a_worker_is_that_of_the_call(tmp_path: Path) -> None:
    def remove(done: int, total: int) -> None:
        if done == 1:
            shutil.rmtree(next((tmp_path / ".set.partial").glob("images.*")))

    with pytest.raises(FileNotFoundError, match=r"images\.\w+/train_\d+\.jpg") as caught:
        generate(tmp_path / "set", persons=400, seed=1, workers=2, progress=remove)
    assert "in _write_image" in "".join(caught.value.__notes__)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("free", [0, 7, 9, 12])
def test_where_too_few_files_may_be_opened_nothing_is_left(tmp_path: Path, free: int) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    have = max(int(name) for name in os.listdir("/proc/self/fd")) + 1
    with ExitStack() as used:
        while (gap := os.dup(0)) < have:  # the limit is on numbers, not on how many
            used.callback(os.close, gap)
        os.close(gap)
        resource.setrlimit(resource.RLIMIT_NOFILE, (have + free, limits[1]))
        used.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        with pytest.raises(OSError, match="Too many open files"):
            generate(tmp_path / "set", persons=400, seed=1, workers=8)
    assert list(tmp_path.iterdir()) == []


def test_files_without_bytes_are_not_taken_for_a_data_set(tmp_path: Path) -> None:
    """As a power cut may leave them."""
    generate(tmp_path / "set", persons=4, seed=1)
    (tmp_path / "set/images/train_000001.jpg").write_bytes(b"")
    with pytest.raises(SyntheticDataError, match="incomplete"):
        generate(tmp_path / "set", persons=4, seed=1)


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"persons": 1}, "persons"),
        ({"valid_persons": 0}, "valid_persons"),
        ({"valid_persons": 4}, "valid_persons"),
        ({"seed": -1}, "seed"),
        ({"workers": 0}, "workers"),
    ],
)
def test_wrong_parameters_are_named(tmp_path: Path, wrong: dict[str, int], name: str) -> None:
    with pytest.raises(SyntheticDataError, match=f"^{name}: expected"):
        generate(tmp_path / "set", **{"persons": 4, "seed": 1, **wrong})
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- the command


def test_command_writes_a_data_set_and_a_contact_sheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(tmp_path / "set"), "--persons", "14", "--seed", "3", "--valid-persons", "2"]
    assert main([*arguments, "--contact-sheet", str(tmp_path / "sheet.png")]) == 0
    assert "12 training and 2 validation persons" in capsys.readouterr().out
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    assert sheet is not None
    assert sheet.std() > 10
    assert main(arguments) == 0
    assert "already there" in capsys.readouterr().out


def test_command_ends_with_an_error_and_its_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "set"), "--persons", "0"]) == 1
    assert "persons: expected at least 2" in capsys.readouterr().err


@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_interrupt_of_the_command_is_one_line(tmp_path: Path, workers: str) -> None:
    arguments = [str(tmp_path / "set"), "--persons", "4000", "--workers", workers]
    process = subprocess.Popen(
        [sys.executable, "-m", "fastpose.synthetic", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Who runs the tests in the background of a shell ignores the signal, and the command would inherit that.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("drawing ")
        while not list((tmp_path / ".set.partial").glob("images.*/*.jpg")):
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers as well
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130
    assert err.splitlines()[-1] == f"stopped by SIGINT; {tmp_path / 'set'} is as it was"
    assert list(tmp_path.iterdir()) == []


NO_THREAD = """
import sys, threading
from pathlib import Path
from fastpose.data.synthetic import generate

if __name__ == "__main__":  # a worker imports this, too
    def refuse(*arguments):
        raise RuntimeError("can't start new thread")

    threading._start_new_thread = refuse
    generate(Path(sys.argv[1]), persons=40, seed=0, workers=2)
"""


def test_workers_need_no_thread_of_the_parent(tmp_path: Path) -> None:
    """Python's own pool of processes waits for ever where the system refuses it one of its threads."""
    script = tmp_path / "no_thread.py"
    script.write_text(NO_THREAD)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, str(script), str(tmp_path / "set")]
    process = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert (process.returncode, process.stderr) == (0, "")
    assert len(json.loads((tmp_path / "set/annot/train.json").read_text())) == 32
