# SPDX-License-Identifier: Apache-2.0
"""`python -m fastpose.pack DATASET OUT`: cuts the persons of a data set out, into a few files that load quickly."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fastpose.data.dataset import DATA_FILES, DATA_READING, DataOptions
from fastpose.data.datasets import is_mixture, open_dataset
from fastpose.data.pack import Margins, Plan, is_pack, write_pack
from fastpose.data.sense import report_doubts
from fastpose.ending import Stopped, ends_in_one_line
from fastpose.option import OptionError, check_at_least, option
from fastpose.options.asked import Command
from fastpose.options.settings import DEFAULTS
from fastpose.options.settle import settle_for
from fastpose.progress import CountedProgress

DESCRIPTION = """Pack a data set: of each person the region that training can ask for, at the resolution that it needs,
with the annotations, in a few large files. Train and evaluate on it with --data_root OUT. A stopped command goes on
where it was when it is called again; on a complete pack it compares all checksums and mends what is damaged."""

OFFERED = (
    *("dataset", "skeleton", "train_annotations", "valid_annotations", "head_boxes", "split_list", "images"),
    *("missing_images", "on_bad_image"),
    *DATA_READING,
    *("max_image_pixels", "max_annotation_bytes", "max_annotation_depth"),
    *("score", "size", "rotation", "scale_min", "scale_max", "scale_prob", "shift", "half_body", "reduced_decode"),
)


@dataclass(frozen=True)
class PackOptions:
    """How to pack."""

    recipe: str = option("", "recipe to pack for, a name or a file; empty: the defaults of fastpose train")
    format: Literal["raw", "jpeg"] = option(
        "raw", "what to store: pixels, quickest to load, or JPEGs, about a tenth of the size"
    )
    quality: int = option(90, "quality of the JPEGs, 1 to 100")
    shard_bytes: int = option(1 << 30, "size from which on a file is followed by another, bytes")
    threads: int = option(2, "threads that decode and encode, count")

    def __post_init__(self) -> None:
        check_at_least(self, 1, "quality", "shard_bytes", "threads")
        if self.quality > 100:
            raise OptionError("quality", f"expected 1 to 100, got {self.quality}")


def command() -> Command:
    """The options of `fastpose pack`."""
    places = {
        "data_set": "folder of the data set, what --data_root is for fastpose train; or a YAML file, as --dataset",
        "out": "folder to write, new or of an earlier call",
    }
    return Command("pack", DESCRIPTION, PackOptions, OFFERED, places=places, otherwise="as the recipe says")


@ends_in_one_line
def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, 1 after an error, 128 + signal number when it was stopped."""
    try:
        return command().run(run, argv)
    except KeyboardInterrupt as stop:
        raise Stopped.by(stop, "the same command goes on") from None


def run(own: PackOptions, asked: dict[str, Any]) -> int:
    """Packs both splits and prints how large the result is."""
    root, out = asked.pop("data_set"), Path(asked.pop("out"))
    if is_pack(Path(root)):
        raise OptionError("data_set", f"{root} is a pack itself; pack the data it was made from")
    settings = settle_for(root, own.recipe, asked)
    network, augmentation = settings.network, settings.augmentation
    dataset = open_dataset(settings.data, network.size)
    splits = {"train": dataset.read("train"), "valid": dataset.read("valid")}
    report_doubts(splits)  # a pack no longer has the images' names and sizes
    reduce = settings.pixels.reduced_decode
    (low, high), half_body = augmentation.scales, augmentation.half_body > 0.0
    margins = {
        "train": Margins(network.size, augmentation.rotation, low, high, reduce, half_body, augmentation.shift),
        "valid": Margins(network.size, 0.0, 1.0, 1.0, reduce),
    }
    contents = {
        split: f"{persons.fingerprint()}, {dataset.scorer(persons).fingerprint()}" for split, persons in splits.items()
    }
    plan = Plan(
        own.format,
        own.quality,
        own.shard_bytes,
        margins,
        contents,
        data_options(settings.data),
    )
    lines: dict[str, CountedProgress] = {}

    def show(split: str, done: int, found: int, total: int) -> None:
        if split not in lines:
            lines[split] = CountedProgress(f"packing {split}", "persons", total)
        lines[split].show(done, found)

    try:
        new = write_pack(
            out,
            plan,
            splits,
            threads=own.threads,
            on_bad_image=settings.pixels.on_bad_image,
            progress=show,
        )
    finally:
        for line in lines.values():
            line.end()
    total = sum(path.stat().st_size for path in out.iterdir())
    persons = " and ".join(f"{len(persons)} {split}" for split, persons in splits.items())
    state = "wrote" if new else "already there, nothing to do:"
    print(f"{state} {out}: {persons} persons, {total:,} bytes", flush=True)
    return 0


def data_options(data: DataOptions) -> dict[str, Any]:
    """The options that say which data are packed."""
    read = {name: value for name in DATA_READING if (value := getattr(data, name)) != DEFAULTS[name]}
    named = {name: getattr(data, name) for name in DATA_FILES} | read
    # Of a list of sets all that it says is in the pack: what it was called tells people which it was.
    return named | {"dataset": Path(data.dataset).name} if is_mixture(data.dataset) else named


if __name__ == "__main__":
    sys.exit(main())
