# SPDX-License-Identifier: Apache-2.0
"""Image files to RGB pixels, and a clear answer where a file is broken."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
import torch

from fastpose.data.image_header import (
    EDGE_BYTES,
    FREE_BYTES,
    JPEG_FRAMES,
    JPEG_MARKER,
    MOST_SEGMENTS,
    ImageHeader,
    ShortHeaderError,
    jpeg_segments,
    parse_header,
)
from fastpose.data.reading import AS_STORED, Reading
from fastpose.files import open_file, read_file

log = logging.getLogger(__name__)

# SimpleBaselines and its descendants read pixels as stored, so their annotations are for the unrotated image; what EXIF
# says is done here if it is wanted, for every format and decoder alike.
_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
# All bits, in the order B G R: as RGB OpenCV 5 garbles TIFF files of 16 bits.
_DEEP_FLAGS = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
# The "grayscale" of these names is the absence of a colour flag; with IMREAD_REDUCED_COLOR_*, which stand for BGR,
# OpenCV 5 refuses RGB.
_REDUCED = {2: cv2.IMREAD_REDUCED_GRAYSCALE_2, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4, 8: cv2.IMREAD_REDUCED_GRAYSCALE_8}
REDUCTIONS = (1, *_REDUCED)
# From EXIF's orientation to an upright picture: rows and columns change places from 5 on, then these axes are reversed.
_REVERSED: dict[int, tuple[int, ...]] = {2: (1,), 3: (0, 1), 4: (0,), 6: (1,), 7: (0, 1), 8: (0,)}
_FLIP_CODES = {(0,): 0, (1,): 1, (0, 1): -1}  # OpenCV's names of those axes

_JPEG_START, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_PNG_END_CHUNK = b"IEND\xaeB`\x82"
_IS_JPEG_MARKER = np.array([JPEG_MARKER.match(b"\xff" + bytes([code])) is not None for code in range(256)])
_JPEG_SCAN, _JPEG_END_OF_IMAGE = 0xDA, 0xD9
MOST_SCANS = 50  # encoders write about ten; each costs the decoder a pass over the picture, whatever its bytes

CHECKED_IMAGES, CHECKED_16_BITS = 1000, 4
FEW_LEVELS = 32
# What is wrong with the file, or with its name, and not with the machine.
_OF_THE_FILE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL, errno.ENXIO}
_OF_THE_MACHINE = {
    errno.EMFILE: "this process may open no more files: ulimit -n",
    errno.ENFILE: "the system may open no more files",
    errno.ENOMEM: "the system has no memory left",
    errno.EACCES: "whoever runs this may not read it",
    errno.EIO: "the disk, or the way to it, fails",
}


class BadImageError(ValueError):
    """An image file cannot be read or decoded. The message has its path and why."""


def read_image(path: str | os.PathLike[str], reduction: int = 1, reading: Reading = AS_STORED) -> np.ndarray:
    """Reads an image file, whole or reduced.

    JPEG, PNG, BMP, WebP, TIFF, GIF and PNM become 8-bit RGB: grey is repeated, CMYK converted, 16 bits lose their lower
    8 unless `reading` stretches them, alpha is dropped without blending, of an animation the first frame is taken. The
    first bytes decide which it is, and files of other formats reach no decoder. An EXIF orientation is ignored unless
    `reading` wants pictures upright (OpenCV turns TIFF files in any case). Meant to run in threads: reading and
    decoding release the interpreter lock.

    A truncated file is an error, also where a decoder would fill the rest with grey. Damage in the middle of a JPEG
    whose end is there cannot be distinguished from pixels. Before anything is decoded the header is asked for the size:
    a picture of more pixels than `reading.most_pixels`, or than its bytes can stand for, is an error.

    Reduced, a pixel is a mean over those it covers: pixel i is centred on `reduction * i + (reduction - 1) / 2` of the
    whole image. Of a JPEG the decoder computes no more than that (a smaller inverse DCT); other images are decoded and
    then averaged, with black beyond the right and the lower border.

    Args:
        path: the image file.
        reduction: 1, 2, 4 or 8, by how much to reduce each side.
        reading: see `Reading`.

    Returns:
        uint8 [H, W, 3], RGB, contiguous; reduced, [ceil(H / reduction), ceil(W / reduction), 3].

    Raises:
        BadImageError: missing, not a file, empty, truncated, too large, or no image.
        OSError: the machine cannot read it: no descriptors, memory or permission left, a failing disk.
    """
    return _decoded(path, *read_checked(path, reading), reduction, reading)


def decode_image(
    data: bytes, name: str | os.PathLike[str], reduction: int = 1, reading: Reading = AS_STORED
) -> np.ndarray:
    """The pixels of an image file whose bytes are there, as of one that came over a network; see `read_image`.

    Args:
        data: the whole file.
        name: what messages call it.
        reduction, reading: as of read_image.

    Returns:
        What read_image returns for a file of these bytes, to the bit.

    Raises:
        BadImageError: empty, truncated, too large, or no image.
    """
    return _decoded(name, data, _checked(name, data, reading), reduction, reading)


def _decoded(
    path: str | os.PathLike[str], data: bytes, header: ImageHeader, reduction: int, reading: Reading
) -> np.ndarray:
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: expected one of {REDUCTIONS}, got {reduction}")
    orientation = header.orientation if reading.upright else 1
    # OpenCV reduces other formats only after decoding, to a size that is rounded down. Turned, the last, incomplete
    # group of pixels would come first.
    by_decoder = reduction > 1 and header.format == "JPEG" and _begins_whole(header, orientation, reduction)
    stretch = reading.stretch and header.bits == 16 and header.format != "JPEG"
    flags = _DEEP_FLAGS if stretch else _FLAGS | (_REDUCED[reduction] if by_decoder else 0)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        reason = str(error).strip().replace("\n", " ")
        raise _undecoded(path, header, f"OpenCV cannot decode it: {reason}") from error
    if image is None:
        raise _undecoded(path, header, f"OpenCV cannot decode its {len(data)} bytes: the {header.format} is damaged")
    if stretch:
        image = _stretched(image)
    image = turned(image, orientation)
    return image if by_decoder or reduction == 1 else average(image, reduction, 1)


def read_checked(path: str | os.PathLike[str], reading: Reading) -> tuple[bytes, ImageHeader]:
    """An image file that may be decoded, and its header; raises what read_image does."""
    try:
        if os.stat(path).st_size > FREE_BYTES:
            image_header(path, reading)  # refuses a file of more bytes than pixels can be, which are not all read
        data = read_file(path)
    except BadImageError:
        raise
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    return data, _checked(path, data, reading)


def _checked(path: str | os.PathLike[str], data: bytes, reading: Reading) -> ImageHeader:
    """The header of an image file that may be decoded; raises BadImageError for others."""
    if not data:
        raise BadImageError(f"{printable(path)}: the file is empty")
    try:
        header = parse_header(data, data[-EDGE_BYTES:])
        header.check_pixels(len(data), reading.most_pixels)
        whole = _reaches_its_end(data, header.format)
    except ShortHeaderError as error:
        raise BadImageError(f"{printable(path)}: truncated after {len(data)} bytes, in its header") from error
    except ValueError as error:
        raise BadImageError(f"{printable(path)}: cannot be decoded: {error}") from error
    if not whole:
        raise BadImageError(
            f"{printable(path)}: truncated after {len(data)} bytes, the end of the image is not in the file"
        )
    return header


def turned(image: np.ndarray, orientation: int) -> np.ndarray:
    """A picture [H, W, 3] with EXIF's orientation 1 to 8, upright; contiguous."""
    if orientation > 4:
        image = cv2.transpose(image)
    if axes := _REVERSED.get(orientation):
        image = cv2.flip(image, _FLIP_CODES[axes])
    return image


def turned_tensor(image: torch.Tensor, orientation: int) -> torch.Tensor:
    """The same of a tensor on any device; not contiguous."""
    if orientation > 4:
        image = image.transpose(0, 1)
    return image.flip(_REVERSED[orientation]) if orientation in _REVERSED else image


def printable(path: str | os.PathLike[str]) -> str:
    """A path for a message of one line: quoted where it has line breaks or bytes that are no text."""
    text = os.fspath(path)
    return text if text.isprintable() else repr(text)


def unreadable(path: str | os.PathLike[str], error: OSError | ValueError) -> OSError | BadImageError:
    """What to raise where a file cannot be read: a bad image, or the machine's own trouble, which no other image would
    be spared."""
    if isinstance(error, OSError) and error.errno not in _OF_THE_FILE:
        hint = f" ({why})" if (why := _OF_THE_MACHINE.get(error.errno or 0)) else ""
        return OSError(error.errno, f"{error.strerror}{hint}", os.fspath(path))
    return BadImageError(f"{printable(path)}: cannot be read: {str(error).removeprefix(f'{path}: ')}")


def _undecoded(path: str | os.PathLike[str], header: ImageHeader, text: str) -> OSError | BadImageError:
    # OpenCV's decoders do not say what they lack.
    try:
        np.empty(6 * header.height * header.width, np.uint8)
    except MemoryError:
        return unreadable(path, OSError(errno.ENOMEM, f"no memory to decode {header.width} x {header.height} pixels"))
    return BadImageError(f"{printable(path)}: {text}")


def _begins_whole(header: ImageHeader, orientation: int, reduction: int) -> bool:
    """Whether the reduced pixels of a turned picture begin with a whole group of `reduction`."""
    size = header.size(upright=orientation > 1)
    return not any(size[axis] % reduction for axis in _REVERSED.get(orientation, ()))


def _stretched(image: np.ndarray) -> np.ndarray:
    """uint16 [H, W, 3], B G R, as uint8 in R G B over the whole range."""
    least, most = int(image.min()), int(image.max())
    factor = 255 / max(1, most - least)
    return cv2.cvtColor(cv2.convertScaleAbs(image, alpha=factor, beta=-least * factor), cv2.COLOR_BGR2RGB)


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


def image_header(path: str | os.PathLike[str], reading: Reading = AS_STORED) -> ImageHeader:
    """The header of an image file, of which no more than the first and the last 64 KB are read if that is enough.

    Raises:
        BadImageError, OSError: as from read_image, though damage behind the header goes unnoticed.
    """
    try:
        file = open_file(path)
        try:
            size = os.fstat(file).st_size
            head = os.read(file, EDGE_BYTES)
            os.lseek(file, max(0, size - EDGE_BYTES), os.SEEK_SET)
            tail = os.read(file, EDGE_BYTES) if size > EDGE_BYTES else head
        finally:
            os.close(file)
        if not head:
            raise BadImageError(f"{printable(path)}: the file is empty")
        try:
            header = parse_header(head, tail)
        except ShortHeaderError:
            if size <= EDGE_BYTES:
                raise
            header = parse_header(read_file(path, FREE_BYTES), tail)
        header.check_pixels(size, reading.most_pixels)
    except BadImageError:
        raise
    except ShortHeaderError as error:
        raise BadImageError(f"{printable(path)}: truncated after {size} bytes, in its header") from error
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    return header


def image_size(path: str | os.PathLike[str], reading: Reading = AS_STORED) -> tuple[int, int]:
    """(height, width) in pixels of what `read_image` makes of a file; see `image_header`."""
    return image_header(path, reading).size(reading.upright)


def other_way_up(header: ImageHeader, size: tuple[int, int], upright: bool) -> str:
    """What to add to the message where a picture has not the `size` (height, width) that was said, and EXIF is why."""
    if header.orientation < 5 or header.size(not upright) != size:
        return ""
    turn = "as stored: read them with --exif stored" if upright else "as viewers show it: read them with --exif upright"
    return f"; its EXIF orientation is {header.orientation}, and the annotations are for the picture {turn}"


def warn_of_surprises(paths: Sequence[os.PathLike[str]], reading: Reading, source: object) -> None:
    """Logs what reading leaves out of these images without an error: EXIF orientations, and most of few grey levels.

    At most 1,000 headers are read, evenly spread, and 4 pictures of 16 bits.

    Args:
        paths: image files. Bad ones are passed over: they are an error when they are needed, or are skipped.
        reading: how they are read.
        source: what messages begin with, such as the annotation file.
    """
    turns: list[tuple[os.PathLike[str], int]] = []
    deep: list[os.PathLike[str]] = []
    looked_at = paths[:: max(1, -(-len(paths) // CHECKED_IMAGES))]
    for path in looked_at:
        try:
            header = image_header(path, reading)
        except BadImageError:
            continue
        if header.orientation != 1 and not reading.upright:
            turns.append((path, header.orientation))
        if header.bits == 16 and not reading.stretch and len(deep) < CHECKED_16_BITS:
            deep.append(path)
    if turns:
        log.warning(
            "%s: %d of %d images looked at have an EXIF orientation other than 1 (the first: %s, %d), and are read as "
            "stored, not as viewers show them; if the annotations are for what viewers show: --exif upright",
            *(source, len(turns), len(looked_at), printable(turns[0][0]), turns[0][1]),
        )
    few = [(path, levels) for path in deep if (levels := levels_left(path, reading)) is not None]
    if few:
        log.warning(
            "%s: %d of %d pictures with 16 bits looked at keep fewer than %d of 256 grey levels (the first: %s, %d): "
            "their upper 8 bits are read; to use each picture's own range: --sixteen_bits stretch",
            *(source, len(few), len(deep), FEW_LEVELS, printable(few[0][0]), few[0][1]),
        )


def levels_left(path: os.PathLike[str], reading: Reading) -> int | None:
    """The grey levels of a picture of 16 bits of which the upper 8 are read, if few are left of more."""
    try:
        kept, stretched = (len(np.unique(read_image(path, 1, r))) for r in (reading, replace(reading, stretch=True)))
    except BadImageError:
        return None
    return kept if kept < FEW_LEVELS and kept < stretched else None


def is_whole_jpeg(data: bytes) -> bool:
    """Whether `data` is a JPEG that reaches its end mark."""
    return data.startswith(_JPEG_START) and _jpeg_reaches_its_end(data)


def _reaches_its_end(data: bytes, kind: str) -> bool:
    """False where a JPEG or PNG stops before its end mark; bytes after the mark are allowed."""
    if kind == "JPEG":
        return is_whole_jpeg(data)
    return kind != "PNG" or data.rfind(_PNG_END_CHUNK) > 0


def _jpeg_reaches_its_end(data: bytes) -> bool:
    # Decoding threads share the interpreter lock with the one that trains: nothing here looks at byte after byte in it.
    components = b""  # how many a frame without progression has
    for code, start in jpeg_segments(data):
        if code == _JPEG_END_OF_IMAGE:
            return True
        if code in JPEG_FRAMES and code & 3 != 2:
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
    position, scans = start, 1
    marks = marks[_IS_JPEG_MARKER[codes[marks + 1]]]
    for mark in marks[:MOST_SEGMENTS].tolist():
        if mark >= position:
            if codes[mark + 1] == _JPEG_END_OF_IMAGE:
                return True
            scans += bool(codes[mark + 1] == _JPEG_SCAN)
            if scans > MOST_SCANS:
                raise ValueError(f"a JPEG of more than {MOST_SCANS} scans")
            position = mark + 2 + int.from_bytes(data[mark + 2 : mark + 4], "big")
    if len(marks) > MOST_SEGMENTS:
        raise ValueError(f"a JPEG of more than {MOST_SEGMENTS:,} segments")
    return False
