"""Rows that MTP layers must take in before they draft."""

from __future__ import annotations

import pytest

from orchestrator.scheduling.candidate import Candidate, rows_taken_in


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
