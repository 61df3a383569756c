"""Search over how many of each layer's experts every group of devices holds, hottest experts first.

In each layer experts are ordered by heat and cut into one block for each group of like devices, groups in a
fixed order. Only the boundaries between blocks are unknown: layers x (groups - 1) numbers, few enough to be
fitted to a sample of steps without learning its noise. Moving a boundary changes two blocks. A full group can
only take experts of one layer if it gives up as many of another, so moves come in pairs of layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from placement.cost.roofline import ExpertRates, roofline_seconds
from placement.policies.least_time.layer_search import expected_rows

# Draws for the expected fullest of several like devices; the standard error is a few percent of one expert.
_OCCUPANCY_DRAWS = 400
# Moves gain less and less; what is left after this many rounds is noise of the sample.
_MOST_ROUNDS = 60


@dataclass(frozen=True, slots=True, eq=False)
class HeatSample:
    """Steps to fit boundaries to.

    `below`: int16 [num_layers, num_experts + 1, num_steps]: distinct experts of the step among the r
    hottest of the layer. `pairs_per_expert`: (token, expert) pairs for each distinct one, on average.
    """

    below: NDArray[np.int16]
    tokens_per_step: int
    pairs_per_expert: float

    @property
    def most_distinct(self) -> int:
        return int(self.below[:, -1].max())


def heat_sample(
    trace: NDArray[np.integer], heat: NDArray[np.integer], tokens_per_step: int, max_steps: int
) -> HeatSample:
    """Up to `max_steps` steps spread evenly over `trace` [tokens, layers, top_k].

    Args:
        heat: [num_layers, num_experts], larger is hotter.
    """
    _, num_layers, top_k = trace.shape
    num_experts = heat.shape[1]
    num_steps = len(trace) // tokens_per_step
    steps = trace[: num_steps * tokens_per_step].reshape(num_steps, tokens_per_step, num_layers, top_k)
    steps = steps[np.linspace(0, num_steps - 1, min(num_steps, max_steps)).astype(np.intp)]
    rank_of = np.argsort(np.argsort(-heat.astype(np.float64), axis=1, kind="stable"), axis=1)
    below = np.zeros((num_layers, num_experts + 1, len(steps)), dtype=np.int16)
    for row in range(num_layers):
        is_read = np.zeros((num_experts, len(steps)), dtype=np.int16)
        ranks = rank_of[row][steps[:, :, row].reshape(len(steps), -1)]
        is_read[ranks, np.arange(len(steps))[:, None]] = 1
        np.cumsum(is_read, axis=0, out=below[row, 1:])
    pairs = tokens_per_step * top_k / float(below[:, -1].mean())
    return HeatSample(below, tokens_per_step, pairs)


def group_seconds(rates: ExpertRates, groups: list[list[int]], sample: HeatSample) -> NDArray[np.float64]:
    """float64 [num_groups, most_distinct + 1]: seconds until a group answers for n distinct experts.

    The members of a group have about the same rates; the fullest of them is the last.
    """
    counts = np.arange(sample.most_distinct + 1)
    generator = np.random.default_rng(0)
    seconds = np.empty((len(groups), len(counts)))
    expert_s = roofline_seconds(rates, 1, sample.pairs_per_expert)
    for index, members in enumerate(groups):
        round_trip_s, wire_s, each_s = (
            float(values[members].mean()) for values in (rates.round_trip_s, rates.row_wire_s, expert_s)
        )
        fullest = counts.astype(np.float64)
        if len(members) > 1:
            even = np.full(len(members), 1 / len(members))
            draws = [generator.multinomial(n, even, size=_OCCUPANCY_DRAWS) for n in counts]
            fullest = np.array([draw.max(axis=1).mean() for draw in draws])
        rows = np.minimum(fullest, sample.tokens_per_step)
        work = fullest * each_s
        asked = (counts > 0) * round_trip_s
        seconds[index] = rates.busy_s[members].max() + asked + rows * wire_s + work
    return seconds


def group_messages_seconds(
    rates: ExpertRates, groups: list[list[int]], sample: HeatSample
) -> NDArray[np.float64]:
    """The head's software for a group's requests, of the shape of `group_seconds`.

    Of n experts each member has an equal part: the expected number of those asked, and their rows.
    """
    counts = np.arange(sample.most_distinct + 1)
    seconds = np.empty((len(groups), len(counts)))
    for index, members in enumerate(groups):
        size = len(members)
        asked = size * (1 - (1 - 1 / size) ** counts)
        rows = size * expected_rows(counts / size, sample.tokens_per_step, sample.pairs_per_expert)
        message_s, row_s = rates.message_s[members].mean(), rates.message_row_s[members].mean()
        seconds[index] = asked * message_s + rows * row_s
    return seconds


def improve(
    boundaries: NDArray[np.int64],
    sample: HeatSample,
    seconds: NDArray[np.float64],
    capacities: NDArray[np.int64],
    shifts: Sequence[int],
    messages_s: NDArray[np.float64] | None = None,
) -> tuple[NDArray[np.int64], float]:
    """Move boundaries while the mean time of the sample falls.

    Args:
        boundaries: int64 [num_layers, num_groups + 1], from 0 to num_experts, ascending, within capacity.
        seconds: of `group_seconds`.
        capacities: int64 [num_groups], experts over all layers.
        shifts: experts a move hands over; all moves of one size, then the next.
        messages_s: of `group_messages_seconds`; None where messages cost the head nothing.

    Returns:
        The new boundaries and their mean seconds a step.
    """
    search = _Search(boundaries.copy(), sample, seconds, capacities, messages_s)
    search.measure(1, range(len(boundaries)))
    for shift in shifts:
        search.measure(shift, range(len(boundaries)))
        for _ in range(_MOST_ROUNDS):
            moved = search.move(shift)
            if not moved:
                break
            search.measure(shift, moved)
    return search.boundaries, float(search.layer_s.sum())


_RIGHT, _LEFT = 0, 1
# Direction, layer row, inner boundary: right hands experts to the group before the boundary.
_Move = tuple[int, int, int]


class _Search:
    """Boundaries and, for the shift at hand, what every single move would change."""

    def __init__(
        self,
        boundaries: NDArray[np.int64],
        sample: HeatSample,
        seconds: NDArray[np.float64],
        capacities: NDArray[np.int64],
        messages_s: NDArray[np.float64] | None,
    ) -> None:
        self.boundaries = boundaries
        self.layer_s = np.zeros(len(boundaries))
        num_inner = boundaries.shape[1] - 2
        # [direction, layer, inner boundary]: change of the layer's seconds, inf where it cannot move.
        self._change = np.full((2, len(boundaries), num_inner), np.inf)
        self._sample = sample
        self._table = seconds.ravel()
        self._messages = None if messages_s is None else messages_s.ravel()
        self._offset = np.arange(len(seconds))[:, None] * seconds.shape[1]
        self._capacities = capacities

    def measure(self, shift: int, layers: Sequence[int]) -> None:
        """Recompute `layer_s` and the changes of the given layers."""
        rows = np.asarray(layers)
        edges = self.boundaries[rows]
        below = self._sample.below
        # [layers, groups, num_steps]
        at_edges = below[rows[:, None], edges].astype(np.int64)
        counts = np.diff(at_edges, axis=1)
        each = self._table.take(counts + self._offset)
        self.layer_s[rows] = each.max(axis=1).mean(axis=1)
        if self._messages is not None:
            sent_s = self._messages.take(counts + self._offset)
            self.layer_s[rows] += sent_s.sum(axis=1).mean(axis=1)
        others = _largest_of_others(each)
        for direction, step in enumerate((shift, -shift)):
            moved = edges[:, 1:-1] + step
            possible = (moved <= edges[:, 2:]) & (moved >= edges[:, :-2])
            moved = np.where(possible, moved, edges[:, 1:-1])
            gained = below[rows[:, None], moved] - at_edges[:, 1:-1]
            left_cells = counts[:, :-1] + gained + self._offset[:-1]
            right_cells = counts[:, 1:] - gained + self._offset[1:]
            left, right = self._table.take(left_cells), self._table.take(right_cells)
            np.maximum(left, right, out=left)
            after = np.maximum(left, others, out=left)
            if self._messages is not None:
                after += self._messages.take(left_cells) + self._messages.take(right_cells)
                after += sent_s.sum(axis=1, keepdims=True) - sent_s[:, :-1] - sent_s[:, 1:]
            change = after.mean(axis=2) - self.layer_s[rows, None]
            self._change[direction, rows] = np.where(possible, change, np.inf)

    def move(self, shift: int) -> list[int]:
        """Apply improving moves, best first, no layer twice; returns the layers moved.

        Moving a boundary hands `shift` experts of one layer from a group to its neighbour. What a full
        group receives it must pass on, so moves are made in sets that keep every group within capacity: an
        exchange (one layer moves a boundary right, another left), or a chain from group to group, a layer
        each, that ends at a group with room.
        """
        used = np.diff(self.boundaries, axis=1).sum(axis=0)
        least_gain = 1e-9 * float(self.layer_s.sum())
        moved: set[int] = set()
        while True:
            best = min(
                (*self._exchanges(), *self._chains(used + shift <= self._capacities)),
                key=lambda found: found[0],
                default=(0.0, []),
            )
            if best[0] > -least_gain:
                return sorted(moved)
            for direction, row, inner in best[1]:
                self.boundaries[row, inner + 1] += shift if direction == _RIGHT else -shift
                gains, gives = (inner, inner + 1) if direction == _RIGHT else (inner + 1, inner)
                used[gains] += shift
                used[gives] -= shift
                moved.add(row)
                # Until it is measured again nobody knows what another move of this layer would change.
                self._change[:, row] = np.inf

    def _exchanges(self) -> Iterator[tuple[float, list[_Move]]]:
        """The best exchange at every boundary."""
        for inner in range(self._change.shape[2]):
            right, left = (int(self._change[d, :, inner].argmin()) for d in (_RIGHT, _LEFT))
            if right == left:
                continue
            gain = self._change[_RIGHT, right, inner] + self._change[_LEFT, left, inner]
            yield float(gain), [(_RIGHT, right, inner), (_LEFT, left, inner)]

    def _chains(self, has_room: NDArray[np.bool_]) -> Iterator[tuple[float, list[_Move]]]:
        """From every group with room: the best chains of moves towards it from either side."""
        num_inner = self._change.shape[2]
        for end in np.flatnonzero(has_room).tolist():
            for direction, inners in ((_RIGHT, range(end, num_inner)), (_LEFT, range(end - 1, -1, -1))):
                total, chain, rows = 0.0, list[_Move](), set[int]()
                best: tuple[float, list[_Move]] = (np.inf, [])
                for inner in inners:
                    change = self._change[direction, :, inner].copy()
                    change[list(rows)] = np.inf
                    row = int(change.argmin())
                    total += float(change[row])
                    if not np.isfinite(total):
                        break
                    chain = [*chain, (direction, row, inner)]
                    rows.add(row)
                    best = min(best, (total, chain))
                yield best


def _largest_of_others(each: NDArray[np.float64]) -> NDArray[np.float64]:
    """[layers, groups - 1, num_steps]: for neighbours j, j + 1 the largest time of all other groups."""
    num_layers, num_groups, num_steps = each.shape
    before = np.zeros((num_layers, num_groups - 1, num_steps))
    np.maximum.accumulate(each[:, : num_groups - 2], axis=1, out=before[:, 1:])
    behind = np.zeros_like(before)
    behind[:, :-1] = np.maximum.accumulate(each[:, :1:-1], axis=1)[:, ::-1]
    return np.maximum(before, behind)
