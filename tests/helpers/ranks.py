# SPDX-License-Identifier: Apache-2.0
"""Ranks of one run in processes that are forked once torch is loaded, with the environment that torchrun would give."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastpose import train
from fastpose.engine import results as drawing
from fastpose.models import network
from tests.helpers.settings import small_network

for late in ("torch._dynamo", "yaml"):  # imported when they are needed, for seconds: once, before forks
    with suppress(ImportError):  # whoever needs it says so
        importlib.import_module(late)

SECONDS = 120  # after which a rank is killed: it hangs


class RankProcesses:
    """Processes that each call `work(*arguments)` as a rank.

    Args:
        folder: for what they print, in files called 0.out, 0.err, 1.out and so on.
        count: how many there are.
        work: a function of a module; what it returns is the exit code.
        arguments: of `work`.
        environment: further variables.
    """

    def __init__(
        self,
        folder: Path,
        count: int,
        work: Callable[..., int],
        *arguments: Any,
        environment: dict[str, str] | None = None,
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._end = folder, time.monotonic() + SECONDS
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        common = {
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        common |= environment or {}
        self.ranks = [
            context.Process(
                target=_rank, args=(folder, {**common, "RANK": str(n), "LOCAL_RANK": str(n)}, work, arguments)
            )
            for n in range(count)
        ]
        for rank in self.ranks:
            rank.start()

    def wait(self) -> list[int | None]:
        """The exit codes of all ranks, once they have ended; -9 of those that had to be killed."""
        for rank in self.ranks:
            rank.join(max(0.0, self._end - time.monotonic()))
            if rank.is_alive():
                rank.kill()
                rank.join()
        return [rank.exitcode for rank in self.ranks]

    def kill(self, rank: int, number: int = signal.SIGKILL) -> None:
        """Sends a signal to a rank."""
        process = self.ranks[rank].pid
        assert process is not None
        os.kill(process, number)

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Waits until something is so."""
        while not condition():
            assert time.monotonic() < self._end, [self.said(n) for n in range(len(self.ranks))]
            assert any(rank.is_alive() for rank in self.ranks), [self.said(n) for n in range(len(self.ranks))]
            time.sleep(0.02)

    def out(self, rank: int = 0) -> str:
        """What a rank has printed to standard output."""
        return (self.folder / f"{rank}.out").read_text()

    def printed(self, rank: int) -> str:
        """All that a rank has printed to standard error; of a traceback each line begins with [rank."""
        file = self.folder / f"{rank}.err"
        return file.read_text() if file.exists() else ""

    def said(self, rank: int) -> str:
        """What a rank has printed to standard error, without the lines that torch's C++ prints."""
        of_torch = re.compile(r"(\[rank\d+\]:)?\[[WE]|frame #|Exception raised|<omitting python frames>|$")
        return "".join(line for line in self.printed(rank).splitlines(keepends=True) if not of_torch.match(line))


def _rank(folder: Path, environment: dict[str, str], work: Callable[..., int], arguments: Sequence[Any]) -> None:
    os.environ.update(environment)
    for stream, ending in ((1, "out"), (2, "err")):
        file = os.open(folder / f"{environment['RANK']}.{ending}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, stream)
    # Python's own streams, which the server of forks has not.
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115  (until the process ends)
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    code = 99  # a traceback
    try:
        code = work(*arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 98
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        os._exit(code)


def train_small(*words: str, make: Any = small_network) -> int:
    """`fastpose.train` with a network that takes no time, and without pictures; in a process of its own."""
    network.pose_resnet = make
    drawing.draw = lambda *arguments: None
    return train.main(list(words))
