# SPDX-License-Identifier: Apache-2.0
"""`fastpose completion SHELL`: prints what lets a shell complete verbs, options and their values.

It is static text, made from the commands' own options: completing runs no Python, let alone torch.
"""

from __future__ import annotations

import importlib
import math
import sys
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import fastpose
from fastpose.cli import VERBS, module_of
from fastpose.command_line import CommandLine, Option
from fastpose.data.datasets import DATASETS
from fastpose.ending import ends_in_one_line
from fastpose.option import choices_of, nearest
from fastpose.options.asked import recipes
from fastpose.skeletons import SKELETONS

DESCRIPTION = """Print a script that lets the shell complete verbs, options, their values, recipes and files. In
~/.bashrc: source <(fastpose completion bash); in ~/.zshrc, behind compinit: source <(fastpose completion zsh); fish:
fastpose completion fish > ~/.config/fish/completions/fastpose.fish"""
SHELLS = ("bash", "zsh", "fish")  # bash 4 or newer

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


_ESCAPED = str.maketrans({letter: "\\" + letter for letter in "[]:\\"})  # in an explanation of zsh's _arguments

ZSH = """\
#compdef fastpose
# What zsh completes behind fastpose {version}: source <(fastpose completion zsh), behind compinit
_fastpose_values() {{  # words, and files that fit the pattern before them
    local files=$1 found=1
    shift
    (( $# )) && compadd -- "$@" && found=0
    [[ -n $files ]] && _files -g "$files" && found=0
    return found
}}
_fastpose() {{
    local -a verbs=(
{verbs}
    )
    if (( CURRENT == 2 )) || [[ $CURRENT == 3 && $words[2] == help ]]; then
        _describe -t verbs verb verbs
        return
    fi
    shift words
    (( CURRENT-- ))
    case $words[1] in
{options}
    esac
}}
compdef _fastpose fastpose
"""

FISH = """\
# What fish completes behind fastpose {version}: fastpose completion fish > ~/.config/fish/completions/fastpose.fish
complete -c fastpose -f
{verbs}
{options}
"""


@dataclass(frozen=True)
class Offer:
    """What is offered as an option's value.

    Attributes:
        words: the words.
        files: a pattern of the files; empty: none.
    """

    words: tuple[str, ...] = ()
    files: str = ""

    def __bool__(self) -> bool:
        return bool(self.words or self.files)


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
    lines = {verb: importlib.import_module(module_of(verb)).command() for verb in VERBS}
    print({"bash": bash, "zsh": zsh, "fish": fish}[shell](lines), end="")
    return 0


def bash(lines: Mapping[str, CommandLine]) -> str:
    """The script for bash of commands by their verbs."""
    options = [
        f"        {verb}) options='{' '.join(f'--{name}' for name in line.options)}' ;;" for verb, line in lines.items()
    ]

    def in_bash(offer: Offer) -> str:
        return f"words='{' '.join(offer.words)}' files='{offer.files}'"

    # By what is offered: the options that it is offered behind, with their verbs; `...` marks further values.
    offers: dict[Offer, list[str]] = defaultdict(list)
    for verb, line in lines.items():
        for option in line.options.values():
            if offer := offer_of(option):
                offers[offer].append(f"{verb}:{option.name}")
                if option.counts[1] == math.inf:
                    offers[offer].append(f"{verb}:{option.name}...")
    values = [f"            {'|'.join(where)}) {in_bash(offer)} ;;" for offer, where in offers.items()]
    # After a number, or in any other place: a positional argument or, if the command takes no more, an option.
    numbers = {
        f"{verb}:{o.name}" for verb, line in lines.items() for o in line.options.values() if o.kind and not offer_of(o)
    }
    values.append(f"            {'|'.join(sorted(numbers))}) ;;")
    values += [
        f"            {verb}:*) {in_bash(offer_of_places(line))} ;;" for verb, line in lines.items() if line.places
    ]
    values.append("            *) words=$options ;;")
    return BASH.format(
        version=fastpose.__version__,
        verbs=" ".join([*VERBS, "help"]),
        options="\n".join(options),
        values="\n".join(values),
    )


def zsh(lines: Mapping[str, CommandLine]) -> str:
    """The script for zsh of commands by their verbs."""

    def action(offer: Offer) -> str:
        if offer.files:
            return " ".join(["_fastpose_values", f'"{offer.files}"', *offer.words])
        return f"({' '.join(offer.words)})" if offer else " "

    def spec(option: Option) -> str:
        equals = "=" if option.counts[1] == 1 else ""
        start = f"--{option.name}{equals}[{first_clause(option.help).translate(_ESCAPED)}]"
        if option.kind is None:
            return start
        value = f"{option.name}:{action(offer_of(option))}"
        if option.counts[1] == math.inf:
            return f"{start}:*--*:{value}"
        return start + f":{value}" * int(option.counts[1])

    cases = []
    for verb, line in lines.items():
        places = [f"{'*' * line.many}:{name}:{action(offer_of_places(line))}" for name in line.places]
        specs = [*map(spec, line.options.values()), *places]
        cases.append(f"    {verb}) _arguments \\\n" + " \\\n".join(f"        {quoted(one)}" for one in specs) + " ;;")
    verbs = [*VERBS.items(), ("help", "list the options of a verb")]
    return ZSH.format(
        version=fastpose.__version__,
        verbs="\n".join(f"        {quoted(f'{verb}:{text}')}" for verb, text in verbs),
        options="\n".join(cases),
    )


def fish(lines: Mapping[str, CommandLine]) -> str:
    """The script for fish of commands by their verbs."""
    first, helped = "-n __fish_use_subcommand", "-n '__fish_seen_subcommand_from help'"
    verbs = [f"complete -c fastpose {first} -a {verb} -d {quoted(text)}" for verb, text in VERBS.items()]
    verbs.append(f"complete -c fastpose {first} -a help -d 'list the options of a verb'")
    verbs.append(f"complete -c fastpose {helped} -a {quoted(' '.join(VERBS))}")
    options = []
    for verb, line in lines.items():
        behind = (
            f"complete -c fastpose -n '__fish_seen_subcommand_from {verb}; and not __fish_seen_subcommand_from help'"
        )
        # fish knows no option with several values: the further ones are in other places.
        further = any(o.counts[1] == math.inf and offer_of(o).files for o in line.options.values())
        if (places := offer_of_places(line)).words:
            options.append(f"{behind} -a {quoted(' '.join(places.words))}")
        elif places.files or further:
            options.append(f"{behind} -F")
        for option in line.options.values():
            offer = offer_of(option)
            words = " ".join(offer.words)
            if offer.files.startswith("*."):
                words = f"{words} (__fish_complete_suffix {offer.files[1:]})"
            kind = "" if option.kind is None else " -r -F" if offer.files == "*" else " -x"
            value = f" -a {quoted(words)}" if words else ""
            options.append(f"{behind} -l {option.name}{kind}{value} -d {quoted(first_clause(option.help))}")
    return FISH.format(version=fastpose.__version__, verbs="\n".join(verbs), options="\n".join(options))


def offer_of(option: Option) -> Offer:
    """What to offer for an option's value; nothing if it is a number, or there is none."""
    names: dict[str, Iterable[str]] = {
        "recipe": recipes(),
        "dataset": DATASETS,
        "skeleton": SKELETONS,
        "device": ("auto", "cpu", "cuda", "mps"),
    }
    words = tuple(names.get(option.name, ())) if option.name in names else tuple(choices_of(option.kind))
    of_files = option.kind is not None and "TEXT" in option.usage and option.name != "device"
    return Offer(words, "" if not of_files else "*.yaml" if option.name in names else "*")


def offer_of_places(line: CommandLine) -> Offer:
    """What to offer for the words of a command that have no option's name before them."""
    if line.verb == "completion":
        return Offer(SHELLS)
    return Offer(files="*" if line.places else "")


def first_clause(help: str) -> str:
    """An option's help as far as there is room for it."""
    return textwrap.shorten(help.partition(";")[0], 60, placeholder=" …")


def quoted(text: str) -> str:
    """As one word of zsh and of fish."""
    return "'" + text.replace("'", "'\\''") + "'"


if __name__ == "__main__":
    sys.exit(main())
