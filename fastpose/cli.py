# SPDX-License-Identifier: Apache-2.0
"""The `fastpose` script, also as `python -m fastpose`: `fastpose VERB ...` is `python -m fastpose.VERB ...`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import fastpose
from fastpose.verbs import VERBS, answer

__all__ = ["VERBS", "main", "module_of"]


def module_of(verb: str) -> str:
    """The module that has a verb's `command` and `main`: one of the verbs is a package."""
    return "fastpose.models.__main__" if verb == "models" else f"fastpose.{verb}"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verb; returns its exit code, 2 for an unknown verb."""
    words = list(sys.argv[1:] if argv is None else argv)
    if (code := answer(words, fastpose.__version__)) is not None:
        return code
    if words[0] == "help":
        words = [words[1], "--help", *words[2:]]
    return importlib.import_module(module_of(words[0])).main(words[1:])


if __name__ == "__main__":
    sys.exit(main())
