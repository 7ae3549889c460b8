# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# torch rounds page-locked memory up to a power of two, which of a whole batch can be twice its size; this is one.
PIECE_BYTES = 16 << 20
PIECES_AHEAD = 8  # of a batch on its way to a GPU, filled or being filled: more would be as much memory as the batch

UNREAD = "None, which cv2.imread returns for a file that it cannot read"

Fill = Callable[[NDArray[np.uint8], int], None]  # fills an array with a batch's bytes from one on


class ImageBatch:
    """Images of different sizes in one flat buffer: one copy to the GPU, one launch for all crops.

    Attributes:
        data: uint8 [bytes], RGB pixels, each image row by row without gaps (HWC).
        offsets: int64 [N], first byte of each image. 64-bit: a whole data set may live in one buffer.
        sizes: int32 [N, 2], (h, w) of each image in pixels.

    All three lie on one device. Images may overlap or share bytes; there may be gaps between them.
    """

    def __init__(self, data: Tensor, offsets: Tensor, sizes: Tensor) -> None:
        """Checks the tables against the buffer (on a GPU that is a synchronisation: build on the CPU, then `to`).

        Raises:
            ValueError: wrong shape, dtype or device; an image without pixels, or one that leaves the buffer.
        """
        for name, tensor, dtype, shape in (
            ("data", data, torch.uint8, "[bytes]"),
            ("offsets", offsets, torch.int64, "[N]"),
            ("sizes", sizes, torch.int32, "[N, 2]"),
        ):
            if tensor.dtype != dtype or tensor.dim() != (2 if name == "sizes" else 1):
                raise ValueError(f"{name} must be {dtype} {shape}, got {tensor.dtype} {list(tensor.shape)}")
            if tensor.device != data.device:
                raise ValueError(f"{name} must be on the device of data ({data.device}), got {tensor.device}")
        if sizes.shape != (len(offsets), 2):
            raise ValueError(f"sizes must be [{len(offsets)}, 2], one row per offset, got {list(sizes.shape)}")
        height_width, start = sizes.cpu().to(torch.int64), offsets.cpu()
        pixels = height_width.prod(1)
        # Divided, not multiplied out: three times a huge area must not wrap around to something that fits.
        bad = (height_width < 1).any(1) | (start < 0) | (start > data.numel()) | (pixels > (data.numel() - start) // 3)
        if bool(bad.any()):
            n = int(bad.to(torch.uint8).argmax())
            raise ValueError(
                f"image {n} must be at least 1 x 1 and lie inside data ({data.numel()} bytes), "
                f"got (h, w) = {tuple(height_width[n].tolist())} at byte {int(start[n])}"
            )
        self.data = data.contiguous()
        self.offsets = offsets.contiguous()
        self.sizes = sizes.contiguous()

    @classmethod
    def _trusted(cls, data: Tensor, offsets: Tensor, sizes: Tensor) -> ImageBatch:
        batch = cls.__new__(cls)
        batch.data, batch.offsets, batch.sizes = data, offsets, sizes
        return batch

    @classmethod
    def from_list(
        cls,
        images: Sequence[NDArray[np.uint8] | Tensor],
        *,
        pin_memory: bool = False,
        executor: Executor | None = None,
        device: torch.device | str = "cpu",
    ) -> ImageBatch:
        """Copies images [h, w, 3], uint8 RGB, NumPy arrays or CPU tensors, any strides, into one buffer.

        Args:
            images: the images; an empty list gives an empty batch.
            pin_memory: put the batch into page-locked memory, from where copies to a GPU run beside everything else;
                of a batch on the CPU.
            executor: threads that copy, 16 MiB at a time; None: the caller's.
            device: of the batch. To a GPU it goes through page-locked memory, piece by piece, each as soon
                as it is full, in the current stream; the host does not wait for the copies.

        Raises:
            ValueError: names the image that is not uint8 [h, w, 3] with at least one pixel; of a None says that
                `cv2.imread` could not read the file.
        """
        arrays = [image.numpy() if isinstance(image, Tensor) else np.asarray(image) for image in images]
        for n, array in enumerate(arrays):
            if images[n] is None:
                raise ValueError(f"images[{n}] must be uint8 [h, w, 3], got {UNREAD}")
            if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or array.size == 0:
                raise ValueError(f"images[{n}] must be uint8 [h, w, 3], got {array.dtype} {list(array.shape)}")
        device = torch.device(device)
        ends = list(accumulate(array.size for array in arrays))
        starts = [0, *ends][: len(arrays)]
        sizes = [array.shape[:2] for array in arrays]
        total = ends[-1] if arrays else 0

        def fill(out: NDArray[np.uint8], begin: int) -> None:
            """Fills `out` with what the batch holds from its byte `begin` on."""
            end = begin + len(out)
            for n in range(bisect_right(ends, begin), bisect_left(starts, end)):
                low, high = max(begin, starts[n]), min(end, ends[n])
                part = out[low - begin : high - begin]
                if len(part) == arrays[n].size:
                    part.reshape(arrays[n].shape)[...] = arrays[n]
                else:
                    part[:] = arrays[n].reshape(-1)[low - starts[n] : high - starts[n]]

        pinned = pin_memory or device.type == "cuda"
        if device.type == "cuda":
            data = _by_pieces(total, fill, executor, device)
        else:
            data = torch.empty(total, dtype=torch.uint8, pin_memory=pinned)
            flat = data.numpy()
            run = map if executor is None else executor.map
            for _ in run(lambda begin: fill(flat[begin : begin + PIECE_BYTES], begin), range(0, total, PIECE_BYTES)):
                pass
        offsets = torch.tensor(starts, dtype=torch.int64, pin_memory=pinned)
        height_width = torch.tensor(sizes, dtype=torch.int32, pin_memory=pinned).view(-1, 2)
        return cls._trusted(data, offsets, height_width).to(device, non_blocking=pinned)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> ImageBatch:
        """The batch on another device; three copies, none of which waits with `non_blocking` from pinned memory."""
        return self._trusted(*(t.to(device, non_blocking=non_blocking) for t in (self.data, self.offsets, self.sizes)))

    def pin_memory(self) -> ImageBatch:
        """A copy in page-locked memory, from where copies to a GPU run beside everything else."""
        return self._trusted(self.data.pin_memory(), self.offsets.pin_memory(), self.sizes.pin_memory())

    @property
    def device(self) -> torch.device:
        return self.data.device

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, n: int) -> Tensor:
        """Image n as a view [h, w, 3] of the buffer (on a GPU this synchronises)."""
        if not -len(self) <= n < len(self):
            raise IndexError(f"image must be in [0, {len(self)}), got {n}")
        start, (height, width) = int(self.offsets[n]), self.sizes[n].tolist()
        return self.data[start : start + 3 * height * width].view(height, width, 3)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[n] for n in range(len(self)))

    def __repr__(self) -> str:
        return f"ImageBatch({len(self)} images, {self.data.numel()} bytes, {self.device})"


def _by_pieces(total: int, fill: Fill, executor: Executor | None, device: torch.device) -> Tensor:
    """A batch of `total` bytes on a GPU, through page-locked memory: a piece is copied as soon as it is filled.

    At most PIECES_AHEAD pieces wait for their copy, however large the batch. torch knows from events when a copy is
    done, and gives the piece's memory to another.

    Args:
        total: bytes of the batch.
        fill: see Fill; called in the threads of `executor`.
        executor: threads that fill; None: the caller's.
        device: of the batch.
    """
    data = torch.empty(total, dtype=torch.uint8, device=device)

    def filled(begin: int) -> Tensor:
        # Whole pieces also at the end of a batch, so that they all come from one list of torch's.
        piece = torch.empty(min(PIECE_BYTES, total), dtype=torch.uint8, pin_memory=device.type == "cuda")
        piece = piece[: total - begin]
        fill(piece.numpy(), begin)
        return piece

    begins = range(0, total, PIECE_BYTES)
    pieces = map(filled, begins) if executor is None else _map_ahead(executor, filled, begins, PIECES_AHEAD)
    for begin, piece in zip(begins, pieces, strict=True):
        data[begin : begin + len(piece)].copy_(piece, non_blocking=True)
    return data


def _map_ahead(
    executor: Executor, function: Callable[[int], Tensor], items: Iterable[int], ahead: int
) -> Iterator[Tensor]:
    """`executor.map`, with at most `ahead` results that nobody has taken."""
    pending: deque[Future[Tensor]] = deque()
    for item in items:
        if len(pending) == ahead:
            yield pending.popleft().result()
        pending.append(executor.submit(function, item))
    while pending:
        yield pending.popleft().result()
