"""What the attention kernel reaches, by new rows of a text, whose keys and values it writes too."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from orchestrator import kernels  # before torch: it sets what torch reads when loaded

# isort: split
import torch

from orchestrator.kernels import AttentionHeads, PassRows, SequenceRows
from orchestrator.model.kv_cache import KVCache
from orchestrator.model.kv_pool import KvPool
from orchestrator.model.rope import RopeTable
from placement.kv_size import KvForm
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
    own = AttentionHeads(
        torch.ones(heads + kv_heads, head_dim), kv_heads, 0, head_dim**-0.5, 1e-5, has_gate=False
    )
    rotation = RopeTable(layer).upto(context + max(rows))
    left = TimeLeft(seconds, {str(number): 1.0 for number in rows})
    found = []
    for number in rows:
        projected = torch.ones(number, own.width)
        places = PassRows(cache.shapes, [SequenceRows(cache.tables, context, number)])
        call = partial(kernels.attention, projected, own, rotation, places, 0)
        flops = 4.0 * heads * head_dim * (number * context + number * (number + 1) / 2)
        found.append(flops / usual_s(call, left.next(str(number)), least_turns=1))
    return tuple(found)
