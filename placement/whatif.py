"""Which single change to a cluster makes a model fastest."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from placement.cluster_spec import ClusterSpec, DeviceSpec, LinkSpec, NodeSpec
from placement.errors import PlanDoesNotFit
from placement.model_shape import ModelShape
from placement.problem import problem_for
from placement.study.measure import measure
from placement.study.routing_source import Routing
from placement.workload import Workload

# What people buy: twice the memory, and the next kinds of Ethernet.
MEMORY_FACTOR = 2
ETHERNET_GBITS_PER_S = (2.5, 10.0)


@dataclass(frozen=True, slots=True)
class Change:
    """One thing to buy. `price` is None where the cluster file gives none."""

    what: str
    cluster: ClusterSpec
    price: float | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """A change and the speed after it; `tokens_per_s` None where the experts do not fit."""

    what: str
    price: float | None
    tokens_per_s: float | None
    remote_layers_per_token: float | None


@dataclass(frozen=True, slots=True)
class WhatIf:
    """The cluster as it is, and every change, the fastest first."""

    now: Outcome
    outcomes: tuple[Outcome, ...]

    def gain(self, outcome: Outcome) -> float | None:
        """Tokens/s more than now, as a share; None where either does not fit."""
        if outcome.tokens_per_s is None or self.now.tokens_per_s is None:
            return None
        return outcome.tokens_per_s / self.now.tokens_per_s - 1


def rank_changes(
    shape: ModelShape,
    cluster: ClusterSpec,
    expert_bytes: int,
    routing: Routing,
    workload: Workload,
    *,
    policy: str,
    new_link: LinkSpec,
) -> WhatIf:
    """Plan for the cluster and for each change to it, all judged on the same held-out text.

    Args:
        new_link: of a box like the head's own, which no link in the file describes.
    """
    passes = routing.as_passes(workload)

    def outcome(change: Change) -> Outcome:
        try:
            problem = problem_for(shape, change.cluster, expert_bytes, passes.planned, workload)
            found = measure(problem, policy, passes)
        except PlanDoesNotFit:
            return Outcome(change.what, change.price, None, None)
        return Outcome(change.what, change.price, found.tokens_per_s, found.remote_layers_per_token)

    outcomes = [outcome(change) for change in changes(cluster, new_link)]
    outcomes.sort(key=lambda found: -(found.tokens_per_s or 0))
    return WhatIf(outcome(Change("as it is", cluster, 0.0)), tuple(outcomes))


def changes(cluster: ClusterSpec, new_link: LinkSpec) -> Iterator[Change]:
    """Twice the memory of each RAM and each GPU, faster Ethernet to each box, one more box of each kind."""
    for index, node in enumerate(cluster.nodes):
        for place, device in enumerate(node.devices):
            if device.kind != "disk":
                yield _more_memory(cluster, index, place, device)
        if node.link is not None:
            yield from _faster_links(cluster, index, node.link)
    seen: list[object] = []
    for node in cluster.nodes:
        kind = _kind(node)
        if kind not in seen and node.devices:
            seen.append(kind)
            yield _one_more(cluster, node, new_link)


def _more_memory(cluster: ClusterSpec, index: int, place: int, device: DeviceSpec) -> Change:
    node = cluster.nodes[index]
    more = dataclasses.replace(device, memory_bytes=MEMORY_FACTOR * device.memory_bytes)
    devices = (*node.devices[:place], more, *node.devices[place + 1 :])
    added = (MEMORY_FACTOR - 1) * device.memory_bytes / 1e9
    price = None if device.price_per_gbyte is None else added * device.price_per_gbyte
    noun = "GPU memory" if device.kind == "vram" else "RAM"
    what = f"{noun} of {node.name}-{device.name}: {_gb(device.memory_bytes)} to {_gb(more.memory_bytes)}"
    return Change(what, _with_node(cluster, index, dataclasses.replace(node, devices=devices)), price)


def _faster_links(cluster: ClusterSpec, index: int, link: LinkSpec) -> Iterator[Change]:
    """Bandwidth only: what a faster card does to the round trip is for a measurement to say."""
    node, prices = cluster.nodes[index], dict(link.upgrade_prices)
    now = link.bandwidth_bytes_per_s * 8 / 1e9
    for gbits in sorted({*ETHERNET_GBITS_PER_S, *prices}):
        if gbits > now:
            faster = dataclasses.replace(link, bandwidth_bytes_per_s=gbits * 1e9 / 8)
            after = _with_node(cluster, index, dataclasses.replace(node, link=faster))
            yield Change(f"link to {node.name}: {now:g} to {gbits:g} Gbit/s", after, prices.get(gbits))


def _one_more(cluster: ClusterSpec, node: NodeSpec, new_link: LinkSpec) -> Change:
    names = {other.name for other in cluster.nodes}
    name = next(n for n in (f"{node.name}-{i}" for i in range(2, len(names) + 3)) if n not in names)
    twin = dataclasses.replace(node, name=name, address=None, link=node.link or new_link)
    if node.name == cluster.head:
        # What the head keeps for its own weights and cache is free on a box that only holds experts.
        free = tuple(dataclasses.replace(device, reserved_bytes=0) for device in node.devices)
        twin = dataclasses.replace(twin, devices=free)
    after = dataclasses.replace(cluster, nodes=(*cluster.nodes, twin))
    return Change(f"one more box like {node.name}", after, node.price)


def _kind(node: NodeSpec) -> object:
    return node.devices, node.link


def _with_node(cluster: ClusterSpec, index: int, node: NodeSpec) -> ClusterSpec:
    nodes: Sequence[NodeSpec] = (*cluster.nodes[:index], node, *cluster.nodes[index + 1 :])
    return dataclasses.replace(cluster, nodes=tuple(nodes))


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.0f} GB"
