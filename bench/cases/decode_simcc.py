# SPDX-License-Identifier: Apache-2.0
"""Joints from SimCC's vectors, against plain and compiled torch and what mmpose does in NumPy.

`make bench` takes the vectors of 32 × 16 joints of 192 × 256 crops, two bins per pixel, with the mirror test and the
way back to the image; and a second time with DARK.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fastpose
from bench import cases
from bench.cases import CPU_BATCH, DTYPES, JOINTS, ON_CPU, Array, Bench, Case, Op, Peer, Run
from bench.cases.simcc_loss import CROP, RATIO, SIGMA, VectorStrides
from bench.cases.simcc_loss import case as loss_case
from bench.launches import BOOL, F64, I16, I32, I64, KINDS, SAMPLES, KernelWork, Launch, Memory, P, bits, struct
from fastpose import reference
from fastpose.ops.decode_simcc import plain_decode_simcc, refinement
from fastpose.ops.swap_pairs import mirror_order
from fastpose.skeletons import MPII

PAIRS = MPII.mirror_pairs


@dataclass(frozen=True)
class Work:
    """Vectors of pictures and of their mirror images, by input set, and the way back to the pictures."""

    pred: list[tuple[Tensor, Tensor]]
    flipped: list[tuple[Tensor, Tensor]]
    matrix: Tensor
    refine: str = "none"


def make(work: Work, **about: Any) -> Case:
    first = work.pred[0]
    dtype, batch = first[0].dtype, len(first[0])

    def own(n: int) -> tuple[Tensor, Tensor]:
        (x, y), (flipped_x, flipped_y) = work.pred[n], work.flipped[n]
        return fastpose.decode_simcc(
            x,
            y,
            split_ratio=RATIO,
            crop_to_image=work.matrix,
            flipped_x=flipped_x,
            flipped_y=flipped_y,
            flip_pairs=PAIRS,
            refine=work.refine,
            sigma=SIGMA,
        )

    def check(outputs: tuple[Any, Any]) -> None:
        rows = cases.some(batch)
        expected = defined(work, rows)
        cases.compare("keypoints", outputs[0][rows], expected[0], 1e-3 if work.refine == "none" else 2e-2)
        cases.compare("scores", outputs[1][rows], expected[1], 1e-6)

    moved = 2 * sum(vectors.nbytes for vectors in first) + batch * first[0].shape[1] * 12 + work.matrix.nbytes
    return Case("decode_simcc", work, own, check, moved, dtype, batch, len(work.pred), **about)


def defined(work: Work, rows: list[int]) -> tuple[Any, Any]:
    """Points and scores of some samples by the op's definition."""
    x, y, flipped_x, flipped_y = (v[rows].float().cpu().numpy() for v in (*work.pred[0], *work.flipped[0]))
    return reference.decode_simcc(
        x,
        y,
        split_ratio=RATIO,
        crop_to_image=work.matrix[rows].cpu().numpy(),
        flipped_x=flipped_x,
        flipped_y=flipped_y,
        flip_pairs=PAIRS,
        refine=work.refine,
        sigma=SIGMA,
    )


def case(
    device: torch.device,
    batch: int,
    cache_bytes: int = 0,
    *,
    dtype: torch.dtype,
    refine: str = "none",
    detail: str = "",
) -> Case:
    vectors = loss_case(device, batch, cache_bytes // 2, dtype=dtype).work.pred
    pred = [(x.detach(), y.detach()) for x, y in vectors]
    order = torch.tensor(mirror_order(PAIRS, JOINTS), device=device)
    # A network sees the mirror image a little otherwise.
    flipped = [
        (cases.noisy(x[:, order].flip(2), 2 * n), cases.noisy(y[:, order], 2 * n + 1)) for n, (x, y) in enumerate(pred)
    ]
    matrix = cases.random_boxes(torch.tensor([[720, 1280]]).expand(batch, 2), CROP, 0).to(device)
    return make(Work(pred, flipped, matrix, refine), detail=detail)


def cpu_case(refine: str) -> Case:
    work = case(cases.CPU, CPU_BATCH, dtype=torch.float32, refine=refine).work
    return make(Work(work.pred[:1], work.flipped[:1], work.matrix, refine), inputs="labels under noise, mirror test")


# ---- peers -----------------------------------------------------------------------------------------------------------


def plain(function: Callable[..., Any], work: Work) -> Run:
    order, how = mirror_order(PAIRS, JOINTS), refinement(work.refine, SIGMA)

    def run(n: int) -> Any:
        return function(*work.pred[n], work.matrix, *work.flipped[n], order, RATIO, *how)

    return run


def blurred_as_mmpose_does(vectors: Array, side: int) -> Array:
    """Vectors [B, K, bins], each blurred in a frame of zeros and scaled so that its maximum stays what it was."""
    import cv2

    out, frame = vectors.copy(), (side - 1) // 2
    for one in out.reshape(-1, out.shape[2]):
        highest = one.max()
        framed = np.zeros((1, len(one) + 2 * frame), np.float32)
        framed[0, frame:-frame] = one
        one[:] = cv2.GaussianBlur(framed, (side, 1), 0)[0, frame:-frame]
        one *= highest / one.max()
    return out


def refined_as_mmpose_does(places: Array, vectors: Array, side: int) -> Array:
    """Places [B, K] after a Newton step on the logarithm of the blurred vectors."""
    logs = np.log(np.clip(blurred_as_mmpose_does(vectors, side), 1e-3, 50.0))
    logs = np.pad(logs, ((0, 0), (0, 0), (2, 2)), mode="edge")
    two_before, before, here, after, two_after = (
        np.take_along_axis(logs, places[..., None] + n, 2)[..., 0] for n in range(5)
    )
    return places - 0.5 * (after - before) / (1e-9 + 0.25 * (two_after - 2 * here + two_before))


def in_numpy(work: Work) -> Run:
    """What mmpose does: the merge in torch, then maxima and the rest in NumPy, its blur vector by vector in OpenCV."""
    order, matrices = mirror_order(PAIRS, JOINTS), work.matrix.double().numpy()
    sides = refinement(work.refine, SIGMA)[1:]

    def run(n: int) -> tuple[Tensor, Tensor]:
        (x, y), (flipped_x, flipped_y) = work.pred[n], work.flipped[n]
        merged = (x + flipped_x[:, order].flip(2)) * 0.5, (y + flipped_y[:, order]) * 0.5
        arrays = [one.numpy() for one in merged]
        places, maxima = [one.argmax(2) for one in arrays], [one.max(2) for one in arrays]
        scores = np.minimum(*maxima)
        if work.refine == "dark":
            places = [refined_as_mmpose_does(*one) for one in zip(places, arrays, sides, strict=True)]
        points = np.stack(places, 2).astype(np.float32)
        points[scores <= 0] = -1
        points = points / RATIO @ matrices[:, :, :2].transpose(0, 2, 1) + matrices[:, None, :, 2]
        return torch.from_numpy(points.astype(np.float32)), torch.from_numpy(scores)

    return run


PEERS = {
    "mmpose": Peer(in_numpy, devices=ON_CPU),
    "plain_torch": Peer(partial(plain, plain_decode_simcc)),
    "torch_compile": Peer(lambda work: plain(cases.compiled(plain_decode_simcc), work)),
    "numpy_reference": Peer(lambda work: lambda n: defined(work, list(range(len(work.matrix)))), devices=ON_CPU),
}
DARK = {name: peer._replace(atol=2e-2) for name, peer in PEERS.items()}

# ---- what the kernels are counted on ---------------------------------------------------------------------------------

# fmt: off
DecodeSimccAxis = struct(
    "DecodeSimccAxis",
    pred=P, strides=VectorStrides, flipped=P, flipped_strides=VectorStrides, bins=I32, blur_radius=I32,
    blur=F64 * 128,
)
DecodeSimccParams = struct(
    "DecodeSimccParams",
    axes=DecodeSimccAxis * 2, mirrored=I16 * 512, kind=I32, crop_to_image=P, keypoints=P, scores=P,
    batch=I64, joints=I64, split_ratio=F64, dark=BOOL,
)
# fmt: on


def kernel(dtype: torch.dtype, refine: str, samples: int = SAMPLES) -> KernelWork:
    one = case(cases.CPU, samples, dtype=dtype, refine=refine)
    work, memory, p = one.work, Memory(), DecodeSimccParams()
    shape = (samples, JOINTS)
    p.kind, p.split_ratio, p.dark, (p.batch, p.joints) = KINDS[dtype], RATIO, refine == "dark", shape
    p.mirrored[:JOINTS] = mirror_order(PAIRS, JOINTS)
    for axis, vectors, flipped, side in zip(
        p.axes, work.pred[0], work.flipped[0], refinement("dark", SIGMA)[1:], strict=True
    ):
        axis.pred, axis.bins, axis.strides = (
            memory.add(bits(vectors)),
            vectors.shape[2],
            VectorStrides(*vectors.stride()),
        )
        axis.flipped, axis.flipped_strides = memory.add(bits(flipped)), axis.strides
        axis.blur_radius = side // 2
        axis.blur[: side // 2 + 1] = reference.gaussian_kernel(side)[side // 2 :].tolist()
    p.crop_to_image = memory.add(work.matrix.numpy())
    p.keypoints, p.scores = (memory.add(np.full(size, np.nan, np.float32)) for size in ((*shape, 2), shape))

    def check(launches: list[Launch], ran: int) -> None:
        one.check((memory.read(p.keypoints, np.float32, (*shape, 2)), memory.read(p.scores, np.float32, shape)))

    return cases.work_on_joints("launch_decode_simcc", p, memory, one.bytes, check)


OP = Op(
    "decode_simcc",
    benches=(
        Bench("decode_simcc", "decode_simcc, mirror test", partial(cpu_case, "none"), PEERS),
        Bench("decode_simcc_dark", "decode_simcc, mirror test, dark", partial(cpu_case, "dark"), DARK),
    ),
    case=case,
    peers=PEERS,
    goals=[{"dtype": dtype} for dtype in DTYPES[:2]],  # float16 costs what bfloat16 does
    extra=[{"dtype": torch.bfloat16, "refine": "dark", "detail": "dark"}],
    kernels={
        **{
            f"decode_simcc flip test, {cases.dtype_name(dtype)}": partial(kernel, dtype, "none") for dtype in DTYPES[:2]
        },
        "decode_simcc flip test, bfloat16 dark": partial(kernel, torch.bfloat16, "dark", 1),
    },
)
