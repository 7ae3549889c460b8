# SPDX-License-Identifier: Apache-2.0
"""Persons with the joints of a test's choice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastpose.data.persons import Persons
from fastpose.skeletons import MPII, Skeleton


def persons_of(
    keypoints: ArrayLike, visible: ArrayLike | None = None, skeleton: Skeleton = MPII, **changes: Any
) -> Persons:
    """Persons with these keypoints [N, K, 2], all visible unless `visible` says otherwise, in boxes of one place on one
    image; `changes` replaces arrays, of whatever dtype."""
    count = len(keypoints)
    arrays: dict[str, Any] = {
        "image_index": np.zeros(count),
        "center": np.tile([[50, 60]], (count, 1)),
        "scale": np.tile([[1.5, 0.1]], (count, 1)),
        "keypoints": keypoints,
        "visible": np.ones((count, skeleton.num_joints)) if visible is None else visible,
        "source_row": np.arange(count),
    }
    others = {name: changes.pop(name) for name in ("image_paths", "extras", "truth") if name in changes}
    types = {"image_index": np.int64, "source_row": np.int64}
    typed = {name: np.asarray(array, types.get(name, np.float32)) for name, array in (arrays | changes).items()}
    return Persons(**{"image_paths": (Path("a"),), "skeleton": skeleton, **typed, **others})
