# SPDX-License-Identifier: Apache-2.0
"""Work shared by processes that need no thread of their parent, and end with it."""

from __future__ import annotations

import signal
import threading
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any, TypeVar

import cv2

from fastpose._program import STOPS

Job = TypeVar("Job")
Result = TypeVar("Result")


class WorkerGone(Exception):
    """A process that worked was ended."""


def in_processes(
    make_jobs: Callable[[], list[Job]], work: Callable[[Job], Result], workers: int
) -> Generator[tuple[Job, Result]]:
    """Every job and its result, in the order of the jobs. An error is raised, the worker's traceback noted.

    Args:
        make_jobs: makes the same list in every process: sent are not the jobs, but how to make them.
        work: does a job. Both are pickled, and together have to fit into a pipe (64 KiB).
        workers: processes; 1: this one.

    Raises:
        WorkerGone: a worker was killed, or could not start.
    """
    jobs = make_jobs()
    if workers == 1:
        for job in jobs:
            yield job, work(job)
        return
    # Forking a process that holds torch's and OpenCV's thread pools can hang; a spawned worker starts clean. Python's
    # process pools need threads of their own, and wait for ever if the system refuses one.
    spawn = get_context("spawn")
    resource_tracker.ensure_running()  # which the first process starts otherwise, and lets signals through afterwards
    processes: list[SpawnProcess] = []
    answers: list[Connection] = []
    try:
        with stops_held_back():
            for number in range(workers):
                here, there = spawn.Pipe(duplex=False)
                answers.append(here)
                with there:  # closed here, so that the pipe ends with the worker
                    # What does not fit into a pipe would wait for a worker that may never read it.
                    share = (make_jobs, work, number, workers, there)
                    processes.append(spawn.Process(target=_do_share, args=share, daemon=True))
                    processes[-1].start()
        for index, job in enumerate(jobs):
            try:
                answer = answers[index % workers].recv()
            except (EOFError, OSError) as error:  # ended before a message, or within one
                raise WorkerGone from error
            if isinstance(answer, Exception):
                raise answer
            yield job, answer
    finally:
        started = [process for process in processes if process.pid is not None]
        for process in started:
            process.kill()  # what is half written is its caller's to remove
        for process in started:
            process.join()
        for here in answers:
            here.close()


def _do_share(
    make_jobs: Callable[[], list[Job]], work: Callable[[Job], Result], number: int, workers: int, answers: Connection
) -> None:
    """What a worker does: of so many workers' jobs it does its own, and sends the results or the errors."""
    cv2.setNumThreads(1)
    with suppress(BrokenPipeError):  # nobody is there to work for
        for job in make_jobs()[number::workers]:
            answer: Any
            try:
                answer = work(job)
            except Exception as error:
                # As add_note of Python 3.11 does: the traceback itself cannot be sent.
                error.__notes__ = [traceback.format_exc()]  # type: ignore[attr-defined]
                answer = error
            answers.send(answer)


@contextmanager
def stops_held_back() -> Iterator[None]:
    """Processes started inside never see a stop signal, which is for their parent to handle; the parent sees it after.

    They end with their parent, whose end of the pipe is then gone.
    """
    came: list[int] = []
    # A mask is the thread's, and inherited. Other threads, OpenBLAS's for one, still take the signal for all.
    in_main = threading.current_thread() is threading.main_thread()
    handlers = {number: handler for number in STOPS if in_main and callable(handler := signal.getsignal(number))}
    for number in handlers:
        signal.signal(number, lambda number, frame: came.append(number))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in dict.fromkeys(came):
            signal.raise_signal(number)
