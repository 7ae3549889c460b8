# SPDX-License-Identifier: Apache-2.0
"""Finished runs side by side: what they were told differently, their last scores, and what their networks cost.

Runs that differ in their seed alone are one row, with the mean of their scores and each of them. Minutes include other
work of the machine and pauses by SIGSTOP, but not the time until a run goes on with `--resume`. Latencies are of this
machine's CPU. Prints a Markdown table.

fastpose train --seed 0 --run runs/fcn-0
fastpose train --seed 0 --head deconv --run runs/deconv-0
python -m studies.runs runs/*
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from fastpose.files import read_yaml
from fastpose.models import count_flops, count_parameters
from fastpose.trained import load_trained

# By the name that the summary has for the score: what is shown of it, and its column.
SCORES = {
    "pckh": {"Mean": "PCKh@0.5", "Mean@0.1": "PCKh@0.1"},
    "pck": {"PCK": "PCK", "AUC": "AUC"},
    "coco": {"AP": "AP", "AR": "AR"},
}
NO_SETTINGS = ("seed", "eval_every", "log_every", "checkpoint_minutes")  # what a row may differ in, unsaid


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; returns 0, or 1 where a folder is not that of a finished run."""
    parser = argparse.ArgumentParser(prog="python -m studies.runs", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", nargs="+", type=Path, help="folder of a finished run")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch while latency is measured (1)")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    try:
        rows = rows_of(options.run)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(row.values()) + " |")
    return 0


def rows_of(runs: Sequence[Path]) -> list[dict[str, str]]:
    """A row for each setting, in the order of its first run."""
    settings = {run: read_yaml(run / "config.yaml") for run in runs}
    summaries = {run: json.loads((run / "summary.json").read_text(encoding="utf-8")) for run in runs}
    kinds = {next((kind for kind in SCORES if kind in summary), "none") for summary in summaries.values()}
    if len(kinds) > 1 or "none" in kinds:
        raise ValueError(
            f"expected runs with the same score, one of {', '.join(SCORES)}, got {', '.join(sorted(kinds))}"
        )
    kind = kinds.pop()
    names = dict.fromkeys(name for each in settings.values() for name in each if name not in NO_SETTINGS)
    differing = [name for name in names if len({str(each.get(name)) for each in settings.values()}) > 1]
    groups: dict[str, list[Path]] = {}
    for run in runs:
        groups.setdefault(", ".join(f"{name} {settings[run].get(name)}" for name in differing), []).append(run)
    rows = []
    for said, group in groups.items():
        reached = [summaries[run] for run in group]
        rows.append(
            {
                "settings": said or "the same",
                **{column: shown([each[kind][name] for each in reached]) for name, column in SCORES[kind].items()},
                "minutes": f"{statistics.mean(each['seconds'] for each in reached) / 60:.0f}",
                **cost_of(group[0], reached[0]["train_persons"]),
            }
        )
    return rows


def cost_of(run: Path, persons: int) -> dict[str, str]:
    """What a run and its network take."""
    trained = load_trained(run, {}, torch.device("cpu"))
    model, network, schedule = trained.model.eval(), trained.settings.network, trained.settings.schedule
    return {
        "network": f"{network}, {network.size[0]}×{network.size[1]}",
        "steps": f"{schedule.epochs * -(-persons // schedule.batch_size):,} of {schedule.batch_size}",
        "parameters": f"{count_parameters(model) / 1e6:.2f} M",
        "GFLOPs": f"{count_flops(model, network.size) / 1e9:.2f}",
        "one image": f"{1e3 * latency(model, torch.rand(1, 3, *network.size)):.1f} ms",
    }


def shown(scores: Sequence[float]) -> str:
    """The score of one run; of several their mean, and each of them."""
    if len(scores) == 1:
        return f"{scores[0]:.2f}"
    return f"{statistics.mean(scores):.2f} ({', '.join(f'{score:.2f}' for score in scores)})"


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
