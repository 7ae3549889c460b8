# SPDX-License-Identifier: Apache-2.0
"""docs/benchmarks.md and its chart from the newest committed results of `make bench`.

python -m bench.page          # after make bench; reads bench/results, writes docs/
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from bench.cpu import COPY, ONE_THREAD, OWN

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE, CHART = ROOT / "bench/results", ROOT / "docs/benchmarks.md", ROOT / "docs/images/benchmarks.png"
CROP, RENDER, DECODE = "affine_crop", "render_heatmaps", "decode_heatmaps"
LOSS, PIPELINE = "heatmap_mse_loss forward + backward", "pipeline, per sample"
SIMCC_LOSS = "simcc_loss forward + backward"
SIMCC_DECODE, SIMCC_DARK = "decode_simcc, mirror test", "decode_simcc, mirror test, dark"
NOISY = 0.25  # an interquartile range above this share of the median

HEADER = """# Benchmarks

Made by `python -m bench.page` from `bench/results`, which `make bench` writes; not edited by hand. What is being
timed stands at the top of each file of `bench/cases`, and of `bench/bench_pipeline.py`.

* Every peer does the same work on the same inputs, which is checked before it is timed, and allocates its own results,
  as fastpose does. The last four results are kept, as by a loop that works on them, so nobody writes where its last
  result has left the caches warm. Pages are not fetched from the kernel: the process has them from earlier results.
* **faster** says how many times as fast as the row fastpose is: below 1 it loses. The two take turns, each called once
  untimed and once timed, so that a clock that changes its pace changes both; it is the median of the rounds' ratios
  and, in brackets, their quartiles. fastpose beside itself shows how far chance goes. In the pipeline each row takes
  turns with OpenCV in a DataLoader, and is that many times as fast.
* **GB/s** are the bytes that the op must read and write, over the median. **of copy** is that speed as a share of the
  one of `limit copy`, which in the same run moves as many bytes as the op, with the same threads and as freshly
  allocated; it is derived from **faster** of both.
* Rows named `limit` do less than the op: they show what the memory allows.
* *noisy* stands where the IQR, the interquartile range, exceeds a quarter of the median.
"""


class Row(NamedTuple):
    """One benchmark: seconds, bytes that its op must move, and how many times as fast fastpose is, with quartiles."""

    median: float
    iqr: float
    moved: int | None
    faster: float
    q1: float
    q3: float
    inputs: str


Groups = dict[str, dict[str, Row]]


class Goal(NamedTuple):
    """fastpose is to be `bound` times as fast as `row`, or in the pipeline `row` as the peer; of a limit a share."""

    group: str
    row: str
    bound: float

    def __str__(self) -> str:
        name = label(self.row)
        if self.group == PIPELINE:
            return f"{'files' if self.row == OWN else name}: at least {self.bound:g}× OpenCV in a DataLoader"
        if self.row == ONE_THREAD:
            return f"on 2 threads at least {self.bound:g}× as fast as on one"
        if self.bound < 1:
            return f"at most {1 / self.bound:g}× the time of {name}"
        return f"never slower than {name}" if self.bound == 1 else f"at least {self.bound:g}× as fast as {name}"

    def verdict(self, row: Row) -> str:
        """What was measured, and whether that is enough; in doubt where the bound lies between the quartiles."""
        low, value, high = (row.q1, row.faster, row.q3) if self.bound >= 1 else (1 / row.q3, 1 / row.faster, 1 / row.q1)
        verdict = "met" if row.faster >= self.bound else "**missed**"
        doubt = ", in doubt" if row.q1 < self.bound < row.q3 else ""
        return f"{times(value, low, high)}: {verdict}{doubt}"


GOALS = [
    Goal(CROP, "opencv", 3),
    Goal(CROP, "opencv_tuned", 3),
    Goal(RENDER, "simple_baselines", 20),
    Goal(RENDER, "limit_torch_zeros", 1 / 1.5),
    Goal(DECODE, "simple_baselines", 10),
    Goal(DECODE, "limit_torch_amax", 1 / 2),
    Goal(LOSS, "our_render_and_mse_loss", 2.5),
    *(Goal(op, "numba", 1) for op in (CROP, RENDER, DECODE, LOSS)),
    Goal(CROP, "torch_compile", 1),
    *(Goal(RENDER, f"torch_compile[{way}]", 1) for way in ("products", "pasted")),
    *(Goal(DECODE, f"torch_compile[{way}]", 1) for way in ("the fallback", "two stages")),
    *(Goal(LOSS, f"torch_compile[{way}]", 1) for way in ("squares", "mse_loss")),
    Goal(SIMCC_LOSS, "stored_labels", 2.5),
    *(Goal(SIMCC_LOSS, f"torch_compile{what}", 1) for what in ("", "[stored_labels]")),
    *(
        Goal(op, row, bound)
        for op in (SIMCC_DECODE, SIMCC_DARK)
        for row, bound in (("mmpose", 3), ("torch_compile", 1))
    ),
    *(Goal(op, ONE_THREAD, 1.8) for op in (CROP, RENDER, DECODE, LOSS, SIMCC_LOSS, SIMCC_DECODE)),
    Goal(PIPELINE, OWN, 2),
    Goal(PIPELINE, "pack[jpeg]", 5),
    Goal(PIPELINE, "pack[raw]", 15),
]


def newest(folder: Path = RESULTS) -> dict[int, dict[str, Any]]:
    """The newest results for each number of threads, among those that were measured in turns."""
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*/*.json")]
    paired = [run for run in runs if all("faster" in row["extra_info"] for row in run["benchmarks"])]
    newest_last = sorted(paired, key=lambda results: results["datetime"])
    return dict(sorted({results["machine_info"]["threads"]: results for results in newest_last}.items()))


def groups_of(results: dict[str, Any]) -> Groups:
    """Every benchmark by group and name; the pipeline's times per sample."""
    groups: Groups = defaultdict(dict)
    for row in results["benchmarks"]:
        extra, stats = row["extra_info"], row["stats"]
        work, faster = extra.get("samples", 1), extra["faster"]
        groups[row["group"]][row["name"].removeprefix("test_")] = Row(
            stats["median"] / work,
            stats["iqr"] / work,
            extra.get("bytes"),
            faster["median"],
            faster["q1"],
            faster["q3"],
            extra["inputs"],
        )
    return dict(sorted(groups.items()))


def spelled(seconds: float) -> str:
    """A time with a unit that fits."""
    return f"{seconds * 1e6:.0f} µs" if seconds < 1e-2 else f"{seconds * 1e3:.1f} ms"


def times(value: float, low: float, high: float) -> str:
    """A ratio with its quartiles."""
    return f"{value:.3g}× ({low:.3g}–{high:.3g})"


def counted(threads: int) -> str:
    return f"{threads} thread{'' if threads == 1 else 's'}"


def label(name: str) -> str:
    return name.replace("_", " ")


def of_copy(row: Row, copy: Row) -> float:
    """The op's bytes per second as a share of the copy's. Both took turns with fastpose, so no clock comes between."""
    return copy.faster / row.faster


def table(rows: dict[str, Row]) -> list[str]:
    lines = ["| | median | IQR | GB/s | of copy | faster |", "|---|---|---|---|---|---|"]
    for name, row in sorted(rows.items(), key=lambda item: item[1].median):
        speed = share = ""
        if row.moved is not None:
            speed = f"{row.moved / row.median / 1e9:.1f}"
            share = f"{of_copy(row, rows[COPY]):.0%}" if COPY in rows else ""
        noisy = ", *noisy*" if row.iqr > NOISY * row.median else ""
        shown = f"**{label(name)}**" if name == OWN else label(name)
        faster = times(row.faster, row.q1, row.q3)
        lines.append(f"| {shown} | {spelled(row.median)} | {spelled(row.iqr)}{noisy} | {speed} | {share} | {faster} |")
    return lines


def goals(runs: dict[int, Groups]) -> list[str]:
    """A line for each goal that any run has measured."""
    lines = [f"| | goal | {' | '.join(map(counted, runs))} |", "|---" * (2 + len(runs)) + "|"]
    for goal in sorted(GOALS, key=lambda goal: goal.group):
        rows = [groups.get(goal.group, {}).get(goal.row) for groups in runs.values()]
        if any(rows):
            verdicts = [goal.verdict(row) if row else "" for row in rows]
            lines.append(f"| {goal.group} | {goal} | {' | '.join(verdicts)} |")
    return lines


def scaling(one: Groups, two: Groups) -> list[str]:
    """How many times as fast on two threads, by op; for fastpose in turns within the second run too."""
    peers = [OWN, "opencv", "opencv_tuned", "numba", COPY]
    lines = [
        f"| | fastpose, in turns | {' | '.join(label(name) for name in peers)} |",
        "|---" * (2 + len(peers)) + "|",
    ]
    for group in sorted(one.keys() & two.keys()):
        before, after = one[group], two[group]
        paired = after.get(ONE_THREAD)
        ratios = [f"{before[n].median / after[n].median:.2f}×" if n in before and n in after else "" for n in peers]
        first = times(paired.faster, paired.q1, paired.q3) if paired else ""
        lines.append(f"| {group} | {first} | {' | '.join(ratios)} |")
    return lines


def page(runs: dict[int, dict[str, Any]]) -> str:
    groups = {threads: groups_of(results) for threads, results in runs.items()}
    lines = [HEADER, "![Times as bars](images/benchmarks.png)", ""]
    lines += ["## Goals", "", *goals(groups)]
    if groups.get(1, {}).keys() & groups.get(2, {}).keys():
        about = (
            "Times on one thread over times on two. Only the first column is free of what the clock did between runs."
        )
        lines += ["", "## Two threads against one", "", about, "", *scaling(groups[1], groups[2])]
    for threads, results in runs.items():
        machine, commit = results["machine_info"], results["commit_info"]
        versions = ", ".join(f"{name} {machine[name.lower()]}" for name in ("torch", "NumPy", "OpenCV", "numba"))
        state = f"commit {commit['id'][:7]}{' with changes' if commit['dirty'] else ''}, {results['datetime'][:10]}"
        cpu = f"{machine['cpu']['brand_raw']}, {machine['cpu']['count']} cores, SIMD {machine['simd']}"
        lines += ["", f"## {counted(threads)}", "", f"{cpu}; {versions}; {state}."]
        for group, rows in groups[threads].items():
            inputs = ", ".join(sorted({row.inputs for row in rows.values()}))
            lines += ["", f"### {group}", "", f"Inputs: {inputs}.", "", *table(rows)]
    return "\n".join(lines) + "\n"


def color_of(name: str) -> str:
    if name == OWN:
        return "#1f5fa8"
    if name.startswith(("pack", "resident", "files", OWN)):
        return "#8db4dd"
    return "#c9c9c9" if name.startswith("limit") else "#e0a33a"


def draw(groups: Groups, heading: str, path: Path = CHART) -> None:
    """One panel per group, a bar per row, logarithmic; fastpose is blue, its other sources light, limits grey."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    heights = [1 + len(rows) for rows in groups.values()]
    figure, axes = pyplot.subplots(
        len(groups), 1, figsize=(7, 0.2 * sum(heights)), height_ratios=heights, squeeze=False, layout="constrained"
    )
    for axis, (group, rows) in zip(axes[:, 0], groups.items(), strict=True):
        ordered = sorted(rows.items(), key=lambda item: -item[1].faster)
        ratios = [row.faster for _, row in ordered]
        bars = axis.barh([label(name) for name, _ in ordered], ratios, color=[color_of(name) for name, _ in ordered])
        axis.bar_label(bars, [f"{ratio:.3g}×" for ratio in ratios], padding=3, fontsize=7)
        axis.set_xscale("log")
        axis.axvline(1, color="black", linewidth=0.6)
        unit = "speed, OpenCV in a DataLoader = 1" if group == PIPELINE else "time, fastpose = 1"
        axis.set_title(f"{group}: {unit}", loc="left", fontsize=9)
        axis.tick_params(labelsize=7)
        axis.margins(x=0.1)
    figure.suptitle(heading, fontsize=10)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> int:
    runs = newest()
    if not runs:
        print(f"error: no results measured in turns in {RESULTS}: run make bench first", file=sys.stderr)
        return 1
    PAGE.write_text(page(runs), encoding="utf-8")
    fewest, most = min(runs), max(runs)
    shown, of_most = groups_of(runs[fewest]), groups_of(runs[most])
    if PIPELINE in of_most:
        shown[PIPELINE] = of_most[PIPELINE]
    draw(shown, f"{counted(fewest)}; the pipeline {counted(most)}")
    print(f"wrote {PAGE} and {CHART}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
