# SPDX-License-Identifier: Apache-2.0
"""Packs of strangers, packs that change in use, and folders as killed and half written packs leave them."""

import errno
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from fastpose import evaluate, files, pack
from fastpose.data.datasets import open_dataset
from fastpose.data.pack import PackError, read_packed_persons, write
from fastpose.data.pack.files import PIXELS_PER_JPEG_BYTE
from fastpose.data.pixels import PackedImages, Pixels
from fastpose.models import network
from fastpose.options.settle import settle
from fastpose.skeletons import MPII
from tests.helpers.packs import contents, forge, forge_annotations, forge_record, forge_table
from tests.helpers.reading import loader_of
from tests.helpers.runs import save_weights
from tests.helpers.terminal import error_of
from tests.helpers.tiny_coco import write_tiny_coco
from tests.helpers.tiny_mpii import write_tiny_mpii

CPU = torch.device("cpu")
# Small shards: several of them, each with several records.
SMALL = ["--size", "64", "64", "--shard_bytes", "60000", "--reduced_decode", "false"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_tiny_mpii(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("packs") / "whole"
    assert pack.main([str(data), str(out), *SMALL]) == 0
    return out


@pytest.fixture(scope="module")
def whole_jpeg(data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("packs") / "jpeg"
    assert pack.main([str(data), str(out), *SMALL, "--format", "jpeg", "--shard_bytes", "20000"]) == 0
    return out


@pytest.fixture
def copy(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


@pytest.fixture(params=["raw", "jpeg"])
def either(request, whole, whole_jpeg, tmp_path) -> Path:
    return Path(shutil.copytree(whole if request.param == "raw" else whole_jpeg, tmp_path / "either"))


def source_of(root: Path) -> PackedImages:
    return PackedImages(read_packed_persons(root, "train").image_paths)


def pictures_of(pixels: Pixels) -> list[np.ndarray]:
    return [pixels.images[at].numpy() for at in pixels.index.tolist()]


def in_a_process(code: str, *arguments: object) -> str:
    """What it prints; a fault that hangs or kills it is not to take the tests along."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, (done.returncode, done.stderr)
    return done.stdout


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_named_pipe_in_the_place_of_any_file_is_refused_and_not_waited_for(whole, tmp_path):
    names = ("pack.json", "train-persons.npz", "train-00001.npy", "train-00001.shard")
    for name in names:
        shutil.copytree(whole, tmp_path / name)
        (tmp_path / name / name).unlink()
        os.mkfifo(tmp_path / name / name)
    code = """if True:
        import sys
        from pathlib import Path
        from fastpose.data.pack import PackError, read_packed_persons
        from fastpose.data.pixels import PackedImages
        for root in map(Path, sys.argv[1:]):
            try:
                PackedImages(read_packed_persons(root, "train").image_paths)
            except PackError as error:
                print(error)
    """
    printed = in_a_process(code, *(tmp_path / name for name in names)).splitlines()
    assert printed == [f"{tmp_path / name / name}: expected a file, got a named pipe" for name in names]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("pixels", "png", "pixels: expected 'raw' or 'jpeg', got 'png'"),
        ("persons", [], "persons: expected an object, got []"),
        ("margins.train.size", [64], "margins.train.size: expected two sides in pixels, got [64]"),
        ("margins.train.size", [0, 64], "margins.train.size: expected two sides in pixels, got [0, 64]"),
        ("margins.train.rotation", "30", "margins.train.rotation: expected a number from 0, got '30'"),
        ("margins.train.scale_min", float("nan"), "margins.train.scale_min: expected a number from 0, got nan"),
        ("margins.train.shift", -0.1, "margins.train.shift: expected a number from 0, got -0.1"),
        ("margins.train.shift", 1.5, "margins.train.shift: expected a share of at most 1, got 1.5"),
        ("margins.train.shift?", 0.1, "it has 'margins.train.shift?', which this version of fastpose does not know"),
        ("margins.train.scale_min", 0, "margins.train: expected factors above 0"),
        ("files.train.persons", -1, "files.train.persons: expected a whole number from 0, got -1"),
        ("files.train.persons", 1 << 70, "files.train.persons: expected a whole number from 0, got 1180591620717411"),
        ("files.train.shards", {}, "files.train.shards: expected a list, got {}"),
        ("files.train.shards", [{"records": 1, "bytes": 1}], "it has no files.train.shards[0].table_crc"),
        ("files.train.shards", [[7]], "files.train.shards[0]: expected an object, got [7]"),
        (
            "files.train.shards",
            [{"records": 1, "bytes": 1, "table_crc": 1}] * 32_769,
            "files.train.shards: expected at most 32768, got 32769",
        ),
        ("files.../../x", {}, "it has no files.../../x.annotations"),
        (
            "files.test",
            {"persons": 0, "annotations": {"bytes": 0, "crc": 0}, "shards": []},
            "expected the splits train",
        ),
        ("options.newest", "1", "options: this version of fastpose does not know 'newest'"),
        ("line\nbreak", 1, "it has 'line\\nbreak', which this version of fastpose does not know"),
    ],
)
def test_an_index_that_no_pack_has_is_refused_in_one_line(copy, path, value, message):
    def change(index):
        first, _, rest = path.partition(".")
        *names, last = [first, rest] if path.startswith("files...") else path.split(".")
        for name in names:
            index = index[name]
        index[last] = value

    forge(copy, change)
    with pytest.raises(PackError) as caught:
        source_of(copy)
    assert str(caught.value).startswith(f"{copy / 'pack.json'}: damaged: ")
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_memory_is_asked_for_what_is_there_and_not_for_what_the_index_says(copy):
    forge(copy, lambda index: index["files"]["train"]["shards"][0].update(records=1 << 61))
    with pytest.raises(PackError, match=r"train-00000\.npy: expected 2305843009213693952 rows as in pack\.json, got"):
        source_of(copy)


@pytest.mark.parametrize(("option", "value"), [("dataset", "other"), ("detections", "../../x")])
def test_a_pack_of_a_data_set_that_cannot_be_is_refused_by_its_name_and_not_the_option_s(copy, option, value):
    forge(copy, lambda index: index["options"].update({option: value}))
    settings = settle({"data_root": str(copy), "size": (64, 64)})
    with pytest.raises(PackError, match=r"pack\.json: damaged: ") as caught:
        open_dataset(settings.data, settings.network.size)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "1" * 5000, '{"format": ' + "[" * 600 + "]" * 600 + "}"]
)
def test_an_index_that_is_too_deep_or_too_long_to_parse_is_refused(copy, text):
    (copy / "pack.json").write_text(text)
    with pytest.raises(PackError, match=r"pack\.json: (damaged|expected)") as caught:
        source_of(copy)
    assert len(str(caught.value)) < len(str(copy)) + 300


@pytest.mark.parametrize("name", ["pack.json", "train-persons.npz", "train-00001.npy", "train-00001.shard"])
def test_a_file_that_is_larger_than_it_should_be_is_refused_before_it_is_read(copy, name):
    with open(copy / name, "rb+") as file:
        file.truncate(1 << 40)  # a terabyte of nothing
    with pytest.raises(PackError, match=rf"{name.replace('.', '[.]')}: "):
        source_of(copy)


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode("latin1") + b"\n"
    return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text + data


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }"), "expected 4000000000000 bytes"),
        (
            npy("{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 4), }"),
            "expected 73786976294838206464 b",
        ),
        (
            npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-2, -5), }", bytes(40)),
            "expected an array of numbers",
        ),
        (npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", bytes(8)), "expected an array of numbers"),
        (npy("{'descr': '<U0', 'fortran_order': False, 'shape': (1000000000000,), }"), "expected 0 bytes"),
        (npy("{'descr': '<U1', 'fortran_order': False, 'shape': (2,), }", b"\xff" * 8), "expected texts of Unicode"),
        (npy("(" * 3000), "expected an array of numbers"),
        (npy("__import__('os').system('id')"), "expected an array of numbers"),
        (b"\x80\x04N.", "expected an array of numpy.save's format 1.0"),
    ],
)
def test_a_header_of_an_array_is_neither_evaluated_nor_believed(copy, array, message):
    with zipfile.ZipFile(copy / "train-persons.npz") as archive:
        members = {name: archive.read(name) for name in archive.namelist()} | {"center.npy": array}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    forge_annotations(copy, buffer.getvalue())
    with pytest.raises(PackError, match=rf"train-persons\.npz: damaged: center: {message}"):
        read_packed_persons(copy, "train")
    forge_table(copy, 0, array)
    persons = read_packed_persons(copy, "valid")
    forge_annotations(copy, (copy / "valid-persons.npz").read_bytes())
    with pytest.raises(PackError, match=r"train-00000\.npy: damaged: "):
        PackedImages([copy / "train" / str(n) / path.name for n, path in enumerate(persons.image_paths)])


def test_annotations_that_unpack_to_more_than_they_are_are_refused(copy):
    arrays = dict(np.load(copy / "train-persons.npz"))
    compressed = io.BytesIO()
    np.savez_compressed(compressed, **arrays, bomb=np.zeros(1 << 20))
    forge_annotations(copy, compressed.getvalue())
    with pytest.raises(PackError, match=r"train-persons\.npz: damaged: compressed, which fastpose never writes"):
        read_packed_persons(copy, "train")
    # Members that share their bytes.
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        content = io.BytesIO()
        np.save(content, np.zeros(10_000))
        archive.writestr("a.npy", content.getvalue())
        for number in range(10):
            other = zipfile.ZipInfo(f"{number}.npy")
            shared = archive.getinfo("a.npy")
            for field in ("header_offset", "CRC", "compress_size", "file_size"):
                setattr(other, field, getattr(shared, field))
            archive.filelist.append(other)
    forge_annotations(copy, buffer.getvalue())
    with pytest.raises(PackError, match=r"train-persons\.npz: damaged: has \d+ bytes of arrays in \d+ bytes of file"):
        read_packed_persons(copy, "train")
    for spoilt in (b"", b"PK", buffer.getvalue() + b"behind", buffer.getvalue()[:-22]):
        forge_annotations(copy, spoilt)
        with pytest.raises(PackError, match=r"train-persons\.npz: damaged: not an archive"):
            read_packed_persons(copy, "train")


@pytest.mark.parametrize(
    ("skeleton", "message"),
    [
        ({"joints": "abc"}, "skeleton.joints: expected a list"),
        ({"joints": [str(n) for n in range(15)] + [7]}, r"skeleton.joints\[15\]: expected a text, got 7"),
        ({"mirror_pairs": [[0.5, 1]]}, r"skeleton.mirror_pairs\[0\]\[0\]: expected a whole number"),
        ({"mirror_pairs": [[0]]}, "mirror_pairs must hold pairs"),
        ({"other": 1}, "it has 'skeleton.other'"),
    ],
)
def test_a_skeleton_of_other_types_is_refused(copy, skeleton, message):
    arrays = dict(np.load(copy / "train-persons.npz"))
    fields = {"name": "x", "joints": [str(n) for n in range(16)], "mirror_pairs": [], "limbs": []} | skeleton
    forge_annotations(copy, arrays | {"skeleton": np.array(json.dumps(fields))})
    with pytest.raises(PackError, match=rf"train-persons\.npz: damaged: .*{message}"):
        read_packed_persons(copy, "train")


def test_a_truth_that_no_score_can_use_is_refused(tmp_path):
    data, out = write_tiny_coco(tmp_path / "coco"), tmp_path / "out"
    names = ["--train_annotations", "annotations/train.json", "--valid_annotations", "annotations/valid.json"]
    recipe = tmp_path / "coco.yaml"
    recipe.write_text("dataset: coco\nimages: images\n")
    assert pack.main([str(data), str(out), "--recipe", str(recipe), *names, "--size", "64", "64"]) == 0
    with np.load(out / "valid-persons.npz") as file:
        arrays = dict(file)
    truth = json.loads(arrays["truth"].tobytes())
    first, *others = truth["annotations"]
    for changed in (
        [],
        {name: value for name, value in truth.items() if name != "category"},
        truth | {"image_ids": ["1"]},
        truth | {"annotations": [7]},
        truth | {"annotations": [first | {"keypoints": [1, 2]}, *others]},
        truth | {"annotations": [first | {"bbox": [None] * 4}, *others]},
        truth | {"annotations": [first | {"area": "large"}, *others]},
        truth | {"annotations": [first | {"id": {}}, *others]},
        truth | {"annotations": [first | {"category_id": 7}, *others]},
        truth | {"category": 7},
        truth | {"image_numbers": [number + 1000 for number in truth["image_ids"]]},
        truth | {"no_area": 1.5},
        truth | {"no_box": "all"},
        truth | {"categories": [1, 2]},  # and no `category` of persons
    ):
        text = np.frombuffer(json.dumps(changed).encode(), np.uint8)
        forge_annotations(out, arrays | {"truth": text})
        with pytest.raises(PackError, match=r"train-persons\.npz: damaged: truth: "):
            read_packed_persons(out, "train")
    forge_annotations(out, arrays)
    assert read_packed_persons(out, "train").truth == truth
    two = np.frombuffer(json.dumps(truth | {"categories": [1, 2]}).encode(), np.uint8)
    kinds = np.zeros(len(arrays["image_id"]), np.int64)
    forge_annotations(out, arrays | {"truth": two, "category": kinds + 1})
    assert read_packed_persons(out, "train").truth["categories"] == [1, 2]
    for wrong in (kinds + 2, kinds - 1, kinds + 0.5, kinds + 0.0, kinds == 0, kinds[:, None]):
        forge_annotations(out, arrays | {"truth": two, "category": wrong})
        with pytest.raises(PackError, match="expected category, each person's place"):
            read_packed_persons(out, "train")
    lowest = -(1 << 63)  # which is an id like any other
    known = {"image_ids": [lowest], "annotations": [one | {"image_id": lowest} for one in truth["annotations"]]}
    ids = np.full_like(arrays["image_id"], lowest)
    text = np.frombuffer(json.dumps(truth | known).encode(), np.uint8)
    forge_annotations(out, arrays | {"truth": text, "image_id": ids})
    assert read_packed_persons(out, "train").truth["image_ids"] == [lowest]
    del arrays["image_id"]
    forge_annotations(out, arrays)
    with pytest.raises(PackError, match=r"train-persons\.npz: damaged: expected image_id, one for each person"):
        read_packed_persons(out, "train")


def test_a_record_is_decoded_only_if_its_header_says_what_its_table_does(whole_jpeg, tmp_path):
    rows = np.load(whole_jpeg / "train-00000.npy")
    height, width = int(rows["height"][0]), int(rows["width"][0])
    grey = np.full((height, width, 3), 9, np.uint8)
    jpeg, png, progressive = (
        cv2.imencode(suffix, grey, list(options))[1].tobytes()
        for suffix, options in ((".jpg", ()), (".png", ()), (".jpg", (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)))
    )
    sides = jpeg.index(b"\xff\xc0") + 5
    lying = jpeg[:sides] + b"\xff\xdc\xff\xdc" + jpeg[sides + 4 :]  # 65,500 x 65,500
    others = {"png": png, "lying": lying, "progressive": progressive, "endless": b"\xff\xd8" + b"\xff\xe0\0\0" * 900}
    for name, record in others.items():
        root = Path(shutil.copytree(whole_jpeg, tmp_path / name))
        forge_record(root, record)
        with pytest.raises(
            PackError, match=rf"shard: the record of 000\.jpg does not decode to {height} x {width} pix"
        ):
            source_of(root).load(torch.tensor([0]), CPU)
    root = Path(shutil.copytree(whole_jpeg, tmp_path / "both"))
    forge_record(root, lying, height=65_500, width=65_500)
    with pytest.raises(PackError, match=r"record 0 in .*: expected no more pixels than a JPEG of its bytes has"):
        source_of(root)
    root = Path(shutil.copytree(whole_jpeg, tmp_path / "fine"))
    forge_record(root, jpeg)
    np.testing.assert_allclose(pictures_of(source_of(root).load(torch.tensor([0]), CPU))[0], grey, atol=2)


def test_a_jpeg_of_one_colour_and_the_worst_quality_is_within_the_bound_on_its_pixels():
    for value in (0, 128, 255):
        data = cv2.imencode(".jpg", np.full((2048, 2048, 3), value, np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 1])[1]
        assert 0.9 * PIXELS_PER_JPEG_BYTE < 2048 * 2048 / len(data) <= PIXELS_PER_JPEG_BYTE


def test_a_shard_that_is_shortened_in_use_is_an_error_that_names_it_and_not_the_end_of_the_process(
    whole, whole_jpeg, tmp_path
):
    code = """if True:
        import os, sys, torch
        from pathlib import Path
        from fastpose.data.pack import PackError, read_packed_persons
        from fastpose.data.pixels import PackedImages
        for root in map(Path, sys.argv[1:]):
            source = PackedImages(read_packed_persons(root, "train").image_paths)
            rows = torch.arange(len(source.paths))
            source.load(rows, torch.device("cpu"))
            os.truncate(root / "train-00001.shard", 100)
            try:
                pixels = source.load(rows, torch.device("cpu"))
                print(sum(int(pixels.images[n].sum()) for n in range(len(rows))))
            except PackError as error:
                print(error)
    """
    copies = [Path(shutil.copytree(root, tmp_path / root.name)) for root in (whole, whole_jpeg)]
    shards = [root / "train-00001.shard" for root in copies]
    sizes = [shard.stat().st_size for shard in shards]
    assert in_a_process(code, *copies).splitlines() == [
        f"{shard}: shortened while in use: expected {size} bytes, got 100"
        for shard, size in zip(shards, sizes, strict=True)
    ]


def test_a_shard_that_is_written_into_in_use_is_compared_again(either):
    source, shard = source_of(either), either / "train-00000.shard"
    before = pictures_of(source.load(torch.arange(3), CPU))
    data = shard.read_bytes()
    with open(shard, "rb+") as file:
        file.write(bytes(100))
    os.utime(shard, ns=(1, 1))  # clocks of some file systems tick slowly
    with pytest.raises(PackError, match=r"train-00000\.shard: altered: the record of 000\.jpg"):
        source.load(torch.arange(3), CPU)
    with open(shard, "rb+") as file:
        file.write(data)
    os.utime(shard, ns=(2, 2))
    for one, other in zip(before, pictures_of(source.load(torch.arange(3), CPU)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_shard_that_is_replaced_or_removed_in_use_stays_what_it_was(either):
    source = source_of(either)
    before = [picture.copy() for picture in pictures_of(source.load(torch.arange(10), CPU))]
    (either / "new").write_bytes(b"other")
    os.replace(either / "new", either / "train-00000.shard")
    (either / "train-00001.shard").unlink()
    for one, other in zip(before, pictures_of(source.load(torch.arange(10), CPU)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_pack_can_be_pickled_and_opens_again(either):
    source = source_of(either)
    again = pickle.loads(pickle.dumps(source))
    asked = torch.tensor([4, 0, 4])
    for one, other in zip(*(pictures_of(s.load(asked, CPU)) for s in (source, again)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_pack_that_is_deleted_leaves_no_file_open(whole_jpeg):
    descriptors = Path("/proc/self/fd")
    if not descriptors.is_dir():
        pytest.skip("the system does not list open files")
    before = len(os.listdir(descriptors))
    source = source_of(whole_jpeg)
    assert len(os.listdir(descriptors)) > before
    del source
    assert len(os.listdir(descriptors)) == before


# What kills, cuts and full disks leave.


@contextmanager
def seen_at_each_write(monkeypatch, out: Path, states: Path) -> Iterator[None]:
    """Keeps the folder as it is before and after each file gets its name."""
    replace, count = os.replace, 0

    def keep() -> None:
        nonlocal count
        shutil.copytree(out, states / f"{count:03d}")
        count += 1

    def replaced(source, target):
        if Path(target).parent == out:
            keep()
        replace(source, target)
        if Path(target).parent == out:
            keep()

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", replaced)
        yield


def test_a_pack_goes_on_from_every_state_that_a_kill_or_a_power_cut_leaves(data, tmp_path, monkeypatch):
    out, states = tmp_path / "out", tmp_path / "states"
    arguments = [str(data), str(out), *SMALL[:3], "--shard_bytes", "200000", *SMALL[5:]]
    with seen_at_each_write(monkeypatch, out, states):
        assert pack.main(arguments) == 0
    expected = contents(out)
    left = sorted(states.iterdir())
    assert len(left) == 2 * len(expected) + 2  # unfinished.json is removed in the end
    assert sum(any(".part." in name for name in contents(state)) for state in left) == len(expected) + 1
    for number, state in enumerate(left):
        for half in state.glob("*.part.*"):  # what was not yet on the disk
            half.write_bytes((b"", half.read_bytes()[:100], bytes(half.stat().st_size))[number // 2 % 3])
        shutil.rmtree(out)
        shutil.copytree(state, out)
        assert pack.main(arguments) == 0
        assert contents(out) == expected


def test_what_was_half_written_is_removed_whatever_it_is(data, whole, copy, tmp_path):
    """Also where nothing of that name is written again; a link is not followed."""
    mine = tmp_path / "mine"
    mine.write_text("mine")
    (copy / "train-00007.part.shard").write_bytes(bytes(1000))
    (copy / "train-00000.part.shard").symlink_to(mine)
    (copy / "pack.part.json").write_text("{")
    assert pack.main([str(data), str(copy), *SMALL]) == 0
    assert contents(copy) == contents(whole)
    assert mine.read_text() == "mine"


def test_persons_keep_their_own_pixels_when_an_image_can_be_read_by_now(tmp_path, monkeypatch):
    data, out, fresh = write_tiny_mpii(tmp_path / "data", persons=24, images=24), tmp_path / "out", tmp_path / "fresh"
    picture = (data / "images/001.jpg").read_bytes()
    (data / "images/001.jpg").write_bytes(b"")
    arguments = [str(data), str(out), *SMALL]
    assert pack.main([*arguments, "--on_bad_image", "skip"]) == 0
    before = contents(out)
    (data / "images/001.jpg").write_bytes(picture)
    assert pack.main([str(data), str(fresh), *SMALL]) == 0
    expected = contents(fresh)
    first = [name for name in before if name.endswith(".npy") and len(before[name]) != len(expected.get(name, b""))]
    assert first  # shards have other numbers of records than they had
    write_table, calls = write._write, []

    def stop_after(number):
        def written(*arguments):
            calls.append(new := write_table(*arguments))
            if sum(calls) == number:
                raise KeyboardInterrupt
            return new

        return written

    for number in (1, 2):  # stopped after one shard that is made again, and after one more
        with monkeypatch.context() as patch:
            patch.setattr(write, "_write", stop_after(number))
            assert pack.main(arguments) == 130
    assert pack.main(arguments) == 0
    assert contents(out) == expected


def test_shards_that_have_changed_places_are_made_again(data, whole, copy):
    names = [copy / f"train-0000{number}{suffix}" for suffix in (".npy", ".shard") for number in (0, 1)]
    for one, other in (names[:2], names[2:]):
        one.rename(copy / "held")
        other.rename(one)
        (copy / "held").rename(other)
    with pytest.raises(PackError, match=r"train-00000\.npy: truncated or altered"):
        source_of(copy)
    assert pack.main([str(data), str(copy), *SMALL]) == 0
    assert contents(copy) == contents(whole)


@pytest.mark.parametrize("name", ["unfinished.json", "train-00001.shard", "train-00000.npy", "pack.json"])
def test_a_full_disk_is_one_line_with_the_file_and_the_pack_goes_on_when_there_is_room(
    data, whole, tmp_path, capsys, monkeypatch, name
):
    out, written_beside = tmp_path / "out", files.written_beside
    arguments = [str(data), str(out), *SMALL]

    @contextmanager
    def full(path, **options):
        with written_beside(path, **options) as beside:
            yield beside
            if path.name == name:
                raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, "written_beside", full)
        assert pack.main(arguments) == 1
    error = error_of(capsys)
    assert len(error.splitlines()) == 1
    assert "No space left on device" in error
    assert "; a shard takes 60,000 bytes: make room, and the same command goes on: " in error
    assert error.endswith(f"'{out / name}'\n")
    assert not list(out.glob("*.part*"))
    assert pack.main(arguments) == 0
    assert contents(out) == contents(whole)


# A score does not depend on packing.


def small_network(depth, head, num_joints, *, channels):
    return torch.nn.Conv2d(3, num_joints, 4, stride=4)


def test_a_bad_image_counts_the_same_from_files_and_from_a_pack(tmp_path, monkeypatch):
    monkeypatch.setattr(network, "pose_resnet", small_network)
    data, out = write_tiny_mpii(tmp_path / "data"), tmp_path / "out"
    (data / "images/002.jpg").write_bytes(b"")  # with persons 2 and 6
    assert pack.main([str(data), str(out), *SMALL, "--on_bad_image", "skip"]) == 0
    changes = {"size": (64, 64), "reduced_decode": False, "on_bad_image": "skip", "device": "cpu"}
    scores = []
    for root in (data, out):
        settings = settle({"data_root": str(root), **changes})
        if root is data:
            save_weights(
                tmp_path / "best.pt",
                network.make_network(settings.network, MPII, CPU).state_dict(),
                settings.as_plain(),
            )
        for split in ("train", "valid"):
            loader = loader_of(settings, split)
            assert sorted(row for batch in loader.epoch() for row in batch.rows.tolist()) == [0, 1, 3, 4, 5, 7, 8, 9]
            assert len(loader.bad_image_texts()) == 1
            assert "002.jpg: " in loader.bad_image_texts()[0]
        results = tmp_path / f"results-{root.name}"
        command = ["--checkpoint", str(tmp_path / "best.pt"), "--data_root", str(root), "--out", str(results)]
        assert evaluate.main([*command, "--on_bad_image", "skip"]) == 0
        scores.append(json.loads((results / "scores.json").read_text()))
    assert scores[0] | {"annotations": ""} == scores[1] | {"annotations": ""}
    assert scores[0]["skipped_persons"] == 2
