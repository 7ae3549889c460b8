# SPDX-License-Identifier: Apache-2.0
"""Kernels out of a compiled library, as instructions."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

WARP = 32
SHARED_BASE = 0x400  # the first KiB of a block's shared memory is the system's on sm_90


class UnsupportedInstructionError(NotImplementedError):
    """An opcode, modifier or operand that the interpreter does not know."""


class Instruction(NamedTuple):
    """`@P0 IADD3.X R1, R2, 0x4, RZ` at `pc` (bytes from the kernel's start).

    `immediate`: the 32 bits that the encoding has for one, as the text of a float may not hold them all (+QNAN).
    """

    pc: int
    guard: str
    opcode: str
    modifiers: tuple[str, ...]
    operands: tuple[str, ...]
    text: str
    immediate: int | None = None

    def unsupported(self, why: str = "") -> UnsupportedInstructionError:
        return UnsupportedInstructionError(f"{self.pc:#06x} {self.text}{': ' if why else ''}{why}")

    def expect(self, *allowed: str) -> frozenset[str]:
        """The modifiers; raises if one is not in `allowed`."""
        if unknown := [word for word in self.modifiers if word not in allowed]:
            raise self.unsupported(f"unknown modifier {unknown[0]}")
        return frozenset(self.modifiers)


@dataclass
class Kernel:
    """The code of one kernel and what its launch needs."""

    name: str
    instructions: list[Instruction]
    parameter_bytes: int = 0
    shared_bytes: int = SHARED_BASE  # static, the system's included


_LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;\s*(?:/\*\s*0x([0-9a-f]{16})\s*\*/)?")
_OPERANDS = re.compile(r",\s*(?![^\[]*\])")


def parse(text: str) -> list[Instruction]:
    """Instructions out of the lines of `cuobjdump -sass`, or of hand-written ones such as `/*0000*/ MOV R0, R1 ;`."""
    instructions = []
    for line in text.splitlines():
        if not (found := _LINE.match(line)):
            continue
        pc, body, encoding = int(found[1], 16), re.sub(r"\s+", " ", found[2]), found[3]
        guard = ""
        words = body
        if words.startswith("@"):
            guard, words = words[1:].split(" ", 1)
        head, _, rest = words.partition(" ")
        opcode, *modifiers = head.split(".")
        rest = rest.replace(".reuse", "").strip()
        if opcode == "RET":  # RET.REL.NODEC R4 0x0
            rest = rest.replace(" ", ", ")
        operands = tuple(word.strip() for word in _OPERANDS.split(rest)) if rest else ()
        immediate = int(encoding, 16) >> 32 if encoding else None
        instructions.append(Instruction(pc, guard, opcode, tuple(modifiers), operands, body, immediate))
    return instructions


def find_tool(name: str) -> str:
    """`cuobjdump` or `nvdisasm`: of the CUDA toolkit, of triton, or of the package nvidia-cuda-<name>.

    Raises:
        FileNotFoundError: it is in none of these places.
    """
    folders: list[Path | None] = [None, Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin"]
    for package, inside in (("triton", "backends/nvidia/bin"), ("nvidia", "cu13/bin")):
        if (spec := importlib.util.find_spec(package)) is not None:
            folders += [Path(parent) / inside for parent in spec.submodule_search_locations or ()]
    for folder in folders:
        if found := shutil.which(name, path=folder and str(folder)):
            return found
    raise FileNotFoundError(
        f"no {name} on the PATH, in $CUDA_HOME/bin, in triton, or in the package nvidia-cuda-{name}"
    )


def read_kernels(library: Path, architecture: str, wanted: re.Pattern[str]) -> dict[str, Kernel]:
    """The kernels of `library` built for `architecture` ("sm_90") whose mangled names match `wanted`, by these names.

    A .cubin, as `nvcc -cubin` makes it of one file, is taken as it is.

    Raises:
        FileNotFoundError: there is no cuobjdump or no nvdisasm. subprocess.SubprocessError: it failed.
        ValueError: the library has no code for `architecture`.
    """
    cuobjdump, nvdisasm = find_tool("cuobjdump"), find_tool("nvdisasm")
    kernels: dict[str, Kernel] = {}
    with tempfile.TemporaryDirectory() as folder:
        if library.suffix == ".cubin":
            cubins = [library]
        else:
            command = [cuobjdump, "--extract-elf", f".{architecture}.", str(library.resolve())]
            subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=True)
            cubins = sorted(Path(folder).glob("*.cubin"))
        if not cubins:
            raise ValueError(f"{library} has no code for {architecture}")
        for cubin in cubins:
            sections = _sections(cubin.read_bytes())
            names = [name.removeprefix(".text.") for name in sections if name.startswith(".text.")]
            if not any(wanted.search(name) for name in names):
                continue
            # cuobjdump calls nvdisasm by its name, and knows the addresses that nvdisasm alone prints as labels.
            path = os.pathsep.join((str(Path(nvdisasm).parent), os.environ.get("PATH", "")))
            command = [cuobjdump, "--dump-sass", str(cubin)]
            text = subprocess.run(
                command, capture_output=True, text=True, timeout=120, check=True, env={**os.environ, "PATH": path}
            ).stdout
            for part in re.split(r"^\s*Function : ", text, flags=re.MULTILINE)[1:]:
                name, _, body = part.partition("\n")
                if wanted.search(name):
                    kernels[name] = _kernel(name, body, sections)
    return kernels


def _kernel(name: str, body: str, sections: dict[str, bytes]) -> Kernel:
    """The code, and what .nv.info.<name> says of its launch."""
    kernel = Kernel(name, parse(body))
    info = sections.get(f".nv.info.{name}", b"")
    at = 0
    while at + 4 <= len(info):
        form, attribute, value = struct.unpack_from("<BBH", info, at)
        at += 4
        if form == 4:  # `value` bytes follow
            at += value
        elif attribute == 0x19:
            kernel.parameter_bytes = value
    kernel.shared_bytes = max(SHARED_BASE, len(sections.get(f".nv.shared.{name}", b"")))
    return kernel


def _sections(elf: bytes) -> dict[str, bytes]:
    """The sections of a 64-bit ELF file by name; those without bytes in the file as zeros."""
    table, size, count, names_at = *struct.unpack_from("<Q", elf, 0x28), *struct.unpack_from("<HHH", elf, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", elf, table + i * size) for i in range(count)]
    names = headers[names_at]
    sections = {}
    for name, kind, _, _, start, length in headers:
        begin = names[4] + name
        text = elf[begin : elf.index(b"\0", begin)].decode()
        sections[text] = bytes(length) if kind == 8 else elf[start : start + length]
    return sections
