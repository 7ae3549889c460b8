# SPDX-License-Identifier: Apache-2.0
"""`python -m fastpose.train`: trains a network and tells its score. Without arguments it is the synthetic recipe."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastpose import drawing
from fastpose.build import (
    as_packed,
    check_batches,
    check_scorable,
    describe,
    generate_missing_data,
    make_loader,
    make_model,
    network_name,
    read_split,
    skeleton_of,
    with_color_order,
)
from fastpose.checkpoint import CheckpointError, load_latest, previous_path, save_checkpoint
from fastpose.config import (
    BEFORE,
    DEFAULT_RECIPE,
    TrainOptions,
    find_recipe,
    make_parser,
    parse,
    recipes,
    underscored,
    write_yaml,
)
from fastpose.data.images import BadImageError
from fastpose.data.loader import Batch, PoseLoader
from fastpose.data.packed import PackError
from fastpose.engine import (
    Evaluation,
    LearningRate,
    NotFiniteError,
    Progress,
    StopSignals,
    best_seen_person,
    check_finite,
    choose_device,
    evaluate,
    make_optimizer,
    person_heatmaps,
    predict,
    train_one_epoch,
)
from fastpose.report import (
    EvaluationReport,
    Report,
    append_line,
    code_version,
    format_scores,
    read_lines,
    scores_entry,
    write_json,
)
from fastpose.step import TrainStep, require_cuda

DESCRIPTION = """Train a pose network. Values come from the command line, else from the recipe, else from the defaults
shown here, which are the paper's settings; without --recipe that is the recipe synthetic_resnet18_fcn_128, not these
defaults. Recipes that come with fastpose: """


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 when the run is complete, 1 after an error, 128 + signal number when it was stopped."""
    parser = make_parser("fastpose train", DESCRIPTION + ", ".join(recipes()), TrainOptions)
    parser.add_argument(
        "--recipe", action="config", help=f"YAML file of options, or a recipe's name (default: {DEFAULT_RECIPE})"
    )
    parser.add_argument("--run", type=str, default="", help="folder to write to; empty: runs/RECIPE-TIME")
    parser.add_argument(
        "--resume",
        type=str,
        default="",
        help="folder (or last.pt) of a run to go on with; further options override its own",
    )
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="build everything, train one step, evaluate one batch, print shapes, memory and speed, and end without "
        "writing a run folder",
    )
    try:
        words, recipe, resume = with_recipe(sys.argv[1:] if argv is None else argv)
        options, values = parse(parser, TrainOptions, words, recipe)
        root = options.resolved_data_root()
        print(f"{f'run {resume}' if resume else f'recipe {recipe.stem}'}, data root {root}", flush=True)
        if resume:
            run = Run(options, Path(resume), resume=True)
            return run.dry_run() if values["dry_run"] else run.train()
        folder = Path(values["run"] or f"runs/{recipe.stem}-{time.strftime('%Y%m%d-%H%M%S')}")
        if values["dry_run"]:
            return Run(options, folder).dry_run()
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(
                f"{folder} exists and is not empty: choose another --run, or go on with it: --resume {folder}"
            )
        return Run(options, folder).train()
    except (ValueError, OSError, NotFiniteError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped by SIGINT", file=sys.stderr)
        return 128 + signal.SIGINT


def with_recipe(argv: Sequence[str]) -> tuple[list[str], Path, str]:
    """Puts the recipe's file, or the resumed run's config.yaml, before the other options, which then override it.

    Returns the arguments, that file and the folder of the run to resume, empty if none.
    """
    first = argparse.ArgumentParser(prog="fastpose train", add_help=False, allow_abbrev=False)
    first.add_argument("--recipe")
    first.add_argument("--resume")
    known, rest = first.parse_known_args(argv)
    resume = Path(known.resume) if known.resume else None
    if resume is None:
        if not known.recipe and any(underscored(word).partition("=")[0] == "--data_root" for word in rest):
            raise ValueError(
                f"--data_root goes with a recipe that says what the data is for: add --recipe and one of "
                f"{', '.join(recipes())}; {DEFAULT_RECIPE} draws synthetic persons there"
            )
        recipe = find_recipe(known.recipe or DEFAULT_RECIPE)
    elif known.recipe or any(word.partition("=")[0] == "--run" for word in rest):
        raise ValueError(
            "--resume goes on in a run's own folder with its own settings: give it without --recipe and --run"
        )
    else:
        resume = resume.parent if resume.is_file() else resume
        recipe = resume / "config.yaml"
        if not recipe.is_file():
            raise ValueError(f"--resume {known.resume}: no run to go on with, {recipe} is missing")
    # First, so that config.yaml, where it has them, and the command line override them.
    before = [f"--{name}={str(value).lower()}" for name, value in BEFORE.items()] if resume else []
    return [*before, "--recipe", str(recipe), *rest], recipe, str(resume or "")


class Run:
    """A training run: everything it consists of, from its first or its next step to its results in `folder`."""

    def __init__(self, options: TrainOptions, folder: Path, *, resume: bool = False) -> None:
        self.begin = self.last_save = time.perf_counter()
        options = with_color_order(as_packed(options))
        self.options, self.folder = options, folder
        self.device = choose_device(options.device)
        for name, wanted in (("cuda_graph", options.cuda_graph == "on"), ("decoder gpu", options.decoder == "gpu")):
            if wanted:  # said now, and not after the images have been drawn or decoded
                require_cuda(name, self.device)
        generate_missing_data(options)
        self.train_loader = make_loader(read_split(options, "train"), options, self.device, training=True)
        self.valid_loader = make_loader(read_split(options, "valid"), options, self.device, training=False)
        check_batches(len(self.train_loader.persons), options)
        persons = self.valid_loader.persons
        self.coco = persons.truth is not None
        check_scorable(persons)
        self.skeleton = persons.skeleton
        if not self.skeleton.mirror_pairs and (options.flip > 0 or options.flip_test):
            print(
                f"warning: skeleton {self.skeleton.name!r} has no mirror_pairs, so that left joints count as left in "
                "mirrored pictures: name the pairs, or give --flip 0 --flip_test false",
                flush=True,
            )
        self.model = make_model(options, self.skeleton, self.device, to_train=True)
        self.optimizer = make_optimizer(self.model, options)
        self.rate = LearningRate(
            options.lr, options.lr_drop_factor, options.lr_drop_epochs, options.lr_drop_patience, options.warmup_steps
        )
        self.progress = Progress(train_data=describe(self.train_loader.persons))
        if resume:
            self.load()
        weights = self.skeleton.joint_weights if options.joint_weights else None
        self.train_step = TrainStep(self.model, self.optimizer, options, self.device, weights)
        self.seconds_before = self.progress.seconds

    def train(self) -> int:
        """Trains to the end, or until a stop signal arrives. Returns the exit code."""
        options, folder = self.options, self.folder
        if self.is_complete():
            print(f"nothing is left to do: {folder} has all its {self.progress.epoch} epochs; more: --epochs NUMBER")
            return 0
        folder.mkdir(parents=True, exist_ok=True)
        write_yaml(folder / "config.yaml", options.as_plain())
        self.history = read_lines(folder / "metrics.jsonl", self.progress.epoch)
        report = Report(options, self.progress, len(self.train_loader))
        report.line(
            f"{len(self.train_loader.persons)} persons to train on, {len(self.valid_loader.persons)} to evaluate; "
            f"{network_name(options)}, {options.size[0]}x{options.size[1]} px, on {self.device}"
        )
        with StopSignals() as stop:
            try:
                evaluation = self.train_epochs(report, stop)
            except (BadImageError, PackError, OSError, NotFiniteError) as error:
                self.failed(error)
                raise
            if evaluation is None:
                return self.stopped(stop.received)
        self.write_results(evaluation)
        return 0

    def is_complete(self) -> bool:
        """Whether the epochs that the options ask for are trained, and their results written."""
        summary = self.folder / "summary.json"
        if self.progress.epoch < self.options.epochs or not summary.is_file():
            return False
        # It may be that of an earlier end; where it does not tell, as in version 0.1, it is written anew.
        return json.loads(summary.read_text(encoding="utf-8")).get("epochs") == self.progress.epoch

    def dry_run(self) -> int:
        """Trains one step, evaluates one batch and tells what there is to know of both. Writes nothing. Returns 0."""
        options, epoch = self.options, self.progress.epoch
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        lr = self.rate.at(epoch, epoch * len(self.train_loader))
        print(f"{network_name(options)}: {parameters:,} parameters, on {self.device}")
        print(f"optimiser: {options.optimizer}, learning rate of this step {lr:.3g}")

        start = time.perf_counter()
        batch = first_batch(self.train_loader, epoch)
        ready = time.perf_counter()
        self.model.train()
        loss = float(self.train_step(batch, lr))  # waits for the device
        seconds = time.perf_counter() - ready
        check_finite(loss, epoch, 1)
        print(f"training: {len(self.train_loader.persons)} persons, {len(self.train_loader)} steps an epoch")
        print(f"  first batch in {ready - start:.2f} s: {shape_of(batch.images)}, joints {shape_of(batch.keypoints)}")
        rate = len(batch.rows) / seconds
        print(f"  first step in {seconds:.2f} s: {rate:.2f} samples/s (later ones are quicker), loss {loss:.6f}")

        batch = first_batch(self.valid_loader)
        heatmaps: list[Tensor] = []
        start = time.perf_counter()
        self.model.eval()
        hook = self.model.register_forward_hook(lambda model, images, maps: heatmaps.append(maps))
        with hook, torch.inference_mode():
            points = predict(self.model, batch, self.skeleton, options)[0].cpu()
        seconds = time.perf_counter() - start
        print(f"evaluation: {len(self.valid_loader.persons)} persons, {len(self.valid_loader)} batches")
        print(
            f"  first batch in {seconds:.2f} s: {shape_of(batch.images)}, heatmaps {shape_of(heatmaps[0])}, "
            f"points {shape_of(points)}"
        )
        print(peak_memory(self.device), flush=True)
        return 0

    def train_epochs(self, report: Report, stop: StopSignals) -> Evaluation | None:
        """Trains and evaluates. Returns the last evaluation, None if a stop signal came."""
        options, progress, evaluation = self.options, self.progress, None
        while progress.epoch < options.epochs:
            evaluation = None
            train_one_epoch(self.train_step, self.rate, self.train_loader, progress, stop, report.step)
            due = progress.epoch + 1 == options.epochs or (progress.epoch + 1) % options.eval_every == 0
            if due and not stop.received:
                evaluation = self.evaluate(stop)
            if stop.received:
                return None
            self.finish_epoch(evaluation)
            report.epoch(self.history[-1])
            if evaluation and evaluation.score is not None and 0 < options.target_pckh <= evaluation.score:
                return evaluation
        # A run that was complete when it was resumed has not been evaluated here.
        return evaluation or self.evaluate(stop)

    def evaluate(self, stop: StopSignals) -> Evaluation | None:
        """Scores the network as it is. None if a stop signal came."""
        report = EvaluationReport(len(self.valid_loader.persons))
        return evaluate(self.model, self.valid_loader, self.options, stop, report.persons)

    def finish_epoch(self, evaluation: Evaluation | None) -> None:
        """Takes the epoch into metrics.jsonl and the checkpoints, and moves on to the next."""
        progress = self.progress
        seconds = max(progress.epoch_seconds, 1e-9)
        line = {
            "epoch": progress.epoch + 1,
            "loss": progress.loss_sum / progress.samples,
            "lr": float(self.optimizer.param_groups[0]["lr"]),
            "samples_per_second": progress.samples / seconds,
            "input_wait_fraction": progress.epoch_wait_seconds / seconds,
            "bad_images": len(self.train_loader.bad_images) + len(self.valid_loader.bad_images),
            **scores_entry(evaluation, coco=self.coco),
        }
        append_line(self.folder / "metrics.jsonl", line)
        self.history.append(line)
        progress.next_epoch()
        if evaluation and (score := evaluation.score) is not None:
            self.rate.observe(score)
            if score >= progress.best_score:  # of equals the one that was trained longer
                progress.best_epoch, progress.best_score = progress.epoch, score
                self.save("best.pt")
        # Writing a checkpoint can take longer than a small epoch: between evaluations at most one a minute.
        if evaluation or time.perf_counter() - self.last_save > 60:
            self.save("last.pt")

    def save(self, name: str) -> None:
        """Writes last.pt, from which training can go on, or best.pt, which does without the optimiser."""
        self.last_save = time.perf_counter()
        self.progress.seconds = self.seconds_before + self.last_save - self.begin
        save_checkpoint(
            self.folder / name,
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict() if name == "last.pt" else None,
            learning_rate=self.rate.state_dict(),
            progress=dataclasses.asdict(self.progress),
            config=self.options.as_plain(),
            skeleton=dataclasses.asdict(self.skeleton),
            keep_previous=name == "last.pt",
        )

    def load(self) -> None:
        """Takes over the run's checkpoint; without one the run failed early and begins anew.

        Raises:
            CheckpointError: see load_latest; or the file does not fit this version of fastpose.
            ValueError: an option given with --resume does not go with the checkpoint.
        """
        last, train_data = self.folder / "last.pt", self.progress.train_data
        if not last.exists() and not previous_path(last).exists():
            print(f"no checkpoint in {self.folder} to go on from: training from the beginning", flush=True)
            return
        contents, file = load_latest(last)
        # A run of an older version does not name the options that there were not; it ran as their defaults do.
        was, now = TrainOptions().as_plain() | BEFORE | contents["config"], self.options.as_plain()
        network = ("model", "depth", "head", "channels", "color_order", "size")
        refuse_changes(was, now, network, "a run keeps its network")
        joints = skeleton_of(contents["skeleton"]).joints
        refuse_changes(
            {"skeleton": joints}, {"skeleton": self.skeleton.joints}, ("skeleton",), "a run keeps its joints"
        )
        refuse_changes(was, now, ("optimizer",), "a run keeps its optimiser, whose state is in the checkpoint")
        try:
            self.model.load_state_dict(contents["model"])
            self.optimizer.load_state_dict(contents["optimizer"])
            self.rate.load_state_dict(contents["learning_rate"])
            progress = self.progress = Progress(**contents["progress"])
        except (RuntimeError, ValueError, TypeError, KeyError) as error:
            reason = str(error).partition("\n")[0]
            raise CheckpointError(f"{file}: does not fit this version of fastpose: {reason}") from error
        if progress.step:
            reason = (
                f"the run is in the middle of epoch {progress.epoch + 1}, and would train on wrong persons in the rest "
                f"of it; go on with the run's own value, at least to the epoch's end (--epochs {progress.epoch + 1})"
            )
            refuse_changes(was, now, ("batch_size", "seed"), reason)
            data = "train_annotations (or another option of the training data)"
            refuse_changes({data: progress.train_data}, {data: train_data}, (data,), reason)
        progress.train_data = train_data
        if not self.is_complete():
            print(f"going on from {file}, epoch {progress.epoch + 1} after step {progress.step}", flush=True)

    def stopped(self, signal_number: int) -> int:
        self.save("last.pt")
        name, progress = signal.Signals(signal_number).name, self.progress
        print(f"stopped by {name} in epoch {progress.epoch + 1} after step {progress.step}")
        print(f"to go on: {started_as()} --resume {self.folder}", flush=True)
        return 128 + signal_number

    def failed(self, error: Exception) -> None:
        """Saves the weights where a file is to blame and not they, and says how to go on once that is mended."""
        if not isinstance(error, NotFiniteError) and math.isfinite(self.progress.loss_sum):
            self.save("last.pt")
        hint = " (or with --on_bad_image skip)" if isinstance(error, BadImageError) else ""
        print(f"to go on after mending this: {started_as()} --resume {self.folder}{hint}", flush=True)

    def write_results(self, evaluation: Evaluation) -> None:
        """Writes summary.json and the pictures; prints the score and what was written."""
        progress, folder = self.progress, self.folder
        if progress.best_epoch < 0:  # stopped before its first evaluation, and resumed with fewer epochs
            assert evaluation.score is not None
            progress.best_epoch, progress.best_score = progress.epoch, evaluation.score
            self.save("best.pt")
        summary = {
            **scores_entry(evaluation, coco=self.coco),
            "epochs": progress.epoch,
            "best": {"epoch": progress.best_epoch, "AP" if self.coco else "Mean": progress.best_score},
            "samples_per_second": progress.total_samples / max(progress.train_seconds, 1e-9),
            "input_wait_fraction": progress.wait_seconds / max(progress.train_seconds, 1e-9),
            "seconds": self.seconds_before + time.perf_counter() - self.begin,
            "device": str(self.device),
            "commit": code_version(),
            "train_persons": len(self.train_loader.persons),
            "valid_persons": len(self.valid_loader.persons),
            "skipped_persons": evaluation.skipped,
            "bad_images": [
                str(e) for loader in (self.train_loader, self.valid_loader) for e in loader.bad_images.values()
            ],
        }
        print(f"\n{format_scores(evaluation)}\n", flush=True)
        name = "AP" if self.coco else "PCKh@0.5"
        print(
            f"best: {name} {progress.best_score:.2f} in epoch {progress.best_epoch} (best.pt); "
            f"last: {name} {evaluation.score:.2f}"
        )
        if evaluation.skipped:
            print(f"without {evaluation.skipped} persons whose image could not be read, see summary.json")
        drawing.draw_curves(folder / "curves.png", self.history)
        drawing.draw_predictions(folder / "predictions.png", self.valid_loader.persons, evaluation.predictions)
        row = best_seen_person(self.valid_loader.persons, evaluation)
        from_file = dataclasses.replace(self.options, resident=False)
        one = make_loader(self.valid_loader.persons.select([row]), from_file, self.device, training=False)
        heatmaps = person_heatmaps(self.model, one, self.options)
        drawing.draw_heatmaps(
            folder / "heatmaps.png",
            self.valid_loader.persons,
            row,
            heatmaps,
            evaluation.predictions[row],
            evaluation.scores[row],
            self.options.udp,
        )
        write_json(folder / "summary.json", summary)  # last: with it the run is complete
        for name in ("summary.json", "curves.png", "predictions.png", "heatmaps.png", "best.pt", "last.pt"):
            print(f"wrote {folder / name}")


def started_as() -> str:
    """The command that this is: the script's verb, or the module."""
    return "fastpose train" if Path(sys.argv[0]).stem == "fastpose" else "python -m fastpose.train"


def first_batch(loader: PoseLoader, epoch: int = 0) -> Batch:
    """The first batch of an epoch."""
    with closing(loader.epoch(epoch)) as batches:
        return next(batches)


def shape_of(tensor: Tensor) -> str:
    """Shape and type of a tensor, for people."""
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def peak_memory(device: torch.device) -> str:
    """What this process has taken of memory at the most: of a GPU's, else of the host's."""
    if device.type == "cuda":
        allocated, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
        return f"memory of the GPU: at most {allocated / 2**20:.0f} MiB in tensors, {reserved / 2**20:.0f} MiB in all"
    if sys.platform == "win32":
        return "memory: not told by Windows"
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, others KiB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return f"memory of this process: at most {peak / 2**20:.0f} MiB"


def refuse_changes(was: dict[str, Any], now: dict[str, Any], names: Sequence[str], reason: str) -> None:
    """Raises ValueError where one of the options `names` is not what it was when the run was saved."""
    for name in names:
        if was.get(name) != now[name]:
            raise ValueError(f"--resume: {name} is {was.get(name)} in the run, got {now[name]}: {reason}")


if __name__ == "__main__":
    sys.exit(main())
