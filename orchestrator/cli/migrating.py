"""A run whose experts follow its traffic: the migration with its planner, which is a process of its own."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from orchestrator.cli.migration_planner import give_way, propose
from orchestrator.dispatch.dispatcher import Dispatcher
from orchestrator.membership.rescue import as_planned
from orchestrator.membership.watch import ClusterWatch
from orchestrator.migration.migration import Migration, MigrationLimits, MigrationState
from orchestrator.migration.migrator import Migrator
from orchestrator.migration.online_routing import NOTHING, OnlineRouting
from orchestrator.migration.traffic_file import TrafficError, read_traffic, write_traffic
from orchestrator.model.step35 import Step35Model
from placement.errors import PotluckError
from placement.model_shape import ModelShape
from placement.plan import Plan


@contextmanager
def migrating(
    head: Step35Model,
    dispatcher: Dispatcher,
    watch: ClusterWatch,
    shape: ModelShape,
    *,
    limits: MigrationLimits,
    room: Mapping[str, int],
    use: Callable[[Plan], str],
    note: Callable[[MigrationState], None],
    routing: OnlineRouting | None = None,
) -> Iterator[OnlineRouting]:
    """Let experts follow what `head` is asked, for as long as the block lasts.

    Args:
        room: bytes that a worker may hold for a while beyond what the plan says, by name.
        use: has passes run under another plan; gives why not, where they do not. In another thread.
        note: told of every new decision, in another thread.
        routing: what is known of the traffic; new where left out. `head` records into it, in place of any
            recorder that it had.
    """
    routing = routing or OnlineRouting(shape.moe_layers)
    before, head.recorder = head.recorder, routing
    apart = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=give_way)
    migrator = Migrator(
        Migration(limits, room, time.monotonic()),
        watch,
        lambda: dispatcher.epoch,
        routing,
        partial(propose, shape=shape, limits=limits),
        apart,
        use=use,
        tell=watch.tell,
        note=note,
    )
    try:
        with migrator:
            yield routing
    finally:
        head.recorder = before
        apart.shutdown(wait=False, cancel_futures=True)


@contextmanager
def kept_traffic(
    folder: Path, shape: ModelShape, watch: ClusterWatch, say: Callable[[str], None]
) -> Iterator[OnlineRouting]:
    """What runs of a cluster choose, of those before this one too; kept at the end.

    Args:
        folder: with the cluster's state.
        say: told why what was kept is not used, or nothing is kept.
    """
    try:
        known = read_traffic(folder, as_planned(watch.standing().view.plan), shape)
    except TrafficError as error:
        say(f"{error}; what is asked for is counted anew")
        known = NOTHING
    routing = OnlineRouting(shape.moe_layers, known=known)
    try:
        yield routing
    finally:
        try:
            write_traffic(routing.lately(), as_planned(watch.standing().view.plan), folder)
        except (PotluckError, OSError) as error:
            say(f"what was asked for is not kept: {error}")
