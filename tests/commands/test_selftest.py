# SPDX-License-Identifier: Apache-2.0
"""`fastpose doctor --test`: right ops pass, a wrong number in any result of any op is noticed and named."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import fastpose
from fastpose import doctor, selftest
from fastpose.ops import _native, heatmap_mse_loss, render_heatmaps
from fastpose.selftest import CHECKED, TESTS, Case, OpTest, PlainTorch

CPU = torch.device("cpu")
NATIVE = _native.load_error is None


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """As few calls and samples as there can be."""
    monkeypatch.setattr(selftest, "SECONDS", 0.0)
    monkeypatch.setattr(selftest, "TIMED", {"cpu": 1, "plain": 1})


def lines(text: str, kernels: str) -> dict[str, str]:
    """What is printed of each op on a device whose title has `kernels`, by the op's name."""
    _, part = text.split(f"{kernels}, one thread\n")
    found = {}
    for line in part.splitlines():
        if not line.startswith("    "):
            break
        found[line[:33].strip()] = line[33:]
    return found


@pytest.mark.native
def test_every_op_passes_on_the_cpu_natively_and_in_plain_torch(quick, capsys) -> None:
    threads = torch.get_num_threads()
    assert doctor.main(["--test"]) == 0
    out = capsys.readouterr().out
    assert "native library  loaded" in out
    assert f"all {len(TESTS) * len(list(selftest.legs()))} tests passed" in out
    for kernels in ("native kernels", "plain torch"):
        printed = lines(out, f"cpu, {kernels}")
        assert list(printed) == [test.name for test in TESTS]
        for name, line in printed.items():
            assert line.startswith("ok  "), name
            assert "/s" in line, name
    assert ("%" in lines(out, "native kernels")["render_heatmaps"]) > ("%" in lines(out, "plain torch")["swap_pairs"])
    assert torch.get_num_threads() == threads


def test_without_being_asked_for_nothing_is_tested(capsys) -> None:
    doctor.main([])
    assert "render_heatmaps" not in capsys.readouterr().out


def test_every_op_is_tested() -> None:
    plain = {name.removeprefix("plain_") for name in PlainTorch().plain}
    kernels = {name for name in plain if not name.endswith("_backward")} - {"heatmap_mse_losses"}
    assert {"affine_crop", "simcc_loss"} < kernels
    assert {test.name.split()[0] for test in TESTS} == kernels | {"soft_argmax"}
    for test in TESTS:
        case = test.make(CPU, CHECKED)
        assert len(case.names) == len(case.compared(case.run())) == len(case.define()), test.name
        assert case.units > 0
        assert case.moved > 0


@pytest.mark.parametrize("test", TESTS, ids=lambda test: test.name)
def test_one_wrong_number_in_any_result_is_noticed(test: OpTest) -> None:
    case = test.make(CPU, 2)
    right = [np.array(each, np.float64) for each in case.compared(case.run())]
    defined = case.define()
    assert selftest._differences(case, right, defined) == ""
    for position, name in enumerate(case.names):
        for change in (0.01, np.nan):
            wrong = [each.copy() for each in right]
            at = tuple(side // 2 for side in wrong[position].shape)
            wrong[position][at] = 1.01 * wrong[position][at] + change if not case.relative else 1.01 * change
            assert selftest._differences(case, wrong, defined).startswith(f"{name} by "), (name, change)
    if right[0].shape:
        assert "should be" in selftest._differences(case, [right[0][:-1], *right[1:]], defined)


@pytest.mark.parametrize(
    ("module", "name", "op"),
    [
        (render_heatmaps, "plain_render_heatmaps", "render_heatmaps"),
        (heatmap_mse_loss, "plain_heatmap_mse_loss_backward", "heatmap_mse_loss"),
    ],
)
@pytest.mark.native
def test_an_op_that_returns_wrong_numbers_on_one_device_is_named(
    module: ModuleType, name: str, op: str, quick, capsys, monkeypatch
) -> None:
    """The fallback is made wrong; natively the op is right."""
    plain = getattr(module, name)

    def wrong(*arguments: Any) -> Any:
        right = plain(*arguments)
        return (right[0] * 1.01, *right[1:]) if isinstance(right, tuple) else right * 1.01

    monkeypatch.setattr(module, name, wrong)
    monkeypatch.setattr(selftest, "TESTS", [test for test in TESTS if test.name in (op, "swap_pairs")])
    assert doctor.main(["--test"]) == 1
    out = capsys.readouterr().out
    assert lines(out, "native kernels")[op].startswith("ok  ")
    what = {"render_heatmaps": "heatmaps by 0.01 in ", "heatmap_mse_loss": "gradient by 0.01, 0.001 is allowed"}
    assert lines(out, "plain torch")[op].startswith(f"DIFFERS: {what[op]}")
    assert lines(out, "plain torch")["swap_pairs"].startswith("ok  ")
    assert "1 of 4 tests failed" in out


def test_a_public_op_that_is_wrong_or_raises_ends_with_exit_code_1(quick, capsys, monkeypatch) -> None:
    swap = fastpose.swap_pairs

    def wrong(points: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return points, swap(points, *rest)[1]

    def fails(*_: Any) -> None:
        raise RuntimeError("no kernel image is available\nand more")

    monkeypatch.setattr(selftest, "TESTS", [test for test in TESTS if test.name == "swap_pairs"])
    for function, printed in ((wrong, "DIFFERS: points by "), (fails, "FAILS: RuntimeError: no kernel image is ava")):
        monkeypatch.setattr(fastpose, "swap_pairs", function)
        assert doctor.main(["--test"]) == 1
        out = capsys.readouterr().out
        assert f"swap_pairs{'':19}{printed}" in out
        assert "and more" not in out


def test_a_library_that_cannot_be_loaded_is_reported_and_plain_torch_tested(tmp_path: Path) -> None:
    """A copy of the package whose library is no library."""
    source = Path(fastpose.__file__).parent
    for file in source.rglob("*.py"):
        target = tmp_path / "fastpose" / file.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    (tmp_path / "fastpose" / "_C.abi3.so").write_bytes(b"not a library")
    program = "from fastpose import doctor, selftest\nselftest.SECONDS = 0.0\nselftest.TIMED = {'plain': 1}\n"
    program += "raise SystemExit(doctor.main(['--test']))"
    environment = {name: value for name, value in os.environ.items() if name not in ("FASTPOSE_FALLBACK", "PYTHONPATH")}
    command = [sys.executable, "-c", program]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 1, ran.stderr
    assert "native library  NOT LOADED" in ran.stdout
    assert "Install again in this environment" in ran.stdout
    assert "cpu, native kernels" not in ran.stdout
    assert f"all {len(TESTS)} tests passed" in ran.stdout
    assert ran.stderr == ""


def test_each_accelerator_has_its_part(monkeypatch) -> None:
    monkeypatch.setattr(_native, "why_fallback", lambda kind: None if kind == "cuda" else "no library")
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    for kind, key, kernels in (("cuda", "cuda", "native kernels"), ("xpu", "", "plain torch")):
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda kind=kind, **_: torch.device(kind))
        cpu, *others = selftest.legs()
        assert (cpu.title, cpu.plain) == ("cpu, plain torch, one thread", False)
        assert [(each.title, each.kernels) for each in others] == [(f"{kind}:{n}, {kernels}", key) for n in range(2)]


@pytest.mark.parametrize(
    ("own", "copy", "usual", "printed"),
    [
        (1e-3, 2e-4, 30, " 32,000 maps/s                 2.0 GB/s   20 % (30 %)"),
        (1e-3, 2e-4, 70, " 32,000 maps/s                 2.0 GB/s   20 % (70 %, SLOW)"),
        (1e-5, 2e-6, 20, "    3.2 million maps/s        200.0 GB/s   20 % (20 %)"),
        (1.0, 0.1, None, "   32.0 maps/s"),
    ],
)
def test_a_speed_is_printed_beside_what_is_usual(own: float, copy: float, usual: int | None, printed: str) -> None:
    case = Case(list, list, {}, 32, "maps", 2_000_000)
    assert selftest._in_words(case, own, copy, usual).split() == printed.split()


def test_plain_torch_runs_the_ops_and_nothing_else_changes() -> None:
    points, visible = torch.full((1, 1, 2), 3.0), torch.ones(1, 1)
    calls: list[str] = []
    mode = PlainTorch()
    assert all(inspect.isfunction(each) for each in mode.plain.values())
    plain = mode.plain["plain_render_heatmaps"]
    mode.plain["plain_render_heatmaps"] = lambda *arguments: calls.append("plain") or plain(*arguments)
    with mode:
        inside = fastpose.render_heatmaps(points, visible, (8, 8))[0]
        assert (torch.ones(2) + 1).tolist() == [2.0, 2.0]
    torch.testing.assert_close(inside, fastpose.render_heatmaps(points, visible, (8, 8))[0])
    assert calls == ["plain"]


@pytest.mark.cuda
def test_every_op_passes_on_the_gpu(capsys) -> None:
    doctor.main(["--test"])
    out = capsys.readouterr().out
    assert "cuda:0, " in out
    assert "tests passed" in out
