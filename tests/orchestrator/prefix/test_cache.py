"""The prefix cache under any order of events: no sequence sees a wrong key, every page is accounted for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from numpy.typing import NDArray

from orchestrator.model.kv_cache import KVCache, LayerCache
from orchestrator.model.kv_pool import KvPool
from orchestrator.model.mtp_state import MtpState
from orchestrator.model.rows_behind import CONTEXT_ROWS
from orchestrator.prefix.cache import LEAST_TOKENS, PrefixCache
from placement.errors import KvDoesNotFit
from placement.kv_size import MAX_DRAFTS, PAGE_POSITIONS, KvForm, KvShape, SequenceSize, pages_of
from placement.model_shape import AttentionShape
from tests.examples import examples
from tests.orchestrator.prefix.begun import Begun, begun
from workers.model_config import LayerConfig

WINDOW = 150
PAGE_BYTES = KvShape(KvForm.float32, 1, 2).page_bytes
PASS_ROWS = 256
NUM_MTP = 2
UNKNOWN = 99
"""A token that no text has."""


def layer(*, is_sliding: bool) -> LayerConfig:
    return LayerConfig(0, is_sliding, 2, 1, 2, 1e4, 2, None, False, 0.0, 0.0)


FULL, SLIDING = layer(is_sliding=False), layer(is_sliding=True)
TRUNK = (FULL, SLIDING, FULL)
MTP = (SLIDING, FULL)


class Box:
    """Two pools, as of a box and its card, and caches that take pages from both."""

    def __init__(self, pages: int) -> None:
        self.pools = (KvPool(pages * PAGE_BYTES), KvPool(pages * PAGE_BYTES))
        self.prefix = PrefixCache(self.pools)

    def new_cache(self) -> KVCache:
        return KVCache(TRUNK, WINDOW, KvForm.float32, [self.pools[place % 2] for place in range(len(TRUNK))])

    def new_state(self) -> MtpState:
        caches = tuple(KVCache((of,), WINDOW, KvForm.float32, self.pools[0]) for of in MTP)
        return MtpState(caches, 1, (None, None), self.pools[0])

    def begun(self, tokens: Sequence[int], *, drafts: bool = True) -> Begun:
        return begun(self.prefix, self, tokens, self if drafts else None)


class Text:
    """A sequence whose rows are told by the tokens that a true one would be computed from."""

    def __init__(self, box: Box, tokens: Sequence[int]) -> None:
        self.tokens = list(tokens)
        found = box.begun(tokens)
        assert found.mtp is not None
        self.cache, self.mtp, self.matched = found.cache, found.mtp, found.matched
        self.longest = found.matched
        # MTP layers have the text from there on.
        self.begin = self.mtp.first_position
        assert self.begin + self.mtp.num_hidden == self.matched

    @property
    def caches(self) -> tuple[KVCache, ...]:
        return (self.cache, *self.mtp.caches)

    def close(self) -> None:
        self.cache.close()
        self.mtp.close()

    def run(self, stop: int, rejected: int = 0) -> None:
        """A pass of the trunk up to `stop`, with drafts that are rejected, and what MTP layers do then."""
        rows = stop - self.cache.length
        self.longest = max(self.longest, stop + rejected)
        write(self.cache, self.told(0), rows, rejected)
        self.cache.commit(rows + rejected)
        self.cache.rollback(stop)
        verified = stop
        for k, cache in enumerate(self.mtp.caches):
            verified = max(self.begin, min(verified, len(self.tokens) - 1 - k))
            newly = verified - self.begin - cache.length
            assert newly >= 0
            write(cache, self.told(1 + k)[self.begin :], newly, rejected)
            cache.commit(newly)
            # No row waits.
            self.mtp.rows[k].begin_at(cache.length)

    def told(self, ahead: int) -> NDArray[np.float32]:
        """Of each position, a number that stands for the tokens up to so many after it."""
        told, number = [], 1
        for token in self.tokens:
            number = (number * 31 + token) % 65521
            told.append(number)
        return np.array(told[ahead:], np.float32)

    def check(self) -> None:
        for cache, ahead in zip(self.caches, (0, 1, 2), strict=True):
            told = self.told(ahead)[self.begin if ahead else 0 :]
            for of_layer in cache.layers:
                first = max(0, cache.length - WINDOW + 1) if of_layer.is_sliding else 0
                assert np.array_equal(held(of_layer, first, cache.length), told[first : cache.length])


def write(cache: KVCache, told: NDArray[np.float32], rows: int, rejected: int) -> None:
    try:
        cache.begin(rows + rejected)
    except KvDoesNotFit:
        assert lacks_room(cache, cache.length + rows + rejected)
        raise
    values = [*told[cache.length : cache.length + rows], *[-1.0] * rejected]
    for of_layer in cache.layers:
        for position, value in enumerate(values, start=cache.length):
            page = of_layer.pages[position // PAGE_POSITIONS]
            assert of_layer.table[position // PAGE_POSITIONS] == page.data_ptr()
            page.numpy().view(np.float32)[position % PAGE_POSITIONS] = value  # type: ignore[attr-defined]


def lacks_room(cache: KVCache, length: int) -> bool:
    """Whether running sequences alone leave a pool too few pages for so many positions."""
    places = range(cache.length // PAGE_POSITIONS, pages_of(length))
    for pool in {of_layer.pool for of_layer in cache.layers}:
        wanted = 0
        for of_layer in cache.layers:
            if of_layer.pool is pool:
                pages = [of_layer.pages.get(place) for place in places]
                wanted += sum(page is None or pool._holders[page.data_ptr()].running > 1 for page in pages)
        if pool.used_bytes + wanted * PAGE_BYTES > pool.budget_bytes:
            return True
    return False


def held(of_layer: LayerCache, first: int, stop: int) -> NDArray[np.float32]:
    pages = [of_layer.pages[place] for place in range(first // PAGE_POSITIONS, pages_of(stop))]
    if not pages:
        return np.zeros(0, np.float32)
    rows = [page.numpy().view(np.float32)[:PAGE_POSITIONS] for page in pages]  # type: ignore[attr-defined]
    start = first // PAGE_POSITIONS * PAGE_POSITIONS
    return np.concatenate(rows)[first - start : stop - start]


ROOTS = [np.random.default_rng(seed).integers(0, 9, 700).tolist() for seed in (1, 2)]
# Two texts part after 300 tokens.
ROOTS.append([*ROOTS[0][:300], *ROOTS[1][:400]])
SIZE = SequenceSize(
    [AttentionShape(2, 1, 2, WINDOW if of.is_sliding else 0, False) for of in (*TRUNK, *MTP)], KvForm.float32
)


class AnyOrder(RuleBasedStateMachine):
    """Sequences begin, go on, are kept, end and are cancelled, with little memory."""

    def __init__(self) -> None:
        super().__init__()
        self.box = Box(45)
        self.texts: list[Text] = []

    def extend(self, text: Text, stop: int, rejected: int) -> None:
        """Until there is no room: then the sequences that run take all of it, and this one is given up."""
        try:
            while text.cache.length < stop:
                start = text.cache.length
                text.run(min(stop, start - start % PAGE_POSITIONS + PASS_ROWS), rejected)
        except KvDoesNotFit:
            self.texts.remove(text)
            text.close()

    @rule(
        root=st.integers(0, len(ROOTS) - 1),
        length=st.integers(1, 640),
        suffix=st.lists(st.integers(0, 8), max_size=5),
        read=st.floats(0, 1),
        rejected=st.integers(0, MAX_DRAFTS),
    )
    def start(self, root: int, length: int, suffix: list[int], read: float, rejected: int) -> None:
        tokens = [*ROOTS[root][:length], *suffix]
        text = Text(self.box, tokens)
        assert text.matched < len(tokens)
        text.check()
        self.texts.append(text)
        self.extend(text, text.matched + max(1, int(read * (len(tokens) - text.matched))), rejected)

    @precondition(lambda self: self.texts)
    @rule(
        which=st.integers(0, 99),
        tokens=st.lists(st.integers(0, 8), min_size=1, max_size=9),
        rejected=st.integers(0, MAX_DRAFTS),
    )
    def go_on(self, which: int, tokens: list[int], rejected: int) -> None:
        text = self.texts[which % len(self.texts)]
        text.tokens += tokens
        self.extend(text, min(len(text.tokens) - 1, text.cache.length + 300), rejected)

    @precondition(lambda self: self.texts)
    @rule(which=st.integers(0, 99), left_out=st.one_of(st.none(), st.integers(0, 400)), ends=st.booleans())
    def keep(self, which: int, left_out: int | None, ends: bool) -> None:
        text = self.texts[which % len(self.texts)]
        upto = None if left_out is None else max(0, text.cache.length - left_out)
        length = self.box.prefix.keep(text.tokens, text.cache, text.mtp, upto)
        assert length <= text.cache.length
        if upto is None and text.mtp.caches[-1].length >= LEAST_TOKENS:
            assert length >= text.cache.length - 2 * MAX_DRAFTS
        if length:
            again = self.box.begun([*text.tokens[: length + NUM_MTP], UNKNOWN])
            assert again.mtp is not None
            # A text that was kept with MTP layers goes before one that spares a little more.
            assert length - PAGE_POSITIONS < again.matched <= length
            again.cache.close()
            again.mtp.close()
        if ends:
            self.texts.remove(text)
            text.close()

    @precondition(lambda self: self.texts)
    @rule(which=st.integers(0, 99))
    def cancel(self, which: int) -> None:
        text = self.texts.pop(which % len(self.texts))
        text.close()
        text.close()

    @rule(pages=st.integers(0, 30))
    def evict(self, pages: int) -> None:
        prefix, before = self.box.prefix, self.box.prefix.stats.kept_bytes
        freed = prefix.evict(pages * PAGE_BYTES)
        assert freed == before - prefix.stats.kept_bytes
        assert freed >= pages * PAGE_BYTES or not prefix.stats.boundaries

    @invariant()
    def every_key_is_right(self) -> None:
        for text in self.texts:
            text.check()

    @invariant()
    def every_page_is_accounted_for(self) -> None:
        of_layers = [of for text in self.texts for cache in text.caches for of in cache.layers]
        blocks, kept = [self.box.prefix._tree.root], []
        while blocks:
            block = blocks.pop()
            # A block without use is not kept.
            assert block.parent is None or block.children or block.boundaries
            blocks += block.children.values()
            kept += block.pages
            for boundary in block.boundaries:
                assert boundary in self.box.prefix._boundaries
                kept += boundary.own_pages()
        for pool in self.box.pools:
            running = {page.data_ptr() for of in of_layers if of.pool is pool for page in of.pages.values()}
            kept_here = {page.data_ptr() for of in kept if of.pool is pool for page in of.pages}
            free = {page.data_ptr() for pages in pool._free.values() for page in pages}
            assert pool.used_bytes == len(running) * PAGE_BYTES
            assert pool.kept_bytes == len(kept_here - running) * PAGE_BYTES
            assert pool.held_bytes == len(kept_here) * PAGE_BYTES
            assert pool.used_bytes + pool.kept_bytes <= pool.budget_bytes
            assert set(pool._holders) == running | kept_here
            assert not free & (running | kept_here)

    @invariant()
    def no_sequence_has_more_pages_than_one_alone(self) -> None:
        for text in self.texts:
            nbytes = sum(cache.nbytes for cache in text.caches)
            assert nbytes <= SIZE.num_bytes(max(text.longest, text.cache.length), PASS_ROWS)

    def teardown(self) -> None:
        for text in self.texts:
            text.close()
        assert all(pool.used_bytes == 0 for pool in self.box.pools)
        self.box.prefix.evict(1 << 60)
        assert self.box.prefix.stats.held_bytes == 0
        assert not any(pool._holders for pool in self.box.pools)


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = examples(30)


def read(box: Box, tokens: Sequence[int], *, keep: bool = True) -> Text:
    """A text that was read whole, and kept."""
    text = Text(box, tokens)
    while text.cache.length < len(tokens):
        start = text.cache.length
        text.run(min(len(tokens), start - start % PAGE_POSITIONS + PASS_ROWS))
    if keep:
        box.prefix.keep(tokens, text.cache, text.mtp)
        text.close()
    return text


def spared(box: Box, tokens: Sequence[int]) -> int:
    """What is kept of a text, without using it."""
    return box.prefix._tree.match(tokens, NUM_MTP, len(tokens) - 1).length


def test_what_was_used_least_recently_gives_way_first_and_all_of_it_to_a_running_sequence() -> None:
    box = Box(45)
    texts = [np.random.default_rng(seed).integers(0, 9, 300).tolist() for seed in range(10, 13)]
    for tokens in texts:
        read(box, tokens)
    Text(box, texts[0]).close()
    assert [spared(box, tokens) for tokens in texts] == [298, 298, 298]
    running = read(box, ROOTS[0][:500], keep=False)
    assert spared(box, texts[1]) == 0
    assert spared(box, texts[0]) == 298
    running.tokens += [0] * 2000
    with pytest.raises(KvDoesNotFit):
        running.run(2400)
    assert box.prefix.stats.boundaries == 0
    assert box.prefix.stats.evicted == 3


def test_of_more_texts_than_are_looked_through_those_used_least_recently_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("orchestrator.prefix.cache.MOST_BOUNDARIES", 3)
    box = Box(90)
    texts = [np.random.default_rng(seed).integers(0, 9, 40).tolist() for seed in range(20, 25)]
    for tokens in texts[:3]:
        read(box, tokens)
    Text(box, texts[0]).close()
    for tokens in texts[3:]:
        read(box, tokens)
    assert [spared(box, tokens) > 0 for tokens in texts] == [True, False, False, True, True]
    assert (box.prefix.stats.boundaries, box.prefix.stats.evicted) == (3, 2)


def test_pages_that_a_running_sequence_holds_too_are_no_reason_to_let_others_go() -> None:
    box = Box(60)
    read(box, ROOTS[0][:300])
    running = Text(box, ROOTS[0][:300])
    read(box, ROOTS[1][:300])
    # The first was used before the second, but would free only the page that the sequence copied.
    running.run(299)
    before = box.pools[0].kept_bytes
    assert box.prefix.evict(1) > 0
    assert box.pools[0].kept_bytes < before
    box.prefix.evict(1 << 60)
    running.check()
    assert running.cache.length == 299


def test_a_longer_kept_text_stands_for_the_shorter_ones_that_it_covers() -> None:
    box = Box(60)
    text = Text(box, ROOTS[0][:600])
    for stop in (60, 200, 250):
        text.run(stop)
        assert box.prefix.keep(text.tokens, text.cache, text.mtp) == stop
    assert box.prefix.stats.boundaries == 1
    assert [spared(box, [*ROOTS[0][:same], UNKNOWN, 9, 9]) for same in (60, 130, 251, 252)] == [
        58,
        128,
        249,
        250,
    ]
    # What no longer is in the window is held by the boundaries before.
    text.run(450)
    text.run(600)
    assert box.prefix.keep(text.tokens, text.cache, text.mtp) == 598
    assert box.prefix.stats.boundaries == 2
    assert spared(box, [*ROOTS[0][:400], UNKNOWN, 9, 9]) == 250
    text.close()


def test_tokens_that_the_caller_leaves_out_are_not_kept() -> None:
    box = Box(60)
    text = read(box, ROOTS[0][:280], keep=False)
    assert box.prefix.keep(text.tokens, text.cache, text.mtp, 200) == 198
    assert spared(box, ROOTS[0][:280]) == 198
    # As they are not where sliding layers hold the window of another place alone.
    text.tokens = ROOTS[0][:600]
    text.run(450)
    text.run(600)
    assert box.prefix.keep(text.tokens, text.cache, text.mtp, 300) == 0
    assert spared(box, ROOTS[0][:600]) == 198
    assert box.prefix.keep(text.tokens[:5], Text(box, [1]).cache) == 0


def test_the_place_where_two_texts_part_is_told_to_the_second_and_serves_the_third() -> None:
    box = Box(90)
    texts = [
        [*ROOTS[0][:290], *np.random.default_rng(seed).integers(9, 20, 300).tolist()] for seed in range(3)
    ]
    read(box, texts[0])
    second = box.begun(texts[1])
    assert (second.matched, second.shared) == (0, 290)
    text = Text(box, texts[1])
    text.run(256)
    text.run(second.shared)
    assert box.prefix.keep(text.tokens, text.cache, text.mtp, second.shared) == 288
    assert box.begun(texts[2]).matched == 288


def test_a_text_kept_without_its_mtp_layers_leaves_drafts_some_rows_to_compute() -> None:
    box = Box(60)
    text = read(box, ROOTS[0][:100], keep=False)
    assert box.prefix.keep(text.tokens, text.cache) == 100
    assert box.begun(ROOTS[0][:120]).matched == 100 - CONTEXT_ROWS
    # Of short texts something is spared too.
    assert box.begun([*ROOTS[0][:30], UNKNOWN, 9]).matched == LEAST_TOKENS
    assert box.begun([*ROOTS[0][: LEAST_TOKENS - 1], UNKNOWN, 9]).matched == 0
    assert box.begun(ROOTS[0][:120], drafts=False).matched == 100
    assert box.prefix.keep(text.tokens, text.cache, text.mtp) == 98
    assert box.begun(ROOTS[0][:120]).matched == 98
    assert box.begun(ROOTS[0][:120], drafts=False).matched == 100


def test_a_text_that_went_on_without_its_mtp_layers_lets_go_of_its_beginning_with_them() -> None:
    """Also where it ends just at a page, so that no token is left behind the last whole one."""
    box = Box(60)
    text = read(box, ROOTS[0][:PAGE_POSITIONS], keep=False)
    assert box.prefix.keep(text.tokens, text.cache) == PAGE_POSITIONS
    assert box.prefix.keep(text.tokens, text.cache, text.mtp) == PAGE_POSITIONS - NUM_MTP
    text.tokens = ROOTS[0][:140]
    text.run(140)
    assert box.prefix.keep(text.tokens, text.cache) == 140
    assert box.prefix.stats.boundaries == 1


def test_a_text_that_shares_just_a_page_goes_on_behind_it() -> None:
    box = Box(60)
    read(box, ROOTS[0][:140])
    others = [*ROOTS[0][:PAGE_POSITIONS], UNKNOWN, *ROOTS[0][: PAGE_POSITIONS - 1]]
    assert box.begun(others).matched == PAGE_POSITIONS - NUM_MTP
    assert box.begun(others, drafts=False).matched == PAGE_POSITIONS


def test_mtp_layers_that_are_kept_with_more_rows_take_the_place_of_others() -> None:
    box = Box(60)
    text, late = read(box, ROOTS[0][:100], keep=False), box.new_state()
    late.begin_at(60)
    for cache in late.caches:
        cache.begin(40)
        cache.commit(38)
    for rows in late.rows:
        rows.begin_at(38)
    assert box.prefix.keep(text.tokens, text.cache, late) == 98
    assert box.begun(ROOTS[0][:140]).mtp.first_position == 60  # type: ignore[union-attr]
    assert box.prefix.keep(text.tokens, text.cache, text.mtp) == 98
    assert box.begun(ROOTS[0][:140]).mtp.first_position == 0  # type: ignore[union-attr]


def test_a_match_that_is_too_short_to_pay_is_none_and_counts_tell_what_was_saved() -> None:
    box = Box(60)
    read(box, ROOTS[0][:100])
    assert Text(box, [*ROOTS[0][: LEAST_TOKENS + 1], UNKNOWN, 9]).matched == 0
    assert Text(box, [*ROOTS[0][: LEAST_TOKENS + 2], UNKNOWN, 9]).matched == LEAST_TOKENS
    stats = box.prefix.stats
    assert (stats.asked, stats.hits, stats.saved_tokens) == (3, 1, LEAST_TOKENS)
    assert stats.asked_tokens == 100 + 2 * LEAST_TOKENS + 7
    # The sequence is gone, the text is kept.
    assert stats.kept_bytes == stats.held_bytes == 5 * PAGE_BYTES


def test_who_gives_a_cache_other_tokens_or_keeps_a_pools_pages_twice_is_told() -> None:
    box = Box(60)
    text = read(box, ROOTS[0][:100], keep=False)
    with pytest.raises(ValueError, match="99 tokens of a cache that holds 100"):
        box.prefix.keep(text.tokens[:99], text.cache, text.mtp)
    with pytest.raises(ValueError, match="one prefix cache"):
        PrefixCache(box.pools[:1])
