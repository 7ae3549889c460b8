# SPDX-License-Identifier: Apache-2.0
"""The session on a rented GPU: what hangs or fails costs its own step and no other, and stands in the summary."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench import gpu_rehearsal, gpu_session
from bench.gpu_session import Step

SLEEPS = """
import pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path(sys.argv[1]).write_text(str(child.pid))
time.sleep(600)
"""


def python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", code, *arguments]


def run(
    monkeypatch: pytest.MonkeyPatch, out: Path, *steps: Step, doctor: str = "", options: Sequence[str] = ()
) -> tuple[int, str]:
    """The exit code and the summary of a session of these steps, with a doctor that runs this code."""
    monkeypatch.setattr(gpu_session, "parts", lambda out, device: {"check": list(steps)})
    monkeypatch.setattr(gpu_session, "DOCTOR", Step("doctor", 30, python(doctor), log="setup.txt"))
    code = gpu_session.main(["--out", str(out), "--device", "cpu", *options])
    return code, (out / "summary.txt").read_text()


def is_running(pid: int) -> bool:
    """A zombie, which nobody has waited for yet, has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def ends_soon(pid: int) -> bool:
    for _ in range(100):
        if not is_running(pid):
            return True
        time.sleep(0.05)
    return False


def test_a_step_that_hangs_is_ended_with_all_that_it_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hangs = Step("hangs", 3, python(SLEEPS, str(tmp_path / "child")))
    works = Step("works", 30, python("print('after it')"))
    code, summary = run(monkeypatch, tmp_path, hangs, works)
    assert code == 1
    assert "hangs: FAILED: stopped after its limit of 3 s" in summary
    assert "works: passed" in summary
    assert summary.splitlines()[-1].endswith("failed: hangs")
    assert ends_soon(int((tmp_path / "child").read_text()))


WAITS_IN_C = """
import ctypes, pytest
pytestmark = pytest.mark.cuda
def test_before(): pass
def test_waits(): ctypes.CDLL(None).pause()
def test_after(): pass
"""


@pytest.mark.parametrize("processes", [0, 2])
def test_a_test_that_waits_in_c_is_named_and_ended(
    processes: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As one whose kernel hangs: no signal handler of Python's would run."""
    pytest.importorskip("pytest_timeout")
    pytest.importorskip("xdist")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = cuda\n")
    (tmp_path / "test_it.py").write_text(WAITS_IN_C)
    command = gpu_session.cuda_tests(str(tmp_path / "test_it.py"), "--timeout=2", processes=processes)
    monkeypatch.setattr(gpu_session, "ROOT", tmp_path)
    code, summary = run(monkeypatch, tmp_path / "out", Step("tests", 300, command))
    assert code == 1
    assert "tests: FAILED with exit code 1" in summary  # not: stopped after its limit
    assert any("test_it.py::test_waits" in line for line in summary.splitlines())
    assert (tmp_path / "out/tests.txt").read_text().count(" PASSED ") == (2 if processes else 1)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can do that")
def test_a_step_does_not_outlive_a_session_that_is_killed(tmp_path: Path) -> None:
    step = "import os, pathlib, sys, time; pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); time.sleep(600)"
    session = (
        "import pathlib, sys; from bench import gpu_session\n"
        f"step = gpu_session.Step('step', 600, [sys.executable, '-c', {step!r}, sys.argv[1] + '/step'])\n"
        "gpu_session.Session(pathlib.Path(sys.argv[1]), 'cpu', 1.0).run(step)"
    )
    process = subprocess.Popen(python(session, str(tmp_path)), cwd=gpu_session.ROOT)
    for _ in range(600):
        if (tmp_path / "step").exists() and (tmp_path / "step").read_text():
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert ends_soon(int((tmp_path / "step").read_text()))


def test_the_steps_of_a_session_share_its_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A step gets what is left, and what does not begin is a failure."""
    hangs = Step("hangs", 600, python("import time; time.sleep(600)"))
    never = Step("never", 1, python(""))
    code, summary = run(monkeypatch, tmp_path, hangs, never, options=["--seconds", "3"])
    assert code == 1
    assert "hangs: FAILED: stopped after its limit of " in summary
    assert "never: NOT RUN: the 3 s of this session are over" in summary
    assert summary.splitlines()[-1].endswith("failed: hangs, never")


def test_failures_are_listed_and_stop_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fails = Step("fails", 30, python("print('FAILED tests/test_x.py::test_y - wrong\\n1 failed'); raise SystemExit(3)"))
    missing = Step("missing", 30, ["no-such-profiler", "--set", "full"])
    works = Step("works", 30, python("import os; print(os.environ['FASTPOSE_FALLBACK'], os.environ['A'])"), {"A": "b"})
    code, summary = run(monkeypatch, tmp_path, fails, missing, works)
    assert code == 1
    assert "fails: FAILED with exit code 3" in summary
    assert "    FAILED tests/test_x.py::test_y - wrong\n" in summary
    assert "missing: FAILED: [Errno 2] No such file or directory: 'no-such-profiler'" in summary
    assert summary.splitlines()[-1].endswith("failed: fails, missing")
    assert (tmp_path / "works.txt").read_text() == "0 b\n"


def test_a_session_without_a_failure_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    works = Step("works", 30, python("print('one')"))
    code, summary = run(monkeypatch, tmp_path, works)
    assert code == 0
    assert summary.splitlines()[-1].endswith("all steps passed")


def test_a_library_that_does_not_load_is_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    built = tmp_path / "built"
    build = python("import pathlib, sys; pathlib.Path(sys.argv[1]).touch()", str(built))
    monkeypatch.setattr(gpu_session, "BUILD", Step("build", 30, build, log="setup.txt"))
    doctor = f"import pathlib; raise SystemExit(0 if pathlib.Path({str(built)!r}).exists() else 1)"
    code, summary = run(monkeypatch, tmp_path, Step("works", 30, python("")), doctor=doctor)
    assert code == 0
    steps = [line.split()[2] for line in summary.splitlines()[1:-1]]
    assert steps == ["doctor:", "build:", "doctor:", "works:"]


def test_on_a_gpu_a_library_that_does_not_serve_it_is_built(tmp_path: Path) -> None:
    """test_doctor.py has what the doctor then refuses."""
    assert gpu_session.Session(tmp_path, "cuda", 1.0).doctor.command == [*gpu_session.DOCTOR.command, "--strict"]
    assert gpu_session.Session(tmp_path, "cpu", 1.0).doctor == gpu_session.DOCTOR


def test_on_a_gpu_nothing_is_skipped(tmp_path: Path) -> None:
    """A driver that does not work must not look like a machine without a GPU."""
    assert gpu_session.Session(tmp_path, "cuda", 1.0).environment["FASTPOSE_REQUIRE_CUDA"] == "1"
    steps = {step.name: step.command for part in gpu_session.parts(tmp_path, "cuda").values() for step in part}
    for name in ("kernels", "others", "memcheck", "racecheck", "initcheck", "compile"):
        assert " -m pytest -v -m cuda " in " ".join(steps[name])


def test_the_tests_of_the_kernels_are_run_first_and_no_others_twice(tmp_path: Path) -> None:
    kernels, others = gpu_session.parts(tmp_path, "cuda")["check"][:2]
    for file in gpu_session.KERNEL_TESTS:
        assert (gpu_session.ROOT / file).is_file()
        assert file in kernels.command
        assert f"--ignore={file}" in others.command


def test_the_documentation_has_every_step_and_its_limit(tmp_path: Path) -> None:
    text = (gpu_session.ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    for part, steps in gpu_session.parts(tmp_path, "cuda").items():
        assert f"make gpu-{part} " in text
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `gpu-{part}` |")]
        # The time of the part, which make passes.
        command = ["make", "--dry-run", f"gpu-{part}"]
        asked = subprocess.run(command, cwd=gpu_session.ROOT, capture_output=True, text=True, check=True).stdout
        assert f" bench.gpu_session {part} " in asked
        assert f" | {asked.split('--seconds ')[1].split()[0]} s | " in row
        for step in steps:
            assert f"`{step.log or f'{step.name}.txt'}`" in row
            assert step.log or f"{step.seconds:g} s" in row


def test_an_unknown_step_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        gpu_session.main(["chekc", "--out", str(tmp_path)])
    assert "no part or step 'chekc', only check, report, more, kernels" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_rehearsal_complains_of_what_cannot_be_brought_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(8):
        (tmp_path / f"{n}.txt").write_text("log")
    assert gpu_rehearsal.complaints(tmp_path) == []
    (tmp_path / "a/b/c").mkdir(parents=True)
    (tmp_path / "a/b/c/9.txt").write_text("a long log")
    monkeypatch.setattr(gpu_rehearsal, "FILE_BYTES", 5)
    many, large, deep = gpu_rehearsal.complaints(tmp_path)
    assert many.startswith("expected at most 8 files, got 0.txt, 1.txt")
    assert large == "9.txt: larger than 5 bytes"
    assert deep.endswith("a/b/c/9.txt: too deep")


def test_stand_ins_run_what_they_would_watch(tmp_path: Path) -> None:
    tool = tmp_path / "ncu"
    tool.write_text(gpu_rehearsal.STAND_IN)
    tool.chmod(0o755)
    session = gpu_session.Session(tmp_path / "out", "cpu", 1.0)
    watched = [str(tool), "--set", "full", "-o", "somewhere", sys.executable, "-c", "print('watched')"]
    assert session.run(Step("profile", 30, watched))
    assert session.run(Step("as_text", 30, [str(tool), "--import", "somewhere", "--csv"]))
    assert (tmp_path / "out/profile.txt").read_text() == f"watched{os.linesep}"
