"""What the attention kernel reaches, by new rows of a text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from orchestrator import kernels  # before torch: it sets what torch reads when loaded

# isort: split
import torch

from orchestrator.model.kv_cache import KVCache
from orchestrator.model.kv_pool import KvPool
from placement.kv_size import KvForm, KvShape
from workers.model_config import LayerConfig
from workers.probe.clocks import usual_s
from workers.probe.time_left import TimeLeft

_POOL_BYTES = 64 << 20


def attention_flops_per_s(
    layer: LayerConfig, rows: Sequence[int], context: int, seconds: float
) -> tuple[float, ...]:
    """For each of `rows`, behind `context` others: FLOP/s as the cost model counts them, causal."""
    heads, kv_heads, head_dim = layer.num_heads, layer.num_kv_heads, layer.head_dim
    cache = KVCache((layer,), 0, KvForm.bfloat16, KvPool(_POOL_BYTES))
    cache.begin(context + max(rows))
    kv = KvShape(KvForm.bfloat16, kv_heads, head_dim)
    left = TimeLeft(seconds, {str(number): 1.0 for number in rows})
    found = []
    for number in rows:
        queries = torch.ones(number, heads, head_dim)
        call = partial(kernels.attention, queries, cache.layers[0].table, kv, context, 0, head_dim**-0.5)
        flops = 4.0 * heads * head_dim * (number * context + number * (number + 1) / 2)
        found.append(flops / usual_s(call, left.next(str(number)), least_turns=1))
    return tuple(found)
