# SPDX-License-Identifier: Apache-2.0
"""`python -m fastpose.evaluate`: scores a checkpoint and writes its predictions in MPII's format."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.io import savemat

from fastpose.build import load_model, make_loader, read_split
from fastpose.checkpoint import checkpoint_file
from fastpose.config import TrainOptions, option, run_command
from fastpose.engine import choose_device, evaluate
from fastpose.metrics import format_pckh
from fastpose.report import scores_or_null, write_json

DESCRIPTION = """Evaluate a checkpoint with PCKh and write pred.mat and scores.json. Where a data option is not given,
the checkpoint's validation data is taken."""


@dataclass(frozen=True)
class EvaluateOptions:
    """What to evaluate, and on what. None stands for what the checkpoint was trained with."""

    checkpoint: str = option(dataclasses.MISSING, "checkpoint file, or a run's folder for its best.pt")
    out: str = option("", "folder to write pred.mat and scores.json to; empty: the checkpoint's, on its own data only")
    data_root: str | None = option(None, "directory the data paths are relative to, or a pack (see fastpose pack)")
    annotations: str | None = option(None, "annotations: MPII .json (community) or .mat (official)")
    head_boxes: str | None = option(
        None, "head boxes (gt_valid.mat) of the .json for PCKh; empty: none, predictions only"
    )
    split_list: str | None = option(
        None,
        "text file that names the validation persons of a .mat, one IMAGE or IMAGE PERSON (from 0) per line; "
        "empty with .json",
    )
    images: str | None = option(None, "directory of the images")
    missing_images: Literal["error", "drop"] | None = option(
        None, "what to do with annotations whose image is not there"
    )
    on_bad_image: Literal["error", "skip"] | None = option(None, "what to do with an image that cannot be decoded")
    eval_batch_size: int | None = option(None, "persons in a batch, count")
    flip_test: bool | None = option(None, "evaluate the picture and its mirror image and average their heatmaps")
    decoder: Literal["cpu", "gpu"] = option("cpu", "what decodes JPEG files, whatever it was in training")
    reduced_decode: bool | None = option(
        None, "decode images at 1/2, 1/4 or 1/8 of their size where the crop shrinks them at least that much"
    )
    decode_threads: int | None = option(
        None, "threads that read and decode image files, count; 0: one per core for a GPU, 2 for the CPU"
    )
    amp: Literal["auto", "off", "bfloat16"] | None = option(
        None, "type that convolutions run in: float32 (off) or bfloat16; auto: bfloat16 on GPUs that are fast at it"
    )
    device: str = option("auto", "cpu, cuda, cuda:1 and so on; auto: cuda where there is one, else cpu")

    def apply(self, trained: TrainOptions) -> TrainOptions:
        """The training's options with those given here in their place."""
        given = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        given.pop("checkpoint"), given.pop("out")
        if "annotations" in given:
            given["valid_annotations"] = given.pop("annotations")
        # One pass over the images: to keep them would only take memory.
        return dataclasses.replace(trained, resident=False, **given)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 1 after an error."""
    return run_command("evaluate", DESCRIPTION, EvaluateOptions, run, argv)


def run(given: EvaluateOptions) -> int:
    """Evaluates and writes pred.mat and scores.json."""
    device = choose_device(given.device)
    checkpoint = checkpoint_file(Path(given.checkpoint))
    model, trained, _ = load_model(checkpoint, device)
    options = given.apply(trained)
    if not given.out and (changed := other_data(trained, options)):
        raise ValueError(
            f"out: {', '.join(changed)} differs from the run's own; name a folder with --out, so that the results on "
            f"other data do not replace those in {checkpoint.parent}"
        )
    persons = read_split(options, "valid")
    evaluation = evaluate(model, make_loader(persons, options, device, training=False), options)
    assert evaluation is not None  # only a stop signal makes it None, and none is listened for
    out = Path(given.out) if given.out else checkpoint.parent
    out.mkdir(parents=True, exist_ok=True)
    write_predictions(out / "pred.mat", evaluation.predictions, persons.source_row)
    scores = {
        "pckh": scores_or_null(evaluation.pckh),
        "checkpoint": str(checkpoint.resolve()),
        "annotations": str(options.data_path("valid_annotations")),
        "persons": len(persons),
        "skipped_persons": evaluation.skipped,
        "flip_test": options.flip_test,
        "device": str(device),
    }
    write_json(out / "scores.json", scores)
    print(format_pckh(evaluation.pckh) if evaluation.pckh else "no head boxes, no PCKh: predictions only")
    if evaluation.skipped:
        print(f"without {evaluation.skipped} persons whose image could not be read (NaN in pred.mat)")
    print(f"wrote {out / 'pred.mat'}\nwrote {out / 'scores.json'}")
    return 0


def other_data(trained: TrainOptions, options: TrainOptions) -> list[str]:
    """Names of the options by which the validation data differs from the training run's."""
    names = {name: name for name in ("images", "head_boxes", "split_list")} | {"valid_annotations": "annotations"}
    if trained.resolved_data_root() != options.resolved_data_root():
        return ["data_root"]
    return [shown for name, shown in names.items() if trained.data_path(name) != options.data_path(name)]


def write_predictions(path: Path, predictions: np.ndarray, source_row: np.ndarray) -> None:
    """Writes MPII's `preds`, float64 [N, 16, 2], 1-based, in the order of the annotations, for 0-based predictions.

    `rows` [N], 1-based as well, says which annotation each is for; it is 1 to N unless images were missing.
    """
    savemat(path, {"preds": predictions.astype(np.float64) + 1.0, "rows": source_row + 1}, do_compression=True)


if __name__ == "__main__":
    sys.exit(main())
