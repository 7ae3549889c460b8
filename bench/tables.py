# SPDX-License-Identifier: Apache-2.0
"""docs/benchmarks.md and its chart from the newest committed results of `make bench`.

python -m bench.tables          # after make bench; reads bench/results, writes docs/
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE, CHART = ROOT / "bench/results", ROOT / "docs/benchmarks.md", ROOT / "docs/images/benchmarks.png"
OWN = "fastpose"
Groups = dict[str, dict[str, tuple[float, float]]]  # group: peer: median and interquartile range, seconds

HEADER = """# Benchmarks

Made by `python -m bench.tables` from `bench/results`, which `make bench` writes; not edited by hand. Each table is one
run: every peer does the same work on the same inputs. "faster" is the peer's median over fastpose's: below 1 fastpose
loses. Rows named `limit` do less work than the op, they show what the memory allows. What is being timed stands at the
top of each `bench/bench_*.py`.
"""


def newest() -> dict[int, dict[str, Any]]:
    """The newest results for each number of threads."""
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in RESULTS.glob("*/*.json")]
    newest_last = sorted(runs, key=lambda results: results["datetime"])
    return dict(sorted({results["machine_info"]["threads"]: results for results in newest_last}.items()))


def groups_of(results: dict[str, Any]) -> Groups:
    """Median and spread of every benchmark, by group; the pipeline's per sample."""
    groups: Groups = defaultdict(dict)
    for row in results["benchmarks"]:
        work = row["extra_info"].get("samples", 1)
        stats = row["stats"]
        groups[row["group"]][row["name"].removeprefix("test_")] = (stats["median"] / work, stats["iqr"] / work)
    return dict(sorted(groups.items()))


def spelled(seconds: float) -> str:
    """A time with a unit that fits."""
    return f"{seconds * 1e6:.0f} µs" if seconds < 1e-2 else f"{seconds * 1e3:.1f} ms"


def table(rows: dict[str, tuple[float, float]]) -> list[str]:
    lines = ["| | median | IQR | faster |", "|---|---|---|---|"]
    own = rows[OWN][0]
    for name, (median, iqr) in sorted(rows.items(), key=lambda item: item[1]):
        label = f"**{name}**" if name == OWN else name.replace("_", " ")
        lines.append(
            f"| {label} | {spelled(median)} | {spelled(iqr)} | {'' if name == OWN else f'{median / own:.2f}×'} |"
        )
    return lines


def page(runs: dict[int, dict[str, Any]]) -> str:
    lines = [HEADER, "![Time of each peer, as a multiple of fastpose's](images/benchmarks.png)"]
    for threads, results in runs.items():
        machine, commit = results["machine_info"], results["commit_info"]
        lines += [
            "",
            f"## {threads} {'thread' if threads == 1 else 'threads'}",
            "",
            f"{machine['cpu']['brand_raw']}, {machine['cpu']['count']} cores, SIMD {machine['simd']}; "
            f"torch {machine['torch']}, OpenCV {machine['opencv']}, numba {machine['numba']}; "
            f"commit {commit['id'][:7]}{' with changes' if commit['dirty'] else ''}, {results['datetime'][:10]}.",
        ]
        for group, rows in groups_of(results).items():
            lines += ["", f"### {group}", "", *table(rows)]
    return "\n".join(lines) + "\n"


def color_of(name: str) -> str:
    """fastpose blue, its other sources light blue, limits grey, peers orange."""
    if name == OWN:
        return "#1f5fa8"
    if name.startswith(("pack", "resident", "files")):
        return "#8db4dd"
    return "#c9c9c9" if name.startswith("limit") else "#e0a33a"


def draw(groups: Groups, threads: int) -> None:
    """One panel per group, a bar per peer, logarithmic: 1 is fastpose."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(groups), 1, figsize=(7, 1.9 * len(groups)), constrained_layout=True)
    for axis, (group, rows) in zip(axes, groups.items(), strict=True):
        own = rows[OWN][0]
        ordered = sorted(rows.items(), key=lambda item: -item[1][0])
        names = [name.replace("_", " ") for name, _ in ordered]
        ratios = [median / own for _, (median, _) in ordered]
        colors = [color_of(name) for name, _ in ordered]
        bars = axis.barh(names, ratios, color=colors)
        axis.bar_label(bars, [f"{ratio:.3g}×" for ratio in ratios], padding=3, fontsize=7)
        axis.set_xscale("log")
        axis.axvline(1, color="black", linewidth=0.6)
        axis.set_title(group, loc="left", fontsize=9)
        axis.tick_params(labelsize=7)
        axis.margins(x=0.1)
    figure.suptitle(f"Time relative to fastpose, {threads} {'thread' if threads == 1 else 'threads'}", fontsize=10)
    figure.savefig(CHART, dpi=110)


def main() -> int:
    runs = newest()
    if not runs:
        print(f"error: no results in {RESULTS}: run make bench first", file=sys.stderr)
        return 1
    PAGE.write_text(page(runs), encoding="utf-8")
    fewest = next(iter(runs))
    draw(groups_of(runs[fewest]), fewest)
    print(f"wrote {PAGE} and {CHART}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
