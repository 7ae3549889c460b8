# SPDX-License-Identifier: Apache-2.0
"""From which error on a joint is half as similar to its annotation as it can be, by COCO's sigmas and areas."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fastpose.data.boxes import PADDING
from fastpose.data.coco.ap import BOX_AREA, to_find
from fastpose.data.persons import Persons


def half_errors(persons: Persons, sigmas: Sequence[float]) -> tuple[np.ndarray, str]:
    """The error at which COCO's similarity ``exp(-d^2 / (2 * area * (2 * sigma)^2))`` of a joint is one half.

    Args:
        persons: N persons of `read_coco`.
        sigmas: one for each of the K joints.

    Returns:
        float64 [N, K] px; and in words what it was made of.
    """
    area, source = _areas(persons)
    own = "the skeleton's sigmas" if persons.skeleton.sigmas else f"sigmas of {sigmas[0]:g} for all joints"
    half = 2.0 * np.asarray(sigmas, np.float64) * np.sqrt(2.0 * math.log(2.0) * area)[:, None]
    return half, f"COCO's keypoint similarity, by {own} and {source}"


def _areas(persons: Persons) -> tuple[np.ndarray, str]:
    """The area of each person in square px, float64 [N]: that of its annotation, if persons and annotations are in one
    order, else a share of its box."""
    truth = persons.truth
    if truth is not None:
        found = to_find(truth)  # type: ignore[arg-type]
        numbers = dict(zip(truth["image_ids"], truth.get("image_numbers", truth["image_ids"]), strict=True))
        images = [numbers.get(one["image_id"]) for one in found]
        if images and images == persons.extras["image_id"].tolist():
            return np.array([float(one["area"]) for one in found]), "the annotations' areas"
    return BOX_AREA * np.prod(persons.scale.astype(np.float64) * 200 / PADDING, axis=1), f"{BOX_AREA} of the box's area"
