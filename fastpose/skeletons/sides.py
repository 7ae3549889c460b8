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


def _exchanges(name: str, *, every: bool) -> list[tuple[str, str]]:
    """The name with its sides exchanged, after the first of them: all at once, or, of several, one at a time."""
    sides = list(_SIDE.finditer(name))
    if every:
        return [(sides[0].group(), _SIDE.sub(_other, name))] if sides else []
    single = [] if len(sides) < 2 else sides
    return [(one.group(), name[: one.start()] + _other(one) + name[one.end() :]) for one in single]


def _other(found: re.Match[str]) -> str:
    word = found.group()
    swapped = _OTHER[word.lower()]
    return swapped.upper() if word.isupper() else swapped.title() if word[0].isupper() else swapped


def pairs_by_name(joints: Sequence[str]) -> list[Pair]:
    """The pairs (right, left) of the joints whose names say that they belong together: by all sides in them, or by one
    of several, as L4_left and L4_right."""
    index_of = {name: index for index, name in enumerate(joints)}
    right_of: dict[int, int] = {}
    paired: set[int] = set()
    for every in (True, False):
        for left, name in enumerate(joints):
            for side, other in _exchanges(name, every=every):
                right = index_of.get(other)
                if right is None or not side.lower().startswith("l") or paired & {left, right}:
                    continue
                back = [one for _, one in _exchanges(other, every=every)]
                if name in back:  # not of lEft, where there is a left, too
                    right_of[left] = right
                    paired |= {left, right}
    return [(right, left) for left, right in sorted(right_of.items())]


def contradiction(joints: Sequence[str], pairs: Sequence[Pair]) -> str:
    """What the first of the mirror pairs that names contradict should be; empty if they contradict none."""
    own = {joint: pair for pair in pairs_by_name(joints) for joint in pair}
    for pair in pairs:
        a, b = (joints[joint] for joint in pair)
        if any(other == b for every in (True, False) for _, other in _exchanges(a, every=every)):
            continue  # one of several ways to pair left_paw_l
        for joint in pair:
            if joint in own:
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
