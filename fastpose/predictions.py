# SPDX-License-Identifier: Apache-2.0
"""What `fastpose predict` writes of the persons that it found: JSON, COCO's results, CSV, pictures and videos."""

from __future__ import annotations

import csv
import io
from collections import deque
from collections.abc import Collection
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2

from fastpose.data.pixels.source import DecodeThreads
from fastpose.data.video import VideoFile
from fastpose.engine.drawing import is_found
from fastpose.files import write_bytes, write_json, write_text
from fastpose.people import People, image_id_of

Kind = Literal["json", "coco", "csv", "pictures"]
KINDS: tuple[Kind, ...] = ("json", "coco", "csv", "pictures")
FILES = {"json": "predictions.json", "coco": "keypoints_results.json", "csv": "predictions.csv"}
PICTURES_AHEAD = 16  # that wait for a thread to write them, at most


@dataclass(frozen=True)
class Found:
    """The persons of a picture or of a frame.

    Attributes:
        image: the picture or the video, as it was named.
        people: the persons.
        drawn: the picture or video that they are drawn into; None: none.
        frame: of a video, from 0; None of a picture.
        seconds: from its beginning.
    """

    image: str
    people: People
    drawn: Path | None
    frame: int | None = None
    seconds: float | None = None


class Predictions:
    """Takes what was found, draws it at once, and writes the rest in the end.

    Args:
        out: folder to write to; made when there is something to write.
        kinds: what to write.
        least_score: of a joint that is drawn.
    """

    def __init__(self, out: Path, kinds: Collection[Kind], least_score: float) -> None:
        self.out, self.kinds, self.least_score = out, kinds, least_score
        self.found: list[Found] = []
        self.drawn: dict[Path, None] = {}
        self._threads = DecodeThreads(2)
        self._writing: deque[Future[None]] = deque()

    def add(self, found: Found, video: VideoFile | None = None) -> None:
        """Takes a picture's persons and draws them, into a file of its own or into a video."""
        people = found.people
        if found.drawn is not None:
            self.out.mkdir(parents=True, exist_ok=True)
            drawn = people.draw(least_score=self.least_score)
            if video is not None:
                video.write(drawn)
            else:
                while len(self._writing) >= PICTURES_AHEAD:
                    self._writing.popleft().result()
                self._writing.append(self._threads.submit(_write_picture, found.drawn, drawn))
            self.drawn[found.drawn] = None
        # Its pixels are drawn and not needed any more.
        self.found.append(Found(found.image, people.without_pixels(), found.drawn, found.frame, found.seconds))

    @property
    def unseen(self) -> int:
        """How many are drawn nowhere, as none of their joints was found."""
        drawn = (found.people.scores for found in self.found if found.drawn is not None)
        return sum(int((~is_found(scores.numpy(), self.least_score).any(axis=1)).sum()) for scores in drawn)

    @property
    def persons(self) -> int:
        """How many were found."""
        return sum(len(found.people) for found in self.found)

    def write(self) -> list[Path]:
        """Waits for the pictures, writes the files, and returns all that was written."""
        while self._writing:
            self._writing.popleft().result()
        self.out.mkdir(parents=True, exist_ok=True)
        written = []
        for kind, contents in (("json", self.entries), ("coco", self.coco_results)):
            if kind in self.kinds:
                written.append(self.out / FILES[kind])
                write_json(written[-1], contents())
        if "csv" in self.kinds:
            written.append(self.out / FILES["csv"])
            write_text(written[-1], self.table())
        return [*self.drawn, *written]

    def entries(self) -> list[dict[str, Any]]:
        """An entry per person: image, box, score, joints by name, and what else there is."""
        entries = []
        for found in self.found:
            people = found.people
            for row, (box, score) in enumerate(zip(people.boxes.tolist(), people.person_scores.tolist(), strict=True)):
                joints = {
                    name: {"x": x, "y": y, "score": value}
                    for name, (x, y), value in zip(
                        people.names, people.keypoints[row].tolist(), people.scores[row].tolist(), strict=True
                    )
                }
                entry: dict[str, Any] = {"image": found.image, "box": box, "score": score, "joints": joints}
                if found.frame is not None:
                    entry |= {"frame": found.frame, "seconds": found.seconds}
                if people.ids is not None:
                    entry["id"] = int(people.ids[row])
                if found.drawn is not None:
                    entry["drawn"] = str(found.drawn)
                entries.append(entry)
        return entries

    def coco_results(self) -> list[dict[str, Any]]:
        """In COCO's results format, with each picture's file_name: image_id is the number that its name is, if all have
        such names and no two the same, or of one video alone the frame's, from 0; else the place among all pictures and
        frames, from 1."""
        ids = [image_id_of(Path(found.image)) if found.frame is None else found.frame for found in self.found]
        if not all(isinstance(one, int) for one in ids) or len(set(ids)) < len(ids):
            ids = list(range(1, len(ids) + 1))
        return [
            {**entry, "file_name": Path(found.image).name} | ({} if found.frame is None else {"frame": found.frame})
            for found, image_id in zip(self.found, ids, strict=True)
            for entry in found.people.to_coco(image_id)
        ]

    def table(self) -> str:
        """As CSV: a row per person, three columns per joint."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        names = self.found[0].people.names if self.found else ()
        joints = [f"{name}_{part}" for name in names for part in ("x", "y", "score")]
        writer.writerow(["image", "frame", "id", "box_x", "box_y", "box_width", "box_height", "score", *joints])
        for found in self.found:
            people = found.people
            for row, entry in enumerate(people.to_coco(0)):
                place = ["" if found.frame is None else found.frame, "" if people.ids is None else int(people.ids[row])]
                numbers = [*entry["bbox"], entry["score"], *entry["keypoints"]]
                writer.writerow([found.image, *place, *(f"{number:.6g}" for number in numbers)])
        return text.getvalue()


def _write_picture(path: Path, picture: Any) -> None:
    # The lightest compression: ten times as fast as the usual one for a few percent more bytes.
    _, data = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 1])
    write_bytes(path, data.tobytes())
