# SPDX-License-Identifier: Apache-2.0
"""The processes of one run: one by itself, or several that torchrun started, which torch.distributed connects.

Between any two training steps they exchange a few integers over gloo. So they stop, save and fail in the same step, and
none waits for a GPU to know.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastpose.option import OptionError

T = TypeVar("T")

JOIN_SECONDS = 300  # for all ranks to start; torchrun starts them at once
AS_LONG_AS_IT_TAKES = timedelta(days=7)  # before training, for pictures that one rank draws
LONGER_SECONDS = 30  # that the others wait for a rank that is stuck: it says itself where it is
ROLL_CALL_SECONDS = 5
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class RankLostError(RuntimeError):
    """Another rank has ended, or does not answer.

    Attributes:
        between_epochs: whether it was noticed where the run can be saved.
    """

    between_epochs = True


class OtherRankError(RuntimeError):
    """Another rank could not go on, and says why."""


class Ranks:
    """The ranks of a run, seen from one of them. The default is a process by itself, with which all of this is free.

    Attributes:
        rank: this one's number; 0 is the one that prints and writes.
        count: how many there are.
        local_rank, local_count: the same among those of this machine.
        store: torch's table of keys and values that all ranks reach.
    """

    def __init__(
        self, rank: int = 0, count: int = 1, local_rank: int = 0, local_count: int = 1, store: Any = None
    ) -> None:
        self.rank, self.count, self.local_rank, self.local_count = rank, count, local_rank, local_count
        self.store, self._meetings = store, 0
        self._steps: dist.ProcessGroup | None = None  # between steps, with the timeout
        self._data: dist.ProcessGroup | None = None  # for what is on the training device
        self._watch: Watch | None = None

    @property
    def first(self) -> bool:
        """Whether this is the rank that prints and writes."""
        return self.rank == 0

    def begin(self, device: torch.device, patience: float) -> None:
        """To be called by all ranks before they train, on `device`.

        Args:
            device: whose tensors DistributedDataParallel and `total` will take.
            patience: seconds without a step after which a rank is stuck: it prints where its threads are, and ends.
                The others wait LONGER_SECONDS more for it, and end too.
        """
        if self.count == 1:
            return
        with lost_if_it_fails():
            longest = timedelta(seconds=patience + LONGER_SECONDS)
            self._steps = dist.new_group(backend="gloo", timeout=longest)
            self._data = dist.new_group(backend="nccl", timeout=longest) if device.type == "cuda" else self._steps
        keep_for_good(self._steps)
        self._watch = Watch(self, patience)

    def same(self, make: Callable[[], T]) -> T:
        """What `make` returns in the first rank, in all ranks. Before `begin` they wait for it as long as it takes.

        Raises:
            OtherRankError: it raised an error in the first rank, which raises that.
        """
        if self.count == 1:
            return make()
        box: list[Any] = [None]
        with self.failing_together():
            if self.first:
                box[0] = make()
        with self._waiting():
            dist.broadcast_object_list(box, src=0, group=self._steps)
        return box[0]

    @contextmanager
    def in_turns(self) -> Iterator[None]:
        """Lets the block run in the first rank, then in one of each other machine, then in the others: for what is made
        once, in a folder that machines may share, and found by those who come later. To be used before `begin`."""
        turn = 0 if self.first else 1 if self.local_rank == 0 else 2
        for each in range(3 if self.count > 1 else 1):
            if each == turn:
                yield
            with self._waiting():
                pass

    def gathered(self, value: T) -> list[T] | None:
        """The values of all ranks, in order, in the first rank; None in the others."""
        if self.count == 1:
            return [value]
        values: list[Any] | None = [None] * self.count if self.first else None
        with self._waiting():
            dist.gather_object(value, values, dst=0, group=self._steps)
        return values

    def all_of(self, value: T) -> list[T]:
        """The values of all ranks, in order."""
        values = self.gathered(value)
        return self.same(lambda: cast("list[T]", values))

    def agree(self, *values: int) -> tuple[int, ...]:
        """The sums of the ranks' values; to be called by all of them before each step. Does not wait for a GPU.

        Raises:
            RankLostError: another rank has ended, or did not come within the patience.
        """
        if self.count == 1:
            return values
        sums = torch.tensor(values, dtype=torch.int64)
        with self._waiting():
            dist.all_reduce(sums, group=self._steps)
        return tuple(sums.tolist())

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """Lets an error of the block in one rank end all of them after it, and not only once they miss that rank.

        Raises:
            OtherRankError: in the ranks whose block raised nothing.
        """
        failure: Exception | SystemExit | None = None
        try:
            yield
        except RankLostError:
            raise
        except (Exception, SystemExit) as error:
            failure = error
        (failures,) = self.agree(failure is not None)
        if failure is not None:
            raise failure
        if failures:
            raise OtherRankError("another rank could not go on, see there")

    def most(self, value: int) -> int:
        """The highest of the ranks' values."""
        return value if self.count == 1 else max(self.all_of(value))

    def alive(self) -> None:
        """Says that this rank is not stuck, where it does much between steps."""
        if self._watch is not None:
            self._watch.look()

    def rest(self) -> None:
        """This rank has no more steps."""
        if self._watch is not None:
            self._watch.rest()

    def total(self, tensor: Tensor) -> Tensor:
        """The sum of the ranks' tensors, on the training device; the tensor itself stays as it is."""
        if self.count == 1:
            return tensor
        total = tensor.clone()
        with lost_if_it_fails():
            dist.all_reduce(total, group=self._data)
        return total

    def own(self, device: torch.device) -> torch.device:
        """This rank's device, of those that `device` names.

        Raises:
            OptionError: there are too few, or ranks cannot train on such devices.
        """
        if self.count == 1 or device.type == "cpu":
            return device
        if device.type != "cuda" or device.index is not None:
            raise OptionError("device", f"expected auto, cpu or cuda for {self.count} ranks, got {device}")
        if self.local_count > (found := torch.cuda.device_count()):
            raise OptionError("device", f"{self.local_count} ranks on this machine need a GPU each, and it has {found}")
        own = torch.device("cuda", self.local_rank)
        torch.cuda.set_device(own)
        return own

    def replicated(self, model: nn.Module, *, unused: bool) -> nn.Module:
        """The network under DistributedDataParallel: its gradients become the mean of the ranks' gradients.

        Args:
            model: on the training device.
            unused: whether it has parameters on which its output does not depend.
        """
        with lost_if_it_fails():
            return nn.parallel.DistributedDataParallel(
                model, process_group=self._data, gradient_as_bucket_view=True, find_unused_parameters=unused
            )

    def with_sync_batch_norm(self, model: nn.Module) -> nn.Module:
        """The same network, in which batch normalisation is over the persons of all ranks: by torch's SyncBatchNorm,
        and on the CPU, for which torch has none, by ours."""
        if self._data is not self._steps:
            return nn.SyncBatchNorm.convert_sync_batchnorm(model, self._data)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.__class__ = BatchNormOfAllRanks
                module.group = cast(Any, self._data)
        return model

    def same_buffers(self, model: nn.Module) -> None:
        """Gives all ranks the first one's buffers. Means and variances of batch normalisation are otherwise the rank's
        own since the last step."""
        if self.count == 1:
            return
        with lost_if_it_fails():
            for buffer in model.buffers():
                dist.broadcast(buffer, 0, group=self._data)

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """What waits for other ranks: who does is not stuck."""
        if self.count == 1:
            yield
            return
        self.rest()
        with lost_if_it_fails():
            if self._steps is None:
                self._meet()
            yield
        self.alive()

    def _meet(self) -> None:
        """Waits for all ranks as long as it takes. A rank that ends while others wait is torchrun's to notice."""
        self._meetings += 1
        key = f"fastpose/meeting/{self._meetings}"
        if self.store.add(key, 1) == self.count:
            self.store.set(f"{key}/all", "")
        self.store.wait([f"{key}/all"], AS_LONG_AS_IT_TAKES)

    def is_to_tell(self, error: RankLostError) -> bool:
        """Whether this rank is the one that says which rank is lost; the error then does."""
        try:
            absent = self.absent()
        except RankLostError:
            absent = [0]
        if self.rank > min(set(range(self.count)) - set(absent)):
            return False
        who = f"rank {', '.join(map(str, absent))} of {self.count}" if absent else "a rank"
        error.args = (f"{who} has ended or does not answer, and says itself why if it can: {error}",)
        return True

    def absent(self) -> list[int]:
        """Which ranks do not answer a call; for those that have lost one. Takes some seconds.

        Raises:
            RankLostError: nobody can be called, as the first rank had the address book.
        """
        with lost_if_it_fails():
            keys = [f"fastpose/here/{rank}" for rank in range(self.count)]
            self.store.set(keys[self.rank], "")
            until = time.monotonic() + ROLL_CALL_SECONDS
            while not self.store.check(keys) and time.monotonic() < until:
                try:
                    time.sleep(0.1)
                except KeyboardInterrupt:  # torchrun has noticed, too, and ends those that are left
                    until = min(until, time.monotonic() + ROLL_CALL_SECONDS / 2)
            return [rank for rank, key in enumerate(keys) if not self.store.check([key])]


ALONE = Ranks()


@contextmanager
def lost_if_it_fails() -> Iterator[None]:
    """Makes a RankLostError of what torch.distributed raises if another rank has gone. It has no type for that."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, RankLostError) or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise RankLostError(in_short(error)) from error


def in_short(error: Exception) -> str:
    """What torch.distributed says, without its place in the source and its advice."""
    return " ".join(str(error).split()).rpartition(".cc:")[2].partition("] ")[2].partition(". ")[0] or str(error)


@contextmanager
def joined_ranks(environment: Mapping[str, str]) -> Iterator[Ranks]:
    """The ranks that torchrun started this process as one of, by its environment variables; a process by itself where
    there are no more.

    Raises:
        ValueError: the variables are incomplete or impossible, or nobody answers at the address that they name.
    """
    count = environment.get("WORLD_SIZE", "")
    if "RANK" not in environment or not count.isdecimal() or int(count) < 2:
        yield ALONE
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
    try:
        table, _, _ = next(iter(dist.rendezvous("env://", timeout=timedelta(seconds=JOIN_SECONDS))))
        store = own_part(table, rank, int(count))
        dist.init_process_group(
            "gloo", store=store, rank=rank, world_size=int(count), timeout=timedelta(seconds=JOIN_SECONDS)
        )
    except (RuntimeError, ValueError) as error:
        where = f"{environment['MASTER_ADDR']}:{environment['MASTER_PORT']}"
        raise ValueError(f"rank {rank} of {count} finds no others at {where}: {in_short(error)}: {advice}") from error
    keep_for_good(dist.group.WORLD)
    ranks = Ranks(rank, int(count), local_rank, local_count, store)
    yield ranks
    ranks.rest()
    dist.destroy_process_group()  # after an error others may not answer; the process ends anyway


def own_part(table: Any, rank: int, count: int) -> Any:
    """The part of torch's table of keys and values that the processes have for themselves which run now.

    torchrun keeps one table for all its restarts (torch 2.13), and what ended processes wrote there are addresses at
    which nobody answers. Nor are restarts counted alike on all machines. So each process writes a name that it alone
    has, and the first one writes a list of the names, until all who are on it have signed it.

    Raises:
        RuntimeError: not all ranks have come within JOIN_SECONDS.
    """
    own = secrets.token_hex(8)
    names = [f"fastpose/name/{each}" for each in range(count)]
    table.set(names[rank], own)
    end = time.monotonic() + JOIN_SECONDS
    while time.monotonic() < end:
        if rank == 0 and table.check(names):
            table.set("fastpose/list", ",".join(table.get(name).decode() for name in names))
        listed = table.get("fastpose/list").decode() if table.check(["fastpose/list"]) else ""
        if own in listed.split(",")[rank : rank + 1]:
            table.set(f"fastpose/signed/{listed}/{rank}", "")
            if table.check([f"fastpose/signed/{listed}/{each}" for each in range(count)]):
                return dist.PrefixStore(f"fastpose/{listed}", table)
        time.sleep(0.02)
    raise RuntimeError(f"not all ranks have come in {JOIN_SECONDS} s")


def keep_for_good(group: Any) -> None:
    """Keeps a gloo group until the process ends. Its destructor holds the interpreter lock and waits for its thread,
    which wants that lock if the last thing that was sent has only just been (seen with torch 2.13)."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(group))


class Watch(threading.Thread):
    """Ends a rank that is stuck, with the places in which its threads are."""

    def __init__(self, ranks: Ranks, patience: float) -> None:
        super().__init__(name="fastpose-watch", daemon=True)
        self._who, self._patience = f"rank {ranks.rank} of {ranks.count}", patience
        self._until: float | None = None
        self.start()

    def look(self) -> None:
        """The rank is at work, from now on."""
        self._until = time.monotonic() + self._patience

    def rest(self) -> None:
        """The rank waits for others."""
        self._until = None

    def run(self) -> None:
        while True:
            time.sleep(min(1.0, self._patience / 4))
            until = self._until
            if until is not None and time.monotonic() > until:
                with suppress(OSError, ValueError):
                    print(
                        f"{self._who}: error: stuck: no step for {self._patience:g} s (--rank_timeout). Its threads:",
                        file=sys.stderr,
                        flush=True,
                    )
                    faulthandler.dump_traceback(sys.stderr, all_threads=True)
                os._exit(1)


class SumOfRanks(torch.autograd.Function):
    """The sum of the ranks' tensors, and of their gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        total = tensor.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


class BatchNormOfAllRanks(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation over the batches of all ranks of `group`, on the CPU. A rank's batch may be empty."""

    group: dist.ProcessGroup

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of axes behind the channels will do."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        axes = [0, *range(2, input.ndim)]
        shape = [1, -1] + [1] * (input.ndim - 2)
        values = input.float()
        # In float64 the sums are nearly independent of how many ranks there are.
        own = torch.tensor([values.numel() // values.shape[1]], dtype=torch.float64)
        sums = SumOfRanks.apply(torch.cat([values.sum(axes, dtype=torch.float64), own]), self.group)
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = values - mean.float().view(shape)
        squares = SumOfRanks.apply((centred * centred).sum(axes, dtype=torch.float64), self.group)
        if self.track_running_stats:
            assert self.num_batches_tracked is not None
            assert self.running_mean is not None
            assert self.running_var is not None
            self.num_batches_tracked.add_(1)
            share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            with torch.no_grad():
                self.running_mean.lerp_(mean.float(), share)
                self.running_var.lerp_((squares / (count - 1)).float(), share)
        result = centred * (squares / count + self.eps).rsqrt().float().view(shape)
        if self.affine:
            result = result * self.weight.view(shape) + self.bias.view(shape)
        return result.to(input.dtype)
