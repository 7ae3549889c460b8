# SPDX-License-Identifier: Apache-2.0
"""Small pictures of predictions for a run's page: JPEGs, drawn in milliseconds."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from fastpose.engine.pictures import LEFT, RIGHT, side_colors
from fastpose.engine.predicted import Predicted
from fastpose.engine.results import person_crop
from fastpose.skeletons import Skeleton

SIDE = 240  # pixels of the longer side
PREDICTION, TRUTH = (31, 111, 255), (255, 210, 31)
_SHIFT = 4  # OpenCV takes points in sixteenths of a pixel


def thumbnail(predicted: Predicted, row: int) -> tuple[bytes, int, int]:
    """A person's box with annotation and prediction, as a JPEG, its width and its height in pixels.

    Raises:
        OSError, ValueError: the image cannot be read.
    """
    center, scale = predicted.center[row], predicted.scale[row]
    wide, high = (scale / scale.max()).tolist()
    size = (max(1, round(SIDE * high)), max(1, round(SIDE * wide)))
    path = Path(predicted.images[predicted.image_index[row]])
    points = predicted.predictions[row], predicted.keypoints[row]
    crop, guess, truth = person_crop(path, predicted.reading, center, scale, size, *points)
    picture = np.ascontiguousarray(crop)
    every = np.ones(len(guess), bool)
    draw(picture, truth, predicted.compared[row], predicted.skeleton, TRUTH, thick=3)
    draw(picture, guess, every, predicted.skeleton, PREDICTION, thick=2)
    done, data = cv2.imencode(".jpg", picture[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 82])
    if not done:
        raise ValueError(f"{path}: could not be drawn")
    return data.tobytes(), size[1], size[0]


def draw(
    picture: np.ndarray,
    points: np.ndarray,
    shown: np.ndarray,
    skeleton: Skeleton,
    color: tuple[int, int, int],
    *,
    thick: int,
) -> None:
    """Draws joints and limbs, [K, 2] in pixels, into uint8 [h, w, 3]: the person's left joints as circles, its right
    ones as squares, others as small dots. Joints that are not finite are not drawn."""
    far = 4.0 * max(picture.shape)  # OpenCV's points are whole numbers of 32 bits
    finite = np.isfinite(points).all(axis=1)
    shown = shown & finite
    places = np.round(np.clip(np.where(finite[:, None], points, 0), -far, far) * (1 << _SHIFT)).astype(int).tolist()
    for a, b in skeleton.limbs:
        if shown[a] and shown[b]:
            cv2.line(picture, places[a], places[b], color, thick, cv2.LINE_AA, _SHIFT)
    for joint, side in enumerate(side_colors(skeleton)):
        if not shown[joint]:
            continue
        x, y = places[joint]
        if side == RIGHT:
            reach = (thick + 1) << _SHIFT
            for kind, inner in (((0, 0, 0), 16), (color, 0)):
                first, last = (x - reach - inner, y - reach - inner), (x + reach + inner, y + reach + inner)
                cv2.rectangle(picture, first, last, kind, cv2.FILLED, cv2.LINE_AA, _SHIFT)
            continue
        radius = (thick + 2 if side == LEFT else thick) << _SHIFT
        cv2.circle(picture, (x, y), radius + 16, (0, 0, 0), cv2.FILLED, cv2.LINE_AA, _SHIFT)
        cv2.circle(picture, (x, y), radius, color, cv2.FILLED, cv2.LINE_AA, _SHIFT)
