"""How a cluster is: what was noted of each box, and what its worker says now."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from orchestrator.cluster.greet import Greeted, greet
from orchestrator.cluster.keeper import find_keeper, read_keeping, wanted_of
from orchestrator.cluster.keys_folder import read_pair
from orchestrator.cluster.launcher_file import Launcher
from orchestrator.cluster.pool import Wanted
from orchestrator.cluster.run_state import RunningWorker, RunState, read_run_state
from orchestrator.dispatch.view import ClusterView
from orchestrator.migration.decision_file import DecisionError, read_decision
from orchestrator.migration.migration import MigrationState
from transport.messages import WireLimits


@dataclass(frozen=True, slots=True)
class BoxStatus:
    """A box.

    Attributes:
        role: "head", "worker", or "spare" where the plan asks nothing of it.
        state: "ready", "loading", "failed", "silent" or "missing"; "up" for the head, "idle" for a spare.
        num_experts, held_bytes: planned for the head, served by a worker.
        since: seconds since 1970, None where it does not serve.
        word: its last word, or why it is missing.
    """

    node: str
    address: str
    role: str
    state: str
    pid: int | None
    num_experts: int
    held_bytes: int
    since: float | None
    round_trip_s: float | None
    word: str


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """A cluster.

    `lost_experts`: which no box holds in memory now. `keeper`: pid, None where none runs. `migration`: what
    a run decided last about moving experts.
    """

    state: RunState
    boxes: tuple[BoxStatus, ...]
    keeper: int | None
    keeper_word: str
    lost_experts: int
    migration: MigrationState | None = None


def cluster_status(launcher: Launcher) -> ClusterStatus:
    """
    Raises:
        RunStateError: none runs here.
        PotluckError: its plan, model or keys are not there any more.
    """
    folder = launcher.state_folder
    state = read_run_state(folder)
    wanted = wanted_of(launcher, state)
    limits = WireLimits.for_shape(wanted.shape)
    answers = greet(state.workers, limits, read_pair(folder, state.head))
    planned = {worker.node: worker.name for worker in wanted.workers}
    boxes = []
    for box in launcher.boxes:
        name = planned.get(box.name)
        worker = None if name is None else state.worker(name)
        if box.name == state.head:
            boxes.append(_head(wanted, box.name, box.address, state))
        elif name is None:
            why = state.missing.get(box.name, "")
            how = "missing" if why else "idle"
            boxes.append(BoxStatus(box.name, box.address, "spare", how, None, 0, 0, None, None, why))
        elif worker is None:
            why = state.missing.get(box.name, "it never served")
            boxes.append(BoxStatus(box.name, box.address, "worker", "missing", None, 0, 0, None, None, why))
        else:
            boxes.append(_worker(worker, answers[worker.name], state.missing.get(box.name, "")))
    keeper = find_keeper(folder)
    keeping = read_keeping(folder)
    serving = {
        answer.reply.name for answer in answers.values() if answer.reply and answer.reply.state == "ready"
    }
    return ClusterStatus(
        state,
        tuple(boxes),
        None if keeper is None else keeper.pid,
        "" if keeping is None else keeping.last_word,
        lost_experts(wanted, serving),
        _last_decision(folder),
    )


def _last_decision(folder: Path) -> MigrationState | None:
    """About moving experts; none where it is damaged, since boxes are shown nevertheless."""
    try:
        return read_decision(folder)
    except DecisionError:
        return None


def lost_experts(wanted: Wanted, serving: set[str]) -> int:
    """How many of the plan's experts neither the head nor a worker in `serving` holds."""
    plan = wanted.plan
    asked = {worker.name for worker in wanted.workers}
    absent = {index for index, worker in enumerate(plan.workers) if worker.name in asked - serving}
    return int(ClusterView(plan).orphans(frozenset(absent)).sum())


def _head(wanted: Wanted, node: str, address: str, state: RunState) -> BoxStatus:
    plan = wanted.plan
    tiers = [tier for worker in plan.workers if worker.node == node for tier in worker.tiers]
    count = int(plan.experts_per_tier()[tiers].sum()) if tiers else 0
    held = int(plan.bytes_per_tier()[tiers].sum()) if tiers else 0
    return BoxStatus(node, address, "head", "up", None, count, held, state.started, None, "")


def _worker(worker: RunningWorker, answer: Greeted, missing: str) -> BoxStatus:
    reply = answer.reply
    if reply is None:
        return BoxStatus(
            worker.node, worker.address, "worker", "silent", None, 0, 0, None, None, missing or answer.why
        )
    return BoxStatus(
        node=worker.node,
        address=worker.address,
        role="worker",
        state=str(reply.state),
        pid=worker.pid,
        num_experts=reply.num_experts,
        held_bytes=worker.held_bytes,
        since=worker.since,
        round_trip_s=answer.seconds,
        word=reply.text,
    )
