# SPDX-License-Identifier: Apache-2.0
"""The definitions of the ops on images, heatmaps, points, matrices and colours."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]

MAX_BLUR_KERNEL = 255  # pixels
LUMA = (0.299, 0.587, 0.114)  # Rec. 601: shares of R, G, B in a pixel's grey
MIDDLE_GREY = 127.5  # that contrast is about


def _array(values: Any) -> Array:
    """Anything array-like as an array; tensors from any device, bfloat16 (which NumPy lacks) as float32."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if str(values.dtype) == "torch.bfloat16" else values
    return np.asarray(values)


def _dtype(dtype: Any) -> np.dtype[Any]:
    """A NumPy type out of itself or of torch's type of that name; bfloat16 (which NumPy lacks) becomes float32."""
    name = str(dtype)
    if name.startswith("torch."):
        dtype = "float32" if name == "torch.bfloat16" else name.removeprefix("torch.")
    return np.dtype(dtype)


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


def _image_list(images: Any) -> list[Array]:
    """The images of an ImageBatch, of a [N, H, W, 3] or [H, W, 3] array, or of a sequence of [H, W, 3] arrays."""
    if isinstance(images, (list, tuple)) or hasattr(images, "offsets"):
        return [_array(image) for image in images]
    array = _array(images)
    return list(array) if array.ndim == 4 else [array]


def _sample_bilinear(image: Array, x: Array, y: Array, fill: float) -> Array:
    """Values [..., 3] at source points; each of the four taps that lies outside the image is `fill`."""
    height, width = image.shape[:2]
    touches = (x > -1) & (x < width) & (y > -1) & (y < height)  # False for NaN and infinities
    x, y = np.where(touches, x, -1.0), np.where(touches, y, -1.0)
    x0, y0 = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    wx, wy = (x - x0)[..., None], (y - y0)[..., None]

    def tap(ty: Array, tx: Array) -> Array:
        inside = (tx >= 0) & (tx < width) & (ty >= 0) & (ty < height)
        values = image[np.clip(ty, 0, height - 1), np.clip(tx, 0, width - 1)].astype(np.float64)
        return np.where(inside[..., None], values, fill)

    upper = tap(y0, x0) * (1 - wx) + tap(y0, x0 + 1) * wx
    lower = tap(y0 + 1, x0) * (1 - wx) + tap(y0 + 1, x0 + 1) * wx
    return np.where(touches[..., None], upper * (1 - wy) + lower * wy, fill)


def _sample_bicubic(image: Array, x: Array, y: Array, fill: float) -> Array:
    """Values [..., 3] at source points; each of the sixteen taps that lies outside the image is `fill`."""
    height, width = image.shape[:2]
    touches = (x > -2) & (x < width + 1) & (y > -2) & (y < height + 1)  # False for NaN and infinities
    x, y = np.where(touches, x, -2.0), np.where(touches, y, -2.0)
    x0, y0 = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    out = np.zeros((*x.shape, 3))
    for ty in range(-1, 3):
        for tx in range(-1, 3):
            row, column = y0 + ty, x0 + tx
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            values = image[np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)].astype(np.float64)
            weight = _cubic_convolution(y - row) * _cubic_convolution(x - column)
            out += weight[..., None] * np.where(inside[..., None], values, fill)
    return out


def _cubic_convolution(distance: Array) -> Array:
    """The weight of a tap at a distance in pixels (Keys 1981), with a = -0.75 as in OpenCV and in torch."""
    d, a = np.abs(distance), -0.75
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def affine_crop(
    images: Any,
    crop_to_image: ArrayLike,
    size: tuple[int, int],
    *,
    image_index: ArrayLike | None = None,
    color: ArrayLike | None = None,
    fill: float = 0.0,
    dtype: Any = np.float32,
    memory_format: Any = None,
    resample: str = "bilinear",
    erase: ArrayLike | None = None,
) -> Array:
    """See `fastpose.affine_crop`. Returns [B, 3, h, w]; `memory_format` says nothing about an array's values."""
    _check(resample in ("bilinear", "bicubic"), f"resample must be 'bilinear' or 'bicubic', got {resample!r}")
    sample = _sample_bilinear if resample == "bilinear" else _sample_bicubic
    sources = _image_list(images)
    matrices = _array(crop_to_image).astype(np.float64)
    batch, (height, width) = len(matrices), size
    if image_index is not None:
        index = _array(image_index)
        if len(index) and not (index.min() >= 0 and index.max() < len(sources)):
            raise IndexError(f"image_index must be in [0, {len(sources)}), got {index}")
    elif len(sources) == 1:
        index = np.zeros(batch, np.int64)
    elif len(sources) == batch:
        index = np.arange(batch)
    else:
        raise ValueError(f"without image_index there must be 1 or {batch} images, got {len(sources)}")
    colors = np.broadcast_to(np.eye(3, 4) if color is None else _array(color).astype(np.float64), (batch, 3, 4))

    boxes = np.zeros((batch, 0, 4)) if erase is None else _array(erase).astype(np.float32)
    _check(boxes.ndim == 3 and boxes.shape[::2] == (batch, 4), f"erase must be [B, N, 4], got {boxes.shape}")

    y, x = np.mgrid[:height, :width].astype(np.float64)
    out = np.empty((batch, 3, height, width))
    for b, m in enumerate(matrices):
        with np.errstate(invalid="ignore", over="ignore"):
            x_src = m[0, 0] * x + m[0, 1] * y + m[0, 2]
            y_src = m[1, 0] * x + m[1, 1] * y + m[1, 2]
        rgb = sample(sources[index[b]], x_src, y_src, fill)
        for x0, y0, x1, y1 in boxes[b]:
            rgb[(x >= x0) & (x < x1) & (y >= y0) & (y < y1)] = fill
        out[b] = np.moveaxis(rgb @ colors[b, :, :3].T + colors[b, :, 3], -1, 0)
    if np.issubdtype(_dtype(dtype), np.integer):
        out = np.clip(np.rint(out), 0, 255)
    return out.astype(_dtype(dtype))


def _target(
    x: float, y: float, visible: float, size: tuple[int, int], sigma: float, encoding: str
) -> tuple[Array, float]:
    """The map [h, w] (float64) and weight of one joint."""
    height, width = size
    heatmap = np.zeros(size)
    if encoding not in ("msra", "unbiased", "udp"):
        raise ValueError(f"encoding must be one of 'msra', 'unbiased', 'udp', got {encoding!r}")
    if not (np.isfinite(x) and np.isfinite(y)):
        return heatmap, 0.0
    radius = int(3 * sigma)
    cx, cy = (x, y) if encoding == "unbiased" else (np.trunc(x + 0.5), np.trunc(y + 0.5))
    if cx - radius >= width or cy - radius >= height or cx + radius + 1 < 0 or cy + radius + 1 < 0:
        return heatmap, 0.0
    if not visible > 0.5:
        return heatmap, visible
    columns, rows = np.arange(width), np.arange(height)
    px, py = (cx, cy) if encoding == "msra" else (x, y)
    squared = (columns - px)[None, :] ** 2 + (rows - py)[:, None] ** 2
    heatmap = np.exp(-squared / (2 * sigma**2))
    if encoding != "unbiased":
        window = (np.abs(columns - cx) <= radius)[None, :] & (np.abs(rows - cy) <= radius)[:, None]
        heatmap = np.where(window, heatmap, 0.0)
    return heatmap, visible


def render_heatmaps(
    keypoints: ArrayLike,
    visible: ArrayLike,
    size: tuple[int, int],
    *,
    sigma: float = 1.0,
    encoding: str = "msra",
    dtype: Any = np.float32,
) -> tuple[Array, Array]:
    """See `fastpose.render_heatmaps`. Returns heatmaps [B, K, h, w] and weights [B, K]."""
    _check(0 < sigma < np.inf, f"sigma must be a positive number of map pixels, got {sigma}")
    points = _array(keypoints).astype(np.float32).astype(np.float64)
    flags = _array(visible).astype(np.float32)
    heatmaps = np.zeros((*flags.shape, *size))
    weights = np.zeros(flags.shape, np.float32)
    for b, k in np.ndindex(*flags.shape):
        x, y = points[b, k]
        heatmaps[b, k], weights[b, k] = _target(x, y, float(flags[b, k]), size, sigma, encoding)
    return heatmaps.astype(_dtype(dtype)), weights


def heatmap_mse_loss(
    pred: ArrayLike,
    keypoints: ArrayLike,
    visible: ArrayLike,
    *,
    sigma: float = 1.0,
    encoding: str = "msra",
    missing: str = "zeros",
    joint_weights: ArrayLike | None = None,
    hard_joints: int | None = None,
) -> float:
    """See `fastpose.heatmap_mse_loss`. 0.5 · mean over B·K·h·w of weight · (pred − target)², K being each sample's
    `hard_joints` joints of the largest loss."""
    maps = _array(pred).astype(np.float64)
    joints = maps.shape[1]
    count = joints if hard_joints is None else operator.index(hard_joints)
    if hard_joints is not None:
        _check(1 <= count <= joints, f"hard_joints must be from 1 to the {joints} joints of pred, got {count}")
    if maps.size == 0:
        return 0.0
    size = (maps.shape[2], maps.shape[3])
    target, weights = render_heatmaps(keypoints, visible, size, sigma=sigma, encoding=encoding, dtype=np.float64)
    if missing not in ("zeros", "ignore"):
        raise ValueError(f"missing must be 'zeros' or 'ignore', got {missing!r}")
    weight = weights.astype(np.float64) if missing == "ignore" else np.ones(weights.shape)
    if joint_weights is not None:
        weight = weight * _array(joint_weights).astype(np.float64)
    losses = 0.5 * np.mean(weight[:, :, None, None] * (maps - target) ** 2, axis=(2, 3))
    # NaN before all numbers, then from the largest on; of equal ones the first.
    order = np.lexsort((-losses, ~np.isnan(losses)))[:, :count]
    return float(np.take_along_axis(losses, order, axis=1).mean())


def _un_mirror(maps: Array, flip_pairs: Sequence[Sequence[int]], shift: bool) -> Array:
    """Maps of the mirrored image as maps of the image: columns reversed, left and right joints swapped."""
    order = mirror_order(flip_pairs, maps.shape[1])
    maps = maps[:, order, :, ::-1].copy()
    if shift:
        maps[..., 1:] = maps[..., :-1].copy()
    return maps


def gaussian_kernel(side: int, sigma: float | None = None) -> Array:
    """`cv2.getGaussianKernel(side, sigma or 0)`: without a sigma fixed weights up to 9 pixels, else samples."""
    fixed = {1: [1], 3: [1, 2, 1], 5: [1, 4, 6, 4, 1], 7: [8, 28, 56, 72, 56, 28, 8]}
    fixed[9] = [4, 13, 30, 51, 60, 51, 30, 13, 4]
    distance = np.arange(side) - side // 2
    if sigma is None and side in fixed:
        weights = np.array(fixed[side], float)
    else:
        sigma = 0.3 * ((side - 1) * 0.5 - 1) + 0.8 if sigma is None else sigma
        weights = np.exp(-(distance**2) / (2 * sigma**2))
    return weights / weights.sum()


def _blurred_logarithms(heatmap: Array, x: int, y: int, reach: int, floor: float, weights: Array) -> Array:
    """[2 reach + 1, 2 reach + 1] about a maximum (x, y); beyond the map's edge those of its edge."""
    height, width = heatmap.shape
    side = len(weights)
    padded = np.pad(heatmap.astype(np.float64), side // 2)
    rows = np.clip(y + np.arange(-reach, reach + 1), 0, height - 1)
    columns = np.clip(x + np.arange(-reach, reach + 1), 0, width - 1)
    blurred = np.empty((len(rows), len(columns)))
    for i, j in np.ndindex(*blurred.shape):
        around = padded[rows[i] : rows[i] + side, columns[j] : columns[j] + side]
        blurred[i, j] = weights @ around @ weights
    highest = np.fmax.reduce(blurred, axis=None)
    scaled = blurred * (heatmap[y, x] / highest if highest > 0 else 0.0)
    return np.log(np.maximum(scaled, floor))


def _newton_step(gradient: Array, hessian: Array) -> Array:
    """To where the gradient is zero; nowhere if the Hessian is singular to rounding."""
    determinant = hessian[0, 0] * hessian[1, 1] - hessian[0, 1] * hessian[1, 0]
    if not abs(determinant) > 1e-12 * (hessian**2).sum() + 1e-20:
        return np.zeros(2)
    adjugate = np.array([[hessian[1, 1], -hessian[0, 1]], [-hessian[1, 0], hessian[0, 0]]])
    step = -adjugate @ gradient / determinant
    return step if np.isfinite(step).all() else np.zeros(2)


def _dark_offset(heatmap: Array, x: int, y: int, weights: Array) -> Array:
    height, width = heatmap.shape
    if not (1 < x < width - 2 and 1 < y < height - 2):
        return np.zeros(2)
    f = _blurred_logarithms(heatmap, x, y, 2, 1e-10, weights)
    gradient = 0.5 * np.array([f[2, 3] - f[2, 1], f[3, 2] - f[1, 2]])
    xx = 0.25 * (f[2, 4] - 2 * f[2, 2] + f[2, 0])
    yy = 0.25 * (f[4, 2] - 2 * f[2, 2] + f[0, 2])
    xy = 0.25 * (f[3, 3] - f[1, 3] - f[3, 1] + f[1, 1])
    return _newton_step(gradient, np.array([[xx, xy], [xy, yy]]))


def _dark_udp_offset(heatmap: Array, x: int, y: int, weights: Array) -> Array:
    f = _blurred_logarithms(heatmap, x, y, 1, 1e-3, weights)
    gradient = 0.5 * np.array([f[1, 2] - f[1, 0], f[2, 1] - f[0, 1]])
    xx = f[1, 2] - 2 * f[1, 1] + f[1, 0]
    yy = f[2, 1] - 2 * f[1, 1] + f[0, 1]
    xy = 0.5 * (f[2, 2] - f[1, 2] - f[2, 1] + 2 * f[1, 1] - f[1, 0] - f[0, 1] + f[0, 0])
    return _newton_step(gradient, np.array([[xx, xy], [xy, yy]]) + np.finfo(np.float32).eps * np.eye(2))


def _offset(heatmap: Array, x: int, y: int, refine: str, weights: Array) -> Array:
    """(x, y) from the pixel of a maximum to the point."""
    height, width = heatmap.shape
    if refine == "quarter" and 1 < x < width - 1 and 1 < y < height - 1:
        difference = [heatmap[y, x + 1] - heatmap[y, x - 1], heatmap[y + 1, x] - heatmap[y - 1, x]]
        return 0.25 * np.nan_to_num(np.sign(difference))
    if refine == "dark":
        return _dark_offset(heatmap, x, y, weights)
    if refine == "dark_udp":
        return _dark_udp_offset(heatmap, x, y, weights)
    return np.zeros(2)


def decode_heatmaps(
    heatmaps: ArrayLike,
    *,
    refine: str = "quarter",
    heatmap_to_image: ArrayLike | None = None,
    flipped: ArrayLike | None = None,
    flip_pairs: Sequence[Sequence[int]] | None = None,
    flip_shift: bool = False,
    blur_kernel: int = 11,
    blur_sigma: float | None = None,
) -> tuple[Array, Array]:
    """See `fastpose.decode_heatmaps`. Returns keypoints [B, K, 2] and scores [B, K], float32."""
    if refine not in ("none", "quarter", "dark", "dark_udp"):
        raise ValueError(f"refine must be one of 'none', 'quarter', 'dark', 'dark_udp', got {refine!r}")
    _check(
        1 <= blur_kernel <= MAX_BLUR_KERNEL and blur_kernel % 2 == 1,
        f"blur_kernel must be an odd number of pixels from 1 to {MAX_BLUR_KERNEL}, got {blur_kernel}",
    )
    if blur_sigma is not None:
        _check(0.01 <= blur_sigma <= 1000, f"blur_sigma must be 0.01 to 1000 pixels, got {blur_sigma}")
    weights = gaussian_kernel(blur_kernel, blur_sigma)
    maps = _array(heatmaps)
    maps = maps.astype(np.promote_types(maps.dtype, np.float32))
    _check(flipped is not None or flip_pairs is None, "flipped must be passed with flip_pairs, got None")
    if flipped is not None:
        if flip_pairs is None:
            raise ValueError("flip_pairs must be passed with flipped: (left, right) joint pairs, got None")
        mirrored = _un_mirror(_array(flipped).astype(maps.dtype), flip_pairs, flip_shift)
        maps = (maps + mirrored) * maps.dtype.type(0.5)
    batch, joints = maps.shape[:2]
    keypoints, scores = np.zeros((batch, joints, 2)), np.full((batch, joints), np.nan)
    for b, k in np.ndindex(batch, joints):
        one = maps[b, k]
        if np.isnan(one).all():
            continue
        y, x = np.unravel_index(np.argmax(np.where(np.isnan(one), -np.inf, one)), one.shape)
        scores[b, k] = np.nanmax(one)
        if not scores[b, k] > 0:
            continue
        with np.errstate(invalid="ignore", over="ignore"):  # of infinities
            keypoints[b, k] = np.array([x, y]) + _offset(one, int(x), int(y), refine, weights)
    if heatmap_to_image is not None:
        keypoints = transform_points(keypoints, heatmap_to_image)
    return keypoints.astype(np.float32), scores.astype(np.float32)


def soft_argmax(
    heatmaps: ArrayLike, *, beta: float = 1.0, heatmap_to_image: ArrayLike | None = None
) -> tuple[Array, Array]:
    """See `fastpose.soft_argmax`. Returns keypoints [B, K, 2] and scores [B, K]."""
    given = _array(heatmaps)
    _check(given.ndim == 4 and 0 not in given.shape[2:], f"heatmaps must be [B, K, h, w], got {given.shape}")
    _check(0 < beta < np.inf, f"beta must be a positive number, got {beta}")
    logits = beta * given.astype(np.float64)
    weights = np.exp(logits - logits.max((2, 3), keepdims=True))
    probability = weights / weights.sum((2, 3), keepdims=True)
    y, x = np.mgrid[: given.shape[2], : given.shape[3]]
    keypoints = np.stack([(probability * x).sum((2, 3)), (probability * y).sum((2, 3))], -1)
    if heatmap_to_image is not None:
        keypoints = transform_points(keypoints, heatmap_to_image)
    dtype = np.float64 if given.dtype == np.float64 else np.float32
    return keypoints.astype(dtype), probability.max((2, 3)).astype(dtype)


def transform_points(points: ArrayLike, matrix: ArrayLike, *, inverse: bool = False) -> Array:
    """See `fastpose.transform_points`. Points [B, K, 2] through matrices [B, 2, 3]."""
    given = _array(points)
    m = _array(matrix).astype(np.float64)
    x = given.astype(np.float64)
    if inverse:
        determinant = m[:, 0, 0] * m[:, 1, 1] - m[:, 0, 1] * m[:, 1, 0]
        bad = ~np.isfinite(m).all((1, 2)) | ~np.isfinite(determinant) | (determinant == 0)
        if bad.any():
            raise ValueError(f"matrix[{int(np.argmax(bad))}] must be invertible, got {m[np.argmax(bad)].tolist()}")
        out = np.einsum("bij,bkj->bki", np.linalg.inv(m[:, :, :2]), x - m[:, None, :, 2])
    else:
        out = np.einsum("bij,bkj->bki", m[:, :, :2], x) + m[:, None, :, 2]
    return out.astype(np.float64 if given.dtype == np.float64 else np.float32)


def mirror_order(pairs: Sequence[Sequence[int]], joints: int, name: str = "flip_pairs") -> list[int]:
    """The joint that each row becomes in the mirrored person: pairs swapped, the others themselves.

    Raises:
        ValueError: `name` is not a sequence of disjoint pairs of joints in [0, joints).
    """
    wanted = f"{name} must be disjoint (left, right) pairs of joints in [0, {joints}), got {pairs!r}"
    try:
        swaps = [(operator.index(left), operator.index(right)) for left, right in pairs]
    except (TypeError, ValueError):
        raise ValueError(wanted) from None
    named = [joint for swap in swaps for joint in swap]
    _check(len(set(named)) == len(named) and all(0 <= joint < joints for joint in named), wanted)
    order = list(range(joints))
    for left, right in swaps:
        order[left], order[right] = right, left
    return order


def swap_pairs(
    points: ArrayLike, visible: ArrayLike, flip: ArrayLike, pairs: Sequence[Sequence[int]]
) -> tuple[Array, Array]:
    """See `fastpose.swap_pairs`. Left and right rows of the flipped samples change places."""
    xy, flags = _array(points).astype(np.float32), _array(visible).astype(np.float32)
    flips = _array(flip).astype(bool)
    order = mirror_order(pairs, xy.shape[1], "pairs")
    return np.where(flips[:, None, None], xy[:, order], xy), np.where(flips[:, None], flags[:, order], flags)


def crop_to_image_matrix(
    center: ArrayLike,
    scale: ArrayLike,
    rotation: ArrayLike,
    size: tuple[int, int],
    *,
    flip: ArrayLike | None = None,
    udp: bool = False,
) -> Array:
    """See `fastpose.crop_to_image_matrix`. Returns [B, 2, 3], float32."""
    centers = _array(center).astype(np.float64)
    boxes = _array(scale).astype(np.float64) * 200.0
    boxes = np.broadcast_to(boxes if boxes.ndim == 2 else boxes[..., None], (len(centers), 2))
    angles = np.deg2rad(np.broadcast_to(_array(rotation).astype(np.float64), len(centers)))
    flips = np.zeros(len(centers), bool) if flip is None else _array(flip).astype(bool)
    height, width = size
    _check(min(size) >= 1 + udp, f"size must be (h, w) of at least {1 + udp}, got {size}")
    out = np.empty((len(centers), 2, 3))
    for b, (c, box, angle) in enumerate(zip(centers, boxes, angles, strict=True)):
        if udp:
            step = np.diag([box[0] / (width - 1), box[1] / (height - 1)])
            crop_center = np.array([(width - 1) / 2, (height - 1) / 2])
        else:
            step = np.eye(2) * box[0] / width
            crop_center = np.array([width / 2, height / 2])
        linear = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ step
        if flips[b]:  # x_image -> 2 * center_x - x_image
            linear[0] *= -1
        out[b, :, :2] = linear
        out[b, :, 2] = c - linear @ crop_center
    return out.astype(np.float32)


def normalize_color(mean: Sequence[float], std: Sequence[float]) -> Array:
    """See `fastpose.normalize_color`. Returns [3, 4], float32: value -> (value / 255 - mean) / std."""
    m, s = np.asarray(mean, np.float64), np.asarray(std, np.float64)
    for name, values in (("mean", m), ("std", s)):
        _check(values.shape == (3,) and bool(np.isfinite(values).all()), f"{name} must be three numbers, got {values}")
    _check(bool((s > 0).all()), f"std must be positive, got {std!r}")
    return np.concatenate([np.diag(1 / (255 * s)), (-m / s)[:, None]], axis=1).astype(np.float32)


def jitter_color(
    color: ArrayLike,
    brightness: ArrayLike = 1.0,
    contrast: ArrayLike = 1.0,
    saturation: ArrayLike = 1.0,
    hue: ArrayLike = 0.0,
) -> Array:
    """See `fastpose.jitter_color`. Returns [B, 3, 4], or [3, 4] where all factors are numbers, float32."""
    base = _array(color).astype(np.float64)
    _check(base.shape == (3, 4), f"color must be [3, 4], got {list(base.shape)}")
    factors = np.broadcast_arrays(*(_array(f).astype(np.float64) for f in (brightness, contrast, saturation, hue)))
    axis = np.ones(3) / np.sqrt(3)  # of the greys
    across = np.cross(np.eye(3), axis)  # across @ x is the cross product of the axis and x
    out = np.empty((*factors[0].shape, 3, 4))
    for n in np.ndindex(factors[0].shape):
        b, c, s, turns = (factor[n] for factor in factors)
        saturate = s * np.eye(3) + (1 - s) * np.outer(np.ones(3), LUMA)
        angle = 2 * np.pi * turns
        turn = np.eye(3) + np.sin(angle) * across + (1 - np.cos(angle)) * across @ across  # Rodrigues
        linear, offset = turn @ saturate * c * b, turn @ saturate @ np.full(3, (1 - c) * MIDDLE_GREY)
        out[n] = np.concatenate([base[:, :3] @ linear, (base[:, :3] @ offset + base[:, 3])[:, None]], axis=1)
    return out.astype(np.float32)
