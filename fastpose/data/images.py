# SPDX-License-Identifier: Apache-2.0
"""Image files to RGB pixels, and a clear answer where a file is broken."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import cv2
import numpy as np

from fastpose.files import read_file

# SimpleBaselines and its descendants read pixels as stored, so the annotations are for the unrotated image.
_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
# The "grayscale" of these names is the absence of a colour flag; with IMREAD_REDUCED_COLOR_*, which stand for BGR,
# OpenCV 5 refuses RGB.
_REDUCED = {2: cv2.IMREAD_REDUCED_GRAYSCALE_2, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4, 8: cv2.IMREAD_REDUCED_GRAYSCALE_8}
REDUCTIONS = (1, *_REDUCED)

_JPEG_START, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_PNG_START, _PNG_END_CHUNK = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
# A marker of JPEG, without stuffed zeros, fill bytes and the restart markers inside the coded pixels.
_JPEG_MARKER = re.compile(rb"\xff([^\x00\x01\xff\xd0-\xd7])")
_IS_JPEG_MARKER = np.array([_JPEG_MARKER.match(b"\xff" + bytes([code])) is not None for code in range(256)])
_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_JPEG_SCAN, _JPEG_END_OF_IMAGE = 0xDA, 0xD9


class BadImageError(ValueError):
    """An image file cannot be read or decoded. The message has its path and why."""


def read_image(path: str | os.PathLike[str], reduction: int = 1) -> np.ndarray:
    """Reads an image file, whole or reduced.

    Whatever OpenCV decodes (JPEG, PNG, BMP, WebP, ...) becomes 8-bit RGB: grey is repeated, CMYK converted, 16 bits
    lose their lower 8, alpha is dropped without blending, of an animation the first frame is taken. An EXIF orientation
    is ignored. Meant to run in threads: reading and decoding release the interpreter lock.

    A truncated file is an error, also where a decoder would fill the rest with grey. Damage in the middle of a JPEG
    whose end is there cannot be distinguished from pixels.

    Reduced, a pixel is a mean over those it covers: pixel i is centred on `reduction * i + (reduction - 1) / 2` of the
    whole image. Of a JPEG the decoder computes no more than that (a smaller inverse DCT); other images are decoded and
    then averaged, with black beyond the right and the lower border.

    Args:
        path: the image file.
        reduction: 1, 2, 4 or 8, by how much to reduce each side.

    Returns:
        uint8 [H, W, 3], RGB, contiguous; reduced, [ceil(H / reduction), ceil(W / reduction), 3].

    Raises:
        BadImageError: missing, not readable, empty, truncated, or no image.
    """
    try:
        data = read_file(path)
    except (OSError, ValueError) as error:
        raise BadImageError(f"{path}: cannot be read: {error}") from error
    if not data:
        raise BadImageError(f"{path}: the file is empty")
    if not _reaches_its_end(data):
        raise BadImageError(f"{path}: truncated after {len(data)} bytes, the end of the image is not in the file")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: expected one of {REDUCTIONS}, got {reduction}")
    # OpenCV reduces other formats only after decoding, to a size that is rounded down.
    by_decoder = reduction > 1 and data.startswith(_JPEG_START)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), _FLAGS | (_REDUCED[reduction] if by_decoder else 0))
    except cv2.error as error:
        raise BadImageError(f"{path}: OpenCV cannot decode it: {error}") from error
    if image is None:
        raise BadImageError(f"{path}: OpenCV cannot decode its {len(data)} bytes (damaged, or not an image)")
    return image if by_decoder or reduction == 1 else average(image, reduction, 1)


def average(image: np.ndarray, pixels: int, into: int) -> np.ndarray:
    """Reduces each side of a uint8 image [H, W, 3] by the factor `pixels / into`, at least 1: means over areas.

    Pixel i of the result is centred on `f * i + (f - 1) / 2` of the image, f being the factor. Beyond the right and the
    lower border of the image lies black. Returns uint8 [ceil(H / f), ceil(W / f), 3].
    """
    height, width = (-(-side // pixels) for side in image.shape[:2])
    # Padded to whole groups of `pixels`: OpenCV takes the factor from the two sizes, and rounded sizes would change it.
    padded = np.zeros((height * pixels, width * pixels, 3), np.uint8)
    padded[: image.shape[0], : image.shape[1]] = image
    small = cv2.resize(padded, (width * into, height * into), interpolation=cv2.INTER_AREA)
    rows, columns = (-(-side * into // pixels) for side in image.shape[:2])
    return np.ascontiguousarray(small[:rows, :columns])


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(height, width) in pixels of what `read_image` makes of a file.

    JPEG and PNG have it in their headers; files of other kinds, and those with an unusual header, are decoded.

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
    # Decoding threads share the interpreter lock with the one that trains: nothing here looks at byte after byte in it.
    components = b""  # how many a frame without progression has
    for code, start in _jpeg_segments(data):
        if code == _JPEG_END_OF_IMAGE:
            return True
        if code in _JPEG_FRAMES and code & 3 != 2:
            components = data[start + 7 : start + 8]
        if code == _JPEG_SCAN:
            # A scan of all components is the only one: no segment follows that an end mark could be a part of.
            only = components == data[start + 2 : start + 3]
            return data.rfind(_JPEG_END, start) > 0 if only else _jpeg_scans_reach_their_end(data, start)
    return False


def _jpeg_scans_reach_their_end(data: bytes, start: int) -> bool:
    """Whether an end mark follows behind `start`, in the header of a scan, outside of the segments between scans."""
    codes = np.frombuffer(data, np.uint8)  # NumPy lets go of the interpreter lock
    marks = np.flatnonzero(codes[start:-1] == 0xFF) + start
    position = start
    for mark in marks[_IS_JPEG_MARKER[codes[marks + 1]]].tolist():
        if mark >= position:
            if codes[mark + 1] == _JPEG_END_OF_IMAGE:
                return True
            position = mark + 2 + int.from_bytes(data[mark + 2 : mark + 4], "big")
    return False


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """The marker codes of a JPEG and where their segments begin."""
    # Segments are skipped by their length: the EXIF thumbnail inside one is a JPEG with marks of its own.
    position = 2
    while marker := _JPEG_MARKER.search(data, position):
        yield marker[1][0], marker.end()
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
