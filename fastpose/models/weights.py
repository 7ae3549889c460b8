# SPDX-License-Identifier: Apache-2.0
"""Files of weights, ours and other programs': what they contain, and which networks it fits."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor, nn

from fastpose.files import some_of
from fastpose.models.checkpoint import FORMAT, check_checkpoint, read_contents, save_contents
from fastpose.models.hf import shown
from fastpose.models.pickles import Unknown
from fastpose.models.pose_resnet import Head, PoseResNet
from fastpose.models.resnet import resnet_depth
from fastpose.models.rtmpose import name_of

log = logging.getLogger(__name__)

ColorOrder = Literal["rgb", "bgr"]

_BACKBONE = ("conv1.", "bn1.", "layer1.", "layer2.", "layer3.", "layer4.")
_HEADS = ("fc.", "deconv_layers.", "fcn_layers.", "final_layer.", "mlp.", "gau.", "cls_x.", "cls_y.", "head.")
# What DataParallel, torch.compile and Lightning put before all names.
_WRAPPERS = ("module.", "_orig_mod.", "model.")
# mmpose's names of its parts, and the versions that have them. Our ResNets have none of them but "head.", of SimCC.
_MMPOSE = {"keypoint_head.": "mmpose 0.x", "head.": "mmpose 1.x", "backbone.": "mmpose"}
_TRANSFORMERS = {"backbone.embeddings.": "transformers"}  # which has a backbone and a head, too
# Where programs keep the state dict, the weights that were trained before their moving averages.
_STATE_DICTS = ("state_dict", "model_state_dict", "model", "net", "network", "ema", "state_dict_ema", "model_ema")
_ARCHITECTURES = {"stem.2.conv.": "CSPNeXt", "stage2.": "HRNet", "patch_embed.": "ViT"}


@dataclass(frozen=True)
class Weights:
    """What a file of weights contains.

    Attributes:
        path: the file.
        state: the tensors, by their names in the file.
        origin: whose layout it is: "fastpose", "SimpleBaselines", "mmpose 0.x", "mmpose 1.x", "mmpose" (a backbone),
            "transformers", "torchvision", or "" if it is another.
        architecture: "ResNet", "CSPNeXt", "HRNet", "ViT", or "" for another.
        depth: layers of the ResNet; None if it is not a ResNet of ours.
        head: "deconv", "fcn", "simcc", or None where there is none of them.
        channels, num_joints: of the head, from shapes; None if it is missing.
        color_order: of the images that the network was trained on, as far as the layout says: BGR for
            SimpleBaselines, which takes images as OpenCV reads them; None if it does not say.
        checkpoint: all that is in the file if it is a checkpoint of ours, else None.
        model: "rtmpose-t", "rtmpose-s", "rtmpose-m" or "rtmpose-l" if it has such a backbone, else "".
        bins: of SimCC's vectors (in y, in x); None if the head returns none.
    """

    path: Path
    state: Mapping[str, Tensor]
    origin: str
    architecture: str
    depth: int | None
    head: Head | None
    channels: int | None
    num_joints: int | None
    color_order: ColorOrder | None
    checkpoint: dict[str, Any] | None = None
    model: str = ""
    bins: tuple[int, int] | None = None

    def __str__(self) -> str:
        """What was recognised, in one line, without the file's name."""
        if own := (self.checkpoint or {}).get("config", {}).get("model"):
            return f"network {shown(own)} of fastpose"
        name = f"ResNet-{self.depth}" if self.depth else self.architecture or "network of unknown architecture"
        name = f"{name} of {self.model}" if self.model else name
        parts = [f"{name} in the layout of {self.origin}" if self.origin else name]
        if self.depth or self.model:
            parts.append(f"{self.head} head with {self.channels} channels" if self.head else "no head")
        if self.num_joints:
            parts.append(f"{self.num_joints} joints")
        if self.color_order:
            parts.append(f"for {self.color_order.upper()} images")
        return ", ".join(parts)


def read_weights(path: str | PathLike[str]) -> Weights:
    """Reads a file of weights and recognises what it is. Only tensors and plain values are read, no code is run.

    It may be a file of `torch.save` or, with the package safetensors, a .safetensors file. The layouts, bare or under
    ``state_dict``, ``model_state_dict``, ``model``, ``net``, ``network`` or ``ema`` (or any other key, if nothing else
    in the file has tensors by name), the names with or without ``module.`` before them:

    - fastpose's: its checkpoints, and state dicts of `pose_resnet`;
    - SimpleBaselines': ``pose_resnet_*.pth.tar``, ``checkpoint.pth.tar``, what `export_simple_baselines` writes;
    - mmpose's: ResNet with TopdownHeatmapSimpleHead (0.x), HeatmapHead or RTMCCHead (1.x), and RTMPose;
    - torchvision's: ResNet, with or without its classifier;
    - any other state dict: `load_weights` loads it into a network that has its names.

    Whether a ResNet strides in its bottlenecks' 3x3 convolutions, as ours, or in the first 1x1 ("caffe" style) is
    nothing that a file says; SimpleBaselines' ``*_caffe`` models are of the second kind and do not fit.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: the file is damaged or of another kind (a ValueError); see `read_contents`.
        ValueError: it has no state dict; lists what it has.
    """
    path = Path(path)
    contents, checkpoint = read_contents(path), None
    if isinstance(contents, Mapping) and contents.get("format") == FORMAT:
        checkpoint = check_checkpoint(path, contents)
        contents = checkpoint["model"]
    else:
        contents = _state_dict_in(path, contents)
    # A network of the user's own may have an extra state that is not a tensor.
    state = {str(name): value for name, value in contents.items() if isinstance(value, Tensor)}
    *_, flat = _layouts(state)
    depth, model = resnet_depth(flat), name_of(flat)
    of_head = {name.removeprefix("head."): value for name, value in flat.items()}
    heads: dict[Head, str] = {"deconv": "deconv_layers.", "fcn": "fcn_layers.", "simcc": "cls_x."}
    head = next((head for head, begins in heads.items() if _any_begins(of_head, begins)), None)
    bare = _unwrapped(state)
    origin = next((version for part, version in (_TRANSFORMERS | _MMPOSE).items() if _any_begins(bare, part)), "")
    if checkpoint is not None or (depth and head in ("fcn", "simcc") and not _any_begins(bare, "backbone.")):
        origin = "fastpose"
    elif depth and not origin:
        origin = "SimpleBaselines" if head else "torchvision"
    names = (name for part, name in _ARCHITECTURES.items() if _any_begins(flat, part))
    final = of_head.get("final_layer.weight")
    num_joints, channels = final.shape[:2] if final is not None and final.ndim == 4 else (None, None)
    bins = None
    if head == "simcc":
        of_x, of_y, hidden = (of_head.get(f"{layer}.weight") for layer in ("cls_x", "cls_y", "mlp.1"))
        bins = (len(of_y), len(of_x)) if of_x is not None and of_y is not None else None
        channels = None if hidden is None else len(hidden)
    if checkpoint is not None:
        noted = checkpoint["config"].get("color_order")
    else:  # `to_simple_baselines` makes such a note
        noted = getattr(contents, "_metadata", {}).get("", {}).get("color_order")
    color_order: ColorOrder | None = "bgr" if origin == "SimpleBaselines" else "rgb" if origin else None
    if noted in ("rgb", "bgr"):
        color_order = noted
    architecture = "ResNet" if depth else next(names, "")
    head_of = (head, channels, num_joints)
    return Weights(path, state, origin, architecture, depth, *head_of, color_order, checkpoint, model, bins)


def _state_dict_in(path: Path, contents: Any) -> Mapping[Any, Any]:
    """The state dict in a file of another program: what it contains, or what is under one of its keys.

    Raises:
        ValueError: there is none; lists what there is.
    """
    if not isinstance(contents, Mapping):
        raise ValueError(f"{path}: expected a state dict of tensors, got {_in_words(contents)}")
    if contents and all(isinstance(value, Tensor) for value in contents.values()):
        return contents
    found = {
        key: value
        for key, value in contents.items()
        if isinstance(value, Mapping)
        and any(isinstance(inner, Tensor) for inner in value.values())
        and all(isinstance(name, str) for name in value)
    }
    named = [key for key in _STATE_DICTS if key in found] or (list(found) if len(found) == 1 else [])
    if not named:
        keys = ", ".join(f"{str(key)[:40]!r} ({_in_words(value)})" for key, value in list(contents.items())[:12])
        raise ValueError(
            f"{path}: expected a state dict of tensors, bare or under a key, got the keys {keys or 'none'}"
        )
    if len(named) > 1:
        log.warning("%s: has weights under %s; taking those under %r", path, " and ".join(map(repr, named)), named[0])
    return found[named[0]]


def _in_words(value: Any) -> str:
    if isinstance(value, Mapping):
        tensors = sum(isinstance(inner, Tensor) for inner in value.values())
        return f"{len(value)} entries, {tensors} of them tensors"
    return str(value) if isinstance(value, Unknown) else type(value).__name__


def load_weights(model: nn.Module, weights: Weights, *, new_joints: int | None = None) -> str:
    """Loads all of a file's weights into a network of the same parameters.

    The names may be the network's own, or those with `DataParallel`'s, `torch.compile`'s, Lightning's or mmpose's
    before them: the form that has the most names in common with the network is taken.

    Args:
        model: the network.
        weights: see `read_weights`.
        new_joints: the network's number of joints, where the file's may be another: parameters with a row per joint,
            those of the last layer, then stay the network's own.

    Returns:
        One line that says what was loaded.

    Raises:
        ValueError: parameters are missing, unexpected or of another shape; lists them. The model is then unchanged.
    """
    wanted = model.state_dict()
    found = max(_layouts(weights.state), key=lambda state: (len(state.keys() & wanted.keys()), -len(state)))
    of_joints = [
        name
        for name in wanted.keys() & found.keys()
        if wanted[name].shape != found[name].shape
        and wanted[name].shape[1:] == found[name].shape[1:]
        and wanted[name].shape[:1] == (new_joints,)
    ]
    # One layer, and not the whole network.
    rows, layers = {len(found[name]) for name in of_joints}, {name.rpartition(".")[0] for name in of_joints}
    if len(rows) == len(layers) == 1 and len(of_joints) < len(wanted):
        for name in of_joints:
            del wanted[name], found[name]
    else:
        of_joints = []
    if problems := mismatches(wanted, found):
        raise ValueError(f"{weights.path}: does not fit the network: {problems}; the file has a {weights}")
    model.load_state_dict(found, strict=False)
    kept = f"; for {new_joints} joints new: {some_of(sorted(of_joints), 8)}" if of_joints else ""
    return f"{weights.path}: {weights}: loaded {_count(model, found)}{kept}"


def load_backbone(model: nn.Module, weights: Weights) -> str:
    """Loads weights into the backbone alone; a classifier or head in the file is left out, the model's stays.

    Args:
        model: a `PoseResNet` of the depth the weights are for, or an `RtmPose` of their size.
        weights: any ResNet, or any RTMPose, that `read_weights` recognises. Mind their colour order.

    Returns:
        One line that says what was loaded.

    Raises:
        ValueError: parameters of the backbone are missing, unexpected or of another shape; lists them. The model is
            then unchanged.
    """
    *_, flat = _layouts(weights.state)
    prefix = "" if isinstance(model, PoseResNet) else "backbone."
    found = {prefix + name: value for name, value in flat.items() if not name.startswith(_HEADS)}
    begins = prefix or _BACKBONE
    wanted = {name: value for name, value in model.state_dict().items() if name.startswith(begins)}
    if problems := mismatches(wanted, found):
        raise ValueError(f"{weights.path}: does not fit the backbone: {problems}; the file has a {weights}")
    model.load_state_dict(found, strict=False)
    return f"{weights.path}: {weights}: loaded {_count(model, found)} into the backbone"


def load_imagenet_backbone(model: PoseResNet, path: str | PathLike[str]) -> str:
    """Loads ImageNet weights into the backbone: `load_backbone` of a torchvision ResNet (``resnet50-*.pth``).

    Raises:
        FileNotFoundError, ValueError: see `read_weights` and `load_backbone`.
    """
    return load_backbone(model, read_weights(path))


def to_simple_baselines(state: Mapping[str, Tensor], color_order: ColorOrder = "rgb") -> OrderedDict[str, Tensor]:
    """The state dict of a `pose_resnet` with deconvolutions as SimpleBaselines' and HRNet's ``pose_resnet`` load it.

    The names are the same. Counters of batches, which PyTorch had not when SimpleBaselines was written, are left out.

    Args:
        state: the network's state dict.
        color_order: of the images that the network was trained on. SimpleBaselines' loaders give BGR images; for
            "rgb" HRNet's have ``DATASET.COLOR_RGB``. The dict has a note of it, which `read_weights` looks at.

    Raises:
        ValueError: not the state dict of such a network, or not a colour order.
    """
    if color_order not in get_args(ColorOrder):
        raise ValueError(f"color_order must be rgb or bgr, got {color_order!r}")
    if not resnet_depth(state) or not _any_begins(state, "deconv_layers."):
        head = "the fcn head" if _any_begins(state, "fcn_layers.") else "another network"
        raise ValueError(
            f"SimpleBaselines' layout is that of ResNets with the deconv head; these weights are of {head}"
        )
    kept = OrderedDict(
        (name, value.detach().cpu().contiguous())
        for name, value in state.items()
        if not name.endswith(".num_batches_tracked")
    )
    kept._metadata = {"": {"color_order": color_order}}  # type: ignore[attr-defined]  # as Module.state_dict has it
    return kept


def export_simple_baselines(model: nn.Module, path: str | PathLike[str], color_order: ColorOrder = "rgb") -> None:
    """Writes the weights of a `pose_resnet` with deconvolutions as a ``pose_resnet_*.pth.tar`` of SimpleBaselines.

    In the format that its torch of 2018 reads, too.

    Args:
        model: the network.
        path: the file to write.
        color_order: see `to_simple_baselines`.

    Raises:
        ValueError: see `to_simple_baselines`.
    """
    save_contents(Path(path), to_simple_baselines(model.state_dict(), color_order), for_old_torch=True)


def _layouts(state: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The state dict as it is, then without what wrappers, and what mmpose put before its names."""
    yield dict(state)
    # mmpose's mean and deviation of colours, the same everywhere.
    bare = {name: value for name, value in _unwrapped(state).items() if not name.startswith("data_preprocessor.")}
    yield bare
    if _any_begins(bare, "backbone."):
        yield {name.removeprefix("backbone."): value for name, value in bare.items()}
        flat = {}
        for name, value in bare.items():
            part = next((part for part in _MMPOSE if name.startswith(part)), "")
            flat[name.removeprefix(part)] = value
        yield flat


def _unwrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    bare = dict(state)
    while prefix := next((p for p in _WRAPPERS if bare and all(name.startswith(p) for name in bare)), ""):
        bare = {name.removeprefix(prefix): value for name, value in bare.items()}
    return bare


def _any_begins(names: Mapping[str, Tensor], beginning: str) -> bool:
    return any(name.startswith(beginning) for name in names)


def mismatches(wanted: Mapping[str, Tensor], found: Mapping[str, Any]) -> str:
    """Lists the parameters that are missing, unexpected or of another shape; empty if there are none."""
    # Files written before PyTorch 0.4.1, the first torchvision ResNets among them, have no such counters.
    missing = [n for n in wanted if n not in found and not n.endswith("num_batches_tracked")]
    unexpected = [n for n in found if n not in wanted]
    mismatched = [
        f"{n} {list(getattr(found[n], 'shape', '?'))} for {list(wanted[n].shape)}"
        for n in wanted
        if n in found and getattr(found[n], "shape", None) != wanted[n].shape
    ]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": mismatched}
    return "; ".join(f"{len(names)} {kind}: {some_of(names, 8)}" for kind, names in problems.items() if names)


def _count(model: nn.Module, found: Mapping[str, Tensor]) -> str:
    count = sum(parameter.numel() for name, parameter in model.named_parameters() if name in found)
    return f"{len(found)} tensors ({count:,} parameters)"
