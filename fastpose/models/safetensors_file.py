# SPDX-License-Identifier: Apache-2.0
"""Files of the package safetensors: tensors and texts by name, which a header in JSON describes. No code fits in there.

The package reads and writes them. Refused besides are names that come twice, of which it takes the last one, and a
header or a tensor's shape of a size that no network has.
"""

from __future__ import annotations

import importlib
import json
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastpose.files import open_file, read_file, write_bytes
from fastpose.models.pickles import Refused, check_tree
from fastpose.models.torch_file import CheckpointError, damaged

HEADER_BYTES = 4 << 20  # 40,000 tensors


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as these do: eight bytes for a header's length, here below 2⁴⁸, and the header's brace.

    Raises:
        OSError: as from `open_file`.
    """
    try:
        descriptor = open_file(path)
    except ValueError:  # a folder or a pipe, which `read_torch_file` names
        return False
    with open(descriptor, "rb") as file:
        return file.read(9)[6:] == b"\0\0{"


def require_safetensors(path: Path) -> ModuleType:
    """The package's functions for torch.

    Raises:
        CheckpointError: it is not installed; names the file that needs it and the command that installs it.
    """
    try:
        return importlib.import_module("safetensors.torch")
    except ImportError as error:
        raise CheckpointError(
            f"{path}: .safetensors files need the package safetensors: pip install safetensors ({error})"
        ) from error


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file, on the CPU and in memory of their own, and the texts in its metadata.

    Raises:
        OSError: as from `read_file`.
        CheckpointError: the file is damaged or not what it should be, or the package is missing.
    """
    package = require_safetensors(path)
    try:
        data = read_file(path)  # and no mapping: a disk that fails, or a file that gets shorter, would end the process
        header = _header_of(data)
        try:
            tensors = package.load(data)
        except KeyError as error:
            raise Refused(f"a tensor of type {error}, which is not read") from error
        for name, tensor in tensors.items():
            if tensor.ndim > 64 or (not tensor.numel() and max(tensor.shape) >= 1 << 31):
                raise Refused(f"{name[:60]!r} has the shape {list(tensor.shape)[:8]}")
            if tensor.dtype is torch.bool:
                tensor.view(torch.uint8).ne_(0)  # other bytes than 0 and 1 are undefined behaviour, see torch_file.py
    except OSError:
        raise
    except Exception as error:  # the package's own among them
        raise damaged(path, error) from error
    texts = header.pop("__metadata__", None) or {}
    return {name: tensors[name] for name in header}, texts


def _header_of(data: bytes) -> dict[str, Any]:
    """The header, of a file as long as it says; that the tensors fill it without gaps is the package's to check."""
    length = int.from_bytes(data[:8], "little")
    if length > HEADER_BYTES:
        raise Refused(f"a header of {length:,} bytes: at most {HEADER_BYTES:,} are read")
    if length > len(data) - 8:
        raise Refused(f"a header of {length:,} bytes in a file of {len(data):,}; it may be cut off")
    header = plain_values(data[8 : 8 + length].decode())
    with suppress(TypeError, LookupError, AttributeError):  # of another form, which the package names
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        expected = 8 + length + max(ends, default=0)
        if expected != len(data):
            raise Refused(f"expected {expected:,} bytes, as its header says, got {len(data):,}")
    return header


def plain_values(text: str) -> Any:
    """What a text in JSON says.

    Raises:
        ValueError, RecursionError: it is not JSON, has a name twice in one object, or too many levels.
    """
    value = json.loads(text, object_pairs_hook=_once)
    check_tree(value)
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        name, count = Counter(name for name, _ in pairs).most_common(1)[0]
        raise Refused(f"expected each name once, got {name[:60]!r} {count} times")
    return values


def write_safetensors(path: Path, state: Mapping[str, Any], texts: Mapping[str, str]) -> None:
    """Writes a state dict, and texts as the file's metadata; whole or not at all.

    Tensors that share their memory are written each by itself, as the format has neither views nor strides.

    Raises:
        OSError: see `write_bytes`.
        CheckpointError: the package is missing.
        ValueError: the state dict has something other than tensors, or a tensor that the format has no place for.
    """
    package = require_safetensors(path)
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{path}: expected a state dict of tensors, got {type(value).__name__} under {name!r}")
    try:
        copies = {
            name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in state.items()
        }
        data = package.save(copies, dict(texts))
    except Exception as error:
        raise ValueError(f"{path}: safetensors cannot have these weights: {' '.join(str(error).split())}") from error
    if (length := int.from_bytes(data[:8], "little")) > HEADER_BYTES:
        raise ValueError(f"{path}: expected names and metadata of at most {HEADER_BYTES:,} bytes, got {length:,}")
    write_bytes(path, data)
