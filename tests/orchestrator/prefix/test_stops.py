"""Passes over a prompt cover it once, end where it is to be kept, and need no more pages than counted."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.prefix.cache import Resumed
from orchestrator.prefix.stops import EVERY_TOKENS, passes, stops
from placement.kv_size import HELD_BACK, PAGE_POSITIONS, KvForm, KvShape, SequenceSize, pages_of
from placement.model_shape import AttentionShape


@given(
    start=st.integers(0, 900),
    tokens=st.integers(1, 900),
    most_rows=st.sampled_from([1, 7, 100, 128, 200, 256, 384]),
    wanted=st.lists(st.integers(0, 1800), max_size=4),
    window=st.sampled_from([8, 128, 150, 512]),
)
def test_passes_cover_a_prompt_once_and_hold_what_is_counted(
    start: int, tokens: int, most_rows: int, wanted: list[int], window: int
) -> None:
    found = list(passes(start, start + tokens, most_rows, wanted))
    assert [begin for begin, _ in found] == [start, *(end for _, end in found[:-1])]
    assert found[-1][1] == start + tokens
    assert all(0 < end - begin <= most_rows for begin, end in found)
    assert {stop for stop in wanted if start < stop < start + tokens} <= {end for _, end in found}
    size = SequenceSize([AttentionShape(2, 1, 2, window, False)], KvForm.float32)
    page_bytes = KvShape(KvForm.float32, 1, 2).page_bytes
    for begin, end in found:
        held = pages_of(end) - max(0, begin - HELD_BACK - window + 1) // PAGE_POSITIONS
        assert held * page_bytes <= size.num_bytes(start + tokens, most_rows)


def test_a_prompt_is_kept_at_its_ends_at_intervals_and_where_texts_part() -> None:
    first = Resumed(0, 0)
    assert stops(first, 100) == ()
    assert stops(first, 100, (0, 90, 101)) == (90,)
    assert stops(first, 2 * EVERY_TOKENS + 5, (7,)) == (7, EVERY_TOKENS, 2 * EVERY_TOKENS)
    assert stops(Resumed(500, 800), 1000, (400, 1000)) == (800, 1000)
    # Where a few tokens more are the same, a boundary would save nothing.
    assert stops(Resumed(797, 800), 1000) == ()
