# SPDX-License-Identifier: Apache-2.0
"""Videos: frames out of files and cameras, and frames into files, by OpenCV and the FFmpeg in it."""

from __future__ import annotations

import itertools
import operator
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
from numpy.typing import NDArray

from fastpose.data.ahead import PreparedAhead
from fastpose.data.images import BadImageError, printable
from fastpose.files import part_of

FILES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".ts")
UNKNOWN_FPS = 30.0
FRAMES_AHEAD = 8


class VideoFrames(Iterator[NDArray[np.uint8]]):
    """The frames of a video file or a camera, uint8 RGB [H, W, 3], upright; the next ones are decoded meanwhile.

    Args:
        source: the file; or the number of a camera, from 0.

    Attributes:
        name: for messages.
        fps: frames per second; 30 if the source does not say.
        count: frames in the file, as it says itself, which may be off by some; 0: not known.
        size: (height, width).

    Raises:
        BadImageError: there is no such file or camera, or it cannot be decoded.
    """

    def __init__(self, source: str | os.PathLike[str] | int) -> None:
        camera = not isinstance(source, (str, os.PathLike))
        source = operator.index(source) if camera else source  # type: ignore[arg-type]
        self.name = f"camera {source}" if camera else printable(source)  # type: ignore[arg-type]
        if not camera and not Path(source).is_file():  # type: ignore[arg-type]
            raise BadImageError(f"{self.name}: no such file")
        self._capture = cv2.VideoCapture(source if camera else os.fspath(source))  # type: ignore[arg-type]
        if not self._capture.isOpened():
            raise BadImageError(f"{self.name}: OpenCV cannot open it" + ": is it a video?" * (not camera))
        rate = float(self._capture.get(cv2.CAP_PROP_FPS))
        self.fps = rate if 0.1 < rate < 1000.0 else UNKNOWN_FPS
        self.count = 0 if camera else max(int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0)
        # One thread takes the frames one after the other.
        self._frames: PreparedAhead[NDArray[np.uint8] | None] = PreparedAhead(
            itertools.repeat(self._read), 1 if camera else FRAMES_AHEAD
        )
        first = next(self._frames)
        if first is None:
            self.close()
            raise BadImageError(f"{self.name}: no frame of it can be decoded")
        self._first: NDArray[np.uint8] | None = first
        self.size: tuple[int, int] = first.shape[:2]

    def _read(self) -> NDArray[np.uint8] | None:
        there, frame = self._capture.read()
        return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB) if there else None  # type: ignore[return-value]

    def __next__(self) -> NDArray[np.uint8]:
        frame, self._first = self._first, None
        if frame is None:
            frame = next(self._frames)
        if frame is None:
            self.close()
            raise StopIteration
        return frame

    def close(self) -> None:
        """Ends the thread and lets go of the file or camera."""
        self._frames.close()
        self._capture.release()


class VideoFile(AbstractContextManager["VideoFile"]):
    """A video that is written frame by frame, beside its place and put there when it ends, also where it ends early or
    by an error: what is done stays.

    Args:
        path: the .mp4 file.
        fps: frames per second.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self.path, self.fps = path, fps
        self._part = part_of(path)
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)

    def write(self, frame: NDArray[np.uint8]) -> None:
        """Appends a frame, uint8 RGB [H, W, 3]; all have the first one's size."""
        height, width = frame.shape[:2]
        even = (width + width % 2, height + height % 2)  # what codecs want
        if self._writer is None:
            self._size = even
            self._writer = cv2.VideoWriter(str(self._part), cv2.VideoWriter.fourcc(*"mp4v"), self.fps, even)
            if not self._writer.isOpened():
                raise OSError(f"{self.path}: OpenCV cannot write a video there")
        if even != self._size:
            raise OSError(
                f"{self.path}: expected frames of {self._size[0]} x {self._size[1]} px, got {width} x {height}"
            )
        if even != (width, height):
            frame = cv2.copyMakeBorder(frame, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)  # type: ignore[assignment]
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._writer is None:
            return
        self._writer.release()
        with nullcontext() if kind is None else suppress(OSError):
            os.replace(self._part, self.path)
