"""How many rows MTP layers have to take in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

CONTEXT_ROWS = 32
"""With so many rows before them, drafts hold about as often as with all (docs/scheduler.md)."""

LayerBounds = tuple[tuple[int, int], ...]
"""Of each MTP layer, the slots that it has, and the most rows that it would compute."""


class RowsBehind(Sequence[int]):
    """Rows that each MTP layer would compute for its next draft, but for what hangs on drafts.

    Where drafts are made, each step asks it of each sequence, and few steps read it. So the numbers are
    worked out when they are read.
    """

    __slots__ = ("_layers", "_seen")

    def __init__(self, seen: int, layers: LayerBounds) -> None:
        """`seen`: trunk rows."""
        self._seen = seen
        self._layers = layers

    def __len__(self) -> int:
        return len(self._layers)

    def __iter__(self) -> Iterator[int]:
        seen = self._seen
        return iter([min(seen - slots, most) for slots, most in self._layers])

    @overload
    def __getitem__(self, place: int) -> int: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[int, ...]: ...
    def __getitem__(self, place: int | slice) -> int | tuple[int, ...]:
        return tuple(self)[place]

    def __eq__(self, other: object) -> bool:
        """Whether they are the same numbers; a tuple may have them too."""
        return isinstance(other, RowsBehind | tuple) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"RowsBehind{tuple(self)}"
