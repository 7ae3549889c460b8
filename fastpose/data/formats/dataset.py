# SPDX-License-Identifier: Apache-2.0
"""Other programs' formats as a data set: a reader each, and for all of them COCO's persons, boxes and scores."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Set
from pathlib import Path
from typing import Any, ClassVar

from fastpose.data.annotation_rows import AnnotationError, as_json
from fastpose.data.coco import read_split, scorer_of
from fastpose.data.dataset import CocoForm, DataOptions, Scorer, Split
from fastpose.data.formats.csv_file import read_csv
from fastpose.data.formats.deeplabcut import read_deeplabcut
from fastpose.data.formats.found import Found, ordered, read_text
from fastpose.data.formats.lsp import read_lsp
from fastpose.data.formats.sleap import read_sleap
from fastpose.data.formats.yolo import read_yolo
from fastpose.data.persons import Persons
from fastpose.files import check_is_file
from fastpose.option import OptionError
from fastpose.skeletons import COCO, Skeleton, find_skeleton

log = logging.getLogger(__name__)

VALID_EVERY = 10  # of the images of a file that has both splits this many are one for validation


class Foreign:
    """Data in one of `FORMATS`, scored by AP or PCK. See `fastpose.data.dataset.Dataset`.

    Files are read when they are needed, as the data root may be a pack, which has none of them.

    Attributes:
        reader: from a file, which may have both splits, to the persons of one.
    """

    layout: ClassVar[Mapping[str, str]]
    reader: ClassVar[Callable[[Path, Split, DataOptions], Found]]
    joints: ClassVar[str] = COCO.name
    any_joints: ClassVar[bool] = True
    input_size: ClassVar[tuple[int, int]] = (256, 192)
    fits_boxes: ClassVar[bool] = True

    def __init__(self, data: DataOptions, size: tuple[int, int], skeleton: Skeleton | None = None) -> None:
        if data.detections:
            raise OptionError("detections", f"is for --dataset coco, got {data.detections!r} with {data.dataset}")
        self.data, self.size = data, size
        self._wanted = skeleton or (find_skeleton(data.skeleton) if data.skeleton else None)
        self._found: dict[Split, Found] = {}
        self._whole: Found | None = None

    @functools.cached_property
    def skeleton(self) -> Skeleton:
        """That which was asked for; else that of the training annotations, for both splits."""
        return self._wanted or self._read("train").skeleton

    def read(self, split: Split) -> Persons:
        found = self.found(split)
        if not any(one["num_keypoints"] for one in found.contents["annotations"]):
            raise AnnotationError(
                f"{self._file(split)}: {split}: nobody has an annotated joint on its {len(found.contents['images'])} "
                "images"
            )
        if found.frames:
            raise OptionError(
                "dataset",
                f"{self._file(split)} has {len(found.frames)} frames of videos, and pictures are needed: fastpose "
                f"convert {self.data.data_root} OUT --dataset {self.data.dataset} writes them",
            )
        file, own = self._file(split), (found.contents, found.images, found.records)
        return read_split(self.data, split, self.size, self.skeleton, file, *own)

    def scorer(self, persons: Persons) -> Scorer:
        return scorer_of(persons, self.data)

    def as_coco(self, split: Split) -> CocoForm:
        found = self.found(split)
        contents = found.contents
        if unsized := [image for image in contents["images"] if image["file_name"] in found.unsized]:
            log.warning(
                "%s: left out: %d images that cannot be read, which persons are annotated in shares of (the first: %s)",
                self._file(split),
                len(unsized),
                unsized[0]["file_name"],
            )
            readable = {image["id"] for image in contents["images"] if image["file_name"] not in found.unsized}
            contents = _of_images(contents, readable)
        return CocoForm(contents, found.images, found.frames)

    def found(self, split: Split) -> Found:
        """What the files have of a split, in the joints of `skeleton`."""
        called = f"skeleton {self.skeleton.name!r}" if self._wanted else self._file("train").name
        return ordered(self._read(split), self.skeleton, self._file(split), called)

    def _file(self, split: Split) -> Path:
        return self.data.path(f"{split}_annotations")

    def _read(self, split: Split) -> Found:
        """What the files have of a split, in their own joints."""
        if split not in self._found:
            file = self._file(split)
            found = self._whole or self._read_file(file, split)
            has_both = not found.is_split and self._file("train") == self._file("valid")
            if has_both and not self.data.valid_images:
                self._whole = found  # for the other split
            if self.data.split_list:
                check_is_file("split_list", self.data.path("split_list"))
                if not has_both:
                    raise OptionError("split_list", f"{file} is one split already, got {self.data.split_list!r}")
            self._found[split] = _part(found, split, file, self.data) if has_both else found
        return self._found[split]

    def _read_file(self, file: Path, split: Split) -> Found:
        check_is_file(f"{split}_annotations", file)
        found = type(self).reader(file, split, self.data)
        if found.dropped:
            log.warning("%s: left out: %s", file, found.dropped)
        return found


def _part(found: Found, split: Split, file: Path, data: DataOptions) -> Found:
    """The part of a file with both splits: validation has the images that the list names, without one every tenth."""
    images: list[dict[str, Any]] = found.contents["images"]
    if data.split_list:
        listed = _listed(data.path("split_list"), data.max_annotation_bytes)
        known = {image["file_name"] for image in images}
        if strange := [name for name in listed if name not in known]:
            raise AnnotationError(f"{data.path('split_list')}: names {as_json(strange[0])}, which {file} has not")
        valid = {image["id"] for image in images if image["file_name"] in listed}
    else:
        valid = {image["id"] for image in images[VALID_EVERY - 1 :: VALID_EVERY]}
    chosen = valid if split == "valid" else {image["id"] for image in images} - valid
    if not chosen:
        raise AnnotationError(
            f"{file}: no image is left for {split}: of its {len(images)} images {len(valid)} are for validation: name "
            "them with split_list"
        )
    if split == "valid":
        how = "as split_list says" if data.split_list else f"every {VALID_EVERY}th"
        log.info(
            "%s: has no split of its own: %d of its %d images are for validation, %s",
            file,
            len(valid),
            len(images),
            how,
        )
    contents = _of_images(found.contents, chosen)
    names = {image["file_name"] for image in contents["images"]}
    frames = {name: frame for name, frame in found.frames.items() if name in names}
    return found._replace(contents=contents, frames=frames)


def _of_images(contents: dict[str, Any], chosen: Set[int]) -> dict[str, Any]:
    """The same with the images of these ids alone, and who is on them."""
    return {
        **contents,
        "images": [image for image in contents["images"] if image["id"] in chosen],
        "annotations": [one for one in contents["annotations"] if one["image_id"] in chosen],
    }


def _listed(file: Path, most: int) -> dict[str, None]:
    """The names in a list, one a line; blank lines and lines that begin with # are skipped."""
    lines = (line.strip() for line in read_text(file, most).splitlines())
    return dict.fromkeys(line for line in lines if line and not line.startswith("#"))


def _in_format(reader: Callable[[Path, Split, DataOptions], Found], train: str, valid: str) -> type[Foreign]:
    """The data set of a reader; `train` and `valid` are what its files are usually called."""
    layout = {"train_annotations": train, "valid_annotations": valid, "images": "", "valid_images": ""}
    return type("Foreign", (Foreign,), {"layout": layout, "reader": staticmethod(reader)})


FORMATS: Mapping[str, type[Foreign]] = {
    "yolo": _in_format(read_yolo, "data.yaml", "data.yaml"),
    "lsp": _in_format(read_lsp, "joints.mat", "joints.mat"),
    "deeplabcut": _in_format(read_deeplabcut, "config.yaml", "config.yaml"),
    "sleap": _in_format(read_sleap, "train.pkg.slp", "val.pkg.slp"),
    "csv": _in_format(read_csv, "train.csv", "valid.csv"),
}
