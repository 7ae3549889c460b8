# SPDX-License-Identifier: Apache-2.0
"""Hostile and damaged packs, and `fastpose pack` killed at random moments.

    python -m studies.reliability.packs [--kills 60] [--only TEXT] [--one_in 1] [--every 6] [--show]

Each hostile pack is a good one with one change, some with all checksums made right again ("forged"). It is read by the
library, evaluated and trained on, and gone on with by `fastpose pack` (of the forged ones, one of so many), each in a
process of its own with a limit of time. What comes of it is counted:

    equal        accepted, and every annotation and pixel is the good pack's; of `pack`: the folder is made good again
    refused      an error of one line and no traceback
    other        accepted, with other contents: a fault, unless the checksums were forged
    wordy, traceback, signal, hang, memory (above 300 MB more than before)

A killed `pack` is called again until it ends by itself; its folder must then be that of a call that nobody disturbed.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import hashlib
import io
import itertools
import json
import logging
import os
import random
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastpose import evaluate, pack, train
from fastpose.data.pack import read_packed_persons
from fastpose.data.pack.format import with_checksum
from fastpose.data.pixels import PackedImages
from fastpose.engine import results
from fastpose.models import network
from fastpose.options.settle import settle
from fastpose.skeletons import COCO, MPII
from tests.helpers.runs import save_weights
from tests.helpers.tiny_coco import write_tiny_coco
from tests.helpers.tiny_mpii import write_tiny_mpii

SECONDS, MEMORY = 60, 300 << 20  # a hang, not a busy machine
Change = Callable[[Path], object]
SMALL = ["--size", "64", "64", "--shard_bytes", "60000"]


def small_network(depth: int, head: str, num_joints: int, *, channels: object) -> torch.nn.Module:
    return torch.nn.Conv2d(3, num_joints, 4, stride=4)


# The changes: first those that anybody can make to a file, then those of somebody who makes the checksums right.


def file_changes(path: str, rng: random.Random) -> Iterator[tuple[str, Change]]:
    def rewritten(change: Callable[[bytes], bytes]) -> Change:
        return lambda root: (root / path).write_bytes(change((root / path).read_bytes()))

    def replaced(make: Callable[[Path], object]) -> Change:
        def change(root: Path) -> None:
            (root / path).unlink()
            make(root / path)

        return change

    def flipped(place: float, bit: int) -> Change:
        def change(data: bytes) -> bytes:
            at = int(place * len(data))
            return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]

        return rewritten(change)

    def zeroed(place: float) -> Change:
        def change(data: bytes) -> bytes:
            at = int(place * max(1, len(data) - 512))
            return data[:at] + bytes(len(data[at : at + 512])) + data[at + 512 :]

        return rewritten(change)

    def sparse(path: Path) -> None:
        with open(path, "wb") as file:
            file.truncate(16 << 30)

    def longer(root: Path) -> None:
        with open(root / path, "rb+") as file:
            file.truncate(16 << 30)

    def bound(path: Path) -> None:
        socket.socket(socket.AF_UNIX).bind(os.path.relpath(path))

    yield "missing", lambda root: (root / path).unlink()
    yield "empty", rewritten(lambda data: b"")
    yield "half", rewritten(lambda data: data[: len(data) // 2])
    yield "a byte short", rewritten(lambda data: data[:-1])
    yield "a byte long", rewritten(lambda data: data + b"\0")
    for number in range(4):
        yield f"bit flipped {number}", flipped(rng.random(), rng.randrange(8))
    for number in range(2):
        yield f"zeroed {number}", zeroed(rng.random())
    yield "all zeros", rewritten(lambda data: bytes(len(data)))
    yield "reversed", rewritten(lambda data: data[::-1])
    yield "text", rewritten(lambda data: b"<!DOCTYPE html>\n<html>not found</html>")
    yield "16 GB of nothing", replaced(sparse)
    yield "16 GB long", longer
    yield "named pipe", replaced(os.mkfifo)
    yield "folder", replaced(lambda path: path.mkdir())
    yield "socket", replaced(bound)
    for target in ("/dev/zero", "/dev/stdin", "nothing", path, ".", "/proc/self/mem"):
        yield f"link to {target}", replaced(lambda path, target=target: path.symlink_to(target))


def index_of(root: Path) -> dict[str, Any]:
    return json.loads((root / "pack.json").read_bytes())


def set_index(root: Path, index: object) -> None:
    (root / "pack.json").write_text(json.dumps(with_checksum(index) if isinstance(index, dict) else index))


ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    2.5,
    1 << 31,
    1 << 62,
    1 << 64,
    10**400,
    1e308,
    "x",
    "",
    "../../x",
    "/etc/passwd",
]
ODD += ["\n\x1b[2J", "\ud800", "x" * 3000, [], [[]], [1, 2, 3], {}, {"a": 1}]


def index_changes(index: dict[str, Any]) -> Iterator[tuple[str, Change]]:
    def paths(value: object, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
        yield path
        if isinstance(value, dict):
            for name in value:
                yield from paths(value[name], (*path, name))
        if isinstance(value, list) and value:
            yield from paths(value[0], (*path, 0))

    def changed(path: tuple[Any, ...], change: Callable[[Any, Any], None]) -> Change:
        def apply(root: Path) -> None:
            contents = index_of(root)
            owner = contents
            for name in path[:-1]:
                owner = owner[name]
            change(owner, path[-1])
            set_index(root, contents)

        return apply

    for path in paths(index):
        name = ".".join(map(str, path))
        if not path or path == ("crc",) or path[-1] == "valid" or "valid" in path[:-1]:
            continue
        odd = ODD + ([float("nan"), float("inf")] if isinstance(index, dict) else [])
        for value in odd:
            if (type(value), value) != ("", ""):
                yield f"{name} = {value!r:.30}", changed(path, lambda o, n, v=value: o.__setitem__(n, v))
        yield f"{name} gone", changed(path, lambda o, n: o.pop(n))
        if path[-1] == "train":
            for other in ("../../x", "/tmp", "test", "tr\nain", ""):
                yield f"{name} as {other!r}", changed(path, lambda o, n, v=other: o.__setitem__(v, o.pop(n)))
    yield "more", lambda root: set_index(root, index_of(root) | {"other": [1]})
    shard = index["files"]["train"]["shards"][0]
    for count in (3, 40_000, 1_000_000):
        yield (
            f"{count} shards",
            changed(("files", "train", "shards"), lambda o, n, c=count: o.__setitem__(n, [shard] * c)),
        )
    for text in ("[" * 100_000, '{"a":' * 100_000, "[]", "7", '"x"', "NaN", "[[]," * 2_000_000, "1" * 5000, "{" * 20):
        yield f"JSON {text[:10]}", lambda root, text=text: (root / "pack.json").write_text(text)
    yield "JSON 400 deep", lambda root: set_index(root, index_of(root) | {"options": eval("[" * 90 + "]" * 90)})
    for encoding in ("utf-16", "utf-32", "utf-8-sig"):
        yield (
            f"JSON in {encoding}",
            lambda root, e=encoding: (root / "pack.json").write_bytes((root / "pack.json").read_text().encode(e)),
        )


def set_table(root: Path, data: bytes, number: int = 0) -> None:
    (root / f"train-{number:05d}.npy").write_bytes(data)
    index = index_of(root)
    index["files"]["train"]["shards"][number]["table_crc"] = zlib.crc32(data)
    set_index(root, index)


def saved(array: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def header(text: str, data: bytes = b"", version: bytes = b"\1\0") -> bytes:
    filled = text.encode("latin1") + b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY" + version + len(filled).to_bytes(2, "little") + filled + data


def npy_changes(array: np.ndarray) -> Iterator[tuple[str, bytes]]:
    """Contents for the place of an array that are not what they should be."""
    descr, data = np.lib.format.dtype_to_descr(array.dtype), array.tobytes()
    shape = array.shape
    for kind in (
        "|O",
        "<f8",
        "<i8",
        ">f4",
        "|V4",
        "|S4",
        "<U1",
        "<M8[s]",
        "<c16",
        "<f3",
        "|u1",
        "|b1",
        "<U0",
        "<U999999",
    ):
        yield f"dtype {kind}", header(repr({"descr": kind, "fortran_order": False, "shape": shape})[:-1] + ", }", data)
    for wrong in (
        (),
        (10**12,),
        (1 << 62, 4),
        (-1,),
        (-2, -5),
        (0,),
        (0, 1 << 60),
        (1,) * 40,
        (*shape, 1),
        (2, *shape),
    ):
        yield (
            f"shape {wrong}"[:40],
            header(repr({"descr": descr, "fortran_order": False, "shape": wrong})[:-1] + ", }", data),
        )
    yield "Fortran order", header(repr({"descr": descr, "fortran_order": True, "shape": shape})[:-1] + ", }", data)
    for text in ("{}", "", "(" * 5000, "[" + "-" * 8000 + "1]", "__import__('os').system('id')", "{'descr': [" * 300):
        yield f"header {text[:12]}", header(text, data)
    yield "version 9", header("{}", data, b"\x09\0")
    yield "pickle", b"\x80\x04cos\nsystem\n(S'id'\ntR."
    yield "an object array", saved(np.array([None, {}]), allow_pickle=True)
    yield "no rows", saved(array[:0] if array.ndim else array.reshape(1)[:0])
    yield "a row less", saved(array[:-1] if array.ndim else array.reshape(1))
    if array.dtype.kind == "f":
        for value in (np.nan, np.inf, -1e30, 1e30, 0):
            odd = array.copy()
            odd[..., :1] = value
            yield f"values {value}", saved(odd)


def table_changes(root: Path) -> Iterator[tuple[str, Change]]:
    rows = np.load(root / "train-00000.npy")
    for name in rows.dtype.names or ():
        for value in (-1, 0, 1, 3, 65_500, (1 << 31) - 1, 1 << 40, (1 << 63) - 1, np.nan, np.inf, -np.inf, 1e-45):
            odd = rows.copy()
            with contextlib.suppress(OverflowError, ValueError):
                odd[name][1] = value
                yield f"{name} = {value}", lambda r, odd=odd: set_table(r, saved(odd))
    swapped = rows[[1, 0, *range(2, len(rows))]]
    yield "rows exchanged", lambda r: set_table(r, saved(swapped))
    nothing = rows.copy()
    nothing["length"][:], nothing["offset"][:] = 0, 0
    yield "no record has bytes", lambda r: set_table(r, saved(nothing))
    large = rows.copy()
    large["height"], large["width"] = 65_500, 65_500
    yield "all are large", lambda r: set_table(r, saved(large))
    for name, data in npy_changes(rows):
        yield name, lambda r, data=data: set_table(r, data)


def set_persons(root: Path, data: bytes, split: str = "train") -> None:
    (root / f"{split}-persons.npz").write_bytes(data)
    index = index_of(root)
    index["files"][split]["annotations"] = {"bytes": len(data), "crc": zlib.crc32(data)}
    set_index(root, index)


def archive(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return buffer.getvalue()


def persons_changes(root: Path, split: str) -> Iterator[tuple[str, Change]]:
    with zipfile.ZipFile(root / f"{split}-persons.npz") as file:
        members = {name: file.read(name) for name in file.namelist()}
    arrays = dict(np.load(root / f"{split}-persons.npz"))

    def forged(data: bytes) -> Change:
        return lambda r: set_persons(r, data, split)

    for name, array in arrays.items():
        for kind, data in npy_changes(array):
            yield f"{name}: {kind}", forged(archive(members | {f"{name}.npy": data}))
        yield f"{name}: gone", forged(archive({n: d for n, d in members.items() if n != f"{name}.npy"}))
    for name in ("../a.jpg", "/etc/passwd", "", ".", "..", "a\0b", "a\nb", "x" * 5000, "\x1b[2J"):
        odd = np.array([name, *arrays["image"][1:]])
        yield f"an image called {name[:20]!r}", forged(archive(members | {"image.npy": saved(odd)}))
    outside = np.frombuffer(b"\xff" * arrays["image"].nbytes, np.uint8).tobytes()
    head = members["image.npy"][: -arrays["image"].nbytes]
    yield "names that are no text", forged(archive(members | {"image.npy": head + outside}))
    skeletons = [MPII.name + "x", "{}", "[]", "7", "[" * 90_000, '{"name": "x", "joints": "abc"}', "null", ""]
    whole = {"name": "x", "joints": [str(n) for n in range(16)], "mirror_pairs": [], "limbs": []}
    for key, values in {
        "name": (7, None, "../../x"),
        "joints": ("a" * 16, {"a": 1}, [1] * 16, [], ["a"] * 16, ["../../x", *map(str, range(15))]),
        "mirror_pairs": ([[0.5, 1]], [[0, 99]], [0], [[0]], [[0, 1], [1, 2]], {"a": 1}, [["0", "1"]], [[True, 2]]),
        "limbs": ([[0, 1, 2]], [[-1, 2]], None),
        "sigmas": ([0] * 16, ["x"] * 16, [1e400] * 16, [1], {}),
        "joint_weights": ([-1] * 16, [float("nan")] * 16),
        "upper_body": ([0.5], ["a"], [99], [[0]]),
        "other": (1,),
    }.items():
        skeletons += [json.dumps(whole | {key: value}) for value in values]
    for text in skeletons:
        yield f"skeleton {text[-60:]}", forged(archive(members | {"skeleton.npy": saved(np.array(text))}))
    if "truth" in arrays:
        truth = json.loads(arrays["truth"].tobytes())
        first = truth["annotations"][0]
        texts = ["", "null", "[]", "[" * 90_000, "{}"]
        texts += [json.dumps({n: v for n, v in truth.items() if n != name}) for name in truth]
        texts += [
            json.dumps(truth | {name: value}) for name in truth for value in (None, 7, "x", [None], [[]], [{}], {})
        ]
        for name in first:
            for value in (None, "x", [], {}, [None] * 51, -1, 1 << 70, 1e308, float("nan")):
                texts.append(json.dumps(truth | {"annotations": [first | {name: value}, *truth["annotations"][1:]]}))
        for number, text in enumerate(texts):
            data = saved(np.frombuffer(text.encode(), np.uint8))
            yield f"truth {number}", forged(archive(members | {"truth.npy": data}))
    zeros = header("{'descr': '<f4', 'fortran_order': False, 'shape': (536870912,), }")
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name, data)
        with file.open("bomb.npy", "w", force_zip64=True) as out:
            out.write(zeros)
            for _ in range(2 << 30 >> 24):
                out.write(bytes(1 << 24))
    yield "2 GB in 2 MB", forged(bomb.getvalue())
    yield "compressed", forged(archive(members, zipfile.ZIP_DEFLATED))
    yield "bzip2", forged(archive(members, zipfile.ZIP_BZIP2))
    yield "lzma", forged(archive(members, zipfile.ZIP_LZMA))
    yield "60,000 members", forged(archive(members | {f"{n}.npy": saved(arrays["center"]) for n in range(60_000)}))
    yield "a member that is no array", forged(archive(members | {"readme.txt": b"hello"}))
    yield "a member outside", forged(archive(members | {"../../x.npy": saved(arrays["center"])}))
    yield "something behind it", forged(archive(members) + bytes(100))
    yield "something before it", forged(bytes(1000) + archive(members))
    yield "an empty archive", forged(archive({}))
    good = archive(members)
    start = good.rindex(b"PK\5\6")
    for at, bytes_, name in (
        (10, b"\xff\xff", "count"),
        (12, b"\xff\xff\xff\xff", "size"),
        (16, b"\xff\xff\xff\xff", "place"),
    ):
        odd = good[: start + at] + bytes_ + good[start + at + len(bytes_) :]
        yield f"directory's {name}", forged(odd)
    entry = good.index(b"PK\1\2")
    for at, name in (
        (8, "flags"),
        (10, "method"),
        (20, "compressed"),
        (24, "size"),
        (42, "place"),
        (28, "name's length"),
    ):
        for value in (b"\1\0", b"\xff\xff\xff\x7f"):
            odd = good[: entry + at] + value + good[entry + at + len(value) :]
            yield f"member's {name} {value.hex()}", forged(odd)


def record_changes(root: Path) -> Iterator[tuple[str, Change]]:
    """Of a JPEG pack: another file instead of the first record, as large as its own is said to be."""
    import cv2

    rows = np.load(root / "train-00000.npy")
    old = (root / "train-00000.shard").read_bytes()
    height, width = (int(rows[name][0]) for name in ("height", "width"))
    grey = np.full((height, width, 3), 9, np.uint8)

    def forged(record: bytes, **fields: int) -> Change:
        def change(r: Path) -> None:
            odd = rows.copy()
            odd["offset"][1:] += len(record) - odd["length"][0]
            odd["length"][0], odd["crc"][0] = len(record), zlib.crc32(record)
            for name, value in fields.items():
                odd[name][0] = value
            shard = record + old[int(rows["length"][0]) :]
            (r / "train-00000.shard").write_bytes(shard)
            index = index_of(r)
            index["files"]["train"]["shards"][0]["bytes"] = len(shard)
            set_index(r, index)
            set_table(r, saved(odd))

        return change

    def made(suffix: str, image: np.ndarray, *options: int) -> bytes:
        return cv2.imencode(suffix, image, list(options))[1].tobytes()

    for suffix in (".png", ".bmp", ".webp", ".tiff", ".jp2", ".ppm"):
        with contextlib.suppress(cv2.error):
            yield f"a {suffix}", forged(made(suffix, grey))
    jpeg = made(".jpg", grey)
    size = jpeg.index(b"\xff\xc0") + 5
    for sides in ((65_500, 65_500), (0, 0), (1, 1), (height, 65_500)):
        lying = jpeg[:size] + sides[0].to_bytes(2, "big") + sides[1].to_bytes(2, "big") + jpeg[size + 4 :]
        yield f"a JPEG that says {sides}", forged(lying)
        yield f"a JPEG and a table that say {sides}", forged(lying, height=sides[0], width=sides[1])
    yield "a progressive JPEG", forged(made(".jpg", grey, cv2.IMWRITE_JPEG_PROGRESSIVE, 1))
    yield "another size", forged(made(".jpg", grey[:5, :5]))
    yield "no end", forged(jpeg[:-300])
    yield "only the start", forged(b"\xff\xd8\xff")
    yield "endless segments", forged(b"\xff\xd8" + b"\xff\xe0\0\0" * 5000)


# The readers, and the processes that they run in.


class Bench:
    """Good packs, and what reads them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = {"raw": write_tiny_mpii(folder / "mpii"), "coco": write_tiny_coco(folder / "coco")}
        self.data["jpeg"] = self.data["raw"]
        coco = ["--train_annotations", "annotations/train.json", "--valid_annotations", "annotations/valid.json"]
        self.options = {
            "raw": [*SMALL, "--reduced_decode", "false"],
            "jpeg": [*SMALL, "--reduced_decode", "false", "--format", "jpeg"],
            "coco": [*SMALL, "--recipe", str(self._recipe(folder)), *coco],
        }
        self.good, self.digests = {}, {}
        self.checkpoints = {kind: self._checkpoint(kind) for kind in self.options}
        for kind in self.options:
            self.good[kind] = folder / f"good-{kind}"
            assert pack.main(self._pack_arguments(kind, self.good[kind])) == 0
            self.digests[kind] = self.digest(self.good[kind])

    def _recipe(self, folder: Path) -> Path:
        path = folder / "coco.yaml"
        path.write_text("dataset: coco\nimages: images\n")
        return path

    def _checkpoint(self, kind: str) -> Path:
        changes = {"dataset": "coco"} if kind == "coco" else {}
        settings = settle({"data_root": str(self.data[kind]), "size": (64, 64), **changes})
        skeleton = COCO if kind == "coco" else MPII
        model = network.make_network(settings.network, skeleton, torch.device("cpu"))
        path = self.folder / f"run-{kind}" / "best.pt"
        save_weights(path, model.state_dict(), settings.as_plain(), skeleton=skeleton.name)
        return path

    def _pack_arguments(self, kind: str, out: Path) -> list[str]:
        return [str(self.data[kind]), str(out), *self.options[kind]]

    @staticmethod
    def digest(root: Path) -> str:
        """Of all annotations and pixels of a pack."""
        seen = hashlib.sha256()
        for split in ("train", "valid"):
            persons = read_packed_persons(root, split)
            for name in ("center", "scale", "keypoints", "visible", "source_row"):
                seen.update(getattr(persons, name).tobytes())
            seen.update(json.dumps([path.name for path in persons.image_paths]).encode())
            pixels = PackedImages(persons.image_paths, 1).load(torch.arange(len(persons)), torch.device("cpu"))
            for place in pixels.index.tolist():
                seen.update(pixels.images[place].numpy().tobytes() + pixels.frame[place].numpy().tobytes())
            seen.update(json.dumps(sorted(pixels.errors)).encode())
        return seen.hexdigest()

    def read(self, kind: str, root: Path, out: Path) -> str:
        return "equal" if self.digest(root) == self.digests[kind] else "other"

    def evaluate(self, kind: str, root: Path, out: Path) -> str:
        return self._code(
            evaluate.main(["--checkpoint", str(self.checkpoints[kind]), "--data_root", str(root), "--out", str(out)])
        )

    def train(self, kind: str, root: Path, out: Path) -> str:
        recipe = out / "recipe.yaml"
        lines = ["dataset: " + ("coco" if kind == "coco" else "mpii"), "size: [64, 64]", "epochs: 1", "batch_size: 4"]
        lines += [f"reduced_decode: {str(kind == 'coco').lower()}", "amp: 'off'", "lr: 1e-3", "device: cpu"]
        recipe.write_text("\n".join(lines))
        return self._code(train.main(["--recipe", str(recipe), "--data_root", str(root), "--run", str(out / "run")]))

    def pack(self, kind: str, root: Path, out: Path) -> str:
        code = self._code(pack.main(self._pack_arguments(kind, root)))
        if code == "equal" and contents_of(root) != contents_of(self.good[kind]):
            return "other"
        return code

    def _code(self, code: int) -> str:
        return "equal" if code == 0 else "error"


def contents_of(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.iterdir()}


def tried(read: Callable[[str, Path, Path], str], kind: str, root: Path, out: Path) -> tuple[str, float, str]:
    """What comes of a reader in a process of its own, the seconds of a core that it took and what it
    printed."""
    begin = time.perf_counter()
    memory = Path("/proc/self/status").read_text(encoding="ascii")
    base = 1024 * int(memory.partition("VmRSS:")[2].split()[0])
    child = os.fork()
    if child == 0:
        _run(read, kind, root, out, base)
    deadline = begin + SECONDS
    while (ended := os.wait4(child, os.WNOHANG))[0] == 0 and time.perf_counter() < deadline:
        time.sleep(0.005)
    if ended[0] == 0:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return "hang", SECONDS, ""
    seconds = ended[2].ru_utime + ended[2].ru_stime
    printed = (out / "printed").read_text(errors="replace") if (out / "printed").exists() else ""
    if os.WIFSIGNALED(ended[1]):
        return f"signal {os.WTERMSIG(ended[1])}", seconds, printed
    return (out / "result").read_text(), seconds, printed


def _run(read: Callable[[str, Path, Path], str], kind: str, root: Path, out: Path, base: int) -> None:
    import resource

    try:
        with open(out / "printed", "w") as printed:
            os.dup2(printed.fileno(), 1)
            os.dup2(printed.fileno(), 2)
        sys.stdout, sys.stderr = open(1, "w"), open(2, "w", errors="backslashreplace")  # noqa: SIM115
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
        try:
            result = read(kind, root, out)
        except (ValueError, OSError, ArithmeticError) as error:  # what commands print as one line
            print(f"error: {error}", file=sys.stderr)
            result = "error"
        except BaseException:
            traceback.print_exc()
            result = "traceback"
        sys.stderr.flush()
        text = (out / "printed").read_text(errors="replace")
        if "Traceback" in text:
            result = "traceback"
        if result == "error":
            lines = text[text.rfind("error: ") :].strip().splitlines()
            result = "refused" if len(lines) == 1 and len(lines[0]) < 800 else "wordy"
        if 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > base + MEMORY:
            result = f"memory ({result})"
        (out / "result").write_text(result)
    finally:
        os._exit(0)


def hostile(bench: Bench, only: str, one_in: int, every: int, show: bool) -> int:
    rng = random.Random(0)
    good = bench.good["raw"]
    groups: dict[str, tuple[str, bool, Iterator[tuple[str, Change]]]] = {}
    for name in ("pack.json", "train-persons.npz", "train-00000.shard", "train-00000.npy", "valid-00001.shard"):
        groups[f"raw, {name}"] = ("raw", False, file_changes(name, rng))
    groups["jpeg, train-00000.shard"] = ("jpeg", False, file_changes("train-00000.shard", rng))
    groups["forged pack.json"] = ("raw", True, index_changes(index_of(good)))
    groups["forged tables"] = ("raw", True, table_changes(good))
    groups["forged tables of JPEGs"] = ("jpeg", True, table_changes(bench.good["jpeg"]))
    groups["forged records"] = ("jpeg", True, record_changes(bench.good["jpeg"]))
    groups["forged annotations"] = ("raw", True, persons_changes(good, "train"))
    groups["forged annotations of COCO"] = ("coco", True, persons_changes(bench.good["coco"], "valid"))
    readers = {"read": bench.read, "evaluate": bench.evaluate, "train": bench.train, "pack": bench.pack}
    faults = 0
    print(f"{'changes':28}{'reader':10}{'tried':>6}  what came of them", flush=True)
    for group, (kind, forged, changes) in groups.items():
        if only not in group:
            continue
        came: dict[str, collections.Counter[str]] = {name: collections.Counter() for name in readers}
        slowest = dict.fromkeys(readers, 0.0)
        for number, (name, change) in enumerate(itertools.islice(changes, 0, None, one_in if forged else 1)):
            for reader, read in readers.items():
                if reader != "read" and forged and number % every:
                    continue
                with tempfile.TemporaryDirectory(dir=bench.folder) as folder:
                    root, out = Path(folder) / "pack", Path(folder) / "out"
                    out.mkdir()
                    shutil.copytree(bench.good[kind], root)
                    change(root)
                    result, seconds, printed = tried(read, kind, root, out)
                came[reader][result] += 1
                if result == "refused":
                    slowest[reader] = max(slowest[reader], seconds)
                fault = result not in ("equal", "refused") and not (result == "other" and forged)
                faults += fault
                if fault or show:
                    last = printed.strip().splitlines()[-1:] or [""]
                    print(f"    {group}: {name[:60]}: {reader}: {result}: {last[0][:300]}", flush=True)
        for reader, counts in came.items():
            came = ", ".join(f"{count} {result}" for result, count in sorted(counts.items()))
            print(
                f"{group:28}{reader:10}{counts.total():6}  {came} (dearest refusal {slowest[reader]:.1f} s of a core)",
                flush=True,
            )
    return faults


def kills(bench: Bench, count: int) -> int:
    """Kills `fastpose pack` at random moments until `count` processes were killed; returns how many packs differ."""
    rng = random.Random(1)
    data = write_tiny_mpii(bench.folder / "many", persons=60, images=20, side=300)
    options = [*SMALL[:2], "64", "--shard_bytes", "600000", "--reduced_decode", "false"]
    logging.disable()

    def begun(out: Path) -> int:
        child = os.fork()
        if child == 0:
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                os._exit(pack.main([str(data), str(out), *options]))
            finally:
                os._exit(99)
        return child

    begin = time.perf_counter()
    assert os.waitpid(begun(bench.folder / "undisturbed"), 0)[1] == 0
    whole = time.perf_counter() - begin
    expected = contents_of(bench.folder / "undisturbed")
    killed = packs = wrong = 0
    left: collections.Counter[str] = collections.Counter()
    while killed < count:
        out = bench.folder / f"killed-{packs}"
        packs += 1
        while True:
            child = begun(out)
            time.sleep(rng.random() ** 2 * whole)  # more of them early
            os.kill(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
            if not os.WIFSIGNALED(status):
                break
            killed += 1
            names = {path.name for path in out.iterdir()} if out.exists() else set()
            part = next((re.sub(r"\d+", "N", name) for name in names if ".part" in name), "no file half written")
            left["no folder yet" if not out.exists() else part if names else "an empty folder"] += 1
        code = os.waitstatus_to_exitcode(status)
        code = code or os.waitstatus_to_exitcode(os.waitpid(begun(out), 0)[1])
        wrong += code != 0 or contents_of(out) != expected
        shutil.rmtree(out)
    print(f"{killed} kills of {packs} packs: {packs - wrong} equal to the undisturbed one to the byte, {wrong} not")
    for name, number in left.most_common():
        print(f"    {number:4} left {name}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60, help="processes to kill, count; 0: none")
    parser.add_argument("--only", default="", help="groups of changes whose name contains this; 'none': no group")
    parser.add_argument("--one_in", type=int, default=1, help="of the forged packs, try one of so many; count")
    parser.add_argument("--every", type=int, default=6, help="of those, commands try one of so many; count")
    parser.add_argument("--show", action="store_true", help="print what came of each change")
    own = parser.parse_args()
    torch.set_num_threads(1)
    network.pose_resnet = small_network  # type: ignore[assignment]
    results.draw = lambda *arguments: None  # which takes seconds
    with tempfile.TemporaryDirectory(prefix="packs-") as folder:
        bench = Bench(Path(folder))
        faults = hostile(bench, own.only, own.one_in, own.every, own.show)
        if own.kills:
            faults += kills(bench, own.kills)
    print(f"{faults} faults")
    return faults > 0


if __name__ == "__main__":
    sys.exit(main())
