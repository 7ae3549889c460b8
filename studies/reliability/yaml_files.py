# SPDX-License-Identifier: Apache-2.0
"""What becomes of hostile and of damaged YAML: `python -m studies.reliability.yaml_files [--verbose]`.

Each file is read as a recipe and as a skeleton, in processes of their own.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import yaml

from fastpose.options.asked import find_recipe, read_recipe
from fastpose.options.settings import FIELDS
from fastpose.options.settle import settle
from fastpose.skeletons import read_skeleton
from studies.reliability.trial import Outcome, outcome_of

MEMORY = 300 << 20  # bytes


def hostile() -> Iterator[tuple[str, bytes]]:
    """Files by what is wrong with them, if anything is."""
    for levels in (3, 9, 30, 200):
        for opened, closed, name in (("[", "]", "lists"), ("{k: ", "}", "maps")):
            lines = [f"a0: &a0 {opened}x{closed}"]
            repeated = 9 if opened == "[" else 1
            lines += [f"a{n}: &a{n} {opened}{', '.join([f'*a{n - 1}'] * repeated)}{closed}" for n in range(1, levels)]
            yield f"aliases in {name} on {levels} levels", "\n".join(lines).encode()
    yield "an alias of itself", b"joints: &a [*a]\nsize: &b [*b]"
    yield "a merge of itself", b"a: &a\n  <<: *a"
    yield "merges of merges", b"a: &a {x: 1}\nb: &b {<<: [*a, *a]}\nc: {<<: [*b, *b]}"
    for depth in (21, 1000, 100_000):
        for text in (
            "[" * depth,
            "[" * depth + "]" * depth,
            "{a: " * depth,
            "- " * depth,
            "? " * depth,
            "a: &a " * depth,
        ):
            yield f"{depth:,} times {text[:6]!r}", text.encode()[:60_000]
        yield f"{depth:,} levels of indentation", "".join(" " * n + "a:\n" for n in range(min(depth, 600))).encode()
    for tag in (
        "python/object/apply:os.system ['true']",
        "python/name:os.system ''",
        "binary 'AAAA'",
        "set {a}",
        "float 1",
    ):
        yield f"tag {tag}", f"joints: !!{tag}\n".encode()
    yield "a tag of one's own", b"!x {joints: [a]}"
    yield "a directive", b"%TAG ! tag:x,2000:\n--- !y\njoints: [a]"
    for number in ("9" * 5_000, "9" * 60_000, "1" + ":1" * 30_000, "0x" + "f" * 60_000, "0b" + "1" * 60_000):
        yield f"a number that begins with {number[:6]} of {len(number):,} characters", f"epochs: {number}".encode()
    for value in ("1e400", ".nan", "-.inf", "1e-400", "0o17", "1_000", "1:30", "2020-01-01", "2020-01-01T00:00:00Z"):
        yield f"number {value}", f"lr: {value}\nepochs: {value}".encode()
    for name in ("twice", "thrice"):
        yield f"a key {name}", b"lr: 1\n" * 2 + b"lr: 2\n" * (name == "thrice")
    for key in ("1", "1.5", "on", "~", "[a]", "{a: 1}", "2020-01-01", "? a\n: b\n? [c]"):
        yield f"key {key}", f"{key}: 1".encode()
    for text in (
        "",
        "\n",
        "# nothing",
        "---",
        "...",
        "a",
        "- a",
        "~",
        "{}",
        "[]",
        "a: 1\n---\nb: 2",
        "a: 1\n...\nb",
        "\ta: 1",
    ):
        yield f"text {text!r}", text.encode()
    for data in (
        b"\x00",
        b"\xff\xfe\xfd",
        "joints: [a]".encode("utf-16"),
        "joints: [a]".encode("utf-32"),
        b"a: \x1b[2J",
    ):
        yield f"bytes {data[:8]!r}", data
    yield "a mark and text", "\ufeffjoints: [a]".encode()
    yield "one line of 60,000 letters", b"a" * 60_000
    yield "above the limit", b"#" * 300_000
    yield "30,000 comments", b"#\n" * 30_000
    yield "20,000 keys of one letter", b"a:\n" * 20_000
    yield "quotes without end", b'a: "' + b"x" * 60_000
    yield "escapes", b'joints: ["' + b"\\U0010FFFF" * 6_000 + b'"]'
    yield "9,000 joints", f"joints: [{', '.join(f'j{n}' for n in range(9_000))}]".encode()
    yield "a block of text", b"joints: |\n" + b"  x\n" * 15_000
    for name in FIELDS:
        for value in ("{a: 1}", "[[1]]", "[1, x]", "null"):
            yield f"{name}: {value}", f"{name}: {value}\n".encode()
    yield "a path with a zero byte", b'data_root: "a\\0b"'
    yield "a path of 60,000 letters", b"skeleton: " + b"a" * 60_000
    yield "a path to a device", b"skeleton: /dev/zero"
    yield "a network", b"model: os:getcwd"
    yield "a network with a command", b'model: "a:b; true"'


def damaged() -> Iterator[tuple[str, bytes]]:
    """A recipe with bytes changed, dropped and doubled."""
    good, draw = find_recipe("mpii_resnet50_fcn_256").read_bytes(), random.Random(0)
    for index in range(100):
        changed = bytearray(good)
        for _ in range(draw.randrange(1, 6)):
            place = draw.randrange(len(changed))
            [
                lambda place=place, changed=changed: changed.__setitem__(place, draw.randrange(256)),
                lambda place=place, changed=changed: changed.pop(place),
                lambda place=place, changed=changed: changed.insert(place, draw.choice(b"[]{}:&*!#\n\t-?|>'\"")),
            ][draw.randrange(3)]()
        yield f"damaged recipe {index}", bytes(changed)


def settled(path: Path) -> None:
    settle({}, recipe=read_recipe(path), reads_data=False)


def main() -> None:
    """Prints what was tried and what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--verbose", action="store_true", help="a line for each file")
    verbose = parser.parse_args().verbose
    yaml.safe_load("a: 1")  # imported before the processes fork
    found: dict[str, Counter[str]] = {"recipe": Counter(), "skeleton": Counter()}
    worst = Outcome("", 0.0, 0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.yaml"
        for name, contents in (*hostile(), *damaged()):
            path.write_bytes(contents)
            for kind, read in (("recipe", settled), ("skeleton", read_skeleton)):
                outcome = outcome_of(read, path)
                found[kind][outcome.kind] += 1
                found[kind]["above the limit of memory"] += outcome.memory > MEMORY
                if verbose or outcome.kind not in ("one line", "accepted"):
                    print(f"{kind:9} {outcome.kind:10} {outcome.seconds:6.2f} s  {name}: {outcome.text[:160]}")
                if outcome.seconds > worst.seconds:
                    worst, slowest = outcome, name
    for kind, counts in found.items():
        above = counts.pop("above the limit of memory")
        listed = ", ".join(f"{count} {what}" for what, count in counts.items())
        print(f"read as a {kind}: {sum(counts.values())} tried: {listed}; {above} took more than {MEMORY >> 20} MiB")
    print(f"slowest: {worst.seconds:.2f} s of a processor ({slowest})")


if __name__ == "__main__":
    main()
