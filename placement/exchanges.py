"""Sets of expert moves that keep every device within its room, best first."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Rings over three devices cost the cube of their number to look for; beyond this, pairs must do.
_MOST_DEVICES_FOR_RINGS = 12
# So many places of a queue are looked at before all of it is.
_LOOK_AHEAD = 32


class Move(NamedTuple):
    """Expert `expert` of layer row `row` goes from `source` to `target`, device indices."""

    row: int
    expert: int
    source: int
    target: int


def best_moves(
    gains: NDArray[np.floating],
    holders: NDArray[np.integer],
    room: NDArray[np.int64],
    moves_a_layer: int,
    most_moves: int | None = None,
) -> tuple[list[Move], float]:
    """Greedily the moves whose gains add up to most.

    A full device passes on what it gets: moves are made singly into free room, in exchanges between two
    devices, and over three devices as rings or as chains that end at free room. No expert moves twice.

    Args:
        gains: [num_layers, num_experts, num_devices], change of the time if the expert moves there.
        holders: int [num_layers, num_experts], where experts are.
        room: int64 [num_devices], experts that still fit.
        moves_a_layer: about the most moves of one layer: gains are those of each move by itself.
        most_moves: in all.

    Returns:
        The moves and the sum of their gains, at most 0.
    """
    search = _Search(gains, holders, room, moves_a_layer)
    moves: list[Move] = []
    total = 0.0
    while True:
        gain, edges = search.best()
        if not gain < 0 or (most_moves is not None and len(moves) + len(edges) > most_moves):
            return moves, total
        moves += search.take(edges)
        total += gain


_Edge = tuple[int, int]


class _Search:
    """Experts of each source in order of what each target makes of them, one queue for each two devices."""

    def __init__(
        self,
        gains: NDArray[np.floating],
        holders: NDArray[np.integer],
        room: NDArray[np.int64],
        moves_a_layer: int,
    ) -> None:
        num_layers, self._num_experts, num_devices = gains.shape
        # [device, expert of all layers]
        self._gains = np.ascontiguousarray(gains.reshape(-1, num_devices).T)
        self._room = room.copy()
        self._left = np.full(num_layers, moves_a_layer)
        # Experts that moved already, or whose layer has made all its moves.
        self._blocked = np.zeros(num_layers * self._num_experts, dtype=np.bool_)
        # What stands first in each queue, -1 where nothing is left, its gain and its place in the queue.
        self._first = np.full((num_devices, num_devices), -1)
        self._best = np.full((num_devices, num_devices), np.inf)
        self._place = np.zeros((num_devices, num_devices), dtype=np.intp)
        self._queues: dict[int, NDArray[np.intp]] = {}
        at = holders.ravel()
        for source in range(num_devices):
            held = np.flatnonzero(at == source)
            if len(held):
                gained = self._gains[:, held]
                order = held[gained.argsort(axis=1)]
                self._queues[source] = order
                self._first[source] = order[:, 0]
                self._best[source] = gained.min(axis=1)
                self._first[source, source] = -1
                self._best[source, source] = np.inf
        self._rings = num_devices <= _MOST_DEVICES_FOR_RINGS

    def best(self) -> tuple[float, list[_Edge]]:
        """The best feasible set of moves there is, if what stands first in every queue can still move."""
        best, free = self._best, self._room > 0
        found: list[tuple[float, list[_Edge]]] = []
        if free.any():
            into_room = np.where(free, best, np.inf)
            source, target = divmod(int(into_room.argmin()), len(best))
            found.append((float(into_room[source, target]), [(source, target)]))
        pairs = best + best.T
        one, other = divmod(int(pairs.argmin()), len(best))
        found.append((float(pairs[one, other]), [(one, other), (other, one)]))
        if self._rings and len(best) > 2:
            over = best[:, :, None] + best[None, :, :]
            middle = over.argmin(axis=1)
            through = np.take_along_axis(over, middle[:, None, :], axis=1)[:, 0]
            chains = np.where(free, through, np.inf)
            np.fill_diagonal(chains, np.inf)
            source, target = divmod(int(chains.argmin()), len(best))
            via = int(middle[source, target])
            found.append((float(chains[source, target]), [(source, via), (via, target)]))
            rings = through + best.T
            source, target = divmod(int(rings.argmin()), len(best))
            via = int(middle[source, target])
            found.append((float(rings[source, target]), [(source, via), (via, target), (target, source)]))
        return min(found, key=lambda item: item[0])

    def take(self, edges: list[_Edge]) -> list[Move]:
        """Make the moves that stand first; a layer may end one or two above its number."""
        moves = []
        for source, target in edges:
            cell = int(self._first[source, target])
            row, expert = divmod(cell, self._num_experts)
            moves.append(Move(row, expert, source, target))
            self._blocked[cell] = True
            self._left[row] -= 1
            if self._left[row] <= 0:
                self._blocked[row * self._num_experts : (row + 1) * self._num_experts] = True
            self._room[source] += 1
            self._room[target] -= 1
        stale = self._blocked.take(self._first) & (self._first >= 0)
        for source, target in zip(*np.nonzero(stale), strict=True):
            self._advance(int(source), int(target))
        return moves

    def _advance(self, source: int, target: int) -> None:
        """Drop from a queue what cannot move any more."""
        queue, start = self._queues[source][target], int(self._place[source, target])
        length = _LOOK_AHEAD
        while start < len(queue):
            blocked = self._blocked.take(queue[start : start + length])
            skipped = int(blocked.argmin())
            if not blocked[skipped]:
                cell = int(queue[start + skipped])
                self._place[source, target] = start + skipped
                self._first[source, target], self._best[source, target] = cell, self._gains[target, cell]
                return
            start += length
            length *= 4
        self._first[source, target], self._best[source, target] = -1, np.inf
