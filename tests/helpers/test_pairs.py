# SPDX-License-Identifier: Apache-2.0
"""The helper that thins products of parameters out."""

from __future__ import annotations

from itertools import combinations, product

import pytest

from tests.helpers.pairs import pairs


@pytest.mark.parametrize(("sizes", "most"), [((11, 4, 3), 44), ((6, 4, 2), 24), ((3, 3, 4), 12), ((3, 5), 15)])
def test_any_two_values_of_any_two_parameters_meet(sizes: tuple[int, ...], most: int) -> None:
    parameters = [[f"{name}{value}" for value in range(size)] for name, size in zip("abc", sizes, strict=False)]
    cases = pairs(*parameters)
    for first, second in combinations(range(len(sizes)), 2):
        assert {(case[first], case[second]) for case in cases} == set(product(parameters[first], parameters[second]))
    assert len(cases) <= most
