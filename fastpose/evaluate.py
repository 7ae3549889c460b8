# SPDX-License-Identifier: Apache-2.0
"""`python -m fastpose.evaluate`: scores a checkpoint and writes its predictions in MPII's or COCO's format."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.io import savemat

from fastpose.build import DATA_OPTIONS, as_packed, check_is_file, load_model, make_loader, read_split
from fastpose.checkpoint import checkpoint_file
from fastpose.config import NetworkOptions, TrainOptions, option, run_command
from fastpose.data.packed import is_pack
from fastpose.engine import choose_device, evaluate
from fastpose.metrics.coco import known_sigmas, require_pycocotools
from fastpose.report import EvaluationReport, format_scores, replace_text, scores_entry, write_json

SETTINGS = ("size", "color_order", "udp", "refine", "blur_kernel", "flip_test", "flip_shift")  # in scores.json
CALLED = {"valid_annotations": "annotations", "valid_images": "images", "train_annotations": ""}  # of training, here

DESCRIPTION = """Evaluate a checkpoint and write scores.json: with PCKh and pred.mat on MPII, with AP and
keypoints_results.json on COCO. Where a data option is not given, the checkpoint's validation data is taken."""


@dataclass(frozen=True)
class EvaluateOptions(NetworkOptions):
    """What to evaluate, and on what. None stands for what the checkpoint was trained with."""

    checkpoint: str = option(
        dataclasses.MISSING, "checkpoint file, or a run's folder for its best.pt; or SimpleBaselines' or mmpose's file"
    )
    out: str = option(
        "",
        "folder to write scores.json and predictions to; empty: the checkpoint's, on its own data only; for another "
        "program's FILE.pth.tar FILE-results beside it",
    )
    data_root: str | None = option(None, "directory the data paths are relative to, or a pack (see fastpose pack)")
    annotations: str | None = option(
        None,
        "annotations: MPII .json (community) or .mat (official), or COCO .json; a pack has its own and refuses others",
    )
    head_boxes: str | None = option(
        None, "head boxes (gt_valid.mat) of the .json for PCKh; empty: none, predictions only"
    )
    detections: str | None = option(
        None,
        "a detector's boxes of persons, to evaluate COCO in, in the format of "
        "COCO_val2017_detections_AP_H_56_person.json; empty: the annotations' own boxes",
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
    device: str = option("auto", "cpu, cuda, cuda:1, mps, xpu and so on; auto: cuda where there is one, else cpu")

    def apply(self, trained: TrainOptions) -> TrainOptions:
        """The training's options with those given here in their place."""
        given = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        for name in ("checkpoint", "out", *(field.name for field in dataclasses.fields(NetworkOptions))):
            given.pop(name, None)  # load_model has looked at the latter
        if "annotations" in given:
            given["valid_annotations"] = given.pop("annotations")
        if "images" in given:
            given["valid_images"] = ""
        # One pass over the images: to keep them would only take memory.
        return dataclasses.replace(trained, resident=False, **given)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 1 after an error."""
    return run_command("evaluate", DESCRIPTION, EvaluateOptions, run, argv)


def run(given: EvaluateOptions) -> int:
    """Evaluates and writes scores.json and the predictions."""
    device = choose_device(given.device)
    checkpoint = checkpoint_file(Path(given.checkpoint))
    model, trained, skeleton = load_model(checkpoint, device, given)
    options = given.apply(trained)
    foreign = trained.weights == str(checkpoint)  # another program's, with no run around it
    if not given.out and not foreign and (changed := other_data(trained, options)):
        raise ValueError(
            f"out: {', '.join(changed)} differs from the run's own; name a folder with --out, so that the results on "
            f"other data do not replace those in {checkpoint.parent}"
        )
    names = {"valid_annotations": given.annotations} | dataclasses.asdict(given)
    root = options.resolved_data_root()
    # Nobody reads the training's annotations here, so a pack may hold any.
    options = dataclasses.replace(options, train_annotations="")
    options = as_packed(options, [name for name in DATA_OPTIONS if names.get(name) is not None], CALLED)
    if not is_pack(root):
        check_is_file("annotations", options.data_path("valid_annotations"))
    persons = read_split(options, "valid", skeleton)
    if persons.truth is not None:  # said now, and not after the evaluation
        known_sigmas(persons)
        if persons.truth.annotations:
            require_pycocotools()
    print(f"{len(persons)} persons to evaluate, on {device}", flush=True)
    loader, report = make_loader(persons, options, device, training=False), EvaluationReport(len(persons))
    try:
        evaluation = evaluate(model, loader, options, report=report.persons)
    finally:
        report.end_line()
    assert evaluation is not None  # only a stop signal makes it None, and none is listened for
    out = Path(given.out) if given.out else results_of(checkpoint) if foreign else checkpoint.parent
    out.mkdir(parents=True, exist_ok=True)
    if evaluation.results is None:
        predictions = out / "pred.mat"
        write_predictions(predictions, evaluation.predictions, persons.source_row)
    else:
        predictions = out / "keypoints_results.json"
        replace_text(predictions, json.dumps(evaluation.results, allow_nan=False))
    scores = {
        **scores_entry(evaluation, coco=persons.truth is not None),
        "checkpoint": str(checkpoint.resolve()),
        "annotations": str(root if is_pack(root) else options.data_path("valid_annotations")),
        "persons": len(persons),
        "skipped_persons": evaluation.skipped,
        **{name: getattr(options, name) for name in SETTINGS},
        "device": str(device),
    }
    write_json(out / "scores.json", scores)
    print(format_scores(evaluation))
    if evaluation.skipped:
        how = "NaN" if evaluation.results is None else "absent"
        print(f"without {evaluation.skipped} persons whose image could not be read ({how} in {predictions.name})")
    print(f"wrote {predictions}\nwrote {out / 'scores.json'}")
    return 0


def results_of(file: Path) -> Path:
    """models/pose_resnet_50_256x256.pth.tar -> models/pose_resnet_50_256x256-results"""
    return file.with_name(file.name.partition(".")[0] + "-results")


def other_data(trained: TrainOptions, options: TrainOptions) -> list[str]:
    """Names of the options by which the validation data differs from the training run's."""
    names = ("valid_annotations", "head_boxes", "split_list", "detections")
    if trained.resolved_data_root() != options.resolved_data_root():
        return ["data_root"]
    other = [CALLED.get(name, name) for name in names if trained.data_path(name) != options.data_path(name)]
    return other + ["images"] * (trained.images_path("valid") != options.images_path("valid"))


def write_predictions(path: Path, predictions: np.ndarray, source_row: np.ndarray) -> None:
    """Writes MPII's `preds`, float64 [N, 16, 2], 1-based, in the order of the annotations, for 0-based predictions.

    `rows` [N], 1-based as well, says which annotation each is for; it is 1 to N unless images were missing.
    """
    savemat(path, {"preds": predictions.astype(np.float64) + 1.0, "rows": source_row + 1}, do_compression=True)


if __name__ == "__main__":
    sys.exit(main())
