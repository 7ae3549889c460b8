# SPDX-License-Identifier: Apache-2.0
"""A training run: everything it consists of, from its first or its next step to its results in a folder."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_type_hints

import torch
from torch import nn

from fastpose.data.dataset import Scorer
from fastpose.data.images import BadImageError
from fastpose.data.loader import PoseLoader
from fastpose.data.pixels import images_fingerprint
from fastpose.device import ComputeOptions
from fastpose.ending import print_error, print_log, print_once
from fastpose.engine import events, results
from fastpose.engine.dry_run import first_batch, peak_memory, shape_of
from fastpose.engine.epoch import (
    FAILURES,
    NotFiniteError,
    RunProgress,
    StopSignals,
    check_finite,
    train_one_epoch,
)
from fastpose.engine.evaluation import Scored, predict_all, scored, scores_entry
from fastpose.engine.folder import PICTURES, PREDICTIONS, started_as
from fastpose.engine.predicted import write_predicted
from fastpose.engine.report import TrainingReport
from fastpose.engine.resume import DATA, KEPT, errors_of, parts_of, refuse_changes, texts_of
from fastpose.engine.schedule import LearningRate, ScheduleOptions, make_optimizer, set_weight_decay
from fastpose.engine.step import TargetOptions, TrainStep
from fastpose.files import append_line, read_file, read_lines, write_json, write_yaml
from fastpose.models.checkpoint import CheckpointError, has_checkpoint, load_latest, save_checkpoint
from fastpose.models.decoding import Decoder
from fastpose.models.hf import is_hf
from fastpose.models.network import skeleton_of
from fastpose.models.own import outputs_of, outputs_text
from fastpose.option import typed
from fastpose.progress import CountedProgress
from fastpose.ranks import OtherRankError, RankLostError, lost_if_it_fails


class Run:
    """A training run in `folder`, which exists, and which no other process uses (see `run_folder`).

    Args:
        folder: where its files are, or will be.
        name: what to call the network in messages.
        config: the run's settings as plain values, for config.yaml and checkpoints.
        schedule, targets, compute: options of the training.
        train_loader, valid_loader: batches to train on and to evaluate; both have the joints of the network.
        scorer: of the validation persons.
        decoder: how what the network returns becomes joints; it has the network.
        begin: `time.perf_counter` when the run began, for the seconds it takes.
        resume: go on with the run in `folder`: makes today's settings, as plain values, of the config in a checkpoint
            of any version. None: it is a new run.
        tensorboard: write TensorBoard's event files, too.

    Raises:
        CheckpointError: see load_latest; or the checkpoint does not fit this version of fastpose.
        OptionError: an option asked for does not go with the checkpoint.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        config: Mapping[str, Any],
        schedule: ScheduleOptions,
        targets: TargetOptions,
        compute: ComputeOptions,
        train_loader: PoseLoader,
        valid_loader: PoseLoader,
        scorer: Scorer,
        decoder: Decoder,
        *,
        begin: float,
        resume: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None,
        tensorboard: bool = False,
    ) -> None:
        self.begin = self.last_save = begin
        self.folder, self.name, self.config, self.schedule = folder, name, config, schedule
        self.ranks = ranks = train_loader.ranks
        self.again = f"{started_as(ranks.count, ranks.local_count)} --resume {folder}{' --tensorboard' * tensorboard}"
        if (model := config.get("model")) and not is_hf(model):  # which config.yaml alone may not choose
            self.again += f" --model {model}"
        self.train_loader, self.valid_loader = train_loader, valid_loader
        self.scorer, self.decoder, self.tensorboard, self.ended = scorer, decoder, tensorboard, False
        self.skeleton, self.device = valid_loader.persons.skeleton, train_loader.device
        self.model: nn.Module = decoder.model
        self.optimizer = make_optimizer(self.model, schedule)
        self.rate = LearningRate.of(schedule, len(train_loader))
        train, valid = train_loader.persons, valid_loader.persons
        self.progress = RunProgress(
            train_data=train.fingerprint(),
            valid_data=f"{valid.fingerprint()}, {scorer.fingerprint()}",
            train_images=images_fingerprint(train.image_paths),
            valid_images=images_fingerprint(valid.image_paths),
            ranks=ranks.count,
        )
        ranks.check_same("training persons", self.progress.train_data)
        ranks.check_same("validation persons", self.progress.valid_data)
        if resume is not None:
            self.load(resume)
        weights = self.skeleton.joint_weights if targets.joint_weights else None
        part = train_loader.part_size
        how = (targets, compute, self.device, part, weights, ranks, decoder.simcc, schedule.clip_grad_norm)
        self.train_step = TrainStep(self.model, self.optimizer, *how)
        self.patience = compute.rank_timeout
        self.seconds_before = self.progress.seconds

    def train(self) -> int:
        """Trains to the end, or until a stop signal arrives. Returns the exit code."""
        folder, valid = self.folder, self.valid_loader.persons
        self.ranks.begin(self.device, self.patience)
        if self.is_complete():
            print(f"nothing is left to do: {folder} has all its {self.progress.epoch} epochs; more: --epochs NUMBER")
            return 0
        self.history: list[dict[str, Any]] = []
        with self.ranks.failing_together():
            if self.ranks.first:
                write_yaml(folder / "config.yaml", dict(self.config))
                self.history = read_lines(folder / "metrics.jsonl", self.progress.epoch)
        loader = self.train_loader
        written = events.EventFile(folder, self.history) if self.tensorboard and self.ranks.first else None
        report = TrainingReport(self.schedule.epochs, len(loader), self.progress, self.scorer, written)
        height, width = loader.size
        drawn = f", {loader.epoch_size} an epoch" if loader.epoch_size != len(loader.persons) else ""
        print_log(
            f"{len(loader.persons)} persons to train on{drawn}, {len(valid)} to evaluate; "
            f"{self.name}, {height}x{width} px, on {self.device}{self.of_ranks()}"
        )
        with StopSignals() as stop:
            try:
                evaluation = self.train_epochs(report, stop)
                if number := self.ranks.most(stop.received):  # also where it came after the last look
                    return self.stopped(number)
            except (*FAILURES, OtherRankError) as error:
                self.failed(error, known=not isinstance(error, NotFiniteError))
                raise
            except RankLostError as error:
                self.failed(error, known=error.between_epochs)
                raise
        assert evaluation is not None
        self.ranks.rest()
        if self.ranks.first:
            self.write_results(evaluation)
        self.ended = True  # here, and not before
        return 0

    def of_ranks(self) -> str:
        """How a batch is divided, in words; empty for a process by itself."""
        if self.ranks.count == 1:
            return ""
        return f", by {self.ranks.count} ranks; of each batch of {self.schedule.batch_size} each makes its part"

    def is_complete(self) -> bool:
        """Whether the epochs of the schedule are trained, and their results written."""
        return self.ranks.same(self.has_results)

    def has_results(self) -> bool:
        """`is_complete`, of a folder that the first rank has."""
        summary = self.folder / "summary.json"
        if self.progress.epoch < self.schedule.epochs or not summary.is_file():
            return False
        try:
            contents = json.loads(read_file(summary))
        except ValueError:  # torn by a power cut
            return False
        # It may be that of an earlier end; if it does not say, as in version 0.1, it is written again.
        return isinstance(contents, dict) and contents.get("epochs") == self.progress.epoch

    def dry_run(self) -> int:
        """Trains one step, evaluates one batch and prints what there is to know of both. Writes nothing. Returns 0."""
        self.ranks.begin(self.device, self.patience)
        epoch = self.progress.epoch
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        lr = self.rate.at(epoch, epoch * len(self.train_loader))
        print(f"{self.name}: {parameters:,} parameters, on {self.device}")
        print(f"optimiser: {self.schedule.optimizer}, learning rate of this step {lr:.3g}")
        if self.ranks.count > 1:
            print(
                f"{self.ranks.count} ranks: a batch of {self.schedule.batch_size} persons is that of all of them, "
                f"{self.train_loader.part_size} here; the learning rate does not depend on how many they are"
            )

        start = time.perf_counter()
        batch = first_batch(self.train_loader, epoch)
        ready = time.perf_counter()
        self.train_step.prepare(self.train_loader)
        self.model.train()
        (persons,) = self.ranks.agree(len(batch.rows))
        with lost_if_it_fails():
            loss = float(self.train_step(batch, lr, persons))  # waits for the device
        seconds = time.perf_counter() - ready
        with self.ranks.failing_together():
            check_finite(loss, epoch, 1)
        self.ranks.rest()
        if not self.ranks.first:
            return 0
        print(f"training: {len(self.train_loader.persons)} persons, {len(self.train_loader)} steps an epoch")
        print(f"  first batch in {ready - start:.2f} s: {shape_of(batch.images)}, joints {shape_of(batch.keypoints)}")
        rate = len(batch.rows) / seconds
        print(f"  first step in {seconds:.2f} s: {rate:.2f} samples/s (later ones are quicker), loss {loss:.6f}")

        batch = first_batch(self.valid_loader)
        returned: list[object] = []
        start = time.perf_counter()
        self.model.eval()
        hook = self.model.register_forward_hook(lambda model, images, outputs: returned.append(outputs))
        with hook, torch.inference_mode():
            points = self.decoder(batch.images, batch.heatmap_to_image)[0].cpu()
        seconds = time.perf_counter() - start
        print(f"evaluation: {len(self.valid_loader.persons)} persons, {len(self.valid_loader)} batches")
        print(
            f"  first batch in {seconds:.2f} s: {shape_of(batch.images)}, "
            f"{outputs_text([list(t.shape) for t in outputs_of(returned[0])])}, points {shape_of(points)}"
        )
        print(peak_memory(self.device), flush=True)
        return 0

    def train_epochs(self, report: TrainingReport, stop: StopSignals) -> Scored | None:
        """Trains and evaluates. Returns the last evaluation, None if a stop signal came."""
        schedule, progress, evaluation = self.schedule, self.progress, None
        while progress.epoch < schedule.epochs:
            evaluation = None
            train_one_epoch(
                self.train_step,
                self.rate,
                self.train_loader,
                progress,
                stop,
                report.step,
                schedule.log_every,
                save_due=self.save_due,
                save=self.save_between_steps,
            )
            due = progress.epoch + 1 == schedule.epochs or (progress.epoch + 1) % schedule.eval_every == 0
            if due and not self.ranks.most(stop.received):
                evaluation = self.evaluate(stop)
            if self.ranks.most(stop.received):
                return None
            self.finish_epoch(evaluation)
            report.epoch(self.history[-1])
            if evaluation and evaluation.score is not None and 0 < schedule.target_pckh <= evaluation.score:
                return evaluation
        # A run that was complete when it was resumed has not been evaluated here.
        return evaluation or self.evaluate(stop)

    def evaluate(self, stop: StopSignals) -> Scored | None:
        """Scores the network as it is. None if a stop signal came."""
        progress = CountedProgress("evaluation", "persons", len(self.valid_loader.persons), stays=False)
        self.ranks.same_buffers(self.model)
        evaluation = predict_all(self.decoder, self.valid_loader, stop, progress.show)
        if evaluation is None:
            return None
        values = self.ranks.same(lambda: scored(evaluation, self.scorer).values)
        return Scored(evaluation, values, self.scorer)

    def finish_epoch(self, evaluation: Scored | None) -> None:
        """Takes the epoch into metrics.jsonl and the checkpoints, and moves on to the next.

        A file that cannot be written leaves the run where it was, at the end of the epoch's steps.
        """
        self.share_bad_images()
        progress, rate = dataclasses.replace(self.progress), self.rate.state_dict()
        try:
            with self.ranks.failing_together():
                self.write_epoch(evaluation)
        except OSError:
            self.progress = progress
            self.rate.load_state_dict(rate)
            raise

    def write_epoch(self, evaluation: Scored | None) -> None:
        progress = self.progress
        if (
            self.ranks.first and not (self.folder / "last.pt").exists()
        ):  # results without a checkpoint could not go on after a power cut
            self.save("last.pt")
            self.ranks.alive()
        seconds = max(progress.epoch_seconds, 1e-9)
        line = {
            "epoch": progress.epoch + 1,
            "loss": progress.loss_sum / progress.samples,
            "lr": max(float(group["lr"]) for group in self.optimizer.param_groups),
            "samples_per_second": progress.samples / seconds,
            "input_wait_fraction": progress.epoch_wait_seconds / seconds,
            "bad_images": len(self.train_loader.bad_image_texts()) + len(self.valid_loader.bad_image_texts()),
            **scores_entry(self.scorer, evaluation.values if evaluation else None),
        }
        if self.ranks.first:
            append_line(self.folder / "metrics.jsonl", line)
        self.history.append(line)
        progress.next_epoch()
        if evaluation and (score := evaluation.score) is not None:
            self.rate.observe(score)
            if score >= progress.best_score:  # of equals the one that was trained longer
                progress.best_epoch, progress.best_score = progress.epoch, score
                self.save("best.pt")
                self.ranks.alive()
        # Writing a checkpoint can take longer than a small epoch: between evaluations at most one a minute.
        if evaluation or time.perf_counter() - self.last_save > 60:
            self.save("last.pt")

    def save_due(self) -> bool:
        """Whether a crash would cost more than `checkpoint_minutes` of training."""
        minutes = self.schedule.checkpoint_minutes
        return minutes > 0 and time.perf_counter() - self.last_save > 60 * minutes

    def save_between_steps(self) -> None:
        """Writes last.pt in the middle of an epoch; called in all ranks."""
        self.share_bad_images()
        with self.ranks.failing_together():
            self.save("last.pt")

    def share_bad_images(self) -> None:
        """Lets all ranks know the bad images of each; called in all of them."""
        for loader in (self.train_loader, self.valid_loader):
            if self.ranks.count > 1 and loader.on_bad_image == "skip":
                for texts in self.ranks.all_of(texts_of(loader.bad_images)):
                    loader.bad_images |= errors_of(texts)

    def save(self, name: str) -> None:
        """Writes last.pt, from which training can go on, or best.pt, which does without the optimiser. Of several ranks
        the first one writes."""
        self.last_save = time.perf_counter()
        if not self.ranks.first:
            return
        self.progress.seconds = self.seconds_before + self.last_save - self.begin
        self.progress.train_bad_images = texts_of(self.train_loader.bad_images)
        self.progress.valid_bad_images = texts_of(self.valid_loader.bad_images)
        save_checkpoint(
            self.folder / name,
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict() if name == "last.pt" else None,
            learning_rate=self.rate.state_dict(),
            progress=dataclasses.asdict(self.progress),
            config=dict(self.config),
            skeleton=dataclasses.asdict(self.skeleton),
            keep_previous=name == "last.pt",
        )

    def load(self, settings_of: Callable[[Mapping[str, Any]], dict[str, Any]]) -> None:
        """Takes over the run's checkpoint; without one the run failed early and begins again.

        `settings_of`: makes today's settings of the config of a checkpoint.
        """
        last, data = self.folder / "last.pt", self.progress
        read = self.ranks.same(lambda: load_latest(last) if has_checkpoint(self.folder) else None)
        if read is None:
            print_log(f"no checkpoint in {self.folder} to go on from: training from the beginning")
            return
        contents, file = read
        try:
            was, now = settings_of(contents["config"]), self.config
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{file}: does not fit this version of fastpose: {error}") from error
        for reason, names in KEPT.items():
            refuse_changes(was, now, names, reason)
        skeleton = skeleton_of(contents["skeleton"])
        refuse_changes(
            {"skeleton": skeleton.joints}, {"skeleton": self.skeleton.joints}, ("skeleton",), "a run keeps its joints"
        )
        try:
            self.model.load_state_dict(contents["model"])
            self.optimizer.load_state_dict(contents["optimizer"])
            self.rate.load_state_dict(contents["learning_rate"])
            kinds = get_type_hints(RunProgress)
            known = {name: typed(name, value, kinds[name]) for name, value in contents["progress"].items()}
            progress = self.progress = RunProgress(**known)
        except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
            reason = str(error).partition("\n")[0]
            raise CheckpointError(f"{file}: does not fit this version of fastpose: {reason}") from error
        set_weight_decay(self.optimizer, self.schedule.weight_decay)  # another came with the state
        if progress.step:
            reason = (
                f"the run is in the middle of epoch {progress.epoch + 1}, and would train on wrong persons in the rest "
                f"of it; go on with the run's own value, at least to the epoch's end (--epochs {progress.epoch + 1})"
            )
            refuse_changes(was, now, ("batch_size", "seed"), reason)
            name = "train_annotations (or another option of the training data)"
            refuse_changes({name: progress.train_data}, {name: data.train_data}, (name,), reason)
        for loader, texts, same in (
            (self.train_loader, progress.train_bad_images, progress.train_data == data.train_data),
            (self.valid_loader, progress.valid_bad_images, progress.valid_data == data.valid_data),
        ):
            if same:  # else their numbers are those of other images
                loader.bad_images |= errors_of(texts)
        self.take_changes({**was, **parts_of(skeleton)}, {**now, **parts_of(self.skeleton)}, data)
        if not self.is_complete():
            print_log(f"going on from {file}, epoch {progress.epoch + 1} after step {progress.step}")

    def take_changes(self, was: Mapping[str, Any], now: Mapping[str, Any], data: RunProgress) -> None:
        """Prints and remembers each difference between what the run was saved with and what it goes on with.

        Args:
            was, now: settings by name.
            data: identifies the data that the run goes on with.
        """
        changes = [(name, was.get(name), value) for name, value in now.items() if was.get(name) != value]
        for name, called in DATA.items():
            before, after = getattr(self.progress, name), getattr(data, name)
            if before not in ("", after):  # empty in runs of versions that did not save it
                changes.append((called, before, after))
            setattr(self.progress, name, after)
        if self.progress.ranks != data.ranks:
            changes.append(("the number of ranks", self.progress.ranks, data.ranks))
        self.progress.ranks = data.ranks
        if self.is_complete():
            return
        place = {"epoch": self.progress.epoch + 1, "step": self.progress.step}
        for name, before, after in changes:
            print_log(f"{name} was {before}, now {after}")
            self.progress.changes.append({**place, "option": name, "was": before, "now": after})

    def stopped(self, signal_number: int) -> int:
        self.share_bad_images()
        self.save("last.pt")
        name, progress = signal.Signals(signal_number).name, self.progress
        print_once(f"stopped by {name} in epoch {progress.epoch + 1} after step {progress.step}")
        print_once(f"to go on: {self.again}")
        return 128 + signal_number

    def failed(self, error: Exception, *, known: bool) -> None:
        """Saves the weights if it is known what they are, and says how to go on once that is mended."""
        self.ranks.rest()
        if known and math.isfinite(self.progress.loss_sum):
            try:
                self.save("last.pt")
            except OSError as second:
                if second.errno != getattr(error, "errno", None):
                    print_error(f"error: {second}")
        hint = " (or with --on_bad_image skip)" if isinstance(error, BadImageError) else ""
        print_once(f"to go on after mending this: {self.again}{hint}")

    def write_results(self, evaluation: Scored) -> None:
        """Writes summary.json and the pictures; prints the score and what was written."""
        progress, folder, scorer = self.progress, self.folder, self.scorer
        if progress.best_epoch < 0:  # stopped before its first evaluation, and resumed with fewer epochs
            assert evaluation.score is not None
            progress.best_epoch, progress.best_score = progress.epoch, evaluation.score
            self.save("best.pt")
        skipped = evaluation.evaluation.skipped
        results.draw(folder, self.history, scorer, self.valid_loader, self.decoder, evaluation.evaluation)
        write_predicted(folder, "last.pt", self.valid_loader.persons, scorer, evaluation.evaluation)
        summary = {
            **scores_entry(scorer, evaluation.values),
            "epochs": progress.epoch,
            "best": {"epoch": progress.best_epoch, scorer.main: progress.best_score},
            "samples_per_second": progress.total_samples / max(progress.train_seconds, 1e-9),
            "input_wait_fraction": progress.wait_seconds / max(progress.train_seconds, 1e-9),
            "seconds": self.seconds_before + time.perf_counter() - self.begin,
            **results.environment(self.device),
            "train_persons": len(self.train_loader.persons),
            "valid_persons": len(self.valid_loader.persons),
            "skipped_persons": skipped,
            "bad_images": [*self.train_loader.bad_image_texts(), *self.valid_loader.bad_image_texts()],
            "changes": progress.changes,
        }
        write_json(folder / "summary.json", summary)  # last: with it the run is complete, whoever reads what follows
        print(f"\n{scorer.table(evaluation.values)}\n", flush=True)
        print(
            f"best: {scorer.label} {progress.best_score:.2f} in epoch {progress.best_epoch} (best.pt); "
            f"last: {scorer.label} {evaluation.score:.2f}"
        )
        if skipped:
            print(f"without {skipped} persons whose image could not be read, see summary.json")
        for name in ("summary.json", *PICTURES, PREDICTIONS, "best.pt", "last.pt"):
            print(f"wrote {folder / name}")
