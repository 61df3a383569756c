"""How far the ratio of two measured speeds lies from that of the two predicted ones, on the same boxes.

What is wrong of the boxes in both predictions is left out of their ratio, so that it is surer than either.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from itertools import permutations

from benchmarks.published.judge import range_of
from benchmarks.published.probed import played_ratios, probed_ratios
from placement.hardware.spread import Range

Alike = tuple[Hashable, Sequence[float]]
"""What counts as one pair, and measured by predicted speeds that differ in placement alone."""


def same_boxes_range() -> Range:
    """Of pairs within our own runs: a session counts as one pair.

    Other engines' placements are left out: what their messages between boxes cost is not modelled.

    Raises:
        InputError: probed.yaml is not as it should be.
    """
    sessions = enumerate([*probed_ratios(), *played_ratios()])
    return range_of_pairs((number, alike) for number, session in sessions for alike in session)


def range_of_pairs(sets: Iterable[Alike]) -> Range:
    """Of all pairs within sets.

    A pair counts in both directions, so that `high` is 1 / `low`: either of two plans may be the first.

    Raises:
        ValueError: no set has two speeds.
    """
    ratios: list[float] = []
    groups: list[Hashable] = []
    for group, alike in sets:
        for one, other in permutations(alike, 2):
            ratios.append(one / other)
            groups.append(group)
    found = range_of(ratios, groups)
    return replace(found, count=found.count // 2)
