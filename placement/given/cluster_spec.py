"""The boxes: nodes with devices, and links between each node and the head. Units are bytes and seconds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from placement.given.kernel_rates import NO_ROW_COSTS, KernelRates, RowCosts

DeviceKind = Literal["vram", "ram", "disk"]
NetworkKind = Literal["cable", "wifi"]
FiguresFrom = Literal["typed", "catalogue", "probed"]
"""Who says what a device or link reaches: the user, the catalogue by data sheets, or a measurement."""
_KNOWN: tuple[FiguresFrom, ...] = get_args(FiguresFrom)
USUAL_VENV = "~/potluck/.venv"
"""Where Potluck is installed on a box, unless its file says otherwise."""


@dataclass(frozen=True, slots=True)
class Overheads:
    """Measured seconds of software, which bytes and FLOPs leave out; 0 where nobody measured.

    Attributes:
        request_s: of any device, for each request to it: reading it, one kernel call, writing the answer.
        expert_s: of any device, for each distinct expert of a request that arithmetic bounds: the part of
            reading its weights that multiplying does not hide.
        message_s: of the head, for each request it sends and the answer it takes, one after another.
        message_row_s: of the head, for each row of such a request: gathered, sent, its answer added.
        layer_s: of the head, in each decoder layer of a pass.
        moe_layer_s: of the head, in each MoE layer on top: dispatch.
        batch_s: of the head, in each decoder layer of a pass of more than one row, on top of `layer_s`;
            below 0 where a single row's kernels use fewer threads.
        row_s: of the head, for each row in each decoder layer.
        pass_s: of the head, in each pass: embedding, logits, sampling.
        draft_s: of the head, for each MTP layer it runs.
    """

    request_s: float = 0.0
    expert_s: float = 0.0
    message_s: float = 0.0
    message_row_s: float = 0.0
    layer_s: float = 0.0
    moe_layer_s: float = 0.0
    batch_s: float = 0.0
    row_s: float = 0.0
    pass_s: float = 0.0
    draft_s: float = 0.0


NO_OVERHEADS = Overheads()


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """Nodes that are processes, containers or VMs of one machine: their RAM devices share what it has.

    `bandwidth_bytes_per_s`: of its memory, when as many cores read as can.
    """

    name: str
    nodes: tuple[str, ...]
    cores: float
    bandwidth_bytes_per_s: float


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """Memory that can hold experts, and what computes on it.

    Attributes:
        torch_device: such as "cuda:0" or "cpu".
        price_per_gbyte: of more memory of this kind here, None where the file gives none.
        cores: of its machine that it uses while it computes.
        host_link_bytes_per_s: between the box's RAM and this VRAM, None where experts are not streamed into
            it.
        host_link_round_trip_s: of the head's own VRAM, from a MoE layer's rows there until the sums from RAM
            are back, without their bytes and what is computed.
        attention_flops_per_s: what attention reaches, None for `ffn_flops_per_s`.
        kernels: what it reaches with weights of some forms, in place of `ffn_flops_per_s` and
            `overheads.expert_s`.
        attention_bandwidth_bytes_per_s: of keys and values, None for `bandwidth_bytes_per_s`.
        row_costs: passes of a few rows beside one row, of weights without `kernels` of their form.
        figures_from: who says so; devices that reach the same are equal, whoever does.
        hardware: its name in the catalogue, None where the file names none.
    """

    name: str
    kind: DeviceKind
    torch_device: str
    memory_bytes: int
    reserved_bytes: int
    bandwidth_bytes_per_s: float
    ffn_flops_per_s: float
    price_per_gbyte: float | None = None
    overheads: Overheads = NO_OVERHEADS
    cores: float = 1.0
    host_link_bytes_per_s: float | None = None
    host_link_round_trip_s: float = 0.0
    attention_flops_per_s: float | None = None
    kernels: tuple[KernelRates, ...] = ()
    attention_bandwidth_bytes_per_s: float | None = None
    row_costs: RowCosts = NO_ROW_COSTS
    figures_from: FiguresFrom = field(default="typed", compare=False)
    hardware: str | None = field(default=None, compare=False)

    @property
    def budget_bytes(self) -> int:
        """What experts may use: on the head's devices its own weights and KV cache are reserved first."""
        return self.memory_bytes - self.reserved_bytes


@dataclass(frozen=True, slots=True)
class LinkSpec:
    """Between a node and the head: round trip of a small message, and bandwidth each way."""

    round_trip_s: float
    bandwidth_bytes_per_s: float
    figures_from: FiguresFrom = field(default="typed", compare=False)


@dataclass(frozen=True, slots=True)
class LinkUpgrade:
    """What could be bought for the links of `nodes` at once, such as a cable in place of Wi-Fi, or a switch.

    None leaves the round trip or the bandwidth as it is; `price` is None where the file gives none.
    """

    name: str
    nodes: tuple[str, ...]
    round_trip_s: float | None = None
    bandwidth_bytes_per_s: float | None = None
    price: float | None = None

    def of(self, link: LinkSpec) -> LinkSpec:
        """The link after it; what is better already stays."""
        round_trip_s, bandwidth = self.round_trip_s, self.bandwidth_bytes_per_s
        return LinkSpec(
            link.round_trip_s if round_trip_s is None else min(link.round_trip_s, round_trip_s),
            link.bandwidth_bytes_per_s if bandwidth is None else max(link.bandwidth_bytes_per_s, bandwidth),
        )


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """A box: what it has, and how it is reached.

    Attributes:
        address: IPv4, None where nothing is to run.
        devices: empty where nobody typed or measured any.
        link: on the head's node None means that a message costs nothing; elsewhere that nobody typed or
            measured it.
        price: of one more such box, None where the file gives none.
        ssh_user: None for the user of the file's `auth`.
        model: where the model lies on this box, None for the path it has on the head.
        venv: the virtual environment that Potluck is installed in there.
        memory_cap_bytes: RAM that Potluck takes there at most, None for what is free. The devices of a file
            that was read keep to it already.
        network: what should connect the box to the head, None where anything may.
    """

    name: str
    address: str | None
    devices: tuple[DeviceSpec, ...]
    link: LinkSpec | None
    price: float | None = None
    ssh_user: str | None = None
    ssh_port: int = 22
    model: str | None = None
    venv: str = USUAL_VENV
    memory_cap_bytes: int | None = None
    network: NetworkKind | None = None


@dataclass(frozen=True, slots=True)
class ClusterSpec:
    """All boxes; `head` names the node that runs attention and asks the others.

    `link_upgrades`: what could be bought (`placement/answers/whatif.py`).
    """

    head: str
    nodes: tuple[NodeSpec, ...]
    machines: tuple[MachineSpec, ...] = ()
    link_upgrades: tuple[LinkUpgrade, ...] = ()

    @property
    def head_node(self) -> NodeSpec:
        return next(node for node in self.nodes if node.name == self.head)

    @property
    def unknown_nodes(self) -> tuple[str, ...]:
        """Those of which no device, or no link to the head, is typed or measured.

        A head without devices is none of them where others have some: it then holds no experts.
        """
        others = [node for node in self.nodes if node.name != self.head]
        unknown = tuple(node.name for node in others if not node.devices or node.link is None)
        return unknown if others or self.head_node.devices else (self.head,)

    def machine_of(self, node: str) -> MachineSpec | None:
        """The machine a node shares with others, None where the file names none."""
        return next((machine for machine in self.machines if node in machine.nodes), None)


def least_known(sources: Iterable[FiguresFrom]) -> FiguresFrom:
    """What nobody measured if there is any, else what was measured."""
    return min(sources, key=_KNOWN.index)


def capped(devices: Sequence[DeviceSpec], cap_bytes: int | None) -> tuple[DeviceSpec, ...]:
    """The devices of one box, those in RAM together with at most `cap_bytes`; the first have them first."""
    if cap_bytes is None:
        return tuple(devices)
    kept, left = [], cap_bytes
    for device in devices:
        if device.kind == "ram":
            memory_bytes = min(device.memory_bytes, left)
            # What is reserved for others lies in the part that is left out, as far as it has room.
            reserved_bytes = max(0, device.reserved_bytes - (device.memory_bytes - memory_bytes))
            device = replace(device, memory_bytes=memory_bytes, reserved_bytes=reserved_bytes)
            left -= memory_bytes
        kept.append(device)
    return tuple(kept)
