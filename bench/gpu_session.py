# SPDX-License-Identifier: Apache-2.0
"""All that a GPU is rented for, in steps that cannot take each other's time: tests, profile, sanitizers, report.

    python -m bench.gpu_session --out OUT                # check, report and more: 15 minutes at most are planned
    python -m bench.gpu_session check --out OUT          # one part, or single steps by name
    python -m bench.gpu_session memcheck --patience 20   # every limit times 20
    python -m bench.gpu_session check --seconds 400      # and all steps together in at most 400 s

Each step has a limit and a log OUT/NAME.txt, and none stops the next. OUT/summary.txt says how each ended; the exit
code is 1 where one failed or was not run. Nothing but OUT needs to be brought back, at most 8 files of a part.
docs/gpu.md says what to bring along.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import os
import re
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parents[1]
PYTHON = sys.executable
KERNEL_TESTS = [
    f"tests/ops/test_{name}.py"
    for name in (
        *("cuda", "kernel_paths", "affine_crop", "render_heatmaps", "decode_heatmaps", "heatmap_mse_loss"),
        *("decode_simcc", "simcc_loss", "geometry", "soft_argmax", "color"),
    )
]
PROCESSES = min(8, os.cpu_count() or 1)
SECTIONS = ("SpeedOfLight", "LaunchStats", "Occupancy", "WarpStateStats", "MemoryWorkloadAnalysis", "InstructionStats")
# Of the cycles between two instructions of a warp, those in which it waits for what it has loaded.
WAITS_FOR_LOADS = "smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio"
# Without torch's caching every tensor is an allocation of its own, so that accesses beyond one are seen.
SANITIZED = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
PATHS = [f"tests/ops/test_{name}.py" for name in ("kernel_paths", "decode_simcc", "simcc_loss")]
PATHS += ["-k", "crops or ties or number_of_joints or layouts or part_by_part or strides"]


@dataclass(frozen=True)
class Step:
    """A command with its limit in seconds; `log` is the file of its output, NAME.txt if it is empty."""

    name: str
    seconds: float
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    log: str = ""


def cuda_tests(*arguments: str, processes: int = 0) -> list[str]:
    """pytest on the CUDA tests. A test that hangs is ended before it takes its step's time.

    By a thread: no signal handler of Python's runs while the main thread waits in C, as for a kernel that hangs. That
    ends the process, too. With `processes` it is a worker's: pytest names the test, starts another worker and goes on.
    Without, the run ends there, and its log with the stacks.
    """
    command = [PYTHON, "-m", "pytest", "-v", "-m", "cuda", "-p", "no:cacheprovider", "--maxfail=40"]
    command += ["--timeout=60", "--timeout-method=thread"]
    return [*command, *(["-n", str(processes)] if processes else []), *arguments]


def sanitizer(tool: str, *arguments: str) -> list[str]:
    command = ["compute-sanitizer", "--error-exitcode", "1", "--target-processes", "all", "--tool", tool]
    return [*command, *cuda_tests(*arguments)]


def parts(out: Path, device: str) -> dict[str, list[Step]]:
    """The steps of each part. A wrong result must be known before anything is timed; what compiles for long is last."""
    # ncu writes when the program ends that it watches: the kernel furthest from its goal has one of its own.
    ncu = ["ncu", "--clock-control", "none", "--profile-from-start", "off", "--csv", "--apply-rules", "no"]
    ncu += ["--kernel-name-base", "demangled", "--kernel-name", "regex:fastpose"]  # not those of torch
    sections = [word for section in SECTIONS for word in ("--section", section)]
    sections += ["--metrics", WAITS_FOR_LOADS]

    def profile(name: str, *arguments: str) -> list[str]:
        launches = [PYTHON, "-m", "bench.profile_kernels", "--device", device, *arguments]
        return [*ncu, *sections, "--log-file", str(out / f"{name}.csv"), *launches]

    report = [PYTHON, "-m", "bench.gpu_report", "--device", device, "--out", str(out)]
    not_here = [f"--ignore={file}" for file in KERNEL_TESTS]
    return {
        "check": [
            Step("kernels", 90, cuda_tests(*KERNEL_TESTS, "-k", "not compile", processes=PROCESSES)),
            Step("others", 120, cuda_tests("tests", *not_here, "-k", "not compile", processes=PROCESSES)),
            Step("profile_crop", 60, profile("profile_crop", "--only", "affine_crop"), log="profile.txt"),
            Step("profile_maps", 60, profile("profile_maps", "--except", "affine_crop"), log="profile.txt"),
            Step("memcheck", 75, sanitizer("memcheck", *PATHS), SANITIZED),
        ],
        "report": [Step("report", 460, report)],
        "more": [
            Step("compile", 120, cuda_tests("tests", "-k", "compile", processes=PROCESSES)),
            Step("racecheck", 60, sanitizer("racecheck", *PATHS), SANITIZED),
            # Not the tests of the paths: those initialise all memory.
            Step(
                "initcheck",
                60,
                sanitizer("initcheck", "tests/ops/test_cuda.py", "-k", "gives_what_the_cpu_gives or two_runs"),
                SANITIZED,
            ),
        ],
    }


DOCTOR = Step("doctor", 60, [PYTHON, "-m", "fastpose.doctor"], log="setup.txt")
BUILD = Step("build", 240, [PYTHON, "setup.py", "build_ext", "--inplace"], log="setup.txt")


class Session:
    """Runs steps, and remembers which failed."""

    def __init__(self, out: Path, device: str, patience: float, seconds: float = math.inf) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.out, self.patience = out, patience
        self.failed: list[str] = []
        self.started = time.perf_counter()
        self.end = self.started + seconds
        self.doctor = replace(DOCTOR, command=[*DOCTOR.command, "--strict"]) if device == "cuda" else DOCTOR
        paths = [sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath), "/usr/local/cuda/bin"]
        self.environment = os.environ | {
            "PATH": os.pathsep.join(paths),
            "PYTHONUNBUFFERED": "1",
            "FASTPOSE_FALLBACK": "0",  # a library that does not load is an error
        }
        if device == "cuda":
            self.environment |= {"FASTPOSE_REQUIRE_CUDA": "1", "FASTPOSE_CUDA": "1"}  # and so is a GPU that is not seen

    def say(self, text: str) -> None:
        line = f"{time.perf_counter() - self.started:5.0f} s  {text}"
        print(line, flush=True)
        with open(self.out / "summary.txt", "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def prepare(self) -> None:
        """Builds the native library where none that loads was brought along.

        For a GPU also where that has no kernels for it, or is older than csrc/.
        """
        if self.run(self.doctor, last_word=False):
            return
        if self.run(BUILD):
            self.run(self.doctor)

    def run(self, step: Step, last_word: bool = True) -> bool:
        """Runs a step in what is left of the session's time; returns whether it ended well.

        Whatever the step has started ends with it.
        """
        begin = time.perf_counter()
        limit = min(step.seconds * self.patience, self.end - begin)
        if limit <= 0:
            self.failed.append(step.name)
            self.say(f"{step.name}: NOT RUN: the {self.end - self.started:.0f} s of this session are over")
            return False
        log = self.out / (step.log or f"{step.name}.txt")
        before = log.stat().st_size if log.exists() else 0
        with open(log, "ab") as file:
            try:
                process = subprocess.Popen(
                    step.command,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    cwd=ROOT,
                    env=self.environment | step.environment,
                    start_new_session=True,
                    preexec_fn=die_with_parent if sys.platform == "linux" else None,
                )
            except OSError as error:
                ended = f"FAILED: {error}"
            else:
                try:
                    code = process.wait(limit)
                    ended = "passed" if code == 0 else f"FAILED with exit code {code}"
                except subprocess.TimeoutExpired:
                    ended = f"FAILED: stopped after its limit of {limit:.0f} s"
                finally:
                    end_group(process)
        if ended != "passed" and last_word:
            self.failed.append(step.name)
        self.say(f"{step.name}: {ended}, {time.perf_counter() - begin:.0f} s, {log.name}")
        text = log.read_bytes()[before:].decode(errors="replace")
        for line in first_to_read(text):
            self.say(f"    {line[:160]}")
        return ended == "passed"


def die_with_parent() -> None:
    """In a new process: have Linux kill it when this session ends, also by a SIGKILL, which leaves it no last word."""
    set_death_signal = 1  # PR_SET_PDEATHSIG of linux/prctl.h
    ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and all that it has started, if they are still there."""
    for number, seconds in ((signal.SIGTERM, 5), (signal.SIGKILL, 5)):
        try:
            os.killpg(process.pid, number)
            process.wait(seconds)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def first_to_read(text: str) -> list[str]:
    """Of a log: pytest's failures, at most 40, the test at which a run without workers ended, and the last line."""
    lines = [line for line in text.splitlines() if line.strip()]
    failures = [line for line in lines if re.match(r"(FAILED|ERROR) |\S+::.* \++ Timeout \+", line)]
    return [*failures[:40], *lines[-1:]]


def stop(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)  # so that the step's processes are ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the parts or steps asked for; returns 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="parts (check, report, more) or steps; none: all")
    parser.add_argument("--out", type=Path, default=Path("gpu-out"), help="folder of logs and results (gpu-out)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal; tests are skipped")
    parser.add_argument("--patience", type=float, default=1.0, help="factor on every limit (1)")
    parser.add_argument("--seconds", type=float, default=math.inf, help="for all steps together (no limit)")
    options = parser.parse_args(arguments)
    out = options.out.resolve()
    every = parts(out, options.device)
    steps = every | {step.name: [step] for part in every.values() for step in part}
    names = options.names or list(every)
    if unknown := [name for name in names if name not in steps]:
        parser.error(f"no part or step {unknown[0]!r}, only {', '.join(steps)}")
    signal.signal(signal.SIGTERM, stop)
    session = Session(out, options.device, options.patience, options.seconds)
    session.say(f"{' '.join(names)} on {options.device}, commit {os.environ.get('FASTPOSE_COMMIT') or 'unknown'}")
    session.prepare()
    for name in names:
        for step in steps[name]:
            session.run(step)
    session.say(f"failed: {', '.join(session.failed)}" if session.failed else "all steps passed")
    return 1 if session.failed else 0


if __name__ == "__main__":
    sys.exit(main())
