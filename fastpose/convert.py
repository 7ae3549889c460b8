# SPDX-License-Identifier: Apache-2.0
"""`python -m fastpose.convert DATASET OUT`: writes a data set of any known format as COCO's JSON."""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np

from fastpose.data.dataset import DATA_READING, CocoForm, Split
from fastpose.data.datasets import open_dataset
from fastpose.data.pack import Pack, is_pack
from fastpose.data.persons import Persons
from fastpose.data.sense import doubts_about_splits
from fastpose.ending import ends_in_one_line
from fastpose.files import make_folder, replacing, write_text, write_yaml
from fastpose.option import OptionError
from fastpose.options.asked import OWN_RECIPE, Command
from fastpose.options.settings import DEFAULTS, Settings
from fastpose.options.settle import data_option, settle
from fastpose.progress import CountedProgress
from fastpose.skeletons import Skeleton, skeleton_as_plain

log = logging.getLogger("fastpose.convert")  # __name__ is __main__ in a program

DESCRIPTION = """Write a data set as COCO's JSON: OUT/annotations/train.json and valid.json, and its joints as
OUT/skeleton.yaml. Images stay where they are; frames of videos become OUT/images. Who is left out, and why, is printed,
and so is the command that trains on the result."""

OFFERED = (
    *("dataset", "skeleton", "train_annotations", "valid_annotations", "head_boxes", "split_list"),
    *("images", "valid_images", "missing_images"),
    *DATA_READING,
    *("max_image_pixels", "max_annotation_bytes", "max_annotation_depth"),
)
# Those that say how to read the result, too.
_KEPT = ("missing_images", *DATA_READING, "max_image_pixels", "max_annotation_bytes", "max_annotation_depth")


def command() -> Command:
    """The options of `fastpose convert`."""
    places = {
        "data_set": "folder of the data set, what --data_root is for fastpose train",
        "out": "folder to write, new or empty",
    }
    return Command("convert", DESCRIPTION, None, OFFERED, places=places)


@ends_in_one_line
def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, 1 after an error."""
    return command().run(run, argv)


def run(_: None, asked: dict[str, Any]) -> int:
    """Writes both splits and the skeleton; prints what each has, and the command that trains on it."""
    root, out = asked.pop("data_set"), Path(asked.pop("out"))
    if is_pack(Path(root)):
        raise OptionError("data_set", f"{root} is a pack, which has no images; convert the data it was made from")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OptionError("out", f"expected a new or an empty folder, got {out}")
    settings = settle({**asked, **data_option(root, asked)}, instead={"synthetic_persons": 0})
    dataset = open_dataset(settings.data, settings.network.size)
    assert not isinstance(dataset, Pack)  # refused above
    forms: dict[Split, CocoForm] = {}
    persons: dict[Split, Persons] = {}
    for split in get_args(Split):
        forms[split] = dataset.as_coco(split)
        if not forms[split].frames:
            persons[split] = dataset.read(split)  # which checks what training would, before anything is written
    if len(persons) == len(forms):
        for doubt in doubts_about_splits(persons["train"], persons["valid"]):
            log.warning("%s", doubt)
    images: dict[str, Path] = {}
    for split, form in forms.items():
        if form.frames:
            form = _with_frames(form, out / "images", split)
        make_folder(out / "annotations")
        write_text(out / "annotations" / f"{split}.json", json.dumps(form.contents))
        images[split] = form.images
        people, pictures = (len(form.contents.get(key) or []) for key in ("annotations", "images"))
        print(f"{split}: {people:,} annotations on {pictures:,} images", flush=True)
    write_yaml(out / "skeleton.yaml", skeleton_as_plain(dataset.skeleton))
    print(
        f"wrote {out}; train on it with\n  {shlex.join(_training(out, images, dataset.skeleton, settings))}", flush=True
    )
    return 0


def _with_frames(form: CocoForm, folder: Path, split: str) -> CocoForm:
    """Writes the frames as PNG files into `folder`; their images then have their sizes."""
    make_folder(folder)
    progress = CountedProgress(f"writing {split}", "frames", len(form.frames))
    images = []
    try:
        for image in form.contents["images"]:
            name = image["file_name"]
            height, width = _write_frame(folder / name, form.frames[name])
            images.append({**image, "width": width, "height": height})
            progress.show(len(images))
    finally:
        progress.end()
    return CocoForm({**form.contents, "images": images}, folder)


def _write_frame(path: Path, frame: Callable[[], np.ndarray]) -> tuple[int, int]:
    try:
        picture = frame()
    except Exception as error:  # of whichever package reads the video
        raise ValueError(f"{path.name}: the frame cannot be read: {' '.join(str(error).split())[:300]}") from error
    code = cv2.COLOR_GRAY2BGR if picture.shape[2] == 1 else cv2.COLOR_RGB2BGR
    done, data = cv2.imencode(".png", cv2.cvtColor(picture, code))
    if not done:
        raise ValueError(f"{path}: the frame cannot be written as PNG")
    with replacing(path) as file:
        file.write(data.tobytes())
    return int(picture.shape[0]), int(picture.shape[1])


def _training(out: Path, images: Mapping[str, Path], skeleton: Skeleton, settings: Settings) -> list[str]:
    """The command that trains on what is written, where the recipe says that the annotations are."""
    options = {"recipe": OWN_RECIPE, "data_root": str(out), "skeleton": str(out / "skeleton.yaml")}
    for name, folder in zip(("images", "valid_images"), images.values(), strict=True):
        inside = folder.resolve().is_relative_to(out.resolve())
        options[name] = os.path.relpath(folder, out) if inside else str(folder.resolve())
    if options["images"] == options["valid_images"]:
        del options["valid_images"]
    flat = settings.flat()
    options |= {name: str(flat[name]) for name in _KEPT if flat[name] != DEFAULTS[name]}
    if not skeleton.sigmas:
        options["score"] = "pck"
    return ["fastpose", "train", *(word for name, value in options.items() for word in (f"--{name}", value))]


if __name__ == "__main__":
    sys.exit(main())
