# SPDX-License-Identifier: Apache-2.0
"""Left and right in the names of joints, and the mirror pairs that follow from them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

Pair = tuple[int, int]

# left, Right, lEye, eye_R, Eye.L, pawLeft; not the l of elbow.
_SIDE = re.compile(r"(?i:left|right)|(?<![A-Za-z])[lrLR](?![a-z])|(?<=[a-z])[LR](?![A-Za-z])")
_OTHER = {"left": "right", "right": "left", "l": "r", "r": "l"}
_BARE = re.compile(r"[^\W\d][\w-]*")  # a word with a side, which YAML reads as a text without quotes


def side_of(name: str) -> str:
    """ "left" or "right"; empty if the name has neither, or both."""
    sides = {"left" if word.lower().startswith("l") else "right" for word in _SIDE.findall(name)}
    return sides.pop() if len(sides) == 1 else ""


def counterpart(name: str) -> str | None:
    """The name with left for right and right for left; None if it has neither."""

    def other(found: re.Match[str]) -> str:
        word = found.group()
        swapped = _OTHER[word.lower()]
        return swapped.upper() if word.isupper() else swapped.title() if word[0].isupper() else swapped

    swapped = _SIDE.sub(other, name)
    return None if swapped == name else swapped


def pairs_by_name(joints: Sequence[str]) -> list[Pair]:
    """The pairs (right, left) of the joints whose names say that they belong together."""
    index_of = {name: index for index, name in enumerate(joints)}
    pairs = []
    for left, name in enumerate(joints):
        side, other = _SIDE.search(name), counterpart(name)
        if side is None or other is None or not side.group().lower().startswith("l"):
            continue
        right = index_of.get(other)
        if right is not None and counterpart(other) == name:  # not of lEft, where there is a left, too
            pairs.append((right, left))
    return pairs


def contradiction(joints: Sequence[str], pairs: Sequence[Pair]) -> str:
    """What the first of the mirror pairs that names contradict should be; empty if they contradict none."""
    own = {joint: pair for pair in pairs_by_name(joints) for joint in pair}
    for pair in pairs:
        for joint in pair:
            if joint in own and set(own[joint]) != set(pair):
                expected, got = (pairs_in_yaml(joints, [one])[1:-1] for one in (own[joint], pair))
                return f"expected {expected}, as the names say, got {got}"
    return ""


def missing_pairs(joints: Sequence[str], pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs by name of which neither joint is in a mirror pair."""
    paired = {joint for pair in pairs for joint in pair}
    return [pair for pair in pairs_by_name(joints) if not paired & set(pair)]


def pairs_in_yaml(joints: Sequence[str], pairs: Sequence[Pair]) -> str:
    """Pairs of joints as a skeleton's file has them, in one line."""

    def text(joint: int) -> str:
        name = joints[joint]
        return name if _BARE.fullmatch(name) else json.dumps(name, ensure_ascii=False)

    return f"[{', '.join(f'[{text(a)}, {text(b)}]' for a, b in pairs)}]"
