"""From a model's mapped files into a card's memory, through two page-locked buffers.

A copy from memory that is not page-locked waits for all that its stream has to do, and goes through a buffer
of the driver's. So pieces are copied into a buffer of ours, while the other one is on its way over the link.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.gpu.device import Device, Stream
from workers.memory.mapped import OnProgress, Range, bring_in, joined
from workers.memory.pages import let_go

BUFFER_BYTES = 8 << 20
"""Of each buffer: a host link moves so much in some 0.4 ms, a hundred times what starting a copy takes."""

_AHEAD_BYTES = 64 << 20
"""What the disk is asked for while what came before is copied; four threads with 16 MiB each."""


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """What goes where.

    Attributes:
        source: contiguous, on the CPU.
        dtype: what the card is to have.
        to: an address on the card.
        is_mapped: of a file, whose pages are let go of once they are copied.
    """

    source: Tensor
    dtype: torch.dtype
    to: int
    is_mapped: bool

    @property
    def num_bytes(self) -> int:
        """Over the link."""
        return self.source.numel() * self.dtype.itemsize


class Uploader:
    """Copies in order on a stream of its own. One thread at a time uses it."""

    def __init__(self, device: Device, buffer_bytes: int = BUFFER_BYTES) -> None:
        """Raises DeviceFull where the system locks no more pages."""
        self.stream: Stream = device.stream()
        self._buffers = [device.pinned(buffer_bytes) for _ in range(2)]
        self._free = [device.event() for _ in range(2)]
        self._next = 0

    def copy(self, source: int, to: int, num_bytes: int) -> None:
        """Begin to copy; the source has been read when this returns, and the stream has it all to do."""
        size = len(self._buffers[0])
        for start in range(0, num_bytes, size):
            buffer, free = self._buffers[self._next], self._free[self._next]
            self._next = 1 - self._next
            length = min(size, num_bytes - start)
            free.synchronize()
            # Lets go of the interpreter, so that others compute meanwhile.
            ctypes.memmove(buffer.ctypes.data, source + start, length)
            self.stream.upload(to + start, buffer[:length])
            self.stream.record(free)

    def copy_all(self, pieces: Sequence[Piece], on_progress: OnProgress | None = None) -> None:
        """Copy and wait until all is there. The disk reads ahead of what is copied.

        Raises:
            DeviceLost: the card stopped working.
        """
        total, done = sum(piece.num_bytes for piece in pieces), 0
        stretches = list(_stretches(pieces))
        with ThreadPoolExecutor(1, "read-ahead") as reader:
            coming = reader.submit(_read, stretches[0]) if stretches else None
            for place, stretch in enumerate(stretches):
                assert coming is not None
                coming.result()
                if place + 1 < len(stretches):
                    coming = reader.submit(_read, stretches[place + 1])
                for piece in stretch:
                    data = piece.source.to(piece.dtype)
                    self.copy(data.data_ptr(), piece.to, data.nbytes)
                    if piece.is_mapped:
                        let_go(piece.source.data_ptr(), piece.source.nbytes)
                    done += data.nbytes
                    if on_progress is not None:
                        on_progress(done, total)
        self.stream.synchronize()


def _read(stretch: Sequence[Piece]) -> None:
    bring_in(joined(Range(p.source.data_ptr(), p.source.nbytes) for p in stretch if p.is_mapped))


def _stretches(pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
    """In their order, some megabytes each."""
    stretch: list[Piece] = []
    num_bytes = 0
    for piece in pieces:
        stretch.append(piece)
        num_bytes += piece.source.nbytes
        if num_bytes >= _AHEAD_BYTES:
            yield stretch
            stretch, num_bytes = [], 0
    if stretch:
        yield stretch
