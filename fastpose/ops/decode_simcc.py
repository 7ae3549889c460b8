# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from ._arguments import accumulate_type, choose, exact_type, expect, float32, tensor
from ._native import call, register
from .decode_heatmaps import MAX_BLUR_KERNEL, blur_weights
from .simcc_loss import expect_vectors, positive, sigmas_of
from .swap_pairs import expect_mirrored, in_order, mirror_order
from .transform_points import transformed

Refinement = Literal["none", "dark"]
REFINEMENTS: tuple[Refinement, ...] = get_args(Refinement)


def decode_simcc(
    pred_x: Tensor,
    pred_y: Tensor,
    *,
    split_ratio: float = 2.0,
    crop_to_image: Tensor | None = None,
    flipped_x: Tensor | None = None,
    flipped_y: Tensor | None = None,
    flip_pairs: Sequence[Sequence[int]] | None = None,
    refine: Refinement = "none",
    sigma: tuple[float, float] = (4.9, 5.66),
) -> tuple[Tensor, Tensor]:
    """Joint positions from SimCC's vectors: maxima, sub-bin offset, mirror test and the way back to the image.

    Args:
        pred_x: [B, K, Wx] with Wx = crop width · split_ratio, float32, float16, bfloat16 or float64, any strides.
        pred_y: [B, K, Wy] with Wy = crop height · split_ratio, of the dtype of pred_x.
        split_ratio: bins per crop pixel.
        crop_to_image: [B, 2, 3], as `crop_to_image_matrix(…, crop_size)` gives; None leaves crop pixels.
        flipped_x, flipped_y: vectors of the mirrored image, of the shapes and dtype of pred_x and pred_y; the bins of
            flipped_x are reversed, joints swapped, and the mean of both is decoded (mmpose's `flip_test`).
        flip_pairs: (left, right) joint pairs that change places in the mirrored image; needed with flipped_x.
        refine: "none" or "dark", see below.
        sigma: standard deviations of the labels in x and y, bins; they set the blur of "dark" alone.

    Returns:
        keypoints [B, K, 2] (x, y) in crop pixels, or image pixels with crop_to_image, and scores [B, K], the smaller
        of the two axes' maxima, float32. Ties go to the lowest bin. Where the score is ≤ 0 the point is
        (−1 / split_ratio, −1 / split_ratio) in crop pixels, as in mmpose; NaN is never the maximum, and a vector of NaN
        alone gives that point with score NaN. Not differentiable.

    Raises:
        ValueError: unknown refine, a split_ratio or sigma that is not from 1e-30 to 1e30, with "dark" a sigma whose
        blur would not be 1 to 255 bins, one of flipped_x and flipped_y alone, either without `flip_pairs` or
        `flip_pairs` without them, or pairs that overlap. RuntimeError: wrong shape, dtype or device.

    Refinements:

    * "none": the bin itself.
    * "dark": one Newton step on the logarithm of the blurred vector, as mmpose's `SimCCLabel(use_dark=True)`. The blur
      is `cv2.getGaussianKernel(side, 0)` with zeros beyond the ends, `side` being the largest odd number up to
      (20σ − 7) / 3: 29 and 35 bins for RTMPose's sigmas. The blurred vector is scaled so that its highest value is the
      vector's maximum and cut to 0.001 … 50; beyond the ends its last value is repeated. The first derivative is over
      one bin to each side, the second over two. All of it is in float64. The step may have any length; it is left out
      if it is not finite.

    Differences from mmpose 1.x: NaN is its maximum; with "dark" it gives NaN where the step is not finite, as for
    vectors of zeros alone.
    """
    chosen, blur_x, blur_y = refinement(refine, sigma)
    mirrored: list[int] = []
    if (flipped_x is None) != (flipped_y is None):
        missing = "flipped_x" if flipped_x is None else "flipped_y"
        raise ValueError(f"flipped_x and flipped_y must be passed together, got no {missing}")
    if flipped_x is None and flip_pairs is not None:
        raise ValueError("flipped_x and flipped_y must be passed with flip_pairs: of the mirrored images, got None")
    if flipped_x is not None:
        if flip_pairs is None:
            raise ValueError("flip_pairs must be passed with flipped_x: (left, right) joint pairs, got None")
        joints = pred_x.size(1) if tensor("pred_x", pred_x).dim() == 3 else 0
        mirrored = mirror_order(flip_pairs, joints) if joints else []
    return call(
        "decode_simcc",
        tensor("pred_x", pred_x).detach(),
        tensor("pred_y", pred_y).detach(),
        None if crop_to_image is None else float32("crop_to_image", crop_to_image),
        None if flipped_x is None else tensor("flipped_x", flipped_x).detach(),
        None if flipped_y is None else tensor("flipped_y", flipped_y).detach(),
        mirrored,
        positive("split_ratio", split_ratio),
        chosen,
        blur_x,
        blur_y,
    )


def refinement(refine: str, sigma: tuple[float, float]) -> tuple[int, int, int]:
    """The number of a refinement, and the sides of its blurs in x and y in bins, from the labels' standard deviations.

    Raises:
        ValueError: see `decode_simcc`.
    """
    sigma_x, sigma_y = sigmas_of(sigma)
    chosen = choose("refine", refine, REFINEMENTS)
    return (chosen, _blur_kernel(sigma_x), _blur_kernel(sigma_y)) if chosen else (chosen, 1, 1)


def _blur_kernel(sigma: float) -> int:
    """Bins of the blur of "dark", or a ValueError."""
    side = int((min(sigma, MAX_BLUR_KERNEL) * 20 - 7) // 3)  # of larger ones, too, the blur is too wide
    side -= side % 2 == 0
    if not 1 <= side <= MAX_BLUR_KERNEL:
        wanted = f"a sigma whose blur, (20 · sigma − 7) / 3, is 1 to {MAX_BLUR_KERNEL} bins"
        raise ValueError(f"refine='dark' needs {wanted}, got {sigma}")
    return side


def plain_decode_simcc(
    pred_x: Tensor,
    pred_y: Tensor,
    crop_to_image: Tensor | None,
    flipped_x: Tensor | None,
    flipped_y: Tensor | None,
    mirrored: list[int],
    split_ratio: float,
    refine: int,
    blur_x: int,
    blur_y: int,
) -> tuple[Tensor, Tensor]:
    """`decode_simcc` in plain torch, with `mirrored` from `mirror_order` and the sides of the blurs in bins."""
    op, beside = "decode_simcc", ("pred_x", pred_x)
    expect_vectors(op, pred_x, pred_y)
    batch, joints, _ = pred_x.shape
    if not 0 <= refine < len(REFINEMENTS):
        raise RuntimeError(f"{op}: unknown refine {refine}")
    for name, side in (("blur_x", blur_x), ("blur_y", blur_y)):
        if not 1 <= side <= MAX_BLUR_KERNEL or side % 2 == 0:
            raise RuntimeError(f"{op}: {name} must be an odd number of bins from 1 to {MAX_BLUR_KERNEL}, got {side}")
    if crop_to_image is not None:
        expect(op, "crop_to_image", crop_to_image, (batch, 2, 3), "[B, 2, 3]", beside=beside)
    if (flipped_x is None) != (flipped_y is None):
        raise RuntimeError(f"{op}: flipped_x and flipped_y must be passed together")
    vectors = [pred.to(accumulate_type(pred.dtype)) for pred in (pred_x, pred_y)]
    if flipped_x is not None and flipped_y is not None:
        expect(op, "flipped_x", flipped_x, pred_x.shape, "of pred_x", (pred_x.dtype,), beside)
        expect(op, "flipped_y", flipped_y, pred_y.shape, "of pred_y", (pred_x.dtype,), beside)
        expect_mirrored(op, mirrored, joints)
        back = in_order(flipped_x, mirrored).flip(2), in_order(flipped_y, mirrored)
        vectors = [(own + other.to(own.dtype)) * 0.5 for own, other in zip(vectors, back, strict=True)]

    exact = exact_type(pred_x.device)
    maxima, bins = [], []
    for vector, side in zip(vectors, (blur_x, blur_y), strict=True):
        values = vector.nan_to_num(-torch.inf, torch.inf, -torch.inf)
        at = values.argmax(2, keepdim=True)
        highest = values.gather(2, at)
        only_nan = vector.isnan().all(2, keepdim=True)
        maxima.append(torch.where(only_nan, torch.nan, highest)[..., 0])
        position = at.to(exact)
        if REFINEMENTS[refine] == "dark":
            position = position - _step(vector.to(exact), highest.to(exact), at, side)
        bins.append(position[..., 0])
    scores = torch.minimum(*maxima)  # NaN if either is
    points = torch.stack(bins, 2)
    points = torch.where((scores > 0.0)[..., None], points, -1.0) / split_ratio
    if crop_to_image is not None:
        points = transformed(points, crop_to_image)
    return points.to(torch.float32), scores.to(torch.float32)


def _step(vectors: Tensor, highest: Tensor, at: Tensor, side: int) -> Tensor:
    """Newton's step [B, K, 1] from the maxima on the logarithm of the blurred vectors, to be subtracted; 0 if it is not
    finite."""
    bins = vectors.size(2)
    padded = torch.nn.functional.pad(vectors, (side // 2, side // 2))
    # Tap by tap, as a convolution may be computed in a shorter type (autocast, TF32).
    blurred = torch.zeros_like(vectors)
    for tap, weight in enumerate(blur_weights(side)):
        blurred = blurred + weight * padded[..., tap : tap + bins]
    peak = blurred.nan_to_num(-torch.inf, torch.inf, -torch.inf).amax(2, keepdim=True)
    window = (at + torch.arange(-2, 3, device=at.device)).clamp(0, bins - 1)
    f = (blurred.gather(2, window) * (highest / peak)).clamp(1e-3, 50.0).log()
    slope = 0.5 * (f[..., 3:4] - f[..., 1:2])
    step = slope / (1e-9 + 0.25 * (f[..., 4:5] - 2 * f[..., 2:3] + f[..., 0:1]))
    return torch.where(torch.isfinite(step), step, 0.0)


def _fake(pred_x: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    batch, joints = pred_x.size(0), pred_x.size(1)
    return (
        pred_x.new_empty((batch, joints, 2), dtype=torch.float32),
        pred_x.new_empty((batch, joints), dtype=torch.float32),
    )


register("decode_simcc", plain_decode_simcc, _fake)
