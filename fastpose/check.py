# SPDX-License-Identifier: Apache-2.0
"""`python -m fastpose.check DATASET`: looks at all of a data set before anything is trained on it."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from fastpose.data.checks.copies import doubts_about_copies
from fastpose.data.checks.people import counts, doubts_about_persons
from fastpose.data.checks.pictures import Look, doubts_about_images, look_at_all, sizes_of
from fastpose.data.checks.report import Reported, heard, in_order, summary, table
from fastpose.data.dataset import DATA_READING, Split
from fastpose.data.datasets import is_mixture, open_dataset
from fastpose.data.findings import Finding
from fastpose.data.pack import is_pack
from fastpose.data.pack.format import margins_of
from fastpose.data.persons import Persons
from fastpose.data.sense import doubt_about_pairs, doubts, doubts_about_maps, doubts_about_names, doubts_about_splits
from fastpose.ending import ends_in_one_line
from fastpose.files import write_json
from fastpose.option import check_at_least, option
from fastpose.options.asked import Command
from fastpose.options.settle import settle_for
from fastpose.progress import CountedProgress

DESCRIPTION = """Look at all of a data set before training: print how many persons, joints and images there are, and
what is wrong or doubtful, each with how many and the first. The exit code is 1 if there are errors. docs/checking.md
says what each finding means."""

OFFERED = (
    *("dataset", "skeleton", "train_annotations", "valid_annotations", "head_boxes", "split_list"),
    *("images", "valid_images"),
    *DATA_READING,
    *("max_image_pixels", "max_annotation_bytes", "max_annotation_depth"),
)


@dataclass(frozen=True)
class CheckOptions:
    """How to look."""

    recipe: str = option("", "recipe that says what the data are, a name or a file; empty: the options alone")
    split: Literal["both", "train", "valid"] = option("both", "which of the two files of annotations to look at")
    json: str = option("", "file to write the same to as JSON; empty: none")
    small_px: float = option(32.0, "longer side of the box below which a person is counted as small, px")
    headers_only: bool = option(
        False, "read the headers of the images alone, which is quick: damaged pixels and copies are then not noticed"
    )
    threads: int = option(2, "threads that read and decode images, count")

    def __post_init__(self) -> None:
        check_at_least(self, 0, "small_px")
        check_at_least(self, 1, "threads")


def command() -> Command:
    """The options of `fastpose check`."""
    places = {"data_set": "folder of the data set, what --data_root is for fastpose train, or a pack"}
    return Command("check", DESCRIPTION, CheckOptions, OFFERED, places=places, otherwise="as the recipe says")


@ends_in_one_line
def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, 1 if the data have errors or cannot be read, 128 + signal number when it was stopped."""
    return command().run(run, argv)


def run(own: CheckOptions, asked: dict[str, Any]) -> int:
    """Looks at the data and prints what it found."""
    root = Path(asked.pop("data_set"))
    settings = settle_for(str(root), own.recipe, asked)
    # Missing images are found here, all of them; the boxes to look at are the annotated ones.
    kept = cast(Any, {"missing_images": "keep", "detections": "", "synthetic_persons": 0})
    data, packed = dataclasses.replace(settings.data, **kept), is_pack(root)
    dataset = open_dataset(data, margins_of(root, "train").size if packed else settings.network.size)
    splits: tuple[Split, ...] = ("train", "valid") if own.split == "both" else (own.split,)
    files: dict[str, str] = {split: getattr(data, f"{split}_annotations") for split in splits}
    if packed or is_mixture(data.dataset):
        files = dict.fromkeys(splits, str(root) if packed else data.dataset)
    people: dict[str, Persons] = {}
    found: list[tuple[str, Finding]] = []
    for split in splits:
        said: list[Finding] = []
        with heard(said):
            people[split] = dataset.read(split)
        found += [(split, finding) for finding in said]
    looks: dict[Path, Look] = {}
    if packed:
        found.append(("", Finding("pack", "it is a pack: its annotations are looked at, and not its pixels")))
    else:
        looks = look_at_images(own, people)
    sizes = {
        split: np.full((len(persons.image_paths), 2), np.nan)
        if packed
        else sizes_of(persons, [looks[path] for path in persons.image_paths])
        for split, persons in people.items()
    }
    for name, persons in people.items():
        about = doubts(persons, sizes[name]) + doubts_about_persons(persons, sizes[name], own.small_px)
        if not packed:
            about += doubts_about_images(persons, [looks[path] for path in persons.image_paths])
        found += [(name, finding) for finding in about]
    about_pairs = [*doubts_about_names(dataset.skeleton), doubt_about_pairs(dataset.skeleton)]
    found += [("", Finding("mirror_pairs", text)) for text in about_pairs if text]
    about_maps = doubts_about_maps(people[splits[0]])
    found += [("", Finding("joint_map_crossed", text)) for text in about_maps]
    if len(people) > 1:
        found += [("", finding) for finding in doubts_about_splits(people["train"], people["valid"])]
    if not packed:
        found += doubts_about_copies(people, looks)
    # The first case of what is about both splits is in the validation data.
    reported = in_order(Reported(finding, name, files[name or splits[-1]]) for name, finding in found)
    columns = {name: counts([(persons, sizes[name])], own.small_px) for name, persons in people.items()}
    if len(people) > 1:
        columns["both"] = counts([(persons, sizes[name]) for name, persons in people.items()], own.small_px)
    print(f"{table(columns, own.small_px)}\n")
    for one in reported:
        print(one)
    print(summary(reported))
    if own.json:
        findings = [one.as_plain() for one in reported]
        write_json(Path(own.json), {"data_set": str(root), "files": files, "counts": columns, "findings": findings})
    return int(any(one.level == "error" for one in reported))


def look_at_images(own: CheckOptions, people: dict[str, Persons]) -> dict[Path, Look]:
    """`look_at_all` of the images of all splits, with a line of progress."""
    paths = list(dict.fromkeys(path for persons in people.values() for path in persons.image_paths))
    progress = CountedProgress("looking at images", "images", len(paths), stays=False)
    reading = next(iter(people.values())).reading
    try:
        return look_at_all(paths, reading, decode=not own.headers_only, threads=own.threads, progress=progress.show)
    finally:
        progress.end()


if __name__ == "__main__":
    sys.exit(main())
