# SPDX-License-Identifier: Apache-2.0
"""Loads from every pixel source in a worker of each kind that torch's DataLoader has; its own process, see
tests/data/test_worker_processes.py.

    python -m tests.helpers.in_workers FOLDER METHOD    # FOLDER: one of write_tiny_mpii, raw/ and jpeg/ packs of it
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from fastpose.data.pack import read_packed_persons
from fastpose.data.pixels import ImageFiles, PackedImages, PixelSource, ResidentImages

CPU = torch.device("cpu")


class Loads(Dataset):
    """Item i is what source i has of its image 1, loaded by whoever asks for it."""

    def __init__(self, sources: dict[str, PixelSource]) -> None:
        self.names, self.sources = list(sources), list(sources.values())

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, number: int) -> np.ndarray:
        pixels = self.sources[number].load(torch.tensor([2, 1]), CPU)
        assert not pixels.errors
        return pixels.images[int(pixels.index[1])].numpy().copy()


def sources(root: Path) -> dict[str, PixelSource]:
    paths = sorted((root / "data" / "images").glob("*.jpg"))
    return {
        "files": ImageFiles(paths, 2),
        "reduced files": ImageFiles(paths, 2, np.full(len(paths), 2)),
        "resident": ResidentImages.from_files(paths, CPU),
        "raw pack": PackedImages(read_packed_persons(root / "raw", "train").image_paths, 2),
        "jpeg pack": PackedImages(read_packed_persons(root / "jpeg", "train").image_paths, 2),
    }


def main() -> None:
    root, method = Path(sys.argv[1]), sys.argv[2]
    used, unused = sources(root), sources(root)
    expected = [Loads(used)[number] for number in range(len(used))]
    loads = Loads(
        {f"{state} {name}": s for state, of in {"used": used, "unused": unused}.items() for name, s in of.items()}
    )
    workers = DataLoader(loads, batch_size=None, num_workers=1, multiprocessing_context=method, timeout=100)
    for name, got, wanted in zip(loads.names, workers, expected * 2, strict=True):
        assert np.array_equal(got, wanted)
        print(f"{name}: equal", flush=True)


if __name__ == "__main__":
    main()
