# SPDX-License-Identifier: Apache-2.0
"""`fastpose completion SHELL`: prints what lets a shell complete verbs, options and their values.

It is static text, made from the commands' own options: completing runs no Python, let alone torch.
"""

from __future__ import annotations

import importlib
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import get_args, get_origin

import fastpose
from fastpose.cli import VERBS, module_of
from fastpose.command_line import CommandLine, Option
from fastpose.data.datasets import DATASETS
from fastpose.ending import ends_in_one_line
from fastpose.option import choices_of, nearest
from fastpose.options.asked import recipes
from fastpose.skeletons import SKELETONS

DESCRIPTION = """Print a script that lets the shell complete verbs, options, their values, recipes and files. In
~/.bashrc: source <(fastpose completion bash)"""
SHELLS = ("bash",)  # 4 or newer; that of other shells nobody has run yet

BASH = """\
# What bash completes behind fastpose {version}: source <(fastpose completion bash)
_fastpose() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} verb=${{COMP_WORDS[1]}} options= words= files= option= at=$COMP_CWORD
    if [[ $word == = ]]; then word=; else at=$((at - 1)); fi
    [[ ${{COMP_WORDS[at]}} == = ]] && at=$((at - 1))
    case $verb in
{options}
    esac
    while ((at > 1)); do  # to the option that the word may be a value of
        if [[ ${{COMP_WORDS[at]}} == --* ]]; then option=${{COMP_WORDS[at]:2}} && break; fi
        at=$((at - 1))
    done
    if ((COMP_CWORD == 1)) || {{ ((COMP_CWORD == 2)) && [[ $verb == help ]]; }}; then
        words='{verbs}'
    elif [[ $word == -* ]]; then
        words=$options
    else
        [[ $option && $COMP_CWORD -gt $((at + 1)) && ${{COMP_WORDS[at + 1]}} != = ]] && option+=...
        case $verb:${{option//-/_}} in
{values}
        esac
    fi
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word"
        [[ $files ]] && {{ compgen -d -- "$word"; compgen -f -X "!$files" -- "$word"; }} | sort -u)
    [[ $files ]] && compopt -o filenames 2> /dev/null
    return 0
}}
complete -F _fastpose fastpose
"""


def command() -> CommandLine:
    """The options of `fastpose completion`."""
    return CommandLine("completion", DESCRIPTION, places={"shell": " or ".join(SHELLS)})


@ends_in_one_line
def main(argv: Sequence[str] | None = None) -> int:
    """Prints the script; returns 0."""
    line = command()
    shell = line.parse(argv)[1]["shell"]
    if shell not in SHELLS:
        line.error(f"shell: expected {' or '.join(SHELLS)}, got {shell!r}{nearest(shell, SHELLS)}")
    print(bash({verb: importlib.import_module(module_of(verb)).command() for verb in VERBS}), end="")
    return 0


def bash(lines: Mapping[str, CommandLine]) -> str:
    """The script for bash of commands by their verbs."""
    options = [
        f"        {verb}) options='{' '.join(f'--{name}' for name in line.options)}' ;;" for verb, line in lines.items()
    ]
    # By what is offered: the options that it is offered behind, with their verbs; `...` marks further values.
    offers: dict[str, list[str]] = defaultdict(list)
    for verb, line in lines.items():
        for option in line.options.values():
            if offer := offer_of(option):
                offers[offer].append(f"{verb}:{option.name}")
                if get_origin(option.kind) is tuple and Ellipsis in get_args(option.kind):
                    offers[offer].append(f"{verb}:{option.name}...")
    offers[f"words='{' '.join(SHELLS)}'"].append("completion:")
    values = [f"            {'|'.join(where)}) {offer} ;;" for offer, where in offers.items()]
    # After a number, or in any other place: a positional argument or, if the command takes no more, an option.
    numbers = {
        f"{verb}:{o.name}" for verb, line in lines.items() for o in line.options.values() if o.kind and not offer_of(o)
    }
    values.append(f"            {'|'.join(sorted(numbers))}) ;;")
    values.append(f"            {'|'.join(f'{verb}:*' for verb, line in lines.items() if line.places)}) files='*' ;;")
    values.append("            *) words=$options ;;")
    return BASH.format(
        version=fastpose.__version__,
        verbs=" ".join([*VERBS, "help"]),
        options="\n".join(options),
        values="\n".join(values),
    )


def offer_of(option: Option) -> str:
    """What to offer for an option's value, as the script has it; empty if it is a number, or there is none."""
    names: dict[str, Iterable[str]] = {
        "recipe": recipes(),
        "dataset": DATASETS,
        "skeleton": SKELETONS,
        "device": ("auto", "cpu", "cuda", "mps"),
    }
    words = list(names.get(option.name, ())) if option.name in names else choices_of(option.kind)
    of_files = option.kind is not None and "TEXT" in option.usage and option.name != "device"
    files = "*.yaml" if option.name in names else "*"
    return " ".join([f"words='{' '.join(words)}'"] * bool(words) + [f"files='{files}'"] * of_files)


if __name__ == "__main__":
    sys.exit(main())
