# SPDX-License-Identifier: Apache-2.0
"""Work in the background: batches prepared ahead, and the time that their consumer waits for them."""

from __future__ import annotations

import errno
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")


class HostWait:
    """The time that a thread waits for its input."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._begin = 0.0

    def begin(self) -> None:
        self._begin = time.perf_counter()

    def end(self, ready: torch.cuda.Event | None) -> None:
        self._seconds += time.perf_counter() - self._begin

    def seconds(self) -> float:
        return self._seconds


class DeviceWait:
    """The time that a GPU is idle because of its input, and a bound on how far the host is ahead of it.

    A host that waits for the next batch may have a GPU that is still busy with the last. So an event goes into the
    consumer's stream behind the work it has, and another behind the arrival of the input: what lies between the two on
    the GPU's clock, it has waited.

    Args:
        device: the consumer's.
        depth: batches that the host may be ahead of the GPU, at least 1. A host that only enqueues would otherwise run
            on until memory ends, as every batch it lets go of stays until the GPU is through with it.
    """

    def __init__(self, device: torch.device, depth: int) -> None:
        self._device, self._depth = device, depth
        self._seconds = 0.0
        self._begin: torch.cuda.Event | None = None
        self._pairs: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()

    def begin(self) -> None:
        """The consumer's stream has all the work that there is before the next batch."""
        self._begin = self._record()
        while len(self._pairs) >= self._depth:
            self._pairs[0][1].synchronize()
            self._take()

    def end(self, ready: torch.cuda.Event | None) -> None:
        """The next batch is on its way and complete at `ready`, for which the consumer's stream is made to wait."""
        assert ready is not None
        assert self._begin is not None
        torch.cuda.current_stream(self._device).wait_event(ready)
        self._pairs.append((self._begin, self._record()))

    def seconds(self) -> float:
        """The waiting that the GPU is through with; it does not wait for the rest."""
        while self._pairs and self._pairs[0][1].query():
            self._take()
        return self._seconds

    def _record(self) -> torch.cuda.Event:
        # Blocking: who waits for it leaves the core to the decoding threads.
        event = torch.cuda.Event(enable_timing=True, blocking=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def _take(self) -> None:
        begin, end = self._pairs.popleft()
        self._seconds += begin.elapsed_time(end) / 1000


class PreparedAhead(Iterator[T]):
    """The results of `jobs`, in order, from background threads that begin with the first one asked for.

    A job's exception is raised here, where its result would have been. torch's number of threads stays what it is here
    and is 1 there.

    Raises:
        OSError: the system refuses one of the threads; none is left then.

    Args:
        jobs: what to do, in order.
        depth: results that may wait for their consumer, at most.
        threads: background threads.
    """

    def __init__(self, jobs: Iterator[Callable[[], T]], depth: int, threads: int = 1) -> None:
        self._jobs, self._depth, self._threads = jobs, depth, threads
        self._pending: deque[Future[T]] = deque()
        self._worker: ThreadPoolExecutor | None = None
        self._closed = False

    def __next__(self) -> T:
        try:
            if self._closed:
                raise StopIteration
            worker = self._worker or self._start()
            while len(self._pending) <= self._depth and (job := next(self._jobs, None)) is not None:
                self._pending.append(worker.submit(job))
            if not self._pending:
                raise StopIteration
            return self._pending.popleft().result()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Drops the jobs not begun, waits for those that run and ends the threads."""
        self._end(wait=True)

    def __del__(self) -> None:
        # An iterator that nobody closed. If it was part of a cycle, the garbage collector is at work in whatever thread
        # asked for memory, perhaps one that is just starting and holds threading's own locks: no thread can be waited
        # for there.
        self._end(wait=False)

    def _end(self, *, wait: bool) -> None:
        self._closed = True
        self._jobs = iter(())  # with what they refer to, as tensors on the device
        self._pending.clear()
        if self._worker is not None:
            self._worker.shutdown(wait=wait, cancel_futures=True)

    def _start(self) -> ThreadPoolExecutor:
        cores = torch.get_num_threads()
        started = threading.Barrier(self._threads)
        self._worker = ThreadPoolExecutor(self._threads, thread_name_prefix="fastpose-prepare")
        begun: list[Future[None]] = []
        try:
            # The barrier makes each thread take one of these.
            for _ in range(self._threads):
                begun.append(self._worker.submit(use_one_core, started))
            for one in begun:
                one.result()
        except BaseException as error:
            started.abort()  # otherwise those that have come would wait for those that never will
            if isinstance(error, RuntimeError):  # Python's "can't start new thread"
                what = f"thread {len(begun) + 1} of {self._threads} that prepare batches"
                raise OSError(errno.EAGAIN, f"{what}: {error}") from error
            raise
        finally:
            # torch gives the number set last, in whichever thread, to every thread that asks for the first time.
            torch.set_num_threads(cores)
        return self._worker


def use_one_core(started: threading.Barrier) -> None:
    """Lets torch run this thread's ops on one core: more would fight with those that train for the others."""
    started.wait()
    torch.get_num_threads()  # Otherwise the thread's first op would ask, and take what others have set meanwhile.
    torch.set_num_threads(1)
