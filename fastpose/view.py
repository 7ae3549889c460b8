# SPDX-License-Identifier: Apache-2.0
"""`python -m fastpose.view DATASET OUT`: draws what a network would be fed, joints and targets over it."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fastpose.data.augmentation import Augmentation
from fastpose.data.dataset import DataOptions
from fastpose.data.datasets import is_mixture, open_dataset
from fastpose.data.pack import is_pack
from fastpose.data.persons import Persons
from fastpose.data.pixels import PixelOptions
from fastpose.device import choose_device
from fastpose.ending import ends_in_one_line
from fastpose.engine.fed import fed, printable
from fastpose.engine.loading import make_loader
from fastpose.engine.page import page
from fastpose.engine.sheet import draw_sheet, sheet_layout
from fastpose.files import make_folder, write_bytes, write_text
from fastpose.option import OptionError, check_at_least, option
from fastpose.options.asked import Command
from fastpose.options.settings import Settings
from fastpose.options.settle import settle_for

DESCRIPTION = """Draw what a network is fed: the crops of the first persons that fastpose train would train on with the
same options, with the joints over them and, beside them, the targets. Writes one sheet, .png or .jpg, or one page,
.html."""

# What the options below have beside what decides about crops and targets: how long it takes, and scores.
NOT_OFFERED = (
    *("data_root", "resident", "prefetch"),
    *("score", "max_detections", "pck_norm", "pck_threshold", "pck_pixels"),
)
OFFERED = (
    *(f.name for kind in (DataOptions, PixelOptions, Augmentation) for f in dataclasses.fields(kind)),
    *("model", "size", "head", "color_order", "udp", "targets", "sigma", "encoding"),
    *("batch_size", "seed", "device"),
)
KINDS = {".png": "png", ".jpg": "jpg", ".jpeg": "jpg", ".html": "html"}


@dataclass(frozen=True)
class ViewOptions:
    """What to draw."""

    recipe: str = option("", "recipe to train with, a name or a file; empty: the defaults of fastpose train")
    split: Literal["train", "valid"] = option(
        "train", "persons to draw: of the training, augmented; or of the validation, chosen at random, not augmented"
    )
    count: int = option(24, "persons to draw, count")
    columns: int | None = option(None, "persons in a row, count; without it: as many as suit their number")
    names: bool = option(False, "write the joints' names beside them")

    def __post_init__(self) -> None:
        check_at_least(self, 1, "count")
        if self.columns is not None:
            check_at_least(self, 1, "columns")


def command() -> Command:
    """The options of `fastpose view`."""
    places = {
        "data_set": "folder of the data set, what --data_root is for fastpose train; or a pack",
        "out": "file to write: .png, .jpg or .html",
    }
    offered = [name for name in OFFERED if name not in NOT_OFFERED]
    return Command("view", DESCRIPTION, ViewOptions, offered, places=places, otherwise="as the recipe says")


@ends_in_one_line
def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 1 after an error."""
    return command().run(run, argv)


def run(own: ViewOptions, asked: dict[str, Any]) -> int:
    """Draws, and prints what was drawn."""
    root, out = asked.pop("data_set"), Path(asked.pop("out"))
    kind = KINDS.get(out.suffix.lower())
    if kind is None:
        raise OptionError("out", f"expected a name that ends in {', '.join(KINDS)}, got {out}")
    settings = settle_for(root, own.recipe, asked)
    network, schedule, training = settings.network, settings.schedule, own.split == "train"
    persons = open_dataset(settings.data, network.size).read(own.split)
    check_is_no_image(out, persons)
    if not training:
        persons = persons.select(np.random.default_rng(schedule.seed).permutation(len(persons)))
    loader = make_loader(
        persons,
        network,
        dataclasses.replace(settings.pixels, resident=False, prefetch=1),  # of few batches
        settings.compute,
        choose_device(settings.compute.device),
        batch_size=schedule.batch_size if training else min(own.count, schedule.eval_batch_size),
        augmentation=settings.augmentation if training else None,
        seed=schedule.seed,
    )
    count, on_page = min(own.count, len(persons)), kind == "html"
    drawn_as: dict[str, Any] = {"names": own.names, "udp": network.udp}
    layout = sheet_layout(
        1 if on_page else count,
        network.size,
        panels=1 if network.simcc else 2,
        columns=None if on_page else own.columns,
        names=own.names,
    )
    people = list(fed(loader, network.color(), None if network.simcc else settings.targets, count))
    data_root = Path(settings.data.data_root)
    viewed = settings.data.dataset if is_mixture(settings.data.dataset) and not is_pack(data_root) else data_root
    title, facts = f"fastpose view of {printable(Path(viewed).name)}", facts_of(own, settings)
    make_folder(out.parent)
    if on_page:
        write_text(out, page(title, facts, people, persons.skeleton, layout, own.columns, **drawn_as))
    else:
        heading = f"{title}: {', '.join(' '.join(fact) for fact in facts.items())}"
        write_bytes(out, draw_sheet(people, persons.skeleton, layout, heading, kind, **drawn_as))
    print(f"wrote {out}: {len(people)} of {len(persons)} persons, split {own.split}")
    if bad := loader.bad_image_texts():
        print(f"left out what could not be read, {len(bad)} images; the first: {bad[0]}")
    return 0


def check_is_no_image(out: Path, persons: Persons) -> None:
    """Raises OptionError if `out` is a picture of the data set, which would be overwritten."""
    for path in persons.image_paths:
        if path.name == out.name and path.resolve() == out.resolve():
            raise OptionError("out", f"{out} is an image of the data set and would be overwritten: choose another file")


def facts_of(own: ViewOptions, settings: Settings) -> dict[str, str]:
    """What a sheet says of all its persons, by what it is about."""
    network, targets = settings.network, settings.targets
    height, width = network.size
    taught = "SimCC's vectors" if network.simcc else f"{targets.encoding} heatmaps of sigma {targets.sigma:g}"
    return {
        "split": own.split,
        "recipe": printable(Path(own.recipe).name) or "none",
        "input": f"{height}x{width} px{' (udp)' * network.udp}",
        "targets": taught,
        "seed": str(settings.schedule.seed),
    }


if __name__ == "__main__":
    sys.exit(main())
