"""A plan's workers as Ray actors: started together, reached, watched, stopped."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.dispatch.view import WorkerAddress
from orchestrator.launch.workers import address_of
from orchestrator.local_ray import joined_ray
from orchestrator.nodes import Node, place
from orchestrator.stopping import uninterrupted
from placement.errors import PotluckError, WorkerStartError
from placement.files.quote import first_line
from placement.model_shape import ModelShape
from placement.plan import Plan
from transport.keys import KeyPair
from transport.messages import WireLimits
from workers.process import WorkerProcess
from workers.spec import WorkerInfo, WorkerSpec

# A worker must be ready within this time, plus the time to read its experts from a slow disk.
START_TIMEOUT_S = 120.0
SLOW_DISK_BYTES_PER_S = 20e6


@contextmanager
def ray_workers(plan: Plan, shape: ModelShape, model_path: Path, address: str) -> Iterator[RunningWorkers]:
    """Begin to start the workers of the plan that hold experts on the nodes of a running Ray; end them after.

    Each starts on the node of its name. It listens on that node's address, encrypted, and lets in this
    process alone.

    Args:
        model_path: the checkpoint, at the same path on every machine.
        address: of Ray, "auto" for the one this machine belongs to.

    Raises:
        PlanError: the plan is for another model.
        WorkerStartError: Ray cannot be reached or refuses the token, or the plan has a node that Ray has not.
    """
    plan.check(shape)
    with joined_ray(address):
        running = _started(plan, shape, model_path)
        try:
            yield running
        finally:
            running.stop()


def _started(plan: Plan, shape: ModelShape, model_path: Path) -> RunningWorkers:
    workers = plan.asked_workers
    entries = ray.nodes()  # type: ignore[no-untyped-call]
    nodes = place(workers, [Node.from_ray(entry) for entry in entries if entry["Alive"]])
    on_node = Counter(node.id for node in nodes.values())
    keys = KeyPair.make()
    limits = WireLimits.for_shape(shape)
    specs = []
    for worker, node in zip(workers, nodes.values(), strict=True):
        host = f"[{node.address}]" if ":" in node.address else node.address
        specs.append(
            WorkerSpec.of_plan(
                plan,
                worker.name,
                limits,
                model_dir=str(model_path.resolve()),
                endpoint=f"tcp://{host}:*",
                pulse_endpoint=f"tcp://{host}:*",
                allowed=(keys.public,),
                num_threads=max(1, node.num_cpus // on_node[node.id] // len(worker.tiers)),
            )
        )
    held_bytes = plan.bytes_per_tier()
    most_bytes = max(int(held_bytes[list(worker.tiers)].sum()) for worker in workers)
    return RunningWorkers(specs, nodes, keys, START_TIMEOUT_S + most_bytes / SLOW_DISK_BYTES_PER_S)


class _Actor:
    """A worker inside a process of Ray's."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._worker = WorkerProcess(spec)

    def start(self) -> WorkerInfo:
        """Errors as `WorkerProcess.bind` and `load`."""
        self._worker.bind()
        return self._worker.load()


class RunningWorkers:
    """Workers that were told to start, until `stop`."""

    def __init__(
        self, specs: Sequence[WorkerSpec], nodes: Mapping[str, Node], keys: KeyPair, start_timeout_s: float
    ) -> None:
        self.infos: dict[str, WorkerInfo] = {}
        """By name, as they become ready."""
        self.keys = keys
        self._specs = {spec.name: spec for spec in specs}
        self._until_s = time.monotonic() + start_timeout_s
        # We share the cores out ourselves, by threads. With num_cpus=1 Ray lets a worker wait for a core.
        remote: Any = ray.remote(num_cpus=0, max_restarts=0)(_Actor)
        self._actors: dict[str, Any] = {}
        self._starting: dict[Any, str] = {}
        for spec in specs:
            there = NodeAffinitySchedulingStrategy(nodes[spec.name].id, soft=False)
            actor = remote.options(scheduling_strategy=there).remote(spec)
            self._actors[spec.name] = actor
            self._starting[actor.start.remote()] = spec.name

    def wait_ready(self) -> dict[str, WorkerAddress]:
        """See `Workers`; if one fails, all are stopped.

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
        return {name: address_of(info) for name, info in self.infos.items()}

    def stop(self) -> None:
        """End all workers at once, whatever they are doing. Harmless when stopped."""
        with uninterrupted():
            for actor in self._actors.values():
                ray.kill(actor)
            self._actors.clear()
            self._starting.clear()

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
