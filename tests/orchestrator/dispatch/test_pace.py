"""Who is called slow: only a worker that is slow beside the others, and not for a moment."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from orchestrator.dispatch.pace import Pace
from orchestrator.dispatch.view import ClusterView
from placement.holders import HolderTable
from placement.patience import Patience
from placement.plan import Plan, PlannedTier, like_layers


def noted(pace: Pace, seconds: Mapping[int, float], now_s: float) -> dict[int, float]:
    for worker, elapsed_s in seconds.items():
        for _ in range(40):
            pace.note(worker, 4, elapsed_s, now_s)
    return pace.factors(now_s)


def test_a_busy_machine_slows_all_and_nobody_is_called_slow() -> None:
    pace = Pace([(1.0, 1.0)] * 3, Patience())
    for now_s, each_s in enumerate((0.001, 0.02, 0.02, 0.02)):
        assert noted(pace, dict.fromkeys(range(3), each_s), now_s) == {}


def test_one_that_is_slow_beside_the_others_is_called_so_the_second_time_and_until_it_is_well() -> None:
    pace = Pace([(1.0, 1.0)] * 3, Patience())
    slow = {0: 0.001, 1: 0.0012, 2: 0.008}
    assert noted(pace, slow, 0.0) == {}
    assert noted(pace, slow, 0.5) == {2: 8.0}
    assert noted(pace, {**slow, 2: 0.001}, 1.0) == {}
    assert noted(pace, slow, 1.5) == {}


def test_one_that_others_overtake_is_slow_though_it_never_answers() -> None:
    pace = Pace([(1.0, 1.0)] * 3, Patience())
    well = {0: 0.001, 1: 0.001, 2: 0.001}
    assert noted(pace, well, 0.0) == {}
    late_s = pace.late_after_s(2, 4)
    for step in range(32):
        pace.overtaken(2, 4, 0.03, 1.0 + 0.03 * step)
    del well[2]
    noted(pace, well, 2.0)
    assert noted(pace, well, 2.5)[2] >= 16.0
    assert pace.late_after_s(2, 4) == late_s


def test_a_first_answer_bounds_how_long_the_next_is_waited_for() -> None:
    pace = Pace([(1.0, 1.0)] * 2, Patience())
    assert pace.late_after_s(0, 4) > 1.0
    pace.note(0, 4, 0.01, 0.0)
    assert pace.late_after_s(0, 4) == 0.25
    pace.note(0, 4, 0.05, 0.1)
    assert pace.late_after_s(0, 4) == 0.4
    # A long one says nothing of how long the next may take.
    pace.note(0, 4, 5.0, 1.0)
    assert pace.late_after_s(0, 4) == pace.late_after_s(1, 4)
    # Nor do a few say what is too long.
    assert pace.known_late_s(0, 4) is None


def test_one_worker_alone_is_compared_with_nobody() -> None:
    pace = Pace([(1.0, 1.0)], Patience())
    for now_s, each_s in enumerate((0.001, 0.02, 0.02)):
        assert noted(pace, {0: each_s}, now_s) == {}


def test_only_workers_whose_experts_others_hold_too_share() -> None:
    tiers = tuple(PlannedTier(name, name, "cpu", "ram", 10**6) for name in "abc")
    table = HolderTable.from_masks(np.array([[[1, 0, 0]], [[1, 1, 0]], [[0, 0, 1]]], np.bool_))
    plan = Plan("m", "f", like_layers((3,), "float32", 10), "float32", tiers, table, "by hand")
    assert ClusterView(plan).sharing == {0, 1}
    assert ClusterView(plan, absent=frozenset({0})).sharing == frozenset()
