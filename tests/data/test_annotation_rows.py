# SPDX-License-Identifier: Apache-2.0
"""JSON files of annotations: what is refused, in one line, and what is taken."""

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastpose.data import annotation_rows
from fastpose.data.annotation_rows import AnnotationError, JsonLimits, as_json, read_json, read_numbers
from fastpose.data.coco import read_coco
from fastpose.data.dataset import DataOptions
from fastpose.data.datasets import open_dataset
from fastpose.data.mpii import read_mpii
from tests.helpers.tiny_coco import write_tiny_coco


def write(folder, content: bytes):
    path = folder / "a.json"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b'{"a": 1', "is not JSON: Expecting"),
        (b'{"a": "\xff"}', "is not JSON: 'utf-8' codec can't decode byte 0xff"),
        (b'{"a": "\x00"}', "is not JSON: Invalid control character"),
        (b"[]\x00", "is not JSON: Extra data"),
        (b"<html>", "is not JSON: Expecting value"),
        (b"version https://git-lfs", "is not JSON: Expecting value"),
        (b"[" * 100_000, "expected objects and lists at most 100 deep in each other, got more"),
        (b'{"a":' * 101 + b"1" + b"}" * 101, "expected objects and lists at most 100 deep"),
        (b"[" + b"9" * 5000 + b"]", "has an integer of too many digits"),
        (b'{"id": 1, "b": 2, "id": 3}', r'"id" is there twice in one object, \{"id": 3, "b": 2\}'),
        (b'[{"x": {"id": 1, "id": 1}}]', '"id" is there twice in one object'),
    ],
)
def test_a_file_that_is_not_sound_json_is_refused_in_one_line_with_its_name(tmp_path, content, message):
    with pytest.raises(AnnotationError, match=rf"a\.json: {message}") as raised:
        read_json(write(tmp_path, content))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_unicode_of_any_kind_is_read(tmp_path, encoding):
    contents = {"a": ["[[[{", "\\", '\\"', "é€😀"], "b": [float("inf"), -1.5, None]}
    assert read_json(write(tmp_path, json.dumps(contents, ensure_ascii=False).encode(encoding))) == contents


JSON = st.recursive(
    st.none() | st.integers() | st.text(alphabet='a[]{}"\\\n') | st.floats(allow_nan=False),
    lambda members: st.lists(members, max_size=3) | st.dictionaries(st.text(alphabet='a["\\'), members, max_size=3),
)


def depth(value) -> int:
    members = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if members is None else 1 + max(map(depth, members), default=0)


@given(value=JSON, chunk=st.integers(2, 20), indent=st.none() | st.just(1))
def test_depth_is_counted_outside_of_texts_wherever_a_chunk_ends(value, chunk, indent):
    content, levels = json.dumps(value, indent=indent).encode(), depth(value)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(annotation_rows, "_CHUNK", chunk)
        annotation_rows._check_depth(content, levels)
        if levels:
            with pytest.raises(AnnotationError, match=f"at most {levels - 1} deep"):
                annotation_rows._check_depth(content, levels - 1)


def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.json")
    for read in (read_json, lambda file: read_coco(file, tmp_path, (64, 64)), lambda file: read_mpii(file, tmp_path)):
        with pytest.raises(ValueError, match=r"a\.json: expected a file, got a named pipe"):
            read(tmp_path / "a.json")


def test_a_message_is_short_however_long_names_are(tmp_path):
    write_tiny_coco(tmp_path / "tiny")
    file = tmp_path / "tiny/annotations/train.json"
    file.write_text(file.read_text().replace("000.jpg", "x" * 1_000_000))
    with pytest.raises(
        AnnotationError, match=r"train\.json, annotation 1 \(row 0\): image 'xxx.* is not in "
    ) as raised:
        read_coco(file, tmp_path / "tiny/images", (64, 64))
    assert len(str(raised.value)) < 2000


def test_limits_are_options_of_every_reader(tmp_path):
    root = write_tiny_coco(tmp_path / "tiny")
    folder = tmp_path / "mpii"
    (folder / "annot").mkdir(parents=True)
    (folder / "images").mkdir()
    (folder / "annot/train.json").write_text("[[[]]]")
    annotations, detections = root / "annotations/train.json", root / "detections.json"
    with pytest.raises(ValueError, match=r"train\.json: expected at most 1,000 bytes, got "):
        read_coco(annotations, root / "images", (64, 64), limits=JsonLimits(bytes=1000))
    (root / "annotations/none.json").write_text(json.dumps({**json.loads(annotations.read_text()), "annotations": []}))
    limits = JsonLimits(bytes=600)
    with pytest.raises(ValueError, match=r"detections\.json: expected at most 600 bytes, got "):
        read_coco(root / "annotations/none.json", root / "images", (64, 64), detections=detections, limits=limits)
    with pytest.raises(ValueError, match=r"train\.json: expected at most 5 bytes, got 6"):
        read_mpii(folder / "annot/train.json", folder / "images", limits=JsonLimits(bytes=5))
    coco = {"train_annotations": "annotations/train.json", "images": "images"}
    mpii = {"train_annotations": "annot/train.json", "images": "images"}
    for dataset, where, names in (("coco", root, coco), ("mpii", folder, mpii)):
        small = {"max_annotation_bytes": 5}, {"max_annotation_depth": 2}
        for limit, message in zip(small, ("at most 5 bytes", "at most 2 deep"), strict=True):
            data = DataOptions(data_root=str(where), dataset=dataset, **names, **limit)
            with pytest.raises(ValueError, match=message):
                open_dataset(data, (64, 64)).read("train")


BOMBS = {
    "a million empty records": b"[" + b"{}," * 1_000_000 + b"{}]",
    "brackets": b"[" * 50_000_000,
    "brackets in a record": b'[{"image": ' + b"[" * 5_000_000 + b"]" * 5_000_000 + b"}]",
    "nulls": b'{"images": [' + b"null," * 2_000_000 + b"null]}",
    "a name twice among many": b'{"a": 0,' + b",".join(b'"%d": 0' % i for i in range(500_000)) + b', "a": 0}',
    "digits": b"[" + b"9" * 20_000_000 + b"]",
    "one long text": b'{"images": "' + b"x" * 50_000_000 + b'"}',
    "a long text among boxes": b'[{"image_id": 1, "category_id": 1, "score": 1, "bbox": [1, 2, 3, "'
    + b"x" * 1_000_000
    + b'"]}'
    + b', {"image_id": 1, "category_id": 1, "score": 1, "bbox": [1, 2, 3, 4]}' * 1000
    + b"]",
}
BOUNDED = """
import resource, sys
from pathlib import Path
from fastpose.data.coco import read_coco
from fastpose.data.mpii import read_mpii
folder = Path(sys.argv[1])
for file in sorted(folder.glob("bomb*.json")):
    for read in (
        lambda: read_mpii(file, folder),
        lambda: read_coco(file, folder, (64, 64)),
        lambda: read_coco(folder / "images.json", folder, (64, 64), detections=file),
    ):
        taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + file.stat().st_size + 300_000_000, resource.RLIM_INFINITY))
        try:
            read()
        except ValueError as error:
            print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of a process")
@pytest.mark.slow
def test_bombs_are_refused_within_300_mb_above_their_size(tmp_path):
    for index, content in enumerate(BOMBS.values()):
        (tmp_path / f"bomb{index}.json").write_bytes(content)
    images = {"images": [{"id": 1, "file_name": "a.jpg", "width": 9, "height": 9}], "categories": [{"id": 1}]}
    (tmp_path / "images.json").write_text(json.dumps(images))
    command = [sys.executable, "-c", BOUNDED, str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.count(f"bomb{row // 3}.json") for row, line in enumerate(lines)] == [1] * 3 * len(BOMBS)
    assert max(map(len, lines)) < 2000


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("3595.2", '"3595.2"'),
        (None, "null"),
        (True, "true"),
        (float("nan"), "NaN"),
        ({"a": [1, "é\n"]}, '{"a": [1, "é\\n"]}'),
        (10**30, "1" + "0" * 30),
        ("x" * 100, '"' + "x" * 79 + "..."),
        ([[0] * 1000] * 1000, "[[" + "0, " * 26 + "..."),
    ],
)
def test_values_are_shown_as_json_has_them_and_cut(value, shown):
    assert as_json(value) == shown


def test_numbers_are_no_texts_and_no_flags(tmp_path):
    record = {"a": [1, 2.5], "b": [1, "2"], "c": [True, 2], "d": [1, [2]], "e": [1, 10**400]}
    assert read_numbers(record, "a", (2,), "w").tolist() == [1, 2.5]
    assert read_numbers(record, "c", (2,), "w", booleans=True).tolist() == [1, 2]
    for key, got in (("b", r'\[1, "2"\]'), ("c", r"\[true, 2\]"), ("d", r"\[1, \[2\]\]")):
        with pytest.raises(AnnotationError, match=rf"w: {key} must be numbers of shape \[2\], got {got}"):
            read_numbers(record, key, (2,), "w")
    with pytest.raises(AnnotationError, match=r"w: e must be finite and below 1e\+06, got 1000"):
        read_numbers(record, "e", (2,), "w")
