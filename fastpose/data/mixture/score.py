# SPDX-License-Identifier: Apache-2.0
"""The scores of several data sets, each of its own kind and in its own joints, and their mean."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fastpose.data.dataset import Scorer, Yardstick, format_values
from fastpose.data.joint_errors import known_mean
from fastpose.data.persons import MEAN, Sets
from fastpose.option import OptionError


class MixtureScorer:
    """The score of each set for its own persons. Values: ``Mean``, the mean of what ranks networks in each set, and
    ``SET/VALUE`` for each of their own.

    Predictions have the network's joints, and each set's score gets its own: those that the network lacks are at the
    middle of the person's box with score 0, and not compared.

    Args:
        sets: of N persons.
        scorers: of the persons of each set, without joints that the network lacks.
    """

    name, main, label = "mixture", MEAN, "mean score"
    curves: Mapping[str, str] = {MEAN: "mean of the sets"}

    def __init__(self, sets: Sets, scorers: Sequence[Scorer]) -> None:
        self.sets, self.scorers = sets, scorers
        self.names = [part.name for part in sets.parts]
        pairs = list(zip(self.names, scorers, strict=True))
        self.notes: Mapping[str, Any] = {f"{name}/{note}": v for name, one in pairs for note, v in one.notes.items()}
        self.note = "; ".join(f"{name}: {one.label}{f', {one.note}' if one.note else ''}" for name, one in pairs)

    def needs(self, *, to_train: bool) -> None:
        for name, scorer in zip(self.names, self.scorers, strict=True):
            try:
                scorer.needs(to_train=to_train)
            except OptionError as error:
                raise OptionError("dataset", f"set {name!r}: {error}") from error

    def score(self, predictions: np.ndarray, scores: np.ndarray, seen: np.ndarray) -> dict[str, float] | None:
        found: dict[str, float] = {}
        means = []
        for number, (name, scorer) in enumerate(zip(self.names, self.scorers, strict=True)):
            of_set = self.sets.index == number
            if not seen[of_set].any():
                continue
            with _naming(name):
                values = scorer.score(*self._own(number, predictions, scores), seen[of_set])
            if values:
                means.append(values[scorer.main])
                found |= {f"{name}/{value}": number_ for value, number_ in values.items()}
        return {MEAN: known_mean(means), **found} if found else None

    def table(self, values: Mapping[str, float] | None) -> str:
        parts = [format_values({f"{MEAN} of the sets": values[MEAN]})] if values else []
        for name, scorer in zip(self.names, self.scorers, strict=True):
            begin = f"{name}/"
            own = {key.removeprefix(begin): one for key, one in (values or {}).items() if key.startswith(begin)}
            parts.append(f"{name} ({scorer.label}):\n{scorer.table(own or None)}")
        return "\n\n".join(parts)

    def write(self, folder: Path, predictions: np.ndarray, scores: np.ndarray) -> Path:
        """Writes the predictions of each set in its own format into a folder of its name; returns `folder`."""
        for number, (name, scorer) in enumerate(zip(self.names, self.scorers, strict=True)):
            (folder / name).mkdir(parents=True, exist_ok=True)
            scorer.write(folder / name, *self._own(number, predictions, scores))
        return folder

    def yardstick(self) -> Yardstick:
        """That of each set for its own persons; joints that a set lacks have none. Its unit is each set's own."""
        count = len(self.sets.parts[0].joints)
        right, half = (np.zeros((len(self.sets.index), count)) for _ in range(2))
        owns = [scorer.yardstick() for scorer in self.scorers]
        for number, (part, own) in enumerate(zip(self.sets.parts, owns, strict=True)):
            has = np.flatnonzero(part.joints >= 0)
            place = np.ix_(self.sets.index == number, has)
            right[place], half[place] = own.right[:, part.joints[has]], own.half[:, part.joints[has]]
        rule = "; ".join(f"{name}: {own.rule}" for name, own in zip(self.names, owns, strict=True))
        similarity = "; ".join(f"{name}: {own.similarity}" for name, own in zip(self.names, owns, strict=True))
        return Yardstick(right, rule, 1.0, half, similarity)

    def fingerprint(self) -> str:
        """That of each set, with what the list says of it: a run that goes on has no other place to notice that the
        list now says how to score."""
        return "; ".join(
            f"{part.name}: {json.dumps(dict(part.options), sort_keys=True)}, {scorer.fingerprint()}"
            for part, scorer in zip(self.sets.parts, self.scorers, strict=True)
        )

    def _own(self, number: int, predictions: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Predictions and scores for the persons of a set, in its joints; NaN where the image could not be read."""
        part, rows = self.sets.parts[number], self.sets.index == number
        persons, has = part.persons, part.joints >= 0
        unread = ~np.isfinite(scores[rows]).all(axis=1)
        joints = persons.skeleton.num_joints
        points = np.repeat(persons.center[:, None], joints, axis=1)
        certain = np.zeros((len(persons), joints), np.float32)
        points[:, part.joints[has]] = predictions[rows][:, has]
        certain[:, part.joints[has]] = scores[rows][:, has]
        points[unread], certain[unread] = np.nan, np.nan
        return points, certain


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Puts the set before the message of a score's error."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"set {name!r}: {error}") from error
