"""Experts by layer, as plans, orders and boxes name them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

Experts = Mapping[int, tuple[int, ...]]
"""Absolute layer index -> experts, ascending, as `Plan.experts_of` has them."""


def minus(experts: Experts, gone: Mapping[int, Collection[int]]) -> dict[int, tuple[int, ...]]:
    """Those of `experts` that are not among `gone`; no layer without experts."""
    left = {}
    for layer, ids in experts.items():
        kept = tuple(sorted(set(ids).difference(gone.get(layer, ()))))
        if kept:
            left[layer] = kept
    return left
