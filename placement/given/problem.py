"""What a placement policy is given: a model, devices as the head sees them, and routing statistics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from placement.errors import PlanDoesNotFit
from placement.given.cluster_spec import (
    NO_OVERHEADS,
    ClusterSpec,
    DeviceSpec,
    FiguresFrom,
    LinkSpec,
    MachineSpec,
    NodeSpec,
    Overheads,
    least_known,
)
from placement.given.head_memory import head_memory_bytes
from placement.given.kernel_rates import NO_ROW_COSTS, KernelRates, RowCosts, rates_of
from placement.given.stats import RoutingStats
from placement.model_shape import ModelShape
from placement.plan import LOCAL_WORKER, PlannedTier
from placement.units import size
from placement.weight_format import BFLOAT16, PLANNED_FORMATS
from placement.wire_form import WireForm, usual_wire_form
from placement.workload import SINGLE_TOKEN, Workload

_FEW_BITS = 4
"""Below so many a weight, experts answer clearly otherwise than the published ones."""


@dataclass(frozen=True, slots=True)
class PlanningDevice:
    """A device that can hold experts, as seen from the head.

    `is_home`: on the head's own node, so that no network lies between. `round_trip_s` and
    `link_bytes_per_s` are those of a message from the head's process: 0 and infinity inside it, unless the
    head computes in VRAM and rows leave it over the host link. `machine`: the one whose cores and
    memory it shares with others, None where it has its own. `figures_from`: of the device and of the link
    before it, what is known least. The rest as in `DeviceSpec`.
    """

    tier: PlannedTier
    is_home: bool
    bandwidth_bytes_per_s: float
    ffn_flops_per_s: float
    round_trip_s: float = 0.0
    link_bytes_per_s: float = math.inf
    overheads: Overheads = NO_OVERHEADS
    machine: MachineSpec | None = None
    cores: float = 1.0
    host_link_bytes_per_s: float | None = None
    attention_flops_per_s: float | None = None
    kernels: tuple[KernelRates, ...] = ()
    attention_bandwidth_bytes_per_s: float | None = None
    row_costs: RowCosts = NO_ROW_COSTS
    figures_from: FiguresFrom = field(default="typed", compare=False)

    def capacity(self, expert_bytes: int) -> int:
        """Experts that fit the budget."""
        return self.tier.budget_bytes // expert_bytes

    def multiply_line(
        self, form: str | None, parameters: int, num_rows: float, read_s: float
    ) -> tuple[float, float]:
        """Seconds of a matrix of so many weights: (whatever the rows, for each row), around `num_rows`.

        Args:
            read_s: of reading it once.
        """
        if (rates := rates_of(self.kernels, form)) is not None:
            fixed, slope = rates.line(num_rows)
            return 2 * parameters * fixed, 2 * parameters * slope
        row_s = 2 * parameters / self.ffn_flops_per_s
        fixed, slope = self.row_costs.line(num_rows)
        if read_s * (fixed + slope * num_rows) > row_s * num_rows:
            return read_s * fixed, read_s * slope
        return 0.0, row_s

    def multiply_s(self, form: str | None, parameters: int, num_rows: float, read_s: float) -> float:
        """Seconds of its arithmetic for `num_rows` rows."""
        fixed_s, row_s = self.multiply_line(form, parameters, num_rows, read_s)
        return fixed_s + row_s * num_rows

    def first_expert_s(self, expert_bytes: int) -> float:
        """Time until the result of one expert for one token is back, from nothing else in flight."""
        return self.round_trip_s + expert_bytes / self.bandwidth_bytes_per_s


@dataclass(frozen=True, slots=True)
class PlanningProblem:
    """Where to put the experts of `shape`.

    `expert_bytes` is the size of one expert in memory. `stats` may be None for policies that need none.
    `workload` is the step whose expected time a policy may minimise. `expert_form` names what experts are
    kept in (`ExpertFormat.name`); devices may state rates by form, and rows travel as it wants them. None:
    nobody says. `layer_wires`: what rows travel in to a worker, of each MoE layer, where layers differ.
    `survive`: losses of boxes that every expert should survive (placement/policies/cover.py).
    """

    shape: ModelShape
    devices: tuple[PlanningDevice, ...]
    expert_bytes: int
    stats: RoutingStats | None = None
    workload: Workload = SINGLE_TOKEN
    expert_form: str | None = None
    layer_wires: tuple[WireForm, ...] = ()
    survive: int = 0

    @property
    def wires(self) -> tuple[WireForm, ...]:
        """What rows travel in to a worker: of each MoE layer, or one for all."""
        return self.layer_wires or (usual_wire_form(self.expert_form or BFLOAT16.name),)

    @property
    def head(self) -> int | None:
        """Index of the device that the head computes on; None where its node has none."""
        names = [device.tier.name for device in self.devices]
        return names.index(LOCAL_WORKER) if LOCAL_WORKER in names else None

    def capacities(self) -> NDArray[np.int64]:
        """int64 [num_devices]: experts each device has room for."""
        return np.array([device.capacity(self.expert_bytes) for device in self.devices], dtype=np.int64)

    def check_fits(self) -> None:
        """Raise PlanDoesNotFit, with the missing bytes and the quantisations that would fit."""
        needed = self.shape.num_routed_experts
        missing = needed - int(self.capacities().sum())
        if missing <= 0:
            return
        number = len(self.devices)
        raise PlanDoesNotFit(
            f"{needed:,} experts of {size(self.expert_bytes)} do not fit the "
            f"{'device' if number == 1 else f'{number} devices'}: "
            f"{size(missing * self.expert_bytes)} are missing; {self._advice()}{self._advice_on_disks()}"
        )

    def _advice(self) -> str:
        for name, form in sorted(PLANNED_FORMATS.items(), key=lambda item: -item[1].bits):
            size = self.shape.expert_bytes(form.bits)
            fitting = sum(device.capacity(size) for device in self.devices)
            if size < self.expert_bytes and fitting >= self.shape.num_routed_experts:
                text = ", but changes the text" if form.bits < _FEW_BITS else ""
                return f"give more memory, or plan for smaller experts: --quant {name} fits{text}"
        return "give more memory, since no --quant fits; --context and --head-bits free some on the head"

    def _advice_on_disks(self) -> str:
        if any(device.tier.kind == "disk" for device in self.devices):
            return ""
        return (
            "; or name a disk, from which a token waits for what has no room: hardware: [..., "
            "{use: nvme-gen4, memory_bytes: 1TB}]"
        )


def problem_for(
    shape: ModelShape,
    devices: ClusterSpec | Sequence[PlanningDevice],
    expert_bytes: int,
    stats: RoutingStats | None = None,
    workload: Workload = SINGLE_TOKEN,
    *,
    expert_form: str | None = None,
    layer_wires: tuple[WireForm, ...] = (),
) -> PlanningProblem:
    """The problem of a model on a cluster, whose head keeps what it needs itself.

    Raises:
        PlanDoesNotFit: the head's device is too small for the head, or all of them for the experts.
    """
    if isinstance(devices, ClusterSpec):
        devices = planning_devices(devices, head_memory_bytes(shape, workload))
    problem = PlanningProblem(shape, tuple(devices), expert_bytes, stats, workload, expert_form, layer_wires)
    problem.check_fits()
    return problem


def planning_devices(cluster: ClusterSpec, head_bytes: int = 0) -> tuple[PlanningDevice, ...]:
    """All devices of a cluster: a tier each, and one worker a box that owns them.

    The head's own process is the worker of its box, named "head", and so is the tier of that box's first
    device, which the head computes on. Every other tier is called NODE-DEVICE, and every other worker NODE.

    Args:
        head_bytes: what the head needs of its device. Where the cluster file reserves more, that counts; of
            a device that the catalogue names both count, since what it reserves is the system's.

    Raises:
        PlanDoesNotFit: its device has less.
    """
    devices = []
    below_head = host_link(cluster)
    for node in cluster.nodes:
        worker = _worker_name(node, cluster)
        for index, device in enumerate(node.devices):
            is_home = node.name == cluster.head
            in_head_process = is_home and index == 0
            name = LOCAL_WORKER if in_head_process else f"{node.name}-{device.name}"
            link = None if in_head_process else _link(node, below_head, is_home=is_home)
            devices.append(
                PlanningDevice(
                    tier=_planned_tier(name, worker, node, device, head_bytes if in_head_process else 0),
                    is_home=is_home,
                    bandwidth_bytes_per_s=device.bandwidth_bytes_per_s,
                    ffn_flops_per_s=device.ffn_flops_per_s,
                    round_trip_s=link.round_trip_s if link else 0.0,
                    link_bytes_per_s=link.bandwidth_bytes_per_s if link else math.inf,
                    overheads=device.overheads,
                    machine=cluster.machine_of(node.name) if device.kind == "ram" else None,
                    cores=device.cores,
                    host_link_bytes_per_s=device.host_link_bytes_per_s,
                    attention_flops_per_s=device.attention_flops_per_s,
                    kernels=device.kernels,
                    attention_bandwidth_bytes_per_s=device.attention_bandwidth_bytes_per_s,
                    row_costs=device.row_costs,
                    figures_from=least_known(known.figures_from for known in (device, link) if known),
                )
            )
    return tuple(devices)


def _planned_tier(name: str, worker: str, node: NodeSpec, device: DeviceSpec, head_bytes: int) -> PlannedTier:
    beside_head = _system_bytes(device) if head_bytes else 0
    missing = head_bytes + beside_head - device.memory_bytes
    if missing > 0:
        system = f", and the system {size(beside_head)}: together" if beside_head else ","
        raise PlanDoesNotFit(
            f"node {node.name}, device {device.name}: the head's weights, KV cache and activations take "
            f"{size(head_bytes)}{system} {size(missing)} more than its memory_bytes: put "
            "the head on a larger device, or give a shorter --context or fewer bits (--quant, --head-bits)"
        )
    budget = min(device.budget_bytes, device.memory_bytes - beside_head - head_bytes)
    return PlannedTier(name, node.name, device.torch_device, device.kind, budget, worker=worker)


def _system_bytes(device: DeviceSpec) -> int:
    """What is reserved beside the head's own need.

    Of a device that the catalogue names that is all, since the system takes it wherever the head is. A
    figure that somebody typed, and a probe's, may be there for the head already.
    """
    return 0 if device.hardware is None else device.reserved_bytes


def host_link(cluster: ClusterSpec) -> LinkSpec | None:
    """What rows cross on their way from a head in VRAM to its box's RAM, and sums on their way back.

    None where that costs nothing: the head computes in RAM, or nobody measured.
    """
    devices = next(node.devices for node in cluster.nodes if node.name == cluster.head)
    if not devices or devices[0].kind != "vram":
        return None
    round_trip_s, bytes_per_s = devices[0].host_link_round_trip_s, devices[0].host_link_bytes_per_s
    if not round_trip_s and not bytes_per_s:
        return None
    return LinkSpec(round_trip_s, bytes_per_s or math.inf, devices[0].figures_from)


def _link(node: NodeSpec, below_head: LinkSpec | None, *, is_home: bool) -> LinkSpec | None:
    """From the head's device to a node's others, over the host link first where there is one."""
    if below_head is None or node.link is None:
        return node.link or (below_head if is_home else None)
    if is_home:
        return node.link
    return replace(node.link, round_trip_s=node.link.round_trip_s + below_head.round_trip_s)


def _worker_name(node: NodeSpec, cluster: ClusterSpec) -> str:
    """The process of a box; a box that happens to be called "head" without being the head's gets a suffix."""
    if node.name == cluster.head:
        return LOCAL_WORKER
    return node.name if node.name != LOCAL_WORKER else f"{node.name}-box"


def as_devices(devices: ClusterSpec | Sequence[PlanningDevice]) -> tuple[PlanningDevice, ...]:
    return planning_devices(devices) if isinstance(devices, ClusterSpec) else tuple(devices)
