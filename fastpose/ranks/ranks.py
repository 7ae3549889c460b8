# SPDX-License-Identifier: Apache-2.0
"""The processes of one run: one by itself, or several that torchrun started, which torch.distributed connects.

Between any two training steps they exchange a few integers over gloo. So they stop, save and fail in the same step, and
none waits for a GPU to know.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastpose.ending import report
from fastpose.option import OptionError
from fastpose.ranks.alive import LEFT, LONGER_SECONDS, LOST_SECONDS, Beat, Watch
from fastpose.ranks.batch_norm import BatchNormOfAllRanks

T = TypeVar("T")

ROLL_CALL_SECONDS = 5
# All that gloo raises names its source file, but for what the other waits hear of one that has timed out.
OF_GLOO = ("gloo", "Application timeout caused pair closure")


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
        launch: another one, for all times that the same torchrun starts the ranks; None without torchrun.
    """

    launch: Any = None

    def __init__(
        self, rank: int = 0, count: int = 1, local_rank: int = 0, local_count: int = 1, store: Any = None
    ) -> None:
        self.rank, self.count, self.local_rank, self.local_count = rank, count, local_rank, local_count
        self.store, self._meetings = store, 0
        self._beat = None if store is None else Beat(store, rank)
        self._steps: dist.ProcessGroup | None = None  # between steps, with the timeout
        self._data: dist.ProcessGroup | None = None  # for what is on the training device
        self._watch: Watch | None = None
        self._answers: dict[int, int] = {}

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
        with self._waiting():  # as long as it takes; what follows has a time limit
            pass
        with lost_if_it_fails():
            longest = timedelta(seconds=patience + LONGER_SECONDS)
            self._steps = dist.new_group(backend="gloo", timeout=longest)
            self._data = dist.new_group(backend="nccl", timeout=longest) if device.type == "cuda" else self._steps
        keep_for_good(self._steps)
        if self._beat is not None:
            self._beat.over.set()
        self._watch = Watch(f"rank {self.rank} of {self.count}", patience, self._behind)

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

    def check_same(self, what: str, value: Any) -> None:
        """Raises ValueError in a rank whose `value` is not that of the first one, as on machines with other files."""
        expected = self.same(lambda: value)
        with self.failing_together():
            if value != expected:
                raise ValueError(
                    f"the {what} of this rank are not those of the first one: expected {expected}, got {value}"
                )

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
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        with self._waiting():
            dist.all_gather_object(values, value, group=self._steps)
        return values

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
        if self.count == 1:
            return value
        highest = torch.tensor([value])
        with self._waiting():
            dist.all_reduce(highest, dist.ReduceOp.MAX, group=self._steps)
        return int(highest)

    def leave(self) -> None:
        """Tells the others that this rank ends."""
        if self._beat is not None:
            self._beat.over.set()
            within(ROLL_CALL_SECONDS, lambda: self.store.set(f"beat/{self.rank}", LEFT))

    def alive(self) -> None:
        """Says that this rank is at work and not stuck: after each wait, and where it does much between steps."""
        if self._watch is not None:
            self._watch.look()

    def rest(self) -> None:
        """Nobody waits for a step of this rank until it is `alive` again."""
        if self._watch is not None:
            self._watch.rest()

    def end(self) -> None:
        """This rank ends."""
        if self._watch is not None:
            self._watch.over.set()
            self._watch.join(ROLL_CALL_SECONDS)  # it may be using the store

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
        """Waits for all ranks as long as it takes, unless one leaves or its heart stops."""
        self._meetings += 1
        key = f"meeting/{self._meetings}"
        if self.store.add(key, 1) == self.count:
            self.store.set(f"{key}/all", "")

        def look() -> dict[int, bytes] | None:
            if self.store.check([f"{key}/all"]):
                return None
            return {rank: self._value(f"beat/{rank}") for rank in range(self.count)}

        beats: dict[int, tuple[bytes, float]] = {}
        while (found := within(LOST_SECONDS, look)) is not None:
            now = time.monotonic()
            for rank, beat in found.items():
                last, since = beats.get(rank, (b"", now))
                beats[rank] = (beat, now if beat != last else since)
                if beat == LEFT or now - beats[rank][1] > LOST_SECONDS:
                    raise RankLostError("while it was waited for")
            time.sleep(0.1)  # here a signal is noticed

    def is_to_tell(self, error: RankLostError) -> bool:
        """Whether this rank is the one that says which rank is lost; the error then does."""
        try:
            absent = within(2 * ROLL_CALL_SECONDS, self.absent, stoppable=False)  # the process is about to end
        except RankLostError:
            absent = [0]
        self.end()
        if self.rank > min(set(range(self.count)) - set(absent)):
            return False
        numbers = f"{', '.join(map(str, absent))} of {self.count}"
        if len(absent) > 1:
            lost = f"ranks {numbers} have ended or do not answer, and say"
        else:
            lost = f"{f'rank {numbers}' if absent else 'a rank'} has ended or does not answer, and says"
        error.args = (f"{lost} why if possible ({error})",)
        return True

    def _answer(self) -> dict[int, int]:
        """Answers a call, and returns which ranks have: how many collectives each has begun."""
        begun = 0 if self._steps is None else cast(Any, self._steps)._get_sequence_number_for_group()
        self.store.set(f"here/{self.rank}", str(begun))
        answers = {rank: self._value(f"here/{rank}") for rank in range(self.count)}
        self._answers = {rank: int(answer) for rank, answer in answers.items() if answer}
        return self._answers

    def _behind(self) -> bool:
        """Whether another rank calls, all answer, and this one has begun fewer collectives than others: they have
        waited for it. For the thread that watches a rank, which also answers for it while it waits or computes."""
        with suppress(RuntimeError):  # who has the store is gone
            if self.store.check(["call"]):
                answers = self._answer()
                return len(answers) == self.count and self.rank in last_of(answers)
        return False

    def absent(self) -> list[int]:
        """Which ranks have left or do not answer a call; if all answer, those that the others waited for. For a rank
        that has lost one. Takes some seconds.

        Raises:
            RankLostError: nobody can be called, as the first rank had the address book.
        """
        try:
            self.store.set("call", "")
            until = time.monotonic() + ROLL_CALL_SECONDS
            while True:
                answers = self._answer()
                left = {rank for rank in range(self.count) if self._value(f"beat/{rank}") == LEFT}
                absent = set(range(self.count)) - answers.keys() | left
                if absent == left or time.monotonic() > until:
                    return sorted(absent or last_of(answers))
                time.sleep(0.1)
        except RuntimeError as error:
            if 0 in self._answers:  # the first rank, which has the address book, says who is absent before it ends
                return sorted(set(range(self.count)) - self._answers.keys())
            raise RankLostError(in_short(error)) from error

    def _value(self, key: str) -> bytes:
        """What is in the store; nothing if nobody has written it yet."""
        return bytes(self.store.get(key)) if self.store.check([key]) else b""


ALONE = Ranks()


def last_of(answers: Mapping[int, int]) -> set[int]:
    """The ranks that have begun the fewest collectives; none if all have begun as many."""
    fewest, most = min(answers.values()), max(answers.values())
    return {rank for rank, begun in answers.items() if begun == fewest < most}


@contextmanager
def lost_if_it_fails() -> Iterator[None]:
    """Makes a RankLostError of what torch.distributed raises if another rank has gone. It has no type for that."""
    try:
        yield
    except RuntimeError as error:
        known = isinstance(error, dist.DistError) or any(words in str(error) for words in OF_GLOO)
        if isinstance(error, RankLostError) or not known:
            raise
        raise RankLostError(in_short(error)) from error


def in_short(error: Exception) -> str:
    """What torch.distributed says, without its place in the source and its advice."""
    return " ".join(str(error).split()).rpartition(".cc:")[2].partition("] ")[2].partition(". ")[0] or str(error)


def within(seconds: float, call: Callable[[], T], *, stoppable: bool = True) -> T:
    """What `call` returns. For calls of the store, which wait for ever, deaf to signals, if the rank that has it is
    frozen.

    Args:
        seconds: how long that may take.
        call: runs in a thread.
        stoppable: whether Ctrl-C ends it.

    Raises:
        RankLostError: it has not returned within that time.
    """
    results: list[T] = []
    errors: list[Exception] = []
    done = threading.Event()  # Thread.join, interrupted, would take the thread for ended in Python 3.11

    def work() -> None:
        try:
            results.append(call())
        except Exception as error:
            errors.append(error)
        done.set()

    threading.Thread(target=work, name="fastpose-store", daemon=True).start()
    end = time.monotonic() + seconds
    while not done.is_set() and time.monotonic() < end:
        try:
            done.wait(end - time.monotonic())
        except KeyboardInterrupt:
            if stoppable:
                raise
    if errors:
        raise errors[0]
    if not results:
        raise RankLostError(f"the first rank has not answered for {seconds:g} s")
    return results[0]


def report_lost(error: RankLostError, ranks: Ranks) -> int:
    """Says in one of the ranks that are left which one is lost; returns the exit code of all of them."""
    return report(error) if ranks.is_to_tell(error) else 1


def keep_for_good(group: Any) -> None:
    """Keeps a gloo group until the process ends. Its destructor holds the interpreter lock and waits for its thread,
    which wants that lock if the last thing that was sent has only just been (seen with torch 2.13)."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(group))
