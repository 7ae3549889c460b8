# SPDX-License-Identifier: Apache-2.0
"""What an editable install writes, and what is said where another project's package called fastpose is installed."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import setuptools

import fastpose
from fastpose import doctor
from fastpose._namesake import namesake
from fastpose.skeletons import SKELETONS

ROOT = Path(__file__).resolve().parents[1]
needs_a_checkout = pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="this package is not a checkout")


def distribution(site: Path, name: str, script: str) -> None:
    """What pip leaves of an installed distribution, as far as it is looked at."""
    folder = site / f"{name}-1.0.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: 1.0.0\n")
    (folder / "entry_points.txt").write_text(f"[console_scripts]\n{script}\n")


@pytest.fixture
def another(tmp_path: Path) -> Path:
    """A folder in which another project's distribution called fastpose is installed."""
    site = tmp_path / "site"
    distribution(site, "fastpose", "fastpose-warmup = fastpose.estimators.warmup:main")
    return site


def python(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False)


@needs_a_checkout
def test_an_editable_install_is_a_path_and_not_an_import_hook(tmp_path: Path) -> None:
    """Type checkers read a path and no hook, and a folder called fastpose in the working directory hides a hook's
    package, but not one that a path leads to."""
    checkout = tmp_path / "fastpose"
    for name in ("fastpose", "train", "bench", "tests", "csrc"):  # several folders, which setuptools could mistake
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    program = "import sys; from setuptools import build_meta; build_meta.build_editable(sys.argv[1])"
    built = python("-c", program, str(tmp_path), cwd=checkout, FASTPOSE_NATIVE="0")
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("fastpose_torch-*.whl")
    files = zipfile.ZipFile(wheel)
    (path,) = (name for name in files.namelist() if ".dist-info/" not in name)
    assert path.endswith(".pth")
    assert files.read(path).decode().split("\n") == [str(checkout), ""]


@needs_a_checkout
def test_a_wheel_and_an_sdist_have_the_skeletons_and_recipes(tmp_path: Path) -> None:
    checkout = tmp_path / "fastpose"
    for name in ("fastpose", "train"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    program = "import sys; from setuptools.build_meta import build_sdist, build_wheel; out = sys.argv[1]; "
    program += "build_wheel(out); build_sdist(out)"
    built = python("-c", program, str(tmp_path), cwd=checkout, FASTPOSE_NATIVE="0")
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("fastpose_torch-*.whl")
    (sdist,) = tmp_path.glob("fastpose_torch-*.tar.gz")
    with tarfile.open(sdist) as archive:
        sources = {name.partition("/")[2] for name in archive.getnames()}
    names = {path.name for path in (ROOT / "fastpose" / "skeletons").glob("*.yaml")}
    assert {"coco", "mpii", *(Path(name).stem for name in names)} == set(SKELETONS)
    assert {f"fastpose/skeletons/{name}" for name in names} <= set(zipfile.ZipFile(wheel).namelist()) & sources
    recipes = {path.name for path in (ROOT / "train").glob("*.yaml")}
    assert {f"fastpose/recipes/{name}" for name in recipes} <= set(zipfile.ZipFile(wheel).namelist())
    assert {f"train/{name}" for name in recipes} <= sources


def test_another_package_of_the_name_is_reported(
    another: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert namesake() is None
    before = doctor.main(["--strict"])
    assert "Another project's package" not in capsys.readouterr().out
    monkeypatch.syspath_prepend(another)
    message = namesake()
    assert message is not None
    assert str(another) in message
    assert "pip uninstall fastpose" in message
    assert doctor.main([]) == before
    assert doctor.main(["--strict"]) == 1
    assert capsys.readouterr().out.count(message) == 2


def test_importing_beside_another_package_of_the_name_warns(another: Path) -> None:
    imported = python("-c", "import fastpose", cwd=Path(fastpose.__file__).parents[1], PYTHONPATH=str(another))
    assert imported.returncode == 0, imported.stderr
    assert f"RuntimeWarning: Another project's package called fastpose is installed in {another}" in imported.stderr


def test_our_own_distributions_are_not_taken_for_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither fastpose-torch nor this package from before it was called that."""
    distribution(tmp_path, "fastpose_torch", "fastpose = fastpose.cli:main")
    distribution(tmp_path, "fastpose", "fastpose = fastpose.cli:main")
    monkeypatch.syspath_prepend(tmp_path)
    assert namesake() is None


def test_the_doctor_reports_an_init_that_another_package_has_overwritten(tmp_path: Path) -> None:
    """Two wheels share the folder fastpose/, and the one that is installed last writes its `__init__.py`."""
    package = tmp_path / "fastpose"
    shutil.copytree(Path(fastpose.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "__init__.py").write_text("import math\n")
    found = python("-m", "fastpose.doctor", cwd=tmp_path)
    assert (found.returncode, found.stderr) == (1, "")
    assert found.stdout == "fastpose/__init__.py is missing, or another package's. Install again: pip install -e .\n"


@needs_a_checkout
def test_an_editable_install_beside_another_package_of_the_name_is_refused(
    another: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There the other package would be imported, and nothing of this one could say so."""
    monkeypatch.setenv("FASTPOSE_NATIVE", "0")
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    refuse = runpy.run_path(str(ROOT / "setup.py"))["refuse_a_namesake"]
    monkeypatch.setattr(sysconfig, "get_path", lambda key: str(tmp_path))
    refuse()
    monkeypatch.setattr(sysconfig, "get_path", lambda key: str(another))
    with pytest.raises(SystemExit, match=rf"called fastpose is installed in {another}: .*: pip uninstall fastpose"):
        refuse()
