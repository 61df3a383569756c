"""Plans as JSON (docs/formats.md): version 2 is written, version 1 is read too."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from placement.errors import PlanError
from placement.files.atomic import replacing
from placement.files.json_file import read_json
from placement.files.quote import quote
from placement.holders import HolderTable
from placement.model_shape import MOST_EXPERTS, MOST_LAYERS
from placement.plan import TIER_KINDS, Plan, PlannedLayer, PlannedTier, like_layers
from placement.plan_fields import ascending, count, number, object_of, text
from placement.weight_format import BFLOAT16, FLOAT32, run_dtype_of
from placement.workload import Workload
from placement.workload_fields import workload_fields, workload_of_fields

PLAN_FORMAT = "potluck-plan"
PLAN_VERSION = 2

MAX_TIERS = 4096
MAX_PLACES = 2**28
"""Tiers x layers x experts: 64 boxes of the largest model there is have a tenth of it."""
MOST_BYTES, MOST_VALUES = 64 * 10**6, 12 * 10**6
"""Of a plan file: every expert of the largest model there is on each of 100 tiers."""
MOST_DIGESTS = 4096
MOST_EXPERT_BYTES = 2**36
"""Of one expert: so many, times the most layers and experts there may be, are still counted in 64 bits."""
_MOST_DIGITS = 6
"""Of a layer's number."""
_MOST_COST_S = 1e6
"""Costs are added up over thousands of experts."""

_DTYPES = (FLOAT32.name, BFLOAT16.name)
_TIER_FIELDS = ("name", "kind", "device", "budget_bytes")
_TIER_COSTS = ("ask_s", "expert_s")
_COMMON = ("format", "version", "model", "fingerprint", "epoch", "policy", "dtype", "num_experts", "workers")


def write_plan(plan: Plan, path: str | os.PathLike[str]) -> None:
    """Write JSON; an existing file is replaced in one step."""
    with replacing(path) as file:
        file.write(_to_json(plan).encode())


def read_plan(path: str | os.PathLike[str]) -> Plan:
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


def _to_json(plan: Plan) -> str:
    """Indented where a reader looks, one line for each layer."""
    head: dict[str, Any] = {
        "format": PLAN_FORMAT,
        "version": PLAN_VERSION,
        "model": plan.model,
        "fingerprint": plan.fingerprint,
        "epoch": plan.epoch,
        "policy": plan.policy,
        "dtype": plan.dtype,
        "num_experts": plan.num_experts,
    }
    layers = {layer.index: {"form": layer.form, "expert_bytes": layer.expert_bytes} for layer in plan.layers}
    parts = [f'"{key}": {json.dumps(value)}' for key, value in head.items()]
    parts.append(f'"layers": {_object(layers, " ")}')
    if plan.workload is not None:
        parts.append(f'"assumes": {json.dumps(workload_fields(plan.workload))}')
    if plan.survive:
        parts.append(f'"survive": {plan.survive}')
    if plan.digests:
        parts.append(f'"digests": {_object(plan.digests, " ")}')
    workers = []
    for worker in plan.workers:
        tiers = [_tier_json(plan, index) for index in worker.tiers]
        name, node = json.dumps(worker.name), json.dumps(worker.node)
        workers.append(f'{{"name": {name}, "node": {node}, "tiers": [\n   ' + ",\n   ".join(tiers) + "\n  ]}")
    parts.append('"workers": [\n  ' + ",\n  ".join(workers) + "\n ]")
    return "{\n " + ",\n ".join(parts) + "\n}\n"


def _tier_json(plan: Plan, index: int) -> str:
    tier = plan.tiers[index]
    fields = {name: getattr(tier, name) for name in (*_TIER_FIELDS, *_TIER_COSTS)}
    experts = _object(plan.experts_of_tier(index), "   ")
    return json.dumps(fields)[:-1] + f',\n    "experts": {experts}}}'


def _object(values: Mapping[Any, Any], indent: str) -> str:
    """A JSON object, a line for each key."""
    lines = [f'{indent} "{key}": {json.dumps(value)}' for key, value in values.items()]
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}" if lines else "{}"


def _from_document(document: object) -> Plan:
    if not isinstance(document, dict) or document.get("format") != PLAN_FORMAT:
        raise PlanError(f"format: expected {PLAN_FORMAT!r}; this is not a plan")
    version = document.get("version")
    if type(version) is int and version in _READERS:
        return _READERS[version](document)
    raise PlanError(f"version: expected 1 to {PLAN_VERSION}, found {quote(version)}")


def _version_2(document: Mapping[str, Any]) -> Plan:
    fields = object_of(document, "", (*_COMMON, "layers"), optional=("assumes", "digests", "survive"))
    layers = _layers(fields["layers"])
    tiers, held = [], []
    for where, item in _items(fields["workers"], "workers"):
        worker = object_of(item, where, ("name", "node", "tiers"))
        name, node = text(worker["name"], f"{where}.name"), text(worker["node"], f"{where}.node")
        for place, part in _items(worker["tiers"], f"{where}.tiers"):
            tier = object_of(part, place, (*_TIER_FIELDS, "experts"), optional=_TIER_COSTS)
            tiers.append(_tier(tier, place, node, worker=name, kind="kind"))
            held.append((place, tier["experts"]))
    dtype = _dtype(fields["dtype"])
    return Plan(
        model=text(fields["model"], "model"),
        fingerprint=text(fields["fingerprint"], "fingerprint"),
        layers=layers,
        dtype=dtype,
        tiers=tuple(tiers),
        holder_table=_holders(held, fields["num_experts"], [layer.index for layer in layers]),
        policy=text(fields["policy"], "policy"),
        epoch=count(fields["epoch"], "epoch"),
        workload=_workload(fields, "assumes"),
        digests=_digests(fields.get("digests", {})),
        survive=count(fields.get("survive", 0), "survive", most=MAX_TIERS),
    )


def _version_1(document: Mapping[str, Any]) -> Plan:
    """Every worker had one device then, and all layers one form."""
    fields = object_of(document, "", (*_COMMON, "expert_bytes", "moe_layers"), optional=("workload",))
    form = text(fields["dtype"], "dtype")
    moe_layers = ascending(fields["moe_layers"], "moe_layers")
    _check_number_of_layers(moe_layers, "moe_layers")
    tiers, held = [], []
    for where, item in _items(fields["workers"], "workers"):
        names = ("name", "node", "device", "tier", "budget_bytes", "experts")
        worker = object_of(item, where, names, optional=_TIER_COSTS)
        tiers.append(_tier(worker, where, text(worker["node"], f"{where}.node"), worker="", kind="tier"))
        held.append((where, worker["experts"]))
    expert_bytes = count(fields["expert_bytes"], "expert_bytes", least=1, most=MOST_EXPERT_BYTES)
    layers, dtype = like_layers(moe_layers, form, expert_bytes), run_dtype_of(form)
    return Plan(
        model=text(fields["model"], "model"),
        fingerprint=text(fields["fingerprint"], "fingerprint"),
        layers=layers,
        dtype=dtype,
        tiers=tuple(tiers),
        holder_table=_holders(held, fields["num_experts"], moe_layers),
        policy=text(fields["policy"], "policy"),
        epoch=count(fields["epoch"], "epoch"),
        workload=_workload(fields, "workload"),
    )


def _workload(fields: Mapping[str, Any], name: str) -> Workload | None:
    if fields.get(name) is None:
        return None
    return workload_of_fields(fields[name], name)


_READERS = {1: _version_1, 2: _version_2}


def _items(value: object, where: str) -> Iterator[tuple[str, object]]:
    """Place and value of each item of a list with at least one."""
    if not isinstance(value, list) or not 0 < len(value) <= MAX_TIERS:
        raise PlanError(f"{where}: expected a list of at least one and at most {MAX_TIERS}")
    return ((f"{where}[{index}]", item) for index, item in enumerate(value))


def _layers(value: object) -> tuple[PlannedLayer, ...]:
    if not isinstance(value, dict) or not value:
        raise PlanError(f"layers: expected an object of layer -> form and expert_bytes, found {quote(value)}")
    _check_number_of_layers(value, "layers")
    layers: list[PlannedLayer] = []
    for key, item in value.items():
        where = f"layers.{key[:_MOST_DIGITS]}"
        is_number = key.isdecimal() and key.isascii() and len(key) <= _MOST_DIGITS
        if not is_number or (layers and int(key) <= layers[-1].index):
            raise PlanError(f"layers: expected ascending layer numbers, found {quote(key)}")
        layer = object_of(item, where, ("form", "expert_bytes"))
        size = count(layer["expert_bytes"], f"{where}.expert_bytes", least=1, most=MOST_EXPERT_BYTES)
        layers.append(PlannedLayer(int(key), text(layer["form"], f"{where}.form"), size))
    return tuple(layers)


def _check_number_of_layers(layers: Sequence[object] | Mapping[str, object], where: str) -> None:
    if len(layers) > MOST_LAYERS:
        raise PlanError(f"{where}: expected at most {MOST_LAYERS} layers, found {len(layers)}")


def _tier(fields: Mapping[str, Any], where: str, node: str, *, worker: str, kind: str) -> PlannedTier:
    found = text(fields[kind], f"{where}.{kind}")
    if found not in TIER_KINDS:
        raise PlanError(f"{where}.{kind}: expected {', '.join(TIER_KINDS)}, found {quote(found)}")
    return PlannedTier(
        name=text(fields["name"], f"{where}.name"),
        node=node,
        device=text(fields["device"], f"{where}.device"),
        kind=found,
        budget_bytes=count(fields["budget_bytes"], f"{where}.budget_bytes"),
        ask_s=number(fields.get("ask_s", 0.0), f"{where}.ask_s", most=_MOST_COST_S, what="seconds"),
        expert_s=number(fields.get("expert_s", 0.0), f"{where}.expert_s", most=_MOST_COST_S, what="seconds"),
        worker=worker,
    )


def _holders(
    held: Sequence[tuple[str, object]], num_experts: object, moe_layers: Sequence[int]
) -> HolderTable:
    """`held`: of each tier where it stands in the file, and its object of layer -> experts."""
    number_of = count(num_experts, "num_experts", least=1, most=MOST_EXPERTS)
    places = (len(held), len(moe_layers), number_of)
    if math.prod(places) > MAX_PLACES:
        raise PlanError(
            f"num_experts: {places[0]} tiers x {places[1]} layers x {number_of} experts are more than "
            f"{MAX_PLACES}; expected a plan for a model that exists"
        )
    masks: NDArray[np.bool_] = np.zeros(places, dtype=np.bool_)
    rows = {str(layer): row for row, layer in enumerate(moe_layers)}
    for index, (where, experts_by_layer) in enumerate(held):
        if not isinstance(experts_by_layer, dict):
            raise PlanError(f"{where}.experts: expected an object of layer -> experts")
        for layer, experts in experts_by_layer.items():
            place = f"{where}.experts.{layer}"
            if layer not in rows:
                raise PlanError(f"{where}.experts: expected layers of the plan, found {quote(layer)}")
            chosen = ascending(experts, place)
            if chosen and chosen[-1] >= number_of:
                raise PlanError(f"{place}: expected experts under {number_of}, found {chosen[-1]}")
            masks[index, rows[layer], list(chosen)] = True
    return HolderTable.from_masks(masks)


def _dtype(value: object) -> str:
    found = text(value, "dtype")
    if found not in _DTYPES:
        raise PlanError(f"dtype: expected {' or '.join(_DTYPES)}, found {quote(found)}")
    return found


def _digests(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or len(value) > MOST_DIGESTS:
        raise PlanError(f"digests: expected an object of at most {MOST_DIGESTS} file names -> digests")
    return {
        text(file, "digests"): text(digest, f"digests of {quote(file)}") for file, digest in value.items()
    }
