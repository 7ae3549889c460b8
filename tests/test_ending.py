# SPDX-License-Identifier: Apache-2.0
"""How commands end by signals, without a reader, and for want of what the system refuses."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from fastpose import _program, ending
from fastpose.ending import CLOSED_PIPE, Stopped, ends_in_one_line, refused

REPOSITORY = Path(__file__).parents[1]
STOPS = pytest.mark.parametrize("number", _program.STOPS)

pytestmark = pytest.mark.usefixtures("python_s_signals")


def command(does):
    return ends_in_one_line(lambda argv: does())


@STOPS
def test_each_stop_signal_is_one_line_and_its_exit_code(number, capsys):
    before, cleaned = signal.getsignal(number), []

    def wait() -> int:
        try:
            signal.raise_signal(number)
            time.sleep(60)
        finally:
            cleaned.append(True)
        return 0

    assert command(wait)([]) == 128 + number
    assert capsys.readouterr().err == f"stopped by {number.name}\n"
    assert cleaned == [True]
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("seconds", [0, 60])
def test_a_stop_in_a_callback_that_may_raise_nothing_comes_a_moment_later(seconds, capsys):
    class Something:
        pass

    def stop(_: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    def work() -> int:
        something = Something()
        reference = weakref.ref(something, stop)
        del something  # Python runs the callback, and drops what it raises
        assert reference() is None
        time.sleep(seconds)  # of 0: at the latest at the command's end
        return 0

    before = signal.getsignal(signal.SIGTERM), sys.unraisablehook, threading.active_count()
    assert command(work)([]) == 128 + signal.SIGTERM
    assert capsys.readouterr().err == "stopped by SIGTERM\n"
    deadline = time.monotonic() + 60  # the thread that repeats the signal may still be on its way out
    while threading.active_count() > before[2] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (signal.getsignal(signal.SIGTERM), sys.unraisablehook, threading.active_count()) == before


def test_a_stop_has_the_remark_of_who_cleaned_up(capsys):
    def stop() -> int:
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt as error:
            raise Stopped.by(error, "the same command goes on") from None
        return 0

    assert command(stop)([]) == 128 + signal.SIGTERM
    assert capsys.readouterr().err == "stopped by SIGTERM; the same command goes on\n"


def test_what_fails_after_a_stop_is_the_stop(capsys):
    def stop() -> int:
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            raise RuntimeError("a worker was stopped, too") from None
        return 0

    assert command(stop)([]) == 128 + signal.SIGTERM
    assert capsys.readouterr().err == "stopped by SIGTERM\n"


def test_a_signal_sent_twice_at_once_is_one(capsys, monkeypatch):
    seen = []

    def twice(seconds: float) -> None:  # the second comes while the handler waits for it
        if not seen:
            seen.append(seconds)
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(ending.time, "sleep", twice)
    assert command(lambda: signal.raise_signal(signal.SIGTERM) or 0)([]) == 128 + signal.SIGTERM
    assert capsys.readouterr().err == "stopped by SIGTERM\n"
    assert len(seen) == 1


@STOPS
def test_a_signal_that_is_ignored_stays_ignored(number):
    signal.signal(number, signal.SIG_IGN)
    assert command(lambda: signal.raise_signal(number) or 5)([]) == 5
    assert signal.getsignal(number) is signal.SIG_IGN


def test_a_command_runs_in_a_thread_of_the_user():
    handlers = [signal.getsignal(number) for number in _program.STOPS]
    codes = []
    thread = threading.Thread(target=lambda: codes.append(command(lambda: 7)([])))
    thread.start()
    thread.join()
    assert codes == [7]
    assert [signal.getsignal(number) for number in _program.STOPS] == handlers


def raised(does) -> BaseException:
    with pytest.raises(BaseException) as caught:  # noqa: PT011 which one is not the question
        does()
    return caught.value


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError(), "memory: MemoryError ("),
        (raised(lambda: np.empty(1 << 60, np.uint8)), "memory: Unable to allocate 1.00 EiB for an array with shape"),
        (raised(lambda: torch.empty(1 << 60, dtype=torch.uint8)), f"memory: {1 << 60:,} bytes asked for ("),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."), "memory: CUDA out of memory."),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "memory: [Errno 12] Cannot allocate memory ("),
        (ImportError("libx.so: failed to map segment from shared object"), "memory: libx.so: failed to map segment"),
        (RuntimeError("could not create a primitive"), "memory: could not create a primitive ("),
        (RuntimeError("can't start new thread"), "threads or processes: can't start new thread (see ulimit -u"),
        (BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)), "threads or processes: [Errno 11] Resource tempor"),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE), "a.jpg"), "open files: [Errno 24] Too many open files: 'a."),
        (OSError(errno.ENFILE, os.strerror(errno.ENFILE)), "open files: [Errno 23] Too many open files in system ("),
    ],
)
def test_what_the_system_refuses_is_one_line(error, line, capsys):
    def fail() -> int:
        raise error

    assert command(fail)([]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"error: the system refuses {line}")
    assert err.count("\n") == 1


def test_without_memory_to_say_so_too_little_memory_is_one_line(capsys):
    class Dear(MemoryError):
        def __str__(self):
            raise MemoryError

    def work() -> int:
        raise Dear

    assert command(work)([]) == 1
    assert capsys.readouterr().err == "error: the system refuses memory\n"


def test_what_fails_because_of_a_refusal_is_the_refusal(capsys):
    def fail() -> int:
        try:
            raise RuntimeError("can't start new thread")
        finally:
            threading.Thread().join()  # what clears up knows of no refusal: "cannot join thread before it is started"

    assert command(fail)([]) == 1
    assert capsys.readouterr().err.startswith("error: the system refuses threads or processes: can't start new thread")


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("shapes differ"), ValueError("can't start new thread")])
def test_a_fault_of_the_program_keeps_its_traceback(error):
    def fail() -> int:
        raise error

    assert refused(error) == ""
    assert raised(lambda: command(fail)([])) is error


@pytest.mark.parametrize(
    ("argv", "started_with", "program"),
    [
        (["-m"], ["python", "-X", "dev", "-m", "fastpose.train", "--lr", "1"], True),
        (["-m"], ["python", "-m", "pytest", "-m", "fastpose"], False),
        (["/bin/fastpose", "train"], ["python", "/bin/fastpose", "train"], True),
        (["/bin/fastpose", "train"], ["python", "-c", "from multiprocessing.spawn import spawn_main"], False),
        (["train.py"], ["python", "train.py"], False),
        (["-c"], ["python", "-c", "import fastpose"], False),
        ([], [], False),
    ],
)
def test_only_commands_change_what_signals_do(argv, started_with, program, monkeypatch):
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", started_with)
    assert _program.is_program("fastpose") is program


def run_with_torch(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    """`fastpose doctor` with another torch, which is what it imports first."""
    (folder / "torch.py").write_text(text)
    command = [sys.executable, "-m", "fastpose.doctor"]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(
        command, capture_output=True, text=True, cwd=REPOSITORY, env=environment, timeout=300, check=False
    )


@STOPS
def test_a_signal_while_torch_is_imported_is_one_line(number, tmp_path):
    process = run_with_torch(tmp_path, f"import os, time\nos.kill(os.getpid(), {int(number)})\ntime.sleep(200)\n")
    assert (process.returncode, process.stderr) == (128 + number, f"stopped by {number.name}\n")


def test_too_little_memory_for_torch_is_one_line(tmp_path):
    process = run_with_torch(tmp_path, "raise ImportError('libtorch_cpu.so: failed to map segment from shared object')")
    assert process.returncode == 1
    assert process.stderr.startswith("error: the system refuses memory: libtorch_cpu.so: failed to map segment")
    assert process.stderr.count("\n") == 1


def test_a_signal_while_the_interpreter_ends_is_one_line(tmp_path):
    script = tmp_path / "fastpose"  # as pip writes it
    script.write_text(
        "import atexit, os, signal, sys\natexit.register(os.kill, os.getpid(), signal.SIGTERM)\n"
        "from fastpose.cli import main\nsys.exit(main())\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, str(script), "--version"]
    process = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert (process.returncode, process.stderr) == (128 + signal.SIGTERM, "stopped by SIGTERM\n")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_gone_is_no_error(unbuffered):
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    command = [sys.executable, "-m", "fastpose.cli", "--version"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY, env=environment
    )
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    # What is still in the buffer at the end was asked for by nobody: the command is done.
    assert process.wait() == (CLOSED_PIPE if unbuffered else 0)


@pytest.mark.parametrize("handled", [False, True])
def test_a_warning_is_one_line_printed_once(handled, capsys, monkeypatch):
    handlers = [logging.NullHandler()] if handled else []
    monkeypatch.setattr(logging.getLogger(), "handlers", handlers)  # without pytest's own

    def warn() -> int:
        for file in ("a.json", "b.json", "a.json"):  # of two splits in one file both readers warn
            logging.getLogger("fastpose.data.sense").warning("%s: %d joints outside", file, 3)
        return 0

    for _ in range(2):  # each command anew
        assert command(warn)([]) == 0
        wanted = "" if handled else "warning: a.json: 3 joints outside\nwarning: b.json: 3 joints outside\n"
        assert capsys.readouterr().err == wanted
