"""How far the ratio of two measured speeds lies from that of the two predicted ones, on the same boxes.

What is wrong of the boxes in both predictions is left out of their ratio, so that it is surer than either.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import permutations

from benchmarks.published.judge import Judged, Range, range_of
from benchmarks.published.probed import probed_ratios

Alike = tuple[Hashable, Sequence[float]]
"""What counts as one pair, and measured by predicted speeds that differ in placement alone."""


def same_boxes_range(judged: Sequence[Judged]) -> Range:
    """Of pairs within our own runs and within others' posts: a session, or a device, counts as one pair.

    Args:
        judged: by what their own device did not set.

    Raises:
        InputError: probed.yaml is not as it should be.
    """
    return range_of_pairs([*_own(), *published_alike(judged)])


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


def _own() -> Iterator[Alike]:
    """Of equal boxes and steps, by session."""
    for number, session in enumerate(probed_ratios()):
        for alike in session:
            yield number, alike


def published_alike(judged: Iterable[Judged]) -> Iterator[Alike]:
    """Of one post that states its build, by first device.

    Its placements differ in the cards or boxes used and in what lies in RAM. Of several measurements of one
    placement the first counts.
    """
    found: dict[tuple[object, ...], dict[object, float]] = {}
    for one in judged:
        m = one.measurement
        if m.build is None:
            continue
        file = (m.model, m.quant, m.weight_bytes)
        kind = (m.first_device, m.url, m.engine, m.build, *file, m.context, m.kv, m.drafts)
        placement = (tuple(map(tuple, m.of_boxes)), m.split)
        found.setdefault(kind, {}).setdefault(placement, one.ratio)
    for (device, *_), by_placement in found.items():
        yield device, list(by_placement.values())
