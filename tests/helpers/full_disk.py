# SPDX-License-Identifier: Apache-2.0
"""A disk that is full: /dev/full instead of a file."""

from __future__ import annotations

from pathlib import Path

import pytest


def fill_the_disk_at(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever writes to `place` next finds a full disk: once it is removed, as writers begin, it is /dev/full."""
    unlink = Path.unlink

    def put_it_there(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok)
        if path == place:
            monkeypatch.setattr(Path, "unlink", unlink)
            place.symlink_to("/dev/full")

    monkeypatch.setattr(Path, "unlink", put_it_there)
