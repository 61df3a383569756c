"""Rows that MTP layers must take in before they draft."""

from __future__ import annotations

import pytest

from orchestrator.model.rows_behind import RowsBehind
from orchestrator.scheduling.candidate import Candidate, rows_taken_in
from orchestrator.scheduling.step_plan import Advance


@pytest.mark.parametrize(
    ("behind", "depth", "rows"),
    [
        ((), 2, ()),
        ((1, 8, 8), 3, ()),
        ((1, 400, 300), 0, ()),
        ((1, 400, 300), 1, ()),
        ((1, 400, 300), 2, (0, 400)),
        ((9, 400, 300), 3, (9, 400, 300)),
    ],
)
def test_rows_of_layers_that_nobody_asks_are_not_taken_in(
    behind: tuple[int, ...], depth: int, rows: tuple[int, ...]
) -> None:
    assert Candidate(7, 3, behind).to_take_in(depth) == rows
    assert rows_taken_in([(behind, depth)]) == rows


def test_rows_of_all_sequences_count_together() -> None:
    drafted = [((1, 400, 300), 2), ((50, 50, 60), 1), ((1, 1, 1), 3)]
    assert rows_taken_in(drafted) == (50, 400)
    assert not rows_taken_in(drafted[2:])
    assert rows_taken_in([]) == ()


@pytest.mark.parametrize("slots", [(), (500, 499, 498), (499, 100, 200), (0, 0, 0), (99, 500, 500)])
def test_rows_that_are_worked_out_when_they_are_read_are_as_good_as_numbers(slots: tuple[int, ...]) -> None:
    behind = RowsBehind(500, tuple((of, 400) for of in slots))
    rows = tuple(min(400, 500 - of) for of in slots)
    assert (tuple(behind), len(behind), behind[:2]) == (rows, len(rows), rows[:2])
    assert [behind[place] for place in range(len(rows))] == list(rows)
    # From other slots, but the same numbers.
    same = RowsBehind(600, tuple((100 + of, 400) for of in slots))
    assert behind == same == rows == behind
    assert len({behind, same, rows}) == 1
    assert behind != (*rows, 1)
    assert behind != RowsBehind(500, ((500, 400), *((of, 400) for of in slots)))
    assert Advance(7, behind=behind) == Advance(7, behind=same)
    lazy, plain = Candidate(7, 3, behind), Candidate(7, 3, rows)
    assert (lazy.is_behind, lazy.ready_layers) == (plain.is_behind, plain.ready_layers)
    for depth in range(4):
        assert lazy.to_take_in(depth) == plain.to_take_in(depth) == rows_taken_in([(behind, depth)])
