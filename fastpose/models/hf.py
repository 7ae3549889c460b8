# SPDX-License-Identifier: Apache-2.0
"""Pose networks of Hugging Face's transformers: ViTPose and Sapiens2, by name, from a config or from a folder.

The code that runs is that of the installed package. Of a config numbers are read and two texts, of safetensors tensors:
nothing in a folder is executed, and nothing is downloaded.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastpose.files import read_file, some_of
from fastpose.models.safetensors_file import plain_values
from fastpose.option import OptionError

PREFIX = "hf:"
# The class of each model_type; their forward returns `.heatmaps`.
CLASSES = {"vitpose": "VitPoseForPoseEstimation", "sapiens2": "Sapiens2ForPoseEstimation"}
# Hidden size, layers, attention heads: mmpose's ViTPose with the classic head, and Sapiens2's pose networks.
_VITPOSE = {"s": (384, 12, 12), "b": (768, 12, 12), "l": (1024, 24, 16), "h": (1280, 32, 16)}
_SAPIENS2 = {"0.4b": (1024, 24, 16), "0.8b": (1280, 32, 16), "1b": (1536, 40, 24), "5b": (2432, 56, 32)}
# The last layers of Sapiens2's heads: of the two small ones, and of the two large ones.
_SAPIENS2_HEADS = (([1024, 768], [512, 512, 256]), ([1536, 1024], [768, 512, 256]))


def _vitpose(hidden: int, layers: int, heads: int) -> dict[str, Any]:
    backbone = {"model_type": "vitpose_backbone", "hidden_size": hidden, "num_hidden_layers": layers}
    backbone |= {"num_attention_heads": heads, "image_size": [256, 192]}
    return {"model_type": "vitpose", "use_simple_decoder": False, "backbone_config": backbone}


def _sapiens2(hidden: int, layers: int, heads: int) -> dict[str, Any]:
    upsample, convolutions = _SAPIENS2_HEADS[hidden > 1280]
    return {
        "model_type": "sapiens2",
        "image_size": [1024, 768],
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_attention_heads": heads // 2,
        "layerscale_value": 1e-4,
        "pos_embed_rescale": None,  # upstream trains pose without it, where transformers' default would rescale
        "head_config": {"upsample_out_channels": upsample, "conv_out_channels": convolutions},
    }


NAMED: dict[str, dict[str, Any]] = {
    **{f"vitpose-{size}": _vitpose(*numbers) for size, numbers in _VITPOSE.items()},
    **{f"sapiens2-{size}": _sapiens2(*numbers) for size, numbers in _SAPIENS2.items()},
}


# What is a number in every config. A file may not ask for a network that takes hours to make.
_NUMBERS = {
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_attention_heads",
}
_NUMBERS |= {"image_size", "patch_size", "num_channels", "mlp_ratio", "num_experts", "part_features", "scale_factor"}
_MOST_LAYERS = 256
_MOST = {"num_hidden_layers": _MOST_LAYERS, "num_experts": 64}


def is_hf(model: str) -> bool:
    """Whether option `model` names a network of transformers."""
    return model.startswith(PREFIX)


def shown(model: str) -> str:
    """Option `model` for messages: a whole config is too long for them."""
    if not model.startswith(PREFIX + "{"):
        return model
    kind = next((kind for model_type, kind in CLASSES.items() if f'"{model_type}"' in model), "network")
    return f"{kind} of transformers"


def settled(model: str) -> tuple[str, Path | None]:
    """What `hf:CONFIG_OR_FOLDER` stands for, without the folder: a run's own config and checkpoints then have all that
    the network is made from.

    Returns:
        ``hf:NAME`` or ``hf:{…}``, a config as JSON in one line; and the file of weights in the folder, None if there is
        none.

    Raises:
        OptionError: it is neither a path nor a name, no config of a known network, or the weights are in files of
            another kind.
    """
    text = model.removeprefix(PREFIX)
    if text in NAMED or text.startswith("{"):
        return PREFIX + _text_of(config_of(model)) if text.startswith("{") else model, None
    try:
        path = Path(text).expanduser()
        file = path / "config.json" if path.is_dir() else path
        found = file.is_file()
    except (RuntimeError, OSError):  # no such home, a name that is too long
        found = False
    if not found:
        raise OptionError(
            "model",
            f"expected hf: and a folder with config.json, such a file, or one of {', '.join(NAMED)}, got "
            f"{text[:80]!r}: nothing is downloaded here: hf download ORGANISATION/NAME --local-dir FOLDER",
        )
    try:
        config = _checked(plain_values(read_file(file).decode()))
    except (ValueError, RecursionError) as error:
        raise OptionError("model", f"{file}: {getattr(error, 'text', error)}") from error
    weights = path / "model.safetensors" if path.is_dir() else None
    if weights is not None and not weights.is_file():
        others = sorted(one.name for one in path.iterdir() if re.search(r"\.(bin|pth|h5|safetensors)\b", one.name))
        if others:
            raise OptionError(
                "model",
                f"expected the weights of {path} in one model.safetensors, got {', '.join(others)[:120]}: "
                "transformers' save_pretrained writes it",
            )
        weights = None
    return PREFIX + _text_of(config), weights


def config_of(model: str) -> dict[str, Any]:
    """The config of a settled `model`.

    Raises:
        OptionError: there is no such name, or the text is no config.
    """
    text = model.removeprefix(PREFIX)
    if text in NAMED:
        return NAMED[text]
    if not text.startswith("{"):
        raise OptionError("model", f"expected hf: and one of {', '.join(NAMED)}, or a config, got {text[:80]!r}")
    try:
        return _checked(plain_values(text))
    except OptionError:
        raise
    except (ValueError, RecursionError) as error:
        raise OptionError("model", f"expected hf: and a config as JSON, got {text[:40]!r} ({error})") from error


def image_size(model: str) -> tuple[int, int] | None:
    """Height and width that a config is for; None if it does not say."""
    config = config_of(model)
    size = config.get("backbone_config", config).get("image_size")
    if isinstance(size, list) and len(size) == 2 and all(type(side) is int for side in size):
        return size[0], size[1]
    return (size, size) if type(size) is int else None


def hf_network(
    model: str,
    num_joints: int,
    size: tuple[int, int],
    *,
    drop_path: float = 0.0,
    state: Mapping[str, Tensor] | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a settled `model`, from images [B, 3, H, W] to heatmaps [B, K, H/4, W/4].

    It is transformers' own module, with its names of parameters, except that `forward` returns the heatmaps alone.

    Args:
        model: see `settled`.
        num_joints: K.
        size: H and W; a config's own does not matter.
        drop_path: share of a sample's residual branches that are left out in training. In ViTPose it rises evenly from
            0 in the first layer, as in mmpose; Sapiens2 has the same in all.
        state: weights to begin with, by transformers' names or those in which Sapiens2 is published; None: random.

    Returns:
        The network, and what transformers reports of loading: missing, unexpected and mismatched names.

    Raises:
        OptionError: the package is missing or has no such network, or the config cannot be used.
    """
    transformers = _transformers()
    config = config_of(model)
    kind = getattr(transformers, name := CLASSES[config["model_type"]], None)
    if kind is None:
        raise OptionError(
            "model", f"transformers {transformers.__version__} has no {name}: pip install -U transformers"
        )
    try:
        made = _config(transformers, kind, config, num_joints, size)
        if hasattr(made, "drop_path_rate"):
            made.drop_path_rate = drop_path
        if state is None:
            network, report = kind(made), {}
        else:
            with _quiet(transformers):
                network, report = kind.from_pretrained(
                    None,
                    config=made,
                    state_dict=dict(state),
                    dtype=torch.float32,
                    ignore_mismatched_sizes=True,
                    output_loading_info=True,
                )
    except Exception as error:  # transformers' own kinds of error among them
        reason = " ".join(str(error).split())[:300]
        raise OptionError("model", f"{shown(model)}: its config fails: {type(error).__name__}: {reason}") from error
    if drop_path and not hasattr(made, "drop_path_rate"):
        layers = network.backbone.encoder.layer
        for index, layer in enumerate(layers):
            rate = drop_path * index / max(1, len(layers) - 1)
            layer.attention.register_forward_hook(_dropping(rate))
            layer.mlp.register_forward_hook(_dropping(rate))
    # Only now: for classes that are not its own transformers does not know the names in published files.
    network.__class__ = _returning_heatmaps(kind, experts=_experts(config) > 1)
    return network.train(), report


def load_hf_network(
    model: str,
    num_joints: int,
    size: tuple[int, int],
    path: Path,
    state: Mapping[str, Tensor],
    *,
    drop_path: float = 0.0,
    new_joints: bool = False,
) -> tuple[nn.Module, str]:
    """`hf_network` with weights, of which all must fit.

    Args:
        model, num_joints, size, state, drop_path: see `hf_network`.
        path: the file that the weights are from, for messages.
        new_joints: the file's number of joints may be another; the last layer then starts from random weights.

    Returns:
        The network, and one line that says what was loaded and what was not.

    Raises:
        OptionError: see `hf_network`.
        ValueError: parameters are missing, unexpected or of another shape; lists them.
    """
    network, report = hf_network(model, num_joints, size, drop_path=drop_path, state=state)
    missing = [name for name in report["missing_keys"] if not name.endswith("num_batches_tracked")]
    other = {name: (list(found), list(wanted)) for name, found, wanted in report["mismatched_keys"]}
    layers = {name.rpartition(".")[0] for name in other}
    new = new_joints and len(layers) == 1 and all(w[0] == num_joints and f[1:] == w[1:] for f, w in other.values())
    problems = {
        "missing": missing,
        "unexpected": report["unexpected_keys"],
        "of another shape": [] if new else [f"{name} {found} for {wanted}" for name, (found, wanted) in other.items()],
    }
    if any(problems.values()):
        listed = "; ".join(
            f"{len(names)} {what}: {some_of(sorted(names), 8)}" for what, names in problems.items() if names
        )
        made_for = image_size(model)
        hint = f"; its config is for --size {made_for[0]} {made_for[1]}" if made_for and made_for != size else ""
        raise ValueError(f"{path}: does not fit {shown(model)}: {listed}{hint}")
    count = sum(parameter.numel() for name, parameter in network.named_parameters() if name not in other)
    kept = f"; for {num_joints} joints new: {some_of(sorted(other), 8)}" if other else ""
    return network, f"{path}: loaded {count:,} parameters into {shown(model)}{kept}"


def _transformers() -> Any:
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise OptionError(
            "model",
            f"hf: needs the packages of the extra hf: pip install transformers safetensors ({error})",
        ) from error


def _checked(config: Any) -> dict[str, Any]:
    """The part of a config that describes the network: numbers, and the names of the network and its activation. Other
    texts may name code, files or downloads, and are left out; so are joints, which are the skeleton's."""
    if not isinstance(config, dict) or config.get("model_type") not in CLASSES:
        got = config.get("model_type") if isinstance(config, dict) else config
        raise OptionError("model", f"expected a config with model_type {' or '.join(CLASSES)}, got {str(got)[:60]!r}")
    kept = _plain(config)
    part = {"vitpose": "backbone_config", "sapiens2": "head_config"}[config["model_type"]]
    if not isinstance(config.get(part), dict):
        raise OptionError("model", f"expected a config with a {part}, got {type(config.get(part)).__name__}")
    kept[part] = _plain(config[part])
    if part == "backbone_config" and kept[part].get("model_type") != "vitpose_backbone":
        raise OptionError(
            "model", f"expected a backbone_config of vitpose_backbone, got {str(kept[part].get('model_type'))[:60]!r}"
        )
    return kept


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in config.items():
        if name in _NUMBERS and not (_is_number(value) or isinstance(value, list)):
            raise OptionError("model", f"expected numbers as {name} of the config, got {str(value)[:40]!r}")
        if isinstance(value, list) and len(value) > _MOST_LAYERS:
            raise OptionError(
                "model", f"expected at most {_MOST_LAYERS} numbers as {name} of the config, got {len(value)}"
            )
        most = _MOST.get(name)
        if most is not None and isinstance(value, (int, float)) and value > most:
            raise OptionError("model", f"expected at most {most} as {name} of the config, got {value}")
    return {
        name: value
        for name, value in config.items()
        if _is_number(value)
        or (isinstance(value, str) and name in ("model_type", "hidden_act"))
        or (isinstance(value, list) and all(map(_is_number, value)))
    }


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float))


def _text_of(config: Mapping[str, Any]) -> str:
    return json.dumps(config, sort_keys=True, separators=(",", ":"))


def _experts(config: Mapping[str, Any]) -> int:
    return config.get("backbone_config", {}).get("num_experts") or 1


def _config(transformers: Any, kind: Any, config: dict[str, Any], num_joints: int, size: tuple[int, int]) -> Any:
    """The config object: what the class declares itself of it, at this size and for these joints."""

    def declared(made_by: Any, values: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in values.items() if name in made_by.__annotations__ and name[0] != "_"}

    values = declared(kind.config_class, config)
    if config["model_type"] == "vitpose":
        backbone = declared(transformers.VitPoseBackboneConfig, config["backbone_config"]) | {"image_size": size}
        last = backbone.get("num_hidden_layers", 12)
        values["backbone_config"] = transformers.VitPoseBackboneConfig(**backbone, out_indices=[last])
    else:
        head = type(kind.config_class(head_config={}).head_config)
        values |= {"head_config": declared(head, config["head_config"]), "image_size": size}
    return kind.config_class(**values, num_labels=num_joints)


def _returning_heatmaps(kind: Any, *, experts: bool) -> Any:
    """A class like `kind`, whose `forward` returns the heatmaps. Of ViTPose++'s experts, one per data set that it was
    trained on, the first one computes, COCO's."""

    def forward(self: nn.Module, images: Tensor) -> Tensor:
        more = {"dataset_index": images.new_zeros(len(images), dtype=torch.int64)} if experts else {}
        return kind.forward(self, images, **more).heatmaps

    return type(kind.__name__, (kind,), {"forward": forward})


def _dropping(rate: float) -> Any:
    def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        if not module.training or not rate:
            return output
        kept = torch.rand(len(output), 1, 1, device=output.device) >= rate
        return output * kept / (1.0 - rate)

    return hook


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Leaves out transformers' own progress bar and table: `load_hf_network` says it in a line."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
