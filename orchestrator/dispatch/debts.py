"""What a layer is owed: debts, the attempts to have them paid, and the requests that are on their way."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int32]
Rows = NDArray[np.intp]


class Ask(NamedTuple):
    """Ask `worker` for the partial sum of `rows`: expert_ids [n, top_k], -1 where not its to compute.

    `pairs` counts the (row, expert) pairs that are its to compute.
    """

    worker: int
    request_id: int
    rows: Rows
    expert_ids: Ints
    scale_exponents: Ints
    pairs: int


class Debt:
    """Rows and experts whose sum is owed; the first attempt that is complete pays it, once.

    `refused` and `lost` count refusals and lost messages by worker.
    """

    __slots__ = ("attempts", "expert_ids", "is_late", "lost", "refused", "rows")

    def __init__(self, rows: Rows, expert_ids: Ints) -> None:
        self.rows = rows
        self.expert_ids = expert_ids
        self.attempts: list[Attempt] = []
        self.is_late = False
        self.refused: dict[int, int] = {}
        self.lost: dict[int, int] = {}

    def begin(self) -> Attempt:
        """One more attempt to have it paid."""
        attempt = Attempt(self)
        self.attempts.append(attempt)
        return attempt


class Attempt:
    """A debt asked of one worker, or of several whose parts make it up."""

    __slots__ = ("debt", "open_ids", "saturated", "values")

    def __init__(self, debt: Debt) -> None:
        self.debt = debt
        self.open_ids: list[int] = []
        self.values: Ints | None = None
        self.saturated: NDArray[np.bool_] | None = None

    def add_part(self, ask: Ask, values: Ints, saturated: NDArray[np.bool_]) -> None:
        """One of several workers' shares of the debt."""
        rows = self.debt.rows
        if self.values is None or self.saturated is None:
            self.values = np.zeros((len(rows), values.shape[1]), np.int32)
            self.saturated = np.zeros(len(rows), np.bool_)
        # Both ascend, and the part's rows are among the debt's.
        places = np.searchsorted(rows, ask.rows)
        self.values[places] += values
        self.saturated[places] |= saturated

    def parts(self) -> tuple[Ints, NDArray[np.bool_]]:
        """The sum of the parts that have come, at least one."""
        if self.values is None or self.saturated is None:
            raise ValueError("an attempt without parts")
        return self.values, self.saturated


class OpenRequest:
    """A request on its way.

    Attributes:
        late_s: when its answer is late.
        doubted_s: since when the pulse says that it, or its answer, is lost, and no bytes move.
        doubted_bytes: what its connection had carried when the doubt began; None where there is none.
        moved_bytes: what it had carried when it moved last.
    """

    __slots__ = ("ask", "asked_s", "attempt", "doubted_bytes", "doubted_s", "late_s", "moved_bytes")

    def __init__(self, ask: Ask, attempt: Attempt, asked_s: float, late_s: float) -> None:
        self.ask = ask
        self.attempt = attempt
        self.asked_s = asked_s
        self.late_s = late_s
        self.doubted_s = math.inf
        self.doubted_bytes: int | None = None
        self.moved_bytes = 0
