# SPDX-License-Identifier: Apache-2.0
"""`python -m fastpose.evaluate`: scores a checkpoint and writes its predictions in its data set's format."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastpose.data.dataset import DATA_READING, DataOptions
from fastpose.data.datasets import is_mixture, open_dataset
from fastpose.data.pack.format import is_pack
from fastpose.data.sense import report_doubts
from fastpose.device import choose_device
from fastpose.ending import ends_in_one_line, print_log, report
from fastpose.engine.evaluation import predict_all, scored, scores_entry
from fastpose.engine.folder import PAGE, PREDICTIONS
from fastpose.engine.loading import make_loader
from fastpose.engine.predicted import write_predicted
from fastpose.engine.run_page import write_page
from fastpose.files import check_is_file, write_json
from fastpose.models.decoding import DecodeOptions
from fastpose.models.weights import Weights
from fastpose.option import OptionError, option
from fastpose.options.asked import Command
from fastpose.options.settings import DEFAULTS, Settings
from fastpose.options.settle import completed
from fastpose.progress import CountedProgress
from fastpose.ranks import ALONE, OtherRankError, RankLostError, Ranks, joined_ranks, report_lost
from fastpose.trained import OTHERS, TRUST_HELP, load_trained

DESCRIPTION = """Evaluate a checkpoint and write scores.json: with PCKh and pred.mat on MPII, with AP or PCK and
keypoints_results.json on data in COCO's format. Data options that are not asked for are those of the training. """

# Of training's options. What evaluates here need not decode or compute as the training did.
OFFERED = (
    *("data_root", "dataset", "skeleton", "head_boxes", "detections", "split_list", "missing_images"),
    *DATA_READING,
    *("max_image_pixels", "max_annotation_bytes", "max_annotation_depth"),
    *("score", "max_detections", "pck_norm", "pck_threshold", "pck_pixels"),
    *("model", "targets", "split_ratio", "simcc_sigma", "size", "color_order", "udp"),
    *(field.name for field in dataclasses.fields(DecodeOptions)),
    *("on_bad_image", "decoder", "reduced_decode", "decode_threads", "eval_batch_size", "amp", "device"),
)
OWN_DEFAULTS = {"decoder": "cpu", "device": "auto"}
# One pass over the images: to keep them would only take memory. Nothing is drawn into the data root.
INSTEAD = {**OWN_DEFAULTS, "resident": False, "synthetic_persons": 0}
CALLED = {"valid_annotations": "annotations", "valid_images": "images", "train_annotations": ""}  # of training, here


@dataclass(frozen=True)
class EvaluateOptions:
    """What to evaluate, and on what."""

    checkpoint: str = option(
        dataclasses.MISSING, "checkpoint file, or a run's folder for its best.pt; or SimpleBaselines' or mmpose's file"
    )
    out: str = option(
        "",
        "folder to write scores.json and predictions to; empty: the checkpoint's, on its own data only; for another "
        "program's FILE.pth.tar FILE-results beside it",
    )
    annotations: str | None = option(
        None,
        "annotations: MPII .json (community) or .mat (official), or COCO .json; a pack has its own and refuses others",
    )
    images: str | None = option(None, "directory of the images")
    trust_model: bool = option(False, TRUST_HELP)


def command() -> Command:
    """The options of `fastpose evaluate`."""
    return Command(
        "evaluate",
        DESCRIPTION + OTHERS,
        EvaluateOptions,
        OFFERED,
        otherwise="as in training",
        defaults=OWN_DEFAULTS,
        by_ranks=True,
    )


@ends_in_one_line
def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 1 after an error."""
    own, asked = command().parse(argv)
    ranks = ALONE
    try:
        with joined_ranks(os.environ) as ranks:
            return run(own, asked, ranks)
    except OtherRankError:
        return 1
    except RankLostError as error:
        return report_lost(error, ranks)
    except (ValueError, OSError, ArithmeticError) as error:
        return report(error)


def run(own: EvaluateOptions, asked: dict[str, Any], ranks: Ranks = ALONE) -> int:
    """Evaluates and writes scores.json and the predictions; several ranks share the work, and the first one writes."""
    if own.annotations is not None:
        asked["valid_annotations"] = own.annotations
    if own.images is not None:
        asked |= {"images": own.images, "valid_images": ""}
    device = ranks.own(choose_device(asked.get("device", "auto")))
    trained = load_trained(
        own.checkpoint,
        asked,
        device,
        instead=INSTEAD,
        called=CALLED,
        reads_data=True,
        trust_model=own.trust_model,
    )
    settings, skeleton = trained.settings, trained.skeleton
    data, network = settings.data, settings.network
    out = results_folder(own.out, trained.file, trained.weights, data)
    packed, listed = is_pack(Path(data.data_root)), is_mixture(data.dataset)
    if not packed and not listed:
        check_is_file("annotations", data.path("valid_annotations"))
    dataset = open_dataset(data, network.size, skeleton)
    with ranks.in_turns():
        persons = dataset.read("valid")
    ranks.check_same("persons", persons.fingerprint())
    report_doubts({"valid": persons})
    scorer = dataset.scorer(persons)
    scorer.needs(to_train=False)  # said now, and not after the evaluation
    print_log(f"{len(persons)} persons to evaluate, on {device}")
    batch_size = settings.schedule.eval_batch_size
    loader = make_loader(
        persons, network, settings.pixels, settings.compute, device, batch_size=batch_size, ranks=ranks
    )
    ranks.begin(device, settings.compute.rank_timeout)
    progress = CountedProgress("evaluation", "persons", len(persons), stays=False)
    try:
        evaluation = predict_all(trained.decoder(), loader, report=progress.show)
    finally:
        progress.end()
    assert evaluation is not None  # only a stop signal makes it None, and none is listened for
    ranks.rest()
    if not ranks.first:
        return 0
    values = scored(evaluation, scorer).values
    out.mkdir(parents=True, exist_ok=True)
    predictions = scorer.write(out, evaluation.predictions, evaluation.scores)
    scores = {
        **scores_entry(scorer, values),
        "checkpoint": str(trained.file.resolve()),
        "annotations": data.data_root if packed else data.dataset if listed else str(data.path("valid_annotations")),
        "persons": len(persons),
        "skipped_persons": evaluation.skipped,
        "size": network.size,
        "color_order": network.color_order,
        "udp": network.udp,
        **dataclasses.asdict(settings.decode),
        "device": str(device),
    }
    write_json(out / "scores.json", scores)
    print(scorer.table(values))
    if evaluation.skipped:
        print(f"{evaluation.skipped} persons have no pose in {predictions.name}: their images could not be read")
    print(f"wrote {predictions}\nwrote {out / 'scores.json'}")
    if not own.out and (out / "metrics.jsonl").is_file():  # a run's own folder, and its own data
        write_predicted(out, trained.file.name, persons, scorer, evaluation)
        write_page([out], out / PAGE, DEFAULTS)
        print(f"wrote {out / PREDICTIONS}\nwrote {out / PAGE}")
    return 0


def results_folder(out: str, checkpoint: Path, weights: Weights, data: DataOptions) -> Path:
    """The folder to write to.

    Raises:
        OptionError: it would be the run's own, and the data are others than the run's.
    """
    if out:
        return Path(out)
    if weights.checkpoint is None:  # another program's, with no run around it
        return checkpoint.with_name(checkpoint.name.partition(".")[0] + "-results")
    trained = Settings.of(completed(weights.checkpoint["config"])).data
    if changed := other_data(trained, data):
        raise OptionError(
            "out",
            f"{', '.join(changed)} differs from the run's own; name a folder with --out, so that the results on other "
            f"data do not replace those in {checkpoint.parent}",
        )
    return checkpoint.parent


def other_data(trained: DataOptions, data: DataOptions) -> list[str]:
    """Names of the options by which the validation data differs from the training run's."""
    if trained.data_root != data.data_root:
        return ["data_root"]
    if trained.dataset != data.dataset and (is_mixture(trained.dataset) or is_mixture(data.dataset)):
        return ["dataset"]
    names = ("valid_annotations", "head_boxes", "split_list", "detections")
    other = [CALLED.get(name, name) for name in names if trained.path(name) != data.path(name)]
    other += [name for name in DATA_READING if getattr(trained, name) != getattr(data, name)]
    return other + ["images"] * (trained.images_path("valid") != data.images_path("valid"))


if __name__ == "__main__":
    sys.exit(main())
