# SPDX-License-Identifier: Apache-2.0
"""fastpose.doctor: what it prints here, what it advises elsewhere, and how a missing library is told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import fastpose
from fastpose import doctor


def test_says_what_was_built(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main([]) == 0
    out = capsys.readouterr().out
    assert "native library  loaded" in out
    assert f"torch {fastpose.build_info()['torch']}" in out


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "fastpose.doctor"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait() == 0


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ((9, 0), "80-real 90-real", True),
        ((8, 9), "80-real", True),  # machine code runs on later minors of its major
        ((8, 0), "86-real", False),
        ((10, 0), "90-real", False),
        ((10, 0), "90-virtual", True),  # PTX runs on everything newer
        ((12, 0), "75-real 80", True),
        ((9, 0), "90a-real", True),
        ((7, 5), "", False),
    ],
)
def test_knows_which_gpu_a_build_serves(capability: tuple[int, int], architectures: str, runs: bool) -> None:
    assert doctor._runs_on(capability, architectures) is runs


def test_without_the_library_import_works_and_calls_explain(tmp_path: Path) -> None:
    """A copy of the package without its library: import succeeds, an op says what to do, doctor returns 1."""
    source = Path(fastpose.__file__).parent
    copy = tmp_path / "fastpose"
    for file in source.rglob("*.py"):
        target = copy / file.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    program = (
        # An editable install finds the library of the checkout for any package of our name.
        "import sys\n"
        "sys.meta_path = [finder for finder in sys.meta_path if 'editable' not in str(finder).lower()]\n"
        "import torch, fastpose\n"
        f"assert fastpose.__file__.startswith({str(tmp_path)!r}), fastpose.__file__\n"
        "try:\n    fastpose.decode_heatmaps(torch.zeros(1, 1, 4, 4))\n"
        "except ImportError as error:\n    print(error)\n"
        "from fastpose import doctor\n"
        "raise SystemExit(doctor.main([]))\n"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 1, result.stderr
    assert "native library could not be loaded" in result.stdout
    assert "pip install -e ." in result.stdout
    assert "NOT LOADED" in result.stdout
