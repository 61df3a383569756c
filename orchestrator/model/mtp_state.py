"""What the MTP layers remember of one sequence; `orchestrator.model.mtp` has the names."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from orchestrator.model.kv_cache import KVCache
from orchestrator.model.kv_pool import KvPool
from orchestrator.model.rows_behind import LayerBounds, RowsBehind
from orchestrator.model.waiting_rows import WaitingRows
from placement.kv_size import HELD_BACK, MOST_DEFERRED, ROWS_BACK
from placement.model_shape import MOST_POSITIONS


class MtpState:
    """What the MTP layers remember of one sequence.

    Slots count from the first row that the layers had, which is the text's first one unless `begin_at` says
    otherwise.

    Attributes:
        first_position: in the text, of slot 0.
        hidden_size: of a row.
        caches: one cache a layer; its length is the number of committed slots, c_k.
        rows: for each layer k, the verified input rows s^{k-1} of the slots that come next. They begin with
            slot c_k, or later where no slot before them is needed.
        reaches: of each layer, how many slots before the newest one drafts may hang on; None for all.
        lowest: the smallest number of trunk rows at which drafts are right from what is here.
    """

    __slots__ = ("_lowest", "_most", "caches", "first_position", "hidden_size", "reaches", "rows")

    def __init__(
        self, caches: tuple[KVCache, ...], hidden_size: int, reaches: Sequence[int | None], pool: KvPool
    ) -> None:
        """
        Args:
            caches: of one layer at least. A sequence without drafts has no state.
            pool: of RAM; rows that wait are in its pages.

        Raises:
            ValueError: no layers.
        """
        if not caches:
            raise ValueError("what MTP layers remember takes one layer at least")
        self.first_position = 0
        self.hidden_size = hidden_size
        self.caches = caches
        self.rows = tuple(WaitingRows(hidden_size, pool) for _ in caches)
        self.reaches = tuple(reaches)
        self._lowest = 0
        # Of each layer, the most rows that it would compute for its next draft.
        self._most = [MOST_POSITIONS if reach is None else reach + ROWS_BACK + 1 for reach in reaches]

    @property
    def num_hidden(self) -> int:
        """Trunk rows seen, L."""
        return self.rows[0].stop

    @property
    def deferred(self) -> int:
        """Trunk rows that wait for the next `MtpDrafter.draft`."""
        return len(self.rows[0])

    @property
    def is_behind(self) -> bool:
        """Whether so much waits that it has to be taken in, though nobody asks for drafts."""
        return self.must_take_in(0)

    def must_take_in(self, k: int) -> bool:
        """Whether so much waits for layer k, and none of it can be forgotten."""
        return self.reaches[k] is None and len(self.rows[k]) >= MOST_DEFERRED

    @property
    def layer_bounds(self) -> LayerBounds:
        """See `RowsBehind`; slots count from the text's first row."""
        slots = [self.first_position + cache.length for cache in self.caches]
        return tuple(zip(slots, self._most, strict=True))

    @property
    def behind(self) -> RowsBehind:
        """Rows that each layer would compute for its next draft, but for what hangs on drafts."""
        return RowsBehind(self.first_position + self.num_hidden, self.layer_bounds)

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
        if hidden_states.shape[0] > self.rows[0].room:
            # First, so that a sequence holds no more pages meanwhile.
            num_hidden = self.num_hidden + hidden_states.shape[0]
            for k, rows in enumerate(self.rows):
                rows.forget_before(self._first_needed(k, num_hidden))
        self.rows[0].append(hidden_states)

    def first_needed(self, k: int) -> int:
        """The first slot of layer k that drafts after this row, or after one a little earlier, hang on."""
        return self._first_needed(k, self.num_hidden)

    def begin_at(self, position: int) -> None:
        """Have the text begin at a position; for a state that has nothing yet."""
        self.first_position = position

    def forget(self, length: int) -> None:
        """Keep the rows of so many of the text's positions alone; those after them must be deferred still."""
        assert length >= self.first_position
        if self.num_hidden > length - self.first_position:
            self.rows[0].drop_from(length - self.first_position)

    def begin_layer_at(self, k: int, slot: int) -> None:
        """Have nothing of layer k before a slot, because nothing before it is needed."""
        reach = self.reaches[k]
        assert reach is not None
        self.rows[k].drop_before(slot)
        self.caches[k].skip(slot)
        self._lowest = max(self._lowest, slot + reach + 1)

    def resume(self, lowest: int) -> None:
        """Go on with slots and rows of a kept text, which are there."""
        self._lowest = lowest

    def close(self) -> None:
        """Give the pages of caches and rows back now."""
        for cache in self.caches:
            cache.close()
        for rows in self.rows:
            rows.close()

    def _first_needed(self, k: int, num_hidden: int) -> int:
        reach = self.reaches[k]
        return 0 if reach is None else max(0, num_hidden - 1 - ROWS_BACK - reach)
