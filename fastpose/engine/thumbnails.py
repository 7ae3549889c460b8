# SPDX-License-Identifier: Apache-2.0
"""Small pictures of predictions for a run's page: JPEGs, drawn in milliseconds."""

from __future__ import annotations

from pathlib import Path

import cv2

from fastpose.engine.drawing import draw_poses
from fastpose.engine.predicted import Predicted
from fastpose.engine.results import person_crop

SIDE = 240  # pixels of the longer side


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
    compared = predicted.compared[row].astype(bool)
    picture = draw_poses(crop, guess[None], predicted.skeleton, truth=truth[None], annotated=compared[None])
    done, data = cv2.imencode(".jpg", picture[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 82])
    if not done:
        raise ValueError(f"{path}: could not be drawn")
    return data.tobytes(), size[1], size[0]
