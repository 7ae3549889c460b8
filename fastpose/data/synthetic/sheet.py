# SPDX-License-Identifier: Apache-2.0
"""A contact sheet of a synthetic data set: what its persons look like and where their joints are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fastpose.data.synthetic.figure import Colour

_COLUMNS, _ROWS = 6, 2
_TILE, _GAP = 220, 6  # px
_MARGIN = 1.12  # of the box a reader makes of scale: 200 px * scale * 1.25
_RIGHT, _LEFT, _MIDDLE = (70.0, 150.0, 255.0), (255.0, 120.0, 60.0), (250.0, 230.0, 60.0)
_LIMBS: tuple[tuple[int, int, Colour], ...] = (
    (0, 1, _RIGHT), (1, 2, _RIGHT), (2, 6, _RIGHT), (10, 11, _RIGHT), (11, 12, _RIGHT), (12, 7, _RIGHT),
    (3, 4, _LEFT), (4, 5, _LEFT), (3, 6, _LEFT), (13, 14, _LEFT), (14, 15, _LEFT), (13, 7, _LEFT),
    (6, 7, _MIDDLE), (7, 8, _MIDDLE), (8, 9, _MIDDLE),
)  # fmt: skip


def _tile(row: dict[str, Any], images: Path, with_skeleton: bool) -> np.ndarray:
    """One person, uint8 RGB [_TILE, _TILE, 3]; with the skeleton right is blue, left orange, the middle yellow."""
    picture = cv2.imread(str(images / row["image"]), cv2.IMREAD_COLOR)
    if picture is None:
        raise FileNotFoundError(f"{images / row['image']}: missing or unreadable")
    side = 200 * 1.25 * row["scale"] * _MARGIN
    zoom = _TILE / side
    corner = np.array(row["center"]) - 1 + [0, 15 * row["scale"]] - side / 2
    matrix = np.array([[zoom, 0, -zoom * corner[0]], [0, zoom, -zoom * corner[1]]])
    smooth = cv2.GaussianBlur(picture, (0, 0), max(0.3, 0.45 / zoom))  # the warp alone would alias
    tile = cv2.cvtColor(cv2.warpAffine(smooth, matrix, (_TILE, _TILE), borderValue=(60, 60, 60)), cv2.COLOR_BGR2RGB)
    if not with_skeleton:
        return tile
    points = np.round((np.array(row["joints"]) - 1 - corner) * zoom * 16).astype(int)
    for first, second, colour in _LIMBS:
        if row["joints_vis"][first] and row["joints_vis"][second]:
            cv2.line(tile, points[first].tolist(), points[second].tolist(), (20, 20, 20), 4, cv2.LINE_AA, 4)
            cv2.line(tile, points[first].tolist(), points[second].tolist(), colour, 2, cv2.LINE_AA, 4)
    for point, annotated in zip(points, row["joints_vis"], strict=True):
        if annotated:
            cv2.circle(tile, point.tolist(), 3 * 16, (255, 255, 255), -1, cv2.LINE_AA, 4)
    return tile


def write_contact_sheet(data: Path, path: Path) -> None:
    """Draw training persons of the data set ``data`` into the PNG ``path``, every third with its skeleton."""
    rows = json.loads((data / "annot" / "train.json").read_text(encoding="utf-8"))
    count = _COLUMNS * _ROWS
    chosen = [rows[i * len(rows) // count] for i in range(count)]
    tiles = [_tile(row, data / "images", index % 3 == 1) for index, row in enumerate(chosen)]
    framed = [np.pad(tile, ((_GAP, 0), (_GAP, 0), (0, 0)), constant_values=255) for tile in tiles]
    sheet = np.vstack([np.hstack(framed[r * _COLUMNS : (r + 1) * _COLUMNS]) for r in range(_ROWS)])
    sheet = np.pad(sheet, ((0, _GAP), (0, _GAP), (0, 0)), constant_values=255)
    sheet = (sheet & 0xF8) | (sheet >> 5)  # five bits a channel are enough to look at, and halve the file
    path.parent.mkdir(parents=True, exist_ok=True)
    written, data_bytes = cv2.imencode(".png", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 9])
    if not written:
        raise RuntimeError(f"{path}: OpenCV could not encode the picture as PNG")
    path.write_bytes(data_bytes.tobytes())
