"""Where experts lie on the disk, and which aligned part of a file holds each of their matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from workers.disk.direct_file import ALIGNMENT
from workers.memory.maps import FilePlace


@dataclass(frozen=True, slots=True)
class Window:
    """The aligned part of a file around one matrix.

    Attributes:
        offset, num_bytes: aligned.
        shift: where the matrix begins in it.
        least_bytes: up to the matrix's end: the file itself may end inside the window.
        slot_offset: where the window goes in an expert's slot.
    """

    path: Path
    offset: int
    num_bytes: int
    shift: int
    least_bytes: int
    slot_offset: int


def windows_of(places: Sequence[FilePlace]) -> tuple[Window, ...]:
    """The windows of one expert's matrices, side by side in its slot."""
    windows = []
    slot_offset = 0
    for place in places:
        shift = place.offset % ALIGNMENT
        least_bytes = shift + place.num_bytes
        num_bytes = -(-least_bytes // ALIGNMENT) * ALIGNMENT
        windows.append(Window(place.path, place.offset - shift, num_bytes, shift, least_bytes, slot_offset))
        slot_offset += num_bytes
    return tuple(windows)


def slot_bytes(windows: Sequence[Window]) -> int:
    """What an expert takes in a slot."""
    return sum(window.num_bytes for window in windows)
