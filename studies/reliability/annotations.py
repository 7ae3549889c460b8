# SPDX-License-Identifier: Apache-2.0
"""What the readers of annotation files do with hostile and odd ones: `python -m studies.reliability.annotations`.

Small sound files (COCO's annotations, a detector's boxes, MPII's JSON) are changed: each field to each of a list of
values, and their bytes. Each is read by the real reader in a process with limits to time and memory; who is read from
COCO's files is scored with perfect predictions, whose AP must be 100. A table says how often a file was accepted,
refused in one line that names it, ended in a traceback, or took too much of the processor's time or of memory.
"""

from __future__ import annotations

import argparse
import collections
import copy
import json
import random
import re
import resource
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fastpose.skeletons import COCO

SECONDS, MEGABYTES = 1.0, 300.0  # of the processor, and above the file's own size, that a refusal may take
HANG = 20.0  # seconds after which a reader is ended
ABSENT = object()
HUGE = 10**400  # an integer that no float can hold
VALUES: dict[str, Any] = {
    "absent": ABSENT,
    "null": None,
    "true": True,
    "0": 0,
    "-1": -1,
    "1.5": 1.5,
    "2^63": 2**63,
    "1e300": 1e300,
    "-1e300": -1e300,
    "10^400": HUGE,
    "NaN": float("nan"),
    "Infinity": float("inf"),
    "empty text": "",
    "number as text": "1",
    "control characters": "a\n\x00\ud800",
    "long text": "x" * 1_000_000,
    "[]": [],
    "{}": {},
    "nested": [[[[1, [2]]]]],
    "90 deep": json.loads("[" * 90 + "]" * 90),
    "long list": [0] * 100_000,
    "list of texts": ["x" * 1000] * 51,
    "above": "../../../../etc/passwd",
    "absolute": "/etc/passwd",
}
# Where they go: names and rows from the top.
FIELDS: dict[str, list[tuple[str | int, ...]]] = {
    "coco": [
        *[(name,) for name in ("images", "categories", "annotations")],
        *[(name, 0) for name in ("images", "categories", "annotations")],
        *[("images", 0, name) for name in ("id", "file_name", "width", "height")],
        *[("categories", 0, name) for name in ("id", "name", "keypoints")],
        *[("annotations", 0, name) for name in ("id", "image_id", "category_id", "bbox", "area")],
        *[("annotations", 0, name) for name in ("iscrowd", "num_keypoints", "keypoints")],
        *[("annotations", 0, "bbox", 0), ("annotations", 0, "bbox", 2)],
        *[("annotations", 0, "keypoints", 0), ("annotations", 0, "keypoints", 2)],
    ],
    "detections": [(0,), *[(0, name) for name in ("image_id", "category_id", "bbox", "score")], (0, "bbox", 3)],
    "mpii": [
        (0,),
        *[(0, name) for name in ("image", "center", "scale", "joints", "joints_vis")],
        *[(0, "center", 1), (0, "joints", 0), (0, "joints", 0, 1), (0, "joints_vis", 0)],
    ],
}


def sound() -> dict[str, Any]:
    """A small sound file of each kind: two pictures of 96 x 96 px, two persons each."""
    rng = np.random.default_rng(0)
    points = rng.integers(10, 80, (4, 17, 2))
    images = [{"id": n, "file_name": f"{n}.png", "width": 96, "height": 96} for n in (1, 2)]
    annotations = [
        {
            "id": row + 1,
            "image_id": row // 2 + 1,
            "category_id": 1,
            "bbox": [5.0, 5.0, 80.0, 80.0],
            "area": 3000.0,
            "iscrowd": 0,
            "num_keypoints": 17,
            "keypoints": np.column_stack([pose, np.full(17, 2)]).ravel().tolist(),
        }
        for row, pose in enumerate(points)
    ]
    boxes = [{"image_id": n, "category_id": 1, "bbox": [5.0, 5.0, 80.0, 80.0], "score": 0.5} for n in (1, 2)]
    mpii = [
        {"image": "1.png", "center": [40.0, 40.0], "scale": 0.4, "joints": p[:16].tolist(), "joints_vis": [1] * 16}
        for p in points
    ]
    categories = [{"id": 1, "name": "person", "keypoints": list(COCO.joints)}]
    return {
        "coco": {"images": images, "categories": categories, "annotations": annotations},
        "detections": boxes,
        "mpii": mpii,
    }


def changed(contents: Any, field: tuple[str | int, ...], value: Any) -> Any:
    """A copy with another value in one place, or none."""
    contents = copy.deepcopy(contents)
    *parents, last = field
    place = contents
    for name in parents:
        place = place[name]
    if value is ABSENT:
        del place[last]
    else:
        place[last] = value
    return contents


def as_bytes(contents: Any) -> bytes:
    return json.dumps(contents).encode()


def files(flips: int) -> Iterator[tuple[str, str, bytes]]:
    """Kind, what was done to it, and the bytes."""
    rng = random.Random(0)
    for kind, contents in sound().items():
        whole = as_bytes(contents)
        yield kind, "sound", whole
        for field in FIELDS[kind]:
            for name, value in VALUES.items():
                yield kind, f"fields: {'.'.join(map(str, field))} = {name}", as_bytes(changed(contents, field, value))
        for part in (0, 1, 10, len(whole) // 2, len(whole) - 1):
            yield kind, f"bytes: cut at {part}", whole[:part]
        for number in range(flips):
            place = rng.randrange(len(whole))
            flipped = whole[:place] + bytes([whole[place] ^ (1 << rng.randrange(8))]) + whole[place + 1 :]
            yield kind, f"bytes: flip {number}", flipped
        for encoding in ("utf-8-sig", "utf-16", "utf-32"):
            yield kind, f"bytes: {encoding}", whole.decode().encode(encoding)
        for name, content in {
            "NUL": whole + b"\x00",
            "only NUL": bytes(1 << 20),
            "no UTF-8": whole.replace(b"png", b"\xff\xfeg").replace(b"person", b"\xc3("),
            "HTML": b"<!DOCTYPE html><html></html>",
            "LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            "ZIP": b"PK\x03\x04" + bytes(1000),
            "a name twice": re.sub(rb'("bbox|"scale")', rb'"x": 1, "x": 2, \1', whole),
            "digits": b"[" + b"9" * 10_000_000 + b"]",
            "text at the top": b'"' + b"x" * 10_000_000 + b'"',
            "number at the top": b"7",
            "open brackets": b"[" * 50_000_000,
            "open objects": b'{"a":' * 5_000_000,
            "nested inside": as_bytes(contents)[:-1]
            + (b"," if kind != "coco" else b',"a":')
            + b"[" * 9999
            + b"]" * 9999,
            "a million empty records": b"[" + b"{}," * 1_000_000 + b"{}]",
            "a million nulls": b'{"images": [' + b"null," * 1_000_000 + b"null]}",
            "a million empty images": b'{"categories": [{"id": 1}], "images": [' + b"{}," * 1_000_000 + b"{}]}",
        }.items():
            yield kind, f"bytes: {name}", content


# ---- the process that reads ----


def read(kind: str, file: Path) -> tuple[int, float]:
    """How many persons a file has, and the AP of perfect predictions of them (100 if there is none to compute)."""
    from fastpose.data.coco import ApScorer, read_coco
    from fastpose.data.mpii import read_mpii

    root = file.parent
    if kind == "mpii":
        return len(read_mpii(file, root)), 100.0
    if kind == "detections":
        return len(read_coco(root / "sound.json", root, (64, 64), detections=file)), 100.0
    persons = read_coco(file, root, (64, 64), for_evaluation=True)
    scorer = ApScorer(persons, persons.truth)  # type: ignore[arg-type]
    scorer.needs(to_train=True)
    seen = np.ones(len(persons), bool)
    values = scorer.score(persons.keypoints, np.ones(persons.visible.shape, np.float32), seen)
    scorer.write(root, persons.keypoints, np.ones(persons.visible.shape, np.float32))
    assert values is not None
    return len(persons), values["AP"]


def peak() -> float:
    """The largest memory of this process since the last call, MB."""
    high = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert high is not None
    Path("/proc/self/clear_refs").write_text("5")
    return int(high[1]) / 1000


def work() -> None:
    """Reads the files named on the standard input, one per line, and answers with a line for each."""
    read("coco", Path(sys.argv[2]))  # imports are not to be measured
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, resource.RLIM_INFINITY))
    print("{}", flush=True)
    for line in sys.stdin:
        kind, name = json.loads(line)
        file = Path(name)
        peak()
        before, start = peak(), time.process_time()
        answer: dict[str, Any] = {"outcome": "accepted", "text": ""}
        try:
            persons, ap = read(kind, file)
            answer["text"] = f"{persons} persons, AP {ap:.1f}"
            if abs(ap - 100) > 1e-6:
                answer["outcome"] = "silently wrong"
        except (ValueError, OSError) as error:  # what commands print as one line
            one_line = "\n" not in str(error) and len(str(error)) < 2000
            named = file.name in str(error) or "annotated joints" in str(error)
            answer = {"outcome": "refused in a line" if one_line and named else "traceback", "text": str(error)[:300]}
        except Exception as error:  # the trial is about these
            answer = {"outcome": "traceback", "text": f"{type(error).__name__}: {error}"[:300]}
        answer |= {"seconds": time.process_time() - start, "megabytes": peak() - before - file.stat().st_size / 1e6}
        print(json.dumps(answer), flush=True)


# ---- the process that counts ----


class Reader:
    """A process that reads files, started again after one that ended it."""

    def __init__(self, whole: Path) -> None:
        self.command = [sys.executable, "-m", "studies.reliability.annotations", "--work", str(whole)]
        self.process: subprocess.Popen[str] | None = None

    def ask(self, kind: str, file: Path) -> dict[str, Any]:
        if self.process is None:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            if self._line(300) is None:
                raise RuntimeError("the reader does not begin")
        assert self.process.stdin is not None
        print(json.dumps([kind, str(file)]), file=self.process.stdin, flush=True)
        if (line := self._line(HANG)) is None:
            outcome = "hang" if self.process.poll() is None else f"ended with {self.process.returncode}"
            self.end()
            return {"outcome": outcome, "text": "", "seconds": HANG, "megabytes": 0.0}
        return json.loads(line)

    def _line(self, seconds: float) -> str | None:
        assert self.process is not None
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        return self.process.stdout.readline() or None if ready else None

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flips", type=int, default=100, help="files with one bit flipped, of each kind")
    parser.add_argument("--show", default="", help="show the text of these outcomes, a regular expression")
    options = parser.parse_args()
    counts: dict[str, collections.Counter[str]] = {}
    worst = {"seconds": (0.0, ""), "megabytes": (0.0, "")}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for number in (1, 2):
            cv2.imwrite(str(root / f"{number}.png"), np.full((96, 96, 3), 90, np.uint8))
        (root / "sound.json").write_bytes(as_bytes(sound()["coco"]))
        reader = Reader(root / "sound.json")
        for kind, what, content in files(options.flips):
            file = root / "tried.json"
            file.write_bytes(content)
            answer = reader.ask(kind, file)
            outcome = answer["outcome"]
            if outcome == "refused in a line":
                for name, limit in (("seconds", SECONDS), ("megabytes", MEGABYTES)):
                    worst[name] = max(worst[name], (answer[name], f"{kind}, {what}"))
                    if answer[name] > limit:
                        outcome = f"refused in more than {limit:g} {name}"
            counts.setdefault(f"{kind}, {what.partition(':')[0]}", collections.Counter())[outcome] += 1
            good = outcome in ("accepted", "refused in a line")
            if not good or (options.show and re.search(options.show, outcome)):
                text = f"{outcome}: {kind}, {what}: {answer['text']}"
                print(text.encode(errors="backslashreplace").decode(), flush=True)
        reader.end()
    outcomes = sorted({outcome for row in counts.values() for outcome in row})
    print("\n" + " | ".join(["files", "tried", *outcomes]))
    for name, row in counts.items():
        print(" | ".join([name, str(row.total()), *(str(row[outcome]) for outcome in outcomes)]))
    total = sum((row for row in counts.values()), collections.Counter[str]())
    print(" | ".join(["all", str(total.total()), *(str(total[outcome]) for outcome in outcomes)]))
    for name, (value, what) in worst.items():
        print(f"the most {name} of a refusal: {value:.2f}, {what}")
    return 0


if __name__ == "__main__":
    if "--work" in sys.argv:
        work()
    else:
        sys.exit(main())
