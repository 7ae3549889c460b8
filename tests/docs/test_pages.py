# SPDX-License-Identifier: Apache-2.0
"""What README, CONTRIBUTING and the manual show runs as it stands there, and what they name exists."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import torch

import fastpose
from fastpose import cli
from fastpose.options.asked import recipes

ROOT = Path(__file__).parents[2]
PAGES = {path.name: path.read_text(encoding="utf-8") for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]}
# Whose code other tests run, as it needs files or packages.
ELSEWHERE = {"other_loops.md", "own_model.md", "export.md", "predicting.md", "own_joints.md", "CONTRIBUTING.md"}


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGES[page], re.DOTALL)


def run(page: str) -> dict[str, object]:
    """The names that a page's code leaves, when its blocks run one after the other."""
    torch.manual_seed(0)
    names: dict[str, object] = {}
    for block in blocks(page, "python"):
        exec(compile(block, page, "exec"), names)
    return names


def test_the_readme_is_a_first_page() -> None:
    assert PAGES["README.md"].count("\n") <= 160
    names = run("README.md")
    assert names["heatmaps"].shape == (8, 17, 64, 48)  # type: ignore[attr-defined]
    assert names["keypoints"].shape == (8, 17, 2)  # type: ignore[attr-defined]
    for page in (ROOT / "docs").glob("*.md"):
        assert f"(docs/{page.name})" in PAGES["README.md"], f"{page.name} is not in the README's list"


def test_the_ops_run_one_after_the_other() -> None:
    names = run("conventions.md")
    assert names["crops"].shape == (3, 3, 256, 256)  # type: ignore[attr-defined]
    torch.testing.assert_close(names["same"], names["loss"])
    assert names["keypoints"].shape == (3, 16, 2)  # type: ignore[attr-defined]
    assert names["scores"]["Mean@0.1"] == 100.0  # type: ignore[index]


@pytest.mark.parametrize("page", sorted({p for p in PAGES if blocks(p, "python")} - ELSEWHERE))
def test_the_code_of_a_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # for files that it writes
    assert run(page).keys() > {"__builtins__"}  # it has left something


def test_every_public_name_is_documented() -> None:
    for name in fastpose.__all__:
        value = getattr(fastpose, name)
        if callable(value):
            assert value.__doc__, f"fastpose.{name} has no docstring"


@pytest.mark.parametrize("page", sorted(PAGES))
def test_what_a_page_links_to_exists(page: str) -> None:
    folder = ROOT if (ROOT / page).is_file() else ROOT / "docs"
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (folder / path).resolve() if path else folder / page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {slug(heading) for heading in headings}, target


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", sorted(PAGES))
def test_recipes_modules_and_targets_that_a_page_names_exist(page: str) -> None:
    text = PAGES[page]
    for recipe in re.findall(r"--recipe ((?:mpii|coco|synthetic|lspet|own)_\w+)", text):
        assert recipe in recipes()
    for module in set(re.findall(r"python -m\s+((?:fastpose|bench|studies)(?:\.\w+)*)", text)):
        assert importlib.util.find_spec(module), module
    targets = re.findall(r"^([\w -]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    known = {target for line in targets for target in line.split()}
    for target in set(re.findall(r"`make ([a-z-]+)|^make ([a-z-]+)", text, re.MULTILINE)):
        assert "".join(target) in known, target


@pytest.fixture(scope="module")
def options() -> dict[str, set[str]]:
    """The options of each command."""
    pytest.importorskip("yaml")
    found = {"fastpose": {"version", "help"}}
    for verb in cli.VERBS:
        found[verb] = set(importlib.import_module(cli.module_of(verb)).command().options)
    return found


@pytest.mark.parametrize("page", sorted(PAGES))
def test_commands_and_options_that_a_page_shows_exist(page: str, options: dict[str, set[str]]) -> None:
    for block in blocks(page, r"(?:sh|bash)"):
        for line in block.replace("\\\n", " ").splitlines():
            begins = r"(?:python -m fastpose\.|fastpose |torchrun .*-m fastpose\.)(\w+)(?: --(?= ))?"
            call = re.match(begins + r"([^#&|]*)", line)
            if not call:
                continue
            verb, words = call.groups()
            if verb == "help":
                assert set(words.split()) <= cli.VERBS.keys(), line
                continue
            assert verb in cli.VERBS, line
            for name in re.findall(r"--([\w-]+)", words):
                assert name.replace("-", "_") in options[verb], line


@pytest.mark.parametrize(
    "page",
    [
        *("training.md", "names.md", "data.md", "formats.md", "converting.md", "mixtures.md", "checking.md"),
        *("viewing.md", "checkpoints.md", "scores.md", "encodings.md", "skeletons.md"),
    ],
)
def test_options_that_the_manual_names_exist(page: str, options: dict[str, set[str]]) -> None:
    known = set.union(*options.values())
    for code in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", PAGES[page]):
        if code.startswith(("pip", "python", "make", "pytest", "torchrun")):
            continue
        for name in re.findall(r"--([\w-]+)", code):
            assert name.replace("-", "_") in known, name
