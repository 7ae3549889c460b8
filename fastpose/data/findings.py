# SPDX-License-Identifier: Apache-2.0
"""What was found out about a data set: a sentence with the number of cases, and who they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastpose.data.images import printable
from fastpose.data.persons import Origin, Persons

MOST_CASES = 10_000  # persons that a finding names


@dataclass(frozen=True)
class Finding:
    """Something in annotations or images that is wrong, doubtful or worth knowing.

    Attributes:
        code: of what kind it is; docs/checking.md lists the kinds.
        what: the sentence without the first case: how many of how many, and what is the matter with them.
        count: how many persons, joints or images; None where nothing is counted.
        of: of how many; None where nothing is counted.
        cases: the persons whom it is about, or whose joints or images it is about; the first MOST_CASES of them. Of an
            image the first person on it. Empty if it is about nobody.
        more: what else there is to say of the first case; begins with a comma or a colon.
    """

    code: str
    what: str
    count: int | None = None
    of: int | None = None
    cases: tuple[Origin, ...] = ()
    more: str = ""

    def __str__(self) -> str:
        if not self.cases:
            return self.what
        first = self.cases[0]
        places = f"{printable(first.set_and_record)}, {printable(first.image)}"
        return f"{self.what}; the first: {places}{self.more}"


def cases_of(persons: Persons, rows: Sequence[int] | np.ndarray) -> tuple[Origin, ...]:
    """`Finding.cases` of the persons `rows`."""
    return tuple(persons.origins(rows[:MOST_CASES]))
