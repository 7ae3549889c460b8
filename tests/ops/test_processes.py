# SPDX-License-Identifier: Apache-2.0
"""The ops from many threads, forked and spawned processes, while signals arrive, at the interpreter's end, and under
the modes that torch's users run in: the same bits everywhere. What could hang runs in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fastpose

ROOT = Path(fastpose.__file__).resolve().parents[1]

# Every op once on inputs that give work to several threads, as one list of tensors.
EVERY_OP = """
import torch, fastpose
def every_op():
    generator = torch.Generator().manual_seed(0)
    center, flip = torch.rand(64, 2, generator=generator) * 90, torch.arange(64) % 3 == 0
    matrix = fastpose.crop_to_image_matrix(center, 0.3, 20.0, (24, 24), flip=flip)
    pixels = torch.randint(0, 256, (64, 90, 90, 3), generator=generator, dtype=torch.uint8)
    crops = fastpose.affine_crop(pixels, matrix, (48, 48))
    points = fastpose.transform_points(center[:, None].expand(64, 16, 2), matrix, inverse=True)
    points, visible = fastpose.swap_pairs(points, torch.ones(64, 16), flip, [(0, 1)])
    maps, weights = fastpose.render_heatmaps(points, visible, (24, 24), sigma=2.0)
    pred = (maps + 0.1 * torch.rand(maps.shape, generator=generator)).requires_grad_(torch.is_grad_enabled())
    loss = fastpose.heatmap_mse_loss(pred, points + 0.5, visible)
    grads = torch.autograd.grad(loss, pred) if pred.requires_grad else ()
    decoded = fastpose.decode_heatmaps(pred, refine="dark", flipped=pred.flip(3), flip_pairs=[(0, 1)])
    means = fastpose.soft_argmax(pred.detach(), beta=10.0)
    return [matrix, crops, points, visible, maps, weights, loss.detach(), *grads, *decoded, *means]
"""
namespace: dict[str, object] = {}
exec(EVERY_OP, namespace)


def every_op() -> list[Tensor]:
    return namespace["every_op"]()  # type: ignore[operator, no-any-return]


def same_bits(got: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def python(program: str) -> str:
    """What a new interpreter prints that runs `program` after EVERY_OP; an error if it hangs, fails or crashes."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", EVERY_OP + textwrap.dedent(program)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, f"exit code {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout


def test_eight_threads_at_once_give_the_bits_of_one() -> None:
    expected = every_op()
    with ThreadPoolExecutor(8) as pool:
        assert all(same_bits(got, expected) for got in pool.map(lambda _: every_op(), range(24)))


def test_modes_of_torch_change_no_bit() -> None:
    with torch.no_grad():
        expected = every_op()
    with torch.inference_mode():
        assert same_bits(every_op(), expected)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert same_bits(every_op(), expected)
    with torch.inference_mode(), torch.autocast("cpu", torch.float16):
        assert same_bits(every_op(), expected)


def test_the_number_of_torch_s_threads_changes_no_bit() -> None:
    before, expected = torch.get_num_threads(), every_op()
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            assert same_bits(every_op(), expected), threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_anomaly_mode_changes_no_bit_and_says_where_the_loss_was_that_is_not_a_number() -> None:
    expected = every_op()
    points, visible = torch.zeros(2, 3, 2), torch.ones(2, 3)
    pred = torch.full((2, 3, 8, 8), torch.nan, requires_grad=True)
    with torch.autograd.detect_anomaly():
        assert same_bits(every_op(), expected)
        loss = fastpose.heatmap_mse_loss(pred, points, visible)
        with pytest.warns(UserWarning, match="in heatmap_mse_loss"), pytest.raises(RuntimeError, match="nan values"):
            loss.backward()


@pytest.mark.parametrize(("method", "workers"), [("fork", 2), ("forkserver", 1), ("spawn", 1)])
def test_a_loader_s_workers_compute_the_same(tmp_path: Path, method: str, workers: int) -> None:
    """torch gives each worker one thread. One that is forked begins while torch's threads exist, but not in it."""
    (tmp_path / "loads.py").write_text(
        EVERY_OP
        + textwrap.dedent("""
            import sys
            from torch.utils.data import DataLoader, Dataset
            class Results(Dataset):
                def __len__(self): return 2
                def __getitem__(self, n): return [tensor.numpy().tobytes() for tensor in every_op()]
            if __name__ == "__main__":
                torch.set_num_threads(2)
                expected, options = Results()[0], {"multiprocessing_context": sys.argv[1], "timeout": 100}
                loader = DataLoader(Results(), batch_size=None, num_workers=int(sys.argv[2]), **options)
                print([got == expected for got in loader], Results()[0] == expected)
        """)
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(tmp_path / "loads.py"), method, str(workers)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.stdout.strip() == "[True, True] True", done.stderr


def test_signals_that_arrive_during_ops_neither_stop_nor_change_them() -> None:
    out = python("""
        import signal
        expected, arrived = every_op(), []
        signal.signal(signal.SIGALRM, lambda *_: arrived.append(1))
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        same = all(all(map(torch.equal, every_op(), expected)) for _ in range(20))
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(same, len(arrived) > 0)
    """)
    assert out.split() == ["True", "True"]


@pytest.mark.slow
def test_an_interrupt_ends_between_two_ops_and_the_next_call_is_none_the_worse() -> None:
    out = python("""
        import signal
        expected = every_op()
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        for _ in range(10):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.002)  # where it is caught, however busy the machine is
                while True:
                    every_op()
            except KeyboardInterrupt:
                pass
        print(all(map(torch.equal, every_op(), expected)))
    """)
    assert out.split() == ["True"]


def test_ops_run_while_the_interpreter_ends() -> None:
    """In a handler of atexit, and in threads that Python waits for. (Daemon threads inside torch's own operations abort
    the process when the interpreter ends; so do those inside these.)"""
    out = python("""
        import atexit, threading, time
        expected, end = every_op(), threading.main_thread()
        same = lambda: all(map(torch.equal, every_op(), expected))
        atexit.register(lambda: print("at exit", same(), flush=True))
        def until_the_end():
            while end.is_alive():
                every_op()
            print("thread", same(), flush=True)
        threading.Thread(target=until_the_end).start()
        every_op()
    """)
    assert out.splitlines() == ["thread True", "at exit True"]
