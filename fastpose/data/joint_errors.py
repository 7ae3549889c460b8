# SPDX-License-Identifier: Apache-2.0
"""What PCKh and PCK share: checked arrays, how far predicted joints are off, and the share that is right."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def joint_errors(
    predictions: np.ndarray, keypoints: np.ndarray, visible: np.ndarray, joints: int | str = "K"
) -> tuple[np.ndarray, np.ndarray]:
    """How far each predicted joint of N persons is from the annotated one.

    Args:
        predictions: [N, K, 2] px, finite, in the coordinates of ``keypoints``.
        keypoints: [N, K, 2] px, finite where visible.
        visible: [N, K], annotated where > 0.
        joints: K, if only one number will do.

    Returns:
        The distances, float64 [N, K] in px, 0 where the joint is not annotated; and where it is, bool [N, K].

    Raises:
        ValueError: an argument has another shape, or a value that is not finite; names its person.
    """
    predictions = numbers("predictions", predictions, ("N", joints, 2))
    count, joints, _ = predictions.shape
    keypoints = numbers("keypoints", keypoints, (count, joints, 2))
    annotated = numbers("visible", visible, (count, joints)) > 0
    check_persons("predictions", np.isfinite(predictions), "finite")
    check_persons("keypoints", np.isfinite(keypoints) | ~annotated[..., None], "finite where visible")
    offsets = np.where(annotated[..., None], predictions - keypoints, 0)
    return np.hypot(offsets[..., 0], offsets[..., 1]), annotated


def numbers(name: str, values: np.ndarray, shape: tuple[int | str, ...]) -> np.ndarray:
    """The values as float64; ValueError unless they are numbers of `shape`, in which a letter is any length."""
    array = np.asarray(values)
    fits = array.ndim == len(shape) and all(
        isinstance(want, str) or want == got for want, got in zip(shape, array.shape, strict=True)
    )
    if array.dtype.kind not in "iufb" or not fits:
        expected = ", ".join(map(str, shape))
        raise ValueError(
            f"{name} must be numbers of shape [{expected}], got {array.dtype} of shape {list(array.shape)}"
        )
    return array.astype(np.float64)


def check_persons(name: str, good: np.ndarray, expected: str) -> None:
    """Raises ValueError, naming the first person (row) that is not good all over."""
    per_person = good.all(axis=tuple(range(1, good.ndim)))
    if not per_person.all():
        raise ValueError(f"{name} must be {expected}, they are not for person {int(np.argmin(per_person))}")


def percent(right: np.ndarray, counted: np.ndarray) -> list[float]:
    """Of each joint, how many percent of the persons that count have it right: bool [N, K] both; NaN where none."""
    rights, counts = (right & counted).sum(axis=0), counted.sum(axis=0)
    return [100.0 * int(r) / int(n) if n else math.nan for r, n in zip(rights, counts, strict=True)]


def known_mean(values: Sequence[float]) -> float:
    """The mean of those that are not NaN; NaN where all are."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
