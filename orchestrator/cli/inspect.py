"""`potluck inspect`: what is in a model's files, what it needs, and whether that fits here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.cli.inputs import check_mtp, model_folder
from orchestrator.cli.options import Json, Kv
from orchestrator.cli.output import console, print_json, print_note, table
from orchestrator.run_memory import Demand, expert_bytes, head_needs
from orchestrator.runnable import DEFAULT_DTYPE
from placement.errors import CheckpointError, InputError
from placement.kv_size import KvForm
from placement.model_shape import ModelShape
from placement.units import size
from placement.workload import DEFAULT_CONTEXT
from workers.formats.contents import ModelContents, Part, TypeRun, model_contents, type_runs
from workers.formats.open_model import model_name
from workers.memory.budget import PROCESS_BYTES, Need, missing_bytes
from workers.memory.free import FreeMemory
from workers.memory.reservations import free_memory
from workers.tiers import least_cache_bytes

_APART = (Part.EXPERTS, Part.MTP)


def inspect(
    model: Annotated[Path, typer.Argument(help="Model directory or GGUF file.", metavar="MODEL")],
    context: Annotated[
        int | None, typer.Option(min=1, help=f"Positions in the KV cache; default {DEFAULT_CONTEXT}.")
    ] = None,
    mtp: Annotated[int, typer.Option(min=0, help="Drafts a step, 0 to 3.")] = 0,
    kv: Kv = None,
    json: Json = False,
) -> None:
    """Say what is in a model's files, what it needs and whether that fits here."""
    contents = model_contents(model_folder(model))
    shape = contents.config.shape(model_name(model))
    most = shape.max_positions
    if context is not None and context > most:
        raise InputError(f"--context {context}: expected at most {most:,} positions, the model's own limit")
    demand = Demand(min(context or DEFAULT_CONTEXT, most), num_drafts=mtp, kv_form=kv)
    fit = fit_of(contents, shape, demand, free_memory())
    runs = type_runs(contents.tensors)
    if json:
        print_json(document(shape.name, contents, runs, demand, fit))
        return
    for note in contents.notes:
        print_note(note)
    config = contents.config
    layers = (
        f"{config.num_hidden_layers} layers, {len(config.moe_layers)} of them with {config.moe_num_experts} "
        f"experts, of which a token uses {config.moe_top_k}"
    )
    console.print(f"{shape.name}: {layers}; {len(contents.tensors)} tensors\n")
    console.print(type_table(runs), need_table(demand, fit), verdict(fit), sep="\n")


@dataclass(frozen=True, slots=True)
class Fit:
    """What a run of `potluck generate` takes here, in bytes.

    Attributes:
        head: its weights, KV cache and activations.
        experts: all of them.
        least_cache: of experts on a disk.
        problem: why the files do not load, None where nothing is seen.
    """

    head: tuple[Need, ...]
    experts: int
    least_cache: int
    free: FreeMemory
    problem: str | None = None

    @property
    def needs(self) -> list[Need]:
        """All in one process."""
        return [*self._beside_experts, Need("routed experts", self.experts)]

    @property
    def needed_bytes(self) -> int:
        return sum(need.num_bytes for need in self.needs)

    @property
    def missing_bytes(self) -> int:
        return missing_bytes(self.needs, self.free)

    @property
    def room_for_experts(self) -> int:
        """Bytes that are left for experts beside everything else, at most all that they take."""
        return max(0, min(self.experts, self._left_bytes))

    @property
    def process_decides(self) -> bool:
        """Whether the smallest cache fits but for what a process takes itself, a figure on the safe side."""
        return self._left_bytes < self.least_cache <= self._left_bytes + PROCESS_BYTES

    @property
    def _left_bytes(self) -> int:
        return self.free.usable_bytes - sum(need.num_bytes for need in self._beside_experts)

    @property
    def _beside_experts(self) -> list[Need]:
        return [*self.head, Need("the process itself", PROCESS_BYTES)]


def fit_of(contents: ModelContents, shape: ModelShape, demand: Demand, free: FreeMemory) -> Fit:
    """What a run takes in the dtype that it has unless told otherwise, and whether its files are whole.

    Raises:
        InputError: the files cannot give so many drafts.
    """
    try:
        contents.check()
        check_mtp(contents, demand.num_drafts)
        problem = None
    except CheckpointError as error:
        problem = str(error)
    of_layer = expert_bytes(contents, DEFAULT_DTYPE)
    largest = max(of_layer.values(), default=0)
    head = tuple(head_needs(contents, shape, DEFAULT_DTYPE, demand))
    experts = shape.num_experts * sum(of_layer.values())
    least_cache = least_cache_bytes(shape.num_routed_experts, largest)
    return Fit(head, experts, least_cache, free, problem)


def type_table(runs: Sequence[TypeRun]) -> Any:
    """Matrices of a part that have the same types in the same layers share a row."""
    rows = []
    for part, of_part in groupby(runs, key=lambda run: run.part):
        by_matrix: dict[str, list[TypeRun]] = {}
        for run in of_part:
            by_matrix.setdefault(run.matrix, []).append(run)
        alike: dict[tuple[tuple[str, tuple[int, ...]], ...], list[str]] = {}
        for matrix, its_runs in by_matrix.items():
            alike.setdefault(tuple((run.form, run.layers) for run in its_runs), []).append(matrix)
        for forms, matrices in alike.items():
            num_bytes = sum(run.num_bytes for matrix in matrices for run in by_matrix[matrix])
            types = ", ".join(f"{form} {layer_ranges(layers)}".rstrip() for form, layers in forms)
            name = part.value if matrices == [part.value] else f"{part.value}: {', '.join(matrices)}"
            rows.append((name, types, size(num_bytes)))
    return table("Types", ("matrices", "type and layers", "bytes"), rows)


def layer_ranges(layers: Sequence[int]) -> str:
    """Layers in short: "3-7, 9" or "3-43 by 2"; "" for none."""
    pieces, at = [], 0
    while at < len(layers):
        step = layers[at + 1] - layers[at] if at + 1 < len(layers) else 1
        end = at
        while end + 1 < len(layers) and layers[end + 1] - layers[end] == step:
            end += 1
        if step > 1 and end - at < 3:
            # Too few for a pattern.
            end, step = at, 1
        text = str(layers[at]) if end == at else f"{layers[at]}-{layers[end]}"
        pieces.append(text if step == 1 else f"{text} by {step}")
        at = end + 1
    return ", ".join(pieces)


def need_table(demand: Demand, fit: Fit) -> Any:
    """What a run takes in memory."""
    rows = [(need.what, size(need.num_bytes)) for need in fit.needs]
    rows += [
        ("all", size(fit.needed_bytes)),
        ("free here, less what stays free", size(fit.free.usable_bytes)),
    ]
    drafts = f" and {demand.num_drafts} drafts a step" if demand.num_drafts else ""
    kept = f"{demand.positions:,} positions of keys and values in {_kv_form(demand)}"
    return table(f"Memory, with {kept}{drafts}", ("", "bytes"), rows)


def _kv_form(demand: Demand) -> KvForm:
    return demand.kv_form or KvForm.of(DEFAULT_DTYPE)


def verdict(fit: Fit) -> str:
    """One sentence: whether it runs, and what does not fit."""
    if fit.problem is not None:
        return f"It does not run: {fit.problem}"
    if not fit.missing_bytes:
        return "It fits into this machine's memory."
    missing = f"{size(fit.missing_bytes)} are missing ({fit.free.told_by})"
    if fit.room_for_experts >= fit.least_cache:
        percent = 100 * fit.room_for_experts // fit.experts
        return (
            f"{missing}: {percent}% of the routed experts fit beside the rest. `potluck generate` keeps the "
            f"experts on disk then, with a cache for {percent}% of them; other boxes may hold them in memory."
        )
    if fit.process_decides:
        return (
            f"{missing}: the head and the smallest cache of experts fit, but not beside all of the "
            f"{size(PROCESS_BYTES)} that the process may take; `potluck generate` says whether it runs."
        )
    return (
        f"{missing}: not even the head and the smallest cache of experts fit; take a smaller context, a "
        "smaller file or a larger box."
    )


def document(
    name: str, contents: ModelContents, runs: Sequence[TypeRun], demand: Demand, fit: Fit
) -> dict[str, Any]:
    """The JSON that scripts rely on (docs/json.md)."""
    weights, kv_cache, activations = (need.num_bytes for need in fit.head)
    return {
        "model": name,
        "tensors": len(contents.tensors),
        "types": [
            {
                "part": run.part.value,
                "matrix": run.matrix,
                "type": run.form,
                "layers": list(run.layers),
                "bytes": run.num_bytes,
            }
            for run in runs
        ],
        "head_bytes": contents.num_bytes() - contents.num_bytes(*_APART),
        "expert_bytes": contents.num_bytes(Part.EXPERTS),
        "mtp_bytes": contents.num_bytes(Part.MTP),
        "total_bytes": contents.num_bytes(),
        "context": demand.positions,
        "drafts": demand.num_drafts,
        "kv": _kv_form(demand).value,
        "weight_bytes": weights,
        "kv_cache_bytes": kv_cache,
        "activation_bytes": activations,
        "process_bytes": PROCESS_BYTES,
        "needed_bytes": fit.needed_bytes,
        "free_bytes": fit.free.usable_bytes,
        "missing_bytes": fit.missing_bytes,
        "problem": fit.problem,
        "fits": not fit.missing_bytes and fit.problem is None,
        "notes": list(contents.notes),
    }
