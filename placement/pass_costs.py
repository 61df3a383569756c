"""How long a pass takes by the number of its rows: what a server decides with before it has measured."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

from placement.model_shape import ModelShape

_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256)
_USUAL_BYTES_PER_S = 50e9
_ROWS_IN_A_READ = 64
"""Rows that a processor multiplies weights with in the time in which memory brings them; of CPUs, about."""


@dataclass(frozen=True, slots=True)
class PassCosts:
    """Seconds of the parts of a step.

    More rows touch more experts, so a pass gets longer with every row, and the less the more rows it has.

    Attributes:
        rows: of the passes that are known, ascending from 1.
        pass_s: of a pass of the trunk with so many rows, the choice of tokens included.
        draft_s: of each MTP layer: (once a pass, for each row).

    Raises:
        ValueError: no pass, or one that takes no time.
    """

    rows: tuple[int, ...]
    pass_s: tuple[float, ...]
    draft_s: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        known = len(self.rows) == len(self.pass_s) > 0
        if not known or self.rows[0] != 1 or list(self.rows) != sorted(set(self.rows)):
            raise ValueError(
                f"passes of {self.rows} rows: expected one row, then ever more, each with a time"
            )
        if min(self.pass_s) <= 0:
            raise ValueError(f"passes of {self.pass_s} seconds: expected more than 0")

    def trunk_s(self, rows: float) -> float:
        """Of a pass of so many rows: a straight line between two known ones, and beyond the last two."""
        if len(self.rows) == 1:
            return self.pass_s[0]
        stop = min(max(1, bisect_left(self.rows, rows)), len(self.rows) - 1)
        low, high = self.rows[stop - 1], self.rows[stop]
        low_s, high_s = self.pass_s[stop - 1], self.pass_s[stop]
        return low_s + (high_s - low_s) * (max(rows, 1) - low) / (high - low)

    def drafting_s(self, depth: int, rows: float) -> float:
        """Of the first `depth` MTP layers, each with so many rows."""
        return sum(once_s + rows * row_s for once_s, row_s in self.draft_s[:depth])


def costs_of_reading(
    shape: ModelShape, bits_per_weight: float, bytes_per_s: float = _USUAL_BYTES_PER_S
) -> PassCosts:
    """What passes cost where nobody gave figures of the boxes: reading weights, each once a pass.

    Experts are taken for chosen alike, so n rows touch E (1 - (1 - k / E)^n) of E experts. The proportions
    are what counts: one measured pass corrects all of them.

    Args:
        bits_per_weight: of all weights.
        bytes_per_s: of the memory that they lie in.
    """
    weight_s = bits_per_weight / 8 / bytes_per_s

    def pass_s(rows: int) -> float:
        missed = (1 - shape.top_k / shape.num_experts) ** rows
        experts = shape.num_moe_layers * shape.num_experts * (1 - missed) * shape.expert_parameters
        chosen = rows * shape.num_moe_layers * shape.top_k * shape.expert_parameters
        arithmetic = (rows * shape.head_read_parameters + chosen) / _ROWS_IN_A_READ
        return weight_s * max(shape.head_read_parameters + experts, arithmetic)

    mtp = [weight_s * shape.mtp_layer_parameters(index) for index in range(shape.num_mtp_layers)]
    return PassCosts(
        _ROWS, tuple(map(pass_s, _ROWS)), tuple((once_s, once_s / _ROWS_IN_A_READ) for once_s in mtp)
    )
