"""Launches that come again in every decode step, kept as graphs: then one call asks for all of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar

from workers.gpu.device import Graph, Stream
from workers.gpu.errors import DeviceFull

T = TypeVar("T")


@dataclass(slots=True)
class _Kept:
    found: Any
    graph: Graph | None = None


class KeptLaunches:
    """Of one stream. What they read and write must stay where it is."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._kept: dict[Hashable, _Kept] = {}

    def launch(self, key: Hashable, ask: Callable[[], T]) -> T:
        """Ask for launches, or repeat those that were asked for under this key before.

        The first time they are asked for plainly, since kernels may have to be compiled; the second time they
        become a graph.

        Args:
            ask: asks for the same whenever it is called, and gives the same.
        """
        kept = self._kept.get(key)
        if kept is None:
            kept = self._kept[key] = _Kept(ask())
            return kept.found  # type: ignore[no-any-return]
        if kept.graph is None:
            try:
                with self._stream.captured() as graph:
                    ask()
            except DeviceFull:
                # Graphs take memory of the card, the launches none that they do not have.
                return ask()
            # Not before: what could not be captured is no graph.
            kept.graph = graph
        self._stream.replay(kept.graph)
        return kept.found  # type: ignore[no-any-return]
