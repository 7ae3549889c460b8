# SPDX-License-Identifier: Apache-2.0
"""``python -m fastpose.models``: parameters and GFLOPs of both heads side by side."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from fastpose.command_line import CommandLine
from fastpose.ending import ends_in_one_line
from fastpose.models.flops import compare_heads
from fastpose.models.resnet import DEPTHS
from fastpose.option import OptionError, check_at_least, in_short, option

DESCRIPTION = "Parameters and GFLOPs of networks with either head, side by side."


@dataclass(frozen=True)
class ModelsOptions:
    """Which networks."""

    size: tuple[int, int] = option((256, 256), "height and width of the network's input, pixels")
    depth: tuple[int, ...] = option(DEPTHS, "depths of the ResNets, layers")
    num_joints: int = option(16, "heatmaps of an image, count")
    channels: int = option(256, "width of the heads, channels")

    def __post_init__(self) -> None:
        for depth in self.depth:
            if depth not in DEPTHS:
                raise OptionError("depth", f"expected some of {', '.join(map(str, DEPTHS))}, got {in_short(depth)}")
        check_at_least(self, 1, "num_joints", "channels")


def command() -> CommandLine:
    """The options of `fastpose models`."""
    return CommandLine("models", DESCRIPTION, ModelsOptions)


@ends_in_one_line
def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table of both heads; returns 0."""
    line = command()
    own, _ = line.parse(argv)
    try:
        print(compare_heads(own.depth, own.size, own.num_joints, own.channels))
    except ValueError as error:
        line.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
