# SPDX-License-Identifier: Apache-2.0
"""Predictions for all persons of a loader, and their score."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastpose.data.dataset import Scorer
from fastpose.data.loader import PoseLoader
from fastpose.data.persons import Persons
from fastpose.engine.epoch import NotFiniteError, StopSignals
from fastpose.models.decoding import Decoder


@dataclass(frozen=True)
class Evaluation:
    """Predictions for N persons in the order of the annotations.

    Attributes:
        predictions: float32 [N, K, 2], (x, y) in image pixels; NaN for persons whose image could not be read.
        scores: float32 [N, K], heatmap values at the maxima; NaN likewise.
        seen: bool [N], whether the person's image could be read.
    """

    predictions: np.ndarray
    scores: np.ndarray
    seen: np.ndarray

    @property
    def skipped(self) -> int:
        """Persons left out because of their image."""
        return int((~self.seen).sum())


@torch.inference_mode()
def predict_all(
    decoder: Decoder,
    loader: PoseLoader,
    stop: StopSignals | None = None,
    report: Callable[[int], None] = lambda persons: None,
) -> Evaluation | None:
    """Finds the joints of all persons of `loader`. None if a stop signal came.

    Of several ranks each does its part of the batches; the first one then has all of them, the others have their own.

    `report` is called after each batch with the number of persons so far, on CUDA while the GPU may have up to
    `prefetch` batches of them still to do.

    Raises:
        NotFiniteError: the network's heatmaps are not numbers.
        BadImageError: see PoseLoader.epoch.
    """
    persons = loader.persons
    predictions = np.full((len(persons), persons.skeleton.num_joints, 2), np.nan, np.float32)
    scores = np.full(predictions.shape[:2], np.nan, np.float32)
    done: list[tuple[Tensor, Tensor, Tensor]] = []
    stopped = 0
    decoder.model.eval()
    with loader.ranks.failing_together(), closing(loader.epoch()) as batches:
        for batch in batches:
            loader.ranks.alive()
            if len(batch.rows):
                done.append((batch.rows, *decoder(batch.images, batch.heatmap_to_image)))
            if stop is not None and (stopped := stop.received):
                break
            report(min((batch.step + 1) * loader.batch_size, len(persons)))
    if loader.ranks.most(stopped):
        return None
    seen = np.zeros(len(persons), bool)
    found = [tuple(tensor.cpu().numpy() for tensor in tensors) for tensors in done]
    for part in loader.ranks.gathered(found) or [found]:
        for rows, points, values in part:
            predictions[rows], scores[rows], seen[rows] = points, values, True
    if loader.ranks.count > 1 and not loader.ranks.most(len(done)):
        raise loader.nothing_read()
    with loader.ranks.failing_together():
        if not np.isfinite(scores[seen]).all():
            raise NotFiniteError("the network's heatmaps are not numbers; its weights are worth nothing")
    return Evaluation(predictions, scores, seen)


@dataclass(frozen=True)
class Scored:
    """An evaluation with its score.

    Attributes:
        evaluation: the predictions.
        values: see Scorer.score; None if there is nothing to compare with.
        scorer: whose score it is.
    """

    evaluation: Evaluation
    values: dict[str, float] | None
    scorer: Scorer

    @property
    def score(self) -> float | None:
        """The value that ranks networks, percent; None if it is not known."""
        return self.values[self.scorer.main] if self.values else None


def scored(evaluation: Evaluation, scorer: Scorer) -> Scored:
    """Scores an evaluation; errors as from Scorer.score."""
    return Scored(evaluation, scorer.score(evaluation.predictions, evaluation.scores, evaluation.seen), scorer)


def scores_entry(scorer: Scorer, values: dict[str, float] | None) -> dict[str, Any]:
    """What files of a run have of a score, under its name: the values and the score's notes; null without one.

    JSON has no NaN: values without annotated joints or persons are null. Of several data sets those named SET/VALUE
    come together under SET.
    """
    if values is None:
        return {scorer.name: None}
    plain = {name: None if math.isnan(value) else value for name, value in values.items()}
    entry: dict[str, Any] = {}
    for name, value in (plain | dict(scorer.notes)).items():
        of_set, _, own = name.rpartition("/")
        (entry.setdefault(of_set, {}) if of_set else entry)[own] = value
    return {scorer.name: entry}


def best_seen_person(persons: Persons, evaluation: Evaluation, among: NDArray[np.bool_] | None = None) -> int:
    """The row of the person with the highest scores among those with the most annotated joints; of `among`, bool [N],
    if not of all."""
    annotated = np.where(True if among is None else among, persons.visible.sum(axis=1), -1)
    scores = np.where(annotated == annotated.max(), evaluation.scores.mean(axis=1), -np.inf)
    return int(np.nanargmax(np.where(np.isnan(evaluation.scores).any(axis=1), -np.inf, scores)))


@torch.inference_mode()
def heatmaps_of(decoder: Decoder, loader: PoseLoader, row: int) -> np.ndarray:
    """The heatmaps, float32 [K, h, w], of one person of a loader, without the mirror test. For a network of SimCC a map
    is the product of a joint's two vectors, cut at 0, over its maximum; it has a pixel per bin."""
    decoder.model.eval()
    with decoder.compute.autocast(loader.device):
        outputs = decoder.model(loader.batch(torch.tensor([row])).images)
    if decoder.simcc is None:
        return outputs[0].float().cpu().numpy()
    x, y = (vectors[0].float().clamp(min=0.0) for vectors in outputs)
    maps = y[:, :, None] * x[:, None, :]
    return (maps / maps.amax((1, 2), keepdim=True).clamp(min=1e-6)).cpu().numpy()
