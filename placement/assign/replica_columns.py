"""The choice among replicas for thousands of steps at once: one expert of every step after another.

Steps lie along the last axis, so that each operation runs over neighbouring numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from placement.assign.column_sort import sort_columns
from placement.holders import NO_WORKER, LayerHolders

# So many experts of a step are compared with each other; the load of those before is looked up, so that the
# work stays linear in the choices.
_COMPARED = 64

_NONE = np.empty(0, dtype=np.intp)

_Whole = NDArray[np.unsignedinteger]


@dataclass(frozen=True, slots=True, eq=False)
class Choices:
    """Workers of every choice of many steps.

    Attributes:
        workers: unsigned [num_tokens, top_k, num_layers, num_steps], num_workers for an expert that nobody
            holds.
        repeats: unsigned [num_workers, num_layers * num_steps], choices of an expert that an earlier one of
            the step has chosen already; None where nobody counted them.
    """

    workers: _Whole
    repeats: _Whole | None = None


def choose_workers(
    expert_ids: NDArray[np.integer], layers: Sequence[LayerHolders], finish_s: NDArray[np.float64]
) -> Choices:
    """`assign.assign_experts` for every step of several layers, by the same comparisons of the same numbers.

    Args:
        expert_ids: int [num_tokens, top_k, num_layers, num_steps].
        layers: rows of one table.
        finish_s: float64 [num_workers, num_tokens * top_k + 1], `ReplicaCosts.finish_s`.
    """
    num_tokens, top_k, _, num_steps = expert_ids.shape
    num_workers, choices = len(finish_s), num_tokens * top_k
    place_bits = (choices - 1).bit_length()
    if expert_ids.dtype.kind == "i":
        expert_ids = np.where(expert_ids < 0, len(layers[0].table), expert_ids)
    columns = _in_order(expert_ids, layers, place_bits)
    # Steps in the order of their experts with one holder: those that choose are always the foremost.
    several_from = np.repeat([holders.several_from << place_bits for holders in layers], num_steps)
    settled = _count_below(columns, several_from.astype(columns[0].dtype))
    steps = np.argsort(settled, kind="stable")
    choosing = np.searchsorted(settled, np.arange(choices), side="right", sorter=steps).tolist()
    first = np.repeat(_first_ranks(layers), num_steps).take(steps)

    rounds = _Rounds(layers, finish_s, choices, len(steps))
    worker_bits = num_workers.bit_length()
    placed = np.empty((choices, len(steps)), dtype=np.min_scalar_type(choices << worker_bits))
    repeated = [_NONE]
    ranks = None
    for column, key, num_choosing in zip(columns, placed, choosing, strict=True):
        place = column.take(steps)
        before, ranks = ranks, place >> place_bits
        # A token's experts differ.
        again = np.flatnonzero(ranks == before) if num_tokens > 1 and before is not None else _NONE
        workers = rounds.next(ranks + first, num_choosing, again)
        repeated.append(workers.take(again).astype(np.intp) * len(steps) + steps.take(again))
        np.bitwise_and(place, place.dtype.type((1 << place_bits) - 1), out=key, casting="unsafe")
        key <<= key.dtype.type(worker_bits)
        key |= workers
    repeats = np.zeros((num_workers + 1, len(steps)), dtype=np.min_scalar_type(choices))
    np.add.at(repeats.ravel(), np.concatenate(repeated), repeats.dtype.type(1))
    chosen = np.empty(placed.shape, dtype=np.min_scalar_type(num_workers))
    back = np.empty_like(steps)
    back[steps] = np.arange(len(steps))
    for key, worker in zip(sort_columns(placed), chosen, strict=True):
        np.bitwise_and(key.take(back), key.dtype.type((1 << worker_bits) - 1), out=worker, casting="unsafe")
    return Choices(chosen.reshape(expert_ids.shape), repeats[:-1])


def _first_ranks(layers: Sequence[LayerHolders]) -> _Whole:
    """Where each layer's ranks begin when they follow those of the layer before."""
    size = len(layers[0].ranks)
    return np.arange(0, len(layers) * size, size, dtype=np.min_scalar_type(len(layers) * size))


def _in_order(
    expert_ids: NDArray[np.integer], layers: Sequence[LayerHolders], place_bits: int
) -> list[_Whole]:
    """Each step's experts in the order of the rule, [choices] of [steps]: rank, then which choice it was."""
    num_tokens, top_k, num_layers, num_steps = expert_ids.shape
    # One number holds both, so that one sort does.
    keys = np.empty(
        (num_tokens, top_k, num_layers, num_steps),
        dtype=np.min_scalar_type(len(layers[0].ranks) << place_bits),
    )
    ranks = np.left_shift(np.concatenate([holders.ranks for holders in layers]), place_bits, dtype=keys.dtype)
    first = _first_ranks(layers)[:, None]
    for token, place in np.ndindex(num_tokens, top_k):
        cell = np.add(expert_ids[token, place], first, dtype=first.dtype, casting="unsafe")
        ranks.take(cell, out=keys[token, place], mode="clip")
        keys[token, place] |= keys.dtype.type(token * top_k + place)
    return sort_columns(keys.reshape(num_tokens * top_k, -1))


def _count_below(columns: Sequence[_Whole], limit: _Whole) -> _Whole:
    """Of each step's numbers those below its limit, [steps]."""
    count = np.zeros(len(limit), dtype=np.min_scalar_type(len(columns)))
    for column in columns:
        count += column < limit
    return count


class _Rounds:
    """Gives one expert of every step a worker, then the next of every step.

    Workers are handled as codes: the number times a power of two above the number of choices, so that a code
    plus the experts that the worker has in the step already is a cell of `_ranks`.
    """

    def __init__(
        self, layers: Sequence[LayerHolders], finish_s: NDArray[np.float64], choices: int, num_steps: int
    ) -> None:
        self._num_workers, counts = finish_s.shape
        self._bits = counts.bit_length()
        nobody = self._num_workers << self._bits
        self._dtype = np.min_scalar_type(nobody + counts)
        self._nobody = self._dtype.type(nobody)
        self._ranks = _cell_ranks(finish_s, self._bits)
        held = np.concatenate([holders.in_order for holders in layers], axis=1)
        codes = np.where(held == NO_WORKER, self._num_workers, held).astype(self._dtype)
        self._holders = codes << self._dtype.type(self._bits)
        # Codes of the experts that are compared, and each worker's experts before those.
        self._compared = np.empty((min(choices, _COMPARED), num_steps), dtype=self._dtype)
        self._same = np.empty(self._compared.shape, dtype=np.bool_)
        self._num_compared = 0
        self._before: _Whole | None = None
        self._last: _Whole = np.empty(0, dtype=self._dtype)

    def next(self, place: _Whole, num_choosing: int, again: NDArray[np.intp]) -> _Whole:
        """Workers of each step's next expert.

        Args:
            place: columns of `_holders`, [num_steps].
            num_choosing: the other steps' experts have one holder.
            again: steps whose expert is the one before once more.
        """
        if self._num_compared == len(self._compared):
            self._count()
        code = self._holders[0].take(place)
        if num_choosing:
            code[:num_choosing] = self._soonest(code[:num_choosing], place[:num_choosing])
        row = self._compared[self._num_compared]
        row[:] = code
        self._num_compared += 1
        # The same worker as before, and no further load for it.
        row[again] = self._nobody
        code[again] = self._last.take(again)
        self._last = code
        workers: _Whole = code >> self._bits
        return workers

    def _soonest(self, pick: _Whole, place: _Whole) -> _Whole:
        """Code of the holder that would be done first, of equals the lowest; `pick`: of the lowest holder."""
        soonest = self._rank(pick)
        for holders in self._holders[1:]:
            other = holders.take(place)
            if other.min() == self._nobody:
                break
            rank = self._rank(other)
            pick = _select(rank < soonest, other, pick)
            np.minimum(soonest, rank, out=soonest)
        return pick

    def _rank(self, worker: _Whole) -> _Whole:
        """Of the cells of the foremost steps' `worker`, codes."""
        compared = self._compared[: self._num_compared, : len(worker)]
        same = self._same[: self._num_compared, : len(worker)]
        np.equal(compared, worker, out=same)
        cell = worker + np.add.reduce(same.view(np.uint8), axis=0, dtype=np.uint8)
        if self._before is not None:
            cell += self._before[worker >> self._bits, np.arange(len(worker))]
        rank: _Whole = self._ranks.take(cell)
        return rank

    def _count(self) -> None:
        """Add the experts compared so far to what each worker had before."""
        counts = np.empty((self._num_workers + 1, self._compared.shape[1]), dtype=self._dtype)
        for worker, count in enumerate(counts):
            np.equal(self._compared, self._dtype.type(worker << self._bits), out=self._same)
            count[:] = np.add.reduce(self._same.view(np.uint8), axis=0, dtype=np.uint8)
        self._before = counts if self._before is None else self._before + counts
        self._num_compared = 0


def _select(where: NDArray[np.bool_], yes: _Whole, no: _Whole) -> _Whole:
    """`np.where` without branches, which would be mispredicted half of the time."""
    chosen = np.bitwise_xor(yes, no)
    chosen *= where
    chosen ^= no
    return chosen


def _cell_ranks(finish_s: NDArray[np.float64], bits: int) -> _Whole:
    """The order in which cells (worker, experts there) would be done, of equals the lowest worker first.

    By code: [(num_workers + 1) << bits]; nobody's cells come last.
    """
    num_workers, counts = finish_s.shape
    workers = np.repeat(np.arange(num_workers), counts)
    order = np.lexsort((workers, finish_s.ravel()))
    of_cell = np.empty(finish_s.size, dtype=np.min_scalar_type(finish_s.size))
    of_cell[order] = np.arange(finish_s.size)
    ranks = np.full((num_workers + 1, 1 << bits), finish_s.size, dtype=of_cell.dtype)
    ranks[:-1, :counts] = of_cell.reshape(finish_s.shape)
    return ranks.ravel()
