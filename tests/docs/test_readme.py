# SPDX-License-Identifier: Apache-2.0
"""What the README shows runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import torch

README = Path(__file__).parents[2] / "README.md"


def test_the_examples_run_one_after_the_other() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 6
    torch.manual_seed(0)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert names["crops"].shape == (3, 3, 256, 256)  # type: ignore[attr-defined]
    torch.testing.assert_close(names["same"], names["loss"])
    assert names["keypoints"].shape == (3, 16, 2)  # type: ignore[attr-defined]
    assert names["scores"]["Mean@0.1"] == 100.0  # type: ignore[index]


def test_every_public_name_is_documented() -> None:
    import fastpose

    for name in fastpose.__all__:
        value = getattr(fastpose, name)
        if callable(value):
            assert value.__doc__, f"fastpose.{name} has no docstring"


def test_recipes_and_commands_that_the_readme_names_exist() -> None:
    from fastpose.options.asked import recipes

    text = README.read_text(encoding="utf-8")
    for recipe in re.findall(r"--recipe (\w+)", text):
        assert recipe in recipes()
    for module in set(re.findall(r"python -m\s+fastpose\.(\w+)", text)):
        folder = Path(fastpose_folder())
        assert (folder / f"{module}.py").is_file() or (folder / module / "__main__.py").is_file(), module


def fastpose_folder() -> str:
    import fastpose

    return str(Path(fastpose.__file__).parent)
