# SPDX-License-Identifier: Apache-2.0
"""Networks of the user's own, named on the command line as PACKAGE.MODULE:FACTORY."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastpose.models.simcc import SimccVectors
from fastpose.option import OptionError


def names_of(model: str) -> tuple[str, str]:
    """Module and factory of PACKAGE.MODULE:FACTORY.

    Raises:
        OptionError: it has another form. So it may be printed as part of a command line, also where a file says it.
    """
    module, colon, factory = model.partition(":")
    if not colon or not all(part.isidentifier() for part in (*module.split("."), *factory.split("."))):
        raise OptionError("model", f"expected PACKAGE.MODULE:FACTORY, for instance mynet:make, got {model[:60]!r}")
    return module, factory


def find_factory(module_name: str, attribute: str, option: str) -> Any:
    """What a module of the user's own has by this name, for an option. The module is imported as Python imports, from
    the working directory first; its code is run.

    Raises:
        OptionError: there is no such module or name, or importing it fails.
    """
    name = f"{module_name}:{attribute}"
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)  # as `python -m` has it; the fastpose script has its own folder there
    try:
        found = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise failed(f"importing {module_name}", error, option) from error
        raise OptionError(
            option, f"no module {error.name!r} in {here} or among the installed packages, wanted for {name!r}"
        ) from error
    except (Exception, SystemExit) as error:
        raise failed(f"importing {module_name}", error, option) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            where = getattr(found, "__file__", None) or found
            raise OptionError(option, f"{where} has no {part!r}, wanted for {name!r}")
        found = getattr(found, part)
    return found


def make_own_model(name: str, num_joints: int) -> nn.Module:
    """Calls a factory of the user's own for a network with ``num_joints`` heatmaps.

    Args:
        name: ``"package.module:factory"``, see `find_factory`.
        num_joints: what the factory is called with, K. Its network is to map images [B, 3, H, W] to heatmaps
            [B, K, H/4, W/4]; see `check_outputs`.

    Raises:
        ValueError: the name has another form, module or factory do not exist, it cannot be called, fails, or returns
            no `nn.Module`. Errors of the user's code are reported with the line they come from.
    """
    found = find_factory(*names_of(name), "model")
    if not callable(found):
        raise ValueError(f"model: {name} must be callable with the number of joints, got {type(found).__name__}")
    try:
        model = found(num_joints)
    except (Exception, SystemExit) as error:
        raise failed(f"{name}({num_joints})", error) from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"model: {name}({num_joints}) must return a torch.nn.Module, got {type(model).__name__}")
    return model


def output_shapes(
    batch: int, num_joints: int, size: tuple[int, int], simcc: SimccVectors | None = None
) -> list[list[int]]:
    """Of the tensors that a network returns for images of ``size`` (h, w): of heatmaps [B, K, h/4, w/4], or of SimCC's
    vectors [B, K, w · split_ratio] and [B, K, h · split_ratio]."""
    height, width = size
    if simcc is None:
        return [[batch, num_joints, height // 4, width // 4]]
    return [[batch, num_joints, int(side * simcc.split_ratio)] for side in (width, height)]


def outputs_of(returned: object) -> list[Tensor]:
    """The tensors that a network returned, one or a pair; empty if it returned something else."""
    if isinstance(returned, Tensor):
        return [returned]
    pair = list(returned) if isinstance(returned, (tuple, list)) and len(returned) == 2 else []
    return pair if all(isinstance(tensor, Tensor) for tensor in pair) else []


def described(returned: object, *, types: bool = False) -> str:
    """What a network returned, for messages: the shapes of its tensors, with or without their types."""
    outputs = outputs_of(returned)
    texts = [f"{tensor.dtype} {list(tensor.shape)}" if types else f"{list(tensor.shape)}" for tensor in outputs]
    kind = "" if isinstance(returned, Tensor) else type(returned).__name__
    return f"{kind}{' of ' * bool(kind and texts)}{' and '.join(texts)}"


def outputs_text(shapes: list[list[int]]) -> str:
    """What outputs of these shapes are called, for messages."""
    return f"heatmaps {shapes[0]}" if len(shapes) == 1 else "SimCC's vectors {} and {}".format(*shapes)


def check_outputs(
    model: nn.Module,
    name: str,
    num_joints: int,
    size: tuple[int, int],
    simcc: SimccVectors | None = None,
) -> None:
    """Passes one black image of ``size`` (h, w) through a network in evaluation mode and looks at what comes out.

    Args:
        model: the network, on any device; its mode and weights stay as they are.
        name: for messages.
        num_joints: K.
        size: of the image, multiples of 4.
        simcc: what the network is to return; None: heatmaps.

    Raises:
        ValueError: the network fails, or does not return floating-point tensors of `output_shapes`.
    """
    device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    image, training = torch.zeros(1, 3, *size, device=device), model.training
    model.eval()
    try:
        with torch.no_grad():
            returned = model(image)
    except Exception as error:
        raise failed(f"{name}, called with images {list(image.shape)},", error) from error
    finally:
        model.train(training)
    expected, outputs = output_shapes(1, num_joints, size, simcc), outputs_of(returned)
    if [list(tensor.shape) for tensor in outputs] != expected or not all(t.is_floating_point() for t in outputs):
        raise ValueError(
            f"model: {name} must map images {list(image.shape)} to {outputs_text(expected)}, got "
            f"{described(returned, types=True)}"
        )


def check_trains_on(model: nn.Module, batch: int, size: tuple[int, int]) -> str:
    """What a network raises in training mode on a batch of `batch` black images of ``size`` (h, w); empty: nothing.

    Batch normalisation behind global pooling has one value per channel of a single image, and refuses it. The network,
    its buffers and the generators of random numbers stay as they are.
    """
    device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    training = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            model.train()(torch.zeros(batch, 3, *size, device=device))
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    finally:
        for module, mode in training.items():
            module.training = mode
        for name, value in model.named_buffers():
            value.copy_(buffers[name])
    return ""


def failed(what: str, error: BaseException, option: str = "model") -> OptionError:
    """The error of the user's code in one line, with the place it comes from."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(frame.filename).name}, line {frame.lineno}"
    return OptionError(option, f"{what} fails: {type(error).__name__}: {error} ({place})")
