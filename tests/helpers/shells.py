# SPDX-License-Identifier: Apache-2.0
"""What a shell offers for a line of words that is not finished."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import tempfile
import time
from pathlib import Path

BASH = 'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _fastpose; printf "%s\\n" "${COMPREPLY[@]}"'

# zsh completes where somebody types, and nowhere else: a terminal of its own writes down what it would add.
ZSHRC = """
autoload -Uz compinit && compinit -u -D
source $SCRIPT
PS1= PS2=
compadd() {
    local -a hits
    if [[ -z ${(M)@:#-[OAD]*} ]]; then
        builtin compadd -A hits "$@"
        (( $#hits )) && print -rl -- $hits >> $HITS
    fi
    builtin compadd "$@"
}
written() { : > $HITS.all; zle kill-whole-line }
zle -N written
bindkey '^I' complete-word
bindkey '^G' written
print begun
"""
PATIENCE = 60.0  # seconds


def bash(script: Path, line: str, folder: Path) -> list[str]:
    """What bash offers for the last word of a line."""
    done = subprocess.run(
        ["bash", "-c", BASH, "bash", str(script), *line.split(" ")],
        capture_output=True,
        text=True,
        cwd=folder,
        check=True,
    )
    assert done.stderr == ""
    return [word for word in done.stdout.splitlines() if word]


def fish(script: Path, line: str, folder: Path) -> list[str]:
    """The same of fish, without its descriptions."""
    done = subprocess.run(
        ["fish", "--no-config", "-c", 'source $argv[1]; complete -C "$argv[2]"', str(script), line],
        capture_output=True,
        text=True,
        cwd=folder,
        check=True,
    )
    assert done.stderr == ""
    return [word.partition("\t")[0] for word in done.stdout.splitlines()]


def zsh(script: Path, line: str, folder: Path) -> list[str]:
    """The same of zsh."""
    with tempfile.TemporaryDirectory() as own:
        hits, end = Path(own) / "hits", time.monotonic() + PATIENCE
        (Path(own) / ".zshrc").write_text(ZSHRC)
        environment = {**os.environ, "ZDOTDIR": own, "SCRIPT": str(script), "HITS": str(hits), "TERM": "dumb"}
        ours, its = pty.openpty()
        process = subprocess.Popen(
            ["zsh", "-i"], stdin=its, stdout=its, stderr=its, cwd=folder, env=environment, start_new_session=True
        )
        os.close(its)
        printed, typed = b"", False
        try:
            while not hits.with_suffix(".all").exists():
                assert time.monotonic() < end, printed
                if select.select([ours], [], [], 0.05)[0]:
                    printed += os.read(ours, 4096)
                if b"begun" in printed and not typed:
                    os.write(ours, f"{line}\t\x07".encode())
                    typed = True
        finally:
            process.kill()
            process.wait()
            os.close(ours)
        return hits.read_text().splitlines() if hits.exists() else []
