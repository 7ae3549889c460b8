# SPDX-License-Identifier: Apache-2.0
"""Cluttered but calm backgrounds, things in front of figures, and the look of a camera."""

from __future__ import annotations

import cv2
import numpy as np

from fastpose.data.synthetic.figure import Colour, fill_hull, fill_polygon, hsv, shade


def _fill_rectangle(canvas: np.ndarray, x: float, y: float, w: float, h: float, colour: Colour) -> None:
    fill_polygon(canvas, np.array([[x, y], [x + w, y], [x + w, y + h], [x, y + h]]), colour)


def smooth_noise(rng: np.random.Generator, height: int, width: int, cell: float) -> np.ndarray:
    """[height, width] float32 noise of about unit size that varies over ``cell`` pixels."""
    rows, columns = max(2, round(height / cell)), max(2, round(width / cell))
    coarse = rng.standard_normal((rows, columns), dtype=np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def _calm_colour(rng: np.random.Generator) -> Colour:
    return hsv(rng.random(), rng.uniform(0.03, 0.36), rng.uniform(0.30, 0.92))


def _surfaces(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, int]:
    """A wall or sky above a floor, each a gradient: float32 [height, width, 3], and the row where they meet."""
    horizon = int(height * rng.uniform(0.35, 0.85))
    picture = np.empty((height, width, 3), dtype=np.float32)
    for top, bottom in ((0, horizon), (horizon, height)):
        first, tint = np.array(_calm_colour(rng)), rng.uniform(0.72, 1.25)
        ramp = np.linspace(0, 1, bottom - top, dtype=np.float32)[:, None]
        picture[top:bottom] = (first * (1 - ramp) + first * tint * ramp)[:, None]
    side = np.linspace(-1, 1, width, dtype=np.float32)[None, :, None] * rng.uniform(-0.15, 0.15)
    texture = smooth_noise(rng, height, width, rng.uniform(25, 65)) * rng.uniform(3, 11)
    texture += smooth_noise(rng, height, width, rng.uniform(2.5, 7)) * rng.uniform(1, 5)
    return picture * (1 + side) + texture[..., None], horizon


def _box(canvas: np.ndarray, rng: np.random.Generator, floor: int) -> None:
    """A crate or a cupboard: a front face, a side face and perhaps boards."""
    height, width = canvas.shape[:2]
    w, h = rng.uniform(0.08, 0.32) * width, rng.uniform(0.10, 0.45) * height
    x, y = rng.uniform(-0.1, 1.0) * width, floor + rng.uniform(-0.05, 0.3) * height - h
    depth = rng.uniform(-0.3, 0.3) * w
    colour = _calm_colour(rng)
    edge = x + w if depth > 0 else x
    far, rise = edge + depth, abs(depth) * 0.5
    fill_polygon(canvas, np.array([[edge, y], [far, y - rise], [far, y + h - rise], [edge, y + h]]), shade(colour, 0.7))
    _fill_rectangle(canvas, x, y, w, h, colour)
    for row in np.linspace(y, y + h, int(rng.integers(1, 5)) + 1)[1:-1]:
        _fill_rectangle(canvas, x, row, w, 2, shade(colour, 0.75))


def _pole(canvas: np.ndarray, rng: np.random.Generator, floor: int) -> None:
    """A post, a pipe or a leaning plank, sometimes as thick as a limb and of the colour of skin or cloth."""
    height, width = canvas.shape[:2]
    x, lean = rng.uniform(0, width), rng.normal(0, 0.15) * height
    foot = floor + rng.uniform(0, 0.3) * height
    top = rng.uniform(-0.1, 0.5) * height
    radius = rng.uniform(0.006, 0.022) * height
    colour = hsv(rng.random(), rng.uniform(0.1, 0.6), rng.uniform(0.3, 0.9))
    line = np.array([[x, foot, radius], [x + lean, top, radius]])
    fill_hull(canvas, line, shade(colour, 0.7))
    fill_hull(canvas, line * [1, 1, 0.5] - [radius * 0.3, 0, 0], colour)


def _bush(canvas: np.ndarray, rng: np.random.Generator, floor: int) -> None:
    """Leaves, a crowd far away or a heap: a cloud of blobs of nearly one colour."""
    height, width = canvas.shape[:2]
    centre = np.array([rng.uniform(0, width), floor + rng.uniform(-0.15, 0.15) * height])
    spread = rng.uniform(0.04, 0.12) * height
    colour = _calm_colour(rng)
    for _ in range(int(rng.integers(6, 18))):
        x, y = centre + rng.normal(0, 1, 2) * spread
        blob = np.array([[x, y, rng.uniform(0.25, 0.6) * spread]])
        fill_hull(canvas, blob, shade(colour, rng.uniform(0.75, 1.2)))


def _window(canvas: np.ndarray, rng: np.random.Generator, floor: int) -> None:
    """A window or a poster on the wall: a frame and panes."""
    height, width = canvas.shape[:2]
    w, h = rng.uniform(0.10, 0.28) * width, rng.uniform(0.10, 0.30) * height
    x, y = rng.uniform(0, 0.9) * width, rng.uniform(0, max(0.05, floor / height - 0.2)) * height
    frame, pane = _calm_colour(rng), _calm_colour(rng)
    _fill_rectangle(canvas, x, y, w, h, frame)
    columns, rows = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    for column in range(columns):
        for row in range(rows):
            left, top = x + w * (column + 0.1) / columns, y + h * (row + 0.1) / rows
            _fill_rectangle(canvas, left, top, 0.8 * w / columns, 0.8 * h / rows, pane)


_CLUTTER = (_box, _pole, _bush, _window)


def draw_background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A uint8 RGB picture [height, width, 3] without figures, slightly out of focus."""
    # Nothing in the surfaces is finer than a few pixels: half the resolution takes a quarter of the time.
    surfaces, floor = _surfaces(rng, (height + 1) // 2, (width + 1) // 2)
    canvas, floor = cv2.resize(np.clip(surfaces, 0, 255).astype(np.uint8), (width, height)), 2 * floor
    for _ in range(int(rng.integers(2, 8))):
        _CLUTTER[rng.choice(len(_CLUTTER), p=(0.34, 0.26, 0.2, 0.2))](canvas, rng, floor)
    return cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.8, 2.0))


def draw_shadow(canvas: np.ndarray, feet: np.ndarray, height: float) -> None:
    """Darken the ground below the feet ([2, 2] pixels) of a figure that is ``height`` px tall."""
    shadow = canvas.copy()
    reach = np.array([[x, y + 0.02 * height, 0.05 * height] for x, y in feet])
    squeeze = reach * [1, 0.4, 1] + [0, 0.6 * reach[:, 1].max(), 0]
    fill_hull(shadow, squeeze, (35.0, 35.0, 40.0))
    cv2.addWeighted(shadow, 0.35, canvas, 0.65, 0, dst=canvas)


def draw_occluder(canvas: np.ndarray, rng: np.random.Generator, centre: tuple[float, float], height: float) -> None:
    """A post or a low box in front of a figure at ``centre`` and is ``height`` px tall."""
    colour = _calm_colour(rng)
    x, y = centre[0] + rng.uniform(-0.22, 0.22) * height, centre[1]
    if rng.random() < 0.5:
        radius = rng.uniform(0.012, 0.03) * height
        post = np.array([[x, y - rng.uniform(0.1, 0.7) * height, radius], [x, y + 0.6 * height, radius]])
        fill_hull(canvas, post, shade(colour, 0.7))
        fill_hull(canvas, post * [1, 1, 0.5], colour)
        return
    w, h = rng.uniform(0.10, 0.28) * height, rng.uniform(0.12, 0.3) * height
    y += rng.uniform(0.05, 0.4) * height
    _fill_rectangle(canvas, x - w, y, 2 * w, h, shade(colour, 0.7))
    _fill_rectangle(canvas, x - w + 2, y + 2, 2 * w - 4, h - 4, colour)


def photograph(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """Focus, exposure, tint and sensor noise of a camera: a new uint8 picture of the same shape."""
    height, width = canvas.shape[:2]
    sharp = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.35, 0.8))
    gain = rng.uniform(0.82, 1.15) * rng.uniform(0.94, 1.06, 3)
    curve = np.clip(np.arange(256)[:, None] * gain + rng.uniform(-12, 12), 0, 255).astype(np.uint8)
    noise = rng.standard_normal((height, width), dtype=np.float32) * np.float32(rng.uniform(1.0, 5.0))
    grain = cv2.cvtColor(np.round(noise), cv2.COLOR_GRAY2RGB)
    return cv2.add(cv2.LUT(sharp, curve[None]), grain, dtype=cv2.CV_8U)
