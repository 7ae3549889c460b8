# SPDX-License-Identifier: Apache-2.0
"""What becomes of hostile and of damaged checkpoints: `python -m studies.reliability.checkpoints [--verbose]`.

Each file is read in a process of its own. Then bits and pages of a good checkpoint are changed: whatever then loads
must be, to the bit, what was written.
"""

from __future__ import annotations

import argparse
import io
import json
import pickle
import random
import struct
import tempfile
import warnings
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastpose.models import read_weights
from fastpose.models.checkpoint import FORMAT
from fastpose.models.torch_file import read_torch_file
from studies.reliability.trial import outcome_of

MEMORY = 300 << 20  # bytes, more than the file has


def archive(records: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive of records, by their names below "archive/"."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as out:
        for name, data in records.items():
            out.writestr(f"archive/{name}", data)
    return file.getvalue()


def saved(value: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def integer(value: int) -> bytes:
    data = value.to_bytes(16, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def called(name: str, *arguments: bytes) -> bytes:
    """What a pickle says to call a function."""
    module, _, attribute = name.rpartition(".")
    return b"c" + f"{module}\n{attribute}\n".encode() + b"(" + b"".join(arguments) + b"tR"


def shape(*sides: int) -> bytes:
    return b"(" + b"".join(map(integer, sides)) + b"t"


def storage(count: int, kind: str = "torch.FloatStorage", key: str = "0") -> bytes:
    module, _, attribute = kind.rpartition(".")
    kind_of = b"c" + f"{module}\n{attribute}\n".encode()
    return b"(" + text("storage") + kind_of + text(key) + text("cpu") + integer(count) + b"tQ"


def tensor(count: int, size: bytes, stride: bytes, offset: int = 0, **more: str) -> bytes:
    rest = b"\x89" + called("collections.OrderedDict")
    return called("torch._utils._rebuild_tensor_v2", storage(count, **more), integer(offset), size, stride, rest)


def file_of(value: bytes, data: bytes = bytes(16), **records: bytes) -> bytes:
    """A file of torch.save whose pickle is a dict with `value` under "w"."""
    pickled = b"\x80\x02}" + text("w") + value + b"s."
    return archive({"data.pkl": pickled, "byteorder": b"little", "data/0": data, "version": b"3\n", **records})


def hostile() -> Iterator[tuple[str, bytes]]:
    """Files that are not to be loaded, by what is wrong with them."""
    good = saved({"a.weight": torch.arange(600.0), "a.bias": torch.ones(7)})
    yield "empty", b""
    yield "zeros", bytes(100_000)
    yield "ones", b"\xff" * 1000
    yield from {
        "lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "html": b"<!DOCTYPE html><html></html>",
        "html without doctype": b"\n\n<HTML lang=en>",
        "xml": b"<?xml version='1.0'?><Error>AccessDenied</Error>",
        "json": b'{"message": "Not Found"}',
        "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(100),
        "npy": b"\x93NUMPY\x01\x00" + bytes(100),
        "gzip": b"\x1f\x8b\x08" + bytes(100),
        "bzip2": b"BZh91AY" + bytes(100),
        "xz": b"\xfd7zXZ\x00" + bytes(100),
        "zstd": b"\x28\xb5\x2f\xfd" + bytes(100),
        "tar": bytes(257).replace(b"\0", b"a") + b"ustar" + bytes(300),
        "onnx": b"\x08\x08\x12\x07pytorch\x1a\x052.1.0" + bytes(100),
        "png": b"\x89PNG\r\n\x1a\n" + bytes(100),
        "text": b"epoch,loss\n1,0.5\n",
        "utf-8 text with a mark": "\ufeff<html>".encode(),
    }.items()
    yield "pickle of a dict", pickle.dumps({"a": 1}, 2)
    yield "pickle, protocol 0", pickle.dumps({"a": 1}, 0)
    yield "pickle, protocol 5", pickle.dumps({"a": [1.0] * 100}, 5)
    yield "npz", archive({"w.npy": b"\x93NUMPY"})
    yield "empty zip", archive({})
    yield "two pickles", archive({"data.pkl": b"\x80\x02}.", "data/0": b""}) + b""
    script = io.BytesIO()
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), script)
    yield "TorchScript", script.getvalue()
    legacy = saved({"w": torch.ones(900)}, _use_new_zipfile_serialization=False)
    for share in (0.01, 0.1, 0.5, 0.9, 0.99, 0.999):
        yield f"cut off at {share}", good[: int(share * len(good))]
        yield f"legacy cut off at {share}", legacy[: int(share * len(legacy))]
    yield "bytes missing in the middle", good[:500] + good[700:]
    yield "zeros at the end", good[:-600] + bytes(600)
    yield from hostile_archives(good)
    yield from hostile_pickles()
    yield from hostile_tensors()
    yield from hostile_legacy()
    yield from hostile_safetensors()


def hostile_archives(good: bytes) -> Iterator[tuple[str, bytes]]:
    pickled = b"\x80\x02}" + text("w") + tensor(1 << 28, shape(1 << 28), shape(1)) + b"s."
    for method, name in ((zipfile.ZIP_DEFLATED, "deflate"), (zipfile.ZIP_BZIP2, "bzip2"), (zipfile.ZIP_LZMA, "lzma")):
        yield f"compressed with {name}", archive({"data.pkl": pickled, "data/0": bytes(8 << 20)}, method)
    for offset, size, what in (
        (10, 2, "method"),
        (16, 4, "checksum"),
        (20, 4, "compressed size"),
        (24, 4, "size"),
        (42, 4, "offset"),
    ):
        place = good.index(b"PK\x01\x02", good.index(b"PK\x01\x02") + 1) + offset
        for value in (0, 1, 8, 0x7FFFFFFF, 0xFFFFFFFF):
            changed = bytearray(good)
            changed[place : place + size] = struct.pack("<I", value)[:size]
            if bytes(changed) != good:
                yield f"directory with {what} {value:#x}", bytes(changed)
    end = good.rindex(b"PK\x06\x06")
    for offset, what in ((40, "size"), (48, "offset")):
        for number in (1, 1 << 20, (1 << 32) - 1, (1 << 63) - 1):
            changed = bytearray(good)
            changed[end + offset : end + offset + 8] = struct.pack("<Q", number)
            yield f"end of the directory with {what} {number:#x}", bytes(changed)
    yield "two records of one name", _twice(good)
    yield "overlapping records", _overlapping(good)
    for count in (60_000, 1_000_000):
        entry = struct.pack("<IHHHHHHIIIHHHHHII", 0x02014B50, 20, 20, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0)
        directory = b"".join(entry + b"%07d" % index for index in range(count))
        end = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 65535, 65535, len(directory), 0, 0)
        yield f"{count:,} records", directory + end
    yield "big-endian", archive({"data.pkl": b"\x80\x02}.", "byteorder": b"big"})
    yield "record missing", archive({"data.pkl": b"\x80\x02}" + text("w") + tensor(4, shape(4), shape(1)) + b"s."})
    encrypted = bytearray(good)
    encrypted[good.index(b"PK\x01\x02") + 8] |= 1
    yield "encrypted", bytes(encrypted)


def _twice(good: bytes) -> bytes:
    file = io.BytesIO(good)
    with zipfile.ZipFile(file, "a") as out:
        name = out.namelist()[-1]
        out._didModify = True
        out.writestr(zipfile.ZipInfo(name), b"again")
    return file.getvalue()


def _overlapping(good: bytes) -> bytes:
    """The last record's place in the directory is the first one's."""
    changed = bytearray(good)
    last = good.rindex(b"PK\x01\x02")
    changed[last + 42 : last + 46] = good[good.index(b"PK\x01\x02") + 42 :][:4]
    return bytes(changed)


def hostile_pickles() -> Iterator[tuple[str, bytes]]:
    for name in ("os.system", "builtins.eval", "time.sleep", "faulthandler._sigsegv", "builtins.getattr"):
        yield f"calls {name}", file_of(called(name, text("1000")))
    yield "calls what a call returned", file_of(called("os.getcwd") + b")R")
    yield "calls a tensor", file_of(tensor(4, shape(4), shape(1)) + b")R")
    yield "calls a number", file_of(b"K\x01)R")
    yield "a class by NEWOBJ", file_of(b"cos\nsystem\n)\x81")
    yield "state for a number", file_of(b"K\x01}b")
    yield "attributes of a dict", file_of(called("collections.OrderedDict") + b"}" + text("items") + b"Nsb")
    yield "no end", archive({"data.pkl": b"\x80\x02}"})
    yield "no value", archive({"data.pkl": b"\x80\x02."})
    yield "pops from nothing", archive({"data.pkl": b"\x80\x020000."})
    yield "mark missing", archive({"data.pkl": b"\x80\x02t."})
    yield "memo missing", archive({"data.pkl": b"\x80\x02h\x09."})
    yield "unknown opcode", archive({"data.pkl": b"\x80\x02\xfe."})
    yield "extension code", archive({"data.pkl": b"\x80\x02\x82\x01."})
    yield "text as a persistent identity", archive({"data.pkl": b"\x80\x02Pabc\n."})
    yield "bytearray of 4 GB", archive({"data.pkl": b"\x80\x05\x96" + struct.pack("<Q", 1 << 32) + b"."})
    for opcode, form in ((b"X", "<I"), (b"\x8d", "<Q"), (b"B", "<I"), (b"\x8e", "<Q"), (b"T", "<I"), (b"\x8b", "<I")):
        huge = min(1 << 40, 256 ** struct.calcsize(form) - 1)
        yield (
            f"opcode {opcode!r} of {huge:,} bytes",
            archive({"data.pkl": b"\x80\x02" + opcode + struct.pack(form, huge)}),
        )
    yield "frame of 2^60", archive({"data.pkl": b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"}."})
    yield "memo index of 2^32 - 1", file_of(b"Nr\xff\xff\xff\xff")
    yield "a number of 10^6 digits", file_of(b"\x8b" + struct.pack("<I", 400_000) + b"\x7f" * 400_000)
    yield "400,000 lists in each other", file_of(b"]" * 400_000 + b"a" * 399_999)
    yield "200,000 dicts in each other", file_of((b"}" + text("a")) * 200_000 + b"N" + b"s" * 200_000)
    yield "900,000 tuples in each other", file_of(b")" + b"\x85" * 900_000)
    yield "a list in itself", file_of(b"]q\x01h\x01a")
    yield "a dict in itself", file_of(b"}q\x01" + text("a") + b"h\x01s")
    yield "2^60 values by doubling", file_of(b")" + b"".join(b"q\x01h\x01\x86" for _ in range(60)))
    yield (
        "2^45 values by doubling, as a key",
        file_of(b"}" + b")" + b"".join(b"q\x01h\x01\x86" for _ in range(45)) + b"Ns"),
    )
    yield (
        "10^40 values in lists of 10",
        file_of(b"]" + b"".join(b"q\x01]" + b"(" + b"h\x01" * 10 + b"e" for _ in range(40))),
    )
    again = b"h\x01h\x02R" * 40_000  # the function and the arguments, 10 bytes each time for a copy of all of them
    encode = b"c_codecs\nencode\nq\x01" + text("x" * 65_000) + b"\x85q\x02"
    yield "a text encoded 40,000 times", file_of(encode + b"00](" + again + b"e")
    pairs = b"](" + b"".join(integer(index) + b"N\x86" for index in range(10_000)) + b"e"
    ordered = b"ccollections\nOrderedDict\nq\x01" + pairs + b"\x85q\x02"
    yield "pairs put into 40,000 dicts", file_of(ordered + b"00](" + again + b"e")
    notes = b"}" + text("_metadata") + b"}(" + b"".join(integer(index) + b"N" for index in range(20_000)) + b"us"
    built = called("collections.OrderedDict") + b"q\x01" + notes + b"q\x02b"
    yield "notes of layers taken 60,000 times", file_of(built + b"h\x02b" * 60_000)
    modulus = (1 << 61) - 1
    keys = b"".join(integer(index * modulus) + b"N" for index in range(100_000))
    yield "100,000 keys of one hash", file_of(b"}(" + keys + b"u")
    yield "10^7 opcodes", file_of(b"N0" * 5_000_000 + b"N")
    yield "10^6 lists", file_of(b"](" + b"]" * 990_000 + b"e")
    yield "10^6 dicts", file_of(b"](" + b"}" * 990_000 + b"e")
    yield "10^6 classes", file_of(b"](" + b"ca\nb\n" * 900_000 + b"e")
    yield "a class's name of 10^6 letters", file_of(b"c" + b"a" * 1_000_000 + b"\nb\n")
    yield "text that is not UTF-8", file_of(b"X\x02\x00\x00\x00\xff\xfe")
    yield "a lone surrogate", file_of(text("") + b"0X\x03\x00\x00\x00\xed\xa0\x80")
    yield "a long text", file_of(text("x" * 5_000_000))


def hostile_tensors() -> Iterator[tuple[str, bytes]]:
    yield "shape beyond its record", file_of(tensor(4, shape(1 << 40), shape(1)))
    yield "a storage larger than its record", file_of(tensor(1 << 40, shape(4), shape(1)))
    yield "a storage smaller than its record", file_of(tensor(2, shape(2), shape(1)))
    yield "a negative size", file_of(tensor(4, shape(-4), shape(1)))
    yield "a negative stride", file_of(tensor(4, shape(4), shape(-1)))
    yield "a negative offset", file_of(tensor(4, shape(2), shape(1), offset=-8))
    yield "an offset beyond its record", file_of(tensor(4, shape(2), shape(1), offset=3))
    yield "an offset of 2^62", file_of(tensor(4, shape(1), shape(1), offset=1 << 62))
    yield "strides that overflow", file_of(tensor(4, shape(2, 2), shape(1 << 63, 1 << 63)))
    yield "2^47 elements by strides of 0", file_of(tensor(4, shape(1 << 47), shape(0)))
    yield "2^120 elements by strides of 0", file_of(tensor(4, shape(1 << 40, 1 << 40, 1 << 40), shape(0, 0, 0)))
    yield "1,000 axes", file_of(tensor(4, shape(*[1] * 1000), shape(*[1] * 1000)))
    yield "no elements, of 2^62 rows", file_of(tensor(4, shape(0, 1 << 62), shape(1, 1)))
    yield "fewer strides than axes", file_of(tensor(4, shape(2, 2), shape(1)))
    yield "a shape of text", file_of(tensor(4, b"(" + text("a") + b"t", shape(1)))
    yield "no storage", file_of(called("torch._utils._rebuild_tensor_v2", b"N", integer(0), shape(4), shape(1)))
    yield "no arguments", file_of(called("torch._utils._rebuild_tensor_v2"))
    yield "a storage of an unknown type", file_of(tensor(4, shape(4), shape(1), kind="os.system"))
    yield "a quantised storage", file_of(tensor(16, shape(16), shape(1), kind="torch.QInt8Storage"))
    yield "a record outside the archive", file_of(tensor(4, shape(4), shape(1), key="../../../etc/passwd"))
    yield "sparse", saved({"w": torch.eye(3).to_sparse()})
    yield (
        "sparse with indices outside",
        file_of(called("torch._utils._rebuild_sparse_tensor", b"N", b"(" + tensor(4, shape(4), shape(1)) + b"t")),
    )
    yield "nested", saved({"w": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])})
    yield "quantised", saved({"w": torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8)})
    yield "meta", saved({"w": torch.ones(4, device="meta")})
    yield "a whole module", saved(nn.Linear(2, 2))
    yield "no tensor at all", saved({"epoch": 3})
    yield "a list", saved([torch.ones(2)])
    yield "a number", saved(3)
    yield (
        "rebuilt from a type",
        file_of(called("torch._tensor._rebuild_from_type_v2", b"cos\nsystem\n", b"N", b")", b"N")),
    )


def hostile_legacy() -> Iterator[tuple[str, bytes]]:
    good = saved({"w": torch.ones(4)}, _use_new_zipfile_serialization=False)
    yield "legacy, another magic number", good[:3] + bytes([good[3] ^ 1]) + good[4:]
    yield "legacy, length of a storage", good[:-24] + struct.pack("<q", 1 << 40) + good[-16:]
    yield "legacy, negative length", good[:-24] + struct.pack("<q", -1) + good[-16:]
    begin = b"".join(pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    for name, count in (("a storage of 2^40", 1 << 40), ("a storage of 2^62", 1 << 62), ("a negative storage", -4)):
        one = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + integer(count) + b"NtQ"
        made = called("torch._utils._rebuild_tensor_v2", one, integer(0), shape(1), shape(1), b"\x89", b"N")
        yield f"legacy, {name}", begin + b"\x80\x02}" + text("w") + made + b"s." + pickle.dumps(["0"], 2) + bytes(99)
    yield "legacy, keys of no storage", begin + pickle.dumps({}, 2) + pickle.dumps(["0"], 2)
    yield "legacy, endless", begin + b"\x80\x02" + b"N0" * 3_000_000


def safetensors(header: Any, data: bytes = bytes(8), length: int | None = None) -> bytes:
    """A file of safetensors, with `header` as it is or in JSON, and with the length that it has or another."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def described(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    """What the header of a file of safetensors says of a tensor."""
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def hostile_safetensors() -> Iterator[tuple[str, bytes]]:
    one = json.dumps(described()).encode()
    good = safetensors({"w": described()})
    yield "safetensors cut off in the length", good[:6]
    yield "safetensors cut off in the header", good[:40]
    yield "safetensors cut off in the data", good[:-1]
    yield "safetensors, bytes left over", good + b"0"
    yield "safetensors, a header longer than the file", safetensors({"w": described()}, length=1000)
    yield "safetensors, a header of 2^40 bytes", safetensors({"w": described()}, length=1 << 40)
    yield "safetensors, a header of 5 MB", safetensors({"w": described(), "__metadata__": {"a": "a" * 5_000_000}})
    yield "safetensors, no JSON", safetensors(b'{"w": }')
    yield "safetensors, no UTF-8", safetensors(b'{"\xff": ' + one + b"}")
    yield "safetensors, 100,000 levels", safetensors(b'{"w":' + b"[" * 100_000 + b"]" * 100_000 + b"}")
    yield "safetensors, no tensors", safetensors({}, b"")
    yield "safetensors, a tensor that is not described", safetensors({"w": 3})
    yield "safetensors, a name twice", safetensors(b'{"w": ' + one + b', "w": ' + one + b"}")
    yield "safetensors, a type twice", safetensors(b'{"w": ' + one.replace(b"{", b'{"dtype": "I32", ') + b"}")
    yield "safetensors, metadata of numbers", safetensors({"w": described(), "__metadata__": {"a": 1}})
    yield "safetensors, metadata twice", safetensors(b'{"__metadata__": {}, "__metadata__": {}, "w": ' + one + b"}")
    yield "safetensors, an unknown type", safetensors({"w": described("os.system")})
    yield "safetensors, a type of half a byte", safetensors({"w": described("F4", [16])})
    yield "safetensors, a shape beyond its bytes", safetensors({"w": described(shape=[3])})
    yield "safetensors, a shape that overflows", safetensors({"w": described(shape=[1 << 62, 1 << 62])})
    yield "safetensors, a negative side", safetensors({"w": described(shape=[-2])})
    yield "safetensors, a side of 2.0", safetensors({"w": described(shape=[2.0])})
    yield "safetensors, 1,000 axes", safetensors({"w": described(shape=[1] * 1000 + [2])})
    yield (
        "safetensors, no elements, of 2^62 rows",
        safetensors({"w": described(shape=[0, 1 << 62], offsets=[0, 0])}, b""),
    )
    yield "safetensors, a negative offset", safetensors({"w": described(offsets=[-8, 0])}, b"")
    yield "safetensors, offsets backwards", safetensors({"w": described(offsets=[8, 0])}, b"")
    yield "safetensors, offsets beyond the file", safetensors({"w": described(offsets=[8, 1 << 40])})
    yield "safetensors, three offsets", safetensors({"w": described(offsets=[0, 8, 8])})
    overlapping = {"v": described(), "w": described(offsets=[4, 12])}
    yield "safetensors, overlapping tensors", safetensors(overlapping, bytes(12))
    yield "safetensors, the same bytes for two tensors", safetensors({"v": described(), "w": described()})
    yield "safetensors, a gap", safetensors({"v": described(), "w": described(offsets=[12, 20])}, bytes(20))
    parts = {"config": "{}", "skeleton": '"mpii"', "progress": "{}"}
    for name, about in {
        "safetensors of ours without a config": {"skeleton": '"mpii"', "progress": "{}"},
        "safetensors of ours, config of a list": parts | {"config": "[]"},
        "safetensors of ours, config that is no JSON": parts | {"config": "{'a': 1}"},
        "safetensors of ours, config with a name twice": parts | {"config": '{"lr": 1, "lr": 2}'},
        "safetensors of ours, config of 60 levels": parts | {"config": '{"a":' * 60 + "1" + "}" * 60},
        "safetensors of ours, config of 100,000 levels": parts | {"config": "[" * 100_000 + "]" * 100_000},
        "safetensors of ours, config with a number of 10^5 digits": parts | {"config": '{"lr": ' + "1" * 100_000 + "}"},
    }.items():
        yield name, safetensors({"w": described(), "__metadata__": {"format": FORMAT, **about}})


def good_checkpoint() -> tuple[bytes, dict[str, Any]]:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.Conv2d(64, 64, 3))
    contents = {
        "model": OrderedDict(layers.state_dict()),
        "config": {"size": [64, 64], "lr": 1e-3},
        "progress": {"a": 1},
    }
    return saved(contents), contents


def changes(good: bytes) -> Iterator[tuple[str, bytes]]:
    """Flipped bits and zeroed pages."""
    draw = random.Random(0)
    for _ in range(400):
        place = draw.randrange(len(good) * 8)
        changed = bytearray(good)
        changed[place // 8] ^= 1 << place % 8
        yield "bit flipped", bytes(changed)
    for page in range(0, len(good), 512):
        changed = bytearray(good)
        changed[page : page + 512] = bytes(len(changed[page : page + 512]))
        if bytes(changed) != good:
            yield "page of 512 bytes zeroed", bytes(changed)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(value, b[key]) for key, value in a.items())
    return bool(a == b)


def main() -> None:
    """Prints what was tried and what came of it."""
    warnings.simplefilter("ignore")  # of torch, which makes the files
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--verbose", action="store_true", help="a line for each file")
    verbose = parser.parse_args().verbose
    found: Counter[str] = Counter()
    above = 0
    slowest, largest = (0.0, ""), (0, "")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.pth"
        for name, contents in hostile():
            path.write_bytes(contents)
            outcome = outcome_of(read_weights, path)
            memory = max(0, outcome.memory - len(contents))
            found[outcome.kind] += 1
            slowest, largest = max(slowest, (outcome.seconds, name)), max(largest, (memory, name))
            above += memory > MEMORY
            if verbose or outcome.kind != "one line":
                print(f"{outcome.kind:10} {outcome.seconds:6.2f} s {memory >> 20:5} MiB  {name}: {outcome.text[:200]}")
        counts = ", ".join(f"{count} {kind}" for kind, count in found.items())
        print(f"\nhostile files: {sum(found.values())} tried: {counts}; {above} took more than {MEMORY >> 20} MiB")
        print(
            f"slowest: {slowest[0]:.2f} s of a processor ({slowest[1]}); most memory beside the file's own size: ",
            end="",
        )
        print(f"{largest[0] >> 20} MiB ({largest[1]})")

        good, contents_of_good = good_checkpoint()
        noticed: dict[str, Counter[str]] = {}
        for kind, contents in changes(good):
            path.write_bytes(contents)
            try:
                read, _ = read_torch_file(path)
                outcome = "loaded, the same bits" if same(read, contents_of_good) else "LOADED AS SOMETHING ELSE"
            except ValueError:
                outcome = "refused"
            noticed.setdefault(kind, Counter())[outcome] += 1
        for kind, outcomes in noticed.items():
            print(
                f"{kind}: {sum(outcomes.values())} tried: " + ", ".join(f"{n} {what}" for what, n in outcomes.items())
            )


if __name__ == "__main__":
    main()
