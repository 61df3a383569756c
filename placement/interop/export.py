"""A plan as a file that another engine takes, with what to tell that engine and what it does otherwise."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from placement.errors import InputError, PlanError
from placement.files.atomic import replacing
from placement.given.stats import RoutingStats
from placement.interop.llamacpp_overrides import tensor_overrides
from placement.interop.sglang_location import expert_location, save_logical_count
from placement.model_shape import ModelShape
from placement.plan import Plan
from placement.units import size


@dataclass(frozen=True, slots=True)
class Exported:
    """`arguments`: for the engine's command line. `notes`: where it does not do what the plan says."""

    file_format: str
    path: str
    arguments: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ExportInputs:
    """What a format is written from; `buffers`: worker name -> llama.cpp buffer."""

    plan: Plan
    shape: ModelShape
    stats: RoutingStats | None = None
    buffers: Mapping[str, str] = field(default_factory=dict)


def export_plan(file_format: str, path: str | os.PathLike[str], inputs: ExportInputs) -> Exported:
    """Write a plan for another engine.

    Args:
        file_format: a key of EXPORTS.

    Raises:
        InputError: an unknown format, or one that needs statistics, without them.
        PlanError: what the engine cannot express.
    """
    check_format(file_format)
    path = os.fspath(path)
    arguments, notes = EXPORTS[file_format](path, inputs)
    return Exported(file_format, path, tuple(arguments), tuple(notes))


def check_format(file_format: str) -> None:
    """Raise InputError for anything but a key of EXPORTS."""
    if file_format not in EXPORTS:
        raise InputError(f"expected {', '.join(EXPORTS)}, found {file_format!r}")


def _export_sglang(path: str, inputs: ExportInputs) -> tuple[list[str], list[str]]:
    plan = inputs.plan
    ranks = [tier for tier in plan.tiers if tier.kind == "vram"]
    others = [
        tier.name
        for tier, held in zip(plan.tiers, plan.experts_per_tier(), strict=True)
        if tier.kind != "vram" and held
    ]
    if not ranks or others:
        raise PlanError(
            f"SGLang keeps every expert on a GPU; expected a plan with vram alone, found "
            f"experts on {', '.join(others) or 'none'}"
        )
    location = expert_location(plan, inputs.shape, [tier.name for tier in ranks], inputs.stats)
    location.save(path)
    slots = location.physical_to_logical.shape[1] // len(ranks)
    needed_bytes = slots * int(plan.expert_bytes.sum())
    small = [f"{t.name} ({size(t.budget_bytes)})" for t in ranks if t.budget_bytes < needed_bytes]
    notes = [f"SGLang gives every rank {slots} experts a layer, {size(needed_bytes)}"]
    if small:
        notes[0] += f": more than the plan has room for on {', '.join(small)}"
    return location.arguments(path), notes


def _export_sglang_counts(path: str, inputs: ExportInputs) -> tuple[list[str], list[str]]:
    if inputs.stats is None:
        raise InputError("expected --stats FILE, whose counts SGLang is to balance by")
    save_logical_count(inputs.stats, inputs.shape, path)
    return ["--init-expert-location", path], ["SGLang places experts by these counts, not by the plan"]


def _export_llamacpp(path: str, inputs: ExportInputs) -> tuple[list[str], list[str]]:
    overrides = tensor_overrides(inputs.plan, inputs.stats, inputs.buffers)
    with replacing(path) as file:
        file.write(f"{overrides.command_line()}\n".encode())
    split, layers = len(overrides.split_layers), len(inputs.plan.moe_layers)
    notes = []
    if split:
        notes.append(
            f"llama.cpp keeps a layer's experts together: {split} of {layers} MoE layers that the plan "
            "divides go where most of their choices are, and may not fit there"
        )
        if inputs.plan.policy != WHOLE_LAYERS:
            notes[0] += f"; --policy {WHOLE_LAYERS} divides fewer"
    return overrides.arguments(), notes


WHOLE_LAYERS = "whole-layers"

EXPORTS: Mapping[str, Callable[[str, ExportInputs], tuple[list[str], list[str]]]] = MappingProxyType(
    {"sglang": _export_sglang, "sglang-counts": _export_sglang_counts, "llama.cpp": _export_llamacpp}
)
"""Format -> writes the file; gives arguments and notes."""
