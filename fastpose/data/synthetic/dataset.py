# SPDX-License-Identifier: Apache-2.0
"""Synthetic persons as a data set: drawn when they are first read, then read and scored as MPII's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fastpose.data.dataset import DataOptions, Split
from fastpose.data.mpii import Mpii
from fastpose.data.persons import Persons
from fastpose.data.synthetic.generate import generate
from fastpose.ending import print_log
from fastpose.option import OptionError
from fastpose.progress import CountedProgress
from fastpose.skeletons import Skeleton


class Synthetic(Mpii):
    """MPII's format in a data root that is filled first, unless just these persons are there."""

    def __init__(self, data: DataOptions, size: tuple[int, int], skeleton: Skeleton | None = None) -> None:
        if data.dataset != "mpii":
            raise OptionError("synthetic_persons", f"they are in MPII's format, got --dataset {data.dataset}")
        super().__init__(data, size, skeleton)
        self._drawn = False

    def read(self, split: Split) -> Persons:
        if not self._drawn:
            draw(Path(self.data.data_root), self.data.synthetic_persons, self.data.synthetic_seed)
            self._drawn = True
        return super().read(split)


def draw(root: Path, persons: int, seed: int) -> None:
    """Draws the persons into `root` and prints how far it is; raises SyntheticDataError if other data are there."""
    if not generate(root, persons=persons, seed=seed, progress=drawing_progress(root)).created:
        print_log(f"found {persons} synthetic persons in {root}")


def drawing_progress(root: Path) -> Callable[[int, int], None]:
    """The progress of `generate`, printed."""
    progress: list[CountedProgress] = []

    def show(done: int, total: int) -> None:
        if not done:
            print_log(f"drawing {total} pictures into {root}")
            progress.append(CountedProgress("drawing", "pictures", total))
        else:
            progress[0].show(done)

    return show
