"""Workers that run, as a dispatcher needs them: greeted, watched, and reached."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import zmq

from orchestrator.dispatch.connections import Connections
from orchestrator.dispatch.view import WorkerAddress
from orchestrator.launch.workers import Workers
from orchestrator.membership.member import Expected
from orchestrator.membership.rescue import BoxRoom
from orchestrator.membership.watch import ClusterWatch
from placement.errors import WorkerStartError
from placement.plan import LOCAL_WORKER, Plan
from transport.client import WorkerClient
from transport.keys import HeadKeys, KeyPair
from transport.messages import WireLimits, WorkerState, random_id
from transport.sockets import Context
from workers.holdings import Holdings

GREET_TIMEOUT_S = 30.0
"""Workers that say they are ready take part within this, whatever else the machine does."""
NOTICES_TIMEOUT_S = 2.0
# Workers of a running cluster that nobody has seen are not waited for longer.
JOIN_S = 3.0
# Of boxes whose disks nobody has measured.
DISK_BYTES_PER_S = 1e9


@dataclass(frozen=True, slots=True)
class Watched:
    """The plan's workers under watch. `network` belongs to the thread that runs the passes."""

    watch: ClusterWatch
    network: Connections
    _reach: Callable[[str, WorkerAddress], WorkerClient]

    def notices(self) -> list[str]:
        """What the workers have to say of their memory; those that do not answer are passed over."""
        found = []
        view = self.watch.standing().view
        for worker, address in view.addresses.items():
            name = view.names[worker]
            client = self._reach(name, address)
            try:
                with suppress(WorkerStartError):
                    reply = client.hello(NOTICES_TIMEOUT_S)
                    if reply.state == WorkerState.READY and reply.text:
                        found.append(f"worker {name}: {reply.text}")
            finally:
                client.close()
        return found


@contextmanager
def watched(
    running: Workers,
    plan: Plan,
    expected: Expected,
    limits: WireLimits,
    *,
    here: Holdings,
    room: Mapping[str, BoxRoom],
    say: Callable[[str], None] | None = None,
) -> Iterator[Watched]:
    """Wait until every expert has a holder, then watch the workers as long as the block lasts.

    Args:
        here: this process's own experts.
        room: what each box can take on, by worker name.
        say: takes a line on what happens to workers.

    Raises:
        WorkerStartError: a worker did not start, cannot be reached, or is another one.
    """
    addresses = running.wait_ready()
    session = random_id()
    with _context() as context:

        def reach(name: str, address: WorkerAddress) -> WorkerClient:
            keys = _keys(running.keys, address)
            return WorkerClient(context, address.endpoint, limits, name=name, keys=keys, session=session)

        with ClusterWatch(
            plan,
            addresses,
            expected,
            limits,
            session=session,
            keys=running.keys,
            here=here,
            room=room,
            say=say,
            join_s=JOIN_S,
            alone=running.alone,
            now_at=running.now_at,
        ) as watch:
            if not watch.wait_complete(GREET_TIMEOUT_S):
                said = "; ".join(f"{name}: {text}" for name, text in sorted(watch.progress.items()) if text)
                raise WorkerStartError(
                    f"after {GREET_TIMEOUT_S:g} s not all experts are served: "
                    f"{said or watch.standing().missing}: expected workers that run, can be reached and know "
                    "this head's key"
                )
            network = Connections(reach)
            try:
                yield Watched(watch, network, reach)
            finally:
                network.close()


def room_here(plan: Plan, free_bytes: int) -> dict[str, BoxRoom]:
    """Of workers that share this machine: its memory, and its disk, in equal parts."""
    names = [LOCAL_WORKER, *(worker.name for worker in plan.workers if worker.name != LOCAL_WORKER)]
    share = BoxRoom(DISK_BYTES_PER_S / len(names), free_bytes // len(names))
    return dict.fromkeys(names, share)


def room_elsewhere(
    plan: Plan, free_bytes: int, disks_bytes_per_s: Mapping[str, float] | None = None
) -> dict[str, BoxRoom]:
    """Of workers on boxes of their own: what the plan leaves free of their memory.

    Args:
        free_bytes: of this machine.
        disks_bytes_per_s: as they were measured, by worker name, "head" for this machine's.
    """
    held = plan.bytes_per_tier().tolist()
    measured = disks_bytes_per_s or {}
    # Only ratios count: a disk that nobody measured is as fast as the slowest that somebody did.
    usual = min(measured.values(), default=DISK_BYTES_PER_S)
    room = {LOCAL_WORKER: BoxRoom(measured.get(LOCAL_WORKER, usual), free_bytes)}
    for worker in plan.workers:
        if worker.name != LOCAL_WORKER:
            tiers = [(plan.tiers[index], held[index]) for index in worker.tiers]
            left = sum(tier.budget_bytes - used for tier, used in tiers if tier.kind == "ram")
            room[worker.name] = BoxRoom(measured.get(worker.name, usual), max(0, left))
    return room


def _keys(own: KeyPair | None, address: WorkerAddress) -> HeadKeys | None:
    if own is None or address.public_key is None:
        return None
    return HeadKeys(own, address.public_key)


@contextmanager
def _context() -> Iterator[Context]:
    context: Context = zmq.Context()
    try:
        yield context
    finally:
        context.destroy(linger=0)
