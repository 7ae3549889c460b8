# SPDX-License-Identifier: Apache-2.0
"""From maps to points on the image, against SimpleBaselines' and mmpose's loops, torch, numba, NumPy and `amax`.

`make bench` decodes 32 × 16 maps of 64 × 64 with a quarter of a pixel, and again with DARK. Peers written for speed
(numba, "two stages", "numpy vectorised") ignore what NaN would do; fastpose does not. mmpose blurs each map as a whole,
in OpenCV; the others only what the step looks at. "limit quarter" is fastpose's own decoding without that step.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

import fastpose
from bench import cases
from bench.cases import DTYPES, HEATMAP, JOINTS, ON_CPU, Array, Bench, Case, Joints, Op, Peer, Run, prange
from bench.launches import (
    BATCH,
    BOOL,
    F64,
    I32,
    I64,
    KINDS,
    SAMPLES,
    KernelWork,
    Launch,
    MapStrides,
    Memory,
    P,
    bits,
    struct,
    values,
)
from fastpose import reference
from fastpose.ops.decode_heatmaps import REFINEMENTS, plain_decode_heatmaps
from fastpose.skeletons import MPII
from tests.helpers import upstream

BLUR_KERNEL = 11
LAUNCHED = 64  # samples: 1,024 maps or more are shared among warps as those of a batch are


@dataclass(frozen=True)
class Work:
    """Maps [B, K, h, w], and of the flip test those of the mirrored images, by input set."""

    maps: list[Tensor]
    matrix: list[Tensor]
    mirrored: list[Tensor | None]
    refine: str = "quarter"
    flip: dict[str, Any] = field(default_factory=dict)  # the options of the flip test


def expected(work: Work, rows: Any) -> tuple[Array, Array]:
    """Points and scores of these samples."""
    mirrored = work.mirrored[0]
    return reference.decode_heatmaps(
        work.maps[0][rows],
        heatmap_to_image=work.matrix[0][rows].cpu().numpy(),
        flipped=None if mirrored is None else mirrored[rows],
        refine=work.refine,
        **work.flip,
    )


def compare(points: Any, scores: Any, expected_points: Array, expected_scores: Array) -> None:
    cases.compare("keypoints", points, expected_points, 1e-3)
    cases.compare("scores", scores, expected_scores, 1e-6)


def make(work: Work, **about: Any) -> Case:
    maps, mirrored = work.maps[0], work.mirrored[0]
    batch, joints, height, width = maps.shape

    def check(outputs: tuple[Any, Any]) -> None:
        rows = cases.some(batch)
        compare(outputs[0][rows], outputs[1][rows], *expected(work, rows))

    # Besides the maps: a matrix of 24 bytes per sample, a point and a score per joint.
    of_maps = height * width * maps.element_size() * (1 if mirrored is None else 2)
    moved = batch * (24 + joints * (of_maps + 12))
    return Case("decode_heatmaps", work, fastpose_s(work), check, moved, maps.dtype, batch, len(work.maps), **about)


def case(
    device: torch.device,
    batch: int,
    cache_bytes: int = 0,
    *,
    dtype: torch.dtype,
    size: tuple[int, int] = HEATMAP,
    flipped: bool = False,
    refine: str = "quarter",
    layout: str = "contiguous",
    detail: str = "",
) -> Case:
    sets = cases.input_sets(batch * JOINTS * size[0] * size[1] * dtype.itemsize * (2 if flipped else 1), cache_bytes)
    joints = [Joints.random(device, batch, size, n) for n in range(sets)]
    maps = [one.predicted(size, dtype, n, layout=layout) for n, one in enumerate(joints)]
    image_sizes = torch.tensor([[720, 1280]]).expand(batch, 2)
    matrix = [cases.random_boxes(image_sizes, size, n).to(device) for n in range(sets)]
    mirrored = [cases.noisy(one.flip(3), n + 1) if flipped else None for n, one in enumerate(maps)]
    flip = {"flip_pairs": MPII.mirror_pairs, "flip_shift": True} if flipped else {}
    return make(Work(maps, matrix, mirrored, refine, flip), layout=layout, detail=detail)


def cpu_case(refine: str) -> Case:
    joints = Joints.all_on_the_map()
    matrix = fastpose.crop_to_image_matrix(joints.keypoints[:, 0] * 10, torch.ones(cases.CPU_BATCH), 10.0, HEATMAP)
    maps = joints.predicted(HEATMAP, torch.float32, 0)
    return make(Work([maps], [matrix], [None], refine), inputs="targets under noise")


# ---- peers -----------------------------------------------------------------------------------------------------------


def fastpose_s(work: Work) -> Run:
    options = {"refine": work.refine, "blur_kernel": BLUR_KERNEL, **work.flip}
    return lambda n: fastpose.decode_heatmaps(
        work.maps[n], heatmap_to_image=work.matrix[n], flipped=work.mirrored[n], **options
    )


def channels_last(work: Work) -> Run:
    return fastpose_s(replace(work, maps=[one.contiguous(memory_format=torch.channels_last) for one in work.maps]))


def simple_baselines(work: Work) -> Run:
    maps, matrices = work.maps[0].numpy(), work.matrix[0].double().numpy()

    def run(n: int) -> Array:
        points, _ = upstream.quarter_offset(maps)
        for sample, matrix in zip(points, matrices, strict=True):
            for k in range(len(sample)):
                sample[k] = matrix @ [*sample[k], 1.0]
        return points

    return run


def numpy_vectorised(work: Work) -> Run:
    maps, matrix = work.maps[0].numpy(), work.matrix[0].numpy()
    batch, joints, height, width = maps.shape
    rows = np.arange(batch * joints)

    def run(n: int) -> tuple[Array, Array]:
        flat = maps.reshape(batch * joints, -1)
        index = flat.argmax(1)
        scores, (y, x) = flat[rows, index], np.divmod(index, width)
        points = np.stack([x, y], 1).astype(np.float32)
        r = np.flatnonzero((x > 1) & (x < width - 1) & (y > 1) & (y < height - 1))
        i = index[r]
        points[r, 0] += 0.25 * np.sign(flat[r, i + 1] - flat[r, i - 1])
        points[r, 1] += 0.25 * np.sign(flat[r, i + width] - flat[r, i - width])
        points[scores <= 0] = 0
        points = points.reshape(batch, joints, 2) @ matrix[:, :, :2].transpose(0, 2, 1) + matrix[:, None, :, 2]
        return points, scores.reshape(batch, joints)

    return run


def plain(function: Callable[..., Any], work: Work) -> Run:
    order = reference.mirror_order(work.flip.get("flip_pairs", ()), work.maps[0].shape[1])
    rest = (order, bool(work.flip), REFINEMENTS.index(work.refine), BLUR_KERNEL)
    return lambda n: function(work.maps[n], work.matrix[n], work.mirrored[n], *rest)


def two_stages(maps: Tensor, heatmap_to_image: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """The highest row by `amax`, then its highest pixel: by hand, without what the fallback does for NaN."""
    batch, joints, height, width = maps.shape
    scores, y = maps.amax(3).max(2)
    row = maps.gather(2, y[..., None, None].expand(batch, joints, 1, width))
    x = row[:, :, 0].argmax(2)
    inside = (x > 1) & (x < width - 1) & (y > 1) & (y < height - 1)
    beside = (y * width + x)[..., None] + torch.tensor([-1, 1, -width, width])
    left, right, above, below = maps.flatten(2).gather(2, torch.where(inside[..., None], beside, 0)).unbind(2)
    move = 0.25 * torch.stack([right - left, below - above], 2).sign() * inside[..., None]
    points = (torch.stack([x, y], 2) + move) * (scores > 0)[..., None]
    return points @ heatmap_to_image[:, :, :2].mT + heatmap_to_image[:, None, :, 2], scores


@cases.in_numba
def numba_loop(maps: Array, heatmap_to_image: Array, keypoints: Array, scores: Array) -> None:
    """Maximum, quarter pixel and matrix of `maps`, float32 [B, K, h, w], into `keypoints` and `scores`."""
    batch, joints, height, width = maps.shape
    for k in prange(batch * joints):
        b, j = k // joints, k % joints
        one = maps[b, j]
        column = one[0].copy()  # maxima of the columns: this loop becomes vector code, one over the whole map does not
        for y in range(1, height):
            for x in range(width):
                column[x] = max(column[x], one[y, x])
        best = column[0]
        for x in range(width):
            best = max(best, column[x])
        peak_x, peak_y = 0, height
        for x in range(width):
            if column[x] == best:
                y = 0
                while y < height - 1 and one[y, x] != best:  # bounded where the maximum is NaN, too
                    y += 1
                if y < peak_y:
                    peak_x, peak_y = x, y
        px, py = 0.0, 0.0
        if best > 0:
            px, py = float(peak_x), float(peak_y)
            if 1 < peak_x < width - 1 and 1 < peak_y < height - 1:
                px += 0.25 * np.sign(one[peak_y, peak_x + 1] - one[peak_y, peak_x - 1])
                py += 0.25 * np.sign(one[peak_y + 1, peak_x] - one[peak_y - 1, peak_x])
        m = heatmap_to_image[b]
        keypoints[b, j, 0] = m[0, 0] * px + m[0, 1] * py + m[0, 2]
        keypoints[b, j, 1] = m[1, 0] * px + m[1, 1] * py + m[1, 2]
        scores[b, j] = best


def numba(work: Work) -> Run:
    maps, matrix = work.maps[0].numpy(), work.matrix[0].numpy()

    def run(n: int) -> tuple[Array, Array]:
        points, scores = np.empty((*maps.shape[:2], 2), np.float32), np.empty(maps.shape[:2], np.float32)
        numba_loop(maps, matrix, points, scores)
        return points, scores

    return run


def numpy_reference(work: Work) -> Run:
    maps, matrix = work.maps[0].numpy(), work.matrix[0].numpy()
    options = {"refine": work.refine, "blur_kernel": BLUR_KERNEL}
    return lambda n: reference.decode_heatmaps(maps, heatmap_to_image=matrix, **options)


def amax(work: Work) -> Run:
    return lambda n: work.maps[n].amax((2, 3))


PEERS = {
    "fastpose_channels_last": Peer(channels_last, devices=ON_CPU),
    "simple_baselines": Peer(simple_baselines, devices=ON_CPU),
    "numpy_vectorised": Peer(numpy_vectorised, devices=ON_CPU),
    "plain_torch[the fallback]": Peer(partial(plain, plain_decode_heatmaps)),
    "plain_torch[two stages]": Peer(partial(plain, two_stages), devices=ON_CPU),
    "torch_compile[the fallback]": Peer(lambda work: plain(cases.compiled(plain_decode_heatmaps), work)),
    "torch_compile[two stages]": Peer(lambda work: plain(cases.compiled(two_stages), work), devices=ON_CPU),
    "numba": Peer(numba, devices=ON_CPU),
    "numpy_reference": Peer(numpy_reference, devices=ON_CPU),
    "limit_torch_amax": Peer(amax, None),
}


def mmpose_dark(maps: Array) -> Array:
    """Points [B, K, 2] in pixels of the maps [B, K, h, w], float32, as `gaussian_blur` and `refine_keypoints_dark` of
    mmpose find them: a loop over maps that are blurred in a frame of zeros, and one over joints with 2 x 2 matrices."""
    points, _ = upstream.maxima(maps)
    height, width = maps.shape[2:]
    frame = BLUR_KERNEL // 2
    framed = np.zeros((height + 2 * frame, width + 2 * frame), np.float32)
    for sample, joints in zip(maps, points, strict=True):
        logs = np.empty_like(sample)
        for one, log in zip(sample, logs, strict=True):
            framed[frame:-frame, frame:-frame] = one
            blurred = cv2.GaussianBlur(framed, (BLUR_KERNEL, BLUR_KERNEL), 0)[frame:-frame, frame:-frame]
            np.multiply(blurred, one.max() / blurred.max(), out=log)
        np.log(np.maximum(logs, 1e-10, out=logs), out=logs)
        for joint, f in zip(joints, logs, strict=True):
            x, y = joint.astype(int)
            if not (1 < x < width - 2 and 1 < y < height - 2):
                continue
            dx, dy = 0.5 * (f[y, x + 1] - f[y, x - 1]), 0.5 * (f[y + 1, x] - f[y - 1, x])
            dxx = 0.25 * (f[y, x + 2] - 2 * f[y, x] + f[y, x - 2])
            dyy = 0.25 * (f[y + 2, x] - 2 * f[y, x] + f[y - 2, x])
            dxy = 0.25 * (f[y + 1, x + 1] - f[y - 1, x + 1] - f[y + 1, x - 1] + f[y - 1, x - 1])
            if dxx * dyy - dxy**2 != 0:
                joint -= np.linalg.inv(np.array([[dxx, dxy], [dxy, dyy]])) @ np.array([dx, dy])
    return points


def mmpose(work: Work) -> Run:
    maps, matrix = work.maps[0].numpy(), work.matrix[0].numpy()
    return lambda n: mmpose_dark(maps) @ matrix[:, :, :2].transpose(0, 2, 1) + matrix[:, None, :, 2]


DARK_PEERS = {
    "mmpose": Peer(mmpose),
    "plain_torch": PEERS["plain_torch[the fallback]"],
    "numpy_reference": PEERS["numpy_reference"],
    "limit_quarter": Peer(lambda work: fastpose_s(replace(work, refine="quarter")), None),
    "limit_torch_amax": PEERS["limit_torch_amax"],
}

# ---- what the kernels are counted on ---------------------------------------------------------------------------------

# fmt: off
DecodeHeatmapsParams = struct(
    "DecodeHeatmapsParams",
    heatmaps=P, strides=MapStrides, flipped=P, flipped_strides=MapStrides, mirrored=ctypes.c_int16 * 512,
    flip_shift=BOOL, kind=I32, heatmap_to_image=P, keypoints=P, scores=P, batch=I64, joints=I64, height=I32, width=I32,
    refine=I32, blur_radius=I32, blur=F64 * 128,
)
# fmt: on


def kernel(**options: Any) -> KernelWork:
    one = case(cases.CPU, LAUNCHED, **options)
    maps, mirrored, memory, p = one.work.maps[0], one.work.mirrored[0], Memory(), DecodeHeatmapsParams()
    p.heatmaps, p.strides, p.kind = memory.add(bits(maps)), MapStrides(*maps.stride()), KINDS[maps.dtype]
    if mirrored is not None:
        p.flipped, p.flipped_strides = memory.add(bits(mirrored)), MapStrides(*mirrored.stride())
        p.mirrored[:JOINTS] = reference.mirror_order(MPII.mirror_pairs, JOINTS)
        p.flip_shift = True
    p.heatmap_to_image = memory.add(one.work.matrix[0].numpy())
    points, scores = torch.full((LAUNCHED, JOINTS, 2), float("nan")), torch.full((LAUNCHED, JOINTS), float("nan"))
    p.keypoints, p.scores = memory.add(points.numpy()), memory.add(scores.numpy())
    p.batch, p.joints, (p.height, p.width) = LAUNCHED, JOINTS, HEATMAP
    p.refine, p.blur_radius = REFINEMENTS.index(one.work.refine), BLUR_KERNEL // 2
    p.blur[: BLUR_KERNEL // 2 + 1] = reference.gaussian_kernel(BLUR_KERNEL)[BLUR_KERNEL // 2 :].tolist()

    def check(launches: list[Launch], ran: int) -> None:
        out = values(memory, p.keypoints, points), values(memory, p.scores, scores)
        done = ~np.isnan(out[1])
        if np.count_nonzero(done) != SAMPLES * JOINTS:
            raise cases.WrongResultError(f"expected {SAMPLES * JOINTS} maps with a result, got {done.sum()}")
        compare(*(one[done] for one in (*out, *expected(one.work, slice(None)))))

    return KernelWork(
        "launch_decode_heatmaps",
        p,
        memory,
        unit="map",
        units=LAUNCHED * JOINTS,
        batch_units=BATCH * JOINTS,
        bytes=one.bytes * BATCH // LAUNCHED,
        check=check,
        share=SAMPLES / LAUNCHED,
    )


KERNELS = {
    f"decode_heatmaps, {cases.dtype_name(dtype)}{suffix}{' flip test' if flipped else ''}": partial(
        kernel, dtype=dtype, layout=layout, flipped=flipped
    )
    for dtype in DTYPES
    for flipped in (False, True)
    for layout, suffix in cases.IN_NAMES.items()
}

OP = Op(
    "decode_heatmaps",
    benches=(
        Bench("decode_heatmaps", "decode_heatmaps", partial(cpu_case, "quarter"), PEERS),
        Bench("decode_dark", "decode_heatmaps dark", partial(cpu_case, "dark"), DARK_PEERS),
    ),
    case=case,
    peers=PEERS,
    goals=[{"dtype": dtype} for dtype in DTYPES],
    training=[
        {"dtype": dtype, "layout": "channels_last", "detail": "channels-last maps"}
        for dtype in (torch.float32, torch.bfloat16)
    ],
    extra=[
        {"dtype": torch.float32, "flipped": True, "detail": "with the maps of the mirrored image"},
        {"dtype": torch.float32, "refine": "dark", "detail": "refined as DARK does"},
        {"dtype": torch.float32, "size": (96, 72), "detail": "96 x 72 maps"},
    ],
    kernels=KERNELS | {"decode_heatmaps, float32 dark": partial(kernel, dtype=torch.float32, refine="dark")},
)
