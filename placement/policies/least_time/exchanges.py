"""Sets of expert moves that keep every device within its room, best first."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Rings over three devices cost the cube of their number to look for; beyond this, pairs must do.
_MOST_DEVICES_FOR_RINGS = 12


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
        holders: int [num_layers, num_experts], where experts are; -1 for those that stay.
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
    """For each two devices the expert that gains most by going from one to the other."""

    def __init__(
        self,
        gains: NDArray[np.floating],
        holders: NDArray[np.integer],
        room: NDArray[np.int64],
        moves_a_layer: int,
    ) -> None:
        num_layers, self._num_experts, num_devices = gains.shape
        self._room = room.copy()
        self._left = np.full(num_layers, moves_a_layer)
        # Experts of all layers, those of a source one after another, and each one's place in that order.
        at = holders.ravel()
        order = np.argsort(at, kind="stable")
        ends = np.searchsorted(at, np.arange(num_devices + 1), sorter=order)
        self._cells, self._ends = order[ends[0] :], ends - ends[0]
        self._places = np.full(len(at), -1)
        self._places[self._cells] = np.arange(len(self._cells))
        # [target, expert in that order], inf for those that moved already or whose layer made all its moves.
        self._gains = np.ascontiguousarray(gains.reshape(-1, num_devices)[self._cells].T)
        # [source, target]: the best expert's place and gain, inf where there is none.
        self._first = np.zeros((num_devices, num_devices), dtype=np.intp)
        self._best = np.full((num_devices, num_devices), np.inf)
        for source, (start, end) in enumerate(itertools.pairwise(self._ends.tolist())):
            self._gains[source, start:end] = np.inf
            if start < end:
                self._first[source] = start + self._gains[:, start:end].argmin(axis=1)
                self._best[source] = self._gains[np.arange(num_devices), self._first[source]]
        self._rings = num_devices <= _MOST_DEVICES_FOR_RINGS

    def best(self) -> tuple[float, list[_Edge]]:
        """The best feasible set of moves there is."""
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
        """Make the best move of each edge; a layer may end one or two above its number."""
        moves = []
        for source, target in edges:
            place = self._first[source, target]
            row, expert = divmod(int(self._cells[place]), self._num_experts)
            moves.append(Move(row, expert, source, target))
            self._gains[:, place] = np.inf
            self._left[row] -= 1
            if self._left[row] == 0:
                first = row * self._num_experts
                places = self._places[first : first + self._num_experts]
                self._gains[:, places[places >= 0]] = np.inf
            self._room[source] += 1
            self._room[target] -= 1
        self._refresh()
        return moves

    def _refresh(self) -> None:
        """Find another where what was best cannot move any more."""
        now = self._gains[np.arange(len(self._best)), self._first]
        for source, target in np.argwhere((now != self._best) & (self._best < np.inf)).tolist():
            start, end = self._ends[source : source + 2]
            gains = self._gains[target, start:end]
            found = gains.argmin()
            self._first[source, target] = start + found
            self._best[source, target] = gains[found]
