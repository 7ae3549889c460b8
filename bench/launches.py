# SPDX-License-Identifier: Apache-2.0
"""Launches of our kernels for the interpreter in bench/sass: what their C++ launchers pass, inputs, a check of outputs.

The parameter structs mirror those of csrc/*.h and *.cu. Their sizes are compared with what the compiled kernel says,
and results with fastpose.reference, so neither can drift unseen. Inputs are those of the GPU report (op_cases.py), but
fewer: counts are of the blocks that run, and stand for a batch of 256.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

import fastpose
from bench import op_cases
from bench.op_cases import JOINTS, ROUNDING, SECTOR, Maps, WrongResultError
from bench.sass.memory import Array, Memory
from fastpose import reference
from fastpose.skeletons import MPII

BATCH, SIZE, CROP = 256, (64, 64), (256, 256)  # what the bounds are about
SAMPLES, CROPS, CROP_BLOCKS = 8, 64, 128  # what is run: samples of maps; crops, and blocks of them
# How the C++ launchers cut the work into blocks: pixels of a crop, elements of maps.
CROP_TILE, LOSS_TILE = (128, 64), 8192
CPU = torch.device("cpu")

P, I64, I32, F32, F64, BOOL = (
    ctypes.c_void_p,
    ctypes.c_int64,
    ctypes.c_int,
    ctypes.c_float,
    ctypes.c_double,
    ctypes.c_bool,
)
KINDS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3, torch.uint8: 4}  # ScalarKind
MANGLED = {torch.float32: "f", torch.float16: "6__half", torch.bfloat16: "13__nv_bfloat16", torch.uint8: "h"}


def _struct(name: str, **fields: Any) -> type[Any]:
    return type(name, (ctypes.Structure,), {"_fields_": list(fields.items())})


# fmt: off
AffineCropParams = _struct(
    "AffineCropParams",
    data=P, data_bytes=I64, offsets=P, sizes=P, images=I64, image_stride=I64, row_stride=I64,
    image_height=I32, image_width=I32, image_index=P, crop_to_image=P,
    color=P, color_stride=I64, color_of_all=F32 * 12, fill=F32,
    out=P, kind=I32, stride_b=I64, stride_c=I64, stride_y=I64, stride_x=I64, batch=I64, height=I32, width=I32,
)
TiledCrop = _struct("TiledCrop", op=AffineCropParams, first=I64, tiles_x=I32, tiles=I32, vectors=BOOL)
MapStrides = _struct("MapStrides", b=I64, k=I64, y=I64, x=I64)
DecodeHeatmapsParams = _struct(
    "DecodeHeatmapsParams",
    heatmaps=P, strides=MapStrides, flipped=P, flipped_strides=MapStrides, mirrored=ctypes.c_int16 * 512,
    flip_shift=BOOL, kind=I32, heatmap_to_image=P, keypoints=P, scores=P, batch=I64, joints=I64, height=I32, width=I32,
    refine=I32, blur_radius=I32, blur=F64 * 128,
)
TargetSpec = _struct("TargetSpec", inverse_sigma=F64, radius=F64, encoding=I32, height=I32, width=I32)
HeatmapMseLossParams = _struct(
    "HeatmapMseLossParams",
    pred=P, stride_b=I64, stride_k=I64, stride_y=I64, stride_x=I64, kind=I32, keypoints=P, visible=P,
    joint_weights=P, weight_stride_b=I64, weight_stride_k=I64, batch=I64, joints=I64, spec=TargetSpec,
    ignore_missing=BOOL, partial_sums=P, loss=P, grad_output=P,
    grad=P, grad_stride_b=I64, grad_stride_k=I64, grad_stride_y=I64, grad_stride_x=I64,
)
LossTiling = _struct("LossTiling", tiled=BOOL, interleaved=BOOL, groups=I64, tiles=I32, rows=I32)
TiledLoss = _struct("TiledLoss", op=HeatmapMseLossParams, tiling=LossTiling, scale=F64)
RenderHeatmapsParams = _struct(
    "RenderHeatmapsParams", keypoints=P, visible=P, heatmaps=P, weights=P, kind=I32, maps=I64, spec=TargetSpec
)
# fmt: on


@dataclass
class Launch:
    """One launch of one kernel, and how it stands for a batch of BATCH.

    `units` is what the blocks that run work on, `batch_units` what a batch is; `bytes` the least that a batch moves.
    """

    kernel: str  # a pattern of the mangled name
    parameters: Any
    memory: Memory
    grid: int
    unit: str
    units: float
    batch_units: float
    batch_blocks: int
    bytes: int
    check: Callable[[Memory], None]
    blocks: list[int] = field(default_factory=list)  # empty: the whole grid

    @property
    def pattern(self) -> re.Pattern[str]:
        return re.compile(self.kernel)


KERNELS = ("affine_crop_kernel", "decode_", "loss", "render_heatmaps_kernel")  # whatever launches may name


def hot_launches() -> dict[str, Callable[[], Launch]]:
    """The launches of every kernel that a goal is about, made when their turn comes."""
    single, half = torch.float32, torch.bfloat16
    launches: dict[str, Callable[[], Launch]] = {
        "affine_crop, float32": partial(crop, single, "contiguous"),
        "affine_crop, bfloat16 channels-last": partial(crop, half, "channels_last"),
    }
    for dtype in (single, half):
        name = op_cases.dtype_name(dtype)
        launches |= {
            f"decode_heatmaps, {name}": partial(decode, dtype),
            f"decode_heatmaps, {name} channels-last": partial(decode, dtype, layout="channels_last"),
            f"decode_heatmaps, {name} flip test": partial(decode, dtype, flipped=True),
            f"decode_heatmaps, {name} channels-last flip test": partial(
                decode, dtype, layout="channels_last", flipped=True
            ),
        }
    launches["decode_heatmaps, float32 dark"] = partial(decode, single, refine="dark")
    for dtype in (single, half):
        name = op_cases.dtype_name(dtype)
        for layout, suffix in (("contiguous", ""), ("channels_last", " channels-last")):
            for backward in (False, True):
                half_name = "backward" if backward else "forward"
                launches[f"heatmap_mse_loss {half_name}, {name}{suffix}"] = partial(loss, dtype, layout, backward)
    launches["heatmap_mse_loss total"] = total_loss
    for dtype in (single, half):
        launches[f"render_heatmaps, {op_cases.dtype_name(dtype)}"] = partial(render, dtype)
    return launches


def _bits(tensor: torch.Tensor) -> Array:
    """The elements as they lie in memory, in an array of a type that NumPy has."""
    dense = tensor.detach()
    if dense.dim() == 4 and not dense.is_contiguous():
        dense = dense.permute(0, 2, 3, 1)
    dense = dense.contiguous()
    return (dense.view(torch.int16) if dense.dtype in (torch.bfloat16, torch.float16) else dense).numpy()


def _values(memory: Memory, address: int, like: torch.Tensor) -> Array:
    """The tensor at `address`, of the type, shape and layout of `like`, as float64."""
    last = like.dim() == 4 and not like.is_contiguous()
    shape = [like.shape[i] for i in (0, 2, 3, 1)] if last else list(like.shape)
    bytes_ = memory.read(address, np.uint8, (like.numel() * like.element_size(),))
    tensor = torch.from_numpy(bytes_).view(like.dtype).reshape(shape)
    return (tensor.permute(0, 3, 1, 2) if last else tensor).double().numpy()


def _compare(what: str, got: Array, expected: Array, atol: float, rtol: float = 0.0) -> None:
    bad = ~(np.abs(got - expected) <= atol + rtol * np.abs(expected))  # so that NaN is bad
    if bad.any():
        raise WrongResultError(
            f"{what}: expected at most {atol:g} + {rtol:g} of the value beside fastpose.reference, "
            f"got {np.nanmax(np.abs(got - expected)):g} in {int(bad.sum())} of {bad.size} values"
        )


def crop(dtype: torch.dtype, layout: str) -> Launch:
    """Some tiles of crops of boxes of 150 to 600 px, with a colour map for all."""
    last = layout == "channels_last"
    images = op_cases.random_images(4, CPU)
    index = torch.arange(CROPS) % len(images)
    # Of few boxes these have the report's shares of tiles inside, across and outside the image: 82, 10 and 8 %.
    boxes = op_cases.random_boxes(images.sizes[index], CROP, 9)
    color = fastpose.normalize_color(fastpose.IMAGENET_MEAN, fastpose.IMAGENET_STD)
    out = torch.full((CROPS, 3, *CROP), float("nan"), dtype=dtype).contiguous(memory_format=op_cases.LAYOUTS[layout])
    memory = Memory()
    tiled = TiledCrop()
    p = tiled.op
    p.data, p.data_bytes = memory.add(images.data.numpy()), images.data.numel()
    p.offsets, p.sizes, p.images = memory.add(images.offsets.numpy()), memory.add(images.sizes.numpy()), len(images)
    p.image_index, p.crop_to_image = memory.add(index.numpy()), memory.add(boxes.numpy())
    p.color_of_all[:] = color.flatten().tolist()
    p.out, p.kind = memory.add(_bits(out)), KINDS[dtype]
    p.stride_b, p.stride_c, p.stride_y, p.stride_x = out.stride()
    p.batch, (p.height, p.width) = CROPS, CROP
    tile = CROP_TILE[0] * CROP_TILE[1]
    tiled.tiles_x, tiled.tiles, tiled.vectors = CROP[1] // CROP_TILE[1], CROP[0] * CROP[1] // tile, True
    grid = CROPS * tiled.tiles
    blocks = sorted(np.random.default_rng(0).choice(grid, CROP_BLOCKS, replace=False).tolist())

    def check(memory: Memory) -> None:
        got = _values(memory, p.out, out)
        for b in range(0, CROPS, 4):
            written = ~np.isnan(got[b])
            image = [images[int(index[b])].numpy()]
            expected = reference.affine_crop(image, boxes[b : b + 1], CROP, color=color.numpy(), dtype=np.float64)[0]
            _compare("crop", got[b][written], expected[written], 1e-3, ROUNDING[dtype])
        written = ~np.isnan(got)
        if written.sum() != CROP_BLOCKS * tile * 3:
            raise WrongResultError(f"crop: expected {CROP_BLOCKS * tile * 3} values written, got {written.sum()}")

    touched = sum(
        int(op_cases.touched_sectors(images, boxes[b : b + 1], index[b : b + 1], CROP).sum()) for b in range(CROPS)
    )
    pixels = CROP[0] * CROP[1] * BATCH
    return Launch(
        f"affine_crop_kernelI{MANGLED[dtype]}Lb{int(last)}ELb1E",
        tiled,
        memory,
        grid,
        "32 pixels",
        CROP_BLOCKS * tile / 32,
        pixels / 32,
        grid * BATCH // CROPS,
        3 * pixels * dtype.itemsize + SECTOR * touched * BATCH // CROPS,
        check,
        blocks,
    )


def _strides(tensor: torch.Tensor) -> Any:
    return MapStrides(*tensor.stride())


def decode(dtype: torch.dtype, layout: str = "contiguous", *, flipped: bool = False, refine: str = "quarter") -> Launch:
    """Maps as a half-trained network gives them."""
    maps = Maps.random(CPU, SAMPLES, SIZE, 0).predicted(SIZE, dtype, 0, layout=layout)
    matrix = op_cases.random_boxes(torch.tensor([[720, 1280]]).expand(SAMPLES, 2), SIZE, 0)
    memory = Memory()
    p = DecodeHeatmapsParams()
    p.heatmaps, p.strides, p.kind = memory.add(_bits(maps)), _strides(maps), KINDS[dtype]
    mirrored = op_cases.noisy(maps.flip(3), 1) if flipped else None
    if mirrored is not None:
        p.flipped, p.flipped_strides, p.flip_shift = memory.add(_bits(mirrored)), _strides(mirrored), True
        p.mirrored[:JOINTS] = reference.mirror_order(MPII.mirror_pairs, JOINTS)
    p.heatmap_to_image = memory.add(matrix.numpy())
    points, scores = torch.full((SAMPLES, JOINTS, 2), float("nan")), torch.full((SAMPLES, JOINTS), float("nan"))
    p.keypoints, p.scores = memory.add(points.numpy()), memory.add(scores.numpy())
    p.batch, p.joints, (p.height, p.width) = SAMPLES, JOINTS, SIZE
    p.refine = ("none", "quarter", "dark", "dark_udp").index(refine)
    p.blur_radius = 5
    p.blur[:6] = reference.gaussian_kernel(11)[5:].tolist()

    def check(memory: Memory) -> None:
        options: dict[str, Any] = {"flip_pairs": MPII.mirror_pairs, "flip_shift": True} if flipped else {}
        expected = reference.decode_heatmaps(
            maps, heatmap_to_image=matrix.numpy(), flipped=mirrored, refine=refine, **options
        )
        _compare("keypoints", _values(memory, p.keypoints, points), expected[0], 1e-3)
        _compare("scores", _values(memory, p.scores, scores), expected[1], 1e-6)

    planar = layout == "contiguous"
    blurs = int(refine.startswith("dark"))
    kind = "planar" if planar else "interleaved"
    name = f"decode_{kind}_kernelI{MANGLED[dtype]}Lb{blurs}ELb{int(flipped)}E"
    grid = SAMPLES * JOINTS if planar else SAMPLES
    return Launch(
        name,
        p,
        memory,
        grid,
        "map",
        SAMPLES * JOINTS,
        BATCH * JOINTS,
        grid * BATCH // SAMPLES,
        BATCH * (24 + JOINTS * (SIZE[0] * SIZE[1] * dtype.itemsize * (2 if flipped else 1) + 12)),
        check,
    )


def _spec() -> Any:
    return TargetSpec(1.0, 3.0, 0, *SIZE)  # sigma 1, msra


def _tiled_loss(dtype: torch.dtype, memory: Memory, joints: Maps, layout: str) -> Any:
    interleaved = layout == "channels_last"
    rows = LOSS_TILE // (SIZE[1] * JOINTS) if interleaved else SIZE[0]
    p = TiledLoss()
    p.op.kind, p.op.spec = KINDS[dtype], _spec()
    p.op.keypoints, p.op.visible = memory.add(joints.keypoints.numpy()), memory.add(joints.visible.numpy())
    p.op.batch, p.op.joints = SAMPLES, JOINTS
    p.tiling = LossTiling(True, interleaved, SAMPLES * (1 if interleaved else JOINTS), SIZE[0] // rows, rows)
    p.scale = 0.5 / (SAMPLES * JOINTS * SIZE[0] * SIZE[1])
    return p


def loss(dtype: torch.dtype, layout: str, backward: bool) -> Launch:
    """One direction of the loss on maps as a half-trained network gives them."""
    joints = Maps.random(CPU, SAMPLES, SIZE, 0)
    pred = joints.predicted(SIZE, dtype, 0, layout=layout)
    memory = Memory()
    p = _tiled_loss(dtype, memory, joints, layout)
    p.op.pred = memory.add(_bits(pred))
    p.op.stride_b, p.op.stride_k, p.op.stride_y, p.op.stride_x = pred.stride()
    grid = p.tiling.groups * p.tiling.tiles
    p.op.partial_sums = memory.add(np.full(grid, np.nan))
    scale = 3.0
    if backward:
        p.op.grad_output, p.op.grad = memory.add(np.array([scale], np.float32)), memory.add(_bits(pred) * 0)
        p.op.grad_stride_b, p.op.grad_stride_k, p.op.grad_stride_y, p.op.grad_stride_x = pred.stride()

    def check(memory: Memory) -> None:
        if backward:
            target = reference.render_heatmaps(joints.keypoints, joints.visible, SIZE, dtype=np.float64)[0]
            expected = scale * (pred.double().numpy() - target) / pred.numel()
            atol = 1e-6 * float(np.abs(expected).max())
            _compare("gradient", _values(memory, p.op.grad, pred), expected, atol, 4 * ROUNDING[dtype])
        else:
            got = memory.read(p.op.partial_sums, np.float64, (grid,)).sum() * p.scale
            _compare(
                "loss", got, np.array(reference.heatmap_mse_loss(pred, joints.keypoints, joints.visible)), 0.0, 1e-5
            )

    return Launch(
        f"loss_tile_kernelI{MANGLED[dtype]}Lb{int(layout == 'channels_last')}ELb{int(backward)}E",
        p,
        memory,
        grid,
        "map",
        SAMPLES * JOINTS,
        BATCH * JOINTS,
        grid * BATCH // SAMPLES,
        BATCH * pred[0].numel() * dtype.itemsize * (2 if backward else 1),
        check,
    )


def total_loss() -> Launch:
    """The one block that adds up the partial sums of a batch of planar maps."""
    memory = Memory()
    p = _tiled_loss(torch.float32, memory, Maps.random(CPU, SAMPLES, SIZE, 0), "contiguous")
    sums = np.random.default_rng(0).random(BATCH * JOINTS)
    p.tiling.groups, p.op.partial_sums, p.op.loss = len(sums), memory.add(sums), memory.add(np.zeros(1, np.float32))

    def check(memory: Memory) -> None:
        _compare("loss", memory.read(p.op.loss, np.float32, (1,)), sums.sum(keepdims=True) * p.scale, 0.0, 1e-6)

    return Launch("total_loss_kernelIf", p, memory, 1, "batch", 1, 1, 1, 8 * len(sums), check)


def render(dtype: torch.dtype) -> Launch:
    """Targets of sigma 1."""
    joints = Maps.random(CPU, SAMPLES, SIZE, 0)
    memory = Memory()
    p = RenderHeatmapsParams()
    p.keypoints, p.visible = memory.add(joints.keypoints.numpy()), memory.add(joints.visible.numpy())
    maps = torch.full((SAMPLES, JOINTS, *SIZE), float("nan"), dtype=dtype)
    weights = torch.full((SAMPLES, JOINTS), float("nan"))
    p.heatmaps, p.weights = memory.add(_bits(maps)), memory.add(weights.numpy())
    p.kind, p.maps, p.spec = KINDS[dtype], SAMPLES * JOINTS, _spec()

    def check(memory: Memory) -> None:
        expected = reference.render_heatmaps(joints.keypoints, joints.visible, SIZE, dtype=np.float64)
        _compare("heatmaps", _values(memory, p.heatmaps, maps), expected[0], ROUNDING[dtype])
        _compare("weights", _values(memory, p.weights, weights), expected[1], 0.0)

    return Launch(
        f"render_heatmaps_kernelI{MANGLED[dtype]}Li{16 // dtype.itemsize}E",
        p,
        memory,
        SAMPLES * JOINTS,
        "map",
        SAMPLES * JOINTS,
        BATCH * JOINTS,
        BATCH * JOINTS,
        BATCH * JOINTS * (SIZE[0] * SIZE[1] * dtype.itemsize + 16),
        check,
    )
