# SPDX-License-Identifier: Apache-2.0
"""Persons' boxes as crops: from annotated boxes, to half bodies, and how fine the pixels of a crop must be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fastpose.data.images import REDUCTIONS
from fastpose.data.persons import Persons
from fastpose.option import OptionError

PADDING = 1.25  # how much larger than a person's box its crop is (SimpleBaselines)
HALF_BODY_JOINTS = 8  # a person with more visible joints than this may be cropped to half of the body (HRNet)
HALF_BODY_PADDING = 1.5  # its box, in extents of the half's joints (HRNet)


def crop_boxes(
    boxes: NDArray[np.floating], aspect: float, padding: float | NDArray[np.floating] = PADDING
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """The crops of annotated or detected boxes: each grows about its middle to the aspect ratio, then by the padding.

    Args:
        boxes: [N, 4], x, y, width and height in image pixels.
        aspect: width / height of the network's input.
        padding: how much larger the crop is, factor; or one for each box, [N].

    Returns:
        centres [N, 2] in image pixels and scales [N, 2]; scale times 200 px is the crop's (w, h).

    Source: SimpleBaselines' ``_box2cs``.
    """
    width = np.maximum(boxes[:, 2], boxes[:, 3] * aspect) * padding
    return boxes[:, :2] + boxes[:, 2:] / 2, np.stack([width, width / aspect], axis=1) / 200


def inside(box: Sequence[float], width: float, height: float) -> list[float]:
    """The part of a box x, y, w, h that is in an image of this size; of no width or height if there is none.

    SimpleBaselines' reader of COCO moves a box that begins outside, with the size that it had.
    """
    x, y, w, h = box
    left, top = max(x, 0.0), max(y, 0.0)
    return [left, top, max(min(x + w, width) - left, 0.0), max(min(y + h, height) - top, 0.0)]


def mpii_box(objpos: np.ndarray, scale: float) -> tuple[np.ndarray, float]:
    """MPII's 1-based position and scale to the 0-based centre and scale of the crop.

    As SimpleBaselines (after Newell's Hourglass): the box moves down by 15 * scale px and grows by 1.25, so that it
    does not cut the feet; x = -1 marks an unknown position and is left alone.
    """
    center = np.asarray(objpos, dtype=np.float64).copy()
    if center[0] != -1:
        center[1] += 15 * scale
        scale *= 1.25
    return center - 1, scale


def body_boxes(persons: Persons, size: tuple[int, int], *, half_body: bool) -> NDArray[np.float32]:
    """The boxes that a person may be cropped to: its own, and with `half_body` those of its lower and its upper body.

    A half-body box is HRNet's (`half_body_transform`): centred on the mean of the half's visible joints, 1.5 times
    their extent, then wider or higher for the crop's aspect ratio. A half of two visible joints or fewer is replaced
    by the other. The person's own box replaces both if 8 joints or fewer are visible, and one whose joints are all in
    one place.

    Args:
        persons: N persons. A joint of the skeleton that is not in `upper_body` is of the lower body.
        size: (h, w) of the crops in pixels. A box's height follows from its width and this.
        half_body: whether the half-body boxes are wanted.

    Returns:
        [N, 1, 4], with half_body [N, 3, 4] (own, lower, upper): centre (x, y) in image pixels, scale (w, h); scale
        times 200 px is the box.

    Raises:
        ValueError: half-body boxes of a skeleton whose `upper_body` is empty, or that has 8 joints or fewer.
    """
    aspect = size[1] / size[0]
    own = np.concatenate([persons.center, persons.scale[:, :1], persons.scale[:, :1] / aspect], axis=1)[:, None]
    if not half_body:
        return own.astype(np.float32)
    skeleton = persons.skeleton
    if not skeleton.upper_body:
        raise OptionError("half_body", f"skeleton {skeleton.name!r} does not say which joints are its upper_body")
    if skeleton.num_joints <= HALF_BODY_JOINTS:
        raise OptionError(
            "half_body",
            f"it is for persons with more than {HALF_BODY_JOINTS} visible joints, and skeleton {skeleton.name!r} has "
            f"{skeleton.num_joints}",
        )
    is_upper = np.isin(np.arange(skeleton.num_joints), skeleton.upper_body)
    seen = persons.visible > 0
    halves = seen[:, None] & np.stack([~is_upper, is_upper])  # [N, 2, K]
    halves = np.where(halves.sum(axis=2, keepdims=True) > 2, halves, halves[:, ::-1])[..., None]
    points = persons.keypoints[:, None].astype(np.float64)
    low, high = np.where(halves, points, np.inf).min(axis=2), np.where(halves, points, -np.inf).max(axis=2)
    usable = (seen.sum(axis=1) > HALF_BODY_JOINTS)[:, None] & (high > low).any(axis=2)  # [N, 2]
    with np.errstate(invalid="ignore"):  # halves without joints, which are not usable
        center = (halves * points).sum(axis=2) / halves.sum(axis=2)
        extent = high - low
    width = np.maximum(extent[..., 0], extent[..., 1] * aspect) * HALF_BODY_PADDING / 200
    half = np.concatenate([center, width[..., None], width[..., None] / aspect], axis=2)
    return np.concatenate([own, np.where(usable[..., None], half, own)], axis=1).astype(np.float32)


def reductions(
    persons: Persons, size: tuple[int, int], smallest_scale: float, *, half_body: bool = False
) -> NDArray[np.int64]:
    """By how much each image may be reduced, int64 [M] of 1, 2, 4 or 8, so that no crop has to enlarge it for that.

    The finest that any of its persons may need, at the smallest box that the augmentation can draw: a bound that the
    host knows without knowing the draws, and that makes a person's crop the same whoever else is in the batch.

    Args:
        persons: N persons on M images.
        size: (h, w) of the crops in pixels.
        smallest_scale: smallest factor on the persons' boxes.
        half_body: whether crops of half a body may be drawn too, see `body_boxes`.
    """
    finest = np.full(len(persons.image_paths), np.inf)
    smallest = body_boxes(persons, size, half_body=half_body)[..., 2:].min(axis=1)
    np.minimum.at(finest, persons.image_index, pixel_step(smallest, size) * smallest_scale)
    return largest_reduction(finest)


def pixel_step(scale: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float64]:
    """Image pixels from one pixel of a crop to the next, float64 [N], for boxes of `scale` [N, 2]. Only the
    width matters, as in crop_to_image_matrix; with udp the step is larger by the factor width / (width - 1)."""
    return 200.0 * scale[:, 0].astype(np.float64) / size[1]


def largest_reduction(step: NDArray[np.float64]) -> NDArray[np.int64]:
    """The largest of REDUCTIONS that is not above `step`, at least 1."""
    return np.array(REDUCTIONS)[np.searchsorted(REDUCTIONS, step, side="right").clip(1) - 1]
