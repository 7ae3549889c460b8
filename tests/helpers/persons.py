# SPDX-License-Identifier: Apache-2.0
"""Persons with the joints of a test's choice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from fastpose.data.persons import Persons
from fastpose.skeletons import MPII, Skeleton


def persons_of(keypoints: ArrayLike, visible: ArrayLike, skeleton: Skeleton = MPII) -> Persons:
    count = len(keypoints)
    return Persons(
        image_paths=(Path("a"),),
        image_index=np.zeros(count, np.int64),
        center=np.tile(np.float32([[50, 60]]), (count, 1)),
        scale=np.tile(np.float32([[1.5, 0.1]]), (count, 1)),
        keypoints=np.asarray(keypoints, np.float32),
        visible=np.asarray(visible, np.float32),
        source_row=np.arange(count),
        skeleton=skeleton,
    )
