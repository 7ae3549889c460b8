# SPDX-License-Identifier: Apache-2.0
"""`python -m fastpose.predict`: finds the joints of persons in pictures."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastpose.data.boxes import persons_in_boxes
from fastpose.data.images import image_size, read_image, warn_of_surprises
from fastpose.data.reading import Reading
from fastpose.device import choose_device
from fastpose.ending import ends_in_one_line
from fastpose.engine import pictures
from fastpose.engine.evaluation import predict_all
from fastpose.engine.loading import make_loader
from fastpose.files import write_json
from fastpose.models.decoding import DecodeOptions
from fastpose.option import OptionError, option
from fastpose.options.asked import Command
from fastpose.trained import OTHERS, TRUST_HELP, load_trained

DESCRIPTION = """Find the joints of a person, or of several in boxes, in each picture. Writes predictions.json, with the
box and the joints of every person, and for every picture a copy with the skeletons drawn into it. """

OFFERED = (
    *("model", "targets", "split_ratio", "simcc_sigma", "size", "dataset", "skeleton", "color_order", "udp"),
    *(field.name for field in dataclasses.fields(DecodeOptions)),
    *("exif", "sixteen_bits", "max_image_pixels", "device"),
)
# Without annotations to agree with, a photo is what viewers show.
OWN_DEFAULTS = {"flip_test": True, "exif": "upright", "device": "auto"}
INSTEAD = {**OWN_DEFAULTS, "on_bad_image": "error", "decoder": "cpu", "resident": False}

Box = Sequence[float]  # x, y, width, height, pixels


@dataclass(frozen=True)
class PredictOptions:
    """Which pictures to look at, and where in them."""

    checkpoint: str = option(
        dataclasses.MISSING, "checkpoint file, or a run's folder for its best.pt; or SimpleBaselines' or mmpose's file"
    )
    image: tuple[str, ...] = option(dataclasses.MISSING, "picture files", once=True)
    box: tuple[float, ...] = option(
        (),
        "X Y WIDTH HEIGHT of the person in every picture, pixels; four more for every further person; empty: the whole "
        "picture",
        once=True,
    )
    padding: float = option(1.25, "margin around the box as in training, factor; not used without a box")
    out: str = option("predictions", "folder to write to")
    trust_model: bool = option(False, TRUST_HELP)

    def __post_init__(self) -> None:
        sides = np.array(self.box[2::4] + self.box[3::4])
        if len(self.box) % 4 or not np.isfinite(self.box).all() or (sides <= 0).any():
            raise OptionError(
                "box",
                "expected X Y WIDTH HEIGHT of each person, with positive width and height, got "
                f"{' '.join(f'{number:g}' for number in self.box)}",
            )
        if not 0.0 < self.padding < float("inf"):
            raise OptionError("padding", f"expected a positive factor, got {self.padding}")


@ends_in_one_line
def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 1 after an error."""
    command = Command(
        "predict", DESCRIPTION + OTHERS, PredictOptions, OFFERED, otherwise="as in training", defaults=OWN_DEFAULTS
    )
    return command.run(run, argv)


def run(own: PredictOptions, asked: dict[str, Any]) -> int:
    """Predicts and writes predictions.json and the drawn pictures."""
    device = choose_device(asked.get("device", "auto"))
    images, out = [Path(name) for name in own.image], Path(own.out)
    targets = drawn_files(images, out)
    trained = load_trained(own.checkpoint, asked, device, instead=INSTEAD, trust_model=own.trust_model)
    settings, skeleton, network = trained.settings, trained.skeleton, trained.settings.network
    reading = settings.data.reading
    warn_of_surprises(
        images, dataclasses.replace(reading, upright=True), "image"
    )  # not upright only if it was asked for
    boxes = boxes_in(images, own.box, reading)
    persons = persons_in_boxes(images, boxes, network.size, skeleton, own.padding if own.box else 1.0)
    persons = dataclasses.replace(persons, reading=reading)
    batch_size = settings.schedule.eval_batch_size
    loader = make_loader(persons, network, settings.pixels, settings.compute, device, batch_size=batch_size)
    evaluation = predict_all(trained.decoder(), loader)
    assert evaluation is not None  # only a stop signal makes it None, and none is listened for
    out.mkdir(parents=True, exist_ok=True)
    found = []
    for number, (path, drawn) in enumerate(zip(images, targets, strict=True)):
        rows = np.flatnonzero(persons.image_index == number)
        pictures.draw_pose(drawn, read_image(path, reading=reading), evaluation.predictions[rows], skeleton)
        for box, row in zip(boxes[number], rows, strict=True):
            points, scores = evaluation.predictions[row], evaluation.scores[row]
            joints = {
                name: {"x": float(x), "y": float(y), "score": float(score)}
                for name, (x, y), score in zip(skeleton.joints, points, scores, strict=True)
            }
            found.append({"image": str(path), "box": box, "joints": joints, "drawn": str(drawn)})
        print(f"wrote {drawn}")
    write_json(out / "predictions.json", found)
    print(f"wrote {out / 'predictions.json'}")
    return 0


def drawn_files(images: Sequence[Path], out: Path) -> list[Path]:
    """The file in `out` for the drawing of each image; numbered if there are several, as names can repeat.

    Raises:
        OptionError: one of the files is itself one of the images.
    """
    several = len(images) > 1
    files = [out / (f"{i:03d}_" * several + f"{path.stem}_pose.png") for i, path in enumerate(images)]
    inputs = {path.resolve() for path in images}
    for file in files:
        if file.resolve() in inputs:
            raise OptionError(
                "out", f"{file} is one of the pictures to look at and would be overwritten; choose another --out"
            )
    return files


def boxes_in(images: Sequence[Path], numbers: Sequence[float], reading: Reading) -> list[list[Box]]:
    """The boxes (x, y, width, height) in each image: of 4 numbers each, or without numbers one of the whole image.

    Raises:
        OptionError: a box does not touch one of the images.
        BadImageError: see image_size.
    """
    boxes: list[Box] = [numbers[i : i + 4] for i in range(0, len(numbers), 4)]
    found = []
    for path in images:
        height, width = image_size(path, reading)
        for x, y, w, h in boxes:
            if x >= width or y >= height or x + w <= 0 or y + h <= 0:
                raise OptionError(
                    "box",
                    f"{x:g} {y:g} {w:g} {h:g} lies outside {path}, which is {width} pixels wide and {height} high",
                )
        found.append(boxes or [(0.0, 0.0, float(width), float(height))])
    return found


if __name__ == "__main__":
    sys.exit(main())
