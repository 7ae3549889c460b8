# SPDX-License-Identifier: Apache-2.0
"""All options of a run, in groups that are declared beside the code that reads them.

On the command line, in recipes and in checkpoints their names are flat: no two groups have a field of the same name.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from fastpose.data.augmentation import Augmentation
from fastpose.data.dataset import DataOptions
from fastpose.data.pixels.source import PixelOptions
from fastpose.device import ComputeOptions
from fastpose.engine.schedule import ScheduleOptions
from fastpose.engine.step import TargetOptions
from fastpose.models.decoding import DecodeOptions
from fastpose.models.network import NetworkOptions
from fastpose.option import typed


@dataclass(frozen=True)
class Settings:
    """Everything a training run depends on. The defaults are the paper's settings; mirroring is our addition.

    Only commands see the whole of it; what they call gets the groups that it reads.
    """

    data: DataOptions = field(default_factory=DataOptions)
    pixels: PixelOptions = field(default_factory=PixelOptions)
    network: NetworkOptions = field(default_factory=NetworkOptions)
    schedule: ScheduleOptions = field(default_factory=ScheduleOptions)
    targets: TargetOptions = field(default_factory=TargetOptions)
    augmentation: Augmentation = field(default_factory=Augmentation)
    decode: DecodeOptions = field(default_factory=DecodeOptions)
    compute: ComputeOptions = field(default_factory=ComputeOptions)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Settings:
        """Settings from values by their flat names; what is not among them has its default.

        Raises:
            OptionError: a value is of another type, or cannot be used.
            TypeError: an unknown name.
        """
        if unknown := values.keys() - FIELDS.keys():
            raise TypeError(f"there is no option {', '.join(map(repr, sorted(unknown, key=str)))}")
        groups: dict[str, dict[str, Any]] = {name: {} for name in GROUPS}
        for name, value in values.items():
            groups[GROUP_OF[name]][name] = typed(name, value, TYPES[name])
        return cls(**{name: GROUPS[name](**group) for name, group in groups.items()})

    def flat(self) -> dict[str, Any]:
        """All values by their flat names."""
        return {name: getattr(getattr(self, GROUP_OF[name]), name) for name in FIELDS}

    def as_plain(self) -> dict[str, Any]:
        """The same as values for YAML and checkpoints."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in self.flat().items()}

    def as_yaml(self) -> str:
        """The same as the text of a recipe, in groups."""
        import yaml

        values = self.as_plain()
        groups = {group: {name: values[name] for name in FIELDS if GROUP_OF[name] == group} for group in GROUPS}
        return "\n".join(
            f"# {group}\n{yaml.safe_dump(members, sort_keys=False, width=math.inf)}"
            for group, members in groups.items()
        )


GROUPS: dict[str, type] = {
    "data": DataOptions,
    "pixels": PixelOptions,
    "network": NetworkOptions,
    "schedule": ScheduleOptions,
    "targets": TargetOptions,
    "augmentation": Augmentation,
    "decode": DecodeOptions,
    "compute": ComputeOptions,
}
FIELDS: dict[str, dataclasses.Field[Any]] = {f.name: f for kind in GROUPS.values() for f in dataclasses.fields(kind)}
GROUP_OF: dict[str, str] = {f.name: group for group, kind in GROUPS.items() for f in dataclasses.fields(kind)}
TYPES: dict[str, Any] = {name: kind for group in GROUPS.values() for name, kind in get_type_hints(group).items()}
# What --help shows of a command that offers it; --help_all shows all.
COMMON = (
    *("data_root", "dataset", "skeleton", "images", "train_annotations", "valid_annotations"),
    *("on_bad_image", "resident"),
    *("model", "depth", "head", "weights", "backbone_weights", "size", "targets"),
    *("epochs", "batch_size", "eval_batch_size", "lr", "seed"),
    *("sigma", "rotation", "flip", "refine", "flip_test"),
    *("device", "amp"),
)
DEFAULTS: dict[str, Any] = {name: f.default for name, f in FIELDS.items()}
