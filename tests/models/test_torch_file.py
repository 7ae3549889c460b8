# SPDX-License-Identifier: Apache-2.0
"""What torch.save wrote is read as torch reads it; what would harm is refused. Hostile files: studies/reliability."""

from __future__ import annotations

import argparse
import io
import os
import re
import subprocess
import sys
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fastpose.models import read_weights
from fastpose.models.checkpoint import CheckpointError, load_checkpoint, load_latest
from fastpose.models.pickles import Unknown
from fastpose.models.torch_file import read_torch_file
from studies.reliability.checkpoints import (
    called,
    changes,
    file_of,
    good_checkpoint,
    hostile,
    integer,
    same,
    saved,
    shape,
    storage,
)
from tests.engine.test_checkpoint import save

LEGACY = {"_use_new_zipfile_serialization": False}


@pytest.mark.parametrize("options", [{}, LEGACY, {"pickle_protocol": 4}, {"pickle_protocol": 5}])
def test_what_is_read_is_what_torch_reads(tmp_path, options):
    shared = torch.arange(24.0)
    types = [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8]
    types += [torch.uint8, torch.bool, torch.complex64]
    if not options:
        types += [torch.uint16, torch.float8_e4m3fn]  # which have no storages of their own
    contents = {
        "views": [shared[3:9], shared.reshape(4, 6).t(), shared[::2], shared.expand(3, 24), torch.tensor(3.0)],
        "types": [torch.ones(5).to(dtype) for dtype in types],
        "empty": [torch.empty(0), torch.empty(3, 0)],
        "parameter": nn.Parameter(torch.ones(2)),
        "plain": [
            1,
            -1,
            255,
            256,
            65536,
            -(1 << 40),
            1 << 70,
            0.5,
            float("-inf"),
            True,
            None,
            "ä",
            "",
            b"a\xff",
            (1, (2,)),
        ],
        "size": torch.Size([2, 3]),
        "dict": defaultdict(list, {"a": [1], 2: {}, None: (), True: 1}),
        "state": nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).state_dict(),
    }
    torch.save(contents, tmp_path / "w.pth", **options)
    found, unknown = read_torch_file(tmp_path / "w.pth")
    expected = torch.load(tmp_path / "w.pth", weights_only=False)
    assert not unknown or set(unknown) <= {"builtins.list", "__builtin__.list"}  # the defaultdict's
    assert found.keys() == expected.keys()
    for name in ("views", "types", "empty"):
        for ours, theirs in zip(found[name], expected[name], strict=True):
            assert (ours.dtype, ours.shape, ours.stride()) == (theirs.dtype, theirs.shape, theirs.stride())
            assert ours.nelement() == 0 or torch.equal(ours.float(), theirs.float())
    assert torch.equal(found["parameter"], torch.ones(2))
    for name in ("plain", "size", "dict"):
        assert found[name] == expected[name]
    assert type(found["state"]) is OrderedDict
    assert found["state"]._metadata == expected["state"]._metadata
    assert same(dict(found["state"]), dict(expected["state"]))
    found["views"][0][:] = 7  # shared memory stays shared
    assert (found["views"][1].t().flatten()[3:9] == 7).all()


@pytest.mark.parametrize("options", [{}, LEGACY])
def test_bits_that_stand_for_other_elements_are_read(tmp_path, options):
    one, two = torch.tensor([1 + 2j, 3 - 4j]), torch.tensor([1 + 2j, 3 - 4j])  # a storage has one type
    contents = {"conjugate": one.conj(), "negative": two.conj().imag}
    torch.save(contents, tmp_path / "w.pth", **options)
    found = read_torch_file(tmp_path / "w.pth")[0]
    assert found["negative"].tolist() == [-2.0, 4.0]
    for name, value in contents.items():
        assert found[name].tolist() == value.tolist()


def test_long_histories_beside_weights_are_no_damage(tmp_path):
    contents = {"state_dict": {"w": torch.ones(2)}, "losses": [0.5] * 600_000, "raw": bytearray(b"ab")}
    torch.save(contents, tmp_path / "w.pth", pickle_protocol=5)
    found = read_torch_file(tmp_path / "w.pth")[0]
    assert len(found["losses"]) == 600_000
    assert found["raw"] == b"ab"
    assert read_weights(tmp_path / "w.pth").state.keys() == {"w"}


@pytest.mark.parametrize(
    ("first", "kind", "message"),
    [
        ("torch.FloatStorage", "torch.BoolStorage", "storage of 4 torch.float32 that is also one of 16 torch.bool"),
        ("torch.storage.UntypedStorage", "", "bools in a storage of another type"),
    ],
)
def test_bytes_are_of_one_type(tmp_path, first, kind, message):
    count = 4 if kind else 16
    one = storage(count, first)
    if kind:
        value = called("torch._utils._rebuild_tensor_v2", one, integer(0), shape(4), shape(1), b"\x89", b"N")
        other = storage(16, kind)
        value += (
            called("torch._utils._rebuild_tensor_v2", other, integer(0), shape(16), shape(1), b"\x89", b"N") + b"\x86"
        )
    else:
        bools = b"ctorch\nbool\n"
        value = called("torch._utils._rebuild_tensor_v3", one, integer(0), shape(16), shape(1), b"\x89", b"N", bools)
    (tmp_path / "w.pth").write_bytes(file_of(value))
    with pytest.raises(CheckpointError, match=message):
        read_torch_file(tmp_path / "w.pth")


def test_objects_of_other_classes_are_their_names_alone(tmp_path):
    contents = {"w": torch.ones(2), "a": argparse.Namespace(lr=1), "n": np.float64(0.5), "s": {1}, "m": nn.Linear(2, 2)}
    torch.save(contents, tmp_path / "w.pth")
    found, unknown = read_torch_file(tmp_path / "w.pth")
    assert torch.equal(found.pop("w"), torch.ones(2))
    assert all(isinstance(value, Unknown) and not hasattr(value, "lr") for value in found.values())
    assert str(found["a"]) == "an object of argparse.Namespace"
    assert {"argparse.Namespace", "torch.nn.modules.linear.Linear"} <= set(unknown)


def test_bytes_of_a_mask_are_true_or_false(tmp_path):
    data = saved({"w": torch.tensor([True, False, True])})
    contents = io.BytesIO(data)
    torch.save({"w": torch.tensor([255, 0, 1], dtype=torch.uint8).view(torch.bool)}, contents)
    (tmp_path / "w.pth").write_bytes(contents.getvalue())
    assert read_torch_file(tmp_path / "w.pth")[0]["w"].view(torch.uint8).tolist() == [1, 0, 1]


@pytest.mark.filterwarnings("ignore")  # of torch, which makes the files
def test_hostile_files_are_refused_in_one_line(tmp_path):
    """In a process of its own, with a limit on its memory and its time."""
    paths = []
    for index, (_, contents) in enumerate(hostile()):
        if len(contents) < 400_000:  # the study has them all; with those about numbers it takes a minute
            paths.append(tmp_path / f"{index}.pth")
            paths[-1].write_bytes(contents)
    assert len(paths) > 128
    os.mkfifo(tmp_path / "pipe.pth")
    program = f"""
import resource, sys
from pathlib import Path
from fastpose.models import read_weights
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in Path({str(tmp_path)!r}).iterdir():
    try:
        read_weights(path)
        print(path, "accepted")
    except ValueError as error:
        if len(str(error).splitlines()) != 1 or not str(error).startswith(str(path)) or len(str(error)) > 1000:
            print(repr(str(error)))
more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
print("done" if more < 300 else f"{{more}} MiB")
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (ended.stdout, ended.stderr, ended.returncode) == ("done\n", "", 0)


def test_every_flipped_bit_and_zeroed_page_is_refused_or_changes_nothing(tmp_path):
    """Such files loaded as other weights: what is not covered by a checksum is padding, and names nobody reads."""
    good, contents = good_checkpoint()
    path, refused, loaded = tmp_path / "w.pth", 0, 0
    for _, changed in list(changes(good))[::8]:
        path.write_bytes(changed)
        try:
            assert same(read_torch_file(path)[0], contents)
            loaded += 1
        except CheckpointError:
            refused += 1
    assert refused > 20 * loaded


def test_a_damaged_last_checkpoint_gives_way_to_the_one_before(tmp_path, caplog):
    last = tmp_path / "last.pt"
    save(last, step=1)
    save(last, step=2, keep_previous=True)
    data = bytearray(last.read_bytes())
    place = data.index(np.arange(2000, dtype=np.float32).tobytes()) + 100
    data[place] ^= 1
    last.write_bytes(data)
    contents, path = load_latest(last)
    assert (contents["progress"]["step"], path.name) == (1, "last.prev.pt")
    assert re.search(r"last\.pt: damaged, .*the checksum of record 'archive/data/\d' is wrong", caplog.text)


@pytest.mark.parametrize(
    ("begin", "kind"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
            "a git-lfs pointer .* run git lfs pull",
        ),
        (b"<!DOCTYPE html>\n<html>", "an HTML page"),
        (b"\x08\x08\x12\x07pytorch", "an ONNX graph"),
        (b"\x08", "it begins with b"),
        (b"PK\x05\x06" + bytes(18), "a zip archive of something else"),
        (b"hello", "it begins with b'hello'"),
    ],
)
def test_a_file_of_another_kind_is_recognised_by_its_first_bytes(tmp_path, begin, kind):
    (tmp_path / "w.pth").write_bytes(begin)
    for read in (read_weights, load_checkpoint):
        with pytest.raises(CheckpointError, match=f"^{tmp_path}/w.pth: not a file of weights: {kind}"):
            read(tmp_path / "w.pth")


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_torchscript_program_is_recognised(tmp_path):
    torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)).save(tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"not a file of weights: a TorchScript program; torch\.save"):
        read_weights(tmp_path / "w.pt")


def checkpoint(path: Path, **changes: Any) -> Path:
    save(path)
    torch.save(torch.load(path, weights_only=True) | changes, path)
    return path


@pytest.mark.parametrize("name", ["model", "config", "progress", "learning_rate"])
@pytest.mark.parametrize("value", [None, 3, [1], {1: 2}])
def test_a_checkpoint_has_values_by_name(tmp_path, name, value):
    with pytest.raises(CheckpointError, match=f"{name}: expected values by name"):
        load_checkpoint(checkpoint(tmp_path / "last.pt", **{name: value}))
