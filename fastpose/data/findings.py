# SPDX-License-Identifier: Apache-2.0
"""What was found out about a data set: a sentence with the number of cases and the first of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """Something in annotations or images that is wrong, doubtful or worth knowing.

    Attributes:
        code: of what kind it is; docs/checking.md lists the kinds.
        what: the sentence without the first case: how many of how many, and what is the matter with them.
        count: how many persons, joints or images; None where nothing is counted.
        of: of how many; None where nothing is counted.
        row: `Persons.source_row` of the first case; None if it is no person.
        image: name of the first case's image.
        more: what else there is to say of the first case; begins with a comma or a colon.
    """

    code: str
    what: str
    count: int | None = None
    of: int | None = None
    row: int | None = None
    image: str = ""
    more: str = ""

    def __str__(self) -> str:
        return self.what if self.row is None else f"{self.what}; the first: row {self.row}, {self.image}{self.more}"
