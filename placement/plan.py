"""A plan: which tier of which worker holds each expert. `plan_file` reads and writes it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from placement.assign.one_step import ReplicaCosts
from placement.errors import InputError, PlanDoesNotFit, PlanError
from placement.files.quote import quote
from placement.holders import NO_WORKER, HolderTable
from placement.model_shape import ModelShape
from placement.units import size
from placement.weight_format import BFLOAT16, ExpertFormat, planned_experts
from placement.wire_form import WireForm, wire_form
from placement.workload import Workload

# Experts of the worker of this name live in the head's own process: no message is needed for them.
LOCAL_WORKER = "head"

TIER_KINDS = ("vram", "ram", "disk")


@dataclass(frozen=True, slots=True)
class PlannedTier:
    """One device's memory for experts. `device` is a torch device string such as "cuda:0".

    `kind` is one of TIER_KINDS. `worker` names the process that owns it, with the other tiers of its box;
    left out, it is a process of its own with the tier's name. `ask_s` and `expert_s` are what the choice
    among replicas weighs (`ReplicaCosts`), 0 where the plan does not say.
    """

    name: str
    node: str
    device: str
    kind: str
    budget_bytes: int
    ask_s: float = 0.0
    expert_s: float = 0.0
    worker: str = ""

    def __post_init__(self) -> None:
        if not self.worker:
            object.__setattr__(self, "worker", self.name)


@dataclass(frozen=True, slots=True)
class PlannedWorker:
    """One process, which owns the devices of a box. `tiers` are indices into `Plan.tiers`, ascending."""

    name: str
    node: str
    tiers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PlannedLayer:
    """One MoE layer: its absolute index, the form its experts are kept in, and the bytes of one of them.

    `form` is the name of an `ExpertFormat`, or of a planned format (`placement.weight_format`).
    """

    index: int
    form: str
    expert_bytes: int


def planned_layers(shape: ModelShape, forms: Mapping[int, ExpertFormat]) -> tuple[PlannedLayer, ...]:
    """The layers of a model whose files keep its experts so. `forms`: by absolute layer index."""
    return tuple(
        PlannedLayer(layer, form.name, form.expert_bytes(shape.hidden_size, shape.moe_intermediate_size))
        for layer, form in forms.items()
    )


def wires_of(layers: Iterable[PlannedLayer], dtype: str) -> tuple[WireForm, ...]:
    """What rows travel in where a run in `dtype` keeps experts so: of each layer, or one if all are alike.

    Experts in a form that nobody here knows count as unquantised.
    """
    wires = [_wire_of(layer.form, dtype) for layer in layers]
    return tuple(wires) if len(set(wires)) > 1 else tuple(wires[:1])


def _wire_of(form: str, dtype: str) -> WireForm:
    try:
        return wire_form(planned_experts(form), dtype)
    except InputError:
        return wire_form(ExpertFormat.of(BFLOAT16), dtype)


def like_layers(moe_layers: Sequence[int], form: str, expert_bytes: int) -> tuple[PlannedLayer, ...]:
    """Layers whose experts all have one form and size."""
    return tuple(PlannedLayer(layer, form, expert_bytes) for layer in moe_layers)


@dataclass(frozen=True, slots=True)
class Plan:
    """Where every routed expert of a model lives.

    Tiers are referred to by their index in `tiers`. `epoch` numbers the plans of one running system: a
    message made under another plan is refused. `dtype` is what the head computes with, keeps its caches in
    and sends, float32 or bfloat16. `workload` is what the plan was made for, None where nobody said.
    `digests` tell the files of the checkpoint that it was made for, by file name, where somebody noted them.
    `survive`: losses of boxes that every expert was to survive, where memory allowed it (docs/survival.md).

    Raises:
        PlanError: two tiers of one name, a worker on two nodes, or an expert that no tier holds.
    """

    model: str
    fingerprint: str
    layers: tuple[PlannedLayer, ...]
    dtype: str
    tiers: tuple[PlannedTier, ...]
    holder_table: HolderTable
    policy: str
    epoch: int = 0
    workload: Workload | None = None
    digests: Mapping[str, str] = field(default_factory=dict, hash=False)
    survive: int = 0

    def __post_init__(self) -> None:
        for name, times in Counter(tier.name for tier in self.tiers).items():
            if times > 1:
                raise PlanError(f"tiers: expected unique names, found {quote(name)} {times} times")
        nodes: dict[str, str] = {}
        for tier in self.tiers:
            node = nodes.setdefault(tier.worker, tier.node)
            if node != tier.node:
                both = f"{quote(node)} and {quote(tier.node)}"
                raise PlanError(f"worker {quote(tier.worker)}: expected one node, found {both}")
        table = self.holder_table.table
        if len(table) != len(self.layers):
            raise PlanError(
                f"experts: expected {len(self.layers)} layers as in moe_layers, found {len(table)}"
            )
        if table.max(initial=NO_WORKER) >= len(self.tiers):
            raise PlanError(f"experts: held by tier {table.max()}, but there are only {len(self.tiers)}")
        missing = np.argwhere(table[:, :, 0] == NO_WORKER)
        if len(missing):
            layer, expert = missing[0]
            raise PlanError(
                f"experts: no tier holds expert {expert} of layer {self.layers[layer].index}"
                f" ({len(missing)} experts are held by nobody): expected at least one holder each"
            )

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Absolute indices of the layers, in the order of the holder table's rows."""
        return tuple(layer.index for layer in self.layers)

    @property
    def num_experts(self) -> int:
        """Of a layer."""
        return self.holder_table.num_experts

    @property
    def form(self) -> str:
        """What experts are kept in, for people: one name, or several with commas where layers differ."""
        return ", ".join(dict.fromkeys(layer.form for layer in self.layers))

    @property
    def expert_bytes(self) -> NDArray[np.int64]:
        """Bytes of one expert of each layer: int64 [num_moe_layers]."""
        return np.array([layer.expert_bytes for layer in self.layers], dtype=np.int64)

    @property
    def mean_expert_bytes(self) -> int:
        """Over the layers; what an expert takes where all are alike."""
        return round(float(self.expert_bytes.mean()))

    @property
    def workers(self) -> tuple[PlannedWorker, ...]:
        """The processes that own the tiers, in the order of their first ones."""
        owned: dict[str, list[int]] = {}
        for index, tier in enumerate(self.tiers):
            owned.setdefault(tier.worker, []).append(index)
        return tuple(
            PlannedWorker(name, self.tiers[tiers[0]].node, tuple(tiers)) for name, tiers in owned.items()
        )

    @property
    def worker_of_tier(self) -> NDArray[np.int16]:
        """Index into `workers` of each tier's owner: int16 [num_tiers]."""
        found = np.empty(len(self.tiers), dtype=np.int16)
        for index, worker in enumerate(self.workers):
            found[list(worker.tiers)] = index
        return found

    @property
    def local_worker(self) -> int | None:
        """Index of the worker inside the head's process, None if the head holds no experts."""
        return next((i for i, worker in enumerate(self.workers) if worker.name == LOCAL_WORKER), None)

    @property
    def head_tier(self) -> int | None:
        """Index of the tier on the device that the head computes on, None if that is not in the plan."""
        return next((i for i, tier in enumerate(self.tiers) if tier.name == LOCAL_WORKER), None)

    @property
    def head_device(self) -> str:
        """What the head computes on, as torch names it; the CPU where the plan does not say."""
        return "cpu" if self.head_tier is None else self.tiers[self.head_tier].device

    @property
    def local_tiers(self) -> tuple[int, ...]:
        """Indices of the tiers inside the head's process."""
        return tuple(i for i, tier in enumerate(self.tiers) if tier.worker == LOCAL_WORKER)

    @property
    def asked_workers(self) -> tuple[PlannedWorker, ...]:
        """Workers outside the head's process that hold experts; a run does without the others."""
        held = self.experts_per_tier().tolist()
        return tuple(
            worker
            for worker in self.workers
            if worker.name != LOCAL_WORKER and any(held[tier] for tier in worker.tiers)
        )

    def worker(self, name: str) -> PlannedWorker:
        """Raises PlanError for a name the plan does not have."""
        for worker in self.workers:
            if worker.name == name:
                return worker
        known = ", ".join(worker.name for worker in self.workers)
        raise PlanError(f"worker {quote(name)} is not in the plan: expected {known}")

    def tier_index(self, name: str) -> int:
        """Raises PlanError for a name the plan does not have."""
        for index, tier in enumerate(self.tiers):
            if tier.name == name:
                return index
        known = ", ".join(tier.name for tier in self.tiers)
        raise PlanError(f"{quote(name)} is not a device of the plan: expected {known}")

    def experts_of(self, worker: str) -> dict[int, tuple[int, ...]]:
        """Absolute layer index -> experts in a worker's tiers, ascending; layers without any are left out."""
        masks = [self.holder_table.mask(tier) for tier in self.worker(worker).tiers]
        return self._listed(np.logical_or.reduce(masks))

    def experts_of_tier(self, tier: int) -> dict[int, tuple[int, ...]]:
        """The same of one tier, by its index."""
        return self._listed(self.holder_table.mask(tier))

    def _listed(self, mask: NDArray[np.bool_]) -> dict[int, tuple[int, ...]]:
        return {
            layer: tuple(np.flatnonzero(row).tolist())
            for layer, row in zip(self.moe_layers, mask, strict=True)
            if row.any()
        }

    def experts_per_tier(self) -> NDArray[np.int64]:
        """int64 [num_tiers]."""
        return self.holder_table.experts_per_worker(len(self.tiers))

    def bytes_per_tier(self) -> NDArray[np.int64]:
        """What each tier's experts take: int64 [num_tiers]."""
        held = self.holder_table.masks(len(self.tiers)).sum(axis=2)
        bytes_per_tier: NDArray[np.int64] = held @ self.expert_bytes
        return bytes_per_tier

    @property
    def replica_costs(self) -> ReplicaCosts:
        """What the dispatcher weighs when it chooses among replicas: the tiers', or the default."""
        ask_s = np.array([tier.ask_s for tier in self.tiers])
        expert_s = np.array([tier.expert_s for tier in self.tiers])
        if ask_s.any() or expert_s.any():
            return ReplicaCosts(ask_s, expert_s)
        disks = [index for index, tier in enumerate(self.tiers) if tier.kind == "disk"]
        return ReplicaCosts.unknown(len(self.tiers), self.local_tiers, disks)

    def tiers_at_home(self) -> NDArray[np.bool_]:
        """bool [num_tiers]: those on the node of the worker "head"; none without such a worker."""
        local = self.local_tiers
        node = self.tiers[local[0]].node if local else None
        return np.array([tier.node == node for tier in self.tiers], dtype=np.bool_)

    def without(self, workers: Collection[int]) -> HolderTable:
        """The holders that are left when some workers are gone, each with all its tiers.

        Args:
            workers: indices into `workers`.
        """
        gone = [tier for index in workers for tier in self.workers[index].tiers]
        return self.holder_table.without(gone)

    @property
    def wires(self) -> tuple[WireForm, ...]:
        """What rows travel in to a worker: of each layer, or one for all; for reckoning, see `wires_of`."""
        return wires_of(self.layers, self.dtype)

    def wire_forms(self) -> dict[int, WireForm]:
        """What each layer's rows travel in, by absolute layer index.

        Raises:
            InputError: experts in a form that the kernels do not know.
        """
        return {layer.index: wire_form(ExpertFormat.of_name(layer.form), self.dtype) for layer in self.layers}

    def check(self, shape: ModelShape) -> None:
        """Raise PlanError unless the plan was made for a model of this shape."""
        if self.fingerprint != shape.fingerprint:
            raise PlanError(
                f"plan for another model: made for {quote(self.model)} ({len(self.layers)} MoE layers x "
                f"{self.num_experts} experts, fingerprint {quote(self.fingerprint)}), expected {shape.name} "
                f"({shape.num_moe_layers} x {shape.num_experts}, fingerprint {shape.fingerprint}); "
                "make a new one with `potluck plan`"
            )
        missing, unknown = (
            set(shape.moe_layers) - set(self.moe_layers),
            set(self.moe_layers) - set(shape.moe_layers),
        )
        if missing or unknown or self.num_experts != shape.num_experts:
            raise PlanError(
                f"layers: expected {shape.num_experts} experts in each MoE layer of {shape.name}, found "
                f"{self.num_experts}; missing layers: {sorted(missing)[:5] or 'none'}, unknown ones: "
                f"{sorted(unknown)[:5] or 'none'}; make a new plan with `potluck plan`"
            )

    def check_fits(self) -> None:
        """Raise PlanDoesNotFit if a tier holds more bytes than its budget."""
        held = self.experts_per_tier().tolist()
        for tier, num_experts, needed in zip(self.tiers, held, self.bytes_per_tier().tolist(), strict=True):
            if needed > tier.budget_bytes:
                raise PlanDoesNotFit(
                    f"device {tier.name!r}: {num_experts} experts need {size(needed)}, "
                    f"{size(needed - tier.budget_bytes)} more than its budget_bytes of "
                    f"{size(tier.budget_bytes)}"
                )
