# SPDX-License-Identifier: Apache-2.0
"""Runs of two ranks that torchrun itself starts."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from tests.helpers.settings import small_network

MODEL = "tests.helpers.torchrun:network"
ROOT = Path(__file__).resolve().parents[2]


def network(num_joints: int) -> nn.Module:
    """A network of a user's own, whose checkpoints take no time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return small_network(18, "fcn", num_joints, channels=4)


def torchrun(printed: Path, *words: str, restarts: int = 2) -> subprocess.Popen[bytes]:
    """`torchrun … -m fastpose.train -- WORDS` with two ranks. It prints to a file."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    # Behind -- as torchrun takes --run for its own --run-path.
    command += ["--max-restarts", str(restarts), "-m", "fastpose.train", "--", "--model", MODEL, *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with open(printed, "wb") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=printed.parent)


def ranks_of(parent: int) -> dict[int, int]:
    """The processes that torchrun has started, by rank."""
    found = {}
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        try:
            variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        for variable in variables:
            if variable.startswith(b"RANK="):
                found[int(variable[5:])] = int(child)
    return found


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes], printed: Path) -> None:
    while not condition():
        assert process.poll() is None, printed.read_text()
        time.sleep(0.02)
