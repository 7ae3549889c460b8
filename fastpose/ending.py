# SPDX-License-Identifier: Apache-2.0
"""How a command ends if not by its own will: by a signal, without a reader, for want of what the system refuses."""

from __future__ import annotations

import functools
import logging
import os
import re
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, redirect_stdout, suppress
from types import FrameType, TracebackType
from typing import Any, TypeVar

from fastpose._program import STOPS

CLOSED_PIPE = 128 + 13  # SIGPIPE's number, which is what other programs end with
SAME_STOP_SECONDS = 0.1

Self = TypeVar("Self", bound="Stops")


class Stopped(KeyboardInterrupt):
    """A stop signal, raised in the main thread wherever it is.

    Args:
        number: the signal's.
        remark: what to print behind its name.
    """

    def __init__(self, number: int, remark: str = "") -> None:
        super().__init__(number, remark)
        self.number, self.remark = number, remark

    @classmethod
    def by(cls, stop: KeyboardInterrupt, remark: str) -> Stopped:
        """The same stop, with a remark."""
        return cls(getattr(stop, "number", signal.SIGINT), remark)


class Stops(AbstractContextManager["Stops"]):
    """Lets the first SIGINT, SIGTERM or SIGHUP raise `Stopped` in the main thread; a second one ends the program.

    A signal that is ignored stays ignored: SIGHUP under nohup, SIGINT in a script's background job. In other threads,
    which cannot choose what signals do, nothing is changed.

    Python drops an exception that is raised while it runs the callback of something that goes, with a traceback: a stop
    that comes then is raised once more a moment later.

    Attributes:
        received: the signal's number; 0 while none has come.
    """

    received: int = 0
    _later: threading.Timer | None = None  # sends a stop again that Python has dropped
    _leaving = False

    def __enter__(self: Self) -> Self:
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in STOPS:
                handler = signal.getsignal(number)
                if handler not in (signal.SIG_IGN, None):  # None: a handler in C, which could not be put back
                    self._before[number] = handler
                    signal.signal(number, self._handle)
        self._hook = sys.unraisablehook
        if self._before:
            sys.unraisablehook = self._dropped
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        self._leaving = True
        if sys.unraisablehook == self._dropped:
            sys.unraisablehook = self._hook
        dropped = self._later
        if dropped is not None and dropped.is_alive():
            dropped.cancel()
            dropped.join()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if dropped is not None and kind is None:  # and never came again
            raise Stopped(self.received)

    def _dropped(self, dropped: sys.UnraisableHookArgs) -> None:
        if not isinstance(dropped.exc_value, Stopped):
            return self._hook(dropped)
        signal.signal(self.received, self._again)
        self._later = threading.Timer(SAME_STOP_SECONDS, os.kill, (os.getpid(), self.received))
        self._later.daemon = True
        with suppress(RuntimeError):  # the system refuses a thread: the stop is raised at the end
            self._later.start()

    def _again(self, number: int, frame: FrameType | None) -> None:
        if not self._leaving:
            self._later = None
            signal.signal(number, signal.SIG_DFL)
            raise Stopped(number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            return
        self.received = number
        # `timeout` and schedulers send one stop twice, to the process and to its group. Those come while this sleeps.
        time.sleep(SAME_STOP_SECONDS)
        for other in self._before:
            signal.signal(other, signal.SIG_DFL)
        if number != signal.SIGINT:
            _leave_dead_terminal()
        self.act(number)

    def act(self, number: int) -> None:
        """What the first signal does."""
        raise Stopped(number)


def ends_in_one_line(main: Callable[..., int]) -> Callable[..., int]:
    """A command's `main`, which after the following returns an exit code instead of raising:

    * SIGINT, SIGTERM and SIGHUP: 128 + the signal's number, after one line. They raise in it as Ctrl-C does, so that
      what is unfinished is removed.
    * A reader that has gone (`fastpose ... | head`): nothing is printed; 141, or the command's own code if it was done.
    * What the system refuses (OSError, and see `refused`): 1, after one line.

    Everything else keeps its traceback: it is a fault of the program. Warnings are lines, see `warnings_are_lines`.
    What `be_quiet` changed is as before again.
    """

    @functools.wraps(main)
    def wrapped(argv: Sequence[str] | None = None) -> int:
        signals = Stops()
        try:
            with signals, warnings_are_lines(), as_loud_as_before():
                code = main(argv)
        except BaseException as error:
            # Once a signal has come, what else goes wrong (a worker that it ended, too) goes wrong because of it.
            if signals.received and not isinstance(error, Stopped):
                error = Stopped(signals.received)
            if isinstance(error, KeyboardInterrupt | OSError):
                return report(error)
            cause: BaseException | None = error
            while cause is not None:  # clearing up may fail, too, for want of the same
                if refused(cause):
                    return report(cause)
                cause = cause.__context__
            _flush()
            raise
        # What is still to be printed may go to a full disk; a reader that has gone has read what it wanted.
        unwritten = _flush()
        return code if unwritten is None or isinstance(unwritten, BrokenPipeError) else report(unwritten)

    return wrapped


@contextmanager
def warnings_are_lines() -> Iterator[None]:
    """Prints fastpose's warnings as errors are printed, each once: two splits may have one file.

    Where a program that calls a command has handlers for them, these alone get them.
    """
    logger = logging.getLogger("fastpose")
    if logger.hasHandlers():
        yield
        return
    handler = _Lines()
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._printed: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        line = f"{record.levelname.lower()}: {record.getMessage()}"
        if line not in self._printed:
            self._printed.add(line)
            print_error(line)


def be_quiet() -> None:
    """Leaves out progress and lines of log until the command ends."""
    global _quiet
    _quiet = True


def is_heard() -> bool:
    """Whether progress and lines of log are printed: not after `be_quiet`, nor in a process that prints its errors
    alone."""
    return not (_quiet or _name)


@contextmanager
def as_loud_as_before() -> Iterator[None]:
    """Undoes `be_quiet` at its end: a program may call several commands."""
    global _quiet
    before = _quiet
    try:
        yield
    finally:
        _quiet = before


_quiet = False


@contextmanager
def one_of_several(name: str) -> Iterator[None]:
    """For a process that does what another one does, too, which prints: it prints its errors alone, with `name`."""
    global _name
    logger = logging.getLogger("fastpose")
    level, _name = logger.level, f"{name}: "
    logger.setLevel(logging.ERROR)
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            yield
    finally:
        logger.setLevel(level)


_name = ""  # before each error, until the process ends


def report(error: BaseException) -> int:
    """Prints in one line why a command ends; returns its exit code."""
    _flush()
    if isinstance(error, KeyboardInterrupt):
        stop = Stopped.by(error, getattr(error, "remark", ""))
        print_once(f"stopped by {signal.Signals(stop.number).name}{'; ' * bool(stop.remark)}{stop.remark}")
        return 128 + stop.number
    if isinstance(error, BrokenPipeError):
        return CLOSED_PIPE
    print_error(f"{_name}error: {refused(error) or error}")
    return 1


# Compiled here: where memory has run out there may be none for it.
_ASKED = re.compile(r"tried to allocate (\d+) bytes")
REFUSALS = {
    "memory": (
        re.compile(  # the last is oneDNN's, which has no other words for it
            r"can't allocate memory|not enough memory|[Cc]annot allocate memory|Failed to allocate|"
            r"failed to map segment|^could not (create|execute) a primitive$"
        ),
        "lower --batch_size, --eval_batch_size or --prefetch, choose --resident false or, on a GPU, --cuda_graph off, "
        "or see ulimit -v and the cgroup's memory.max",
    ),
    "threads or processes": (
        re.compile(r"can't start new thread|Resource temporarily unavailable"),
        "see ulimit -u, the cgroup's pids.max and, as each needs memory, ulimit -v",
    ),
    "open files": (re.compile(r"Too many open files"), "raise ulimit -n"),
}


def refused(error: BaseException) -> str:
    """What the system has refused, and what to do; empty if the error is another one.

    Most of these errors have no type of their own, in torch, OpenCV and Python, and are known by their text.
    """
    try:
        return _refusal(error)
    except MemoryError:  # none is left for more words
        return "the system refuses memory"


def _refusal(error: BaseException) -> str:
    text = " ".join(str(error).split())
    untyped = isinstance(error, RuntimeError | ImportError | OSError) or type(error).__module__ == "cv2"
    for what, (texts, advice) in REFUSALS.items():
        typed = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # the second is torch's
        if (typed and what == "memory") or (untyped and texts.search(text)):
            if asked := _ASKED.search(text):
                text = f"{int(asked[1]):,} bytes asked for"
            return f"the system refuses {what}: {text or type(error).__name__} ({advice})"
    return ""


def print_exception(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """A `sys.excepthook` for a command that is still being imported: what the system refuses is one line."""
    if refused(error):
        report(error)
    else:
        sys.__excepthook__(kind, error, traceback)


def print_error(line: str) -> None:
    """Prints to standard error; that nobody reads it is no error, also in a signal's handler."""
    with suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)


def print_log(line: str) -> None:
    """Prints a line of log to standard error, if they are printed: what a command does, and not what comes of it.

    Raises:
        OSError: it cannot be written.
    """
    if is_heard() and sys.stderr is not None:  # None: closed before the start
        print(line, file=sys.stderr, flush=True)


def print_once(line: str) -> None:
    """`print_error` of what several processes have to say at once: the one that prints says it."""
    if not _name:
        print_error(line)


def _flush() -> OSError | None:
    """Writes out what is printed. What cannot be written is dropped, with all that follows, so that Python does not
    complain of it at its exit; the error of standard output is returned."""
    errors = {}
    for stream in (sys.stderr, sys.stdout):
        try:
            if stream is not None:
                stream.flush()
        except OSError as error:
            errors[stream] = error
            _discard(stream)
        except ValueError:  # closed
            pass
    return errors.get(sys.stdout)


def _discard(stream: Any) -> None:
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _leave_dead_terminal() -> None:
    """Discards what is printed to a terminal that was closed: writing there is an error, and would be taken for one of
    the command's files."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            if stat.S_ISCHR(os.fstat(stream.fileno()).st_mode) and not stream.isatty():
                _discard(stream)
