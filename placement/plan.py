"""A plan: which worker holds each expert, in which tier of memory. Saved as JSON (docs/formats.md)."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from placement.assign.one_step import ReplicaCosts
from placement.errors import PlanDoesNotFit, PlanError
from placement.files.atomic import replacing
from placement.files.json_file import read_json
from placement.files.shown import shown
from placement.holders import NO_WORKER, HolderTable
from placement.model_shape import MOST_EXPERTS, MOST_LAYERS, ModelShape
from placement.plan_fields import ascending, count, number, object_of, text
from placement.units import size
from placement.workload import Workload
from placement.workload_fields import workload_fields, workload_of_fields

PLAN_FORMAT = "potluck-plan"
PLAN_VERSION = 1

# Experts of the worker of this name live in the head's own process: no message is needed for them.
LOCAL_WORKER = "head"

TIERS = ("vram", "ram", "disk")


@dataclass(frozen=True, slots=True)
class PlannedWorker:
    """One process that holds experts on one device. `device` is a torch device string such as "cuda:0".

    `ask_s` and `expert_s` are what the choice among replicas weighs (`assign.one_step.ReplicaCosts`), 0
    where the plan does not say.
    """

    name: str
    node: str
    device: str
    tier: str
    budget_bytes: int
    ask_s: float = 0.0
    expert_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """Where every routed expert of a model lives.

    Workers are referred to by their index in `workers`. `epoch` numbers the plans of one running system:
    a message made under another plan is refused. `dtype` is the weights' form in memory, `expert_bytes`
    the size of one expert in that form. `workload` is what the plan was made for, None where nobody said.

    Raises:
        PlanError: two workers of one name, or an expert that no worker holds.
    """

    model: str
    fingerprint: str
    moe_layers: tuple[int, ...]
    dtype: str
    expert_bytes: int
    workers: tuple[PlannedWorker, ...]
    holder_table: HolderTable
    policy: str
    epoch: int = 0
    workload: Workload | None = None

    def __post_init__(self) -> None:
        for name, times in Counter(worker.name for worker in self.workers).items():
            if times > 1:
                raise PlanError(f"workers: expected unique names, found {shown(name)} {times} times")
        table = self.holder_table.table
        if len(table) != len(self.moe_layers):
            raise PlanError(
                f"experts: expected {len(self.moe_layers)} layers as in moe_layers, found {len(table)}"
            )
        if table.max(initial=NO_WORKER) >= len(self.workers):
            raise PlanError(f"experts: held by worker {table.max()}, but there are only {len(self.workers)}")
        missing = np.argwhere(table[:, :, 0] == NO_WORKER)
        if len(missing):
            layer, expert = missing[0]
            raise PlanError(
                f"experts: no worker holds expert {expert} of layer {self.moe_layers[layer]}"
                f" ({len(missing)} experts are held by nobody): expected at least one holder each"
            )

    @property
    def num_experts(self) -> int:
        return self.holder_table.num_experts

    @property
    def local_worker(self) -> int | None:
        """Index of the worker inside the head's process, None if the head holds no experts."""
        return next((i for i, worker in enumerate(self.workers) if worker.name == LOCAL_WORKER), None)

    def worker_index(self, name: str) -> int:
        """Raises PlanError for a name the plan does not have."""
        for index, worker in enumerate(self.workers):
            if worker.name == name:
                return index
        raise PlanError(
            f"worker {name!r} is not in the plan: expected {', '.join(w.name for w in self.workers)}"
        )

    @property
    def asked_workers(self) -> tuple[PlannedWorker, ...]:
        """Workers outside the head's process that hold experts; a run does without the others."""
        held = self.experts_per_worker().tolist()
        return tuple(
            worker
            for worker, num_experts in zip(self.workers, held, strict=True)
            if num_experts and worker.name != LOCAL_WORKER
        )

    def experts_of(self, worker_name: str) -> dict[int, tuple[int, ...]]:
        """Absolute layer index -> experts held there, ascending; layers without any are left out."""
        mask = self.holder_table.mask(self.worker_index(worker_name))
        return {
            layer: tuple(np.flatnonzero(row).tolist())
            for layer, row in zip(self.moe_layers, mask, strict=True)
            if row.any()
        }

    def experts_per_worker(self) -> NDArray[np.int64]:
        """int64 [num_workers]."""
        return self.holder_table.experts_per_worker(len(self.workers))

    @property
    def replica_costs(self) -> ReplicaCosts:
        """What the dispatcher weighs when it chooses among replicas: the workers', or the default."""
        ask_s = np.array([worker.ask_s for worker in self.workers])
        expert_s = np.array([worker.expert_s for worker in self.workers])
        if ask_s.any() or expert_s.any():
            return ReplicaCosts(ask_s, expert_s)
        return ReplicaCosts.unknown(len(self.workers), self.local_worker)

    def home_workers(self) -> NDArray[np.bool_]:
        """bool [num_workers]: those on the node of the worker "head"; none without such a worker."""
        local = self.local_worker
        node = None if local is None else self.workers[local].node
        return np.array([worker.node == node for worker in self.workers], dtype=np.bool_)

    def check(self, shape: ModelShape) -> None:
        """Raise PlanError unless the plan was made for a model of this shape."""
        if self.fingerprint != shape.fingerprint:
            raise PlanError(
                f"plan for another model: made for {self.model} ({len(self.moe_layers)} MoE layers x "
                f"{self.num_experts} experts, fingerprint {self.fingerprint}), expected {shape.name} "
                f"({shape.num_moe_layers} x {shape.num_experts}, fingerprint {shape.fingerprint}); "
                "make a new one with `potluck plan`"
            )

    def check_fits(self) -> None:
        """Raise PlanDoesNotFit if a worker holds more bytes than its budget."""
        for worker, num_experts in zip(self.workers, self.experts_per_worker().tolist(), strict=True):
            needed = num_experts * self.expert_bytes
            if needed > worker.budget_bytes:
                raise PlanDoesNotFit(
                    f"worker {worker.name!r}: {num_experts} experts need {size(needed)}, "
                    f"{size(needed - worker.budget_bytes)} more than its budget_bytes of "
                    f"{size(worker.budget_bytes)}"
                )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write JSON; an existing file is replaced in one step."""
        with replacing(path) as file:
            file.write(self._to_json().encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read and check a plan.

        Raises:
            PlanError: unreadable, another version, an unknown, missing or wrong field; names file and field.
        """
        expected = "a plan: `potluck plan` writes one"
        document = read_json(path, PlanError, expected, most_bytes=MOST_BYTES, most_values=MOST_VALUES)
        try:
            return _from_document(document)
        except PlanError as error:
            raise PlanError(f"{path}: {error}") from error

    def _to_json(self) -> str:
        """Indented where a reader looks, one line for each worker's layer."""
        head: dict[str, Any] = {
            "format": PLAN_FORMAT,
            "version": PLAN_VERSION,
            "model": self.model,
            "fingerprint": self.fingerprint,
            "epoch": self.epoch,
            "policy": self.policy,
            "dtype": self.dtype,
            "expert_bytes": self.expert_bytes,
            "num_experts": self.num_experts,
            "moe_layers": list(self.moe_layers),
        }
        if self.workload is not None:
            head["workload"] = workload_fields(self.workload)
        lines = [f"  {json.dumps(key)}: {json.dumps(value)}," for key, value in head.items()]
        workers = []
        for worker in self.workers:
            fields = {name: getattr(worker, name) for name in (*_WORKER_FIELDS, *_WORKER_COSTS)}
            held = self.experts_of(worker.name)
            layers = ",\n".join(f'      "{layer}": {json.dumps(experts)}' for layer, experts in held.items())
            text = ",\n".join(f"    {json.dumps(key)}: {json.dumps(value)}" for key, value in fields.items())
            experts_text = f"{{\n{layers}\n    }}" if held else "{}"
            workers.append(f'   {{\n{text},\n    "experts": {experts_text}\n   }}')
        return "{\n" + "\n".join(lines) + '\n  "workers": [\n' + ",\n".join(workers) + "\n  ]\n}\n"


MAX_WORKERS = 4096
MAX_PLACES = 2**28
"""Workers x layers x experts: 64 boxes of the largest model there is have a tenth of it."""
MOST_BYTES, MOST_VALUES = 64 * 10**6, 12 * 10**6
"""Of a plan file: every expert of the largest model there is on each of 100 workers."""
_WORKER_FIELDS = ("name", "node", "device", "tier", "budget_bytes")
_WORKER_COSTS = ("ask_s", "expert_s")
_PLAN_FIELDS = (
    "format",
    "version",
    "model",
    "fingerprint",
    "epoch",
    "policy",
    "dtype",
    "expert_bytes",
    "num_experts",
    "moe_layers",
    "workers",
)


def _from_document(document: object) -> Plan:
    if not isinstance(document, dict) or document.get("format") != PLAN_FORMAT:
        raise PlanError(f"format: expected {PLAN_FORMAT!r}; this is not a plan")
    if document.get("version") != PLAN_VERSION:
        raise PlanError(f"version: expected {PLAN_VERSION}, found {shown(document.get('version'))}")
    fields = object_of(document, "", _PLAN_FIELDS, optional=("workload",))
    num_experts = count(fields["num_experts"], "num_experts", least=1, most=MOST_EXPERTS)
    moe_layers = ascending(fields["moe_layers"], "moe_layers")
    if len(moe_layers) > MOST_LAYERS:
        raise PlanError(f"moe_layers: expected at most {MOST_LAYERS} layers, found {len(moe_layers)}")
    if not isinstance(fields["workers"], list) or not 0 < len(fields["workers"]) <= MAX_WORKERS:
        raise PlanError(f"workers: expected a list with at least one worker and at most {MAX_WORKERS}")
    places = (len(fields["workers"]), len(moe_layers), num_experts)
    if math.prod(places) > MAX_PLACES:
        raise PlanError(
            f"num_experts: {places[0]} workers x {places[1]} layers x {num_experts} experts are more than "
            f"{MAX_PLACES}; expected a plan for a model that exists"
        )

    workers = []
    masks = np.zeros(places, dtype=np.bool_)
    rows = {str(layer): row for row, layer in enumerate(moe_layers)}
    for index, item in enumerate(fields["workers"]):
        where = f"workers[{index}]"
        worker = object_of(item, where, (*_WORKER_FIELDS, "experts"), optional=_WORKER_COSTS)
        workers.append(_worker(worker, where))
        if not isinstance(worker["experts"], dict):
            raise PlanError(f"{where}.experts: expected an object of layer -> experts")
        for layer, experts in worker["experts"].items():
            place = f"{where}.experts.{layer}"
            if layer not in rows:
                raise PlanError(f"{where}.experts: expected layers of moe_layers, found {shown(layer)}")
            chosen = ascending(experts, place)
            if chosen and chosen[-1] >= num_experts:
                raise PlanError(f"{place}: expected experts under {num_experts}, found {chosen[-1]}")
            masks[index, rows[layer], list(chosen)] = True
    return Plan(
        model=text(fields["model"], "model"),
        fingerprint=text(fields["fingerprint"], "fingerprint"),
        moe_layers=moe_layers,
        dtype=text(fields["dtype"], "dtype"),
        expert_bytes=count(fields["expert_bytes"], "expert_bytes", least=1),
        workers=tuple(workers),
        holder_table=HolderTable.from_masks(masks),
        policy=text(fields["policy"], "policy"),
        epoch=count(fields["epoch"], "epoch"),
        workload=workload_of_fields(fields["workload"]) if "workload" in fields else None,
    )


def _worker(fields: Mapping[str, Any], where: str) -> PlannedWorker:
    tier = text(fields["tier"], f"{where}.tier")
    if tier not in TIERS:
        raise PlanError(f"{where}.tier: expected {', '.join(TIERS)}, found {shown(tier)}")
    return PlannedWorker(
        name=text(fields["name"], f"{where}.name"),
        node=text(fields["node"], f"{where}.node"),
        device=text(fields["device"], f"{where}.device"),
        tier=tier,
        budget_bytes=count(fields["budget_bytes"], f"{where}.budget_bytes"),
        ask_s=number(fields.get("ask_s", 0.0), f"{where}.ask_s", what="seconds"),
        expert_s=number(fields.get("expert_s", 0.0), f"{where}.expert_s", what="seconds"),
    )
