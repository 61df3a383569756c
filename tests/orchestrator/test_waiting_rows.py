"""Rows that wait: the same as in a plain list, whatever comes and goes, and whoever holds the same pages."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.model.kv_pool import KvPool, Page
from orchestrator.model.waiting_rows import WaitingRows
from placement.errors import KvDoesNotFit
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


class Kept:
    """Pages of some rows, and what they have to hold for as long as they are kept."""

    def __init__(self, rows: WaitingRows, stop: int) -> None:
        self.start, self.stop = min(rows.start, stop), stop
        self.pages: tuple[Page, ...] = rows.share(self.start, stop)
        self.told = rows.rows(self.start, stop)
        self.pool, self.kv = rows.pool, rows.kv
        self.pool.keep(self.kv, self.pages)

    def given_to(self, rows: WaitingRows, stop: int) -> None:
        rows.append(rows.adopt(self.start, stop, self.pages))

    def let_go(self) -> None:
        self.pool.let_go(self.kv, self.pages)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                ["append", "append", "keep", "adopt", "adopt", "drop_from", "forget", "end", "let go"]
            ),
            st.integers(0, 99),
            st.integers(0, 300),
        ),
        max_size=40,
    )
)
def test_whoever_goes_on_in_pages_of_others_changes_none_of_their_rows(
    events: list[tuple[str, int, int]],
) -> None:
    pool = KvPool(1 << 30)
    running = [WaitingRows(3, pool)]
    told: list[torch.Tensor] = [torch.empty(0, 3)]
    kept: list[Kept] = []
    value = 0.0
    for event, which, number in events:
        place = which % len(running) if running else 0
        if event == "append" or not running:
            if not running:
                running.append(WaitingRows(3, pool))
                told.append(torch.empty(0, 3))
            value += 1
            new = torch.full((number, 3), value)
            running[place].append(new)
            told[place] = torch.cat([told[place], new])
        elif event == "keep":
            rows = running[place]
            kept.append(Kept(rows, max(rows.start, rows.stop - number % 50)))
        elif event == "adopt" and kept:
            # Into new ones, at any place of what is kept.
            own = kept[which % len(kept)]
            stop = max(own.start, own.stop - number % 140)
            running.append(WaitingRows(3, pool))
            own.given_to(running[-1], stop)
            told.append(own.told[: stop - own.start])
        elif event == "drop_from":
            rows = running[place]
            slot = max(rows.start, rows.stop - number)
            told[place] = told[place][: slot - rows.start]
            rows.drop_from(slot)
        elif event == "forget":
            rows = running[place]
            start = rows.start
            rows.forget_before(rows.start + number)
            told[place] = told[place][rows.start - start :]
        elif event == "end":
            rows = running.pop(place)
            told.pop(place)
            # Else its pages go back with it.
            if number % 2:
                rows.close()
        elif event == "let go" and kept:
            kept.pop(which % len(kept)).let_go()
        rows = None
        assert all(torch.equal(mine.rows(), of_mine) for mine, of_mine in zip(running, told, strict=True))
        for of_text in kept:
            again = WaitingRows(3, pool)
            of_text.given_to(again, of_text.stop)
            assert (again.start, again.stop) == (of_text.start, of_text.stop)
            assert torch.equal(again.rows(), of_text.told)
            again.close()
        held = {page.data_ptr() for mine in running for page in mine._pages}
        assert pool.used_bytes == len(held) * row_pages(3).page_bytes
    for own_rows in running:
        own_rows.close()
    assert pool.used_bytes == 0
    for of_text in kept:
        of_text.let_go()
    assert pool.kept_bytes == pool.held_bytes == 0


def test_rows_that_others_have_are_copied_before_others_come_in_their_place() -> None:
    page_bytes = row_pages(3).page_bytes
    pool = KvPool(page_bytes)
    rows = WaitingRows(3, pool)
    rows.append(torch.ones(60, 3))
    kept = Kept(rows, 50)
    # Behind them there is room for both.
    rows.drop_from(50)
    assert rows.nbytes == pool.used_bytes == page_bytes
    rows.drop_from(40)
    # The page is copied once others come, and until then nothing can lack room.
    assert rows.nbytes == pool.used_bytes == page_bytes
    for _ in range(2):
        with pytest.raises(KvDoesNotFit, match="rows that wait"):
            rows.append(torch.zeros(20, 3))
        assert torch.equal(rows.rows(), torch.ones(40, 3))
    pool.budget_bytes *= 2
    rows.append(torch.zeros(20, 3))
    assert pool.used_bytes == pool.kept_bytes == page_bytes
    again = WaitingRows(3, pool)
    pool.budget_bytes *= 2
    kept.given_to(again, 50)
    assert torch.equal(again.rows(), torch.ones(50, 3))
    assert torch.equal(rows.rows(40), torch.zeros(20, 3))


def test_whole_pages_of_others_are_not_copied() -> None:
    pool, page_bytes = KvPool(1 << 20), row_pages(3).page_bytes
    rows, others = WaitingRows(3, pool), WaitingRows(3, pool)
    rows.append(torch.arange(600, dtype=torch.float32)[:, None].expand(600, 3))
    rows.drop_before(200)
    kept = Kept(rows, 600)
    used = pool.used_bytes
    kept.given_to(others, 530)
    assert pool.used_bytes == used + page_bytes
    assert others.nbytes == 4 * page_bytes
    assert torch.equal(others.rows(), rows.rows(200, 530))
