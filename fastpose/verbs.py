# SPDX-License-Identifier: Apache-2.0
"""The verbs of the `fastpose` script, and what it answers by itself: in no time, as that needs no torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fastpose._program import words_of_script
from fastpose.ending import ends_in_one_line, print_error
from fastpose.option import nearest

VERBS = {
    "train": "train a network and print its score",
    "evaluate": "score a checkpoint, write its predictions",
    "predict": "find the joints of persons in pictures",
    "export": "write a network as ONNX or torch.export program, pixels in, points out",
    "report": "write a run, or several side by side, as one page of HTML",
    "check": "look at a data set before training: what it is, what is doubtful",
    "pack": "cut a data set's persons out, into a few files that load quickly",
    "view": "draw what a network is fed, with joints and targets over it",
    "convert": "write a data set of any known format as COCO's JSON",
    "synthetic": "generate a data set of drawn persons",
    "models": "parameters and GFLOPs of both heads side by side",
    "doctor": "print what was built, found and missing; --test runs every op",
    "completion": "print what lets a shell complete verbs, options and values",
}


def answer(words: Sequence[str], version: str) -> int | None:
    """What the script has to say of these words by itself: prints its version, its usage, or that it has no such verb.

    Returns:
        The exit code, 2 for an unknown verb and for none; or None: a verb is to run, and nothing is printed.
    """
    verb = words[1:2] if words[:1] == ["help"] else words[:1]
    if verb and verb[0] in VERBS and "--version" not in words:
        return None
    return ends_in_one_line(lambda _: _answer(words, version))(words)


def _answer(words: Sequence[str], version: str) -> int:
    if "--version" in words:
        print(f"fastpose {version}")
        return 0
    named = words[1:] if words[:1] == ["help"] else [word for word in words[:1] if word not in ("--help", "-h")]
    if named:
        kind = "option" if named[0].startswith("-") else "verb"
        print_error(
            f"error: fastpose: no {kind} {named[0][:40]!r}{nearest(named[0], VERBS) or '; fastpose --help lists them'}"
        )
        return 2
    verbs = "\n".join(f"  {verb:12}{text}" for verb, text in VERBS.items())
    usage = "usage: fastpose VERB [OPTIONS]; fastpose help VERB lists the options; fastpose --version"
    print(f"{usage}\n\n{verbs}", file=sys.stdout if words else sys.stderr)
    return 0 if words else 2


def answer_early(version: str) -> None:
    """Ends a program that was started as the script, and is importing the package, if the rest of it is not needed."""
    words = words_of_script("fastpose")
    code = None if words is None else answer(words, version)
    if code is not None:
        raise SystemExit(code)
