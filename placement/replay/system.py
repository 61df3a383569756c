"""A plan on a cluster: which device does what at which rate, and over which link it is reached."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from placement.cost.head import head_device, head_layer_seconds, head_seconds
from placement.cost.rates import expert_rates
from placement.cost.roofline import ExpertRates
from placement.errors import PlanDoesNotFit, PlanError
from placement.given.cluster_spec import ClusterSpec
from placement.given.problem import PlanningDevice, PlanningProblem, as_devices
from placement.message_size import MessageSize, message_size
from placement.model_shape import ModelShape
from placement.plan import LOCAL_WORKER, Plan
from placement.units import size
from placement.workload import Workload


@dataclass(frozen=True, slots=True, eq=False)
class System:
    """Everything a simulation needs to know besides the tokens.

    Attributes:
        problem: devices in the order of `plan.tiers`, the head's own added last if it holds no experts.
        head: index of the device the head computes on.
        local: the same if the plan has experts there, else None.
        before_s: float64 [num_moe_layers], what the head computes before it can ask for a MoE layer.
        after_s: what it computes after the last one: lm_head, drafts.
        mtp_s: the drafts' part of that.
        links: nodes that messages reach over a link.
        link_of: int64 [num_devices], index into `links`, -1 for a device without.
    """

    plan: Plan
    problem: PlanningProblem
    rates: ExpertRates
    message: MessageSize
    head: int
    local: int | None
    before_s: NDArray[np.float64]
    after_s: float
    mtp_s: float
    links: tuple[str, ...]
    link_of: NDArray[np.int64]

    @classmethod
    def build(
        cls,
        plan: Plan,
        devices: ClusterSpec | Sequence[PlanningDevice],
        shape: ModelShape,
        workload: Workload,
    ) -> System:
        """Match a plan's workers with a cluster's devices by name.

        Raises:
            PlanError: a plan of another model, or a worker whose device the cluster does not have.
            PlanDoesNotFit: a device of the cluster is too small for what the plan puts there.
            InputError: the head's node has no device, so its speed is unknown.
        """
        plan.check(shape)
        known = as_devices(devices)
        matched = [_match(plan, index, known) for index in range(len(plan.tiers))]
        if plan.head_tier is None:
            matched += [device for device in known if device.tier.name == LOCAL_WORKER]
        form = Counter(layer.form for layer in plan.layers).most_common(1)[0][0] if plan.layers else None
        problem = PlanningProblem(
            shape,
            tuple(matched),
            plan.mean_expert_bytes,
            workload=workload,
            expert_form=form,
            layer_wires=plan.wires,
        )
        before_s, after_s = _head_parts(problem)
        links, link_of = _links(problem.devices)
        return cls(
            plan=plan,
            problem=problem,
            rates=expert_rates(problem),
            message=message_size(shape, problem.wires),
            head=problem.devices.index(head_device(problem)),
            local=plan.head_tier,
            before_s=before_s,
            after_s=after_s,
            mtp_s=head_seconds(problem).mtp_s,
            links=links,
            link_of=link_of,
        )

    def with_workload(self, workload: Workload) -> System:
        """The same plan and devices, asked to do something else."""
        return System.build(self.plan, self.problem.devices, self.shape, workload)

    @property
    def shape(self) -> ModelShape:
        return self.problem.shape

    @property
    def workload(self) -> Workload:
        return self.problem.workload

    @property
    def num_devices(self) -> int:
        return len(self.problem.devices)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the devices: their workers'."""
        return tuple(device.tier.name for device in self.problem.devices)

    @property
    def is_remote(self) -> NDArray[np.bool_]:
        """bool [num_devices]: on another box than the head."""
        return np.array([not device.is_home for device in self.problem.devices])

    @property
    def is_asked(self) -> NDArray[np.bool_]:
        """bool [num_devices]: of a worker outside the head's process, which a message must reach."""
        return np.array([device.tier.worker != LOCAL_WORKER for device in self.problem.devices])

    @property
    def shared_boxes(self) -> list[tuple[int, NDArray[np.bool_]]]:
        """Boxes of several devices that one message reaches: the first of them, and a mask of all."""
        box = self.rates.box
        return [(first, box == first) for first in np.flatnonzero(np.bincount(box) > 1).tolist()]

    @property
    def head_s(self) -> float:
        """The head's own time in a step, shared experts left out."""
        return float(self.before_s.sum()) + self.after_s

    @property
    def shares_a_link(self) -> bool:
        """Whether two boxes are reached over the same link, so that one request can wait for another."""
        used = self.link_of[(self.link_of >= 0) & self.rates.first_of_box]
        return len(np.unique(used)) < len(used)


def _match(plan: Plan, index: int, known: Sequence[PlanningDevice]) -> PlanningDevice:
    tier = plan.tiers[index]
    device = next((d for d in known if d.tier.name == tier.name), None)
    names = ", ".join(d.tier.name for d in known)
    if device is None:
        raise PlanError(
            f"the plan's device {tier.name!r} is not in the cluster, whose devices are {names}: "
            "plan for this cluster with `potluck plan`"
        )
    if device.tier.node != tier.node:
        raise PlanError(
            f"the plan's device {tier.name!r} is on node {tier.node!r}, in the cluster on "
            f"{device.tier.node!r}: plan for this cluster with `potluck plan`"
        )
    missing = int(plan.bytes_per_tier()[index]) - device.tier.budget_bytes
    if missing > 0:
        raise PlanDoesNotFit(
            f"the plan's device {tier.name!r} holds {size(missing)} more than the cluster gives it "
            f"({size(device.tier.budget_bytes)}): plan for this cluster with `potluck plan`"
        )
    # Which process owns the device is the plan's to say.
    return replace(device, tier=replace(device.tier, worker=tier.worker))


def _head_parts(problem: PlanningProblem) -> tuple[NDArray[np.float64], float]:
    """The head's time before each MoE layer, dense layers in front of it included, and after the last."""
    layers = head_layer_seconds(problem)
    whole = head_seconds(problem)
    ends = np.array(problem.shape.moe_layers) + 1
    reached = np.concatenate(([0.0], np.cumsum(layers)))
    before_s = np.diff(reached[ends], prepend=0.0)
    after_s = whole.lm_head_s + whole.mtp_s + whole.pass_overhead_s
    return before_s, float(reached[-1] - reached[ends[-1]]) + after_s


def _links(devices: Sequence[PlanningDevice]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    nodes: dict[str, int] = {}
    link_of = [
        nodes.setdefault(device.tier.node, len(nodes)) if math.isfinite(device.link_bytes_per_s) else -1
        for device in devices
    ]
    return tuple(nodes), np.array(link_of, dtype=np.int64)
