"""A view: holders without the absent, what nobody holds, and an answer that does not change."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.dispatch.view import ClusterView
from placement.holders import HolderTable
from placement.plan import Plan, PlannedTier, like_layers


def make_plan() -> Plan:
    """Two layers of four experts on "head", "den" (two tiers) and "attic"; attic's are den's too, but one."""
    masks = np.zeros((4, 2, 4), np.bool_)
    masks[0, :, 0] = masks[1, :, 1] = masks[2, :, 2] = True
    masks[3, :, 1:] = True
    owners = {"head": "head", "den-gpu": "den", "den-ram": "den", "attic": "attic"}
    return Plan(
        model="m",
        fingerprint="f",
        layers=like_layers((3, 4), "float32", 1000),
        dtype="float32",
        tiers=tuple(
            PlannedTier(name, owner, "cpu", "ram", 10**6, worker=owner) for name, owner in owners.items()
        ),
        holder_table=HolderTable.from_masks(masks),
        policy="by hand",
        epoch=7,
    )


def test_a_view_leaves_out_the_absent_and_says_what_nobody_holds() -> None:
    view = ClusterView(make_plan())
    assert (view.epoch, view.names, view.local_worker) == (7, ("head", "den", "attic"), 0)
    assert view.is_complete
    assert not view.orphans(frozenset({1})).any()
    assert np.argwhere(view.orphans(frozenset({2}))).tolist() == [[0, 3], [1, 3]]
    without_attic = ClusterView(view.plan, frozenset({2}))
    assert not without_attic.is_complete
    assert without_attic.missing_bytes() == 2 * 1000
    assert without_attic.holders == view.without(frozenset({2}))
    assert view.is_complete


def test_worker_of_tier_knows_that_no_tier_is_nobodys() -> None:
    view = ClusterView(make_plan())
    assert view.worker_of_tier.tolist() == [0, 1, 1, 2, -1]


def test_a_view_cannot_be_changed() -> None:
    view = ClusterView(make_plan())
    with pytest.raises(AttributeError):
        view.absent = frozenset({1})  # type: ignore[misc]
