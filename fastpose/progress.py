# SPDX-License-Identifier: Apache-2.0
"""Progress on standard error: on a terminal a line that renews itself, in a log a line every ten seconds."""

from __future__ import annotations

import shutil
import sys
import time

from fastpose.ending import is_heard

SECONDS_IN_A_LOG = 10.0  # from one line to the next
SECONDS_ON_A_TERMINAL = 0.1


class ProgressLine:
    """The line of a terminal that is still open, or the lines of a log; nothing if a command is to be quiet.

    It is only ever renewed, and never coloured: there is nothing for NO_COLOR to change.
    """

    def __init__(self) -> None:
        self.heard = is_heard() and sys.stderr is not None  # None: closed before the start
        self.terminal = self.heard and sys.stderr.isatty()
        self.open = False
        self._last = time.perf_counter() - (SECONDS_ON_A_TERMINAL if self.terminal else 0)

    @property
    def due(self) -> bool:
        """Whether `renew` would print now."""
        if not self.heard:
            return False
        seconds = SECONDS_ON_A_TERMINAL if self.terminal else SECONDS_IN_A_LOG
        return time.perf_counter() - self._last >= seconds

    def renew(self, text: str) -> None:
        """Shows a state that the next one replaces, if it is due."""
        if self.due:
            self._print(text, end="" if self.terminal else "\n")
            self.open = self.terminal

    def print(self, text: str) -> None:
        """Prints a line that stays."""
        self._print(text, end="\n")
        self.open = False

    def end(self) -> None:
        """Lets what is printed next begin on a line of its own."""
        if self.open:
            print(file=sys.stderr, flush=True)
            self.open = False

    def _print(self, text: str, *, end: str) -> None:
        if not self.heard:
            return
        self._last = time.perf_counter()
        if self.terminal and not end:  # a line that wraps could not be replaced
            text = text[: shutil.get_terminal_size().columns - 1]
        print(f"\r\x1b[2K{text}" if self.terminal else text, end=end, file=sys.stderr, flush=True)


class CountedProgress:
    """Progress of work that can be counted: how much is done, how fast, and the time left.

    Args:
        title: what is being done.
        unit: what is counted, in the plural.
        total: how many there are; 0: not known.
        also: what else is counted with them, whose speed is shown beside theirs, in the plural.
        stays: print the line for good when all are done; otherwise the next line replaces it on a terminal.
    """

    def __init__(self, title: str, unit: str, total: int, *, also: str = "", stays: bool = True) -> None:
        self.title, self.unit, self.total, self.also, self.stays = title, unit, total, also, stays
        self.line = ProgressLine()
        self._begin = self._last = time.perf_counter()
        self._found = 0

    def show(self, done: int, found: int = 0, *, also: int = 0) -> None:
        """Called with how many are done, how many of these were done before, which do not count for the speed, and how
        many `also`."""
        now = time.perf_counter()
        if found > self._found:  # the time went into looking at these
            self._found, self._begin = found, self._begin + now - self._last
        self._last = now
        counted = f"{done:{len(str(self.total))}d}/{self.total}" if self.total else str(done)
        text = f"{self.title}  {counted} {self.unit}"
        if done > found:
            seconds = max(now - self._begin, 1e-9)
            rate = (done - found) / seconds
            text += f"  {rate:.1f} {self.unit}/s"
            text += f"  {also / seconds:.1f} {self.also}/s" if self.also else ""
            text += f"  {duration(max(self.total - done, 0) / rate)} left" if self.total else ""
        if done == self.total and self.stays:
            self.line.print(text)
        else:
            self.line.renew(text)

    def end(self) -> None:
        """Lets what is printed next begin on a line of its own."""
        self.line.end()


def duration(seconds: float) -> str:
    """75 -> 1m15s"""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"
