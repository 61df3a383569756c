"""The routed experts that one worker holds, on one device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from placement.errors import PlanError
from transport.expert_rows import ExpertRows
from workers.ffn import ExpertWeights, partial_sum
from workers.fixed_point import PartialSum
from workers.formats.checkpoint import Checkpoint
from workers.kernels import ExpertNotHeld
from workers.model_config import Step35Config

__all__ = ["ExpertNotHeld", "ExpertStore", "PartialSum"]

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
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> ExpertStore:
        """Read the given experts, and nothing else, from a checkpoint.

        Peak memory is what the experts take in `dtype` plus one expert as stored in the files.

        Args:
            experts: layer -> expert ids.
            device: a torch device; on any other than "cpu" results differ from the CPU's in the last bits.
            dtype: float32 or bfloat16.
            on_progress: called with (experts read, experts in all).

        Raises:
            PlanError: a layer without routed experts, an id out of range or given twice.
            CheckpointError: a tensor is missing or of another shape.
        """
        held = {layer: tuple(ids) for layer, ids in experts.items() if len(ids) > 0}
        _check(config, held)
        total = sum(len(ids) for ids in held.values())
        layers: dict[int, ExpertWeights] = {}
        done = unreleased_bytes = 0
        for layer, ids in held.items():
            layers[layer] = weights = _allocate(config, layer, ids, device, dtype)
            for slot, expert in enumerate(ids):
                parts = checkpoint.expert(layer, expert, config)
                for matrix, part in zip((weights.gate, weights.up, weights.down), parts, strict=True):
                    matrix[slot].copy_(part.data)
                unreleased_bytes += sum(part.data.nbytes for part in parts)
                del parts, part
                if unreleased_bytes >= RELEASE_AFTER_BYTES:
                    checkpoint.release()
                    unreleased_bytes = 0
                done += 1
                if on_progress is not None:
                    on_progress(done, total)
        checkpoint.release()
        no_experts = _allocate(config, 0, (), "cpu", dtype)
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
            return partial_sum(experts, rows, self.top_k)
        except ExpertNotHeld as error:
            raise ExpertNotHeld(f"layer {layer}: {error}") from None

    def holds(self, layer: int, expert: int) -> bool:
        return expert in self.experts.get(layer, ())

    @property
    def num_experts(self) -> int:
        """Experts of all layers together."""
        return sum(len(ids) for ids in self.experts.values())

    @property
    def held_bytes(self) -> int:
        """Memory that the matrices take."""
        return sum(w.gate.nbytes + w.up.nbytes + w.down.nbytes for w in self._layers.values())


def _check(config: Step35Config, experts: Mapping[int, tuple[int, ...]]) -> None:
    for layer, ids in experts.items():
        if layer not in config.moe_layers:
            raise PlanError(f"layer {layer} has no routed experts: expected one of {list(config.moe_layers)}")
        if not 0 <= min(ids) <= max(ids) < config.moe_num_experts or len(set(ids)) != len(ids):
            raise PlanError(
                f"layer {layer}: expert ids {list(ids)} are not distinct ids below {config.moe_num_experts}: "
                "make the plan for this model"
            )


def _allocate(
    config: Step35Config, layer: int, ids: tuple[int, ...], device: str, dtype: torch.dtype
) -> ExpertWeights:
    hidden, inner, n = config.hidden_size, config.moe_intermediate_size, len(ids)
    slots = torch.full((config.moe_num_experts,), -1, dtype=torch.int32)
    slots[list(ids)] = torch.arange(n, dtype=torch.int32)
    return ExpertWeights(
        slots=slots,
        gate=torch.empty((n, inner, hidden), dtype=dtype, device=device),
        up=torch.empty((n, inner, hidden), dtype=dtype, device=device),
        down=torch.empty((n, hidden, inner), dtype=dtype, device=device),
        limit=config.layers[layer].swiglu_limit,
    )
