# SPDX-License-Identifier: Apache-2.0
"""Targets: maps of Gaussians, against SimpleBaselines' loop, plain and compiled torch, numba and NumPy.

`make bench` renders 32 × 16 maps of 64 × 64 with sigma 1. In SimpleBaselines' loop each joint has its stamp computed
again; here a sample has one, which saves most of the time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fastpose
from bench import cases
from bench.cases import DTYPES, HEATMAP, JOINTS, ON_CPU, Array, Bench, Case, Joints, Op, Peer, Run, compare, prange
from bench.launches import F64, I32, I64, KINDS, SAMPLES, KernelWork, Memory, P, bits, struct, values
from fastpose import reference
from fastpose.ops.render_heatmaps import ENCODINGS, plain_render_heatmaps
from tests.helpers import upstream


@dataclass(frozen=True)
class Work:
    joints: list[Joints]
    size: tuple[int, int]
    dtype: torch.dtype
    sigma: float = 1.0
    encoding: str = "msra"

    def defined(self, n: int, rows: list[int]) -> tuple[Array, Array]:
        """The maps and weights of some samples by the op's definition, in float64."""
        one, options = self.joints[n], {"sigma": self.sigma, "encoding": self.encoding}
        return reference.render_heatmaps(one.keypoints[rows], one.visible[rows], self.size, dtype=np.float64, **options)


def make(work: Work, **about: Any) -> Case:
    batch, joints = work.joints[0].visible.shape

    def own(n: int) -> tuple[Tensor, Tensor]:
        one, options = work.joints[n], {"sigma": work.sigma, "encoding": work.encoding}
        return fastpose.render_heatmaps(one.keypoints, one.visible, work.size, dtype=work.dtype, **options)

    def check(outputs: tuple[Any, Any]) -> None:
        rows = cases.some(batch)
        expected = work.defined(0, rows)
        compare("heatmaps", outputs[0][rows], expected[0], cases.ROUNDING[work.dtype])
        compare("weights", outputs[1][rows], expected[1], 0.0)

    # Besides the maps: weights and visible, 4 bytes each, and the keypoints.
    moved = batch * joints * (work.size[0] * work.size[1] * work.dtype.itemsize + 16)
    return Case("render_heatmaps", work, own, check, moved, work.dtype, batch, len(work.joints), **about)


def case(
    device: torch.device,
    batch: int,
    cache_bytes: int = 0,
    *,
    dtype: torch.dtype,
    size: tuple[int, int] = HEATMAP,
    sigma: float = 1.0,
    encoding: str = "msra",
    detail: str = "",
) -> Case:
    sets = cases.input_sets(batch * JOINTS * size[0] * size[1] * dtype.itemsize, cache_bytes)
    joints = [Joints.random(device, batch, size, n) for n in range(sets)]
    return make(Work(joints, size, dtype, sigma, encoding), detail=detail)


def cpu_case() -> Case:
    return make(Work([Joints.all_on_the_map()], HEATMAP, torch.float32), inputs="joints anywhere on the map")


# ---- peers -----------------------------------------------------------------------------------------------------------


def simple_baselines(work: Work) -> Run:
    points, visible = work.joints[0].keypoints.double().numpy(), work.joints[0].visible.numpy()
    height, width = work.size

    def run(n: int) -> Tensor:
        samples = [upstream.target(p, v, width, height, 1)[0] for p, v in zip(points, visible, strict=True)]
        return torch.from_numpy(np.stack(samples))

    return run


def plain(function: Callable[..., Any], work: Work) -> Run:
    rest = (*work.size, work.sigma, ENCODINGS.index(work.encoding), work.dtype)
    return lambda n: function(work.joints[n].keypoints, work.joints[n].visible, *rest)


def pasted(keypoints: Tensor, visible: Tensor, height: int, width: int, *rest: Any) -> Tensor:
    """Maps of msra, sigma 1, without weights: zeros, to which each joint's stamp of 7 × 7 is added."""
    offset = torch.arange(-3, 4)
    center = (keypoints + 0.5).to(torch.int64)
    x, y = center[..., 0, None, None] + offset, center[..., 1, None, None] + offset[:, None]
    drawn = (x >= 0) & (y >= 0) & (x < width) & (y < height) & (visible > 0.5)[..., None, None]
    stamp = torch.exp(-0.5 * (offset**2 + offset[:, None] ** 2))
    place, value = torch.where(drawn, y * width + x, 0), torch.where(drawn, stamp, 0.0)
    maps = torch.zeros(*visible.shape, height * width)
    return maps.scatter_add_(2, place.flatten(2), value.flatten(2)).unflatten(2, (height, width))


@cases.in_numba
def numba_loop(keypoints: Array, visible: Array, sigma: float, out: Array, weights: Array) -> None:
    """msra targets into `out`, float32 [B, K, h, w], and their weights."""
    batch, joints, height, width = out.shape
    reach = int(3 * sigma)
    factor = np.empty(2 * reach + 1, np.float32)
    for i in range(2 * reach + 1):
        factor[i] = math.exp(-((i - reach) ** 2) / (2 * sigma * sigma))
    for k in prange(batch * joints):
        b, j = k // joints, k % joints
        out[b, j] = 0
        left, top = int(keypoints[b, j, 0] + 0.5) - reach, int(keypoints[b, j, 1] + 0.5) - reach
        right, bottom = left + 2 * reach + 1, top + 2 * reach + 1
        inside = left < width and top < height and right >= 0 and bottom >= 0
        weights[b, j] = visible[b, j] if inside else 0
        if inside and visible[b, j] > 0.5:
            for y in range(max(0, top), min(bottom, height)):
                for x in range(max(0, left), min(right, width)):
                    out[b, j, y, x] = factor[y - top] * factor[x - left]


def numba(work: Work) -> Run:
    points, visible = work.joints[0].keypoints.numpy(), work.joints[0].visible.numpy()

    def run(n: int) -> tuple[Array, Array]:
        out, weights = np.empty((*visible.shape, *work.size), np.float32), np.empty(visible.shape, np.float32)
        numba_loop(points, visible, work.sigma, out, weights)
        return out, weights

    return run


def numpy_reference(work: Work) -> Run:
    points, visible = work.joints[0].keypoints.numpy(), work.joints[0].visible.numpy()
    return lambda n: reference.render_heatmaps(points, visible, work.size)


def zeros(work: Work) -> Run:
    one = work.joints[0].visible
    return lambda n: torch.zeros(*one.shape, *work.size, dtype=work.dtype, device=one.device)


PEERS = {
    "simple_baselines": Peer(simple_baselines, devices=ON_CPU),
    "plain_torch[products]": Peer(partial(plain, plain_render_heatmaps)),
    "plain_torch[pasted]": Peer(partial(plain, pasted), devices=ON_CPU),
    "torch_compile[products]": Peer(lambda work: plain(cases.compiled(plain_render_heatmaps), work)),
    "torch_compile[pasted]": Peer(lambda work: plain(cases.compiled(pasted), work), devices=ON_CPU),
    "numba": Peer(numba, devices=ON_CPU),
    "numpy_reference": Peer(numpy_reference, devices=ON_CPU),
    "limit_torch_zeros": Peer(zeros, None),
}

# ---- what the kernel is counted on -----------------------------------------------------------------------------------

# fmt: off
TargetSpec = struct("TargetSpec", inverse_sigma=F64, radius=F64, encoding=I32, height=I32, width=I32)
RenderHeatmapsParams = struct(
    "RenderHeatmapsParams", keypoints=P, visible=P, heatmaps=P, weights=P, kind=I32, maps=I64, spec=TargetSpec
)
# fmt: on


def msra() -> Any:
    return TargetSpec(1.0, 3.0, 0, *HEATMAP)  # sigma 1


def kernel(dtype: torch.dtype) -> KernelWork:
    one = case(cases.CPU, SAMPLES, dtype=dtype)
    joints, memory, p = one.work.joints[0], Memory(), RenderHeatmapsParams()
    p.keypoints, p.visible = memory.add(joints.keypoints.numpy()), memory.add(joints.visible.numpy())
    maps = torch.full((SAMPLES, JOINTS, *HEATMAP), float("nan"), dtype=dtype)
    weights = torch.full((SAMPLES, JOINTS), float("nan"))
    p.heatmaps, p.weights = memory.add(bits(maps)), memory.add(weights.numpy())
    p.kind, p.maps, p.spec = KINDS[dtype], SAMPLES * JOINTS, msra()
    return cases.work_on_maps(
        one,
        "launch_render_heatmaps",
        p,
        memory,
        lambda launches: (values(memory, p.heatmaps, maps), values(memory, p.weights, weights)),
    )


OP = Op(
    "render_heatmaps",
    benches=(Bench("render_heatmaps", "render_heatmaps", cpu_case, PEERS),),
    case=case,
    peers=PEERS,
    goals=[{"dtype": dtype} for dtype in DTYPES],
    extra=[
        {"dtype": torch.float32, "encoding": "unbiased", "detail": "unbiased: drawn over the whole map"},
        {"dtype": torch.float32, "sigma": 2.0, "detail": "sigma 2"},
        {"dtype": torch.float32, "size": (96, 72), "sigma": 3.0, "detail": "96 x 72 maps, sigma 3"},
    ],
    kernels={f"render_heatmaps, {cases.dtype_name(dtype)}": partial(kernel, dtype) for dtype in DTYPES},
)
