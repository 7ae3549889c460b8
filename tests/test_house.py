# SPDX-License-Identifier: Apache-2.0
"""The rules of who imports whom: those of pyproject.toml hold, each notices a breach, and no module imports itself."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

pytest.importorskip("importlinter", reason="import-linter, of the extra `dev`, is not installed")
import grimp
from importlinter.api import read_configuration

ROOT = Path(__file__).resolve().parents[1]
CONFIGURATION = ROOT / "pyproject.toml"
if not CONFIGURATION.is_file():
    pytest.skip("this package is not a checkout", allow_module_level=True)

CONTRACTS = {each["id"]: each["name"] for each in read_configuration(str(CONFIGURATION))["contracts_options"]}
# Of each contract a module, and the import in it that must be noticed.
BREACHES = {
    "layers": ("fastpose/ops/affine_crop.py", "import fastpose.data.persons"),
    "cycles": ("fastpose/data/images.py", "import fastpose.data.boxes"),
    "oracle": ("fastpose/ops/affine_crop.py", "import fastpose.reference"),
    "selftest": ("fastpose/engine/run.py", "import fastpose.selftest"),
    "oracle_needs": ("fastpose/reference/heatmaps.py", "import torch"),
    "import_needs": ("fastpose/ops/color.py", "import cv2"),
    "data_sets": ("fastpose/engine/run.py", "import fastpose.data.coco.ap"),
    "rooms": ("fastpose/data/pack/write.py", "import fastpose.data.mpii.pckh"),
    "formats": ("fastpose/data/formats/lsp.py", "import fastpose.data.pack.format"),
    "scores": ("fastpose/data/coco/oks.py", "import fastpose.files"),
    "pictures": ("fastpose/engine/pictures.py", "import fastpose.data.persons"),
    "bench_on_top": ("fastpose/engine/step.py", "import bench.gpu"),
}


def lint(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    program = "from importlinter.cli import lint_imports_command as lint; lint()"
    command = [sys.executable, "-c", program, "--no-cache", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_the_contracts_hold() -> None:
    linted = lint(ROOT)
    assert linted.returncode == 0, linted.stdout


def test_every_contract_has_a_breach() -> None:
    assert CONTRACTS.keys() == BREACHES.keys()


@pytest.mark.parametrize("contract", BREACHES)
def test_a_breach_is_noticed(contract: str, tmp_path: Path) -> None:
    """In a copy of the packages with one more import, inside a function, the contract fails and names the module."""
    for package in ("fastpose", "bench"):
        ignore = shutil.ignore_patterns("*.so", "__pycache__", "results")
        shutil.copytree(ROOT / package, tmp_path / package, ignore=ignore)
    shutil.copy(CONFIGURATION, tmp_path)
    file, breach = BREACHES[contract]
    with (tmp_path / file).open("a") as module:
        module.write(f"\n\ndef breach():\n    {breach}\n")
    linted = lint(tmp_path, "--contract", contract)
    assert linted.returncode == 1, linted.stdout + linted.stderr
    assert "0 kept, 1 broken" in linted.stdout
    broken = linted.stdout.partition("Broken")[2]
    assert CONTRACTS[contract] in broken
    assert Path(file).stem in broken


def test_no_module_imports_itself_through_others() -> None:
    """Also through the `__init__.py` of a package, which the contract on cycles takes for no sibling of its modules."""
    graph = grimp.build_graph("fastpose", "bench", cache_dir=None)
    # fastpose._C, the native library, is no module that can be read: its package counts in its place.
    graph.remove_import(importer="fastpose.ops._native", imported="fastpose")
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert set(TopologicalSorter(imports).static_order()) == graph.modules  # CycleError names those of a cycle
    imports["fastpose.skeletons"] = {"fastpose.data.mpii.dataset"}  # which imports it
    with pytest.raises(CycleError, match="cycle"):
        TopologicalSorter(imports).prepare()


def test_no_file_of_the_package_is_longer_than_a_thought() -> None:
    lines = {path: len(path.read_text().splitlines()) for path in (ROOT / "fastpose").rglob("*.py")}
    assert not [path for path, count in lines.items() if count > 480]


def test_no_module_imports_what_is_slow_and_seldom_needed() -> None:
    """matplotlib, SciPy and pycocotools are imported by the functions that use them."""
    for path in sorted((ROOT / "fastpose").rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [name.name for name in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"matplotlib", "scipy", "pycocotools"}, path
