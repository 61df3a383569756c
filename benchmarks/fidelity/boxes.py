"""Boxes on one machine: hosts in network namespaces with limited and long links, real or played.

The head is this process, on one core of its own. A *real* box is a worker on the other core. A *played* one
is a worker that waits after computing until its bytes would have come from a memory of a stated rate; several
of them share the other core, which must be idle most of the time for that.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
import zmq

from benchmarks.fidelity.run import Model
from benchmarks.namespaces import Host
from benchmarks.relay import relay
from orchestrator.launch.spawn import spawn, wait_ready
from orchestrator.probe.boxes import ProbedBox
from orchestrator.probe.child import Child, running
from orchestrator.probe.cluster import measure_node, measure_nodes, measure_software
from placement.given.cluster_spec import ClusterSpec, DeviceSpec, MachineSpec, NodeSpec
from placement.given.probe import link_spec, ram_device
from placement.given.probe_figures import HeadSoftware, Link, Node
from placement.plan import LOCAL_WORKER, Plan
from placement.weight_format import ExpertFormat
from transport.client import WorkerClient
from transport.expert_rows import ExpertRows
from transport.keys import HeadKeys, KeyPair
from transport.messages import WireLimits
from workers.fixed_point import PartialSum
from workers.holdings import Holdings
from workers.paced import PacedExperts
from workers.pool import TieredExperts
from workers.probe.trips import measure_link
from workers.spec import WorkerSpec
from workers.store import ExpertStore
from workers.tiers import ExpertTier, tiers_of

HEAD = "desk"
HEAD_CORE, BOX_CORE = 0, 1
FORMS = ("float32",)
_HELLO_S = 60.0
_NODE_S, _TOGETHER_S, _HEAD_S, _LINK_S = 4.0, 3.0, 3.0, 1.5
_ROOM_BYTES = 10**12


@dataclass(frozen=True, slots=True)
class BoxSetup:
    """A box beside the head.

    Attributes:
        share: of all experts.
        rate: of its link, such as "1gbit".
        delay_s: of its link, each way, on top.
        pace_bytes_per_s: of the memory it plays; 0 for a real box.
    """

    share: float
    rate: str = "1gbit"
    delay_s: float = 0.0
    pace_bytes_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Figures:
    """What probes of both cores and of each box's link, by its name, found.

    `together_bytes_per_s`: what both cores read when they read at once, of the one memory they have.
    """

    head: Node
    software: HeadSoftware
    box: Node
    together_bytes_per_s: float
    links: Mapping[str, Link]


def name_of(number: int) -> str:
    return f"box{number + 1}"


@contextmanager
def on_the_heads_core() -> Iterator[None]:
    """This process computes with one thread on HEAD_CORE, and what it starts there too unless it moves."""
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, {HEAD_CORE})
    torch.set_num_threads(1)
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(threads)


@contextmanager
def reached(setup: BoxSetup, host: Host, endpoint: str) -> Iterator[str]:
    """`endpoint` of a box, by its long link where it has one."""
    if not setup.delay_s:
        yield endpoint
        return
    port = int(endpoint.rpartition(":")[2])
    with relay(port, host=host.address, delay_s=setup.delay_s) as near:
        yield f"tcp://127.0.0.1:{near}"


@contextmanager
def running_boxes(
    plan: Plan, model: Model, setups: Sequence[BoxSetup], hosts: Sequence[Host]
) -> Iterator[dict[str, WorkerClient]]:
    """Workers on the hosts, one for each setup that the plan gives experts, and clients to them."""
    limits = WireLimits.for_shape(model.shape)
    keys = KeyPair.make()
    with ExitStack() as stack:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        started = []
        for number, (setup, host) in enumerate(zip(setups, hosts, strict=False)):
            host.shape(setup.rate)
            if name_of(number) not in [worker.name for worker in plan.asked_workers]:
                continue
            endpoint = f"tcp://{host.address}:*"
            spec = WorkerSpec.of_plan(
                plan,
                name_of(number),
                limits,
                model_dir=str(model.directory),
                endpoint=endpoint,
                pulse_endpoint=endpoint,
                allowed=(keys.public,),
                lifeline=True,
                linger_s=3600.0,
                pace_bytes_per_s=setup.pace_bytes_per_s,
            )
            process = spawn(spec, prefix=host.command(_pinned(BOX_CORE)))
            stack.callback(process.wait)
            stack.callback(process.kill)
            assert process.stdin is not None
            # What the prefix runs lives on: it ends with its input.
            stack.callback(process.stdin.close)
            started.append((spec, process, setup, host))
        stack.callback(context.destroy, 0)
        clients = {}
        for spec, process, setup, host in started:
            assert process.stdout is not None
            info = wait_ready(spec, process.stdout)
            assert info.public_key is not None
            endpoint = stack.enter_context(reached(setup, host, info.endpoint))
            client = WorkerClient(
                context, endpoint, limits, name=spec.name, keys=HeadKeys(keys, info.public_key)
            )
            client.hello(_HELLO_S, dtype=plan.dtype)
            clients[spec.name] = client
        yield clients


def probe_boxes(host: Host, folder: Path) -> Figures:
    """The head's core and a box's, as `potluck probe` does it: each alone, then side by side.

    `folder`: the model's.

    Without links (`probe_links`): boxes are alike, and this takes longest.
    """
    head = ProbedBox(
        HEAD,
        "127.0.0.1",
        lambda arguments: [*_pinned(HEAD_CORE), sys.executable, *arguments],
        str(folder),
    )
    box = ProbedBox(
        host.name,
        host.address,
        lambda arguments: host.command([*_pinned(BOX_CORE), sys.executable, *arguments]),
        str(folder),
    )
    node = measure_node(head, FORMS, _no_word, _NODE_S)
    together = measure_nodes((head, box), FORMS, _no_word, _TOGETHER_S)
    return Figures(
        head=node,
        software=measure_software(head, node, _no_word, _HEAD_S),
        box=measure_node(box, FORMS, _no_word, _NODE_S),
        together_bytes_per_s=sum(ram_device(n, None, None).bandwidth_bytes_per_s for n in together),
        links={},
    )


def probe_links(setups: Sequence[BoxSetup], hosts: Sequence[Host]) -> dict[str, Link]:
    """Each box's, those of one kind measured once."""
    by_kind: dict[tuple[str, float], Link] = {}
    found = {}
    for number, (setup, host) in enumerate(zip(setups, hosts, strict=False)):
        kind = (setup.rate, setup.delay_s)
        if kind not in by_kind:
            by_kind[kind] = _probe_link(setup, host)
        found[name_of(number)] = by_kind[kind]
    return found


def _probe_link(setup: BoxSetup, host: Host) -> Link:
    host.shape(setup.rate)
    keys = KeyPair.make()
    command = host.command([*_pinned(BOX_CORE), sys.executable, "-m", "workers.probe.echo"])
    with running(host.name, command) as echo:
        return _measure(echo, setup, host, keys)


def _measure(echo: Child, setup: BoxSetup, host: Host, keys: KeyPair) -> Link:
    echo.send(
        {"endpoints": [f"tcp://{host.address}:*"], "head_public": keys.public.decode(), "encrypted": [True]}
    )
    info: dict[str, Any] = echo.receive()
    with reached(setup, host, info["endpoints"][0]) as endpoint:
        return measure_link(endpoint, HeadKeys(keys, info["public_key"].encode()), _LINK_S)


def box_device(figures: Figures, setup: BoxSetup, number: int = 1) -> DeviceSpec:
    """What a probe says of a real box; a played one's memory has the rate it plays, where that is less.

    Args:
        number: of boxes on BOX_CORE. They are asked at once, so each computes at its part of the core's rate.
    """
    device = replace(ram_device(figures.box, None, None), memory_bytes=_ROOM_BYTES, reserved_bytes=0)
    if not setup.pace_bytes_per_s:
        return device
    return replace(
        device,
        bandwidth_bytes_per_s=min(device.bandwidth_bytes_per_s, setup.pace_bytes_per_s),
        ffn_flops_per_s=device.ffn_flops_per_s / number,
        kernels=tuple(
            replace(kernel, flops_per_s=tuple(rate / number for rate in kernel.flops_per_s))
            for kernel in device.kernels
        ),
    )


def cluster_of(figures: Figures, setups: Sequence[BoxSetup]) -> ClusterSpec:
    """The cluster file that the probes fill.

    A real box says that it and the head are one machine; a played one waits rather than reads.
    """
    own = ram_device(figures.head, figures.software, figures.software.attention)
    own = replace(own, memory_bytes=_ROOM_BYTES, reserved_bytes=0)
    nodes = [NodeSpec(HEAD, None, (own,), None)]
    for number, setup in enumerate(setups):
        link = figures.links[name_of(number)]
        # A played box wakes within the time that it waits anyway.
        box = None if setup.pace_bytes_per_s else figures.box
        nodes.append(
            NodeSpec(
                name_of(number),
                None,
                (box_device(figures, setup, len(setups)),),
                link_spec(link, figures.software, figures.head, box),
            )
        )
    real = [name_of(number) for number, setup in enumerate(setups) if not setup.pace_bytes_per_s]
    # Probed at other moments, one core alone may have read more than both.
    rates = (figures.together_bytes_per_s, *(node.devices[0].bandwidth_bytes_per_s for node in nodes))
    machine = MachineSpec("one", (HEAD, *real), 2.0, max(rates))
    return ClusterSpec(HEAD, tuple(nodes), (machine,) if real else ())


class _OfOneSize:
    """A store whose experts' bytes are known by layer, as `PacedExperts` asks for them."""

    def __init__(self, store: ExpertStore, expert_bytes: int) -> None:
        self._store, self._bytes = store, expert_bytes
        self.experts, self.num_experts, self.held_bytes = store.experts, store.num_experts, store.held_bytes

    def notices(self) -> tuple[str, ...]:
        return self._store.notices()

    def expert_bytes(self, layer: int) -> int:
        return self._bytes

    def forward(self, layer: int, rows: ExpertRows) -> PartialSum:
        return self._store.forward(layer, rows)


def head_experts(plan: Plan, model: Model, paces: Mapping[str, float]) -> ExpertTier | None:
    """The plan's tiers in the head's process, all in memory, those in `paces` (by tier name) at that rate."""
    if plan.local_worker is None:
        return None
    tiers: list[ExpertTier] = []
    for spec in tiers_of(plan, LOCAL_WORKER):
        if not spec.experts:
            continue
        forms = {layer: ExpertFormat.of_name(spec.forms[layer]) for layer in spec.experts}
        store = ExpertStore.load(model.checkpoint, model.config, spec.experts, formats=forms)
        tier: ExpertTier = store
        if pace := paces.get(spec.name):
            sized = _OfOneSize(store, round(plan.mean_expert_bytes))
            tier = PacedExperts(cast(Holdings, sized), pace)
        tiers.append(tier)
    return tiers[0] if len(tiers) == 1 else TieredExperts(tiers) if tiers else None


def _pinned(core: int) -> list[str]:
    return ["taskset", "-c", str(core)]


def _no_word(name: str, what: str) -> None:
    """Of progress that nobody watches."""
