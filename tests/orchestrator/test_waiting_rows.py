"""Rows that wait: the same as in a plain list, whatever comes and goes."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.model.kv_pool import KvPool
from orchestrator.model.waiting_rows import WaitingRows
from placement.kv_size import PAGE_POSITIONS, row_pages

EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["append", "append", "forget", "drop_before", "drop_from", "begin"]),
        st.integers(0, 150),
    ),
    max_size=30,
)


@given(EVENTS)
def test_rows_are_those_of_their_slots(events: list[tuple[str, int]]) -> None:
    pool, page_bytes = KvPool(1 << 30), row_pages(3).page_bytes
    rows = WaitingRows(3, pool)
    told: dict[int, float] = {}
    value = 0.0
    for event, number in events:
        if event == "append":
            new = torch.arange(number, dtype=torch.float32) + value
            value += number
            told |= {rows.stop + place: float(one) for place, one in enumerate(new)}
            rows.append(new[:, None].expand(number, 3))
        elif event == "forget":
            rows.forget_before(rows.start + number)
            told = {slot: one for slot, one in told.items() if slot >= rows.start}
            # Whole pages alone are forgotten.
            assert rows.start <= rows.stop
        elif event == "drop_before":
            slot = min(rows.start + number, rows.stop)
            rows.drop_before(slot)
            told = {of: one for of, one in told.items() if of >= slot}
        elif event == "drop_from":
            slot = max(rows.stop - number, rows.start)
            rows.drop_from(slot)
            told = {of: one for of, one in told.items() if of < slot}
        else:
            rows.begin_at(number)
            told = {}
        assert list(range(rows.start, rows.stop)) == sorted(told)
        assert rows.rows().tolist() == [[told[slot]] * 3 for slot in sorted(told)]
        first, end = rows.start + number % 70, rows.stop - number % 3
        assert rows.rows(first, end).tolist() == [[told[slot]] * 3 for slot in range(first, end)]
        # Pages that the rows touch; without rows, maybe that of the next one.
        touched = len({slot // PAGE_POSITIONS for slot in told})
        assert touched * page_bytes <= rows.nbytes == pool.used_bytes <= max(1, touched) * page_bytes
    rows.close()
    assert pool.used_bytes == 0


def test_what_was_handed_in_may_change_afterwards() -> None:
    rows, given_rows = WaitingRows(2, KvPool(1 << 20)), torch.ones(2, 2)
    rows.append(given_rows)
    given_rows.zero_()
    assert torch.equal(rows.rows(), torch.ones(2, 2))
