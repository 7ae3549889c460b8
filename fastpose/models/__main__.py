# SPDX-License-Identifier: Apache-2.0
"""``python -m fastpose.models``: parameters and GFLOPs of both heads side by side."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from fastpose.ending import ends_in_one_line
from fastpose.models.flops import compare_heads
from fastpose.models.resnet import DEPTHS
from fastpose.option import underscored

DESCRIPTION = "Parameters and GFLOPs of networks with either head, side by side."


@ends_in_one_line
def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table of both heads; returns 0."""
    parser = argparse.ArgumentParser(prog="fastpose models", description=DESCRIPTION)
    parser.add_argument(
        "--size", type=int, nargs=2, default=(256, 256), metavar=("H", "W"), help="input in px (256 256)"
    )
    parser.add_argument("--depth", type=int, nargs="+", choices=DEPTHS, default=DEPTHS, help="ResNet depths (all)")
    parser.add_argument("--num_joints", type=int, default=16, help="heatmaps per image (16)")
    parser.add_argument("--channels", type=int, default=256, help="width of the heads (256)")
    words = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args([underscored(word) for word in words])
    try:
        print(compare_heads(tuple(options.depth), tuple(options.size), options.num_joints, options.channels))
    except ValueError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
