# SPDX-License-Identifier: Apache-2.0
"""Looking at every image file of a data set: whether it is there, whole, and of the size that it should have."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from fastpose.data.annotation_rows import other_name
from fastpose.data.findings import Finding, cases_of
from fastpose.data.image_header import ImageHeader
from fastpose.data.images import (
    FEW_LEVELS,
    BadImageError,
    decode_image,
    image_header,
    levels_left,
    other_way_up,
    printable,
    read_checked,
)
from fastpose.data.persons import Persons
from fastpose.data.pixels.source import DecodeThreads
from fastpose.data.reading import Reading

THUMBNAIL = 16  # px, of each side
_AT_A_TIME = 32  # images per thread, between two lines of progress
_DEEP_DECODED = 4  # pictures of 16 bits whose grey levels are counted: each is decoded three times


class Look(NamedTuple):
    """What an image file is. No pixels are kept.

    Attributes:
        there: whether there is a file.
        error: why it cannot be read or decoded; empty if it can.
        header: None if it cannot be read.
        digest: of its pixels; empty if they were not decoded.
        thumbnail: uint8 [16, 16], grey; None if they were not decoded.
    """

    there: bool
    error: str = ""
    header: ImageHeader | None = None
    digest: bytes = b""
    thumbnail: NDArray[np.uint8] | None = None


def look_at(path: Path, reading: Reading, decode: bool = True) -> Look:
    """Reads an image file, and decodes it unless that is not wanted.

    Raises:
        OSError: the machine cannot read it, see `read_image`.
    """
    if not os.path.isfile(path):
        return Look(False)
    header = None
    try:
        if not decode:
            return Look(True, header=image_header(path, reading))
        data, header = read_checked(path, reading)
        pixels = decode_image(data, path, reading=reading)
    except BadImageError as error:
        return Look(True, str(error).removeprefix(f"{printable(path)}: "), header)
    digest = hashlib.blake2b(pixels.tobytes(), digest_size=16, person=b"%d x %d" % pixels.shape[:2])
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
    return Look(True, "", header, digest.digest(), np.asarray(small, np.uint8))


def look_at_all(
    paths: Sequence[Path], reading: Reading, *, decode: bool, threads: int, progress: Callable[[int], None]
) -> dict[Path, Look]:
    """`look_at` in threads; `progress` is called with how many are done."""
    pool = DecodeThreads(threads)
    looks: dict[Path, Look] = {}
    try:
        for start in range(0, len(paths), _AT_A_TIME * threads):
            some = paths[start : start + _AT_A_TIME * threads]
            looks |= zip(some, pool.each(lambda path: look_at(path, reading, decode), some), strict=True)
            progress(len(looks))
    finally:
        pool.shutdown()
    return looks


def sizes_of(persons: Persons, looks: Sequence[Look]) -> NDArray[np.float64]:
    """(width, height) of the images [M, 2], NaN where a header could not be read."""
    upright = persons.reading.upright
    sizes = [look.header.size(upright)[::-1] if look.header else (np.nan, np.nan) for look in looks]
    return np.array(sizes, np.float64).reshape(-1, 2)


def doubts_about_images(persons: Persons, looks: Sequence[Look]) -> list[Finding]:
    """What is wrong with the images, or worth knowing of them.

    Args:
        persons: N persons on M images; of ``extras`` ``image_size`` [N, 2] is compared with the files.
        looks: of the M images.
    """
    found: list[Finding] = []
    _, first_rows = np.unique(persons.image_index, return_index=True)  # [M]: every image has a person
    total = len(looks)

    def note(code: str, which: Sequence[int], what: str, more: Callable[[int], str] = lambda image: "") -> None:
        if which:
            text, cases = f"{len(which):,} of {total:,} images {what}", cases_of(persons, first_rows[which])
            found.append(Finding(code, text, len(which), total, cases, more(which[0])))

    def those(holds: Callable[[Look], bool]) -> list[int]:
        return [image for image, look in enumerate(looks) if holds(look)]

    def searched(image: int) -> str:
        origin = persons.origin_of_image(image)
        if not os.path.isdir(origin.folder):
            return f", there is no folder {printable(origin.folder)}"
        return f", in {printable(origin.folder)}{printable(other_name(origin.folder, origin.image))}"

    note("image_missing", those(lambda look: not look.there), "are not there", searched)
    note("image_unreadable", those(lambda look: bool(look.error)), "cannot be read", lambda n: f": {looks[n].error}")
    _note_sizes(persons, looks, first_rows, note)
    if not persons.reading.upright:
        turned = those(lambda look: look.header is not None and look.header.orientation != 1)
        what = "have an EXIF orientation, and are read as stored, not as viewers show them (--exif)"
        note("image_turned", turned, what, lambda n: f", orientation {_header(looks[n]).orientation}")
    deep = those(lambda look: look.header is not None and look.header.bits == 16 and not look.error)
    note("image_of_16_bits", deep, "have 16 bits a channel, of which 8 are read (--sixteen_bits)")
    if not persons.reading.stretch:
        levels = {n: levels_left(persons.image_paths[n], persons.reading) for n in deep[:_DEEP_DECODED]}
        few = [n for n, left in levels.items() if left is not None]
        what = f"keep fewer than {FEW_LEVELS} grey levels of 16 bits (--sixteen_bits stretch; {len(levels)} looked at)"
        note("few_grey_levels", few, what, lambda n: f", {levels[n]}")
    undecoded = those(lambda look: look.there and not look.error and not look.digest)
    note("pixels_not_decoded", undecoded, "were not decoded: damage and copies are not noticed")
    return found


def _header(look: Look) -> ImageHeader:
    assert look.header is not None
    return look.header


def _note_sizes(
    persons: Persons, looks: Sequence[Look], first_rows: NDArray[np.intp], note: Callable[..., None]
) -> None:
    """Notes the images of another size than their annotations say, where they do."""
    if "image_size" not in persons.extras:
        return
    said = persons.extras["image_size"][first_rows].astype(np.float64)  # [M, 2]
    sizes = sizes_of(persons, looks)
    other = (said > 0).all(axis=1) & ~np.isnan(sizes).any(axis=1) & (said != sizes).any(axis=1)

    def more(n: int) -> str:
        (w, h), (width, height) = sizes[n], said[n]
        turn = other_way_up(_header(looks[n]), (int(height), int(width)), persons.reading.upright)
        return f", of {w:g} x {h:g} px, not {width:g} x {height:g}{turn}"

    note("image_of_another_size", np.flatnonzero(other).tolist(), "are of another size than annotated", more)
