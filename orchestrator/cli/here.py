"""What this machine does how fast with a model, as `potluck probe` measured it, for a run's plan."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from orchestrator.cli.inputs import HeadOfFiles
from orchestrator.cli.workload import WorkloadOptions, workload_of
from orchestrator.run_memory import Demand, head_bytes
from placement.given.cluster_spec import ClusterSpec, DeviceKind, DeviceSpec, NodeSpec
from placement.given.probe import HERE, devices_of, probe_path_here, read_probe
from placement.given.probe_figures import Gpu, HeadSoftware, Node
from placement.given.problem import PlanningDevice, PlanningProblem, planning_devices
from placement.given.stats import RoutingStats
from placement.model_shape import ModelShape
from placement.plan import LOCAL_WORKER, Plan, PlannedLayer, PlannedTier, planned_layers
from placement.replay.simulate import simulate_alone
from placement.replay.system import System
from placement.routing.planning_text import planning_text, spread_steps
from placement.weight_format import FP8_E4M3
from placement.workload import Workload
from workers.formats.open_model import OpenModel, kept_forms
from workers.gpu.free import card_name
from workers.probe.hardware import hardware

_STEPS = 500
"""Of the text that a step is predicted from: its mean is then known to about 1%."""
_FASTER = {"vram": 100.0, "ram": 10.0, "disk": 1.0}
"""Bytes a second where nobody measured: they say which memory is faster, and nothing else is made of them."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured of this machine."""

    node: Node
    software: HeadSoftware

    def card(self, device: str) -> Gpu | None:
        """The card of that name, if our kernels were timed on it."""
        return next((gpu for gpu in self.node.gpus if gpu.device == device and gpu.kernels), None)


def measured_here() -> Figures | None:
    """What `potluck probe` wrote of this machine in the folder it was called in; None where out of date.

    Raises:
        ClusterFileError: its file cannot be read.
    """
    path = probe_path_here()
    if not path.exists():
        return None
    probe = read_probe(path)
    node = probe.nodes.get(HERE)
    if node is None or node.hardware.fingerprint != hardware().fingerprint:
        return None
    return Figures(node, probe.software)


@dataclass(frozen=True, slots=True, eq=False)
class Here:
    """A model on this machine.

    Attributes:
        dtype: of the run.
        layers: of experts, as they are kept.
        stats: of the text to come; None where nobody knows.
        figures: None where nobody measured.
    """

    shape: ModelShape
    dtype: str
    layers: tuple[PlannedLayer, ...]
    workload: Workload
    stats: RoutingStats | None = None
    figures: Figures | None = None

    @classmethod
    def of(
        cls,
        model: OpenModel,
        dtype: str,
        demand: Demand,
        stats: RoutingStats | None = None,
        figures: Figures | None = None,
    ) -> Here:
        """Of what is asked of a run."""
        contents, shape = model.contents, model.shape
        layers = planned_layers(shape, kept_forms(model.checkpoint, model.config, dtype))
        is_quantised = not contents.in_directory or any(t.form == FP8_E4M3.name for t in contents.tensors)
        head = HeadOfFiles(contents.head_bits, contents.head_forms, head_bytes(contents, dtype))
        said = WorkloadOptions(context=demand.positions, kv=demand.kv_form)
        form = layers[0].form.split("/")[0] if is_quantised else dtype
        workload = workload_of(said, shape, form, head=head if is_quantised else None)
        return cls(shape, dtype, layers, replace(workload, drafts=demand.num_drafts), stats, figures)

    @property
    def largest_bytes(self) -> int:
        """Of an expert."""
        return max(layer.expert_bytes for layer in self.layers)

    def card(self, device: str) -> Gpu | None:
        """What was measured of a card."""
        return None if self.figures is None else self.figures.card(device)

    def crossing_s(self, card: str) -> float:
        """Of a step's rows between CPU and card, once: half of there and back."""
        found = self.card(card)
        return 0.0 if found is None else found.round_trip_s / 2

    def device(self, name: str, kind: str) -> PlanningDevice:
        """How fast a device is when the head computes on it."""
        return self._devices([PlannedTier(LOCAL_WORKER, HERE, name, kind, 0)])[0]

    def problem(self, tiers: Sequence[PlannedTier]) -> PlanningProblem:
        """Where to put the experts among these."""
        form = Counter(layer.form for layer in self.layers).most_common(1)[0][0]
        return PlanningProblem(
            self.shape,
            tuple(self._devices(tiers)),
            self.largest_bytes,
            self.stats,
            self.workload,
            expert_form=form,
        )

    def knows(self, tiers: Sequence[PlannedTier]) -> bool:
        """Whether all of these devices were measured."""
        return all(self._spec(tier) is not None for tier in tiers)

    def step_s(self, plan: Plan) -> float | None:
        """Predicted for a decode step; None where a device was not measured.

        A disk's cache counts for nothing in it, so with one it is the most that a step takes.
        """
        if not self.knows(plan.tiers):
            return None
        problem = self.problem(plan.tiers)
        text = planning_text(problem)
        steps = spread_steps(text.trace, self.workload.tokens_per_step, _STEPS)
        system = System.build(plan, problem.devices, self.shape, self.workload)
        return float(simulate_alone(system, [steps]).step_time_s.mean)

    def _devices(self, tiers: Sequence[PlannedTier]) -> list[PlanningDevice]:
        """As seen from the head, which a card's host link may lie before."""
        first = sorted(range(len(tiers)), key=lambda number: tiers[number].name != LOCAL_WORKER)
        specs = tuple(self._spec(tiers[number]) or _unmeasured(tiers[number]) for number in first)
        seen = planning_devices(ClusterSpec(HERE, (NodeSpec(HERE, None, specs, None),)))
        by_number = dict(zip(first, seen, strict=True))
        return [replace(by_number[number], tier=tier) for number, tier in enumerate(tiers)]

    def _spec(self, tier: PlannedTier) -> DeviceSpec | None:
        """What was measured of a tier's device."""
        if self.figures is None:
            return None
        card = card_name(tier.device) if tier.kind == "vram" else None
        head_on = card if tier.name == LOCAL_WORKER else None
        known = devices_of(self.figures.node, self.figures.software, head_on)
        found = [spec for spec in known if spec.kind == tier.kind and card in (None, spec.torch_device)]
        return found[0] if found else None


def _unmeasured(tier: PlannedTier) -> DeviceSpec:
    return DeviceSpec(tier.name, _KINDS[tier.kind], tier.device, 0, 0, _FASTER[tier.kind], math.inf)


_KINDS: dict[str, DeviceKind] = {"vram": "vram", "ram": "ram", "disk": "disk"}
