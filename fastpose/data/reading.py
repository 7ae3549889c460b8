# SPDX-License-Identifier: Apache-2.0
"""How image files become pixels, as far as points in them depend on it."""

from __future__ import annotations

from dataclasses import dataclass

MOST_PIXELS = 250_000_000  # phones have up to 201 million


@dataclass(frozen=True)
class Reading:
    """How image files become the pixels that annotations are for.

    Attributes:
        upright: turn pictures as their EXIF orientation says; else they stay as stored.
        stretch: of a picture with 16 bits a channel make the smallest value 0 and the largest 255; else the upper 8
            bits stay.
        most_pixels: a picture of more is a bad image.
    """

    upright: bool = False
    stretch: bool = False
    most_pixels: int = MOST_PIXELS


AS_STORED = Reading()
