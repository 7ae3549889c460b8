# SPDX-License-Identifier: Apache-2.0
"""Hostile and damaged .mat files, split lists and skeletons, and what their readers do with them.

`python -m studies.reliability.mat_files` reads each file in a process of its own, within limits, and prints a table.
"""

from __future__ import annotations

import io
import os
import resource
import signal
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.io

from fastpose.data.mpii import read_ground_truth, read_mpii
from fastpose.skeletons import read_skeleton

SECONDS, BYTES = 20, 6 << 30  # where a reader is ended
HEADER = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x0100) + b"IM"
_DOUBLE, _CHAR, _STRUCT, _CELL = 6, 4, 2, 1


# ---------------------------------------------------------------- MATLAB's bytes


def element(kind: int, data: bytes, size: int | None = None) -> bytes:
    """A data element; `size` says another number of bytes than it has."""
    return struct.pack("<II", kind, len(data) if size is None else size) + data + bytes(-len(data) % 8)


def array(kind: int, dimensions: tuple[int, ...], contents: bytes = b"", name: str = "", flags: int = 0) -> bytes:
    head = element(6, struct.pack("<II", kind | flags, 0))
    head += element(5, struct.pack(f"<{len(dimensions)}i", *dimensions)) + element(1, name.encode())
    return element(14, head + contents)


def numbers(values: np.ndarray, name: str = "") -> bytes:
    data = np.asarray(values, "<f8")
    dimensions = data.shape if data.ndim > 1 else (1, data.size)
    return array(_DOUBLE, dimensions, element(9, data.tobytes(order="F")), name)


def text(value: str) -> bytes:
    return array(_CHAR, (1, len(value)), element(16, value.encode()))


def structs(count: int, fields: dict[str, bytes], name: str = "") -> bytes:
    """A struct array whose elements all have the same contents."""
    names = b"".join(field.encode().ljust(32, b"\0") for field in fields)
    contents = element(5, struct.pack("<i", 32)) + element(1, names) + b"".join(fields.values()) * count
    return array(_STRUCT, (1, count), contents, name)


def compressed(data: bytes) -> bytes:
    packed = zlib.compress(data)
    return struct.pack("<II", 15, len(packed)) + packed


def nested(depth: int, wrap: Callable[[bytes], bytes], inner: bytes) -> bytes:
    for _ in range(depth):
        inner = wrap(inner)
    return inner


def ground_truth(**changes: bytes) -> bytes:
    """A gt_valid.mat of two persons, with other variables instead of some."""
    variables = {
        "pos_gt_src": numbers(np.full((16, 2, 2), 50.0), "pos_gt_src"),
        "jnt_missing": numbers(np.zeros((16, 2)), "jnt_missing"),
        "headboxes_src": numbers(np.arange(8.0).reshape(2, 2, 2), "headboxes_src"),
    }
    return HEADER + b"".join((variables | changes).values())


def release(**changes: bytes) -> bytes:
    """The official file with one person on one image, with other fields instead of some."""
    point = structs(
        1, {"x": numbers(np.array([[5.0]])), "y": numbers(np.array([[6.0]])), "id": numbers(np.array([[9]]))}
    )
    one = {
        name: numbers(np.array([[value]])) for name, value in zip(("x1", "y1", "x2", "y2"), (1, 2, 31, 42), strict=True)
    }
    position = structs(1, {"x": numbers(np.array([[50.0]])), "y": numbers(np.array([[60.0]]))})
    person = {**one, "scale": numbers(np.array([[1.5]])), "objpos": position}
    person["annopoints"] = changes.pop("annopoints", structs(1, {"point": changes.pop("point", point)}))
    image = structs(1, {"name": changes.pop("name", text("a.jpg"))})
    annolist = structs(1, {"image": image, "annorect": changes.pop("annorect", structs(1, person))})
    whole = {"annolist": annolist, "img_train": numbers(np.array([[1.0]])), "version": text("12")}
    return HEADER + structs(1, whole | changes, "RELEASE")


def cells_in_cells(depth: int) -> bytes:
    """Built from within in one buffer: a cell array of a cell array of ..., in linear time."""
    head = struct.pack("<IIIIIIiiII", 6, 8, _CELL, 0, 5, 8, 1, 1, 1, 0)
    inner = element(14, b"")
    sizes = (len(head) + len(inner) + (8 + len(head)) * level for level in reversed(range(depth)))
    return b"".join(struct.pack("<II", 14, size) + head for size in sizes) + inner


def bomb(megabytes: int, name: str = "pos_gt_src") -> bytes:
    """A double array of zeros: about a thousandth of its size when compressed."""
    count = megabytes << 17
    return compressed(array(_DOUBLE, (1, count), element(9, bytes(count * 8)), name))


# ---------------------------------------------------------------- the files


def mats(megabytes: int = 400, floods: int = 1_000_000) -> dict[str, bytes]:
    """.mat files by name: those that begin with gt are read as gt_valid.mat, the others as the release.

    Args:
        megabytes: of zeros in the compressed ones.
        floods: how many elements the files of very many have.
    """
    good, official = ground_truth(), release()
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {"pos_gt_src": np.eye(3), "RELEASE": np.eye(3)}, format="4")
    files = {
        "gt, good": good,
        "release, good": official,
        "gt, empty": b"",
        "gt, text": b"joints of the validation set\n",
        "gt, an HTML page": b"<!DOCTYPE html><html><head><title>404</title></head></html>" * 9,
        "gt, a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
        "gt, zeros": bytes(4096),
        "gt, header alone": HEADER,
        "gt, MATLAB 4": buffer.getvalue(),
        "gt, MATLAB 7.3": b"MATLAB 7.3 MAT-file".ljust(512, b"\0") + b"\x89HDF\r\n\x1a\n" + bytes(512),
        "gt, HDF5 without MATLAB's header": b"\x89HDF\r\n\x1a\n" + bytes(512),
        "gt, other byte order said": good[:126] + b"MI" + good[128:],
        "gt, no byte order": good[:126] + b"XX" + good[128:],
        "gt, cells in cells, 1,000": HEADER + cells_in_cells(1000),
        "gt, cells in cells, 100,000": HEADER + cells_in_cells(100_000),
        "gt, a wanted variable of cells in cells": ground_truth(
            pos_gt_src=array(_CELL, (1, 1), cells_in_cells(50_000), "pos_gt_src")
        ),
        "gt, compressed zeros": HEADER + bomb(megabytes),
        "gt, 4 GB said in fewer zeros": HEADER
        + compressed(
            element(14, array(_DOUBLE, (1, 1 << 29), b"", "pos_gt_src")[8:] + bytes(megabytes << 20), 0xFFFFFFF0)
        ),
        "gt, compressed twice": HEADER + compressed(compressed(numbers(np.eye(3), "pos_gt_src"))),
        "gt, dimensions of 2^31 by 2^31": ground_truth(pos_gt_src=array(_DOUBLE, (2**31 - 1,) * 2, b"", "pos_gt_src")),
        "gt, a negative dimension": ground_truth(pos_gt_src=array(_DOUBLE, (-16, 2), b"", "pos_gt_src")),
        "gt, 2,000 dimensions": ground_truth(pos_gt_src=array(_DOUBLE, (1,) * 2000, b"", "pos_gt_src")),
        "gt, one dimension": ground_truth(pos_gt_src=array(_DOUBLE, (16,), b"", "pos_gt_src")),
        "gt, an element beyond the end": ground_truth(pos_gt_src=element(14, b"12345678", 0x7FFFFFFF)),
        "gt, an element of 4 GB": HEADER + struct.pack("<II", 14, 0xFFFFFFFF) + bytes(64),
        "gt, a small element of 200 bytes": HEADER + struct.pack("<II", 200 << 16 | 14, 0) + bytes(256),
        "gt, an unknown element": HEADER + element(99, bytes(64)) + good[128:],
        "gt, an unknown class": ground_truth(pos_gt_src=array(77, (16, 2, 2), b"", "pos_gt_src")),
        "gt, a sparse matrix": ground_truth(pos_gt_src=array(5, (16, 2), element(5, bytes(8)), "pos_gt_src")),
        "gt, an object": ground_truth(pos_gt_src=array(3, (1, 1), element(1, b"os.system"), "pos_gt_src")),
        "gt, complex numbers": ground_truth(
            pos_gt_src=array(_DOUBLE, (1, 1), element(9, bytes(8)) * 2, "pos_gt_src", 0x0800)
        ),
        "gt, numbers of an unknown type": ground_truth(
            pos_gt_src=array(_DOUBLE, (16, 2), element(8, bytes(256)), "pos_gt_src")
        ),
        "gt, fewer numbers than said": ground_truth(
            pos_gt_src=array(_DOUBLE, (16, 2, 2), element(9, bytes(80)), "pos_gt_src")
        ),
        "gt, text for numbers": ground_truth(pos_gt_src=array(_CHAR, (1, 3), element(16, b"abc"), "pos_gt_src")),
        "gt, structs for numbers": ground_truth(pos_gt_src=structs(2, {"x": numbers(np.eye(2))}, "pos_gt_src")),
        "gt, NaN": ground_truth(pos_gt_src=numbers(np.full((16, 2, 2), np.nan), "pos_gt_src")),
        "gt, infinity": ground_truth(pos_gt_src=numbers(np.full((16, 2, 2), np.inf), "pos_gt_src")),
        "gt, head boxes of nothing": ground_truth(headboxes_src=numbers(np.zeros((2, 2, 2)), "headboxes_src")),
        "gt, one person too many": ground_truth(jnt_missing=numbers(np.zeros((16, 3)), "jnt_missing")),
        "gt, no persons": ground_truth(pos_gt_src=numbers(np.zeros((16, 2, 0)), "pos_gt_src")),
        "gt, a variable missing": ground_truth(jnt_missing=b""),
        "gt, a damaged checksum": HEADER + compressed(numbers(np.eye(3), "pos_gt_src"))[:-4] + b"1234",
        "gt, damaged compression": HEADER + struct.pack("<II", 15, 64) + bytes(range(64)),
        "gt, nothing compressed": HEADER + struct.pack("<II", 15, 0) + bytes(64),
        "gt, a name of 100,000 characters": HEADER + array(_DOUBLE, (1, 1), element(9, bytes(8)), "x" * 100_000),
        "gt, a name with control characters": HEADER + array(_DOUBLE, (1, 1), element(9, bytes(8)), "\x1b[2J\n\r"),
        "gt, a flood of empty variables": HEADER + element(14, b"") * floods,
        "release, numbers for structs": HEADER + numbers(np.eye(3), "RELEASE"),
        "release, no fields": HEADER + structs(1, {}, "RELEASE"),
        "release, two releases in one": HEADER + structs(2, {"version": text("12")}, "RELEASE"),
        "release, 2^31 structs without fields": HEADER
        + array(_STRUCT, (1, 2**31 - 1), element(5, struct.pack("<i", 32)) + element(1, b""), "RELEASE"),
        "release, 2^31 structs with a field": HEADER
        + array(_STRUCT, (1, 2**31 - 1), element(5, struct.pack("<i", 32)) + element(1, bytes(32)), "RELEASE"),
        "release, field names of length 0": HEADER
        + array(_STRUCT, (1, 1), element(5, struct.pack("<i", 0)) + element(1, bytes(32)), "RELEASE"),
        "release, field names of length -1": HEADER
        + array(_STRUCT, (1, 1), element(5, struct.pack("<i", -1)) + element(1, bytes(32)), "RELEASE"),
        "release, structs in structs, 200": release(
            annorect=nested(200, lambda inner: structs(1, {"annorect": inner}), numbers(np.eye(1)))
        ),
        "release, an annolist in itself, 200": HEADER
        + structs(1, {"annolist": nested(200, lambda i: structs(1, {"annolist": i}), numbers(np.eye(1)))}, "RELEASE"),
        "release, img_train of another length": release(img_train=numbers(np.ones((1, 5)))),
        "release, img_train as text": release(img_train=text("1")),
        "release, a number for a name": release(name=numbers(np.eye(1))),
        "release, a name of control characters": release(name=text("\x1b[2J\n.jpg")),
        "release, a name outside the folder": release(name=text("../../etc/passwd")),
        "release, a name of NULs": release(name=text("\0\0")),
        "release, a name of 100,000 characters": release(name=text("x" * 100_000)),
        "release, a name that is not UTF-8": release(name=array(_CHAR, (1, 4), element(16, b"\xff\xfe\xfd\xfc"))),
        "release, text of several rows": release(name=array(_CHAR, (2, 2), element(16, b"abcd"))),
        "release, a joint of number 1e300": release(
            point=structs(1, {name: numbers(np.array([[1e300]])) for name in ("x", "y", "id")})
        ),
        "release, a joint of number 2.5": release(
            point=structs(1, {name: numbers(np.array([[2.5]])) for name in ("x", "y", "id")})
        ),
        "release, joints of NaN": release(
            point=structs(1, {name: numbers(np.array([[np.nan]])) for name in ("x", "y", "id")})
        ),
        "release, a coordinate of two numbers": release(
            point=structs(1, {name: numbers(np.array([[1.0, 2.0]])) for name in ("x", "y", "id")})
        ),
        "release, cells for joints": release(point=array(_CELL, (1, 16), element(14, b"") * 16)),
        "release, a flood of persons": release(annorect=structs(floods, {"q": element(14, b"")})),
    }
    for share in (0.1, 0.5, 0.9, 0.99):
        files[f"gt, ends after {share:.0%}"] = good[: round(share * len(good))]
        files[f"release, ends after {share:.0%}"] = official[: round(share * len(official))]
    rng = np.random.default_rng(0)
    for seed in range(8):
        for name, whole in (("gt", good), ("release", official)):
            changed = bytearray(whole)
            for place in rng.integers(128, len(whole), 6):
                changed[place] = rng.integers(256)
            files[f"{name}, six bytes changed, {seed}"] = bytes(changed)
    return files


def lists() -> dict[str, bytes]:
    """Split lists for a release with one person on a.jpg."""
    return {
        "list, good": b"a.jpg 0\n",
        "list, empty": b"",
        "list, comments alone": b"# nobody\n" * 1000,
        "list, not text": bytes(range(256)),
        "list, a number of 100,000 digits": b"a.jpg " + b"9" * 100_000,
        "list, digits of another script": "a.jpg \u0661".encode(),
        "list, a line of a million characters": b"x" * 1_000_000,
        "list, control characters": b"\x1b[2J\x07.jpg\n",
        "list, 20 MB": b"a.jpg 0\n" * (20 << 17),
    }


def skeletons() -> dict[str, bytes]:
    """Skeleton files."""
    laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
    )
    files = {
        "skeleton, good": "joints: [a, b]",
        "skeleton, empty": "",
        "skeleton, aliases of aliases": laughs,
        "skeleton, aliases of aliases as joints": laughs + "joints: *a9\n",
        "skeleton, an alias of itself": "joints: &j [a, *j]\n",
        "skeleton, a merge of itself": "joints: [a]\nx: &x {<<: *x}\n",
        "skeleton, an object": "joints: !!python/object/apply:os.system ['true']\n",
        "skeleton, 10,000 lists in lists": "joints: " + "[" * 10_000,
        "skeleton, 10,000 mappings in mappings": "joints: " + "{a: " * 10_000,
        "skeleton, 10,000 indents": "\n".join(" " * i + "- " for i in range(1000)),
        "skeleton, 20 MB": "joints: [" + "a, " * 7_000_000 + "b]",
        "skeleton, 300,000 joints": "joints: [" + ", ".join(f"j{i}" for i in range(300_000)) + "]",
        "skeleton, 20,000 keys": "\n".join(f"k{i}: 1" for i in range(20_000)),
        "skeleton, an integer of 10,000 digits": f"joints: [a, b]\nlimbs: [[a, {'9' * 10_000}]]",
        "skeleton, a number to the base of 60": f"joints: [a, b]\nsigmas: [{':'.join(['59'] * 3000)}, 1]",
        "skeleton, a float beyond floats": f"joints: [a, b]\nsigmas: [{':'.join(['59'] * 3000)}.5, 1]",
        "skeleton, a sigma of 2^5000": f"joints: [a, b]\nsigmas: [0x{'f' * 1250}, 1]",
        "skeleton, a date that is not a date": "joints: !!timestamp never",
        "skeleton, an integer of nothing": "joints: !!int ''",
        "skeleton, a truth value that is neither true nor false": "joints: !!bool perhaps",
        "skeleton, unhashable keys": "? [a, b]\n: c\n",
        "skeleton, a name that is a path": "joints: [a, ../../x]",
        "skeleton, a name that is a Windows path": r"joints: [a, 'C:\x']",
        "skeleton, a name of control characters": 'joints: [a, "\\e[2J\\n"]',
        "skeleton, a name of a surrogate": 'joints: [a, "\\ud800"]',
        "skeleton, a name that turns the text around": 'joints: [a, "\\u202e"]',
        "skeleton, an empty name": "joints: [a, '']",
        "skeleton, a blank name": "joints: [a, '   ']",
        "skeleton, a name of 90,000 characters": "joints: [a, " + "x" * 90_000 + "]",
        "skeleton, a name twice": "joints: [a, a]",
        "skeleton, its own name is a path": "joints: [a]\nname: ../../x",
        "skeleton, its own name is infinity": "joints: [a]\nname: .inf",
        "skeleton, joints as a mapping": "joints: {a: b}",
        "skeleton, several documents": "joints: [a]\n---\njoints: [b]\n",
        "skeleton, a directive": "%YAML 9.9\n---\njoints: [a]\n",
    }
    raw = {name: contents.encode() for name, contents in files.items()}
    raw["skeleton, not UTF-8"] = b"joints: [\xff]"
    raw["skeleton, UTF-16"] = "joints: [a, b]".encode("utf-16")
    raw["skeleton, NULs"] = bytes(1000)
    return raw


def read(name: str, path: Path, folder: Path) -> None:
    """Reads a file as what its name says; `folder` has the image a.jpg and a good release."""
    kind = name.partition(",")[0]
    if kind == "gt":
        read_ground_truth(path)
    elif kind == "release":
        read_mpii(path, folder)
    elif kind == "list":
        read_mpii(folder / "release.mat", folder, split="valid", split_list=path)
    else:
        read_skeleton(path)


def prepare(folder: Path) -> None:
    """What `read` needs."""
    (folder / "a.jpg").touch()
    (folder / "release.mat").write_bytes(release())


# ---------------------------------------------------------------- the trial


def attempt(name: str, path: Path, folder: Path) -> tuple[str, float, float]:
    """What comes of reading a file in a process of its own: the outcome, seconds, and MB more than before."""
    reading, writing = os.pipe()
    began = time.perf_counter()
    if not (child := os.fork()):
        os.close(reading)
        signal.alarm(SECONDS)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
        try:
            read(name, path, folder)
            outcome = "accepted"
        except (ValueError, OSError) as error:
            outcome = "refused in one line" if len(str(error).splitlines()) == 1 else "refused in several lines"
            outcome += " of more than 1,000 characters" * (len(str(error)) > 1000)
        except BaseException as error:
            outcome = f"traceback ({type(error).__name__})"
        more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        os.write(writing, f"{outcome}|{more}".encode())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        said = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    took = time.perf_counter() - began
    if not said:
        ended = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        return ("hang" if ended == signal.SIGALRM else f"crash (signal {ended})"), took, float("nan")
    outcome, _, more = said.rpartition("|")
    return outcome, took, float(more)


def main() -> int:
    """Tries all files; returns 1 if one was neither accepted nor refused in one line."""
    counts: dict[str, Counter[str]] = {}
    slowest = largest = ("", 0.0)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        prepare(folder)
        for name, contents in (mats() | lists() | skeletons()).items():
            path = folder / f"tried{'.mat' if name.startswith('release') else ''}"
            path.write_bytes(contents)
            outcome, took, more = attempt(name, path, folder)
            counts.setdefault(name.partition(",")[0], Counter())[outcome] += 1
            slowest = max(slowest, (name, took), key=lambda each: each[1])
            largest = max(largest, (name, more), key=lambda each: each[1])
            print(f"{name:58} {outcome:24} {took:6.2f} s {more:7.1f} MB", flush=True)
        for kind in ("gt", "release", "list", "skeleton"):
            path = folder / f"{kind}-pipe.mat"
            os.mkfifo(path)
            outcome, took, more = attempt(f"{kind},", path, folder)
            counts.setdefault(kind, Counter())[outcome] += 1
            print(f"{kind + ', a named pipe':58} {outcome:24} {took:6.2f} s {more:7.1f} MB", flush=True)
    print(f"slowest: {slowest[1]:.2f} s ({slowest[0]}); most memory: {largest[1]:.0f} MB ({largest[0]})")
    for kind, outcomes in counts.items():
        print(f"{kind}: {outcomes.total()} files: " + ", ".join(f"{n} {what}" for what, n in outcomes.most_common()))
    good = {"accepted", "refused in one line"}
    return int(any(outcome not in good for outcomes in counts.values() for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
