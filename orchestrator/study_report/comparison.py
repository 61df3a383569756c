"""The planner's plan beside the best of the other policies, setting by setting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from placement.answers.prediction_range import NO_DIFFERENCE, is_promised
from placement.answers.study.config import Batch
from placement.answers.study.results import Row
from placement.hardware.spread import Range
from placement.units import compared

# The planner's own policies; all others are what people do today.
OURS = ("least-time",)
# What nobody can do, since it knows the text to come.
BOUNDS = ("opt",)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One setting of a study: the planner's plan beside the best of the other policies.

    `winner`: the policy of all that `winner_of` finds.
    """

    ours: Row
    best_baseline: Row
    winner: str | None = None

    @property
    def gain(self) -> float:
        """Share by which the best baseline's step is longer."""
        assert self.ours.step_s is not None
        assert self.best_baseline.step_s is not None
        return self.best_baseline.step_s / self.ours.step_s - 1


def compare(rows: Sequence[Row], same_boxes: Range) -> list[Comparison]:
    """Every setting in which both the planner and some baseline have a plan that fits.

    Args:
        same_boxes: as `winner_of` takes it.
    """
    found = []
    for group in _by_setting(rows).values():
        ours = [row for row in group if row.policy in OURS]
        others = [row for row in group if row.policy not in OURS]
        if ours and others:
            found.append(Comparison(_fastest(ours), _fastest(others), winner_of(group, same_boxes)))
    return found


def winners(rows: Sequence[Row], same_boxes: Range) -> dict[str, str | None]:
    """Of every setting in which several policies have a plan that fits, by its key: `winner_of`."""
    settings = _by_setting(rows)
    return {name: winner_of(group, same_boxes) for name, group in settings.items() if len(group) > 1}


def winner_of(setting: Sequence[Row], same_boxes: Range) -> str | None:
    """The policy that beats all others by more than the range; None where no difference can be promised.

    All run on the same cluster with the same head, so the range is that of a ratio of two speeds.

    Args:
        setting: rows of one, of at least two policies, all with a plan that fits.
        same_boxes: how far such a ratio lies from the predicted one (`Spreads`).
    """
    first, second = sorted(setting, key=lambda row: row.step_s or float("inf"))[:2]
    assert first.step_s is not None
    assert second.step_s is not None
    return first.policy if is_promised(second.step_s / first.step_s, same_boxes) else None


def winners_sentence(found: Mapping[str, str | None]) -> str | None:
    """What can be promised, and where nothing can; None where there is nothing to compare."""
    if not found:
        return None
    settings = f"{len(found)} setting{'s' if len(found) > 1 else ''}"
    named = Counter(policy for policy in found.values() if policy is not None)
    if not named:
        return f"No difference between policies that we can promise, in {settings}."
    wins = ", ".join(f"{policy} in {number}" for policy, number in named.most_common())
    rest = len(found) - named.total()
    others = f"; in {rest} there is {NO_DIFFERENCE}" if rest else ""
    return f"Of {settings}, won by more than predictions for the same boxes may be off: {wins}{others}."


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


def _by_setting(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows with a plan that fits, without those of policies that nobody can have."""
    settings: dict[str, list[Row]] = {}
    for row in rows:
        if row.step_s is not None and row.policy not in BOUNDS:
            settings.setdefault(row.key.rpartition("/")[0], []).append(row)
    return settings


def _fastest(rows: Sequence[Row]) -> Row:
    return min(rows, key=lambda row: row.step_s or float("inf"))
