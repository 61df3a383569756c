"""What a run needs of a machine's memory, and the refusal of one that needs more, before anything is read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from placement.errors import PlanDoesNotFit
from placement.units import size

PROCESS_BYTES = 210_000_000
"""What a worker's process takes before its first expert: Python and torch (docs/memory.md)."""


@dataclass(frozen=True, slots=True)
class SharedPart:
    """Equal pieces of a mapped file, which all processes that map them share.

    Attributes:
        file: names the file, and the row of pieces in it.
        each_bytes: of a piece.
        mask: bit i: piece i.
    """

    file: str
    each_bytes: int
    mask: int = 1

    @property
    def num_bytes(self) -> int:
        return self.each_bytes * self.mask.bit_count()


def file_key(path: Path) -> str:
    """The same for all that map a model's file or folder, whatever they call it."""
    facts = os.stat(path)
    return f"{facts.st_dev}:{facts.st_ino}"


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that something takes; `what` is for people, such as "the KV cache of 4,096 positions".

    `shared`: of these bytes, those that are mapped.
    """

    what: str
    num_bytes: int
    shared: tuple[SharedPart, ...] = ()


class Free(Protocol):
    """Memory that a run may take from: a box's (`FreeMemory`) or a card's (`workers.gpu.free.FreeVram`)."""

    @property
    def usable_bytes(self) -> int:
        """Less what stays free."""
        ...

    @property
    def told(self) -> str:
        """For people: who leaves how much, and what of it stays free."""
        ...


def missing_bytes(needs: Sequence[Need], free: Free) -> int:
    """How much more is needed than is usable, 0 where all fits."""
    return max(0, sum(need.num_bytes for need in needs) - free.usable_bytes)


def check_memory(needs: Sequence[Need], free: Free, *, where: str, advice: str) -> None:
    """Refuse what does not fit.

    Args:
        where: the node or device, as the message begins.
        advice: what would help.

    Raises:
        PlanDoesNotFit: names all of it, the bytes that are missing and the advice.
    """
    missing = missing_bytes(needs, free)
    if not missing:
        return
    total = sum(need.num_bytes for need in needs)
    listed = ", ".join(f"{size(need.num_bytes)} for {need.what}" for need in needs if need.num_bytes)
    raise PlanDoesNotFit(
        f"{where}: {size(missing)} of memory are missing: expected {size(total)} ({listed}), "
        f"but {free.told}: {advice}"
    )
