"""Rows that MTP layers must take in before they draft."""

from __future__ import annotations

import pytest

from orchestrator.model.rows_behind import RowsBehind
from orchestrator.scheduling.candidate import Candidate, Verified
from orchestrator.scheduling.native import DraftDepth, MeasuredCosts, rows_taken_in
from placement.pass_costs import PassCosts


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
    for depth in range(4):
        assert rows_taken_in([(behind, depth)]) == rows_taken_in([(rows, depth)])


@pytest.mark.parametrize("rows", [9, 300, 2000])
def test_choosing_reads_rows_that_are_worked_out_when_they_are_read(rows: int) -> None:
    """With as many, drafts begin or not."""
    costs = PassCosts((1, 2, 4), (1.0, 1.1, 1.3), ((0.03, 0.001),))
    chosen = [
        DraftDepth(1, MeasuredCosts(costs)).choose([Candidate(0, 2, behind)])
        for behind in (RowsBehind(rows, ((0, 9999),)), (rows,), [rows])
    ]
    assert chosen == [{0: int(rows < 1000)}] * 3


@pytest.mark.parametrize(
    ("candidates", "error"),
    [
        ([7], "expected candidates"),
        ([(7, 3)], "expected candidates"),
        ([Candidate("a", 3)], "integer"),  # type: ignore[arg-type]
        ([Candidate(7, 3, (1, "a"))], "integer"),  # type: ignore[arg-type]
        ([Candidate(7, 3, 5)], "sequence"),  # type: ignore[arg-type]
        (3, "iterable"),
    ],
)
def test_what_is_no_candidate_is_refused(candidates: object, error: str) -> None:
    depth = DraftDepth(1, MeasuredCosts(PassCosts((1,), (1.0,), ((0.03, 0.001),))))
    with pytest.raises(TypeError, match=error):
        depth.choose(candidates)  # type: ignore[arg-type]


def test_as_many_rows_as_nobody_has_are_refused() -> None:
    depth = DraftDepth(1, MeasuredCosts(PassCosts((1,), (1.0,), ((0.03, 0.001),))))
    for rows in (-(2**63), -1, (1 << 24) + 1, 2**63 - 1):
        with pytest.raises(ValueError, match=r"expected 0 to 16,777,216 rows"):
            depth.choose([Candidate(7, 3)], other_rows=rows)
    with pytest.raises(ValueError, match=r"at most 16,777,216"):
        depth.choose([Candidate(7, 3)], other_rows=1 << 24)
    with pytest.raises(OverflowError):
        depth.choose([Candidate(7, 3)], other_rows=1 << 70)


@pytest.mark.parametrize("verified", [[7], [(7, 1)], 3, [(7, "a", 1)]])
def test_what_was_not_verified_is_refused(verified: object) -> None:
    depth = DraftDepth(1, MeasuredCosts(PassCosts((1,), (1.0,), ((0.03, 0.001),))))
    before = depth.acceptance(7)
    with pytest.raises(TypeError):
        depth.learn(verified)  # type: ignore[arg-type]
    assert depth.acceptance(7) == before


def test_more_drafts_than_there_are_layers_teach_what_there_are() -> None:
    depth = DraftDepth(1, MeasuredCosts(PassCosts((1,), (1.0,), ((0.03, 0.001),))))
    depth.learn([Verified(7, 9, 9)] * 20)
    assert len(depth.acceptance(7)) == 1
    assert depth.acceptance(7)[0] > 0.9
