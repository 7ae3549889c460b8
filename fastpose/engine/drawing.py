# SPDX-License-Identifier: Apache-2.0
"""Poses drawn into pictures of their own size, by OpenCV: a millisecond each, where a figure takes a hundred."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from fastpose.engine.pictures import GROUND_TRUTH, MIDDLE, side_colors
from fastpose.skeletons import Skeleton

LEAST_SCORE = 0.2  # of a joint that counts as found
FOUND_MIDDLE = "#f4f4f4"  # joints of neither side: yellow is for annotations
_SHIFT = 4  # OpenCV's fixed point: places in 1/16 of a pixel
_FARTHEST = 30_000.0  # pixels; OpenCV's numbers end soon behind
_OPACITIES = (0.4, 0.6, 0.8, 1.0)
_OUTLINE = (0, 0, 0)


def draw_poses(
    picture: NDArray[np.uint8],
    poses: NDArray[np.floating],
    skeleton: Skeleton,
    *,
    scores: NDArray[np.floating] | None = None,
    least_score: float = LEAST_SCORE,
    truth: NDArray[np.floating] | None = None,
    annotated: NDArray[np.bool_] | None = None,
    labels: Sequence[str] = (),
) -> NDArray[np.uint8]:
    """A copy of a picture with poses in it: the person's right side blue, the left one pink, the middle white.

    The lower a joint's score, the more of the picture is seen through it; the larger a person, the wider its lines. All
    have a black edge, to be seen on any background. A joint that was not found is not drawn: its score is below
    `least_score`, 0 or less, or NaN, or its place is not a number.

    Args:
        picture: uint8 RGB [H, W, 3].
        poses: [P, K, 2], (x, y) in pixels of the picture.
        skeleton: the K joints.
        scores: [P, K]; None: all joints count as found, for certain.
        least_score: of a joint that is drawn.
        truth: [N, K, 2], annotated poses, drawn in yellow below the others.
        annotated: bool [N, K], which joints of `truth` there are; None: all.
        labels: of the P poses, written beside the top of each.
    """
    drawn = np.array(picture, order="C")
    if truth is not None:
        colors = [_bytes_of(GROUND_TRUTH)] * skeleton.num_joints
        for number, joints in enumerate(truth):
            shown = np.isfinite(joints).all(1) if annotated is None else annotated[number]
            _draw_pose(drawn, joints, np.where(shown, 1.0, np.nan), skeleton, colors, widen=1.6)
    colors = [_bytes_of(FOUND_MIDDLE if color == MIDDLE else color) for color in side_colors(skeleton)]
    for number, joints in enumerate(poses):
        values = np.ones(len(joints)) if scores is None else np.asarray(scores[number], np.float64)
        values = np.where(is_found(values, least_score), values, np.nan)
        _draw_pose(drawn, joints, values, skeleton, colors)
        if len(labels) > number:
            _draw_label(drawn, joints[np.isfinite(values)], labels[number])
    return drawn


def is_found(scores: NDArray[np.floating], least_score: float = LEAST_SCORE) -> NDArray[np.bool_]:
    """Which joints the network found: those with a score above 0, not below `least_score`. NaN is no score."""
    return (scores > 0) & (scores >= least_score)


def _draw_pose(
    drawn: NDArray[np.uint8],
    joints: NDArray[np.floating],
    scores: NDArray[np.floating],
    skeleton: Skeleton,
    colors: Sequence[tuple[int, int, int]],
    widen: float = 1.0,
) -> None:
    """Draws the joints whose score is a number. `widen`: factor on the width that follows from the pose's size."""
    joints = np.asarray(joints, np.float64)
    shown = np.isfinite(scores) & (np.abs(np.where(np.isfinite(joints), joints, np.inf)) < _FARTHEST).all(1)
    if not shown.any():
        return
    low, high = joints[shown].min(0), joints[shown].max(0)
    width = _width(float((high - low).max()), drawn.shape[:2]) * widen
    margin = 2 * width + 3
    left, top = np.floor(np.maximum(low - margin, 0)).astype(int)
    right, bottom = np.ceil(np.minimum(high + margin + 1, drawn.shape[1::-1])).astype(int)
    if left >= right or top >= bottom:
        return
    part = drawn[top:bottom, left:right]
    places = np.where(shown[:, None], (joints - (left, top)) * (1 << _SHIFT), 0.0).round().astype(np.int64)
    level = np.searchsorted(_OPACITIES, np.where(shown, np.clip(scores, 0.0, 1.0), 0.0)).clip(0, len(_OPACITIES) - 1)
    middle = _bytes_of(FOUND_MIDDLE)
    limbs = [(a, b) for a, b in skeleton.limbs if shown[a] and shown[b]]
    thick, edge = max(1, round(width)), max(1, round(width / 3))
    for number, opacity in enumerate(_OPACITIES):
        # A limb is as certain as the less certain of its joints.
        lines = [(a, b) for a, b in limbs if min(level[a], level[b]) == number]
        dots = np.flatnonzero(shown & (level == number)).tolist()
        if not lines and not dots:
            continue
        over = part if opacity == 1.0 else part.copy()
        for a, b in lines:
            _line(over, places[a], places[b], _OUTLINE, thick + 2 * edge)
        for a, b in lines:
            sides = {colors[a], colors[b]} - {middle}
            _line(over, places[a], places[b], sides.pop() if len(sides) == 1 else middle, thick)
        for joint in dots:
            _dot(over, places[joint], _OUTLINE, width * 0.9 + edge)
            _dot(over, places[joint], colors[joint], width * 0.9)
        if over is not part:
            cv2.addWeighted(over, opacity, part, 1 - opacity, 0.0, dst=over)
            part[...] = over


def _width(extent: float, size: tuple[int, int]) -> float:
    """Of the lines of a pose that is `extent` pixels long, in a picture of `size` (h, w): never so thin that a viewer
    that shows the whole picture loses them."""
    return max(extent / 90, max(size) / 700, 1.0)


def _line(
    over: NDArray[np.uint8], a: NDArray[np.int64], b: NDArray[np.int64], color: tuple[int, int, int], width: int
) -> None:
    cv2.line(over, a.tolist(), b.tolist(), color, width, cv2.LINE_AA, _SHIFT)


def _dot(over: NDArray[np.uint8], place: NDArray[np.int64], color: tuple[int, int, int], radius: float) -> None:
    cv2.circle(over, place.tolist(), round(radius * (1 << _SHIFT)), color, cv2.FILLED, cv2.LINE_AA, _SHIFT)


def _draw_label(drawn: NDArray[np.uint8], joints: NDArray[np.floating], label: str) -> None:
    joints = joints[np.isfinite(joints).all(1)]
    if not len(joints):
        return
    height, width = drawn.shape[:2]
    scale = max(max(height, width) / 1600, 0.4)
    thick, gap = max(1, round(2 * scale)), max(2, round(6 * scale))
    (wide, high), below = cv2.getTextSize(label, cv2.FONT_HERSHEY_SIMPLEX, scale, thick)
    x = int(np.clip(joints[:, 0].mean() - wide / 2, gap, max(width - wide - gap, gap)))
    y = int(np.clip(joints[:, 1].min() - 2 * gap - below, high + gap, max(height - below - gap, high + gap)))
    cv2.rectangle(drawn, (x - gap, y - high - gap), (x + wide + gap, y + below + gap), _OUTLINE, cv2.FILLED)
    cv2.putText(drawn, label, (x, y), cv2.FONT_HERSHEY_SIMPLEX, scale, (255, 255, 255), thick, cv2.LINE_AA)


def _bytes_of(color: str) -> tuple[int, int, int]:
    """#ff3d9a -> (255, 61, 154)"""
    red, green, blue = bytes.fromhex(color.removeprefix("#"))
    return red, green, blue
