"""How long a prompt takes: passes of many tokens, bound by arithmetic and by the wire. docs/cost-model.md."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from placement.cost.head import (
    head_device,
    layer_software_s,
    mtp_weights_s,
    prefill_attention_s,
    weights_s,
)
from placement.cost.rates import expert_rates
from placement.cost.roofline import (
    Counts,
    ExpertRates,
    arithmetic_seconds,
    expected_message_rows,
    roofline_seconds,
    wire_seconds,
)
from placement.cost.sharing import cpu_seconds, layer_seconds
from placement.given.problem import PlanningProblem
from placement.workload import HeadPart


def prefill_seconds(
    problem: PlanningProblem,
    load_share: NDArray[np.float64],
    held_experts: NDArray[np.integer],
    num_tokens: int,
) -> float:
    """One prefill pass over `num_tokens` tokens behind `workload.context` earlier ones, for one sequence.

    With hundreds of tokens nearly every expert is read and the routing evens out, so the time of the mean
    is the mean time: a device computes its share of all pairs, reads all it holds and receives every row.
    Without the head's own part where it has no device.

    Args:
        load_share: float64 [num_moe_layers, num_devices], share of the layer's activations; rows sum to 1.
        held_experts: int, the same shape: distinct experts of the layer on the device.
    """
    pairs = load_share * (num_tokens * problem.shape.top_k)
    distinct = np.minimum(pairs, held_experts)
    rates = prefill_rates(problem, num_tokens)
    rows = expected_message_rows(rates, pairs, num_tokens)
    experts_s = prefill_layer_seconds(problem, rates, rows, distinct, pairs)
    head_s = 0.0 if problem.head is None else prefill_head_seconds(problem, num_tokens)
    return float(experts_s.sum()) + head_s


def prefill_rates(problem: PlanningProblem, num_tokens: int) -> ExpertRates:
    """The rates of a pass of `num_tokens` tokens."""
    workload = replace(problem.workload, num_sequences=num_tokens, drafts=0)
    return expert_rates(replace(problem, workload=workload))


def prefill_head_seconds(problem: PlanningProblem, num_tokens: int, *, is_last: bool = True) -> float:
    """The head's own time in a pass over a prompt's next `num_tokens` tokens, shared experts left out.

    MTP layers run over the prompt too, for as many drafts as the workload has; only the last position of
    the last pass is given logits, its own and the drafts'.
    """
    shape, device, workload = problem.shape, head_device(problem), problem.workload
    overheads, num_drafts = device.overheads, min(workload.drafts, shape.num_mtp_layers)

    def block_s(part: HeadPart, parameters: int) -> float:
        return weights_s(part, parameters, num_tokens, workload, device)

    seconds = shape.num_moe_layers * (block_s("router", shape.router_parameters) + overheads.moe_layer_s)
    seconds += shape.num_dense_layers * block_s("ffn", shape.dense_ffn_parameters)
    for attention in shape.attention[: shape.num_hidden_layers]:
        seconds += block_s("attention", attention.parameters(shape.hidden_size)) + layer_software_s(
            overheads, num_tokens
        )
        seconds += prefill_attention_s(attention, workload, device, num_tokens)
    for index in range(num_drafts):
        attention = shape.attention[shape.num_hidden_layers + index]
        seconds += mtp_weights_s(shape, index, num_tokens, workload, device) + overheads.draft_s
        seconds += prefill_attention_s(attention, workload, device, num_tokens) + num_tokens * overheads.row_s
    heads = 1 + num_drafts if is_last else 0
    seconds += heads * weights_s("output", shape.lm_head_parameters, 1, workload, device)
    return seconds + overheads.pass_s


def prefill_layer_seconds(
    problem: PlanningProblem,
    rates: ExpertRates,
    rows: Counts,
    distinct: Counts,
    pairs: Counts,
) -> NDArray[np.float64]:
    """MoE layers of a prefill pass, experts streamed into the head's VRAM where it helps: float64 [...].

    Args:
        rows, distinct, pairs: [..., num_devices], as `device_seconds` takes them.
    """
    per_device = layer_seconds(rates, rows, distinct, pairs)
    head = problem.head
    link_bytes_per_s = None if head is None else problem.devices[head].host_link_bytes_per_s
    lenders = [i for i, d in enumerate(problem.devices) if d.is_home and d.tier.kind == "ram" and i != head]
    if head is None or link_bytes_per_s is None or not lenders:
        seconds: NDArray[np.float64] = per_device.max(axis=-1)
        return seconds
    # What a lender's CPU computes of a disk's experts stays there.
    of_disks = cpu_seconds(rates, distinct, pairs) - arithmetic_seconds(rates, distinct, pairs)
    fixed = (wire_seconds(rates, rows) + (pairs > 0) * rates.request_s + of_disks)[..., lenders]
    balanced = streamed_seconds(
        own_s=per_device[..., head],
        fixed_s=fixed,
        there_s=np.maximum(per_device[..., lenders] - fixed, 0.0),
        copy_s=distinct[..., lenders] * (problem.expert_bytes / link_bytes_per_s),
        here_s=roofline_seconds(rates, distinct[..., lenders], pairs[..., lenders], head),
    )
    # Reading may hide a disk's arithmetic where nothing is copied, which the closed form does not know.
    balanced = np.minimum(balanced, per_device[..., [head, *lenders]].max(axis=-1))
    others = [i for i in range(len(problem.devices)) if i != head and i not in lenders]
    slowest: NDArray[np.float64] = np.maximum(balanced, per_device[..., others].max(axis=-1, initial=0.0))
    return slowest


def streamed_seconds(
    own_s: NDArray[np.floating],
    fixed_s: NDArray[np.floating],
    there_s: NDArray[np.floating],
    copy_s: NDArray[np.floating],
    here_s: NDArray[np.floating],
) -> NDArray[np.float64]:
    """The least time of a layer when other home devices' experts may be copied to the GPU and computed there.

    With share x_d of lender d's experts copied, the layer takes the largest of fixed_d + (1 - x_d) there_d,
    of the copying sum(x_d copy_d), and of own + sum(x_d here_d); copying and computing overlap. At the least
    time T each lender keeps just what it finishes by T, x_d = (fixed_d + there_d - T) / there_d, and T is the
    least for which the two sums fit: the largest root over the first n lenders, longest first.

    Args:
        own_s: float64 [...], the GPU's own part.
        fixed_s: [..., num_lenders], what a lender takes however little it computes.
        there_s: its experts computed by itself.
        copy_s: all of them copied over the link all lenders share.
        here_s: all of them computed by the GPU.

    Returns:
        float64 [...].
    """
    whole = fixed_s + there_s
    order = np.argsort(-whole, axis=-1)
    whole, there, copy, here = (np.take_along_axis(a, order, -1) for a in (whole, there_s, copy_s, here_s))
    per_there = np.divide(1.0, there, out=np.zeros_like(there), where=there > 0)
    copied = np.cumsum(copy * whole * per_there, axis=-1) / (1 + np.cumsum(copy * per_there, axis=-1))
    computed = (own_s[..., None] + np.cumsum(here * whole * per_there, axis=-1)) / (
        1 + np.cumsum(here * per_there, axis=-1)
    )
    roots = np.maximum(copied, computed).max(axis=-1)
    seconds: NDArray[np.float64] = np.maximum(np.maximum(own_s, fixed_s.max(axis=-1)), roots)
    return seconds
