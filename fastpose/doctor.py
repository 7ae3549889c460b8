# SPDX-License-Identifier: Apache-2.0
"""`python -m fastpose.doctor`: what was built, what was found here, and what to do about what is missing."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import shutil
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

import fastpose
from fastpose._namesake import namesake
from fastpose.command_line import CommandLine
from fastpose.ending import ends_in_one_line
from fastpose.ops import _native
from fastpose.option import option


def _cpu() -> str:
    """How many cores there are, and what speeds networks up on them."""
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # older ones have none
    instructions = [name for name in ("amx_bf16", "avx512_bf16") if capabilities.get(name)]
    hint = f"; {instructions[0]}: networks run faster with --amp bfloat16 --channels_last on" if instructions else ""
    return f"{os.cpu_count()}{hint}"


def _gpu_rows() -> list[tuple[str, str]]:
    if not torch.cuda.is_available():
        return [("GPU", "none that torch can use")]
    rows = []
    for n in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(n)
        rows.append((f"GPU {n}", f"{torch.cuda.get_device_name(n)}, compute capability {major}.{minor}"))
    return rows


def _op_rows() -> list[tuple[str, str]]:
    """What runs the ops on the CPU and on the accelerator that torch finds."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    types = ["cpu"] if accelerator is None else ["cpu", accelerator.type]
    native = "native kernels (FASTPOSE_FALLBACK=1 chooses plain torch, to compare)"
    other = "refused, as FASTPOSE_FALLBACK=0" if _native.fallback_wish == "0" else "plain torch"
    return [(f"ops on {name}", other if _native.why_fallback(name) else native) for name in types]


def _nvimgcodec() -> str:
    """Where it is. It is not imported: that prints a page about parts of it that fastpose does not use."""
    try:
        found = importlib.util.find_spec("nvidia.nvimgcodec")
    except ModuleNotFoundError:  # no package of NVIDIA's at all
        found = None
    if found is None or found.origin is None:
        return 'not there; --decoder gpu needs it: pip install "nvidia-nvimgcodec-cu13[nvjpeg]"'
    return str(Path(found.origin).parent)


def _runs_on(capability: tuple[int, int], architectures: str) -> bool:
    """Machine code runs on its own major version, from its minor version on; PTX ("-virtual") on everything newer."""
    for entry in architectures.split():
        name, _, kind = entry.partition("-")
        digits = name.rstrip("af")
        built = (int(digits[:-1]), int(digits[-1]))
        if kind != "virtual" and built[0] == capability[0] and built[1] <= capability[1]:
            return True
        if kind != "real" and built <= capability:
            return True
    return False


def _csrc_sha256(csrc: Path) -> str:
    """A hash of the C++ and CUDA sources, as CMakeLists.txt computes it."""
    suffixes = (".cpp", ".cu", ".cuh", ".h", ".in")
    names = sorted(file.relative_to(csrc).as_posix() for file in csrc.rglob("*") if file.suffix in suffixes)
    lines = (f"{name} {hashlib.sha256((csrc / name).read_bytes()).hexdigest()}\n" for name in names)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _advice(info: dict[str, str] | None, csrc: Path) -> list[str]:
    """What to do for another library than the one that is loaded; `csrc` may not exist."""
    if _native.fallback_wish == "1":
        return ["FASTPOSE_FALLBACK=1: unset it to use the native library."]
    if info is None:
        return [str(_native.load_error), "Install again in this environment: pip install -e . (or the wheel)."]
    advice = []
    # Libraries from before there was a hash have none.
    if csrc.is_dir() and info.get("csrc_sha256") != _csrc_sha256(csrc):
        advice.append("The native library was built from other sources than those in csrc/: pip install -e .")
    if torch.cuda.is_available():
        if info["no_cuda_reason"]:
            advice.append(
                f"torch sees a GPU, but fastpose was built without CUDA kernels ({info['no_cuda_reason']}). "
                "Put nvcc on the PATH or set CUDA_HOME, then install again."
            )
        for n in range(torch.cuda.device_count()):
            capability = torch.cuda.get_device_capability(n)
            if info["cuda_architectures"] and not _runs_on(capability, info["cuda_architectures"]):
                wanted = ".".join(map(str, capability))
                advice.append(
                    f"GPU {n} is not among the architectures built: TORCH_CUDA_ARCH_LIST={wanted} pip install -e ."
                )
    return advice


@dataclass(frozen=True)
class DoctorOptions:
    """What counts as wrong."""

    strict: bool = option(False, "exit code 1 also where installing again would help")
    test: bool = option(
        False,
        "run every op on every device, compare it with its definition and print its speed, in about ten seconds; exit "
        "code 1 if one differs",
    )


def command() -> CommandLine:
    """The options of `fastpose doctor`."""
    description = "Print what was built, what was found here, and what to do about what is missing."
    return CommandLine("doctor", description, DoctorOptions)


@ends_in_one_line
def main(argv: list[str] | None = None) -> int:
    """Prints the report; returns 1 if the native library cannot be loaded or FASTPOSE_SIMD is wrong, else 0.

    With --test also if an op's results on a device are not what its definition gives.

    With --strict also if the library has no kernels for a GPU that torch sees, or is not built from csrc/, or if
    another project's package called fastpose is installed, too. If that one's `__init__.py` has replaced this one's,
    nothing but that is reported, and 1 returned.
    """
    asked = command().parse(argv)[0]
    other = namesake()
    if not hasattr(fastpose, "build_info"):
        print(f"fastpose/__init__.py is missing, or another package's. {other or 'Install again: pip install -e .'}")
        return 1
    try:
        import cv2

        opencv = cv2.__version__
    except ImportError as error:
        opencv = f"cannot be imported: {error}"
    info, wrong_simd = None, ""
    try:
        info = _native.build_info() if _native.load_error is None else None
    except RuntimeError as error:  # FASTPOSE_SIMD names a level that does not exist, or not here
        wrong_simd = str(error)
    rows = [
        ("fastpose", f"{fastpose.__version__} in {Path(fastpose.__file__).parent}"),
        ("Python", f"{platform.python_version()}, {platform.platform()}"),
        ("torch", f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}, {torch.get_num_threads()} threads"),
        ("OpenCV", opencv),
        ("nvImageCodec", _nvimgcodec()),
        ("CPU cores", _cpu()),
        *_gpu_rows(),
        ("nvcc", shutil.which("nvcc") or "not on the PATH"),
        ("native library", "NOT LOADED" if _native.load_error else "loaded"),
        *([] if wrong_simd else _op_rows()),
    ]
    if info:
        rows += [
            ("built against", f"torch {info['torch']}, compiler {info['compiler']}"),
            (
                "CUDA kernels",
                f"CUDA {info['cuda']} for {info['cuda_architectures']}"
                if info["cuda"]
                else f"none: {info['no_cuda_reason']}",
            ),
            ("SIMD", f"{info['simd']} on the CPU (FASTPOSE_SIMD=plain, avx2 or avx512 chooses)"),
        ]
    advice = [wrong_simd] if wrong_simd else _advice(info, Path(fastpose.__file__).parents[1] / "csrc")
    advice += [other] if other else []
    remarks = advice.copy()
    if info and info["cuda"] and not torch.cuda.is_available():
        remarks.append("The CUDA kernels are built, but torch sees no GPU here: everything runs on the CPU.")
    lines = [f"{name:>15}  {value}" for name, value in rows] + [f"\n  ! {line}" for line in remarks]
    with suppress(BrokenPipeError):  # a reader that has seen enough: what was found does not change
        print("\n".join(lines), flush=True)
    failed = 0
    if asked.test:
        from fastpose import selftest

        failed = selftest.run()
    return 1 if info is None or failed or (asked.strict and advice) else 0


if __name__ == "__main__":
    sys.exit(main())
