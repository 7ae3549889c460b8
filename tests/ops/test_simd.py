# SPDX-License-Identifier: Apache-2.0
"""The instruction sets that the CPU loops choose from: same bits from each, the level reported, a wrong one refused.

The level is read once per process. So one process per level runs the same fixed cases, writes down what came out, and
the files are compared bit for bit.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fastpose
from fastpose import doctor

pytestmark = pytest.mark.native
LEVELS = ("plain", "avx2", "avx512")
HALVES = (torch.float16, torch.bfloat16)
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "dense": torch.clone,
    "strided": lambda maps: maps.mT.contiguous().mT,
    "channels_last": lambda maps: maps.contiguous(memory_format=torch.channels_last),
}


def run_under(level: str | None, program: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "FASTPOSE_SIMD"}
    if level is not None:
        environment["FASTPOSE_SIMD"] = level
    root = Path(fastpose.__file__).resolve().parents[1]
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=root, capture_output=True, text=True, check=False
    )


def matrices(count: int, generator: torch.Generator) -> Tensor:
    """Crop-to-image maps of every kind: turned, mirrored, shrinking, enlarging, flat, half outside, not finite."""
    m = torch.randn(count, 2, 3, generator=generator)
    m[:, :, 2] = m[:, :, 2] * 30 + 20
    m[0] = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])  # pixel for pixel, from corner to corner
    m[1] = torch.tensor([[-1.0, 0.0, 60.0], [0.0, 1.0, 0.0]])  # mirrored
    m[2] = torch.tensor([[0.01, 0.0, 5.0], [0.0, 0.01, 6.0]])  # all from one neighbourhood
    m[3] = torch.tensor([[40.0, 3.0, -90.0], [-3.0, 40.0, -80.0]])  # pixels far apart, most outside
    m[4] = 0.0  # a single point, the corner
    m[5] = torch.tensor([[1e30, 0.0, 0.0], [0.0, 1e30, 0.0]])
    m[6, 0, 0], m[7, 1, 2], m[8, 0, 1], m[9, 1, 0] = float("nan"), float("inf"), float("-inf"), float("inf")
    m[10] = torch.tensor([[0.0, 1.0, 0.25], [1.0, 0.0, 0.75]])  # a quarter turn
    m[11] = torch.tensor([[0.3, 0.0, -1.0], [0.0, 0.3, -1.0]])  # begins a pixel outside
    m[12] = torch.tensor([[0.5, 0.0, 1e6], [0.0, 0.5, 3.0]])  # nowhere near the image
    return m


def crop_cases(generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    shapes = [(50, 70), (3, 2), (1, 1), (200, 333), (2, 3), (64, 4)]
    images = [torch.randint(0, 256, (*s, 3), dtype=torch.uint8, generator=generator) for s in shapes]
    ragged = fastpose.ImageBatch.from_list([image.numpy() for image in images])
    colors = torch.randn(96, 3, 4, generator=generator) / 64
    types = (torch.float32, *HALVES, torch.uint8)
    layouts = (torch.contiguous_format, torch.channels_last)
    for size, dtype, layout in product([(32, 32), (17, 301), (5, 1)], types, layouts):
        m = matrices(96, generator)
        options = {"fill": 114.0, "dtype": dtype, "memory_format": layout}
        if dtype != torch.uint8:
            options["color"] = colors
        index = torch.arange(96) % len(images)
        yield f"crop {size} {dtype} {layout}", fastpose.affine_crop(ragged, m, size, image_index=index, **options)
        if dtype != torch.uint8:
            options["resample"] = "bicubic"
            bicubic = fastpose.affine_crop(ragged, m, size, image_index=index, **options)
            yield f"bicubic crop {size} {dtype} {layout}", bicubic
    window = torch.randint(0, 256, (40, 90, 3), dtype=torch.uint8, generator=generator)[3:37, 5:81]
    yield "crop of a window", fastpose.affine_crop(window, matrices(96, generator), (24, 130))


def map_cases(generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    keypoints = torch.rand(6, 5, 2, generator=generator) * 90 - 10
    keypoints[0, 0], keypoints[0, 1, 0], keypoints[0, 2] = float("nan"), float("inf"), 1e20
    visible = (torch.rand(6, 5, generator=generator) > 0.2).float()
    pairs = [(0, 1), (3, 4)]
    for size, dtype in product([(64, 64), (33, 47), (5, 1030), (1, 1)], (torch.float32, *HALVES, torch.float64)):
        for encoding, sigma in product(("msra", "unbiased", "udp"), (1.0, 2.5)):
            name = f"{size} {dtype} {encoding} {sigma}"
            drawn, weights = fastpose.render_heatmaps(
                keypoints, visible, size, sigma=sigma, encoding=encoding, dtype=dtype
            )
            yield f"maps {name}", drawn
            yield f"weights {name}", weights
            noisy = drawn + (torch.randn(drawn.shape, generator=generator) * 0.1).to(dtype)
            for layout, laid_out in LAYOUTS.items():
                pred = laid_out(noisy).detach().requires_grad_()
                loss = fastpose.heatmap_mse_loss(pred, keypoints, visible, sigma=sigma, encoding=encoding)
                loss.backward()
                yield f"loss {layout} {name}", loss.detach()
                yield f"gradient {layout} {name}", pred.grad
                options = {"sigma": sigma, "encoding": encoding, "hard_joints": 2}
                yield f"hard {layout} {name}", fastpose.heatmap_mse_loss(pred.detach(), keypoints, visible, **options)
        levels = torch.randint(-2, 3, (6, 5, *size), generator=generator).to(dtype)  # ties everywhere
        levels[0, 0], levels[0, 1], levels[0, 2] = float("nan"), float("-inf"), -0.0
        levels[1, 0, :, ::2] = float("nan")
        levels[1, 1].fill_(float("-inf"))[-1, -1] = float("nan")
        levels[1, 2].fill_(-0.0)[size[0] // 2] = 0.0
        levels[1, 3].fill_(float("nan"))[-1, -1] = float("-inf")
        levels[2, 0, -1, -1] = float("inf")
        rest = torch.randn(levels.shape, generator=generator).to(dtype)
        for heatmaps, other in ((levels, rest), (rest, levels), (rest, rest.flip(3))):
            for layout, laid_out in LAYOUTS.items():
                a, b = laid_out(heatmaps), laid_out(other)
                name = f"{layout} {size} {dtype}"
                for shift in (False, True):
                    options = {"flipped": b, "flip_pairs": pairs, "flip_shift": shift}
                    yield (
                        f"merged {shift} {name}",
                        torch.cat([t.flatten() for t in fastpose.decode_heatmaps(a, **options)]),
                    )
                for refine in ("quarter", "dark") if heatmaps is rest else ("quarter", "dark_udp"):
                    decoded = fastpose.decode_heatmaps(a, refine=refine)
                    yield f"{refine} {name}", torch.cat([t.flatten() for t in decoded])


def vector_cases(generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    keypoints = torch.rand(6, 5, 2, generator=generator) * 150 - 10
    visible = (torch.rand(6, 5, generator=generator) > 0.2).float()
    for dtype, softmax in product((torch.float32, *HALVES, torch.float64), (False, True)):
        preds = [torch.randn(6, 5, n, generator=generator).to(dtype).requires_grad_() for n in (93, 257)]
        loss = fastpose.simcc_loss(*preds, keypoints, visible, label_softmax=softmax)
        loss.backward()
        yield f"simcc_loss {dtype} {softmax}", loss.detach()
        yield from ((f"its gradient {dtype} {softmax}", pred.grad) for pred in preds)
        own, other = ([torch.randn(6, 5, n, generator=generator).to(dtype) for n in (93, 257)] for _ in range(2))
        mirrored = {"flipped_x": other[0], "flipped_y": other[1], "flip_pairs": [(0, 1), (3, 4)]}
        for refine, options in product(("none", "dark"), ({}, mirrored)):
            decoded = fastpose.decode_simcc(*own, refine=refine, **options)
            yield f"decode_simcc {refine} {dtype}", torch.cat([t.flatten() for t in decoded])


def write_results(path: str) -> None:
    """What the process of one level does: all cases, in order, their bytes."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(4)
    results = [
        (name, t.contiguous().view(torch.uint8) if t.dim() else t.view(1).view(torch.uint8))
        for cases in (crop_cases, map_cases, vector_cases)
        for name, t in cases(generator)
    ]
    torch.save({"simd": fastpose.build_info()["simd"], "results": results}, path)


def level_of_this_machine() -> str:
    result = run_under(None, "import fastpose; print(fastpose.build_info()['simd'])")
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_every_level_gives_the_same_bits(tmp_path: Path) -> None:
    best = level_of_this_machine()
    available = LEVELS[: LEVELS.index(best) + 1]
    for level in LEVELS[len(available) :]:
        result = run_under(level, "import fastpose; fastpose.build_info()")
        assert f"FASTPOSE_SIMD={level}, but the best this machine has is {best}" in result.stderr
    outputs = {}
    for level in available:
        path = tmp_path / f"{level}.pt"
        program = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
        program += f"from tests.ops.test_simd import write_results; write_results({str(path)!r})"
        result = run_under(level, program)
        assert result.returncode == 0, result.stderr
        outputs[level] = torch.load(path, weights_only=True)
        assert outputs[level]["simd"] == level
    plain = outputs["plain"]["results"]
    for level in available[1:]:
        assert len(outputs[level]["results"]) == len(plain)
        for (name, expected), (_, actual) in zip(plain, outputs[level]["results"], strict=True):
            assert torch.equal(expected, actual), f"{level}, {name}: {int((expected != actual).sum())} bytes differ"


def test_the_level_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert fastpose.build_info()["simd"] in LEVELS
    assert doctor.main([]) == 0
    assert f"SIMD  {fastpose.build_info()['simd']}" in capsys.readouterr().out


def test_an_unknown_level_is_an_error_of_every_op_and_of_the_doctor() -> None:
    program = (
        "import torch, fastpose\n"
        "for attempt in range(2):\n"
        "    try:\n        fastpose.decode_heatmaps(torch.zeros(1, 1, 4, 4))\n"
        "    except RuntimeError as error:\n        print(error)\n"
        "from fastpose import doctor\n"
        "raise SystemExit(doctor.main([]))\n"
    )
    result = run_under("sse9", program)
    message = "FASTPOSE_SIMD must be plain, avx2, avx512 or unset, got 'sse9'"
    assert result.stdout.count(message) == 3, result.stdout + result.stderr
    assert result.returncode == 1
