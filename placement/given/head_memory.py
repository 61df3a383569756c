"""What the head keeps in memory before any expert: its weights, the KV cache, activations of one pass."""

from __future__ import annotations

from placement.model_shape import ModelShape
from placement.workload import Workload

_FLOAT32_BYTES = 4


def head_memory_bytes(shape: ModelShape, workload: Workload) -> int:
    """Bytes on the head's first device.

    Weights: all but routed experts, `workload.head_bits_per_weight` each. KV cache: of every sequence, MTP
    layers included, `workload.context` positions (at most the window on sliding layers). Activations: the
    widest layer of the longer of a prefill and a decode pass, in float32.
    """
    weights = shape.head_parameters * workload.head_bits_per_weight / 8
    kv_cache = workload.num_sequences * shape.kv_cache_bytes(workload.context, workload.bytes_per_kv_value)
    attention = max(a.num_heads * a.head_dim + a.kv_values_per_position() for a in shape.attention)
    feed_forward = 2 * max(shape.dense_intermediate_size, shape.shared_intermediate_size)
    rows = max(workload.prefill_tokens, workload.tokens_per_step)
    # The residual stream, its norm and a layer's output beside what the layer makes of them; last, logits.
    activations = rows * (3 * shape.hidden_size + max(attention, feed_forward)) + shape.vocab_size
    return int(weights) + kv_cache + _FLOAT32_BYTES * activations
