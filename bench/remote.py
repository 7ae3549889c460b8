# SPDX-License-Identifier: Apache-2.0
"""What samples weigh, and reading them from elsewhere: files, fsspec's local files, a web server with latency, tars.

    pip install aiohttp                            # fsspec's http needs it; torch brings fsspec
    python -m bench.remote                         # some 6 minutes; writes bench/results/remote_<when>_<commit>.json
    python -m bench.scaling                        # puts it into docs/scaling.md

The pictures are those of the GPU report. What reads from fsspec is the code that docs/scaling.md shows. The web server
is Python's own, a process on the same machine: it takes cores from the client. Sources take turns, round after round.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import cpuinfo
import cv2
import fsspec
import numpy as np
import torch

from bench import pipeline, report
from bench.train_step import Scale
from fastpose.data.augmentation import Augmentation
from fastpose.data.boxes import reductions
from fastpose.data.pack.format import pack_of
from fastpose.data.persons import Persons
from fastpose.data.pixels import DecodeThreads, ImageFiles, PackedImages, PixelSource
from fastpose.files import read_file

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "bench/results", ROOT / "docs/scaling.md"
THREADS = (2, 8, 32)
LATENCIES = (0.0, 0.02)  # seconds that the server waits before it answers
SHARDS = 4
ROUNDS = 9
RANKS = (1, 8)


def page_code() -> SimpleNamespace:
    """The names that the code of docs/scaling.md defines."""
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(# \w+\.py\n.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), names)
    return SimpleNamespace(**names)


class Handler(BaseHTTPRequestHandler):
    """Files of a folder, whole or a range of their bytes, after a while."""

    protocol_version = "HTTP/1.1"  # connections stay
    disable_nagle_algorithm = True
    folder: Path
    latency: float

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        time.sleep(self.latency)
        path = self.folder / self.path.lstrip("/")
        if not path.is_file():
            return self.send_error(404)
        size = path.stat().st_size
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        begin, end = (int(asked[1]), min(size, int(asked[2] or size) + 1)) if asked else (0, size)
        self.send_response(206 if asked else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end - begin))
        if asked:
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{size}")
        self.end_headers()
        if body:
            with path.open("rb") as file:
                file.seek(begin)
                self.wfile.write(file.read(end - begin))

    def log_message(self, *args: object) -> None:
        """Nothing: the figures are what is printed."""


def serve(folder: Path, latency: float, pipe: Connection) -> None:
    handler = type("FolderHandler", (Handler,), {"folder": folder, "latency": latency})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    pipe.send(server.server_port)
    server.serve_forever()


@contextmanager
def web_server(folder: Path, latency: float = 0.0) -> Iterator[str]:
    """The address of a web server for a folder, in a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=serve, args=(folder, latency, theirs), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}"
    finally:
        process.terminate()
        process.join()


def write_tars(paths: Sequence[Path], folder: Path) -> list[str]:
    """The files in tars, one after the other; returns the tars' names."""
    names = [f"{number:05d}.tar" for number in range(SHARDS)]
    for name, share in zip(names, np.array_split(np.arange(len(paths)), SHARDS), strict=True):
        with tarfile.open(folder / name, "w") as tar:
            for number in share:
                tar.add(paths[number], arcname=paths[number].name)
    return names


def sample_bytes(scale: Scale, persons: Persons, packs: dict[str, Persons]) -> list[dict[str, Any]]:
    """Mean bytes per sample of each source: `read` from files, and `pixels` as they go to a device."""
    paths = persons.image_paths
    sizes = np.full((len(paths), 2), scale.picture)
    reduction = reductions(persons, scale.crop, Augmentation().scale_min)
    read = float(np.mean([path.stat().st_size for path in paths]))
    rows = [
        {"source": "files", "read": read, "pixels": mean_pixels(sizes)},
        {"source": "files, reduced", "read": read, "pixels": mean_pixels(-(-sizes // reduction[:, None]))},
    ]
    for kind, packed in packs.items():
        root, _ = pack_of(packed.image_paths) or (Path(), "")
        shards = sum(path.stat().st_size for path in root.glob("*.shard"))
        regions = PackedImages(packed.image_paths)
        rows.append({"source": f"pack, {kind}", "read": shards / len(packed), "pixels": mean_pixels(regions.sizes)})
    return rows


def mean_pixels(sizes: np.ndarray) -> float:
    return float(3 * sizes.astype(np.int64).prod(axis=1).mean())


def bytes_by_ranks(paths: Sequence[Path], batch: int) -> list[dict[str, Any]]:
    """What the system hands to the readers of a JPEG pack in an epoch whose batches are divided among ranks."""
    order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(0))
    PackedImages(paths).load(order[:batch], torch.device("cpu"))  # what is imported on the way is not counted
    rows = []
    for ranks in RANKS:
        sources = [PackedImages(paths) for _ in range(ranks)]
        before = bytes_read()
        for rows_of_batch in order.split(batch):
            for source, share in zip(sources, rows_of_batch.tensor_split(ranks), strict=True):
                source.load(share, torch.device("cpu"))
        rows.append({"ranks": ranks, "bytes": bytes_read() - before})
    return rows


def bytes_read() -> int:
    """What this process has read so far, from disk or from the page cache."""
    text = Path("/proc/self/io").read_text(encoding="ascii")
    return int(re.search(r"rchar: (\d+)", text)[1])  # type: ignore[index]


def sources_of(
    paths: Sequence[Path], folder: Path, tars: list[str], stack: ExitStack
) -> dict[str, tuple[Any, list[Any]]]:
    """By name: the filesystem, and the place of each picture; files without fsspec have no filesystem."""
    code = page_code()
    local, web = fsspec.filesystem("file"), fsspec.filesystem("http")
    sources: dict[str, tuple[Any, list[Any]]] = {"files": (None, list(paths))}

    def add(name: str, filesystem: Any, root: str) -> None:
        sources[name] = filesystem, [(f"{root}/{path.name}", None, None) for path in paths]
        by_name = code.tar_places(filesystem, [f"{root}/{tar}" for tar in tars])
        sources[f"{name}, tar"] = filesystem, [by_name[path.name] for path in paths]

    add("fsspec, local", local, str(folder))
    for latency in LATENCIES:
        root = stack.enter_context(web_server(folder, latency))
        add(f"fsspec, http, {1000 * latency:.0f} ms", web, root)
    return sources


def read_alone(threads: DecodeThreads, filesystem: Any, places: Sequence[Any], images: torch.Tensor) -> list[bytes]:
    """The bytes of pictures, not decoded."""
    wanted = [places[image] for image in images.tolist()]
    return threads.each(read_file if filesystem is None else lambda place: filesystem.cat_file(*place), wanted)


def reading_rows(sources: dict[str, tuple[Any, list[Any]]], batch: int) -> list[dict[str, Any]]:
    """Images per second of each source and number of threads: read and decoded, and, with the most threads, read alone.

    Each reads the same batches.
    """
    remote_images = page_code().RemoteImages
    calls: dict[tuple[str, int, str], Callable[[torch.Tensor], object]] = {}
    for name, (filesystem, places) in sources.items():
        for threads in THREADS:
            source: PixelSource = (
                ImageFiles(places, threads) if filesystem is None else remote_images(filesystem, places, threads)
            )
            calls[name, threads, "decoded"] = partial(source.load, device=torch.device("cpu"))
        calls[name, max(THREADS), "read"] = partial(read_alone, DecodeThreads(max(THREADS)), filesystem, places)
    rates: dict[tuple[str, int, str], list[float]] = {key: [] for key in calls}
    images = len(next(iter(sources.values()))[1])
    for round_ in range(-1, ROUNDS):  # the first one opens connections, and is not counted
        order = torch.randperm(images, generator=torch.Generator().manual_seed(round_ + 1))[:batch]
        for key, call in calls.items():
            begin = time.perf_counter()
            call(order)
            if round_ >= 0:
                rates[key].append(len(order) / (time.perf_counter() - begin))
    return [
        {
            "source": name,
            "threads": threads,
            "what": what,
            "images_per_s": statistics.median(found),
            "least": min(found),
            "most": max(found),
        }
        for (name, threads, what), found in rates.items()
    ]


def figures(scale: Scale) -> dict[str, Any]:
    device = torch.device("cpu")
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory(prefix="fastpose-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        (folder / "files").mkdir()
        persons = pipeline.write_pictures(folder / "files", scale).select(np.arange(scale.pictures))
        kinds: tuple[Literal["jpeg", "raw"], ...] = ("jpeg", "raw")
        packs = {str(kind): pipeline.pack(folder / kind, persons, kind, scale) for kind in kinds}
        tars = write_tars(persons.image_paths, folder / "files")
        sources = sources_of(persons.image_paths, folder / "files", tars, stack)
        return {
            **report.environment(device),
            "device": cpuinfo.get_cpu_info().get("brand_raw", "unknown"),
            "cores": len(os.sched_getaffinity(0)),
            "versions": {package: version(package) for package in ("fsspec", "aiohttp", "numpy")}
            | {"opencv": cv2.__version__},
            "pictures": {"count": scale.pictures, "height": scale.picture[0], "width": scale.picture[1]},
            "batch": scale.batch,
            "bytes": sample_bytes(scale, persons, packs),
            "ranks": bytes_by_ranks(packs["jpeg"].image_paths, scale.batch),
            "reading": reading_rows(sources, scale.batch),
        }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.remote", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder of the JSON")
    options = parser.parse_args(argv)
    found = figures(Scale.of(torch.device("cuda")))  # its pictures; nothing here uses a GPU
    moment = datetime.fromisoformat(str(found["date"])).strftime("%Y%m%dT%H%M")
    path = options.out / f"remote_{moment}_{found['commit']}.json"
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
