"""How far a measured speed may lie from a predicted one, and which predictions differ by more than that."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from placement.given.cluster_spec import FiguresFrom
from placement.given.problem import PlanningDevice, PlanningProblem
from placement.hardware.spread import Spreads, larger_side
from placement.holders import HolderTable

Placed = tuple[PlanningProblem, HolderTable]
"""A problem and a placement for it."""


@dataclass(frozen=True, slots=True)
class Range:
    """Factors of a predicted speed between which the measured one is likely to lie.

    Attributes:
        low, high: of tokens/s.
        basis: whose figures the devices have that the time goes into; of several, those of the widest range.
        count: of measured speeds, each beside its prediction, that the factors are from.
        covers: how often the next one is expected between them.
    """

    low: float
    high: float
    basis: FiguresFrom
    count: int
    covers: float

    @property
    def margin(self) -> float:
        """As `larger_side`."""
        return larger_side(self.low, self.high)


@dataclass(frozen=True, slots=True)
class LikelySpeed:
    """A predicted speed and its range."""

    tokens_per_s: float
    range: Range

    @property
    def low(self) -> float:
        """Tokens/s."""
        return self.range.low * self.tokens_per_s

    @property
    def high(self) -> float:
        """Tokens/s."""
        return self.range.high * self.tokens_per_s

    def beats(self, other: LikelySpeed) -> bool:
        """Whether it is faster by more than the range of either prediction."""
        return self.tokens_per_s / other.tokens_per_s - 1 > max(self.range.margin, other.range.margin)


def range_of(sources: Iterable[FiguresFrom], spreads: Spreads) -> Range:
    """The widest that figures of these sources have.

    What is typed was measured by nobody with our program, so it counts like the catalogue's figures.

    Args:
        sources: at least one.
    """
    return max((_of_source(source, spreads) for source in sorted(set(sources))), key=lambda each: each.margin)


def range_for(problem: PlanningProblem, table: HolderTable | None, spreads: Spreads) -> Range:
    """The range of a placement's predicted speed.

    A step's time goes into the device that the head computes on and into those that hold experts; others do
    not count.

    Args:
        table: None where the placement changes as it runs; then every device counts.
    """
    used = problem.devices if table is None else _used(problem, table)
    return range_of((device.figures_from for device in used), spreads)


def margin_between(one: Placed, other: Placed, spreads: Spreads) -> float:
    """From which difference on, as a share, the faster of two placements can be promised to be faster.

    Where both use the same devices, most of what is wrong of these is wrong in both predictions and cancels.
    Else the wider range counts.
    """
    first, second = ({_name(device) for device in _used(*placed)} for placed in (one, other))
    if first == second:
        return spreads.same_boxes.margin
    return max(range_for(*placed, spreads).margin for placed in (one, other))


def places(speeds: Sequence[LikelySpeed]) -> list[int]:
    """Places of speeds that fall, from 1 on; those that the first of a place does not beat share it."""
    found: list[int] = []
    first = 0
    for index, speed in enumerate(speeds):
        if speeds[first].beats(speed):
            first = index
        found.append(first + 1)
    return found


def _used(problem: PlanningProblem, table: HolderTable) -> list[PlanningDevice]:
    """The head's device, and those that hold experts."""
    held = table.experts_per_worker(len(problem.devices))
    return [device for i, device in enumerate(problem.devices) if i == problem.head or held[i]]


def _name(device: PlanningDevice) -> tuple[str, str, str]:
    """The same wherever the head is."""
    tier = device.tier
    return tier.node, tier.kind, tier.device


def _of_source(source: FiguresFrom, spreads: Spreads) -> Range:
    spread = spreads.probed if source == "probed" else spreads.judged
    return Range(spread.low, spread.high, source, spread.count, spread.covers)
