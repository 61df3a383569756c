"""Prefixes that are kept between requests and turns, until running sequences need their memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from orchestrator.model.kv_cache import KVCache
from orchestrator.model.kv_pool import KvPool, Page
from orchestrator.model.mtp_state import MtpState
from orchestrator.model.rows_behind import CONTEXT_ROWS
from orchestrator.model.step35 import Step35Model
from orchestrator.model.waiting_rows import WaitingRows
from orchestrator.prefix.kept import Boundary, KeptCache, KeptDrafter, KeptMtp, KeptRows, LayerPages
from orchestrator.prefix.tree import Match, Tree
from placement.kv_size import PAGE_POSITIONS

LEAST_TOKENS = 16
"""That a hit spares: copying a page in every layer takes about as long as computing so many."""
MOST_BOUNDARIES = 512
"""Texts are looked through one by one, while everybody waits for the next pass."""
_NOTHING = KeptCache(0, ())


@dataclass(frozen=True, slots=True)
class Resumed:
    """What was kept of a new sequence's text.

    Attributes:
        matched: tokens that need not be computed, the caches' length.
        shared: tokens that some kept text has in common with this one, at least `matched`. Where it is more,
            a boundary there would have served, and will serve others (`stops`).
    """

    matched: int
    shared: int


@dataclass(frozen=True, slots=True)
class PrefixStats:
    """Counted since the cache began, and what it holds now.

    Attributes:
        asked, hits: requests, and those that something was spared.
        asked_tokens, saved_tokens: of prompts, and those of them that were not computed.
        evicted: boundaries that had to go.
        boundaries: that are kept.
        kept_bytes: of pages that no running sequence holds; these give way.
        held_bytes: of all pages that are kept, each counted once.
    """

    asked: int
    hits: int
    asked_tokens: int
    saved_tokens: int
    evicted: int
    boundaries: int
    kept_bytes: int
    held_bytes: int


class PrefixCache:
    """Keeps pages of texts that were read, for sequences that begin with the same tokens.

    A sequence that goes on from them has the bits of one that computes all itself. What was used least
    recently goes first, and all of it before a running sequence is refused.

    Not for several threads: whoever runs the passes calls it, between them.
    """

    def __init__(self, pools: Iterable[KvPool]) -> None:
        """`pools`: all that caches and MTP layers' caches take pages from.

        Raises:
            ValueError: another one keeps pages of a pool.
        """
        self._pools = tuple(dict.fromkeys(pools))
        if any(pool.make_room is not None for pool in self._pools):
            raise ValueError("a pool's pages are kept by one prefix cache")
        for pool in self._pools:
            pool.make_room = self._make_room
        self._tree = Tree()
        # Least recently used first.
        self._boundaries: dict[Boundary, None] = {}
        self._asked = self._hits = self._asked_tokens = self._saved_tokens = self._evicted = 0

    @classmethod
    def of(cls, model: Step35Model) -> PrefixCache:
        """Of a model's caches; raises as the constructor."""
        pools = [model.kv_pool] if model.card is None else [model.kv_pool, model.card.pool]
        return cls(pools)

    @property
    def stats(self) -> PrefixStats:
        """Counts, and what is kept now."""
        return PrefixStats(
            asked=self._asked,
            hits=self._hits,
            asked_tokens=self._asked_tokens,
            saved_tokens=self._saved_tokens,
            evicted=self._evicted,
            boundaries=len(self._boundaries),
            kept_bytes=sum(pool.kept_bytes for pool in self._pools),
            held_bytes=sum(pool.held_bytes for pool in self._pools),
        )

    def fill(self, token_ids: Sequence[int], cache: KVCache, mtp: MtpState | None) -> Resumed:
        """Give a new sequence's caches what is kept of its text.

        At least the last token is left to compute, since its hidden state gives the next one.

        Args:
            mtp: None for a sequence without drafts. For one with them, a text that was kept with its MTP
                layers goes before one that was not, unless that spares a page's worth of tokens more.

        Raises:
            KvDoesNotFit: there is no room for rows that are copied. The caches are of no use then.
        """
        num_mtp = len(mtp.caches) if mtp is not None else 0
        match, alone = self._tree.matches(token_ids, num_mtp, len(token_ids) - 1)
        length = _where_mtp_begins(match, alone) if mtp is not None else None
        if length is not None:
            match = replace(alone, length=length)
        matched = 0
        if match.boundary is not None and match.length >= LEAST_TOKENS:
            matched = match.length
            self._touch(match.boundary)
            match.boundary.fill(cache, mtp if length is None else None, matched)
            if mtp is not None and length is not None:
                mtp.begin_at(matched)
        # Only now, since who found no room comes again.
        self._asked += 1
        self._asked_tokens += len(token_ids)
        self._hits += matched > 0
        self._saved_tokens += matched
        return Resumed(matched, match.shared)

    def keep(
        self,
        token_ids: Sequence[int],
        cache: KVCache,
        mtp: MtpState | None = None,
        upto: int | None = None,
    ) -> int:
        """Keep a sequence's text as far as it is computed; the sequence may go on, or be closed.

        Sliding layers hold the newest positions alone, so text can be kept up to about where the sequence is,
        and the earlier ends of a text when the sequence comes to them.

        Args:
            token_ids: the sequence's, at least those that its cache holds.
            cache, mtp: the sequence's, as they are between passes.
            upto: leave out tokens from this position on, which no later text will have.

        Returns:
            How many tokens a text that begins with these is spared; 0 where they cannot be kept.

        Raises:
            ValueError: the cache holds more tokens than are given.
        """
        if len(token_ids) < cache.length:
            raise ValueError(f"{len(token_ids)} tokens of a cache that holds {cache.length}")
        tokens = token_ids if upto is None else token_ids[:upto]
        lowest, length, num_mtp = cache.lowest, min(len(tokens), cache.length), 0
        drafts_from = None
        if mtp is not None:
            num_mtp, drafts_from = len(mtp.caches), _lowest_of(mtp)
            with_mtp = min(len(tokens) - num_mtp, cache.length, mtp.first_position + mtp.length)
            if with_mtp >= max(lowest, drafts_from):
                length = with_mtp
            else:
                mtp, num_mtp, drafts_from = None, 0, None
        if length < max(lowest, LEAST_TOKENS):
            return 0
        tokens = tokens[: length + num_mtp]
        known = self._tree.match(tokens, num_mtp, length)
        if (
            known.boundary is not None
            and known.length == length
            and known.boundary.serves(lowest, drafts_from)
        ):
            self._touch(known.boundary)
            return length
        boundary = self._boundary(tokens, lowest, length, cache, mtp)
        for above in self._needless(boundary, tokens):
            self._let_go(above)
        while len(self._boundaries) > MOST_BOUNDARIES:
            self._let_go(next(iter(self._boundaries)))
            self._evicted += 1
        return length

    def close(self) -> None:
        """Let go of everything; another cache may keep pages of the pools then."""
        while self._boundaries:
            self._evict_one(self._pools)
        for pool in self._pools:
            pool.make_room = None

    def evict(self, num_bytes: int) -> int:
        """Let go of what was used least recently, until so many bytes came free or nothing is kept.

        Returns:
            Bytes that came free. What running sequences hold too comes free with them.
        """
        before, freed = self.stats.kept_bytes, 0
        while freed < num_bytes and self._evict_one(self._pools):
            freed = before - self.stats.kept_bytes
        return freed

    def _boundary(
        self,
        tokens: Sequence[int],
        lowest: int,
        length: int,
        cache: KVCache,
        mtp: MtpState | None,
    ) -> Boundary:
        """A new one; all that it holds counts as kept."""
        depth = length // PAGE_POSITIONS
        shared = cache.share(length)
        full = [place for place, layer in enumerate(cache.layers) if not layer.is_sliding]

        def of_block(number: int) -> tuple[LayerPages, ...]:
            return tuple(_of(cache, place, shared[place][number : number + 1]) for place in full)

        block = self._tree.add(tokens, depth, of_block)
        own = [
            pages if layer.is_sliding else pages[depth:]
            for layer, pages in zip(cache.layers, shared, strict=True)
        ]
        boundary = Boundary(
            block,
            tuple(tokens[depth * PAGE_POSITIONS :]),
            lowest,
            length,
            _kept(cache, own),
            _kept_drafter(mtp, length) if mtp is not None else None,
        )
        for of_layer in boundary.own_pages():
            of_layer.pool.keep(of_layer.kv, of_layer.pages)
        block.boundaries.append(boundary)
        self._boundaries[boundary] = None
        return boundary

    def _needless(self, boundary: Boundary, tokens: Sequence[int]) -> list[Boundary]:
        """Those on the way to a boundary whose trunk spares nobody more than its does."""
        found = []
        for number, block in enumerate((self._tree.root, *boundary.block.path())):
            # Cut once for all: a tail is shorter than two blocks.
            following = tuple(tokens[number * PAGE_POSITIONS : (number + 2) * PAGE_POSITIONS])
            # Of hundreds of texts nearly all part from this one at once.
            begins = ((), following[:1])
            found += [
                above
                for above in block.boundaries
                if above.tail[:1] in begins
                and above.tail == following[: len(above.tail)]
                and above is not boundary
                and boundary.lowest <= above.lowest
                and above.length <= boundary.length
            ]
        return found

    def _make_room(self, pool: KvPool) -> bool:
        return self._evict_one((pool,))

    def _evict_one(self, pools: Sequence[KvPool]) -> bool:
        """Of those that free memory of some of the pools now, the least recently used; else the oldest."""
        if not self._boundaries:
            return False
        oldest = next(iter(self._boundaries))
        self._let_go(next((found for found in self._boundaries if any(map(found.frees, pools))), oldest))
        self._evicted += 1
        return True

    def _let_go(self, boundary: Boundary) -> None:
        del self._boundaries[boundary]
        self._tree.remove(boundary)

    def _touch(self, boundary: Boundary) -> None:
        del self._boundaries[boundary]
        self._boundaries[boundary] = None


def _where_mtp_begins(with_mtp: Match, alone: Match) -> int | None:
    """The length at which to go on without kept MTP layers, if that spares enough more than with them.

    Drafts need some rows, which are computed again as far as the trunk can go back.
    """
    if alone.boundary is None:
        return None
    length = min(alone.length, max(alone.boundary.lowest, LEAST_TOKENS, alone.length - CONTEXT_ROWS))
    least_gain = PAGE_POSITIONS if with_mtp.length >= LEAST_TOKENS else LEAST_TOKENS
    return length if length >= with_mtp.length + least_gain else None


def _lowest_of(mtp: MtpState) -> int:
    return mtp.first_position + max(mtp.lowest, *(of.lowest for of in mtp.caches))


def _kept_drafter(mtp: MtpState, length: int) -> KeptDrafter:
    slots = length - mtp.first_position
    layers = tuple(_kept_mtp(cache, rows, slots) for cache, rows in zip(mtp.caches, mtp.rows, strict=True))
    return KeptDrafter(layers, mtp.first_position, _lowest_of(mtp))


def _of(cache: KVCache, place: int, pages: tuple[Page, ...]) -> LayerPages:
    layer = cache.layers[place]
    return LayerPages(layer.pool, layer.kv, pages)


def _kept_mtp(cache: KVCache, rows: WaitingRows, length: int) -> KeptMtp:
    """Without slots where the rows that wait begin behind them: then no draft needs the slots."""
    slots = min(cache.length, length)
    start = rows.start if rows.start > cache.length else slots
    stop = max(start, min(rows.stop, length))
    pages = rows.share(start, stop)
    waiting = KeptRows(start, stop, LayerPages(rows.pool, rows.kv, pages) if pages else None)
    if not slots or start > slots:
        return KeptMtp(_NOTHING, 0, waiting)
    return KeptMtp(_kept(cache, cache.share(slots)), slots, waiting)


def _kept(cache: KVCache, pages: Sequence[tuple[Page, ...]]) -> KeptCache:
    sliding = [layer for layer in cache.layers if layer.is_sliding]
    first_page = cache.first_page(sliding[0]) if sliding else 0
    return KeptCache(first_page, tuple(_of(cache, place, own) for place, own in enumerate(pages)))
