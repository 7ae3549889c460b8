# SPDX-License-Identifier: Apache-2.0
"""One option: a field of a dataclass with its line of help, and the error that names it.

Each group of options is a frozen dataclass beside the code that reads it; `fastpose.options` puts the groups together.
"""

from __future__ import annotations

import dataclasses
import os
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
        found = repr(value) if isinstance(value, (bool, int, float, str, list, tuple)) else type(value).__name__
        found = found if len(found) <= 60 else f"{found[:60]}…"
        raise OptionError(name, f"expected {_in_words(kind)}, got {found}") from None


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


def _in_words(kind: Any) -> str:
    members = get_args(kind)
    if get_origin(kind) in (list, dict):
        return "a list" if get_origin(kind) is list else "values by name"
    if get_origin(kind) is tuple:
        numbers = "whole numbers" if members[0] is int else "numbers"
        return f"a list of {numbers}" if Ellipsis in members else f"{len(members)} {numbers}"
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, members))}"
    if members:
        return _in_words(members[0])  # the others, true and false for on and off, are what older runs have
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
