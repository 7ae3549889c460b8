# SPDX-License-Identifier: Apache-2.0
"""Changes packs as somebody would who makes their checksums right again."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastpose.data.pack.format import with_checksum


def contents(root: Path) -> dict[str, bytes]:
    """All files in a folder by name."""
    return {path.name: path.read_bytes() for path in root.iterdir()}


def forge(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Lets `change` alter the contents of pack.json in place."""
    index = json.loads((root / "pack.json").read_text())
    change(index)
    (root / "pack.json").write_text(json.dumps(with_checksum(index)))


def forge_annotations(root: Path, arrays: Mapping[str, np.ndarray] | bytes) -> None:
    """Replaces the annotations to train on, by arrays or by a whole file."""
    path = root / "train-persons.npz"
    if isinstance(arrays, bytes):
        path.write_bytes(arrays)
    else:
        np.savez(path, **arrays)
    data = path.read_bytes()
    entry = {"bytes": len(data), "crc": zlib.crc32(data)}
    forge(root, lambda index: index["files"]["train"]["annotations"].update(entry))


def forge_table(root: Path, number: int, rows: np.ndarray | bytes) -> None:
    """Replaces the table of a shard to train on, by rows or by a whole file."""
    path = root / f"train-{number:05d}.npy"
    if isinstance(rows, bytes):
        path.write_bytes(rows)
    else:
        np.save(path, rows)
    crc = zlib.crc32(path.read_bytes())
    forge(root, lambda index: index["files"]["train"]["shards"][number].update(table_crc=crc))


def forge_record(root: Path, record: bytes, **fields: int) -> None:
    """Replaces the first record to train on, and fields of its row."""
    shard, rows = root / "train-00000.shard", np.load(root / "train-00000.npy")
    length = int(rows["length"][0])
    shard.write_bytes(record + shard.read_bytes()[length:])
    rows["offset"][1:] += len(record) - length
    for name, value in ({"length": len(record), "crc": zlib.crc32(record)} | fields).items():
        rows[name][0] = value
    size = shard.stat().st_size
    forge(root, lambda index: index["files"]["train"]["shards"][0].update(bytes=size))
    forge_table(root, 0, rows)
