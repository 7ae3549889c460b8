# SPDX-License-Identifier: Apache-2.0
"""fastpose.doctor: what it prints here, what it advises elsewhere, and how a missing library is reported."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastpose
from fastpose import doctor
from fastpose.ops import _native


@pytest.mark.native
def test_says_what_was_built(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main([]) == 0
    out = capsys.readouterr().out
    assert "native library  loaded" in out
    assert "ops on cpu  native kernels" in out
    assert f"torch {fastpose.build_info()['torch']}" in out


@pytest.mark.parametrize(
    ("capabilities", "hint"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, "; avx512_bf16: networks run faster with --amp bfloat16 "),
        ({"avx512_bf16": True, "amx_bf16": True}, "; amx_bf16: networks run faster with --amp bfloat16 "),
        ({"avx512_bf16": False, "avx2": True}, "\n"),
        ({}, "\n"),
        (None, "\n"),  # an older torch
    ],
)
def test_names_instructions_that_compute_bfloat16(capabilities, hint, capsys, monkeypatch) -> None:
    if capabilities is None:
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    doctor.main([])
    assert f"CPU cores  {os.cpu_count()}{hint}" in capsys.readouterr().out


@pytest.mark.native
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


SOURCES_CHANGED = "built from other sources than those in csrc/"


@pytest.mark.native
def test_a_library_older_than_its_sources_is_reported(tmp_path: Path) -> None:
    info = fastpose.build_info()
    csrc = Path(fastpose.__file__).parents[1] / "csrc"
    if not csrc.is_dir():
        pytest.skip("this package is not a checkout")
    assert not any(SOURCES_CHANGED in line for line in doctor._advice(info, csrc)), "install again: pip install -e ."
    changed = tmp_path / "csrc"
    shutil.copytree(csrc, changed)
    (changed / "maths" / "notes.md").write_text("not compiled")
    assert doctor._csrc_sha256(changed) == info["csrc_sha256"]
    (changed / "maths" / "affine.h").write_text("// changed")
    assert any(SOURCES_CHANGED in line for line in doctor._advice(info, changed))
    (changed / "maths" / "affine.h").unlink()
    assert any(SOURCES_CHANGED in line for line in doctor._advice(info, changed))
    assert not any(SOURCES_CHANGED in line for line in doctor._advice(info, tmp_path / "nowhere"))


@pytest.mark.native
@pytest.mark.parametrize(
    ("built", "printed"),
    [
        ({"cuda": "", "cuda_architectures": "", "no_cuda_reason": "no nvcc"}, "without CUDA kernels (no nvcc)"),
        ({"cuda": "13.0", "cuda_architectures": "80-real", "no_cuda_reason": ""}, "TORCH_CUDA_ARCH_LIST=9.0"),
        ({"cuda": "13.0", "cuda_architectures": "90-real", "no_cuda_reason": "", "csrc_sha256": ""}, SOURCES_CHANGED),
        ({"cuda": "13.0", "cuda_architectures": "90-real", "no_cuda_reason": ""}, ""),
    ],
)
def test_strict_refuses_what_does_not_serve_the_gpu(
    built: dict[str, str], printed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    csrc = Path(fastpose.__file__).parents[1] / "csrc"
    if printed == SOURCES_CHANGED and not csrc.is_dir():
        pytest.skip("this package is not a checkout")
    info = fastpose.build_info() | ({"csrc_sha256": doctor._csrc_sha256(csrc)} if csrc.is_dir() else {}) | built
    monkeypatch.setattr(_native._C, "build_info", lambda: info)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda n: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda n: "a GPU")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("cuda"))
    assert doctor.main([]) == 0
    assert doctor.main(["--strict"]) == (1 if printed else 0)
    out = capsys.readouterr().out
    assert printed in out
    assert ("\n  ! " in out) == bool(printed)


@pytest.mark.native
def test_says_what_runs_where(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a Mac, a machine whose CUDA kernels were not built, and where plain torch is asked for."""
    monkeypatch.setattr(_native, "fallback_wish", "")
    for accelerator in ("mps", "cuda"):
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device(accelerator))  # noqa: B023
        info = {"no_cuda_reason": "no nvcc"}
        monkeypatch.setattr(_native._C, "build_info", lambda: info)  # noqa: B023
        on_cpu, other = doctor._op_rows()
        assert on_cpu[1].startswith("native kernels")
        assert other == (f"ops on {accelerator}", "plain torch")
    environment = os.environ | {"FASTPOSE_FALLBACK": "1"}
    program = "import torch, fastpose\nfor _ in range(2):\n    fastpose.decode_heatmaps(torch.zeros(1, 1, 4, 4))\n"
    program += "from fastpose import doctor\nraise SystemExit(doctor.main([]))"
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.count("RuntimeWarning: FASTPOSE_FALLBACK=1") == 1
    assert "ops on cpu  plain torch" in result.stdout
    assert "FASTPOSE_FALLBACK=1: unset it" in result.stdout


def test_without_the_library_the_ops_run_in_plain_torch_and_say_so_once(tmp_path: Path) -> None:
    """A copy of the package without its library: one warning that says what to do; build_info and doctor do, too."""
    source = Path(fastpose.__file__).parent
    copy = tmp_path / "fastpose"
    for file in source.rglob("*.py"):
        target = copy / file.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    program = (
        "import torch, fastpose\n"
        f"assert fastpose.__file__.startswith({str(tmp_path)!r}), fastpose.__file__\n"
        "for value in (3.0, 4.0):\n"
        "    print(fastpose.decode_heatmaps(torch.full((1, 1, 4, 4), value))[1].item())\n"
        "try:\n    fastpose.build_info()\n"
        "except ImportError as error:\n    print(error)\n"
        "from fastpose import doctor\n"
        "raise SystemExit(doctor.main([]))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "FASTPOSE_FALLBACK"}
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 1, result.stderr
    assert result.stdout.startswith("3.0\n4.0\n")
    for printed in (result.stdout, result.stderr):
        assert printed.count("native library could not be loaded") == 1
        assert "pip install -e ." in printed
    assert result.stderr.count("RuntimeWarning") == 1
    assert "NOT LOADED" in result.stdout
