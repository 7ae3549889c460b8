# SPDX-License-Identifier: Apache-2.0
"""`fastpose doctor --test`: each op on each device here, beside its definition in `fastpose.reference`, and its speed.

The one module of the product that imports the definition, and nobody but the doctor imports it: it tests, as tests do,
but on the user's machine, where these are not.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fastpose
from fastpose import ops, reference
from fastpose.ops import _native

Array = NDArray[Any]

JOINTS, PAIRS = 17, [(1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16)]
CROP, MAP = (256, 192), (64, 48)
CHECKED, TIMED = 4, {"cpu": 32, "plain": 4}  # samples
TIMED_ON_GPU, DISTINCT = 512, 32
SECONDS = 0.15  # to time an op in
SLOW = 3  # times below the usual


@dataclass(frozen=True)
class Case:
    """An op on certain inputs.

    Attributes:
        run: calls the op; returns what it is timed for.
        define: what the definition gives, for `compared`.
        names: of what is compared, with how far off it may be: absolutely or, if `relative`, in shares of it.
        units: how many of `unit` it makes in a call.
        moved: bytes that it must read and write.
        compared: from what `run` returns to arrays.
    """

    run: Callable[[], Sequence[Tensor]]
    define: Callable[[], Sequence[Any]]
    names: dict[str, float]
    units: int
    unit: str
    moved: int
    compared: Callable[[Sequence[Tensor]], Sequence[Any]] = lambda outputs: [t.cpu().double().numpy() for t in outputs]
    relative: bool = False


class OpTest(NamedTuple):
    """An op, and its usual speed in percent of a copy's on a "cpu" and on "cuda", if it moves enough to be compared:
    as measured here on the machine of docs/benchmarks.md, and in docs/performance.md on an H200."""

    name: str
    make: Callable[[torch.device, int], Case]
    usual: dict[str, int]


class Leg(NamedTuple):
    """Where ops are tested: a device, and whether plain torch is made to run them on it."""

    device: torch.device
    kernels: str  # "cpu" or "cuda", native; "plain", in plain torch on the CPU; "" for others in plain torch
    plain: bool
    title: str


class PlainTorch(TorchDispatchMode):
    """Ops run in plain torch, as where there is no native library."""

    def __init__(self) -> None:
        super().__init__()
        names = [file.name for file in pkgutil.iter_modules(ops.__path__)]
        modules = [importlib.import_module(f"{ops.__name__}.{name}") for name in names]
        self.plain = {
            name: value for module in modules for name, value in vars(module).items() if name.startswith("plain_")
        }

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "fastpose":
            func = self.plain[f"plain_{func._schema.name.partition('::')[2]}"]
        return func(*args, **(kwargs or {}))


# ---- the ops ---------------------------------------------------------------------------------------------------------


def _rng() -> np.random.Generator:
    return np.random.default_rng(0)


def _boxes(batch: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Centre, scale, rotation and flip of boxes in an image of 480 x 640; some leave it."""
    rng = _rng()
    middle, scales = rng.uniform((60, 40), (580, 440), (batch, 2)), rng.uniform(0.8, 1.8, batch)
    center, scale, rotation = (
        torch.from_numpy(each.astype(np.float32)) for each in (middle, scales, rng.uniform(-40, 40, batch))
    )
    return center, scale, rotation, torch.from_numpy(rng.random(batch) < 0.5)


def _matrix(batch: int, size: tuple[int, int]) -> Tensor:
    """From crops or maps of `size` to the image, as defined: a fault of one op must not be in the inputs of others."""
    center, scale, rotation, flip = _boxes(batch)
    return torch.from_numpy(reference.crop_to_image_matrix(center, scale, rotation, size, flip=flip))


def _joints(batch: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """On a map or crop of `size` and a little beside it; a tenth not annotated."""
    rng = _rng()
    points = rng.uniform((-3, -3), (size[1] + 3, size[0] + 3), (batch, JOINTS, 2))
    visible = rng.random((batch, JOINTS)) < 0.9
    return torch.from_numpy(points.astype(np.float32)), torch.from_numpy(visible.astype(np.float32))


def _repeated(tensor: Tensor, batch: int) -> Tensor:
    """The first `batch` samples of a tensor that is repeated as often as that takes."""
    return tensor.repeat(-(-batch // len(tensor)), *[1] * (tensor.dim() - 1))[:batch].contiguous()


@cache
def _maps(batch: int) -> Tensor:
    """Blobs under noise, as a network gives them."""
    if batch > DISTINCT:
        return _repeated(_maps(DISTINCT), batch)
    y, x = np.mgrid[: MAP[0], : MAP[1]]
    center = _joints(batch, MAP)[0].double().numpy()[..., None, None]
    maps = np.exp(-((x - center[:, :, 0]) ** 2 + (y - center[:, :, 1]) ** 2) / 8)
    return torch.from_numpy(maps + 0.02 * _rng().random(maps.shape)).to(torch.float32)


@cache
def _vectors(batch: int) -> list[Tensor]:
    """The same along each axis."""
    if batch > DISTINCT:
        return [_repeated(each, batch) for each in _vectors(DISTINCT)]
    center = 2 * _joints(batch, CROP)[0].double().numpy()
    vectors = []
    for axis, side in enumerate(CROP[::-1]):
        bins = np.arange(2 * side)
        vector = np.exp(-((bins - center[..., axis, None]) ** 2) / 50) + 0.02 * _rng().random(len(bins))
        vectors.append(torch.from_numpy(vector.astype(np.float32)))
    return vectors


def _bytes(*tensors: Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _affine_crop(device: torch.device, batch: int) -> Case:
    images = [_rng().integers(0, 256, (480, 640, 3), dtype=np.uint8) for _ in range(4)]
    index = torch.arange(batch) % len(images)
    matrix = _matrix(batch, CROP)
    color = fastpose.normalize_color(fastpose.IMAGENET_MEAN, fastpose.IMAGENET_STD)
    pixels = fastpose.ImageBatch.from_list(images).to(device)
    there = (matrix.to(device), index.to(device))
    crop = 3 * CROP[0] * CROP[1] * torch.float32.itemsize
    seen = 3 * float(((200 * _boxes(batch)[1]) ** 2 * CROP[0] / CROP[1]).sum())
    return Case(
        lambda: [fastpose.affine_crop(pixels, there[0], CROP, image_index=there[1], color=color)],
        lambda: [reference.affine_crop(images, matrix, CROP, image_index=index, color=color)],
        {"crops": 2e-3},
        *(batch, "crops", batch * crop + int(seen)),
    )


def _crop_to_image_matrix(device: torch.device, batch: int) -> Case:
    boxes: Any = _boxes(64 * batch)
    there: Any = [each.to(device) for each in boxes]
    return Case(
        lambda: [fastpose.crop_to_image_matrix(there[0], there[1], there[2], CROP, flip=there[3], udp=True)],
        lambda: [reference.crop_to_image_matrix(boxes[0], boxes[1], boxes[2], CROP, flip=boxes[3], udp=True)],
        {"matrices": 1e-3},
        *(64 * batch, "boxes", _bytes(*boxes) + 64 * batch * 24),
    )


def _transform_points(device: torch.device, batch: int) -> Case:
    matrix = _matrix(64 * batch, MAP)
    points = _joints(64 * batch, (480, 640))[0]
    there = points.to(device), matrix.to(device)
    return Case(
        lambda: [fastpose.transform_points(*there, inverse=True)],
        lambda: [reference.transform_points(points, matrix, inverse=True)],
        {"points": 1e-3},
        *(64 * batch * JOINTS, "points", 2 * _bytes(points) + _bytes(matrix)),
    )


def _swap_pairs(device: torch.device, batch: int) -> Case:
    points, visible = _joints(64 * batch, MAP)
    flip = _boxes(64 * batch)[3]
    there: Any = [each.to(device) for each in (points, visible, flip)]
    return Case(
        lambda: fastpose.swap_pairs(there[0], there[1], there[2], PAIRS),
        lambda: reference.swap_pairs(points, visible, flip, PAIRS),
        {"points": 0.0, "visible": 0.0},
        *(64 * batch * JOINTS, "points", 2 * _bytes(points, visible)),
    )


def _render_heatmaps(device: torch.device, batch: int) -> Case:
    joints: Any = _joints(batch, MAP)
    there: Any = [each.to(device) for each in joints]
    return Case(
        lambda: fastpose.render_heatmaps(there[0], there[1], MAP, sigma=2.0),
        lambda: reference.render_heatmaps(joints[0], joints[1], MAP, sigma=2.0),
        {"heatmaps": 2e-6, "weights": 0.0},
        *(batch * JOINTS, "maps", batch * JOINTS * MAP[0] * MAP[1] * 4),
    )


def _decode_heatmaps(refine: Any, device: torch.device, batch: int) -> Case:
    maps, mirrored = _maps(batch), _maps(batch).flip(3)
    matrix = _matrix(batch, MAP)
    there: Any = [each.to(device) for each in (maps, mirrored, matrix)]
    options: dict[str, Any] = {"refine": refine, "flip_pairs": PAIRS, "flip_shift": True}
    return Case(
        lambda: fastpose.decode_heatmaps(there[0], flipped=there[1], heatmap_to_image=there[2], **options),
        lambda: reference.decode_heatmaps(maps, flipped=mirrored, heatmap_to_image=matrix, **options),
        {"keypoints": 1e-3 if refine in ("none", "quarter") else 2e-2, "scores": 1e-6},
        *(batch * JOINTS, "maps", 2 * _bytes(maps)),
    )


def _soft_argmax(device: torch.device, batch: int) -> Case:
    maps = _maps(batch)
    there = maps.to(device)
    return Case(
        lambda: fastpose.soft_argmax(there, beta=20.0),
        lambda: reference.soft_argmax(maps, beta=20.0),
        {"keypoints": 1e-3, "scores": 1e-5},
        *(batch * JOINTS, "maps", _bytes(maps)),
    )


def _decode_simcc(refine: Any, device: torch.device, batch: int) -> Case:
    vectors = _vectors(batch)
    mirrored: dict[str, Any] = {"flipped_x": vectors[0].flip(2), "flipped_y": vectors[1]}
    matrix = _matrix(batch, CROP)
    there, to_image = [each.to(device) for each in vectors], matrix.to(device)
    flipped: dict[str, Any] = {name: each.to(device) for name, each in mirrored.items()}
    options: dict[str, Any] = {"refine": refine, "flip_pairs": PAIRS}
    return Case(
        lambda: fastpose.decode_simcc(there[0], there[1], crop_to_image=to_image, **flipped, **options),
        lambda: reference.decode_simcc(vectors[0], vectors[1], crop_to_image=matrix, **mirrored, **options),
        {"keypoints": 1e-3 if refine in ("none", "quarter") else 2e-2, "scores": 1e-6},
        *(batch * JOINTS, "joints", 2 * _bytes(*vectors)),
    )


def _loss(
    loss: Callable[..., Tensor], defined: Callable[..., float], preds: Sequence[Tensor], device: torch.device, unit: str
) -> Case:
    """A loss and its gradient. The gradient along a direction is compared with a difference of the definition."""
    leaves = [pred.to(device, copy=True).requires_grad_() for pred in preds]
    arrays, rng, step = [pred.double().numpy() for pred in preds], _rng(), 1e-4
    ways = [rng.standard_normal(array.shape) for array in arrays]

    def run() -> Sequence[Tensor]:
        value = loss(*leaves)
        return value.detach(), *torch.autograd.grad(value, leaves)

    def compared(outputs: Sequence[Tensor]) -> Sequence[float]:
        value, *gradients = (each.cpu().double().numpy() for each in outputs)
        slope = sum(float((gradient * way).sum()) for gradient, way in zip(gradients, ways, strict=True))
        return float(value), slope

    def define() -> Sequence[float]:
        there, back = (
            defined(*(array + sign * step * way for array, way in zip(arrays, ways, strict=True))) for sign in (1, -1)
        )
        return defined(*arrays), (there - back) / (2 * step)

    count = preds[0].shape[0] * preds[0].shape[1]
    return Case(run, define, {"loss": 1e-4, "gradient": 1e-3}, count, unit, 3 * _bytes(*preds), compared, True)


def _heatmap_mse_loss(options: dict[str, Any], device: torch.device, batch: int) -> Case:
    joints: Any = _joints(batch, MAP)
    there: Any = [each.to(device) for each in joints]
    return _loss(
        lambda pred: fastpose.heatmap_mse_loss(pred, *there, sigma=2.0, missing="ignore", **options),
        lambda pred: reference.heatmap_mse_loss(pred, *joints, sigma=2.0, missing="ignore", **options),
        *([_maps(batch)], device, "maps"),
    )


def _simcc_loss(device: torch.device, batch: int) -> Case:
    joints: Any = _joints(batch, CROP)
    there: Any = [each.to(device) for each in joints]
    return _loss(
        lambda *preds: fastpose.simcc_loss(*preds, *there),
        lambda *preds: reference.simcc_loss(*preds, *joints),
        *(_vectors(batch), device, "joints"),
    )


TESTS = [
    OpTest("affine_crop", _affine_crop, {"cpu": 20, "cuda": 85}),
    OpTest("crop_to_image_matrix", _crop_to_image_matrix, {}),
    OpTest("decode_heatmaps quarter", partial(_decode_heatmaps, "quarter"), {"cpu": 30, "cuda": 100}),
    OpTest("decode_heatmaps dark", partial(_decode_heatmaps, "dark"), {"cpu": 20}),
    OpTest("decode_heatmaps dark_udp", partial(_decode_heatmaps, "dark_udp"), {"cpu": 20}),
    OpTest("decode_simcc none", partial(_decode_simcc, "none"), {"cpu": 30}),
    OpTest("decode_simcc dark", partial(_decode_simcc, "dark"), {"cpu": 4}),
    OpTest("heatmap_mse_loss", partial(_heatmap_mse_loss, {}), {"cpu": 45, "cuda": 80}),
    OpTest("heatmap_mse_loss hard_joints", partial(_heatmap_mse_loss, {"hard_joints": 8}), {}),
    OpTest("render_heatmaps", _render_heatmaps, {"cpu": 50, "cuda": 95}),
    OpTest("simcc_loss", _simcc_loss, {"cpu": 5}),
    OpTest("soft_argmax", _soft_argmax, {}),
    OpTest("swap_pairs", _swap_pairs, {}),
    OpTest("transform_points", _transform_points, {}),
]

# ---- running them ----------------------------------------------------------------------------------------------------


def legs() -> Iterator[Leg]:
    """The CPU, natively if it can and in plain torch, and each accelerator."""
    cpu = torch.device("cpu")
    native = _native.why_fallback("cpu") is None
    if native:
        yield Leg(cpu, "cpu", False, "cpu, native kernels, one thread")
    yield Leg(cpu, "plain", native, "cpu, plain torch, one thread")
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return
    native = _native.why_fallback(accelerator.type) is None
    for n in range(torch.accelerator.device_count()):
        device = torch.device(accelerator.type, n)
        kernels = "native kernels" if native else "plain torch"
        yield Leg(device, accelerator.type if native else "", False, f"{device}, {kernels}")


def run() -> int:
    """Tests every op on every device, and prints a line for each as it goes; returns how many failed."""
    print("\nEach op beside its definition in NumPy, and its speed. 100 % is the speed of a copy of as many bytes, in")
    print("turns with it; in brackets what is usual. Other programs on this machine change the speeds.")
    failed, places, threads = 0, list(legs()), torch.get_num_threads()
    defined: dict[str, Sequence[Any]] = {}
    torch.set_num_threads(1)  # shares of a copy's speed then do not depend on how many cores there are
    try:
        for leg in places:
            print(f"\n  {leg.title}", flush=True)
            for test in TESTS:
                print(f"    {test.name:29}", end="", flush=True)  # first: a broken library may end the process
                result, good = _tested(test, leg, defined)
                failed += not good
                print(result, flush=True)
    finally:
        torch.set_num_threads(threads)
    count = len(TESTS) * len(places)
    print(f"\n  {failed} of {count} tests failed" if failed else f"\n  all {count} tests passed", flush=True)
    return failed


def _tested(test: OpTest, leg: Leg, defined: dict[str, Sequence[Any]]) -> tuple[str, bool]:
    """What to print of an op, and whether it gives what is `defined`, in which definitions are kept."""
    mode: AbstractContextManager[Any] = PlainTorch() if leg.plain else nullcontext()
    try:
        with mode, warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # that plain torch runs it
            case = test.make(leg.device, CHECKED)
            got = case.compared(case.run())
            if test.name not in defined:
                defined[test.name] = case.define()
            if differences := _differences(case, got, defined[test.name]):
                return f"DIFFERS: {differences}", False
            case = test.make(leg.device, TIMED.get(leg.kernels, TIMED_ON_GPU))
            own, copy = _seconds(case, leg.device)
    except Exception as error:
        return f"FAILS: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", False
    return "ok  " + _in_words(case, own, copy, test.usual.get(leg.kernels)), True


def _differences(case: Case, got: Sequence[Any], expected: Sequence[Any]) -> str:
    """Where results are not what the definition gives; empty if they are."""
    found = []
    for (name, tolerance), own, defined in zip(case.names.items(), got, expected, strict=True):
        own, defined = np.asarray(own, np.float64), np.asarray(defined, np.float64)
        if own.shape != defined.shape:
            found.append(f"{name} are {list(own.shape)} and should be {list(defined.shape)}")
            continue
        difference = np.abs(own - defined) / (np.abs(defined) if case.relative else 1.0)
        bad = ~(difference <= tolerance)  # so that NaN is bad
        if bad.any():
            worst = float(np.max(np.nan_to_num(difference, nan=np.inf)))
            where = f" in {int(bad.sum())} of {bad.size} values" if bad.size > 1 else ""
            found.append(f"{name} by {worst:.2g}{where}, {tolerance:g} is allowed")
    return "; ".join(found)


def _seconds(case: Case, device: torch.device) -> tuple[float, float]:
    """What a call takes at best, and a copy of as many bytes, in turns: what disturbs one disturbs the other."""
    source = torch.zeros(max(1, case.moved // 8), device=device)  # a copy reads and writes

    def timed(function: Callable[[], object], calls: int) -> float:
        begin = time.perf_counter()
        for _ in range(calls):
            function()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return (time.perf_counter() - begin) / calls

    beside = torch.empty_like(source)
    functions = (case.run, lambda: beside.copy_(source))
    first = [timed(each, 1) for each in functions]
    # Several calls at once, where one is nothing beside the clock's resolution and what waiting for a device takes.
    calls = [max(1, math.ceil(2e-3 / min(once, timed(each, 1)))) for each, once in zip(functions, first, strict=True)]
    own, copy = math.inf, math.inf
    end = time.perf_counter() + SECONDS
    while own == math.inf or time.perf_counter() < end:
        own, copy = min(own, timed(functions[0], calls[0])), min(copy, timed(functions[1], calls[1]))
    return own, copy


def _in_words(case: Case, own: float, copy: float, usual: int | None) -> str:
    """An op's speed in its own unit and beside a copy."""
    speed, factor = case.units / own, ""
    if speed >= 1e6:
        speed, factor = speed / 1e6, " million"
    text = f"{speed:>7,.{0 if speed >= 100 else 1}f}{factor} {case.unit}/s"
    if usual is None:
        return text
    share = 100 * copy / own
    slow = ", SLOW" if share < usual / SLOW else ""
    return f"{text:27}{case.moved / own / 1e9:7.1f} GB/s {share:4.0f} % ({usual} %{slow})"
