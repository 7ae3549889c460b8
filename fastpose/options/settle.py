# SPDX-License-Identifier: Apache-2.0
"""From what was asked for to what is in effect: `settle`, in one place and one pass."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, get_args

from fastpose.data.dataset import DATA_FILES, DATA_READING, LAYOUT, DataOptions, Split, named_files
from fastpose.data.datasets import DATASETS, dataset_named, dataset_with_joints, is_mixture
from fastpose.data.pack.format import PackError, is_pack, margins_of, read_index
from fastpose.ending import print_log
from fastpose.files import MOST_ENTRIES, files_in, read_yaml, some_of
from fastpose.models.checkpoint import CheckpointError
from fastpose.models.hf import NAMED, image_size, is_hf, settled
from fastpose.models.network import check_pose_network, color_order_of_weights, is_own_code
from fastpose.models.weights import Weights
from fastpose.ops.decode_simcc import REFINEMENTS as SIMCC_REFINEMENTS
from fastpose.ops.decode_simcc import refinement
from fastpose.option import OptionError, typed
from fastpose.options.asked import find_recipe, naming, read_recipe
from fastpose.options.settings import DEFAULTS, FIELDS, Settings
from fastpose.skeletons import SKELETONS

# What options were, in effect, before they existed: for the checkpoints and config.yaml files of older runs.
BEFORE: dict[str, Any] = {"reduced_decode": False, "color_order": "rgb", "targets": "heatmap"}
AS_THE_FILE_SAYS = ("model", "skeleton")  # what an empty value of these means where there is a file of weights
OF_DATA = frozenset(field.name for field in dataclasses.fields(DataOptions))
PATHS = ("skeleton", "backbone_weights", "weights")  # files that are not below the data root


def settle(
    asked: Mapping[str, Any],
    *,
    recipe: Mapping[str, Any] | None = None,
    run: Mapping[str, Any] | None = None,
    weights: Weights | None = None,
    instead: Mapping[str, Any] | None = None,
    called: Mapping[str, str] | None = None,
    reads_data: bool = True,
    trust_model: bool = False,
) -> Settings:
    """The settings in effect. What comes first in this list wins:

    1. `asked`: the command line. A name that is not in it was not asked for.
    2. `recipe`: a recipe.
    3. `instead`: what the command takes unless it was asked for, whatever the training had.
    4. `run`, the config of a run that goes on, or `weights`, a checkpoint: what that training had. For another
       program's file it is what the file says, and what is usual for its joints.
    5. the defaults, which are the paper's settings.

    Files and joints that a level names do not count where one above it names another data set. Then the data root
    becomes absolute; files that nobody named get the names of the data set's layout; the colour order is that of the
    weights to begin with; head and targets follow from each other where only one is named, and SimCC's vectors are not
    refined unless that is asked for. A pack brings the names of its data, which is printed: asking for others is an
    error, and so are others in a recipe or in what is inherited, except the usual names: runs have these that named
    none. A pack of a list of sets is other data than a recipe or what is inherited are for, unless they name that list.

    A network of the user's own is code that will run, and whoever wrote a file must not choose it: a `model` that only
    a file names is refused. A network of transformers runs the installed package's code alone, so a file may name it;
    `model` then becomes its config, so that a run needs the folder no more.

    Args:
        asked, recipe, run, weights, instead: see above; values by their flat names.
        called: what the command calls options for which it has other names, for messages; empty for those that it does
            not have.
        reads_data: whether the command reads the data set; otherwise a pack in the data root does not matter.
        trust_model: accept a `model` that only a file names; or no network is made.

    Raises:
        OptionError: a value cannot be used.
        FileNotFoundError: a file of weights does not exist.
        CheckpointError: the checkpoint's config does not fit this version of fastpose.
        PackError: the pack in the data root is unfinished or damaged, or of other data; names the option.
        ValueError: the weights are another program's, and their network or joints must be named.
    """
    wanted = {**(recipe or {}), **asked}
    inherited: dict[str, Any] = {}
    if run is not None:
        inherited = {**BEFORE, **run}
    elif weights is not None:
        wanted = {name: value for name, value in wanted.items() if value or name not in AS_THE_FILE_SAYS}
        inherited = _trained_with(weights, wanted)
    levels = [wanted] if recipe is None else [asked, recipe]
    named = _of_one_data_set(*levels, {**inherited, **(instead or {})})
    values = {**DEFAULTS, **named}
    for level in (asked, recipe or {}):
        if not level.keys().isdisjoint(("model", "head", "targets")):
            values |= _head_and_targets(level, values)
            break
    try:
        if isinstance(values["model"], str) and is_hf(values["model"]):
            found = _of_transformers(values, wanted, weights, begins=run is None and weights is None)
            values |= {name: value for name, value in found.items() if name == "model" or name not in wanted}
        settings = Settings.of(values)
    except (TypeError, OptionError) as error:
        if weights is not None and _is_inherited(error, wanted):
            raise CheckpointError(f"{weights.path}: does not fit this version of fastpose: {error}") from error
        raise

    model = settings.network.model
    if settings.network.own_code and model != asked.get("model") and not trust_model:
        file = weights.path if weights else "the file"
        reason = f"{file} names the network {model}, whose code would run: if you trust it, "
        raise OptionError("model", f"{reason}add --model {model} or --trust_model")

    # Only now that each value by itself is good: how they go together.
    values["targets"] = "simcc" if settings.network.returns_vectors else "heatmap"
    if settings.network.simcc is not None:
        values["refine"] = _refinement_of_vectors(settings, asked_for="refine" in named)
    kind = dataset_named(settings.data.dataset)
    if is_mixture(settings.data.dataset):
        values["dataset"] = _absolute(settings.data.dataset)
        _check_lists_sets(Path(values["dataset"]))
        root = settings.data.data_root or str(Path(values["dataset"]).parent)
    else:
        root = settings.data.data_root or os.environ.get("FASTPOSE_DATA_ROOT") or f"data/{settings.data.dataset}"
    values["data_root"] = str(Path(root).expanduser().resolve())
    values |= named_files(values, kind.layout)
    for name in PATHS:
        if values[name] and not (name == "skeleton" and values[name] in SKELETONS):
            values[name] = str(Path(values[name]).expanduser().resolve())
    if settings.network.color_order == "auto":
        of_weights = weights.color_order if weights else color_order_of_weights(settings.network)
        values["color_order"] = of_weights or "rgb"
    if reads_data and not values["synthetic_persons"] and not is_mixture(values["dataset"]):
        _check_data_are_there(Path(values["data_root"]), values, named)
    if reads_data and is_pack(Path(values["data_root"])):
        others = {name: value for name, value in named.items() if name not in asked}
        values |= _packed(values, asked, others, called or {})
    return Settings.of(values)


def settle_for(root: str, recipe: str, asked: Mapping[str, Any]) -> Settings:
    """The settings of a training on the data in `root`, a folder or a list of several sets, for commands that make no
    network: those of a recipe, a name or a file, or without one the defaults, except what was asked for.

    Raises:
        ValueError, OSError: see `find_recipe`, `read_recipe` and `settle`; names the recipe's file if a value is its.
    """
    file = find_recipe(recipe) if recipe else None
    values = read_recipe(file) if file else {}
    try:
        return settle({**asked, **data_option(root, asked)}, recipe=values, trust_model=True)
    except OptionError as error:
        raise ValueError(naming(error, file, values, asked)) from error


def data_option(root: str, asked: Mapping[str, Any]) -> dict[str, str]:
    """The option that `root` is a value of: a folder, or a list of several sets. OptionError if it is a list, and a
    format is asked for."""
    if not is_mixture(root):
        return {"data_root": root}
    if asked.get("dataset", root) != root:
        raise OptionError(
            "dataset", f"{asked['dataset']} is the format of a folder, got the file {root}: name its folder"
        )
    return {"dataset": root}


def _check_lists_sets(file: Path) -> None:
    """Raises OptionError if a YAML file has the name of a format's own, and does not list data sets."""
    for name, kind in DATASETS.items():
        if file.name == kind.layout["train_annotations"] and file.is_file():
            contents = read_yaml(file, number_keys=True)
            if not isinstance(contents, dict) or "sets" not in contents:
                raise OptionError(
                    "dataset", f"{file} has no sets: if it is that of a data set, name its folder, and --dataset {name}"
                )


def _check_data_are_there(root: Path, values: Mapping[str, Any], named: Collection[str]) -> None:
    """Raises OptionError if no annotations are there because the data root is a file, or because nobody named a format
    or files and the folder has those of another. Whatever else is missing is an error where it is read."""
    files = [f"{split}_annotations" for split in get_args(Split)]
    if is_pack(root) or any((root / values[name]).is_file() for name in files):
        return
    if root.is_file():
        about = "; a list of several sets is a value of --dataset" if is_mixture(root.name) else ""
        raise OptionError("data_root", f"expected the folder of a data set, got a file: {root}{about}")
    if not {"dataset", *files}.isdisjoint(named):
        return
    absent = f"without it {root} is in the format {values['dataset']}, whose {values['train_annotations']} is not there"
    for name, kind in DATASETS.items():
        if (root / (file := kind.layout["train_annotations"])).is_file():
            raise OptionError("dataset", f"{absent}; there is {file}: add --dataset {name}")
    if found := _annotations_in(root):
        raise OptionError(
            "dataset", f"{absent}; there is {some_of(found)}: name the format, and the files of annotations"
        )


_ENDINGS = (".json", ".mat", ".csv", ".slp", ".h5", ".yaml", ".yml")  # of annotations
_MOST_FOLDERS = 100  # that are looked into


def _annotations_in(root: Path) -> list[str]:
    """The files in a folder, and in those in it, that may be annotations; relative to it."""
    found = files_in(root, _ENDINGS)
    with contextlib.suppress(OSError), os.scandir(root) as entries:
        seen = itertools.islice(entries, MOST_ENTRIES)
        folders = (entry for entry in seen if entry.is_dir() and not entry.name.startswith("."))
        for folder in itertools.islice(folders, _MOST_FOLDERS):
            found += [f"{folder.name}/{name}" for name in files_in(Path(folder.path), _ENDINGS)]
    return sorted(found)


def _of_one_data_set(*levels: Mapping[str, Any]) -> dict[str, Any]:
    """The values of all levels, of which the first wins; without the files and joints that a level names for another
    data set than one above it. If one of the two is a list of several sets, without anything that it says of data: a
    list has options of its own for each set.
    """
    named: dict[str, Any] = {}
    for level in reversed(levels):
        before, now = (_absolute(values.get("dataset", "")) for values in (named, level))
        if now not in ("", before):
            of_other: Collection[str] = (*DATA_FILES, "skeleton") if before else ()
            if is_mixture(before) or (is_mixture(now) and _names_data(named)):
                of_other = OF_DATA
            named = {name: value for name, value in named.items() if name not in of_other}
        named |= level
    return named


def _absolute(dataset: Any) -> Any:
    """A value of option `dataset`, such that one list of sets has one value however its path is spelled."""
    return str(Path(dataset).expanduser().resolve()) if is_mixture(dataset) else dataset


def _names_data(values: Mapping[str, Any]) -> bool:
    """Whether values are for a data set: they name it or, for the usual one, where its files are."""
    return any(values.get(name) for name in (*DATA_FILES, "data_root", "synthetic_persons"))


def _head_and_targets(level: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, str]:
    """Head and targets where `level`, the command line or a recipe, names one of them or the network."""
    of_others = isinstance(values["model"], str) and is_own_code(values["model"])
    if "targets" not in level:  # a network of the user's own keeps what it was said to return
        return {} if of_others else {"targets": "auto"}
    if "head" in level or values["model"] or level["targets"] not in ("heatmap", "simcc"):
        return {}
    if level["targets"] == "simcc":
        return {"head": "simcc"}
    return {"head": DEFAULTS["head"]} if values["head"] == "simcc" else {}


def _refinement_of_vectors(settings: Settings, *, asked_for: bool) -> str:
    """How SimCC's vectors are refined: as was asked for, else not.

    Raises:
        OptionError: an option does not go with them.
    """
    simcc, refine, hard = settings.network.simcc, settings.decode.refine, settings.targets.hard_joints
    assert simcc is not None
    if hard:
        raise OptionError("hard_joints", f"expected 0 with SimCC's vectors, it is for heatmaps, got {hard}")
    if refine not in SIMCC_REFINEMENTS:
        if asked_for:
            raise OptionError(
                "refine", f"SimCC's vectors are refined by {' or '.join(SIMCC_REFINEMENTS)}, got {refine}"
            )
        return "none"
    try:
        refinement(refine, simcc.sigma)
    except ValueError as error:
        raise OptionError("simcc_sigma", str(error)) from None
    return refine


def _of_transformers(
    values: Mapping[str, Any], wanted: Mapping[str, Any], weights: Weights | None, *, begins: bool
) -> dict[str, Any]:
    """What `--model hf:` stands for: the config itself, in place of the file that has it, the size it is for, unless a
    run or a checkpoint has another, and, if a training `begins`, the folder's weights."""
    name = values["model"].removeprefix("hf:")
    if begins and name in NAMED and Path(name).is_dir():
        raise OptionError("model", f"{name} is the name of a network and a folder here: hf:./{name} is the folder")
    model, file = settled(values["model"])
    found: dict[str, Any] = {"model": model}
    if begins or (weights is not None and weights.checkpoint is None):
        found["size"] = image_size(model) or values["size"]
    if begins and not wanted.get("weights"):
        if file is not None:
            found["weights"] = str(file)
        elif not name.startswith("{") and Path(name).is_dir():
            print_log(f"no model.safetensors in {name}: random weights")
    return found


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a run of any version, as plain values in today's spelling: what it does not name was, in effect, as
    here.

    Raises:
        OptionError, TypeError: see `Settings.of`.
    """
    values = {**DEFAULTS, **BEFORE, **config}
    typed("dataset", values["dataset"], str)
    values |= named_files(values, dataset_named(values["dataset"]).layout)
    return Settings.of(values).as_plain()


def _is_inherited(error: Exception, wanted: Mapping[str, Any]) -> bool:
    return not (isinstance(error, OptionError) and error.option in wanted)


def _trained_with(weights: Weights, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """What the network of a file was trained with, as far as the file says."""
    if weights.checkpoint is not None:
        config = {**BEFORE, **weights.checkpoint["config"]}
        if config.get("decoder") == "gpu":  # which reduces nothing; what evaluates now may
            config["reduced_decode"] = False
        return config | {"color_order": weights.color_order}
    if not wanted.get("model"):
        check_pose_network("checkpoint", weights)
    dataset = wanted.get("dataset") or dataset_with_joints(weights.num_joints, named=bool(wanted.get("skeleton")))
    found: dict[str, Any] = {
        "dataset": dataset,
        "color_order": weights.color_order or "rgb",
        "reduced_decode": False,
        "size": dataset_named(dataset).input_size,
    }
    found |= {name: value for name in ("model", "depth", "head", "channels") if (value := getattr(weights, name))}
    if weights.bins is not None:
        ratio = wanted.get("split_ratio", DEFAULTS["split_ratio"])
        return found | {"size": tuple(round(count / ratio) for count in weights.bins)}
    # Only the name says the size; SimpleBaselines and mmpose name files so, height first. The sides of all their
    # networks are multiples of 16.
    named = re.search(r"(?<!\d)(\d{2,4})x(\d{2,4})(?!\d)", weights.path.name)
    if named and not any(int(side) % 16 for side in named.groups()):
        found["size"] = (int(named[1]), int(named[2]))
    return found


def _packed(
    values: Mapping[str, Any], asked: Mapping[str, Any], others: Mapping[str, Any], called: Mapping[str, str]
) -> dict[str, Any]:
    """The data options of the pack in the data root; it also decides whether pixels are reduced.

    Empty head boxes stay empty: no PCKh is wanted. Of what is not asked for, a pack of a list of sets takes nothing
    that is for other data.
    """
    root = Path(values["data_root"])
    usual = {**DEFAULTS, **dataset_named(DEFAULTS["dataset"]).layout}
    packed = {name: read_index(root)["options"].get(name, usual[name]) for name in (*DATA_FILES, *DATA_READING)}
    if is_mixture(packed["dataset"]) and Path(others.get("dataset", "")).name != packed["dataset"]:
        names_data = _names_data({name: value for name, value in others.items() if name != "data_root"})
        of_other = OF_DATA - {"data_root"} if names_data else DATA_FILES  # a layout's files, which nobody named
        values = {**values, **{name: DEFAULTS[name] for name in of_other if name not in asked}}
        others = {name: value for name, value in others.items() if name not in of_other}
    if not values["head_boxes"]:
        packed["head_boxes"] = ""
    unusual = {name: value for name, value in others.items() if name in packed and value != usual[name]}
    named = {**unusual, **asked}
    for name, stored in packed.items():
        value = named.get(name, stored)
        if name in LAYOUT and not value:  # which stands for the layout's name
            continue
        if name == "dataset" and is_mixture(stored):  # of the list of sets a pack has the name alone
            value = Path(value).name
        if value != stored and called.get(name) != "":
            raise PackError(
                f"{called.get(name) or name}: the pack {root} has the data of {stored!r}, got {value!r}: "
                "name what it has, or pack the other"
            )
    other = [f"{n} {stored!r}" for n, stored in packed.items() if stored != values[n] and called.get(n) != ""]
    if other:
        print_log(f"the pack {root} has the data of {', '.join(other)}")
    of_data = {name: values[name] for name in OF_DATA} | packed
    return of_data | {"reduced_decode": values["reduced_decode"] and margins_of(root, "train").reduce}


assert not {"data_root", *LAYOUT, *PATHS} - FIELDS.keys()
