# SPDX-License-Identifier: Apache-2.0
"""The ops do not hold Python's lock while they compute: other threads go on.

A thread counts all the while and writes each beat, 0 and 1 by turns, to two places of an op's input in one call. What
the op reads first and last is then of the same beat, unless the thread has run in between: while the op computed. So a
result that belongs to neither beat shows that the lock was free, and no clock is needed.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

import fastpose

TRIES = 100  # calls, of which a few are enough


def runs_beside(call: Callable[[], Sequence[Tensor]], read: Tensor) -> bool:
    """Whether a thread of Python's runs while `call` reads the tensor `read`, from its begin to its end."""
    flat = read.detach().numpy().reshape(-1)
    places = flat[len(flat) // 8 :: len(flat) * 3 // 4][:2]
    of_one_beat = []
    for beat in (0, 1):
        places.fill(beat)
        of_one_beat.append([result.clone() for result in call()])
    assert not all(map(torch.equal, *of_one_beat))
    done = threading.Event()

    def count() -> None:
        beats = 0
        while not done.is_set():
            beats += 1
            places.fill(beats % 2)  # does not let go of the lock between the two
            time.sleep(0)  # lets go of it

    counting = threading.Thread(target=count)
    counting.start()
    try:
        for _ in range(TRIES):
            got = call()
            if not any(all(map(torch.equal, got, one)) for one in of_one_beat):
                return True
        return False
    finally:
        done.set()
        counting.join()


@pytest.fixture(scope="module")
def calls() -> dict[str, tuple[Callable[[], Sequence[Tensor]], Tensor]]:
    """What to call of each op, and what that reads."""
    pixels = torch.zeros(64, 192, 192, 3, dtype=torch.uint8)
    matrix = fastpose.crop_to_image_matrix(torch.full((64, 2), 95.5), 192 / 200, 0.0, (192, 192))
    points, visible = torch.zeros(64, 16, 2), torch.ones(64, 16)
    maps = torch.zeros(64, 16, 64, 64, requires_grad=True)
    loss = fastpose.heatmap_mse_loss(maps, points, visible)
    many_points, many_visible, flip = torch.zeros(40_000, 16, 2), torch.ones(40_000, 16), torch.ones(40_000).bool()
    centers, matrices = torch.zeros(200_000, 2), torch.eye(3)[:2].expand(40_000, 2, 3).contiguous()
    return {
        "affine_crop": (lambda: [fastpose.affine_crop(pixels, matrix, (192, 192))], pixels),
        "render_heatmaps": (lambda: fastpose.render_heatmaps(points, visible, (96, 96), sigma=2.0), points),
        "decode_heatmaps": (lambda: fastpose.decode_heatmaps(maps.detach(), refine="dark"), maps),
        "heatmap_mse_loss": (lambda: [fastpose.heatmap_mse_loss(maps.detach(), points, visible)], maps),
        "its backward": (lambda: torch.autograd.grad(loss, maps, retain_graph=True), maps),
        "transform_points": (lambda: [fastpose.transform_points(many_points, matrices)], many_points),
        "swap_pairs": (lambda: fastpose.swap_pairs(many_points, many_visible, flip, [(0, 1)]), many_points),
        "crop_to_image_matrix": (lambda: [fastpose.crop_to_image_matrix(centers, 1.0, 20.0, (64, 64))], centers),
    }


@pytest.mark.parametrize(
    "op",
    [
        *("affine_crop", "render_heatmaps", "decode_heatmaps", "heatmap_mse_loss", "its backward"),
        *("transform_points", "swap_pairs", "crop_to_image_matrix"),
    ],
)
def test_other_threads_run_while_an_op_computes(calls, op: str) -> None:
    assert runs_beside(*calls[op])


@pytest.mark.parametrize(("library", "free"), [(ctypes.CDLL, True), (ctypes.PyDLL, False)])
def test_the_heartbeat_is_only_seen_in_calls_that_let_go_of_the_lock(library: type[ctypes.CDLL], free: bool) -> None:
    """ctypes lets go of it for functions of a CDLL, and holds it for those of a PyDLL."""
    copy = library(None).memcpy
    copy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    source, copied = np.zeros(8 << 20, np.uint8), np.zeros(8 << 20, np.uint8)

    def call() -> list[Tensor]:
        copy(copied.ctypes.data, source.ctypes.data, source.size)
        return [torch.from_numpy(copied)]

    assert runs_beside(call, torch.from_numpy(source)) == free
