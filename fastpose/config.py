# SPDX-License-Identifier: Apache-2.0
"""Options of the commands: dataclasses whose fields become typed command-line options and keys of YAML recipes."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_type_hints

if TYPE_CHECKING:  # the engine needs options, but neither a command line nor YAML
    import jsonargparse

PACKAGE = Path(__file__).resolve().parent
DEFAULT_RECIPE = "synthetic_resnet18_fcn_128"

# What options were, in effect, before they existed: for the checkpoints and config.yaml files of older runs.
BEFORE = {"reduced_decode": False, "color_order": "rgb"}

# Where a data set has the files that the options do not name.
LAYOUTS = {
    "mpii": {
        "train_annotations": "annot/train.json",
        "valid_annotations": "annot/valid.json",
        "images": "images",
        "valid_images": "",
    },
    "coco": {
        "train_annotations": "annotations/person_keypoints_train2017.json",
        "valid_annotations": "annotations/person_keypoints_val2017.json",
        "images": "train2017",
        "valid_images": "val2017",
    },
}

Options = TypeVar("Options")


def option(default: Any, help: str, *, once: bool = False) -> Any:
    """A dataclass field with its line of help; the unit belongs into the help. `once`: a second time is an error."""
    return dataclasses.field(default=default, metadata={"help": help, "once": once})


@dataclass(frozen=True)
class TrainOptions:
    """Everything a training run depends on. The defaults are the paper's settings; mirroring is our addition.

    The train command without --recipe takes the values of DEFAULT_RECIPE instead.
    """

    data_root: str = option(
        "",
        "directory the data paths are relative to, or a pack (see fastpose pack), which holds all of the data; empty: "
        "the environment variable FASTPOSE_DATA_ROOT, else data/mpii or data/coco",
    )
    dataset: Literal["mpii", "coco"] = option(
        "mpii",
        "format of the annotations and score: MPII's and PCKh, or COCO's keypoints, with whichever joints a skeleton "
        "names, and AP (pip install 'fastpose[coco]')",
    )
    skeleton: str = option(
        "", "joints of a data set in COCO's format: a YAML file (see docs/skeletons.md); empty: the data set's own"
    )
    train_annotations: str = option(
        "",
        "training annotations: MPII .json (community) or .mat (official), or COCO .json; empty: annot/train.json, for "
        "COCO annotations/person_keypoints_train2017.json",
    )
    valid_annotations: str = option(
        "",
        "validation annotations, in the same formats; empty: annot/valid.json, for COCO "
        "annotations/person_keypoints_val2017.json",
    )
    head_boxes: str = option(
        "annot/gt_valid.mat", "head boxes of the validation .json for PCKh; not used with a .mat, which has its own"
    )
    detections: str = option(
        "",
        "a detector's boxes of persons, to evaluate COCO in: below data_root, in the format of "
        "COCO_val2017_detections_AP_H_56_person.json; empty: the annotations' own boxes, with which AP is some points "
        "higher than the published ones",
    )
    split_list: str = option(
        "",
        "text file that names the validation persons of a .mat, one IMAGE or IMAGE PERSON (from 0) per line; "
        "the rest is for training; empty with .json",
    )
    images: str = option(
        "",
        "directory of the images; empty: images; for COCO, where no annotations are named either, train2017 and, to "
        "evaluate, val2017",
    )
    valid_images: str = option("", "directory of the validation images; empty: that of `images`")
    missing_images: Literal["error", "drop"] = option("error", "what to do with annotations whose image is not there")
    on_bad_image: Literal["error", "skip"] = option(
        "error",
        "what to do with an image that cannot be decoded: stop with its name, or skip its persons, count and report",
    )
    synthetic_persons: int = option(
        0, "synthetic persons to generate in data_root unless they are there, count; 0: never"
    )
    synthetic_seed: int = option(0, "seed of the synthetic persons")

    model: str = option(
        "",
        "a network of one's own, PACKAGE.MODULE:FACTORY, called with the number of joints; it maps images [B, 3, H, W] "
        "to heatmaps [B, K, H/4, W/4]; empty: the ResNet that depth, head and channels describe",
    )
    depth: Literal[18, 34, 50, 101, 152] = option(50, "depth of the ResNet, layers")
    head: Literal["fcn", "deconv"] = option("fcn", "head: fcn (the paper's) or deconv (SimpleBaselines')")
    channels: int = option(256, "width of the head, channels")
    backbone_weights: str = option(
        "",
        "file with weights for the backbone alone: ImageNet's in torchvision's format, or any other ResNet that "
        "--weights takes; empty: random weights",
    )
    weights: str = option(
        "",
        "file with weights of the whole network to begin with: fastpose's, SimpleBaselines', mmpose's, or a state dict "
        "of --model; empty: none",
    )
    color_order: Literal["auto", "rgb", "bgr"] = option(
        "auto",
        "order of the colours that the network sees; auto: that of the file of weights to begin with, where there is "
        "one (SimpleBaselines' networks were trained on bgr), else rgb",
    )
    size: tuple[int, int] = option(
        (256, 256),
        "height and width of the network's input, pixels, multiples of 32 (with --model of 4); heatmaps have a quarter",
    )

    epochs: int = option(140, "length of the training, epochs")
    batch_size: int = option(32, "persons in a training batch, count")
    eval_batch_size: int = option(64, "persons in an evaluation batch, count")
    optimizer: Literal["rmsprop", "adam", "adamw"] = option("rmsprop", "optimiser: rmsprop (the paper), adam or adamw")
    lr: float = option(2.5e-4, "the optimiser's learning rate, per step")
    weight_decay: float = option(
        0.0, "the optimiser's weight decay, factor: of rmsprop and adam on the gradient, of adamw on the weights"
    )
    warmup_steps: int = option(0, "training steps over which the learning rate rises from 0 to lr, count; 0: none")
    lr_drop_factor: float = option(5.0, "what the learning rate is divided by when it drops, factor")
    lr_drop_patience: int = option(
        5, "evaluations without a better validation score after which the learning rate drops, once; count"
    )
    lr_drop_epochs: tuple[int, ...] = option(
        (), "numbers of finished epochs after which the learning rate drops, instead of on a plateau; counts"
    )
    sigma: float = option(1.0, "standard deviation of the target Gaussians, heatmap pixels")
    encoding: Literal["msra", "unbiased", "udp"] = option(
        "msra", "where target Gaussians are centred and cut off: msra (SimpleBaselines), unbiased (DARK) or udp"
    )
    refine: Literal["none", "quarter", "dark", "dark_udp"] = option(
        "quarter",
        "how a maximum is moved between pixels in evaluation: none, quarter (SimpleBaselines), dark, dark_udp",
    )
    blur_kernel: int = option(11, "side of the Gaussian that dark and dark_udp smooth with, heatmap pixels, odd")
    udp: bool = option(
        False, "unbiased data processing: crops and heatmaps are measured from first to last pixel centre"
    )
    joint_weights: bool = option(
        False,
        "weigh joints in the loss by the skeleton's weights (COCO: 1, 1.2 and 1.5), once; SimpleBaselines squares them",
    )
    missing: Literal["zeros", "ignore"] = option(
        "zeros", "supervision of joints without annotation: an all-zero heatmap (the paper), or none (SimpleBaselines)"
    )
    rotation: float = option(30.0, "largest rotation of the augmentation, degrees either way")
    scale_min: float = option(0.75, "smallest scaling of the person's box, factor")
    scale_max: float = option(1.25, "largest scaling of the person's box, factor")
    flip: float = option(0.5, "probability of mirroring a training sample, 0 to 1")
    half_body: float = option(
        0.0,
        "probability of cropping to the upper or the lower body, each as likely, of a person with more than 8 visible "
        "joints, 0 to 1",
    )
    brightness: float = option(0.0, "largest relative change of brightness in training, factor either way, 0 to 1")
    contrast: float = option(0.0, "largest relative change of contrast in training, factor either way, 0 to 1")
    saturation: float = option(0.0, "largest relative change of saturation in training, factor either way, 0 to 1")
    eval_every: int = option(1, "epochs from one evaluation to the next, count; the last epoch is always evaluated")
    target_pckh: float = option(
        0.0,
        "end the training when an evaluation reaches this score, mean PCKh@0.5 or COCO's AP, percent; 0: train all "
        "epochs",
    )
    flip_test: bool = option(True, "evaluate the picture and its mirror image and average their heatmaps")
    flip_shift: Literal["auto", "on", "off"] | bool = option(
        "auto", "shift the mirror image's heatmaps by a pixel before averaging; auto: on, off under udp"
    )
    seed: int = option(0, "seed of weights, order and augmentation; on the CPU equal seeds give equal bits")

    device: str = option("auto", "cpu, cuda, cuda:1, mps, xpu and so on; auto: cuda where there is one, else cpu")
    amp: Literal["auto", "off", "bfloat16"] = option(
        "auto",
        "type that convolutions run in: float32 (off; TF32 where torch.backends.cudnn.allow_tf32 has it so) or "
        "bfloat16 under autocast; auto: bfloat16 on GPUs of compute capability 8.0 or more, else off",
    )
    channels_last: Literal["auto", "on", "off"] | bool = option(
        "auto", "keep the network's tensors in channels-last order: on, off; auto: on for a GPU, off for the CPU"
    )
    foreach: Literal["auto", "on", "off"] = option(
        "auto",
        "let the optimiser update all weights with a few launches instead of one by one; auto: one launch of torch's "
        "fused kernel for adam and adamw; for rmsprop, which has none, on for a GPU, off for the CPU",
    )
    compile: bool = option(
        False, "compile the network with torch.compile, which takes about a minute when the training begins"
    )
    cuda_graph: Literal["auto", "on", "off"] | bool = option(
        "auto",
        "record a whole training step as a CUDA graph and replay it, which saves the host's work; GPUs only; batches "
        "of fewer than batch_size persons run without it; auto: off, until it has run on a GPU",
    )
    cudnn_benchmark: Literal["auto", "on", "off"] | bool = option(
        "auto",
        "let cuDNN try its algorithms for each convolution of the first training batch, and keep the fastest: "
        "torch.backends.cudnn.benchmark, for batches of batch_size persons; auto: off, until it has run on a GPU",
    )
    decoder: Literal["cpu", "gpu"] = option(
        "cpu",
        "what decodes JPEG files: threads on the CPU, or nvImageCodec on the GPU (pip install 'fastpose[gpu]'), whose "
        "pixels differ from the CPU's by a few grey levels",
    )
    reduced_decode: bool = option(
        True,
        "decode images at 1/2, 1/4 or 1/8 of their size where every crop shrinks them at least that much: quicker, and "
        "crops are less aliased; done by the CPU's decoder only; evaluation does as training did",
    )
    decode_threads: int = option(
        0, "threads that read and decode image files, count; 0: one per core for a GPU, 2 for the CPU, which trains too"
    )
    resident: bool = option(
        False,
        "keep the decoded images in the memory of the training device: decode each file once, before the first epoch",
    )
    prefetch: int = option(
        2,
        "batches prepared ahead of the one that trains, and steps that the host may be ahead of a GPU, count",
    )
    log_every: int = option(
        10,
        "training steps from one progress line, and one look for a loss that is not a number, to the next; count; "
        "where the output is no terminal, at most one line every ten seconds is shown",
    )

    def __post_init__(self) -> None:
        check_at_least(self, 1, "channels", "epochs", "batch_size", "eval_batch_size", "lr_drop_patience", "eval_every")
        check_at_least(self, 1, "prefetch", "log_every", "lr_drop_factor")
        check_at_least(self, 0, "synthetic_persons", "synthetic_seed", "seed", "warmup_steps", "decode_threads")
        for name in ("channels_last", "flip_shift", "cuda_graph", "cudnn_benchmark"):
            # Older runs have some of them so, and YAML's bare `on` is true.
            if isinstance(value := getattr(self, name), bool):
                object.__setattr__(self, name, "on" if value else "off")
        if self.detections and self.dataset == "mpii":
            raise ValueError(f"detections: goes with --dataset coco, got {self.detections!r} with MPII's format")
        if not 1 <= self.blur_kernel <= 255 or self.blur_kernel % 2 == 0:  # 255: what decode_heatmaps takes
            raise ValueError(f"blur_kernel: expected an odd number of pixels from 1 to 255, got {self.blur_kernel}")
        check_at_least(self, 0, "weight_decay", "half_body", "brightness", "contrast", "saturation")
        for name in ("lr", "sigma"):
            value = getattr(self, name)
            if not 0.0 < value < float("inf"):
                raise ValueError(f"{name}: expected a positive number, got {value}")
        step = 4 if self.model else 32
        if len(self.size) != 2 or any(side < step or side % step for side in self.size):
            raise ValueError(
                f"size: expected height and width, positive multiples of {step} pixels, got {list(self.size)}"
            )

    def with_files(self) -> TrainOptions:
        """These options, with the files and directories of the data set's own layout for those that are not named."""
        layout = LAYOUTS[self.dataset]
        names = ("train_annotations", "valid_annotations")
        if any(getattr(self, name) not in ("", layout[name]) for name in names):  # a layout of their own
            layout = layout | {"images": "images", "valid_images": ""}
        if self.images:
            layout = layout | {"valid_images": ""}
        named: dict[str, Any] = {name: getattr(self, name) or file for name, file in layout.items()}
        return dataclasses.replace(self, **named)

    def data_path(self, name: str) -> Path:
        """The file or directory that option `name` names, below the data root."""
        return self.resolved_data_root() / getattr(self.with_files(), name)

    def images_path(self, split: Literal["train", "valid"]) -> Path:
        """The directory of a split's images."""
        return self.data_path("valid_images" if split == "valid" and self.with_files().valid_images else "images")

    def resolved_data_root(self) -> Path:
        return (
            Path(self.data_root or os.environ.get("FASTPOSE_DATA_ROOT") or f"data/{self.dataset}")
            .expanduser()
            .resolve()
        )

    def as_plain(self) -> dict[str, Any]:
        """Plain values for YAML and checkpoints; paths are absolute, so that a run can go on from anywhere."""
        named = dataclasses.asdict(self.with_files())
        plain = {name: list(v) if isinstance(v, tuple) else v for name, v in named.items()}
        for name in ("skeleton", "backbone_weights", "weights"):
            if file := getattr(self, name):
                plain[name] = str(Path(file).expanduser().resolve())
        return plain | {"data_root": str(self.resolved_data_root())}


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """What there may be to say about a checkpoint's network, above all one of another program, whose file tells little,
    and how its heatmaps are decoded: the same for every command that uses it.

    None and empty stand for what the file tells or, where it does not, what is usual for its number of joints.
    """

    model: str = option("", "the network of the weights, PACKAGE.MODULE:FACTORY; empty: as the file tells")
    size: tuple[int, ...] = option(
        (),
        "height and width of the network's input, pixels; empty: as in training; of another program's file those in "
        "its name (384x288), else 256 256, where it has COCO's 17 joints 256 192",
    )
    dataset: Literal["mpii", "coco"] | None = option(
        None, "format of the annotations; not given: as in training; of another program's file MPII's for 16 joints"
    )
    skeleton: str = option(
        "", "joints of the network, a YAML file (see docs/skeletons.md); empty: as in training, or the data set's own"
    )
    color_order: Literal["rgb", "bgr"] | None = option(
        None, "order of the colours that the network sees; not given: as in training; bgr for SimpleBaselines' files"
    )
    udp: bool | None = option(
        None,
        "whether the network was trained with unbiased data processing, which no other program's file tells; not "
        "given: as in training, else false",
    )
    refine: Literal["none", "quarter", "dark", "dark_udp"] | None = option(
        None, "how a maximum is moved between pixels; not given: as in training, else quarter"
    )
    blur_kernel: int | None = option(
        None,
        "side of the Gaussian that dark and dark_udp smooth with, heatmap pixels, odd; not given: as in training, else "
        "11",
    )
    flip_shift: Literal["auto", "on", "off"] | None = option(
        None,
        "shift the mirror image's heatmaps by a pixel before averaging; auto: on, off under udp; not given: as in "
        "training, else auto",
    )

    def told(self) -> dict[str, Any]:
        """Those of these options that are given."""
        names = [field.name for field in dataclasses.fields(NetworkOptions)]
        return {name: value for name in names if (value := getattr(self, name)) not in (None, "", ())}


def check_at_least(options: object, least: float, *names: str) -> None:
    """Raises ValueError where one of the fields `names` is below `least`."""
    for name in names:
        if not getattr(options, name) >= least:
            raise ValueError(f"{name}: expected at least {least}, got {getattr(options, name)}")


def from_plain(cls: type[Options], plain: dict[str, Any]) -> Options:
    """The options that `TrainOptions.as_plain` wrote."""
    return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()})


def make_parser(prog: str, description: str, cls: type) -> jsonargparse.ArgumentParser:
    """A command-line parser with one option per field of the dataclass `cls`.

    Without jsonargparse, which commands and recipes alone need, the program ends with a line that names it.
    """
    try:
        import jsonargparse
    except ImportError as error:
        raise SystemExit(
            f"error: {prog} reads its options with jsonargparse, which cannot be imported ({error}): "
            "pip install jsonargparse"
        ) from None

    parser = jsonargparse.ArgumentParser(prog=prog, description=description)
    types = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kind = types[field.name]
        extra: dict[str, Any] = {}
        members = get_args(kind)
        if getattr(kind, "__origin__", None) is tuple:
            kind, extra = members[0], {"nargs": "*" if Ellipsis in members else len(members)}
        if field.default is dataclasses.MISSING:
            extra |= {"required": True} | ({"nargs": "+"} if "nargs" in extra else {})
        else:
            extra["default"] = list(field.default) if isinstance(field.default, tuple) else field.default
        parser.add_argument(f"--{field.name}", type=kind, help=field.metadata["help"], **extra)
    return parser


def parse(
    parser: jsonargparse.ArgumentParser, cls: type[Options], argv: Sequence[str], recipe: Path | None = None
) -> tuple[Options, dict[str, Any]]:
    """Parses `argv`, where --on-bad-image may stand for --on_bad_image. Returns options and what else is in it.

    A wrong option ends the program with a message and exit code 2, as argparse does. What is wrong in `recipe`, a file
    that `argv` names, is told with its name.
    """
    words = [underscored(word) for word in argv]
    names = [word.partition("=")[0] for word in words]
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        if field.metadata["once"] and names.count(f"--{field.name}") > 1:
            parser.error(f"{field.name}: given more than once: put all values behind one --{field.name}")
    held: dict[str, Any] = {}
    try:
        if recipe:
            held = read_recipe(recipe)
        values = parser.parse_args(words).as_dict()
        plain = {field.name: values.pop(field.name) for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        return from_plain(cls, plain), values
    except ValueError as error:
        parser.error(naming(recipe, error, held.keys() - {name[2:] for name in names}))


def read_recipe(path: Path) -> dict[str, Any]:
    """The options that a recipe gives, of their types; one by one, as with each other and with the command line's they
    are looked at when they make options.

    Raises:
        ValueError: the file is not YAML, or something in it is no option or no value for it; names the file.
    """
    import yaml

    parser = make_parser("fastpose train", "", TrainOptions)
    import jsonargparse  # there, as the parser is made

    parser.exit_on_error = False
    try:
        # Its loader takes 1e-3 for a number, which PyYAML's does not.
        given = jsonargparse.get_loader("yaml")(path.read_text(encoding="utf-8"))
        if not isinstance(given, dict):
            raise ValueError(f"expected lines of NAME: VALUE, got {str(given)[:40]!r}")
        for name, value in given.items():
            if name not in TrainOptions.__dataclass_fields__:
                raise ValueError(f"there is no option {name!r}")
            if value is None:
                raise ValueError(f"{name}: expected a value, got none")
            if isinstance(getattr(TrainOptions, name), tuple) and not isinstance(value, list):
                raise ValueError(f"{name}: expected a list, got {value!r}")
        return parser.parse_object(given, defaults=False).as_dict()
    except (ValueError, argparse.ArgumentError, yaml.YAMLError) as error:
        message = " ".join(str(error).replace('"<unicode string>", ', "").split())
        raise ValueError(f"{path}: {message}") from error


def naming(recipe: Path | None, error: ValueError, names: Collection[str]) -> str:
    """The message, with the recipe's file before it if it is about one of the options `names`, which are from there."""
    return f"{recipe}: {error}" if str(error).partition(":")[0] in names else str(error)


def run_command(
    name: str, description: str, cls: type[Options], run: Callable[[Options], int], argv: Sequence[str] | None
) -> int:
    """Parses the options of command `name` and runs it. Returns its exit code; after an error 1, with one line."""
    words = sys.argv[1:] if argv is None else argv
    given, _ = parse(make_parser(f"fastpose {name}", description, cls), cls, words)
    try:
        return run(given)
    except (ValueError, OSError, ArithmeticError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def underscored(word: str) -> str:
    """--on-bad-image=skip -> --on_bad_image=skip; other words stay."""
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value if name.startswith("--") else word


def recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name: beside it in a checkout, inside it in a wheel."""
    inside = PACKAGE / "recipes"
    return {
        path.stem: path for path in sorted((inside if inside.is_dir() else PACKAGE.parent / "train").glob("*.yaml"))
    }


def find_recipe(name: str) -> Path:
    """The file of a recipe given by name or by path.

    Raises:
        ValueError: there is no such recipe; the message lists those there are.
    """
    if name in recipes():
        return recipes()[name]
    if Path(name).is_file():
        return Path(name)
    raise ValueError(f"recipe {name!r} is neither a file nor one of: {', '.join(recipes())}")


def write_yaml(path: Path, plain: dict[str, Any]) -> None:
    """Writes plain options as YAML that `--recipe` reads."""
    import yaml

    path.write_text(yaml.safe_dump(plain, sort_keys=False), encoding="utf-8")
