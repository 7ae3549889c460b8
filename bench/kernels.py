# SPDX-License-Identifier: Apache-2.0
"""What the compiled kernels take: registers, shared memory and spills, and the instructions that they issue.

    python -m bench.kernels                       # counts of build/cuda's library beside the stored ones
    python -m bench.kernels --only decode         # some of the kernels
    python -m bench.kernels --update              # stores the counts, and makes the table of docs/performance.md

Instructions are counted by executing the machine code of sm_90 (bench/sass) on inputs like those of the GPU report. A
result that is not what fastpose.reference gives is an error, and so is a count more than 5 % away from the stored one.

A kernel's bound is the time in which the instructions could be issued if nothing ever waited: of the busiest pipe, with
every SM always full. It is for a batch of 256 with 16 joints, 64 x 64 maps, 256 x 256 crops, and the SimCC vectors of
192 x 256 crops.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench import cases, launches
from bench.sass.machine import Machine
from bench.sass.memory import Counts
from bench.sass.program import Kernel, find_tool, read_kernels

ROOT = Path(__file__).resolve().parents[1]
STORED, PAGE = ROOT / "bench/instruction_counts.json", ROOT / "docs/performance.md"
BEGIN, END = "<!-- made by python -m bench.kernels --update -->", "<!-- end -->"
COUNTED = "sm_90"
TOLERANCE = 0.05
KERNELS = re.compile("crop_kernel|decode|loss|render")
CHUNK = 128  # blocks that run at once, so that their registers fit into some 200 MB

_ARCHITECTURE = re.compile(r"^arch = (\w+)")
_FUNCTION = re.compile(r"^\s*Function (\S+?):?\s*$")
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


def kernel_rows(library: Path, architecture: str) -> list[dict[str, str | int]]:
    """One row per kernel of `library` built for `architecture` ("sm_90"); of another if it was built for that alone.

    Raises:
        FileNotFoundError: there is no cuobjdump. subprocess.SubprocessError: it failed.
    """
    command = [find_tool("cuobjdump"), "--dump-resource-usage", str(library)]
    text = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    rows = parse(text)
    exact = [row for row in rows if row["architecture"] == architecture]
    for row, name in zip(exact or rows, _demangled([str(row["kernel"]) for row in exact or rows]), strict=True):
        row["kernel"] = name
    return exact or rows


def parse(text: str) -> list[dict[str, str | int]]:
    """Rows out of what `cuobjdump --dump-resource-usage` prints; in bytes, except registers, which are per thread.

    `stack_bytes` holds spilled registers and arrays that are indexed at run time.
    """
    rows: list[dict[str, str | int]] = []
    architecture = function = ""
    for line in text.splitlines():
        if found := _ARCHITECTURE.match(line):
            architecture = found[1]
        elif found := _FUNCTION.match(line):
            function = found[1]
        elif function and (found := _USAGE.search(line)):
            registers, stack, shared, local = map(int, found.groups())
            rows.append(
                {
                    "what": "kernel",
                    "kernel": function,
                    "architecture": architecture,
                    "registers": registers,
                    "shared_bytes": shared,
                    "stack_bytes": stack,
                    "local_bytes": local,
                }
            )
            function = ""
    return rows


def by_name(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per kernel template: how many `variants` of it there are, and the most that one of them takes."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(re.split(r"[<(]", row["kernel"])[0], []).append(row)
    most = ("registers", "shared_bytes", "stack_bytes", "local_bytes")
    return [
        {"kernel": name, "variants": len(group), **{key: max(row[key] for row in group) for key in most}}
        for name, group in groups.items()
    ]


def _demangled(names: list[str]) -> list[str]:
    if not (tool := shutil.which("c++filt")):
        return names
    plain = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True, timeout=10).stdout
    return [re.sub(r"^.*::(?=\w+(<|\())|\(.*\)$", "", line) for line in plain.splitlines()]


# ---- instructions ----------------------------------------------------------------------------------------------------

# Warp instructions per clock and SM: lanes per clock of the table "Throughput of Native Arithmetic Instructions" in the
# CUDA C++ Programming Guide, over 32. Inferred, since NVIDIA does not document which pipe an opcode goes to: that FP32
# and integer multiply-adds share the lanes of `fma` (of which integers have half), and `uniform`. Not in instructions
# but in passes are `shared`, over the 32 banks, and `lookups`, over the L1's tags, of which each finds up to four lines
# of 128 bytes (NVIDIA's engineers in its developer forum, of Volta and later).
HOPPER = {
    "issue": 4, "fma": 4, "imad": 2, "alu": 2, "fp64": 2, "xu": 0.5, "lsu": 1, "uniform": 2, "shared": 1, "lookups": 1
}  # fmt: skip
ADA = HOPPER | {"fp64": 1 / 16}
PIPES = {
    "fma": "FADD FMUL FFMA HADD2 HMUL2 HFMA2 IMAD",
    "imad": "IMAD",
    "fp64": "DADD DMUL DFMA DSETP",
    "xu": "MUFU I2F F2I F2F FRND POPC FLO BREV",
    "lsu": "LD LDG LDS LDL ST STG STS STL ATOM ATOMG ATOMS RED SHFL",
    "control": "BRA BRX CALL RET EXIT BSSY BSYNC BREAK WARPSYNC BAR NOP DEPBAR MEMBAR ERRBAR CCTL LDC S2R",
}
_PIPES_OF: dict[str, list[str]] = {}
for _pipe, _opcodes in PIPES.items():
    for _opcode in _opcodes.split():
        _PIPES_OF.setdefault(_opcode, []).append(_pipe)


class Gpu(NamedTuple):
    """Clock under load and speed of a device-to-device copy, both assumed until the report has measured them."""

    name: str
    sms: int
    hertz: float
    bytes_per_second: float
    rates: dict[str, float]


GPUS = (
    Gpu("H100", 132, 1.755e9, 3.0e12, HOPPER),
    Gpu("H200", 132, 1.755e9, 4.3e12, HOPPER),
    Gpu("RTX 4090", 128, 2.52e9, 0.93e12, ADA),
)


def pipes_of(opcode: str) -> list[str]:
    """Where an instruction goes besides the issue slot: LOP3.LUT to `alu`, which is what has no other pipe."""
    name = opcode.split(".")[0]
    if name.startswith("U") or name in ("R2UR", "S2UR", "VOTEU"):
        return ["uniform"]
    return _PIPES_OF.get(name, ["alu"])


def pipe_counts(counts: Counts) -> dict[str, int]:
    """Warp instructions by pipe, `issue` being all; of `shared` and `lookups` the passes."""
    pipes = Counter({"issue": counts.instructions.total()})
    for opcode, issued in counts.instructions.items():
        for pipe in pipes_of(opcode):
            pipes[pipe] += issued
    for pipe, unit in (("shared", "wavefronts"), ("lookups", "lookups")):
        pipes[pipe] = sum(passes for kind, passes in counts.memory.items() if kind.endswith(unit))
    return {pipe: pipes[pipe] for pipe in HOPPER if pipes[pipe]}


def busiest(pipes: dict[str, float], rates: dict[str, float]) -> tuple[str, float]:
    """The pipe that takes longest, and the clocks of one SM that it takes."""
    clocks = {pipe: count / rates[pipe] for pipe, count in pipes.items()}
    pipe = max(clocks, key=lambda name: clocks[name])
    return pipe, clocks[pipe]


def bound(row: dict[str, Any], gpu: Gpu) -> float:
    """Seconds that a batch takes at least."""
    sms = min(gpu.sms, row["batch_blocks"])
    return float(busiest(row["pipes"], gpu.rates)[1] * row["batch_units"] / (sms * gpu.hertz))


def hot_work() -> dict[str, Callable[[], launches.KernelWork]]:
    """What every kernel that a goal is about is run on, made when its turn comes."""
    return {name: make for op in cases.ops() for name, make in op.kernels.items()}


def count(kernels: dict[str, Kernel], launchers: launches.Launchers, work: launches.KernelWork) -> dict[str, Any]:
    """Runs a kernel on its work and checks the result; per unit of work, what was counted.

    Raises:
        LookupError: the library has not the kernel. ArithmeticError: the result is wrong. See also Machine.run.
    """
    recorded = launchers(work.launcher, work.parameters)
    launch = recorded[work.number]
    kernel = kernels[launch.kernel]
    wanted = max(1, round(launch.blocks * work.share))
    blocks = sorted(np.random.default_rng(0).choice(launch.blocks, wanted, replace=False).tolist())
    total = Counts()
    for first in range(0, wanted, CHUNK):
        counts = Machine(kernel, launch, blocks[first : first + CHUNK], work.memory).run()
        total.instructions += counts.instructions
        total.memory += counts.memory
    work.check(recorded, wanted)
    of_memory = Counter[str]()
    for name, number in total.memory.items():
        space, _, kind = name.split()  # "global load sectors"
        of_memory[f"{space}_{kind}"] += number
    units = work.units * wanted / launch.blocks
    return {
        "unit": work.unit,
        "pipes": {pipe: round(issued / units, 1) for pipe, issued in pipe_counts(total).items()},
        **{kind: round(of_memory[kind] / units, 1) for kind in ("global_sectors", "global_lines")},
        "batch_units": work.batch_units,
        "batch_blocks": round(launch.blocks * work.batch_units / work.units),
        "batch_bytes": work.bytes,
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Markdown out of the stored counts."""
    head = ["kernel", "instructions per", "busiest pipe", *(gpu.name for gpu in GPUS)]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, row in rows.items():
        pipe, _ = busiest(row["pipes"], HOPPER)
        times = []
        for gpu in GPUS:
            least, floor = bound(row, gpu), row["batch_bytes"] / gpu.bytes_per_second
            ratio = f": {least / floor:.2f}" if floor > 1e-6 else ""
            times.append(f"{least * 1e6:.1f} of {floor * 1e6:.1f}{ratio}")
        issued = f"{row['pipes']['issue']:,.0f} per {row['unit']}"
        lines.append("| " + " | ".join([name, issued, pipe, *times]) + " |")
    return "\n".join(lines)


def with_table(page: str, rows: dict[str, dict[str, Any]]) -> str:
    """The page with the table between its marks.

    Raises:
        ValueError: it has not both of them.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"expected {BEGIN} and {END} in the page")
    return f"{before}{BEGIN}\n\n{table(rows)}\n\n{END}{after}"


def changed(name: str, row: dict[str, Any], stored: dict[str, dict[str, Any]]) -> str | None:
    """What is wrong with a count beside the stored one: it has risen, or fallen so far that a later rise would hide."""
    if (old := stored.get(name)) is None:
        return f"{name}: no count is stored"
    for what, before, now in (
        ("instructions", old["pipes"]["issue"], row["pipes"]["issue"]),
        ("clocks", busiest(old["pipes"], HOPPER)[1], busiest(row["pipes"], HOPPER)[1]),
    ):
        if abs(now - before) > TOLERANCE * before:
            went = "rose" if now > before else "fell"
            return (
                f"{name}: {what} per {row['unit']} {went} from {before:,.1f} to {now:,.1f}, more than {TOLERANCE:.0%}"
            )
    return None


def main(arguments: list[str] | None = None) -> int:
    """Returns 1 if a result is wrong or a count has changed by more than the tolerance."""
    parser = argparse.ArgumentParser(prog="python -m bench.kernels", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--library", type=Path, help="a fastpose/_C*.so with sm_90, or a .cubin; default: that in build/cuda"
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="kernels whose name contains it")
    parser.add_argument("--update", action="store_true", help="store the counts and make the table from them")
    options = parser.parse_args(arguments)
    library = options.library or next(iter(sorted((ROOT / "build/cuda/fastpose").glob("_C*.so"))), None)
    if library is None:
        parser.error("no library in build/cuda: run make cuda-compile, or pass --library")
    wanted = {name: make for name, make in hot_work().items() if options.only in name}
    stored = json.loads(STORED.read_text(encoding="utf-8")) if STORED.exists() else {}
    rows, errors = {}, []
    kernels = {launches.own_name(name): kernel for name, kernel in read_kernels(library, COUNTED, KERNELS).items()}
    with tempfile.TemporaryDirectory() as folder:
        launchers = launches.Launchers(Path(folder), [op.name for op in cases.ops() if op.kernels])
    for name, make in wanted.items():
        try:
            row = count(kernels, launchers, make())
        except (ArithmeticError, LookupError, RuntimeError, ValueError) as error:
            errors.append(f"{name}: {type(error).__name__}: {error}")
            print(f"ERROR in {errors[-1]}", flush=True)
            continue
        rows[name] = row
        pipe, clocks = busiest(row["pipes"], HOPPER)
        before = f", stored {stored[name]['pipes']['issue']:,.1f}" if name in stored else ""
        print(f"{name}: {row['pipes']['issue']:,.1f} instructions per {row['unit']}{before}; ", end="")
        print(f"{pipe} {clocks:,.1f} clocks; H200 {bound(row, GPUS[1]) * 1e6:.1f} µs", flush=True)
        if not options.update and (change := changed(name, row, stored)):
            errors.append(change)
    if not options.update:
        errors += [f"{name}: a count is stored, but nothing is counted" for name in stored if name not in hot_work()]
    if options.update and not errors:
        rows = {name: rows.get(name) or stored[name] for name in hot_work() if name in rows or name in stored}
        lines = [f"{json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items()]
        STORED.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
        PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), rows), encoding="utf-8")
        print(f"wrote {STORED} and {PAGE}")
    for text in errors:
        print(f"error: {text}", file=sys.stderr)
    if errors and not options.update:
        print("python -m bench.kernels --update accepts the counts", file=sys.stderr)
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
