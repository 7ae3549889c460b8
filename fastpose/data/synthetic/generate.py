# SPDX-License-Identifier: Apache-2.0
"""A synthetic data set in MPII's format: articulated, clothed figures on cluttered backgrounds.

``generate`` writes ::

    OUT/images/*.jpg           pictures of different sizes, one to three figures each
    OUT/annot/train.json       the community's MPII annotations: joints_vis, joints, image, scale, center
    OUT/annot/valid.json
    OUT/annot/gt_valid.mat     joints, missing joints and head boxes of the validation rows
    OUT/synthetic.json         the parameters the set was made with

Convention: written coordinates are 1-based, a missing joint is (-1, -1) with ``joints_vis`` 0, and ``center`` and
``scale`` are raw, before a reader moves the centre down by 15·scale and enlarges the scale by 1.25. A joint is missing
when it lies outside its picture or, now and then, because it was not annotated; a merely hidden joint is annotated.

What tells left from right is where a figure faces, and its clothes: each side wears its own colours. No colour
stands for a side, since a mirrored picture of a person must remain a picture of a person.

The same parameters give the same bytes with the same versions of NumPy, OpenCV and SciPy, whatever the number of
workers.
"""

from __future__ import annotations

import dataclasses
import glob
import io
import json
import os
import secrets
import shutil
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fastpose.data.synthetic.figure import (
    HEAD,
    L_ANKLE,
    NECK,
    NUM_JOINTS,
    R_ANKLE,
    THORAX,
    Figure,
    sample_outfit,
    sample_pose,
)
from fastpose.data.synthetic.scene import draw_background, draw_occluder, draw_shadow, photograph
from fastpose.data.synthetic.workers import WorkerGone, in_processes
from fastpose.device import available_cores
from fastpose.files import only_writer

GENERATOR_VERSION = 1
SPLITS = ("train", "valid")
MANIFEST = "synthetic.json"
# The names gt_valid.mat uses, in MPII's joint order.
MAT_JOINT_NAMES = (
    "rank", "rkne", "rhip", "lhip", "lkne", "lank", "pelv", "thor",
    "neck", "head", "rwri", "relb", "rsho", "lsho", "lelb", "lwri",
)  # fmt: skip

_PLACEMENT_TRIES = 40
_DESCRIPTORS = 8


class SyntheticDataError(ValueError):
    """The parameters make no data set, or the place for it is taken."""


@dataclass(frozen=True)
class SyntheticSummary:
    """What ``generate`` made or found; ``created`` is False where the same data set was already there."""

    path: Path
    train_persons: int
    valid_persons: int
    images: int
    created: bool


# ---------------------------------------------------------------- one picture


def _figure_heights(rng: np.random.Generator, count: int) -> tuple[list[float], int, int]:
    """Heights in px of the figures standing upright, and the picture's height and width."""
    tallest = rng.uniform(135, 315)
    heights = [tallest * (1.0 if i == 0 else rng.uniform(0.7, 1.0)) for i in range(count)]
    height = tallest * rng.uniform(1.05, 1.4)
    width = max(height * rng.uniform(0.7, 1.5), tallest * (0.35 + 0.42 * count))
    scale = min(1.0, 520 / max(height, width))
    scale = max(scale, 240 / max(height, width))
    return [h * scale for h in heights], round(height * scale), round(width * scale)


def _inside(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """Which pixel positions, [N, 2], lie on a pixel of the picture."""
    x, y = points[:, 0], points[:, 1]
    return (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)


def _place(
    rng: np.random.Generator, slot: tuple[float, float], figure_height: float, height: int, width: int
) -> Figure:
    """Draw a figure and put it into a slot (left, right px), mostly whole; some are cut off by the border."""
    light = (rng.uniform(-1, 1), rng.uniform(-1, -0.2))
    for _ in range(_PLACEMENT_TRIES):
        pose, outfit = sample_pose(rng), sample_outfit(rng)
        joints = Figure(pose, outfit, (0.0, 0.0), figure_height, light).joints
        low, high = joints.min(0) - 0.05 * figure_height, joints.max(0) + 0.05 * figure_height
        slack = 0.25 * figure_height if rng.random() < 0.15 else 0.0  # how far it may stick out
        x = rng.uniform(*sorted((slot[0] - slack - low[0], slot[1] + slack - high[0])))
        y = rng.uniform(*sorted((-low[1], height + slack * 1.6 - high[1])))
        figure = Figure(pose, outfit, (x, y), figure_height, light)
        seen = _inside(figure.joints, height, width)
        if seen[[HEAD, NECK, THORAX]].all() and seen.sum() >= (10 if slack else 15):
            return figure
    return figure  # a figure that sticks out further than wished is still annotated rightly


def _annotate(rng: np.random.Generator, figure: Figure, image: str, height: int, width: int) -> dict[str, Any]:
    """The figure's annotation row in MPII's format plus its ``head_box`` (two corners), 1-based."""
    joints = figure.joints
    seen = _inside(joints, height, width)
    extent = joints[seen].max(0) - joints[seen].min(0)
    size = max(extent.max(), 0.6 * figure.height) * rng.uniform(0.96, 1.12)
    middle = (joints[seen].max(0) + joints[seen].min(0)) / 2
    # MPII's centres lie a little above the middle of the joints and are not exact.
    center = middle + size * (np.array([0.0, -0.03]) + rng.normal(0, 0.025, 2))
    annotated = seen & (rng.random(NUM_JOINTS) > 0.02)
    written = np.where(annotated[:, None], np.round(joints + 1, 2), -1.0)
    return {
        "joints_vis": [int(value) for value in annotated],
        "joints": written.tolist(),
        "image": image,
        "scale": round(float(size) / 200, 6),
        "center": np.round(center + 1, 2).tolist(),
        "head_box": np.round(figure.head_box() + 1, 2).tolist(),
    }


def render_scene(rng: np.random.Generator, count: int, image: str) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Draw one picture with ``count`` figures: uint8 RGB [H, W, 3] and one annotation row per figure."""
    figure_heights, height, width = _figure_heights(rng, count)
    canvas = draw_background(rng, height, width)
    edges = np.linspace(0, width, count + 1)
    figures = [_place(rng, (edges[i], edges[i + 1]), figure_heights[i], height, width) for i in rng.permutation(count)]
    for figure in figures:
        draw_shadow(canvas, figure.joints[[R_ANKLE, L_ANKLE]], figure.height)
        figure.draw(canvas)
        if rng.random() < 0.08:
            draw_occluder(canvas, rng, figure.origin, figure.height)
    return photograph(rng, canvas), [_annotate(rng, figure, image, height, width) for figure in figures]


# ---------------------------------------------------------------- the data set


def _figure_counts(persons: int, rng: np.random.Generator) -> list[int]:
    """How many figures each picture gets; they add up to ``persons``."""
    counts: list[int] = []
    while persons > 0:
        counts.append(min(persons, int(rng.choice((1, 2, 3), p=(0.74, 0.21, 0.05)))))
        persons -= counts[-1]
    return counts


@dataclass(frozen=True)
class _ImageJob:
    split: str
    name: str
    seed: tuple[int, ...]  # a picture depends on its own seed alone, so the order of work does not matter
    figures: int


def _image_jobs(persons: dict[str, int], seed: int) -> list[_ImageJob]:
    jobs = []
    for number, split in enumerate(SPLITS):
        for index, count in enumerate(_figure_counts(persons[split], np.random.default_rng((seed, number)))):
            jobs.append(_ImageJob(split, f"{split}_{index:06d}.jpg", (seed, number, index), count))
    return jobs


def _write_image(job: _ImageJob, folder: Path) -> list[dict[str, Any]]:
    """Render one picture into ``folder`` and return its annotation rows."""
    rng = np.random.default_rng(job.seed)
    picture, rows = render_scene(rng, job.figures, job.name)
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(82, 96))]
    written, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), quality)
    if not written:
        raise SyntheticDataError(f"{folder / job.name}: OpenCV could not encode the picture as JPEG")
    (folder / job.name).write_bytes(data.tobytes())
    return rows


def _write_ground_truth(rows: list[dict[str, Any]], path: Path) -> None:
    """Write gt_valid.mat, 1-based: jnt_missing [16, N], pos_gt_src [16, 2, N], headboxes_src [2, 2, N] and names."""
    from scipy.io import savemat  # only needed here, and slow to import in every worker

    names = np.empty((1, NUM_JOINTS), dtype=object)
    names[0] = MAT_JOINT_NAMES
    buffer = io.BytesIO()
    content = {
        "dataset_joints": names,
        "jnt_missing": 1 - np.array([row["joints_vis"] for row in rows], dtype=np.uint8).T,
        "pos_gt_src": np.array([row["joints"] for row in rows], dtype=np.float64).transpose(1, 2, 0),
        "headboxes_src": np.array([row["head_box"] for row in rows], dtype=np.float64).transpose(1, 2, 0),
    }
    savemat(buffer, content)
    # The header's 116 bytes of free text have the time of writing; the same seed must give the same file.
    header = b"MATLAB 5.0 MAT-file, written by fastpose.synthetic".ljust(116)
    path.write_bytes(header + buffer.getvalue()[116:])


def _write_annotations(rows: dict[str, list[dict[str, Any]]], folder: Path) -> None:
    for split in SPLITS:
        public = [{key: value for key, value in row.items() if key != "head_box"} for row in rows[split]]
        lines = ",\n".join(json.dumps(row) for row in public)
        (folder / f"{split}.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    _write_ground_truth(rows["valid"], folder / "gt_valid.mat")


def _check_parameters(persons: int, valid_persons: int, seed: int, workers: int) -> None:
    if persons < 2:
        raise SyntheticDataError(f"persons: expected at least 2 (one to train on, one to validate), got {persons}")
    if not 1 <= valid_persons < persons:
        raise SyntheticDataError(f"valid_persons: expected 1 to {persons - 1}, fewer than persons, got {valid_persons}")
    if seed < 0:
        raise SyntheticDataError(f"seed: expected 0 or more, got {seed}")
    if workers < 1:
        raise SyntheticDataError(f"workers: expected at least 1, got {workers}")


def _read_manifest(out: Path) -> dict[str, Any] | None:
    """The parameters of the data set at ``out``, or None where no readable manifest is."""
    try:
        manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and manifest.get("generator") == "fastpose.synthetic" else None


def _is_complete(out: Path, manifest: dict[str, Any]) -> bool:
    """Whether all files are there. After a power cut files may have their names and no bytes."""
    annotations = [out / "annot" / name for name in ("train.json", "valid.json", "gt_valid.mat")]
    images = list((out / "images").glob("*.jpg"))
    with_bytes = all(file.is_file() and file.stat().st_size for file in (*annotations, *images))
    return with_bytes and len(images) == manifest["images"]


def _put_in_place(made: Path, out: Path) -> None:
    """Rename the finished folder to ``out``; what was there is removed only after the new one has its name."""
    if not out.exists() or not any(out.iterdir()):
        os.replace(made, out)
        return
    old = _old(out)
    os.replace(out, old)
    os.replace(made, out)
    shutil.rmtree(old)


def _old(out: Path) -> Path:
    """Where what is at ``out`` is kept until the new folder has its name."""
    return out.with_name(f".{out.name}.old")


@contextmanager
def _drawn_beside(out: Path) -> Iterator[Path]:
    """An empty folder beside ``out`` to draw into, which the block renames; removed if the block raises.

    A process that is killed leaves it: the next one removes what is in it. SyntheticDataError where another process has
    it, as it is locked.
    """
    made = out.with_name(f".{out.name}.partial")
    if made.is_symlink():  # its contents are not ours to remove
        raise SyntheticDataError(f"{made}: expected a folder or nothing, found a link")
    with ExitStack() as spare:  # what locking and removing a folder takes: without it nothing is begun
        for _ in range(_DESCRIPTORS):
            spare.callback(os.close, os.open(os.devnull, os.O_RDONLY))
    made.mkdir(parents=True, exist_ok=True)
    found = made.stat()
    taken = SyntheticDataError(f"{out}: another process is drawing into it (in {made}): wait until it is done")
    with only_writer(made, taken):
        try:
            same = os.path.samestat(found, made.stat())
        except FileNotFoundError:
            same = False
        if not same:  # the other process was done just now, and what is locked has its name already
            raise taken
        try:
            # Version 0.1 and later ones up to the lock drew into a folder of another name each time.
            for left in (*made.iterdir(), *out.parent.glob(f".{glob.escape(out.name)}.????????.partial")):
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
            if (old := _old(out)).exists():
                # Killed between the two renames, or after them.
                shutil.rmtree(old) if out.exists() else os.replace(old, out)
            yield made
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise


def generate(
    out: Path,
    *,
    persons: int,
    seed: int,
    valid_persons: int | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> SyntheticSummary:
    """Write a data set to the folder ``out`` (layout and conventions: the module's docstring).

    persons: figures in all; valid_persons of them (default: a fifth, at least one) are validation rows. No picture
    has figures of both splits.
    workers: processes (default: the usable CPUs, fewer for small sets). With more than one, a script that calls this
    needs the usual ``if __name__ == "__main__":`` guard.
    overwrite: replace a synthetic data set made with other parameters. A folder with anything else is never replaced.
    progress: called with (pictures done, pictures in all), first with 0 done; not called where nothing is to be done.

    The folder appears complete or not at all. Where the same data set is already there, nothing is written. What a
    killed process left beside it, ``.OUT.partial``, is removed by the next one.
    Raises SyntheticDataError for parameters out of range, when ``out`` is taken or another process draws into it;
    OSError, of a full disk with the folder.
    """
    out = Path(out).resolve()
    valid_persons = max(1, persons // 5) if valid_persons is None else valid_persons
    workers = max(1, min(available_cores(), persons // 200)) if workers is None else workers
    _check_parameters(persons, valid_persons, seed, workers)
    splits = {"train": persons - valid_persons, "valid": valid_persons}
    images = len(_image_jobs(splits, seed))
    manifest = {
        "generator": "fastpose.synthetic",
        "version": GENERATOR_VERSION,
        "persons": persons,
        "valid_persons": valid_persons,
        "seed": seed,
        "images": images,
    }
    summary = SyntheticSummary(out, persons - valid_persons, valid_persons, images, created=True)
    if not _old(out).exists() and _already_there(out, manifest, overwrite):
        return dataclasses.replace(summary, created=False)

    with _drawn_beside(out) as made:
        if _already_there(out, manifest, overwrite):  # another process was quicker
            shutil.rmtree(made)
            return dataclasses.replace(summary, created=False)
        try:
            # A name of its own: a worker may outlive its parent by a picture, which must not be one of the next set.
            drawn = made / f"images.{secrets.token_hex(8)}"
            drawn.mkdir()
            draw = partial(_write_image, folder=drawn)
            rows = _draw(in_processes(partial(_image_jobs, splits, seed), draw, min(workers, images)), images, progress)
            os.replace(drawn, made / "images")
            (made / "annot").mkdir()
            _write_annotations(rows, made / "annot")
            (made / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
            _put_in_place(made, out)
        except WorkerGone as error:
            raise SyntheticDataError(
                f"{out}: a process that drew for it was ended, perhaps for want of memory"
            ) from error
        except OSError as error:  # of a full disk it does not say where
            if error.errno is None or error.filename is not None:
                raise
            raise OSError(error.errno, error.strerror, str(out)) from error
    return summary


def _draw(
    rendered: Generator[tuple[_ImageJob, list[dict[str, Any]]]],
    images: int,
    progress: Callable[[int, int], None] | None,
) -> dict[str, list[dict[str, Any]]]:
    """Draws all pictures and returns the annotation rows of each split."""
    rows: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    if progress is not None:
        progress(0, images)
    # Closed before the folder is removed, whatever happens: no worker may still be writing into it then.
    with closing(rendered):
        for done, (job, image_rows) in enumerate(rendered, 1):
            rows[job.split] += image_rows
            if progress is not None:
                progress(done, images)
    return rows


def _already_there(out: Path, manifest: dict[str, Any], overwrite: bool) -> bool:
    """Whether this very data set is at ``out``; SyntheticDataError when something else is and must not be replaced."""
    if not out.exists():
        return False
    if not out.is_dir():
        raise SyntheticDataError(f"{out}: expected a folder or nothing, found a file")
    found = _read_manifest(out)
    if found == manifest and _is_complete(out, manifest):
        return True
    if not any(out.iterdir()):
        return False
    if found is None:
        raise SyntheticDataError(f"{out}: holds something that is not a synthetic data set; choose another folder")
    if not overwrite:
        what = (
            "an incomplete copy of" if found == manifest else f"another synthetic data set ({_described(found)}) than"
        )
        raise SyntheticDataError(
            f"{out}: holds {what} the one asked for ({_described(manifest)}); choose another folder, remove this one, "
            "or replace it with python -m fastpose.synthetic and its option --overwrite"
        )
    return False


def _described(manifest: dict[str, Any]) -> str:
    get = manifest.get
    persons = f"{get('persons')} persons, {get('valid_persons')} of them for validation"
    return f"{persons}, seed {get('seed')}, generator version {get('version')}"
