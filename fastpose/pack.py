# SPDX-License-Identifier: Apache-2.0
"""`python -m fastpose.pack DATASET OUT`: cuts the persons of a data set out, into a few files that load quickly."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import sys
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastpose.build import DATA_OPTIONS, describe, read_split
from fastpose.config import (
    TrainOptions,
    check_at_least,
    find_recipe,
    from_plain,
    make_parser,
    naming,
    option,
    parse,
    read_recipe,
)
from fastpose.data.augmentation import Augmentation
from fastpose.data.packed import Margins, Plan, is_pack, write_pack
from fastpose.data.persons import Persons
from fastpose.report import duration

DESCRIPTION = """Pack a data set: of each person the region that training can ask for, at the resolution that it needs,
with the annotations, in a few large files. Train and evaluate on it with --data_root OUT. A stopped command goes on
where it was when it is given again; on a complete pack it compares all checksums and mends what is damaged."""


@dataclass(frozen=True)
class PackOptions:
    """How to pack. None stands for what the recipe says."""

    recipe: str = option("", "recipe to pack for, a name or a file; empty: the defaults of fastpose train")
    format: Literal["raw", "jpeg"] = option(
        "raw", "what to store: pixels, quickest to load, or JPEGs, about a tenth of the size"
    )
    quality: int = option(90, "quality of the JPEGs, 1 to 100")
    shard_bytes: int = option(1 << 30, "size from which on a file is followed by another, bytes")
    threads: int = option(2, "threads that decode and encode, count")
    train_annotations: str | None = option(None, "training annotations, as for fastpose train")
    valid_annotations: str | None = option(None, "validation annotations, as for fastpose train")
    head_boxes: str | None = option(None, "head boxes of the validation .json, as for fastpose train")
    split_list: str | None = option(None, "validation persons of a .mat, as for fastpose train")
    images: str | None = option(None, "directory of the images")
    missing_images: Literal["error", "drop"] | None = option(
        None, "what to do with annotations whose image is not there"
    )
    on_bad_image: Literal["error", "skip"] | None = option(
        None, "what to do with an image that cannot be decoded: stop with its name, or leave that to the training"
    )
    size: tuple[int, ...] = option((), "height and width of the largest crops to take, pixels; empty: the recipe's")
    rotation: float | None = option(None, "largest rotation of the training crops, degrees either way")
    scale_min: float | None = option(None, "smallest scaling of the person's box in training, factor")
    scale_max: float | None = option(None, "largest scaling of the person's box in training, factor")
    half_body: float | None = option(
        None, "probability of half-body crops in training, 0 to 1: above 0 their regions are packed too"
    )
    reduced_decode: bool | None = option(
        None, "average pixels that are finer than any crop needs; otherwise keep all, in several times the space"
    )

    def __post_init__(self) -> None:
        check_at_least(self, 1, "quality", "shard_bytes", "threads")
        if self.quality > 100:
            raise ValueError(f"quality: expected 1 to 100, got {self.quality}")

    def for_training(self, dataset: str) -> TrainOptions:
        """The options of a training on these data: the recipe's, with those given here in their place."""
        recipe = find_recipe(self.recipe) if self.recipe else None
        held = read_recipe(recipe) if recipe else {}
        names = {field.name for field in dataclasses.fields(TrainOptions)}
        given = {n: value for n, value in dataclasses.asdict(self).items() if n in names and value not in (None, ())}
        try:
            return from_plain(TrainOptions, held | given | {"data_root": dataset}).with_files()
        except ValueError as error:
            raise ValueError(naming(recipe, error, held.keys() - given.keys())) from error


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, 1 after an error, 128 + signal number when it was stopped."""
    parser = make_parser("fastpose pack", DESCRIPTION, PackOptions)
    parser.add_argument("dataset", type=str, help="folder of the data set, what --data_root is for fastpose train")
    parser.add_argument("out", type=str, help="folder to write, new or of an earlier call")
    given, paths = parse(parser, PackOptions, sys.argv[1:] if argv is None else argv)
    try:
        return run(given, paths["dataset"], Path(paths["out"]))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped by SIGINT; the same command goes on", file=sys.stderr)
        return 128 + signal.SIGINT


def run(given: PackOptions, dataset: str, out: Path) -> int:
    """Packs both splits and says how large the result is."""
    options = given.for_training(dataset)
    # Refuses what no training could ask for.
    Augmentation(options.rotation, (options.scale_min, options.scale_max), half_body=options.half_body)
    if is_pack(options.resolved_data_root()):
        raise ValueError(f"dataset: {dataset} is a pack itself; pack the data it was made from")
    splits = {"train": read_split(options, "train"), "valid": read_split(options, "valid")}
    reduce = options.reduced_decode
    low, high, half_body = options.scale_min, options.scale_max, options.half_body > 0.0
    margins = {
        "train": Margins(options.size, options.rotation, low, high, reduce, half_body),
        "valid": Margins(options.size, 0.0, 1.0, 1.0, reduce),
    }
    plan = Plan(
        given.format,
        given.quality,
        given.shard_bytes,
        margins,
        {split: f"{describe(persons)}, {describe_scoring(persons)}" for split, persons in splits.items()},
        {name: getattr(options, name) for name in DATA_OPTIONS},
    )
    bar = ProgressBar()
    try:
        new = write_pack(out, plan, splits, threads=given.threads, on_bad_image=options.on_bad_image, progress=bar.show)
    finally:
        bar.end_line()
    total = sum(path.stat().st_size for path in out.iterdir())
    persons = " and ".join(f"{len(persons)} {split}" for split, persons in splits.items())
    state = "wrote" if new else "already there, nothing to do:"
    print(f"{state} {out}: {persons} persons, {total:,} bytes", flush=True)
    return 0


def describe_scoring(persons: Persons) -> str:
    """Tells what is packed for scores from others: head sizes, or what COCO's evaluation goes by."""
    if persons.truth is not None and persons.box_score is not None:
        truth = json.dumps(dataclasses.asdict(persons.truth)).encode() + persons.box_score.tobytes()
        return f"checksum of COCO's annotations and scores of boxes {zlib.crc32(truth):08x}"
    if persons.head_size is None:
        return "no head sizes"
    return f"checksum of the head sizes {zlib.crc32(persons.head_size.tobytes()):08x}"


class ProgressBar:
    """Progress on standard output: on a terminal a bar that renews itself, elsewhere a line at every tenth of a split.

    The time left is that of the persons packed so far; those that were there already do not count.
    """

    def __init__(self) -> None:
        self.terminal = sys.stdout.isatty()
        self.split, self.found, self.tenths = "", 0, -1
        self.begin = self.last = self.drawn = time.monotonic()
        self.open = False

    def show(self, split: str, done: int, found: int, total: int) -> None:
        """The callback of `write_pack`."""
        now = time.monotonic()
        if split != self.split:
            self.split, self.found, self.tenths, self.begin = split, 0, -1, self.last
        if found > self.found:  # the time went into comparing checksums
            self.found = found
            self.begin += now - self.last
        self.last = now
        text = f"{done:{len(str(total))}d}/{total} persons packed"
        if done > found:
            text += f", {duration((now - self.begin) / (done - found) * (total - done))} left"
        if not self.terminal:
            if done * 10 // total > self.tenths:
                self.tenths = done * 10 // total
                print(f"{split}: {text}", flush=True)
        elif done == total or now - self.drawn >= 0.1:
            self.drawn = now
            room = shutil.get_terminal_size().columns - len(f"{split} [] {text} ")
            bar = ("#" * (room * done // total)).ljust(room, ".")
            print(f"\r\x1b[2K{split} [{bar}] {text}", end="", flush=True)
            self.open = True
            if done == total:
                self.end_line()

    def end_line(self) -> None:
        """What is printed next begins on a line of its own."""
        if self.open:
            print(flush=True)
            self.open = False


if __name__ == "__main__":
    sys.exit(main())
