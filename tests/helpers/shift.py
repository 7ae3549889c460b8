# SPDX-License-Identifier: Apache-2.0
"""How far one picture is shifted against another."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def shift_between(picture: NDArray[np.generic], other: NDArray[np.generic]) -> NDArray[np.float64]:
    """(x, y) by which `picture` [H, W, 3] is shifted against `other`, pixels: least squares, good for small shifts."""
    first, second = (np.asarray(p, np.float64).mean(axis=2) for p in (picture, other))
    slopes = np.stack([np.gradient(second, axis=axis).ravel() for axis in (1, 0)], axis=1)
    solution, *_ = np.linalg.lstsq(slopes, (second - first).ravel(), rcond=None)
    return solution
