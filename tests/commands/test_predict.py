# SPDX-License-Identifier: Apache-2.0
"""`fastpose predict` on pictures, folders, patterns and videos, with a network that finds red, green and blue dots."""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from fastpose import predict
from fastpose.data.inputs import BoxFile, find_inputs
from fastpose.data.video import VideoFile, VideoFrames
from tests.helpers import dots
from tests.test_predictor import FILM, NEAR, ONE, TWO, film, save


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> list[str]:
    named = dots.write(tmp_path_factory.mktemp("dots"))
    listed = [word for name, value in named.items() for word in (f"--{name}", value)]
    return [*listed, "--size", "96", "96", "--flip_test", "false", "--device", "cpu"]


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three pictures, of which one has two persons, and a file that is no picture."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name, persons in (("c", ONE), ("a", TWO), ("b", ONE)):
        save(pictures / f"{name}.png", dots.draw(persons))
    (pictures / "notes.txt").write_text("no picture")
    return pictures


def lines_of(pictures: dict[str, np.ndarray]) -> str:
    rows = [f"{name},{','.join(map(str, box))}" for name, persons in pictures.items() for box in dots.boxes(persons)]
    return "\n".join(rows)


def write_film(path: Path, places: np.ndarray, fps: float = 25.0) -> Path:
    with VideoFile(path, fps) as video:
        for persons in places:
            video.write(dots.draw(persons, FILM))
    return path


def read(out: Path) -> list[dict]:
    return json.loads((out / "predictions.json").read_text())


def points_of(entry: dict) -> np.ndarray:
    return np.array([[joint["x"], joint["y"]] for joint in entry["joints"].values()])


def test_a_folder_with_a_file_of_boxes_gives_every_kind_of_file(words, folder, tmp_path, capsys):
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("# name, x, y, width, height\n" + lines_of({"a.png": TWO, "b.png": ONE, "c.png": ONE}) + "\n")
    out = tmp_path / "out"
    assert predict.main([*words, "--image", str(folder), "--boxes", str(boxes), "--out", str(out)]) == 0
    assert f"wrote {out / 'predictions.json'}\n" in capsys.readouterr().out
    entries = read(out)
    assert [Path(entry["image"]).name for entry in entries] == ["a.png", "a.png", "b.png", "c.png"]
    for entry, person in zip(entries, [*TWO, *ONE, *ONE], strict=True):
        assert np.abs(points_of(entry) - person).max() < NEAR
        assert entry["box"] == pytest.approx(dots.boxes(person[None])[0].tolist())
        assert 0.5 < entry["score"] <= 1.0
    results = json.loads((out / "keypoints_results.json").read_text())
    assert [(one["image_id"], one["file_name"]) for one in results] == [(1, "a.png")] * 2 + [(2, "b.png"), (3, "c.png")]
    assert np.reshape(results[1]["keypoints"], (3, 3))[:, :2] == pytest.approx(points_of(entries[1]))
    with open(out / "predictions.csv") as file:
        rows = list(csv.DictReader(file))
    assert [float(rows[1]["green_x"]), float(rows[1]["green_y"])] == pytest.approx(points_of(entries[1])[1], abs=1e-3)
    assert float(rows[1]["box_width"]) == pytest.approx(entries[1]["box"][2])
    assert float(rows[3]["blue_score"]) == pytest.approx(entries[3]["joints"]["blue"]["score"], abs=1e-5)
    drawn = [cv2.imread(entry["drawn"]) for entry in entries]
    assert all(picture.shape == (240, 320, 3) for picture in drawn)
    assert (drawn[0] != dots.draw(TWO)[..., ::-1]).any()


def test_pictures_are_named_by_patterns_and_files_in_their_order(folder, tmp_path, monkeypatch):
    assert [path.name for path in find_inputs([str(folder)]).pictures] == ["a.png", "b.png", "c.png"]
    assert [path.name for path in find_inputs([str(folder / "[bc].png")]).pictures] == ["b.png", "c.png"]
    assert [path.name for path in find_inputs([str(tmp_path / "**/*.png")]).pictures] == ["a.png", "b.png", "c.png"]
    monkeypatch.chdir(folder)
    save(folder / "[x].png", dots.draw(ONE))
    assert find_inputs(["c.png", "a.png", "[x].png"]).pictures == [Path("c.png"), Path("a.png"), Path("[x].png")]
    (folder / "film.MP4").write_bytes(b"")
    assert find_inputs(["film.MP4", "0", "c.png"]) == ([Path("c.png")], [Path("film.MP4"), 0])
    (folder / "7").write_bytes(b"")
    assert find_inputs(["7"]).pictures == [Path("7")]


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("nowhere.png", "error: image: no file nowhere.png"),
        ("*.tiff", "error: image: no file fits *.tiff"),
        ("empty", "error: image: no pictures in empty: expected names ending in .jpg"),
    ],
)
def test_what_is_not_there_is_said_before_anything_else(words, tmp_path, monkeypatch, capsys, name, error):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert predict.main([*words, "--image", name]) == 1
    assert capsys.readouterr().err.startswith(error)


def test_a_broken_file_is_named_and_the_others_are_done(words, folder, tmp_path, caplog):
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    out = tmp_path / "out"
    assert predict.main([*words, "--image", str(folder), "--out", str(out)]) == 2
    assert f"{folder / 'broken.png'}: " in caplog.text
    assert "1 of 4 files could not be read" in caplog.text
    assert [Path(entry["image"]).name for entry in read(out)] == ["a.png", "b.png", "c.png"]


def test_what_is_to_be_saved_can_be_chosen(words, folder, tmp_path):
    out = tmp_path / "out"
    assert predict.main([*words, "--image", str(folder), "--out", str(out), "--save", "csv"]) == 0
    assert [path.name for path in out.iterdir()] == ["predictions.csv"]
    assert predict.main([*words, "--image", str(folder / "a.png"), "--out", str(out), "--save", "json"]) == 0
    assert "drawn" not in read(out)[0]


def test_coco_s_results_are_boxes_too(words, folder, tmp_path, capsys, caplog):
    (folder / "000000000139.png").write_bytes((folder / "a.png").read_bytes())
    found = [
        {"image_id": 139, "category_id": 1, "bbox": dots.boxes(TWO)[1].tolist(), "score": 0.9},
        {"image_id": 139, "category_id": 3, "bbox": [0, 0, 5, 5], "score": 0.9},  # a car
        {"image_id": 139, "category_id": 1, "bbox": [0, 0, 50, 50], "score": 0.1},
        {"file_name": "b.png", "bbox": dots.boxes(ONE)[0].tolist()},
        {"image_id": 7, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.9},
    ]
    (tmp_path / "boxes.json").write_text(json.dumps(found))
    out = tmp_path / "out"
    options = ["--boxes", str(tmp_path / "boxes.json"), "--least_box_score", "0.5", "--out", str(out)]
    assert predict.main([*words, "--image", str(folder), *options]) == 0
    assert "boxes of 1 pictures that are not looked at, the first: 7" in caplog.text
    first, second = read(out)
    assert Path(first["image"]).name == "000000000139.png"
    assert np.abs(points_of(first) - TWO[1]).max() < NEAR
    assert Path(second["image"]).name == "b.png"
    assert predict.main([*words, "--image", str(folder / "c.png"), *options]) == 1
    assert "error: boxes: " in capsys.readouterr().err


LINE = "expected NAME X Y WIDTH HEIGHT [SCORE], separated by commas or tabs if a name has spaces"


@pytest.mark.parametrize(
    ("name", "contents", "error"),
    [
        ("txt", "a.png 1 2 3", f", line 1: {LINE}, got 'a.png 1 2 3'"),
        ("txt", "a b.png 1 2 3 4", f", line 1: {LINE}"),
        ("txt", "1 2 3 4\na.png,1,2,0,4", ", line 2: expected a positive width and height, got [1.0, 2.0, 0.0, 4.0]"),
        ("txt", "a.png 1 2 3 nan", ", line 1: expected a box of 4 numbers and a score"),
        ("txt", "a.png 1 2 3 4 5 6", f", line 1: {LINE}"),
        ("json", "{}", ": must be a list of boxes, got {}"),
        ("json", "[3]", ", box 0: expected an object, got 3"),
        ("json", '[{"bbox": [1, 2, 3, 4]}]', ", box 0: image_id: expected a number or a file's name, got null"),
        (
            "json",
            '[{"image_id": 1, "bbox": [1, 2, 3]}]',
            ", box 0: expected a box of 4 numbers and a score, got [1, 2, 3]",
        ),
        ("json", '[{"image_id": 1, "bbox": [1, 2, 3, "4"]}]', ", box 0: expected a box of 4 numbers"),
        ("json", '[{"image_id": 1, "bbox": [1, 2, -3, 4]}]', ", box 0: expected a positive width"),
    ],
)
def test_a_wrong_box_is_named_with_its_file_and_place(tmp_path, name, contents, error):
    file = tmp_path / f"boxes.{name}"
    file.write_text(contents)
    with pytest.raises(ValueError, match=re.escape(f"{file}{error}")):
        BoxFile(file)


def test_names_of_boxes_fit_with_and_without_their_folders(tmp_path):
    file = tmp_path / "boxes.txt"
    file.write_text("a.png 1 2 3 4\nx/b.png\t5\t6\t7\t8\t0.5\nwith space.png, 1, 1, 2, 2\n9 9 9 9\n")
    boxes = BoxFile(file)
    everywhere = [9.0, 9.0, 9.0, 9.0, 1.0]
    assert boxes.of(Path("some/where/a.png")) == [everywhere, [1.0, 2.0, 3.0, 4.0, 1.0]]
    assert boxes.of(Path("/y/x/b.png")) == [everywhere, [5.0, 6.0, 7.0, 8.0, 0.5]]
    assert boxes.of(Path("b.png")) == [everywhere]
    file.write_text("./x/c.png 1 2 3 4\nx\\d.png 5 6 7 8\n78 1 2 30 40\n000079 1 2 30 40 0.5\n1 2 3 4 0.5\n")
    other = BoxFile(file)
    assert [len(other.of(Path(name))) for name in ("x/c.png", "x/d.png", "78.jpg", "79.jpg", "80.jpg")] == [
        2,
        2,
        2,
        2,
        1,
    ]
    file.write_text(f"{tmp_path}/e.png 1 2 3 4\n")
    assert len(BoxFile(file).of(tmp_path / "x" / ".." / "e.png")) == 1
    assert boxes.unused == ["with space.png"]
    assert boxes.of(Path("with space.png"))[1][:2] == [1.0, 1.0]
    assert boxes.of(None) == [everywhere]
    assert boxes.unused == []


def test_a_film_is_followed_numbered_and_drawn(words, tmp_path, monkeypatch, capsys):
    places = film(22)
    video = write_film(tmp_path / "film.mp4", places)
    (tmp_path / "my_detector.py").write_text(
        "import numpy as np\n"
        f"BOXES = np.array({dots.boxes(places[0]).tolist()}), np.array({dots.boxes(places[10]).tolist()})\n"
        "calls = []\n"
        "def make():\n"
        "    def detect(pictures):\n"
        "        calls.append(len(pictures))\n"
        "        return [BOXES[min(len(calls), 2) - 1]] * len(pictures)\n"
        "    return detect\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    out = tmp_path / "out"
    options = ["--track", "--detector", "my_detector:make", "--out", str(out), "--detect_every", "11"]
    assert predict.main([*words, "--image", str(video), *options]) == 0
    entries = read(out)
    assert {entry["id"] for entry in entries} == {1, 2}
    assert len(entries) == 44
    assert [entry["frame"] for entry in entries if entry["id"] == 1] == list(range(22))
    assert entries[-1]["seconds"] == pytest.approx(21 / 25)
    results = json.loads((out / "keypoints_results.json").read_text())
    assert results[-1]["track_id"] == entries[-1]["id"]
    assert results[-1]["image_id"] == 21
    drawn = VideoFrames(out / "film_pose.mp4")
    frames = list(drawn)
    assert len(frames) == 22
    assert drawn.fps == pytest.approx(25.0)
    assert frames[0].shape == (400, 320, 3)
    assert np.abs(frames[20].astype(int) - dots.draw(places[20], FILM)).max() > 100


def test_a_film_without_tracking_and_a_picture_beside_it(words, folder, tmp_path):
    places = film(5)[:, :1]
    video = write_film(tmp_path / "film.mp4", places)
    out = tmp_path / "out"
    box = [str(value) for value in dots.boxes(places[2])[0]]
    assert predict.main([*words, "--image", str(video), str(folder / "a.png"), "--box", *box, "--out", str(out)]) == 0
    entries = read(out)
    assert [entry.get("frame") for entry in entries] == [None, 0, 1, 2, 3, 4]
    assert "id" not in entries[1]
    assert np.abs(points_of(entries[3]) - places[2, 0]).max() < NEAR + 1  # a video's pixels are not quite those drawn
    assert [path.name for path in sorted(out.glob("*_pose*"))] == ["000_a_pose.png", "001_film_pose.mp4"]


def test_a_film_has_the_boxes_of_its_name_or_nobody(words, tmp_path, caplog):
    places = film(3)[:, :1]
    video = write_film(tmp_path / "film.mp4", places)
    boxes, out = tmp_path / "boxes.csv", tmp_path / "out"
    options = ["--image", str(video), "--boxes", str(boxes), "--out", str(out), "--save", "json"]
    boxes.write_text(lines_of({"film.mp4": places[1]}))
    assert predict.main([*words, *options]) == 0
    assert len(read(out)) == 3
    assert "no boxes" not in caplog.text
    boxes.write_text("other.mp4 1 1 50 50\n")
    assert predict.main([*words, *options]) == 0
    assert read(out) == []
    assert f"{video}: no boxes of it in {boxes}: nobody is looked for" in caplog.text


def test_a_damaged_film_is_named_and_ends_with_2(words, tmp_path, monkeypatch, caplog):
    """As OpenCV shows it: the file says 60 frames, and after 20 there is no other."""
    video, out = write_film(tmp_path / "film.mp4", film(60)), tmp_path / "out"
    left, read_frame = iter(range(20)), VideoFrames._read
    monkeypatch.setattr(VideoFrames, "_read", lambda self: None if next(left, None) is None else read_frame(self))
    assert predict.main([*words, "--image", str(video), "--out", str(out), "--save", "json"]) == 2
    assert f"{video}: damaged: of its 60 frames 20 can be decoded" in caplog.text
    assert len(read(out)) == 20


def test_ids_of_coco_s_results_are_one_per_picture_and_frame(words, folder, tmp_path):
    video, out = write_film(tmp_path / "film.mp4", film(2)), tmp_path / "out"
    again = [str(folder / "a.png"), str(folder / "a.png"), str(video)]
    assert predict.main([*words, "--image", *again, "--out", str(out), "--save", "coco"]) == 0
    results = json.loads((out / "keypoints_results.json").read_text())
    assert [one["image_id"] for one in results] == [1, 2, 3, 4]
    assert [one.get("frame") for one in results] == [None, None, 0, 1]


@pytest.mark.parametrize("fails", ["a wrong box", "the detector"])
def test_an_error_half_way_keeps_what_is_done(words, folder, tmp_path, monkeypatch, capsys, caplog, fails):
    out, boxes = tmp_path / "out", tmp_path / "boxes.csv"
    boxes.write_text(lines_of({"a.png": TWO, "b.png": ONE}) + "\nc.png,5000,5000,10,10\n")
    (tmp_path / "failing_detector.py").write_text(
        "def make():\n"
        "    def detect(pictures):\n"
        "        detect.calls += 1\n"
        "        assert detect.calls < 3, 'no more'\n"
        f"        return [{dots.boxes(ONE).tolist()}] * len(pictures)\n"
        "    detect.calls = 0\n"
        "    return detect\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    finds = ["--boxes", str(boxes)] if fails == "a wrong box" else ["--detector", "failing_detector:make"]
    options = [*finds, "--out", str(out), "--eval_batch_size", "1"]
    assert predict.main([*words, "--image", str(folder), *options]) == 1
    error = "box: 5000 5000 10 10 lies outside" if fails == "a wrong box" else "detector: what failing_detector:make"
    assert f"error: {error}" in capsys.readouterr().err
    assert f"pictures or frames is in {out}" in caplog.text
    assert Path(read(out)[0]["image"]).name == "a.png"


def test_a_folder_that_cannot_be_written_is_said_before_the_work(words, folder, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert predict.main([*words, "--image", str(folder), "--out", str(out)]) == 1
        assert f"error: out: expected a folder that may be written into, got {out}\n" in capsys.readouterr().err
    assert predict.main([*words, "--image", str(folder), "--out", str(folder)]) == 1
    assert f"error: out: {folder} is the folder of the pictures to look at" in capsys.readouterr().err


def test_persons_without_a_joint_that_was_found_are_said(words, folder, tmp_path, caplog):
    save(folder / "black.png", np.zeros((240, 320, 3), np.uint8))
    assert predict.main([*words, "--image", str(folder), "--out", str(tmp_path / "out")]) == 0
    assert "1 of 4 persons have no joint with a score of --least_score 0.2, and are not drawn" in caplog.text


def test_what_is_no_video_is_named(words, tmp_path, caplog):
    (tmp_path / "film.mp4").write_bytes(b"no film")
    assert predict.main([*words, "--image", str(tmp_path / "film.mp4"), "--out", str(tmp_path / "out")]) == 2
    assert f"{tmp_path / 'film.mp4'}: OpenCV cannot open it: is it a video?" in caplog.text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (
            ["--box", "0", "0", "9", "9", "--detector", "torchvision"],
            "detector: expected one of box, boxes and detector",
        ),
        (["--track"], "track: it is for videos and cameras, got the picture"),
        (["--detect_every", "0"], "detect_every: expected at least 1, got 0"),
        (
            ["--detector", "nothing"],
            "detector: expected torchvision, ultralytics, yolox or MODULE:FACTORY, got 'nothing'",
        ),
        (["--detector", "nowhere_at_all:make"], "detector: no module 'nowhere_at_all' in "),
        (["--detector", "os:getcwd"], "detector: os:getcwd must return a callable, got str"),
        (["--detector", "yolox"], "detector: yolox needs a file: --detector yolox=FILE.onnx"),
        (["--detector", "none.onnx"], "detector: no file none.onnx"),
        (["--boxes", "none.txt"], "boxes: no file none.txt"),
    ],
)
def test_options_that_do_not_go_together_are_named(words, folder, tmp_path, capsys, options, error):
    try:
        code = predict.main([*words, "--image", str(folder), "--out", str(tmp_path / "out"), *options])
    except SystemExit as ended:
        code = ended.code
    assert code in (1, 2)
    assert f"error: {error}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_stop_keeps_what_is_done(words, folder, tmp_path):
    """A detector that does not come back from the third picture is stopped there."""
    (tmp_path / "slow_detector.py").write_text(
        "import pathlib, time\n"
        "def make(waits):\n"
        "    def detect(pictures):\n"
        "        detect.calls += 1\n"
        "        if detect.calls == 3:\n"
        "            pathlib.Path(waits).touch()\n"
        "            time.sleep(60)\n"
        f"        return [{dots.boxes(ONE).tolist()}] * len(pictures)\n"
        "    detect.calls = 0\n"
        "    return detect\n"
    )
    out, waits = tmp_path / "out", tmp_path / "waits"
    options = ["--detector", f"slow_detector:make={waits}", "--eval_batch_size", "1", "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "fastpose.predict", *words, "--image", str(folder), *options],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), str(tmp_path)])},
        stderr=subprocess.PIPE,
        text=True,
    )
    while not waits.exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)  # as Ctrl-C, which a script's background job ignores
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert f"what was found in 2 pictures or frames is in {out}" in err
    assert Path(read(out)[0]["image"]).name == "a.png"
    assert (out / "000_a_pose.png").exists()


def test_many_files_are_named_by_their_number():
    files = [Path(f"out/{number}_pose.png") for number in range(20)] + [Path("out/predictions.json")]
    assert predict.short(files)[0] == "18 pictures in out"
    assert predict.short(files)[-1] == str(files[-1])
    assert predict.short(files[:3]) == [str(file) for file in files[:3]]


def test_frames_arrive_in_order_and_a_video_keeps_odd_sizes(tmp_path):
    grey = [np.full((61, 75, 3), 8 * number, np.uint8) for number in range(30)]
    with VideoFile(tmp_path / "grey.mp4", 10.0) as video:
        for frame in grey:
            video.write(frame)
    frames = VideoFrames(tmp_path / "grey.mp4")
    assert (frames.count, frames.size, frames.fps) == (30, (62, 76), pytest.approx(10.0))
    means = [float(frame.mean()) for frame in frames]
    assert means == pytest.approx([8.0 * number for number in range(30)], abs=4)
    assert list(itertools.islice(frames, 1)) == []
    assert [path.name for path in tmp_path.iterdir()] == ["grey.mp4"]


def test_a_video_that_ends_early_keeps_what_it_has(tmp_path):
    def written(name, *frames, error=None):
        with VideoFile(tmp_path / name, 10) as video:
            for frame in frames:
                video.write(frame)
            if error is not None:
                raise error

    small, large = np.zeros((32, 32, 3), np.uint8), np.zeros((48, 64, 3), np.uint8)
    with pytest.raises(OSError, match=r"expected frames of 64 x 48 px, got 32 x 32"):
        written("a.mp4", large, small)
    assert len(list(VideoFrames(tmp_path / "a.mp4"))) == 1
    written("nothing.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    with pytest.raises(KeyboardInterrupt):
        written("b.mp4", large, error=KeyboardInterrupt())
    assert len(list(VideoFrames(tmp_path / "b.mp4"))) == 1
