"""Grouped-query attention with q/k norm, partial RoPE and one gate per head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from orchestrator import kernels
from orchestrator.model.kv_cache import KVCache
from orchestrator.model.rope import RopeRows
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
        qkv_gate: q, k, v and gate projections side by side, (heads + 2 kv_heads) * head_dim + heads rows.
        qk_norm: (1 + weight) of q_norm for each query head, of k_norm for each key head, float32
            [heads + kv_heads, head_dim].
        output: [hidden, heads * head_dim].
        window: keys a query sees, itself included; 0: all.
    """

    qkv_gate: Matrices
    qk_norm: Tensor
    output: Matrices
    num_heads: int
    num_kv_heads: int
    head_dim: int
    window: int
    scale: float
    eps: float
    has_gate: bool


def attention(
    weights: AttentionWeights, x: Tensor, rope: RopeRows, batch: Sequence[SequenceSlice], layer: int
) -> Tensor:
    """Attention of normed rows float32 [num_tokens, hidden] -> [num_tokens, hidden], before the residual add.

    Writes the new keys and values into layer `layer` of every slice's cache.
    """
    num_tokens = x.shape[0]
    heads, kv_heads, head_dim = weights.num_heads, weights.num_kv_heads, weights.head_dim
    qkv_width = (heads + 2 * kv_heads) * head_dim
    fused = kernels.linear(x, weights.qkv_gate)

    outputs = []
    start = 0
    for part in batch:
        cache, position = part.cache.layers[layer], part.cache.length
        stop = start + part.num_tokens
        own, own_rope = fused[start:stop], rope.part(start, stop)
        queries = kernels.kv_rows(
            own,
            weights.qk_norm,
            weights.eps,
            own_rope.cos,
            own_rope.sin,
            own_rope.half,
            cache.table,
            cache.kv,
            position,
        )
        gate = own[:, qkv_width:] if weights.has_gate else None
        outputs.append(
            kernels.attention(queries, cache.table, cache.kv, position, weights.window, weights.scale, gate)
        )
        start = stop
    mixed = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return kernels.linear(mixed.view(num_tokens, heads * head_dim), weights.output)
