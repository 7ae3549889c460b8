# SPDX-License-Identifier: Apache-2.0
"""MATLAB files: read as SciPy reads them, and refused in one line where they are hostile."""

from __future__ import annotations

import os
import re
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io

from fastpose.data.annotation_rows import AnnotationError
from fastpose.data.mat_file import read_mat
from studies.reliability import mat_files
from studies.reliability.mat_files import HEADER, compressed, element, numbers, release, structs, text

WRITTEN_BY_MATLAB = Path(scipy.io.__file__).parent / "matlab" / "tests" / "data"
FIELDS = ("stringfield", "doublefield", "one", "two", "three")
# Variables of SciPy's own test files that consist of numbers, text and structs, written by MATLAB 6.1 to 8 on three
# systems of both byte orders.
VARIABLES = (
    *("test3dmatrix", "testbools", "testdouble", "testmatrix", "testminus", "testonechar", "teststring", "testunicode"),
    *("teststruct", "teststructarr", "teststructnest", "theta", "a", "floats", "an_array"),
)


def same(ours: Any, scipys: np.ndarray) -> bool:
    """Whether a value is what SciPy has, without the fields that were not asked for."""
    if isinstance(ours, list):
        elements = scipys.ravel(order="F")
        pairs = zip(ours, elements, strict=True)
        return all(set(one) == set(FIELDS) & set(elements.dtype.names) for one in ours) and all(
            same(value, other[name]) for one, other in pairs for name, value in one.items()
        )
    if isinstance(ours, str):
        return scipys.size == 1 and ours == scipys.item()
    return ours.size == scipys.size == 0 or bool(np.array_equal(ours, scipys))


def test_files_written_by_matlab_are_read_as_scipy_reads_them():
    if not WRITTEN_BY_MATLAB.is_dir():
        pytest.skip("this SciPy came without the files of its tests")
    compared = 0
    for file in sorted(WRITTEN_BY_MATLAB.glob("*.mat")):
        if file.read_bytes()[124:126] not in (b"\x00\x01", b"\x01\x00"):  # version 4
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                theirs = scipy.io.loadmat(file, variable_names=VARIABLES)
            except Exception:  # files that are damaged on purpose
                continue
        for name in VARIABLES:
            if isinstance(theirs.get(name), np.ndarray) and theirs[name].dtype != object:
                assert same(read_mat(file, [name], FIELDS)[name], theirs[name]), (file, name)
                compared += 1
    assert compared > 40


@pytest.mark.parametrize("compress", [False, True])
def test_files_written_by_scipy_are_read_as_scipy_reads_them(tmp_path, compress):
    inner = np.zeros((2, 2), [("one", object), ("unwanted", object)])
    for i, element_ in enumerate(inner.ravel()):
        element_["one"], element_["unwanted"] = np.arange(i + 3) / 7, np.array([[1, "x"]], object)
    contents = {
        **{kind: np.arange(-3, 9).reshape(3, 4).astype(kind) for kind in ("i1", "i2", "i4", "i8", "f4", "f8")},
        **{kind: np.arange(12).reshape(2, 3, 2).astype(kind) for kind in ("u1", "u2", "u4", "u8")},
        "text": "Zoë's picture 1.jpg",
        "nothing": np.zeros((0, 3)),
        "no_text": "",
        "nested": {"one": 1.5, "two": {"three": "deep", "one": np.eye(2)}},
        "many": inner,
    }
    scipy.io.savemat(tmp_path / "a.mat", contents, do_compression=compress)
    theirs = scipy.io.loadmat(tmp_path / "a.mat")
    ours = read_mat(tmp_path / "a.mat", contents, FIELDS)
    for name in contents:
        assert same(ours[name], theirs[name]), name


# What the files of the trial are refused with; those that are not listed may be read or not, but never badly.
REFUSED = {
    "gt, empty": "not a readable MATLAB 5-7.2 file",
    "gt, a pointer of Git LFS": "not a readable .* it begins with b'version https",
    "gt, MATLAB 4": "not a readable",
    "gt, MATLAB 7.3": "expected MATLAB 5 to 7.2, got 7.3 .HDF5.: save it in MATLAB with -v7",
    "gt, HDF5 without MATLAB's header": "not a readable",
    "gt, cells in cells, 100,000": "has no variable pos_gt_src",
    "gt, a wanted variable of cells in cells": "pos_gt_src: expected numbers, text or structs, got a cell array",
    "gt, compressed zeros": "say that they are 50,331,720, expected at most",
    "gt, 4 GB said in fewer zeros": "say that they are 4,294,967,.*, expected at most",
    "gt, compressed twice": "does not fit",
    "gt, dimensions of 2^31 by 2^31": "it ends within an element",
    "gt, a negative dimension": "dimensions of 0 or more expected",
    "gt, 2,000 dimensions": "2 to 32 dimensions expected",
    "gt, an element beyond the end": "an element of 2,147,483,647 bytes does not fit",
    "gt, a sparse matrix": "got a sparse matrix",
    "gt, an object": "got an object",
    "gt, complex numbers": "got complex numbers",
    "gt, fewer numbers than said": "64 numbers expected, got 80 bytes",
    "gt, text for numbers": "pos_gt_src must be numbers of shape",
    "gt, structs for numbers": "pos_gt_src must be numbers of shape",
    "gt, NaN": "person 0: pos_gt_src",
    "gt, one person too many": "jnt_missing must be numbers of shape",
    "gt, a damaged checksum": "incorrect data check",
    "gt, a name with control characters": "has no variable",
    "gt, a flood of empty variables": "has no variable",
    "release, numbers for structs": "RELEASE must hold annolist",
    "release, 2^31 structs without fields": "RELEASE must hold annolist",
    "release, 2^31 structs with a field": "2,147,483,647 structs of 1 fields do not fit",
    "release, field names of length -1": "the names of fields expected",
    "release, structs in structs, 200": "structs are more than 8 deep",
    "release, img_train of another length": "one img_train for each of 1 images",
    "release, a name of control characters": "image.name must be a file name",
    "release, a name of 100,000 characters": "image.name must be a file name, got 'xxxx",
    "release, a name outside the folder": "outside",
    "release, text of several rows": "expected one row of text",
    "release, a joint of number 2.5": "a point has id 2.5",
    "release, a coordinate of two numbers": "must be a finite number",
    "release, cells for joints": "point: expected numbers, text or structs, got a cell array",
    "release, a flood of persons": "no usable person",
}


def test_hostile_files_are_refused_in_one_short_line_and_little_memory(tmp_path):
    mat_files.prepare(tmp_path)
    files = mat_files.mats(megabytes=48, floods=12_000) | mat_files.lists()
    assert set(REFUSED) < set(files)
    assert len(files) > 80
    outcomes = {}
    for name, contents in files.items():
        path = tmp_path / "tried.mat"
        path.write_bytes(contents)
        tracemalloc.start()
        try:
            mat_files.read(name, path, tmp_path)
            outcomes[name] = ""
        except (ValueError, OSError) as error:
            outcomes[name] = str(error)
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < 40e6, name
        assert len(outcomes[name].splitlines()) < 2, name
        assert len(outcomes[name]) < 500, name
        assert outcomes[name].isprintable(), name
    assert {name for name, text in outcomes.items() if name.endswith("good") and text} == set()
    for name, message in REFUSED.items():
        assert re.search(message, outcomes[name]), (name, outcomes[name])
        assert str(tmp_path) in outcomes[name]


@pytest.mark.parametrize("kind", ["gt", "release", "list"])
def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path, kind):
    mat_files.prepare(tmp_path)
    os.mkfifo(tmp_path / "pipe.mat")
    with pytest.raises(ValueError, match=r"pipe\.mat: expected a file, got a named pipe"):
        mat_files.read(f"{kind},", tmp_path / "pipe.mat", tmp_path)


def test_a_bomb_in_a_variable_that_nobody_wants_is_passed_over(tmp_path):
    bomb = mat_files.bomb(48, "other")
    (tmp_path / "a.mat").write_bytes(HEADER + bomb + compressed(numbers(np.eye(3), "wanted")))
    np.testing.assert_array_equal(read_mat(tmp_path / "a.mat", ["wanted"])["wanted"], np.eye(3))


def test_a_compressed_variable_that_ends_early_or_late_is_refused(tmp_path):
    whole = numbers(np.eye(3), "x")
    short = element(14, whole[8:-8], len(whole) - 8)[: len(whole) - 8]
    for wrong in (compressed(short), compressed(whole + bytes(8))):
        (tmp_path / "a.mat").write_bytes(HEADER + wrong)
        with pytest.raises(AnnotationError, match=r"compressed bytes"):
            read_mat(tmp_path / "a.mat", ["x"])


def test_fields_that_nobody_wants_are_not_looked_at(tmp_path):
    one = structs(1, {"name": text("a"), "junk": element(14, b"\xff" * 64)}, "s")
    (tmp_path / "a.mat").write_bytes(HEADER + one)
    assert read_mat(tmp_path / "a.mat", ["s"], ["name"])["s"] == [{"name": "a"}]


def test_the_trial_s_release_is_one_person(tmp_path):
    (tmp_path / "a.mat").write_bytes(release())
    (one,) = read_mat(tmp_path / "a.mat", ["RELEASE"], ["annolist", "image", "name"])["RELEASE"]
    assert one == {"annolist": [{"image": [{"name": "a.jpg"}]}]}
