# SPDX-License-Identifier: Apache-2.0
"""The training step on a batch that is there: eager and as a CUDA graph, with and without cuDNN's autotuning."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

import fastpose
from bench.report import Report
from bench.user_loader import Sample
from fastpose.data.loader import Batch
from fastpose.device import ComputeOptions
from fastpose.engine.step import TargetOptions, TrainStep
from fastpose.models import pose_resnet
from fastpose.skeletons import MPII

now = time.perf_counter


@dataclass(frozen=True)
class Scale:
    """How much is measured: pictures of (h, w) pixels, the network, and how long.

    A source is measured for `seconds` alone and again while it feeds training; the step on a fixed batch in `repeats`
    windows of `steps`.
    """

    pictures: int
    picture: tuple[int, int]
    batch: int
    crop: tuple[int, int]
    depth: int
    seconds: float
    steps: int
    repeats: int

    @classmethod
    def of(cls, device: torch.device) -> Scale:
        if device.type == "cuda":
            return cls(256, (720, 1280), 128, (256, 256), 50, seconds=0.6, steps=10, repeats=5)
        return cls(8, (144, 256), 2, (32, 32), 18, seconds=0.05, steps=1, repeats=2)


def mark(device: torch.device) -> Any:
    """This moment; on CUDA the one when the device is through with the work that its stream has by now."""
    if device.type != "cuda":
        return now()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def between(start: Any, end: Any) -> float:
    """Seconds between two marks that the device has passed."""
    return end - start if isinstance(start, float) else start.elapsed_time(end) / 1e3


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Waits:
    """The time that a device stands without work until its next batch is there, for any source, as PoseLoader has it.

    A host that waits may have a GPU that is still busy: so the marks before and after a batch are the device's.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pairs: list[tuple[Any, Any]] = []

    def next(self, batches: Iterator[Any]) -> Any:
        start = mark(self.device)
        batch = next(batches)
        self._pairs.append((start, mark(self.device)))
        return batch

    def seconds(self) -> list[float]:
        """One number per batch, once the device was waited for."""
        return [between(*pair) for pair in self._pairs]


class Step:
    """fastpose's training step on a Batch; a user's on a Sample, with its target in memory. Both train one network."""

    def __init__(self, scale: Scale, device: torch.device, **options: Any) -> None:
        torch.default_generator.manual_seed(0)  # the CPU's alone: CUDA's may be lost to a failed capture
        layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        self.device = device
        self.model: nn.Module = pose_resnet(scale.depth)
        self.model.to(device, memory_format=layout)  # type: ignore[call-overload]  # torch's stub lacks it
        self.model.train()
        self.optimizer = torch.optim.RMSprop(self.model.parameters(), lr=1e-5)
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
        on_gpu = device.type == "cuda"
        # The rows say what is on, whatever the defaults are; cuDNN's autotuning is switched around the step.
        fixed = {"amp": "bfloat16" if on_gpu else "off", "cuda_graph": "off", "cudnn_benchmark": "off"}
        compute = ComputeOptions(**{**fixed, **options})
        self._train = TrainStep(self.model, self.optimizer, TargetOptions(), compute, device, scale.batch)

    def __call__(self, batch: Batch | Sample) -> None:
        if isinstance(batch, Batch):
            self._train(batch, 1e-5)
            return
        with self.autocast:
            pred = self.model(batch.images)
            loss = 0.5 * functional.mse_loss(pred * batch.weight, batch.target * batch.weight)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()


class FixedBatch:
    """A step, fed with one batch that is there: what a step that is fed by a source is compared with."""

    def __init__(self, step: Callable[[Any], None], batch: Batch, scale: Scale, mode: str) -> None:
        self.step, self.batch, self.scale, self.mode = step, batch, scale, mode
        self.device = batch.images.device

    def warm_up(self) -> None:
        """What tunes, compiles or captures itself at first has then done so."""
        for _ in range(5 if self.device.type == "cuda" else 1):
            self.step(self.batch)
        wait_for(self.device)

    def seconds(self) -> float:
        """Seconds per step, over `scale.steps` of them between which nothing waits."""
        start = mark(self.device)
        for _ in range(self.scale.steps):
            self.step(self.batch)
        end = mark(self.device)
        wait_for(self.device)
        return between(start, end) / self.scale.steps


MODES: dict[str, dict[str, bool]] = {"eager": {}, "cuda_graph": {"cuda_graph": True}}


def measure(report: Report, scale: Scale) -> None:
    """Fills `step`: a row for each mode and setting of cuDNN, and the memory of a step with each kind of loss."""
    report.begin("step")
    device = report.device
    on_gpu = device.type == "cuda"
    report.figures["step"] |= {
        "network": f"ResNet-{scale.depth} fcn",
        "size": list(scale.crop),
        "batch": scale.batch,
        "dtype": "bfloat16" if on_gpu else "float32",
        "layout": "channels_last" if on_gpu else "contiguous",
        "fixed": [],
    }
    batch = noise_batch(scale, device)
    for mode in MODES if on_gpu else ["eager"]:
        for tuned in (False, True) if on_gpu else (False,):
            what = f"step: {mode}, cuDNN's autotuning {'on' if tuned else 'off'}"
            if report.late(what, needs=12):
                continue
            with report.part(what if mode == "eager" else f"figures after this may be wrong: {what}"):
                measure_mode(report, batch, scale, mode, tuned)
    if on_gpu and not report.late("step: peak memory", needs=6):
        with report.part("step: peak memory"):
            report.figures["step"]["peak_bytes"] = peak_bytes(batch, scale)


def measure_compiled(report: Report, scale: Scale) -> None:
    """A row for the network under torch.compile, which needs a compiler that may not be there."""
    if report.device.type == "cuda" and not report.late("step: compile", needs=90):
        with report.optional("step: compile"):
            measure_mode(report, noise_batch(scale, report.device), scale, "compile", False)


def measure_mode(report: Report, batch: Batch, scale: Scale, mode: str, tuned: bool) -> None:
    with cudnn_benchmark(tuned):
        begin = now()
        fixed = FixedBatch(make_step(scale, report.device, mode), batch, scale, mode)
        fixed.warm_up()
        warm = now() - begin
        low, median, high = np.percentile([fixed.seconds() for _ in range(scale.repeats)], [25, 50, 75]).tolist()
    row = {
        "mode": mode,
        "cudnn_benchmark": tuned,
        "median_s": median,
        "iqr_s": high - low,
        "samples_per_s": scale.batch / median,
        "warm_s": warm,
    }
    report.figures["step"]["fixed"].append(row)
    report.say(f"step, {mode}, cuDNN's autotuning {'on' if tuned else 'off'}: {row['samples_per_s']:.0f} samples/s")


def make_step(scale: Scale, device: torch.device, mode: str) -> Step:
    return Step(scale, device, **MODES.get(mode, {mode: True}))


@contextmanager
def cudnn_benchmark(tuned: bool) -> Iterator[None]:
    """Whether cuDNN times its algorithms for each new shape, and takes the fastest."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = tuned
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def fastest(rows: list[dict[str, Any]]) -> tuple[str, bool]:
    """Mode and cuDNN's setting of the fastest step, of those that are not compiled; eager and off without any.

    Rows without a finite time are no candidates.
    """
    timed = [row for row in rows if row["mode"] in MODES and row["samples_per_s"]]
    best = max(timed, key=lambda row: row["samples_per_s"], default={"mode": "eager", "cudnn_benchmark": False})
    return best["mode"], best["cudnn_benchmark"]


def noise_batch(scale: Scale, device: torch.device) -> Batch:
    """A batch of training's types and layout with noise for crops and joints anywhere on the map."""
    generator = torch.Generator(device).manual_seed(0)
    shape, joints = (scale.batch, 3, *scale.crop), (scale.batch, MPII.num_joints)
    on_gpu = device.type == "cuda"
    images = torch.randn(shape, generator=generator, device=device)
    return Batch(
        step=0,
        rows=torch.arange(scale.batch),
        images=images.to(
            torch.bfloat16 if on_gpu else torch.float32,
            memory_format=torch.channels_last if on_gpu else torch.contiguous_format,
        ),
        keypoints=torch.rand(*joints, 2, generator=generator, device=device) * (min(scale.crop) / 4),
        visible=torch.ones(joints, device=device),
        heatmap_to_image=torch.eye(2, 3, device=device).repeat(scale.batch, 1, 1),
    )


def peak_bytes(fixed: Batch, scale: Scale) -> dict[str, int]:
    """The most memory that a step holds, with fastpose's loss and with a target in memory."""
    step = Step(scale, fixed.images.device)

    def rendered() -> Sample:
        size = (scale.crop[0] // 4, scale.crop[1] // 4)
        target, weight = fastpose.render_heatmaps(fixed.keypoints, fixed.visible, size)
        return Sample(fixed.images, target, weight[:, :, None, None])

    peaks = {}
    for name, batch in (("fused", lambda: fixed), ("render+mse_loss", rendered)):
        step(batch())
        torch.cuda.reset_peak_memory_stats(fixed.images.device)
        step(batch())
        peaks[name] = torch.cuda.max_memory_allocated(fixed.images.device)
    return peaks
