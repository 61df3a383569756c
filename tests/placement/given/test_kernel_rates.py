"""Kernels' rates by rows: exact where measured, lines between, and split so that sums over experts hold."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement.given.kernel_rates import NO_ROW_COSTS, KernelRates, RowCosts, rates_of

# Unpacking takes 3 units a weight, a row 1: a pass of n rows takes 3 + n.
STEADY = KernelRates("q4_k", (1, 2, 8), (1 / 4, 2 / 5, 8 / 11))


def test_a_measured_number_of_rows_takes_what_was_measured() -> None:
    assert [STEADY.row_flop_s(rows) for rows in STEADY.rows] == pytest.approx([4.0, 5.0, 11.0])


def test_between_two_it_is_a_line_and_beyond_the_last_the_rate_stays() -> None:
    assert STEADY.row_flop_s(5) == pytest.approx(8.0)
    assert STEADY.row_flop_s(16) == pytest.approx(22.0)


def test_the_line_tells_unpacking_from_multiplying() -> None:
    assert STEADY.line(1.0) == pytest.approx((3.0, 1.0))
    assert STEADY.line(0.2) == STEADY.line(1.0)


def test_a_form_that_nobody_measured_has_none() -> None:
    assert rates_of([STEADY], "q4_k") is STEADY
    assert rates_of([STEADY], "q5_k") is None


@given(
    flops=st.lists(st.floats(1.0, 1e6), min_size=3, max_size=3),
    rows=st.floats(1.0, 100.0),
)
def test_no_part_is_below_nothing_and_both_make_the_pass(flops: list[float], rows: float) -> None:
    """Measurements may be noisy: a pass of more rows may come out quicker."""
    rates = KernelRates("q4_k", (1, 4, 16), (flops[0], flops[1], flops[2]))
    fixed, slope = rates.line(rows)
    assert fixed >= 0
    assert slope >= 0
    assert fixed + slope * rows == pytest.approx(rates.row_flop_s(rows))
    ends = [count / rate for count, rate in zip(rates.rows, rates.flops_per_s, strict=True)]
    if rows <= 16:
        assert min(ends) * (1 - 1e-9) <= rates.row_flop_s(rows) <= max(ends) * (1 + 1e-9)


def test_passes_of_a_few_rows_are_told_beside_one() -> None:
    costs = RowCosts.of({4: 2.5, 2: 1.5})
    assert (costs.rows, costs.times) == ((1, 2, 4), (1.0, 1.5, 2.5))
    for rows, times in ((1, 1.0), (2, 1.5), (3, 2.0), (4, 2.5), (100, 2.5)):
        fixed, slope = costs.line(rows)
        assert fixed + slope * rows == pytest.approx(times)


def test_without_figures_rows_cost_nothing_beside_reading() -> None:
    assert RowCosts.of({}) == NO_ROW_COSTS
    assert NO_ROW_COSTS.line(3) == (0.0, 0.0)
