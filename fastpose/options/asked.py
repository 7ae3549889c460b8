# SPDX-License-Identifier: Apache-2.0
"""What was asked for, on the command line and in a recipe: values by name, without those that were not named."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from fastpose.command_line import CommandLine, Option
from fastpose.data.datasets import DATASETS
from fastpose.ending import report
from fastpose.files import is_blank, read_file, read_yaml
from fastpose.models.checkpoint import CheckpointError, load_latest, previous_path
from fastpose.option import OptionError, nearest, typed
from fastpose.options.settings import COMMON, FIELDS, GROUP_OF, TYPES
from fastpose.ranks import is_other_rank

log = logging.getLogger(__name__)

PACKAGE = Path(__file__).resolve().parents[1]
DEFAULT_RECIPE = "synthetic_resnet18_fcn_128"
OWN_RECIPE = "own_resnet50_fcn_256"  # for data of the user's own, in any format


class Command(CommandLine):
    """A command line that offers settings, in their groups, beside the command's own options.

    Args:
        verb, description, own, places: see CommandLine.
        offered: names of settings that it offers as options.
        otherwise: what --help gives as the default of settings that are not asked for; empty: their own defaults.
        defaults: defaults of offered settings that are the command's own.
        by_ranks: whether several ranks may be started with the same words.
    """

    def __init__(
        self,
        verb: str,
        description: str,
        own: type | None = None,
        offered: Collection[str] = (),
        *,
        places: Mapping[str, str] | None = None,
        otherwise: str = "",
        defaults: Mapping[str, Any] | None = None,
        by_ranks: bool = False,
    ) -> None:
        super().__init__(verb, description, own, places=places)
        self.by_ranks = by_ranks
        for name in sorted(offered, key=list(FIELDS).index):
            field, help = FIELDS[name], FIELDS[name].metadata["help"]
            if name == "dataset":  # the list of them grows by a line elsewhere
                help = f"{', '.join(DATASETS)} or FILE.yaml: {help}"
            default = (defaults or {}).get(name, None if otherwise else field.default)
            group = GROUP_OF[name]
            self.add(Option(name, TYPES[name], default, help, group, name in COMMON, field.metadata["once"]))
            if otherwise:
                self.notes[group] = f" ({otherwise} unless named)"

    def parse(self, argv: Sequence[str] | None) -> tuple[Any, dict[str, Any]]:
        """See CommandLine; of several ranks the first one prints what is wrong."""
        if not (self.by_ranks and is_other_rank(os.environ)):
            return super().parse(argv)
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            return super().parse(argv)

    def run(self, run: Callable[[Any, dict[str, Any]], int], argv: Sequence[str] | None) -> int:
        """Parses `argv` and runs the command. Returns its exit code; after an error 1, with one line."""
        own, asked = self.parse(argv)
        try:
            return run(own, asked)
        except (ValueError, OSError, ArithmeticError) as error:
            return report(error)


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
                raise ValueError(f"there is no option {name[:40]!r}{nearest(name, FIELDS)}")
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
        OptionError: an unknown recipe; the message has the nearest name, or lists the known ones.
    """
    if name in recipes():
        return recipes()[name]
    if Path(name).is_file():
        return Path(name)
    near = nearest(name, recipes())
    others = f"a recipe{near}" if near else f"one of: {', '.join(recipes())}"
    raise OptionError("recipe", f"{name!r} is neither a file nor {others}")
