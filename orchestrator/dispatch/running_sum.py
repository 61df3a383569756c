"""The exact sum of what workers answered so far, and which rows did not fit their grid."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from orchestrator.dispatch.debts import Ints, Rows


class RunningSum:
    """int32 [num_rows, hidden_size]; copies nothing where one answer is all there is."""

    def __init__(self, num_rows: int, hidden_size: int) -> None:
        self._num_rows = num_rows
        self._hidden_size = hidden_size
        self._values: Ints | None = None
        self._is_ours = False
        self._saturated: NDArray[np.bool_] | None = None

    def values(self) -> Ints:
        """The sum; zeros where no row chose any expert."""
        if self._values is None:
            self._values = np.zeros((self._num_rows, self._hidden_size), np.int32)
        return self._values

    def add(self, rows: Rows, values: Ints, saturated: NDArray[np.bool_]) -> None:
        """Add values [n, hidden_size] to n rows; saturated [n] says which of them do not fit the grid."""
        if 1 in saturated.tobytes():  # several times as fast as any() for the few rows of a decode step
            if self._saturated is None:
                self._saturated = np.zeros(self._num_rows, np.bool_)
            self._saturated[rows] |= saturated
        whole = len(rows) == self._num_rows
        if self._values is None and whole:
            # Often the only answer. It may lie in a frame that came: it is read and not written to.
            self._values = values
            return
        mine = self._writable()
        if whole:
            mine += values
        else:
            mine[rows] += values

    def take_saturated(self) -> Rows | None:
        """Rows to be summed anew on a coarser grid, None where all fit; their sums are zero again."""
        if self._saturated is None:
            return None
        rows = np.flatnonzero(self._saturated)
        self._saturated = None
        if len(rows) == self._num_rows:
            self._values, self._is_ours = None, False
        elif self._values is not None:
            self._writable()[rows] = 0
        return rows

    def _writable(self) -> Ints:
        if self._values is None:
            self._values = np.zeros((self._num_rows, self._hidden_size), np.int32)
        elif not self._is_ours:
            self._values = self._values.copy()
        self._is_ours = True
        return self._values
