"""Grouped-query attention with q/k norm, partial RoPE and one gate per head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from orchestrator import kernels
from orchestrator.kernels import AttentionHeads, PassRows, Rotation, SequenceRows
from orchestrator.model.kv_cache import KVCache
from workers.kernels import Matrices


@dataclass(frozen=True, slots=True)
class SequenceSlice:
    """The next `num_tokens` rows of a call belong to the sequence behind `cache`, after its last position."""

    cache: KVCache
    num_tokens: int


@dataclass(frozen=True, slots=True)
class AttentionWeights:
    """One layer's attention, ready to run.

    Attributes:
        qkv_gate: q, k, v and gate projections side by side, as `heads` takes them.
        output: [hidden, heads * head_dim].
    """

    qkv_gate: Matrices
    heads: AttentionHeads
    output: Matrices


def pass_rows(batch: Sequence[SequenceSlice]) -> PassRows:
    """The rows of a batch, for all layers of its caches, which have made room for them.

    Raises:
        ValueError: caches of different layers.
    """
    shapes = batch[0].cache.shapes
    if any(part.cache.shapes != shapes for part in batch):
        raise ValueError("a pass whose caches keep different layers' keys and values")
    return PassRows(
        shapes, [SequenceRows(part.cache.tables, part.cache.length, part.num_tokens) for part in batch]
    )


def attention(
    weights: AttentionWeights, x: Tensor, rotation: Rotation, rows: PassRows, cache_layer: int
) -> Tensor:
    """Attention of normed rows float32 [num_tokens, hidden] -> [num_tokens, hidden], before the residual add.

    Writes the new keys and values into layer `cache_layer` of every sequence's cache.
    """
    projected = kernels.linear(x, weights.qkv_gate)
    mixed = kernels.attention(projected, weights.heads, rotation, rows, cache_layer)
    return kernels.linear(mixed, weights.output)
