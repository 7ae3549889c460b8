# SPDX-License-Identifier: Apache-2.0
"""What the first bytes of an image file say: its format, size and orientation, before any decoder sees it."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from typing import Literal, NamedTuple

FORMATS = "JPEG, PNG, BMP, WebP, TIFF, GIF or PNM"
EDGE_BYTES = 1 << 16  # of a file's beginning and end, in which an EXIF orientation is looked for

JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
JPEG_ARITHMETIC = {*range(0xC9, 0xD0)}
_JPEG_APP1 = 0xE1
# A marker of JPEG, without stuffed zeros, fill bytes and the restart markers inside the coded pixels.
JPEG_MARKER = re.compile(rb"\xff([^\x00\x01\xff\xd0-\xd7])")

# What fastpose reads. Magic bytes decide which of OpenCV's decoders a file reaches.
_READ = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"BM": "BMP",
    **dict.fromkeys((b"GIF87a", b"GIF89a"), "GIF"),
    **dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "TIFF"),
    **{b"P%d" % kind: "PNM" for kind in range(1, 7)},
}
# What it names where such a file is not what it should be.
_NAMED = {
    **dict.fromkeys((b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"), "a JPEG 2000 picture"),
    **dict.fromkeys((b"\xff\x0a", b"\0\0\0\x0cJXL "), "a JPEG XL picture"),
    b"v/1\x01": "an OpenEXR picture",
    **dict.fromkeys((b"#?RADIANCE", b"#?RGBE"), "a Radiance HDR picture"),
    **dict.fromkeys((b"PF", b"Pf"), "a PFM picture"),
    b"P7": "a PAM picture",
    b"\x59\xa6\x6a\x95": "a Sun raster picture",
    b"8BPS": "a Photoshop file",
    b"%PDF": "a PDF file",
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"../": "the path that a link leads to, as git stores links where the system has none",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself: git lfs pull",
    **dict.fromkeys((b"<!", b"<html", b"<HTML", b"<?xml", b"<svg"), "an HTML or XML page"),
}
_BRANDS = {b"avif": "an AVIF picture", b"avis": "an AVIF picture", b"heic": "a HEIC picture", b"mif1": "a HEIF picture"}

_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_BITS, _TIFF_SAMPLES, _ORIENTATION = 256, 257, 258, 277, 274
_TIFF_TILE_WIDTH, _TIFF_TILE_HEIGHT = 322, 323
_TIFF_SIZES = {1: 1, 3: 2, 4: 4, 16: 8}  # bytes of the types of whole numbers

# The most pixels that a byte of a file can stand for. JPEG's Huffman codes have at least one bit for the mean of 8 x 8
# pixels. Deflate makes at most 1,032 bytes of one, of 8 pixels each. GIF's codes are 12 bits for up to 3,838 pixels.
_PIXELS_PER_BYTE = {"JPEG": 8 * 64, "PNG": 8 * 1032, "GIF": 3838, "BMP": 128, "PNM": 8}
# TIFF and WebP need almost nothing for a picture of one colour, as measured a byte for 14,000 pixels of a fax and for
# 26,000 of WebP. And a first frame may be small in a large picture. So these bounds are for larger pictures than this.
_OTHER_PIXELS_PER_BYTE, _FREE_PIXELS = 100_000, 1 << 24
# The most bytes a file has beside 8 for each of its pixels: metadata, further frames, a film behind a photo.
FREE_BYTES = 1 << 28
MOST_SEGMENTS, MOST_FILLING = 10_000, 1 << 20  # of a JPEG: segments before its end, bytes without one


class ImageHeader(NamedTuple):
    """What a file's header says.

    Attributes:
        format: one of those in FORMATS.
        height, width: of the stored pixels.
        bits: of a channel.
        orientation: EXIF's, 1 to 8: how to turn the stored pixels to see them upright, see `images.turned`. 1 for TIFF,
            which OpenCV has turned already.
        arithmetic: a JPEG with that code instead of Huffman's.
    """

    format: str
    height: int
    width: int
    bits: int = 8
    orientation: int = 1
    arithmetic: bool = False

    def size(self, upright: bool) -> tuple[int, int]:
        """(height, width) of the picture, as stored or upright."""
        return (self.width, self.height) if upright and self.orientation > 4 else (self.height, self.width)

    def check_pixels(self, file_bytes: int, most: int) -> None:
        """Raises ValueError where the picture has more than `most` pixels, or more or fewer than so many bytes stand
        for."""
        pixels = self.height * self.width
        if pixels > most:
            raise ValueError(
                f"{self.width} x {self.height} are {pixels:,} pixels, more than the {most:,} of max_image_pixels"
            )
        exact = self.format in ("JPEG", "PNG") and not self.arithmetic
        per_byte = (
            _OTHER_PIXELS_PER_BYTE if self.arithmetic else _PIXELS_PER_BYTE.get(self.format, _OTHER_PIXELS_PER_BYTE)
        )
        if pixels > max(0 if exact else _FREE_PIXELS, per_byte * file_bytes):
            raise ValueError(f"its {file_bytes:,} bytes cannot be {self.width} x {self.height} pixels of {self.format}")
        if file_bytes > 8 * pixels + FREE_BYTES:
            raise ValueError(f"its {file_bytes:,} bytes are too many for {self.width} x {self.height} pixels")


class ShortHeaderError(ValueError):
    """The header goes on behind the bytes that there are."""


def parse_header(head: bytes, tail: bytes) -> ImageHeader:
    """The header in the first bytes of a file.

    Args:
        head: the file, or its first bytes.
        tail: its last bytes, at most EDGE_BYTES, where PNG and WebP may have their EXIF.

    Raises:
        ShortHeaderError: the header goes on behind `head`; truncated, if that is the whole file.
        ValueError: not an image, or of a format that fastpose does not read; says which if it is known.
    """
    kind = format_of(head)
    parse = {"JPEG": _jpeg, "PNG": _png, "BMP": _bmp, "WebP": _webp, "TIFF": _tiff, "GIF": _gif, "PNM": _pnm}[kind]
    header = parse(head, tail)
    if header.height < 1 or header.width < 1:
        raise ValueError(f"a {kind} header without a size")
    return header


def format_of(head: bytes) -> str:
    """The format that the first bytes of a file are of; ValueError if fastpose reads none such."""
    if head.startswith(b"\xff\xd8\xff"):  # most are
        return "JPEG"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    for start, name in _READ.items():
        if head.startswith(start):
            return name
    named = next((name for start, name in _NAMED.items() if head.startswith(start)), None)
    if head[4:8] == b"ftyp":
        named = _BRANDS.get(head[8:12], "a video")
    raise ValueError(f"{f'it is {named}' if named else f'its first bytes are {head[:8]!r}'}; fastpose reads {FORMATS}")


def jpeg_segments(data: bytes, position: int = 2) -> Iterator[tuple[int, int]]:
    """The marker codes of a JPEG and where their segments begin; ValueError where they are too many to be one."""
    # Segments are skipped by their length: the EXIF thumbnail inside one is a JPEG with marks of its own.
    count = 0
    while marker := JPEG_MARKER.search(data, position, position + MOST_FILLING):
        count += 1
        if count > MOST_SEGMENTS:
            raise ValueError(f"a JPEG of more than {MOST_SEGMENTS:,} segments")
        yield marker[1][0], marker.end()
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")


def _number(data: bytes, start: int, length: int, order: Literal["big", "little"] = "big") -> int:
    field = data[start : start + length]
    if len(field) < length:
        raise ShortHeaderError("truncated in its header")
    return int.from_bytes(field, order)


def _jpeg(head: bytes, tail: bytes) -> ImageHeader:
    orientation = 0
    for code, start in jpeg_segments(head):
        if code in JPEG_FRAMES:
            height, width = _number(head, start + 3, 2), _number(head, start + 5, 2)
            return ImageHeader("JPEG", height, width, head[start + 2], orientation or 1, code in JPEG_ARITHMETIC)
        if code == _JPEG_APP1 and not orientation and head.startswith(b"Exif\0\0", start + 2):
            orientation = _exif_orientation(head[start + 8 : start + _number(head, start, 2)])
        if code in (0xD9, 0xDA):
            raise ValueError("truncated or damaged: a JPEG without a frame")
    raise ShortHeaderError("truncated in its header")


def _png(head: bytes, tail: bytes) -> ImageHeader:
    if head[12:16] not in (b"IHDR", b""):
        raise ValueError("damaged: a PNG that does not begin with its header")
    height, width, bits = _number(head, 20, 4), _number(head, 16, 4), _number(head, 24, 1)
    # Before the pixels or after them.
    for part, found in ((head, head.find(b"eXIf", 0, EDGE_BYTES)), (tail, tail.rfind(b"eXIf"))):
        if found >= 4:
            end = found + 4 + _number(part, found - 4, 4)
            if zlib.crc32(part[found:end]) == int.from_bytes(part[end : end + 4], "big"):
                return ImageHeader("PNG", height, width, bits, _exif_orientation(part[found + 4 : end]))
    return ImageHeader("PNG", height, width, bits)


def _webp(head: bytes, tail: bytes) -> ImageHeader:
    kind = head[12:16]
    if kind == b"VP8 ":
        height, width = (_number(head, at, 2, "little") & 0x3FFF for at in (28, 26))
    elif kind == b"VP8L":
        bits = _number(head, 21, 4, "little")
        height, width = (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    elif kind == b"VP8X":
        height, width = (_number(head, at, 3, "little") + 1 for at in (27, 24))
    else:
        raise ValueError("truncated or damaged: a WebP file that begins with no picture")
    orientation = 1
    if kind == b"VP8X" and head[20] & 8 and (found := tail.rfind(b"EXIF")) >= 0:  # it is behind the pixels
        exif = tail[found + 8 : found + 8 + int.from_bytes(tail[found + 4 : found + 8], "little")]
        orientation = _exif_orientation(exif.removeprefix(b"Exif\0\0"))
    return ImageHeader("WebP", height, width, orientation=orientation)


def _gif(head: bytes, tail: bytes) -> ImageHeader:
    return ImageHeader("GIF", _number(head, 8, 2, "little"), _number(head, 6, 2, "little"))


def _bmp(head: bytes, tail: bytes) -> ImageHeader:
    if _number(head, 14, 4, "little") == 12:
        return ImageHeader("BMP", _number(head, 20, 2, "little"), _number(head, 18, 2, "little"))
    height, width = _number(head, 22, 4, "little"), _number(head, 18, 4, "little")
    return ImageHeader("BMP", min(height, (1 << 32) - height), width)  # below 0 if its first row is the top one


def _pnm(head: bytes, tail: bytes) -> ImageHeader:
    # Numbers, and comments from # to the end of a line. A bitmap (P1, P4) has no largest value.
    words = re.sub(rb"#[^\n]*", b"", head[2:1024]).split(maxsplit=3)[:3]
    try:
        width, height, largest = (int(word[:10]) for word in ([*words[:2], b"1"] if head[1] in b"14" else words))
    except ValueError as error:
        raise ValueError("truncated or damaged: a PNM header without a size") from error
    return ImageHeader("PNM", height, width, 16 if largest > 255 else 8)


def _tiff(head: bytes, tail: bytes) -> ImageHeader:
    tags = _tiff_numbers(head)
    height, width = tags.get(_TIFF_HEIGHT, 0), tags.get(_TIFF_WIDTH, 0)
    bits, samples = tags.get(_TIFF_BITS, 1), tags.get(_TIFF_SAMPLES, 1)
    # A decoder makes room for a whole tile, whatever the size of the picture.
    tile = tags.get(_TIFF_TILE_HEIGHT, 0), tags.get(_TIFF_TILE_WIDTH, 0)
    if samples > 8 or bits > 64 or tile[0] * tile[1] > max(4 * height * width, _FREE_PIXELS):
        raise ValueError(f"a TIFF of {samples} channels of {bits} bits, in tiles of {tile[1]} x {tile[0]} pixels")
    if tags.get(_ORIENTATION, 1) in (5, 6, 7, 8):
        height, width = width, height
    return ImageHeader("TIFF", height, width, bits)


def _exif_orientation(data: bytes) -> int:
    """The orientation in EXIF data, 1 to 8; 1 if it is missing or damaged."""
    try:
        orientation = _tiff_numbers(data).get(_ORIENTATION, 1)
    except ValueError:
        return 1
    return orientation if 1 <= orientation <= 8 else 1


def _tiff_numbers(data: bytes) -> dict[int, int]:
    """The first tags of a TIFF file, or of EXIF, which has the same form: those that are whole numbers, or the first of
    several."""
    order: Literal["big", "little"] = "big" if data[:2] == b"MM" else "little"
    big = _number(data, 2, 2, order) == 43  # BigTIFF
    wide = 8 if big else 4
    start = _number(data, 8 if big else 4, wide, order)
    count = _number(data, start, 8 if big else 2, order)
    start += 8 if big else 2
    tags: dict[int, int] = {}
    for entry in range(start, start + min(count, 1000) * (4 + 2 * wide), 4 + 2 * wide):
        kind, values = _number(data, entry + 2, 2, order), _number(data, entry + 4, wide, order)
        if kind in _TIFF_SIZES and values:
            size, place = _TIFF_SIZES[kind], entry + 4 + wide
            if values * size > wide:
                place = _number(data, place, wide, order)
            tags.setdefault(_number(data, entry, 2, order), _number(data, place, size, order))
    return tags
