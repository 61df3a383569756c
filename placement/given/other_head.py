"""The same boxes with the head on another device: what it has to do there, and how the others are reached."""

from __future__ import annotations

from dataclasses import dataclass, replace

from placement.errors import InputError
from placement.files.quote import quote
from placement.given.cluster_spec import (
    ClusterSpec,
    DeviceSpec,
    LinkSpec,
    NodeSpec,
    Overheads,
)
from placement.plan import Plan


@dataclass(frozen=True, slots=True)
class HeadPlace:
    """A device that the head may compute on; written NODE/DEVICE."""

    node: str
    device: str

    def __str__(self) -> str:
        return f"{self.node}/{self.device}"


def head_place(cluster: ClusterSpec) -> HeadPlace | None:
    """Where the cluster's head computes; None where its node has no device."""
    devices = cluster.head_node.devices
    return HeadPlace(cluster.head, devices[0].name) if devices else None


def head_places(cluster: ClusterSpec) -> dict[HeadPlace, int]:
    """Every RAM and GPU that the head could compute on, the cluster's own first.

    Returns:
        How many devices each stands for: of boxes that are alike the first one is named.
    """
    own = head_place(cluster)
    found: dict[HeadPlace, int] = {} if own is None else {own: 1}
    first: dict[object, HeadPlace] = {}
    for node in cluster.nodes:
        for device in node.devices:
            place = HeadPlace(node.name, device.name)
            if device.kind == "disk" or place == own:
                continue
            kind = (node.name == cluster.head, node.devices, node.link, device.name)
            place = first.setdefault(kind, place)
            found[place] = found.get(place, 0) + 1
    return found


def find_head(cluster: ClusterSpec, text: str) -> HeadPlace:
    """The place that NODE or NODE/DEVICE names; of a node alone its first device that is no disk.

    Raises:
        InputError: there is no such node or device, or it is a disk.
    """
    name, separator, device_name = text.partition("/")
    node = next((node for node in cluster.nodes if node.name == name), None)
    if node is None:
        names = ", ".join(node.name for node in cluster.nodes[:12])
        raise InputError(
            f"--head: expected auto, or one of the nodes ({names}) as NODE or NODE/DEVICE, found "
            f"{quote(text)}"
        )
    usable = [device.name for device in node.devices if device.kind != "disk"]
    if not usable:
        raise InputError(f"--head: node {name!r} has no RAM and no GPU that the head could compute on")
    if separator and device_name not in usable:
        places = ", ".join(f"{name}/{device}" for device in usable)
        raise InputError(f"--head: expected one of {places}, found {quote(text)}")
    return HeadPlace(name, device_name if separator else usable[0])


def with_head(cluster: ClusterSpec, place: HeadPlace) -> ClusterSpec:
    """The cluster as a head on `place` would see it.

    Links are known between the head and each node. All are taken to meet in one switch, so a round trip has
    two ends, and the shortest link's is shared out evenly between them. Two boxes a and b other than the head
    are then round_trip(a) + round_trip(b) - the shortest round trip apart: as far as from the head where all
    links are alike, and twice over Wi-Fi where both are on it. The rate is the slower link's. Where the head
    itself is on Wi-Fi this overestimates what lies between the others. Nobody measured these links, so they
    count as typed.

    The head's software is taken to cost the same seconds on the other device, where nothing is known of its
    own; a GPU leaves out the processor's part of a layer. So the new head's device counts as typed, too, even
    where its memory was probed. What the file reserves stays reserved, so the box
    that the head leaves gains no more room than the head itself needed beyond that.

    Args:
        place: one of `head_places(cluster)` or a device that a plan names.
    """
    own = head_place(cluster)
    if own == place:
        return cluster
    chosen = next(node for node in cluster.nodes if node.name == place.node)
    first = next(device for device in chosen.devices if device.name == place.device)
    old = None if own is None else cluster.head_node.devices[0]
    others = [node.link for node in cluster.nodes if node.name != cluster.head and node.link is not None]
    shortest_s = min((link.round_trip_s for link in others), default=0.0)
    nodes = []
    for node in cluster.nodes:
        devices = node.devices
        if node.name == cluster.head and devices:
            # A card of the same box asks over the host link, whose round trip counts there.
            by_card = node.name == place.node and first.kind == "vram"
            devices = (without_head(devices[0], by_card=by_card), *devices[1:])
        if node.name == place.node:
            rest = tuple(device for device in devices if device.name != place.device)
            devices = (_as_head(first, old), *rest)
        nodes.append(replace(node, devices=devices, link=_link(node, chosen, cluster.head, shortest_s)))
    # What could be bought was said of links to the head that the file names.
    return replace(cluster, head=place.node, nodes=tuple(nodes), link_upgrades=())


def as_planned(cluster: ClusterSpec, plan: Plan) -> ClusterSpec:
    """The cluster with the head where `plan` has it; as it is where the plan's head is none of its devices.

    A plan calls the tier that the head computes on "head" and every other one NODE-DEVICE.
    """
    if plan.head_tier is None:
        return cluster
    head = plan.tiers[plan.head_tier]
    node = next((node for node in cluster.nodes if node.name == head.node), None)
    if node is None:
        return cluster
    named = {tier.name for tier in plan.tiers}
    left = [device for device in node.devices if f"{node.name}-{device.name}" not in named]
    left = [device for device in left if (device.kind, device.torch_device) == (head.kind, head.device)]
    return with_head(cluster, HeadPlace(node.name, left[0].name)) if left else cluster


def _link(node: NodeSpec, head: NodeSpec, old_head: str, shortest_s: float) -> LinkSpec | None:
    """Between a node and the new head, from what both have to the old one."""
    if head.name == old_head or node.name == head.name:
        # Within a box nothing but the old head's own link was ever said.
        return node.link if head.name == old_head else None
    assert head.link is not None
    if node.name == old_head:
        return head.link
    if node.link is None:
        return None
    return LinkSpec(
        node.link.round_trip_s + head.link.round_trip_s - shortest_s,
        min(node.link.bandwidth_bytes_per_s, head.link.bandwidth_bytes_per_s),
        "typed",
    )


def _as_head(device: DeviceSpec, old: DeviceSpec | None) -> DeviceSpec:
    """A device with the software of the head that computed on `old`: nobody measured that here."""
    device = replace(device, figures_from="typed")
    own, known = device.overheads, Overheads() if old is None else old.overheads
    has_own = bool(own.layer_s or own.moe_layer_s or own.row_s)
    overheads = replace(
        own if has_own else known,
        request_s=own.request_s,
        expert_s=own.expert_s,
        message_s=known.message_s,
        message_row_s=known.message_row_s,
        pass_s=known.pass_s,
        draft_s=known.draft_s,
    )
    if device.kind != "vram":
        return replace(device, overheads=overheads)
    of_card = old if old is not None and old.kind == "vram" else None
    if of_card is None and not has_own:
        overheads = replace(overheads, layer_s=0.0, batch_s=0.0, row_s=0.0)
    # A card that holds experts is asked over the host link; the head on it asks the RAM over the same. Where
    # neither is said, it takes as long as from the card that the head leaves.
    round_trip_s = device.host_link_round_trip_s or own.request_s
    if not round_trip_s and of_card is not None:
        round_trip_s = of_card.host_link_round_trip_s
    return replace(device, overheads=replace(overheads, request_s=0.0), host_link_round_trip_s=round_trip_s)


def without_head(device: DeviceSpec, *, by_card: bool) -> DeviceSpec:
    """The device that the head leaves.

    Args:
        by_card: whether a card of the same box asks it from now on.
    """
    overheads = replace(device.overheads, message_s=0.0, message_row_s=0.0, pass_s=0.0, draft_s=0.0)
    if device.kind == "vram" and not by_card:
        request_s = overheads.request_s or device.host_link_round_trip_s
        overheads = replace(overheads, request_s=request_s)
    return replace(device, overheads=overheads, host_link_round_trip_s=0.0)
