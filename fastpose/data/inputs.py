# SPDX-License-Identifier: Apache-2.0
"""What a command is to look at: files, folders, patterns, videos, cameras; and a file of the boxes in them."""

from __future__ import annotations

import glob
import posixpath
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fastpose.data.annotation_rows import AnnotationError, as_json, read_json
from fastpose.data.images import printable
from fastpose.data.opened import pictures_in
from fastpose.data.video import FILES as VIDEOS
from fastpose.files import read_file
from fastpose.option import OptionError

Box = list[float]  # x, y, width, height in pixels, and the score


class Inputs(NamedTuple):
    """Pictures in one go, then videos one after the other; a number is a camera's."""

    pictures: list[Path]
    videos: list[Path | int]


def find_inputs(words: Sequence[str]) -> Inputs:
    """What the words of option `image` mean: a picture, a folder of pictures, a pattern (*.jpg), a video's file, or the
    number of a camera. A picture that is named twice is looked at twice.

    Raises:
        OptionError: there is no such file, or nothing in a folder or for a pattern.
    """
    inputs = Inputs([], [])
    for word in words:
        path = Path(word).expanduser()
        if path.is_dir():
            found = pictures_in(path, "image")
        elif path.exists() or not (word.isdecimal() or glob.has_magic(word)):
            found = [path]
        elif word.isdecimal():
            inputs.videos.append(int(word))
            continue
        else:
            found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True)) if Path(name).is_file()]
        if not found:
            raise OptionError("image", f"no file fits {word}")
        for file in found:
            if not file.exists():
                raise OptionError("image", f"no file {printable(file)}")
            if file.suffix.lower() in VIDEOS:
                inputs.videos.append(file)
            else:
                inputs.pictures.append(file)
    return inputs


class BoxFile:
    """Boxes of persons, by picture.

    Either a detector's results in COCO's format, a JSON list of {"image_id" or "file_name", "bbox", "score"}, of which
    other categories than 1 are left out, or text with a box per line, ``NAME X Y WIDTH HEIGHT [SCORE]``, separated by
    commas, tabs or spaces; without NAME a box is in every picture. A picture's NAME is its file's, with or without
    folders before it; an image_id is the number that its name is (000000000139.jpg).

    Args:
        file: the file.
        least_score: boxes with a lower one are left out.

    Raises:
        AnnotationError: it has another form; names the line or box.
        OSError: it cannot be read.
    """

    def __init__(self, file: Path, least_score: float = 0.0) -> None:
        self.file = file
        self._everywhere: list[Box] = []
        self._of: dict[str | int, list[Box]] = {}
        self._used: set[str | int] = set()
        reads = self._json if file.suffix.lower() == ".json" else self._text
        for name, box in reads():
            if box[4] >= least_score:
                (self._everywhere if name is None else self._of.setdefault(name, [])).append(box)

    def _json(self) -> list[tuple[str | int | None, Box]]:
        found = read_json(self.file)
        if not isinstance(found, list):
            raise AnnotationError(f"{self.file}: must be a list of boxes, got {as_json(found, 40)}")
        boxes: list[tuple[str | int | None, Box]] = []
        for row, record in enumerate(found):
            where = f"{self.file}, box {row}"
            if not isinstance(record, dict):
                raise AnnotationError(f"{where}: expected an object, got {as_json(record, 40)}")
            if record.get("category_id", 1) != 1:
                continue
            name = record.get("file_name", record.get("image_id"))
            if isinstance(name, bool) or not isinstance(name, (str, int)):
                raise AnnotationError(f"{where}: image_id: expected a number or a file's name, got {as_json(name, 40)}")
            boxes.append((_normal(name), _numbers(record.get("bbox"), record.get("score", 1.0), where)))
        return boxes

    def _text(self) -> list[tuple[str | int | None, Box]]:
        try:
            lines = read_file(self.file).decode("utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise AnnotationError(f"{self.file}: expected text in UTF-8, or a file ending in .json: {error}") from error
        boxes: list[tuple[str | int | None, Box]] = []
        for number, line in enumerate(lines, 1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            fields = [
                field.strip() for field in re.split(r"[,\t]" if re.search(r"[,\t]", line) else r"\s+", line.strip())
            ]
            # Of five numbers the first is a name unless the last is a score: no person is a pixel high.
            named = len(fields) == 6 or not all(map(_is_number, fields))
            named = named or (len(fields) == 5 and not 0.0 <= float(fields[4]) <= 1.0)
            name: str | int | None = _normal(fields.pop(0)) if named else None
            if len(fields) not in (4, 5) or not all(map(_is_number, fields)):
                raise AnnotationError(
                    f"{self.file}, line {number}: expected NAME X Y WIDTH HEIGHT [SCORE], separated by commas or "
                    f"tabs if a name has spaces, got {line.strip()[:80]!r}"
                )
            values = [float(field) for field in fields]
            boxes.append(
                (name, _numbers(values[:4], values[4] if len(values) == 5 else 1.0, f"{self.file}, line {number}"))
            )
        return boxes

    def of(self, picture: Path | None) -> list[Box]:
        """The boxes of a picture; of none in particular, those of every picture."""
        found = list(self._everywhere)
        if picture is None:
            return found
        whole = picture.resolve()
        names: list[str | int] = [whole.as_posix()]
        names += ["/".join(whole.parts[-count:]) for count in range(len(whole.parts) - 1, 0, -1)]
        names += [picture.name]  # of a link
        names += [int(picture.stem)] if picture.stem.isdecimal() and len(picture.stem) < 19 else []
        for name in dict.fromkeys(names):
            if name in self._of:
                self._used.add(name)
                found += self._of[name]
        return found

    @property
    def unused(self) -> list[str]:
        """The pictures that have boxes, and of which nobody asked for them."""
        return [str(name) for name in self._of if name not in self._used]


def _normal(name: str | int) -> str | int:
    """A picture's name as it is looked up: ./a.jpg -> a.jpg, a\\b.jpg -> a/b.jpg, 000785 -> 785"""
    if isinstance(name, int) or name.isdecimal():
        return int(name)
    return posixpath.normpath(name.replace("\\", "/"))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _numbers(box: Any, score: Any, where: str) -> Box:
    numbers = [*box, score] if isinstance(box, list) and len(box) == 4 else []
    if not numbers or not all(
        isinstance(n, (int, float)) and not isinstance(n, bool) and abs(n) < 1e9 for n in numbers
    ):
        raise AnnotationError(
            f"{where}: expected a box of 4 numbers and a score, got {as_json(box, 40)}, {as_json(score, 20)}"
        )
    if not min(numbers[2:4]) > 0:
        raise AnnotationError(f"{where}: expected a positive width and height, got {as_json(box, 60)}")
    return [float(number) for number in numbers]
