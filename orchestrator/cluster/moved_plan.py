"""The plan in use of a cluster that runs: one file, which every run and `potluck up` read."""

from __future__ import annotations

from pathlib import Path

from orchestrator.cluster.heads import Heads
from orchestrator.membership.rescue import as_planned
from orchestrator.membership.watch import ClusterWatch
from placement.errors import PotluckError
from placement.plan import Plan
from placement.plan_file import write_plan

ANOTHER_RUN = "another run uses this cluster"
ANOTHER_VIEW = "the workers that take part have changed"


def use_plan(plan: Plan, *, path: Path, heads: Heads, watch: ClusterWatch) -> str:
    """Have passes run under `plan` and put it at `path`, both or neither; its workers hold what it says.

    Returns:
        Why it is not used; empty where it is.
    """
    with heads.held() as is_alone:
        # Whoever reads the file from now on has the new plan, so the old holders may let go.
        if not is_alone:
            return ANOTHER_RUN
        before = watch.standing().view.plan
        try:
            write_plan(as_planned(plan), path)
        except (PotluckError, OSError) as error:
            return f"{path} cannot be written: {error}"
        if watch.change(plan):
            return ""
        try:
            write_plan(as_planned(before), path)
        except (PotluckError, OSError) as error:
            return f"{ANOTHER_VIEW}, and {path} cannot be written back: {error}"
        return ANOTHER_VIEW
