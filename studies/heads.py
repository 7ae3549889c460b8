# SPDX-License-Identifier: Apache-2.0
"""Finished runs side by side: score, and what the network costs.

fastpose train --run runs/fcn
fastpose train --run runs/deconv --head deconv
python -m studies.heads runs/fcn runs/deconv          # a Markdown table; latencies are of this machine's CPU
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastpose.models import count_flops, count_parameters
from fastpose.trained import load_trained


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; returns 0, or 1 where a folder is not that of a finished run."""
    parser = argparse.ArgumentParser(prog="python -m studies.heads", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", nargs="+", help="folder of a finished run")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch while latency is measured (1)")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    try:
        rows = [row_of(Path(run)) for run in options.run]
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(row.values()) + " |")
    return 0


def row_of(run: Path) -> dict[str, str]:
    """One run's columns: what it is, its score after all steps, its cost."""
    summary: dict[str, Any] = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    trained = load_trained(run, {}, torch.device("cpu"))
    model, network, schedule = trained.model.eval(), trained.settings.network, trained.settings.schedule
    images = torch.rand(1, 3, *network.size)
    steps = schedule.epochs * -(-summary["train_persons"] // schedule.batch_size)
    return {
        "network": f"ResNet-{network.depth} {network.head}, {network.size[0]}×{network.size[1]}",
        "steps": f"{steps:,} of {schedule.batch_size}",
        "PCKh@0.5": f"{summary['pckh']['Mean']:.2f}",
        "PCKh@0.1": f"{summary['pckh']['Mean@0.1']:.2f}",
        "parameters": f"{count_parameters(model) / 1e6:.2f} M",
        "GFLOPs": f"{count_flops(model, network.size) / 1e9:.2f}",
        "one image": f"{1e3 * latency(model, images):.1f} ms",
    }


@torch.inference_mode()
def latency(model: nn.Module, images: Tensor, seconds: float = 3.0) -> float:
    """The median time of a forward pass, in seconds."""
    model(images)
    times: list[float] = []
    while len(times) < 10 or sum(times) < seconds:
        begin = time.perf_counter()
        model(images)
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


if __name__ == "__main__":
    sys.exit(main())
