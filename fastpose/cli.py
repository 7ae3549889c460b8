# SPDX-License-Identifier: Apache-2.0
"""The `fastpose` script: `fastpose VERB ...` is `python -m fastpose.VERB ...`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import fastpose
from fastpose.ending import ends_in_one_line

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
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verb; returns its exit code, 2 for an unknown verb."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] not in VERBS:
        return no_verb(words)
    module = "models.__main__" if words[0] == "models" else words[0]  # of the verbs only this one is a package
    return importlib.import_module(f"fastpose.{module}").main(words[1:])


@ends_in_one_line
def no_verb(words: Sequence[str]) -> int:
    """Prints the version or the usage; returns 2 where neither was asked for."""
    if words[:1] == ["--version"]:
        print(f"fastpose {fastpose.__version__}")
        return 0
    asked = words[:1] in (["--help"], ["-h"])
    verbs = "\n".join(f"  {verb:10}{text}" for verb, text in VERBS.items())
    text = f"usage: fastpose VERB [OPTIONS]; fastpose VERB --help lists the options; fastpose --version\n\n{verbs}"
    print(text, file=sys.stdout if asked else sys.stderr)
    if words and not asked:
        print(f"\nerror: no verb {words[0]!r}", file=sys.stderr)
    return 0 if asked else 2


if __name__ == "__main__":
    sys.exit(main())
