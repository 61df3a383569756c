"""What every tier does alike, wherever its experts lie: checks, the form that is kept, the kernels' call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from placement.errors import CheckpointError, PlanError
from placement.experts import Experts
from placement.weight_format import BFLOAT16, ExpertFormat, WeightFormat
from transport.expert_rows import ExpertRows
from workers.fixed_point import PartialSum
from workers.formats.checkpoint import Expert, StoredMatrix
from workers.kernels import ExpertNotHeld, ExpertWeights, moe_partial_sum
from workers.model_config import Step35Config


def check_experts(config: Step35Config, experts: Experts) -> None:
    """Raises PlanError for a layer without routed experts, an id out of range or given twice."""
    for layer, ids in experts.items():
        if layer not in config.moe_layers:
            raise PlanError(f"layer {layer} has no routed experts: expected one of {list(config.moe_layers)}")
        if not 0 <= min(ids) <= max(ids) < config.moe_num_experts or len(set(ids)) != len(ids):
            raise PlanError(
                f"layer {layer}: expert ids {list(ids)} are not distinct ids below {config.moe_num_experts}: "
                "make the plan for this model"
            )


def kept_format(experts: Sequence[Expert], wanted: ExpertFormat, path: Path) -> ExpertFormat:
    """What a layer's experts are kept in: as they are stored, if that gives the bits of the wanted forms.

    Args:
        experts: of one layer, at least one.

    Raises:
        CheckpointError: stored so, one of them does not give such numbers, or float16 is beside other forms
            in a bfloat16 run.
    """
    kept = []
    for place, form in enumerate((wanted.gate, wanted.up, wanted.down)):
        found = {_kept(expert[place], form, path) for expert in experts}
        if len(found) > 1 and form == BFLOAT16:
            # A float16 expert would be rounded or not, by what the plan puts beside it.
            names = " and ".join(sorted(kept.name for kept in found))
            raise CheckpointError(
                f"{path}: experts in the layer of {experts[0][place].name} are stored as {names}; expected "
                "one form in a layer, or a run in float32 (--dtype, or --quant of a plan)"
            )
        kept.append(found.pop() if len(found) == 1 else form)
    return ExpertFormat(*kept)


def _kept(part: StoredMatrix, wanted: WeightFormat, path: Path) -> WeightFormat:
    if not part.form.gives(wanted):
        raise CheckpointError(
            f"{path}: tensor {part.name} is stored as {part.form.name}, expected {wanted.name}: make the "
            "plan for this checkpoint, or use a checkpoint in that form"
        )
    return part.form.kept_as(wanted)


def matrix_shapes(config: Step35Config) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Rows and columns of an expert's gate, up and down."""
    hidden, inner = config.hidden_size, config.moe_intermediate_size
    return (inner, hidden), (inner, hidden), (hidden, inner)


def slot_table(config: Step35Config, slots: Mapping[int, int]) -> Tensor:
    """int32 [E]: the slot of each expert of a layer, -1 for those that are not here."""
    table = torch.full((config.moe_num_experts,), -1, dtype=torch.int32)
    table[list(slots)] = torch.tensor(list(slots.values()), dtype=torch.int32)
    return table


def partial_sum(weights: ExpertWeights, layer: int, rows: ExpertRows) -> PartialSum:
    """The sum of the rows' experts, all of them in `weights`; raises ExpertNotHeld, naming the layer."""
    try:
        return PartialSum(*moe_partial_sum(weights, rows))
    except ExpertNotHeld as error:
        raise ExpertNotHeld(f"layer {layer}: {error}") from None
