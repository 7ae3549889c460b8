# SPDX-License-Identifier: Apache-2.0
"""`fastpose completion`: what bash, zsh and fish offer with the scripts that it prints."""

from __future__ import annotations

import importlib
import shutil
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from fastpose import cli, completion
from tests.helpers import shells

SHELLS = [
    pytest.param(shell, marks=pytest.mark.skipif(shutil.which(shell) is None, reason=f"this system has no {shell}"))
    for shell in completion.SHELLS
]


@pytest.fixture(scope="module", params=SHELLS)
def shell(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def script(shell: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / f"fastpose.{shell}"
    with redirect_stdout(StringIO()) as printed:
        assert completion.main([shell]) == 0
    path.write_text(printed.getvalue())
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a recipe, a picture and a folder in it."""
    for name in ("my recipe.yaml", "b.jpg"):
        (tmp_path / name).touch()
    (tmp_path / "data").mkdir()
    return tmp_path


def offered(shell: str, script: Path, line: str, folder: Path) -> set[str]:
    words = getattr(shells, shell)(script, line, folder)
    assert len(set(words)) == len(words)
    # Shells differ in what they call a word behind =, and in how they show a folder and a space.
    return {word.rpartition("=")[2].rstrip("/").replace("\\", "") for word in words}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("fastpose ", [*cli.VERBS, "help"]),
        ("fastpose tr", ["train"]),
        ("fastpose help d", ["doctor"]),
        ("fastpose train --ep", ["--epochs"]),
        ("fastpose train --head ", ["fcn", "deconv", "simcc"]),
        ("fastpose train --epochs ", []),
        ("fastpose train --epochs 3 --res", ["--resume", "--resident"]),
        ("fastpose train --recipe mpii_rtm", ["mpii_rtmpose_m_256"]),
        ("fastpose train --recipe my", ["my recipe.yaml"]),
        ("fastpose train --recipe da", ["data"]),  # a folder, which may have one
        ("fastpose train --dataset cr", ["crowdpose"]),
        ("fastpose train --skeleton cr", ["crowdpose"]),
        ("fastpose train --size 64 64 --ep", ["--epochs"]),
        ("fastpose pack my", ["my recipe.yaml"]),
        ("fastpose pack a --format ", ["raw", "jpeg"]),
        ("fastpose pack --format raw my", ["my recipe.yaml"]),
        ("fastpose export --format ", ["onnx", "torch", "safetensors", "simple_baselines"]),
        ("fastpose check a --split v", ["valid"]),
        ("fastpose view a --split ", ["train", "valid"]),
        ("fastpose predict --image a.jpg b", ["b.jpg"]),
        ("fastpose report a da", ["data"]),
        ("fastpose completion ", list(completion.SHELLS)),
        ("fastpose doctor --s", ["--strict"]),
    ],
)
def test_verbs_options_values_recipes_and_files_are_completed(shell, script, folder, line, words):
    assert offered(shell, script, line, folder) == set(words)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("fastpose train --head = d", ["deconv"]),  # as bash divides --head=d
        ("fastpose train --head =", ["fcn", "deconv", "simcc"]),
        ("fastpose train --flip-test t", ["true"]),
        ("fastpose train --recipe b.", []),  # no picture; zsh and fish offer other files if no recipe fits
    ],
)
@pytest.mark.parametrize("shell", [SHELLS[0]], indirect=True)
def test_what_bash_has_of_its_own(shell, script, folder, line, words):
    assert offered(shell, script, line, folder) == set(words)


@pytest.mark.parametrize("shell", SHELLS[1:], indirect=True)
def test_a_value_behind_an_equals_sign(shell, script, folder):
    assert offered(shell, script, "fastpose train --head=d", folder) == {"deconv"}


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_option_of_a_verb_is_completed(shell, script, folder, verb):
    line = importlib.import_module(cli.module_of(verb)).command()
    assert offered(shell, script, f"fastpose {verb} --", folder) == {f"--{name}" for name in line.options}
