"""What the head keeps in memory before any expert: its weights, the KV cache, activations of one pass."""

from __future__ import annotations

from placement.kv_size import PASS_ROWS, SequenceSize
from placement.model_shape import ModelShape
from placement.workload import Workload


def head_memory_bytes(shape: ModelShape, workload: Workload) -> int:
    """Bytes on the head's first device, as a run counts them before it starts.

    Weights: all but routed experts, the MTP layers' only with drafts; `workload.head_bytes`, or else
    `workload.head_bits_per_weight` each. KV cache: pages of every sequence for `workload.context` positions,
    with drafts also those of rows that wait for MTP layers. Activations: of the longer of a pass of a prompt
    and a decode pass.
    """
    drafts = min(workload.drafts, shape.num_mtp_layers)
    sequence = SequenceSize.of(shape, workload.kv_form, drafts)
    kv_cache = workload.num_sequences * sequence.num_bytes(workload.context)
    rows = max(PASS_ROWS, workload.tokens_per_step)
    return _weight_bytes(shape, workload) + kv_cache + shape.activation_bytes(rows)


def _weight_bytes(shape: ModelShape, workload: Workload) -> int:
    known = workload.head_bytes
    if known is not None:
        return known.trunk + (known.mtp if workload.drafts else 0)
    parameters = shape.head_parameters if workload.drafts else shape.trunk_head_parameters
    return int(parameters * workload.head_bits_per_weight / 8)
