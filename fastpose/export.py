# SPDX-License-Identifier: Apache-2.0
"""`python -m fastpose.export`: writes a network and all that surrounds it as one file, pixels in, points out."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from fastpose.data.images import read_image
from fastpose.data.synthetic import render_scene
from fastpose.ending import ends_in_one_line
from fastpose.models.checkpoint import checkpoint_file, export_safetensors
from fastpose.models.decoding import DecodeOptions
from fastpose.models.exported import PixelsToPoints, require, write
from fastpose.models.safetensors_file import require_safetensors
from fastpose.models.weights import ColorOrder, export_simple_baselines
from fastpose.option import OptionError, option
from fastpose.options.asked import Command
from fastpose.trained import OTHERS, TRUST_HELP, load_trained

DESCRIPTION = """Write the network of a checkpoint, with the colour map before it and the decoding behind it, as an ONNX
graph or a torch.export program: pixels in, points out. The file is compared with fastpose before it gets its name. Or
write its weights, as safetensors with settings and joints, or alone as SimpleBaselines has them. """

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2", "safetensors": ".safetensors", "simple_baselines": ".pth.tar"}
OFFERED = (
    *("model", "targets", "split_ratio", "simcc_sigma", "size", "dataset", "skeleton", "color_order", "udp"),
    *(field.name for field in dataclasses.fields(DecodeOptions)),
)
OWN_DEFAULTS = {"flip_test": False}  # twice the work


@dataclass(frozen=True)
class ExportOptions:
    """What to export, and as what."""

    checkpoint: str = option(
        dataclasses.MISSING, "checkpoint file, or a run's folder for its best.pt; or SimpleBaselines' or mmpose's file"
    )
    format: Literal["onnx", "torch", "safetensors", "simple_baselines"] = option(
        "onnx",
        "onnx: an ONNX graph; torch: a torch.export program (input and image are for these two); safetensors: the "
        "weights, and in the metadata settings and joints, so that --checkpoint and --weights take the file as they "
        "take a run's; simple_baselines: the weights alone, of a network with the deconv head, for SimpleBaselines and "
        "HRNet (flip_test, flip_shift, refine and blur_kernel do not matter to it)",
    )
    out: str = option(
        "",
        "file to write, ending in .onnx, .pt2, .safetensors or .pth.tar; empty: beside the checkpoint, as its name",
    )
    input: Literal["crops", "image"] = option(
        "crops", "what the file takes: crops of the network's size, or one whole picture to crop the persons from"
    )
    image: tuple[str, ...] = option(
        (), "picture files to compare the file with fastpose on; empty: a drawn one", once=True
    )
    trust_model: bool = option(False, TRUST_HELP)


def command() -> Command:
    """The options of `fastpose export`."""
    return Command(
        "export", DESCRIPTION + OTHERS, ExportOptions, OFFERED, otherwise="as in training", defaults=OWN_DEFAULTS
    )


@ends_in_one_line
def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 1 after an error."""
    return command().run(run, argv)


def run(own: ExportOptions, asked: dict[str, Any]) -> int:
    """Writes the file and prints how far it is from fastpose."""
    checkpoint = checkpoint_file(Path(own.checkpoint))
    suffix = SUFFIXES[own.format]
    stem = checkpoint.with_suffix("") if checkpoint.name.endswith(".pth.tar") else checkpoint
    out = Path(own.out) if own.out else stem.with_suffix(suffix)
    if not out.name.endswith(suffix):
        raise OptionError("out", f"expected a file ending in {suffix}, got {out}")
    if out.resolve() == checkpoint.resolve():
        raise OptionError("out", f"{out} is the checkpoint itself; choose another --out")
    if own.format == "onnx":
        for name in ("onnx", "onnxscript", "onnxruntime"):
            require(name)  # before the minute that the rest takes
    elif own.format == "safetensors":
        require_safetensors(out)
    pictures = [read_image(path) for path in own.image] or [render_scene(np.random.default_rng(0), 2, "")[0]]
    # What is in safetensors, evaluations take as the training's.
    instead = None if own.format == "safetensors" else OWN_DEFAULTS
    trained = load_trained(checkpoint, asked, torch.device("cpu"), instead=instead, trust_model=own.trust_model)
    settings = trained.settings
    out.parent.mkdir(parents=True, exist_ok=True)
    if own.format == "simple_baselines":
        color_order: ColorOrder = "bgr" if settings.network.color_order == "bgr" else "rgb"
        export_simple_baselines(trained.model, out, color_order)
    elif own.format == "safetensors":
        export_safetensors(
            out,
            model=trained.model.state_dict(),
            progress=(trained.weights.checkpoint or {}).get("progress", {}),
            config=settings.as_plain(),
            skeleton=dataclasses.asdict(trained.skeleton),
        )
    else:
        module = PixelsToPoints(trained.model, settings.network, settings.decode, trained.skeleton, input=own.input)
        print(write(module, out, pictures))
        if not settings.decode.flip_test:
            print("without the mirror test, which predict and evaluate do by default: --flip_test true puts it in")
    print(f"wrote {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
