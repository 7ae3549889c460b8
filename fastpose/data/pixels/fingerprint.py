# SPDX-License-Identifier: Apache-2.0
"""Whether a run that goes on has the pixels that it began with, without reading them."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fastpose.data.pack.format import pack_of, split_files


def images_fingerprint(paths: Sequence[Path]) -> str:
    """What distinguishes these images from others: the sizes of their files, in order, or a pack's own checksums.

    A copied file keeps its size, and one that was encoded again, turned or cut has another, nearly always; a copy has
    other times, so they do not count. That takes a call of the system per file, where a
    checksum would read all of them. Names are in the fingerprint of `Persons`.

    Args:
        paths: `Persons.image_paths`. A file that cannot be found counts as one without a size.

    Raises:
        PackError: they are a pack's, and its pack.json is damaged.
    """
    if found := pack_of(paths):
        shards = json.dumps(split_files(*found).get("shards"), sort_keys=True)
        return f"a pack of {len(paths)} regions, checksum {zlib.crc32(shards.encode()):08x}"
    sizes = np.array([_size(path) for path in paths], "<i8")
    return f"{len(sizes)} files of {sizes.clip(0).sum():,} bytes, checksum {zlib.crc32(sizes.tobytes()):08x}"


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # loading it is an error that names it
        return -1
