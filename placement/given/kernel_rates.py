"""What kernels reach with weights of one form, by the rows that are multiplied in one pass."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

ATTENTION = "attention"
"""In place of a form: attention over keys and values, whose rows are one text's new tokens."""


@dataclass(frozen=True, slots=True)
class KernelRates:
    """FLOP/s by rows of a pass, measured on weights that come from memory. docs/cost-model.md.

    Attributes:
        form: of the weights, as plans name it, or ATTENTION.
        rows: ascending, from 1.
        flops_per_s: float, for each of `rows`.
    """

    form: str
    rows: tuple[int, ...]
    flops_per_s: tuple[float, ...]

    def row_flop_s(self, num_rows: float) -> float:
        """Seconds of a pass of `num_rows` rows for each FLOP that one row takes.

        Between two measured numbers of rows it is a straight line; beyond the last the rate stays.
        """
        fixed, slope = self.line(num_rows)
        return fixed + slope * num_rows

    def line(self, num_rows: float) -> tuple[float, float]:
        """Seconds for each FLOP of one row: (whatever the rows, for each row), true around `num_rows`.

        Neither is below 0, so that a sum over matrices with different rows stays near what each takes.
        """
        return _line(
            self.rows, [n / rate for n, rate in zip(self.rows, self.flops_per_s, strict=True)], num_rows
        )


@dataclass(frozen=True, slots=True)
class RowCosts:
    """How long passes of a few rows take beside one row, where memory brings the weights of a single row.

    Kernels for few rows read weights once and yet take longer with each row. docs/cost-model.md.

    Attributes:
        rows: ascending, from 1; empty where nobody says.
        times: of one row's pass, for each of `rows`, from 1 on and never falling.
    """

    rows: tuple[int, ...] = ()
    times: tuple[float, ...] = ()

    @classmethod
    def of(cls, times: Mapping[int, float]) -> RowCosts:
        """From rows, 2 at the least, to times; none where that is empty."""
        if not times:
            return NO_ROW_COSTS
        rows = sorted(times)
        return cls((1, *rows), (1.0, *(times[number] for number in rows)))

    def line(self, num_rows: float) -> tuple[float, float]:
        """Passes of one row: (whatever the rows, for each row), true around `num_rows`.

        Beyond the last row that is known a pass takes as long as there: other kernels begin, which
        arithmetic bounds.
        """
        if not self.rows:
            return 0.0, 0.0
        if num_rows >= self.rows[-1]:
            return self.times[-1], 0.0
        return _line(self.rows, self.times, num_rows)


NO_ROW_COSTS = RowCosts()


def _line(rows: Sequence[int], seconds: Sequence[float], num_rows: float) -> tuple[float, float]:
    """The straight line through the two known points on either side of `num_rows`.

    Beyond the last known point, the line through that point and 0 seconds for 0 rows.

    Returns:
        (seconds at no rows, seconds for each row), neither below 0: where the line falls, or would begin
        below 0, another one that meets it at `num_rows`.
    """
    num_rows = max(1.0, num_rows)
    index = min(bisect_right(rows, num_rows), len(rows)) - 1
    low, low_s = rows[index], seconds[index]
    if index + 1 == len(rows):
        return 0.0, low_s / low
    high, high_s = rows[index + 1], seconds[index + 1]
    slope = (high_s - low_s) / (high - low)
    fixed = low_s - slope * low
    if slope < 0:
        return low_s + slope * (num_rows - low), 0.0
    if fixed < 0:
        return 0.0, slope + fixed / num_rows
    return fixed, slope


def rates_of(kernels: Iterable[KernelRates], form: str | None) -> KernelRates | None:
    """Those of `form`; None where nobody measured."""
    return next((rates for rates in kernels if rates.form == form), None)
