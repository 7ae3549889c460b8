# SPDX-License-Identifier: Apache-2.0
"""bench.gpu_session from end to end without a GPU, as it would run where one is rented.

    python -m bench.gpu_rehearsal

On a copy of the files that git knows or would add, and the built library, beside no .git; in an environment that has
the packages of bench/gpu_packages.txt alone, linked from this one; without a network where the system can do that; with
stand-ins for ncu and compute-sanitizer, which run what they would watch. Each part gets an empty output folder, and
that alone is looked at afterwards. Tests that need a GPU are collected and skipped: what is tried is every command line
up to the missing driver.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from bench import gpu_session

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = Path(__file__).with_name("gpu_packages.txt")
ABSENT = ("pycocotools", "kornia")  # there, but not on the GPU machine
FILES, FILE_BYTES = 8, 16 << 20  # what may come back of a part
# Runs the command that follows its own options, which begins with the path of a Python.
STAND_IN = """#!/bin/sh
while [ $# -gt 0 ]; do
  case "$1" in */python*) exec "$@" ;; esac
  shift
done
"""


def copy_checkout(to: Path) -> None:
    """The tracked files as they are now and those that git would add, and the library built for this Python."""
    listed = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split("\0")
    libraries = [str(path.relative_to(ROOT)) for path in (ROOT / "fastpose").glob("_C*.so")]
    for name in [*filter(None, names), *libraries]:
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)


def make_environment(folder: Path) -> None:
    """A virtual environment whose packages are links to this one's: the listed ones, and what they need."""
    venv.create(folder, with_pip=False, symlinks=True)
    site = Path(sysconfig.get_path("purelib", "venv", vars={"base": str(folder)}))
    wanted = [line for line in PACKAGES.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    linked: set[str] = set()
    while wanted:
        name = re.sub(r"[-_.]+", "-", wanted.pop()).lower()
        if name in linked:
            continue
        linked.add(name)
        try:
            package = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # the machine has more than is needed here
        needs = map(Requirement, package.requires or ())
        wanted += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
        for top in {path.parts[0] for path in package.files or ()} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(package.locate_file(top))).resolve())


def without_network() -> list[str]:
    """A command that runs another without a network; empty where the system has none."""
    unshare = ["unshare", "--user", "--map-root-user", "--net"]
    try:
        found = subprocess.run([*unshare, "true"], capture_output=True).returncode == 0
    except OSError:
        found = False
    return unshare if found else []


def complaints(out: Path) -> list[str]:
    """What is wrong with the output of a part."""
    paths = sorted(path for path in out.rglob("*") if path.is_file())
    found = [] if len(paths) <= FILES else [f"expected at most {FILES} files, got {', '.join(p.name for p in paths)}"]
    found += [f"{path.name}: larger than {FILE_BYTES:,} bytes" for path in paths if path.stat().st_size > FILE_BYTES]
    return found + [f"{path}: too deep" for path in paths if len(path.relative_to(out).parts) > 3]


def main() -> int:
    """Returns 1 where a part failed or gives back what cannot be brought home."""
    begin, wrong = time.perf_counter(), []
    with tempfile.TemporaryDirectory(prefix="fastpose-rehearsal-") as name:
        folder = Path(name)
        checkout, environment, tools = folder / "checkout", folder / "environment", folder / "tools"
        copy_checkout(checkout)
        make_environment(environment)
        tools.mkdir()
        for tool in ("ncu", "compute-sanitizer"):
            (tools / tool).write_text(STAND_IN)
            (tools / tool).chmod(0o755)
        python = str(environment / "bin" / "python")
        surroundings = {
            "PATH": os.pathsep.join([str(tools), str(environment / "bin"), os.defpath]),
            "HOME": str(folder),
            "PIP_NO_INDEX": "1",
            "FASTPOSE_COMMIT": "rehearsal",
        }
        isolated = without_network()
        print("without a network" if isolated else "the network cannot be taken away here", flush=True)
        look = f"from importlib.util import find_spec; print([name for name in {ABSENT!r} if find_spec(name)])"
        found = subprocess.run([python, "-c", look], env=surroundings, capture_output=True, text=True, check=True)
        if found.stdout.strip() != "[]":
            wrong.append(f"the environment has {found.stdout.strip()}")
        for part in gpu_session.parts(folder, "cpu"):
            out = folder / "out" / part
            command = [python, "-m", "bench.gpu_session", part, "--device", "cpu", "--out", str(out), "--patience", "4"]
            code = subprocess.run([*isolated, *command], cwd=checkout, env=surroundings).returncode
            wrong += [f"{part}: {complaint}" for complaint in complaints(out)]
            if code:
                wrong.append(f"{part}: exit code {code}")
                for log in sorted(out.glob("*.txt")):
                    print(f"---- {log.name}\n{log.read_text(errors='replace')[-4000:]}", flush=True)
    print("\n".join([*wrong, f"{time.perf_counter() - begin:.0f} s, {'FAILED' if wrong else 'ready for a GPU'}"]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
