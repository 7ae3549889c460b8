# SPDX-License-Identifier: Apache-2.0
"""Threads that show that a rank is alive, and notice that it is stuck."""

from __future__ import annotations

import faulthandler
import math
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch

BEAT_SECONDS, LOST_SECONDS = 5, 60  # while ranks wait for each other before the training, as long as it takes
LONGER_SECONDS = 30  # that the others wait for a rank that is stuck: it says itself where it is
LEFT = b"left"


class Beat(threading.Thread):
    """Shows other ranks that this one is alive."""

    def __init__(self, store: Any, rank: int) -> None:
        super().__init__(name="fastpose-beat", daemon=True)
        self._store, self._key = store, f"beat/{rank}"
        self.over = threading.Event()
        store.set(self._key, "0")
        self.start()

    def run(self) -> None:
        number = 0
        while not self.over.wait(BEAT_SECONDS):
            number += 1
            try:
                self._store.set(self._key, str(number))
            except RuntimeError:  # who has the store is gone, as the main thread will see
                return


class Watch(threading.Thread):
    """Ends a rank that is stuck, with the places in which its threads are.

    Args:
        who: the rank, in words.
        patience: seconds without a sign of work after which it is stuck.
        behind: whether the others have lost a rank, and it is this one.
    """

    def __init__(self, who: str, patience: float, behind: Callable[[], bool]) -> None:
        super().__init__(name="fastpose-watch", daemon=True)
        self._who, self._patience, self._behind = who, patience, behind
        self._since, self._resting = math.inf, True
        self.over = threading.Event()
        self.start()

    def look(self) -> None:
        """The rank is at work, from now on."""
        self._since, self._resting = time.monotonic(), False

    def rest(self) -> None:
        """The rank waits for others, from now on."""
        self._since, self._resting = time.monotonic(), True

    def run(self) -> None:
        main = threading.main_thread().ident
        torch_folder = os.path.dirname(torch.__file__)
        while not self.over.wait(min(1.0, self._patience / 4)):
            behind = self._behind()  # answers others, too
            late = time.monotonic() - self._since - self._patience
            if late < 0 or self._resting:
                continue
            # In torch it may be waiting for a rank that is, in a collective that ends by itself: at the latest
            # LONGER_SECONDS after as long again, as it may have worked for that long before.
            frame = sys._current_frames().get(main) if main else None
            in_torch = frame is not None and frame.f_code.co_filename.startswith(torch_folder)
            if in_torch and not behind and late < self._patience + 2 * LONGER_SECONDS:
                continue
            with suppress(OSError, ValueError):
                said = f"{self._who}: error: stuck: no step for {self._patience:g} s (--rank_timeout). Its threads:"
                print(said, file=sys.stderr, flush=True)
                faulthandler.dump_traceback(sys.stderr, all_threads=True)
            os._exit(1)
