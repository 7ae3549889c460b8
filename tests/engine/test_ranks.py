# SPDX-License-Identifier: Apache-2.0
"""Several ranks: the same samples, losses and scores as one; what they do if one stops, fails, hangs or is killed."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch
import torch.distributed as dist
from torch import nn

from fastpose import evaluate, pack, train
from fastpose.data.augmentation import Augmentation
from fastpose.data.loader import Batch, PoseLoader
from fastpose.data.mpii import PckhScorer, read_mpii
from fastpose.data.pack import read_packed_persons
from fastpose.data.persons import Persons
from fastpose.data.pixels import ImageFiles, PackedImages, ResidentImages
from fastpose.device import ComputeOptions
from fastpose.engine import results as drawing
from fastpose.engine.evaluation import predict_all, scored
from fastpose.engine.run import Run
from fastpose.engine.step import TrainStep, uses_cuda_graph
from fastpose.models import network, pose_resnet
from fastpose.models.decoding import Decoder
from fastpose.option import OptionError
from fastpose.options.settings import Settings
from fastpose.ranks import RankLostError, Ranks, joined_ranks, lost_if_it_fails, report_lost
from fastpose.ranks.joining import meeting_place
from fastpose.ranks.ranks import last_of, within
from tests.helpers.ranks import RankProcesses, train_small
from tests.helpers.runs import results, write_recipe
from tests.helpers.settings import small_network
from tests.helpers.tiny_mpii import write_tiny_mpii

EVERYTHING = Augmentation(
    half_body=0.5,
    brightness=0.2,
    contrast=0.2,
    saturation=0.2,
    rotation_prob=0.6,
    scale_prob=0.7,
    augmentation_draw="truncnorm",
    shift=0.16,
    shift_prob=0.5,
    erase=0.5,
)


# --- samples


@pytest.fixture(scope="module")
def persons(tmp_path_factory):
    root = write_tiny_mpii(tmp_path_factory.mktemp("tiny"))
    return read_mpii(root / "annot" / "train.json", root / "images")


def loaders(persons, ranks: int, source=None, **options: Any) -> list[PoseLoader]:
    """A loader per rank; batches of 4 of 10 persons, so that parts are of unequal length and the last one is short."""
    options = {"augmentation": EVERYTHING, "seed": 3, "on_bad_image": "skip", "batch_size": 4} | options
    source = source or ImageFiles(persons.image_paths)
    return [PoseLoader(persons, source, (64, 64), ranks=Ranks(rank, ranks), **options) for rank in range(ranks)]


def joined(parts: list[list[Batch]]) -> dict[int, list[torch.Tensor]]:
    """By step what all ranks have made in it, in the order of the rows."""
    found: dict[int, list[Batch]] = {}
    for batch in (batch for part in parts for batch in part):
        found.setdefault(batch.step, []).append(batch)
    steps = {}
    for step, batches in found.items():
        columns = [
            torch.cat([getattr(batch, name) for batch in batches])
            for name in ("rows", "images", "keypoints", "visible", "heatmap_to_image")
        ]
        order = columns[0].argsort()
        steps[step] = [column[order] for column in columns]
    return steps


def assert_same_bits(one: dict[int, list[torch.Tensor]], other: dict[int, list[torch.Tensor]]) -> None:
    assert one.keys() == other.keys()
    for step, columns in one.items():
        for mine, theirs in zip(columns, other[step], strict=True):
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("by_image", [False, True])
def test_all_ranks_together_make_the_batches_of_one_to_the_bit(persons, ranks, by_image):
    (alone,) = loaders(persons, 1)
    parts = [list(loader.epoch(2)) for loader in loaders(persons, ranks, by_image=by_image)]
    assert_same_bits(joined(parts), joined([list(alone.epoch(2))]))
    assert [len(part) for part in parts] == [len(alone)] * ranks, "all ranks take part in each step"


@pytest.mark.parametrize("kind", ["raw", "jpeg"])
def test_a_pack_gives_each_rank_its_part(persons, tmp_path, kind):
    data, out = persons.image_paths[0].parents[1], tmp_path / "out"
    assert pack.main([str(data), str(out), "--size", "64", "64", "--format", kind, "--half_body", "0.5"]) == 0
    packed = read_packed_persons(out, "train")
    source = PackedImages(packed.image_paths)
    parts = [list(loader.epoch(1)) for loader in loaders(packed, 3, source)]
    (alone,) = loaders(packed, 1, source)
    assert_same_bits(joined(parts), joined([list(alone.epoch(1))]))


def test_the_parts_of_a_batch_differ_by_one_person_at_most_and_may_be_empty(persons):
    sizes = [[len(batch.rows) for batch in loader.epoch()] for loader in loaders(persons, 3)]
    assert sizes == [[2, 2, 1], [1, 1, 1], [1, 1, 0]]
    assert [loader.part_size for loader in loaders(persons, 3)] == [2, 1, 1]


@pytest.mark.parametrize("by_image", [False, True])
def test_whoever_is_left_out_for_a_bad_image_changes_nobody_else_s_sample(persons, tmp_path, by_image):
    root = write_tiny_mpii(tmp_path / "spoilt")
    spoilt = read_mpii(root / "annot" / "train.json", root / "images")
    spoilt.image_paths[1].write_bytes(b"not an image")
    parts = [list(loader.epoch(1)) for loader in loaders(spoilt, 3, by_image=by_image)]
    (alone,) = loaders(spoilt, 1)
    found = joined(parts)
    assert_same_bits(found, joined([list(alone.epoch(1))]))
    (whole,) = loaders(persons, 1)
    for step, (rows, images, *_) in joined([list(whole.epoch(1))]).items():
        good = torch.from_numpy(persons.image_index != 1)[rows]
        assert torch.equal(found[step][1], images[good]), "as if the image were good"


def test_ranks_that_keep_their_own_images_alone_make_the_same_batches(persons):
    sizes = np.array(
        [
            [*ImageFiles([path]).load(torch.zeros(1, dtype=torch.int64), torch.device("cpu")).images.sizes[0]]
            for path in persons.image_paths
        ]
    )
    names = [str(path) for path in persons.image_paths]
    made = []
    for rank, loader in enumerate(loaders(persons, 2, by_image=True)):
        kept = np.arange(len(sizes)) % 2 == rank
        loader.source = ResidentImages.from_source(ImageFiles(persons.image_paths), sizes, "cpu", names, kept=kept)
        made.append(list(loader.epoch()))
        assert len(loader.source.images.data) < 3 * sizes.prod(1).sum()
        with pytest.raises(ValueError, match="images: expected those that this rank keeps"):
            loader.source.load(torch.from_numpy(np.flatnonzero(~kept)), torch.device("cpu"))
    (alone,) = loaders(persons, 1)
    assert_same_bits(joined(made), joined([list(alone.epoch())]))


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_of_an_evaluation_each_batch_is_made_whole_by_one_rank(persons, ranks):
    (alone,) = loaders(persons, 1, augmentation=None)
    parts = [list(loader.epoch()) for loader in loaders(persons, ranks, augmentation=None)]
    assert_same_bits(joined(parts), joined([list(alone.epoch())]))
    assert [[batch.step for batch in part] for part in parts] == [list(range(3))[rank::ranks] for rank in range(ranks)]


def test_fewer_persons_in_a_batch_than_ranks_are_refused(persons):
    with pytest.raises(ValueError, match="batch_size: expected a person for each of 5 ranks, got 4"):
        loaders(persons, 5)


# --- runs


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("data"), size=[64, 64], batch_size=4, epochs=3, sync_batch_norm=True)


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def runs(recipe, tmp_path_factory) -> list[Path]:
    """The same run by one, two and three ranks."""
    folder = tmp_path_factory.mktemp("runs")
    started = [
        RankProcesses(folder / f"{n} ranks", n, train_small, "--recipe", str(recipe), "--run", str(folder / str(n)))
        for n in (1, 2, 3)
    ]
    for n, processes in enumerate(started, 1):
        assert processes.wait() == [0] * n, [processes.said(rank) for rank in range(n)]
        for rank in range(1, n):
            assert (processes.out(rank), processes.said(rank)) == ("", ""), "the first rank prints"
    return [folder / str(n) for n in (1, 2, 3)]


def test_any_number_of_ranks_has_the_losses_of_one(runs):
    """With batch normalisation over all of them. The sums of the gradients are rounded in another order."""
    alone, *others = map(lines, runs)
    for other in others:
        for mine, theirs in zip(alone, other, strict=True):
            assert theirs["loss"] == pytest.approx(mine["loss"], rel=1e-5)
    first, *rest = [torch.load(run / "last.pt", weights_only=True) for run in runs]
    assert [each["progress"]["ranks"] for each in (first, *rest)] == [1, 2, 3]
    for other in rest:
        assert other["progress"]["total_samples"] == first["progress"]["total_samples"] == 30
        for name, value in first["model"].items():
            torch.testing.assert_close(other["model"][name], value, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_gradients_are_clipped_by_their_norm_over_all_ranks(recipe, runs, tmp_path):
    clipped = []
    for ranks in (1, 2):
        words = ("--recipe", str(recipe), "--run", str(tmp_path / str(ranks)), "--clip_grad_norm", "0.001")
        processes = RankProcesses(tmp_path / f"{ranks} ranks", ranks, train_small, *words)
        assert processes.wait() == [0] * ranks, [processes.said(rank) for rank in range(ranks)]
        clipped.append([line["loss"] for line in lines(tmp_path / str(ranks))])
    assert clipped[1] == pytest.approx(clipped[0], rel=1e-5)
    assert clipped[0] != pytest.approx([line["loss"] for line in lines(runs[0])], rel=1e-3)


def test_any_number_of_ranks_has_the_predictions_and_scores_of_one_to_the_bit(persons, tmp_path):
    data = Path(persons.image_paths[0]).parents[1]
    for ranks in (1, 2, 3):
        processes = RankProcesses(
            tmp_path / str(ranks), ranks, evaluate_small, str(data), str(tmp_path / f"{ranks}.pt")
        )
        assert processes.wait() == [0] * ranks, [processes.said(rank) for rank in range(ranks)]
    alone, two, three = (torch.load(tmp_path / f"{ranks}.pt", weights_only=True) for ranks in (1, 2, 3))
    assert alone["seen"].all()
    assert_same_values(alone, two)
    assert_same_values(alone, three)


def assert_same_values(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one["values"] == other["values"]
    for name in ("predictions", "scores", "seen"):
        assert torch.equal(one[name], other[name])


def evaluate_small(data: str, out: str) -> int:
    """Writes what an evaluation finds, and its score."""
    persons = read_mpii(Path(data) / "annot" / "train.json", Path(data) / "images")
    settings = Settings()
    torch.manual_seed(0)
    model = small_network(18, "fcn", persons.skeleton.num_joints, channels=4)
    decoder = Decoder(model, persons.skeleton, settings.decode, settings.compute)
    with joined_ranks(os.environ) as ranks:
        ranks.begin(torch.device("cpu"), 60)
        loader = PoseLoader(persons, ImageFiles(persons.image_paths), (64, 64), 3, ranks=ranks)
        evaluation = predict_all(decoder, loader)
        assert evaluation is not None
        if ranks.first:
            values = scored(evaluation, PckhScorer(persons, np.full(len(persons), 10.0, np.float32))).values
            arrays = {name: torch.from_numpy(getattr(evaluation, name)) for name in ("predictions", "scores", "seen")}
            torch.save({"values": values, **arrays}, out)
    return 0


@pytest.mark.slow
def test_resident_images_and_pictures_are_those_of_one(recipe, runs, tmp_path):
    run = tmp_path / "run"
    words = ("train", "--recipe", str(recipe), "--run", str(run), "--resident", "true", "--eval_batch_size", "2")
    processes = RankProcesses(tmp_path / "ranks", 3, command_small, *words)
    assert processes.wait() == [0] * 3, [processes.said(rank) for rank in range(3)]
    assert "resident: each of the 3 ranks keeps all 4 training images" in processes.said(0)
    for mine, theirs in zip(lines(runs[0]), lines(run), strict=True):
        assert theirs["loss"] == pytest.approx(mine["loss"], rel=1e-5)
    for name in ("curves.png", "predictions.png", "heatmaps.png"):
        assert (run / name).stat().st_size > 1000


def with_little_memory(*words: str) -> int:
    """A command on a machine that says it has memory for half of the training images."""
    from fastpose.data.pixels import open as opening
    from fastpose.data.pixels import resident

    needed = opening.bytes_at_peak
    opening.free_bytes = lambda device: 3 * 100_000
    opening.bytes_at_peak = lambda sizes: 100_001
    assert needed is resident.bytes_at_peak
    return command_small(*words)


@pytest.mark.slow
def test_images_that_do_not_fit_are_shared(recipe, runs, tmp_path):
    run = tmp_path / "run"
    words = ("train", "--recipe", str(recipe), "--run", str(run), "--resident", "true")
    processes = RankProcesses(tmp_path / "ranks", 3, with_little_memory, *words)
    assert processes.wait() == [0] * 3, [processes.said(rank) for rank in range(3)]
    assert (
        "resident: each of the 3 ranks keeps a share of the 4 training images: all of them take 100,001 bytes"
        in processes.said(0)
    )
    for mine, theirs in zip(lines(runs[0]), lines(run), strict=True):
        assert theirs["loss"] == pytest.approx(mine["loss"], rel=1e-5)


def test_evaluate_writes_the_same_by_any_number_of_ranks(recipe, runs, tmp_path):
    written = []
    for ranks in (1, 3):
        out = tmp_path / str(ranks)
        words = ("--checkpoint", str(runs[0] / "last.pt"), "--out", str(out), "--eval_batch_size", "3")
        processes = RankProcesses(tmp_path / f"{ranks} ranks", ranks, command_small, "evaluate", *words)
        assert processes.wait() == [0] * ranks, [processes.said(rank) for rank in range(ranks)]
        assert [processes.out(rank) for rank in range(1, ranks)] == [""] * (ranks - 1)
        written.append((out / "scores.json").read_text())
    assert written[0] == written[1]
    mine, theirs = (scipy.io.loadmat(tmp_path / ranks / "pred.mat")["preds"] for ranks in ("1", "3"))
    np.testing.assert_array_equal(mine, theirs)


def test_a_wrong_option_is_reported_once(recipe, tmp_path):
    for command in ("train", "evaluate"):
        processes = RankProcesses(tmp_path / command, 2, command_small, command, "--nonsense", "1")
        assert processes.wait()[0] == 2
        assert "nonsense" in processes.said(0)
        assert "nonsense" not in processes.said(1)


@pytest.mark.slow
def test_what_a_network_draws_itself_does_not_depend_on_interruptions(recipe, tmp_path):
    """Dropout, for one. Each rank draws for itself."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    words = ("--recipe", str(recipe))
    assert RankProcesses(tmp_path / "1", 2, drawing_network, "0", *words, "--run", str(whole)).wait() == [0, 0]
    assert RankProcesses(tmp_path / "2", 2, drawing_network, "4", *words, "--run", str(cut)).wait() == [143, 143]
    assert RankProcesses(tmp_path / "3", 2, drawing_network, "0", "--resume", str(cut)).wait() == [0, 0]
    for mine, theirs in zip(trained(whole), trained(cut), strict=True):
        assert mine == theirs
    drawn = [(tmp_path / "1" / f"{rank}.err").read_text().count("drew") for rank in range(2)]
    assert drawn[0] == drawn[1] > 0
    first, second = (
        {line for line in (tmp_path / "1" / f"{n}.err").read_text().split("\n") if "drew" in line} for n in (0, 1)
    )
    assert len(first) == drawn[0], "each step draws other numbers"
    assert not first & second, "and so does each rank"


class Drawing(nn.Module):
    """Dropout that says what it draws, except in rehearsals."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return maps
        kept = torch.rand(maps.shape[1])
        if maps.abs().sum() > 0 and not torch.equal(maps[:1].expand_as(maps), maps):
            print("drew", kept[:2].tolist(), file=sys.stderr)
        return maps * (kept > 0.2).view(1, -1, 1, 1)


def drawing_network(steps: str, *words: str) -> int:
    """`stopped_after`, with a network that drops channels."""

    def make(depth: int, head: str, num_joints: int, *, channels: int) -> nn.Module:
        return nn.Sequential(small_network(depth, head, num_joints, channels=channels), Drawing())

    return at_step(int(steps), lambda: os.kill(os.getpid(), signal.SIGTERM), *words, make=make)


def command_small(command: str, *words: str) -> int:
    """A command with the network of `train_small`."""
    network.pose_resnet = small_network
    return {"train": train, "evaluate": evaluate}[command].main(list(words))


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [("--compile", "true"), ("--channels_last", "on"), ("--optimizer", "adamw"), ("--foreach", "on")],
    ids=lambda words: words[0],
)
def test_options_of_the_step_work_with_several_ranks(recipe, tmp_path, words):
    found = []
    for ranks in (1, 2):
        run = tmp_path / str(ranks)
        all_words = ("train", "--recipe", str(recipe), "--run", str(run), *words)
        processes = RankProcesses(tmp_path / f"{ranks} ranks", ranks, compiled_at_once, *all_words)
        assert processes.wait() == [0] * ranks, [processes.said(rank) for rank in range(ranks)]
        found.append([line["loss"] for line in lines(run)])
    assert found[1] == pytest.approx(found[0], rel=1e-4)


def compiled_at_once(*words: str) -> int:
    """A command for which torch.compile traces and generates no code, which would take a minute."""
    drawing.draw = lambda *arguments: None
    torch.compile = functools.partial(torch.compile, backend="eager")
    return command_small(*words)


def test_a_cuda_graph_of_several_ranks_is_refused_and_not_chosen():
    model = nn.Conv2d(3, 3, 1)
    optimizer = torch.optim.Adam(model.parameters())
    cuda = torch.device("cuda")
    with pytest.raises(OptionError, match="cuda_graph: on: the step of 2 ranks cannot be captured"):
        uses_cuda_graph(ComputeOptions(cuda_graph="on"), model, optimizer, cuda, Ranks(0, 2))
    with torch.device("meta"):
        ours = pose_resnet(18, "fcn", 16, channels=4)
    assert uses_cuda_graph(ComputeOptions(), ours, optimizer, cuda)
    assert not uses_cuda_graph(ComputeOptions(), ours, optimizer, cuda, Ranks(0, 2))


@pytest.mark.parametrize("name", ["cuda:1", "mps"])
def test_ranks_choose_their_own_devices(name):
    assert Ranks(0, 2).own(torch.device("cpu")) == torch.device("cpu")
    with pytest.raises(OptionError, match=f"device: expected auto, cpu or cuda for 2 ranks, got {name}"):
        Ranks(0, 2).own(torch.device(name))


def test_each_rank_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    with pytest.raises(OptionError, match="device: 4 ranks on this machine need a GPU each, and it has 3"):
        Ranks(1, 8, 1, 4).own(torch.device("cuda"))
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert Ranks(5, 6, 2, 3).own(torch.device("cuda")) == torch.device("cuda:2")
    assert chosen == [torch.device("cuda:2")]


def test_the_number_of_ranks_may_change_within_an_epoch(recipe, runs, tmp_path):
    """Two ranks stop in the middle of an epoch; three go on with the same persons."""
    run = tmp_path / "run"
    two = RankProcesses(tmp_path / "2", 2, stopped_after, "4", "--recipe", str(recipe), "--run", str(run))
    assert two.wait() == [143, 143], (two.said(0), two.said(1))
    assert "stopped by SIGTERM in epoch 2 after step 1" in two.said(0), two.said(0)
    assert f"to go on: torchrun --nproc-per-node 2 -m fastpose.train -- --resume {run}" in two.said(0)
    three = RankProcesses(tmp_path / "3", 3, train_small, "--resume", str(run))
    assert three.wait() == [0] * 3, three.said(0)
    assert "the number of ranks was 2, now 3" in three.said(0)
    for mine, theirs in zip(lines(runs[0]), lines(run), strict=True):
        assert theirs["loss"] == pytest.approx(mine["loss"], rel=1e-5)
    (change,) = json.loads((run / "summary.json").read_text())["changes"]
    assert change == {"epoch": 2, "step": 1, "option": "the number of ranks", "was": 2, "now": 3}


def stopped_after(steps: str, *words: str) -> int:
    """`train_small`; the second rank alone gets a SIGTERM in its step number `steps`."""
    return at_step(int(steps), lambda: os.kill(os.getpid(), signal.SIGTERM), *words)


def at_step(steps: int, what: Any, *words: str, rank: str = "1", work: Any = train_small, **more: Any) -> int:
    done, call = [0], TrainStep.__call__

    def counted(self: TrainStep, *arguments: Any) -> torch.Tensor:
        done[0] += 1
        if done[0] == steps and os.environ["RANK"] == rank:
            what()
        return call(self, *arguments)

    TrainStep.__call__ = counted  # type: ignore[method-assign]
    return work(*words, **more)


def killed_at(steps: str, rank: str, *words: str) -> int:
    return at_step(int(steps), lambda: os.kill(os.getpid(), signal.SIGKILL), *words, rank=rank)


def trained(run: Path) -> list[Any]:
    """What a run has come to, without the settings that it was resumed with."""
    found = results(run)
    states = [found[name][part] for name in ("last.pt", "best.pt") for part in ("model", "optimizer", "learning_rate")]
    return [*states, found["metrics.jsonl"]]


@pytest.mark.parametrize(("ranks", "killed"), [pytest.param(2, 1, marks=pytest.mark.slow), (3, 0)])
def test_a_rank_that_is_killed_ends_the_run_which_then_goes_on_to_the_same_bits(recipe, runs, tmp_path, ranks, killed):
    run = tmp_path / "run"
    words = ("--recipe", str(recipe), "--run", str(run), "--checkpoint_minutes", "1e-9")
    first = RankProcesses(tmp_path / "killed", ranks, killed_at, "5", str(killed), *words)
    codes = first.wait()
    assert codes == [-9 if rank == killed else 1 for rank in range(ranks)], [first.said(n) for n in range(ranks)]
    said = [first.said(rank) for rank in range(ranks) if rank != killed]
    assert sum(f"error: rank {killed} of {ranks} has ended or does not answer" in text for text in said) == 1, said
    again = RankProcesses(tmp_path / "again", ranks, train_small, "--resume", str(run), "--checkpoint_minutes", "10")
    assert again.wait() == [0] * ranks, again.said(0)
    assert "after step 1" in again.said(0), "the checkpoint within the epoch"
    for mine, theirs in zip(trained(run), trained(runs[ranks - 1]), strict=True):
        assert mine == theirs


def test_a_rank_s_error_ends_all_of_them_and_costs_nothing(recipe, runs, tmp_path):
    data = write_tiny_mpii(tmp_path / "data")
    persons = read_mpii(data / "annot" / "train.json", data / "images")
    whole = persons.image_paths[2].read_bytes()
    persons.image_paths[2].write_bytes(whole[:200])
    run = tmp_path / "run"
    words = ("--recipe", str(recipe), "--data_root", str(data))
    bad = RankProcesses(tmp_path / "bad", 3, train_small, *words, "--run", str(run))
    assert bad.wait() == [1] * 3
    said = "".join(bad.said(rank) for rank in range(3))
    assert said.count("002.jpg") == 1, said
    assert re.search(r"^(rank [12]: )?error: .*002\.jpg", said, re.M), said
    assert f"to go on after mending this: torchrun --nproc-per-node 3 -m fastpose.train -- --resume {run}" in bad.said(
        0
    )
    persons.image_paths[2].write_bytes(whole)
    again = RankProcesses(tmp_path / "again", 3, train_small, "--resume", str(run))
    assert again.wait() == [0] * 3, again.said(0)
    for mine, theirs in zip(lines(runs[2]), lines(run), strict=True):
        assert theirs["loss"] == mine["loss"]


@pytest.mark.slow
def test_ranks_know_each_other_s_bad_images(recipe, tmp_path):
    data = write_tiny_mpii(tmp_path / "data")
    persons = read_mpii(data / "annot" / "train.json", data / "images")
    persons.image_paths[1].write_bytes(b"")
    common = ("--recipe", str(recipe), "--data_root", str(data), "--on_bad_image", "skip", "--epochs", "2")
    found = []
    for ranks in (1, 3):
        run = tmp_path / str(ranks)
        processes = RankProcesses(tmp_path / f"{ranks} ranks", ranks, train_small, *common, "--run", str(run))
        assert processes.wait() == [0] * ranks, processes.said(0)
        found.append((lines(run), json.loads((run / "summary.json").read_text())))
    (alone, summary), (together, of_ranks) = found
    assert summary["bad_images"] == of_ranks["bad_images"] != []
    assert summary["skipped_persons"] == of_ranks["skipped_persons"] > 0
    for mine, theirs in zip(alone, together, strict=True):
        assert theirs["loss"] == pytest.approx(mine["loss"], rel=1e-5)
        assert theirs["bad_images"] == mine["bad_images"]


def stuck(*words: str) -> int:
    return at_step(3, lambda: time.sleep(1000), *words)


def stuck_in_torch(*words: str) -> int:
    """As a rank may be that waits for others."""
    return at_step(3, lambda: torch.futures.wait_all([torch.futures.Future()]), "1", *words, work=sooner)


@pytest.mark.slow
@pytest.mark.parametrize(("work", "where"), [(stuck, "in at_step"), (stuck_in_torch, "in wait_all")])
def test_a_rank_that_is_stuck_says_where_and_ends_the_run(recipe, tmp_path, work, where):
    words = ("--recipe", str(recipe), "--run", str(tmp_path / "run"), "--rank_timeout", "2")
    processes = RankProcesses(tmp_path / "ranks", 3, work, *words)
    assert processes.wait() == [1, 1, 1]
    assert "rank 1 of 3: error: stuck: no step for 2 s (--rank_timeout)" in processes.said(1)
    assert where in processes.said(1)
    assert "error: rank 1 of 3 has ended or does not answer" in processes.said(0)
    for other in (0, 2):
        assert "error: stuck" not in processes.said(other), "it waits for the first"


def frozen_in_step(rank: str, *words: str) -> int:
    return at_step(3, lambda: os.kill(os.getpid(), signal.SIGSTOP), "1", *words, rank=rank, work=sooner)


def frozen_at_any_time(rank: str, *words: str) -> int:
    return sooner("1", *words)


@pytest.mark.slow
@pytest.mark.parametrize(("work", "frozen"), [(frozen_in_step, 2), (frozen_at_any_time, 2), (frozen_in_step, 0)])
def test_a_rank_that_is_frozen_ends_the_run(recipe, tmp_path, work, frozen):
    """The others may be waiting in the middle of a step, or between two. If it is the first, whom they ask about the
    others is frozen, too."""
    run = tmp_path / "run"
    words = (str(frozen), "--recipe", str(recipe), "--run", str(run), "--epochs", "1000", "--rank_timeout", "5")
    processes = RankProcesses(tmp_path / "ranks", 3, work, *words)
    left = [rank for rank in range(3) if rank != frozen]
    try:
        if work is frozen_at_any_time:
            processes.wait_for(lambda: (run / "metrics.jsonl").exists())
            processes.kill(frozen, signal.SIGSTOP)
        for rank in left:
            processes.ranks[rank].join(60)
    finally:
        processes.kill(frozen)
    assert processes.wait() == [-9 if rank == frozen else 1 for rank in range(3)], [processes.printed(n) for n in left]
    assert f"error: rank {frozen} of 3 has ended or does not answer" in processes.said(left[0])
    assert processes.said(left[1]) == ""


@pytest.mark.slow
def test_of_many_ranks_only_the_one_that_is_killed_is_said_to_be_lost(recipe, tmp_path):
    """Its neighbours notice at once, the others later."""
    words = ("3", "1", "--recipe", str(recipe), "--run", str(tmp_path / "run"))
    processes = RankProcesses(tmp_path / "ranks", 4, killed_at, *words)
    assert processes.wait() == [1, -9, 1, 1], [processes.said(rank) for rank in range(4)]
    said = "".join(processes.said(rank) for rank in range(4))
    assert said.count("has ended or does not answer") == 1, said
    assert "error: rank 1 of 4 has ended or does not answer" in said


def test_a_call_that_does_not_return_is_a_lost_rank(python_s_signals):
    def interrupted() -> int:
        time.sleep(0.3)  # until the other thread waits
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.3)
        return 3

    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 // 0)
    with pytest.raises(KeyboardInterrupt):
        within(5, interrupted)
    assert within(5, interrupted, stoppable=False) == 3
    with pytest.raises(RankLostError, match=r"^the first rank has not answered for 0\.1 s$"):
        within(0.1, lambda: time.sleep(1))


def test_what_gloo_raises_is_a_lost_rank():
    """Also what it says without a place, to one of several that wait when another's time is over."""
    with (
        pytest.raises(RankLostError, match=r"^Timed out waiting 6000ms for recv$"),
        lost_if_it_fails(),
    ):
        raise RuntimeError("[/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 6000ms for recv")
    with pytest.raises(RankLostError, match=r"^Application timeout caused pair closure$"), lost_if_it_fails():
        raise RuntimeError("Application timeout caused pair closure")
    with pytest.raises(RuntimeError, match=r"^out of memory$"), lost_if_it_fails():
        raise RuntimeError("out of memory")


@pytest.mark.parametrize(
    ("begun", "last"), [({0: 3, 1: 3}, set()), ({0: 4, 1: 3}, {1}), ({0: 3, 1: 4, 2: 3}, {0, 2}), ({1: 5}, set())]
)
def test_the_last_ranks_have_begun_the_fewest_collectives(begun, last):
    assert last_of(begun) == last


def sooner(seconds: str, *words: str) -> int:
    """`train_small`, where the others wait `seconds` more for one that is stuck, and not so long for answers."""
    from fastpose.ranks import alive
    from fastpose.ranks import ranks as module

    alive.LONGER_SECONDS = module.LONGER_SECONDS = int(seconds)
    module.ROLL_CALL_SECONDS = 3
    return train_small(*words)


def test_a_dry_run_says_whose_batch_it_is(recipe, tmp_path):
    processes = RankProcesses(tmp_path / "ranks", 3, train_small, "--recipe", str(recipe), "--dry_run")
    assert processes.wait() == [0] * 3, [processes.said(n) for n in range(3)]
    assert (
        "3 ranks: a batch of 4 persons is that of all of them, 2 here; the learning rate does not depend"
        in processes.out()
    )


def test_a_second_run_in_the_folder_is_refused_to_all_its_ranks(recipe, tmp_path):
    run = tmp_path / "run"
    words = ("--recipe", str(recipe), "--run", str(run), "--epochs", "1000")
    first = RankProcesses(tmp_path / "first", 2, train_small, *words)
    first.wait_for(lambda: (run / "last.pt").exists())
    second = RankProcesses(tmp_path / "second", 2, train_small, "--resume", str(run))
    codes = second.wait()
    assert codes[0] == 1
    assert codes[1] != 0
    assert f"error: {run}: another process is training in it" in second.said(0)
    first.kill(0, signal.SIGTERM)
    assert first.wait() == [143, 143]


def killed_before_the_first_step(*words: str) -> int:
    """`train_small`; the second rank dies where the network is about to be connected."""
    if os.environ["RANK"] == "1":
        Ranks.replicated = lambda *arguments, **named: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
        Ranks.with_sync_batch_norm = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
    return train_small(*words)


@pytest.mark.slow
def test_a_rank_that_is_killed_before_the_first_step_is_no_traceback_in_the_others(recipe, tmp_path):
    words = ("--recipe", str(recipe), "--run", str(tmp_path / "run"))
    processes = RankProcesses(tmp_path / "ranks", 3, killed_before_the_first_step, *words)
    assert processes.wait() == [1, -9, 1], [processes.said(rank) for rank in (0, 2)]


# --- torchrun's environment


def own_part(table: dist.Store, rank: int, count: int) -> dist.Store:
    return dist.PrefixStore(meeting_place(table, rank, count), table)


@pytest.mark.parametrize("count", [2, 5])
def test_ranks_that_are_started_again_do_not_read_what_earlier_ones_wrote_into_torchrun_s_table(count):
    table = dist.HashStore()
    found = []
    for _ in range(3):
        with ThreadPoolExecutor(count) as threads:
            parts = list(threads.map(lambda rank: own_part(table, rank, count), range(count)))
        for rank, part in enumerate(parts):
            part.set(f"key {rank}", f"of start {len(found)}")
        assert all(part.check([f"key {rank}"]) for part in parts for rank in range(count))
        found.append(parts[0])
    with ThreadPoolExecutor(2) as threads:  # fewer, as in an elastic job
        parts = list(threads.map(lambda rank: own_part(table, rank, 2), range(2)))
    assert not any(part.check(["key 0"]) for part in parts)
    assert [part.get("key 0") for part in found] == [b"of start 0", b"of start 1", b"of start 2"]


TORCHRUN = {
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "1",
}


@pytest.mark.parametrize("missing", sorted(TORCHRUN.keys() - {"RANK", "WORLD_SIZE"}))
def test_an_incomplete_environment_of_torchrun_is_refused(missing):
    environment = {name: value for name, value in TORCHRUN.items() if name != missing}
    with (
        pytest.raises(ValueError, match=f"RANK is 1 of WORLD_SIZE 2, and {missing} is missing"),
        joined_ranks(environment),
    ):
        pass


@pytest.mark.parametrize("changes", [{"RANK": "2"}, {"LOCAL_RANK": "-1"}, {"LOCAL_WORLD_SIZE": "3"}, {"RANK": "one"}])
def test_impossible_numbers_of_ranks_are_refused(changes):
    with pytest.raises(ValueError, match="expected numbers of ranks, got RANK"), joined_ranks(TORCHRUN | changes):
        pass


@pytest.mark.parametrize(
    "environment", [{}, {"WORLD_SIZE": "4"}, {"RANK": "0", "WORLD_SIZE": "1"}, {"RANK": "0", "WORLD_SIZE": "many"}]
)
def test_a_process_by_itself_is_no_rank(environment):
    with joined_ranks(environment) as ranks:
        assert (ranks.count, ranks.first) == (1, True)


class Store(dict):
    """A table of torchrun's agents, of this process alone."""

    def set(self, key: str, value: str) -> None:
        self[key] = value.encode()

    def check(self, keys: list[str]) -> bool:
        return all(key in self for key in keys)


def test_a_command_that_torchrun_starts_again_goes_on_with_its_own_run_alone(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(network, "pose_resnet", small_network)
    monkeypatch.setattr(drawing, "draw", lambda *arguments: None)
    launch, others = Store(), Store()

    def start(store: Store, *words: str) -> int:
        ranks = Ranks()
        ranks.launch = store
        monkeypatch.setattr(train, "joined_ranks", lambda environment: nullcontext(ranks))
        capsys.readouterr()
        return train.main(["--recipe", str(recipe), "--run", str(tmp_path / "run"), "--sigma", "2", "--epochs", *words])

    assert start(launch, "1") == 0
    assert start(launch, "1") == 0
    assert "nothing is left to do" in capsys.readouterr().out
    assert start(others, "1") == 1, "of another torchrun"
    assert "exists and is not empty" in capsys.readouterr().err
    (tmp_path / "run" / "summary.json").unlink()
    assert start(launch, "1") == 0
    assert "going on from" in capsys.readouterr().err
    assert start(launch, "7") == 1, "another command of this torchrun"


def test_before_its_folder_has_anything_a_command_that_is_started_again_begins_again(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(network, "pose_resnet", small_network)
    monkeypatch.setattr(drawing, "draw", lambda *arguments: None)
    ranks = Ranks()
    ranks.launch = Store()
    monkeypatch.setattr(train, "joined_ranks", lambda environment: nullcontext(ranks))
    monkeypatch.setattr(Run, "train", lambda run: 1)  # killed before it has written anything
    assert train.main(["--recipe", str(recipe), "--run", str(tmp_path / "run"), "--epochs", "1"]) == 1
    monkeypatch.undo()
    monkeypatch.setattr(network, "pose_resnet", small_network)
    monkeypatch.setattr(drawing, "draw", lambda *arguments: None)
    monkeypatch.setattr(train, "joined_ranks", lambda environment: nullcontext(ranks))
    assert train.main(["--recipe", str(recipe), "--run", str(tmp_path / "run"), "--epochs", "1"]) == 0
    assert (tmp_path / "run" / "summary.json").exists()


def lost_in_stocktaking(*words: str) -> int:
    if os.environ["RANK"] == "1":
        Ranks.total = lambda ranks, tensor: os._exit(7)  # type: ignore[assignment, method-assign]
    return train_small(*words)


@pytest.mark.slow
def test_losses_that_are_lost_with_a_rank_are_not_saved_as_if_they_were_known(recipe, tmp_path):
    run = tmp_path / "run"
    words = ("--recipe", str(recipe), "--run", str(run), "--log_every", "1000")
    processes = RankProcesses(tmp_path / "ranks", 2, lost_in_stocktaking, *words)
    assert processes.wait() == [1, 7]
    assert not (run / "last.pt").exists()


def with_other_persons(*words: str) -> int:
    """A command whose second rank has other persons."""
    if os.environ["RANK"] == "1":
        Persons.fingerprint = lambda persons: "other"  # type: ignore[method-assign]
    return command_small(*words)


def test_ranks_with_other_persons_are_refused(recipe, runs, tmp_path):
    train_words = ("train", "--recipe", str(recipe), "--run", str(tmp_path / "run"))
    for words in (train_words, ("evaluate", "--checkpoint", str(runs[0]), "--out", str(tmp_path / "out"))):
        processes = RankProcesses(tmp_path / words[0], 2, with_other_persons, *words)
        assert processes.wait() == [1, 1], [processes.said(rank) for rank in range(2)]
        assert "error: the " in processes.said(1)
        assert "persons of this rank are not those of the first one: expected" in processes.said(1)
    assert not (tmp_path / "run").exists()


def soon_alone(*words: str) -> int:
    from fastpose.ranks import joining

    joining.ALONE_SECONDS = 1
    return train_small(*words)


def test_a_process_that_torchrun_has_left_behind_trains_by_itself(recipe, tmp_path):
    gone = TORCHRUN | {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    gone |= {"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    processes = RankProcesses(tmp_path, 1, soon_alone, "--recipe", str(recipe), "--dry_run", environment=gone)
    assert processes.wait() == [0], processes.said(0)


@pytest.mark.parametrize("name", ["SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"])
def test_copies_that_are_no_ranks_are_refused(recipe, tmp_path, monkeypatch, capsys, name):
    monkeypatch.setenv(name, "4")
    assert train.main(["--recipe", str(recipe), "--run", str(tmp_path / "run")]) == 1
    assert f"error: {name} is 4: each of them would train the whole run" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def leave_early(rank: str) -> int:
    with joined_ranks(os.environ) as ranks:
        if ranks.rank == int(rank):
            raise SystemExit(3)
        try:
            ranks.same(lambda: 1)
        except RankLostError as error:
            return report_lost(error, ranks)
    return 0


@pytest.mark.parametrize("left", [0, 1, 2])
def test_a_rank_that_leaves_before_the_training_is_not_waited_for(tmp_path, left):
    processes = RankProcesses(tmp_path, 3, leave_early, str(left))
    codes = processes.wait()
    assert codes == [3 if rank == left else 1 for rank in range(3)], [processes.said(rank) for rank in range(3)]
    if left:  # it has the store, and may be gone with it
        said = "".join(processes.said(rank) for rank in range(3))
        assert said.count(f"error: rank {left} of 3 has ended") == 1, said


@pytest.mark.slow
def test_a_rank_that_is_killed_before_the_training_is_not_waited_for(tmp_path):
    processes = RankProcesses(tmp_path, 2, wait_for_the_other)
    processes.wait_for(lambda: "joined" in processes.said(1))
    processes.kill(1)
    assert processes.wait() == [1, -9]
    assert "error: rank 1 of 2 has ended" in processes.said(0)


def wait_for_the_other() -> int:
    from fastpose.ranks import alive
    from fastpose.ranks import ranks as module

    alive.BEAT_SECONDS, module.LOST_SECONDS = 1, 4
    with joined_ranks(os.environ) as ranks:
        if ranks.rank == 1:
            print("joined", file=sys.stderr)
            time.sleep(1000)
        try:
            ranks.same(lambda: 1)
        except RankLostError as error:
            return report_lost(error, ranks)
    return 0


def test_help_is_printed_once_and_waits_for_nobody(tmp_path):
    for command in ("train", "evaluate"):
        processes = RankProcesses(tmp_path / command, 2, command_small, command, "--help")
        assert processes.wait() == [0, 0]
        assert "usage: fastpose " in processes.out()
        assert processes.out(1) == ""
