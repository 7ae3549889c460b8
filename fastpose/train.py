# SPDX-License-Identifier: Apache-2.0
"""`python -m fastpose.train`: trains a network and tells its score. Without arguments it is the synthetic recipe."""

from __future__ import annotations

import argparse
import dataclasses
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from fastpose import drawing
from fastpose.build import generate_missing_data, make_loader, make_model, read_split
from fastpose.checkpoint import load_latest, save_checkpoint
from fastpose.config import DEFAULT_RECIPE, TrainOptions, find_recipe, make_parser, parse, recipes, write_yaml
from fastpose.engine import (
    Evaluation,
    LearningRate,
    NotFiniteError,
    Progress,
    StopSignals,
    best_seen_person,
    choose_device,
    evaluate,
    person_heatmaps,
    train_one_epoch,
)
from fastpose.metrics import format_pckh
from fastpose.report import Report, append_line, code_version, read_lines, scores_or_null, write_json

DESCRIPTION = """Train a pose network. Values come from the command line, else from the recipe, else from the defaults
shown here, which are the paper's settings. Recipes that come with fastpose: """


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 when the run is complete, 1 after an error, 128 + signal number when it was stopped."""
    parser = make_parser("fastpose train", DESCRIPTION + ", ".join(recipes()), TrainOptions)
    parser.add_argument(
        "--recipe", action="config", help=f"YAML file of options, or a recipe's name (default: {DEFAULT_RECIPE})"
    )
    parser.add_argument("--run", type=str, default="", help="folder to write to; empty: runs/RECIPE-TIME")
    parser.add_argument(
        "--resume", type=str, default="", help="folder of a run to go on with; further options override its own"
    )
    try:
        words, name, resume = with_recipe(sys.argv[1:] if argv is None else argv)
        options, values = parse(parser, TrainOptions, words)
        if resume:
            return Run(options, Path(resume), resume=True).train()
        folder = Path(values["run"] or f"runs/{name}-{time.strftime('%Y%m%d-%H%M%S')}")
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(
                f"{folder} exists and is not empty: choose another --run, or go on with it: --resume {folder}"
            )
        return Run(options, folder).train()
    except (ValueError, OSError, NotFiniteError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def with_recipe(argv: Sequence[str]) -> tuple[list[str], str, str]:
    """Puts the recipe's file, or the resumed run's config.yaml, before the other options, which then override it.

    Returns the arguments, the recipe's name and the folder of the run to resume, empty if none.
    """
    first = argparse.ArgumentParser(prog="fastpose train", add_help=False, allow_abbrev=False)
    first.add_argument("--recipe")
    first.add_argument("--resume")
    known, rest = first.parse_known_args(argv)
    if not known.resume:
        recipe = find_recipe(known.recipe or DEFAULT_RECIPE)
    elif known.recipe or any(word.partition("=")[0] == "--run" for word in rest):
        raise ValueError(
            "--resume goes on in a run's own folder with its own settings: give it without --recipe and --run"
        )
    else:
        recipe = Path(known.resume) / "config.yaml"
        if not recipe.is_file():
            raise ValueError(f"--resume {known.resume}: no run to go on with, {recipe} is missing")
    return ["--recipe", str(recipe), *rest], recipe.stem, known.resume or ""


class Run:
    """A training run: everything it consists of, from its first or its next step to its results in `folder`."""

    def __init__(self, options: TrainOptions, folder: Path, *, resume: bool = False) -> None:
        self.begin = self.last_save = time.perf_counter()
        self.options, self.folder = options, folder
        self.device = choose_device(options.device)
        generate_missing_data(options)
        self.train_loader = make_loader(read_split(options, "train"), options, self.device, training=True)
        self.valid_loader = make_loader(read_split(options, "valid"), options, self.device, training=False)
        persons = self.valid_loader.persons
        if persons.head_size is None:
            raise ValueError("head_boxes: PCKh needs the head boxes of the validation persons (gt_valid.mat)")
        self.skeleton = persons.skeleton
        self.model = make_model(options, self.skeleton, self.device)
        self.optimizer = torch.optim.RMSprop(self.model.parameters(), lr=options.lr)
        self.rate = LearningRate(
            options.lr, options.lr_drop_factor, options.lr_drop_epochs, options.lr_drop_patience, options.warmup_steps
        )
        self.progress = Progress()
        if resume:
            self.load()
        self.seconds_before = self.progress.seconds
        folder.mkdir(parents=True, exist_ok=True)
        write_yaml(folder / "config.yaml", options.as_plain())
        self.history = read_lines(folder / "metrics.jsonl", self.progress.epoch)

    def train(self) -> int:
        """Trains to the end, or until a stop signal arrives. Returns the exit code."""
        options, progress = self.options, self.progress
        report = Report(options, progress, len(self.train_loader))
        report.line(
            f"{len(self.train_loader.persons)} persons to train on, {len(self.valid_loader.persons)} to evaluate; "
            f"ResNet-{options.depth} with {options.head} head, {options.size[0]}x{options.size[1]} px, on {self.device}"
        )
        evaluation = None
        with StopSignals() as stop:
            while progress.epoch < options.epochs:
                before, evaluation = dataclasses.replace(progress), None
                train_one_epoch(
                    self.model, self.optimizer, self.rate, self.train_loader, options, progress, stop, report.step
                )
                due = progress.epoch + 1 == options.epochs or (progress.epoch + 1) % options.eval_every == 0
                if due and not stop.received:
                    evaluation = evaluate(self.model, self.valid_loader, options, stop)
                if stop.received:
                    return self.stopped(stop.received)
                self.finish_epoch(before, evaluation)
                report.epoch(self.history[-1])
            # A run that was complete when it was resumed has not been evaluated here.
            evaluation = evaluation or evaluate(self.model, self.valid_loader, options, stop)
            if evaluation is None:
                return self.stopped(stop.received)
        self.write_results(evaluation)
        return 0

    def finish_epoch(self, before: Progress, evaluation: Evaluation | None) -> None:
        """Takes the epoch into metrics.jsonl and the checkpoints, and moves on to the next."""
        progress = self.progress
        seconds = progress.train_seconds - before.train_seconds
        line = {
            "epoch": progress.epoch + 1,
            "loss": progress.loss_sum / progress.samples,
            "lr": self.optimizer.param_groups[0]["lr"],
            "samples_per_second": (progress.total_samples - before.total_samples) / max(seconds, 1e-9),
            "input_wait_fraction": (progress.wait_seconds - before.wait_seconds) / max(seconds, 1e-9),
            "bad_images": len(self.train_loader.bad_images) + len(self.valid_loader.bad_images),
            "pckh": scores_or_null(evaluation.pckh) if evaluation else None,
        }
        append_line(self.folder / "metrics.jsonl", line)
        self.history.append(line)
        progress.epoch, progress.step, progress.loss_sum, progress.samples = progress.epoch + 1, 0, 0.0, 0
        if evaluation and evaluation.pckh:
            score = evaluation.pckh["Mean"]
            self.rate.observe(score)
            if score > progress.best_score:
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
            skeleton=self.skeleton.name,
            keep_previous=name == "last.pt",
        )

    def load(self) -> None:
        contents, file = load_latest(self.folder / "last.pt")
        self.model.load_state_dict(contents["model"])
        self.optimizer.load_state_dict(contents["optimizer"])
        self.rate.load_state_dict(contents["learning_rate"])
        self.progress = Progress(**contents["progress"])
        print(f"going on from {file}, epoch {self.progress.epoch + 1} after step {self.progress.step}", flush=True)

    def stopped(self, signal_number: int) -> int:
        self.save("last.pt")
        name, progress = signal.Signals(signal_number).name, self.progress
        print(f"stopped by {name} in epoch {progress.epoch + 1} after step {progress.step}")
        print(f"to go on: python -m fastpose.train --resume {self.folder}", flush=True)
        return 128 + signal_number

    def write_results(self, evaluation: Evaluation) -> None:
        """Writes summary.json and the pictures; prints the score and what was written."""
        progress, folder = self.progress, self.folder
        assert evaluation.pckh is not None
        summary = {
            "pckh": scores_or_null(evaluation.pckh),
            "best": {"epoch": progress.best_epoch, "Mean": progress.best_score},
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
        write_json(folder / "summary.json", summary)
        print(f"\n{format_pckh(evaluation.pckh)}\n", flush=True)
        if evaluation.skipped:
            print(f"without {evaluation.skipped} persons whose image could not be read, see summary.json")
        drawing.draw_curves(folder / "curves.png", self.history)
        drawing.draw_predictions(folder / "predictions.png", self.valid_loader.persons, evaluation.predictions)
        row = best_seen_person(self.valid_loader.persons, evaluation)
        one = make_loader(self.valid_loader.persons.select([row]), self.options, self.device, training=False)
        heatmaps = person_heatmaps(self.model, one, self.options)
        drawing.draw_heatmaps(
            folder / "heatmaps.png",
            self.valid_loader.persons,
            row,
            heatmaps,
            evaluation.predictions[row],
            evaluation.scores[row],
        )
        for name in ("summary.json", "curves.png", "predictions.png", "heatmaps.png", "best.pt", "last.pt"):
            print(f"wrote {folder / name}")


if __name__ == "__main__":
    sys.exit(main())
