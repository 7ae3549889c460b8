# SPDX-License-Identifier: Apache-2.0
"""`python -m fastpose.pack DATASET OUT`: cuts the persons of a data set out, into a few files that load quickly."""

from __future__ import annotations

import dataclasses
import signal
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from fastpose.build import DATA_OPTIONS, describe, read_split
from fastpose.config import TrainOptions, check_at_least, find_recipe, from_plain, make_parser, option, parse
from fastpose.data.packed import Margins, Plan, is_pack, write_pack
from fastpose.data.persons import Persons

DESCRIPTION = """Pack a data set: of each person the region that training can ask for, at the resolution that it needs,
with the annotations, in a few large files. Train and evaluate on it with --data_root OUT. A stopped command goes on
where it was when it is given again."""


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
    reduced_decode: bool | None = option(
        None, "average pixels that are finer than any crop needs; otherwise keep all, in several times the space"
    )

    def __post_init__(self) -> None:
        check_at_least(self, 1, "quality", "shard_bytes", "threads")
        if self.quality > 100:
            raise ValueError(f"quality: expected 1 to 100, got {self.quality}")

    def for_training(self, dataset: str) -> TrainOptions:
        """The options of a training on these data: the recipe's, with those given here in their place."""
        recipe = yaml.safe_load(find_recipe(self.recipe).read_text(encoding="utf-8")) if self.recipe else {}
        names = {field.name for field in dataclasses.fields(TrainOptions)}
        given = {n: value for n, value in dataclasses.asdict(self).items() if n in names and value not in (None, ())}
        return from_plain(TrainOptions, recipe | given | {"data_root": dataset})


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, 1 after an error, 128 + signal number when it was stopped."""
    parser = make_parser("fastpose pack", DESCRIPTION, PackOptions)
    parser.add_argument("dataset", type=str, help="folder of the data set, what --data_root is for fastpose train")
    parser.add_argument("out", type=str, help="folder to write, new or of an earlier call")
    given, paths = parse(parser, PackOptions, sys.argv[1:] if argv is None else argv)
    try:
        return run(given, paths["dataset"], Path(paths["out"]))
    except (TypeError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped by SIGINT; the same command goes on", file=sys.stderr)
        return 128 + signal.SIGINT


def run(given: PackOptions, dataset: str, out: Path) -> int:
    """Packs both splits and says how large the result is."""
    options = given.for_training(dataset)
    if is_pack(options.resolved_data_root()):
        raise ValueError(f"dataset: {dataset} is a pack itself; pack the data it was made from")
    splits = {"train": read_split(options, "train"), "valid": read_split(options, "valid")}
    reduce = options.reduced_decode
    margins = {
        "train": Margins(options.size, options.rotation, options.scale_min, options.scale_max, reduce),
        "valid": Margins(options.size, 0.0, 1.0, 1.0, reduce),
    }
    plan = Plan(
        given.format,
        given.quality,
        given.shard_bytes,
        margins,
        {split: f"{describe(persons)}, {describe_heads(persons)}" for split, persons in splits.items()},
        {name: getattr(options, name) for name in DATA_OPTIONS},
    )
    new = write_pack(
        out, plan, splits, threads=given.threads, on_bad_image=options.on_bad_image, progress=progress_printer()
    )
    total = sum(path.stat().st_size for path in out.iterdir())
    persons = " and ".join(f"{len(persons)} {split}" for split, persons in splits.items())
    print(
        f"{'wrote' if new else 'already there, nothing to do:'} {out}: {persons} persons, {total:,} bytes", flush=True
    )
    return 0


def describe_heads(persons: Persons) -> str:
    """Tells these head sizes from others: they are packed too, and scores hang on them."""
    if persons.head_size is None:
        return "no head sizes"
    return f"checksum of the head sizes {zlib.crc32(persons.head_size.tobytes()):08x}"


def progress_printer() -> Callable[[str, int, int], None]:
    """A progress callback for `write_pack`: a line at every tenth of a split, with the time that is left."""
    told: dict[str, tuple[int, int, float]] = {}

    def show(split: str, done: int, total: int) -> None:
        tenths, first, since = told.get(split, (0, done, time.monotonic()))
        if done * 10 // total > tenths or split not in told:
            seconds = time.monotonic() - since
            left = f", {seconds / (done - first) * (total - done):.0f} s left" if done > first else ""
            print(f"{split}: {done}/{total} persons packed{left}", flush=True)
            tenths = done * 10 // total
        told[split] = tenths, first, since

    return show


if __name__ == "__main__":
    sys.exit(main())
