# SPDX-License-Identifier: Apache-2.0
"""One epoch of training, one evaluation, and the little that they need around them."""

from __future__ import annotations

import math
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fastpose
from fastpose.config import TrainOptions
from fastpose.data.loader import Batch, PoseLoader
from fastpose.data.persons import Persons
from fastpose.metrics import keypoint_ap, keypoint_results, pckh
from fastpose.ops._arguments import exact_type
from fastpose.skeletons import Skeleton
from fastpose.step import TrainStep, autocast


class NotFiniteError(ArithmeticError):
    """The loss has become infinite or not a number; the weights are worth nothing from there on."""


@dataclass
class Progress:
    """How far a run is. Saved with every checkpoint, so that a resumed run goes on in the middle of an epoch.

    `epoch` and `step` are the next to train; `loss_sum`, `samples`, `epoch_seconds` and `epoch_wait_seconds` belong to
    the epoch that `step` is in, the other sums to the whole run. `train_data` tells the persons that `step` counts.
    """

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    samples: int = 0
    epoch_seconds: float = 0.0
    epoch_wait_seconds: float = 0.0
    best_epoch: int = -1
    best_score: float = -math.inf
    total_samples: int = 0
    train_seconds: float = 0.0
    wait_seconds: float = 0.0
    seconds: float = 0.0
    train_data: str = ""

    def next_epoch(self) -> None:
        self.epoch, self.step, self.loss_sum, self.samples = self.epoch + 1, 0, 0.0, 0
        self.epoch_seconds = self.epoch_wait_seconds = 0.0


@dataclass
class LearningRate:
    """The base rate, divided by `factor` after given epochs or, where none are given, once when the score stops rising.

    Over the first `warmup_steps` of the run it rises in a straight line. Without that the first steps of RMSprop are
    ten times too long: its mean of squared gradients begins at zero and holds a hundredth of the first.
    """

    base: float
    factor: float
    drop_epochs: tuple[int, ...]
    patience: int
    warmup_steps: int = 0
    best: float = -math.inf
    stale: int = 0
    dropped: bool = False

    def at(self, epoch: int, step: int) -> float:
        """The rate in an epoch and in a step counted from the run's beginning, both from 0."""
        drops = sum(epoch >= drop for drop in self.drop_epochs) if self.drop_epochs else int(self.dropped)
        return self.base / self.factor**drops * min(1.0, (step + 1) / max(1, self.warmup_steps))

    def observe(self, score: float) -> None:
        """Takes note of an evaluation's score; `patience` of them in a row without a new best are a plateau."""
        self.stale = 0 if score > self.best else self.stale + 1
        self.best = max(self.best, score)
        self.dropped = self.dropped or self.stale >= self.patience

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "stale": self.stale, "dropped": self.dropped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.stale, self.dropped = state["best"], state["stale"], state["dropped"]


class StopSignals(AbstractContextManager["StopSignals"]):
    """Turns the first Ctrl-C or SIGTERM into `received`, which loops look at; a second one ends the program at once."""

    received: int = 0

    def __enter__(self) -> StopSignals:
        self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        for other in self._before:
            signal.signal(other, signal.SIG_DFL)
        print("\nstopping after this step; once more to quit at once", file=sys.stderr, flush=True)


def make_optimizer(model: nn.Module, options: TrainOptions) -> torch.optim.Optimizer:
    """The optimiser that the options name, over all parameters, with torch's other defaults.

    Weight decay adds to the gradient in RMSprop and Adam; in AdamW it shrinks the weights, apart from the gradient.

    Raises:
        ValueError: the network has no parameter that requires a gradient.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("model: the network has no parameter to train")
    kinds = {"rmsprop": torch.optim.RMSprop, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    return kinds[options.optimizer](model.parameters(), lr=options.lr, weight_decay=options.weight_decay)


class LossWatch:
    """Brings the epoch's loss to the host every now and then; the host does not wait for it, but looks if it is there.

    Between a training step and the look at it a GPU would otherwise stand still.
    """

    def __init__(self) -> None:
        self._coming: deque[tuple[Tensor, torch.cuda.Event | None, int, int]] = deque()

    def send(self, loss_sum: Tensor, progress: Progress) -> None:
        """Sends the sum of the losses up to `progress` on its way."""
        event = None
        if loss_sum.device.type == "cuda":
            host = torch.empty((), dtype=loss_sum.dtype, pin_memory=True)
            host.copy_(loss_sum, non_blocking=True)
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(loss_sum.device))
        else:
            host = loss_sum.clone()
        self._coming.append((host, event, progress.step, progress.samples))

    def arrived(self) -> Iterator[tuple[float, int, int]]:
        """What has arrived: the sum of the losses, the step and the samples it belongs to."""
        while self._coming and ((event := self._coming[0][1]) is None or event.query()):
            host, _, step, samples = self._coming.popleft()
            yield float(host), step, samples


def train_one_epoch(
    train_step: TrainStep,
    rate: LearningRate,
    loader: PoseLoader,
    progress: Progress,
    stop: StopSignals,
    report: Callable[[float], None],
) -> None:
    """Trains from `progress.step`, which it moves on, to the epoch's end or to the step in which a stop signal came.

    `report` is called with the epoch's mean loss so far every `log_every` steps, on CUDA as soon as the GPU has come so
    far. After an error `progress` tells how far training came.

    Raises:
        NotFiniteError: the loss is not a number any more.
        BadImageError: see PoseLoader.epoch.
    """
    train_step.model.train()
    train_step.prepare(loader)
    loss_sum = torch.tensor(progress.loss_sum, dtype=exact_type(loader.device), device=loader.device)
    watch = LossWatch()
    start, waited, first_sample = time.perf_counter(), loader.wait_seconds, progress.samples
    try:
        with closing(loader.epoch(progress.epoch, progress.step)) as batches:
            for batch in batches:
                loss = train_step(batch, rate.at(progress.epoch, progress.epoch * len(loader) + batch.step))
                loss_sum += loss * len(batch.rows)
                progress.samples += len(batch.rows)
                progress.step = batch.step + 1
                if progress.step % train_step.options.log_every == 0:
                    watch.send(loss_sum, progress)
                for total, step, samples in watch.arrived():
                    check_finite(total, progress.epoch, step)
                    report(total / samples)
                if stop.received:
                    break
            else:
                progress.step = len(loader)
    finally:
        progress.loss_sum = float(loss_sum)  # waits for the device: from here on all of its waiting is known
        seconds, wait = time.perf_counter() - start, loader.wait_seconds - waited
        progress.epoch_seconds += seconds
        progress.epoch_wait_seconds += wait
        progress.train_seconds += seconds
        progress.wait_seconds += wait
        progress.total_samples += progress.samples - first_sample
    check_finite(progress.loss_sum, progress.epoch, progress.step)


def check_finite(loss_sum: float, epoch: int, step: int) -> None:
    """Raises NotFiniteError where the sum of the losses up to `step` of an epoch is infinite or not a number."""
    if not math.isfinite(loss_sum):
        raise NotFiniteError(
            f"the loss is {loss_sum} in epoch {epoch + 1} at or before step {step}: "
            "lower the learning rate (--lr), or look for extreme values in the data"
        )


@dataclass(frozen=True)
class Evaluation:
    """Predictions for N persons in the order of the annotations.

    Attributes:
        predictions: float32 [N, K, 2], (x, y) in image pixels; NaN for persons whose image could not be read.
        scores: float32 [N, K], heatmap values at the maxima; NaN likewise.
        pckh: PCKh over the persons whose image could be read; None where the annotations have no head sizes.
        skipped: persons left out because of their image.
        coco: COCO's AP and AR over the images that could be read, see keypoint_ap; None where there is nothing to
            compare with.
        box_source: where COCO's boxes came from, "annotations" or a detector's file; empty where they are not COCO's.
        results: the predictions in COCO's results format, see keypoint_results; None where they are not COCO's.
    """

    predictions: np.ndarray
    scores: np.ndarray
    pckh: dict[str, float] | None
    skipped: int
    coco: dict[str, float] | None = None
    box_source: str = ""
    results: list[dict[str, Any]] | None = None

    @property
    def score(self) -> float | None:
        """How good the network is: COCO's AP or the mean PCKh@0.5, percent; None where it is not known."""
        if self.coco:
            return self.coco["AP"]
        return self.pckh["Mean"] if self.pckh else None


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: PoseLoader,
    options: TrainOptions,
    stop: StopSignals | None = None,
    report: Callable[[int], None] = lambda persons: None,
) -> Evaluation | None:
    """Predicts the joints of all persons of `loader` and scores them. None if a stop signal came.

    `report` is called after each batch with the number of persons so far, on CUDA while the GPU may have up to
    `prefetch` batches of them still to do.
    """
    persons = loader.persons
    predictions = np.full((len(persons), persons.skeleton.num_joints, 2), np.nan, np.float32)
    scores = np.full(predictions.shape[:2], np.nan, np.float32)
    done: list[tuple[Tensor, Tensor, Tensor]] = []
    model.eval()
    with closing(loader.epoch()) as batches:
        for batch in batches:
            done.append((batch.rows, *predict(model, batch, persons.skeleton, options)))
            if stop is not None and stop.received:
                return None
            report(min((batch.step + 1) * loader.batch_size, len(persons)))
    for rows, points, values in done:
        predictions[rows.numpy()] = points.cpu().numpy()
        scores[rows.numpy()] = values.cpu().numpy()
    seen = np.zeros(len(persons), bool)
    seen[torch.cat([rows for rows, _, _ in done]).numpy()] = True
    if not np.isfinite(scores[seen]).all():
        raise NotFiniteError("the network's heatmaps are not numbers; its weights are worth nothing")
    result = None
    if persons.head_size is not None:
        result = pckh(predictions[seen], persons.keypoints[seen], persons.visible[seen], persons.head_size[seen])
        if math.isnan(result["Mean"]):
            raise ValueError("PCKh needs annotated joints, and the persons to evaluate have none")
    if (truth := persons.truth) is None:
        return Evaluation(predictions, scores, result, int((~seen).sum()))
    assert persons.image_id is not None
    results, ap = keypoint_results(persons, predictions, scores), None
    if truth.annotations:
        unread = set(persons.image_id[~seen].tolist())
        ap = keypoint_ap(truth, results, persons.skeleton.sigmas, without_images=unread)
        if math.isnan(ap["AP"]):
            raise ValueError("AP needs annotated joints, and the persons to evaluate have none")
    return Evaluation(predictions, scores, result, int((~seen).sum()), ap, truth.box_source, results)


def predict(model: nn.Module, batch: Batch, skeleton: Skeleton, options: TrainOptions) -> tuple[Tensor, Tensor]:
    """Joints of one batch: float32 [B, K, 2] in image pixels and scores float32 [B, K]; mirror test if options ask."""
    with autocast(batch.images.device, options):
        heatmaps = model(batch.images)
        flipped = model(batch.images.flip(-1)) if options.flip_test else None
    return fastpose.decode_heatmaps(
        heatmaps,
        refine=options.refine,
        heatmap_to_image=batch.heatmap_to_image,
        flipped=flipped,
        flip_pairs=skeleton.mirror_pairs if options.flip_test else None,
        flip_shift=options.flip_test and shifts_mirror_image(options),
        blur_kernel=options.blur_kernel,
    )


def shifts_mirror_image(options: TrainOptions) -> bool:
    """Whether option `flip_shift` means a shift. Without udp a crop's middle lies between columns: the mirror image's
    maps are 3/4 of a pixel off, and a pixel is the nearest that a shift can be. With udp they lie where they should."""
    return options.flip_shift == "on" or (options.flip_shift == "auto" and not options.udp)


def best_seen_person(persons: Persons, evaluation: Evaluation) -> int:
    """The row of the person with the highest scores among those with the most annotated joints."""
    annotated = persons.visible.sum(axis=1)
    scores = np.where(annotated == annotated.max(), evaluation.scores.mean(axis=1), -np.inf)
    return int(np.nanargmax(np.where(np.isnan(evaluation.scores).any(axis=1), -np.inf, scores)))


@torch.inference_mode()
def person_heatmaps(model: nn.Module, loader: PoseLoader, options: TrainOptions) -> np.ndarray:
    """The heatmaps, float32 [K, h, w], of a loader's first person, without the mirror test."""
    model.eval()
    with closing(loader.epoch()) as batches, autocast(loader.device, options):
        return model(next(batches).images)[0].float().cpu().numpy()


def choose_device(name: str) -> torch.device:
    """The torch device of option `device`: the CPU, CUDA, or the accelerator that torch finds (mps, xpu and so on).

    Raises:
        ValueError: no such device, or none that is there.
    """
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    except RuntimeError:  # not a device at all
        device = None
    found = torch.accelerator.current_accelerator(check_available=True)
    other = found.type if found is not None and found.type != "cuda" else ""
    if device is None or device.type not in ("cpu", "cuda", other):
        also = f" or {other}" if other else ""
        raise ValueError(f"device: expected auto, cpu, cuda or cuda:NUMBER{also}, got {name!r}")
    count = torch.cuda.device_count() if device.type == "cuda" else torch.accelerator.device_count()
    if device.type != "cpu" and (device.index or 0) >= count:
        raise ValueError(f"device: {name} was asked for, but torch finds {count} {device.type.upper()} devices")
    return device
