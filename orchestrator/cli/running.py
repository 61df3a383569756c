"""A cluster that `potluck up` started, as a command that runs a model sees it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cli.output import print_note
from placement.errors import PotluckError
from placement.plan import LOCAL_WORKER, Plan
from workers.memory.reservations import free_memory

if TYPE_CHECKING:
    from orchestrator.cluster.heads import Heads
    from orchestrator.launch.workers import Workers
    from orchestrator.membership.watch import ClusterWatch
    from orchestrator.migration.migration import MigrationState
    from orchestrator.session import Session
    from workers.formats.open_model import OpenModel


@dataclass(frozen=True, slots=True)
class Running:
    """A cluster that runs.

    Attributes:
        folder: with its state.
        heads: this run's share of it.
        plan: path of the plan in use.
        head: the node.
    """

    folder: Path
    heads: Heads
    plan: Path
    head: str


def of_cluster(cluster: Path, model: Path | None) -> tuple[Running, Path, Path]:
    """A running cluster, its model, unless another path was given for it, and its plan."""
    # What reads cluster files takes a while to load, and other runs do without.
    from orchestrator.cluster.heads import Heads
    from orchestrator.cluster.launcher_file import load_launcher
    from orchestrator.cluster.run_state import read_run_state

    folder = load_launcher(cluster).state_folder
    state = read_run_state(folder)
    # Before the plan is read: nobody moves experts away from what it says then.
    running = Running(folder, Heads(folder), Path(state.plan), state.head)
    return running, model or Path(state.model_path), running.plan


def disks(plan: Plan, running: Running) -> dict[str, float]:
    """Bytes a second of the boxes' disks, by worker name, as the cluster's probe found them."""
    # What reads probes takes a while to load, and other runs do without.
    from placement.given.probe import FILE_NAME, read_probe

    path = running.folder / FILE_NAME
    if not path.exists():
        return {}
    nodes = {LOCAL_WORKER: running.head} | {worker.name: worker.node for worker in plan.workers}
    found = read_probe(path).nodes
    known = {name: found[node].disk for name, node in nodes.items() if node in found}
    return {name: disk.bytes_per_s for name, disk in known.items() if disk is not None}


@contextmanager
def moving(session: Session, watch: ClusterWatch, model: OpenModel, running: Running) -> Iterator[None]:
    """Experts follow the traffic meanwhile, and the cluster's plan with them."""
    # The planner takes a while to load, and other runs do without.
    from orchestrator.cli.migrating import kept_traffic, migrating
    from orchestrator.cluster.moved_plan import use_plan
    from orchestrator.launch.watched import room_elsewhere
    from orchestrator.migration.decision_file import write_decision
    from orchestrator.migration.migration import MigrationLimits

    def note(state: MigrationState) -> None:
        # Where it cannot be kept, `status` shows an older one, and the run goes on.
        with suppress(PotluckError, OSError):
            write_decision(state, running.folder, time.time())

    plan = watch.standing().view.plan
    room = room_elsewhere(plan, free_memory().usable_bytes)
    with (
        kept_traffic(running.folder, model.shape, watch, print_note) as routing,
        migrating(
            session.head,
            session.dispatcher,
            watch,
            model.shape,
            limits=MigrationLimits(),
            room={name: box.free_bytes for name, box in room.items()},
            use=partial(use_plan, path=running.plan, heads=running.heads, watch=watch),
            note=note,
            routing=routing,
        ),
    ):
        yield


def workers_of(
    plan: Plan, model: OpenModel, ray_address: str | None, running: Running | None
) -> AbstractContextManager[Workers] | None:
    """Whom the plan's experts are asked of; None for workers that are started on this machine.

    Args:
        running: a cluster that runs.
    """
    if running is not None and plan.asked_workers:
        from orchestrator.cluster.running import running_cluster

        return running_cluster(running.folder, running.heads, plan)
    if ray_address is None or not plan.asked_workers:
        return None
    # Ray takes seconds to import.
    from orchestrator.launch.ray_workers import ray_workers

    return ray_workers(plan, model.shape, model.path, ray_address)
