# SPDX-License-Identifier: Apache-2.0
"""Launches of our kernels for the interpreter in bench/sass: inputs, what the C++ launchers make of them, a check.

Grids, tilings and what kernels take beside an op's own parameters come from the launchers themselves, compiled as C++
(record_launches.h). Here the structs of csrc/ops/<op>.h are mirrored; results are compared with fastpose.reference, so
the two cannot drift apart unseen. Inputs are those of the GPU report (op_cases.py), but fewer: what is counted stands
for a batch of 256.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fastpose
from bench import op_cases
from bench.op_cases import JOINTS, ROUNDING, SECTOR, Maps, WrongResultError
from bench.sass.machine import Launch
from bench.sass.memory import Array, Memory
from fastpose import reference
from fastpose.skeletons import MPII

BATCH, SIZE, CROP = 256, (64, 64), (256, 256)  # what the bounds are about
SAMPLES, CROPS, CROP_SHARE = 8, 64, 1 / 8  # what is run: samples of maps; crops, and the share of their blocks
CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[1]
OPS = ("affine_crop", "decode_heatmaps", "heatmap_mse_loss", "render_heatmaps")

P, I64, I32, F32, F64, BOOL = (
    ctypes.c_void_p,
    ctypes.c_int64,
    ctypes.c_int,
    ctypes.c_float,
    ctypes.c_double,
    ctypes.c_bool,
)
KINDS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3, torch.uint8: 4}  # ScalarKind


def _struct(name: str, **fields: Any) -> type[Any]:
    return type(name, (ctypes.Structure,), {"_fields_": list(fields.items())})


# fmt: off
MapStrides = _struct("MapStrides", b=I64, k=I64, y=I64, x=I64)
AffineCropParams = _struct(
    "AffineCropParams",
    data=P, data_bytes=I64, offsets=P, sizes=P, images=I64, image_stride=I64, row_stride=I64,
    image_height=I32, image_width=I32, image_index=P, crop_to_image=P,
    color=P, color_stride=I64, color_of_all=F32 * 12, fill=F32,
    out=P, kind=I32, out_strides=MapStrides, batch=I64, height=I32, width=I32,
)
DecodeHeatmapsParams = _struct(
    "DecodeHeatmapsParams",
    heatmaps=P, strides=MapStrides, flipped=P, flipped_strides=MapStrides, mirrored=ctypes.c_int16 * 512,
    flip_shift=BOOL, kind=I32, heatmap_to_image=P, keypoints=P, scores=P, batch=I64, joints=I64, height=I32, width=I32,
    refine=I32, blur_radius=I32, blur=F64 * 128,
)
TargetSpec = _struct("TargetSpec", inverse_sigma=F64, radius=F64, encoding=I32, height=I32, width=I32)
HeatmapMseLossParams = _struct(
    "HeatmapMseLossParams",
    pred=P, pred_strides=MapStrides, kind=I32, keypoints=P, visible=P,
    joint_weights=P, weight_stride_b=I64, weight_stride_k=I64, batch=I64, joints=I64, spec=TargetSpec,
    ignore_missing=BOOL, partial_sums=P, loss=P, grad_output=P,
    grad=P, grad_strides=MapStrides,
)
RenderHeatmapsParams = _struct(
    "RenderHeatmapsParams", keypoints=P, visible=P, heatmaps=P, weights=P, kind=I32, maps=I64, spec=TargetSpec
)
# fmt: on


class RecordedLaunch(ctypes.Structure):
    _fields_ = [
        ("kernel", P),
        *((name, ctypes.c_size_t) for name in ("blocks", "threads", "shared_bytes", "parameter_bytes")),
        ("parameters", ctypes.c_ubyte * 4096),
    ]  # fmt: skip


def own_name(mangled: str) -> str:
    """A kernel's name without its namespaces, which nvcc and a C++ compiler spell differently."""
    found = re.search(r"[a-z_]+_kernel\w*$", mangled)
    return found[0] if found else mangled


class Launchers:
    """The launchers of csrc, compiled into `folder`. Needs a C++ compiler and nm.

    Raises:
        subprocess.CalledProcessError: they do not compile.
    """

    def __init__(self, folder: Path) -> None:
        library = folder / "launchers.so"
        emulation, csrc = ROOT / "tests/cuda_emulation", ROOT / "csrc"
        options = ["-std=c++20", "-O0", "-w", "-fPIC", "-shared", "-DFASTPOSE_WITH_CUDA", "-DFASTPOSE_EMULATE_CUDA"]
        options += [f"-I{emulation}", f"-I{csrc}", "-include", str(ROOT / "bench/record_launches.h")]
        sources = ["-x", "c++", *(str(csrc / f"ops/{op}.cu") for op in OPS), str(emulation / "emulation.cpp")]
        subprocess.run([os.environ.get("CXX", "g++"), *options, *sources, "-o", str(library)], check=True)
        lines = subprocess.run(["nm", str(library)], capture_output=True, text=True, check=True).stdout.splitlines()
        symbols = (line.split(maxsplit=2) for line in lines if line[0] != " ")  # others are undefined
        addresses = {name: int(address, 16) for address, _, name in symbols}
        self._library = ctypes.CDLL(str(library))
        self._recorded = (RecordedLaunch * 8).in_dll(self._library, "recorded_launches")
        self._count = ctypes.c_size_t.in_dll(self._library, "recorded_count")
        # Where the library has been put, by a function: variables may be those of another copy of it.
        exported = ((re.match(r"_ZN8fastpose\d+(launch_\w+?)ERK", name), name) for name in addresses)
        self._launchers = {found[1]: name for found, name in exported if found}
        one = self._launchers["launch_affine_crop"]
        base = (ctypes.cast(self._library[one], P).value or 0) - addresses[one]
        self._names = {base + address: own_name(name) for name, address in addresses.items()}

    def __call__(self, launcher: str, parameters: ctypes.Structure) -> list[Launch]:
        """What `launcher` ("launch_affine_crop") would launch for the parameters of its op."""
        self._count.value = 0
        if error := self._library[self._launchers[launcher]](ctypes.byref(parameters), None):
            raise RuntimeError(f"{launcher} gave {error}")
        return [
            Launch(
                self._names[one.kernel],
                one.blocks,
                one.threads,
                one.shared_bytes,
                bytes(one.parameters[: one.parameter_bytes]),
            )
            for one in self._recorded[: self._count.value]
        ]


@dataclass
class Work:
    """One call of a launcher, and how it stands for a batch of BATCH.

    `units` is what the whole grid works on, `batch_units` what a batch is; `bytes` the least that a batch moves.
    """

    launcher: str
    parameters: Any
    memory: Memory
    unit: str
    units: float
    batch_units: float
    bytes: int
    check: Callable[[list[Launch], int], None]  # of what was launched, and of how many blocks ran; raises
    number: int = 0  # of the launch among those of the launcher
    share: float = 1.0  # of the blocks that is run


def hot_work() -> dict[str, Callable[[], Work]]:
    """What every kernel that a goal is about is run on, made when its turn comes."""
    types = (torch.float32, torch.bfloat16, torch.float16)
    names = {dtype: op_cases.dtype_name(dtype) for dtype in types}
    work: dict[str, Callable[[], Work]] = {"affine_crop, float32": partial(crop, torch.float32, "contiguous")}
    for dtype in types[1:]:
        work[f"affine_crop, {names[dtype]} channels-last"] = partial(crop, dtype, "channels_last")
    layouts = {"contiguous": "", "channels_last": " channels-last"}
    for dtype in types:
        for flipped in (False, True):
            for layout, suffix in layouts.items():
                name = f"decode_heatmaps, {names[dtype]}{suffix}{' flip test' if flipped else ''}"
                work[name] = partial(decode, dtype, layout, flipped=flipped)
    work["decode_heatmaps, float32 dark"] = partial(decode, torch.float32, refine="dark")
    for dtype in types:
        for layout, suffix in layouts.items():
            for direction in ("forward", "backward"):
                name = f"heatmap_mse_loss {direction}, {names[dtype]}{suffix}"
                work[name] = partial(loss, dtype, layout, direction == "backward")
    work["heatmap_mse_loss total"] = total_loss
    for dtype in types:
        work[f"render_heatmaps, {names[dtype]}"] = partial(render, dtype)
    return work


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


def crop(dtype: torch.dtype, layout: str) -> Work:
    """Some tiles of crops of boxes of 150 to 600 px, with a colour map for all."""
    images = op_cases.random_images(4, CPU)
    index = torch.arange(CROPS) % len(images)
    # Of few boxes these have the report's shares of tiles inside, across and outside the image: 82, 10 and 8 %.
    boxes = op_cases.random_boxes(images.sizes[index], CROP, 9)
    color = fastpose.normalize_color(fastpose.IMAGENET_MEAN, fastpose.IMAGENET_STD)
    out = torch.full((CROPS, 3, *CROP), float("nan"), dtype=dtype).contiguous(memory_format=op_cases.LAYOUTS[layout])
    memory = Memory()
    p = AffineCropParams()
    p.data, p.data_bytes = memory.add(images.data.numpy()), images.data.numel()
    p.offsets, p.sizes, p.images = memory.add(images.offsets.numpy()), memory.add(images.sizes.numpy()), len(images)
    p.image_index, p.crop_to_image = memory.add(index.numpy()), memory.add(boxes.numpy())
    p.color_of_all[:] = color.flatten().tolist()
    p.out, p.kind = memory.add(_bits(out)), KINDS[dtype]
    p.out_strides = _strides(out)
    p.batch, (p.height, p.width) = CROPS, CROP

    def check(launches: list[Launch], ran: int) -> None:
        got = _values(memory, p.out, out)
        for b in range(0, CROPS, 4):
            written = ~np.isnan(got[b])
            image = [images[int(index[b])].numpy()]
            expected = reference.affine_crop(image, boxes[b : b + 1], CROP, color=color.numpy(), dtype=np.float64)[0]
            _compare("crop", got[b][written], expected[written], 1e-3, ROUNDING[dtype])
        written = ~np.isnan(got)
        if (expected_values := out.numel() * ran // launches[0].blocks) != written.sum():
            raise WrongResultError(f"crop: expected {expected_values} values written, got {written.sum()}")

    touched = sum(
        int(op_cases.touched_sectors(images, boxes[b : b + 1], index[b : b + 1], CROP).sum()) for b in range(CROPS)
    )
    pixels = CROP[0] * CROP[1] * BATCH
    return Work(
        "launch_affine_crop",
        p,
        memory,
        "32 pixels",
        pixels * CROPS / BATCH / 32,
        pixels / 32,
        3 * pixels * dtype.itemsize + SECTOR * touched * BATCH // CROPS,
        check,
        share=CROP_SHARE,
    )


def _strides(tensor: torch.Tensor) -> Any:
    return MapStrides(*tensor.stride())


def decode(dtype: torch.dtype, layout: str = "contiguous", *, flipped: bool = False, refine: str = "quarter") -> Work:
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

    def check(launches: list[Launch], ran: int) -> None:
        options: dict[str, Any] = {"flip_pairs": MPII.mirror_pairs, "flip_shift": True} if flipped else {}
        expected = reference.decode_heatmaps(
            maps, heatmap_to_image=matrix.numpy(), flipped=mirrored, refine=refine, **options
        )
        _compare("keypoints", _values(memory, p.keypoints, points), expected[0], 1e-3)
        _compare("scores", _values(memory, p.scores, scores), expected[1], 1e-6)

    return Work(
        "launch_decode_heatmaps",
        p,
        memory,
        "map",
        SAMPLES * JOINTS,
        BATCH * JOINTS,
        BATCH * (24 + JOINTS * (SIZE[0] * SIZE[1] * dtype.itemsize * (2 if flipped else 1) + 12)),
        check,
    )


def _spec() -> Any:
    return TargetSpec(1.0, 3.0, 0, *SIZE)  # sigma 1, msra


def _loss_parameters(dtype: torch.dtype, memory: Memory, joints: Maps, pred: torch.Tensor) -> Any:
    p = HeatmapMseLossParams()
    p.kind, p.spec = KINDS[dtype], _spec()
    p.keypoints, p.visible = memory.add(joints.keypoints.numpy()), memory.add(joints.visible.numpy())
    p.batch, p.joints = pred.shape[:2]
    p.pred_strides = _strides(pred)
    return p


def loss(dtype: torch.dtype, layout: str, backward: bool) -> Work:
    """One direction of the loss on maps as a half-trained network gives them."""
    joints = Maps.random(CPU, SAMPLES, SIZE, 0)
    pred = joints.predicted(SIZE, dtype, 0, layout=layout)
    memory = Memory()
    p = _loss_parameters(dtype, memory, joints, pred)
    p.pred = memory.add(_bits(pred))
    p.partial_sums = memory.add(np.full(pred.numel() // 32, np.nan))
    scale = 3.0 * (65536.0 if dtype == torch.float16 else 1.0)  # as in training: else the gradient would be near 0
    if backward:
        p.grad_output, p.grad = memory.add(np.array([scale], np.float32)), memory.add(_bits(pred) * 0)
        p.grad_strides = _strides(pred)

    def check(launches: list[Launch], ran: int) -> None:
        if backward:
            target = reference.render_heatmaps(joints.keypoints, joints.visible, SIZE, dtype=np.float64)[0]
            expected = scale * (pred.double().numpy() - target) / pred.numel()
            atol = 1e-6 * float(np.abs(expected).max())
            _compare("gradient", _values(memory, p.grad, pred), expected, atol, 4 * ROUNDING[dtype])
        else:
            got = memory.read(p.partial_sums, np.float64, (launches[0].blocks,)).sum() * 0.5 / pred.numel()
            expected = np.array(reference.heatmap_mse_loss(pred, joints.keypoints, joints.visible))
            _compare("loss", got, expected, 0.0, 1e-5)

    return Work(
        f"launch_heatmap_mse_loss{'_backward' if backward else ''}",
        p,
        memory,
        "map",
        SAMPLES * JOINTS,
        BATCH * JOINTS,
        BATCH * pred[0].numel() * dtype.itemsize * (2 if backward else 1),
        check,
    )


def total_loss() -> Work:
    """The one block that adds up the partial sums of a batch of planar maps."""
    memory = Memory()
    pred = torch.empty((), dtype=torch.float32).expand(BATCH, JOINTS, *SIZE)
    p = _loss_parameters(torch.float32, memory, Maps.random(CPU, BATCH, SIZE, 0), pred)
    p.pred_strides = MapStrides(JOINTS * SIZE[0] * SIZE[1], SIZE[0] * SIZE[1], SIZE[1], 1)
    # One sum per block of the launch before; what lies behind the last one must not count.
    sums = np.random.default_rng(0).random(BATCH * JOINTS * 8)
    p.partial_sums, p.loss = memory.add(sums), memory.add(np.zeros(1, np.float32))

    def check(launches: list[Launch], ran: int) -> None:
        expected = sums[: launches[0].blocks].sum(keepdims=True) * 0.5 / pred.numel()
        _compare("loss", memory.read(p.loss, np.float32, (1,)), expected, 0.0, 1e-6)

    return Work("launch_heatmap_mse_loss", p, memory, "batch", 1, 1, 8 * BATCH * JOINTS, check, number=1)


def render(dtype: torch.dtype) -> Work:
    """Targets of sigma 1."""
    joints = Maps.random(CPU, SAMPLES, SIZE, 0)
    memory = Memory()
    p = RenderHeatmapsParams()
    p.keypoints, p.visible = memory.add(joints.keypoints.numpy()), memory.add(joints.visible.numpy())
    maps = torch.full((SAMPLES, JOINTS, *SIZE), float("nan"), dtype=dtype)
    weights = torch.full((SAMPLES, JOINTS), float("nan"))
    p.heatmaps, p.weights = memory.add(_bits(maps)), memory.add(weights.numpy())
    p.kind, p.maps, p.spec = KINDS[dtype], SAMPLES * JOINTS, _spec()

    def check(launches: list[Launch], ran: int) -> None:
        expected = reference.render_heatmaps(joints.keypoints, joints.visible, SIZE, dtype=np.float64)
        _compare("heatmaps", _values(memory, p.heatmaps, maps), expected[0], ROUNDING[dtype])
        _compare("weights", _values(memory, p.weights, weights), expected[1], 0.0)

    return Work(
        "launch_render_heatmaps",
        p,
        memory,
        "map",
        SAMPLES * JOINTS,
        BATCH * JOINTS,
        BATCH * JOINTS * (SIZE[0] * SIZE[1] * dtype.itemsize + 16),
        check,
    )
