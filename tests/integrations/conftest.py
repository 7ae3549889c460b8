# SPDX-License-Identifier: Apache-2.0
"""Tests that need mmpose and transformers (`make integrations` installs them); what lacks its own is not collected."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock, patch


class StandIn(ModuleType):
    __path__: Sequence[str] = ()
    __version__ = "0"

    def __getattr__(self, name: str) -> MagicMock:
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock(name=name)


class StandIns(MetaPathFinder, Loader):
    """What mmpose imports for networks that are not used here may be missing: it is asked for, and never called."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def find_spec(self, name: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        wanted = any(f"{name}.".startswith(f"{top}.") for top in self.names)
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if wanted else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None: ...


collect_ignore = []
if importlib.util.find_spec("torchvision"):
    # A torchvision for CUDA beside a torch for the CPU does not load its compiled ops: then it has none to register
    # these for, and none of them is used here.
    with patch("torch.library.register_fake", lambda *_, **__: lambda function: function):
        importlib.import_module("torchvision")
if importlib.util.find_spec("transformers") is None:
    collect_ignore += ["test_hf.py"]
if importlib.util.find_spec("mmpose") is None:
    collect_ignore += [
        "test_published_networks.py",
        *(path.name for path in Path(__file__).parent.glob("test_mmpose*.py")),
    ]
else:
    missing = [name for name in ("torchvision", "mmdet") if importlib.util.find_spec(name) is None]
    # mmcv's compiled ops; mmcv-lite has none.
    missing += ["mmcv.ops"] if importlib.util.find_spec("mmcv._ext") is None else []
    sys.meta_path.insert(0, StandIns(missing))
