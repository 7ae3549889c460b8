# SPDX-License-Identifier: Apache-2.0
"""A disk that loses in a power cut whatever was not brought to it: recorded while a program writes, replayed later."""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from unittest import mock

State = dict[str, bytes | None]  # contents of each file by its name below the root; None: a folder
MOST = 5  # changes of names that are tried in every subset; of more, only those up to each of them


class Change(NamedTuple):
    """A change of names that may be lost: `name` becomes file number `file` (None: none), and `gone` vanishes."""

    folder: str
    name: str
    file: int | None
    gone: str | None = None


class Disk:
    """What a power cut could leave of a folder, at any moment of what is done within `recorded`.

    As POSIX has it and no friendlier: without an fsync of the file its contents may be lost, all or in part, or be
    zeros; without one of the folder each change of a name in it may be lost, whatever came before or after.

    Attributes:
        states: each distinct one, with the moments that it can be from.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.states: list[tuple[str, State]] = []
        self._seen: set[frozenset[tuple[str, bytes | None]]] = set()
        self._names: dict[str, int] = {}  # as programs see them
        self._names_on_disk: dict[str, int] = {}
        self._contents: dict[int, bytes | None] = {}
        self._contents_on_disk: dict[int, bytes | None] = {}
        self._pending: list[Change] = []
        self._count = 0
        self._look()
        self._names_on_disk, self._pending = dict(self._names), []
        self._contents_on_disk = dict(self._contents)

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Records what the block does below the root, by way of the calls that decide what is on the disk."""
        fsync, replace = os.fsync, os.replace

        def synced(file: int) -> None:
            self._cut("before an fsync")
            fsync(file)
            self._sync(file)
            self._cut(f"after the fsync of {self._name_of(file)}")

        def replaced(source: Path, target: Path) -> None:
            self._cut(f"before the name {os.path.basename(target)}")
            replace(source, target)
            old, new = (Path(path).resolve().relative_to(self.root.resolve()).as_posix() for path in (source, target))
            self._names[new] = self._names.pop(old)
            self._pending.append(Change(os.path.dirname(new), new, self._names[new], old))
            self._cut(f"after the name {os.path.basename(target)}")

        with mock.patch.object(os, "fsync", synced), mock.patch.object(os, "replace", replaced):
            yield
        self._cut("the end")

    def _look(self) -> None:
        """Takes note of names that were made or removed, and of contents, since the last look."""
        found = {path.relative_to(self.root).as_posix(): path for path in sorted(self.root.rglob("*"))}
        for name in sorted(self._names.keys() - found.keys()):
            del self._names[name]
            self._pending.append(Change(os.path.dirname(name), name, None))
        for name, path in found.items():
            if name not in self._names:
                self._count += 1
                self._names[name] = self._count
                self._pending.append(Change(os.path.dirname(name), name, self._count))
            self._contents[self._names[name]] = None if path.is_dir() else path.read_bytes()

    def _name_of(self, file: int) -> str:
        status = os.fstat(file)
        for name in ("", *self._names):
            found = (self.root / name).stat()
            if (found.st_dev, found.st_ino) == (status.st_dev, status.st_ino):
                return name
        return "something else"

    def _sync(self, file: int) -> None:
        name = self._name_of(file)
        if stat.S_ISDIR(os.fstat(file).st_mode):
            done = [change for change in self._pending if change.folder == name]
            self._names_on_disk = _changed(self._names_on_disk, done)
            self._pending = [change for change in self._pending if change.folder != name]
        elif name in self._names:
            number = self._names[name]
            self._contents_on_disk[number] = self._contents[number]

    def _cut(self, moment: str) -> None:
        self._look()
        if len(self._pending) <= MOST:
            subsets = itertools.chain.from_iterable(
                itertools.combinations(self._pending, count) for count in range(len(self._pending) + 1)
            )
        else:
            subsets = (tuple(self._pending[:count]) for count in range(len(self._pending) + 1))
        for changes in subsets:
            names = _changed(self._names_on_disk, changes)
            for left in LEFT:
                state: State = {}
                for name, number in sorted(names.items()):
                    folder = os.path.dirname(name)
                    if folder and folder not in state:  # its own name was lost
                        continue
                    now, before = self._contents[number], self._contents_on_disk.get(number, b"")
                    state[name] = now if now is None or now == before else LEFT[left](before or b"", now)
                if (key := frozenset(state.items())) not in self._seen:
                    self._seen.add(key)
                    lost = len(self._pending) - len(changes)
                    self.states.append((f"{moment}, unsynced contents {left}, {lost} names lost", state))


def _changed(names: dict[str, int], changes: tuple[Change, ...] | list[Change]) -> dict[str, int]:
    names = dict(names)
    for change in changes:
        if change.gone is not None:
            names.pop(change.gone, None)
        if change.file is None:
            names.pop(change.name, None)
        else:
            names[change.name] = change.file
    return names


def _common(before: bytes, now: bytes) -> bytes:
    """What of a file was on the disk and is still in it: all of one that lines were appended to."""
    return before if now.startswith(before) else b""


LEFT: dict[str, Callable[[bytes, bytes], bytes]] = {
    "kept": lambda before, now: now,
    "lost": lambda before, now: before,
    "half kept": lambda before, now: now[: (len(now) + len(_common(before, now))) // 2],
    "zeros": lambda before, now: _common(before, now).ljust(len(now), b"\0"),
}


def put(state: State, root: Path) -> None:
    """Makes a state in a folder that does not exist yet."""
    root.mkdir()
    for name, contents in sorted(state.items()):
        if contents is None:
            (root / name).mkdir()
        else:
            (root / name).write_bytes(contents)
