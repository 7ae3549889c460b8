# SPDX-License-Identifier: Apache-2.0
"""Pictures to look at, and the persons' boxes in them: files, arrays or frames, the next ones opened meanwhile."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fastpose.data.boxes import PADDING, crop_boxes, inside, largest_reduction, pixel_step
from fastpose.data.images import BadImageError, image_size, printable, read_image
from fastpose.data.pixels.source import DecodeThreads
from fastpose.data.reading import Reading
from fastpose.data.video import VideoFrames
from fastpose.option import OptionError

log = logging.getLogger(__name__)

Picture = str | os.PathLike[str] | NDArray[np.uint8] | Tensor
Detector = Callable[[list[NDArray[np.uint8]]], Sequence[Any]]

AHEAD = 32  # pictures opened before they are needed, at most
DETECTED_TOGETHER = 8  # pictures that a detector gets at once
OUTSIDE = 0.05  # share of a box outside its picture from which on it is worth a word
FILES = (".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")


@dataclass(eq=False)
class Opened:
    """A picture and the P boxes in it.

    Attributes:
        name: what messages call it: its file, or its place among the images.
        path: its file; None: it has none.
        pixels: uint8 RGB [h, w, 3], reduced by `reduction`; None if it could not be read, or lies in an `ImageBatch`.
        size: (height, width) in pixels of the whole picture.
        reduction: by how much each side is reduced, see `read_image`.
        boxes: float32 [P, 4], x, y, width, height in pixels of the whole picture.
        box_scores: float32 [P], how sure the detector was; 1 if nobody said.
        whole: whether the one box is the whole picture, because none was passed: it gets no margin.
        error: why it could not be read.
    """

    name: str
    path: Path | None = None
    pixels: NDArray[np.uint8] | None = None
    size: tuple[int, int] = (0, 0)
    reduction: int = 1
    boxes: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    box_scores: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    whole: bool = False
    error: BadImageError | None = None

    def put_detected(self, boxes: Any) -> None:
        """Takes a detector's boxes, without those that are empty or outside the picture: one person in ten thousand
        pictures is no reason to stop."""
        height, width = self.size
        found = _rows(boxes, self.name)
        x, y, w, h = found[:, :4].T
        there = (w >= 1e-3) & (h >= 1e-3) & (x < width) & (y < height) & (x + w > 0) & (y + h > 0)
        self.put_boxes(found[there & np.isfinite(found).all(axis=1)])

    def put_boxes(self, boxes: Any) -> None:
        """Takes the boxes, or the whole picture for None.

        Raises:
            OptionError: they are not boxes, or lie outside the picture.
        """
        height, width = self.size
        self.whole = boxes is None
        if boxes is None:
            boxes = [[0.0, 0.0, width, height]]
        self.boxes, self.box_scores = as_boxes(boxes, self.name)
        for x, y, w, h in self.boxes.tolist():
            if x >= width or y >= height or x + w <= 0 or y + h <= 0:
                raise OptionError(
                    "box",
                    f"{x:g} {y:g} {w:g} {h:g} lies outside {self.name}, which is {width} pixels wide and {height} high",
                )


class BoxDoubts:
    """Says once of each kind what makes boxes doubtful: they are taken as they are."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def look(self, picture: Opened) -> None:
        """Looks at the boxes of a picture."""
        height, width = picture.size
        if picture.whole:
            self._say(
                "whole", f"no boxes: {picture.name}, as every picture without one, is taken for one person as a whole"
            )
            return
        for box in picture.boxes.tolist():
            x, y, w, h = box
            _, _, seen_w, seen_h = inside(box, width, height)
            outside = 1 - seen_w * seen_h / (w * h)
            if outside <= OUTSIDE:
                continue
            words = f"box {x:g} {y:g} {w:g} {h:g} of {picture.name}, which is {width} pixels wide and {height} high, "
            if 0 <= x < w <= width and 0 <= y < h <= height and (x > 0 or y > 0):
                self._say("corners", words + "looks like x1 y1 x2 y2: boxes are x, y, width and height, in pixels")
            elif seen_w * seen_h > 0:
                self._say("outside", words + f"leaves the picture with {outside:.0%} of its area")

    def _say(self, kind: str, text: str) -> None:
        if kind not in self._said:
            self._said.add(kind)
            log.warning("%s", text)


_BOXES = "expected x, y, width and height in pixels, [P, 4], or with a score [P, 5]"


def as_boxes(boxes: Any, name: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Boxes [P, 4] and scores [P], 1 where there are none, of what somebody passed as boxes of the picture `name`.

    Raises:
        OptionError: they are not [P, 4], or [P, 5] with scores; or a number is not finite, a side not positive.
    """
    rows = _rows(boxes, name)
    with np.errstate(over="ignore"):
        numbers = rows.astype(np.float32)  # in which a side may be 0 that is not in float64
    bad = ~((np.abs(numbers[:, :4]) < 1e9).all(1) & (numbers[:, 2:4] > 0).all(1) & np.isfinite(numbers[:, 4]))
    if bad.any():
        shown = " ".join(f"{number:g}" for number in rows[bad][0, :4])
        raise OptionError("boxes", f"{name}: {_BOXES}, finite and with positive sides, got {shown}")
    return numbers[:, :4], numbers[:, 4]


def _rows(boxes: Any, name: str) -> NDArray[np.float64]:
    """[P, 5], x, y, width, height and score as somebody passed them; OptionError if they have another shape."""
    try:
        array = np.array(boxes.detach().cpu().double().numpy() if isinstance(boxes, Tensor) else boxes, np.float64)
    except (TypeError, ValueError):
        raise OptionError("boxes", f"{name}: {_BOXES}, got {str(boxes)[:60]}") from None
    if array.size == 0:
        return np.zeros((0, 5))
    if array.ndim == 3 and len(array) == 1:
        array = array[0]
    array = array[None] if array.ndim == 1 else array
    if array.ndim != 2 or array.shape[1] not in (4, 5):
        raise OptionError("boxes", f"{name}: {_BOXES}, got {list(array.shape)}")
    return array if array.shape[1] == 5 else np.concatenate([array, np.ones((len(array), 1))], axis=1)


@dataclass(frozen=True, eq=False)
class Opener:
    """Opens pictures in threads.

    Attributes:
        pool: the threads.
        reading: how files become pixels.
        size: (h, w) of the network's input.
        reduce: decode a file smaller if all its crops shrink it anyway.
        skip: a file that cannot be read becomes an `Opened` with its error; otherwise it raises.
        padding: how much larger than a box its crop is, factor.
    """

    pool: DecodeThreads
    reading: Reading
    size: tuple[int, int]
    reduce: bool
    skip: bool
    padding: float = PADDING
    doubts: BoxDoubts = field(default_factory=BoxDoubts)

    def opened(
        self, images: Iterable[Picture], boxes: Iterable[Any] | Detector | None, *, label: str, ahead: int = AHEAD
    ) -> Iterator[Opened]:
        """The pictures in order, each with its boxes; up to `ahead` of them are opened before they are asked for.

        Args:
            images: files or uint8 RGB [H, W, 3].
            boxes: of each image; None: the whole picture each; or what finds them.
            label: what messages call images that are no files, with their number.

        Raises:
            BadImageError: a file cannot be read, and bad ones are not skipped.
            OptionError: an image or a box is not what it should be, or there are more of one than of the other.
        """
        detector = boxes if callable(boxes) else None
        if detector is None:
            each = ((image, None) for image in images) if boxes is None else _paired(images, boxes)  # type: ignore[arg-type]
            yield from self._ahead(each, label, ahead, wait_for_boxes=False)
            return
        pictures = self.without_boxes(images, label=label, ahead=ahead)
        while together := list(islice(pictures, min(DETECTED_TOGETHER, ahead))):
            readable = [picture for picture in together if picture.pixels is not None]
            for picture, found in zip(readable, detected(detector, readable), strict=True):
                picture.put_detected(found)
                self.doubts.look(picture)
            yield from together

    def without_boxes(self, images: Iterable[Picture], *, label: str, ahead: int = AHEAD) -> Iterator[Opened]:
        """The pictures in order, at full size, for boxes that are only known later; see `opened`."""
        return self._ahead(((image, None) for image in images), label, ahead, wait_for_boxes=True)

    def _ahead(
        self, each: Iterator[tuple[Picture, Any]], label: str, ahead: int, *, wait_for_boxes: bool
    ) -> Iterator[Opened]:
        pending: deque[Future[Opened]] = deque()
        numbered = enumerate(each)
        try:
            while True:
                for number, (image, boxes) in islice(numbered, ahead - len(pending)):
                    pending.append(self.pool.submit(self._open, f"{label}[{number}]", image, boxes, wait_for_boxes))
                if not pending:
                    return
                picture = pending.popleft().result()
                if picture.error is None and not wait_for_boxes:
                    self.doubts.look(picture)
                yield picture
        finally:
            for future in pending:
                future.cancel()

    def _open(self, name: str, image: Picture, boxes: Any, wait_for_boxes: bool) -> Opened:
        if isinstance(image, (str, os.PathLike)):
            picture = Opened(printable(image), Path(image))
            try:
                if wait_for_boxes or not self.reduce:
                    picture.pixels = read_image(image, 1, self.reading)
                    picture.size = picture.pixels.shape[:2]
                else:
                    picture.size = image_size(image, self.reading)
            except BadImageError as error:
                return self._failed(picture, error)
        else:
            picture = Opened(name, pixels=as_picture(image, name))
            assert picture.pixels is not None
            picture.size = picture.pixels.shape[:2]
        if wait_for_boxes:
            return picture
        picture.put_boxes(boxes)
        if picture.pixels is None:
            if len(picture.boxes):
                scale = crop_boxes(picture.boxes, self.size[1] / self.size[0], 1.0 if picture.whole else self.padding)[
                    1
                ]
                picture.reduction = int(largest_reduction(pixel_step(scale.astype(np.float32), self.size).min()))
            try:
                picture.pixels = read_image(image, picture.reduction, self.reading)  # type: ignore[arg-type]
            except BadImageError as error:
                return self._failed(picture, error)
        return picture

    def _failed(self, picture: Opened, error: BadImageError) -> Opened:
        if not self.skip:
            raise error
        return Opened(picture.name, picture.path, error=error)


def _paired(images: Iterable[Picture], boxes: Iterable[Any]) -> Iterator[tuple[Picture, Any]]:
    may_go_on = isinstance(boxes, Iterator)  # as itertools.repeat does
    images, boxes = iter(images), iter(boxes)
    end = object()
    number = 0
    while (image := next(images, end)) is not end:
        if (of_image := next(boxes, end)) is end:
            raise OptionError("boxes", f"expected an entry for each image, got {number} and more images")
        number += 1
        yield image, of_image  # type: ignore[misc]
    if not may_go_on and next(boxes, end) is not end:
        raise OptionError("boxes", f"expected an entry for each of {number} images, got more")


def detected(detector: Detector, pictures: Sequence[Opened]) -> list[Any]:
    """What a detector finds in each of these pictures; OptionError if it is not an entry for each."""
    returned = detector([picture.pixels for picture in pictures if picture.pixels is not None])
    found = list(returned) if isinstance(returned, Iterable) else []
    if len(found) != len(pictures):
        raise OptionError(
            "detector", f"expected the boxes of each of {len(pictures)} pictures, got {len(found)} entries"
        )
    return found


def as_picture(image: Any, name: str) -> NDArray[np.uint8]:
    """uint8 RGB [H, W, 3] of an array or a tensor.

    Raises:
        OptionError: it is something else.
    """
    if image is None:
        raise OptionError("images", f"{name} is None, which cv2.imread returns for a file that it cannot read")
    array = image.detach().cpu().numpy() if isinstance(image, Tensor) else image
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        kind = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else type(image).__name__
        raise OptionError("images", f"{name}: expected a file, or uint8 RGB [H, W, 3], got {kind}")
    if array.size == 0:
        raise OptionError("images", f"{name}: expected at least one pixel, got {list(array.shape)}")
    return array


def listed(images: Any) -> Iterable[Picture]:
    """One image or many as many: a folder is its pictures by name, [N, H, W, 3] its N pictures. What an iterator yields
    is copied, as it may be one buffer that the next frame is written into.

    Raises:
        OptionError: a folder without pictures, or no images at all.
    """
    if isinstance(images, (str, os.PathLike)):
        return pictures_in(Path(images)) if Path(images).is_dir() else [images]
    if isinstance(images, (np.ndarray, Tensor)):
        return images if images.ndim == 4 else [images]
    if images is None or not isinstance(images, Iterable):
        raise OptionError("images", f"expected files, arrays, a folder or what yields them, got {images!r}"[:200])
    return map(_copied, images) if isinstance(images, Iterator) else images


def label_of(images: Any) -> str:
    """What messages call these images."""
    return f"{images.name}, frame " if isinstance(images, VideoFrames) else "images"


def _copied(image: Picture) -> Picture:
    return image.copy() if isinstance(image, np.ndarray) else image.clone() if isinstance(image, Tensor) else image


def pictures_in(folder: Path, option: str = "images") -> list[Path]:
    """The pictures in a folder, by name.

    Raises:
        OptionError: there are none; names the option that names the folder.
    """
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in FILES and path.is_file())
    if not found:
        raise OptionError(option, f"no pictures in {folder}: expected names ending in {', '.join(FILES)}")
    return found
