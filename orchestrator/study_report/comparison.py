"""The planner's plan beside the best of the other policies, setting by setting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from placement.answers.study.config import Batch
from placement.answers.study.results import Row
from placement.units import compared

# The planner's own policies; all others are what people do today.
OURS = ("least-time",)
# What nobody can do, since it knows the text to come.
BOUNDS = ("opt",)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One setting of a study: the planner's plan beside the best of the other policies."""

    ours: Row
    best_baseline: Row

    @property
    def gain(self) -> float:
        """Share by which the best baseline's step is longer."""
        assert self.ours.step_s is not None
        assert self.best_baseline.step_s is not None
        return self.best_baseline.step_s / self.ours.step_s - 1


def compare(rows: Sequence[Row]) -> list[Comparison]:
    """Every setting in which both the planner and some baseline have a plan that fits."""
    settings: dict[str, list[Row]] = {}
    for row in rows:
        if row.step_s is not None:
            settings.setdefault(row.key.rpartition("/")[0], []).append(row)
    found = []
    for group in settings.values():
        ours = [row for row in group if row.policy in OURS]
        others = [row for row in group if row.policy not in (*OURS, *BOUNDS)]
        if ours and others:
            found.append(Comparison(_fastest(ours), _fastest(others)))
    return found


def summary(comparisons: Sequence[Comparison]) -> str | None:
    """One sentence; None where there is nothing to compare."""
    if not comparisons:
        return None
    gains = sorted(comparison.gain for comparison in comparisons)
    least, middle, most = (
        compared(1 + gain, "longer", "shorter", "as long") for gain in (gains[0], median(gains), gains[-1])
    )
    start = f"Beside the planner's step, the best other policy's is {middle}"
    if len(gains) == 1:
        return f"{start}."
    return f"{start} at the median of {len(gains)} settings (from {least} to {most})."


def batch_label(row: Row) -> str:
    return Batch(row.sequences, row.drafts, row.accepted_drafts).label


_AXES: tuple[Callable[[Row], str], ...] = (
    lambda row: row.cluster,
    lambda row: row.trace,
    lambda row: row.quant,
    lambda row: f"batch {batch_label(row)}",
    lambda row: f"context {row.context:,}",
)


def setting_labels(rows: Sequence[Row]) -> list[str]:
    """What tells each row's setting from the others': the axes that vary among `rows`, the cluster always."""
    cluster, *others = _AXES
    shown = [cluster, *(axis for axis in others if len({axis(row) for row in rows}) > 1)]
    return [", ".join(axis(row) for axis in shown) for row in rows]


def _fastest(rows: Sequence[Row]) -> Row:
    return min(rows, key=lambda row: row.step_s or float("inf"))
