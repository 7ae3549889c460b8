# SPDX-License-Identifier: Apache-2.0
"""Loss and gradient without a target in memory, against rendering it for `mse_loss`, torch, numba and NumPy.

`make bench` takes 32 × 16 maps of 64 × 64. numba's kernel makes both in one pass over the prediction. Under autograd,
like the others, it has to keep the gradient until backward, and multiply it with the incoming one; by itself it does
less than the op, and is a limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

import fastpose
from bench import cases
from bench.cases import DTYPES, HEATMAP, JOINTS, ON_CPU, Array, Bench, Case, Joints, Op, Peer, Run, prange
from bench.cases.render_heatmaps import TargetSpec, msra, pasted
from bench.launches import (
    BATCH,
    BOOL,
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
from fastpose.ops.heatmap_mse_loss import plain_heatmap_mse_loss
from fastpose.ops.render_heatmaps import ENCODINGS

Loss = Callable[..., Tensor]  # of prediction, keypoints and visible; sigma and encoding by name


@dataclass(frozen=True)
class Work:
    """Predictions that require a gradient, by input set; `scale` is the incoming one, a training run's loss scale."""

    joints: list[Joints]
    pred: list[Tensor]
    scale: Tensor
    sigma: float = 1.0
    encoding: str = "msra"
    half: str = "both"  # or "forward" or "backward" alone
    hard_joints: int | None = None

    @property
    def options(self) -> dict[str, Any]:
        return {"sigma": self.sigma, "encoding": self.encoding}

    @property
    def counted(self) -> dict[str, Any]:
        return {} if self.hard_joints is None else {"hard_joints": self.hard_joints}

    def arrays(self) -> tuple[Array, Array, Array]:
        one = self.joints[0]
        return self.pred[0].detach().numpy(), one.keypoints.numpy(), one.visible.numpy()


def make(work: Work, **about: Any) -> Case:
    first, one = work.pred[0].detach(), work.joints[0]
    size, dtype, batch = tuple(first.shape[2:]), first.dtype, len(first)

    def check(outputs: tuple[Any, ...]) -> None:
        value, gradient = outputs
        if value is not None:
            expected = reference.heatmap_mse_loss(first, one.keypoints, one.visible, **work.options, **work.counted)
            cases.compare("loss", value, np.array(expected), 0.0, 1e-5)
        if gradient is not None:
            rows = cases.some(batch)
            target, _ = reference.render_heatmaps(
                one.keypoints[rows], one.visible[rows], size, dtype=np.float64, **work.options
            )
            difference = first[rows].double().cpu().numpy() - target
            expected = difference * work.scale.item() / first.numel()
            if work.hard_joints is not None:
                losses = np.square(difference).mean((2, 3))
                least_hard = np.sort(losses)[:, -work.hard_joints, None]
                expected *= ((losses >= least_hard) * (first.shape[1] / work.hard_joints))[..., None, None]
            least = 6e-8 if dtype == torch.float16 else 1e-6 * float(np.abs(expected).max())
            cases.compare("gradient", gradient[rows], expected, least, 4 * cases.ROUNDING[dtype])

    def forward(n: int) -> tuple[Tensor, None]:
        one = work.joints[n]
        return fastpose.heatmap_mse_loss(work.pred[n].detach(), one.keypoints, one.visible, **work.options), None

    def backward(n: int) -> tuple[None, Tensor]:
        one, encoding = work.joints[n], ENCODINGS.index(work.encoding)
        op = torch.ops.fastpose.heatmap_mse_loss_backward
        pred = work.pred[n].detach()
        return None, op(work.scale, pred, one.keypoints, one.visible, None, work.sigma, encoding, False)

    own = {"both": with_gradient(partial(fastpose_s, **work.counted), work), "forward": forward, "backward": backward}[
        work.half
    ]
    # The prediction is read forwards and again backwards, which writes the gradient.
    moved = {"both": 3, "forward": 1, "backward": 2}[work.half] * first.nbytes
    return Case("heatmap_mse_loss", work, own, check, moved, dtype, batch, len(work.pred), **about)


def case(
    device: torch.device,
    batch: int,
    cache_bytes: int = 0,
    *,
    dtype: torch.dtype,
    size: tuple[int, int] = HEATMAP,
    sigma: float = 1.0,
    encoding: str = "msra",
    half: str = "both",
    hard_joints: int | None = None,
    layout: str = "contiguous",
    joints: int = JOINTS,
    detail: str = "",
) -> Case:
    """float16 has the loss scale of a training run, without which its gradient would be 0."""
    sets = cases.input_sets(batch * joints * size[0] * size[1] * dtype.itemsize, cache_bytes)
    points = [Joints.random(device, batch, size, n, joints) for n in range(sets)]
    pred = [one.predicted(size, dtype, n, sigma=sigma, layout=layout).requires_grad_() for n, one in enumerate(points)]
    scale = torch.tensor(65536.0 if dtype == torch.float16 else 1.0, device=device)
    return make(Work(points, pred, scale, sigma, encoding, half, hard_joints), layout=layout, detail=detail)


def large_case(device: torch.device, batch: int, cache_bytes: int, *, dtype: torch.dtype, joints: int) -> Case:
    """Maps of 256 × 192, sigma 6, as whole-body networks have them; 16 × 12 on the CPU."""
    size = (256, 192) if device.type == "cuda" else (16, 12)
    return case(device, batch, cache_bytes, dtype=dtype, size=size, sigma=6.0, joints=joints)


def cpu_case() -> Case:
    joints = Joints.all_on_the_map()
    pred = joints.predicted(HEATMAP, torch.float32, 0).requires_grad_()
    return make(Work([joints], [pred], torch.ones(())), inputs="targets under noise")


# ---- peers -----------------------------------------------------------------------------------------------------------


def with_gradient(loss: Loss, work: Work) -> Run:
    """A call gives the loss, and its gradient in memory of its own."""

    def run(n: int) -> tuple[Tensor, Tensor]:
        value = loss(work.pred[n], work.joints[n].keypoints, work.joints[n].visible, **work.options)
        return value.detach(), *torch.autograd.grad(value, work.pred[n], work.scale)

    return run


def fastpose_s(*inputs: Tensor, **options: Any) -> Tensor:
    return fastpose.heatmap_mse_loss(*inputs, **options)


def channels_last(work: Work) -> Run:
    pred = [one.detach().contiguous(memory_format=torch.channels_last).requires_grad_() for one in work.pred]
    return with_gradient(fastpose_s, replace(work, pred=pred))


def render_and_mse_loss(pred: Tensor, keypoints: Tensor, visible: Tensor, **options: Any) -> Tensor:
    """As a user has it: a float32 target in memory, `mse_loss`, half precision under autocast."""
    target, _ = fastpose.render_heatmaps(keypoints, visible, (pred.shape[2], pred.shape[3]), **options)
    with torch.autocast(pred.device.type, pred.dtype, enabled=pred.dtype != torch.float32):
        return 0.5 * functional.mse_loss(pred, target)


def plain(pred: Tensor, keypoints: Tensor, visible: Tensor, *, sigma: float, encoding: str) -> Tensor:
    return plain_heatmap_mse_loss(pred, keypoints, visible, None, sigma, ENCODINGS.index(encoding), False)


def pasted_and_mse_loss(pred: Tensor, keypoints: Tensor, visible: Tensor, **options: Any) -> Tensor:
    return 0.5 * functional.mse_loss(pred, pasted(keypoints, visible, pred.shape[2], pred.shape[3]))


@cases.in_numba
def numba_loop(pred: Array, keypoints: Array, visible: Array, sigma: float, grad: Array) -> float:
    """Loss against msra targets and, in the same pass, its gradient into `grad`."""
    batch, joints, height, width = pred.shape
    reach = int(3 * sigma)
    scale = np.float32(1 / pred.size)
    factor = np.empty(2 * reach + 1, np.float32)
    for i in range(2 * reach + 1):
        factor[i] = math.exp(-((i - reach) ** 2) / (2 * sigma * sigma))
    sums = np.empty(batch * joints)
    for k in prange(batch * joints):
        b, j = k // joints, k % joints
        one, into = pred[b, j], grad[b, j]
        total = np.float32(0)
        for y in range(height):
            for x in range(width):
                into[y, x] = scale * one[y, x]
            for x in range(width):
                total += one[y, x] * one[y, x]
        left, top = int(keypoints[b, j, 0] + 0.5) - reach, int(keypoints[b, j, 1] + 0.5) - reach
        if visible[b, j] > 0.5 and left < width and top < height:
            for y in range(max(0, top), min(top + 2 * reach + 1, height)):
                for x in range(max(0, left), min(left + 2 * reach + 1, width)):
                    value = factor[y - top] * factor[x - left]
                    total += value * (value - 2 * one[y, x])
                    into[y, x] -= scale * value
        sums[k] = total
    return 0.5 * scale * sums.sum()


def loss_and_gradient(pred: Array, keypoints: Array, visible: Array) -> tuple[float, Tensor]:
    gradient = torch.empty(pred.shape)
    return numba_loop(pred, keypoints, visible, 1.0, gradient.numpy()), gradient


class NumbaLoss(torch.autograd.Function):
    """numba's kernel as one would put it into a training loop."""

    @staticmethod
    def forward(ctx: Any, pred: Tensor, keypoints: Tensor, visible: Tensor) -> Tensor:
        loss, gradient = loss_and_gradient(pred.detach().numpy(), keypoints.numpy(), visible.numpy())
        ctx.save_for_backward(gradient)
        return torch.tensor(loss, dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return ctx.saved_tensors[0] * grad_output, None, None


def numba_without_autograd(work: Work) -> Run:
    arrays = work.arrays()
    return lambda n: loss_and_gradient(*arrays)


def numpy_reference(work: Work) -> Run:
    arrays = work.arrays()
    return lambda n: reference.heatmap_mse_loss(*arrays)


def differentiated(loss: Loss, *, compiled: bool = False, devices: tuple[str, ...] = ON_CPU) -> Peer:
    gradients = 1e-10  # tolerance; they are of the order of 1e-8
    return Peer(lambda work: with_gradient(cases.compiled(loss) if compiled else loss, work), gradients, devices)


RENDERED = "our_render_and_mse_loss"
EVERYWHERE = ("cpu", "cuda")
PEERS = {
    "fastpose_channels_last": Peer(channels_last, 1e-10, ON_CPU),
    RENDERED: differentiated(render_and_mse_loss, devices=EVERYWHERE),
    "plain_torch[squares]": differentiated(plain, devices=EVERYWHERE),
    "plain_torch[mse_loss]": differentiated(pasted_and_mse_loss),
    "torch_compile[squares]": differentiated(plain, compiled=True, devices=EVERYWHERE),
    "torch_compile[mse_loss]": differentiated(pasted_and_mse_loss, compiled=True),
    f"torch_compile[{RENDERED}]": differentiated(render_and_mse_loss, compiled=True, devices=cases.ON_CUDA),
    "numba": differentiated(lambda *inputs, **options: NumbaLoss.apply(*inputs)),
    "limit_numba_without_autograd": Peer(numba_without_autograd, 1e-10, ON_CPU),
    "numpy_reference_forward_only": Peer(numpy_reference, 1e-7, ON_CPU),
}

# ---- what the kernels are counted on ---------------------------------------------------------------------------------

# fmt: off
HeatmapMseLossParams = struct(
    "HeatmapMseLossParams",
    pred=P, pred_strides=MapStrides, kind=I32, keypoints=P, visible=P,
    joint_weights=P, weight_stride_b=I64, weight_stride_k=I64, batch=I64, joints=I64, spec=TargetSpec,
    ignore_missing=BOOL, of_maps=BOOL, partial_sums=P, loss=P, grad_output=P,
    grad=P, grad_strides=MapStrides,
)
# fmt: on


def parameters(memory: Memory, joints: Joints, pred: Tensor) -> Any:
    p = HeatmapMseLossParams()
    p.kind, p.spec = KINDS[pred.dtype], msra()
    p.keypoints, p.visible = memory.add(joints.keypoints.numpy()), memory.add(joints.visible.numpy())
    p.batch, p.joints = pred.shape[:2]
    p.pred_strides = MapStrides(*pred.stride())
    return p


def kernel(dtype: torch.dtype, layout: str, half: str) -> KernelWork:
    one = case(cases.CPU, SAMPLES, dtype=dtype, layout=layout, half=half)
    work = one.work
    work.scale.mul_(3)  # so that a gradient that leaves it out is wrong
    pred, memory = work.pred[0].detach(), Memory()
    p = parameters(memory, work.joints[0], pred)
    p.pred = memory.add(bits(pred))
    p.partial_sums = memory.add(np.full(pred.numel() // 32, np.nan))
    if half == "backward":
        p.grad_output, p.grad = memory.add(work.scale.view(1).numpy()), memory.add(bits(pred) * 0)
        p.grad_strides = MapStrides(*pred.stride())

    def outputs(launches: list[Launch]) -> tuple[Any, Any]:
        if half == "backward":
            return None, values(memory, p.grad, pred)
        return memory.read(p.partial_sums, np.float64, (launches[0].blocks,)).sum() * 0.5 / pred.numel(), None

    launcher = "launch_heatmap_mse_loss" + ("_backward" if half == "backward" else "")
    return cases.work_on_maps(one, launcher, p, memory, outputs)


def total() -> KernelWork:
    """The one block that adds up the partial sums of a batch of planar maps."""
    memory = Memory()
    pred = torch.empty((), dtype=torch.float32).expand(BATCH, JOINTS, *HEATMAP)
    p = parameters(memory, Joints.random(cases.CPU, BATCH, HEATMAP, 0), pred)
    p.pred_strides = MapStrides(*torch.empty(pred.shape, device="meta").stride())
    # One sum per block of the launch before; what lies behind the last one must not count.
    sums = np.random.default_rng(0).random(BATCH * JOINTS * 8)
    p.partial_sums, p.loss = memory.add(sums), memory.add(np.zeros(1, np.float32))

    def check(launches: list[Launch], ran: int) -> None:
        expected = sums[: launches[0].blocks].sum(keepdims=True) * 0.5 / pred.numel()
        cases.compare("loss", memory.read(p.loss, np.float32, (1,)), expected, 0.0, 1e-6)

    return KernelWork("launch_heatmap_mse_loss", p, memory, "batch", 1, 1, 8 * BATCH * JOINTS, check, number=1)


KERNELS = {
    f"heatmap_mse_loss {half}, {cases.dtype_name(dtype)}{suffix}": partial(kernel, dtype, layout, half)
    for dtype in DTYPES
    for layout, suffix in cases.IN_NAMES.items()
    for half in ("forward", "backward")
}

OP = Op(
    "heatmap_mse_loss",
    benches=(Bench("heatmap_mse_loss", "heatmap_mse_loss forward + backward", cpu_case, PEERS),),
    case=case,
    peers=PEERS,
    goals=[{"dtype": dtype} for dtype in DTYPES],
    training=[
        *({"dtype": d, "half": half, "detail": f"{half} alone"} for d in DTYPES for half in ("forward", "backward")),
        *(
            {"dtype": dtype, "layout": "channels_last", "detail": "channels-last maps"}
            for dtype in (torch.float32, torch.bfloat16)
        ),
    ],
    extra=[
        {"dtype": torch.float32, "encoding": "unbiased", "detail": "unbiased: drawn over the whole map"},
        {"dtype": torch.float32, "sigma": 2.0, "detail": "sigma 2"},
        {"dtype": torch.float32, "hard_joints": 8, "detail": "the 8 hardest of 16 joints"},
        {"dtype": torch.float32, "size": (96, 72), "sigma": 3.0, "detail": "96 x 72 maps, sigma 3"},
    ],
    kernels={**KERNELS, "heatmap_mse_loss total": total},
)
