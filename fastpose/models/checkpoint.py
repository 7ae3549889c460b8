# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that cannot be torn and cannot run code."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from fastpose.files import WholeFile, written_beside

log = logging.getLogger(__name__)

FORMAT = "fastpose-checkpoint-1"
CONTENTS = {"format", "model", "optimizer", "learning_rate", "progress", "config", "skeleton"}


# What other programs' files have beside tensors and plain values: scores, histories (with their methods, hence
# getattr), tables of joints. Nothing of them is needed, nor the code that would read them: each is read as an _Ignored.
IGNORED = (
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *("numpy.dtype", "numpy.ndarray"),
    *("mmengine.logging.history_buffer.HistoryBuffer", "builtins.getattr"),
)


class CheckpointError(ValueError):
    """A checkpoint file is missing, damaged or not ours; the message names the file."""


class _Ignored:
    """A value that is not used."""

    def __init__(self, *arguments: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


def save_checkpoint(
    path: Path,
    *,
    model: dict[str, Tensor],
    optimizer: dict[str, Any] | None,
    learning_rate: dict[str, Any],
    progress: dict[str, Any],
    config: dict[str, Any],
    skeleton: dict[str, Any] | str,
    keep_previous: bool = False,
) -> None:
    """Writes a checkpoint beside `path` and renames it into place, so `path` is at every moment a whole file.

    Args:
        path: the file to write.
        model: the model's state_dict.
        optimizer: the optimiser's state_dict, None where training will not go on from this file.
        learning_rate: the learning-rate rule's state.
        progress: plain values: epoch, step and whatever else the loop has to remember.
        config: the run's options as plain values.
        skeleton: the joints, `dataclasses.asdict` of a Skeleton; in files of version 0.1 its name alone.
        keep_previous: keep the file that was there as `previous_path(path)`.

    Raises:
        OSError: it could not be written; names the file and, if the disk is full, the bytes needed and free.
    """
    contents = {
        "format": FORMAT,
        "model": model,
        "optimizer": optimizer,
        "learning_rate": learning_rate,
        "progress": progress,
        "config": config,
        "skeleton": skeleton,
    }
    save_contents(path, contents, keep_previous=keep_previous)


def save_contents(path: Path, contents: Any, *, keep_previous: bool = False, for_old_torch: bool = False) -> None:
    """`torch.save`, but beside `path` and renamed into place. `keep_previous` as in `save_checkpoint`.

    `for_old_torch`: in the format from before torch 1.6, which knows no other.
    """
    keep = previous_path(path) if keep_previous else None
    with written_beside(path, keep=keep) as beside, WholeFile(beside) as file:
        torch.save(contents, cast(BinaryIO, file), _use_new_zipfile_serialization=not for_old_torch)


def checkpoint_file(path: Path) -> Path:
    """The checkpoint that `path` means: best.pt of a run's folder, else the file itself."""
    return path / "best.pt" if path.is_dir() else path


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint onto the CPU, as tensors and plain values only (nothing in the file is executed).

    Raises:
        CheckpointError: the file is missing, damaged, not ours, or contains more than tensors and plain values.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file")
    return check_checkpoint(path, read_contents(path, ignored=()))


def read_contents(path: Path, ignored: Sequence[str] = IGNORED) -> Any:
    """What any program has written with `torch.save`: tensors, on the CPU, and plain values. Nothing in it is executed.

    Args:
        path: the file.
        ignored: full names of the classes and functions whose objects are read as ones without content.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: the file is damaged, or contains more than that.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of weights")
    try:
        with torch.serialization.safe_globals([(_Ignored, name) for name in ignored]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the damaged bytes lead to
        # For a file that it refuses to unpickle torch explains at length how to run the code in it; that is bad advice.
        reason = str(error).strip().partition("\n")[0]
        if "weights_only" in str(error):
            found = re.search(r"GLOBAL (\S+)", str(error))
            reason = f"holds {found[1]}, and only tensors and plain values are read" if found else ""
        kind = type(error).__name__ + (f": {reason}" if reason else "")
        raise CheckpointError(f"{path}: damaged, or not a checkpoint ({kind})") from error


def check_checkpoint(path: Path, contents: Any) -> dict[str, Any]:
    """The contents of a file, if they are a checkpoint of ours.

    Raises:
        CheckpointError: they are not, or something is missing.
    """
    if not isinstance(contents, dict) or contents.get("format") != FORMAT:
        found = f"format {contents.get('format')!r}" if isinstance(contents, dict) else type(contents).__name__
        raise CheckpointError(f"{path}: not a fastpose checkpoint: expected format {FORMAT!r}, got {found}")
    if missing := CONTENTS - contents.keys():
        raise CheckpointError(f"{path}: incomplete checkpoint: {', '.join(sorted(missing))} missing")
    return contents


def load_latest(path: Path) -> tuple[dict[str, Any], Path]:
    """Reads `path` or, with a warning if it is missing or damaged, the one before it. Returns contents and file.

    Raises:
        CheckpointError: neither can be read; the message says why for both.
    """
    try:
        return load_checkpoint(path), path
    except CheckpointError as error:
        try:
            contents = load_checkpoint(previous_path(path))
        except CheckpointError as previous_error:
            raise CheckpointError(f"{error}; {previous_error}") from error
        log.warning("%s; taking the one before it, %s", error, previous_path(path))
        return contents, previous_path(path)


def previous_path(path: Path) -> Path:
    """last.pt -> last.prev.pt"""
    return path.with_suffix(".prev" + path.suffix)
