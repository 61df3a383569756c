"""Keys and values of one sequence, in pages: all on full layers, those of the window on sliding ones."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from orchestrator.model.kv_pool import KvPool, Page
from placement.errors import KvDoesNotFit
from placement.kv_size import HELD_BACK, PAGE_POSITIONS, KvForm, KvShape, pages_of
from placement.units import size
from workers.model_config import LayerConfig

_FIRST_PAGES = 8
_shape = lru_cache(KvShape)  # Equal shapes are one object, so that those of two caches are quickly compared.


class LayerCache:
    """One layer's pages.

    Attributes:
        table: address of the page of positions from i * PAGE_POSITIONS on, 0 where it is not held; a row of
            the cache's tables.
        pages: the same pages by i.
        changes: how often the table was changed, for who has a copy of it.
    """

    __slots__ = ("changes", "is_sliding", "kv", "pages", "pool", "table")

    def __init__(self, kv: KvShape, is_sliding: bool, pool: KvPool, table: NDArray[np.int64]) -> None:
        self.kv = kv
        self.is_sliding = is_sliding
        self.pool = pool
        self.pages: dict[int, Page] = {}
        self.table = table
        self.changes = 0

    def add(self, place: int, page: Page) -> None:
        self.table[place] = page.data_ptr()
        self.pages[place] = page
        self.changes += 1

    def own(self, place: int) -> bool:
        """Have no other holder of a page that is to be written; False where there is no room for a copy."""
        page = self.pages[place]
        own = self.pool.own(self.kv, page)
        if own is not None and own is not page:
            self.add(place, own)
        return own is not None

    def drop(self, places: Sequence[int]) -> None:
        dropped = [self.pages.pop(place) for place in places]
        for place in places:
            self.table[place] = 0
        self.changes += 1
        self.pool.give_back(self.kv, dropped)


class KVCache:
    """All layers' keys and values of one sequence.

    A forward pass calls `begin(n)`, writes n rows at positions length .. length+n-1 in every layer, then
    `commit(n)`. `rollback` forgets the newest positions in O(1). Pages go back to the pool at `close`, or
    with the cache.

    Others may hold the same pages (`share`, `adopt`). A page that others hold is copied before it is written.

    Attributes:
        shapes: of each layer's keys and values.
        tables: of all layers, int64 [layers, pages]. They move when they grow, which only `begin` and
            `adopt` have them do.
    """

    __slots__ = (
        "__weakref__",
        "_first_page",
        "_is_closed",
        "_shared_stop",
        "_stop_page",
        "_window",
        "layers",
        "length",
        "shapes",
        "tables",
    )

    def __init__(
        self,
        layers: Sequence[LayerConfig],
        sliding_window: int,
        form: KvForm,
        pool: KvPool | Sequence[KvPool],
    ) -> None:
        """`pool`: one for all layers, or one a layer."""
        # For `close`, which comes also where the rest fails.
        self.layers: tuple[LayerCache, ...] = ()
        pools = [pool] * len(layers) if isinstance(pool, KvPool) else pool
        self.shapes = tuple(_shape(form, layer.num_kv_heads, layer.head_dim) for layer in layers)
        self.tables: NDArray[np.int64] = np.zeros((len(layers), _FIRST_PAGES), np.int64)
        self.layers = tuple(
            LayerCache(kv, layer.is_sliding, own, table)
            for kv, layer, own, table in zip(self.shapes, layers, pools, self.tables, strict=True)
        )
        self.length = 0
        self._window = sliding_window
        # Sliding layers hold the pages from _first_page to _stop_page - 1, full layers all before _stop_page.
        self._first_page = 0
        self._stop_page = 0
        # From this page on, nobody else holds any.
        self._shared_stop = 0
        self._is_closed = False

    def __del__(self) -> None:
        self.close()

    @property
    def nbytes(self) -> int:
        """Bytes of the pages held now."""
        return sum(len(layer.pages) * layer.kv.page_bytes for layer in self.layers)

    @property
    def lowest(self) -> int:
        """The smallest length at which sliding layers still hold all keys that a query sees."""
        if not self._first_page or not any(layer.is_sliding for layer in self.layers):
            return 0
        return self._first_page * PAGE_POSITIONS + self._window - 1

    def begin(self, num_tokens: int) -> None:
        """Make room for `num_tokens` rows after the present length.

        Raises:
            KvDoesNotFit: the pool has no room for so many; the cache holds what it held before, as it does
                after errors of the pool's.
            ValueError: the cache is closed.
        """
        if self._is_closed:
            raise ValueError("a cache that was closed takes no rows")
        stop_page = pages_of(self.length + num_tokens)
        self._own(self.length // PAGE_POSITIONS, min(stop_page, self._shared_stop), num_tokens)
        if stop_page <= self._stop_page:
            return
        self._widen(stop_page)
        added: list[tuple[LayerCache, int]] = []
        try:
            for layer in self.layers:
                for place in range(self._stop_page, stop_page):
                    page = layer.pool.take(layer.kv)
                    if page is None:
                        self._undo(added)
                        raise self._refusal(num_tokens, layer.pool)
                    layer.add(place, page)
                    added.append((layer, place))
        except BaseException:
            self._undo(added)
            raise
        self._stop_page = stop_page

    def commit(self, num_tokens: int) -> None:
        """Count `num_tokens` rows, written in every layer, as present.

        Sliding layers give back the pages behind the window of every length at which somebody may go on.
        """
        self.length += num_tokens
        first = max(0, self.length - HELD_BACK - self._window + 1) // PAGE_POSITIONS
        if first > self._first_page:
            places = range(self._first_page, min(first, self._stop_page))
            for layer in self.layers:
                if layer.is_sliding:
                    layer.drop(places)
            self._first_page = first

    def rollback(self, length: int) -> None:
        """Forget positions `length` and later.

        Raises:
            ValueError: sliding layers no longer hold the keys a query at `length` would see.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot roll back a cache of {self.length} tokens to {length}")
        if length < self.lowest:
            held = self._first_page * PAGE_POSITIONS
            raise ValueError(
                f"cannot go on at position {length}: sliding layers hold positions from {held} on, "
                f"position {max(0, length - self._window + 1)} is needed"
            )
        self.length = length

    def skip(self, length: int) -> None:
        """Hold nothing, and go on at a position whose keys and values come next.

        Queries that see positions before it get anything for them.

        Raises:
            ValueError: a full layer would lack keys for ever, or the cache is closed.
        """
        if self._is_closed or not all(layer.is_sliding for layer in self.layers):
            raise ValueError("only a cache of sliding layers that is not closed can go on at any position")
        for layer in self.layers:
            layer.drop(tuple(layer.pages))
        self.length = length
        self._first_page = max(0, length - HELD_BACK - self._window + 1) // PAGE_POSITIONS
        self._stop_page = self._first_page
        self._shared_stop = 0

    def share(self, length: int) -> list[tuple[Page, ...]]:
        """Let others hold the pages of the first `length` positions, which this cache has.

        Returns:
            Each layer's pages; a sliding layer's are the last ones, from `first_page` on.
        """
        stop_page = pages_of(length)
        self._shared_stop = max(self._shared_stop, stop_page)
        return [
            tuple(layer.pages[place] for place in range(self.first_page(layer), stop_page))
            for layer in self.layers
        ]

    def first_page(self, layer: LayerCache) -> int:
        """The first page that a layer of this cache holds, or would."""
        return self._first_page if layer.is_sliding else 0

    def adopt(self, length: int, first_page: int, pages: Sequence[Sequence[Page]]) -> None:
        """Have the first `length` positions of a text, in pages that others hold; for a cache that is empty.

        Args:
            first_page: of sliding layers.
            pages: each layer's up to that of position length - 1, as `share` gives them.
        """
        if self._stop_page or self._is_closed:
            raise ValueError("only a cache that was never used takes the pages of others")
        self._first_page = first_page
        self._widen(pages_of(length))
        for layer, own in zip(self.layers, pages, strict=True):
            layer.pool.share(layer.kv, own)
            for place, page in enumerate(own, start=self.first_page(layer)):
                layer.add(place, page)
        self._stop_page = self._shared_stop = pages_of(length)
        self.length = length

    def close(self) -> None:
        """Give all pages back now. What was not closed does so when nobody has it any more."""
        self._is_closed = True
        for layer in self.layers:
            if layer.pages:
                layer.drop(tuple(layer.pages))
        self.length = self._first_page = self._stop_page = self._shared_stop = 0

    def _widen(self, num_pages: int) -> None:
        have = self.tables.shape[1]
        if num_pages <= have:
            return
        wider = np.zeros((len(self.layers), max(2 * have, num_pages)), np.int64)
        wider[:, :have] = self.tables
        self.tables = wider
        for layer, table in zip(self.layers, wider, strict=True):
            layer.table = table

    def _own(self, first: int, stop: int, num_tokens: int) -> None:
        for place in range(first, stop):
            for layer in self.layers:
                if not layer.own(place):
                    raise self._refusal(num_tokens, layer.pool)
        if first < stop == self._shared_stop:
            self._shared_stop = first

    @staticmethod
    def _undo(added: list[tuple[LayerCache, int]]) -> None:
        while added:
            layer, place = added.pop()
            layer.drop((place,))

    def _refusal(self, num_tokens: int, pool: KvPool) -> KvDoesNotFit:
        free = pool.budget_bytes - pool.used_bytes
        per_page = sum(layer.kv.page_bytes for layer in self.layers if layer.pool is pool)
        fits = (self._stop_page + free // per_page) * PAGE_POSITIONS
        return KvDoesNotFit(
            f"keys and values: {self.length + num_tokens} positions asked for, but the pages of all "
            f"sequences have {size(pool.budget_bytes)}, {size(free)} of them free, so {fits} positions fit; "
            "shorten the prompt, ask for fewer tokens, or keep keys and values in int8 (--kv int8)"
        )
