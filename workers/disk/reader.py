"""Threads that read pieces of files side by side: a disk is at its rate only when it is asked for several."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread

from placement.errors import ModelFilesFailed, PotluckError
from workers.disk.direct_file import DirectFile


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """What to read where: an aligned part of a file into aligned memory.

    Attributes:
        least_bytes: of the buffer that the file must still have.
        tag: given back with the answer.
    """

    file: DirectFile
    offset: int
    buffer: memoryview
    least_bytes: int
    tag: int


@dataclass(frozen=True, slots=True)
class Arrival:
    """A piece that was read, or why it was not."""

    tag: int
    error: PotluckError | None


class PieceReader:
    """Reads pieces in the order they were asked for, `num_threads` at a time.

    One thread asks and takes the arrivals. The reading threads end when this object is let go.
    """

    def __init__(self, num_threads: int) -> None:
        self._asked: SimpleQueue[Piece | None] = SimpleQueue()
        self._arrived: SimpleQueue[Arrival] = SimpleQueue()
        # The threads know the queues and not this object, whose end is theirs too.
        for number in range(num_threads):
            Thread(
                target=_work, args=(self._asked, self._arrived), name=f"disk-reader-{number}", daemon=True
            ).start()
        weakref.finalize(self, _end, self._asked, num_threads)

    def ask(self, piece: Piece) -> None:
        """Read it behind what was asked before."""
        self._asked.put(piece)

    def next_arrival(self) -> Arrival:
        """Wait for one; each piece arrives once."""
        return self._arrived.get()

    def has_arrivals(self) -> bool:
        """Whether the next one needs no waiting."""
        return not self._arrived.empty()


def _end(asked: SimpleQueue[Piece | None], num_threads: int) -> None:
    for _ in range(num_threads):
        asked.put(None)


def _work(asked: SimpleQueue[Piece | None], arrived: SimpleQueue[Arrival]) -> None:
    while (piece := asked.get()) is not None:
        arrived.put(_read(piece))
        del piece


def _read(piece: Piece) -> Arrival:
    try:
        count = piece.file.read(piece.buffer, piece.offset)
        if count < piece.least_bytes:
            raise ModelFilesFailed(
                f"{piece.file.path}: ends at byte {piece.offset + count:,}, expected "
                f"{piece.offset + piece.least_bytes:,} at least: the file was cut while it was in use"
            )
    except PotluckError as error:
        return Arrival(piece.tag, error)
    except Exception as error:  # whoever waits for this piece must hear of it
        return Arrival(piece.tag, ModelFilesFailed(f"{piece.file.path}: {type(error).__name__}: {error}"))
    return Arrival(piece.tag, None)
