# SPDX-License-Identifier: Apache-2.0
"""Finds another project's distribution `fastpose`, which is imported by the same name, beside this one."""

from __future__ import annotations

from importlib import metadata  # imported by torch already


def namesake() -> str | None:
    """Where the other distribution is and what to do about it; None if it is not installed.

    This one is called fastpose-torch. It used to be called fastpose, too, and is known by its script then.
    """
    for other in metadata.distributions(name="fastpose"):
        if "fastpose.cli:" not in (other.read_text("entry_points.txt") or ""):
            return (
                f"Another project's package called fastpose is installed in {other.locate_file('')}. Both are imported "
                "as fastpose, so one hides the other or has overwritten its files. Uninstall that one, then install "
                "this one again from its checkout: pip uninstall fastpose && pip install -e ."
            )
    return None
