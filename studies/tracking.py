# SPDX-License-Identifier: Apache-2.0
"""How well `Predictor.track` keeps to the persons of a film, by what a detector finds in each of its frames.

python -m studies.tracking film.mp4 --checkpoint best.pt --detector yolox=yolox_nano.onnx --every 1 10 30

The detector looks at every frame for the measure, and the tracker gets what it found in one of so many. A person is
kept to where a track's box and the detector's overlap by more than half, each made square, as widths change with the
arms; a track is false where it overlaps with no detected person by 0.3; a switch is a person with another number than
in the frame before.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fastpose
from fastpose.data.video import VideoFrames
from fastpose.detectors import make_detector
from fastpose.tracking import best_pairs, overlap

Boxes = NDArray[np.float64]


class Replayed:
    """A detector that found all it finds before: of the frame `now`."""

    def __init__(self, found: list[Any]) -> None:
        self.found, self.now = found, 0

    def __call__(self, pictures: Any) -> list[Any]:
        return [self.found[self.now]]


def squares(boxes: Any) -> list[Boxes]:
    """The boxes x, y, w, h, each around its own centre and as wide as it is high."""
    boxes = np.asarray(boxes, np.float64)
    boxes = boxes.reshape(len(boxes), -1)[:, :4] if len(boxes) else boxes.reshape(0, 4)
    sides = boxes[:, 2:].max(axis=1, keepdims=True, initial=0)
    return list(np.concatenate([boxes[:, :2] + (boxes[:, 2:] - sides) / 2, sides, sides], axis=1))


def matched(persons: list[Boxes], tracked: list[Boxes]) -> dict[int, int]:
    """Which track each detected person has, the best overlaps first."""
    pairs = [(overlap(a, b), i, j) for i, a in enumerate(persons) for j, b in enumerate(tracked)]
    return dict(best_pairs(pair for pair in pairs if pair[0] > 0.5))


def measured(frames: Any, found: list[Any], predictor: fastpose.Predictor, every: int) -> dict[str, Any]:
    """What the head of the table says, of frames in which a detector found these boxes."""
    known, persons = Replayed(found), [squares(boxes) for boxes in found]
    kept, false, switches, numbers = 0, 0, 0, set[int]()
    before: dict[int, Boxes] = {}
    tracked = predictor.track(frames, known, detect_every=every)
    for known.now in range(len(persons)):
        people, here = next(tracked), persons[known.now]
        boxes, ids = squares(people.boxes), people.ids.tolist()
        track_of = matched(here, boxes)
        kept += len(track_of)
        false += sum(max((overlap(box, person) for person in here), default=0) < 0.3 for box in boxes)
        numbers.update(ids)
        after = {ids[track]: here[person] for person, track in track_of.items()}
        for number, box in after.items():
            switches += any(overlap(box, other) > 0.5 for one, other in before.items() if one != number) and (
                number not in before or overlap(box, before[number]) < 0.5
            )
        before = after or before
    total = sum(map(len, persons))
    return {
        "the detector looks at one frame in": every,
        "it finds": total,
        "kept to": f"{kept / max(total, 1):.1%}",
        "false per frame": f"{false / max(len(persons), 1):.2f}",
        "switches": switches,
        "numbers": len(numbers),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a Markdown table; returns 0."""
    parser = argparse.ArgumentParser(prog="python -m studies.tracking", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("film", type=Path)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--detector", required=True, help="as of fastpose predict")
    parser.add_argument("--every", type=int, nargs="+", default=[1, 10, 30], help="detect_every")
    parser.add_argument("--frames", type=int, default=300, help="at most")
    options = parser.parse_args(argv)
    detector = make_detector(options.detector)
    found = [detector([frame])[0] for frame in itertools.islice(VideoFrames(options.film), options.frames)]
    predictor = fastpose.Predictor(options.checkpoint)
    rows = [measured(VideoFrames(options.film), found, predictor, every) for every in options.every]
    print("| " + " | ".join(rows[0]) + " |\n" + "|---" * len(rows[0]) + "|")
    for row in rows:
        print("| " + " | ".join(map(str, row.values())) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
