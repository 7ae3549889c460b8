# SPDX-License-Identifier: Apache-2.0
"""The page of a run, and of several: what is on it, what it does without, and that it stands by itself."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fastpose import evaluate, report, train
from fastpose.data.coco.score import ApScorer
from fastpose.data.dataset import DataOptions
from fastpose.data.datasets import open_dataset
from fastpose.data.mpii.score import PckhScorer
from fastpose.data.persons import Persons
from fastpose.engine import results as drawing
from fastpose.engine.diagnosis import diagnose
from fastpose.engine.evaluation import Evaluation
from fastpose.engine.predicted import read_predicted, write_predicted
from fastpose.models import network
from fastpose.skeletons import MPII, Skeleton
from tests.helpers.html import Page, check_page
from tests.helpers.persons import persons_of
from tests.helpers.runs import draw_curves, start_and_stop, write_recipe
from tests.helpers.settings import small_network
from tests.helpers.tiny_mpii import write_tiny_mpii

SCORES = {"Head": 50.0, "Mean": 61.25, "Mean@0.1": 10.0}


@pytest.fixture(scope="module")
def persons(tmp_path_factory: pytest.TempPathFactory) -> Persons:
    """Ten persons with heads of 19.2 px, of whom each lacks a joint, on four images."""
    root = write_tiny_mpii(tmp_path_factory.mktemp("data") / "tiny")
    data = DataOptions(
        data_root=str(root), train_annotations="annot/train.json", valid_annotations="annot/valid.json", images="images"
    )
    return open_dataset(data, (64, 64)).read("valid")


def evaluation_of(persons: Persons) -> Evaluation:
    """Predictions that are right, except of the first person, which is far off, and of one whose image was not read."""
    predictions = persons.keypoints.copy()
    predictions[0] += 300
    scores = np.full(predictions.shape[:2], 0.75, np.float32)
    seen = np.ones(len(persons), bool)
    predictions[3], scores[3], seen[3] = np.nan, np.nan, False
    return Evaluation(predictions, scores, seen)


@pytest.fixture
def run(tmp_path: Path, persons: Persons) -> Path:
    """The folder of a complete run."""
    folder = tmp_path / "runs" / "first"
    write_run(folder)
    write_predicted(
        folder, "last.pt", persons, PckhScorer(persons, persons.extras["head_size"]), evaluation_of(persons)
    )
    return folder


def write_run(folder: Path, epochs: int = 3, **config: Any) -> None:
    folder.mkdir(parents=True)
    settings = {"epochs": epochs, "lr": 0.5, "size": [64, 64], "udp": False, "no_such_option": 3} | config
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    lines = []
    for epoch in range(1, epochs + 1):
        scores = {**SCORES, "Mean": 50 + epoch} if epoch > 1 else None
        line = {
            "epoch": epoch,
            "loss": 0.1 / epoch,
            "lr": 0.5,
            "samples_per_second": 100.0,
            "input_wait_fraction": 0.02,
        }
        lines.append(json.dumps(line | {"bad_images": 0, "pckh": scores}))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    change = {"epoch": 2, "step": 1, "option": "sigma", "was": 1.0, "now": 2.0}
    summary = {"pckh": SCORES, "epochs": epochs, "best": {"epoch": 2, "Mean": 63.5}, "samples_per_second": 98.7}
    summary |= {"input_wait_fraction": 0.015, "seconds": 75.0, "device": "cpu", "commit": "abc", "changes": [change]}
    (folder / "summary.json").write_text(json.dumps(summary | {"train_persons": 1000, "valid_persons": 10}))


def page_of(*words: str | Path) -> Page:
    assert report.main([str(word) for word in words]) == 0
    out = [Path(word) for word in words if str(word).endswith(".html")] or [Path(words[0]) / "index.html"]
    return check_page(out[0].read_text(encoding="utf-8"))


def test_a_complete_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = page_of(run)
    assert capsys.readouterr().out == f"wrote {run / 'index.html'}\n"
    assert page.text("h1") == ["first"]
    assert "PCKh@0.5 63.50 in epoch 2; in the end 61.25" in page.text("p")
    facts = {name: cells[0] for name, cells in page.rows("What it was").items()}
    assert facts["state"] == "complete"
    assert facts["epochs"] == "3 of 3"
    assert facts["time"] == "1m15s (75 s)"
    assert facts["samples/s"] == "98.7"
    assert facts["input wait"] == "1.5 % of the training time"
    assert (facts["device"], facts["commit"], facts["torch"]) == ("cpu", "abc", "unknown")
    assert page.text("code") == [f"fastpose train --recipe {run}/config.yaml --run {run}-again"]
    settings = page.rows("Settings that differ from their defaults")
    assert settings == {
        "epochs": ["3", "140"],
        "lr": ["0.5", "0.00025"],
        "size": ["64 64", "256 256"],
        "no_such_option": ["3", "no option of this version"],
    }
    assert page.rows("What changed when the run was resumed") == {"sigma": ["1.0", "2.0", "2", "1"]}
    assert list(page.rows("Epochs")["2"]) == ["0.050000", "52.00", "0.5", "100.0", "2.0"]
    assert not any("missing" in str(attributes.get("class")) for attributes in page.all("p"))


def test_joints_causes_and_calibration_are_those_of_the_predictions(run: Path) -> None:
    """Nine persons were read; the first has no joint right, and each lacks another joint."""
    page = page_of(run)
    joints = page.rows("Each joint over all persons")
    assert list(joints) == list(MPII.joints)
    assert joints["l_wrist"] == ["9", "88.9", "0.0"]  # annotated in all nine
    assert joints["r_ankle"] == ["8", "100.0", "0.0"]  # not in the first
    assert joints["r_hip"] == ["8", "87.5", "0.0"]  # not in the third
    causes = page.rows("All joints")
    assert (causes["good"][0], causes["miss"][0], causes["swap"][0]) == ("120", "15", "0")  # of 9 * 15
    shares = page.rows("Each joint, %")
    assert shares["l_wrist"] == ["9", "88.9", "0.0", "0.0", "0.0", "11.1"]
    bins = page.rows("Scores and right joints")
    assert bins["0.7 to 0.8"] == ["135", "0.750", "0.889"]
    assert bins["0.1 to 0.2"] == ["0", "–", "–"]
    assert any(
        "calibration error, the mean distance from it over all joints, is 0.139" in text for text in page.text("p")
    )
    within = page.rows("Share of joints by threshold")
    assert within["0.5"] == within["1"] == ["88.9"]
    assert any("of at most 0.5 of the head size (PCKh@0.5)" in text for text in page.text("p"))
    assert len(page.all("img")) == 9
    assert page.text("figcaption")[0].endswith("row 0: similarity 0.00, 15 joints: 15 miss")


def test_a_page_is_small_and_has_its_pictures_inside(run: Path) -> None:
    page_of(run)
    assert (run / "index.html").stat().st_size < 3_000_000


def test_an_interrupted_run(run: Path) -> None:
    for name in ("summary.json", "predictions.npz"):
        (run / name).unlink()
    (run / "best.pt").touch()
    page = page_of(run)
    said = [text for text, one in zip(page.text("p"), page.all("p"), strict=True) if one.get("class") == "missing"]
    assert said[0] == "The run is not complete: there is no summary.json."
    assert said[1].endswith(f"fastpose evaluate --checkpoint {run / 'best.pt'} writes it now.")
    assert "pckh Mean 53.00 in epoch 3; in the end 53.00" in page.text("p")
    facts = page.rows("What it was")
    assert (facts["state"], facts["epochs"]) == (["not complete"], ["3 of 3"])
    assert facts["samples/s"] == ["100.0"]
    assert not page.all("img")


@pytest.mark.parametrize("epochs", [1, 2])
def test_one_or_two_epochs_have_points(tmp_path: Path, epochs: int) -> None:
    write_run(tmp_path / "run", epochs)
    page = page_of(tmp_path / "run")
    marks = [one for one in page.all("circle") if "mark" in str(one.get("class"))]
    assert len(marks) == 2 * epochs + (epochs - 1)  # loss and learning rate, and a score from the second epoch on


def test_a_run_without_a_score_or_an_epoch(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    write_run(folder, 1)
    (folder / "metrics.jsonl").write_text("")
    (folder / "summary.json").unlink()
    page = page_of(folder)
    assert "metrics.jsonl has no line: the first epoch was not finished." in page.text("p")
    assert "No epoch has been finished, so there are no curves." in page.text("p")
    assert any(text.startswith("No score") for text in page.text("p"))


def test_what_is_torn_not_finite_or_older_is_left_out(run: Path) -> None:
    lines = ['{"epoch": 1, "loss": NaN, "lr": Infinity, "pckh": {"Mean": NaN}}', '{"epoch": 2, "loss": 0.5}', '{"epo']
    (run / "metrics.jsonl").write_text("\n".join([*lines, "[3]", "\0\0"]))
    (run / "summary.json").write_text('{"pckh": {"Mean": NaN}, "best": null, "changes": null}')
    (run / "config.yaml").write_text("")
    page = page_of(run)
    assert "Lines of metrics.jsonl that are torn: 2; they are left out." in page.text("p")
    assert "config.yaml has no settings, as after a power cut." in page.text("p")
    assert "They are not known." in page.text("p")
    assert page.rows("Epochs")["1"] == ["–"] * 5
    assert "No number to show." in page.text("p")


@pytest.mark.parametrize("odd", [None, [], {}, "<b>", 5, -1, True, [1], {"a": 1}, 10**30, {"Mean": {"a": 1}}], ids=str)
def test_values_of_another_type_are_left_out(run: Path, odd: Any) -> None:
    """In turns, in each place that a line of metrics.jsonl, the summary or the settings have."""
    for name in ("metrics.jsonl", "summary.json"):
        whole = (run / name).read_text()
        first, *others = whole.splitlines() if name == "metrics.jsonl" else [whole]
        for key in json.loads(first):
            (run / name).write_text("\n".join([json.dumps({**json.loads(first), key: odd}), *others]))
            assert page_of_numbers(run).text("h2")[0] == "The run"
        (run / name).write_text(whole)
    (run / "config.yaml").write_text(yaml.safe_dump(dict.fromkeys(("model", "epochs", "size"), odd)))
    assert page_of_numbers(run).text("h2")[0] == "The run"


def page_of_numbers(run: Path) -> Page:
    """Without pictures and causes, which take longer."""
    (run / "predictions.npz").unlink(missing_ok=True)
    page = page_of(run)
    assert not page.all("img")
    return page


def test_points_that_are_not_numbers_are_not_drawn(run: Path) -> None:
    with np.load(run / "predictions.npz") as packed:
        arrays = dict(packed)
    for name in ("keypoints", "predictions", "scores", "right", "half"):
        arrays[name].reshape(-1)[::5] = np.nan
        arrays[name].reshape(-1)[1::7] = np.inf
    np.savez(run / "predictions.npz", **arrays)
    page = page_of(run)
    assert page.all("img")
    for name in ("center", "scale"):
        np.savez(run / "predictions.npz", **{**arrays, name: np.full((10, 2), np.nan, np.float32)})
        with pytest.raises(ValueError, match="center, scale: expected finite numbers"):
            read_predicted(run)


@pytest.mark.parametrize("contents", [b"", b"PK\x05\x06", b"no archive" * 9, None])
def test_predictions_that_cannot_be_read_are_said(run: Path, contents: bytes | None) -> None:
    file = run / "predictions.npz"
    file.write_bytes(file.read_bytes()[:-40] if contents is None else contents)
    page = page_of(run)
    assert [text for text in page.text("p") if text.startswith(f"predictions.npz cannot be read: {file}: not what")]
    assert not page.all("img")


def test_predictions_of_other_shapes_are_refused(run: Path) -> None:
    with np.load(run / "predictions.npz") as packed:
        arrays = dict(packed)
    for name, array, expected in (
        ("scores", arrays["scores"][:, :3], r"scores: expected float32 \(10, 16\), got float32 \(10, 3\)"),
        ("row", arrays["row"].astype(float), "row: expected int64"),
        ("image_index", arrays["image_index"] + 1, "image_index: expected numbers below 4"),
        ("about", np.frombuffer(b'{"version": 2}', np.uint8), "expected version 1, got 2"),
        ("about", np.frombuffer(b'{"version": 1}', np.uint8), "it has no 'network'"),
    ):
        np.savez(run / "predictions.npz", **{**arrays, name: array})
        with pytest.raises(ValueError, match=expected):
            read_predicted(run)


def test_a_data_set_that_has_moved_away_costs_the_pictures_alone(run: Path, persons: Persons) -> None:
    predicted = read_predicted(run)
    images = [str(path).replace("tiny", "moved") for path in persons.image_paths]
    moved = dataclasses.replace(persons, image_paths=tuple(map(Path, images)))
    scorer = PckhScorer(moved, moved.extras["head_size"])
    write_predicted(run, "last.pt", moved, scorer, evaluation_of(moved))
    page = page_of(run)
    assert not page.all("img")
    assert [text for text in page.text("p") if text.startswith("Pictures are missing: ") and "moved" in text]
    assert len(page.text("figcaption")) == 9
    assert page.rows("All joints")["good"][0] == "120"
    assert len(predicted.images) == 4


def test_predictions_without_annotations_are_said_to_have_nothing_to_compare_with(run: Path, persons: Persons) -> None:
    bare = dataclasses.replace(persons, visible=np.zeros_like(persons.visible))
    write_predicted(run, "best.pt", bare, PckhScorer(bare, None), evaluation_of(bare))
    page = page_of(run)
    assert "Predictions of best.pt" in page.text("h2")
    assert [text for text in page.text("p") if "There is nothing to compare with" in text]
    assert diagnose(read_predicted(run)) is None


def test_what_a_stranger_wrote_is_escaped(tmp_path: Path, persons: Persons) -> None:
    evil = '<script>alert("1")</script>&'
    folder = tmp_path / evil.replace("/", "")
    write_run(folder, data_root=evil, **{evil: evil})
    lines = (folder / "metrics.jsonl").read_text().replace("pckh", "<b>")
    (folder / "metrics.jsonl").write_text(lines)
    summary = json.loads((folder / "summary.json").read_text())
    summary |= {"device": evil, "commit": evil, "changes": [{"option": evil, "was": evil, "now": evil}]}
    (folder / "summary.json").write_text(json.dumps(summary))
    joints = tuple(f"<i>{number}" for number in range(16))
    strange = dataclasses.replace(persons, skeleton=dataclasses.replace(MPII, joints=joints))
    write_predicted(folder, evil, strange, PckhScorer(strange, strange.extras["head_size"]), evaluation_of(strange))
    for name in ("config.yaml", "predictions.npz"):
        assert evil.partition("/")[0].encode() in (folder / name).read_bytes() or name != "config.yaml"
    shutil.copytree(folder, tmp_path / "second")
    for page in (page_of(folder), page_of(folder, tmp_path / "second", "--out", tmp_path / "two.html")):
        assert not page.all("b") + page.all("i") + page.all("script")
        assert "<i>3" in page.text("th")


def test_several_runs_side_by_side(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    second = run.parent / "second"
    shutil.copytree(run, second)
    (second / "config.yaml").write_text(
        (run / "config.yaml").read_text().replace("lr: 0.5", "lr: 0.25") + "flip: 0.5\n"
    )
    write_run(run.parent / "third")
    page = page_of(run, second, run.parent / "third", "--out", run.parent / "all.html")
    assert page.text("h1") == ["3 runs side by side"]
    assert page.rows("Settings that are not the same in all runs") == {
        "lr": ["0.5", "0.25", "0.5"],
        "flip": ["–", "0.5", "–"],
    }
    rows = page.rows("Runs")
    assert list(rows) == ["A: first", "B: second", "C: third"]
    assert rows["A: first"][:4] == ["PCKh@0.5", "63.50", "2", "61.25"]
    assert page.rows("Right, % of each joint")["l_wrist"] == ["88.9", "88.9"]
    assert page.rows("All joints of each run, %")["B: second"][:2] == ["135", "88.9"]
    lines = [str(one["class"]) for one in page.all("path") if str(one.get("class")).startswith("line")]
    assert {"line s0", "line s1", "line s2"} <= set(lines)
    assert [text for text in page.text("li")][:3] == ["A: first", "B: second", "C: third"]
    assert "C: third: There is no predictions.npz" in " ".join(page.text("p"))
    capsys.readouterr()
    assert report.main([str(run), str(second)]) == 0
    assert capsys.readouterr().out == f"wrote {run.parent / 'report.html'}\n"


def test_runs_of_different_scores_and_joints_are_not_compared(run: Path, tmp_path: Path) -> None:
    """The other one has two joints and an AP."""
    other = tmp_path / "other"
    write_run(other)
    for name in ("metrics.jsonl", "summary.json"):
        text = (other / name).read_text().replace("pckh", "coco").replace('"Mean"', '"AP"')
        (other / name).write_text(text)
    two = Skeleton("two", ("left", "right"), ((1, 0),), ((0, 1),), sigmas=(0.05, 0.05))
    kinds = {"image_id": np.array([7]), "box_score": np.ones(1, np.float32)}
    one = persons_of(np.full((1, 2, 2), 50.0), skeleton=two, extras=kinds)
    seen = Evaluation(one.keypoints, np.ones((1, 2), np.float32), np.ones(1, bool))
    write_predicted(other, "last.pt", one, ApScorer(one, None), seen)
    page = page_of(run, other, "--out", tmp_path / "both.html")
    for text in (
        "These runs have different scores, which cannot be compared.",
        "The runs count errors of different kinds as right, which are not set side by side.",
        "The runs have different joints, which are not set side by side.",
        "B: other: COCO's keypoint similarity, by the skeleton's sigmas and 0.53 of the box's area.",
    ):
        assert text in page.text("p")
    alone = page_of(other)
    assert "AP 63.50 in epoch 2; in the end 61.25" in alone.text("p")
    assert alone.rows("Share of joints by threshold")["0.95"] == ["100.0"]
    assert "Joints above a similarity" in alone.text("h3")


def test_lines_differ_in_dashes_and_marks_too(run: Path) -> None:
    page_of(run)
    style = "".join(Page((run / "index.html").read_text()).text("style"))
    dashes = [part.partition(";")[0] for part in style.split("stroke-dasharray: ")[1:]]
    assert len(dashes) == len(set(dashes)) == 6  # of five lines, the first has none, and of the ideal


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere: expected the folder of a run, got no folder"),
        (["."], "expected the folder of a run, got one without config.yaml and metrics.jsonl"),
    ],
)
def test_what_is_no_run_is_an_error(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert report.main(words) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_page_of_another_ending_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        report.main([str(run), "--out", "page.pdf"])
    assert "out: expected a name that ends in .html, got page.pdf" in capsys.readouterr().err


def test_persons_of_a_pack_are_on_the_picture_they_were_cut_from(tmp_path: Path, monkeypatch) -> None:
    """In a pack each person has an image of its own; a swap is between persons of one picture."""
    from fastpose.engine import predicted

    names = [Path(f"pack/valid/{row}/{name}.jpg") for row, name in enumerate("aba")]
    one = persons_of(np.zeros((3, 16, 2)), image_paths=tuple(names), image_index=[0, 1, 2])
    monkeypatch.setattr(predicted, "pack_of", lambda paths: (Path("pack"), "valid"))
    scores = np.zeros((3, 16), np.float32)
    seen = np.ones(3, bool)
    write_predicted(tmp_path, "last.pt", one, PckhScorer(one, np.ones(3)), Evaluation(one.keypoints, scores, seen))
    assert read_predicted(tmp_path).picture.tolist() == [0, 1, 0]


def test_training_and_evaluating_write_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(network, "pose_resnet", small_network)
    monkeypatch.setattr(drawing, "draw", draw_curves)
    recipe, run = write_recipe(tmp_path, epochs=1), tmp_path / "run"
    assert train.main(["--recipe", str(recipe), "--run", str(run)]) == 0
    assert capsys.readouterr().out.endswith(f"wrote {run / 'index.html'}\n")
    page = check_page((run / "index.html").read_text(encoding="utf-8"))
    assert "Predictions of last.pt" in page.text("h2")
    assert page.rows("What it was")["torch"] != ["unknown"]
    last = read_predicted(run)
    for name in ("index.html", "predictions.npz"):
        (run / name).unlink()

    assert evaluate.main(["--checkpoint", str(run), "--out", str(tmp_path / "elsewhere")]) == 0
    assert not any((folder / "index.html").exists() for folder in (run, tmp_path / "elsewhere"))
    assert evaluate.main(["--checkpoint", str(run)]) == 0
    page = check_page((run / "index.html").read_text(encoding="utf-8"))
    assert "Predictions of best.pt" in page.text("h2")
    np.testing.assert_array_equal(read_predicted(run).predictions, last.predictions)


def test_a_run_that_was_stopped_has_a_page_once_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "pose_resnet", small_network)
    monkeypatch.setattr(drawing, "draw", draw_curves)
    recipe, run = write_recipe(tmp_path, epochs=3), tmp_path / "run"
    start_and_stop(recipe, run, 7)
    assert not (run / "index.html").exists()
    assert page_of(run).rows("What it was")["state"] == ["not complete"]
    assert train.main(["--resume", str(run)]) == 0
    assert check_page((run / "index.html").read_text()).rows("What it was")["state"] == ["complete"]


def test_a_run_that_lost_its_page_alone_gets_it_when_it_goes_on(tmp_path: Path) -> None:
    """As where it was killed between its results and its page; one that has it stays as it is."""
    recipe, run = write_recipe(tmp_path, epochs=1), tmp_path / "run"
    assert train.main(["--recipe", str(recipe), "--run", str(run)]) == 0
    (run / "index.html").unlink()
    assert train.main(["--resume", str(run)]) == 0
    page = run / "index.html"
    assert "PCKh" in page.read_text()
    page.write_text("as it was")
    assert train.main(["--resume", str(run)]) == 0
    assert page.read_text() == "as it was"
