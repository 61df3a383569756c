"""The routed experts that one process holds in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from placement.errors import CheckpointError, PlanError
from placement.weight_format import FLOAT32, ExpertFormat
from transport.expert_rows import ExpertRows
from workers.fixed_point import PartialSum
from workers.formats.checkpoint import Checkpoint, StoredMatrix
from workers.kernels import ExpertMatrices, ExpertNotHeld, ExpertWeights, moe_partial_sum
from workers.kernels.expert_matrices import TORCH_DTYPES
from workers.model_config import Step35Config

__all__ = ["ExpertNotHeld", "ExpertStore", "PartialSum", "in_one_form"]

# The files are unmapped after this many bytes were read from them, so that pages of experts that are
# already copied do not count as this process's memory.
RELEASE_AFTER_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True, eq=False)
class ExpertStore:
    """Experts in memory, one contiguous tensor per layer and matrix.

    Attributes:
        experts: layer -> the ids it holds, in the order they lie in memory.
        top_k: the model's experts per token.
    """

    experts: Mapping[int, tuple[int, ...]]
    top_k: int
    hidden_size: int
    _layers: Mapping[int, ExpertWeights]
    _no_experts: ExpertWeights

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        config: Step35Config,
        experts: Mapping[int, Sequence[int]],
        *,
        formats: Mapping[int, ExpertFormat],
        on_progress: Callable[[int, int], None] | None = None,
    ) -> ExpertStore:
        """Read the given experts, and nothing else, from a checkpoint.

        Peak memory is what the experts take plus one expert as stored in the files.

        Args:
            experts: layer -> expert ids.
            formats: of each of these layers in memory. What is stored in the wanted form is copied as it is;
                float32 and bfloat16 can be had of float32, bfloat16 and float16.
            on_progress: called with (experts read, experts in all).

        Raises:
            PlanError: a layer without routed experts, an id out of range or given twice.
            CheckpointError: a tensor is missing, of another shape or in another form.
        """
        held = {layer: tuple(ids) for layer, ids in experts.items() if len(ids) > 0}
        _check(config, held)
        total = sum(len(ids) for ids in held.values())
        layers: dict[int, ExpertWeights] = {}
        done = unreleased_bytes = 0
        for layer, ids in held.items():
            layers[layer] = weights = _allocate(config, layer, ids, formats[layer])
            for slot, expert in enumerate(ids):
                parts = checkpoint.expert(layer, expert, config)
                for matrix, part in zip((weights.gate, weights.up, weights.down), parts, strict=True):
                    _fill(matrix, slot, part, checkpoint.path)
                unreleased_bytes += sum(part.data.nbytes for part in parts)
                del parts, part
                if unreleased_bytes >= RELEASE_AFTER_BYTES:
                    checkpoint.release()
                    unreleased_bytes = 0
                done += 1
                if on_progress is not None:
                    on_progress(done, total)
        checkpoint.release()
        no_experts = _allocate(config, 0, (), ExpertFormat.of(FLOAT32))
        return cls(held, config.moe_top_k, config.hidden_size, layers, no_experts)

    def forward(self, layer: int, rows: ExpertRows) -> PartialSum:
        """The held experts' share of an MoE layer's sum, on each row's fixed-point grid.

        Args:
            rows: -1 for an expert that another worker computes; bfloat16 widens exactly.

        Raises:
            ExpertNotHeld: an id that is not here.
        """
        experts = self._layers.get(layer, self._no_experts)
        if rows.hidden.dtype == np.uint16:
            rows = rows._replace(hidden=(rows.hidden.astype(np.uint32) << 16).view(np.float32))
        try:
            return PartialSum(*moe_partial_sum(experts, rows))
        except ExpertNotHeld as error:
            raise ExpertNotHeld(f"layer {layer}: {error}") from None

    @property
    def num_experts(self) -> int:
        """Experts of all layers together."""
        return sum(len(ids) for ids in self.experts.values())

    @property
    def held_bytes(self) -> int:
        """Memory that the matrices take."""
        return sum(weights.held_bytes for weights in self._layers.values())


def in_one_form(layers: Iterable[int], dtype: torch.dtype) -> dict[int, ExpertFormat]:
    """All three matrices of all these layers in float32, bfloat16 or float16."""
    form = next(form for form, known in TORCH_DTYPES.items() if known is dtype)
    return dict.fromkeys(layers, ExpertFormat.of(form))


def _check(config: Step35Config, experts: Mapping[int, tuple[int, ...]]) -> None:
    for layer, ids in experts.items():
        if layer not in config.moe_layers:
            raise PlanError(f"layer {layer} has no routed experts: expected one of {list(config.moe_layers)}")
        if not 0 <= min(ids) <= max(ids) < config.moe_num_experts or len(set(ids)) != len(ids):
            raise PlanError(
                f"layer {layer}: expert ids {list(ids)} are not distinct ids below {config.moe_num_experts}: "
                "make the plan for this model"
            )


def _allocate(config: Step35Config, layer: int, ids: tuple[int, ...], formats: ExpertFormat) -> ExpertWeights:
    hidden, inner, n = config.hidden_size, config.moe_intermediate_size, len(ids)
    slots = torch.full((config.moe_num_experts,), -1, dtype=torch.int32)
    slots[list(ids)] = torch.arange(n, dtype=torch.int32)
    return ExpertWeights(
        slots=slots,
        gate=ExpertMatrices.empty(formats.gate, n, inner, hidden),
        up=ExpertMatrices.empty(formats.up, n, inner, hidden),
        down=ExpertMatrices.empty(formats.down, n, hidden, inner),
        limit=config.layers[layer].swiglu_limit,
        top_k=config.moe_top_k,
    )


def _fill(matrices: ExpertMatrices, slot: int, part: StoredMatrix, path: Path) -> None:
    """Copy one expert's matrix to its slot, in the form wanted there."""
    wanted = matrices.form
    if not part.form.gives(wanted):
        raise CheckpointError(
            f"{path}: tensor {part.name} is stored as {part.form.name}, expected {wanted.name}: make the "
            "plan for this checkpoint, or use a checkpoint in that form"
        )
    matrices.data[slot].copy_(part.data)
