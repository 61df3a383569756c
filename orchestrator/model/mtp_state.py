"""What the MTP layers remember of one sequence; `orchestrator.model.mtp` has the names."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from orchestrator.model.kv_cache import KVCache
from orchestrator.model.kv_pool import KvPool
from orchestrator.model.rows_behind import RowsBehind
from orchestrator.model.waiting_rows import WaitingRows, append_each
from placement.kv_size import HELD_BACK, MOST_DEFERRED, ROWS_BACK
from placement.model_shape import MOST_POSITIONS


class MtpState:
    """What the MTP layers remember of one sequence.

    Attributes:
        num_hidden: trunk rows seen, L.
        hidden_size: of a row.
        caches: one cache a layer; its length is the number of committed slots, c_k.
        rows: for each layer k, the verified input rows s^{k-1} of the slots that come next. They begin with
            slot c_k, or later where no slot before them is needed.
        reaches: of each layer, how many slots before the newest one drafts may hang on; None for all.
        lowest: the smallest number of trunk rows at which drafts are right from what is here.
    """

    __slots__ = ("_layers", "_lowest", "caches", "hidden_size", "num_hidden", "reaches", "rows")

    def __init__(
        self, caches: tuple[KVCache, ...], hidden_size: int, reaches: Sequence[int | None], pool: KvPool
    ) -> None:
        """`pool`: of RAM; rows that wait are in its pages."""
        self.num_hidden = 0
        self.hidden_size = hidden_size
        self.caches = caches
        self.rows = tuple(WaitingRows(hidden_size, pool) for _ in caches)
        self.reaches = tuple(reaches)
        # Of each layer, slots and the most rows that it is behind; None until somebody asks again.
        self._layers: tuple[tuple[int, int], ...] | None = None
        self._lowest = 0

    @property
    def deferred(self) -> int:
        """Trunk rows that wait for the next `MtpDrafter.draft`."""
        return len(self.rows[0])

    @property
    def is_behind(self) -> bool:
        """Whether so much waits that it has to be taken in, though nobody asks for drafts."""
        return bool(self.rows) and self.must_take_in(0)

    def must_take_in(self, k: int) -> bool:
        """Whether so much waits for layer k, and none of it can be forgotten."""
        return self.reaches[k] is None and len(self.rows[k]) >= MOST_DEFERRED

    @property
    def behind(self) -> RowsBehind:
        """Rows that each layer would compute for its next draft, but for what hangs on drafts."""
        layers = self._layers
        if layers is None:
            most = [MOST_POSITIONS if reach is None else reach + ROWS_BACK + 1 for reach in self.reaches]
            layers = self._layers = tuple(zip([cache.length for cache in self.caches], most, strict=True))
        return RowsBehind(self.num_hidden, layers)

    @property
    def lowest(self) -> int:
        """See the class."""
        found = self._lowest
        for cache, rows, reach in zip(self.caches, self.rows, self.reaches, strict=True):
            if reach is not None and rows.start > cache.length:
                found = max(found, rows.start + reach + 1)
        return found

    @property
    def length(self) -> int:
        """Positions at which others can go on from here; without rows where every layer has caught up."""
        slots = min(cache.length for cache in self.caches)
        return slots if self.num_hidden - slots <= HELD_BACK else self.num_hidden

    def defer(self, hidden_states: Tensor) -> None:
        """Keep newly verified trunk rows, float32 [n, hidden], for the next `MtpDrafter.draft`.

        Raises:
            KvDoesNotFit: the pool has no room for them.
        """
        self.num_hidden += hidden_states.shape[0]
        if self.rows:
            self._append(hidden_states)

    def first_needed(self, k: int) -> int:
        """The first slot of layer k that drafts after this row, or after one a little earlier, hang on."""
        reach = self.reaches[k]
        return 0 if reach is None else max(0, self.num_hidden - 1 - ROWS_BACK - reach)

    def forget(self, num_hidden: int) -> None:
        """Keep so many trunk rows alone; those after them must be deferred still."""
        if self.num_hidden > num_hidden:
            if self.rows:
                self.rows[0].drop_from(num_hidden)
            self.num_hidden = num_hidden

    def computes(self) -> None:
        """Layers are about to compute slots."""
        self._layers = None

    def begin_layer_at(self, k: int, slot: int) -> None:
        """Have nothing of layer k before a slot, because nothing before it is needed."""
        reach = self.reaches[k]
        assert reach is not None
        self.rows[k].drop_before(slot)
        self.caches[k].skip(slot)
        self._lowest = max(self._lowest, slot + reach + 1)

    def resume(self, num_hidden: int, lowest: int) -> None:
        """Go on after so many trunk rows of a kept text, whose slots and rows are there."""
        self.num_hidden = num_hidden
        self._lowest = lowest
        self._layers = None

    def close(self) -> None:
        """Give the pages of caches and rows back now."""
        self._layers = None
        for cache in self.caches:
            cache.close()
        for rows in self.rows:
            rows.close()

    def _append(self, hidden_states: Tensor) -> None:
        """Keep rows that were seen."""
        if hidden_states.shape[0] > self.rows[0].room:
            # First, so that a sequence holds no more pages meanwhile.
            for k, rows in enumerate(self.rows):
                rows.forget_before(self.first_needed(k))
        self.rows[0].append(hidden_states)


def defer_each(
    states: Sequence[MtpState], firsts: Sequence[int], counts: Sequence[int], hidden_states: Tensor
) -> None:
    """Have the states of several sequences keep rows of one pass, as `MtpState.defer` does for one.

    Args:
        states: with one MTP layer or more.
        firsts, counts: of each sequence, its first row, and how many of them it keeps.
        hidden_states: of all, contiguous float32 [num_rows, hidden].

    Raises:
        KvDoesNotFit: a pool has no room for a sequence's rows.
    """
    left = append_each([state.rows[0] for state in states], firsts, counts, hidden_states)
    for state, count in zip(states, counts, strict=True):
        state.num_hidden += count
    for place in left:
        first = firsts[place]
        states[place]._append(hidden_states[first : first + counts[place]])
