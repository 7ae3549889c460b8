# SPDX-License-Identifier: Apache-2.0
"""A call in a process of its own, with a limit on its time and a look at its memory."""

from __future__ import annotations

import multiprocessing
import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

TIME, ADDRESSES = 60.0, 8 << 30  # seconds, bytes


@dataclass(frozen=True)
class Outcome:
    """What became of a call.

    Attributes:
        kind: "accepted", "one line" (an error that the commands print so), "many lines", "traceback", "crash", "hang".
        seconds, memory: what it took: seconds of a processor, and bytes above those of the process before.
        text: the error's.
    """

    kind: str
    seconds: float = 0.0
    memory: int = 0
    text: str = ""


def outcome_of(call: Callable[..., Any], *arguments: Any) -> Outcome:
    """Calls in a fork of this process, which is ended after TIME."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(there, call, arguments))
    begin = time.perf_counter()
    process.start()
    there.close()
    answered = here.poll(TIME)
    try:
        outcome = here.recv() if answered else Outcome("hang", TIME)
    except EOFError:
        outcome = Outcome("crash", time.perf_counter() - begin)
    if not answered:
        process.kill()
    process.join()
    return replace(outcome, text=f"exit code {process.exitcode}") if outcome.kind == "crash" else outcome


def _answer(there: Connection, call: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak begins with what there is now
    before, begin = _peak(), time.process_time()
    kind, text = "accepted", ""
    try:
        call(*arguments)
    except (ValueError, OSError) as error:  # what commands print as one line
        kind, text = "one line" if len(str(error).splitlines()) == 1 else "many lines", str(error)
    except BaseException as error:
        kind, text = "traceback", f"{type(error).__name__}: {error}"
    there.send(Outcome(kind, time.process_time() - begin, _peak() - before, text))
    there.close()
    os._exit(0)


def _peak() -> int:
    """The most memory so far, bytes."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
