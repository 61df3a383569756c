"""Which clusters of a study have cells whose experts do not fit, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from placement.answers.study.results import Row

_MOST_REASONS = 3


@dataclass(frozen=True, slots=True)
class NotFitting:
    """`cells` of the cluster's `of_cells` have no plan; `reasons` say why, the most frequent first."""

    cluster: str
    cells: int
    of_cells: int
    reasons: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """For a reader, without all of the reasons where there are many."""
        how_many = "none" if self.cells == self.of_cells else f"{self.of_cells - self.cells}"
        more = len(self.reasons) - _MOST_REASONS
        reasons = "; ".join(self.reasons[:_MOST_REASONS]) + (f"; {more} reasons more" if more > 0 else "")
        return f"{self.cluster}: {how_many} of {self.of_cells} cells fit: {reasons}"


def not_fitting(rows: Sequence[Row]) -> list[NotFitting]:
    """Clusters with cells that do not fit, in the order of the rows."""
    totals = Counter(row.cluster for row in rows)
    notes: dict[str, Counter[str]] = {}
    for row in rows:
        if row.step_s is None:
            notes.setdefault(row.cluster, Counter())[row.note] += 1
    return [
        NotFitting(cluster, found.total(), totals[cluster], tuple(note for note, _ in found.most_common()))
        for cluster, found in notes.items()
    ]
