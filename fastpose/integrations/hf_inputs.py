# SPDX-License-Identifier: Apache-2.0
"""What transformers' image processors take, pictures, boxes and joints of persons, as tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastpose import ImageBatch
from fastpose.device import to_device


def image_batch(images: Any, layout: str | None, device: torch.device | str | None) -> ImageBatch:
    """Pictures as transformers' processors take them, on one device.

    Args:
        images: one picture or several, see `fastpose.integrations.hf.VitPoseImageProcessor.preprocess`.
        layout: "channels_first", "channels_last", or None: see `picture`.
        device: where they are wanted; None: where the first tensor among them is, else on the CPU.

    Raises:
        ValueError: names the picture, or the layout, that is wrong.
    """
    if layout not in (None, "channels_first", "channels_last"):
        raise ValueError(f"input_data_format must be 'channels_first', 'channels_last' or None, got {layout!r}")
    if isinstance(images, ImageBatch):
        return images if device is None else images.to(device)
    if not isinstance(images, (list, tuple)):
        images = list(images) if isinstance(images, (np.ndarray, Tensor)) and images.ndim == 4 else [images]
    pictures = [picture(n, image, layout) for n, image in enumerate(images)]
    tensors = [one.device for one in pictures if isinstance(one, Tensor)]
    device = torch.device(device if device is not None else tensors[0] if tensors else "cpu")
    if not any(where.type == device.type for where in tensors):
        return ImageBatch.from_list([p.cpu() if isinstance(p, Tensor) else p for p in pictures], device=device)
    # What is there already is put together there, and takes no way through the host.
    dense = [torch.as_tensor(np.ascontiguousarray(p) if isinstance(p, np.ndarray) else p) for p in pictures]
    data = torch.cat([one.to(device).reshape(-1) for one in dense])
    sizes = torch.tensor([one.shape[:2] for one in pictures], dtype=torch.int32, device="cpu")
    ends = 3 * sizes.to(torch.int64).prod(1).cumsum(0)
    offsets = torch.cat([ends.new_zeros(1), ends[:-1]])
    return ImageBatch._trusted(data, to_device(offsets, device), to_device(sizes, device))


def picture(n: int, image: Any, layout: str | None) -> Any:
    """Picture number `n` as [h, w, 3] uint8, an array or a tensor; without a `layout` a first axis of three elements is
    that of the channels. ValueError if it is none."""
    if hasattr(image, "convert"):  # PIL's, which is not imported for that
        return np.array(image.convert("RGB"))
    name = f"images[{n}]"
    if not isinstance(image, (np.ndarray, Tensor)):
        raise ValueError(f"{name} must be a PIL picture, an array or a tensor, got {kind(image)}")
    channels = 2 if layout == "channels_last" or (layout is None and image.ndim == 3 and image.shape[0] != 3) else 0
    if image.ndim != 3 or image.shape[channels] != 3 or 0 in image.shape or image.dtype not in (np.uint8, torch.uint8):
        raise ValueError(f"{name} must be uint8 [h, w, 3] or [3, h, w] ({layout or 'either'}), got {kind(image)}")
    if channels == 2:
        return image
    return image.permute(1, 2, 0) if isinstance(image, Tensor) else image.transpose(1, 2, 0)


def flat_boxes(boxes: Any, pictures: int | None = None) -> tuple[Tensor, list[int]]:
    """The boxes of all pictures, float32 [P, 4] (x, y, w, h) in pixels on the CPU, and how many each picture has.

    ValueError unless there are boxes for as many `pictures` (None: any number), finite and with an area.
    """
    if boxes is None or isinstance(boxes, (str, Mapping)):
        raise ValueError(f"boxes must be a list of boxes (x, y, w, h) for each picture, got {kind(boxes)}")
    rows = []
    for n, one in enumerate(boxes):
        row = np.asarray(one.detach().cpu() if isinstance(one, Tensor) else one, np.float32)
        row = row.reshape(0, 4) if row.size == 0 else row
        if row.ndim != 2 or row.shape[1] != 4:
            raise ValueError(f"boxes[{n}] must be [persons, 4] (x, y, w, h), got {list(row.shape)}")
        bad = ~(np.isfinite(row).all(1) & (row[:, 2:] > 0).all(1))
        if bad.any():
            wanted = "finite (x, y, w, h) with w and h above 0"
            raise ValueError(f"boxes[{n}][{bad.argmax()}] must be {wanted}, got {row[bad.argmax()].tolist()}")
        rows.append(row)
    if pictures is not None and len(rows) != pictures:
        raise ValueError(f"boxes must have one list per picture, {pictures}, got {len(rows)}")
    flat = np.concatenate([np.zeros((0, 4), np.float32), *rows])
    return torch.from_numpy(flat), [len(row) for row in rows]


def flat_joints(keypoints: Any, counts: list[int]) -> tuple[Tensor, Tensor]:
    """Joints [P, K, 2] and whether they are visible [P, K], float32 on the CPU. ValueError unless there are as many as
    boxes, `counts` by picture."""
    if [len(one) for one in keypoints] != counts:
        raise ValueError(f"keypoints must have one entry per box, {counts} by picture, got {[*map(len, keypoints)]}")
    persons = [
        np.asarray(person.detach().cpu() if isinstance(person, Tensor) else person, np.float32)
        for one in keypoints
        for person in one
    ]
    shapes = {person.shape for person in persons}
    if any(len(shape) != 2 or shape[1] not in (2, 3) for shape in shapes) or len(shapes) > 1:
        raise ValueError(f"keypoints must all be [K, 2] or [K, 3] (x, y, visibility), got {sorted(shapes)}")
    joints = torch.from_numpy(np.stack(persons) if persons else np.zeros((0, 0, 2), np.float32))
    visible = joints[..., 2] > 0 if joints.shape[2] == 3 else torch.ones(joints.shape[:2])
    return joints[..., :2], visible.to(torch.float32)


def picture_of(counts: list[int], device: torch.device) -> Tensor:
    """Which picture each person is in, [P] int64."""
    return to_device(torch.from_numpy(np.repeat(np.arange(len(counts)), counts)), device)


def table(name: str, values: Any, rows: int) -> Tensor:
    """Two numbers per row, float32 [rows, 2] on the CPU, or a ValueError with the argument's name."""
    table = torch.as_tensor(np.asarray(values.cpu() if isinstance(values, Tensor) else values, np.float32))
    if table.shape != (rows, 2):
        raise ValueError(f"{name} must be [{rows}, 2], got {list(table.shape)}")
    return table


def kind(value: Any) -> str:
    """What was passed, for messages."""
    return f"{value.dtype} {list(value.shape)}" if hasattr(value, "shape") else type(value).__name__
