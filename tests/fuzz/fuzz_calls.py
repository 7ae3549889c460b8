# SPDX-License-Identifier: Apache-2.0
"""Calls every op with shapes, strides, dtypes, devices and values of every kind, and compares with the reference.

    python -m tests.fuzz.fuzz_calls --seconds 10 --seed 0

A wrong call has to raise RuntimeError, ValueError or TypeError, a right one to give what `fastpose.reference` gives; a
crash ends the process, so run it under the sanitizers (`make fuzz`). Values are compared where all arguments are below
1e6: beyond that rounding decides, and the calls are only made. Exit code 1 if anything differs.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from torch import Tensor

import fastpose
from fastpose import ImageBatch, reference
from tests.helpers.ops import RENDER_TOLERANCE

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
HOSTILE = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-40, 3.4e38, -3.4e38, 1e30, 2.0**24, 2.0**31, 9.3e18, 65504.0]
counts: dict[str, Counter[str]] = {}
Draw = Callable[[st.SearchStrategy[Any]], Any]


class Arguments:
    """Draws arguments; `spoilt` once one of them is wrong."""

    def __init__(self, draw: Draw) -> None:
        self.draw, self.spoilt = draw, False
        self.hostile = draw(st.sampled_from([0.0, 0.0, 0.1, 1.0]))
        self.generator = np.random.default_rng(draw(st.integers(0, 2**32)))

    def whole(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def of(self, *values: Any) -> Any:
        return self.draw(st.sampled_from(values))

    def spoil(self, right: Any, *wrong: Any) -> Any:
        if self.whole(0, 40) > 0:
            return right
        self.spoilt = True
        return self.of(*wrong)

    def tensor(self, shape: Sequence[int], dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Any:
        """Values of `dtype` in one of the ways that a tensor can lie in memory, or something wrong."""
        shape = list(shape)
        wrong = self.spoil("", "dtype", "shape", "dim", "kind", "meta")
        if wrong == "shape" and shape:
            shape[self.whole(0, len(shape) - 1)] += 1
        if wrong == "dim":
            shape = [*shape, 1]
        if dtype == torch.bool:
            values: Tensor = torch.from_numpy(self.generator.choice([0, 1, 2, 255], shape).astype(np.uint8))
            values = values.view(torch.bool)
        elif dtype in (torch.uint8, torch.int64, torch.int32):
            values = torch.from_numpy(np.asarray(self.generator.integers(0, 256, shape))).to(dtype)
        else:
            numbers = scale * self.generator.integers(-64, 65, shape) / self.generator.choice([1, 8, 61, 64])
            odd = self.generator.random(shape) < self.hostile
            numbers = np.where(odd, self.generator.choice(HOSTILE, shape), numbers)
            values = torch.from_numpy(np.asarray(numbers, np.float64)).to(dtype)
        if wrong == "dtype":
            values = values.to(self.of(torch.int16, torch.complex64, torch.float8_e4m3fn))
        if wrong == "meta":
            values = values.to("meta")
        if wrong == "kind":
            return self.of(None, 3, "text", [1.0], values.float().to_sparse(), values.tolist())
        return values if values.is_meta else self.laid_out(values)

    def laid_out(self, values: Tensor) -> Tensor:
        way = self.of("dense", "dense", "channels last", "gaps", "offset", "transposed", "repeated", "overlapping")
        if way == "channels last" and values.dim() == 4:
            return values.contiguous(memory_format=torch.channels_last)
        if way in ("gaps", "offset") and values.dim():
            first = 1 if way == "offset" else 0
            larger = values.new_zeros([2 * n + 1 for n in values.shape])
            part = larger[tuple(slice(first, first + 2 * n, 2) for n in values.shape)]
            return part.copy_(values)
        if way == "transposed" and values.dim() > 1:
            return values.transpose(0, -1).contiguous().transpose(0, -1)
        if way == "repeated" and values.dim() and len(values):
            return values[:1].expand(values.shape)
        if way == "overlapping" and values.numel():
            return values.as_strided(values.shape, [self.whole(0, 1) for _ in values.shape])
        return values

    def optional(self, *arguments: Any, **options: Any) -> Any:
        return self.tensor(*arguments, **options) if self.whole(0, 1) else None

    def maps(self) -> tuple[int, int, int, int]:
        if self.whole(0, 30) == 0:
            return 1, self.whole(1, 2), self.whole(1, 3), self.whole(900, 1300)
        side = self.of(8, 8, 8, 40)
        return self.whole(0, 3), self.whole(0, 4), self.whole(1, side), self.whole(1, side)

    def number(self, right: float) -> Any:
        return self.spoil(right, 0.0, -1.0, np.nan, np.inf, 1e300, "1", None)


def moderate(*values: Any) -> bool:
    return all(
        bool(torch.all(value.double().abs() <= 1e6)) for value in values if isinstance(value, Tensor) and value.numel()
    )


# The call, what compares its result with the reference's, and whether that can be compared.
Case = tuple[dict[str, Any], Callable[[Any, Any], None], Callable[[], bool]]


def close(got: Any, expected: Any, rtol: float, atol: float) -> None:
    values = got.double().numpy() if isinstance(got, Tensor) else got
    np.testing.assert_allclose(values, np.asarray(expected, np.float64), rtol=rtol, atol=atol)


def affine_crop(a: Arguments) -> Case:
    batch, height, width = a.whole(0, 3), a.whole(1, 12), a.of(a.whole(1, 12), a.whole(100, 200))
    count = a.whole(1, 3)
    index = torch.from_numpy(a.generator.integers(0, count, batch))
    if batch:
        index[0] = a.spoil(int(index[0]), -1, count, 2**62, -(2**63))
    if a.whole(0, 1):
        images: Any = a.tensor((count, a.whole(1, 12), a.whole(1, 20), 3), torch.uint8)
    else:
        pictures = [a.generator.integers(0, 256, (a.whole(1, 9), a.whole(1, 20), 3), np.uint8) for _ in range(count)]
        images = ImageBatch.from_list(pictures)
        table, value = a.spoil(("offsets", None), *((t, v) for t in ("offsets", "sizes") for v in (-1, 0, 7, 2**30)))
        if value is not None:  # altered after validation: nobody knows whether it still lies inside
            getattr(images, table).view(-1)[0] = value
        elif a.whole(0, 40) == 0:
            a.spoilt = True
            setattr(images, table, None)
    matrix, color = a.tensor((batch, 2, 3), scale=a.of(0.5, 4.0)), a.optional(a.of((3, 4), (batch, 3, 4)), scale=0.1)
    dtype = a.spoil(a.of(torch.float32, torch.float16, torch.bfloat16, torch.uint8), torch.int64, torch.bool)
    call = {
        "images": images,
        "crop_to_image": matrix,
        "size": a.spoil((height, width), (0, 4), (-1, 4), (2**24 + 1, 1), (2**63, 1), (4,), None, (1.5, 2)),
        "image_index": index,
        "color": color,
        "fill": a.number(float(a.of(0.0, 114.0, 255.0))),
        "dtype": dtype,
        "memory_format": a.of(torch.contiguous_format, torch.channels_last),
        "resample": a.spoil(a.of("bilinear", "bicubic"), "nearest", 1, None),
        "erase": a.optional((batch, a.whole(0, 3), 4), scale=a.of(4.0, 16.0)),
    }
    # Bicubic crops are up to twice as steep.
    largest = (2 if call["resample"] == "bicubic" else 1) * 260.0 * (1.0 if color is None else 40.0)
    rtol, atol = {torch.uint8: (0, 1.01), torch.float16: (2e-3, 0.5), torch.bfloat16: (1e-2, 0.5)}.get(dtype, (0, 0.0))
    # Source points are float32, the reference's float64: up to 1e-4 px, over steps of up to 255 per pixel.
    return call, lambda got, want: close(got, want, rtol, atol + 3e-4 * largest), lambda: moderate(matrix * 64, color)


def crop_to_image_matrix(a: Arguments) -> Case:
    batch = a.whole(0, 4)
    center, scale = a.tensor((batch, 2), scale=30.0), a.tensor(a.of((batch,), (batch, 2)))
    rotation, size = (
        a.tensor((batch,), scale=a.of(1.0, 30.0)),
        a.spoil((a.whole(2, 300), a.whole(2, 300)), (0, 3), (1,)),
    )
    call = {"center": center, "scale": scale, "rotation": rotation, "size": size, "udp": bool(a.whole(0, 1))}
    call["flip"] = a.optional((batch,), torch.bool)
    return call, lambda got, want: close(got, want, 1e-5, 1e-2), lambda: moderate(center, scale, rotation)


def transform_points(a: Arguments) -> Case:
    batch, joints = a.whole(0, 4), a.whole(0, 5)
    points, matrix = a.tensor((batch, joints, 2), a.of(torch.float32, torch.float64), 10.0), a.tensor((batch, 2, 3))
    return (
        {"points": points, "matrix": matrix},
        lambda got, want: close(got, want, 1e-5, 1e-3),
        lambda: moderate(points, matrix),
    )


def swap_pairs(a: Arguments) -> Case:
    batch, joints = a.whole(0, 4), a.whole(2, 6)
    call = {"points": a.tensor((batch, joints, 2)), "visible": a.tensor((batch, joints))}
    call["flip"] = a.tensor((batch,), torch.bool)
    call["pairs"] = a.spoil([(0, joints - 1)], [(0, 0)], [(0, joints)], [(-1, 0)], 3, None, [(0,)])

    def same(got: Any, want: Any) -> None:
        for g, w in zip(got, want, strict=True):
            np.testing.assert_array_equal(g.numpy(), w)

    return call, same, lambda: True


def render_heatmaps(a: Arguments) -> Case:
    batch, joints, height, width = a.maps()
    dtype = a.spoil(a.of(*FLOATS), torch.uint8, torch.int64)
    call = {"keypoints": a.tensor((batch, joints, 2), scale=20.0), "visible": a.tensor((batch, joints))}
    call |= {"size": a.spoil((height, width), (0, 1), (2**25, 1), None), "sigma": a.number(a.of(0.1, 1.0, 3.7, 1e6))}
    call |= {"encoding": a.spoil(a.of("msra", "unbiased", "udp"), "simcc", 3), "dtype": dtype}

    def same(got: Any, want: Any) -> None:
        close(got[0], want[0], 8e-3 if dtype == torch.bfloat16 else 0, 2 * RENDER_TOLERANCE.get(dtype, 0.0))
        np.testing.assert_array_equal(got[1].numpy(), want[1])

    return call, same, lambda: True


def heatmap_mse_loss(a: Arguments) -> Case:
    batch, joints, height, width = a.maps()
    pred = a.tensor((batch, joints, height, width), a.of(*FLOATS))
    call = {"pred": pred, "keypoints": a.tensor((batch, joints, 2), scale=20.0)}
    call |= {"visible": a.tensor((batch, joints)), "joint_weights": a.optional(a.of((joints,), (batch, joints)))}
    call |= {"sigma": a.number(a.of(0.1, 1.0, 3.7, 1e6)), "encoding": a.of("msra", "unbiased", "udp")}
    call["missing"] = a.spoil(a.of("zeros", "ignore"), "drop")
    if joints and a.whole(0, 1):
        call["hard_joints"] = a.spoil(a.whole(1, joints), 0, -1, joints + 1, 1.5, "1")
    # Weights of both signs may cancel: a part of what each pixel can contribute.
    largest = 64.0 * 64.0 * 70.0**2
    return call, lambda got, want: close(got, want, 1e-4, 1e-7 * largest), lambda: moderate(*call.values())


def pairs_of(a: Arguments, joints: int, *, mirrored: bool) -> Any:
    """`flip_pairs`, which go with the outputs of mirrored images and not without them."""
    pairs = [(0, joints - 1)] if joints > 1 else []
    return a.spoil(pairs, [(0, 0)], None, 3) if mirrored else a.spoil(None, pairs)


def decode_heatmaps(a: Arguments) -> Case:
    batch, joints, height, width = a.maps()
    dtype = a.of(*FLOATS)
    call: dict[str, Any] = {"heatmaps": a.tensor((batch, joints, height, width), dtype)}
    call["refine"] = a.spoil(a.of("none", "quarter", "dark", "dark_udp"), "best")
    call["heatmap_to_image"] = a.optional((batch, 2, 3))
    call["flipped"] = a.optional((batch, joints, height, width), dtype)
    call["flip_pairs"] = pairs_of(a, joints, mirrored=call["flipped"] is not None)
    call["flip_shift"], call["blur_kernel"] = bool(a.whole(0, 1)), a.spoil(a.of(1, 3, 9, 11, 17), 0, 2, -1, 257)
    call["blur_sigma"] = a.spoil(a.of(None, 0.5, 0.8, 3.0), 0.0, -1.0, float("nan"))
    if call["refine"] in ("dark", "dark_udp"):  # their step may have any length where the maps are noise: the scores

        def same(got: Any, want: Any) -> None:
            np.testing.assert_array_equal(got[1].numpy(), want[1])
    else:

        def same(got: Any, want: Any) -> None:
            np.testing.assert_array_equal(got[1].numpy(), want[1])
            if moderate(call["heatmap_to_image"]):
                close(got[0], want[0], 1e-6, 1e-3)

    return call, same, lambda: True


def decode_simcc(a: Arguments) -> Case:
    batch, joints, height, width = a.maps()
    dtype = a.of(*FLOATS)
    call: dict[str, Any] = {
        name: a.tensor((batch, joints, n), dtype) for name, n in (("pred_x", width), ("pred_y", height))
    }
    call |= {"split_ratio": a.number(a.of(1.0, 2.0, 3.0)), "crop_to_image": a.optional((batch, 2, 3))}
    if a.whole(0, 1):
        call |= {
            "flipped_x": a.tensor((batch, joints, width), dtype),
            "flipped_y": a.tensor((batch, joints, height), dtype),
        }
    call["flip_pairs"] = pairs_of(a, joints, mirrored="flipped_x" in call)
    call["refine"] = a.spoil(a.of("none", "dark"), "quarter")
    call["sigma"] = a.spoil(a.of((4.9, 5.66), (0.5, 38.0)), (0.4, 1.0), (1.0,), 2.0, None)

    def same(got: Any, want: Any) -> None:
        np.testing.assert_array_equal(got[1].numpy(), want[1])
        # A step of dark may have any length where the vectors are noise: the scores.
        if call["refine"] == "none" and moderate(call["crop_to_image"]):
            close(got[0], want[0], 1e-6, 1e-3)

    return call, same, lambda: True


def simcc_loss(a: Arguments) -> Case:
    batch, joints, height, width = a.maps()
    dtype = a.of(*FLOATS)
    call: dict[str, Any] = {
        name: a.tensor((batch, joints, n), dtype) for name, n in (("pred_x", width), ("pred_y", height))
    }
    call |= {"keypoints": a.tensor((batch, joints, 2), scale=20.0), "visible": a.tensor((batch, joints))}
    call |= {"joint_weights": a.optional(a.of((joints,), (batch, joints))), "label_softmax": bool(a.whole(0, 1))}
    call |= {"split_ratio": a.number(a.of(1.0, 2.0, 3.0)), "beta": a.number(a.of(1.0, 10.0))}
    call["sigma"] = a.spoil(a.of((4.9, 5.66), (1.0, 30.0)), (0.0, 1.0), (1.0, -1.0), 2.0, None)
    call["label_beta"] = a.number(a.of(1.0, 10.0))
    # Weights of both signs may cancel: a part of what each joint can contribute.
    largest = 64.0 * 64.0 * 2 * 10.0 * 128.0
    return call, lambda got, want: close(got, want, 1e-4, 1e-7 * largest), lambda: moderate(*call.values())


OPS = [
    affine_crop,
    crop_to_image_matrix,
    decode_heatmaps,
    decode_simcc,
    heatmap_mse_loss,
    render_heatmaps,
    simcc_loss,
    swap_pairs,
    transform_points,
]


def one_call(draw: Draw) -> None:
    make = draw(st.sampled_from(OPS))
    a, count = Arguments(draw), counts.setdefault(make.__name__, Counter())
    call, same, comparable = make(a)
    count["calls"] += 1
    try:
        got = getattr(fastpose, make.__name__)(**call)
    except (RuntimeError, ValueError, TypeError) as error:
        count["errors"] += 1
        if not a.spoilt:
            differs(count, make.__name__, call, error)
        return
    if a.spoilt or not comparable():
        return
    count["compared"] += 1
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            same(got, getattr(reference, make.__name__)(**call))
    except AssertionError as error:
        differs(count, make.__name__, call, error)


def differs(count: Counter[str], op: str, call: dict[str, Any], error: Exception) -> None:
    count["differences"] += 1
    if count["differences"] <= 3:
        print(f"{op}({call}): {error}", file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0, help="of the first 100 calls; the next have the next")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    end, round_ = time.monotonic() + options.seconds, options.seed
    while time.monotonic() < end:

        @seed(round_)
        @settings(
            max_examples=100,
            database=None,
            deadline=None,
            derandomize=False,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(st.data())
        def run(data: st.DataObject) -> None:
            one_call(data.draw)

        run()
        round_ += 1
    columns = ("calls", "errors", "compared", "differences")
    print(f"{'op':<22}" + "".join(f"{column:>12}" for column in columns))
    for op in sorted(counts):
        print(f"{op:<22}" + "".join(f"{counts[op][column]:>12}" for column in columns))
    total = sum((Counter(c) for c in counts.values()), Counter[str]())
    simd = fastpose.build_info()["simd"]
    print(f"{total['calls']} calls from seed {options.seed} to {round_ - 1}, {simd}: {total['differences']} differ")
    return 1 if total["differences"] else 0


if __name__ == "__main__":
    sys.exit(main())
