"""Brings a cluster's boxes up, as many as are there: keys, Ray, worker; again for those that miss."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from orchestrator.cluster.examine import examine
from orchestrator.cluster.keys_folder import ClusterKeys
from orchestrator.cluster.launcher_file import Box, Launcher
from orchestrator.cluster.meanwhile import told_meanwhile
from orchestrator.cluster.ray_env import ray_environment
from orchestrator.cluster.ray_start import check_port, last_word, ray_address, start_script
from orchestrator.cluster.run_state import RunningWorker, RunState
from orchestrator.cluster.ssh import Ssh, push_files
from orchestrator.each_box import each_box
from orchestrator.launch.kept_worker import OVER
from orchestrator.launch.ray_client import RayClient
from orchestrator.launch.workers import start_timeout_s
from orchestrator.nodes import Node
from placement.errors import BoxUnreachable, WorkerStartError
from placement.model_shape import ModelShape
from placement.plan import Plan, PlannedWorker
from transport.messages import WireLimits
from workers.spec import WorkerInfo, WorkerSpec

RAY_START_TIMEOUT_S = 240.0
JOIN_TIMEOUT_S = 30.0
TICK_S = 0.25

T = TypeVar("T")

Tell = Callable[[str], None]
"""Takes a line about what happens."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to run.

    `model_path`: on the head's box, and on boxes whose node names no other. `plan_path`: where the plan lies.
    """

    launcher: Launcher
    plan: Plan
    plan_path: Path
    shape: ModelShape
    model_path: Path

    @property
    def workers(self) -> tuple[PlannedWorker, ...]:
        """Those that hold experts outside of the head's own process."""
        return tuple(self.plan.asked_workers)

    def boxes(self, names: Sequence[str]) -> tuple[Box, ...]:
        return tuple(self.launcher.box(name) for name in names)


@dataclass(slots=True)
class Pool:
    """The boxes of one cluster, as far as they are up, for one thread.

    `running` has each worker where it served last, also while its node is `missing`: it may come back there.
    """

    wanted: Wanted
    keys: ClusterKeys
    ssh: Ssh
    tell: Tell
    log: Path
    running: dict[str, RunningWorker] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    started: float = field(default_factory=time.time)
    seconds: dict[str, float] = field(default_factory=dict)
    _client: RayClient | None = None

    def state(self) -> RunState:
        """What is up now."""
        wanted, launcher = self.wanted, self.wanted.launcher
        order = [worker.name for worker in wanted.workers if worker.name in self.running]
        return RunState(
            cluster=launcher.name,
            model_path=str(wanted.model_path),
            identity=wanted.plan.digests.get("identity", ""),
            plan=str(wanted.plan_path),
            head=launcher.spec.head,
            ray_address=ray_address(launcher),
            started=self.started,
            workers=tuple(self.running[name] for name in order),
            missing=dict(self.missing),
        )

    def bring_up(self, nodes: Sequence[str]) -> None:
        """Bring up what the plan needs of these nodes; `running` and `missing` say how far it came.

        Raises:
            PotluckError: Ray does not run on this box, so that nothing can be started anywhere.
        """
        launcher = self.wanted.launcher
        sound = self._timed("checks", lambda: self.check(nodes))
        reached = self._timed("keys", lambda: self.push_keys(sound))
        self._timed("Ray on the head", self.ensure_head_ray)
        head = launcher.spec.head
        others = [name for name in reached if name != head]
        joined = self._timed("Ray on the others", lambda: self.ensure_rays(others))
        own = {head: self._node_at(launcher.head.address)} if head in reached else {}
        self._timed("workers", lambda: self._start_workers({**joined, **own}))

    def look_again(self, nodes: Sequence[str]) -> None:
        """Take in workers that were started again on their boxes, as far as they serve; nothing is started.

        Raises:
            PotluckError: as `bring_up`.
        """
        if not nodes:
            return
        self.ensure_head_ray()
        known = self._nodes()
        for worker in self.wanted.workers:
            if worker.node not in nodes:
                continue
            node = known.get(self.wanted.launcher.box(worker.node).address)
            # Without Ray there, it serves all the same.
            if node is None:
                continue
            try:
                state = self._ray().state(node.id, self.wanted.launcher.remote_folder)
            except WorkerStartError as error:
                self.tell(f"{worker.node}: {error}")
                continue
            if state["state"] == "ready":
                self._take_in(worker.name, WorkerInfo.from_dict(state["info"]), state["since"])

    def check(self, nodes: Sequence[str]) -> list[str]:
        """Look at boxes; the names of those that can be used, and a line for what may surprise.

        Raises:
            BoxUnreachable: this box itself cannot be used.
        """
        wanted = self.wanted
        held = wanted.plan.bytes_per_tier()
        needed = {worker.node: int(held[list(worker.tiers)].sum()) for worker in wanted.workers}
        running = {worker.node for worker in self.running.values() if worker.node not in self.missing}
        found = examine(
            wanted.launcher,
            self.ssh,
            model=str(wanted.model_path),
            # What runs already has its memory.
            needed_bytes={name: num_bytes for name, num_bytes in needed.items() if name not in running},
            boxes=wanted.boxes(nodes),
        )
        for examined in found:
            for finding in examined.findings:
                if finding.severity != "error":
                    self.tell(finding.line)
            errors = [finding.line for finding in examined.findings if finding.severity == "error"]
            if errors:
                self.missing[examined.box.name] = errors[0]
                if examined.box == wanted.launcher.head:
                    raise BoxUnreachable(errors[0])
        return [examined.box.name for examined in found if examined.is_usable]

    def push_keys(self, nodes: Sequence[str]) -> list[str]:
        """Give boxes their secrets; the names of those that have them."""
        launcher = self.wanted.launcher

        def push(box: Box) -> None:
            push_files(self.ssh, box, launcher.name, self.keys.files_of(box.name, {launcher.spec.head}))

        return self._each(nodes, push)

    def ensure_head_ray(self) -> None:
        """Ray on this box, and a connection to it.

        Raises:
            WorkerStartError: it neither runs nor starts.
            BoxUnreachable: its start did not end, or its port is another program's.
        """
        if self._client is not None:
            try:
                self._client.nodes()
                return
            except WorkerStartError:
                self.close()
        # What is no Ray would be waited for until Ray gives up, and named by nobody.
        check_port(self.wanted.launcher)
        try:
            self._client = self._connected()
            return
        except WorkerStartError:
            self.tell("Ray does not run here: starting it")
        self._start_ray(self.wanted.launcher.head)
        self._client = self._connected()

    def ensure_rays(self, nodes: Sequence[str]) -> dict[str, Node]:
        """Ray on other boxes, where it does not run: node -> Ray's node, of those that joined."""
        known = self._nodes()
        absent = [name for name in nodes if self.wanted.launcher.box(name).address not in known]
        started = self._each(absent, self._start_ray)
        until_s = time.monotonic() + JOIN_TIMEOUT_S
        while True:
            known = self._nodes()
            waiting = [n for n in started if self.wanted.launcher.box(n).address not in known]
            if not waiting or time.monotonic() > until_s:
                break
            time.sleep(TICK_S)
        for name in waiting:
            self.missing[name] = (
                f"{self.wanted.launcher.box(name).at}: its Ray started and did not join within "
                f"{JOIN_TIMEOUT_S:g} s: is {ray_address(self.wanted.launcher)} open for it?"
            )
        addresses = {name: self.wanted.launcher.box(name).address for name in nodes}
        return {name: known[address] for name, address in addresses.items() if address in known}

    def close(self) -> None:
        """Let go of Ray; all goes on running."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def _start_workers(self, nodes: Mapping[str, Node]) -> None:
        """The plan's workers on these nodes, side by side, each from its own disk."""
        starting = {worker.name: nodes[worker.node] for worker in self.wanted.workers if worker.node in nodes}
        for name, node in list(starting.items()):
            box = self.wanted.launcher.box(self._node_of(name))
            try:
                self._ray().keep(
                    node.id,
                    self.wanted.launcher.remote_folder,
                    self._order(name, box, node),
                    node=box.name,
                    outlives=True,
                )
            except WorkerStartError as error:
                self._miss(name, str(error))
                del starting[name]
        until_s = time.monotonic() + start_timeout_s(self.wanted.plan, starting)
        while starting:
            for name, node in list(starting.items()):
                try:
                    state = self._ray().state(node.id, self.wanted.launcher.remote_folder)
                except WorkerStartError as error:
                    self._miss(name, str(error))
                    del starting[name]
                    continue
                if state["state"] == "ready":
                    self._take_in(name, WorkerInfo.from_dict(state["info"]), state["since"])
                    del starting[name]
                elif state["state"] in OVER:
                    self._miss(name, state["message"] or "its worker ended")
                    del starting[name]
            if starting and time.monotonic() > until_s:
                for name in starting:
                    self._miss(name, "its worker takes too long to load: is its disk slow?")
                return
            if starting:
                time.sleep(TICK_S)

    def _take_in(self, name: str, info: WorkerInfo, since: float) -> None:
        node = self._node_of(name)
        self.missing.pop(node, None)
        self.running[name] = RunningWorker(
            name=name,
            node=node,
            address=self.wanted.launcher.box(node).address,
            endpoint=info.endpoint,
            pulse_endpoint=info.pulse_endpoint,
            public_key=(info.public_key or b"").decode(),
            pid=info.pid,
            instance=info.instance,
            num_experts=info.num_experts,
            held_bytes=info.held_bytes,
            since=since,
        )
        self.tell(f"{node}: serves {info.num_experts:,} experts")

    def _miss(self, worker: str, why: str) -> None:
        node = self._node_of(worker)
        self.running.pop(worker, None)
        prefix = self.wanted.launcher.box(node).at
        self.missing[node] = why if why.startswith(prefix) else f"{prefix}: {why}"

    def _order(self, worker: str, box: Box, node: Node) -> str:
        """What a worker is to be, without secrets."""
        tiers = len(self.wanted.plan.worker(worker).tiers)
        return WorkerSpec.of_plan(
            self.wanted.plan,
            worker,
            WireLimits.for_shape(self.wanted.shape),
            model_dir=box.model or str(self.wanted.model_path),
            endpoint=f"tcp://{box.address}:*",
            pulse_endpoint=f"tcp://{box.address}:*",
            num_threads=max(1, node.num_cpus // tiers),
        ).to_json()

    def _node_of(self, worker: str) -> str:
        return self.wanted.plan.worker(worker).node

    def _connected(self) -> RayClient:
        launcher = self.wanted.launcher
        environment = ray_environment(Path(launcher.remote_folder).expanduser())
        return RayClient(ray_address(launcher), environment, self.log).__enter__()

    def _ray(self) -> RayClient:
        if self._client is None:
            raise WorkerStartError("not connected to Ray")
        return self._client

    def _nodes(self) -> dict[str, Node]:
        """By address; of two, the one that joined last."""
        return {node.address: node for node in self._ray().nodes()}

    def _node_at(self, address: str) -> Node:
        node = self._nodes().get(address)
        if node is None:
            raise WorkerStartError(
                f"Ray at {ray_address(self.wanted.launcher)}: no node of it has this box's address "
                f"{address}: give `ray start` --node-ip-address={address}"
            )
        return node

    def _start_ray(self, box: Box) -> None:
        answer = self.ssh.run(box, start_script(self.wanted.launcher, box), timeout_s=RAY_START_TIMEOUT_S)
        if answer.code:
            said = answer.stderr + answer.stdout.decode(errors="replace")
            raise BoxUnreachable(
                f"{box.at}: Ray does not start: {last_word(said)}; if the box was only busy, run "
                "`potluck up` again"
            )

    def _each(self, nodes: Sequence[str], function: Callable[[Box], None]) -> list[str]:
        """Do it on all of them; those where it went well. The others are missing."""
        done, failed = each_box(self.wanted.boxes(nodes), function)
        self.missing |= {name: str(error) for name, error in failed.items()}
        return list(done)

    def _timed(self, stage: str, function: Callable[[], T]) -> T:
        began_s = time.monotonic()
        try:
            with told_meanwhile(stage, self.tell):
                return function()
        finally:
            self.seconds[stage] = time.monotonic() - began_s
