# SPDX-License-Identifier: Apache-2.0
"""One option: a field of a dataclass with its line of help, and the error that names it.

Each group of options is a frozen dataclass beside the code that reads it; `fastpose.options` puts the groups together.
"""

from __future__ import annotations

import dataclasses
from typing import Any


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
