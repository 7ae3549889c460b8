# SPDX-License-Identifier: Apache-2.0
import errno
import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fastpose.files import (
    append_line,
    check_is_file,
    make_folder,
    only_writer,
    open_file,
    part_of,
    read_file,
    read_lines,
    read_yaml,
    replacing,
    write_json,
    write_text,
    written_beside,
)
from fastpose.models.checkpoint import save_contents
from tests.helpers.full_disk import fill_the_disk_at


@pytest.fixture
def path(tmp_path) -> Path:
    """A file with contents."""
    path = tmp_path / "scores.json"
    path.write_text("old")
    return path


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_a_file_takes_its_place_only_when_it_is_whole(path):
    with written_beside(path) as beside:
        assert beside.parent == path.parent
        assert beside != path
        assert beside.suffix == path.suffix
        beside.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(path.parent) == ["scores.json"]


def spoil(path: Path, error: BaseException, keep: Path | None) -> None:
    with replacing(path, keep=keep) as file:
        file.write(b"half")
        raise error


@pytest.mark.parametrize("error", [ValueError("not now"), KeyboardInterrupt(), SystemExit(3), OSError(28, "full")])
@pytest.mark.parametrize("keep", [False, True])
def test_an_exception_leaves_the_old_file_and_nothing_beside_it(path, error, keep):
    with pytest.raises(type(error)):
        spoil(path, error, path.with_name("kept.json") if keep else None)
    assert path.read_text() == "old"
    assert names(path.parent) == ["scores.json"]


def test_a_link_where_the_file_is_written_first_is_not_followed(path):
    (victim := path.with_name("victim")).write_text("mine")
    part_of(path).symlink_to(victim)
    write_text(path, "newer")
    assert (path.read_text(), victim.read_text()) == ("newer", "mine")
    assert not path.is_symlink()


def test_an_exception_before_anything_is_written_makes_no_file(tmp_path):
    with pytest.raises(ValueError, match="early"), written_beside(tmp_path / "a.bin"):
        raise ValueError("early")
    assert names(tmp_path) == []


def test_the_file_before_is_kept_if_asked(path):
    keep = path.with_name("kept.json")
    keep.write_text("older")
    with replacing(path, keep=keep) as file:
        file.write(b"new")
    assert (path.read_text(), keep.read_text()) == ("new", "old")
    fresh = path.with_name("fresh.json")
    with replacing(fresh, keep=path.with_name("nothing.json")) as file:  # there is none to keep
        file.write(b"first")
    assert names(path.parent) == ["fresh.json", "kept.json", "scores.json"]


def test_a_full_disk_is_reported_with_the_file(path):
    with pytest.raises(OSError, match="No space left") as full, replacing(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert full.value.filename == str(path)
    with pytest.raises(OSError, match="Permission") as other, replacing(path):
        raise OSError(errno.EACCES, "Permission denied", "elsewhere")
    assert other.value.filename == "elsewhere"  # an error that says where keeps its place
    with pytest.raises(BrokenPipeError) as broken, replacing(path):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")
    assert broken.value.filename is None


def test_contents_are_on_the_disk_before_the_name_is(path, monkeypatch):
    done = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (done.append("fsync"), sync(file)))
    monkeypatch.setattr(os, "replace", lambda *places: (done.append("replace"), replace(*places)))
    write_text(path, "new")
    assert done == ["fsync", "replace", "fsync"]  # the last is the folder's


def test_a_kept_file_and_the_new_one_are_on_the_disk_together(path, monkeypatch):
    done = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (done.append(stat.S_IFMT(os.fstat(file).st_mode)), sync(file)))
    monkeypatch.setattr(os, "replace", lambda *places: (done.append(places[1].name), replace(*places)))
    with replacing(path, keep=path.with_name("kept.json")) as file:
        file.write(b"new")
    assert done == [stat.S_IFREG, "kept.json", "scores.json", stat.S_IFDIR]


def test_a_line_is_on_the_disk_and_so_is_the_name_of_its_file(tmp_path, monkeypatch):
    done, sync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (done.append(stat.S_IFMT(os.fstat(file).st_mode)), sync(file)))
    for _ in range(2):
        append_line(tmp_path / "metrics.jsonl", {"epoch": 1})
    assert done == [stat.S_IFREG, stat.S_IFDIR, stat.S_IFREG]


def test_each_new_folder_s_name_is_on_the_disk(tmp_path, monkeypatch):
    synced, sync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(os.fstat(file).st_ino), sync(file)))
    make_folder(tmp_path / "runs/a")
    assert synced == [tmp_path.stat().st_ino, (tmp_path / "runs").stat().st_ino]
    make_folder(tmp_path / "runs/a")  # it may be there only in memory, from a process that was killed
    assert synced[2:] == [(tmp_path / "runs").stat().st_ino]
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        make_folder(tmp_path / "file")


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_sync_folders_is_no_error(path, monkeypatch, number):
    def refuse(file):
        if stat.S_ISDIR(os.fstat(file).st_mode):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    write_text(path, "new")
    assert path.read_text() == "new"


def writers() -> dict[str, Callable[[Path], None]]:
    """What writes a run's files, each about 100,000 bytes."""
    text = "0123456789" * 10_000
    tensors = {"weight": torch.arange(25_000, dtype=torch.int32)}
    return {
        "write_text": lambda path: write_text(path, text),
        "write_json": lambda path: write_json(path, {"text": text}),
        "append_line": lambda path: append_line(path, {"text": text}),
        "save_contents": lambda path: save_contents(path, tensors),
        "save_contents for old torch": lambda path: save_contents(path, tensors, for_old_torch=True),
    }


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("name", writers())
def test_a_full_disk_is_one_line_with_the_file_and_the_bytes_needed_and_free(path, name, monkeypatch):
    """A real one: /dev/full instead of the file that is written."""
    place = path if name == "append_line" else part_of(path)
    fill_the_disk_at(place, monkeypatch)
    if name == "append_line":  # which replaces nothing
        place.unlink()
    with pytest.raises(OSError, match="No space left") as full:
        writers()[name](path)
    assert (full.value.errno, full.value.filename) == (errno.ENOSPC, str(path))
    needed, free = re.search(r"device: ([\d,]+) bytes needed, ([\d,]+) bytes free: '", str(full.value)).groups()
    assert 100_000 <= int(needed.replace(",", "")) < 110_000
    assert int(free.replace(",", "")) > 0
    assert "\n" not in str(full.value)
    assert names(path.parent) == ["scores.json"]
    assert name == "append_line" or path.read_text() == "old"


@pytest.mark.parametrize("name", writers())
def test_a_limit_of_the_system_leaves_the_old_file_alone(path, name):
    """A real one, in the middle of the file."""
    resource = pytest.importorskip("resource", reason="Windows limits no file sizes")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: 10\d,\d\d\d bytes needed: '") as limit:
            writers()[name](path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (limit.value.errno, limit.value.filename) == (errno.EFBIG, str(path))
    assert path.read_text() == "old"
    assert names(path.parent) == ["scores.json"]


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("name", writers())
def test_a_disk_that_fails_at_the_last_moment_is_one_line_with_the_file(path, monkeypatch, name, number):
    def fail(file):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=os.strerror(number)) as failed:
        writers()[name](path)
    assert (failed.value.errno, failed.value.filename) == (number, str(path))
    assert path.read_text() == "old"
    assert names(path.parent) == ["scores.json"]


def test_a_file_beside_that_cannot_be_removed_hides_no_error(path, monkeypatch):
    def refuse(self, **options):
        raise OSError(errno.EROFS, "Read-only file system", str(self))

    def fail() -> None:
        with written_beside(path):
            monkeypatch.setattr(Path, "unlink", refuse)
            raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        fail()


def test_a_folder_is_locked_against_other_processes_until_the_one_that_has_it_ends(tmp_path):
    pytest.importorskip("fcntl", reason="Windows has no such locks")
    code = (
        "import sys, time; from pathlib import Path; from fastpose.files import only_writer\n"
        "with only_writer(Path(sys.argv[1]), SystemExit('in use')):\n"
        "    print('locked', flush=True); time.sleep(600)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(PermissionError, match="in use"), only_writer(tmp_path, PermissionError("in use")):
            pass
    finally:
        other.kill()  # it has no chance to give the lock back
        other.communicate()
    for _ in range(2):
        with only_writer(tmp_path, PermissionError("in use")):
            pass


def test_a_file_system_without_locks_is_reported_and_no_error(tmp_path, monkeypatch, caplog):
    fcntl = pytest.importorskip("fcntl", reason="Windows has no such locks")

    def refuse(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with only_writer(tmp_path, PermissionError("in use")):
        pass
    assert f"{tmp_path}: cannot be locked (No locks available)" in caplog.text


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        write_text(tmp_path / "absent/a.txt", "text")


def test_json_is_readable_and_has_no_nan(path):
    write_json(path, {"a": [1, None]})
    assert json.loads(path.read_text()) == {"a": [1, None]}
    assert path.read_text().endswith("}\n")
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": [1, None]}


def test_lines_of_epochs_to_be_repeated_and_a_torn_one_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_lines(path, 3) == []
    for epoch in (1, 2, 3):
        append_line(path, {"epoch": epoch})
    whole = path.read_text()
    path.write_text(whole + '{"epoch": 4, "lo')
    assert [line["epoch"] for line in read_lines(path, 9)] == [1, 2, 3]
    assert path.read_text() == whole
    assert [line["epoch"] for line in read_lines(path, 2)] == [1, 2]
    assert path.read_text().splitlines() == whole.splitlines()[:2]


@pytest.mark.parametrize(
    ("text", "kept", "warned"),
    [
        ('{"epoch": 1}\n{"epoch": 2}\n', [1, 2], None),
        ('{"epoch": 1}\n{"epoch": 2}\n{"epoch": 3}\n', [1, 2], None),  # to be written again
        ('{"epoch": 1}\n{"epoch": 2}\n{"epo', [1, 2], "dropped 1 lines"),
        ('{"epoch": 1}\n\0\0\0\0\n{"epoch": 2}\n', [1, 2], "dropped 1 lines"),
        ('{"epoch": 1}\n[[\n3\n{}\n{"epoch": "2"}\n{"epoch": 2}\n', [1, 2], "dropped 4 lines"),
        ('{"epoch": 1, "n": 0}\n{"epoch": 1}\n{"epoch": 2}\n', [1, 2], "dropped 1 lines"),
        ('{"epoch": 2}\n', [2], "the lines of 1 epochs are lost, the first is epoch 1"),
        ("\0\0\0\0", [], "the lines of 2 epochs are lost, the first is epoch 1"),
        ("", [], "the lines of 2 epochs are lost, the first is epoch 1"),
        (None, [], "the lines of 2 epochs are lost, the first is epoch 1"),
    ],
)
def test_what_a_power_cut_or_a_second_run_did_to_lines_is_reported_and_mended(tmp_path, caplog, text, kept, warned):
    path = tmp_path / "metrics.jsonl"
    if text is not None:
        path.write_text(text)
    assert read_lines(path, 2) == [{"epoch": epoch} for epoch in kept]
    assert (f"{path}: " in caplog.text) == (warned is not None)
    assert (warned or "") in caplog.text
    append_line(path, {"epoch": 3})
    assert path.read_text() == "".join(f'{{"epoch": {epoch}}}\n' for epoch in [*kept, 3])


def test_a_missing_file_is_an_error_that_names_its_option(tmp_path, path):
    check_is_file("head_boxes", path)
    for absent in (tmp_path / "absent.mat", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"^head_boxes: no file {absent}$"):
            check_is_file("head_boxes", absent)
    for name in ("gt_d.mat", "gt_a.MAT", "gt_b.mat", "gt_c.mat", ".hidden.mat", "a.json"):
        (tmp_path / name).touch()
    beside = f"^head_boxes: no file {tmp_path}/absent.mat: beside it there is gt_a.MAT, gt_b.mat, gt_c.mat and 1 more$"
    with pytest.raises(FileNotFoundError, match=beside):
        check_is_file("head_boxes", tmp_path / "absent.mat")
    message = f"^head_boxes: no file {tmp_path}/a/b/absent.mat: there is no folder {tmp_path}/a$"
    with pytest.raises(FileNotFoundError, match=message):
        check_is_file("head_boxes", tmp_path / "a/b/absent.mat")


def test_a_file_is_read_whole_also_where_the_system_gives_it_no_size(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(contents := bytes(range(256)) * 20_000)
    assert read_file(path) == read_file(path, len(contents)) == contents
    if Path("/proc/self/status").exists():
        assert b"VmSize" in read_file("/proc/self/status")


@pytest.mark.parametrize("size", [0, 1, 999, 1000, 1001, 5000])
def test_a_file_that_changes_its_size_is_read_to_its_end(tmp_path, monkeypatch, size):
    (tmp_path / "a").write_bytes(bytes(range(250)) * 4)
    monkeypatch.setattr(os, "fstat", lambda file: SimpleNamespace(st_size=size, st_mode=stat.S_IFREG))
    assert read_file(tmp_path / "a") == bytes(range(250)) * 4


def test_a_file_that_comes_in_parts_is_read_to_its_end(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(bytes(range(250)) * 4)
    read = os.read
    monkeypatch.setattr(os, "read", lambda file, size: read(file, min(size, 300)))
    assert read_file(tmp_path / "a") == bytes(range(250)) * 4


def test_a_file_above_the_limit_is_refused_unread(tmp_path):
    path = tmp_path / "large.json"
    with open(path, "wb") as file:
        file.truncate(1 << 40)  # a hole: it takes no space
    with pytest.raises(ValueError, match=rf"^{path}: expected at most 1,000 bytes, got 1,099,511,627,776$"):
        read_file(path, 1000)
    if Path("/proc/self/status").exists():
        with pytest.raises(ValueError, match="expected at most 10 bytes, got more"):
            read_file("/proc/self/status", 10)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_what_is_not_a_file_is_refused_without_waiting(tmp_path):
    pipe = tmp_path / "pipe.jpg"
    os.mkfifo(pipe)
    (link := tmp_path / "link.jpg").symlink_to(pipe)
    for path, kind in ((pipe, "named pipe"), (link, "named pipe"), (tmp_path, "folder"), (Path("/dev/zero"), "device")):
        with pytest.raises(ValueError, match=f"^{path}: expected a file, got a {kind}$"):
            open_file(path)
    with pytest.raises(FileNotFoundError):
        open_file(tmp_path / "absent")


def bomb(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    return "\n".join(lines + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (bomb(9), r"line 2: found the alias \*a0: write the value again"),
        ("a: &a [*a]", r"line 1: found the alias \*a"),
        ("a: &a {b: 1}\nc:\n  <<: *a", r"line 3: found the alias \*a"),
        ("a: !!python/object/apply:os.system ['true']", "line 1: found the tag .*os.system: values are plain"),
        ("a: !!binary AAAA", "found the tag .*binary"),
        ("a: " + "[" * 21 + "]" * 21, "found more than 20 levels"),
        ("[" * 50_000, "found more than 20 levels"),
        ("lr: 1\nsize: 2\nlr: 3", "line 3: found the key 'lr' for the second time, after line 1"),
        ("a:\n- {b: 1, b: 1}", "line 2: found the key 'b' for the second time, after line 2"),
        ("1: 2", "found a key that is not text but int: '1'"),
        ("on: 2", "found a key that is not text but bool: 'on'"),
        ("[a, b]: 2", "found a key that is not text but seq"),
        ("a: " + "9" * 5000, "found a number of 5,000 characters"),
        ("a: 1" + ":1" * 20_000, "found a number of 40,001 characters"),
        ("a: [1, 2", "expected ',' or ']', but got '<stream end>'"),
        ("a: 1\n--- \nb: 2", "line 2: but found another document"),
        ("a: \x00", "special characters are not allowed"),
        (b"\xff\xfe\xfd", "invalid start byte"),
        ("a" * 300_000, "expected at most 65,536 bytes, got 300,000"),
    ],
    ids=lambda value: str(value)[:20] if len(value) < 1000 else "long",
)
def test_yaml_that_would_grow_or_lose_a_value_is_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "a.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message) as error:
        read_yaml(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < len(str(path)) + 200


def test_yaml_has_its_values_and_numbers_as_they_are_written(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("a: [1, 1e-3, 1.0e-3, .5, -.inf, on, ~, 'on', 2020-01-01, 0x10]\nb: {c: '', d: x}\n")
    assert read_yaml(path) == {
        "a": [1, 0.001, 0.001, 0.5, float("-inf"), True, None, "on", "2020-01-01", 16],
        "b": {"c": "", "d": "x"},
    }
    path.write_text("\ufeffa: ä", encoding="utf-8")
    assert read_yaml(path) == {"a": "ä"}


def test_keys_of_yaml_may_be_whole_numbers_where_that_is_asked_for(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("names:\n  0: a\n  10: b\n")
    assert read_yaml(path, number_keys=True) == {"names": {0: "a", 10: "b"}}
    with pytest.raises(ValueError, match="line 2: found a key that is not text but int: '0': put it in quotes"):
        read_yaml(path)
    path.write_text("{1.5: a}")
    with pytest.raises(ValueError, match=r"line 1: found a key that is not text but float: '1\.5'"):
        read_yaml(path, number_keys=True)
