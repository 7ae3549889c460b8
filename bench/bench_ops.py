# SPDX-License-Identifier: Apache-2.0
"""A row for each peer of each op, beside fastpose: what they do and on what is in bench/cases."""

from __future__ import annotations

from functools import cache

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench import cases, cpu
from bench.cases import Case

BENCHES = {bench.name: bench for op in cases.ops() for bench in op.benches}
ROWS = [(name, row) for name, bench in BENCHES.items() for row in cpu.rows_of(bench.peers)]


@cache
def case_of(name: str) -> Case:
    """Made once for all rows, and checked."""
    case = BENCHES[name].make()
    case.check(case.own(0))
    return case


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_row(benchmark: BenchmarkFixture, name: str, row: str) -> None:
    bench = BENCHES[name]
    # A row keeps the names that it has in the results of earlier commits: --benchmark-compare looks for them.
    benchmark.group, benchmark.name, benchmark.fullname = (
        bench.group,
        f"test_{row}",
        f"bench/bench_{name}.py::test_{row}",
    )
    try:
        cpu.time_row(benchmark, case_of(name), row, bench.peers)
    except ModuleNotFoundError as error:
        pytest.skip(f"a peer that is not installed: {error}")
