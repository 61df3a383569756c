"""What is kept of a text: pages of its blocks, and at boundaries what it takes to go on there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

from orchestrator.model.kv_cache import KVCache
from orchestrator.model.kv_pool import KvPool, Page
from orchestrator.model.mtp_state import MtpState
from placement.kv_size import KvShape, pages_of


@dataclass(frozen=True, slots=True)
class LayerPages:
    """Pages of one layer, one after another."""

    pool: KvPool
    kv: KvShape
    pages: tuple[Page, ...]


@dataclass(slots=True, eq=False)
class Block:
    """A page's worth of tokens after those of its parent, with the pages of all full layers of the trunk.

    The root is before all text and has neither tokens nor pages.

    Attributes:
        children: by their tokens, so a collision of hashes finds nothing wrong.
        boundaries: whose `length` lies in the page after this block.
    """

    parent: Block | None = None
    tokens: tuple[int, ...] = ()
    pages: tuple[LayerPages, ...] = ()
    children: dict[tuple[int, ...], Block] = field(default_factory=dict)
    boundaries: list[Boundary] = field(default_factory=list)

    def path(self) -> list[Block]:
        """The blocks from the beginning of the text to this one, without the root."""
        found = []
        block = self
        while block.parent is not None:
            found.append(block)
            block = block.parent
        return found[::-1]

    def boundaries_below(self) -> Iterator[Boundary]:
        """Those of this block and of all that follow it."""
        blocks = [self]
        while blocks:
            block = blocks.pop()
            yield from block.boundaries
            blocks += block.children.values()


@dataclass(frozen=True, slots=True)
class KeptCache:
    """Of one cache, what its text's blocks do not have.

    Attributes:
        first_page: of sliding layers.
        layers: each layer's pages up to the boundary: of a sliding layer those from `first_page` on, of a
            full layer of the trunk the one after the last whole block, of a full MTP layer all.
    """

    first_page: int
    layers: tuple[LayerPages, ...]


@dataclass(frozen=True, slots=True)
class KeptRows:
    """Rows that wait for an MTP layer.

    Attributes:
        start, stop: slots of the first one, and behind the last one.
        pages: those of `start` to `stop` - 1, as `WaitingRows.share` gives them; None for no rows.
    """

    start: int
    stop: int
    pages: LayerPages | None = None


@dataclass(frozen=True, slots=True)
class KeptMtp:
    """Of one MTP layer: `length` slots, and the rows that come next."""

    cache: KeptCache
    length: int
    rows: KeptRows


@dataclass(frozen=True, slots=True)
class KeptDrafter:
    """Of all MTP layers.

    Attributes:
        first_position: see `MtpState`; slots count from there.
        lowest: the smallest length of the text at which drafts are right.
    """

    layers: tuple[KeptMtp, ...]
    first_position: int
    lowest: int


@dataclass(frozen=True, slots=True, eq=False)
class Boundary:
    """A place in a text where a sequence can go on, and all places from `lowest` to it.

    Attributes:
        block: the last whole one before it.
        tail: the tokens after that block, as far as they are needed: MTP layers have read one more each.
        drafter: None where the text was kept without MTP layers.
    """

    block: Block
    tail: tuple[int, ...]
    lowest: int
    length: int
    trunk: KeptCache
    drafter: KeptDrafter | None

    def has_mtp(self, num_layers: int, length: int) -> bool:
        """Whether the first MTP layers can go on at a length too."""
        if not num_layers:
            return True
        kept = self.drafter
        return kept is not None and len(kept.layers) >= num_layers and kept.lowest <= length

    def serves(self, lowest: int, drafts_from: int | None) -> bool:
        """Whether others can go on at that length, and with drafts at another one; None for without."""
        if self.lowest > lowest:
            return False
        return drafts_from is None or (self.drafter is not None and self.drafter.lowest <= drafts_from)

    def own_pages(self) -> Iterator[LayerPages]:
        """Those that are not its blocks'."""
        yield from self.trunk.layers
        for kept in self.drafter.layers if self.drafter is not None else ():
            yield from kept.cache.layers
            if kept.rows.pages is not None:
                yield kept.rows.pages

    def pages_alone(self) -> Iterator[LayerPages]:
        """Those that go with it: its own, and those of blocks that lead to it alone."""
        yield from self.own_pages()
        block = self.block
        while block.parent is not None and len(block.boundaries) + len(block.children) == 1:
            yield from block.pages
            block = block.parent

    def frees(self, pool: KvPool) -> bool:
        """Whether letting it go frees memory of a pool now."""
        return any(
            of_layer.pool is pool and any(map(pool.is_kept_once, of_layer.pages))
            for of_layer in self.pages_alone()
        )

    def fill(self, cache: KVCache, mtp: MtpState | None, length: int) -> None:
        """Give new caches of the trunk and of the first MTP layers the text up to `length`.

        Args:
            mtp: None for the trunk alone; else the boundary has the layers at that length (`has_mtp`).

        Raises:
            KvDoesNotFit: there is no room for copies of the rows that wait.
        """
        stop_page = pages_of(length)
        of_blocks = [block.pages for block in self.block.path()[:stop_page]]
        full = count()
        pages = []
        for layer, kept in zip(cache.layers, self.trunk.layers, strict=True):
            if layer.is_sliding:
                pages.append(kept.pages[: stop_page - self.trunk.first_page])
                continue
            place = next(full)
            whole = tuple(page for of_block in of_blocks for page in of_block[place].pages)
            pages.append((*whole, *kept.pages)[:stop_page])
        cache.adopt(length, self.trunk.first_page, pages)
        if mtp is None:
            return
        drafter = self.drafter
        assert drafter is not None
        mtp.begin_at(drafter.first_position)
        length -= drafter.first_position
        left = []
        for own, rows, of_layer in zip(mtp.caches, mtp.rows, drafter.layers, strict=False):
            slots = min(length, of_layer.length)
            if slots:
                first_page = of_layer.cache.first_page if own.layers[0].is_sliding else 0
                held = of_layer.cache.layers[0].pages[: pages_of(slots) - first_page]
                own.adopt(slots, of_layer.cache.first_page, [held])
            of_rows = of_layer.rows
            if length < of_layer.length or of_rows.pages is None:
                rows.begin_at(min(length, of_rows.start))
            else:
                own_rows = rows.adopt(of_rows.start, min(length, of_rows.stop), of_rows.pages.pages)
                left.append((rows, own_rows))
        # Last, because the pages for these may be had only for what is kept here.
        for rows, own_rows in left:
            rows.append(own_rows)
        mtp.resume(drafter.lowest - drafter.first_position)
