# SPDX-License-Identifier: Apache-2.0
"""`python -m fastpose.predict`: finds the joints of persons in pictures and videos."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastpose.data.images import BadImageError, image_header, warn_of_surprises
from fastpose.data.inputs import BoxFile, find_inputs
from fastpose.data.opened import Detector
from fastpose.data.reading import Reading
from fastpose.data.video import VideoFile, VideoFrames
from fastpose.detectors import HELP as DETECTOR_HELP
from fastpose.detectors import make_detector
from fastpose.ending import Stopped, ends_in_one_line
from fastpose.engine.drawing import LEAST_SCORE
from fastpose.files import check_is_file
from fastpose.option import OptionError, check_at_least, option
from fastpose.options.asked import Command
from fastpose.people import People
from fastpose.predictions import KINDS, Found, Kind, Predictions
from fastpose.predictor import OPTIONS, OWN_DEFAULTS, Predictor
from fastpose.progress import CountedProgress
from fastpose.trained import OTHERS, TRUST_HELP

log = logging.getLogger("fastpose.predict")  # also where this is __main__

DESCRIPTION = """Find the joints of a person, or of several in boxes, in pictures and videos. Writes predictions.json,
with the box and the joints of every person, the same as keypoints_results.json in COCO's format and as predictions.csv,
and for every picture or video a copy with the skeletons drawn into it. Ends with 2 if a file could not be read. """

BAD_FILES = 2  # exit code
CHECKED = 1000  # pictures whose headers are read for their orientation
Box = Sequence[float]  # x, y, width, height, pixels, and perhaps a score


@dataclass(frozen=True)
class PredictOptions:
    """Which pictures to look at, where in them, and what to write."""

    checkpoint: str = option(
        dataclasses.MISSING,
        "checkpoint file, or a run's folder for its best.pt; SimpleBaselines' or mmpose's file; or a network's .onnx",
    )
    image: tuple[str, ...] = option(
        dataclasses.MISSING,
        "pictures, folders of pictures, patterns ('*.jpg'), videos (.mp4 and so on), or the number of a camera",
        once=True,
    )
    box: tuple[float, ...] = option(
        (),
        "X Y WIDTH HEIGHT of the person in every picture, pixels; four more for every further person; empty: the whole "
        "picture",
        once=True,
    )
    boxes: str = option(
        "",
        "file of the persons' boxes: COCO's results (.json), or text with NAME X Y WIDTH HEIGHT [SCORE] in each line",
    )
    least_box_score: float = option(0.0, "boxes of --boxes with a lower score are left out")
    detector: str = option("", DETECTOR_HELP)
    track: bool = option(
        False, "follow persons through videos: look where they were last, number them, and steady their joints"
    )
    detect_every: int = option(10, "with --track, frames from one search for new persons to the next")
    padding: float = option(1.25, "margin around the box as in training, factor; not used without a box")
    least_score: float = option(LEAST_SCORE, "score of a joint from which on it is drawn")
    save: tuple[Kind, ...] = option(KINDS, "what to write: json, coco, csv, pictures (also videos)", once=True)
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
        check_at_least(self, 1, "detect_every")
        if named := [name for name in ("box", "boxes", "detector") if getattr(self, name)][1:]:
            raise OptionError(named[0], "expected one of box, boxes and detector, got two")
        if not self.save:
            raise OptionError("save", f"expected some of {', '.join(KINDS)}, got none")


def command() -> Command:
    """The options of `fastpose predict`."""
    return Command(
        "predict", DESCRIPTION + OTHERS, PredictOptions, OPTIONS, otherwise="as in training", defaults=OWN_DEFAULTS
    )


@ends_in_one_line
def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, 2 if a file could not be read, or 1 after an error."""
    return command().run(run, argv)


def run(own: PredictOptions, asked: dict[str, Any]) -> int:
    """Predicts, draws and writes; what cannot be read is named and passed over."""
    inputs, out = find_inputs(own.image), Path(own.out)
    check_can_be_written(out, own.image)
    if own.track and inputs.pictures:
        raise OptionError("track", f"it is for videos and cameras, got the picture {inputs.pictures[0]}")
    targets = drawn_files(inputs.pictures, inputs.videos, out)
    if own.boxes:
        check_is_file("boxes", Path(own.boxes))
    boxes = BoxFile(Path(own.boxes), own.least_box_score) if own.boxes else None
    if boxes is not None and inputs.pictures and not any(map(boxes.of, inputs.pictures)):
        others = f"boxes of {boxes.unused[0]}" if boxes.unused else "no boxes"
        raise OptionError("boxes", f"{own.boxes} has {others}, and none of the pictures to look at")
    if any(isinstance(source, int) for source in inputs.videos):
        asked = {"eval_batch_size": 1} | asked  # what a camera sees is to be seen at once
    predictor = Predictor(
        own.checkpoint, padding=own.padding, on_bad_image="skip", trust_model=own.trust_model, **asked
    )
    reading = predictor.trained.settings.data.reading
    warn_of_surprises(inputs.pictures, dataclasses.replace(reading, upright=True), "image")
    say_which_way_up(inputs.pictures, reading)
    persons = Persons(own, boxes, make_detector(own.detector) if own.detector else None)
    predictions = Predictions(out, own.save, own.least_score)
    bad = 0
    try:
        bad += look_at_pictures(predictor, inputs.pictures, persons, targets, predictions)
        for source, target in zip(inputs.videos, targets[len(inputs.pictures) :], strict=True):
            bad += look_at_video(predictor, source, persons, target, predictions)
    except BaseException as error:  # a stop, or a wrong box after a thousand pictures: what is done stays
        if not predictions.found:
            raise
        predictions.write()
        kept = f"what was found in {len(predictions.found)} pictures or frames is in {out}"
        if isinstance(error, KeyboardInterrupt):
            raise Stopped.by(error, kept) from None
        log.warning("%s", kept)
        raise
    if boxes is not None and inputs.pictures and boxes.unused:
        log.warning(
            "%s: boxes of %d pictures that are not looked at, the first: %s",
            own.boxes,
            len(boxes.unused),
            boxes.unused[0],
        )
    if predictions.unseen:
        log.warning(
            "%d of %d persons have no joint with a score of --least_score %g, and are not drawn",
            *(predictions.unseen, predictions.persons, own.least_score),
        )
    if predictions.found:
        for file in short(predictions.write()):
            print(f"wrote {file}")
    if bad:
        log.warning("%d of %d files could not be read", bad, len(inputs.pictures) + len(inputs.videos))
    return BAD_FILES if bad else 0


@dataclass(frozen=True)
class Persons:
    """Where the persons are: the boxes of option `box`, of a file, what a detector finds, or nothing known."""

    own: PredictOptions
    file: BoxFile | None
    detector: Detector | None

    def of(self, picture: Path | None) -> list[Box] | None:
        """The boxes in a picture, or in every frame; None: the whole picture."""
        if self.file is not None:
            return list(self.file.of(picture))
        return [self.own.box[i : i + 4] for i in range(0, len(self.own.box), 4)] or None


def look_at_pictures(
    predictor: Predictor, pictures: Sequence[Path], persons: Persons, targets: Sequence[Path], predictions: Predictions
) -> int:
    """Finds the persons in pictures. Returns how many could not be read."""
    bad = 0
    boxes = persons.detector or (persons.of(path) for path in pictures)
    found = with_progress(predictor.stream(pictures, boxes), "pictures", len(pictures))
    for path, target, people in zip(pictures, targets, found, strict=False):
        if people.error is not None:
            log.warning("%s", people.error)
            bad += 1
        else:
            predictions.add(Found(str(path), people, target if "pictures" in predictions.kinds else None))
    return bad


def look_at_video(
    predictor: Predictor, source: Path | int, persons: Persons, target: Path, predictions: Predictions
) -> int:
    """Finds the persons in a video's frames. Returns 1 if it could not be read."""
    try:
        frames = VideoFrames(source)
    except BadImageError as error:
        log.warning("%s", error)
        return 1
    boxes = persons.of(source if isinstance(source, Path) else None)
    if boxes is not None and not boxes:
        log.warning("%s: no boxes of it in %s: nobody is looked for", frames.name, persons.own.boxes)
    drawn = target if "pictures" in predictions.kinds else None
    if persons.own.track:
        found = predictor.track(
            frames, persons.detector or boxes, detect_every=persons.own.detect_every, fps=frames.fps
        )
    else:
        found = predictor.stream(frames, persons.detector or (None if boxes is None else itertools.repeat(boxes)))
    try:
        with VideoFile(drawn, frames.fps) if drawn else nullcontext() as video:
            for number, people in enumerate(with_progress(found, "frames", frames.count)):
                predictions.add(Found(frames.name, people, drawn, number, number / frames.fps), video)
    finally:
        frames.close()
    seen = sum(found.image == frames.name for found in predictions.found)
    if seen + max(2, frames.count // 50) < frames.count:  # a container may count a few that there are not
        log.warning("%s: damaged: of its %d frames %d can be decoded", frames.name, frames.count, seen)
        return 1
    return 0


def with_progress(found: Iterator[People], unit: str, total: int) -> Iterator[People]:
    """The same, with a line of progress; `total` 0: nobody knows how many there will be."""
    progress = CountedProgress("predict", unit, total, also="persons")
    persons = 0
    try:
        for done, people in enumerate(found, 1):
            persons += len(people)
            progress.show(done, also=persons)
            yield people
    finally:
        progress.end()


def check_can_be_written(out: Path, images: Sequence[str]) -> None:
    """Raises OptionError if nothing can be written into the folder, which is made later; or if it is the folder of the
    pictures, where the next run would look at the drawings."""
    there = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise OptionError("out", f"expected a folder that may be written into, got {out}")
    if out.exists() and any(Path(name).is_dir() and Path(name).samefile(out) for name in images):
        raise OptionError("out", f"{out} is the folder of the pictures to look at; choose another --out")


def say_which_way_up(pictures: Sequence[Path], reading: Reading) -> None:
    """Says of photos that are turned upright that points and boxes are in pixels of what is seen then."""
    turned = []
    for path in pictures[:CHECKED]:
        try:
            if image_header(path, reading).orientation != 1:
                turned.append(path)
        except (BadImageError, OSError):
            continue
    if turned and reading.upright:
        log.warning(
            "%d pictures, the first %s, have an EXIF orientation and are turned upright, as viewers show them: boxes "
            "and joints are in pixels of the upright picture (--exif stored: of the picture as stored)",
            *(len(turned), turned[0]),
        )


def short(files: Sequence[Path], most: int = 6) -> list[str]:
    """The files to name: of many the last ones, and how many there are."""
    if len(files) <= most:
        return [str(file) for file in files]
    named = files[-3:]
    return [f"{len(files) - len(named)} pictures in {files[0].parent}", *map(str, named)]


def drawn_files(pictures: Sequence[Path], videos: Sequence[Path | int], out: Path) -> list[Path]:
    """The file in `out` for the drawing of each picture and video; numbered if there are several, as names can repeat.

    Raises:
        OptionError: one of the files is itself one of those to look at.
    """
    several = len(pictures) + len(videos) > 1
    names = [f"{path.stem}_pose.png" for path in pictures]
    names += [f"camera{source}_pose.mp4" if isinstance(source, int) else f"{source.stem}_pose.mp4" for source in videos]
    files = [out / (f"{i:03d}_" * several + name) for i, name in enumerate(names)]
    inputs = {path.resolve() for path in (*pictures, *videos) if isinstance(path, Path)}
    for file in files:
        if file.resolve() in inputs:
            raise OptionError(
                "out", f"{file} is one of the pictures to look at and would be overwritten; choose another --out"
            )
    return files


if __name__ == "__main__":
    sys.exit(main())
