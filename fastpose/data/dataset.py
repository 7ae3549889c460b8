# SPDX-License-Identifier: Apache-2.0
"""What a data set and a score are to the rest of fastpose, and the options that say which data to use.

Each data set has a room of its own in this package, with its annotations and its score; `datasets.py` lists them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import numpy as np

from fastpose.data.persons import Persons
from fastpose.data.reading import MOST_PIXELS, Reading
from fastpose.option import OptionError, check_at_least, option
from fastpose.skeletons import SKELETONS, Skeleton

Split = Literal["train", "valid"]


@dataclass(frozen=True)
class DataOptions:
    """Which data to train and evaluate on, and which score to give.

    `fastpose.options.settle` fills in the names of files that were not named, from the data set's own layout.
    """

    data_root: str = option(
        "",
        "directory the data paths are relative to, or a pack (see fastpose pack), which has all of the data; empty: "
        "the environment variable FASTPOSE_DATA_ROOT, else data/mpii or data/coco",
    )
    dataset: str = option(
        "mpii",
        "format of the annotations: mpii, scored by PCKh; coco, with whichever joints a skeleton names, scored by AP "
        "(pip install pycocotools) or, with --score pck, by PCK; a data set in COCO's form with joints of its own "
        "(docs/formats.md): wholebody, crowdpose, aic, human_art, halpe26, halpe136; another program's "
        "(docs/converting.md), scored like coco: yolo, lsp, deeplabcut, sleap, csv; or a YAML file that lists several "
        "such sets (docs/mixtures.md)",
    )
    skeleton: str = option(
        "",
        f"joints of data in COCO's format: {', '.join(SKELETONS)}, or a YAML file (see docs/skeletons.md); empty: "
        "the data set's own",
    )
    train_annotations: str = option(
        "",
        "training annotations: MPII .json (community) or .mat (official), COCO .json, or another program's file; "
        "empty: annot/train.json, for COCO annotations/person_keypoints_train2017.json, for others their usual name",
    )
    valid_annotations: str = option(
        "",
        "validation annotations, in the same formats; empty: annot/valid.json, for COCO "
        "annotations/person_keypoints_val2017.json, for others their usual name",
    )
    head_boxes: str = option(
        "annot/gt_valid.mat", "head boxes of the validation .json for PCKh; not used with a .mat, which has its own"
    )
    detections: str = option(
        "",
        "a detector's boxes of persons, to evaluate COCO in: below data_root, in the format of "
        "COCO_val2017_detections_AP_H_56_person.json; empty: the annotations' own boxes, with which AP is some points "
        "higher than the published ones",
    )
    split_list: str = option(
        "",
        "text file that names the validation persons of MPII's .mat, one IMAGE or IMAGE PERSON (from 0) per line, or "
        "the validation images of another program's file; the rest is for training; empty with .json",
    )
    images: str = option(
        "",
        "directory of the images; empty: images; for COCO, if no annotations are named either, train2017 and, to "
        "evaluate, val2017",
    )
    valid_images: str = option("", "directory of the validation images; empty: that of `images`")
    missing_images: Literal["error", "drop"] = option("error", "what to do with annotations whose image does not exist")
    exif: Literal["stored", "upright"] = option(
        "stored",
        "which picture the annotations are for, if a file has an EXIF orientation: its pixels as stored, as published "
        "data sets mean it; or the upright picture that browsers and other viewers show",
    )
    sixteen_bits: Literal["upper", "stretch"] = option(
        "upper",
        "how pictures of 16 bits a channel become 8 bits: the upper 8 of them; or each picture's smallest value "
        "becomes 0 and its largest 255, for cameras of 10 to 14 bits",
    )
    max_image_pixels: int = option(MOST_PIXELS, "pixels beyond which an image is not decoded but a bad image, count")
    synthetic_persons: int = option(
        0, "synthetic persons to generate in data_root unless they are there, count; 0: never"
    )
    synthetic_seed: int = option(0, "seed of the synthetic persons")
    score: Literal["auto", "pck"] = option(
        "auto", "score of data in COCO's format; auto: AP; pck: PCK, with AUC, EPE and NME"
    )
    category: str = option(
        "",
        "category of a file in COCO's format to read, by its name, or all that have joints: all; empty: the only one "
        "that has, or of several the one named person",
    )
    visibility_3: Literal["unannotated", "annotated"] = option(
        "unannotated", "what joints in COCO's format are whose v is 3, as CropCOCO has them outside of the picture"
    )
    least_visibility: float = option(
        0.0, "joints in COCO's format whose v is a share between 0 and 1 are annotated from this one on"
    )
    max_detections: int = option(20, "poses of an image that AP counts, those with the highest scores; COCO's is 20")
    max_annotation_bytes: int = option(4 << 30, "largest JSON file of annotations or detections to read, bytes")
    max_annotation_depth: int = option(100, "how deep objects and lists in such a file may be in each other, count")
    pck_norm: Literal["box", "torso", "pixels"] = option(
        "box",
        "what PCK measures errors in: the longer side of the person's annotated box; its torso, from the left shoulder "
        "to the right hip; or pck_pixels",
    )
    pck_threshold: float = option(0.2, "largest error that PCK counts as right, in units of pck_norm")
    pck_pixels: float = option(30.0, "normaliser of AUC, and of PCK with pck_norm pixels; image pixels")

    def __post_init__(self) -> None:
        check_at_least(self, 0, "synthetic_persons", "synthetic_seed")
        check_at_least(self, 1, "max_detections", "max_image_pixels", "max_annotation_bytes", "max_annotation_depth")
        if not 0.0 <= self.least_visibility <= 1.0:
            raise OptionError("least_visibility", f"expected a share from 0 to 1, got {self.least_visibility}")
        for name in ("pck_threshold", "pck_pixels"):
            if not 0.0 < getattr(self, name) < float("inf"):
                raise OptionError(name, f"expected a positive number, got {getattr(self, name)}")

    @property
    def reading(self) -> Reading:
        """How image files become pixels."""
        return Reading(self.exif == "upright", self.sixteen_bits == "stretch", self.max_image_pixels)

    def path(self, name: str) -> Path:
        """The file or directory that option `name` names, below the data root."""
        return Path(self.data_root) / getattr(self, name)

    def images_path(self, split: Split) -> Path:
        """The directory of a split's images."""
        return self.path("valid_images" if split == "valid" and self.valid_images else "images")


# The options that say what the data are: files below the data root, and their format.
DATA_FILES = (
    "dataset",
    "train_annotations",
    "valid_annotations",
    "head_boxes",
    "detections",
    "split_list",
    "images",
    "valid_images",
)
LAYOUT = ("train_annotations", "valid_annotations", "images", "valid_images")  # what a data set's layout names
# Those that say how these files are read. Packs have them where they are not at their defaults: those made before there
# was a choice stay what they are.
DATA_READING = ("exif", "sixteen_bits", "category", "visibility_3", "least_visibility")


def named_files(values: Mapping[str, Any], layout: Mapping[str, str]) -> dict[str, str]:
    """The files and directories of the data set's layout, for those of LAYOUT that `values` does not name."""
    layout = dict(layout)
    if layout["images"] and any(
        values[name] not in ("", layout[name]) for name in ("train_annotations", "valid_annotations")
    ):
        layout |= {"images": "images", "valid_images": ""}  # a layout of their own
    if values["images"]:
        layout["valid_images"] = ""
    return {name: values[name] or layout[name] for name in LAYOUT}


class Yardstick(NamedTuple):
    """What a score measures the errors of N persons' joints by, for a run's page.

    Attributes:
        right: float64 [N, J] px, the largest error that counts as right; 0 where that is not known.
        rule: the same in words.
        threshold: that error in the unit which the score is named by, 0.5 of PCKh@0.5; 0: it has no such unit.
        half: float64 [N, J] px, the error at which a joint's similarity with its annotation is one half; 0: not known.
        similarity: where `half` comes from, in words.
    """

    right: np.ndarray
    rule: str
    threshold: float
    half: np.ndarray
    similarity: str


# For joints without COCO's sigmas, or persons without an area.
STAND_IN = (
    "COCO's sigmas or the persons' areas are not known here, so that the similarity is one half where an error is the "
    "largest that the score counts as right"
)


class Scorer(Protocol):
    """The score of predictions for certain persons: arrays in, numbers, a table and a file out.

    Attributes:
        name: its key in the files of a run: "pckh", "coco", "wholebody".
        main: which of its values ranks networks; higher is better.
        label: what people call that value: "PCKh@0.5", "AP".
        curves: the values that curves.png shows, and what to call them there.
        notes: what every score needs beside it in files, such as the source of the boxes: texts and numbers.
        note: the same for people; empty if there is nothing.
    """

    name: str
    main: str
    label: str
    curves: Mapping[str, str]
    notes: Mapping[str, Any]
    note: str

    def needs(self, *, to_train: bool) -> None:
        """Raises OptionError, naming what is missing, if these persons cannot be scored.

        `to_train`: there must be a score, as training goes by it; otherwise predictions without one are possible.
        """
        ...

    def score(self, predictions: np.ndarray, scores: np.ndarray, seen: np.ndarray) -> dict[str, float] | None:
        """Scores predictions [N, K, 2] in image pixels with the network's scores [N, K].

        Args:
            predictions, scores: one row per person, NaN where the image could not be read.
            seen: bool [N], whether it could.

        Returns:
            Values by name, percent unless the name says otherwise, NaN if nobody is annotated; None if there is
            nothing to compare with.

        Raises:
            ValueError: there are annotations, and none for any of the persons seen.
        """
        ...

    def table(self, values: Mapping[str, float] | None) -> str:
        """The values as a table for people, or why there are none."""
        ...

    def write(self, folder: Path, predictions: np.ndarray, scores: np.ndarray) -> Path:
        """Writes the predictions in the data set's own format into `folder`; returns the file."""
        ...

    def yardstick(self) -> Yardstick:
        """What the errors of these persons' joints are measured by."""
        ...

    def fingerprint(self) -> str:
        """Distinguishes what is compared with from other annotations: a pack is made again if it changes."""
        ...


class CocoForm(NamedTuple):
    """What a split's file in COCO's format would have, see `fastpose convert`.

    Attributes:
        contents: images, annotations and categories, as JSON has them.
        images: the folder that the names of images are relative to.
        frames: pictures that are no files, such as those of videos, by their names in `contents`: each gives uint8
            [h, w, 3], RGB, or [h, w, 1], grey.
    """

    contents: dict[str, Any]
    images: Path
    frames: Mapping[str, Callable[[], np.ndarray]] = {}


class Dataset(Protocol):
    """A data set in one format: a class made from options, the network's input (h, w) and its joints.

    `Dataset(data, size, skeleton)`: `size` matters where boxes grow to the network's aspect ratio; `skeleton` is that
    of the network to evaluate, None to take the data set's own.

    Attributes:
        layout: the files and directories that the options may leave out, by option.
        joints: the name of its skeleton, among `SKELETONS`, if no file names another.
        any_joints: whether a file may name others, option `skeleton`.
        input_size: (h, w) that networks for it usually take, for files of weights that do not say.
        fits_boxes: whether boxes grow to the aspect ratio of the network's input when they are read.
        skeleton: the joints of `read`'s persons.
    """

    layout: ClassVar[Mapping[str, str]]
    joints: ClassVar[str]
    any_joints: ClassVar[bool]
    input_size: ClassVar[tuple[int, int]]
    fits_boxes: ClassVar[bool]

    @property
    def skeleton(self) -> Skeleton: ...

    def __init__(self, data: DataOptions, size: tuple[int, int], skeleton: Skeleton | None = None) -> None:
        """Raises OptionError if the options are not for this format, or the joints not for this data set."""
        ...

    def read(self, split: Split) -> Persons:
        """Reads the annotations of a split.

        Raises:
            FileNotFoundError: a file or folder is missing; names the option and the path.
            ValueError: a file contains something unusable; names the file and the record.
        """
        ...

    def scorer(self, persons: Persons) -> Scorer:
        """The score for these persons, which `read` gave, or some of them."""
        ...

    def as_coco(self, split: Split) -> CocoForm:
        """A split in COCO's form, with joints in the order of `skeleton`. Raises what `read` raises."""
        ...


def format_values(values: Mapping[str, float]) -> str:
    """Scores as a table of two lines, one column per name; NaN (nobody is annotated) is shown as a dash."""
    cells = [(name, "-" if math.isnan(value) else f"{value:.2f}") for name, value in values.items()]
    widths = [max(len(name), len(value), 6) for name, value in cells]
    header = "  ".join(name.rjust(width) for (name, _), width in zip(cells, widths, strict=True))
    row = "  ".join(value.rjust(width) for (_, value), width in zip(cells, widths, strict=True))
    return f"{header}\n{row}"
