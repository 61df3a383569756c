"""A plan's workers as Ray actors: started together, reached, watched, stopped."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import ray
import zmq
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.local_ray import joined_ray, local_ray
from orchestrator.nodes import Node, place
from orchestrator.stopping import uninterrupted
from placement.errors import PotluckError, WorkerStartError
from placement.files.quote import first_line
from placement.message_size import MAX_MESSAGE_ROWS
from placement.model_shape import ModelShape
from placement.plan import Plan
from transport.client import WorkerClient
from transport.keys import HeadKeys, KeyPair
from transport.messages import WireLimits
from workers.process import WorkerInfo, WorkerProcess, WorkerSpec
from workers.tiers import tiers_of

if TYPE_CHECKING:
    from workers.service import ServiceHealth

HELLO_TIMEOUT_S = 10.0
HEALTH_TIMEOUT_S = 5.0
# A worker must be ready within this time, plus the time to read its experts from a slow disk.
START_TIMEOUT_S = 120.0
SLOW_DISK_BYTES_PER_S = 20e6


class RayCluster:
    """Ray on this machine, or one that runs already, and the workers started in it.

    A context manager: however its block is left, the workers are stopped, and Ray too if it was started here.
    """

    def __init__(self, address: str | None = None) -> None:
        """
        Args:
            address: of a running Ray, "auto" for the one this machine belongs to; None starts one here.
        """
        self._address = address
        self._directory: Path | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """
        Raises:
            WorkerStartError: Ray does not start, cannot be reached, or refuses the token.
        """
        if self._address is None:
            self._directory = self._stack.enter_context(local_ray())
        else:
            self._stack.enter_context(joined_ray(self._address))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def start_workers(
        self,
        plan: Plan,
        shape: ModelShape,
        model_dir: Path,
        *,
        wire: Literal["ipc", "tcp"] = "ipc",
        num_threads: int | None = None,
        max_rows: int = MAX_MESSAGE_ROWS,
    ) -> RunningWorkers:
        """Begin to start the workers of the plan that hold experts; `RunningWorkers.connect` waits for them.

        In a Ray that was started here, all of them start on this machine, whatever the plan calls their
        nodes. They listen on ipc sockets. These are faster than loopback tcp, and they lie in a directory of
        this user, so nobody else on the machine can reach them. In a Ray that was joined, each starts on the
        node of its name. It listens on that node's address, encrypted, and lets in this process alone.

        Args:
            model_dir: the checkpoint, at the same path on every machine.
            wire: how workers of a Ray started here are reached.
            num_threads: of each worker's tiers; None for an equal share of its node's cores.
            max_rows: tokens in one message.

        Raises:
            PlanError: the plan is for another model.
            WorkerStartError: the plan has a node that Ray has not.
        """
        plan.check(shape)
        workers = plan.asked_workers
        entries = ray.nodes()  # type: ignore[no-untyped-call]
        alive = [Node.from_ray(entry) for entry in entries if entry["Alive"]]
        if self._directory is None:
            nodes = place(workers, alive)
        else:
            own_id = ray.get_runtime_context().get_node_id()
            here = next(node for node in alive if node.id == own_id)
            nodes = {worker.name: here for worker in workers}
        on_node = Counter(node.id for node in nodes.values())
        keys = KeyPair.make() if self._directory is None else None
        boxes = [tiers_of(plan, worker.name) for worker in workers]
        specs = [
            WorkerSpec(
                name=worker.name,
                model=plan.model,
                fingerprint=plan.fingerprint,
                epoch=plan.epoch,
                model_dir=str(model_dir.resolve()),
                tiers=tiers,
                dtype=plan.dtype,
                endpoint=self._endpoint(index, node, wire),
                head_public=None if keys is None else keys.public,
                num_threads=num_threads or max(1, node.num_cpus // on_node[node.id] // len(tiers)),
                max_rows=max_rows,
            )
            for index, (worker, node, tiers) in enumerate(zip(workers, nodes.values(), boxes, strict=True))
        ]
        held_bytes = plan.bytes_per_tier()
        most_bytes = max(int(held_bytes[list(worker.tiers)].sum()) for worker in workers)
        running = RunningWorkers(
            specs,
            nodes,
            keys,
            WireLimits.for_shape(shape, max_rows),
            START_TIMEOUT_S + most_bytes / SLOW_DISK_BYTES_PER_S,
        )
        self._stack.callback(running.stop)
        return running

    def _endpoint(self, index: int, node: Node, wire: str) -> str:
        if self._directory is None:
            host = f"[{node.address}]" if ":" in node.address else node.address
            return f"tcp://{host}:*"
        return f"ipc://{self._directory}/{index}.sock" if wire == "ipc" else "tcp://127.0.0.1:*"


class RunningWorkers:
    """Workers that were told to start, until `stop`."""

    def __init__(
        self,
        specs: Sequence[WorkerSpec],
        nodes: Mapping[str, Node],
        keys: KeyPair | None,
        limits: WireLimits,
        start_timeout_s: float,
    ) -> None:
        self.infos: dict[str, WorkerInfo] = {}
        """By name, as they become ready."""
        self._specs = {spec.name: spec for spec in specs}
        self._keys = keys
        self._limits = limits
        self._until_s = time.monotonic() + start_timeout_s
        self._clients: dict[str, WorkerClient] = {}
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        # We share the cores out ourselves, by threads. With num_cpus=1 Ray lets a worker wait for a core.
        remote: Any = ray.remote(num_cpus=0, max_restarts=0)(WorkerProcess)
        self._actors: dict[str, Any] = {}
        self._starting: dict[Any, str] = {}
        for spec in specs:
            there = NodeAffinitySchedulingStrategy(nodes[spec.name].id, soft=False)
            actor = remote.options(scheduling_strategy=there).remote(spec)
            self._actors[spec.name] = actor
            self._starting[actor.start.remote()] = spec.name

    def wait_ready(self) -> None:
        """Until every worker holds its experts and serves them; if one fails, all are stopped.

        Raises:
            WorkerStartError: which worker failed first, and why; or which took too long.
        """
        try:
            while self._starting:
                left_s = max(0.0, self._until_s - time.monotonic())
                ready, _ = ray.wait(list(self._starting), num_returns=1, timeout=left_s)
                if not ready:
                    names = ", ".join(self._starting.values())
                    raise WorkerStartError(f"workers that took too long to start and were stopped: {names}")
                name = self._starting.pop(ready[0])
                try:
                    self.infos[name] = ray.get(ready[0])
                except RayError as error:
                    raise WorkerStartError(self._why(self._specs[name], error)) from error
        except BaseException:
            self.stop()
            raise

    def connect(self) -> dict[str, WorkerClient]:
        """Wait until all are ready, connect, and check that each is who it should be.

        Returns:
            Worker name -> client, for the calling thread; closed by `stop`.

        Raises:
            WorkerStartError: as `wait_ready`; or a worker cannot be reached.
        """
        self.wait_ready()
        try:
            if self._context is None:
                self._context = zmq.Context()
            for name, info in self.infos.items():
                self._clients[name] = WorkerClient(
                    self._context, info.endpoint, self._limits, name=name, keys=self._keys_for(info)
                )
            for name, client in self._clients.items():
                client.hello(HELLO_TIMEOUT_S, dtype=self._specs[name].dtype)
        except BaseException:
            self.stop()
            raise
        return dict(self._clients)

    def health(self) -> dict[str, ServiceHealth | None]:
        """What each worker reports, None for one that does not answer."""
        asked = {name: actor.health.remote() for name, actor in self._actors.items()}
        answers: dict[str, ServiceHealth | None] = {}
        until = time.monotonic() + HEALTH_TIMEOUT_S
        for name, ref in asked.items():
            try:
                answers[name] = ray.get(ref, timeout=max(0.0, until - time.monotonic()))
            except (RayError, GetTimeoutError):
                answers[name] = None
        return answers

    def stop(self) -> None:
        """End all workers at once, whatever they are doing. Harmless when stopped."""
        with uninterrupted():
            for client in self._clients.values():
                client.close()
            self._clients.clear()
            if self._context is not None:
                self._context.destroy(linger=0)
                self._context = None
            for actor in self._actors.values():
                ray.kill(actor)
            self._actors.clear()
            self._starting.clear()

    def _keys_for(self, info: WorkerInfo) -> HeadKeys | None:
        if self._keys is None or info.public_key is None:
            return None
        return HeadKeys(self._keys, info.public_key)

    @staticmethod
    def _why(spec: WorkerSpec, error: RayError) -> str:
        """One line about a worker that did not start."""
        cause = error.cause if isinstance(error, RayTaskError) else error
        if isinstance(cause, RayActorError):
            num_experts = sum(tier.num_experts for tier in spec.tiers)
            reason = (
                f"its process died before it was ready to serve {num_experts} experts: "
                "killed, or out of memory: give it a smaller budget in the plan"
            )
        else:
            reason = first_line(cause)
            if not isinstance(cause, PotluckError):
                reason = f"{type(cause).__name__}: {reason}"
        prefix = f"worker {spec.name}: "
        return reason if reason.startswith(prefix) else prefix + reason
