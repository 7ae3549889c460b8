# SPDX-License-Identifier: Apache-2.0
"""Times the cases on the CPU, for `make bench`: rounds in turns with fastpose, one number of threads for all.

One of two timers over bench/cases; the other is gpu.py. bench_ops.py has a row for each peer of each case.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from time import perf_counter, sleep
from typing import Any

import numpy as np
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from bench.cases import Case, Peer

OWN, ONE_THREAD, COPY = "fastpose", "fastpose_on_one_thread", "limit_copy"
THREADS = int(os.environ.get("FASTPOSE_BENCH_THREADS", "1"))
BUDGET = 2.0  # seconds for a row, unless that is less than LEAST rounds
LEAST = 5
# Idle threads of one library spin for some milliseconds before they sleep, on the cores that the next one needs.
PAUSE = 0.01 if THREADS > 1 else 0.0
# The last results are kept, whoever made them, as by a loop that works on them. One that is dropped at once leaves warm
# memory, to which the next is written twice as fast, if it gets it: that hangs on addresses, which differ by process.
kept: deque[Any] = deque(maxlen=4)

Work = Callable[[], Any]
Ready = Callable[[], AbstractContextManager[Work]]  # gets everything ready for one timed call


def seconds(work: Work) -> float:
    """How long one call takes; its result is kept for some more."""
    start = perf_counter()
    result = work()
    taken = perf_counter() - start
    kept.append(result)
    return taken


def in_turns(benchmark: BenchmarkFixture, row: Ready, partner: Ready, rounds: int) -> list[float]:
    """Times `row` in pytest-benchmark's rounds, each right after `partner`; by round, the row's time / the partner's.

    A clock that changes its pace then changes both.
    """
    of_row: list[float] = []
    of_partner: list[float] = []
    with ExitStack() as ready:

        def setup() -> tuple[tuple[Work], dict[str, Any]]:
            with partner() as work:
                of_partner.append(seconds(work))
            return (ready.enter_context(row()),), {}

        benchmark.pedantic(
            lambda work: of_row.append(seconds(work)), setup=setup, teardown=lambda work: ready.close(), rounds=rounds
        )
    return [one / other for one, other in zip(of_row, of_partner, strict=True)]


def spread(ratios: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = np.percentile(ratios, [25, 50, 75]).tolist()
    return {"q1": low, "median": median, "q3": high}


@contextmanager
def warm(work: Work) -> Iterator[Work]:
    """`work` after one call: its inputs are in the caches and its threads awake, whatever its partner does."""
    sleep(PAUSE)
    seconds(work)
    yield work


def rows_of(peers: Mapping[str, Peer]) -> list[str]:
    """The rows of a group: fastpose beside itself, everybody else, and a copy of as many bytes."""
    here = [name for name, peer in peers.items() if "cpu" in peer.devices]
    return [OWN, *([ONE_THREAD] if THREADS > 1 else []), *here, COPY]


def work_of(row: str, case: Case, peers: Mapping[str, Peer]) -> tuple[Work, float | None]:
    """What a row does, and by how much its results may differ from fastpose's; None: it does less than the op."""
    if row == COPY:
        return copy_of(case.bytes), None
    if row in (OWN, ONE_THREAD):
        own = partial(case.own, 0)
        return (own if row == OWN else on_one_thread(own)), 0.0
    return partial(peers[row].make(case.work), 0), peers[row].atol


def time_row(benchmark: BenchmarkFixture, case: Case, row: str, peers: Mapping[str, Peer]) -> None:
    """Times a row in turns with fastpose, once their results are found equal."""
    (peer, atol), own = work_of(row, case, peers), partial(case.own, 0)
    if atol is not None:
        assert_same(peer(), own(), atol)
    with warm(peer), warm(own):
        both = 2 * (seconds(peer) + seconds(own) + PAUSE)
    ratios = in_turns(benchmark, lambda: warm(peer), lambda: warm(own), max(LEAST, int(BUDGET / both)))
    benchmark.extra_info |= {"faster": spread(ratios), "bytes": case.bytes, "inputs": case.inputs}


def assert_same(got: Any, expected: Any, atol: float) -> None:
    """Compares tensors, arrays or numbers, or the first of several: a peer may leave out later results."""
    every = [result if isinstance(result, tuple) else (result,) for result in (got, expected)]
    for one, other in zip(*every, strict=False):
        one, other = (value.detach().cpu().numpy() if isinstance(value, Tensor) else value for value in (one, other))
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=atol)


def copy_of(moved: int) -> Work:
    """Reads half of `moved` bytes and writes the other half: what the memory allows."""
    return torch.ones(moved // 2, dtype=torch.uint8).clone


def on_one_thread(work: Work) -> Work:
    """The same with one of torch's threads instead of THREADS."""

    def run() -> Any:
        torch.set_num_threads(1)
        try:
            return work()
        finally:
            torch.set_num_threads(THREADS)

    return run
