# SPDX-License-Identifier: Apache-2.0
"""What a stop signal does to a command that is still being imported, which takes seconds, and to one that is through.

Imports next to nothing: until this is in effect, Python prints a traceback.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

# Ctrl-C, what schedulers send before they kill, and the end of the terminal, which Windows does not have.
STOPS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


def is_program(package: str) -> bool:
    """Whether Python was started to run a module or the script of `package`, which it is importing now."""
    return _module_that_starts().partition(".")[0] == package or _is_script(package)


def words_of_script(package: str) -> list[str] | None:
    """The words behind the script of `package`, or behind `python -m PACKAGE`; None if Python was started otherwise."""
    if _module_that_starts() == package:
        return sys.orig_argv[sys.orig_argv.index("-m") + 2 :]
    return sys.argv[1:] if _is_script(package) else None


def _module_that_starts() -> str:
    """What comes behind -m while Python imports the packages that the module is in; empty if that is not so."""
    words = sys.orig_argv
    return words[words.index("-m") + 1] if sys.argv[:1] == ["-m"] and "-m" in words[:-1] else ""


def _is_script(package: str) -> bool:
    # A worker process has its parent's argv, but was not started with it.
    return (
        bool(sys.argv) and sys.argv[0] in sys.orig_argv and os.path.basename(sys.argv[0]).partition(".")[0] == package
    )


def quit_when_stopped() -> None:
    """Lets a stop signal print its line and end the program where it is: there is nothing to clean up, and an exception
    would become whatever the import under way makes of it. A signal that is ignored stays ignored.
    """
    for number in STOPS:
        if signal.getsignal(number) not in (signal.SIG_IGN, None):
            signal.signal(number, _quit)


def _quit(number: int, frame: FrameType | None) -> None:
    try:
        os.write(2, f"stopped by {signal.Signals(number).name}\n".encode())
    finally:
        os._exit(128 + number)
