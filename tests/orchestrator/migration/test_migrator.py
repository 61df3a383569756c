"""What becomes of a run whose planner fails: nothing, but that experts stay where they are."""

from __future__ import annotations

from concurrent.futures import BrokenExecutor, Executor, Future
from typing import Any
from unittest.mock import Mock

import pytest

from orchestrator.dispatch.view import ClusterView
from orchestrator.membership.standing import Standing
from orchestrator.migration.migration import (
    Migration,
    MigrationLimits,
    MigrationPhase,
    MigrationState,
    Proposal,
)
from orchestrator.migration.migrator import Migrator
from orchestrator.migration.online_routing import OnlineRouting
from placement.given.traces import CODING
from tests.orchestrator.migration.test_online_routing import record
from tests.orchestrator.migration.test_planner import SHAPE, planned_for


class Failing(Executor):
    """Whose process is killed while it works, or was before."""

    def __init__(self, *, is_broken: bool) -> None:
        self.is_broken = is_broken

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        if self.is_broken:
            raise BrokenExecutor("its process was killed")
        found: Future[Any] = Future()
        found.set_exception(BrokenExecutor("its process was killed"))
        return found


@pytest.mark.parametrize("is_broken", [False, True])
def test_a_planner_that_is_killed_moves_nothing_and_says_so_at_each_look(is_broken: bool) -> None:
    plan = planned_for(CODING, 200)
    routing = OnlineRouting(SHAPE.moe_layers, piece_tokens=1, num_pieces=2)
    for _ in range(4):
        record(routing, [[1, 2, 3, 4]], tuple(SHAPE.moe_layers))
    watch = Mock(**{"standing.return_value": Standing(ClusterView(plan))})
    noted: list[MigrationState] = []
    migrator = Migrator(
        Migration(MigrationLimits(check_s=1.0), {}, 0.0),
        watch,
        lambda: plan.epoch,
        routing,
        lambda _: Proposal("never asked"),
        Failing(is_broken=is_broken),
        use=lambda _: "",
        tell=lambda _: None,
        note=noted.append,
    )
    for now_s in (1.5, 1.6, 3.0, 3.1):
        migrator.step(now_s)
    looking, failed, again, failed_again = noted
    assert looking.phase is again.phase is MigrationPhase.PLANNING
    assert failed.phase is failed_again.phase is MigrationPhase.WATCHING
    assert failed.reason.endswith("the planner failed: its process was killed")
    watch.order.assert_not_called()
