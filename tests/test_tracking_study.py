# SPDX-License-Identifier: Apache-2.0
"""studies/tracking.py: what it counts, on persons of dots whose ways are known."""

from __future__ import annotations

import numpy as np
import pytest

import fastpose
from studies.tracking import measured
from tests.helpers import dots


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> fastpose.Predictor:
    return fastpose.Predictor(**dots.write(tmp_path_factory.mktemp("dots")), device="cpu")


WAYS = np.stack([[dots.at(30 + 4 * frame, 20), dots.at(200, 30 + 3 * frame)] for frame in range(20)])  # [20, 2, 3, 2]
FRAMES = [dots.draw(persons) for persons in WAYS]
FOUND = [dots.boxes(persons) for persons in WAYS]
KEPT = {"it finds": 40, "kept to": "100.0%", "false per frame": "0.00", "switches": 0, "numbers": 2}


@pytest.mark.parametrize("every", [1, 5, 50])
def test_two_persons_who_do_not_meet_are_kept_to(predictor: fastpose.Predictor, every: int) -> None:
    assert measured(FRAMES, FOUND, predictor, every) == {"the detector looks at one frame in": every, **KEPT}


def test_whom_the_detector_does_not_know_of_is_false(predictor: fastpose.Predictor) -> None:
    """In the first frame it finds both, and is asked no more; by its own word one of them is not there from then on."""
    row = measured(FRAMES, [FOUND[0], *(boxes[:1] for boxes in FOUND[1:])], predictor, 50)
    assert (row["it finds"], row["kept to"], row["false per frame"]) == (21, "100.0%", "0.95")


def test_who_jumps_to_the_place_of_another_with_a_new_number_is_a_switch(predictor: fastpose.Predictor) -> None:
    """Nobody is found for longer than a number is kept; then somebody stands where the last one did."""
    empty = np.zeros_like(FRAMES[0])
    frames = [FRAMES[0], *[empty] * 17, FRAMES[0]]
    row = measured(frames, [FOUND[0], *[FOUND[0][:0]] * 17, FOUND[0]], predictor, 1)
    assert (row["kept to"], row["switches"], row["numbers"]) == ("100.0%", 2, 4)
