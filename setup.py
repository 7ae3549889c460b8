# SPDX-License-Identifier: Apache-2.0
"""Build shim: find torch, let CMake build the native library, put it in its place.

Everything about the build itself (sources, flags, CUDA, architectures) stands in CMakeLists.txt.

Without torch or a C++ compiler fastpose is installed without the library: its ops then run in plain torch, and say so.

Environment:
    FASTPOSE_NATIVE=0 leave the library out
    FASTPOSE_CUDA=1   build the CUDA kernels even against a torch without CUDA; a missing nvcc is then an error
    FASTPOSE_CUDA=0   never build them
    TORCH_CUDA_ARCH_LIST, CMAKE_ARGS, CUDA_HOME, CUDACXX   as usual
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent.resolve()


OLDEST_TORCH = (2, 11)


def find_torch() -> Path | None:
    """The folder of the installed torch, or None where there is none, or one that is too old to build against.

    Inside pip's isolated build environment the user's torch cannot be imported, but `purelib` still names the outer
    environment, where it lies. Building against that one, and not against a second copy that pip would download, is
    what makes the library fit the torch it will be loaded into.
    """
    spec = importlib.util.find_spec("torch")
    candidates = [Path(p) for p in (spec.submodule_search_locations or ())] if spec else []
    candidates += [Path(sysconfig.get_path(key)) / "torch" for key in ("purelib", "platlib")]
    return next((c for c in candidates if (c / "version.py").is_file() and torch_version(c) >= OLDEST_TORCH), None)


def no_native_reason() -> str:
    """Why the library is left out, whatever torch there is; empty where it is to be built."""
    wish = os.environ.get("FASTPOSE_NATIVE", "")
    if wish not in ("", "0"):
        raise SystemExit(f"FASTPOSE_NATIVE must be 0 or unset, got {wish!r}")
    if wish == "0":
        return "FASTPOSE_NATIVE=0"
    if sys.platform == "win32":
        return "it is not built on Windows"
    if not os.environ.get("CXX") and not any(map(runs, ("c++", "g++", "clang++"))):
        return "no C++ compiler: neither c++, g++ nor clang++ runs, and CXX is not set"
    return ""


def runs(compiler: str) -> bool:
    """macOS has compilers by name that only offer to install one."""
    return (
        shutil.which(compiler) is not None
        and subprocess.run([compiler, "--version"], capture_output=True).returncode == 0
    )


def torch_version(torch: Path) -> tuple[int, int]:
    match = re.search(r"^__version__\s*=\s*'(\d+)\.(\d+)", (torch / "version.py").read_text(), re.MULTILINE)
    return (int(match.group(1)), int(match.group(2))) if match else (0, 0)


def torch_cuda_version(torch: Path) -> str | None:
    """CUDA version that torch was built with, read as text: its package cannot be imported from an isolated build."""
    match = re.search(r"^cuda\b[^=]*=\s*'([^']+)'", (torch / "version.py").read_text(), re.MULTILINE)
    return match.group(1) if match else None


def find_nvcc() -> str | None:
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    named = [os.environ.get("CUDACXX")] + [str(Path(h) / "bin/nvcc") for h in homes if h]
    return next((n for n in [*named, "nvcc", "/usr/local/cuda/bin/nvcc"] if n and shutil.which(n)), None)


def cuda_arguments(torch: Path) -> list[str]:
    """-D arguments that switch CUDA on or off, with the reason kept for `fastpose doctor`."""
    wish, torch_cuda, nvcc = os.environ.get("FASTPOSE_CUDA", ""), torch_cuda_version(torch), find_nvcc()
    if wish not in ("", "0", "1"):
        raise SystemExit(f"FASTPOSE_CUDA must be 0, 1 or unset, got {wish!r}")
    if wish == "0":
        reason = "FASTPOSE_CUDA=0"
    elif not wish and torch_cuda is None:
        reason = "torch has no CUDA"
    elif nvcc is None:
        reason = f"no nvcc (torch wants CUDA {torch_cuda}); set CUDA_HOME or CUDACXX and install again"
        if wish:
            raise SystemExit(f"FASTPOSE_CUDA=1, but {reason}")
    else:
        return ["-DFASTPOSE_CUDA=ON", f"-DCMAKE_CUDA_COMPILER={shutil.which(nvcc)}"]
    print(f"fastpose: building without CUDA kernels: {reason}", file=sys.stderr)
    return ["-DFASTPOSE_CUDA=OFF", f"-DFASTPOSE_NO_CUDA_REASON={reason}"]


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        try:
            import pybind11
        except ImportError:
            raise SystemExit(
                "fastpose: --no-build-isolation needs pybind11: pip install cmake ninja pybind11"
            ) from None
        if shutil.which("cmake") is None:
            raise SystemExit("fastpose: --no-build-isolation needs cmake: pip install cmake ninja pybind11")
        torch = find_torch()
        assert torch is not None  # ext_modules is empty without it
        arguments = [
            f"-DFASTPOSE_TORCH_DIR={torch}",
            f"-DFASTPOSE_PYBIND11_INCLUDE={pybind11.get_include()}",
            f"-DPython_EXECUTABLE={sys.executable}",
            "-DCMAKE_BUILD_TYPE=Release",
            *cuda_arguments(torch),
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]
        # One build folder per torch and set of switches: going back and forth between two environments, or between
        # CUDA on and off, then costs a link and not a rebuild.
        key = hashlib.sha256("\n".join([str(torch), *arguments[4:]]).encode()).hexdigest()[:8]
        build = ROOT / "build" / f"{sys.implementation.cache_tag}-{key}"
        try:
            subprocess.run(["cmake", "-S", ROOT, "-B", build, *self._generator(), *arguments], check=True)
            subprocess.run(
                ["cmake", "--build", build, "--target", "_C", "--parallel", str(os.cpu_count() or 1)], check=True
            )
        except subprocess.CalledProcessError:
            raise SystemExit(
                "fastpose: the native library could not be built, see above. FASTPOSE_NATIVE=0 leaves it out: the ops "
                "then run in plain torch, which takes longer"
            ) from None

        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        # Beside and renamed, never written in place: a process that has the old library mapped keeps it whole.
        beside = target.with_name(target.name + ".new")
        shutil.copy2(build / "_C.so", beside)
        beside.replace(target)

    @staticmethod
    def _generator() -> list[str]:
        # Isolated builds bring a new ninja each time; the one in CMake's cache may be gone.
        ninja = shutil.which("ninja")
        return ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []


def refuse_a_namesake() -> None:
    """Ends an editable install beside a distribution called `fastpose`, which is searched before the checkout.

    Like torch, that is looked for in the outer environment.
    """
    for other in metadata.distributions(name="fastpose", path=[sysconfig.get_path("purelib")]):
        raise SystemExit(
            f"fastpose: a distribution called fastpose is installed in {other.locate_file('')}: another project's, or "
            "this one from before it was called fastpose-torch. Both are imported as fastpose, so uninstall that one "
            "first: pip uninstall fastpose"
        )


class BuildWithRecipes(build_py):
    """Copies train/*.yaml to fastpose/recipes/ in a wheel; an editable install reads train/ itself."""

    def run(self) -> None:
        if self.editable_mode:
            refuse_a_namesake()
        super().run()
        if not self.editable_mode:
            recipes = Path(self.build_lib) / "fastpose" / "recipes"
            recipes.mkdir(parents=True, exist_ok=True)
            for recipe in sorted((ROOT / "train").glob("*.yaml")):
                self.copy_file(str(recipe), str(recipes / recipe.name))


left_out, have_torch = no_native_reason(), find_torch() is not None
if left_out or not have_torch:
    why = left_out or "no torch >= 2.11 found to build it against"
    print(f"fastpose: no native library, the ops will run in plain torch: {why}", file=sys.stderr)
setup(
    license="Apache-2.0",
    ext_modules=[Extension("fastpose._C", sources=[])] if have_torch and not left_out else [],
    # Read by pip when it sets up an isolated build: torch is fetched for the build only where none is installed.
    setup_requires=[] if left_out or have_torch else ["torch>=2.11"],
    cmdclass={"build_ext": CMakeBuild, "build_py": BuildWithRecipes},
)
