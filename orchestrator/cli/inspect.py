"""`potluck inspect`: what is in a model's files, what it needs, and whether that fits here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.cli.inputs import model_folder
from orchestrator.cli.options import Json
from orchestrator.cli.output import console, print_json, print_note, table
from placement.errors import InputError
from placement.units import size
from workers.formats.contents import ModelContents, Part, TypeRun, model_contents, type_runs
from workers.formats.open_model import model_name
from workers.memory.budget import PROCESS_BYTES, Need, missing_bytes
from workers.memory.free import FreeMemory, free_memory

DEFAULT_CONTEXT = 4096
_APART = (Part.EXPERTS, Part.MTP)


def inspect(
    model: Annotated[Path, typer.Argument(help="Model directory or GGUF file.", metavar="MODEL")],
    context: Annotated[
        int | None, typer.Option(min=1, help=f"Positions in the KV cache; default {DEFAULT_CONTEXT}.")
    ] = None,
    json: Json = False,
) -> None:
    """Say what is in a model's files, what it needs and whether that fits here."""
    contents = model_contents(model_folder(model))
    shape = contents.config.shape(model_name(model))
    most = shape.max_positions
    if context is not None and context > most:
        raise InputError(f"--context {context}: expected at most {most}, for which the model was made")
    positions = min(context or DEFAULT_CONTEXT, most)
    # MTP layers that the files lack keep no keys.
    kv_cache_bytes = shape.kv_cache_bytes(positions, with_mtp=contents.num_bytes(Part.MTP) > 0)
    fit = Fit(
        contents.num_bytes() - contents.num_bytes(*_APART),
        contents.num_bytes(Part.EXPERTS),
        contents.num_bytes(Part.MTP),
        kv_cache_bytes,
        free_memory(),
    )
    runs = type_runs(contents.tensors)
    if json:
        print_json(document(shape.name, contents, runs, positions, fit))
        return
    for note in contents.notes:
        print_note(note)
    config = contents.config
    layers = (
        f"{config.num_hidden_layers} layers, {len(config.moe_layers)} of them with {config.moe_num_experts} "
        f"experts, of which a token uses {config.moe_top_k}"
    )
    console.print(f"{shape.name}: {layers}; {len(contents.tensors)} tensors\n")
    console.print(type_table(runs), need_table(positions, fit), verdict(fit), sep="\n")


@dataclass(frozen=True, slots=True)
class Fit:
    """What a model takes, in bytes: `head` is all of the trunk but its routed experts."""

    head: int
    experts: int
    mtp: int
    kv_cache: int
    free: FreeMemory

    @property
    def needs(self) -> list[Need]:
        """All in one process."""
        return [
            Need("head", self.head),
            Need("routed experts", self.experts),
            Need("MTP layers", self.mtp),
            Need("KV cache", self.kv_cache),
            Need("the process itself", PROCESS_BYTES),
        ]

    @property
    def needed_bytes(self) -> int:
        return sum(need.num_bytes for need in self.needs)

    @property
    def missing_bytes(self) -> int:
        return missing_bytes(self.needs, self.free)

    @property
    def room_for_experts(self) -> int:
        """Bytes that are left for experts beside everything else, at most all that they take."""
        left = self.free.usable_bytes - (self.needed_bytes - self.experts)
        return max(0, min(self.experts, left))


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


def need_table(positions: int, fit: Fit) -> Any:
    """What a run takes in memory."""
    rows = [(need.what, size(need.num_bytes)) for need in fit.needs]
    rows += [("all", size(fit.needed_bytes)), ("free here", size(fit.free.usable_bytes))]
    return table(f"Memory, with {positions} positions", ("", "bytes"), rows)


def verdict(fit: Fit) -> str:
    """One sentence: whether it fits, and what does not."""
    if not fit.missing_bytes:
        return "It fits into this machine's memory."
    if fit.room_for_experts:
        part = fit.room_for_experts / fit.experts
        return (
            f"{size(fit.missing_bytes)} are missing ({fit.free.told_by}): {100 * part:.0f}% of the routed "
            "experts fit beside the rest; the others need other boxes or the disk."
        )
    return (
        f"{size(fit.missing_bytes)} are missing ({fit.free.told_by}): not even the head fits; take a smaller "
        "context, a smaller file or a larger box."
    )


def document(
    name: str, contents: ModelContents, runs: Sequence[TypeRun], positions: int, fit: Fit
) -> dict[str, Any]:
    """The JSON that scripts rely on (docs/json.md)."""
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
        "head_bytes": fit.head,
        "expert_bytes": fit.experts,
        "mtp_bytes": fit.mtp,
        "total_bytes": contents.num_bytes(),
        "context": positions,
        "kv_cache_bytes": fit.kv_cache,
        "needed_bytes": fit.needed_bytes,
        "free_bytes": fit.free.usable_bytes,
        "missing_bytes": fit.missing_bytes,
        "fits": not fit.missing_bytes,
        "notes": list(contents.notes),
    }
