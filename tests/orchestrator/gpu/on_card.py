"""Arrays on a card, and what is the same as a CPU's."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, DTypeLike, NDArray

from workers.gpu.device import Device, Memory


class OnCard:
    """A stream and the arrays that were made for it, all of which live as long as this."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.stream = device.stream()
        self._held: list[tuple[Memory, NDArray[Any] | None]] = []

    def put(self, array: ArrayLike | torch.Tensor) -> int:
        """The address of a copy."""
        source = np.ascontiguousarray(array)
        pinned = self.device.pinned(source.nbytes)
        pinned[:] = source.reshape(-1).view(np.uint8)
        memory = self.device.allocate(source.nbytes)
        self._held.append((memory, pinned))
        self.stream.upload(memory.address, pinned)
        return memory.address

    def room(self, *shape: int, item_bytes: int = 4) -> int:
        """The address of an array that nobody has written to."""
        memory = self.device.allocate(int(np.prod(shape)) * item_bytes)
        self._held.append((memory, None))
        return memory.address

    def get(self, address: int, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """What is there when all that was asked for is done."""
        num_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        pinned = self.device.pinned(num_bytes)
        self.stream.download(pinned, address)
        self.stream.synchronize()
        return pinned.view(dtype).reshape(shape).copy()


def assert_same_bits(found: NDArray[Any], expected: ArrayLike | torch.Tensor) -> None:
    """Equal to the sign of zeros, whatever kind of NaN."""
    wanted = np.asarray(expected)
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    if wanted.dtype == np.float32:
        found, wanted = (
            np.where(np.isnan(a), np.float32(np.nan), a).view(np.uint32) for a in (found, wanted)
        )
    np.testing.assert_array_equal(found, wanted)
