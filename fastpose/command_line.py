# SPDX-License-Identifier: Apache-2.0
"""A command's line of words: which options it has, what the words mean, what is wrong with them, and the help.

argparse would print Python's types, accept abbreviations, which every new option makes ambiguous, and print the usage
before each error; and what its messages are about, they say in their text alone.
"""

from __future__ import annotations

import dataclasses
import math
import re
import shutil
import sys
import textwrap
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

from fastpose.ending import be_quiet, print_error
from fastpose.option import OptionError, in_short, in_words, nearest, parsed, shape, underscored

COLUMNS, LEFT = 100, 28  # at most, of the help; and of its options' names
OPTIONS, GENERAL = "options", "general"
_NUMBER = re.compile(r"-(\.?\d|\.?(inf|nan)$)", re.IGNORECASE)


@dataclass(frozen=True)
class Option:
    """One option of a command.

    Attributes:
        name: with underscores, without hyphens before it.
        kind: its value's type; None of a flag, which has no value.
        default: its default; dataclasses.MISSING if it must be named; None: the help says what is without it.
        help: its line of help.
        group: the heading that it is under.
        common: whether --help shows it, and not only --help_all.
        once: whether naming it twice is an error.
    """

    name: str
    kind: Any
    default: Any
    help: str
    group: str = OPTIONS
    common: bool = True
    once: bool = False

    @property
    def required(self) -> bool:
        """Whether it must be named."""
        return self.default is dataclasses.MISSING

    @property
    def counts(self) -> tuple[int, float]:
        """How many words it takes, at least and at most."""
        members = get_args(self.kind)
        if self.kind is None:
            return 0, 0
        if get_origin(self.kind) is not tuple:
            return 1, 1
        return (int(self.required), math.inf) if Ellipsis in members else (len(members), len(members))

    @property
    def usage(self) -> str:
        """Its name and what its words look like: --size INT INT"""
        if self.kind is None:
            return f"--{self.name}"
        values = shape(self.kind)
        return f"--{self.name} {values.strip('[]') if self.required else values}"


_GENERAL = (
    Option("quiet", None, False, "no progress and no lines of log; results, warnings and errors stay", GENERAL),
    Option("help", None, False, "print the most used options", GENERAL),
    Option("help_all", None, False, "print all options", GENERAL),
    Option("version", None, False, "print the version", GENERAL),
)


class CommandLine:
    """The options of a command, in groups.

    Args:
        verb: its name.
        description: for the help.
        own: a dataclass with the options that are the command's alone, of which a bool is a flag; None: it has none.
        places: words without an option's name, all of which it needs, and their help; the last one's name may end in
            "...": it is one or more.
    """

    def __init__(
        self,
        verb: str,
        description: str,
        own: type | None = None,
        *,
        places: Mapping[str, str] | None = None,
    ) -> None:
        self.verb, self.description, self.own, self.places = verb, description, own, dict(places or {})
        self.many = any(name.endswith("...") for name in self.places)
        self.options: dict[str, Option] = {}
        self.notes: dict[str, str] = {}  # what the help has behind the heading of a group
        kinds = {} if own is None else get_type_hints(own)
        for field in () if own is None else dataclasses.fields(own):
            kind = None if kinds[field.name] is bool else kinds[field.name]
            self.add(Option(field.name, kind, field.default, field.metadata["help"], once=field.metadata["once"]))
        for option in _GENERAL:
            self.add(option)

    def add(self, option: Option) -> None:
        """One more option."""
        self.options[option.name] = option

    def error(self, text: str) -> NoReturn:
        """Ends the program with one line and exit code 2."""
        print_error(f"error: {text}")
        raise SystemExit(2)

    def parse(self, argv: Sequence[str] | None) -> tuple[Any, dict[str, Any]]:
        """What the words mean; without `argv` the program's. --on-bad-image means --on_bad_image.

        Returns:
            The command's own options, and all else that was named, options and places, by name.

        A wrong option ends the program with one line and exit code 2; --help and the like end it, too, with 0.
        """
        words = list(sys.argv[1:] if argv is None else argv)
        end = words.index("--") if "--" in words else len(words)  # of the options
        asking = [underscored(word) for word in words[:end]]
        if not {"--help", "-h", "--help_all"}.isdisjoint(asking):
            self._answer(self.help(everything="--help_all" in asking))
        if "--version" in asking:
            self._answer(f"fastpose {version()}")
        try:
            asked = self._asked([*asking, *words[end:]])
            if asked.pop("quiet", False):
                be_quiet()
            if self.own is None:
                return None, asked
            names = [field.name for field in dataclasses.fields(self.own) if field.name in asked]
            return self.own(**{name: asked.pop(name) for name in names}), asked
        except OptionError as error:
            self.error(str(error))

    def _answer(self, text: str) -> NoReturn:
        print(text)
        raise SystemExit(0)

    def _wrong(self, text: str) -> NoReturn:
        self.error(f"fastpose {self.verb}: {text}")

    def _asked(self, words: Sequence[str]) -> dict[str, Any]:
        asked: dict[str, Any] = {}
        others: list[str] = []
        left = deque(words)
        while left:
            word = left.popleft()
            if word == "--":
                others += left
                break
            if not _names_option(word):
                others.append(word)
                continue
            name, equals, value = word.partition("=")
            option = self._option(name)
            if option.once and option.name in asked:
                raise OptionError(option.name, f"named more than once: put all values behind one --{option.name}")
            fewest, most = option.counts
            behind = [value] if equals else []
            while not equals and left and len(behind) < most and not _names_option(left[0]):
                behind.append(left.popleft())
            if option.kind is None and equals:
                raise OptionError(option.name, f"expected no value, got {in_short(value)}: it is on where it is named")
            if not behind and fewest:
                raise OptionError(option.name, f"expected {in_words(option.kind)}, got nothing")
            asked[option.name] = True if option.kind is None else parsed(option.name, behind, option.kind)
        return asked | self._placed(others, asked)

    def _option(self, name: str) -> Option:
        if name[2:] in self.options and name.startswith("--"):
            return self.options[name[2:]]
        near = nearest(name.lstrip("-"), self.options, "--")
        self._wrong(f"no option {_shown(name)}{near or f'; fastpose {self.verb} --help_all lists them'}")

    def _placed(self, words: Sequence[str], asked: Mapping[str, Any]) -> dict[str, Any]:
        places = [name.upper() for name in self.places]
        missing = [option.usage for option in self.options.values() if option.required and option.name not in asked]
        if missing := places[len(words) :] + missing:
            self._wrong(f"missing {' and '.join(missing)}; see fastpose {self.verb} --help")
        if (more := words[len(places) :]) and not self.many:
            near = nearest(more[0], self.options, "--")
            wanted = f"{' '.join(places)} and options" if places else "options alone"
            self._wrong(f"expected {wanted}, got {in_short(more[0])}{near}")
        if not self.many:
            return dict(zip(self.places, words, strict=True))
        *ones, last = self.places
        return dict(zip(ones, words, strict=False)) | {last.removesuffix("..."): list(words[len(ones) :])}

    def help(self, *, everything: bool = False) -> str:
        """The help, of the most used options or of all."""
        columns = min(COLUMNS, max(60, shutil.get_terminal_size((COLUMNS, 50)).columns))
        required = [option.usage for option in self.options.values() if option.required]
        usage = " ".join(["usage: fastpose", self.verb, *(name.upper() for name in self.places), *required])
        lines = [f"{usage} [OPTIONS]", "", *textwrap.wrap(self.description, columns)]
        if self.places:
            lines += ["", *(line for name in self.places for line in _item(name.upper(), self.places[name], columns))]
        groups = {OPTIONS: True} | {option.group: True for option in self.options.values() if option.group != GENERAL}
        hidden = 0
        for group in [*groups, GENERAL]:
            members = [option for option in self.options.values() if option.group == group]
            shown = [option for option in members if everything or option.common or option.required]
            hidden += len(members) - len(shown)
            if shown:
                lines += ["", f"{group}{self.notes.get(group, '')}:"]
            for option in shown:
                lines += _item(
                    option.usage, _help_of(option, None if everything else 2 * (columns - LEFT - 2)), columns
                )
        if hidden:
            lines += ["", f"{hidden} more options: fastpose {self.verb} --help_all"]
        return "\n".join(lines)


def version() -> str:
    """The package's version."""
    import fastpose

    return getattr(fastpose, "__version__", "unknown")  # of another project's package: see `fastpose doctor`


def _names_option(word: str) -> bool:
    """Whether a word is an option's name, and not a value or a place: -5, -.5, -inf and - are values."""
    return word.startswith("-") and word != "-" and not _NUMBER.match(word)


def _shown(name: str) -> str:
    return name if re.fullmatch(r"[-\w]{,40}", name) else in_short(name)


def _help_of(option: Option, most: int | None) -> str:
    """What an option is and its default; of more than `most` characters the clauses that fit, but the first one."""
    first, *clauses = option.help.split("; ")
    text, default = first, option.default
    for clause in clauses:
        if most is not None and len(f"{text}; {clause}") > most:
            break
        text += f"; {clause}"
    if option.kind is None or default in (None, "", (), dataclasses.MISSING):  # the help says what is without it
        return text
    if isinstance(default, bool):
        default = str(default).lower()
    return f"{text} (default: {' '.join(map(str, default)) if isinstance(default, tuple) else default})"


def _item(left: str, text: str, columns: int) -> Iterator[str]:
    """A name and what it is, in two columns."""
    wrapped = textwrap.wrap(text, columns - LEFT - 2, break_on_hyphens=False)
    if len(left) > LEFT - 2:
        yield f"  {left}"
        left = ""
    for line in wrapped:
        yield f"  {left:{LEFT}}{line}"
        left = ""
