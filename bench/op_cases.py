# SPDX-License-Identifier: Apache-2.0
"""What the GPU report times: each op on realistic random inputs, the bytes it must move, a check of its result."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fastpose
from bench import peers, vectorized
from bench.timing import Run, Timer
from fastpose import ImageBatch, reference
from fastpose.skeletons import MPII

JOINTS = 16
SECTOR = 32  # bytes: what a GPU reads at least
PASSES = 64  # crops of each image, by which enough of its sectors must have been touched
WHOLE_BODY = (133, 308)  # joints: COCO-WholeBody's, Sapiens'
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
# Relative rounding of a stored result; the crop's other tolerance is the rounding of float32 coordinates.
LEAST_IMAGE = (660, 1180)  # (h, w) of the smallest picture that random_images makes
ROUNDING = {torch.float32: 2e-6, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7, torch.uint8: 0.0}


class WrongResultError(ArithmeticError):
    """An op's result is not what its definition gives; its time means nothing."""


@dataclass
class Case:
    """One row of the report. `own` and the peers take the number of an input set, 0 … sets − 1.

    `bytes` is what one launch must move. `check` takes the outputs of `own(0)` and raises WrongResultError. Peers are
    made when their turn comes, because making one may fail: a package that is not there, a compiler that is not there.
    """

    op: str
    dtype: torch.dtype
    batch: int
    bytes: int
    sets: int
    own: Run
    check: Callable[[Any], None]
    peers: dict[str, Callable[[], Run]] = field(default_factory=dict)
    layout: str = "contiguous"
    detail: str = ""


def goal_cases(timer: Timer, images: ImageBatch, batch: int) -> list[partial[Case]]:
    """The four ops at the sizes of the goals: `batch` crops of 256 x 256, as many times 16 maps of 64 x 64, sigma 1.

    Cases are made when their turn comes: together they would not fit on a GPU.
    """
    cases = []
    for dtype in DTYPES:
        cases += [partial(crop_case, timer, images, batch, dtype, layout) for layout in LAYOUTS]
        cases += [partial(make, timer, batch, dtype) for make in (render_case, decode_case, loss_case)]
    return cases


def extra_cases(timer: Timer, images: ImageBatch, batch: int) -> list[partial[Case]]:
    """Halves of the loss, the layout of maps in training on a GPU, other sizes and types: the most telling first."""
    single = torch.float32
    cases = []
    for dtype in DTYPES:
        for half in ("forward", "backward"):
            cases.append(partial(loss_case, timer, batch, dtype, half=half, detail=f"{half} alone"))
    for dtype in (torch.float32, torch.bfloat16):
        for maps_in in (decode_case, loss_case):
            cases.append(partial(maps_in, timer, batch, dtype, layout="channels_last", detail="channels-last maps"))
    cases += [
        partial(crop_case, timer, images, batch, torch.uint8, "contiguous", detail="uint8 out, no colour map"),
        partial(crop_case, timer, images, batch, single, "contiguous", size=(384, 288), detail="384 x 288 crops"),
        partial(decode_case, timer, batch, single, flipped=True, detail="with the maps of the mirrored image"),
        partial(decode_case, timer, batch, single, refine="dark", detail="refined as DARK does"),
        partial(decode_case, timer, batch, single, size=(96, 72), detail="96 x 72 maps"),
    ]
    for drawn in (render_case, loss_case):
        cases += [
            partial(drawn, timer, batch, single, encoding="unbiased", detail="unbiased: drawn over the whole map"),
            partial(drawn, timer, batch, single, sigma=2.0, detail="sigma 2"),
            partial(drawn, timer, batch, single, size=(96, 72), sigma=3.0, detail="96 x 72 maps, sigma 3"),
        ]
    for few in sorted({1, max(1, batch // 8)}):
        detail = f"batch of {few}"
        cases += [partial(make, timer, few, single, detail=detail) for make in (render_case, decode_case, loss_case)]
        cases.append(partial(crop_case, timer, images, few, single, "contiguous", detail=detail))
    return cases


def describe(make: partial[Case]) -> str:
    """Op, type, layout and detail of a case that is not made yet."""
    words = [word for word in make.args if isinstance(word, (torch.dtype, str))]
    return " ".join(
        [make.func.__name__, *(dtype_name(word) for word in words), make.keywords.get("detail", "")]
    ).strip()


def dtype_name(dtype: torch.dtype | str) -> str:
    """`float32` for torch.float32."""
    return str(dtype).removeprefix("torch.")


def images_beyond(cache_bytes: int) -> int:
    """How many `random_images` it takes for crops of them to touch four times the L2, with half as much to spare."""
    return math.ceil(1.5 * 4 * cache_bytes / (3 * LEAST_IMAGE[0] * LEAST_IMAGE[1]))


def random_images(count: int, device: torch.device) -> ImageBatch:
    """Noise in pictures of different sizes around 1280 x 720."""
    generator = torch.Generator().manual_seed(0)
    height = torch.randint(LEAST_IMAGE[0], 781, (count,), generator=generator)
    width = torch.randint(LEAST_IMAGE[1], 1381, (count,), generator=generator)
    ends = (3 * height * width).cumsum(0)
    offsets = torch.cat([ends.new_zeros(1), ends[:-1]])
    noise = torch.Generator(device).manual_seed(0)
    data = torch.randint(0, 256, (int(ends[-1]),), generator=noise, dtype=torch.uint8, device=device)
    return ImageBatch(data, offsets.to(device), torch.stack([height, width], 1).to(torch.int32).to(device))


def noisy(values: Tensor, seed: int) -> Tensor:
    """`values` under noise of 0.05 from a generator of its own: torch's default one may be lost to a failed capture."""
    generator = torch.Generator(values.device).manual_seed(seed)
    noise = torch.randn(values.shape, generator=generator, device=values.device)
    return (values + 0.05 * noise).to(values.dtype)


def random_boxes(sizes: Tensor, size: tuple[int, int], seed: int) -> Tensor:
    """crop_to_image [B, 2, 3] of boxes of 150 to 600 px on images of `sizes` (h, w) [B, 2]; some leave the image."""
    generator = torch.Generator().manual_seed(seed)
    count = len(sizes)
    center = sizes.flip(1) * (0.05 + 0.9 * torch.rand(count, 2, generator=generator))
    scale = 0.75 + 2.25 * torch.rand(count, generator=generator)
    jitter = 0.75 + 0.5 * torch.rand(count, generator=generator)
    rotation = 60 * torch.rand(count, generator=generator) - 30
    return fastpose.crop_to_image_matrix(center, scale * jitter, rotation, size)


def touched_sectors(images: ImageBatch, crop_to_image: Tensor, image_index: Tensor, size: tuple[int, int]) -> Tensor:
    """Which 32-byte sectors of the buffer the bilinear taps that lie inside the images touch: bool [sectors]."""
    device, shift = images.device, images.data.data_ptr() % SECTOR
    touched = torch.zeros((shift + images.data.numel()) // SECTOR + 1, dtype=torch.bool, device=device)
    x_crop = torch.arange(size[1], device=device, dtype=torch.float32)
    y_crop = torch.arange(size[0], device=device, dtype=torch.float32)[:, None]
    starts, sizes = images.offsets.tolist(), images.sizes.tolist()
    for m, n in zip(crop_to_image, image_index.tolist(), strict=True):
        height, width = sizes[n]
        x = m[0, 0] * x_crop + (m[0, 1] * y_crop + m[0, 2])
        y = m[1, 0] * x_crop + (m[1, 1] * y_crop + m[1, 2])
        touches = (x > -1) & (y > -1) & (x < width) & (y < height)
        x0, y0 = x[touches].floor().to(torch.int64), y[touches].floor().to(torch.int64)
        for tx, ty in ((x0, y0), (x0 + 1, y0), (x0, y0 + 1), (x0 + 1, y0 + 1)):
            inside = (tx >= 0) & (ty >= 0) & (tx < width) & (ty < height)
            first = shift + starts[n] + 3 * (ty * width + tx)[inside]
            touched[first // SECTOR] = True
            touched[(first + 2) // SECTOR] = True
    return touched


def crop_case(
    timer: Timer,
    images: ImageBatch,
    batch: int,
    dtype: torch.dtype,
    layout: str,
    *,
    size: tuple[int, int] = (256, 256),
    detail: str = "",
) -> Case:
    """Crops of `batch` neighbouring images; every input set has boxes of its own.

    Sets are added until the distinct sectors that they touch exceed four times the L2.

    Raises:
        ValueError: the images are too few for that.
    """
    wanted = 4 * timer.cache_bytes
    too_few = (
        f"images: expected at least {1.5 * wanted:,.0f} bytes, so that crops touch more than four times the L2 of "
        f"{timer.cache_bytes:,} bytes, got {images.data.numel():,}"
    )
    if images.data.numel() < 1.5 * wanted:  # boxes leave some of every image out
        raise ValueError(too_few)
    color = fastpose.normalize_color(fastpose.IMAGENET_MEAN, fastpose.IMAGENET_STD)
    options: dict[str, Any] = {"dtype": dtype, "memory_format": LAYOUTS[layout]}
    if dtype != torch.uint8:
        options["color"] = color
    image_sizes = images.sizes.cpu()
    matrix: list[Tensor] = []
    index: list[Tensor] = []
    union, touched_bytes = torch.zeros((), dtype=torch.bool, device=timer.device), 0
    while len(matrix) < 2 or SECTOR * int(union.sum()) < wanted:
        if len(matrix) >= max(2, PASSES * len(images) // batch):
            raise ValueError(f"{too_few}, of which {PASSES} crops of each image do not touch enough")
        chosen = (torch.arange(batch) + len(matrix) * batch) % len(images)
        boxes = random_boxes(image_sizes[chosen], size, len(matrix))
        sectors = touched_sectors(images, boxes.to(timer.device), chosen, size)
        union, touched_bytes = union | sectors, touched_bytes + SECTOR * int(sectors.sum())
        matrix.append(boxes.to(timer.device))
        index.append(chosen.to(timer.device))

    def own(n: int) -> Tensor:
        return fastpose.affine_crop(images, matrix[n], size, image_index=index[n], **options)

    def check(out: Tensor) -> None:
        for b in _some(batch):
            expected = reference.affine_crop(
                [images[int(index[0][b])].cpu().numpy()],
                matrix[0][b : b + 1].cpu(),
                size,
                dtype=np.float64,
                **_numpy(options),
            )
            _compare("crop", out[b : b + 1], expected, 0.54 if dtype == torch.uint8 else 1e-3, ROUNDING[dtype])

    out_bytes = batch * 3 * size[0] * size[1] * dtype.itemsize
    work = peers.CropWork(images, matrix, index, size, color.to(timer.device), dtype, LAYOUTS[layout])
    moved = out_bytes + touched_bytes // len(matrix)
    made = {} if detail else peers.crop_peers(work)
    return Case("affine_crop", dtype, batch, moved, len(matrix), own, check, made, layout, detail)


def _numpy(options: dict[str, Any]) -> dict[str, Any]:
    """The options that say something about values."""
    return {"color": options["color"].numpy()} if "color" in options else {}


@dataclass(frozen=True)
class Maps:
    """One set of map inputs: joints on and a little beside the map, a tenth not annotated."""

    keypoints: Tensor
    visible: Tensor

    @classmethod
    def random(cls, device: torch.device, batch: int, size: tuple[int, int], seed: int, joints: int = JOINTS) -> Maps:
        generator = torch.Generator(device).manual_seed(seed)
        extent = torch.tensor(size[::-1], device=device)
        keypoints = (1.1 * torch.rand(batch, joints, 2, generator=generator, device=device) - 0.05) * extent
        visible = (torch.rand(batch, joints, generator=generator, device=device) < 0.9).float()
        return cls(keypoints, visible)

    def predicted(
        self, size: tuple[int, int], dtype: torch.dtype, seed: int, *, sigma: float = 1.0, layout: str = "contiguous"
    ) -> Tensor:
        """Maps as a half-trained network gives them: the target under noise."""
        target, _ = vectorized.render_heatmaps(self.keypoints, self.visible, size, sigma=sigma)
        return noisy(target, seed).to(dtype).contiguous(memory_format=LAYOUTS[layout])


def render_case(
    timer: Timer,
    batch: int,
    dtype: torch.dtype,
    *,
    size: tuple[int, int] = (64, 64),
    sigma: float = 1.0,
    encoding: str = "msra",
    detail: str = "",
) -> Case:
    # Besides the maps: weights and visible, 4 bytes each, and the keypoints.
    moved = batch * JOINTS * (size[0] * size[1] * dtype.itemsize + 16)
    sets = timer.sets(moved)
    inputs = [Maps.random(timer.device, batch, size, n) for n in range(sets)]
    options: dict[str, Any] = {"sigma": sigma, "encoding": encoding}

    def own(n: int) -> tuple[Tensor, Tensor]:
        return fastpose.render_heatmaps(inputs[n].keypoints, inputs[n].visible, size, dtype=dtype, **options)

    def check(outputs: tuple[Tensor, Tensor]) -> None:
        picked = _some(batch)
        expected = reference.render_heatmaps(
            inputs[0].keypoints[picked], inputs[0].visible[picked], size, dtype=np.float64, **options
        )
        _compare("heatmaps", outputs[0][picked], expected[0], ROUNDING[dtype])
        _compare("weights", outputs[1][picked], expected[1], 0.0)

    def plain(function: Callable[..., Any]) -> Run:
        return lambda n: function(inputs[n].keypoints, inputs[n].visible, size, dtype=dtype, **options)

    made = {
        "torch": lambda: plain(vectorized.render_heatmaps),
        "torch_compile": lambda: plain(peers.compiled(vectorized.render_heatmaps)),
        "zeros": lambda: lambda n: torch.zeros(batch, JOINTS, *size, dtype=dtype, device=timer.device),
    }
    return Case("render_heatmaps", dtype, batch, moved, sets, own, check, {} if detail else made, detail=detail)


def decode_case(
    timer: Timer,
    batch: int,
    dtype: torch.dtype,
    *,
    size: tuple[int, int] = (64, 64),
    flipped: bool = False,
    refine: str = "quarter",
    layout: str = "contiguous",
    detail: str = "",
) -> Case:
    # Besides the maps: a matrix of 24 bytes per sample, a point and a score per joint.
    moved = batch * (24 + JOINTS * (size[0] * size[1] * dtype.itemsize * (2 if flipped else 1) + 12))
    sets = timer.sets(moved)
    inputs = [Maps.random(timer.device, batch, size, n) for n in range(sets)]
    maps = [one.predicted(size, dtype, n, layout=layout) for n, one in enumerate(inputs)]
    image_sizes = torch.tensor([[720, 1280]]).expand(batch, 2)
    matrix = [random_boxes(image_sizes, size, n).to(timer.device) for n in range(sets)]
    options: dict[str, Any] = {"refine": refine}
    if flipped:
        options |= {"flip_pairs": MPII.mirror_pairs, "flip_shift": True}
    mirrored = [noisy(one.flip(3), sets + n) if flipped else None for n, one in enumerate(maps)]

    def call(function: Callable[..., Any]) -> Run:
        return lambda n: function(maps[n], heatmap_to_image=matrix[n], flipped=mirrored[n], **options)

    def check(outputs: tuple[Tensor, Tensor]) -> None:
        picked = _some(batch)
        other = None if mirrored[0] is None else mirrored[0][picked]
        expected = reference.decode_heatmaps(
            maps[0][picked], heatmap_to_image=matrix[0][picked].cpu().numpy(), flipped=other, **options
        )
        _compare("keypoints", outputs[0][picked], expected[0], 1e-2)
        _compare("scores", outputs[1][picked], expected[1], 1e-5)

    made = {
        "torch": lambda: call(vectorized.decode_heatmaps),
        "torch_compile": lambda: call(peers.compiled(vectorized.decode_heatmaps)),
        "amax": lambda: lambda n: maps[n].amax((2, 3)),
    }
    own = call(lambda *a, **k: fastpose.decode_heatmaps(*a, **k))
    return Case("decode_heatmaps", dtype, batch, moved, sets, own, check, {} if detail else made, layout, detail)


def loss_case(
    timer: Timer,
    batch: int,
    dtype: torch.dtype,
    *,
    size: tuple[int, int] = (64, 64),
    sigma: float = 1.0,
    encoding: str = "msra",
    half: str = "both",
    layout: str = "contiguous",
    joints: int = JOINTS,
    detail: str = "",
) -> Case:
    """Loss and gradient. float16 has the loss scale of a training run, without which its gradient would be 0."""
    values = batch * joints * size[0] * size[1]
    moved = {"both": 3, "forward": 1, "backward": 2}[half] * values * dtype.itemsize
    sets = timer.sets(values * dtype.itemsize)
    inputs = [Maps.random(timer.device, batch, size, n, joints) for n in range(sets)]
    pred = [one.predicted(size, dtype, n, sigma=sigma, layout=layout).requires_grad_() for n, one in enumerate(inputs)]
    scale = torch.tensor(65536.0 if dtype == torch.float16 else 1.0, device=timer.device)
    options: dict[str, Any] = {"sigma": sigma, "encoding": encoding}

    def both(loss: Callable[..., Tensor]) -> Run:
        def run(n: int) -> tuple[Tensor, ...]:
            value = loss(pred[n], inputs[n].keypoints, inputs[n].visible, **options)
            return value.detach(), *torch.autograd.grad(value, pred[n], scale)

        return run

    def forward(n: int) -> tuple[Tensor, ...]:
        return (fastpose.heatmap_mse_loss(pred[n].detach(), inputs[n].keypoints, inputs[n].visible, **options),)

    def backward(n: int) -> tuple[Tensor | None, ...]:
        number = ("msra", "unbiased", "udp").index(encoding)
        one = inputs[n]
        op = torch.ops.fastpose.heatmap_mse_loss_backward
        return None, op(scale, pred[n].detach(), one.keypoints, one.visible, None, sigma, number, False)

    def check(outputs: tuple[Tensor | None, ...]) -> None:
        one, picked = inputs[0], _some(batch)
        if outputs[0] is not None:
            expected = reference.heatmap_mse_loss(pred[0], one.keypoints, one.visible, **options)
            _compare("loss", outputs[0], np.array(expected), 0.0, 1e-5)
        if len(outputs) > 1 and outputs[1] is not None:
            target, _ = reference.render_heatmaps(
                one.keypoints[picked], one.visible[picked], size, dtype=np.float64, **options
            )
            gradient = (pred[0].detach()[picked].double().cpu().numpy() - target) * scale.item() / values
            least = 6e-8 if dtype == torch.float16 else 1e-6 * float(np.abs(gradient).max())
            _compare("gradient", outputs[1][picked], gradient, least, 4 * ROUNDING[dtype])

    own = {"both": both(lambda *a, **k: fastpose.heatmap_mse_loss(*a, **k)), "forward": forward, "backward": backward}
    rendered = partial(peers.render_and_mse_loss, dtype=dtype)
    made = {
        "torch": lambda: both(vectorized.heatmap_mse_loss),
        "torch_compile": lambda: both(peers.compiled(vectorized.heatmap_mse_loss)),
        "render+mse_loss": lambda: both(rendered),
        "render+mse_loss_compile": lambda: both(peers.compiled(rendered)),
    }
    name = "heatmap_mse_loss"
    return Case(name, dtype, batch, moved, sets, own[half], check, {} if detail else made, layout, detail)


def large_loss_case(timer: Timer, batch: int, dtype: torch.dtype, joints: int) -> Case:
    """Loss and gradient for maps of 256 x 192, sigma 6, as whole-body networks have them; 16 x 12 on the CPU."""
    size = (256, 192) if timer.cuda else (16, 12)
    return loss_case(timer, batch, dtype, size=size, sigma=6.0, joints=joints)


def _some(batch: int) -> list[int]:
    return sorted({0, batch // 2, batch - 1})


def _compare(what: str, got: Tensor, expected: Any, atol: float, rtol: float = 0.0) -> None:
    difference = np.abs(got.detach().double().cpu().numpy() - expected)
    bad = ~(difference <= atol + rtol * np.abs(expected))  # so that NaN is bad
    if bad.any():
        raise WrongResultError(
            f"{what}: expected at most {atol:g} + {rtol:g} of the value beside fastpose.reference, "
            f"got {np.nanmax(difference):g} in {int(bad.sum())} of {bad.size} values"
        )
