"""What kernels reach with weights of one form, by the rows that are multiplied in one pass."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
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
        num_rows = max(1.0, num_rows)
        index = min(bisect_right(self.rows, num_rows), len(self.rows)) - 1
        low, low_s = self.rows[index], self.rows[index] / self.flops_per_s[index]
        if index + 1 == len(self.rows):
            return 0.0, low_s / low
        high, high_s = self.rows[index + 1], self.rows[index + 1] / self.flops_per_s[index + 1]
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
