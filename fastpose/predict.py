# SPDX-License-Identifier: Apache-2.0
"""`python -m fastpose.predict`: finds the joints of persons in pictures."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastpose import drawing
from fastpose.build import load_model, make_loader
from fastpose.checkpoint import checkpoint_file
from fastpose.config import NetworkOptions, option, run_command
from fastpose.data.images import image_size, read_image
from fastpose.data.persons import Persons
from fastpose.engine import choose_device, evaluate
from fastpose.report import write_json
from fastpose.skeletons import Skeleton

DESCRIPTION = """Find the joints of a person, or of several in boxes, in each picture. Writes predictions.json, with the
box and the joints of every person, and for every picture a copy with the skeletons drawn into it."""

Box = Sequence[float]  # x, y, width, height, pixels


@dataclass(frozen=True)
class PredictOptions(NetworkOptions):
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
    flip_test: bool = option(True, "look at the picture and its mirror image and average their heatmaps")
    device: str = option("auto", "cpu, cuda, cuda:1, mps, xpu and so on; auto: cuda where there is one, else cpu")

    def __post_init__(self) -> None:
        sides = np.array(self.box[2::4] + self.box[3::4])
        if len(self.box) % 4 or not np.isfinite(self.box).all() or (sides <= 0).any():
            raise ValueError(
                "box: expected X Y WIDTH HEIGHT of each person, with positive width and height, got "
                f"{' '.join(f'{number:g}' for number in self.box)}"
            )
        if not 0.0 < self.padding < float("inf"):
            raise ValueError(f"padding: expected a positive factor, got {self.padding}")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 1 after an error."""
    return run_command("predict", DESCRIPTION, PredictOptions, run, argv)


def run(given: PredictOptions) -> int:
    """Predicts and writes predictions.json and the drawn pictures."""
    device = choose_device(given.device)
    images = [Path(name) for name in given.image]
    targets = drawn_files(images, Path(given.out))
    model, trained, skeleton = load_model(checkpoint_file(Path(given.checkpoint)), device, given)
    boxes = boxes_in(images, given.box)
    options = dataclasses.replace(
        trained,
        flip_test=given.flip_test,
        on_bad_image="error",
        decoder="cpu",
        resident=False,
    )
    persons = persons_in_boxes(images, boxes, given.padding if given.box else 1.0, options.size, skeleton)
    evaluation = evaluate(model, make_loader(persons, options, device, training=False), options)
    assert evaluation is not None  # only a stop signal makes it None, and none is listened for
    out = Path(given.out)
    out.mkdir(parents=True, exist_ok=True)
    found = []
    for number, (path, drawn) in enumerate(zip(images, targets, strict=True)):
        rows = np.flatnonzero(persons.image_index == number)
        drawing.draw_pose(drawn, read_image(path), evaluation.predictions[rows], skeleton)
        for box, row in zip(boxes[number], rows, strict=True):
            named = {
                name: {"x": float(x), "y": float(y), "score": float(score)}
                for name, (x, y), score in zip(
                    skeleton.joints, evaluation.predictions[row], evaluation.scores[row], strict=True
                )
            }
            found.append({"image": str(path), "box": box, "joints": named, "drawn": str(drawn)})
        print(f"wrote {drawn}")
    write_json(out / "predictions.json", found)
    print(f"wrote {out / 'predictions.json'}")
    return 0


def drawn_files(images: Sequence[Path], out: Path) -> list[Path]:
    """The file in `out` for the drawing of each image; numbered where there are several, as names can repeat.

    Raises:
        ValueError: one of the files is itself one of the images.
    """
    several = len(images) > 1
    files = [out / (f"{i:03d}_" * several + f"{path.stem}_pose.png") for i, path in enumerate(images)]
    inputs = {path.resolve() for path in images}
    for file in files:
        if file.resolve() in inputs:
            raise ValueError(
                f"out: {file} is one of the pictures to look at and would be overwritten; choose another --out"
            )
    return files


def boxes_in(images: Sequence[Path], given: Sequence[float]) -> list[list[Box]]:
    """The boxes (x, y, width, height) in each image: those of `given`, 4 numbers each, else one of the whole image.

    Raises:
        ValueError: a box does not touch one of the images.
        BadImageError: see image_size.
    """
    boxes: list[Box] = [given[i : i + 4] for i in range(0, len(given), 4)]
    found = []
    for path in images:
        height, width = image_size(path)
        for x, y, w, h in boxes:
            if x >= width or y >= height or x + w <= 0 or y + h <= 0:
                raise ValueError(
                    f"box: {x:g} {y:g} {w:g} {h:g} lies outside {path}, which is {width} pixels wide and {height} high"
                )
        found.append(boxes or [(0.0, 0.0, float(width), float(height))])
    return found


def persons_in_boxes(
    images: Sequence[Path],
    boxes_of: Sequence[Sequence[Box]],
    padding: float,
    size: tuple[int, int],
    skeleton: Skeleton,
) -> Persons:
    """Persons without annotations in the boxes (x, y, width, height in pixels) of each image, image by image.

    A box grows to the aspect ratio of the network's input `size` (h, w), so that nothing of it is cut off, and then by
    the factor `padding`.
    """
    boxes = np.array([box for of_image in boxes_of for box in of_image], np.float32)
    aspect = size[1] / size[0]
    width = np.maximum(boxes[:, 2], boxes[:, 3] * aspect) * padding
    count, joints = len(boxes), skeleton.num_joints
    return Persons(
        image_paths=tuple(images),
        image_index=np.repeat(np.arange(len(images)), [len(of_image) for of_image in boxes_of]),
        center=boxes[:, :2] + boxes[:, 2:] / 2,
        scale=(np.stack([width, width / aspect], axis=1) / 200).astype(np.float32),
        keypoints=np.zeros((count, joints, 2), np.float32),
        visible=np.zeros((count, joints), np.float32),
        head_size=None,
        source_row=np.arange(count),
        skeleton=skeleton,
    )


if __name__ == "__main__":
    sys.exit(main())
