# SPDX-License-Identifier: Apache-2.0
"""What a run leaves in its folder beside numbers: curves.png, predictions.png and heatmaps.png."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import fastpose
from fastpose.data.dataset import Scorer
from fastpose.data.loader import PoseLoader
from fastpose.data.persons import Persons
from fastpose.data.pixels import ResidentImages, open_images
from fastpose.data.reading import Reading
from fastpose.device import available_cores
from fastpose.engine import pictures
from fastpose.engine.evaluation import Evaluation, best_seen_person, heatmaps_of
from fastpose.models.decoding import Decoder

PERSONS = 12  # in predictions.png
SIDE = 320  # pixels of a person's longer side there
MAGNIFIED = 2  # heatmaps.png, as a multiple of the network's input


def draw(
    folder: Path,
    history: Sequence[dict[str, Any]],
    scorer: Scorer,
    loader: PoseLoader,
    decoder: Decoder,
    evaluation: Evaluation,
) -> None:
    """Draws the pictures of a run.

    Args:
        folder: where to.
        history: the lines of metrics.jsonl.
        scorer: of the validation persons.
        loader: of these persons.
        decoder: with the network.
        evaluation: the predictions to show.
    """
    pictures.draw_curves(folder / "curves.png", history, scorer.name, scorer.curves, scorer.label, scorer.note)
    persons = loader.persons
    draw_predictions(folder / "predictions.png", persons, evaluation.predictions)
    kept = loader.source.kept if isinstance(loader.source, ResidentImages) else None
    among = np.ones(len(persons), bool) if kept is None else kept[persons.image_index]  # not in other ranks alone
    row = best_seen_person(persons, evaluation, among)
    heatmaps = heatmaps_of(decoder, loader, row)
    size = (MAGNIFIED * loader.size[0], MAGNIFIED * loader.size[1])
    crop, points = person_crop(*place_of(persons, row), size, evaluation.predictions[row])
    pictures.draw_heatmaps(
        folder / "heatmaps.png",
        crop,
        heatmaps,
        points,
        evaluation.scores[row],
        persons.skeleton,
        udp=loader.udp and decoder.simcc is None,
    )


def draw_predictions(path: Path, persons: Persons, predictions: np.ndarray) -> None:
    """Predictions, [N, K, 2] in image pixels, and annotations of some persons, evenly spread over the data; those with
    NaN are left out."""
    rows = np.flatnonzero(np.isfinite(predictions).all(axis=(1, 2)))
    rows = rows[np.linspace(0, len(rows) - 1, min(PERSONS, len(rows))).round().astype(int)]
    people = []
    for row in rows:
        # The boxes of one data set have one aspect ratio, those of several sets have not.
        wide, high = (persons.scale[row] / persons.scale[row].max()).tolist()
        size = (round(SIDE * high), round(SIDE * wide))
        crop, predicted, truth = person_crop(*place_of(persons, row), size, predictions[row], persons.keypoints[row])
        people.append(pictures.Person(crop, predicted, truth, persons.visible[row] > 0.5))
    pictures.draw_predictions(path, people, persons.skeleton)


def place_of(persons: Persons, row: int) -> tuple[Path, Reading, NDArray[Any], NDArray[Any]]:
    """Where a person is: the image, how it becomes pixels, and the box's center and scale, float32 [2] each."""
    path = persons.image_paths[persons.image_index[row]]
    return path, persons.reading, persons.center[row], persons.scale[row]


def person_crop(
    path: Path,
    reading: Reading,
    center: NDArray[Any],
    scale: NDArray[Any],
    size: tuple[int, int],
    *points: NDArray[np.float32],
) -> tuple[NDArray[Any], ...]:
    """A person's box as uint8 [h, w, 3], and points of the image, [K, 2] each, in its pixels."""
    middle, scales = (torch.from_numpy(array[None]) for array in (center, scale))
    crop_to_image = fastpose.crop_to_image_matrix(middle, scales, torch.zeros(1), size)
    moved = [
        fastpose.transform_points(torch.from_numpy(p[None]), crop_to_image, inverse=True)[0].numpy() for p in points
    ]
    pixels = open_images([path], threads=1, reading=reading).load(
        torch.zeros(1, dtype=torch.int64), torch.device("cpu")
    )
    if pixels.errors:
        raise pixels.errors[0]
    if pixels.frame is not None:
        origin = torch.cat([torch.zeros(2, 2), pixels.frame[0, 1:, None]], dim=1)
        crop_to_image = (crop_to_image - origin) / pixels.frame[0, 0]
    crop = fastpose.affine_crop(pixels.images, crop_to_image, size)[0]
    return crop.permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy(), *moved


def environment(device: torch.device) -> dict[str, str | None]:
    """Where a run is: device, commit, torch's version and the machine, which is not named."""
    machine = f"{platform.system()} {platform.machine()}, {available_cores()} cores"
    if device.type == "cuda":
        machine += f", {torch.cuda.get_device_name(device)}"
    return {"device": str(device), "commit": code_version(), "torch": torch.__version__, "machine": machine}


def code_version() -> str | None:
    """The commit of the checkout this package runs from, with -dirty if it was changed; None outside a checkout."""
    root = Path(fastpose.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None
