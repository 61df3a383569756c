"""How long a prompt takes: passes of many tokens, bound by arithmetic and by the wire. docs/cost-model.md."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from placement.cost import expert_rates, head_device, prefill_attention_s, shared_expert_s, weights_s
from placement.problem import PlanningProblem


def prefill_seconds(
    problem: PlanningProblem,
    load_share: NDArray[np.float64],
    held_experts: NDArray[np.integer],
    num_tokens: int,
) -> float:
    """One prefill pass over `num_tokens` tokens behind `workload.context` earlier ones, for one sequence.

    With hundreds of tokens nearly every expert is read and the routing evens out, so the time of the mean
    is the mean time: a device computes its share of all pairs, reads all it holds and receives every row.

    Args:
        load_share: float64 [num_moe_layers, num_devices], share of the layer's activations; rows sum to 1.
        held_experts: int, the same shape: distinct experts of the layer on the device.
    """
    shape, device, workload = problem.shape, head_device(problem), problem.workload
    rates = expert_rates(problem)
    pairs = load_share * (num_tokens * shape.top_k)
    distinct = np.minimum(pairs, held_experts)
    rows = np.minimum(pairs, num_tokens)
    work = np.maximum(distinct * rates.read_s, pairs * rates.compute_s)
    asked = load_share > 0
    shared = np.where(rates.busy_s > 0, shared_expert_s(device, shape, workload, rows=num_tokens), 0.0)
    experts_s = (shared + asked * rates.round_trip_s + rows * rates.row_wire_s + work).max(axis=1).sum()

    def block_s(parameters: int) -> float:
        return weights_s(parameters, num_tokens, workload, device)

    trunk = shape.attention[: shape.num_hidden_layers]
    head_s = sum(block_s(a.parameters(shape.hidden_size)) for a in trunk)
    head_s += sum(prefill_attention_s(a, workload, device, num_tokens) for a in trunk)
    head_s += shape.num_moe_layers * block_s(shape.router_parameters)
    head_s += shape.num_dense_layers * block_s(shape.dense_ffn_parameters)
    # Only the last position needs logits.
    head_s += weights_s(shape.lm_head_parameters, 1, workload, device)
    return float(experts_s) + head_s
