# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that cannot be torn and cannot run code."""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from fastpose.files import WholeFile, written_beside
from fastpose.models.safetensors_file import is_safetensors, plain_values, read_safetensors, write_safetensors
from fastpose.models.torch_file import CheckpointError, read_torch_file

log = logging.getLogger(__name__)

FORMAT = "fastpose-checkpoint-1"
CONTENTS = {"format", "model", "optimizer", "learning_rate", "progress", "config", "skeleton"}


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


def export_safetensors(
    path: Path,
    *,
    model: Mapping[str, Tensor],
    progress: Mapping[str, Any],
    config: Mapping[str, Any],
    skeleton: Mapping[str, Any],
) -> None:
    """Writes a checkpoint that training does not go on from as a .safetensors file.

    The tensors are the network's. The metadata has the other parts of a checkpoint as JSON, and as "versions" those of
    the network's layers, which `load_state_dict` asks for.

    Args:
        path, model, progress, config, skeleton: see `save_checkpoint`.

    Raises:
        OSError, ValueError: see `write_safetensors`; or a part is not of plain values, which names it.
    """
    notes = getattr(model, "_metadata", {})
    parts = {
        "progress": progress,
        "config": config,
        "skeleton": skeleton,
        "versions": {layer: about["version"] for layer, about in notes.items() if "version" in about},
    }
    texts = {"format": FORMAT}
    for name, part in parts.items():
        try:
            texts[name] = json.dumps(part)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {name}: expected plain values: {error}") from error
    write_safetensors(path, model, texts)


def checkpoint_file(path: Path) -> Path:
    """The checkpoint that `path` means: best.pt of a run's folder, else the file itself.

    Raises:
        CheckpointError: a run's folder without best.pt, as no epoch of it was evaluated yet.
    """
    if not path.is_dir():
        return path
    if not (best := path / "best.pt").exists() and (last := path / "last.pt").exists():
        raise CheckpointError(f"{path}: no epoch was evaluated, so it has no best.pt; name the file {last}")
    return best


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint onto the CPU, as tensors and plain values only (nothing in the file is executed).

    Raises:
        CheckpointError: the file is missing, damaged, not ours, or contains more than tensors and plain values.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: no such checkpoint file")
    contents, unknown = _read(path)
    if unknown:
        raise CheckpointError(f"{path}: holds {unknown[0]}, and only tensors and plain values are read")
    return check_checkpoint(path, contents)


def read_contents(path: Path) -> Any:
    """What any program has written with `torch.save` or as safetensors: tensors, on the CPU, and plain values.
    Nothing in it is executed.

    Scores, histories, tables of joints, hyper-parameters: whatever else there is becomes an `Unknown`, without content.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: see `read_torch_file` and `read_safetensors`.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file of weights")
    return _read(path)[0]


def _read(path: Path) -> tuple[Any, list[str]]:
    """What is in a file, and the names of what is not known, see `read_torch_file`. Of `export_safetensors`' files a
    checkpoint as `save_checkpoint` has it, of others' safetensors the state dict."""
    if not is_safetensors(path):
        return read_torch_file(path)
    tensors, texts = read_safetensors(path)
    if texts.get("format") != FORMAT:
        return tensors, []
    parts = {}
    for name in texts.keys() & {"progress", "config", "skeleton", "versions"}:  # `check_checkpoint` names missing ones
        try:
            parts[name] = plain_values(texts[name])
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{path}: {name}: expected JSON, got {texts[name][:40]!r} ({error})") from error
    model, versions = OrderedDict(tensors), parts.pop("versions", {})
    if isinstance(versions, dict):
        model._metadata = {  # type: ignore[attr-defined]  # as Module.state_dict has it
            layer: {"version": version} for layer, version in versions.items() if type(version) is int
        }
    return {"format": FORMAT, "model": model, "optimizer": None, "learning_rate": {}, **parts}, []


def check_checkpoint(path: Path, contents: Any) -> dict[str, Any]:
    """The contents of a file, if they are a checkpoint of ours.

    Raises:
        CheckpointError: they are not, or something is missing or of another kind.
    """
    if not isinstance(contents, dict) or contents.get("format") != FORMAT:
        found = f"format {contents.get('format')!r}" if isinstance(contents, dict) else type(contents).__name__
        raise CheckpointError(f"{path}: not a fastpose checkpoint: expected format {FORMAT!r}, got {found[:60]}")
    if missing := CONTENTS - contents.keys():
        raise CheckpointError(f"{path}: incomplete checkpoint: {', '.join(sorted(missing))} missing")
    for name in ("model", "learning_rate", "progress", "config"):
        values = contents[name]
        if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
            raise CheckpointError(f"{path}: {name}: expected values by name, got {type(values).__name__}")
    return contents


def load_latest(path: Path) -> tuple[dict[str, Any], Path]:
    """Reads `path` or, with a warning if it is missing or damaged, the one before it. Returns contents and file.

    Raises:
        CheckpointError: neither can be read; the message says why for both.
    """
    try:
        return load_checkpoint(path), path
    except (CheckpointError, OSError) as error:
        try:
            contents = load_checkpoint(previous_path(path))
        except (CheckpointError, OSError) as previous_error:
            raise CheckpointError(f"{error}; {previous_error}") from error
        log.warning("%s; taking the one before it, %s", error, previous_path(path))
        return contents, previous_path(path)


def has_checkpoint(folder: Path) -> bool:
    """Whether a run's folder has a checkpoint to go on from."""
    last = folder / "last.pt"
    return last.exists() or previous_path(last).exists()


def previous_path(path: Path) -> Path:
    """last.pt -> last.prev.pt"""
    return path.with_suffix(".prev" + path.suffix)
