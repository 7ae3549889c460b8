# SPDX-License-Identifier: Apache-2.0
"""docs/scaling.md: what feeds 1, 8 and 64 GPUs, computed from committed results of other benchmarks.

    python -m bench.scaling            # after bench.gpu_report or bench.remote; makes the tables of docs/scaling.md
    python -m bench.scaling --table    # prints them

Nothing here is measured, and nothing has run on several GPUs: measured are one GPU's step, its sources, and the bytes
of a sample. The page says which formula makes which column of them.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fastpose.models import pose_resnet

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "bench/results", ROOT / "docs/scaling.md"
BLOCK = re.compile(r"(<!-- made by python -m bench\.scaling: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)

GPUS = (1, 8, 64)
PER_MACHINE = 8
ENOUGH = 0.99  # of the step's speed
MODES = {"eager": "eager", "cuda_graph": "CUDA graph", "compile": "`--compile true`"}
SEVERAL = ("eager", "compile")  # a CUDA graph is for one GPU
SOURCES = {
    "files": "JPEG files",
    "files, reduced": "JPEG files, reduced where crops allow it",
    "gpu jpeg": "JPEG files, `--decoder gpu`",
    "pack, jpeg": "JPEG pack",
    "pack, raw": "raw pack",
    "resident": "`--resident true`",
}
WEIGHED_AS = {"gpu jpeg": "files"}  # whose files it reads

# Nominal, from vendors' data sheets, or assumed; in bytes per second.
LINKS = {
    "NVLink in one machine, 450 GB/s": (450e9, (8,)),
    "8 × 400 Gb/s per machine": (8 * 400e9 / 8, (16, 64)),
    "400 Gb/s per machine": (400e9 / 8, (16, 64)),
    "100 Gb/s per machine": (100e9 / 8, (16, 64)),
    "25 Gb/s per machine": (25e9 / 8, (16, 64)),
}
FILE_SYSTEMS = (1e9, 10e9, 40e9)
GPU_MEMORY = 141e9  # an H200's
GRADIENT_BYTES = 4  # float32
BACKWARD = 2 / 3  # of a step: two of the three products that a convolution is in
BUCKET = 25 << 20  # bytes that DDP sends together, by default
MACHINES, EPOCHS = (1, 2, 8), (1, 2, 5, 10, 20)


class Measured(NamedTuple):
    """The two committed results that the page is computed from."""

    gpu_path: Path
    remote_path: Path
    gpu: dict[str, Any]
    remote: dict[str, Any]

    @classmethod
    def read(cls, gpu: Path, remote: Path) -> Measured:
        return cls(gpu, remote, *(json.loads(path.read_text(encoding="utf-8")) for path in (gpu, remote)))

    def step(self, mode: str) -> float:
        """Samples per second of one GPU on a batch that is there, with cuDNN's autotuning if that is faster."""
        return max(row["samples_per_s"] for row in self.gpu["step"]["fixed"] if row["mode"] == mode)

    def seconds(self, mode: str) -> float:
        return self.gpu["step"]["batch"] / self.step(mode)

    def alone(self, source: str) -> dict[int, float]:
        """Samples per second that a source gives to a consumer that does nothing, by cores."""
        return {row["cores"]: row["loader_samples_per_s"] for row in self.rows(source)}

    def rows(self, source: str) -> list[dict[str, Any]]:
        rows = [row for row in self.gpu["training"] if row["source"] == source]
        return sorted(rows, key=lambda row: row["cores"])

    def weight(self, source: str) -> dict[str, float]:
        """`read` and `pixels`, bytes per sample."""
        rows = {row["source"]: row for row in self.remote["bytes"]}
        return rows[WEIGHED_AS.get(source, source)]


def cores_needed(measured: Measured, source: str, mode: str) -> int | None:
    """The cores that one GPU takes; None: more than were measured, and the GPU decodes, so cores are not all it lacks.

    In the mode that training was measured in, the fewest cores with which it kept 99 % of the step's speed. Otherwise
    the source alone must be as fast as the step, at the speed per core of the fewest cores measured with which it is,
    or of the most. Between two numbers of cores the higher one's speed per core is taken, the lower of the two.
    """
    rows = measured.rows(source)
    most = rows[-1]
    if source == "gpu jpeg" and most["of_fixed"] < ENOUGH:
        return None
    if mode == most["mode"]:
        for row in rows:
            if row["of_fixed"] >= ENOUGH:
                return int(row["cores"])
    return cores_for(measured.alone(source), measured.step(mode))


def cores_for(alone: dict[int, float], rate: float) -> int:
    """The cores with which a source gives `rate`, from its rates by cores."""
    too_few = 0
    for cores, found in sorted(alone.items()):
        if found >= rate:
            return max(too_few + 1, math.ceil(rate * cores / found))
        too_few = cores
    most = max(alone)
    return math.ceil(rate * most / alone[most])


def all_reduce_bytes(parameters: int, gpus: int) -> float:
    """What each GPU sends in a step: a ring's reduce-scatter and all-gather."""
    return 2 * (gpus - 1) / gpus * GRADIENT_BYTES * parameters


def read_again(machines: int, epoch: int) -> float:
    """The share of an epoch's samples, counted from 1, that are new to the machine that needs them, if it keeps all."""
    return (1 - 1 / machines) ** (epoch - 1)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def figures_block(measured: Measured) -> list[str]:
    gpu, remote, step = measured.gpu, measured.remote, measured.gpu["step"]
    versions = remote["versions"]
    h, w = step["size"]
    places = [f"[{path.name}](../bench/results/{path.name})" for path in (measured.gpu_path, measured.remote_path)]
    pictures = remote["pictures"]
    return [
        f"* steps and sources: one {gpu['device']}, {step['network']}, {h}×{w}, {step['dtype']}, "
        f"{step['batch']} samples per step:",
        f"  {places[0]};",
        f"* bytes, and reading over a network: {remote['device']}, {remote['cores']} cores, "
        f"fsspec {versions['fsspec']}, aiohttp {versions['aiohttp']}:",
        f"  {places[1]}.",
        "",
        f"The pictures are the {pictures['count']} JPEGs of the GPU report: {pictures['width']}×{pictures['height']}, "
        f"{kilo(measured.weight('files')['read'])} on average, about as",
        "large as MPII's, each with one drawn person that fills most of its height.",
    ]


def costs_block(measured: Measured) -> list[str]:
    rows = []
    for source, name in SOURCES.items():
        alone = measured.alone(source)
        least, most = min(alone), max(alone)
        weight = {"read": 0.0, "pixels": 0.0} if source == "resident" else measured.weight(source)
        copied = [kilo(weight["pixels"]), f"{weight['pixels'] * measured.step('compile') / 1e9:.1f} GB/s"]
        if source == "resident":
            copied = ["once", "0"]
        if source == "gpu jpeg":  # what nvImageCodec copies between its two halves of decoding is not known
            copied = ["?", "?"]
        rows.append(
            [
                name,
                kilo(weight["read"]) if weight["read"] else "once",
                *copied,
                f"{alone[least]:,.0f}",
                f"{alone[most]:,.0f}",
            ]
        )
    height, width = measured.gpu["step"]["size"]
    most = max(measured.alone("files"))
    head = ["source", "read", "copied to the GPU", f"at {measured.step('compile'):,.0f}/s", "alone, 1 core"]
    return [
        *table([*head, f"alone, {most} cores"], rows),
        "",
        f"A crop of {height}×{width} in bfloat16 has {kilo(2 * 3 * height * width)}, and is made on the GPU.",
    ]


def rounded(value: float) -> str:
    """Two digits, or all of a larger number."""
    return f"{value:,.0f}" if value >= 10 or value == 0 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def kilo(count: float) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"


def steps_block(measured: Measured) -> list[str]:
    rows = [
        [name, f"{measured.step(mode):,.0f}", f"{1e3 * measured.seconds(mode):.1f} ms"] for mode, name in MODES.items()
    ]
    return table(["step", "samples/s", "a step"], rows)


def feeding_block(measured: Measured) -> list[str]:
    lines: list[str] = []
    for mode in SEVERAL:
        rows = []
        for source, name in SOURCES.items():
            cores = cores_needed(measured, source, mode)
            most = max(measured.alone(source))
            read = 0.0 if source == "resident" else measured.weight(source)["read"] * measured.step(mode)
            rows.append(
                [
                    name,
                    *(f"over {gpus * most:,}" if cores is None else f"{gpus * cores:,}" for gpus in GPUS),
                    *(rounded(gpus * read / 1e9) for gpus in GPUS),
                ]
            )
        counts = [f"{gpus} GPU{'s' * (gpus > 1)}" for gpus in GPUS]
        head = [f"{MODES[mode]}, {measured.step(mode):,.0f} samples/s per GPU"]
        head += [f"cores, {count}" for count in counts] + [f"GB/s, {count}" for count in counts]
        lines += ["", *table(head, rows)]
    graph = []
    for source, name in SOURCES.items():
        cores = cores_needed(measured, source, "cuda_graph")
        reached = {row["cores"]: row["of_fixed"] for row in measured.rows(source)}
        if cores in reached and reached[cores] >= ENOUGH:
            graph.append([name, str(cores), f"measured: {100 * reached[cores]:.1f} %"])
        else:
            most = max(reached)
            shown = f"over {most}" if cores is None else str(cores)
            graph.append([name, shown, f"computed; measured with {most}: {100 * reached[most]:.0f} %"])
    head = [
        f"CUDA graph on one GPU, {measured.step('cuda_graph'):,.0f} samples/s",
        "cores",
        "share of the step's speed",
    ]
    return [*lines[1:], "", *table(head, graph)]


def file_systems_block(measured: Measured) -> list[str]:
    rows = []
    for source in ("files", "pack, jpeg", "pack, raw"):
        for mode in SEVERAL:
            read = measured.weight(source)["read"] * measured.step(mode)
            limits = [rounded(speed / read) for speed in FILE_SYSTEMS]
            rows.append([f"{SOURCES[source]}, {MODES[mode]}", f"{read / 1e9:.2f} GB/s", *limits])
    head = ["first epoch", "per GPU", *(f"{speed / 1e9:.0f} GB/s" for speed in FILE_SYSTEMS)]
    return table(head, rows)


def caches_block(measured: Measured) -> list[str]:
    rows = [
        [str(machines), *(f"{100 * read_again(machines, epoch):.0f} %" for epoch in EPOCHS)] for machines in MACHINES
    ]
    return table(["machines", *(f"epoch {epoch}" for epoch in EPOCHS)], rows)


def all_reduce_block(measured: Measured) -> list[str]:
    parameters = sum(parameter.numel() for parameter in pose_resnet(50).parameters())
    batch = measured.gpu["step"]["batch"]
    rows = []
    for link, (speed, counts) in LINKS.items():
        for gpus in counts:
            sent = all_reduce_bytes(parameters, gpus)
            seconds, last = sent / speed, sent / speed * min(1.0, BUCKET / (GRADIENT_BYTES * parameters))
            row = [link, str(gpus), f"{sent / 1e6:.0f} MB", f"{1e3 * seconds:.1f} ms"]
            for mode in SEVERAL:
                step = measured.seconds(mode)
                shown = max(last, seconds - BACKWARD * step)
                row += [
                    f"{100 * seconds / (BACKWARD * step):.0f} %",
                    f"{batch / (step + seconds):,.0f} to {batch / (step + shown):,.0f}",
                ]
            rows.append(row)
    head = ["link", "GPUs", "each sends", "takes"]
    for mode in SEVERAL:
        head += [f"of backward, {MODES[mode]}", f"samples/s per GPU (one: {measured.step(mode):,.0f})"]
    return [
        f"{parameters:,} parameters, {GRADIENT_BYTES * parameters / 1e6:.0f} MB of gradients. Backward is taken to be "
        f"{1e3 * BACKWARD * measured.seconds('eager'):.0f} ms of an eager step and",
        f"{1e3 * BACKWARD * measured.seconds('compile'):.0f} ms of a compiled one.",
        "",
        *table(head, rows),
    ]


def resident_block(measured: Measured) -> list[str]:
    peak = measured.gpu["step"]["peak_bytes"]["fused"]
    free = GPU_MEMORY - peak
    rows = []
    for source, name in (("files", "whole pictures"), ("pack, raw", "regions of a pack")):
        each = measured.weight(source)["pixels"]
        rows.append([name, kilo(each), *(f"{gpus * free / each / 1e3:,.0f}" for gpus in GPUS)])
    head = ["thousands of samples", "each", *(f"{gpus} GPU{'s' * (gpus > 1)}" for gpus in GPUS)]
    return [
        f"An H200 has {GPU_MEMORY / 1e9:.0f} GB (nominal), of which the step took {peak / 1e9:.1f} (measured). "
        "The rest holds:",
        "",
        *table(head, rows),
    ]


def reading_block(measured: Measured) -> list[str]:
    remote = measured.remote
    found = {(row["source"], row["threads"], row["what"]): row for row in remote["reading"]}
    threads = sorted({row["threads"] for row in remote["reading"]})
    rows = []
    for name in dict.fromkeys(row["source"] for row in remote["reading"]):
        cells = [found[name, count, "decoded"] for count in threads] + [found[name, threads[-1], "read"]]
        rows.append([label(name), *(f"{cell['most']:,.0f} ({cell['images_per_s']:,.0f})" for cell in cells)])
    head = ["images/s", *(f"{count} threads" for count in threads), f"{threads[-1]} threads, not decoded"]
    return table(head, rows)


def label(name: str) -> str:
    kind, *rest = name.split(", ")
    if kind != "fsspec":
        return "`ImageFiles`, without fsspec"
    names = {"local": "local files", "http": "HTTP", "tar": "ranges of tars"}
    return f"fsspec: {', '.join(names.get(part, part) for part in rest)}"


def ranks_block(measured: Measured) -> list[str]:
    rows = measured.remote["ranks"]
    size = measured.weight("pack, jpeg")["read"] * measured.remote["pictures"]["count"]
    counts = [f"{row['ranks']} rank{'s' * (row['ranks'] > 1)}" for row in rows]
    return [
        f"One epoch of a JPEG pack of {size / 1e6:.2f} MB in batches of {measured.remote['batch']}, each divided among "
        "sources that stand for",
        "ranks, in one process:",
        "",
        *table(["", *counts], [["read by all together", *(f"{row['bytes'] / 1e6:.2f} MB" for row in rows)]]),
    ]


BLOCKS: dict[str, Callable[[Measured], list[str]]] = {
    "figures": figures_block,
    "steps": steps_block,
    "costs": costs_block,
    "feeding": feeding_block,
    "file_systems": file_systems_block,
    "caches": caches_block,
    "all_reduce": all_reduce_block,
    "resident": resident_block,
    "ranks": ranks_block,
    "reading": reading_block,
}


def page(text: str, measured: Measured) -> str:
    """The page with its tables made again."""

    def made(block: re.Match[str]) -> str:
        return "".join([block[1], "\n", *(f"{line}\n" for line in BLOCKS[block[2]](measured)), "\n", block[4]])

    return BLOCK.sub(made, text)


def newest(kind: str) -> Path:
    return sorted(RESULTS.glob(f"{kind}_*.json"))[-1]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.scaling", description=__doc__.split("\n")[0])
    parser.add_argument("--gpu", type=Path, default=None, help="a report of bench.gpu_report; default: the newest")
    parser.add_argument("--remote", type=Path, default=None, help="a result of bench.remote; default: the newest")
    parser.add_argument("--table", action="store_true", help="print the tables and write nothing")
    options = parser.parse_args(argv)
    measured = Measured.read(options.gpu or newest("gpu"), options.remote or newest("remote"))
    if options.table:
        for name, block in BLOCKS.items():
            print("\n".join([f"# {name}", "", *block(measured), ""]))
        return 0
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), measured), encoding="utf-8")
    print(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
