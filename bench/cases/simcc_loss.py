# SPDX-License-Identifier: Apache-2.0
"""The loss of SimCC's vectors and its gradients without labels in memory, against stored labels and torch.

`make bench` takes the vectors of 32 × 16 joints of 192 × 256 crops, two bins per pixel, as RTMPose has them.
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
from torch.nn import functional

import fastpose
from bench import cases
from bench.cases import CPU_BATCH, DTYPES, JOINTS, ON_CPU, Array, Bench, Case, Joints, Op, Peer, Run
from bench.launches import BOOL, F32, F64, I32, I64, KINDS, SAMPLES, KernelWork, Launch, Memory, P, bits, struct, values
from fastpose import reference
from fastpose.ops.simcc_loss import plain_simcc_loss

CROP = (256, 192)  # h, w
RATIO, SIGMA = 2.0, (4.9, 5.66)
BINS = (384, 512)  # in x, in y
BETA = 10.0

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Work:
    """Vectors that require gradients, by input set, and joints in crop pixels."""

    joints: list[Joints]
    pred: list[tuple[Tensor, Tensor]]
    scale: Tensor


def labels_of(joints: Joints) -> tuple[Tensor, Tensor, Tensor]:
    """mmpose's labels in x and y, before their softmax, and its weights: a joint far outside has none of either."""
    centers, drawn, labels = (joints.keypoints * RATIO).round(), joints.visible >= 0.5, []
    for axis, (bins, sigma) in enumerate(zip(BINS, SIGMA, strict=True)):
        drawn = drawn & (centers[..., axis] - 3 * sigma < bins) & (centers[..., axis] + 3 * sigma + 1 >= 0)
    for axis, (bins, sigma) in enumerate(zip(BINS, SIGMA, strict=True)):
        distance = torch.arange(bins, device=centers.device) - centers[..., axis, None]
        labels.append(torch.where(drawn[..., None], torch.exp(-(distance**2) / (2 * sigma**2)), 0.0))
    return labels[0], labels[1], torch.where(drawn | (joints.visible < 0.5), joints.visible, 0.0)


def with_gradients(loss_of: Loss, work: Work) -> Run:
    return lambda n: differentiated(loss_of(*work.pred[n], work.joints[n].keypoints, work.joints[n].visible), work, n)


def differentiated(loss: Tensor, work: Work, n: int) -> tuple[Tensor, ...]:
    """A loss of predictions n and its gradients in both of them."""
    return loss.detach(), *torch.autograd.grad(loss, work.pred[n], work.scale)


def fastpose_s(x: Tensor, y: Tensor, keypoints: Tensor, visible: Tensor) -> Tensor:
    return fastpose.simcc_loss(x, y, keypoints, visible, split_ratio=RATIO, sigma=SIGMA)


def plain(function: Callable[..., Tensor], x: Tensor, y: Tensor, keypoints: Tensor, visible: Tensor) -> Tensor:
    return function(x, y, keypoints, visible, None, RATIO, *SIGMA, BETA, BETA, True)


def defined(work: Work, rows: list[int]) -> tuple[float, Array, Array]:
    """The loss by the op's definition and, of some samples, its gradients, in float64."""
    one, pred = work.joints[0], [vectors.detach().double().cpu().numpy() for vectors in work.pred[0]]
    keypoints, visible = one.keypoints.cpu().numpy(), one.visible.cpu().numpy()
    loss = reference.simcc_loss(*pred, keypoints, visible, split_ratio=RATIO, sigma=SIGMA)
    *labels, weight = (values[rows].double().cpu().numpy() for values in labels_of(one))
    gradients = []
    for axis, label in enumerate(labels):
        difference = softmax(BETA * pred[axis][rows]) - softmax(BETA * label)
        scale = work.scale.item() * BETA / (visible.size * label.shape[2])
        gradients.append(scale * weight[..., None] * difference)
    return float(loss), gradients[0], gradients[1]


def softmax(values: Array) -> Array:
    powers = np.exp(values - values.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def compare_gradient(what: str, got: Any, expected: Array, dtype: torch.dtype) -> None:
    least = max(6e-8 if dtype == torch.float16 else 0.0, 1e-5 * float(np.abs(expected).max()))
    cases.compare(what, got, expected, least, 4 * cases.ROUNDING[dtype])


def make(work: Work, **about: Any) -> Case:
    first = work.pred[0]
    dtype, batch = first[0].dtype, len(first[0])

    def check(outputs: tuple[Any, ...]) -> None:
        rows = cases.some(batch)
        loss, *gradients = defined(work, rows)
        cases.compare("loss", outputs[0], np.array(loss), 0.0, 1e-5)
        for axis, expected, got in zip("xy", gradients, outputs[1:], strict=True):
            compare_gradient(f"gradient in {axis}", got[rows], expected, dtype)

    # Vectors are read forwards and again backwards, which writes the gradients.
    moved = 3 * sum(vectors.detach().nbytes for vectors in first)
    own = with_gradients(fastpose_s, work)
    return Case("simcc_loss", work, own, check, moved, dtype, batch, len(work.pred), **about)


def case(
    device: torch.device,
    batch: int,
    cache_bytes: int = 0,
    *,
    dtype: torch.dtype,
    joints: int = JOINTS,
    detail: str = "",
) -> Case:
    """float16 has the loss scale of a training run, without which its gradients would be 0."""
    sets = cases.input_sets(batch * joints * sum(BINS) * dtype.itemsize, cache_bytes)
    found = [Joints.random(device, batch, CROP, n, joints) for n in range(sets)]
    pred = []
    for n, one in enumerate(found):
        x, y = (cases.noisy(label, 2 * n + axis).to(dtype) for axis, label in enumerate(labels_of(one)[:2]))
        pred.append((x.requires_grad_(), y.requires_grad_()))
    scale = torch.tensor(65536.0 if dtype == torch.float16 else 1.0, device=device)
    return make(Work(found, pred, scale), detail=detail)


def cpu_case() -> Case:
    one = case(cases.CPU, CPU_BATCH, dtype=torch.float32)
    return make(Work(one.work.joints[:1], one.work.pred[:1], one.work.scale), inputs="labels under noise")


# ---- peers -----------------------------------------------------------------------------------------------------------


def discret_loss(pred_x: Tensor, pred_y: Tensor, label_x: Tensor, label_y: Tensor, weight: Tensor) -> Tensor:
    """mmpose's KLDiscretLoss, over persons and joints."""
    total = torch.zeros((), device=weight.device)
    for pred, label in ((pred_x, label_x), (pred_y, label_y)):
        shares = functional.softmax(BETA * label, 2)
        logarithms = functional.log_softmax(BETA * pred.float(), 2)
        total = total + (functional.kl_div(logarithms, shares, reduction="none").mean(2) * weight).mean()
    return total


def stored(function: Callable[..., Tensor], work: Work) -> Run:
    """`discret_loss` on labels that the loader has made; making them is not timed."""
    labels = [labels_of(joints) for joints in work.joints]
    return lambda n: differentiated(function(*work.pred[n], *labels[n]), work, n)


def numpy_reference(work: Work) -> Run:
    everybody = list(range(len(work.joints[0].visible)))
    return lambda n: defined(work, everybody)


GRADIENTS = 1e-9  # tolerance; the largest of make bench are 2e-5
PEERS = {
    "stored_labels": Peer(partial(stored, discret_loss), GRADIENTS),
    "torch_compile[stored_labels]": Peer(lambda work: stored(cases.compiled(discret_loss), work), GRADIENTS),
    "plain_torch": Peer(lambda work: with_gradients(partial(plain, plain_simcc_loss), work), GRADIENTS),
    "torch_compile": Peer(
        lambda work: with_gradients(partial(plain, cases.compiled(plain_simcc_loss)), work), GRADIENTS
    ),
    "numpy_reference": Peer(numpy_reference, GRADIENTS, ON_CPU),
}

# ---- what the kernels are counted on ---------------------------------------------------------------------------------

VectorStrides = struct("VectorStrides", b=I64, k=I64, bin=I64)
# fmt: off
SimccLossAxis = struct(
    "SimccLossAxis",
    pred=P, strides=VectorStrides, bins=I32, three_sigma=F64, inverse_sigma=F64, label_reach=F64,
    grad=P, grad_strides=VectorStrides,
)
SimccLossParams = struct(
    "SimccLossParams",
    axes=SimccLossAxis * 2, kind=I32, keypoints=P, visible=P, joint_weights=P, weight_stride_b=I64, batch=I64,
    joints=I64, split_ratio=F32, beta=F64, label_beta=F64, label_softmax=BOOL, partial_sums=P, loss=P, grad_output=P,
)
# fmt: on


def kernel(dtype: torch.dtype, half: str) -> KernelWork:
    one = case(cases.CPU, SAMPLES, dtype=dtype)
    work, memory, p = one.work, Memory(), SimccLossParams()
    work.scale.mul_(3)  # so that a gradient that leaves it out is wrong
    joints, pred = work.joints[0], [vectors.detach() for vectors in work.pred[0]]
    p.kind, p.keypoints, p.visible = (
        KINDS[dtype],
        memory.add(joints.keypoints.numpy()),
        memory.add(joints.visible.numpy()),
    )
    p.batch, p.joints = joints.visible.shape
    p.split_ratio, p.beta, p.label_beta, p.label_softmax = RATIO, BETA, BETA, True
    for axis, vectors, sigma in zip(p.axes, pred, SIGMA, strict=True):
        axis.pred, axis.bins, axis.strides = (
            memory.add(bits(vectors)),
            vectors.shape[2],
            VectorStrides(*vectors.stride()),
        )
        axis.three_sigma, axis.inverse_sigma = 3 * sigma, 1 / sigma
        axis.label_reach = sigma * math.sqrt(2 * (math.log(BETA) + 26 * math.log(2)))
    p.partial_sums = memory.add(np.full(2 * joints.visible.numel(), np.nan))
    if half == "backward":
        p.grad_output = memory.add(work.scale.view(1).numpy())
        for axis, vectors in zip(p.axes, pred, strict=True):
            axis.grad, axis.grad_strides = memory.add(bits(vectors) * 0), axis.strides

    def check(launches: list[Launch], ran: int) -> None:
        loss, *gradients = defined(work, list(range(SAMPLES)))
        if half == "forward":
            sums = memory.read(p.partial_sums, np.float64, (2 * joints.visible.numel(),))
            cases.compare("loss", sums.sum() / joints.visible.numel(), np.array(loss), 0.0, 1e-5)
            return
        for axis, vectors, expected in zip(p.axes, pred, gradients, strict=True):
            compare_gradient("gradient", values(memory, axis.grad, vectors), expected, dtype)

    launcher = "launch_simcc_loss" + ("_backward" if half == "backward" else "")
    passes = 1 if half == "forward" else 2  # over the vectors: one reads them, the other also writes
    return cases.work_on_joints(launcher, p, memory, passes * sum(vectors.nbytes for vectors in pred), check)


OP = Op(
    "simcc_loss",
    benches=(Bench("simcc_loss", "simcc_loss forward + backward", cpu_case, PEERS),),
    case=case,
    peers=PEERS,
    goals=[{"dtype": dtype} for dtype in DTYPES[:2]],  # float16 costs what bfloat16 does
    extra=[{"dtype": torch.bfloat16, "joints": 133, "detail": "133 joints"}],
    kernels={
        f"simcc_loss {half}, {cases.dtype_name(dtype)}": partial(kernel, dtype, half)
        for dtype in DTYPES[:2]
        for half in ("forward", "backward")
    },
)
