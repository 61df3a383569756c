"""Which single change to a cluster makes a model fastest, as far as predictions can tell."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import count

from placement.answers.prediction_range import NO_DIFFERENCE, LikelySpeed, range_for, ranks
from placement.answers.study.measure import measure, measure_table
from placement.answers.study.routing_source import Routing
from placement.errors import PlanDoesNotFit
from placement.given.cluster_spec import ClusterSpec, DeviceSpec, LinkSpec, LinkUpgrade, NodeSpec
from placement.given.other_head import without_head
from placement.given.problem import PlanningProblem, problem_for
from placement.given.torch_devices import next_torch_device
from placement.hardware.catalogue import packaged_catalogue
from placement.hardware.expand import expanded_link
from placement.hardware.spread import Spreads
from placement.holders import HolderTable
from placement.model_shape import ModelShape
from placement.policies.registry import check_policy
from placement.units import size
from placement.wire_form import WireForm
from placement.workload import Workload

# What people buy: twice the RAM, one more card, the next kinds of Ethernet where they are clearly faster, a
# cable where the round trip is far longer than a cable's.
MEMORY_FACTOR = 2
ETHERNET = ("ethernet-2.5g", "ethernet-10g")
CLEARLY_FASTER = 1.5
LONG_ROUND_TRIPS = 2.0

_Placed = tuple[PlanningProblem, HolderTable]


@dataclass(frozen=True, slots=True)
class Change:
    """One thing to buy. `price` is None where the cluster file gives none."""

    what: str
    cluster: ClusterSpec
    price: float | None


class Verdict(StrEnum):
    """What can be promised of a change beside the cluster as it is, the best first."""

    FASTER = "faster"
    SAME = NO_DIFFERENCE
    SLOWER = "slower"
    NO_ROOM = "does not fit"


_ORDER: tuple[Verdict | None, ...] = tuple(Verdict)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A change and the speed after it; None where the experts do not fit, and `note` says why.

    `verdict`: None for the cluster as it is. `place`: among the changes that make it faster, from 1 on; those
    that differ by no more than the range share one. None for others.
    """

    what: str
    price: float | None
    speed: LikelySpeed | None = None
    remote_layers_per_token: float | None = None
    note: str = ""
    verdict: Verdict | None = None
    place: int | None = None

    @property
    def tokens_per_s(self) -> float | None:
        return None if self.speed is None else self.speed.tokens_per_s


@dataclass(frozen=True, slots=True)
class WhatIf:
    """The cluster as it is, and every change in the order of `in_order`."""

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
    tried: Iterable[Change],
    expert_bytes: int,
    routing: Routing,
    workload: Workload,
    *,
    policy: str,
    spreads: Spreads,
    expert_form: str | None = None,
    layer_wires: tuple[WireForm, ...] = (),
) -> WhatIf:
    """Plan for the cluster and for each change to it, all judged on the same held-out text.

    A change that adds can be left unused, so where the plan for the cluster as it is does better on a changed
    one than the plan made for it, that plan stays.

    Args:
        tried: such as `changes(cluster, cable)`.
        spreads: how far measured speeds lie from predicted ones.
        expert_form, layer_wires: as a `PlanningProblem` has them.

    Raises InputError: an unknown policy.
    """
    check_policy(policy)
    passes = routing.as_passes(workload)

    def outcome(change: Change, present: _Placed | None) -> tuple[Outcome, _Placed | None]:
        try:
            problem = problem_for(
                shape,
                change.cluster,
                expert_bytes,
                passes.planned,
                workload,
                expert_form=expert_form,
                layer_wires=layer_wires,
            )
            found = measure(problem, policy, passes)
        except PlanDoesNotFit as error:
            return Outcome(change.what, change.price, note=str(error)), None
        if present is not None:
            kept = measure_table(problem, _carried(present, problem), passes)
            found = min(found, kept, key=lambda measured: measured.step_s)
        speed = LikelySpeed(found.tokens_per_s, range_for(problem, found.table, spreads))
        placed = None if found.table is None else (problem, found.table)
        return Outcome(change.what, change.price, speed, found.remote_layers_per_token), placed

    now, present = outcome(Change("as it is", cluster, None), None)
    return in_order(now, [outcome(change, present)[0] for change in tried])


def in_order(now: Outcome, tried: Sequence[Outcome]) -> WhatIf:
    """Changes that make it faster, the fastest first; then the others by verdict, in the order given."""
    found = [dataclasses.replace(change, verdict=_verdict(change.speed, now.speed)) for change in tried]
    found.sort(key=_order)
    faster = ranks([each.speed for each in found if each.speed and each.verdict is Verdict.FASTER])
    ranked = [dataclasses.replace(each, place=place) for each, place in zip(found, faster, strict=False)]
    return WhatIf(now, (*ranked, *found[len(ranked) :]))


def _verdict(speed: LikelySpeed | None, now: LikelySpeed | None) -> Verdict:
    """What makes the experts fit is faster, however slow."""
    if speed is None:
        return Verdict.NO_ROOM
    if now is None or speed.beats(now):
        return Verdict.FASTER
    return Verdict.SLOWER if now.beats(speed) else Verdict.SAME


def _order(outcome: Outcome) -> tuple[int, float]:
    """Speeds that make no difference to promise are in no order either."""
    is_faster = outcome.verdict is Verdict.FASTER
    return _ORDER.index(outcome.verdict), -(outcome.tokens_per_s or 0.0) if is_faster else 0.0


def changes(cluster: ClusterSpec, cable: LinkSpec) -> Iterator[Change]:
    """Twice the RAM, one more card, better links, one more box of each kind.

    Nothing makes a GPU's own memory larger, nor that of a box whose GPU and CPU share it: one buys another.
    Links: what the cluster's `link_upgrades` list; without any, Ethernet that carries at least CLEARLY_FASTER
    times as much, at the same round trip, and a cable in place of Wi-Fi, for each box and for all boxes
    together. Of boxes and cards that are alike the first one is changed.

    Args:
        cable: what a new cable gives; also the link of a box like the head's own, which the cluster may
            not describe.
    """
    kinds = _first_of_each_kind(cluster)
    for node in kinds:
        for device in node.devices:
            if device.kind == "ram":
                yield _more_ram(cluster, node, device)
        for card in _kinds_of_card(node):
            yield _more_cards(cluster, node, card)
    for upgrade in cluster.link_upgrades or _usual_upgrades(cluster, kinds, cable):
        yield _better_links(cluster, upgrade)
    for node in kinds:
        if node.devices:
            yield _one_more(cluster, node, cable)


def _first_of_each_kind(cluster: ClusterSpec) -> list[NodeSpec]:
    found: dict[object, NodeSpec] = {}
    for node in cluster.nodes:
        found.setdefault((node.name == cluster.head, node.devices, node.link), node)
    return list(found.values())


def _kinds_of_card(node: NodeSpec) -> list[DeviceSpec]:
    """GPUs that a box may have several of, each kind once.

    A GPU that shares its box's memory is none: it has no host link, and no RAM stands beside it.
    """
    has_ram = any(device.kind == "ram" for device in node.devices)
    found: dict[object, DeviceSpec] = {}
    for device in node.devices:
        if device.kind == "vram" and (has_ram or device.host_link_bytes_per_s is not None):
            kind = (device.memory_bytes, device.bandwidth_bytes_per_s, device.ffn_flops_per_s)
            found.setdefault(kind, device)
    return list(found.values())


def _more_cards(cluster: ClusterSpec, node: NodeSpec, card: DeviceSpec) -> Change:
    is_heads = node.name == cluster.head and card is node.devices[0]
    twin = without_head(card, by_card=True) if is_heads else card
    backend = card.torch_device.partition(":")[0]
    twin = dataclasses.replace(
        twin,
        name=_next_name(card.name, [device.name for device in node.devices]),
        torch_device=next_torch_device(backend, [device.torch_device for device in node.devices]),
    )
    price = None if card.price_per_gbyte is None else card.memory_bytes / 1e9 * card.price_per_gbyte
    what = f"one more card like {node.name}-{card.name}: {_gb(card.memory_bytes)}"
    return Change(what, _with(cluster, dataclasses.replace(node, devices=(*node.devices, twin))), price)


def _next_name(name: str, taken: Collection[str]) -> str:
    """NAME-2, or the next number that is free."""
    return next(n for n in (f"{name}-{i}" for i in count(2)) if n not in taken)


def _more_ram(cluster: ClusterSpec, node: NodeSpec, device: DeviceSpec) -> Change:
    more = dataclasses.replace(device, memory_bytes=MEMORY_FACTOR * device.memory_bytes)
    devices = tuple(more if other is device else other for other in node.devices)
    added = (MEMORY_FACTOR - 1) * device.memory_bytes / 1e9
    price = None if device.price_per_gbyte is None else added * device.price_per_gbyte
    what = f"RAM of {node.name}-{device.name}: {_gb(device.memory_bytes)} to {_gb(more.memory_bytes)}"
    return Change(what, _with(cluster, dataclasses.replace(node, devices=devices)), price)


def _usual_upgrades(cluster: ClusterSpec, kinds: list[NodeSpec], cable: LinkSpec) -> Iterator[LinkUpgrade]:
    """Faster Ethernet keeps the round trip: what another card does to that is for a measurement to say."""
    links = {node.name: node.link for node in cluster.nodes if node.link and node.name != cluster.head}
    first = {node.name for node in kinds}
    for kind in ETHERNET:
        rate = reached_bytes_per_s(kind)
        slower = [n for n, link in links.items() if CLEARLY_FASTER * link.bandwidth_bytes_per_s <= rate]
        for nodes in _singly_and_together(slower, first):
            yield LinkUpgrade("Ethernet", nodes, None, rate)
    longer = [n for n, link in links.items() if link.round_trip_s >= LONG_ROUND_TRIPS * cable.round_trip_s]
    for nodes in _singly_and_together(longer, first):
        yield LinkUpgrade("cable", nodes, cable.round_trip_s, cable.bandwidth_bytes_per_s)


def reached_bytes_per_s(link: str) -> float:
    """What a kind of link carries, not what is printed on it.

    Args:
        link: its name in the catalogue, such as ethernet-2.5g.
    """
    catalogue = packaged_catalogue()
    gbits: float = expanded_link(catalogue, catalogue.entry(link), {})["bandwidth_gbits_per_s"]
    return gbits * 1e9 / 8


def _singly_and_together(names: list[str], first: set[str]) -> Iterator[tuple[str, ...]]:
    for name in names:
        if name in first:
            yield (name,)
    if len(names) > 1:
        yield tuple(names)


def _better_links(cluster: ClusterSpec, upgrade: LinkUpgrade) -> Change:
    nodes = []
    for node in cluster.nodes:
        if node.name in upgrade.nodes and node.link is not None:
            node = dataclasses.replace(node, link=upgrade.of(node.link))
        nodes.append(node)
    return Change(
        f"{upgrade.name}, {_boxes(upgrade.nodes)}: {_values(cluster, upgrade)}",
        dataclasses.replace(cluster, nodes=tuple(nodes)),
        upgrade.price,
    )


def _boxes(names: tuple[str, ...]) -> str:
    return f"{len(names)} boxes" if len(names) > 3 else " and ".join(names)


def _values(cluster: ClusterSpec, upgrade: LinkUpgrade) -> str:
    """What the links become, and of a single one what it was."""
    before = None
    if len(upgrade.nodes) == 1:
        before = next(node.link for node in cluster.nodes if node.name == upgrade.nodes[0])
    if before is not None and upgrade.of(before) == before:
        return "no better than what is there"
    parts = []
    if upgrade.round_trip_s is not None:
        was = f"{1000 * before.round_trip_s:g} " if before else ""
        parts.append(f"{was}to {1000 * upgrade.round_trip_s:g} ms")
    if upgrade.bandwidth_bytes_per_s is not None:
        was = f"{_gbits(before.bandwidth_bytes_per_s)} " if before else ""
        parts.append(f"{was}to {_gbits(upgrade.bandwidth_bytes_per_s)} Gbit/s")
    return ", ".join(parts)


def _one_more(cluster: ClusterSpec, node: NodeSpec, cable: LinkSpec) -> Change:
    name = _next_name(node.name, [other.name for other in cluster.nodes])
    twin = dataclasses.replace(node, name=name, address=None)
    if node.name == cluster.head:
        # A link of the head's own connects its processes, not boxes.
        devices = (without_head(node.devices[0], by_card=False), *node.devices[1:])
        twin = dataclasses.replace(twin, devices=devices, link=cable)
    after = dataclasses.replace(cluster, nodes=(*cluster.nodes, twin))
    return Change(f"one more box like {node.name}", after, node.price)


def _carried(present: _Placed, problem: PlanningProblem) -> HolderTable:
    """The placement on a cluster that has the same devices, in the same order, and others between them."""
    before, table = present
    places = {device.tier.name: index for index, device in enumerate(problem.devices)}
    return table.renumbered([places[device.tier.name] for device in before.devices])


def _with(cluster: ClusterSpec, changed: NodeSpec) -> ClusterSpec:
    """The cluster with another node of the same name."""
    nodes = tuple(changed if node.name == changed.name else node for node in cluster.nodes)
    return dataclasses.replace(cluster, nodes=nodes)


def _gb(num_bytes: int) -> str:
    """As memory is sold: 16 GB, not 16.0 GB."""
    return size(num_bytes).replace(".0 ", " ")


def _gbits(bytes_per_s: float) -> str:
    return f"{bytes_per_s * 8 / 1e9:g}"
