# SPDX-License-Identifier: Apache-2.0
"""`python -m fastpose.train`: trains a network and prints its score. Without arguments it is the synthetic recipe."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from fastpose.data.datasets import is_mixture, open_dataset
from fastpose.data.sense import check_sense, doubt_about_pairs
from fastpose.device import choose_device, require_cuda
from fastpose.ending import ends_in_one_line, print_log, report
from fastpose.engine.epoch import NotFiniteError
from fastpose.engine.events import require_tensorboard
from fastpose.engine.folder import PAGE, check_resumable, check_unused, run_folder
from fastpose.engine.loading import make_loader
from fastpose.engine.run import Run
from fastpose.engine.run_page import write_page
from fastpose.models.checkpoint import CheckpointError, has_checkpoint
from fastpose.models.decoding import Decoder
from fastpose.models.network import make_network
from fastpose.models.own import check_trains_on
from fastpose.option import OptionError, option
from fastpose.options.asked import (
    DEFAULT_RECIPE,
    OWN_RECIPE,
    Command,
    find_recipe,
    naming,
    read_recipe,
    read_run,
    recipes,
)
from fastpose.options.settings import DEFAULTS, FIELDS, Settings
from fastpose.options.settle import completed, settle
from fastpose.ranks import ALONE, OtherRankError, RankLostError, Ranks, joined_ranks, report_lost

log = logging.getLogger("fastpose.train")  # __name__ is __main__ in a program

DESCRIPTION = """Train a pose network. Values come from the command line, else from the recipe, else from the defaults
shown here, which are the paper's settings; without --recipe that is the recipe synthetic_resnet18_fcn_128, not these
defaults."""


@dataclass(frozen=True)
class TrainOptions:
    """Which run, and what to do with it."""

    recipe: str = option(
        "",
        f"YAML file of options, or a recipe's name; empty: {DEFAULT_RECIPE}; those that come with fastpose: "
        f"{', '.join(recipes())}",
    )
    run: str | None = option(None, "folder to write to; without it: runs/RECIPE-TIME")
    resume: str = option("", "folder (or last.pt) of a run to go on with; further options override its own")
    dry_run: bool = option(
        False,
        "build everything, train one step, evaluate one batch, print shapes, memory and speed, and end without writing "
        "a file",
    )
    print_config: bool = option(
        False, "print all settings in effect, as YAML that --recipe FILE takes, and end before any data is read"
    )
    trust_model: bool = option(
        False, "import and run the network that the recipe or the resumed run names, without naming it with --model"
    )
    tensorboard: bool = option(
        False,
        "write the numbers of metrics.jsonl as TensorBoard's event files into the run's folder, too, while it trains "
        "(pip install tensorboard)",
    )

    @property
    def trains(self) -> bool:
        """Whether there will be a run, and its folder."""
        return not (self.dry_run or self.print_config)


@dataclass(frozen=True)
class Plan:
    """What the first rank makes of the command line and files, for all of them."""

    own: TrainOptions
    settings: Settings
    folder: Path


def command() -> Command:
    """The options of `fastpose train`."""
    return Command("train", DESCRIPTION, TrainOptions, FIELDS, by_ranks=True)


@ends_in_one_line
def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 when the run is complete, 1 after an error, 128 + signal number when it was stopped.

    torchrun starts it in several processes, the ranks of one run: see fastpose.ranks. The first one prints and writes.
    """
    begin = time.perf_counter()
    line = command()
    own, asked = line.parse(argv)
    ranks = ALONE
    try:
        # On the folder: before a run that goes on is read, and for a new one once there is something to write.
        with joined_ranks(os.environ) as ranks, ExitStack() as claim:
            plan = ranks.same(lambda: make_plan(line, own, asked, claim, ranks.launch))
            resume, folder, settings = bool(plan.own.resume), plan.folder, plan.settings
            if own.print_config:
                print(settings.as_yaml(), end="")
                return 0
            if own.dry_run:
                settings = drawn_elsewhere(settings, claim)
            run = make_run(settings, folder, begin, resume=resume, ranks=ranks, tensorboard=own.tensorboard)
            if own.dry_run:
                return run.dry_run()
            with ranks.failing_together():
                if not resume and ranks.first:
                    claim.enter_context(run_folder(folder, new=True))
                    remember(folder, own, asked, ranks.launch)
            code = run.train()
            # Also of a run that was killed between its results and its page, and had nothing left to do.
            if ranks.first and (run.ended or (code == 0 and not (folder / PAGE).exists())):
                write_page([folder], folder / PAGE, DEFAULTS)
                print(f"wrote {folder / PAGE}")
            return code
    except RankLostError as error:
        return report_lost(error, ranks)
    except (ValueError, OSError, NotFiniteError, OtherRankError) as error:
        if isinstance(error, OtherRankError | NotFiniteError) and not ranks.first:
            return 1  # the first one says why
        return report(error)


def make_plan(line: Command, own: TrainOptions, asked: dict[str, Any], claim: ExitStack, launch: Any = None) -> Plan:
    """What is asked for, settled and printed. A wrong option ends the program with a message and exit code 2.

    `launch`: see Ranks.

    Raises:
        ValueError, OSError: a file or folder cannot be used.
    """
    refuse_copies(os.environ)
    own, asked = restarted(own, asked, launch)
    file, folder = options_file(own, asked)
    if own.resume and own.trains:
        claim.enter_context(run_folder(folder, new=False))
    if own.resume:
        check_resumable(folder)
    try:
        if own.tensorboard:
            require_tensorboard()
        values, file = read_run(folder) if own.resume else (read_recipe(file), file)
    except CheckpointError:
        raise
    except ValueError as error:
        line.error(str(error))
    try:
        resumed, recipe = (values, None) if own.resume else (None, values)
        settings = settle(asked, run=resumed, recipe=recipe, trust_model=own.trust_model)
        if own.resume and has_checkpoint(folder):
            refuse_weights(asked, settings, values)
        if not own.print_config:
            open_dataset(settings.data, settings.network.size)
    except OptionError as error:
        line.error(naming(error, file, values, asked))
    what = f"run {folder}" if own.resume else f"recipe {file.stem}"
    print_log(f"{what}, data root {settings.data.data_root}")
    if not own.resume and own.trains:
        check_unused(folder)
    return Plan(own, settings, folder)


def drawn_elsewhere(settings: Settings, claim: ExitStack) -> Settings:
    """For a dry run, which writes nothing: synthetic persons that are not there yet are drawn into a folder that goes
    with `claim`."""
    data, root = settings.data, Path(settings.data.data_root)
    if (
        not data.synthetic_persons
        or is_mixture(data.dataset)
        or (root.exists() and (root.is_file() or any(root.iterdir())))
    ):
        return settings
    folder = Path(claim.enter_context(tempfile.TemporaryDirectory(prefix="fastpose-")))
    return dataclasses.replace(settings, data=dataclasses.replace(data, data_root=str(folder / "persons")))


def refuse_weights(asked: Mapping[str, Any], settings: Settings, run: Mapping[str, Any]) -> None:
    """Raises OptionError where a run that has a checkpoint of its own is asked to begin with other weights."""
    for name in ("weights", "backbone_weights"):
        was = str(Path(run[name]).expanduser().resolve()) if run.get(name) else ""
        if name in asked and getattr(settings.network, name) != was:
            raise OptionError(name, f"a run that goes on has its own weights: leave it out, got {asked[name]}")


def remember(folder: Path, own: TrainOptions, asked: dict[str, Any], launch: Any) -> None:
    """Lets the same command know, if torchrun starts it again after a rank has ended, that the run is its own."""
    if launch is not None:
        launch.set(place_of(own, asked), str(folder.resolve()))


def place_of(own: TrainOptions, asked: dict[str, Any]) -> str:
    """Where torchrun's store has the folder that a command has begun: one torchrun may start several."""
    return "folder/" + hashlib.sha256(repr((own, sorted(asked.items()), os.getcwd())).encode()).hexdigest()


def restarted(own: TrainOptions, asked: dict[str, Any], launch: Any) -> tuple[TrainOptions, dict[str, Any]]:
    """What is asked for, where torchrun starts the same command again: to go on with the run that it has begun."""
    if launch is None or own.resume or not own.trains or not launch.check([place_of(own, asked)]):
        return own, asked
    folder = Path(launch.get(place_of(own, asked)).decode())
    if not any((folder / name).exists() for name in ("config.yaml", "last.pt")):
        return dataclasses.replace(own, run=str(folder)), asked
    # All else that was asked for is in the run's own settings. Its network is code, and named here alone.
    asked = {name: value for name, value in asked.items() if name == "model"}
    return dataclasses.replace(own, recipe="", run=None, resume=str(folder)), asked


def refuse_copies(environment: Mapping[str, str]) -> None:
    """Raises ValueError in a process that was started as one of several by a program that does not make them ranks."""
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):
        count = environment.get(name, "")
        if "RANK" not in environment and count.isdecimal() and int(count) > 1:
            raise ValueError(
                f"{name} is {count}: each of them would train the whole run: start one torchrun on each machine, which "
                f"starts the ranks, or unset {name}"
            )


def options_file(own: TrainOptions, asked: dict[str, Any]) -> tuple[Path, Path]:
    """The file that has the options that were not asked for, and the run's folder.

    Raises:
        ValueError: the options do not go together, or recipe or run do not exist.
    """
    if not own.resume:
        if not own.recipe and "data_root" in asked:
            needed = "--data_root needs a recipe that says what the data is for: add --recipe"
            if "dataset" in asked:
                raise ValueError(f"{needed} {OWN_RECIPE}, which is for data of your own in any format, or another")
            raise ValueError(
                f"{needed} and one of {', '.join(recipes())}; {OWN_RECIPE} is for data of your own, with --dataset; "
                f"{DEFAULT_RECIPE} draws synthetic persons there"
            )
        file = find_recipe(own.recipe or DEFAULT_RECIPE)
        return file, Path(own.run or f"runs/{file.stem}-{time.strftime('%Y%m%d-%H%M%S')}")
    if own.recipe or own.run is not None:
        raise ValueError(
            "--resume goes on in a run's own folder with its own settings: use it without --recipe and --run"
        )
    folder = Path(own.resume).parent if Path(own.resume).is_file() else Path(own.resume)
    if not folder.is_dir():
        raise ValueError(f"--resume {own.resume}: no run to go on with, {folder / 'config.yaml'} is missing")
    return folder / "config.yaml", folder


def make_run(
    settings: Settings,
    folder: Path,
    begin: float,
    *,
    resume: bool = False,
    ranks: Ranks = ALONE,
    tensorboard: bool = False,
) -> Run:
    """Everything that a run consists of, each part from the options that it reads."""
    network, pixels, compute, schedule = settings.network, settings.pixels, settings.compute, settings.schedule
    device = ranks.own(choose_device(compute.device))
    for name, wanted in (("cuda_graph", compute.cuda_graph == "on"), ("decoder gpu", pixels.decoder == "gpu")):
        if wanted:  # said now, and not after the images have been drawn or decoded
            require_cuda(name, device)
    dataset = open_dataset(settings.data, network.size)
    with ranks.in_turns() if settings.data.synthetic_persons else nullcontext():
        train, valid = dataset.read("train"), dataset.read("valid")
    check_sense(train, valid)
    scorer, skeleton = dataset.scorer(valid), valid.skeleton
    if (hard := settings.targets.hard_joints) > skeleton.num_joints:
        most = f"expected at most the {skeleton.num_joints} joints of skeleton {skeleton.name!r}"
        raise OptionError("hard_joints", f"{most}, got {hard}")
    train_loader = make_loader(
        train,
        network,
        pixels,
        compute,
        device,
        batch_size=schedule.batch_size,
        augmentation=settings.augmentation,
        seed=schedule.seed,
        ranks=ranks,
    )
    valid_loader = make_loader(
        valid, network, pixels, compute, device, batch_size=schedule.eval_batch_size, ranks=ranks
    )
    scorer.needs(to_train=True)
    mirrors = settings.augmentation.flip > 0 or settings.decode.flip_test
    # Of names with sides check_sense has warned, with the pairs.
    if mirrors and (doubt := doubt_about_pairs(skeleton)):
        log.warning("%s", doubt)
    saved = resume and ranks.same(lambda: has_checkpoint(folder))
    if saved:  # its weights come next, so that no other file is needed
        network = dataclasses.replace(network, weights="", backbone_weights="")
    model = make_network(
        network,
        skeleton,
        device,
        seed=schedule.seed,
        memory_format=compute.memory_format(device),
        to_train=True,
    )
    # With batch normalisation over all ranks a part does not matter.
    parts = 1 if compute.sync_batch_norm else ranks.count
    check_batches(train_loader.epoch_size, settings, model, parts, any_part=train_loader.by_image and parts > 1)
    return Run(
        folder,
        str(network),
        settings.as_plain(),
        schedule,
        settings.targets,
        compute,
        train_loader,
        valid_loader,
        scorer,
        Decoder(model, skeleton, settings.decode, compute, udp=network.udp, simcc=network.simcc),
        begin=begin,
        resume=completed if resume else None,
        tensorboard=tensorboard,
    )


def check_batches(
    persons: int, settings: Settings, model: nn.Module, parts: int = 1, *, any_part: bool = False
) -> None:
    """Refuses training batches of one person that the network cannot train on, before the epoch whose last step may
    have the only one: batch normalisation needs more than one value per channel. A ResNet's last layers have one at
    32 x 32 px, and what is behind global pooling at any size.

    `parts`: into how many a batch is divided, equally or, with `any_part`, in any way.
    """
    network, batch_size = settings.network, settings.schedule.batch_size
    sizes = {size // parts for size in (batch_size, persons % batch_size)} | ({1} if any_part else set())
    sizes |= {-(-size // parts) for size in (batch_size, persons % batch_size)}
    if 1 not in sizes:
        return
    if network.of_fastpose and network.size == (32, 32):
        reason = "too little for batch normalisation"
    else:
        reason = check_trains_on(model, 1, network.size)
    if reason:
        of_ranks = f" over {parts} ranks" if parts > 1 else ""
        raise OptionError(
            "batch_size",
            f"{persons} persons in batches of {batch_size}{of_ranks} leave a batch of one, which {network} "
            f"cannot train on at size {network.size[0]} {network.size[1]}: choose another --batch_size or a larger "
            f"--size ({reason})",
        )


if __name__ == "__main__":
    sys.exit(main())
