"""How far a measured speed may lie from a predicted one, and which predicted differences can be promised."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from placement.given.cluster_spec import FiguresFrom
from placement.given.problem import PlanningProblem
from placement.hardware.spread import Range, Spreads
from placement.holders import HolderTable

NO_DIFFERENCE = "no difference we can promise"


@dataclass(frozen=True, slots=True)
class SpeedRange(Range):
    """A range of speeds.

    Attributes:
        basis: whose figures the devices have that the time goes into; of several, those of the widest range.
    """

    basis: FiguresFrom


@dataclass(frozen=True, slots=True)
class LikelySpeed:
    """A predicted speed and its range."""

    tokens_per_s: float
    range: SpeedRange

    @property
    def low(self) -> float:
        """Tokens/s."""
        return self.range.low * self.tokens_per_s

    @property
    def high(self) -> float:
        """Tokens/s."""
        return self.range.high * self.tokens_per_s

    def beats(self, other: LikelySpeed) -> bool:
        """Whether it can be promised to be faster, on boxes that may be others."""
        return is_promised(self.tokens_per_s / other.tokens_per_s, self.range, other.range)


def is_promised(times: float, *ranges: Range) -> bool:
    """Whether the faster of two speeds that are predicted can be promised to be faster.

    Args:
        times: how many times as fast it is predicted to be.
        ranges: `Spreads.same_boxes` alone for two plans of our runtime on the same cluster with the same
            head: what is wrong of the boxes is wrong in both predictions. Else those of both speeds; the
            wider one counts.
    """
    return times - 1 > max(each.margin for each in ranges)


def range_of(sources: Iterable[FiguresFrom], spreads: Spreads) -> SpeedRange:
    """The widest that figures of these sources have.

    What is typed was measured by nobody with our program, so it counts like the catalogue's figures.

    Args:
        sources: at least one.
    """
    return max((_of_source(source, spreads) for source in sorted(set(sources))), key=lambda each: each.margin)


def range_for(problem: PlanningProblem, table: HolderTable | None, spreads: Spreads) -> SpeedRange:
    """The range of a placement's predicted speed.

    A step's time goes into the device that the head computes on and into those that hold experts; others do
    not count.

    Args:
        table: None where the placement changes as it runs; then every device counts.
    """
    devices = problem.devices
    if table is not None:
        held = table.experts_per_worker(len(devices))
        devices = tuple(each for i, each in enumerate(devices) if i == problem.head or held[i])
    return range_of((device.figures_from for device in devices), spreads)


def ranks(speeds: Sequence[LikelySpeed]) -> list[int]:
    """Ranks of speeds that fall, from 1 on; those that the first of a rank does not beat share it."""
    found: list[int] = []
    first = 0
    for index, speed in enumerate(speeds):
        if speeds[first].beats(speed):
            first = index
        found.append(first + 1)
    return found


def _of_source(source: FiguresFrom, spreads: Spreads) -> SpeedRange:
    known = spreads.probed if source == "probed" else spreads.judged
    return SpeedRange(known.low, known.high, known.count, known.covers, source)
