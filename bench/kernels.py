# SPDX-License-Identifier: Apache-2.0
"""Registers, shared memory and spills of the compiled kernels, as `cuobjdump` reads them from the library."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_ARCHITECTURE = re.compile(r"^arch = (\w+)")
_FUNCTION = re.compile(r"^\s*Function (\S+?):?\s*$")
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


def kernel_rows(library: Path, architecture: str) -> list[dict[str, str | int]]:
    """One row per kernel of `library` built for `architecture` ("sm_90"); of another where there is none of it.

    Raises:
        FileNotFoundError: there is no cuobjdump. subprocess.SubprocessError: it failed.
    """
    tool = _find_cuobjdump()
    command = [tool, "--dump-resource-usage", str(library)]
    text = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    rows = parse(text)
    exact = [row for row in rows if row["architecture"] == architecture]
    for row, name in zip(exact or rows, _demangled([str(row["kernel"]) for row in exact or rows]), strict=True):
        row["kernel"] = name
    return exact or rows


def parse(text: str) -> list[dict[str, str | int]]:
    """Rows out of what `cuobjdump --dump-resource-usage` prints; bytes but for the registers, which are per thread.

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


def _find_cuobjdump() -> str:
    triton = importlib.util.find_spec("triton")  # comes with torch's CUDA builds and brings a cuobjdump
    inside = Path(triton.origin).parent / "backends/nvidia/bin" if triton and triton.origin else None
    for folder in (None, "/usr/local/cuda/bin", inside):
        if found := shutil.which("cuobjdump", path=folder and str(folder)):
            return found
    raise FileNotFoundError("no cuobjdump on the PATH, in /usr/local/cuda/bin or in triton")


def _demangled(names: list[str]) -> list[str]:
    if not (tool := shutil.which("c++filt")):
        return names
    plain = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True, timeout=10).stdout
    return [re.sub(r"^.*::(?=\w+(<|\())|\(.*\)$", "", line) for line in plain.splitlines()]
