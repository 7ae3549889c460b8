# SPDX-License-Identifier: Apache-2.0
"""What was asked for, on the command line and in a recipe: values by name, without those that were not named."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, get_args, get_type_hints

from fastpose.data.datasets import DATASETS
from fastpose.ending import report
from fastpose.files import is_blank, read_file, read_yaml
from fastpose.models.checkpoint import CheckpointError, load_latest, previous_path
from fastpose.option import OptionError, typed, underscored
from fastpose.options.settings import FIELDS, TYPES
from fastpose.ranks import is_other_rank

log = logging.getLogger(__name__)

PACKAGE = Path(__file__).resolve().parents[1]
DEFAULT_RECIPE = "synthetic_resnet18_fcn_128"
OWN_RECIPE = "own_resnet50_fcn_256"  # for data of the user's own, in any format


class Command:
    """The options of a command.

    Args:
        name: its verb.
        description: for --help.
        own: a dataclass with the options that are the command's alone, of which a bool is a flag; None: it has none.
        places: positional arguments and their help; one whose name ends in "..." is one or more.
        offered: names of settings that it offers as options, too.
        otherwise: what --help gives as the default of settings that are not asked for; empty: their own defaults.
        defaults: defaults of offered settings that are the command's own.
        by_ranks: whether several ranks may be started with the same words.
    """

    def __init__(
        self,
        name: str,
        description: str,
        own: type | None = None,
        offered: Collection[str] = (),
        *,
        places: Mapping[str, str] | None = None,
        otherwise: str = "",
        defaults: Mapping[str, Any] | None = None,
        by_ranks: bool = False,
    ) -> None:
        # Without jsonargparse, which commands and recipes alone need, the program ends with a line that names it.
        try:
            import jsonargparse
        except ImportError as error:
            raise SystemExit(
                f"error: fastpose {name} reads its options with jsonargparse, which cannot be imported ({error}): "
                "pip install jsonargparse"
            ) from None
        self.own, self.by_ranks = own, by_ranks
        self.parser = jsonargparse.ArgumentParser(prog=f"fastpose {name}", description=description)
        self.once: list[str] = []
        if own is not None:
            types = get_type_hints(own)
            for field in dataclasses.fields(own):
                if types[field.name] is bool:
                    self.parser.add_argument(f"--{field.name}", action="store_true", help=field.metadata["help"])
                else:
                    self._add(field, types[field.name], field.default, field.metadata["help"])
        for name, help in (places or {}).items():
            more: dict[str, Any] = {"nargs": "+"} if name.endswith("...") else {}
            self.parser.add_argument(name.removesuffix("..."), type=str, help=help, **more)
        for name in offered:
            field, help = FIELDS[name], FIELDS[name].metadata["help"]
            kind = TYPES[name]
            if name == "dataset":  # the list of them grows by a line elsewhere
                help = f"{', '.join(DATASETS)} or FILE.yaml: {help}"
            default = (defaults or {}).get(name, field.default)
            if otherwise and name not in (defaults or {}):
                default, help = argparse.SUPPRESS, f"{help}; default: {otherwise}"
            self._add(field, kind, default, help)

    def _add(self, field: dataclasses.Field[Any], kind: Any, default: Any, help: str) -> None:
        extra: dict[str, Any] = {}
        members = get_args(kind)
        if getattr(kind, "__origin__", None) is tuple:
            kind, extra = members[0], {"nargs": "*" if Ellipsis in members else len(members)}
        if default is dataclasses.MISSING:
            extra |= {"required": True} | ({"nargs": "+"} if "nargs" in extra else {})
        else:
            extra["default"] = list(default) if isinstance(default, tuple) else default
        self.parser.add_argument(f"--{field.name}", type=kind, help=help, **extra)
        if field.metadata["once"]:
            self.once.append(field.name)

    def parse(self, argv: Sequence[str] | None) -> tuple[Any, dict[str, Any]]:
        """Parses `argv`, in which --on-bad-image means --on_bad_image.

        Returns:
            The command's own options, and what else was asked for by name; without what was not.

        A wrong option ends the program with a message and exit code 2, as argparse does. Of several ranks the first one
        has the message.
        """
        if not (self.by_ranks and is_other_rank(os.environ)):
            return self._parse(argv)
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            return self._parse(argv)

    def _parse(self, argv: Sequence[str] | None) -> tuple[Any, dict[str, Any]]:
        words = [underscored(word) for word in (sys.argv[1:] if argv is None else argv)]
        for word in words:
            if is_yaml_bomb(word):
                self.parser.error(f"{word[:40]!r}…: values of options are plain")
        names = [word.partition("=")[0] for word in words]
        for name in self.once:
            if names.count(f"--{name}") > 1:
                self.parser.error(f"{name}: named more than once: put all values behind one --{name}")
        asked = self.parser.parse_args(words, defaults=False).as_dict()
        if self.own is None:
            return None, asked
        own = {field.name: asked.pop(field.name) for field in dataclasses.fields(self.own) if field.name in asked}
        try:
            return self.own(**{name: tuple(v) if isinstance(v, list) else v for name, v in own.items()}), asked
        except OptionError as error:
            self.parser.error(str(error))

    def run(self, run: Callable[[Any, dict[str, Any]], int], argv: Sequence[str] | None) -> int:
        """Parses `argv` and runs the command. Returns its exit code; after an error 1, with one line."""
        own, asked = self.parse(argv)
        try:
            return run(own, asked)
        except (ValueError, OSError, ArithmeticError) as error:
            return report(error)


def is_yaml_bomb(word: str) -> bool:
    """Whether jsonargparse, which takes every value for YAML first, might not come back from one: 300 bytes of aliases
    are gigabytes, a thousand brackets more levels than it has stack. No option has such a value."""
    aliases = "&" in word and "*" in word and any(bracket in word for bracket in "[{\n")
    return aliases or word.count("[") + word.count("{") > 20 or len(word) > 10_000


def read_recipe(path: Path) -> dict[str, Any]:
    """The options that a recipe names, of their types; how they go together is looked at when they are settled.

    Raises:
        OSError, ValueError: see `read_yaml`; or what it has is not an option, or not a value for it; names the file.
    """
    contents = read_yaml(path)
    try:
        if not isinstance(contents, dict):
            raise ValueError(f"expected lines of NAME: VALUE, got {str(contents)[:40]!r}")
        for name, value in contents.items():
            if name not in FIELDS:
                raise ValueError(f"there is no option {name[:40]!r}")
            if value is None:
                raise OptionError(name, "expected a value, got none")
        return {name: typed(name, value, TYPES[name]) for name, value in contents.items()}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_run(folder: Path) -> tuple[dict[str, Any], Path]:
    """The options that a run goes on with, and the file that has them: its config.yaml or, with a warning if a power
    cut has left nothing in that, its checkpoint.

    Raises:
        ValueError: see `read_recipe`; there is neither file.
        CheckpointError: the checkpoint is damaged, or of another version.
    """
    file, last = folder / "config.yaml", folder / "last.pt"
    found = file.is_file()
    if found and not is_blank(read_file(file)):
        return read_recipe(file), file
    lost = f"{file} is {'empty' if found else 'missing'}"
    try:
        contents, checkpoint = load_latest(last)
    except CheckpointError as error:
        if last.exists() or previous_path(last).exists():
            raise
        raise CheckpointError(f"--resume {folder}: no run to go on with, {lost}, and so is last.pt") from error
    log.warning("%s: going on with the options in %s", lost, checkpoint)
    config = contents["config"]
    if not isinstance(config, dict) or config.keys() - FIELDS.keys():
        raise CheckpointError(f"{checkpoint}: does not fit this version of fastpose: its config has other options")
    return config, checkpoint


def naming(error: OptionError, file: Path | None, values: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """The error's message, with the file before it if its option has its value from there."""
    return f"{file}: {error}" if file and error.option in values.keys() - asked.keys() else str(error)


def recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name: beside it in a checkout, inside it in a wheel."""
    inside = PACKAGE / "recipes"
    return {
        path.stem: path for path in sorted((inside if inside.is_dir() else PACKAGE.parent / "train").glob("*.yaml"))
    }


def find_recipe(name: str) -> Path:
    """The file of a recipe, by its name or by its path.

    Raises:
        ValueError: an unknown recipe; the message lists the known ones.
    """
    if name in recipes():
        return recipes()[name]
    if Path(name).is_file():
        return Path(name)
    raise ValueError(f"recipe {name!r} is neither a file nor one of: {', '.join(recipes())}")
