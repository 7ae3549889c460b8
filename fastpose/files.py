# SPDX-License-Identifier: Apache-2.0
"""Files that are written whole or not at all, and what reads them back."""

from __future__ import annotations

import errno
import functools
import itertools
import json
import logging
import os
import re
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

log = logging.getLogger(__name__)


@contextmanager
def written_beside(path: Path, *, keep: Path | None = None) -> Iterator[Path]:
    """A path beside `path` to write a file to. It becomes `path` once the block ends: contents and name are then on the
    disk, and outlive a power cut.

    If the block raises, the file beside is removed and `path` stays as it was.

    Args:
        path: the file to replace or to make. Its suffix, which some writers go by, stays.
        keep: where to keep the file that was at `path` before. A power cut may leave it there without a `path`.

    Raises:
        OSError: as the block raised it; with `path` in it if it does not say where, and of a full disk with the bytes
            that are free.
    """
    beside = part_of(path)
    try:
        beside.unlink(missing_ok=True)  # a link there, in a folder that came from elsewhere, would be written through
        yield beside
        with open(beside, "rb+") as file:
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            os.replace(path, keep)
        os.replace(beside, path)
        sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):  # which would hide the error that matters
            beside.unlink(missing_ok=True)  # a full disk is not to stay full
        # BrokenPipeError comes from printing progress inside the block; an error without a number has its own words.
        if isinstance(error, OSError) and error.errno and error.filename is None and error.errno != errno.EPIPE:
            raise _of_file(error, path) from error
        raise


def part_of(path: Path) -> Path:
    """Where the file at `path` is written before it is whole: last.pt -> last.part.pt"""
    return path.with_name(f"{path.stem}.part{path.suffix}")


def _of_file(error: OSError, path: Path) -> OSError:
    """The same error with the file that was being written; of a full disk with the bytes that are free."""
    text = str(error.strerror)
    if error.errno == errno.ENOSPC:
        with suppress(OSError):
            text += f", {shutil.disk_usage(path.parent).free:,} bytes free"
    return OSError(error.errno, text, str(path))


def sync_folder(folder: Path) -> None:
    """Brings the names in a folder to the disk: until then a power cut may undo that a file was made, renamed or
    removed. Does nothing where the system cannot (Windows, some network file systems)."""
    if os.name == "nt":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES):
            raise _of_file(error, folder) from error


def make_folder(folder: Path) -> None:
    """Makes a folder, with those above it, unless it is there; its name is then on the disk."""
    for part in reversed((folder, *folder.parents)):
        if part == folder or not part.exists():
            part.mkdir(exist_ok=True)
            sync_folder(part.parent)


@contextmanager
def only_writer(folder: Path, otherwise: Exception) -> Iterator[None]:
    """Locks a folder against other processes that ask for the same while the block runs.

    The lock ends with the process, however that ends. Where the system has no such locks, it warns and goes on.

    Args:
        folder: which exists.
        otherwise: what to raise if another process has it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise otherwise from None
        except OSError as error:  # some network file systems lock no folders
            log.warning("%s: cannot be locked (%s): let no other process write into it", folder, error.strerror)
        yield
    finally:
        os.close(descriptor)


class WholeFile:
    """A new file that takes all its bytes before it says that they could not be written, so that it can say how many
    are needed: torch.save makes a traceback of an error within.

    Raises:
        OSError: on leaving the block, with the bytes needed.
    """

    def __init__(self, path: Path) -> None:
        self._file = open(path, "wb", buffering=0)  # noqa: SIM115  (closed in __exit__)
        self._error: OSError | None = None
        self._size = 0

    def write(self, data: bytes | memoryview) -> int:
        size = memoryview(data).nbytes
        self._size += size
        if self._error is None:
            try:
                write_all(self._file, data)
            except OSError as error:
                self._error = error
        return size

    def flush(self) -> None:
        """Nothing is buffered."""

    def __enter__(self) -> WholeFile:
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        self._file.close()
        if self._error is not None and kind is None:
            raise _needing(self._error, self._size) from self._error


def write_all(file: Any, data: bytes | memoryview) -> None:
    """Writes all bytes to a raw file, which may take a part of them at a time."""
    left = memoryview(data).cast("B")
    while left:
        left = left[file.write(left) :]


def _needing(error: OSError, size: int) -> OSError:
    return OSError(error.errno, f"{error.strerror}: {size:,} bytes needed")


@contextmanager
def replacing(path: Path, *, keep: Path | None = None) -> Iterator[BinaryIO]:
    """A binary file that becomes `path` once the block ends, see `written_beside`."""
    with written_beside(path, keep=keep) as beside, open(beside, "wb") as file:
        yield file


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file, whole or not at all."""
    with written_beside(path) as beside, WholeFile(beside) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text, whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Path, contents: Any) -> None:
    """Writes readable JSON, whole or not at all; NaN, which JSON lacks, is a ValueError."""
    write_text(path, json.dumps(contents, indent=2, allow_nan=False) + "\n")


def write_yaml(path: Path, contents: dict[str, Any]) -> None:
    """Writes plain values as YAML, whole or not at all."""
    import yaml

    write_text(path, yaml.safe_dump(contents, sort_keys=False))


def append_line(path: Path, line: dict[str, Any]) -> None:
    """Appends one JSON object; NaN, which JSON lacks, is a ValueError. The line is then on the disk.

    Raises:
        OSError: with `path`, and the bytes needed and free if the disk is full; the file is as it was.
    """
    data = (json.dumps(line, allow_nan=False) + "\n").encode()
    with open(path, "ab", buffering=0) as file:
        before = file.tell()
        try:
            write_all(file, data)
            os.fsync(file.fileno())
        except OSError as error:
            with suppress(OSError):
                file.truncate(before)  # the next line must not follow a torn one
            raise _of_file(_needing(error, len(data)), path) from error
    if before == 0:  # it may be new
        sync_folder(path.parent)


def read_lines(path: Path, epochs: int) -> list[dict[str, Any]]:
    """The lines of the first `epochs` epochs; drops those after, which a resumed run is about to write again.

    Torn lines, and all but the last of several for one epoch, are dropped too, with a warning that says how many, and
    which epochs have no line.
    """
    try:
        data = read_file(path)
    except FileNotFoundError:
        data = b""
    found: dict[int, dict[str, Any]] = {}
    dropped = 0
    for text in data.split(b"\n"):
        if not text:
            continue
        try:
            line = json.loads(text)
            epoch = line["epoch"]
            kept = isinstance(epoch, int) and epoch >= 1
        except (ValueError, TypeError, KeyError, RecursionError):
            kept = False
        if not kept:
            dropped += 1
        elif epoch <= epochs:
            dropped += epoch in found
            found[epoch] = line
    lines = [found[epoch] for epoch in sorted(found)]
    if dropped:
        log.warning("%s: dropped %d lines that are torn, or repeat an epoch", path, dropped)
    if lost := [epoch for epoch in range(1, epochs + 1) if epoch not in found]:
        log.warning("%s: the lines of %d epochs are lost, the first is epoch %d", path, len(lost), lost[0])
    whole = "".join(json.dumps(line) + "\n" for line in lines)
    if whole.encode() != data:
        write_text(path, whole)
    return lines


def is_blank(data: bytes) -> bool:
    """Whether a text file has nothing in it, as power cuts leave files that were not yet on the disk: of no length, or
    with zeros for text."""
    return not data.strip(b"\0 \t\r\n")


def check_is_file(option: str, path: Path) -> None:
    """Raises FileNotFoundError if the file does not exist; names the option, and the first folder that is missing or
    else the files of this kind that are beside it, of which one may be meant."""
    if path.is_file():
        return
    if missing := [folder for folder in path.parents if not folder.exists()]:
        about = f": there is no folder {missing[-1]}"
    else:
        others = files_in(path.parent, (path.suffix.lower(),)) if path.suffix else []
        about = f": beside it there is {some_of(others)}" if others else ""
    raise FileNotFoundError(f"{option}: no file {path}{about}")


MOST_ENTRIES = 10_000  # of a folder that are looked at: there may be millions of images


def files_in(folder: Path, endings: tuple[str, ...]) -> list[str]:
    """The names of files in a folder that have one of these endings, in small letters, and are not hidden; sorted; an
    empty list where the folder cannot be read."""
    with suppress(OSError), os.scandir(folder) as entries:
        return sorted(
            entry.name
            for entry in itertools.islice(entries, MOST_ENTRIES)
            if entry.name.lower().endswith(endings) and not entry.name.startswith(".") and entry.is_file()
        )
    return []


def some_of(names: Sequence[str], most: int = 3) -> str:
    """The first few of several names and how many more there are, for a message."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def open_file(path: str | os.PathLike[str]) -> int:
    """Opens a file to read; returns its descriptor. Never waits: a named pipe is refused, not waited for.

    Every reader of a file that someone else may have made begins here.

    Raises:
        OSError: as from `os.open`.
        ValueError: it is a folder, pipe, socket or device, also at the end of a link; names the path.
    """
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)  # Windows would read text
    file = os.open(path, flags)
    mode = os.fstat(file).st_mode
    if not stat.S_ISREG(mode):
        os.close(file)
        kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "named pipe", stat.S_IFSOCK: "socket"}
        raise ValueError(f"{path}: expected a file, got a {kinds.get(stat.S_IFMT(mode), 'device')}")
    return file


def read_file(path: str | os.PathLike[str], most: int | None = None) -> bytes:
    """All bytes of a file, with as few calls as that takes: each one gives the interpreter lock away and wants it back.

    Args:
        path: the file.
        most: how many bytes to accept; None: any number.

    Raises:
        OSError: as from `os.open` and `os.read`.
        ValueError: not a file, see `open_file`, or one of more than `most` bytes; names the path.
    """
    file = open_file(path)
    try:
        size = os.fstat(file).st_size
        if most is not None and size > most:
            raise ValueError(f"{path}: expected at most {most:,} bytes, got {size:,}")
        data = os.read(file, size + 1)
        if len(data) == size:
            return data
        parts, total = [data], len(data)  # it grows or shrinks, comes in parts, or has no size
        while part := os.read(file, 1 << 20):
            parts.append(part)
            total += len(part)
            if most is not None and total > most:
                raise ValueError(f"{path}: expected at most {most:,} bytes, got more")
        return b"".join(parts)
    except OSError as error:  # of a disk that fails: it does not say of which file
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(file)


# A recipe has 2 kB, a skeleton of 133 joints 8. PyYAML takes a second for 64.
YAML_BYTES, YAML_DEPTH = 64 << 10, 20


def read_yaml(path: str | os.PathLike[str], *, number_keys: bool = False) -> Any:
    """The plain values of a YAML file; a number may be written 1e-3, which YAML 1.1 takes for text.

    A small file must not become a large or a slow one, and no value may be lost: aliases (`*name`), tags (`!!name`),
    more than YAML_DEPTH levels or YAML_BYTES bytes, keys that are not text and keys that come twice are errors. With
    `number_keys` keys may be whole numbers, too: other programs' files have these.

    Raises:
        OSError: as from `open_file`.
        ValueError: not a file, not UTF-8, not YAML or one of the above; one line that names the file and its line.
    """
    import yaml

    text = read_file(path, YAML_BYTES)
    try:
        return yaml.load(text.decode("utf-8-sig"), Loader=_yaml_loader(number_keys))
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ValueError(f"{path}: not YAML: {line}{error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError) as error:  # a character that YAML has not, bytes that are not UTF-8
        raise ValueError(f"{path}: not YAML: {' '.join(str(error).split())}") from error


@functools.cache
def _yaml_loader(number_keys: bool) -> Any:
    """PyYAML's loader with the limits of `read_yaml`; made when it is needed, as fastpose does without PyYAML."""
    import yaml

    class Loader(yaml.SafeLoader):
        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            event = self.peek_event()
            if isinstance(event, yaml.AliasEvent):
                self.refuse(f"the alias *{event.anchor}: write the value again", event)
            if event.tag is not None:
                self.refuse(f"the tag {event.tag}: values are plain", event)
            if self.depth == YAML_DEPTH:
                self.refuse(f"more than {YAML_DEPTH} levels", event)
            self.depth += 1
            try:
                return super().compose_node(parent, index)
            finally:
                self.depth -= 1

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            known: dict[str, int] = {}
            kinds = ("tag:yaml.org,2002:str", *["tag:yaml.org,2002:int"] * number_keys)
            for key, _ in node.value:
                if key.tag not in kinds:
                    kind = key.tag.rpartition(":")[2]
                    self.refuse(f"a key that is not text but {kind}: {str(key.value)[:40]!r}: put it in quotes", key)
                if key.value in known:
                    self.refuse(f"the key {key.value[:40]!r} for the second time, after line {known[key.value]}", key)
                known[key.value] = key.start_mark.line + 1
            return super().construct_mapping(node, deep)

        def construct_number(self, node: Any) -> Any:
            if len(node.value) > 100:  # the time that a number takes grows with the square of its length
                self.refuse(f"a number of {len(node.value):,} characters", node)
            kind = node.tag.rpartition(":")[2]
            return self.construct_yaml_int(node) if kind == "int" else self.construct_yaml_float(node)

        def refuse(self, found: str, where: Any) -> None:
            raise yaml.MarkedYAMLError(problem=f"found {found}", problem_mark=where.start_mark)

    without = ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:merge", "tag:yaml.org,2002:value")
    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in patterns if tag not in without]
        for first, patterns in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    exponent = re.compile(r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9_]+)[eE][-+]?[0-9]+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", exponent, list("-+0123456789."))
    for kind in ("int", "float"):
        Loader.add_constructor(f"tag:yaml.org,2002:{kind}", Loader.construct_number)
    return Loader
