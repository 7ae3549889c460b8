# SPDX-License-Identifier: Apache-2.0
"""Mistakes that nothing forbids and that train a network on nonsense: a warning, once per process and mistake.

Only values on the CPU are looked at: on a GPU that would wait for it. Compiled code, fake tensors and transforms such
as vmap have none to look at.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

# Looking takes as long as a small call does. A mistake is made in every call of a loop, or in the first ones of a
# notebook: an op's first calls are looked at, and of the others one in so many.
FIRST_CALLS, ONE_IN = 100, 100
SAMPLES = 32  # of a batch, the first ones
FEW_JOINTS, FEW_SAMPLES = 8, 4
LARGEST_SCALE = 50.0  # a box of 10,000 px
OFF, NORMALIZED = "hardly any lies on the {}", "all lie in the first pixel of the {}"

_calls: Counter[str] = Counter()
_reported: set[str] = set()


def forget() -> None:
    """As if no op had been called: for tests."""
    _calls.clear()
    _reported.clear()


def _due(op: str) -> bool:
    """Whether this call of an op is one of those that are looked at."""
    if torch.compiler.is_compiling():
        return False
    count = _calls[op] = _calls[op] + 1
    return count <= FIRST_CALLS or count % ONE_IN == 0


def _have_values(*arguments: Tensor | None) -> bool:
    """Whether these tensors, except those that are None, have values that can be looked at without waiting."""
    if torch._C._are_functorch_transforms_active() or is_in_torch_dispatch_mode() or torch.jit.is_tracing():
        return False
    return all(type(value) is Tensor and value.is_cpu and value.numel() for value in arguments if value is not None)


def _report(mistake: str, text: str) -> None:
    if mistake not in _reported:
        _reported.add(mistake)
        warnings.warn(text, stacklevel=4)  # at the line that calls the op


def look_at_joints(
    op: str,
    keypoints: Tensor,
    visible: Tensor,
    size: Sequence[float],
    *,
    in_crop: bool = False,
    weighs: bool = True,
) -> None:
    """Warns of joints in other pixels than the op takes, and of COCO's flags as weights.

    Args:
        op: its name.
        keypoints, visible: float32 [B, K, 2] and [B, K], as the op has checked them.
        size: (h, w) of the maps or, with `in_crop`, of the crop.
        weighs: whether `visible` is a weight.
    """
    if not (_due(op) and _have_values(keypoints, visible)):
        return
    if weighs and float(visible.max()) == 2.0 and set(visible.unique().tolist()) <= {0.0, 1.0, 2.0}:
        _report(
            "visible",
            f"{op}: visible has the values of COCO's flags, and is a joint's weight: a joint with 2 counts twice. Pass "
            "visible > 0",
        )
    if (found := _misplaced(keypoints, visible, size)) is None:
        return
    what, (x, y) = found
    height, width = (f"{side:g}" for side in size)
    matrix = f"crop_to_image_matrix(center, scale, rotation, ({height}, {width}))"
    way = f"from image pixels: transform_points(keypoints, {matrix}, inverse=True)"
    if not in_crop:
        way += "; from crop pixels: divide by the stride, 4 for most networks"
    if what == NORMALIZED:
        way = "multiply shares of an image by its width and height first; then, " + way
    place, pixels = ("crop", "crop") if in_crop else ("map", "heatmap")
    _report(
        f"{place} joints",
        f"{op}: of the visible joints {what.format(f'{place} of {height} x {width} px')}, the first is at "
        f"({x:g}, {y:g}). keypoints must be in {pixels} pixels; {way}",
    )


def _misplaced(keypoints: Tensor, visible: Tensor, size: Sequence[float]) -> tuple[str, Sequence[float]] | None:
    """What is wrong with joints on maps or crops of `size` (h, w), and the first visible one; None if nothing is.

    Joints in the pixels of something larger lie beyond the right or lower edge, except for those that are in the upper
    left corner of the picture. Of samples in the right pixels more than a quarter of the joints does not, whatever the
    augmentation.
    """
    height, width = size
    first, joints, samples, any_on, kinds = None, 0, 0, False, set()
    for b in range(min(SAMPLES, len(keypoints))):
        points = [p for p, seen in zip(keypoints[b].tolist(), visible[b].tolist(), strict=True) if seen > 0.5]
        if not points:
            continue
        if min(size) >= 8 and all(0.0 <= x <= 1.0 and 0.0 <= y <= 1.0 for x, y in points):
            kinds.add(NORMALIZED if any(map(any, points)) else "")  # zeros alone are nobody's joints
        else:
            on = sum(not (x >= width or y >= height) for x, y in points)
            kinds.add("" if 4 * on > len(points) else OFF)
            any_on = any_on or on > 0
        if len(kinds) > 1 or "" in kinds:
            return None
        first = first or points[0]
        joints, samples = joints + len(points), samples + 1
    if first is None or joints < FEW_JOINTS or (samples < FEW_SAMPLES and any_on):
        return None
    return kinds.pop(), first


def look_at_crops(
    crop_to_image: Tensor, image_index: Tensor | None, sizes: Tensor | Sequence[int], size: tuple[int, int]
) -> None:
    """Warns of matrices from image to crop.

    Args:
        crop_to_image: float32 [B, 2, 3], as affine_crop has checked it.
        image_index: [B], the image of each crop; None: crop b is of image b, or of the only one.
        sizes: int32 [N, 2], (h, w) of the images; a pair if they are of one size.
        size: (h, w) of the crops.
    """
    if not _due("affine_crop"):
        return
    if not _have_values(crop_to_image, image_index, sizes if isinstance(sizes, Tensor) else None):
        return
    crops, any_touches = min(SAMPLES, len(crop_to_image)), False
    for b in range(crops):
        if isinstance(sizes, Tensor):
            n = int(image_index[b]) if image_index is not None else b if len(sizes) > 1 else 0
            height, width = sizes[n].tolist()
        else:
            height, width = sizes
        matrix = list(chain(*crop_to_image[b].tolist()))
        back = _inverse(matrix)
        centered, touches = _lands(matrix, size, width, height)
        if centered or back is None or not _lands(back, size, width, height)[0]:
            return
        any_touches = any_touches or touches
    if crops >= FEW_SAMPLES or not any_touches:
        _report(
            "direction",
            "affine_crop: all crops lie beside their images, and would not if crop_to_image were inverted. It must "
            "carry crop pixels to image pixels, as crop_to_image_matrix gives it and cv2.warpAffine takes it with "
            "WARP_INVERSE_MAP; cv2.invertAffineTransform(matrix) inverts one from image to crop",
        )


def _inverse(matrix: Sequence[float]) -> list[float] | None:
    a, b, x, c, d, y = matrix
    determinant = a * d - b * c
    if determinant == 0.0:
        return None
    a, b, c, d = d / determinant, -b / determinant, -c / determinant, a / determinant
    return [a, b, -(a * x + b * y), c, d, -(c * x + d * y)]


def _lands(matrix: Sequence[float], size: tuple[int, int], width: int, height: int) -> tuple[bool, bool]:
    """Whether the middle of a crop of `size` (h, w) lies on the image, and whether the box about the crop touches it.
    Both are true of what is not a number."""
    a, b, x, c, d, y = matrix
    right, low = size[1] - 1, size[0] - 1
    corners = [(a * u + b * v + x, c * u + d * v + y) for u in (0, right) for v in (0, low)]
    xs, ys = zip(*corners, strict=True)
    middle_x, middle_y = sum(xs) / 4, sum(ys) / 4
    touches = not (max(xs) < 0 or min(xs) > width - 1 or max(ys) < 0 or min(ys) > height - 1)
    return not (middle_x < 0 or middle_x > width - 1 or middle_y < 0 or middle_y > height - 1), touches


def look_at_scale(scale: Tensor) -> None:
    """Warns of sizes of boxes in pixels instead of `scale` [B] or [B, 2]."""
    if _due("crop_to_image_matrix") and _have_values(scale) and (least := float(scale.min())) > LARGEST_SCALE:
        _report(
            "scale",
            f"crop_to_image_matrix: all boxes are larger than {200 * LARGEST_SCALE:,.0f} px, the least scale is "
            f"{least:g}. scale must be the box's size in image pixels / 200",
        )


def look_at_mean_and_std(mean: Sequence[float], std: Sequence[float]) -> None:
    """Warns of three numbers each of values 0–255 instead of 0–1."""
    if not torch.compiler.is_compiling() and max(*mean, *std) > 10.0:
        _report(
            "mean and std",
            f"normalize_color: mean and std must be of values in 0–1, got {tuple(mean)} and {tuple(std)}: divide those "
            "of values in 0–255 by 255",
        )
