"""A plan's workers on the nodes of a running Ray, for as long as a session."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.dispatch.view import WorkerAddress
from orchestrator.launch.kept_worker import OVER
from orchestrator.launch.left_runs import RUNS
from orchestrator.launch.ray_client import RayClient
from orchestrator.launch.spawn import named
from orchestrator.launch.workers import address_of, start_timeout_s
from orchestrator.nodes import Node, place
from orchestrator.stopping import stopping_by_exception
from placement.errors import WorkerStartError
from placement.model_shape import ModelShape
from placement.plan import Plan
from transport.keys import KeyPair
from transport.messages import WireLimits
from workers.spec import WorkerInfo, WorkerSpec

TICK_S = 0.1


@contextmanager
def ray_workers(plan: Plan, shape: ModelShape, model_path: Path, address: str) -> Iterator[RayWorkers]:
    """Begin to start the workers of the plan that hold experts on the nodes of a running Ray; end them after.

    Each starts on the node of its name. It listens on that node's address, encrypted, and lets in this
    process alone. Where this process is killed, they end when no head has spoken to them for a while.

    Args:
        model_path: the checkpoint, at the same path on every machine.
        address: of Ray, "auto" for the one this machine belongs to; Ray's own variables give token and TLS.

    Raises:
        PlanError: the plan is for another model.
        WorkerStartError: Ray cannot be reached or refuses the token, or the plan has a node that Ray has not.
    """
    plan.check(shape)
    with stopping_by_exception(), _joined(address) as client:
        workers = plan.asked_workers
        nodes = place(workers, client.nodes())
        on_node = Counter(node.id for node in nodes.values())
        keys = KeyPair.make()
        until_s = time.monotonic() + start_timeout_s(plan, (worker.name for worker in workers))
        running = RayWorkers(client, keys, until_s)
        run = f"run-{secrets.token_hex(6)}"
        for worker in workers:
            node = nodes[worker.name]
            host = f"[{node.address}]" if ":" in node.address else node.address
            spec = WorkerSpec.of_plan(
                plan,
                worker.name,
                WireLimits.for_shape(shape),
                model_dir=str(model_path.resolve()),
                endpoint=f"tcp://{host}:*",
                pulse_endpoint=f"tcp://{host}:*",
                allowed=(keys.public,),
                num_threads=max(1, node.num_cpus // on_node[node.id] // len(worker.tiers)),
            )
            running.start(spec, node, f"{RUNS}/{run}/{worker.name}")
        # What was started ends with the client.
        yield running


@dataclass(slots=True)
class RayWorkers:
    """Workers that were told to start. `infos`: by name, as they become ready."""

    client: RayClient
    keys: KeyPair
    until_s: float
    infos: dict[str, WorkerInfo] = field(default_factory=dict)
    _starting: dict[str, tuple[Node, str]] = field(default_factory=dict)

    def start(self, spec: WorkerSpec, node: Node, folder: str) -> None:
        """Raises WorkerStartError where the node takes no order."""
        try:
            self.client.keep(node.id, folder, spec.to_json(), outlives=False)
        except WorkerStartError as error:
            raise WorkerStartError(named(spec.name, str(error))) from error
        self._starting[spec.name] = (node, folder)

    def alone(self) -> bool:
        """They were started for this run."""
        return True

    def wait_ready(self) -> Mapping[str, WorkerAddress]:
        """See `Workers`."""
        while self._starting:
            for name, (node, folder) in list(self._starting.items()):
                state = self.client.state(node.id, folder)
                if state["state"] == "ready":
                    self.infos[name] = WorkerInfo.from_dict(state["info"])
                    del self._starting[name]
                elif state["state"] in OVER:
                    raise WorkerStartError(named(name, state["message"] or "its worker ended"))
            if self._starting and time.monotonic() > self.until_s:
                names = ", ".join(self._starting)
                raise WorkerStartError(f"workers that took too long to start and were stopped: {names}")
            if self._starting:
                time.sleep(TICK_S)
        return {name: address_of(info) for name, info in self.infos.items()}

    def now_at(self) -> Mapping[str, WorkerAddress]:
        """Nowhere else: one that is started again is found where it was."""
        return {}


@contextmanager
def _joined(address: str) -> Iterator[RayClient]:
    client = RayClient(address, {})
    try:
        client.__enter__()
    except WorkerStartError as error:
        raise WorkerStartError(
            f"{error}: run `potluck up`, `ray up` or `ray start` first, with the same token and certificate"
        ) from error
    try:
        yield client
    finally:
        client.close()
