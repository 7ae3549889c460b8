# SPDX-License-Identifier: Apache-2.0
"""Cropping, normalising and laying out persons, against OpenCV with torch, torch alone, kornia, numba and NumPy.

`make bench` makes 32 crops of 256 × 256 from five images. The GPU report makes as many crops as there are images.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

import fastpose
from bench import cases
from bench.cases import CROP, DTYPES, LAYOUTS, ON_CPU, ON_CUDA, Array, Bench, Case, Op, Peer, Run, compare, prange
from bench.launches import BATCH, F32, I32, I64, KINDS, KernelWork, Launch, MapStrides, Memory, P, bits, struct, values
from fastpose import ImageBatch, reference
from fastpose.data.images import read_image
from fastpose.ops.affine_crop import plain_affine_crop

SECTOR = 32  # bytes: what a GPU reads at least
PASSES = 64  # crops of each image, by which enough of its sectors must have been touched
LEAST_IMAGE = (660, 1180)  # (h, w) of the smallest picture that random_images makes
BESIDE = Path(__file__).resolve().parents[2].parent / "shared" / "data"
REAL_MPII = Path(os.environ.get("FASTPOSE_REAL_DATA", BESIDE)) / "mpii"
COLOR = fastpose.normalize_color(fastpose.IMAGENET_MEAN, fastpose.IMAGENET_STD)


@dataclass(frozen=True)
class Work:
    """Set n has crops of the images `index[n]` through `matrix[n]`."""

    images: ImageBatch
    matrix: list[Tensor]
    index: list[Tensor]
    size: tuple[int, int] = CROP
    color: Tensor | None = COLOR
    dtype: torch.dtype = torch.float32
    layout: str = "contiguous"
    resample: str = "bilinear"

    def arrays(self) -> list[Array]:
        return [image.numpy() for image in self.images]

    def defined(self, n: int, row: int) -> Array:
        """One crop by the op's definition, in float64."""
        image = self.images[int(self.index[n][row])].cpu().numpy()
        color = None if self.color is None else self.color.numpy()
        matrix, options = self.matrix[n][row : row + 1].cpu(), {"color": color, "resample": self.resample}
        return reference.affine_crop([image], matrix, self.size, dtype=np.float64, **options)[0]


def make(work: Work, moved: int, **about: Any) -> Case:
    batch, layout = len(work.index[0]), LAYOUTS[work.layout]

    def own(n: int) -> Tensor:
        options: dict[str, Any] = {"image_index": work.index[n], "color": work.color}
        options |= {"dtype": work.dtype, "memory_format": layout, "resample": work.resample}
        return fastpose.affine_crop(work.images, work.matrix[n], work.size, **options)

    def check(crops: Tensor) -> None:
        for row in cases.some(batch):
            # The other tolerance is the rounding of float32 coordinates, and of whole numbers.
            atol = 0.54 if work.dtype == torch.uint8 else 1e-3
            compare("crop", crops[row], work.defined(0, row), atol, cases.ROUNDING[work.dtype])

    return Case("affine_crop", work, own, check, moved, work.dtype, batch, len(work.matrix), work.layout, **about)


def crop_bytes(crops: int, size: tuple[int, int], dtype: torch.dtype) -> int:
    return crops * 3 * size[0] * size[1] * dtype.itemsize


def case(
    device: torch.device,
    batch: int,
    cache_bytes: int = 0,
    *,
    dtype: torch.dtype,
    layout: str = "contiguous",
    size: tuple[int, int] = CROP,
    detail: str = "",
    images: ImageBatch | None = None,
    resample: str = "bilinear",
) -> Case:
    """Crops of `batch` neighbouring images; every input set has boxes of its own.

    Sets are added until the distinct sectors that they touch exceed four times the cache.

    Raises:
        ValueError: the images are too few for that.
    """
    if images is None:
        images, matrix, index, touched = random_crops(device, batch, cache_bytes, size, resample)
    else:
        matrix, index, touched = crops_of(images, batch, cache_bytes, size, resample)
    color = None if dtype == torch.uint8 else COLOR
    moved = crop_bytes(batch, size, dtype) + touched
    return make(Work(images, matrix, index, size, color, dtype, layout, resample), moved, detail=detail)


@lru_cache(maxsize=1)
def random_crops(
    device: torch.device, batch: int, cache_bytes: int, size: tuple[int, int], resample: str = "bilinear"
) -> tuple[ImageBatch, list[Tensor], list[Tensor], int]:
    """`crops_of` random images, kept: rows of other types and layouts take the same, and to make them takes seconds."""
    images = random_images(max(batch, images_beyond(cache_bytes)), device)
    return images, *crops_of(images, batch, cache_bytes, size, resample)


def crops_of(
    images: ImageBatch, batch: int, cache_bytes: int, size: tuple[int, int], resample: str = "bilinear"
) -> tuple[list[Tensor], list[Tensor], int]:
    """Sets of crop_to_image and image_index, and the bytes of the sectors that a set touches, on average.

    Raises:
        ValueError: the images are too few.
    """
    device = images.device
    wanted = 4 * cache_bytes
    too_few = (
        f"images: expected at least {1.5 * wanted:,.0f} bytes, so that crops touch more than four times the L2 of "
        f"{cache_bytes:,} bytes, got {images.data.numel():,}"
    )
    if images.data.numel() < 1.5 * wanted:  # boxes leave some of every image out
        raise ValueError(too_few)
    image_sizes = images.sizes.cpu()
    matrix: list[Tensor] = []
    index: list[Tensor] = []
    union, touched_bytes = torch.zeros((), dtype=torch.bool, device=device), 0
    while len(matrix) < 2 or SECTOR * int(union.sum()) < wanted:
        if len(matrix) >= max(2, PASSES * len(images) // batch):
            raise ValueError(f"{too_few}, of which {PASSES} crops of each image do not touch enough")
        chosen = (torch.arange(batch) + len(matrix) * batch) % len(images)
        boxes = cases.random_boxes(image_sizes[chosen], size, len(matrix))
        sectors = touched_sectors(images, boxes.to(device), chosen, size, resample)
        union, touched_bytes = union | sectors, touched_bytes + SECTOR * int(sectors.sum())
        matrix.append(boxes.to(device))
        index.append(chosen.to(device))
    return matrix, index, touched_bytes // len(matrix)


def cpu_case() -> Case:
    """32 boxes of 150 to 600 px on five images: MPII's where they are available (FASTPOSE_REAL_DATA), else noise."""
    images = [read_image(path) for path in sorted(REAL_MPII.glob("images/*.jpg"))[:5]]
    inputs = "real images" if images else "noise"
    images = images or [np.random.default_rng(n).integers(0, 256, (720, 1280, 3), dtype=np.uint8) for n in range(5)]
    generator = torch.Generator().manual_seed(0)
    index = torch.arange(cases.CPU_BATCH) % len(images)
    extent = torch.tensor([images[n].shape[1::-1] for n in index.tolist()])
    center = extent * (0.3 + 0.4 * torch.rand(cases.CPU_BATCH, 2, generator=generator))
    scale = 0.75 + 2.25 * torch.rand(cases.CPU_BATCH, generator=generator)
    rotation = 60 * torch.rand(cases.CPU_BATCH, generator=generator) - 30
    matrix = fastpose.crop_to_image_matrix(center, scale, rotation, CROP)
    work = Work(ImageBatch.from_list(images), [matrix], [index])
    touched = touched_sectors(work.images, matrix, index, CROP)
    return make(work, crop_bytes(cases.CPU_BATCH, CROP, work.dtype) + SECTOR * int(touched.sum()), inputs=inputs)


def images_beyond(cache_bytes: int) -> int:
    """How many `random_images` it takes for crops of them to touch four times the L2, with half as much to spare."""
    return math.ceil(1.5 * 4 * cache_bytes / (3 * LEAST_IMAGE[0] * LEAST_IMAGE[1]))


def random_images(count: int, device: torch.device) -> ImageBatch:
    """Noise in pictures of different sizes around 1280 × 720."""
    generator = torch.Generator().manual_seed(0)
    height = torch.randint(LEAST_IMAGE[0], 781, (count,), generator=generator)
    width = torch.randint(LEAST_IMAGE[1], 1381, (count,), generator=generator)
    ends = (3 * height * width).cumsum(0)
    offsets = torch.cat([ends.new_zeros(1), ends[:-1]])
    noise = torch.Generator(device).manual_seed(0)
    data = torch.randint(0, 256, (int(ends[-1]),), generator=noise, dtype=torch.uint8, device=device)
    return ImageBatch(data, offsets.to(device), torch.stack([height, width], 1).to(torch.int32).to(device))


def touched_sectors(
    images: ImageBatch, crop_to_image: Tensor, image_index: Tensor, size: tuple[int, int], resample: str = "bilinear"
) -> Tensor:
    """Which 32-byte sectors of the buffer the taps that lie inside the images touch: bool [sectors]."""
    taps = range(2) if resample == "bilinear" else range(-1, 3)
    device, shift = images.device, images.data.data_ptr() % SECTOR
    touched = torch.zeros((shift + images.data.numel()) // SECTOR + 1, dtype=torch.bool, device=device)
    x_crop = torch.arange(size[1], device=device, dtype=torch.float32)
    y_crop = torch.arange(size[0], device=device, dtype=torch.float32)[:, None]
    starts, sizes = images.offsets.tolist(), images.sizes.tolist()
    for m, n in zip(crop_to_image, image_index.tolist(), strict=True):
        height, width = sizes[n]
        x = m[0, 0] * x_crop + (m[0, 1] * y_crop + m[0, 2])
        y = m[1, 0] * x_crop + (m[1, 1] * y_crop + m[1, 2])
        touches = (x > -taps[-1]) & (y > -taps[-1]) & (x < width - taps[0]) & (y < height - taps[0])
        x0, y0 = x[touches].floor().to(torch.int64), y[touches].floor().to(torch.int64)
        for tx, ty in ((x0 + dx, y0 + dy) for dy in taps for dx in taps):
            inside = (tx >= 0) & (ty >= 0) & (tx < width) & (ty < height)
            first = shift + starts[n] + 3 * (ty * width + tx)[inside]
            touched[first // SECTOR] = True
            touched[(first + 2) // SECTOR] = True
    return touched


# ---- peers -----------------------------------------------------------------------------------------------------------

WARP = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
OPENCV = 0.53 / (255 * 0.224)  # tolerance: it rounds to whole grey levels
GRID = 5e-3  # tolerance of coordinates that were scaled to -1 … 1, in float32


def opencv(work: Work) -> Run:
    """What a SimpleBaselines data loader does per person, batched at the end as its collate function does."""
    images, matrices, index = work.arrays(), work.matrix[0].double().numpy(), work.index[0].tolist()
    mean, std = torch.tensor(fastpose.IMAGENET_MEAN).view(3, 1, 1), torch.tensor(fastpose.IMAGENET_STD).view(3, 1, 1)

    def run(n: int) -> Tensor:
        out = []
        for matrix, i in zip(matrices, index, strict=True):
            crop = cv2.warpAffine(images[i], matrix, work.size[::-1], flags=WARP)
            out.append(torch.from_numpy(crop).permute(2, 0, 1).contiguous().float().div_(255).sub_(mean).div_(std))
        return torch.stack(out)

    return run


def opencv_tuned(work: Work) -> Run:
    """A thread per person, and a table that casts and normalises, written to where the batch has the crop."""
    images, matrices, index = work.arrays(), work.matrix[0].double().numpy(), work.index[0].tolist()
    gain, shift = COLOR.diagonal().numpy(), COLOR[:, 3].numpy()
    tables = np.arange(256, dtype=np.float32) * gain[:, None] + shift[:, None]
    pool = ThreadPoolExecutor(torch.get_num_threads())
    cv2.setNumThreads(1)

    def one(out: Array, matrix: Array, i: int) -> None:
        crop = cv2.warpAffine(images[i], matrix, work.size[::-1], flags=WARP)
        for plane, table, channel in zip(out, tables, cv2.split(crop), strict=True):
            cv2.LUT(channel, table, plane)

    def run(n: int) -> Tensor:
        out = torch.empty(len(index), 3, *work.size)
        list(pool.map(one, out.numpy(), matrices, index))
        return out

    return run


def plain(function: Callable[..., Tensor], work: Work) -> Run:
    images, color = work.images, None if work.color is None else work.color.to(work.images.device)
    rest = (*work.size, 0.0, work.dtype, work.layout == "channels_last")
    return lambda n: function(images.data, images.offsets, images.sizes, work.matrix[n], work.index[n], color, *rest)


def grid_sample(images: Tensor, matrix: Tensor, inverse: Tensor, size: tuple[int, int]) -> Tensor:
    return functional.grid_sample(images, sampling_grid(images, matrix, size), align_corners=True)


def sampling_grid(images: Tensor, matrix: Tensor, size: tuple[int, int]) -> Tensor:
    """Where grid_sample shall look, [B, h, w, 2]: -1 and 1 are the middles of the first and last pixel."""
    y, x = torch.meshgrid(*(torch.arange(side, device=images.device) for side in size), indexing="ij")
    crop_points = torch.stack([x, y, torch.ones_like(x)], -1).view(1, -1, 3).float()
    x, y = (crop_points @ matrix.mT).unbind(2)
    height, width = images.shape[2:]
    return torch.stack([x * (2 / (width - 1)) - 1, y * (2 / (height - 1)) - 1], 2).view(-1, *size, 2)


def kornia(images: Tensor, matrix: Tensor, inverse: Tensor, size: tuple[int, int]) -> Tensor:
    from kornia.geometry.transform import warp_affine  # a peer that need not be installed

    return warp_affine(images, inverse[:, :2], size, align_corners=True)


def sampled(sample: Callable[..., Tensor], work: Work) -> Run:
    """`sample` on float images, and what is then left to do in one pass over the crops.

    It takes images of one size. On the CPU each is cast by itself, once, and all its crops are sampled together; on a
    GPU all are padded to one tensor.
    """
    device = work.images.device
    every = list(work.images)  # looked up beforehand, as is all that makes a GPU wait
    color = COLOR.to(device)
    gain, shift = color.diagonal().view(1, 3, 1, 1), color[:, 3].view(1, 3, 1, 1)
    inverse = [
        torch.linalg.inv(torch.cat([m, m.new_tensor([[[0, 0, 1]]]).expand(len(m), 1, 3)], 1)) for m in work.matrix
    ]
    index = [chosen.tolist() for chosen in work.index]
    rows = []
    if device.type == "cpu":
        rows = [[(chosen == i).nonzero()[:, 0] for i in range(len(every))] for chosen in work.index]

    def run(n: int) -> Tensor:
        if device.type == "cuda":
            crops = sample(padded([every[i] for i in index[n]]), work.matrix[n], inverse[n], work.size)
        else:
            crops = torch.empty(len(index[n]), 3, *work.size)
            for image, some_rows in zip(every, rows[n], strict=True):
                pixels = image.permute(2, 0, 1).float().expand(len(some_rows), -1, -1, -1)
                crops[some_rows] = sample(pixels, work.matrix[n][some_rows], inverse[n][some_rows], work.size)
        return torch.addcmul(shift, crops, gain).to(work.dtype, memory_format=LAYOUTS[work.layout])

    return run


def padded(images: list[Tensor]) -> Tensor:
    """Images of different sizes as one float tensor [B, 3, H, W]."""
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    out = torch.zeros(len(images), 3, height, width, device=images[0].device)
    for target, image in zip(out, images, strict=True):
        target[:, : image.shape[0], : image.shape[1]] = image.permute(2, 0, 1)
    return out


def bare_grid_sample(work: Work) -> Run:
    """The sampling alone: images cast and padded, grids made, and nothing normalised."""
    every, ready = list(work.images), {}
    prepared = []
    for matrix, chosen in zip(work.matrix, work.index, strict=True):
        key = tuple(chosen.tolist())
        if key not in ready:  # input sets may share their images
            ready[key] = padded([every[i] for i in key])
        prepared.append((ready[key], sampling_grid(ready[key], matrix, work.size)))
    return lambda n: functional.grid_sample(*prepared[n], align_corners=True)


@cases.in_numba
def numba_loop(
    data: Array, offsets: Array, sizes: Array, crop_to_image: Array, index: Array, color: Array, out: Array
) -> None:
    """Crops into `out`, float32 [B, 3, h, w]; `color` is [3, 4].

    What the compiler leaves in the loop over x, as `out` might overlap it, is read before it; unsigned indices save the
    test for negative ones.
    """
    batch, _, height, width = out.shape
    one, pixel, green, blue = np.float32(1), np.uint64(3), np.uint64(1), np.uint64(2)
    c = color.ravel()
    rr, rg, rb, r1, gr, gg, gb, g1 = c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]
    br, bg, bb, b1 = c[8], c[9], c[10], c[11]
    for row in prange(batch * height):
        b, y = row // height, row % height
        m, n = crop_to_image[b], index[b]
        xx, yx = m[0, 0], m[1, 0]
        start_x, start_y = m[0, 1] * np.float32(y) + m[0, 2], m[1, 1] * np.float32(y) + m[1, 2]
        image_height, image_width = sizes[n, 0], sizes[n, 1]
        image = data[offsets[n] : offsets[n] + 3 * image_height * image_width]
        stride, right, bottom = np.uint64(3 * image_width), np.float32(image_width), np.float32(image_height)
        for x in range(width):
            sx, sy = xx * np.float32(x) + start_x, yx * np.float32(x) + start_y
            r = g = v = np.float32(0)
            if sx >= 0 and sy >= 0 and sx < right - one and sy < bottom - one:
                x0, y0 = np.int32(sx), np.int32(sy)
                wx, wy = sx - np.float32(x0), sy - np.float32(y0)
                p = np.uint64(y0) * stride + pixel * np.uint64(x0)
                q, s, t = p + pixel, p + stride, p + stride + pixel
                wt = wx * wy
                wq, ws = wx - wt, wy - wt
                wp = one - wx - ws
                r = wp * image[p] + wq * image[q] + ws * image[s] + wt * image[t]
                g = wp * image[p + green] + wq * image[q + green] + ws * image[s + green] + wt * image[t + green]
                v = wp * image[p + blue] + wq * image[q + blue] + ws * image[s + blue] + wt * image[t + blue]
            elif sx > -one and sy > -one and sx < right and sy < bottom:
                x0, y0 = math.floor(sx), math.floor(sy)
                wx, wy = sx - np.float32(x0), sy - np.float32(y0)
                for dy in range(2):
                    for dx in range(2):
                        tx, ty = x0 + dx, y0 + dy
                        if 0 <= tx < image_width and 0 <= ty < image_height:
                            weight = (wx if dx else one - wx) * (wy if dy else one - wy)
                            tap = 3 * (ty * image_width + tx)
                            r += weight * image[tap]
                            g += weight * image[tap + 1]
                            v += weight * image[tap + 2]
            out[b, 0, y, x] = rr * r + rg * g + rb * v + r1
            out[b, 1, y, x] = gr * r + gg * g + gb * v + g1
            out[b, 2, y, x] = br * r + bg * g + bb * v + b1


def numba(work: Work) -> Run:
    images = work.images
    tables = (images.data, images.offsets, images.sizes, work.matrix[0], work.index[0], work.color)
    arrays = [table.numpy() for table in tables]

    def run(n: int) -> Array:
        out = np.empty((len(arrays[3]), 3, *work.size), np.float32)
        numba_loop(*arrays, out)
        return out

    return run


def numpy_reference(work: Work) -> Run:
    images, matrix = work.arrays(), work.matrix[0].numpy()
    options = {"image_index": work.index[0].numpy(), "color": work.color.numpy()}
    return lambda n: reference.affine_crop(images, matrix, work.size, **options)


PEERS = {
    "opencv": Peer(opencv, OPENCV, ON_CPU),
    "opencv_tuned": Peer(opencv_tuned, OPENCV, ON_CPU),
    "plain_torch": Peer(partial(plain, plain_affine_crop)),
    "torch_compile": Peer(lambda work: plain(cases.compiled(plain_affine_crop), work)),
    "grid_sample": Peer(partial(sampled, grid_sample), GRID),
    "limit_bare_grid_sample": Peer(bare_grid_sample, None, ON_CUDA),
    "kornia": Peer(partial(sampled, kornia), GRID),
    "numba": Peer(numba, devices=ON_CPU),
    "numpy_reference": Peer(numpy_reference, devices=ON_CPU),
}

# ---- what the kernel is counted on -----------------------------------------------------------------------------------

CROPS, SHARE = 64, 1 / 8  # what is run: crops, and the share of their blocks
# fmt: off
AffineCropParams = struct(
    "AffineCropParams",
    data=P, data_bytes=I64, offsets=P, sizes=P, images=I64, image_stride=I64, row_stride=I64,
    image_height=I32, image_width=I32, image_index=P, crop_to_image=P,
    color=P, color_stride=I64, color_of_all=F32 * 12, fill=F32,
    out=P, kind=I32, out_strides=MapStrides, batch=I64, height=I32, width=I32, resample=I32,
    erase=P, boxes=I64,
)
# fmt: on


def kernel(dtype: torch.dtype, layout: str) -> KernelWork:
    """Some tiles of crops of boxes of 150 to 600 px, with a colour map for all."""
    images = random_images(4, cases.CPU)
    index = torch.arange(CROPS) % len(images)
    # Of few boxes these have the report's shares of tiles inside, across and outside the image: 82, 10 and 8 %.
    boxes = cases.random_boxes(images.sizes[index], CROP, 9)
    work = Work(images, [boxes], [index], dtype=dtype, layout=layout)
    out = torch.full((CROPS, 3, *CROP), float("nan"), dtype=dtype).contiguous(memory_format=LAYOUTS[layout])
    memory, p = Memory(), AffineCropParams()
    p.data, p.data_bytes = memory.add(images.data.numpy()), images.data.numel()
    p.offsets, p.sizes, p.images = memory.add(images.offsets.numpy()), memory.add(images.sizes.numpy()), len(images)
    p.image_index, p.crop_to_image = memory.add(index.numpy()), memory.add(boxes.numpy())
    p.color_of_all[:] = COLOR.flatten().tolist()
    p.out, p.kind = memory.add(bits(out)), KINDS[dtype]
    p.out_strides = MapStrides(*out.stride())
    p.batch, (p.height, p.width) = CROPS, CROP

    def check(launches: list[Launch], ran: int) -> None:
        got = values(memory, p.out, out)
        written = ~np.isnan(got)
        for row in range(0, CROPS, 4):
            there = written[row]
            compare("crop", got[row][there], work.defined(0, row)[there], 1e-3, cases.ROUNDING[dtype])
        if (expected := out.numel() * ran // launches[0].blocks) != written.sum():
            raise cases.WrongResultError(f"crop: expected {expected} values written, got {written.sum()}")

    # A batch has an image for every crop: no two share a sector.
    touched = sum(
        int(touched_sectors(images, boxes[row : row + 1], index[row : row + 1], CROP).sum()) for row in range(CROPS)
    )
    pixels, moved = CROP[0] * CROP[1] / 32, crop_bytes(CROPS, CROP, dtype) + SECTOR * touched
    moved = moved * BATCH // CROPS
    return KernelWork(
        "launch_affine_crop", p, memory, "32 pixels", CROPS * pixels, BATCH * pixels, moved, check, share=SHARE
    )


OP = Op(
    "affine_crop",
    benches=(Bench("affine_crop", "affine_crop", cpu_case, PEERS),),
    case=case,
    peers=PEERS,
    goals=[{"dtype": dtype, "layout": layout} for dtype in DTYPES for layout in LAYOUTS],
    extra=[
        {"dtype": torch.uint8, "detail": "uint8 out, no colour map"},
        {"dtype": torch.float32, "size": (384, 288), "detail": "384 x 288 crops"},
        {"dtype": torch.float32, "resample": "bicubic", "detail": "bicubic"},
    ],
    kernels={
        "affine_crop, float32": partial(kernel, torch.float32, "contiguous"),
        **{
            f"affine_crop, {cases.dtype_name(dtype)} channels-last": partial(kernel, dtype, "channels_last")
            for dtype in DTYPES[1:]
        },
    },
)
