# SPDX-License-Identifier: Apache-2.0
"""Few cases instead of a full product: most faults need one value of one parameter, nearly all the rest two."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product
from typing import Any


def pairs(*parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Cases, one value of each parameter in each, in which any two values of any two parameters meet.

    The case taken next is the first of the product with the most pairs that have not met. With n and m values of the
    two longest parameters there are at least n · m cases; two parameters give their product.
    """
    everything = [tuple(enumerate(case)) for case in product(*(range(len(values)) for values in parameters))]
    missing = {pair for case in everything for pair in combinations(case, 2)}
    cases = []
    while missing:
        best = max(everything, key=lambda case: len(missing.intersection(combinations(case, 2))))
        missing.difference_update(combinations(best, 2))
        cases.append(tuple(values[index] for values, (_, index) in zip(parameters, best, strict=True)))
    return cases
