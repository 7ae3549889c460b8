# SPDX-License-Identifier: Apache-2.0
"""How fast batches come, by source, and how near training on them comes to training on one batch that is there."""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import count, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from torch import nn
from torch.nn import functional

import fastpose
from bench.user_loader import Sample, fit_into, user_batches
from fastpose.data.augmentation import Augmentation
from fastpose.data.images import read_image
from fastpose.data.loader import Batch, PoseLoader
from fastpose.data.persons import Persons
from fastpose.data.pixel_sources import ImageFiles, PixelSource, ResidentImages
from fastpose.data.synthetic import render_scene
from fastpose.models import pose_resnet
from fastpose.skeletons import MPII

if TYPE_CHECKING:
    from bench.gpu_report import Report

USER = "cv2+DataLoader"
# They need what may not be there: a package; shared memory for the batches of worker processes.
PEERS = ("gpu_jpeg", USER)
NEEDS = {USER: 30.0}  # seconds for a row, guessed generously; of the others 15
FILE_SOURCES = ("files", USER)  # the CPU decodes: no faster than the decoder's limit
SHARED_MEMORY = Path("/dev/shm")  # where DataLoader's workers put their batches


@dataclass(frozen=True)
class Scale:
    """How much is measured: pictures of (h, w) pixels, the network, and how long.

    A source alone is measured for `seconds`, a training step in `repeats` windows of at least `steps`.
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
            return cls(256, (720, 1280), 128, (256, 256), 50, seconds=3.0, steps=20, repeats=5)
        return cls(8, (144, 256), 2, (32, 32), 18, seconds=0.2, steps=1, repeats=2)


@dataclass(frozen=True)
class Feed:
    """One way to feed training: `make` gives batches without end.

    `burst` batches arrive at about the same time, because as many workers began them together; only whole bursts are
    counted. After `warm` batches the source is in its steady state: what it had made ahead is used up, and the memory
    that it needs (page-locked, for a GPU) is there.
    """

    source: str
    threads: int
    make: Callable[[], Generator[Any, None, None]]  # of Batch, or Sample
    burst: int = 1
    warm: int = 0


def mark(device: torch.device) -> Any:
    """This moment; on CUDA the one when the device is through with the work that its stream has by now."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def between(start: Any, end: Any) -> float:
    """Seconds between two marks that the device has passed."""
    return end - start if isinstance(start, float) else start.elapsed_time(end) / 1e3


class Waits:
    """The time that a device stands without work until its next batch is there; as PoseLoader tells it, for any source.

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


def measure(report: Report) -> None:
    """Fills `pipeline` and `step` of the report, and the decoder's limit in `extra`."""
    scale, device = Scale.of(report.device), report.device
    with tempfile.TemporaryDirectory(prefix="fastpose-bench-") as folder:
        report.begin("pipeline")
        persons = write_pictures(Path(folder), scale)
        report.say(f"{scale.pictures} pictures drawn")
        report.note(
            f"pipeline: {scale.pictures} JPEGs of {scale.picture[1]} x {scale.picture[0]} pixels, quality 90, "
            f"{mean_bytes(Path(folder)) // 1000} kB on average, in the page cache; synthetic persons, enlarged, put "
            "side by side and covered with noise"
        )
        with report.part("decoder limit"):
            report.figures["extra"].append(decoder_limit(persons, scale))
        feeds: dict[str, Feed] = {}
        for name, make in feed_makers(report, persons, scale).items():
            if report.late(f"pipeline: {name}", needs=NEEDS.get(name, 15.0)):
                continue
            with report.optional(f"pipeline: {name}") if name in PEERS else report.part(f"pipeline: {name}"):
                feed = make()
                row = loader_row(feed, scale, device)
                feeds[name] = feed  # what works alone may feed the training
                report.figures["pipeline"].append(row)
                report.say(f"{row['source']}, {row['threads']} threads: {row['samples_per_s']:.0f} samples/s")
        report.begin("step")
        with report.part("training step"):
            measure_steps(report, feeds, scale)


def mean_bytes(folder: Path) -> int:
    sizes = [path.stat().st_size for path in folder.iterdir()]
    return sum(sizes) // len(sizes)


def cores() -> int:
    """Cores that this process may use, at most the 16 of the goal."""
    return min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def write_pictures(folder: Path, scale: Scale) -> Persons:
    """Draws and writes the JPEGs. Returns persons enough for long epochs, each on an image of its own.

    The list of images names each file many times, so that no batch can decode a file once for two persons.
    """
    height, width = scale.picture
    scenes = [render_scene(np.random.default_rng(n), 1, "") for n in range(min(64, scale.pictures))]
    paths = [folder / f"{n:04d}.jpg" for n in range(scale.pictures)]

    def draw(n: int) -> float:
        """Writes picture n; returns by how much its scene was enlarged."""
        scene, _ = scenes[n % len(scenes)]
        factor = height / scene.shape[0]
        tile = cv2.resize(scene, (round(scene.shape[1] * factor), height))
        canvas = np.concatenate([tile, tile[:, ::-1]] * (1 + width // (2 * tile.shape[1])), axis=1)[:, :width]
        # Enlarged pictures are smoother than photographs, and smooth JPEGs are quicker to decode.
        noise = np.random.default_rng(n).integers(-10, 11, canvas.shape, dtype=np.int8)
        pixels = np.clip(canvas + noise.astype(np.int16), 0, 255).astype(np.uint8)
        cv2.imwrite(str(paths[n]), np.ascontiguousarray(pixels[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 90])
        return factor

    with ThreadPoolExecutor(cores()) as pool:
        factor = np.array(list(pool.map(draw, range(scale.pictures))), np.float32)
    rows = [scenes[n % len(scenes)][1][0] for n in range(scale.pictures)]
    times = max(1, 200 * scale.batch // scale.pictures)

    def column(name: str, factor: Any = 1.0) -> np.ndarray:
        return np.concatenate([(np.array([row[name] for row in rows]) * factor).astype(np.float32)] * times)

    return Persons(
        image_paths=tuple(paths) * times,
        image_index=np.arange(scale.pictures * times),
        center=column("center", factor[:, None]),
        scale=np.stack([column("scale", factor)] * 2, axis=1),
        keypoints=column("joints", factor[:, None, None]),
        visible=column("joints_vis"),
        head_size=None,
        source_row=np.arange(scale.pictures * times),
        skeleton=MPII,
    )


def decoder_limit(persons: Persons, scale: Scale) -> dict[str, Any]:
    """Images per second that all cores decode when they do nothing else."""
    paths, threads = persons.image_paths[: scale.pictures], cores()
    cv2.setNumThreads(0)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(read_image, paths))
        start, images = time.perf_counter(), 0
        while time.perf_counter() - start < scale.seconds:
            images += sum(image.size > 0 for image in pool.map(read_image, paths))
        seconds = time.perf_counter() - start
    return {"what": "decoder limit", "threads": threads, "images_per_s": images / seconds}


def feed_makers(report: Report, persons: Persons, scale: Scale) -> dict[str, Callable[[], Feed]]:
    """The sources by name; making one may fail."""
    device, fastest = report.device, cores()

    def loader(source: str, threads: int, pixels: PixelSource) -> Feed:
        made = loader_of(persons, pixels, scale, device)
        warm = made.prefetch + 3 if device.type == "cuda" else 0
        return Feed(source, threads, partial(endless, made), warm=warm)

    def resident() -> Feed:
        once = ResidentImages.from_files(persons.image_paths[: scale.pictures], device, fastest).images
        times = len(persons.image_paths) // scale.pictures
        every = fastpose.ImageBatch(once.data, once.offsets.repeat(times), once.sizes.repeat(times, 1))
        return loader("resident", 0, ResidentImages(every))

    def gpu_jpeg() -> Feed:
        from fastpose.data.gpu_jpeg import GpuJpegFiles  # needs a package that may not be there

        return loader("gpu_jpeg", fastest, GpuJpegFiles(persons.image_paths, device, fastest))

    def user() -> Feed:
        workers = user_workers(report, scale, fastest) if device.type == "cuda" else (0, 2)
        make = partial(user_batches, persons, scale.crop, scale.batch, workers[0], device, prefetch_factor=workers[1])
        return Feed(USER, workers[0], make, burst=max(1, workers[0]), warm=2 * workers[0])

    def files(threads: int) -> Feed:
        return loader("files", threads, ImageFiles(persons.image_paths, threads))

    makers: dict[str, Callable[[], Feed]] = {"resident": resident, f"files {fastest}": partial(files, fastest)}
    makers |= {USER: user, "gpu_jpeg": gpu_jpeg}
    # The least interesting last: they are left out first.
    return makers | {f"files {n}": partial(files, n) for n in (8, 4, 2, 1) if n < fastest}


def user_workers(report: Report, scale: Scale, most: int) -> tuple[int, int]:
    """How many workers the user's loader can have, and its prefetch factor: their batches lie in shared memory."""
    if not SHARED_MEMORY.is_dir():
        return most, 2
    height, width = scale.crop
    batch_bytes = 4 * scale.batch * (3 * height * width + MPII.num_joints * (height // 4 * (width // 4) + 1))
    free = shutil.disk_usage(SHARED_MEMORY).free
    workers, prefetch_factor = fit_into(free, batch_bytes, most)
    if (workers, prefetch_factor) != (most, 2):
        report.note(
            f"{USER}: {workers} workers that prefetch {prefetch_factor}, for want of shared memory: "
            f"{free / 1e9:.1f} GB free, {2 * most + 2} batches of {batch_bytes / 1e9:.2f} GB wanted"
        )
    return workers, prefetch_factor


def loader_of(persons: Persons, pixels: PixelSource, scale: Scale, device: torch.device) -> PoseLoader:
    """A training loader with the types and layout that training has on this device by default."""
    on_gpu = device.type == "cuda"
    return PoseLoader(
        persons,
        pixels,
        scale.crop,
        scale.batch,
        augmentation=Augmentation(),
        device=device,
        memory_format=torch.channels_last if on_gpu else torch.contiguous_format,
        dtype=torch.bfloat16 if on_gpu else torch.float32,
    )


def endless(loader: PoseLoader) -> Generator[Batch, None, None]:
    for epoch in count():
        yield from loader.epoch(epoch)


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def loader_row(feed: Feed, scale: Scale, device: torch.device) -> dict[str, Any]:
    """Samples per second of a source for a consumer that does nothing; so its wait is nearly all of the time."""
    waits = Waits(device)
    with closing(feed.make()) as batches:
        for _ in range(feed.warm):
            next(batches)
        wait_for(device)
        start, samples = time.perf_counter(), 0
        while time.perf_counter() - start < scale.seconds:
            samples += sum(len(waits.next(batches).images) for _ in range(feed.burst))
        wait_for(device)
        seconds = time.perf_counter() - start
    return feed_row(feed, scale, samples / seconds, sum(waits.seconds()) / seconds)


def feed_row(feed: Feed, scale: Scale, samples_per_s: float, wait: float) -> dict[str, Any]:
    return {
        "source": feed.source,
        "threads": feed.threads,
        "batch": scale.batch,
        "samples_per_s": samples_per_s,
        "input_wait_fraction": min(1.0, wait),
    }


def measure_steps(report: Report, feeds: dict[str, Feed], scale: Scale) -> None:
    """The training step on one fixed batch and fed by each source; on CUDA also as a graph and compiled."""
    on_gpu = report.device.type == "cuda"
    report.figures["step"] |= {
        "network": f"ResNet-{scale.depth} fcn",
        "size": list(scale.crop),
        "batch": scale.batch,
        "dtype": "bfloat16" if on_gpu else "float32",
        "layout": "channels_last" if on_gpu else "contiguous",
        "fixed": [],
        "fed": [],
    }
    fixed = fixed_batch(report, feeds, scale)
    fed = [feeds[name] for name in ("resident", f"files {cores()}", "gpu_jpeg", USER) if name in feeds]
    measure_mode(report, fixed, fed, scale, "eager")
    if not on_gpu:
        return
    best = [feed for feed in fed if feed.source != USER][:1]
    if not report.late("step: peak memory", needs=10):
        with report.part("step: peak memory"):
            report.figures["step"]["peak_bytes"] = peak_bytes(fixed, scale)
    if not report.late("step: cuda_graph", needs=30):
        with report.part("figures after this may be wrong: capture of the step"):
            measure_mode(report, fixed, best, scale, "cuda_graph", cuda_graph=True)
    if not report.late("step: compile", needs=90):
        with report.optional("step: compile"):  # needs a compiler that may not be there
            measure_mode(report, fixed, best, scale, "compile", compile=True)


def fixed_batch(report: Report, feeds: dict[str, Feed], scale: Scale) -> Batch:
    """The first batch of the first source that has one; of noise where none has."""
    for feed in feeds.values():
        if feed.source != USER:
            with report.optional(f"step: a batch of {feed.source}"), closing(feed.make()) as batches:
                return next(batches)
    report.note("step: the fixed batch is noise, for want of a source")
    return noise_batch(scale, report.device)


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


def measure_mode(report: Report, fixed: Batch, feeds: list[Feed], scale: Scale, mode: str, **options: bool) -> None:
    """One row in `fixed`, and one in `fed` for each of `feeds`."""
    device = fixed.images.device
    step = Step(scale, device, **options)
    # At first all tunes, compiles or captures itself.
    warm = 5 if device.type == "cuda" else 1
    seconds = [window(step, repeat(fixed), scale.steps, warm, Waits(device)) for _ in range(scale.repeats)]
    step_s = statistics.median(seconds) / scale.steps
    report.figures["step"]["fixed"].append({"mode": mode, "median_s": step_s, "samples_per_s": scale.batch / step_s})
    report.say(f"step, {mode}, fixed batch: {scale.batch / step_s:.0f} samples/s")
    for feed in feeds:
        what = f"step fed by {feed.source}"
        if feed is not feeds[0] and report.late(what, needs=NEEDS.get(feed.source, 15.0)):
            continue
        with report.optional(what) if feed.source in PEERS else report.part(what):
            row = {"mode": mode, **fed_row(step, fixed, feed, scale), **decoder_limit_s(report, feed, scale)}
            report.figures["step"]["fed"].append(row)
            report.say(
                f"step, {mode}, {feed.source}: {row['samples_per_s']:.0f} samples/s, "
                f"{100 * row['of_fixed']:.2f} % of fixed"
            )


def fed_row(step: Callable[[Any], None], fixed: Batch, feed: Feed, scale: Scale) -> dict[str, Any]:
    """Windows of steps on the fixed batch and of steps fed by a source in turn, so that both see the same clocks.

    `of_fixed` is the median over pairs of windows of how fast the fed one is beside the fixed one. Waits are per step,
    in seconds.
    """
    device = fixed.images.device
    steps = -(-scale.steps // feed.burst) * feed.burst
    waits, alone, fed = Waits(device), [], []
    with closing(feed.make()) as batches:
        for _ in range(max(2, scale.repeats // feed.burst)):  # bursts make long windows
            alone.append(window(step, repeat(fixed), steps, feed.warm, Waits(device)))
            fed.append(window(step, batches, steps, feed.warm, waits))
    each = waits.seconds()
    low, ratio, high = np.percentile([a / f for a, f in zip(alone, fed, strict=True)], [25, 50, 75]).tolist()
    return {
        **feed_row(feed, scale, steps * scale.batch / statistics.median(fed), sum(each) / sum(fed)),
        "wait_median_s": statistics.median(each),
        "wait_max_s": max(each),
        "of_fixed": ratio,
        "of_fixed_iqr": high - low,
        "pairs": len(fed),
    }


def window(step: Callable[[Any], None], batches: Iterator[Any], steps: int, warm: int, waits: Waits) -> float:
    """Seconds of `steps` steps, after `warm` more in which source and device get under way; nothing waits in between.

    Without those a source would have batches ready at the start that it made while others were measured.
    """
    for _ in range(warm):
        step(next(batches))
    start = mark(waits.device)
    for _ in range(steps):
        step(waits.next(batches))
    end = mark(waits.device)
    wait_for(waits.device)
    return between(start, end)


def decoder_limit_s(report: Report, feed: Feed, scale: Scale) -> dict[str, float]:
    """`limit_s`: seconds in which all cores, doing nothing else, decode a batch; of sources that the CPU decodes."""
    rates = [row["images_per_s"] for row in report.figures["extra"] if row["what"] == "decoder limit"]
    return {"limit_s": scale.batch / rates[0]} if rates and feed.source in FILE_SOURCES else {}


class Step:
    """fastpose's training step on a Batch; a user's on a Sample, with its target in memory. Both train one network."""

    def __init__(self, scale: Scale, device: torch.device, **options: Any) -> None:
        from fastpose.config import TrainOptions
        from fastpose.engine import TrainStep

        torch.default_generator.manual_seed(0)  # the CPU's alone: CUDA's may be lost to a failed capture
        layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        self.model: nn.Module = pose_resnet(scale.depth)
        self.model.to(device, memory_format=layout)  # type: ignore[call-overload]  # torch's stub lacks it
        self.model.train()
        self.optimizer = torch.optim.RMSprop(self.model.parameters(), lr=1e-5)
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
        options |= {"batch_size": scale.batch, "amp": "bfloat16" if device.type == "cuda" else "off"}
        self._train = TrainStep(self.model, self.optimizer, TrainOptions(**options), device)

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
