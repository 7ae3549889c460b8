# SPDX-License-Identifier: Apache-2.0
"""One option: a field of a dataclass with its line of help, and the error that names it.

Each group of options is a frozen dataclass beside the code that reads it; `fastpose.options` puts the groups together.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin


class OptionError(ValueError):
    """An option has a value that cannot be used. The message begins with its name.

    Attributes:
        option: the option's name.
        text: what was expected and what came.
    """

    def __init__(self, option: str, text: str) -> None:
        super().__init__(f"{option}: {text}")
        self.option, self.text = option, text


def option(default: Any, help: str, *, once: bool = False) -> Any:
    """A dataclass field with its line of help, which names the unit. `once`: naming it twice is an error."""
    return dataclasses.field(default=default, metadata={"help": help, "once": once})


def typed(name: str, value: Any, kind: Any) -> Any:
    """The value of option `name` as its field has it: a whole number may stand for any number, a list for a tuple, a
    path for its text.

    Raises:
        OptionError: it is of another type.
    """
    try:
        return _typed(value, kind)
    except TypeError:
        raise OptionError(name, f"expected {in_words(kind)}, got {in_short(value)}{_near(value, kind)}") from None


def parsed(name: str, words: Sequence[str], kind: Any) -> Any:
    """The value of option `name` that words of a command line stand for: true and false as YAML has them (yes, on and
    so on, too), numbers as Python has them or, beyond all numbers, as YAML has them (.inf); text as it is.

    Args:
        name: the option's.
        words: one or, of a list, any number.
        kind: the type of the option's field.

    Raises:
        OptionError: they stand for a value of another type, or for too few or too many.
    """
    members = get_args(kind)
    try:
        if get_origin(kind) is not tuple:
            (word,) = words
            return _parsed(word, kind)
        if Ellipsis in members or len(words) == len(members):
            return tuple(_parsed(word, members[0]) for word in words)
    except ValueError:
        pass
    near = _near(words[0], kind) if len(words) == 1 else ""
    found = in_short(words[0]) if len(words) == 1 else " ".join(map(in_short, words[:5])) or "nothing"
    raise OptionError(name, f"expected {in_words(kind)}, got {found}{near}")


_TRUTHS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_LIMITS = {".inf": "inf", "+.inf": "inf", "-.inf": "-inf", ".nan": "nan"}


def _parsed(word: str, kind: Any) -> Any:
    origin, members = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        for member in members:
            with suppress(ValueError):
                return _parsed(word, member)
    elif origin is Literal:
        for member in members:
            if word == str(member):
                return member
    elif kind is str:
        return word
    elif kind is bool and word.lower() in _TRUTHS:
        return _TRUTHS[word.lower()]
    elif kind is int and abs(number := int(word)) < 1 << 63:
        return number
    elif kind is float:
        return float(_LIMITS.get(word.lower(), word))
    raise ValueError


def in_short(value: Any) -> str:
    """A value for a message, in 60 characters."""
    found = repr(value) if isinstance(value, (bool, int, float, str, list, tuple)) else type(value).__name__
    return found if len(found) <= 60 else f"{found[:60]}…"


def nearest(word: str, names: Iterable[str], mark: str = "") -> str:
    """For the end of a message about a name that does not exist: "; nearest: NAME" with the one that may be meant, or
    nothing if none is near. `mark` is what goes before the name."""
    names = list(names)
    near = difflib.get_close_matches(word[:100], names, 1, cutoff=0.7)
    if not near and len(word) > 2:
        near = [name for name in names if name.startswith(word)]
    return f"; nearest: {mark}{near[0]}" if near else ""


def _near(value: Any, kind: Any) -> str:
    """`nearest`, of the values that an option can have."""
    choices = choices_of(kind)
    return nearest(value, choices) if choices and isinstance(value, str) else ""


def choices_of(kind: Any) -> list[str]:
    """The words that an option can have; empty if there is no end of them."""
    if get_origin(kind) in (Union, UnionType, tuple):
        return choices_of(get_args(kind)[0])
    if kind is bool:
        return ["true", "false"]
    return [str(member) for member in get_args(kind)] if get_origin(kind) is Literal else []


def shape(kind: Any) -> str:
    """What the words of an option look like, for its usage: INT, NUMBER, TEXT, a|b"""
    members = get_args(kind)
    if get_origin(kind) is tuple:
        one = shape(members[0])
        return f"[{one} ...]" if Ellipsis in members else " ".join([one] * len(members))
    if get_origin(kind) in (Union, UnionType):
        return shape(members[0])
    return "|".join(choices_of(kind)) or {int: "INT", float: "NUMBER", str: "TEXT"}[kind]


def _typed(value: Any, kind: Any) -> Any:
    origin, members = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        for member in members:
            with suppress(TypeError):
                return _typed(value, member)
    elif origin is Literal:
        if any(type(value) is type(member) and value == member for member in members):
            return value
    elif origin is tuple:
        if isinstance(value, (list, tuple)) and (Ellipsis in members or len(value) == len(members)):
            return tuple(_typed(one, members[0]) for one in value)
    elif origin is list:
        if isinstance(value, list):
            return [_typed(one, members[0]) for one in value]
    elif origin is dict:
        if isinstance(value, dict):
            return {_typed(name, members[0]): _typed(one, members[1]) for name, one in value.items()}
    elif kind is Any:
        return value
    elif kind is str and isinstance(value, os.PathLike):
        return str(value)
    elif type(value) is int and kind in (int, float):
        if abs(value) < 1 << 63:  # beyond that neither torch nor NumPy has whole numbers
            return kind(value)
    elif type(value) is kind:
        return value
    raise TypeError


def in_words(kind: Any) -> str:
    """What an option of this type expects, for a message."""
    members = get_args(kind)
    if get_origin(kind) in (list, dict):
        return "a list" if get_origin(kind) is list else "values by name"
    if get_origin(kind) is tuple:
        numbers = {int: "whole numbers", float: "numbers", str: "texts"}.get(members[0])
        numbers = numbers or f"values, each {in_words(members[0])}"
        return f"a list of {numbers}" if Ellipsis in members else f"{len(members)} {numbers}"
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, members))}"
    if members:
        return in_words(members[0])  # the others, true and false for on and off, are what older runs have
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[kind]


def check_at_least(options: object, least: float, *names: str) -> None:
    """Raises OptionError if one of the fields `names` is below `least`, or not a number."""
    for name in names:
        if not getattr(options, name) >= least:
            raise OptionError(name, f"expected at least {least}, got {getattr(options, name)}")


def set_on_off(options: object, *names: str) -> None:
    """Makes true "on" and false "off" in fields of a frozen dataclass: older runs have such values, and YAML's bare
    `on` is true."""
    for name in names:
        if isinstance(value := getattr(options, name), bool):
            object.__setattr__(options, name, "on" if value else "off")


def underscored(word: str) -> str:
    """--on-bad-image=skip -> --on_bad_image=skip; other words stay."""
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value if name.startswith("--") else word
