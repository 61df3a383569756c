"""A plan: which worker holds each expert, in which tier of memory. Saved as JSON (docs/formats.md)."""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from placement.assign import ReplicaCosts
from placement.atomic import replacing
from placement.errors import PlanDoesNotFit, PlanError
from placement.holders import NO_WORKER, HolderTable
from placement.model_shape import ModelShape

PLAN_FORMAT = "potluck-plan"
PLAN_VERSION = 1

# Experts of the worker of this name live in the head's own process: no message is needed for them.
LOCAL_WORKER = "head"

TIERS = ("vram", "ram", "disk")


@dataclass(frozen=True, slots=True)
class PlannedWorker:
    """One process that holds experts on one device. `device` is a torch device string such as "cuda:0".

    `ask_s` and `expert_s` are what the choice among replicas weighs (`placement.assign.ReplicaCosts`), 0
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
    the size of one expert in that form.

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

    def __post_init__(self) -> None:
        names = [worker.name for worker in self.workers]
        for name in names:
            if names.count(name) > 1:
                raise PlanError(f"workers: expected unique names, found {name!r} {names.count(name)} times")
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
                    f"worker {worker.name!r}: {num_experts} experts need {needed} bytes, "
                    f"{needed - worker.budget_bytes} more than its budget of {worker.budget_bytes}"
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
        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise PlanError(f"{path}: {error.strerror}; `potluck plan` writes a plan") from error
        except ValueError as error:
            raise PlanError(f"{path}: not JSON: {error}") from error
        try:
            return _from_document(document)
        except PlanError as error:
            raise PlanError(f"{path}: {error}") from error

    def _to_json(self) -> str:
        """Indented where a reader looks, one line for each worker's layer."""
        head = {
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


MAX_EXPERTS = 65_535
"""Of a layer: routing files number them in 16 bits, and one number stands for none."""
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
        raise PlanError(f"version: expected {PLAN_VERSION}, found {document.get('version')!r}")
    fields = _object(document, "", _PLAN_FIELDS)
    num_experts = _count(fields["num_experts"], "num_experts", least=1, most=MAX_EXPERTS)
    moe_layers = _ascending(fields["moe_layers"], "moe_layers")
    if not isinstance(fields["workers"], list) or not fields["workers"]:
        raise PlanError("workers: expected a list with at least one worker")

    workers = []
    masks = np.zeros((len(fields["workers"]), len(moe_layers), num_experts), dtype=np.bool_)
    rows = {str(layer): row for row, layer in enumerate(moe_layers)}
    for index, item in enumerate(fields["workers"]):
        where = f"workers[{index}]"
        worker = _object(item, where, (*_WORKER_FIELDS, "experts"), optional=_WORKER_COSTS)
        workers.append(_worker(worker, where))
        if not isinstance(worker["experts"], dict):
            raise PlanError(f"{where}.experts: expected an object of layer -> experts")
        for layer, experts in worker["experts"].items():
            place = f"{where}.experts.{layer}"
            if layer not in rows:
                raise PlanError(f"{place}: expected a layer of moe_layers")
            chosen = _ascending(experts, place)
            if chosen and chosen[-1] >= num_experts:
                raise PlanError(f"{place}: expected experts under {num_experts}, found {chosen[-1]}")
            masks[index, rows[layer], list(chosen)] = True
    return Plan(
        model=_text(fields["model"], "model"),
        fingerprint=_text(fields["fingerprint"], "fingerprint"),
        moe_layers=moe_layers,
        dtype=_text(fields["dtype"], "dtype"),
        expert_bytes=_count(fields["expert_bytes"], "expert_bytes", least=1),
        workers=tuple(workers),
        holder_table=HolderTable.from_masks(masks),
        policy=_text(fields["policy"], "policy"),
        epoch=_count(fields["epoch"], "epoch"),
    )


def _worker(fields: Mapping[str, Any], where: str) -> PlannedWorker:
    tier = _text(fields["tier"], f"{where}.tier")
    if tier not in TIERS:
        raise PlanError(f"{where}.tier: expected {', '.join(TIERS)}, found {tier!r}")
    return PlannedWorker(
        name=_text(fields["name"], f"{where}.name"),
        node=_text(fields["node"], f"{where}.node"),
        device=_text(fields["device"], f"{where}.device"),
        tier=tier,
        budget_bytes=_count(fields["budget_bytes"], f"{where}.budget_bytes"),
        ask_s=_seconds(fields.get("ask_s", 0.0), f"{where}.ask_s"),
        expert_s=_seconds(fields.get("expert_s", 0.0), f"{where}.expert_s"),
    )


def _object(
    value: object, where: str, names: tuple[str, ...], optional: tuple[str, ...] = ()
) -> Mapping[str, Any]:
    prefix = f"{where}." if where else ""
    if not isinstance(value, dict):
        raise PlanError(f"{where}: expected an object with {', '.join(names)}")
    for name in names:
        if name not in value:
            raise PlanError(f"{prefix}{name}: missing")
    for name in value:
        if name not in names and name not in optional:
            raise PlanError(f"{prefix}{name}: unknown field; expected {', '.join((*names, *optional))}")
    return value


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise PlanError(f"{where}: expected text, found {value!r}")
    return value


def _count(value: object, where: str, least: int = 0, most: int = 2**63 - 1) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise PlanError(f"{where}: expected a whole number of at least {least}, found {value!r}")
    if value > most:
        raise PlanError(f"{where}: expected a whole number of at most {most}, found a larger one")
    return value


def _seconds(value: object, where: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= sys.float_info.max:
        raise PlanError(f"{where}: expected seconds, a number of at least 0, found {value!r}")
    return float(value)


def _ascending(value: object, where: str) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise PlanError(f"{where}: expected a list of whole numbers, found {value!r}")
    numbers = tuple(_count(item, where) for item in value)
    for before, after in itertools.pairwise(numbers):
        if after <= before:
            raise PlanError(f"{where}: expected ascending numbers, each once, found {after} after {before}")
    return numbers
