# SPDX-License-Identifier: Apache-2.0
"""How long a run of two ranks takes to end, or to train again, once one of them is killed or stands still.

    python -m studies.reliability.lost_ranks

Processes that torchrun starts, with a small network and a checkpoint before each step. Rank 1 gets SIGKILL, or SIGSTOP
with `--rank_timeout 5`. Prints the seconds until torchrun ends, without restarts; with them, until the loss of one more
epoch is written.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.helpers.runs import write_recipe
from tests.helpers.torchrun import ranks_of, torchrun, wait_for


def epochs_of(run: Path) -> int:
    try:
        return (run / "metrics.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = {"size": [64, 64], "batch_size": 4, "epochs": 100_000, "eval_every": 100_000}
        recipe = write_recipe(folder, **options, checkpoint_minutes=1e-9)
        for signal_sent in (signal.SIGKILL, signal.SIGSTOP):
            for restarts in (0, 2):
                run, printed = folder / f"{signal_sent.name}-{restarts}", folder / f"{signal_sent.name}-{restarts}.txt"
                words = ("--recipe", str(recipe), "--run", str(run), "--rank_timeout", "5")
                process = torchrun(printed, *words, restarts=restarts)
                wait_for(lambda run=run: epochs_of(run) >= 3, process, printed)  # type: ignore[misc]
                ranks = ranks_of(process.pid)
                os.kill(ranks[1], signal_sent)
                start = time.monotonic()
                if restarts:
                    wait_for(
                        lambda process=process, first=ranks[0]: ranks_of(process.pid).get(0, first) != first,  # type: ignore[misc]
                        process,
                        printed,
                    )
                    before = epochs_of(run)
                    wait_for(lambda run=run, before=before: epochs_of(run) > before, process, printed)  # type: ignore[misc]
                else:
                    process.wait()
                seconds = time.monotonic() - start
                print(f"{signal_sent.name}, {restarts} restarts: {seconds:.1f} s", flush=True)
                process.terminate()
                process.wait()
                print("".join(f"    {line}\n" for line in printed.read_text().splitlines() if "error: " in line))
    return 0


if __name__ == "__main__":
    sys.exit(main())
