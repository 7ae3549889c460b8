# SPDX-License-Identifier: Apache-2.0
"""Image files to RGB pixels, and a clear answer where a file is broken."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

# SimpleBaselines and its descendants read pixels as stored, so the annotations are for the unrotated image.
_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION

_JPEG_START, _JPEG_END_OF_IMAGE = b"\xff\xd8\xff", 0xD9
_PNG_START, _PNG_END_CHUNK = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
# A marker of JPEG, without stuffed zeros, fill bytes and the restart markers inside the coded pixels.
_JPEG_MARKER = re.compile(rb"\xff([^\x00\x01\xff\xd0-\xd7])")
_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}


class BadImageError(ValueError):
    """An image file cannot be read or decoded. The message holds its path and why."""


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads an image file.

    Whatever OpenCV decodes (JPEG, PNG, BMP, WebP, ...) becomes 8-bit RGB: grey is repeated, CMYK converted, 16 bits
    lose their lower 8, alpha is dropped without blending, of an animation the first frame is taken. An EXIF orientation
    is ignored. Meant to run in threads: reading and decoding release the interpreter lock.

    A truncated file is an error, also where a decoder would fill the rest with grey. Damage in the middle of a JPEG
    whose end is there cannot be told from pixels.

    Args:
        path: the image file.

    Returns:
        uint8 [H, W, 3], RGB, contiguous.

    Raises:
        BadImageError: missing, not readable, empty, truncated, or no image.
    """
    try:
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise BadImageError(f"{path}: cannot be read: {error}") from error
    if not data:
        raise BadImageError(f"{path}: the file is empty")
    if not _reaches_its_end(data):
        raise BadImageError(f"{path}: truncated after {len(data)} bytes, the end of the image is not in the file")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), _FLAGS)
    except cv2.error as error:
        raise BadImageError(f"{path}: OpenCV cannot decode it: {error}") from error
    if image is None:
        raise BadImageError(f"{path}: OpenCV cannot decode its {len(data)} bytes (damaged, or no image)")
    return image


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(height, width) in pixels of what `read_image` makes of a file.

    JPEG and PNG tell it in their headers; files of other kinds, and those with an unusual header, are decoded.

    Raises:
        BadImageError: as from read_image, though damage behind the header goes unnoticed.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(1 << 16)
    except (OSError, ValueError) as error:
        raise BadImageError(f"{path}: cannot be read: {error}") from error
    if size := _size_in_header(head):
        return size
    height, width, _ = read_image(path).shape
    return height, width


def is_whole_jpeg(data: bytes) -> bool:
    """Whether `data` is a JPEG that reaches its end mark."""
    return data.startswith(_JPEG_START) and _jpeg_reaches_its_end(data)


def _size_in_header(head: bytes) -> tuple[int, int] | None:
    fields = b""  # height, width
    if head.startswith(_PNG_START):
        fields = head[20:24] + head[16:20]
    elif head.startswith(_JPEG_START):
        frame = next((start for code, start in _jpeg_segments(head) if code in _JPEG_FRAMES), len(head))
        fields = head[frame + 3 : frame + 7]
    half = len(fields) // 2
    height, width = int.from_bytes(fields[:half], "big"), int.from_bytes(fields[half:], "big")
    return (height, width) if half in (2, 4) and height and width else None


def _reaches_its_end(data: bytes) -> bool:
    """False where a JPEG or PNG stops before its end mark; bytes after the mark are allowed."""
    if data.startswith(_JPEG_START):
        return _jpeg_reaches_its_end(data)
    if data.startswith(_PNG_START):
        return data.rfind(_PNG_END_CHUNK) > 0
    return True


def _jpeg_reaches_its_end(data: bytes) -> bool:
    return any(code == _JPEG_END_OF_IMAGE for code, _ in _jpeg_segments(data))


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """The marker codes of a JPEG and where their segments begin."""
    # Segments are skipped by their length: the EXIF thumbnail inside one is a JPEG with marks of its own.
    position = 2
    while marker := _JPEG_MARKER.search(data, position):
        yield marker[1][0], marker.end()
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
