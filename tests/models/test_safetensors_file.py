# SPDX-License-Identifier: Apache-2.0
"""What is written as safetensors comes back to the bit, is a run's checkpoint, and what would harm is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fastpose.models import read_weights
from fastpose.models.checkpoint import CheckpointError, export_safetensors
from fastpose.models.safetensors_file import HEADER_BYTES, read_safetensors, write_safetensors
from studies.reliability.checkpoints import described, hostile_safetensors, safetensors
from tests.helpers.full_disk import fill_the_disk_at

package = pytest.importorskip("safetensors.torch", reason="the package safetensors is not installed")


def equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """To the bit; their order and strides do not matter."""
    same = all(a[n].dtype == b[n].dtype and a[n].shape == b[n].shape and torch.equal(a[n], b[n]) for n in a)
    return a.keys() == b.keys() and same


# ---- files ----


def test_what_is_written_is_what_is_read_here_and_by_the_package(tmp_path):
    shared = torch.arange(24.0)
    state = {
        "views": shared[3:9],
        "of the same memory": shared.reshape(4, 6).t(),
        "itself": shared,
        "and again": shared,
        "expanded": torch.ones(1).expand(3, 4),
        "channels-last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "num_batches_tracked": torch.tensor(7),
        "empty": torch.empty(3, 0),
        "flags": torch.tensor([True, False]),
        "with a gradient": nn.Parameter(torch.ones(2)),
        **{str(t): torch.ones(3).to(t) for t in (torch.float64, torch.float16, torch.bfloat16, torch.int32)},
    }
    write_safetensors(tmp_path / "w.safetensors", state, {"who": "ä\n"})
    found, texts = read_safetensors(tmp_path / "w.safetensors")
    assert equal(found, state)
    assert equal(package.load_file(tmp_path / "w.safetensors"), state)
    assert found["num_batches_tracked"].shape == ()
    assert texts == {"who": "ä\n"}
    found["itself"][:] = 7  # of its own memory, as is the file's
    assert equal(read_safetensors(tmp_path / "w.safetensors")[0], state)
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def test_a_header_of_any_length_is_read(tmp_path):
    """Other programs do not fill it up to a multiple of eight, and tensors then lie anywhere."""
    values = torch.arange(2.0)
    for spaces in range(8):
        header = json.dumps({"w": described()}).encode() + b" " * spaces
        (tmp_path / "w.bin").write_bytes(safetensors(header, values.numpy().tobytes()))
        assert torch.equal(read_weights(tmp_path / "w.bin").state["w"], values)


def test_bytes_of_a_mask_are_true_or_false(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(safetensors({"w": described("BOOL", [8])}, b"\xff\0" * 4))
    assert read_weights(tmp_path / "w.safetensors").state["w"].view(torch.uint8).tolist() == [1, 0] * 4


# By the study's names of the files; all others are the package's to notice.
MESSAGES = {
    "cut off in the length": "not a file of weights: it begins with b'=",
    "cut off in the header": r"damaged, .*\(a header of 61 bytes in a file of 40; it may be cut off\)",
    "cut off in the data": r"damaged, .*\(expected 77 bytes, as its header says, got 76\)",
    "bytes left over": r"damaged, .*\(expected 77 bytes, as its header says, got 78\)",
    "a header longer than the file": "a header of 1,000 bytes in a file of 77",
    "a header of 2^40 bytes": r"a header of 1,099,511,627,776 bytes: at most 4,194,304 are read",
    "a header of 5 MB": "a header of 5,000,088 bytes: at most 4,194,304 are read",
    "no JSON": "JSONDecodeError: Expecting value: line 1 column 7",
    "no UTF-8": "UnicodeDecodeError: 'utf-8' codec",
    "100,000 levels": "RecursionError: ",
    "no tensors": "expected a state dict of tensors, bare or under a key, got the keys none",
    "a name twice": "expected each name once, got 'w' 2 times",
    "a type twice": "expected each name once, got 'dtype' 2 times",
    "metadata twice": "expected each name once, got '__metadata__' 2 times",
    "a type of half a byte": "of type 'F4', which is not read|SafetensorError",
    "1,000 axes": r"'w' has the shape \[1, 1, 1, 1, 1, 1, 1, 1\]",
    "no elements, of 2^62 rows": r"'w' has the shape \[0, 4611686018427387904\]",
    "offsets beyond the file": "expected 1,099,511,627,857 bytes, as its header says, got 89",
    "of ours without a config": "incomplete checkpoint: config missing",
    "of ours, config of a list": "config: expected values by name, got list",
    "of ours, config that is no JSON": r"""config: expected JSON, got "\{'a': 1\}" \(Expecting property name""",
    "of ours, config with a name twice": r"config: expected JSON, .*\(expected each name once, got 'lr' 2 times",
    "of ours, config of 60 levels": "config: expected JSON, .*values within values on more than 50 levels",
    "of ours, config of 100,000 levels": "config: expected JSON, .*recursion",
    "of ours, config with a number of 10^5 digits": "config: expected JSON, .*4300 digits",
}
HOSTILE = {name.removeprefix("safetensors").lstrip(", "): contents for name, contents in hostile_safetensors()}


def test_every_message_has_its_file():
    assert not MESSAGES.keys() - HOSTILE.keys()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_in_one_line_that_names_it(tmp_path, name):
    path = tmp_path / "w.safetensors"
    path.write_bytes(HOSTILE[name])
    with pytest.raises(ValueError, match=MESSAGES.get(name, r"damaged, .*\(SafetensorError: ")) as refused:
        read_weights(path)
    message = str(refused.value)
    assert message.startswith(f"{path}: ")
    assert len(message) < 500
    assert message.isprintable()


def test_names_of_tensors_do_nothing_to_a_terminal(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(safetensors({"\x1b[31m\r": described(offsets=[8, 0])}, b""))
    with pytest.raises(CheckpointError, match=r"invalid offset|InvalidOffset") as refused:
        read_weights(tmp_path / "w.safetensors")
    assert str(refused.value).isprintable()


def test_a_folder_called_so_is_no_file(tmp_path):
    (tmp_path / "w.safetensors").mkdir()
    with pytest.raises(CheckpointError, match="expected a file, got a folder"):
        read_weights(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": 1}, "expected a state dict of tensors, got dict under 'w'"),
        (torch.eye(3).to_sparse(), "safetensors cannot have these weights: "),
        (torch.ones(3, dtype=torch.complex128), "safetensors cannot have these weights: "),
    ],
)
def test_what_the_format_has_no_place_for_is_not_written(tmp_path, value, message):
    with pytest.raises(ValueError, match=f"^{tmp_path}/w.safetensors: {message}") as refused:
        write_safetensors(tmp_path / "w.safetensors", {"w": value}, {})
    assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match=r"progress: expected plain values: .*Tensor is not JSON"):
        export_safetensors(tmp_path / "w.safetensors", model={}, progress={"a": torch.ones(2)}, config={}, skeleton={})
    with pytest.raises(ValueError, match="expected names and metadata of at most 4,194,304 bytes, got 4,194,3"):
        write_safetensors(tmp_path / "w.safetensors", {}, {"a": "a" * HEADER_BYTES})
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_one_line_and_the_file_before_stays(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"old")
    fill_the_disk_at(tmp_path / "w.part.safetensors", monkeypatch)
    with pytest.raises(OSError, match=r"No space left on device: \d+ bytes needed") as full:
        write_safetensors(path, {"w": torch.ones(2)}, {})
    assert full.value.filename == str(path)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [(path.name, b"old")]
