# SPDX-License-Identifier: Apache-2.0
"""Batches by pixel source and number of cores: alone, and as they feed training."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch

from bench import train_step
from bench.report import Report
from bench.train_step import FixedBatch, Scale, Waits, wait_for
from bench.user_loader import fit_into, user_batches
from fastpose.data.augmentation import Augmentation
from fastpose.data.boxes import reductions
from fastpose.data.images import read_image
from fastpose.data.loader import Batch, PoseLoader
from fastpose.data.pack import Margins, Plan, read_packed_persons, write_pack
from fastpose.data.persons import Persons
from fastpose.data.pixels import ImageFiles, PackedImages, PixelSource, ResidentImages
from fastpose.data.synthetic import render_scene
from fastpose.skeletons import MPII

USER = "cv2+DataLoader"
# They need what may not be there: a package; shared memory for the batches of worker processes.
PEERS = ("gpu jpeg", USER)
NEEDS = {USER: 10.0, "gpu jpeg": 3.0}  # seconds for a row apart from decoding; of the others 1.8
DECODED = ("files", "files, reduced", "pack, jpeg", USER)  # by the CPU
USER_CORES = (2,)  # beside all: starting and ending its processes takes longer than measuring
SHARED_MEMORY = Path("/dev/shm")  # where DataLoader's workers put their batches
CORES = (16, 2, 8, 4, 1)  # the most interesting first


@dataclass(frozen=True)
class Feed:
    """One way to feed training: `make` gives batches without end.

    `burst` batches arrive at about the same time, because as many workers began them together; only whole bursts are
    counted. After `warm` batches the source is in its steady state: what it had made ahead is used up, and the memory
    that it needs (page-locked, for a GPU) is there.
    """

    make: Callable[[], Generator[Any, None, None]]  # of Batch, or Sample
    burst: int = 1
    warm: int = 0


@dataclass(frozen=True)
class Data:
    """The same persons on the same pictures, with many rows per picture, for every source.

    Attributes:
        files: each row on a path of its own: ImageFiles decodes none twice for a batch.
        packs: on the images of packs, by what these store.
        resident: on decoded pictures.
        pixels: the decoded pictures, on the device.
    """

    files: Persons
    packs: dict[str, Persons]
    resident: Persons
    pixels: ResidentImages


def measure(report: Report, scale: Scale) -> None:
    """Fills `training`: for each number of cores and source, how fast batches come, and how fast training on them is.

    The decoder's limit goes to `extra`. Training is in the fastest mode that `step` has rows of; for the user's loader
    it is eager.
    """
    report.begin("training")
    if not hasattr(os, "sched_setaffinity"):
        return report.note("training: left out, this system cannot restrict a process to some of its cores")
    report.note(
        "training: all threads of the process, and those and the workers that they start, were restricted to so many "
        "of the cores that the system numbers (hardware threads), and torch's pool to as many threads; gpu_busy is "
        "NVML's utilisation at the end of the window: the share of its last sample period, 1/6 to 1 s, in which a "
        "kernel ran; peak_bytes is what torch had reserved at most, with all that is in it for every source: the "
        "decoded pictures, and one network for each mode"
    )
    if utilisation(report.device) is None:  # the first call, and the slowest: before anything is timed
        report.note("training: gpu_busy is unknown, NVML has no utilisation here")
    mode, tuned = train_step.fastest(report.figures["step"].get("fixed", []))
    with pictures(report, scale) as data, train_step.cudnn_benchmark(tuned):
        with closing(endless(loader_of(data.resident, data.pixels, scale, report.device))) as batches:
            batch = next(batches)
        fixed = {
            name: FixedBatch(train_step.make_step(scale, report.device, name), batch, scale, name)
            for name in dict.fromkeys((mode, "eager"))
        }
        for each in fixed.values():
            each.warm_up()
        failed: set[str] = set()
        most, *fewer = core_counts()  # asked before the process has fewer
        for cores in (most, *fewer):
            with only_cores(cores), against_fixed(report, fixed) as fixed_seconds:
                with report.part(f"decoder limit on {cores} cores"):
                    report.figures["extra"].append(decoder_limit(data.files, scale, cores))
                for source, make in feed_makers(report, data, scale, cores).items():
                    what = f"training: {source} on {cores} cores"
                    if source in failed or (source == USER and cores not in (most, *USER_CORES)):
                        continue
                    if report.late(what, needs=seconds_for(source, cores)):
                        continue
                    failed.add(source)  # until its row is there: what fails is not tried again with fewer cores
                    with report.optional(what) if source in PEERS else report.part(what):
                        step = fixed["eager" if source == USER else mode]
                        row = training_row(source, make(), step, fixed_seconds[step.mode], cores, scale)
                        report.figures["training"].append(row)
                        failed.remove(source)
                        report.say(
                            f"{source}, {cores} cores: {row['loader_samples_per_s']:.0f} samples/s alone, in training "
                            f"{row['samples_per_s']:.0f}, {100 * row['of_fixed']:.1f} % of fixed"
                        )


def seconds_for(source: str, cores: int) -> float:
    """What a row takes, by a guess: windows and warm-up batches at what so many cores decode."""
    return NEEDS.get(source, 1.8) + (8.0 / cores if source in DECODED else 0.0)


@contextmanager
def against_fixed(report: Report, fixed: dict[str, FixedBatch]) -> Iterator[dict[str, float]]:
    """Seconds of each mode's step on the fixed batch, for rows that are measured meanwhile.

    They are measured again in the end, and the rows then compared with the mean of both: the GPU's clocks move.
    """
    before = {mode: each.seconds() for mode, each in fixed.items()}
    rows = report.figures["training"]
    first = len(rows)
    yield before
    after = {mode: each.seconds() for mode, each in fixed.items()}
    for row in rows[first:]:
        row["of_fixed"] *= (1 + after[row["mode"]] / before[row["mode"]]) / 2


def training_row(
    source: str, feed: Feed, fixed: FixedBatch, fixed_seconds: float, cores: int, scale: Scale
) -> dict[str, Any]:
    """One source on the cores that the process has now: alone, for a consumer that does nothing, then in training.

    `fixed_seconds` is what a step takes on the fixed batch.
    """
    device = fixed.device
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    with closing(feed.make()) as batches:
        warm_up(batches, feed, scale)
        alone, _ = window(batches, lambda batch: None, feed, scale, Waits(device))
        for _ in range(2 * feed.burst):
            fixed.step(next(batches))
        waits = Waits(device)
        fed, busy = window(batches, fixed.step, feed, scale, waits)
        each = waits.seconds()
    # Reserved, not allocated: a graph's activations were allocated and freed when it was captured, and lie in its pool.
    peak = torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None
    return {
        "cores": cores,
        "source": source,
        "mode": fixed.mode,
        "batch": scale.batch,
        "loader_samples_per_s": alone,
        "samples_per_s": fed,
        "of_fixed": fed * fixed_seconds / scale.batch,
        "input_wait_fraction": min(1.0, sum(each) / (len(each) * scale.batch / fed)),
        "wait_max_s": max(each),
        "gpu_busy": busy,
        "peak_bytes": peak,
    }


def warm_up(batches: Iterator[Any], feed: Feed, scale: Scale) -> None:
    """Takes `feed.warm` batches. A source that gives few in `scale.seconds` is in its steady state after two bursts."""
    begin = train_step.now()
    for taken in range(feed.warm):
        if taken >= 2 * feed.burst and train_step.now() - begin > scale.seconds:
            return
        next(batches)


def window(
    batches: Iterator[Any], step: Callable[[Any], Any], feed: Feed, scale: Scale, waits: Waits
) -> tuple[float, float | None]:
    """Samples per second of `step` on batches for `scale.seconds`, and the GPU's utilisation at the end, 0 to 1.

    Whole bursts, at least three batches.
    """
    wait_for(waits.device)
    begin, taken = train_step.now(), 0
    while taken < 3 or train_step.now() - begin < scale.seconds:
        for _ in range(feed.burst):
            step(waits.next(batches))
        taken += feed.burst
    busy = utilisation(waits.device)
    wait_for(waits.device)
    return taken * scale.batch / (train_step.now() - begin), busy


def utilisation(device: torch.device) -> float | None:
    """The share of NVML's last sample period in which a kernel ran; None where it does not say."""
    try:
        return torch.cuda.utilization(device) / 100
    except Exception:  # pynvml is missing, or the driver does not say: each has an exception of its own
        return None


@contextmanager
def pictures(report: Report, scale: Scale) -> Iterator[Data]:
    """Draws the pictures, writes them as files and packs, decodes them on the device; removes them in the end."""
    with tempfile.TemporaryDirectory(prefix="fastpose-bench-") as name:
        folder = Path(name)
        (folder / "files").mkdir()
        files = write_pictures(folder / "files", scale)
        report.note(
            f"training: {scale.pictures} JPEGs of {scale.picture[1]} x {scale.picture[0]} pixels, quality 90, "
            f"{mean_bytes(folder / 'files') // 1000} kB on average, in the page cache; synthetic persons, enlarged, "
            "put side by side and covered with noise"
        )
        one_each = files.select(np.arange(scale.pictures))
        kinds: tuple[Literal["raw", "jpeg"], ...] = ("raw", "jpeg")
        packs = {kind: on_images(files, pack(folder / kind, one_each, kind, scale).image_paths) for kind in kinds}
        pixels = ResidentImages.from_files(one_each.image_paths, report.device, cores_here())
        report.say(f"{scale.pictures} pictures drawn, packed and decoded")
        yield Data(files, packs, on_images(files, one_each.image_paths), pixels)


def on_images(persons: Persons, paths: tuple[Path, ...]) -> Persons:
    """The same persons on other images of the same pictures, each of which many of them share."""
    return dataclasses.replace(persons, image_paths=paths, image_index=persons.image_index % len(paths))


def pack(folder: Path, persons: Persons, kind: Literal["raw", "jpeg"], scale: Scale) -> Persons:
    """Packs persons as `fastpose pack` does by default for crops of that size."""
    augmentation = Augmentation()
    margins = Margins(scale.crop, augmentation.rotation, augmentation.scale_min, augmentation.scale_max, reduce=True)
    plan = Plan(kind, 90, 1 << 30, {"train": margins}, {"train": "drawn"}, {})
    write_pack(folder, plan, {"train": persons}, threads=cores_here())
    return read_packed_persons(folder, "train")


def mean_bytes(folder: Path) -> int:
    sizes = [path.stat().st_size for path in folder.iterdir()]
    return sum(sizes) // len(sizes)


def cores_here() -> int:
    """Cores that this process may use, at most the 16 of the goal."""
    return min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def core_counts() -> list[int]:
    """The numbers of cores to measure with: all, then fewer."""
    most = cores_here()
    return [most, *(cores for cores in CORES if cores < most)]


@contextmanager
def only_cores(cores: int) -> Iterator[None]:
    """Restricts the whole process to `cores` of those that it may use, and torch's pool to as many threads.

    `os.sched_setaffinity(0, ...)` would restrict the calling thread alone; the threads of torch's pool, of autograd and
    of the driver are there already. A thread or process that starts later gets the cores of the one that starts it.
    """
    allowed, threads = os.sched_getaffinity(0), torch.get_num_threads()
    try:
        restrict_threads(set(sorted(allowed)[:cores]))
        torch.set_num_threads(cores)
        yield
    finally:
        restrict_threads(allowed)
        torch.set_num_threads(threads)


def restrict_threads(cores: set[int]) -> None:
    for thread in os.listdir("/proc/self/task"):
        with suppress(ProcessLookupError):  # it has ended
            os.sched_setaffinity(int(thread), cores)


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

    with ThreadPoolExecutor(cores_here()) as pool:
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
        source_row=np.arange(scale.pictures * times),
        skeleton=MPII,
    )


def decoder_limit(persons: Persons, scale: Scale, cores: int) -> dict[str, Any]:
    """Images per second that the cores decode when they do nothing else."""
    paths = persons.image_paths[: 8 * cores]
    cv2.setNumThreads(0)
    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(read_image, paths[:cores]))
        start, images = train_step.now(), 0
        while images == 0 or train_step.now() - start < scale.seconds:
            images += sum(image.size > 0 for image in pool.map(read_image, paths))
        seconds = train_step.now() - start
    return {"what": "decoder limit", "cores": cores, "images_per_s": images / seconds}


def feed_makers(report: Report, data: Data, scale: Scale, cores: int) -> dict[str, Callable[[], Feed]]:
    """The sources by name, the most interesting first; making one may fail."""
    device, persons, paths = report.device, data.files, data.files.image_paths

    def gpu_jpeg() -> PixelSource:
        from fastpose.data.pixels import GpuJpegFiles  # needs a package that may not be there

        return GpuJpegFiles(paths, device, cores)

    def user() -> Feed:
        workers, prefetch = user_workers(report, scale, cores) if device.type == "cuda" else (0, 2)
        make = partial(user_batches, persons, scale.crop, scale.batch, workers, device, prefetch_factor=prefetch)
        return Feed(make, burst=max(1, workers), warm=2 * workers)

    def loader(persons: Persons, make: Callable[[], PixelSource]) -> Feed:
        made = loader_of(persons, make(), scale, device)
        # Two threads prepare a batch each: of a source that the cores limit, the two come at about the same time.
        return Feed(partial(endless, made), burst=2, warm=made.prefetch + 3 if device.type == "cuda" else 0)

    def packed(kind: str) -> Feed:
        images = data.packs[kind]
        return loader(images, lambda: PackedImages(images.image_paths, cores))

    reduction = reductions(persons, scale.crop, Augmentation().scale_min)
    return {
        "resident": lambda: loader(data.resident, lambda: data.pixels),
        "pack, jpeg": lambda: packed("jpeg"),
        "files, reduced": lambda: loader(persons, lambda: ImageFiles(paths, cores, reduction)),
        "files": lambda: loader(persons, lambda: ImageFiles(paths, cores)),
        USER: user,
        "pack, raw": lambda: packed("raw"),
        "gpu jpeg": lambda: loader(persons, gpu_jpeg),
    }


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
            f"{USER}: {workers} workers that prefetch {prefetch_factor}, since shared memory is scarce: "
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
