# SPDX-License-Identifier: Apache-2.0
"""COCO's score for a run: AP of the validation persons, and their predictions as COCO's server takes them."""

from __future__ import annotations

import json
import logging
import math
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastpose.data.annotation_rows import as_json
from fastpose.data.coco.ap import (
    BOX_AREA,
    MAX_DETECTIONS,
    UNKNOWN_SIGMA,
    CocoTruth,
    ceiling,
    keypoint_ap,
    keypoint_results,
    of_joints,
    own_ids,
    require_pycocotools,
    sigmas_of,
    to_find,
)
from fastpose.data.coco.similar import half_errors
from fastpose.data.dataset import Yardstick, format_values
from fastpose.data.persons import Persons
from fastpose.files import write_text
from fastpose.option import OptionError

log = logging.getLogger(__name__)

_VALUES_PER_ROW = 10  # of the table for people: as many as COCO has


class Measure(NamedTuple):
    """What a data set's own AP is, where it is not COCO's.

    name: its key in the files of a run. ap: called as `keypoint_ap` is. written: a result as the data set's files have
    it, of one that COCO's have.
    """

    name: str
    ap: Callable[..., dict[str, float]]
    written: Callable[[dict[str, Any]], dict[str, Any]] = dict


class ApScorer:
    """COCO's AP and AR over the images that could be read, see `keypoint_ap`, or a measure of the same arguments.

    Args:
        persons: N persons of `read_coco`.
        truth: what they are compared with; None for those to train on: nothing.
        max_detections: how many poses of an image count.
        measure: the AP, with AP and AP50 among its values; None: COCO's.
    """

    main, label = "AP", "AP"
    curves: Mapping[str, str] = {"AP": "AP", "AP50": "AP50"}

    def __init__(
        self,
        persons: Persons,
        truth: CocoTruth | None,
        max_detections: int = MAX_DETECTIONS,
        measure: Measure | None = None,
    ) -> None:
        self.persons, self.max_detections = persons, max_detections
        self.measure = measure or Measure("coco", keypoint_ap)
        self.name = self.measure.name
        self.truth = truth or CocoTruth(box_source="annotations", category=1, image_ids=[], annotations=[])
        if persons.scored is not None:
            self.truth = of_joints(self.truth, persons.scored)
        notes: dict[str, Any] = {"box_source": self.truth["box_source"]}
        self.note = f"boxes: {self.truth['box_source']}"
        if no_box := self.truth.get("no_box", 0):
            notes["boxes_from_joints"] = no_box
            self.note += f", those of {no_box} of {len(to_find(self.truth))} persons around their joints"
        if no_area := self.truth.get("no_area", 0):
            notes["areas_from_boxes"] = no_area
            self.note += f", areas of {no_area} of {len(to_find(self.truth))} persons: {BOX_AREA} of the box"
        if not persons.skeleton.sigmas:
            notes["sigmas"] = UNKNOWN_SIGMA
            self.note += f", sigmas of all joints: {UNKNOWN_SIGMA}"
        if max_detections != MAX_DETECTIONS:
            notes["max_detections"] = max_detections
            self.note += f", {max_detections} poses an image"
        self.notes: Mapping[str, Any] = notes
        self._results_of: tuple[np.ndarray, list[dict[str, Any]]] | None = None

    def needs(self, *, to_train: bool) -> None:
        if to_train and not self.truth["annotations"]:
            raise OptionError("valid_annotations", "AP needs annotated persons to compare with, and there are none")
        if self.truth["annotations"]:
            require_pycocotools()
            if not self.persons.skeleton.sigmas:
                log.warning(
                    "skeleton %r has no sigmas: AP takes %s for each joint: compare it only with AP computed so, too",
                    *(self.persons.skeleton.name, UNKNOWN_SIGMA),
                )
        if self.truth.get("no_area"):
            log.warning(
                "persons without an area, or with one of 0: %d of %d: AP takes %s of their box",
                *(self.truth["no_area"], len(to_find(self.truth)), BOX_AREA),
            )
        if limit := ceiling(self.truth, self.max_detections):
            log.warning(
                "AP counts at most %d poses of an image, and image %s has %d persons: AP cannot be above %.1f, AR "
                "not above %.1f (max_detections)",
                *(self.max_detections, as_json(limit.image), limit.persons, limit.ap, limit.ar),
            )

    def score(self, predictions: np.ndarray, scores: np.ndarray, seen: np.ndarray) -> dict[str, float] | None:
        if not self.truth["annotations"]:
            return None
        unread = {
            ids["image_id"] for ids, read in zip(own_ids(self.persons, self.truth), seen, strict=True) if not read
        }
        values = self.measure.ap(
            self.truth,
            self.results(predictions, scores),
            sigmas_of(self.persons.skeleton),
            without_images=unread,
            max_detections=self.max_detections,
        )
        if math.isnan(values["AP"]):
            raise ValueError("AP needs annotated joints, and the persons to evaluate have none")
        return values

    def results(self, predictions: np.ndarray, scores: np.ndarray) -> list[dict[str, Any]]:
        """See `keypoint_results`. Those of the last predictions are kept, as scoring and writing both want them."""
        if self._results_of is None or self._results_of[0] is not predictions:
            found = keypoint_results(self.persons, self.truth["category"], predictions, scores, self.truth)
            self._results_of = (predictions, found)
        return self._results_of[1]

    def table(self, values: Mapping[str, float] | None) -> str:
        if not values:
            return "no annotations, no AP: predictions only"
        cells = list(values.items())
        starts = range(0, len(cells), _VALUES_PER_ROW)
        return "\n".join([*(format_values(dict(cells[at : at + _VALUES_PER_ROW])) for at in starts), self.note])

    def write(self, folder: Path, predictions: np.ndarray, scores: np.ndarray) -> Path:
        """Writes keypoints_results.json; a person whose image could not be read is absent."""
        path = folder / "keypoints_results.json"
        results = [self.measure.written(one) for one in self.results(predictions, scores)]
        write_text(path, json.dumps(results, allow_nan=False))
        return path

    def yardstick(self) -> Yardstick:
        half, similarity = half_errors(self.persons, sigmas_of(self.persons.skeleton))
        return Yardstick(half, "a similarity of at least 0.5 with the annotation", 0.0, half, similarity)

    def fingerprint(self) -> str:
        if not self.truth["image_ids"]:
            return "no head sizes"  # what the packs of version 0.1 say: they are to be gone on with
        truth = json.dumps(self.truth).encode() + self.persons.extras["box_score"].tobytes()
        return f"checksum of COCO's annotations and scores of boxes {zlib.crc32(truth):08x}"
