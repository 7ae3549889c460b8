# SPDX-License-Identifier: Apache-2.0
"""How a process finds the ranks that torchrun started it as one of."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from fastpose.ending import one_of_several
from fastpose.ranks.ranks import ALONE, RankLostError, Ranks, in_short, keep_for_good

JOIN_SECONDS = 300  # for all ranks to start; torchrun starts them at once
ALONE_SECONDS = 10  # for torchrun to answer a process by itself, which could do without
TORCHRUN = "TORCHELASTIC_RUN_ID"  # the variable that torchrun alone sets
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@contextmanager
def joined_ranks(environment: Mapping[str, str]) -> Iterator[Ranks]:
    """The ranks that torchrun started this process as one of, by its environment variables; a process by itself where
    there are no more. Ranks other than the first print their errors alone.

    Raises:
        ValueError: the variables are incomplete or impossible, or nobody answers at the address that they name.
    """
    count = environment.get("WORLD_SIZE", "")
    if "RANK" not in environment or not count.isdecimal() or int(count) < 2:
        alone = ALONE
        if environment.keys() >= {TORCHRUN, *VARIABLES}:
            with suppress(RuntimeError, ValueError):  # variables of a torchrun that has gone
                agents, _, _ = next(iter(dist.rendezvous("env://", timeout=timedelta(seconds=ALONE_SECONDS))))
                alone = Ranks()
                alone.launch = dist.PrefixStore(f"fastpose/{environment[TORCHRUN]}", agents)
        yield alone
        return
    advice = "start all ranks with torchrun --nproc-per-node NUMBER -m fastpose.train, or unset RANK and WORLD_SIZE"
    if missing := [name for name in VARIABLES if name not in environment]:
        raise ValueError(f"RANK is {environment['RANK']} of WORLD_SIZE {count}, and {missing[0]} is missing: {advice}")
    try:
        rank, local_rank, local_count = (int(environment[n]) for n in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"))
        if not (0 <= rank < int(count) and 0 <= local_rank < local_count <= int(count)):
            raise ValueError
    except ValueError:
        found = ", ".join(f"{name} {environment[name]}" for name in VARIABLES[:4])
        raise ValueError(f"expected numbers of ranks, got {found}: {advice}") from None
    where = f"{environment['MASTER_ADDR']}:{environment['MASTER_PORT']}"
    try:
        agents, _, _ = next(iter(dist.rendezvous("env://", timeout=timedelta(seconds=JOIN_SECONDS))))
        # torchrun has one store for all times that it starts the ranks; several may share it.
        launch = dist.PrefixStore(f"fastpose/{environment.get(TORCHRUN, '')}", agents)
        store = dist.PrefixStore(meeting_place(launch, rank, int(count)), launch)
        ranks = Ranks(rank, int(count), local_rank, local_count, store)
        ranks.launch = launch if TORCHRUN in environment else None
        dist.init_process_group(
            "gloo", store=store, rank=rank, world_size=int(count), timeout=timedelta(seconds=JOIN_SECONDS)
        )
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"rank {rank} of {count} finds no others at {where}: {in_short(error)}: {advice}") from error
    keep_for_good(dist.group.WORLD)
    try:
        with nullcontext() if ranks.first else one_of_several(f"rank {rank}"):
            yield ranks
    except BaseException as error:
        ranks.rest()
        if not isinstance(error, RankLostError):  # who has lost one answers calls, see Ranks.absent
            with suppress(RuntimeError):
                ranks.leave()
            ranks.end()
        raise
    ranks.end()
    dist.destroy_process_group()  # after an error others may not answer; the process ends anyway


def is_other_rank(environment: Mapping[str, str]) -> bool:
    """Whether torchrun started this process as a rank other than the first, which prints."""
    return environment.keys() >= set(VARIABLES) and environment["WORLD_SIZE"] != "1" and environment["RANK"] != "0"


def meeting_place(store: Any, rank: int, count: int) -> str:
    """A name that the ranks of one start agree on, in a store in which those of earlier starts have left theirs.

    The first rank writes a list, its own name and what it finds of others' names, until all have seen theirs in it.

    Raises:
        ValueError: the others do not come.
    """
    own = uuid.uuid4().hex
    until = time.monotonic() + JOIN_SECONDS
    others = range(1, count)

    def found(key: str) -> str:
        return store.get(key).decode() if store.check([key]) else ""

    store.set(f"name/{rank}", own)
    while time.monotonic() < until:
        if rank == 0:
            store.set("list", " ".join([own, *(found(f"name/{each}") or "-" for each in others)]))
            if all(found(f"seen/{each}") == own for each in others):
                return own
        else:
            names = found("list").split()
            if len(names) == count and names[rank] == own:
                store.set(f"seen/{rank}", names[0])
                return names[0]
        time.sleep(0.02)
    raise ValueError(f"not all of them came within {JOIN_SECONDS} s")
