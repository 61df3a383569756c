"""Launches that come again in every decode step, kept as graphs: then one call asks for all of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar

from workers.gpu.device import Graph, Stream
from workers.gpu.errors import DeviceFull

T = TypeVar("T")

MOST_KEPT = 2048
"""Graphs. A step of Step-3.5-Flash with its drafts has about 100, and others for each number of rows."""


@dataclass(slots=True)
class _Kept:
    found: Any
    graph: Graph | None = None


class KeptLaunches:
    """Of one stream. What they read and write must stay where it is."""

    def __init__(self, stream: Stream, most: int = MOST_KEPT) -> None:
        """
        Args:
            most: graphs that are kept. One step has to have fewer, or none would be left when it comes again.
        """
        self._stream = stream
        self._most = most
        # Used last, stands last.
        self._kept: dict[Hashable, _Kept] = {}

    def launch(self, key: Hashable, ask: Callable[[], T]) -> T:
        """Ask for launches, or repeat those that were asked for under this key before.

        The first time they are asked for plainly, since kernels may have to be compiled; the second time they
        become a graph. What was used least recently makes room for others.

        Args:
            ask: asks for the same whenever it is called, and gives the same.
        """
        kept = self._kept.pop(key, None)
        if kept is None:
            found = ask()
            while len(self._kept) >= self._most:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = _Kept(found)
            return found
        self._kept[key] = kept
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
